"""Limits in an SQLite store: which messages may start now, decided inside the claim.

Messages of one queue that are under the same limits stand in one *line*, in the order of
promise 7. A claim looks at the first of each line that is not blocked; so a message that
must wait is not looked at again until it may go, and a hundred thousand of them cost a claim
nothing. A line that found a *bucket* full (a limit's name, and a key) is blocked by it, and
does not come up again until the bucket has room: in the step that ends the lease whose slot
was the last one, or, for a rate, when the time has come (`gate.opens_at`, until which a
worker sleeps). Then as many lines go on as there is room for, those of the highest priority
first, and among those the one that has waited longest, so that keys take turns.

- `line`: `priority` and `head` are the rank of its first message, or better than that: what
  leaves a line does not tell it, and a claim that finds it so puts it right.
- `bucket`: `free_at` is the time at which a rate will have saved up all its burst (the
  *theoretical arrival time* of the generic cell rate algorithm, ITU-T I.371).
- `slot`: a running message, and a bucket that it counts in. The count is never kept apart
  from the leases, so it cannot go astray.
- `gate`: the lines of a queue that are blocked by a bucket have one.
- `closed`: a line that one worker passes over, for it has had its own rate's share of it.

Messages without limits meet none of this but a few empty partial indexes.
"""

import json
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import apsw

from liteq.brokers.connection import fetch_all, fetch_one
from liteq.limits import Limit, LimitInfo, checked, merged, read, warn_unreadable

__all__ = [
    "NO_BOOK",
    "SLICE",
    "Book",
    "Lines",
    "declare",
    "enter_lines",
    "free_slots",
    "infos",
    "is_declared",
    "override",
    "overrides",
    "peek",
    "read_book",
    "tidy",
]

SLICE: Final = 500  # lines that one step tries: a few milliseconds

Row = tuple[Any, ...]
Rank = tuple[int, int]  # the negative priority, and the number: the least goes first

# A new first one is looked at: it may go before a line that was let go on meanwhile.
_ENTER: Final = (
    "INSERT INTO line(queue, limits, priority, head) VALUES (?,?,?,?) "
    "ON CONFLICT(queue, limits) DO UPDATE SET priority = excluded.priority, "
    "head = excluded.head, blocked_by = NULL WHERE excluded.priority > priority "
    "OR (excluded.priority = priority AND excluded.head < head)"
)
_READY: Final = (
    "SELECT -priority, head, queue, limits FROM line INDEXED BY line_ready "
    "WHERE blocked_by IS NULL AND queue = ? {but}ORDER BY priority DESC, head LIMIT 1"
)
_NOT_CLOSED: Final = (
    "AND NOT EXISTS(SELECT 1 FROM closed WHERE closed.worker = ? "
    "AND closed.queue = line.queue AND closed.limits = line.limits) "
)
_HEAD: Final = (
    "SELECT -priority, seq, task, expires_at FROM message INDEXED BY message_limited "
    "WHERE state = 5 AND queue = ? AND limits = ? ORDER BY priority DESC, seq LIMIT 1"
)
_BLOCK: Final = (
    "UPDATE line SET blocked_by = ?1, "
    "since = coalesce(since, 1 + coalesce((SELECT max(since) FROM line), 0)) "
    "WHERE queue = ?2 AND limits = ?3"
)
_GATE: Final = (
    "INSERT INTO gate(bucket, queue, opens_at) VALUES (?,?,?) "
    "ON CONFLICT(bucket, queue) DO UPDATE SET opens_at = excluded.opens_at"
)
_UNBLOCK: Final = (
    "UPDATE line SET blocked_by = NULL WHERE (queue, limits) IN (SELECT queue, limits "
    "FROM line INDEXED BY line_blocked WHERE blocked_by = ? AND queue = ? "
    "ORDER BY priority DESC, since LIMIT ?)"
)
_GIVE_BACK: Final = (
    "UPDATE message SET state = 5, limits = ?, token = NULL, started_at = NULL, "
    "deliveries = deliveries - 1 WHERE seq = ?"
)
_LINE_UP: Final = "UPDATE message SET state = 5, limits = ?, parked_at = NULL WHERE seq = ?"
_PEEK: Final = "SELECT -priority, seq, queue, task, limits FROM message INDEXED BY"
_CHARGE: Final = (
    "INSERT INTO bucket(name, free_at, used_at) VALUES (?,?,?) "
    "ON CONFLICT(name) DO UPDATE SET free_at = excluded.free_at, used_at = excluded.used_at"
)


