"""Who is alive: the kernel says it, by a lock that falls with the process.

Each worker holds an exclusive `flock` on a lock file of its own. Whatever kills the
worker, and whatever reuses its process id, the kernel drops the lock at that moment;
whoever can take it knows that the worker is gone. (Never on the database's own files:
closing any descriptor of those would drop SQLite's locks.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

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
        """Take the lock of a new name; it is held until `release()` or our death. Raises
        `BrokerUnavailable` if its file cannot be made."""
        from liteq.brokers.files import own_file, own_folder, unusable  # late: not for probes

        try:
            own_folder(self.folder)
        except OSError as exc:
            raise unusable(exc) from exc
        fd = own_file(os.path.join(self.folder, name), os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(fd)
            raise
        self._held[name] = fd

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

    def is_dead(self, name: str) -> bool:
        """Return whether nobody holds the lock."""
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
