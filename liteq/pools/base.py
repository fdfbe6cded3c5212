"""The contract of a pool: jobs go in as bytes, and every one of them ends exactly once.

A pool keeps a number of children (processes, threads, coroutines) alive and fed. It
knows bytes, not tasks: what a job means is the business of the `Runner` that each child
owns. All of a pool's methods are called by one thread, the worker's loop, which is

    pool.start(selector)
    while pool.alive():
        while pool.capacity() > 0 and there is work:
            pool.submit(Job(key, payload))
        timeout = pool.tick(monotonic())
        for entry, mask in selector.select(timeout):
            entry.data(mask)                      # what the pool registered is a callback
        for event in pool.take():
            ...

No method blocks but `stop(kill=True)`, and nothing is polled: when nothing happens,
`tick()` returns None and the loop sleeps.

**Promise.** For every submitted key, `take()` yields exactly one of `Done`, `LostJob`
and `Returned`, whatever the children do, and a job that is `Returned` was not started.
"""

import selectors
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Final, Literal, NamedTuple, Protocol, TypeAlias

__all__ = [
    "WAIT_LIMIT",
    "Births",
    "Broken",
    "Done",
    "Due",
    "Event",
    "Job",
    "LookAhead",
    "LostJob",
    "Pool",
    "PoolOptions",
    "Ready",
    "Report",
    "Reported",
    "Returned",
    "Runner",
]

Report: TypeAlias = Callable[[bytes], None]

WAIT_LIMIT: Final = 0.010  # seconds a job may wait behind another before it is recalled


class Runner(Protocol):
    """What a child does with a job. Each child has a runner of its own, which runs one
    job at a time; an asyncio pool has one for each job that it runs at once."""

    def start(self, stopping: Callable[[], bool]) -> None:
        """Prepare, in the child, before the first job. An error here ends the child.

        `stopping()` tells a job that runs, in whatever thread, whether what it can leave to
        another worker is to be left now: see `PoolOptions`.
        """
        ...

    def stop(self) -> None:
        """Clean up, in the child, after the last job. Not called in a child that dies."""
        ...

    def run(self, payload: bytes, report: Report, key: int) -> bytes:
        """Run one job and return its answer. `key`: what `interrupt` calls it.

        Errors of the user's code are part of the answer: an exception that leaves this
        method ends the child, and the job is lost. `report(data)` sends word of the
        job's progress to the parent; it may be called from any thread.
        """
        ...

    async def arun(self, payload: bytes, report: Report, key: int) -> bytes:
        """Like `run`, on an event loop. Only the asyncio pool calls it."""
        ...

    def is_async(self, payload: bytes) -> bool:
        """Tell whether the job belongs on an event loop. Only the asyncio pool asks."""
        ...

    def interrupt(self, key: int) -> None:
        """Raise `SoftTimeLimitExceeded` inside the user's code of this job.

        The pool calls it from a signal handler in the thread that runs the job, in a child
        process and in the solo pool (so it may raise), in a thread pool from another thread,
        in an asyncio pool from the loop's thread. It may come at any moment. If that code has
        yet to begin, it is to be raised there: the limit will not be told again. Once it has
        ended, nothing is to happen, and least of all to the next job.
        """
        ...


# Jobs and events are made for every task, several times; a named tuple is three times
# cheaper to make than a frozen dataclass.


class Job(NamedTuple):
    """One payload to run. `soft` and `hard` are time limits in seconds, from its start."""

    key: int
    payload: bytes
    soft: float | None = None
    hard: float | None = None


class Ready(NamedTuple):
    """A child is ready for jobs (`pid`: of its process)."""

    pid: int


class Done(NamedTuple):
    """The job ran to its end. `runtime` is in seconds, without any waiting."""

    key: int
    payload: bytes
    runtime: float


class Reported(NamedTuple):
    """The job said something while it runs."""

    key: int
    payload: bytes


