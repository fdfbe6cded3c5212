from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import pickle
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from api import app_in_memory, claim, forget_current, settle
from world import FakeClock, enlist

from liteq import (
    AsyncResult,
    BoundTask,
    Liteq,
    allow_join_result,
    digest,
    group,
    operating,
    waiting,
)
from liteq.brokers import wakeup
from liteq.brokers.base import Broker, Note
from liteq.exceptions import (
    IncompleteStream,
    StoreLost,
    TaskFailed,
    TaskRevokedError,
    TimeoutError,
    UnknownTaskId,
)
from liteq.failure import describe
from liteq.limits import limits_by_task
from liteq.offload import off_loop
from liteq.outcome import Failed, Ignored, Retried, Succeeded
from liteq.result import EagerResult, Progress, ResultSet, denied_join_result, result_from_tuple


@pytest.fixture
def app() -> Iterator[Liteq]:
    with app_in_memory() as app:
        yield app


@pytest.fixture
def add(app: Liteq) -> Any:
    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    return add


def looks_of(app: Liteq, monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Return what is released with each look of those who wait at the app's store."""
    looks, watch = threading.Semaphore(0), app.broker.watch

    def watched(*args: Any, **kwargs: Any) -> Any:
        found = watch(*args, **kwargs)
        looks.release()
        return found

    monkeypatch.setattr(app.broker, "watch", watched)
    return looks


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Call something from another thread, once so many wait at the app's store."""
    threads: list[threading.Thread] = []

    def call(app: Liteq, fun: Callable[[], Any], waiters: int = 1) -> None:
        looks = looks_of(app, monkeypatch)

        def work() -> None:
            for _ in range(waiters):
                assert looks.acquire(timeout=10)
            fun()

        threads.append(threading.Thread(target=work))
        threads[-1].start()

    yield call
    for thread in threads:
        thread.join()


def ok(value: Any) -> Succeeded:
    return Succeeded(json.dumps(value).encode(), 0.5)


# What the store says


def test_an_id_that_was_never_sent_is_pending_and_does_not_exist(app: Liteq) -> None:
    result = AsyncResult("nobody")

    assert (result.state, result.detail, result.exists()) == ("PENDING", "unknown", False)
    assert result.result is result.info is result.traceback is result.children is None
    assert result.date_done is result.args is result.kwargs is result.worker is None
    assert result.name is result.retries is result.queue is None
    assert not result.ready()


def test_a_result_follows_its_call_from_the_queue_to_the_end(app: Liteq, add: Any) -> None:
    result = add.apply_async((1, 2), queue="default")
    assert (result.state, result.detail, result.exists()) == ("PENDING", "queued", True)
    assert (result.name, result.args, result.kwargs, result.queue) == (
        "add",
        (1, 2),
        {},
        "default",
    )

    worker = app.broker.register("w1", ("default",), 1, {})
    (lease,) = app.broker.claim(worker, ("default",))
    assert (result.state, result.detail, result.worker) == ("STARTED", "running", "w1")

    app.broker.settle(worker, lease, ok(3))
    assert (result.state, result.status, result.detail) == ("SUCCESS", "SUCCESS", "succeeded")
    assert (result.result, result.info, result.get()) == (3, 3, 3)
    assert (result.ready(), result.successful(), result.failed()) == (True, True, False)
    assert isinstance(result.date_done, datetime)
    assert result.date_done.tzinfo is UTC


def test_what_has_ended_is_not_looked_up_again(app: Liteq, add: Any) -> None:
    result = add.delay(1, 2)
    settle(app, ok(3))
    assert result.ready()

    app.broker.forget([result.id])

    assert result.get() == 3
    assert not AsyncResult(result.id).exists()


def test_a_failure_is_raised_with_the_users_own_class(app: Liteq, add: Any) -> None:
    result = add.delay(1, 2)
    settle(app, Failed(describe(ValueError("bad"), traceback="Traceback…")))

    assert (result.state, result.failed(), result.successful()) == ("FAILURE", True, False)
    assert result.traceback == "Traceback…"
    with pytest.raises(ValueError, match="bad"):
        result.get()
    assert isinstance(result.get(propagate=False), ValueError)
    assert isinstance(result.result, ValueError)
    with pytest.raises(ValueError, match="bad"):
        result.throw()


def test_a_failure_of_a_class_that_is_not_here_tells_its_name(app: Liteq, add: Any) -> None:
    result = add.delay(1, 2)
    record = {"type": "Odd", "module": "far.away", "message": "m", "traceback": "t", "args": []}
    settle(app, Failed(json.dumps(record).encode()))

    with pytest.raises(TaskFailed, match=r"far\.away\.Odd: m"):
        result.get()


def test_a_retry_shows_its_reason(app: Liteq, add: Any) -> None:
    result = add.delay(1, 2)
    settle(app, Retried(time.time() + 60, describe(KeyError("k"), traceback="tb")))

    assert (result.state, result.detail, result.retries) == ("RETRY", "retrying", 1)
    assert isinstance(result.result, KeyError)
    assert result.traceback == "tb"
    (past,) = result.attempts
    assert (past.number, past.outcome, repr(past.exception)) == (1, "retried", "KeyError('k')")
    assert past.ended_at is not None
    assert past.ended_at.tzinfo is UTC


def test_a_call_with_more_attempts_than_are_kept_says_how_many_there_were(
    app: Liteq, add: Any
) -> None:
    result = add.delay(1, 2)
    for _ in range(52):
        settle(app, Retried(time.time(), describe(KeyError("k"), traceback="tb")))

    assert [past.number for past in result.attempts] == list(range(3, 53))
    _, earlier, third, *_ = digest.timeline(operating.describe(app, result.id), time.time())
    assert earlier.what == "2 earlier attempts"
    assert third.what.startswith("attempt 3 retried")


@pytest.mark.parametrize("damaged", [1e15, float("inf")])
def test_an_attempt_whose_times_are_damaged_has_none(clock: FakeClock, damaged: float) -> None:
    with app_in_memory(clock=clock) as app:

        @app.task
        def work() -> None: ...

        result = work.delay()
        worker = enlist(app.broker)
        (lease,) = app.broker.claim(worker, ["default"])
        clock.move_to(damaged)
        app.broker.settle(worker, lease, Failed(describe(ValueError("no"))))

        (past,) = result.attempts
        assert (past.outcome, past.ended_at, result.date_done) == ("failed", None, None)


def test_an_ignored_call_gives_nothing_at_once(app: Liteq, add: Any) -> None:
    result = add.delay(1, 2)
    settle(app, Ignored())

    assert (result.state, result.get(timeout=1), result.ready()) == ("IGNORED", None, True)


def test_a_state_of_the_tasks_own_is_shown_with_its_meta(app: Liteq, add: Any) -> None:
    result = add.delay(1, 2)
    worker = app.broker.register("w1", ("default",), 1, {})
    (lease,) = app.broker.claim(worker, ("default",))
    app.broker.step(worker, notes=[(lease, Note("HALF", b'{"n": 1}'))])

    assert (result.state, result.info, result.progress) == ("HALF", {"n": 1}, None)
    assert not result.ready()


def test_on_message_hears_of_each_change_until_the_end(broker: Broker) -> None:
    app = Liteq("shop", clock=broker.clock, set_as_current=False, task_always_eager=False)
    app.broker = broker
    result: AsyncResult[Any] = app.send_task("add", (1, 2))
    worker = broker.register("w1", ("default",), 1, {})
    heard: list[dict[str, Any]] = []

    def hear(message: dict[str, Any]) -> None:
        heard.append(message)
        match len(heard):
            case 1:
                broker.step(worker, notes=[(lease, Note("HALF", b'{"n": 1}'))])
            case 2:
                broker.step(worker, settlements=[(lease, ok(3))])

    (lease,) = broker.claim(worker, ("default",))

    assert result.get(timeout=10, on_message=hear) == 3
    assert [(m["task_id"], m["status"], m["result"]) for m in heard] == [
        (result.id, "STARTED", None),
        (result.id, "HALF", {"n": 1}),
        (result.id, "SUCCESS", 3),
    ]
    assert heard[2]["children"] == []
    assert heard[2]["date_done"] is not None


def test_on_message_is_told_of_a_failure_that_get_returns(app: Liteq, add: Any) -> None:
    results = ResultSet([add.delay(1, 2), add.delay(3, 4)], app=app)
    settle(app, ok(3))
    settle(app, Failed(describe(KeyError("k"), traceback="tb")))
    heard: list[Any] = []

    got = results.get(timeout=10, propagate=False, on_message=heard.append)

    assert got[0] == 3
    assert isinstance(got[1], KeyError)
    assert [(m["status"], m["traceback"]) for m in heard] == [
        ("SUCCESS", None),
        ("FAILURE", "tb"),
    ]


def test_a_call_that_made_no_other_has_an_empty_list_of_children(app: Liteq, add: Any) -> None:
    result = add.delay(1, 2)
    assert result.children is None
    settle(app, ok(3))

    assert result.children == []


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"done": 1, "total": 4, "message": "x"}, Progress(1, 4, "x")),
        ({"current": 1, "total": 4}, Progress(1, 4)),
        ({"done": 1, "total": None}, Progress(1)),
        ([1], None),
    ],
)
def test_progress_is_shown(app: Liteq, add: Any, meta: Any, expected: Any) -> None:
    result = add.delay(1, 2)
    worker = app.broker.register("w1", ("default",), 1, {})
    (lease,) = app.broker.claim(worker, ("default",))
    app.broker.step(worker, notes=[(lease, Note("PROGRESS", json.dumps(meta).encode()))])

    assert result.progress == expected


