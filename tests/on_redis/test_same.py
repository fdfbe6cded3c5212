"""The same random steps on SQLite and on Redis: what is visible after each is the same."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from world import FakeClock, Store, make

from liteq import failure
from liteq.brokers.base import Broker, Lease, Note, Record
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

pytestmark = [pytest.mark.redis, pytest.mark.untraced]

RUNS = 400 if os.environ.get("LITEQ_STORM") else 20
STEPS = 60
QUEUES = ("a", "b")
STATES = (
    "waiting",
    "scheduled",
    "queued",
    "parked",
    "running",
    "retrying",
    "succeeded",
    "failed",
    "revoked",
    "ignored",
    "dead",
)


@dataclass
class Side:
    """One of the two stores, and what was taken from it."""

    broker: Broker
    workers: list[int] = field(default_factory=list)
    leases: dict[str, tuple[int, Lease]] = field(default_factory=dict)  # by message id
    stale: list[tuple[int, Lease]] = field(default_factory=list)


class Pair:
    """Two stores that are told the same."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = FakeClock()
        self.sides = [
            Side(Store(kind, folder, self.clock).open(max_deliveries=2))
            for kind in ("memory", "redis")
        ]
        # The same for all claims of a run: how many parked messages a claim looks through
        # before it has enough is each store's own affair.
        self.tasks = self.random.choice((None, frozenset({"shop.a", "shop.b"})))
        self.ids: list[str] = []
        self.number = 0
        self.done: list[str] = []
        for worker in range(2):
            self.both(lambda side, n=worker: self.enlist(side, n))

    def both(self, call: Callable[[Side], Any]) -> Any:
        """Do it to both, and require the same answer."""
        first, second = (call(side) for side in self.sides)
        assert first == second, (_difference(first, second), self.done[-8:])
        return first

    @staticmethod
    def enlist(side: Side, place: int) -> None:
        worker = side.broker.register(f"w{place}", QUEUES, 1, {})
        if place < len(side.workers):
            side.workers[place] = worker
        else:
            side.workers.append(worker)

    # Enqueue

    def message(self, **fields: Any) -> Message:
        dice = self.random
        self.number += 1
        now = self.clock.now()
        message = make(
            dice.choice(("shop.a", "shop.b", "shop.c")),
            id=f"m{self.number:04d}",
            queue=dice.choice(QUEUES),
            priority=dice.choice((0, 0, 3, 9)),
            run_at=dice.choice((None, None, None, now - 5, now + 7)),
            expires_at=dice.choice((None, None, None, None, now + 30)),
            acks_late=dice.random() > 0.2,
            max_deliveries=dice.choice((None, None, 1)),
            ignore_result=dice.random() < 0.1,
            result_expires=dice.choice((86_400.0, 50.0, None)),
            countdown=dice.choice((None, None, None, 5.0)),
            expires_in=dice.choice((None, None, None, 40.0)),
        )
        return message._replace(**fields)

    def gather(self) -> Message:
        policy = self.random.choice((b"fail", b"fail", b"collect", b"skip", b"count"))
        plain = {"run_at": None, "expires_at": None, "countdown": None, "expires_in": None}
        return self.message(task=GATHER, body=policy, **plain)

    def graph(self) -> tuple[list[Message], list[Edge]]:
        """Return some messages, each waiting for some before it."""
        dice = self.random
        messages: list[Message] = []
        edges: list[Edge] = []
        for _ in range(dice.randint(2, 7)):
            earlier = [message.id for message in messages]
            kind = dice.choice(("free", "success", "success", "failure", "gather"))
            message = self.gather() if kind == "gather" else self.message()
            sources = dice.sample(earlier, min(len(earlier), dice.randint(1, 3)))
            if kind == "failure":
                sources = sources[:1]
            if kind != "free":
                on = "part" if kind == "gather" else kind
                edges += [Edge(one, message.id, on, at) for at, one in enumerate(sources)]
            messages.append(message)
        return messages, edges

    def enqueue(self) -> None:
        if self.random.random() < 0.5:
            messages, edges, workflow = [self.message()], [], None
        else:
            messages, edges = self.graph()
            workflow = Workflow(messages[-1].id, "some") if self.random.random() < 0.7 else None
        self.ids += [message.id for message in messages]
        self.both(lambda side: side.broker.enqueue(messages, edges, workflow))

    def enqueue_again(self) -> None:
        if self.ids:
            message = make(self.random.choice(("x", "y")), id=self.random.choice(self.ids))
            self.both(lambda side: _refusal(lambda: side.broker.enqueue([message])))

    # Work

    def claim(self) -> None:
        self.maintain()
        place, limit = self.random.randrange(2), self.random.randint(1, 4)
        some = self.random.choice((["a"], ["b"], ["a", "b"]))
        queues = ["empty", *some, "bare", "void"]  # so many that they are asked for by halves

        def take(side: Side) -> Any:
            worker = side.workers[place]
            step = side.broker.step(worker, queues=queues, limit=limit, tasks=self.tasks)
            for lease in step.leases:
                side.leases[lease.id] = (worker, lease)
            told = [(one.id, one.delivery, one.packed, one.inputs) for one in step.leases]
            return told, step.next_due, sorted((lease.id, why) for lease, why in step.aside)

        self.both(take)

    def settle(self) -> None:
        held = sorted(self.sides[0].leases)
        if not held:
            return
        id = self.random.choice(held)
        outcome = self.outcome(id)

        def end(side: Side) -> Any:
            worker, lease = side.leases.pop(id)
            side.stale.append((worker, lease))
            step = side.broker.step(worker, settlements=[(lease, outcome)])
            return step.accepted, step.alive

        self.both(end)

    def outcome(self, id: str) -> Outcome:
        dice = self.random
        error = failure.describe(ValueError(str(self.number)))
        now = self.clock.now()
        match dice.randrange(14):
            case 0 | 1 | 2 | 3:
                return Succeeded(str(self.number).encode(), children='["x"]')
            case 4 | 5:
                return Failed(error)
            case 6:
                return Failed(error, dead="unreadable")
            case 7:
                return Retried(now + dice.choice((0, 9)), error, {"queue": "b"})
            case 8:
                return Ignored()
            case 9:
                return Revoked("terminated")
            case 10:
                return Released()
            case 11:
                return Lost("signal 9")
            case 12:
                return self.replacement(id)
            case _:
                return self.addition()

    def replacement(self, id: str) -> Replaced:
        if self.random.random() < 0.3:
            return Replaced({"task": "shop.c", "body": b"[[2],{}]"})
        first, second = self.message(), self.message()
        self.ids += [first.id, second.id]
        edges = ((first.id, second.id, "success", 0), (second.id, id, "success", 0))
        graph = Graph((first.pack(), second.pack()), edges)
        return Replaced({"task": "shop.b", "priority": 5}, graph)

    def addition(self) -> Succeeded:
        new = self.message()
        self.ids.append(new.id)
        gathers = [
            record.id
            for record in self.sides[0].broker.get(self.ids).values()
            if record.message.task == GATHER
        ]
        edges = ()
        if gathers:
            edges = ((new.id, self.random.choice(gathers), "part", -1),)  # type: ignore[assignment]
        return Succeeded(b"1", added=Graph((new.pack(),), edges))

    def settle_stale(self) -> None:
        if not self.sides[0].stale:
            return
        at = self.random.randrange(len(self.sides[0].stale))
        self.both(lambda side: side.broker.settle(*side.stale[at], Succeeded(b"late")))

    def note(self) -> None:
        held = sorted(self.sides[0].leases)
        if held:
            id = self.random.choice(held)
            self.both(lambda side: self.noted(side, id))

    @staticmethod
    def noted(side: Side, id: str) -> None:
        worker, lease = side.leases[id]
        side.broker.step(worker, notes=[(lease, Note("PROGRESS", b"1"))])

    # Workers come and go

    def worker_dies(self) -> None:
        place = self.random.randrange(2)
        self.clock.advance(61)

        def die(side: Side) -> Any:
            assert side.broker.beat(side.workers[1 - place])
            taken = side.broker.reclaim(side.workers[1 - place])
            self.forget_leases(side, side.workers[place])
            self.enlist(side, place)
            return taken

        self.both(die)

    def worker_leaves(self) -> None:
        place = self.random.randrange(2)

        def leave(side: Side) -> None:
            side.broker.unregister(side.workers[place])
            self.forget_leases(side, side.workers[place])
            self.enlist(side, place)

        self.both(leave)

    @staticmethod
    def forget_leases(side: Side, gone: int) -> None:
        for id, (worker, lease) in list(side.leases.items()):
            if worker == gone:
                side.stale.append(side.leases.pop(id))
                assert lease.id == id

    def tick(self) -> None:
        self.clock.advance(self.random.choice((1, 6, 12, 45)))
        self.both(lambda side: [side.broker.beat(worker) for worker in side.workers])

    # Steering

    def some(self) -> list[str]:
        return self.random.sample(self.ids, min(len(self.ids), self.random.randint(1, 3)))

    def revoke(self) -> None:
        ids, signal = self.some(), self.random.choice((None, "SIGTERM"))
        self.both(lambda side: side.broker.revoke(ids, terminate=signal))

    def redrive(self) -> None:
        failed = [record.id for record in self.sides[0].broker.browse("failed", limit=99)]
        ids = self.random.sample(failed, min(len(failed), 2)) + self.some()[:1]
        self.both(lambda side: side.broker.redrive(ids))

    def purge(self) -> None:
        if self.random.random() < 0.2:
            dead = self.random.random() < 0.5
            self.both(lambda side: side.broker.purge(["a"], dead=dead))

    def store(self) -> None:
        if self.ids and self.random.random() < 0.3:
            id, name = self.random.choice(self.ids), self.random.choice(("SUCCESS", "PROGRESS"))
            if id not in self.sides[0].leases:
                self.both(lambda side: side.broker.store(id, name, b"7"))

    def forget(self) -> None:
        if self.random.random() < 0.2:
            ids = self.some()
            self.both(lambda side: side.broker.forget(ids))

    def maintain(self) -> None:
        def keep_house(side: Side) -> None:
            while side.broker.maintain():
                pass

        self.both(keep_house)

    # What is visible

    def look(self) -> None:
        everything = sorted({*self.ids, "no-such-id"})
        records = self.both(
            lambda side: {id: _plain(r) for id, r in side.broker.get(everything).items()}
        )
        self.both(lambda side: {id: side.broker.attempts(id) for id in records})
        self.both(lambda side: side.broker.counts())
        for state in STATES:
            self.both(lambda side, of=state: sorted(_ids(side.broker.browse(of, limit=500))))
        for state in ("queued", "waiting", "failed", "running", "scheduled"):
            self.both(lambda side, of=state: _ids(side.broker.browse(of, queue="a", limit=3)))
        self.both(lambda side: side.broker.workflows(5))
        for workflow in self.sides[0].broker.workflows(3):
            self.both(lambda side, id=workflow.id: _drawn(side.broker, id))
        self.both(lambda side: [side.broker.step(w).terminate != {} for w in side.workers])

    def close(self) -> None:
        for side in self.sides:
            side.broker.close()


