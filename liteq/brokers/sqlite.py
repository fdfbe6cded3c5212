"""The contract in SQL: queues, leases, results and what follows, in one SQLite file.

Each verb is one transaction. `step()` is the one a worker lives by: it settles what its
children finished, then promotes what has come due, then claims; so the next link of a
chain is claimed in the transaction that stored the result it waits for.

What survives a power loss: all that was enqueued with `durability="full"` (the default).
A worker's own transactions are not synced one by one, so a power loss may undo the last
of them, each as a whole: those tasks run again.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import apsw

from liteq import failure
from liteq.brokers.base import (
    DEFAULT_MAX_DELIVERIES,
    Attempt,
    Broker,
    Input,
    Lease,
    Mailbox,
    Note,
    Record,
    RevokeAnswer,
    State,
    Step,
    WorkerInfo,
)
from liteq.brokers.connection import Database
from liteq.brokers.liveness import LockFiles, boot_id
from liteq.brokers.schema import STATE_CODES
from liteq.brokers.wakeup import LocalMailbox, Post, SocketMailbox
from liteq.clock import Clock, system_clock
from liteq.exceptions import (
    AlreadyEnqueued,
    ImproperlyConfigured,
    TaskRevokedError,
    WorkerLostError,
)
from liteq.ids import new_token
from liteq.message import PACKED_FIELDS, Edge, Message, Packed
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

__all__ = ["SqliteBroker"]

WAITING: Final = STATE_CODES["waiting"]
QUEUED: Final = STATE_CODES["queued"]
SCHEDULED: Final = STATE_CODES["scheduled"]
RUNNING: Final = STATE_CODES["running"]
PARKED: Final = STATE_CODES["parked"]
SUCCEEDED: Final = STATE_CODES["succeeded"]
FAILED: Final = STATE_CODES["failed"]
REVOKED: Final = STATE_CODES["revoked"]
IGNORED: Final = STATE_CODES["ignored"]
_STATE_NAMES: Final[dict[int, State]] = {code: name for name, code in STATE_CODES.items()}  # type: ignore[misc]

_PACKED: Final = ", ".join(PACKED_FIELDS)
_WIDTH: Final = len(PACKED_FIELDS)
_SLICE: Final = 500  # rows that one transaction of upkeep touches: a few milliseconds
_IGNORED_KEPT: Final = 3600.0  # seconds an unwanted result's row stays, against repeats

_ENQUEUE: Final = (
    f"INSERT INTO message({_PACKED}, state, pending, edges, enqueued_at) "
    f"VALUES ({', '.join('?' * (_WIDTH + 4))}) ON CONFLICT(id) DO NOTHING"
)

# The subquery walks the partial index in the order of promise 7 and stops at the limit.
_CLAIM: Final = (
    "UPDATE message SET state = 3, token = ?1, worker = ?2, started_at = ?3, "
    "deliveries = deliveries + 1 WHERE seq IN ({candidates}) "
    f"RETURNING seq, deliveries, inputs, expires_at, priority, {_PACKED}"
)
_QUEUED_IN: Final = (
    "SELECT * FROM (SELECT seq FROM message INDEXED BY message_queued "
    "WHERE state = 1 AND queue = ? ORDER BY priority DESC, seq LIMIT ?)"
)
_QUEUED_IN_RANKED: Final = (
    "SELECT * FROM (SELECT seq, priority FROM message INDEXED BY message_queued "
    "WHERE state = 1 AND queue = ? ORDER BY priority DESC, seq LIMIT ?)"
)

# Every way out of a lease names the token: a stale holder's statement matches no row.
_SUCCEED: Final = (
    "UPDATE message SET state = ?, token = NULL, result = ?, children = ?, settled_at = ?, "
    "delete_at = ?, note_state = NULL, note = NULL WHERE seq = ? AND token = ? "
    "RETURNING seq, edges"
)
_FAIL: Final = (
    "UPDATE message SET state = 7, token = NULL, result = ?, children = ?, settled_at = ?, "
    "delete_at = ?, dead = ?, note_state = NULL, note = NULL WHERE seq = ? AND token = ? "
    "RETURNING seq, edges"
)
_REVOKE_LEASE: Final = (
    "UPDATE message SET state = 8, token = NULL, result = NULL, settled_at = ?, "
    "delete_at = ?, revoke = ? WHERE seq = ? AND token = ? RETURNING seq, edges"
)
_REQUEUE: Final = (
    "UPDATE message SET state = 1, token = NULL, started_at = NULL, note_state = NULL, "
    "note = NULL, deliveries = deliveries - ? WHERE seq = ? AND token = ? RETURNING seq"
)
_NOTE: Final = (
    "UPDATE message SET note_state = ?, note = ? WHERE seq = ? AND token = ? AND state = 3"
)
_ATTEMPT: Final = (
    "INSERT INTO attempt(message, number, outcome, error, worker, started_at, ended_at) "
    "SELECT seq, 1 + (SELECT count(*) FROM attempt WHERE message = seq), ?, ?, worker, "
    "started_at, ? FROM message WHERE seq = ?"
)

_RECORD: Final = (
    "SELECT state, result, note_state, note, deliveries, enqueued_at, started_at, "
    "settled_at, (SELECT name FROM worker WHERE worker.id = message.worker), children, "
    f"dead, revoke, retries, {_PACKED} FROM message"
)
_RETRIABLE: Final = frozenset(PACKED_FIELDS) - {"id", "task"}


class SqliteBroker(Broker):
    """A store in a folder of its own, or (`folder=None`) in this process's memory.

    `durability`: "full" (an enqueue is on disk when it returns) or "normal" (it survives
    the death of any process, and a power loss may undo the last ones). `lease_timeout`:
    seconds without a heartbeat after which a worker is given up for dead although its
    process may live (one that was stopped, say). `busy_timeout`: seconds to wait for
    other writers before `BrokerBusy`. `max_size`: bytes of database beyond which new
    messages are refused (None: until the disk is nearly full). `unknown_expires`:
    seconds after which a message whose task no worker knows becomes a dead letter.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        *,
        clock: Clock = system_clock,
        durability: str = "full",
        lease_timeout: float = 60.0,
        max_deliveries: int = DEFAULT_MAX_DELIVERIES,
        busy_timeout: float = 5.0,
        max_size: int | None = None,
        unknown_expires: float = 86_400.0,
        poll_interval: float = 0.5,
        allow_network_filesystem: bool = False,
        tokens: Callable[[], int] = new_token,
    ) -> None:
        if durability not in ("full", "normal"):
            raise ImproperlyConfigured(
                f'durability must be "full" or "normal", not {durability!r} ("off" would let '
                "one process's power loss corrupt the file for all)"
            )
        self.clock = clock
        self.durable = durability == "full"
        self.lease_timeout = lease_timeout
        self.max_deliveries = max_deliveries
        self.unknown_expires = unknown_expires
        self.poll_interval = poll_interval
        self.folder = Path(os.path.realpath(folder)) if folder is not None else None
        self._tokens = tokens
        self._boot = boot_id()
        self._database = Database(
            self.folder,
            busy_timeout=busy_timeout,
            max_size=max_size,
            allow_network_filesystem=allow_network_filesystem,
        )
        self._locks = LockFiles(self.folder / "workers") if self.folder else None
        self._post = Post(self.folder / "wake") if self.folder else None
        self._local: dict[str, LocalMailbox] = {}
        self._local_lock = threading.Lock()
        self._claims: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"<SqliteBroker {self.folder or 'in memory'}>"

    # Moving work

    def enqueue(self, messages: Sequence[Message], edges: Sequence[Edge] = ()) -> None:
        now = self.clock.now()
        wake = False
        pending: dict[str, int] = {}
        leaving: dict[str, int] = {}
        for edge in edges:
            pending[edge.target] = pending.get(edge.target, 0) + 1
            leaving[edge.source] = leaving.get(edge.source, 0) + 1
        rows = []
        for message in messages:
            waits_for = pending.get(message.id, 0)
            if waits_for:
                state = WAITING
            elif message.run_at is not None and message.run_at > now:
                state, wake = SCHEDULED, True
            else:
                state, wake = QUEUED, True
            rows.append((*message.pack(), state, waits_for, leaving.get(message.id, 0), now))

        def insert(db: apsw.Connection) -> None:
            for row in rows:
                db.execute(_ENQUEUE, row)
                if not db.changes():
                    self._accept_repeat(db, row)
            for edge in edges:
                self._insert_edge(db, edge)

        self._database.write(insert, durable=self.durable, limited=True)
        if wake:
            self._wake_workers()

    @staticmethod
    def _accept_repeat(db: apsw.Connection, row: tuple[Any, ...]) -> None:
        """Let the same message be enqueued again, and refuse another under its id."""
        id, task, body = row[:3]
        stored = _row(db, "SELECT task, body FROM message WHERE id = ?", (id,))
        if stored != (task, body):
            raise AlreadyEnqueued(
                f"a message with id {id!r} is in the store with another task or other "
                f"arguments (its task is {stored[0]!r}, this one's {task!r}): ids are used once"
            )

    @staticmethod
    def _insert_edge(db: apsw.Connection, edge: Edge) -> None:
        db.execute(
            "INSERT INTO edge(source, target, fires, position) "
            "SELECT s.seq, t.seq, ?, ? FROM message s, message t WHERE s.id = ? AND t.id = ? "
            "ON CONFLICT DO NOTHING",
            (edge.on, edge.position, edge.source, edge.target),
        )

    def step(
        self,
        worker: int,
        *,
        settlements: Sequence[tuple[Lease, Outcome]] = (),
        notes: Sequence[tuple[Lease, Note]] = (),
        queues: Sequence[str] = (),
        limit: int = 0,
        tasks: Collection[str] | None = None,
    ) -> Step:
        now = self.clock.now()
        token = self._tokens()

        def body(db: apsw.Connection) -> tuple[_Settling, Step, bool]:
            settling = _Settling(db, now, self.max_deliveries, worker)
            for lease, note in notes:
                db.execute(_NOTE, (note.state, note.meta, lease.key, lease.token))
            accepted = settling.settle(settlements) if settlements else ()
            alive = _is_alive(db, worker)
            leases: list[Lease] = []
            if limit > 0 and alive:
                if _promote(db, now):
                    settling.queued = True
                leases = self._claim(db, settling, worker, token, queues, limit, tasks)
            early = any(not lease.packed[10] for lease in leases)
            return (
                settling,
                Step(
                    accepted=tuple(accepted),
                    leases=tuple(leases),
                    next_due=_next_due(db),
                    terminate=_to_terminate(db, worker),
                    alive=alive,
                ),
                early,
            )

        settling, step, early = self._database.write(body, durable=False)
        if early:
            # Promise 11 through a power loss: the claim must be on disk before the start.
            self._database.write(_harden, durable=True)
        self._announce(settling)
        return step

    def _claim(
        self,
        db: apsw.Connection,
        settling: _Settling,
        worker: int,
        token: int,
        queues: Sequence[str],
        limit: int,
        tasks: Collection[str] | None,
    ) -> list[Lease]:
        """Claim, parking unknown tasks and revoking what has expired, until the limit is
        reached or nothing is left."""
        leases: list[Lease] = []
        now = settling.now
        while len(leases) < limit:
            wanted = limit - len(leases)
            rows = self._claim_queued(db, worker, token, now, queues, wanted)
            if tasks is not None:
                rows += self._claim_parked(db, worker, token, now, queues, tasks, wanted)
            if not rows:
                break
            rows.sort(key=lambda row: (-row[4], row[0]))
            for row in rows:
                seq, delivery, inputs, expires_at = row[:4]
                packed: Packed = row[5:]
                lease = Lease(seq, token, delivery, packed)
                if expires_at is not None and expires_at <= now:
                    settling.settle([(lease, Revoked("expired"))])
                elif tasks is not None and packed[1] not in tasks:
                    _park(db, lease)
                elif len(leases) >= limit:
                    settling.settle([(lease, Released())])
                else:
                    if inputs:
                        lease = Lease(seq, token, delivery, packed, _inputs(db, seq))
                    leases.append(lease)
        return leases

    def _claim_queued(
        self,
        db: apsw.Connection,
        worker: int,
        token: int,
        now: float,
        queues: Sequence[str],
        limit: int,
    ) -> list[tuple[Any, ...]]:
        count = len(queues)
        sql = self._claims.get(count)
        if sql is None:
            if count == 1:
                candidates = _QUEUED_IN
            else:
                ranked = " UNION ALL ".join([_QUEUED_IN_RANKED] * count)
                candidates = f"SELECT seq FROM ({ranked}) ORDER BY priority DESC, seq LIMIT ?"
            sql = self._claims[count] = _CLAIM.format(candidates=candidates)
        bindings: list[Any] = [token, worker, now]
        for queue in queues:
            bindings += (queue, limit)
        if count != 1:
            bindings.append(limit)
        return _rows(db, sql, bindings) if count else []

    @staticmethod
    def _claim_parked(
        db: apsw.Connection,
        worker: int,
        token: int,
        now: float,
        queues: Sequence[str],
        tasks: Collection[str],
        limit: int,
    ) -> list[tuple[Any, ...]]:
        """Claim what others have parked and this worker knows."""
        if not _row(db, "SELECT EXISTS(SELECT 1 FROM message WHERE state = 4)"):
            return []
        sql = _CLAIM.format(
            candidates="SELECT seq FROM message INDEXED BY message_parked WHERE state = 4 "
            "AND queue IN (SELECT value FROM json_each(?)) "
            "AND task IN (SELECT value FROM json_each(?)) "
            "ORDER BY priority DESC, seq LIMIT ?"
        )
        names = json.dumps(list(queues)), json.dumps(sorted(tasks))
        return _rows(db, sql, (token, worker, now, *names, limit))

    def _announce(self, settling: _Settling) -> None:
        """Send the wake-ups that a committed transaction owes."""
        if settling.queued:
            self._wake_workers()
        for address, ids in settling.woken.items():
            self._wake(address, ids)

    def _wake_workers(self) -> None:
        if self._post is not None:
            self._post.wake_workers()
        else:
            for mailbox in list(self._local.values()):
                if mailbox.name.startswith("w"):
                    mailbox.put([""])

    def _wake(self, address: str, ids: list[str]) -> None:
        if self._post is not None:
            self._post.wake(address, ids)
        elif (mailbox := self._local.get(address)) is not None:
            mailbox.put(ids)

    # Who is alive

    def register(
        self, name: str, queues: Sequence[str], concurrency: int, details: Mapping[str, Any]
    ) -> int:
        row = (
            name,
            socket.gethostname(),
            os.getpid(),
            self._boot,
            json.dumps(list(queues)),
            concurrency,
            json.dumps(dict(details)),
            self.clock.now(),
            self.clock.steady(),
        )

        def insert(db: apsw.Connection) -> int:
            db.execute(
                "INSERT INTO worker(name, hostname, pid, boot, queues, concurrency, details, "
                "started_at, beat_at) VALUES (?,?,?,?,?,?,?,?,?)",
                row,
            )
            worker = db.last_insert_rowid()
            if self._locks is not None:
                self._locks.hold(_lock_name(worker))
            return worker

        worker = self._database.write(insert, durable=False)
        self._wake_workers()  # the others learn whose death to watch for
        return worker

    def beat(self, worker: int, details: Mapping[str, Any] | None = None) -> bool:
        self.check()
        beat_at = self.clock.steady()
        text = None if details is None else json.dumps(dict(details))

        def update(db: apsw.Connection) -> bool:
            db.execute(
                "UPDATE worker SET beat_at = ?, details = coalesce(?, details) "
                "WHERE id = ? AND stopped_at IS NULL",
                (beat_at, text, worker),
            )
            return bool(db.changes())

        alive = self._database.write(update, durable=False)
        if not alive and self._locks is not None:
            self._locks.release(_lock_name(worker))
        return alive

    def unregister(self, worker: int) -> None:
        now = self.clock.now()

        def release(db: apsw.Connection) -> _Settling:
            settling = _Settling(db, now, self.max_deliveries, worker)
            for lease in _leases_of(db, worker, None):
                settling.settle([(lease, Released())])
            db.execute(
                "UPDATE worker SET stopped_at = ? WHERE id = ? AND stopped_at IS NULL",
                (now, worker),
            )
            return settling

        settling = self._database.write(release, durable=False)
        if self._locks is not None:
            self._locks.release(_lock_name(worker))
        self._announce(settling)

    def reclaim(self, worker: int | None = None) -> int:
        now, steady = self.clock.now(), self.clock.steady()
        total = 0
        for found in self._dead_workers(worker, steady):
            while taken := self._reclaim_slice(found, now):
                total += taken
            self._bury(found, now)
        return total

    def _dead_workers(self, caller: int | None, steady: float) -> list[int]:
        rows = self._database.read(
            lambda db: _rows(
                db,
                "SELECT id, boot, beat_at FROM worker INDEXED BY worker_alive "
                "WHERE stopped_at IS NULL",
            )
        )
        # If our own heartbeat is old, the whole machine may have been asleep: the others
        # then get as long as we took before their silence counts against them.
        own = next((beat for id, _, beat in rows if id == caller), steady)
        oversleep = steady - own > self.lease_timeout / 2
        dead = []
        for id, boot, beat_at in rows:
            if id == caller:
                continue
            silent = steady - beat_at > self.lease_timeout and not oversleep
            locks = self._locks
            if boot != self._boot or silent or (locks and locks.is_dead(_lock_name(id))):
                dead.append(id)
        return dead

    def _reclaim_slice(self, dead: int, now: float) -> int:
        reason = "the worker process died while the task ran"

        def take(db: apsw.Connection) -> tuple[_Settling, int]:
            settling = _Settling(db, now, self.max_deliveries, dead)
            leases = _leases_of(db, dead, _SLICE)
            settling.settle([(lease, Lost(reason)) for lease in leases])
            # From here on the worker, should it live after all, must register anew.
            db.execute(
                "UPDATE worker SET stopped_at = ? WHERE id = ? AND stopped_at IS NULL",
                (now, dead),
            )
            return settling, len(leases)

        settling, taken = self._database.write(take, durable=False)
        self._announce(settling)
        return taken

    def _bury(self, dead: int, now: float) -> None:
        self._database.write(
            lambda db: db.execute(
                "UPDATE worker SET stopped_at = ? WHERE id = ? AND stopped_at IS NULL",
                (now, dead),
            ),
            durable=False,
        )
        if self._locks is not None:
            self._locks.remove(_lock_name(dead))

    def workers(self) -> list[WorkerInfo]:
        steady = self.clock.steady()
        rows = self._database.read(
            lambda db: _rows(
                db,
                "SELECT id, name, hostname, pid, queues, concurrency, started_at, beat_at, "
                "details, boot FROM worker INDEXED BY worker_alive WHERE stopped_at IS NULL "
                "ORDER BY id",
            )
        )
        alive = []
        for id, name, host, pid, queues, concurrency, started_at, beat_at, text, boot in rows:
            if boot != self._boot or steady - beat_at > self.lease_timeout:
                continue
            if self._locks is not None and self._locks.is_dead(_lock_name(id)):
                continue
            alive.append(
                WorkerInfo(
                    id=id,
                    name=name,
                    hostname=host,
                    pid=pid,
                    queues=tuple(json.loads(queues)),
                    concurrency=concurrency,
                    started_at=started_at,
                    beat_age=max(0.0, steady - beat_at),
                    details=json.loads(text),
                )
            )
        return alive

    def peers(self) -> list[int]:
        if self._locks is None or not hasattr(os, "pidfd_open"):
            return []
        descriptors = []
        for info in self.workers():
            if info.pid == os.getpid() or info.hostname != socket.gethostname():
                continue
            try:
                descriptors.append(os.pidfd_open(info.pid))
            except OSError:
                continue  # gone, or in another pid namespace: its lock still tells
        return descriptors

    # Steering

    def revoke(
        self, ids: Iterable[str], *, terminate: str | None = None
    ) -> dict[str, RevokeAnswer]:
        wanted = list(ids)
        now = self.clock.now()

        def mark(db: apsw.Connection) -> tuple[_Settling, dict[str, RevokeAnswer], bool]:
            settling = _Settling(db, now, self.max_deliveries, None)
            answers: dict[str, RevokeAnswer] = {}
            signalled = False
            for id in wanted:
                row = _row(db, "SELECT seq, state FROM message WHERE id = ?", (id,))
                if row is None:
                    answers[id] = "unknown"
                    continue
                seq, state = row
                if state == RUNNING:
                    db.execute(
                        "UPDATE message SET revoke = ? WHERE seq = ?",
                        (terminate or "revoked", seq),
                    )
                    answers[id] = "signalled" if terminate else "running"
                    signalled = signalled or terminate is not None
                elif state < SUCCEEDED:
                    settling.revoke(seq, "revoked")
                    answers[id] = "revoked"
                else:
                    answers[id] = "settled"
            return settling, answers, signalled

        settling, answers, signalled = self._database.write(mark, durable=self.durable)
        settling.queued = settling.queued or signalled
        self._announce(settling)
        return answers

    def redrive(self, ids: Iterable[str]) -> list[str]:
        wanted = list(ids)
        now = self.clock.now()

        def restart(db: apsw.Connection) -> list[str]:
            return [
                id
                for id in wanted
                if _row(
                    db,
                    "UPDATE message SET state = 1, deliveries = 0, retries = 0, result = NULL, "
                    "dead = NULL, settled_at = NULL, delete_at = NULL, started_at = NULL, "
                    "revoke = NULL, run_at = NULL, expires_at = NULL, enqueued_at = ? "
                    "WHERE id = ? AND state = 7 RETURNING id",
                    (now, id),
                )
            ]

        redriven = self._database.write(restart, durable=self.durable)
        if redriven:
            self._wake_workers()
        return redriven

    def purge(self, queues: Sequence[str] | None = None, *, dead: bool = False) -> int:
        where = "dead IS NOT NULL" if dead else "state IN (1, 2, 4)"
        bindings: tuple[Any, ...] = ()
        if queues is not None:
            where += " AND queue IN (SELECT value FROM json_each(?))"
            bindings = (json.dumps(list(queues)),)
        total = 0
        while True:  # in slices: a million rows would hold the write lock for seconds
            count = self._database.write(
                lambda db: _delete(
                    db, f"SELECT seq FROM message WHERE {where} LIMIT {_SLICE}", bindings
                ),
                durable=self.durable,
            )
            total += count
            if count < _SLICE:
                return total

    # Looking

    def get(self, ids: Sequence[str]) -> dict[str, Record]:
        def select(db: apsw.Connection) -> dict[str, Record]:
            found = {}
            for id in ids:
                row = _row(db, f"{_RECORD} WHERE id = ?", (id,))
                if row is not None:
                    found[id] = _record(row)
            return found

        return self._database.read(select)

    def attempts(self, id: str) -> list[Attempt]:
        rows = self._database.read(
            lambda db: _rows(
                db,
                "SELECT number, outcome, error, (SELECT name FROM worker WHERE id = worker), "
                "started_at, ended_at FROM attempt "
                "WHERE message = (SELECT seq FROM message WHERE message.id = ?) ORDER BY number",
                (id,),
            )
        )
        return [Attempt(*row) for row in rows]

    def browse(
        self, state: State | Literal["dead"], *, queue: str | None = None, limit: int = 50
    ) -> list[Record]:
        bindings: list[Any] = []
        if state == "dead":
            where = "dead IS NOT NULL"
        elif state == "retrying":
            where = "state IN (1, 2) AND result IS NOT NULL"
        else:
            where = f"state = {STATE_CODES[state]:d}"
            if state in ("queued", "scheduled"):
                where += " AND result IS NULL"
        if queue is not None:
            where += " AND queue = ?"
            bindings.append(queue)
        rows = self._database.read(
            lambda db: _rows(
                db, f"{_RECORD} WHERE {where} ORDER BY seq LIMIT ?", (*bindings, limit)
            )
        )
        return [_record(row) for row in rows]

    def counts(self) -> dict[str, dict[State, int]]:
        # State by state, so that each is counted on its own partial index: the finished
        # messages, millions perhaps, are never looked at.
        def count(db: apsw.Connection) -> dict[str, dict[State, int]]:
            counted: dict[str, dict[State, int]] = {}
            for code in (WAITING, QUEUED, SCHEDULED, RUNNING, PARKED):
                for queue, number in db.execute(
                    f"SELECT queue, count(*) FROM message WHERE state = {code:d} GROUP BY queue"
                ):
                    counted.setdefault(queue, {})[_STATE_NAMES[code]] = number
            return counted

        return self._database.read(count)

    # Results

    def watch(self, ids: Sequence[str], mailbox: Mailbox) -> dict[str, Record]:
        if not isinstance(mailbox, (SocketMailbox, LocalMailbox)):
            raise TypeError(f"not a mailbox of this store: {mailbox!r}")
        records = self.get(ids)
        if all(record.final for record in records.values()):
            return records  # nothing to wait for: spare the write

        def register(db: apsw.Connection) -> dict[str, Record]:
            settled = {}
            for id in ids:
                row = _row(db, f"{_RECORD} WHERE id = ?", (id,))
                if row is None:
                    continue
                record = _record(row)
                if record.final:
                    settled[id] = record
                else:
                    db.execute(
                        "INSERT INTO waiter(message, address) SELECT seq, ? FROM message "
                        "WHERE id = ? ON CONFLICT DO NOTHING",
                        (mailbox.name, id),
                    )
            return settled

        return self._database.write(register, durable=False)

    def mailbox(self, worker: int | None = None) -> Mailbox:
        if self._post is not None:
            self._database.prepare()
            return self._post.open(self.poll_interval, worker)
        kind = "r" if worker is None else f"w{worker}-"
        with self._local_lock:
            name = f"{kind}{new_token()}"
            mailbox = LocalMailbox(name, self.poll_interval, self._forget_mailbox)
            self._local[name] = mailbox
        return mailbox

    def _forget_mailbox(self, name: str) -> None:
        with self._local_lock:
            self._local.pop(name, None)

    def store(
        self,
        id: str,
        state: str,
        value: bytes | None,
        *,
        task: str = "",
        expires: float | None = 86400.0,
    ) -> None:
        now = self.clock.now()
        code = {
            "SUCCESS": SUCCEEDED,
            "FAILURE": FAILED,
            "REVOKED": REVOKED,
            "IGNORED": IGNORED,
        }.get(state)
        final = code is not None
        message = Message(id, task, b"[[],{}]", result_expires=expires)

        def write(db: apsw.Connection) -> _Settling:
            settling = _Settling(db, now, self.max_deliveries, None)
            db.execute(_ENQUEUE, (*message.pack(), WAITING, 1, 0, now))
            seq, held = _row(db, "SELECT seq, state FROM message WHERE id = ?", (id,))
            if held >= SUCCEEDED:
                return settling
            if final:
                db.execute(
                    "UPDATE message SET state = ?, result = ?, settled_at = ?, delete_at = ?, "
                    "token = NULL WHERE seq = ?",
                    (code, value, now, None if expires is None else now + expires, seq),
                )
                settling.wake_waiters(seq)
            else:
                db.execute(
                    "UPDATE message SET note_state = ?, note = ? WHERE seq = ?",
                    (state, value, seq),
                )
            return settling

        self._announce(self._database.write(write, durable=self.durable))

    def forget(self, ids: Iterable[str]) -> None:
        wanted = json.dumps(list(ids))
        self._database.write(
            lambda db: _delete(
                db,
                "SELECT seq FROM message WHERE state >= 6 "
                "AND id IN (SELECT value FROM json_each(?))",
                (wanted,),
            ),
            durable=self.durable,
        )

    # Keeping house

    def maintain(self) -> bool:
        now = self.clock.now()

        def due(db: apsw.Connection) -> bool:
            return bool(
                _row(
                    db,
                    "SELECT EXISTS(SELECT 1 FROM message WHERE delete_at <= ?1) "
                    "OR EXISTS(SELECT 1 FROM message WHERE expires_at IS NOT NULL "
                    "AND settled_at IS NULL AND expires_at <= ?1 AND state IN (1, 2, 4)) "
                    "OR EXISTS(SELECT 1 FROM message WHERE state = 4 AND enqueued_at <= ?2) "
                    "OR EXISTS(SELECT 1 FROM worker WHERE stopped_at <= ?3)",
                    (now, now - self.unknown_expires, now - 7 * 86_400),
                )
            )

        def sweep(db: apsw.Connection) -> _Settling:
            settling = _Settling(db, now, self.max_deliveries, None)
            _delete(
                db,
                f"SELECT seq FROM message WHERE delete_at <= ? ORDER BY delete_at LIMIT {_SLICE}",
                (now,),
            )
            for (seq,) in _rows(
                db,
                "SELECT seq FROM message WHERE expires_at IS NOT NULL AND settled_at IS NULL "
                f"AND expires_at <= ? AND state IN (1, 2, 4) LIMIT {_SLICE}",
                (now,),
            ):
                settling.revoke(seq, "expired")
            settling.give_up_parked(now - self.unknown_expires)
            db.execute("DELETE FROM worker WHERE stopped_at <= ?", (now - 7 * 86_400,))
            if db.pragma("freelist_count") > 4096:
                _rows(db, f"PRAGMA incremental_vacuum({_SLICE})")
            return settling

        more = self._database.read(due)
        if more:
            self._announce(self._database.write(sweep, durable=False))
        if self._database.wal_pages > 1000:
            self._database.checkpoint(truncate=self._database.wal_pages > 4096)
        return more

    def check(self) -> None:
        self._database.check()

    def close(self) -> None:
        self._database.close()


