"""Random damage: whatever bytes a message, a result or a record is made of, who reads them
gets a value or one of liteq's errors, and nothing that they name is imported or called.

`LITEQ_STORM=1` makes it two hundred thousand cases; `LITEQ_FUZZ` is the number of those that
come without Hypothesis, and are timed.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from random import Random
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

import pytest
from api import app_in_memory
from hostile import HOSTILE, forge
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from liteq import Liteq, failure, outcome, parts
from liteq.delivery import Delivery
from liteq.exceptions import DecodeError, LiteqError
from liteq.executor import Executor, ExecutorSettings
from liteq.ids import new_id
from liteq.message import PACKED_FIELDS, VERSION, Message, Take
from liteq.outcome import Failed, Outcome, Succeeded
from liteq.serializers import dumps_call

STORM = bool(os.environ.get("LITEQ_STORM"))
# To shrink a failure takes minutes: LITEQ_STORM=1 does it.
fuzz = settings(
    max_examples=20_000 if STORM else 40,
    phases=list(Phase) if STORM else [Phase.explicit, Phase.generate],
)
pytestmark = [
    pytest.mark.timeout(3600 if STORM else 60),
    pytest.mark.untraced,
]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.datetimes(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
TEMPTING = ("antigravity", "turtle", "this")  # modules that nobody imports
TAGS = """datetime date time timedelta decimal uuid bytes tuple set frozenset complex path
enum flag dataclass model dict float int str evil"""
names = st.sampled_from(["os", "builtins", "subprocess", "liteq.exceptions", *TEMPTING, ""])
tags = st.builds(
    lambda tag, payload: {"__liteq__": [tag, *payload]},
    st.sampled_from(TAGS.split()),
    st.lists(plain | names | st.just("system"), max_size=4),
)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes that were right, with a few of them changed, lost or doubled."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(("flip", "cut", "lose", "put", "double"))):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at:]
            case "lose":
                del data[at : at + draw(st.integers(1, 8))]
            case "put":
                data[at:at] = draw(st.binary(max_size=8))
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 30))]
    return bytes(data)


calls = st.builds(
    dumps_call, st.lists(values, max_size=4), st.dictionaries(st.text(max_size=9), values)
)
forged_calls = st.builds(
    lambda args, kwargs: json.dumps([args, kwargs]).encode(),
    st.lists(plain | tags, max_size=3),
    st.dictionaries(st.text(max_size=5), plain | tags, max_size=2),
)
bodies = damaged(calls) | damaged(forged_calls) | st.binary(max_size=200)


@pytest.fixture(scope="module")
def app() -> Iterator[Liteq]:
    logging.getLogger("liteq.executor").disabled = True
    with app_in_memory() as app:

        @app.task(name="shop.take", bind=True)
        def take(self: Any, *args: Any, **kwargs: Any) -> str:
            noticed = [getattr(self.request, name, None) for name in dir(self.request)]
            return repr((noticed, args, kwargs))

        @app.task(name="shop.count")
        def count(items: list[Any]) -> int:
            return len(items)

        yield app
    logging.getLogger("liteq.executor").disabled = False


def run(app: Liteq, message: Message) -> Outcome:
    settings = ExecutorSettings(accept=("json",), max_body_size=200_000)
    return Executor(app.tasks, settings).run(Delivery(message))


@fuzz
@given(body=bodies, kind=st.sampled_from(("json", "json", "json", "pickle", "yaml", "", "x/y")))
def test_a_random_body_is_run_or_is_a_dead_letter(app: Liteq, body: bytes, kind: str) -> None:

    ended = run(app, Message(new_id(), "shop.take", body, content_type=kind))

    match ended:
        case Failed(error=error, dead=dead):
            assert dead is not None
            assert dead.startswith("undecodable body: ")
            assert failure.read(error)["type"] in ("DecodeError", "ContentDisallowed")
        case _:
            assert isinstance(ended, Succeeded)
            assert kind == "json"
    assert outcome.decode(outcome.encode(ended)) == ended
    assert not sys.modules.keys() & {*TEMPTING}, "something was imported"


fields = st.dictionaries(
    st.sampled_from([*Message._fields[len(PACKED_FIELDS) - 1 :], "evil"]), plain, max_size=5
)
pieces = st.sampled_from(
    [
        *(f'"{name}":"x",' for name in ("root_id", "shadow", "evil")),
        *(f'"group_index":{number},' for number in ("0", "12", "01", "-1", "9" * 5_000)),
        *('"has_links":true,', '"requeued":1,', '"content_type":"yaml",', '"takes":5,'),
        *('"root_id":"a\n",', '"root_id":"\\",', '"root_id":"\\x",', '"v":1,'),
        *('"v":2}', "}", " "),
    ]
)


@fuzz
@given(some=st.lists(pieces, max_size=4))
def test_a_message_that_is_not_unpacked_yet_can_be_and_says_what_is_usual(
    some: list[str],
) -> None:
    packed = (*Message(new_id(), "shop.take", b"").pack()[:-1], f'{{{"".join(some)}"v":1}}')
    try:
        unpacked = Message.unpack_unusual(packed)
    except DecodeError:
        with pytest.raises(DecodeError):
            Message.unpack(packed)
        return
    message = Message.unpack(packed)
    assert unpacked in (None, message)
    if unpacked is None:
        assert (message.content_type, message.keywords) == ("json", None)
        assert not message.immutable
        assert not message.requeued


envelopes = (
    st.builds(lambda some, v: json.dumps({**some, "v": v}), fields, st.just(VERSION) | plain)
    | st.text(max_size=60)
    | st.builds(lambda text: text + f'"v":{VERSION}}}', st.text(max_size=60))
)


@fuzz
@given(envelope=envelopes)
@example(envelope=f'{{"headers": [], "v": {VERSION}}}')
@example(envelope=f'{{"requeued": [], "v": {VERSION}}}')
@example(envelope=f'{{"takes": [["a", 1, "x", 2]], "keywords": ["k", null], "v": {VERSION}}}')
@example(envelope=f'{{"countdown": NaN, "root_id": "\\ud800", "v": {VERSION}}}')
@example(envelope=f'{{"headers": {{"a": [1]}}, "group_index": {10**300}, "v": {VERSION}}}')
def test_a_random_envelope_ends_in_an_outcome(app: Liteq, envelope: str) -> None:
    forged = forge(HOSTILE[0]._replace(body=b"[[1], {}]", envelope=envelope), "shop.take")

    ended = run(app, forged)

    if isinstance(ended, Failed):
        assert ended.dead is not None
    else:
        assert isinstance(ended, Succeeded)
        message = Message.unpack(forged.pack())
        for name in Message._fields[len(PACKED_FIELDS) - 1 :]:
            assert has_type(getattr(message, name), TYPES[name]), name
    assert outcome.decode(outcome.encode(ended)) == ended


def has_type(value: Any, declared: Any) -> bool:
    """Tell whether a value read from JSON has a type as it is declared."""
    origin, args = get_origin(declared), get_args(declared)
    if origin in (Union, UnionType):
        return any(has_type(value, one) for one in args)
    if origin is tuple:
        return type(value) is tuple and all(has_type(one, args[0]) for one in value)
    if origin is not None:
        return isinstance(value, origin)
    if declared is float:
        return type(value) in (int, float)
    if declared is Take:
        kinds = get_type_hints(Take)
        return type(value) is Take and all(map(has_type, value, kinds.values()))
    return type(value) is declared


TYPES = get_type_hints(Message)


PLACES: Final = st.integers(-(2**63), 2**63 - 1)  # what such an error can have

records = st.builds(
    lambda record: json.dumps(record).encode(),
    st.dictionaries(
        st.sampled_from(
            (
                *("type", "module", "message", "traceback", "args", "cause", "source"),
                *("values", "attributes", "members"),
            )
        ),
        plain | names,
    ),
)
good_records = st.builds(
    failure.describe,
    st.builds(ValueError, st.text())
    | st.builds(KeyError, values)
    | st.builds(FileNotFoundError, st.just(2), st.text(), st.text())
    | st.builds(UnicodeDecodeError, st.text(), st.binary(), *[PLACES] * 2, st.text()),
)


@fuzz
@given(
    state=st.sampled_from(("SUCCESS", "FAILURE", "PROGRESS")), data=bodies | damaged(records)
)
def test_reading_a_random_result_gives_a_value_or_an_error_of_liteq(
    app: Liteq, state: str, data: bytes
) -> None:
    id = new_id()
    app.broker.store(id, state, data)
    result = app.AsyncResult(id)

    for read in (lambda: result.result, lambda: result.traceback, lambda: result.info):
        try:
            read()
        except LiteqError:
            continue
    assert not sys.modules.keys() & {*TEMPTING}, "something was imported"


@fuzz
@given(record=damaged(good_records) | damaged(records) | records)
def test_a_random_error_record_is_an_exception_or_an_error_of_liteq(record: bytes) -> None:
    try:
        found = failure.rebuild(record)
    except DecodeError:
        return
    assert isinstance(found, Exception)
    assert isinstance(str(found), str)
    assert not sys.modules.keys() & {*TEMPTING}, "something was imported"


packs = st.recursive(
    st.lists(
        st.tuples(st.sampled_from(("result", "error")), st.binary(max_size=20)), max_size=4
    ).map(parts.pack),
    lambda inner: st.lists(st.tuples(st.just("list"), inner), max_size=3).map(parts.pack),
    max_leaves=6,
)


@fuzz
@given(data=damaged(packs) | st.binary(max_size=60))
@example(data=b"r\xb2:")
def test_a_random_list_is_read_or_refused(data: bytes) -> None:
    try:
        found = list(parts.unpack(data))
    except DecodeError:
        return
    assert parts.pack(found) is not None


# Each in its time and its room


CASES = int(os.environ.get("LITEQ_FUZZ", 100_000 if STORM else 300))
QUICKLY = 0.05  # seconds of processor time for one case
ROOM = 30  # times the bytes of a body at most, while it is read

WHOLE = (
    dumps_call([1, "two", b"three", (4, {5}), None, 1.5, 2**70], {"k": [True, {"x": "é"}]}),
    b'[[{"__liteq__":["datetime","2026-03-29T02:30:00+00:00"]},{"__liteq__":["set",[3]]},'
    b'{"__liteq__":["decimal","1.10"]},{"__liteq__":["dict",[[1,2]]]}],{"k":null}]',
    b'[[{"__liteq__":["enum","antigravity","system","x"]}],{"__liteq__":["model","os","x",{}]}]',
)
ENVELOPE = (
    f'{{"root_id":"r","parent_id":"p","headers":{{"a": 1}},"shadow":"s","stamps":{{"x":"y"}},'
    f'"stamped_headers":["x"],"immutable":true,"keywords":["k", null],"v":{VERSION}}}'
).encode()
RECORDS = [
    failure.describe(exc)
    for exc in (
        KeyError("k", 1, None),
        UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "no"),
        FileNotFoundError(2, "gone", "/x", None, "/y"),
        subprocess.CalledProcessError(1, ["false"], b"out"),
        ExceptionGroup("two", [ValueError({1: b"x"}), OSError(1, "no", "/x")]),
    )
]


def damage(data: bytes, dice: Random) -> bytes:
    """Change, lose, double or put in some bytes."""
    damaged = bytearray(data)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(damaged) + 1)
        match dice.randrange(5):
            case 0 if at < len(damaged):
                damaged[at] ^= 1 << dice.randrange(8)
            case 1:
                del damaged[at:]
            case 2:
                del damaged[at : at + dice.randint(1, 8)]
            case 3:
                damaged[at:at] = dice.randbytes(dice.randint(1, 8))
            case 4:
                damaged[at:at] = damaged[at : at + dice.randint(1, 30)]
    return bytes(damaged)


def test_damage_is_met_in_time(app: Liteq) -> None:
    dice = Random(1)
    ends: Counter[str] = Counter()
    slow: list[bytes] = []

    def body(data: bytes) -> str:
        return type(run(app, Message(new_id(), "shop.take", data))).__name__

    def envelope(data: bytes) -> str:
        text = data.decode(errors="surrogateescape").encode(errors="replace").decode()
        forged = forge(HOSTILE[0]._replace(body=b"[[1], {}]", envelope=text), "shop.take")
        return type(run(app, forged)).__name__

    def record(data: bytes) -> str:
        try:
            return type(failure.rebuild(data)).__name__
        except DecodeError:
            return "DecodeError"

    for number in range(CASES):
        meet, whole = (
            (body, WHOLE[number % len(WHOLE)]),
            (envelope, ENVELOPE),
            (record, RECORDS[number % len(RECORDS)]),
        )[dice.randrange(3)]
        data = damage(whole, dice)
        for _ in range(3):  # the collector may come in between
            began = time.thread_time()
            end = meet(data)
            if time.thread_time() - began < QUICKLY:
                break
        else:
            slow.append(data)
        ends[f"{meet.__name__} {end}"] += 1

    assert slow == []
    assert not sys.modules.keys() & {*TEMPTING}, "something was imported"
    assert {"body Succeeded", "body Failed", "envelope Failed"} <= ends.keys()
    assert {"record DecodeError", "record KeyError"} <= ends.keys()


@pytest.mark.parametrize("unit", [b"[],", b"{},", b'"",', b"0,", b'{"__liteq__":["set",[]]},'])
def test_a_body_needs_no_more_room_than_a_multiple_of_its_size(app: Liteq, unit: bytes) -> None:
    limit = 50_000
    body = b"[[[" + (unit * (limit // len(unit) - 10)).rstrip(b",") + b"]],{}]"
    message = Message(new_id(), "shop.count", body)
    run(app, message._replace(body=b"[[[]],{}]"))
    tracemalloc.start()
    try:
        assert isinstance(run(app, message), Succeeded)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < ROOM * limit, f"{most / limit:.1f} times"
