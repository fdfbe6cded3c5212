"""Working a store off in place: claim → run → settle in the caller's thread, without waiting.

It is what the test mode and eager calls have for a worker. A message's fate is decided by
the same executor and written by the same settle as in a worker; there is no other path.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from liteq.brokers.base import Broker
from liteq.brokers.values import Lease, Said
from liteq.context import Report
from liteq.delivery import Delivery, FailedCalls, find_failed
from liteq.executor import Ended, Executor
from liteq.outcome import Released

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["Attempt", "InlineWorker", "Ran", "attempt_with"]

Attempt: TypeAlias = Callable[[Lease, FailedCalls, Report], Ended]

_DETAILS: Final = {"pool": "inline"}
_LAST: Final = (
    253_402_214_400.0  # the last day of the year 9999: no clock in a zone goes beyond
)


class Ran(NamedTuple):
    """One attempt that was made, and settled. `at`: when it began, Unix seconds."""

    lease: Lease
    ended: Ended
    at: float


class InlineWorker:
    """A worker without a loop of its own: it runs what is due while it is asked to.

    `attempt` makes one attempt of a lease; what it raises goes through to the caller, and
    the message is given back when the context ends, as by a worker that is stopped.
    `queues`: None for every queue in which something waits. `tasks`: the names that it
    knows (None: all); messages of others are parked. Use it as a context, so that the store
    knows it as long as it is at work. One thread at a time.
    """

    def __init__(
        self,
        broker: Broker,
        attempt: Attempt,
        *,
        queues: Sequence[str] | None = None,
        tasks: Collection[str] | None = None,
        name: str = "inline",
    ) -> None:
        self._broker = broker
        self._attempt = attempt
        self._fixed = tuple(queues) if queues is not None else None
        self._queues: tuple[str, ...] = self._fixed or ()
        self._tasks = tasks
        self._name = name
        self._id = 0

    def __enter__(self) -> Self:
        self._id = self._broker.register(self._name, self._find_queues(), 1, _DETAILS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._broker.unregister(self._id)

    def run_due(self) -> Iterator[Ran]:
        """Run what is due now and what comes due of it, yielding each attempt once it is
        settled. Whoever stops asking leaves the rest in the store."""
        while (lease := self._claim()) is not None:
            yield self._run(lease)

    def run_until(
        self,
        moment: float | None,
        move_to: Callable[[float], object],
        also: Callable[[], float | None] = lambda: None,
    ) -> Iterator[Ran]:
        """Run what is due, then have the broker's clock moved to when the next message is
        and go on, up to and including this instant (Unix seconds; None: until nothing is
        left that is due in some year). `also()` is called at each such time, does what it
        has to do then, and returns when that is next; it is called again when something
        has run."""
        while True:
            other = also()
            idle = True
            for ran in self.run_due():
                idle = False
                yield ran
            if not idle:
                continue
            due = min(filter(None, (self.next_due(), other)), default=None)
            if due is None or due > (_LAST if moment is None else moment):
                break
            move_to(due)
        if moment is not None:
            move_to(moment)

    def next_due(self) -> float | None:
        """Return when the next delayed message is due, Unix seconds; None if there is
        none. One may be due by now."""
        self._find_queues()
        return self._broker.step(self._id, queues=self._queues).next_due

    def is_due(self) -> bool:
        """Tell whether there is something to run now."""
        lease = self._claim()
        if lease is not None:
            self._broker.settle(self._id, lease, Released())
        return lease is not None

    def _claim(self) -> Lease | None:
        while True:
            queues = self._queues
            step = self._broker.step(self._id, queues=queues, limit=1, tasks=self._tasks)
            if step.leases:
                return step.leases[0]
            more = step.next_due is not None and step.next_due <= self._broker.clock.now()
            if not (more or step.aside) and self._find_queues() == queues:
                return None

    def _find_queues(self) -> tuple[str, ...]:
        """Look again which queues there are. Not at every claim: it counts all that waits."""
        if self._fixed is None:
            self._queues = tuple(sorted(self._broker.counts()))
        return self._queues

    def _run(self, lease: Lease) -> Ran:
        began = self._broker.clock.now()
        failed = find_failed(self._broker, lease.inputs)
        ended = self._attempt(lease, failed, self._reporter(lease))
        self._broker.settle(self._id, lease, ended.outcome)
        return Ran(lease, ended, began)

    def _reporter(self, lease: Lease) -> Report:
        def report(said: Said) -> bool:
            self._broker.step(self._id, notes=[(lease, said)])
            return False

        return report


def attempt_with(executor: Executor) -> Attempt:
    """Return what makes an attempt as a child of a worker does."""

    def attempt(lease: Lease, failed: FailedCalls, report: Report) -> Ended:
        delivery = Delivery(lease.packed, lease.delivery, lease.inputs, failed)
        return executor.attempt(delivery, report)

    return attempt
