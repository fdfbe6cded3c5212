"""TaskIQ on Redis streams, the broker that it recommends where no task may be lost."""

from __future__ import annotations

import os
from typing import Any

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.effects import aslow, record

url = os.environ["BENCH_REDIS"]
broker = RedisStreamBroker(url=f"{url}/0").with_result_backend(
    RedisAsyncResultBackend(redis_url=f"{url}/1", result_ex_time=600)
)


@broker.task
async def noop(number: int) -> int:
    return record(number)


sleeper = broker.task(aslow)
enqueue, enqueue_sleep = noop.kiq, sleeper.kiq
setup, teardown = broker.startup, broker.shutdown


async def wait(handle: Any) -> int:
    return (await handle.wait_result(timeout=30)).return_value


async def result(id: str) -> int:
    return (await broker.result_backend.get_result(id)).return_value
