"""Tasks of which one run is for many calls: how many, and what that run's value says of each.

The options have the names of celery-batches. Calls that wait for others are leased to their
worker meanwhile (`liteq.workers.batching`), so that none is lost with it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from liteq import context
from liteq.context import Context
from liteq.options import checked_seconds

__all__ = ["MOST", "Ending", "Flush", "alone", "checked_flush", "endings", "flush_of"]

MOST: Final = 10_000  # calls in a run: all of them are in memory, and each ends by itself

# What a call came to: its value, or the exception it ended with.
Ending: TypeAlias = tuple[Any, BaseException | None]

# What a task of many calls cannot have, and why.
_REFUSED: Final[Mapping[str, str]] = {
    "max_concurrency": "the calls of one run would wait for each other's end",
    "pydantic": "the function is given calls, not their arguments",
}


class Flush(NamedTuple):
    """When calls that were batched are run: when there are `every` of them, or when the first
    has waited `interval` seconds."""

    every: int
    interval: float


def flush_of(task: Any) -> Flush | None:
    """Return when the calls of a task are run together; None if each is run alone. Raises as
    `checked_flush()` does, for what its class has."""
    if getattr(task, "flush_every", None) is None:
        return None
    names = ("flush_every", "flush_interval", *_REFUSED)
    return checked_flush({name: getattr(task, name, None) for name in names})


def checked_flush(options: Mapping[str, Any]) -> Flush | None:
    """Return the same of the options of a task. Raises `TypeError` or `ValueError` for
    invalid values, and for options that do not go together."""
    every, interval = options.get("flush_every"), options.get("flush_interval")
    seconds = 1.0 if interval is None else checked_seconds("flush_interval", interval)
    if seconds <= 0:
        raise ValueError(
            f"flush_interval must be a positive number of seconds, not {interval!r}"
        )
    if every is None:
        return None
    if isinstance(every, bool) or not isinstance(every, int):
        raise TypeError(f"flush_every must be a whole number of calls, not {every!r}")
    if not 1 <= every <= MOST:
        raise ValueError(f"flush_every {every} is not between 1 and {MOST:,}")
    if options.get("acks_late") is False:
        raise ValueError(
            "acks_late=False and flush_every do not go together: a call that waits for others "
            "would be lost with its worker. Set acks_late=True on the task"
        )
    for name, why in _REFUSED.items():
        if options.get(name):
            raise ValueError(f"{name} and flush_every do not go together: {why}")
    return Flush(every, seconds)


def alone(task: Any, many: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of an attempt that is the only one of its run."""

    def run(*args: Any, **kwargs: Any) -> Any:
        call = context.current() or Context()
        call.ending = ()
        value = many([call])
        if isinstance(value, Coroutine):
            return _only_awaited(task.name, value, call)
        return _only(task.name, value, call)

    return run


async def _only_awaited(name: str, value: Coroutine[Any, Any, Any], call: Context) -> Any:
    return _only(name, await value, call)


def _only(name: str, value: Any, call: Context) -> Any:
    [(value, error)] = endings(name, value, None, [call])
    if error is not None:
        raise error
    return value


def endings(
    name: str, value: Any, error: BaseException | None, calls: Sequence[Context]
) -> Sequence[Ending]:
    """Return how each of these calls ended, in their order, when their run came to this value
    or exception. A list or tuple has a value for each, or the exception that this one ends
    with. None, and an exception, are for each that was not told its own end."""
    count = len(calls)
    if error is None and value is not None:
        listed = isinstance(value, (list, tuple))
        if listed and len(value) == count:
            return [_ending(one) for one in value]
        shown = f"{len(value)} values" if listed else f"a value of type {type(value).__name__}"
        error = TypeError(
            f"task {name!r} was given {count} calls and returned {shown}: with flush_every it "
            "returns None, or a list with a value for each call, in their order"
        )
    return [call.ending or (None, error) for call in calls]


def _ending(value: Any) -> Ending:
    return (None, value) if isinstance(value, BaseException) else (value, None)
