"""Delayed messages in SQL: when the next is due, what has come due, who is told of a new one.

A worker sleeps until the first of its queues is due, so it is told of those alone that are due
before all others of their queue. Whether one is, its own transaction tells: who has looked
before that is told, who looks after it sees it, and the one that is due before it has been
seen, or told, in the same way. What a worker waits for may be gone by then (revoked, claimed
by another, put off): it wakes up in vain, and looks when the next is due. Of what is due later
than in `FAR` seconds nobody is told: each worker looks with its heartbeats.

Each function is a part of a transaction that its caller opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Final

import apsw

from liteq.brokers.connection import fetch_all, fetch_one

__all__ = ["FAR", "IS_NEXT", "is_sooner", "next_due", "next_dues", "promote"]

FAR: Final = 60  # seconds, in which the slowest heartbeat comes a dozen times

_NEXT: Final = (
    "SELECT run_at FROM message INDEXED BY message_scheduled WHERE state = 2 "
    "AND queue = ? ORDER BY run_at LIMIT 1"
)
# Of many queues, at a quarter of a microsecond each: a statement for each takes four times as
# long, in a step that all others of the store wait for.
_NEXT_OF_MANY: Final = (
    f"SELECT min(({_NEXT.replace('?', 'named.value')})) FROM json_each(?) AS named"
)
_PROMOTE: Final = (
    "UPDATE message SET state = 1 WHERE seq IN (SELECT due.seq FROM json_each(?) AS named "
    "CROSS JOIN message AS due INDEXED BY message_scheduled "
    "WHERE due.state = 2 AND due.queue = named.value AND due.run_at <= ? LIMIT ?) "
    "RETURNING seq"
)
# Of a message that a statement has just inserted: no other of its queue is due before it, nor
# at the same instant, as thousands may be.
IS_NEXT: Final = (
    f"message.run_at <= message.enqueued_at + {FAR} "
    "AND NOT EXISTS(SELECT 1 FROM message AS other INDEXED BY message_scheduled "
    "WHERE other.state = 2 AND other.queue = message.queue "
    "AND other.run_at <= message.run_at AND other.seq != message.seq)"
)


def next_due(db: apsw.Connection, queues: Sequence[str]) -> float | None:
    """Return when the next delayed message of these queues is due."""
    if len(queues) == 1:
        due: float | None = fetch_one(db, _NEXT, (queues[0],))
    else:
        due = fetch_one(db, _NEXT_OF_MANY, (json.dumps(queues),))
    return due


def promote(db: apsw.Connection, queues: Sequence[str], now: float, limit: int) -> list[int]:
    """Make claimable what has come due in these queues, or so much of it; return which."""
    return [seq for (seq,) in fetch_all(db, _PROMOTE, (json.dumps(queues), now, limit))]


def next_dues(db: apsw.Connection, queues: Iterable[str]) -> dict[str, float]:
    """Return when the next delayed message of each of these queues is due, if it has one."""
    found = ((queue, fetch_one(db, _NEXT, (queue,))) for queue in queues)
    return {queue: due for queue, due in found if due is not None}


def is_sooner(
    db: apsw.Connection, queues: Iterable[str], before: Mapping[str, float], now: float
) -> bool:
    """Tell whether the next of one of these queues is due sooner than before, and soon."""
    dues = next_dues(db, queues)
    far = now + FAR
    return any(due <= far and due < before.get(queue, inf) for queue, due in dues.items())
