"""Unique calls as users write them: what makes two calls the same, and what the second gets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from api import app_in_memory, record

from liteq import Liteq, Task, chain, group
from liteq.exceptions import DuplicateTask, EncodeError
from liteq.result import AsyncResult, EagerResult
from liteq.testing import Inline, inline

NOON = datetime(2030, 5, 17, 12, 0, tzinfo=UTC)


@pytest.fixture
def app() -> Iterator[Liteq]:
    with app_in_memory(timezone="UTC") as app:
        yield app


@pytest.fixture
def t(app: Liteq) -> Iterator[Inline]:
    with inline(app, at=NOON) as opened:
        yield opened


def report_of(app: Liteq, **options: Any) -> Task[..., int]:
    @app.task(**{"name": "report", "unique": True, **options})
    def report(shop: int, day: str = "today", *rest: int, **more: Any) -> int:
        return shop

    task: Task[..., int] = report
    return task


def key_of(app: Liteq, result: AsyncResult[Any]) -> str | None:
    return record(app, result.id).message.unique_key


# What makes two calls the same


SAME = [
    ((1,), {}),
    ((), {"shop": 1}),
    ((1, "today"), {}),
    ((1,), {"day": "today"}),
]


def test_calls_are_the_same_if_the_function_gets_the_same(app: Liteq) -> None:
    report = report_of(app)

    results = [report.apply_async(args, kwargs) for args, kwargs in SAME]

    assert len({result.id for result in results}) == 1
    assert [result.duplicate for result in results] == [False, True, True, True]
    assert app.broker.counts() == {"default": {"queued": 1}}


@pytest.mark.parametrize(
    ("args", "kwargs"), [((2,), {}), ((1, "x"), {}), ((1, "today", 5), {}), ((1,), {"a": 1})]
)
def test_other_arguments_are_another_call(app: Liteq, args: Any, kwargs: Any) -> None:
    report = report_of(app)
    first = report.delay(1)

    assert report.apply_async(args, kwargs).id != first.id


def test_the_order_of_a_dict_or_a_set_makes_no_difference(app: Liteq) -> None:
    report = report_of(app)
    first = report.delay(1, filter={"a": 1, "b": {"x", "y"}}, on=date(2030, 1, 1))

    second = report.delay(1, on=date(2030, 1, 1), filter={"b": {"y", "x"}, "a": 1})

    assert second.id == first.id


def test_calls_of_different_tasks_are_never_the_same(app: Liteq) -> None:
    @app.task(unique=True)
    def one(x: int) -> None: ...

    @app.task(unique=True)
    def other(x: int) -> None: ...

    assert not one.delay(1).duplicate
    assert not other.delay(1).duplicate


def test_the_key_names_the_arguments_that_count(app: Liteq) -> None:
    report = report_of(app, unique=None, unique_key=["shop"])

    first = report.delay(1, "monday")

    assert report.delay(1, "tuesday").id == first.id
    assert report.delay(2, "monday").id != first.id
    with pytest.raises(TypeError, match="names 'shops', and this call has no such argument"):
        report.apply_async((1,), unique_key="shops")


def test_the_key_may_be_a_function_of_the_arguments(app: Liteq) -> None:
    report = report_of(app, unique_key=lambda shop, *rest, **more: shop % 10)

    first = report.delay(7)

    assert report.delay(17, "x").id == first.id
    assert report.delay(8).id != first.id


def test_a_method_of_a_class_may_make_the_key(app: Liteq) -> None:
    class ByShop(Task[..., Any]):
        abstract = True

        def unique_key(self, shop: int, **_: Any) -> int:  # type: ignore[override]
            return shop

    @app.task(base=ByShop)
    def report(shop: int, day: str = "") -> None: ...

    assert report.delay(1, day="a").id == report.delay(1, day="b").id


def test_the_key_is_the_same_in_every_process(app: Liteq) -> None:
    report = report_of(app)
    here = key_of(app, report.delay(1, tags={"a", "b", "c"}))
    program = (
        "from liteq import Liteq\n"
        "app = Liteq('other', broker='memory://')\n"
        "@app.task(name='report', unique=True)\n"
        "def report(shop, day='today', *rest, **more): ...\n"
        "made = report.delay(1, tags={'c', 'b', 'a'})\n"
        "print(app.broker.get([made.id])[made.id].message.unique_key)\n"
    )

    there = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )

    assert there.stdout.strip() == here


def test_arguments_that_cannot_be_compared_are_refused(app: Liteq) -> None:
    app.conf.accept_content = ["json", "pickle"]
    report = report_of(app, serializer="pickle")

    with pytest.raises(EncodeError) as caught:
        report.delay(1, more=object)

    assert "name those that can be in unique_key" in caught.value.__notes__[0]


def test_a_call_may_be_unique_though_its_task_is_not(app: Liteq) -> None:
    @app.task
    def plain(x: int) -> None: ...

    first = plain.apply_async((1,), unique=True)

    assert plain.apply_async((1,), unique=True).id == first.id
    assert plain.delay(1).id != first.id  # it takes no part


def test_a_call_may_be_free_of_its_tasks_uniqueness(app: Liteq) -> None:
    report = report_of(app)
    first = report.delay(1)

    assert report.apply_async((1,), unique=False).id != first.id


def test_a_task_known_by_name_alone_is_unique_by_its_arguments(app: Liteq) -> None:
    first = app.send_task("elsewhere.task", (1,), {"day": "x"}, unique=True)

    assert app.send_task("elsewhere.task", (1,), {"day": "x"}, unique=True).id == first.id
    assert not app.send_task("elsewhere.task", (2,), {"day": "x"}, unique=True).duplicate
    by_day = [
        app.send_task("elsewhere.task", (number,), {"day": "x"}, unique_key="day")
        for number in (3, 4)
    ]
    assert [one.duplicate for one in by_day] == [False, True]


# What the second gets


def test_the_second_is_given_the_result_of_the_first(app: Liteq, t: Inline) -> None:
    report = report_of(app)
    first, second = report.delay(1), report.delay(1)

    t.drain()

    assert (second.get(), second.duplicate, second == first) == (1, True, True)
    assert not report.delay(1).duplicate  # it is over: a new call


def test_the_second_may_be_skipped(app: Liteq, t: Inline) -> None:
    report = report_of(app, on_conflict="skip")
    first, second = report.delay(1), report.delay(1)

    assert isinstance(second, EagerResult)
    assert (second.state, second.get(), second.duplicate) == ("IGNORED", None, True)
    assert second.id != first.id
    assert [run.id for run in t.drain()] == [first.id]


def test_the_second_may_be_an_error(app: Liteq) -> None:
    report = report_of(app, on_conflict="raise")
    first = report.delay(1)

    with pytest.raises(DuplicateTask, match=f"a call of 'report'.*{first.id}") as caught:
        report.delay(1)

    assert caught.value.id == first.id


@pytest.mark.parametrize("on_conflict", ["return", "skip", "raise", "replace"])
def test_a_call_that_has_expired_is_no_duplicate(
    app: Liteq, t: Inline, on_conflict: str
) -> None:
    report = report_of(app, on_conflict=on_conflict)
    first = report.apply_async((1,), expires=30)
    t.clock.advance(30)
    assert first.state == "REVOKED"

    second = report.delay(1)

    assert (second == first, second.duplicate) == (False, False)
    assert [run.id for run in t.drain()] == [second.id]
    assert app.AsyncResult(first.id).state == "REVOKED"


def test_a_call_that_has_expired_is_no_duplicate_of_many(app: Liteq, t: Inline) -> None:
    report = report_of(app)
    report.apply_async((1,), expires=30)
    t.clock.advance(30)

    first, second = report.enqueue_many([(1,), (1,)])

    assert (first.duplicate, second.duplicate, second == first) == (False, True, True)


def test_the_second_may_replace_what_waits(app: Liteq, t: Inline) -> None:
    report = report_of(app, unique_key="day", on_conflict="replace")
    first, second = report.delay(1), report.delay(2)

    t.drain()

    assert (second.id, second.duplicate) == (first.id, True)
    assert first.get() == 2


def test_a_key_is_kept_for_some_time(app: Liteq, t: Inline) -> None:
    report = report_of(app, unique_for=timedelta(minutes=5))
    first = report.delay(1)
    t.drain()

    again = report.delay(1)
    assert (again.id, again.get()) == (first.id, 1)
    t.clock.advance(timedelta(minutes=6))
    assert not report.delay(1).duplicate


def test_a_burst_of_calls_is_one_call_after_it(app: Liteq, t: Inline) -> None:
    report = report_of(app, unique_key="day", debounce=5)
    results = []
    for shop in range(4):
        results.append(report.delay(shop))
        t.clock.advance(3)
        assert t.drain() == []
    t.clock.advance(2)

    runs = t.drain()

    assert len({result.id for result in results}) == 1
    assert [run.args for run in runs] == [(3,)]


def test_a_burst_without_end_is_run_after_the_longest_wait(app: Liteq, t: Inline) -> None:
    report = report_of(app, debounce=5, debounce_max=12)
    first = report.delay(1)
    t.clock.advance(timedelta(seconds=4))
    report.delay(1)
    t.clock.advance(timedelta(seconds=4))
    report.delay(1)

    run_at = record(app, first.id).message.run_at

    assert run_at == NOON.timestamp() + 12


def test_the_longest_wait_is_ten_times_the_debounce(app: Liteq, t: Inline) -> None:
    report = report_of(app, debounce=5)
    first = report.delay(1)
    for _ in range(20):
        t.clock.advance(timedelta(seconds=4))
        if not report.delay(1).duplicate:
            break

    assert record(app, first.id).message.run_at == NOON.timestamp() + 50


# With everything else


def test_many_calls_at_once_are_told_apart(app: Liteq) -> None:
    report = report_of(app)
    before = report.delay(5)

    many = report.enqueue_many([(1,), (2,), (1,), (5,)])

    assert many.ids[0] == many.ids[2] != many.ids[1]
    assert many.ids[3] == before.id
    assert app.broker.counts() == {"default": {"queued": 3}}


def test_many_calls_with_an_option_are_told_apart(app: Liteq) -> None:
    @app.task
    def plain(x: int) -> None: ...

    many = plain.enqueue_many([(1,), (1,), (2,)], unique=True, on_conflict="skip")

    assert [type(one) for one in many] == [AsyncResult, EagerResult, AsyncResult]
    assert app.broker.counts() == {"default": {"queued": 2}}


def test_a_workflow_with_a_call_that_is_alive_is_refused(app: Liteq) -> None:
    report = report_of(app)
    first = report.delay(1)

    with pytest.raises(DuplicateTask, match="a workflow cannot do without") as caught:
        group(report.s(1), report.s(2)).delay()
    with pytest.raises(DuplicateTask):
        chain(report.s(3), report.si(1)).delay()
    with pytest.raises(DuplicateTask):
        group(report.s(4), report.s(4)).delay()

    assert caught.value.id == first.id
    assert app.broker.counts() == {"default": {"queued": 1}}


def test_a_workflow_holds_the_keys_of_its_calls(app: Liteq, t: Inline) -> None:
    report = report_of(app)
    result = chain(report.s(1), report.si(2)).delay()

    assert report.delay(2).id == result.id
    t.drain()
    assert result.get() == 2


def test_the_trail_of_a_task_has_what_stands_for_its_call(app: Liteq, t: Inline) -> None:
    report = report_of(app)
    skipping = report_of(app, name="skipping", on_conflict="skip")

    @app.task
    def caller() -> None:
        report.delay(1)
        skipping.delay(1)

    first, second = report.delay(1), skipping.delay(1)
    result = caller.apply_async(priority=9)
    t.drain()

    assert [child.id for child in result.children or ()] == [first.id]
    assert second.successful()


def test_a_retry_keeps_the_key(app: Liteq, t: Inline) -> None:
    tries: list[int] = []
    seen: list[bool] = []

    @app.task(bind=True, unique=True)
    def flaky(self: Any, x: int) -> int:
        tries.append(x)
        seen.append(flaky.delay(x).duplicate)
        if len(tries) < 3:
            raise self.retry(countdown=0)
        return x

    flaky.delay(1)
    t.drain()

    assert tries == [1, 1, 1]
    assert seen == [True, True, True]


def test_a_call_put_in_the_place_of_a_unique_one_has_its_key(app: Liteq, t: Inline) -> None:
    report = report_of(app)
    seen: list[bool] = []

    @app.task(bind=True, unique=True)
    def outer(self: Any) -> Any:
        raise self.replace(inner.s())

    @app.task
    def inner() -> int:
        seen.append(outer.delay().duplicate)
        return 1

    assert report is not None
    result = outer.delay()
    t.drain()

    assert seen == [True]
    assert result.get() == 1
    assert not outer.delay().duplicate


def test_eager_calls_have_nothing_to_be_unique_among(app: Liteq) -> None:
    app.conf.task_always_eager = True
    report = report_of(app, on_conflict="raise")

    assert [report.delay(1).get(), report.delay(1).get()] == [1, 1]


# What cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_conflict": "skip"}, "on_conflict is for unique calls: add unique=True"),
        ({"unique_for": 5}, "unique_for is for unique calls"),
        ({"unique": True, "on_conflict": "wait"}, "on_conflict must be one of return, skip"),
        ({"unique": True, "unique_for": 0}, "unique_for must be a number of seconds above 0"),
        ({"unique": True, "unique_for": 5, "on_conflict": "replace"}, "keeps the key after"),
        ({"debounce": 5, "on_conflict": "return"}, "debounce replaces what waits"),
        ({"debounce": 5, "debounce_max": 2}, "debounce_max 2 is shorter than debounce 5"),
        ({"unique": True, "debounce_max": 2}, "the longest wait of a debounce"),
        ({"unique": 1}, "unique must be True or False"),
        ({"unique_key": 5}, "unique_key must name the arguments that count"),
        ({"unique_key": []}, "unique_key must name the arguments that count"),
        ({"debounce": -1}, "debounce must be a number of seconds above 0"),
    ],
)
def test_options_that_cannot_be_are_refused(
    app: Liteq, options: dict[str, Any], message: str
) -> None:
    @app.task
    def plain(x: int) -> None: ...

    with pytest.raises((TypeError, ValueError), match=message):
        app.task(**options)(lambda x: x)
    with pytest.raises((TypeError, ValueError), match=message):
        plain.apply_async((1,), **options)


def test_a_debounced_call_has_no_time_of_its_own(app: Liteq) -> None:
    report = report_of(app, debounce=5)

    with pytest.raises(ValueError, match="debounce sets the time of a call"):
        report.apply_async((1,), countdown=60)
