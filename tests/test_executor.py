"""One delivery becomes one outcome: hooks, signals, retries, and everything that goes wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import world

from liteq import failure, parts, signals
from liteq import outcome as outcomes
from liteq.app import Liteq
from liteq.body import Body
from liteq.brokers.values import Input
from liteq.context import current
from liteq.delivery import NO_CALLS, Delivery, find_failed
from liteq.exceptions import (
    EncodeError,
    Ignore,
    MaxRetriesExceededError,
    Reject,
    Replaced,
    Retry,
    SoftTimeLimitExceeded,
)
from liteq.executor import Executor, ExecutorSettings
from liteq.message import PACKED_FIELDS, Message
from liteq.outcome import Failed, Ignored, Outcome, Retried, Revoked, Succeeded
from liteq.result import AsyncResult, GroupResult, result_from_tuple
from liteq.serializers import dumps, dumps_call, loads
from liteq.task import Task

NAME = "shop.work"


@pytest.fixture
def app(clock: world.FakeClock) -> Liteq:
    return Liteq("tests", broker="memory://", set_as_current=False, clock=clock)


@pytest.fixture
def run(app: Liteq, clock: world.FakeClock) -> Callable[..., Outcome]:
    """Make a task of a function and run one delivery of it."""

    def run_it(
        fun: Callable[..., Any],
        *args: Any,
        options: dict[str, Any] | None = None,
        inputs: Any = (),
        failed: Any = NO_CALLS,
        number: int = 1,
        report: Any = None,
        limit: int | None = None,
        accept: tuple[str, ...] = ("json",),
        **fields: Any,
    ) -> Outcome:
        app.tasks.pop(NAME, None)  # of an earlier run in the same test
        app.task(name=NAME, **(options or {}))(fun)
        fields.setdefault("body", dumps_call(args, {}))
        message = Message(id="m1", task=NAME, **fields)
        settings = ExecutorSettings(
            hostname="here", clock=clock, max_result_size=limit, accept=accept
        )
        body = Body()
        try:
            executor = Executor(app.tasks, settings)
            return executor.run(Delivery(message, number, inputs, failed), report, body)
        finally:
            body.close()

    return run_it


Run = Callable[..., Outcome]


@pytest.fixture
def sent() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The task signals sent during a test, in order."""
    names = "task_prerun task_postrun task_success task_failure task_retry task_internal_error"
    heard: list[tuple[str, dict[str, Any]]] = []
    connected = []

    def listen(name: str) -> None:
        def hear(**named: Any) -> None:
            heard.append((name, named))

        getattr(signals, name).connect(hear, weak=False)
        connected.append((name, hear))

    for name in names.split():
        listen(name)
    yield heard
    for name, hear in connected:
        getattr(signals, name).disconnect(hear)


class Telling(Task[..., Any]):
    """A task whose hooks tell when they are called, and with what."""

    abstract = True
    told: list[Any]

    def before_start(self, *args: Any) -> None:
        self.told.append(("before_start", *args))

    def on_success(self, *args: Any) -> None:
        self.told.append(("on_success", *args))

    def on_failure(self, *args: Any) -> None:
        self.told.append(("on_failure", *args))

    def on_retry(self, *args: Any) -> None:
        self.told.append(("on_retry", *args))

    def after_return(self, *args: Any) -> None:
        self.told.append(("after_return", *args))


@pytest.fixture
def telling() -> type[Telling]:
    return type("Told", (Telling,), {"told": [], "abstract": True})


def error_of(outcome: Outcome) -> dict[str, Any]:
    assert isinstance(outcome, (Failed, Retried)), outcome
    return failure.read(outcome.error)


def names(heard: list[tuple[str, Any]]) -> list[str]:
    return [name for name, _ in heard]


# Success


@pytest.mark.parametrize("is_hooked", [False, True])
def test_a_traceback_begins_in_the_users_code(app: Liteq, is_hooked: bool) -> None:
    class Hooked(Task[..., Any]):
        def before_start(self, *_: Any) -> None: ...

    @app.task(name=NAME, base=Hooked if is_hooked else Task)
    def work() -> None:
        raise OSError("down")

    ended = Executor(app.tasks).attempt(Delivery(Message("m1", NAME, b"[[], {}]")))

    assert ended.exc is not None
    assert ended.exc.__traceback__ is not None
    assert ended.exc.__traceback__.tb_frame.f_code.co_name == "work"


def test_what_a_task_returns_is_its_result(run: Run) -> None:
    outcome = run(lambda a, b: a + b, 1, 2)
    assert isinstance(outcome, Succeeded)
    assert outcome.result == b"3"


def test_the_runtime_is_that_of_the_body(run: Run, clock: world.FakeClock) -> None:
    outcome = run(lambda: clock.advance(2.5))
    assert isinstance(outcome, Succeeded)
    assert outcome.runtime == 2.5


def test_an_ignored_result_is_not_kept(run: Run) -> None:
    assert run(lambda: object(), ignore_result=True) == Succeeded(None)


