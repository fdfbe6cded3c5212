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
import os
import socket
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import apsw

from liteq.brokers import limiting, queueing, scheduling, workflows
from liteq.brokers.base import (
    DEFAULT_MAX_DELIVERIES,
    EVENTS_KEPT_FOR,
    HELLO,
    ORDERS,
    Attempt,
    Input,
    Lease,
    Mailbox,
    Node,
    Note,
    QueueInfo,
    Record,
    RevokeAnswer,
    Schedule,
    State,
    Step,
    WorkerInfo,
    WorkflowInfo,
)
from liteq.brokers.connection import Database, fetch_all, fetch_one
from liteq.brokers.enqueueing import ENQUEUE, accept_repeat, insert, prepare, row_of
from liteq.brokers.following import NOTED, Following, revocation
from liteq.brokers.lengths import Lengths
from liteq.brokers.limiting import NO_BOOK, Book, Lines, free_slots, peek, read_book, tidy
from liteq.brokers.liveness import LockFiles, boot_id, lock_name
from liteq.brokers.mail_sqlite import SqliteMail
from liteq.brokers.redriving import redrive
from liteq.brokers.schema import STATE_CODES
from liteq.brokers.searching import Found, Search
from liteq.brokers.settling import SLICE, Settling
from liteq.brokers.uniqueness import UNIQUE, admits, end_periods, holder
from liteq.brokers.wakeup import LocalMailbox, Post, SocketMailbox, kind_of
from liteq.clock import Clock, system_clock
from liteq.exceptions import BrokerError, ImproperlyConfigured
from liteq.ids import new_token
from liteq.limits import Limit, LimitInfo
from liteq.message import GATHER, PACKED_FIELDS, Edge, Message, Workflow
from liteq.outcome import (
    Lost,
    Outcome,
    Released,
    Revoked,
)

if TYPE_CHECKING:
    from liteq.brokers.keeping import Keeper
    from liteq.brokers.moving import Shelf

__all__ = ["SqliteBroker"]

WAITING: Final = STATE_CODES["waiting"]
QUEUED: Final = STATE_CODES["queued"]
SCHEDULED: Final = STATE_CODES["scheduled"]
RUNNING: Final = STATE_CODES["running"]
PARKED: Final = STATE_CODES["parked"]
SUCCEEDED: Final = STATE_CODES["succeeded"]
FAILED: Final = STATE_CODES["failed"]
REVOKED: Final = STATE_CODES["revoked"]
IGNORED: Final = STATE_CODES["ignored"]
_STATE_NAMES: Final[dict[int, State]] = {code: name for name, code in STATE_CODES.items()}  # type: ignore[misc]

_NOTHING_STANDS: Final[Mapping[str, str]] = {}
_new: Final = tuple.__new__  # half of what Lease(...) costs, for each message
_PACKED: Final = ", ".join(PACKED_FIELDS)
_STATE: Final = len(PACKED_FIELDS)  # where it stands in a row of ENQUEUE

# The subquery walks the partial index in the order of promise 7 and stops at the limit.
_CLAIM: Final = (
    "UPDATE message SET state = 3, token = ?1, worker = ?2, started_at = ?3, "
    "parked_at = NULL, deliveries = deliveries + 1 WHERE seq IN ({candidates}) "
    f"RETURNING -priority, seq, deliveries, inputs, expires_at, {_PACKED}"
)
_CLAIM_ONE: Final = _CLAIM.format(candidates="?4")
_QUEUED_IN: Final = (
    "SELECT * FROM (SELECT seq FROM message INDEXED BY message_queued "
    "WHERE state = 1 AND queue = ? ORDER BY priority DESC, seq LIMIT ?)"
)
_QUEUED_IN_RANKED: Final = (
    "SELECT * FROM (SELECT seq, priority FROM message INDEXED BY message_queued "
    "WHERE state = 1 AND queue = ? ORDER BY priority DESC, seq LIMIT ?)"
)

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

_AMONG: Final = "(SELECT value FROM json_each(?))"
_RECORD: Final = (
    "SELECT state, result, note_state, note, deliveries, enqueued_at, started_at, "
    "settled_at, (SELECT name FROM worker WHERE worker.id = message.worker), children, "
    "dead, revoke, (SELECT id FROM workflow WHERE workflow.seq = message.workflow), "
    f"{_PACKED} FROM message"
)


