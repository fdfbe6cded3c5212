"""Unique messages in SQL: at most one that is alive holds a key.

The lock is the message itself: a unique index holds the keys of messages that have not
ended, so whatever ends one (a settle, a revocation, a dead letter, a purge) gives its key
free in the same statement, and nothing that dies leaves a lock behind. A key that is kept
for some time after the end as well has a row in `period`.

A message that has expired before its start is over, although it is marked so only by a
claim or by upkeep. Who wants its key does not wait for those, and ends it first.
"""

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import apsw

from liteq.brokers.connection import fetch_one
from liteq.brokers.schema import EARLY, QUEUED, RUNNING, SCHEDULED, WAITING
from liteq.exceptions import DuplicateTask
from liteq.message import PACKED_FIELDS, Rule, rule_of

__all__ = ["END", "UNIQUE", "Admission", "admit", "admits", "end_periods", "holder"]

UNIQUE: Final = PACKED_FIELDS.index("unique_key")
END: Final = "end"  # the edge of a message that waits for another to end, in whatever way

_ENVELOPE: Final = PACKED_FIELDS.index("envelope")
_RUN_AT: Final = PACKED_FIELDS.index("run_at")
_WIDTH: Final = len(PACKED_FIELDS)

_HOLDER: Final = (
    "SELECT seq, id, state, workflow, enqueued_at, sent_as, expires_at "
    "FROM message INDEXED BY message_unique "
    "WHERE unique_key = ? AND state < 6"
)
# It is over when its call failed, was revoked or is purged: then nothing was done.
_PERIOD: Final = (
    "SELECT period.id FROM period LEFT JOIN message ON message.id = period.id "
    "WHERE period.unique_key = ? AND period.until > ? AND coalesce(message.state, 6) IN (6, 9)"
)
_IS_STEP: Final = (
    "SELECT EXISTS(SELECT 1 FROM message WHERE id = ? AND workflow IS NOT NULL AND state != 3)"
)
_KEEP: Final = (
    "INSERT INTO period(unique_key, id, until) VALUES (?,?,?) "
    "ON CONFLICT DO UPDATE SET id = excluded.id, until = excluded.until"
)
# `sent_as` is the id under which it was asked for last: that call may be made again.
# The key stays as it is: it is the same, and may have been handed on.
_COLUMNS: Final = "".join(f"{name} = ?, " for name in PACKED_FIELDS[1:] if name != "unique_key")
_RENEW: Final = (
    f"UPDATE message SET {_COLUMNS}state = ?, sent_as = ?, result = NULL, parked_at = NULL, "
    "note_state = NULL, note = NULL WHERE seq = ?"
)
# A key with a hyphen before it was handed on to the message that runs next. If that ends before
# it has run, the key is this one's again.
_HANDED_ON: Final = "-"
_HAND_ON: Final = "UPDATE message SET unique_key = ? WHERE seq = ?"
_END_PERIOD: Final = "DELETE FROM period WHERE unique_key = ?"


class Admission(NamedTuple):
    """Rows that are to be stored, those that were before, the edges that are to be added,
    and what is not stored: by its id, that of the message that stands for it. Before that,
    those are to end whose keys are taken since they have expired. `sent_as` has, by the id of
    a row, that of the one whose arguments it took. `queued`: one that stands for another has
    become claimable by it."""

    rows: list[tuple[Any, ...]]
    repeated: list[tuple[Any, ...]]
    edges: list[tuple[str, str, str, int]]
    stands: dict[str, str]
    late: list[int]
    sent_as: dict[str, str]
    queued: bool


class _Holder(NamedTuple):
    seq: int
    id: str
    state: int
    workflow: int | None
    enqueued_at: float
    sent_as: str | None
    expires_at: float | None

    def is_late(self, now: float) -> bool:
        """Tell whether it has expired before its start; one that runs goes on."""
        late = self.expires_at is not None and self.expires_at <= now
        return late and self.state != RUNNING


