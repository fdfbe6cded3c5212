"""The pools without child processes keep the same promise."""

from __future__ import annotations

import asyncio
import marshal
import os
import random
import selectors
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from liteq.body import Body, Ending
from liteq.exceptions import SoftTimeLimitExceeded
from liteq.pool import (
    Broken,
    Done,
    Event,
    Job,
    LostJob,
    Pool,
    PoolOptions,
    Ready,
    Report,
    Reported,
    Returned,
    make_pool,
)
from liteq.pools.base import Births, LookAhead

Ended = Done | LostJob | Returned


class TinyRunner:
    """Runs (operation, argument) in a `Body`, as a worker's runner does."""

    def __init__(self) -> None:
        self._body = Body()

    def start(self, stopping: Callable[[], bool]) -> None:
        ASKED.append(stopping)

    def stop(self) -> None:
        STOPPED.append(self)

    def is_async(self, payload: bytes) -> bool:
        return str(marshal.loads(payload)[0]).startswith("async_")

    def run(self, payload: bytes, report: Report, key: int) -> bytes:
        name, arg = marshal.loads(payload)
        if name == "break":
            raise RuntimeError("the runner is broken")
        self._body.attempt = key
        return answer(self._body.call(OPS[name], (arg, report), {}))

    async def arun(self, payload: bytes, report: Report, key: int) -> bytes:
        name, arg = marshal.loads(payload)
        self._body.attempt = key
        return answer(await self._body.arun(OPS[name](arg, report)))

    def interrupt(self, key: int) -> None:
        self._body.interrupt(key)


def answer(ending: Ending) -> bytes:
    value, error = ending
    if isinstance(error, SoftTimeLimitExceeded):
        return b"soft"
    if error is not None:
        raise error
    given: bytes = value
    return given


def spin(seconds: float, report: Report) -> bytes:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    return b"spun"


def say(count: int, report: Report) -> bytes:
    for number in range(count):
        report(b"%d" % number)
    return b"said"


def blocked(name: str, report: Report) -> bytes:
    assert GATES[name].wait(20)
    return b"passed"


def ask(arg: None, report: Report) -> bytes:
    """Work until the worker is to stop."""
    while not ASKED[0]():
        report(b"working")
    return b"left"


async def async_ask(arg: None, report: Report) -> bytes:
    while not await asyncio.to_thread(ASKED[0]):
        report(b"working")
    return b"left"


async def async_blocked(name: str, report: Report) -> bytes:
    while not GATES[name].is_set():  # noqa: ASYNC110 (a gate of threads)
        await asyncio.sleep(0.001)
    return b"passed"


async def async_echo(arg: bytes, report: Report) -> bytes:
    report(arg)
    await asyncio.sleep(0)
    return arg


async def async_leave(how: str, report: Report) -> bytes:
    loop = asyncio.get_running_loop()

    async def end() -> None:
        raise SystemExit(3) if how == "SystemExit" else KeyboardInterrupt

    match how:
        case "stop":
            loop.stop()
        case "callback":
            loop.call_soon(sys.exit, 3)
        case _:
            LEFT.append(asyncio.create_task(end()))
    return b"left"


async def async_stubborn(arg: int, report: Report) -> bytes:
    for _ in range(arg):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            report(b"no")
    await asyncio.sleep(30)
    return b""


def mark(key: int, report: Report) -> bytes:
    RUNS[key] += 1
    return b"%d" % key


async def async_mark(key: int, report: Report) -> bytes:
    await asyncio.sleep(0)
    return mark(key, report)


RUNS: Counter[int] = Counter()
STOPPED: list[TinyRunner] = []
ASKED: list[Callable[[], bool]] = []
LEFT: list[asyncio.Task[None]] = []
GATES: dict[str, threading.Event] = {}
OPS: dict[str, Callable[[Any, Report], Any]] = {
    "echo": lambda arg, report: arg,
    "thread": lambda arg, report: threading.current_thread().name.encode(),
    "spin": spin,
    "say": say,
    "blocked": blocked,
    "mark": mark,
    "ask": ask,
    "async_ask": async_ask,
    "async_blocked": async_blocked,
    "async_echo": async_echo,
    "async_leave": async_leave,
    "async_stubborn": async_stubborn,
    "async_mark": async_mark,
}


