"""streaQ on Redis."""

from __future__ import annotations

import os
from typing import Any

from streaq import Worker

from benchmarks.effects import aslow, record

worker = Worker(redis_url=os.environ["BENCH_REDIS"])


@worker.task
async def noop(number: int) -> int:
    return record(number)


sleeper = worker.task(aslow)


async def setup() -> None:
    await worker.__aenter__()


async def teardown() -> None:
    await worker.__aexit__(None, None, None)


async def enqueue(number: int) -> Any:
    return await noop.enqueue(number)


async def enqueue_many(numbers: range) -> None:
    await worker.enqueue_many([noop.enqueue(number) for number in numbers])


async def enqueue_sleep(number: int, milliseconds: int) -> Any:
    return await sleeper.enqueue(number, milliseconds)


async def wait(handle: Any) -> int:
    return (await handle.result(30)).result
