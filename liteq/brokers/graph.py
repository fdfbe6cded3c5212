"""What a store is given at once must fit together: messages and the edges between them.

Pure checks, the same for every store. Whoever compiles a workflow checks more, and says
it in the user's words; a store is the last line, for what it lets in may wait for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from liteq.exceptions import InvalidTaskError
from liteq.message import BODY, GATHER, ID, TASK, Packed

__all__ = ["POLICIES", "cannot_wait", "count_edges", "divide_edges"]

POLICIES: Final = frozenset({b"fail", b"collect", b"skip", b"count"})
_KINDS: Final = frozenset({"success", "failure", "part"})


def count_edges(
    messages: Sequence[Packed],
    edges: Sequence[tuple[str, str, str, int]],
    there: Packed | None = None,
) -> dict[str, int]:
    """Return how many ends each of these messages waits for; those that do not are left
    out. Of the messages only id, task and body are looked at. `there` is one that is in
    the store, and that edges may lead to and come from as well.

    Raises `InvalidTaskError` if an edge leads elsewhere, is of an unknown kind, or of one
    that its target cannot wait for; if two messages are joined twice; if a gather has no
    known policy; and if messages wait for one another, naming them.
    """
    tasks: dict[str, str] = {}
    place: dict[str, int] = {}
    for number, packed in enumerate(messages if there is None else (*messages, there)):
        id, task = packed[ID], packed[TASK]
        tasks[id] = task
        place[id] = number
        if task == GATHER and (body := packed[BODY]) not in POLICIES:
            raise InvalidTaskError(
                f"the gather {id!r} has the policy {body!r}: it can be "
                f"{', '.join(repr(policy) for policy in sorted(POLICIES))}"
            )
    counted: dict[str, int] = {}
    kinds: dict[str, str] = {}
    in_order = True
    for source, target, on, _ in edges:
        kind = kinds.get(target)
        if kind is None:
            _check_first(source, target, on, tasks)
            kinds[target], counted[target] = on, 1
        elif kind != on or on == "failure":
            raise InvalidTaskError(
                f"{target!r} cannot wait for {source!r} with {on!r}, for it waits for another "
                f"message with {kind!r}: an error callback has one message that it waits for, "
                "a gather has parts, and any other message waits for successes"
            )
        else:
            counted[target] += 1
        # What is enqueued in the order in which it can run, as workflows are, has no cycle.
        in_order = in_order and place.get(source, -1) < place[target]
    if len({(edge[0], edge[1]) for edge in edges}) != len(edges):
        raise InvalidTaskError(f"two messages are joined twice: {_twice(edges)}")
    if not in_order:
        _refuse_cycle(edges, tasks)
    return counted


def divide_edges(
    messages: Sequence[Packed],
    edges: Sequence[tuple[str, str, str, int]],
    there: str | None = None,
) -> tuple[list[tuple[str, str, str, int]], list[tuple[str, str, str, int]]]:
    """Return the edges of a running task's graph that lead to these messages, or to the one
    that is in the store under the id `there`; and those that add parts to other gathers.

    Raises `InvalidTaskError` for any other edge.
    """
    ids = {packed[ID] for packed in messages}
    inner, parts = [], []
    for edge in edges:
        source, target, on, _ = edge
        if target in ids or target == there:
            inner.append(edge)
        elif on == "part" and source in ids:
            parts.append(edge)
        else:
            raise InvalidTaskError(
                f"{target!r} cannot be made to wait for {source!r} with {on!r}: a task may "
                "add parts to a gather, and nothing else to what is in the store"
            )
    return inner, parts


def _check_first(source: str, target: str, on: str, tasks: Mapping[str, str]) -> None:
    if target not in tasks:
        raise InvalidTaskError(
            f"{target!r} cannot be made to wait for {source!r}: it is not among the messages "
            "that are enqueued with this edge"
        )
    if on not in _KINDS:
        raise InvalidTaskError(
            f"the edge from {source!r} to {target!r} is of an unknown kind: {on!r}"
        )
    if (on == "part") != (tasks[target] == GATHER):
        what = "a gather" if on == "part" else "a task"
        raise InvalidTaskError(
            f"{target!r} cannot wait for {source!r} with {on!r}: it is not {what}"
        )


def cannot_wait(target: str, source: str, *, over: bool) -> InvalidTaskError:
    """Return why a message cannot wait for another that is not enqueued with it: that is over,
    or not in the store."""
    why = "is not in the store: enqueue both in one call"
    if over:
        why = (
            "was sent before and is over: an id is used once, and a signature that was frozen, "
            "or has a task_id, keeps its id. Make a new signature for another call"
        )
    return InvalidTaskError(f"{target!r} cannot wait for {source!r}, which {why}")


def _twice(edges: Sequence[tuple[str, str, str, int]]) -> str:
    seen = set()
    for source, target, *_ in edges:
        if (source, target) in seen:
            return f"{source!r} and {target!r}"
        seen.add((source, target))
    return ""


def _refuse_cycle(edges: Sequence[tuple[str, str, str, int]], tasks: Mapping[str, str]) -> None:
    """Take away what waits for nothing, then what waits only for that, and so on: what
    is left waits for one another."""
    behind: dict[str, list[str]] = {}
    before: dict[str, list[str]] = {}
    for source, target, *_ in edges:
        if source in tasks:
            behind.setdefault(source, []).append(target)
            before.setdefault(target, []).append(source)
    unmet = {id: len(sources) for id, sources in before.items()}
    free = deque(id for id in behind if id not in unmet)
    while free:
        for target in behind.get(free.popleft(), ()):
            unmet[target] -= 1
            if unmet[target] == 0:
                free.append(target)
    left = {id for id, number in unmet.items() if number}
    if not left:
        return
    walk = [next(iter(left))]
    while walk[-1] not in walk[:-1]:
        walk.append(next(source for source in before[walk[-1]] if source in left))
    cycle = walk[walk.index(walk[-1]) :][::-1]
    names = " → ".join(f"{tasks[id]}[{id}]" for id in cycle[:20])
    more = f" → … ({len(cycle) - 1} messages)" if len(cycle) > 20 else ""
    raise InvalidTaskError(f"these messages wait for one another: {names}{more}")