def test_progress_knows_its_fraction() -> None:
    assert Progress(1, 4).fraction == 0.25
    assert Progress(1).fraction is None


def test_children_are_results(app: Liteq, add: Any) -> None:
    result = add.delay(1, 2)
    child = add.delay(3, 4)
    settle(app, Succeeded(b"1", 0.0, json.dumps([child.id])))

    assert result.children == [child]


def test_a_call_that_expired_is_revoked_though_nobody_has_looked(clock: FakeClock) -> None:
    with app_in_memory(clock=clock) as app:
        result = app.task(name="work")(lambda: None).apply_async(expires=10)
        assert result.state == "PENDING"
        clock.advance(10)

        assert (result.state, result.ready()) == ("REVOKED", True)
        with pytest.raises(TaskRevokedError, match="expired"):
            result.get()


def test_a_call_that_expired_between_two_attempts_is_revoked(clock: FakeClock) -> None:
    with app_in_memory(clock=clock) as app:
        result = app.task(name="work")(lambda: None).apply_async(expires=10)
        error = describe(ValueError("a try"))
        settle(app, Retried(run_at=clock.now() + 100, error=error))
        assert isinstance(result.result, ValueError)
        clock.advance(10)

        assert (result.state, result.ready()) == ("REVOKED", True)
        assert isinstance(result.result, TaskRevokedError)
        with pytest.raises(TaskRevokedError, match="expired"):
            result.get()


