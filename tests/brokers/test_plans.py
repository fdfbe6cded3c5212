"""Cost stays flat by construction: each hot statement uses the index that was made for it.

The statements are those that SQLite is given while a verb runs, and the plans are its own
(sqlite.org/eqp.html). A plan here depends on nothing but the schema: liteq never runs
ANALYZE, and bound values are kept out of plans.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apsw
import pytest
from world import FakeClock, Store, enlist, make

from liteq import failure
from liteq.brokers import sqlite
from liteq.brokers.base import Broker, Lease, Mailbox
from liteq.brokers.settling import BLOCK
from liteq.limits import Limit, write
from liteq.message import GATHER, Edge, Graph, Message, Workflow
from liteq.outcome import (
    Failed,
    Ignored,
    Lost,
    Outcome,
    Released,
    Replaced,
    Retried,
    Revoked,
    Succeeded,
)

ERROR = failure.describe(ValueError("no"))
BY_KEY = "SEARCH message USING INTEGER PRIMARY KEY (rowid=?)"
BY_ID = "SEARCH message USING INDEX sqlite_autoindex_message_1 (id=?)"
QUEUED = "SEARCH message USING COVERING INDEX message_queued (queue=?)"
DUE = "SEARCH message USING COVERING INDEX message_scheduled (queue=?)"
DUE_BY_NOW = "SEARCH message USING COVERING INDEX message_scheduled (queue=? AND run_at<?)"

# What ends after one row, whatever there is, and what is small whatever waits.
BOUNDED = re.compile(
    r"SCAN (CONSTANT ROW|25 CONSTANT ROWS|new|\(subquery-\d+\)"
    r"|(json_each|named) VIRTUAL TABLE.*|worker USING INDEX worker_alive)"
)
FIRST_ROW = re.compile(
    r"SELECT EXISTS\(SELECT 1 FROM (edge|waiter|period|message WHERE state = 4)\)|"
    + re.escape(sqlite._AROUND)
)


class Planner:
    """Notes the statements that a store's connection runs, and explains them."""

    def __init__(self) -> None:
        self.db: apsw.Connection | None = None

    def attach(self, db: apsw.Connection) -> None:
        self.db = db

    def plans(self, verb: Callable[[], Any]) -> dict[str, list[str]]:
        """Return the plan of each statement that a verb runs. A statement that changes
        itself by a constraint alone (a plain INSERT) has an empty one."""
        return {
            sql: [row[3] for row in rows]
            for sql, rows in self._explain(verb, "EXPLAIN QUERY PLAN")
        }

    def steps(self, verb: Callable[[], Any]) -> dict[str, list[str]]:
        """Return the names of the machine's instructions for each statement of a verb."""
        return {sql: [row[1] for row in rows] for sql, rows in self._explain(verb, "EXPLAIN")}

    def _explain(
        self, verb: Callable[[], Any], how: str
    ) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
        ran: dict[str, Any] = {}

        def note(_cursor: apsw.Cursor, sql: str, bindings: Any) -> bool:
            ran.setdefault(sql, bindings)
            return True

        db = self.db
        assert db is not None
        db.exec_trace = note
        try:
            verb()
        finally:
            db.exec_trace = None
        assert ran, "the verb ran no statement on this connection"
        for sql, bindings in ran.items():
            if sql.startswith(("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")):
                yield sql, db.execute(f"{how} {sql}", bindings).fetchall()


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> Planner:
    made = Planner()
    monkeypatch.setattr(apsw, "connection_hooks", [made.attach])
    return made


@pytest.fixture
def broker(planner: Planner, tmp_path: Any, clock: FakeClock) -> Iterator[Broker]:
    opened = Store("memory", tmp_path, clock).open()
    opened.counts()  # opens the one connection of a store in memory
    yield opened
    opened.close()


@pytest.fixture
def mailbox(broker: Broker) -> Iterator[Mailbox]:
    opened = broker.mailbox()
    yield opened
    opened.close()


def plan_of(plans: dict[str, list[str]], statement: str) -> list[str]:
    """Return the plan of the one statement that looks like this."""
    [found] = [plan for sql, plan in plans.items() if re.search(statement, sql)]
    return found