class SqliteBroker(SqliteMail):
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

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        *,
        clock: Clock = system_clock,
        durability: str = "full",
        lease_timeout: float = 60.0,
        max_deliveries: int = DEFAULT_MAX_DELIVERIES,
        busy_timeout: float = 5.0,
        max_size: int | None = None,
        max_length: int | None = None,
        max_lengths: Mapping[str, int] | None = None,
        unknown_expires: float = 86_400.0,
        poll_interval: float = 0.5,
        allow_network_filesystem: bool = False,
        tokens: Callable[[], int] = new_token,
    ) -> None:
        if durability not in ("full", "normal"):
            raise ImproperlyConfigured(
                f'durability must be "full" or "normal", not {durability!r} ("off" would let '
                "one process's power loss corrupt the file for all)"
            )
        self.clock = clock
        self.durable = durability == "full"
        self.lease_timeout = lease_timeout
        self.max_deliveries = max_deliveries
        self.unknown_expires = unknown_expires
        self.poll_interval = poll_interval
        self._lengths = Lengths(max_length, max_lengths)
        self.folder = Path(os.path.realpath(folder)) if folder is not None else None
        self._tokens = tokens
        self._boot = boot_id()
        self._database = Database(
            self.folder,
            busy_timeout=busy_timeout,
            max_size=max_size,
            allow_network_filesystem=allow_network_filesystem,
        )
        self._locks = LockFiles(self.folder / "workers") if self.folder else None
        self._post = Post(self.folder / "wake") if self.folder else None
        self._local: dict[str, LocalMailbox] = {}
        self._local_lock = threading.Lock()
        self._claims: dict[int, str] = {}
        self._book = NO_BOOK
        self._doubtful: dict[int, set[int]] = {}  # by worker: tokens of claims that failed

    def __repr__(self) -> str:
        return f"<SqliteBroker {self.folder or 'in memory'}>"

    # Moving work

    def enqueue(
        self,
        messages: Sequence[Message],
        edges: Sequence[Edge] = (),
        workflow: Workflow | None = None,
    ) -> Mapping[str, str]:
        now = self.clock.now()
        packed = [message.pack() for message in messages]
        limits = self._lengths.among({one[3] for one in packed}) if self._lengths else {}
        row = row_of(packed[0], 0, now) if len(packed) == 1 and not edges else None
        plain = row and workflow is None and row[_STATE] in (QUEUED, SCHEDULED)
        if row and plain and packed[0][UNIQUE] is None and not limits:
            if not self._insert_one(row):
                self._database.read(lambda db: accept_repeat(db, row))
            self._wake_workers()
            return _NOTHING_STANDS
        batch = prepare(packed, edges, now)

        def write(db: apsw.Connection) -> tuple[Following, dict[str, str]]:
            following, stands = Following(db, now), dict[str, str]()
            new = insert(following, batch, workflow, stands=stands)
            if limits:
                queueing.keep_lengths(db, limits, batch, new)
            following.follow_all()
            return following, stands

        following, stands = self._database.write(write, durable=self.durable, limited=True)
        self._announce(following)
        return stands

    def _insert_one(self, new_row: tuple[Any, ...]) -> int:
        return self._database.write_one(ENQUEUE, new_row, durable=self.durable, limited=True)

    def step(
        self,
        worker: int,
        *,
        settlements: Sequence[tuple[Lease, Outcome]] = (),
        notes: Sequence[tuple[Lease, Note]] = (),
        queues: Sequence[str] = (),
        limit: int = 0,
        tasks: Collection[str] | None = None,
        ignore_rates: bool = False,
    ) -> Step:
        now = self.clock.now()
        token = self._tokens()
        doubtful = self._doubtful.get(worker, ())

        def body(db: apsw.Connection) -> tuple[Following, Step, bool]:
            around = fetch_one(db, _AROUND, (worker, now))
            alive, edges, waiters, parked, revoking, paused, mail, heard = around[:8]
            lined, revision = around[8:]
            open_queues = queueing.unpaused(db, queues) if paused else queues
            settling = Settling(
                db, now, self.max_deliveries, edges=bool(edges), waiters=bool(waiters)
            )
            if doubtful:
                held = _leases_of(db, worker, None)
                settling.settle([(one, Released()) for one in held if one.token in doubtful])
            for lease, note in notes:
                db.execute(_NOTE, (note.state, note.meta, lease.key, lease.token))
                if waiters:
                    settling.following.reported(lease.key, lease.id)
            accepted = settling.settle(settlements) if settlements else ()
            due = self._next_due(db, open_queues)
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
            aside: list[tuple[Lease, Literal["parked", "expired"]]] = []
            if limit > 0 and alive:
                if due is not None and due <= now:
                    self._promote(db, now, open_queues)
                    settling.following.queued = True
                    due = self._next_due(db, open_queues)
                leases, aside = self._claim(
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
                if aside:  # an error callback of one that had expired may be due later
                    due = self._next_due(db, open_queues)
            if lines.any or settling.opened:
                due = self._look_again(lines, settling, due, claimed=limit > 0 and bool(alive))
            early = any(not lease.packed[10] for lease in leases)
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
    ) -> tuple[list[Lease], list[tuple[Lease, Literal["parked", "expired"]]]]:
        """Claim, parking unknown tasks and revoking what has expired, until the limit is
        reached or nothing is left; but put aside no more than a slice in one step."""
        leases: list[Lease] = []
        aside: list[tuple[Lease, Literal["parked", "expired"]]] = []
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
                if expires_at is not None and expires_at <= now:
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
                settling.following.queued = True  # this worker has more to look through, too
                break
        if lines.tried:
            leases.sort(key=lambda lease: (-lease.packed[4], lease.key))
        return leases, aside

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
        count = len(queues)
        sql = self._claims.get(count)
        if sql is None:
            if count == 1:
                candidates = _QUEUED_IN
            else:
                ranked = " UNION ALL ".join([_QUEUED_IN_RANKED] * count)
                candidates = f"SELECT seq FROM ({ranked}) ORDER BY priority DESC, seq LIMIT ?"
            sql = self._claims[count] = _CLAIM.format(candidates=candidates)
        bindings: list[Any] = [token, worker, now]
        for queue in queues:
            bindings += (queue, limit)
        if count != 1:
            bindings.append(limit)
        return fetch_all(db, sql, bindings) if count else []

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
        sql = _CLAIM.format(
            candidates="SELECT seq FROM message INDEXED BY message_parked WHERE state = 4 "
            f"AND queue IN (SELECT value FROM json_each(?)) {known}"
            "ORDER BY priority DESC, seq LIMIT ?"
        )
        names = [json.dumps(list(queues))]
        if tasks is not None:
            names.append(json.dumps(sorted(tasks)))
        return fetch_all(db, sql, (token, worker, now, *names, limit))

    @staticmethod
    def _promote(db: apsw.Connection, now: float, queues: Sequence[str]) -> None:
        """Make claimable what has come due, in slices."""
        for queue in queues:
            db.execute(
                "UPDATE message SET state = 1 WHERE seq IN (SELECT seq FROM message "
                "INDEXED BY message_scheduled WHERE state = 2 AND queue = ? AND run_at <= ? "
                f"ORDER BY run_at LIMIT {SLICE})",
                (queue, now),
            )

    @staticmethod
    def _next_due(db: apsw.Connection, queues: Sequence[str]) -> float | None:
        """Return when the next delayed message of these queues is due."""
        due: float | None = None
        for queue in queues:
            first: float | None = fetch_one(
                db,
                "SELECT run_at FROM message INDEXED BY message_scheduled WHERE state = 2 "
                "AND queue = ? ORDER BY run_at LIMIT 1",
                (queue,),
            )
            if first is not None and (due is None or first < due):
                due = first
        return due

    def _announce(self, following: Following, *, but: int | None = None) -> None:
        """Send the wake-ups that a committed transaction owes, to all workers but one."""
        if following.queued:
            self._wake_workers(but=but)
        for address, ids in following.woken.items():
            self._wake(address, ids)

    def _wake_workers(self, word: str = "", *, but: int | None = None) -> None:
        if self._post is not None:
            self._post.wake_workers(word, but=but)
            return
        own = None if but is None else kind_of(but)
        for mailbox in list(self._local.values()):
            if mailbox.name.startswith("w") and not (own and mailbox.name.startswith(own)):
                mailbox.put([word])

    def _wake(self, address: str, ids: list[str]) -> None:
        if self._post is not None:
            self._post.wake(address, ids)
        elif (mailbox := self._local.get(address)) is not None:
            mailbox.put(ids)

    # Who is alive

    def register(
        self, name: str, queues: Sequence[str], concurrency: int, details: Mapping[str, Any]
    ) -> int:
        row = (
            name,
            socket.gethostname(),
            os.getpid(),
            self._boot,
            json.dumps(list(queues)),
            concurrency,
            json.dumps(dict(details)),
            self.clock.now(),
            self.clock.steady(),
        )

        def insert(db: apsw.Connection) -> int:
            db.execute(
                "INSERT INTO worker(name, hostname, pid, boot, queues, concurrency, details, "
                "started_at, beat_at) VALUES (?,?,?,?,?,?,?,?,?)",
                row,
            )
            worker = db.last_insert_rowid()
            if self._locks is not None:
                self._locks.hold(lock_name(worker))
            return worker

        worker = self._database.write(insert, durable=False)
        if self._post is not None:
            self._post.prune()
        self._wake_workers(HELLO)  # the others learn whose death to watch for
        return worker

    def beat(
        self,
        worker: int,
        details: Mapping[str, Any] | None = None,
        *,
        queues: Sequence[str] | None = None,
        concurrency: int | None = None,
    ) -> bool:
        self.check()
        beat_at = self.clock.steady()
        text = None if details is None else json.dumps(dict(details))
        names = None if queues is None else json.dumps(list(queues))

        def update(db: apsw.Connection) -> bool:
            db.execute(
                "UPDATE worker SET beat_at = ?, details = coalesce(?, details), "
                "queues = coalesce(?, queues), concurrency = coalesce(?, concurrency) "
                "WHERE id = ? AND stopped_at IS NULL",
                (beat_at, text, names, concurrency, worker),
            )
            return bool(db.changes())

        alive = self._database.write(update, durable=False)
        if not alive and self._locks is not None:
            self._locks.release(lock_name(worker))
        return alive

    def unregister(self, worker: int) -> None:
        now = self.clock.now()

        def release(db: apsw.Connection) -> Following:
            settling = Settling(db, now, self.max_deliveries)
            for lease in _leases_of(db, worker, None):
                # What it did with them is unknown: where acks_late is off, never again.
                early = not lease.packed[10]
                gone = Lost("its worker left without settling it") if early else Released()
                settling.settle([(lease, gone)])
            db.execute(
                "UPDATE worker SET stopped_at = ?, ended = 'left' "
                "WHERE id = ? AND stopped_at IS NULL",
                (now, worker),
            )
            return settling.following

        following = self._database.write(release, durable=False)
        if self._locks is not None:
            self._locks.release(lock_name(worker))
        self._announce(following)

    def reclaim(self, worker: int | None = None) -> int:
        now, steady = self.clock.now(), self.clock.steady()
        total = 0
        for found in self._dead_workers(worker, steady):
            while taken := self._reclaim_slice(found, now):
                total += taken
            self._bury(found, now)
        return total

    def _dead_workers(self, caller: int | None, steady: float) -> list[int]:
        rows = self._database.read(
            lambda db: fetch_all(
                db,
                "SELECT id, boot, beat_at FROM worker INDEXED BY worker_alive "
                "WHERE stopped_at IS NULL",
            )
        )
        # If our own heartbeat is old, the whole machine may have been asleep: the others
        # then get as long as we took before their silence counts against them.
        own = next((beat for id, _, beat in rows if id == caller), steady)
        oversleep = steady - own > self.lease_timeout / 2
        dead = []
        for id, boot, beat_at in rows:
            if id == caller:
                continue
            silent = steady - beat_at > self.lease_timeout and not oversleep
            locks = self._locks
            if boot != self._boot or silent or (locks and locks.is_dead(lock_name(id))):
                dead.append(id)
        return dead

    def _reclaim_slice(self, dead: int, now: float) -> int:
        reason = "the worker process died while the task ran"

        def take(db: apsw.Connection) -> tuple[Following, int]:
            settling = Settling(db, now, self.max_deliveries)
            leases = _leases_of(db, dead, SLICE)
            settling.settle([(lease, Lost(reason)) for lease in leases])
            # From here on the worker, should it live after all, must register anew.
            db.execute(
                "UPDATE worker SET stopped_at = ?, ended = 'died' "
                "WHERE id = ? AND stopped_at IS NULL",
                (now, dead),
            )
            return settling.following, len(leases)

        following, taken = self._database.write(take, durable=False)
        self._announce(following)
        return taken

    def _bury(self, dead: int, now: float) -> None:
        self._database.write(
            lambda db: db.execute(
                "UPDATE worker SET stopped_at = ?, ended = 'died' "
                "WHERE id = ? AND stopped_at IS NULL",
                (now, dead),
            ),
            durable=False,
        )
        # While the process lives, its lock goes on telling so: it is stuck, and not dead.
        if self._locks is not None and self._locks.is_dead(lock_name(dead)):
            self._locks.remove(lock_name(dead))

    def workers(self) -> list[WorkerInfo]:
        steady = self.clock.steady()
        rows = self._database.read(
            lambda db: fetch_all(
                db,
                "SELECT id, name, hostname, pid, queues, concurrency, started_at, beat_at, "
                "details, boot FROM worker INDEXED BY worker_alive WHERE stopped_at IS NULL "
                "ORDER BY id",
            )
        )
        alive = []
        for id, name, host, pid, queues, concurrency, started_at, beat_at, text, boot in rows:
            if boot != self._boot or steady - beat_at > self.lease_timeout:
                continue
            if self._locks is not None and self._locks.is_dead(lock_name(id)):
                continue
            alive.append(
                WorkerInfo(
                    id=id,
                    name=name,
                    hostname=host,
                    pid=pid,
                    queues=tuple(json.loads(queues)),
                    concurrency=concurrency,
                    started_at=started_at,
                    beat_age=max(0.0, steady - beat_at),
                    details=json.loads(text),
                )
            )
        return alive

    def peers(self) -> list[int]:
        if self._locks is None or not hasattr(os, "pidfd_open"):
            return []
        descriptors = []
        for info in self.workers():
            if info.pid == os.getpid() or info.hostname != socket.gethostname():
                continue
            try:
                descriptors.append(os.pidfd_open(info.pid))
            except OSError:
                continue  # gone, or in another pid namespace: its lock still tells
        return descriptors

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
                row = fetch_one(db, "SELECT seq, state FROM message WHERE id = ?", (id,))
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
        for start in range(0, len(wanted), SLICE):
            some = wanted[start : start + SLICE]
            redriven += self._database.write(
                lambda db, some=some: redrive(db, some, now),  # type: ignore[misc]
                durable=self.durable,
            )
        if redriven:
            self._wake_workers()
        return redriven

    def purge(self, queues: Sequence[str] | None = None, *, dead: bool = False) -> int:
        names = None if queues is None else json.dumps(list(queues))
        places = ["dead"] if dead else ["queued", "scheduled", "parked", "limited"]
        return sum(self._purge(place, names) for place in places)

    def _purge(self, place: str, queues: str | None) -> int:
        """Delete what one partial index holds, in slices: a million rows at once would
        hold the write lock for seconds."""
        where = "dead IS NOT NULL" if place == "dead" else f"state = {STATE_CODES[place]:d}"
        sql = f"SELECT seq, id FROM message INDEXED BY message_{place} WHERE {where}"
        bindings: tuple[Any, ...] = ()
        if queues is not None:
            sql += " AND queue IN (SELECT value FROM json_each(?))"
            bindings = (queues,)
        now = self.clock.now()

        def delete(db: apsw.Connection) -> tuple[Following, int]:
            following = Following(db, now)
            found = fetch_all(db, f"{sql} LIMIT {SLICE}", bindings)
            for seq, id in found:
                following.purged(seq, id)
            end_periods(db, [id for _, id in found])
            following.follow_all()
            _delete(db, [seq for seq, _ in found])
            return following, len(found)

        total = 0
        while True:
            following, count = self._database.write(delete, durable=self.durable)
            self._announce(following)
            total += count
            if count < SLICE:
                return total

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

    # Looking

    def get(self, ids: Sequence[str]) -> dict[str, Record]:
        return self._database.read(lambda db: _records(db, ids))

    def attempts(self, id: str) -> list[Attempt]:
        rows = self._database.read(
            lambda db: fetch_all(
                db,
                "SELECT number, outcome, error, (SELECT name FROM worker WHERE id = worker), "
                "started_at, ended_at FROM attempt "
                "WHERE message = (SELECT seq FROM message WHERE message.id = ?) "
                "ORDER BY number",
                (id,),
            )
        )
        return [Attempt(*row) for row in rows]

    def browse(
        self, state: State | Literal["dead"], *, queue: str | None = None, limit: int = 50
    ) -> list[Record]:
        bindings: list[Any] = []
        if state == "dead":
            where = "dead IS NOT NULL"
        elif state == "retrying":
            where = "state IN (1, 2) AND result IS NOT NULL"
        else:
            where = f"state = {STATE_CODES[state]:d}"
            if state in ("queued", "scheduled"):
                where += " AND result IS NULL"
        where += f" AND task != '{GATHER}'"
        if queue is not None:
            where += " AND queue = ?"
            bindings.append(queue)
        rows = self._database.read(
            lambda db: fetch_all(
                db, f"{_RECORD} WHERE {where} ORDER BY seq LIMIT ?", (*bindings, limit)
            )
        )
        return [_record(row) for row in rows]

    def find(self, search: Search, *, before: int | None = None) -> Iterator[Found]:
        from liteq.brokers import searching_sqlite  # late: for who operates a store

        return searching_sqlite.find(self._database.read, search, before)

    def complete(self, prefix: str, limit: int = 2) -> list[str]:
        from liteq.brokers import searching_sqlite  # late, as above

        return self._database.read(lambda db: searching_sqlite.complete(db, prefix, limit))

    def counts(self) -> dict[str, dict[State, int]]:
        return self._database.read(queueing.counts)

    def queues(self) -> list[QueueInfo]:
        now = self.clock.now()
        return self._database.read(lambda db: queueing.queues(db, now, self._lengths))

    # Workflows

    def workflow(self, id: str) -> WorkflowInfo | None:
        return self._database.read(lambda db: workflows.find(db, id))

    def workflows(self, limit: int = 50) -> list[WorkflowInfo]:
        return self._database.read(lambda db: workflows.latest(db, limit))

    def nodes(self, workflow: str) -> tuple[list[Node], list[Edge]]:
        return self._database.read(lambda db: workflows.nodes(db, workflow))

    # Schedules

    def schedules(self) -> list[Schedule]:
        return self._database.read(scheduling.schedules)

    def put_schedule(self, schedule: Schedule, *, revision: int | None = None) -> bool:
        token = self._tokens()  # a number of changes would begin anew with an entry's name
        written = self._database.write(
            lambda db: scheduling.put(db, schedule, revision, token), durable=self.durable
        )
        if written:
            self._wake_beats()
        return written

    def remove_schedule(self, name: str) -> bool:
        removed = self._database.write(
            lambda db: scheduling.remove(db, name), durable=self.durable
        )
        if removed:
            self._wake_beats()
        return removed

    def fire(
        self,
        name: str,
        due_at: float,
        next_due_at: float | None,
        *,
        revision: int,
        messages: Sequence[Message] = (),
        edges: Sequence[Edge] = (),
        workflow: Workflow | None = None,
    ) -> bool:
        now = self.clock.now()
        last_id = (workflow.id if workflow else messages[0].id) if messages else None

        batch = prepare([message.pack() for message in messages], edges, now)

        def move(db: apsw.Connection) -> tuple[bool, Following]:
            following = Following(db, now)

            def fire(last_id: str | None) -> bool:
                return scheduling.fire(
                    db, name, due_at, next_due_at, revision, now=now, last_id=last_id
                )

            if batch.has_keys and not admits(db, batch.rows, now):
                return fire(None), following  # its call of another instant is alive
            moved = fire(last_id)
            if moved and messages:
                insert(following, batch, workflow, stands={})
                following.follow_all()
            return moved, following

        moved, following = self._database.write(
            move, durable=self.durable, limited=bool(messages)
        )
        self._announce(following)
        return moved

    def lead(self, beat: str, until: float) -> bool:
        now = self.clock.now()
        return self._database.write(
            lambda db: scheduling.lead(db, beat, until, now), durable=False
        )

    def unlead(self, beat: str) -> None:
        if self._database.write(lambda db: scheduling.unlead(db, beat), durable=False):
            self._wake_beats()

    def _wake_beats(self) -> None:
        if self._post is not None:
            self._post.wake_beats()
        else:
            for mailbox in list(self._local.values()):
                if mailbox.name.startswith("b"):
                    mailbox.put([""])

    # Results

    def watch(
        self, ids: Sequence[str], mailbox: Mailbox, *, notes: bool = False
    ) -> dict[str, Record]:
        if not isinstance(mailbox, (SocketMailbox, LocalMailbox)):
            raise TypeError(f"not a mailbox of this store: {mailbox!r}")
        records = self.get(ids)
        if all(record.final for record in records.values()):
            return records  # nothing to wait for: spare the write

        def register(db: apsw.Connection) -> dict[str, Record]:
            db.execute(
                "INSERT INTO waiter(message, address) SELECT seq, ? FROM message "
                f"WHERE id IN {_AMONG} AND state < 6 ON CONFLICT DO NOTHING",
                (f"{mailbox.name}{NOTED}" if notes else mailbox.name, json.dumps(ids)),
            )
            return _records(db, ids, "AND state >= 6")

        return self._database.write(register, durable=False)

    def mailbox(self, worker: int | None = None, *, beat: bool = False) -> Mailbox:
        if self._post is not None:
            self.check()
            self._database.prepare()
            return self._post.open(self.poll_interval, worker, beat=beat)
        kind = kind_of(worker, beat=beat)
        with self._local_lock:
            name = f"{kind}{new_token()}"
            mailbox = LocalMailbox(name, self.poll_interval, self._forget_mailbox)
            self._local[name] = mailbox
        return mailbox

    def _forget_mailbox(self, name: str) -> None:
        with self._local_lock:
            self._local.pop(name, None)

    def store(
        self,
        id: str,
        state: str,
        value: bytes | None,
        *,
        task: str = "",
        expires: float | None = 86400.0,
    ) -> None:
        now = self.clock.now()
        code = {
            "SUCCESS": SUCCEEDED,
            "FAILURE": FAILED,
            "REVOKED": REVOKED,
            "IGNORED": IGNORED,
        }.get(state)
        message = Message(id, task, b"[[],{}]", result_expires=expires)

        def write(db: apsw.Connection) -> Following:
            following = Following(db, now)
            db.execute(ENQUEUE, row_of(message.pack(), 1, now))
            seq, held = fetch_one(db, "SELECT seq, state FROM message WHERE id = ?", (id,))
            if held >= SUCCEEDED:
                return following
            if code is None:
                db.execute(
                    "UPDATE message SET note_state = ?, note = ? WHERE seq = ?",
                    (state, value, seq),
                )
                return following
            db.execute(
                "UPDATE message SET state = ?, result = ?, settled_at = ?, delete_at = ?, "
                "token = NULL WHERE seq = ?",
                (code, value, now, None if expires is None else now + expires, seq),
            )
            following.queued = free_slots(db, seq)
            match state:
                case "SUCCESS":
                    following.succeeded(seq, id, value or b"null")
                case "FAILURE":
                    following.failed(seq, id, value or revocation("failed"))
                case "REVOKED":
                    following.revoked(seq, id, "revoked")
                case _:
                    following.ignored(seq, id)
            following.follow_all()
            return following

        self._announce(self._database.write(write, durable=self.durable))

    def forget(self, ids: Iterable[str]) -> None:
        wanted = json.dumps(list(ids))

        def delete(db: apsw.Connection) -> None:
            rows = fetch_all(
                db,
                f"SELECT seq, id FROM message WHERE state >= 6 AND id IN {_AMONG}",
                (wanted,),
            )
            end_periods(db, [id for _, id in rows])
            _delete(db, [seq for seq, _ in rows])

        self._database.write(delete, durable=self.durable)

    def holder(self, unique_key: str) -> str | None:
        now = self.clock.now()
        return self._database.read(lambda db: holder(db, unique_key, now))

    # Keeping house

    def maintain(self) -> bool:
        now = self.clock.now()

        def due(db: apsw.Connection) -> bool:
            return bool(
                fetch_one(
                    db,
                    "SELECT EXISTS(SELECT 1 FROM message WHERE delete_at <= ?1) "
                    "OR EXISTS(SELECT 1 FROM message WHERE expires_at IS NOT NULL "
                    "AND expires_at <= ?1 AND state IN (1, 2, 4)) "
                    "OR EXISTS(SELECT 1 FROM message WHERE expires_at IS NOT NULL "
                    "AND expires_at <= ?1 AND state = 5) "
                    "OR EXISTS(SELECT 1 FROM bucket WHERE free_at <= ?1 - 60) "
                    "OR EXISTS(SELECT 1 FROM message WHERE state = 4 AND parked_at <= ?2) "
                    "OR EXISTS(SELECT 1 FROM worker WHERE stopped_at <= ?3) "
                    "OR EXISTS(SELECT 1 FROM letter WHERE expires_at <= ?1) "
                    "OR EXISTS(SELECT 1 FROM listener WHERE until <= ?1) "
                    "OR EXISTS(SELECT 1 FROM event WHERE emitted_at <= ?4) "
                    "OR EXISTS(SELECT 1 FROM period WHERE until <= ?1)",
                    (
                        now,
                        now - self.unknown_expires,
                        now - 7 * 86_400,
                        now - EVENTS_KEPT_FOR,
                    ),
                )
            )

        def sweep(db: apsw.Connection) -> Following:
            settling = Settling(db, now, self.max_deliveries)
            _delete(db, _seqs(db, f"delete_at <= ? ORDER BY delete_at LIMIT {SLICE}", (now,)))
            for states in ("IN (1, 2, 4)", "= 5"):
                late = "expires_at IS NOT NULL AND expires_at <= ?"
                for (seq,) in fetch_all(
                    db,
                    f"SELECT seq FROM message WHERE {late} AND state {states} LIMIT {SLICE}",
                    (now,),
                ):
                    settling.following.revoke(seq, "expired")
            tidy(db, now)
            settling.give_up_parked(now - self.unknown_expires)
            settling.following.follow_all()
            self._forget_workers(db, now - 7 * 86_400)
            self._sweep_mail(db, now)
            db.execute(
                "DELETE FROM period WHERE unique_key IN (SELECT unique_key FROM period "
                f"WHERE until <= ? LIMIT {SLICE})",
                (now,),
            )
            if db.pragma("freelist_count") > 4096:
                fetch_all(db, f"PRAGMA incremental_vacuum({SLICE})")
            return settling.following

        more = self._database.read(due)
        if more:
            self._announce(self._database.write(sweep, durable=False))
        if self._database.wal_pages > 1000:
            self._database.checkpoint(truncate=self._database.wal_pages > 4096)
        return more

    def check(self) -> None:
        self._database.check()

    def shelf(self) -> Shelf:
        """Return the store as something to be moved (see `moving`)."""
        from liteq.brokers.moving_sqlite import SqliteShelf  # late: for one command

        return SqliteShelf(self._database, self.get, self.clock.now)

    def keeper(self) -> Keeper:
        """Return who looks after the store's file: backups, checks, figures."""
        from liteq.brokers.keeping import Keeper  # late: for who operates a store

        return Keeper(self._database)

    def close(self) -> None:
        self._database.close()
        if self._post is not None:
            self._post.close()


