"""What users test their tasks with: liteq.testing."""

from __future__ import annotations

import asyncio
import math
import re
import threading
import unittest
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from api import app_in_memory

from liteq import Liteq, chain, chord, signals, testing
from liteq.brokers.base import Broker
from liteq.exceptions import (
    ContentDisallowed,
    EncodeError,
    Ignore,
    Retry,
    SoftTimeLimitExceeded,
    TimeoutError,
)
from liteq.schedules import crontab
from liteq.testing import (
    DrainLimitExceeded,
    Inline,
    all_enqueued,
    assert_enqueued,
    assert_scheduled,
    drain,
    inline,
    perform,
    refute_enqueued,
    start_worker,
)

NOON = datetime(2030, 5, 17, 12, 0, tzinfo=UTC)


@pytest.fixture
def app() -> Iterator[Liteq]:
    with app_in_memory(timezone="UTC") as made:
        yield made


@pytest.fixture
def t(app: Liteq) -> Iterator[Inline]:
    with inline(app, at=NOON) as opened:
        yield opened


def states(runs: list[testing.TaskRun]) -> list[str]:
    return [run.state for run in runs]


def failure(call: Any, *args: Any, **kwargs: Any) -> str:
    """Return what the failing assertion says."""
    with pytest.raises(AssertionError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# The mode


def test_calls_are_kept_in_memory_and_run_when_told(app: Liteq) -> None:
    ran = []

    @app.task
    def mail(to: str) -> str:
        ran.append(to)
        return f"sent to {to}"

    own = app.broker
    with inline(app) as t:
        result = mail.delay("ann")
        assert (ran, result.state) == ([], "PENDING")
        (run,) = t.drain()
        assert (run.task, run.args, run.state, run.result) == (
            mail.name,
            ("ann",),
            "SUCCESS",
            "sent to ann",
        )
        assert (ran, result.get()) == (["ann"], "sent to ann")
        assert t.drain() == []
    assert app.broker is own
    assert own.counts() == {}


def test_the_app_has_its_own_store_and_clock_again_after_an_error(app: Liteq) -> None:
    before = app.clock
    with pytest.raises(AssertionError), inline(app, at=NOON) as t:
        t.assert_enqueued("nothing")
    assert app.clock is before
    assert app._broker is None, "the app's own store was opened"


def test_modes_inside_of_each_other_have_a_store_each(app: Liteq) -> None:
    @app.task
    def work() -> None: ...

    with inline(app) as outer:
        work.delay()
        with inline(app) as inner:
            inner.refute_enqueued()
        outer.assert_enqueued(work, count=1)


def test_modes_may_be_closed_in_any_order(app: Liteq) -> None:
    own = app.broker
    first, second = inline(app), inline(app)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert app.broker is second.store
    second.__exit__(None, None, None)
    assert app.broker is own


def test_a_mode_that_is_open_is_not_opened_again(app: Liteq) -> None:
    mode = inline(app)
    with mode, pytest.raises(RuntimeError, match="open already"), mode:
        pass
    with pytest.raises(RuntimeError, match="not open: use `with inline"):
        mode.drain()
    with mode:
        assert mode.drain() == []


def test_other_threads_are_in_the_mode_too(app: Liteq, t: Inline) -> None:
    @app.task
    def work() -> None: ...

    thread = threading.Thread(target=work.delay)
    thread.start()
    thread.join()
    t.assert_enqueued(work, count=1)


def test_a_function_is_decorated_and_starts_afresh_at_each_call(app: Liteq) -> None:
    @app.task
    def work() -> None: ...

    @inline(app, at=NOON)
    def check(times: int) -> datetime:
        "Say so."
        for _ in range(times):
            work.delay()
        assert_enqueued(work, count=times)
        return app.now()

    assert (check(2), check(1)) == (NOON, NOON)
    assert check.__doc__ == "Say so."


def test_a_coroutine_function_is_decorated_as_well(app: Liteq) -> None:
    @app.task
    async def work() -> str:
        return "done"

    @inline(app)
    async def check() -> str:
        result = await work.adelay()
        drain(app=app)
        return await result

    assert asyncio.run(check()) == "done"
    assert app._broker is None


def test_a_class_is_not_decorated(app: Liteq) -> None:
    with pytest.raises(TypeError, match="enterContext"):

        @inline(app)
        class Tests: ...


def test_without_an_app_the_current_one_is_meant(app: Liteq) -> None:
    with inline() as t:
        assert t.app is app


def test_an_app_that_the_code_closes_keeps_what_it_has_called(app: Liteq, t: Inline) -> None:
    @app.task
    def work() -> None: ...

    work.delay()
    app.close()
    t.assert_enqueued(work)


def test_always_eager_is_off_while_it_is_open(app: Liteq) -> None:
    app.conf.task_always_eager = True

    @app.task
    def work() -> str:
        return "done"

    with inline(app) as t, inline(app):
        work.delay()
        assert states(drain(app=app)) == ["SUCCESS"]
        assert t.drain() == []
    assert work.delay().state == "SUCCESS"


# Waiting


def test_waiting_for_what_nobody_runs_is_refused(app: Liteq, t: Inline) -> None:
    @app.task
    def work() -> None: ...

    with pytest.raises(TimeoutError, match=r"work\[.*call drain\(\) first"):
        work.delay().get()
    with pytest.raises(TimeoutError, match=r"clock\.advance\(60\) and drain\(\)"):
        work.apply_async(countdown=60).get(timeout=300)
    result = app.send_task("elsewhere")
    t.drain()
    with pytest.raises(TimeoutError, match="its task is unknown here"):
        result.get(timeout=300)


def test_a_task_that_waits_for_another_is_told_so(app: Liteq, t: Inline) -> None:
    @app.task
    def inner() -> None: ...

    @app.task
    def outer(allowed: bool) -> None:
        inner.delay().get(disable_sync_subtasks=not allowed)

    outer.delay(False)
    outer.delay(True)
    refused, stuck = (run for run in t.drain() if run.task == outer.name)
    assert isinstance(refused.exception, RuntimeError)
    assert isinstance(stuck.exception, TimeoutError)


def test_waiting_for_what_has_expired_ends(app: Liteq, t: Inline) -> None:
    @app.task
    def work() -> None: ...

    result = work.apply_async(expires=10)
    t.clock.advance(11)
    t.refute_enqueued()
    assert result.get(propagate=False).__class__.__name__ == "TaskRevokedError"


def test_a_worker_works_on_the_store_in_memory_too(app: Liteq, t: Inline) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    with start_worker(app):
        assert add.delay(2, 3).get(timeout=10) == 5


def test_a_running_worker_meets_what_a_test_has_patched(app: Liteq, t: Inline) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    heard: list[Any] = []
    with start_worker(app):
        assert add.delay(2, 3).get(timeout=10) == 5
        with (
            mock.patch.object(add, "run", return_value=42),
            mock.patch.object(add, "on_success", lambda retval, *_: heard.append(retval)),
        ):
            assert add.delay(2, 3).get(timeout=10) == 42
        assert add.delay(2, 3).get(timeout=10) == 5
    assert heard == [42]


def test_an_option_that_a_test_has_patched_is_what_it_was_afterwards(
    app: Liteq, t: Inline
) -> None:
    @app.task
    def add() -> None: ...

    with mock.patch.object(add, "queue", "other"):
        add.delay()
    add.delay()
    assert [call.queue for call in all_enqueued()] == ["other", "default"]


# Time


def test_time_is_moved_by_hand(app: Liteq, t: Inline) -> None:
    @app.task
    def remind() -> None: ...

    remind.apply_async(countdown=3600)
    remind.apply_async(eta=NOON + timedelta(days=1))
    assert t.drain() == []
    t.clock.advance(3599)
    assert t.drain() == []
    t.clock.advance(timedelta(seconds=1))
    assert [run.at for run in t.drain()] == [NOON + timedelta(hours=1)]
    t.clock.move_to(datetime(2030, 5, 18, 12))  # noqa: DTZ001 (in the app's zone)
    assert [run.at for run in t.drain()] == [NOON + timedelta(days=1)]


def test_time_does_not_run_backwards(t: Inline) -> None:
    with pytest.raises(ValueError, match="backwards"):
        t.clock.advance(-1)
    with pytest.raises(ValueError, match="has passed: it is 2030-05-17 12:00"):
        t.drain(until=NOON - timedelta(hours=1))


@pytest.mark.parametrize("span", [math.nan, math.inf, 1e300, timedelta.max, "x", None])
def test_the_clock_is_moved_by_what_is_a_time(t: Inline, span: Any) -> None:
    before = t.clock.now()
    with pytest.raises((TypeError, ValueError), match=r"advance\("):
        t.clock.advance(span)
    with pytest.raises((TypeError, ValueError), match=r"move_to\("):
        t.clock.move_to(span)
    assert t.clock.now() == before


@pytest.mark.parametrize(
    ("misuse", "complaint"),
    [
        (lambda t: inline("x"), r"inline\(\) takes an app, not 'x'"),
        (lambda t: inline(at="x").__enter__(), "a time must be a datetime.* not 'x'"),
        (lambda t: start_worker("x").__enter__(), r"start_worker\(\) takes an app, not 'x'"),
        (lambda t: t.perform("x"), r"perform\(\) takes a task.* not 'x'"),
        (lambda t: t.assert_enqueued(3), "expected a task or its name, not 3"),
        (lambda t: t.refute_enqueued(3), "expected a task or its name, not 3"),
        (lambda t: assert_enqueued(3), "expected a task or its name, not 3"),
        (lambda t: t.all_enqueued(3), "expected a task or its name, not 3"),
        (lambda t: t.assert_scheduled(3), "expected a task or its name, not 3"),
        (lambda t: t.drain(3), r"drain\(\) takes the name of a queue, or several, not 3"),
        (lambda t: t.drain([3]), r"drain\(\) takes the name of a queue, or several, not \[3"),
        (lambda t: t.drain(until=3), "a time must be a datetime.* not 3"),
    ],
)
def test_what_is_misused_says_what_it_takes(t: Inline, misuse: Any, complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        misuse(t)


def test_a_retry_runs_when_the_clock_has_come_there(app: Liteq, t: Inline) -> None:
    @app.task(bind=True, default_retry_delay=60, max_retries=1)
    def flaky(self: Any) -> str:
        if not self.request.retries:
            raise self.retry(exc=ConnectionError("refused"))
        return "third time lucky"

    flaky.delay()
    t.clock.advance(10)
    (first,) = t.drain()
    assert (first.state, first.retries, type(first.exception)) == ("RETRY", 0, Retry)
    t.assert_enqueued(flaky, countdown=60)
    assert t.drain() == []
    t.clock.advance(60)
    (second,) = t.drain()
    assert (second.state, second.retries, second.result) == ("SUCCESS", 1, "third time lucky")


def test_the_clock_jumps_from_one_due_time_to_the_next(app: Liteq, t: Inline) -> None:
    @app.task(bind=True, default_retry_delay=600, max_retries=None)
    def poll(self: Any, times: int) -> None:
        if self.request.retries < times:
            raise self.retry()

    poll.delay(2)
    poll.apply_async((0,), countdown=900)
    runs = t.drain(with_scheduled=True)
    assert [(run.at - NOON).total_seconds() for run in runs] == [0, 600, 900, 1200]
    assert app.now() == NOON + timedelta(minutes=20)


def test_the_clock_jumps_no_further_than_told(app: Liteq, t: Inline) -> None:
    @app.task
    def remind() -> None: ...

    for hours in (1, 2, 3):
        remind.apply_async(countdown=hours * 3600)
    assert len(t.drain(until=timedelta(hours=2))) == 2
    assert app.now() == NOON + timedelta(hours=2)
    assert len(t.drain(until=NOON + timedelta(hours=5))) == 1
    assert app.now() == NOON + timedelta(hours=5)


def test_what_has_expired_is_not_run(app: Liteq, t: Inline) -> None:
    @app.task
    def work() -> None: ...

    result = work.apply_async(expires=60)
    t.clock.advance(61)
    assert t.drain() == []
    assert result.state == "REVOKED"


def test_a_clock_that_runs_cannot_be_moved(app: Liteq) -> None:
    with pytest.raises(ValueError, match=r"inside `with liteq\.testing\.inline"):
        drain(with_scheduled=True, app=app)


# Draining


def test_what_is_enqueued_by_what_runs_is_run_too(app: Liteq, t: Inline) -> None:
    @app.task
    def outer() -> None:
        inner.apply_async(queue="low")

    @app.task
    def inner() -> None: ...

    outer.delay()
    assert [run.queue for run in t.drain()] == ["default", "low"]


def test_all_that_is_due_at_one_moment_is_run(app: Liteq, t: Inline) -> None:
    order: list[int] = []
    note = app.task(order.append)
    for n in range(600):
        note.apply_async((n % 3,), countdown=60, priority=n % 3)
    t.clock.advance(60)

    t.drain()

    assert order == [2] * 200 + [1] * 200 + [0] * 200


def test_one_queue_is_drained(app: Liteq, t: Inline) -> None:
    @app.task
    def work() -> None: ...

    for queue in ("high", "low", "lower"):
        work.apply_async(queue=queue)
    assert [run.queue for run in t.drain("low")] == ["low"]
    assert [run.queue for run in t.drain(["high", "low"])] == ["high"]
    t.assert_enqueued(work, queue="lower", count=1)


def test_links_and_error_callbacks_follow(app: Liteq, t: Inline) -> None:
    heard: list[Any] = []

    @app.task
    def divide(x: int, y: int) -> float:
        return x / y

    @app.task
    def show(value: float) -> None:
        heard.append(value)

    @app.task
    def complain(request: Any, exc: Exception, traceback: str) -> None:
        heard.append(type(exc))

    for y in (2, 0):
        divide.apply_async((1, y), link=show.s(), link_error=complain.s())
    runs = t.drain()
    assert sorted(states(runs)) == ["FAILURE", "SUCCESS", "SUCCESS", "SUCCESS"]
    assert heard == [0.5, ZeroDivisionError]


def test_workflows_run_as_they_do_in_a_worker(app: Liteq, t: Inline) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(queue="sums")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    chained = chain(add.s(1, 2), add.s(3), add.s(4))()
    summed = chord([add.s(n, n) for n in range(4)])(total.s())
    t.assert_enqueued(add, args=(4,), count=1)
    t.assert_enqueued(total, args=(), queue="sums")
    assert {call.task for call in t.all_enqueued()} == {add.name, total.name}
    assert len(t.drain()) == 3 + 4 + 1
    assert (chained.get(), summed.get()) == (10, 12)
    t.refute_enqueued()


def test_a_chord_waits_for_the_part_that_is_retried(app: Liteq, t: Inline) -> None:
    @app.task(bind=True, default_retry_delay=60)
    def part(self: Any, number: int) -> int:
        if number == 1 and not self.request.retries:
            raise self.retry()
        return number

    @app.task
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    summed = chord([part.s(n) for n in range(3)])(total.s())
    t.drain()
    with pytest.raises(TimeoutError, match="call drain"):
        summed.get()
    t.assert_enqueued(part, args=(1,), countdown=60, count=1)
    t.drain(with_scheduled=True)
    assert summed.get() == 3


def test_an_error_callback_is_no_call_until_there_is_an_error(app: Liteq, t: Inline) -> None:
    @app.task
    def divide(x: int, y: int) -> float:
        return x / y

    @app.task
    def complain(id: str) -> None: ...

    @app.task(queue="later")
    def write_down() -> None: ...

    divide.apply_async((1, 0), link_error=chain(complain.s(), write_down.si()))
    chain(divide.s(1, 1), divide.s(2)).apply_async(link_error=complain.s())
    t.refute_enqueued(complain)
    t.refute_enqueued(write_down)
    t.drain("default")
    t.assert_enqueued(write_down, count=1)


def test_a_failure_is_returned_or_raised(app: Liteq, t: Inline) -> None:
    @app.task
    def fail() -> None:
        raise LookupError("no such order")

    @app.task
    def work() -> None: ...

    fail.delay()
    work.delay()
    run, _ = t.drain()
    assert (run.state, str(run.exception)) == ("FAILURE", "no such order")
    fail.delay()
    work.delay()
    with pytest.raises(LookupError, match="no such order"):
        t.drain(raises=True)
    t.assert_enqueued(work)


def test_what_would_never_end_is_stopped(app: Liteq, t: Inline) -> None:
    @app.task
    def again() -> None:
        again.delay()

    again.delay()
    with pytest.raises(DrainLimitExceeded, match=r"20 tasks .*test_testing\.again 20 times"):
        t.drain(max_tasks=20)
    t.assert_enqueued(again, count=1)


@pytest.mark.parametrize("end", [{"with_scheduled": True}, {"until": timedelta(hours=1)}])
def test_what_would_go_on_for_ever_in_time_is_stopped(app: Liteq, t: Inline, end: Any) -> None:
    @app.task
    def again() -> None:
        again.apply_async(countdown=60)

    again.delay()
    with pytest.raises(DrainLimitExceeded, match=r"20 tasks .*test_testing\.again 20 times"):
        t.drain(max_tasks=20, **end)


def test_as_many_as_allowed_is_not_too_many(app: Liteq, t: Inline) -> None:
    @app.task
    def work() -> None: ...

    for _ in range(3):
        work.delay()
    assert len(t.drain(max_tasks=3)) == 3


def test_a_call_that_nobody_here_can_run_stays(app: Liteq, t: Inline) -> None:
    app.send_task("elsewhere.charge", (1,))
    assert t.drain() == []
    (call,) = t.all_enqueued()
    assert (call.task, call.state) == ("elsewhere.charge", "parked")


def test_an_interrupt_from_the_keyboard_goes_through(app: Liteq, t: Inline) -> None:
    @app.task
    def work() -> None:
        raise KeyboardInterrupt

    work.delay()
    with pytest.raises(KeyboardInterrupt):
        t.drain()
    t.assert_enqueued(work)


def test_revoked_is_revoked(app: Liteq, t: Inline) -> None:
    @app.task
    def work() -> None: ...

    work.delay().revoke()
    assert t.drain() == []


def test_a_task_ends_in_other_ways(app: Liteq, t: Inline) -> None:
    @app.task
    def skip() -> None:
        raise Ignore

    skip.delay()
    (run,) = t.drain()
    assert (run.state, type(run.exception)) == ("IGNORED", Ignore)


def test_arguments_and_results_go_through_the_serializer(app: Liteq, t: Inline) -> None:
    kept = []

    @app.task
    def keep(order: dict[str, Any]) -> Any:
        kept.append(order)
        return order

    order = {"on": date(2030, 5, 1), "price": Decimal("9.90")}
    result = keep.delay(order)
    order["price"] = Decimal(0)  # changed after the call
    t.drain()
    assert kept == [{"on": date(2030, 5, 1), "price": Decimal("9.90")}]
    assert result.get() == kept[0]
    assert result.get() is not kept[0]
    with pytest.raises(EncodeError, match=r"args\[0\]"):
        keep.delay(object())


def test_a_result_that_cannot_be_sent_fails_as_in_a_worker(app: Liteq, t: Inline) -> None:
    @app.task
    def lock() -> Any:
        return threading.Lock()

    lock.delay()
    (run,) = t.drain()
    assert isinstance(run.exception, EncodeError)


def test_it_works_on_any_store(app: Liteq, broker: Broker) -> None:
    own = app.exchange_store(broker, broker.clock)

    @app.task(bind=True, default_retry_delay=60)
    def add(self: Any, x: int, y: int) -> int:
        if x == 13 and not self.request.retries:
            raise self.retry()
        return x + y

    @app.task(queue="sums")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task
    def complain(id: str) -> None: ...

    try:
        summed = chord([add.s(n, 1) for n in (12, 13)])(total.s())
        add.apply_async(("a", 1), countdown=90, priority=5, link_error=complain.s())
        refute_enqueued(complain)
        (later,) = assert_enqueued(add, args=("a", 1), countdown=90, priority=5)
        assert_enqueued(total, queue="sums", count=1)

        assert states(drain(app=app)) == ["SUCCESS", "RETRY"]
        assert_enqueued(add, args=(13, 1), countdown=60)
        assert failure(refute_enqueued, total).startswith("1 enqueued, not 0")

        runs = drain(with_scheduled=True, app=app)
        assert states(runs) == ["SUCCESS", "SUCCESS", "FAILURE", "SUCCESS"]
        assert [run.task for run in runs] == [add.name, total.name, add.name, complain.name]
        assert runs[2].at == later.eta
        assert summed.get(timeout=0) == 27
        assert "run already: failed" in failure(assert_enqueued, add)
        assert all_enqueued(app=app) == []
    finally:
        app.exchange_store(*own)


def test_a_store_that_others_share_is_drained(tmp_path: Path) -> None:
    app = Liteq("shop", broker=f"sqlite://{tmp_path}/shop", set_as_current=False)

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    result = add.delay(2, 3)
    assert_enqueued(add, args=(2, 3), count=1)
    (run,) = drain(app=app)
    assert (run.result, result.get(timeout=0)) == (5, 5)
    refute_enqueued(add)
    app.close()


def test_a_task_of_another_app_is_not_said_to_be_not_enqueued() -> None:
    one, other = (Liteq(name, broker="memory://", set_as_current=False) for name in "ab")

    @one.task(name="mail")
    def mail() -> None: ...

    @other.task(name="bill")
    def bill() -> None: ...

    @other.task(name="mail")
    def same() -> None: ...

    with inline(one) as t:
        t.refute_enqueued(mail)
        t.refute_enqueued(same)  # of that name there is one here
        said = failure(t.refute_enqueued, bill)
    assert "bill is a task of another app" in said
    assert "inline() on that app" in said


# What is enqueued


def test_all_that_is_enqueued_is_listed(app: Liteq, t: Inline) -> None:
    @app.task(queue="mail")
    def mail(to: str, copy: bool = False) -> None: ...

    mail.delay("ann")
    mail.apply_async(("bob",), {"copy": True}, countdown=60, priority=9, expires=600)
    first, second = all_enqueued(mail)
    assert first[:6] == (mail.name, ("ann",), {}, "mail", 0, None)
    assert (first.countdown, first.expires, first.state) == (None, None, "queued")
    assert (second.kwargs, second.priority) == ({"copy": True}, 9)
    assert (second.eta, second.countdown) == (NOON + timedelta(minutes=1), 60)
    assert second.expires == NOON + timedelta(minutes=10)
    assert str(second) == (
        f"{mail.name}('bob', copy=True)  "
        "in queue 'mail', due 2030-05-17 12:01:00+00:00, priority 9"
    )
    t.clock.advance(10)
    assert t.all_enqueued(queue="mail") == [first, second]
    assert t.all_enqueued(queue="default") == []


@pytest.mark.parametrize("damaged", [1e15, float("inf")])
def test_a_call_whose_times_are_damaged_is_listed_and_never_due(
    app: Liteq, t: Inline, damaged: float
) -> None:
    @app.task
    def work() -> None: ...

    (message,) = app.sender.compose(work.s()).messages
    app.broker.enqueue([message._replace(run_at=damaged, expires_at=damaged)])

    (call,) = t.all_enqueued(work)
    assert (call.eta, call.expires) == (None, None)
    assert str(call).endswith("never due")
    assert t.drain(with_scheduled=True) == []
    assert app.now() == NOON


def test_an_assertion_holds_for_what_was_said(app: Liteq, t: Inline) -> None:
    @dataclass
    class Address:
        street: str

    @app.task
    def mail(*args: Any, **kwargs: Any) -> None: ...

    mail.apply_async((1, (2, 3)), {"on": NOON}, countdown=60.4, priority=3, queue="mail")
    for wanted in (
        {},
        {"args": (1, (2, 3))},
        {"args": [1, (2, 3)]},
        {"args": (1, mock.ANY)},
        {"kwargs": {"on": NOON}},
        {"queue": "mail", "priority": 3, "count": 1},
        {"countdown": 60},
        {"eta": NOON + timedelta(seconds=60)},
        {"eta": datetime(2030, 5, 17, 12, 1)},  # noqa: DTZ001 (in the app's zone)
    ):
        (found,) = t.assert_enqueued(mail, **wanted)  # type: ignore[arg-type]
        assert found.args == (1, (2, 3))
    t.assert_enqueued(mail.name)
    t.refute_enqueued(mail, args=(2,))
    t.refute_enqueued(mail, eta=NOON)
    t.refute_enqueued("another")
    t.assert_enqueued("another", count=0)


def test_arguments_are_compared_as_the_task_gets_them(app: Liteq, t: Inline) -> None:
    @app.task(serializer="pickle")
    def work(*args: Any) -> None: ...

    app.conf.accept_content = ["json", "pickle"]
    work.apply_async(([(1, 2)],), serializer="json")
    t.assert_enqueued(work, args=([(1, 2)],))
    work.delay(1)
    app.conf.accept_content = ["json"]
    with pytest.raises(ContentDisallowed):
        t.all_enqueued()


def test_a_call_at_once_has_no_countdown(app: Liteq, t: Inline) -> None:
    @app.task
    def work() -> None: ...

    work.delay()
    t.assert_enqueued(work, countdown=0)
    t.refute_enqueued(work, countdown=60)


def test_a_failure_shows_what_comes_nearest(app: Liteq, t: Inline) -> None:
    @app.task
    def charge(order: int, currency: str = "EUR") -> None: ...

    @app.task
    def refund(order: int) -> None: ...

    refund.delay(1)
    charge.apply_async((1, "USD"), countdown=60)
    charge.apply_async((2,), {"currency": "USD"}, priority=5)
    for order in range(3, 6):
        refund.delay(order)
    said = failure(
        t.assert_enqueued, charge, args=(1, "EUR"), queue="mail", eta=NOON, priority=5
    )
    name = charge.name
    assert said.splitlines() == [
        f"no such call is enqueued: {name} args=(1, 'EUR') queue='mail' "
        "eta=2030-05-17 12:00:00+00:00 priority=5",
        "The nearest of 6:",
        f"  {name}(2, currency='USD')  in queue 'default', due now, priority 5",
        "      args        wanted (1, 'EUR'), is (2,)",
        "      queue       wanted 'mail', is 'default'",
        "      eta         wanted 2030-05-17 12:00:00+00:00, is now",
        f"  {name}(1, 'USD')  in queue 'default', due 2030-05-17 12:01:00+00:00",
        "      args[1]     wanted 'EUR', is 'USD'",
        "      queue       wanted 'mail', is 'default'",
        "      eta         wanted 2030-05-17 12:00:00+00:00, is 2030-05-17 12:01:00+00:00",
        "      priority    wanted 5, is 0",
        f"  {refund.name}(1)  in queue 'default', due now",
        f"      task        wanted {name}",
        "      args        wanted (1, 'EUR'), is (1,)",
        "      queue       wanted 'mail', is 'default'",
        "      eta         wanted 2030-05-17 12:00:00+00:00, is now",
        "      priority    wanted 5, is 0",
    ]


def test_a_task_of_another_app_is_said_to_be_one(t: Inline) -> None:
    other = Liteq("other", broker="memory://", set_as_current=False)
    task = other.task(name="other.work")(lambda: None)
    task.delay()

    with pytest.raises(AssertionError, match=r"other\.work is a task of another app"):
        t.assert_enqueued(task)


def test_a_failure_shows_which_keyword_differs(app: Liteq, t: Inline) -> None:
    @app.task
    def mail(**kwargs: Any) -> None: ...

    mail.delay(to="ann", copy=True, text="x" * 500)
    said = failure(t.assert_enqueued, mail, kwargs={"to": "bob", "text": "x" * 500, "bcc": 1})
    assert "      to=         wanted 'bob', is 'ann'" in said
    assert "      copy=       not wanted, is True" in said
    assert "      bcc=        wanted 1, is not given" in said
    assert "text=  " not in said
    assert max(map(len, said.splitlines())) < 600


def test_a_failure_says_that_it_ran_already(app: Liteq, t: Inline) -> None:
    @app.task
    def mail() -> None: ...

    mail.delay()
    t.drain()
    said = failure(t.assert_enqueued, mail)
    assert "There is:\n" in said
    assert "run already: succeeded" in said


def test_a_failure_passes_over_what_cannot_be_read(app: Liteq, t: Inline) -> None:
    @app.task(serializer="pickle")
    def mail() -> None: ...

    app.conf.accept_content = ["pickle"]
    mail.delay()
    app.conf.accept_content = ["json"]
    assert states(t.drain()) == ["FAILURE"]
    assert "Nothing at all is enqueued." in failure(t.assert_enqueued, mail)


def test_calls_of_one_instant_are_in_the_order_in_which_they_were_made(
    app: Liteq, t: Inline, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task
    def work(number: int) -> None: ...

    monkeypatch.setattr("time.time_ns", lambda: 1)  # as a clock that another library froze
    for number in range(20):
        work.delay(number)
    assert [call.args for call in t.all_enqueued()] == [(n,) for n in range(20)]


def test_a_failure_says_that_there_is_nothing_and_no_such_task(app: Liteq, t: Inline) -> None:
    @app.task(name="shop.charge")
    def charge() -> None: ...

    said = failure(t.assert_enqueued, "shop.chagre")
    assert "Nothing at all is enqueued." in said
    assert "no task 'shop.chagre': did you mean 'shop.charge'?" in said


def test_a_failure_lists_those_that_are_too_many(app: Liteq, t: Inline) -> None:
    @app.task
    def mail(to: str) -> None: ...

    for to in ("ann", "bob"):
        mail.delay(to)
    assert failure(t.assert_enqueued, mail, count=1).startswith(
        f"2 enqueued, not 1: {mail.name}\n  {mail.name}('ann')"
    )
    assert f"2 enqueued, not 0: {mail.name}" in failure(t.refute_enqueued, mail)
    assert "1 enqueued, not 0: any task" in failure(
        refute_enqueued, queue="default", args=("ann",)
    )


def test_a_failure_points_at_the_line_of_the_test(app: Liteq, t: Inline) -> None:
    with pytest.raises(AssertionError) as caught:
        t.assert_enqueued("nothing")
    shown = [entry.path for entry in caught.traceback.filter(caught)]
    assert [Path(path).name for path in shown] == ["test_testing.py"]


# Periodic tasks


@pytest.fixture
def report(app: Liteq) -> Any:
    @app.task(name="shop.report")
    def report(what: str = "all") -> str:
        return what

    app.conf.beat_schedule = {
        "hourly": {"task": "shop.report", "schedule": 3600.0, "args": ("hour",)},
        "at ten": {"task": "shop.report", "schedule": crontab(hour=22, minute=0)},
    }
    return report


def test_an_entry_is_fired_when_it_is_due(app: Liteq, t: Inline, report: Any) -> None:
    assert t.tick() == []
    t.clock.advance(3600)
    (call,) = t.tick()
    assert (call.task, call.args) == ("shop.report", ("hour",))
    assert t.tick() == []
    assert [run.result for run in t.drain()] == ["hour"]


def test_time_that_passed_before_the_first_tick_counts(t: Inline, report: Any) -> None:
    t.clock.advance(3600)
    assert len(t.tick()) == 1


def test_a_beat_that_wakes_late_catches_up_as_the_entry_says(t: Inline, report: Any) -> None:
    t.clock.advance(11 * 3600)
    assert [call.args for call in t.tick()] == [("hour",), ()]


def test_beat_and_tasks_run_through_time_together(app: Liteq, t: Inline, report: Any) -> None:
    with pytest.raises(ValueError, match="needs until"):
        t.drain(beat=True, with_scheduled=True)
    assert t.drain(beat=True) == []
    runs = t.drain(beat=True, until=timedelta(hours=11))
    hours = [((run.at - NOON).total_seconds() / 3600, run.result) for run in runs]
    assert sorted(hours) == sorted([(float(n), "hour") for n in range(1, 12)] + [(10.0, "all")])
    assert app.now() == NOON + timedelta(hours=11)


def test_an_entry_that_a_task_makes_is_fired_too(app: Liteq, t: Inline) -> None:
    @app.task
    def begin() -> None:
        app.schedules.add("often", often, 60)

    @app.task
    def often() -> None: ...

    begin.apply_async(countdown=600)
    runs = t.drain(beat=True, until=timedelta(minutes=12))
    assert [(run.at - NOON).total_seconds() for run in runs] == [600, 660, 720]
    t.assert_scheduled("often", every=60)


def test_entries_are_asserted(app: Liteq, t: Inline, report: Any) -> None:
    t.assert_scheduled("hourly", every=3600, args=["hour"], kwargs={})
    t.assert_scheduled("hourly", every=timedelta(hours=1))
    t.assert_scheduled("at ten", at="0 22 * * *", args=())
    t.assert_scheduled("at ten", at=crontab(hour=22, minute=0))
    assert {entry.name for entry in assert_scheduled(report)} == {"hourly", "at ten"}
    with pytest.raises(TypeError, match="not both"):
        t.assert_scheduled("hourly", every=3600, at="0 22 * * *")


def test_a_cron_expression_is_asserted_in_whatever_zone(app: Liteq, t: Inline) -> None:
    @app.task
    def work() -> None: ...

    app.schedules.add("paris", work, crontab(hour=22, minute=0, tz="Europe/Paris"))
    t.assert_scheduled(work, at="0 22 * * *")
    t.assert_scheduled(work, at=crontab(hour=22, minute=0, tz="Europe/Paris"))
    failure(t.assert_scheduled, work, at=crontab(hour=22, minute=0))


def test_a_failure_shows_the_entries_that_there_are(app: Liteq, t: Inline, report: Any) -> None:
    assert failure(t.assert_scheduled, "hourly", every=60, args=("day",)).splitlines() == [
        "no such entry is scheduled: hourly schedule=<freq: 1.00 minute> args=('day',)",
        "There is:",
        "  'hourly'  shop.report('hour')  <freq: 1.00 hour>",
        "      schedule    wanted <freq: 1.00 minute>, is <freq: 1.00 hour>",
        "      args[0]     wanted 'day', is 'hour'",
        "  'at ten'  shop.report()  <crontab: 0 22 * * * (m/h/dM/MY/d)>",
        "      entry       wanted hourly",
        "      schedule    wanted <freq: 1.00 minute>, is <crontab: 0 22 * * * (m/h/dM/MY/d)>",
        "      args        wanted ('day',), is ()",
    ]
    app.conf.beat_schedule = {}
    assert "no periodic entries at all" in failure(t.assert_scheduled, "hourly")


# One attempt


def test_one_attempt_is_made_with_all_that_belongs_to_it(app: Liteq, t: Inline) -> None:
    heard = []

    @app.task(bind=True)
    def work(self: Any, on: date) -> dict[str, Any]:
        assert isinstance(on, date)
        self.update_state(state="PROGRESS", meta={})
        follow.delay()
        return {"on": on, "pair": (1, 2)}

    @app.task
    def follow() -> None: ...

    def listen(sender: Any, **_: Any) -> None:
        heard.append(sender.name)

    signals.task_success.connect(listen)
    try:
        assert perform(work, date(2030, 5, 1)) == {"on": date(2030, 5, 1), "pair": (1, 2)}
    finally:
        signals.task_success.disconnect(listen)
    assert heard == [work.name]
    t.assert_enqueued(follow)
    t.refute_enqueued(work)
    with pytest.raises(EncodeError):
        t.perform(work, object())
    with pytest.raises(TypeError, match="argument"):
        t.perform(work)


def test_one_attempt_returns_what_a_reader_of_its_result_would_get(app: Liteq) -> None:
    kept: list[list[int]] = []

    @app.task
    def work(numbers: list[int]) -> list[int]:
        kept.append(numbers)
        return numbers

    given = [1, 2]
    returned = perform(work, given)
    assert given == kept[0] == returned
    assert len({id(given), id(kept[0]), id(returned)}) == 3


def test_one_attempt_raises_what_it_ends_with(app: Liteq) -> None:
    @app.task(bind=True, autoretry_for=(ConnectionError,), retry_backoff=True)
    def work(self: Any, exc: str) -> None:
        raise {"c": ConnectionError, "l": LookupError, "i": Ignore}[exc]

    with pytest.raises(Retry) as caught:
        perform(work, "c")
    assert isinstance(caught.value.exc, ConnectionError)
    with pytest.raises(LookupError) as raised:
        perform(work, "l")
    assert raised.traceback[-1].name == "work"
    with pytest.raises(Ignore):
        perform(work, "i")


def test_one_attempt_of_a_task_without_a_result_returns_its_value(app: Liteq) -> None:
    @app.task(ignore_result=True)
    async def work() -> int:
        return 3

    assert perform(work) == 3


# Workers


def test_a_worker_in_a_thread_is_ready_when_it_is_given(tmp_path: Path) -> None:
    app = Liteq("shop", broker=f"sqlite://{tmp_path}/shop", set_as_current=False)
    heard: list[str] = []

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    def hear(signal: Any, sender: Any, **_: Any) -> None:
        assert sender is app
        heard.append(signal.name)

    said = (
        testing.test_worker_starting,
        testing.test_worker_started,
        testing.test_worker_stopped,
    )
    for signal in said:
        signal.connect(hear)
    try:
        with start_worker(app, perform_ping_check=True, loglevel="INFO") as worker:
            assert [info.name for info in app.broker.workers()] == [worker.hostname]
            assert add.delay(2, 3).get(timeout=10) == 5
    finally:
        for signal in said:
            signal.disconnect(hear)
    assert heard == [signal.name for signal in said]
    assert app.broker.workers() == []
    app.close()


def test_what_is_written_for_celery_finds_its_worker(app: Liteq) -> None:
    from liteq.contrib import pytest as plugin
    from liteq.contrib.testing import tasks, worker

    assert worker.start_worker is start_worker
    assert not hasattr(plugin, "liteq_app"), "a second registration of the plugin's fixtures"
    with worker.start_worker(app, pool="solo", perform_ping_check=True):
        assert app.tasks[tasks.ping.name].delay().get(timeout=10) == "pong"


def test_a_soft_time_limit_does_not_fire_in_test_mode(app: Liteq, t: Inline) -> None:
    @app.task(soft_time_limit=0.001)
    def slow() -> str:
        try:
            threading.Event().wait(0.02)
        except SoftTimeLimitExceeded:
            return "cut short"
        return "run to its end"

    slow.delay()
    assert [run.result for run in t.drain()] == ["run to its end"]


# Elsewhere than in pytest


class Shop(unittest.TestCase):
    """What a user of unittest writes."""

    def setUp(self) -> None:
        self.app = self.enterContext(app_in_memory())
        self.t = self.enterContext(inline(self.app, at=NOON))
        self.charge = self.app.task(lambda order: order * 2, name="charge")

    def test_charged(self) -> None:
        self.charge.delay(21)
        self.t.assert_enqueued("charge", args=(21,))
        assert [run.result for run in self.t.drain()] == [42]

    def test_after_the_commit(self) -> None:
        """A call that waits for the transaction, as Django's `on_commit` has it."""
        on_commit = [lambda: self.charge.delay(1)]
        self.t.refute_enqueued()
        for callback in on_commit:
            callback()
        self.t.assert_enqueued("charge")


def test_a_failure_names_the_part_in_few_words(app: Liteq, t: Inline) -> None:
    said = failure(t.assert_enqueued, "shop.charge", args=(1,))
    assert re.match(r"no such call is enqueued: shop\.charge args=\(1,\)\n", said)
