"""What limits promise, in plain arithmetic, and a machine that holds a real broker to it.

The model does not say which of several messages goes first (keys take turns); it says what
may never be: a start that a rate or a concurrency has no room for, a message that is left
although everything that it is under has room, one that overtakes another of its own line,
and a worker that is told to sleep beyond the next turn.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from world import FakeClock, Store, enlist, make

from liteq import failure
from liteq.brokers.base import FINAL_STATES, Broker, Lease
from liteq.limits import Limit, read, write
from liteq.message import Message
from liteq.outcome import (
    Failed,
    Ignored,
    Lost,
    Outcome,
    Released,
    Retried,
    Revoked,
    Succeeded,
)

ERROR = failure.describe(ValueError("no"))
QUEUES = ("a", "b")
LIMITS = {
    "slow": Limit("slow", interval=7.0),
    "bursts": Limit("bursts", interval=3.0, burst=3),
    "one": Limit("one", most=1),
    "two": Limit("two", most=2),
}
OVERRIDES = (
    Limit("slow", interval=1.0),
    Limit("slow", interval=60.0, burst=2),
    Limit("slow"),
    Limit("two", most=1),
    Limit("two", most=3),
    Limit("one"),
)


@dataclass
class Entry:
    """What the model knows of one message."""

    message: Message
    seq: int
    state: str = "ready"
    run_at: float = 0.0
    lease: Lease | None = None
    worker: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        return (-self.message.priority, self.seq)

    @property
    def buckets(self) -> list[tuple[str, str]]:
        pairs = read(self.message.limits) if self.message.limits else ()
        return [(name, key) for name, key in pairs if key is not None]


class LimitsMachine(RuleBasedStateMachine):
    """Calls a broker's verbs at random and holds what it starts against the limits."""

    kind: ClassVar[str] = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.folder = tempfile.TemporaryDirectory()
        self.broker: Broker = Store(self.kind, Path(self.folder.name), self.clock).open(
            max_deliveries=1_000
        )
        self.entries: dict[str, Entry] = {}
        self.limits = dict(LIMITS)
        self.held: dict[str, list[tuple[str, str]]] = {}  # by id: slots
        self.free_at: dict[tuple[str, str], tuple[float, float]] = {}  # and when it was used
        self.stale: list[tuple[int, Lease]] = []
        self.workers: list[int] = []

    def teardown(self) -> None:
        self.broker.close()
        self.folder.cleanup()

    @initialize()
    def begin(self) -> None:
        self.broker.declare_limits({"shop.charge": list(LIMITS.values())})
        self.broker.declare_limits({"shop.charge": ()})  # all are named by messages
        for limit in LIMITS.values():
            self.broker.override_limit(limit.name, limit)
        self.workers = [enlist(self.broker, *QUEUES, name=f"w{n}") for n in range(2)]

    # The arithmetic

    def has_room(self, entry: Entry) -> bool:
        return self.room_from(entry) <= self.clock.now()

    def room_from(self, entry: Entry) -> float:
        """Return from when everything that an entry is under has room; infinity for a slot."""
        times = [0.0]
        for bucket in entry.buckets:
            limit = self.limits[bucket[0]]
            if limit.most is not None:
                taken = sum(bucket in held for held in self.held.values())
                times.append(float("inf") if taken >= limit.most else 0.0)
            if limit.interval is not None:
                free_at = self.saved_up(bucket, limit)
                times.append(free_at - (limit.burst - 1) * limit.interval)
        return max(times)

    def saved_up(self, bucket: tuple[str, str], limit: Limit) -> float:
        free_at, used_at = self.free_at.get(bucket, (0.0, 0.0))
        return min(free_at, used_at + limit.burst * (limit.interval or 0.0))

    def charge(self, entry: Entry) -> None:
        now = self.clock.now()
        for bucket in entry.buckets:
            limit = self.limits[bucket[0]]
            if limit.most is not None:
                self.held.setdefault(entry.message.id, []).append(bucket)
            if limit.interval is not None:
                free_at = max(self.saved_up(bucket, limit), now) + limit.interval
                self.free_at[bucket] = (free_at, now)

    def ready(self, queues: list[str]) -> list[Entry]:
        now = self.clock.now()
        return [
            entry
            for entry in self.entries.values()
            if entry.state == "ready"
            and entry.message.queue in queues
            and entry.run_at <= now
            and not (entry.message.expires_at and entry.message.expires_at <= now)
        ]

    # Rules

    made = st.fixed_dictionaries(
        {
            "queue": st.sampled_from(("a", "a", "a", "b")),
            "priority": st.sampled_from((0, 0, 0, 5)),
            "names": st.lists(st.sampled_from(sorted(LIMITS)), max_size=2, unique=True),
            "key": st.sampled_from(("", "", "x", "y")),
            "delay": st.sampled_from((None, None, None, 5)),
            "expires": st.sampled_from((None, None, None, None, 20)),
        }
    )

    @rule(batch=st.lists(made, min_size=1, max_size=5))
    def enqueue(self, batch: list[dict[str, Any]]) -> None:
        now = self.clock.now()
        messages = []
        for given in batch:
            delay, expires = given["delay"], given["expires"]
            message = make(
                queue=given["queue"],
                priority=given["priority"],
                limits=write((name, given["key"]) for name in given["names"]),
                run_at=None if delay is None else now + delay,
                expires_at=None if expires is None else now + expires,
            )
            self.entries[message.id] = Entry(
                message, len(self.entries), run_at=message.run_at or 0.0
            )
            messages.append(message)
        self.broker.enqueue(messages)

    queues = st.lists(st.sampled_from(QUEUES), min_size=1, max_size=2, unique=True)

    @rule(worker=st.integers(0, 1), queues=queues, limit=st.integers(1, 5))
    def claim(self, worker: int, queues: list[str], limit: int) -> None:
        self.step(self.workers[worker], [], queues, limit)

    def step(
        self,
        worker: int,
        settlements: list[tuple[Lease, Outcome]],
        queues: list[str],
        limit: int,
    ) -> None:
        step = self.broker.step(worker, settlements=settlements, queues=queues, limit=limit)

        assert step.accepted == (True,) * len(settlements)
        for lease in step.leases:
            entry = self.entries[lease.id]
            assert entry in self.ready(queues), "started what was not to be started"
            assert self.has_room(entry), f"{entry.buckets} had no room for it"
            ahead = [
                other
                for other in self.ready([entry.message.queue])
                if other.message.limits == entry.message.limits and other.rank < entry.rank
            ]
            assert not ahead or len(step.leases) > 1, "overtaken in its own line"
            self.charge(entry)
            entry.state, entry.lease, entry.worker = "running", lease, worker
        for entry in self.ready(queues):
            behind = [self.entries[lease.id].rank for lease in step.leases]
            if len(step.leases) < limit or any(rank > entry.rank for rank in behind):
                assert not self.has_room(entry), f"{entry} was left, though there is room"
            if not limit:
                continue
            turn = self.room_from(entry)
            if turn < float("inf") and not self.has_room(entry):
                assert step.next_due is not None, "nobody will look at it"
                assert step.next_due <= turn + 1e-6, "it is looked at too late"

    def running(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.state == "running"]

    @precondition(lambda self: self.running())
    @rule(
        pick=st.integers(0, 10**6),
        kind=st.sampled_from(
            (
                *("succeeded", "succeeded", "failed", "ignored", "revoked"),
                *("retried", "released", "lost"),
            )
        ),
        delay=st.sampled_from((0, 5)),
        queues=queues,
        limit=st.integers(0, 3),
    )
    def settle(self, pick: int, kind: str, delay: int, queues: list[str], limit: int) -> None:
        running = self.running()
        entry = running[pick % len(running)]
        lease, worker = entry.lease, entry.worker
        assert lease is not None
        outcome = self.outcome(kind, delay)
        self.end(entry, kind, delay)
        self.step(worker, [(lease, outcome)], queues, limit)

    def outcome(self, kind: str, delay: int) -> Outcome:
        outcomes: dict[str, Outcome] = {
            "succeeded": Succeeded(b"1"),
            "failed": Failed(ERROR),
            "ignored": Ignored(),
            "revoked": Revoked("terminated"),
            "retried": Retried(self.clock.now() + delay, ERROR),
            "released": Released(),
            "lost": Lost("signal 9"),
        }
        return outcomes[kind]

    def end(self, entry: Entry, kind: str, delay: int = 0) -> None:
        assert entry.lease is not None
        self.stale.append((entry.worker, entry.lease))
        entry.lease = None
        self.held.pop(entry.message.id, None)
        entry.state = "ready" if kind in ("retried", "released", "lost") else kind
        if kind == "retried":
            entry.run_at = self.clock.now() + delay

    @precondition(lambda self: self.stale)
    @rule(pick=st.integers(0, 10**6))
    def settle_stale(self, pick: int) -> None:
        worker, lease = self.stale[pick % len(self.stale)]
        assert not self.broker.settle(worker, lease, Succeeded(b"1"))

    @rule(worker=st.integers(0, 1), queues=queues)
    def worker_dies(self, worker: int, queues: list[str]) -> None:
        dead, other = self.workers[worker], self.workers[1 - worker]
        self.clock.advance(self.broker.lease_timeout + 1)
        assert self.broker.beat(other)
        self.broker.reclaim(other)
        for entry in self.running():
            if entry.worker == dead:
                self.end(entry, "lost")
        self.workers[worker] = enlist(self.broker, *QUEUES)
        self.step(other, [], queues, 3)

    @rule(worker=st.integers(0, 1))
    def worker_leaves(self, worker: int) -> None:
        leaving = self.workers[worker]
        self.broker.unregister(leaving)
        for entry in self.running():
            if entry.worker == leaving:
                self.end(entry, "released")
        self.workers[worker] = enlist(self.broker, *QUEUES)

    @rule(seconds=st.sampled_from((1, 2, 7, 30)))
    def tick(self, seconds: int) -> None:
        self.clock.advance(seconds)
        for worker in self.workers:
            assert self.broker.beat(worker)

    @precondition(lambda self: self.entries)
    @rule(picks=st.lists(st.integers(0, 10**6), min_size=1, max_size=3))
    def revoke(self, picks: list[int]) -> None:
        entries = list(self.entries.values())
        chosen = [entries[pick % len(entries)] for pick in picks]
        waiting = [entry for entry in chosen if entry.state == "ready"]
        self.broker.revoke([entry.message.id for entry in waiting])
        for entry in waiting:
            entry.state = "revoked"

    @rule()
    def redrive(self) -> None:
        failed = [entry for entry in self.entries.values() if entry.state == "failed"]
        assert len(self.broker.redrive([entry.message.id for entry in failed])) == len(failed)
        for entry in failed:
            entry.state, entry.run_at = "ready", 0.0
            entry.message = entry.message._replace(expires_at=None)

    @rule()
    def purge(self) -> None:
        waiting = [
            entry
            for entry in self.entries.values()
            if entry.state == "ready" and entry.message.queue == "b"
        ]
        self.accept_expiry()
        waiting = [entry for entry in waiting if entry.state == "ready"]
        assert self.broker.purge(["b"]) == len(waiting)
        for entry in waiting:
            del self.entries[entry.message.id]

    @rule(limit=st.sampled_from(OVERRIDES))
    def override(self, limit: Limit) -> None:
        self.limits[limit.name] = limit
        self.broker.override_limit(limit.name, limit)

    @rule()
    def maintain(self) -> None:
        while self.broker.maintain():
            pass

    # What must hold after every step

    def accept_expiry(self) -> None:
        """Let the store decide when it notices that a message has expired."""
        now = self.clock.now()
        late = [
            entry
            for entry in self.entries.values()
            if entry.state == "ready"
            and entry.message.expires_at
            and entry.message.expires_at <= now
        ]
        records = self.broker.get([entry.message.id for entry in late])
        for entry in late:
            if records[entry.message.id].revoked == "expired":
                entry.state = "revoked"

    @invariant()
    def the_states_are_those_of_the_model(self) -> None:
        self.accept_expiry()
        records = self.broker.get(list(self.entries))
        for id, entry in self.entries.items():
            state = records[id].state if id in records else "deleted"
            if entry.state == "ready":
                assert state in ("queued", "limited", "scheduled", "retrying"), state
            elif id in records:
                assert state == entry.state, f"{state}, and should be {entry.state}"
            else:
                assert entry.state in FINAL_STATES
        counted = sum(sum(states.values()) for states in self.broker.counts().values())
        assert counted == sum(e.state in ("ready", "running") for e in self.entries.values())