class Book(NamedTuple):
    """What is declared and overridden, as of a revision: `limits` are those in force, by
    name; `tasks` the names that all messages of a task are under."""

    revision: int | None
    limits: Mapping[str, Limit]
    tasks: Mapping[str, Sequence[str]]


NO_BOOK: Final = Book(None, {}, {})


class Lines:
    """The lines of one step: who may go. `now`: Unix seconds; `any`: there are some;
    `ignore_rates`: this worker does. `opened` is set when lines of any queue may go that
    could not before, `tried` counts those that were looked at."""

    def __init__(
        self,
        db: apsw.Connection,
        now: float,
        book: Book,
        worker: int,
        queues: Sequence[str],
        *,
        any: bool,
        tasks: Collection[str] | None = None,
        ignore_rates: bool = False,
    ) -> None:
        self.db = db
        self.now = now
        self.book = book
        self.any = any
        self.opened = False
        self.tried = 0
        self._worker = worker
        self._queues = queues
        self._tasks = tasks
        self._ignore_rates = ignore_rates
        self._closures: bool | None = None

    def open_due(self) -> None:
        """Let lines go on for which a rate has room by now."""
        if self._has_closures():
            self.db.execute(
                "DELETE FROM closed WHERE worker = ? AND (until <= ? OR ?)",
                (self._worker, self.now, self._ignore_rates),
            )
            self._closures = None
        at = float("inf") if self._ignore_rates else self.now
        for queue in self._queues:
            due = fetch_all(
                self.db,
                "SELECT bucket FROM gate INDEXED BY gate_due WHERE queue = ? "
                f"AND opens_at <= ? ORDER BY opens_at LIMIT {SLICE}",
                (queue, at),
            )
            for (bucket,) in due:
                self._open(bucket, queue)

    def _open(self, bucket: str, queue: str) -> None:
        limit = self.book.limits.get(bucket.partition("\n")[0])
        if limit is None or limit.interval is None or self._ignore_rates:
            self.opened |= _unblock(self.db, bucket, queue, SLICE)
            return
        opens_at = self._opens_at(bucket, limit)
        room = 0
        if opens_at <= self.now:
            room = min(int((self.now - opens_at) / limit.interval) + 1, limit.burst)
            self.opened |= _unblock(self.db, bucket, queue, room)
        self.db.execute(
            "UPDATE gate SET opens_at = ? WHERE bucket = ? AND queue = ?",
            (opens_at + room * limit.interval, bucket, queue),
        )

    def next_due(self) -> float | None:
        """Return when a line of these queues is to be looked at again."""
        times = [
            fetch_one(
                self.db,
                "SELECT opens_at FROM gate INDEXED BY gate_due WHERE queue = ? "
                "AND opens_at IS NOT NULL ORDER BY opens_at LIMIT 1",
                (queue,),
            )
            for queue in self._queues
        ]
        times.append(
            fetch_one(
                self.db, "SELECT min(until) FROM closed WHERE worker = ?", (self._worker,)
            )
        )
        return min((time for time in times if time is not None), default=None)

    def limits_of(self, task: str, text: str | None) -> str | None:
        """Return the limits that a message is under, given those that it names itself."""
        names = self.book.tasks.get(task)
        return text if names is None else merged(text, names)

    def line_up(self, rank: Rank, queue: str, task: str, text: str | None) -> None:
        """Put a message that was claimed from its queue where it belongs."""
        self._line_up(_GIVE_BACK, rank, queue, self.limits_of(task, text))

    def _line_up(self, how: str, rank: Rank, queue: str, limits: str | None) -> None:
        self.any = True
        self.db.execute(how, (limits, rank[1]))
        self.db.execute(_ENTER, (queue, limits, -int(rank[0]), rank[1]))

    def take(
        self, claim: str, bindings: Row, wanted: int, others: Callable[[], list[Row]]
    ) -> list[Row]:
        """Claim from the lines what goes before the others, or fits in beside them, and
        return what `claim` returns of each. `others()`: what else could be claimed now, in
        order (see `peek`), at least `wanted` of them or all. Those that are too late, or
        unknown, are returned uncharged."""
        taken: list[Row] = []
        waiting = deque(others())
        passed, moved = 0, False
        line = self._first()
        while line is not None and len(taken) + passed < wanted and self.tried < SLICE:
            if waiting and waiting[0] < line:
                priority, seq, queue, task, text = waiting.popleft()
                limits = self.limits_of(task, text)
                if limits is None:
                    passed += 1
                else:  # it was put back, or has come due: it has its place in a line
                    self._line_up(_LINE_UP, (priority, seq), queue, limits)
                    self.tried += 1
                    moved = True
                    line = self._first()
                if moved and not waiting:  # behind those that moved may be others that go first
                    waiting.extend(others()[passed:])
                    moved = False
                continue
            self.tried += 1
            row = self._try(line, claim, bindings)
            if row is not None:
                taken.append(row)
            line = self._first()
        return taken

    def _first(self) -> Row | None:
        """Return the line, of those that may go, with the best rank."""
        but, more = (_NOT_CLOSED, (self._worker,)) if self._has_closures() else ("", ())
        sql = _READY.format(but=but)
        found = [fetch_all(self.db, sql, (queue, *more)) for queue in self._queues]
        return min((rows[0] for rows in found if rows), default=None)

    def _has_closures(self) -> bool:
        if self._closures is None:
            self._closures = bool(
                fetch_one(
                    self.db,
                    "SELECT EXISTS(SELECT 1 FROM closed WHERE worker = ?)",
                    (self._worker,),
                )
            )
        return self._closures

    def more(self) -> bool:
        """Tell whether a line may go on, of whatever queue."""
        return bool(
            fetch_one(
                self.db,
                "SELECT EXISTS(SELECT 1 FROM line INDEXED BY line_ready "
                "WHERE blocked_by IS NULL)",
            )
        )

    def _try(self, line: Row, claim: str, bindings: Row) -> Row | None:
        """Claim the first message of a line; or put the line right, or block it."""
        *hint, queue, limits = line
        head = self._head(queue, limits)
        if head is None:
            self._drop(queue, limits)
            return None
        if [*head[:2]] != hint:
            self._move(head[:2], queue, limits)
            return None
        rank, task, expires_at = head[:2], head[2], head[3]
        if (wanted := self.limits_of(task, limits) or limits) != limits:
            self.db.execute("UPDATE message SET limits = ? WHERE seq = ?", (wanted, rank[1]))
            self.db.execute(_ENTER, (queue, wanted, -int(rank[0]), rank[1]))
            return None
        useless = (expires_at is not None and expires_at <= self.now) or (
            self._tasks is not None and task not in self._tasks
        )
        held = [] if useless else self._held(limits)
        if self._block_if_full(queue, limits, held):
            return None
        row: Row = fetch_all(self.db, claim, (*bindings, rank[1]))[0]
        for bucket, limit in held:
            self._charge(bucket, limit, rank[1])
        following = self._head(queue, limits)
        if following is None:
            self._drop(queue, limits)
        else:
            self._move(following[:2], queue, limits, served=bool(held))
            self._block_if_full(queue, limits, held)
        return row

    def _held(self, limits: str) -> list[tuple[str, Limit]]:
        """Return the buckets of a line that allow less than everything."""
        found = []
        for name, key in read(limits):
            limit = self.book.limits.get(name)
            if limit is None or key is None:
                continue
            if limit.most is None and (limit.interval is None or self._ignore_rates):
                continue
            own = limit.per_worker
            found.append((f"{name}\n@{self._worker}" if own else f"{name}\n{key}", limit))
        return found

    def _block_if_full(
        self, queue: str, limits: str, held: Sequence[tuple[str, Limit]]
    ) -> bool:
        """Block a line by the bucket that will have room last; or close it for this worker.
        What it then leaves to others in its other buckets goes to the next."""
        full: list[tuple[float, str, Limit]] = []
        for bucket, limit in held:
            opens_at = self._full_until(bucket, limit)
            if opens_at is not None:
                full.append((opens_at, bucket, limit))
        if not full:
            return False
        opens_at, bucket, limit = max(full)
        if limit.per_worker:
            self.db.execute(
                "INSERT INTO closed(worker, queue, limits, until) VALUES (?,?,?,?) "
                "ON CONFLICT DO UPDATE SET until = excluded.until",
                (self._worker, queue, limits, opens_at),
            )
            self._closures = True
        else:
            self.db.execute(_BLOCK, (bucket, queue, limits))
            known = None if opens_at == float("inf") else opens_at
            self.db.execute(_GATE, (bucket, queue, known))
        blocking = {bucket for _, bucket, _ in full}
        for other, _ in held:
            if other not in blocking:
                self.opened |= _unblock(self.db, other, queue, 1)
        return True

    def _full_until(self, bucket: str, limit: Limit) -> float | None:
        """Return from when a bucket has room, None if it has: for a slot nobody knows."""
        if limit.most is not None:
            held = fetch_one(self.db, "SELECT count(*) FROM slot WHERE bucket = ?", (bucket,))
            if held >= limit.most:
                return float("inf")
        if limit.interval is None or self._ignore_rates:
            return None
        opens_at = self._opens_at(bucket, limit)
        return opens_at if opens_at > self.now else None

    def _opens_at(self, bucket: str, limit: Limit) -> float:
        return self._free_at(bucket, limit) - (limit.burst - 1) * (limit.interval or 0.0)

    def _free_at(self, bucket: str, limit: Limit) -> float:
        """Return when all the burst is saved up. Never later than if all of it had been used
        up at the last start: so a rate that was raised holds at once."""
        stored = fetch_one(
            self.db, "SELECT free_at, used_at FROM bucket WHERE name = ?", (bucket,)
        )
        if stored is None:
            return 0.0
        free_at: float = stored[0]
        used_at: float = stored[1]
        if used_at > self.now:  # the clock was set back
            used_at = self.now
            self.db.execute(_CHARGE, (bucket, free_at, used_at))
        return min(free_at, used_at + limit.burst * (limit.interval or 0.0))

    def _charge(self, bucket: str, limit: Limit, seq: int) -> None:
        if limit.most is not None:
            self.db.execute("INSERT INTO slot(message, bucket) VALUES (?,?)", (seq, bucket))
        if limit.interval is not None and not self._ignore_rates:
            free_at = max(self._free_at(bucket, limit), self.now) + limit.interval
            self.db.execute(_CHARGE, (bucket, free_at, self.now))

    def _head(self, queue: str, limits: str) -> Row | None:
        found = fetch_all(self.db, _HEAD, (queue, limits))
        return found[0] if found else None

    def _move(self, rank: Row, queue: str, limits: str, *, served: bool = False) -> None:
        since = ", since = NULL" if served else ""
        self.db.execute(
            f"UPDATE line SET priority = ?, head = ?{since} WHERE queue = ? AND limits = ?",
            (-int(rank[0]), rank[1], queue, limits),  # a float: damaged, and taken as that
        )

    def _drop(self, queue: str, limits: str) -> None:
        """Delete a line without messages, and let others have what it was let go on for."""
        self.db.execute("DELETE FROM line WHERE queue = ? AND limits = ?", (queue, limits))
        for bucket, _ in self._held(limits):
            self.opened |= _unblock(self.db, bucket, queue, 1)


