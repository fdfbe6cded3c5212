"""A pid file that says the truth: it is locked for as long as its process lives."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from liteq.cli.front import Exit, Failure

__all__ = ["holding"]


@contextmanager
def holding(name: str) -> Iterator[None]:
    """Write this process's id to the file, lock it, and remove it at the end, unless the name
    is another file's by then.

    Ends the command with a `Failure` if another process holds it. A file that a killed
    worker left behind is taken over: the kernel drops the lock with the process, whereas
    the pid in the file may be anyone's by now.
    """
    file = _lock(name)
    inherited = [file]

    def close_in_child() -> None:  # the lock would outlive us in a child that has it open
        if inherited:
            os.close(inherited.pop())

    os.register_at_fork(after_in_child=close_in_child)
    os.ftruncate(file, 0)
    os.write(file, b"%d\n" % os.getpid())
    try:
        yield
    finally:
        inherited.clear()
        # Before the lock falls: for as long as we have it, no worker takes the name over while
        # it is our file's. Only who removes that between these two lines makes them miss.
        with suppress(OSError):  # what cannot be removed is free for the next one all the same
            if _is_at(name, file):
                os.unlink(name)
        os.close(file)


def _lock(name: str) -> int:
    while True:
        try:
            file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise Failure(f"--pidfile {name}: {exc.strerror}", Exit.USAGE) from exc
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(file, 32).decode("ascii", "replace").strip()
            os.close(file)
            raise Failure(f"--pidfile {name}: a worker is running, pid {pid}") from None
        if _is_at(name, file):
            return file
        os.close(file)  # its last holder removed it between our open and our lock


def _is_at(name: str, file: int) -> bool:
    """Tell whether the open file is the one that has this name: it may have been removed, and
    another made in its place."""
    try:
        return os.path.samestat(os.stat(name), os.fstat(file))
    except FileNotFoundError:
        return False
