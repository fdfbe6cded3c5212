"""How leases end in an SQLite store, within one transaction.

Every way out of a lease names its token: the statement of a stale holder matches no
row, and nothing follows from it. What follows an end is the business of `Following`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import apsw

from liteq import failure
from liteq.brokers.connection import fetch_one
from liteq.brokers.delaying import is_sooner, next_dues
from liteq.brokers.enqueueing import enter_workflow, insert, prepare
from liteq.brokers.following import IGNORED_KEPT, Following, find_open_gather
from liteq.brokers.graph import divide_edges
from liteq.brokers.limiting import free_slots
from liteq.brokers.schema import IGNORED, MOST, QUEUED, SCHEDULED, SUCCEEDED, WAITING
from liteq.brokers.values import ATTEMPTS_KEPT, Lease
from liteq.exceptions import InvalidTaskError, MessageError, NotRegistered, WorkerLostError
from liteq.message import (
    ACKS_LATE,
    GATHER,
    ID,
    IGNORE_RESULT,
    LIMITS,
    PACKED_FIELDS,
    QUEUE,
    RESULT_EXPIRES,
    RETRIES,
    Graph,
    Workflow,
)
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

__all__ = ["SLICE", "WEIGHT", "Settling", "fetch_slice"]

SLICE: Final = 500  # rows that one transaction of upkeep touches: a few milliseconds
SLICE_BYTES: Final = 8_000_000  # of theirs, past which it touches no more: as many again
# What a row is to its pages. `length` reads the head of a row, not the blob.
WEIGHT: Final = "length(body) + coalesce(length(result), 0)"


_SUCCEED: Final = (
    "UPDATE message SET state = ?, token = NULL, result = ?, children = ?, settled_at = ?, "
    "delete_at = ?, note_state = NULL, note = NULL WHERE seq = ? AND token = ?"
)
# The same for `BLOCK` of them: to begin a statement, with the cursors of all indexes that it
# may touch, takes a third of the time of one that changes a single row.
BLOCK: Final = 16
_SUCCEED_BLOCK: Final = (
    "WITH done(state, result, children, settled_at, delete_at, seq, token) AS "
    f"(VALUES {', '.join(['(?,?,?,?,?,?,?)'] * BLOCK)}) "
    "UPDATE message SET state = done.state, token = NULL, result = done.result, "
    "children = done.children, settled_at = done.settled_at, delete_at = done.delete_at, "
    "note_state = NULL, note = NULL FROM done "
    "WHERE message.seq = done.seq AND message.token = done.token"
)
_FAIL: Final = (
    "UPDATE message SET state = 7, token = NULL, result = ?, children = ?, settled_at = ?, "
    "delete_at = ?, dead = ?, note_state = NULL, note = NULL WHERE seq = ? AND token = ?"
)
_REVOKE_LEASE: Final = (
    "UPDATE message SET state = 8, token = NULL, result = NULL, settled_at = ?, "
    "delete_at = ?, revoke = ?, note_state = NULL, note = NULL WHERE seq = ? AND token = ?"
)
_REQUEUE: Final = (
    "UPDATE message SET state = 1, token = NULL, started_at = NULL, note_state = NULL, "
    "note = NULL, deliveries = deliveries - ? WHERE seq = ? AND token = ?"
)
# What nobody was told of is as it was: what others have noted of it stands.
_PUT_BACK: Final = (
    "UPDATE message SET state = 1, token = NULL, started_at = NULL, "
    "deliveries = deliveries - 1 WHERE seq = ? AND token = ?"
)
_ATTEMPT: Final = (
    "INSERT INTO attempt(message, number, outcome, error, worker, started_at, ended_at) "
    "SELECT seq, 1 + coalesce((SELECT max(number) FROM attempt WHERE message = seq), 0), "
    "?, ?, worker, started_at, ? FROM message WHERE seq = ? AND token = ?"
)
_FORGET_ATTEMPTS: Final = (
    "DELETE FROM attempt WHERE message = ?1 "
    f"AND number <= (SELECT max(number) FROM attempt WHERE message = ?1) - {ATTEMPTS_KEPT}"
)
# An edge that led to a message before it was replaced is kept, for who draws them, under
# a name that sets nothing off. They are found by what has come of them, its inputs: of a
# message that is replaced again and again, more and more have led there before.
_RETIRE_EDGES: Final = (
    "UPDATE OR REPLACE edge SET fires = 'was ' || fires WHERE target = ?1 "
    "AND fires NOT LIKE 'was %' AND source IN (SELECT message.seq FROM input "
    "JOIN message ON message.id = input.source WHERE input.target = ?1)"
)
_FORGET_INPUTS: Final = "DELETE FROM input WHERE target = ?"
_ADD_PART: Final = (
    "INSERT INTO edge(source, target, fires, position) SELECT ?1, ?2, 'part', "
    "CASE WHEN ?3 >= 0 THEN ?3 "
    "ELSE 1 + max(coalesce((SELECT max(position) FROM edge WHERE target = ?2), -1), "
    "coalesce((SELECT max(position) FROM input WHERE target = ?2), -1)) END"
)
# All but the id, and the key, which a call keeps whatever runs in its place.
_REPLACED: Final = tuple(name for name in PACKED_FIELDS[1:] if name != "unique_key")
_REPLACEABLE: Final = frozenset(PACKED_FIELDS[1:])
_CHANGEABLE: Final = _REPLACEABLE - {"task", "run_at"}
# What a graph made by a task can be refused for: that is the task's failure, and no reason
# for the worker to lose the rest of its batch.
_REFUSED: Final = (
    InvalidTaskError,
    MessageError,
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.BindingsError,
    apsw.TooBigError,
    TypeError,
)


class Settling:
    """The part of one transaction that ends leases; `following` is what it owes to others.
    `edges` and `waiters`: whether the store has any, if the caller has looked. `opened` is
    set when a slot became free that messages under a limit were waiting for."""

    def __init__(
        self,
        db: apsw.Connection,
        now: float,
        max_deliveries: int,
        *,
        edges: bool | None = None,
        waiters: bool | None = None,
    ) -> None:
        self.db = db
        self.now = now
        self.max_deliveries = max_deliveries
        self.following = Following(db, now, edges=edges, waiters=waiters)
        self.opened = False

    def settle(self, settlements: Sequence[tuple[Lease, Outcome]]) -> tuple[bool, ...]:
        """Record the outcome of each lease; False stands for one that had been lost."""
        plain = [
            (lease, out)
            for lease, out in settlements
            if type(out) is Succeeded and out.added is None
        ]
        if 1 < len(plain) == len(settlements) and self._succeed_all(plain):
            accepted = (True,) * len(settlements)
        else:
            accepted = tuple(self._settle(lease, outcome) for lease, outcome in settlements)
        for (lease, _), ended in zip(settlements, accepted, strict=True):
            if lease.packed[LIMITS] is not None and ended:
                self.opened |= free_slots(self.db, lease.key)
        self.following.follow_all()
        return accepted

    def _succeed_all(self, settlements: Sequence[tuple[Lease, Succeeded]]) -> bool:
        """Settle the common batch, all successes, with few statements.

        Which of them were stale cannot be told afterwards, so if any was, all is undone and
        False returned.
        """
        db = self.db
        bindings = [self._success(lease, outcome) for lease, outcome in settlements]
        before = db.total_changes()
        db.execute("SAVEPOINT batch")
        alone = len(bindings) % BLOCK
        db.executemany(_SUCCEED, bindings[:alone])
        blocks = range(alone, len(bindings), BLOCK)
        db.executemany(
            _SUCCEED_BLOCK, [tuple(chain(*bindings[at : at + BLOCK])) for at in blocks]
        )
        if db.total_changes() - before != len(bindings):
            db.execute("ROLLBACK TO batch")
            db.execute("RELEASE batch")
            return False
        db.execute("RELEASE batch")
        if self.following.quiet():
            self.following.ended += [lease.packed[ID] for lease, _ in settlements]
        else:
            self.following.succeeded(
                *[(lease.key, lease.id, out.result or b"null") for lease, out in settlements]
            )
        return True

    def _settle(self, lease: Lease, outcome: Outcome) -> bool:
        match outcome:
            case Succeeded(added=Graph() as added):
                return self._succeed_adding(lease, outcome, added)
            case Succeeded() | Ignored():
                self.db.execute(_SUCCEED, self._success(lease, outcome))
                if accepted := bool(self.db.changes()):
                    self._after_success(lease, outcome)
                return accepted
            case Failed(error, _, dead, children):
                return self._fail(lease, error, dead, children)
            case Retried():
                return self._retry(lease, outcome)
            case Revoked(reason):
                return self._revoke_lease(lease, reason)
            case Released():
                return self._requeue(lease, uncount=1)
            case Lost(reason):
                return self._lose(lease, reason)
            case Replaced(changes, graph):
                return self._replace(lease, changes, graph)

    def _success(self, lease: Lease, outcome: Outcome) -> tuple[Any, ...]:
        """Return what `_SUCCEED` is to write."""
        expires: float | None = lease.packed[RESULT_EXPIRES]
        if type(outcome) is Succeeded:
            state, result, children = SUCCEEDED, outcome.result, outcome.children
        else:
            state, result, children = IGNORED, None, None
        if lease.packed[IGNORE_RESULT] or state == IGNORED:  # ignore_result
            result = None
            expires = IGNORED_KEPT if expires is None else min(expires, IGNORED_KEPT)
        delete_at = None if expires is None else self.now + expires
        return (state, result, children, self.now, delete_at, lease.key, lease.token)

    def _after_success(self, lease: Lease, outcome: Outcome) -> None:
        if type(outcome) is Succeeded:
            self.following.succeeded((lease.key, lease.id, outcome.result or b"null"))
        else:
            self.following.ignored(lease.key, lease.id)

    def _fail(
        self,
        lease: Lease,
        error: bytes,
        dead: str | None,
        children: str | None,
        attempt: str = "failed",
    ) -> bool:
        expires: float | None = lease.packed[RESULT_EXPIRES]
        delete_at = None if expires is None or dead else self.now + expires
        self._keep_attempt(lease, attempt, error)
        bindings = (error, children, self.now, delete_at, dead, lease.key, lease.token)
        self.db.execute(_FAIL, bindings)
        if not self.db.changes():
            return False
        self.following.failed(lease.key, lease.id, error)
        return True

    def _retry(self, lease: Lease, outcome: Retried) -> bool:
        if self._is_revoked(lease):
            return self._revoke_lease(lease, "revoked")
        changes = {"retries": lease.packed[RETRIES] + 1, **(outcome.changes or {})}
        if unknown := changes.keys() - _CHANGEABLE:
            raise ValueError(f"a retry cannot change {sorted(unknown)}")
        columns = "".join(f", {name} = ?" for name in changes)
        delayed = outcome.run_at > self.now
        queues: list[Any] = [changes.get("queue", lease.packed[QUEUE])] if delayed else []
        before = next_dues(self.db, queues)
        self._keep_attempt(lease, "retried", outcome.error)
        self.db.execute(
            "UPDATE message SET token = NULL, started_at = NULL, note_state = NULL, "
            f"note = NULL, deliveries = 0, state = ?, run_at = ?, result = ?{columns} "
            "WHERE seq = ? AND token = ?",
            (
                SCHEDULED if delayed else QUEUED,
                outcome.run_at,
                outcome.error,
                *changes.values(),
                lease.key,
                lease.token,
            ),
        )
        if not self.db.changes():
            return False
        if not delayed or is_sooner(self.db, queues, before, self.now):
            self.following.queued = True
        return True

    def _replace(self, lease: Lease, changes: Mapping[str, Any], graph: Graph) -> bool:
        if self._is_revoked(lease):
            return self._revoke_lease(lease, "revoked")
        if not self._is_held(lease):
            return False
        error = self._attempt(lambda: self._graft(lease, changes, graph))
        return True if error is None else self._fail(lease, error, None, None)

    def _graft(self, lease: Lease, changes: Mapping[str, Any], graph: Graph) -> None:
        """Make the message into the last of the graph, and write the others before it; and
        what is added to the workflow."""
        if unknown := changes.keys() - _REPLACEABLE:
            raise InvalidTaskError(f"a replacement cannot change {sorted(unknown)}")
        old = dict(zip(PACKED_FIELDS, lease.packed, strict=True))
        new = {**old, "retries": 0, **changes}
        itself = (lease.id, new["task"], new["body"])
        inner, parts = divide_edges(graph.messages, graph.edges, lease.id)
        batch = prepare(graph.messages, inner, self.now, itself)
        pending = batch.counted.get(lease.id, 0)
        if pending or new["task"] == GATHER:
            state = WAITING
        else:
            later = new["run_at"] is not None and new["run_at"] > self.now
            state = SCHEDULED if later else QUEUED
        workflow = self._workflow_of(lease)
        if workflow is None and graph.messages:
            workflow = enter_workflow(self.db, Workflow(lease.id, lease.task), self.now)
        columns = "".join(f", {name} = ?" for name in _REPLACED)
        self._keep_attempt(lease, "replaced", None)
        self.db.execute(
            "UPDATE message SET token = NULL, started_at = NULL, note_state = NULL, "
            "note = NULL, deliveries = 0, inputs = 0, result = NULL, state = ?, pending = ?, "
            f"workflow = ?{columns} WHERE seq = ? AND token = ?",
            (
                state,
                pending,
                workflow,
                *(new[name] for name in _REPLACED),
                lease.key,
                lease.token,
            ),
        )
        if state != WAITING:
            self.following.queued = True
        self.db.execute(_RETIRE_EDGES, (lease.key,))
        self.db.execute(_FORGET_INPUTS, (lease.key,))
        self._add_parts(parts, insert(self.following, batch, workflow, {lease.id: lease.key}))
        if new["task"] == GATHER and not pending:
            self.following.join(lease.key)

    def _succeed_adding(self, lease: Lease, outcome: Succeeded, added: Graph) -> bool:
        if not self._is_held(lease):
            return False
        error = self._attempt(lambda: self._add(lease, added))
        if error is not None:
            return self._fail(lease, error, None, outcome.children)
        return self._settle(lease, outcome._replace(added=None))

    def _add(self, lease: Lease, added: Graph) -> None:
        """Write what a task adds to its workflow."""
        inner, parts = divide_edges(added.messages, added.edges)
        batch = prepare(added.messages, inner, self.now)
        self._add_parts(parts, insert(self.following, batch, self._workflow_of(lease)))

    def _add_parts(
        self, parts: Sequence[tuple[str, str, str, int]], new: Mapping[str, int]
    ) -> None:
        """Have gathers of the store wait for messages that are new. One that is over takes
        no more parts: what was meant to be one runs all the same."""
        for source, target, _, position in parts:
            gather = find_open_gather(self.db, target)
            if gather is not None and source in new:
                self.db.execute(_ADD_PART, (new[source], gather, position))
                self.db.execute(
                    f"UPDATE message SET pending = min(pending, {MOST}) + 1 WHERE seq = ?",
                    (gather,),
                )
                self.following.edges_added()

    def _attempt(self, body: Callable[[], None]) -> bytes | None:
        """Do it as a whole or not at all; return the error if the store refuses it."""
        self.db.execute("SAVEPOINT attempt")
        mark = self.following.mark()
        try:
            body()
        except _REFUSED as exc:
            self.db.execute("ROLLBACK TO attempt")
            self.db.execute("RELEASE attempt")
            self.following.back_to(mark)
            return failure.describe(exc, traceback="")
        self.db.execute("RELEASE attempt")
        return None

    def _workflow_of(self, lease: Lease) -> int | None:
        number: int | None = fetch_one(
            self.db, "SELECT workflow FROM message WHERE seq = ?", (lease.key,)
        )
        return number

    def _is_held(self, lease: Lease) -> bool:
        return bool(
            fetch_one(
                self.db,
                "SELECT EXISTS(SELECT 1 FROM message WHERE seq = ? AND token = ?)",
                (lease.key, lease.token),
            )
        )

    def _revoke_lease(self, lease: Lease, reason: str) -> bool:
        expires: float | None = lease.packed[RESULT_EXPIRES]
        delete_at = None if expires is None else self.now + expires
        self.db.execute(_REVOKE_LEASE, (self.now, delete_at, reason, lease.key, lease.token))
        if not self.db.changes():
            return False
        self.following.revoked(lease.key, lease.id, reason)
        return True

    def _requeue(self, lease: Lease, *, uncount: int) -> bool:
        if self._is_revoked(lease):
            return self._revoke_lease(lease, "revoked")
        self.db.execute(_REQUEUE, (uncount, lease.key, lease.token))
        if not self.db.changes():
            return False
        self.following.queued = True
        return True

    def put_back(self, lease: Lease) -> None:
        """Undo a claim in its own transaction."""
        self.db.execute(_PUT_BACK, (lease.key, lease.token))
        self.following.queued = True

    def _lose(self, lease: Lease, reason: str) -> bool:
        if self._is_revoked(lease):
            return self._revoke_lease(lease, "revoked")
        error = failure.describe(WorkerLostError(reason))
        if not lease.packed[ACKS_LATE]:  # acks_late is off: never a second start
            return self._fail(lease, error, None, None, "lost")
        if lease.is_last_start(self.max_deliveries):
            times = "once" if lease.delivery == 1 else f"{lease.delivery} times"
            dead = f"started {times} and never ended; the last time, {reason}"
            return self._fail(lease, error, dead, None, "lost")
        self._keep_attempt(lease, "lost", error)
        return self._requeue(lease, uncount=0)

    def _is_revoked(self, lease: Lease) -> bool:
        return bool(
            fetch_one(
                self.db,
                "SELECT revoke IS NOT NULL FROM message WHERE seq = ? AND token = ?",
                (lease.key, lease.token),
            )
        )

    def give_up_parked(self, before: float) -> None:
        """Make dead letters of messages whose task nobody has known for so long."""
        parked, _ = fetch_slice(
            self.db,
            f"SELECT {WEIGHT}, seq, id, task FROM message WHERE state = 4 AND parked_at <= ?",
            (before,),
        )
        for _, seq, id, task in parked:
            reason = f"unknown task {task!r}: no worker that has seen it knows this task"
            error = failure.describe(NotRegistered(reason))
            self.db.execute(
                "UPDATE message SET state = 7, settled_at = ?, dead = ?, result = ? "
                "WHERE seq = ?",
                (self.now, reason, error, seq),
            )
            self.following.failed(seq, id, error)

    def _keep_attempt(self, lease: Lease, outcome: str, error: bytes | None) -> None:
        """Write down an attempt that ends now, and forget the oldest if there are too many;
        before the lease is given up, which wipes what is to be written down. A stale lease
        matches no row here either."""
        self.db.execute(_ATTEMPT, (outcome, error, self.now, lease.key, lease.token))
        self.db.execute(_FORGET_ATTEMPTS, (lease.key,))


def fetch_slice(
    db: apsw.Connection, sql: str, bindings: Sequence[Any]
) -> tuple[list[tuple[Any, ...]], bool]:
    """Return the first rows that a query finds, each with its `WEIGHT` in front, and whether
    there may be more. They are few where they are large: to write or free five hundred of
    some megabytes each would hold the write lock for seconds."""
    rows: list[tuple[Any, ...]] = []
    weight = 0
    cursor = db.execute(f"{sql} LIMIT {SLICE}", bindings)
    for row in cursor:
        rows.append(row)
        weight += row[0]
        if weight > SLICE_BYTES:
            break
    cursor.close()  # see `fetch_all`
    return rows, weight > SLICE_BYTES or len(rows) == SLICE
