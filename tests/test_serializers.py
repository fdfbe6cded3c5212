"""Values come back as they were, and reading them can do no harm."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import pickle
import subprocess
import sys
import threading
import uuid
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pydantic
import pytest
import werkzeug.utils
from hypothesis import given
from hypothesis import strategies as st
from world import uncovered

from liteq import serializers, tagging
from liteq.exceptions import (
    ContentDisallowed,
    DecodeError,
    EncodeError,
    ImproperlyConfigured,
)
from liteq.serializers import MARK, MAX_DEPTH, dumps, dumps_call, loads, loads_call


class Colour(enum.Enum):
    RED = "r"
    BLUE = ("b", 1)


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    HELLO = "hello"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Bits(enum.IntFlag):
    ONE = 1
    FOUR = 4


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0
    tags: list[Any] = dataclasses.field(default_factory=list)

    class Inner(enum.Enum):
        A = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    when: datetime
    point: Point | None = None


@dataclasses.dataclass
class Strict:
    value: int

    def __post_init__(self) -> None:
        assert self.value >= 0, "this must not run when it is read"


@dataclasses.dataclass
class Order:
    net: int
    vat: dataclasses.InitVar[int] = 19

    def __post_init__(self, vat: int) -> None:
        self.gross = self.net * (100 + vat) // 100

    @functools.cached_property
    def lock(self) -> Any:
        return threading.Lock()


@dataclasses.dataclass
class Page:
    path: str

    @werkzeug.utils.cached_property
    def lock(self) -> Any:
        return threading.Lock()

    @property
    def title(self) -> str:
        text: str = self.__dict__["title"]
        return text

    @title.setter
    def title(self, text: str) -> None:
        self.__dict__["title"] = text


@dataclasses.dataclass(frozen=True)
class Locked:
    value: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "lock", threading.Lock())


@dataclasses.dataclass
class Odd(dict):  # type: ignore[type-arg]
    value: int = 0


class Model(pydantic.BaseModel):
    id: uuid.UUID
    price: Decimal = Decimal(1)
    inner: Model | None = None
    alias: int = pydantic.Field(default=0, alias="theAlias")

    def model_post_init(self, _: Any) -> None:
        self._private = 1

    _private: int = pydantic.PrivateAttr(0)


class Loose(pydantic.BaseModel, extra="allow"):
    a: int = 1


Pair = namedtuple("Pair", "a b")


class Shouting(str):
    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


class Stopped(datetime):
    """What a test has in the place of the clock, as freezegun's."""


class Finer(datetime):
    """A time that holds more than a datetime does, as pandas'."""

    def isoformat(self, *_: Any) -> str:  # type: ignore[override]
        return f"{super().isoformat()}.000000001"


def test_a_datetime_that_holds_more_than_one_is_refused() -> None:
    with pytest.raises(EncodeError, match="type Finer is not serialisable"):
        dumps(Finer(2030, 1, 2), "json")


# Round trips

zones = st.sampled_from(
    [None, UTC, timezone(timedelta(hours=-3, minutes=-30)), ZoneInfo("Europe/Berlin")]
)
text = st.text(st.characters(exclude_categories=()))  # lone surrogates too
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([63, 64, 5_000, 20_000]).map(lambda bits: -(1 << bits)),
    st.sampled_from([63, 64, 20_000]).map(lambda bits: 1 << bits),
    st.floats(allow_nan=False),
    text,
    st.just(MARK),
)
keys = st.one_of(
    scalars,
    st.binary(),
    st.dates(),
    st.uuids(),
    st.sampled_from([Colour.RED, Level.LOW, Word.HELLO]),
)
leaves = st.one_of(
    keys,
    st.datetimes(timezones=zones),
    st.times(),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.frozensets(keys),
    st.sets(keys),
    st.sampled_from([*Colour, *Rights, Rights(0), Rights(3), Bits(5), Bits(0), Bits(10)]),
    text.filter(lambda t: "\0" not in t).map(Path),
    st.sampled_from([PurePosixPath("/a/b"), PureWindowsPath("c:/a")]),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(text, inner),
        st.dictionaries(keys, inner),
        st.dictionaries(st.just(MARK), inner),
        st.builds(Point, inner, inner, st.lists(inner)),
        st.builds(Frozen, st.datetimes(), st.none() | st.builds(Point, inner)),
        st.builds(Model, id=st.uuids(), price=st.decimals(-9, 9)),
    ),
    max_leaves=8,
)


