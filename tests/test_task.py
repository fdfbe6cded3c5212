from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, get_type_hints
from unittest import mock
from unittest.mock import patch
from weakref import ref
from zoneinfo import ZoneInfo

import pytest
from api import app_in_memory, record
from world import FakeClock

from liteq import AsyncTask, BoundTask, Liteq, Task, current_task
from liteq.exceptions import (
    AlreadyEnqueued,
    ConfigWarning,
    ContentDisallowed,
    EncodeError,
    Ignore,
    ImproperlyConfigured,
    MaxRetriesExceededError,
    MessageTooLarge,
    Reject,
    Retry,
)
from liteq.message import Message
from liteq.signals import after_task_publish, before_task_publish


@pytest.fixture
def app(clock: FakeClock) -> Iterator[Liteq]:
    with app_in_memory(clock=clock) as app:
        yield app


def sent(app: Liteq, result: Any) -> Message:
    return record(app, result.id).message


# A call and its message


def test_a_call_is_in_the_store_when_delay_returns(app: Liteq) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    result = add.delay(1, y=2)

    message = sent(app, result)
    assert (message.task, message.queue, message.priority) == (add.name, "default", 0)
    assert json.loads(message.body) == [[1], {"y": 2}]
    assert (result.state, result.detail) == ("PENDING", "queued")


class Tenant(Task[..., Any]):
    """What a Celery project does to give every call a header."""

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        options.setdefault("headers", {})["tenant"] = "blue"
        return super().apply_async(args, kwargs, **options)


async def _adelay(task: Any) -> Any:
    return await task.adelay(1)


async def _aapply_async(task: Any) -> Any:
    return await task.aapply_async((1,))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"queue": "mail", "priority": 3, "time_limit": 7.0, "max_deliveries": 2},
        {"ignore_result": True, "serializer": "json", "result_expires": 60},
        {"expires": 60},
        {"rate_limit": "1/m"},
        {"unique": True},
    ],
    ids=["plain", "options", "result", "expires", "limited", "unique"],
)
def test_delay_sends_what_apply_async_sends(app: Liteq, options: dict[str, Any]) -> None:
    task = app.task(name="add", **options)(lambda x, y=1: x + y)

    short, long = task.delay(1, y="é"), task.apply_async((2,), {"y": "é"})

    one, other = sent(app, short), sent(app, long)
    assert one._replace(id="", body=b"", unique_key=None) == other._replace(
        id="", body=b"", unique_key=None
    )
    assert one.body == other.body.replace(b"2", b"1")
    assert (short.ignored, short.id != long.id) == (long.ignored, True)


@pytest.mark.parametrize(
    "send",
    [
        lambda task: task.delay(1),
        lambda task: task.apply_async((1,)),
        lambda task: task.s(1).delay(),
        lambda task: task.s(1).apply_async(),
        lambda task: asyncio.run(_adelay(task)),
        lambda task: asyncio.run(_aapply_async(task)),
    ],
    ids=["delay", "apply_async", "s.delay", "s.apply_async", "adelay", "aapply_async"],
)
def test_a_class_with_an_apply_async_of_its_own_sends_every_call(app: Liteq, send: Any) -> None:
    @app.task(base=Tenant)
    def work(x: int) -> None: ...

    message = sent(app, send(work))

    assert json.loads(message.body) == [[1], {}]
    assert message.headers == {"tenant": "blue"}


def test_a_class_with_both_of_its_own_is_asked_once(app: Liteq) -> None:
    asked = []

    class Both(Tenant):
        async def aapply_async(
            self, args: Any = None, kwargs: Any = None, **options: Any
        ) -> Any:
            asked.append("aapply_async")
            return await super().aapply_async(args, kwargs, **options)

        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            asked.append("apply_async")
            return super().apply_async(args, kwargs, **options)

    @app.task(base=Both)
    def work(x: int) -> None: ...

    asyncio.run(_adelay(work))

    assert asked == ["aapply_async"]


def test_an_apply_async_that_a_test_has_replaced_is_what_delay_calls(app: Liteq) -> None:
    @app.task
    def work(x: int) -> None: ...

    with mock.patch.object(work, "apply_async") as apply_async:
        work.delay(1)

    apply_async.assert_called_once_with((1,), {})


def test_a_bind_that_was_forgotten_or_is_too_much_is_said(app: Liteq) -> None:
    @app.task
    def unbound(self: Any, x: int) -> None: ...

    @app.task(bind=True)
    def bound(x: int) -> None: ...

    @app.task(bind=True)
    def right(self: Any, x: int) -> None: ...

    with pytest.raises(
        TypeError, match=r"'x' \(its first .* is self: is bind=True missing\?\)$"
    ):
        unbound.delay(1)
    with pytest.raises(
        TypeError, match=r"was given \(bind=True gives .* first parameter, 'x'\)$"
    ):
        bound.delay(1)
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'x'$"):
        right.delay()


def test_the_options_of_a_task_are_those_of_its_calls(app: Liteq) -> None:
    @app.task(
        queue="high",
        priority=7,
        time_limit=10,
        soft_time_limit=5,
        acks_late=False,
        ignore_result=True,
        max_deliveries=9,
        result_expires=timedelta(hours=1),
        store_errors_even_if_ignored=True,
    )
    def work() -> None: ...

    message = sent(app, work.delay())

    assert (message.queue, message.priority) == ("high", 7)
    assert (message.time_limit, message.soft_time_limit) == (10, 5)
    assert not message.acks_late
    assert message.ignore_result
    assert message.store_errors
    assert message.max_deliveries == 9
    assert message.result_expires == 3600


def test_the_options_of_a_call_beat_those_of_the_task(app: Liteq) -> None:
    @app.task(queue="high", priority=7, time_limit=10, ignore_result=True)
    def work() -> None: ...

    result = work.apply_async(queue="low", priority=1, time_limit=20, ignore_result=False)

    message = sent(app, result)
    assert (message.queue, message.priority, message.time_limit) == ("low", 1, 20)
    assert not message.ignore_result


def test_an_option_set_on_a_task_later_is_heeded(app: Liteq) -> None:
    @app.task
    def work() -> None: ...

    work.delay()
    work.queue = "moved"

    assert sent(app, work.delay()).queue == "moved"


def test_an_option_given_as_none_counts_as_not_given(app: Liteq) -> None:
    @app.task(queue="high")
    def work() -> None: ...

    assert sent(app, work.apply_async(queue=None, countdown=None)).queue == "high"


