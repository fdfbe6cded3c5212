"""Celery on Redis, as its guide sets it up: the broker in one database, results in another."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, chain, chord

from benchmarks.effects import record, slow

url = os.environ["BENCH_REDIS"]
app = Celery("bench", broker=f"{url}/0", backend=f"{url}/1")
app.conf.broker_connection_retry_on_startup = True
noop = app.task(name="noop")(record)
sleeper = app.task(name="sleeper")(slow)
enqueue, enqueue_sleep = noop.delay, sleeper.delay


@app.task
def add_up(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def increment(number: int) -> int:
    return number + 1


def wait(handle: Any) -> int:
    return handle.get(timeout=30)


def result(id: str) -> int:
    return wait(app.AsyncResult(id))


def chord_(size: int) -> int:
    return chord((noop.s(number) for number in range(size)), add_up.s())().get(timeout=390)


def chain_(size: int) -> int:
    steps = [increment.s(0), *(increment.s() for _ in range(size - 1))]
    return chain(steps)().get(timeout=390)