def shape(value: Any) -> Any:
    """Return a value with the types of all its parts, which == does not compare."""
    kind = type(value)
    if kind in (list, tuple):
        return (kind, [shape(member) for member in value])
    if kind in (set, frozenset):
        return (kind, value)
    if kind is dict:
        return (kind, [(shape(k), shape(v)) for k, v in value.items()])
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return (kind, [shape(getattr(value, f.name)) for f in fields])
    if kind is datetime:
        return (value.replace(tzinfo=None), value.fold, value.utcoffset())
    if kind is float:
        return (kind, repr(value))
    return (kind, value)


@given(values)
def test_every_value_comes_back_with_its_type(value: Any) -> None:
    assert shape(loads(dumps(value))) == shape(value)


@given(st.lists(values, max_size=3), st.dictionaries(text, values, max_size=3))
def test_a_call_comes_back_as_it_was(args: list[Any], kwargs: dict[str, Any]) -> None:
    found_args, found_kwargs = loads_call(dumps_call(tuple(args), kwargs))
    assert shape(found_args) == shape(tuple(args))
    assert shape(found_kwargs) == shape(kwargs)


@pytest.mark.parametrize("content_type", ["msgpack", "yaml", "pickle"])
@given(value=values)
def test_other_formats_carry_the_same_values(content_type: str, value: Any) -> None:
    pytest.importorskip({"yaml": "yaml"}.get(content_type, content_type))
    data = dumps(value, content_type)
    assert shape(loads(data, content_type, [content_type])) == shape(value)


@given(values)
def test_bytes_are_json_in_utf8(value: Any) -> None:
    json.loads(
        dumps(value).decode(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON")
    )


@given(st.binary() | st.text().map(str.encode))
def test_damage_is_a_decode_error(data: bytes) -> None:
    for read in (loads, loads_call):
        with suppress(DecodeError):
            read(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["tasks", "Point"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(st.sampled_from(sorted(tagging.readers)), st.lists(json_values, max_size=4))
def test_a_forged_tag_is_a_value_or_a_decode_error(tag: str, payload: list[Any]) -> None:
    with suppress(DecodeError):
        loads(json.dumps({MARK: [tag, *payload]}).encode())


def test_nan_and_infinity_come_back() -> None:
    back = loads(dumps([math.nan, math.inf, -math.inf, Decimal("nan"), -0.0]))
    assert math.isnan(back[0])
    assert back[1:3] == [math.inf, -math.inf]
    assert back[3].is_nan()
    assert math.copysign(1, back[4]) == -1


def test_a_datetime_keeps_its_zone_and_its_fold() -> None:
    when = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
    back = loads(dumps(when))
    assert back.tzinfo is ZoneInfo("Europe/Berlin")
    assert back.fold == 1
    assert back.utcoffset() == timedelta(hours=1)
    assert loads(dumps(time(2, 30, fold=1))).fold == 1


def test_a_zone_this_host_does_not_know_leaves_its_offset() -> None:
    data = {MARK: ["datetime", "2026-07-01T12:00:00+02:00", 0, "Atlantis/Capital"]}
    back = loads(json.dumps(data).encode())
    assert back == datetime(2026, 7, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (bytearray(b"x"), b"x"),
        (memoryview(b"x"), b"x"),
        (Pair(1, 2), (1, 2)),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, {1: [2]}), {1: [2]}),
        (MappingProxyType({"a": (1,)}), {"a": (1,)}),
        (Shouting("quiet"), "quiet"),
        (Stopped(2030, 1, 2, 3, tzinfo=UTC), datetime(2030, 1, 2, 3, tzinfo=UTC)),
        (type("Count", (int,), {})(3), 3),
        (type("Ratio", (float,), {})(0.5), 0.5),
    ],
)
def test_relatives_of_plain_types_come_back_as_those(value: Any, expected: Any) -> None:
    assert shape(loads(dumps(value))) == shape(expected)
    assert shape(loads(dumps([value]))) == shape([expected])


