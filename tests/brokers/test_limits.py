"""Promise 12: limits hold. See `test_contract.py`, whose words these tests use."""

from __future__ import annotations

import json
from typing import Any

import pytest
from world import FakeClock, Store, enlist, make

from liteq import failure
from liteq.brokers.base import Broker, Lease
from liteq.brokers.values import Note
from liteq.limits import Limit, LimitInfo, write
from liteq.message import Edge, Message
from liteq.outcome import (
    Failed,
    Ignored,
    Lost,
    Outcome,
    Released,
    Replaced,
    Retried,
    Revoked,
    Succeeded,
)

ERROR = failure.describe(ValueError("no"))
OUTCOMES: dict[str, Any] = {
    "succeeded": lambda clock: Succeeded(b"42", 0.1),
    "retried": lambda clock: Retried(clock.now() + 60, ERROR),
    "failed": lambda clock: Failed(ERROR),
    "ignored": lambda clock: Ignored(),
    "revoked": lambda clock: Revoked("terminated"),
    "released": lambda clock: Released(),
    "lost": lambda clock: Lost("signal 9 (SIGKILL)"),
    "replaced": lambda clock: Replaced({"task": "shop.other", "body": b"[[1], {}]"}),
}


def under(*pairs: tuple[str, str | None], **fields: Any) -> Message:
    """Return a message under these limits."""
    return make(limits=write(pairs), **fields)


def put(broker: Broker, *messages: Message) -> Message:
    broker.enqueue(messages)
    return messages[0]


def state(broker: Broker, message: Message) -> str:
    return broker.get([message.id])[message.id].state


def claimed(broker: Broker, worker: int, limit: int = 100, *queues: str) -> list[str]:
    return [lease.id for lease in broker.claim(worker, queues or ("default",), limit)]


def declare(broker: Broker, *limits: Limit) -> None:
    broker.declare_limits({"shop.charge": limits})


def one_at_a_time(broker: Broker) -> Limit:
    limit = Limit("one", most=1)
    declare(broker, limit)
    return limit


# Rates


def test_12_starts_under_a_rate_are_evenly_spaced(broker: Broker, clock: FakeClock) -> None:
    declare(broker, Limit("api", interval=2.0))
    sent = [under(("api", "")) for _ in range(3)]
    broker.enqueue(sent)
    worker = enlist(broker)

    starts = []
    for _ in range(5):
        starts.append(claimed(broker, worker))
        clock.advance(1)

    assert starts == [[sent[0].id], [], [sent[1].id], [], [sent[2].id]]


@pytest.mark.parametrize("text", ["zz", "[[1]]", "7"])
@pytest.mark.parametrize("declared", [False, True])
def test_5_limits_that_nobody_can_read_are_no_end_of_the_worker_that_meets_them(
    broker: Broker, text: str, *, declared: bool
) -> None:
    if declared:
        declare(broker, Limit("api", interval=60.0, burst=1))
    put(broker, make(limits=text))
    plain = put(broker, make("shop.plain"))
    worker = enlist(broker)
    while leases := broker.claim(worker, ["default"], 5):
        for lease in leases:
            broker.settle(worker, lease, Succeeded(b"1"))
    assert state(broker, plain) == "succeeded"


def test_12_a_burst_may_be_saved_up_and_no_more(broker: Broker, clock: FakeClock) -> None:
    declare(broker, Limit("api", interval=2.0, burst=3))
    broker.enqueue([under(("api", "")) for _ in range(9)])
    worker = enlist(broker)

    counts = []
    for _ in range(4):
        counts.append(len(claimed(broker, worker)))
        clock.advance(2)
    clock.advance(100)
    counts.append(len(claimed(broker, worker)))

    assert counts == [3, 1, 1, 1, 3]


def test_12_a_rate_holds_over_all_workers(broker: Broker, clock: FakeClock) -> None:
    declare(broker, Limit("api", interval=1.0))
    broker.enqueue([under(("api", "")) for _ in range(4)])
    workers = [enlist(broker, name=f"w{n}") for n in range(4)]

    first = [claimed(broker, worker) for worker in workers]
    clock.advance(1)
    second = [claimed(broker, worker) for worker in reversed(workers)]

    assert [len(ids) for ids in first] == [1, 0, 0, 0]
    assert [len(ids) for ids in second] == [1, 0, 0, 0]


