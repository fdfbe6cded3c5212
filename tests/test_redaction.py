"""What is secret is not shown, whatever shape it comes in; everything else is."""

from __future__ import annotations

import copy
import json
import pickle
import time
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

import liteq
from liteq import Liteq, Secret, Task, serializers
from liteq.canvas import Signature, group
from liteq.events.form import about
from liteq.log import safe
from liteq.operating import describe
from liteq.redaction import HIDDEN, Redactor, hide, mask_url
from liteq.signals import task_prerun
from liteq.testing import inline

CANARY = "hunter2-canary"
redactor = Redactor()


@dataclass
class Login:
    user: str
    password: str


@dataclass
class Derived:
    user: str

    def __post_init__(self) -> None:
        self.password = CANARY


class Custom:
    def __repr__(self) -> str:
        return f"Custom({CANARY})"


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "db_password",
        "dbPassword",
        "PASSWORD",
        "X-Auth-Token",
        "apiKey",
        "api_key",
        "apikey",
        "client_secret",
        "aws_secret_access_key",
        "Authorization",
        "Set-Cookie",
        "cvv",
    ],
)
def test_names_of_secrets_are_known_in_any_style(name: str) -> None:
    assert redactor.is_secret(name)


@pytest.mark.parametrize(
    "name", ["key", "cache_key", "user", "passenger", "tokenizer", "secretary", "", None, 7]
)
def test_other_names_are_not_taken_for_secret(name: Any) -> None:
    assert not redactor.is_secret(name)


def test_a_program_adds_names_of_its_own() -> None:
    mine = Redactor(["iban", "customerNumber"])
    assert mine.is_secret("old_iban")
    assert mine.is_secret("customer_number")
    assert mine.is_secret("password")


def test_a_secret_shows_itself_nowhere_and_can_be_revealed() -> None:
    secret = Secret(CANARY)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret:>20}",
        "%s" % secret,  # noqa: UP031
        repr([secret]),
    ]
    assert all(CANARY not in text for text in shown)
    assert secret.reveal() == CANARY
    assert secret == Secret(CANARY) != Secret("other")
    assert {secret: 1}[Secret(CANARY)] == 1
    assert Secret(secret) == secret
    assert copy.deepcopy(secret) == pickle.loads(pickle.dumps(secret)) == secret
    assert not Secret("")


def test_a_secret_comes_back_from_every_format_as_a_secret() -> None:
    for kind in ("json", "msgpack", "yaml"):
        data = serializers.dumps_call((Secret(CANARY),), {"n": Secret(7)}, kind)
        args, kwargs = serializers.loads_call(data, kind, (kind,))
        assert args == (Secret(CANARY),)
        assert kwargs == {"n": Secret(7)}


