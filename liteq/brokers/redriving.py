"""How what failed starts again in an SQLite store, and with it what ended because of it.

`pending` says how many edges of a message are not met. One that ended `upstream` may wait
again exactly if that many of its edges come from messages that have not ended: each of
them will then be met, or end it anew. Were they fewer, it would wait for ever.

A unique message takes its key again, and stays as it is if another has it by now, or has
ended and it is kept: the index of keys lets no two have one, and `OR IGNORE` passes the second
over. One that has expired before its start is over, and is ended first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import apsw

from liteq.brokers.connection import fetch_all, fetch_one
from liteq.brokers.following import Following
from liteq.brokers.schema import MOST, REVOKED, RUNNING, SUCCEEDED
from liteq.message import GATHER

__all__ = ["redrive"]


# The number of times that it was put back. A damaged envelope stays as it is.
_NOT_REQUEUED: Final = (
    """envelope = CASE WHEN instr(envelope, '"requeued":') > 0 AND json_valid(envelope) THEN """
    """replace(envelope, '"requeued":' || coalesce(json_extract(envelope, '$.requeued'), '') """
    "|| ',', '') ELSE envelope END"
)
_FRESH: Final = (
    f"{_NOT_REQUEUED}, "
    "deliveries = 0, retries = 0, result = NULL, children = NULL, dead = NULL, "
    "parked_at = NULL, settled_at = NULL, delete_at = NULL, started_at = NULL, revoke = NULL, "
    "unique_key = ltrim(unique_key, '-')"
)
# A signature covers when a message expires, but of one that counts from when it is due.
_BINDING: Final = (
    """(instr(envelope, '"signature":"') > 0 AND instr(envelope, '"expires_in":') = 0)"""
)
# A key may be kept for some time after the end of another that has done its work; and one
# that was handed on (see `uniqueness`) is held by what runs, if the next has ended before.
_IS_FREE: Final = (
    "NOT EXISTS(SELECT 1 FROM message AS other INDEXED BY message_unique "
    "WHERE other.unique_key = '-' || ltrim(message.unique_key, '-') AND other.state < 6 "
    "AND other.seq != message.seq) "
    "AND NOT EXISTS(SELECT 1 FROM period LEFT JOIN message AS past ON past.id = period.id "
    "WHERE period.unique_key = ltrim(message.unique_key, '-') AND period.until > {now} "
    "AND period.id != message.id AND coalesce(past.state, 6) IN (6, 9))"
)
_RESTART: Final = (
    f"UPDATE OR IGNORE message SET state = CASE WHEN pending > 0 THEN 0 ELSE 1 END, {_FRESH}, "
    f"run_at = NULL, expires_at = CASE WHEN {_BINDING} THEN expires_at END, enqueued_at = ?1 "
    f"WHERE id = ?2 AND state = 7 AND task NOT IN ('', '{GATHER}') AND queue != '' "
    f"AND revoke IS NOT 'upstream' AND ({_BINDING} AND expires_at <= ?1) IS NOT 1 "
    f"AND {_IS_FREE.format(now='?1')} RETURNING seq"
)
_REVIVE: Final = (
    f"UPDATE OR IGNORE message SET state = 0, {_FRESH} "
    "WHERE seq = ?1 AND state IN (7, 8) AND revoke = 'upstream' AND pending = ("
    "SELECT count(*) FROM edge JOIN message source ON source.seq = edge.source "
    "WHERE edge.target = ?1 AND edge.fires NOT LIKE 'was %' AND source.state < 6 "
    "AND NOT EXISTS(SELECT 1 FROM input WHERE input.target = ?1 "
    "AND input.position = edge.position AND input.source = source.id)) "
    f"AND {_IS_FREE.format(now='?2')}"
)
# An error callback that has been called, or is about to be, waits to be called again. One
# that runs goes on, and one that somebody revoked stays revoked.
_RECALL: Final = (
    f"UPDATE OR IGNORE message SET state = 0, pending = 1, inputs = 0, {_FRESH} "
    f"WHERE seq = ?1 AND {_IS_FREE.format(now='?2')}"
)
# What has counted an end that is undone now, and has not started.
_UNCOUNT: Final = (
    f"UPDATE message SET pending = min(pending, {MOST}) + 1, inputs = max(inputs, 0) - ?2, "
    "state = CASE WHEN state IN (1, 2, 4, 5) THEN 0 ELSE state END WHERE seq = ?1 "
    "AND (state IN (0, 1, 2, 4, 5) OR (state IN (7, 8) AND revoke = 'upstream'))"
)
_TAKE_BACK: Final = "DELETE FROM input WHERE target = ? AND position = ? AND source = ?"
_LATE: Final = (
    "SELECT late.seq FROM message AS mine CROSS JOIN message AS late "
    "INDEXED BY message_unique ON late.unique_key "
    "IN (ltrim(mine.unique_key, '-'), '-' || ltrim(mine.unique_key, '-')) "
    "WHERE mine.{} = ? AND mine.unique_key IS NOT NULL AND late.state < 6 "
    "AND late.state NOT IN (0, 3) AND late.expires_at <= ? AND late.seq != mine.seq"
)
_EDGES: Final = (
    "SELECT edge.target, edge.fires, edge.position, source.id FROM message source "
    "JOIN edge ON edge.source = source.seq WHERE source.seq = ?"
)


def redrive(following: Following, ids: Iterable[str]) -> list[str]:
    """Restart the failed ones of these messages; return their ids.

    What followed their ends is undone, and so on down. It is done round by round, so
    that what waits for many of them is looked at once for all. To be followed by
    `follow_all()`.
    """
    db, now = following.db, following.now
    redriven = []
    undone: list[tuple[int, bool]] = []  # what has not ended any more; had it succeeded?
    for id in ids:
        _end_late(following, "id", id)
        seq = fetch_one(db, _RESTART, (now, id))
        if seq is not None:
            redriven.append(id)
            undone.append((seq, False))
    while undone:
        ended, undone = undone, []
        targets: dict[int, None] = {}
        for seq, succeeded in ended:
            for target, fires, position, id in fetch_all(db, _EDGES, (seq,)):
                targets[target] = None
                if fires == "failure" and not succeeded:
                    undone += _recall(following, target)
                elif fires == "success" and succeeded:
                    _uncount(db, target, position, id, inputs=1)
                elif fires == "part":
                    _uncount_part(db, target, position, id, succeeded=succeeded)
        for target in targets:
            _end_late(following, "seq", target)
            db.execute(_REVIVE, (target, now))
            if db.changes():
                undone.append((target, False))
    return redriven


def _end_late(following: Following, column: str, of: str | int) -> None:
    """End what has the key of this message and has expired before its start."""
    for (late,) in fetch_all(following.db, _LATE.format(column), (of, following.now)):
        following.revoke(late, "expired")


def _recall(following: Following, callback: int) -> list[tuple[int, bool]]:
    """Have an error callback wait again; return it if it had ended."""
    db = following.db
    state, pending = fetch_one(
        db, "SELECT state, pending FROM message WHERE seq = ?", (callback,)
    ) or (RUNNING, 0)
    if pending or state in (RUNNING, REVOKED):
        return []
    _end_late(following, "seq", callback)
    db.execute(_RECALL, (callback, following.now))
    if not db.changes():
        return []
    db.execute("DELETE FROM input WHERE target = ?", (callback,))
    return [(callback, state == SUCCEEDED)] if state >= SUCCEEDED else []


def _uncount_part(
    db: apsw.Connection, gather: int, position: int, part: str, *, succeeded: bool
) -> None:
    policy = fetch_one(db, "SELECT body FROM message WHERE seq = ?", (gather,))
    if succeeded:
        _uncount(db, gather, position, part, inputs=int(policy != b"count"))
    elif policy != b"fail":
        _uncount(db, gather, position, part, inputs=int(policy == b"collect"))


def _uncount(
    db: apsw.Connection, target: int, position: int, source: str, *, inputs: int
) -> None:
    db.execute(_UNCOUNT, (target, inputs))
    if db.changes() and inputs:
        db.execute(_TAKE_BACK, (target, position, source))
