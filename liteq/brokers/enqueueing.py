"""How messages and the edges between them get into an SQLite store, in one transaction.

The numbers that edges join are worked out here and not looked up. Neighbours that differ in
little, such as the members of a group, are written in blocks: each binds what is its own.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

import apsw

from liteq.brokers.connection import fetch_all, fetch_one
from liteq.brokers.delaying import IS_NEXT, is_sooner, next_dues
from liteq.brokers.following import Following
from liteq.brokers.graph import cannot_wait, count_edges
from liteq.brokers.limiting import enter_lines
from liteq.brokers.schema import EARLY, LIMITED, QUEUED, SCHEDULED, WAITING
from liteq.brokers.uniqueness import UNIQUE, admit
from liteq.brokers.values import ATTEMPTS_KEPT
from liteq.exceptions import AlreadyEnqueued
from liteq.message import (
    GATHER,
    ID,
    LIMITS,
    PACKED_FIELDS,
    RUN_AT,
    TASK,
    Alike,
    Packed,
    Workflow,
)

__all__ = [
    "ENQUEUE",
    "ENQUEUE_DELAYED",
    "Batch",
    "accept_repeat",
    "enter_workflow",
    "insert",
    "insert_alike",
    "prepare",
    "row_of",
]

_WIDTH: Final = len(PACKED_FIELDS)

# What many have in common is bound once for `BLOCK` of them: a few values are left for each,
# where a statement of its own binds twenty, and half of its time is that.
BLOCK: Final = 25


class _Insert(NamedTuple):
    """How rows get into a table: one alone, or a block of those that differ in `own` values
    alone, whose other values (`common`) are bound behind those."""

    one: str
    block: str
    own: Callable[[Any], Any]
    common: Callable[[Any], Any]

    def run(self, db: apsw.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write rows. Neighbours that are alike go in blocks."""
        alone: list[tuple[Any, ...]] = []
        for common, run in groupby(rows, self.common):
            alike = list(run)
            rest = len(alike) % BLOCK
            alone += alike[:rest]
            if rest < len(alike):
                self.run_alike(db, list(map(self.own, alike[rest:])), common)
        db.executemany(self.one, alone)

    def run_alike(
        self, db: apsw.Connection, own: Sequence[tuple[Any, ...]], common: tuple[Any, ...]
    ) -> None:
        """Write whole blocks of rows: what each has for its own, and what all have."""
        blocks = range(0, len(own), BLOCK)
        db.executemany(self.block, [(*chain(*own[at : at + BLOCK]), *common) for at in blocks])


def _insert_into(table: str, columns: Sequence[str], own: Sequence[str], end: str) -> _Insert:
    """Return how rows with these columns are inserted, of which some are each row's own."""
    into = f"INSERT INTO {table}({', '.join(columns)})"
    values = f"({', '.join('?' * len(own))})"
    common = [column for column in columns if column not in own]
    chosen = [
        column if column in own else f"?{len(own) * BLOCK + common.index(column) + 1}"
        for column in columns
    ]
    return _Insert(
        f"{into} VALUES ({', '.join('?' * len(columns))}) {end}",
        f"WITH new({', '.join(own)}) AS (VALUES {', '.join([values] * BLOCK)}) "
        f"{into} SELECT {', '.join(chosen)} FROM new WHERE true {end}",
        itemgetter(*map(columns.index, own)),
        itemgetter(*map(columns.index, common)),
    )


_ROW: Final = (*PACKED_FIELDS, "state", "pending", "enqueued_at")
_ONCE: Final = "ON CONFLICT(id) DO NOTHING"
_ALIKE: Final = _insert_into("message", _ROW, ("id", "body"), _ONCE)
ENQUEUE: Final = _ALIKE.one
ENQUEUE_DELAYED: Final = f"{ENQUEUE} RETURNING {IS_NEXT}"
_MESSAGES: Final = _insert_into(
    "message", ("seq", "workflow", *_ROW), ("seq", "id", "body", "envelope"), _ONCE
)
_EDGES: Final = _insert_into(
    "edge", ("source", "target", "fires", "position"), ("source", "position"), ""
)
# `renewed`: the arguments of another call, of the same unique key, have taken the place of its.
_STORED: Final = (
    f"SELECT seq, task, body, {EARLY}, sent_as IS NOT NULL FROM message WHERE id = ?"
)
_SENT_AS: Final = "UPDATE message SET sent_as = ? WHERE id = ?"


