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
from world import FakeClock, Store, enlist, make, wait_until

from liteq import failure, parts
from liteq.brokers.base import FINAL_STATES, Broker, Lease, Mailbox, Note, Record, Rewrite, Said
from liteq.exceptions import AlreadyEnqueued
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
QUEUES = ("a", "b", "side")  # nothing waits for messages in "side", so it may be purged
POLICIES = ("fail", "fail", "collect", "skip", "count")
MAX_DELIVERIES = 2

# A message that is neither running nor over nor waiting for another is "ready": whether
# the store calls it queued, scheduled or retrying depends on when it looked.
READY = ("queued", "scheduled", "retrying", "parked")


@dataclass
class Joint:
    """An edge, and what it has carried: how its source ended, if that met it."""

    edge: Edge
    met: str | None = None  # "result", "error" or "list"
    retired: bool = False  # its target was replaced since


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
    dead: bool = False
    upstream: bool = False
    retried: bool = False
    revoking: bool = False
    lease: Lease | None = None
    worker: int | None = None
    settled_at: float = 0.0
    before: list[Joint] = field(default_factory=list)
    behind: list[Joint] = field(default_factory=list)
    record: Record | None = None  # as it was when the message had just ended

    @property
    def id(self) -> str:
        return self.message.id

    @property
    def policy(self) -> str | None:
        return self.message.body.decode() if self.message.task == GATHER else None

    @property
    def final(self) -> bool:
        return self.state in FINAL_STATES

    @property
    def unmet(self) -> list[Joint]:
        return [joint for joint in self.before if not joint.met and not joint.retired]

    @property
    def inputs(self) -> list[tuple[str, str]]:
        given = [joint for joint in self.before if joint.met and not joint.retired]
        given.sort(key=lambda joint: (joint.edge.position, joint.edge.source))
        return [(joint.edge.source, joint.met or "") for joint in given]

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


@dataclass
class Standing:
    """A worker that stands by."""

    mailbox: Mailbox
    queues: list[str]
    token: int


