"""What a store on Redis forgets: the names of queues that nothing is in any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis_server
from world import FakeClock, Store, enlist, make

from liteq import failure
from liteq.brokers.base import Broker, Lease
from liteq.brokers.redis import RedisBroker
from liteq.outcome import Failed, Lost, Released, Succeeded

pytestmark = pytest.mark.redis


@pytest.fixture
def broker(tmp_path: Path, clock: FakeClock) -> Iterator[RedisBroker]:
    redis_server.require()
    broker = Store("redis", tmp_path, clock).open()
    assert isinstance(broker, RedisBroker)
    yield broker
    broker.close()


def keep_up(broker: Broker) -> None:
    while broker.maintain():
        pass


def names(broker: RedisBroker) -> set[str]:
    found = broker._link.ask("SMEMBERS", f"{broker._prefix}queues")
    return {name.decode() for name in found}


def test_names_of_queues_that_nothing_is_in_are_forgotten(broker: RedisBroker) -> None:
    queues = [f"job-{number}" for number in range(1_000)]
    broker.enqueue([make(queue=queue) for queue in queues])
    worker = enlist(broker, *queues)
    running, *others = broker.claim(worker, queues, 999)
    for lease in others:
        broker.settle(worker, lease, Succeeded(b"1"))
    (waiting,) = broker.browse("queued")

    keep_up(broker)

    assert names(broker) == {waiting.message.queue}
    assert broker.counts() == {
        running.message.queue: {"running": 1},
        waiting.message.queue: {"queued": 1},
    }


def release(broker: Broker, worker: int, lease: Lease) -> None:
    broker.settle(worker, lease, Released())


def lose(broker: Broker, worker: int, lease: Lease) -> None:
    broker.settle(worker, lease, Lost("gone"))


def stop(broker: Broker, worker: int, lease: Lease) -> None:
    broker.unregister(worker)


def bring_back(broker: Broker, worker: int, lease: Lease) -> None:
    broker.settle(worker, lease, Failed(failure.describe(ValueError("no"))))
    keep_up(broker)
    assert broker.redrive([lease.id]) == [lease.id]


@pytest.mark.parametrize("end", [release, lose, stop, bring_back])
def test_what_comes_back_into_a_queue_that_was_forgotten_is_counted(
    broker: RedisBroker, end: Callable[[Broker, int, Lease], None]
) -> None:
    broker.enqueue([make(queue="mail")])
    worker = enlist(broker, "mail")
    (lease,) = broker.claim(worker, ["mail"])
    keep_up(broker)
    assert names(broker) == set()

    end(broker, worker, lease)

    assert broker.counts() == {"mail": {"queued": 1}}
    assert [info.name for info in broker.queues()] == ["mail"]