@pytest.mark.parametrize("wrong", ["5", 5.0, True, 0, -1, 2**31])
def test_a_number_of_deliveries_that_is_none_is_refused_at_the_call(
    app: Liteq, wrong: Any
) -> None:
    class Often(Task[..., Any]):
        name = "often"
        max_deliveries = wrong

    plain = app.task(name="plain")(lambda: None)
    for call in (
        app.register_task(Often).delay,
        lambda: plain.apply_async(max_deliveries=wrong),
        lambda: app.send_task("any", max_deliveries=wrong),
    ):
        with pytest.raises((TypeError, ValueError), match="max_deliveries"):
            call()


@pytest.mark.parametrize("wrong", [-1, 10**30])
@pytest.mark.parametrize("option", ["retries", "group_index", "replaced_task_nesting"])
def test_a_number_that_no_store_counts_is_refused_at_the_call(
    app: Liteq, option: str, wrong: int
) -> None:
    plain = app.task(name="plain")(lambda: None)

    with pytest.raises(ValueError, match=f"{option} {wrong} is not between"):
        plain.apply_async(**{option: wrong})


def test_a_death_of_the_process_is_a_failure_if_the_task_says_so(app: Liteq) -> None:
    @app.task(reject_on_worker_lost=False)
    def once() -> None: ...

    @app.task
    def again() -> None: ...

    assert sent(app, once.delay()).max_deliveries == 1
    assert sent(app, again.delay()).max_deliveries is None


def test_headers_and_what_else_rides_along_are_kept(app: Liteq) -> None:
    @app.task
    def work(secret: str) -> None: ...

    result = work.apply_async(
        ("x",),
        headers={"trace": "t1"},
        argsrepr="(…)",
        kwargsrepr="{}",
        shadow="work-1",
        correlation_id="c1",
        reply_to="r1",
        origin="gen1@here",
    )

    message = sent(app, result)
    assert message.headers == {"trace": "t1"}
    assert (message.argsrepr, message.shadow, message.reply_to) == ("(…)", "work-1", "r1")
    assert message.origin == "gen1@here"
    assert message.properties == {"correlation_id": "c1"}


def test_utc_of_a_call_is_accepted_and_said_to_have_no_effect(app: Liteq) -> None:
    @app.task
    def work() -> None: ...

    with pytest.warns(
        ConfigWarning, match=r"no effect in liteq: utc=… \(a time without a zone"
    ):
        work.apply_async(utc=True)


def test_a_task_may_name_its_calls(app: Liteq) -> None:
    class Named(Task[..., Any]):
        def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str | None:
            return f"{self.name}-{args[0]}"

    @app.task(base=Named, name="work")
    def work(n: int) -> None: ...

    assert sent(app, work.delay(4)).shadow == "work-4"


def test_transport_options_of_a_message_server_are_accepted(app: Liteq) -> None:
    @app.task
    def work() -> None: ...

    def call() -> None:
        work.apply_async(producer=object(), mandatory=True, delivery_mode=2, exchange="x")
        work.apply_async(producer=object(), connection=None, routing_key="x")

    with pytest.warns(ConfigWarning) as said:
        call()

    names = [str(warning.message).split()[4] for warning in said]
    assert names == ["delivery_mode=…", "exchange=…", "mandatory=…", "producer=…"]
    assert {warning.filename for warning in said} == {__file__}


def test_the_same_call_under_the_same_id_is_one_call(app: Liteq) -> None:
    @app.task
    def work(n: int) -> None: ...

    work.apply_async((1,), task_id="order-1")
    work.apply_async((1,), task_id="order-1")

    assert app.broker.counts()["default"]["queued"] == 1
    with pytest.raises(AlreadyEnqueued):
        work.apply_async((2,), task_id="order-1")


# What a caller may not do


@pytest.mark.parametrize(
    ("args", "kwargs", "complaint"),
    [
        ((), {}, "missing 2 required positional arguments: 'x' and 'y'"),
        ((1, 2, 3), {}, "takes 2 positional arguments but 3 were given"),
        ((1,), {"x": 1, "y": 2}, "got multiple values for argument 'x'"),
        ((1, 2), {"zz": 3}, "unexpected keyword argument 'zz'"),
        ((1, 2), {"flag": True, "no": 1}, "unexpected keyword argument 'no'"),
    ],
)
def test_arguments_that_the_function_does_not_take_are_an_error_in_the_caller(
    app: Liteq, args: Any, kwargs: Any, complaint: str
) -> None:
    @app.task
    def add(x: int, y: int, *, flag: bool = False) -> int:
        return x + y

    complaint = complaint.replace("takes 2 positional arguments but 3 were given", "takes 2")
    with pytest.raises(TypeError, match=rf"^add\(\) .*{complaint}"):
        add.apply_async(args, kwargs)
    assert app.broker.counts() == {}