def test_the_hooks_of_a_success_come_in_order(
    run: Run, telling: type[Telling], sent: list[Any]
) -> None:
    order: list[str] = []
    telling.told = order  # type: ignore[assignment]
    for name in ("before_start", "on_success", "after_return"):
        setattr(telling, name, lambda self, *args, name=name: order.append(name))

    def note(**_: Any) -> None:
        order.append("signal")

    for signal in (signals.task_prerun, signals.task_success, signals.task_postrun):
        signal.connect(note, weak=False)
    try:
        run(lambda: order.append("body"), options={"base": telling})
    finally:
        for signal in (signals.task_prerun, signals.task_success, signals.task_postrun):
            signal.disconnect(note)
    assert order == [
        "signal",
        "before_start",
        "body",
        "on_success",
        "signal",
        "after_return",
        "signal",
    ]
    assert names(sent) == ["task_prerun", "task_success", "task_postrun"]


def test_the_hooks_of_a_success_get_what_celery_gives(
    run: Run, telling: type[Telling], sent: list[Any]
) -> None:
    run(lambda a: a * 2, 4, options={"base": telling})
    assert telling.told == [
        ("before_start", "m1", (4,), {}),
        ("on_success", 8, "m1", (4,), {}),
        ("after_return", "SUCCESS", 8, "m1", (4,), {}, None),
    ]
    by_name = dict(sent)
    assert by_name["task_prerun"]["task_id"] == "m1"
    assert by_name["task_prerun"]["args"] == (4,)
    assert by_name["task_success"]["result"] == 8
    assert by_name["task_success"]["sender"].name == NAME
    assert (by_name["task_postrun"]["retval"], by_name["task_postrun"]["state"]) == (
        8,
        "SUCCESS",
    )


@pytest.mark.parametrize("hook", ["on_success", "after_return"])
@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_an_error_in_a_late_hook_is_logged_and_changes_nothing(
    run: Run,
    telling: type[Telling],
    sent: list[Any],
    caplog: pytest.LogCaptureFixture,
    hook: str,
    kind: type[BaseException],
) -> None:
    def fail(*_: Any) -> None:
        raise kind("from the hook")

    setattr(telling, hook, fail)
    outcome = run(lambda: 1, options={"base": telling})
    assert isinstance(outcome, Succeeded)
    assert f"{hook} raised" in caplog.text
    assert "task_internal_error" in names(sent)
    assert names(sent)[-1] == "task_postrun"


def test_an_error_in_before_start_fails_the_task(run: Run, telling: type[Telling]) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("not now")

    telling.before_start = fail  # type: ignore[method-assign]
    outcome = run(lambda: 1, options={"base": telling})
    assert error_of(outcome)["message"] == "not now"


def test_a_receiver_that_raises_changes_nothing(run: Run) -> None:
    def fail(**_: Any) -> None:
        raise ValueError

    with_receiver = (signals.task_prerun, signals.task_success, signals.task_postrun)
    for signal in with_receiver:
        signal.connect(fail, weak=False)
    try:
        assert isinstance(run(lambda: 1), Succeeded)
    finally:
        for signal in with_receiver:
            signal.disconnect(fail)


def test_the_children_are_told(run: Run) -> None:
    def work() -> None:
        here = current()
        assert here is not None
        here.children.append("c1")

    outcome = run(work)
    assert isinstance(outcome, Succeeded)
    assert json.loads(outcome.children or "") == ["c1"]


def test_a_started_task_says_where_if_it_is_tracked(run: Run) -> None:
    said: list[Any] = []
    run(lambda: 1, options={"track_started": True}, report=said.append)
    (note,) = said
    assert note.state == "STARTED"
    assert json.loads(note.meta)["hostname"] == "here"


# Results that cannot be kept


@pytest.mark.parametrize(
    "value",
    [object(), (n for n in ()), lambda: 1, {"deep": [object()]}],
    ids=["object", "generator", "function", "nested"],
)
def test_a_result_that_cannot_be_serialised_fails_the_task(
    run: Run, telling: type[Telling], value: Any
) -> None:
    outcome = run(lambda: value, options={"base": telling})
    assert error_of(outcome)["type"] == EncodeError.__name__
    assert "result" in error_of(outcome)["message"]
    assert [told[0] for told in telling.told] == ["before_start", "on_failure", "after_return"]


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (AsyncResult("a"), [["a", None], None]),
        (AsyncResult("b", parent=AsyncResult("a")), [["b", [["a", None], None]], None]),
        (GroupResult("g", [AsyncResult("a")]), [["g", None], [[["a", None], None]]]),
    ],
    ids=["call", "chain", "group"],
)
def test_a_result_of_other_calls_is_kept_as_its_tuple(run: Run, value: Any, kept: Any) -> None:
    outcome = run(lambda: value)

    assert isinstance(outcome, Succeeded)
    assert outcome.result is not None
    assert json.loads(json.dumps(loads(outcome.result))) == kept
    assert result_from_tuple(loads(outcome.result)) == value


def test_a_result_that_contains_itself_fails_the_task(run: Run) -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert error_of(run(lambda: loop))["type"] == "EncodeError"


