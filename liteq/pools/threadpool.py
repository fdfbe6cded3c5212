"""The pool of threads: jobs run in daemon threads of the worker's process."""

from __future__ import annotations

import os
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

from liteq.loggers import get_logger
from liteq.pools.base import (
    WAIT_LIMIT,
    Births,
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

__all__ = ["ThreadPool"]

log = get_logger("liteq.pool")


class _Slot:
    """One thread of the pool, and what it runs."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.ready = False  # has begun to take jobs
        self.since = 0.0
        self.warned = False  # its soft limit was announced
        self.runner: Runner


class _Left:
    """A thread has ended; `error` says why, if it was not told to."""

    def __init__(self, slot: _Slot, error: str | None) -> None:
        self.slot = slot
        self.error = error


class ThreadPool(InProcess):
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
        self._bell: Bell
        self._selector: selectors.BaseSelector

    def start(self, selector: selectors.BaseSelector) -> None:
        self._bell = Bell()
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
        # What a thread that is free has not taken, for want of CPU, would come back here.
        free = sum(slot.ready and slot.job is None for slot in self._slots)
        if self._queue.qsize() > free and due.reached(self._progress + WAIT_LIMIT):
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
        slot.runner.interrupt(key)
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
            slot.runner.interrupt(job.key)

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
        if news.slot.ready or self._stopping:
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
        error = None
        try:
            slot.runner = self._factory()
            slot.runner.start(self._options.stopping)
            slot.ready = True
            self._tell(Ready(os.getpid()))
            while (job := self._queue.get()) is not None:
                self._run(slot, job)
        except BaseException as exc:  # the top of a thread
            log.exception("a thread of the pool has ended")
            error = repr(exc)
        else:
            stop_runner(slot.runner)
        self._tell(_Left(slot, error))

    def _run(self, slot: _Slot, job: Job) -> None:
        slot.warned = False
        slot.since = self._now()
        slot.job = job
        if job.soft is not None:
            self._bell.ring()  # the loop has a time to watch now
        began = time.perf_counter()
        try:
            answer = slot.runner.run(job.payload, self._reporter(job.key), job.key)
        except BaseException as exc:
            self._tell(LostJob(job.key, f"the thread ended: {exc!r}", "died"))
            raise
        finally:
            self._end_copy()
            slot.job = None
        self._tell(Done(job.key, answer, time.perf_counter() - began))

    def _reporter(self, key: int) -> Report:
        return lambda data: self._tell(Reported(key, data))

    def _tell(self, news: Event | _Left) -> None:
        self._news.append(news)
        self._bell.ring()