@pytest.mark.parametrize(
    "call",
    [
        lambda t: t.delay(1, 2, 3, b=4, c=5),
        lambda t: t.delay(1, 2, b=2),
        lambda t: t.apply_async([1, 2], {"b": 0}),
    ],
)
def test_all_kinds_of_parameters_are_checked(app: Liteq, call: Any) -> None:
    @app.task
    def work(a: int, /, *rest: int, b: int, **more: int) -> None: ...

    call(work)
    with pytest.raises(TypeError, match="'b'"):
        work.delay(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        work.delay(a=1, b=2)


def test_a_bound_task_is_checked_without_its_self(app: Liteq) -> None:
    @app.task(bind=True)
    def work(self: BoundTask, n: int) -> None: ...

    work.delay(1)
    with pytest.raises(TypeError, match="work"):
        work.delay()  # type: ignore[call-arg]


@pytest.mark.parametrize("options", [{"typing": False}, {}])
def test_checking_can_be_turned_off(app: Liteq, options: Any) -> None:
    app.conf.strict_typing = bool(options)

    @app.task(**options)
    def work(n: int) -> None: ...

    work.apply_async(("too", "many"))


def test_a_value_that_cannot_be_sent_is_named_by_its_path(app: Liteq) -> None:
    @app.task
    def work(*args: Any, **kwargs: Any) -> None: ...

    with pytest.raises(EncodeError, match=r"args\[1\]\[.?user.?\].*object"):
        work.delay(1, {"user": object()})
    with pytest.raises(EncodeError, match=r"kwargs"):
        work.delay(x=object())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"countdown": math.nan}, "countdown must be a finite number"),
        ({"countdown": math.inf}, "countdown must be a finite number"),
        ({"countdown": 10**400}, "countdown must be a finite number"),
        ({"countdown": 1e12}, "countdown 1000000000000.0 lies outside"),
        ({"eta": datetime(9999, 12, 31, 23, tzinfo=ZoneInfo("Etc/GMT+12"))}, "lies outside"),
        ({"eta": datetime(1900, 1, 1, tzinfo=UTC)}, "outside of the years 1970"),
        ({"eta": "soon"}, "eta 'soon' is not an ISO 8601"),
        ({"expires": math.inf}, "expires must be a finite number"),
        ({"priority": 10}, "priority 10 is not between 0 and 9"),
        ({"priority": -1}, "priority -1 is not between 0 and 9"),
        (
            {"time_limit": 5, "soft_time_limit": 10},
            "soft_time_limit 10 is longer than time_limit",
        ),
        ({"time_limit": -1}, "time_limit must be a positive number"),
        ({"result_expires": -1}, "result_expires must be 0 or more"),
    ],
)
def test_a_value_out_of_its_range_is_an_error(app: Liteq, options: Any, complaint: str) -> None:
    @app.task
    def work() -> None: ...

    with pytest.raises(ValueError, match=complaint):
        work.apply_async(**options)
    assert app.broker.counts() == {}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"countdown": "soon"}, "countdown must be a number of seconds"),
        ({"countdown": True}, "countdown must be a number of seconds"),
        ({"eta": 5}, "eta must be a datetime"),
        ({"priority": "high"}, "priority must be an integer"),
        ({"queue": 5}, "queue must be a name"),
        ({"headers": 5}, "headers must be a mapping"),
        ({"headers": {"x": object()}}, r"headers\['x'\]: object is not plain JSON"),
        ({"args": "abc"}, "args must be a list or a tuple, not str"),
        ({"kwargs": [1]}, "kwargs must be a mapping, not list"),
        ({"link": 5}, "link takes signatures"),
        ({"task_id": 5}, "task_id must be text, not 5"),
        ({"shadow": 5}, "shadow must be text, not 5"),
        ({"stamped_headers": [5]}, "a stamped header must be text, not 5"),
        ({"root_id": 5}, "root_id must be text, not 5"),
        ({"retries": "x"}, "retries must be a whole number, not 'x'"),
        ({"result_expires": "1h"}, "result_expires must be a number of seconds, not '1h'"),
        (
            {"retry_policy": {"max_retry": 1}},
            "no option 'max_retry'; did you mean 'max_retries'",
        ),
        ({"countdwn": 5}, "has no option 'countdwn'; did you mean 'countdown'"),
        ({"zzzzzz": 5}, "has no option 'zzzzzz'$"),
        ({"delay": 5}, "has no option 'delay'; did you mean 'countdown'"),
        ({"job_id": "a"}, "did you mean 'task_id'"),
        ({"max_retries": 5}, r"it is an option of the task, @app.task\(max_retries=…\)"),
        ({"declar": 5}, "has no option 'declar'$"),  # an option that has no effect
    ],
)
def test_a_value_of_the_wrong_kind_is_an_error(
    app: Liteq, options: Any, complaint: str
) -> None:
    @app.task
    def work(*args: Any, **kwargs: Any) -> None: ...

    with pytest.raises(TypeError, match=complaint):
        work.apply_async(**options)
    assert app.broker.counts() == {}


def test_a_task_is_sent_by_its_name_and_by_nothing_else(app: Liteq) -> None:
    @app.task
    def work() -> None: ...

    for wrong in (work, "", None):
        with pytest.raises(TypeError, match="send_task takes the name of a task"):
            app.send_task(wrong)  # type: ignore[arg-type]
    assert app.broker.counts() == {}


def test_options_of_a_task_that_have_no_effect_are_said_once(app: Liteq) -> None:
    class Base(Task[..., Any]):
        send_events = False

    def define() -> None:
        app.task(name="one", compression="gzip")(lambda: None)
        app.task(name="two", compression="gzip", base=Base)(lambda: None)

    with pytest.warns(ConfigWarning) as said:
        define()

    names = [str(warning.message).split()[7] for warning in said]
    assert names == ["compression", "send_events"]
    assert {warning.filename for warning in said} == {__file__}


def test_a_body_that_is_too_large_is_an_error(app: Liteq) -> None:
    app.conf.task_max_body_size = 100

    @app.task
    def work(text: str) -> None: ...

    with pytest.raises(MessageTooLarge, match="more than the 100 of task_max_body_size"):
        work.delay("x" * 100)


def test_the_soft_limit_of_a_task_may_not_be_the_longer(app: Liteq) -> None:
    @app.task(time_limit=5, soft_time_limit=10)
    def work() -> None: ...

    with pytest.raises(ValueError, match="soft_time_limit 10 is longer"):
        work.delay()


# When


def test_a_call_that_is_prepared_counts_from_when_it_is_sent(
    app: Liteq, clock: FakeClock
) -> None:
    @app.task
    def work() -> None: ...

    until = clock.now() + 60
    relative: dict[str, Any] = {"countdown": 10, "expires": 20}
    send = app.sender.prepare(work, None, None, relative)
    at = {"eta": datetime.fromtimestamp(until, UTC), "priority": 7}
    send_at = app.sender.prepare(work, None, None, at)
    clock.step(30)
    counted, fixed = sent(app, send()), sent(app, send_at())

    assert counted.run_at == clock.now() + 10
    assert counted.expires_at == clock.now() + 20
    assert (fixed.run_at, fixed.priority) == (until, 7)


def test_a_call_that_is_prepared_is_a_child_once_it_is_sent(app: Liteq) -> None:
    @app.task
    def work() -> None: ...

    @app.task
    def caller() -> list[int]:
        request = current_task.request
        send = app.sender.prepare(work, None, None, {})
        before = len(request.children)
        send()
        return [before, len(request.children)]

    result = caller.delay()
    app.run_until_empty()

    assert result.get(timeout=0) == [0, 1]


def test_a_countdown_counts_from_now(app: Liteq, clock: FakeClock) -> None:
    @app.task
    def work() -> None: ...

    result = work.apply_async(countdown=90)

    assert sent(app, result).run_at == clock.now() + 90
    assert result.detail == "scheduled"
    assert sent(app, work.apply_async(countdown=timedelta(minutes=1))).run_at == (
        clock.now() + 60
    )


