"""A broker in thirty lines of thought, and a machine that compares a real one with it.

The model is a dictionary: each message with its state, and plain rules for what a verb
does to it. Hypothesis calls the verbs of both at random and compares all that can be
seen after every step. Rules are coarse on purpose where chance alone would need too
long: `worker_dies` is four verbs in a row, since the bugs it finds hide behind all four.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from world import FakeClock, Store, enlist, make

from liteq import failure
from liteq.brokers.base import FINAL_STATES, Broker, Lease, Note, Record
from liteq.exceptions import AlreadyEnqueued
from liteq.message import Edge, Message
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
QUEUES = ("a", "b", "side")  # nothing waits for messages in "side", so it may be purged
MAX_DELIVERIES = 2

# A message that is neither running nor over nor waiting for another is "ready": whether
# the store calls it queued, scheduled or retrying depends on when it looked.
READY = ("queued", "scheduled", "retrying", "parked")


@dataclass
class Entry:
    """What the model knows of one message."""

    message: Message
    seq: int
    state: str = "ready"
    run_at: float = 0.0
    expires_at: float | None = None
    deliveries: int = 0
    retries: int = 0
    pending: int = 0
    result: bytes | None = None
    dead: bool = False
    upstream: bool = False
    retried: bool = False
    revoking: bool = False
    lease: Lease | None = None
    worker: int | None = None
    settled_at: float = 0.0
    inputs: list[tuple[str, str]] = field(default_factory=list)
    record: Record | None = None  # as it was when the message had just ended

    @property
    def final(self) -> bool:
        return self.state in FINAL_STATES

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


class BrokerMachine(RuleBasedStateMachine):
    """Calls a broker's verbs at random and compares it with the model."""

    kind = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(self.kind, Path(self.folder.name), self.clock)
        self.broker: Broker = self.store.open(max_deliveries=MAX_DELIVERIES)
        self.entries: dict[str, Entry] = {}
        self.deleted: set[str] = set()
        self.edges: dict[str, list[Edge]] = {}
        self.calls: dict[str, tuple[list[Message], list[Edge]]] = {}  # what enqueued it
        self.stale: list[tuple[int, Lease]] = []
        self.workers: list[int] = []

    def teardown(self) -> None:
        self.broker.close()
        self.folder.cleanup()

    @initialize()
    def three_workers(self) -> None:
        self.workers = [enlist(self.broker, *QUEUES, name=f"w{n}") for n in range(3)]

    # Enqueue

    made = st.fixed_dictionaries(
        {
            "queue": st.sampled_from(QUEUES),
            "priority": st.sampled_from((0, 0, 3, 9)),
            "delay": st.sampled_from((None, None, None, -5, 7, 30)),
            "expires": st.sampled_from((None, None, None, 10.5, 40.5)),
            "acks_late": st.sampled_from((True, True, True, False)),
            "max_deliveries": st.sampled_from((None, None, 1, 3)),
            "result_expires": st.sampled_from((86_400.0, 50.0, None)),
        }
    )

    def make(self, fields: dict[str, Any], **more: Any) -> Message:
        fields = {**fields, **more}
        delay, expires = fields.pop("delay"), fields.pop("expires")
        now = self.clock.now()
        message = make(
            **fields,
            run_at=None if delay is None else now + delay,
            expires_at=None if expires is None else now + expires,
        )
        self.entries[message.id] = Entry(
            message,
            seq=len(self.entries),
            run_at=message.run_at or 0.0,
            expires_at=message.expires_at,
        )
        return message

    @rule(batch=st.lists(made, min_size=1, max_size=4))
    def enqueue(self, batch: list[dict[str, Any]]) -> None:
        self.put([self.make(fields) for fields in batch], [])

    def put(self, messages: list[Message], edges: list[Edge]) -> None:
        for message in messages:
            self.calls[message.id] = (messages, edges)
        self.broker.enqueue(messages, edges)

    @rule(
        first=made,
        good=made,
        bad=made,
        last=made,
        queues=st.lists(st.sampled_from(("a", "b")), min_size=4, max_size=4),
    )
    def enqueue_with_links(
        self, first: Any, good: Any, bad: Any, last: Any, queues: list[str]
    ) -> None:
        messages = [
            self.make(fields, queue=queue)
            for fields, queue in zip((first, good, bad, last), queues, strict=True)
        ]
        one, then, error, end = (message.id for message in messages)
        edges = [
            Edge(one, then, "success"),
            Edge(one, error, "failure"),
            Edge(then, end, "success"),
        ]
        for edge in edges:
            self.edges.setdefault(edge.source, []).append(edge)
            self.entries[edge.target].pending += 1
            self.entries[edge.target].state = "waiting"

        self.put(messages, edges)

    @precondition(lambda self: self.entries)
    @rule(pick=st.integers(0, 10**6), changed=st.booleans())
    def enqueue_again(self, pick: int, changed: bool) -> None:
        entry = self.pick(pick)
        if entry is None:
            return
        if not changed:
            messages, edges = self.calls[entry.message.id]
            if not self.deleted & {message.id for message in messages}:
                self.broker.enqueue(messages, edges)
            return
        if entry.retried:
            return  # its body may be another by now: any is taken for the first
        try:
            self.broker.enqueue([make(id="new"), entry.message._replace(body=b"other")])
        except AlreadyEnqueued:
            assert self.broker.get(["new"]) == {}, "half of a refused enqueue was stored"
        else:
            raise AssertionError("another message was taken under a used id")

    # Claim

    queues = st.lists(st.sampled_from(QUEUES), min_size=1, max_size=3, unique=True)

    def chain_reaction_due(self) -> bool:
        """Whether a claim may meet an expired message that others wait for: what follows
        it may be in the same claim or not, so the model cannot say what is claimed."""
        now = self.clock.now()
        return any(
            entry.state == "ready" and entry.expired(now) and id in self.edges
            for id, entry in self.entries.items()
        )

    def expected_claim(self, queues: list[str], limit: int) -> list[str]:
        now = self.clock.now()
        ready = [
            entry
            for entry in self.entries.values()
            if entry.state == "ready"
            and entry.message.queue in queues
            and entry.run_at <= now
            and not entry.expired(now)
        ]
        ready.sort(key=lambda entry: (-entry.message.priority, entry.seq))
        return [entry.message.id for entry in ready[:limit]]

    def explain(self, leases: tuple[Lease, ...], expected: list[str]) -> str:
        got = [self.entries[lease.id].seq for lease in leases]
        wanted = [self.entries[id].seq for id in expected]
        return f"claimed messages {got}, and should have claimed {wanted}"

    def note_claimed(self, worker: int, leases: tuple[Lease, ...]) -> None:
        tokens = {lease.token for _, lease in self.stale}
        for lease in leases:
            entry = self.entries[lease.id]
            entry.state = "running"
            entry.deliveries += 1
            entry.lease, entry.worker = lease, worker
            assert lease.delivery == entry.deliveries
            assert lease.token not in tokens, "a token was used again"
            given = [(one.source, one.kind) for one in lease.inputs]
            assert given == entry.inputs, "the inputs are not those of what it waited for"
            bound = entry.message.max_deliveries or MAX_DELIVERIES
            assert lease.delivery <= bound, "started more often than max_deliveries allows"

    @rule(worker=st.integers(0, 2), queues=queues, limit=st.integers(1, 4))
    def claim(self, worker: int, queues: list[str], limit: int) -> None:
        if self.chain_reaction_due():
            self.maintain()
        expected = self.expected_claim(queues, limit)

        leases = self.broker.claim(self.workers[worker], queues, limit)

        assert [lease.id for lease in leases] == expected, self.explain(leases, expected)
        self.note_claimed(self.workers[worker], leases)
        self.accept_expiry()

    # Settle

    kinds = st.sampled_from(
        (
            "succeeded",
            "succeeded",
            "failed",
            "dead",
            "retried",
            "retried",
            "ignored",
            "revoked",
            "released",
            "lost",
            "lost",
        )
    )

    def outcome(self, kind: str, delay: int) -> Outcome:
        return {
            "succeeded": Succeeded(b"42"),
            "failed": Failed(ERROR),
            "dead": Failed(ERROR, dead="undecodable body"),
            "retried": Retried(self.clock.now() + delay, ERROR),
            "ignored": Ignored(),
            "revoked": Revoked("terminated"),
            "released": Released(),
            "lost": Lost("signal 9 (SIGKILL)"),
        }[kind]

    def leases(self) -> list[tuple[int, Lease]]:
        return [
            (entry.worker, entry.lease)
            for entry in self.entries.values()
            if entry.state == "running" and entry.lease and entry.worker
        ]

    @precondition(lambda self: self.leases())
    @rule(
        pick=st.integers(0, 10**6),
        kinds=st.lists(kinds, min_size=1, max_size=3),
        delay=st.sampled_from((0, 20, 20)),
        queues=queues,
        limit=st.integers(0, 2),
    )
    def settle_and_claim(
        self, pick: int, kinds: list[str], delay: int, queues: list[str], limit: int
    ) -> None:
        held = self.leases()
        worker = held[pick % len(held)][0]
        mine = [lease for holder, lease in held if holder == worker]
        ending = list(zip(mine, kinds, strict=False))
        settlements = [(lease, self.outcome(kind, delay)) for lease, kind in ending]
        for lease, kind in ending:
            self.end(self.entries[lease.id], kind, delay)
        if self.chain_reaction_due():
            limit = 0
        expected = self.expected_claim(queues, limit)

        step = self.broker.step(worker, settlements=settlements, queues=queues, limit=limit)

        assert step.accepted == (True,) * len(settlements)
        assert [lease.id for lease in step.leases] == expected, self.explain(
            step.leases, expected
        )
        self.note_claimed(worker, step.leases)

    @precondition(lambda self: self.stale)
    @rule(pick=st.integers(0, 10**6), kind=kinds, noted=st.booleans())
    def settle_stale(self, pick: int, kind: str, noted: bool) -> None:
        worker, lease = self.stale[pick % len(self.stale)]
        notes = [(lease, Note("LATE", b"1"))] if noted else []

        step = self.broker.step(
            worker, settlements=[(lease, self.outcome(kind, 0))], notes=notes
        )

        assert step.accepted == (False,), "a lease settled twice, or after it was lost"

    @precondition(lambda self: self.leases())
    @rule(pick=st.integers(0, 10**6))
    def note(self, pick: int) -> None:
        held = self.leases()
        worker, lease = held[pick % len(held)]

        self.broker.step(worker, notes=[(lease, Note("PROGRESS", b"1"))])

        assert self.broker.get([lease.id])[lease.id].note == Note("PROGRESS", b"1")

    # What an end means

    def end(self, entry: Entry, kind: str, delay: int = 0) -> None:
        """Apply an accepted outcome to the model."""
        assert entry.lease is not None
        assert entry.worker is not None
        self.stale.append((entry.worker, entry.lease))
        entry.lease = entry.worker = None
        match kind:
            case "retried" | "released" | "lost" if entry.revoking:
                self.finish(entry, "revoked")
            case "released":
                entry.state = "ready"
                entry.deliveries -= 1
            case "retried":
                entry.state, entry.deliveries = "ready", 0
                entry.retries += 1
                entry.retried = True
                entry.run_at = self.clock.now() + delay
            case "lost":
                bound = entry.message.max_deliveries or MAX_DELIVERIES
                if not entry.message.acks_late:
                    self.finish(entry, "failed")
                elif entry.deliveries >= bound:
                    self.finish(entry, "failed", dead=True)
                else:
                    entry.state = "ready"
            case "dead":
                self.finish(entry, "failed", dead=True)
            case _:
                self.finish(entry, kind)

    def finish(
        self, entry: Entry, state: str, *, dead: bool = False, upstream: bool = False
    ) -> None:
        entry.state, entry.dead, entry.upstream = state, dead, upstream
        entry.settled_at = self.clock.now()
        entry.record = None
        fired = {"succeeded": "success", "failed": "failure", "revoked": "failure"}.get(state)
        for edge in self.edges.get(entry.message.id, []):
            target = self.entries[edge.target]
            if edge.on == fired and not upstream:
                if target.state == "waiting":
                    kind = "result" if fired == "success" else "error"
                    target.inputs.append((entry.message.id, kind))
                    target.pending -= 1
                    if target.pending == 0:
                        target.state = "ready"
            elif target.state == "waiting":
                failed = state == "failed" and edge.on == "success"
                self.finish(target, "failed" if failed else "revoked", upstream=True)

    # Death, silence, leaving

    @rule(
        worker=st.integers(0, 2),
        queues=queues,
        kind=kinds,
        again=st.integers(1, 4),
    )
    def worker_dies(self, worker: int, queues: list[str], kind: str, again: int) -> None:
        """A worker claims and falls silent; another takes over; the first comes back."""
        dead, other = self.workers[worker], self.workers[(worker + 1) % 3]
        self.claim(worker, queues, 2)
        self.clock.advance(self.broker.lease_timeout + 1)
        for alive in self.workers:
            if alive != dead:
                assert self.broker.beat(alive)
        lost = [lease for holder, lease in self.leases() if holder == dead]

        reclaimed = self.broker.reclaim(other)

        assert reclaimed == len(lost)
        for lease in lost:
            self.end(self.entries[lease.id], "lost")
        self.claim((worker + 1) % 3, queues, again)
        step = self.broker.step(
            dead, settlements=[(lease, self.outcome(kind, 0)) for lease in lost]
        )
        assert not any(step.accepted), "a worker thought dead settled a lost lease"
        assert not self.broker.beat(dead)
        self.workers[worker] = enlist(self.broker, *QUEUES)

    @rule()
    def reclaim_from_the_living(self) -> None:
        assert self.broker.reclaim() == 0, "a living worker's lease was taken"

    @rule(worker=st.integers(0, 2))
    def worker_leaves(self, worker: int) -> None:
        leaving = self.workers[worker]
        for holder, lease in self.leases():
            if holder == leaving:
                entry = self.entries[lease.id]
                self.end(entry, "released" if entry.message.acks_late else "lost")

        self.broker.unregister(leaving)

        self.workers[worker] = enlist(self.broker, *QUEUES)

    @rule(seconds=st.sampled_from((1, 5, 11, 40, 400)))
    def tick(self, seconds: int) -> None:
        self.clock.advance(seconds)
        for worker in self.workers:
            assert self.broker.beat(worker)

    # Steering and upkeep

    def pick(self, number: int) -> Entry | None:
        there = [e for id, e in self.entries.items() if id not in self.deleted]
        return there[number % len(there)] if there else None

    @precondition(lambda self: self.entries)
    @rule(pick=st.integers(0, 10**6), terminate=st.sampled_from((None, "SIGTERM")))
    def revoke(self, pick: int, terminate: str | None) -> None:
        entry = self.pick(pick)
        if entry is None:
            return
        id = entry.message.id

        answer = self.broker.revoke([id], terminate=terminate)[id]

        if entry.final:
            assert answer == "settled"
        elif entry.state == "running":
            assert answer == ("signalled" if terminate else "running")
            entry.revoking = True
        else:
            assert answer == "revoked"
            self.finish(entry, "revoked")

    @precondition(lambda self: self.entries)
    @rule(pick=st.integers(0, 10**6))
    def redrive(self, pick: int) -> None:
        failed = [e for e in self.entries.values() if e.state == "failed"]
        entry = failed[pick % len(failed)] if failed else self.pick(pick)
        if entry is None or entry.message.id in self.deleted:
            return
        if entry.message.id in self.edges or entry.upstream:
            return

        redriven = self.broker.redrive([entry.message.id])

        assert redriven == ([entry.message.id] if entry.state == "failed" else [])
        if redriven:
            entry.state, entry.dead, entry.revoking = "ready", False, False
            entry.deliveries = entry.retries = 0
            entry.run_at, entry.expires_at = 0.0, None

    @rule()
    def purge(self) -> None:
        waiting = {
            id
            for id, entry in self.entries.items()
            if entry.state == "ready" and entry.message.queue == "side"
        }

        assert self.broker.purge(["side"]) == len(waiting)

        self.deleted |= waiting
        for id in waiting:
            self.entries[id].state = "deleted"

    @rule()
    def maintain(self) -> None:
        slices = 0
        while self.broker.maintain():
            slices += 1
            assert slices < 100, "upkeep comes to no end"
        self.accept_expiry()
        now = self.clock.now()
        for id, entry in self.entries.items():
            assert not (entry.state == "ready" and entry.expired(now)), "expired, not ended"
            kept = entry.message.result_expires
            if entry.state == "ignored":
                kept = min(kept or 3600.0, 3600.0)
            if entry.final and not entry.dead and kept and entry.settled_at + kept <= now:
                entry.state = "deleted"
                self.deleted.add(id)

    @precondition(lambda self: self.store.shared)
    @rule()
    def reopen(self) -> None:
        self.broker.close()
        held = self.leases()
        self.broker = self.store.open(max_deliveries=MAX_DELIVERIES)
        # Locks fall with their broker's process, not with close(): all still live.
        assert self.broker.reclaim() == 0
        assert len(held) == len(self.leases())

    # What must hold after every step

    def accept_expiry(self) -> None:
        """Let the store decide when it notices that a ready message has expired."""
        now = self.clock.now()
        while True:
            late = [
                entry
                for entry in self.entries.values()
                if entry.state == "ready" and entry.expired(now)
            ]
            records = self.broker.get([entry.message.id for entry in late])
            ended = [e for e in late if records[e.message.id].revoked == "expired"]
            if not ended:
                return
            for entry in ended:
                self.finish(entry, "revoked")

    @invariant()
    def nothing_differs(self) -> None:
        self.accept_expiry()
        records = self.broker.get(list(self.entries))

        kept = self.entries.keys() - self.deleted
        lost, back = kept - records.keys(), records.keys() - kept
        assert not lost, f"lost: {[self.entries[id] for id in lost]}"
        assert not back, f"not deleted, or brought back: {[records[id] for id in back]}"
        for id, record in records.items():
            entry = self.entries[id]
            state = "ready" if record.state in READY else record.state
            assert state == entry.state, f"{state}, and should be {entry.state}"
            if entry.final:
                entry.record = entry.record or record
                assert record == entry.record, "a final outcome changed"
                assert (record.dead is not None) == entry.dead
            else:
                assert record.deliveries == entry.deliveries
                assert record.message.retries == entry.retries

        unfinished = {
            id: e for id, e in self.entries.items() if not e.final and id not in self.deleted
        }
        counts = self.broker.counts()
        counted = sum(sum(states.values()) for states in counts.values())
        assert counted == len(unfinished), f"{counts} counted, of {unfinished}"
