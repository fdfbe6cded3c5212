"""Calls of tasks that take many at once, until there are enough of them for a run, or the
first has waited long enough. A worker holds their leases meanwhile: like running calls, they
are not lost with it, and a stop gives them back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import heappop, heappush, merge
from typing import Any, Final, NamedTuple

from liteq.brokers.values import Lease
from liteq.flushing import Flush, flush_of
from liteq.loggers import get_logger
from liteq.message import BODY, EXPIRES_AT, TASK
from liteq.workers.timelimits import Limits

__all__ = ["Batching"]

logger = get_logger("liteq.worker")

_MOST_BYTES: Final = 8 * 1024 * 1024  # of arguments in a run: its job is in memory twice
_FEWER: Final = 10  # times as few calls are in a run with one that may kill its process
_SOON: Final = 0.1  # seconds in which others come that were taken from the same dead worker
_IN_TIME: Final = 0.5  # seconds before it expires at which a call waits no longer
_AT_ONCE: Final = 256  # calls that are claimed in a step that may all be to wait


class _Kind(NamedTuple):
    """Which calls may be in a run together."""

    task: str
    again: bool  # they have been leased to a process that died
    limits: Limits


class _Group:
    """The calls of one kind, by the numbers of their jobs."""

    __slots__ = ("_dues", "bytes", "calls")

    def __init__(self) -> None:
        self.calls: dict[int, int] = {}  # bytes of each, in their order
        self.bytes = 0  # of all
        self._dues: list[tuple[float, int]] = []  # a heap; some may wait no more

    @property
    def due(self) -> float:
        """When the first of them is due: not the one that came first, if one expires."""
        while self._dues[0][1] not in self.calls:
            heappop(self._dues)
        return self._dues[0][0]

    def put(self, number: int, lease: Lease, due: float) -> None:
        size = len(lease.packed[BODY]) + sum(len(given.value) for given in lease.inputs)
        self.calls[number] = size
        self.bytes += size
        heappush(self._dues, (due, number))

    def put_behind(self, other: _Group) -> None:
        """Add those of another group."""
        self.calls.update(other.calls)
        self.bytes += other.bytes
        self._dues = list(merge(self._dues, sorted(other._dues)))

    def take(self, most: int) -> list[int]:
        """Return the first of them, which do not wait any more."""
        taken: list[int] = []
        size = 0
        for number, more in self.calls.items():
            size += more
            if len(taken) == most or (taken and size > _MOST_BYTES):
                break
            taken.append(number)
        for number in taken:
            self.drop(number)
        return taken

    def drop(self, number: int) -> None:
        self.bytes -= self.calls.pop(number)


class Batching:
    """Those of one worker. `tasks` returns those that the app has now, by name; `sizes` has
    when those that take many calls are run, `waiting` the calls, by their kind.
    `time` tells when calls expire. `max_deliveries` is the store's."""

    def __init__(
        self,
        tasks: Callable[[], Mapping[str, Any]],
        monotonic: Callable[[], float],
        time: Callable[[], float],
        max_deliveries: int,
    ) -> None:
        self._tasks = tasks
        self._now = monotonic
        self._time = time
        self._max_deliveries = max_deliveries
        self._more = 0  # calls that a step may bring, since all of the last ones were to wait
        self.sizes: dict[str, Flush] = {}
        self.waiting: dict[_Kind, _Group] = {}

    def __len__(self) -> int:
        return sum(len(group.calls) for group in self.waiting.values())

    def look_again(self) -> None:
        """Ask the tasks anew: there are others than before."""
        before, self.sizes = self.sizes, {}
        for name, task in self._tasks().items():
            try:
                size = flush_of(task)
            except (TypeError, ValueError):
                continue  # each of its calls fails with that
            if size is not None and size.every > 1:
                self.sizes[name] = size
                if name not in before and (why := self._reason(task)):
                    logger.warning("calls of %s are run one by one: %s", name, why)

    def _reason(self, task: Any) -> str | None:
        """Return why no calls of a task may wait for others, if that is so."""
        if not task.acks_late:
            return "without acks_late those that wait for others would be lost with this worker"
        if (task.deliveries_allowed() or self._max_deliveries) == 1:
            return "with max_deliveries=1 those that wait for others would end with this worker"
        return None

    def wants(self, lease: Lease) -> bool:
        """Tell whether a call is to be run with others.

        One that was leased to a process that died may be what killed it. It takes fewer with
        it the second time, and none the third. One for which this is the last start, as
        without `acks_late`, would be lost with this worker as it waits, or with another call.
        """
        return (
            lease.packed[TASK] in self.sizes
            and lease.delivery <= 2
            and not lease.is_last_start(self._max_deliveries)
        )

    def room(self, room: int) -> int:
        """Return how many calls to claim when there are children for this many: more, while
        those that come are to wait for others, for which no child has to be free."""
        return max(room, self._more) if room and self.sizes else room

    def fitting(
        self, leases: Sequence[Lease], room: int, asked: int
    ) -> tuple[list[Lease], list[Lease]]:
        """Return those of these leases that are to wait for others or have a child, where there
        are children for so many, and those that are too many. `asked`: how many were asked
        for. If all are to wait, more may be claimed the next time."""
        fitting: list[Lease] = []
        surplus: list[Lease] = []
        alone = 0
        for lease in leases:
            waits = self.wants(lease)
            alone += not waits
            (fitting if waits or alone <= room else surplus).append(lease)
        if surplus:
            self._more = 0
        elif not alone and len(leases) == asked:
            most = max(size.every for size in self.sizes.values())
            self._more = min(2 * asked, most, _AT_ONCE)
        return fitting, surplus

    def put(self, number: int, lease: Lease, limits: Limits) -> None:
        """Let a call, whose run has these time limits, wait for others."""
        name, again = lease.packed[TASK], lease.delivery > 1
        interval = self.sizes[name].interval
        if again:  # it has waited
            interval = min(interval, _SOON)
        if (expires_at := lease.packed[EXPIRES_AT]) is not None:
            interval = min(interval, max(0.0, expires_at - self._time() - _IN_TIME))
        group = self.waiting.setdefault(_Kind(name, again, limits), _Group())
        group.put(number, lease, self._now() + interval)

    def put_back(self, leases: Mapping[int, Lease], limits: Limits) -> None:
        """Have the calls of a run wait again, before all others: for a free child alone, since
        for others they have waited."""
        [(name, again)] = {(one.packed[TASK], one.delivery > 1) for one in leases.values()}
        kind = _Kind(name, again, limits)
        group = _Group()
        for number, lease in leases.items():
            group.put(number, lease, self._now())
        if (before := self.waiting.pop(kind, None)) is not None:
            group.put_behind(before)
        self.waiting[kind] = group

    def ripe(self, *, all: bool = False) -> Iterator[list[int]]:
        """Yield the numbers of each run that is to begin now, or, with `all`, of all there
        are. Who stops asking leaves the rest."""
        for kind in list(self.waiting):
            while (group := self.waiting.get(kind)) is not None:
                most = self._most(kind) or len(group.calls)
                full = len(group.calls) >= most or group.bytes >= _MOST_BYTES
                if not (all or full or group.due <= self._now()):
                    break
                taken = group.take(most)
                if not group.calls:
                    del self.waiting[kind]
                yield taken

    def _most(self, kind: _Kind) -> int | None:
        """Return how many of a kind a run is for; None for a task that is known no more."""
        size = self.sizes.get(kind.task)
        if size is None:
            return None
        return -(-size.every // _FEWER) if kind.again else size.every

    def drop(self, number: int) -> bool:
        """Let a call wait no more; False if it does not."""
        for kind, group in self.waiting.items():
            if number in group.calls:
                group.drop(number)
                if not group.calls:
                    del self.waiting[kind]
                return True
        return False

    def next_at(self) -> float:
        """Return when the next run is due, by the monotonic clock. Some call waits."""
        return min(group.due for group in self.waiting.values())
