"""What a running task does to its workflow: put a graph in its place, or add one to it.

Nothing is sent here. The graph is a part of the attempt's outcome, and is written in the
one step that settles it: if the process dies before, nothing of it has been.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from liteq import outcome, texts
from liteq.canvas import Signature
from liteq.exceptions import ImproperlyConfigured, Replaced
from liteq.message import PACKED_FIELDS, Edge, Graph, Message

if TYPE_CHECKING:
    from liteq.sending import Sender
    from liteq.task import Task

__all__ = ["put_beside", "put_in_place"]


def put_in_place(task: Task[..., Any], sig: Any) -> Replaced:
    """Put a signature in the place of the call that the task runs: return the exception
    that ends the attempt. See `Task.replace`."""
    request = task.request
    message = request.message
    if message is None:
        raise RuntimeError("replace() is for a call that a worker runs, under an id")
    _check("replace", sig)
    if "chord" in sig.options:
        raise ImproperlyConfigured(
            f"{sig!r} belongs to a chord, so it cannot take this call's place"
        )
    task.on_replace(sig)
    request.replaced = _replacement(task.app.sender, sig, message)
    return request.replaced


def put_beside(task: Task[..., Any], sig: Any, *, lazy: bool) -> Any:
    """Add a signature to the chord of the call that the task runs; return its result. See
    `Task.add_to_chord`."""
    request = task.request
    message = request.message
    if message is None or message.gather is None:
        raise ValueError("this call is not in the header of a chord, so it cannot add to one")
    if lazy:
        raise ValueError(
            "add_to_chord() sends the call when this one has succeeded, so it cannot be "
            "lazy: leave that out"
        )
    _check("add_to_chord", sig)
    added, result = _addition(task.app.sender, sig, message)
    request.added = added if request.added is None else request.added.joined(added)
    return result


def _check(method: str, sig: Any) -> None:
    if not isinstance(sig, Signature):
        raise TypeError(f"{method}() takes a signature, as task.s(…) makes it, not {sig!r}")


def _replacement(sender: Sender, sig: Signature[Any], message: Message) -> Replaced:
    """Return the exception that ends the attempt of a message and puts a signature in its
    place. Raises what sending the signature would raise."""
    composed = sender.compose(sig, take_over=message)
    new = _kept(message, message.with_packed(composed.replaced or {}))
    new, *others = sender.ready([new, *composed.messages], composed.edges, message)
    pairs = zip(PACKED_FIELDS, message.pack(), new.pack(), strict=True)
    changes = {name: now for name, was, now in pairs if now != was}
    texts.check(changes.values())
    return Replaced(sig, outcome.Replaced(changes, _graph(others, composed.edges)))


def _addition(sender: Sender, sig: Signature[Any], message: Message) -> tuple[Graph, Any]:
    """Return the graph that adds a signature to the gather of which a message is a part,
    and the signature's result. Raises what sending the signature would raise."""
    composed = sender.compose(sig, part_of=message.gather)
    messages = sender.ready(composed.messages, composed.edges, message)
    return _graph(messages, composed.edges), composed.result


def _kept(old: Message, new: Message) -> Message:
    """Return the new message with what stays with a call whoever runs in its place: its
    headers and stamps, where the new one does not have its own, and its unique key."""
    stamped = dict.fromkeys((*(old.stamped_headers or ()), *(new.stamped_headers or ())))
    return new._replace(
        headers={**(old.headers or {}), **(new.headers or {})} or None,
        stamps={**(old.stamps or {}), **(new.stamps or {})} or None,
        stamped_headers=tuple(stamped) or None,
        unique_key=old.unique_key,
        on_conflict=old.on_conflict,
        unique_for=old.unique_for,
        max_wait=old.max_wait,
    )


def _graph(messages: Iterable[Message], edges: Iterable[Edge]) -> Graph:
    """Return a graph in plain values, as it travels to the worker."""
    ways = tuple((e.source, e.target, e.on, e.position) for e in edges)
    packed = tuple(one.pack() for one in messages)
    for one in packed:  # here, where the task can be told: the worker is to write them
        texts.check(one)
    return Graph(packed, ways)
