"""Claims in an SQLite store: what is first in line is leased to a worker.

A claim is a part of a step, in its transaction. It reads the candidates of all the worker's
queues in the order of promise 7, takes them, and looks at each: what cannot be run is put
aside, what a limit holds back goes into that limit's line, and the rest are leases. If that
left too few, it goes on with those behind them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any, Final

import apsw

from liteq import failure
from liteq.brokers.base_sqlite import PACKED
from liteq.brokers.connection import fetch_all
from liteq.brokers.limiting import Lines, peek
from liteq.brokers.schema import MOST
from liteq.brokers.settling import SLICE, Settling
from liteq.brokers.values import Aside, Input, Lease
from liteq.exceptions import DecodeError
from liteq.message import LIMITS, PRIORITY, QUEUE, RETRIES, TASK, Packed
from liteq.outcome import Failed, Revoked

__all__ = ["Claim"]

_new: Final = tuple.__new__  # half of what Lease(...) costs, for each message

# A claim reads the candidates and then takes them, in one transaction: one UPDATE with
# RETURNING reads and copies each row once more, which is a third of its time. A subquery
# walks the partial index in the order of promise 7 and stops at the limit.
_FIND: Final = (
    f"SELECT -priority, seq, deliveries + 1, inputs, expires_at, {PACKED} FROM message "
    "WHERE seq IN ({candidates})"
)
_TAKE: Final = (
    "UPDATE message SET state = 3, token = ?1, worker = ?2, started_at = ?3, "
    f"parked_at = NULL, deliveries = min(deliveries, {MOST}) + 1 "
    "WHERE seq IN ({candidates})"
)
_CLAIM_ONE: Final = (
    _TAKE.format(candidates="?4")
    + f" RETURNING -priority, seq, deliveries, inputs, expires_at, {PACKED}"
)
_BEFORE: Final = 5  # columns before those of the packed message
_QUEUED_IN: Final = (
    "SELECT * FROM (SELECT seq FROM message INDEXED BY message_queued "
    "WHERE state = 1 AND queue = ? ORDER BY priority DESC, seq LIMIT ?)"
)
_QUEUED_IN_RANKED: Final = (
    "SELECT * FROM (SELECT seq, priority FROM message INDEXED BY message_queued "
    "WHERE state = 1 AND queue = ? ORDER BY priority DESC, seq LIMIT ?)"
)
# From any number of queues: a compound has a term for each, of which SQLite takes 500, and is
# compiled anew when it is long. This reads the rows of the candidates, beside the index.
_QUEUED_IN_MANY: Final = (
    "SELECT seq FROM (SELECT first.seq, first.priority FROM json_each(?) AS named "
    "CROSS JOIN message AS first WHERE first.seq IN (SELECT seq FROM message "
    "INDEXED BY message_queued WHERE state = 1 AND queue = named.value "
    "ORDER BY priority DESC, seq LIMIT ?)) ORDER BY priority DESC, seq LIMIT ?"
)
_MANY_QUEUES: Final = 50

_Row = tuple[Any, ...]


class Claim:
    """One claim: at most `limit` messages of these queues, for a worker that knows these tasks
    (None: any). It parks what is unknown, revokes what has expired and buries what is
    damaged, but puts aside no more than a slice. `parked`: some wait for who knows them.

    After `run()`, `leases` has what was claimed, `aside` what was put aside, and `more` tells
    whether there is more to look through.
    """

    def __init__(
        self,
        db: apsw.Connection,
        settling: Settling,
        lines: Lines,
        *,
        worker: int,
        token: int,
        queues: Sequence[str],
        limit: int,
        tasks: Collection[str] | None,
        parked: bool,
    ) -> None:
        self._db = db
        self._settling = settling
        self._lines = lines
        self._queues = queues
        self._limit = limit
        self._tasks = tasks
        self._parked = parked
        self._token = token
        self._marks = (token, worker, settling.now)
        self._by_limits = (token, worker, lines.now)
        self._charged: set[int] = set()  # those for which a limit has counted a start
        self._lined = 0
        self.leases: list[Lease] = []
        self.aside: list[tuple[Lease, Aside]] = []
        self.more = False

    def run(self) -> None:
        """Claim until the limit is reached or nothing is left."""
        lines = self._lines
        if lines.any:
            lines.open_due()
        while len(self.leases) < self._limit:
            # After many that were of no use more are looked at.
            wanted = self._limit - len(self.leases) + len(self.aside)
            before = self._lined
            found = self._take(wanted)
            self._sort_out(found)
            if len(found) < wanted and self._lined == before:
                break  # that was all
            if len(self.aside) + self._lined + lines.tried > SLICE:
                self.more = True
                break
        if lines.tried:
            self.leases.sort(key=lambda lease: (-lease.packed[PRIORITY], lease.key))

    def _take(self, wanted: int) -> list[_Row]:
        """Take those first in line, and return their rows in the order of their ranks."""
        lines, found = self._lines, list[_Row]()
        if lines.any:
            room = self._limit - len(self.leases)
            found = lines.take(_CLAIM_ONE, self._by_limits, room, lambda: self._peek(wanted))
            self._charged = {row[1] for row in found}
        rest = wanted - len(found)
        if self._queues:
            found += self._take_selected(*_queued_in(self._queues, rest))
        if self._parked:
            found += self._take_selected(*_parked_in(self._queues, self._tasks, rest))
        found.sort()  # a row begins with its rank: its priority, negative, and its number
        return found

    def _peek(self, wanted: int) -> list[_Row]:
        return peek(self._db, self._queues, wanted, self._tasks, parked=self._parked)

    def _take_selected(self, candidates: str, bindings: Sequence[Any]) -> list[_Row]:
        found = fetch_all(self._db, _FIND.format(candidates=candidates), bindings)
        if found:
            taking = _TAKE.format(candidates=candidates)
            self._db.execute(taking, (*self._marks, *bindings))
        return found

    def _sort_out(self, found: Sequence[_Row]) -> None:
        """See what becomes of each message that was taken."""
        leases, lines, tasks = self.leases, self._lines, self._tasks
        token, now, named = self._token, self._settling.now, self._lines.book.tasks
        charged, before = self._charged, self._lined
        for row in found:
            _, seq, delivery, inputs, expires_at = row[:_BEFORE]
            packed: Packed = row[_BEFORE:]
            lease = _new(Lease, (seq, token, delivery, packed, ()))
            if damage := _damage_of(delivery, packed):
                self._put_aside(lease, "damaged", damage)
            elif expires_at is not None and expires_at <= now:
                self._put_aside(lease, "expired")
            elif tasks is not None and packed[TASK] not in tasks:
                self._put_aside(lease, "parked")
            elif (packed[LIMITS] is not None or packed[TASK] in named) and seq not in charged:
                lines.line_up(row[:2], packed[QUEUE], packed[TASK], packed[LIMITS])
                self._lined += 1
            elif (
                # Those that went into lines go before it, if they may.
                len(leases) + len(charged) + self._lined - before >= self._limit
                and seq not in charged
            ):
                self._settling.put_back(lease)
            else:
                leases.append(
                    lease._replace(inputs=_inputs(self._db, seq)) if inputs else lease
                )
            charged.discard(seq)

    def _put_aside(self, lease: Lease, why: Aside, damage: str = "") -> None:
        if why == "parked":
            _park(self._db, lease, self._settling.now)
        elif why == "damaged":
            error = failure.describe(DecodeError(damage), traceback="")
            self._settling.settle([(lease, Failed(error, dead=damage))])
        else:
            self._settling.settle([(lease, Revoked(why))])
        self.aside.append((lease, why))


def _queued_in(queues: Sequence[str], limit: int) -> tuple[str, list[Any]]:
    """Return what selects those first in line in these queues, and what it is given."""
    count = len(queues)
    if count > _MANY_QUEUES:
        return _QUEUED_IN_MANY, [json.dumps(list(queues)), limit, limit]
    if count == 1:
        return _QUEUED_IN, [*queues, limit]
    ranked = " UNION ALL ".join([_QUEUED_IN_RANKED] * count)
    bindings: list[Any] = []
    for queue in queues:
        bindings += (queue, limit)
    return f"SELECT seq FROM ({ranked}) ORDER BY priority DESC, seq LIMIT ?", [*bindings, limit]


def _parked_in(
    queues: Sequence[str], tasks: Collection[str] | None, limit: int
) -> tuple[str, list[Any]]:
    """Return the same for what others have parked and this worker knows."""
    known = "" if tasks is None else "AND task IN (SELECT value FROM json_each(?)) "
    candidates = (
        "SELECT seq FROM message INDEXED BY message_parked WHERE state = 4 "
        f"AND queue IN (SELECT value FROM json_each(?)) {known}"
        "ORDER BY priority DESC, seq LIMIT ?"
    )
    names = [] if tasks is None else [json.dumps(sorted(tasks))]
    return candidates, [json.dumps(list(queues)), *names, limit]


def _damage_of(delivery: int, packed: Packed) -> str | None:
    """Say what is wrong with the numbers that a message is claimed by; None if nothing is."""
    retries, priority = packed[RETRIES], packed[PRIORITY]
    if 0 < delivery < MOST and 0 <= retries < MOST and -MOST < priority < MOST:
        return None
    said = f"{delivery - 1:.0f} starts, {retries} retries and the priority {priority}"
    return f"damaged in the store: it has {said}"


def _park(db: apsw.Connection, lease: Lease, now: float) -> None:
    db.execute(
        "UPDATE message SET state = 4, token = NULL, started_at = NULL, "
        "deliveries = deliveries - 1, parked_at = ? "
        "WHERE seq = ? AND token = ?",
        (now, lease.key, lease.token),
    )


def _inputs(db: apsw.Connection, seq: int) -> tuple[Input, ...]:
    rows = fetch_all(
        db,
        "SELECT source, kind, position, value FROM input WHERE target = ? "
        "ORDER BY position, source",
        (seq,),
    )
    return tuple(Input(*row) for row in rows)
