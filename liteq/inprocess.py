"""The pools without child processes: threads, an event loop, and the worker's own thread.

All three hold waiting jobs in a queue of which each job is taken by exactly one side,
the one that runs it or the one that takes it back; answers come through another queue
and a socket that wakes the worker's loop. Code in this process cannot be killed, so a
hard time limit can be kept for coroutines only, and by their cooperation.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Literal

from liteq.eventloop import run_to_end
from liteq.loggers import get_logger
from liteq.poolbase import (
    WAIT_LIMIT,
    Births,
    Broken,
    Done,
    Due,
    Event,
    Job,
    LookAhead,
    LostJob,
    Pool,
    PoolOptions,
    Ready,
    Report,
    Reported,
    Returned,
    Runner,
)

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

__all__ = ["AsyncioPool", "SoloPool", "ThreadPool"]

log = get_logger("liteq.pool")

MOST_THREADS = 10_000  # of an asyncio pool: it starts as many as run at once, and may grow
CANCEL_AGAIN = 1.0  # seconds until a coroutine that swallowed its cancellation gets another


def _stop(runner: Runner) -> None:
    try:
        runner.stop()
    except Exception:
        log.exception("a runner could not clean up")


class _Bell:
    """Wakes the worker's loop from another thread, once for any number of rings."""

    def __init__(self) -> None:
        self._ear, self._rope = socket.socketpair()
        self._ear.setblocking(False)
        self._rope.setblocking(False)
        self._rung = False

    def fileno(self) -> int:
        return self._ear.fileno()

    def ring(self) -> None:
        """Wake the loop. What is to be found has been put in its place before."""
        if not self._rung:
            self._rung = True
            with contextlib.suppress(OSError):  # the pool is over
                self._rope.send(b"!")

    def hush(self) -> None:
        """Take the ring as heard. Look for what was put in place after this."""
        with contextlib.suppress(BlockingIOError):
            self._ear.recv(64)
        self._rung = False

    def close(self) -> None:
        self._ear.close()
        self._rope.close()


class _InProcess(Pool):
    """What the pools of this module share: who holds which job, and the way back."""

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
            from liteq.child import leave  # rarely used

            leave(0)

    def _broken(self, reason: str) -> None:
        self._events.append(Broken(reason))
        self.stop()


# Threads