def test_equal_values_have_equal_bytes_in_every_process() -> None:
    code = "from liteq.serializers import dumps; print(dumps({'a', 'b', 'c', 1, None}))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert len(seen) == 1


@pytest.mark.parametrize("others", ["None", "lambda *given: int(*given)"])  # a TypeError
def test_a_python_whose_encoder_is_unknown_writes_the_same_bytes(others: str) -> None:
    value = ["é\n", 1.5, None, {"a": [True, 2**40]}]
    code = (
        "import json.encoder\n"
        f"ours, json.encoder.c_make_encoder = json.encoder.c_make_encoder, {others}\n"
        "from liteq.serializers import dumps\n"
        f"json.encoder.c_make_encoder = ours; print(dumps({value!r}))"
    )
    written = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert written.stdout.decode().strip() == repr(dumps(value))


# Classes


def test_a_dataclass_is_filled_without_running_its_code() -> None:
    data = dumps(Strict(1)).replace(b'["value",1]', b'["value",-1]')
    assert loads(data).value == -1


@pytest.mark.parametrize("content_type", ["json", "msgpack", "yaml"])
def test_a_dataclass_comes_back_with_what_it_holds_beside_its_fields(content_type: str) -> None:
    pytest.importorskip(content_type)
    order = Order(100, vat=7)
    order.note = (1, 2)  # type: ignore[attr-defined]

    back = loads(dumps(order, content_type), content_type, [content_type])

    assert vars(back) == {"net": 100, "gross": 107, "note": (1, 2)}


def test_what_a_dataclass_will_compute_again_is_not_carried() -> None:
    order = Order(100)
    assert order.lock
    assert vars(loads(dumps(order))) == {"net": 100, "gross": 119}


def test_what_a_property_of_werkzeug_has_kept_is_not_carried_and_what_was_set_is() -> None:
    page = Page("/")
    page.title = "Start"
    assert page.lock
    assert vars(loads(dumps(page))) == {"path": "/", "title": "Start"}


def test_an_attribute_that_a_dataclass_cannot_be_without_is_named() -> None:
    with pytest.raises(EncodeError, match=r"^args\[0\]\.lock: object of type lock"):
        dumps_call((Locked(1),), {})


def test_no_code_runs_for_an_attribute_that_is_no_field() -> None:
    data = dumps(Order(100)).replace(b'[".gross",119]', b'[".__class__",1]')
    back = loads(data)
    assert type(back) is Order
    assert vars(back) == {"net": 100, "__class__": 1}


def test_an_attribute_is_dropped_where_the_class_has_slots_since() -> None:
    data = dumps(Frozen(datetime(2026, 1, 1, tzinfo=UTC))).replace(
        b'["point",null]', b'[".gone",1]'
    )
    assert loads(data) == Frozen(datetime(2026, 1, 1, tzinfo=UTC))


def test_a_plain_dataclass_has_the_bytes_that_it_always_had() -> None:
    assert dumps(Point(1, 2, [3])) == (
        b'{"__liteq__":["dataclass","%b","Point",[["x",1],["y",2],["tags",[3]]]]}'
        % __name__.encode()
    )


def test_a_field_gained_since_takes_its_default() -> None:
    data = dumps(Point(1, 2, [3])).replace(b',["y",2],["tags",[3]]', b"")
    assert loads(data) == Point(1)


def test_a_field_lost_since_is_dropped() -> None:
    data = dumps(Point(1)).replace(b'["y",0]', b'["y",0],["gone",5]')
    assert loads(data) == Point(1)
    assert not hasattr(loads(data), "gone")