# Waiting


def test_get_waits_for_the_end(app: Liteq, add: Any, later: Callable[..., None]) -> None:
    result = add.delay(1, 2)
    later(app, lambda: settle(app, ok(3)))

    assert result.get(timeout=10) == 3


def test_get_calls_back_with_the_id_and_the_value(app: Liteq, add: Any) -> None:
    result = add.delay(1, 2)
    settle(app, ok(3))
    seen = []

    result.get(callback=lambda id, value: seen.append((id, value)))

    assert seen == [(result.id, 3)]


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_get_gives_up_after_its_timeout(app: Liteq, add: Any, timeout: float) -> None:
    result = add.delay(1, 2)
    began = time.monotonic()

    with pytest.raises(TimeoutError, match=result.id):
        result.get(timeout=timeout)

    assert time.monotonic() - began < 2
    assert result.detail == "queued"


@pytest.mark.parametrize("timeout", [math.nan, "soon"])
def test_a_timeout_that_no_time_is_past_is_refused(app: Liteq, add: Any, timeout: Any) -> None:
    single, several = add.delay(1, 2), group(add.s(1, 2), add.s(3, 4)).delay()

    for wait in (single.get, several.get, app.workflow(several.id).wait):
        with pytest.raises(
            (TypeError, ValueError), match="timeout must be a number of seconds"
        ):
            wait(timeout=timeout)
    with pytest.raises((TypeError, ValueError), match="timeout must be a number of seconds"):
        asyncio.run(single.aget(timeout=timeout))


def test_get_of_what_is_ready_needs_no_time(app: Liteq, add: Any) -> None:
    result = add.delay(1, 2)
    settle(app, ok(3))

    assert result.get(timeout=0) == 3


def test_waiting_for_an_unknown_id_ends(app: Liteq) -> None:
    began = time.monotonic()

    with pytest.raises(UnknownTaskId, match="would never end"):
        AsyncResult("nobody").get()

    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "wait",
    [
        lambda result: result.get(),
        lambda result: result.get(timeout=60),
        lambda result: asyncio.run(result.aget()),
    ],
)
def test_a_wait_ends_when_the_store_is_deleted(
    tmp_path: Path, wait: Any, later: Callable[..., None]
) -> None:
    with Liteq("shop", broker=f"sqlite://{tmp_path}/s", set_as_current=False) as app:
        result = app.task(name="work")(lambda: None).delay()
        later(app, (tmp_path / "s" / "store.db").unlink)

        with pytest.raises(StoreLost):
            wait(result)


def test_all_who_wait_are_told_that_the_store_was_deleted(
    tmp_path: Path, later: Callable[..., None]
) -> None:
    with Liteq("shop", broker=f"sqlite://{tmp_path}/s", set_as_current=False) as app:
        work = app.task(name="work")(lambda: None)
        results = [work.delay() for _ in range(3)]
        later(app, (tmp_path / "s" / "store.db").unlink, waiters=3)

        with ThreadPoolExecutor(3) as pool:
            waits = [pool.submit(result.get, timeout=60) for result in results]
            assert [type(wait.exception(30)) for wait in waits] == [StoreLost] * 3
        with pytest.raises(StoreLost):  # though a new file is there since
            results[0].get(timeout=60)
        with pytest.raises(TimeoutError):
            work.delay().get(timeout=0.1)