def test_a_result_that_is_too_large_fails_the_task(run: Run) -> None:
    assert isinstance(run(lambda: "x" * 98, limit=100), Succeeded)
    error = error_of(run(lambda: "x" * 99, limit=100))
    assert error["type"] == "MessageTooLarge"
    assert "101 bytes" in error["message"]


# Failure


def test_a_failure_carries_the_users_traceback_alone(run: Run) -> None:
    def buy() -> None:
        raise KeyError("gone")

    error = error_of(run(buy))
    assert (error["type"], error["args"]) == ("KeyError", ["gone"])
    assert "in buy" in error["traceback"]
    assert "liteq/body.py" not in error["traceback"]


def test_so_does_one_whose_retries_are_used_up(run: Run) -> None:
    def buy() -> None:
        raise KeyError("gone")

    error = error_of(run(buy, options={"autoretry_for": (KeyError,), "max_retries": 0}))
    assert "in buy" in error["traceback"]
    assert "liteq/" not in error["traceback"]


def test_the_hooks_of_a_failure_get_what_celery_gives(
    run: Run, telling: type[Telling], sent: list[Any]
) -> None:
    exc = ValueError("no")

    def fail(_: int) -> None:
        raise exc

    run(fail, 4, options={"base": telling})
    (_, on_failure, after) = telling.told
    assert on_failure[:5] == ("on_failure", exc, "m1", (4,), {})
    einfo = on_failure[5]
    assert einfo.exception is exc
    assert "ValueError: no" in str(einfo)
    assert after[:6] == ("after_return", "FAILURE", exc, "m1", (4,), {})
    assert names(sent) == ["task_prerun", "task_failure", "task_postrun"]
    failed = sent[1][1]
    assert (failed["exception"], failed["task_id"]) == (exc, "m1")
    assert failed["traceback"] is exc.__traceback__
    assert sent[2][1]["state"] == "FAILURE"


