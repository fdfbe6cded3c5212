"""The pool of coroutines: jobs run, many at once, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, thread
from typing import Any, Final, Literal

from liteq.eventloop import run_to_end
from liteq.loggers import get_logger
from liteq.pools.base import (
    WAIT_LIMIT,
    Broken,
    Done,
    Due,
    Event,
    Job,
    LostJob,
    PoolOptions,
    Ready,
    Report,
    Reported,
    Runner,
)
from liteq.pools.inprocess import Bell, InProcess, stop_runner

__all__ = ["AsyncioPool"]

log = get_logger("liteq.pool")

MOST_THREADS = 10_000  # of an asyncio pool: it starts as many as run at once, and may grow
CANCEL_AGAIN = 1.0  # seconds until a coroutine that swallowed its cancellation gets another


def _forget_threads() -> None:
    """Let a process that a plain function forks end well: it would join all threads of
    `concurrent.futures` then, the one that has forked and is its own among them."""
    threads: Any = getattr(thread, "_threads_queues", {})  # Python's own, where it has it
    threads.clear()


_loops: Final[dict[int, asyncio.AbstractEventLoop]] = {}  # by the thread that runs them


def _end_after_step() -> None:
    """Let a process that a coroutine forks end with the step in which it did: the loop does
    not run there any more (from Python 3.12 on), so what waits on it would do so for ever."""
    loop: Any = _loops.get(threading.get_ident())
    if loop is not None:
        from liteq.pools.child import leave  # rarely used

        loop.call_soon(leave, 0)
        # Before the steps of others, which are the worker's to run.
        ready = getattr(loop, "_ready", None)
        if ready is not None:
            ready.rotate(1)


os.register_at_fork(after_in_child=_forget_threads)
os.register_at_fork(after_in_child=_end_after_step)


class _Run:
    """One job on the event loop."""

    def __init__(self, job: Job, runner: Runner, since: float) -> None:
        self.job = job
        self.runner = runner
        self.since = since
        self.task: asyncio.Task[None]
        self.cancellable = False  # it runs as a coroutine
        self.fate: tuple[Literal["time_limit", "terminated"], str] | None = None


class AsyncioPool(InProcess):
    """Jobs run as coroutines, many at once, on the event loop of one thread.

    Plain functions run in threads beside it. A hard limit cancels a coroutine, again
    every second until it ends; for a plain function it does nothing.
    """

    kind = "asyncio"
    can_soft = True
    can_hard = True

    def __init__(self, factory: Callable[[], Runner], options: PoolOptions) -> None:
        super().__init__(factory, options)
        self._waiting: deque[Job] = deque()  # popleft() is atomic: one side gets a job
        self._news: deque[Event] = deque()
        self._runs: dict[int, _Run] = {}  # the loop's thread writes, this one looks
        self._spare: list[Runner] = []
        self._pulling = False
        self._alive = 0
        self._over = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._bell: Bell
        self._selector: selectors.BaseSelector

    def start(self, selector: selectors.BaseSelector) -> None:
        self._bell = Bell()
        self._selector = selector
        selector.register(self._bell, selectors.EVENT_READ, lambda mask: self._on_news())
        self._alive = 1
        threading.Thread(target=self._serve, name="liteq-loop", daemon=True).start()

    def capacity(self) -> int:
        if self._stopping or self._loop is None:
            return 0
        now = self._now()
        runs = tuple(self._runs.values())
        stuck = sum(now - run.since > WAIT_LIMIT for run in runs)
        room = (self._target - stuck) * self._ahead.limit - (len(self._held) - stuck)
        return max(room, 0)

    def submit(self, job: Job) -> None:
        if not self._waiting:
            self._progress = self._now()
        self._held[job.key] = job
        self._waiting.append(job)
        self._nudge()

    def tick(self, now: float) -> float | None:
        due = Due(now)
        if self._waiting and due.reached(self._progress + WAIT_LIMIT):
            self._return(self._take_back())
        return 0.0 if self._events else due.seconds()

    def terminate(self, key: int, signum: int = signal.SIGTERM) -> bool:
        for job in tuple(self._waiting):
            if job.key == key:
                try:
                    self._waiting.remove(job)
                except ValueError:  # just started
                    break
                reason = "terminated before its start"
                self._end(key, LostJob(key, reason, "terminated"))
                return True
        if key not in self._held or self._loop is None:
            return False
        self._loop.call_soon_threadsafe(self._terminate, key, signum)
        return True

    def recall(self) -> None:
        self._return(self._take_back())

    def running(self) -> dict[int, int]:
        return dict.fromkeys(tuple(self._runs), os.getpid())

    def alive(self) -> int:
        return self._alive

    def resize(self, concurrency: int) -> None:
        self._target = max(concurrency, 1)
        self._nudge()

    def stop(self, *, kill: bool = False) -> None:
        self._stopping = True
        self.recall()
        if kill:
            for key in tuple(self._held):
                self._end(key, LostJob(key, "the pool was stopped", "terminated"))
                self._call(self._terminate, key, signal.SIGKILL)
            self._alive = 0
        self._call(self._end_if_idle)
        self._close_if_over()

    def _call(self, function: Callable[..., None], *args: object) -> None:
        """Have the loop's thread call this soon."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has been closed: the pool is over
                self._loop.call_soon_threadsafe(function, *args)

    def _nudge(self) -> None:
        if not self._pulling:
            self._pulling = True
            self._call(self._pull)

    def _take_back(self) -> list[Job]:
        back = []
        try:
            while True:
                back.append(self._waiting.popleft())
        except IndexError:
            return back

    def _on_news(self) -> None:
        self._bell.hush()
        while self._news:
            news = self._news.popleft()
            match news:
                case Done():
                    self._ahead.note(news.runtime)
                    self._progress = self._now()
                    self._end(news.key, news)
                case LostJob():
                    self._end(news.key, news)
                case Reported():
                    if news.key in self._held:
                        self._events.append(news)
                case Broken():
                    self._return(self._take_back())
                    for key in tuple(self._held):
                        self._end(key, LostJob(key, news.reason, "died"))
                    self._events.append(news)
                case _:
                    self._events.append(news)
        if self._over:
            self._alive = 0
        self._close_if_over()

    def _close_if_over(self) -> None:
        if not self._alive and self._bell.fileno() >= 0:
            self._selector.unregister(self._bell)
            self._bell.close()

    # In the loop's thread

    def _serve(self) -> None:
        try:
            with asyncio.Runner() as runner:
                loop = runner.get_loop()
                self._threads = ThreadPoolExecutor(MOST_THREADS, "liteq-sync")
                self._ended = asyncio.Event()
                self._spare.append(self._make_runner())
                self._loop = _loops[threading.get_ident()] = loop
                self._tell(Ready(os.getpid()))
                loop.call_soon(self._pull)
                run_to_end(loop, self._until_ended(), self._on_trouble)
                for spare in self._spare:
                    stop_runner(spare)
                self._threads.shutdown(wait=False)
        except BaseException as exc:  # the top of a thread
            log.exception("the event loop of the pool has ended")
            self._tell(Broken(f"the event loop has ended: {exc!r}"))
        _loops.pop(threading.get_ident(), None)
        self._over = True
        self._bell.ring()

    def _on_trouble(self, exc: BaseException | None) -> None:
        """Say what something that a task has left on the loop did to it. The others that run
        there have no part in that."""
        if exc is None:
            log.error("something has stopped the pool's event loop: it continues")
        else:
            log.error("something that a task left on the event loop raised", exc_info=exc)

    async def _until_ended(self) -> None:
        if self._stopping:
            self._end_if_idle()
        await self._ended.wait()

    def _end_if_idle(self) -> None:
        if self._stopping and not self._runs:
            self._ended.set()

    def _make_runner(self) -> Runner:
        runner = self._factory()
        runner.start(self._options.stopping)
        return runner

    def _pull(self) -> None:
        """Start waiting jobs while there is room."""
        self._pulling = False  # before the look, so that what comes later calls again
        assert self._loop is not None
        while self._waiting and len(self._runs) < self._target:
            if not self._spare:
                try:
                    self._spare.append(self._make_runner())
                except Exception:  # the user's set-up; the jobs go back to the worker
                    log.exception("a runner cannot start")
                    return
            try:
                job = self._waiting.popleft()
            except IndexError:  # it was taken back just now
                return
            run = _Run(job, self._spare.pop(), self._now())
            self._runs[job.key] = run
            run.task = self._loop.create_task(self._run(run))

    async def _run(self, run: _Run) -> None:
        job, runner = run.job, run.runner
        loop = asyncio.get_running_loop()
        timers = []
        if job.soft is not None:
            timers.append(loop.call_later(job.soft, runner.interrupt, job.key))
        if job.hard is not None:
            timers.append(loop.call_later(job.hard, self._on_hard_limit, run))
        began = time.perf_counter()
        try:
            answer = await self._answer(run)
            news: Event = Done(job.key, answer, time.perf_counter() - began)
            self._spare.append(runner)
        except asyncio.CancelledError:
            self._spare.append(runner)
            news = LostJob(job.key, "cancelled", "terminated")
        except BaseException as exc:  # the runner is broken: another takes over
            log.exception("a runner has failed")
            news = LostJob(job.key, f"the runner failed: {exc!r}", "died")
        for timer in timers:
            timer.cancel()
        if run.fate is not None:
            kind, reason = run.fate
            news = LostJob(job.key, reason, kind)
        del self._runs[job.key]
        self._tell(news)
        self._pull()
        self._end_if_idle()

    async def _answer(self, run: _Run) -> bytes:
        job, runner = run.job, run.runner

        def report(data: bytes) -> None:
            self._tell(Reported(job.key, data))

        if runner.is_async(job.payload):
            run.cancellable = True
            try:
                return await runner.arun(job.payload, report, job.key)
            finally:
                self._end_copy()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._run_plain, runner, job, report)

    def _run_plain(self, runner: Runner, job: Job, report: Report) -> bytes:
        try:
            return runner.run(job.payload, report, job.key)
        finally:
            self._end_copy()

    def _on_hard_limit(self, run: _Run) -> None:
        assert run.job.hard is not None
        reason = f"hard time limit ({run.job.hard:g}s) exceeded"
        self._cancel(run, ("time_limit", reason))

    def _terminate(self, key: int, signum: int) -> None:
        run = self._runs.get(key)
        if run is None:
            return
        if signum == signal.SIGUSR1:
            run.runner.interrupt(key)
        else:
            self._cancel(run, ("terminated", f"terminated by signal {signum}"))

    def _cancel(self, run: _Run, fate: tuple[Literal["time_limit", "terminated"], str]) -> None:
        """Cancel a coroutine until it ends: it may swallow the exception, even for good."""
        if not run.cancellable or run.task.done() or self._loop is None:
            return
        run.fate = run.fate or fate
        run.task.cancel()
        self._loop.call_later(CANCEL_AGAIN, self._cancel, run, fate)

    def _tell(self, news: Event) -> None:
        self._news.append(news)
        self._bell.ring()