def _records(db: apsw.Connection, ids: Sequence[str], also: str = "") -> dict[str, Record]:
    """Return the records of these ids, in their order."""
    if len(ids) == 1:
        row = fetch_one(db, f"{_RECORD} WHERE id = ? {also}", ids)
        return {} if row is None else {ids[0]: _record(row)}
    rows = fetch_all(db, f"{_RECORD} WHERE id IN {_AMONG} {also}", (json.dumps(ids),))
    found = {record.id: record for record in map(_record, rows)}
    return {id: found[id] for id in ids if id in found}


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


def _leases_of(db: apsw.Connection, worker: int, limit: int | None) -> list[Lease]:
    rows = fetch_all(
        db,
        f"SELECT seq, token, deliveries, {_PACKED} FROM message INDEXED BY message_running "
        "WHERE state = 3 AND worker = ? LIMIT ?",
        (worker, -1 if limit is None else limit),
    )
    return [Lease(row[0], row[1], row[2], row[3:]) for row in rows]


def _inputs(db: apsw.Connection, seq: int) -> tuple[Input, ...]:
    rows = fetch_all(
        db,
        "SELECT source, kind, position, value FROM input WHERE target = ? "
        "ORDER BY position, source",
        (seq,),
    )
    return tuple(Input(*row) for row in rows)


