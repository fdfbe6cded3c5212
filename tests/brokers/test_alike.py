"""Messages that differ in id and body alone: stored as `Alike`, they are what they would be
one by one."""

from __future__ import annotations

from typing import Any

import pytest
from world import FakeClock, enlist, make

from liteq.brokers.base import Broker
from liteq.exceptions import AlreadyEnqueued
from liteq.ids import new_ids
from liteq.limits import Limit, write
from liteq.message import Alike, Message

NUMBER = 60  # more than a statement writes, and not a multiple of that


def alike(number: int = NUMBER, **fields: Any) -> Alike:
    bodies = [b"[[%d], {}]" % each for each in range(number)]
    return Alike(make(**fields), new_ids(number), bodies)


def test_they_are_messages_with_all_that_the_first_one_has() -> None:
    first = make(priority=3, headers={"a": 1})

    messages = Alike(first, ["x", "y", "z"], [b"1", b"2", b"3"])

    assert list(messages) == [
        first._replace(id="x", body=b"1"),
        first._replace(id="y", body=b"2"),
        first._replace(id="z", body=b"3"),
    ]
    assert messages[1] == first._replace(id="y", body=b"2")
    assert list(messages[1:]) == list(messages)[1:]
    assert messages.pack() == [one.pack() for one in messages]
    assert {type(one) for one in messages} == {Message}


@pytest.mark.parametrize(
    "fields",
    [{}, {"priority": 7, "headers": {"a": [1]}, "time_limit": 5.0}, {"result_expires": None}],
    ids=["plain", "special", "kept"],
)
def test_they_are_claimed_in_their_order(broker: Broker, fields: dict[str, Any]) -> None:
    messages = alike(**fields)

    assert broker.enqueue(messages) == {}

    leases = broker.claim(enlist(broker), ["default"], 2 * NUMBER)
    assert [lease.message for lease in leases] == list(messages)


def test_they_come_due_together(broker: Broker, clock: FakeClock) -> None:
    messages = alike(run_at=clock.now() + 60)
    broker.enqueue(messages)
    worker = enlist(broker)

    assert broker.counts() == {"default": {"scheduled": NUMBER}}
    clock.advance(60)
    leases = broker.claim(worker, ["default"], 2 * NUMBER)
    assert sorted(lease.id for lease in leases) == sorted(messages.ids)


def test_they_wait_under_their_limits(broker: Broker) -> None:
    broker.declare_limits({"shop.charge": (Limit("few", most=3),)})
    messages = alike(limits=write([("few", "")]))
    broker.enqueue(messages)

    leases = broker.claim(enlist(broker), ["default"], NUMBER)

    assert [lease.id for lease in leases] == messages.ids[:3]


def test_of_unique_ones_the_first_stands_for_all(broker: Broker) -> None:
    messages = alike(unique_key="only")

    stands = broker.enqueue(messages)

    assert stands == dict.fromkeys(messages.ids[1:], messages.ids[0])
    assert broker.counts() == {"default": {"queued": 1}}


@pytest.mark.parametrize("there", [1, NUMBER])
def test_enqueued_again_they_are_left_as_they_are(broker: Broker, there: int) -> None:
    messages = alike()
    broker.enqueue(messages[:there])

    broker.enqueue(messages)
    broker.enqueue(messages)

    assert broker.counts() == {"default": {"queued": NUMBER}}
    leases = broker.claim(enlist(broker), ["default"], 2 * NUMBER)
    assert [lease.message for lease in leases] == list(messages)


def test_other_work_under_one_of_their_ids_is_refused_with_all(broker: Broker) -> None:
    messages = alike()
    broker.enqueue([messages[40]._replace(body=b"other")])

    with pytest.raises(AlreadyEnqueued, match=messages.ids[40]):
        broker.enqueue(messages)

    assert broker.counts() == {"default": {"queued": 1}}
