"""The command `liteq`, and `python -m liteq`.

The probe of a container is answered here if it can be, without the command line: click
alone takes longer to import than all the rest of that answer.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run the program's own command line, and return its exit code."""
    if sys.argv[1:2] == ["health"]:
        from liteq.pulse import quick_answer

        if quick_answer(sys.argv[2:]):
            return 0
    from liteq.cli import main  # late: 80 ms

    return main()


if __name__ == "__main__":
    sys.exit(main())
