"""What every broker promises. The numbers are those of the `Broker` docstring.

A test takes `broker`, a connection to a new store of each kind, or `store`, to open it
more than once. Time moves only when a test moves it.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import connection  # `select()` knows no descriptor above 1023
from pathlib import Path
from typing import Any

import apsw
import pytest
from world import START, FakeClock, Store, enlist, make, wait_until

from liteq import failure
from liteq.brokers.base import FINAL_STATES, ORDERS, Broker, Note, Rewrite, Schedule, Step
from liteq.brokers.values import ATTEMPTS_KEPT
from liteq.exceptions import (
    AlreadyEnqueued,
    EncodeError,
    LiteqError,
    TaskRevokedError,
    WorkerLostError,
)
from liteq.message import Edge, Message, Workflow
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
LATER_ERROR = failure.describe(ValueError("still no"))

EVERY_OUTCOME: dict[str, Callable[[FakeClock], Outcome]] = {
    "succeeded": lambda clock: Succeeded(b"42", 0.1),
    "retried": lambda clock: Retried(clock.now(), ERROR),
    "failed": lambda clock: Failed(ERROR),
    "dead": lambda clock: Failed(ERROR, dead="undecodable body"),
    "ignored": lambda clock: Ignored(),
    "revoked": lambda clock: Revoked("terminated"),
    "released": lambda clock: Released(),
    "lost": lambda clock: Lost("signal 9 (SIGKILL)"),
    "replaced": lambda clock: Replaced({"task": "shop.other", "body": b"[[1], {}]"}),
}
FINAL_OUTCOMES = ("succeeded", "failed", "dead", "ignored", "revoked")

any_outcome = pytest.mark.parametrize("kind", EVERY_OUTCOME)
final_outcome = pytest.mark.parametrize("kind", FINAL_OUTCOMES)


def state(broker: Broker, message: Message) -> str | None:
    """Return the state of a message, None if it is not in the store."""
    record = broker.get([message.id]).get(message.id)
    return record.state if record else None


def claimed(broker: Broker, worker: int, *queues: str, limit: int = 100) -> list[str]:
    """Claim, and return the ids in their order."""
    return [lease.id for lease in broker.claim(worker, queues or ("default",), limit)]


def put(broker: Broker, *messages: Message) -> Message:
    """Enqueue messages and return the first."""
    broker.enqueue(messages)
    return messages[0]


def silence(broker: Broker, clock: FakeClock) -> None:
    """Let time pass until every worker that did not beat meanwhile is given up."""
    clock.advance(broker.lease_timeout + 1)


# 1. Durable


def test_1_what_was_enqueued_is_there_when_the_store_is_opened_again(store: Store) -> None:
    if not store.shared:
        pytest.skip("a store in memory ends with its connection")
    first = store.open()
    message = put(first, make(queue="high", priority=7, headers={"a": [1, "é"]}))
    first.close()

    second = store.open()

    assert second.get([message.id])[message.id].message == message
    (lease,) = second.claim(enlist(second, "high"), ["high"])
    assert lease.message == message
    second.close()


def test_1_what_was_settled_is_there_when_the_store_is_opened_again(store: Store) -> None:
    if not store.shared:
        pytest.skip("a store in memory ends with its connection")
    first = store.open()
    message = put(first, make())
    worker = enlist(first)
    (lease,) = first.claim(worker, ["default"])
    first.settle(worker, lease, Succeeded(b"42"))
    first.close()

    second = store.open()

    assert second.get([message.id])[message.id].result == b"42"
    assert claimed(second, enlist(second)) == []
    second.close()


def test_1_two_connections_see_the_same_messages(store: Store) -> None:
    if not store.shared:
        pytest.skip("a store in memory has one connection")
    one, other = store.open(), store.open()
    message = put(one, make())

    (lease,) = other.claim(enlist(other), ["default"])

    assert lease.id == message.id
    assert state(one, message) == "running"
    one.close()
    other.close()


ENQUEUE_AND_DIE = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from world import FakeClock, Store, make
broker = Store(sys.argv[1], Path(sys.argv[3]), FakeClock()).open(durability="full")
for _ in range(20):
    message = make()
    broker.enqueue([message])
    os.write(1, f"{message.id}\\n".encode())
os.kill(os.getpid(), signal.SIGKILL)
"""

CLAIM_AND_WAIT = """
import os, sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from world import START, FakeClock, Store, enlist
broker = Store(sys.argv[1], Path(sys.argv[3]), FakeClock()).open()
worker = enlist(broker)
leases = broker.claim(worker, ["default"], 100)
os.write(1, f"{len(leases)}\\n".encode())
time.sleep(60)
"""


def run_script(script: str, store: Store) -> subprocess.Popen[str]:
    """Start a process that opens the store; its broker's clock stands at the start."""
    arguments = [store.kind, str(Path(__file__).parent.parent), str(store.folder)]
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.process
def test_1_what_was_enqueued_survives_the_death_of_the_producer(store: Store) -> None:
    if not store.shared:
        pytest.skip("a store in memory dies with its process")
    with run_script(ENQUEUE_AND_DIE, store) as producer:
        acknowledged = producer.communicate(timeout=30)[0].split()
    broker = store.open()

    found = claimed(broker, enlist(broker))

    assert producer.returncode == -signal.SIGKILL
    assert len(acknowledged) == 20
    assert found == acknowledged
    broker.close()


# 2. At least once


def test_2_a_message_of_a_silent_worker_is_delivered_again(
    broker: Broker, clock: FakeClock
) -> None:
    message = put(broker, make())
    silent = enlist(broker, name="silent")
    (first,) = broker.claim(silent, ["default"])
    silence(broker, clock)

    reclaimed = broker.reclaim()

    (second,) = broker.claim(enlist(broker), ["default"])
    assert reclaimed == 1
    assert second.id == message.id
    assert second.packed == first.packed
    assert (first.delivery, second.delivery) == (1, 2)
    assert second.token != first.token


def test_2_a_worker_that_beats_keeps_its_leases_however_long_the_task_runs(
    broker: Broker, clock: FakeClock
) -> None:
    put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    for _ in range(20):
        clock.advance(broker.lease_timeout * 0.9)
        assert broker.beat(worker)
        assert broker.reclaim() == 0

    assert broker.settle(worker, lease, Succeeded(b"1"))


def test_2_a_worker_is_not_given_up_before_the_lease_timeout(
    broker: Broker, clock: FakeClock
) -> None:
    put(broker, make())
    worker = enlist(broker)
    broker.claim(worker, ["default"])

    clock.advance(broker.lease_timeout - 1)

    assert broker.reclaim() == 0
    assert broker.beat(worker)


def test_2_a_step_of_the_wall_clock_takes_no_lease(broker: Broker, clock: FakeClock) -> None:
    put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    clock.step(+86_400)
    forwards = broker.reclaim()
    clock.step(-2 * 86_400)
    backwards = broker.reclaim()

    assert (forwards, backwards) == (0, 0)
    assert broker.settle(worker, lease, Succeeded(b"1"))


def test_2_only_the_silent_workers_leases_are_taken(broker: Broker, clock: FakeClock) -> None:
    put(broker, make(), make())
    silent, lively = enlist(broker, name="silent"), enlist(broker, name="lively")
    (lost,) = broker.claim(silent, ["default"])
    (kept,) = broker.claim(lively, ["default"])
    silence(broker, clock)
    broker.beat(lively)

    reclaimed = broker.reclaim()

    assert reclaimed == 1
    assert not broker.settle(silent, lost, Succeeded(b"1"))
    assert broker.settle(lively, kept, Succeeded(b"2"))


def test_2_the_caller_of_reclaim_is_never_thought_dead(
    broker: Broker, clock: FakeClock
) -> None:
    put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    silence(broker, clock)

    assert broker.reclaim(worker) == 0
    assert broker.settle(worker, lease, Succeeded(b"1"))


def test_2_a_lease_is_taken_back_once(broker: Broker, clock: FakeClock) -> None:
    message = put(broker, make())
    broker.claim(enlist(broker), ["default"])
    silence(broker, clock)

    assert broker.reclaim() == 1
    assert broker.reclaim() == 0
    assert broker.get([message.id])[message.id].deliveries == 1
    assert len(broker.attempts(message.id)) == 1


def test_2_a_worker_given_up_for_dead_is_told_so(broker: Broker, clock: FakeClock) -> None:
    worker = enlist(broker)
    silence(broker, clock)
    broker.reclaim()

    assert not broker.beat(worker)
    assert enlist(broker) != worker


def test_2_a_worker_given_up_for_dead_claims_nothing(broker: Broker, clock: FakeClock) -> None:
    worker = enlist(broker)
    silence(broker, clock)
    broker.reclaim()
    message = put(broker, make())

    step = broker.step(worker, queues=["default"], limit=1)

    assert step.leases == ()
    assert not step.alive
    assert claimed(broker, enlist(broker)) == [message.id]


def test_2_a_death_is_written_down_as_an_attempt(broker: Broker, clock: FakeClock) -> None:
    message = put(broker, make())
    broker.claim(enlist(broker), ["default"])
    started = clock.now()
    silence(broker, clock)
    broker.reclaim()

    (attempt,) = broker.attempts(message.id)

    assert attempt.number == 1
    assert attempt.outcome == "lost"
    assert attempt.started_at == started
    assert attempt.ended_at == clock.now()