class _Settling:
    """The part of one transaction that ends leases, and what it owes to others.

    `queued` says that messages became claimable, `woken` which ids to tell to which
    mailboxes: both are acted upon after the commit.
    """

    def __init__(
        self, db: apsw.Connection, now: float, max_deliveries: int, worker: int | None
    ) -> None:
        self.db = db
        self.now = now
        self.max_deliveries = max_deliveries
        self.worker = worker
        self.queued = False
        self.woken: dict[str, list[str]] = {}
        self._watched: bool | None = None

    def settle(self, settlements: Sequence[tuple[Lease, Outcome]]) -> list[bool]:
        return [self._settle(lease, outcome) for lease, outcome in settlements]

    def _settle(self, lease: Lease, outcome: Outcome) -> bool:
        match outcome:
            case Succeeded(result, _, children):
                return self._succeed(lease, SUCCEEDED, result, children)
            case Ignored():
                return self._succeed(lease, IGNORED, None, None)
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

    def _succeed(
        self, lease: Lease, state: int, result: bytes | None, children: str | None
    ) -> bool:
        packed = lease.packed
        kept = result
        expires: float | None = packed[13]
        if packed[11] or state == IGNORED:  # ignore_result
            kept = None
            expires = _IGNORED_KEPT if expires is None else min(expires, _IGNORED_KEPT)
        row = _row(
            self.db,
            _SUCCEED,
            (
                state,
                kept,
                children,
                self.now,
                None if expires is None else self.now + expires,
                lease.key,
                lease.token,
            ),
        )
        if row is None:
            return False
        if row[1]:
            if state == SUCCEEDED:
                self._follow(lease.key, lease.id, "success", "result", result or b"null")
            else:
                self._skip_all(lease.key)
        self.wake_waiters(lease.key, lease.id)
        return True

    def _fail(self, lease: Lease, error: bytes, dead: str | None, children: str | None) -> bool:
        expires: float | None = lease.packed[13]
        delete_at = None if expires is None or dead else self.now + expires
        bindings = (error, children, self.now, delete_at, dead, lease.key, lease.token)
        row = _row(self.db, _FAIL, bindings)
        if row is None:
            return False
        self._keep_attempt(lease.key, "failed" if dead is None else "dead", error)
        if row[1]:
            self._follow(lease.key, lease.id, "failure", "error", error)
        self.wake_waiters(lease.key, lease.id)
        return True

    def _retry(self, lease: Lease, outcome: Retried) -> bool:
        if self._is_revoked(lease):
            return self._revoke_lease(lease, "revoked")
        changes = dict(outcome.changes or {})
        changes.setdefault("retries", lease.packed[7] + 1)
        if unknown := changes.keys() - _RETRIABLE:
            raise ValueError(f"a retry cannot change {sorted(unknown)}")
        changes["run_at"] = outcome.run_at
        columns = "".join(f", {name} = ?" for name in changes)
        due = outcome.run_at <= self.now
        row = _row(
            self.db,
            "UPDATE message SET token = NULL, started_at = NULL, note_state = NULL, "
            f"note = NULL, deliveries = 0, state = ?, result = ?{columns} "
            "WHERE seq = ? AND token = ? RETURNING seq",
            (
                QUEUED if due else SCHEDULED,
                outcome.error,
                *changes.values(),
                lease.key,
                lease.token,
            ),
        )
        if row is None:
            return False
        self._keep_attempt(lease.key, "retried", outcome.error)
        self.queued = True
        return True

    def _revoke_lease(self, lease: Lease, reason: str) -> bool:
        expires: float | None = lease.packed[13]
        delete_at = None if expires is None else self.now + expires
        bindings = (self.now, delete_at, reason, lease.key, lease.token)
        row = _row(self.db, _REVOKE_LEASE, bindings)
        if row is None:
            return False
        self._after_revoke(lease.key, lease.id, reason, edges=row[1])
        return True

    def _requeue(self, lease: Lease, *, uncount: int) -> bool:
        if self._is_revoked(lease):
            return self._revoke_lease(lease, "revoked")
        if _row(self.db, _REQUEUE, (uncount, lease.key, lease.token)) is None:
            return False
        self.queued = True
        return True

    def _lose(self, lease: Lease, reason: str) -> bool:
        if self._is_revoked(lease):
            return self._revoke_lease(lease, "revoked")
        allowed = lease.packed[12] or self.max_deliveries
        early = not lease.packed[10]
        if early or lease.delivery >= allowed:
            error = failure.describe(WorkerLostError(reason))
            dead = (
                None if early else f"delivered {lease.delivery} times, and each time {reason}"
            )
            return self._fail(lease, error, dead, None)
        if _row(self.db, _REQUEUE, (0, lease.key, lease.token)) is None:
            return False
        self._keep_attempt(lease.key, "lost", failure.describe(WorkerLostError(reason)))
        self.queued = True
        return True

    def _is_revoked(self, lease: Lease) -> bool:
        return bool(
            _row(
                self.db,
                "SELECT revoke IS NOT NULL FROM message WHERE seq = ? AND token = ?",
                (lease.key, lease.token),
            )
        )

    def revoke(self, seq: int, reason: str) -> None:
        """End a message that is not running."""
        row = _row(
            self.db,
            "UPDATE message SET state = 8, settled_at = ?1, delete_at = ?1 + result_expires, "
            "result = NULL, revoke = ?2 WHERE seq = ?3 AND state < 6 AND state != 3 "
            "RETURNING id, edges",
            (self.now, reason, seq),
        )
        if row is not None:
            self._after_revoke(seq, row[0], reason, edges=row[1])

    def _after_revoke(self, seq: int, id: str, reason: str, *, edges: int) -> None:
        if edges:
            error = failure.describe(TaskRevokedError(reason))
            self._follow(seq, id, "failure", "error", error)
        self.wake_waiters(seq, id)

    def give_up_parked(self, before: float) -> None:
        """Make dead letters of messages whose task nobody has known for so long."""
        rows = _rows(
            self.db,
            "SELECT seq, id, task, edges FROM message WHERE state = 4 AND enqueued_at <= ? "
            f"LIMIT {_SLICE}",
            (before,),
        )
        for seq, id, task, edges in rows:
            reason = f"unknown task {task!r}: no worker that met it has this task"
            error = failure.describe(LookupError(reason))
            self.db.execute(
                "UPDATE message SET state = 7, settled_at = ?, dead = ?, result = ? "
                "WHERE seq = ?",
                (self.now, reason, error, seq),
            )
            if edges:
                self._follow(seq, id, "failure", "error", error)
            self.wake_waiters(seq, id)

    # What follows

    def _follow(self, seq: int, id: str, fired: str, kind: str, value: bytes) -> None:
        """Give what waits on this end its input, and end what waited for the other."""
        for target, fires, position in _rows(
            self.db, "SELECT target, fires, position FROM edge WHERE source = ?", (seq,)
        ):
            if fires != fired:
                self.revoke(target, "upstream")
                continue
            self.db.execute(
                "INSERT INTO input(target, position, source, kind, value) VALUES (?,?,?,?,?) "
                "ON CONFLICT DO NOTHING",
                (target, position, id, kind, value),
            )
            self.db.execute(
                "UPDATE message SET pending = pending - 1, inputs = inputs + 1, state = CASE "
                "WHEN pending > 1 THEN 0 WHEN run_at > ? THEN 2 ELSE 1 END "
                "WHERE seq = ? AND state = 0",
                (self.now, target),
            )
            self.queued = True

    def _skip_all(self, seq: int) -> None:
        for (target,) in _rows(self.db, "SELECT target FROM edge WHERE source = ?", (seq,)):
            self.revoke(target, "upstream")

    def _keep_attempt(self, seq: int, outcome: str, error: bytes | None) -> None:
        self.db.execute(_ATTEMPT, (outcome, error, self.now, seq))

    def wake_waiters(self, seq: int, id: str | None = None) -> None:
        """Note whom to tell that this message settled."""
        if self._watched is None:
            self._watched = bool(_row(self.db, "SELECT EXISTS(SELECT 1 FROM waiter)"))
        if not self._watched:
            return
        if id is None:
            id = str(_row(self.db, "SELECT id FROM message WHERE seq = ?", (seq,)))
        for (address,) in _rows(
            self.db, "DELETE FROM waiter WHERE message = ? RETURNING address", (seq,)
        ):
            self.woken.setdefault(address, []).append(id)


