"""Ids, messages, outcomes, errors as data, states: the values everything else speaks in."""

from __future__ import annotations

import functools
import inspect
import json
import subprocess
import sys
import threading
import time
import types
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liteq import clock, exceptions, failure, outcome, parts, states
from liteq.arguments import compile_check
from liteq.exceptions import DecodeError, LiteqError, TaskFailed
from liteq.ids import new_id, new_token
from liteq.message import PACKED_FIELDS, VERSION, Edge, Graph, Message

# Ids


def test_an_id_is_a_uuid_of_version_7_and_the_rfc_variant() -> None:
    made = [uuid.UUID(new_id()) for _ in range(2_000)]

    assert {made.version for made in made} == {7}
    assert {made.variant for made in made} == {uuid.RFC_4122}
    assert {str(made)[19] for made in made} == set("89ab")


def test_an_id_is_written_as_other_libraries_write_it() -> None:
    made = new_id()

    assert str(uuid.UUID(made)) == made


def test_an_id_begins_with_the_milliseconds_of_its_making() -> None:
    before = time.time_ns() // 1_000_000
    milliseconds = uuid.UUID(new_id()).int >> 80
    after = time.time_ns() // 1_000_000

    assert before <= milliseconds <= after


def test_ids_sort_in_the_order_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    # One id every 250 ns, the resolution of the 12 extra bits, across many milliseconds.
    nanoseconds = iter(range(1_700_000_000_000_000_000, 2**63, 250))
    monkeypatch.setattr(time, "time_ns", lambda: next(nanoseconds))

    made = [new_id() for _ in range(20_000)]

    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_ids_of_one_instant_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)

    made = [new_id() for _ in range(5_000)]

    assert len(set(made)) == len(made)


def test_threads_never_make_the_same_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    made: list[str] = []
    start = threading.Barrier(8)

    def run() -> None:
        start.wait()
        made.extend([new_id() for _ in range(2_000)])

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(made)) == 16_000


FORKING = """
import os, sys, time
time.time_ns = lambda: 1_700_000_000_000_000_000
from liteq.ids import new_id, new_token
new_id()  # fills the block that a careless child would share
for _ in range(4):
    if os.fork() == 0:
        lines = "".join(f"{new_id()} {new_token()}\\n" for _ in range(300))
        os.write(1, lines.encode())  # one write: lines of two children never mix
        os._exit(0)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
os.write(1, "".join(f"{new_id()} {new_token()}\\n" for _ in range(300)).encode())
"""


@pytest.mark.process
def test_forked_children_never_make_the_same_id_or_token() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", FORKING], capture_output=True, text=True, check=True
    )

    ids, tokens = zip(*(line.split() for line in answer.stdout.splitlines()), strict=True)

    assert len(ids) == 1_500
    assert len(set(ids)) == 1_500
    assert len(set(tokens)) == 1_500


def test_a_token_is_positive_fits_63_bits_and_is_never_repeated() -> None:
    made = [new_token() for _ in range(20_000)]

    assert min(made) > 0
    assert max(made) < 2**63
    assert len(set(made)) == len(made)
    assert max(made) > 2**61  # the high bits are used


# The clock


def test_the_steady_clock_is_the_same_for_every_process_of_this_boot() -> None:
    script = "from liteq.clock import system_clock as c; print(c.steady())"

    before = clock.system_clock.steady()
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    after = clock.system_clock.steady()

    assert before < float(answer.stdout) < after