def test_12_a_rate_of_one_worker_is_not_shared(broker: Broker, clock: FakeClock) -> None:
    declare(broker, Limit("api", interval=1.0, per_worker=True))
    broker.enqueue([under(("api", "")) for _ in range(9)])
    plain = put(broker, make("shop.other"))
    first, second = enlist(broker, name="w1"), enlist(broker, name="w2")

    one = claimed(broker, first)
    two = claimed(broker, second)
    assert (len(one), len(two)) == (2, 1)
    assert plain.id in one
    assert claimed(broker, first) == []
    step = broker.step(first, queues=["default"], limit=1)
    assert step.next_due == clock.now() + 1
    clock.advance(1)
    assert len(claimed(broker, first)) == 1


def test_12_the_worker_is_told_when_to_look_again(broker: Broker, clock: FakeClock) -> None:
    declare(broker, Limit("api", interval=30.0))
    broker.enqueue([under(("api", "")), under(("api", ""))])
    worker = enlist(broker)

    step = broker.step(worker, queues=["default"], limit=5)

    assert len(step.leases) == 1
    assert step.next_due == clock.now() + 30
    clock.advance(29.9)
    assert claimed(broker, worker) == []
    clock.advance(0.1)
    assert len(claimed(broker, worker)) == 1


def test_12_no_one_is_told_to_look_for_a_queue_that_it_does_not_consume(
    broker: Broker,
) -> None:
    declare(broker, Limit("api", interval=30.0))
    broker.enqueue([under(("api", ""), queue="far") for _ in range(2)])
    broker.claim(enlist(broker, "far"), ["far"], 2)
    worker = enlist(broker, "near")

    assert broker.step(worker, queues=["near"], limit=1).next_due is None


def test_12_a_clock_that_is_set_back_stops_a_rate_for_one_interval_at_most(
    broker: Broker, clock: FakeClock
) -> None:
    declare(broker, Limit("api", interval=10.0))
    broker.enqueue([under(("api", "")) for _ in range(2)])
    worker = enlist(broker)
    assert len(claimed(broker, worker)) == 1

    clock.step(-3600)
    assert claimed(broker, worker) == []
    clock.step(3600)
    clock.advance(10)

    assert len(claimed(broker, worker)) == 1


# Concurrency


@pytest.mark.parametrize("kind", OUTCOMES)
def test_12_a_slot_is_free_in_the_step_in_which_the_lease_ends(
    broker: Broker, clock: FakeClock, kind: str
) -> None:
    one_at_a_time(broker)
    first, second = put(broker, under(("one", ""), priority=1)), put(broker, under(("one", "")))
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"], 5)
    assert lease.id == first.id
    assert state(broker, second) == "limited"
    if kind in ("released", "lost", "replaced"):
        broker.revoke([first.id])  # else it would be the first again

    outcome: Outcome = OUTCOMES[kind](clock)
    step = broker.step(worker, settlements=[(lease, outcome)], queues=["default"], limit=5)

    assert second.id in [lease.id for lease in step.leases]


def test_12_many_that_end_at_once_free_as_many_slots(broker: Broker) -> None:
    declare(broker, Limit("three", most=3))
    broker.enqueue([under(("three", "")) for _ in range(9)])
    worker = enlist(broker)

    leases = broker.claim(worker, ["default"], 10)
    assert len(leases) == 3
    ends = [(lease, Succeeded(b"1", 0.1)) for lease in leases]
    step = broker.step(worker, settlements=ends, queues=["default"], limit=10)

    assert len(step.leases) == 3


def test_12_a_stale_holder_frees_no_slot(broker: Broker, clock: FakeClock) -> None:
    one_at_a_time(broker)
    broker.enqueue([under(("one", "")) for _ in range(3)])
    slow, quick = enlist(broker, name="slow"), enlist(broker, name="quick")
    [stale] = broker.claim(slow, ["default"], 1)
    clock.advance(broker.lease_timeout + 1)
    broker.beat(quick)
    assert broker.reclaim(quick) == 1
    assert len(claimed(broker, quick)) == 1

    assert not broker.settle(slow, stale, Succeeded(b"1", 0.1))

    assert claimed(broker, quick) == []


