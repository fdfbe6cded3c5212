"""What tasks leave behind: a record of each run, appended to one file."""

from __future__ import annotations

import logging
import os
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

WARM_UP = 1_000_000_000  # tasks with such numbers do not count
ENDED = 2_000_000_000  # added to the number of a task that took its time, at its end
_RECORD = struct.Struct("<qq")
_FOLDER = os.environ.get("BENCH_FOLDER")
_FILE = os.open(f"{_FOLDER}/effects", os.O_WRONLY | os.O_APPEND) if _FOLDER else -1
if "BENCH_WORKER" in os.environ:
    logging.disable(logging.INFO)  # no system writes a line for each task


def record(number: int) -> int:
    """Note that a task starts now, by a clock that all processes have in common."""
    os.write(_FILE, _RECORD.pack(number, time.monotonic_ns()))
    return number


def slow(number: int, milliseconds: int) -> int:
    """Take some time, and note the start and the end."""
    record(number)
    time.sleep(milliseconds / 1000)
    record(number + ENDED)
    return number


def busy(number: int, milliseconds: int) -> int:
    """Compute for so long by the CPU's clock, and note the start and the end."""
    record(number)
    end = time.thread_time() + milliseconds / 1000
    while time.thread_time() < end:
        pass
    record(number + ENDED)
    return number


async def aslow(number: int, milliseconds: int) -> int:
    """Be slow where other tasks share the thread."""
    record(number)
    import asyncio  # late: who runs this has it, and no other system's worker is to carry it

    await asyncio.sleep(milliseconds / 1000)
    record(number + ENDED)
    return number


def count(path: Path) -> int:
    """Return how many runs there were, warm-ups included."""
    return path.stat().st_size // _RECORD.size


def counted(path: Path) -> int:
    return sum(number < WARM_UP for number, _ in read(path))


def read(path: Path) -> list[tuple[int, int]]:
    """Return numbers and times, in the order in which they were written."""
    data = path.read_bytes()
    return list(_RECORD.iter_unpack(data[: len(data) // _RECORD.size * _RECORD.size]))


def starts(path: Path, expected: int) -> dict[int, int]:
    """Return when each task started; raise unless 0 … `expected` - 1 ran once each."""
    ran = [run for run in read(path) if run[0] < WARM_UP]
    found = dict(ran)
    if len(ran) != expected or found.keys() != set(range(expected)):
        raise RuntimeError(f"{len(ran)} runs of {len(found)} tasks, of {expected} in all")
    return found
