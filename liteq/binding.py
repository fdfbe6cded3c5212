"""What a signed message waits for, written into it, so that nothing else is given to it.

The edges of a workflow are rows of the store and are not signed. With a signer each message
therefore names, under its signature, the calls and gathers that it takes from: `bind()`
enters them where it is sent, and `check()` compares with them what it is given. The list of
a gather has parts that are not named there, be they ten thousand or added later: they bear
in their own signatures which gather they are parts of, and which ones that is inside of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from liteq import parts
from liteq.exceptions import InvalidSignature
from liteq.message import GATHER, Edge, Message, Take

__all__ = ["bind", "check"]

_ERROR: Final = "error"
_RESULT: Final = "result"
_LIST: Final = "list"
_COMPLETE: Final = frozenset({"fail", "collect"})  # policies that leave no part out


def bind(
    messages: Sequence[Message], edges: Sequence[Edge], around: Message | None = None
) -> Sequence[Message]:
    """Return messages that say what they take from, and what gathers theirs is inside of.

    `around` is that of the running call which puts them in its place or adds them to its
    gather.
    """
    if not edges and around is None:
        return messages
    gathers = {message.id: message for message in messages if message.task == GATHER}
    takes = _takes(edges, gathers)
    outer: dict[str | None, tuple[str, ...] | None] = {None: None}
    bound = []
    for message in messages:
        if message.task != GATHER:  # which is not signed: it runs nothing
            if message.gather not in outer:
                outer[message.gather] = _outer(message.gather, gathers, around)
            within, taken = outer[message.gather], takes.get(message.id)
            if within or taken:
                message = message._replace(
                    takes=tuple(taken) if taken else None, within=within or None
                )
        bound.append(message)
    return bound


def check(
    takes: Sequence[Take] | None,
    inputs: Sequence[tuple[str, str, int, bytes]],
    *,
    is_whole: bool = True,
) -> None:
    """Raise `InvalidSignature` unless these inputs (source, kind, position, value) are from
    what a message takes from, one from each, and of the kind that comes of it.

    `is_whole`: none may be missing. (Of one that ended before it could start, some do.)
    """
    expected = {take.position: take for take in takes or ()}
    if len(inputs) > len(expected) or (is_whole and len(inputs) < len(expected)):
        raise InvalidSignature(
            f"the message has inputs from {len(inputs)} others, and was signed to take "
            f"from {len(expected)}"
        )
    for source, kind, position, value in inputs:
        take = expected.pop(position, None)
        if take is None or take.source != source:
            signed = "no other there" if take is None else take.source
            raise InvalidSignature(
                f"the message has an input from {source!r} at position {position}, and was "
                f"signed to take from {signed}"
            )
        _check_kind(kind, value, take)


def _takes(edges: Sequence[Edge], gathers: dict[str, Message]) -> dict[str, list[Take]]:
    """Return what each target takes from; gathers are left out."""
    sizes = Counter(edge.target for edge in edges if edge.on == "part")
    takes: dict[str, list[Take]] = {}
    for source, target, on, position in edges:
        if on == "part":
            continue
        take = Take(source, position, _ERROR if on == "failure" else _RESULT)
        if on == "success" and source in gathers:
            policy = gathers[source].body.decode()
            take = take._replace(kind=policy, least=sizes[source])
        takes.setdefault(target, []).append(take)
    return takes


def _outer(
    gather: str | None, gathers: dict[str, Message], around: Message | None
) -> tuple[str, ...]:
    """Return the gathers that one is inside of, the innermost first."""
    found: list[str] = []
    while gather is not None:
        if around is not None and gather == around.gather:
            return (*found, *(around.within or ()))
        message = gathers.get(gather)
        gather = None if message is None else message.gather
        if gather is not None:
            found.append(gather)
    return tuple(found)


def _check_kind(found: str, value: bytes, take: Take) -> None:
    source, _, kind, least = take
    if kind == _RESULT and found == _LIST:
        kind = "fail"  # its source has put a group in its place
    if found != (kind if kind in (_ERROR, _RESULT) else _LIST):
        raise InvalidSignature(
            f"the message has an input of the kind {found!r} from {source}, and was signed "
            f"to take another ({kind})"
        )
    if found == _LIST:
        _check_list(value, kind, least, source)


def _check_list(value: bytes, policy: str, least: int, source: str) -> None:
    """Check of a list what no part's own signature can show: that it is not too short, and
    that it has errors only if it may. (A gather always has a part.)"""
    found = list(parts.unpack(value))
    if policy in _COMPLETE and len(found) < least:
        raise InvalidSignature(
            f"the list of the group {source} has {len(found)} parts, and at least {least} "
            "were signed"
        )
    for kind, part in found:
        if kind == _ERROR and policy != "collect":
            raise InvalidSignature(f"the list of the group {source} has an error in it")
        if kind == _LIST:
            _check_list(part, policy, 1, source)
