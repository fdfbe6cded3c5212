"""A model of workers at one store: what they get done, and what keeps them from more.

A worker is a parent with some children. A child runs a task and hands its outcome over. The
parent goes round and round: it takes all outcomes there are, prepares them, and takes one step
at the store, which settles them and claims as many; then it hands those out. So rounds grow
with the load, and what a round costs once is shared by more tasks. Steps exclude each other:
SQLite has one writer, and Redis runs one script at a time. Who finds SQLite's writer at work
tries again after a pause; Redis takes all in turn.

Everything that computes needs a core of its machine for as long as it does. Cores are shared
fairly, in slices, as under Linux: who has slept has its turn soon. The more wait for a core,
the longer takes what is the queue's: it finds its caches cold.

It is a simulation of events in virtual time, with seeded randomness: the same every time.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Generator, Hashable
from functools import partial
from typing import Any, Final, NamedTuple

__all__ = ["Costs", "Outcome", "Plan", "simulate"]

_SLICE: Final = 0.004  # seconds a core is given away for
_NAP: Final = 0.001  # seconds: who has slept for less finds its caches as they were
_FEW: Final = 0.5  # processes waiting for a core, as of one worker of two children on two
_CROWD: Final = 5.0  # the same, beyond which nothing takes longer still
_WORTH: Final = 0.003  # seconds of work that a child is handed at once, as LookAhead has it

Do = Generator[tuple[str, Any], None, None]


class Costs(NamedTuple):
    """Seconds. `round_` and `step` are for each round, the others for each task in it."""

    round_: float  # of a parent that has slept, and so finds its caches cold
    handling: float  # of the parent: preparing an outcome, handing out a task
    step: float  # of the store
    settling: float  # of the store: settle one, claim one
    running: float  # of the child: read, run, answer
    waking: float  # of a child that has slept
    passing: float  # no work of anybody: until one that sleeps notices what was sent to it
    calling: float = 0.0  # the same, of a store that is a server, and of its answer
    turning: float = 0.0  # of the store, for a step after one of another worker
    crowding: float = 0.0  # share that all this takes longer for each that waits for a core


class Plan(NamedTuple):
    """What is simulated. `computing` and `sleeping` are seconds of each task; `cores` those of
    a machine, `machines` how many the workers are spread over. With a `server` the store has a
    core of its own, so many seconds away."""

    workers: int
    children: int = 2
    computing: float = 0.0
    sleeping: float = 0.0
    cores: int = 2
    machines: int = 1
    server: float | None = None
    gate: bool = False  # who finds the store taken pauses, and is not called
    stores: int = 1  # shards: workers are spread over them as well
    most_ahead: int = 64
    speed: float = 1.0  # of a core


class Outcome(NamedTuple):
    rate: float  # tasks per second
    batch: float  # tasks of a round
    store: float  # share of its time in which the store works
    cores: float  # share of their time in which the cores work
    wait: float  # seconds for the store, mean


class _Cores:
    """Cores of one machine, shared fairly: the next is who has had the least."""

    def __init__(self, run: _Run, number: int, speed: float, crowding: float) -> None:
        self._run = run
        self._number = self._free = number
        self._speed = speed
        self._crowding = crowding
        self._waiting: list[tuple[float, int, float, Hashable, Do]] = []
        self._had: dict[Hashable, float] = {}  # by process, in seconds of a core
        self._left: dict[Hashable, float] = {}  # by process, of its slice
        self._last: tuple[Hashable, float] | None = None  # who has just given its core back
        self._least = 0.0  # of those that want one
        self._turn = 0
        self.used = 0.0

    def ask(self, process: Hashable, ours: float, theirs: float, who: Do) -> None:
        """Want a core for so many seconds of the queue's and of the task's own work."""
        waiting = len(self._waiting) / self._number
        ours *= 1 + self._crowding * max(0.0, min(waiting, _CROWD) - _FEW)
        # Who has slept gets its turn soon, and no more than that for what it has missed.
        had = max(self._had.get(process, 0.0), self._least - _SLICE)
        self._had[process] = had
        if self._last == (process, self._run.now) and self._left[process] > 0:
            had = -1.0  # it goes on
        else:
            self._left[process] = _SLICE
        self._want(had, (ours + theirs) / self._speed, process, who)
        self._give()

    def _want(self, had: float, left: float, process: Hashable, who: Do) -> None:
        self._turn += 1
        heapq.heappush(self._waiting, (had, self._turn, left, process, who))

    def _give(self) -> None:
        while self._free and self._waiting:
            had, _, left, process, who = heapq.heappop(self._waiting)
            self._least = max(self._least, had)
            slice_ = min(left, max(self._left[process], 1e-6))
            self._free -= 1
            self.used += slice_
            self._had[process] += slice_
            self._left[process] -= slice_
            self._run.after(slice_, partial(self._back, left - slice_, process, who))

    def _back(self, left: float, process: Hashable, who: Do) -> None:
        self._free += 1
        if left > 1e-12:
            self._left[process] = _SLICE
            self._want(self._had[process], left, process, who)
        else:
            self._last = process, self._run.now
            self._run.resume(who)
        self._give()


class _Lock:
    """One at a time, in the order in which they came."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._queue: deque[tuple[float, Do]] = deque()
        self._taken_at: float | None = None
        self.held = 0.0
        self.waited = 0.0
        self.turns = 0
        self.last: object = None  # who had it

    def ask(self, who: Do) -> None:
        self._queue.append((self._run.now, who))
        if self._taken_at is None:
            self._next()

    def leave(self) -> None:
        assert self._taken_at is not None
        self.held += self._run.now - self._taken_at
        self._taken_at = None
        if self._queue:
            self._next()

    def _next(self) -> None:
        since, who = self._queue.popleft()
        self._taken_at = self._run.now
        self.waited += self._run.now - since
        self.turns += 1
        self._run.resume(who)


