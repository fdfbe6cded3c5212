"""A store that is full: what a task costs the server does not grow with what waits.

Counted in the server's own CPU time, which other load on the machine hardly moves. Under
`LITEQ_STORM=1` with a million messages that wait and a million that are delayed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final

import pytest
import redis
from redis_server import RedisServer
from world import enlist, make

from liteq.brokers.redis import RedisBroker
from liteq.ids import new_ids
from liteq.message import Message
from liteq.outcome import Succeeded

pytestmark = [
    pytest.mark.redis,
    pytest.mark.timeout(1_800),
    pytest.mark.untraced,
]

STORM: Final = bool(os.environ.get("LITEQ_STORM"))
DEPTH: Final = 1_000_000 if STORM else 10_000
SAMPLE: Final = 2_000 if STORM else 500  # messages of one measurement
ROUNDS: Final = 5
GROWTH: Final = 4  # times; a cost that grows with what waits grows tenfold, or more
BYTES: Final = 450  # of memory, for each small message that waits
BATCH: Final = 50


class Gauge:
    """What a server says of itself."""

    def __init__(self, server: RedisServer) -> None:
        self._client = redis.Redis(unix_socket_path=str(server.path))

    def cpu(self) -> float:
        """Return the seconds of CPU time that the server has used."""
        said: Any = self._client.info("cpu")
        return float(said["used_cpu_user"] + said["used_cpu_sys"])

    def memory(self) -> int:
        """Return the bytes that its data take."""
        said: Any = self._client.info("memory")
        return int(said["used_memory"])

    def close(self) -> None:
        self._client.close()


def fill(broker: RedisBroker, run_at: float | None) -> None:
    for at in range(0, DEPTH, 1_000):
        ids = new_ids(1_000)
        delay = None if run_at is None else run_at + at
        broker.enqueue([Message(id, "shop.charge", b"[[1],{}]", run_at=delay) for id in ids])


def costs(gauge: Gauge, *works: Callable[[], None]) -> list[float]:
    """Return the least CPU time of a few rounds of each work, in microseconds for one
    message: what else the machine does makes it more, and nothing makes it less. By turns:
    a machine that slows down does so for all of them."""
    spent: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for work, of_work in zip(works, spent, strict=True):
            before = gauge.cpu()
            work()
            of_work.append(gauge.cpu() - before)
    return [min(of_work) / SAMPLE * 1e6 for of_work in spent]


class Shop:
    """A store of which a sample is enqueued, or claimed and settled."""

    def __init__(self, server: RedisServer, database: int) -> None:
        self.broker = RedisBroker(f"unix://{server.path}?db={database}")
        self._worker = enlist(self.broker)
        # A drain takes one batch more than the sample.
        self.broker.enqueue([make() for _ in range(BATCH * ROUNDS)])

    def enqueue(self) -> None:
        for _ in range(SAMPLE):
            self.broker.enqueue([make()])

    def drain(self) -> None:
        done: list[Any] = []
        for _ in range(SAMPLE // BATCH + 1):
            step = self.broker.step(
                self._worker,
                settlements=done,
                queues=["default"],
                limit=BATCH,
                tasks={"shop.charge"},
            )
            done = [(lease, Succeeded(b"1")) for lease in step.leases]
            assert len(done) == BATCH
        self.broker.step(self._worker, settlements=done)


def test_cost_stays_flat_however_much_waits(server: RedisServer) -> None:
    gauge = Gauge(server)
    shallow, deep = Shop(server, 0), Shop(server, 1)
    empty = gauge.memory()
    fill(deep.broker, None)
    waiting = (gauge.memory() - empty) / DEPTH
    fill(deep.broker, time.time() + 86_400)
    delayed = (gauge.memory() - empty) / DEPTH - waiting

    works = shallow.enqueue, deep.enqueue, shallow.drain, deep.drain
    *enqueues, drained, drained_deep = costs(gauge, *works)
    counted = deep.broker.counts()["default"]

    report = (
        f"{DEPTH:,} waiting ({waiting:.0f} bytes each) and as many delayed ({delayed:.0f}); "
        f"enqueue {enqueues[0]:.1f} -> {enqueues[1]:.1f} us, "
        f"claim and settle {drained:.1f} -> {drained_deep:.1f} us of the server's time"
    )
    print(report)
    shallow.broker.close()
    deep.broker.close()
    gauge.close()
    assert counted["scheduled"] == DEPTH
    assert counted["queued"] >= DEPTH, report
    assert max(waiting, delayed) <= BYTES, report
    assert enqueues[1] <= enqueues[0] * GROWTH, report
    assert drained_deep <= drained * GROWTH, report
