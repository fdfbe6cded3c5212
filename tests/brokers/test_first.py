"""`Broker.claim_first`: one look takes what a step would have taken first, or leaves it to one.

A store may answer None to all of it, as Redis does, so each test says what the step then does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from world import START, FakeClock, Store, enlist, make

from liteq.brokers import sqlite
from liteq.brokers.base import Broker, Lease
from liteq.limits import Limit, write
from liteq.message import Edge, Message
from liteq.outcome import Released, Succeeded


def looks(broker: Broker) -> bool:
    """Tell whether this store has a way to claim without a step."""
    return type(broker).claim_first is not Broker.claim_first


def put(broker: Broker, *messages: Message) -> Message:
    """Enqueue messages and return the first."""
    broker.enqueue(messages)
    return messages[0]


def claim_as_a_worker(broker: Broker, worker: int, *queues: str) -> Lease:
    """Claim the first in line, as a worker does that is woken."""
    if (first := broker.claim_first(worker, queues)) is not None:
        return first[0]
    assert not looks(broker)
    (lease,) = broker.claim(worker, queues)
    return lease


# What is taken


@pytest.mark.parametrize("queues", [("a",), ("a", "b"), ("a", "b", "c")], ids=len)
def test_7_one_look_takes_the_highest_priority_then_the_oldest(
    broker: Broker, queues: tuple[str, ...]
) -> None:
    sent = [
        put(broker, make(queue=queue, priority=priority))
        for priority in (0, 5, 9, 5, 0)
        for queue in ("a", "b", "c")
    ]
    worker = enlist(broker, *queues)
    wanted = [message for message in sent if message.queue in queues]
    wanted.sort(key=lambda message: -message.priority)

    got = [claim_as_a_worker(broker, worker, *queues) for _ in wanted]

    assert [lease.id for lease in got] == [message.id for message in wanted]
    assert broker.claim_first(worker, queues) is None


def test_one_look_tells_whether_there_is_more_in_line(broker: Broker) -> None:
    worker = enlist(broker, "a", "b")
    broker.enqueue([make(queue="a"), make(queue="b"), make(queue="b"), make(queue="c")])

    told = []
    while first := broker.claim_first(worker, ["a", "b"]):
        told.append(first[1])

    assert told == ([True, True, False] if looks(broker) else [])


def test_what_one_look_takes_is_leased_as_by_a_step(broker: Broker) -> None:
    message = put(broker, make(headers={"a": [1, "é"]}, expires_at=START + 1))
    worker, other = enlist(broker), enlist(broker, name="other")

    lease = claim_as_a_worker(broker, worker, "default")

    assert (lease.message, lease.delivery, lease.inputs) == (message, 1, ())
    record = broker.get([message.id])[message.id]
    assert (record.state, record.started_at, record.deliveries) == ("running", START, 1)
    assert broker.claim(other, ["default"]) == ()
    assert broker.claim_first(other, ["default"]) is None
    assert broker.settle(worker, lease, Succeeded(b"1"))
    assert not broker.settle(worker, lease, Succeeded(b"2"))


def test_2_what_one_look_took_is_delivered_again_when_its_worker_dies(
    broker: Broker, clock: FakeClock
) -> None:
    put(broker, make())
    first = claim_as_a_worker(broker, enlist(broker), "default")
    clock.advance(broker.lease_timeout + 1)
    broker.reclaim()

    second = claim_as_a_worker(broker, enlist(broker), "default")

    assert (second.id, second.delivery) == (first.id, 2)
    assert second.token != first.token


def test_one_look_leaves_what_is_scheduled_alone(broker: Broker, clock: FakeClock) -> None:
    later, now = make(run_at=clock.now() + 1, priority=9), make()
    broker.enqueue([later, now])

    lease = claim_as_a_worker(broker, worker := enlist(broker), "default")

    assert lease.id == now.id
    assert broker.step(worker, queues=["default"], limit=1).next_due == clock.now() + 1


def test_one_look_of_no_queues_finds_nothing(broker: Broker) -> None:
    put(broker, make())

    assert broker.claim_first(enlist(broker), ()) is None


# What is left to a step


def paused(broker: Broker, _clock: FakeClock, _worker: int, plain: Message) -> list[Message]:
    other = make(queue="side")
    put(broker, plain, other)
    broker.pause("default")
    return [other]


def parked(broker: Broker, _clock: FakeClock, _worker: int, plain: Message) -> list[Message]:
    unknown = put(broker, make("shop.new", priority=1))
    broker.claim(enlist(broker, name="old"), ["default"], tasks={"shop.charge"})
    put(broker, plain)
    return [unknown, plain]


def limit_to_one(broker: Broker, worker: int, **fields: Any) -> Message:
    """Have a limit that this broker knows of, and return a message that names it."""
    broker.override_limit("one", Limit("one", most=1))
    broker.step(worker, queues=QUEUES)
    return make(limits=write([("one", "key")]), **fields)


def in_line(broker: Broker, _clock: FakeClock, worker: int, plain: Message) -> list[Message]:
    limited = limit_to_one(broker, worker, priority=1)
    put(broker, limited, limited._replace(id="another"), plain)
    return [limited, plain]


def given_back(broker: Broker, _clock: FakeClock, worker: int, plain: Message) -> list[Message]:
    limited = put(broker, limit_to_one(broker, worker))
    (lease,) = broker.claim(worker, QUEUES)
    broker.settle(worker, lease, Released())  # it has left its line, and is in none yet
    return [limited]


def declared(broker: Broker, _clock: FakeClock, _worker: int, plain: Message) -> list[Message]:
    put(broker, plain, plain._replace(id="another"))
    broker.declare_limits({"shop.charge": [Limit("one", most=1)]})
    return [plain]


def due(broker: Broker, clock: FakeClock, _worker: int, plain: Message) -> list[Message]:
    delayed = make(queue="side", run_at=clock.now() + 1, priority=1)
    put(broker, delayed, plain)
    clock.advance(1)
    return [delayed, plain]


def expired(broker: Broker, clock: FakeClock, _worker: int, plain: Message) -> list[Message]:
    put(broker, make(expires_at=clock.now() + 1, priority=1), plain)
    clock.advance(1)
    return [plain]


def fed(broker: Broker, _clock: FakeClock, worker: int, plain: Message) -> list[Message]:
    then = make()
    broker.enqueue([plain, then], [Edge(plain.id, then.id, "success")])
    (lease,) = broker.claim(worker, QUEUES)
    broker.settle(worker, lease, Succeeded(b"1"))
    return [then]


def early(broker: Broker, _clock: FakeClock, _worker: int, plain: Message) -> list[Message]:
    return [put(broker, plain._replace(acks_late=False))]


def orphaned(broker: Broker, clock: FakeClock, _worker: int, plain: Message) -> list[Message]:
    put(broker, plain)
    clock.advance(broker.lease_timeout + 1)
    broker.reclaim()
    return []


class Left(NamedTuple):
    """What is in the store, to be begun by a plain message or instead of one; it returns what
    a step then claims. `condition` keeps the look from it, and `always` is true."""

    prepare: Callable[[Broker, FakeClock, int, Message], list[Message]]
    condition: str
    always: str = "true"


LIMITS = "(SELECT value FROM meta WHERE name = 'limits') IS"
LEFT: dict[str, Left] = {
    "paused": Left(paused, "NOT EXISTS(SELECT 1 FROM paused)"),
    "parked": Left(parked, "NOT EXISTS(SELECT 1 FROM message WHERE state = 4)"),
    "in a line": Left(in_line, "NOT EXISTS(SELECT 1 FROM line)"),
    "given back": Left(given_back, "limits IS NULL"),
    "declared since": Left(declared, f"{LIMITS} {{revision}}", "{revision} IS {revision}"),
    "due": Left(due, "run_at <= ?3", "run_at < 0"),
    "expired": Left(expired, "(expires_at IS NULL OR expires_at > ?3)"),
    "fed by another": Left(fed, "inputs = 0"),
    "acknowledged early": Left(early, "acks_late "),
    "for a dead worker": Left(
        orphaned, "EXISTS(SELECT 1 FROM worker WHERE id = ?2 AND stopped_at IS NULL)"
    ),
}
QUEUES = ("default", "side")

what_is_left = pytest.mark.parametrize("what", LEFT)


@what_is_left
def test_one_look_leaves_to_a_step_what_only_a_step_does(
    broker: Broker, clock: FakeClock, what: str
) -> None:
    worker = enlist(broker, *QUEUES)
    wanted = LEFT[what].prepare(broker, clock, worker, make())

    assert broker.claim_first(worker, QUEUES) is None

    step = broker.step(worker, queues=QUEUES, limit=20)
    assert [lease.id for lease in step.leases] == [message.id for message in wanted]
    assert {lease.delivery for lease in step.leases} <= {1}
    assert step.alive == (what != "for a dead worker")


@what_is_left
def test_nothing_else_would_keep_one_look_from_it(
    tmp_path: Any, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    condition, always = LEFT[what][1:]
    assert condition in sqlite._CLAIM_FIRST, "mend this test"
    less = sqlite._CLAIM_FIRST.replace(condition, f"{always} ")
    monkeypatch.setattr(sqlite, "_CLAIM_FIRST", less)
    sqlite._claim_first.cache_clear()
    broker = Store("memory", tmp_path, clock).open()
    worker = enlist(broker, *QUEUES)
    LEFT[what].prepare(broker, clock, worker, make())

    taken = broker.claim_first(worker, QUEUES)

    sqlite._claim_first.cache_clear()
    broker.close()
    assert taken is not None


def test_one_look_is_none_where_tasks_have_limits(broker: Broker) -> None:
    broker.declare_limits({"shop.charge": [Limit("one", most=1)]})
    worker = enlist(broker)
    broker.step(worker, queues=["default"])  # now the broker knows of them
    sent = put(broker, make("shop.charge"), make("shop.charge"), make("shop.other"))

    assert broker.claim_first(worker, ["default"]) is None

    tasks = [lease.task for lease in broker.claim(worker, ["default"], 3)]
    assert tasks == ["shop.charge", "shop.other"]
    assert broker.get([sent.id])[sent.id].state == "running"


def test_5_what_one_look_does_not_know_is_parked_by_the_step(broker: Broker) -> None:
    unknown, known = make("shop.new", priority=1), make()
    broker.enqueue([unknown, known])
    worker, other = enlist(broker), enlist(broker, name="other")

    first = broker.claim_first(worker, ["default"], {"shop.charge"})
    step = broker.step(worker, queues=["default"], limit=2, tasks={"shop.charge"})

    assert first is None
    assert [lease.id for lease in step.leases] == [known.id]
    assert [(lease.id, why) for lease, why in step.aside] == [(unknown.id, "parked")]
    (lease,) = broker.claim(other, ["default"], tasks={"shop.new"})
    assert (lease.id, lease.delivery) == (unknown.id, 1)


def test_others_are_woken_for_what_one_look_did_not_know(broker: Broker) -> None:
    worker, other = enlist(broker), enlist(broker, name="other")
    broker.enqueue([make("shop.new")])
    mailbox = broker.mailbox(other)
    broker.claim_first(worker, ["default"], {"shop.charge"})
    looked = broker.claim(other, ["default"], tasks={"shop.new"})  # while it is held

    broker.step(worker, queues=["default"], limit=1, tasks={"shop.charge"})

    if not looked:
        assert mailbox.wait(5)
        looked = broker.claim(other, ["default"], tasks={"shop.new"})
    assert len(looked) == 1
    mailbox.close()
