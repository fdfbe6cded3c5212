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
GROWTH: Final = 1.2 if STORM else 1.5  # a few milliseconds are measured less exactly
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


def cost(gauge: Gauge, work: Callable[[], None]) -> float:
    """Return the least CPU time of a few rounds, in microseconds for one message: what
    else the machine does makes it more, and nothing makes it less."""
    spent = []
    for _ in range(ROUNDS):
        before = gauge.cpu()
        work()
        spent.append(gauge.cpu() - before)
    return min(spent) / SAMPLE * 1e6


def test_cost_stays_flat_however_much_waits(server: RedisServer) -> None:
    broker = RedisBroker(server.url)
    gauge = Gauge(server)
    worker = enlist(broker)

    def enqueue() -> None:
        for _ in range(SAMPLE):
            broker.enqueue([make()])

    def drain() -> None:
        done: list[Any] = []
        for _ in range(SAMPLE // BATCH + 1):
            step = broker.step(
                worker, settlements=done, queues=["default"], limit=BATCH, tasks={"shop.charge"}
            )
            done = [(lease, Succeeded(b"1")) for lease in step.leases]
            assert len(done) == BATCH
        broker.step(worker, settlements=done)

    enqueue()
    drain_first = SAMPLE * (ROUNDS + 1)
    broker.enqueue([make() for _ in range(drain_first)])  # so that `drain` finds enough
    shallow = cost(gauge, enqueue), cost(gauge, drain)
    empty = gauge.memory()
    fill(broker, None)
    waiting = (gauge.memory() - empty) / DEPTH
    fill(broker, time.time() + 86_400)
    delayed = (gauge.memory() - empty) / DEPTH - waiting
    deep = cost(gauge, enqueue), cost(gauge, drain)
    if any(one > before * GROWTH for one, before in zip(deep, shallow, strict=True)):
        # The machine may have become busy since: once more.
        deep = min(deep[0], cost(gauge, enqueue)), min(deep[1], cost(gauge, drain))
    counted = broker.counts()["default"]

    report = (
        f"{DEPTH:,} waiting ({waiting:.0f} bytes each) and as many delayed ({delayed:.0f}); "
        f"enqueue {shallow[0]:.1f} -> {deep[0]:.1f} us, "
        f"claim and settle {shallow[1]:.1f} -> {deep[1]:.1f} us of the server's time"
    )
    print(report)
    broker.close()
    gauge.close()
    assert counted["scheduled"] == DEPTH
    assert counted["queued"] >= DEPTH, report
    assert max(waiting, delayed) <= BYTES, report
    assert deep[0] <= shallow[0] * GROWTH, report
    assert deep[1] <= shallow[1] * GROWTH, report
