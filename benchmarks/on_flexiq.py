"""FlexiQ on SQLite."""

from __future__ import annotations

import os
from typing import Any

from flexiq import Queue, chain, chord, group

from benchmarks.effects import record, slow

queue = Queue(db_path=f"{os.environ['BENCH_FOLDER']}/flexiq.db", workers=2)
noop = queue.task()(record)
sleeper = queue.task()(slow)
enqueue, enqueue_sleep = noop.delay, sleeper.delay


@queue.task()
def add_up(numbers: list[int]) -> int:
    return sum(numbers)


@queue.task()
def increment(number: int) -> int:
    return number + 1


def enqueue_many(numbers: range) -> None:
    queue.enqueue_many(noop.name, [(number,) for number in numbers])


def chord_(size: int) -> int:
    header = group(*(noop.s(number) for number in range(size)))
    return chord(header, add_up.s()).apply().result(timeout=390)


def chain_(size: int) -> int:
    return chain(increment.s(0), *(increment.s() for _ in range(size - 1))).apply().result(390)


def wait(handle: Any) -> int:
    return handle.result(timeout=30)
