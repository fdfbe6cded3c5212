"""What every broker promises of workflows: promise 10, and the steps of promise 4.

The same fixtures as in `test_contract`. Messages are named by their tasks here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from world import enlist, make

from liteq import failure, parts
from liteq.brokers.base import Broker, Lease
from liteq.exceptions import (
    ChordError,
    TaskRevokedError,
)
from liteq.message import GATHER, Edge, Message, Workflow
from liteq.outcome import (
    Failed,
    Ignored,
    Outcome,
    Released,
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


def test_10_a_part_that_failed_upstream_hands_its_error_on_unwrapped(broker: Broker) -> None:
    first, last, other, into, body = *tasks("first", "last", "other"), gather(), make("body")
    broker.enqueue(
        [first, last, other, into, body],
        [*path(first, last), *joined([last, other], into), *path(into, body)],
    )

    work(broker, enlist(broker), {"first": Failed(ERROR)})

    assert end(broker, body) == ("failed", "upstream")
    assert isinstance(error_of(broker, body), ValueError)


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


def test_10_a_gather_is_never_claimed_nor_counted_as_work(broker: Broker) -> None:
    members, into, body, edges = chord(2)
    broker.enqueue([*members, into, body], edges)

    assert broker.counts() == {"default": {"queued": 2, "waiting": 1}}
    assert [record.id for record in broker.browse("waiting")] == [body.id]
    assert GATHER not in names(work(broker, enlist(broker)))
    assert [record.id for record in broker.browse("succeeded")] == [
        message.id for message in (*members, body)
    ]


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
