"""Queues as a whole, on every store: looked at, paused, resumed, and limited in length."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing
from typing import Any

import pytest
from world import FakeClock, Store, enlist, make, wait_until

from liteq import failure
from liteq.brokers.base import Broker, QueueInfo
from liteq.exceptions import ImproperlyConfigured, QueueFull
from liteq.message import Edge, Message, Workflow
from liteq.outcome import Failed, Released, Replaced, Retried, Succeeded

ERROR = failure.describe(ValueError("no"))


def claimed(broker: Broker, worker: int, *queues: str, limit: int = 100) -> list[str]:
    return [lease.id for lease in broker.claim(worker, queues or ("default",), limit)]


def only(broker: Broker) -> QueueInfo:
    [found] = broker.queues()
    return found


# Looking


def test_queues_are_told_of_by_name_with_their_counts(broker: Broker, clock: FakeClock) -> None:
    broker.enqueue([make(queue="b"), make(queue="b", run_at=clock.now() + 60)])
    broker.enqueue([make(queue="a"), make(queue="a")])
    worker = enlist(broker, "a")
    broker.claim(worker, ["a"])

    assert broker.queues() == [
        QueueInfo("a", {"queued": 1, "running": 1}, latency=0.0),
        QueueInfo("b", {"queued": 1, "scheduled": 1}, latency=0.0),
    ]


def test_a_store_without_work_has_no_queues(broker: Broker) -> None:
    worker = enlist(broker)
    broker.enqueue([make()])
    broker.settle(worker, broker.claim(worker, ["default"])[0], Succeeded(b"1"))

    assert broker.queues() == []


def test_latency_is_how_long_the_first_in_line_has_been_claimable(
    broker: Broker, clock: FakeClock
) -> None:
    due = clock.now() + 30
    broker.enqueue([make(priority=9, run_at=due)])
    assert only(broker).latency is None  # nothing is claimable yet
    worker = enlist(broker)
    clock.advance(40)
    broker.enqueue([make(priority=9)])
    broker.step(worker, queues=["other"], limit=1)
    clock.advance(5)
    broker.enqueue([make(priority=0)])

    assert only(broker).latency == pytest.approx(5)  # its line has not been looked at
    [first] = broker.claim(worker, ["default"])
    assert first.packed[5] == due
    broker.settle(worker, first, Released())
    assert only(broker).latency == pytest.approx(15)


def test_a_low_priority_that_waits_behind_others_shows_in_the_latency(
    broker: Broker, clock: FakeClock
) -> None:
    broker.enqueue([make(priority=1)])
    clock.advance(100)
    broker.enqueue([make(priority=9) for _ in range(3)])

    assert only(broker).latency == pytest.approx(100)


def test_dead_letters_are_counted_by_queue(broker: Broker) -> None:
    worker = enlist(broker, "a", "b")
    broker.enqueue([make(queue="a"), make(queue="a"), make(queue="b")])
    for lease in broker.claim(worker, ["a", "b"], 3):
        broker.settle(worker, lease, Failed(ERROR, dead="no use"))

    assert broker.queues() == [QueueInfo("a", {}, dead=2), QueueInfo("b", {}, dead=1)]


# Pausing


def test_a_paused_queue_is_never_claimed_from(broker: Broker) -> None:
    stays, runs = make(queue="a"), make(queue="b")
    broker.enqueue([stays, runs])
    worker = enlist(broker, "a", "b")

    assert broker.pause("a")

    assert claimed(broker, worker, "a", "b") == [runs.id]
    assert [info.paused for info in broker.queues()] == [True, False]


def test_a_resumed_queue_is_claimed_from_in_order(broker: Broker) -> None:
    first, second = make(), make()
    worker = enlist(broker)
    broker.pause("default")
    broker.enqueue([first])
    broker.enqueue([second])
    assert claimed(broker, worker) == []

    assert broker.resume("default")

    assert claimed(broker, worker) == [first.id, second.id]


def test_pausing_and_resuming_say_whether_they_changed_anything(broker: Broker) -> None:
    assert broker.pause("a")
    assert not broker.pause("a")
    assert broker.resume("a")
    assert not broker.resume("a")


def test_an_empty_paused_queue_is_told_of(broker: Broker) -> None:
    broker.pause("mail")

    assert broker.queues() == [QueueInfo("mail", {}, paused=True)]


def test_what_runs_when_its_queue_is_paused_ends_as_ever(
    broker: Broker, clock: FakeClock
) -> None:
    worker = enlist(broker)
    done, again = make(), make()
    broker.enqueue([done, again])
    leases = broker.claim(worker, ["default"], 2)
    broker.pause("default")

    step = broker.step(
        worker,
        settlements=[
            (leases[0], Succeeded(b"1")),
            (leases[1], Retried(clock.now() + 5, ERROR)),
        ],
        queues=["default"],
        limit=5,
    )

    assert step.accepted == (True, True)
    assert step.leases == ()
    assert step.next_due is None  # not before it is resumed
    clock.advance(10)
    assert claimed(broker, worker) == []
    broker.resume("default")
    assert claimed(broker, worker) == [again.id]


def test_a_parked_message_of_a_paused_queue_is_not_claimed(broker: Broker) -> None:
    ignorant, knowing = enlist(broker), enlist(broker)
    broker.enqueue([make(task="rare")])
    assert not broker.claim(ignorant, ["default"], tasks=frozenset({"other"}))
    broker.pause("default")

    assert claimed(broker, knowing) == []
    broker.resume("default")
    assert len(claimed(broker, knowing)) == 1


def test_a_pause_survives_and_is_seen_by_all_workers_at_once(store: Store) -> None:
    if not store.shared:
        pytest.skip("a store in memory belongs to one connection")
    one, other = store.open(), store.open()
    worker = enlist(other)
    one.enqueue([make()])
    one.pause("default")
    one.close()

    assert claimed(other, worker) == []
    other.close()
    late = store.open()
    assert claimed(late, enlist(late)) == []
    late.resume("default")
    assert len(claimed(late, enlist(late))) == 1
    late.close()


def test_a_resumed_queue_wakes_the_workers_that_wait_for_it(broker: Broker) -> None:
    worker = enlist(broker)
    mailbox = broker.mailbox(worker)
    broker.pause("default")
    broker.enqueue([make()])
    assert claimed(broker, worker) == []
    wait_until(lambda: not mailbox.receive())

    broker.resume("default")

    assert "" in wait_until(mailbox.receive)
    mailbox.close()


def test_a_paused_queue_can_be_purged_and_revoked(broker: Broker) -> None:
    first, second = make(), make()
    broker.enqueue([first, second])
    broker.pause("default")

    assert broker.revoke([first.id]) == {first.id: "revoked"}
    assert broker.purge(["default"]) == 1


# Length


@pytest.fixture
def short(store: Store) -> Any:
    opened = store.open(max_lengths={"short": 3})
    yield opened
    opened.close()


def test_a_queue_takes_no_more_than_its_length(short: Broker, clock: FakeClock) -> None:
    kept = [make(queue="short"), make(queue="short", run_at=clock.now() + 60)]
    short.enqueue(kept)
    short.enqueue([make(queue="short")])

    with pytest.raises(QueueFull, match=r"'short' has no room.*at most 3"):
        short.enqueue([make(queue="short")])

    assert short.counts() == {"short": {"queued": 2, "scheduled": 1}}
    assert only(short).limit == 3
    assert only(short).length == 3


def test_room_is_made_of_what_has_expired(short: Broker, clock: FakeClock) -> None:
    late = [make(queue="short", expires_at=clock.now() + 5) for _ in range(2)]
    late.append(make(queue="short", run_at=clock.now() + 60, expires_at=clock.now() + 5))
    short.enqueue(late)
    clock.advance(6)

    new = [make(queue="short") for _ in range(3)]
    short.enqueue(new[:2])
    asyncio.run(short.aenqueue(new[2:]))
    with pytest.raises(QueueFull) as caught:
        short.enqueue([make(queue="short", expires_at=clock.now() + 5)])

    assert caught.value.queue == "short"
    assert short.counts() == {"short": {"queued": 3}}
    ended = short.get([message.id for message in late]).values()
    assert [record.revoked for record in ended] == ["expired"] * 3


def test_room_is_made_slice_by_slice(store: Store, clock: FakeClock) -> None:
    with closing(store.open(max_length=1_100)) as broker:
        broker.enqueue([make(expires_at=clock.now() + 5) for _ in range(1_100)])
        clock.advance(6)

        broker.enqueue([make() for _ in range(1_100)])

        assert broker.counts() == {"default": {"queued": 1_100}}


def test_what_has_no_room_is_refused_as_a_whole(short: Broker) -> None:
    other = make(queue="other")

    with pytest.raises(QueueFull):
        short.enqueue([other, *(make(queue="short") for _ in range(4))])

    assert short.counts() == {}
    short.enqueue([make(queue="other") for _ in range(10)])  # that one has no limit


def test_room_is_made_by_a_claim(short: Broker) -> None:
    short.enqueue([make(queue="short") for _ in range(3)])
    worker = enlist(short, "short")
    [lease] = short.claim(worker, ["short"])

    short.enqueue([make(queue="short")])

    with pytest.raises(QueueFull):
        short.enqueue([make(queue="short")])
    assert short.settle(worker, lease, Released())  # and given back it is one too many
    assert short.counts() == {"short": {"queued": 4}}


def test_a_call_made_again_takes_no_room(short: Broker) -> None:
    messages = [make(queue="short") for _ in range(3)]
    short.enqueue(messages)

    short.enqueue(messages)
    short.enqueue([messages[0]])

    assert short.counts() == {"short": {"queued": 3}}


def test_what_follows_running_work_is_never_refused(short: Broker, clock: FakeClock) -> None:
    head, behind, again = make(queue="short"), make(queue="short"), make(queue="short")
    short.enqueue(
        [head, behind], [Edge(head.id, behind.id, "success")], Workflow(head.id, "chain")
    )
    short.enqueue([again])
    worker = enlist(short, "short")
    leases = short.claim(worker, ["short"], 2)
    short.enqueue([make(queue="short") for _ in range(3)])

    step = short.step(
        worker,
        settlements=[
            (leases[0], Succeeded(b"1")),
            (leases[1], Retried(clock.now(), ERROR)),
        ],
    )

    assert step.accepted == (True, True)
    assert short.counts() == {"short": {"queued": 5}}
    assert behind.id in claimed(short, worker, "short")


def test_a_graph_that_replaces_running_work_is_never_refused(short: Broker) -> None:
    head = make(queue="short")
    short.enqueue([head])
    worker = enlist(short, "short")
    [lease] = short.claim(worker, ["short"])
    short.enqueue([make(queue="short") for _ in range(3)])

    assert short.settle(worker, lease, Replaced({"task": "shop.other"}))

    assert short.counts() == {"short": {"queued": 4}}


def test_what_waits_for_others_takes_room_when_it_is_their_turn(short: Broker) -> None:
    chain = [make(queue="short") for _ in range(6)]
    edges = [Edge(chain[n].id, chain[n + 1].id, "success") for n in range(5)]

    short.enqueue(chain, edges, Workflow(chain[0].id, "chain of 6"))

    assert short.counts() == {"short": {"queued": 1, "waiting": 5}}
    assert only(short).length == 1


def test_one_length_for_every_queue_that_has_none_of_its_own(store: Store) -> None:
    broker = store.open(max_length=2, max_lengths={"long": 5})
    broker.enqueue([make(queue="long") for _ in range(5)])
    broker.enqueue([make(queue="any") for _ in range(2)])

    for queue in ("long", "any"):
        with pytest.raises(QueueFull):
            broker.enqueue([make(queue=queue)])

    assert [info.limit for info in broker.queues()] == [2, 5]
    broker.close()


@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "many"])
def test_a_length_is_a_whole_number_above_zero(store: Store, bad: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="whole number above 0"):
        store.open(max_lengths={"a": bad})
    with pytest.raises(ImproperlyConfigured, match="whole number above 0"):
        store.open(max_length=bad)


def test_producers_that_race_for_the_last_places_are_counted_exactly(store: Store) -> None:
    if not store.shared:
        pytest.skip("a store in memory is one connection")
    brokers = [store.open(max_lengths={"short": 40}) for _ in range(4)]
    refused: list[QueueFull] = []

    def produce(broker: Broker) -> None:
        for _ in range(25):
            try:
                broker.enqueue([make(queue="short")])
            except QueueFull as exc:
                refused.append(exc)

    threads = [threading.Thread(target=produce, args=(broker,)) for broker in brokers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert brokers[0].counts() == {"short": {"queued": 40}}
    assert len(refused) == 60
    for broker in brokers:
        broker.close()


def test_parked_messages_take_room(short: Broker) -> None:
    worker = enlist(short, "short")
    parked: list[Message] = [make(queue="short", task="rare") for _ in range(3)]
    short.enqueue(parked)
    short.claim(worker, ["short"], 3, frozenset({"other"}))
    assert short.counts() == {"short": {"parked": 3}}

    with pytest.raises(QueueFull):
        short.enqueue([make(queue="short")])


# Ageing


def test_what_waits_for_long_is_raised(broker: Broker, clock: FakeClock) -> None:
    old = make(priority=1)
    broker.enqueue([old])
    clock.advance(50)
    broker.enqueue([make(priority=4), make(priority=0)])

    assert broker.age(["default"], 10.0) == 1

    worker = enlist(broker)
    assert claimed(broker, worker)[0] == old.id
    assert broker.get([old.id])[old.id].message.priority == 5
    assert broker.age(["default"], 10.0) == 0


def test_a_priority_is_raised_to_nine_and_no_further(broker: Broker, clock: FakeClock) -> None:
    first, second = make(), make(priority=9)
    broker.enqueue([first])
    clock.advance(10_000)
    broker.enqueue([second])

    broker.age(["default"], 10.0)

    assert claimed(broker, enlist(broker)) == [first.id, second.id]  # both 9 now: the older


def test_only_these_queues_and_what_is_claimable_age(broker: Broker, clock: FakeClock) -> None:
    there, later = make(queue="b"), make(run_at=clock.now() + 900)
    broker.enqueue([there])
    broker.enqueue([later])
    clock.advance(1_000)
    worker = enlist(broker)
    broker.step(worker, queues=["default"], limit=0)

    assert broker.age(["default"], 200.0) == 0  # it is claimable since it was due, at most
    assert broker.get([there.id])[there.id].message.priority == 0


def test_with_ageing_nothing_starves(broker: Broker, clock: FakeClock) -> None:
    poor = make(priority=0)
    broker.enqueue([poor])
    worker = enlist(broker)
    turns = 0
    while turns < 200:
        turns += 1
        broker.enqueue([make(priority=9)])
        broker.enqueue([make(priority=9)])
        clock.advance(1)
        broker.age(["default"], 10.0)
        [lease] = broker.claim(worker, ["default"])
        broker.settle(worker, lease, Succeeded(b"1"))
        if lease.id == poor.id:
            break

    assert turns == 90  # when it had waited for nine times ten seconds
