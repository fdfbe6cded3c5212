"""Searching a Redis store: a script for each slice of each place where messages are.

Most places are in the order of arrival. What is delayed, parked or running is in another
and is looked through as a whole, to hold the latest of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import nlargest
from typing import Any, Final

from liteq.brokers.redis_form import LETTERS, STATES, Fields
from liteq.brokers.searching import Found, Search, latest_first
from liteq.brokers.values import State

__all__ = ["complete", "find"]

_SLICE: Final = 500  # messages that one script looks at: a millisecond, two if all fit
_SLICE_OUT_OF_ORDER: Final = 1_000  # of which most are not even read
_ENDED: Final = "SFRI"

Call = Callable[..., list[bytes | None]]
Place = tuple[str, str, str]  # kind, key, letters of the states wanted: see find.lua


def find(
    call: Call, queues: Callable[[], Iterable[str]], search: Search, before: int | None
) -> Iterator[Found]:
    """Give what is looked for, the latest first, from behind a number on. `call` calls a
    script, `queues` names the queues."""
    return latest_first(
        [_walk(call, place, search, before) for place in _places(search, queues)]
    )


def complete(ask: Callable[..., Any], keys: str, prefix: str) -> Iterator[list[str]]:
    """Give ids that begin with this text, slice by slice of all keys: a server has no index
    of them. `keys` is what the keys of messages begin with."""
    pattern = "".join(f"\\{c}" if c in "*?[]\\" else c for c in keys + prefix) + "*"
    cursor = "0"
    while True:
        at, found = ask("SCAN", cursor, "MATCH", pattern, "COUNT", "5000")
        if found:
            yield [key.decode()[len(keys) :] for key in found]
        cursor = at.decode()
        if cursor == "0":
            return


def _places(search: Search, queues: Callable[[], Iterable[str]]) -> list[Place]:
    wanted = "".join(sorted(LETTERS[state] for state in search.states))
    if search.workflow is not None:
        return [("z", f"nodes:{search.workflow}", wanted)]
    if search.dead:
        return [("z", "dead", wanted)]
    letters = wanted or f"{_ENDED}wqydprl"
    names = [search.queue] if search.queue is not None else []
    if search.queue is None and set(letters) & set("wqydl"):
        names = sorted(queues())
    places: list[Place] = [("z", f"over:{of}", "") for of in letters if of in _ENDED]
    if "r" in letters:
        places.append(("r", "", ""))
    if "p" in letters:
        places.append(("u", "parked", ""))
    if "y" in letters and not {"q", "d"} <= set(letters):
        places.append(("z", "retrying", "y"))
    also = "y" if {"q", "d", "y"} <= set(letters) else ""
    for name in names:
        places += [("z", f"w:{name}", "")] if "w" in letters else []
        places += [("z", f"limited:{name}", "")] if "l" in letters else []
        places += [("q", f"q:{name}", f"q{also}")] if "q" in letters else []
        places += [("u", f"d:{name}", f"d{also}")] if "d" in letters else []
    return places


def _walk(call: Call, place: Place, search: Search, before: int | None) -> Iterator[Found]:
    kind, key, letters = place
    if kind in "ur":
        yield from _sorted(call, place, search, before)
        return
    following: str | None = "inf" if before is None else str(before)
    while following is not None:
        following, found = _look(call, kind, key, following, letters, search)
        yield from sorted(found, reverse=True)


# Most callers want a screenful, and whoever wants all takes more at a time.
_HELD: Final = (100, 1_000, 10_000)


def _sorted(call: Call, place: Place, search: Search, before: int | None) -> Iterator[Found]:
    kind, key, letters = place

    sizes = iter(_HELD)
    size = next(sizes)
    while True:
        latest: list[Found] = []
        following: str | None = "0"
        while following is not None:
            least = latest[-1].number if len(latest) == size else None
            following, found = _look(call, kind, key, following, letters, search, least)
            latest += (one for one in found if before is None or one.number < before)
            latest = nlargest(size, latest)
        yield from latest
        if len(latest) < size:
            return
        before = latest[-1].number
        size = next(sizes, size)


def _look(
    call: Call,
    kind: str,
    key: str,
    following: str,
    letters: str,
    search: Search,
    above: int | None = None,
) -> tuple[str | None, list[Found]]:
    fields = Fields(
        call(
            "find",
            kind,
            key,
            following,
            _SLICE_OUT_OF_ORDER if kind == "u" else _SLICE,
            letters,
            search.queue,
            search.task,
            search.since,
            search.until,
            "1" if search.dead else "",
            search.reason,
            search.died_since,
            search.died_until,
            above,
        )
    )
    behind = fields.one()
    found = []
    while fields.more():
        number, id, task, queue = fields.number(), fields.text(), fields.text(), fields.text()
        letter = fields.bytes()
        state: State = "retrying" if letter == b"y" else STATES[letter]
        found.append(Found(number, id, task, queue, state))
    return None if behind is None else behind.decode(), found