def job(key: int, name: str, arg: Any = None, **limits: float) -> Job:
    return Job(key, marshal.dumps((name, arg)), **limits)


class Loop:
    def __init__(self, pool: Pool) -> None:
        self.selector = selectors.DefaultSelector()
        self.pool = pool
        self.events: list[Event] = []
        pool.start(self.selector)

    def turn(self, most: float | None = None) -> list[Event]:
        timeout = self.pool.tick(time.monotonic())
        if most is not None and (timeout is None or timeout > most):
            timeout = most
        for entry, mask in self.selector.select(timeout):
            entry.data(mask)
        events = self.pool.take()
        self.events += events
        return events

    def until(self, condition: Callable[[], Any], within: float = 20.0) -> None:
        give_up = time.monotonic() + within
        while not condition():
            assert time.monotonic() < give_up, f"not within {within} s: {self.events[-20:]}"
            self.turn(0.02)

    def ready(self, count: int) -> None:
        self.until(lambda: len(self.of(Ready)) >= count)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if type(event) is kind]

    def end_of(self, key: int) -> Any:
        self.until(lambda: self.ends(key))
        (end,) = self.ends(key)
        return end

    def ends(self, key: int) -> list[Ended]:
        return [e for e in self.events if isinstance(e, Ended) and e.key == key]

    def begin(self, name: str, arg: Any = None, key: int = 1) -> None:
        """Submit a job, and wait until it runs."""
        self.pool.submit(job(key, name, arg))
        while not self.pool.running():
            self.until(lambda: self.pool.running() or self.ends(key))
            for end in self.ends(key):  # starved on a busy machine
                assert isinstance(end, Returned), end
                self.events.remove(end)
                self.pool.submit(job(key, name, arg))

    def run(self, name: str, arg: Any = None, key: int = 1, **limits: float) -> bytes:
        self.pool.submit(job(key, name, arg, **limits))
        while isinstance(end := self.end_of(key), Returned):  # starved on a busy machine
            self.events.remove(end)
            self.pool.submit(job(key, name, arg, **limits))
        assert isinstance(end, Done), end
        return end.payload


@pytest.fixture
def start() -> Iterator[Callable[..., Loop]]:
    loops: list[Loop] = []
    GATES.clear()
    GATES["gate"] = threading.Event()
    RUNS.clear()
    STOPPED.clear()
    ASKED.clear()

    def start(
        kind: str, concurrency: int = 2, runner: Callable[[], Any] = TinyRunner, **options: Any
    ) -> Loop:
        loop = Loop(make_pool(kind, runner, PoolOptions(concurrency, **options)))
        loops.append(loop)
        return loop

    yield start
    for gate in GATES.values():
        gate.set()
    for loop in loops:
        loop.pool.stop()
        loop.until(lambda: loop.pool.alive() == 0)  # noqa: B023
        assert not loop.selector.get_map()
        loop.selector.close()


KINDS = pytest.mark.parametrize("kind", ["threads", "asyncio", "solo"])
CHILDREN = {"threads": 2, "asyncio": 1, "solo": 1}


@KINDS
def test_a_job_comes_back_with_its_answer_and_run_time(start: Any, kind: str) -> None:
    loop = start(kind)
    loop.ready(CHILDREN[kind])
    loop.pool.submit(job(7, "spin", 0.02))
    end = loop.end_of(7)
    assert end.payload == b"spun"
    assert 0.02 <= end.runtime < 5
    assert loop.pool.running() == {}
    assert loop.pool.pids() == [os.getpid()]


@KINDS
def test_reports_come_before_the_answer_in_order(start: Any, kind: str) -> None:
    loop = start(kind)
    loop.ready(CHILDREN[kind])
    loop.run("say", 100)
    news = [e for e in loop.events if not isinstance(e, Ready)]
    assert news[:-1] == [Reported(1, b"%d" % n) for n in range(100)]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("threads", "ask"), ("asyncio", "ask"), ("asyncio", "async_ask"), ("solo", "ask")],
)
def test_a_job_that_asks_hears_that_the_worker_is_to_stop(
    start: Any, kind: str, name: str
) -> None:
    wishes = iter([False, False, True])
    loop = start(kind, 1, stopping=lambda: next(wishes))
    loop.ready(1)

    assert loop.run(name) == b"left"
    assert loop.of(Reported) == [Reported(1, b"working")] * 2


