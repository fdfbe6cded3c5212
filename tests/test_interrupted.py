"""A worker that stops ends a task at its next checkpoint, and another goes on from there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

import pytest
from api import forget_current, record

from liteq import Liteq, Task, current_task, signals
from liteq.brokers.base import Broker
from liteq.canvas import chord
from liteq.exceptions import Ignore, Interrupted, Reject, SoftTimeLimitExceeded
from liteq.worker import Worker

POOLS = ["threads", "asyncio", "solo"]
KEYS = [[], ["0123456789abcdef0123456789abcdef"]]


@pytest.fixture(params=KEYS, ids=["plain", "signed"])
def app(request: pytest.FixtureRequest, broker: Broker) -> Iterator[Liteq]:
    with Liteq(
        "shop", broker="memory://", clock=broker.clock, security_keys=request.param
    ) as app:
        app.broker = broker
        yield app
    forget_current()


class Stops:
    """Workers, which the tasks that they run stop."""

    def __init__(self, app: Liteq) -> None:
        self.app = app
        self.worker: Worker

    def run(self, pool: str = "threads", *, hands_over: bool = True) -> None:
        """Run a worker until a task stops it."""
        self.worker = Worker(
            self.app,
            pool=pool,
            concurrency=1,
            grace=20,
            install_signals=False,
            hands_over=hands_over,
        )
        assert self.worker.run() == 0

    def stop(self) -> None:
        self.worker.stop()


@pytest.fixture
def stops(app: Liteq) -> Stops:
    return Stops(app)


@pytest.fixture
def steps() -> list[int]:
    return []


@pytest.fixture
def count(app: Liteq, stops: Stops, steps: list[int]) -> Any:
    """A task that counts up to a number, and stops its worker in the first attempt."""

    @app.task(bind=True, name="count")
    def count(self: Any, until: int) -> list[Any]:
        began = self.request.checkpoint or 0
        for at in range(began, until):
            steps.append(at)
            if at == 2:
                stops.stop()
            self.checkpoint(at + 1, interruptible=True)
        return [began, self.request.deliveries, self.request.retries]

    return count


@pytest.mark.parametrize("pool", POOLS)
def test_each_step_is_done_once_and_no_delivery_is_counted(
    app: Liteq, stops: Stops, count: Any, steps: list[int], pool: str
) -> None:
    result = count.delay(5)
    stops.run(pool)

    assert record(app, result.id).state == "queued"
    assert record(app, result.id).deliveries == 0
    assert record(app, result.id).message.checkpoint == "3"
    assert stops.worker.settled == 0
    app.run_until_empty()
    assert result.get(timeout=1) == [3, 1, 0]
    assert steps == list(range(5))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("way", ["await", "to_thread", "TaskGroup", "sub-task"])
def test_so_is_a_coroutine_and_what_it_does_beside(
    app: Liteq, stops: Stops, pool: str, way: str
) -> None:
    @app.task(name="fetch")
    async def fetch() -> int:
        began: int = current_task.request.checkpoint or 0
        keep = partial(current_task.checkpoint, interruptible=True)

        async def work() -> None:
            keep(began + 1)

        if began == 0:
            stops.stop()
        match way:
            case "await":
                await work()
            case "to_thread":
                await asyncio.to_thread(keep, began + 1)
            case "sub-task":
                await asyncio.create_task(work())
            case _:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(work())
                    tasks.create_task(work())
        return began

    result = fetch.delay()
    stops.run(pool)

    assert record(app, result.id).state == "queued"
    app.run_until_empty()
    assert result.get(timeout=1) == 1


def test_a_worker_in_a_program_finishes_what_runs(
    app: Liteq, stops: Stops, count: Any, steps: list[int]
) -> None:
    result = count.delay(5)
    stops.run(hands_over=False)

    assert result.get(timeout=1) == [0, 1, 0]
    assert steps == list(range(5))


def test_the_task_cleans_up_and_its_own_excepts_let_it_through(
    app: Liteq, stops: Stops
) -> None:
    seen: list[Any] = []

    @app.task(bind=True, autoretry_for=(Exception,), throws=(Exception,))
    def work(self: Any) -> None:
        if self.request.checkpoint:
            return
        stops.stop()
        try:
            self.checkpoint("kept", interruptible=True)
        except Exception:
            seen.append("swallowed")
        finally:
            seen.append("cleaned up")

    result = work.delay()
    stops.run()

    assert seen == ["cleaned up"]
    app.run_until_empty()
    assert result.state == "SUCCESS"


def test_one_that_is_swallowed_comes_again_with_the_next_checkpoint(
    app: Liteq, stops: Stops
) -> None:
    @app.task(bind=True)
    def work(self: Any) -> Any:
        if self.request.checkpoint:
            return self.request.checkpoint
        stops.stop()
        with pytest.raises(Interrupted, match="goes on from its checkpoint"):
            self.checkpoint(1, interruptible=True)
        self.checkpoint(2, interruptible=True)
        return None

    result = work.delay()
    stops.run()

    app.run_until_empty()
    assert result.get(timeout=1) == 2


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (None, "SUCCESS"),
        (ValueError("no"), "FAILURE"),
        (Ignore(), "IGNORED"),
        (Reject("no"), "FAILURE"),
        (SystemExit(1), "FAILURE"),
        (BaseExceptionGroup("both", [Interrupted(), ValueError("no")]), "FAILURE"),
    ],
)
def test_what_the_task_does_after_it_is_the_outcome(
    app: Liteq, stops: Stops, end: BaseException | None, state: str
) -> None:
    @app.task(bind=True)
    def work(self: Any) -> None:
        stops.stop()
        try:
            self.checkpoint(1, interruptible=True)
        except Interrupted:
            if end is not None:
                raise end from None

    result = work.delay()
    stops.run()

    assert result.state == state


def test_none_takes_the_checkpoint_away_and_interrupts_nothing(
    app: Liteq, stops: Stops
) -> None:
    @app.task(bind=True)
    def work(self: Any) -> str:
        stops.stop()
        self.checkpoint(None, interruptible=True)
        return "done"

    result = work.delay()
    stops.run()

    assert result.get(timeout=1) == "done"


def test_a_checkpoint_that_does_not_say_that_it_may_interrupts_nothing(
    app: Liteq, stops: Stops
) -> None:
    @app.task(bind=True)
    def work(self: Any) -> str:
        stops.stop()
        self.checkpoint(1)  # inside of a transaction, say
        return "done"

    result = work.delay()
    stops.run()

    assert result.get(timeout=1) == "done"


def test_a_call_that_is_never_started_twice_runs_to_its_end(
    app: Liteq, stops: Stops, steps: list[int]
) -> None:
    @app.task(bind=True, acks_late=False)
    def work(self: Any) -> int:
        stops.stop()
        self.checkpoint(1, interruptible=True)
        return 1

    result = work.delay()
    stops.run()

    assert result.get(timeout=1) == 1


def test_a_call_that_may_expire_runs_to_its_end(app: Liteq, stops: Stops) -> None:
    @app.task(bind=True)
    def work(self: Any) -> int:
        stops.stop()
        self.checkpoint(1, interruptible=True)
        return 1

    result = work.apply_async(expires=60)
    stops.run()

    assert result.get(timeout=1) == 1


def test_what_a_task_has_added_to_its_chord_is_kept(app: Liteq, stops: Stops) -> None:
    @app.task
    def double(number: int) -> int:
        return 2 * number

    @app.task
    def gather(values: list[int]) -> list[int]:
        return values

    @app.task(bind=True)
    def crawl(self: Any) -> int:
        stops.stop()
        self.add_to_chord(double.s(10))
        self.checkpoint(1, interruptible=True)
        return 1

    result = chord([crawl.s()])(gather.s())
    stops.run()
    app.run_until_empty()

    assert result.get(timeout=1) == [1, 20]


def test_a_retry_that_was_asked_for_is_made(app: Liteq, stops: Stops) -> None:
    @app.task(bind=True)
    def work(self: Any) -> list[int]:
        if self.request.retries == 0:
            stops.stop()
            self.retry(throw=False, countdown=0)
            self.checkpoint(1, interruptible=True)
        return [self.request.checkpoint, self.request.retries]

    result = work.delay()
    stops.run()

    app.run_until_empty()
    assert result.get(timeout=1) == [1, 1]


def test_a_hook_is_not_interrupted(app: Liteq, stops: Stops) -> None:
    seen: list[Any] = []

    class Hooked(Task[[], None]):
        def on_retry(self, *_: Any) -> None:
            self.checkpoint("the hook's", interruptible=True)
            seen.append("on_retry")

    @app.task(bind=True, base=Hooked)
    def work(self: Any) -> Any:
        if self.request.checkpoint is None:
            stops.stop()
            raise self.retry(countdown=0)
        return self.request.checkpoint

    result = work.delay()
    stops.run()

    app.run_until_empty()
    assert seen == ["on_retry"]
    assert result.get(timeout=1) == "the hook's"


def test_past_its_soft_limit_a_task_comes_to_its_own_end(app: Liteq, stops: Stops) -> None:
    @app.task(bind=True, soft_time_limit=0.05)
    def work(self: Any) -> str:
        try:
            while True:
                pass
        except SoftTimeLimitExceeded:
            stops.stop()
            self.checkpoint(1, interruptible=True)
            return "in time"

    result = work.delay()
    stops.run()

    assert result.get(timeout=1) == "in time"


@pytest.mark.parametrize("told", [True, False])
def test_who_raises_it_himself_fails(app: Liteq, stops: Stops, *, told: bool) -> None:
    @app.task(bind=True)
    def work(self: Any) -> None:
        if told:
            stops.stop()
        raise Interrupted("by myself")

    result = work.delay()
    if told:
        stops.run()
    else:
        app.run_until_empty()

    assert result.state == "FAILURE"


def test_it_goes_through_a_call_in_place(app: Liteq, stops: Stops) -> None:
    @app.task
    def inner(keep: Callable[[], None]) -> None:
        keep()

    @app.task(bind=True)
    def outer(self: Any) -> Any:
        if self.request.checkpoint is None:
            stops.stop()
            inner.apply((lambda: self.checkpoint("outer's", interruptible=True),))
        return self.request.checkpoint

    result = outer.delay()
    stops.run()

    assert record(app, result.id).state == "queued"
    app.run_until_empty()
    assert result.get(timeout=1) == "outer's"


def test_a_call_in_place_has_nothing_that_could_go_on(app: Liteq, stops: Stops) -> None:
    @app.task(bind=True)
    def inner(self: Any) -> int:
        self.checkpoint(1, interruptible=True)
        return 1

    @app.task(bind=True)
    def outer(self: Any) -> list[int]:
        stops.stop()
        return [inner(), inner.apply().result]

    result = outer.delay()
    stops.run()

    assert result.get(timeout=1) == [1, 1]


def test_a_thread_of_the_tasks_own_hands_it_on(app: Liteq, stops: Stops) -> None:
    @app.task(bind=True)
    def work(self: Any) -> Any:
        if self.request.checkpoint is None:
            stops.stop()
            with ThreadPoolExecutor(1) as pool:
                keep = partial(self.checkpoint, 1, interruptible=True)
                pool.submit(copy_context().run, keep).result()
        return self.request.checkpoint

    result = work.delay()
    stops.run()

    assert record(app, result.id).state == "queued"
    app.run_until_empty()
    assert result.get(timeout=1) == 1


def test_revoked_meanwhile_it_is_not_started_again(
    app: Liteq, stops: Stops, steps: list[int]
) -> None:
    @app.task(bind=True)
    def work(self: Any) -> None:
        steps.append(1)
        app.AsyncResult(self.request.id).revoke()
        stops.stop()
        self.checkpoint(1, interruptible=True)

    result = work.delay()
    stops.run()
    app.run_until_empty()

    assert result.state == "REVOKED"
    assert steps == [1]


def test_its_unique_key_stays_held_and_its_slot_is_free(
    app: Liteq, stops: Stops, steps: list[int]
) -> None:
    @app.task(bind=True, unique=True, max_concurrency=1)
    def work(self: Any, number: int) -> int:
        began: int = self.request.checkpoint or 0
        if not began:
            stops.stop()
            self.checkpoint(number, interruptible=True)
        return began

    first = work.delay(1)
    stops.run()

    assert work.delay(1).id == first.id
    app.run_until_empty()
    assert first.get(timeout=1) == 1


def test_a_part_of_a_workflow_keeps_its_place(
    app: Liteq, stops: Stops, count: Any, steps: list[int]
) -> None:
    @app.task
    def gather(*values: Any) -> list[Any]:
        return list(values)

    result = chord([count.s(5), count.si(1)])(gather.s() | gather.s("end"))
    stops.run()
    app.run_until_empty()

    assert result.get(timeout=1) == [[[[3, 1, 0], [0, 1, 0]]], "end"]
    assert steps[:5] == list(range(5))


def test_it_is_said_and_every_prerun_has_its_postrun(
    app: Liteq, stops: Stops, count: Any, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Any] = []

    def prerun(task_id: str, **_: Any) -> None:
        told.append("prerun")

    def postrun(state: str, retval: Any, **_: Any) -> None:
        told.append((state, type(retval)))

    def other(**_: Any) -> None:
        told.append("wrong")

    heard: list[tuple[signals.Signal, Any]] = [
        (signals.task_prerun, prerun),
        (signals.task_postrun, postrun),
        (signals.task_failure, other),
        (signals.task_retry, other),
        (signals.task_internal_error, other),
    ]
    for signal, receiver in heard:
        signal.connect(receiver)
    result = count.delay(5)
    with caplog.at_level(logging.INFO, "liteq"):
        stops.run()
    for signal, receiver in heard:
        signal.disconnect(receiver)

    assert told == ["prerun", ("REJECTED", Interrupted)]
    [said] = [one for one in caplog.records if getattr(one, "outcome", "") == "released"]
    assert said.levelno == logging.INFO
    assert said.getMessage().startswith(f"Task count[{result.id}] interrupted after ")
    assert said.getMessage().endswith("it goes on from its checkpoint at the next start")
