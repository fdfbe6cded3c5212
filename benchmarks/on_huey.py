"""Huey on SQLite or on Redis. On SQLite it knows fsync or none at all; "normal" stands for
none, which is faster than SQLite's NORMAL, and a power loss may damage the file."""

from __future__ import annotations

import os

from huey import RedisHuey, SqliteHuey, chord
from huey.api import Result

from benchmarks.effects import record, slow

if "BENCH_REDIS" in os.environ:
    huey = RedisHuey("bench", url=os.environ["BENCH_REDIS"])
else:
    huey = SqliteHuey(
        "bench",
        filename=f"{os.environ['BENCH_FOLDER']}/huey.db",
        fsync=os.environ["BENCH_DURABILITY"] == "full",
    )
enqueue = noop = huey.task(name="noop")(record)
enqueue_sleep = sleeper = huey.task(name="sleeper")(slow)
result, waiting = huey.result, huey.pending_count


@huey.task()
def add_up(numbers: list[int]) -> int:
    return sum(numbers)


@huey.task()
def increment(number: int) -> int:
    return number + 1


def wait(handle: Result) -> int:
    return handle.get(blocking=True, timeout=30)


def chord_(size: int) -> int:
    header = [noop.s(number) for number in range(size)]
    return huey.enqueue(chord(header, add_up.s())).get(blocking=True, timeout=390)


def chain_(size: int) -> int:
    steps = increment.s(0)
    for _ in range(size - 1):
        steps = steps.then(increment)
    *_, last = huey.enqueue(steps)
    return last.get(blocking=True, timeout=390)
