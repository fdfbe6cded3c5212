"""Results of several calls as one: ResultSet, GroupResult, and what a gather ends with."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import world
from api import forget_current

from liteq import AsyncResult, Liteq, failure
from liteq.brokers.base import Broker
from liteq.canvas import group
from liteq.exceptions import (
    ChordError,
    IncompleteStream,
    TaskRevokedError,
    TimeoutError,
    UnknownTaskId,
)
from liteq.ids import new_id
from liteq.message import GATHER, Edge, Message, Workflow
from liteq.outcome import Failed, Ignored, Outcome, Succeeded
from liteq.result import EagerResult, GroupResult, ResultSet, result_from_tuple


@pytest.fixture
def app(store: world.Store) -> Iterator[Liteq]:
    app = Liteq("shop", broker="memory://", clock=store.clock)
    app.broker = store.open()
    yield app
    app.close()
    forget_current()


def ok(value: Any) -> Succeeded:
    return Succeeded(json.dumps(value).encode(), 0.5)


def bad(exc: Exception) -> Failed:
    return Failed(failure.describe(exc))


class Sent:
    """A group in the store: its members, their gather, and perhaps a body behind it."""

    def __init__(
        self, app: Liteq, size: int, *, policy: bytes = b"count", body: bool = False
    ) -> None:
        self.app = app
        self.id = new_id()
        parts = [world.make("part", gather=self.id) for _ in range(size)]
        gather = Message(self.id, GATHER, policy)
        edges = [Edge(part.id, self.id, "part", at) for at, part in enumerate(parts)]
        last = [world.make("body")] if body else []
        edges += [Edge(self.id, one.id, "success") for one in last]
        whole = Workflow(last[0].id if last else self.id, "group")
        app.broker.enqueue([*parts, gather, *last], edges, whole)
        self.group = GroupResult(
            self.id, [AsyncResult(part.id, app=app) for part in parts], app=app
        )
        self.body = AsyncResult(last[0].id, app=app, parent=self.group) if last else self.group

    def settle(self, *outcomes: Outcome) -> None:
        settle(self.app.broker, *outcomes)


def settle(broker: Broker, *outcomes: Outcome) -> None:
    """Claim and settle as many messages, in order."""
    worker = world.enlist(broker)
    for outcome in outcomes:
        (lease,) = broker.claim(worker, ("default",))
        assert broker.settle(worker, lease, outcome)


@pytest.fixture
def later() -> Iterator[Callable[..., None]]:
    """Call something from another thread, once somebody waits at the store."""
    threads: list[threading.Thread] = []

    def call(fun: Callable[..., Any], *args: Any) -> None:
        timer = threading.Timer(0.05, fun, args)
        threads.append(timer)
        timer.start()

    yield call
    for thread in threads:
        thread.join()


# Members


def test_a_set_takes_each_result_once_and_gives_it_back() -> None:
    a, b = AsyncResult("a"), AsyncResult("b")
    results = ResultSet([a])
    results.add(a)
    results.update([a, b, b])

    assert (list(results), len(results), results[1]) == ([a, b], 2, b)
    assert results == ResultSet([a, b]) != ResultSet([a])
    results.remove("a")
    results.discard("a")
    with pytest.raises(KeyError):
        results.remove(a)
    results.clear()
    assert results.results == []


def test_an_empty_set_has_ended_well() -> None:
    results = ResultSet([])

    assert (results.ready(), results.successful(), results.failed()) == (True, True, False)
    assert (results.waiting(), results.completed_count(), results.get()) == (False, 0, [])


def test_a_group_is_true_by_its_id_or_its_members() -> None:
    assert GroupResult("g", [])
    assert GroupResult(None, [AsyncResult("a")])
    assert not GroupResult(None, [])
    assert GroupResult("g", [AsyncResult("a")]) == GroupResult("g", [AsyncResult("a")])
    assert GroupResult("g", []) != GroupResult("h", [])
    assert GroupResult("g", []) == "g"
    assert {GroupResult("g", [])} == {GroupResult("g", [])}
    assert str(GroupResult("g", [])) == "g"
    many = GroupResult("g", [AsyncResult(str(n)) for n in range(9)])
    assert repr(many) == "<GroupResult: g [0, 1, 2, 3, 4, … 4 more]>"


# What the store says


def test_a_group_tells_how_far_it_is(app: Liteq) -> None:
    sent = Sent(app, 3)
    group = sent.group
    assert (group.ready(), group.waiting(), group.completed_count()) == (False, True, 0)

    sent.settle(ok(1), bad(ValueError("no")))
    assert (group.ready(), group.successful(), group.failed()) == (False, False, True)
    assert group.completed_count() == 1

    sent.settle(ok(3))
    assert (group.ready(), group.waiting(), group.completed_count()) == (True, False, 2)
    assert (group.successful(), group.failed()) == (False, True)


def test_the_values_are_in_order_whatever_ended_first(app: Liteq) -> None:
    sent = Sent(app, 3)
    worker = world.enlist(app.broker)
    leases = app.broker.claim(worker, ("default",), 3)
    for value, lease in reversed(list(enumerate(leases))):
        app.broker.settle(worker, lease, ok(value))

    assert sent.group.get() == sent.group.join() == sent.group.join_native() == [0, 1, 2]
    assert asyncio.run(sent.group.aget()) == [0, 1, 2]
    assert sent.group.successful()


def test_the_first_failure_is_raised_or_put_in_place(app: Liteq) -> None:
    sent = Sent(app, 3)
    sent.settle(ok(1), bad(ValueError("no")), ok(3))

    with pytest.raises(ValueError, match="no"):
        sent.group.get()
    with pytest.raises(ValueError, match="no"):
        sent.group.maybe_throw()
    assert [str(value) for value in sent.group.get(propagate=False)] == ["1", "no", "3"]


@pytest.mark.parametrize("size", [3, 150])
def test_a_failure_is_raised_while_others_run_on(
    app: Liteq, later: Callable[..., None], size: int
) -> None:
    sent = Sent(app, size)
    later(sent.settle, ok(1), bad(ValueError("no")))
    began = time.monotonic()

    with pytest.raises(ValueError, match="no"):
        sent.group.get(timeout=20)

    assert time.monotonic() - began < 5
    assert not sent.group.ready()


@pytest.mark.parametrize("size", [3, 150])
def test_a_group_is_waited_for_and_so_is_one_with_failures(
    app: Liteq, later: Callable[..., None], size: int
) -> None:
    sent = Sent(app, size)
    later(sent.settle, bad(KeyError("k")), *(ok(n) for n in range(1, size)))

    values = sent.group.get(timeout=20, propagate=False)

    assert (repr(values[0]), values[1:]) == ("KeyError('k')", list(range(1, size)))


@pytest.mark.parametrize("size", [3, 150])
def test_the_members_share_one_time_budget(app: Liteq, size: int) -> None:
    sent = Sent(app, size)
    began = time.monotonic()

    with pytest.raises(TimeoutError, match=r"not ready after 0\.2 s"):
        sent.group.get(timeout=0.2)
    with pytest.raises(TimeoutError, match=r"not ready after 0\.2 s"):
        asyncio.run(sent.group.aget(timeout=0.2))

    assert 0.4 <= time.monotonic() - began < 3


def test_a_large_group_is_waited_for_at_one_place(app: Liteq) -> None:
    sent = Sent(app, 300)
    watched: list[str] = []
    watch = app.broker.watch

    def count(ids: Any, mailbox: Any, **options: Any) -> Any:
        watched.extend(ids)
        return watch(ids, mailbox, **options)

    app.broker.watch = count  # type: ignore[method-assign]
    with pytest.raises(TimeoutError):
        sent.group.get(timeout=0)

    assert set(watched) == {sent.id}


def test_waiting_for_a_group_that_is_not_in_the_store_ends(app: Liteq) -> None:
    with pytest.raises(UnknownTaskId):
        GroupResult("g", [AsyncResult("a", app=app)], app=app).get()


def test_the_header_of_a_chord_is_waited_for_beyond_its_first_failure(
    app: Liteq, later: Callable[..., None]
) -> None:
    sent = Sent(app, 150, policy=b"fail", body=True)
    sent.settle(bad(ValueError("no")))
    later(sent.settle, *(ok(n) for n in range(149)))

    values = sent.group.get(timeout=20, propagate=False)

    assert values[1:] == list(range(149))


# As they end


def test_values_come_as_the_calls_end(app: Liteq) -> None:
    sent = Sent(app, 3)
    worker = world.enlist(app.broker)
    a, b, c = app.broker.claim(worker, ("default",), 3)
    app.broker.settle(worker, c, ok("c"))
    values = sent.group.iterate(timeout=20)
    assert next(values) == "c"
    app.broker.settle(worker, b, ok("b"))
    assert next(values) == "b"
    app.broker.settle(worker, a, bad(ValueError("a")))

    with pytest.raises(ValueError, match="a"):
        next(values)


def test_a_callback_is_called_for_each_as_it_ends(app: Liteq) -> None:
    sent = Sent(app, 2)
    worker = world.enlist(app.broker)
    a, b = app.broker.claim(worker, ("default",), 2)
    app.broker.settle(worker, b, ok("b"))
    seen: list[Any] = []

    def callback(id: str, value: Any) -> None:
        seen.append((id, value))
        if id == b.id:  # only now the other ends
            app.broker.settle(worker, a, ok("a"))

    returned = sent.group.get(callback=callback, timeout=20)

    assert returned is None
    assert seen == [(b.id, "b"), (a.id, "a")]


def test_iter_native_gives_what_is_stored(app: Liteq) -> None:
    sent = Sent(app, 2)
    sent.settle(ok(1), bad(ValueError("no")))

    (one, first), (_, second) = sent.group.iter_native()

    assert (one, first["task_id"], first["status"], first["result"]) == (
        sent.group[0].id,
        sent.group[0].id,
        "SUCCESS",
        1,
    )
    assert (second["status"], str(second["result"])) == ("FAILURE", "no")


def test_a_group_is_iterated_asynchronously_as_its_members_end(app: Liteq) -> None:
    sent = Sent(app, 3)
    worker = world.enlist(app.broker)
    a, b, c = app.broker.claim(worker, ("default",), 3)
    app.broker.settle(worker, b, ok("b"))

    async def main() -> list[Any]:
        seen = []
        async for result in sent.group:
            seen.append(await result)
            if len(seen) < 3:
                lease = (c, a)[len(seen) - 1]
                await asyncio.to_thread(app.broker.settle, worker, lease, ok(len(seen)))
        return seen

    assert asyncio.run(main()) == ["b", 1, 2]


@pytest.mark.parametrize("size", [2, 150])
def test_a_group_whose_members_have_expired_is_ready_though_nobody_has_looked(
    app: Liteq, clock: world.FakeClock, size: int
) -> None:
    part = app.task(name="part")(lambda: None)
    sent = group(part.s() for _ in range(size)).apply_async(expires=10)
    assert not sent.ready()
    clock.advance(10)

    assert sent.ready()
    with pytest.raises(TaskRevokedError, match="expired"):
        sent.get(timeout=0)


def test_then_is_called_when_all_have_ended(app: Liteq) -> None:
    sent, failing = Sent(app, 2), Sent(app, 1)
    seen: list[Any] = []
    sent.group.then(lambda group: seen.append(group.get()))
    failing.group.then(seen.append, on_error=lambda group: seen.append("failed"))
    sent.settle(ok(1))
    assert not sent.group.ready()
    sent.settle(ok(2), bad(ValueError("no")))

    assert (sent.group.ready(), failing.group.ready()) == (True, True)
    assert seen == [[1, 2], "failed"]


# Steering


def test_revoking_a_group_revokes_its_members(app: Liteq) -> None:
    sent = Sent(app, 3)
    sent.settle(ok(1))

    answers = sent.group.revoke(wait=True, timeout=20)

    assert list(answers.values()) == ["settled", "revoked", "revoked"]
    with pytest.raises(TaskRevokedError):
        sent.group.get()
    assert AsyncResult(sent.id, app=app).state == "SUCCESS"


def test_forgetting_a_group_forgets_its_members(app: Liteq) -> None:
    sent = Sent(app, 2)
    sent.settle(ok(1), ok(2))

    sent.group.forget()

    assert not any(result.exists() for result in sent.group)
    assert GroupResult.restore(sent.id, app=app) is None


# Restoring


def test_a_group_is_restored_without_having_been_saved(app: Liteq) -> None:
    sent = Sent(app, 12)

    restored = app.GroupResult.restore(sent.id)

    assert restored == sent.group
    assert isinstance(restored, GroupResult)
    assert restored[3].name == "part"
    assert app.GroupResult.restore("nobody") is None
    assert app.GroupResult.restore(sent.group[0].id) is None


def test_a_group_made_by_hand_is_restored_once_it_was_saved(app: Liteq) -> None:
    inner = GroupResult("inner", [AsyncResult("b")])
    group = GroupResult("mine", [AsyncResult("a"), inner], AsyncResult("before"), app=app)
    assert GroupResult.restore("mine", app=app) is None

    group.save()
    restored = GroupResult.restore("mine", app=app)

    assert restored == group
    assert restored is not None
    assert restored.parent == group.parent
    group.delete()
    assert GroupResult.restore("mine", app=app) is None


def test_a_group_with_the_result_of_a_long_chain_is_saved(app: Liteq) -> None:
    last = None
    for number in range(2_000):
        last = AsyncResult(f"step{number}", parent=last)
    group = GroupResult("mine", [last, GroupResult("empty", [])], app=app)

    group.save()
    restored = GroupResult.restore("mine", app=app)

    assert restored == group
    assert restored is not None
    assert restored[0].as_list() == [f"step{number}" for number in reversed(range(2_000))]


def test_a_group_that_an_earlier_liteq_has_saved_is_restored(app: Liteq) -> None:
    group = GroupResult("mine", [AsyncResult("a")], AsyncResult("before"), app=app)
    form = json.dumps(group.as_tuple()).encode()
    app.broker.store("mine", "SUCCESS", form, task="liteq.group", expires=None)

    restored = GroupResult.restore("mine", app=app)

    assert restored == group
    assert restored is not None
    assert restored.parent == group.parent


def test_saving_a_group_that_was_sent_changes_nothing(app: Liteq) -> None:
    sent = Sent(app, 2)

    sent.group.save()
    sent.settle(ok(1), ok(2))

    assert sent.group.get() == [1, 2]
    assert GroupResult.restore(sent.id, app=app) == sent.group


def test_groups_have_a_form_that_json_carries_and_can_be_pickled(app: Liteq) -> None:
    group = GroupResult("g", [AsyncResult("a"), GroupResult("h", [])], AsyncResult("p"))
    body = AsyncResult("b", parent=group)

    again = result_from_tuple(json.loads(json.dumps(body.as_tuple())), app)

    assert (again, again.parent, again.parent.parent) == (body, group, group.parent)
    assert isinstance(again.parent[1], GroupResult)
    assert body.as_list() == ["b", "g", "p"]
    assert group.as_list() == ["g", "p"]
    pickled = pickle.loads(pickle.dumps(body))
    assert (pickled.parent, pickled.parent.parent) == (group, group.parent)
    assert pickle.loads(pickle.dumps(ResultSet([body]))) == ResultSet([body])


def test_a_chain_of_ten_thousand_results_has_its_forms(app: Liteq) -> None:
    result = AsyncResult("0", app=app)
    for n in range(1, 10_000):
        result = AsyncResult(str(n), app=app, parent=result)

    assert len(result.as_list()) == 10_000
    assert pickle.loads(pickle.dumps(result)).as_list() == result.as_list()
    assert result.as_tuple()[0][0] == "9999"
    result.forget()


# What a gather ends with


def test_the_result_of_a_gather_is_its_list(app: Liteq) -> None:
    sent = Sent(app, 3, policy=b"collect")
    sent.settle(ok(1), bad(ValueError("no")), Succeeded(None))

    result = AsyncResult(sent.id, app=app)

    assert [str(value) for value in result.get()] == ["1", "no", "None"]
    assert (result.state, isinstance(result.result[1], ValueError)) == ("SUCCESS", True)


def test_the_result_of_a_group_by_its_id_is_the_list_of_its_values(app: Liteq) -> None:
    good, mixed = Sent(app, 2), Sent(app, 2)
    good.settle(ok(1), ok(2), ok(3), bad(ValueError("no")))

    assert AsyncResult(good.id, app=app).get() == [1, 2]
    assert asyncio.run(AsyncResult(good.id, app=app).aget()) == [1, 2]
    with pytest.raises(ValueError, match="no"):
        AsyncResult(mixed.id, app=app).get()
    values = AsyncResult(mixed.id, app=app).get(propagate=False)
    assert [str(value) for value in values] == ["3", "no"]


def test_a_chord_raises_what_its_header_failed_with_and_keeps_a_chord_error(
    app: Liteq,
) -> None:
    sent = Sent(app, 2, policy=b"fail", body=True)
    sent.settle(ok(1), bad(ValueError("no")))
    body = sent.body
    assert isinstance(body, AsyncResult)

    assert (body.state, type(body.result)) == ("FAILURE", ChordError)
    with pytest.raises(ValueError, match="no"):
        body.get()
    with pytest.raises(ValueError, match="no"):
        asyncio.run(body.aget())
    with pytest.raises(ChordError, match=f"Dependency {sent.group[1].id} raised") as told:
        body.get(follow_parents=False)
    assert isinstance(told.value.__cause__, ValueError)
    with pytest.raises(ChordError):
        AsyncResult(body.id, app=app).get()


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyError("k"), OSError(2, "no"), ValueError()], ids=repr
)
def test_a_chord_s_error_says_that_of_its_header_as_its_repr_does(
    app: Liteq, error: Exception
) -> None:
    sent = Sent(app, 2, policy=b"fail", body=True)
    sent.settle(ok(1), bad(error))
    assert sent.body is not None
    assert str(sent.body.result) == f"Dependency {sent.group[1].id} raised {error!r}"


def test_a_body_that_fails_by_itself_raises_its_own_error(app: Liteq) -> None:
    sent = Sent(app, 2, policy=b"collect", body=True)
    sent.settle(ok(1), bad(ValueError("header")), bad(KeyError("body")))

    with pytest.raises(KeyError, match="body"):
        sent.body.get()
    with pytest.raises(KeyError, match="body"):
        asyncio.run(sent.body.aget())


def test_what_waited_for_an_ignored_call_is_revoked_and_says_why(app: Liteq) -> None:
    sent = Sent(app, 1, policy=b"fail", body=True)
    sent.settle(Ignored())

    assert sent.body.state == "REVOKED"
    with pytest.raises(
        TaskRevokedError, match="upstream: a call that it waited for was revoked"
    ):
        sent.body.get()


# Walking


def test_children_are_what_a_call_made_and_what_follows_it(app: Liteq) -> None:
    first, then, made = (world.make(task) for task in ("first", "then", "made"))
    made_group = Sent(app, 2)
    edges = [Edge(first.id, then.id, "success")]
    app.broker.enqueue([first, then], edges, Workflow(then.id, "chain of 2"))
    app.broker.enqueue([made])
    result = AsyncResult(first.id, app=app)
    made_group.settle(ok(0), ok(0))
    assert result.children is None
    with pytest.raises(IncompleteStream):
        list(result.iterdeps())

    trail = json.dumps([made.id, made_group.id])
    made_group.settle(Succeeded(b"1", 0.0, trail), ok(2), ok(3))

    assert result.children == [made.id, made_group.group, then.id]
    walked = [node for _, node in result.iterdeps()]
    assert walked == [first.id, made.id, made_group.group, then.id, *made_group.group]
    assert [value for _, value in result.collect()] == [1, 3, [0, 0], 2, 0, 0]
    assert result.graph[made_group.group] == list(made_group.group)


def test_what_is_linked_to_a_call_is_among_its_children(app: Liteq) -> None:
    add = app.task(name="add")(lambda x, y: x + y)
    note = app.task(name="note")(lambda value: value)

    result = add.apply_async((1, 2), link=[note.s(), note.s()], link_error=note.s())
    app.run_until_empty()

    assert [(child.name, child.get()) for child in result.children or ()] == [("note", 3)] * 2
    assert app.workflow(result.id).name == "add with links"
    assert app.workflow(result.id).progress == (4, 4, 0)


def test_walking_a_chain_reads_its_workflow_once(app: Liteq) -> None:
    chain = [world.make(f"step{n}") for n in range(20)]
    edges = [Edge(a.id, b.id, "success") for a, b in pairwise(chain)]
    app.broker.enqueue(chain, edges, Workflow(chain[-1].id))
    settle(app.broker, *(ok(n) for n in range(20)))
    reads: list[str] = []
    nodes = app.broker.nodes
    app.broker.nodes = lambda id: reads.append(id) or nodes(id)  # type: ignore[func-returns-value, method-assign]

    assert AsyncResult(chain[0].id, app=app).get_leaf() == 19
    assert len(reads) == 1


def test_eager_members_are_ready() -> None:
    group = GroupResult("g", [EagerResult("a", 1, "SUCCESS"), EagerResult("b", 2, "SUCCESS")])

    assert (group.ready(), group.get(), group.completed_count()) == (True, [1, 2], 2)