def _ids(records: list[Record]) -> list[str]:
    return [record.id for record in records]


def _drawn(broker: Broker, workflow: str) -> Any:
    nodes, edges = broker.nodes(workflow)
    found = {node.id: node for node in nodes}
    between = [edge for edge in edges if edge.source in found and edge.target in found]
    # Their order is what counts: the place of a part that was deleted may be given again.
    places = {
        edge.target: sorted(e.position for e in between if e.target == edge.target)
        for edge in between
    }
    drawn = [e._replace(position=places[e.target].index(e.position)) for e in between]
    return {**found, **{str(edge): edge for edge in drawn}}


def _plain(record: Record) -> Any:
    """Return a record in a form in which two spellings of one error are the same."""
    fields = record._asdict()
    if record.started_at is None:
        del fields["worker"]  # who looked at it and put it back
    result = record.result
    if result is not None and result.startswith(b"{"):
        fields["result"] = json.loads(result)
    return fields


def _difference(first: Any, second: Any) -> Any:
    """Return what differs, as small as it can be shown."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = [key for key in first if key not in second or first[key] != second[key]]
        keys += [key for key in second if key not in first]
        return {key: _difference(first.get(key), second.get(key)) for key in keys[:3]}
    return first, second


def _refusal(call: Callable[[], Any]) -> str | None:
    try:
        call()
    except ValueError as exc:
        return type(exc).__name__
    return None


ACTIONS = (
    *("enqueue",) * 4,
    *("claim",) * 5,
    *("settle",) * 7,
    *("settle_stale", "note", "worker_dies", "worker_leaves", "tick", "tick", "revoke"),
    *("redrive", "purge", "store", "forget", "maintain", "enqueue_again"),
)


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seed", range(RUNS))
def test_what_is_visible_is_the_same_on_sqlite_and_redis(tmp_path: Path, seed: int) -> None:
    pair = Pair(tmp_path, seed)
    pair.enqueue()
    for _ in range(STEPS):
        action = pair.random.choice(ACTIONS)
        pair.done.append(action)
        getattr(pair, action)()
        pair.look()
    pair.close()