def test_12_a_dead_worker_gives_its_slots_back(broker: Broker, clock: FakeClock) -> None:
    one_at_a_time(broker)
    [first, second] = [under(("one", "")) for _ in range(2)]
    broker.enqueue([first, second])
    dead, alive = enlist(broker, name="dead"), enlist(broker, name="alive")
    assert claimed(broker, dead) == [first.id]

    clock.advance(broker.lease_timeout + 1)
    broker.beat(alive)
    broker.reclaim(alive)

    assert claimed(broker, alive) == [first.id]
    assert claimed(broker, alive) == []


def test_12_a_worker_that_leaves_gives_its_slots_back(broker: Broker) -> None:
    one_at_a_time(broker)
    [first, _] = [under(("one", "")) for _ in range(2)]
    broker.enqueue([first, _])
    leaving, staying = enlist(broker, name="leaving"), enlist(broker, name="staying")
    assert claimed(broker, leaving) == [first.id]

    broker.unregister(leaving)

    assert claimed(broker, staying) == [first.id]


def test_12_what_is_ended_from_outside_gives_its_slot_back(broker: Broker) -> None:
    one_at_a_time(broker)
    first, second = under(("one", "")), under(("one", ""))
    broker.enqueue([first, second])
    worker = enlist(broker)
    assert claimed(broker, worker) == [first.id]

    broker.store(first.id, "SUCCESS", b"7")

    assert claimed(broker, worker) == [second.id]


def test_12_a_retry_waits_for_a_slot_anew(broker: Broker, clock: FakeClock) -> None:
    one_at_a_time(broker)
    first, second = under(("one", "")), under(("one", ""))
    broker.enqueue([first, second])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"], 5)
    retry = Retried(clock.now() + 5, ERROR)
    step = broker.step(worker, settlements=[(lease, retry)], queues=["default"], limit=5)
    [other] = step.leases
    assert other.id == second.id

    clock.advance(5)
    assert claimed(broker, worker) == []
    broker.settle(worker, other, Succeeded(b"1", 0.1))

    assert claimed(broker, worker) == [first.id]


# Keys, order and company


def test_12_keys_do_not_hold_each_other_up(broker: Broker) -> None:
    one_at_a_time(broker)
    ours = [under(("one", "ours")) for _ in range(50)]
    theirs = under(("one", "theirs"))
    plain = make()
    broker.enqueue([*ours, theirs, plain])
    broker.declare_limits({"shop.charge": ()})
    broker.override_limit("one", Limit("one", most=1))

    assert claimed(broker, enlist(broker), 10) == [ours[0].id, theirs.id, plain.id]


def test_12_keys_that_wait_for_one_bucket_take_turns(broker: Broker, clock: FakeClock) -> None:
    declare(broker, Limit("all", interval=1.0), Limit("each", most=9))
    old = [under(("all", ""), ("each", "old")) for _ in range(9)]
    new = [under(("all", ""), ("each", "new")) for _ in range(9)]
    broker.enqueue([*old, *new])
    worker = enlist(broker)
    names = {message.id: "old" for message in old} | {message.id: "new" for message in new}

    order = []
    for _ in range(8):
        order += [names[id] for id in claimed(broker, worker)]
        clock.advance(1)

    assert sorted(order[-6:]) == ["new"] * 3 + ["old"] * 3


def test_12_with_several_limits_none_is_charged_unless_all_have_room(
    broker: Broker, clock: FakeClock
) -> None:
    declare(broker, Limit("all", interval=10.0), Limit("each", most=1))
    first, second = under(("each", "a")), under(("each", "a"), ("all", ""))
    other = under(("each", "b"), ("all", ""))
    broker.declare_limits({"shop.charge": ()})
    for limit in (Limit("all", interval=10.0), Limit("each", most=1)):
        broker.override_limit(limit.name, limit)
    broker.enqueue([first, second])
    worker = enlist(broker)
    assert claimed(broker, worker) == [first.id]
    assert claimed(broker, worker) == []  # no slot: the rate is not charged for it

    put(broker, other)

    assert claimed(broker, worker) == [other.id]