VALUES: list[Any] = [
    Secret(CANARY),
    {"password": CANARY},
    {"deep": [{"apiKey": CANARY}]},
    [Login("bob", CANARY)],
    {"login": Login("bob", CANARY)},
    {"token": {"value": CANARY}},
    {"tokens": [CANARY]},
    {"headers": {"Authorization": f"Bearer {CANARY}"}},
    f"redis://bob:{CANARY}@host/0",
    f"https://host/x?token={CANARY}&y=1",
    (Secret(CANARY), {Secret(CANARY)}),
    {"secret": CANARY.encode()},
    Custom(),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_neither_text_nor_value_holds_what_is_secret(value: Any) -> None:
    assert CANARY not in redactor.text(value)
    if not isinstance(value, Custom):
        assert CANARY not in json.dumps(redactor.value(value), default=repr)


def test_what_is_not_secret_is_shown_as_python_shows_it() -> None:
    value = {"a": [1, 2.5, None, True], "b": ("x",), "c": {3}, 4: date(2026, 1, 2)}
    assert redactor.text(value) == repr(value)
    assert redactor.value(value) == value
    assert redactor.text(Login("bob", "x" * 9)) == f"Login(user='bob', password='{HIDDEN}')"
    assert redactor.text(Decimal("1.5")) == "Decimal('1.5')"
    assert redactor.text({"password": None}) == "{'password': None}"


def test_a_text_is_bounded_whatever_the_value() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value in ("x" * 10_000_000, list(range(1_000_000)), endless, 1 << 100_000, b"y" * 9999):
        assert len(redactor.text(value, limit=100)) <= 100


def test_positional_arguments_go_by_their_parameters() -> None:
    args, kwargs = redactor.call(
        ("bob", CANARY, CANARY, 4),
        {"pin": CANARY},
        ("user", "password", "iban"),
        ("iban", "pin"),
    )
    assert args == f"('bob', '{HIDDEN}', '{HIDDEN}', 4)"
    assert kwargs == f"{{'pin': '{HIDDEN}'}}"


def test_a_task_says_which_of_its_parameters_are_secret() -> None:
    app = Liteq("shop", broker="memory://", task_sensitive_names=["iban"])

    @app.task(sensitive=["pin"])
    def pay(user: str, iban: str, pin: str, *, password: str = "") -> None: ...

    shown = pay.redacted(("bob", CANARY, CANARY), {"password": CANARY})
    assert shown == (f"('bob', '{HIDDEN}', '{HIDDEN}')", f"{{'password': '{HIDDEN}'}}")


def test_a_signature_shows_no_secret_however_it_was_given() -> None:
    app = Liteq("shop", broker="memory://", task_sensitive_names=["iban"])

    @app.task(name="login")
    def login(user: str, password: str) -> None: ...

    @app.task(name="pay", sensitive=["pin"])
    def pay(pin: str, iban: str = "") -> None: ...

    calls: list[Signature[Any]] = [login.s("bob", CANARY), pay.s(CANARY, iban=CANARY)]
    maps = [login.starmap([("bob", CANARY)]), pay.map([CANARY]), pay.chunks([[CANARY]], 2)]
    for sig in (*calls, *maps, calls[0] | pay.si(pin=CANARY), group(calls)):
        assert CANARY not in repr(sig)
        assert HIDDEN in repr(sig)
    app.finalize()
    for call in calls:  # as from JSON: it has no task, and its app is the current one
        assert repr(Signature.from_dict(dict(call))) == repr(call)
    assert repr(calls[0]) == f"login('bob', '{HIDDEN}')"
    assert repr(maps[0]) == f"[login(*x) for x in [('bob', '{HIDDEN}')]]"


def _shop() -> tuple[Liteq, Task[..., Any], Task[..., Any]]:
    app = Liteq("shop", broker="memory://", task_send_sent_event=True)

    @app.task(name="order")
    def order(number: int) -> int:
        return number

    @app.task(name="pay", sensitive=["pin"])
    def pay(order: int, pin: str, note: str = "") -> str:
        raise ValueError(f"refused: {pin}")

    app.finalize()
    return app, order, pay


def test_what_stands_behind_another_call_is_hidden_by_the_place_it_will_have() -> None:
    _, order, pay = _shop()
    behind = f"pay('{HIDDEN}', 'shown')"
    part = pay.s(CANARY, "shown")
    assert repr(order.s(1) | part) == f"order(1) | {behind}"
    assert repr(order.s(1) | pay.si(1, CANARY)) == f"order(1) | pay(1, '{HIDDEN}')"
    assert repr(order.s(1) | group(part, part)) == f"order(1) | group([{behind}, {behind}])"
    assert repr(group(order.s(1), order.s(2)) | part) == (
        f"%pay([order(1), order(2)], '{HIDDEN}', 'shown')"
    )


def test_what_may_stand_behind_another_call_is_hidden_if_it_may_be_secret() -> None:
    _, order, pay = _shop()
    assert repr(pay.s(CANARY)) == f"pay('{HIDDEN}')"
    assert repr(pay.s(1, CANARY, "shown")) == f"pay(1, '{HIDDEN}', 'shown')"
    assert repr(pay.s(CANARY) | order.s()) == f"pay('{HIDDEN}') | order()"
    assert pay.s(CANARY).reprcall(1) == f"pay(1, '{HIDDEN}')"


def test_what_takes_the_rest_of_the_arguments_is_hidden_by_its_name() -> None:
    app = Liteq("shop", broker="memory://")

    @app.task(name="check")
    def check(user: str, *tokens: str) -> None: ...

    assert check.redacted(("bob", CANARY, CANARY), {})[0] == f"('bob', '{HIDDEN}', '{HIDDEN}')"
    assert CANARY not in repr(check.s(CANARY) | check.s(CANARY, CANARY))


def test_signatures_that_are_values_show_no_secret() -> None:
    app, order, pay = _shop()
    values: list[Any] = [
        {"link": [pay.s(CANARY)], "link_error": pay.s(CANARY)},
        {"link": dict(order.s(2) | pay.s(CANARY))},
        [dict(pay.si(1, CANARY))],
        dict(pay.starmap([(1, CANARY)])),
        dict(pay.chunks([[1, CANARY]], 2)),
    ]
    for value in values:
        read = json.loads(json.dumps(value))
        for one in (value, read):
            assert CANARY not in json.dumps(app.redactor.value(one))
            assert CANARY not in app.redactor.text(one)
            assert CANARY in app.redactor.secrets((one,), {})
    assert app.redactor.value(dict(pay.s(1, CANARY, "shown")))["args"] == [1, HIDDEN, "shown"]
    assert pickle.loads(pickle.dumps(app.redactor)).is_secret("password")


def test_calls_behind_others_show_no_secret_in_lists_and_events() -> None:
    app, order, pay = _shop()
    with inline(app) as t:
        sent = (order.s(1) | pay.s(CANARY)).apply_async()
        linked = order.apply_async((2,), link=pay.s(CANARY), link_error=pay.s(CANARY))
        mapped = pay.starmap([(1, CANARY)]).apply_async()
        plain = pay.delay(1, CANARY, "shown")
        ids = [record.id for record in app.broker.browse("waiting")]
        ids += [sent.id, linked.id, mapped.id]
        known = app.broker.get(ids).values()
        assert all(CANARY not in repr(about(app, record.message)) for record in known)
        assert all(CANARY not in repr(describe(app, id)) for id in ids)
        assert describe(app, plain.id)["args"] == f"(1, '{HIDDEN}', 'shown')"
        t.drain()
        assert all(CANARY not in repr(describe(app, id)) for id in ids)


def test_the_repr_of_a_signature_neither_makes_an_app_nor_loads_its_settings() -> None:
    app = Liteq("shop", broker="memory://", task_sensitive_names=["iban"])

    @app.on_after_configure.connect
    def refuse(**kwargs: Any) -> None:
        raise AssertionError("the settings were loaded")

    assert "iban='********'" in repr(Signature("pay", (), {"iban": CANARY}, app=app))
    assert not app.finalized


def test_settings_are_shown_without_the_arguments_of_calls() -> None:
    app = Liteq("shop", broker="memory://")

    @app.task
    def login(user: str, password: str) -> None: ...

    app.conf.beat_schedule = {
        "a": {"task": "login", "schedule": 5.0, "args": ("bob", CANARY)},
        "b": {"task": "pay", "schedule": 5.0, "kwargs": {"pin": CANARY}},
        "c": {"task": login.s("bob", CANARY) | login.si(CANARY, "x"), "schedule": 5.0},
    }
    assert CANARY not in app.conf.humanize() + app.bugreport()
    shown = app.conf.table()["beat_schedule"]
    assert shown["a"] == {"task": "login", "schedule": 5.0, "args": [HIDDEN, HIDDEN]}
    assert shown["b"]["kwargs"] == {"pin": HIDDEN}


def test_one_name_of_a_secret_parameter_needs_no_list() -> None:
    app = Liteq("shop", broker="memory://")

    @app.task(sensitive="code")
    def enter(code: str) -> None:
        raise ValueError(f"wrong: {code}")

    class Leave(Task[[str], None]):
        name, sensitive = "leave", "code"

        def run(self, code: str) -> None:
            raise ValueError(f"wrong: {code}")

    leave = app.register_task(Leave())
    with inline(app) as t:
        for task in (enter, leave):
            assert task.redacted((CANARY,), {})[0] == f"('{HIDDEN}',)"
            task.delay(CANARY)
            (run,) = t.drain()
            assert CANARY not in str(app.AsyncResult(run.id).result)


@pytest.mark.parametrize("names", ["kode", ["code", "kode"]])
def test_a_secret_parameter_that_the_task_has_not_is_refused(names: Any) -> None:
    app = Liteq("shop", broker="memory://")

    def enter(code: str, *, again: str = "") -> None: ...

    with pytest.raises(TypeError, match=r"no argument 'kode'.*it has code, again"):
        app.task(sensitive=names)(enter)


def test_any_secret_parameter_may_be_among_keyword_arguments() -> None:
    app = Liteq("shop", broker="memory://")

    @app.task(sensitive="code")
    def enter(**answers: str) -> None: ...

    assert enter.redacted((), {"code": CANARY})[1] == f"{{'code': '{HIDDEN}'}}"


def test_all_arguments_that_have_no_name_may_be_secret_together() -> None:
    app = Liteq("shop", broker="memory://")

    @app.task(name="pay", sensitive=["codes"])
    def pay(user: str, *codes: str) -> None:
        raise ValueError(f"wrong: {codes[-1]}")

    @app.task(name="fill", sensitive="answers")
    def fill(user: str, /, form: str = "", *pages: str, note: str = "", **answers: str) -> None:
        raise ValueError(f"wrong: {answers['user']}")

    shown = f"('bob', '{HIDDEN}', '{HIDDEN}')"
    assert pay.redacted(("bob", CANARY, CANARY), {}) == (shown, "{}")
    assert repr(pay.si("bob", CANARY)) == f"pay('bob', '{HIDDEN}')"
    args, kwargs = ("bob", "form", "page"), {"note": "n", "user": CANARY, "pin": CANARY}
    shown = f"{{'note': 'n', 'user': '{HIDDEN}', 'pin': '{HIDDEN}'}}"
    assert fill.redacted(args, kwargs) == ("('bob', 'form', 'page')", shown)
    with inline(app) as t:
        for sent in (pay.delay("bob", "x", CANARY), fill.delay(*args, **kwargs)):
            t.drain()
            assert str(sent.result) == f"wrong: {HIDDEN}"


def test_keywords_that_have_no_name_are_hidden_where_theirs_is_a_secrets() -> None:
    app = Liteq("shop", broker="memory://")

    @app.task
    def login(*, user: str, **credentials: str) -> None: ...

    shown = login.redacted((), {"user": "bob", "pin": CANARY})[1]
    assert shown == f"{{'user': 'bob', 'pin': '{HIDDEN}'}}"


def test_a_limit_is_kept_by_no_arguments_together() -> None:
    app = Liteq("shop", broker="memory://")

    def enter(*codes: str) -> None: ...

    with pytest.raises(TypeError, match="no argument 'codes', which is the key of a limit"):
        app.task(rate_limit="1/s", rate_limit_key="codes")(enter)


@pytest.mark.parametrize("names", [3, [3], True])
def test_secret_parameters_go_by_names(names: Any) -> None:
    app = Liteq("shop", broker="memory://")
    with pytest.raises(TypeError, match="sensitive takes names of arguments, not"):
        app.task(sensitive=names)


def test_texts_that_are_secret_can_be_taken_out_of_a_message() -> None:
    found = redactor.secrets(
        (Secret(CANARY), "redis://x:from-a-url@host"), {"password": "p'a'w\nd", "token": "ab"}
    )
    assert found == {CANARY, "from-a-url", "p'a'w\nd"}
    odd = "p'a'w\nd"
    assert hide(f"bad {CANARY!r}, from-a-url, {odd!r}", found) == (
        f"bad '{HIDDEN}', {HIDDEN}, \"{HIDDEN}\""
    )


@pytest.mark.parametrize("value", [471108154711, Decimal("4711.0815"), date(1990, 1, 31)])
def test_a_secret_need_not_be_a_text(value: Any) -> None:
    secrets = redactor.secrets((Secret(value), 123456), {"pin": 2, "password": value})

    assert secrets == {str(value)}


def test_secrets_beside_the_fields_of_a_dataclass_are_found_and_not_shown() -> None:
    assert redactor.secrets((Derived("bob"),), {}) == {CANARY}
    assert redactor.text(Derived("bob")) == "Derived(user='bob')"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:pa:ss@h/0", f"redis://:{HIDDEN}@h/0"),
        ("a redis://u:p@h, b", f"a redis://u:{HIDDEN}@h, b"),
        ("https://h/?x=1&api_key=abc&y=2", f"https://h/?x=1&api_key={HIDDEN}&y=2"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        (f"http://h:80/,redis://:{CANARY}@h", f"http://h:80/,redis://:{HIDDEN}@h"),
        (f"redis://u:{CANARY}@{CANARY}@h/0?x=a@b", f"redis://u:{HIDDEN}@h/0?x=a@b"),
        (
            f'{{"a":"redis://u:{CANARY}@h","b":"x@y"}}',
            f'{{"a":"redis://u:{HIDDEN}@h","b":"x@y"}}',
        ),
        (f"rediss://h?ssl_password={CANARY}", f"rediss://h?ssl_password={HIDDEN}"),
        (
            f"redis+sentinel://a/shop?sentinel_password={CANARY}&db=2",
            f"redis+sentinel://a/shop?sentinel_password={HIDDEN}&db=2",
        ),
        (f"https://h/?clientSecret={CANARY}", f"https://h/?clientSecret={HIDDEN}"),
        (f"https://h/?X-Amz-Signature={CANARY}", f"https://h/?X-Amz-Signature={HIDDEN}"),
        (f"https://h/?a=1&AccessKey={CANARY}", f"https://h/?a=1&AccessKey={HIDDEN}"),
        ("https://h/?monkey=1&primary_key=2", "https://h/?monkey=1&primary_key=2"),
    ],
)
def test_urls_are_masked(url: str, shown: str) -> None:
    assert mask_url(url) == shown