@dataclass
class End:
    """How an entry has ended, for those behind it."""

    entry: Entry
    kind: str  # what it hands on: "result", "list" or "error"
    tells: bool = True  # error callbacks are called
    silent: bool = False  # nothing failed: there is just no value


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
        self.ended: list[End] = []
        self.calls: dict[str, tuple[Any, ...]] = {}  # what enqueued it
        self.stale: list[tuple[int, Lease]] = []
        self.workers: list[int] = []
        self.standing: dict[int, Standing] = {}  # by worker

    def teardown(self) -> None:
        for standing in self.standing.values():
            standing.mailbox.close()
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

    @rule(batch=st.lists(made, min_size=1, max_size=4), lost=st.booleans())
    def enqueue(self, batch: list[dict[str, Any]], lost: bool) -> None:
        self.put([self.make(fields) for fields in batch], [])
        if len(batch) == 1:
            (fields,) = batch
            self.take_over(list(self.entries)[-1], fields, lost=lost)

    @rule(
        queues=st.lists(st.sampled_from(QUEUES), min_size=1, max_size=3, unique=True),
        before=st.lists(made, max_size=2),
        due=st.booleans(),
        two=st.lists(made, min_size=2, max_size=2),
        lost=st.booleans(),
    )
    def enqueue_for_one_that_stands_by(
        self,
        queues: list[str],
        before: list[dict[str, Any]],
        due: bool,
        two: list[dict[str, Any]],
        lost: bool,
    ) -> None:
        # Always the same, for of several a store may choose any, and chance is not to be its.
        if not self.held(self.workers[0]):
            self.stand_by(self.workers[0], queues)
        delay = {"delay": 7} if due else {}
        if before:
            self.enqueue([{**fields, "queue": queues[-1], **delay} for fields in before], lost)
        if due:
            self.tick(7)
        for fields in two:
            plain = {"queue": queues[0], "delay": None, "expires": None, "acks_late": True}
            self.enqueue([fields | plain], lost)

    def take_over(self, id: str, fields: dict[str, Any], *, lost: bool) -> None:
        """Take what may have been leased to a worker that stands by: from its mailbox or, if
        that is lost, by its next step."""
        (record,) = self.broker.get([id]).values()
        if record.state != "running":
            return
        assert fields["acks_late"]
        assert fields["expires"] is None
        worker, lease = wait_until(self.brought)
        standing = self.standing[worker]
        assert (lease.id, lease.token) == (id, standing.token)
        assert not self.held(worker), "it was not idle"
        expected = self.expected_claim(standing.queues, 1)
        assert [id] == expected, self.explain((lease,), expected)
        if lost:
            self.stand_by(worker, standing.queues)
            assert standing.token != lease.token, "it might be taken twice"
        else:
            self.note_claimed(worker, (lease,))

    def brought(self) -> tuple[int, Lease] | None:
        for worker, standing in self.standing.items():
            standing.mailbox.wait(0.01)
            for lease in standing.mailbox.leases():
                return worker, lease
        return None

    def held(self, worker: int) -> list[Entry]:
        return [
            entry
            for entry in self.entries.values()
            if entry.state == "running" and entry.worker == worker
        ]

    def put(
        self, messages: list[Message], edges: list[Edge], workflow: Workflow | None = None
    ) -> None:
        for message in messages:
            self.calls[message.id] = (messages, edges, workflow)
        self.broker.enqueue(messages, edges, workflow)

    nodes = st.lists(
        st.tuples(
            st.sampled_from(("task", "task", "task", "gather", "gather", "callback")),
            made,
            st.lists(st.integers(0, 9), max_size=3, unique=True),
            st.sampled_from(("a", "b")),
            st.sampled_from(POLICIES),
        ),
        min_size=2,
        max_size=7,
    )

    @rule(nodes=nodes, named=st.booleans())
    def enqueue_graph(self, nodes: list[Any], named: bool) -> None:
        messages: list[Message] = []
        edges: list[Edge] = []
        for kind, fields, picks, queue, policy in nodes:
            there = [message.id for message in messages]
            sources = list(dict.fromkeys(there[pick % len(there)] for pick in picks if there))
            if kind == "gather":
                message = self.make_gather(policy, fields)
                edges += [Edge(one, message.id, "part", n) for n, one in enumerate(sources)]
            else:
                message = self.make(fields, queue=queue)
                if kind == "callback":
                    edges += [Edge(one, message.id, "failure") for one in sources[:1]]
                else:
                    edges += [Edge(one, message.id, "success") for one in sources]
            messages.append(message)
        self.join(edges)
        self.end_empty_gathers(messages)
        self.put(messages, edges, Workflow(messages[-1].id, "graph") if named else None)

    def make_gather(self, policy: str, fields: dict[str, Any]) -> Message:
        message = make(GATHER, policy.encode(), result_expires=fields["result_expires"])
        self.entries[message.id] = Entry(message, seq=len(self.entries), state="waiting")
        return message

    def join(self, edges: list[Edge]) -> None:
        for edge in edges:
            joint = Joint(edge)
            self.entries[edge.source].behind.append(joint)
            self.entries[edge.target].before.append(joint)
            if not self.entries[edge.target].final:
                self.entries[edge.target].state = "waiting"

    def end_empty_gathers(self, messages: list[Message]) -> None:
        for message in messages:
            entry = self.entries[message.id]
            if entry.policy and not entry.before:
                self.finish(entry, "succeeded", kind="list")
        self.follow()

    @precondition(lambda self: self.entries)
    @rule(pick=st.integers(0, 10**6), changed=st.booleans())
    def enqueue_again(self, pick: int, changed: bool) -> None:
        entry = self.pick(pick)
        if entry is None:
            return
        if not changed:
            messages, *rest = self.calls.get(entry.id, ([],))
            if messages and not self.deleted & {message.id for message in messages}:
                self.broker.enqueue(messages, *rest)
            return
        if entry.retried or entry.message.on_conflict == "replace":
            return  # its body may be another by now: any is taken for the first
        try:
            self.broker.enqueue(
                [make(id="new"), entry.message._replace(task="other", body=b"other")]
            )
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
            entry.state == "ready" and entry.expired(now) and entry.behind
            for entry in self.entries.values()
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
        tokens = {(lease.key, lease.token) for _, lease in self.stale}
        for lease in leases:
            entry = self.entries[lease.id]
            entry.state = "running"
            entry.deliveries += 1
            entry.lease, entry.worker = lease, worker
            assert lease.delivery == entry.deliveries
            assert (lease.key, lease.token) not in tokens, "a token was used again"
            given = [(one.source, one.kind) for one in lease.inputs]
            assert given == entry.inputs, "the inputs are not those of what it waited for"
            bound = entry.message.max_deliveries or MAX_DELIVERIES
            assert lease.delivery <= bound, "started more often than max_deliveries allows"
            kept = entry.message.checkpoint
            assert lease.message.checkpoint == kept, "it does not go on from its checkpoint"

    @rule(worker=st.integers(0, 2), queues=queues, limit=st.integers(1, 4))
    def claim(self, worker: int, queues: list[str], limit: int) -> None:
        if self.chain_reaction_due():
            self.maintain()
        expected = self.expected_claim(queues, limit)

        leases = self.broker.claim(self.workers[worker], queues, limit)

        assert [lease.id for lease in leases] == expected, self.explain(leases, expected)
        self.note_claimed(self.workers[worker], leases)
        self.accept_expiry()

    def stand_by(self, worker: int, queues: list[str]) -> None:
        if self.chain_reaction_due():
            self.maintain()
        if worker not in self.standing:
            self.standing[worker] = Standing(self.broker.mailbox(worker), queues, 0)
        expected = self.expected_claim(queues, 1)

        step = self.broker.step(worker, queues=queues, limit=1, idle=True)

        leases = step.leases
        assert [lease.id for lease in leases] == expected, self.explain(leases, expected)
        self.note_claimed(worker, leases)
        self.accept_expiry()
        self.standing[worker].queues = queues
        self.standing[worker].token = step.standby

    # Settle

    kinds = st.sampled_from(
        (
            "succeeded",
            "succeeded",
            "succeeded",
            "added",
            "replaced",
            "failed",
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

    def outcome(self, kind: str, delay: int, id: str, shape: int = 0) -> Outcome:
        return {
            "succeeded": Succeeded(_value(id)),
            "added": Succeeded(_value(id), added=self.added(shape)),
            "replaced": self.replaced(id, shape),
            "failed": Failed(ERROR),
            "dead": Failed(ERROR, dead="undecodable body"),
            "retried": Retried(self.clock.now() + delay, ERROR),
            "ignored": Ignored(),
            "revoked": Revoked("terminated"),
            "released": Released(),
            "lost": Lost("signal 9 (SIGKILL)"),
        }[kind]

    def added(self, shape: int) -> Graph:
        """Return one new message, a further part of some gather if there is one."""
        new = make(queue="a")
        gathers = [entry.id for entry in self.entries.values() if entry.policy]
        edges = [(new.id, gathers[shape % len(gathers)], "part", -1)] if gathers else []
        return Graph((new.pack(),), tuple(edges))

    def replaced(self, id: str, shape: int) -> Replaced:
        """Return what puts another task, a short chain or a gather in a message's place."""
        new = [make(queue="b") for _ in range(shape % 3)]
        if shape % 2:
            changes = {"task": GATHER, "body": POLICIES[shape % 5].encode()}
            edges = [(one.id, id, "part", n) for n, one in enumerate(new)]
        else:
            changes = {"task": "shop.other", "body": b"[[1], {}]"}
            edges = [(one.id, id, "success", n) for n, one in enumerate(new)]
        return Replaced(changes, Graph(tuple(one.pack() for one in new), tuple(edges)))

    def plant(self, graph: Graph) -> None:
        """Enter the messages of a graph that was accepted."""
        for packed in graph.messages:
            message = Message.unpack(packed)
            self.entries[message.id] = Entry(message, seq=len(self.entries))
        for edge in map(Edge._make, graph.edges):
            target = self.entries[edge.target]
            if target.id in self.deleted or (target.final and not target.upstream):
                continue  # a gather that is over takes no more parts
            if edge.position < 0:
                last = max((joint.edge.position for joint in target.before), default=-1)
                edge = edge._replace(position=last + 1)
            self.join([edge])

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
        shape=st.integers(0, 29),
        queues=queues,
        limit=st.integers(0, 2),
    )
    def settle_and_claim(
        self,
        pick: int,
        kinds: list[str],
        delay: int,
        shape: int,
        queues: list[str],
        limit: int,
    ) -> None:
        held = self.leases()
        worker = held[pick % len(held)][0]
        mine = [lease for holder, lease in held if holder == worker]
        ending = list(zip(mine, kinds, strict=False))
        settlements = [
            (lease, self.outcome(kind, delay, lease.id, shape)) for lease, kind in ending
        ]
        for (lease, outcome), kind in zip(settlements, kinds, strict=False):
            self.end(self.entries[lease.id], kind, delay, outcome)
        self.follow()
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
        envelope = lease.message._replace(checkpoint="late").pack()[-1]
        said: tuple[Said, ...] = (Note("LATE", b"1"), Rewrite(envelope)) if noted else ()
        notes = [(lease, one) for one in said]

        step = self.broker.step(
            worker, settlements=[(lease, self.outcome(kind, 0, lease.id, 4))], notes=notes
        )

        assert step.accepted == (False,), "a lease settled twice, or after it was lost"

    @precondition(lambda self: self.leases())
    @rule(pick=st.integers(0, 10**6))
    def note(self, pick: int) -> None:
        held = self.leases()
        worker, lease = held[pick % len(held)]

        self.broker.step(worker, notes=[(lease, Note("PROGRESS", b"1"))])

        assert self.broker.get([lease.id])[lease.id].note == Note("PROGRESS", b"1")

    @precondition(lambda self: self.leases())
    @rule(pick=st.integers(0, 10**6), value=st.sampled_from(("1", "2", None)))
    def keep(self, pick: int, value: str | None) -> None:
        held = self.leases()
        worker, lease = held[pick % len(held)]
        entry = self.entries[lease.id]
        entry.message = entry.message._replace(checkpoint=value)

        self.broker.step(worker, notes=[(lease, Rewrite(entry.message.pack()[-1]))])

    # What an end means

    def end(
        self, entry: Entry, kind: str, delay: int = 0, outcome: Outcome | None = None
    ) -> None:
        """Apply an accepted outcome to the model. To be followed by `follow()`."""
        assert entry.lease is not None
        assert entry.worker is not None
        self.stale.append((entry.worker, entry.lease))
        entry.lease = entry.worker = None
        match kind:
            case "retried" | "replaced" | "released" | "lost" if entry.revoking:
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
            case "added":
                assert isinstance(outcome, Succeeded)
                assert outcome.added is not None
                self.plant(outcome.added)
                self.finish(entry, "succeeded")
            case "replaced":
                assert isinstance(outcome, Replaced)
                self.replace(entry, outcome)
            case "ignored":
                self.finish(entry, "ignored", tells=False, silent=True)
            case _:
                self.finish(entry, kind)

    def replace(self, entry: Entry, outcome: Replaced) -> None:
        for joint in entry.before:
            joint.retired = True
        entry.state, entry.deliveries, entry.retries, entry.retried = "ready", 0, 0, True
        _, lease = self.stale[-1]  # another call: it begins as this attempt did
        begun = {"checkpoint": lease.message.checkpoint}
        entry.message = entry.message._replace(**{**begun, **outcome.changes})
        self.plant(outcome.graph)
        if entry.policy and not entry.unmet:
            self.finish(entry, "succeeded", kind="list")

    def finish(
        self,
        entry: Entry,
        state: str,
        *,
        dead: bool = False,
        upstream: bool = False,
        kind: str = "",
        tells: bool = True,
        silent: bool = False,
    ) -> None:
        """End an entry. To be followed by `follow()`."""
        entry.state, entry.dead, entry.upstream = state, dead, upstream
        entry.settled_at = self.clock.now()
        entry.record = None
        kind = kind or ("result" if state == "succeeded" else "error")
        self.ended.append(End(entry, kind, tells, silent))

    def follow(self) -> None:
        """Apply what the ends of one step mean for those behind them, round by round."""
        while self.ended:
            ends, self.ended = self.ended, []
            arrivals: dict[str, list[tuple[Joint, End]]] = {}
            for end in ends:
                for joint in self.living(end.entry.behind):
                    target = self.entries[joint.edge.target]
                    match joint.edge.on:
                        case "part":
                            arrivals.setdefault(target.id, []).append((joint, end))
                        case "success" if end.kind != "error":
                            self.meet(joint, end.kind)
                        case "failure" if end.kind == "error" and end.tells:
                            self.meet(joint, "error")
                        case "success" if target.state == "waiting":
                            failed = end.entry.state == "failed"
                            chord = end.entry.policy is not None and not end.silent
                            self.finish(
                                target,
                                "failed" if failed else "revoked",
                                upstream=True,
                                tells=chord,
                                silent=end.silent,
                            )
                        case "failure" if target.state == "waiting":
                            self.finish(
                                target, "revoked", upstream=True, tells=False, silent=True
                            )
            for id, parts_ended in arrivals.items():
                self.gather(self.entries[id], parts_ended)

    def living(self, joints: list[Joint]) -> list[Joint]:
        """Return the edges that still lead somewhere, in the order of their targets."""
        left = [
            joint
            for joint in joints
            if not joint.retired and joint.edge.target not in self.deleted
        ]
        return sorted(left, key=lambda joint: self.entries[joint.edge.target].seq)

    def meet(self, joint: Joint, kind: str) -> None:
        target = self.entries[joint.edge.target]
        if target.state == "waiting" or target.upstream:
            joint.met = kind
        if target.state == "waiting" and not target.unmet and not target.policy:
            target.state = "ready"

    def gather(self, entry: Entry, ended: list[tuple[Joint, End]]) -> None:
        bad = [end for _, end in ended if end.kind == "error"]
        for joint, end in ended:
            if end.kind != "error":
                self.meet(joint, end.kind)
            elif entry.policy != "fail":
                self.meet(joint, "error" if entry.policy == "collect" else "nothing")
        if entry.state != "waiting":
            return
        if bad and entry.policy == "fail":
            first = bad[0]
            self.finish(
                entry,
                "revoked" if first.silent else "failed",
                upstream=True,
                tells=not first.silent,
                silent=first.silent,
            )
        elif not entry.unmet:
            self.finish(entry, "succeeded", kind="list")

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
        self.follow()
        self.claim((worker + 1) % 3, queues, again)
        step = self.broker.step(
            dead,
            settlements=[(lease, self.outcome(kind, 0, lease.id, 3)) for lease in lost],
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
                self.follow()

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

    picks = st.lists(st.integers(0, 10**6), min_size=1, max_size=3)

    @precondition(lambda self: self.entries)
    @rule(picks=picks, terminate=st.sampled_from((None, "SIGTERM")))
    def revoke(self, picks: list[int], terminate: str | None) -> None:
        chosen = {entry.id: entry for number in picks if (entry := self.pick(number))}

        answers = self.broker.revoke(chosen, terminate=terminate)

        for id, entry in chosen.items():
            if entry.final:
                assert answers[id] == "settled"
            elif entry.state == "running":
                assert answers[id] == ("signalled" if terminate else "running")
                entry.revoking = True
            else:
                assert answers[id] == "revoked"
                self.finish(entry, "revoked")
        self.follow()

    @precondition(lambda self: self.entries)
    @rule(picks=picks)
    def redrive(self, picks: list[int]) -> None:
        failed = [e for e in self.entries.values() if e.state == "failed"]
        found = [failed[n % len(failed)] if failed else self.pick(n) for n in picks]
        chosen = {entry.id: entry for entry in found if entry}
        failed = []
        for entry in chosen.values():
            if entry.state == "failed" and not entry.upstream and not entry.policy:
                failed += [entry] if self.may_restart(entry, failed) else []

        redriven = self.broker.redrive(chosen)

        assert redriven == [entry.id for entry in failed]
        for entry in failed:
            self.refresh(entry, "waiting" if entry.unmet else "ready")
            entry.run_at, entry.expires_at = 0.0, None
        self.undo(failed)

    def may_restart(self, entry: Entry, restarted: list[Entry]) -> bool:
        """Whether nothing keeps a failed entry from a fresh start, beside these others."""
        return True

    def refresh(self, entry: Entry, state: str) -> None:
        entry.state, entry.dead, entry.upstream, entry.revoking = state, False, False, False
        entry.deliveries = entry.retries = 0
        entry.record = None

    def undo(self, entries: list[Entry]) -> None:
        """Take back what followed the ends of entries that have not ended any more."""
        while entries:
            undone, entries = entries, []
            targets: dict[str, Entry] = {}
            for entry in undone:
                for joint in self.living(entry.behind):
                    target = self.entries[joint.edge.target]
                    targets[target.id] = target
                    if joint.met and joint.edge.on == "failure":
                        if target.state in ("ready", "succeeded", "failed", "ignored"):
                            joint.met = None
                            entries += [target] if target.final else []
                            self.refresh(target, "waiting")
                    elif joint.met and (
                        target.state in ("waiting", "ready") or target.upstream
                    ):
                        joint.met = None
                        if target.state == "ready":
                            target.state = "waiting"
            for target in targets.values():
                if target.upstream and all(map(self.undecided, target.unmet)):
                    self.refresh(target, "waiting")
                    entries.append(target)

    def undecided(self, joint: Joint) -> bool:
        source = self.entries[joint.edge.source]
        return not source.final and source.id not in self.deleted

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
            self.follow()

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
                assert (record.revoked == "upstream") == entry.upstream
                if entry.policy and state == "succeeded":
                    self.compare_list(entry, record)
            else:
                assert record.deliveries == entry.deliveries
                assert record.message.retries == entry.retries

        unfinished = {
            id: e
            for id, e in self.entries.items()
            if not e.final and not e.policy and id not in self.deleted
        }
        counts = self.broker.counts()
        counted = sum(sum(states.values()) for states in counts.values())
        assert counted == len(unfinished), f"{counts} counted, of {unfinished}"
        for entry in unfinished.values():
            hopeless = entry.state == "waiting" and not any(map(self.undecided, entry.unmet))
            assert not hopeless, "it waits for nothing that could still end"

    def compare_list(self, entry: Entry, record: Record) -> None:
        if entry.policy == "count":
            assert record.result is None
            return
        assert record.result is not None
        listed = list(parts.unpack(record.result))
        given = [(source, kind) for source, kind in entry.inputs if kind != "nothing"]
        assert [kind for kind, _ in listed] == [kind for _, kind in given]
        for (source, kind), (_, value) in zip(given, listed, strict=True):
            assert kind != "result" or value == _value(source), "not in the order of its parts"


def _value(id: str) -> bytes:
    return b'"%b"' % id.encode()