def claim(broker: Broker, queues: Sequence[str] = ("default",)) -> tuple[int, list[Lease]]:
    worker = enlist(broker, *queues)
    return worker, list(broker.claim(worker, queues, 20))


# One by one


def test_enqueue_looks_for_a_conflict_in_the_index_of_ids(
    planner: Planner, broker: Broker
) -> None:
    # One that may not go to a worker that stands by: see the next test.
    [steps] = planner.steps(lambda: broker.enqueue([make(acks_late=False)])).values()

    assert "NoConflict" in steps
    assert not {"Rewind", "Next", "Prev"} & set(steps), "it walks through something"


def test_a_delayed_message_is_compared_with_the_first_of_its_queue(
    planner: Planner, broker: Broker, clock: FakeClock
) -> None:
    message = make(run_at=clock.now() + 1)

    [plan] = planner.plans(lambda: broker.enqueue([message])).values()

    assert [line for line in plan if "SEARCH" in line] == [
        DUE_BY_NOW.replace("message USING", "other USING")
    ]


def test_a_repeated_enqueue_is_recognised_by_id(planner: Planner, broker: Broker) -> None:
    message = make()
    broker.enqueue([message])

    plans = planner.plans(lambda: broker.enqueue([message]))

    assert plan_of(plans, "SELECT seq, task, body, state = 0") == [BY_ID]


@pytest.mark.parametrize("queues", [("a",), ("a", "b", "c")], ids=len)
def test_a_claim_walks_the_queued_messages_in_order(
    planner: Planner, broker: Broker, queues: tuple[str, ...]
) -> None:
    worker = enlist(broker, *queues)
    broker.enqueue([make(queue=queue) for queue in queues])

    plans = planner.plans(lambda: broker.claim(worker, queues, 4))

    for statement in ("SELECT -priority, seq", "UPDATE message SET state = 3"):
        plan = plan_of(plans, statement)
        assert plan[0] == BY_KEY
        assert plan.count(QUEUED) == len(queues)
        # Of several queues, what each of them gives is sorted: at most `limit` rows of each.
        assert ("USE TEMP B-TREE FOR ORDER BY" in plan) == (len(queues) > 1)


def test_a_claim_walks_the_queued_messages_of_many_queues_in_order(
    planner: Planner, broker: Broker
) -> None:
    queues = [f"q{n}" for n in range(1_200)]
    worker = enlist(broker, *queues)
    broker.enqueue([make(queue=queue) for queue in queues[:10]])

    plans = planner.plans(lambda: broker.claim(worker, queues, 4))

    for statement in ("SELECT -priority, seq", "UPDATE message SET state = 3"):
        plan = plan_of(plans, statement)
        assert plan[0] == BY_KEY
        assert plan.count(QUEUED) == 1
        assert "SEARCH first USING INTEGER PRIMARY KEY (rowid=?)" in plan


@pytest.mark.parametrize("queues", [("a",), ("a", "b", "c")], ids=len)
def test_what_goes_to_a_worker_that_stands_by_finds_it_without_a_scan(
    planner: Planner, broker: Broker, queues: tuple[str, ...]
) -> None:
    worker = enlist(broker, *queues)
    broker.step(worker, queues=queues, limit=1, idle=True)

    plans = planner.plans(lambda: broker.enqueue([make(queue="a")]))

    plan = plan_of(plans, "INSERT INTO message")
    for index in ("message_running", "message_queued", "message_scheduled", "standby_worker"):
        assert [line for line in plan if f"COVERING INDEX {index} " in line], index
    # One row, and what there is when nobody stands by.
    assert all(map(BOUNDED.fullmatch, (line for line in plan if line.startswith("SCAN"))))


@pytest.mark.parametrize("queues", [["default"], ["default", "other", "third"]])
def test_a_claim_looks_at_the_first_delayed_message_of_each_queue_only(
    planner: Planner, broker: Broker, queues: list[str]
) -> None:
    worker = enlist(broker)

    plans = planner.plans(lambda: broker.claim(worker, queues))

    plan = plan_of(plans, "SELECT run_at FROM message")
    assert [line for line in plan if "message" in line] == [DUE]
    assert not any("TEMP B-TREE" in line for line in plan)


