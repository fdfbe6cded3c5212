"""What is said in seconds counts by the clock of the store, whatever that of who says it.

A store on another machine has another clock than its senders and workers, here five minutes
apart. A file is on one machine, which has one clock.
"""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from world import FakeClock, Store, enlist

from liteq import Liteq, chain, group
from liteq.brokers.base import Broker, Lease
from liteq.clock import FromNow
from liteq.exceptions import Reject
from liteq.executor import Executor, ExecutorSettings
from liteq.message import Message
from liteq.workers.runner import TaskRunner, job, read_answer


class OtherClock:
    """The clock of another machine, so many seconds ahead of that of the store."""

    def __init__(self, clock: FakeClock, ahead: float) -> None:
        self.steady = clock.steady
        self._clock = clock
        self._ahead = ahead

    def now(self) -> float:
        return self._clock.now() + self._ahead


@pytest.fixture(params=[300.0, -300.0], ids=["fast", "slow"])
def other(request: pytest.FixtureRequest, store: Store) -> OtherClock:
    return OtherClock(store.clock, request.param if store.kind == "redis" else 0.0)


@pytest.fixture
def app(broker: Broker, other: OtherClock) -> Liteq:
    """An app whose machine has the other clock."""
    made = Liteq("shop", set_as_current=False)
    made.exchange_store(broker, other)

    @made.task(name="add")
    def add(*numbers: int) -> int:
        return sum(numbers)

    return made


def stored(broker: Broker, id: str) -> Message:
    return broker.get([id])[id].message


def claim(broker: Broker, worker: int) -> Lease:
    (lease,) = broker.claim(worker, ["default"])
    return lease


def run(app: Liteq, other: OtherClock, worker: int) -> None:
    """Run what is due in a child of that machine, and settle it."""
    lease = claim(app.broker, worker)
    runner = TaskRunner(Executor(app.tasks, ExecutorSettings(clock=other)))
    answer = runner.run(job(lease), lambda data: None, 1)
    assert app.broker.settle(worker, lease, read_answer(answer))


def test_a_countdown(app: Liteq, broker: Broker, clock: FakeClock) -> None:
    worker = enlist(broker)
    sent = app.tasks["add"].apply_async(countdown=30)

    assert stored(broker, sent.id).run_at == clock.now() + 30
    clock.advance(29.9)
    assert broker.claim(worker, ["default"]) == ()
    clock.advance(0.1)
    assert claim(broker, worker).id == sent.id


def test_an_expiry(app: Liteq, broker: Broker, clock: FakeClock) -> None:
    early, late = (app.tasks["add"].apply_async(expires=60) for _ in range(2))

    assert stored(broker, late.id).expires_at == clock.now() + 60
    clock.advance(59)
    worker = enlist(broker)
    assert [lease.id for lease in broker.claim(worker, ["default"])] == [early.id]
    clock.advance(2)
    assert broker.claim(worker, ["default"]) == ()
    assert broker.get([late.id])[late.id].state == "revoked"


def test_an_instant_is_what_it_was_said_to_be(
    app: Liteq, broker: Broker, clock: FakeClock
) -> None:
    moment = datetime.fromtimestamp(clock.now() + 90, UTC)
    sent = app.tasks["add"].apply_async(eta=moment, expires=moment)

    message = stored(broker, sent.id)
    assert (message.run_at, message.expires_at) == (moment.timestamp(), moment.timestamp())


def test_calls_sent_together(app: Liteq, broker: Broker, clock: FakeClock) -> None:
    add = app.tasks["add"]
    many = add.enqueue_many([(1,), (2,)], countdown=30, expires=60)
    grouped = group(add.s(1).set(countdown=30, expires=60), add.s(2)).apply_async()
    chained = chain(add.s(1).set(countdown=30, expires=60), add.s(2)).apply_async()

    for id in (*(one.id for one in many), grouped[0].id, chained.parent.id):
        message = stored(broker, id)
        assert (message.run_at, message.expires_at) == (clock.now() + 30, clock.now() + 60)