@pytest.mark.parametrize("countdown", [0, -5, 0.0])
def test_a_countdown_that_is_over_is_now(app: Liteq, countdown: float) -> None:
    @app.task
    def work() -> None: ...

    assert work.apply_async(countdown=countdown).detail == "queued"


def test_a_countdown_wins_over_an_eta(app: Liteq, clock: FakeClock) -> None:
    @app.task
    def work() -> None: ...

    result = work.apply_async(countdown=5, eta=datetime(2030, 1, 1, tzinfo=UTC))

    assert sent(app, result).run_at == clock.now() + 5


def test_a_naive_eta_is_read_in_the_zone_of_the_app(app: Liteq) -> None:
    @app.task
    def work() -> None: ...

    app.conf.timezone = "Europe/Paris"
    expected = datetime(2030, 7, 1, 10, tzinfo=UTC).timestamp()

    for eta in (
        datetime(2030, 7, 1, 12),  # noqa: DTZ001 (that is the point)
        datetime(2030, 7, 1, 10, tzinfo=UTC),
        "2030-07-01T12:00:00",
        "2030-07-01T10:00:00Z",
    ):
        assert sent(app, work.apply_async(eta=eta)).run_at == expected


def test_an_expiry_is_a_number_of_seconds_or_a_time(app: Liteq, clock: FakeClock) -> None:
    @app.task(expires=60)
    def work() -> None: ...

    at = datetime(2030, 1, 1, tzinfo=UTC)
    assert sent(app, work.delay()).expires_at == clock.now() + 60
    assert sent(app, work.apply_async(expires=5)).expires_at == clock.now() + 5
    assert sent(app, work.apply_async(expires=at)).expires_at == at.timestamp()
    clock.advance(10)
    assert sent(app, work.delay()).expires_at == clock.now() + 60


def test_an_expiry_in_the_past_warns_and_ends_revoked(
    app: Liteq, caplog: pytest.LogCaptureFixture
) -> None:
    @app.task
    def work() -> None: ...

    with caplog.at_level(logging.WARNING, "liteq.app"):
        result = work.apply_async(expires=-5)

    assert "expired 5.000 s before it was sent" in caplog.text
    assert result.state == "REVOKED"
    assert app.run_until_empty() == 0


# Links


def test_links_are_sent_with_the_call_and_wait_for_it(app: Liteq) -> None:
    @app.task
    def work(*args: Any) -> None: ...

    result = work.apply_async(
        (1,), link=[work.s(2), work.si(3)], link_error=work.s(4), queue="high"
    )

    first = sent(app, result)
    assert first.has_links
    waiting = {
        json.loads(r.message.body)[0][0]: r.message for r in app.broker.browse("waiting")
    }
    assert waiting.keys() == {2, 3, 4}
    assert {m.immutable for m in waiting.values()} == {False, True}
    assert {m.root_id for m in waiting.values()} == {first.id}
    assert {m.parent_id for m in waiting.values()} == {first.id}
    assert not waiting[2].has_links


def test_links_of_links_follow(app: Liteq) -> None:
    @app.task
    def work(*args: Any) -> None: ...

    result = work.apply_async((1,), link=work.s(2).set(link=work.s(3)))

    waiting = app.broker.browse("waiting")
    assert len(waiting) == 2
    assert {r.message.root_id for r in waiting} == {result.id}


def test_a_callback_gets_the_result_in_front_of_its_own_arguments(app: Liteq) -> None:
    seen = []

    @app.task
    def double(n: int) -> int:
        return n * 2

    @app.task
    def note(*args: Any) -> None:
        seen.append(args)

    double.apply_async((4,), link=[note.s("own"), note.si("alone")])
    app.run_until_empty()

    assert sorted(seen, key=len) == [("alone",), (8, "own")]


def test_the_times_of_a_link_count_from_the_end_of_its_source(
    app: Liteq, clock: FakeClock
) -> None:
    @app.task
    def first() -> int:
        return 1

    @app.task
    def second(n: int) -> int:
        return n

    link = second.s().set(countdown=10, expires=20, task_id="linked")
    first.apply_async(link=link)
    clock.advance(100)
    app.run_until_empty()

    linked = record(app, "linked")
    assert linked.state == "scheduled"
    assert (linked.packed[5], linked.packed[6]) == (clock.now() + 10, clock.now() + 20)
    clock.advance(11)
    app.run_until_empty()
    assert app.AsyncResult("linked").get(timeout=0) == 1


def test_an_errback_gets_the_id_or_the_error(app: Liteq) -> None:
    seen: list[Any] = []

    @app.task
    def fail() -> None:
        raise ValueError("no")

    @app.task
    def by_id(id: str) -> None:
        seen.append(id)

    @app.task
    def by_error(request: Any, exc: BaseException, traceback: str) -> None:
        seen.append((request.id, repr(exc), "ValueError: no" in traceback))

    result = fail.apply_async(link_error=[by_id.s(), by_error.s()])
    app.run_until_empty()

    assert sorted(seen, key=str) == [(result.id, "ValueError('no')", True), result.id]


# Inside a task


def test_a_call_made_by_a_task_is_its_child(app: Liteq) -> None:
    @app.task
    def inner() -> None: ...

    @app.task
    def outer() -> list[str]:
        return [inner.delay().id, inner.apply_async(add_to_parent=False).id]

    result = outer.delay()
    app.run_until_empty()

    ids = result.get()
    assert [sent(app, result.app.AsyncResult(id)).parent_id for id in ids] == [result.id] * 2
    assert {sent(app, result.app.AsyncResult(id)).root_id for id in ids} == {result.id}
    assert result.children == [ids[0]]


def test_a_call_in_a_format_that_no_worker_reads_is_refused(app: Liteq) -> None:
    @app.task
    def work() -> None: ...

    sends: list[Callable[[], object]] = [
        lambda: work.apply_async(serializer="pickle"),
        lambda: work.enqueue_many([()], serializer="pickle"),
        lambda: (work.si().set(serializer="pickle") | work.si()).delay(),
    ]
    for send in sends:
        with pytest.raises(ContentDisallowed, match=r"pickle.*allows only json"):
            send()

    app.conf.accept_content = ["json", "application/x-python-serialize"]
    assert sent(app, work.apply_async(serializer="pickle")).content_type == "pickle"


