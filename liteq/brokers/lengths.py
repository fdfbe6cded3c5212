"""How many messages may wait in a queue, as a store is told when it is made.

The limit is the producer's: it is looked at when messages are enqueued, and by nobody who
gives back, retries or hands on what is there already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from liteq.exceptions import ImproperlyConfigured, QueueFull

__all__ = ["LOOKS", "Lengths", "queue_full"]

# How often a sender looks for room. Before each time but the first it has ended a slice of
# what has expired: that waits for nothing but its mark, and there may be no worker to set it.
LOOKS: Final = 10


class Lengths:
    """The limits by queue; `most` is that of every queue that has none of its own.

    `any`: whether there are limits at all.
    """

    __slots__ = ("_most", "_own", "any")

    def __init__(self, most: int | None, own: Mapping[str, int] | None) -> None:
        self._most: int | None = _checked("max_length", most)
        self._own: dict[str, int] = {
            name: _checked(f"max_lengths[{name!r}]", given)
            for name, given in (own or {}).items()
        }
        self.any = self._most is not None or bool(self._own)

    def of(self, queue: str) -> int | None:
        """Return how many messages may wait in a queue; None for any number."""
        return self._own.get(queue, self._most)

    def among(self, queues: set[str]) -> dict[str, int]:
        """Return the limits of those of these queues that have one."""
        found = {queue: self.of(queue) for queue in queues}
        return {queue: most for queue, most in found.items() if most is not None}


def queue_full(queue: str, most: int) -> QueueFull:
    """Return the error of a producer for whose messages a queue has no room."""
    full = QueueFull(
        f"the queue {queue!r} has no room for this: at most {most} messages may wait there "
        "(its max_length); nothing was stored"
    )
    full.queue = queue
    return full


def _checked(name: str, given: Any) -> Any:
    if given is not None and (
        isinstance(given, bool) or not isinstance(given, int) or given < 1
    ):
        raise ImproperlyConfigured(
            f"{name} must be a whole number above 0 (how many messages may wait), not {given!r}"
        )
    return given
