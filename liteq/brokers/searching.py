"""What is looked for among messages, and how pieces of the answer become one.

A store finds messages by looking at a bounded slice at a time, each in a moment of its own,
so a search through millions holds nobody up. What a slice gives is small: whole records are
read of what is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import merge
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from liteq.brokers.values import State

__all__ = ["Found", "Search", "latest_first"]


class Search(NamedTuple):
    """Which messages are looked for; a field left as it is asks for nothing.

    `states`: those in one of these. `task`: a name, in which `*` stands for any text and `?`
    for one character. `since`, `until`: enqueued from then on, and before then (Unix
    seconds). `dead`: dead letters only; `reason`: with this text, in any case, in why;
    `died_since`, `died_until`: that became so from then on, and before then.
    `workflow`: the id of the one that they are nodes of.
    """

    states: frozenset[State] = frozenset()
    queue: str | None = None
    task: str | None = None
    since: float | None = None
    until: float | None = None
    dead: bool = False
    reason: str | None = None
    died_since: float | None = None
    died_until: float | None = None
    workflow: str | None = None


class Found(NamedTuple):
    """A message that was found. `number` is its place in the order of arrival."""

    number: int
    id: str
    task: str
    queue: str
    state: State


def latest_first(sources: Iterable[Iterator[Found]]) -> Iterator[Found]:
    """Merge searches of several places, each the latest first, into one.

    A message that moved from one place to another meanwhile is given once.
    """
    last = None
    for found in merge(*sources, key=lambda found: -found.number):
        if found.number != last:
            yield found
        last = found.number
