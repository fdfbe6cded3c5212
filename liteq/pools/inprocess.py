"""What the pools without child processes share: threads, an event loop, the worker's thread.

All three hold waiting jobs in a queue of which each job is taken by exactly one side,
the one that runs it or the one that takes it back; answers come through another queue
and a socket that wakes the worker's loop. Code in this process cannot be killed, so a
hard time limit can be kept for coroutines only, and by their cooperation.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from liteq.loggers import get_logger
from liteq.pools.base import (
    Broken,
    Event,
    Job,
    LookAhead,
    Pool,
    PoolOptions,
    Returned,
    Runner,
)
from liteq.selfpipe import SelfPipe

__all__ = ["Bell", "InProcess", "stop_runner"]

log = get_logger("liteq.pool")


def stop_runner(runner: Runner) -> None:
    """Let a runner clean up. What it raises is logged: the pool goes on."""
    try:
        runner.stop()
    except Exception:
        log.exception("a runner could not clean up")


class Bell:
    """Wakes the worker's loop from another thread, once for any number of rings."""

    def __init__(self) -> None:
        self._pipe = SelfPipe()
        self._rung = False

    def fileno(self) -> int:
        return self._pipe.fileno()

    def ring(self) -> None:
        """Wake the loop. What is to be found has been put in its place before."""
        if not self._rung:
            self._rung = True
            self._pipe.wake()

    def hush(self) -> None:
        """Take the ring as heard. Look for what was put in place after this."""
        self._pipe.drain()
        self._rung = False

    def close(self) -> None:
        self._pipe.close()


class InProcess(Pool):
    """A pool in the worker's process: who holds which job, and the way back."""

    def __init__(self, factory: Callable[[], Runner], options: PoolOptions) -> None:
        self._factory = factory
        self._options = options
        self._now = options.monotonic
        self._target = options.concurrency
        self._ahead = LookAhead(options.max_lookahead)
        self._held: dict[int, Job] = {}  # submitted, and not yet ended by an event
        self._events: list[Event] = []
        self._progress = 0.0  # when a job last ended, or began to wait for nobody
        self._stopping = False
        self._pid = os.getpid()

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def pids(self) -> list[int]:
        return [os.getpid()]

    def dump(self) -> None:
        import faulthandler  # rarely used

        faulthandler.dump_traceback(file=2, all_threads=True)

    def _end(self, key: int, event: Event) -> None:
        """Let a job end with this event, unless it has ended already."""
        if self._held.pop(key, None) is not None:
            self._events.append(event)

    def _return(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._end(job.key, Returned(job.key))

    def _end_copy(self) -> None:
        """End the process here if it is one that the job has forked: what follows a job is
        the pool's part, and the pool is in another process."""
        if os.getpid() != self._pid:
            from liteq.pools.child import leave  # rarely used

            leave(0)

    def _broken(self, reason: str) -> None:
        self._events.append(Broken(reason))
        self.stop()
