"""Whether a worker of this machine lives, asked of its store and the kernel alone.

For the probe of a container, which asks every few seconds: nothing is imported here but apsw
and what Python has loaded anyway (`typing` alone would double the time that it takes).
"""

from __future__ import annotations

import fcntl
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, Final, TypeAlias

    Beat: TypeAlias = tuple[str, str, int, str, float, bool]

__all__ = ["beats", "boot_id", "is_free", "quick_answer", "stranger"]

_ELSEWHERE: Final = ("LITEQ_BROKER_TRANSPORT_OPTIONS", "LITEQ_BROKER_USE_SSL")
MAX_AGE: Final = 60.0  # seconds that the last heartbeat of a worker may be old
_TIMEOUT: Final = 2_000  # milliseconds to wait for a store: a probe has little time
_STEADY: Final = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", 0))
_WRITABLE: Final = 0o022  # by other users
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"


def boot_id() -> str:
    """Return a text that changes when the host is booted ("" where none is known)."""
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def is_free(lock: str) -> bool:
    """Return whether nobody holds the lock of this file: whoever held it is gone.

    A file that is missing proves nothing: somebody may have removed it from under a worker.
    """
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # or no descriptor is left, or it is another user's: its heartbeat tells
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(fd).st_nlink > 0  # else it was removed, and is made anew perhaps
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def stranger(folder: str) -> tuple[str, int] | None:
    """Return what belongs to neither this user nor root, and to whom: a store's folder, or
    something in it, which may be from a time when the folder's mode kept nobody out."""
    own = (os.geteuid(), 0)
    for name in ("", *os.listdir(folder)):
        path = os.path.join(folder, name) if name else folder
        try:
            owner = os.lstat(path).st_uid
        except FileNotFoundError:  # a WAL comes and goes
            continue
        if owner not in own:
            return path, owner
    return None


def beats(folder: str, now: float) -> Iterator[Beat]:
    """Yield name, host, process id, queues, the heartbeat's age in seconds, and whether it
    lives, of each worker registered in the store of a folder.

    `now` is the steady time of this boot. Raises `apsw.Error` if the store cannot be read.
    """
    import apsw

    # Not read-only: without a writer at hand, SQLite could not read the WAL.
    db = apsw.Connection(os.path.join(folder, "store.db"), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        db.set_busy_timeout(_TIMEOUT)
        rows: list[Any] = db.execute(
            "SELECT id, name, hostname, pid, queues, boot, beat_at FROM worker "
            "INDEXED BY worker_alive WHERE stopped_at IS NULL"
        ).fetchall()
    finally:
        db.close()
    boot = boot_id()
    for id, name, host, pid, queues, born, beat_at in rows:
        alive = born == boot and not is_free(os.path.join(folder, "workers", f"{id}.lock"))
        yield name, host, pid, queues, max(0.0, now - beat_at), alive


def quick_answer(words: Sequence[str], on_server: Callable[[str], Iterable[Beat]]) -> bool:
    """Answer `liteq health` with these words behind it, if all is well and nothing has to be
    said but that; else return False: the command itself knows what is to be said.

    Quick are a check, and a store that is named by `-b` or LITEQ_BROKER_URL. `on_server`
    gives what `beats()` gives, of a store with such a URL; nothing if it cannot be reached.
    """
    url = os.environ.get("LITEQ_BROKER_URL")
    if any(name.startswith(_ELSEWHERE) for name in os.environ):
        return False
    left = list(words)
    while left:
        word = left.pop(0)
        if word in ("-b", "--broker") and left:
            url = left.pop(0)
        elif word not in ("live", "ready"):
            return False
    if url is None:
        return False
    here = os.uname().nodename
    good = [
        f"{name}  pid {pid}  heartbeat {age:.1f} s ago\n"
        for name, host, pid, _, age, alive in _beats(url, on_server)
        if alive and host == here and age <= MAX_AGE
    ]
    if not good or not all(line[:-1].isprintable() for line in good):
        return False
    try:
        sys.stdout.write("".join(good))
    except (AttributeError, UnicodeError):  # there is none, or it has no such character
        return False
    return True


def _beats(url: str, on_server: Callable[[str], Iterable[Beat]]) -> Iterable[Beat]:
    """Return the heartbeats in a store, nothing if they cannot be had in a quick way."""
    if url.startswith(("redis", "unix:", "valkey")):
        return on_server(url)
    folder = _folder(url)
    if folder is None:
        return ()
    import apsw

    try:
        if os.stat(folder).st_mode & _WRITABLE or (os.geteuid() and stranger(folder)):
            return ()  # the command says why it is refused
        return list(beats(folder, time.clock_gettime(_STEADY)))
    except (apsw.Error, OSError):
        return ()


def _folder(url: str) -> str | None:
    """Return the folder of a store that this names, None if it may be something else."""
    scheme, colon, path = url.partition("://")
    if not colon:
        path = url
    elif scheme != "sqlite" or "?" in path or "%" in path:
        return None
    if colon and path.startswith("//"):  # as SQLAlchemy writes an absolute path
        path = path[1:]
    path = os.path.realpath(path)
    return path if os.path.exists(os.path.join(path, "store.db")) else None
