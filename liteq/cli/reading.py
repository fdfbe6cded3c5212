"""A worker's command line, read by a process of its own.

click, with the `inspect` and `ast` that it imports, takes a fifth of a worker's start and stays
in the memory of the worker and its children. So a fork reads the words, in the same way as
those of any command, while the worker imports what it needs. Words that start no worker (help,
a mistake, another command) are left to the process that they were given to.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from liteq.cli.session import Session
from liteq.cli.streams import mend_streams

__all__ = ["Reading", "Words"]


class Words(NamedTuple):
    """What the words of `liteq worker` mean: its options, and the global ones."""

    options: Mapping[str, Any]
    of_all: Mapping[str, Any]

    def obey(self, session: Session) -> int:
        """Run the worker, and return its exit code."""
        session.options.update(self.of_all)
        session.enter()
        return session.work(self.options)


class Reading:
    """Words that are being read, from when this is made until `result()`."""

    def __init__(self, argv: Sequence[str]) -> None:
        """Raises OSError if no process or pipe can be had."""
        mend_streams()  # or the pipe takes the number of one that was closed
        self._end, writing = os.pipe()
        self._reader = os.fork()
        if self._reader == 0:
            _read(argv, writing)
        os.close(writing)

    def result(self) -> Words | None:
        """Return what they mean; None if they start no worker."""
        with open(self._end, "rb") as said:
            text = said.read()
        with suppress(ChildProcessError):  # who started us ignores SIGCHLD
            os.waitpid(self._reader, 0)
        return Words(*marshal.loads(text)) if text else None


class _Listener(Session):
    """A session that does not run the worker, but keeps its options."""

    asked: Mapping[str, Any] | None = None

    def work(self, options: Mapping[str, Any]) -> int:
        self.asked = options
        return 0


def _read(argv: Sequence[str], writing: int) -> NoReturn:
    """Be the process that reads. It prints nothing: what it does not understand, the other one
    reads itself, and complains of."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        session = _Listener()
        from liteq.cli.root import WorkerAlone, run

        run(session, argv, WorkerAlone())
        if session.asked is not None:
            with open(writing, "wb") as end:
                end.write(marshal.dumps((dict(session.asked), session.options)))
    finally:
        os._exit(0)