def admit(
    db: apsw.Connection, rows: Sequence[tuple[Any, ...]], now: float, *, as_a_whole: bool
) -> Admission:
    """Decide which of these rows are stored, one after the other.

    `as_a_whole`: they belong together, so that none can be left out. Raises
    `DuplicateTask` then, and where a message asks for it.
    """
    kept: list[tuple[Any, ...]] = []
    repeated: list[tuple[Any, ...]] = []
    edges: list[tuple[str, str, str, int]] = []
    stands: dict[str, str] = {}
    late: list[int] = []
    sent_as: dict[str, str] = {}
    queued = False
    places: dict[str, int] = {}  # of the keys taken here
    for row in rows:
        id, key = row[0], row[UNIQUE]
        if key is None:
            kept.append(row)
            continue
        if _is_there(db, id):
            repeated.append(row)
            continue
        rule = rule_of(row[_ENVELOPE])
        if key in places:
            place = places[key]
            there = kept[place][0]
            _refuse(row, there, rule, as_a_whole=as_a_whole)
            if rule.on_conflict == "replace":
                if kept[place][_WIDTH] == WAITING:  # for the end of what runs
                    row = (*row[:_WIDTH], *kept[place][_WIDTH:])
                kept[place] = (there, *row[1:])
                sent_as[there] = id
            stands[id] = there
            continue
        holder = _find(db, key, now, late)
        if holder is not None:
            _refuse(row, holder.id, rule, as_a_whole=as_a_whole)
            if rule.on_conflict != "replace" or holder.sent_as == id:
                stands[id] = holder.id
                continue
            if holder.state != RUNNING:
                queued |= _renew(db, holder, row, rule, now) == QUEUED
                stands[id] = holder.id
                continue
            db.execute(_HAND_ON, (_HANDED_ON + key, holder.seq))
            edges.append((holder.id, id, END, 0))
            row = (*row[:_WIDTH], WAITING, 1, *row[_WIDTH + 2 :])
        elif (past := fetch_one(db, _PERIOD, (key, now))) is not None:
            _refuse(row, past, rule, as_a_whole=as_a_whole)
            stands[id] = past
            continue
        if rule.unique_for is not None:
            db.execute(_KEEP, (key, id, now + rule.unique_for))
        else:  # a period that is left is of one that did nothing, or has handed the key on
            db.execute(_END_PERIOD, (key,))
        places[key] = len(kept)
        kept.append(row)
    return Admission(kept, repeated, edges, stands, late, sent_as, queued)


def admits(db: apsw.Connection, rows: Sequence[tuple[Any, ...]], now: float) -> bool:
    """Tell whether nothing keeps one of these rows from being stored, or taken over by
    what holds its key; for a tick of a periodic entry, which nobody waits for. One of them
    may be kept from it by another: that is an error, for who stores them."""
    seen = set()
    for row in rows:
        key = row[UNIQUE]
        if key in seen:
            return True
        if key is not None:
            seen.add(key)
        if key is None or (alive := holder(db, key, now)) is None:
            continue
        if len(rows) > 1 or rule_of(row[_ENVELOPE]).on_conflict != "replace":
            return False
        if fetch_one(db, _IS_STEP, (alive,)):
            return False
    return True


def _is_there(db: apsw.Connection, id: str) -> bool:
    sql = f"SELECT EXISTS(SELECT 1 FROM message WHERE id = ? AND NOT ({EARLY}))"
    return bool(fetch_one(db, sql, (id,)))


def _refuse(row: tuple[Any, ...], there: str, rule: Rule, *, as_a_whole: bool) -> None:
    if as_a_whole or rule.on_conflict == "raise":
        raise DuplicateTask.of(row[1], there, part=as_a_whole)


def _renew(
    db: apsw.Connection, holder: _Holder, row: tuple[Any, ...], rule: Rule, now: float
) -> int:
    """Have one that waits take what another would have been; it keeps its place. Return the
    state that it is in then."""
    if holder.workflow is not None:
        raise DuplicateTask.of(row[1], holder.id, step=True)
    fields = list(row[:_WIDTH])
    run_at: float | None = row[_RUN_AT]
    if run_at is not None and rule.max_wait is not None:
        run_at = fields[_RUN_AT] = min(run_at, holder.enqueued_at + rule.max_wait)
    del fields[UNIQUE], fields[0]
    state = SCHEDULED if run_at is not None and run_at > now else QUEUED
    if holder.state == WAITING:
        state = WAITING  # for the end of what runs
    db.execute(_RENEW, (*fields, state, row[0], holder.seq))
    return state


def holder(db: apsw.Connection, key: str, now: float) -> str | None:
    """Return the id of the message that holds a key, None if nothing does."""
    found = _find(db, key, now, [])
    if found is not None:
        return found.id
    past: str | None = fetch_one(db, _PERIOD, (key, now))
    return past


def _find(db: apsw.Connection, key: str, now: float, late: list[int]) -> _Holder | None:
    """Return what holds a key. What holds it no more since it has expired is put to `late`."""
    for written in (key, _HANDED_ON + key):
        found = fetch_one(db, _HOLDER, (written,))
        if found is None:
            continue
        holder = _Holder(*found)
        if not holder.is_late(now):
            return holder
        late.append(holder.seq)
    return None


def end_periods(db: apsw.Connection, ids: Sequence[str]) -> None:
    """Give free the keys of calls that are deleted by hand."""
    if fetch_one(db, "SELECT EXISTS(SELECT 1 FROM period)"):
        db.execute(
            "DELETE FROM period WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(ids)),),
        )
