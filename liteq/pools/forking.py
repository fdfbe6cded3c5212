"""A forked process: all that a child needs it has by the fork, so nothing is sent to it.

`multiprocessing` would do the same, and bring `pickle`, `subprocess` and pipes for it: 15 ms
of a worker's start, and 2 MB.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from functools import partial

__all__ = ["Forked"]


class Forked:
    """A process that is a copy of this one, runs `main()`, and ends with it.

    Its standard input is empty: what a terminal sends is the parent's to read. `name` is
    what `multiprocessing` calls it there, if the program has loaded that.
    """

    __slots__ = ("pid", "sentinel")

    def __init__(self, name: str, main: Callable[[], None]) -> None:
        """Raises `OSError` if there can be no further process."""
        for stream in (sys.stdout, sys.stderr):  # or both processes would write what waits
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        # Readable when the process has ended; see `_Child._open_sentinel()`.
        self.sentinel, end = (-1, -1) if hasattr(os, "pidfd_open") else os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            if end >= 0:  # what a task forks is not this process: its death is to be seen
                os.register_at_fork(after_in_child=partial(os.close, end))
            _be(name, main)
        if end >= 0:
            os.close(end)

    @property
    def exitcode(self) -> int | None:
        """How it ended, for which this waits: an exit status, or a signal's number as a
        negative one. None if somebody else has waited for it."""
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            return None
        return os.waitstatus_to_exitcode(status)


def _be(name: str, main: Callable[[], None]) -> None:
    try:
        before, sys.stdin = sys.stdin, open(os.devnull, encoding="utf-8")  # noqa: SIM115
        with contextlib.suppress(AttributeError, OSError, ValueError):  # there was none
            os.dup2(sys.stdin.fileno(), before.fileno())  # what a task starts has it, too
        if (known := sys.modules.get("multiprocessing.process")) is not None:
            known.current_process().name = name  # a log may show it
        for util in ("multiprocessing.util", "multiprocess.util"):
            # Else a program's proxies and queues would go on with their parent's sockets.
            if (known := sys.modules.get(util)) is not None:
                known._run_after_forkers()
        main()
    finally:
        os._exit(1)  # what it does when it is over, `main()` says itself