def test_the_delay_of_a_retry(
    app: Liteq, broker: Broker, clock: FakeClock, other: OtherClock
) -> None:
    @app.task(name="again", bind=True)
    def again(self: Any) -> None:
        raise self.retry(countdown=30, expires=60)

    sent = again.delay()
    run(app, other, enlist(broker))

    message = stored(broker, sent.id)
    assert (message.run_at, message.expires_at) == (clock.now() + 30, clock.now() + 60)


def test_a_retry_without_a_new_expiry_keeps_the_one_it_had(
    app: Liteq, broker: Broker, clock: FakeClock, other: OtherClock
) -> None:
    @app.task(name="again", bind=True)
    def again(self: Any) -> None:
        raise self.retry(countdown=30, priority=9)

    sent = again.apply_async(expires=datetime.fromtimestamp(clock.now() + 4000, UTC))
    run(app, other, enlist(broker))

    assert stored(broker, sent.id).expires_at == clock.now() + 4000


def test_what_is_put_back_is_due_at_once(app: Liteq, broker: Broker, other: OtherClock) -> None:
    @app.task(name="back", bind=True)
    def back(self: Any) -> None:
        raise Reject("busy", requeue=True)

    sent = back.delay()
    worker = enlist(broker)
    run(app, other, worker)

    assert claim(broker, worker).id == sent.id


@pytest.mark.parametrize("several", [False, True])
def test_what_is_put_in_the_place_of_a_call(
    app: Liteq, broker: Broker, clock: FakeClock, other: OtherClock, several: bool
) -> None:
    add = app.tasks["add"]

    @app.task(name="instead", bind=True)
    def instead(self: Any) -> None:
        later = add.s(1).set(countdown=30, expires=60, task_id="part" if several else None)
        raise self.replace(group(later, add.s(2)) if several else later)

    sent = instead.delay()
    run(app, other, enlist(broker))

    message = stored(broker, "part" if several else sent.id)
    assert (message.run_at, message.expires_at) == (clock.now() + 30, clock.now() + 60)


def test_a_debounce(app: Liteq, broker: Broker, clock: FakeClock) -> None:
    @app.task(name="save", debounce=30, debounce_max=40)
    def save() -> None: ...

    first = save.delay()
    due = [stored(broker, first.id).run_at]
    for _ in range(2):
        clock.advance(9)
        save.delay()
        due.append(stored(broker, first.id).run_at)

    start = clock.now() - 18
    assert due == [start + 30, start + 39, start + 40]


def test_a_submission_that_is_repeated_counts_once(broker: Broker, clock: FakeClock) -> None:
    start = clock.now()
    message = Message(
        "one", "add", b"[[], {}]", run_at=FromNow(start + 30, 30), expires_at=FromNow(start, 60)
    )
    broker.enqueue([message])
    before = stored(broker, "one")
    clock.advance(10)
    broker.enqueue([message])

    assert stored(broker, "one") == before


def test_an_expiry_that_is_signed_is_the_instant_that_was_signed(
    broker: Broker, other: OtherClock
) -> None:
    app = Liteq("shop", set_as_current=False, security_keys=["k" * 32])
    app.exchange_store(broker, other)
    sent = app.task(name="add")(lambda: None).apply_async(countdown=30, expires=600)

    message = stored(broker, sent.id)
    assert message.expires_at == other.now() + 600
    assert app.signer is not None
    app.signer.check(message.pack())


def test_what_counts_from_now_is_still_an_instant() -> None:
    due = FromNow(100.0, 30.0)

    assert (due, due + 1, repr(due)) == (100.0, 101.0, "100.0")
    again = pickle.loads(pickle.dumps(due))
    assert (again, again.seconds) == (100.0, 30.0)


def test_what_is_due_by_now_is_taken_by_who_stands_by(broker: Broker, clock: FakeClock) -> None:
    worker = enlist(broker)
    broker.step(worker, queues=["default"], limit=1, idle=True)

    broker.enqueue([Message("one", "add", b"[[], {}]", run_at=FromNow(clock.now(), 0.0))])

    assert claim(broker, worker).id == "one"