def _row(db: apsw.Connection, sql: str, bindings: Sequence[Any] = ()) -> Any:
    """Return the first row (its value, if it has one column), or None."""
    return db.execute(sql, bindings).get


def _rows(db: apsw.Connection, sql: str, bindings: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Return all rows, having let go of the statement: a half-read one would keep the WAL
    from being reset."""
    return db.execute(sql, bindings).fetchall()


def _is_alive(db: apsw.Connection, worker: int) -> bool:
    return bool(_row(db, "SELECT 1 FROM worker WHERE id = ? AND stopped_at IS NULL", (worker,)))


def _promote(db: apsw.Connection, now: float) -> bool:
    """Make claimable what has come due, in slices. Return whether anything was."""
    due = _next_due(db)
    if due is None or due > now:
        return False
    db.execute(
        "UPDATE message SET state = 1 WHERE seq IN (SELECT seq FROM message "
        f"WHERE state = 2 AND run_at <= ? ORDER BY run_at LIMIT {_SLICE})",
        (now,),
    )
    return bool(db.changes())


def _next_due(db: apsw.Connection) -> float | None:
    due: float | None = _row(
        db,
        "SELECT run_at FROM message INDEXED BY message_scheduled WHERE state = 2 "
        "ORDER BY run_at LIMIT 1",
    )
    return due


def _to_terminate(db: apsw.Connection, worker: int) -> dict[int, str]:
    return dict(
        _rows(
            db,
            "SELECT seq, revoke FROM message INDEXED BY message_revoking WHERE worker = ? "
            "AND state = 3 AND revoke IS NOT NULL AND revoke != 'revoked'",
            (worker,),
        )
    )


def _park(db: apsw.Connection, lease: Lease) -> None:
    db.execute(
        "UPDATE message SET state = 4, token = NULL, started_at = NULL, "
        "deliveries = deliveries - 1 WHERE seq = ? AND token = ?",
        (lease.key, lease.token),
    )


def _leases_of(db: apsw.Connection, worker: int, limit: int | None) -> list[Lease]:
    rows = _rows(
        db,
        f"SELECT seq, token, deliveries, {_PACKED} FROM message INDEXED BY message_running "
        "WHERE state = 3 AND worker = ? LIMIT ?",
        (worker, -1 if limit is None else limit),
    )
    return [Lease(row[0], row[1], row[2], row[3:]) for row in rows]


def _inputs(db: apsw.Connection, seq: int) -> tuple[Input, ...]:
    rows = _rows(
        db,
        "SELECT source, kind, position, value FROM input WHERE target = ? "
        "ORDER BY position, source",
        (seq,),
    )
    return tuple(Input(*row) for row in rows)


def _delete(db: apsw.Connection, select: str, bindings: tuple[Any, ...]) -> int:
    """Delete messages and all that hangs on them; return how many."""
    seqs = [seq for (seq,) in _rows(db, select, bindings)]
    for seq in seqs:
        db.execute("DELETE FROM message WHERE seq = ?", (seq,))
        db.execute("DELETE FROM attempt WHERE message = ?", (seq,))
        db.execute("DELETE FROM input WHERE target = ?", (seq,))
        db.execute("DELETE FROM edge WHERE source = ?", (seq,))
        db.execute("DELETE FROM waiter WHERE message = ?", (seq,))
    return len(seqs)


def _harden(db: apsw.Connection) -> None:
    """Change one byte: a synced commit also puts those before it on the disk."""
    db.execute("UPDATE meta SET value = value + 1 WHERE name = 'hardened'")


def _lock_name(worker: int) -> str:
    return f"{worker}.lock"


def _record(row: tuple[Any, ...]) -> Record:
    (
        code,
        result,
        note_state,
        note,
        deliveries,
        enqueued_at,
        started_at,
        settled_at,
        worker,
        children,
        dead,
        revoke,
        _retries,
        *packed,
    ) = row
    state = _STATE_NAMES[code]
    if state in ("queued", "scheduled") and result is not None:
        state = "retrying"
    return Record(
        id=packed[0],
        state=state,
        packed=tuple(packed),
        result=result,
        note=None if note_state is None else Note(note_state, note),
        deliveries=deliveries,
        enqueued_at=enqueued_at,
        started_at=started_at,
        settled_at=settled_at,
        worker=worker,
        children=children,
        dead=dead,
        revoked=revoke if state == "revoked" else None,
    )