class _Slot:
    """One thread of the pool, and what it runs."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.since = 0.0
        self.warned = False  # its soft limit was announced
        # Between the look at which job runs and the exception for it, that job must not
        # end and the next one begin.
        self.lock = threading.Lock()
        self.runner: Runner


class _Left:
    """A thread has ended; `error` says why, if it was not told to."""

    def __init__(self, slot: _Slot, error: str | None, *, ready: bool) -> None:
        self.slot = slot
        self.error = error
        self.ready = ready


class ThreadPool(_InProcess):
    """Jobs run in daemon threads of this process."""

    kind = "threads"
    can_soft = True

    def __init__(self, factory: Callable[[], Runner], options: PoolOptions) -> None:
        super().__init__(factory, options)
        self._queue: SimpleQueue[Job | None] = SimpleQueue()  # None: one thread shall end
        self._news: deque[Event | _Left] = deque()
        self._slots: list[_Slot] = []
        self._leaving = 0  # threads told to end that have not yet
        self._births = Births()
        self._serial = 0
        self._bell: _Bell
        self._selector: selectors.BaseSelector

    def start(self, selector: selectors.BaseSelector) -> None:
        self._bell = _Bell()
        self._selector = selector
        selector.register(self._bell, selectors.EVENT_READ, lambda mask: self._on_news())
        self._start_missing(self._now())

    def capacity(self) -> int:
        if self._stopping:
            return 0
        stuck = self._stuck(self._now())
        staying = len(self._slots) - self._leaving
        room = (staying - stuck) * self._ahead.limit - (len(self._held) - stuck)
        return max(room, 0)

    def submit(self, job: Job) -> None:
        if self._queue.empty():
            self._progress = self._now()
        self._held[job.key] = job
        self._queue.put(job)

    def tick(self, now: float) -> float | None:
        due = Due(now)
        for slot in self._slots:
            self._watch(slot, due)
        if not self._queue.empty() and due.reached(self._progress + WAIT_LIMIT):
            self._return(self._take_back())
        self._start_missing(now)
        if self._missing():
            due.at(self._births.next_at)
        return 0.0 if self._events else due.seconds()

    def terminate(self, key: int, signum: int = signal.SIGTERM) -> bool:
        for job in self._take_back():
            if job.key == key:
                reason = "terminated before its start"
                self._end(key, LostJob(key, reason, "terminated"))
            else:
                self._queue.put(job)
        if key not in self._held:
            return True
        slot = next((s for s in self._slots if s.job is self._held[key]), None)
        if slot is None or signum != signal.SIGUSR1:
            return False
        self._interrupt(slot, self._held[key])
        return True

    def recall(self) -> None:
        self._return(self._take_back())

    def running(self) -> dict[int, int]:
        jobs = [slot.job for slot in self._slots]
        return {job.key: os.getpid() for job in jobs if job is not None}

    def alive(self) -> int:
        return len(self._slots)

    def resize(self, concurrency: int) -> None:
        self._target = max(concurrency, 1)
        self._births.next_at = 0.0
        self._dismiss(len(self._slots) - self._leaving - self._target)

    def stop(self, *, kill: bool = False) -> None:
        self._stopping = True
        self.recall()
        self._dismiss(len(self._slots) - self._leaving)
        if kill:
            self._abandon()
        self._close_if_over()

    def _watch(self, slot: _Slot, due: Due) -> None:
        job = slot.job
        if job is None or job.soft is None or slot.warned:
            return
        if due.reached(slot.since + job.soft):
            slot.warned = True
            self._interrupt(slot, job)

    def _interrupt(self, slot: _Slot, job: Job) -> None:
        with slot.lock:
            if slot.job is job:
                slot.runner.interrupt()

    def _stuck(self, now: float) -> int:
        """Return how many threads run a slow job, behind which nothing should wait."""
        return sum(s.job is not None and now - s.since > WAIT_LIMIT for s in self._slots)

    def _take_back(self) -> list[Job]:
        """Return the jobs that no thread has taken, and now none will."""
        back = []
        ends = 0
        try:
            while True:
                job = self._queue.get_nowait()
                if job is None:
                    ends += 1
                else:
                    back.append(job)
        except Empty:
            for _ in range(ends):
                self._queue.put(None)
        return back

    def _dismiss(self, count: int) -> None:
        for _ in range(count):
            self._leaving += 1
            self._queue.put(None)

    def _abandon(self) -> None:
        """Forget the threads: they cannot be stopped, but nobody hears them any more."""
        for key in tuple(self._held):
            self._end(key, LostJob(key, "the pool was stopped", "terminated"))
        self._slots.clear()

    def _close_if_over(self) -> None:
        if self._stopping and not self._slots and self._bell.fileno() >= 0:
            self._selector.unregister(self._bell)
            self._bell.close()

    def _on_news(self) -> None:
        self._bell.hush()
        while self._news:
            news = self._news.popleft()
            match news:
                case Done():
                    self._ahead.note(news.runtime)
                    self._births.useful()
                    self._progress = self._now()
                    self._end(news.key, news)
                case LostJob():
                    self._end(news.key, news)
                case Reported():
                    if news.key in self._held:
                        self._events.append(news)
                case _Left():
                    self._on_left(news)
                case _:
                    self._births.ready()
                    self._events.append(news)
        self._close_if_over()

    def _on_left(self, news: _Left) -> None:
        if news.slot not in self._slots:
            return  # abandoned
        self._slots.remove(news.slot)
        if news.error is None:
            self._leaving -= 1
            return
        if not self._slots:
            self._return(self._take_back())
        if self._stopping:  # it left a word to end in the queue, for nobody
            self._leaving = len(self._slots)
        if news.ready or self._stopping:
            return
        if self._births.failed(self._now(), ready=False):
            self._broken(f"threads keep ending at their start: {news.error}")

    def _missing(self) -> int:
        if self._stopping:
            return 0
        return max(self._target - (len(self._slots) - self._leaving), 0)

    def _start_missing(self, now: float) -> None:
        while self._missing() and now >= self._births.next_at:
            slot = _Slot()
            self._serial += 1
            self._slots.append(slot)
            threading.Thread(
                target=self._serve, args=(slot,), name=f"liteq-{self._serial}", daemon=True
            ).start()

    # In the threads

    def _serve(self, slot: _Slot) -> None:
        ready = False
        error = None
        try:
            slot.runner = self._factory()
            slot.runner.start()
            ready = True
            self._tell(Ready(os.getpid()))
            while (job := self._queue.get()) is not None:
                self._run(slot, job)
        except BaseException as exc:  # the top of a thread
            log.exception("a thread of the pool has ended")
            error = repr(exc)
        else:
            _stop(slot.runner)
        self._tell(_Left(slot, error, ready=ready))

    def _run(self, slot: _Slot, job: Job) -> None:
        slot.warned = False
        slot.since = self._now()
        slot.job = job
        if job.soft is not None:
            self._bell.ring()  # the loop has a time to watch now
        began = time.perf_counter()
        try:
            answer = slot.runner.run(job.payload, self._reporter(job.key))
        except BaseException as exc:
            self._tell(LostJob(job.key, f"the thread ended: {exc!r}", "died"))
            raise
        finally:
            self._end_copy()  # before the lock, of which it has another state
            with slot.lock:
                slot.job = None
        self._tell(Done(job.key, answer, time.perf_counter() - began))

    def _reporter(self, key: int) -> Report:
        return lambda data: self._tell(Reported(key, data))

    def _tell(self, news: Event | _Left) -> None:
        self._news.append(news)
        self._bell.ring()


# An event loop


class _Run:
    """One job on the event loop."""

    def __init__(self, job: Job, runner: Runner, since: float) -> None:
        self.job = job
        self.runner = runner
        self.since = since
        self.task: asyncio.Task[None]
        self.cancellable = False  # it runs as a coroutine
        self.fate: tuple[Literal["time_limit", "terminated"], str] | None = None


class AsyncioPool(_InProcess):
    """Jobs run as coroutines, many at once, on the event loop of one thread.

    Plain functions run in threads beside it. A hard limit cancels a coroutine, again
    every second until it ends; for a plain function it does nothing.
    """

    kind = "asyncio"
    can_soft = True
    can_hard = True
    can_terminate = True

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
        self._bell: _Bell
        self._selector: selectors.BaseSelector

    def start(self, selector: selectors.BaseSelector) -> None:
        self._bell = _Bell()
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
        import asyncio  # heavy: only this pool pays for it
        from concurrent.futures import ThreadPoolExecutor

        try:
            with asyncio.Runner() as runner:
                loop = runner.get_loop()
                self._threads = ThreadPoolExecutor(MOST_THREADS, "liteq-sync")
                self._ended = asyncio.Event()
                self._spare.append(self._make_runner())
                self._loop = loop
                self._tell(Ready(os.getpid()))
                loop.call_soon(self._pull)
                run_to_end(loop, self._until_ended(), self._on_trouble)
                for spare in self._spare:
                    _stop(spare)
                self._threads.shutdown(wait=False)
        except BaseException as exc:  # the top of a thread
            log.exception("the event loop of the pool has ended")
            self._tell(Broken(f"the event loop has ended: {exc!r}"))
        self._over = True
        self._bell.ring()

    def _on_trouble(self, exc: BaseException | None) -> None:
        """Say what something that a task has left on the loop did to it. The others that run
        there have no part in that."""
        if exc is None:
            log.error("something has stopped the event loop of the pool: it goes on")
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
        runner.start()
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
        import asyncio

        job, runner = run.job, run.runner
        loop = asyncio.get_running_loop()
        timers = []
        if job.soft is not None:
            timers.append(loop.call_later(job.soft, runner.interrupt))
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
        import asyncio

        job, runner = run.job, run.runner

        def report(data: bytes) -> None:
            self._tell(Reported(job.key, data))

        if runner.is_async(job.payload):
            run.cancellable = True
            try:
                return await runner.arun(job.payload, report)
            finally:
                self._end_copy()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._run_plain, runner, job, report)

    def _run_plain(self, runner: Runner, job: Job, report: Report) -> bytes:
        try:
            return runner.run(job.payload, report)
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
            run.runner.interrupt()
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


# The worker's own thread


class SoloPool(_InProcess):
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
            self._runner.start()
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
        return {} if self._running is None else {self._running.key: os.getpid()}

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
            _stop(runner)

    def _run(self, job: Job) -> None:
        assert self._runner is not None
        self._running = job
        began = time.perf_counter()
        try:
            if job.soft is not None and self.can_soft:
                answer = self._run_with_alarm(self._runner, job)
            else:
                answer = self._runner.run(job.payload, self._reporter(job.key))
        except Exception as exc:  # the runner is broken; the worker is not
            log.exception("the runner has failed")
            event: Event = LostJob(job.key, f"the runner failed: {exc!r}", "died")
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
            if self._running is job:
                runner.interrupt()

        handler = signal.signal(signal.SIGALRM, on_alarm)
        soft = min(max(job.soft, 1e-6), threading.TIMEOUT_MAX)  # the kernel takes no more
        left, interval = signal.setitimer(signal.ITIMER_REAL, soft)
        try:
            return runner.run(job.payload, self._reporter(job.key))
        finally:
            signal.setitimer(signal.ITIMER_REAL, left, interval)
            signal.signal(signal.SIGALRM, handler)

    def _reporter(self, key: int) -> Report:
        return lambda data: self._events.append(Reported(key, data))