@pytest.mark.parametrize("queues", [["default"], ["default", "other", "third"]])
def test_what_has_come_due_is_found_by_its_time(
    planner: Planner, broker: Broker, clock: FakeClock, queues: list[str]
) -> None:
    worker = enlist(broker)
    broker.enqueue([make(run_at=clock.now() + 1)])
    clock.advance(2)

    plans = planner.plans(lambda: broker.claim(worker, queues))

    plan = plan_of(plans, "UPDATE message SET state = 1 ")
    searched = [line for line in plan if line.startswith("SEARCH")]
    assert searched == [BY_KEY, DUE_BY_NOW.replace("message USING", "due USING")]
    assert not any("TEMP B-TREE" in line for line in plan)


def test_orders_to_end_a_run_are_found_by_worker(planner: Planner, broker: Broker) -> None:
    worker, message = enlist(broker), make()
    broker.enqueue([message])
    broker.claim(worker, ["default"])
    broker.revoke([message.id], terminate="SIGTERM")

    plans = planner.plans(lambda: broker.step(worker))

    found = plan_of(plans, "SELECT seq, revoke")
    assert found == ["SEARCH message USING INDEX message_revoking (worker=?)"]


OUTCOMES: dict[str, Outcome] = {
    "succeeded": Succeeded(b"1"),
    "ignored": Ignored(),
    "failed": Failed(ERROR),
    "retried": Retried(2e9, ERROR),
    "revoked": Revoked("terminated"),
    "released": Released(),
    "lost": Lost("signal 9 (SIGKILL)"),
    "replaced": Replaced({"task": "other"}),
}


@pytest.mark.parametrize("kind", OUTCOMES)
@pytest.mark.parametrize("number", [1, 2], ids=["one", "batch"])
def test_a_settle_finds_its_message_by_key(
    planner: Planner, broker: Broker, kind: str, number: int
) -> None:
    broker.enqueue([make() for _ in range(number)])
    worker, leases = claim(broker)
    outcome = OUTCOMES[kind]

    plans = planner.plans(
        lambda: broker.step(worker, settlements=[(lease, outcome) for lease in leases])
    )

    settles = [plan for sql, plan in plans.items() if sql.startswith("UPDATE message")]
    assert settles == [[BY_KEY]]


def test_a_block_of_successes_finds_each_message_by_key(
    planner: Planner, broker: Broker
) -> None:
    broker.enqueue([make() for _ in range(BLOCK)])
    worker, leases = claim(broker)

    plans = planner.plans(
        lambda: broker.step(worker, settlements=[(lease, Succeeded(b"1")) for lease in leases])
    )

    plan = plan_of(plans, "WITH done")
    assert plan[-2:] == ["SCAN done", BY_KEY]
    assert f"SCAN {BLOCK} CONSTANT ROWS" in plan


def test_what_follows_a_settle_is_found_by_its_source(planner: Planner, broker: Broker) -> None:
    first, then = make(), make()
    broker.enqueue([first, then], [Edge(first.id, then.id, "success")])
    worker, [lease] = claim(broker)

    plans = planner.plans(lambda: broker.settle(worker, lease, Succeeded(b"1")))

    assert plan_of(plans, "FROM edge WHERE") == ["SEARCH edge USING PRIMARY KEY (source=?)"]


def test_waiters_are_found_by_message(
    planner: Planner, broker: Broker, mailbox: Mailbox
) -> None:
    broker.enqueue([message := make()])
    worker, [lease] = claim(broker)
    broker.watch([message.id], mailbox)

    plans = planner.plans(lambda: broker.settle(worker, lease, Succeeded(b"1")))

    assert plan_of(plans, "FROM waiter WHERE") == [
        "SEARCH waiter USING PRIMARY KEY (message=?)"
    ]


