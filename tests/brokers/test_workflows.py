"""What every broker promises of workflows: promise 10, and the steps of promise 4.

The same fixtures as in `test_contract`. Messages are named by their tasks here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from world import FakeClock, Store, enlist, make

from liteq import failure, parts
from liteq.brokers.base import FINAL_STATES, Broker, Lease
from liteq.exceptions import ChordError, InvalidTaskError, TaskRevokedError
from liteq.message import GATHER, Edge, Graph, Message, Workflow
from liteq.outcome import (
    Failed,
    Ignored,
    Outcome,
    Released,
    Replaced,
    Retried,
    Revoked,
    Succeeded,
)

ERROR = failure.describe(ValueError("no"))
POLICIES = ("fail", "collect", "skip", "count")


def gather(policy: str = "fail", **fields: Any) -> Message:
    return make(GATHER, policy.encode(), **fields)


def tasks(*names: str, **fields: Any) -> list[Message]:
    return [make(name, **fields) for name in names]


def path(*steps: Message) -> list[Edge]:
    return [Edge(a.id, b.id, "success") for a, b in itertools.pairwise(steps)]


def joined(members: list[Message], into: Message) -> list[Edge]:
    return [Edge(part.id, into.id, "part", n) for n, part in enumerate(members)]


def chord(
    number: int, policy: str = "fail", **fields: Any
) -> tuple[list[Message], Message, Message, list[Edge]]:
    """Return parts, their gather, the body behind it, and the edges."""
    members, into, body = tasks(*[f"p{n}" for n in range(number)]), gather(policy), make("body")
    return members, into, body, [*joined(members, into), *path(into, body)]


def work(
    broker: Broker, worker: int, outcomes: Mapping[str, Outcome] | None = None
) -> list[Lease]:
    """Run all there is: a task ends with the outcome of its name, or with its name as
    result. Return the leases in their order."""
    ran = []
    while leases := broker.claim(worker, ["default"], 3):
        ran += leases
        broker.step(
            worker,
            settlements=[
                (
                    lease,
                    (outcomes or {}).get(lease.task) or Succeeded(f'"{lease.task}"'.encode()),
                )
                for lease in leases
            ],
        )
    return ran


def names(leases: list[Lease]) -> list[str]:
    return [lease.task for lease in leases]


def state(broker: Broker, message: Message) -> str | None:
    record = broker.get([message.id]).get(message.id)
    return record.state if record else None


def end(broker: Broker, message: Message) -> tuple[str, str | None]:
    record = broker.get([message.id])[message.id]
    return record.state, record.revoked


def error_of(broker: Broker, message: Message) -> BaseException:
    result = broker.get([message.id])[message.id].result
    assert result is not None
    return failure.rebuild(result)


def listed(lease: Lease) -> list[tuple[str, bytes]]:
    (given,) = lease.inputs
    assert given.kind == "list"
    return list(parts.unpack(given.value))


# Parts and gathers


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_10_a_list_is_in_the_order_of_positions_whatever_ended_first(
    broker: Broker, order: tuple[int, ...]
) -> None:
    members, into, body, edges = chord(3)
    broker.enqueue([*members, into, body], edges)
    worker = enlist(broker)
    leases = broker.claim(worker, ["default"], 10)

    for number in order:
        broker.settle(worker, leases[number], Succeeded(b"%d" % number))

    (lease,) = broker.claim(worker, ["default"], 10)
    assert lease.id == body.id
    assert listed(lease) == [("result", b"0"), ("result", b"1"), ("result", b"2")]
    record = broker.get([into.id])[into.id]
    assert (record.state, record.result) == ("succeeded", lease.inputs[0].value)


def test_10_parts_that_end_in_one_step_are_all_counted(broker: Broker) -> None:
    members, into, body, edges = chord(64)
    broker.enqueue([*members, into, body], edges)
    worker = enlist(broker)
    leases = broker.claim(worker, ["default"], 64)

    step = broker.step(
        worker,
        settlements=[(lease, Succeeded(b"%d" % n)) for n, lease in enumerate(leases)],
        queues=["default"],
        limit=10,
    )

    (lease,) = step.leases
    assert listed(lease) == [("result", b"%d" % n) for n in range(64)]


def test_10_a_body_waits_for_the_last_part(broker: Broker) -> None:
    members, into, body, edges = chord(3)
    broker.enqueue([*members, into, body], edges)
    worker = enlist(broker)
    leases = broker.claim(worker, ["default"], 10)

    for lease in leases[:2]:
        broker.settle(worker, lease, Succeeded(b"1"))
    broker.settle(worker, leases[2], Retried(0.0, ERROR))

    assert (state(broker, into), state(broker, body)) == ("waiting", "waiting")


@pytest.mark.parametrize("policy", POLICIES)
def test_10_a_gather_without_parts_ends_at_once(broker: Broker, policy: str) -> None:
    into, body = gather(policy), make("body")
    broker.enqueue([into, body], path(into, body))

    (lease,) = broker.claim(enlist(broker), ["default"], 10)

    assert state(broker, into) == "succeeded"
    assert listed(lease) == []


def test_10_the_parts_results_are_listed_though_they_are_not_kept(broker: Broker) -> None:
    members, into, body, edges = chord(2)
    members = [part._replace(ignore_result=True, gather=into.id) for part in members]
    broker.enqueue([*members, into, body], edges)
    worker = enlist(broker)

    *_, last = work(broker, worker)

    assert listed(last) == [("result", b'"p0"'), ("result", b'"p1"')]
    assert broker.get([members[0].id])[members[0].id].result is None


def test_10_a_gather_may_be_part_of_another(broker: Broker) -> None:
    one, inner, outer, body = make("one"), gather(), gather(), make("body")
    two, three = tasks("two", "three")
    broker.enqueue(
        [one, two, three, inner, outer, body],
        [*joined([two, three], inner), *joined([one, inner], outer), *path(outer, body)],
    )

    *_, last = work(broker, enlist(broker))

    first, second = listed(last)
    assert first == ("result", b'"one"')
    assert second[0] == "list"
    assert list(parts.unpack(second[1])) == [("result", b'"two"'), ("result", b'"three"')]


def test_what_was_left_for_a_message_is_kept_when_it_has_failed(broker: Broker) -> None:
    first, second, last = tasks("first", "second", "last")
    edges = [Edge(second.id, last.id, "success", 1), Edge(first.id, last.id, "success", 0)]
    broker.enqueue([first, second, last], edges)
    assert broker.inputs(last.id) == broker.inputs("gone") == ()

    work(broker, enlist(broker), {"last": Failed(ERROR)})

    assert end(broker, last)[0] == "failed"
    found = [(one.source, one.kind, one.position) for one in broker.inputs(last.id)]
    assert found == [(first.id, "result", 0), (second.id, "result", 1)]


def test_10_a_failed_part_fails_its_gather_at_once_with_a_chord_error(broker: Broker) -> None:
    members, into, body, edges = chord(3)
    later = make("later")
    broker.enqueue([*members, into, body, later], [*edges, *path(body, later)])
    worker = enlist(broker)
    leases = broker.claim(worker, ["default"], 10)

    broker.settle(worker, leases[1], Failed(ERROR))

    for message in (into, body, later):
        assert end(broker, message) == ("failed", "upstream")
        error = error_of(broker, message)
        assert isinstance(error, ChordError)
        assert members[1].id in str(error)
        assert isinstance(error.__cause__, ValueError)
    assert broker.settle(worker, leases[0], Succeeded(b"1"))  # the others go on
    assert broker.settle(worker, leases[2], Failed(ERROR))
    assert members[1].id in str(error_of(broker, into)), "another part failed first"


def test_10_a_part_that_failed_upstream_fails_its_gather_with_a_chord_error(
    broker: Broker,
) -> None:
    first, last, other, into, body = *tasks("first", "last", "other"), gather(), make("body")
    broker.enqueue(
        [first, last, other, into, body],
        [*path(first, last), *joined([last, other], into), *path(into, body)],
    )

    work(broker, enlist(broker), {"first": Failed(ERROR)})

    assert end(broker, last) == end(broker, body) == ("failed", "upstream")
    error = error_of(broker, body)
    assert isinstance(error, ChordError)
    assert last.id in str(error)
    assert isinstance(error.__cause__, ValueError)


def test_10_the_error_of_a_gather_among_the_parts_is_handed_on_as_it_is(
    broker: Broker,
) -> None:
    members, inner, middle, edges = chord(2)
    other, into, body = make("other"), gather(), make("last")
    edges += [*joined([middle, other], into), *path(into, body)]
    broker.enqueue([*members, inner, middle, other, into, body], edges)

    work(broker, enlist(broker), {"p1": Failed(ERROR)})

    assert end(broker, body) == ("failed", "upstream")
    error = error_of(broker, body)
    assert members[1].id in str(error)
    assert isinstance(error.__cause__, ValueError)


def test_10_a_gather_ends_as_what_is_before_all_its_parts_and_tells_nobody(
    broker: Broker,
) -> None:
    worker = enlist(broker)
    for outcome, state in ((Failed(ERROR), "failed"), (Revoked("terminated"), "revoked")):
        first = make("first")
        members = [make(f"p{i}", parent_id=first.id) for i in range(2)]
        into, body = gather(parent_id=first.id), make("body", parent_id=members[1].id)
        after, again = make("after", parent_id=body.id), gather(parent_id=body.id)
        last, called, uncalled, never = tasks("last", "called", "uncalled", "never")
        broker.enqueue(
            [first, *members, into, body, after, again, last, called, uncalled, never],
            [
                *(Edge(first.id, member.id, "success") for member in members),
                *joined(members, into),
                *path(into, body, after),
                *joined([after], again),
                *path(again, last),
                Edge(first.id, called.id, "failure"),
                Edge(body.id, uncalled.id, "failure"),
                Edge(last.id, never.id, "failure"),
            ],
        )

        ran = work(broker, worker, {"first": outcome})

        assert names(ran) == ["first", "called"]
        for message in (*members, into, body, after, again, last):
            assert end(broker, message) == (state, "upstream")
        assert state == "revoked" or type(error_of(broker, last)) is ValueError


def test_10_a_gather_among_the_parts_is_not_what_is_before_them(broker: Broker) -> None:
    first, other = make("first"), make("other")
    part = make("part", parent_id=first.id)
    inner = gather(parent_id=first.id)
    middle, into = make("middle", parent_id=part.id), gather(parent_id=first.id)
    body, called = make("body"), make("called")
    broker.enqueue(
        [first, part, inner, middle, other, into, body, called],
        [
            *path(first, part),
            *joined([part], inner),
            *path(inner, middle),
            *joined([middle, other], into),
            *path(into, body),
            Edge(body.id, called.id, "failure"),
        ],
    )

    ran = work(broker, enlist(broker), {"part": Failed(ERROR)})

    assert names(ran)[-1] == "called"


def test_10_a_revoked_part_fails_its_gather_with_a_revocation(broker: Broker) -> None:
    members, into, body, edges = chord(2)
    broker.enqueue([*members, into, body], edges)

    broker.revoke([members[0].id])

    assert end(broker, body) == ("failed", "upstream")
    assert isinstance(error_of(broker, body).__cause__, TaskRevokedError)


def test_10_an_ignored_part_revokes_its_gather(broker: Broker) -> None:
    members, into, body, edges = chord(2)
    broker.enqueue([*members, into, body], edges)

    work(broker, enlist(broker), {"p0": Ignored()})

    assert end(broker, into) == ("revoked", "upstream")
    assert end(broker, body) == ("revoked", "upstream")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("collect", [("error", ERROR), ("result", b'"p1"'), ("result", b'"p2"')]),
        ("skip", [("result", b'"p1"'), ("result", b'"p2"')]),
        ("count", []),
    ],
)
def test_10_a_gather_may_go_on_without_parts_that_failed(
    broker: Broker, policy: str, expected: list[Any]
) -> None:
    members, into, body, edges = chord(3, policy)
    broker.enqueue([*members, into, body], edges)

    *_, last = work(broker, enlist(broker), {"p0": Failed(ERROR)})

    assert last.id == body.id
    assert listed(last) == expected


@pytest.mark.parametrize("policy", ["collect", "skip", "count"])
@pytest.mark.parametrize("how", ["ignored", "revoked", "upstream", "purged"])
def test_10_a_tolerant_gather_goes_on_however_its_parts_end(
    broker: Broker, policy: str, how: str
) -> None:
    first, part, other = make("first", queue="side"), make("part"), make("other")
    into, body = gather(policy), make("body")
    broker.enqueue(
        [first, part, other, into, body],
        [*path(first, part), *joined([part, other], into), *path(into, body)],
    )
    worker = enlist(broker, "default", "side")
    match how:
        case "purged":
            broker.purge(["side"])
        case "upstream":
            (lease,) = broker.claim(worker, ["side"])
            broker.settle(worker, lease, Failed(ERROR))
        case _:
            (lease,) = broker.claim(worker, ["side"])
            broker.settle(worker, lease, Succeeded(b"1"))
    outcome = Ignored() if how == "ignored" else Revoked("terminated")

    *_, last = work(broker, worker, {"part": outcome})

    assert last.id == body.id
    kinds = [kind for kind, _ in listed(last)]
    assert kinds == {"collect": ["error", "result"], "skip": ["result"], "count": []}[policy]


def test_10_a_group_without_a_list_has_no_result_of_its_own(broker: Broker) -> None:
    members, into = tasks("a", "b"), gather("count")
    broker.enqueue([*members, into], joined(members, into))

    work(broker, enlist(broker), {"a": Failed(ERROR)})

    record = broker.get([into.id])[into.id]
    assert (record.state, record.result) == ("succeeded", None)


def test_10_a_stale_settle_is_not_counted_as_a_part(broker: Broker) -> None:
    members, into, body, edges = chord(2)
    broker.enqueue([*members, into, body], edges)
    worker = enlist(broker)
    (old,) = broker.claim(worker, ["default"])
    broker.settle(worker, old, Released())
    (new,) = broker.claim(worker, ["default"])

    broker.settle(worker, new, Succeeded(b"1"))
    broker.settle(worker, new, Succeeded(b"1"))
    broker.settle(worker, old, Succeeded(b"1"))

    assert (state(broker, into), state(broker, body)) == ("waiting", "waiting")
    *_, last = work(broker, worker)
    assert listed(last) == [("result", b"1"), ("result", b'"p1"')]


@pytest.mark.parametrize("policy", ["collect", "skip", "count"])
def test_10_a_dead_part_that_is_purged_is_not_counted_again(
    broker: Broker, policy: str
) -> None:
    members, into, body, edges = chord(2, policy)
    broker.enqueue([*members, into, body], edges)
    worker = enlist(broker)
    dead, other = broker.claim(worker, ["default"], 2)
    broker.settle(worker, dead, Failed(ERROR, dead="undecodable"))

    assert broker.purge(dead=True) == 1

    assert (state(broker, into), state(broker, body)) == ("waiting", "waiting")
    broker.settle(worker, other, Succeeded(b"1"))
    assert names(work(broker, worker)) == ["body"]


def test_10_a_gather_is_never_claimed_nor_counted_as_work(broker: Broker) -> None:
    members, into, body, edges = chord(2)
    broker.enqueue([*members, into, body], edges)

    assert broker.counts() == {"default": {"queued": 2, "waiting": 1}}
    assert [record.id for record in broker.browse("waiting")] == [body.id]
    assert GATHER not in names(work(broker, enlist(broker)))
    assert [record.id for record in broker.browse("succeeded")] == [
        message.id for message in (*members, body)
    ]


def test_10_a_gather_is_in_no_state_of_the_figures_of_a_store(store: Store) -> None:
    if not store.shared:
        pytest.skip("a store in memory has no figures")
    broker = store.open()
    worker = enlist(broker)
    broker.enqueue([gather()])
    for outcome in (Succeeded(b"1"), Failed(ERROR), Ignored(), None):
        members, into, body, edges = chord(2)
        broker.enqueue([*members, into, body], edges, Workflow(body.id, "some"))
        if outcome is not None:
            work(broker, worker, {"p1": outcome})

    figures = broker.facts()

    assert figures["states"] == {
        "waiting": 1,
        "queued": 2,
        "succeeded": 5,
        "failed": 2,
        "revoked": 1,
        "ignored": 1,
    }
    assert figures.get("messages", 12) == 12
    broker.close()


# Error callbacks


def test_10_the_error_callback_of_a_chord_runs_once_for_its_failed_parts(
    broker: Broker,
) -> None:
    members, into, body, edges = chord(3)
    called, behind, uncalled = tasks("called", "behind", "uncalled")
    edges += [Edge(body.id, called.id, "failure"), *path(body, behind)]
    edges += [Edge(behind.id, uncalled.id, "failure")]
    broker.enqueue([*members, into, body, called, behind, uncalled], edges)

    ran = work(broker, enlist(broker), dict.fromkeys(("p0", "p1", "p2"), Failed(ERROR)))

    assert names(ran) == ["p0", "p1", "p2", "called"]
    (given,) = ran[-1].inputs
    assert (given.source, given.kind) == (body.id, "error")
    assert isinstance(failure.rebuild(given.value), ChordError)
    assert end(broker, uncalled) == ("revoked", "upstream")


def test_10_nobody_is_called_for_a_task_that_was_ignored(broker: Broker) -> None:
    members, into, body, edges = chord(1)
    callback = make("callback")
    broker.enqueue(
        [*members, into, body, callback], [*edges, Edge(body.id, callback.id, "failure")]
    )

    ran = work(broker, enlist(broker), {"p0": Ignored()})

    assert names(ran) == ["p0"]
    assert end(broker, callback) == ("revoked", "upstream")


def test_an_error_callback_that_was_not_needed_leaves_a_workflow_succeeded(
    broker: Broker,
) -> None:
    task, alarm, horn = tasks("task", "alarm", "horn")
    edges = [Edge(task.id, alarm.id, "failure"), *path(alarm, horn)]
    broker.enqueue([task, alarm, horn], edges, Workflow(task.id, "task with links"))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ("default",))
    broker.settle(worker, lease, Succeeded(b"1"))

    known = broker.workflow(task.id)

    assert known is not None
    assert (known.state, known.counts, known.upstream) == (
        "succeeded",
        {"succeeded": 1, "revoked": 2},
        2,
    )
    assert broker.workflows() == [known]


@pytest.mark.parametrize("ending", [Revoked("revoked"), Ignored()])
def test_one_that_was_revoked_or_ignored_itself_makes_a_workflow_revoked(
    broker: Broker, ending: Outcome
) -> None:
    first, then = tasks("first", "then")
    broker.enqueue([first, then], path(first, then), Workflow(then.id, "chain of 2"))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ("default",))
    broker.settle(worker, lease, ending)

    known = broker.workflow(then.id)

    assert known is not None
    assert (known.state, known.upstream) == ("revoked", 1)


# Enqueueing a graph


def test_10_a_cycle_is_refused_with_its_messages_named(broker: Broker) -> None:
    a, b, c, outside = tasks("a", "b", "c", "outside")

    with pytest.raises(InvalidTaskError) as refused:
        broker.enqueue([outside, a, b, c], [*path(outside, a, b, c), *path(c, a)])

    said = str(refused.value)
    assert all(message.id in said for message in (a, b, c))
    assert outside.id not in said
    assert broker.counts() == {}


def test_10_a_long_cycle_is_found_without_recursion(broker: Broker) -> None:
    steps = tasks(*["step"] * 5_000)

    with pytest.raises(InvalidTaskError, match="5000 messages"):
        broker.enqueue(steps, [*path(*steps), *path(steps[-1], steps[0])])


def test_10_what_is_no_cycle_is_taken_in_any_order(broker: Broker) -> None:
    a, b, c, d = tasks("a", "b", "c", "d")
    edges = [*path(a, b, d), *path(a, c, d)]

    broker.enqueue([d, c, b, a], edges)

    assert names(work(broker, enlist(broker))) == ["a", "c", "b", "d"]


@pytest.mark.parametrize(
    "wrong",
    [
        "a message waits for itself",
        "an edge to nobody",
        "an edge from nobody",
        "an edge of no known kind",
        "two messages joined twice",
        "a part of a task",
        "a success before a gather",
        "two sources of an error callback",
        "a success beside a failure",
        "a gather of no known policy",
    ],
)
def test_10_a_graph_that_cannot_work_is_refused_as_a_whole(broker: Broker, wrong: str) -> None:
    a, b, c, into = *tasks("a", "b", "c"), gather()
    edges = {
        "a message waits for itself": path(a, a),
        "an edge to nobody": [Edge(a.id, "nobody", "success")],
        "an edge from nobody": [Edge("nobody", a.id, "success")],
        "an edge of no known kind": [Edge(a.id, b.id, "perhaps")],
        "two messages joined twice": [Edge(a.id, b.id, "success", n) for n in range(2)],
        "a part of a task": [Edge(a.id, b.id, "part")],
        "a success before a gather": [Edge(a.id, into.id, "success")],
        "two sources of an error callback": [
            Edge(a.id, c.id, "failure"),
            Edge(b.id, c.id, "failure"),
        ],
        "a success beside a failure": [
            Edge(a.id, c.id, "success"),
            Edge(b.id, c.id, "failure"),
        ],
    }.get(wrong, [])
    if wrong == "a gather of no known policy":
        into = gather("maybe")

    with pytest.raises(InvalidTaskError):
        broker.enqueue([a, b, c, into], edges, Workflow(c.id, "wrong"))

    assert broker.get([a.id, b.id, c.id, into.id]) == {}
    assert broker.workflows() == []
    assert claim_all(broker, enlist(broker)) == []


def test_what_is_to_wait_for_one_that_is_over_is_told_that_ids_are_used_once(
    broker: Broker,
) -> None:
    a, b, into = make("a"), make("b"), gather()
    broker.enqueue([a])
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Succeeded(b"1"))
    edges = [Edge(a.id, into.id, "part", 0), Edge(b.id, into.id, "part", 1)]

    with pytest.raises(InvalidTaskError, match=f"'{a.id}', which was sent before and is over"):
        broker.enqueue([a, b, into], edges)
    with pytest.raises(InvalidTaskError, match="'nowhere', which is not in the store"):
        broker.enqueue([b], [Edge("nowhere", b.id, "success")])

    assert broker.get([b.id, into.id]) == {}


def claim_all(broker: Broker, worker: int) -> list[str]:
    return [lease.id for lease in broker.claim(worker, ["default"], 100)]


def test_10_a_graph_may_wait_for_what_is_in_the_store(broker: Broker) -> None:
    first, then, into = make("first"), make("then"), gather()
    broker.enqueue([first])

    broker.enqueue([then, into], [*path(first, then), *joined([first], into)])

    assert names(work(broker, enlist(broker))) == ["first", "then"]
    assert state(broker, into) == "succeeded"


def test_4_a_workflow_that_is_enqueued_again_changes_nothing(broker: Broker) -> None:
    members, into, body, edges = chord(3)
    call = ([*members, into, body], edges, Workflow(body.id, "chord"))
    worker = enlist(broker)
    broker.enqueue(*call)

    broker.enqueue(*call)
    leases = broker.claim(worker, ["default"], 2)
    for lease in leases:
        broker.settle(worker, lease, Succeeded(b"1"))
    broker.enqueue(*call)
    (last,) = broker.claim(worker, ["default"], 10)
    broker.settle(worker, last, Succeeded(b"3"))
    broker.enqueue(*call)

    (lease,) = broker.claim(worker, ["default"], 10)
    broker.settle(worker, lease, Succeeded(b"4"))
    broker.enqueue(*call)
    assert listed(lease) == [("result", b"1"), ("result", b"1"), ("result", b"3")]
    assert claim_all(broker, worker) == []
    assert [info.counts for info in broker.workflows()] == [{"succeeded": 4}]


def test_10_a_workflow_of_which_a_part_was_enqueued_before_is_completed(broker: Broker) -> None:
    members, into, body, edges = chord(3)
    broker.enqueue(members[:1])

    broker.enqueue([*members, into, body], edges)

    *_, last = work(broker, enlist(broker))
    assert listed(last) == [("result", b'"p%d"' % n) for n in range(3)]


# Replacing


def test_10_a_replaced_message_is_another_under_its_id(
    broker: Broker, clock: FakeClock
) -> None:
    before, first, then = tasks("before", "first", "then")
    broker.enqueue([before, first, then], path(before, first, then))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Succeeded(b"0"))
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Retried(clock.now(), ERROR))
    (lease,) = broker.claim(worker, ["default"])
    changes = {"task": "other", "body": b"[[7], {}]", "queue": "default", "priority": 3}

    assert broker.settle(worker, lease, Replaced(changes))

    (lease,) = broker.claim(worker, ["default"])
    message = lease.message
    assert (lease.id, lease.task, lease.inputs) == (first.id, "other", ())
    assert (lease.delivery, message.retries) == (1, 0)
    assert (message.body, message.priority) == (b"[[7], {}]", 3)
    assert [one.outcome for one in broker.attempts(first.id)] == ["retried", "replaced"]
    broker.settle(worker, lease, Succeeded(b"1"))
    (lease,) = broker.claim(worker, ["default"])
    assert (lease.id, [given.value for given in lease.inputs]) == (then.id, [b"1"])


def test_10_a_graph_takes_the_place_of_a_message(broker: Broker) -> None:
    first, then = tasks("first", "then")
    broker.enqueue([first, then], path(first, then))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    one, two = tasks("one", "two")
    graph = Graph((one.pack(), two.pack()), tuple(map(tuple, path(one, two, first))))

    step = broker.step(
        worker,
        settlements=[(lease, Replaced({"task": "last"}, graph))],
        queues=["default"],
        limit=10,
    )

    assert step.accepted == (True,)
    assert names(list(step.leases)) == ["one"]
    assert (state(broker, first), state(broker, then)) == ("waiting", "waiting")
    broker.settle(worker, step.leases[0], Succeeded(b"1"))
    assert names(work(broker, worker)) == ["two", "last", "then"]


@pytest.mark.parametrize("waits", [True, False])
def test_10_the_times_of_what_takes_a_place_count_from_the_end_of_its_wait(
    broker: Broker, clock: FakeClock, waits: bool
) -> None:
    first = make("first")
    broker.enqueue([first])
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    last = first._replace(task="last", countdown=10.0, expires_in=60.0)
    new = make("new")
    edges = tuple(map(tuple, path(new, last))) if waits else ()
    changes = {"task": "last", "envelope": last.pack()[16]}

    broker.settle(worker, lease, Replaced(changes, Graph((new.pack(),), edges)))
    clock.advance(100)
    (lease,) = broker.claim(worker, ["default"], 1)
    broker.settle(worker, lease, Succeeded(b"1"))
    ended_at = clock.now()
    clock.advance(9)
    early = names(broker.claim(worker, ["default"]))
    clock.advance(2)
    late = broker.claim(worker, ["default"])

    # What waits for nothing has had its times worked out by who made it.
    assert (early, names(late)) == (([], ["last"]) if waits else (["new"], []))
    assert not waits or late[0].message.expires_at == ended_at + 60


@pytest.mark.parametrize("number", [0, 3])
def test_10_a_message_may_become_a_gather(broker: Broker, number: int) -> None:
    first, then = tasks("first", "then")
    broker.enqueue([first, then], path(first, then))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    members = tasks(*[f"p{n}" for n in range(number)])
    graph = Graph(
        tuple(part.pack() for part in members), tuple(map(tuple, joined(members, first)))
    )

    broker.settle(worker, lease, Replaced({"task": GATHER, "body": b"fail"}, graph))

    *_, last = work(broker, worker)
    assert last.id == then.id
    assert listed(last) == [("result", b'"p%d"' % n) for n in range(number)]


def test_10_what_has_been_replaced_often_is_drawn_with_each_edge_as_it_was(
    broker: Broker,
) -> None:
    first, then = tasks("first", "then")
    broker.enqueue([first, then], path(first, then), Workflow(then.id))
    worker = enlist(broker)
    steps = tasks(*[f"step{n}" for n in range(4)])
    for step in steps:
        (lease,) = broker.claim(worker, ["default"])
        graph = Graph((step.pack(),), ((step.id, first.id, "success", 0),))
        broker.settle(worker, lease, Replaced({}, graph))
        (lease,) = broker.claim(worker, ["default"])
        broker.settle(worker, lease, Succeeded(b"1"))

    _, edges = broker.nodes(then.id)

    drawn = {Edge(step.id, first.id, "success", 0) for step in steps}
    assert set(edges) == drawn | set(path(first, then))
    assert len(edges) == 5
    assert [one.number for one in broker.attempts(first.id)] == [1, 2, 3, 4]
    assert names(work(broker, worker)) == ["first", "then"]


def test_10_a_replaced_part_keeps_its_place(broker: Broker) -> None:
    members, into, body, edges = chord(3)
    broker.enqueue([*members, into, body], edges)
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    new = make("new")
    graph = Graph((new.pack(),), tuple(map(tuple, path(new, members[0]))))

    broker.settle(worker, lease, Replaced({"task": "last"}, graph))

    *_, last = work(broker, worker)
    assert [value for _, value in listed(last)] == [b'"last"', b'"p1"', b'"p2"']


def test_10_what_replaces_a_message_joins_its_workflow(broker: Broker) -> None:
    alone, first, then = tasks("alone", "first", "then")
    broker.enqueue([alone])
    broker.enqueue([first, then], path(first, then), Workflow(then.id, "chain"))
    worker = enlist(broker)
    for lease in broker.claim(worker, ["default"], 2):
        new = make("new")
        graph = Graph((new.pack(),), ((new.id, lease.id, "success", 0),))
        broker.settle(worker, lease, Replaced({"task": "last"}, graph))

    chain, of_alone = broker.workflow(then.id), broker.workflow(alone.id)

    assert chain is not None
    assert of_alone is not None
    assert sum(chain.counts.values()) == 3
    assert sum(of_alone.counts.values()) == 2
    assert broker.get([alone.id])[alone.id].workflow == alone.id


@pytest.mark.parametrize("refused", [False, True])
def test_10_what_replaces_a_revoked_message_is_not_enqueued(
    broker: Broker, *, refused: bool
) -> None:
    first = make("first")
    broker.enqueue([first])
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.revoke([first.id])
    new = make("new")
    graph = Graph((new.pack(),), ((new.id, first.id, "success", 0),))
    if refused:
        graph = Graph((new.pack(), first._replace(id=new.id, body=b"1").pack()), graph.edges)

    assert broker.settle(worker, lease, Replaced({"task": "last"}, graph))

    assert end(broker, first) == ("revoked", "revoked")
    assert broker.get([new.id]) == {}


def test_3_a_stale_holder_replaces_nothing(broker: Broker) -> None:
    first, new = make("first"), make("new")
    broker.enqueue([first])
    worker = enlist(broker)
    (old,) = broker.claim(worker, ["default"])
    broker.settle(worker, old, Released())
    broker.claim(worker, ["default"])
    graph = Graph((new.pack(),), ((new.id, first.id, "success", 0),))

    for outcome in (Replaced({"task": "last"}, graph), Succeeded(b"1", added=graph)):
        assert not broker.settle(worker, old, outcome)

    record = broker.get([first.id])[first.id]
    assert (record.state, record.message.task) == ("running", "first")
    assert broker.get([new.id]) == {}


def test_4_a_replacement_that_is_settled_again_changes_nothing(broker: Broker) -> None:
    first, new = make("first"), make("new")
    broker.enqueue([first])
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    outcome = Replaced(
        {"task": "last"}, Graph((new.pack(),), ((new.id, first.id, "success", 0),))
    )

    assert broker.settle(worker, lease, outcome)
    assert not broker.settle(worker, lease, outcome)
    broker.enqueue([first])  # by a producer that could not know whether it was written

    assert names(work(broker, worker)) == ["new", "last"]


@pytest.mark.parametrize("how", ["replaced", "added"])
@pytest.mark.parametrize("wrong", ["used id", "cycle", "unknown target", "no gather"])
def test_4_a_graph_that_is_refused_fails_its_task_and_no_other(
    broker: Broker, how: str, wrong: str
) -> None:
    used, first, other, callback = tasks("used", "first", "other", "callback")
    broker.enqueue([used], [])
    broker.enqueue([first, other, callback], [Edge(first.id, callback.id, "failure")])
    worker = enlist(broker)
    leases = {lease.id: lease for lease in broker.claim(worker, ["default"], 10)}
    good = make("good")
    messages, edges = {
        "used id": ([good, used._replace(body=b"another")], []),
        "cycle": ([good], path(good, good)),
        "unknown target": ([good], [Edge(good.id, other.id, "success")]),
        "no gather": ([good], [Edge(good.id, other.id, "part", -1)]),
    }[wrong]
    graph = Graph(tuple(one.pack() for one in messages), tuple(map(tuple, edges)))
    outcome = (
        Replaced({"task": "x"}, graph) if how == "replaced" else Succeeded(b"1", added=graph)
    )

    step = broker.step(
        worker,
        settlements=[(leases[first.id], outcome), (leases[other.id], Succeeded(b"2"))],
    )

    assert step.accepted == (True, True)
    assert end(broker, first) == ("failed", None)
    assert error_of(broker, first)
    assert state(broker, other) == "succeeded"
    assert broker.get([good.id]) == {}
    assert claim_all(broker, worker) == [callback.id]


def test_4_a_replacement_may_not_change_what_is_no_field(broker: Broker) -> None:
    broker.enqueue([first := make("first")])
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.settle(worker, lease, Replaced({"id": "another", "seq": 1}))

    assert isinstance(error_of(broker, first), InvalidTaskError)


# Adding


def test_10_a_part_that_is_added_is_waited_for_and_listed_last(broker: Broker) -> None:
    members, into, body, edges = chord(2)
    broker.enqueue([*members, into, body], edges, Workflow(body.id))
    worker = enlist(broker)
    leases = broker.claim(worker, ["default"], 2)
    more = tasks("more0", "more1")
    graph = Graph(
        tuple(one.pack() for one in more),
        tuple((one.id, into.id, "part", -1) for one in more),
    )

    broker.step(
        worker,
        settlements=[
            (leases[1], Succeeded(b"1")),
            (leases[0], Succeeded(b"0", added=graph)),
        ],
    )

    assert state(broker, into) == "waiting"
    *_, last = work(broker, worker)
    assert [value for _, value in listed(last)] == [b"0", b"1", b'"more0"', b'"more1"']
    assert broker.get([more[0].id])[more[0].id].workflow == body.id


def test_10_what_is_replaced_may_add_parts_in_the_same_step(broker: Broker) -> None:
    members, into, body, edges = chord(2)
    broker.enqueue([*members, into, body], edges, Workflow(body.id))
    worker = enlist(broker)
    first, second = broker.claim(worker, ["default"], 2)
    before, *more = tasks("before", "more0", "more1")
    graph = Graph(
        tuple(one.pack() for one in (before, *more)),
        (
            (before.id, first.id, "success", 0),
            *[(one.id, into.id, "part", -1) for one in more],
        ),
    )
    outcomes = (Replaced({"task": "last"}, graph), Succeeded(b"1"))

    broker.step(worker, settlements=list(zip((first, second), outcomes, strict=True)))

    assert state(broker, into) == "waiting"
    *_, last = work(broker, worker)
    assert [value for _, value in listed(last)] == [b'"last"', b"1", b'"more0"', b'"more1"']
    assert {broker.get([one.id])[one.id].workflow for one in (before, *more)} == {body.id}


def test_10_what_is_added_to_a_gather_that_is_over_runs_all_the_same(broker: Broker) -> None:
    members, into, body, edges = chord(1)
    last, gone = make("last"), make("gone")
    broker.enqueue([*members, into, body, last], edges)
    worker = enlist(broker)
    leases = {lease.task: lease for lease in broker.claim(worker, ["default"], 2)}
    broker.settle(worker, leases["p0"], Succeeded(b"1"))
    more = tasks("more", "more")
    graph = Graph(
        tuple(one.pack() for one in more),
        ((more[0].id, into.id, "part", -1), (more[1].id, gone.id, "part", -1)),
    )

    assert broker.settle(worker, leases["last"], Succeeded(b"2", added=graph))

    assert names(work(broker, worker)) == ["body", "more", "more"]


def test_10_a_whole_graph_may_be_added(broker: Broker) -> None:
    first = make("first")
    broker.enqueue([first])
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    members, into, body, edges = chord(2)
    graph = Graph(tuple(one.pack() for one in (*members, into, body)), tuple(map(tuple, edges)))

    broker.settle(worker, lease, Succeeded(b"1", added=graph))

    assert names(work(broker, worker)) == ["p0", "p1", "body"]


# Redriving


def test_10_a_workflow_goes_on_from_the_message_that_failed(broker: Broker) -> None:
    members, into, body, edges = chord(3)
    later = make("later")
    edges += path(body, later)
    broker.enqueue([*members, into, body, later], edges, Workflow(later.id))
    worker = enlist(broker)
    work(broker, worker, {"p1": Failed(ERROR)})

    redriven = broker.redrive([members[1].id, into.id, body.id])

    assert redriven == [members[1].id]
    assert [state(broker, one) for one in (into, body, later)] == ["waiting"] * 3
    ran = work(broker, worker)
    assert names(ran) == ["p1", "body", "later"]
    assert listed(ran[1]) == [("result", b'"p%d"' % n) for n in range(3)]


def test_10_a_part_that_ends_after_its_gather_failed_is_listed_after_a_redrive(
    broker: Broker,
) -> None:
    members, into, body, edges = chord(3)
    broker.enqueue([*members, into, body], edges)
    worker = enlist(broker)
    first, second, third = broker.claim(worker, ["default"], 3)
    broker.settle(worker, first, Failed(ERROR))
    broker.settle(worker, second, Succeeded(b"2"))

    broker.redrive([members[0].id])
    broker.settle(worker, third, Succeeded(b"3"))

    *_, last = work(broker, worker)
    assert [value for _, value in listed(last)] == [b'"p0"', b"2", b"3"]


def test_10_a_message_with_another_failure_before_it_does_not_wait_again(
    broker: Broker,
) -> None:
    one, two, both = tasks("one", "two", "both")
    edges = [*path(one, both), *path(two, both)]
    broker.enqueue([one, two, both], edges)
    worker = enlist(broker)
    work(broker, worker, {"one": Failed(ERROR), "two": Failed(ERROR)})

    broker.redrive([one.id])
    alone = end(broker, both)
    work(broker, worker)
    broker.redrive([two.id])
    waiting = state(broker, both)

    assert alone == ("failed", "upstream")
    assert waiting == "waiting"
    *_, last = work(broker, worker)
    assert last.id == both.id
    assert {given.value for given in last.inputs} == {b'"one"', b'"two"'}


def test_10_failures_that_are_redriven_together_bring_back_what_waits_for_all(
    broker: Broker,
) -> None:
    members, into, body, edges = chord(3)
    broker.enqueue([*members, into, body], edges)
    worker = enlist(broker)
    work(broker, worker, dict.fromkeys(("p0", "p2"), Failed(ERROR)))

    broker.redrive([members[0].id, members[2].id])

    *_, last = work(broker, worker)
    assert [value for _, value in listed(last)] == [b'"p0"', b'"p1"', b'"p2"']


@pytest.mark.parametrize("how", ["deleted", "purged"])
def test_10_nothing_waits_again_for_what_is_not_there_any_more(
    broker: Broker, clock: FakeClock, how: str
) -> None:
    one, both = tasks("one", "both")
    two = make("two", result_expires=10, queue="side")
    broker.enqueue([one, two, both], [*path(one, both), *path(two, both)])
    worker = enlist(broker, "default", "side")
    if how == "purged":
        broker.purge(["side"])
    else:
        (lease,) = broker.claim(worker, ["side"])
        broker.settle(worker, lease, Ignored())
    work(broker, worker, {"one": Failed(ERROR)})
    clock.advance(4_000)
    broker.beat(worker)
    while broker.maintain():
        pass

    broker.redrive([one.id])
    work(broker, worker)

    assert state(broker, both) in FINAL_STATES


def test_10_an_error_callback_of_a_chord_is_called_again_after_a_redrive(
    broker: Broker,
) -> None:
    members, into, body, edges = chord(2)
    callback, after = tasks("callback", "after")
    edges += [Edge(body.id, callback.id, "failure"), *path(callback, after)]
    broker.enqueue([*members, into, body, callback, after], edges)
    worker = enlist(broker)
    first = work(broker, worker, {"p0": Failed(ERROR)})

    broker.redrive([members[0].id])
    second = work(broker, worker, {"p0": Failed(ERROR)})
    broker.redrive([members[0].id])
    third = work(broker, worker)

    assert names(first) == ["p0", "p1", "callback", "after"]
    assert names(second) == ["p0", "callback"]  # what follows it has run, and runs once
    assert names(third) == ["p0", "body"]
    assert end(broker, callback) == ("revoked", "upstream")


@pytest.mark.parametrize("policy", ["collect", "skip", "count"])
def test_10_a_tolerant_gather_waits_for_a_part_that_is_redriven(
    broker: Broker, policy: str
) -> None:
    members, into, body, edges = chord(2, policy)
    broker.enqueue([*members, into, body], edges)
    worker = enlist(broker)
    first, second = broker.claim(worker, ["default"], 2)
    broker.settle(worker, first, Failed(ERROR))

    broker.redrive([members[0].id])
    broker.settle(worker, second, Succeeded(b"2"))
    early = state(broker, into)

    *_, last = work(broker, worker)
    assert early == "waiting"
    assert last.id == body.id
    expected = [] if policy == "count" else [b'"p0"', b"2"]
    assert [value for _, value in listed(last)] == expected


def test_10_a_part_that_is_redriven_is_counted_once(broker: Broker) -> None:
    members, into, body, edges = chord(3, "collect")
    broker.enqueue([*members, into, body], edges)
    worker = enlist(broker)
    first, second, third = broker.claim(worker, ["default"], 3)
    broker.settle(worker, first, Failed(ERROR))
    broker.redrive([members[0].id])
    (again,) = broker.claim(worker, ["default"], 3)

    broker.settle(worker, again, Succeeded(b"1"))
    broker.settle(worker, second, Succeeded(b"2"))
    early = state(broker, into)
    broker.settle(worker, third, Succeeded(b"3"))

    assert early == "waiting"
    (lease,) = broker.claim(worker, ["default"], 3)
    assert [value for _, value in listed(lease)] == [b"1", b"2", b"3"]


def test_10_an_id_that_is_used_again_has_none_of_the_edges_it_had(broker: Broker) -> None:
    failing, callback, behind = tasks("failing", "callback", "behind")
    broker.enqueue(
        [failing, callback, behind],
        [Edge(failing.id, callback.id, "failure"), Edge(failing.id, behind.id, "success")],
    )
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.revoke([callback.id, behind.id])
    broker.forget([callback.id, behind.id])
    before = make("before")
    broker.enqueue([callback, before, behind], path(before, behind))

    broker.settle(worker, lease, Failed(ERROR))
    failed = [state(broker, one) for one in (failing, callback, behind)]
    broker.redrive([failing.id])

    assert failed == ["failed", "queued", "waiting"]
    assert state(broker, callback) == "queued"
    assert names(work(broker, worker)) == ["failing", "callback", "before", "behind"]


def test_10_no_edge_is_drawn_to_another_message_of_a_deleted_ones_id(broker: Broker) -> None:
    former, latter, then = tasks("former", "latter", "then")
    flow = Workflow(then.id, "flow")
    broker.enqueue([former, then], path(former, then), flow)
    broker.revoke([then.id])
    broker.forget([then.id])
    broker.enqueue([latter, then], path(latter, then), flow)
    before = broker.nodes(flow.id)[1]

    work(broker, enlist(broker))

    assert before == path(latter, then)
    assert broker.nodes(flow.id)[1] == path(latter, then)


def test_10_a_gather_does_not_fail_for_a_part_of_another_that_had_its_id(
    broker: Broker,
) -> None:
    (former,), into, _, _ = chord(1)
    broker.enqueue([former, into], joined([former], into))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.revoke([into.id])
    broker.forget([into.id])
    part, body = tasks("part", "body")
    broker.enqueue([part, into, body], [*joined([part], into), *path(into, body)])

    broker.settle(worker, lease, Failed(ERROR))

    assert state(broker, into) == "waiting"
    assert names(work(broker, worker)) == ["part", "body"]


def test_10_a_list_that_was_made_is_not_changed_by_a_redrive(broker: Broker) -> None:
    members, into, body, edges = chord(2, "collect")
    broker.enqueue([*members, into, body], edges)
    worker = enlist(broker)
    work(broker, worker, {"p0": Failed(ERROR)})
    made = broker.get([into.id, body.id])

    broker.redrive([members[0].id])
    ran = work(broker, worker)

    assert names(ran) == ["p0"]
    assert broker.get([into.id, body.id]) == made


def test_10_what_has_the_id_of_a_part_that_was_deleted_is_not_waited_for(
    broker: Broker,
) -> None:
    members, into, body, edges = chord(2)
    broker.enqueue([*members, into, body], edges)
    worker = enlist(broker)
    work(broker, worker, {"p0": Failed(ERROR), "p1": Failed(ERROR)})
    broker.forget([members[0].id])
    broker.enqueue([make("other", id=members[0].id)])

    broker.redrive([members[1].id])

    assert set(names(work(broker, worker))) == {"other", "p1"}
    assert [state(broker, one) for one in (into, body)] == ["failed"] * 2


def test_10_what_somebody_revoked_stays_revoked_after_a_redrive(broker: Broker) -> None:
    first, then, last, callback = tasks("first", "then", "last", "callback")
    edges = [*path(first, then, last), Edge(first.id, callback.id, "failure")]
    broker.enqueue([first, then, last, callback], edges)
    worker = enlist(broker)
    broker.revoke([then.id, callback.id])
    work(broker, worker, {"first": Failed(ERROR)})

    broker.redrive([first.id])

    assert names(work(broker, worker)) == ["first"]
    assert end(broker, then) == ("revoked", "revoked")
    assert end(broker, last) == ("revoked", "upstream")
    assert end(broker, callback) == ("revoked", "revoked")


# Cancelling


def test_10_a_workflow_that_is_revoked_as_a_whole_starts_nothing_more(broker: Broker) -> None:
    members, into, body, edges = chord(3)
    callback, later = tasks("callback", "later")
    edges += [Edge(body.id, callback.id, "failure"), *path(body, later)]
    messages = [*members, into, body, callback, later]
    broker.enqueue(messages, edges, Workflow(later.id))
    worker = enlist(broker)
    (running,) = broker.claim(worker, ["default"])

    answers = broker.revoke([message.id for message in messages], terminate="SIGTERM")

    assert answers.pop(running.id) == "signalled"
    assert set(answers.values()) == {"revoked"}
    assert claim_all(broker, worker) == []
    broker.settle(worker, running, Revoked("terminated"))
    assert claim_all(broker, worker) == []
    info = broker.workflow(later.id)
    assert info is not None
    assert info.state == "revoked"


def test_10_many_messages_are_revoked_at_once_and_none_of_them_starts(broker: Broker) -> None:
    members, into, body, edges = chord(700)
    callback = make("callback")
    edges += [Edge(body.id, callback.id, "failure")]
    messages = [*members, into, body, callback]
    broker.enqueue(messages, edges, Workflow(body.id))

    answers = broker.revoke([message.id for message in messages] + ["nobody"])

    assert answers.pop("nobody") == "unknown"
    assert answers.keys() == {message.id for message in messages}
    assert set(answers.values()) <= {"revoked", "settled"}  # with what they waited for
    assert broker.get([callback.id])[callback.id].revoked == "revoked"
    assert claim_all(broker, enlist(broker)) == []


# Workflows as a whole


def test_those_that_retry_at_once_and_later_are_counted_together(
    broker: Broker, clock: FakeClock
) -> None:
    one, two = tasks("one", "two")
    broker.enqueue([one, two], (), Workflow(two.id, "some"))
    worker = enlist(broker)
    first, second = broker.claim(worker, ["default"], 2)

    broker.settle(worker, first, Retried(clock.now(), ERROR))
    broker.settle(worker, second, Retried(clock.now() + 60, ERROR))

    info = broker.workflow(two.id)
    assert info is not None
    assert info.counts == {"retrying": 2}


def test_10_a_workflow_is_known_with_its_nodes_and_edges(
    broker: Broker, clock: FakeClock
) -> None:
    one, two = make("shop.fetch", node="fetch"), make("shop.fetch", shadow="again")
    into, body, alone = gather("skip"), make("shop.sum"), make("alone")
    edges = [*joined([one, two], into), *path(into, body)]
    broker.enqueue([one, two, into, body], edges, Workflow(body.id, "chord"))
    broker.enqueue([alone])
    started = clock.now()
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    clock.advance(2)
    broker.settle(worker, lease, Succeeded(b"1"))

    info = broker.workflow(body.id)
    nodes, found = broker.nodes(body.id)

    assert info is not None
    assert (info.id, info.name, info.created_at) == (body.id, "chord", started)
    assert info.counts == {"succeeded": 1, "queued": 1, "waiting": 1}
    assert info.state == "running"
    assert [(node.id, node.name, node.task, node.state) for node in nodes] == [
        (one.id, "fetch", "shop.fetch", "succeeded"),
        (two.id, "again", "shop.fetch", "queued"),
        (into.id, GATHER, GATHER, "waiting"),
        (body.id, "shop.sum", "shop.sum", "waiting"),
    ]
    assert (nodes[0].started_at, nodes[0].settled_at) == (started, started + 2)
    assert sorted(found) == sorted(edges)
    assert broker.get([one.id])[one.id].workflow == body.id
    assert broker.get([alone.id])[alone.id].workflow is None


@pytest.mark.parametrize(
    ("outcome", "expected", "upstream"),
    [
        (Succeeded(b"1"), "succeeded", False),
        (Failed(ERROR), "failed", True),
        (Revoked("revoked"), "revoked", True),
        (Ignored(), "revoked", True),
    ],
    ids=["succeeded", "failed", "revoked", "ignored"],
)
def test_10_a_workflow_has_a_state_of_its_own(
    broker: Broker, outcome: Outcome, expected: str, upstream: bool
) -> None:
    one, two = tasks("one", "two")
    broker.enqueue([one, two], path(one, two), Workflow(two.id))

    work(broker, enlist(broker), {"one": outcome})

    info = broker.workflow(two.id)
    assert info is not None
    assert info.state == expected
    assert [node.upstream for node in broker.nodes(two.id)[0]] == [False, upstream]


def test_10_workflows_are_listed_the_latest_first(broker: Broker) -> None:
    made = []
    for number in range(3):
        one, two = tasks("one", "two")
        broker.enqueue([one, two], path(one, two), Workflow(two.id, f"chain {number}"))
        made.append(two.id)

    assert [info.id for info in broker.workflows()] == made[::-1]
    assert [info.name for info in broker.workflows(limit=2)] == ["chain 2", "chain 1"]


def test_10_a_workflow_that_is_not_there_is_none(broker: Broker) -> None:
    assert broker.workflow("nobody") is None
    assert broker.nodes("nobody") == ([], [])
    assert broker.workflows() == []


@pytest.mark.parametrize("how", ["expire", "forget"])
def test_10_a_workflow_goes_with_its_last_node(
    broker: Broker, clock: FakeClock, how: str
) -> None:
    members, into, body, edges = chord(2)
    messages = [*members, into, body]
    broker.enqueue(messages, edges, Workflow(body.id))
    work(broker, enlist(broker))

    if how == "expire":
        clock.advance(90_000)
        while broker.maintain():
            pass
    else:
        broker.forget([message.id for message in messages[:-1]])
        assert broker.workflow(body.id) is not None
        broker.forget([body.id])

    assert broker.workflow(body.id) is None
    assert broker.workflows() == []
    assert broker.nodes(body.id) == ([], [])
