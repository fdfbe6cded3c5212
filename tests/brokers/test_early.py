"""Early notes: states that are stored for an id before its call is sent, on every broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from world import FakeClock, enlist, make

from liteq.brokers.base import Broker, Note
from liteq.brokers.searching import Search
from liteq.exceptions import AlreadyEnqueued, InvalidTaskError
from liteq.failure import describe
from liteq.message import GATHER, Alike, Edge, Message, Workflow
from liteq.outcome import Succeeded


def put(broker: Broker, message: Message) -> Message:
    broker.enqueue([message])
    return message


def claimed(broker: Broker, worker: int) -> list[str]:
    return [lease.id for lease in broker.claim(worker, ["default"], 100)]


def maintain(broker: Broker) -> None:
    while broker.maintain():
        pass


def early(broker: Broker, id: str = "early", *, expires: float | None = 60) -> None:
    """Store a state for an id whose call has not been sent yet."""
    broker.store(id, "SENT", b"1", expires=expires)


def test_an_early_note_is_known_for_one_and_is_no_work(broker: Broker) -> None:
    early(broker)

    assert broker.get(["early"])["early"].early
    assert broker.counts() == {}
    assert broker.queues() == []
    assert list(broker.browse("waiting")) == []
    assert list(broker.find(Search())) == []
    assert list(broker.find(Search(states=frozenset({"waiting"})))) == []


def test_an_early_note_is_deleted_when_its_time_is_over(
    broker: Broker, clock: FakeClock
) -> None:
    early(broker)
    clock.advance(40)
    broker.store("early", "STILL", b"2", expires=60)
    clock.advance(40)
    maintain(broker)
    assert broker.get(["early"])["early"].note == Note("STILL", b"2")

    clock.advance(21)
    maintain(broker)

    assert broker.get(["early"]) == {}


def test_an_early_note_may_be_kept_for_ever(broker: Broker, clock: FakeClock) -> None:
    early(broker)
    early(broker, expires=None)
    clock.advance(10 * 86_400)
    maintain(broker)

    assert broker.get(["early"])["early"].note == Note("SENT", b"1")


OTHERS = [make() for _ in range(80)]  # the same ones when a call is sent again
SENDINGS: dict[str, Callable[[Broker, Message], object]] = {
    "alone": lambda broker, message: broker.enqueue([message]),
    "from asyncio": lambda broker, message: asyncio.run(_aenqueue(broker, message)),
    "with an envelope": lambda broker, message: broker.enqueue([message._replace(shadow="a")]),
    "among others": lambda broker, message: broker.enqueue([OTHERS[0], message, OTHERS[1]]),
    "alike": lambda broker, message: broker.enqueue(_alike(message, OTHERS[:1])),
    "many alike": lambda broker, message: broker.enqueue(_alike(message, OTHERS)),
    "unique": lambda broker, message: broker.enqueue([message._replace(unique_key="a")]),
    "before another": lambda broker, message: broker.enqueue(
        [message, OTHERS[0]], [Edge(message.id, OTHERS[0].id, "success")]
    ),
    "in a workflow": lambda broker, message: broker.enqueue(
        [message], workflow=Workflow(message.id, "work")
    ),
}


def _alike(message: Message, others: list[Message]) -> Alike:
    ids = [message.id, *(one.id for one in others)]
    return Alike(message, ids, [message.body] * len(ids))


async def _aenqueue(broker: Broker, message: Message) -> None:
    await broker.aenqueue([message])


@pytest.mark.parametrize("how", SENDINGS)
def test_a_call_takes_the_place_of_an_early_note_and_runs_once(
    broker: Broker, clock: FakeClock, how: str
) -> None:
    early(broker)
    message = make(id="early")
    before = put(broker, make())
    worker = enlist(broker)

    SENDINGS[how](broker, message)
    SENDINGS[how](broker, message)  # the first reply was lost

    record = broker.get(["early"])["early"]
    assert (record.state, record.note, record.early) == ("queued", None, False)
    assert record.message.body == message.body
    clock.advance(100)
    maintain(broker)  # it is not deleted when the note would have been
    ids = claimed(broker, worker)
    assert ids.count("early") == 1
    assert ids[0] == before.id  # it comes when it was sent


def test_a_call_that_waits_takes_the_place_of_an_early_note(broker: Broker) -> None:
    early(broker)
    first, second = make(), make(id="early")
    broker.enqueue([first, second], [Edge(first.id, "early", "success")])
    worker = enlist(broker)

    assert not broker.get(["early"])["early"].early
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Succeeded(b"7"))

    (lease,) = broker.claim(worker, ["default"])
    assert (lease.id, [given.value for given in lease.inputs]) == ("early", [b"7"])


def test_a_gather_takes_the_place_of_an_early_note(broker: Broker) -> None:
    early(broker)
    part = make()
    gather = make(id="early", task=GATHER, body=b"fail")
    broker.enqueue([part, gather], [Edge(part.id, "early", "part")])
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Succeeded(b"7"))

    assert broker.get(["early"])["early"].state == "succeeded"


def test_a_call_may_be_sent_again_after_it_took_the_place_of_an_early_note(
    broker: Broker,
) -> None:
    early(broker)
    message = put(broker, make(id="early"))
    broker.enqueue([message])

    with pytest.raises(AlreadyEnqueued):
        broker.enqueue([make(id="early", task="shop.other")])
    assert claimed(broker, enlist(broker)) == ["early"]


def test_nothing_can_wait_for_an_early_note(broker: Broker) -> None:
    early(broker)
    later = make()

    with pytest.raises(InvalidTaskError, match="not in the store"):
        broker.enqueue([later], [Edge("early", later.id, "success")])


def test_an_early_note_cannot_be_revoked_retried_or_forgotten(broker: Broker) -> None:
    early(broker)

    assert broker.revoke(["early"]) == {"early": "unknown"}
    assert broker.redrive(["early"]) == []
    broker.forget(["early"])
    assert broker.purge() == 0

    assert broker.get(["early"])["early"].note == Note("SENT", b"1")
    put(broker, make(id="early"))
    assert claimed(broker, enlist(broker)) == ["early"]


def test_a_final_state_ends_an_early_note(broker: Broker, clock: FakeClock) -> None:
    early(broker)
    broker.store("early", "SUCCESS", b"2", expires=1000)

    clock.advance(100)
    maintain(broker)

    record = broker.get(["early"])["early"]
    assert (record.state, record.result, record.early) == ("succeeded", b"2", False)
    with pytest.raises(AlreadyEnqueued):
        broker.enqueue([make(id="early")])
    clock.advance(901)
    maintain(broker)
    assert broker.get(["early"]) == {}


def test_a_failure_from_outside_is_not_run_again(broker: Broker) -> None:
    """Its arguments are not known."""
    broker.store("outside", "FAILURE", describe(ValueError("no")), task="shop.charge")

    assert broker.redrive(["outside"]) == []

    assert broker.get(["outside"])["outside"].state == "failed"


def test_who_watches_an_early_note_hears_of_its_call(broker: Broker) -> None:
    early(broker)
    put(broker, make())
    mailbox = broker.mailbox()
    broker.watch(["early", "other"], mailbox)
    put(broker, make(id="early", priority=9))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.settle(worker, lease, Succeeded(b"1"))

    assert "early" in mailbox.wait(5)
    mailbox.close()
