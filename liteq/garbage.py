"""When a process of liteq's own collects its garbage: about once a minute of running.

Left to itself, Python looks through all generations only when objects that stay have
become a quarter more, which in a process that runs on and on hardly ever happens. Until
then it keeps what an older cycle holds (an exception, its traceback, the frames with all
that is in them) and its free lists: up to 2,000 tuples of each of twenty sizes, 4 MiB in
hours, which nothing but a collection of all generations empties.

Only a worker, its children and a beat do this in processes that are theirs alone, never in
a program in which a worker is embedded, nor where the garbage collector is disabled.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["EVERY", "SHARE", "Collector", "unseen"]

EVERY: Final = 60.0  # seconds between two collections
SHARE: Final = 0.001  # of the time: with millions of objects they are made less often


@contextmanager
def unseen() -> Iterator[None]:
    """Freeze what is made meanwhile, without a look at it. For imports in a process of
    liteq's own: there is no garbage among modules."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class Collector:
    """Collects all generations, where its owner has nothing in its hands that waits.

    `clock`: seconds, of a clock that is never set. `due`: when to, by this clock; `every`:
    seconds that it is away at least.
    """

    __slots__ = ("_clock", "due", "every")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.every = EVERY
        self.due = clock() + EVERY

    def begin(self) -> None:
        """Freeze what there is: what a process has before its first task stays.

        It is not looked through any more, which is nearly all of what a collection takes,
        and not touched, so forked children go on sharing it. Of a cycle among it that
        falls apart later, nothing is collected. Of those that have fallen apart, only the
        young are looked for: a look at all would take a tenth of a worker's start, and
        find some hundred objects.
        """
        if gc.isenabled():
            gc.collect(1)
            gc.freeze()

    def collect(self) -> None:
        """Collect now, and say when the next time is due."""
        began = self._clock()
        if gc.isenabled():
            gc.collect()
        ended = self._clock()
        self.due = ended + max(self.every, (ended - began) / SHARE)

    def collect_if_due(self) -> None:
        """Collect, if the time has come."""
        if self._clock() >= self.due:
            self.collect()