@KINDS
@pytest.mark.untraced
@pytest.mark.parametrize("seed", range(3))
def test_every_key_ends_once_and_returned_ones_did_not_run(
    start: Any, kind: str, seed: int
) -> None:
    dice = random.Random(seed)
    name = dice.choice(("mark", "async_mark")) if kind == "asyncio" else "mark"
    loop = start(kind, 3)
    todo = list(range(3_000))
    done: Counter[int] = Counter()
    dropped = set()
    while len(done) + len(dropped) < 3_000:
        for _ in range(min(loop.pool.capacity() + 2, len(todo))):
            key = todo.pop()
            loop.pool.submit(job(key, name, key))
            if dice.random() < 0.01:
                loop.pool.terminate(key)
        if dice.random() < 0.2:
            loop.pool.recall()
        for event in loop.turn(dice.choice((0, 0, 0.001))):
            match event:
                case Done(key, _, _):
                    done[key] += 1
                case LostJob(key, _, kind_):
                    assert kind_ == "terminated"
                    dropped.add(key)
                case Returned(key):
                    todo.append(key)
    assert set(done.values()) == {1}
    assert not dropped & done.keys()
    assert all(RUNS[key] == 1 for key in done)
    assert all(RUNS[key] <= 1 for key in dropped)


@KINDS
def test_tiny_jobs_earn_a_look_ahead_and_slow_ones_end_it(start: Any, kind: str) -> None:
    loop = start(kind)
    loop.ready(CHILDREN[kind])
    concurrency = 1 if kind == "solo" else 2
    assert loop.pool.capacity() == concurrency
    name = "async_echo" if kind == "asyncio" else "echo"
    keys = iter(range(10_000))
    while loop.pool.capacity() <= 4 * concurrency:
        loop.run(name, b"", next(keys))
    loop.run("spin", 0.1, 10_000)
    assert loop.pool.capacity() == concurrency


@KINDS
def test_jobs_that_wait_for_nobody_are_returned(start: Any, kind: str) -> None:
    loop = start(kind, 1)
    loop.ready(1)
    for key in range(40):
        loop.run("echo", b"", key)
    if kind == "solo":
        loop.pool.submit(job(100, "spin", 0.05))
    else:
        loop.pool.submit(job(100, "blocked", "gate"))
    for key in range(101, 105):
        loop.pool.submit(job(key, "echo", b""))
    for key in range(101, 105):
        assert loop.end_of(key) == Returned(key)
    GATES["gate"].set()
    assert type(loop.end_of(100)) is Done


def test_a_job_waits_for_a_free_thread_that_gets_no_cpu(start: Any) -> None:
    now = [0.0]
    loop = start("threads", 1, monotonic=lambda: now[0])
    loop.ready(1)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # the thread runs when this one waits
    try:
        loop.pool.submit(job(1, "echo", b"one"))
        now[0] = 1.0
        loop.pool.tick(now[0])
    finally:
        sys.setswitchinterval(interval)
    assert type(loop.end_of(1)) is Done


@KINDS
def test_an_idle_pool_wakes_nobody(start: Any, kind: str) -> None:
    loop = start(kind)
    loop.ready(CHILDREN[kind])
    loop.run("echo", b"")
    loop.turn(0.01)
    assert loop.pool.tick(time.monotonic()) is None
    assert loop.selector.select(0.2) == []


@KINDS
def test_the_soft_limit_interrupts_the_job_and_not_the_next(start: Any, kind: str) -> None:
    loop = start(kind, 1)
    loop.ready(1)
    assert loop.pool.can_soft
    assert loop.run("spin", 30.0, 1, soft=0.05) == b"soft"
    assert loop.run("echo", b"calm", 2) == b"calm"


