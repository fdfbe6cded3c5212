"""Calls of tasks that take many at once, until there are enough of them for a run, or the
first has waited long enough. A worker holds their leases meanwhile: they are lost with it as
little as what runs is, and a stop gives them back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from liteq.brokers.values import Lease
from liteq.flushing import Flush, flush_of
from liteq.message import BODY, TASK

__all__ = ["Batching"]

_MOST_BYTES: Final = 8 * 1024 * 1024  # of arguments in a run: its job is in memory twice


class _Group:
    """The calls of one task, by the numbers of their jobs."""

    __slots__ = ("bytes", "due", "sizes")

    def __init__(self, due: float) -> None:
        self.due = due
        self.sizes: dict[int, int] = {}  # of the arguments, in the order of the calls
        self.bytes = 0  # of all

    def take(self, most: int) -> dict[int, int]:
        """Return the first of them, which do not wait any more."""
        taken = dict(islice(self.sizes.items(), most))
        for number in taken:
            self.drop(number)
        return taken

    def drop(self, number: int) -> None:
        self.bytes -= self.sizes.pop(number)


class Batching:
    """Those of one worker. `tasks` returns those that the app has now, by name; `sizes` has
    when those that take many calls are run, `waiting` the calls, by the name of their task."""

    def __init__(
        self, tasks: Callable[[], Mapping[str, Any]], monotonic: Callable[[], float]
    ) -> None:
        self._tasks = tasks
        self._now = monotonic
        self.sizes: dict[str, Flush] = {}
        self.waiting: dict[str, _Group] = {}

    def __len__(self) -> int:
        return sum(len(group.sizes) for group in self.waiting.values())

    def look_again(self) -> None:
        """Ask the tasks anew: there are others than before."""
        found = {name: flush_of(task) for name, task in self._tasks().items()}
        self.sizes = {name: size for name, size in found.items() if size and size.every > 1}

    def wants(self, lease: Lease) -> bool:
        """Tell whether a call is to be run with others. One that was under way when its
        process died is not: if it is the one that kills, it takes no others with it."""
        return lease.packed[TASK] in self.sizes and lease.delivery == 1

    def put(self, number: int, lease: Lease) -> None:
        """Let a call wait for others."""
        name = lease.packed[TASK]
        group = self.waiting.get(name)
        if group is None:
            group = self.waiting[name] = _Group(self._now() + self.sizes[name].interval)
        size = len(lease.packed[BODY])
        group.sizes[number] = size
        group.bytes += size

    def put_back(self, leases: Mapping[int, Lease]) -> None:
        """Have calls of one task wait again, before all others: for a free child alone, since
        for others they have waited."""
        sizes = {number: len(lease.packed[BODY]) for number, lease in leases.items()}
        [name] = {lease.packed[TASK] for lease in leases.values()}
        before = self.waiting.pop(name, None)
        group = self.waiting[name] = _Group(self._now())
        group.sizes = sizes if before is None else {**sizes, **before.sizes}
        group.bytes = sum(group.sizes.values())

    def ripe(self, *, all: bool = False) -> Iterator[list[int]]:
        """Yield the numbers of each run that is to begin now, or, with `all`, of all there
        are. Who stops asking leaves the rest."""
        for name in list(self.waiting):
            while (group := self.waiting.get(name)) is not None:
                size = self.sizes.get(name)
                most = len(group.sizes) if size is None else size.every
                full = len(group.sizes) >= most or group.bytes >= _MOST_BYTES
                if not (all or full or group.due <= self._now()):
                    break
                taken = group.take(most)
                if not group.sizes:
                    del self.waiting[name]
                yield [*taken]

    def drop(self, number: int) -> bool:
        """Let a call wait no more; False if it does not."""
        for name, group in self.waiting.items():
            if number in group.sizes:
                group.drop(number)
                if not group.sizes:
                    del self.waiting[name]
                return True
        return False

    def next_at(self) -> float:
        """Return when the next run is due, by the monotonic clock. Some call waits."""
        return min(group.due for group in self.waiting.values())
