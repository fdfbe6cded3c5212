"""The contract in SQL: queues, leases, results and what follows, in one SQLite file.

Each verb is one transaction. `step()` is the one a worker lives by: it settles what its
children finished, then promotes what has come due, then claims; so the next link of a
chain is claimed in the transaction that stored the result it waits for.

What survives a power loss: all that was enqueued with `durability="full"` (the default).
A worker's own transactions are not synced one by one, so a power loss may undo the last
of them, each as a whole: those tasks run again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import apsw

from liteq import failure
from liteq.brokers import limiting, queueing, standby
from liteq.brokers.base import ORDERS
from liteq.brokers.base_sqlite import PACKED
from liteq.brokers.connection import fetch_all, fetch_one
from liteq.brokers.delaying import next_due, promote
from liteq.brokers.enqueueing import (
    ENQUEUE,
    ENQUEUE_DELAYED,
    accept_repeat,
    insert,
    insert_alike,
    prepare,
    row_of,
)
from liteq.brokers.following import Following
from liteq.brokers.lengths import LOOKS
from liteq.brokers.limiting import Book, Lines, peek, read_book
from liteq.brokers.records_sqlite import SqliteRecords
from liteq.brokers.redriving import redrive
from liteq.brokers.roster_sqlite import SqliteRoster, leases_of
from liteq.brokers.schedules_sqlite import SqliteSchedules
from liteq.brokers.schema import EARLY, MOST, STATE_CODES
from liteq.brokers.settling import SLICE, Settling
from liteq.brokers.uniqueness import UNIQUE
from liteq.brokers.upkeep_sqlite import SqliteUpkeep
from liteq.brokers.values import Aside, Input, Lease, RevokeAnswer, Rewrite, Said, Step
from liteq.exceptions import BrokerError, DecodeError, QueueFull
from liteq.limits import Limit, LimitInfo
from liteq.message import PACKED_FIELDS, Alike, Edge, Message, Packed, Workflow, pack_all
from liteq.outcome import (
    Failed,
    Outcome,
    Released,
    Revoked,
)

__all__ = ["SqliteBroker"]

QUEUED: Final = STATE_CODES["queued"]
SCHEDULED: Final = STATE_CODES["scheduled"]
RUNNING: Final = STATE_CODES["running"]
SUCCEEDED: Final = STATE_CODES["succeeded"]
_CLAIMABLE: Final = (QUEUED, SCHEDULED)  # now or later, if nothing limits it

_NOTHING_STANDS: Final[Mapping[str, str]] = {}
_new: Final = tuple.__new__  # half of what Lease(...) costs, for each message
_BUSY_FOR: Final = 0.005  # seconds for which it is believed that no worker stands by
_STATE: Final = len(PACKED_FIELDS)  # where it stands in a row of ENQUEUE

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

# What a step has to know before it begins, in one statement: whether its worker counts as
# alive; whether there are edges, waiters, parked messages; whether a run is to be ended;
# whether a queue is paused, letters have come, somebody listens; whether messages wait under
# limits, and the revision of what is declared of those.
_AROUND: Final = (
    "SELECT EXISTS(SELECT 1 FROM worker WHERE id = ?1 AND stopped_at IS NULL), "
    "EXISTS(SELECT 1 FROM edge), EXISTS(SELECT 1 FROM waiter), "
    "EXISTS(SELECT 1 FROM message WHERE state = 4), "
    "EXISTS(SELECT 1 FROM message INDEXED BY message_revoking "
    "WHERE worker = ?1 AND state = 3 AND revoke IS NOT NULL), "
    "EXISTS(SELECT 1 FROM paused), "
    "EXISTS(SELECT 1 FROM letter WHERE receiver = ?1), "
    "EXISTS(SELECT 1 FROM listener WHERE until > ?2), "
    "EXISTS(SELECT 1 FROM line), (SELECT value FROM meta WHERE name = 'limits')"
)
_NOTE: Final = (
    "UPDATE message SET note_state = ?, note = ? WHERE seq = ? AND token = ? AND state = 3"
)
_REWRITE: Final = "UPDATE message SET envelope = ? WHERE seq = ? AND token = ? AND state = 3"


class SqliteBroker(SqliteRoster, SqliteSchedules, SqliteRecords, SqliteUpkeep):
    """A store in a folder of its own, or (`folder=None`) in this process's memory.

    `durability`: "full" (an enqueue is on disk when it returns) or "normal" (it survives
    the death of any process, and a power loss may undo the last ones). `lease_timeout`:
    seconds without a heartbeat after which a worker is given up for dead although its
    process may live (one that was stopped, say). `busy_timeout`: seconds to wait for
    other writers before `BrokerBusy`. `max_size`: bytes of database beyond which new
    messages are refused (None: until the disk is nearly full). `max_lengths`: how many
    messages may wait in a queue, by its name; `max_length`: in each of the others (None:
    any number); counting takes about 0.1 ms for each thousand that wait there.
    `unknown_expires`: seconds after which a message whose task no worker knows becomes a
    dead letter.
    """

    # Moving work

    def enqueue(
        self,
        messages: Sequence[Message],
        edges: Sequence[Edge] = (),
        workflow: Workflow | None = None,
    ) -> Mapping[str, str]:
        now = self.clock.now()
        bound = edges or workflow or self._lengths.any
        if type(messages) is Alike and len(messages.ids) > 1 and not bound:
            return self._enqueue_alike(messages, now)
        packed = pack_all(messages)
        limits: dict[str, int] = {}
        if self._lengths.any:
            limits = self._lengths.among({one[3] for one in packed})
        alone = len(packed) == 1 and not (edges or workflow or limits)
        if alone and self._enqueue_one(packed[0], now):
            return _NOTHING_STANDS
        batch = prepare(packed, edges, now)

        def write(db: apsw.Connection) -> tuple[Following, dict[str, str]]:
            following, stands = Following(db, now), dict[str, str]()
            new = insert(following, batch, workflow, stands=stands)
            if limits:
                queueing.keep_lengths(db, limits, batch, new)
            following.follow_all()
            return following, stands

        looks = LOOKS
        while True:
            try:
                done = self._database.write(write, durable=self.durable, limited=True)
                break
            except QueueFull as exc:
                looks -= 1
                if exc.queue is None or not looks or not self._end_expired():
                    raise
        following, stands = done
        self._announce(following)
        return stands

    def next_due(self, queues: Sequence[str]) -> float | None:
        def look(db: apsw.Connection) -> float | None:
            if fetch_one(db, "SELECT EXISTS(SELECT 1 FROM line)"):
                return self.clock.now()  # when a limit lets them go on, a step tells
            return next_due(db, queues)

        return self._database.read(look)

    def _enqueue_one(self, packed: Packed, now: float) -> bool:
        """Store a message by one statement; False if it takes more than that."""
        if standby.may_take(packed, now) and time.monotonic() >= self._all_busy_until:
            sql, bindings = standby.ENQUEUE_FIRST, (*packed, now, self.clock.steady())
        else:
            sql, bindings = ENQUEUE, row_of(packed, 0, now)
            if bindings[_STATE] not in _CLAIMABLE or packed[UNIQUE] is not None:
                return False
            if bindings[_STATE] == SCHEDULED:
                sql = ENQUEUE_DELAYED
        new, found = self._database.write_one(sql, bindings, durable=self.durable, limited=True)
        if not new:
            if not self._database.read(lambda db: accept_repeat(db, packed)):
                return False
        elif sql is ENQUEUE_DELAYED:
            if not found[0][0]:
                return True  # who is to run it looks before it is due
        elif found:
            key, token, worker = found[0]
            if token is not None:
                if not self._hand(worker, key, token, packed):
                    self._take_back(worker, Lease(key, token, 1, packed))
                return True
            self._all_busy_until = time.monotonic() + _BUSY_FOR
        self._wake_workers()
        return True

    def _take_back(self, worker: int, lease: Lease) -> None:
        """Undo a lease of which its worker, gone or with a full mailbox, cannot be told."""
        now = self.clock.now()

        def write(db: apsw.Connection) -> Following:
            settling = Settling(db, now, self.max_deliveries)
            settling.settle([(lease, Released())])  # by now it may have been revoked
            standby.leave(db, worker)
            return settling.following

        self._announce(self._database.write(write, durable=False))

    def _enqueue_alike(self, messages: Alike, now: float) -> Mapping[str, str]:
        def write(db: apsw.Connection) -> tuple[Following, dict[str, str]]:
            following, stands = Following(db, now), dict[str, str]()
            if not insert_alike(following, messages):
                insert(following, prepare(pack_all(messages), (), now), stands=stands)
                following.follow_all()
            return following, stands

        following, stands = self._database.write(write, durable=self.durable, limited=True)
        self._announce(following)
        return stands

    def step(
        self,
        worker: int,
        *,
        settlements: Sequence[tuple[Lease, Outcome]] = (),
        notes: Sequence[tuple[Lease, Said]] = (),
        queues: Sequence[str] = (),
        limit: int = 0,
        tasks: Collection[str] | None = None,
        ignore_rates: bool = False,
        idle: bool = False,
    ) -> Step:
        now = self.clock.now()
        token = self._tokens()
        doubtful = self._doubtful.get(worker, ())

        def body(db: apsw.Connection) -> tuple[Following, Step, bool]:
            self._stay(worker)
            around = fetch_one(db, _AROUND, (worker, now))
            alive, edges, waiters, parked, revoking, paused, mail, heard = around[:8]
            lined, revision = around[8:]
            open_queues = queueing.unpaused(db, queues) if paused else queues
            settling = Settling(
                db, now, self.max_deliveries, edges=bool(edges), waiters=bool(waiters)
            )
            strays: list[Lease] = []
            if doubtful or idle:
                held = leases_of(db, worker, None)
                strays = held if idle else [one for one in held if one.token in doubtful]
                settling.settle([(one, Released()) for one in strays])
                if idle and strays:
                    standby.leave(db, worker)
            for lease, note in notes:
                if isinstance(note, Rewrite):
                    db.execute(_REWRITE, (note.envelope, lease.key, lease.token))
                    continue
                db.execute(_NOTE, (note.state, note.meta, lease.key, lease.token))
                if waiters:
                    settling.following.reported(lease.key, lease.id)
            accepted = settling.settle(settlements) if settlements else ()
            due = next_due(db, open_queues)
            # By the time of now that it holds the lock: who waited for it would be behind
            # those whom it waited for.
            known = revision == self._book.revision
            lines = Lines(
                db,
                self.clock.now(),
                self._book if known else self._read_book(db, revision),
                worker,
                open_queues,
                any=bool(lined) or settling.following.lined,
                tasks=tasks,
                ignore_rates=ignore_rates,
            )
            leases: list[Lease] = []
            aside: list[tuple[Lease, Aside]] = []
            claims = limit > 0 and bool(alive)
            if claims and due is not None and due <= now:
                settling.following.freed += promote(db, open_queues, now, SLICE)
                due = next_due(db, open_queues)
                # The first in line may be among those that have no place in it yet.
                claims = due is None or due > now
            if claims:
                leases, aside, more = self._claim(
                    db,
                    settling,
                    worker,
                    token,
                    open_queues,
                    limit,
                    tasks,
                    lines,
                    parked=bool(parked),
                )
                if more:
                    due = now
                elif aside:  # an error callback of one that had expired may be due later
                    due = next_due(db, open_queues)
            if lines.any or settling.opened:
                due = self._look_again(lines, settling, due, claimed=claims)
            if settling.following.freed:  # what is claimed here already is no news to others
                claimed = {lease.key for lease in leases}
                settling.following.freed = [
                    seq for seq in settling.following.freed if seq not in claimed
                ]
            early = any(not lease.packed[10] for lease in leases)
            token_of_standby = 0
            if idle and alive and limit > 0 and not (paused or lines.book.tasks):
                until = self.clock.steady() + self.stuck_after
                token_of_standby = standby.stand_by(db, worker, queues, token, until)
            return (
                settling.following,
                Step(
                    accepted=tuple(accepted),
                    leases=tuple(leases),
                    next_due=due,
                    terminate=_to_terminate(db, worker) if revoking else {},
                    alive=bool(alive),
                    aside=tuple(aside),
                    mail=bool(mail),
                    heard=bool(heard),
                    standby=token_of_standby,
                ),
                early,
            )

        try:
            following, step, early = self._database.write(body, durable=False)
            if early:
                # Promise 11 through a power loss: on disk before the start.
                self._database.write(_harden, durable=True)
        except BrokerError:
            # The claim may have taken effect, and nobody would know of these leases.
            self._doubtful[worker] = {*doubtful, token}
            raise
        self._doubtful.pop(worker, None)
        # Who has just claimed has seen what was made claimable before that.
        self._announce(following, but=worker if limit > 0 else None)
        return step

    def _claim(
        self,
        db: apsw.Connection,
        settling: Settling,
        worker: int,
        token: int,
        queues: Sequence[str],
        limit: int,
        tasks: Collection[str] | None,
        lines: Lines,
        *,
        parked: bool,
    ) -> tuple[list[Lease], list[tuple[Lease, Aside]], bool]:
        """Claim, parking unknown tasks, revoking what has expired and burying what is damaged,
        until the limit is reached or nothing is left; but put aside no more than a slice in
        one step. Return the leases, what was put aside, and whether there is more to look
        through."""
        more = False
        leases: list[Lease] = []
        aside: list[tuple[Lease, Aside]] = []
        now = settling.now
        named = lines.book.tasks
        lined = 0
        if lines.any:
            lines.open_due()
        while len(leases) < limit:
            wanted = limit - len(leases) + len(aside)  # who met many useless ones meets more
            before = lined
            charged: set[int] = set()
            found: list[tuple[Any, ...]] = []
            if lines.any:
                others = peek(db, queues, wanted, tasks, parked=parked)
                bindings = (token, worker, lines.now)
                found = lines.take(_CLAIM_ONE, bindings, limit - len(leases), others)
                charged = {row[1] for row in found}
            some = wanted - len(found)
            found += self._claim_queued(db, worker, token, now, queues, some)
            if parked:
                found += self._claim_parked(db, worker, token, now, queues, tasks, some)
            found.sort()  # by rank: a row begins with its priority, negative, and its number
            for one in found:
                _, seq, delivery, inputs, expires_at = one[:5]
                lease = _new(Lease, (seq, token, delivery, one[5:], ()))
                if damage := _damage_of(delivery, one[12], one[9]):
                    error = failure.describe(DecodeError(damage), traceback="")
                    settling.settle([(lease, Failed(error, dead=damage))])
                    aside.append((lease, "damaged"))
                elif expires_at is not None and expires_at <= now:
                    settling.settle([(lease, Revoked("expired"))])
                    aside.append((lease, "expired"))
                elif tasks is not None and one[6] not in tasks:
                    _park(db, lease, now)
                    aside.append((lease, "parked"))
                elif (one[19] is not None or one[6] in named) and seq not in charged:
                    lines.line_up(one[:2], one[8], one[6], one[19])
                    lined += 1
                elif (
                    # Those that went into lines go before it, if they may.
                    len(leases) + len(charged) + lined - before >= limit and seq not in charged
                ):
                    settling.settle([(lease, Released())])
                else:
                    if inputs:
                        lease = lease._replace(inputs=_inputs(db, seq))
                    leases.append(lease)
                charged.discard(seq)
            if len(found) < wanted and lined == before:
                break  # that was all
            if len(aside) + lined + lines.tried > SLICE:
                more = True
                break
        if lines.tried:
            leases.sort(key=lambda lease: (-lease.packed[4], lease.key))
        return leases, aside, more

    def _look_again(
        self, lines: Lines, settling: Settling, due: float | None, *, claimed: bool
    ) -> float | None:
        """Return when the worker is to look again, having seen to it that others look now
        if a line may go on that it did not take."""
        opened = settling.opened or lines.opened
        if opened and (not claimed or lines.more()):
            settling.following.queued = True
        if lines.tried >= SLICE:
            return lines.now
        times = [time for time in (due, lines.next_due()) if time is not None]
        return min(times, default=None)

    def _read_book(self, db: apsw.Connection, revision: int | None) -> Book:
        self._book = read_book(db, revision)
        return self._book

    def _claim_queued(
        self,
        db: apsw.Connection,
        worker: int,
        token: int,
        now: float,
        queues: Sequence[str],
        limit: int,
    ) -> list[tuple[Any, ...]]:
        if not queues:
            return []
        candidates, bindings = self._first_in(queues, limit)
        return _take(db, candidates, bindings, (token, worker, now))

    def _first_in(self, queues: Sequence[str], limit: int) -> tuple[str, list[Any]]:
        """Return what selects those first in line in these queues, and what it is given."""
        count = len(queues)
        if count > _MANY_QUEUES:
            return _QUEUED_IN_MANY, [json.dumps(list(queues)), limit, limit]
        candidates = self._candidates.get(count)
        if candidates is None:
            if count == 1:
                candidates = _QUEUED_IN
            else:
                ranked = " UNION ALL ".join([_QUEUED_IN_RANKED] * count)
                candidates = f"SELECT seq FROM ({ranked}) ORDER BY priority DESC, seq LIMIT ?"
            self._candidates[count] = candidates
        bindings: list[Any] = []
        for queue in queues:
            bindings += (queue, limit)
        if count != 1:
            bindings.append(limit)
        return candidates, bindings

    @staticmethod
    def _claim_parked(
        db: apsw.Connection,
        worker: int,
        token: int,
        now: float,
        queues: Sequence[str],
        tasks: Collection[str] | None,
        limit: int,
    ) -> list[tuple[Any, ...]]:
        """Claim what others have parked and this worker knows."""
        known = "" if tasks is None else "AND task IN (SELECT value FROM json_each(?)) "
        candidates = (
            "SELECT seq FROM message INDEXED BY message_parked WHERE state = 4 "
            f"AND queue IN (SELECT value FROM json_each(?)) {known}"
            "ORDER BY priority DESC, seq LIMIT ?"
        )
        bindings: list[Any] = [json.dumps(list(queues))]
        if tasks is not None:
            bindings.append(json.dumps(sorted(tasks)))
        return _take(db, candidates, [*bindings, limit], (token, worker, now))

    # Steering

    def revoke(
        self, ids: Iterable[str], *, terminate: str | None = None
    ) -> dict[str, RevokeAnswer]:
        wanted = list(ids)
        answers: dict[str, RevokeAnswer] = {}
        if len(wanted) > SLICE:
            # What waits goes first: else one slice could start what the next is to end.
            wanted = self._database.read(lambda db: _waiting_first(db, wanted))
        for start in range(0, len(wanted), SLICE):
            answers |= self._revoke(wanted[start : start + SLICE], terminate)
        return answers

    def _revoke(self, ids: Sequence[str], terminate: str | None) -> dict[str, RevokeAnswer]:
        now = self.clock.now()

        def mark(db: apsw.Connection) -> tuple[Following, dict[str, RevokeAnswer], bool]:
            following = Following(db, now)
            answers: dict[str, RevokeAnswer] = {}
            signalled = False
            for id in ids:
                row = fetch_one(
                    db,
                    f"SELECT seq, state FROM message WHERE id = ? AND NOT ({EARLY})",
                    (id,),
                )
                if row is None:
                    answers[id] = "unknown"
                    continue
                seq, state = row
                if state == RUNNING:
                    db.execute(
                        "UPDATE message SET revoke = coalesce(?, revoke, 'revoked') "
                        "WHERE seq = ?",
                        (terminate, seq),
                    )
                    answers[id] = "signalled" if terminate else "running"
                    signalled = signalled or terminate is not None
                elif state < SUCCEEDED:
                    following.revoke(seq, "revoked")
                    answers[id] = "revoked"
                else:
                    answers[id] = "settled"
            following.follow_all()
            return following, answers, signalled

        following, answers, signalled = self._database.write(mark, durable=self.durable)
        self._announce(following)
        if signalled:
            self._wake_workers(ORDERS)
        return answers

    def redrive(self, ids: Iterable[str]) -> list[str]:
        wanted = list(ids)
        now = self.clock.now()
        redriven: list[str] = []

        def again(db: apsw.Connection, some: Sequence[str]) -> tuple[Following, list[str]]:
            following = Following(db, now)
            restarted = redrive(following, some)
            following.follow_all()
            return following, restarted

        for start in range(0, len(wanted), SLICE):
            some = wanted[start : start + SLICE]
            following, restarted = self._database.write(
                lambda db, some=some: again(db, some),  # type: ignore[misc]
                durable=self.durable,
            )
            self._announce(following)
            redriven += restarted
        if redriven:
            self._wake_workers()
        return redriven

    def age(self, queues: Sequence[str], seconds: float) -> int:
        now = self.clock.now()
        if not self._database.read(lambda db: queueing.has_old(db, queues, seconds, now)):
            return 0
        return self._database.write(
            lambda db: queueing.age(db, queues, seconds, now), durable=False
        )

    def pause(self, queue: str) -> bool:
        now = self.clock.now()
        return self._database.write(
            lambda db: queueing.pause(db, queue, now), durable=self.durable
        )

    def resume(self, queue: str) -> bool:
        resumed = self._database.write(
            lambda db: queueing.resume(db, queue), durable=self.durable
        )
        if resumed:
            self._wake_workers()
        return resumed

    # Limits

    def declare_limits(self, tasks: Mapping[str, Sequence[Limit]]) -> None:
        if not self._database.read(lambda db: limiting.is_declared(db, tasks)):
            self._change_limits(lambda db: limiting.declare(db, tasks))

    def override_limit(
        self, name: str, limit: Limit | None, *, task: str | None = None
    ) -> None:
        self._change_limits(lambda db: limiting.override(db, name, limit, task))

    def _change_limits(self, change: Callable[[apsw.Connection], None]) -> None:
        self._database.write(change, durable=self.durable)
        self._wake_workers()

    def limits(self) -> list[LimitInfo]:
        return self._database.read(limiting.infos)


def _waiting_first(db: apsw.Connection, ids: Sequence[str]) -> list[str]:
    return [
        id
        for id, _ in fetch_all(
            db,
            "SELECT wanted.value, message.state IS 0 AS waits FROM json_each(?) AS wanted "
            "LEFT JOIN message ON message.id = wanted.value ORDER BY waits DESC, wanted.key",
            (json.dumps(ids),),
        )
    ]


def _take(
    db: apsw.Connection, candidates: str, bindings: Sequence[Any], marks: tuple[Any, ...]
) -> list[tuple[Any, ...]]:
    """Claim what `candidates` selects, marked with a token, a worker and the time."""
    found = fetch_all(db, _FIND.format(candidates=candidates), bindings)
    if found:
        db.execute(_TAKE.format(candidates=candidates), (*marks, *bindings))
    return found


def _damage_of(delivery: int, retries: int, priority: int) -> str | None:
    """Say what is wrong with the numbers that a message is claimed by; None if nothing is."""
    if 0 < delivery < MOST and 0 <= retries < MOST and -MOST < priority < MOST:
        return None
    said = f"{delivery - 1:.0f} starts, {retries} retries and the priority {priority}"
    return f"damaged in the store: it has {said}"


def _to_terminate(db: apsw.Connection, worker: int) -> dict[int, str]:
    return dict(
        fetch_all(
            db,
            "SELECT seq, revoke FROM message INDEXED BY message_revoking WHERE worker = ? "
            "AND state = 3 AND revoke IS NOT NULL AND revoke != 'revoked'",
            (worker,),
        )
    )


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


def _harden(db: apsw.Connection) -> None:
    """Change one byte: a synced commit also puts those before it on the disk."""
    db.execute("UPDATE meta SET value = value + 1 WHERE name = 'hardened'")
