"""The pool of child processes keeps its promise while real processes die."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import marshal
import multiprocessing
import multiprocessing.util
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from world import no_descriptors, wait_until

from liteq import garbage
from liteq.pool import (
    Broken,
    Done,
    Event,
    Job,
    LostJob,
    PoolOptions,
    Ready,
    Report,
    Reported,
    Returned,
    make_pool,
)
from liteq.pools import prefork
from liteq.pools.child import LONG
from liteq.pools.forking import Forked
from liteq.pools.prefork import ProcessPool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

STORM = bool(os.environ.get("LITEQ_STORM"))

Ended = Done | LostJob | Returned

FOREVER = 1e6


# A runner whose jobs are named functions


class SoftLimit(Exception):
    pass


class TinyRunner:
    def __init__(self) -> None:
        self.inside: int | None = None  # the job that can be interrupted
        self.told: int | None = None

    def start(self, stopping: Callable[[], bool]) -> None:
        TOLD.stopping = stopping

    def stop(self) -> None:
        pass

    def is_async(self, payload: bytes) -> bool:
        return False

    async def arun(self, payload: bytes, report: Report, key: int) -> bytes:
        raise NotImplementedError

    def run(self, payload: bytes, report: Report, key: int) -> bytes:
        name, arg = marshal.loads(payload)
        try:
            self.inside = key
            try:
                if self.told == key:
                    self.interrupt(key)
                answer = OPS[name](arg, report)
                if not isinstance(answer, bytes):
                    answer = marshal.dumps(answer)
            finally:
                self.inside = None
        except SoftLimit:
            return b"soft"
        except Exception as exc:
            return repr(exc).encode()
        return answer

    def interrupt(self, key: int) -> None:
        self.told = key
        if self.inside == key:
            self.inside = None
            raise SoftLimit


def spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def mark(arg: tuple[str, int, float], report: Report) -> bytes:
    """Leave a trace of this very run, then take some time."""
    path, key, seconds = arg
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"%d\n" % key)
    os.close(fd)
    spin(seconds)
    return b"%d" % key


def sleeper(arg: str, report: Report) -> None:
    """Start a sub-process, say who it is, and wait for ever."""
    process = subprocess.Popen(["sleep", "1000"])
    Path(arg).write_text(f"{process.pid}")
    time.sleep(FOREVER)


def signals_of_sub_process(arg: Any, report: Report) -> list[int]:
    process = subprocess.Popen(["sleep", "1000"])
    process.terminate()
    return [process.wait(10), len(signal.pthread_sigmask(signal.SIG_BLOCK, ()))]


def handlers(arg: Any, report: Report) -> list[str]:
    names = []
    for signum in signal.valid_signals():
        handler = signal.getsignal(signum)
        if callable(handler) and signum not in (signal.SIGINT, signal.SIGUSR1):
            names.append(signal.Signals(signum).name)
    return names


def open_files(arg: Any, report: Report) -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the directory's own
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def fork_and_return(arg: Any, report: Report) -> bytes:
    """Fork, and let the copy come back from the task like the original."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    else:
        report(b"from the copy")
    return b"answer"


def fork_and_die(arg: Any, report: Report) -> None:
    """Die, leaving a copy that holds everything open."""
    if os.fork() == 0:
        time.sleep(FOREVER)
    os.kill(os.getpid(), signal.SIGKILL)


def crash(arg: Any, report: Report) -> None:
    faulthandler.disable()  # its report is long, and the test run has it enabled
    ctypes.string_at(0)


def close_everything(arg: float, report: Report) -> None:
    os.closerange(3, 1000)
    time.sleep(arg)


def die_writing(arg: Any, report: Report) -> None:
    sys.stdout.write("last words\n")
    sys.stdout.flush()
    sys.stderr.write("and errors\n")
    os._exit(7)


