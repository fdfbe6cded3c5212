"""The command `liteq`: turn words into calls, and what came of them into exit codes.

Data goes to stdout; logs, notes and questions go to stderr. Each command lives in a module
of this package that is imported when the command is used, and imports the app, the worker
and the store when it runs, so `liteq --help` and completion answer at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from liteq.cli.exits import ending
from liteq.cli.session import Session
from liteq.cli.streams import mend_streams

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.cli.reading import Words

__all__ = ["main"]


def main(
    argv: Sequence[str] | None = None,
    *,
    app: Liteq | None = None,
    words: Words | None = None,
) -> int:
    """Run a command and return its exit code: the entry point of `liteq`.

    `argv` is what follows the command's name (default: the program's own). With an app, the
    command is about that one and looks for none. An error that is the user's to mend is one
    message on stderr; a traceback of liteq's own means a bug in liteq.

    `words`: what the program's own words mean, where they have been read.
    """
    session = Session(app)

    def command() -> int:
        if session.owns_process:
            mend_streams()
        if words is not None:
            return words.obey(session)
        from liteq.cli.root import run  # late: click, of which a worker needs nothing

        return run(session, argv)

    status = ending(session, command)
    if session.abandons_threads:
        from liteq.cli.working import leave

        leave(status)
    return status