@pytest.mark.parametrize("hook", ["on_failure", "after_return"])
def test_an_error_in_a_failure_hook_does_not_hide_the_failure(
    run: Run, telling: type[Telling], hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("from the hook")

    setattr(telling, hook, broken)
    assert (
        error_of(run(lambda: 1 / 0, options={"base": telling}))["type"] == "ZeroDivisionError"
    )
    assert f"{hook} raised" in caplog.text


@pytest.mark.parametrize(
    "kind", [SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, asyncio.CancelledError]
)
def test_exceptions_that_would_end_a_process_fail_the_task(
    run: Run, kind: type[BaseException]
) -> None:
    def fail() -> None:
        raise kind

    assert error_of(run(fail))["type"] == kind.__name__


class Hostile(Exception):
    """An exception of which every method raises."""

    def __str__(self) -> str:
        raise SystemExit

    __repr__ = __str__

    def __reduce__(self) -> Any:
        raise SystemExit


def test_an_exception_that_cannot_be_shown_still_fails_the_task(run: Run) -> None:
    def fail() -> None:
        raise Hostile

    error = error_of(run(fail))
    assert "Hostile" in error["type"] + error["args"][0]


def test_endless_recursion_fails_the_task(run: Run) -> None:
    def fail() -> None:
        fail()

    assert error_of(run(fail))["type"] == "RecursionError"


def test_an_exception_group_fails_the_task_with_all_its_members(run: Run) -> None:
    def fail() -> None:
        raise ExceptionGroup("both", [ValueError("one"), KeyError("two")])

    error = error_of(run(fail))
    assert error["type"] == "ExceptionGroup"
    assert "ValueError: one" in error["traceback"]
    assert "KeyError: 'two'" in error["traceback"]


def test_wrong_arguments_fail_the_task(run: Run) -> None:
    assert error_of(run(lambda a: a))["type"] == "TypeError"


FREED = """
import gc, weakref
from liteq import Liteq
from liteq.delivery import Delivery
from liteq.executor import Executor, ExecutorSettings
from liteq.message import Message

class Big:
    pass

seen = []
app = Liteq("shop", broker="memory://")

@app.task(name="fail")
def fail():
    big = Big()
    seen.append(weakref.ref(big))
    raise ValueError

gc.disable()
delivery = Delivery(Message("1", "fail", b"[[],{}]"))
outcome = Executor(app.tasks, ExecutorSettings()).run(delivery)
print(type(outcome).__name__, seen[0]())
"""


def test_what_a_failed_task_held_is_freed_without_the_collector() -> None:
    # In a process of its own: a tracer, or a handler that keeps records, holds frames.
    done = subprocess.run(
        [sys.executable, "-c", FREED], capture_output=True, text=True, env=world.uncovered()
    )

    assert done.stdout == "Failed None\n", done.stderr


# Steering


def test_ignore_ends_the_attempt_without_a_result(
    run: Run, telling: type[Telling], sent: list[Any]
) -> None:
    def work() -> None:
        raise Ignore

    assert isinstance(run(work, options={"base": telling}), Ignored)
    assert [told[0] for told in telling.told] == ["before_start"]
    assert sent[-1][1]["state"] == "IGNORED"


def test_a_rejected_message_goes_back_and_counts_no_retry(
    run: Run, clock: world.FakeClock
) -> None:
    def work() -> None:
        raise Reject("busy", requeue=True)

    outcome = run(work, retries=2, headers={"tenant": "x"}, requeued=1)
    assert isinstance(outcome, Retried)
    assert outcome.run_at == clock.now()
    again = world.make(headers={"tenant": "x"}, requeued=2)
    assert outcome.changes == {"retries": 2, "envelope": again.pack()[-1]}


def test_a_rejected_message_that_may_not_go_back_has_failed(
    run: Run, telling: type[Telling], sent: list[Any]
) -> None:
    def work() -> None:
        raise Reject("bad")

    outcome = run(work, options={"base": telling})
    assert isinstance(outcome, Failed)
    assert outcome.dead is None
    assert error_of(outcome)["type"] == "Reject"
    assert names(sent) == ["task_prerun", "task_postrun"]
    assert sent[-1][1]["state"] == "REJECTED"


def test_on_success_may_still_reject(run: Run, telling: type[Telling]) -> None:
    def refuse(*_: Any) -> None:
        raise Reject("after all")

    telling.on_success = refuse  # type: ignore[method-assign]
    assert error_of(run(lambda: 1, options={"base": telling}))["type"] == "Reject"


def test_a_retry_is_due_when_the_task_says(run: Run, clock: world.FakeClock) -> None:
    def work(self: Any) -> None:
        try:
            raise ConnectionError("down")
        except ConnectionError as exc:
            raise self.retry(exc=exc, countdown=30) from exc

    outcome = run(work, options={"bind": True})
    assert isinstance(outcome, Retried)
    assert outcome.run_at == clock.now() + 30
    assert not outcome.changes
    assert error_of(outcome)["type"] == "ConnectionError"


def test_the_hooks_of_a_retry_get_what_celery_gives(
    run: Run, telling: type[Telling], sent: list[Any]
) -> None:
    exc = ValueError("again")

    def work(self: Any) -> None:
        raise self.retry(exc=exc)

    run(work, options={"bind": True, "base": telling})
    (_, on_retry) = telling.told  # and no after_return
    assert on_retry[:5] == ("on_retry", exc, "m1", (), {})
    assert names(sent) == ["task_prerun", "task_retry", "task_postrun"]
    told = sent[1][1]
    assert isinstance(told["reason"], Retry)
    assert told["request"].id == "m1"
    assert sent[2][1]["state"] == "RETRY"


def test_a_retry_may_change_the_message(run: Run) -> None:
    def work(self: Any, a: int) -> None:
        raise self.retry(args=(a + 1,), queue="slow", countdown=1)

    outcome = run(work, 1, options={"bind": True})
    assert isinstance(outcome, Retried)
    assert outcome.changes is not None
    assert outcome.changes["queue"] == "slow"
    assert json.loads(outcome.changes["body"]) == [[2], {}]


@pytest.mark.parametrize(
    ("when", "due"),
    [
        (None, world.START),
        (10, world.START + 10),
        (datetime.fromtimestamp(world.START + 5, UTC), world.START + 5),
        (datetime.fromtimestamp(world.START + 5, UTC).replace(tzinfo=None), world.START + 5),
    ],
)
def test_a_retry_raised_by_hand_is_a_retry(run: Run, when: Any, due: float) -> None:
    def work() -> None:
        raise Retry(when=when)

    outcome = run(work)
    assert isinstance(outcome, Retried)
    assert outcome.run_at == due


def test_a_retry_raised_by_hand_with_nonsense_fails_the_task(run: Run, sent: list[Any]) -> None:
    def work() -> None:
        raise Retry(when="tomorrow")  # type: ignore[arg-type]

    assert isinstance(run(work), Failed)
    assert "task_internal_error" in names(sent)


@pytest.mark.parametrize("never", [math.nan, math.inf, 1e300])
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_retry_at_a_time_that_never_comes_fails_the_task(
    run: Run, never: float, by_hand: bool
) -> None:
    def work(self: Any) -> None:
        raise Retry(when=never) if by_hand else self.retry(countdown=never)

    outcome = run(work, options={"bind": True})
    assert isinstance(outcome, Failed)
    assert error_of(outcome)["type"] == "ValueError"
    assert "countdown" in error_of(outcome)["message"]


@pytest.mark.parametrize(
    ("reason", "end"), [(None, "MaxRetriesExceededError"), (OSError("down"), "OSError")]
)
def test_retries_raised_by_hand_are_limited_too(run: Run, reason: Any, end: str) -> None:
    def work() -> None:
        raise Retry(exc=reason, when=0)

    assert isinstance(run(work, options={"max_retries": 2}, retries=1), Retried)
    assert isinstance(run(work, options={"max_retries": None}, retries=99), Retried)
    outcome = run(work, options={"max_retries": 2}, retries=2)
    assert isinstance(outcome, Failed)
    assert error_of(outcome)["type"] == end


def test_a_listed_exception_retries_the_task_by_itself(
    run: Run, clock: world.FakeClock
) -> None:
    def work() -> None:
        raise ConnectionError("down")

    options = {"autoretry_for": (OSError,), "retry_kwargs": {"countdown": 7}}
    outcome = run(work, options=options)
    assert isinstance(outcome, Retried)
    assert outcome.run_at == clock.now() + 7
    assert error_of(outcome)["type"] == "ConnectionError"


def test_an_automatic_retry_backs_off(run: Run, clock: world.FakeClock) -> None:
    def work() -> None:
        raise ConnectionError("down")

    options = {
        "autoretry_for": (OSError,),
        "retry_backoff": 3,
        "retry_jitter": False,
        "max_retries": None,
    }
    outcome = run(work, options=options, retries=4)
    assert isinstance(outcome, Retried)
    assert outcome.run_at == clock.now() + 3 * 2**4


def test_an_exception_listed_as_not_to_be_retried_fails_the_task(run: Run) -> None:
    def work() -> None:
        raise ConnectionError("down")

    options = {"autoretry_for": (OSError,), "dont_autoretry_for": (ConnectionError,)}
    assert isinstance(run(work, options=options), Failed)


@pytest.mark.parametrize("steer", [Ignore, Reject, Retry])
def test_steering_is_never_retried_by_itself(run: Run, steer: type[Exception]) -> None:
    def work() -> None:
        raise steer

    options = {"autoretry_for": (Exception,), "retry_kwargs": {"countdown": 99}}
    outcome = run(work, options=options)
    assert not (isinstance(outcome, Retried) and outcome.run_at == world.START + 99)


def test_used_up_retries_fail_with_the_exception_itself(run: Run) -> None:
    def work() -> None:
        raise ConnectionError("down")

    options = {"autoretry_for": (OSError,), "max_retries": 2}
    assert isinstance(run(work, options=options, retries=1), Retried)
    error = error_of(run(work, options=options, retries=2))
    assert error["type"] == "ConnectionError"
    assert "in work" in error["traceback"]


def test_used_up_retries_without_an_exception_say_so(run: Run) -> None:
    def work(self: Any) -> None:
        raise self.retry()

    outcome = run(work, options={"bind": True, "max_retries": 1}, retries=1)
    assert error_of(outcome)["type"] == MaxRetriesExceededError.__name__


# What cannot begin


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"[1,2]", b"\xff\xfe", b"[[],[]]", b"[" * 100_000]
)
def test_a_body_that_cannot_be_read_is_a_dead_letter(run: Run, body: bytes) -> None:
    outcome = run(lambda: 1, body=body)
    assert isinstance(outcome, Failed)
    assert outcome.dead is not None
    assert outcome.dead.startswith("undecodable body: ")