@pytest.mark.parametrize("kind", ["threads", "solo"])
def test_soft_limits_at_the_very_end_of_jobs_never_hit_another(start: Any, kind: str) -> None:
    loop = start(kind, 1)
    loop.ready(1)
    dice = random.Random(1)
    soft = 0
    for key in range(0, 200, 2):
        payload = loop.run("spin", 0.02 * dice.random(), key, soft=0.003)
        soft += payload == b"soft"
        assert loop.run("spin", 0.001, key + 1) == b"spun"
    assert soft


@KINDS
def test_a_waiting_job_can_be_terminated(start: Any, kind: str) -> None:
    loop = start(kind, 1)
    loop.ready(1)
    if kind == "solo":
        loop.pool.submit(job(1, "echo", b""))
    else:
        loop.begin("blocked", "gate")
    loop.pool.submit(job(2, "echo", b""))
    assert loop.pool.terminate(2)
    assert loop.end_of(2).kind == "terminated"
    GATES["gate"].set()
    assert type(loop.end_of(1)) is Done
    assert not loop.pool.terminate(99) or kind == "threads"


def test_a_running_job_in_a_thread_cannot_be_terminated_but_softly(start: Any) -> None:
    loop = start("threads", 1)
    loop.ready(1)
    loop.begin("spin", 30.0)
    assert not loop.pool.can_hard
    assert not loop.pool.terminate(1)
    assert loop.pool.terminate(1, signal.SIGUSR1)
    assert loop.end_of(1).payload == b"soft"


@pytest.mark.parametrize("kind", ["threads", "solo"])
def test_a_broken_runner_loses_its_job_only(start: Any, kind: str) -> None:
    loop = start(kind, 1)
    loop.ready(1)
    loop.pool.submit(job(1, "break"))
    end = loop.end_of(1)
    assert (type(end), end.kind) == (LostJob, "died")
    assert "the runner is broken" in end.reason
    loop.ready(2 if kind == "threads" else 1)  # another thread takes over
    assert loop.run("echo", b"on", 2) == b"on"


class RaisesAtStart(TinyRunner):
    def start(self, stopping: Callable[[], bool]) -> None:
        raise RuntimeError("no database today")


@KINDS
def test_runners_that_cannot_start_break_the_pool(start: Any, kind: str) -> None:
    loop = start(kind, runner=RaisesAtStart)
    loop.until(lambda: loop.of(Broken))
    assert "no database today" in loop.of(Broken)[0].reason
    loop.until(lambda: loop.pool.alive() == 0)
    assert len(loop.of(Broken)) == 1


@KINDS
def test_a_stop_finishes_what_runs_and_returns_the_rest(start: Any, kind: str) -> None:
    loop = start(kind, 1)
    loop.ready(1)
    if kind != "solo":
        loop.begin("blocked", "gate")
    loop.pool.submit(job(2, "echo", b""))
    loop.pool.stop()
    assert loop.end_of(2) == Returned(2)
    GATES["gate"].set()
    loop.until(lambda: loop.pool.alive() == 0)
    if kind != "solo":
        assert type(loop.end_of(1)) is Done
    assert len(STOPPED) == 1
    assert loop.pool.capacity() == 0


@pytest.mark.parametrize(
    ("kind", "name"), [("threads", "blocked"), ("asyncio", "async_blocked")]
)
def test_a_cold_stop_loses_what_runs_at_once(start: Any, kind: str, name: str) -> None:
    loop = start(kind, 1)
    loop.ready(1)
    loop.begin(name, "gate")
    loop.pool.stop(kill=True)
    assert loop.pool.alive() == 0
    assert loop.end_of(1).kind == "terminated"
    GATES["gate"].set()
    loop.turn(0.05)
    assert len(loop.ends(1)) == 1


def test_threads_come_and_go_with_resize(start: Any) -> None:
    loop = start("threads", 1)
    loop.ready(1)
    loop.pool.resize(3)
    loop.ready(3)
    assert loop.pool.capacity() == 3
    for key in range(3):
        loop.pool.submit(job(key, "blocked", "gate"))
    loop.until(lambda: len(loop.pool.running()) == 3)
    loop.pool.resize(1)
    assert loop.pool.capacity() == 0
    GATES["gate"].set()
    loop.until(lambda: loop.pool.alive() == 1)
    assert {type(loop.end_of(key)) for key in range(3)} == {Done}
    assert loop.run("echo", b"one", 10) == b"one"