class LostJob(NamedTuple):
    """The job was started, or may have been, and will give no answer.

    `kind`: `died` (its process did), `time_limit` (killed at its hard limit), or
    `terminated` (by `terminate()`, in which case it may not have started, or by `stop`).
    """

    key: int
    reason: str
    kind: Literal["died", "time_limit", "terminated"]


class Returned(NamedTuple):
    """The job is given back. It was not started."""

    key: int


class Broken(NamedTuple):
    """The pool cannot keep children alive and has stopped trying; `reason` says why."""

    reason: str


Event: TypeAlias = Ready | Done | Reported | LostJob | Returned | Broken


def _never() -> bool:
    return False


class PoolOptions(NamedTuple):
    """How a pool is to be run.

    `max_lookahead`: most jobs that a child is given at once, while jobs are tiny.
    `max_tasks_per_child`, `max_memory_per_child` (KiB, resident): replace a child process
    after so many jobs, or after the job that took it above so much memory.
    `start_method`: `fork` or `spawn`. `at_fork`: called first thing in a forked child, to
    close what it must not inherit beyond what the pool and the selector hold. `before_child`:
    called in the parent before each child process. `stopping`: whether the worker is to stop
    soon, and jobs may leave to others what they can. A pool of this process asks at any time
    and from any thread; one of child processes does in `stop()`, and tells them.
    """

    concurrency: int = 1
    max_lookahead: int = 64
    max_tasks_per_child: int | None = None
    max_memory_per_child: int | None = None
    start_method: Literal["fork", "spawn"] = "fork"
    at_fork: Callable[[], None] | None = None
    before_child: Callable[[], object] | None = None
    stopping: Callable[[], bool] = _never
    monotonic: Callable[[], float] = time.monotonic


