"""Many calls at once: the same checks and the same messages as one by one, in few steps."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from api import app_in_memory, record

from liteq import Liteq, Task, bulk, chain, group, signals
from liteq.exceptions import EncodeError, MessageTooLarge
from liteq.ids import new_ids
from liteq.result import AsyncResult, EagerResult
from liteq.testing import inline


@pytest.fixture
def app() -> Iterator[Liteq]:
    with app_in_memory() as app:
        yield app


@pytest.fixture
def add(app: Liteq) -> Task[[int, int], int]:
    @app.task(name="add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    return add


def steps(app: Liteq, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many messages each `enqueue()` of the store is given."""
    seen: list[int] = []
    enqueue = app.broker.enqueue

    def noting(messages: Any, *rest: Any) -> Any:
        seen.append(len(messages))
        return enqueue(messages, *rest)

    monkeypatch.setattr(app.broker, "enqueue", noting)
    return seen


def test_ids_made_together_sort_in_their_order_and_are_version_7() -> None:
    made = new_ids(5_000)

    assert made == sorted(made)
    assert len(set(made)) == 5_000
    assert {uuid.UUID(id).version for id in made} == {7}
    assert {uuid.UUID(id).variant for id in made} == {uuid.RFC_4122}


def test_many_calls_are_the_messages_that_delay_makes(
    app: Liteq, add: Task[[int, int], int]
) -> None:
    one = add.delay(1, 2)

    many = add.enqueue_many([(1, 2), [1, 2], (1, 2)])

    wanted = record(app, one.id).packed[1:]
    assert [record(app, id).packed[1:] for id in many.ids] == [wanted] * 3


def test_a_mapping_gives_keyword_arguments(app: Liteq, add: Task[[int, int], int]) -> None:
    with inline(app) as lq:
        many = add.enqueue_many([{"x": 1}, {"x": 2, "y": 3}])
        lq.drain()

        assert many.get(timeout=5) == [1, 5]