def test_2_a_lost_child_gives_its_message_back_at_once(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    accepted = broker.settle(worker, lease, Lost("signal 9 (SIGKILL)"))

    (again,) = broker.claim(worker, ["default"])
    assert accepted
    assert again.id == message.id
    assert again.delivery == 2


def test_2_a_released_message_is_claimable_at_once_and_not_counted(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    for _ in range(10):
        (lease,) = broker.claim(worker, ["default"])
        assert lease.delivery == 1
        assert broker.settle(worker, lease, Released())

    assert state(broker, message) == "queued"
    assert broker.attempts(message.id) == []


def test_2_a_worker_that_leaves_gives_its_leases_back_uncounted(broker: Broker) -> None:
    message = put(broker, make())
    leaving = enlist(broker)
    (old,) = broker.claim(leaving, ["default"])

    broker.unregister(leaving)

    (lease,) = broker.claim(enlist(broker), ["default"])
    assert lease.id == message.id
    assert lease.delivery == 1
    assert not broker.settle(leaving, old, Succeeded(b"1"))


def test_2_nothing_is_disowned_while_the_store_has_forgotten_nothing(broker: Broker) -> None:
    worker = enlist(broker)
    put(broker, make())
    (lease,) = broker.claim(worker, ["default"])

    assert broker.disown(worker, lambda: [lease]) == 0

    assert broker.settle(worker, lease, Succeeded(b"1"))
    assert broker.disown(worker, list) == 0


@pytest.mark.process
def test_2_a_dead_workers_messages_are_delivered_again_at_once(store: Store) -> None:
    if not store.shared:
        pytest.skip("a store in memory dies with its process")
    broker = store.open()
    message = put(broker, make())
    with run_script(CLAIM_AND_WAIT, store) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        alive = broker.reclaim()
        process.kill()
    # The clock has not moved: the kernel alone says that the worker is gone.

    dead = broker.reclaim()

    (lease,) = broker.claim(enlist(broker), ["default"])
    assert (alive, dead) == (0, 1)
    assert (lease.id, lease.delivery) == (message.id, 2)
    broker.close()


@pytest.mark.process
def test_2_the_death_of_a_peer_is_seen_without_asking(store: Store) -> None:
    if not store.shared:
        pytest.skip("a store in memory has no other process")
    broker = store.open()
    put(broker, make())
    with run_script(CLAIM_AND_WAIT, store) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        peers = broker.peers()
        before = connection.wait(peers, 0)
        process.kill()
        after = connection.wait(peers, 10)

    assert before == []
    assert after or not peers  # an empty answer: this platform cannot say
    assert broker.reclaim() == 1
    for fd in peers:
        os.close(fd)
    broker.close()


# 3. One outcome


def test_3_only_the_lease_holder_may_settle(broker: Broker, clock: FakeClock) -> None:
    message = put(broker, make())
    paused, other = enlist(broker, name="paused"), enlist(broker, name="other")
    (old,) = broker.claim(paused, ["default"])
    silence(broker, clock)
    broker.beat(other)
    broker.reclaim()
    (new,) = broker.claim(other, ["default"])

    late = broker.settle(paused, old, Succeeded(b"old"))
    rightful = broker.settle(other, new, Succeeded(b"new"))

    assert (late, rightful) == (False, True)
    assert broker.get([message.id])[message.id].result == b"new"


@any_outcome
def test_3_a_stale_settle_changes_nothing(broker: Broker, clock: FakeClock, kind: str) -> None:
    message = put(broker, make())
    paused, other = enlist(broker, name="paused"), enlist(broker, name="other")
    (old,) = broker.claim(paused, ["default"])
    silence(broker, clock)
    broker.beat(other)
    broker.reclaim()
    (new,) = broker.claim(other, ["default"])
    before = broker.get([message.id]), broker.attempts(message.id), broker.counts()

    accepted = broker.settle(paused, old, EVERY_OUTCOME[kind](clock))

    assert not accepted
    assert (broker.get([message.id]), broker.attempts(message.id), broker.counts()) == before
    assert broker.settle(other, new, Succeeded(b"1"))


@pytest.mark.parametrize("second", EVERY_OUTCOME)
@pytest.mark.parametrize("first", FINAL_OUTCOMES)
def test_3_a_final_outcome_is_final(
    broker: Broker, clock: FakeClock, first: str, second: str
) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, EVERY_OUTCOME[first](clock))
    before = broker.get([message.id]), broker.attempts(message.id)
    clock.advance(1)

    broker.settle(worker, lease, EVERY_OUTCOME[second](clock))

    assert (broker.get([message.id]), broker.attempts(message.id)) == before
    assert claimed(broker, worker) == []


@pytest.mark.parametrize("kind", ["released", "lost", "retried"])
def test_3_a_lease_that_was_given_back_settles_nothing(
    broker: Broker, clock: FakeClock, kind: str
) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (old,) = broker.claim(worker, ["default"])
    broker.settle(worker, old, EVERY_OUTCOME[kind](clock))

    between = broker.settle(worker, old, Succeeded(b"old"))
    (new,) = broker.claim(worker, ["default"])
    after = broker.settle(worker, old, Succeeded(b"old"))

    assert (between, after) == (False, False)
    assert new.token != old.token
    assert state(broker, message) == "running"


def test_3_a_guessed_token_settles_nothing(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    forged = [lease._replace(token=token) for token in (0, 1, lease.token + 1)]

    assert [broker.settle(worker, lease, Succeeded(b"x")) for lease in forged] == [False] * 3
    assert state(broker, message) == "running"


def test_3_of_two_outcomes_in_one_step_the_first_counts(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    step = broker.step(worker, settlements=[(lease, Succeeded(b"1")), (lease, Failed(ERROR))])

    assert step.accepted[0] is True
    assert broker.get([message.id])[message.id].result == b"1"


def test_3_a_stale_settlement_does_not_spoil_its_neighbours(
    broker: Broker, clock: FakeClock
) -> None:
    put(broker, make(), make(), make())
    worker = enlist(broker)
    leases = broker.claim(worker, ["default"], 3)
    broker.settle(worker, leases[1], Released())

    step = broker.step(worker, settlements=[(lease, Succeeded(b"1")) for lease in leases])

    assert step.accepted == (True, False, True)


def test_3_of_many_settled_at_once_the_stale_are_refused(broker: Broker) -> None:
    broker.enqueue([make() for _ in range(50)])
    worker = enlist(broker)
    leases = broker.claim(worker, ["default"], 50)
    broker.settle(worker, leases[20], Released())
    [again] = broker.claim(enlist(broker), ["default"], 50)  # it runs elsewhere now
    assert again.id == leases[20].id

    many = [(one, Succeeded(b"%d" % number)) for number, one in enumerate(leases)]
    accepted = broker.step(worker, settlements=many).accepted

    assert accepted == tuple(number != 20 for number in range(50))
    found = broker.get([one.id for one in leases])
    wanted = [None if number == 20 else b"%d" % number for number in range(50)]
    assert [found[one.id].result for one in leases] == wanted
    assert found[again.id].state == "running"


def test_3_a_message_that_was_deleted_cannot_be_settled_again(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Succeeded(b"1"))
    broker.forget([message.id])

    broker.settle(worker, lease, Succeeded(b"2"))

    assert broker.get([message.id]) == {}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("succeeded", "succeeded"),
        ("failed", "failed"),
        ("dead", "failed"),
        ("ignored", "ignored"),
        ("revoked", "revoked"),
    ],
)
def test_3_a_final_outcome_is_in_the_record(
    broker: Broker, clock: FakeClock, kind: str, expected: str
) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    enqueued = clock.now()
    clock.advance(5)
    (lease,) = broker.claim(worker, ["default"])
    clock.advance(7)

    broker.settle(worker, lease, EVERY_OUTCOME[kind](clock))

    record = broker.get([message.id])[message.id]
    assert record.state == expected
    assert record.final
    assert record.enqueued_at == enqueued
    assert record.started_at == enqueued + 5
    assert record.settled_at == enqueued + 12
    assert record.deliveries == 1
    assert record.message == message
    assert record.result == {"succeeded": b"42", "failed": ERROR, "dead": ERROR}.get(kind)
    assert record.dead == ("undecodable body" if kind == "dead" else None)
    assert record.revoked == ("terminated" if kind == "revoked" else None)


# 4. One step


def test_4_an_outcome_and_what_follows_it_become_visible_together(broker: Broker) -> None:
    first, then = make(), make("shop.mail")
    broker.enqueue([first, then], [Edge(first.id, then.id, "success")])
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"], 10)

    step = broker.step(
        worker, settlements=[(lease, Succeeded(b'"ok"'))], queues=["default"], limit=10
    )

    assert [lease.id for lease in step.leases] == [then.id]
    (given,) = step.leases[0].inputs
    assert (given.source, given.kind, given.value) == (first.id, "result", b'"ok"')


def test_4_a_message_that_waits_for_another_is_not_claimed(broker: Broker) -> None:
    first, then = make(), make()
    broker.enqueue([first, then], [Edge(first.id, then.id, "success")])
    worker = enlist(broker)

    assert claimed(broker, worker) == [first.id]
    assert state(broker, then) == "waiting"
    assert claimed(broker, worker) == []


@pytest.mark.parametrize("kind", ["failed", "dead"])
def test_4_a_failure_starts_its_error_callback_and_cancels_the_others(
    broker: Broker, clock: FakeClock, kind: str
) -> None:
    first, good, bad = make(), make("good"), make("bad")
    edges = [Edge(first.id, good.id, "success"), Edge(first.id, bad.id, "failure")]
    broker.enqueue([first, good, bad], edges)
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.settle(worker, lease, EVERY_OUTCOME[kind](clock))

    (callback,) = broker.claim(worker, ["default"], 10)
    (given,) = callback.inputs
    assert callback.id == bad.id
    assert (given.source, given.kind, given.value) == (first.id, "error", ERROR)
    record = broker.get([good.id])[good.id]
    assert (record.state, record.result, record.revoked) == ("failed", ERROR, "upstream")


@pytest.mark.parametrize("kind", FINAL_OUTCOMES)
def test_4_every_callback_gets_a_final_state_or_its_turn(
    broker: Broker, clock: FakeClock, kind: str
) -> None:
    first, good, bad, further = make(), make("good"), make("bad"), make("further")
    edges = [
        Edge(first.id, good.id, "success"),
        Edge(first.id, bad.id, "failure"),
        Edge(good.id, further.id, "success"),
    ]
    broker.enqueue([first, good, bad, further], edges)
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.settle(worker, lease, EVERY_OUTCOME[kind](clock))
    while leases := broker.claim(worker, ["default"], 10):
        broker.step(worker, settlements=[(lease, Succeeded(b"1")) for lease in leases])

    records = broker.get([first.id, good.id, bad.id, further.id])
    assert {record.state for record in records.values()} <= FINAL_STATES
    ran = {record.message.task for record in records.values() if record.state == "succeeded"}
    assert ran == {
        "succeeded": {"shop.charge", "good", "further"},
        "failed": {"bad"},
        "dead": {"bad"},
        "revoked": {"bad"},  # it gets a TaskRevokedError
        "ignored": set(),
    }.get(kind)


@pytest.mark.parametrize("kind", ["retried", "released", "lost"])
def test_4_nothing_follows_an_attempt_that_was_not_the_last(
    broker: Broker, clock: FakeClock, kind: str
) -> None:
    first, good, bad = make(), make(), make()
    edges = [Edge(first.id, good.id, "success"), Edge(first.id, bad.id, "failure")]
    broker.enqueue([first, good, bad], edges)
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.settle(worker, lease, EVERY_OUTCOME[kind](clock))

    assert claimed(broker, worker) == [first.id]
    assert (state(broker, good), state(broker, bad)) == ("waiting", "waiting")


def test_4_a_stale_settle_starts_no_callback(broker: Broker) -> None:
    first, then = make(), make()
    broker.enqueue([first, then], [Edge(first.id, then.id, "success")])
    worker = enlist(broker)
    (old,) = broker.claim(worker, ["default"])
    broker.settle(worker, old, Released())

    broker.settle(worker, old, Succeeded(b"1"))

    assert state(broker, then) == "waiting"


def test_4_a_callback_of_two_messages_waits_for_both(broker: Broker) -> None:
    one, two, both = make(), make(), make()
    edges = [Edge(one.id, both.id, "success", 0), Edge(two.id, both.id, "success", 1)]
    broker.enqueue([one, two, both], edges)
    worker = enlist(broker)
    leases = {lease.id: lease for lease in broker.claim(worker, ["default"], 10)}

    broker.settle(worker, leases[two.id], Succeeded(b"2"))
    early = claimed(broker, worker)
    broker.settle(worker, leases[one.id], Succeeded(b"1"))

    (lease,) = broker.claim(worker, ["default"])
    assert early == []
    assert lease.id == both.id
    assert [(given.position, given.value) for given in lease.inputs] == [(0, b"1"), (1, b"2")]


def test_4_a_retried_callback_gets_its_input_again(broker: Broker, clock: FakeClock) -> None:
    first, then = make(), make()
    broker.enqueue([first, then], [Edge(first.id, then.id, "success")])
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Succeeded(b"7"))

    for kind in ("released", "lost", "retried"):
        (lease,) = broker.claim(worker, ["default"])
        broker.settle(worker, lease, EVERY_OUTCOME[kind](clock))

    (lease,) = broker.claim(worker, ["default"])
    assert [given.value for given in lease.inputs] == [b"7"]


def test_4_a_callback_keeps_its_own_time(broker: Broker, clock: FakeClock) -> None:
    first, then = make(), make(run_at=clock.now() + 100)
    broker.enqueue([first, then], [Edge(first.id, then.id, "success")])
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Succeeded(b"1"))

    early = claimed(broker, worker)
    clock.advance(101)
    broker.beat(worker)

    assert early == []
    assert claimed(broker, worker) == [then.id]


def test_4_a_chain_of_failures_reaches_its_end_in_one_step(broker: Broker) -> None:
    steps = [make() for _ in range(3_000)]
    edges = [
        Edge(one.id, following.id, "success") for one, following in itertools.pairwise(steps)
    ]
    broker.enqueue(steps, edges)
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.settle(worker, lease, Failed(ERROR))

    records = broker.get([step.id for step in steps])
    assert [records[step.id].state for step in steps] == ["failed"] * 3_000
    ended_so = [records[step.id].revoked for step in steps]
    assert ended_so == [None] + ["upstream"] * 2_999


def test_4_only_the_message_that_failed_starts_its_error_callback(broker: Broker) -> None:
    # A chain's link_error is put on each of its steps, and runs once.
    steps, callbacks = [make() for _ in range(3)], [make() for _ in range(3)]
    edges = [Edge(a.id, b.id, "success") for a, b in itertools.pairwise(steps)]
    edges += [Edge(a.id, b.id, "failure") for a, b in zip(steps, callbacks, strict=True)]
    broker.enqueue(steps + callbacks, edges)
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.settle(worker, lease, Failed(ERROR))

    assert claimed(broker, worker) == [callbacks[0].id]
    records = broker.get([message.id for message in steps[1:] + callbacks[1:]])
    assert {record.revoked for record in records.values()} == {"upstream"}