def grow(arg: int, report: Report) -> int:
    HOARD.append(bytearray(os.urandom(1024)) * (arg // 1024))
    return os.getpid()


def ignore_term(arg: float, report: Report) -> None:
    signal.signal(signal.SIGTERM, lambda s, f: None)
    report(b"deaf")
    time.sleep(arg)


def announce(arg: float, report: Report) -> None:
    """Say that the job has started, then sleep."""
    report(b"started")
    time.sleep(arg)


def report_much(arg: int, report: Report) -> bytes:
    """Say more than any buffer holds, all the time, until interrupted."""
    while True:
        report(b"r" * arg)


def report_and_finish(arg: int, report: Report) -> bytes:
    for number in range(arg):
        report(b"%d" % number)
    return b"end"


def raise_system_exit(arg: Any, report: Report) -> None:
    raise SystemExit(3)


def ask_at(arg: str, report: Report) -> bool:
    """Ask whether the worker is to stop, when there is a file of this name."""
    report(b"started")
    while not os.path.exists(arg):
        time.sleep(0.001)
    return TOLD.stopping()


def ask_after_a_signal(arg: str, report: Report) -> bool:
    """Have what the parent has said read by the handler that is for late jobs."""
    report(b"started")
    while not os.path.exists(arg):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGUSR1)
    return TOLD.stopping()


def ask_on(arg: Any, report: Report) -> None:
    """Ask all the time, without an end."""
    report(b"started")
    while True:
        if TOLD.stopping():
            report(b"told")


def ask_in_a_copy(arg: str, report: Report) -> list[bool]:
    told = ask_at(arg, report)
    pid = os.fork()
    if pid == 0:
        os._exit(TOLD.stopping())
    return [told, bool(os.waitpid(pid, 0)[1])]


class Litter:
    """A cycle, which says when it is gone."""

    def __init__(self, path: str) -> None:
        self.me, self.path = self, path

    def __del__(self) -> None:
        Path(self.path).touch()


def litter(arg: str, report: Report) -> int:
    """Leave a cycle behind, and return how many collections there have been."""
    gc.set_threshold(0)  # Python collects nothing by itself
    Litter(arg)
    return full_collections()


def full_collections() -> int:
    return int(gc.get_stats()[2]["collections"])


def hold_the_gil(arg: float, report: Report) -> None:
    ctypes.PyDLL(None).usleep(int(arg * 1e6))


HOARD: list[bytearray] = []
OPS: dict[str, Callable[[Any, Report], Any]] = {
    "echo": lambda arg, report: arg,
    "pid": lambda arg, report: os.getpid(),
    "size": lambda arg, report: len(arg),
    "big": lambda arg, report: b"x" * arg,
    "sleep": lambda arg, report: time.sleep(arg),
    "spin": lambda arg, report: spin(arg),
    "kill": lambda arg, report: os.kill(os.getpid(), arg),
    "exit": lambda arg, report: os._exit(arg),
    "stdin": lambda arg, report: sys.stdin.read(),
    "ignore_term": ignore_term,
    "announce": announce,
    "mark": mark,
    "sleeper": sleeper,
    "signals": signals_of_sub_process,
    "handlers": handlers,
    "files": open_files,
    "fork": fork_and_return,
    "fork_die": fork_and_die,
    "crash": crash,
    "close": close_everything,
    "write": die_writing,
    "grow": grow,
    "report": report_much,
    "reports": report_and_finish,
    "leave": raise_system_exit,
    "gil": hold_the_gil,
    "litter": litter,
    "ask": ask_at,
    "ask on": ask_on,
    "ask after a signal": ask_after_a_signal,
    "ask in a copy": ask_in_a_copy,
    "collections": lambda arg, report: full_collections(),
    "told": lambda arg, report: TOLD.of_fork,
}


class Told:
    of_fork = False
    stopping: Callable[[], bool]


TOLD = Told()


def job(key: int, name: str, arg: Any = None, **limits: float) -> Job:
    return Job(key, marshal.dumps((name, arg)), **limits)


# The worker's loop


class Loop:
    """The loop that a worker runs, and all the events that it saw."""

    def __init__(self, pool: ProcessPool) -> None:
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

    def end_of(self, key: int, within: float = 20.0) -> Ended:
        self.until(lambda: self.ends(key), within)
        (end,) = self.ends(key)
        return end

    def ends(self, key: int) -> list[Ended]:
        return [e for e in self.events if isinstance(e, Ended) and e.key == key]

    def warm_up(self) -> None:
        """Run tiny jobs until the pool trusts that the next ones are tiny, too."""
        keys = iter(range(10_000, 20_000))
        while self.pool.capacity() < 21:
            self.pool.submit(job(key := next(keys), "echo", b""))
            self.end_of(key)
        self.events = [e for e in self.events if isinstance(e, Ready)]

    def begin(self, key: int, seconds: float, **limits: float) -> None:
        """Have a job run that takes so long; come back when it runs."""
        self.pool.submit(job(key, "announce", seconds, **limits))
        self.until(lambda: Reported(key, b"started") in self.events)

    def run(self, name: str, arg: Any = None, key: int = 1, **limits: float) -> Any:
        """Run one job and return its answer."""
        self.pool.submit(job(key, name, arg, **limits))
        while isinstance(end := self.end_of(key), Returned):  # starved on a busy machine
            self.events.remove(end)
            self.pool.submit(job(key, name, arg, **limits))
        assert isinstance(end, Done), end
        return end.payload


@pytest.fixture
def start() -> Iterator[Callable[..., Loop]]:
    """Starts pools, and ends them hard."""
    loops: list[Loop] = []

    def start(
        concurrency: int = 2, *, runner: Callable[[], Any] = TinyRunner, **options: Any
    ) -> Loop:
        loop = Loop(ProcessPool(runner, PoolOptions(concurrency, **options)))
        loops.append(loop)
        return loop

    yield start
    for loop in loops:
        pids = loop.pool.pids()
        loop.pool.stop(kill=True)
        assert loop.pool.alive() == 0
        assert not any(exists(pid) for pid in pids)
        assert not loop.selector.get_map()
        loop.selector.close()


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def gone(pid: int) -> bool:
    """Whether the process has ended: a zombie waits only for a parent that is not ours."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for(condition: Callable[[], Any], within: float) -> None:
    give_up = time.monotonic() + within
    while not condition():
        assert time.monotonic() < give_up
        os.sched_yield()


# The work


def test_a_job_comes_back_with_its_answer_and_run_time(start: Any) -> None:
    loop = start()
    loop.ready(2)
    loop.pool.submit(job(7, "spin", 0.02))
    end = loop.end_of(7)
    assert type(end) is Done
    assert 0.02 <= end.runtime < 5
    assert loop.pool.running() == {}


def test_children_are_started_few_at_a_time_so_that_a_stop_is_heard(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefork, "AT_ONCE", 1)
    loop = start(4)
    assert loop.pool.alive() == 1
    loop.pool.tick(time.monotonic())
    assert loop.pool.alive() == 2

    loop.pool.stop()
    loop.pool.tick(time.monotonic())

    assert loop.pool.alive() == 2


def test_ten_thousand_tiny_jobs_all_come_back_once(start: Any) -> None:
    loop = start()
    loop.ready(2)
    submitted = 0
    seen: Counter[int] = Counter()
    while len(seen) < 10_000:
        for _ in range(min(loop.pool.capacity(), 10_000 - submitted)):
            loop.pool.submit(job(submitted, "echo", b"%d" % submitted))
            submitted += 1
        for event in loop.turn(1.0):
            match event:
                case Done(key, payload, _):
                    assert payload == b"%d" % key
                    seen[key] += 1
                case Returned(key):  # a noisy machine: a child stood still for 10 ms
                    loop.pool.submit(job(key, "echo", b"%d" % key))
    assert set(seen.values()) == {1}


def test_capacity_is_one_per_child_until_jobs_prove_tiny(start: Any) -> None:
    loop = start()
    assert loop.pool.capacity() == 0  # nobody is ready
    loop.ready(2)
    assert loop.pool.capacity() == 2
    loop.warm_up()
    assert loop.pool.capacity() > 20
    loop.run("sleep", 0.1, 100_000)
    assert loop.pool.capacity() == 2


def test_a_slow_job_does_not_hold_up_those_behind_it(start: Any) -> None:
    loop = start()
    loop.ready(2)
    loop.warm_up()
    loop.pool.submit(job(100, "sleep", 30.0))
    loop.pool.submit(job(101, "sleep", 0.05))
    for key in range(102, 122):
        loop.pool.submit(job(key, "echo", b""))
    loop.until(lambda: all(loop.ends(key) for key in range(101, 122)), within=5)
    assert list(loop.pool.running()) == [100]
    assert {type(loop.ends(key)[0]) for key in range(102, 122)} <= {Done, Returned}


def test_nothing_is_put_behind_a_job_that_is_known_to_be_slow(start: Any) -> None:
    loop = start()
    loop.ready(2)
    loop.warm_up()
    loop.pool.submit(job(100, "sleep", 30.0))
    loop.pool.submit(job(101, "sleep", 30.0))
    loop.until(lambda: loop.pool.capacity() == 0)
    loop.pool.submit(job(102, "echo", b""))  # against its advice
    assert loop.end_of(102) == Returned(102)


@pytest.mark.parametrize("size", [LONG - 20, LONG, LONG + 1, 10_000_000])
def test_payloads_of_any_size_travel_both_ways(start: Any, size: int) -> None:
    loop = start()
    loop.ready(2)
    assert marshal.loads(loop.run("size", b"x" * size, 1)) == size
    assert loop.run("big", size, 2) == b"x" * size
    assert loop.run("echo", b"y" * size, 3) == b"y" * size


def test_big_and_small_jobs_mix(start: Any) -> None:
    loop = start()
    loop.ready(2)
    random.seed(4)
    sizes = [random.choice((10, 10, 10, 10, 50_000, 900_000)) for _ in range(400)]
    todo = list(enumerate(sizes))
    seen: Counter[int] = Counter()
    while len(seen) < len(sizes):
        while todo and loop.pool.capacity() > 0:
            key, size = todo.pop()
            loop.pool.submit(job(key, "size", b"x" * size))
        for event in loop.turn(1.0):
            match event:
                case Done(key, payload, _):
                    assert marshal.loads(payload) == sizes[key]
                    seen[key] += 1
                case Returned(key):
                    todo.append((key, sizes[key]))
    assert set(seen.values()) == {1}


def test_reports_come_before_the_answer_in_order(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    loop.pool.submit(job(1, "reports", 500))
    loop.end_of(1)
    news = [e for e in loop.events if not isinstance(e, Ready)]
    assert news[:-1] == [Reported(1, b"%d" % n) for n in range(500)]
    assert type(news[-1]) is Done


def test_an_idle_pool_wakes_nobody(start: Any) -> None:
    loop = start()
    loop.ready(2)
    for key in range(10):
        loop.run("echo", b"", key)
    loop.turn(0.02)
    wait_until(lambda: all(map(sleeps, loop.pool.pids())))
    loop.selector.select(0.2)  # who was put aside on the way to sleep is counted when there
    switches = [context_switches(pid) for pid in loop.pool.pids()]
    assert loop.pool.tick(time.monotonic()) is None
    assert loop.selector.select(0.5) == []
    assert [context_switches(pid) for pid in loop.pool.pids()] == switches


def sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def context_switches(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [line for line in lines if line.startswith("voluntary_ctxt")]


# Taking back


def test_recall_returns_what_has_not_started(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    loop.warm_up()
    for key in range(100, 110):
        loop.pool.submit(job(key, "sleep", 0.005))
    loop.pool.recall()
    loop.until(lambda: all(loop.ends(key) for key in range(100, 110)))
    kinds = [type(loop.ends(key)[0]) for key in range(100, 110)]
    done = kinds.count(Done)
    assert done >= 1 or kinds[0] is Returned
    assert kinds == [Done] * done + [Returned] * (10 - done)


@pytest.mark.untraced
@pytest.mark.parametrize("seed", range(4 if STORM else 2))
def test_a_job_that_came_back_has_not_run(start: Any, tmp_path: Path, seed: int) -> None:
    trace = tmp_path / "trace"
    trace.touch()
    dice = random.Random(seed)
    loop = start(2)
    loop.ready(2)
    storm = Storm(loop, trace, dice, jobs=3_000)
    while storm.unfinished():
        storm.feed()
        if dice.random() < 0.05:
            loop.pool.recall()
        if dice.random() < 0.02 and loop.pool.running():
            storm.terminate(dice.choice(list(loop.pool.running())))
        storm.note(loop.turn(dice.choice((0, 0, 0.001, 0.005))))
    storm.check()
    assert storm.returned > 20
    assert storm.lost == storm.terminated


@pytest.mark.untraced
@pytest.mark.parametrize("seed", range(3 if STORM else 1))
def test_every_key_ends_once_though_children_are_killed(
    start: Any, tmp_path: Path, seed: int
) -> None:
    trace = tmp_path / "trace"
    trace.touch()
    dice = random.Random(seed)
    loop = start(2)
    loop.ready(2)
    storm = Storm(loop, trace, dice, jobs=5_000)
    kills = 0
    while storm.unfinished():
        storm.feed()
        ready = {event.pid for event in loop.of(Ready)} & set(loop.pool.pids())
        if ready and dice.random() < 0.02:  # (newborns would only wait longer and longer)
            os.kill(dice.choice(sorted(ready)), signal.SIGKILL)
            kills += 1
        storm.note(loop.turn(dice.choice((0, 0, 0.001, 0.003))))
    storm.check()
    assert kills > 10
    assert 0 < len(storm.lost) <= kills
    assert not loop.of(Broken)


class Storm:
    """Many jobs that leave traces, and the account of how each of them ended."""

    def __init__(self, loop: Loop, trace: Path, dice: random.Random, jobs: int) -> None:
        self.loop = loop
        self.trace = trace
        self.dice = dice
        self.jobs = jobs
        self.todo = list(range(jobs))
        self.within: set[int] = set()
        self.ends: Counter[int] = Counter()
        self.done: Counter[int] = Counter()
        self.lost: set[int] = set()
        self.terminated: set[int] = set()
        self.returned = 0

    def unfinished(self) -> bool:
        return len(self.ends) < self.jobs

    def feed(self) -> None:
        for _ in range(min(self.loop.pool.capacity() + 1, len(self.todo))):
            key = self.todo.pop()
            padding = b"p" * self.dice.choice((0, 0, 0, 0, 0, 20_000, 100_000))
            seconds = self.dice.choice((0.0,) * 30 + (0.0005, 0.002, 0.02))
            arg = (str(self.trace), key, seconds)
            payload = marshal.dumps(("mark", arg)) + padding  # marshal ignores the rest
            self.loop.pool.submit(Job(key, payload))
            self.within.add(key)

    def terminate(self, key: int) -> None:
        assert self.loop.pool.terminate(key, signal.SIGKILL)

    def note(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Done(key, payload, _):
                    assert payload == b"%d" % key
                    self._end(key)
                    self.done[key] += 1
                case LostJob(key, _, kind):
                    self._end(key)
                    self.lost.add(key)
                    if kind == "terminated":
                        self.terminated.add(key)
                case Returned(key):
                    self.within.remove(key)
                    self.todo.append(key)
                    self.returned += 1

    def _end(self, key: int) -> None:
        self.within.remove(key)  # KeyError: an event for a job that has ended
        self.ends[key] += 1

    def check(self) -> None:
        runs = Counter(int(line) for line in self.trace.read_text().splitlines())
        assert not self.within
        assert set(self.ends.values()) == {1}
        assert len(self.ends) == self.jobs
        for key in range(self.jobs):
            if key in self.lost:
                assert runs[key] <= 1
            else:
                assert runs[key] == 1


# Limits


def test_the_hard_limit_kills_child_and_sub_processes_and_fails_that_job(
    start: Any, tmp_path: Path
) -> None:
    loop = start()
    loop.ready(2)
    pids = loop.pool.pids()
    began = time.monotonic()
    loop.pool.submit(job(1, "sleeper", str(tmp_path / "pid"), hard=0.5))
    loop.pool.submit(job(2, "sleep", 0.8))
    end = loop.end_of(1)
    assert type(end) is LostJob
    assert end.kind == "time_limit"
    assert "0.5s" in end.reason
    assert 0.5 <= time.monotonic() - began < 3
    sub_process = int((tmp_path / "pid").read_text())
    wait_for(lambda: gone(sub_process), 2)
    assert type(loop.end_of(2)) is Done
    loop.ready(3)
    assert len(set(loop.pool.pids()) & set(pids)) == 1
    assert loop.run("echo", b"on", 3) == b"on"


def test_the_hard_limit_ends_a_child_that_holds_the_interpreter(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    loop.pool.submit(job(1, "gil", 30.0, hard=0.2))
    assert loop.end_of(1, within=3).kind == "time_limit"


def test_jobs_sent_ahead_do_not_suffer_from_a_hard_limit(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    loop.warm_up()
    loop.pool.submit(job(100, "sleep", 30.0, hard=0.005))  # before the recall is due
    for key in range(101, 105):
        loop.pool.submit(job(key, "echo", b""))
    assert loop.end_of(100).kind == "time_limit"
    for key in range(101, 105):
        assert type(loop.end_of(key)) in (Done, Returned)


def test_the_soft_limit_interrupts_the_job_and_not_the_next(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    (pid,) = loop.pool.pids()
    assert loop.run("sleep", 30.0, 1, soft=0.1) == b"soft"
    assert loop.run("spin", 30.0, 2, soft=0.1) == b"soft"
    assert loop.run("echo", b"calm", 3) == b"calm"
    assert loop.pool.pids() == [pid]


def test_soft_limits_at_the_very_end_of_jobs_never_hit_another(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    soft = 0
    dice = random.Random(1)

    def ends_of(key: int) -> tuple[Any, Any]:
        loop.events.clear()
        loop.pool.submit(job(key, "spin", 0.002 + 0.004 * dice.random(), soft=0.002))
        loop.pool.submit(job(key + 1, "spin", 0.0005))
        return loop.end_of(key), loop.end_of(key + 1)

    for key in range(0, 600, 2):
        end, next_end = ends_of(key)
        while end == Returned(key):  # of a busy machine the child got nothing for a second
            end, next_end = ends_of(key)
        assert type(end) is Done
        soft += end.payload == b"soft"
        assert next_end == Returned(key + 1) or next_end.payload != b"soft"
    assert soft > 0  # the limit was hit at times, and the stream of answers is intact


def test_a_soft_limit_that_passes_before_the_users_code_begins_is_not_lost(
    start: Any,
) -> None:
    class Slow(TinyRunner):
        def run(self, payload: bytes, report: Report, key: int) -> bytes:
            time.sleep(0.3)
            return super().run(payload, report, key)

    loop = start(1, runner=Slow)
    loop.ready(1)
    assert loop.run("sleep", 30.0, 1, soft=0.1) == b"soft"
    assert loop.run("echo", b"calm", 2) == b"calm"


def test_a_soft_limit_of_a_job_that_was_not_started_does_not_stay_behind(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    (pid,) = loop.pool.pids()
    halt(pid)
    loop.pool.submit(job(1, "echo", b"calm", soft=0.05))
    assert loop.end_of(1) == Returned(1)
    os.kill(pid, signal.SIGCONT)
    loop.events.clear()
    assert loop.run("echo", b"calm", 1) == b"calm"


def test_a_soft_limit_in_the_middle_of_a_report_leaves_the_stream_whole(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    for key, size in enumerate((10, 100_000, 3_000_000)):
        assert loop.run("report", size, key, soft=0.1) == b"soft"
        assert loop.of(Reported)
        assert all(event.payload == b"r" * size for event in loop.of(Reported))
        loop.events.clear()
    assert loop.run("echo", b"fine", 9) == b"fine"


def test_a_soft_signal_from_a_stranger_is_ignored(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    (pid,) = loop.pool.pids()
    loop.begin(1, 0.3)
    for _ in range(5):
        os.kill(pid, signal.SIGUSR1)
        loop.turn(0.02)
    assert loop.end_of(1).payload != b"soft"


# Terminate


def test_terminate_ends_a_running_job(start: Any) -> None:
    loop = start()
    loop.ready(2)
    loop.begin(1, 30.0)
    loop.pool.submit(job(2, "sleep", 0.2))
    assert loop.pool.terminate(1)
    end = loop.end_of(1)
    assert (end.kind, end.reason) == ("terminated", "terminated by signal 15 (SIGTERM)")
    assert type(loop.end_of(2)) is Done


def test_terminate_with_sigusr1_is_a_soft_limit(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    loop.begin(1, 30.0)
    assert loop.pool.terminate(1, signal.SIGUSR1)
    assert loop.end_of(1).payload == b"soft"


def test_terminate_of_a_waiting_job_touches_no_other(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    loop.warm_up()
    loop.pool.submit(job(1000, "spin", 0.005))
    loop.pool.submit(job(1001, "spin", 0.005))
    assert loop.pool.terminate(1001)
    assert loop.end_of(1001).kind == "terminated"
    assert type(loop.end_of(1000)) is Done


def test_terminate_of_an_unknown_job_does_nothing(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    assert not loop.pool.terminate(12)


def test_a_child_that_survives_its_termination_is_replaced(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    (pid,) = loop.pool.pids()
    loop.pool.submit(job(1, "ignore_term", 0.4))
    loop.until(lambda: loop.of(Reported))
    assert loop.pool.terminate(1)
    assert type(loop.end_of(1)) is Done
    loop.ready(2)
    loop.until(lambda: pid not in loop.pool.pids())


# Death


@pytest.mark.parametrize("system", ["has pidfd_open", "has not"])
@pytest.mark.parametrize(
    ("name", "arg", "reason"),
    [
        ("kill", 9, "signal 9 (SIGKILL)"),
        ("exit", 139, "exit status 139"),
        ("exit", 0, "exit status 0"),
        ("crash", None, "signal 11 (SIGSEGV)"),
        ("leave", None, "exit status 1"),
        ("fork_die", None, "signal 9 (SIGKILL)"),
        ("close", 0.0, ""),  # its exit, or its channel: which is seen first is chance
        ("close", 30.0, "closed its channel"),
    ],
)
def test_a_death_costs_one_job_and_says_why(
    start: Any, monkeypatch: pytest.MonkeyPatch, name: str, arg: Any, reason: str, system: str
) -> None:
    if system == "has not":
        monkeypatch.delattr(os, "pidfd_open")
        if name == "close":
            reason = (
                "signal 9 (SIGKILL)" if arg else ""
            )  # a closed pipe is all that tells of it
    loop = start(1)
    loop.ready(1)
    loop.warm_up()
    loop.pool.submit(job(100, name, arg))
    for key in range(101, 106):
        loop.pool.submit(job(key, "echo", b""))
    end = loop.end_of(100)
    assert type(end) is LostJob
    assert end.kind == "died"
    assert reason in end.reason
    for key in range(101, 106):
        assert type(loop.end_of(key)) in (Done, Returned)
    loop.ready(2)
    assert loop.run("echo", b"again", 200) == b"again"


def test_a_pool_that_can_start_no_child_for_a_while_goes_on(
    start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    loop = start(1)
    loop.ready(1)
    with no_descriptors():
        loop.pool.submit(job(1, "kill", 9))
        assert type(loop.end_of(1)) is LostJob
        loop.until(lambda: caplog.text.count("ulimit -n") == 2)
    loop.ready(2)
    assert loop.run("echo", b"again", 2) == b"again"
    assert loop.of(Broken) == []


def test_no_zombies_are_left(start: Any) -> None:
    loop = start(2)
    loop.ready(2)
    for key in range(10):
        loop.pool.submit(job(key, "exit", 1))
        loop.end_of(key)
        loop.ready(3 + key)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert set(map(int, children)) >= set(loop.pool.pids())
    assert not [pid for pid in children if gone(int(pid))]


def test_the_output_of_a_dying_child_is_not_lost(
    start: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    loop = start(1)
    loop.ready(1)
    loop.pool.submit(job(1, "write"))
    loop.end_of(1)
    out, err = capfd.readouterr()
    assert "last words" in out
    assert "and errors" in err


def test_a_stopped_child_holds_up_nobody_and_goes_on_later(start: Any) -> None:
    loop = start(2)
    loop.ready(2)
    loop.begin(1, 0.3)
    (pid,) = loop.pool.running().values()
    halt(pid)
    for key in range(100, 150):
        assert type(loop.run("echo", b"", key)) is bytes
    assert not loop.ends(1)
    os.kill(pid, signal.SIGCONT)
    assert type(loop.end_of(1)) is Done


def test_a_job_given_to_a_stopped_child_survives_its_hard_limit_unstarted(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    (pid,) = loop.pool.pids()
    halt(pid)
    loop.pool.submit(job(1, "echo", b"", hard=0.1))
    assert loop.end_of(1) == Returned(1)
    assert loop.pool.capacity() == 0
    os.kill(pid, signal.SIGCONT)
    loop.until(lambda: loop.pool.capacity() == 1)
    assert loop.run("echo", b"woke", 2) == b"woke"


def test_a_job_given_to_a_stopped_child_goes_to_another(start: Any) -> None:
    loop = start(2)
    loop.ready(2)
    first = marshal.loads(loop.run("pid", None, 1))
    halt(first)  # the one that gets the next job, too
    other = marshal.loads(loop.run("pid", None, 2))
    assert other != first
    assert loop.pool.capacity() == 1
    os.kill(first, signal.SIGCONT)
    loop.until(lambda: loop.pool.capacity() == 2)


def test_a_stopped_child_is_killed_at_the_hard_limit(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    loop.begin(1, 30.0, hard=0.5)
    halt(loop.pool.pids()[0])
    assert loop.end_of(1).kind == "time_limit"


def halt(pid: int) -> None:
    """Stop a child of ours, and return when it has stopped: until then it may still take
    a job, which it then holds."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def in_process(work: Callable[[], None]) -> int:
    """Run this in a forked process, which ends with it; return its pid."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    finally:
        os._exit(0)


@pytest.mark.parametrize("in_thread", [False, True], ids=["main", "thread"])
@pytest.mark.parametrize("name", ["sleep", "spin", "gil", "sleeper", "idle", "forked"])
def test_children_and_their_sub_processes_die_with_the_parent(
    tmp_path: Path, name: str, *, in_thread: bool
) -> None:
    ours, theirs = socket.socketpair()
    end, held = os.pipe()  # by what the parent has forked besides

    def parent() -> None:
        os.close(held)
        if in_thread:
            threading.Thread(target=work).start()
            time.sleep(60)
        else:
            work()

    def work() -> None:
        loop = Loop(ProcessPool(TinyRunner, PoolOptions(2)))
        loop.ready(2)
        if name == "forked":
            in_process(lambda: os.read(end, 1))
        elif name != "idle":
            arg = str(tmp_path / "pid") if name == "sleeper" else 60.0
            loop.pool.submit(job(1, name, arg))
            loop.until(loop.pool.running)
            if name == "sleeper":
                loop.until(lambda: (tmp_path / "pid").exists())
                loop.until(lambda: (tmp_path / "pid").read_text())
        theirs.sendall(" ".join(map(str, loop.pool.pids())).encode())
        time.sleep(60)

    pid = in_process(parent)
    theirs.close()
    pids = [int(word) for word in ours.recv(1000).split()]
    if name == "sleeper":
        pids.append(int((tmp_path / "pid").read_text()))
    assert len(pids) >= 2
    assert not any(gone(child) for child in pids)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_for(lambda: all(gone(child) for child in pids), 2)
    ours.close()
    os.close(end)
    os.close(held)


# What a child starts with


def test_a_child_has_no_files_of_the_parent(start: Any, tmp_path: Path) -> None:
    gc.collect()  # what tests before have left is not to go in the middle
    others = _open_files()
    mine, peer = socket.socketpair()
    loop = start(3)
    loop.selector.register(mine, selectors.EVENT_READ, lambda mask: None)
    loop.ready(3)
    loop.pool.submit(job(1, "exit", 1))  # the successor is born among the others
    loop.end_of(1)
    loop.ready(4)
    before = set(os.listdir("/proc/self/fd"))
    for key in range(2, 8):
        links = marshal.loads(loop.run("files", None, key))
        own = Counter(links.values()) - others
        sockets = [to for to in own if to.startswith("socket:")]
        inode = os.readlink(f"/proc/self/fd/{mine.fileno()}")
        unknown_to_pool = os.readlink(f"/proc/self/fd/{peer.fileno()}")
        assert inode not in sockets
        ours = [to for to in sockets if to != unknown_to_pool]
        assert len(ours) == 4, own  # tokens, jobs, answers, life
        assert not [to for to in own if "eventpoll" in to or "pidfd" in to]
    assert set(os.listdir("/proc/self/fd")) == before
    loop.selector.unregister(mine)
    mine.close()
    peer.close()


def _open_files() -> Counter[str]:
    """Return what this process has open now, as a loop that a test before has left running."""
    return Counter(
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if Path(f"/proc/self/fd/{fd}").is_symlink() and Path(f"/proc/self/fd/{fd}").exists()
    )


@pytest.mark.parametrize("system", ["has pidfd_open", "has not"])
def test_the_pool_leaks_no_files_in_the_parent(
    monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    if system == "has not":
        monkeypatch.delattr(os, "pidfd_open")

    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = -1
    for _ in range(3):
        loop = Loop(ProcessPool(TinyRunner, PoolOptions(2)))
        loop.ready(2)
        loop.pool.submit(job(1, "exit", 1))
        loop.end_of(1)
        loop.pool.stop()
        loop.until(lambda: loop.pool.alive() == 0)  # noqa: B023
        loop.selector.close()
        if before < 0:
            before = files()
    assert files() == before


def test_signals_are_at_their_defaults_in_the_child_and_below(start: Any) -> None:
    seen = []
    old = signal.signal(signal.SIGTERM, lambda s, f: seen.append(s))
    try:
        loop = start(1)
        loop.ready(1)
        assert marshal.loads(loop.run("handlers", None, 1)) == []
        assert marshal.loads(loop.run("signals", None, 2)) == [-signal.SIGTERM, 0]
    finally:
        signal.signal(signal.SIGTERM, old)
    assert seen == []


def test_a_signal_handler_of_the_parent_never_runs_in_a_child(start: Any) -> None:
    wrong = []
    parent = os.getpid()
    old = signal.signal(
        signal.SIGALRM, lambda s, f: wrong.append(1) if os.getpid() != parent else None
    )
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)  # timers do not survive a fork,
    try:  # but signals that wait while it happens show whether the block is lifted again
        loop = start(2)
        loop.ready(2)
        assert signal.SIGALRM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert not wrong


def test_a_task_that_forks_and_returns_twice_answers_once(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    for key in range(5):
        assert loop.run("fork", None, key) == b"answer"
    assert loop.of(Reported) == []
    assert loop.run("echo", b"sound", 9) == b"sound"


def test_a_forked_process_has_its_name_and_tells_how_it_ended() -> None:
    heard, said = os.pipe()

    def main() -> None:
        os.write(said, multiprocessing.current_process().name.encode())
        os._exit(7)

    child = Forked("liteq-7", main)
    os.close(said)
    with open(heard, "rb") as file:
        assert file.read() == b"liteq-7"
    assert child.exitcode == 7
    assert child.exitcode is None  # it can be asked once
    assert multiprocessing.current_process().name != "liteq-7"


def test_what_a_program_has_multiprocessing_do_after_a_fork_is_done(start: Any) -> None:
    multiprocessing.util.register_after_fork(TOLD, lambda told: setattr(told, "of_fork", True))
    loop = start(1)
    loop.ready(1)

    assert marshal.loads(loop.run("told")) is True
    assert not TOLD.of_fork


def test_a_child_reads_nothing_from_the_terminal(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    assert marshal.loads(loop.run("stdin")) == ""


def test_at_fork_runs_in_the_child_before_everything(start: Any) -> None:
    class Runner(TinyRunner):
        def run(self, payload: bytes, report: Report, key: int) -> bytes:
            return b" ".join(seen)

    seen: list[bytes] = []
    loop = start(1, runner=Runner, at_fork=lambda: seen.append(b"forked"))
    loop.ready(1)
    assert loop.run("") == b"forked"
    assert seen == []


# The number of children


class DiesAtStart(TinyRunner):
    def start(self, stopping: Callable[[], bool]) -> None:
        os._exit(3)


class RaisesAtStart(TinyRunner):
    def start(self, stopping: Callable[[], bool]) -> None:
        raise RuntimeError("no database today")


@pytest.mark.parametrize("runner", [DiesAtStart, RaisesAtStart])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_children_that_die_at_their_start_break_the_pool(
    start: Any, runner: Any, concurrency: int
) -> None:
    loop = start(concurrency, runner=runner)
    loop.until(lambda: loop.pool.alive() == 0 and loop.of(Broken), within=10)
    (broken,) = loop.of(Broken)
    assert "exit status" in broken.reason
    assert loop.pool.tick(time.monotonic()) is None
    loop.pool.submit(job(1, "echo"))
    assert loop.end_of(1) == Returned(1)


def test_jobs_given_to_no_one_are_returned(start: Any) -> None:
    loop = start(1)
    loop.pool.submit(job(1, "echo"))  # nobody is ready yet, or only just
    assert type(loop.end_of(1)) in (Returned, Done)


def test_max_tasks_per_child_replaces_the_child(start: Any) -> None:
    loop = start(1, max_tasks_per_child=3)
    pids = []
    for key in range(9):
        loop.until(loop.pool.capacity)
        pids.append(marshal.loads(loop.run("pid", None, key)))
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 3]


def test_max_tasks_per_child_holds_with_jobs_sent_ahead(start: Any) -> None:
    loop = start(2, max_tasks_per_child=50)
    loop.ready(2)
    pids: Counter[int] = Counter()
    todo = list(range(1000))
    while sum(pids.values()) < 1000:
        while todo and loop.pool.capacity() > 0:
            loop.pool.submit(job(todo.pop(), "pid"))
        for event in loop.turn(1.0):
            match event:
                case Done(_, payload, _):
                    pids[marshal.loads(payload)] += 1
                case Returned(key):
                    todo.append(key)
                case LostJob():
                    pytest.fail(str(event))
    assert max(pids.values()) == 50


def test_max_memory_per_child_replaces_the_child_after_the_job(start: Any) -> None:
    # A forked child starts with what this process has: with a long test run's memory.
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    loop = start(1, max_memory_per_child=resident // 1024 + 100_000)
    loop.ready(1)
    first = marshal.loads(loop.run("grow", 1_000_000, 1))
    assert marshal.loads(loop.run("grow", 200_000_000, 2)) == first
    loop.ready(2)
    assert marshal.loads(loop.run("grow", 1_000_000, 3)) != first


def test_a_memory_limit_below_the_start_is_refused(start: Any) -> None:
    loop = start(2, max_memory_per_child=1000)
    loop.until(lambda: loop.of(Broken))
    assert "max_memory_per_child is 1000 KiB" in loop.of(Broken)[0].reason
    loop.until(lambda: loop.pool.alive() == 0)


def test_roll_replaces_all_children_one_at_a_time(start: Any) -> None:
    loop = start(3)
    loop.ready(3)
    old = loop.pool.pids()
    loop.begin(1, 0.3)
    loop.pool.roll()
    loop.until(lambda: len(loop.of(Ready)) == 6)
    assert type(loop.end_of(1)) is Done
    loop.until(lambda: loop.pool.alive() == 3)
    assert not set(old) & set(loop.pool.pids())
    assert loop.run("echo", b"new", 2) == b"new"


def test_resize_up_and_down(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    loop.pool.resize(4)
    loop.ready(4)
    assert loop.pool.capacity() == 4
    loop.begin(1, 0.5)
    (busy,) = loop.pool.running().values()
    loop.pool.resize(1)
    loop.until(lambda: loop.pool.alive() == 1)
    assert loop.pool.pids() == [busy]  # the idle ones went
    assert type(loop.end_of(1)) is Done


def test_resize_to_less_than_what_runs_lets_it_finish(start: Any) -> None:
    loop = start(3)
    loop.ready(3)
    for key in range(3):
        loop.begin(key, 1.0)
    loop.pool.resize(1)
    assert loop.pool.capacity() == 0
    for key in range(3):
        assert type(loop.end_of(key)) is Done
    loop.until(lambda: loop.pool.alive() == 1)


# The end


def test_a_warm_stop_finishes_what_runs_and_returns_the_rest(start: Any) -> None:
    loop = start(1)
    loop.ready(1)
    loop.warm_up()
    loop.pool.submit(job(100, "spin", 0.3))
    loop.until(loop.pool.running)
    loop.turn(0.001)
    for key in range(101, 105):
        loop.pool.submit(job(key, "echo", b""))
    loop.pool.stop()
    loop.until(lambda: loop.pool.alive() == 0)
    assert type(loop.end_of(100)) in (Done, Returned)
    assert {type(loop.end_of(key)) for key in range(101, 105)} == {Returned}
    assert loop.pool.tick(time.monotonic()) is None


def test_a_cold_stop_loses_what_runs_at_once(start: Any) -> None:
    loop = start(2)
    loop.ready(2)
    loop.begin(1, 60.0)
    loop.pool.stop()
    began = time.monotonic()
    loop.pool.stop(kill=True)
    assert time.monotonic() - began < 2
    assert loop.end_of(1).kind == "terminated"
    assert loop.pool.alive() == 0


def test_dump_writes_the_stacks_of_children(
    start: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    loop = start(1)
    loop.ready(1)
    loop.pool.submit(job(1, "spin", 30.0))
    loop.turn(0.1)
    loop.pool.dump()
    said = ""
    give_up = time.monotonic() + 5
    while "in spin" not in said and time.monotonic() < give_up:
        loop.turn(0.01)
        said += capfd.readouterr().err
    assert "in spin" in said


def test_the_spawn_method_works_alike(start: Any, tmp_path: Path) -> None:
    loop = start(1, start_method="spawn")
    loop.ready(1)
    assert loop.run("echo", b"hello", 1) == b"hello"
    assert marshal.loads(loop.run("size", b"x" * 1_000_000, 2)) == 1_000_000
    assert loop.run("sleep", 30.0, 3, soft=0.1) == b"soft"
    loop.pool.submit(job(4, "sleeper", str(tmp_path / "pid"), hard=1.0))
    assert loop.end_of(4).kind == "time_limit"
    wait_for(lambda: gone(int((tmp_path / "pid").read_text())), 2)
    loop.ready(2)
    links = marshal.loads(loop.run("files", None, 5))
    sockets = [to for fd, to in links.items() if int(fd) > 2 and to.startswith("socket:")]
    assert len(sockets) == 4
    loop.pool.submit(job(6, "kill", 9))
    assert loop.end_of(6).kind == "died"


def test_make_pool_knows_its_kinds() -> None:
    assert make_pool("prefork", TinyRunner, PoolOptions()).kind == "prefork"
    with pytest.raises(Exception, match="no pool 'gevent'"):
        make_pool("gevent", TinyRunner, PoolOptions())


# Garbage


def waits_at_most(pool: ProcessPool) -> bool:
    """Tell whether the pool's child will wake up without a job."""
    (child,) = pool._children
    return any(child.inbox.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16))