def test_a_format_that_is_not_accepted_is_a_dead_letter(run: Run) -> None:
    body = dumps_call((1,), {}, "pickle")
    outcome = run(lambda n: n, body=body, content_type="pickle")
    assert isinstance(outcome, Failed)
    assert outcome.dead is not None
    outcome = run(lambda n: n, body=body, content_type="pickle", accept=("json", "pickle"))
    assert isinstance(outcome, Succeeded)


def test_a_damaged_envelope_is_a_dead_letter(app: Liteq) -> None:
    app.task(name=NAME)(lambda: 1)
    packed = (*Message(id="m1", task=NAME, body=b"[[],{}]").pack()[:14], "{")
    outcome = Executor(app.tasks).run(Delivery(packed))
    assert isinstance(outcome, Failed)
    assert outcome.dead is not None


@pytest.mark.parametrize(
    "envelope",
    [
        '{"nonsense":7,"v":1}',
        '{"takes":5,"v":1}',
        '{"stamped_headers":1,"v":1}',
        '{"requeued":"often","v":1}',
        '{"root_id":"r","parent_id":"p""v":1}',
        '{"root_id":"r","v":2}"v":1}',
        '{"root_id":"a\nb","v":1}',
        '{"group_index":01,"v":1}',
    ],
)
def test_nothing_runs_whose_envelope_cannot_be_read(app: Liteq, envelope: str) -> None:
    ran = []
    app.task(name=NAME)(lambda: ran.append(1))
    packed = (*Message(id="m1", task=NAME, body=b"[[],{}]").pack()[:-1], envelope)

    outcome = Executor(app.tasks).run(Delivery(packed))

    assert isinstance(outcome, Failed)
    assert "envelope" in (outcome.dead or "")
    assert ran == []