def test_attempts_are_counted_by_message(planner: Planner, broker: Broker) -> None:
    broker.enqueue([make()])
    worker, [lease] = claim(broker)

    plans = planner.plans(lambda: broker.settle(worker, lease, Failed(ERROR)))

    plan = plan_of(plans, "INSERT INTO attempt")
    assert "SEARCH attempt USING PRIMARY KEY (message=?)" in plan


def test_the_leases_of_a_dead_worker_are_found_by_worker(
    planner: Planner, broker: Broker, clock: FakeClock
) -> None:
    broker.enqueue([make()])
    claim(broker)
    clock.advance(broker.lease_timeout + 1)

    plans = planner.plans(broker.reclaim)

    found = plan_of(plans, "SELECT seq, token, deliveries")
    assert found == ["SEARCH message USING INDEX message_running (worker=?)"]


def test_expired_results_are_found_by_when_they_expire(
    planner: Planner, broker: Broker, clock: FakeClock
) -> None:
    broker.enqueue([make(result_expires=10)])
    worker, [lease] = claim(broker)
    broker.settle(worker, lease, Succeeded(b"1"))
    clock.advance(11)

    plans = planner.plans(broker.maintain)

    by_time = "SEARCH message USING {} message_deletable (delete_at<?)"
    assert by_time.format("COVERING INDEX") in plan_of(plans, "SELECT EXISTS")
    assert plan_of(plans, r"SELECT .* WHERE delete_at <= \? ORDER") == [by_time.format("INDEX")]


def test_messages_that_expired_unstarted_are_found_by_when_they_expire(
    planner: Planner, broker: Broker, clock: FakeClock
) -> None:
    broker.enqueue([make(expires_at=clock.now() + 1)])
    clock.advance(2)

    plans = planner.plans(broker.maintain)

    by_time = "SEARCH message USING INDEX message_expiring (expires_at>? AND expires_at<?)"
    assert plan_of(plans, r"SELECT length.* WHERE expires_at.* IN") == [by_time]


def test_what_nobody_knows_is_found_by_since_when(
    planner: Planner, store: Store, broker: Broker, clock: FakeClock
) -> None:
    broker.enqueue([make("unknown")])
    broker.claim(enlist(broker), ["default"], tasks=set())
    clock.advance(90_000)

    plans = planner.plans(broker.maintain)

    by_time = "SEARCH message USING INDEX message_parked_at (parked_at<?)"
    assert plan_of(plans, "SELECT .* task FROM message WHERE state = 4") == [by_time]


def test_a_purge_finds_what_waits_beside_any_number_of_results(
    planner: Planner, broker: Broker
) -> None:
    broker.enqueue([make()])

    plans = planner.plans(lambda: broker.purge(["default"]))

    by_queue = "SEARCH message USING INDEX message_queued (queue=?)"
    assert plan_of(plans, "^SELECT length.* INDEXED BY message_queued")[0] == by_queue
    assert by_queue in plan_of(plans, "^SELECT EXISTS.* INDEXED BY message_queued")


def test_a_revoke_finds_its_message_by_id(planner: Planner, broker: Broker) -> None:
    broker.enqueue([message := make()])

    plans = planner.plans(lambda: broker.revoke([message.id]))

    assert plan_of(plans, "SELECT seq, state FROM message") == [BY_ID]
    assert plan_of(plans, "UPDATE message SET state = 8") == [BY_KEY]


def chord(broker: Broker, number: int = 3) -> tuple[list[Message], Message, Message]:
    members = [make() for _ in range(number)]
    into, body, callback = make(GATHER, b"fail"), make("body"), make("callback")
    edges = [Edge(part.id, into.id, "part", n) for n, part in enumerate(members)]
    edges += [Edge(into.id, body.id, "success"), Edge(body.id, callback.id, "failure")]
    broker.enqueue([*members, into, body, callback], edges, Workflow(body.id))
    return members, into, body


