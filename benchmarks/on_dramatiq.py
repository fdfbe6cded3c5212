"""Dramatiq on Redis, with results, which it keeps only if asked."""

from __future__ import annotations

import os
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.effects import record, slow

url = os.environ["BENCH_REDIS"]
broker = RedisBroker(url=f"{url}/0")
broker.add_middleware(Results(backend=RedisBackend(url=f"{url}/1"), store_results=True))
dramatiq.set_broker(broker)
noop = dramatiq.actor(record, actor_name="noop")
sleeper = dramatiq.actor(slow, actor_name="sleeper")
enqueue, enqueue_sleep = noop.send, sleeper.send


@dramatiq.actor
def increment(number: int) -> int:
    return number + 1


def wait(handle: Any) -> int:
    return handle.get_result(block=True, timeout=30_000)


def chain_(size: int) -> int:
    steps = [increment.message(0), *(increment.message() for _ in range(size - 1))]
    return dramatiq.pipeline(steps).run().get_result(block=True, timeout=390_000)
