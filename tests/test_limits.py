"""Limits as users declare them: read, checked, carried by messages, kept by workers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api import app_in_memory, record
from test_worker import running

from liteq import Liteq, Secret, chain, group
from liteq.exceptions import ImproperlyConfigured
from liteq.limits import (
    Concurrency,
    Limit,
    Rate,
    declared,
    limits_by_task,
    merged,
    rate_limit_of,
    write,
)
from liteq.testing import inline


@pytest.fixture
def app() -> Any:
    with app_in_memory() as app:
        yield app


def limits_of(app: Liteq, id: str) -> Any:
    text = record(app, id).message.limits
    return None if text is None else json.loads(text)


# Reading


@pytest.mark.parametrize(
    ("rate", "interval", "burst"),
    [
        (10, 0.1, 1),
        (0.5, 2.0, 1),
        ("10", 0.1, 1),
        ("100/m", 0.6, 1),
        ("0.5/s", 2.0, 1),
        ("7200/h", 0.5, 1),
        ("86400/d", 1.0, 1),
        (" 30 / m ", 2.0, 1),
        ("100/m;burst=20", 0.6, 20),
        (Rate("100/m", burst=5), 0.6, 5),
        ({"rate": "100/m", "burst": 5}, 0.6, 5),
    ],
)
def test_a_rate_is_read(rate: Any, interval: float, burst: int) -> None:
    [one] = declared("t", rate_limit=rate)

    assert one.limit.name == "t:rate"
    assert one.limit.interval == pytest.approx(interval)
    assert one.limit.burst == burst
    assert rate_limit_of("t:rate", rate) == one.limit


@pytest.mark.parametrize("rate", [0, "0", "0/m", None, ()])
def test_no_rate_is_no_limit(rate: Any) -> None:
    assert declared("t", rate_limit=rate) == ()


@pytest.mark.parametrize(
    "rate",
    [
        *("fast", "10/", "10/w", "/m", "-1", "nan", "inf", "10/m;burst=0", "10/m;burst"),
        *(1e-300, "1/d;burst=1000000"),
        *(True, -1, [[10]], {"rate": "10/m", "bust": 1}, {"burst": 1}, b"10/m"),
    ],
)
def test_what_is_no_rate_is_an_error_at_the_decorator(app: Liteq, rate: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="rate"):

        @app.task(rate_limit=rate)
        def mail() -> None: ...


@pytest.mark.parametrize(
    "options",
    [
        {"max_concurrency": 0},
        {"max_concurrency": 1.5},
        {"max_concurrency": True},
        {"max_concurrency": [1, "2"]},
        {"concurrency_key": "user"},
        {"max_concurrency": 1, "concurrency_key": 7},
        {"rate_limit": "1/s", "rate_limit_key": "two words"},
        {"rate_limit": "1/s", "rate_limit_key": "nobody"},
        {"max_concurrency": [Concurrency(1, name="a"), Concurrency(2, name="a")]},
        {"rate_limit": [Rate("1/s", scope="worker"), Rate("1/s", key="a")]},
    ],
)
def test_limits_that_cannot_be_are_an_error_at_the_decorator(
    app: Liteq, options: dict[str, Any]
) -> None:
    with pytest.raises((TypeError, ValueError)):

        @app.task(**options)
        def mail(a: int) -> None: ...


def test_values_that_cannot_be_name_themselves() -> None:
    with pytest.raises(ValueError, match="'planet'"):
        Rate("1/s", scope="planet")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot have a key"):
        Rate("1/s", scope="worker", key="user")
    with pytest.raises(ValueError, match="burst"):
        Rate("1/s", burst=0)
    with pytest.raises(ValueError, match="printable"):
        Rate("1/s", name="a\nb")


def test_several_limits_have_names_of_their_own() -> None:
    found = declared(
        "t", rate_limit=["1/s", Rate("100/h", name="api")], max_concurrency=[3, Concurrency(9)]
    )

    assert [one.limit.name for one in found] == ["t:rate", "api", *CONCURRENCIES]


CONCURRENCIES = ["t:concurrency", "t:concurrency2"]


def test_tasks_that_share_a_limit_must_mean_the_same(app: Liteq) -> None:
    @app.task(name="a", rate_limit=Rate("1/s", name="api"))
    def a() -> None: ...

    @app.task(name="b", rate_limit=Rate("2/s", name="api"))
    def b() -> None: ...

    with pytest.raises(ImproperlyConfigured, match="share the limit 'api'"):
        limits_by_task(app.tasks)


def test_a_class_based_task_with_a_wrong_limit_says_so_when_it_is_sent(app: Liteq) -> None:
    class Mail(app.Task):  # type: ignore[name-defined,misc]
        name = "shop.mail"
        rate_limit = "often"

        def run(self) -> None: ...

    task = app.register_task(Mail())
    with pytest.raises(ImproperlyConfigured, match=r"shop\.mail.*'often'"):
        task.delay()


def test_the_names_a_message_lacks_are_added_without_a_key() -> None:
    assert merged(None, []) is None
    assert merged(None, ["a"]) == '[["a",""]]'
    assert merged('[["a","k"]]', ["a", "b"]) == '[["a","k"],["b",""]]'
    assert merged('[["a",null]]', ["a"]) == '[["a",null]]'
    assert write([]) is None


# What messages carry


def test_a_call_carries_the_names_and_keys_of_its_limits(app: Liteq) -> None:
    @app.task(
        name="t",
        rate_limit=["1/s", Rate("9/m", key=lambda user, **_: f"u{user}")],
        max_concurrency=Concurrency(1, name="gpu"),
    )
    def work(user: int, size: int = 3) -> None: ...

    names = [["t:rate", ""], ["t:rate2", "u7"], ["gpu", ""]]
    assert limits_of(app, work.delay(7).id) == names
    assert limits_of(app, work.apply_async((7,), countdown=5).id) == names
    assert limits_of(app, app.send_task("t", (7,)).id) == names
    many = work.enqueue_many([(7,), (8,)])
    assert [limits_of(app, id)[1][1] for id in many.ids] == ["u7", "u8"]
    apart = group(work.s(7), work.s(8)).apply_async()
    assert [limits_of(app, one.id)[1][1] for one in apart] == ["u7", "u8"]


@pytest.mark.parametrize(
    ("args", "kwargs", "key"),
    [
        ((7,), {}, "3"),
        ((7, 4), {}, "4"),
        ((7,), {"size": 5}, "5"),
        ((7, None), {}, None),
    ],
)
def test_a_key_is_an_argument_by_its_name(
    app: Liteq, args: tuple[Any, ...], kwargs: dict[str, Any], key: str | None
) -> None:
    @app.task(name="t", bind=True, max_concurrency=1, concurrency_key="size")
    def work(self: Any, user: int, size: int | None = 3) -> None: ...

    assert limits_of(app, work.apply_async(args, kwargs).id) == [["t:concurrency", key]]


def test_a_key_that_is_no_plain_value_or_too_long_is_an_error_of_the_call(app: Liteq) -> None:
    @app.task(rate_limit="1/s", rate_limit_key="who")
    def work(who: Any) -> None: ...

    with pytest.raises(TypeError, match="one plain value"):
        work.delay(["a"])
    with pytest.raises(ValueError, match="300 characters"):
        work.delay("x" * 300)


def test_a_key_cannot_be_a_result_that_is_not_there_yet(app: Liteq) -> None:
    @app.task
    def first() -> int: ...

    @app.task(name="t", rate_limit="1/s", rate_limit_key="user")
    def then(value: int, user: str) -> None: ...

    @app.task(rate_limit="1/s", rate_limit_key="value")
    def late(value: int) -> None: ...

    made = chain(first.s(), then.s("ada")).apply_async()
    assert limits_of(app, made.id) == [["t:rate", "ada"]]
    with pytest.raises(ValueError, match="not there yet"):
        chain(first.s(), late.s()).apply_async()
    made = chain(first.si(), then.si(3, "eve")).apply_async()
    assert limits_of(app, made.id) == [["t:rate", "eve"]]


def test_a_task_without_limits_carries_none(app: Liteq) -> None:
    @app.task
    def work() -> None: ...

    assert limits_of(app, work.delay().id) is None


def test_the_default_rate_and_annotations_hold(app: Liteq) -> None:
    app.conf.task_default_rate_limit = "10/m"
    app.conf.task_annotations = {"b": {"rate_limit": "20/m", "max_concurrency": 2}}

    @app.task(name="a")
    def a() -> None: ...

    @app.task(name="b")
    def b() -> None: ...

    a.delay()
    b.delay()
    found = limits_by_task(app.tasks)

    assert found["a"] == (Limit("a:rate", 6.0),)
    assert found["b"] == (Limit("b:rate", 3.0), Limit("b:concurrency", most=2))


# Running


def test_inline_mode_keeps_limits(app: Liteq) -> None:
    with inline(app) as mode:
        clock = app.clock
        began = clock.now()
        starts: list[float] = []

        @app.task(rate_limit="6/m")
        def mail(number: int) -> None:
            starts.append(clock.now() - began)

        for number in range(3):
            mail.delay(number)
        mode.drain()
        assert starts == [0.0]
        mode.drain(with_scheduled=True)

    assert starts == pytest.approx([0.0, 10.0, 20.0])


def test_a_worker_declares_the_limits_of_its_tasks(app: Liteq) -> None:
    @app.task(name="shop.mail", rate_limit="10/m")
    def mail() -> int:
        return 1

    with running(app):
        assert mail.delay().get(timeout=10) == 1
        [info] = app.broker.limits()

    assert (info.name, info.tasks) == ("shop.mail:rate", ("shop.mail",))
    assert info.declared == Limit("shop.mail:rate", 6.0)


@pytest.mark.parametrize("ignores", [False, True])
def test_a_worker_can_ignore_rates(app: Liteq, ignores: bool) -> None:
    app.conf.worker_disable_rate_limits = ignores

    @app.task(name="shop.mail", rate_limit="1/h")
    def mail(number: int) -> int:
        return number

    with running(app):
        sent = [mail.delay(n) for n in range(2)]
        assert sent[0].get(timeout=10) == 0
        if ignores:
            assert sent[1].get(timeout=10) == 1
        else:
            assert sent[1].detail == "limited"
            assert sent[1].state == "PENDING"


@pytest.mark.parametrize("bind", [False, True])
def test_a_function_for_the_key_is_given_the_arguments(app: Liteq, bind: bool) -> None:
    def of_account(account: dict[str, str], *_: Any) -> str:
        return account["id"]

    @app.task(name="sync", bind=bind, rate_limit="1/s", rate_limit_key=of_account)
    def sync(*args: Any) -> None: ...

    app.conf.task_annotations = {"ask": {"concurrency_key": of_account}}

    @app.task(name="ask", bind=bind, max_concurrency=3)
    def ask(*args: Any) -> None: ...

    for task, kind in ((sync, "rate"), (ask, "concurrency")):
        sent = task.delay({"id": "a7"}, "today")
        assert limits_of(app, sent.id) == [[f"{task.name}:{kind}", "a7"]]


def test_each_secret_is_a_key_of_its_own(app: Liteq) -> None:
    @app.task(name="ask", max_concurrency=1, concurrency_key="pin")
    def ask(pin: Secret[str]) -> None: ...

    first, again, other = (limits_of(app, ask.delay(Secret(p)).id) for p in ("1", "1", "2"))
    assert first == again != other
