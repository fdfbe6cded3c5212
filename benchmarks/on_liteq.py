"""liteq on either store, and what the measurements of depth do with it."""

from __future__ import annotations

import os
import time

from benchmarks.effects import record, slow
from liteq import Liteq, chain, chord
from liteq.ids import new_id
from liteq.message import Message
from liteq.outcome import Succeeded
from liteq.result import AsyncResult

folder = os.environ["BENCH_FOLDER"]
app = Liteq("bench", broker=os.environ.get("BENCH_REDIS") or f"sqlite:///{folder}/store")
if "BENCH_REDIS" not in os.environ:
    app.conf.broker_transport_options = {"durability": os.environ["BENCH_DURABILITY"]}
noop = app.task(name="noop")(record)
sleeper = app.task(name="sleeper")(slow)
enqueue, enqueue_sleep = noop.delay, sleeper.delay


@app.task
def add_up(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def increment(number: int) -> int:
    return number + 1


def chord_(size: int) -> int:
    return chord((noop.s(number) for number in range(size)), add_up.s()).delay().get(100)


def chain_(size: int) -> int:
    return chain(increment.s(0), *(increment.s() for _ in range(size - 1))).delay().get(100)


def wait(handle: AsyncResult[int]) -> int:
    return handle.get(timeout=30)


def result(id: str) -> int:
    return wait(app.AsyncResult(id))


def preload(number: int, *, delay: float | None) -> None:
    """Fill the store with messages, to be run at once or after a delay."""
    run_at = None if delay is None else time.time() + delay
    for start in range(0, number, 10_000):
        size = min(10_000, number - start)
        app.broker.enqueue(
            [Message(new_id(), "noop", b"[[0], {}]", run_at=run_at) for _ in range(size)]
        )
    while app.broker.maintain():
        pass


def cost(number: int, batch: int = 20) -> tuple[float, float]:
    """Return the CPU µs of a `delay()`, and of claiming and settling one message. As many
    are enqueued as are settled, so that the store keeps its depth."""
    for _ in range(batch):
        enqueue(0)
    start = time.process_time()
    for _ in range(number):
        enqueue(0)
    enqueued = time.process_time() - start

    queues, tasks = ["default"], {"noop"}
    worker = app.broker.register("bench", queues, 1, {})
    leases = app.broker.claim(worker, queues, batch, tasks)
    start = time.process_time()
    for _ in range(0, number, batch):
        settled = [(lease, Succeeded(b"0")) for lease in leases]
        leases = app.broker.step(
            worker, settlements=settled, queues=queues, limit=batch, tasks=tasks
        ).leases
        assert len(leases) == batch, leases
    claimed = time.process_time() - start
    app.broker.step(worker, settlements=[(lease, Succeeded(b"0")) for lease in leases])
    app.broker.unregister(worker)
    app.broker.maintain()
    return enqueued / number * 1e6, claimed / number * 1e6