def test_a_log_that_raises_does_not_change_how_an_attempt_ends(
    run: Run, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(_record: logging.LogRecord) -> bool:
        raise RuntimeError("no such column")

    logger = logging.getLogger("liteq.executor")
    logger.addFilter(refuse)
    try:
        with caplog.at_level(logging.INFO, logger="liteq.executor"):
            assert isinstance(run(lambda: 1), Succeeded)
            assert isinstance(run(lambda: 1 / 0), Failed)
    finally:
        logger.removeFilter(refuse)
    assert capfd.readouterr().err.count("RuntimeError: no such column") == 2


def test_a_task_that_is_not_there_is_a_dead_letter(app: Liteq) -> None:
    outcome = Executor(app.tasks).run(Delivery(Message(id="m1", task="gone", body=b"")))
    assert isinstance(outcome, Failed)
    assert outcome.dead == "unknown task 'gone'"


def test_giving_up_goes_before_retrying_by_itself(run: Run) -> None:
    def give_up(self: Any) -> None:
        raise self.retry(exc=OSError("for good"), max_retries=0)

    outcome = run(
        give_up, options={"bind": True, "autoretry_for": (OSError,), "max_retries": 5}
    )

    assert isinstance(outcome, Failed)
    assert error_of(outcome)["message"] == "for good"


def test_what_expired_on_the_way_does_not_start(run: Run, clock: world.FakeClock) -> None:
    assert run(lambda: 1 / 0, expires_at=clock.now() - 1) == Revoked("expired")
    assert isinstance(run(lambda: 1, expires_at=clock.now() + 1), Succeeded)


def test_options_that_make_no_sense_fail_the_task(run: Run, app: Liteq) -> None:
    task = app.task(name=NAME)(lambda: 1)
    task.throws = 5
    outcome = Executor(app.tasks).run(Delivery(Message(id="m1", task=NAME, body=b"[[],{}]")))
    assert isinstance(outcome, Failed)


# Links


def result_input(value: Any, position: int = 0) -> tuple[str, str, int, bytes]:
    return (f"s{position}", "result", position, dumps(value))


def error_input(exc: Exception) -> tuple[str, str, int, bytes]:
    return ("s1", "error", 0, failure.describe(exc, traceback="Traceback: x"))


def got(outcome: Outcome) -> Any:
    assert isinstance(outcome, Succeeded), outcome
    return json.loads(outcome.result or b"")


def test_a_link_gets_the_result_before_its_own_arguments(run: Run) -> None:
    assert got(run(lambda *args: list(args), 9, inputs=[result_input(5)])) == [5, 9]


def test_results_come_in_their_order(run: Run) -> None:
    inputs = [result_input("b", 1), result_input("a", 0)]
    assert got(run(lambda *args: list(args), inputs=inputs)) == ["a", "b"]


def test_an_immutable_link_gets_its_own_arguments_alone(run: Run) -> None:
    inputs = [result_input(5)]
    assert got(run(lambda *args: list(args), 9, inputs=inputs, immutable=True)) == [9]


def test_an_errback_of_one_argument_gets_the_id(run: Run) -> None:
    assert got(run(lambda id: id, inputs=[error_input(ValueError("no"))])) == "s1"


def test_an_errback_of_three_arguments_gets_request_exception_and_traceback(
    run: Run,
) -> None:
    def errback(request: Any, exc: Any, traceback: Any) -> Any:
        return [request.id, type(exc).__name__, str(exc), traceback]

    outcome = run(errback, inputs=[error_input(ValueError("no"))])
    assert got(outcome) == ["s1", "ValueError", "no", "Traceback: x"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, ["s1", "charge", ["s0", "x", 7], {"to": "x"}, "r1", 3, 2, "worker-1"]),
        ({"body": b"{"}, ["s1", "charge", None, None, "r1", 3, 2, "worker-1"]),
        ({"envelope": "{"}, ["s1", None, None, None, None, 0, 0, None]),
        (None, ["s1", None, None, None, None, 0, 0, None]),
    ],
    ids=["known", "arguments undecodable", "damaged", "gone"],
)
def test_the_request_of_an_errback_is_what_can_be_read_of_the_call_that_failed(
    run: Run, change: dict[str, Any] | None, told: list[Any]
) -> None:
    body = dumps_call((7,), {"to": "x"})
    call = Message(id="s1", task="charge", body=body, root_id="r1", retries=3).pack()
    packed = tuple({**dict(zip(PACKED_FIELDS, call, strict=True)), **(change or {})}.values())
    inputs = [("s0", *error_input(ValueError("x"))[1:]), ("s2", "result", 1, b'"x"')]
    failed = {} if change is None else {"s1": (packed, 2, "worker-1", inputs)}

    def errback(r: Any, exc: Any, traceback: Any) -> Any:
        args = r.args and list(r.args)
        return [r.id, r.task, args, r.kwargs, r.root_id, r.retries, r.deliveries, r.hostname]

    assert got(run(errback, inputs=[error_input(ValueError("no"))], failed=failed)) == told


