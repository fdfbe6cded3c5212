"""An exception that a task raised in another process is the same one for whoever asks."""

from __future__ import annotations

import binascii
import json
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import failing
import pydantic
import pytest
from failing import ALL, IN_PART, TEXT, WHOLE, PaymentError
from world import uncovered

from liteq import Secret, failure, tagging
from liteq.exceptions import DecodeError, TaskFailed
from liteq.redaction import HIDDEN, Redactor
from liteq.tagging import MARK


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `get()` gives for each of the exceptions, and what its callback returned."""
    store = str(tmp_path_factory.mktemp("store") / "failing.liteq")
    app = failing.make_app(store)
    fail, alarm = app.tasks["fail"], app.tasks["alarm"]
    for name in ALL:
        link = alarm.s().set(task_id=f"alarm {name}")
        fail.apply_async((name,), task_id=f"fail {name}", link_error=link)
    subprocess.run(
        [sys.executable, "-c", "import sys, failing; failing.main(sys.argv[1])", store],
        env=uncovered() | {"PYTHONPATH": str(Path(__file__).parent)},
        check=True,
        timeout=120,
    )
    found: dict[str, Any] = {}
    for name in ALL:
        alarmed = app.AsyncResult(f"alarm {name}").get(timeout=1)
        failed = app.AsyncResult(f"fail {name}").get(timeout=1, propagate=False)
        found[name] = failed, alarmed
    return found


def raised(name: str) -> BaseException:
    try:
        ALL[name]()
    except BaseException as exc:
        return exc
    raise AssertionError(name)


def state_of(exc: BaseException) -> Any:
    slots = {name: getattr(exc, name, None) for name in ("code", "_Slotted__hidden", "unset")}
    members = {name: getattr(exc, name, None) for name in MEMBERS}
    return repr((exc.args, sorted(vars(exc).items()), slots, members))


MEMBERS = (
    *("errno", "strerror", "filename", "filename2", "encoding", "object", "start", "end"),
    *("reason", "msg", "name", "path", "lineno", "offset", "text", "value", "exceptions"),
)


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_raised_in_another_process_is_the_same(
    name: str, results: dict[str, Any]
) -> None:
    exc, (again, alarmed) = raised(name), results[name]

    assert type(again) is type(exc)
    assert str(again) == str(exc)
    assert state_of(again) == state_of(exc)
    assert alarmed == f"failed: {exc}"
    assert traceback.format_exception_only(again) == traceback.format_exception_only(exc)


@pytest.mark.parametrize("name", IN_PART)
def test_what_cannot_be_carried_is_missing(name: str, results: dict[str, Any]) -> None:
    exc, (again, alarmed) = raised(name), results[name]

    assert type(again) is type(exc)
    assert again.args == exc.args
    assert str(again) == str(exc)
    assert vars(again).keys() <= vars(exc).keys()
    assert alarmed == f"failed: {again}"


@pytest.mark.parametrize("name", TEXT)
def test_an_exception_that_would_say_something_else_is_a_task_failed(
    name: str, results: dict[str, Any]
) -> None:
    exc, (again, alarmed) = raised(name), results[name]

    assert type(again) is TaskFailed
    assert again.type_name.endswith(type(exc).__qualname__)
    assert again.message.split(" at 0x")[0] == str(exc).split(" at 0x")[0]
    assert f"in {ALL[name].__name__}" in again.remote_traceback
    assert alarmed == f"failed: {again}"


# Reading what anybody may have written


touched: list[str] = []


class Touchy(Exception):
    """An exception each of whose methods leaves a trace."""

    __slots__ = ("slot",)

    def __new__(cls, *args: Any) -> Touchy:
        touched.append("__new__")
        return super().__new__(cls)

    def __getattribute__(self, name: str) -> Any:
        touched.append("__getattribute__")
        return super().__getattribute__(name)

    def __init__(self, *args: Any) -> None:
        touched.append("__init__")

    def __setattr__(self, name: str, value: Any) -> None:
        touched.append("__setattr__")

    def __setstate__(self, state: Any) -> None:
        touched.append("__setstate__")

    def __str__(self) -> str:
        touched.append("__str__")
        return "touchy"

    @property
    def code(self) -> int:
        return 1

    @code.setter
    def code(self, value: int) -> None:
        touched.append("code")

    __repr__ = __str__


@dataclass
class Data:
    field: int

    def __hash__(self) -> int:
        touched.append("__hash__")
        return 1


class Model(pydantic.BaseModel):
    field: int

    def model_post_init(self, context: Any) -> None:
        touched.append("model_post_init")


def forged(kind: type | str, **state: Any) -> bytes:
    """Return a record as whoever may write to the store could make it."""
    name = kind if isinstance(kind, str) else kind.__name__
    module = __name__ if kind in (Touchy, PaymentError) else "builtins"
    texts = {"type": name, "module": module, "message": "m", "traceback": "t"}
    return json.dumps(texts | state).encode()


def mark(*content: Any) -> Any:
    return {MARK: content}


def test_no_code_of_a_class_runs_while_a_record_is_read() -> None:
    nested = mark("exception", {"type": "Touchy", "module": __name__, "values": []})
    touched.clear()

    again = failure.rebuild(
        forged(
            Touchy,
            values=[nested],
            attributes={"code": 1, "other": mark("bytes", "AA=="), "__str__": "x"},
            members={"slot": nested},
        )
    )

    assert touched == []
    assert type(again) is Touchy
    assert vars(again)["other"] == b"\0"


@pytest.mark.parametrize(
    "tree",
    [
        mark("set", [mark("dataclass", __name__, "Data", [["field", 1]])]),
        mark("pydantic", __name__, "Model", [["field", 1]], []),
        mark("test-registered", 1),
        mark("exception", {"type": "system", "module": "os", "values": ["exit 1"]}),
        mark("exception", {"type": "Error", "module": "wave", "values": []}),
        mark("exception", []),
        mark("exception"),
        mark("enum", "os", "system", "x"),
        mark(["set"], []),
        mark(),
        {MARK: 1},
        {"a": 1},
    ],
)
@pytest.mark.parametrize("field", ["attributes", "members", "values"])
def test_other_values_than_data_make_a_task_failed(
    tree: Any, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tagging.readers, "test-registered", touched.append)
    state = {"args": [], field: [tree] if field == "values" else {"slot": tree}}
    touched.clear()

    again = failure.rebuild(forged(Touchy, **state))

    assert type(again) is TaskFailed
    assert (again.message, again.remote_traceback) == ("m", "t")
    assert touched == []
    assert "wave" not in sys.modules


@pytest.mark.parametrize(
    ("kind", "members"),
    [
        ("UnicodeDecodeError", ["x", mark("bytes", "AA=="), -(10**9), 1 - 10**9, "r"]),
        ("UnicodeDecodeError", ["x", mark("bytes", "AA=="), 1, 2, "r"]),
        ("UnicodeDecodeError", ["x", "text", 0, 1, "r"]),
        ("UnicodeEncodeError", ["x", 5, 0, 1, "r"]),
        ("UnicodeEncodeError", ["x", "text", 0, 10**30, "r"]),
        ("UnicodeEncodeError", ["x", "text"]),
    ],
)
def test_a_forged_place_in_a_text_is_not_read(kind: str, members: list[Any]) -> None:
    names = ("encoding", "object", "start", "end", "reason")

    again = failure.rebuild(
        forged(kind, args=[], members=dict(zip(names, members, strict=False)))
    )

    assert type(again) is TaskFailed


def test_only_what_a_class_keeps_in_c_can_be_set_there() -> None:
    again = failure.rebuild(forged("ValueError", args=[], members={"__traceback__": 1}))

    assert type(again) is TaskFailed


@pytest.mark.parametrize(
    ("field", "damaged"), [("values", {}), ("attributes", []), ("members", 1)]
)
def test_fields_of_another_type_are_damage(field: str, damaged: Any) -> None:
    with pytest.raises(DecodeError):
        failure.rebuild(forged("ValueError", **{field: damaged}))


def test_a_record_of_before_attributes_is_read_as_it_was() -> None:
    again = failure.rebuild(forged("FileNotFoundError", args=[2, "gone"]))

    assert type(again) is FileNotFoundError
    assert (again.errno, str(again)) == (2, "[Errno 2] gone")


def test_a_reader_of_before_attributes_finds_the_arguments_where_they_were() -> None:
    plain = failure.read(failure.describe(PaymentError(404, "no page")))
    other = failure.read(failure.describe(failing.Listed([1])))

    assert plain["args"] == [404, "no page"]
    assert "args" not in other  # for which it gives a TaskFailed


def test_a_plain_exception_has_no_more_in_its_record_than_before() -> None:
    fields = failure.read(failure.describe(ValueError("no", 1)))

    assert fields.keys() == {"type", "module", "message", "traceback", "args"}


# What may not be in a record


SECRET = "canary-7f3a9c"


class Login(Exception):
    def __init__(self, **held: Any) -> None:
        super().__init__("no")
        vars(self).update(held)


@pytest.mark.parametrize(
    "held",
    [
        {"text": f"with {SECRET}"},
        {"list": [f"with {SECRET}"], "keys": {SECRET: 1}},
        {"bytes": SECRET.encode()},
        {"nested": ValueError(SECRET)},
        {"secret": Secret(SECRET)},
        {"wrapped": [Secret(SECRET)]},
        {"api_token": f"{SECRET}"[::-1]},
        {"headers": {"Authorization": f"{SECRET}"[::-1]}},
        {"iban": f"{SECRET}"[::-1]},
    ],
    ids=lambda held: next(iter(held)),
)
def test_what_is_secret_is_not_among_the_attributes(held: dict[str, Any]) -> None:
    record = failure.describe(Login(**held), secrets={SECRET}, redactor=Redactor(["iban"]))

    again = failure.rebuild(record)
    assert type(again) is Login
    assert vars(again).keys() == held.keys()
    for value in (SECRET, SECRET[::-1]):
        assert value.encode() not in record
        assert binascii.b2a_base64(value.encode(), newline=False) not in record
    assert HIDDEN in repr(vars(again))


def test_the_password_of_a_url_is_not_in_a_record() -> None:
    url, shown = (f"postgres://shop:{one}@db/shop" for one in (SECRET, HIDDEN))
    try:
        raise Login(text=url, bytes=url.encode(), nested=[ValueError(url)])
    except Login as exc:
        exc.args = (f"cannot connect to {url}",)
        record = failure.describe(exc)

    again = failure.rebuild(record)
    assert type(again) is Login
    assert again.args == (f"cannot connect to {shown}",)
    assert repr(vars(again)) == repr(
        {"text": shown, "bytes": shown.encode(), "nested": [ValueError(shown)]}
    )
    fields = failure.read(record)
    assert fields["traceback"].endswith(f"Login: cannot connect to {shown}\n")
    assert SECRET.encode() not in record
    assert binascii.b2a_base64(url.encode(), newline=False) not in record


class Spoken(Exception):
    def __init__(self, iban: str) -> None:
        super().__init__()
        self.iban = iban

    def __str__(self) -> str:
        return self.iban[:3]


def test_a_path_with_a_secret_is_left_out() -> None:
    held = {"path": Path(f"/{SECRET}"), "other": Path("/x")}

    record = failure.describe(Login(**held), secrets={SECRET})

    assert SECRET.encode() not in record
    assert vars(failure.rebuild(record)) == {"other": Path("/x")}


def test_an_exception_that_says_its_own_secret_is_a_task_failed() -> None:
    record = failure.describe(Spoken(SECRET), redactor=Redactor(["iban"]))

    assert type(failure.rebuild(record)) is TaskFailed


# Bounds


def endless() -> dict[str, Any]:
    held: dict[str, Any] = {}
    held["self"] = held
    wide: list[Any] = []
    for _ in range(40):
        wide = [wide, wide]
    return {"loop": held, "wide": wide}


@pytest.mark.parametrize(
    "held",
    [
        {"texts": ["x" * 8_000] * 1_000},
        {"numbers": list(range(1_000_000))},
        {"integer": 1 << 1_000_000},
        {f"attribute {number}": "x" * 1_000 for number in range(1_000)},
        {"one": "x" * 10_000_000, "other": b"x" * 10_000_000},
        endless(),
    ],
    ids=lambda held: next(iter(held)),
)
def test_attributes_take_bounded_room(held: dict[str, Any]) -> None:
    record = failure.describe(Login(small=1, **held))

    assert len(record) < 2 * failure.ERROR_TEXT_LIMIT
    again = failure.rebuild(record)
    assert type(again) is Login
    assert vars(again)["small"] == 1


class Proxy:
    """It stands for something that is not there, as a request outside of one."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("there is no request")


def test_a_value_that_raises_when_it_is_looked_at_is_left_out() -> None:
    again = failure.rebuild(failure.describe(Login(request=Proxy(), code=1)))

    assert type(again) is Login
    assert vars(again) == {"code": 1}
