"""Workers that stand by, in an SQLite store: the next message is leased as it is enqueued.

A worker that has nothing to do and finds nothing to claim says so in a row for each of its
queues, with the token of the leases that it will take. Whoever enqueues a message that is
first in line looks there, in the same statement: the message is stored as claimed, and the
wake-up that the worker gets anyway brings the lease. That spares the worker a transaction.

The rows stay. They count while their worker beats and holds no lease, so the step that settles
makes it stand by again without a write of its own. Triggers take them away when a queue is
paused, a limit is declared, a worker stops or consumes other queues: see `schema.py`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection
from functools import lru_cache
from math import nan
from types import NoneType
from typing import Any, Final

import apsw

from liteq.brokers.connection import fetch_all
from liteq.brokers.schema import QUEUED, RUNNING, SCHEDULED
from liteq.brokers.values import Lease
from liteq.clock import FromNow
from liteq.message import BODY, GATHER, ID, PACKED_FIELDS, RUN_AT, TASK, Packed

__all__ = [
    "ENQUEUE_FIRST",
    "MOST",
    "leave",
    "may_take",
    "prolong",
    "read",
    "stand_by",
    "written",
]

MOST: Final = 8_000  # bytes of a lease that go with a wake-up

_WIDTH: Final = len(PACKED_FIELDS)
_new: Final = tuple.__new__  # half of what Lease(...) costs
# NUL, key, token, how long each of the four parts behind it is, and when it is due.
_HEAD: Final = struct.Struct("<cqqIIIId")
_ACKS_LATE: Final = PACKED_FIELDS.index("acks_late")
_QUEUE: Final = f"?{PACKED_FIELDS.index('queue') + 1}"
_NUMBER: Final = (int, float, NoneType)
_FLAG: Final = (bool, int)
_KINDS: Final[tuple[tuple[type, ...], ...]] = (  # of the fields but id, body, run_at, envelope
    (str,),
    (str,),
    (int,),
    _NUMBER,
    (int,),
    _NUMBER,
    _NUMBER,
    _FLAG,
    _FLAG,
    (int, NoneType),
    _NUMBER,
    (str, NoneType),
    (str, NoneType),
)
_NOW: Final = f"?{_WIDTH + 1}"
_STEADY: Final = f"?{_WIDTH + 2}"

# What a worker would claim before this message, from any of its queues, is first in line. Each
# page that this looks at is read anew when others have written: that of the worker itself is
# left alone, and for one that consumes this queue alone (`others` = 0) its other rows are.
_FREE: Final = (
    f"SELECT worker, token FROM standby WHERE queue = {_QUEUE} AND until > {_STEADY} "
    "AND NOT EXISTS(SELECT 1 FROM message INDEXED BY message_running "
    f"WHERE state = {RUNNING} AND message.worker = standby.worker) "
    "AND NOT EXISTS(SELECT 1 FROM message INDEXED BY message_queued "
    f"WHERE state = {QUEUED} AND queue = {_QUEUE}) "
    "AND NOT EXISTS(SELECT 1 FROM message INDEXED BY message_scheduled "
    f"WHERE state = {SCHEDULED} AND queue = {_QUEUE} AND run_at <= {_NOW}) "
    "AND (others = 0 OR NOT EXISTS(SELECT 1 FROM standby AS own INDEXED BY standby_worker "
    "CROSS JOIN message INDEXED BY message_queued ON message.queue = own.queue "
    f"WHERE own.worker = standby.worker AND state = {QUEUED}) "
    "AND NOT EXISTS(SELECT 1 FROM standby AS own INDEXED BY standby_worker "
    "CROSS JOIN message INDEXED BY message_scheduled ON message.queue = own.queue "
    f"WHERE own.worker = standby.worker AND state = {SCHEDULED} AND run_at <= {_NOW}))"
)
# Behind the fields come the time and the steady time.
ENQUEUE_FIRST: Final = (
    f"INSERT INTO message({', '.join(PACKED_FIELDS)}, pending, enqueued_at, "
    "state, token, worker, started_at, deliveries) "
    f"SELECT {', '.join(f'?{number}' for number in range(1, _WIDTH + 1))}, 0, {_NOW}, "
    f"iif(token IS NULL, {QUEUED}, {RUNNING}), token, worker, "
    f"iif(token IS NULL, NULL, {_NOW}), token IS NOT NULL "
    f"FROM (SELECT * FROM ({_FREE}) UNION ALL SELECT NULL, NULL LIMIT 1) WHERE true "
    "ON CONFLICT(id) DO NOTHING RETURNING seq, token, worker"
)


def may_take(packed: Packed, now: float) -> bool:
    """Tell whether a message may be leased as it is enqueued: it is due, nobody has to look at
    it again or to put its start on the disk, and it goes with a wake-up."""
    _, task, body, _, _, run_at, expires_at, *_, limits, unique_key, envelope = packed
    return (
        len(body) + len(envelope or "") < MOST // 2
        and bool(packed[_ACKS_LATE])
        and (run_at is None or (run_at <= now and type(run_at) is not FromNow))
        and expires_at is limits is unique_key is None
        and task != GATHER
    )


def stand_by(
    db: apsw.Connection, worker: int, queues: Collection[str], token: int, until: float
) -> int:
    """Have a worker stand by for these queues, until then (steady time) if it does not beat
    before; return the token of its leases, which is the one given here if it did not stand by
    already."""
    found = fetch_all(db, "SELECT queue, token FROM standby WHERE worker = ?", (worker,))
    if found and {queue for queue, _ in found} == set(queues):
        return int(found[0][1])
    leave(db, worker)
    db.executemany(
        "INSERT INTO standby(queue, worker, token, others, until) VALUES (?,?,?,?,?)",
        [(queue, worker, token, len(queues) - 1, until) for queue in queues],
    )
    return token


def prolong(db: apsw.Connection, worker: int, until: float) -> None:
    """Have a worker that has just beaten stand by until then, if it does."""
    db.execute("UPDATE standby SET until = ? WHERE worker = ?", (until, worker))


def leave(db: apsw.Connection, worker: int) -> None:
    """Have a worker stand by no more."""
    db.execute("DELETE FROM standby WHERE worker = ?", (worker,))


def written(key: int, token: int, packed: Packed) -> bytes:
    """Return a lease as it goes with a wake-up. It begins as no text does.

    Behind its numbers and the lengths come the id, what most messages of a task share, the
    body and the envelope. Whoever may write to the store's folder may send such a thing, and
    it costs who reads it no more than it is long.
    """
    id, body, run_at, envelope = (
        packed[ID].encode(),
        packed[BODY],
        packed[RUN_AT],
        packed[-1] or "",
    )
    rest = envelope.encode()
    shared = _shared(packed[TASK], *packed[3:5], *packed[6:-1])
    due = nan if run_at is None else run_at
    sizes = len(id), len(shared), len(body), len(rest)
    return b"".join((_HEAD.pack(b"\0", key, token, *sizes, due), id, shared, body, rest))


def read(data: bytes) -> Lease | None:
    """Return the lease that a wake-up brings, None if it is none."""
    try:
        _, key, token, id_size, shared_size, body_size, rest, due = _HEAD.unpack_from(data)
        shared_at = _HEAD.size + id_size
        body_at = shared_at + shared_size
        end = body_at + body_size
        if end + rest != len(data):
            return None
        task, queue, priority, *others = _read_shared(data[shared_at:body_at])
        id, envelope = data[_HEAD.size : shared_at].decode(), data[end:].decode() or None
    except (struct.error, ValueError, RecursionError):
        return None
    run_at = None if due != due else due  # NaN, the one value that is not itself
    packed = (id, task, data[body_at:end], queue, priority, run_at, *others, envelope)
    made: Lease = _new(Lease, (key, token, 1, packed, ()))
    return made


@lru_cache(maxsize=256, typed=True)
def _shared(*fields: Any) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


@lru_cache(maxsize=256)
def _read_shared(data: bytes) -> tuple[Any, ...]:
    fields = json.loads(data)
    if type(fields) is not list or len(fields) != len(_KINDS):
        raise ValueError(f"these are not the fields of a message: {data!r:.200}")
    for value, kinds in zip(fields, _KINDS, strict=True):
        if type(value) not in kinds:
            raise ValueError(f"no field of a message is {value!r:.200}")
    return tuple(fields)