def test_12_what_leaves_room_in_one_limit_for_want_of_another_leaves_it_to_the_next(
    broker: Broker, clock: FakeClock
) -> None:
    for limit in (Limit("all", interval=10.0), Limit("each", most=1)):
        broker.override_limit(limit.name, limit)
    holder = under(("each", "a"), ("all", ""))
    blocked = under(("each", "a"), ("all", ""))
    other = under(("each", "b"), ("all", ""))
    broker.enqueue([holder, blocked, other])
    worker = enlist(broker)
    assert claimed(broker, worker) == [holder.id]
    clock.advance(10)

    assert claimed(broker, worker) == [other.id]


def test_12_and_7_the_limited_are_claimed_in_their_place_among_the_others(
    broker: Broker,
) -> None:
    broker.override_limit("many", Limit("many", most=50))
    sent = [
        under(("many", "a"), priority=1),
        make(priority=1),
        under(("many", "b"), priority=5),
        make(priority=5),
        under(("many", "a"), priority=5),
        make(priority=9),
        under(("many", "b"), priority=1),
    ]
    broker.enqueue(sent)
    worker = enlist(broker)
    order = sorted(range(len(sent)), key=lambda n: (-sent[n].priority, n))

    found: list[str] = []
    while ids := claimed(broker, worker, 2):
        found += ids

    assert found == [sent[n].id for n in order]


def test_12_and_7_a_higher_priority_goes_before_those_that_wait_already(
    broker: Broker,
) -> None:
    one_at_a_time(broker)
    low = [under(("one", "")) for _ in range(3)]
    broker.enqueue(low)
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"], 5)
    high = put(broker, under(("one", ""), priority=9))

    step = broker.step(
        worker, settlements=[(lease, Succeeded(b"1", 0.1))], queues=["default"], limit=5
    )

    assert [lease.id for lease in step.leases] == [high.id]


def test_12_a_message_without_a_key_is_not_under_that_limit(broker: Broker) -> None:
    one_at_a_time(broker)
    broker.enqueue([under(("one", None)) for _ in range(3)])

    assert len(claimed(broker, enlist(broker))) == 3


# Everything else that may happen to what waits


def test_12_what_waits_can_be_seen_counted_and_purged(broker: Broker) -> None:
    one_at_a_time(broker)
    sent = [under(("one", "")) for _ in range(4)]
    broker.enqueue(sent)
    worker = enlist(broker)
    assert claimed(broker, worker) == [sent[0].id]

    assert broker.counts() == {"default": {"limited": 3, "running": 1}}
    assert [record.id for record in broker.browse("limited")] == [m.id for m in sent[1:]]
    assert broker.browse("limited", queue="other") == []
    assert broker.purge(["default"]) == 3
    assert broker.counts() == {"default": {"running": 1}}
    later = put(broker, under(("one", "")))
    broker.unregister(worker)
    assert claimed(broker, enlist(broker), 1) == [sent[0].id]
    assert state(broker, later) == "limited"


def test_12_the_first_of_a_line_may_be_revoked(broker: Broker) -> None:
    one_at_a_time(broker)
    sent = [under(("one", "")) for _ in range(4)]
    broker.enqueue(sent)
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"], 1)

    assert broker.revoke([sent[1].id]) == {sent[1].id: "revoked"}
    assert broker.revoke([sent[2].id]) == {sent[2].id: "revoked"}
    broker.settle(worker, lease, Succeeded(b"1", 0.1))

    assert claimed(broker, worker) == [sent[3].id]


def test_12_a_line_that_empties_leaves_its_turn_to_the_next(
    broker: Broker, clock: FakeClock
) -> None:
    for limit in (Limit("all", interval=10.0), Limit("each", most=9)):
        broker.override_limit(limit.name, limit)
    first = under(("all", ""))
    gone = under(("all", ""), ("each", "gone"))
    next = under(("all", ""), ("each", "next"))
    broker.enqueue([first, gone, next])
    worker = enlist(broker)
    assert claimed(broker, worker) == [first.id]
    broker.revoke([gone.id])

    clock.advance(10)

    assert claimed(broker, worker) == [next.id]


