"""A machine whose clock is an hour off that of its Redis server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from redis_server import RedisServer
from world import enlist, make, wait_until

from liteq import Liteq
from liteq.beat import Beat
from liteq.brokers.redis import RedisBroker
from liteq.clock import SystemClock
from liteq.exceptions import TaskRevokedError
from liteq.executor import Executor, ExecutorSettings
from liteq.message import Message
from liteq.outcome import Outcome, Revoked, Succeeded
from liteq.result import ResultSet
from liteq.worker import Worker
from liteq.workers.runner import TaskRunner, job, read_answer

pytestmark = pytest.mark.redis


class Shifted(SystemClock):
    """A machine's clock that is so many seconds off."""

    def __init__(self, seconds: float) -> None:
        self.now = lambda: time.time() + seconds  # type: ignore[method-assign]


@pytest.fixture(params=[3_600.0, -3_600.0], ids=["fast", "slow"])
def clock(request: pytest.FixtureRequest) -> Shifted:
    return Shifted(request.param)


@pytest.fixture
def broker(server: RedisServer, clock: Shifted) -> Iterator[RedisBroker]:
    opened = RedisBroker(server.url)
    opened.clock = clock  # the server's still counts in the store
    yield opened
    opened.close()


@pytest.fixture
def app(broker: RedisBroker, clock: Shifted) -> Liteq:
    made = Liteq("shop", set_as_current=False)
    made.exchange_store(broker, clock)
    made.task(name="shop.double")(lambda number: 2 * number)
    return made


def sent(broker: RedisBroker, seconds: float) -> Message:
    """Send a call that expires so many seconds from now."""
    message = make("shop.double", b"[[21], {}]", expires_at=time.time() + seconds)
    broker.enqueue([message])
    return message


def test_who_waits_is_told_that_a_call_expired_when_it_has(
    app: Liteq, broker: RedisBroker
) -> None:
    alive, late = sent(broker, 100), sent(broker, -1)

    assert app.AsyncResult(alive.id).state == "PENDING"
    assert app.AsyncResult(late.id).state == "REVOKED"
    both = ResultSet([app.AsyncResult(alive.id), app.AsyncResult(late.id)], app=app)
    assert both.completed_count() == 0
    assert not both.ready()
    assert both.results[1].ready()
    with pytest.raises(TimeoutError):
        app.AsyncResult(alive.id).get(timeout=0)
    with pytest.raises(TaskRevokedError, match="expired"):
        app.AsyncResult(late.id).get(timeout=0)


def test_who_awaits_is_told_so_too(app: Liteq, broker: RedisBroker) -> None:
    alive, late = sent(broker, 100), sent(broker, -1)

    with pytest.raises(TimeoutError):
        asyncio.run(app.AsyncResult(alive.id).aget(timeout=0))
    with pytest.raises(TaskRevokedError, match="expired"):
        asyncio.run(app.AsyncResult(late.id).aget(timeout=0))


def test_a_worker_starts_what_has_not_expired(app: Liteq, broker: RedisBroker) -> None:
    message = sent(broker, 100)
    ready = threading.Event()
    worker = Worker(
        app, pool="threads", concurrency=1, install_signals=False, on_ready=ready.set
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        assert ready.wait(10)
        assert app.AsyncResult(message.id).get(timeout=10) == 42
    finally:
        worker.stop()
        thread.join(10)


def test_a_worker_starts_nothing_that_expired_after_its_claim(
    app: Liteq, broker: RedisBroker, clock: Shifted
) -> None:
    early, late = sent(broker, 100), sent(broker, 0.3)
    worker = enlist(broker)
    leases = broker.claim(worker, ["default"], 2)
    assert {lease.id for lease in leases} == {early.id, late.id}

    # By more than the answer that told how far the clocks are apart may have been on its way.
    wait_until(lambda: time.time() > (late.expires_at or 0) + 0.5)

    runner = TaskRunner(Executor(app.tasks, ExecutorSettings(clock=clock)))

    def run(at: int) -> Outcome:
        expires_at = leases[at].packed[6] - broker.ahead
        payload = job(leases[at], expires_at=expires_at)
        return read_answer(runner.run(payload, lambda data: None, at))

    assert isinstance(run(0), Succeeded)
    assert run(1) == Revoked("expired")


def test_beats_agree_on_the_time_whatever_their_machines_say(
    app: Liteq, broker: RedisBroker, server: RedisServer
) -> None:
    """One whose clock is an hour off fires every second, and leaves nothing behind that the
    others would wait for."""
    app.conf.beat_schedule = {"tick": {"task": "shop.double", "schedule": 1.0, "args": (1,)}}
    off = Beat(app, name="off")
    right_broker = RedisBroker(server.url)
    right = Beat(other_app(right_broker, app.conf.beat_schedule), name="right")
    began = time.time()
    for beat in (off, right):
        beat.start()

    while off.fired < 2:
        assert time.time() < began + 10
        off.tick()
    [row] = broker.schedules()
    assert row.due_at is not None
    assert abs(row.due_at - time.time()) < 1.5
    off.close()
    while right.fired < 1:
        assert time.time() < began + 20
        right.tick()
    right_broker.close()


def test_an_entry_that_is_added_counts_from_the_servers_now(
    app: Liteq, broker: RedisBroker
) -> None:
    app.schedules.add("later", "shop.double", 10.0, args=(1,))

    [row] = broker.schedules()
    assert row.due_at is not None
    assert abs(row.due_at - time.time() - 10) < 1.5


def test_a_clock_that_is_set_while_a_beat_runs_changes_nothing(
    app: Liteq, broker: RedisBroker, clock: Shifted
) -> None:
    app.conf.beat_schedule = {"tick": {"task": "shop.double", "schedule": 30.0, "args": (1,)}}
    beat = Beat(app)
    beat.start()
    beat.tick()
    for seconds in (7_200.0, -7_200.0, 0.0):
        clock.now = lambda seconds=seconds: time.time() + seconds  # type: ignore[method-assign, misc]
        assert beat.tick() > 20
    assert beat.fired == 0


def other_app(broker: RedisBroker, beat_schedule: object) -> Liteq:
    made = Liteq("shop", set_as_current=False)
    made.exchange_store(broker, SystemClock())
    made.task(name="shop.double")(lambda number: 2 * number)
    made.conf.beat_schedule = beat_schedule
    return made
