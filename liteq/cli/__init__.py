"""The command `liteq`: turn words into calls, and what came of them into exit codes.

Data goes to stdout; logs, notes and questions go to stderr. A worker that is started by plain
words is started without click (`liteq.cli.words`); all else is click's (`liteq.cli.commands`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from liteq.cli import words

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = ["main", "ready"]


def main(argv: Sequence[str] | None = None, *, app: Liteq | None = None) -> int:
    """Run a command and return its exit code: the entry point of `liteq`.

    `argv` is what follows the command's name (default: the program's own). With an app, the
    command is about that one and looks for none. An error that is the user's to mend is one
    message on stderr; a traceback of liteq's own means a bug in liteq.
    """
    return ready(argv, app=app)()


def ready(argv: Sequence[str] | None = None, *, app: Liteq | None = None) -> Callable[[], int]:
    """Import what the words need, and return what runs them."""
    given = sys.argv[1:] if argv is None else list(argv)
    if (said := words.plain(given, os.environ)) is not None:
        from liteq.cli import working

        return partial(working.main, said, app=app)
    from liteq.cli import commands  # late: with click, 20 ms and 3 MiB

    return partial(commands.main, given, app=app)
