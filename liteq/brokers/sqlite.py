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
from typing import Final

import apsw

from liteq.brokers import limiting, queueing, standby
from liteq.brokers.base import ORDERS
from liteq.brokers.claiming import Claim
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
from liteq.brokers.limiting import Book, Lines, read_book
from liteq.brokers.records_sqlite import SqliteRecords
from liteq.brokers.redriving import redrive
from liteq.brokers.roster_sqlite import SqliteRoster, leases_of
from liteq.brokers.schedules_sqlite import SqliteSchedules
from liteq.brokers.schema import EARLY, QUEUED, RUNNING, SCHEDULED, SUCCEEDED
from liteq.brokers.settling import SLICE, Settling
from liteq.brokers.uniqueness import UNIQUE
from liteq.brokers.upkeep_sqlite import SqliteUpkeep
from liteq.brokers.values import Lease, RevokeAnswer, Rewrite, Said, Step
from liteq.exceptions import BrokerError, QueueFull
from liteq.limits import Limit, LimitInfo
from liteq.message import (
    ACKS_LATE,
    PACKED_FIELDS,
    Alike,
    Edge,
    Message,
    Packed,
    Workflow,
    pack_all,
)
from liteq.outcome import Outcome, Released

__all__ = ["SqliteBroker"]

_CLAIMABLE: Final = (QUEUED, SCHEDULED)  # now or later, if nothing limits it

_NOTHING_STANDS: Final[Mapping[str, str]] = {}
_STATE: Final = len(PACKED_FIELDS)  # where it stands in a row of ENQUEUE

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

    busy_for: float = 0.005  # seconds for which it is believed that no worker stands by

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
            self._all_busy_until = time.monotonic() + self.busy_for
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
            row = fetch_one(db, _AROUND, (worker, now))
            alive, edges, waiters, parked, revoking, paused, mail, heard, lined, revision = row
            open_queues = queueing.unpaused(db, queues) if paused else queues
            settling = Settling(
                db, now, self.max_deliveries, edges=bool(edges), waiters=bool(waiters)
            )
            if doubtful or idle:
                _release_strays(db, settling, worker, None if idle else doubtful)
            for lease, said in notes:
                _note(db, settling.following, lease, said, waiters=bool(waiters))
            accepted = settling.settle(settlements) if settlements else ()
            lines = Lines(
                db,
                # The time of now that it holds the lock: who waited for it would be behind
                # those whom it waited for.
                self.clock.now(),
                self._known_book(db, revision),
                worker,
                open_queues,
                any=bool(lined) or settling.following.lined,
                tasks=tasks,
                ignore_rates=ignore_rates,
            )
            claim = Claim(
                db,
                settling,
                lines,
                worker=worker,
                token=token,
                queues=open_queues,
                limit=limit,
                tasks=tasks,
                parked=bool(parked),
            )
            claims = limit > 0 and bool(alive)
            due = self._claim(claim, settling, lines, open_queues, may=claims)
            if settling.following.freed:  # what is claimed here already is no news to others
                settling.following.forget_freed({lease.key for lease in claim.leases})
            stands_by_with = 0
            if idle and claims and not (paused or lines.book.tasks):
                stands_by_with = self._stand_by(db, worker, queues, token)
            step = Step(
                accepted=tuple(accepted),
                leases=tuple(claim.leases),
                next_due=due,
                terminate=_to_terminate(db, worker) if revoking else {},
                alive=bool(alive),
                aside=tuple(claim.aside),
                mail=bool(mail),
                heard=bool(heard),
                standby=stands_by_with,
            )
            early = any(not lease.packed[ACKS_LATE] for lease in claim.leases)
            return settling.following, step, early

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

    def _known_book(self, db: apsw.Connection, revision: int | None) -> Book:
        """Return what is declared of limits, under the revision that the store has."""
        if revision != self._book.revision:
            self._book = read_book(db, revision)
        return self._book

    def _claim(
        self,
        claim: Claim,
        settling: Settling,
        lines: Lines,
        queues: Sequence[str],
        *,
        may: bool,
    ) -> float | None:
        """Promote what has come due, then claim, if the worker may; return when it is to look
        again."""
        db, now = settling.db, settling.now
        due = next_due(db, queues)
        if may and due is not None and due <= now:
            settling.following.freed += promote(db, queues, now, SLICE)
            due = next_due(db, queues)
            # The first in line may be among those that have no place in it yet.
            may = due is None or due > now
        if may:
            claim.run()
            if claim.more:
                due = now
            elif claim.aside:  # an error callback of one that had expired may be due later
                due = next_due(db, queues)
        if lines.any or settling.opened:
            due = self._look_again(lines, settling, due, claimed=may)
        return due

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

    def _stand_by(
        self, db: apsw.Connection, worker: int, queues: Sequence[str], token: int
    ) -> int:
        until = self.clock.steady() + self.stuck_after
        return standby.stand_by(db, worker, queues, token, until)

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
            ordered = False
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
                    ordered = True
                elif state < SUCCEEDED:
                    following.revoke(seq, "revoked")
                    answers[id] = "revoked"
                else:
                    answers[id] = "settled"
            following.follow_all()
            return following, answers, ordered

        following, answers, ordered = self._database.write(mark, durable=self.durable)
        self._announce(following)
        if ordered:
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


def _release_strays(
    db: apsw.Connection, settling: Settling, worker: int, tokens: Collection[int] | None
) -> None:
    """Release what was leased to a worker that knows nothing of it: under these tokens of
    claims that failed, or, for one that holds nothing (None), all there is."""
    held = leases_of(db, worker, None)
    strays = held if tokens is None else [one for one in held if one.token in tokens]
    settling.settle([(one, Released()) for one in strays])
    if strays and tokens is None:
        standby.leave(db, worker)


def _note(
    db: apsw.Connection, following: Following, lease: Lease, said: Said, *, waiters: bool
) -> None:
    """Store what a task says of itself."""
    if isinstance(said, Rewrite):
        db.execute(_REWRITE, (said.envelope, lease.key, lease.token))
        return
    db.execute(_NOTE, (said.state, said.meta, lease.key, lease.token))
    if waiters:
        following.reported(lease.key, lease.id)


def _to_terminate(db: apsw.Connection, worker: int) -> dict[int, str]:
    return dict(
        fetch_all(
            db,
            "SELECT seq, revoke FROM message INDEXED BY message_revoking WHERE worker = ? "
            "AND state = 3 AND revoke IS NOT NULL",
            (worker,),
        )
    )


def _harden(db: apsw.Connection) -> None:
    """Change one byte: a synced commit also puts those before it on the disk."""
    db.execute("UPDATE meta SET value = value + 1 WHERE name = 'hardened'")
