"""A pid file that says the truth: it is locked for as long as its process lives."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from liteq.cli.exits import Exit, Failure

__all__ = ["holding"]

_LONGEST: Final = 32  # bytes of a pid file
# For its owner alone: whoever can read a file can hold a lock on it, and who was killed could
# not be started again.
_MODE: Final = 0o600


@contextmanager
def holding(name: str, heed_term: Callable[[Callable[[], None]], None]) -> Iterator[None]:
    """Write this process's id to the file, lock it, and remove it at the end, unless the name
    is another file's by then. `heed_term` is told what is to be done if a SIGTERM is that end.

    Ends the command with a `Failure` if another process holds it. A file that a killed
    worker left behind is taken over: the kernel drops the lock with the process, whereas
    the pid in the file may be anyone's by now. Anything else that has the name is refused and
    kept, a link too: what is in it would be lost.
    """
    file = _lock(name)
    ours = os.getpid()
    inherited = [file]

    def close_in_child() -> None:  # the lock would outlive us in a child that has it open
        if inherited:
            os.close(inherited.pop())

    def remove() -> None:
        # Before the lock falls: for as long as we have it, no worker takes the name over while
        # it is our file's. Only who removes that between these two lines makes them miss.
        with suppress(OSError):  # what cannot be removed is free for the next one all the same
            if os.getpid() == ours and _is_at(name, file):  # a child has our handler
                os.unlink(name)

    os.register_at_fork(after_in_child=close_in_child)
    heed_term(remove)  # before our id is in it: an empty file is nobody's
    with suppress(PermissionError):  # another user's, who lets us write to it
        os.fchmod(file, _MODE)
    os.ftruncate(file, 0)
    os.write(file, b"%d\n" % ours)
    try:
        yield
    finally:
        inherited.clear()
        remove()
        os.close(file)


def _lock(name: str) -> int:
    while True:
        try:
            file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        except OSError as exc:
            why = "a symbolic link" if exc.errno == errno.ELOOP else exc.strerror
            raise Failure(f"--pidfile {name}: {why}", Exit.USAGE) from exc
        if not _is_pid_file(file):
            os.close(file)
            raise Failure(
                f"--pidfile {name}: this is not a pid file, so it is kept", Exit.USAGE
            )
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(file, _LONGEST, 0).decode("ascii", "replace").strip()
            os.close(file)
            raise Failure(f"--pidfile {name}: a worker is running, pid {pid}") from None
        if _is_at(name, file):
            return file
        os.close(file)  # its last holder removed it between our open and our lock


def _is_pid_file(file: int) -> bool:
    """Tell whether there is nothing in a file but a process id, if that."""
    if not stat.S_ISREG(os.fstat(file).st_mode):
        return False
    text = os.pread(file, _LONGEST + 1, 0)
    return len(text) <= _LONGEST and re.fullmatch(rb"\s*[0-9]*\s*", text) is not None


def _is_at(name: str, file: int) -> bool:
    """Tell whether the open file is the one that has this name: it may have been removed, and
    another made in its place."""
    try:
        return os.path.samestat(os.stat(name), os.fstat(file))
    except FileNotFoundError:
        return False
