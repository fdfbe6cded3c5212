"""What a worker does in its store by the clock: look for what no wake-up told, and upkeep.

Where nothing has happened for a while, both are done at once, with each heartbeat: to wake up
is what costs an idle worker most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from liteq.brokers.base import Broker

__all__ = ["Housekeeping"]

_REST: Final = 3.0  # times as long as a slice took, until the next when there is more to do


class Housekeeping:
    """`queues` returns those that the worker consumes now; `ageing`: seconds after which
    waiting raises the priority of what is in them.

    `next_look` and `next_upkeep` say when each is due, in monotonic seconds. A worker that has
    nothing to do says when its next heartbeat is, else None."""

    upkeep: float = 2.0  # seconds between two slices when there is nothing to do
    backstop: float = 1.0  # seconds until a lost wake-up is made good
    quiet: int = 3  # looks in vain, after which an idle worker looks with its heartbeats

    def __init__(
        self, broker: Broker, queues: Callable[[], Sequence[str]], ageing: float | None
    ) -> None:
        self.next_look = self.next_upkeep = 0.0
        self._broker = broker
        self._queues = queues
        self._ageing = ageing
        self._in_vain = 0  # looks since the store has last changed

    def expect(self, now: float) -> None:
        """Look soon: there is traffic, of which a wake-up may be lost."""
        self.next_look = min(self.next_look, now + self.backstop)

    def look(self, now: float, idle_until: float | None) -> bool:
        """Tell whether others have changed the store since the last look."""
        changed = self._broker.changed()
        self._in_vain = 0 if changed else self._in_vain + 1
        self.next_look = self._when_quiet(idle_until) or now + self.backstop
        return changed

    def keep_up(self, idle_until: float | None) -> None:
        """Do a slice of upkeep. While there is more, it has a quarter of the worker's time: to
        delete a message costs less than a third of what running it did, so a worker keeps up
        with what it ends itself. With a fixed pause the rest would pile up."""
        begun = time.monotonic()
        if self._ageing is not None:
            self._broker.age(self._queues(), self._ageing)
        more = self._broker.maintain()
        now = time.monotonic()
        if more:
            self.next_upkeep = now + (now - begun) * _REST
        else:
            self.next_upkeep = self._when_quiet(idle_until) or now + self.upkeep

    def is_quiet(self) -> bool:
        """Tell whether nothing has happened for a while."""
        return self._in_vain >= self.quiet

    def _when_quiet(self, idle_until: float | None) -> float | None:
        return idle_until if self.is_quiet() else None