def test_12_what_waits_expires(broker: Broker, clock: FakeClock) -> None:
    one_at_a_time(broker)
    first, late = under(("one", "")), under(("one", ""), expires_at=clock.now() + 5)
    last = under(("one", ""))
    broker.enqueue([first, late, last])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"], 5)
    clock.advance(6)

    broker.maintain()
    assert state(broker, late) == "revoked"
    broker.settle(worker, lease, Succeeded(b"1", 0.1))

    assert claimed(broker, worker) == [last.id]


def test_12_what_is_too_late_at_its_turn_takes_no_room(
    broker: Broker, clock: FakeClock
) -> None:
    one_at_a_time(broker)
    late, last = under(("one", ""), expires_at=clock.now() + 5), under(("one", ""))
    broker.enqueue([late, last])
    clock.advance(6)

    assert claimed(broker, enlist(broker)) == [last.id]
    assert state(broker, late) == "revoked"


def test_12_an_unknown_task_takes_no_room(broker: Broker) -> None:
    one_at_a_time(broker)
    strange, known = under(("one", ""), task="shop.strange"), under(("one", ""))
    broker.enqueue([strange, known])
    worker = enlist(broker)

    step = broker.step(worker, queues=["default"], limit=5, tasks=frozenset({"shop.charge"}))
    assert [lease.id for lease in step.leases] == [known.id]
    assert state(broker, strange) == "parked"
    assert claimed(broker, worker) == []  # who knows it finds no slot
    assert state(broker, strange) == "limited"
    broker.settle(worker, step.leases[0], Succeeded(b"1", 0.1))

    assert claimed(broker, worker) == [strange.id]


def test_12_a_delayed_message_is_limited_when_it_is_due(
    broker: Broker, clock: FakeClock
) -> None:
    one_at_a_time(broker)
    later, now = under(("one", ""), run_at=clock.now() + 5), under(("one", ""))
    broker.enqueue([later, now])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"], 5)
    assert state(broker, later) == "scheduled"

    clock.advance(5)
    assert claimed(broker, worker) == []
    assert state(broker, later) == "limited"
    broker.settle(worker, lease, Succeeded(b"1", 0.1))

    assert claimed(broker, worker) == [later.id]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_7_what_is_older_goes_before_a_line_though_many_find_no_room_before_it(
    broker: Broker, clock: FakeClock, limit: int
) -> None:
    one_at_a_time(broker)
    due = [under(("one", ""), run_at=clock.now() + 5) for _ in range(5)]
    plain = [make("shop.plain") for _ in range(2)]
    lined = under(("other", ""), task="shop.mail")
    broker.enqueue([*due, *plain, lined])
    worker = enlist(broker)
    clock.advance(5)

    started = [id for _ in range(4) for id in claimed(broker, worker, limit)]

    assert started == [message.id for message in (due[0], *plain, lined)]


def test_12_the_next_of_a_chain_is_limited_when_it_can_start(broker: Broker) -> None:
    one_at_a_time(broker)
    holder, first, then = under(("one", "")), make("shop.other"), under(("one", ""))
    broker.enqueue([holder])
    broker.enqueue([first, then], [Edge(first.id, then.id, "success")])
    worker = enlist(broker)
    leases = {lease.id: lease for lease in broker.claim(worker, ["default"], 5)}

    ends = [(leases[first.id], Succeeded(b"1", 0.1))]
    step = broker.step(worker, settlements=ends, queues=["default"], limit=5)
    assert step.leases == ()
    ends = [(leases[holder.id], Succeeded(b"1", 0.1))]
    step = broker.step(worker, settlements=ends, queues=["default"], limit=5)

    assert [lease.id for lease in step.leases] == [then.id]
    assert [one.value for one in step.leases[0].inputs] == [b"1"]


