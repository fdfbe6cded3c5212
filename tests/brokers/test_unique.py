"""Unique messages, on every store: who holds a key, for how long, and what others get.

Promise 13: at most one message that has not ended holds a key.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from world import FakeClock, Store, enlist, make

from liteq import failure
from liteq.brokers.base import Broker, Record, Schedule
from liteq.exceptions import AlreadyEnqueued, DuplicateTask
from liteq.limits import Limit, write
from liteq.message import Edge, Message, Workflow
from liteq.outcome import (
    Failed,
    Graph,
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
KEY = "5f2d"


def unique(body: bytes = b"[[], {}]", **fields: Any) -> Message:
    return make(body=body, **{"unique_key": KEY, **fields})


def claimed(broker: Broker, worker: int, limit: int = 10) -> list[str]:
    return [lease.id for lease in broker.claim(worker, ["default"], limit)]


def record(broker: Broker, message: Message) -> Record:
    return broker.get([message.id])[message.id]


def run(broker: Broker, outcome: Outcome, worker: int | None = None) -> str:
    """Claim the next message and settle it; return its id."""
    worker = enlist(broker) if worker is None else worker
    [lease] = broker.claim(worker, ["default"])
    assert broker.settle(worker, lease, outcome)
    return lease.id


# Who holds a key


@pytest.mark.parametrize("on_conflict", [None, "return", "skip"])
def test_a_second_message_with_the_key_is_not_stored(
    broker: Broker, on_conflict: str | None
) -> None:
    first, second = unique(), unique(b"[[2], {}]", on_conflict=on_conflict)
    assert broker.enqueue([first]) == {}

    assert broker.enqueue([second]) == {second.id: first.id}

    assert broker.get([second.id]) == {}
    assert broker.counts() == {"default": {"queued": 1}}
    assert broker.holder(KEY) == first.id


def test_messages_without_a_key_or_with_another_are_stored(broker: Broker) -> None:
    messages = [unique(), make(), make(), unique(unique_key="other")]

    for message in messages:
        assert broker.enqueue([message]) == {}

    assert broker.counts() == {"default": {"queued": 4}}
    assert broker.holder("nobody's") is None


def test_a_message_may_refuse_to_be_the_second(broker: Broker) -> None:
    first = unique()
    broker.enqueue([first])

    with pytest.raises(DuplicateTask, match=f"the same unique key.*{first.id}") as caught:
        broker.enqueue([make(), unique(on_conflict="raise")])

    assert caught.value.id == first.id
    assert broker.counts() == {"default": {"queued": 1}}


ALIVE: dict[str, Callable[[Broker, FakeClock, Message], object]] = {
    "queued": lambda b, c, m: None,
    "scheduled": lambda b, c, m: None,
    "running": lambda b, c, m: b.claim(enlist(b), ["default"]),
    "retrying": lambda b, c, m: run(b, Retried(c.now() + 60, ERROR)),
    "released": lambda b, c, m: run(b, Released()),
    "lost": lambda b, c, m: run(b, Lost("signal 9")),
    "replaced": lambda b, c, m: run(b, Replaced({"task": "shop.other"})),
    "parked": lambda b, c, m: b.claim(enlist(b), ["default"], 1, {"x"}),
}


@pytest.mark.parametrize("state", ALIVE)
def test_a_key_is_held_as_long_as_its_message_is_alive(
    broker: Broker, clock: FakeClock, state: str
) -> None:
    first = unique(run_at=clock.now() + 3600 if state == "scheduled" else None)
    broker.enqueue([first])
    ALIVE[state](broker, clock, first)
    clock.advance(1000)  # no clock takes it away

    second = unique()
    assert broker.enqueue([second]) == {second.id: first.id}


def test_a_reclaim_keeps_the_key(broker: Broker, clock: FakeClock) -> None:
    first, second = unique(), unique()
    broker.enqueue([first])
    broker.claim(enlist(broker), ["default"])
    clock.advance(broker.lease_timeout + 1)

    assert broker.reclaim() == 1

    assert broker.enqueue([second]) == {second.id: first.id}
    assert claimed(broker, enlist(broker)) == [first.id]


ENDS: dict[str, Callable[[Broker, FakeClock, Message], object]] = {
    "succeeded": lambda b, c, m: run(b, Succeeded(b"1")),
    "failed": lambda b, c, m: run(b, Failed(ERROR)),
    "dead": lambda b, c, m: run(b, Failed(ERROR, dead="no use")),
    "ignored": lambda b, c, m: run(b, Ignored()),
    "terminated": lambda b, c, m: run(b, Revoked("terminated")),
    "revoked": lambda b, c, m: b.revoke([m.id]),
    "purged": lambda b, c, m: b.purge(),
    "expired": lambda b, c, m: (c.advance(100), b.maintain()),
    "expired unseen": lambda b, c, m: c.advance(100),
    "expired in a claim": lambda b, c, m: (c.advance(100), claimed(b, enlist(b))),
    "lost too often": lambda b, c, m: [run(b, Lost("signal 9")) for _ in range(3)],
    "lost, acks early": lambda b, c, m: run(b, Lost("signal 9")),
    "given up": lambda b, c, m: (
        b.claim(enlist(b), ["default"], 1, {"x"}),
        c.advance(100_000),
        b.maintain(),
    ),
    "stored from outside": lambda b, c, m: b.store(m.id, "SUCCESS", b"1"),
    "forgotten": lambda b, c, m: (run(b, Succeeded(b"1")), b.forget([m.id])),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_key_is_free_with_whatever_ends_its_message(
    broker: Broker, clock: FakeClock, end: str
) -> None:
    first, second = unique(), unique()
    if "expired" in end:
        first = first._replace(expires_at=clock.now() + 50)
    if "early" in end:
        first = first._replace(acks_late=False)
    broker.enqueue([first])

    ENDS[end](broker, clock, first)

    assert broker.holder(KEY) is None
    assert broker.enqueue([second]) == {}
    assert claimed(broker, enlist(broker)) == [second.id]


UNSTARTED = ("queued", "scheduled", "retrying", "released", "lost", "parked", "limited")


@pytest.mark.parametrize("on_conflict", ["return", "skip", "raise", "replace"])
def test_who_wants_the_key_of_one_that_has_expired_ends_it(
    broker: Broker, clock: FakeClock, on_conflict: str
) -> None:
    first = unique(expires_at=clock.now() + 50, unique_for=600)
    second = unique(on_conflict=on_conflict)
    broker.enqueue([first])
    clock.advance(50)

    assert broker.enqueue([second]) == {}

    assert (record(broker, first).state, record(broker, first).revoked) == (
        "revoked",
        "expired",
    )
    assert broker.holder(KEY) == second.id
    assert broker.counts() == {"default": {"queued": 1}}
    assert claimed(broker, enlist(broker)) == [second.id]


@pytest.mark.parametrize("state", UNSTARTED)
def test_one_that_expires_gives_its_key_free_wherever_it_waits(
    broker: Broker, clock: FakeClock, state: str
) -> None:
    first, second = unique(expires_at=clock.now() + 50), unique()
    if state == "scheduled":
        first = first._replace(run_at=clock.now() + 3600)
    if state == "limited":
        first = first._replace(limits=write([("one", "")]))
    broker.enqueue([first])
    ALIVE.get(state, ALIVE["queued"])(broker, clock, first)
    clock.advance(100)

    assert broker.enqueue([second]) == {}

    assert record(broker, first).revoked == "expired"
    assert claimed(broker, enlist(broker)) == [second.id]
    assert broker.maintain() is False


def test_one_that_runs_keeps_its_key_beyond_its_expiry(
    broker: Broker, clock: FakeClock
) -> None:
    first, second = unique(expires_at=clock.now() + 50), unique()
    broker.enqueue([first])
    run_by = enlist(broker)
    [lease] = broker.claim(run_by, ["default"])
    clock.advance(100)

    assert broker.enqueue([second]) == {second.id: first.id}
    assert broker.settle(run_by, lease, Succeeded(b"1"))


def test_what_waits_for_one_that_has_expired_hears_when_its_key_is_taken(
    broker: Broker, clock: FakeClock
) -> None:
    first, then, handler = unique(expires_at=clock.now() + 50), make(), make()
    broker.enqueue(
        [first, then, handler],
        [Edge(first.id, then.id, "success"), Edge(first.id, handler.id, "failure")],
    )
    clock.advance(100)
    with closing(broker.mailbox()) as mailbox:
        broker.watch([first.id], mailbox)

        broker.enqueue([unique()])

        assert mailbox.wait(10) == {first.id}
    assert record(broker, then).revoked == "upstream"
    assert record(broker, handler).state == "queued"


def test_one_that_has_expired_is_left_as_it_is_by_what_is_refused(
    broker: Broker, clock: FakeClock
) -> None:
    first, other = unique(expires_at=clock.now() + 50), unique(unique_key="other")
    broker.enqueue([first, other])
    clock.advance(100)

    with pytest.raises(DuplicateTask):
        broker.enqueue([unique(), unique(unique_key="other", on_conflict="raise")])

    assert record(broker, first).state == "queued"


def test_a_graph_that_is_refused_ends_nothing_that_has_expired(
    broker: Broker, clock: FakeClock
) -> None:
    first, handler, other = unique(expires_at=clock.now() + 50), make(), make()
    done, parent = make(queue="side"), make(queue="side")
    broker.enqueue([first, handler], [Edge(first.id, handler.id, "failure")])
    broker.enqueue([done, parent])
    worker = enlist(broker)
    past, lease = broker.claim(worker, ["side"], 2)
    broker.settle(worker, past, Succeeded(b"1"))
    clock.advance(100)

    edge = (done.id, other.id, "success", 0)  # which is over
    added = Graph((unique().pack(), other.pack()), (edge,))
    assert broker.settle(worker, lease, Succeeded(b"1", added=added))

    assert record(broker, parent).state == "failed"
    assert record(broker, first).state == "queued"
    assert record(broker, handler).state == "waiting"


def test_who_takes_the_place_of_one_that_has_expired_waits_for_what_that_waited_for(
    broker: Broker, clock: FakeClock
) -> None:
    first = unique(b"[[1], {}]")
    late = unique(b"[[2], {}]", on_conflict="replace", expires_at=clock.now() + 50)
    last = unique(b"[[3], {}]", on_conflict="replace")
    broker.enqueue([first])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"])
    assert broker.enqueue([late]) == {}
    clock.advance(100)

    assert broker.enqueue([last]) == {}

    assert record(broker, late).revoked == "expired"
    assert claimed(broker, worker) == []
    broker.settle(worker, lease, Succeeded(b"1"))
    assert claimed(broker, worker) == [last.id]


def test_a_workflow_takes_the_key_of_one_that_has_expired(
    broker: Broker, clock: FakeClock
) -> None:
    first = unique(expires_at=clock.now() + 50)
    broker.enqueue([first])
    clock.advance(100)
    one, two = make(), unique()

    broker.enqueue([one, two], [Edge(one.id, two.id, "success")], Workflow("w", "flow"))

    assert record(broker, first).revoked == "expired"
    assert broker.holder(KEY) == two.id


def test_a_call_made_again_is_no_duplicate_of_itself(broker: Broker) -> None:
    first = unique(on_conflict="raise")
    broker.enqueue([first])

    assert broker.enqueue([first]) == {}
    assert broker.enqueue([first, make()]) == {}
    run(broker, Succeeded(b"1"))
    assert broker.enqueue([first]) == {}  # nor when it is over

    assert broker.counts() == {"default": {"queued": 1}}
    with pytest.raises(AlreadyEnqueued):
        broker.enqueue([first._replace(body=b"[[3], {}]")])


def test_duplicates_in_one_call_are_treated_one_after_the_other(broker: Broker) -> None:
    messages = [unique(b"[[%d], {}]" % n, on_conflict="return") for n in range(3)]
    other = make()

    stands = broker.enqueue([messages[0], other, *messages[1:]])

    assert stands == {messages[1].id: messages[0].id, messages[2].id: messages[0].id}
    assert claimed(broker, enlist(broker)) == [messages[0].id, other.id]


def test_of_duplicates_in_one_call_the_last_replaces(broker: Broker) -> None:
    messages = [unique(b"[[%d], {}]" % n, on_conflict="replace") for n in range(3)]

    stands = broker.enqueue(messages)

    assert set(stands.values()) == {messages[0].id}
    assert record(broker, messages[0]).message.body == b"[[2], {}]"


def test_processes_that_race_for_a_key_get_one_message(store: Store) -> None:
    if not store.shared:
        pytest.skip("a store in memory is one connection")
    brokers = [store.open() for _ in range(4)]
    answers: list[dict[str, str]] = []
    ready = threading.Barrier(4)

    def race(broker: Broker) -> None:
        for _ in range(25):
            ready.wait()
            message = unique()
            stands = dict(broker.enqueue([message])) or {message.id: message.id}
            answers.append(stands)
            ready.wait()
            if broker is brokers[0]:
                broker.purge()
            ready.wait()

    threads = [threading.Thread(target=race, args=(broker,)) for broker in brokers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for at in range(0, len(answers), 4):
        stood_for = {holder for one in answers[at : at + 4] for holder in one.values()}
        assert len(stood_for) == 1
    for broker in brokers:
        broker.close()


# For some time after the end


def test_a_key_is_kept_for_some_time_after_the_end(broker: Broker, clock: FakeClock) -> None:
    first, second = unique(unique_for=600), unique(unique_for=600)
    broker.enqueue([first])
    run(broker, Succeeded(b"1"))
    clock.advance(599)

    assert broker.holder(KEY) == first.id
    assert broker.enqueue([second]) == {second.id: first.id}
    clock.advance(2)

    assert broker.holder(KEY) is None
    assert broker.enqueue([second]) == {}


def test_the_time_is_no_limit_to_a_message_that_is_alive(
    broker: Broker, clock: FakeClock
) -> None:
    first, second = unique(unique_for=5), unique()
    broker.enqueue([first])
    broker.claim(enlist(broker), ["default"])
    clock.advance(50)

    assert broker.enqueue([second]) == {second.id: first.id}


def test_the_time_outlasts_a_result_that_has_expired(broker: Broker, clock: FakeClock) -> None:
    first = unique(unique_for=600, result_expires=60)
    broker.enqueue([first])
    run(broker, Succeeded(b"1"))
    clock.advance(100)
    while broker.maintain():
        pass
    assert broker.get([first.id]) == {}

    assert broker.holder(KEY) == first.id
    clock.advance(600)
    while broker.maintain():
        pass
    assert broker.holder(KEY) is None


@pytest.mark.parametrize("end", ["failed", "dead", "revoked", "purged", "forgotten"])
def test_the_time_ends_with_a_call_that_did_nothing(
    broker: Broker, clock: FakeClock, end: str
) -> None:
    first = unique(unique_for=600)
    broker.enqueue([first])
    ENDS[end](broker, clock, first)

    assert broker.holder(KEY) is None
    assert broker.enqueue([unique()]) == {}


# Replacing what waits


def test_what_waits_takes_the_new_arguments_and_keeps_its_place(
    broker: Broker, clock: FakeClock
) -> None:
    first, other = unique(b"[[1], {}]", on_conflict="replace"), make()
    second = unique(b"[[2], {}]", on_conflict="replace", time_limit=9.0, headers={"a": 1})
    broker.enqueue([first])
    broker.enqueue([other])

    assert broker.enqueue([second]) == {second.id: first.id}

    message = record(broker, first).message
    assert (message.body, message.time_limit, message.headers) == (b"[[2], {}]", 9.0, {"a": 1})
    assert claimed(broker, enlist(broker)) == [first.id, other.id]


def test_a_new_time_is_pushed_back_up_to_the_longest_wait(
    broker: Broker, clock: FakeClock
) -> None:
    began = clock.now()
    ids = set()
    for _ in range(5):
        message = unique(on_conflict="replace", run_at=clock.now() + 10, max_wait=25.0)
        ids |= {*broker.enqueue([message]).values()} or {message.id}
        clock.advance(6)

    [id] = ids
    assert broker.get([id])[id].message.run_at == began + 25
    worker = enlist(broker)
    clock.advance(began + 24 - clock.now())
    assert claimed(broker, worker) == []
    clock.advance(1)
    assert claimed(broker, worker) == [id]


def test_what_is_scheduled_may_be_replaced_to_run_now(broker: Broker, clock: FakeClock) -> None:
    first = unique(run_at=clock.now() + 3600)
    broker.enqueue([first])

    broker.enqueue([unique(on_conflict="replace")])

    assert claimed(broker, enlist(broker)) == [first.id]


def test_a_retry_that_waits_is_replaced_and_begins_anew(
    broker: Broker, clock: FakeClock
) -> None:
    first = unique(b"[[1], {}]")
    broker.enqueue([first])
    run(broker, Retried(clock.now() + 60, ERROR))

    broker.enqueue([unique(b"[[2], {}]", on_conflict="replace")])

    found = record(broker, first)
    assert (found.state, found.message.retries) == ("queued", 0)
    assert claimed(broker, enlist(broker)) == [first.id]


def test_what_is_parked_is_replaced(broker: Broker) -> None:
    first = unique()
    broker.enqueue([first])
    broker.claim(enlist(broker), ["default"], 1, {"x"})

    broker.enqueue([unique(b"[[2], {}]", on_conflict="replace")])

    assert record(broker, first).state == "queued"
    assert claimed(broker, enlist(broker)) == [first.id]
    assert broker.counts() == {"default": {"running": 1}}


def test_a_replaced_message_can_change_its_queue(broker: Broker) -> None:
    first = unique()
    broker.enqueue([first])

    broker.enqueue([unique(on_conflict="replace", queue="mail", priority=5)])

    assert broker.counts() == {"mail": {"queued": 1}}


def test_one_that_waits_for_a_limit_is_replaced_and_waits_again(broker: Broker) -> None:
    broker.declare_limits({"shop.charge": (Limit("one", most=1),)})
    limits = write([("one", "")])
    first, second = (unique(b"[[%d], {}]" % n, limits=limits) for n in (1, 2))
    running = make(limits=limits, priority=9)
    broker.enqueue([running])
    broker.enqueue([first])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"], 5)
    assert broker.claim(worker, ["default"], 5) == ()

    broker.enqueue([second._replace(on_conflict="replace")])

    assert broker.claim(worker, ["default"], 5) == ()
    broker.settle(worker, lease, Succeeded(b"1"))
    [after] = broker.claim(worker, ["default"], 5)
    assert (after.id, after.message.body) == (first.id, b"[[2], {}]")


def test_the_first_call_made_again_is_recognised_after_it_was_replaced(broker: Broker) -> None:
    first = unique(b"[[1], {}]", on_conflict="replace")
    broker.enqueue([first])
    broker.enqueue([unique(b"[[2], {}]", on_conflict="replace")])

    assert broker.enqueue([first]) == {}

    assert record(broker, first).message.body == b"[[2], {}]"


@pytest.mark.parametrize("together", [False, True])
def test_a_call_made_again_is_recognised_whatever_replaced_it(
    broker: Broker, together: bool
) -> None:
    calls = [unique(b"[[1], {}]"), unique(b"[[2], {}]", on_conflict="replace")]
    first = calls[0]
    for batch in [calls] if together else [[one] for one in calls]:
        broker.enqueue(batch)

    assert broker.enqueue(calls[:1]) == {}
    assert broker.enqueue(calls) == {calls[1].id: first.id}  # its answer had been lost

    assert record(broker, first).message.body == b"[[2], {}]"


def test_the_last_of_many_calls_made_again_is_still_the_last(broker: Broker) -> None:
    first = unique()
    more = [unique(b"[[%d], {}]" % n, on_conflict="replace") for n in (2, 3)]
    broker.enqueue([first])
    broker.enqueue(more)

    assert broker.enqueue(more) == dict.fromkeys((one.id for one in more), first.id)

    assert record(broker, first).message.body == more[-1].body


def test_only_what_was_replaced_is_another_than_it_was(broker: Broker) -> None:
    first = unique(on_conflict="replace")
    broker.enqueue([first])

    with pytest.raises(AlreadyEnqueued):
        broker.enqueue([first._replace(body=b"[[2], {}]")])


# Replacing what runs


def test_what_replaces_a_running_one_starts_when_that_has_ended(broker: Broker) -> None:
    first, second = unique(b"[[1], {}]"), unique(b"[[2], {}]", on_conflict="replace")
    third = unique(b"[[3], {}]", on_conflict="replace")
    broker.enqueue([first])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"])

    assert broker.enqueue([second]) == {}
    assert broker.enqueue([third]) == {third.id: second.id}

    assert broker.holder(KEY) == second.id
    assert claimed(broker, worker) == []
    assert broker.settle(worker, lease, Succeeded(b"1"))
    [after] = broker.claim(worker, ["default"])
    assert (after.id, after.message.body, after.inputs) == (second.id, b"[[3], {}]", ())


@pytest.mark.parametrize(
    "outcome",
    [
        Succeeded(None),
        Failed(ERROR),
        Failed(ERROR, dead="no use"),
        Ignored(),
        Revoked("terminated"),
    ],
    ids=["succeeded", "failed", "dead", "ignored", "revoked"],
)
def test_it_starts_however_the_running_one_ended(broker: Broker, outcome: Outcome) -> None:
    broker.enqueue([unique()])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"])
    second = unique(on_conflict="replace")
    broker.enqueue([second])

    broker.settle(worker, lease, outcome)

    assert claimed(broker, worker) == [second.id]


def test_it_waits_for_the_retries_of_the_running_one(broker: Broker, clock: FakeClock) -> None:
    first, second = unique(), unique(on_conflict="replace")
    broker.enqueue([first])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"])
    broker.enqueue([second])
    broker.settle(worker, lease, Retried(clock.now(), ERROR))

    [again] = broker.claim(worker, ["default"], 5)
    assert again.id == first.id
    broker.settle(worker, again, Lost("signal 9"))
    [again] = broker.claim(worker, ["default"], 5)
    assert again.id == first.id
    broker.settle(worker, again, Succeeded(b"1"))

    assert claimed(broker, worker) == [second.id]


def test_it_waits_for_its_own_time_as_well(broker: Broker, clock: FakeClock) -> None:
    broker.enqueue([unique()])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"])
    second = unique(on_conflict="replace", run_at=clock.now() + 60)
    broker.enqueue([second])
    broker.settle(worker, lease, Succeeded(b"1"))

    assert claimed(broker, worker) == []
    clock.advance(61)
    assert claimed(broker, worker) == [second.id]


@pytest.mark.parametrize("together", [False, True])
def test_the_last_to_replace_a_running_one_counts_from_its_end(
    broker: Broker, clock: FakeClock, together: bool
) -> None:
    broker.enqueue([unique()])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"])
    second = unique(on_conflict="replace", countdown=900.0)
    third = unique(b"[[3], {}]", on_conflict="replace", countdown=60.0, expires_in=90.0)
    for batch in [[second, third]] if together else [[second], [third]]:
        broker.enqueue(batch)

    assert claimed(broker, worker) == []
    clock.advance(10)
    broker.settle(worker, lease, Succeeded(b"1"))

    found = record(broker, second).message
    assert (found.body, found.run_at, found.expires_at) == (
        third.body,
        clock.now() + 60,
        clock.now() + 90,
    )


def test_what_waits_for_a_running_one_can_be_revoked(broker: Broker) -> None:
    broker.enqueue([unique()])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"])
    second = unique(on_conflict="replace")
    broker.enqueue([second])

    assert broker.revoke([second.id]) == {second.id: "revoked"}
    broker.settle(worker, lease, Succeeded(b"1"))

    assert claimed(broker, worker) == []
    assert broker.holder(KEY) is None


ENDS_WAITING: dict[str, Callable[[Broker, FakeClock, Message], object]] = {
    "revoked": lambda b, c, m: b.revoke([m.id]),
    "forgotten": lambda b, c, m: (b.revoke([m.id]), b.forget([m.id])),
    "expired": lambda b, c, m: (c.advance(50), b.maintain()),
    "expired unseen": lambda b, c, m: c.advance(50),
}


@pytest.mark.parametrize("end", ENDS_WAITING)
def test_the_key_is_the_running_one_s_again_if_the_next_ends_before(
    broker: Broker, clock: FakeClock, end: str
) -> None:
    first, third = unique(), unique()
    second = unique(on_conflict="replace", expires_at=clock.now() + 50)
    failed = unique()
    broker.enqueue([failed])
    run(broker, Failed(ERROR))
    broker.enqueue([first])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"])
    broker.enqueue([second])

    ENDS_WAITING[end](broker, clock, second)

    assert broker.holder(KEY) == first.id
    assert broker.redrive([failed.id]) == []
    assert broker.enqueue([third]) == {third.id: first.id}
    assert [one.revoked for one in broker.get([second.id]).values()] in (
        [],
        ["revoked"],
        ["expired"],
    )
    last = unique(on_conflict="replace")
    assert broker.enqueue([last]) == {}
    assert claimed(broker, worker) == []
    broker.settle(worker, lease, Succeeded(b"1"))
    assert claimed(broker, worker) == [last.id]


def test_one_that_is_retried_is_replaced_if_the_next_has_ended(
    broker: Broker, clock: FakeClock
) -> None:
    first, second = unique(), unique(on_conflict="replace")
    third = unique(b"[[3], {}]", on_conflict="replace")
    broker.enqueue([first])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"])
    broker.enqueue([second])
    broker.settle(worker, lease, Retried(clock.now() + 60, ERROR))
    broker.revoke([second.id])

    assert broker.enqueue([third]) == {third.id: first.id}

    assert broker.holder(KEY) == first.id
    [lease] = broker.claim(worker, ["default"])
    assert (lease.id, lease.message.body) == (first.id, third.body)
    assert broker.settle(worker, lease, Succeeded(b"1"))
    assert broker.holder(KEY) is None


@pytest.mark.parametrize("by", ["enqueue", "redrive"])
def test_who_wants_a_key_that_was_handed_on_ends_both_that_have_expired(
    broker: Broker, clock: FakeClock, by: str
) -> None:
    soon = clock.now() + 50
    failed, last = unique(), unique()
    broker.enqueue([failed])
    run(broker, Failed(ERROR))
    first, second = unique(expires_at=soon), unique(on_conflict="replace", expires_at=soon)
    broker.enqueue([first])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"])
    broker.enqueue([second])
    broker.settle(worker, lease, Retried(clock.now() + 600, ERROR))
    if by == "redrive":
        broker.revoke([second.id])
    clock.advance(50)

    if by == "redrive":
        assert broker.redrive([failed.id]) == [failed.id]
    else:
        assert broker.enqueue([last]) == {}
        assert record(broker, second).revoked == "expired"
    assert record(broker, first).revoked == "expired"


def test_a_key_that_was_handed_on_is_not_kept_for_the_time_of_the_first(
    broker: Broker,
) -> None:
    first, second = unique(unique_for=600), unique(on_conflict="replace")
    broker.enqueue([first])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"])
    broker.enqueue([second])

    broker.settle(worker, lease, Succeeded(b"1"))
    run(broker, Succeeded(b"2"), worker)

    assert broker.holder(KEY) is None


def test_a_replacing_call_made_again_changes_nothing(broker: Broker) -> None:
    first, second = unique(b"[[1], {}]"), unique(b"[[2], {}]", on_conflict="replace")
    broker.enqueue([first])
    broker.enqueue([second])
    worker = enlist(broker)
    broker.claim(worker, ["default"])

    assert broker.enqueue([second]) == {second.id: first.id}  # its answer had been lost

    assert broker.counts() == {"default": {"running": 1}}


def test_a_running_one_that_handed_its_key_on_may_be_replaced_by_its_task(
    broker: Broker,
) -> None:
    first, second = unique(), unique(on_conflict="replace")
    broker.enqueue([first])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"])
    broker.enqueue([second])
    other = make()
    graph = Graph((other.pack(),), ((other.id, first.id, "success", 0),))

    assert broker.settle(worker, lease, Replaced({"task": "shop.other"}, graph))

    assert broker.holder(KEY) == second.id
    assert run(broker, Succeeded(b"1"), worker) == other.id
    assert run(broker, Succeeded(b"1"), worker) == first.id
    assert run(broker, Succeeded(b"1"), worker) == second.id


# Workflows


def test_a_workflow_with_a_duplicate_is_refused_as_a_whole(broker: Broker) -> None:
    first = unique()
    broker.enqueue([first])
    head, behind = make(), unique()
    edges = [Edge(head.id, behind.id, "success")]

    with pytest.raises(DuplicateTask, match="a workflow cannot do without") as caught:
        broker.enqueue([head, behind], edges, Workflow(head.id, "chain"))

    assert caught.value.id == first.id
    assert broker.counts() == {"default": {"queued": 1}}
    assert broker.workflows() == []


def test_a_workflow_holds_the_keys_of_its_steps(broker: Broker) -> None:
    head, behind = make(), unique()
    edges = [Edge(head.id, behind.id, "success")]
    broker.enqueue([head, behind], edges, Workflow(head.id, "chain"))

    second = unique()
    assert broker.enqueue([second]) == {second.id: behind.id}
    with pytest.raises(DuplicateTask, match="as a step of a workflow"):
        broker.enqueue([unique(on_conflict="replace")])
    run(broker, Failed(ERROR))

    assert broker.enqueue([unique()]) == {}


def test_a_graph_with_a_duplicate_fails_the_task_that_adds_it(broker: Broker) -> None:
    first, head = unique(), make(priority=9)
    broker.enqueue([first, head])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"])
    graph = Graph((unique().pack(),))

    assert broker.settle(worker, lease, Succeeded(b"1", added=graph))

    found = record(broker, head)
    assert found.state == "failed"
    assert "DuplicateTask" in str(found.result)
    assert broker.counts() == {"default": {"queued": 1}}


# Steering


def test_a_redrive_takes_the_key_again(broker: Broker) -> None:
    first, second = unique(), unique()
    broker.enqueue([first])
    run(broker, Failed(ERROR))

    assert broker.redrive([first.id]) == [first.id]

    assert broker.enqueue([second]) == {second.id: first.id}


def test_a_redrive_passes_over_whose_key_another_holds(broker: Broker) -> None:
    first, second, other = unique(), unique(), make()
    for message in (first, other):
        broker.enqueue([message])
        run(broker, Failed(ERROR))
    broker.enqueue([second])

    assert broker.redrive([first.id, other.id]) == [other.id]

    assert record(broker, first).state == "failed"
    assert broker.holder(KEY) == second.id
    run(broker, Succeeded(b"1"))
    run(broker, Succeeded(b"1"))
    assert broker.redrive([first.id]) == [first.id]


def test_a_redrive_passes_over_whose_key_is_kept_after_an_end(
    broker: Broker, clock: FakeClock
) -> None:
    first, second = unique(), unique(unique_for=60)
    broker.enqueue([first])
    run(broker, Failed(ERROR))
    broker.enqueue([second])
    run(broker, Succeeded(b"1"))

    assert broker.redrive([first.id]) == []
    assert broker.holder(KEY) == second.id
    clock.advance(61)
    assert broker.redrive([first.id]) == [first.id]


def test_a_redrive_keeps_the_key_for_as_long_as_was_asked_for(
    broker: Broker, clock: FakeClock
) -> None:
    first, second = unique(unique_for=60), unique()
    broker.enqueue([first])
    run(broker, Failed(ERROR))
    clock.advance(10)
    broker.redrive([first.id])
    run(broker, Succeeded(b"1"))

    assert broker.enqueue([second]) == {second.id: first.id}
    clock.advance(51)
    assert broker.enqueue([second]) == {}


def test_a_redrive_keeps_no_key_longer_that_another_has_taken_since(broker: Broker) -> None:
    first, second = unique(unique_for=60), unique()
    broker.enqueue([first])
    run(broker, Failed(ERROR))
    broker.enqueue([second])
    run(broker, Failed(ERROR))

    broker.redrive([first.id])
    run(broker, Succeeded(b"1"))

    assert broker.holder(KEY) is None


def test_an_error_callback_whose_own_key_is_kept_is_called_again(broker: Broker) -> None:
    failing, callback = make(), unique(unique_for=60)
    broker.enqueue([failing, callback], [Edge(failing.id, callback.id, "failure")])
    run(broker, Failed(ERROR))
    run(broker, Succeeded(b"1"))

    assert broker.redrive([failing.id]) == [failing.id]
    assert record(broker, callback).state == "waiting"


def test_a_redrive_takes_the_key_of_one_that_has_expired(
    broker: Broker, clock: FakeClock
) -> None:
    first, second = unique(), unique(expires_at=clock.now() + 50)
    broker.enqueue([first])
    run(broker, Failed(ERROR))
    broker.enqueue([second])
    clock.advance(100)

    assert broker.redrive([first.id]) == [first.id]

    assert record(broker, second).revoked == "expired"
    assert broker.holder(KEY) == first.id
    assert claimed(broker, enlist(broker)) == [first.id]


def test_what_a_redrive_has_wait_again_takes_the_key_of_one_that_has_expired(
    broker: Broker, clock: FakeClock
) -> None:
    first, then, handler = make(), unique(), unique(unique_key="other")
    edges = [Edge(first.id, then.id, "success"), Edge(first.id, handler.id, "failure")]
    broker.enqueue([first, then, handler], edges, Workflow("w", "flow"))
    run(broker, Failed(ERROR))
    run(broker, Succeeded(b"1"))
    soon = clock.now() + 50
    late = [unique(expires_at=soon), unique(unique_key="other", expires_at=soon)]
    broker.enqueue(late)
    clock.advance(100)

    assert broker.redrive([first.id]) == [first.id]

    assert [record(broker, one).revoked for one in late] == ["expired", "expired"]
    assert (broker.holder(KEY), broker.holder("other")) == (then.id, handler.id)


def test_one_that_handed_its_key_on_is_not_redriven_beside_the_next(broker: Broker) -> None:
    first, second = unique(), unique(on_conflict="replace")
    broker.enqueue([first])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"])
    broker.enqueue([second])
    broker.settle(worker, lease, Failed(ERROR))

    assert broker.redrive([first.id]) == []
    run(broker, Succeeded(b"1"))
    assert broker.redrive([first.id]) == [first.id]
    assert broker.holder(KEY) == first.id


# Periodic entries


@pytest.mark.parametrize("on_conflict", [None, "skip", "raise"])
def test_a_tick_passes_over_while_its_last_call_is_alive(
    broker: Broker, clock: FakeClock, on_conflict: str | None
) -> None:
    due = clock.now()
    broker.put_schedule(Schedule("sweep", b"{}", due))
    [entry] = broker.schedules()
    first, second = unique(), unique(on_conflict=on_conflict)
    assert broker.fire("sweep", due, due + 5, revision=entry.revision, messages=[first])

    assert broker.fire("sweep", due + 5, due + 10, revision=entry.revision, messages=[second])

    [entry] = broker.schedules()
    assert (entry.total, entry.last_id, entry.due_at) == (1, first.id, due + 10)
    assert broker.counts() == {"default": {"queued": 1}}


@pytest.mark.parametrize("on_conflict", [None, "skip", "raise", "replace"])
def test_a_tick_is_sent_although_its_last_call_has_expired_unseen(
    broker: Broker, clock: FakeClock, on_conflict: str | None
) -> None:
    due = clock.now()
    broker.put_schedule(Schedule("sweep", b"{}", due))
    [entry] = broker.schedules()
    first, second = unique(expires_at=due + 3), unique(on_conflict=on_conflict)
    assert broker.fire("sweep", due, due + 5, revision=entry.revision, messages=[first])
    clock.advance(5)

    assert broker.fire("sweep", due + 5, due + 10, revision=entry.revision, messages=[second])

    [entry] = broker.schedules()
    assert (entry.total, entry.last_id) == (2, second.id)
    assert broker.counts() == {"default": {"queued": 1}}


def test_a_tick_whose_calls_are_duplicates_of_each_other_is_refused(
    broker: Broker, clock: FakeClock
) -> None:
    due = clock.now()
    broker.put_schedule(Schedule("sweep", b"{}", due))
    [entry] = broker.schedules()
    first, second = unique(), unique()

    with pytest.raises(DuplicateTask, match=first.id):
        broker.fire(
            "sweep",
            due,
            due + 5,
            revision=entry.revision,
            messages=[first, second],
            workflow=Workflow("w", "group of 2"),
        )

    assert broker.schedules() == [entry]
    assert broker.get([first.id, second.id]) == {}


def test_a_tick_may_replace_what_waits(broker: Broker, clock: FakeClock) -> None:
    due = clock.now()
    broker.put_schedule(Schedule("sweep", b"{}", due))
    [entry] = broker.schedules()
    first, second = unique(b"[[1], {}]"), unique(b"[[2], {}]", on_conflict="replace")
    broker.enqueue([first])

    assert broker.fire("sweep", due, due + 5, revision=entry.revision, messages=[second])

    assert record(broker, first).message.body == b"[[2], {}]"
    assert broker.schedules()[0].total == 1
