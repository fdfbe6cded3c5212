"""Periodic entries in SQL: what is due when, which instants were fired, and who leads.

Each function is a part of a transaction that its caller opened. `fire()` is a compare
and set: the row moves from one instant to the next or it does not, so any number of
beats may try, and the one whose update matched enqueues in the same transaction.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

import apsw

from liteq.brokers.connection import fetch_all
from liteq.brokers.values import Schedule

__all__ = ["fire", "lead", "names", "put", "remove", "schedules", "unlead"]

_COLUMNS: Final = ", ".join(Schedule._fields)


def schedules(db: apsw.Connection, names: Sequence[str] | None = None) -> list[Schedule]:
    """Return all entries, or those of these names, by name."""
    chosen = ""
    given: tuple[str, ...] = ()
    if names is not None:
        chosen, given = "WHERE name IN (SELECT value FROM json_each(?)) ", (json.dumps(names),)
    rows = fetch_all(db, f"SELECT {_COLUMNS} FROM schedule {chosen}ORDER BY name", given)
    return [Schedule(*row)._replace(paused=bool(row[4])) for row in rows]


def names(db: apsw.Connection) -> list[str]:
    """Return the names of all entries, in order."""
    return [name for (name,) in fetch_all(db, "SELECT name FROM schedule ORDER BY name")]


def put(
    db: apsw.Connection, schedule: Schedule, revision: int | None, new_revision: int
) -> bool:
    """Write an entry under a new revision, if it has the given one (None: any, 0: if it
    does not exist); return whether it was written."""
    changed = (
        schedule.entry,
        schedule.due_at,
        schedule.origin,
        schedule.paused,
        new_revision,
        schedule.name,
    )
    if revision != 0:
        db.execute(
            "UPDATE schedule SET entry = ?1, due_at = ?2, origin = ?3, paused = ?4, "
            "revision = ?5 WHERE name = ?6 AND (?7 IS NULL OR revision = ?7)",
            (*changed, revision),
        )
        if db.changes():
            return True
    if revision:
        return False
    db.execute(
        f"INSERT INTO schedule({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?) "
        "ON CONFLICT(name) DO NOTHING",
        schedule._replace(revision=new_revision),
    )
    return bool(db.changes())


def remove(db: apsw.Connection, name: str) -> bool:
    """Delete an entry; return whether there was one."""
    db.execute("DELETE FROM schedule WHERE name = ?", (name,))
    return bool(db.changes())


def fire(
    db: apsw.Connection,
    name: str,
    due_at: float,
    next_due_at: float | None,
    revision: int,
    *,
    now: float,
    last_id: str | None,
) -> bool:
    """Move an entry to its next instant if it is still due at this one; return whether it
    was. `last_id` is what it enqueues, None if the instant is passed over."""
    db.execute(
        "UPDATE schedule SET due_at = ?1, "
        "last_due_at = CASE WHEN ?5 IS NULL THEN last_due_at ELSE ?3 END, "
        "last_run_at = CASE WHEN ?5 IS NULL THEN last_run_at ELSE ?6 END, "
        "last_id = coalesce(?5, last_id), "
        "total = total + (?5 IS NOT NULL) "
        "WHERE name = ?2 AND due_at = ?3 AND revision = ?4 AND paused = 0",
        (next_due_at, name, due_at, revision, last_id, now),
    )
    return bool(db.changes())


def lead(db: apsw.Connection, beat: str, until: float, now: float) -> bool:
    """Take or keep the lease of the leading beat; return whether it is this beat's."""
    db.execute(
        "INSERT INTO lead(what, holder, until) VALUES ('beat', ?1, ?2) "
        "ON CONFLICT(what) DO UPDATE SET holder = ?1, until = ?2 "
        "WHERE holder = ?1 OR until <= ?3",
        (beat, until, now),
    )
    return bool(db.changes())


def unlead(db: apsw.Connection, beat: str) -> bool:
    """Give the lease up; return whether this beat had it."""
    db.execute("DELETE FROM lead WHERE what = 'beat' AND holder = ?", (beat,))
    return bool(db.changes())