# Messages

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
mappings = st.none() | st.dictionaries(texts, plain, max_size=3)
instants = st.none() | st.floats(0, 4e9)
messages = st.builds(
    Message,
    id=texts,
    task=texts,
    body=st.binary(max_size=30),
    queue=texts,
    priority=st.integers(0, 9),
    run_at=instants,
    expires_at=instants,
    retries=st.integers(0, 100),
    time_limit=instants,
    soft_time_limit=instants,
    acks_late=st.booleans(),
    ignore_result=st.booleans(),
    max_deliveries=st.none() | st.integers(1, 100),
    result_expires=instants,
    content_type=texts,
    root_id=st.none() | texts,
    parent_id=st.none() | texts,
    group_id=st.none() | texts,
    group_index=st.none() | st.integers(0, 10**6),
    headers=mappings,
    properties=mappings,
    shadow=st.none() | texts,
    argsrepr=st.none() | texts,
    kwargsrepr=st.none() | texts,
    origin=st.none() | texts,
    reply_to=st.none() | texts,
    replaced_task_nesting=st.integers(0, 9),
    stamps=mappings,
    stamped_headers=st.none() | st.lists(texts, max_size=3).map(tuple),
    store_errors=st.booleans(),
    immutable=st.booleans(),
    has_links=st.booleans(),
    countdown=instants,
    expires_in=instants,
    gather=st.none() | texts,
    node=st.none() | texts,
    keywords=st.none() | st.lists(st.none() | texts, max_size=3).map(tuple),
    limits=st.none() | texts,
    unique_key=st.none() | texts,
    errback=st.booleans(),
    on_conflict=st.none() | texts,
    unique_for=instants,
    max_wait=instants,
    signature=st.none() | texts,
)


@given(messages)
def test_unpacking_a_packed_message_gives_the_same_message(message: Message) -> None:
    assert Message.unpack(message.pack()) == message