# The event loop


def test_many_coroutines_run_at_once(start: Any) -> None:
    loop = start("asyncio", 50)
    loop.ready(1)
    for key in range(50):
        loop.pool.submit(job(key, "async_blocked", "gate"))
    loop.until(lambda: len(loop.pool.running()) == 50)
    GATES["gate"].set()
    assert {loop.end_of(key).payload for key in range(50)} == {b"passed"}


@pytest.mark.parametrize("how", ["SystemExit", "KeyboardInterrupt", "stop", "callback"])
def test_what_a_coroutine_leaves_on_the_loop_cannot_end_it(
    start: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    loop = start("asyncio", 3)
    loop.ready(1)
    loop.begin("async_blocked", "gate")
    assert loop.run("async_leave", how, key=2) == b"left"
    loop.until(lambda: "event loop" in caplog.text)
    assert loop.run("async_echo", b"on", key=3) == b"on"
    GATES["gate"].set()
    assert loop.end_of(1).payload == b"passed"
    assert loop.of(Broken) == []


def test_plain_functions_do_not_block_the_event_loop(start: Any) -> None:
    loop = start("asyncio", 3)
    loop.ready(1)
    loop.begin("blocked", "gate")
    assert loop.run("async_echo", b"meanwhile", 2) == b"meanwhile"
    assert loop.run("thread", None, 3).startswith(b"liteq-sync")
    assert Reported(2, b"meanwhile") in loop.events


def test_a_coroutine_is_interrupted_at_its_soft_limit(start: Any) -> None:
    loop = start("asyncio", 1)
    loop.ready(1)
    assert loop.run("async_blocked", "gate", soft=0.05) == b"soft"


@pytest.mark.parametrize("swallowed", [0, 1])
def test_a_coroutine_is_cancelled_at_its_hard_limit(start: Any, swallowed: int) -> None:
    loop = start("asyncio", 1)
    loop.ready(1)
    loop.pool.submit(job(1, "async_stubborn", swallowed, hard=0.05))
    end = loop.end_of(1)
    assert (type(end), end.kind) == (LostJob, "time_limit")
    assert len(loop.of(Reported)) == swallowed
    assert loop.run("async_echo", b"on", 2) == b"on"


def test_a_coroutine_can_be_terminated(start: Any) -> None:
    loop = start("asyncio", 2)
    loop.ready(1)
    loop.pool.submit(job(1, "async_blocked", "gate"))
    loop.pool.submit(job(2, "async_blocked", "gate"))
    loop.until(lambda: len(loop.pool.running()) == 2)
    assert loop.pool.terminate(1)
    assert loop.end_of(1).kind == "terminated"
    GATES["gate"].set()
    assert type(loop.end_of(2)) is Done


# Rules


def test_the_look_ahead_grows_with_tiny_jobs_and_shrinks_with_slow_ones() -> None:
    ahead = LookAhead(64)
    assert ahead.limit == 1
    for _ in range(100):
        ahead.note(0.000_01)
    assert ahead.limit == 64
    ahead.note(0.1)
    assert ahead.limit == 1
    for _ in range(15):
        ahead.note(0.000_01)
    assert ahead.limit > 1
    for _ in range(100):
        ahead.note(0.001)
    assert ahead.limit in (3, 4)


def test_births_back_off_and_give_up_only_on_quick_deaths_before_ready() -> None:
    births = Births()
    waits = []
    now = 0.0
    for _ in range(9):
        now = max(now, births.next_at) + 4.0  # a slow start, each time
        assert not births.failed(now, ready=False) or now < 20
        waits.append(max(births.next_at - now, 0.0))
    assert waits == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    births = Births()
    assert [births.failed(t, ready=False) for t in (0.0, 1.0, 2.0)] == [False, False, True]
    births = Births()
    for t in (0.0, 1.0):
        assert not births.failed(t, ready=False)
    births.ready()
    for now in range(20):  # the system's fault
        assert births.lacking(float(now)) == births.next_at - now <= 5.0
    assert not births.failed(2.0, ready=False)
    assert not births.failed(3.0, ready=True)
