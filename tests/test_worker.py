"""The worker's loop around the pools of one process, on a store in memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import selectors
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from api import app_in_memory, forget_current, record
from world import make, wait_until

from liteq import BoundTask, Liteq, embedded, serializers, signals
from liteq.brokers.base import Step
from liteq.brokers.sqlite import SqliteBroker
from liteq.canvas import chain, group
from liteq.exceptions import (
    BrokerError,
    BrokerUnavailable,
    EncodeError,
    ImproperlyConfigured,
    SoftTimeLimitExceeded,
    StoreLost,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerShutdown,
    WorkerTerminate,
)
from liteq.outcome import Lost, Released, Succeeded
from liteq.systemd import Notifier
from liteq.worker import EXIT_STORE, Worker
from liteq.workers.attempts import Attempts
from liteq.workers.housekeeping import Housekeeping
from liteq.workers.timelimits import TimeLimits


@pytest.fixture
def app() -> Iterator[Liteq]:
    with app_in_memory() as made:
        yield made


class Heard:
    """What the receivers of some signals were told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self._receivers: list[tuple[signals.Signal, Callable[..., None]]] = []

    def listen(self, *names: str, raises: BaseException | None = None) -> None:
        for name in names:

            def receiver(_name: str = name, **kwargs: Any) -> None:
                self.told.append((_name, kwargs))
                if raises is not None:
                    raise type(raises)(*raises.args)

            signal = getattr(signals, name)
            signal.connect(receiver, weak=False)
            self._receivers.append((signal, receiver))

    def names(self) -> list[str]:
        return [name for name, _ in self.told]

    def close(self) -> None:
        for signal, receiver in self._receivers:
            signal.disconnect(receiver)


@pytest.fixture
def heard() -> Iterator[Heard]:
    made = Heard()
    yield made
    made.close()


@contextmanager
def running(app: Liteq, **options: Any) -> Iterator[Worker]:
    """A worker in a thread, stopped at the end; `codes` gets its exit code."""
    ready = threading.Event()
    codes = options.pop("codes", [])
    options = {"concurrency": 1, "pool": "threads", **options}
    made = Worker(app, install_signals=False, on_ready=ready.set, **options)
    thread = threading.Thread(target=lambda: codes.append(made.run()), name="the worker")
    thread.start()
    assert ready.wait(10)
    try:
        yield made
    finally:
        made.stop()
        thread.join(10)
        assert not thread.is_alive()


# Time limits


def test_a_soft_limit_is_raised_in_a_thread(app: Liteq) -> None:
    @app.task(soft_time_limit=0.05)
    def busy() -> str:
        try:
            while True:
                pass
        except SoftTimeLimitExceeded:
            return "cleaned up"

    with running(app):
        assert busy.delay().get(timeout=10) == "cleaned up"


def test_a_soft_limit_is_raised_at_an_await(app: Liteq) -> None:
    @app.task(soft_time_limit=0.05)
    async def waiting() -> str:
        try:
            await asyncio.sleep(1000)
        except SoftTimeLimitExceeded:
            return "cleaned up"
        return "never"

    with running(app, pool="asyncio"):
        assert waiting.delay().get(timeout=10) == "cleaned up"


def test_a_soft_limit_is_raised_in_the_main_thread_by_an_alarm(app: Liteq) -> None:
    @app.task(soft_time_limit=0.05)
    def sleepy() -> str:
        try:
            time.sleep(1000)  # the alarm ends it
        except SoftTimeLimitExceeded:
            return "cleaned up"
        return "never"

    result = sleepy.delay()
    app.run_until_empty()

    assert result.get(timeout=1) == "cleaned up"


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("pool", ["threads", "asyncio", "solo"])
def test_a_soft_limit_that_passes_before_the_body_is_not_lost(
    app: Liteq, pool: str, is_async: bool
) -> None:
    def prepare(**_: Any) -> None:
        time.sleep(0.2)

    def begin() -> None:
        raise AssertionError("it has begun")

    async def abegin() -> None:
        await asyncio.sleep(1000)  # a handler on the loop stops that, and its timers

    result = app.task(name="late", soft_time_limit=0.05)(abegin if is_async else begin).delay()
    calm = app.task(name="calm")(lambda: "calm").delay()
    signals.task_prerun.connect(prepare)
    try:
        Worker(app, install_signals=False, concurrency=1, pool=pool, burst=True).run()
    finally:
        signals.task_prerun.disconnect(prepare)

    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=1)
    assert calm.get(timeout=1) == "calm"


def test_a_soft_limit_longer_than_an_alarm_can_be_is_none(app: Liteq) -> None:
    result = app.task(soft_time_limit=1e12)(lambda: "done").delay()
    app.run_until_empty()

    assert result.get(timeout=1) == "done"


def test_a_hard_limit_cancels_a_coroutine(app: Liteq) -> None:
    cancelled = threading.Event()

    @app.task(time_limit=0.05)
    async def waiting() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            cancelled.set()

    with running(app, pool="asyncio"), pytest.raises(TimeLimitExceeded, match=r"0\.05"):
        waiting.delay().get(timeout=10)
    assert cancelled.is_set()