@pytest.mark.parametrize("headers", [({"x": 1}, {"x": True}), ({"x": 0.0}, {"x": -0.0})])
def test_what_is_packed_behind_an_equal_message_is_itself(
    headers: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    for each in headers:
        message = Message("i", "t", b"", group_index=1, headers=each)
        assert repr(Message.unpack(message.pack()).headers) == repr(each)


def test_headers_that_were_changed_are_packed_anew() -> None:
    headers = {"x": 1}
    message = Message("i", "t", b"", group_index=1, headers=headers)
    message.pack()
    headers["x"] = 2
    assert Message.unpack(message.pack()).headers == {"x": 2}


@given(messages)
def test_a_packed_message_is_made_of_plain_values_in_the_order_of_its_fields(
    message: Message,
) -> None:
    packed = message.pack()

    assert len(packed) == len(PACKED_FIELDS)
    assert {type(value) for value in packed} <= {str, bytes, int, float, bool, type(None)}
    for name, value in zip(PACKED_FIELDS[:-1], packed[:-1], strict=True):
        assert value == getattr(message, name)


def test_a_message_without_rare_fields_has_no_envelope() -> None:
    assert Message("i", "t", b"").pack()[-1] is None


def test_an_envelope_carries_its_version_and_only_what_was_set() -> None:
    envelope = Message("i", "t", b"", parent_id="p").pack()[-1]

    assert json.loads(envelope) == {"v": VERSION, "parent_id": "p"}


def test_an_envelope_of_a_later_version_is_refused_with_both_versions_named() -> None:
    packed = (*Message("i", "t", b"").pack()[:-1], json.dumps({"v": VERSION + 1}))

    with pytest.raises(DecodeError, match=rf"version {VERSION + 1}.*up to {VERSION}"):
        Message.unpack(packed)


@pytest.mark.parametrize(
    "envelope",
    [
        "{",
        "null",
        "1",
        "[]",
        '["v"]',
        "{}",
        '{"v": "x"}',
        '{"v": null}',
        '{"v": 1, "task": "os.system"}',
        '{"v": 1, "no_such_field": 1}',
        '{"v": 1, "stamped_headers": 5}',
        '{"v": 1, "keywords": 5}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:24],
)
def test_a_damaged_envelope_is_a_decode_error(envelope: str) -> None:
    packed = (*Message("i", "t", b"").pack()[:-1], envelope)

    with pytest.raises(DecodeError):
        Message.unpack(packed)


def test_a_message_cannot_be_changed() -> None:
    message = Message("i", "t", b"")

    with pytest.raises(AttributeError):
        message.task = "u"  # type: ignore[misc]


def test_edges_between_the_same_messages_in_the_same_way_are_equal() -> None:
    assert Edge("a", "b", "success") == Edge("a", "b", "success", 0)
    assert Edge("a", "b", "success") != Edge("a", "b", "failure")


# Lists of gathers


some_parts = st.lists(
    st.tuples(st.sampled_from(("result", "error", "list")), st.binary(max_size=30)), max_size=5
)


@given(some_parts)
def test_unpacking_a_packed_list_gives_its_parts(made: list[tuple[str, bytes]]) -> None:
    assert list(parts.unpack(parts.pack(made))) == made


@given(some_parts, st.integers(1, 20))
def test_a_list_that_was_cut_is_a_decode_error(made: list[tuple[str, bytes]], cut: int) -> None:
    whole = parts.pack(made)
    ends = {len(parts.pack(made[:number])) for number in range(len(made) + 1)}
    at = max(0, len(whole) - cut)

    if at in ends:
        assert len(list(parts.unpack(whole[:at]))) <= len(made)
    else:
        with pytest.raises(DecodeError, match="list of a gather"):
            list(parts.unpack(whole[:at]))


@pytest.mark.parametrize("data", [b"x1:a", b"r:a", b"r-1:a", b"r1a", b"r2:a", b"r" + b"1" * 30])
def test_a_damaged_list_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError, match="list of a gather"):
        list(parts.unpack(data))


# Outcomes

runtimes = st.floats(0, 1e6)
graphs = st.builds(
    Graph,
    messages=st.lists(messages.map(Message.pack), max_size=2).map(tuple),
    edges=st.lists(
        st.tuples(texts, texts, st.sampled_from(("success", "part")), st.integers(-1, 99)),
        max_size=2,
    ).map(tuple),
)
changes = st.dictionaries(st.sampled_from(PACKED_FIELDS), st.integers())
outcomes = st.one_of(
    st.builds(
        outcome.Succeeded,
        result=st.none() | st.binary(max_size=20),
        runtime=runtimes,
        children=st.none() | texts,
        added=st.none() | graphs,
    ),
    st.builds(outcome.Replaced, changes=changes, graph=graphs, runtime=runtimes),
    st.builds(
        outcome.Retried,
        run_at=st.floats(0, 4e9),
        error=st.binary(max_size=20),
        changes=st.none() | changes,
        runtime=runtimes,
    ),
    st.builds(
        outcome.Failed,
        error=st.binary(max_size=20),
        runtime=runtimes,
        dead=st.none() | texts,
        children=st.none() | texts,
    ),
    st.builds(outcome.Ignored, runtime=runtimes),
    st.builds(outcome.Revoked, reason=texts),
    st.builds(outcome.Released),
    st.builds(outcome.Lost, reason=texts),
)


@given(outcomes)
def test_decoding_an_encoded_outcome_gives_the_same_outcome(made: outcome.Outcome) -> None:
    wire = outcome.encode(made)

    assert outcome.decode(wire) == made
    assert type(outcome.decode(wire)) is type(made)


@given(outcomes)
def test_an_encoded_outcome_can_be_marshalled(made: outcome.Outcome) -> None:
    import marshal

    wire = outcome.encode(made)

    assert marshal.loads(marshal.dumps(wire)) == wire


def test_every_kind_of_outcome_is_known_to_the_wire() -> None:
    from typing import get_args

    kinds = get_args(outcome.Outcome)

    assert {kind.__name__ for kind in kinds} == set(outcome._KINDS)


# Errors as data


class Declined(Exception):
    """A user's own exception."""


class Outer:
    class Nested(Exception):
        """A user's exception inside of a class."""


def raised(exc: BaseException) -> BaseException:
    """Return the exception with the traceback of having been raised here."""
    try:
        raise exc
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("no"),
        ValueError(),
        KeyError("missing"),
        FileNotFoundError(2, "No such file"),
        Declined("card", 42, 1.5, None, True),
        Outer.Nested("deep"),
        exceptions.WorkerLostError("signal 9"),
        exceptions.TimeLimitExceeded(3.0),
        exceptions.SoftTimeLimitExceeded(2.0),
        exceptions.MaxRetriesExceededError("too often"),
        exceptions.TaskRevokedError("revoked"),
        exceptions.NotRegistered("shop.charge"),
    ],
    ids=repr,
)
def test_an_exception_comes_back_as_its_own_class_with_its_arguments(
    exc: Exception,
) -> None:
    again = failure.rebuild(failure.describe(exc))

    assert type(again) is type(exc)
    assert again.args == exc.args
    assert str(again) == str(exc)


