"""How an attempt ended: a closed set of values, and their form on the wire.

An attempt ends in exactly one outcome, and one `settle` records it. `encode()` makes a
tuple of plain values for the pipe between a child and its worker; `decode()` reads it.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from liteq.clock import FromNow
from liteq.message import EXPIRES_AT, RUN_AT, Graph, Packed

__all__ = [
    "Failed",
    "Ignored",
    "Lost",
    "Outcome",
    "Released",
    "Replaced",
    "Retried",
    "Revoked",
    "Succeeded",
    "decode",
    "encode",
]


class Succeeded(NamedTuple):
    """The task returned. `result` is the serialised value (None: results are ignored).

    `added` is what it adds to its workflow: messages, and edges from them to one another
    and to a gather that has not ended; a "part" edge's position -1 stands for the next.
    """

    result: bytes | None
    runtime: float = 0.0
    children: str | None = None  # JSON: ids of what the task enqueued (its trail)
    added: Graph | None = None


class Replaced(NamedTuple):
    """The task put a graph in its place, whose last message takes over its id.

    `changes` (packed fields, as in `Retried`, and `task` as well) make the task's own
    message into that last one: it keeps its edges, its place in gathers and who waits
    for it, and starts anew, its inputs, retries and deliveries forgotten. `graph` holds
    the other messages, and the edges among them and to it; and what the task adds to its
    workflow, as in `Succeeded`. All is enqueued in this step.
    """

    changes: Mapping[str, Any]
    graph: Graph = Graph()
    runtime: float = 0.0


class Retried(NamedTuple):
    """The task asked to be run again at `run_at` (Unix seconds; what was said in seconds is
    `FromNow`), counting one retry.

    `changes` replaces packed fields of the message (body, queue, priority, expires_at,
    time_limit, soft_time_limit, envelope …); what it does not name stays.
    """

    run_at: float
    error: bytes
    changes: Mapping[str, Any] | None = None
    runtime: float = 0.0


class Failed(NamedTuple):
    """The task raised, was killed at its time limit, or could not be understood.

    `error` is a record of `failure.describe`. `dead` gives the reason for which the
    message is kept as a dead letter (an undecodable body); None for a plain failure.
    """

    error: bytes
    runtime: float = 0.0
    dead: str | None = None
    children: str | None = None


class Ignored(NamedTuple):
    """The task raised `Ignore`: it is over, and no result is kept."""

    runtime: float = 0.0


class Revoked(NamedTuple):
    """The task was revoked or had expired. `reason`: revoked, terminated, expired."""

    reason: str


class Released(NamedTuple):
    """The message goes back to its queue at once and this delivery is not counted.

    Nobody's fault: the worker stops, or had claimed more than it could start.
    """


class Lost(NamedTuple):
    """The process died under the task. The message is delivered again at once, or is
    kept as a dead letter when it has been delivered `max_deliveries` times."""

    reason: str


Outcome: TypeAlias = (
    Succeeded | Replaced | Retried | Failed | Ignored | Revoked | Released | Lost
)

_new: Final = tuple.__new__  # a third of what a named tuple's own call costs
_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (Succeeded, Replaced, Retried, Failed, Ignored, Revoked, Released, Lost)
}


def encode(outcome: Outcome) -> tuple[Any, ...]:
    """Return the outcome as a tuple of plain values, its kind first."""
    if type(outcome) is Succeeded and outcome.added is None:  # nearly all of them
        return ("Succeeded", *outcome)
    return (type(outcome).__name__, *map(_sent, outcome))


def decode(wire: tuple[Any, ...]) -> Outcome:
    """Return the outcome that `encode()` made this tuple of."""
    if wire[0] == "Succeeded" and wire[4] is None:
        return _new(Succeeded, wire[1:])
    outcome: Outcome = _new(_KINDS[wire[0]], wire[1:])
    match outcome:
        case Succeeded(added=tuple(added)):
            return outcome._replace(added=_received_graph(*added))
        case Replaced(changes, graph):
            return outcome._replace(changes=_received(changes), graph=_received_graph(*graph))
        case Retried(run_at, _, changes):
            return outcome._replace(run_at=_received(run_at), changes=_received(changes))
        case _:
            return outcome


# The wire knows plain values alone. What counts from now is a complex number there, of an
# instant and seconds, which nothing else is.


def _sent(value: Any) -> Any:
    kind = type(value)
    if kind is FromNow:
        return complex(value, value.seconds)
    if kind is dict:
        return {name: _sent(one) for name, one in value.items()}
    if kind is Graph:
        return tuple(_sent_message(packed) for packed in value.messages), value.edges
    return value


def _received(value: Any) -> Any:
    kind = type(value)
    if kind is complex:
        return FromNow(value.real, value.imag)
    if kind is dict:
        return {name: _received(one) for name, one in value.items()}
    return value


def _sent_message(packed: Packed) -> Packed:
    counts = FromNow in (type(packed[RUN_AT]), type(packed[EXPIRES_AT]))
    return tuple(map(_sent, packed)) if counts else packed


def _received_graph(messages: tuple[Packed, ...], edges: tuple[Any, ...]) -> Graph:
    return Graph(tuple(_received_message(packed) for packed in messages), edges)


def _received_message(packed: Packed) -> Packed:
    counts = complex in (type(packed[RUN_AT]), type(packed[EXPIRES_AT]))
    return tuple(map(_received, packed)) if counts else packed