def test_12_what_others_note_of_a_message_stands_though_a_claim_passes_it_over(
    broker: Broker,
) -> None:
    broker.declare_limits({"shop.mail": (Limit("many", most=3),)})
    first, unknown = make(priority=5), make("shop.unknown", priority=5)
    limited, last = under(("many", None), task="shop.mail"), make()
    broker.enqueue([first, limited, last, unknown])
    broker.store(last.id, "PROGRESS", b"7")
    worker = enlist(broker)

    leases = broker.claim(worker, ["default"], 2, {"shop.charge", "shop.mail"})

    assert [lease.id for lease in leases] == [first.id, limited.id]
    assert broker.get([last.id])[last.id].note == Note("PROGRESS", b"7")
    assert last.id in claimed(broker, worker)


def test_12_a_redriven_message_waits_for_its_turn(broker: Broker) -> None:
    one_at_a_time(broker)
    first, second = under(("one", "")), under(("one", ""))
    broker.enqueue([first, second])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"], 1)
    broker.settle(worker, lease, Failed(ERROR))
    [lease] = broker.claim(worker, ["default"], 1)
    assert lease.id == second.id

    assert broker.redrive([first.id]) == [first.id]
    assert claimed(broker, worker) == []
    broker.settle(worker, lease, Succeeded(b"1", 0.1))

    assert claimed(broker, worker) == [first.id]


def test_12_what_made_room_is_told_to_a_worker_that_sleeps(store: Store) -> None:
    broker = store.open()
    one_at_a_time(broker)
    broker.enqueue([under(("one", ""), queue=queue) for queue in ("a", "b")])
    holder, waiting = enlist(broker, "a", name="holder"), enlist(broker, "b", name="waiting")
    mailbox = broker.mailbox(waiting)
    [lease] = broker.claim(holder, ["a"], 1)
    assert broker.claim(waiting, ["b"], 1) == ()
    mailbox.receive()

    broker.step(holder, settlements=[(lease, Succeeded(b"1", 0.1))], queues=["a"], limit=1)

    assert "" in mailbox.wait(5)
    assert len(broker.claim(waiting, ["b"], 1)) == 1
    mailbox.close()
    broker.close()


# What is declared


def test_12_a_task_is_under_its_limits_whoever_sent_the_message(broker: Broker) -> None:
    declare(broker, Limit("one", most=1))
    sent = [make(), make()]
    broker.enqueue(sent)
    worker = enlist(broker)

    [lease] = broker.claim(worker, ["default"], 5)

    assert lease.id == sent[0].id
    assert json.loads(lease.message.limits or "") == [["one", ""]]
    assert state(broker, sent[1]) == "limited"


def test_12_a_changed_rate_holds_for_what_waits_already(
    broker: Broker, clock: FakeClock
) -> None:
    declare(broker, Limit("api", interval=3600.0))
    broker.enqueue([under(("api", "")) for _ in range(3)])
    worker = enlist(broker)
    assert len(claimed(broker, worker)) == 1

    declare(broker, Limit("api", interval=5.0))
    clock.advance(5)

    assert len(claimed(broker, worker)) == 1


def test_12_a_limit_that_is_declared_no_more_holds_no_more(broker: Broker) -> None:
    one_at_a_time(broker)
    broker.enqueue([under(("one", "")) for _ in range(3)])
    worker = enlist(broker)
    assert len(claimed(broker, worker)) == 1

    broker.declare_limits({"shop.charge": ()})

    assert len(claimed(broker, worker)) == 2
    assert broker.limits() == []


def test_12_an_override_wins_at_once_and_lasts(store: Store, clock: FakeClock) -> None:
    broker = store.open()
    declared = Limit("api", interval=3600.0)
    declare(broker, declared)
    broker.enqueue([under(("api", "")) for _ in range(9)])
    worker = enlist(broker)
    assert len(claimed(broker, worker)) == 1

    slow = Limit("api", interval=10.0)
    broker.override_limit("api", slow)
    declare(broker, declared)  # a worker starts
    clock.advance(10)
    assert len(claimed(broker, worker)) == 1
    assert broker.limits() == [LimitInfo("api", declared, slow, ("shop.charge",))]
    broker.override_limit("api", Limit("api"))
    assert len(claimed(broker, worker, 3)) == 3
    broker.override_limit("api", None)
    assert claimed(broker, worker) == []
    clock.advance(10)
    assert len(claimed(broker, worker)) == 1
    clock.advance(10)
    assert claimed(broker, worker) == []
    assert broker.limits() == [LimitInfo("api", declared, None, ("shop.charge",))]
    broker.close()