def by_index(plans: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Return the steps of these plans that walk through more than an index tells."""
    return [
        (sql, line)
        for sql, plan in plans.items()
        for line in plan
        if ("SCAN" in line or "TEMP B-TREE" in line)
        and line != "SCAN worker"  # a row for each worker of the last week
        and not BOUNDED.fullmatch(line)
        and not FIRST_ROW.fullmatch(sql)
    ]


def test_a_workflow_is_enqueued_with_the_same_statements_whatever_its_size(
    planner: Planner, broker: Broker
) -> None:
    few = planner.plans(lambda: chord(broker, 2))
    some = planner.plans(lambda: chord(broker, 30))
    many = planner.plans(lambda: chord(broker, 80))

    assert some.keys() == many.keys()
    assert len(some.keys() - few.keys()) == 2  # blocks of messages, and of edges
    assert by_index(many) == []


def test_what_waits_for_parts_is_found_by_key(planner: Planner, broker: Broker) -> None:
    chord(broker)
    worker, leases = claim(broker)
    outcomes = [Succeeded(b"1"), Succeeded(b"2")]
    last = planner.plans(
        lambda: broker.step(worker, settlements=list(zip(leases, outcomes, strict=False)))
    )
    assert by_index(last) == []

    last = planner.plans(lambda: broker.settle(worker, leases[2], Succeeded(b"3")))

    found = plan_of(last, "SELECT kind, value FROM input")
    assert found == ["SEARCH input USING PRIMARY KEY (target=?)"]
    assert by_index(last) == []


def test_a_failure_is_handed_on_by_key(planner: Planner, broker: Broker) -> None:
    chord(broker)
    worker, leases = claim(broker)

    plans = planner.plans(lambda: broker.settle(worker, leases[0], Failed(ERROR)))

    assert [plan for sql, plan in plans.items() if sql.startswith("UPDATE")] == [[BY_KEY]] * 3
    assert by_index(plans) == []


def test_what_a_redrive_brings_back_is_found_by_what_leads_to_it(
    planner: Planner, broker: Broker
) -> None:
    members, *_ = chord(broker)
    worker, leases = claim(broker)
    broker.settle(worker, leases[0], Failed(ERROR))

    plans = planner.plans(lambda: broker.redrive([members[0].id]))

    plan = plan_of(plans, "UPDATE OR IGNORE message SET state = 0.*SELECT count")
    assert "SEARCH edge USING COVERING INDEX edge_target (target=?)" in plan
    assert by_index(plans) == []


def test_a_graph_is_added_and_replaced_by_key(planner: Planner, broker: Broker) -> None:
    _, into, _ = chord(broker)
    worker, leases = claim(broker)
    new, more = make(), make()
    graph = Graph((new.pack(),), ((new.id, leases[0].id, "success", 0),))
    added = Graph((more.pack(),), ((more.id, into.id, "part", -1),))

    plans = planner.plans(
        lambda: broker.step(
            worker,
            settlements=[
                (leases[0], Replaced({}, graph)),
                (leases[1], Succeeded(b"1", added=added)),
            ],
        )
    )

    assert by_index(plans) == []


def test_what_led_to_a_replaced_message_is_found_by_its_inputs(
    planner: Planner, broker: Broker
) -> None:
    """Not by the message: each replacement would read all edges that have led there."""
    chord(broker)
    worker, leases = claim(broker)

    plans = planner.plans(lambda: broker.settle(worker, leases[0], Replaced({})))

    plan = plan_of(plans, "UPDATE OR REPLACE edge")
    assert plan[0] == "SEARCH edge USING PRIMARY KEY (source=? AND target=?)"
    assert by_index(plans) == []


def test_a_workflows_nodes_are_found_by_workflow(planner: Planner, broker: Broker) -> None:
    *_, body = chord(broker)

    counted = planner.plans(lambda: broker.workflow(body.id))
    drawn = planner.plans(lambda: broker.nodes(body.id))

    by_workflow = "SEARCH message USING INDEX message_workflow (workflow=?)"
    assert by_workflow in plan_of(counted, "SELECT state.*count")
    assert plan_of(drawn, "SELECT state.*json_extract") == [by_workflow]
    assert plan_of(drawn, "SELECT source.id")[0].startswith("SEARCH source USING INDEX")


def test_what_hangs_on_a_deleted_message_is_found_by_key(
    planner: Planner, broker: Broker, clock: FakeClock
) -> None:
    chord(broker)
    worker, leases = claim(broker)
    broker.step(worker, settlements=[(lease, Failed(ERROR)) for lease in leases])
    clock.advance(90_000)

    plans = planner.plans(broker.maintain)

    assert "SEARCH edge USING COVERING INDEX edge_target (target=?)" in plan_of(
        plans, "DELETE FROM edge WHERE target"
    )
    assert by_index(plans) == []


# All of them


def test_no_verb_of_a_tasks_way_scans_a_table(
    planner: Planner, broker: Broker, clock: FakeClock, mailbox: Mailbox
) -> None:
    first, then, twice = make(), make(), make()
    broker.enqueue([make(run_at=clock.now() + 1), twice])
    clock.advance(2)

    def way() -> None:
        broker.enqueue([first, then], [Edge(first.id, then.id, "success")])
        broker.enqueue([twice])
        broker.watch([first.id], mailbox)
        broker.get([first.id])
        worker, leases = claim(broker)
        outcomes = [Succeeded(b"1"), *OUTCOMES.values()]
        broker.step(worker, settlements=list(zip(leases, outcomes, strict=False)))
        broker.revoke([then.id])
        broker.attempts(first.id)
        broker.beat(worker)
        broker.reclaim()
        broker.unregister(worker)
        broker.forget([first.id])
        broker.redrive([first.id])

    scans = [
        (sql, line)
        for sql, plan in planner.plans(way).items()
        for line in plan
        if line.startswith("SCAN")
        and not BOUNDED.fullmatch(line)
        and not FIRST_ROW.fullmatch(sql)
    ]
    assert scans == []


def test_limits_are_kept_without_scanning_or_sorting(
    planner: Planner, broker: Broker, clock: FakeClock
) -> None:
    limits = [
        Limit("rate", interval=5.0),
        Limit("one", most=1),
        Limit("own", interval=1.0, per_worker=True),
    ]
    broker.declare_limits({"shop.charge": limits[:2], "shop.other": limits[2:]})
    keyed = [write([("rate", key), ("one", key)]) for key in ("x", "y", "x", "y", "x")]
    worker = enlist(broker)

    def way() -> None:
        broker.enqueue([make(limits=text) for text in keyed])
        broker.enqueue([make(), make("shop.other"), make("shop.other")])
        leases = broker.claim(worker, ["default"], 20)
        clock.advance(6)
        ends = [(lease, Succeeded(b"1")) for lease in leases]
        broker.step(worker, settlements=ends, queues=["default"], limit=20)
        clock.advance(1)
        broker.step(worker, queues=["default"], limit=20, tasks=frozenset({"shop.other"}))

    statements = planner.plans(way)
    found = [
        (sql, line)
        for sql, plan in statements.items()
        for line in plan
        if (line.startswith("SCAN") or "TEMP B-TREE" in line)
        and not BOUNDED.fullmatch(line)
        and not FIRST_ROW.fullmatch(sql)
        and not re.search(r"FROM (limits|limited)\b", sql)  # what is declared: read whole
        and "EXISTS(SELECT 1 FROM line INDEXED BY line_ready" not in sql  # the first will do
    ]
    assert found == []
    assert any("line_ready" in line for plan in statements.values() for line in plan)


def test_a_store_without_limits_runs_no_statement_for_them(
    planner: Planner, broker: Broker
) -> None:
    worker = enlist(broker)
    broker.enqueue([make(), make()])

    def way() -> None:
        leases = broker.claim(worker, ["default"], 2)
        broker.step(worker, settlements=[(lease, Succeeded(b"1")) for lease in leases])

    words = re.compile(r"(FROM|INTO|UPDATE) (line|gate|bucket|slot|closed|limits|limited)\b")
    statements = [sql for sql in planner.plans(way) if words.search(sql)]

    assert [sql.partition(",")[0] for sql in statements] == [
        "SELECT EXISTS(SELECT 1 FROM worker WHERE id = ?1 AND stopped_at IS NULL)"
    ]