@pytest.mark.parametrize("where", ["task", "settings"])
def test_calls_of_a_task_whose_format_no_worker_reads_are_refused(
    app: Liteq, where: str
) -> None:
    own = {"serializer": "pickle"} if where == "task" else {}
    if where == "settings":
        app.conf.task_serializer = "pickle"

    @app.task(**own)
    def work() -> None: ...

    sends: list[Callable[[], object]] = [
        work.delay,
        lambda: work.apply_async(countdown=1),
        lambda: work.enqueue_many([()]),
        lambda: (work.si() | work.si()).delay(),
        lambda: app.send_task(work.name),
    ]
    for send in sends:
        with pytest.raises(ContentDisallowed, match=r"pickle.*allows only json"):
            send()

    assert sent(app, work.apply_async(serializer="json")).content_type == "json"
    app.conf.accept_content = ["pickle"]
    assert sent(app, work.delay()).content_type == "pickle"


def test_a_child_inherits_the_priority_if_the_settings_say_so(app: Liteq) -> None:
    app.conf.task_inherit_parent_priority = True
    app.conf.task_default_priority = 3

    @app.task
    def inner() -> None: ...

    @app.task
    def outer() -> str:
        return inner.delay().id

    result = outer.apply_async(priority=8)
    app.run_until_empty()

    assert sent(app, app.AsyncResult(result.get())).priority == 8


def test_a_task_without_trail_keeps_no_children(app: Liteq) -> None:
    @app.task
    def inner() -> None: ...

    @app.task(trail=False)
    def outer() -> None:
        inner.delay()

    result = outer.delay()
    app.run_until_empty()

    assert result.children == []


def test_a_direct_call_has_a_request_of_its_own(app: Liteq) -> None:
    @app.task(bind=True)
    def work(self: BoundTask, n: int) -> Any:
        request = self.request
        return request.called_directly, request.id, request.args, current_task.name

    assert work(3) == (True, None, (3,), work.name)
    assert work.request.called_directly


def test_the_request_tells_of_the_attempt(app: Liteq) -> None:
    @app.task(bind=True)
    def work(self: BoundTask, n: int) -> Any:
        request = self.request
        return [
            request.id,
            list(request.args),
            request.retries,
            request.called_directly,
            request.headers,
            request.delivery_info["routing_key"],
            request.ignore_result,
        ]

    result = work.apply_async((3,), headers={"a": 1}, queue="high")
    app.run_until_empty(queues=["high"])

    assert result.get()[:-1] == [result.id, [3], 0, False, {"a": 1}, "high"]
    assert result.get()[-1] is False  # a store may have it as 0


@pytest.mark.parametrize("is_async", [False, True])
def test_a_call_that_is_overridden_still_sees_the_request(app: Liteq, is_async: bool) -> None:
    class Wrapped(Task[..., Any]):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    def seen(self: BoundTask) -> list[Any]:
        return [self.request.id, self.request.called_directly]

    @app.task(base=Wrapped, bind=True)
    def work(self: BoundTask) -> Any:
        return [*seen(self), *(inner(self) if self.request.id else ())]

    @app.task(base=Wrapped, bind=True)
    async def awaited(self: BoundTask) -> Any:
        return [*seen(self), None, True]

    def inner(task: BoundTask) -> Any:
        return task()

    result = (awaited if is_async else work).delay()
    app.run_until_empty()

    assert result.get(timeout=0) == [result.id, False, None, True]


def test_a_request_can_be_pushed_for_a_test(app: Liteq) -> None:
    @app.task(bind=True)
    def work(self: BoundTask) -> str | None:
        return self.request.get("id")

    work.push_request(id="x", called_directly=False)
    try:
        assert work.run() == "x"
    finally:
        work.pop_request()
    assert work.request.id is None


def test_what_is_set_on_a_request_outside_of_a_run_is_seen_by_the_body(app: Liteq) -> None:
    @app.task(bind=True)
    def work(self: BoundTask) -> tuple[int, str | None]:
        return self.request.retries, self.request.id

    work.request.retries = 2
    work.request.update(id="x")
    assert work.run() == (2, "x")
    with patch.object(work.request, "retries", 3):
        assert work.run() == (3, "x")
    assert work.run() == (2, "x")
    work.request.clear()
    assert work.run() == (0, None)


def test_what_is_set_outside_of_a_run_reaches_no_call_and_no_other_thread(app: Liteq) -> None:
    @app.task(bind=True)
    def work(self: BoundTask) -> int:
        return self.request.retries

    @app.task
    def outer() -> tuple[int, int]:
        before = work.run()
        work.request.retries = 5
        return before, work.run()

    work.request.retries = 2
    assert work() == work.apply().get() == 0
    assert outer.apply().get() == (0, 0)
    assert outer() == (2, 5)
    work.request.retries = 2
    with ThreadPoolExecutor(1) as other:
        assert other.submit(work.run).result() == 0
    assert work.run() == 2


def test_a_request_outside_of_a_run_does_not_grow_and_goes_with_its_task() -> None:
    with Liteq("brief", broker="sqlite://", set_as_current=False) as app:
        work: Any = app.task(name="work")(lambda: 1)
        work.add_trail("result")
        assert work.request.children == []
        request = ref(work.request)
    del app, work
    gc.collect()
    assert request() is None


def test_tasks_that_compare_by_their_fields_have_requests_of_their_own(app: Liteq) -> None:
    @dataclass
    class Sized(Task[[], int]):
        size: int

        def run(self) -> int:
            return self.request.retries

    class Other(Sized):
        pass

    small: Any = app.register_task(Sized(1))
    large: Any = app.register_task(Other(1))
    small.request.retries = 2

    assert (small.run(), large.run()) == (2, 0)


def test_a_call_may_say_whether_it_throws_when_it_is_run_in_place(app: Liteq) -> None:
    @app.task
    def failing() -> None:
        raise KeyError("k")

    fail: Any = failing  # `throw` is an option of Task.apply() to those who check types
    assert fail.apply_async(throw=True).state == "PENDING"
    app.conf.update(task_always_eager=True, task_eager_propagates=True)
    assert fail.apply_async(throw=False).state == "FAILURE"
    app.conf.task_eager_propagates = False
    with pytest.raises(KeyError):
        fail.apply_async(throw=True)