def _unblock(db: apsw.Connection, bucket: str, queue: str, count: int) -> bool:
    """Let the first lines that a bucket blocks go on; return whether there were any."""
    db.execute(_UNBLOCK, (bucket, queue, count))
    changed = db.changes()
    if changed < count:
        db.execute("DELETE FROM gate WHERE bucket = ? AND queue = ?", (bucket, queue))
    return bool(changed)


def free_slots(db: apsw.Connection, seq: int) -> bool:
    """Give back the slots of a message that runs no more; return whether a line may go on
    because of it."""
    opened = False
    for (bucket,) in fetch_all(
        db, "DELETE FROM slot WHERE message = ? RETURNING bucket", (seq,)
    ):
        for (queue,) in fetch_all(db, "SELECT queue FROM gate WHERE bucket = ?", (bucket,)):
            opened |= _unblock(db, bucket, queue, 1)
    return opened


def peek(
    db: apsw.Connection,
    queues: Sequence[str],
    limit: int,
    tasks: Collection[str] | None,
    *,
    parked: bool,
) -> list[Row]:
    """Return what could be claimed next from the queues, in order: the negative priority,
    number, queue, task and limits of each. With `parked`, among them what is parked and
    one of these tasks (None: any)."""
    found: list[Row] = []
    known = None if tasks is None else json.dumps(sorted(tasks))
    for queue in queues:
        found += fetch_all(
            db,
            f"{_PEEK} message_queued "
            "WHERE state = 1 AND queue = ? ORDER BY priority DESC, seq LIMIT ?",
            (queue, limit),
        )
        if parked:
            found += fetch_all(
                db,
                f"{_PEEK} message_parked "
                "WHERE state = 4 AND queue = ?1 AND (?2 IS NULL "
                "OR task IN (SELECT value FROM json_each(?2))) "
                "ORDER BY priority DESC, seq LIMIT ?3",
                (queue, known, limit),
            )
    return sorted(found)[:limit]


