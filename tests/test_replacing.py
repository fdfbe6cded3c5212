"""self.replace() and self.add_to_chord(): a task changes the workflow it is in.

Each is run in place (`apply`), in eager mode, and by a worker on every store.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import world
from api import forget_current, record

from liteq import BoundTask, Liteq, Signature, signals
from liteq.canvas import chain, chord, group
from liteq.exceptions import Ignore, ImproperlyConfigured
from liteq.operating import describe
from liteq.result import GroupResult

MODES = ("apply", "eager", "memory", "sqlite")


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def app(mode: str, tmp_path: Any, clock: world.FakeClock) -> Iterator[Liteq]:
    app = Liteq("shop", broker="memory://", clock=clock)
    if mode == "sqlite":
        app.broker = world.Store("sqlite", tmp_path, clock).open()
    app.conf.task_always_eager = mode == "eager"
    yield app
    app.close()
    forget_current()


@pytest.fixture
def run(app: Liteq, mode: str) -> Callable[..., Any]:
    """Run a signature to its end, and return its result."""

    def run_it(sig: Signature[Any]) -> Any:
        if mode == "apply":
            return sig.apply()
        result = sig.delay()
        app.run_until_empty()
        return result

    return run_it


Run = Callable[..., Any]


class Tasks:
    """Tasks that replace themselves, and what they are replaced with."""

    def __init__(self, app: Liteq) -> None:
        self.seen: list[Any] = []

        @app.task(name="add")
        def add(x: int, y: int) -> int:
            return x + y

        @app.task(name="total")
        def total(values: list[int]) -> int:
            return sum(values)

        @app.task(name="fail")
        def fail(*_: Any) -> None:
            raise ValueError("no")

        @app.task(name="note")
        def note(value: Any) -> Any:
            self.seen.append(value)
            return value

        @app.task(name="become", bind=True)
        def become(task: BoundTask, sig: dict[str, Any], *more: Any) -> None:
            raise task.replace(Signature.from_dict(sig, app=app).clone(more))

        @app.task(name="extend", bind=True)
        def extend(task: BoundTask, n: int, sig: dict[str, Any]) -> int:
            task.add_to_chord(Signature.from_dict(sig, app=app))
            return n

        self.add, self.total, self.fail, self.note = add, total, fail, note
        self.become, self.extend = become, extend


@pytest.fixture
def tasks(app: Liteq) -> Tasks:
    return Tasks(app)


# replace()


def test_another_call_runs_in_its_place_under_its_id(
    app: Liteq, tasks: Tasks, run: Run, mode: str
) -> None:
    result = run(tasks.become.s(tasks.add.s(1, 2)).set(task_id="mine"))

    assert (result.get(), result.id) == (3, "mine")
    if mode in ("memory", "sqlite"):
        assert app.AsyncResult("mine").name == "add"
        assert record(app, "mine").message.replaced_task_nesting == 1
        assert [past.outcome for past in app.broker.attempts("mine")] == ["replaced"]


def test_any_signature_may_take_its_place(tasks: Tasks, run: Run) -> None:
    add, total, become = tasks.add, tasks.total, tasks.become
    pair = group(add.s(1, 1), add.s(2, 2))

    assert run(become.s(chain(add.s(1, 2), add.s(3), add.s(4)))).get() == 10
    assert run(become.s(pair)).get() == [2, 4]
    assert run(become.s(chord(pair, total.s()))).get() == 6
    assert run(become.s(chain(add.s(1, 2), group(add.s(1), add.s(2))))).get() == [4, 5]
    assert run(become.s(become.s(add.s(1, 2)))).get() == 3
    assert run(become.s(chain(become.s(add.s(1, 2)), add.s(3)))).get() == 6


def test_a_call_that_a_group_took_the_place_of_has_no_arguments_any_more(
    app: Liteq, tasks: Tasks, run: Run, mode: str
) -> None:
    result = run(tasks.become.s(group(tasks.add.s(1, 1), tasks.add.s(2, 2))))

    assert result.get() == [2, 4]
    if mode in ("memory", "sqlite"):
        assert (result.args, result.kwargs) == (None, None)
        assert describe(app, result.id)["args"] == "<the results of its parts>"


def test_whatever_a_task_calls_inherits_its_priority_where_no_route_has_one(
    app: Liteq, run: Run
) -> None:
    app.conf.task_inherit_parent_priority = True
    app.conf.task_routes = {"routed": {"priority": 2}}
    seen: list[tuple[str, int]] = []

    @app.task(name="plain", bind=True)
    def plain(self: BoundTask, how: str) -> None:
        seen.append((how, self.request.delivery_info["priority"]))

    @app.task(name="routed", bind=True, default_retry_delay=0)
    def routed(self: BoundTask, how: str, again: int | None = None) -> None:
        seen.append((how, self.request.delivery_info["priority"]))
        if not self.request.retries and how == "retry":
            raise self.retry(**({} if again is None else {"priority": again}))

    @app.task(bind=True)
    def outer(self: BoundTask) -> None:
        plain.delay("call")
        routed.delay("call")
        group(plain.si("group"), routed.si("group")).delay()
        routed.delay("retry")
        routed.delay("retry", again=4)
        raise self.replace(plain.si("replace") | routed.si("replace") | plain.si("after"))

    run(outer.s().set(priority=8))
    app.run_until_empty()  # what a call that runs in place has sent

    assert sorted(seen) == [
        ("after", 2),
        ("call", 2),
        ("call", 8),
        ("group", 2),
        ("group", 8),
        ("replace", 2),
        ("replace", 8),
        ("retry", 2),
        ("retry", 2),
        ("retry", 2),
        ("retry", 4),
    ]


def test_an_error_callback_hears_of_a_group_that_took_a_calls_place(
    app: Liteq, tasks: Tasks, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Any] = []

    @app.task
    def failed(request: Any, exc: BaseException, traceback: str) -> None:
        told.append((request.id, request.args, type(exc).__name__))

    both = group(tasks.add.s(1, 1), tasks.fail.s())
    result = run(tasks.become.s(both).set(link_error=failed.s()))

    assert [(id, name) for id, _, name in told] == [(result.id, "ChordError")]
    assert "cannot be read" not in caplog.text


def test_what_waits_for_it_is_given_the_value_of_its_replacement(
    tasks: Tasks, run: Run
) -> None:
    add, become = tasks.add, tasks.become
    pair = group(add.s(1, 1), add.s(2, 2))

    assert run(chain(become.s(add.s(1, 2)), add.s(4))).get() == 7
    assert run(chain(become.s(pair), tasks.total.s())).get() == 6
    both = chord([become.s(add.s(1, 2)), add.s(3, 4)], tasks.total.s())
    assert run(both).get() == 10
    assert run(group(become.s(pair), add.s(1, 2))).get() == [[2, 4], 3]
    assert run(chord([become.s(pair), add.s(1, 2)], tasks.note.s())).get() == [[2, 4], 3]


def test_links_and_error_callbacks_stay_with_the_id(tasks: Tasks, run: Run, app: Liteq) -> None:
    errors: list[str] = []

    @app.task(name="report")
    def report(id: str) -> None:
        errors.append(id)

    run(tasks.become.s(tasks.add.s(1, 2)).set(link=tasks.note.s()))
    failed = run(tasks.become.s(tasks.fail.s()).set(link_error=report.s(), link=tasks.note.s()))

    assert tasks.seen == [3]
    assert errors == [failed.id]
    assert failed.state == "FAILURE"


def test_a_failed_replacement_fails_what_waits(tasks: Tasks, run: Run) -> None:
    result = run(chain(tasks.become.s(chain(tasks.fail.s(), tasks.note.s())), tasks.note.s()))

    with pytest.raises(ValueError, match="no"):
        result.get()
    assert tasks.seen == []


def test_a_call_in_its_place_keeps_headers_stamps_and_its_place_in_the_chord(
    app: Liteq, run: Run
) -> None:
    seen: list[Any] = []

    @app.task(name="look", bind=True)
    def look(self: BoundTask, *_: Any) -> None:
        seen.append(self.request)

    @app.task(name="become", bind=True)
    def become(self: BoundTask) -> None:
        seen.append(self.request)
        self.replace(look.s().set(headers={"b": 2}))

    member = become.si().set(headers={"a": 1, "b": 1}, stamped_headers=["s"], s="t")
    run(chord([look.s(), member], look.s()))

    first, was, now, _ = seen
    assert (was.headers, now.headers) == ({"a": 1, "b": 1}, {"a": 1, "b": 2})
    assert was.stamps == now.stamps
    assert now.stamps.keys() == {"s"}
    assert (was.replaced_task_nesting, now.replaced_task_nesting) == (0, 1)
    assert (now.id, now.group, now.group_index) == (was.id, first.group, 1)
    assert (now.chord, now.root_id) == (was.chord, first.root_id)
    assert now.chord


def test_the_hook_may_change_what_is_to_run(app: Liteq, tasks: Tasks, run: Run) -> None:
    class Careful(app.Task):  # type: ignore[misc, name-defined]
        abstract = True

        def on_replace(self, sig: Signature[Any]) -> Any:
            sig.kwargs["y"] = 10
            return super().on_replace(sig)

    @app.task(base=Careful, bind=True)
    def become(self: BoundTask) -> None:
        self.replace(tasks.add.s(x=1))

    assert run(become.s()).get() == 11


def test_code_that_catches_everything_does_not_undo_it(
    app: Liteq, tasks: Tasks, run: Run
) -> None:
    @app.task(bind=True)
    def careless(self: BoundTask, then: str) -> str:
        try:
            self.replace(tasks.add.s(1, 2))
        except Exception:
            if then == "raise":
                raise KeyError("late") from None
        return "not this"

    assert run(careless.s("return")).get() == 3
    assert run(careless.s("raise")).get() == 3


def test_the_signals_of_a_replaced_call_are_those_of_an_ignored_one(
    app: Liteq, tasks: Tasks, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[str, str]] = []

    def hear(state: str, task: Any, **_: Any) -> None:
        seen.append((task.name, state))

    signals.task_postrun.connect(hear)
    try:
        with caplog.at_level(logging.INFO, "liteq.executor"):
            run(tasks.become.s(tasks.add.s(1, 2)))
    finally:
        signals.task_postrun.disconnect(hear)

    assert seen == [("become", "IGNORED"), ("add", "SUCCESS")]
    assert "replaced in" in caplog.text
    assert "add(1, 2)" not in caplog.text  # arguments may hold secrets


def test_those_that_are_sent_in_its_place_are_announced(
    app: Liteq, tasks: Tasks, run: Run
) -> None:
    seen: list[str] = []

    def hear(sender: str, **_: Any) -> None:
        seen.append(sender)

    @app.task
    def become() -> None:
        from liteq import current_task

        signals.before_task_publish.connect(hear)
        current_task.replace(chain(tasks.add.s(1, 2), tasks.note.s()))

    try:
        run(become.s())
    finally:
        signals.before_task_publish.disconnect(hear)

    assert sorted(seen) == ["add", "note"]


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda add: chain(), ImproperlyConfigured, "empty workflow"),
        (lambda add: add.s(1, 2).set(chord="c"), ImproperlyConfigured, "belongs to a chord"),
        (lambda add: "add", TypeError, "takes a signature"),
        (lambda add: add.s(1), TypeError, "y"),
        (lambda add: add.s(1, object()), TypeError, "object"),
    ],
    ids=["empty", "chord", "no signature", "arguments", "unserialisable"],
)
def test_what_cannot_take_its_place_fails_the_task(
    app: Liteq, tasks: Tasks, run: Run, make: Any, error: type[Exception], text: str
) -> None:
    @app.task(bind=True)
    def become(self: BoundTask) -> None:
        self.replace(make(tasks.add))

    result = run(become.s())

    assert result.state == "FAILURE"
    with pytest.raises(error, match=text):
        result.get()


def test_a_call_that_was_revoked_while_it_ran_is_not_replaced(
    app: Liteq, tasks: Tasks, run: Run, mode: str
) -> None:
    @app.task(bind=True)
    def become(self: BoundTask) -> None:
        app.AsyncResult(self.request.id or "").revoke()
        self.replace(tasks.note.s(1))

    result = run(become.s())

    if mode in ("memory", "sqlite"):  # what is run in place is in no store to be revoked
        assert (result.state, tasks.seen) == ("REVOKED", [])


def test_a_direct_call_cannot_be_replaced(tasks: Tasks) -> None:
    with pytest.raises(RuntimeError, match="that a worker runs"):
        tasks.become(tasks.add.s(1, 2))


def test_a_group_of_none_in_its_place_is_an_empty_list(tasks: Tasks, run: Run) -> None:
    assert run(tasks.become.s(group([]))).get() == []


# add_to_chord()


def test_a_call_that_is_added_to_the_chord_comes_behind_the_others(
    tasks: Tasks, run: Run
) -> None:
    header = [tasks.extend.s(1, tasks.add.s(10, 0)), tasks.extend.s(2, tasks.add.s(20, 0))]

    value = run(chord(header, tasks.note.s())).get()

    assert (value[:2], sorted(value[2:])) == ([1, 2], [10, 20])


def test_a_chain_and_a_group_may_be_added(tasks: Tasks, run: Run) -> None:
    two = chain(tasks.add.s(1, 1), tasks.add.s(5))
    pair = group(tasks.add.s(1, 1), tasks.add.s(2, 2))

    assert run(chord([tasks.extend.s(1, two)], tasks.note.s())).get() == [1, 7]
    assert run(chord([tasks.extend.s(1, pair)], tasks.note.s())).get() == [1, [2, 4]]


def test_what_ends_in_a_group_is_added_with_the_list_of_its_values(
    tasks: Tasks, run: Run
) -> None:
    add, note = tasks.add, tasks.note
    pair = group(add.s(1), add.s(2))

    for added, value in (
        (chain(add.s(1, 1), pair), [3, 4]),
        (chord([add.s(1, 1)], group(note.s(), note.s())), [[2], [2]]),
        (chain(pair.clone([1]), group(note.s())), [2, 3]),
        (add.chunks([(1, 1), (2, 2), (3, 3)], 2), [[2, 4], [6]]),
        (group([]), []),
        (chain(add.s(1, 1), group([])), 2),
    ):
        assert run(chord([tasks.extend.s(1, added)], note.s())).get() == [1, value], added


def test_the_result_of_a_group_that_is_added_is_that_of_a_group(
    app: Liteq, tasks: Tasks, run: Run, mode: str
) -> None:
    made: list[Any] = []

    @app.task(bind=True)
    def grow(self: BoundTask) -> None:
        made.append(self.add_to_chord(group(tasks.add.s(1, 1), tasks.add.s(2, 2))))

    run(chord([grow.s()], tasks.note.s()))

    assert isinstance(made[0], GroupResult)
    assert mode not in ("memory", "sqlite") or made[0].get() == [2, 4]


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (chain(), ImproperlyConfigured, "an empty workflow cannot be added to a chord"),
        ("add", TypeError, r"add_to_chord\(\) takes a signature, as task.s"),
    ],
)
def test_what_cannot_be_added_fails_the_task(
    app: Liteq, tasks: Tasks, run: Run, wrong: Any, error: type[Exception], words: str
) -> None:
    @app.task(bind=True)
    def grow(self: BoundTask) -> None:
        self.add_to_chord(wrong)

    result = run(group(grow.s()) | tasks.note.s())

    with pytest.raises(error, match=words):
        result.get(disable_sync_subtasks=False)


def test_one_that_was_added_and_fails_fails_the_chord(tasks: Tasks, run: Run) -> None:
    result = run(chord([tasks.extend.s(1, tasks.fail.s())], tasks.note.s()))

    assert result.state == "FAILURE"
    assert tasks.seen == []


def test_what_a_failed_attempt_added_is_not_sent(app: Liteq, tasks: Tasks, run: Run) -> None:
    @app.task(bind=True, default_retry_delay=0)
    def shaky(self: BoundTask) -> int:
        self.add_to_chord(tasks.note.s(self.request.retries))
        if not self.request.retries:
            raise self.retry()
        return 9

    assert run(chord([shaky.s()], tasks.total.s())).get() == 10
    assert tasks.seen == [1]


@pytest.mark.parametrize("added_last", [False, True])
def test_a_task_may_add_to_its_chord_and_be_replaced(
    app: Liteq, tasks: Tasks, run: Run, added_last: bool
) -> None:
    @app.task(bind=True)
    def both(self: BoundTask, sig: dict[str, Any]) -> None:
        with contextlib.suppress(Ignore):
            if added_last:
                self.replace(Signature.from_dict(sig, app=app))
        self.add_to_chord(tasks.add.s(10, 0))
        self.add_to_chord(group(tasks.add.s(20, 0), tasks.add.s(30, 0)))
        if not added_last:
            self.replace(Signature.from_dict(sig, app=app))

    for sig, value in (
        (tasks.add.s(1, 2), 3),
        (chain(tasks.add.s(1, 2), tasks.add.s(3)), 6),
        (group(tasks.add.s(1, 2), tasks.add.s(3, 4)), [3, 7]),
    ):
        header = [both.s(sig), tasks.add.s(1, 1)]
        assert run(chord(header, tasks.note.s())).get() == [value, 2, 10, [20, 30]]


def test_outside_of_a_chord_there_is_none_to_add_to(tasks: Tasks, run: Run) -> None:
    lone = run(tasks.extend.s(1, tasks.add.s(1, 2)))
    grouped = run(group(tasks.extend.s(1, tasks.add.s(1, 2)), tasks.add.s(1, 2)))

    for result in (lone, grouped):
        with pytest.raises(ValueError, match="not in the header of a chord"):
            result.get()


def test_adding_lazily_is_refused(app: Liteq, tasks: Tasks, run: Run) -> None:
    @app.task(bind=True)
    def lazy(self: BoundTask) -> None:
        self.add_to_chord(tasks.add.s(1, 2), lazy=True)

    result = run(chord([lazy.s()], tasks.note.s()))

    assert result.state == "FAILURE"