def test_a_task_without_a_name_says_how_to_register_it(app: Liteq) -> None:
    class Old(app.Task):  # type: ignore[misc, name-defined]  # a property
        def run(self, n: int) -> int:
            return n

    with pytest.raises(ImproperlyConfigured, match=r"app\.register_task\(Old\)"):
        Old().delay(5)


def test_a_coroutine_can_be_called_and_run(app: Liteq) -> None:
    @app.task
    async def add(x: int, y: int) -> int:
        await asyncio.sleep(0)
        assert current_task.name == add.name
        return x + y

    assert isinstance(add, AsyncTask)
    assert asyncio.run(add(1, 2)) == 3
    result = add.delay(2, 3)
    app.run_until_empty()
    assert result.get() == 5


# Retries


def test_a_task_is_retried_until_it_succeeds(app: Liteq, clock: FakeClock) -> None:
    @app.task(bind=True, default_retry_delay=30)
    def flaky(self: BoundTask, fail: int) -> int:
        if self.request.retries < fail:
            raise self.retry(exc=ValueError("not yet"))
        return int(self.request.retries)

    result = flaky.delay(2)
    app.run_until_empty()
    assert (result.state, result.detail) == ("RETRY", "retrying")
    assert repr(result.result) == "ValueError('not yet')"
    assert record(app, result.id).packed[5] == clock.now() + 30
    for _ in range(2):
        clock.step(30)
        app.run_until_empty()

    assert result.get() == 2
    assert result.retries == 2
    assert [past.outcome for past in result.attempts] == ["retried", "retried"]


@pytest.mark.parametrize("exc", [None, ValueError("no")])
def test_retries_end(app: Liteq, clock: FakeClock, exc: Any) -> None:
    @app.task(bind=True, max_retries=1, default_retry_delay=1)
    def flaky(self: BoundTask) -> None:
        raise self.retry(exc=exc)

    result = flaky.delay()
    for _ in range(3):
        app.run_until_empty()
        clock.advance(1)

    with pytest.raises(type(exc) if exc else MaxRetriesExceededError):
        result.get()
    assert result.retries == 1


def test_a_retry_changes_what_it_names_and_keeps_the_rest(app: Liteq, clock: FakeClock) -> None:
    @app.task(bind=True)
    def work(self: BoundTask, a: int, b: int = 0) -> Any:
        if not self.request.retries:
            raise self.retry(
                kwargs={"b": 5}, countdown=1, priority=9, headers={"try": 2}, queue="other"
            )
        return [a, b, self.request.headers]

    result = work.apply_async((1,), {"b": 2}, priority=3, expires=100, time_limit=50)
    expires = sent(app, result).expires_at
    app.run_until_empty()

    again = sent(app, result)
    assert (again.queue, again.priority, again.time_limit) == ("other", 9, 50)
    assert again.expires_at == expires
    clock.advance(1)
    app.run_until_empty(queues=["other"])
    assert result.get() == [1, 5, {"try": 2}]


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        (None, None, [1, 2, 3]),
        ((7,), None, [7, 0, 3]),
        ((7, 8, 9), None, [7, 8, 9]),
        (None, {"b": 8}, [1, 8, 0]),
        ((7,), {"b": 8}, [7, 8, 0]),
    ],
)
def test_arguments_of_a_retry_replace_those_that_conflict(
    app: Liteq, args: Any, kwargs: Any, expected: Any
) -> None:
    @app.task(bind=True)
    def work(self: BoundTask, a: int = 0, b: int = 0, c: int = 0) -> Any:
        if not self.request.retries:
            raise self.retry(args=args, kwargs=kwargs, countdown=0)
        return [a, b, c]

    result = work.apply_async((1, 2), {"c": 3})
    app.run_until_empty()

    assert result.get() == expected


def test_outside_of_a_worker_a_retry_raises_what_went_wrong(app: Liteq) -> None:
    @app.task(bind=True)
    def work(self: BoundTask, handled: bool) -> None:
        try:
            raise KeyError("inside")
        except KeyError as exc:
            if handled:
                raise self.retry() from exc
        raise self.retry(exc=ValueError("given"))

    with pytest.raises(KeyError, match="inside"):
        work(True)
    with pytest.raises(ValueError, match="given"):
        work(False)


def test_the_arguments_of_a_retried_callback_are_those_it_was_given(app: Liteq) -> None:
    @app.task
    def five() -> int:
        return 5

    @app.task(bind=True)
    def work(self: BoundTask, *args: int) -> Any:
        if not self.request.retries:
            raise self.retry(args=(*args[:-1], 9), countdown=0)
        return list(args)

    five.apply_async(link=work.signature((1,), options={"task_id": "linked"}))
    app.run_until_empty()

    assert app.AsyncResult("linked").get(timeout=0) == [5, 9]


def test_a_retry_may_be_asked_for_and_the_body_go_on_to_its_end(app: Liteq) -> None:
    @app.task(bind=True)
    def work(self: BoundTask) -> str:
        if not self.request.retries:
            assert isinstance(self.retry(throw=False, countdown=0), Retry)
        return f"returned after {self.request.retries} retry"

    result = work.delay()
    app.run_until_empty()

    assert result.get(timeout=0) == "returned after 1 retry"
    assert [past.outcome for past in result.attempts] == ["retried"]
    assert work.apply().get() == "returned after 1 retry"


def test_a_retry_that_was_asked_for_is_made_although_the_body_raises(app: Liteq) -> None:
    @app.task(bind=True)
    def work(self: BoundTask) -> int:
        if not self.request.retries:
            self.retry(throw=False, countdown=0)
            raise OSError("down")
        return self.request.retries

    result = work.delay()
    app.run_until_empty()

    assert result.get(timeout=0) == 1
    assert [str(past.exception) for past in result.attempts] == ["down"]


def test_listed_exceptions_are_retried_by_themselves(app: Liteq, clock: FakeClock) -> None:
    @app.task(autoretry_for=(OSError,), retry_backoff=2, retry_jitter=False, max_retries=2)
    def flaky() -> None:
        raise OSError("down")

    result = flaky.delay()
    waits = []
    for _ in range(3):
        app.run_until_empty()
        waits.append((record(app, result.id).packed[5] or 0) - clock.now())
        clock.advance(60)

    assert waits[:2] == [2, 4]
    with pytest.raises(OSError, match="down"):
        result.get()