def test_the_record_holds_the_traceback_as_text() -> None:
    record = failure.read(failure.describe(raised(ValueError("no"))))

    assert record["type"] == "ValueError"
    assert record["module"] == "builtins"
    assert record["message"] == "no"
    assert "in raised" in record["traceback"]
    assert record["traceback"].endswith("ValueError: no\n")


def test_an_exception_with_arguments_json_cannot_carry_comes_back_as_task_failed() -> None:
    again = failure.rebuild(failure.describe(raised(Declined(object()))))

    assert isinstance(again, TaskFailed)
    assert again.type_name.endswith("Declined")
    assert "in raised" in again.remote_traceback


def test_an_exception_that_this_process_does_not_have_comes_back_as_task_failed() -> None:
    record = json.dumps(
        {
            "type": "CardError",
            "module": "payments.errors",
            "message": "declined",
            "traceback": "Traceback …",
            "args": ["declined"],
        }
    )

    again = failure.rebuild(record.encode())

    assert isinstance(again, TaskFailed)
    assert again.type_name == "payments.errors.CardError"
    assert str(again) == "payments.errors.CardError: declined"
    assert again.remote_traceback == "Traceback …"


def forged(module: str, kind: str, args: list[Any]) -> bytes:
    """Return a record as whoever may write to the store could make it."""
    fields = {"type": kind, "module": module, "message": "m", "traceback": "", "args": args}
    return json.dumps(fields).encode()


def test_nothing_is_imported_for_a_record() -> None:
    absent = "wave"  # a module of the standard library that nothing here uses
    assert absent not in sys.modules

    again = failure.rebuild(forged(absent, "Error", ["x"]))

    assert isinstance(again, TaskFailed)
    assert absent not in sys.modules


def test_a_modules_lazy_attributes_are_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    lazy = types.ModuleType("lazy")
    lazy.__getattr__ = asked.append  # type: ignore[method-assign]  # PEP 562: may import
    monkeypatch.setitem(sys.modules, "lazy", lazy)

    again = failure.rebuild(forged("lazy", "heavy.Error", ["x"]))

    assert isinstance(again, TaskFailed)
    assert asked == []


@pytest.mark.parametrize(
    ("module", "kind", "args"),
    [
        ("os", "system", ["exit 1"]),
        ("subprocess", "Popen", ["true"]),
        ("builtins", "eval", ["1/0"]),
        ("builtins", "dict", []),
        ("builtins", "object", []),
        ("builtins", "SystemExit", [1]),
        ("builtins", "KeyboardInterrupt", []),
        ("builtins", "BaseException", []),
        ("json", "JSONDecodeError.__init__", ["x"]),
        ("os", "path.os.system", ["exit 1"]),
    ],
)
def test_what_is_no_exception_class_is_refused(module: str, kind: str, args: list[Any]) -> None:
    again = failure.rebuild(forged(module, kind, args))

    assert type(again) is TaskFailed


touched: list[str] = []


class Touchy(Exception):
    """An exception each of whose methods leaves a trace."""

    def __new__(cls, *args: Any) -> Touchy:
        touched.append("__new__")
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        touched.append("__init__")

    def __setattr__(self, name: str, value: Any) -> None:
        touched.append("__setattr__")


def test_no_code_of_the_exceptions_class_runs() -> None:
    touched.clear()

    again = failure.rebuild(forged(__name__, "Touchy", ["x", 1]))

    assert touched == []
    assert type(again) is Touchy
    assert again.args == ("x", 1)


class OddSystemError(OSError):
    """Its layout is not BaseException's, so BaseException alone cannot make it."""

    def __init__(self, needed: str, also: str) -> None:
        raise AssertionError("must not be called")


def test_an_exception_whose_init_needs_more_than_its_args_comes_back() -> None:
    again = failure.rebuild(forged(__name__, "OddSystemError", ["only one"]))

    assert type(again) is OddSystemError
    assert again.args == ("only one",)


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_exception_that_cannot_be_printed_is_described_all_the_same() -> None:
    record = failure.read(failure.describe(raised(Mute("x"))))

    assert record["message"] == "<Mute.__str__ raised RuntimeError>"


