"""The pool of one: jobs run in the worker's own thread, one after the other."""

from __future__ import annotations

import os
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType

from liteq.loggers import get_logger
from liteq.pools.base import (
    WAIT_LIMIT,
    Done,
    Event,
    Job,
    LostJob,
    PoolOptions,
    Ready,
    Report,
    Reported,
    Runner,
)
from liteq.pools.inprocess import InProcess, stop_runner

__all__ = ["SoloPool"]

log = get_logger("liteq.pool")


class SoloPool(InProcess):
    """Jobs run inside `tick()`, one after the other, in the thread that calls it.

    Meanwhile the loop stands still. A soft limit needs the alarm signal, which Python
    delivers in the main thread only.
    """

    kind = "solo"

    BUDGET = 0.005  # seconds of tiny jobs to run before the loop may turn again

    def __init__(self, factory: Callable[[], Runner], options: PoolOptions) -> None:
        super().__init__(factory, options)
        self._waiting: deque[Job] = deque()
        self._runner: Runner | None = None
        self._running: Job | None = None
        self.can_soft = threading.current_thread() is threading.main_thread()

    def start(self, selector: selectors.BaseSelector) -> None:
        try:
            self._runner = self._factory()
            self._runner.start(self._options.stopping)
        except Exception as exc:  # whatever the user's set-up raises
            log.exception("the runner cannot start")
            self._runner = None
            self._broken(f"the runner cannot start: {exc!r}")
        else:
            self._events.append(Ready(os.getpid()))

    def capacity(self) -> int:
        if self._stopping or self._running is not None:
            return 0
        return max(self._ahead.limit - len(self._held), 0)

    def submit(self, job: Job) -> None:
        self._held[job.key] = job
        self._waiting.append(job)

    def tick(self, now: float) -> float | None:
        until = now + self.BUDGET
        while self._waiting and self._running is None:
            began = self._now()
            self._run(self._waiting.popleft())
            ended = self._now()
            if ended - began > WAIT_LIMIT:
                self.recall()
            if ended >= until:
                break
        self._stop_runner()
        return 0.0 if self._events or self._waiting else None

    def terminate(self, key: int, signum: int = signal.SIGTERM) -> bool:
        for job in self._waiting:
            if job.key == key:
                self._waiting.remove(job)
                reason = "terminated before its start"
                self._end(key, LostJob(key, reason, "terminated"))
                return True
        return False

    def recall(self) -> None:
        self._return(list(self._waiting))
        self._waiting.clear()

    def running(self) -> dict[int, int]:
        job = self._running  # once: a watchdog's thread may ask, too
        return {} if job is None else {job.key: os.getpid()}

    def alive(self) -> int:
        return 0 if self._runner is None else 1

    def resize(self, concurrency: int) -> None:
        """Do nothing: there is one thread, and it is this one."""

    def stop(self, *, kill: bool = False) -> None:
        self._stopping = True
        self.recall()
        self._stop_runner()

    def _stop_runner(self) -> None:
        if self._stopping and self._runner is not None and self._running is None:
            runner, self._runner = self._runner, None
            stop_runner(runner)

    def _run(self, job: Job) -> None:
        assert self._runner is not None
        self._running = job
        began = time.perf_counter()
        try:
            if job.soft is not None and self.can_soft:
                answer = self._run_with_alarm(self._runner, job)
            else:
                answer = self._runner.run(job.payload, self._reporter(job.key), job.key)
        except Exception as exc:  # the runner is broken; the worker is not
            log.exception("the runner has failed")
            event: Event = LostJob(job.key, f"the runner failed: {exc!r}", "died")
        except BaseException:  # Ctrl-C, for the program that the worker is in
            self._return([job])
            raise
        else:
            runtime = time.perf_counter() - began
            self._ahead.note(runtime)
            event = Done(job.key, answer, runtime)
        finally:
            self._end_copy()
            self._running = None
        self._end(job.key, event)

    def _run_with_alarm(self, runner: Runner, job: Job) -> bytes:
        """Run with an alarm at the soft limit, and put back whatever alarm there was."""
        assert job.soft is not None

        def on_alarm(signum: int, frame: FrameType | None) -> None:
            runner.interrupt(job.key)

        handler = signal.signal(signal.SIGALRM, on_alarm)
        soft = min(max(job.soft, 1e-6), threading.TIMEOUT_MAX)  # the kernel takes no more
        left, interval = signal.setitimer(signal.ITIMER_REAL, soft)
        try:
            return runner.run(job.payload, self._reporter(job.key), job.key)
        finally:
            signal.setitimer(signal.ITIMER_REAL, left, interval)
            signal.signal(signal.SIGALRM, handler)

    def _reporter(self, key: int) -> Report:
        return lambda data: self._events.append(Reported(key, data))