def enter_lines(db: apsw.Connection, entered: Iterable[tuple[str, str, int, int]]) -> None:
    """Have lines for messages that were written as limited: their queue, limits, priority
    and number."""
    db.executemany(_ENTER, entered)


def tidy(db: apsw.Connection, now: float) -> None:
    """Delete a slice of what says nothing any more."""
    db.execute(
        "DELETE FROM bucket WHERE name IN (SELECT name FROM bucket WHERE free_at <= ? "
        f"LIMIT {SLICE})",
        (now,),
    )
    db.execute("DELETE FROM closed WHERE until <= ?", (now,))


# What is declared


def read_book(db: apsw.Connection, revision: int | None) -> Book:
    """Return all that is declared and overridden."""
    if revision is None:
        return NO_BOOK
    limits: dict[str, Limit] = {}
    extra: dict[str, list[str]] = {}
    for name, declared, changed, user in _rules(db):
        limit = changed or declared
        if limit is not None:
            limits[name] = limit
        if changed is not None and user is not None:
            extra.setdefault(user, []).append(name)
    tasks = _names_by_task(db)
    for task, names in extra.items():
        known = tasks.setdefault(task, [])
        known += [name for name in names if name not in known]
    return Book(revision, limits, tasks)


def infos(db: apsw.Connection) -> list[LimitInfo]:
    """Return all limits by name."""
    users: dict[str, list[str]] = {}
    for task, names in _names_by_task(db).items():
        for name in names:
            users.setdefault(name, []).append(task)
    found = []
    for name, declared, changed, user in _rules(db):
        tasks = users.get(name, [])
        if changed is not None and user is not None and user not in tasks:
            tasks = sorted([*tasks, user])
        found.append(LimitInfo(name, declared, changed, tuple(tasks)))
    return found


