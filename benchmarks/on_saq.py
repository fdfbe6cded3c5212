"""SAQ on Redis."""

from __future__ import annotations

import os
from typing import Any

from saq import Queue
from saq.job import Job

from benchmarks.effects import aslow, record

queue = Queue.from_url(os.environ["BENCH_REDIS"])
setup, teardown = queue.connect, queue.disconnect


async def noop(_context: Any, *, number: int) -> int:
    return record(number)


async def sleeper(_context: Any, *, number: int, milliseconds: int) -> int:
    return await aslow(number, milliseconds)


settings = {"queue": queue, "functions": [noop, sleeper], "concurrency": 10}


async def enqueue(number: int) -> Job | None:
    return await queue.enqueue("noop", number=number)


async def enqueue_sleep(number: int, milliseconds: int) -> Job | None:
    return await queue.enqueue("sleeper", number=number, milliseconds=milliseconds)


async def call(number: int) -> int:
    # Waiting for a job that was enqueued before may miss its end and hang; this does not.
    return await queue.apply("noop", number=number)
