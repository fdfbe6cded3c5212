"""The processes of a run: none of them outlives it, and /proc says what each of them took.

Systems start processes that start processes, and not all of those die with their parent.
Linux lets a process adopt the orphans among its descendants (PR_SET_CHILD_SUBREAPER in
prctl(2)), so a run is two: a keeper that does nothing but wait, and the run itself. Whichever
of the two is killed, the other ends all that is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "OverTime",
    "children_of",
    "cpu_seconds",
    "end_strays",
    "memory",
    "others_cpu_seconds",
    "supervise",
    "time_limit",
    "tree",
]

_PDEATHSIG, _CHILD_SUBREAPER = 1, 36


class OverTime(RuntimeError):
    """A measurement took longer than it may."""


def supervise(work: Callable[[], None]) -> None:
    """Do the work in a child process and end with its exit code, leaving nothing behind:
    neither a process nor a temporary file."""
    tempfile.tempdir = tempfile.mkdtemp(prefix="bench-")
    _prctl(_CHILD_SUBREAPER, 1)
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        _prctl(_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGTERM, _leave)
        _prctl(_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != keeper:
            os._exit(1)
        work()
        sys.exit(0)
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(signum, lambda *_: os.kill(pid, signal.SIGTERM))
    _, status = os.waitpid(pid, 0)
    end_strays()
    shutil.rmtree(tempfile.tempdir)
    sys.exit(os.waitstatus_to_exitcode(status) and 1)


def end_strays(but: Collection[int] = ()) -> int:
    """Kill all descendants but those trees; return how many there were."""
    spared = {int(each.name) for pid in but for each in tree(pid)}
    killed: set[int] = set()
    while True:
        found = {int(each.name) for each in tree(os.getpid())[1:]} - spared
        if not found:
            return len(killed)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= {pid for pid in found if _reap(pid)}
        time.sleep(0.01)


def _reap(pid: int) -> bool:
    """Bury a child that has ended. False if it is not ours yet: its parent has to die first."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OverTime` if the block takes longer."""

    def ring(*_: Any) -> None:
        raise OverTime(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tree(pid: int) -> list[Path]:
    """Return a process and all its descendants, as folders of /proc."""
    found = [Path(f"/proc/{pid}")]
    for each in found:
        found += children_of(int(each.name))
    return found


def children_of(pid: int) -> list[Path]:
    """Return the processes that a process has started, as folders of /proc."""
    found: list[str] = []
    for file in Path(f"/proc/{pid}").glob("task/*/children"):
        with contextlib.suppress(OSError):  # it has just ended
            found += file.read_text().split()
    return [Path(f"/proc/{child}") for child in found]


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a tree: to the nanosecond, since an idle worker uses only one
    or two of the ticks that `stat` counts."""
    files = [file for each in tree(pid) for file in each.glob("task/*/schedstat")]
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def memory(pid: int) -> float:
    """Return the MiB of a tree, each shared page shared out among its users (PSS)."""
    rollups = [(each / "smaps_rollup").read_text() for each in tree(pid)]
    return sum(int(text.partition("\nPss:")[2].split()[0]) for text in rollups) / 1024


def others_cpu_seconds(server: int) -> float:
    """Return the CPU time of all that we have not started: how loaded the machine is. Those
    that we have are known once they have ended; `server` is the pid of one that goes on."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split()[1:9]]
    busy = (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # not idle, iowait
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return busy - sum(usage.ru_utime + usage.ru_stime for usage in usages) - cpu_seconds(server)


def _leave(*_: Any) -> None:
    raise SystemExit(1)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")
