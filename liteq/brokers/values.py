"""What a store says of messages, workers, queues, workflows and schedules.

Named tuples: frozen dataclasses would add 10 ms to every `import liteq`, and some of them
are made for every task.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from liteq.message import (
    ACKS_LATE,
    ID,
    MAX_DELIVERIES,
    QUEUE,
    SOFT_TIME_LIMIT,
    TASK,
    TIME_LIMIT,
    Message,
    Packed,
)

__all__ = [
    "ATTEMPTS_KEPT",
    "FINAL_STATES",
    "Aside",
    "Attempt",
    "Events",
    "Input",
    "Lease",
    "Letter",
    "Node",
    "Note",
    "QueueInfo",
    "Record",
    "RevokeAnswer",
    "Rewrite",
    "Said",
    "Schedule",
    "State",
    "Step",
    "WorkerInfo",
    "WorkflowInfo",
]

State: TypeAlias = Literal[
    "waiting",  # for other messages (a callback)
    "scheduled",  # for its time: an ETA
    "queued",  # claimable
    "limited",  # claimable as soon as the limits that it is under have room
    "parked",  # queued, but no worker that has seen it knows its task
    "running",  # claimed: a worker holds the lease
    "retrying",  # for its time: the task asked for another attempt
    "succeeded",
    "failed",
    "revoked",
    "ignored",
]
FINAL_STATES: Final[frozenset[State]] = frozenset({"succeeded", "failed", "revoked", "ignored"})

_UNSTARTED: Final[tuple[State, ...]] = ("queued", "limited", "scheduled", "parked")

RevokeAnswer: TypeAlias = Literal["revoked", "signalled", "running", "settled", "unknown"]


class Input(NamedTuple):
    """What a finished message left for one that waited for it.

    `kind` is "result" (value: the serialised result), "error" (value: a record of
    `failure`) or "list" (of a gather; value: what `parts.pack` makes). `source` is the
    finished message's id.
    """

    source: str
    kind: Literal["result", "error", "list"]
    position: int
    value: bytes


class Lease(NamedTuple):
    """The right to run one message once, and to settle it.

    `key` names the message inside the store; `token` is the fence: a settle with another
    token than the stored one changes nothing. `delivery` counts from 1 how often the
    message was started; it goes up again only when a process died under it.
    `packed` is `Message.pack()`: the worker hands it on without looking inside.
    """

    key: int
    token: int
    delivery: int
    packed: Packed
    inputs: tuple[Input, ...] = ()

    def __repr__(self) -> str:
        return f"<Lease {self.task}[{self.id}]: delivery {self.delivery}>"  # not the body

    @property
    def id(self) -> str:
        id: str = self.packed[ID]
        return id

    @property
    def task(self) -> str:
        task: str = self.packed[TASK]
        return task

    @property
    def time_limit(self) -> float | None:
        limit: float | None = self.packed[TIME_LIMIT]
        return limit

    @property
    def soft_time_limit(self) -> float | None:
        limit: float | None = self.packed[SOFT_TIME_LIMIT]
        return limit

    @property
    def message(self) -> Message:
        """The message, unpacked anew at each call."""
        return Message.unpack(self.packed)

    @property
    def outline(self) -> Message:
        """As much of the message as can be read, to be shown; see `Message.outline`."""
        return Message.outline(self.packed)

    def is_last_start(self, max_deliveries: int) -> bool:
        """Tell whether the message is not started again should its process die now.
        `max_deliveries` is the broker's; the message's own goes before it."""
        return not self.packed[ACKS_LATE] or self.delivery >= (
            self.packed[MAX_DELIVERIES] or max_deliveries
        )


class Note(NamedTuple):
    """A state that a running task reports about itself (`update_state`, progress).

    `state` is a Celery-style name ("PROGRESS"), `meta` the serialised value.
    """

    state: str
    meta: bytes


class Rewrite(NamedTuple):
    """A running task's message has this envelope from now on: with a checkpoint, from which
    its next attempt goes on. What the task shows of itself stays as it is."""

    envelope: str | None


Said: TypeAlias = Note | Rewrite  # what a running task says


ATTEMPTS_KEPT: Final = 50  # of each message, the latest: one may be retried for months


class Attempt(NamedTuple):
    """One attempt that did not succeed. `outcome`: retried, failed, lost, revoked, or
    replaced, after which the message is another."""

    number: int
    outcome: str
    error: bytes | None
    worker: str | None
    started_at: float | None
    ended_at: float


class Record(NamedTuple):
    """What the store knows about one message. Times are Unix seconds."""

    id: str
    state: State
    packed: Packed
    result: bytes | None  # succeeded: value; failed, retrying: error record
    note: Note | None
    deliveries: int
    enqueued_at: float
    started_at: float | None
    settled_at: float | None
    worker: str | None
    children: str | None
    dead: str | None  # why it is a dead letter; None if it is none
    # Why it was revoked: revoked, terminated, expired; or "upstream", when revoked or
    # failed without having run, since what it waited for did not end as it was to.
    revoked: str | None
    workflow: str | None = None  # the id of the workflow that it is a node of

    def __repr__(self) -> str:
        return f"<Record {self.packed[TASK]}[{self.id}]: {self.state}>"  # not the body

    @property
    def message(self) -> Message:
        """The message, unpacked anew at each call."""
        return Message.unpack(self.packed)

    @property
    def outline(self) -> Message:
        """As much of the message as can be read, to be shown; see `Message.outline`."""
        return Message.outline(self.packed)

    @property
    def final(self) -> bool:
        return self.state in FINAL_STATES

    @property
    def early(self) -> bool:
        """Whether it is not a message but a state, stored for an id whose call is not sent
        yet. See `Broker.store`."""
        return self.state == "waiting" and self.packed[QUEUE] == ""


class WorkerInfo(NamedTuple):
    """A worker as the others see it. `beat_age` is seconds since its last heartbeat,
    `leases` how many messages it holds; `state` and `leases` are told by `roster()`."""

    id: int
    name: str
    hostname: str
    pid: int
    queues: tuple[str, ...]
    concurrency: int
    started_at: float
    beat_age: float
    details: Mapping[str, Any]
    state: Literal["alive", "stuck", "dead"] = "alive"
    leases: int = 0


class QueueInfo(NamedTuple):
    """A queue as a whole, its unfinished messages counted by state (those that wait for
    another attempt as "scheduled").

    `limit`: how many may wait, as the asking instance was told (`max_length`). `latency`:
    how many seconds the first in line has been claimable (of those of each priority, the
    longest); None if nothing is. `dead`: how many dead letters it has.
    """

    name: str
    counts: Mapping[State, int]
    paused: bool = False
    limit: int | None = None
    latency: float | None = None
    dead: int = 0

    @property
    def length(self) -> int:
        """How many messages wait to be started: what `limit` counts, and `purge()` deletes."""
        return sum(self.counts.get(state, 0) for state in _UNSTARTED)


class Node(NamedTuple):
    """One message of a workflow, for who draws or counts them. `name` is the message's
    `node`, else its `shadow`, else its task."""

    id: str
    name: str
    task: str
    state: State
    upstream: bool  # ended without having run
    started_at: float | None
    settled_at: float | None


class WorkflowInfo(NamedTuple):
    """A workflow as a whole; its nodes counted by state, gathers left out.

    `upstream`: how many of those revoked never ran because of what they waited for, as
    an error callback of what has succeeded. `state`: "running" while a node is not final;
    then "failed" if one failed, else "revoked" if one was revoked (and not `upstream`) or
    ignored, else "succeeded". `done`: how many have ended, of `total`; `failed`: of those.
    """

    id: str
    name: str
    created_at: float
    counts: Mapping[State, int]
    upstream: int = 0

    @property
    def state(self) -> str:
        if self.counts.keys() - FINAL_STATES:
            return "running"
        if "failed" in self.counts:
            return "failed"
        stopped = self.counts.get("revoked", 0) - self.upstream
        return "revoked" if stopped or "ignored" in self.counts else "succeeded"

    @property
    def done(self) -> int:
        return sum(self.counts.get(state, 0) for state in FINAL_STATES)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def failed(self) -> int:
        return self.counts.get("failed", 0)


class Schedule(NamedTuple):
    """A periodic entry as the store keeps it. Times are Unix seconds.

    `entry` is what beat makes of it (JSON): the store does not look inside. `due_at` is
    the instant of the next fire, None for never. `origin` is "code" for entries that the
    app declares, "runtime" for those made by `app.schedules`. `revision` changes with
    every change that is no fire.
    """

    name: str
    entry: bytes
    due_at: float | None
    origin: Literal["code", "runtime"] = "code"
    paused: bool = False
    last_due_at: float | None = None  # the instant that was fired last
    last_run_at: float | None = None  # and when that was
    last_id: str | None = None  # of the message that it enqueued
    total: int = 0
    revision: int = 0


# Why a claim took a message not for a lease, but aside.
Aside: TypeAlias = Literal["parked", "expired", "damaged"]


class Step(NamedTuple):
    """The answer to one `Broker.step()`.

    `accepted[i]` is False when settlement i came from a holder that had lost its lease.
    `next_due` is when the next delayed message of these queues is due (Unix seconds, by the
    broker's `clock`); by now, if more was due, or to be put aside, than one step sees to: the
    next one is to be made at once.
    `terminate` holds the keys of leases of this worker whose run is to be ended now,
    with the name of the signal asked for; "revoked": only if it has not started. `alive` is
    False when this worker was given up for dead: nothing was claimed, and it must `register()`
    anew. `aside` are messages that the claim met and did not take: "parked", since this
    worker does not know their task, revoked as "expired", or made dead letters, since another
    program has "damaged" what they are in the store. `mail`: letters wait for this worker.
    `heard`: somebody listens to events. `standby`: the token of the leases that may come to
    an idle worker without a step; 0: it does not stand by.
    """

    accepted: tuple[bool, ...]
    leases: tuple[Lease, ...]
    next_due: float | None
    terminate: Mapping[int, str]
    alive: bool = True
    aside: tuple[tuple[Lease, Aside], ...] = ()
    mail: bool = False
    heard: bool = False
    standby: int = 0


class Letter(NamedTuple):
    """Bytes for a worker (`to`: its id) or for a mailbox (its name), which are dropped when
    nobody has collected them within `seconds`."""

    to: int | str
    body: bytes
    seconds: float


class Events(NamedTuple):
    """A slice of the stream of events. `last`: the number to read on from. `missed`: how
    many were dropped before this reader came to them. If the store has lost data, `last` is
    behind where the reader was, and one was missed."""

    last: int
    missed: int
    bodies: tuple[bytes, ...]