class _Gate(_Lock):
    """One at a time: who finds it taken tries again after a pause, the shorter the longer it
    has waited, as liteq does at the store's gate."""

    def __init__(self, run: _Run) -> None:
        super().__init__(run)
        self._random = random.Random(0)

    def ask(self, who: Do) -> None:
        self._try(self._run.now, who)

    def _try(self, since: float, who: Do) -> None:
        if self._taken_at is None:
            self._queue.append((since, who))
            self._next()
            return
        waited = self._run.now - since
        pause = max(0.0001, 0.001 - waited / 10, min(0.01, (waited - 0.2) / 20))
        pause *= self._random.uniform(0.2, 1.0)
        self._run.after(pause, partial(self._try, since, who))


class _Run:
    """Events in virtual time. A process is a generator that yields what it waits for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done = self.rounds = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + seconds, self._number, call))

    def resume(self, who: Do) -> None:
        for what, value in who:
            if what == "cores":
                cores, *wanted = value
                cores.ask(*wanted, who)
            elif what == "sleep":
                self.after(value, partial(self.resume, who))
            elif what == "lock":
                value.ask(who)
            return

    def until(self, over: Callable[[], bool]) -> None:
        while self._events and not over():
            self.now, _, call = heapq.heappop(self._events)
            call()


class _Worker:
    def __init__(
        self, run: _Run, plan: Plan, costs: Costs, cores: _Cores, store: _Lock, number: int
    ) -> None:
        self.run, self.plan, self.costs = run, plan, costs
        self.cores, self.store = cores, store
        self.random = random.Random(number)
        each = costs.running + plan.computing + plan.sleeping
        ahead = min(1 + int(_WORTH / each), plan.most_ahead)
        self.held = [ahead] * plan.children
        self.busy = [False] * plan.children
        self.ended: list[int] = []  # the child of each
        self.in_round = False
        self.rests_since = [-1.0] * (plan.children + 1)  # the last one is the parent

    def begin(self) -> None:
        for child in range(self.plan.children):
            # Not all at the same moment, or the model would march in step for ever.
            self.run.after(self.random.random() * 0.01, partial(self._start, child))

    def _start(self, child: int) -> None:
        if not self.busy[child]:
            self.busy[child] = True
            self.run.resume(self._child(child))

    def _child(self, child: int) -> Do:
        plan, costs = self.plan, self.costs
        yield "sleep", costs.passing
        waking = self._cold(child, costs.waking)
        while self.held[child]:
            yield "cores", (self.cores, (self, child), waking + costs.running, plan.computing)
            waking = 0.0
            if plan.sleeping:
                yield "sleep", plan.sleeping
            self.held[child] -= 1
            self.ended.append(child)
            if not self.in_round:
                self.in_round = True
                self.run.resume(self._parent())
        self.busy[child] = False
        self.rests_since[child] = self.run.now

    def _parent(self) -> Do:
        costs = self.costs
        yield "sleep", costs.passing
        once = self._cold(-1, costs.round_)
        while self.ended:
            ended, self.ended = self.ended, []
            number = len(ended)
            yield "cores", (self.cores, self, once + number * costs.handling / 2, 0.0)
            once = 0.0  # warm, it is a part of `handling`
            at_store = costs.step + number * costs.settling
            away = costs.calling if self.plan.server is None else self.plan.server / 2
            if away:
                yield "sleep", away
            yield "lock", self.store
            if self.store.last not in (None, self):
                at_store += costs.turning
            self.store.last = self
            if self.plan.server is None:
                yield "cores", (self.cores, self, at_store, 0.0)
            else:
                yield "sleep", at_store
            self.store.leave()
            if away:
                yield "sleep", away
            self.run.rounds += 1
            self.run.done += number
            for child in ended:
                self.held[child] += 1
                self._start(child)
            # The first of them begins while the others are still handed out.
            yield "cores", (self.cores, self, number * costs.handling / 2, 0.0)
        self.in_round = False
        self.rests_since[-1] = self.run.now

    def _cold(self, who: int, seconds: float) -> float:
        """Return what it takes one more to begin, if it has slept."""
        return seconds if self.run.now - self.rests_since[who] > _NAP else 0.0


def simulate(plan: Plan, costs: Costs, tasks: int = 20_000) -> Outcome:
    """Return what becomes of so many tasks, after as many tenths to get going."""
    run = _Run()
    machines = [
        _Cores(run, plan.cores, plan.speed, costs.crowding) for _ in range(plan.machines)
    ]
    stores = [(_Gate if plan.gate else _Lock)(run) for _ in range(plan.stores)]
    for number in range(plan.workers):
        cores, store = machines[number % plan.machines], stores[number % plan.stores]
        _Worker(run, plan, costs, cores, store, number).begin()
    run.until(lambda: run.done >= tasks // 10)
    start, before, rounds = run.now, run.done, run.rounds
    for cores in machines:
        cores.used = 0.0
    for store in stores:
        store.held = store.waited = 0.0
        store.turns = 0
    run.until(lambda: run.done >= tasks + tasks // 10)
    seconds, done = run.now - start, run.done - before
    return Outcome(
        rate=done / seconds,
        batch=done / (run.rounds - rounds),
        store=sum(store.held for store in stores) / seconds / len(stores),
        cores=sum(cores.used for cores in machines) / seconds / plan.cores / len(machines),
        wait=sum(store.waited for store in stores) / sum(store.turns for store in stores),
    )
