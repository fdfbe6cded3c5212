"""An SQLite store as something to be carried away or filled: see `moving`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final

import apsw

from liteq.brokers.connection import Database, fetch_all, fetch_one
from liteq.brokers.keeping import Keeper
from liteq.brokers.limiting import overrides
from liteq.brokers.moving import Bond, Bucket, Kept, Override, Period, deletion_of
from liteq.brokers.schema import EARLY, STATE_CODES
from liteq.brokers.values import ATTEMPTS_KEPT, Attempt, Input, Record
from liteq.message import PACKED_FIELDS, UNIQUE_KEY

__all__ = ["SqliteShelf"]

_COLUMNS: Final = (
    *PACKED_FIELDS,
    *("state", "pending", "inputs", "enqueued_at", "deliveries", "worker", "started_at"),
    *("settled_at", "delete_at", "result", "children", "note_state", "note", "revoke", "dead"),
    "workflow",
)
_INSERT: Final = (
    f"INSERT INTO message({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "
    "ON CONFLICT(id) DO NOTHING"
)
# Of two that are alive with one key, the one that came later waits for the end of the other,
# which has handed it on: see `uniqueness`.
_HAND_ON: Final = (
    "UPDATE message SET unique_key = '-' || unique_key WHERE unique_key = ?1 AND state < 6 "
    "AND NOT EXISTS(SELECT 1 FROM message WHERE id = ?2)"
)
# An edge is met if its source has ended as it was to; a gather may be content with less.
_BONDS: Final = (
    "SELECT target.id, edge.fires, edge.position, CASE edge.fires "
    "WHEN 'success' THEN source.state = 6 "
    "WHEN 'part' THEN source.state = 6 "
    "OR (source.state > 6 AND target.body != CAST('fail' AS BLOB)) "
    "ELSE EXISTS(SELECT 1 FROM input WHERE input.target = target.seq "
    "AND input.source = source.id) END "
    "FROM edge JOIN message source ON source.seq = edge.source "
    "JOIN message target ON target.seq = edge.target WHERE edge.source = ?"
)
_EDGE: Final = (
    "INSERT INTO edge(source, target, fires, position) SELECT source.seq, target.seq, ?3, ?4 "
    "FROM message source, message target WHERE source.id = ?1 AND target.id = ?2 "
    "ON CONFLICT DO NOTHING"
)
_BUCKET: Final = (
    "INSERT INTO bucket(name, free_at, used_at) VALUES (?,?,?) ON CONFLICT DO UPDATE SET "
    "free_at = excluded.free_at, used_at = excluded.used_at WHERE excluded.free_at > free_at"
)
_PERIOD: Final = (
    "INSERT INTO period(unique_key, id, until) VALUES (?,?,?) ON CONFLICT DO UPDATE SET "
    "id = excluded.id, until = excluded.until WHERE excluded.until > until"
)
_ATTEMPTS: Final = (
    "SELECT number, outcome, error, (SELECT name FROM worker WHERE id = worker), "
    "started_at, ended_at FROM attempt WHERE message = ? ORDER BY number"
)


class SqliteShelf:
    """`records` reads the records of ids, `now` tells the time (Unix seconds)."""

    def __init__(
        self,
        database: Database,
        records: Callable[[Sequence[str]], dict[str, Record]],
        now: Callable[[], float],
    ) -> None:
        self._database = database
        self._records = records
        self._now = now
        self.place = database.path

    def is_there(self) -> bool:
        if self._database.folder is None:
            return any(handle.db is not None for handle in self._database.handles())
        return bool(Keeper(self._database).version())  # an empty file is none

    def identity(self) -> Hashable:
        return self._database.identity or self._database

    def ids(self) -> list[str]:
        sql = "SELECT id FROM message ORDER BY seq"
        rows = self._database.read(lambda db: fetch_all(db, sql))
        return [id for (id,) in rows]

    def read(self, ids: Sequence[str]) -> list[Kept]:
        records = self._records(ids)

        def select(db: apsw.Connection) -> list[Kept]:
            return [_kept(db, records[id]) for id in ids if id in records]

        return self._database.read(select)

    def write(self, kept: Sequence[Kept]) -> int:
        now = self._now()

        def insert(db: apsw.Connection) -> int:
            return sum(_insert(db, one, now) for one in kept)

        return self._database.write(insert, durable=True)

    def bind(self, kept: Sequence[Kept]) -> None:
        edges = [
            (one.record.id, target, on, position)
            for one in kept
            for target, on, position, _ in one.bonds
        ]
        if edges:
            self._write_all(_EDGE, edges)

    def workflows(self) -> list[tuple[str, str, float]]:
        return self._database.read(
            lambda db: fetch_all(db, "SELECT id, name, created_at FROM workflow ORDER BY seq")
        )

    def write_workflows(self, workflows: Sequence[tuple[str, str, float]]) -> None:
        sql = (
            "INSERT INTO workflow(id, name, created_at) VALUES (?,?,?) "
            "ON CONFLICT(id) DO NOTHING"
        )
        self._write_all(sql, workflows)

    def overrides(self) -> list[Override]:
        return [Override(*one) for one in self._database.read(overrides)]

    def buckets(self) -> list[Bucket]:
        rows = self._database.read(
            lambda db: fetch_all(db, "SELECT name, free_at, used_at FROM bucket")
        )
        return [Bucket(*row) for row in rows]

    def write_buckets(self, buckets: Sequence[Bucket]) -> None:
        now = self._now()
        self._write_all(_BUCKET, [one for one in buckets if one.free_at > now])

    def periods(self) -> list[Period]:
        rows = self._database.read(
            lambda db: fetch_all(db, "SELECT unique_key, id, until FROM period")
        )
        return [Period(*row) for row in rows]

    def write_periods(self, periods: Sequence[Period]) -> None:
        now = self._now()
        self._write_all(_PERIOD, [one for one in periods if one.until > now])

    def _write_all(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
        self._database.write(lambda db: db.executemany(sql, rows), durable=True)


def _kept(db: apsw.Connection, record: Record) -> Kept:
    seq, pending = fetch_all(db, "SELECT seq, pending FROM message WHERE id = ?", (record.id,))[
        0
    ]
    attempts = [Attempt(*row) for row in fetch_all(db, _ATTEMPTS, (seq,))]
    inputs = fetch_all(
        db, "SELECT source, kind, position, value FROM input WHERE target = ?", (seq,)
    )
    return Kept(
        record=record,
        pending=pending,
        changed=any(
            attempt.outcome in ("retried", "replaced") or attempt.number > ATTEMPTS_KEPT
            for attempt in attempts
        ),
        bonds=tuple(
            Bond(target, _once(on), position, bool(met))
            for target, on, position, met in fetch_all(db, _BONDS, (seq,))
        ),
        inputs=tuple(Input(*row) for row in inputs),
        attempts=tuple(attempts),
    )


def _once(on: str) -> str:
    """Return the kind of an edge with one "was ": it once had one for each replacement."""
    word = on.rpartition("was ")[2]
    return on if word == on else f"was {word}"


def _insert(db: apsw.Connection, kept: Kept, now: float) -> int:
    record = kept.record
    state: str = record.state
    if state == "retrying":
        state = "scheduled"  # until the next claim sees that it is due
    elif state in ("running", "parked", "limited"):
        state = "queued"
    over = record.final
    values: tuple[Any, ...] = (
        *record.packed,
        STATE_CODES[state],
        kept.pending,
        len(kept.inputs),
        record.enqueued_at,
        record.deliveries,
        _worker(db, record.worker, now),
        record.started_at if over else None,
        record.settled_at,
        deletion_of(record) if over or record.early else None,
        record.result,
        record.children,
        record.note.state if record.note else None,
        record.note.meta if record.note else None,
        record.revoked,
        record.dead,
        fetch_one(db, "SELECT seq FROM workflow WHERE id = ?", (record.workflow,)),
    )
    if not record.early:
        db.execute(f"DELETE FROM message WHERE id = ? AND {EARLY}", (record.id,))
    if not over:
        db.execute(_HAND_ON, (record.packed[UNIQUE_KEY], record.id))
    db.execute(_INSERT, values)
    if not db.changes():
        return 0
    seq = db.last_insert_rowid()
    db.executemany(
        "INSERT INTO input(target, source, kind, position, value) VALUES (?,?,?,?,?)",
        [(seq, *one) for one in kept.inputs],
    )
    db.executemany(
        "INSERT INTO attempt(message, number, outcome, error, worker, started_at, ended_at) "
        "VALUES (?,?,?,?,?,?,?)",
        [
            (seq, *attempt[:3], _worker(db, attempt.worker, now), *attempt[4:])
            for attempt in kept.attempts
        ],
    )
    return 1


def _worker(db: apsw.Connection, name: str | None, now: float) -> int | None:
    """Return the number of the last worker of this name that is gone: of those that have
    stopped, one name may have many, and only the name is known here."""
    if name is None:
        return None
    found: int | None = fetch_one(
        db, "SELECT max(id) FROM worker WHERE name = ? AND stopped_at IS NOT NULL", (name,)
    )
    if found is None:
        db.execute(
            "INSERT INTO worker(name, hostname, pid, boot, queues, concurrency, details, "
            "started_at, beat_at, stopped_at) VALUES (?, '', 0, '', '[]', 0, '{}', ?2, 0, ?2)",
            (name, now),
        )
        found = db.last_insert_rowid()
    return found