def test_with_a_timeout_an_id_may_come_later(
    app: Liteq, add: Any, later: Callable[..., None]
) -> None:
    later(app, lambda: (add.apply_async((1, 2), task_id="soon"), settle(app, ok(3))))

    assert AsyncResult("soon").get(timeout=10) == 3


def test_waiting_for_a_forgotten_id_ends(
    app: Liteq, add: Any, later: Callable[..., None]
) -> None:
    result = add.delay(1, 2)
    settle(app, ok(3))
    app.broker.forget([result.id])

    with pytest.raises(UnknownTaskId):
        result.get()


def test_a_wait_ends_when_the_call_expires(app: Liteq, add: Any) -> None:
    result = add.apply_async((1, 2), expires=0.2)

    with pytest.raises(TaskRevokedError, match="expired"):
        result.get()


def test_a_revoked_call_is_raised_as_revoked(app: Liteq, add: Any) -> None:
    result = add.delay(1, 2)

    assert result.revoke() == "revoked"
    assert result.state == "REVOKED"
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get()


def test_revoke_says_what_became_of_the_call(app: Liteq, add: Any) -> None:
    done, running = add.delay(1, 2), add.delay(1, 2)
    settle(app, ok(3))
    claim(app)

    assert done.revoke() == "settled"
    assert running.revoke() == "running"
    assert running.revoke(terminate=True, signal="kill") == "signalled"
    assert AsyncResult("nobody").revoke() == "unknown"
    with pytest.raises(ValueError, match="no signal 'SIGNO'"):
        running.revoke(terminate=True, signal="SIGNO")