def test_12_an_override_can_limit_a_task_that_declares_nothing(broker: Broker) -> None:
    broker.declare_limits({"shop.charge": ()})
    broker.enqueue([make(), make()])
    broker.override_limit("new", Limit("new", interval=9.0), task="shop.charge")
    worker = enlist(broker)

    assert len(claimed(broker, worker)) == 1
    broker.declare_limits({"shop.charge": ()})
    assert claimed(broker, worker) == []
    assert [info.tasks for info in broker.limits()] == [("shop.charge",)]


def test_12_tasks_may_share_a_limit(broker: Broker) -> None:
    limit = Limit("gpu", most=1)
    broker.declare_limits({"a": [limit], "b": [limit]})
    first, second = under(("gpu", ""), task="a"), under(("gpu", ""), task="b")
    broker.enqueue([first, second])
    worker = enlist(broker)

    assert claimed(broker, worker) == [first.id]
    broker.declare_limits({"a": []})
    assert [info.tasks for info in broker.limits()] == [("b",)]
    assert claimed(broker, worker) == []


def test_12_a_worker_may_ignore_rates(broker: Broker) -> None:
    declare(broker, Limit("api", interval=60.0), Limit("two", most=2))
    broker.enqueue([under(("api", ""), ("two", "")) for _ in range(4)])
    worker = enlist(broker)
    assert len(claimed(broker, worker)) == 1

    step = broker.step(worker, queues=["default"], limit=5, ignore_rates=True)

    assert len(step.leases) == 1


# Cost


def test_12_a_long_line_is_not_walked_by_those_behind_it(broker: Broker) -> None:
    one_at_a_time(broker)
    for _ in range(10):
        broker.enqueue([under(("one", "")) for _ in range(300)])
    plain = put(broker, make("shop.other"))
    worker = enlist(broker)

    leases: tuple[Lease, ...] = broker.claim(worker, ["default"], 2)

    assert [lease.id for lease in leases][1:] == [plain.id]


def test_12_what_was_counted_for_keys_that_are_idle_is_forgotten(
    broker: Broker, clock: FakeClock
) -> None:
    declare(broker, Limit("api", interval=1.0), Limit("one", most=1))
    for n in range(20):
        broker.enqueue([under(("api", f"user{n}"), ("one", f"user{n}"))])
    worker = enlist(broker)
    leases = broker.claim(worker, ["default"], 50)
    assert len(leases) == 20
    broker.step(worker, settlements=[(lease, Succeeded(b"1", 0.1)) for lease in leases])
    clock.advance(100)

    while broker.maintain():
        pass

    again = [under(("api", f"user{n}"), ("one", f"user{n}")) for n in range(20)]
    broker.enqueue(again)
    assert len(claimed(broker, worker)) == 20


def test_12_and_7_one_that_finds_its_place_in_a_line_is_not_overtaken_meanwhile(
    broker: Broker, clock: FakeClock
) -> None:
    declare(broker, Limit("one", most=1))
    late = [make("shop.other", expires_at=clock.now() + 1) for _ in range(3)]
    first, *rest = make(), *(make("shop.other") for _ in range(4))
    broker.enqueue([*late, first, *rest])
    clock.advance(2)

    assert claimed(broker, enlist(broker), 3) == [first.id, rest[0].id, rest[1].id]


def test_12_and_7_one_that_comes_back_goes_before_who_was_let_go_on_for_it(
    broker: Broker,
) -> None:
    for limit in (Limit("one", most=1), Limit("other", most=9)):
        broker.override_limit(limit.name, limit)
    first = under(("one", ""), priority=5)
    behind = under(("one", ""))
    high = under(("one", ""), ("other", ""), priority=5)
    broker.enqueue([first, behind, high])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"], 1)
    assert claimed(broker, worker) == []

    broker.settle(worker, lease, Released())

    assert claimed(broker, worker) == [first.id]
