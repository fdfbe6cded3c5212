"""What is put into the store, and taken out of it, past the queues: outcomes stored by hand,
purges, and the sweep that deletes what has had its time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import apsw

from liteq.brokers import workflows
from liteq.brokers.base import EVENTS_KEPT_FOR
from liteq.brokers.base_sqlite import AMONG
from liteq.brokers.connection import fetch_all, fetch_one
from liteq.brokers.enqueueing import ENQUEUE, row_of
from liteq.brokers.following import Following, revocation
from liteq.brokers.limiting import free_slots, tidy
from liteq.brokers.mail_sqlite import SqliteMail
from liteq.brokers.roster_sqlite import forget_workers
from liteq.brokers.schema import EARLY, FAILED, IGNORED, REVOKED, STATE_CODES, SUCCEEDED
from liteq.brokers.settling import SLICE, WEIGHT, Settling, fetch_slice
from liteq.brokers.uniqueness import end_periods
from liteq.message import Message

if TYPE_CHECKING:
    from liteq.brokers.keeping import Keeper
    from liteq.brokers.moving import Shelf

__all__ = ["SqliteUpkeep"]


# What has expired before its start, by the indexes that know it.
_LATE: Final = tuple(
    f"expires_at IS NOT NULL AND expires_at <= {{}} AND state {states}"
    for states in ("IN (1, 2, 4)", "= 5")
)


class SqliteUpkeep(SqliteMail):
    """The part of an SQLite store that takes and deletes what no worker settles."""

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
        delete_at = None if expires is None else now + expires
        message = Message(id, task, b"[[],{}]", queue="", result_expires=expires)

        def write(db: apsw.Connection) -> Following:
            following = Following(db, now)
            db.execute(ENQUEUE, row_of(message.pack(), 1, now))
            seq, held = fetch_one(db, "SELECT seq, state FROM message WHERE id = ?", (id,))
            if held >= SUCCEEDED:
                return following
            if code is None:
                db.execute(
                    "UPDATE message SET note_state = ?, note = ? WHERE seq = ?",
                    (state, value, seq),
                )
                db.execute(
                    "UPDATE message SET enqueued_at = ?, result_expires = ?, delete_at = ? "
                    f"WHERE seq = ? AND {EARLY}",
                    (now, expires, delete_at, seq),
                )
                return following
            db.execute(
                "UPDATE message SET state = ?, result = ?, settled_at = ?, delete_at = ?, "
                "token = NULL, note_state = NULL, note = NULL WHERE seq = ?",
                (code, value, now, delete_at, seq),
            )
            following.queued = free_slots(db, seq)
            match state:
                case "SUCCESS":
                    following.succeeded((seq, id, value or b"null"))
                case "FAILURE":
                    following.failed(seq, id, value or revocation("failed"))
                case "REVOKED":
                    following.revoked(seq, id, "revoked")
                case _:
                    following.ignored(seq, id)
            following.follow_all()
            return following

        self._announce(self._database.write(write, durable=self.durable))

    def forget(self, ids: Iterable[str]) -> None:
        wanted = json.dumps(list(ids))

        def delete(db: apsw.Connection) -> None:
            rows = fetch_all(
                db,
                f"SELECT seq, id FROM message WHERE state >= 6 AND id IN {AMONG}",
                (wanted,),
            )
            end_periods(db, [id for _, id in rows])
            _delete(db, [seq for seq, _ in rows])

        self._database.write(delete, durable=self.durable)

    def _purge(self, queues: Sequence[str] | None, *, dead: bool) -> Iterator[int]:
        names = None if queues is None else json.dumps(list(queues))
        for place in ["dead"] if dead else ["queued", "scheduled", "parked", "limited"]:
            yield from self._purge_place(place, names)

    def _purge_place(self, place: str, queues: str | None) -> Iterator[int]:
        """Delete what one partial index holds, in slices: a million rows at once would
        hold the write lock for seconds, and so would a hundred large ones. Where there is
        nothing, nothing is written: a full disk may refuse that after all is done."""
        where = "dead IS NOT NULL" if place == "dead" else f"state = {STATE_CODES[place]:d}"
        sql = f"SELECT {WEIGHT}, seq, id FROM message INDEXED BY message_{place} WHERE {where}"
        bindings: tuple[Any, ...] = ()
        if queues is not None:
            sql += " AND queue IN (SELECT value FROM json_each(?))"
            bindings = (queues,)
        now = self.clock.now()

        def delete(db: apsw.Connection) -> tuple[Following, int, bool]:
            following = Following(db, now)
            found, more = fetch_slice(db, sql, bindings)
            for _, seq, id in found:
                if place != "dead":  # what its end meant for others, it has meant already
                    following.purged(seq, id)
            end_periods(db, [id for _, _, id in found])
            following.follow_all()
            _delete(db, [seq for _, seq, _ in found])
            return following, len(found), more

        more = self._database.read(lambda db: fetch_one(db, f"SELECT EXISTS({sql})", bindings))
        while more:
            following, count, more = self._database.write(delete, durable=self.durable)
            self._announce(following)
            yield count

    def changed(self) -> bool:
        return self._database.changed()

    def maintain(self) -> bool:
        now = self.clock.now()

        def due(db: apsw.Connection) -> bool:
            return bool(
                fetch_one(
                    db,
                    "SELECT EXISTS(SELECT 1 FROM message WHERE delete_at <= ?1) "
                    f"OR EXISTS(SELECT 1 FROM message WHERE {_LATE[0].format('?1')}) "
                    f"OR EXISTS(SELECT 1 FROM message WHERE {_LATE[1].format('?1')}) "
                    "OR EXISTS(SELECT 1 FROM bucket WHERE free_at <= ?1 - 60) "
                    "OR EXISTS(SELECT 1 FROM message WHERE state = 4 AND parked_at <= ?2) "
                    "OR EXISTS(SELECT 1 FROM worker WHERE stopped_at <= ?3) "
                    "OR EXISTS(SELECT 1 FROM letter WHERE expires_at <= ?1) "
                    "OR EXISTS(SELECT 1 FROM listener WHERE until <= ?1) "
                    "OR EXISTS(SELECT 1 FROM event WHERE emitted_at <= ?4) "
                    "OR EXISTS(SELECT 1 FROM period WHERE until <= ?1)",
                    (
                        now,
                        now - self.unknown_expires,
                        now - 7 * 86_400,
                        now - EVENTS_KEPT_FOR,
                    ),
                )
            )

        def sweep(db: apsw.Connection) -> Following:
            settling = Settling(db, now, self.max_deliveries)
            _delete(db, _seqs(db, "delete_at <= ? ORDER BY delete_at", now))
            _end_late(settling.following)
            tidy(db, now)
            settling.give_up_parked(now - self.unknown_expires)
            settling.following.follow_all()
            forget_workers(db, self._locks, now - 7 * 86_400)
            self._sweep_mail(db, now)
            db.execute(
                "DELETE FROM period WHERE unique_key IN (SELECT unique_key FROM period "
                f"WHERE until <= ? LIMIT {SLICE})",
                (now,),
            )
            if db.pragma("freelist_count") > 4096:
                fetch_all(db, f"PRAGMA incremental_vacuum({SLICE})")
            return settling.following

        more = self._database.read(due)
        if more:
            self._announce(self._database.write(sweep, durable=False))
        if self._database.wal_pages > 1000:
            self._database.checkpoint(truncate=self._database.wal_pages > 4096)
        return more

    def _end_expired(self) -> bool:
        """End a slice of what has expired before its start; return whether there was any."""
        now = self.clock.now()

        def end(db: apsw.Connection) -> Following:
            following = Following(db, now)
            _end_late(following)
            following.follow_all()
            return following

        def is_any(db: apsw.Connection) -> bool:
            return any(
                fetch_one(
                    db, f"SELECT EXISTS(SELECT 1 FROM message WHERE {late.format('?')})", (now,)
                )
                for late in _LATE
            )

        found = self._database.read(is_any)
        if found:
            self._announce(self._database.write(end, durable=False))
        return found

    def shelf(self) -> Shelf:
        from liteq.brokers.moving_sqlite import SqliteShelf  # late: for one command

        return SqliteShelf(self._database, self.get, self.clock.now)

    def keeper(self) -> Keeper:
        from liteq.brokers.keeping import Keeper  # late: for who operates a store

        return Keeper(self._database)

    def facts(self) -> dict[str, Any]:
        return self.keeper().stats()


def _end_late(following: Following) -> None:
    """End a slice of what has expired. To be followed by `follow_all()`."""
    for late in _LATE:
        for seq in _seqs(following.db, late.format("?"), following.now):
            following.revoke(seq, "expired")


def _delete(db: apsw.Connection, seqs: Sequence[int]) -> None:
    """Delete messages and all that hangs on them."""
    keys = [(seq,) for seq in seqs]
    touched = {
        workflow
        for key in keys
        for (workflow,) in fetch_all(
            db, "DELETE FROM message WHERE seq = ? RETURNING workflow", key
        )
    }
    db.executemany("DELETE FROM attempt WHERE message = ?", keys)
    db.executemany("DELETE FROM input WHERE target = ?", keys)
    db.executemany("DELETE FROM edge WHERE source = ?", keys)
    db.executemany("DELETE FROM edge WHERE target = ?", keys)  # numbers are used again
    db.executemany("DELETE FROM waiter WHERE message = ?", keys)
    workflows.delete_empty(db, touched - {None})


def _seqs(db: apsw.Connection, due: str, now: float) -> list[int]:
    found, _ = fetch_slice(db, f"SELECT {WEIGHT}, seq FROM message WHERE {due}", (now,))
    return [seq for _, seq in found]
