"""Letters and events in SQL: how workers and those who steer them talk.

A letter is a row that its receiver deletes in the transaction in which it reads it, so it
is read once. Events are rows in the order of their numbers, of which the last are kept; a
number that is missing tells a slow reader how many it has missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import apsw

from liteq.brokers.base import EVENTS_KEPT, EVENTS_KEPT_FOR, LETTERS_KEPT, MAIL, Mailbox
from liteq.brokers.base_sqlite import SqliteStore
from liteq.brokers.connection import fetch_all, fetch_one
from liteq.brokers.values import Events, Letter
from liteq.brokers.wakeup import LocalMailbox, SocketMailbox, kind_of

__all__ = ["SqliteMail"]

_SLICE: Final = 500
_LAST_EVENT: Final = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'event'"


class SqliteMail(SqliteStore):
    """The part of an SQLite store that carries letters and events."""

    # Letters

    def post(self, letters: Sequence[Letter]) -> list[bool]:
        now = self.clock.now()

        def write(db: apsw.Connection) -> list[bool]:
            left = []
            for letter in letters:
                room = _has_room(db, letter.to)
                left.append(room)
                if room:
                    db.execute(
                        "INSERT INTO letter(receiver, body, expires_at) VALUES (?, ?, ?)",
                        (str(letter.to), letter.body, now + letter.seconds),
                    )
            return left

        left = self._database.write(write, durable=False)
        for letter, is_left in zip(letters, left, strict=True):
            if is_left and isinstance(letter.to, int):
                self._wake_worker(letter.to)
            elif is_left:
                self._wake(str(letter.to), [""])
        return left

    def _wake_worker(self, worker: int) -> None:
        if self._post is not None:
            self._post.wake_worker(worker, MAIL)
            return
        own = kind_of(worker)
        for mailbox in list(self._local.values()):
            if mailbox.name.startswith(own):
                mailbox.put([MAIL])

    def collect(self, to: int | str) -> list[bytes]:
        now = self.clock.now()
        receiver = str(to)
        found = self._database.read(
            lambda db: fetch_one(
                db, "SELECT EXISTS(SELECT 1 FROM letter WHERE receiver = ?)", (receiver,)
            )
        )
        if not found:
            return []  # without a write: whoever waits looks often
        rows = self._database.write(
            lambda db: fetch_all(
                db,
                "DELETE FROM letter WHERE receiver = ? RETURNING seq, body, expires_at",
                (receiver,),
            ),
            durable=False,
        )
        return [body for _, body, expires_at in sorted(rows) if expires_at > now]

    # Events

    def listen(self, mailbox: Mailbox, seconds: float) -> int:
        if not isinstance(mailbox, (SocketMailbox, LocalMailbox)):
            raise TypeError(f"not a mailbox of this store: {mailbox!r}")
        now = self.clock.now()

        def write(db: apsw.Connection) -> tuple[bool, int]:
            was_heard = fetch_one(
                db, "SELECT EXISTS(SELECT 1 FROM listener WHERE until > ?)", (now,)
            )
            if seconds > 0:
                db.execute(
                    "INSERT INTO listener(address, until) VALUES (?1, ?2) "
                    "ON CONFLICT(address) DO UPDATE SET until = ?2",
                    (mailbox.name, now + seconds),
                )
            else:
                db.execute("DELETE FROM listener WHERE address = ?", (mailbox.name,))
            return bool(was_heard), fetch_one(db, _LAST_EVENT)

        was_heard, last = self._database.write(write, durable=False)
        if seconds > 0 and not was_heard:
            self._wake_workers(MAIL)
        return last

    def emit(self, events: Sequence[bytes]) -> bool:
        now = self.clock.now()
        heard = "SELECT address FROM listener WHERE until > ?"
        if not self._database.read(lambda db: fetch_all(db, heard, (now,))):
            return False
        if not events:
            return True

        def append(db: apsw.Connection) -> list[str]:
            db.executemany(
                "INSERT INTO event(emitted_at, body) VALUES (?, ?)",
                [(now, body) for body in events],
            )
            db.execute(
                "DELETE FROM event WHERE seq <= (SELECT max(seq) FROM event) - ?",
                (EVENTS_KEPT,),
            )
            return [address for (address,) in fetch_all(db, heard, (now,))]

        for address in self._database.write(append, durable=False):
            self._wake(address, [""])
        return True

    def events(self, after: int, limit: int = 1000) -> Events:
        def look(db: apsw.Connection) -> Events:
            rows = fetch_all(
                db,
                "SELECT seq, body FROM event WHERE seq > ? ORDER BY seq LIMIT ?",
                (after, limit),
            )
            if rows:
                missed = rows[0][0] - 1 - after
                return Events(rows[-1][0], missed, tuple(body for _, body in rows))
            last = fetch_one(db, _LAST_EVENT)
            if last >= after:
                return Events(last, last - after, ())
            # An older copy of the file was put in its place: see `events.lua`.
            rows = fetch_all(db, "SELECT seq, body FROM event ORDER BY seq LIMIT ?", (limit,))
            return Events(rows[-1][0] if rows else last, 1, tuple(body for _, body in rows))

        return self._database.read(look)

    # Keeping house

    def _sweep_mail(self, db: apsw.Connection, now: float) -> None:
        db.execute(
            "DELETE FROM letter WHERE seq IN (SELECT seq FROM letter INDEXED BY "
            f"letter_expiring WHERE expires_at <= ? LIMIT {_SLICE})",
            (now,),
        )
        db.execute("DELETE FROM listener WHERE until <= ?", (now,))
        db.execute(
            "DELETE FROM event WHERE seq IN (SELECT seq FROM event INDEXED BY "
            f"event_emitted WHERE emitted_at <= ? LIMIT {_SLICE})",
            (now - EVENTS_KEPT_FOR,),
        )


def _has_room(db: apsw.Connection, to: int | str) -> bool:
    if isinstance(to, int):
        alive = "SELECT EXISTS(SELECT 1 FROM worker WHERE id = ? AND stopped_at IS NULL)"
        if not fetch_one(db, alive, (to,)):
            return False
    count: int = fetch_one(db, "SELECT count(*) FROM letter WHERE receiver = ?", (str(to),))
    return count < LETTERS_KEPT
