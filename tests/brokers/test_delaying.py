"""Who is told of a delayed message, and who need not be: each worker that may run one is told
of it, or waits for something that is due no later. What is counted is wake-ups and steps.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import FakeClock, enlist, make, wait_until

from liteq import failure
from liteq.brokers.base import Broker, Lease, Mailbox
from liteq.brokers.connection import fetch_all
from liteq.brokers.delaying import FAR
from liteq.brokers.sqlite import SqliteBroker
from liteq.ids import new_ids
from liteq.limits import Limit, write
from liteq.message import Alike, Message
from liteq.outcome import Outcome, Released, Replaced, Retried, Succeeded

BEAT = FAR - 10.0  # seconds: few heartbeats are as late
ERROR = failure.describe(ValueError("again"))

# On Redis a wake-up is a token in a list, which one worker takes.
on_sqlite = pytest.mark.parametrize("store", ["sqlite", "memory"], indirect=True)


class Sleeper:
    """A worker as a store knows it: it sleeps until it is told something, until the moment
    that its last step said, or until a heartbeat."""

    def __init__(self, broker: Broker, *queues: str) -> None:
        self.broker = broker
        self.queues = queues or ("default",)
        self.id = enlist(broker, *self.queues)
        self.mailbox: Mailbox = broker.mailbox(self.id)
        self.next_due: float | None = None
        self.leases: list[Lease] = []
        self.beats_at = 0.0
        self.told = True  # that it is new: it looks first of all

    def is_told(self) -> bool:
        self.told = bool(self.mailbox.receive()) or self.told
        return self.told

    def step(self, outcome: Outcome | None = None) -> None:
        ends = [(self.leases.pop(), outcome)] if outcome and self.leases else []
        limit = 2 - len(self.leases)
        step = self.broker.step(self.id, queues=self.queues, limit=limit, settlements=ends)
        self.leases += step.leases
        self.beats_at = self.broker.clock.now() + BEAT
        self.next_due = step.next_due
        more = step.next_due is not None and step.next_due <= self.broker.clock.now()
        self.told = len(step.leases) >= limit or more


def put(broker: Broker, *messages: Message) -> None:
    broker.enqueue(messages)


def alike(number: int, **fields: Any) -> Alike:
    return Alike(make(**fields), new_ids(number), [b"[[], {}]"] * number)


@pytest.fixture
def sleeper(broker: Broker, request: pytest.FixtureRequest) -> Callable[..., Sleeper]:
    def made(*queues: str) -> Sleeper:
        one = Sleeper(broker, *queues)
        request.addfinalizer(one.mailbox.close)
        one.step()
        one.is_told()  # of the others that are new
        one.told = False
        return one

    return made


# Who is told


@on_sqlite
def test_the_first_delayed_message_of_a_queue_is_told(
    broker: Broker, clock: FakeClock, sleeper: Callable[..., Sleeper]
) -> None:
    one = sleeper("a", "b")
    put(broker, make(queue="a", run_at=clock.now() + 40))
    assert one.is_told()
    one.step()

    put(broker, make(queue="b", run_at=clock.now() + 50))

    assert one.is_told(), "another worker may wait for this queue alone"


WAYS: dict[str, Callable[[Broker, float], object]] = {
    "one": lambda b, at: b.enqueue([make(run_at=at)]),
    "several": lambda b, at: b.enqueue([make(run_at=at), make(run_at=at + 1)]),
    "alike": lambda b, at: b.enqueue(alike(60, run_at=at)),
    "unique": lambda b, at: b.enqueue([make(run_at=at, unique_key="k")]),
}


@on_sqlite
@pytest.mark.parametrize("way", WAYS)
def test_what_heartbeats_will_see_in_time_is_told_to_nobody(
    broker: Broker, clock: FakeClock, sleeper: Callable[..., Sleeper], way: str
) -> None:
    one = sleeper()

    WAYS[way](broker, clock.now() + FAR + 1)

    assert not one.is_told()


@on_sqlite
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("after", "told"), [(-1.0, True), (0.0, False), (1.0, False), (600.0, False)]
)
def test_only_what_is_due_before_the_others_is_told(
    broker: Broker,
    clock: FakeClock,
    sleeper: Callable[..., Sleeper],
    way: str,
    after: float,
    told: bool,
) -> None:
    first = clock.now() + 50
    put(broker, make(run_at=first))
    one = sleeper()

    WAYS[way](broker, first + after)

    assert one.is_told() == told


@on_sqlite
def test_what_is_due_beside_what_is_delayed_is_told(
    broker: Broker, clock: FakeClock, sleeper: Callable[..., Sleeper]
) -> None:
    put(broker, make(run_at=clock.now() + 40))
    one = sleeper()

    put(broker, make(run_at=clock.now() + 50), make())

    assert one.is_told()


@on_sqlite
def test_a_retry_wakes_nobody_for_what_is_due_after_another(
    broker: Broker, clock: FakeClock, sleeper: Callable[..., Sleeper]
) -> None:
    now = clock.now()
    put(broker, make(), make(), make(run_at=now + 40))
    busy = sleeper()
    other = sleeper()

    busy.step(Retried(now + 50, ERROR))
    assert not other.is_told()
    busy.step(Retried(now + 30, ERROR))
    assert other.is_told()


@on_sqlite
def test_a_retry_in_another_queue_is_told_there(
    broker: Broker, clock: FakeClock, sleeper: Callable[..., Sleeper]
) -> None:
    now = clock.now()
    put(broker, make(), make(run_at=now + 40))
    busy, other = sleeper(), sleeper("other")

    busy.step(Retried(now + 50, ERROR, {"queue": "other"}))

    assert other.is_told()


@on_sqlite
def test_a_debounced_call_that_is_put_off_wakes_nobody(
    broker: Broker, clock: FakeClock, sleeper: Callable[..., Sleeper]
) -> None:
    def call(countdown: float) -> None:
        at = clock.now() + countdown
        put(broker, make(unique_key="k", on_conflict="replace", run_at=at, max_wait=60.0))

    call(30)
    one = sleeper()
    call(40)
    assert not one.is_told()
    call(20)
    assert one.is_told()


@on_sqlite
def test_a_debounced_call_that_has_waited_for_as_long_as_it_may_is_told(
    broker: Broker, clock: FakeClock, sleeper: Callable[..., Sleeper]
) -> None:
    fields = {"unique_key": "k", "on_conflict": "replace", "max_wait": 60.0}
    put(broker, make(run_at=clock.now() + 90, **fields))
    one = sleeper()
    clock.advance(60)

    put(broker, make(run_at=clock.now() + 90, **fields))

    assert one.is_told()


@on_sqlite
def test_a_call_that_is_repeated_is_told_again(
    broker: Broker, clock: FakeClock, sleeper: Callable[..., Sleeper]
) -> None:
    message = make(run_at=clock.now() + 40)
    put(broker, message)
    one = sleeper()

    put(broker, message)  # its caller has perhaps died before it woke anybody

    assert one.is_told()
    put(broker, message, make(run_at=clock.now() + 50))
    assert one.is_told()


# When the next is due


def test_a_look_tells_when_the_next_is_due_or_to_look_by_a_step(
    broker: Broker, clock: FakeClock
) -> None:
    put(broker, make(queue="a", run_at=clock.now() + 2), make(run_at=clock.now() + 1))
    now = clock.now()

    looked = broker.next_due(["a", "b"])

    assert looked in (now, now + 2)
    due = broker.step(enlist(broker, "a", "b"), queues=["a", "b"], limit=1).next_due
    assert due == now + 2


@on_sqlite
def test_a_look_for_what_is_due_leaves_limits_to_a_step(
    broker: Broker, clock: FakeClock
) -> None:
    limit = Limit("few", interval=1.0)
    broker.declare_limits({"shop.charge": (limit,)})
    assert broker.next_due(["default"]) is None

    put(broker, make(limits=write([("few", "")])), make(limits=write([("few", "")])))

    assert broker.next_due(["default"]) == clock.now()


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_look_for_what_is_due_waits_for_no_writer(broker: SqliteBroker) -> None:
    found: list[float | None] = []

    def look(db: apsw.Connection) -> None:
        asks = threading.Thread(target=lambda: found.append(broker.next_due(["default"])))
        asks.start()
        asks.join(5)

    broker._database.write(look, durable=False)

    assert found == [None]


@on_sqlite
def test_who_claims_all_that_has_come_due_wakes_no_other(
    broker: Broker, clock: FakeClock, sleeper: Callable[..., Sleeper]
) -> None:
    put(broker, make(run_at=clock.now() + 1), make(run_at=clock.now() + 1))
    one, other = sleeper(), sleeper()
    clock.advance(1)
    one.step()
    assert len(one.leases) == 2
    assert not other.is_told()

    put(broker, *[make(run_at=clock.now() + 1) for _ in range(3)])
    other.step()
    clock.advance(1)
    other.step()

    assert len(other.leases) == 2
    assert one.is_told(), "one is left"


# Nobody is late

QUEUES = ("a", "b", "c")
AFTER = st.sampled_from([0.0, 1.0, 1.0, 2.0, 3.5, 5.0, 8.0, 58.0, 61.0, 65.0])
QUEUE = st.sampled_from(QUEUES)
WHO = st.integers(0, 3)
WHAT = st.one_of(
    st.tuples(st.just("enqueue"), st.lists(st.tuples(QUEUE, AFTER), min_size=1, max_size=3)),
    st.tuples(st.just("alike"), QUEUE, AFTER),
    st.tuples(st.just("debounce"), QUEUE, AFTER),
    st.tuples(st.just("look"), WHO),
    st.tuples(st.just("succeed"), WHO),
    st.tuples(st.just("release"), WHO),
    st.tuples(st.just("retry"), WHO, AFTER, QUEUE),
    st.tuples(st.just("replace"), WHO, AFTER),
    st.tuples(st.just("revoke"), st.integers(0, 99)),
    st.tuples(st.just("pause"), QUEUE),
    st.tuples(st.just("resume"), QUEUE),
    st.tuples(st.just("advance"), AFTER),
)


@given(st.lists(WHAT, max_size=25))
def test_6_no_worker_sleeps_past_what_it_may_run(what: list[tuple[Any, ...]]) -> None:
    clock = FakeClock()
    with contextlib.ExitStack() as stack:
        broker = SqliteBroker(None, clock=clock)
        stack.callback(broker.close)
        workers = [Sleeper(broker, *some) for some in (QUEUES, ("a",), ("b", "a"), ("c",))]
        for worker in workers:
            stack.callback(worker.mailbox.close)
            worker.step()
        for one in what:
            do(broker, clock, workers, *one)
            for worker in workers:
                assert worker.is_told() or not sleeps_past(broker, worker), (one, worker.queues)


def do(
    broker: SqliteBroker, clock: FakeClock, workers: list[Sleeper], verb: str, *given: Any
) -> None:
    now = clock.now()
    match verb, given:
        case "enqueue", [many]:
            put(broker, *[make(queue=queue, run_at=now + after) for queue, after in many])
        case "alike", [queue, after]:
            broker.enqueue(alike(30, queue=queue, run_at=now + after))
        case "debounce", [queue, after]:
            at = now + after
            fields = {"unique_key": "k", "on_conflict": "replace", "max_wait": 4.0}
            put(broker, make(queue=queue, run_at=at, **fields))
        case "look", [who]:
            workers[who].step()
        case "succeed", [who]:
            workers[who].step(Succeeded(b"1"))
        case "release", [who]:
            workers[who].step(Released())
        case "retry", [who, after, queue]:
            workers[who].step(Retried(now + after, ERROR, {"queue": queue}))
        case "replace", [who, after]:
            workers[who].step(Replaced({"run_at": now + after}))
        case "revoke", [number]:
            ids = sorted(id for _, _, id in delayed(broker))
            broker.revoke(ids[number % len(ids)] for _ in ids[:1])
        case "pause", [queue]:
            broker.pause(queue)
        case "resume", [queue]:
            broker.resume(queue)
        case "advance", [after]:
            for _ in range(10):
                clock.advance(after / 10)
                for worker in workers:
                    if clock.now() >= worker.beats_at:
                        worker.step()


def delayed(broker: SqliteBroker) -> list[tuple[str, float, str]]:
    return broker._database.read(
        lambda db: fetch_all(
            db,
            "SELECT queue, run_at, id FROM message WHERE state = 2 "
            "AND queue NOT IN (SELECT queue FROM paused)",
        )
    )


def sleeps_past(broker: SqliteBroker, worker: Sleeper) -> bool:
    dues = [at for queue, at, _ in delayed(broker) if queue in worker.queues]
    return min(dues, default=inf) < min(worker.beats_at, worker.next_due or inf)


def test_6_what_many_send_at_once_starts_in_time_on_workers_that_never_poll(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "store"
    most, each, senders = 0.8, 25, 4
    late: dict[str, float] = {}  # by id: seconds from when it was due to its claim
    over = threading.Event()
    with contextlib.closing(SqliteBroker(folder, durability="normal")) as broker:
        sleepers = [Sleeper(broker, *some) for some in (QUEUES, ("a",), ("b", "a"), ("c",))]

        def send(seed: int) -> None:
            drawn = random.Random(seed)
            with contextlib.closing(SqliteBroker(folder, durability="normal")) as own:
                for _ in range(each):
                    at = own.clock.now() + drawn.random() * most
                    put(own, make(queue=drawn.choice(QUEUES), run_at=at))

        def work(one: Sleeper) -> None:
            while not over.is_set():
                while one.told:
                    one.step(Succeeded(b"1"))
                    for lease in one.leases:
                        run_at = lease.packed[5]
                        assert run_at is not None
                        late.setdefault(lease.id, broker.clock.now() - run_at)
                    one.told |= bool(one.leases)
                until = one.next_due and max(0.0, one.next_due - broker.clock.now())
                one.told = bool(one.mailbox.wait(until)) or until is not None

        threads = [threading.Thread(target=work, args=(one,)) for one in sleepers]
        threads += [threading.Thread(target=send, args=(seed,)) for seed in range(senders)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(late) == each * senders, within=20.0)
        finally:
            over.set()
            broker._wake_workers()
            for thread in threads:
                thread.join(10)
            for one in sleepers:
                one.mailbox.close()
    assert min(late.values()) > -0.001
    # Each claim of a busy machine has its turn within that; who was not told of the last in
    # its queue would never come.
    assert max(late.values()) < 5.0