def is_declared(db: apsw.Connection, tasks: Mapping[str, Sequence[Limit]]) -> bool:
    """Tell whether the store says of these tasks just what is to be declared."""
    known = dict(fetch_all(db, "SELECT task, names FROM limited"))
    texts = dict(fetch_all(db, "SELECT name, declared FROM limits"))
    for task, limits in tasks.items():
        names = json.dumps([limit.name for limit in limits]) if limits else None
        if known.get(task) != names:
            return False
        if any(texts.get(limit.name) != json.dumps(limit) for limit in limits):
            return False
    return True


def declare(db: apsw.Connection, tasks: Mapping[str, Sequence[Limit]]) -> None:
    """Write down what these tasks are under."""
    for task, limits in tasks.items():
        if limits:
            db.execute(
                "INSERT INTO limited(task, names) VALUES (?,?) "
                "ON CONFLICT DO UPDATE SET names = excluded.names",
                (task, json.dumps([limit.name for limit in limits])),
            )
        else:
            db.execute("DELETE FROM limited WHERE task = ?", (task,))
        db.executemany(
            "INSERT INTO limits(name, declared) VALUES (?,?) "
            "ON CONFLICT DO UPDATE SET declared = excluded.declared",
            [(limit.name, json.dumps(limit)) for limit in limits],
        )
    db.execute(
        "UPDATE limits SET declared = NULL WHERE name NOT IN "
        "(SELECT value FROM limited, "
        "json_each(CASE WHEN json_valid(limited.names) THEN limited.names END))"
    )
    _changed(db)


