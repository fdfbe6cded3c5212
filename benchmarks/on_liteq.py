"""liteq on either store, and what the measurements of depth do with it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import apsw

from benchmarks.effects import busy, record, slow
from liteq import Liteq
from liteq.ids import new_id
from liteq.message import Message
from liteq.outcome import Succeeded

if TYPE_CHECKING:
    from liteq.result import AsyncResult

folder = os.environ["BENCH_FOLDER"]


def _another() -> Liteq:
    """Return an app on the store, with connections of its own."""
    made = Liteq("bench", broker=os.environ.get("BENCH_REDIS") or f"sqlite:///{folder}/store")
    if "BENCH_REDIS" not in os.environ:
        made.conf.broker_transport_options = {"durability": os.environ["BENCH_DURABILITY"]}
    return made


app = _another()
noop = app.task(name="noop")(record)
sleeper = app.task(name="sleeper")(slow)
computer = app.task(name="computer")(busy)
enqueue, enqueue_sleep = noop.delay, sleeper.delay


def enqueue_many(numbers: range) -> None:
    noop.enqueue_many((number,) for number in numbers)


def waiting() -> int:
    return app.broker.counts()["default"]["queued"]


@app.task
def add_up(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def increment(number: int) -> int:
    return number + 1


def chord_(size: int) -> int:
    from liteq import chord  # late: the worker loads what workflows need when it has one

    return chord((noop.s(number) for number in range(size)), add_up.s()).delay().get(390)


def chain_(size: int) -> int:
    from liteq import chain  # late, as above

    return chain(increment.s(0), *(increment.s() for _ in range(size - 1))).delay().get(390)


def wait(handle: AsyncResult[int]) -> int:
    return handle.get(timeout=30)


def result(id: str) -> int:
    return wait(app.AsyncResult(id))


def preload(number: int, *, delay: float | None = None) -> None:
    """Fill the store with messages, to be run at once or after a delay."""
    run_at = None if delay is None else time.time() + delay
    for start in range(0, number, 10_000):
        size = min(10_000, number - start)
        app.broker.enqueue(
            [Message(new_id(), "noop", b"[[0], {}]", run_at=run_at) for _ in range(size)]
        )
    while app.broker.maintain():
        pass


def load(kind: str, number: int, milliseconds: int) -> None:
    """Enqueue many tasks of a kind, which the workers are to leave alone until `go()`."""
    app.broker.pause("default")
    if kind == "empty":
        noop.enqueue_many((each,) for each in range(number))
    else:
        task = {"sleeping": sleeper, "computing": computer}[kind]
        task.enqueue_many((each, milliseconds) for each in range(number))


def go() -> None:
    app.broker.resume("default")


def gather_workers(number: int) -> None:
    """Wait until so many workers are there."""
    while len(app.broker.workers()) < number:
        time.sleep(0.02)


def remember(number: int) -> None:
    """Fill the store with results, as rows like the one that a task has left.

    Running five million would take minutes; the rows are the same but for their ids, which
    sort before those of today.
    """
    enqueue(0)
    worker = app.broker.register("bench", ["default"], 1, {})
    [lease] = app.broker.claim(worker, ["default"])
    app.broker.settle(worker, lease, Succeeded(b"0"))
    app.broker.unregister(worker)
    app.broker.close()
    db = apsw.Connection(f"{folder}/store/store.db")
    names = [name for _, name, *_ in db.execute("PRAGMA table_info(message)")]
    same = [name for name in names if name not in ("seq", "id")]
    for start in range(0, number, 100_000):
        db.execute(
            f"INSERT INTO message(id, {', '.join(same)}) "
            "WITH RECURSIVE n(n) AS (VALUES(?1) UNION ALL SELECT n + 1 FROM n WHERE n < ?2) "
            f"SELECT printf('%032x', n), {', '.join(same)} FROM n, "
            "(SELECT * FROM message WHERE id = ?3)",
            (start, min(start + 100_000, number) - 1, lease.id),
        )
    db.close()
    while app.broker.maintain():
        pass


def cost(number: int, batch: int = 20, workers: int = 1) -> tuple[float, float, float, float]:
    """Return the CPU µs of a `delay()`, of claiming and settling one message in batches, the
    p99 of a step that does that for a batch, and what of the second Redis takes besides. As
    many are enqueued as are settled, so that the store keeps its depth. Several workers take
    turns, each with a connection of its own."""
    for _ in range(batch * workers):
        enqueue(0)
    start = time.process_time()
    for _ in range(number):
        enqueue(0)
    enqueued = time.process_time() - start

    queues, tasks = ["default"], {"noop"}
    brokers = [app.broker, *(_another().broker for _ in range(workers - 1))]
    ours = [broker.register("bench", queues, 1, {}) for broker in brokers]
    held = [
        broker.claim(worker, queues, batch, tasks)
        for broker, worker in zip(brokers, ours, strict=True)
    ]
    took = []
    served, start = _redis_seconds(), time.process_time()
    for turn in range(number // batch):
        at = turn % workers
        began = time.thread_time()
        settled = [(lease, Succeeded(b"0")) for lease in held[at]]
        step = brokers[at].step(
            ours[at], settlements=settled, queues=queues, limit=batch, tasks=tasks
        )
        took.append(time.thread_time() - began)
        held[at] = list(step.leases)
        assert len(held[at]) == batch, step
    claimed = time.process_time() - start
    served = _redis_seconds() - served
    for broker, worker, leases in zip(brokers, ours, held, strict=True):
        broker.step(worker, settlements=[(lease, Succeeded(b"0")) for lease in leases])
        broker.unregister(worker)
    app.broker.maintain()
    slowest = sorted(took)[int(len(took) * 0.99)]
    enqueued, claimed, served = (took / number * 1e6 for took in (enqueued, claimed, served))
    return enqueued, claimed, slowest * 1e6, served


def _redis_seconds() -> float:
    """Return the CPU time of the Redis server; 0 on SQLite."""
    if "BENCH_REDIS" not in os.environ:
        return 0.0
    from redis import Redis

    from benchmarks.processes import cpu_seconds  # late: no part of what a worker carries

    with Redis.from_url(os.environ["BENCH_REDIS"]) as link:
        return cpu_seconds(link.info("server")["process_id"])
