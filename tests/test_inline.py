"""Working a store off in place, with a clock that is moved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from api import app_in_memory, record

from liteq import Liteq
from liteq.clock import ManualClock
from liteq.executor import Executor
from liteq.inline import InlineWorker, attempt_with

START = 1_800_000_000.0


@pytest.fixture
def moved() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def app(moved: ManualClock) -> Iterator[Liteq]:
    with app_in_memory(clock=moved) as made:
        yield made


def worker(app: Liteq, **options: Any) -> InlineWorker:
    return InlineWorker(app.broker, attempt_with(Executor(app.tasks)), **options)


def names(worker: InlineWorker) -> list[str]:
    return [ran.lease.task.rpartition(".")[2] for ran in worker.run_due()]


def test_what_is_due_is_run_with_what_comes_due_of_it(app: Liteq) -> None:
    @app.task
    def outer(queue: str) -> str:
        inner.apply_async(queue=queue)
        return "done"

    @app.task
    def inner() -> None: ...

    result = outer.delay("a queue that nobody had heard of")
    with worker(app, tasks=app.tasks) as inline:
        assert names(inline) == ["outer", "inner"]
        assert [w.name for w in app.broker.workers()] == ["inline"]
    assert app.broker.workers() == []
    assert result.get(timeout=0) == "done"


def test_what_is_not_due_stays_until_the_clock_has_come_there(
    app: Liteq, moved: ManualClock
) -> None:
    @app.task
    def later() -> None: ...

    @app.task
    def evening() -> None: ...

    later.apply_async(countdown=60)
    evening.apply_async(countdown=7200, queue="evening")
    with worker(app) as inline:
        assert names(inline) == []
        assert inline.next_due() == START + 60
        assert [ran.at for ran in inline.run_until(START + 3600, moved.move_to)] == [START + 60]
        assert moved.now() == START + 3600
        assert [ran.at for ran in inline.run_until(None, moved.move_to)] == [START + 7200]
        assert moved.now() == START + 7200
        assert inline.next_due() is None


def test_only_the_queues_it_was_given_are_worked_off(app: Liteq) -> None:
    @app.task
    def one() -> None: ...

    one.apply_async(queue="mail")
    one.apply_async(queue="other")
    with worker(app, queues=["mail"]) as inline:
        assert names(inline) == ["one"]
    assert app.broker.counts() == {"other": {"queued": 1}}


def test_what_an_attempt_raises_goes_through_and_the_message_is_given_back(
    app: Liteq,
) -> None:
    @app.task
    def one() -> None: ...

    @app.task(acks_late=False)
    def once() -> None: ...

    def attempt(lease: Any, failed: Any, report: Any) -> Any:
        raise KeyboardInterrupt

    sent, early = one.apply_async(queue="a"), once.apply_async(queue="b")
    for queue in "ab":
        with (
            pytest.raises(KeyboardInterrupt),
            InlineWorker(app.broker, attempt, queues=[queue]) as inline,
        ):
            names(inline)
    assert record(app, sent.id).state == "queued"
    assert record(app, sent.id).deliveries == 0
    assert record(app, early.id).state == "failed", "it may have been started"


def test_a_task_says_how_far_it_is(app: Liteq) -> None:
    seen = []

    @app.task(bind=True)
    def work(self: Any) -> None:
        self.update_state(state="PROGRESS", meta={"done": 1})
        seen.append(app.AsyncResult(self.request.id).info)

    work.delay()
    with worker(app) as inline:
        names(inline)
    assert seen == [{"done": 1}]


def test_many_messages_that_nobody_here_knows_hide_none_that_somebody_does(app: Liteq) -> None:
    @app.task
    def known() -> None: ...

    for number in range(1100):
        app.send_task("elsewhere.task", (number,))
    known.delay()
    with worker(app, tasks=app.tasks) as inline:
        assert names(inline) == ["known"]
    assert app.broker.counts() == {"default": {"parked": 1100}}


def test_the_clock_never_goes_back() -> None:
    clock = ManualClock(100.0)
    clock.move_to(50.0)
    assert clock.now() == 100.0
    began = clock.steady()
    clock.move_to(160.5)
    clock.advance(1.0)
    assert (clock.now(), clock.steady() - began) == (161.5, 61.5)