_Edge: TypeAlias = tuple[str, str, str, int]  # an `Edge`, or one that has travelled


class Batch(NamedTuple):
    """Messages as rows, and the edges between them; checked, and ready to be written."""

    rows: Sequence[tuple[Any, ...]]
    edges: Sequence[_Edge]
    counted: Mapping[str, int]  # how many ends each message waits for, if it waits
    gathers: Sequence[str]  # those without parts, which end at once
    has_keys: bool  # one of them is unique


def row_of(packed: Packed, pending: int, now: float) -> tuple[Any, ...]:
    """Return what `ENQUEUE` writes for a message that waits for so many others."""
    if pending or packed[TASK] == GATHER:
        state = WAITING
    elif packed[RUN_AT] is not None and packed[RUN_AT] > now:
        state = SCHEDULED
    else:
        state = QUEUED if packed[LIMITS] is None else LIMITED
    return (*packed, state, pending, now)


def prepare(
    messages: Sequence[Packed],
    edges: Sequence[_Edge],
    now: float,
    there: Packed | None = None,
) -> Batch:
    """Check what is to be enqueued, outside of any transaction. See `count_edges`."""
    counted = count_edges(messages, edges, there)
    keys = [packed[UNIQUE] for packed in messages]
    return Batch(
        [row_of(packed, counted.get(packed[ID], 0), now) for packed in messages],
        edges,
        counted,
        [m[0] for m in messages if m[1] == GATHER and m[0] not in counted],
        keys.count(None) < len(keys),
    )


def insert(
    following: Following,
    batch: Batch,
    workflow: Workflow | int | None = None,
    there: Mapping[str, int] | None = None,
    stands: dict[str, str] | None = None,
) -> dict[str, int]:
    """Write a batch; return the numbers of what was new.

    What is in the store already with the same task and body is left as it is. `there`
    holds the numbers of messages of the store that edges may lead to. `stands` is filled
    with what is not stored because of its key, and what stands for it; without it, or if
    the messages belong together, that is a `DuplicateTask`.
    """
    db = following.db
    delayed = {row[3] for row in batch.rows if row[_WIDTH] == SCHEDULED}
    dues = next_dues(db, delayed)
    queued, sent_as = False, {}
    if batch.has_keys:
        as_a_whole = stands is None or workflow is not None or bool(batch.edges)
        admitted = admit(db, batch.rows, following.now, as_a_whole=as_a_whole)
        for row in admitted.repeated:
            accept_repeat(db, row)
        sent_as = admitted.sent_as
        queued = admitted.queued or bool(admitted.repeated)
        for seq in admitted.late:  # none before all are admitted: it may be refused as a whole
            following.revoke(seq, "expired")
        batch = batch._replace(rows=admitted.rows, edges=[*batch.edges, *admitted.edges])
        if stands is not None:
            stands.update(admitted.stands)
    number = enter_workflow(db, workflow, following.now) if workflow is not None else None
    last = fetch_one(db, "SELECT max(seq) FROM message") or 0
    before = db.total_changes()
    _MESSAGES.run(db, [(seq, number, *row) for seq, row in enumerate(batch.rows, last + 1)])
    if db.total_changes() - before == len(batch.rows):
        new = {row[0]: seq for seq, row in enumerate(batch.rows, last + 1)}
    else:
        new = dict(fetch_all(db, "SELECT id, seq FROM message WHERE seq > ?", (last,)))
        for seq, row in enumerate(batch.rows, last + 1):
            if row[0] not in new and not accept_repeat(db, row):
                _replace_early(db, (seq, number, *row))
                new[row[0]] = seq
        if not new:
            db.execute(
                "DELETE FROM workflow WHERE seq = ?1 "
                "AND NOT EXISTS(SELECT 1 FROM message WHERE workflow = ?1)",
                (number,),
            )
    if sent_as:
        db.executemany(_SENT_AS, [(last_id, id) for id, last_id in sent_as.items()])
    limited = [row for row in batch.rows if row[_WIDTH] == LIMITED and row[0] in new]
    if limited:
        following.lined = True
        enter_lines(db, [(row[3], row[14], row[4], new[row[0]]) for row in limited])
    _insert_edges(following, batch.edges, {**new, **there} if there else new)
    for id in batch.gathers:
        if id in new:
            following.join(new[id])
    # Who repeats a call has perhaps not come to wake anybody before.
    queued = queued or len(new) < len(batch.rows)
    queued = queued or any(row[_WIDTH] in (QUEUED, LIMITED) for row in batch.rows)
    if queued or is_sooner(db, delayed, dues, following.now):
        following.queued = True
    return new