def test_a_task_may_ignore_or_reject_its_message(app: Liteq) -> None:
    @app.task
    def ignored() -> None:
        raise Ignore

    @app.task
    def rejected() -> None:
        raise Reject("bad")

    first, second = ignored.delay(), rejected.delay()
    app.run_until_empty()

    assert (first.state, first.get()) == ("IGNORED", None)
    assert second.state == "FAILURE"
    with pytest.raises(Reject):
        second.get()


def test_a_task_that_puts_its_message_back_can_tell_how_often(app: Liteq) -> None:
    starts = []

    @app.task(bind=True)
    def guarded(self: BoundTask) -> int:
        starts.append(self.request.deliveries)
        if self.request.deliveries < 5:
            raise Reject("not yet", requeue=True)
        return int(self.request.retries)

    result = guarded.delay()
    app.run_until_empty()

    assert (result.get(), starts) == (0, [1, 2, 3, 4, 5])
    assert record(app, result.id).deliveries == 1, "max_deliveries counts those that died"


def test_a_message_that_was_put_back_is_redelivered(app: Liteq) -> None:
    @app.task(bind=True)
    def requeues(self: BoundTask) -> str:  # as in Celery's guide
        if not self.request.delivery_info["redelivered"]:
            raise Reject("no reason", requeue=True)
        return "received two times"

    result = requeues.delay()
    app.run_until_empty()

    assert result.get() == "received two times"
    assert requeues.apply().get() == "received two times"
    assert (requeues.si() | requeues.si()).apply().get() == "received two times"


# States of its own


@pytest.mark.parametrize("option", ["acks_on_failure", "acks_on_failure_or_timeout"])
def test_a_failed_message_is_kept_as_a_dead_letter_if_the_task_says_so(
    app: Liteq, option: str
) -> None:
    @app.task(**{option: False})  # type: ignore[call-overload,untyped-decorator]
    def work() -> None:
        raise OSError("down")

    result = work.delay()
    app.run_until_empty()

    assert result.failed()
    assert [dead.id for dead in app.broker.browse("dead")] == [result.id]


def test_a_state_reported_by_the_task_is_shown(app: Liteq) -> None:
    seen = []

    @app.task(bind=True)
    def work(self: BoundTask) -> None:
        self.update_state(state="HALF", meta={"n": 1})
        other = app.AsyncResult("other")
        self.update_state("other", "SEEN", {"by": self.request.id})
        seen.append((other.state, other.info))

    result = work.delay()
    app.run_until_empty()

    assert seen == [("SEEN", {"by": result.id})]
    assert result.state == "SUCCESS"


# Hooks


