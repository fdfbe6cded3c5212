"""`python -m liteq`: the same as the command `liteq`."""

from __future__ import annotations

import sys

from liteq.cli import main

if __name__ == "__main__":
    sys.exit(main())