def test_4_what_waits_for_a_purged_message_ends_with_it(broker: Broker) -> None:
    first, then = make(queue="a"), make(queue="b")
    broker.enqueue([first, then], [Edge(first.id, then.id, "success")])

    broker.purge(["a"])

    assert state(broker, then) in {"revoked", None}


def test_4_what_waits_for_a_message_settled_from_outside_gets_its_turn(
    broker: Broker,
) -> None:
    first, then = make(), make()
    broker.enqueue([first, then], [Edge(first.id, then.id, "success")])

    broker.store(first.id, "SUCCESS", b"7")

    (lease,) = broker.claim(enlist(broker), ["default"], 10)
    assert lease.id == then.id
    assert [given.value for given in lease.inputs] == [b"7"]


@pytest.mark.parametrize("when", ["queued", "settled", "absent"])
def test_4_an_edge_from_a_message_enqueued_before_works_or_is_refused(
    broker: Broker, when: str
) -> None:
    first, then = make(), make()
    worker = enlist(broker)
    if when != "absent":
        broker.enqueue([first])
    if when == "settled":
        (lease,) = broker.claim(worker, ["default"])
        broker.settle(worker, lease, Succeeded(b"7"))

    try:
        broker.enqueue([then], [Edge(first.id, then.id, "success")])
    except (LiteqError, ValueError):
        assert broker.get([then.id]) == {}  # refused, so nothing waits for ever
        return

    while leases := broker.claim(worker, ["default"]):
        broker.settle(worker, leases[0], Succeeded(b"7"))
    assert state(broker, then) in FINAL_STATES


def test_4_a_repeated_enqueue_changes_nothing(broker: Broker, clock: FakeClock) -> None:
    first, then = make(), make()
    edges = [Edge(first.id, then.id, "success")]
    broker.enqueue([first, then], edges)
    worker = enlist(broker)

    broker.enqueue([first, then], edges)
    (lease,) = broker.claim(worker, ["default"], 10)
    broker.enqueue([first, then], edges)
    broker.settle(worker, lease, Succeeded(b"1"))
    broker.enqueue([first, then], edges)

    (lease,) = broker.claim(worker, ["default"], 10)
    assert lease.id == then.id
    assert [given.value for given in lease.inputs] == [b"1"]
    broker.settle(worker, lease, Succeeded(b"2"))
    broker.enqueue([first, then], edges)
    assert claimed(broker, worker) == []
    assert broker.get([then.id])[then.id].result == b"2"


def test_4_the_same_id_with_other_work_is_refused(broker: Broker) -> None:
    message = put(broker, make(body=b"[[1], {}]"))

    for changed in ({"body": b"[[2], {}]"}, {"task": "shop.refund"}):
        with pytest.raises(AlreadyEnqueued, match=message.id):
            broker.enqueue([message._replace(**changed)])

    assert broker.get([message.id])[message.id].message == message


def test_4_an_enqueue_that_is_refused_stores_nothing(broker: Broker) -> None:
    there, new = put(broker, make()), make()

    with pytest.raises(AlreadyEnqueued):
        broker.enqueue([new, there._replace(body=b"other")])

    assert broker.get([new.id]) == {}
    assert claimed(broker, enlist(broker)) == [there.id]


@pytest.mark.parametrize(
    "field",
    ["priority", "retries", "time_limit", "soft_time_limit", "max_deliveries", "run_at"],
)
def test_4_a_message_with_a_text_for_a_number_is_refused_as_a_whole(
    broker: Broker, field: str
) -> None:
    good, bad = make(), make(**{field: "soon"})

    with pytest.raises((TypeError, apsw.ConstraintError)):
        broker.enqueue([good, bad])

    assert broker.get([good.id, bad.id]) == {}
    assert claimed(broker, enlist(broker)) == []


def test_4_a_retried_message_may_be_enqueued_again_as_it_was(
    broker: Broker, clock: FakeClock
) -> None:
    message = put(broker, make(body=b"[[1], {}]"))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Retried(clock.now(), ERROR))

    broker.enqueue([message])

    assert len(claimed(broker, worker)) == 1


def test_4_a_settled_message_is_not_brought_back_by_its_repeated_enqueue(
    broker: Broker,
) -> None:
    message = put(broker, make())
    broker.revoke([message.id])

    broker.enqueue([message])

    assert state(broker, message) == "revoked"


# 5. Nothing is dropped


_HALF = "half \ud800"
_CALLS: dict[str, Callable[[Broker], Any]] = {
    "id": lambda broker: broker.enqueue([make(id=_HALF)]),
    "task": lambda broker: broker.enqueue([make(_HALF)]),
    "queue": lambda broker: broker.enqueue([make(queue=_HALF)]),
    "delayed": lambda broker: broker.enqueue([make(queue=_HALF, run_at=5.0)]),
    "limits": lambda broker: broker.enqueue([make(limits=_HALF)]),
    "unique key": lambda broker: broker.enqueue([make(unique_key=_HALF)]),
    "part of a graph": lambda broker: broker.enqueue([make(), make(queue=_HALF)], []),
    "get": lambda broker: broker.get([_HALF]),
    "revoke": lambda broker: broker.revoke([_HALF]),
    "redrive": lambda broker: broker.redrive([_HALF]),
    "pause": lambda broker: broker.pause(_HALF),
    "claim": lambda broker: broker.claim(enlist(broker), [_HALF]),
    "register": lambda broker: enlist(broker, name=_HALF),
}


@pytest.mark.parametrize("call", _CALLS)
def test_a_text_that_no_store_can_keep_is_named(broker: Broker, call: str) -> None:
    with pytest.raises(EncodeError, match=r"half \\ud800.*surrogate"):
        _CALLS[call](broker)
    assert broker.counts() == {}


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_5_a_message_that_kills_its_worker_becomes_a_dead_letter(
    broker: Broker, clock: FakeClock, limit: int
) -> None:
    message = put(broker, make(body=b"\x00poison", max_deliveries=limit))
    starts = 0
    for _ in range(10):
        starts += len(broker.claim(enlist(broker), ["default"]))
        silence(broker, clock)
        broker.reclaim()

    (record,) = broker.browse("dead")
    assert starts == limit
    assert record.id == message.id
    assert record.state == "failed"
    assert record.deliveries == limit
    assert record.dead
    assert record.message.body == b"\x00poison"
    assert record.result is not None
    assert isinstance(failure.rebuild(record.result), WorkerLostError)
    assert [attempt.outcome for attempt in broker.attempts(message.id)] == ["lost"] * limit


def test_5_a_message_that_kills_its_child_becomes_a_dead_letter(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    starts = 0
    while leases := broker.claim(worker, ["default"]):
        starts += 1
        broker.settle(worker, leases[0], Lost("signal 11 (SIGSEGV)"))

    (record,) = broker.browse("dead")
    assert starts == broker.max_deliveries
    assert record.id == message.id
    assert record.dead is not None
    assert record.result is not None
    assert "SIGSEGV" in str(failure.rebuild(record.result)) + record.dead


def test_5_a_retry_asked_for_is_no_death(broker: Broker, clock: FakeClock) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    for _ in range(20):
        (lease,) = broker.claim(worker, ["default"])
        assert broker.settle(worker, lease, Retried(clock.now(), ERROR))

    record = broker.get([message.id])[message.id]
    assert record.dead is None
    assert record.message.retries == 20
    assert len(claimed(broker, worker)) == 1


def test_5_a_dead_letter_starts_its_error_callback(broker: Broker) -> None:
    message, bad = make(max_deliveries=1), make("bad")
    broker.enqueue([message, bad], [Edge(message.id, bad.id, "failure")])
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.settle(worker, lease, Lost("signal 9 (SIGKILL)"))

    (callback,) = broker.claim(worker, ["default"])
    assert callback.id == bad.id
    assert isinstance(failure.rebuild(callback.inputs[0].value), WorkerLostError)


def test_5_what_cannot_be_read_is_kept_with_its_reason(broker: Broker) -> None:
    message = put(broker, make(body=b"\xff\xfe"))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.settle(worker, lease, Failed(ERROR, dead="undecodable body: not JSON"))

    (record,) = broker.browse("dead")
    assert record.dead == "undecodable body: not JSON"
    assert record.message == message


def test_5_a_plain_failure_is_no_dead_letter(broker: Broker) -> None:
    put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.settle(worker, lease, Failed(ERROR))

    assert broker.browse("dead") == []
    assert len(broker.browse("failed")) == 1


def test_5_an_unknown_task_is_left_for_a_worker_that_knows_it(broker: Broker) -> None:
    message = put(broker, make("new.task"))
    old, new = enlist(broker, name="old"), enlist(broker, name="new")

    nothing = broker.claim(old, ["default"], 10, tasks={"old.task"})
    parked = state(broker, message)
    leases = broker.claim(new, ["default"], 10, tasks={"old.task", "new.task"})

    assert nothing == ()
    assert parked == "parked"
    assert [(lease.id, lease.delivery) for lease in leases] == [(message.id, 1)]


def test_5_a_claim_names_what_it_met_and_did_not_take(broker: Broker, clock: FakeClock) -> None:
    unknown = put(broker, make("shop.newer"))
    expired = put(broker, make(expires_at=clock.now() + 5))
    taken = put(broker, make())
    clock.advance(6)
    worker = enlist(broker)

    step = broker.step(worker, queues=["default"], limit=10, tasks=["shop.charge"])

    assert [lease.id for lease in step.leases] == [taken.id]
    aside = {(lease.id, lease.task, why) for lease, why in step.aside}
    assert aside == {
        (unknown.id, "shop.newer", "parked"),
        (expired.id, "shop.charge", "expired"),
    }
    assert broker.step(worker, queues=["default"], limit=10, tasks=["shop.charge"]).aside == ()


@pytest.mark.parametrize("useless", ["unknown", "expired"])
def test_5_a_step_that_meets_too_much_to_put_aside_says_to_look_again(
    broker: Broker, clock: FakeClock, useless: str
) -> None:
    task = "unknown" if useless == "unknown" else "shop.known"
    expires_at = clock.now() + 1 if useless == "expired" else None
    put(broker, *[make(task, priority=1, expires_at=expires_at) for _ in range(1_200)])
    known = put(broker, make("shop.known"))
    worker = enlist(broker)
    clock.advance(2)

    def step() -> Step:
        return broker.step(worker, queues=["default"], limit=1, tasks={"shop.known"})

    steps = list(itertools.takewhile(lambda step: not step.leases, iter(step, None)))

    assert 1 < len(steps) <= 3
    assert all(one.next_due is not None and one.next_due <= clock.now() for one in steps)
    assert state(broker, known) == "running"
    assert step().next_due is None


def test_5_a_parked_message_is_claimed_where_any_task_will_do(broker: Broker) -> None:
    message = put(broker, make("new.task"))
    worker = enlist(broker)
    broker.claim(worker, ["default"], 10, tasks=set())

    assert claimed(broker, worker) == [message.id]


def test_5_unknown_tasks_are_no_obstacle_to_known_ones(broker: Broker) -> None:
    broker.enqueue([make("unknown", priority=9) for _ in range(300)])
    known = put(broker, make("known", priority=0))
    worker = enlist(broker)

    leases = [
        lease
        for _ in range(400)
        for lease in broker.claim(worker, ["default"], 1, tasks={"known"})
    ]

    assert [lease.id for lease in leases] == [known.id]


def test_5_a_message_whose_task_nobody_knows_becomes_a_dead_letter(
    store: Store, clock: FakeClock
) -> None:
    broker = store.open(unknown_expires=100)
    message, bad = make("unknown"), make("bad")
    broker.enqueue([message, bad], [Edge(message.id, bad.id, "failure")])
    worker = enlist(broker)
    broker.claim(worker, ["default"], tasks={"bad"})

    clock.advance(99)
    while broker.maintain():
        pass
    before = state(broker, message)
    clock.advance(2)
    while broker.maintain():
        pass

    (record,) = broker.browse("dead")
    assert before == "parked"
    assert (record.id, record.state) == (message.id, "failed")
    assert record.dead is not None
    assert "'unknown'" in record.dead
    worker = enlist(broker)
    assert [lease.id for lease in broker.claim(worker, ["default"], 9, {"bad"})] == [bad.id]
    broker.close()


def test_5_a_parked_message_is_not_given_up_for_having_waited_for_its_time(
    store: Store, clock: FakeClock
) -> None:
    broker = store.open(unknown_expires=100)
    message = put(broker, make("new.task", run_at=clock.now() + 1_000))
    clock.advance(1_001)
    broker.claim(enlist(broker), ["default"], tasks=set())

    while broker.maintain():
        pass

    assert state(broker, message) == "parked"
    broker.close()


def test_5_a_redriven_message_has_its_whole_time_to_meet_a_worker_that_knows_it(
    store: Store, clock: FakeClock
) -> None:
    broker = store.open(unknown_expires=100)
    message = put(broker, make("unknown"))
    broker.claim(enlist(broker), ["default"], tasks=set())
    clock.advance(101)
    while broker.maintain():
        pass
    assert broker.redrive([message.id]) == [message.id]
    broker.claim(enlist(broker), ["default"], tasks=set())

    while broker.maintain():
        pass

    assert state(broker, message) == "parked"
    broker.close()


def test_5_redrive_gives_a_dead_letter_a_fresh_start(broker: Broker) -> None:
    message = put(broker, make(max_deliveries=1))
    worker = enlist(broker)
    (old,) = broker.claim(worker, ["default"])
    broker.settle(worker, old, Lost("signal 9 (SIGKILL)"))

    redriven = broker.redrive([message.id, "no-such-id"])

    (lease,) = broker.claim(worker, ["default"])
    assert redriven == [message.id]
    assert (lease.id, lease.delivery, lease.message.retries) == (message.id, 1, 0)
    assert broker.browse("dead") == []
    assert not broker.settle(worker, old, Succeeded(b"old"))
    assert broker.settle(worker, lease, Succeeded(b"new"))
    assert broker.get([message.id])[message.id].result == b"new"


def test_5_a_redriven_message_was_never_put_back(broker: Broker) -> None:
    headers = {"requeued": 2, 'a "requeued":2,': '"requeued":2,'}
    message = put(broker, make(headers=headers, requeued=2, shadow="it"))
    plain = put(broker, make(requeued=11))
    worker = enlist(broker)
    for lease in broker.claim(worker, ["default"], limit=2):
        broker.settle(worker, lease, Failed(b"no"))

    broker.redrive([message.id, plain.id])

    found = [lease.message for lease in broker.claim(worker, ["default"], limit=2)]
    assert [one.requeued for one in found] == [0, 0]
    assert (found[0].headers, found[0].shadow) == (headers, "it")


def test_5_redrive_takes_failed_messages_and_no_others(broker: Broker) -> None:
    kinds = ("succeeded", "failed", "ignored", "revoked")
    messages = {kind: put(broker, make()) for kind in kinds}
    waiting = put(broker, make())
    worker = enlist(broker)
    leases = {lease.id: lease for lease in broker.claim(worker, ["default"], 4)}
    for kind, message in messages.items():
        broker.settle(worker, leases[message.id], EVERY_OUTCOME[kind](FakeClock()))

    redriven = broker.redrive([m.id for m in messages.values()] + [waiting.id])

    assert redriven == [messages["failed"].id]
    assert claimed(broker, worker) == [messages["failed"].id, waiting.id]


def test_5_a_redriven_message_that_fails_again_starts_its_error_callback_again(
    broker: Broker,
) -> None:
    message, bad = make(), make("bad")
    broker.enqueue([message, bad], [Edge(message.id, bad.id, "failure")])
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Failed(ERROR))
    (callback,) = broker.claim(worker, ["default"])
    broker.settle(worker, callback, Succeeded(b"1"))

    broker.redrive([message.id])
    waiting = state(broker, bad)
    (lease,) = broker.claim(worker, ["default"], 10)
    broker.settle(worker, lease, Failed(LATER_ERROR))

    (callback,) = broker.claim(worker, ["default"], 10)
    assert waiting == "waiting"
    assert (callback.id, callback.delivery) == (bad.id, 1)
    assert [given.value for given in callback.inputs] == [LATER_ERROR]


