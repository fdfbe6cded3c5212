"""Looking, in SQL: records of messages, their attempts and workflows, and waits for an end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import apsw

from liteq.brokers import queueing, workflows
from liteq.brokers.base import Mailbox
from liteq.brokers.base_sqlite import AMONG, PACKED, SqliteStore
from liteq.brokers.connection import fetch_all, fetch_one
from liteq.brokers.following import NOTED
from liteq.brokers.schema import EARLY, STATE_CODES, STATE_NAMES
from liteq.brokers.uniqueness import holder
from liteq.brokers.values import (
    Attempt,
    Input,
    Node,
    Note,
    QueueInfo,
    Record,
    State,
    WorkflowInfo,
)
from liteq.brokers.wakeup import LocalMailbox, SocketMailbox
from liteq.message import GATHER, ID, Edge

if TYPE_CHECKING:
    from liteq.brokers.searching import Found, Search

__all__ = ["SqliteRecords"]

_RECORD: Final = (
    "SELECT state, result, note_state, note, deliveries, enqueued_at, started_at, "
    "settled_at, (SELECT name FROM worker WHERE worker.id = message.worker), children, "
    "dead, revoke, (SELECT id FROM workflow WHERE workflow.seq = message.workflow), "
    f"{PACKED} FROM message"
)


class SqliteRecords(SqliteStore):
    """The part of an SQLite store that shows what is in it."""

    # Messages

    def get(self, ids: Sequence[str]) -> dict[str, Record]:
        return self._database.read(lambda db: _records(db, ids))

    def inputs(self, id: str) -> tuple[Input, ...]:
        rows = self._database.read(
            lambda db: fetch_all(
                db,
                "SELECT source, kind, position, value FROM input "
                "WHERE target = (SELECT seq FROM message WHERE message.id = ?) "
                "ORDER BY position, source",
                (id,),
            )
        )
        return tuple(Input(*row) for row in rows)

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
        where += f" AND task != '{GATHER}' AND NOT ({EARLY})"
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

    def claimable(self, queues: Sequence[str], most: int) -> int:
        now = self.clock.now()

        def count(db: apsw.Connection) -> int:
            total = 0
            for queue in queueing.unpaused(db, queues):
                total += fetch_one(
                    db,
                    "SELECT count(*) FROM (SELECT 1 FROM message INDEXED BY message_queued "
                    "WHERE state = 1 AND queue = ? LIMIT ?)",
                    (queue, most),
                )
                total += fetch_one(
                    db,
                    "SELECT count(*) FROM (SELECT 1 FROM message INDEXED BY "
                    "message_scheduled WHERE state = 2 AND queue = ? AND run_at <= ? LIMIT ?)",
                    (queue, now, most),
                )
                if total >= most:
                    return most
            return total

        return self._database.read(count)

    def holder(self, unique_key: str) -> str | None:
        now = self.clock.now()
        return self._database.read(lambda db: holder(db, unique_key, now))

    # Workflows

    def workflow(self, id: str) -> WorkflowInfo | None:
        return self._database.read(lambda db: workflows.find(db, id))

    def workflows(self, limit: int = 50) -> list[WorkflowInfo]:
        return self._database.read(lambda db: workflows.latest(db, limit))

    def nodes(self, workflow: str) -> tuple[list[Node], list[Edge]]:
        return self._database.read(lambda db: workflows.nodes(db, workflow))

    # Results

    def watch(
        self, ids: Sequence[str], mailbox: Mailbox, *, notes: bool = False
    ) -> dict[str, Record]:
        if not isinstance(mailbox, (SocketMailbox, LocalMailbox)):
            raise TypeError(f"not a mailbox of this store: {mailbox!r}")
        if len(ids) == 1 and not notes:
            found = self._watch_by_link(ids[0], mailbox)
            if found is not None:
                return found
        records = self.get(ids)
        if all(record.final for record in records.values()):
            return records  # nothing to wait for: spare the write

        def register(db: apsw.Connection) -> dict[str, Record]:
            db.execute(
                "INSERT INTO waiter(message, address) SELECT seq, ? FROM message "
                f"WHERE id IN {AMONG} AND state < 6 ON CONFLICT DO NOTHING",
                (f"{mailbox.name}{NOTED}" if notes else mailbox.name, json.dumps(ids)),
            )
            return _records(db, ids, "AND state >= 6")

        return self._database.write(register, durable=False)

    def _watch_by_link(self, id: str, mailbox: Mailbox) -> dict[str, Record] | None:
        """Watch without a write; None if this message is to be watched by a row."""
        links = self._links
        if links is None or mailbox.fileno() < 0:
            return None
        left = links.leave(id, mailbox.name)
        if not left and not links.leads(id, mailbox.name):
            return None
        record = self.get([id]).get(id)
        if record is not None and not record.final:
            return {}
        if left:  # another that was there is another coroutine's, who is yet to hear
            links.withdraw(id, mailbox.name)
        return {} if record is None else {id: record}


def _records(db: apsw.Connection, ids: Sequence[str], also: str = "") -> dict[str, Record]:
    """Return the records of these ids, in their order."""
    if len(ids) == 1:
        row = fetch_one(db, f"{_RECORD} WHERE id = ? {also}", ids)
        return {} if row is None else {ids[0]: _record(row)}
    rows = fetch_all(db, f"{_RECORD} WHERE id IN {AMONG} {also}", (json.dumps(ids),))
    found = {record.id: record for record in map(_record, rows)}
    return {id: found[id] for id in ids if id in found}


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
    state = STATE_NAMES[code]
    if state in ("queued", "scheduled") and result is not None:
        state = "retrying"
    return Record(
        id=packed[ID],
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
