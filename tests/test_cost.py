"""What a task costs, counted instead of timed: the guard against a cost that creeps in.

A stopwatch on a busy machine cannot tell 30 µs from 40, and a count can. What is counted is
what a task's time is made of: statements, transactions, syncs and bytes of SQLite, and the
trips into the kernel between parent and child. Redis has a part in on_redis/test_cost.py.

A bound that breaks is a question, not a verdict: if the new cost is worth it, raise the bound
and say why in its comment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest
from power.recorder import Recorder
from world import FakeClock, Store, enlist, make, uncovered, wait_until

from liteq import Liteq
from liteq.brokers.base import Broker, Lease
from liteq.brokers.settling import Settling
from liteq.outcome import Outcome, Succeeded
from liteq.task import Task
from liteq.worker import Worker

# Of a step, whatever it settles and claims: BEGIN, what it has to know, a savepoint and its
# release, the next due message, the two of a claim, COMMIT. Two are left for what limits or
# uniqueness may want to look up. What grows with the number of tasks is counted apart.
STEP = 10
INSTRUCTIONS = 375  # of SQLite's machine, to claim and settle one task; measured: 350
BATCHES = (32, 64)


class Cost(NamedTuple):
    """What SQLite did: statements that it ran, those in triggers too; transactions that wrote;
    syncs of a file; bytes written to files; instructions of its virtual machine."""

    statements: int
    commits: int
    syncs: int
    written: int
    instructions: int


class Meter:
    """Counts for all connections of this process, at the lowest levels that SQLite has."""

    def __init__(self, disk: Recorder) -> None:
        self._disk = disk
        self.statements: list[str] = []
        self._commits = 0
        self._instructions = 0

    def attach(self, db: apsw.Connection) -> None:
        db.trace_v2(apsw.SQLITE_TRACE_STMT | apsw.SQLITE_TRACE_PROFILE, self._on_statement)
        db.set_commit_hook(self._on_commit)

    def of(self, verb: Callable[[], Any]) -> Cost:
        self.statements.clear()
        self._commits = self._instructions = 0
        self._disk.log.clear()
        verb()
        done = [event.what for event in self._disk.log]
        written = sum(len(event.data) for event in self._disk.log)
        syncs = done.count("sync")
        return Cost(len(self.statements), self._commits, syncs, written, self._instructions)

    def _on_statement(self, event: dict[str, Any]) -> None:
        if event["code"] == apsw.SQLITE_TRACE_STMT:
            self.statements.append(event["sql"])
        else:
            self._instructions += event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]

    def _on_commit(self) -> bool:
        self._commits += 1
        return False  # True would undo it


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meter]:
    disk = Recorder(f"cost-{os.getpid()}")
    made = Meter(disk)
    monkeypatch.setattr(apsw, "connection_hooks", [made.attach])
    yield made
    disk.unregister()


@pytest.fixture
def broker(meter: Meter, tmp_path: Path, clock: Any) -> Iterator[Broker]:
    opened = Store("sqlite", tmp_path, clock).open()
    opened.counts()  # connects
    yield opened
    opened.close()


def call_of(tmp_path: Path, durability: str) -> Task[[int, int], int]:
    app = Liteq("cost", broker=f"sqlite:///{tmp_path}/store", set_as_current=False)
    app.conf.broker_transport_options = {"durability": durability}

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    add.delay(1, 2)  # connects
    return add


class Steps:
    """A worker in the middle of its work: each step settles what the last one claimed."""

    def __init__(self, broker: Broker, number: int) -> None:
        broker.enqueue([make() for _ in range(number)])
        self.broker = broker
        self.worker = enlist(broker)
        self.leases: Sequence[Lease] = ()

    def step(self, claim: int) -> None:
        self.leases = self.broker.step(
            self.worker,
            settlements=[(lease, Succeeded(b"1")) for lease in self.leases],
            queues=["default"],
            limit=claim,
            tasks={"shop.charge"},
        ).leases
        assert len(self.leases) == claim


# The store


@pytest.mark.parametrize(("durability", "syncs"), [("normal", 0), ("full", 1)])
def test_a_call_is_one_statement_and_at_most_one_sync(
    meter: Meter, tmp_path: Path, durability: str, syncs: int
) -> None:
    add = call_of(tmp_path, durability)

    cost = meter.of(lambda: add.delay(1, 2))

    # One INSERT is its own transaction: BEGIN and COMMIT would be two statements more.
    assert (cost.statements, cost.commits, cost.syncs) == (1, 1, syncs), meter.statements
    # Three pages of 4 KiB (the row, the index of ids, that of what is queued) and their
    # headers in the WAL, each written once. An index more is a page more for each call.
    assert cost.written <= 3 * (4096 + 24)


def test_a_delayed_call_is_one_statement_too(meter: Meter, tmp_path: Path) -> None:
    add = call_of(tmp_path, "normal")
    add.delay(1, 2)

    cost = meter.of(lambda: add.apply_async((1, 2), countdown=10))

    # It tells whether workers are to be woken, as well.
    assert (cost.statements, cost.commits) == (1, 1), meter.statements


def test_a_call_looks_once_whether_its_store_is_there_and_a_step_too(
    tmp_path: Path, broker: Broker, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Any] = []
    stat = os.stat
    steps = Steps(broker, 2)

    def counted(path: Any, **options: Any) -> os.stat_result:
        if path == broker._database.path:
            looks.append(path)
        return stat(path, **options)

    def looks_of(verb: Callable[[], Any]) -> int:
        looks.clear()
        verb()
        return len(looks)

    monkeypatch.setattr("liteq.brokers.connection.os.stat", counted)

    assert looks_of(lambda: broker.enqueue([make()])) == 1
    assert looks_of(lambda: steps.step(1)) == 1
    assert looks_of(lambda: broker.beat(steps.worker)) == 1
    clock.advance(1.0)
    assert looks_of(lambda: [broker.counts() for _ in range(100)]) == 1


def test_what_is_sent_together_is_one_transaction(meter: Meter, broker: Broker) -> None:
    few, many = [meter.of(partial(send_together, broker, number)) for number in BATCHES]

    assert (many.commits, many.syncs) == (1, 0)
    # An INSERT for each message, and four for all: BEGIN, COMMIT, the last number, and what
    # uniqueness may look up.
    assert_grows(few, many, each=1)
    assert many.statements <= BATCHES[1] + 4, meter.statements
    assert many.written <= BATCHES[1] * 700  # measured: 577 bytes each


def test_many_calls_of_a_task_share_their_statements(meter: Meter, tmp_path: Path) -> None:
    add = call_of(tmp_path, "full")

    cost = meter.of(lambda: add.enqueue_many((n, n) for n in range(1_000)))

    # One for 25 of them, BEGIN and COMMIT: what they have in common is bound once for each.
    assert (cost.commits, cost.syncs) == (1, 1)
    assert cost.statements <= 1_000 / 25 + 2
    assert cost.instructions <= 1_000 * 140  # measured: 130


def test_many_tasks_are_settled_and_claimed_with_few_statements(
    meter: Meter, broker: Broker
) -> None:
    few, many = costs_of_steps(meter, broker)

    # An UPDATE settles sixteen tasks. One claims them all, so that adds nothing.
    assert_grows(few, many, each=1 / 16)
    assert many.statements <= BATCHES[1] / 16 + STEP, meter.statements


def test_a_task_takes_few_instructions(meter: Meter, broker: Broker) -> None:
    few, many = costs_of_steps(meter, broker)

    # What a statement takes is what its indexes take, above all: each partial one is looked
    # at whenever a column of its WHERE changes, and `state` does, twice for each task.
    assert many.instructions - few.instructions <= INSTRUCTIONS * (BATCHES[1] - BATCHES[0])


def test_a_step_is_one_transaction_that_waits_for_no_disk(meter: Meter, broker: Broker) -> None:
    few, many = costs_of_steps(meter, broker)

    assert (few.commits, many.commits) == (1, 1)
    # Workers commit without a sync: a power loss undoes whole steps, and those tasks run again.
    assert (few.syncs, many.syncs) == (0, 0)
    assert many.written <= BATCHES[1] * 900  # measured: 742 bytes a task


def test_a_worker_with_one_task_at_a_time_takes_one_transaction_a_task(
    meter: Meter, broker: Broker
) -> None:
    steps = Steps(broker, 5)
    steps.step(1)

    cost = meter.of(lambda: steps.step(1))

    assert cost.commits == 1
    assert cost.statements <= STEP, meter.statements


def test_a_call_on_an_idle_worker_is_two_transactions(meter: Meter, tmp_path: Path) -> None:
    add = call_of(tmp_path, "normal")
    worker = Worker(add.app, pool="threads", concurrency=1, install_signals=False)
    housekeeping = worker._housekeeping  # what is due by the clock is not counted
    housekeeping.upkeep = housekeeping.backstop = 60.0
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_until(lambda: worker.settled == 1)  # by then it stands by

    def call() -> None:
        add.delay(1, 2)
        wait_until(lambda: worker.settled == 2)

    cost = meter.of(call)
    worker.stop()
    thread.join(10)

    # The call and its settle: the worker stands by, so the call is stored as claimed. A claim
    # of its own would be six statements on a dozen pages more, all of which a commit of another
    # process has made stale.
    assert cost.commits == 2, meter.statements
    assert cost.statements <= 1 + STEP, meter.statements


def test_who_wakes_up_for_what_another_has_taken_keeps_nobody_waiting(
    meter: Meter, tmp_path: Path
) -> None:
    add = call_of(tmp_path, "normal")
    worker = Worker(add.app, pool="threads", concurrency=1, install_signals=False)
    worker._housekeeping.upkeep = worker._housekeeping.backstop = 60.0
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_until(lambda: worker.settled == 1)
    taken = add.apply_async((1, 2), countdown=0.5)
    wait_until(lambda: worker._next_due is not None and not worker._membership.look)
    taken.revoke()  # as good as claimed: nobody is told of it

    cost = meter.of(lambda: wait_until(lambda: worker._next_due is None))
    behind = worker._behind
    add.apply_async((1, 2), countdown=0.1)
    wait_until(lambda: worker.settled == 2)
    worker.stop()
    thread.join(10)

    # BEGIN, whether there is a line under a limit, when the next is due, COMMIT: of nothing.
    assert (cost.statements, cost.commits, cost.written) == (4, 0, 0), meter.statements
    assert 0 < behind <= 0.008, "it let others go first the next time"
    assert worker._behind == 0, "it was the first"


def test_a_step_takes_no_statement_more_for_each_queue(
    meter: Meter, broker: Broker, clock: FakeClock
) -> None:
    queues = [f"q{number}" for number in range(200)]
    worker = enlist(broker, *queues)

    def step() -> None:
        broker.step(worker, queues=queues, limit=10)

    assert meter.of(step).statements <= STEP, meter.statements
    for queue in queues[:5]:
        broker.enqueue([make(queue=queue, run_at=clock.now() + 1)])
    clock.advance(1)
    # One makes all claimable that has come due, and one looks for what is due next.
    assert meter.of(step).statements <= STEP + 2, meter.statements


def test_a_heartbeat_is_one_small_transaction(meter: Meter, broker: Broker) -> None:
    worker = enlist(broker)

    cost = meter.of(lambda: broker.beat(worker))

    # One says how long it stands by, and one is the trigger that sees whether it has come to
    # consume other queues.
    assert (cost.statements, cost.commits, cost.syncs) == (5, 1, 0), meter.statements


def test_an_idle_worker_looks_with_one_statement_that_writes_nothing(
    meter: Meter, broker: Broker
) -> None:
    broker.changed()

    cost = meter.of(broker.changed)

    assert (cost.statements, cost.commits, cost.written) == (1, 0, 0), meter.statements


def send_together(broker: Broker, number: int) -> None:
    broker.enqueue([make() for _ in range(number)])


def costs_of_steps(meter: Meter, broker: Broker) -> list[Cost]:
    steps = Steps(broker, 4 * max(BATCHES))
    costs = []
    for number in BATCHES:
        steps.step(number)
        costs.append(meter.of(partial(steps.step, number)))
    return costs


def assert_grows(few: Cost, many: Cost, *, each: float) -> None:
    """The second batch is twice the first: it may take so many more statements for each."""
    more = many.statements - few.statements
    assert more <= each * (BATCHES[1] - BATCHES[0]), f"{few} grew to {many}"


# The pool


class Trips(NamedTuple):
    parent: dict[str, int]
    child: dict[str, int]
    loaded: list[str]  # of what is heavy
    own: list[str]  # modules that the child has, and the parent has not


TASKS = 200
FRAMES = 35  # Python functions that a child calls for a task, its own included; measured: 31


def trips_of_a_worker(folder: Path, *fault: str) -> Trips:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, here / "cost_worker.py", folder, str(TASKS), *fault],
        env=uncovered() | {"PYTHONPATH": f"{here.parent}{os.pathsep}{here}"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    return Trips(**json.loads(done.stdout))


def assert_cheap(trips: Trips) -> None:
    """Tasks cross to the child together, each crosses back in one packet, and nothing is
    pickled."""
    parent, child = trips.parent, trips.child
    tasks = TASKS + 3  # two to begin with and one to count
    assert "pickles" not in parent, parent
    assert "pickles" not in child, child
    # The tasks of a round and their tokens: two packets. Those behind a task that waits for
    # the processor are taken back and sent again: on a busy machine some are.
    some = TASKS // 4
    assert parent["sends"] <= tasks, parent
    # One read takes all answers that have come, and a wake-up is drained once.
    assert parent["receives"] <= tasks + some, parent
    assert parent["poll"] <= tasks + some, parent
    # A lock and an unlock for a transaction, of which there are no more than tasks.
    assert parent["flock"] <= 2 * (tasks + some), parent
    # The child counts from its first task to its last, TASKS + 1, and a ping that follows a
    # task taken back: a token and an answer for each, and a read for those sent together.
    assert TASKS < child["receives"] <= 2 * (TASKS + 1), child
    assert TASKS < child["sends"] <= TASKS + 1 + some, child
    # Nearly all that a child does for a task is Python: a frame costs it 0.3 to 0.6 us.
    assert child["frames"] <= FRAMES * (TASKS + 1), child


def test_a_task_takes_few_packets_to_its_child_and_back(tmp_path: Path) -> None:
    assert_cheap(trips_of_a_worker(tmp_path))


def test_a_worker_loads_nothing_heavy_that_it_does_not_need(tmp_path: Path) -> None:
    # dill alone, which only spawned children need, was a third of a worker's start and 4 MB.
    # What each child imports for itself, the children do not share.
    trips = trips_of_a_worker(tmp_path)
    assert (trips.loaded, trips.own) == ([], [])


# The guard itself


def test_a_statement_more_for_each_task_is_caught(
    meter: Meter, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = Settling.settle

    def look_first(
        settling: Settling, settlements: Sequence[tuple[Lease, Outcome]]
    ) -> list[bool]:
        for lease, _ in settlements:
            settling.db.execute("SELECT state FROM message WHERE seq = ?", (lease.key,))
        return settle(settling, settlements)

    monkeypatch.setattr(Settling, "settle", look_first)
    few, many = costs_of_steps(meter, broker)

    with pytest.raises(AssertionError, match="grew to"):
        assert_grows(few, many, each=1 / 16)


def test_a_sync_in_a_step_is_caught(
    meter: Meter, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = broker._database.write

    def durably(body: Any, *, durable: bool, limited: bool = False) -> Any:
        return write(body, durable=True, limited=limited)

    monkeypatch.setattr(broker._database, "write", durably)

    assert costs_of_steps(meter, broker)[1].syncs == 1


def test_a_dear_condition_of_an_index_is_caught(meter: Meter, broker: Broker) -> None:
    broker._database.write(
        lambda db: db.execute("CREATE INDEX dear ON message(seq) WHERE state IN (7, 8, 9)"),
        durable=False,
    )

    few, many = costs_of_steps(meter, broker)

    assert many.instructions - few.instructions > INSTRUCTIONS * (BATCHES[1] - BATCHES[0])


def test_an_index_more_is_caught(meter: Meter, tmp_path: Path) -> None:
    add = call_of(tmp_path, "normal")
    add.app.broker._database.write(
        lambda db: db.execute("CREATE INDEX more ON message(task)"), durable=False
    )
    add.delay(1, 2)

    assert meter.of(lambda: add.delay(1, 2)).written > 3 * (4096 + 24)


@pytest.mark.parametrize("fault", ["pickle", "send"])
def test_more_between_parent_and_child_is_caught(tmp_path: Path, fault: str) -> None:
    trips = trips_of_a_worker(tmp_path, fault)

    with pytest.raises(AssertionError):
        assert_cheap(trips)