def override(db: apsw.Connection, name: str, limit: Limit | None, task: str | None) -> None:
    """Write down what is in force whatever is declared."""
    db.execute(
        "INSERT INTO limits(name, override, task) VALUES (?1,?2,?3) "
        "ON CONFLICT DO UPDATE SET override = ?2, task = ?3",
        (name, None if limit is None else json.dumps(limit), task),
    )
    _changed(db)


def overrides(db: apsw.Connection) -> list[tuple[str, Limit, str | None]]:
    """Return the name, the limit and the task of all that is in force so."""
    return [(name, limit, task) for name, _, limit, task in _rules(db) if limit is not None]


def _changed(db: apsw.Connection) -> None:
    """Begin a revision: all lines are to be looked at anew."""
    db.execute("DELETE FROM limits WHERE declared IS NULL AND override IS NULL")
    db.execute("UPDATE line SET blocked_by = NULL WHERE blocked_by IS NOT NULL")
    db.execute("DELETE FROM gate")
    db.execute("DELETE FROM closed")
    db.execute(
        "INSERT INTO meta(name, value) VALUES ('limits', 1) "
        "ON CONFLICT DO UPDATE SET value = value + 1"
    )


def _rules(db: apsw.Connection) -> list[tuple[str, Limit | None, Limit | None, str | None]]:
    """Return by name what is declared, what overrides it, and the task that this is for."""
    return [
        (name, _limit(name, declared), _limit(name, changed), task)
        for name, declared, changed, task in fetch_all(
            db, "SELECT name, declared, override, task FROM limits ORDER BY name"
        )
    ]


def _names_by_task(db: apsw.Connection) -> dict[str, list[str]]:
    found = {}
    for task, text in fetch_all(db, "SELECT task, names FROM limited ORDER BY task"):
        try:
            found[task] = [name for name in json.loads(text) if isinstance(name, str)]
        except (TypeError, ValueError, RecursionError):
            warn_unreadable(f"the limits of the task {task!r} are", text)
    return found


def _limit(name: str, text: str | None) -> Limit | None:
    """Return a limit; none for what another program wrote and nobody can read."""
    if text is None:
        return None
    try:
        return checked(Limit(*json.loads(text)))
    except (TypeError, ValueError, RecursionError):
        warn_unreadable(f"the limit {name!r} is", text)
        return None
