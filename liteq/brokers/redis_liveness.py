"""Who is alive on this host, for a store that is on another.

A worker writes down which boot of which kernel it runs on, in which space of process ids,
its own id there, and when that process was started. Whoever shares the boot and the space
sees at once when the process is gone, whatever reuses its id; for all others, the heartbeat
tells. Platforms without /proc go by the heartbeat alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from liteq.brokers.liveness import boot_id

__all__ = ["Birth", "is_dead", "own_birth", "watch"]

_STATE = 0  # fields of /proc/<pid>/stat behind the command's name
_STARTED = 19


class Birth(NamedTuple):
    """One process of one host. `boot` is "" where nothing can be told."""

    boot: str
    space: str
    pid: int
    started: str

    def near(self, other: Birth) -> bool:
        """Tell whether this process can see the other."""
        return bool(self.boot) and (self.boot, self.space) == (other.boot, other.space)


def own_birth() -> Birth:
    """Return the birth of this process."""
    pid = os.getpid()
    try:
        space = os.readlink("/proc/self/ns/pid")
        fields = _stat(pid)
    except OSError:
        fields = None
    if fields is None:
        return Birth("", "", pid, "")
    return Birth(boot_id(), space, pid, fields[_STARTED])


def is_dead(birth: Birth) -> bool:
    """Return whether a process of this host and space is gone, or is only still to be
    waited for by its parent."""
    fields = _stat(birth.pid)
    return fields is None or fields[_STARTED] != birth.started or fields[_STATE] in "ZX"


def watch(birth: Birth) -> int | None:
    """Return a descriptor that becomes readable when the process ends; None if it has
    ended, or this platform has none. The caller owns it."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        fd = os.pidfd_open(birth.pid)
    except OSError:
        return None
    if is_dead(birth):  # looked at after the opening: the id may have been reused before
        os.close(fd)
        return None
    return fd


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()  # the name before it may hold anything
