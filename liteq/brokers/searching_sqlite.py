"""Searching an SQLite store: slice by slice, each a transaction of its own.

Three ways lead to the messages, the latest first. An index that is in the order of arrival
(dead letters, what waits, what failed, a workflow) is walked. One in another order is
sorted while it is small: what is queued, delayed, running or parked. And the table itself
is walked for the rest, at most `_WALKED` rows in a transaction, whatever they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import apsw

from liteq.brokers.connection import fetch_all, fetch_one
from liteq.brokers.schema import EARLY, STATE_CODES, STATE_NAMES
from liteq.brokers.searching import Found, Search, latest_first
from liteq.brokers.values import State
from liteq.message import GATHER

__all__ = ["complete", "find"]

T = TypeVar("T")
Read = Callable[[Callable[[apsw.Connection], T]], T]

_WALKED: Final = 10_000  # rows that one transaction looks at: some milliseconds
_GIVEN: Final = 500  # messages that it gives
_SORTED: Final = 5_000  # rows of an index in another order
_LAST: Final = 1 << 62

# Where a state is found in the order of arrival, and where in another.
_IN_ORDER: Final = {
    "waiting": "INDEXED BY message_waiting WHERE state = 0",
    "failed": "INDEXED BY message_ended WHERE state > 6 AND state = 7",
    "revoked": "INDEXED BY message_ended WHERE state > 6 AND state = 8",
    "ignored": "INDEXED BY message_ended WHERE state > 6 AND state = 9",
}
_OUT_OF_ORDER: Final = {
    "queued": ("INDEXED BY message_queued WHERE state = 1",),
    "scheduled": ("INDEXED BY message_scheduled WHERE state = 2",),
    "running": ("INDEXED BY message_running WHERE state = 3",),
    "parked": ("INDEXED BY message_parked WHERE state = 4",),
    "limited": ("INDEXED BY message_limited WHERE state = 5",),
    "retrying": (
        "INDEXED BY message_queued WHERE state = 1",
        "INDEXED BY message_scheduled WHERE state = 2",
    ),
}


def find(read: Read[Any], search: Search, before: int | None) -> Iterator[Found]:
    """Give what is looked for, the latest first, from behind a number on."""
    if search.workflow is not None:
        workflow = read(
            lambda db: fetch_one(
                db, "SELECT seq FROM workflow WHERE id = ?", (search.workflow,)
            )
        )
        if workflow is None:
            return iter(())
        places = [f"INDEXED BY message_workflow WHERE workflow = {workflow:d}"]
    elif search.dead:
        places = ["INDEXED BY message_dead WHERE dead IS NOT NULL"]
    else:
        places = read(lambda db: _places(db, search.states))
    start = _LAST if before is None else before
    return latest_first([_walk(read, place, search, start) for place in places])


def complete(db: apsw.Connection, prefix: str, limit: int) -> list[str]:
    """Return ids that begin with this text, in their order."""
    rows = fetch_all(
        db,
        f"SELECT id FROM message WHERE id >= ?1 AND id < ?2 AND task != '{GATHER}' "
        "ORDER BY id LIMIT ?3",
        (prefix, prefix + chr(0x10FFFF), limit),
    )
    return [id for (id,) in rows]


def _places(db: apsw.Connection, states: frozenset[State]) -> list[str]:
    """Return where these states are: the whole table, if no index serves all of them."""
    places: dict[str, None] = {}
    for state in sorted(states):
        if state in _IN_ORDER:
            places[_IN_ORDER[state]] = None
            continue
        for place in _OUT_OF_ORDER.get(state, ()):
            rows = f"SELECT 1 FROM message {place} LIMIT {_SORTED}"
            if fetch_one(db, f"SELECT count(*) FROM ({rows})") == _SORTED:
                return ["WHERE true"]
            places[place] = None
        if state not in _OUT_OF_ORDER:
            return ["WHERE true"]
    return list(places) or ["WHERE true"]


def _walk(read: Read[Any], place: str, search: Search, before: int) -> Iterator[Found]:
    where, bindings = _conditions(search)
    # The limit inside bounds what is looked at, and keeps SQLite from joining the two.
    rows = (
        "SELECT seq, id, task, queue, state, result IS NOT NULL AS tried, enqueued_at, dead, "
        f"settled_at FROM message {place} AND seq < ? ORDER BY seq DESC LIMIT {_WALKED}"
    )
    wanted = f"SELECT seq, id, task, queue, state, tried FROM ({rows}) {where} LIMIT {_GIVEN}"
    looked_at = (
        f"SELECT count(*), min(seq) FROM (SELECT seq FROM message {place} AND seq < ? "
        f"ORDER BY seq DESC LIMIT {_WALKED})"
    )

    def look(db: apsw.Connection) -> tuple[list[tuple[Any, ...]], int | None]:
        found = fetch_all(db, wanted, (before, *bindings))
        if len(found) == _GIVEN:
            return found, found[-1][0]
        count, last = fetch_one(db, looked_at, (before,))
        return found, last if count == _WALKED else None

    following: int | None = before
    while following is not None:
        found, following = read(look)
        for seq, id, task, queue, code, tried in found:
            yield Found(seq, id, task, queue, _state(code, tried=tried))
        before = following or 0


def _state(code: int, *, tried: int) -> State:
    state = STATE_NAMES[code]
    return "retrying" if tried and state in ("queued", "scheduled") else state


def _conditions(search: Search) -> tuple[str, Sequence[Any]]:
    parts: list[str] = [f"task != '{GATHER}'", f"NOT ({EARLY})"]
    bindings: list[Any] = []

    def also(condition: str, value: Any) -> None:
        if value is not None:
            parts.append(condition)
            bindings.append(value)

    if search.states:
        names = "CASE WHEN tried AND state IN (1, 2) THEN -1 ELSE state END"
        codes = [STATE_CODES.get(state, -1) for state in sorted(search.states)]
        also(f"{names} IN (SELECT value FROM json_each(?))", json.dumps(codes))
    also("queue = ?", search.queue)
    if search.task is not None and set(search.task) & set("*?"):
        also("task GLOB ?", search.task.replace("[", "[[]"))
    else:
        also("task = ?", search.task)
    also("enqueued_at >= ?", search.since)
    also("enqueued_at < ?", search.until)
    if search.dead:
        parts.append("dead IS NOT NULL")
    if search.reason is not None:
        also("instr(lower(dead), lower(?)) > 0", search.reason)
    also("settled_at >= ?", search.died_since)
    also("settled_at < ?", search.died_until)
    return f"WHERE {' AND '.join(parts)}", bindings