class Pool(ABC):
    """A number of children, kept alive and fed. See the module for the loop around it."""

    kind: ClassVar[str]
    can_soft: bool = False
    can_hard: bool = False

    @abstractmethod
    def start(self, selector: selectors.BaseSelector) -> None:
        """Start the children. Call from the thread that runs the loop.

        What the pool waits for is registered with the selector, with a callback that
        takes the event mask as the key's data. Returns at once: each child announces
        itself with `Ready`.
        """

    @abstractmethod
    def capacity(self) -> int:
        """Return how many more jobs the pool could use now.

        That is its free children and, while measured run times are tiny, a short
        look-ahead, so that no child waits for the loop between two jobs.
        """

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Hand over a job. Never blocks and never refuses; a job for which no child is
        free within some milliseconds is `Returned`. Keys in the pool must be unique."""

    @abstractmethod
    def take(self) -> list[Event]:
        """Return the events since the last call, oldest first."""

    @abstractmethod
    def tick(self, now: float) -> float | None:
        """Do what is due at `now` (of the options' `monotonic` clock): time limits, jobs
        stuck behind a slow one, children to start. Return seconds until the next call is
        due: 0 if events wait for `take()`, None if only a callback can bring news."""

    @abstractmethod
    def terminate(self, key: int, signum: int = signal.SIGTERM) -> bool:
        """End one job, whether it runs or waits, and no other.

        A waiting job becomes `LostJob("terminated")` at once. In a child process a
        running one gets the signal; SIGUSR1 raises `SoftTimeLimitExceeded` in it, as in
        Celery. The event comes when it has really ended, `Done` if it did so by itself.
        Returns False if the key is unknown or the pool cannot do this.
        """

    @abstractmethod
    def recall(self) -> None:
        """Give back every job that is not started, as `Returned`."""

    @abstractmethod
    def running(self) -> dict[int, int]:
        """Return the keys that run now, with the pid of the process each one runs in."""

    @abstractmethod
    def pids(self) -> list[int]:
        """Return the pids of the child processes; of this process, if it has none."""

    @abstractmethod
    def alive(self) -> int:
        """Return how many children exist. 0 after `stop`: the pool is over."""

    @abstractmethod
    def resize(self, concurrency: int) -> None:
        """Change the number of children. Those too many finish what they run."""

    def roll(self) -> None:
        """Replace all child processes, one at a time, each after its job."""
        return

    def dump(self) -> None:
        """Write the Python stacks of all children to standard error."""
        return

    @abstractmethod
    def stop(self, *, kill: bool = False) -> None:
        """Begin the end: give back what is not started and let no child start anew.

        Children end after the job they run; go on with the loop until `alive()` is 0. That
        job is told so if the options' `stopping()` says it: no other end of a child is.
        With `kill` they are killed, and waited for, here: what they ran is `LostJob`.
        A later call with `kill` overrides an earlier one without.
        """


class LookAhead:
    """How many jobs to give one child at once, from what jobs took lately.

    One, unless they are so short that the child would spend its time waiting for the
    loop: then as many as fill `WORTH` seconds. An exponential average forgets a slow
    job within a dozen quick ones.
    """

    WORTH: Final = 0.003
    WEIGHT: Final = 0.2

    __slots__ = ("_most", "average", "limit")

    def __init__(self, most: int) -> None:
        self._most = max(most, 1)
        self.average = 1.0  # seconds: nothing is known yet, so nothing is risked
        self.limit = 1

    def note(self, runtime: float) -> None:
        """Take in the run time of one job."""
        average = self.average + (runtime - self.average) * self.WEIGHT
        self.average = average if average > 1e-6 else 1e-6
        more = int(self.WORTH / self.average)
        self.limit = 1 + more if more < self._most else self._most


class Births:
    """When to start the next child, and when to give up.

    A child that dies under a job is replaced at once. One that was of no use (it ended
    before it had a job) makes the next one wait, for 0, 1, 2, 4 ... 60 seconds. After
    `DEATHS` in a row that were not even ready, within `WITHIN` seconds, there is no
    use in trying on.
    """

    DEATHS: Final = 3
    WITHIN: Final = 10.0
    LONGEST: Final = 60.0
    LONGEST_LACK: Final = 5.0

    __slots__ = ("_deaths", "_failures", "next_at", "were_ready")

    def __init__(self) -> None:
        self._deaths: list[float] = []
        self._failures = 0
        self.next_at = 0.0
        self.were_ready = False  # some child was

    def ready(self) -> None:
        """A child is ready."""
        self.were_ready = True
        self._deaths.clear()

    def useful(self) -> None:
        """A child has answered for a job."""
        self._failures = 0

    def lacking(self, now: float) -> float:
        """The system has no room for a child, and had some before: return the seconds until
        it is looked at again. That is nobody's fault, and no reason to give up."""
        self._failures += 1
        wait = min(2.0 ** (self._failures - 2), self.LONGEST_LACK)
        self.next_at = now + wait
        return wait

    def failed(self, now: float, *, ready: bool) -> bool:
        """A child was of no use. True: give up."""
        self._failures += 1
        if self._failures > 1:
            self.next_at = now + min(2.0 ** (self._failures - 2), self.LONGEST)
        if ready:
            return False
        self._deaths = [*self._deaths[1 - self.DEATHS :], now]
        return len(self._deaths) == self.DEATHS and now - self._deaths[0] <= self.WITHIN


class Due:
    """Collects the times at which something is due, and keeps the next one."""

    __slots__ = ("_next", "now")

    def __init__(self, now: float) -> None:
        self.now = now
        self._next: float | None = None

    def at(self, when: float) -> None:
        if self._next is None or when < self._next:
            self._next = when

    def reached(self, when: float) -> bool:
        """Tell whether it is time; if not, remember when it will be."""
        if when <= self.now:
            return True
        self.at(when)
        return False

    def seconds(self) -> float | None:
        return None if self._next is None else max(self._next - self.now, 0.0)
