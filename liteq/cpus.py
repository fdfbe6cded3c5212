"""How many CPUs this process may use: its affinity, and the quota of its control group.

A container with `--cpus=2` on a machine of 64 has an affinity of 64 and a quota of 2. A
quota is a share of time, so a part of a CPU counts as one.
Sources: cgroups(7), the kernel's cgroup-v2.rst (`cpu.max`) and sched-bwc.rst
(`cpu.cfs_quota_us`).
"""

from __future__ import annotations

import math
import os

__all__ = ["available"]


def available(root: str | os.PathLike[str] = "/") -> int:
    """Return how many there are, 1 or more. `root` is where /proc and /sys are found."""
    quota = _quota(os.fspath(root))
    usable = _affinity()
    return usable if quota is None else max(1, min(usable, math.ceil(quota)))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def _quota(root: str) -> float | None:
    """Return the least quota of the group and those it is in, in CPUs."""
    found = []
    for controllers, path in _groups(root):
        if controllers is None:
            base, read = os.path.join(root, "sys/fs/cgroup"), _quota_v2
        elif "cpu" in controllers:
            base, read = os.path.join(root, "sys/fs/cgroup/cpu"), _quota_v1
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        # In a container the path may be that of the host: then the mount is the group.
        for count in range(len(parts), -1, -1):
            quota = read(os.path.join(base, *parts[:count]))
            if quota is not None:
                found.append(quota)
    return min(found, default=None)


def _groups(root: str) -> list[tuple[list[str] | None, str]]:
    """Return the groups of this process: controllers (None: version 2) and path."""
    groups: list[tuple[list[str] | None, str]] = []
    for line in _read(root, "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        groups.append((None if number == "0" else controllers.split(","), path))
    return groups


def _quota_v2(group: str) -> float | None:
    words = _read(group, "cpu.max").split()
    return _share(words[0], words[1]) if len(words) == 2 else None


def _quota_v1(group: str) -> float | None:
    return _share(
        _read(group, "cpu.cfs_quota_us").strip(), _read(group, "cpu.cfs_period_us").strip()
    )


def _share(quota: str, period: str) -> float | None:
    """Return how much of a period is allowed; "max" and -1 mean all of it."""
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _read(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name), encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
