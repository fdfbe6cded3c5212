"""Workflows that are run in place: by `apply()`, and in eager mode."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import world
from api import forget_current, record

from liteq import BoundTask, Liteq
from liteq.canvas import chain, chord, group
from liteq.exceptions import ChordError, EncodeError, Ignore, TaskRevokedError
from liteq.result import EagerResult, GroupResult


@pytest.fixture
def app(clock: world.FakeClock) -> Iterator[Liteq]:
    app = Liteq("shop", broker="memory://", clock=clock)
    yield app
    app.close()
    forget_current()


@pytest.fixture(params=["apply", "delay"])
def run(request: pytest.FixtureRequest, app: Liteq) -> Callable[..., Any]:
    """Run a signature in place: asked for, or since the app is eager."""
    app.conf.task_always_eager = request.param == "delay"
    return lambda sig: getattr(sig, request.param)()


Run = Callable[..., Any]


class Tasks:
    def __init__(self, app: Liteq) -> None:
        self.seen: list[Any] = []

        @app.task(name="add")
        def add(x: int, y: int) -> int:
            return x + y

        @app.task(name="total")
        def total(values: list[int]) -> int:
            return sum(values)

        @app.task(name="fail")
        def fail(*_: Any) -> None:
            raise ValueError("no")

        @app.task(name="note")
        def note(value: Any) -> Any:
            self.seen.append(value)
            return value

        self.add, self.total, self.fail, self.note = add, total, fail, note


@pytest.fixture
def tasks(app: Liteq) -> Tasks:
    return Tasks(app)


def test_each_kind_of_workflow_runs_to_its_end(tasks: Tasks, run: Run) -> None:
    add, total = tasks.add, tasks.total
    pair = group(add.s(1, 1), add.s(2, 2))

    assert run(chain(add.s(1, 2), add.s(3), add.s(4))).get() == 10
    assert run(pair).get() == [2, 4]
    assert run(chord(pair, total.s())).get() == 6
    assert run(chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s())).get() == 7
    assert run(group(chain(add.s(1, 1), add.s(1)), pair)).get() == [3, 2, 4]
    assert run(chord([chord(pair, total.s()), add.s(1, 1)], total.s())).get() == 8
    assert run(add.chunks([(1, 2), (3, 4)], 1)).get() == [[3], [7]]


def test_the_header_of_a_chord_without_members_is_before_its_body(
    tasks: Tasks, run: Run
) -> None:
    result = run(chord([], tasks.note.s()))

    assert result.get() == []
    assert isinstance(result.parent, GroupResult)
    assert result.parent.results == []


def test_the_results_are_eager_ones_in_the_same_form(tasks: Tasks, run: Run) -> None:
    add, total = tasks.add, tasks.total
    last = run(chain(add.s(1, 2), group(add.s(1), add.s(2)), total.s()))

    assert (type(last), last.name, last.state) == (EagerResult, "total", "SUCCESS")
    assert isinstance(last.parent, GroupResult)
    assert [type(member) for member in last.parent] == [EagerResult, EagerResult]
    assert (last.parent.get(), last.parent.parent.get()) == ([4, 5], 3)
    assert last.parent.parent.children == list(last.parent)
    assert asyncio.run(last.aget()) == 9
    assert [value for _, value in last.parent.parent.collect()] == [3, 4, 5]


def test_coroutines_that_run_in_place_may_call_one_another(app: Liteq) -> None:
    app.conf.task_always_eager = True

    @app.task
    async def countdown(number: int) -> int:
        return 1 + (await countdown.adelay(number - 1)).result if number else 0

    async def main() -> int:
        return (await asyncio.wait_for(countdown.adelay(3), 30)).get()

    assert asyncio.run(main()) == 3


def test_a_task_that_runs_in_place_keeps_no_other_from_the_store(app: Liteq) -> None:
    app.conf.task_always_eager = True
    go = threading.Event()

    @app.task
    def wait() -> bool:
        return go.wait(30)

    async def main() -> bool:
        waiting = asyncio.create_task(wait.adelay())
        assert await asyncio.wait_for(app.broker.aget(["none"]), 10) == {}
        go.set()
        return (await waiting).get()

    assert asyncio.run(main()) is True


def test_a_call_that_a_coroutine_awaits_knows_its_parent(app: Liteq) -> None:
    app.conf.task_always_eager = True

    @app.task(bind=True)
    def inner(self: BoundTask) -> str | None:
        parent: str | None = self.request.parent_id
        return parent

    @app.task(bind=True)
    async def outer(self: BoundTask) -> bool:
        called = await inner.adelay()
        return called.result == inner.delay().result == self.request.id

    assert outer.delay().get() is True


def test_a_failure_ends_what_waits_and_sets_its_callbacks_off(
    app: Liteq, tasks: Tasks, run: Run
) -> None:
    ids: list[str] = []

    @app.task(name="report")
    def report(id: str) -> None:
        ids.append(id)

    failed = run(chain(tasks.fail.s().on_error(report.s()), tasks.note.s()))

    assert (failed.state, failed.parent.state) == ("FAILURE", "FAILURE")
    assert ids == [failed.parent.id]
    assert tasks.seen == []
    assert "ValueError: no" in failed.traceback
    with pytest.raises(ValueError, match="no"):
        failed.get()


def test_a_failed_chord_raises_the_headers_error_and_keeps_its_own(
    tasks: Tasks, run: Run
) -> None:
    body = run(chord([tasks.add.s(1, 1), tasks.fail.s()], tasks.total.s()))

    assert isinstance(body.result, ChordError)
    assert body.parent.completed_count() == 1
    with pytest.raises(ValueError, match="no"):
        body.get()
    with pytest.raises(ChordError):
        body.get(follow_parents=False)


def test_a_body_that_fails_by_itself_raises_its_own_error(tasks: Tasks, run: Run) -> None:
    body = run(chord([tasks.fail.s()], tasks.add.s(1), on_error="collect"))

    with pytest.raises(TypeError):
        body.get()


def test_failures_are_raised_at_the_call_if_the_settings_say_so(
    app: Liteq, tasks: Tasks, run: Run
) -> None:
    app.conf.task_eager_propagates = True

    with pytest.raises(ValueError, match="no"):
        run(chain(tasks.fail.s(), tasks.note.s()))
    with pytest.raises(ValueError, match="no"):
        run(group(tasks.add.s(1, 1), tasks.fail.s()))
    failing = chord([tasks.add.s(1, 1), tasks.fail.s()], tasks.total.s())
    with pytest.raises(ValueError, match="no"):
        run(failing)
    with pytest.raises(ValueError, match="no"):
        run(group(tasks.add.s(1, 1), failing))
    with pytest.raises(ValueError, match="no"):
        failing.apply(throw=True)


def test_an_ignored_call_gives_nothing_as_in_a_worker(app: Liteq) -> None:
    @app.task
    def skip() -> None:
        raise Ignore

    result = skip.apply()

    assert (result.state, result.get(), result.result) == ("IGNORED", None, None)


def test_a_retry_in_place_is_no_second_delivery(app: Liteq, run: Run) -> None:
    counted = []

    @app.task(bind=True, default_retry_delay=0)
    def again(self: BoundTask) -> None:
        counted.append((self.request.retries, self.request.deliveries))
        if self.request.retries < 2:
            raise self.retry()

    run(again.s())

    assert counted == [(0, 1), (1, 1), (2, 1)]


def test_nobody_waits_for_times(app: Liteq, tasks: Tasks, run: Run) -> None:
    @app.task(name="hour", bind=True, default_retry_delay=3600)
    def hour(self: BoundTask, n: int) -> int:
        if self.request.retries < 2:
            raise self.retry()
        return n

    late = hour.s(1).set(countdown=600)

    assert run(chain(late, tasks.add.s(1).set(countdown=60))).get() == 2


def test_what_expires_while_it_waits_is_revoked(app: Liteq, tasks: Tasks, run: Run) -> None:
    result = run(chain(tasks.add.s(1, 1), tasks.add.s(1).set(countdown=60, expires=30)))

    assert result.state == "REVOKED"
    with pytest.raises(TaskRevokedError):
        result.get()


def test_a_result_that_a_task_returns_is_itself_for_its_caller_and_a_tuple_in_the_store(
    app: Liteq, tasks: Tasks
) -> None:
    app.conf.task_store_eager_result = True
    inner = tasks.add.s(1, 2).apply()
    start = app.task(name="start")(lambda: inner)

    result = start.apply()

    assert result.get() is inner
    assert app.AsyncResult(result.id).get() == inner.as_tuple()


def test_a_value_that_others_need_must_be_one_that_can_be_sent(
    app: Liteq, tasks: Tasks, run: Run
) -> None:
    made = app.task(name="made")(object)

    assert isinstance(run(made.s()).get(), object)
    assert isinstance(run(group(made.s(), tasks.add.s(1, 1))).get()[0], object)
    with pytest.raises(EncodeError):
        run(chain(made.s(), tasks.note.s())).get()
    with pytest.raises(EncodeError):
        run(chord([made.s()], tasks.note.s())).get()
    assert tasks.seen == []


def test_other_calls_made_on_the_way_are_run_in_place_too(app: Liteq, tasks: Tasks) -> None:
    app.conf.task_always_eager = True

    @app.task(name="outer")
    def outer(n: int) -> int:
        chain(tasks.add.s(n, 1), tasks.note.s()).delay()
        return n

    result = chain(outer.s(1), tasks.note.s()).delay()

    assert (tasks.seen, result.get()) == ([2, 1], 1)
    assert result.parent.children[-1] == result


def test_results_are_stored_if_the_settings_say_so(app: Liteq, tasks: Tasks, run: Run) -> None:
    app.conf.task_store_eager_result = True
    last = run(chord([tasks.add.s(1, 1), tasks.add.s(2, 2)], tasks.total.s()))
    grouped = run(group(tasks.add.s(1, 1), tasks.note.s(5)))
    failed = run(chain(tasks.fail.s(), tasks.note.s()))

    assert app.AsyncResult(last.id).get() == 6
    assert [app.AsyncResult(member.id).get() for member in last.parent] == [2, 4]
    restored = app.GroupResult.restore(grouped.id)
    assert restored is not None
    assert restored.get() == [2, 5]
    assert app.AsyncResult(failed.id).state == "FAILURE"
    assert record(app, failed.parent.id).message.task == "fail"


def test_secrets_are_hidden_in_what_is_stored_of_a_failure_and_logged(
    app: Liteq, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    @app.task(name="login")
    def login(user: str, password: Any) -> None:
        raise ValueError(f"no user {user} with {password}")

    app.conf.task_store_eager_result = True
    failed = run(login.s("bob", "hunter2-canary"))

    assert "canary" not in f"{app.AsyncResult(failed.id).traceback}{caplog.text}"
    assert "no user bob with" in f"{app.AsyncResult(failed.id).traceback}"


def test_results_of_a_task_are_stored_if_it_says_so(app: Liteq, run: Run) -> None:
    kept = app.task(name="kept", store_eager_result=True)(lambda: 1)
    other = app.task(name="other")(lambda: 2)

    results = run(group(kept.s(), other.s())).results

    assert [app.AsyncResult(result.id).state for result in results] == ["SUCCESS", "PENDING"]
    assert app.AsyncResult(kept.apply().id).get() == 1
    app.conf.task_store_eager_result = True
    kept.store_eager_result = False
    assert not app.AsyncResult(kept.apply().id).exists()


def test_nothing_of_it_stays_in_the_store(app: Liteq, tasks: Tasks, run: Run) -> None:
    result = run(chord([tasks.add.s(1, 1)], tasks.total.s()))

    assert app.broker.get([result.id]) == {}
    assert app.workflows() == []


def test_a_workflow_of_a_thousand_calls_runs_in_a_moment(tasks: Tasks, run: Run) -> None:
    assert run(chain(tasks.add.s(1, 1), *[tasks.add.s(1) for _ in range(300)])).get() == 302
    header = [tasks.add.s(n, 0) for n in range(300)]
    assert run(chord(header, tasks.total.s())).get() == sum(range(300))
