"""One run for many calls: the options, the run, and what its value says of each call."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import world

from liteq import Liteq, batch, failure, signals
from liteq.batches import Batches, SimpleRequest
from liteq.body import Body
from liteq.context import Context, current
from liteq.delivery import Delivery
from liteq.exceptions import Ignore, Retry, SoftTimeLimitExceeded
from liteq.executor import Executor, ExecutorSettings
from liteq.flushing import Flush, endings, flush_of
from liteq.ids import new_id
from liteq.message import Message
from liteq.outcome import Failed, Ignored, Outcome, Retried, Revoked, Succeeded
from liteq.serializers import dumps_call
from liteq.testing import inline

NAME = "batched"


@pytest.fixture
def app() -> Iterator[Liteq]:
    made = Liteq("batches", broker="memory://", set_as_current=False)
    yield made
    made.close()


@pytest.fixture
def run(app: Liteq, clock: world.FakeClock) -> Callable[..., list[Outcome]]:
    """Run calls with these arguments as one run of the function, and return their outcomes."""

    def run_it(
        fun: Any, *calls: Any, report: Any = lambda place, said: False, **options: Any
    ) -> list[Outcome]:
        app.task(name=NAME, flush_every=100, **options)(fun)
        deliveries = [
            call
            if isinstance(call, Delivery)
            else Delivery(Message(id=f"m{place}", task=NAME, body=dumps_call((call,), {})))
            for place, call in enumerate(calls)
        ]
        body = Body()
        try:
            settings = ExecutorSettings(hostname="here", clock=clock, redactor=app.redactor)
            return batch.run(Executor(app.tasks, settings), deliveries, report, body)
        finally:
            body.close()

    return run_it


Run = Callable[..., list[Outcome]]


def with_kwargs(**kwargs: Any) -> Delivery:
    return Delivery(Message(id=new_id(), task=NAME, body=dumps_call((), kwargs)))


def values(outcomes: list[Outcome]) -> list[Any]:
    return [
        json.loads(one.result or b"null") if isinstance(one, Succeeded) else type(one).__name__
        for one in outcomes
    ]


def reason(outcome: Outcome) -> str:
    assert isinstance(outcome, (Failed, Retried)), outcome
    return str(failure.rebuild(outcome.error))


# The value


def test_a_run_that_returns_a_list_gives_each_call_its_own(run: Run) -> None:
    assert values(run(lambda calls: [call.args[0] * 2 for call in calls], 1, 2, 3)) == [2, 4, 6]


def test_a_run_that_returns_nothing_gives_none_to_each(run: Run) -> None:
    assert values(run(lambda calls: None, 1, 2)) == [None, None]


def test_a_coroutine_is_awaited_for_all(run: Run) -> None:
    async def double(calls: list[Context]) -> tuple[int, ...]:
        return tuple(call.args[0] * 2 for call in calls)

    assert values(run(double, 1, 2)) == [2, 4]


@pytest.mark.parametrize("wrong", [[1], [1, 2, 3], "ab", {1: 2}, 7])
def test_what_is_no_value_for_each_fails_all_and_says_how_many(run: Run, wrong: Any) -> None:
    outcomes = run(lambda calls: wrong, 1, 2)

    assert values(outcomes) == ["Failed", "Failed"]
    assert "task 'batched' was given 2 calls and returned" in reason(outcomes[0])
    assert "a list with a value for each call" in reason(outcomes[0])


def test_what_cannot_be_shown_is_told_by_its_type(run: Run) -> None:
    class Lazy:
        def __repr__(self) -> str:
            raise OSError("no database")

    outcomes = run(lambda calls: Lazy(), 1, 2)

    assert values(outcomes) == ["Failed", "Failed"]
    assert "returned a value of type Lazy: with flush_every" in reason(outcomes[0])


def test_a_call_that_cannot_begin_fails_alone(run: Run) -> None:
    def report(place: int, said: Any) -> bool:
        if place == 0:
            raise OSError("the worker is gone")
        return False

    outcomes = run(lambda calls: [7], 1, 2, track_started=True, report=report)

    assert values(outcomes) == ["Failed", 7]


def test_an_exception_in_the_list_ends_its_call_and_no_other(run: Run) -> None:
    def half(calls: list[Context]) -> list[Any]:
        return ["good", ValueError("bad"), Ignore(), Retry(when=5)]

    good, bad, ignored, retried = run(half, 1, 2, 3, 4)

    assert values([good]) == ["good"]
    assert isinstance(bad, Failed)
    assert reason(bad) == "bad"
    assert isinstance(ignored, Ignored)
    assert isinstance(retried, Retried)


def test_what_a_run_raises_all_its_calls_end_with(run: Run) -> None:
    def fail(calls: list[Context]) -> None:
        raise OSError("away")

    assert [reason(one) for one in run(fail, 1, 2)] == ["away", "away"]


def test_each_call_of_a_run_that_raises_is_retried_by_itself(run: Run) -> None:
    def fail(calls: list[Context]) -> None:
        raise OSError("away")

    outcomes = run(fail, 1, 2, autoretry_for=(OSError,), retry_backoff=False)

    assert [type(one) for one in outcomes] == [Retried, Retried]


def test_one_value_that_cannot_be_sent_fails_its_call_alone(run: Run) -> None:
    outcomes = run(lambda calls: [1, object()], 1, 2)

    assert values(outcomes) == [1, "Failed"]


def test_endings_are_as_many_as_calls() -> None:
    error, calls = ValueError("x"), [Context(), Context()]

    assert endings("t", None, error, calls) == [(None, error), (None, error)]
    assert endings("t", (1, error), None, calls) == [(1, None), (None, error)]


def test_calls_end_as_the_backend_was_told(app: Liteq, run: Run) -> None:
    def take(calls: list[Context]) -> None:
        app.backend.mark_as_done(calls[0].id, "one", request=calls[0])
        app.backend.mark_as_failure(calls[1].id, ValueError("two"), request=calls[1])

    done, failed, silent = run(take, 1, 2, 3)

    assert values([done, silent]) == ["one", None]
    assert reason(failed) == "two"


def test_who_was_told_its_end_has_it_though_the_run_fails(app: Liteq, run: Run) -> None:
    def take(calls: list[Context]) -> None:
        app.backend.mark_as_done(calls[0].id, "one", request=calls[0])
        raise ValueError("the rest")

    done, failed = run(take, 1, 2)

    assert values([done]) == ["one"]
    assert reason(failed) == "the rest"


def test_a_call_that_runs_alone_ends_as_the_backend_was_told(app: Liteq) -> None:
    @app.task(flush_every=5)
    def take(calls: list[Context]) -> None:
        app.backend.mark_as_done(calls[0].id, calls[0].args[0] * 2, request=calls[0])

    assert take.apply((4,)).get() == 8


def test_the_backend_ends_a_call_that_is_in_no_run(app: Liteq) -> None:
    plain = app.task(name="plain")(lambda: None)
    done, failed = plain.delay(), plain.delay()

    app.backend.mark_as_done(done.id, 5)
    app.backend.mark_as_failure(failed.id, ValueError("no"))
    app.backend.mark_as_done(failed.id, 6, store_result=False)

    assert (done.get(timeout=1), failed.state) == (5, "FAILURE")


# What the function sees


def test_the_function_is_given_the_requests_of_the_calls(run: Run) -> None:
    seen: list[Any] = []
    run(lambda calls: seen.extend(calls), "a", "b")

    assert [(one.id, one.args, one.task, one.hostname) for one in seen] == [
        ("m0", ("a",), NAME, "here"),
        ("m1", ("b",), NAME, "here"),
    ]
    assert all(isinstance(one, SimpleRequest) for one in seen)


def test_the_run_is_no_attempt_of_one_of_them(run: Run) -> None:
    seen: list[Any] = []

    def look(self: Any, calls: list[Context]) -> None:
        seen.append((self.request.id, self.request.called_directly, current() is self.request))

    run(look, 1, 2, bind=True)

    assert seen == [(None, True, True)]


def test_calls_that_cannot_run_are_not_among_them(run: Run, clock: world.FakeClock) -> None:
    broken = Delivery(Message(id="broken", task=NAME, body=b"{"))
    expired = Delivery(
        Message(id="late", task=NAME, body=dumps_call((0,), {})), expires_at=clock.now() - 1
    )
    seen: list[Any] = []

    dead, good, late = run(lambda calls: seen.extend(calls), broken, 1, expired)

    assert [one.id for one in seen] == ["m1"]
    assert isinstance(dead, Failed)
    assert dead.dead is not None
    assert isinstance(good, Succeeded)
    assert late == Revoked("expired")


def test_with_no_call_left_the_function_is_not_called(run: Run) -> None:
    called: list[Any] = []
    broken = Delivery(Message(id="broken", task=NAME, body=b"{"))

    assert [type(one) for one in run(called.append, broken, broken)] == [Failed, Failed]
    assert called == []


def test_the_soft_time_limit_is_that_of_the_run(run: Run) -> None:
    def late(calls: list[Context]) -> None:
        raise SoftTimeLimitExceeded

    outcomes = run(late, 1, 2)

    assert [type(one) for one in outcomes] == [Failed, Failed]


# Hooks and signals


def test_hooks_are_called_for_each_call_with_its_own_request(run: Run) -> None:
    told: list[Any] = []

    class Telling(Batches):
        abstract = True

        def before_start(self, task_id: Any, args: Any, kwargs: Any) -> None:
            told.append(("before", task_id, self.request.id))

        def on_success(self, retval: Any, task_id: Any, args: Any, kwargs: Any) -> None:
            told.append(("success", task_id, retval, self.request.id))

        def on_failure(
            self, exc: Any, task_id: Any, args: Any, kwargs: Any, einfo: Any
        ) -> None:
            told.append(("failure", task_id, str(exc), self.request.id))

    run(lambda calls: ["one", ValueError("two")], 1, 2, base=Telling)

    assert told == [
        ("before", "m0", "m0"),
        ("before", "m1", "m1"),
        ("success", "m0", "one", "m0"),
        ("failure", "m1", "two", "m1"),
    ]


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_a_call_whose_before_start_raises_is_left_out_and_fails(
    run: Run, kind: type[BaseException]
) -> None:
    class Choosy(Batches):
        abstract = True

        def before_start(self, task_id: Any, args: Any, kwargs: Any) -> None:
            if args == (2,):
                raise kind("not two")

    seen: list[Any] = []

    def take(calls: list[Context]) -> list[int]:
        seen.extend(call.args[0] for call in calls)
        return [call.args[0] * 10 for call in calls]

    first, second, third = run(take, 1, 2, 3, base=Choosy)

    assert seen == [1, 3]
    assert values([first, third]) == [10, 30]
    assert reason(second).endswith("not two")


def test_a_soft_time_limit_in_before_start_ends_the_run(run: Run) -> None:
    class Slow(Batches):
        abstract = True

        def before_start(self, task_id: Any, args: Any, kwargs: Any) -> None:
            if args == (2,):
                raise SoftTimeLimitExceeded

    called: list[Any] = []

    outcomes = run(called.append, 1, 2, 3, base=Slow)

    assert [type(one) for one in outcomes] == [Failed] * 3
    assert called == []


def test_each_call_has_its_signals(run: Run) -> None:
    heard: list[Any] = []

    def hear(signal: Any = None, task_id: Any = None, **named: Any) -> None:
        heard.append((signal.name, task_id, named.get("state")))

    for signal in (signals.task_prerun, signals.task_postrun):
        signal.connect(hear, weak=False)
    try:
        run(lambda calls: None, 1, 2)
    finally:
        for signal in (signals.task_prerun, signals.task_postrun):
            signal.disconnect(hear)

    assert heard == [
        ("task_prerun", "m0", None),
        ("task_prerun", "m1", None),
        ("task_postrun", "m0", "SUCCESS"),
        ("task_postrun", "m1", "SUCCESS"),
    ]


def test_a_call_begins_with_its_own_request(app: Liteq, run: Run) -> None:
    seen: list[Any] = []

    @signals.task_prerun.connect
    def begin(sender: Any, task_id: str, **_: Any) -> None:
        seen.append((task_id, sender.request.id, sender.request.args, current()))

    run(lambda calls: None, 7, 8)

    assert [one[:3] for one in seen] == [("m0", "m0", (7,)), ("m1", "m1", (8,))]
    assert [one[3].id for one in seen] == ["m0", "m1"]
    assert current() is None


SECRETS = ("hunter-one", "hunter-two", "x" * 6)


@pytest.mark.parametrize("listed", [False, True], ids=["raised", "listed"])
def test_what_is_secret_in_one_call_is_hidden_in_the_errors_of_all(
    run: Run, caplog: pytest.LogCaptureFixture, *, listed: bool
) -> None:
    def insert(calls: list[Context]) -> Any:
        error = ValueError(f"could not insert {[call.kwargs for call in calls]}")
        error.rows = [call.kwargs["password"] for call in calls]  # type: ignore[attr-defined]
        if listed:
            return [error, ValueError(str(error)), None]
        raise error

    outcomes = run(insert, *(with_kwargs(password=one) for one in SECRETS))

    failed = [one for one in outcomes if isinstance(one, Failed)]
    assert len(failed) == (2 if listed else 3)
    told = "".join([*(one.error.decode() for one in failed), caplog.text])
    assert "could not insert" in told
    for secret in SECRETS:
        assert secret not in told


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_run_waits_for_a_look_for_garbage(run: Run, *, fails: bool) -> None:
    held: list[Any] = []

    def work(calls: list[Context]) -> None:
        held.extend(map(weakref.ref, calls))
        if fails:
            raise ValueError("no")

    gc.collect()
    gc.disable()
    try:
        run(work, 1, 2, throws=(ValueError,))  # else the log of the tests has the traceback
        assert [one() for one in held] == [None, None]
    finally:
        gc.enable()


def test_an_error_of_many_calls_is_described_and_logged_once(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    def insert(calls: list[Context]) -> None:
        raise ValueError("could not insert " + "row " * 10_000)

    outcomes = run(insert, *range(1_000))

    assert caplog.text.count("Traceback") == 1
    assert len(caplog.records) == 1_000
    assert len(caplog.text) < 1_000_000
    records = [one.error for one in outcomes if isinstance(one, Failed)]
    assert len(records) == 1_000
    assert sum(map(len, records)) < 20_000_000
    assert "could not insert row row" in reason(outcomes[-1])


def test_each_call_says_that_it_has_started(run: Run) -> None:
    said: list[Any] = []
    run(
        lambda calls: None,
        1,
        2,
        track_started=True,
        report=lambda place, note: said.append((place, note.state)),
    )

    assert said == [(0, "STARTED"), (1, "STARTED")]


# The options


def test_celery_batches_class_has_its_defaults(app: Liteq) -> None:
    task = app.task(base=Batches)(lambda calls: None)

    assert flush_of(task) == Flush(10, 30.0)


def test_a_span_of_time_is_an_interval(app: Liteq) -> None:
    def made(**options: Any) -> Any:
        return app.task(name=f"{len(app.tasks)}", **options)(lambda calls: None)

    assert flush_of(made(flush_every=5, flush_interval=timedelta(minutes=1))) == Flush(5, 60.0)
    assert flush_of(made(flush_every=5)) == Flush(5, 1.0)
    assert flush_of(made()) is None


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"flush_every": 0}, ValueError, "flush_every 0 is not between 1 and 10,000"),
        ({"flush_every": 10_001}, ValueError, "flush_every 10001 is not between 1 and 10,000"),
        (
            {"flush_every": 2.5},
            TypeError,
            "flush_every must be a whole number of calls, not 2.5",
        ),
        (
            {"flush_every": True},
            TypeError,
            "flush_every must be a whole number of calls, not True",
        ),
        (
            {"flush_interval": 0},
            ValueError,
            "flush_interval must be a positive number of seconds",
        ),
        (
            {"flush_interval": "x"},
            TypeError,
            "flush_interval must be a number of seconds, not 'x'",
        ),
        (
            {"flush_every": 5, "max_concurrency": 2},
            ValueError,
            "max_concurrency and flush_every do not go together: the calls of one run would",
        ),
        ({"flush_every": 5, "pydantic": True}, ValueError, "is given calls, not their"),
        ({"flush_every": 5, "acks_late": False}, ValueError, "would be lost with its worker"),
    ],
)
def test_options_that_cannot_be_are_refused(
    app: Liteq, options: Any, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        app.task(**options)


def test_a_class_whose_option_cannot_be_fails_its_calls_and_says_why(app: Liteq) -> None:
    class Wrong(Batches):
        abstract = True
        flush_every = -1

    task = app.task(base=Wrong)(lambda calls: None)

    with pytest.raises(ValueError, match="flush_every -1 is not between 1 and"):
        task.apply((1,))


# Without a worker


def test_arguments_are_those_of_a_call_not_of_the_function(app: Liteq) -> None:
    @app.task(flush_every=10)
    def take(calls: list[Context]) -> list[Any]:
        return [[call.args, call.kwargs] for call in calls]

    assert take.apply((1, 2), {"three": 3}).get() == [(1, 2), {"three": 3}]
    with inline(app) as testing:
        result = take.delay(1, 2, three=3)
        testing.drain()
        assert result.get() == [(1, 2), {"three": 3}]


@pytest.mark.parametrize(
    "call",
    [
        lambda task: task.map([1]),
        lambda task: task.starmap([(1,)]),
        lambda task: task.chunks([(1,)], 1),
    ],
)
def test_what_would_call_the_function_with_arguments_is_refused(app: Liteq, call: Any) -> None:
    task = app.task(flush_every=10, name="take")(lambda calls: None)

    with pytest.raises(ValueError, match="task 'take' has flush_every and is not for map"):
        call(task)


@pytest.mark.parametrize("options", [{"unique": True}, {"unique_key": "order"}])
def test_calls_can_be_unique_by_their_own_arguments(app: Liteq, options: Any) -> None:
    task = app.task(name=NAME, flush_every=10, **options)(lambda calls: None)

    first = task.delay(7, order=1)

    assert task.delay(7, order=1).id == first.id
    assert task.delay(7, order=2).id != first.id
    assert task.apply_async((8,), {"order": 1}).id == first.id or options == {"unique": True}


def test_a_limit_can_be_kept_by_a_keyword(app: Liteq) -> None:
    task = app.task(name=NAME, flush_every=10, rate_limit="5/s", rate_limit_key="user")(
        lambda calls: None
    )

    ids = [task.delay(user="ada").id, task.delay(1).id]

    records = app.broker.get(ids)
    assert ["ada" in str(records[id].message.limits) for id in ids] == [True, False]


def test_what_is_sensitive_is_hidden_in_keywords(app: Liteq) -> None:
    task = app.task(name=NAME, flush_every=10, sensitive="token")(lambda calls: None)

    assert "abcdefgh" not in str(task.redacted((1,), {"token": "abcdefgh"}))
    assert "1" in str(task.redacted((1,), {"token": "abcdefgh"}))


def test_a_call_that_is_run_alone_ends_as_its_exception_says(app: Liteq) -> None:
    @app.task(flush_every=10)
    async def take(calls: list[Context]) -> list[Any]:
        return [ValueError("no") for _ in calls]

    with pytest.raises(ValueError, match="no"):
        take.apply((1,), throw=True)


def test_the_function_can_be_called_with_requests(app: Liteq) -> None:
    @app.task(flush_every=10)
    def take(calls: list[Context]) -> list[Any]:
        return [call.args[0] for call in calls]

    assert take([Context(args=[1]), Context(args=[2])]) == [1, 2]
