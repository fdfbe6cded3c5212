"""Who is alive: the kernel says it, by a lock that falls with the process.

Each worker holds an exclusive `flock` on a lock file of its own. Whatever kills the
worker, and whatever reuses its process id, the kernel drops the lock at that moment;
whoever can take it knows that the worker is gone. (Never on the database's own files:
closing any descriptor of those would drop SQLite's locks.)

A file that is missing proves nothing, for cleaners of old files remove what is in use. Its
worker is judged by its heartbeat then, and makes it anew with the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

from liteq.exceptions import LiteqError
from liteq.pulse import boot_id, is_free

if TYPE_CHECKING:
    from liteq.brokers.values import WorkerInfo  # the probes of `liteq.health` go without

__all__ = ["LockFiles", "boot_id", "lock_name", "present"]


def lock_name(worker: int) -> str:
    """Return the name of a worker's lock file."""
    return f"{worker}.lock"


def present(workers: Iterable[WorkerInfo]) -> list[WorkerInfo]:
    """Return those worth telling of, by their ids: not the dead whose name another has
    taken, nor what a process was before it was given up and came back."""
    found = sorted(workers)
    names = {info.name for info in found if info.state == "alive"}
    own = {(info.name, info.hostname, info.pid) for info in found if info.state == "alive"}
    return [
        info
        for info in found
        if info.state == "alive"
        or (
            ((info.name, info.hostname, info.pid) not in own)
            and (info.state == "stuck" or info.name not in names)
        )
    ]


class LockFiles:
    """The lock files of one store's workers, and those that this process holds."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = os.fspath(folder)
        self._held: dict[str, int] = {}
        _all.add(self)

    def hold(self, name: str) -> None:
        """Take the lock of a name; it is held until `release()` or our death. Raises
        `BrokerUnavailable` if its file cannot be made. To be called in a write transaction: no
        other thread does, and none forks."""
        from liteq.brokers.files import own_file, own_folder, unusable  # late: not for probes

        try:
            own_folder(self.folder)
        except OSError as exc:
            raise unusable(exc) from exc
        path = os.path.join(self.folder, name)
        fd = own_file(f"{path}.new", os.O_RDWR)
        try:
            # Before it has its name: whoever found it there and not locked would see a death.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(f"{path}.new", path)
        except BaseException:
            os.close(fd)
            raise
        before = self._held.get(name)
        self._held[name] = fd
        if before is not None:
            os.close(before)

    def hold_again(self, name: str) -> bool:
        """Take a lock of ours anew if its file was removed, or another is in its place; return
        whether that was needed, and done. To be called as `hold()` is."""
        fd, path = self._held.get(name), os.path.join(self.folder, name)
        if fd is None:
            return False
        try:
            if self.is_there(name) and os.path.samestat(os.lstat(path), os.fstat(fd)):
                return False
            self.hold(name)
        except (OSError, LiteqError):  # until it can be: our heartbeat tells the same
            return False
        return True

    def release(self, name: str) -> None:
        """Give the lock up and remove its file."""
        fd = self._held.pop(name, None)
        self.remove(name)
        if fd is not None:
            os.close(fd)

    def remove(self, name: str) -> None:
        """Remove the file of a worker that is gone."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.folder, name))

    def is_there(self, name: str) -> bool:
        """Return whether there is such a file."""
        return os.path.lexists(os.path.join(self.folder, name))

    def is_dead(self, name: str) -> bool:
        """Return whether the file is there, and nobody holds its lock."""
        return name not in self._held and is_free(os.path.join(self.folder, name))

    def _drop_inherited(self) -> None:
        """Close the copies a forked child got: while one is open, the lock outlives us."""
        for fd in self._held.values():
            with contextlib.suppress(OSError):
                os.close(fd)
        self._held.clear()


_all: weakref.WeakSet[LockFiles] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for files in list(_all):
        files._drop_inherited()


os.register_at_fork(after_in_child=_after_fork_in_child)