def test_a_text_is_masked_in_time_that_grows_with_its_length_alone() -> None:
    text = "://a:" * 20_000
    begun = time.process_time()

    assert mask_url(text) == text
    assert time.process_time() - begun < 2  # it would be a minute, were each read to the end


def test_what_is_shown_is_one_line_without_passwords() -> None:
    assert safe("x\x1b[2J\nredis://u:p@h") == rf"x\x1b[2J\nredis://u:{HIDDEN}@h"


def test_the_type_is_a_public_name() -> None:
    assert liteq.Secret is Secret


def test_what_a_receiver_raises_is_logged_without_the_secrets_of_the_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Liteq("shop", broker="memory://")

    @app.task(sensitive="code")
    def enter(code: str) -> None: ...

    def fail(args: Any = (), **kwargs: Any) -> None:
        raise ValueError(f"cannot count {args[0]}")

    task_prerun.connect(fail, weak=False)
    try:
        with inline(app) as t:
            enter.delay(CANARY)
            t.drain()
    finally:
        task_prerun.disconnect(fail)

    [record] = [one for one in caplog.records if one.name == "liteq.signals"]
    assert record.getMessage().endswith("of task_prerun raised")
    assert f"ValueError: cannot count {HIDDEN}" in caplog.text
    assert CANARY not in caplog.text