def test_5_purge_deletes_what_waits_and_not_what_runs_or_is_over(
    broker: Broker, clock: FakeClock
) -> None:
    running, done = make(priority=9), make(priority=9)
    broker.enqueue([running, done])
    worker = enlist(broker)
    leases = {lease.id: lease for lease in broker.claim(worker, ["default"], 2)}
    broker.settle(worker, leases[done.id], Succeeded(b"1"))
    queued, later, elsewhere = make(), make(run_at=clock.now() + 60), make(queue="other")
    broker.enqueue([queued, later, elsewhere])

    purged = broker.purge(["default"])

    assert purged == 2
    left = broker.get([m.id for m in (running, done, queued, later, elsewhere)])
    assert left.keys() == {running.id, done.id, elsewhere.id}
    assert broker.settle(worker, leases[running.id], Succeeded(b"2"))
    assert broker.purge() == 1


def test_5_purge_of_the_dead_deletes_dead_letters_only(broker: Broker) -> None:
    dead, failed, queued = make(priority=9), make(priority=9), make()
    broker.enqueue([dead, failed, queued])
    worker = enlist(broker)
    leases = {lease.id: lease for lease in broker.claim(worker, ["default"], 2)}
    broker.settle(worker, leases[dead.id], Failed(ERROR, dead="undecodable"))
    broker.settle(worker, leases[failed.id], Failed(ERROR))

    purged = broker.purge(dead=True)

    assert purged == 1
    assert broker.get([dead.id, failed.id, queued.id]).keys() == {failed.id, queued.id}


# 6. In time


def test_6_a_message_is_not_claimed_before_its_time(broker: Broker, clock: FakeClock) -> None:
    message = put(broker, make(run_at=clock.now() + 30))
    worker = enlist(broker)

    seen: list[list[str]] = []
    for _ in range(3):
        seen.append(claimed(broker, worker))
        clock.advance(14.9)
    clock.advance(0.1)

    assert seen == [[], [], []]
    assert claimed(broker, worker) == [message.id]


def test_6_a_message_that_waits_for_its_time_is_scheduled(
    broker: Broker, clock: FakeClock
) -> None:
    message = put(broker, make(run_at=clock.now() + 30))

    before = state(broker, message)
    clock.advance(31)
    step = broker.step(enlist(broker), queues=["default"], limit=0)

    assert before == "scheduled"
    assert step.leases == ()


def test_6_a_step_says_when_the_next_delayed_message_is_due(
    broker: Broker, clock: FakeClock
) -> None:
    worker = enlist(broker)
    nothing = broker.step(worker, queues=["default"], limit=1).next_due
    broker.enqueue([make(run_at=clock.now() + delay) for delay in (90, 30, 60)])

    due = broker.step(worker, queues=["default"], limit=1).next_due

    assert nothing is None
    assert due is not None
    assert clock.now() < due <= clock.now() + 30


def test_6_the_next_due_time_is_that_of_the_queues_asked_for(
    broker: Broker, clock: FakeClock
) -> None:
    broker.enqueue([make(queue="mine", run_at=clock.now() + 60)])
    broker.enqueue([make(queue="theirs", run_at=clock.now() + 5)])

    due = broker.step(enlist(broker), queues=["mine"], limit=1).next_due

    assert due == clock.now() + 60


def test_6_an_expired_message_is_never_claimed(broker: Broker, clock: FakeClock) -> None:
    message = put(broker, make(expires_at=clock.now() + 10))
    worker = enlist(broker)
    clock.advance(11)

    assert claimed(broker, worker) == []
    record = broker.get([message.id])[message.id]
    assert (record.state, record.revoked) == ("revoked", "expired")


def test_6_a_message_is_claimed_until_it_expires(broker: Broker, clock: FakeClock) -> None:
    message = put(broker, make(expires_at=clock.now() + 10))
    worker = enlist(broker)
    clock.advance(9.9)

    assert claimed(broker, worker) == [message.id]


def test_6_what_has_started_in_time_may_finish_after_it(
    broker: Broker, clock: FakeClock
) -> None:
    message = put(broker, make(expires_at=clock.now() + 10))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    clock.advance(20)

    while broker.maintain():
        pass

    assert broker.settle(worker, lease, Succeeded(b"1"))
    assert state(broker, message) == "succeeded"


@pytest.mark.parametrize("kind", ["retried", "released", "lost"])
def test_6_a_message_that_comes_back_too_late_is_not_started_again(
    broker: Broker, clock: FakeClock, kind: str
) -> None:
    message = put(broker, make(expires_at=clock.now() + 10))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    clock.advance(11)

    broker.settle(worker, lease, EVERY_OUTCOME[kind](clock))

    assert claimed(broker, worker) == []
    record = broker.get([message.id])[message.id]
    assert (record.state, record.revoked) == ("revoked", "expired")


def test_6_a_message_that_expires_before_its_time_is_never_started(
    broker: Broker, clock: FakeClock
) -> None:
    message = put(broker, make(run_at=clock.now() + 20, expires_at=clock.now() + 10))
    worker = enlist(broker)

    for _ in range(5):
        clock.advance(6)
        broker.beat(worker)
        assert claimed(broker, worker) == []
    while broker.maintain():
        pass

    assert state(broker, message) == "revoked"


def test_6_expired_messages_are_ended_though_nobody_claims(
    broker: Broker, clock: FakeClock
) -> None:
    queued = put(broker, make(expires_at=clock.now() + 10))
    later = put(broker, make(run_at=clock.now() + 5, expires_at=clock.now() + 10))
    clock.advance(11)

    while broker.maintain():
        pass

    assert (state(broker, queued), state(broker, later)) == ("revoked", "revoked")


def test_6_what_waits_for_an_expired_message_ends_with_it(
    broker: Broker, clock: FakeClock
) -> None:
    first, then = make(expires_at=clock.now() + 10), make()
    broker.enqueue([first, then], [Edge(first.id, then.id, "success")])
    clock.advance(11)

    assert claimed(broker, enlist(broker)) == []
    while broker.maintain():
        pass
    record = broker.get([then.id])[then.id]
    assert (record.state, record.revoked) == ("revoked", "upstream")


def test_6_a_retry_waits_for_its_time(broker: Broker, clock: FakeClock) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Retried(clock.now() + 30, ERROR))

    record = broker.get([message.id])[message.id]
    early = claimed(broker, worker)
    clock.advance(30)
    (lease,) = broker.claim(worker, ["default"])

    assert record.state == "retrying"
    assert record.result == ERROR
    assert early == []
    assert (lease.id, lease.delivery, lease.message.retries) == (message.id, 1, 1)


def test_6_a_retry_may_change_the_message(broker: Broker, clock: FakeClock) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    changes = {
        "body": b"[[2], {}]",
        "queue": "slow",
        "priority": 3,
        "expires_at": clock.now() + 500,
        "time_limit": 60.0,
        "soft_time_limit": 50.0,
        "envelope": message._replace(headers={"try": 2}).pack()[-1],
    }

    broker.settle(worker, lease, Retried(clock.now(), ERROR, changes))

    assert claimed(broker, worker, "default") == []
    (lease,) = broker.claim(worker, ["slow"])
    assert lease.message == message._replace(
        body=b"[[2], {}]",
        queue="slow",
        priority=3,
        expires_at=clock.now() + 500,
        time_limit=60.0,
        soft_time_limit=50.0,
        headers={"try": 2},
        retries=1,
        run_at=lease.message.run_at,
    )


def test_6_a_retry_that_is_told_its_count_keeps_it(broker: Broker, clock: FakeClock) -> None:
    put(broker, make(retries=4))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.settle(worker, lease, Retried(clock.now(), ERROR, {"retries": 4}))

    (lease,) = broker.claim(worker, ["default"])
    assert lease.message.retries == 4


# 7. In order


