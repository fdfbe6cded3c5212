"""liteq on SQLite, and what the measurements of depth do with its store."""

from __future__ import annotations

import os
import time

from benchmarks.effects import record
from liteq import Liteq
from liteq.ids import new_id
from liteq.message import Message
from liteq.outcome import Succeeded
from liteq.result import AsyncResult

app = Liteq("bench", broker=f"sqlite:///{os.environ['BENCH_FOLDER']}/store")
app.conf.broker_transport_options = {"durability": os.environ["BENCH_DURABILITY"]}
noop = app.task(name="noop")(record)
enqueue = noop.delay


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