def _delete(db: apsw.Connection, seqs: Sequence[int]) -> None:
    """Delete messages and all that hangs on them."""
    keys = [(seq,) for seq in seqs]
    touched = {
        workflow
        for key in keys
        for (workflow,) in fetch_all(
            db, "DELETE FROM message WHERE seq = ? RETURNING workflow", key
        )
    }
    db.executemany("DELETE FROM attempt WHERE message = ?", keys)
    db.executemany("DELETE FROM input WHERE target = ?", keys)
    db.executemany("DELETE FROM edge WHERE source = ?", keys)
    db.executemany("DELETE FROM edge WHERE target = ?", keys)  # numbers are used again
    db.executemany("DELETE FROM waiter WHERE message = ?", keys)
    workflows.delete_empty(db, touched - {None})


def _seqs(db: apsw.Connection, where: str, bindings: Sequence[Any]) -> list[int]:
    found = fetch_all(db, f"SELECT seq FROM message WHERE {where}", bindings)
    return [seq for (seq,) in found]


def _harden(db: apsw.Connection) -> None:
    """Change one byte: a synced commit also puts those before it on the disk."""
    db.execute("UPDATE meta SET value = value + 1 WHERE name = 'hardened'")


def _record(row: tuple[Any, ...]) -> Record:
    (
        code,
        result,
        note_state,
        note,
        deliveries,
        enqueued_at,
        started_at,
        settled_at,
        worker,
        children,
        dead,
        revoke,
        workflow,
        *packed,
    ) = row
    state = _STATE_NAMES[code]
    if state in ("queued", "scheduled") and result is not None:
        state = "retrying"
    return Record(
        id=packed[0],
        state=state,
        packed=tuple(packed),
        result=result,
        note=None if note_state is None else Note(note_state, note),
        deliveries=deliveries,
        enqueued_at=enqueued_at,
        started_at=started_at,
        settled_at=settled_at,
        worker=worker,
        children=children,
        dead=dead,
        revoked=revoke if state == "revoked" or revoke == "upstream" else None,
        workflow=workflow,
    )