def test_7_the_oldest_goes_first(broker: Broker) -> None:
    ids = [put(broker, make()).id for _ in range(10)]
    batch = [make() for _ in range(10)]
    broker.enqueue(batch)

    assert claimed(broker, enlist(broker)) == ids + [message.id for message in batch]


def test_7_the_highest_priority_goes_first(broker: Broker) -> None:
    messages = [put(broker, make(priority=priority)) for priority in (0, 9, 3, 9, 0, 5, 3)]

    got = claimed(broker, enlist(broker))

    expected = sorted(messages, key=lambda message: -message.priority)  # stable: oldest first
    assert got == [message.id for message in expected]


def test_7_a_claim_takes_the_first_of_the_order_and_leaves_the_rest(broker: Broker) -> None:
    messages = [put(broker, make(priority=priority)) for priority in (0, 9, 3)]
    worker = enlist(broker)

    got = [claimed(broker, worker, limit=1) for _ in range(4)]

    assert got == [[messages[1].id], [messages[2].id], [messages[0].id], []]


def test_7_the_order_holds_over_all_the_queues_of_a_claim(broker: Broker) -> None:
    plan = [("a", 0), ("b", 0), ("c", 9), ("b", 9), ("a", 5), ("c", 0), ("a", 0)]
    messages = [put(broker, make(queue=queue, priority=p)) for queue, p in plan]
    worker = enlist(broker)

    got = claimed(broker, worker, "b", "a", "c")

    expected = sorted(messages, key=lambda message: -message.priority)
    assert got == [message.id for message in expected]


def test_7_a_limited_claim_keeps_the_order_over_queues(broker: Broker) -> None:
    plan = [("a", 0), ("b", 0), ("c", 9), ("b", 9), ("a", 5), ("c", 0), ("a", 0)]
    messages = [put(broker, make(queue=queue, priority=p)) for queue, p in plan]
    worker = enlist(broker)

    got = [claimed(broker, worker, "c", "b", "a", limit=2) for _ in range(4)]

    expected = [m.id for m in sorted(messages, key=lambda message: -message.priority)]
    assert got == [expected[0:2], expected[2:4], expected[4:6], expected[6:]]


