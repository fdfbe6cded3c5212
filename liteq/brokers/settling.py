"""How leases end in an SQLite store, and what follows from it, within one transaction.

Every way out of a lease names its token: the statement of a stale holder matches no
row, and nothing follows from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import apsw

from liteq import failure
from liteq.brokers.base import Lease
from liteq.brokers.connection import fetch_all, fetch_one
from liteq.brokers.schema import STATE_CODES
from liteq.exceptions import NotRegistered, TaskRevokedError, WorkerLostError
from liteq.message import PACKED_FIELDS
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

__all__ = ["SLICE", "Settling"]

SLICE: Final = 500  # rows that one transaction of upkeep touches: a few milliseconds

_QUEUED: Final = STATE_CODES["queued"]
_SCHEDULED: Final = STATE_CODES["scheduled"]
_SUCCEEDED: Final = STATE_CODES["succeeded"]
_IGNORED: Final = STATE_CODES["ignored"]
_IGNORED_KEPT: Final = 3600.0  # seconds an unwanted result's row stays, against repeats

_SUCCEED: Final = (
    "UPDATE message SET state = ?, token = NULL, result = ?, children = ?, settled_at = ?, "
    "delete_at = ?, note_state = NULL, note = NULL WHERE seq = ? AND token = ?"
)
_FAIL: Final = (
    "UPDATE message SET state = 7, token = NULL, result = ?, children = ?, settled_at = ?, "
    "delete_at = ?, dead = ?, note_state = NULL, note = NULL WHERE seq = ? AND token = ?"
)
_REVOKE_LEASE: Final = (
    "UPDATE message SET state = 8, token = NULL, result = NULL, settled_at = ?, "
    "delete_at = ?, revoke = ?, note_state = NULL, note = NULL WHERE seq = ? AND token = ?"
)
_REVOKE: Final = (
    "UPDATE message SET state = 8, result = NULL, settled_at = ?1, "
    "delete_at = ?1 + result_expires, revoke = ?2 "
    "WHERE seq = ?3 AND state < 6 AND state != 3 RETURNING id"
)
_REQUEUE: Final = (
    "UPDATE message SET state = 1, token = NULL, started_at = NULL, note_state = NULL, "
    "note = NULL, deliveries = deliveries - ? WHERE seq = ? AND token = ?"
)
# The right-hand sides see the row as it was, so the due time is worked out twice.
_DUE: Final = "coalesce(?1 + json_extract(envelope, '$.countdown'), run_at)"
_GIVE: Final = (
    "UPDATE message SET pending = pending - 1, inputs = inputs + 1, state = CASE "
    f"WHEN pending > 1 THEN 0 WHEN {_DUE} > ?1 THEN 2 ELSE 1 END, "
    f"run_at = CASE WHEN pending > 1 THEN run_at ELSE {_DUE} END, "
    "expires_at = CASE WHEN pending > 1 THEN expires_at "
    "ELSE coalesce(?1 + json_extract(envelope, '$.expires_in'), expires_at) END "
    "WHERE seq = ?2 AND state = 0"
)
_ATTEMPT: Final = (
    "INSERT INTO attempt(message, number, outcome, error, worker, started_at, ended_at) "
    "SELECT seq, 1 + (SELECT count(*) FROM attempt WHERE message = seq), ?, ?, worker, "
    "started_at, ? FROM message WHERE seq = ? AND token = ?"
)
_CHANGEABLE: Final = frozenset(PACKED_FIELDS) - {"id", "task", "run_at"}


class _End(NamedTuple):
    """A message that has ended: `fired` is the kind of edge that this sets off."""

    seq: int
    id: str
    fired: str | None
    kind: str
    value: bytes


class Settling:
    """The part of one transaction that ends messages, and what it owes to others.

    `queued` says that messages became claimable, `woken` which ids are to be told to
    which mailboxes: both are acted upon after the commit.
    """

    def __init__(self, db: apsw.Connection, now: float, max_deliveries: int) -> None:
        self.db = db
        self.now = now
        self.max_deliveries = max_deliveries
        self.queued = False
        self.woken: dict[str, list[str]] = {}
        self._ended: deque[_End] = deque()
        self._has_edges: bool | None = None
        self._has_waiters: bool | None = None

    def settle(self, settlements: Sequence[tuple[Lease, Outcome]]) -> tuple[bool, ...]:
        """Record the outcome of each lease; False stands for one that had been lost."""
        plain = all(type(outcome) is Succeeded for _, outcome in settlements)
        if plain and len(settlements) > 1 and self._succeed_all(settlements):
            accepted = (True,) * len(settlements)
        else:
            accepted = tuple(self._settle(lease, outcome) for lease, outcome in settlements)
        self.follow_all()
        return accepted

    def _succeed_all(self, settlements: Sequence[tuple[Lease, Outcome]]) -> bool:
        """Settle the common batch, all successes, with one statement run many times.

        Running them one by one costs 4 us more each. Which of them were stale cannot be
        told afterwards, so if any was, all is undone and False returned.
        """
        db = self.db
        bindings = [self._success(lease, outcome) for lease, outcome in settlements]
        before = db.total_changes()
        db.execute("SAVEPOINT batch")
        db.executemany(_SUCCEED, bindings)
        if db.total_changes() - before != len(bindings):
            db.execute("ROLLBACK TO batch")
            db.execute("RELEASE batch")
            return False
        db.execute("RELEASE batch")
        if self._anything_follows() or self._anyone_waits():
            for lease, outcome in settlements:
                self._after_success(lease, outcome)
        return True

    def _settle(self, lease: Lease, outcome: Outcome) -> bool:
        match outcome:
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
            case Replaced():
                raise NotImplementedError

    def _success(self, lease: Lease, outcome: Outcome) -> tuple[Any, ...]:
        """Return what `_SUCCEED` is to write."""
        expires: float | None = lease.packed[13]
        if type(outcome) is Succeeded:
            state, result, children = _SUCCEEDED, outcome.result, outcome.children
        else:
            state, result, children = _IGNORED, None, None
        if lease.packed[11] or state == _IGNORED:  # ignore_result
            result = None
            expires = _IGNORED_KEPT if expires is None else min(expires, _IGNORED_KEPT)
        delete_at = None if expires is None else self.now + expires
        return (state, result, children, self.now, delete_at, lease.key, lease.token)

    def _after_success(self, lease: Lease, outcome: Outcome) -> None:
        if type(outcome) is Succeeded:
            self.ended(lease.key, lease.id, "success", "result", outcome.result or b"null")
        else:
            self.ended(lease.key, lease.id, None, "result", b"null")
        self.wake_waiters(lease.key, lease.id)

    def _fail(
        self,
        lease: Lease,
        error: bytes,
        dead: str | None,
        children: str | None,
        attempt: str = "failed",
    ) -> bool:
        expires: float | None = lease.packed[13]
        delete_at = None if expires is None or dead else self.now + expires
        self._keep_attempt(lease, attempt, error)
        bindings = (error, children, self.now, delete_at, dead, lease.key, lease.token)
        self.db.execute(_FAIL, bindings)
        if not self.db.changes():
            return False
        self.ended(lease.key, lease.id, "failure", "error", error)
        self.wake_waiters(lease.key, lease.id)
        return True

    def _retry(self, lease: Lease, outcome: Retried) -> bool:
        if self._is_revoked(lease):
            return self._revoke_lease(lease, "revoked")
        changes = {"retries": lease.packed[7] + 1, **(outcome.changes or {})}
        if unknown := changes.keys() - _CHANGEABLE:
            raise ValueError(f"a retry cannot change {sorted(unknown)}")
        columns = "".join(f", {name} = ?" for name in changes)
        self._keep_attempt(lease, "retried", outcome.error)
        self.db.execute(
            "UPDATE message SET token = NULL, started_at = NULL, note_state = NULL, "
            f"note = NULL, deliveries = 0, state = ?, run_at = ?, result = ?{columns} "
            "WHERE seq = ? AND token = ?",
            (
                _QUEUED if outcome.run_at <= self.now else _SCHEDULED,
                outcome.run_at,
                outcome.error,
                *changes.values(),
                lease.key,
                lease.token,
            ),
        )
        if not self.db.changes():
            return False
        self.queued = True
        return True

    def _revoke_lease(self, lease: Lease, reason: str) -> bool:
        expires: float | None = lease.packed[13]
        delete_at = None if expires is None else self.now + expires
        self.db.execute(_REVOKE_LEASE, (self.now, delete_at, reason, lease.key, lease.token))
        if not self.db.changes():
            return False
        self._after_revoke(lease.key, lease.id, reason)
        return True

    def _requeue(self, lease: Lease, *, uncount: int) -> bool:
        if self._is_revoked(lease):
            return self._revoke_lease(lease, "revoked")
        self.db.execute(_REQUEUE, (uncount, lease.key, lease.token))
        if not self.db.changes():
            return False
        self.queued = True
        return True

    def _lose(self, lease: Lease, reason: str) -> bool:
        if self._is_revoked(lease):
            return self._revoke_lease(lease, "revoked")
        error = failure.describe(WorkerLostError(reason))
        if not lease.packed[10]:  # acks_late is off: never a second start
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

    def revoke(self, seq: int, reason: str) -> None:
        """End a message that is not running. To be followed by `follow_all()`."""
        id = fetch_one(self.db, _REVOKE, (self.now, reason, seq))
        if id is not None:
            self._after_revoke(seq, id, reason)

    def _after_revoke(self, seq: int, id: str, reason: str) -> None:
        error = failure.describe(TaskRevokedError(reason))
        self.ended(seq, id, None if reason == "upstream" else "failure", "error", error)
        self.wake_waiters(seq, id)

    def give_up_parked(self, before: float) -> None:
        """Make dead letters of messages whose task nobody has known for so long."""
        parked = fetch_all(
            self.db,
            "SELECT seq, id, task FROM message WHERE state = 4 AND parked_at <= ? "
            f"LIMIT {SLICE}",
            (before,),
        )
        for seq, id, task in parked:
            reason = f"unknown task {task!r}: no worker that met it has this task"
            error = failure.describe(NotRegistered(reason))
            self.db.execute(
                "UPDATE message SET state = 7, settled_at = ?, dead = ?, result = ? "
                "WHERE seq = ?",
                (self.now, reason, error, seq),
            )
            self.ended(seq, id, "failure", "error", error)
            self.wake_waiters(seq, id)

    # What follows

    def ended(self, seq: int, id: str, fired: str | None, kind: str, value: bytes) -> None:
        """Note that a message has ended, for `follow_all()`."""
        if self._anything_follows():
            self._ended.append(_End(seq, id, fired, kind, value))

    def _anything_follows(self) -> bool:
        """Tell whether the store holds any edge; most programs' stores never do."""
        if self._has_edges is None:
            self._has_edges = bool(fetch_one(self.db, "SELECT EXISTS(SELECT 1 FROM edge)"))
        return self._has_edges

    def _anyone_waits(self) -> bool:
        """Tell whether anybody waits for any result now."""
        if self._has_waiters is None:
            self._has_waiters = bool(fetch_one(self.db, "SELECT EXISTS(SELECT 1 FROM waiter)"))
        return self._has_waiters

    def follow_all(self) -> None:
        """Give what waited for these ends its input, end what waited for other ends, and
        so on down. A queue and not a recursion: a chain may have ten thousand links."""
        while self._ended:
            end = self._ended.popleft()
            for target, fires, position in fetch_all(
                self.db, "SELECT target, fires, position FROM edge WHERE source = ?", (end.seq,)
            ):
                if fires == end.fired:
                    self._give(target, position, end)
                else:
                    self.revoke(target, "upstream")

    def _give(self, target: int, position: int, end: _End) -> None:
        self.db.execute(
            "INSERT INTO input(target, position, source, kind, value) VALUES (?,?,?,?,?) "
            "ON CONFLICT DO NOTHING",
            (target, position, end.id, end.kind, end.value),
        )
        self.db.execute(_GIVE, (self.now, target))
        self.queued = True

    def _keep_attempt(self, lease: Lease, outcome: str, error: bytes | None) -> None:
        """Write down an attempt that ends now; before the lease is given up, which wipes
        what is to be written down. A stale lease matches no row here either."""
        self.db.execute(_ATTEMPT, (outcome, error, self.now, lease.key, lease.token))

    def wake_waiters(self, seq: int, id: str) -> None:
        """Note whom to tell that this message settled."""
        if not self._anyone_waits():
            return
        for (address,) in fetch_all(
            self.db, "DELETE FROM waiter WHERE message = ? RETURNING address", (seq,)
        ):
            self.woken.setdefault(address, []).append(id)