def test_many_threads_may_wait_at_once(app: Liteq, add: Any) -> None:
    results = [add.delay(n, n) for n in range(12)]
    values: dict[int, Any] = {}

    def wait(n: int) -> None:
        values[n] = results[n].get(timeout=20)

    threads = [threading.Thread(target=wait, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for n in range(12):
        settle(app, ok(n))
    for thread in threads:
        thread.join()

    assert values == {n: n for n in range(12)}


def test_mailboxes_are_used_again(app: Liteq, add: Any) -> None:
    for _ in range(3):
        result = add.delay(1, 2)
        settle(app, ok(3))
        result.get()

    assert len(waiting._post(app.broker)._spare) == 1


def test_a_process_that_waited_leaves_no_address_behind(tmp_path: Path) -> None:
    code = (
        "import asyncio, liteq\n"
        f"app = liteq.Liteq('shop', broker='sqlite://{tmp_path}/s')\n"
        "task = app.task(name='work')(lambda: None)\n"
        "try: task.delay().get(timeout=0.05)\n"
        "except liteq.exceptions.TimeoutError: pass\n"
        "loop = asyncio.new_event_loop()\n"
        "try: loop.run_until_complete(task.delay().aget(timeout=0.05))\n"
        "except liteq.exceptions.TimeoutError: pass\n"
        "import os; assert os.listdir(app.broker.folder / 'wake')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

    assert list((tmp_path / "s" / "wake").iterdir()) == []


def test_a_wait_that_is_too_long_says_where_the_call_is(app: Liteq, add: Any) -> None:
    store = app.broker
    later = add.apply_async((1, 2), countdown=60)
    misspelt = app.send_task("tasks.ad", (1, 2))
    assert not store.claim(enlist(store), ["default"], tasks=[add.name])

    def said(waiting: Any) -> str:
        with pytest.raises(TimeoutError) as caught:
            waiting.get(timeout=0.01)
        return str(caught.value)

    assert said(later).startswith(f"not ready after 0.01 s: {later.id} (scheduled, due in ")
    assert said(misspelt).endswith("(parked: its workers know no task 'tasks.ad')")
    assert said(app.AsyncResult("nope")).endswith("nope (not in the store)")
    many = [add.delay(n, n) for n in range(5)]
    assert said(ResultSet(many)).endswith(f"{many[2].id} (queued in 'default') and 2 more")


@pytest.mark.parametrize("awaited", [False, True])
def test_a_wait_that_is_too_long_says_what_is_in_the_way(
    app: Liteq, add: Any, *, awaited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LONG_ENOUGH", 0.0)
    store = app.broker

    @app.task(rate_limit="1/h")
    def slow() -> None: ...

    first, link = add.s(1, 2), add.s(3)
    chained = (first | link).apply_async(queue="others")
    lonely = add.apply_async((1, 2), queue="lonely")
    held = add.apply_async((1, 2), queue="held")
    store.pause("held")
    worker = enlist(store, "default", "held", "others", name="shop@here")
    running = add.apply_async((1, 2), queue="default")
    limited = slow.delay(), slow.delay()
    store.declare_limits(limits_by_task(app.tasks))
    assert store.claim(worker, ["default"], 5)

    def said(waiting: Any) -> str:
        def wait() -> Any:
            if awaited:
                return asyncio.run(waiting.aget(timeout=0.01))
            return waiting.get(timeout=0.01)

        with pytest.raises(TimeoutError) as caught:
            wait()
        return str(caught.value).partition("(")[2].removesuffix(")")

    assert said(lonely) == "queued in 'lonely', which no worker consumes"
    assert said(held) == "queued in 'held', which is paused"
    assert said(chained) == "waiting for other calls of its workflow"
    assert said(running).startswith("running for ")
    assert said(running).endswith(" on shop@here")
    assert "limited, under" in said(limited[1])


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_a_broker_that_nobody_holds_is_let_go_after_a_wait(tmp_path: Path, kind: str) -> None:
    url = f"sqlite://{tmp_path}/s" if kind == "sqlite" else "memory://"
    app = Liteq("shop", broker=url, set_as_current=False)
    with pytest.raises(TimeoutError):
        app.task(name="work")(lambda: None).delay().get(timeout=0.01)
    broker = weakref.ref(app.broker)

    del app
    gc.collect()

    assert broker() is None


def test_a_mailbox_that_the_garbage_collector_closes_holds_up_nobody(
    app: Liteq, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may do so in the middle of anything, as of the making of another mailbox."""
    broker = app.broker
    closed: list[None] = []

    class Loop:
        def __init__(self) -> None:
            self.itself = self  # only the collector lets it go

    def leave_one_behind() -> None:
        mailbox = broker.mailbox()

        def close() -> None:
            mailbox.close()
            closed.append(None)

        weakref.finalize(Loop(), close)

    class Mailbox(wakeup.LocalMailbox):
        def __init__(self, *args: Any) -> None:
            gc.collect()
            super().__init__(*args)

    leave_one_behind()
    monkeypatch.setattr("liteq.brokers.base_sqlite.LocalMailbox", Mailbox)
    thread = threading.Thread(target=lambda: broker.mailbox().close(), daemon=True)
    thread.start()
    thread.join(10)

    assert closed
    assert not thread.is_alive()


def test_a_queue_without_a_worker_is_reported(
    app: Liteq, add: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "WORKER_MISSING_AFTER", 0.02)

    with caplog.at_level(logging.WARNING, "liteq.result"), pytest.raises(TimeoutError):
        add.apply_async((1, 2), queue="lonely").get(timeout=0.3)

    assert "no worker consumes queue 'lonely'" in caplog.text


def test_a_task_that_no_worker_knows_is_reported_once(
    app: Liteq, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "WORKER_MISSING_AFTER", 0.02)
    misspelt = app.send_task("tasks.ad", (1, 2))
    app.broker.claim(enlist(app.broker), ["default"], tasks=["tasks.add"])

    for _ in range(2):
        with caplog.at_level(logging.WARNING, "liteq.result"), pytest.raises(TimeoutError):
            misspelt.get(timeout=0.3)

    assert caplog.text.count("know no task 'tasks.ad': the call waits for one") == 1
    assert "no worker consumes" not in caplog.text


def test_the_report_says_which_store_it_is_and_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "WORKER_MISSING_AFTER", 0.02)
    with Liteq("shop", broker=f"sqlite://{tmp_path}/s", set_as_current=False) as app:
        task = app.task(name="work")(lambda: None)
        with pytest.raises(TimeoutError):
            task.apply_async(queue="lonely").get(timeout=0.3)

    assert f"no worker consumes queue 'lonely' of the store {tmp_path}/s" in caplog.text
    assert "liteq worker -Q lonely" in caplog.text
    assert "Broker" not in caplog.text


def test_a_program_without_a_log_is_warned_all_the_same(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from liteq import Liteq, waiting\n"
        "waiting.WORKER_MISSING_AFTER = 0.02\n"
        "app = Liteq('shop', broker=f'sqlite://{sys.argv[1]}/s')\n"
        "app.task(name='work')(lambda: None).delay().get(timeout=0.3)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )

    assert done.stderr.startswith(
        "<string>:5: LiteqWarning: no worker consumes queue 'default' of the store "
    )


def test_a_queue_with_a_worker_is_not_reported(
    app: Liteq, add: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "WORKER_MISSING_AFTER", 0.02)
    app.broker.register("w", ("busy",), 1, {})

    with pytest.raises(TimeoutError):
        add.apply_async((1, 2), queue="busy").get(timeout=0.3)

    assert caplog.text == ""


def test_waiting_survives_a_fork(tmp_path: Path) -> None:
    import os

    app = Liteq("shop", broker=f"sqlite://{tmp_path}/s")
    task = app.task(name="work")(lambda: None)
    with pytest.raises(TimeoutError):
        task.delay().get(timeout=0.01)  # leaves a mailbox in the free list
    child = os.fork()
    if child == 0:
        code = 1
        try:
            task.apply_async(task_id="in-child")
            worker = app.broker.register("w", ("default",), 1, {})
            for lease in app.broker.claim(worker, ("default",), 2):
                app.broker.settle(worker, lease, ok(7))
            code = 0 if app.AsyncResult("in-child").get(timeout=10) == 7 else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert app.AsyncResult("in-child").get(timeout=10) == 7
    app.close()
    forget_current()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_forked_child_closes_the_sockets_it_got(tmp_path: Path) -> None:
    import os

    def files() -> set[str]:
        links = Path("/proc/self/fd")
        return {link.name for link in links.iterdir() if link.exists()}

    before = files()
    folder = tmp_path / ("so long that its sockets are named by a descriptor of it " * 2)
    app = Liteq("shop", broker=f"sqlite://{folder}")
    task = app.task(name="work")(lambda: None)
    with pytest.raises(TimeoutError):
        task.delay().get(timeout=0.01)  # leaves a mailbox in the free list
    worker = app.broker.register("w", ("default",), 1, {})
    held = app.broker.mailbox(worker)
    task.delay()  # opens a socket to send a wake-up by
    ours = files() - before
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                held.close()
                gc.collect()
            code = 2 if told else 3 if files() & ours else 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)

    assert ours
    assert os.waitstatus_to_exitcode(status) == 0
    held.receive()
    task.delay()
    assert held.receive()
    held.close()
    app.close()
    forget_current()


# Waiting in a coroutine


def test_a_result_can_be_awaited(app: Liteq, add: Any, later: Callable[..., None]) -> None:
    async def main() -> Any:
        result = await add.adelay(1, 2)
        later(app, lambda: settle(app, ok(3)))
        return await result, await result.aget(), result.state

    assert asyncio.run(main()) == (3, 3, "SUCCESS")


def test_many_coroutines_wait_at_one_mailbox_without_threads(
    app: Liteq, add: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = looks_of(app, monkeypatch)

    async def main() -> tuple[list[Any], int, int]:
        results = [await add.adelay(n, n) for n in range(20)]
        waits = [asyncio.ensure_future(r.aget(timeout=20)) for r in results]
        for _ in waits:
            while not looks.acquire(blocking=False):  # noqa: ASYNC110 (from any thread)
                await asyncio.sleep(0)
        threads = threading.active_count()
        for n in range(20):
            settle(app, ok(n))
        values = await asyncio.gather(*waits)
        posts = waiting._loop_posts[asyncio.get_running_loop()]
        return values, threads, len(posts)

    before = threading.active_count()
    values, threads, posts = asyncio.run(main())

    assert values == list(range(20))
    assert threads <= before + 1
    assert posts == 1


def test_awaiting_has_a_timeout_and_ends_for_unknown_ids(app: Liteq, add: Any) -> None:
    async def main() -> None:
        result = await add.adelay(1, 2)
        with pytest.raises(TimeoutError):
            await result.aget(timeout=0.1)
        with pytest.raises(UnknownTaskId):
            await AsyncResult("nobody")
        add_later = asyncio.ensure_future(result.aget(timeout=10))
        await asyncio.sleep(0.01)
        add_later.cancel()
        with pytest.raises(asyncio.CancelledError):
            await add_later

    asyncio.run(main())


def test_waits_that_are_cancelled_while_they_begin_leave_nothing_behind(tmp_path: Path) -> None:
    app = Liteq("shop", broker=f"sqlite://{tmp_path}/s", set_as_current=False)
    result = app.task(name="work")(lambda: None).delay()

    def addresses() -> list[Path]:
        return list(tmp_path.glob("s/wake/*"))

    async def main(turns: int) -> None:
        waits = [asyncio.create_task(result.aget()) for _ in range(30)]
        for _ in range(turns):  # each of them another moment
            await asyncio.sleep(0)
        for wait in waits:
            wait.cancel()
        ended = await asyncio.gather(*waits, return_exceptions=True)
        assert {type(one) for one in ended} == {asyncio.CancelledError}
        assert len(addresses()) <= 1

    for turns in (1, 2, 5, 10, 20, 50, 100, 200, 500):
        asyncio.run(main(turns))
        asyncio.run(off_loop(gc.collect))  # what its thread still had to do is over
        gc.collect()  # the loop, which takes its mailbox with it
        assert addresses() == []
    app.close()


def test_coroutines_say_that_they_need_a_loop_of_asyncio(app: Liteq, add: Any) -> None:
    result = add.delay(1, 2)

    for coroutine in (result.aget(), add.adelay(1, 2)):
        with pytest.raises(RuntimeError, match=r"asyncio event loop.*under trio"):
            coroutine.send(None)


def test_an_awaited_failure_is_raised(app: Liteq, add: Any) -> None:
    async def main() -> None:
        result = await add.adelay(1, 2)
        settle(app, Failed(describe(ValueError("bad"))))
        assert isinstance(await result.aget(propagate=False), ValueError)
        with pytest.raises(ValueError, match="bad"):
            await result

    asyncio.run(main())


# Waiting in a task


def test_waiting_inside_a_task_is_refused_unless_it_is_allowed(app: Liteq) -> None:
    @app.task
    def inner() -> int:
        return 1

    @app.task(bind=True)
    def outer(self: BoundTask, allow: bool) -> int:
        result = inner.apply()
        with allow_join_result() if allow else denied_join_result():
            return result.get()

    assert outer.apply((True,)).get() == 1
    with pytest.raises(RuntimeError, match="allow_join_result"):
        outer.apply((False,)).get()
    assert inner.apply().get(disable_sync_subtasks=False) == 1
    assert outer(True) == 1


def test_awaiting_inside_a_task_is_refused_unless_it_is_allowed(app: Liteq, add: Any) -> None:
    async def ids_of(results: ResultSet) -> list[str]:
        return [result.id async for result in results]

    sent = add.delay(1, 2)
    settle(app, Succeeded(b"3"))
    several = ResultSet([sent], app)
    waits: dict[str, Callable[[], Any]] = {
        "eager": add.apply((1, 2)).aget,
        "single": sent.aget,
        "known": lambda: sent.aget(timeout=1),
        "several": several.aget,
        "each": lambda: ids_of(several),
        "without": lambda: sent.aget(disable_sync_subtasks=False),
        "without, several": lambda: several.aget(disable_sync_subtasks=False),
    }

    @app.task
    async def outer(name: str, allow: bool) -> Any:
        with allow_join_result() if allow else denied_join_result():
            return await waits[name]()

    for name in waits:
        assert outer.apply((name, True)).get() in (3, [3], [sent.id])
        if name.startswith("without"):
            assert outer.apply((name, False)).get() in (3, [3])
        else:
            with pytest.raises(RuntimeError, match="allow_join_result"):
                outer.apply((name, False)).get()
        assert asyncio.run(outer(name, allow=False)) in (3, [3], [sent.id])


# What else a result does


def test_then_calls_back_when_the_end_is_known(app: Liteq, add: Any) -> None:
    good, bad = add.delay(1, 2), add.delay(1, 2)
    seen: list[Any] = []
    good.then(lambda r: seen.append(("ok", r.get())))
    bad.then(lambda r: seen.append("no"), on_error=lambda r: seen.append(("bad", str(r.info))))
    assert seen == []
    settle(app, ok(3))
    settle(app, Failed(describe(ValueError("x"))))

    assert (good.ready(), bad.ready()) == (True, True)
    good.then(lambda r: seen.append("at once"))

    assert seen == [("ok", 3), ("bad", "x"), "at once"]


def test_forget_deletes_the_result_and_those_of_its_parents(app: Liteq, add: Any) -> None:
    parent = add.delay(1, 2)
    result = add.delay(3, 4)
    settle(app, ok(1))
    settle(app, ok(2))
    result.parent = parent

    result.forget()

    assert not result.exists()
    assert not parent.exists()


def test_a_failed_parent_is_raised_first(app: Liteq, add: Any) -> None:
    parent, result = add.delay(1, 2), add.delay(1, 2)
    settle(app, Failed(describe(KeyError("first"))))
    settle(app, Failed(describe(ValueError("second"))))
    result.parent = parent

    with pytest.raises(KeyError, match="first"):
        result.get()
    with pytest.raises(ValueError, match="second"):
        result.get(follow_parents=False)


def test_maybe_throw_waits_for_nothing(app: Liteq, add: Any) -> None:
    result = add.delay(1, 2)
    assert result.maybe_throw() is None
    settle(app, Failed(describe(ValueError("x"))))

    with pytest.raises(ValueError, match="x"):
        result.maybe_throw()
    assert isinstance(result.maybe_reraise(propagate=False), ValueError)


def test_what_a_call_led_to_can_be_walked(app: Liteq, add: Any) -> None:
    top = add.delay(1, 2)
    leaf = add.delay(3, 4)
    settle(app, Succeeded(b"1", 0.0, json.dumps([leaf.id])))
    with pytest.raises(IncompleteStream):
        list(top.iterdeps())
    assert list(top.iterdeps(intermediate=True)) == [(None, top), (top, leaf)]
    settle(app, ok(2))

    assert list(top.collect()) == [(top, 1), (leaf, 2)]
    assert top.get_leaf() == 2
    assert top.graph == top.build_graph() == {top: [leaf], leaf: []}


def test_a_result_has_a_form_that_json_carries(app: Liteq) -> None:
    result = AsyncResult("b", parent=AsyncResult("a"))

    again = result_from_tuple(json.loads(json.dumps(result.as_tuple())), app)

    assert (again, again.parent) == (result, result.parent)
    assert result.as_list() == ["b", "a"]
    assert result_from_tuple(result) is result
    assert result_from_tuple("a") == AsyncResult("a")
    with pytest.raises(ValueError, match="is not a result in its tuple form"):
        result_from_tuple({"a": 1})


def test_results_are_equal_by_their_ids(app: Liteq) -> None:
    result = AsyncResult("a", task_name="t")

    assert result == AsyncResult("a") == "a"
    assert result != AsyncResult("b")
    assert result != 5
    assert {result, AsyncResult("a")} == {result}
    assert (str(result), repr(result), result.task_id) == ("a", "<AsyncResult: a>", "a")
    assert pickle.loads(pickle.dumps(result)) == result
    with pytest.raises(ValueError, match="needs the id"):
        AsyncResult(None)  # type: ignore[arg-type]


def test_the_store_is_asked_through_the_result(app: Liteq) -> None:
    assert app.AsyncResult("a").backend is app.backend


def test_a_state_is_stored_by_an_id_and_read(app: Liteq) -> None:
    backend = app.backend
    backend.store_result("a", 7, "SUCCESS")
    backend.store_result("b", ValueError("no"), "FAILURE", traceback="where")

    assert (backend.get_state("a"), backend.get_result("a")) == ("SUCCESS", 7)
    assert (backend.get_status("b"), backend.get_traceback("b")) == ("FAILURE", "where")
    assert isinstance(backend.get_result("b"), ValueError)
    assert backend.get_task_meta("a") | {"date_done": None} == {
        "task_id": "a",
        "status": "SUCCESS",
        "result": 7,
        "traceback": None,
        "children": backend.get_children("a"),
        "date_done": None,
    }
    backend.forget("a")
    assert backend.get_state("a") == "PENDING"
    with pytest.raises(AttributeError, match=r"no 'mark_as_started': .*app\.AsyncResult"):
        _ = backend.mark_as_started


def test_a_state_stored_for_a_call_that_waits_shows_until_it_says_one(app: Liteq) -> None:
    @app.task(name="seven", bind=True)
    def seven(self: Any) -> str:
        app.backend.store_result(self.request.id, 1, "HALF")
        return str(self.AsyncResult(self.request.id).state)

    sent = seven.delay()
    seven.backend.store_result(sent.id, None, "SENT")

    assert (sent.state, sent.detail) == ("SENT", "queued")
    app.run_until_empty()
    assert sent.get() == "HALF"


@pytest.mark.parametrize("how", ["store_result", "update_state"])
def test_a_state_stored_before_a_call_is_sent_shows_until_it_is(
    clock: FakeClock, how: str
) -> None:
    with app_in_memory(clock=clock, result_expires=60) as app:
        seven = app.task(lambda: 7, name="seven")

        def tell(id: str) -> AsyncResult[Any]:
            if how == "store_result":
                app.backend.store_result(id, {"by": "hand"}, "SENT")
            else:
                seven.update_state(id, "SENT", {"by": "hand"})
            return app.AsyncResult(id)

        sent, never = tell("sent"), tell("never")
        assert (sent.state, sent.info, sent.detail) == ("SENT", {"by": "hand"}, "unknown")
        assert not sent.exists()
        assert sent.revoke() == "unknown"
        assert (sent.name, sent.queue, sent.retries, sent.args) == (None, None, None, None)
        with pytest.raises(TimeoutError, match="not sent yet"):
            sent.get(timeout=0)
        *_, last = digest.timeline(operating.describe(app, "sent"), clock.now())
        assert last.what.startswith("not sent yet")

        seven.apply_async(task_id="sent")

        assert (sent.state, sent.detail, sent.exists()) == ("PENDING", "queued", True)
        assert (sent.name, sent.queue) == ("seven", "default")
        app.run_until_empty()
        assert sent.get() == 7
        clock.advance(61)
        while app.broker.maintain():
            pass
        assert never.state == "PENDING"


def test_an_eager_result_is_ready(app: Liteq) -> None:
    result: EagerResult[int] = EagerResult("a", 3, "SUCCESS", name="add")

    assert (result.get(), result.state, result.ready(), result.name) == (
        3,
        "SUCCESS",
        True,
        "add",
    )
    assert asyncio.run(result.aget()) == 3
    assert pickle.loads(pickle.dumps(result)).get() == 3
    seen: list[Any] = []
    result.then(seen.append)
    assert seen == [result]
    assert result.revoke() == "settled"
    assert result.state == "REVOKED"
    result.forget()


def test_a_result_of_a_call_that_was_not_sent_has_no_id() -> None:
    """As the base classes that leave duplicates out make one."""
    result: EagerResult[None] = EagerResult(None, None, "REJECTED")

    assert (result.id, result.state, result.ready()) == (None, "REJECTED", True)
