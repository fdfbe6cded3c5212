"""`Task.checkpoint()`: the next attempt goes on from where an earlier one was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from api import forget_current, record
from world import make

from liteq import Liteq, Task, checkpoints
from liteq.brokers.base import Broker
from liteq.canvas import chord
from liteq.exceptions import DecodeError, EncodeError, MessageTooLarge, Reject
from liteq.operating import describe, retry
from liteq.testing import perform

KEYS = [[], ["0123456789abcdef0123456789abcdef"]]


@pytest.fixture(params=KEYS, ids=["plain", "signed"])
def app(request: pytest.FixtureRequest, broker: Broker) -> Iterator[Liteq]:
    with Liteq(
        "shop", broker="memory://", clock=broker.clock, security_keys=request.param
    ) as app:
        app.broker = broker
        yield app
    forget_current()


@pytest.fixture
def count(app: Liteq) -> Callable[..., Any]:
    """A task that counts up to a number, and is ended on the way as it is told."""

    @app.task(bind=True, name="count", max_retries=9, default_retry_delay=0)
    def count(self: Any, until: int, *ends: Any) -> list[Any]:
        began = self.request.checkpoint or 0
        for at in range(began, until):
            self.checkpoint(at + 1)
            if at == 2 and began < 2:
                for end in ends:
                    if end == "retry":
                        raise self.retry()
                    if end == "other arguments":
                        raise self.retry(args=(until,), headers={"again": 1})
                    if end == "requeue":
                        raise Reject("later", requeue=True)
                    raise ValueError(end)
        return [began, self.request.checkpoint, self.request.retries]

    return count


@pytest.mark.parametrize("end", ["retry", "other arguments"])
def test_a_retry_goes_on_from_the_checkpoint(app: Liteq, count: Any, end: str) -> None:
    result = count.delay(5, end)
    app.run_until_empty()

    assert result.get(timeout=1) == [3, 5, 1]


def test_so_does_what_was_put_back(app: Liteq, count: Any) -> None:
    result = count.delay(5, "requeue")
    app.run_until_empty()

    assert result.get(timeout=1) == [3, 5, 0]


def test_so_does_a_failed_call_that_is_run_again(app: Liteq, count: Any) -> None:
    result = count.delay(5, "no")
    app.run_until_empty()
    assert result.state == "FAILURE"
    assert describe(app, result.id)["checkpoint"] == "3"

    assert list(retry(app.broker, [result.id])) == [([result.id], {})]
    app.run_until_empty()

    assert app.AsyncResult(result.id).get(timeout=1) == [3, 5, 0]


def test_an_eager_call_goes_on_as_well(app: Liteq, count: Any) -> None:
    assert count.apply((5, "retry")).get() == [3, 5, 1]
    assert (count.s(5, "other arguments") | count.si(1)).apply().parent.get() == [3, 5, 1]


def test_a_direct_call_reads_what_it_has_kept(app: Liteq, count: Any) -> None:
    assert count(3) == [0, 3, 0]
    assert count(3) == [0, 3, 0]
    assert perform(count, 3) == [0, 3, 0]


def test_a_call_in_the_place_of_another_begins_at_the_beginning(app: Liteq, count: Any) -> None:
    @app.task(bind=True)
    def first(self: Any) -> None:
        self.checkpoint(2)
        self.replace(count.s(3))

    result = first.delay()
    app.run_until_empty()

    assert result.get(timeout=1) == [0, 3, 0]


@pytest.mark.parametrize("options", [{}, {"headers": {"h": 1}}, {"kwargs": {"n": 2}}])
def test_the_last_checkpoint_counts_however_the_retry_was_asked_for(
    app: Liteq, options: dict[str, Any]
) -> None:
    seen = []

    @app.task(bind=True, default_retry_delay=0)
    def work(self: Any, n: int = 1) -> None:
        seen.append((self.request.checkpoint, n, self.request.headers))
        if not self.request.retries:
            self.checkpoint("before")
            self.retry(throw=False, **options)
            self.checkpoint("after")

    work.delay()
    app.run_until_empty()

    changed = (options.get("kwargs", {}).get("n", 1), options.get("headers"))
    assert seen == [(None, 1, None), ("after", *changed)]


@pytest.mark.parametrize("early", [True, False])
def test_a_hook_may_set_it_too(app: Liteq, *, early: bool) -> None:
    seen = []

    class Hooked(Task[[], None]):
        def on_retry(self, *_: Any) -> None:
            self.checkpoint("the hook's")

    @app.task(bind=True, base=Hooked, default_retry_delay=0)
    def work(self: Any) -> None:
        seen.append(self.request.checkpoint)
        if early:
            self.checkpoint("the body's")
        if not self.request.retries:
            raise self.retry()

    work.delay()
    app.run_until_empty()

    assert seen == [None, "the hook's"]


def test_what_a_thread_without_the_attempt_says_is_refused_and_reaches_no_other(
    app: Liteq,
) -> None:
    seen: list[Any] = []

    @app.task(bind=True)
    def work(self: Any) -> list[Any]:
        def loop() -> None:
            seen.append(self.request.checkpoint)
            self.checkpoint(1)

        with ThreadPoolExecutor(1) as pool:
            error = pool.submit(loop).exception()
            pool.submit(copy_context().run, loop).result()
        return [type(error).__name__, self.request.checkpoint]

    results = [work.delay(), work.delay()]
    app.run_until_empty()

    assert [result.get(timeout=1) for result in results] == [["RuntimeError", 1]] * 2
    assert seen == [None] * 4
    with pytest.raises(RuntimeError, match="copy_context"):
        work.checkpoint(1)


def test_a_part_of_a_workflow_keeps_its_place_in_it(app: Liteq, count: Any) -> None:
    @app.task
    def gather(*values: Any) -> list[Any]:
        return list(values)

    members = [count.s(5, "retry"), count.s(5, "requeue"), count.s(1)]
    result = chord(members)(gather.s("and") | gather.s())
    behind = (gather.s(1) | count.si(5, "other arguments") | gather.s()).delay()
    app.run_until_empty()

    assert result.get(timeout=1) == [[[[3, 5, 1], [3, 5, 0], [0, 1, 0]], "and"]]
    assert behind.get(timeout=1) == [[3, 5, 1]]


def test_a_checkpoint_is_any_value_and_none_takes_it_away(app: Liteq) -> None:
    seen = []
    wanted = [{"day": date(2026, 1, 2), "sum": Decimal("1.10")}, ('"requeued":', 7), None]

    @app.task(bind=True, max_retries=9, default_retry_delay=0)
    def work(self: Any) -> int:
        seen.append(self.request.checkpoint)
        if self.request.retries < len(wanted):
            self.checkpoint(wanted[self.request.retries])
            raise self.retry()
        return self.request.deliveries  # type: ignore[no-any-return]

    result = work.delay()
    app.run_until_empty()

    assert result.get(timeout=1) == 1
    assert seen == [None, *wanted]
    assert record(app, result.id).message.checkpoint is None


def test_what_cannot_be_kept_is_refused_at_once(app: Liteq) -> None:
    @app.task(bind=True)
    def work(self: Any) -> int:
        self.checkpoint(1)
        with pytest.raises(EncodeError, match=r"checkpoint\['file'\]"):
            self.checkpoint({"file": object()})
        with pytest.raises(MessageTooLarge, match="65536 allowed"):
            self.checkpoint("x" * 65_536)
        return self.request.checkpoint  # type: ignore[no-any-return]

    result = work.delay()
    app.run_until_empty()

    assert result.get(timeout=1) == 1


def test_a_call_whose_checkpoint_is_none_is_a_dead_letter(app: Liteq) -> None:
    @app.task(name="count", autoretry_for=(Exception,))
    def count() -> None:
        raise AssertionError("it begins where nobody has left off")

    message = make("count", checkpoint="junk")
    app.broker.enqueue([message if app.signer is None else app.signer.sign(message)])
    app.run_until_empty()

    dead = app.broker.get([message.id])[message.id].dead or ""
    assert dead.startswith("unreadable checkpoint: not valid JSON")


@pytest.mark.parametrize("text", ["junk", "\ud800", "[" * 100_000])
def test_a_checkpoint_that_is_none_is_shown_as_unreadable(app: Liteq, text: str) -> None:
    message = make("count", checkpoint=text)
    app.broker.enqueue([message])

    assert describe(app, message.id)["checkpoint"].startswith("unreadable (")
    with pytest.raises(DecodeError):
        checkpoints.read(text)
