"""Who is alive, in SQL: workers, their heartbeats and locks, and what the dead had leased."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import apsw

from liteq.brokers import standby
from liteq.brokers.base import HELLO
from liteq.brokers.base_sqlite import PACKED, SqliteStore
from liteq.brokers.connection import fetch_all
from liteq.brokers.following import Following
from liteq.brokers.liveness import LockFiles, lock_name, present
from liteq.brokers.settling import SLICE, Settling
from liteq.brokers.values import Lease, WorkerInfo
from liteq.message import ACKS_LATE
from liteq.outcome import Lost, Released

__all__ = ["SqliteRoster", "forget_workers", "leases_of"]


_WORKER: Final = (
    "id, name, hostname, pid, queues, concurrency, started_at, beat_at, details, boot"
)
_ALIVE: Final = (
    f"SELECT {_WORKER} FROM worker INDEXED BY worker_alive WHERE stopped_at IS NULL ORDER BY id"
)
_ROSTER: Final = (
    f"SELECT {_WORKER}, stopped_at, (SELECT count(*) FROM message INDEXED BY message_running "
    "WHERE state = 3 AND message.worker = worker.id) FROM worker "
    "WHERE stopped_at IS NULL OR (ended = 'died' AND stopped_at > ?) ORDER BY id"
)
_DIED: Final = (
    "UPDATE worker SET stopped_at = ?, ended = 'died' WHERE id = ? AND stopped_at IS NULL"
)


class _Row:
    """A worker as the store has it: the columns of `_WORKER`."""

    def __init__(self, columns: Sequence[Any]) -> None:
        self._columns = columns
        self.id: int = columns[0]
        self.beat_at: float = columns[7]
        self.boot: str = columns[9]

    def info(self, steady: float) -> WorkerInfo:
        id, name, host, pid, queues, concurrency, started_at, beat_at, text, _ = self._columns
        return WorkerInfo(
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


class SqliteRoster(SqliteStore):
    """The part of an SQLite store that knows who is alive."""

    def register(
        self, name: str, queues: Sequence[str], concurrency: int, details: Mapping[str, Any]
    ) -> int:
        self._database.may_run()
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
                self._locks.hold(lock_name(worker))
            return worker

        losses = self._database.losses
        worker = self._database.write(insert, durable=False)
        self._losses[worker] = losses
        if self._post is not None:
            self._post.prune()
            if self._links is not None:
                self._links.prune(self._post.folder)
        self._wake_workers(HELLO)  # the others learn whose death to watch for
        return worker

    def beat(
        self,
        worker: int,
        details: Mapping[str, Any] | None = None,
        *,
        queues: Sequence[str] | None = None,
        concurrency: int | None = None,
    ) -> bool:
        beat_at = self.clock.steady()
        text = None if details is None else json.dumps(dict(details))
        names = None if queues is None else json.dumps(list(queues))
        name = lock_name(worker)

        def update(db: apsw.Connection) -> tuple[bool, bool]:
            self._stay(worker)
            db.execute(
                "UPDATE worker SET beat_at = ?, details = coalesce(?, details), "
                "queues = coalesce(?, queues), concurrency = coalesce(?, concurrency) "
                "WHERE id = ? AND stopped_at IS NULL",
                (beat_at, text, names, concurrency, worker),
            )
            alive = bool(db.changes())
            standby.prolong(db, worker, beat_at + self.stuck_after)
            anew = alive and self._locks is not None and self._locks.hold_again(name)
            return alive, anew

        alive, anew = self._database.write(update, durable=False)
        if not alive:
            self._leave(worker)
        if anew:
            _warn_of_lock(f"{self.directory}/workers/{name}")
        return alive

    def unregister(self, worker: int) -> None:
        now = self.clock.now()

        def release(db: apsw.Connection) -> Following:
            self._stay(worker)
            settling = Settling(db, now, self.max_deliveries)
            for lease in leases_of(db, worker, None):
                # What it did with them is unknown: where acks_late is off, never again.
                early = not lease.packed[ACKS_LATE]
                gone = Lost("its worker left without settling it") if early else Released()
                settling.settle([(lease, gone)])
            db.execute(
                "UPDATE worker SET stopped_at = ?, ended = 'left' "
                "WHERE id = ? AND stopped_at IS NULL",
                (now, worker),
            )
            return settling.following

        following = self._database.write(release, durable=False)
        self._leave(worker)
        self._announce(following)

    def _leave(self, worker: int) -> None:
        self._losses.pop(worker, None)
        if self._locks is not None:
            self._locks.release(lock_name(worker))

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
            lambda db: fetch_all(
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
            if silent or self._has_ended(id, boot):
                dead.append(id)
        return dead

    def _reclaim_slice(self, dead: int, now: float) -> int:
        reason = "the worker process died while the task ran"

        def take(db: apsw.Connection) -> tuple[Following, int]:
            settling = Settling(db, now, self.max_deliveries)
            leases = leases_of(db, dead, SLICE)
            settling.settle([(lease, Lost(reason)) for lease in leases])
            # From here on the worker, should it live after all, must register anew.
            db.execute(_DIED, (now, dead))
            return settling.following, len(leases)

        following, taken = self._database.write(take, durable=False)
        self._announce(following)
        return taken

    def _bury(self, dead: int, now: float) -> None:
        self._database.write(lambda db: db.execute(_DIED, (now, dead)), durable=False)
        # While the process lives, its lock goes on telling so: it is stuck, and not dead.
        if self._locks is not None and self._locks.is_dead(lock_name(dead)):
            self._locks.remove(lock_name(dead))

    def workers(self) -> list[WorkerInfo]:
        steady = self.clock.steady()
        rows = self._database.read(lambda db: fetch_all(db, _ALIVE))
        alive = []
        for row in map(_Row, rows):
            silent = steady - row.beat_at > self.lease_timeout
            if not (silent or self._has_ended(row.id, row.boot)):
                alive.append(row.info(steady))
        return alive

    def roster(self, dead_for: float = 3600.0) -> list[WorkerInfo]:
        steady, now = self.clock.steady(), self.clock.now()
        rows = self._database.read(lambda db: fetch_all(db, _ROSTER, (now - dead_for,)))
        found = []
        for *known, stopped_at, leases in rows:
            row = _Row(known)
            state = self._state_of(row, steady, given_up=stopped_at is not None)
            found.append(row.info(steady)._replace(state=state, leases=leases))
        return present(found)

    def _state_of(
        self, row: _Row, steady: float, *, given_up: bool
    ) -> Literal["alive", "stuck", "dead"]:
        locks = self._locks
        if self._has_ended(row.id, row.boot):
            return "dead"
        if given_up and locks is not None and not locks.is_there(lock_name(row.id)):
            return "dead"  # and buried: who is only stuck keeps its file
        return "stuck" if given_up or steady - row.beat_at > self.stuck_after else "alive"

    def _has_ended(self, id: int, boot: str) -> bool:
        """Tell whether a worker's process is seen to be gone."""
        locks = self._locks
        return boot != self._boot or (locks is not None and locks.is_dead(lock_name(id)))

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


def leases_of(db: apsw.Connection, worker: int, limit: int | None) -> list[Lease]:
    rows = fetch_all(
        db,
        f"SELECT seq, token, deliveries, {PACKED} FROM message INDEXED BY message_running "
        "WHERE state = 3 AND worker = ? LIMIT ?",
        (worker, -1 if limit is None else limit),
    )
    return [Lease(row[0], row[1], row[2], row[3:]) for row in rows]


def _warn_of_lock(path: str) -> None:
    from liteq.loggers import get_logger  # late: a third of what a sender loads

    get_logger("liteq.worker").warning(
        "%s, which shows the others that this worker lives, was removed and is made again: "
        "keep programs that clean up old files out of the store's folder",
        path,
    )


def forget_workers(db: apsw.Connection, locks: LockFiles | None, before: float) -> None:
    """Delete workers that stopped before this, and locks of those that died frozen."""
    gone = fetch_all(db, "DELETE FROM worker WHERE stopped_at <= ? RETURNING id", (before,))
    for (id,) in gone:
        if locks is not None and locks.is_dead(lock_name(id)):
            locks.remove(lock_name(id))