@pytest.mark.parametrize("number", [100, 4_000])
def test_7_the_order_holds_over_any_number_of_queues(broker: Broker, number: int) -> None:
    queues = [f"q{n}" for n in range(number)]
    worker = enlist(broker, *queues)
    messages = [
        put(broker, make(queue=queue, priority=n % 10))
        for n, queue in enumerate(queues[:: number // 20])
    ]

    got = [claimed(broker, worker, *queues, limit=limit) for limit in (7, 100, 1)]

    expected = [m.id for m in sorted(messages, key=lambda message: -message.priority)]
    assert got == [expected[:7], expected[7:], []]


def test_7_an_idle_worker_may_have_thousands_of_queues(
    broker: Broker, clock: FakeClock
) -> None:
    queues = [f"q{n}" for n in range(4_000)]
    worker = enlist(broker, *queues)
    broker.step(worker, queues=queues, limit=1, idle=True)
    late = put(broker, make(queue="q3999", run_at=clock.now() + 1))
    put(broker, make(queue="q3998"))
    clock.advance(2)

    step = broker.step(worker, queues=queues, limit=2, idle=True)

    assert late.id in [lease.id for lease in step.leases]
    assert step.next_due is None


def test_7_a_claim_takes_only_from_the_queues_it_names(broker: Broker) -> None:
    mine = put(broker, make(queue="mine"))
    put(broker, make(queue="yours", priority=9))

    assert claimed(broker, enlist(broker), "mine", "empty") == [mine.id]


def test_7_a_claim_of_no_queue_or_of_none_takes_nothing(broker: Broker) -> None:
    put(broker, make())
    worker = enlist(broker)

    assert broker.claim(worker, [], 10) == ()
    assert broker.claim(worker, ["default"], 0) == ()


def test_7_a_queue_named_twice_is_claimed_once(broker: Broker) -> None:
    message = put(broker, make())

    assert claimed(broker, enlist(broker), "default", "default") == [message.id]


@pytest.mark.parametrize("name", ["", "with space", "ü", "a'b", '"', "%", "*", "x" * 200])
def test_7_a_queue_may_have_any_name(broker: Broker, name: str) -> None:
    message = put(broker, make(queue=name))
    worker = enlist(broker, name)

    assert claimed(broker, worker, name) == [message.id]


@pytest.mark.parametrize("kind", ["released", "lost"])
def test_7_a_message_given_back_keeps_its_place(
    broker: Broker, clock: FakeClock, kind: str
) -> None:
    messages = [put(broker, make()) for _ in range(3)]
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.settle(worker, lease, EVERY_OUTCOME[kind](clock))

    assert claimed(broker, worker) == [message.id for message in messages]


def test_7_a_due_message_takes_its_place_by_priority(broker: Broker, clock: FakeClock) -> None:
    later = put(broker, make(priority=5, run_at=clock.now() + 10))
    low, high = put(broker, make(priority=1)), put(broker, make(priority=9))
    clock.advance(11)

    assert claimed(broker, enlist(broker)) == [high.id, later.id, low.id]


def test_7_what_is_due_alone_goes_by_priority_and_then_by_age(
    broker: Broker, clock: FakeClock
) -> None:
    first = put(broker, make(run_at=clock.now() + 3))
    second = put(broker, make(run_at=clock.now() + 1))
    high = put(broker, make(priority=5, run_at=clock.now() + 2))
    later = put(broker, make(priority=9, run_at=clock.now() + 60))
    worker = enlist(broker)
    clock.advance(4)

    step = broker.step(worker, queues=["default"], limit=10)

    assert [lease.id for lease in step.leases] == [high.id, first.id, second.id]
    assert step.next_due == pytest.approx(later.run_at)


def test_7_however_much_is_due_at_once_goes_by_priority(
    broker: Broker, clock: FakeClock
) -> None:
    first = put(broker, make(queue="other", priority=1))
    delayed = [make(priority=n % 10, run_at=clock.now() + 9 - n % 7) for n in range(1_700)]
    put(broker, *delayed)
    last = put(broker, make(queue="other", priority=8))
    worker = enlist(broker, "default", "other")
    clock.advance(10)

    steps = [broker.step(worker, queues=["default", "other"], limit=600) for _ in range(8)]

    # All of it gets its place, a slice in each step, before any of it is claimed.
    before = list(itertools.takewhile(lambda step: not step.leases, steps))
    assert len(before) == 3
    assert all(one.next_due is not None and one.next_due <= clock.now() for one in before)
    expected = sorted([first, *delayed, last], key=lambda message: -message.priority)
    got = [lease.id for step in steps for lease in step.leases]
    assert got == [message.id for message in expected]


def test_7_what_ended_is_settled_while_much_is_due(broker: Broker, clock: FakeClock) -> None:
    running = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    put(broker, *[make(run_at=clock.now() + 1) for _ in range(501)])
    clock.advance(2)

    step = broker.step(
        worker, settlements=[(lease, Succeeded(b"1"))], queues=["default"], limit=1
    )

    assert (step.accepted, step.leases) == ((True,), ())
    assert state(broker, running) == "succeeded"


# 8. Revoked is revoked


def test_8_a_revoked_message_is_never_claimed(broker: Broker) -> None:
    message, other = put(broker, make()), put(broker, make())

    answer = broker.revoke([message.id])

    assert answer == {message.id: "revoked"}
    assert claimed(broker, enlist(broker)) == [other.id]
    record = broker.get([message.id])[message.id]
    assert (record.state, record.revoked, record.final) == ("revoked", "revoked", True)


def test_8_whatever_a_message_waits_for_it_can_be_revoked(
    broker: Broker, clock: FakeClock
) -> None:
    later = put(broker, make(run_at=clock.now() + 10))
    retrying = put(broker, make(priority=9))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Retried(clock.now() + 10, ERROR))
    parked = put(broker, make("unknown", priority=9))
    broker.claim(worker, ["default"], tasks=set())
    first, waiting = make(queue="other"), make()
    broker.enqueue([first, waiting], [Edge(first.id, waiting.id, "success")])
    ids = [message.id for message in (later, retrying, parked, waiting)]

    answers = broker.revoke(ids)

    clock.advance(20)
    assert answers == dict.fromkeys(ids, "revoked")
    assert claimed(broker, worker) == []
    assert {record.state for record in broker.get(ids).values()} == {"revoked"}
    (lease,) = broker.claim(worker, ["other"])
    assert broker.settle(worker, lease, Succeeded(b"1"))
    assert claimed(broker, worker) == []


def test_8_a_revoke_outlives_every_worker(store: Store, clock: FakeClock) -> None:
    if not store.shared:
        pytest.skip("a store in memory ends with its connection")
    first = store.open()
    message = put(first, make(run_at=clock.now() + 10))
    first.revoke([message.id])
    first.close()
    clock.advance(20)

    second = store.open()

    assert claimed(second, enlist(second)) == []
    assert state(second, message) == "revoked"
    second.close()


def test_8_a_revoked_message_that_runs_may_finish(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    answer = broker.revoke([message.id])

    assert answer == {message.id: "running"}
    assert broker.settle(worker, lease, Succeeded(b"1"))
    assert state(broker, message) == "succeeded"


@pytest.mark.parametrize("kind", ["retried", "lost", "released"])
def test_8_a_message_revoked_while_it_runs_gets_no_further_attempt(
    broker: Broker, clock: FakeClock, kind: str
) -> None:
    message, then = make(), make()
    broker.enqueue([message, then], [Edge(message.id, then.id, "success")])
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.revoke([message.id])

    accepted = broker.settle(worker, lease, EVERY_OUTCOME[kind](clock))

    assert accepted
    assert claimed(broker, worker) == []
    assert (state(broker, message), state(broker, then)) == ("revoked", "revoked")


def test_8_a_message_revoked_while_it_ran_is_not_delivered_again(
    broker: Broker, clock: FakeClock
) -> None:
    message = put(broker, make())
    broker.claim(enlist(broker), ["default"])
    broker.revoke([message.id])
    silence(broker, clock)

    broker.reclaim()

    assert claimed(broker, enlist(broker)) == []
    assert state(broker, message) == "revoked"


def test_8_a_worker_leaving_does_not_bring_a_revoked_message_back(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    broker.claim(worker, ["default"])
    broker.revoke([message.id])

    broker.unregister(worker)

    assert claimed(broker, enlist(broker)) == []
    assert state(broker, message) == "revoked"


def test_8_a_worker_is_told_to_end_the_run_of_a_terminated_message(broker: Broker) -> None:
    message, other = put(broker, make()), put(broker, make())
    mine, theirs = enlist(broker, name="mine"), enlist(broker, name="theirs")
    (lease,) = broker.claim(mine, ["default"])
    (spared,) = broker.claim(theirs, ["default"])
    before = broker.step(mine).terminate

    answer = broker.revoke([message.id], terminate="SIGKILL")

    assert answer == {message.id: "signalled"}
    assert before == {}
    assert broker.step(theirs).terminate == {}
    assert broker.step(mine).terminate == {lease.key: "SIGKILL"}
    assert broker.settle(mine, lease, Revoked("terminated"))
    assert broker.step(mine).terminate == {}
    assert broker.settle(theirs, spared, Succeeded(b"1"))
    assert broker.get([message.id])[message.id].revoked == "terminated"
    assert state(broker, other) == "succeeded"


@pytest.mark.parametrize("signal", ["SIGTERM", None])
def test_8_workers_are_woken_with_the_order_to_end_a_run(
    broker: Broker, signal: str | None
) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    mailbox = broker.mailbox(worker)
    mailbox.receive()

    broker.revoke([message.id], terminate=signal)

    assert ORDERS in mailbox.wait(5)
    # Without a signal it is to be ended only if it has not started.
    assert broker.step(worker).terminate == {lease.key: signal or "revoked"}
    mailbox.close()


def test_8_a_plain_revoke_does_not_weaken_one_that_terminates(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.revoke([message.id], terminate="SIGTERM")
    broker.revoke([message.id])

    assert broker.step(worker).terminate == {lease.key: "SIGTERM"}
    broker.settle(worker, lease, Revoked("terminated"))
    assert broker.step(worker).terminate == {}


def test_8_a_revoke_can_be_made_stronger(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    answers = [
        broker.revoke([message.id])[message.id],
        broker.revoke([message.id], terminate="SIGTERM")[message.id],
    ]

    assert answers == ["running", "signalled"]
    assert broker.step(worker).terminate == {lease.key: "SIGTERM"}


def test_8_a_revoke_is_not_made_weaker_by_another(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.revoke([message.id], terminate="SIGTERM")
    broker.revoke([message.id])

    assert broker.step(worker).terminate == {lease.key: "SIGTERM"}


@final_outcome
def test_8_what_is_over_is_not_revoked(broker: Broker, clock: FakeClock, kind: str) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, EVERY_OUTCOME[kind](clock))
    before = broker.get([message.id])

    answer = broker.revoke([message.id, "no-such-id"], terminate="SIGTERM")

    assert answer == {message.id: "settled", "no-such-id": "unknown"}
    assert broker.get([message.id]) == before


def test_8_what_waits_for_a_revoked_message_ends_with_it(broker: Broker) -> None:
    first, then, last, bad = make(), make(), make(), make()
    edges = [
        Edge(first.id, then.id, "success"),
        Edge(then.id, last.id, "success"),
        Edge(first.id, bad.id, "failure"),
    ]
    broker.enqueue([first, then, last, bad], edges)

    broker.revoke([first.id])

    records = broker.get([then.id, last.id])
    assert [record.revoked for record in records.values()] == ["upstream", "upstream"]
    (lease,) = broker.claim(enlist(broker), ["default"], 10)
    assert lease.id == bad.id
    assert isinstance(failure.rebuild(lease.inputs[0].value), TaskRevokedError)


# 11. At most once, if asked


def test_11_a_worker_that_leaves_gives_no_second_start_away(broker: Broker) -> None:
    message = put(broker, make(acks_late=False))
    worker = enlist(broker)
    broker.claim(worker, ["default"])

    broker.unregister(worker)

    assert claimed(broker, enlist(broker)) == []
    assert broker.get([message.id])[message.id].state == "failed"


def test_11_a_message_acknowledged_early_is_not_delivered_again(
    broker: Broker, clock: FakeClock
) -> None:
    message = put(broker, make(acks_late=False))
    broker.claim(enlist(broker), ["default"])
    silence(broker, clock)

    broker.reclaim()

    assert claimed(broker, enlist(broker)) == []
    record = broker.get([message.id])[message.id]
    assert record.state == "failed"
    assert record.result is not None
    assert isinstance(failure.rebuild(record.result), WorkerLostError)


def test_11_a_lost_child_ends_a_message_acknowledged_early(broker: Broker) -> None:
    message, bad = make(acks_late=False), make("bad")
    broker.enqueue([message, bad], [Edge(message.id, bad.id, "failure")])
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.settle(worker, lease, Lost("signal 9 (SIGKILL)"))

    record = broker.get([message.id])[message.id]
    assert record.state == "failed"
    assert record.result is not None
    assert isinstance(failure.rebuild(record.result), WorkerLostError)
    assert claimed(broker, worker) == [bad.id]


def test_11_a_message_acknowledged_early_may_still_ask_for_a_retry(
    broker: Broker, clock: FakeClock
) -> None:
    message = put(broker, make(acks_late=False))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.settle(worker, lease, Retried(clock.now(), ERROR))

    assert claimed(broker, worker) == [message.id]


def test_11_a_message_acknowledged_early_that_was_not_started_goes_back(
    broker: Broker,
) -> None:
    message = put(broker, make(acks_late=False))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.settle(worker, lease, Released())  # said by a worker that knows it never began

    assert claimed(broker, worker) == [message.id]


# Workers


def test_every_registration_has_an_id_of_its_own(broker: Broker) -> None:
    first = enlist(broker, name="same")
    second = enlist(broker, name="same")
    broker.unregister(second)
    third = enlist(broker, name="same")

    assert len({first, second, third}) == 3


def test_workers_are_listed_while_they_live(broker: Broker, clock: FakeClock) -> None:
    started = clock.now()
    worker = broker.register("w1@host", ["a", "b"], 4, {"version": "1"})
    gone = enlist(broker, name="gone")
    broker.unregister(gone)
    clock.advance(7)

    (entry,) = broker.workers()

    assert (entry.id, entry.name, entry.queues) == (worker, "w1@host", ("a", "b"))
    assert (entry.concurrency, entry.pid) == (4, os.getpid())
    assert entry.details == {"version": "1"}
    assert entry.started_at == started
    assert entry.beat_age == 7


def test_a_beat_may_bring_news_of_the_worker(broker: Broker, clock: FakeClock) -> None:
    worker = broker.register("w1", ["a"], 4, {"done": 0})
    clock.advance(7)

    broker.beat(worker, {"done": 12})

    (entry,) = broker.workers()
    assert entry.details == {"done": 12}
    assert entry.beat_age == 0


def test_a_worker_given_up_for_dead_is_not_listed(broker: Broker, clock: FakeClock) -> None:
    enlist(broker)
    silence(broker, clock)

    broker.reclaim()

    assert broker.workers() == []


def test_a_beat_of_nobody_is_answered_no(broker: Broker) -> None:
    worker = enlist(broker)
    broker.unregister(worker)

    assert not broker.beat(worker)
    assert not broker.beat(987_654)


def test_2_a_worker_that_is_not_registered_claims_nothing(broker: Broker) -> None:
    left = enlist(broker)
    broker.unregister(left)
    broker.enqueue([make()])

    assert not broker.claim(left, ["default"])
    assert not broker.claim(987_654, ["default"])
    assert not broker.step(987_654, queues=["default"], limit=1, idle=True).alive

    assert len(broker.claim(enlist(broker), ["default"])) == 1


def test_leaving_twice_is_no_error(broker: Broker) -> None:
    worker = enlist(broker)

    broker.unregister(worker)
    broker.unregister(worker)

    assert broker.workers() == []


# Notes


def test_a_running_task_may_report_its_state(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.step(worker, notes=[(lease, Note("PROGRESS", b"1")), (lease, Note("HALF", b"2"))])

    record = broker.get([message.id])[message.id]
    assert record.state == "running"
    assert record.note == Note("HALF", b"2")


def test_3_a_stale_holders_report_is_not_taken(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (old,) = broker.claim(worker, ["default"])
    broker.settle(worker, old, Released())
    broker.claim(worker, ["default"])

    broker.step(worker, notes=[(old, Note("PROGRESS", b"1"))])

    assert broker.get([message.id])[message.id].note is None


@any_outcome
def test_a_report_ends_with_its_attempt(broker: Broker, clock: FakeClock, kind: str) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.step(worker, notes=[(lease, Note("PROGRESS", b"1"))])

    broker.settle(worker, lease, EVERY_OUTCOME[kind](clock))

    assert broker.get([message.id])[message.id].note is None


def test_a_report_that_comes_with_the_outcome_does_not_outlive_it(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    step = broker.step(
        worker,
        settlements=[(lease, Succeeded(b"1"))],
        notes=[(lease, Note("PROGRESS", b"1"))],
    )

    assert step.accepted == (True,)
    assert state(broker, message) == "succeeded"
    assert broker.get([message.id])[message.id].result == b"1"


@pytest.mark.parametrize("end", [Lost("it died"), Released(), Retried(0.0, ERROR)])
def test_a_message_is_delivered_again_with_the_envelope_that_its_task_gave_it(
    broker: Broker, end: Outcome
) -> None:
    message = put(broker, make(headers={"tenant": "a"}))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    kept = message._replace(checkpoint="7")

    broker.step(
        worker,
        notes=[
            (lease, Note("PROGRESS", b"1")),
            (lease, Rewrite(message._replace(checkpoint="6").pack()[-1])),
        ],
    )
    assert broker.get([message.id])[message.id].note == Note("PROGRESS", b"1")
    broker.step(worker, notes=[(lease, Rewrite(kept.pack()[-1]))], settlements=[(lease, end)])

    (again,) = broker.claim(worker, ["default"])
    assert again.message.pack()[-1] == kept.pack()[-1]
    assert broker.get([message.id])[message.id].message.checkpoint == "7"


def test_a_state_without_a_name_is_a_state(broker: Broker) -> None:
    message = put(broker, make(headers={"tenant": "a"}))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.step(worker, notes=[(lease, Note("", b"1"))])

    record = broker.get([message.id])[message.id]
    assert (record.note, record.message) == (Note("", b"1"), message)


def test_a_message_without_an_envelope_gets_one_and_loses_it(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    seen = []

    for checkpoint in ("7", None):
        (lease,) = broker.claim(worker, ["default"])
        envelope = message._replace(checkpoint=checkpoint).pack()[-1]
        broker.step(worker, notes=[(lease, Rewrite(envelope))])
        broker.settle(worker, lease, Released())
        seen.append(broker.get([message.id])[message.id].message.checkpoint)

    assert seen == ["7", None]
    (lease,) = broker.claim(worker, ["default"])
    assert lease.message == message


def test_3_a_stale_holder_gives_its_message_no_envelope(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (old,) = broker.claim(worker, ["default"])
    broker.settle(worker, old, Released())
    (new,) = broker.claim(worker, ["default"])
    late = Rewrite(message._replace(checkpoint="7").pack()[-1])

    broker.step(worker, notes=[(old, late)])
    assert broker.get([message.id])[message.id].message == message

    broker.settle(worker, new, Succeeded(b"1"))
    broker.step(worker, notes=[(new, late)])
    assert broker.get([message.id])[message.id].message == message


# Looking


def test_what_is_not_there_is_not_returned(broker: Broker) -> None:
    message = put(broker, make())

    assert broker.get([]) == {}
    assert broker.get(["no-such-id", message.id]).keys() == {message.id}
    assert broker.attempts("no-such-id") == []


def test_many_records_are_returned_at_once(broker: Broker) -> None:
    messages = [make() for _ in range(5_000)]
    broker.enqueue(messages)

    assert broker.get([message.id for message in messages]).keys() == {m.id for m in messages}


def test_attempts_are_listed_oldest_first(broker: Broker, clock: FakeClock) -> None:
    message = put(broker, make())
    worker = enlist(broker, name="w7")
    for outcome in (Retried(clock.now(), b'"1"'), Lost("gone"), Failed(ERROR)):
        (lease,) = broker.claim(worker, ["default"])
        broker.settle(worker, lease, outcome)
        clock.advance(1)

    attempts = broker.attempts(message.id)

    now = clock.now()
    assert [attempt.started_at for attempt in attempts] == [now - 3, now - 2, now - 1]
    assert [attempt.outcome for attempt in attempts] == ["retried", "lost", "failed"]
    assert [attempt.number for attempt in attempts] == [1, 2, 3]
    assert attempts[0].error == b'"1"'
    assert attempts[2].error == ERROR
    assert {attempt.worker for attempt in attempts} == {"w7"}


def test_the_latest_attempts_are_kept(broker: Broker, clock: FakeClock) -> None:
    first, worker = make(body=b"first"), enlist(broker)
    broker.enqueue([first])
    for number in range(1, ATTEMPTS_KEPT + 4):
        (lease,) = broker.claim(worker, ["default"])
        error = f'"{number}"'.encode()
        broker.settle(worker, lease, Retried(clock.now(), error, {"body": b"next"}))

    numbers = list(range(4, ATTEMPTS_KEPT + 4))
    attempts = broker.attempts(first.id)
    assert [attempt.number for attempt in attempts] == numbers
    assert [attempt.error for attempt in attempts] == [f'"{n}"'.encode() for n in numbers]
    broker.enqueue([first])  # the same call again: it is still known to be another now


def test_a_call_that_was_retried_before_its_latest_attempts_may_be_sent_again(
    broker: Broker, clock: FakeClock
) -> None:
    message = put(broker, make(body=b"first", max_deliveries=ATTEMPTS_KEPT + 5))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Retried(clock.now(), b"{}", {"body": b"next"}))
    for _ in range(ATTEMPTS_KEPT):
        (lease,) = broker.claim(worker, ["default"])
        broker.settle(worker, lease, Lost("gone"))

    assert {attempt.outcome for attempt in broker.attempts(message.id)} == {"lost"}
    broker.enqueue([message])

    assert [lease.id for lease in broker.claim(worker, ["default"])] == [message.id]


def test_messages_are_browsed_by_state_and_queue_oldest_first(
    broker: Broker, clock: FakeClock
) -> None:
    queued = [put(broker, make(queue=queue)) for queue in ("a", "b", "a", "a")]
    later = put(broker, make(queue="a", run_at=clock.now() + 9))
    ids = [message.id for message in queued]

    assert [record.id for record in broker.browse("queued")] == ids
    assert [r.id for r in broker.browse("queued", queue="a")] == [ids[0], *ids[2:]]
    assert [r.id for r in broker.browse("queued", queue="a", limit=2)] == [ids[0], ids[2]]
    assert [record.id for record in broker.browse("scheduled")] == [later.id]
    assert broker.browse("running") == []


def test_every_state_can_be_browsed(broker: Broker, clock: FakeClock) -> None:
    worker = enlist(broker)
    outcomes = {
        "retrying": Retried(clock.now() + 60, ERROR),
        "succeeded": Succeeded(b"1"),
        "failed": Failed(ERROR),
        "revoked": Revoked("terminated"),
        "ignored": Ignored(),
    }
    ids: dict[Any, str] = {}
    for name, outcome in outcomes.items():
        ids[name] = put(broker, make()).id
        (lease,) = broker.claim(worker, ["default"])
        broker.settle(worker, lease, outcome)
    ids["running"] = put(broker, make()).id
    broker.claim(worker, ["default"])
    ids["parked"] = put(broker, make("unknown")).id
    broker.claim(worker, ["default"], tasks=set())
    ids["scheduled"] = put(broker, make(run_at=clock.now() + 60)).id
    ids["queued"] = put(broker, make()).id
    waiting = make()
    broker.enqueue([waiting], [Edge(ids["queued"], waiting.id, "success")])
    ids["waiting"] = waiting.id

    assert {name: [r.id for r in broker.browse(name)] for name in ids} == {
        name: [id_] for name, id_ in ids.items()
    }


def test_unfinished_messages_are_counted_by_queue_and_state(
    broker: Broker, clock: FakeClock
) -> None:
    empty = broker.counts()
    broker.enqueue([make(queue="a"), make(queue="a"), make(queue="b", run_at=clock.now() + 9)])
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["a"])
    running = broker.counts()
    broker.settle(worker, lease, Succeeded(b"1"))

    def without_zeros(counts: Any) -> Any:
        return {
            queue: {name: n for name, n in states.items() if n}
            for queue, states in counts.items()
            if any(states.values())
        }

    assert without_zeros(empty) == {}
    assert without_zeros(running) == {"a": {"running": 1, "queued": 1}, "b": {"scheduled": 1}}
    assert without_zeros(broker.counts()) == {"a": {"queued": 1}, "b": {"scheduled": 1}}


# Results


def test_who_watches_is_woken_when_a_message_settles(broker: Broker) -> None:
    message, other = put(broker, make()), put(broker, make())
    worker = enlist(broker)
    leases = broker.claim(worker, ["default"], 2)
    mailbox = broker.mailbox()
    settled = broker.watch([message.id], mailbox)

    broker.settle(worker, leases[1], Succeeded(b"2"))
    broker.settle(worker, leases[0], Succeeded(b"1"))

    assert settled == {}
    woken = wait_until(lambda: mailbox.wait(0.2))
    assert woken <= {message.id, ""}
    assert state(broker, other) == "succeeded"
    mailbox.close()


def test_who_watches_notes_is_woken_by_each_and_others_are_not(broker: Broker) -> None:
    worker, message = enlist(broker), put(broker, make())
    listener, waiter = broker.mailbox(), broker.mailbox()
    broker.watch([message.id], listener, notes=True)
    broker.watch([message.id], waiter)
    (lease,) = broker.claim(worker, ["default"])

    for number in (b"1", b"2"):
        broker.step(worker, notes=[(lease, Note("PROGRESS", number))])
        assert message.id in listener.wait(5)
    told_early = message.id in waiter.receive()
    broker.settle(worker, lease, Succeeded(b"1"))

    assert not told_early
    assert message.id in listener.wait(5)
    assert message.id in waiter.wait(5)
    listener.close()
    waiter.close()


def test_who_waits_in_another_thread_is_woken(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    mailbox = broker.mailbox()
    broker.watch([message.id], mailbox)
    thread = threading.Thread(target=broker.settle, args=(worker, lease, Succeeded(b"1")))

    thread.start()

    assert wait_until(lambda: mailbox.wait(10)) <= {message.id, ""}
    thread.join()
    mailbox.close()


def test_no_end_falls_between_the_look_of_who_watches_and_the_watch(broker: Broker) -> None:
    messages = [put(broker, make()) for _ in range(200)]
    worker = enlist(broker)
    leases = broker.claim(worker, ["default"], len(messages))
    mailbox = broker.mailbox()
    together = threading.Barrier(2)

    def settle() -> None:
        for lease in leases:
            together.wait(10)
            broker.settle(worker, lease, Succeeded(b"1"))

    thread = threading.Thread(target=settle)
    thread.start()
    lost = []
    for message in messages:
        together.wait(10)
        if message.id in broker.watch([message.id], mailbox):
            continue
        heard: set[str] = set()
        while message.id not in heard and (words := mailbox.wait(5)):
            heard |= words
        if message.id not in heard:
            lost.append(message)
    thread.join()

    assert lost == []
    mailbox.close()


def test_what_has_settled_is_returned_by_watch_itself(broker: Broker) -> None:
    done, running = put(broker, make()), put(broker, make())
    worker = enlist(broker)
    leases = broker.claim(worker, ["default"], 2)
    broker.settle(worker, leases[0], Succeeded(b"1"))
    mailbox = broker.mailbox()

    settled = broker.watch([done.id, running.id, "no-such-id"], mailbox)

    assert settled.keys() == {done.id}
    assert settled[done.id].result == b"1"
    mailbox.close()


@pytest.mark.parametrize("how", ["revoke", "expire", "upstream", "die", "store"])
def test_however_a_message_ends_its_watcher_is_woken(
    broker: Broker, clock: FakeClock, how: str
) -> None:
    first = make(max_deliveries=1, expires_at=clock.now() + 10 if how == "expire" else None)
    then = make()
    broker.enqueue([first, then], [Edge(first.id, then.id, "success")])
    watched = then if how == "upstream" else first
    mailbox = broker.mailbox()
    assert broker.watch([watched.id], mailbox) == {}

    match how:
        case "revoke" | "upstream":
            broker.revoke([first.id])
        case "expire":
            clock.advance(11)
            while broker.maintain():
                pass
        case "die":
            broker.claim(enlist(broker), ["default"])
            silence(broker, clock)
            broker.reclaim()
        case "store":
            broker.store(first.id, "SUCCESS", b"1")

    assert watched.id in wait_until(lambda: mailbox.wait(0.2))
    assert broker.get([watched.id])[watched.id].final
    mailbox.close()


def test_a_workers_mailbox_is_woken_by_new_work(broker: Broker) -> None:
    worker = enlist(broker)
    mailbox = broker.mailbox(worker)
    mailbox.receive()

    put(broker, make())

    assert wait_until(lambda: mailbox.wait(0.2)) == {""}
    mailbox.close()


def test_what_a_worker_makes_claimable_and_claims_wakes_no_other(broker: Broker) -> None:
    first, second, third = (make(id=name) for name in "abc")
    one, other = enlist(broker), enlist(broker)
    broker.enqueue(
        [first, second, third],
        [Edge("a", "b", "success", 0), Edge("b", "c", "success", 0)],
    )
    [lease] = broker.claim(one, ["default"])
    broker.claim(other, ["default"])  # and found nothing: it sleeps
    mailbox = broker.mailbox(other)
    mailbox.receive()

    step = broker.step(one, settlements=[(lease, Succeeded(b"1"))], queues=["default"], limit=1)
    assert [lease.id for lease in step.leases] == ["b"]
    assert mailbox.receive() == set()

    broker.step(one, settlements=[(step.leases[0], Succeeded(b"2"))])  # and claims nothing
    assert wait_until(lambda: mailbox.wait(0.2)) == {""}
    mailbox.close()


def test_a_mailbox_can_be_waited_for_with_others(broker: Broker) -> None:
    worker = enlist(broker)
    mailbox = broker.mailbox(worker)
    assert mailbox.poll_interval > 0
    if mailbox.fileno() < 0:
        pytest.skip("this platform has no sockets here; the mailbox polls")
    mailbox.receive()
    quiet = connection.wait([mailbox.fileno()], 0)

    put(broker, make())

    assert quiet == []
    assert connection.wait([mailbox.fileno()], 5) == [mailbox.fileno()]
    mailbox.receive()
    assert connection.wait([mailbox.fileno()], 0) == []
    mailbox.close()


def test_a_closed_mailbox_harms_nobody(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    mailbox = broker.mailbox()
    broker.watch([message.id], mailbox)
    mailbox.close()
    (lease,) = broker.claim(worker, ["default"])

    assert broker.settle(worker, lease, Succeeded(b"1"))


def test_an_ignored_result_is_not_kept(broker: Broker) -> None:
    message = put(broker, make(ignore_result=True))
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.settle(worker, lease, Succeeded(None))

    record = broker.get([message.id]).get(message.id)
    assert record is None or (record.state, record.result) == ("succeeded", None)


def test_a_settled_message_is_deleted_when_its_result_expires(
    broker: Broker, clock: FakeClock
) -> None:
    short, long, ever = (
        put(broker, make(result_expires=seconds)) for seconds in (60, 600, None)
    )
    worker = enlist(broker)
    for lease in broker.claim(worker, ["default"], 3):
        broker.settle(worker, lease, Succeeded(b"1"))

    def left() -> set[str]:
        while broker.maintain():
            pass
        return set(broker.get([short.id, long.id, ever.id]))

    at_once = left()
    clock.advance(61)
    after_a_minute = left()
    clock.advance(10**9)

    assert at_once == {short.id, long.id, ever.id}
    assert after_a_minute == {long.id, ever.id}
    assert left() == {ever.id}


def test_an_unfinished_message_does_not_expire_with_its_result(
    broker: Broker, clock: FakeClock
) -> None:
    message = put(broker, make(result_expires=1))
    clock.advance(10**6)

    while broker.maintain():
        pass

    assert claimed(broker, enlist(broker)) == [message.id]


def test_a_result_outlives_the_messages_that_wait_for_it(
    broker: Broker, clock: FakeClock
) -> None:
    first, then = make(result_expires=1), make(run_at=clock.now() + 100)
    broker.enqueue([first, then], [Edge(first.id, then.id, "success")])
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Succeeded(b"1"))
    clock.advance(101)
    while broker.maintain():
        pass
    worker = enlist(broker)

    (lease,) = broker.claim(worker, ["default"])

    assert [given.value for given in lease.inputs] == [b"1"]


def test_forget_deletes_what_is_settled_and_nothing_else(broker: Broker) -> None:
    done, queued = put(broker, make(priority=9)), put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Failed(ERROR))

    broker.forget([done.id, queued.id, "no-such-id"])

    assert broker.get([done.id, queued.id]).keys() == {queued.id}
    assert broker.attempts(done.id) == []
    assert claimed(broker, worker) == [queued.id]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("SUCCESS", "succeeded"), ("FAILURE", "failed"), ("REVOKED", "revoked")],
)
def test_a_final_state_may_be_stored_for_an_unknown_id(
    broker: Broker, name: str, expected: str
) -> None:
    broker.store("from-outside", name, b"1", task="shop.charge")

    record = broker.get(["from-outside"])["from-outside"]
    assert (record.state, record.result) == (expected, b"1")
    assert record.message.task == "shop.charge"
    assert claimed(broker, enlist(broker)) == []


def test_a_state_of_its_own_may_be_stored_for_an_unknown_id(broker: Broker) -> None:
    broker.store("from-outside", "PROGRESS", b"1")

    record = broker.get(["from-outside"])["from-outside"]
    assert record.note == Note("PROGRESS", b"1")
    assert not record.final
    assert claimed(broker, enlist(broker)) == []


def test_a_state_may_be_stored_for_a_running_message(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])

    broker.store(message.id, "PROGRESS", b"1")

    record = broker.get([message.id])[message.id]
    assert (record.state, record.note) == ("running", Note("PROGRESS", b"1"))
    assert broker.settle(worker, lease, Succeeded(b"2"))


@pytest.mark.parametrize("name", ["SUCCESS", "FAILURE", "REVOKED", "IGNORED"])
def test_a_final_state_from_outside_ends_the_note(broker: Broker, name: str) -> None:
    message = put(broker, make())
    broker.store(message.id, "PROGRESS", b"1")

    broker.store(message.id, name, b"2")

    record = broker.get([message.id])[message.id]
    assert record.final
    assert record.note is None


def test_3_a_final_message_is_not_overwritten_from_outside(broker: Broker) -> None:
    message = put(broker, make())
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Succeeded(b"1"))
    before = broker.get([message.id])

    for name in ("SUCCESS", "FAILURE", "PROGRESS"):
        broker.store(message.id, name, b"2")

    assert broker.get([message.id]) == before


def test_what_was_stored_expires(broker: Broker, clock: FakeClock) -> None:
    broker.store("from-outside", "SUCCESS", b"1", expires=60)
    clock.advance(61)

    while broker.maintain():
        pass

    assert broker.get(["from-outside"]) == {}


# The connection


def test_a_closed_broker_may_be_used_again(store: Store) -> None:
    broker = store.open()
    message = put(broker, make())

    broker.close()
    broker.close()

    if store.shared:
        assert claimed(broker, enlist(broker)) == [message.id]
    broker.check()
    broker.close()


def test_a_healthy_store_passes_its_check(broker: Broker) -> None:
    put(broker, make())

    broker.check()
    assert broker.losses == 0


def test_any_thread_may_use_a_broker(broker: Broker) -> None:
    ids: list[str] = []
    errors: list[BaseException] = []
    start = threading.Barrier(6)

    def produce() -> None:
        start.wait()
        for _ in range(20):
            message = make()
            broker.enqueue([message])
            ids.append(message.id)

    got: list[str] = []

    def consume() -> None:
        worker = enlist(broker)
        start.wait()
        for _ in range(60):
            for lease in broker.claim(worker, ["default"], 3):
                assert broker.settle(worker, lease, Succeeded(b"1"))
                got.append(lease.id)

    def guarded(run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as exc:
            errors.append(exc)

    runs = [produce] * 3 + [consume] * 3
    threads = [threading.Thread(target=guarded, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker = enlist(broker)
    while leases := broker.claim(worker, ["default"], 50):
        got.extend(lease.id for lease in leases)

    assert errors == []
    assert len(ids) == 60
    assert sorted(got) == sorted(ids)


# 9. Each tick once


def entry(name: str = "report", due_at: float | None = START + 60, **fields: Any) -> Schedule:
    return Schedule(name, b'{"v":1}', due_at, **fields)


def entered(broker: Broker, **fields: Any) -> Schedule:
    """Store an entry and return it as the store has it."""
    wanted = entry(**fields)
    assert broker.put_schedule(wanted)
    return scheduled(broker, wanted.name)


def scheduled(broker: Broker, name: str = "report") -> Schedule:
    [found] = [each for each in broker.schedules() if each.name == name]
    return found


def test_9_an_instant_is_fired_once_however_many_beats_try(broker: Broker) -> None:
    one = entered(broker)
    messages = [make(), make()]

    fired = [
        broker.fire("report", START + 60, START + 120, revision=one.revision, messages=[each])
        for each in messages
    ]

    assert fired == [True, False]
    assert state(broker, messages[0]) == "queued"
    assert state(broker, messages[1]) is None


def test_9_beats_in_threads_fire_each_instant_once(broker: Broker, clock: FakeClock) -> None:
    revision = entered(broker).revision
    start = threading.Barrier(4)
    won: list[float] = []

    def beat() -> None:
        start.wait()
        for tick in range(20):
            due = START + 60 * (tick + 1)
            if broker.fire("report", due, due + 60, revision=revision, messages=[make()]):
                won.append(due)

    threads = [threading.Thread(target=beat) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(won) == [START + 60 * (tick + 1) for tick in range(20)]
    assert broker.counts()["default"]["queued"] == 20
    assert scheduled(broker).total == 20


def test_9_a_fire_is_recorded_with_its_message(broker: Broker, clock: FakeClock) -> None:
    one = entered(broker)
    message = make()
    clock.advance(61)

    broker.fire("report", START + 60, START + 120, revision=one.revision, messages=[message])

    after = scheduled(broker)
    assert after.due_at == START + 120
    assert (after.last_due_at, after.last_run_at) == (START + 60, clock.now())
    assert (after.last_id, after.total) == (message.id, 1)
    assert after.revision == one.revision


def test_9_an_instant_that_is_passed_over_leaves_no_trace_but_the_next(broker: Broker) -> None:
    one = entered(broker)

    assert broker.fire("report", START + 60, START + 120, revision=one.revision)

    assert scheduled(broker) == one._replace(due_at=START + 120)
    assert broker.counts() == {}


def test_9_an_entry_may_be_due_no_more(broker: Broker) -> None:
    one = entered(broker)

    assert broker.fire("report", START + 60, None, revision=one.revision, messages=[make()])

    assert scheduled(broker).due_at is None


def test_9_a_fire_enqueues_all_of_a_workflow_and_names_it_by_its_id(broker: Broker) -> None:
    one = entered(broker)
    first, second = make(has_links=True), make()

    broker.fire(
        "report",
        START + 60,
        START + 120,
        revision=one.revision,
        messages=[first, second],
        edges=[Edge(first.id, second.id, "success")],
        workflow=Workflow(second.id, "chain of 2"),
    )

    assert state(broker, first) == "queued"
    assert state(broker, second) == "waiting"
    assert scheduled(broker).last_id == second.id


def test_9_a_fired_message_wakes_a_worker(broker: Broker) -> None:
    one = entered(broker)
    mailbox = broker.mailbox(enlist(broker))
    mailbox.receive()

    broker.fire("report", START + 60, START + 120, revision=one.revision, messages=[make()])

    assert mailbox.wait(2.0)
    mailbox.close()


def test_9_an_entry_that_was_changed_meanwhile_is_not_fired(broker: Broker) -> None:
    one = entered(broker)
    broker.put_schedule(one._replace(entry=b'{"v":2}'))

    assert not broker.fire(
        "report", START + 60, START + 120, revision=one.revision, messages=[make()]
    )
    assert broker.counts() == {}


def test_9_an_entry_that_was_made_anew_is_not_fired_for_the_old_one(broker: Broker) -> None:
    one = entered(broker)
    broker.remove_schedule("report")
    entered(broker)

    assert not broker.fire(
        "report", START + 60, START + 120, revision=one.revision, messages=[make()]
    )


def test_9_a_paused_entry_is_not_fired(broker: Broker) -> None:
    one = entered(broker, paused=True)

    assert not broker.fire("report", START + 60, START + 120, revision=one.revision)


def test_9_an_entry_that_is_gone_is_not_fired(broker: Broker) -> None:
    assert not broker.fire("report", START + 60, START + 120, revision=1, messages=[make()])
    assert broker.counts() == {}


def test_9_entries_are_listed_by_name_with_all_that_was_written(broker: Broker) -> None:
    broker.put_schedule(entry("b", None, origin="runtime", paused=True))
    broker.put_schedule(entry("a", last_due_at=1.0, last_run_at=2.0, last_id="x", total=3))

    first, second = broker.schedules()

    assert first == entry(
        "a", last_due_at=1.0, last_run_at=2.0, last_id="x", total=3, revision=first.revision
    )
    assert second == entry("b", None, origin="runtime", paused=True, revision=second.revision)


def test_9_entries_are_read_by_their_names(broker: Broker) -> None:
    for name in ("c", "a", "é", "b"):
        broker.put_schedule(entry(name))

    assert broker.schedule_names() == ["a", "b", "c", "é"]
    assert [one.name for one in broker.schedules(["é", "absent", "b", "b"])] == ["b", "é"]
    assert broker.schedules([]) == []


def test_9_a_later_write_keeps_what_was_fired(broker: Broker) -> None:
    one = entered(broker)
    broker.fire("report", START + 60, START + 120, revision=one.revision, messages=[make()])
    fired = scheduled(broker)

    broker.put_schedule(entry(due_at=START + 90, origin="runtime"))

    after = scheduled(broker)
    assert after == fired._replace(due_at=START + 90, origin="runtime", revision=after.revision)
    assert after.revision != fired.revision


def test_9_a_write_may_depend_on_the_revision_that_was_read(broker: Broker) -> None:
    assert broker.put_schedule(entry(), revision=0)
    one = scheduled(broker)

    assert not broker.put_schedule(entry(), revision=0)
    assert broker.put_schedule(entry(due_at=START + 90), revision=one.revision)
    assert not broker.put_schedule(entry(due_at=START + 99), revision=one.revision)
    assert not broker.put_schedule(entry("other"), revision=one.revision)
    assert scheduled(broker).due_at == START + 90
    assert len(broker.schedules()) == 1


def test_9_removing_says_whether_there_was_an_entry(broker: Broker) -> None:
    entered(broker)

    assert broker.remove_schedule("report")
    assert not broker.remove_schedule("report")
    assert broker.schedules() == []


def test_9_one_beat_leads_until_its_lease_runs_out(broker: Broker, clock: FakeClock) -> None:
    assert broker.lead("a", clock.now() + 10)
    assert not broker.lead("b", clock.now() + 10)
    assert broker.lead("a", clock.now() + 20)
    clock.advance(19)
    assert not broker.lead("b", clock.now() + 10)
    clock.advance(1)
    assert broker.lead("b", clock.now() + 10)
    assert not broker.lead("a", clock.now() + 10)


def test_9_a_lease_that_is_given_up_is_free(broker: Broker, clock: FakeClock) -> None:
    broker.lead("a", clock.now() + 10)

    broker.unlead("b")  # not its own
    assert not broker.lead("b", clock.now() + 10)
    broker.unlead("a")

    assert broker.lead("b", clock.now() + 10)


@pytest.mark.parametrize("change", ["put", "remove", "unlead"])
def test_9_a_change_wakes_the_beats_and_nobody_else(broker: Broker, change: str) -> None:
    one = entered(broker)
    broker.lead("a", START + 10)
    beats = [broker.mailbox(beat=True), broker.mailbox(beat=True)]
    other = broker.mailbox(enlist(broker))
    other.receive()

    match change:
        case "put":
            broker.put_schedule(one._replace(due_at=START + 90))
        case "remove":
            broker.remove_schedule("report")
        case "unlead":
            broker.unlead("a")

    assert [mailbox.wait(2.0) for mailbox in beats] == [{""}, {""}]
    assert not other.receive()
    for mailbox in (*beats, other):
        mailbox.close()


def test_9_a_new_message_does_not_wake_the_beats(broker: Broker) -> None:
    mailbox = broker.mailbox(beat=True)

    put(broker, make())

    assert not mailbox.receive()
    mailbox.close()


def test_what_another_instance_does_is_a_change(store: Store) -> None:
    """Promise 5: without a wake-up, a worker finds new work by this."""
    if not store.shared:
        pytest.skip("a store in memory has no other instance")
    one, other = store.open(), store.open()
    message = make()
    other.counts()
    one.changed()

    put(other, message)
    assert one.changed()
    other.revoke([message.id])
    assert one.changed()
    put(other, make(run_at=START + 60))
    assert one.changed()
    for broker in (one, other):
        broker.close()


def test_9_entries_are_there_when_the_store_is_opened_again(store: Store) -> None:
    if not store.shared:
        pytest.skip("a store in memory ends with its connection")
    first = store.open()
    one = entered(first)
    first.fire("report", START + 60, START + 120, revision=one.revision, messages=[make()])
    fired = scheduled(first)
    first.close()

    second = store.open()

    assert scheduled(second) == fired
    second.close()