def insert_alike(following: Following, messages: Alike) -> bool:
    """Write messages that differ in id and body alone, and belong to no workflow.

    False: `insert` is to do it, since they are under limits or unique, or since some of
    them are in the store already.
    """
    row = row_of(messages.first.pack(), 0, following.now)
    if row[UNIQUE] is not None or row[_WIDTH] not in (QUEUED, SCHEDULED):
        return False
    db = following.db
    delayed = [row[3]] if row[_WIDTH] == SCHEDULED else []
    dues = next_dues(db, delayed)
    before = db.total_changes()
    task, rest = row[1], row[3:]
    pairs = list(zip(messages.ids, messages.bodies, strict=True))
    alone = len(pairs) % BLOCK
    db.executemany(ENQUEUE, [(id, task, body, *rest) for id, body in pairs[:alone]])
    _ALIKE.run_alike(db, pairs[alone:], (task, *rest))
    if not delayed or is_sooner(db, delayed, dues, following.now):
        following.queued = True
    return db.total_changes() - before == len(pairs)


def _insert_edges(
    following: Following, edges: Sequence[_Edge], seqs: Mapping[str, int]
) -> None:
    """Write the edges of targets that are new."""
    db = following.db
    joined = [
        (seqs.get(source) or _unfinished(db, source, target), seqs[target], on, position)
        for source, target, on, position in edges
        if target in seqs
    ]
    if joined:
        _EDGES.run(db, joined)
        following.edges_added()


def _unfinished(db: apsw.Connection, source: str, target: str) -> int:
    sql = f"SELECT seq, state >= 6 FROM message WHERE id = ? AND NOT ({EARLY})"
    seq, over = fetch_one(db, sql, (source,)) or (None, False)
    if seq is None or over:
        raise cannot_wait(target, source, over=bool(over))
    return int(seq)


def enter_workflow(db: apsw.Connection, workflow: Workflow | int, now: float) -> int:
    """Return the number of a workflow, having written it down if it is new."""
    if isinstance(workflow, int):
        return workflow
    db.execute(
        "INSERT INTO workflow(id, name, created_at) VALUES (?,?,?) ON CONFLICT(id) DO NOTHING",
        (*workflow, now),
    )
    number: int = fetch_one(db, "SELECT seq FROM workflow WHERE id = ?", (workflow.id,))
    return number


def _replace_early(db: apsw.Connection, row: tuple[Any, ...]) -> None:
    """Write a message in the place of the early note of its id. It comes in its own turn, and
    who waits for the one waits for the other."""
    before = fetch_one(db, "DELETE FROM message WHERE id = ? RETURNING seq", (row[2],))
    db.execute(_MESSAGES.one, row)
    db.execute("UPDATE waiter SET message = ? WHERE message = ?", (row[0], before))


def accept_repeat(db: apsw.Connection, row: tuple[Any, ...]) -> bool:
    """Let the same message be enqueued again, and refuse another under its id. False: there is
    but an early note, and the message is to take its place."""
    id, task, body = row[:3]
    stored = fetch_one(db, _STORED, (id,))
    if stored is None:
        return True  # settled and deleted since
    seq, stored_task, stored_body, early, renewed = stored
    if early:
        return False
    if renewed or (stored_task, stored_body) == (task, body):
        return True
    if fetch_one(
        db,
        "SELECT EXISTS(SELECT 1 FROM attempt WHERE message = ? "
        f"AND (outcome IN ('retried', 'replaced') OR number > {ATTEMPTS_KEPT}))",
        (seq,),
    ):
        return True  # it has become another since, or may have: not all attempts are kept
    raise AlreadyEnqueued(
        f"a message with id {id!r} is in the store with another task or other "
        f"arguments (its task is {stored_task!r}, this one's {task!r}): ids are used once"
    )
