"""Workflows in an SQLite store, looked at as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import apsw

from liteq.brokers.connection import fetch_all, fetch_one
from liteq.brokers.schema import STATE_NAMES
from liteq.brokers.values import Node, State, WorkflowInfo
from liteq.message import GATHER, Edge

__all__ = ["delete_empty", "find", "latest", "nodes"]

_STATE: Final = "state, result IS NOT NULL AND state IN (1, 2)"  # and whether it is retrying
_COUNTS: Final = (
    f"SELECT {_STATE}, count(*), sum(state = 8 AND revoke = 'upstream') FROM message "
    f"WHERE workflow = ? AND task != '{GATHER}' GROUP BY 1, 2"
)
# One with a damaged envelope is called as its task is.
_NODES: Final = (
    f"SELECT {_STATE}, id, task, CASE WHEN json_valid(envelope) THEN "
    "coalesce(json_extract(envelope, '$.node'), json_extract(envelope, '$.shadow'), task) "
    "ELSE task END, revoke, started_at, settled_at "
    "FROM message WHERE workflow = ? ORDER BY seq"
)
_EDGES: Final = (
    "SELECT source.id, target.id, edge.fires, edge.position FROM message source "
    "JOIN edge ON edge.source = source.seq JOIN message target ON target.seq = edge.target "
    "WHERE source.workflow = ? ORDER BY source.seq, edge.position, target.seq"
)


def find(db: apsw.Connection, id: str) -> WorkflowInfo | None:
    """Return a workflow, if there is one."""
    row = fetch_one(db, "SELECT seq, id, name, created_at FROM workflow WHERE id = ?", (id,))
    return None if row is None else _counted(db, row)


def latest(db: apsw.Connection, limit: int) -> list[WorkflowInfo]:
    """Return the workflows that were enqueued last, the latest first."""
    rows = fetch_all(
        db, "SELECT seq, id, name, created_at FROM workflow ORDER BY seq DESC LIMIT ?", (limit,)
    )
    return [_counted(db, row) for row in rows]


def _counted(db: apsw.Connection, row: tuple[Any, ...]) -> WorkflowInfo:
    seq, id, name, created_at = row
    counts: dict[State, int] = {}
    upstream = 0
    for code, retrying, count, revoked in fetch_all(db, _COUNTS, (seq,)):
        state = _state(code, retrying)  # one that retries is queued, or delayed
        counts[state] = counts.get(state, 0) + count
        upstream += revoked or 0
    return WorkflowInfo(id, name, created_at, counts, upstream)


def nodes(db: apsw.Connection, id: str) -> tuple[list[Node], list[Edge]]:
    """Return a workflow's nodes in the order of their arrival, and the edges between them."""
    seq = fetch_one(db, "SELECT seq FROM workflow WHERE id = ?", (id,))
    found = [
        Node(
            id=id,
            name=str(name),
            task=task,
            state=_state(code, retrying),
            upstream=revoke == "upstream",
            started_at=started_at,
            settled_at=settled_at,
        )
        for code, retrying, id, task, name, revoke, started_at, settled_at in fetch_all(
            db, _NODES, (seq,)
        )
    ]
    edges = [
        Edge(source, target, fires.rpartition("was ")[2], position)
        for source, target, fires, position in fetch_all(db, _EDGES, (seq,))
    ]
    return found, edges


def delete_empty(db: apsw.Connection, seqs: Iterable[int]) -> None:
    """Delete those of these workflows that have no node left."""
    db.executemany(
        "DELETE FROM workflow WHERE seq = ?1 "
        "AND NOT EXISTS(SELECT 1 FROM message WHERE workflow = ?1)",
        [(seq,) for seq in seqs],
    )


def _state(code: int, retrying: int) -> State:
    return "retrying" if retrying else STATE_NAMES[code]
