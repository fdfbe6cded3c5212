"""Queues in SQL: which are paused, how full they are, how long the first in line has waited.

Each function is a part of a transaction that its caller opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

import apsw

from liteq.brokers.connection import fetch_all, fetch_one
from liteq.brokers.enqueueing import Batch
from liteq.brokers.lengths import Lengths, queue_full
from liteq.brokers.schema import EARLY, STATE_CODES, WAITING
from liteq.brokers.values import QueueInfo, State
from liteq.message import GATHER, PACKED_FIELDS

__all__ = ["age", "counts", "has_old", "keep_lengths", "pause", "queues", "resume", "unpaused"]

_STATE: Final = len(PACKED_FIELDS)  # where a row of `enqueueing` has its state
_COUNTED: Final[tuple[State, ...]] = (
    *("waiting", "queued", "scheduled", "running", "parked"),
    "limited",
)

# More than so many wait: each of the four is walked on its own index, and no further.
_IS_OVER: Final = (
    "SELECT EXISTS(SELECT 1 FROM ("
    "SELECT 1 FROM message INDEXED BY message_queued WHERE state = 1 AND queue = ?1 UNION ALL "
    "SELECT 1 FROM message INDEXED BY message_scheduled WHERE state = 2 AND queue = ?1 "
    "UNION ALL "
    "SELECT 1 FROM message INDEXED BY message_parked WHERE state = 4 AND queue = ?1 UNION ALL "
    "SELECT 1 FROM message INDEXED BY message_limited WHERE state = 5 AND queue = ?1) "
    "LIMIT 1 OFFSET ?2)"
)
# The first in line at each priority, found in the index of claims.
_LATENCY: Final = (
    "SELECT queue.value, max(?1 - max(first.enqueued_at, coalesce(first.run_at, 0))) "
    "FROM json_each(?2) AS queue CROSS JOIN json_each('[0,1,2,3,4,5,6,7,8,9]') AS level "
    "CROSS JOIN message AS first WHERE first.seq = (SELECT seq FROM message "
    "INDEXED BY message_queued WHERE state = 1 AND message.queue = queue.value "
    "AND priority = level.value ORDER BY seq LIMIT 1) GROUP BY queue.value"
)
_HEADS: Final = 100  # messages of one priority of a queue that one round of ageing looks at
_OLD: Final = (
    "seq IN (SELECT seq FROM message INDEXED BY message_queued WHERE state = 1 "
    "AND queue = ?3 AND priority = ?4 ORDER BY seq LIMIT ?5) "
    "AND ?1 - max(enqueued_at, coalesce(run_at, 0)) >= ?2 * (?4 + 1)"
)
_IS_OLD: Final = f"SELECT EXISTS(SELECT 1 FROM message WHERE {_OLD})"
_AGE: Final = (
    "UPDATE message SET priority = min(9, CAST("
    f"(?1 - max(enqueued_at, coalesce(run_at, 0))) / ?2 AS INTEGER)) WHERE {_OLD}"
)
_DEAD: Final = (
    "SELECT queue, count(*) FROM message INDEXED BY message_dead WHERE dead IS NOT NULL "
    "GROUP BY queue"
)


def counts(db: apsw.Connection) -> dict[str, dict[State, int]]:
    """Return how many unfinished messages there are, by queue and state.

    State by state, so that each is counted on its own partial index: the finished
    messages, millions perhaps, are never looked at.
    """
    counted: dict[str, dict[State, int]] = {}
    for state in _COUNTED:
        work = f"AND task != '{GATHER}' AND NOT ({EARLY}) " if state == "waiting" else ""
        for queue, number in db.execute(
            f"SELECT queue, count(*) FROM message WHERE state = {STATE_CODES[state]:d} {work}"
            "GROUP BY queue"
        ):
            counted.setdefault(queue, {})[state] = number
    return counted


def queues(db: apsw.Connection, now: float, lengths: Lengths) -> list[QueueInfo]:
    """Return what there is to say of each queue that holds anything or is paused."""
    counted = counts(db)
    dead: dict[str, int] = dict(fetch_all(db, _DEAD))
    paused = {name for (name,) in fetch_all(db, "SELECT queue FROM paused")}
    names = sorted({*counted, *dead, *paused})
    latency: dict[str, float] = dict(fetch_all(db, _LATENCY, (now, json.dumps(names))))
    return [
        QueueInfo(
            name=name,
            counts=counted.get(name, {}),
            paused=name in paused,
            limit=lengths.of(name),
            latency=max(0.0, latency[name]) if name in latency else None,
            dead=dead.get(name, 0),
        )
        for name in names
    ]


def pause(db: apsw.Connection, queue: str, now: float) -> bool:
    """Keep a queue's messages from being claimed; return whether they were not yet."""
    db.execute(
        "INSERT INTO paused(queue, at) VALUES (?,?) ON CONFLICT DO NOTHING", (queue, now)
    )
    return bool(db.changes())


def resume(db: apsw.Connection, queue: str) -> bool:
    """Let a queue's messages be claimed again; return whether it was paused."""
    db.execute("DELETE FROM paused WHERE queue = ?", (queue,))
    return bool(db.changes())


def unpaused(db: apsw.Connection, queues: Sequence[str]) -> list[str]:
    """Return those of these queues that are not paused."""
    paused = {name for (name,) in fetch_all(db, "SELECT queue FROM paused")}
    return [queue for queue in queues if queue not in paused]


def age(db: apsw.Connection, queues: Sequence[str], seconds: float, now: float) -> int:
    """Raise the priority of those first in line that have been claimable for long."""
    raised = 0
    for queue in queues:
        for priority in range(8, -1, -1):
            db.execute(_AGE, (now, seconds, queue, priority, _HEADS))
            raised += db.changes()
    return raised


def has_old(db: apsw.Connection, queues: Sequence[str], seconds: float, now: float) -> bool:
    """Tell whether `age()` has something to do."""
    return any(
        fetch_one(db, _IS_OLD, (now, seconds, queue, priority, _HEADS))
        for queue in queues
        for priority in range(9)
    )


def keep_lengths(
    db: apsw.Connection, limits: Mapping[str, int], batch: Batch, new: Mapping[str, int]
) -> None:
    """Raise `QueueFull` if what a batch put into these queues is more than may wait there.

    Looked at when it is written, and undone with it: what was there already, as at a
    repeated call, takes no room.
    """
    taken = {row[3] for row in batch.rows if row[0] in new and row[_STATE] != WAITING}
    for queue, most in limits.items():
        if queue in taken and fetch_one(db, _IS_OVER, (queue, most)):
            raise queue_full(queue, most)