def test_an_idle_child_collects_what_its_job_left_and_then_sleeps(
    start: Callable[..., Loop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "EVERY", 0.2)
    loop = start(1)
    loop.ready(1)
    assert not waits_at_most(loop.pool)  # it has done nothing yet
    for key in (1, 2):
        left = tmp_path / f"gone-{key}"
        before = marshal.loads(loop.run("litter", str(left), key))
        wait_until(left.exists)
        wait_until(lambda: not waits_at_most(loop.pool))
        assert marshal.loads(loop.run("collections", key=key + 10)) > before


def test_a_busy_child_collects_between_two_jobs(
    start: Callable[..., Loop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "EVERY", 0.0)
    loop = start(1)
    loop.run("litter", str(tmp_path / "gone"), 1)
    assert marshal.loads(loop.run("collections", key=2)) >= 1
    assert (tmp_path / "gone").exists()


# A job that asks whether the worker is to stop


def begin(loop: Loop, name: str, arg: Any = None, **limits: float) -> None:
    loop.pool.submit(job(1, name, arg, **limits))
    loop.until(lambda: Reported(1, b"started") in loop.events)


@pytest.mark.parametrize(
    ("start_method", "name"),
    [("fork", "ask"), ("spawn", "ask"), ("fork", "ask after a signal")],
)
def test_a_running_job_is_told_that_the_worker_is_to_stop(
    start: Any, tmp_path: Path, start_method: str, name: str
) -> None:
    loop = start(1, stopping=lambda: True, start_method=start_method)
    loop.ready(1)
    begin(loop, name, str(tmp_path / "go"))

    loop.pool.stop()
    loop.pool.stop()
    (tmp_path / "go").touch()

    assert marshal.loads(loop.end_of(1).payload) is True
    loop.until(lambda: loop.pool.alive() == 0)


@pytest.mark.parametrize("end", ["none", "roll", "resize", "its last job", "stop"])
def test_no_other_end_of_a_child_is_told(start: Any, tmp_path: Path, end: str) -> None:
    most = 1 if end == "its last job" else None
    loop = start(2, stopping=lambda: False, max_tasks_per_child=most)
    loop.ready(2)
    begin(loop, "ask", str(tmp_path / "go"))

    match end:
        case "roll":
            loop.pool.roll()
            loop.ready(3)
            loop.turn(0)
        case "resize":
            loop.pool.resize(1)
        case "stop":
            loop.pool.stop()
    (tmp_path / "go").touch()

    assert marshal.loads(loop.end_of(1).payload) is False


@pytest.mark.parametrize("told", [True, False])
def test_a_job_that_asks_all_the_time_still_hears_of_its_soft_limit(
    start: Any, *, told: bool
) -> None:
    loop = start(1, stopping=lambda: told)
    loop.ready(1)
    begin(loop, "ask on")

    loop.pool.stop()
    if told:
        loop.until(lambda: Reported(1, b"told") in loop.events)
    assert loop.pool.terminate(1, signal.SIGUSR1)

    assert loop.end_of(1).payload == b"soft"


def test_a_copy_that_a_job_forks_is_told_nothing(start: Any, tmp_path: Path) -> None:
    loop = start(1, stopping=lambda: True)
    loop.ready(1)
    begin(loop, "ask in a copy", str(tmp_path / "go"))

    loop.pool.stop()
    (tmp_path / "go").touch()

    assert marshal.loads(loop.end_of(1).payload) == [True, False]