def test_what_failed_is_left_out_if_the_store_has_it_no_more_or_does_not_answer(
    app: Liteq, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = [Input("s1", "error", 0, b""), Input("s2", "result", 1, b"")]
    app.broker.enqueue([Message(id="s2", task=NAME, body=b"")])

    assert find_failed(app.broker, inputs) == {}

    app.broker.enqueue([Message(id="s1", task=NAME, body=b"")])
    assert list(find_failed(app.broker, inputs)) == ["s1"]

    app.broker.close()
    absent = Liteq(broker="redis://127.0.0.1:1/0").broker
    assert find_failed(absent, inputs) == {}
    assert "cannot look up the failed call" in caplog.text


def test_an_errback_with_an_argument_of_its_own_is_counted_without_it(run: Run) -> None:
    inputs = [error_input(ValueError("no"))]
    assert got(run(lambda id, own: [id, own], "own", inputs=inputs)) == ["s1", "own"]

    def errback(request: Any, exc: Any, traceback: Any, own: Any) -> Any:
        return [request.id, own]

    assert got(run(errback, "own", inputs=inputs)) == ["s1", "own"]


def test_a_bound_errback_gets_the_id_as_in_celery(run: Run) -> None:
    def errback(self: Any, id: str, more: Any = 1, most: Any = 2) -> Any:
        return [id, more, most]

    outcome = run(errback, inputs=[error_input(ValueError("no"))], options={"bind": True})
    assert got(outcome) == ["s1", 1, 2]


def test_a_list_comes_as_one_argument_with_exceptions_where_parts_failed(run: Run) -> None:
    packed = parts.pack(
        [
            ("result", dumps(5)),
            ("error", failure.describe(ValueError("no"))),
            ("result", b"null"),
        ]
    )

    def work(values: list[Any], own: int) -> Any:
        return [values[0], repr(values[1]), values[2], own]

    outcome = run(work, 9, inputs=[("g1", "list", 0, packed)])
    assert got(outcome) == [5, "ValueError('no')", None, 9]


def test_inputs_become_the_keyword_arguments_that_the_message_names(run: Run) -> None:
    inputs = [result_input("c", 2), result_input("b", 1), result_input("a", 0)]

    def work(*args: Any, **kwargs: Any) -> Any:
        return [*args, kwargs]

    outcome = run(work, 9, inputs=inputs, keywords=(None, "left", None))
    assert got(outcome) == ["a", "c", 9, {"left": "b"}]
    outcome = run(work, 9, inputs=inputs, keywords=(None, "left"), immutable=True)
    assert got(outcome) == [9, {"left": "b"}]


@pytest.mark.parametrize("fields", [{"has_links": True}, {"gather": "g1"}])
def test_a_value_that_others_wait_for_is_given_though_it_is_not_kept(
    run: Run, fields: dict[str, Any]
) -> None:
    assert got(run(lambda: 5, ignore_result=True, **fields)) == 5
    assert run(lambda: 5, ignore_result=True) == Succeeded(None, 0.0)


# Replacing


REPLACED = outcomes.Replaced({"task": "other"})


def replaced() -> Replaced:
    return Replaced("other()", REPLACED)


def test_a_replaced_attempt_ends_as_the_replacement_says(
    run: Run, sent: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        raise replaced()

    with caplog.at_level(logging.INFO, "liteq.executor"):
        assert run(work) == REPLACED

    assert names(sent) == ["task_prerun", "task_postrun"]
    assert sent[1][1]["state"] == "IGNORED"
    assert "Task shop.work[m1] replaced in 0.000s: other()" in caplog.text


@pytest.mark.parametrize("then", [None, ValueError("late")])
def test_a_replacement_that_the_body_swallows_is_none_the_less_one(
    run: Run, then: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> str:
        steer = replaced()
        current().replaced = steer  # type: ignore[union-attr]  # as Task.replace does
        try:
            raise steer
        except Exception:
            if then is not None:
                raise then from None
        return "done"

    with caplog.at_level(logging.WARNING, "liteq.executor"):
        assert run(work) == REPLACED

    assert ("raised after it was replaced: ValueError: late" in caplog.text) == bool(then)


def test_a_retry_after_a_replacement_is_a_retry(run: Run, clock: world.FakeClock) -> None:
    def work() -> None:
        current().replaced = replaced()  # type: ignore[union-attr]
        raise Retry(when=5)

    assert isinstance(run(work), Retried)


def test_an_input_that_cannot_be_read_is_a_dead_letter(run: Run) -> None:
    outcome = run(lambda a: a, inputs=[("s1", "result", 0, b"{")])
    assert isinstance(outcome, Failed)
    assert outcome.dead is not None


# async def


def test_an_async_task_runs_in_any_pool(run: Run) -> None:
    async def work(n: int) -> Any:
        await asyncio.sleep(0)
        here = current()
        return [n, here.id if here else None]

    assert got(run(work, 3)) == [3, "m1"]


def test_an_async_task_may_fail_and_retry(run: Run) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    assert error_of(run(fail))["type"] == "ValueError"
    outcome = run(fail, options={"autoretry_for": (ValueError,)})
    assert isinstance(outcome, Retried)


def test_a_function_that_returns_a_coroutine_is_awaited_too(run: Run) -> None:
    async def inner() -> int:
        return 4

    assert got(run(lambda: inner())) == 4


def test_many_async_tasks_run_at_once_each_with_its_request(app: Liteq) -> None:
    async def work(n: int) -> Any:
        for _ in range(3):
            await asyncio.sleep(0)
        here = current()
        return [n, here.id if here else None]

    app.task(name=NAME)(work)
    executor = Executor(app.tasks)
    assert executor.is_async(NAME)

    async def all_of_them() -> list[Outcome]:
        return await asyncio.gather(
            *(
                executor.arun(
                    Delivery(Message(id=f"m{n}", task=NAME, body=dumps_call((n,), {}))),
                    body=Body(),
                )
                for n in range(20)
            )
        )

    outcomes = asyncio.run(all_of_them())
    assert [got(outcome) for outcome in outcomes] == [[n, f"m{n}"] for n in range(20)]


def test_a_cancelled_attempt_has_no_outcome_and_calls_no_hook(
    app: Liteq, telling: type[Telling]
) -> None:
    async def work() -> None:
        await asyncio.sleep(20)

    app.task(name=NAME, base=telling)(work)
    message = Message(id="m1", task=NAME, body=b"[[],{}]")

    async def cancel() -> None:
        attempt = asyncio.create_task(Executor(app.tasks).arun(Delivery(message)))
        await asyncio.sleep(0.005)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt

    asyncio.run(cancel())
    assert [told[0] for told in telling.told] == ["before_start"]


def test_a_soft_limit_is_a_failure_that_a_task_can_catch(app: Liteq) -> None:
    async def work(catch: bool) -> str:
        try:
            await asyncio.sleep(20)
        except SoftTimeLimitExceeded:
            if not catch:
                raise
        return "caught"

    app.task(name=NAME)(work)

    async def limited(catch: bool) -> Outcome:
        body = Body()
        message = Message(id="m1", task=NAME, body=dumps_call((catch,), {}))
        attempt = asyncio.create_task(Executor(app.tasks).arun(Delivery(message), body=body))
        await asyncio.sleep(0.005)
        body.interrupt(body.attempt)
        return await attempt

    assert got(asyncio.run(limited(catch=True))) == "caught"
    assert error_of(asyncio.run(limited(catch=False)))["type"] == "SoftTimeLimitExceeded"


# In place


def eager(app: Liteq, *args: Any) -> Delivery:
    message = Message(id="m1", task=NAME, body=b"")
    return Delivery(message, arguments={message.id: (args, {})}, eager=True)


def test_in_place_the_value_itself_comes_back(app: Liteq) -> None:
    thing = object()
    app.task(name=NAME)(lambda given: given)
    ended = Executor(app.tasks).attempt(eager(app, thing))
    assert ended.value is thing
    assert isinstance(ended.outcome, Succeeded)


def test_in_place_the_exception_itself_comes_back(app: Liteq) -> None:
    exc = ValueError("no")

    def fail() -> None:
        raise exc

    app.task(name=NAME)(fail)
    assert Executor(app.tasks).attempt(eager(app)).exc is exc


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_in_place_an_interrupted_program_ends(app: Liteq, kind: type[BaseException]) -> None:
    def fail() -> None:
        raise kind

    app.task(name=NAME)(fail)
    with pytest.raises(kind):
        Executor(app.tasks).attempt(eager(app))


def test_in_place_errors_of_hooks_go_through(app: Liteq, telling: type[Telling]) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("from the hook")

    telling.on_success = fail  # type: ignore[method-assign]
    app.task(name=NAME, base=telling)(lambda: 1)
    with pytest.raises(ValueError, match="from the hook"):
        Executor(app.tasks).attempt(eager(app))


def test_in_place_an_async_task_runs_inside_a_running_loop(app: Liteq) -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 6

    app.task(name=NAME)(work)

    async def call() -> Any:
        return Executor(app.tasks).attempt(eager(app)).value

    assert asyncio.run(call()) == 6


# Log


def records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "liteq.executor"]


def test_a_task_is_one_line_in_the_log_and_shows_no_arguments(
    run: Run, caplog: pytest.LogCaptureFixture, clock: world.FakeClock
) -> None:
    caplog.set_level(logging.INFO, "liteq.executor")
    run(lambda secret: clock.advance(0.25), "hunter2", queue="high", retries=1, number=2)
    (record,) = records(caplog)
    assert record.getMessage() == f"Task {NAME}[m1] succeeded in 0.250s"
    fields = vars(record)
    assert fields["task"] == NAME
    assert (fields["task_id"], fields["queue"]) == ("m1", "high")
    assert (fields["outcome"], fields["duration_ms"], fields["attempt"]) == (
        "succeeded",
        250,
        3,
    )


def test_the_log_shows_the_nickname_of_a_call(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "liteq.executor")
    run(lambda: 1, shadow="nickname")
    assert "Task nickname[m1]" in caplog.text


@pytest.mark.parametrize("expected", [False, True])
def test_a_failure_is_an_error_with_its_traceback_unless_it_is_expected(
    run: Run, caplog: pytest.LogCaptureFixture, expected: bool
) -> None:
    caplog.set_level(logging.INFO, "liteq.executor")
    run(lambda: 1 / 0, options={"throws": (ArithmeticError,) if expected else ()})
    (record,) = records(caplog)
    assert record.levelno == (logging.INFO if expected else logging.ERROR)
    assert (record.exc_info is None) is expected


def test_an_overridden_call_is_gone_through(run: Run) -> None:
    class Counting(Task[..., Any]):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return ["through", self.run(*args, **kwargs)]

    assert got(run(lambda: 1, options={"base": Counting})) == ["through", 1]