def test_long_messages_and_tracebacks_are_cut_in_the_middle() -> None:
    exc = ValueError("a" * 100_000 + "z" * 100_000)

    record = failure.describe(exc, traceback="b" * 300_000)

    fields = failure.read(record)
    assert len(record) < 4 * failure.ERROR_TEXT_LIMIT
    assert fields["message"].startswith("aaa")
    assert fields["message"].endswith("zzz")
    assert "167232 characters cut" in fields["message"]


arguments = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**5_000),  # more digits than Python reads
    st.floats(),
    st.text(),
    st.just("\ud800"),
    st.binary(max_size=3),
    st.just(object()),
)


@given(
    kind=st.sampled_from([ValueError, KeyError, OSError, SystemExit, Declined, Touchy, Mute]),
    args=st.lists(arguments, max_size=4),
)
def test_any_exception_can_be_described_and_rebuilt(
    kind: type[BaseException], args: list[Any]
) -> None:
    again = failure.rebuild(failure.describe(kind(*args)))

    assert isinstance(again, Exception)
    assert type(again) in (kind, TaskFailed) or issubclass(type(again), kind)


# Exceptions and states


def test_errors_can_be_caught_under_celerys_names() -> None:
    with pytest.raises(exceptions.BackendError):
        raise exceptions.StoreLost
    with pytest.raises(exceptions.BackendGetMetaError):
        raise exceptions.BrokerBusy
    assert issubclass(exceptions.ConfigWarning, exceptions.CeleryWarning)


def test_every_error_has_one_root_and_control_flow_has_another() -> None:
    steering = {"Ignore", "Reject", "Retry", "TaskPredicate"}
    apart = {"Interrupted", "SoftTimeLimitExceeded", "WorkerShutdown", "WorkerTerminate"}

    for name in exceptions.__all__:
        kind = getattr(exceptions, name)
        if issubclass(kind, Warning):
            continue
        if name in steering:
            assert issubclass(kind, exceptions.TaskPredicate)
            assert not issubclass(kind, LiteqError)
        elif name not in apart:
            assert issubclass(kind, LiteqError), name


def test_states_compare_by_precedence_not_by_spelling() -> None:
    state = states.state

    assert state("SUCCESS") > state("FAILURE") > state("PROGRESS") > state("REVOKED")
    assert state("PENDING") < state("RETRY") <= state("RETRY")
    assert state("STARTED") >= state("STARTED")
    assert state("STARTED") == "STARTED"


def test_a_state_is_either_ready_or_not() -> None:
    assert not states.READY_STATES & states.UNREADY_STATES
    assert states.PROPAGATE_STATES <= states.READY_STATES


# Arguments


class _Methods:
    def none(self): ...  # type: ignore[no-untyped-def]
    def some(self, a, /, b, c=1, *rest, d, e=2, **more): ...  # type: ignore[no-untyped-def]
    def all(*args): ...  # type: ignore[no-untyped-def]
    def __call__(self, x): ...  # type: ignore[no-untyped-def]


@functools.wraps(_Methods().some)
def _wrapper(*args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    "fun",
    [
        lambda: None,
        lambda a: None,
        lambda a, b=1: None,
        lambda a, /: None,
        lambda a=1, /, b=2: None,
        lambda a, /, *, b: None,
        lambda *args, a=1, b: None,
        lambda a, *args, b=1, c, **kwargs: None,
        lambda **kwargs: None,
        _Methods().none,
        _Methods().some,
        _Methods().all,
        _Methods(),
        _Methods.some,
        functools.partial(_Methods().some, 1),
        _wrapper,
    ],
)
def test_a_check_of_arguments_takes_what_the_function_takes(fun: Any) -> None:
    check = compile_check(fun)
    assert check is not None

    def shape(of: Any) -> list[tuple[str, int, bool]]:
        found = inspect.signature(of).parameters.values()
        return [(p.name, int(p.kind), p.default is not p.empty) for p in found]

    assert shape(check) == shape(fun)


def test_a_function_without_a_signature_has_no_check() -> None:
    assert compile_check(types.MethodType(lambda: None, 1)) is None