def test_a_field_without_a_default_must_be_there() -> None:
    with pytest.raises(DecodeError, match=r"Point\.x is missing"):
        loads(dumps(Point(1)).replace(b'["x",1],', b""))


def test_a_pydantic_model_keeps_what_was_set() -> None:
    model = Model(id=uuid.UUID(int=1), theAlias=4, inner=Model(id=uuid.UUID(int=2)))
    back = loads(dumps([model]))[0]
    assert back == model
    assert back.model_fields_set == {"id", "alias", "inner"}
    assert type(back.price) is Decimal
    assert back._private == 1
    assert loads(dumps(Loose(a=2, b=(3,)))) == Loose(a=2, b=(3,))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A script `shop.py` that runs as `__main__`, with an Enum of its own."""
    main = ModuleType("__main__")
    main.__file__ = "/srv/shop.py"
    monkeypatch.setitem(sys.modules, "__main__", main)
    main.Size = enum.Enum("Size", "BIG", module="__main__")  # type: ignore[attr-defined]
    return main


def test_a_class_of_the_script_is_found_under_both_its_names(script: ModuleType) -> None:
    data = dumps(script.Size.BIG)
    assert json.loads(data) == {MARK: ["enum", "shop", "Size", "BIG"]}
    assert loads(data) is script.Size.BIG


def test_a_worker_finds_the_script_s_class_in_the_module_it_imported(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dumps(script.Size.BIG)
    imported = ModuleType("shop")
    imported.Size = enum.Enum("Size", "BIG", module="shop")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shop", imported)
    assert loads(data) is imported.Size.BIG


def test_nothing_is_imported_to_read_a_class() -> None:
    sys.modules.pop("antigravity", None)
    data = json.dumps({MARK: ["enum", "antigravity", "X", "Y"]}).encode()
    with pytest.raises(DecodeError, match=r"antigravity\.X.*not imported"):
        loads(data)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("tag", "rest"),
    [
        ("enum", ["builtins", "dict", "x"]),
        ("enum", [__name__, "Point", "x"]),
        ("enum", [__name__, "Colour", "__class__"]),
        ("enum", [__name__, "Colour.__init__.__globals__", "x"]),
        ("dataclass", [__name__, "Colour", []]),
        ("dataclass", ["subprocess", "Popen", [["args", "true"]]]),
        ("pydantic", [__name__, "Point", [], []]),
        ("flag", [__name__, "Colour", 1]),
        ("flag", [__name__, "Rights", 64]),
        ("no-such-tag", []),
    ],
)
def test_only_classes_of_the_right_kind_are_made(tag: str, rest: list[Any]) -> None:
    with pytest.raises(DecodeError):
        loads(json.dumps({MARK: [tag, *rest]}).encode())


# Errors


def local_class() -> Any:
    @dataclasses.dataclass
    class Local:
        x: int = 0

    return Local()


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((1, {"user": object()}), {}, r"^args\[1\]\['user'\]: object of type object is not"),
        (
            (Point(Frozen(datetime.now(UTC), Point(print))),),
            {},
            r"^args\[0\]\.x\.point\.x: object",
        ),
        ((), {"a": [{1, (2, lambda: 0)}]}, r"^kwargs\['a'\]\[0\]\[\d\]\[1\]: object of type f"),
        (({(1, object): 1},), {}, r"^args\[0\] key <tuple>\[1\]: object of type type"),
        (({1: {2}, 3: object},), {}, r"^args\[0\]\[3\]: object of type type"),
        ((ValueError("x"),), {}, r"^args\[0\]: .*pass str\(exc\)"),
        ((SimpleNamespace(),), {}, r"register_type\(\)$"),
        ((local_class(),), {}, r"defined inside a function"),
        ((Odd(),), {}, r"extends a built-in type"),
    ],
)
def test_what_cannot_be_written_is_named_with_its_place(
    args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(EncodeError, match=message):
        dumps_call(args, kwargs)
    with pytest.raises(EncodeError, match=message):
        dumps_call(args, kwargs, "msgpack")


@pytest.mark.parametrize("body", [b"a: &a [1]\nb: *a", b"&a [*a]", b"<<: &a {x: 1}\ny: *a"])
def test_an_alias_of_yaml_is_not_read(body: bytes) -> None:
    pytest.importorskip("yaml")
    with pytest.raises(DecodeError, match=r"^yaml: an alias \(\*a\) is not read: write"):
        loads(body, "yaml", ["yaml"])


def test_what_a_call_has_twice_is_written_twice_in_yaml() -> None:
    pytest.importorskip("yaml")
    shared = [Point(1, tags=[]), {"a": (1,)}]
    body = dumps_call((shared, shared), {"again": shared}, "yaml")
    assert loads_call(body, "yaml", ["yaml"]) == ((shared, shared), {"again": shared})


def test_the_caller_names_the_root() -> None:
    with pytest.raises(EncodeError, match=r"^result\[0\]: "):
        dumps([object()], root="result")


def nest(wrap: Callable[[Any], Any], levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = wrap(value)
    return value


WRAPS: list[Callable[[Any], Any]] = [
    lambda v: [v],
    lambda v: (v,),
    lambda v: {"a": v},
    lambda v: {1: v},
    lambda v: Point(v, tags=None),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("wrap", WRAPS)
def test_values_may_be_nested_to_the_limit_and_no_deeper(wrap: Callable[[Any], Any]) -> None:
    value = nest(wrap, MAX_DEPTH)
    assert dumps(loads(dumps(value))) == dumps(value)
    with pytest.raises(EncodeError, match="nested deeper"):
        dumps(nest(wrap, MAX_DEPTH + 1))


def test_a_value_that_contains_itself_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(EncodeError, match="contains itself"):
        dumps(circle)


def test_writing_deep_in_a_recursion_is_an_encode_error() -> None:
    def descend() -> bytes:
        try:
            return descend()
        except RecursionError:
            return dumps(nest(WRAPS[0], 100))

    with suppress(EncodeError):
        descend()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nul",
        b"[1",
        b"[1] x",
        b"\xff",
        b"[NaN]",
        b"-Infinity",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"1" * 5_000,
        b'{"__liteq__":1}',
        b'{"__liteq__":["tuple",[]],"x":1}',
        b'{"__liteq__":[["tuple"],[]]}',
        b'{"__liteq__":["bytes","%%%"]}',
        b'{"__liteq__":["decimal",[0,[1],2]]}',
    ],
)
def test_bytes_that_are_no_value_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        loads(data)


def test_blanks_around_a_value_are_fine() -> None:
    assert loads(b' [1, {"a": 2}]\n') == [1, {"a": 2}]
    assert loads(b' {"__liteq__": ["tuple", [1]]} ') == (1,)


@pytest.mark.parametrize(
    "call",
    [1, [], [[]], [[], [], []], [{}, {}], [[], []], {"a": 1}, [[], {1: 2}], "ab", [(), {}, 1]],
)
def test_a_body_must_be_a_call(call: Any) -> None:
    with pytest.raises(DecodeError, match="a message body must be"):
        loads_call(dumps(call))


# Formats


def test_only_accepted_formats_are_read() -> None:
    data = dumps(1, "pickle")
    with pytest.raises(ContentDisallowed, match=r"pickle.*allows only json"):
        loads(data, "pickle")
    with pytest.raises(ContentDisallowed):
        loads(b"1", "json", ["pickle"])
    assert loads(data, "pickle", ["application/x-python-serialize"]) == 1
    assert loads(data, "application/x-python-serialize", {"pickle"}) == 1
    assert loads(b"1", "application/json") == 1


def test_pickle_carries_calls() -> None:
    body = dumps_call((1, {2}), {"a": print}, "pickle")
    assert loads_call(body, "pickle", ["pickle"]) == ((1, {2}), {"a": print})
    with pytest.raises(EncodeError, match="args/kwargs"):
        dumps_call((lambda: 0,), {}, "pickle")
    with pytest.raises(DecodeError):
        loads(b"junk", "pickle", ["pickle"])


def test_an_unknown_format_is_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"unknown serializer 'jsno'.*json"):
        dumps(1, "jsno")
    with pytest.raises(ImproperlyConfigured, match="unknown serializer"):
        serializers.check("jsno")
    serializers.check("json")


def test_a_format_whose_package_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgpack", None)
    for call in (lambda: serializers.check("msgpack"), lambda: dumps(1, "msgpack")):
        with pytest.raises(ImproperlyConfigured, match="needs the package 'msgpack'"):
            call()


def test_a_program_may_register_a_format() -> None:
    def encode(value: Any) -> str:
        return repr(value)

    serializers.register("repr", encode, lambda text: text.upper(), "text/x-repr")
    serializers.register("raw", pickle.dumps, pickle.loads, "application/x-raw", "binary")
    try:
        assert dumps(["é"], "repr") == b"['\xc3\xa9']"
        assert loads("é".encode(), "text/x-repr", ["repr"]) == "É"
        assert loads(dumps({1}, "raw"), "raw", ["raw"]) == {1}
        assert {"raw", "repr"} <= set(serializers.registered())
        with pytest.raises(DecodeError, match="repr"):
            loads(b"\xff", "repr", ["repr"])
    finally:
        serializers.unregister("repr")
        serializers.unregister("raw")
    assert "repr" not in serializers.registered()
    serializers.unregister("repr")


def test_a_program_may_register_a_type() -> None:
    serializers.register_type(
        SimpleNamespace, "ns", lambda ns: vars(ns), lambda fields: SimpleNamespace(**fields)
    )
    try:
        value = SimpleNamespace(a=(1,), b=SimpleNamespace())
        assert loads(dumps([value])) == [value]
        with pytest.raises(ValueError, match="taken"):
            serializers.register_type(range, "tuple", list, list)
    finally:
        del tagging.writers[SimpleNamespace], tagging.readers["ns"]
        del tagging._registered["ns"]


def test_a_type_takes_no_tag_of_another_or_of_liteqs_own() -> None:
    class A:
        pass

    class B:
        pass

    def register(kind: type, tag: str) -> None:
        serializers.register_type(kind, tag, lambda value: 0, lambda found: kind())

    first = A
    before = dict(tagging.writers), dict(tagging.readers), dict(tagging._registered)
    try:
        register(A, "a")
        register(B, "b")
        for kind, tag in ((A, "b"), (dict, "tuple")):
            with pytest.raises(ValueError, match=f"the type tag '{tag}' is taken"):
                register(kind, tag)
        assert type(loads(dumps(B()))) is B
        assert loads(dumps((1,))) == (1,)

        class A:  # the cell of a notebook that defines it is run again
            pass

        register(A, "a")
        assert type(loads(dumps(first()))) is A
    finally:
        for kept, now in zip(
            before, (tagging.writers, tagging.readers, tagging._registered), strict=True
        ):
            now.clear()
            now.update(kept)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (("x", "y", list, list), "takes a class and a tag, not 'x' and 'y'"),
        ((range, 3, list, list), "takes a class and a tag, not .* and 3"),
        ((range, "range", 1, 2), "takes two functions, not 1 and 2"),
    ],
)
def test_a_type_is_registered_with_a_tag_and_two_functions(given: Any, complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        serializers.register_type(*given)
    assert range not in tagging.writers


def test_reading_json_needs_no_heavy_module() -> None:
    code = (
        "import sys\n"
        "from liteq.serializers import *\n"
        "loads_call(dumps_call((1, (2,)), {'a': {3}}))\n"
        "print([m for m in ('pickle', 'decimal', 'uuid', 'pathlib', 'zoneinfo', 'datetime')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=uncovered()
    )
    loaded = set(eval(done.stdout))
    assert loaded <= {"datetime"}, done.stderr


def test_dates_are_not_datetimes() -> None:
    assert type(loads(dumps(date(2026, 1, 2)))) is date
