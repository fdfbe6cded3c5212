"""RQ on Redis."""

from __future__ import annotations

import os

from redis import Redis
from rq import Queue
from rq.job import Job

from benchmarks.effects import record, slow

connection = Redis.from_url(os.environ["BENCH_REDIS"])
queue = Queue("bench", connection=connection)


def enqueue(number: int) -> Job:
    return queue.enqueue(record, number)


def enqueue_many(numbers: range) -> None:
    queue.enqueue_many([Queue.prepare_data(record, (number,)) for number in numbers])


def enqueue_sleep(number: int, milliseconds: int) -> Job:
    return queue.enqueue(slow, number, milliseconds)


def wait(handle: Job) -> int:
    return handle.latest_result(timeout=30).return_value


def result(id: str) -> int:
    return Job.fetch(id, connection=connection).return_value()