class Hooked(Task[..., Any]):
    calls: ClassVar[list[Any]] = []

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self.calls.append(("before_start", args))

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self.calls.append(("on_success", retval))

    def on_failure(
        self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        self.calls.append(("on_failure", str(exc)))

    def on_retry(
        self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        self.calls.append(("on_retry", str(exc)))

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        self.calls.append(("after_return", status))


def test_the_hooks_of_a_base_class_are_called(app: Liteq) -> None:
    Hooked.calls.clear()

    @app.task(base=Hooked, bind=True)
    def work(self: Any, n: int) -> int:
        if n == 0:
            raise ValueError("zero")
        if n == 2 and not self.request.retries:
            raise self.retry(exc=KeyError("again"), countdown=0)
        return n

    for n in (1, 0, 2):
        work.apply((n,))

    assert Hooked.calls == [
        ("before_start", (1,)),
        ("on_success", 1),
        ("after_return", "SUCCESS"),
        ("before_start", (0,)),
        ("on_failure", "zero"),
        ("after_return", "FAILURE"),
        ("before_start", (2,)),
        ("on_retry", "'again'"),
        ("before_start", (2,)),
        ("on_success", 2),
        ("after_return", "SUCCESS"),
    ]


def test_there_is_one_instance_of_a_task(app: Liteq) -> None:
    class Connected(Task[..., Any]):
        made = 0

        def __init__(self) -> None:
            type(self).made += 1
            self.connection = object()

    @app.task(base=Connected, bind=True)
    def work(self: Any) -> int:
        return id(self.connection)

    assert work.apply().get() == work.apply().get()
    assert type(work).made == 1


def test_options_are_honoured_as_class_attributes(app: Liteq) -> None:
    class Quick(Task[..., Any]):
        queue = "quick"
        max_retries = 7
        ignore_result = None  # type: ignore[assignment]

        def run(self, n: int) -> int:
            return n

    task = app.register_task(Quick())

    assert sent(app, task.delay(1)).queue == "quick"
    assert task.max_retries == 7
    assert task.ignore_result is False


# Run in place


def test_apply_runs_a_call_without_serialising_it(app: Liteq) -> None:
    class Thing:
        pass

    @app.task
    def same(thing: Any) -> Any:
        return thing

    thing = Thing()
    result = same.apply((thing,))

    assert result.get() is thing
    assert (result.state, result.ready(), result.successful()) == ("SUCCESS", True, True)
    assert app.broker.counts() == {}


def test_a_failure_in_place_is_kept_or_raised(app: Liteq) -> None:
    @app.task
    def fail() -> None:
        raise ValueError("no")

    result = fail.apply()
    assert (result.state, result.failed()) == ("FAILURE", True)
    assert "ValueError: no" in (result.traceback or "")
    with pytest.raises(ValueError, match="no"):
        result.get()
    assert isinstance(result.get(propagate=False), ValueError)
    with pytest.raises(ValueError, match="no"):
        fail.apply(throw=True)


def test_retries_in_place_are_made_at_once(app: Liteq) -> None:
    @app.task(bind=True)
    def flaky(self: BoundTask, n: int) -> int:
        assert self.request.is_eager
        if self.request.retries < 3:
            raise self.retry(args=(n + 1,), countdown=3600)
        return n

    assert flaky.apply((0,)).get() == 3


def test_links_are_run_in_place_too(app: Liteq) -> None:
    seen: list[Any] = []

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    @app.task
    def fail() -> None:
        raise ValueError

    @app.task
    def note(*args: Any) -> None:
        seen.append(args)

    @app.task
    def report(id: str) -> None:
        seen.append(id)

    done = add.apply((1, 2), link=note.s("own"))
    failed = fail.apply(link_error=report.s())

    assert seen == [(3, "own"), failed.id]
    assert (done.get(), [child.name for child in done.children or ()]) == (3, [note.name])
    assert failed.children is None


def test_nobody_waits_for_a_time_in_a_call_that_is_run_in_place(app: Liteq) -> None:
    seen: list[int] = []

    @app.task(bind=True)
    def hour(self: BoundTask, n: int) -> int:
        seen.append(n)
        if not self.request.retries:
            raise self.retry(countdown=3600)
        return n

    @app.task
    def note(n: int) -> None:
        seen.append(-n)

    result = hour.apply((1,), countdown=60, link=note.s().set(countdown=60))

    assert result.get() == 1
    assert seen == [1, 1, -1]


def test_receivers_see_the_retries_of_a_call_that_is_run_in_place(app: Liteq) -> None:
    seen: list[Any] = []

    @before_task_publish.connect
    def before(headers: Any, body: Any, **kw: Any) -> None:
        seen.append((headers["retries"], *body[:2]))
        headers["trace"] = "t1"

    @app.task(bind=True)
    def twice(self: BoundTask, things: object, *, last: bool) -> Any:
        if not self.request.retries:
            raise self.retry(countdown=1)
        return (self.request.headers or {}).get("trace")

    thing = object()  # nothing that could be sent: it stays here

    assert twice.apply((thing,), {"last": True}).get() == "t1"
    assert seen == [(1, (thing,), {"last": True})]


def test_eager_mode_runs_calls_in_place_as_if_they_had_been_sent(app: Liteq) -> None:
    app.conf.task_always_eager = True

    @dataclass
    class Point:
        x: int

    @app.task
    def kind(value: Any) -> str:
        return type(value).__name__

    assert kind.delay((1, 2)).get() == "tuple"
    assert kind.apply_async(({"a"},), countdown=3600).get() == "set"
    with pytest.raises(EncodeError):
        kind.delay(object())
    with pytest.raises(TypeError):
        kind.delay()  # type: ignore[call-arg]


def test_eager_mode_raises_if_the_settings_say_so(app: Liteq) -> None:
    app.conf.task_always_eager = True
    app.conf.task_eager_propagates = True

    @app.task
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail.delay()


def test_results_of_eager_calls_are_stored_if_the_settings_say_so(app: Liteq) -> None:
    app.conf.task_always_eager = True
    app.conf.task_store_eager_result = True

    @app.task
    def add(x: int, y: int) -> int:
        if x < 0:
            raise ValueError("no")
        return x + y

    good, bad = add.delay(1, 2), add.delay(-1, 2)

    assert app.AsyncResult(good.id).get() == 3
    assert app.AsyncResult(bad.id).state == "FAILURE"


def test_waiting_inside_an_eager_task_is_refused(app: Liteq) -> None:
    app.conf.task_always_eager = True

    @app.task
    def inner() -> int:
        return 1

    @app.task
    def outer() -> int:
        return inner.delay().get()

    with pytest.raises(RuntimeError, match="inside a task"):
        outer.delay().get()


def test_an_expired_call_is_revoked_in_place_too(app: Liteq) -> None:
    @app.task
    def work() -> None: ...

    assert work.apply(expires=-1).state == "REVOKED"


# From coroutines


def test_calls_can_be_sent_without_blocking_the_loop(app: Liteq) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    async def main() -> list[str]:
        results = [
            await add.adelay(1, 2),
            await add.aapply_async((1, 2), countdown=5),
            await add.s(1).adelay(2),
            await app.asend_task("elsewhere", (1,)),
        ]
        return [result.detail for result in results]

    assert asyncio.run(main()) == ["queued", "scheduled", "queued", "queued"]


def test_receivers_of_a_call_from_a_coroutine_see_its_context_variables(app: Liteq) -> None:
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[tuple[str, str]] = []

    @before_task_publish.connect
    def before(**_: Any) -> None:
        seen.append(("before", request.get()))

    @after_task_publish.connect
    def after(**_: Any) -> None:
        seen.append(("after", request.get()))

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    calls: dict[str, Any] = {
        "adelay": lambda: add.adelay(1, 2),
        "aapply_async": lambda: add.aapply_async((1, 2)),
        "asend_task": lambda: app.asend_task("elsewhere"),
        "a signature": lambda: add.s(1).adelay(2),
        "a chain": lambda: (add.s(1, 2) | add.s(3)).adelay(),
        "a bulk": lambda: add.aenqueue_many([(1, 2)]),
    }

    async def main() -> None:
        for name, call in calls.items():
            request.set(name)
            await call()

    asyncio.run(main())

    both = [(when, name) for name in calls for when in ("before", "after")]
    assert list(dict.fromkeys(seen)) == both


def test_a_retry_knows_its_signature(app: Liteq) -> None:
    @app.task(bind=True)
    def work(self: BoundTask, n: int) -> Any:
        try:
            self.retry(args=(n + 1,), countdown=5)
        except Retry as steer:
            return [steer.sig.task, steer.sig.args, steer.when]

    assert work.apply((1,)).get() == [work.name, (2,), 5]


def test_a_task_shows_what_it_is(app: Liteq) -> None:
    @app.task(name="sum")
    def add() -> None:
        """Add."""

    assert repr(add) == "<@task: sum of shop>"
    assert (add.__name__, add.__doc__) == ("add", "Add.")


def test_an_ignored_call_in_place_has_no_value(app: Liteq) -> None:
    @app.task
    def ignored() -> None:
        raise Ignore

    assert ignored.apply().state == "IGNORED"


def test_a_state_needs_somebody_who_hears_of_it(app: Liteq) -> None:
    @app.task(bind=True)
    def work(self: BoundTask) -> int:
        self.update_state(state="HALF")
        self.progress(1, 2)
        self.send_event("task-custom")
        return 1

    assert work() == 1
    assert work.apply().get() == 1


def test_a_result_may_be_entered_in_the_trail_by_hand(app: Liteq) -> None:
    @app.task(bind=True)
    def work(self: BoundTask) -> None:
        self.add_trail(self.AsyncResult("elsewhere"))

    result = work.delay()
    app.run_until_empty()

    assert [child.id for child in result.children or ()] == ["elsewhere"]


def test_a_task_has_the_type_hints_of_its_function(app: Liteq) -> None:
    @app.task(bind=True)
    def bound(self: Any, x: str) -> int:
        return 1

    assert get_type_hints(bound) == {"self": Any, "x": str, "return": int}

    @app.task
    def plain(x: int, *, y: str = "") -> list[int]:
        return [x]

    assert get_type_hints(plain) == {"x": int, "y": str, "return": list[int]}