def test_a_limit_of_zero_is_none_wherever_it_is_set(app: Liteq) -> None:
    app.conf.task_time_limit = app.conf.task_soft_time_limit = 0
    app.task(name="plain")(lambda: None)
    app.task(name="zero", time_limit=0, soft_time_limit=0)(lambda: None)
    app.task(name="own", time_limit=9, soft_time_limit=8)(lambda: None)
    app.task(name="freed", time_limit=9, soft_time_limit=8)(lambda: None)
    unlimited = TimeLimits(
        lambda: app.tasks, app.conf.task_soft_time_limit, app.conf.task_time_limit
    )
    limited = TimeLimits(lambda: app.tasks, 5.0, 6.0)
    for limits in (unlimited, limited):
        limits.override("freed", 0, 0)

    names = ("plain", "zero", "own", "freed")
    assert [unlimited.of(name) for name in names] == [
        (None, None), (None, None), (8, 9), (None, None),
    ]  # fmt: skip
    assert [limited.of(name) for name in names] == [
        (5, 6), (5, 6), (8, 9), (None, None),
    ]  # fmt: skip
    sent = app.tasks["own"].apply_async(time_limit=0, soft_time_limit=0)
    (stored,) = app.broker.get([sent.id]).values()
    assert (stored.message.soft_time_limit, stored.message.time_limit) == (None, None)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("threads", ["the threads pool cannot enforce the hard time limit of: a, b"]),
        (
            "solo",  # outside of the main thread
            [
                "the solo pool cannot enforce the soft time limit of: c",
                "the solo pool cannot enforce the hard time limit of: a, b",
            ],
        ),
        ("asyncio", ["the asyncio pool cannot enforce the hard time limit of: a"]),
    ],
)
def test_a_pool_says_at_its_start_which_limits_it_cannot_keep(
    app: Liteq, pool: str, expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    @app.task(name="a", time_limit=10)
    def plain() -> None: ...

    @app.task(name="b", time_limit=10)
    async def coroutine() -> None: ...

    @app.task(name="c", soft_time_limit=10)
    def soft() -> None: ...

    with running(app, pool=pool):
        pass

    said = [r.getMessage() for r in caplog.records if "cannot enforce" in r.getMessage()]
    assert said == [f"{one}. The prefork pool can" for one in expected]


@pytest.mark.parametrize(("allowed", "warnings"), [(20.0, 1), (20.5, 0)])
def test_a_watchdog_that_a_hung_store_would_set_off_is_warned_of(
    app: Liteq,
    allowed: float,
    warnings: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app.broker.longest_call = 10.0
    notify = Notifier(str(tmp_path / "notify"), watchdog_interval=allowed / 2)

    with running(app, pool="threads", notify=notify):
        pass

    notify.close()
    said = [r.getMessage() for r in caplog.records if "WatchdogSec" in r.getMessage()]
    assert said == warnings * [
        "WatchdogSec=20 is too short: a call may wait 10 s for a store that hangs, and systemd "
        "would kill this worker and its tasks for that. Set it above 20"
    ]


@pytest.mark.parametrize("pool", ["threads", "asyncio", "solo"])
def test_a_pool_without_children_says_that_it_replaces_none(
    app: Liteq, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.worker_max_memory_per_child = 200_000

    with running(app, pool=pool, max_tasks_per_child=9):
        pass

    said = [r.getMessage() for r in caplog.records if "per_child" in r.getMessage()]
    assert said == [
        f"the {pool} pool has no children to replace, so that these have no effect: "
        "max_tasks_per_child = 9, max_memory_per_child = 200000. The prefork pool has"
    ]


# Revoking and expiring


def test_a_coroutine_is_terminated_by_cancellation_and_its_neighbour_is_not(
    app: Liteq, heard: Heard
) -> None:
    heard.listen("task_revoked")
    started: list[str] = []
    go = threading.Event()

    @app.task
    async def waiting(name: str) -> str:
        started.append(name)
        while not go.is_set():  # noqa: ASYNC110 (it is set by another thread)
            await asyncio.sleep(0.005)
        return name

    with running(app, pool="asyncio", concurrency=2):
        ended, spared = waiting.delay("a"), waiting.delay("b")
        wait_until(lambda: len(started) == 2)
        assert ended.revoke(terminate=True) == "signalled"
        with pytest.raises(TaskRevokedError, match="terminated"):
            ended.get(timeout=10)
        go.set()
        assert spared.get(timeout=10) == "b"

    ((_, told),) = heard.told
    assert (told["sender"], told["request"].id) == (waiting, ended.id)
    assert (told["terminated"], told["expired"]) == (True, False)


def test_a_pool_that_cannot_end_a_run_says_so_and_lets_it_finish(
    app: Liteq, caplog: pytest.LogCaptureFixture
) -> None:
    started, go = threading.Event(), threading.Event()

    @app.task
    def work() -> str:
        started.set()
        go.wait(10)
        return "done"

    with running(app):
        result = work.delay()
        assert started.wait(10)
        result.revoke(terminate=True)
        wait_until(lambda: "cannot end Task" in caplog.text)
        go.set()
        assert result.get(timeout=10) == "done"
    assert (
        f"the threads pool cannot end Task {work.name}[{result.id}]: it runs on" in caplog.text
    )


def test_what_expired_is_revoked_unstarted_and_its_receivers_told(
    app: Liteq, heard: Heard
) -> None:
    heard.listen("task_revoked")
    app.broker = CarelessBroker(None)
    ran: list[int] = []

    @app.task
    def work(n: int) -> None:
        ran.append(n)

    expired = work.apply_async((1,), expires=0.05)
    wait_until(lambda: time.time() > expired_at(app, expired))
    with running(app):
        work.delay(2).get(timeout=10)
        with pytest.raises(TaskRevokedError, match="expired"):
            expired.get(timeout=10)

    assert ran == [2]
    ((_, told),) = heard.told
    assert (told["terminated"], told["expired"], told["request"].args) == (False, True, (1,))


class CarelessBroker(SqliteBroker):
    """A store whose upkeep does not get to expired messages before a claim does."""

    def maintain(self) -> bool:
        return False


def expired_at(app: Liteq, result: Any) -> float:
    expires = record(app, result.id).message.expires_at
    assert expires is not None
    return expires


# Order and results


def test_the_highest_priority_runs_first_over_all_queues(app: Liteq) -> None:
    ran: list[tuple[str, int]] = []

    @app.task
    def work(queue: str, priority: int) -> None:
        ran.append((queue, priority))

    for queue, priority in [("a", 0), ("b", 9), ("a", 5), ("b", 5), ("a", 9)]:
        work.apply_async((queue, priority), queue=queue, priority=priority)
    app.run_until_empty(queues=["a", "b"])

    assert ran == [("b", 9), ("a", 9), ("a", 5), ("b", 5), ("a", 0)]


def test_weighted_queues_are_served_in_turns(app: Liteq) -> None:
    order: list[str] = []

    @app.task
    def note(queue: str) -> None:
        order.append(queue)

    note.enqueue_many([("high",)] * 90, queue="high")
    note.enqueue_many([("low",)] * 90, queue="low", priority=9)  # which no weight asks for
    worker = Worker(
        app,
        queues=["high:3", "low:1", "empty:5"],
        pool="solo",
        burst=True,
        install_signals=False,
    )

    assert worker.run() == 0

    assert worker.queues == ("high", "low", "empty")
    assert len(order) == 180
    assert order[:80].count("low") == pytest.approx(20, abs=8)  # a look ahead is one turn


@pytest.mark.parametrize("wrong", [1.5, float("nan"), "2", -1, True])
def test_a_concurrency_that_is_no_number_of_tasks_is_refused(app: Liteq, wrong: Any) -> None:
    with pytest.raises(
        ImproperlyConfigured, match=r"concurrency \(how many tasks run at once\) must be"
    ):
        Worker(app, concurrency=wrong)


@pytest.mark.parametrize("wrong", [float("inf"), float("nan"), -1, "soon"])
@pytest.mark.parametrize("name", ["grace", "time_limit", "soft_time_limit"])
def test_a_duration_of_a_worker_without_end_or_below_zero_is_refused(
    app: Liteq, name: str, wrong: Any
) -> None:
    told = re.escape(f"{name} = {wrong!r} must be a number of seconds")
    with pytest.raises(ImproperlyConfigured, match=told):
        Worker(app, pool="solo", **{name: wrong})


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_worker_in_a_program_is_given_no_grace_period_without_end(
    app: Liteq, pool: str
) -> None:
    with (
        pytest.raises(ImproperlyConfigured, match="grace = inf must be"),
        embedded.worker(app, pool=pool, grace=float("inf")),
    ):
        pass


def test_a_weight_of_zero_is_refused(app: Liteq) -> None:
    with pytest.raises(ImproperlyConfigured, match="the weight of queue 'low'"):
        Worker(app, queues=["high:3", "low:0"])


def test_a_worker_raises_the_priority_of_what_waits(app: Liteq) -> None:
    app.conf.worker_priority_ageing = 0.001
    app.pause_queue("default")

    @app.task
    def poor() -> None: ...

    waiting = poor.apply_async(priority=1)

    with running(app):
        assert wait_until(lambda: app.broker.get([waiting.id])[waiting.id].packed[4] == 9)


def test_a_result_that_cannot_be_stored_fails_its_task_with_its_path(app: Liteq) -> None:
    @app.task
    def work() -> Any:
        return {"lock": threading.Lock()}

    result = work.delay()
    app.run_until_empty()

    with pytest.raises(EncodeError, match=r"result\['?lock'?\]|result\.lock"):
        result.get(timeout=1)


def test_hundreds_of_coroutines_run_at_once(app: Liteq) -> None:
    together = 300
    inside: list[asyncio.Event] = []

    @app.task
    async def work() -> int:
        inside.append(gone := asyncio.Event())
        if len(inside) == together:
            for event in inside:
                event.set()
        await gone.wait()
        return 1

    with running(app, pool="asyncio", concurrency=together):
        results = [work.delay() for _ in range(together)]
        assert sum(result.get(timeout=20) for result in results) == together


@pytest.mark.parametrize("pool", ["asyncio", "threads"])
def test_what_a_coroutine_cancels_by_itself_is_its_own_affair(app: Liteq, pool: str) -> None:
    started: list[str] = []

    async def fail() -> None:
        raise ValueError("a part has failed")

    @app.task
    async def in_parts() -> None:
        started.append("in_parts")
        async with asyncio.TaskGroup() as parts:
            parts.create_task(fail())
            parts.create_task(asyncio.sleep(1000))

    @app.task
    async def cancelled(swallow: bool) -> str:
        started.append("cancelled")
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        with contextlib.suppress(asyncio.CancelledError if swallow else ValueError):
            await asyncio.sleep(1000)
        return "swallowed"

    with running(app, pool=pool):
        results = [in_parts.delay(), cancelled.delay(False), cancelled.delay(True)]
        ends = [result.get(timeout=10, propagate=False) for result in results]

    assert "unhandled errors in a TaskGroup" in str(ends[0])
    assert "CancelledError" in str(ends[1])
    assert ends[2] == "swallowed"
    assert started == ["in_parts", "cancelled", "cancelled"]


def test_a_full_worker_sleeps_although_a_message_is_due(app: Liteq) -> None:
    started, go = threading.Event(), threading.Event()

    @app.task
    def work() -> None:
        started.set()
        go.wait(10)

    with running(app):
        loop = next(t for t in threading.enumerate() if t.name == "the worker")
        work.apply_async(countdown=0.2)
        due = time.monotonic() + 0.25
        work.delay()
        assert started.wait(10)
        wait_until(lambda: time.monotonic() > due)
        clock = time.pthread_getcpuclockid(loop.ident or 0)
        before = time.clock_gettime(clock)
        wait_until(lambda: time.monotonic() > due + 0.4)
        spent = time.clock_gettime(clock) - before
        go.set()

    assert spent < 0.1


class Pace:
    """How often a worker looks for what no wake-up told of, and how often it beats."""

    def __init__(self, app: Liteq, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: list[bool] = []  # of each look
        self.beats = 0
        self.beats_at: list[int] = []  # each look
        self._changed, self._beat = app.broker.changed, app.broker.beat
        monkeypatch.setattr(Housekeeping, "backstop", 0.02)
        monkeypatch.setattr(app.broker, "changed", self._look)
        monkeypatch.setattr(app.broker, "beat", self._count)

    def _look(self) -> bool:
        self.answers.append(self._changed())
        self.beats_at.append(self.beats)
        return self.answers[-1]

    def _count(self, *args: Any, **kwargs: Any) -> bool:
        self.beats += 1
        return self._beat(*args, **kwargs)

    def looks(self) -> int:
        return len(self.answers)


@pytest.fixture(params=["queued", "leased"])
def two(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Liteq, Liteq]]:
    """An app, and another on its store that wakes nobody: what it sends waits in its queue, or
    the lease of one that stands by is lost on the way."""
    app, silent = (Liteq("shop", broker=f"sqlite:///{tmp_path}/store") for _ in range(2))
    monkeypatch.setattr(silent.broker, "_wake_workers", lambda *a, **kw: None)
    if request.param == "leased":
        monkeypatch.setattr(silent.broker, "_hand", lambda *_: True)
    else:
        monkeypatch.setattr(silent.broker, "_all_busy_until", float("inf"))
    yield app, silent
    forget_current()


def work_of(app: Liteq) -> threading.Event:
    """Return what is set when the task `work` runs."""
    ran = threading.Event()
    app.task(name="work")(ran.set)
    return ran


def test_an_idle_worker_leaves_the_store_alone_and_finds_what_no_wake_up_told_of(
    two: tuple[Liteq, Liteq], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Housekeeping, "quiet", 1_000)
    app, silent = two
    app.broker.slowest_beat = 60.0
    answers = steps_of(app, monkeypatch)
    pace = Pace(app, monkeypatch)
    ran = work_of(app)

    with running(app):
        wait_until(lambda: pace.looks() > 5)
        before = len(answers)
        wait_until(lambda: pace.looks() > 15)
        meanwhile = len(answers) - before
        beats = pace.beats
        silent.send_task("work")
        assert ran.wait(10)
    assert meanwhile == 0
    assert pace.beats == beats  # which would have found it, too


def test_where_nothing_happens_a_worker_looks_with_its_heartbeats_alone(
    two: tuple[Liteq, Liteq], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, silent = two
    app.broker.slowest_beat = 0.5
    pace = Pace(app, monkeypatch)
    ran = work_of(app)

    with running(app) as worker:
        wait_until(lambda: worker._housekeeping.is_quiet())
        quiet = pace.looks()
        wait_until(lambda: pace.looks() >= quiet + 4)
        silent.send_task("work")
        assert ran.wait(10)
        wait_until(lambda: True in pace.answers[quiet:])
        found = pace.answers.index(True, quiet)
        wait_until(lambda: pace.looks() > found + 2)
    beats = [at - pace.beats_at[quiet] for at in pace.beats_at[quiet : quiet + 4]]
    assert beats == [0, 1, 2, 3]
    assert pace.beats_at[found + 2] - pace.beats_at[found] < 2  # soon again


def test_a_worker_that_has_had_work_looks_soon(
    two: tuple[Liteq, Liteq], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, _ = two
    app.broker.slowest_beat = 60.0
    pace = Pace(app, monkeypatch)
    task = app.task(lambda: "done")

    with running(app) as worker:
        wait_until(lambda: worker._housekeeping.is_quiet())
        quiet = pace.looks()
        assert task.delay().get(timeout=10) == "done"
        wait_until(lambda: pace.looks() > quiet)


# An idle worker that is woken


class Held:
    """Tasks that begin, and end when they may."""

    def __init__(self, app: Liteq) -> None:
        self.began: list[str] = []
        self._go = threading.Event()

        def held(name: str) -> str:
            self.began.append(name)
            self._go.wait(10)
            return name

        self.task: BoundTask[[str], str] = app.task(name="held")(held)

    def wait_for(self, *names: str) -> None:
        wait_until(lambda: sorted(self.began) == sorted(names))

    def end(self) -> None:
        self._go.set()


@pytest.fixture
def held(app: Liteq) -> Iterator[Held]:
    made = Held(app)
    yield made
    made.end()


@contextmanager
def idle(app: Liteq, **options: Any) -> Iterator[Worker]:
    """A worker that has looked into the store, and waits for a wake-up."""
    with running(app, **options) as worker:
        wait_until(lambda: not worker._membership.look)
        yield worker


@pytest.fixture
def without_backstop(app: Liteq, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a worker of the app find nothing by what it does every few seconds."""
    monkeypatch.setattr(Housekeeping, "backstop", 60.0)
    app.broker.slowest_beat = 60.0


def steps_of(app: Liteq, monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Return a list to which each answer of `step` will be added."""
    answers: list[Step] = []
    step = app.broker.step

    def recorded(*args: Any, **kwargs: Any) -> Step:
        answers.append(step(*args, **kwargs))
        return answers[-1]

    monkeypatch.setattr(app.broker, "step", recorded)
    return answers


def claims(answers: Sequence[Step]) -> list[str]:
    """Return the tasks of what steps have claimed."""
    return [lease.task for step in answers for lease in step.leases]


@pytest.mark.usefixtures("without_backstop")
def test_an_idle_worker_claims_nothing_by_itself(
    app: Liteq, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = steps_of(app, monkeypatch)
    task = app.task(lambda: "done")

    with idle(app) as worker:
        for _ in range(3):
            assert task.delay().get(timeout=5) == "done"
        assert worker._membership.standby == answers[0].standby != 0
    assert claims(answers) == []
    assert len(answers) == 1 + 3  # it said that it stands by, and settled each


@pytest.mark.parametrize("removed", ["socket", "folder"])
def test_a_worker_whose_socket_was_removed_listens_again_with_its_heartbeat(
    tmp_path: Path, removed: str
) -> None:
    app = Liteq("shop", broker=f"sqlite:///{tmp_path}/store")
    app.broker.slowest_beat = 1.0
    task = app.task(lambda: "done")

    with idle(app) as worker:
        folder = tmp_path / "store/wake"
        if removed == "folder":
            shutil.rmtree(folder)
        else:
            for socket in folder.iterdir():
                socket.unlink()

        def listens() -> bool:
            mailbox = worker._membership._mailbox  # none while it is being made anew
            return mailbox is not None and not mailbox.is_gone()

        wait_until(lambda: list(folder.glob("w*")) and listens(), within=30)
        assert task.delay().get(timeout=30) == "done"
    forget_current()


@pytest.mark.usefixtures("without_backstop")
def test_a_worker_that_was_handed_a_task_heeds_the_next_wake_up_at_once(
    app: Liteq, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = steps_of(app, monkeypatch)
    with idle(app, concurrency=2):
        held.task.delay("first")
        held.wait_for("first")
        held.task.delay("second")

        held.wait_for("first", "second")
        held.end()
    assert claims(answers) == ["held"]  # the second, by a step


@pytest.mark.usefixtures("without_backstop")
def test_a_worker_that_was_handed_a_task_finds_what_is_due_while_that_runs(
    app: Liteq, held: Held
) -> None:
    with idle(app, concurrency=2):
        held.task.apply_async(("later",), countdown=0.3)
        held.task.delay("now")

        held.wait_for("now", "later")
        held.end()


@pytest.mark.usefixtures("without_backstop")
def test_a_worker_that_stands_by_is_woken_for_what_needs_a_step(
    app: Liteq, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = steps_of(app, monkeypatch)
    early = app.task(lambda: "done", name="early", acks_late=False)
    plain = app.task(lambda: "done", name="plain")

    with idle(app):
        for task in (early, plain, early, plain):
            assert task.delay().get(timeout=5) == "done"
    assert claims(answers) == ["early", "early"]


def test_a_worker_that_was_busy_from_its_start_stands_by_when_it_is_not(
    app: Liteq, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = steps_of(app, monkeypatch)
    task = app.task(lambda: "done", name="done")
    before = [task.delay() for _ in range(3)]

    with running(app) as worker:
        for result in before:
            assert result.get(timeout=5) == "done"
        wait_until(lambda: worker._membership.standby)
        assert task.delay().get(timeout=5) == "done"
    assert claims(answers) == ["done"] * 3


def test_a_worker_with_weighted_queues_claims_by_steps_alone(
    app: Liteq, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = steps_of(app, monkeypatch)
    task = app.task(lambda: "done", name="done")

    with idle(app, queues=["high:3", "low"]):
        assert task.apply_async(queue="low").get(timeout=10) == "done"
    assert claims(answers) == ["done"]


def test_who_listens_hears_of_what_was_handed_over(app: Liteq) -> None:
    task = app.task(lambda: "done")

    with idle(app) as worker, contextlib.closing(app.broker.mailbox()) as ear:
        app.broker.listen(ear, 60)
        wait_until(lambda: worker._dispatcher.heard)
        assert task.delay().get(timeout=10) == "done"
        assert task.delay().get(timeout=10) == "done"
    said = [body for body in app.broker.events(0).bodies if b"task-received" in body]
    assert len(said) == 2


@contextmanager
def out_of_reach(app: Liteq) -> Iterator[None]:
    """Have steps fail meanwhile."""

    def step(*_args: Any, **_kwargs: Any) -> Step:
        raise BrokerUnavailable("no step today")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app.broker, "step", step)
        yield


def test_a_worker_that_does_not_know_whether_it_stands_by_takes_nothing_that_is_brought(
    app: Liteq, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = steps_of(app, monkeypatch)
    task = app.task(lambda: "done", name="done")

    with idle(app) as worker:
        with out_of_reach(app):
            worker._membership.look_again()
            worker._requests.wake()
            wait_until(lambda: "no step today; trying again in" in caplog.text)
            result = task.delay()
        assert result.get(timeout=10) == "done"
        assert worker.refused == 0

    assert claims(answers) == ["done"]
    assert record(app, result.id).deliveries == 1


def test_what_is_brought_to_a_worker_that_stops_is_given_back(app: Liteq, held: Held) -> None:
    with idle(app, concurrency=2, grace=10) as worker:
        held.task.delay("first")
        held.wait_for("first")
        lease = next(iter(worker._attempts.leases.values()))
        worker.stop()
        wait_until(lambda: worker._stopping)
        other = lease._replace(token=worker._membership.standby)

        worker._take_over([other])

        assert [outcome for _, outcome in worker._attempts.settlements] == [Released()]
        worker._attempts.settlements.clear()
        held.end()


def test_a_task_that_the_worker_does_not_know_waits_for_one_that_does(app: Liteq) -> None:
    with idle(app):
        result = app.send_task("unknown")
        wait_until(lambda: record(app, result.id).state == "parked")
    assert record(app, result.id).deliveries == 0


@pytest.mark.usefixtures("without_backstop")
def test_an_idle_worker_looks_through_all_that_it_does_not_know(
    app: Liteq, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = steps_of(app, monkeypatch)
    known = app.task(lambda: "ran")
    app.broker.enqueue([make("unknown", priority=1) for _ in range(2_000)])

    with running(app) as worker:
        assert known.delay().get(timeout=10) == "ran"
        wait_until(lambda: worker._next_due is None and not worker._membership.look)
    assert len(answers) < 20  # and then it sleeps


# Stopping


def test_a_cold_stop_from_another_thread_gives_back_what_runs(app: Liteq) -> None:
    started, go = threading.Event(), threading.Event()

    @app.task
    def work() -> None:
        started.set()
        go.wait(10)

    codes: list[int] = []
    with running(app, codes=codes) as worker:
        result = work.delay()
        assert started.wait(10)
        worker.stop(cold=True)
        wait_until(lambda: codes)

    go.set()
    assert codes == [0]
    assert (record(app, result.id).state, record(app, result.id).deliveries) == ("queued", 0)
    assert app.broker.workers() == []


def test_receivers_hear_of_the_workers_life(app: Liteq, heard: Heard) -> None:
    heard.listen("worker_init", "worker_ready", "worker_shutting_down", "worker_shutdown")
    heard.listen("heartbeat_sent", "worker_process_init")
    app.broker.lease_timeout = 0.1

    with running(app, hostname="shop@here") as worker:
        wait_until(lambda: "heartbeat_sent" in heard.names())

    names = [name for name in heard.names() if name != "heartbeat_sent"]
    assert names == ["worker_init", "worker_ready", "worker_shutting_down", "worker_shutdown"]
    told = dict(heard.told)
    assert told["worker_ready"]["sender"] is worker
    stopping = told["worker_shutting_down"]
    assert (stopping["sender"], stopping["how"], stopping["sig"]) == (
        "shop@here",
        "Warm",
        "SIGTERM",
    )


_OF_A_TASK = ("task_received", "task_prerun", "task_postrun", "task_success", "task_failure")


@pytest.mark.parametrize("pool", ["threads", "asyncio", "solo"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_no_receiver_changes_how_a_task_ends(
    app: Liteq, heard: Heard, pool: str, kind: type[BaseException]
) -> None:
    if kind is SystemExit:
        heard.listen(*_OF_A_TASK[1:], raises=kind())
    else:
        heard.listen(*_OF_A_TASK, "worker_ready", "heartbeat_sent", raises=kind())

    @app.task
    def double(n: int) -> int:
        return 2 * n

    @app.task
    async def fail() -> None:
        raise ValueError("as it is meant")

    codes: list[int] = []
    with running(app, pool=pool, codes=codes):
        results = double.delay(4), fail.delay()
        assert results[0].get(timeout=10) == 8
        with pytest.raises(ValueError, match="as it is meant"):
            results[1].get(timeout=10)
        assert double.delay(5).get(timeout=10) == 10
    assert codes == [0]
    assert {"task_prerun", "task_postrun", "task_success", "task_failure"} <= set(heard.names())
    assert [record(app, one.id).deliveries for one in results] == [1, 1]


@pytest.mark.parametrize(
    ("order", "how", "code"),
    [
        (SystemExit(), "Warm", 0),
        (WorkerShutdown(3), "Warm", 3),
        (SystemExit("enough"), "Warm", 1),
        (WorkerTerminate(4), "Cold", 4),
    ],
)
@pytest.mark.parametrize("signal", ["task_received", "worker_ready"])
def test_a_receiver_in_the_worker_may_end_it_in_order(
    app: Liteq, heard: Heard, signal: str, order: SystemExit, how: str, code: int
) -> None:
    heard.listen(signal, raises=order)
    heard.listen("worker_shutting_down")

    @app.task
    def work() -> int:
        return 1

    result = work.delay()
    made = Worker(app, pool="threads", concurrency=1, install_signals=False)
    assert made.run() == code
    assert dict(heard.told)["worker_shutting_down"]["how"] == how
    assert record(app, result.id).state in ("succeeded", "queued")
    assert app.broker.workers() == []


def test_a_received_request_has_the_names_of_celerys(app: Liteq, heard: Heard) -> None:
    heard.listen("task_received")

    @app.task(name="shop.charge")
    def charge(n: int) -> int:
        return n

    with running(app, pool="solo"):
        sent = charge.apply_async((4,), headers={"tenant": "x"}, stamped_headers=["s"], s=1)
        sent.get(timeout=10)
    request = dict(heard.told)["task_received"]["request"]
    assert request.name == request.task_name == request.type == request.task == "shop.charge"
    assert request.task_id == request.id == sent.id
    assert (request.tenant, request.stamps, request.stamped_headers) == ("x", {"s": 1}, ["s"])
    told = request.request_dict
    assert (told["id"], told["task"], told["args"], told["tenant"]) == (
        sent.id,
        "shop.charge",
        (4,),
        "x",
    )
    assert told["delivery_info"] == request.delivery_info
    assert told["hostname"] == request.hostname


@pytest.mark.parametrize("how", ["state", "retry", "replace", "call"])
def test_half_a_character_fails_the_task_that_says_it_and_no_other(
    app: Liteq, how: str
) -> None:
    @app.task
    def plain() -> int:
        return 1

    @app.task(bind=True)
    def say(self: BoundTask) -> None:
        match how:
            case "state":
                self.update_state(state="half \ud800")
            case "retry":
                raise self.retry(queue="half \ud800", countdown=0)
            case "replace":
                raise self.replace(plain.s().set(queue="half \ud800"))
            case "call":
                plain.apply_async(queue="half \ud800")

    with running(app):
        with pytest.raises(EncodeError, match=r"half .*surrogate"):
            say.delay().get(timeout=10)
        assert plain.delay().get(timeout=10) == 1


# A store in trouble


class SickBroker(SqliteBroker):
    """A store that cannot be reached while `error` is set."""

    error: BrokerError | None = None

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def step(self, *args: Any, **options: Any) -> Any:
        self._check()
        return super().step(*args, **options)

    def beat(self, *args: Any, **options: Any) -> Any:
        self._check()
        return super().beat(*args, **options)

    def reclaim(self, *args: Any, **options: Any) -> Any:
        self._check()
        return super().reclaim(*args, **options)

    def peers(self) -> Any:
        self._check()
        return super().peers()

    def maintain(self) -> Any:
        self._check()
        return super().maintain()


def test_outcomes_wait_until_the_store_can_be_reached_again(
    app: Liteq, caplog: pytest.LogCaptureFixture
) -> None:
    broker = app.broker = SickBroker(None, lease_timeout=0.2)
    started, go = threading.Event(), threading.Event()

    @app.task
    def work() -> str:
        started.set()
        go.wait(10)
        return "done"

    with running(app):
        result = work.delay()
        assert started.wait(10)
        broker.error = BrokerUnavailable("no store today")
        go.set()
        wait_until(lambda: caplog.text.count("no store today; trying again in") >= 3)
        broker.error = None

        assert result.get(timeout=10) == "done"
    assert len(app.broker.attempts(result.id)) == 0


def test_of_what_a_task_says_while_the_store_is_away_the_last_is_kept(app: Liteq) -> None:
    broker = app.broker = SickBroker(None, lease_timeout=0.2)
    started, away, said, back = (threading.Event() for _ in range(4))

    @app.task(bind=True)
    def work(self: Any) -> None:
        started.set()
        away.wait(10)
        for done in range(500):
            self.progress(done, 500)
            self.checkpoint(done)
        said.set()
        back.wait(10)
        raise self.retry(countdown=3600)

    with running(app) as worker:
        result = work.delay()
        assert started.wait(10)
        broker.error = BrokerUnavailable("no store today")
        away.set()
        assert said.wait(10)
        wait_until(lambda: len(worker._attempts.notes()) == 2)
        assert record(app, result.id).note is None
        broker.error = None
        wait_until(lambda: record(app, result.id).note is not None)

        assert result.progress.done == 499
        assert record(app, result.id).message.checkpoint == "499"
        back.set()
        wait_until(lambda: result.state == "RETRY")


class BuggyBroker(SickBroker):
    """A store that fails once in a way that nobody has foreseen."""

    bug: Exception | None = None

    def _check(self) -> None:
        if self.bug is not None:
            bug, self.bug = self.bug, None
            self.error = None
            raise bug
        super()._check()


def test_what_an_unforeseen_error_has_given_back_keeps_its_checkpoint(app: Liteq) -> None:
    broker = app.broker = BuggyBroker(None, lease_timeout=60)
    go = threading.Event()
    worker = Worker(app, pool="threads", concurrency=1, install_signals=False)

    @app.task(bind=True)
    def work(self: Any) -> None:
        broker.error = BrokerUnavailable("no store today")
        self.checkpoint("kept")
        wait_until(worker._attempts.notes)
        broker.bug = RuntimeError("a bug")
        go.wait(10)

    result = work.delay()
    with pytest.raises(RuntimeError, match="a bug"):
        worker.run()
    go.set()

    assert record(app, result.id).state == "queued"
    assert record(app, result.id).message.checkpoint == '"kept"'


def test_an_interrupted_task_waits_with_its_checkpoint_until_the_store_is_back(
    app: Liteq, caplog: pytest.LogCaptureFixture
) -> None:
    broker = app.broker = SickBroker(None, lease_timeout=0.2)
    started, go = threading.Event(), threading.Event()

    @app.task(bind=True)
    def work(self: Any) -> Any:
        if self.request.checkpoint is None:
            started.set()
            go.wait(10)
            self.checkpoint("kept", interruptible=True)
        return self.request.checkpoint, self.request.deliveries

    caplog.set_level("INFO", "liteq")
    with running(app, hands_over=True) as worker:
        result = work.delay()
        assert started.wait(10)
        broker.error = BrokerUnavailable("no store today")
        worker.stop()
        go.set()
        wait_until(lambda: "interrupted after" in caplog.text)
        wait_until(lambda: caplog.text.count("no store today; trying again in") >= 3)
        broker.error = None

    assert record(app, result.id).state == "queued"
    app.run_until_empty()
    assert list(result.get(timeout=1)) == ["kept", 1]


class LitteredBroker(SqliteBroker):
    """A store with work for `slices` slices of upkeep, each of which takes `cost` seconds."""

    slices, cost = 9, 0.0

    def __init__(self, clock: list[float]) -> None:
        super().__init__(None)
        self.monotonic = clock
        self.began: list[float] = []

    def maintain(self) -> bool:
        self.began.append(self.monotonic[0])
        self.monotonic[0] += self.cost
        return len(self.began) <= self.slices


@pytest.mark.parametrize("cost", [0.004, 1.0])
def test_upkeep_has_a_share_of_the_workers_time_as_long_as_there_is_more(
    app: Liteq, monkeypatch: pytest.MonkeyPatch, cost: float
) -> None:
    clock = [1_000.0]
    broker = app.broker = LitteredBroker(clock)
    broker.cost = cost
    made = Worker(app, pool="solo", install_signals=False)
    select = selectors.DefaultSelector.select

    def sleep(self: selectors.DefaultSelector, timeout: float | None = None) -> Any:
        clock[0] += timeout or 0.0
        if len(broker.began) > broker.slices:
            made.stop()
        return select(self, 0)

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(selectors.DefaultSelector, "select", sleep)

    assert made.run() == 0

    pauses = [after - before for before, after in pairwise(broker.began[:9])]
    assert pauses == pytest.approx([4 * cost] * 8, abs=0.1 * cost)


class AbsentBroker(SqliteBroker):
    """A store that cannot be reached the first `absent` times that a worker comes."""

    absent = 0

    def register(self, *args: Any, **options: Any) -> int:
        self.absent -= 1
        if self.absent >= 0:
            raise BrokerUnavailable("not up yet")
        return super().register(*args, **options)


def test_a_patient_worker_waits_for_the_store(
    app: Liteq, caplog: pytest.LogCaptureFixture
) -> None:
    broker = app.broker = AbsentBroker(None)
    broker.absent = 3

    @app.task
    def work() -> str:
        return "done"

    with running(app, patient=True):
        assert work.delay().get(timeout=10) == "done"
    assert caplog.text.count("not up yet; trying again in") == 3


def test_a_worker_that_gathers_calls_sleeps_while_the_store_is_away(
    app: Liteq, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.broker.lease_timeout = 0.3
    wakings: list[float | None] = []
    select = selectors.DefaultSelector.select

    @app.task(flush_every=5, flush_interval=0.5)
    def work(calls: Any) -> None: ...

    def away(*args: Any, **kwargs: Any) -> Any:
        raise BrokerUnavailable("away")

    with running(app) as worker:
        result = work.delay()
        wait_until(lambda: worker._batching.waiting)
        with monkeypatch.context() as patch:
            patch.setattr(app.broker, "step", away)
            patch.setattr(app.broker, "beat", away)
            wait_until(lambda: worker._batching.next_at() < time.monotonic())
            assert worker._membership.is_late()
            patch.setattr(
                selectors.DefaultSelector,
                "select",
                lambda self, timeout=None: wakings.append(timeout) or select(self, timeout),
            )
            wait_until(lambda: len(wakings) > 1)
        assert result.get(timeout=10) is None
    assert 0 not in wakings[:2]


def test_a_worker_that_waits_for_the_store_sleeps_and_can_be_stopped(
    app: Liteq, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    wakings: list[float | None] = []
    select = selectors.DefaultSelector.select
    monkeypatch.setattr(
        selectors.DefaultSelector,
        "select",
        lambda self, timeout=None: wakings.append(timeout) or select(self, timeout),
    )
    broker = app.broker = AbsentBroker(None)
    broker.absent = 1_000_000
    made = Worker(app, pool="threads", concurrency=1, install_signals=False, patient=True)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(made.run()))
    thread.start()
    wait_until(lambda: "trying again in 0.2 s" in caplog.text)

    made.stop()
    thread.join(10)

    assert codes == [0]
    assert made.pool is not None
    assert made.pool.alive() == 0
    assert len(wakings) < 50  # four pauses, and what the pool says at its start


@pytest.mark.parametrize(
    ("settings", "patient", "tries"),
    [
        ({}, False, 0),
        ({"broker_connection_retry_on_startup": False}, True, 0),
        ({"broker_connection_retry": False}, True, 0),
        ({"broker_connection_max_retries": 2}, True, 2),
        (
            {
                "broker_connection_retry": False,
                "broker_connection_retry_on_startup": True,
                "broker_connection_max_retries": 2,
            },
            True,
            2,
        ),
    ],
)
def test_a_worker_waits_for_the_store_no_longer_than_it_is_to(
    app: Liteq,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    patient: bool,
    tries: int,
) -> None:
    app.conf.update(settings)
    broker = app.broker = AbsentBroker(None)
    broker.absent = 1_000_000
    made = Worker(app, pool="threads", concurrency=1, install_signals=False, patient=patient)

    with pytest.raises(BrokerUnavailable, match="not up yet"):
        made.run()

    assert caplog.text.count("trying again in") == tries


@pytest.mark.parametrize(
    ("settings", "tries"),
    [({"broker_connection_retry": False}, 0), ({"broker_connection_max_retries": 2}, 2)],
)
def test_a_store_that_is_lost_ends_a_worker_that_is_not_to_try_again(
    app: Liteq, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], tries: int
) -> None:
    app.conf.update(settings)
    broker = app.broker = SickBroker(None, lease_timeout=0.2)
    codes: list[int] = []

    with running(app, codes=codes):
        broker.error = BrokerUnavailable("no store today")
        wait_until(lambda: codes)

    assert codes == [EXIT_STORE]
    assert caplog.text.count("trying again in") == tries
    assert "stopping: no store today" in caplog.text


@pytest.mark.parametrize(
    ("settings", "grace"),
    [
        ({}, 25.0),
        ({"worker_shutdown_timeout": 3}, 3.0),
        ({"worker_soft_shutdown_timeout": 7}, 7.0),
        ({"worker_soft_shutdown_timeout": 7, "worker_shutdown_timeout": 3}, 3.0),
        ({"worker_soft_shutdown_timeout": 0}, 25.0),
    ],
)
def test_celerys_soft_shutdown_is_the_grace_period(
    app: Liteq, settings: dict[str, float], grace: float
) -> None:
    app.conf.update(settings)

    assert Worker(app, pool="solo").grace == grace
    assert Worker(app, pool="solo", grace=1).grace == 1


def test_a_damaged_store_ends_the_worker_with_its_own_exit_code(
    app: Liteq, caplog: pytest.LogCaptureFixture
) -> None:
    broker = app.broker = SickBroker(None, lease_timeout=0.2)
    codes: list[int] = []

    with running(app, codes=codes):
        broker.error = BrokerError("the store is damaged")
        wait_until(lambda: codes)

    assert codes == [EXIT_STORE]
    assert "stopping: the store is damaged" in caplog.text


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_worker_ends_with_its_store_whichever_thread_notices_it_first(
    tmp_path: Path, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Liteq("shop", broker=f"sqlite://{tmp_path}/s", set_as_current=False) as app:
        work = app.task(name="work")(lambda: None)
        codes: list[int] = []
        with running(app, pool=pool, codes=codes) as worker:
            work.delay().get(timeout=10)
            (tmp_path / "s" / "store.db").unlink()
            with contextlib.suppress(StoreLost):  # the worker may have been faster
                app.broker.check()
            work.delay()  # into the store that comes after, in which no worker registered
            wait_until(lambda: codes, 10)

    assert codes == [EXIT_STORE]
    assert worker.settled == 1
    assert "was deleted" in caplog.text


# What cannot work


def test_prefork_refuses_a_store_in_memory(app: Liteq) -> None:
    with pytest.raises(ImproperlyConfigured, match="cannot be shared with child processes"):
        Worker(app, pool="prefork", install_signals=False).run()
    assert app.broker.workers() == []


@pytest.mark.parametrize(
    ("setting", "value", "wrong"),
    [
        ("accept_content", ["json", "jsn"], "jsn"),
        ("accept_content", ["application/jsn"], "application/jsn"),
        ("result_accept_content", ["pikle"], "pikle"),
        ("task_serializer", "jsn", "jsn"),
        ("result_serializer", "jsn", "jsn"),
    ],
)
def test_a_format_that_nobody_has_registered_is_refused_before_a_claim(
    app: Liteq, setting: str, value: Any, wrong: str
) -> None:
    result = app.task(name="plain")(lambda: None).delay()
    app.conf[setting] = value

    with pytest.raises(
        ImproperlyConfigured, match=rf"setting {setting} = .* \(from code\): .*'{wrong}'"
    ):
        Worker(app, pool="threads", burst=True, install_signals=False).run()
    assert result.detail == "queued"


def test_a_format_that_a_task_module_registers_is_accepted(app: Liteq) -> None:
    @signals.import_modules.connect
    def imported(**_: Any) -> None:
        serializers.register("own", json.dumps, json.loads, "application/x-own")

    app.conf.accept_content = ["application/json", "own"]
    result = app.task(name="plain")(lambda: "done").delay()
    try:
        Worker(app, pool="threads", burst=True, install_signals=False).run()
    finally:
        serializers.unregister("own")

    assert result.get(timeout=1) == "done"


def test_a_worker_without_queues_is_refused(app: Liteq) -> None:
    with pytest.raises(ImproperlyConfigured, match="-X excludes them all"):
        Worker(app, exclude_queues=["default"])


def test_the_name_takes_celerys_marks(app: Liteq, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "big.example.org")

    names = [Worker(app, hostname=name).hostname for name in (None, "a@%n.%d", "b")]

    assert names == ["liteq@big.example.org", "a@big.example.org", "b@big.example.org"]


# In a program


def test_two_apps_in_one_process_have_workers_of_their_own() -> None:
    with app_in_memory() as first, app_in_memory() as second:

        @first.task(name="who")
        def one() -> str:
            return "first"

        @second.task(name="who")
        def two() -> str:
            return "second"

        with running(first), running(second, pool="asyncio"):
            assert one.delay().get(timeout=10) == "first"
            assert two.delay().get(timeout=10) == "second"


def test_a_program_may_fork_while_a_worker_runs_in_a_thread_of_it(tmp_path: Path) -> None:
    app = Liteq(
        "shop",
        broker=f"sqlite:///{tmp_path}/store",
        broker_transport_options={"durability": "normal"},
    )

    @app.task
    def double(n: int) -> int:
        return 2 * n

    ids = [f"from-child-{n}" for n in range(10)]
    try:
        with running(app, concurrency=2):
            here = [double.delay(n) for n in range(10)]
            for n, id in enumerate(ids):
                pid = os.fork()
                if pid == 0:
                    status = 1
                    try:
                        double.apply_async((n,), task_id=id)
                        status = 0
                    finally:
                        os._exit(status)
                assert os.waitpid(pid, 0)[1] == 0
                here.append(double.delay(n))
            assert [one.get(timeout=10) for one in here] == [2 * n for n in range(10)] * 2
            theirs = [app.AsyncResult(id).get(timeout=10) for id in ids]
            assert theirs == [2 * n for n in range(10)]
    finally:
        app.close()
        forget_current()


FROM_STDIN = """
from liteq import Liteq

app = Liteq("shop", broker="sqlite:///{store}")
FACTOR = 3

@app.task
def triple(n):
    return n * FACTOR

for pool in ("threads", "prefork"):
    with app.worker(concurrency=2, pool=pool):
        print(pool, [triple.delay(n).get(timeout=20) for n in range(3)])
"""


@pytest.mark.process
def test_a_script_from_standard_input_runs_its_tasks_in_every_pool(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-"],
        input=FROM_STDIN.format(store=tmp_path / "store"),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert ended.stdout == "threads [0, 3, 6]\nprefork [0, 3, 6]\n", ended.stderr
    assert ended.stderr == ""


# Workflows


@pytest.mark.parametrize("pool", ["threads", "asyncio", "solo"])
def test_every_pool_runs_workflows_and_those_that_tasks_put_in_their_place(
    app: Liteq, pool: str
) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    @app.task
    async def double(x: int) -> int:
        return 2 * x

    @app.task
    def total(values: list[int]) -> int:
        return sum(values)

    @app.task(bind=True)
    def spread(self: BoundTask, x: int) -> None:
        self.replace(group(add.s(x, n) for n in range(3)) | total.s())

    @app.task(bind=True)
    async def aspread(self: BoundTask, x: int) -> None:
        self.replace(group(double.s(n) for n in range(x)))

    with running(app, pool=pool, concurrency=2):
        work = chain(add.s(1, 1), group(spread.s(), double.s(), aspread.s()), double.s())
        result = work.delay()

        assert result.get(timeout=20) == [9, 4, [0, 2], 9, 4, [0, 2]]
        assert app.workflow(result.id).wait(timeout=20) == "succeeded"


def test_an_error_callback_in_a_worker_is_told_of_the_call_that_failed(app: Liteq) -> None:
    told = []

    @app.task
    def fail(x: int) -> None:
        raise ValueError(x)

    @app.task
    def tell(request: Any, exc: BaseException, traceback: str) -> None:
        told.append((request.id, request.task, list(request.args), request.hostname))

    failed = fail.apply_async([7], link_error=tell.s())
    worker = Worker(app, install_signals=False, concurrency=1, pool="threads", burst=True)
    worker.run()

    assert told == [(failed.id, fail.name, [7], worker.hostname)]


@pytest.mark.parametrize("useless", ["unknown", "expired"])
def test_a_burst_runs_what_is_behind_more_than_a_step_looks_at(
    app: Liteq, useless: str
) -> None:
    ran: list[int] = []
    last = app.task(ran.append)
    task = "unknown" if useless == "unknown" else last.name
    expires_at = app.broker.clock.now() - 1 if useless == "expired" else None
    app.broker.enqueue(
        [make(task, b"[[1], {}]", priority=1, expires_at=expires_at) for _ in range(1_200)]
    )
    last.delay(2)

    Worker(app, install_signals=False, concurrency=1, pool="threads", burst=True).run()

    assert ran == [2]


def test_a_burst_runs_all_that_is_due_at_one_moment(app: Liteq) -> None:
    order: list[int] = []
    note, clock = app.task(order.append), app.broker.clock
    run_at = clock.now() + 0.05
    bodies = (b"[[%d], {}]" % (n % 2) for n in range(1_200))
    app.broker.enqueue(
        [make(note.name, body, priority=body[2] % 2, run_at=run_at) for body in bodies]
    )
    wait_until(lambda: clock.now() >= run_at)

    Worker(app, install_signals=False, concurrency=1, pool="threads", burst=True).run()

    assert order == [1] * 600 + [0] * 600


def test_a_burst_goes_on_with_what_comes_of_its_last_task(app: Liteq) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    results = [chain(add.s(n, 1), *[add.s(1)] * 20).delay() for n in range(3)]

    Worker(app, install_signals=False, concurrency=1, pool="threads", burst=True).run()

    assert [result.state for result in results] == ["SUCCESS"] * 3


def test_what_a_pool_gives_back_unstarted_is_no_attempt() -> None:
    lease: Any = SimpleNamespace(packed=("id", "shop.add"), task="shop.add", id="id")
    dispatcher: Any = SimpleNamespace(heard=False)
    nothing: Any = None
    attempts = Attempts(
        time_limits=nothing,
        batching=nothing,
        notices=nothing,
        dispatcher=dispatcher,
        signal_of=nothing,
        find_failed=nothing,
        max_deliveries=3,
        ahead=nothing,
    )
    settlements: Any = [
        (lease, Released()),
        (lease, Succeeded(b"1", 0.1)),
        (lease, Lost("gone")),
    ]

    attempts.count(settlements, Step((True, True, False), (), None, {}))

    assert (attempts.settled, attempts.totals["shop.add"], attempts.refused) == (1, 1, 1)
