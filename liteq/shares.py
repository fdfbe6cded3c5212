"""Weighted turns: of which queue how many messages are taken next.

Each queue has a clock that moves on by 1/weight with each message taken, and the queue whose
clock is behind goes first. So over time each queue that has work gets messages in
proportion to its weight, whatever the order in which they came. A queue that was empty
goes on from where the others are: it saves up no turns, and it waits for none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["Shares", "split_weights"]


def split_weights(names: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """Return names without their weights ("high:3" is `high`), and the weights given.

    Raises `ValueError` for a weight that is no whole number above zero, and for a second
    one of a queue. What follows the last colon is no weight unless it is a number.
    """
    plain: list[str] = []
    weights: dict[str, int] = {}
    for given in names:
        name, colon, weight = given.strip().rpartition(":")
        if not colon or not name or not _is_number(weight):
            plain.append(given.strip())
            continue
        if not (weight.isascii() and weight.isdigit() and int(weight)):
            raise ValueError(
                f"the weight of queue {name!r} must be a whole number above 0, not {weight}"
            )
        if weights.setdefault(name, int(weight)) != int(weight):
            raise ValueError(f"queue {name!r} has two weights, {weights[name]} and {weight}")
        plain.append(name)
    return plain, weights


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class Shares:
    """The turns of one worker's queues; a queue without a weight has one of 1."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = dict(weights)
        self._clocks: dict[str, float] = {}
        self._empty: set[str] = set()

    def weight(self, queue: str) -> int:
        return self._weights.get(queue, 1)

    def plan(self, queues: Iterable[str], count: int) -> dict[str, int]:
        """Return how many of so many messages each queue is to give, those that are to be
        asked first before the others."""
        clocks = self._clocks_of(list(queues))
        planned: dict[str, int] = {}
        for _ in range(count if clocks else 0):
            queue = min(clocks, key=clocks.__getitem__)
            planned[queue] = planned.get(queue, 0) + 1
            clocks[queue] += 1 / self.weight(queue)
        return planned

    def took(self, queue: str, count: int, *, was_empty: bool) -> None:
        """Note how many a queue gave, and whether it had no more."""
        self._clocks[queue] = self._clocks.get(queue, 0.0) + count / self.weight(queue)
        if was_empty:
            self._empty.add(queue)

    def _clocks_of(self, queues: list[str]) -> dict[str, float]:
        busy = [self._clocks[q] for q in queues if q in self._clocks and q not in self._empty]
        now = min(busy, default=max(self._clocks.values(), default=0.0))
        for queue in queues:
            # Once for each time that it was found empty: were it done at every turn, the
            # queue would never be behind the others, and never be asked again.
            if queue in self._empty or queue not in self._clocks:
                self._empty.discard(queue)
                self._clocks[queue] = max(self._clocks.get(queue, now), now)
        return {queue: self._clocks[queue] for queue in queues}
