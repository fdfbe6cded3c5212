"""The request of a running task."""

from __future__ import annotations

import asyncio
import copy
import threading

import pytest

from liteq import context
from liteq.context import Context
from liteq.message import Message

MESSAGE = Message(
    id="m1",
    task="shop.charge",
    body=b"[[],{}]",
    queue="high",
    priority=7,
    run_at=0.0,
    expires_at=60.5,
    retries=2,
    time_limit=10.0,
    soft_time_limit=5.0,
    parent_id="p1",
    group_id="g1",
    group_index=3,
    headers={"tenant": "x"},
    properties={"app_id": "a"},
    shadow="nickname",
    stamps={"colour": ["red"]},
    stamped_headers=("colour",),
)


def request(message: Message = MESSAGE, number: int = 1, *, eager: bool = False) -> Context:
    return Context.of(
        message.pack(), number, (1,), {"k": 2}, message=message, hostname="h", is_eager=eager
    )


def test_a_context_has_what_its_message_says() -> None:
    told = request()
    assert (told.id, told.task, told.args, told.kwargs) == ("m1", "shop.charge", (1,), {"k": 2})
    assert (told.retries, told.hostname, told.called_directly) == (2, "h", False)
    assert (told.root_id, told.parent_id, told.correlation_id) == ("m1", "p1", "m1")
    assert (told.group, told.taskset, told.group_index) == ("g1", "g1", 3)
    assert told.timelimit == [10.0, 5.0]
    assert (told.time_limit, told.soft_time_limit) == (10.0, 5.0)
    assert told.eta == "1970-01-01T00:00:00+00:00"
    assert told.expires == "1970-01-01T00:01:00.500000+00:00"
    assert told.headers == {"tenant": "x"}
    assert told.properties == {"app_id": "a"}
    assert told.shadow == "nickname"


def test_a_request_shows_itself_without_arguments_and_without_what_is_the_workers() -> None:
    told = Context.of(MESSAGE.pack(), 2, ("secret",), {}, hostname="h", report=lambda _: None)

    assert repr(told) == (
        "<Context: {'id': 'm1', 'task': 'shop.charge', 'retries': 2, 'deliveries': 2, "
        "'hostname': 'h', 'called_directly': False, 'delivery_info': {'exchange': '', "
        "'routing_key': 'high', 'priority': 7, 'redelivered': True}}>"
    )


def test_a_call_without_stamps_has_an_empty_dictionary_of_them() -> None:
    assert request().stamps == {"colour": ["red"]}
    assert request(MESSAGE._replace(stamps=None)).stamps == {}


def test_a_direct_call_has_the_defaults() -> None:
    told = Context()
    assert told.called_directly
    assert told.id is None
    assert told.retries == 0
    assert told.root_id is None
    assert told.headers is None
    assert told.delivery_info == {}
    assert told.children == []
    assert (told.utc, told.lang, told.is_eager, told.ignore_result) == (
        True,
        "py",
        False,
        False,
    )


def test_a_second_start_shows_as_redelivered() -> None:
    assert not request(number=1).delivery_info["redelivered"]
    assert request(number=2).delivery_info == {
        "exchange": "",
        "routing_key": "high",
        "priority": 7,
        "redelivered": True,
    }
    assert request(eager=True).delivery_info["is_eager"]


def test_starts_that_were_put_back_count_too() -> None:
    told = request(MESSAGE._replace(requeued=2))
    assert told.deliveries == 3
    assert told.delivery_info["redelivered"]


def test_what_is_set_goes_before_what_the_message_says() -> None:
    told = request()
    told.update(headers={"mine": 1}, delivery_info={"queue": "q"})
    assert told.headers == {"mine": 1}
    assert told.delivery_info == {"queue": "q"}
    assert told.get("retries") == 2
    assert told.get("nothing", "default") == "default"
    told.clear()
    assert told.id is None
    assert told.called_directly


def test_changing_the_headers_leaves_the_message_alone() -> None:
    told = request()
    told.headers["tenant"] = "y"
    assert told.headers == {"tenant": "x"}


def test_the_headers_are_attributes_where_no_other_has_the_name() -> None:
    told = request(MESSAGE._replace(headers={"tenant": "x", "X-Trace": "t", "retries": 9}))
    assert getattr(told, "tenant") == told.get("tenant") == "x"  # noqa: B009 (it is not typed)
    assert told.get("X-Trace") == "t"
    assert told.retries == 2
    assert told.get("nothing") is None
    with pytest.raises(AttributeError, match=r"'Context' object has no attribute 'nothing'"):
        getattr(told, "nothing")  # noqa: B009
    assert not hasattr(Context(), "tenant")
    assert copy.copy(told).get("tenant") == "x"


def test_children_grow_in_place_and_belong_to_one_context() -> None:
    one, other = request(), request()
    one.children.append("c1")
    assert one.children == ["c1"]
    assert one.trail == ["c1"]
    assert other.trail is None


def test_the_options_call_the_task_again_as_it_was_called() -> None:
    options = request().as_execution_options()
    assert options["task_id"] == "m1"
    assert options["retries"] == 2
    assert options["soft_time_limit"] == 5.0
    assert options["colour"] == ["red"]
    assert options["stamped_headers"] == ["colour"]


def test_a_context_in_a_log_does_not_show_the_arguments() -> None:
    assert "secret" not in repr(Context(id="m1", args=("secret",), kwargs={"k": "secret"}))


def test_contexts_are_a_stack() -> None:
    outer, inner = Context(id="outer"), Context(id="inner")
    first = context.push(outer)
    second = context.push(inner)
    assert context.current() is inner
    assert context.stack() == (outer, inner)
    context.pop(second)
    assert context.current() is outer
    context.pop(first)
    assert context.current() is None


def test_another_thread_has_a_stack_of_its_own() -> None:
    seen: list[Context | None] = []
    token = context.push(Context(id="here"))
    thread = threading.Thread(target=lambda: seen.append(context.current()))
    thread.start()
    thread.join()
    context.pop(token)
    assert seen == [None]


def test_coroutines_that_take_turns_see_each_its_own_context() -> None:
    async def work(id: str) -> str | None:
        token = context.push(Context(id=id))
        try:
            await asyncio.sleep(0)
            here = context.current()
            assert here is not None
            return here.id
        finally:
            context.pop(token)

    async def both() -> list[str | None]:
        return await asyncio.gather(work("a"), work("b"))

    assert asyncio.run(both()) == ["a", "b"]


def test_what_is_noted_on_a_request_is_no_header_and_nothing_where_no_task_runs() -> None:
    request = Context(id="1", headers={"_span": "forged"})

    assert context.noted(request, "_span") is None
    request._span = 1  # type: ignore[attr-defined]
    assert context.noted(request, "_span") == 1
    assert context.noted(context.current(), "_span") is None
