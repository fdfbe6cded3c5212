"""Searching a store: the same answer from every kind, whatever the place and the size."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from world import FakeClock, Store, enlist, make

from liteq import failure
from liteq.brokers import searching_redis, searching_sqlite
from liteq.brokers.base import Broker
from liteq.brokers.searching import Search
from liteq.message import GATHER, Edge, Message, Workflow
from liteq.outcome import Failed, Ignored, Outcome, Retried, Revoked, Succeeded

from .test_plans import Planner, by_index

ERROR = failure.describe(ValueError("no"))


def put(broker: Broker, *messages: Message) -> Message:
    broker.enqueue(messages)
    return messages[0]


def ids(broker: Broker, before: int | None = None, **wanted: Any) -> list[str]:
    return [found.id for found in broker.find(Search(**wanted), before=before)]


@pytest.fixture
def one_of_each(broker: Broker, clock: FakeClock) -> dict[str, str]:
    """A message in every state, in the order of arrival."""
    worker = enlist(broker)
    outcomes: dict[str, Outcome] = {
        "retrying": Retried(clock.now() + 60, ERROR),
        "succeeded": Succeeded(b"1"),
        "failed": Failed(ERROR),
        "revoked": Revoked("terminated"),
        "ignored": Ignored(),
    }
    made: dict[str, str] = {}
    for name, outcome in outcomes.items():
        made[name] = put(broker, make()).id
        (lease,) = broker.claim(worker, ["default"])
        broker.settle(worker, lease, outcome)
    made["running"] = put(broker, make()).id
    broker.claim(worker, ["default"])
    made["parked"] = put(broker, make("unknown")).id
    broker.claim(worker, ["default"], tasks=set())
    made["scheduled"] = put(broker, make(run_at=clock.now() + 60)).id
    made["queued"] = put(broker, make()).id
    waiting = make()
    broker.enqueue([waiting], [Edge(made["queued"], waiting.id, "success")])
    made["waiting"] = waiting.id
    return made


def test_all_messages_are_found_the_latest_first(
    broker: Broker, one_of_each: dict[str, str]
) -> None:
    found = list(broker.find(Search()))

    assert [one.id for one in found] == list(reversed(one_of_each.values()))
    assert {one.state: one.id for one in found} == one_of_each
    assert found[0][2:4] == ("shop.charge", "default")


def test_each_state_is_found_alone_and_with_others(
    broker: Broker, one_of_each: dict[str, str]
) -> None:
    for state, id in one_of_each.items():
        assert ids(broker, states=frozenset({state})) == [id]
    some = ["failed", "queued", "retrying", "scheduled", "running"]
    assert set(ids(broker, states=frozenset(some))) == {one_of_each[name] for name in some}


def test_a_search_goes_on_behind_a_number(broker: Broker, one_of_each: dict[str, str]) -> None:
    whole = list(broker.find(Search()))
    taken: list[str] = []
    before = None
    while page := list(islice(broker.find(Search(), before=before), 3)):
        taken += [found.id for found in page]
        before = page[-1].number

    assert taken == [found.id for found in whole]


def test_priorities_do_not_change_the_order(broker: Broker) -> None:
    made = [put(broker, make(priority=priority)).id for priority in (9, 0, 5, 5, 0, 9)]

    assert ids(broker, states=frozenset({"queued"})) == made[::-1]


@pytest.mark.parametrize("small", [True, False], ids=["small slices", "one slice"])
def test_many_in_all_places_are_found_once_and_in_order(
    broker: Broker, clock: FakeClock, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:
        for module, name in (
            (searching_redis, "_SLICE"),
            (searching_redis, "_SLICE_OUT_OF_ORDER"),
            (searching_sqlite, "_WALKED"),
            (searching_sqlite, "_GIVEN"),
        ):
            monkeypatch.setattr(module, name, 3)
        monkeypatch.setattr(searching_sqlite, "_SORTED", 8)
        monkeypatch.setattr(searching_redis, "_HELD", (2, 3))
    worker = enlist(broker, "a", "b")
    made = []
    for n in range(48):
        later = clock.now() + 99 - n if n % 4 == 3 else None
        message = make(f"t{n % 3}", queue="ab"[n % 2], priority=n % 5, run_at=later)
        made.append(put(broker, message).id)
        if n % 5 == 0:
            broker.claim(worker, ["a"], tasks={"t0", "t1"})
        if n % 7 == 0:
            for lease in broker.claim(worker, ["a", "b"], tasks={"t0", "t1"}):
                broker.settle(worker, lease, [Failed(ERROR), Succeeded(b"1")][n % 2])

    assert ids(broker) == made[::-1]
    assert ids(broker, queue="a") == made[::2][::-1]
    assert ids(broker, task="t1") == made[1::3][::-1]
    assert ids(broker, task="t*", queue="b") == made[1::2][::-1]
    unfinished = frozenset({"queued", "running", "scheduled", "parked"})
    states = {record.id: record.state for record in broker.get(made).values()}
    assert {"queued", "running", "scheduled", "parked", "failed"} <= set(states.values())
    assert ids(broker, states=unfinished) == [i for i in made[::-1] if states[i] in unfinished]
    for state in ("queued", "scheduled", "failed", "parked"):
        assert ids(broker, states=frozenset({state})) == [
            id for id in made[::-1] if states[id] == state
        ]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("shop.*", ["shop.éa", "shop.charge", "shop.[x]"]),
        ("*.charge", ["shop.charge", "web.charge"]),
        ("*a*g?", ["shop.charge", "web.charge"]),
        ("shop.?a", ["shop.éa"]),
        ("shop.[x]", ["shop.[x]"]),
        ("shop.[?]", ["shop.[x]"]),
        ("shop", []),
        ("*" + "a*" * 20 + "b", []),
    ],
)
def test_a_tasks_name_is_found_by_a_pattern(
    broker: Broker, pattern: str, names: list[str]
) -> None:
    for name in ("shop.[x]", "shop.charge", "web.charge", "shop.éa", "a" * 150):
        put(broker, make(name))

    found = [one.task for one in broker.find(Search(task=pattern))]
    assert sorted(found) == sorted(names)


def test_messages_are_found_by_when_they_came(broker: Broker, clock: FakeClock) -> None:
    made = []
    for _ in range(4):
        made.append(put(broker, make()).id)
        clock.advance(10)
    start = clock.now() - 40

    assert ids(broker, since=start + 10) == made[:0:-1]
    assert ids(broker, until=start + 10) == made[:1]
    assert ids(broker, since=start + 10, until=start + 30) == made[2:0:-1]


def test_dead_letters_are_found_by_why_and_when(broker: Broker, clock: FakeClock) -> None:
    worker = enlist(broker)
    made = []
    for reason in ("Unknown task 'a'", "undecodable body", "unknown task 'b'"):
        made.append(put(broker, make()).id)
        (lease,) = broker.claim(worker, ["default"])
        broker.settle(worker, lease, Failed(ERROR, dead=reason))
        clock.advance(10)
    put(broker, make())
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Failed(ERROR))
    start = clock.now() - 30

    assert ids(broker, dead=True) == made[::-1]
    assert ids(broker, dead=True, reason="UNKNOWN task") == [made[2], made[0]]
    assert ids(broker, dead=True, reason="%") == []
    assert ids(broker, dead=True, died_until=start + 10) == made[:1]
    assert ids(broker, dead=True, died_since=start + 10) == [made[2], made[1]]
    assert ids(broker, dead=True, queue="other") == []


def test_the_nodes_of_a_workflow_are_found_without_its_gathers(broker: Broker) -> None:
    one, two, gather, body = make(), make("other"), make(GATHER, b"fail"), make()
    edges = [Edge(one.id, gather.id, "part", 0), Edge(two.id, gather.id, "part", 1)]
    edges.append(Edge(gather.id, body.id, "success"))
    broker.enqueue([one, two, gather, body], edges, Workflow(body.id))
    put(broker, make())

    assert ids(broker, workflow=body.id) == [body.id, two.id, one.id]
    assert ids(broker, workflow=body.id, states=frozenset({"waiting"})) == [body.id]
    assert ids(broker, workflow=body.id, task="oth*") == [two.id]
    assert ids(broker, workflow="none") == []
    assert gather.id not in ids(broker)


def test_an_id_is_completed(broker: Broker) -> None:
    for id in ("abc-1", "abc-2", "abd*1", "xyz"):
        put(broker, make(id=id))
    gather = make(GATHER, b"fail", id="xyz-gather")
    broker.enqueue([make(id="part"), gather], [Edge("part", gather.id, "part")])

    assert broker.complete("abc") == ["abc-1", "abc-2"]
    assert broker.complete("ab", 9) == ["abc-1", "abc-2", "abd*1"]
    assert broker.complete("abd*") == ["abd*1"]
    assert broker.complete("ab*") == []
    assert broker.complete("xyz") == ["xyz"]
    assert broker.complete("nothing") == []


# What a search costs in an SQLite store


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> Planner:
    import apsw

    made = Planner()
    monkeypatch.setattr(apsw, "connection_hooks", [made.attach])
    return made


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ({"states": frozenset({"failed"})}, "message_ended (state=? AND seq<?)"),
        ({"states": frozenset({"revoked"})}, "message_ended (state=? AND seq<?)"),
        ({"states": frozenset({"waiting"})}, "message_waiting (seq<?)"),
        ({"dead": True}, "message_dead (seq<?)"),
        ({"workflow": "w"}, "message_workflow (workflow=? AND rowid<?)"),
        ({}, "INTEGER PRIMARY KEY (rowid<?)"),
    ],
    ids=str,
)
def test_a_search_walks_the_index_made_for_it(
    planner: Planner, tmp_path: Path, clock: FakeClock, wanted: dict[str, Any], index: str
) -> None:
    broker = Store("memory", tmp_path, clock).open()
    broker.enqueue([make(id="w")], workflow=Workflow("w"))

    plans = planner.plans(lambda: list(broker.find(Search(**wanted))))

    [plan] = [plan for sql, plan in plans.items() if sql.startswith("SELECT seq, id")]
    assert any(line.endswith(index) for line in plan), plan
    assert not any("TEMP B-TREE" in line for line in plan)
    broker.close()


def test_an_id_is_completed_by_its_index(
    planner: Planner, tmp_path: Path, clock: FakeClock
) -> None:
    broker = Store("memory", tmp_path, clock).open()
    broker.counts()

    plans = planner.plans(lambda: broker.complete("01"))

    assert by_index(plans) == []
    broker.close()