def test_a_thousand_calls_are_one_step(
    app: Liteq, add: Task[[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = steps(app, monkeypatch)

    many = add.enqueue_many((n, n) for n in range(2 * bulk.BATCH + 1))

    assert seen == [bulk.BATCH, bulk.BATCH, 1]
    assert app.broker.counts() == {"default": {"queued": 2 * bulk.BATCH + 1}}
    queued = app.broker.browse("queued", limit=5_000)
    assert [one.id for one in queued] == many.ids == sorted(many.ids)


def test_results_are_made_when_they_are_asked_for(
    app: Liteq, add: Task[[int, int], int]
) -> None:
    many = add.enqueue_many([(1, 1), (2, 2), (3, 3)])

    assert len(many) == 3
    assert isinstance(many[1], AsyncResult)
    assert many[1].id == many.ids[1]
    assert many[-1] == many[2]
    assert [one.id for one in many[1:]] == many.ids[1:]
    assert [one.id for one in many] == many.ids
    assert many[0].name == "add"
    assert repr(many) == "<BulkResult: 3 calls>"


def test_no_calls_are_no_step(
    app: Liteq, add: Task[[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = steps(app, monkeypatch)

    assert add.enqueue_many([]).ids == []
    assert seen == []


def test_options_are_those_of_all_calls(app: Liteq, add: Task[[int, int], int]) -> None:
    options: dict[str, Any] = {"queue": "mail", "priority": 7, "headers": {"a": 1}}

    many = add.enqueue_many([(1,), (2,)], **options, countdown=timedelta(minutes=5))

    messages = [record(app, id).message for id in many.ids]
    assert {m.queue for m in messages} == {"mail"}
    assert {m.priority for m in messages} == {7}
    assert [m.headers for m in messages] == [{"a": 1}] * 2
    [run_at] = {m.run_at for m in messages}
    assert run_at is not None


@pytest.mark.parametrize("option", ["task_id", "link", "link_error"])
def test_what_belongs_to_one_call_is_refused(add: Task[[int, int], int], option: str) -> None:
    options: Any = {option: "an-id"}

    with pytest.raises(TypeError, match=f"{option} belongs to one call"):
        add.enqueue_many([(1,)], **options)


def test_a_route_that_looks_at_arguments_is_asked_for_each_call(app: Liteq) -> None:
    def by_size(name: str, args: Any, kwargs: Any, options: Any, task: Any = None) -> Any:
        return {"queue": "large"} if args[0] > 10 else None

    app.conf.task_routes = [by_size]

    @app.task
    def resize(width: int) -> None: ...

    many = resize.enqueue_many([(1,), (100,)])

    assert [record(app, id).message.queue for id in many.ids] == ["default", "large"]


@pytest.mark.parametrize(
    ("bad", "error"),
    [((1, 2, 3), TypeError), ((object(),), EncodeError), (("x" * 300_000,), MessageTooLarge)],
    ids=["arguments", "value", "size"],
)
def test_a_call_that_cannot_be_sent_says_how_many_before_it_are(
    app: Liteq, add: Task[[int, int], int], bad: Any, error: type[Exception]
) -> None:
    app.conf.task_max_body_size = 200_000

    with pytest.raises(error) as caught:
        add.enqueue_many([*[(1, 2)] * (bulk.BATCH + 5), bad])

    assert caught.value.__notes__ == ["enqueue_many: the first 1000 calls are in the store"]
    assert app.broker.counts() == {"default": {"queued": bulk.BATCH}}


@pytest.mark.parametrize("call", [1, "ab", None])
def test_a_call_is_a_tuple_or_a_mapping(add: Task[[int, int], int], call: Any) -> None:
    with pytest.raises(TypeError, match=r"for one argument, write \("):
        add.enqueue_many([call])


def test_each_call_is_announced_to_receivers(app: Liteq, add: Task[[int, int], int]) -> None:
    seen: list[Any] = []

    def note(sender: Any = None, headers: Any = None, **_: Any) -> None:
        seen.append(headers["id"])

    signals.before_task_publish.connect(note)
    try:
        many = add.enqueue_many([(1,), (2,)])
    finally:
        signals.before_task_publish.disconnect(note)

    assert seen == many.ids


def test_eager_calls_run_in_place(app: Liteq, add: Task[[int, int], int]) -> None:
    app.conf.task_always_eager = True

    many = add.enqueue_many([(1, 1), {"x": 5}])

    assert [type(one) for one in many] == [EagerResult, EagerResult]
    assert [one.get() for one in many] == [2, 5]
    assert [one.get() for one in app.enqueue_many([add.s(1, 3)])] == [4]


def test_calls_made_by_a_task_know_their_parent(app: Liteq, add: Task[[int, int], int]) -> None:
    made: list[str] = []

    @app.task
    def spread() -> str:
        made.extend(add.enqueue_many([(1,), (2,), (3,)], add_to_parent=True).ids)
        return "done"

    with inline(app) as lq:
        parent = spread.delay()
        lq.drain()
        messages = [record(app, id).message for id in made]

    assert {m.parent_id for m in messages} == {parent.id}
    assert {m.root_id for m in messages} == {parent.id}


def test_signatures_of_any_kind_keep_their_order(
    app: Liteq, add: Task[[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with inline(app) as lq:
        seen = steps(app, monkeypatch)
        many = app.enqueue_many(
            [
                add.s(1, 1),
                add.s(2, 2).set(priority=9),
                chain(add.s(3, 3), add.s(4)),
                group(add.s(5, 5), add.s(6, 6)),
                add.s(7, 7).on_error(add.s(0)),
                add.s(8, 8),
                app.signature("unknown.here", (1,)),
            ]
        )
        lq.drain()
        values = [one.get(timeout=5) for one in many[:6]]

    assert values == [2, 4, 10, [10, 12], 14, 16]
    assert seen[0] == 2  # plain ones together, and each of the others by itself
    assert many[6].state == "PENDING"


def test_what_is_no_signature_is_refused(app: Liteq, add: Task[[int, int], int]) -> None:
    anything: Any = [add]

    with pytest.raises(TypeError, match="takes signatures"):
        app.enqueue_many(anything)


async def many_async(app: Liteq, add: Task[[int, int], int]) -> list[Any]:
    first = await add.aenqueue_many([(1, 1)])
    second = await app.aenqueue_many([add.s(2, 2)])
    return [*first, *second]


def test_many_calls_are_sent_off_the_event_loop(app: Liteq, add: Task[[int, int], int]) -> None:
    import asyncio

    results = asyncio.run(many_async(app, add))

    assert [record(app, one.id).message.task for one in results] == ["add", "add"]
