"""What the system has run out of, in words that say which limit to raise."""

from __future__ import annotations

import errno
import os
from typing import Final

__all__ = ["advice", "make_room", "of_descriptors"]

_ADVICE: Final = {
    errno.EMFILE: "too many open files: raise the limit (`ulimit -n`, LimitNOFILE= of systemd)",
    errno.ENFILE: "the system has too many open files: raise fs.file-max (sysctl)",
    errno.EAGAIN: "no more processes: raise the limit (`ulimit -u`, TasksMax= of systemd, the "
    "container's limit of pids)",
    errno.ENOMEM: "no memory: raise the limit (`ulimit -v`, MemoryMax= of systemd), or start "
    "fewer processes",
    errno.ENOSPC: "no space left (`df`), or no inode (`df -i`): free some",
    errno.EDQUOT: "the disk quota is used up: free some, or have it raised",
    errno.EFBIG: "a file may not grow any more: raise the limit (`ulimit -f`)",
}


def advice(exc: BaseException) -> str | None:
    """Return what is missing and what to do; None if the error is of another kind."""
    if isinstance(exc, MemoryError):
        return _ADVICE[errno.ENOMEM]
    if not isinstance(exc, OSError) or exc.errno not in _ADVICE:
        return None
    if exc.errno == errno.EMFILE:
        return _too_many_files()
    return _ADVICE[exc.errno] + (f" ({exc.filename})" if exc.filename else "")


def make_room(count: int) -> str | None:
    """Let this process have so many files open, raising its limit if allowed; say what is
    missing if not."""
    if not 0 <= os.sysconf("SC_OPEN_MAX") < count:
        return None
    try:
        import resource  # late: few need more than they have
    except ImportError:  # which takes a descriptor
        return _too_many_files()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if not 0 <= hard < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
        return None
    return _too_many_files()


def of_descriptors(count: int) -> str | None:
    """Say that so many files cannot be opened now, if that is so."""
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))  # noqa: PERF401 (half of them are to be closed)
    except OSError as exc:
        return advice(exc)
    finally:
        for fd in opened:
            os.close(fd)
    return None


def _too_many_files() -> str:
    # Not by `resource`: to import it takes a descriptor.
    return f"{_ADVICE[errno.EMFILE]}; it is {os.sysconf('SC_OPEN_MAX')}"
