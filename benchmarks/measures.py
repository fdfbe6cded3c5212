"""What is measured: each part takes measurements of one system, and names the values as `ROWS`
does. A count that is not as it must be is an error, and enters no table.

A part yields the values as it comes by them, so that what fails takes nothing else with it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

from benchmarks import effects
from benchmarks.processes import cpu_seconds
from benchmarks.servers import Redis
from benchmarks.site import Site, Worker
from benchmarks.systems import System

__all__ = ["PARTS", "QUICK", "ROWS", "Part", "Row", "Scale", "Values"]


class Scale(NamedTuple):
    """How much is done."""

    rounds: int = 3
    tasks: int = 20_000  # enqueued, then drained; fewer for the slow (`System.tasks`)
    fewer: int = 1  # what `System.tasks` is divided by
    synced: int = 2_000  # enqueued with an fsync each
    calls: int = 200  # one at a time
    trips: float = 12.0  # seconds for the round trips, after which there are fewer
    chord: int = 1_000
    large: int = 10_000  # a chord, of those that can
    chain: int = 100
    producers: int = 16
    producing: float = 4.0  # seconds
    killed: int = 200  # tasks of 50 ms, the worker killed when 45 % have ended
    recovery: float = 20.0  # seconds without any progress after which the rest is given up
    settle: float = 2.0  # seconds after a warm-up
    idle: float = 10.0  # seconds
    imports: int = 7
    depths: tuple[int, ...] = (1_000, 100_000, 1_000_000)
    history: int = 5_000_000
    patience: float = 120.0  # seconds for one workflow
    limit: float = 400.0  # seconds for one part of one system


QUICK = Scale(
    rounds=1,
    tasks=2_000,
    fewer=5,
    synced=300,
    calls=40,
    trips=2.0,
    chord=200,
    large=0,
    chain=30,
    producing=1.0,
    killed=60,
    recovery=3.0,
    settle=0.5,
    idle=2.0,
    imports=2,
    depths=(1_000, 100_000),
    history=100_000,
    limit=90.0,
)


class Row(NamedTuple):
    """A line of the table. `better`: the greater or the smaller value."""

    text: str
    better: str = "smaller"


ROWS = {
    "enqueue p50": Row("enqueue one: p50, µs"),
    "enqueue p99": Row("… p99, µs"),
    "enqueue CPU": Row("… CPU, µs"),
    "synced p50": Row("enqueue one, safe against a power loss: p50, µs"),
    "bulk": Row("enqueue many in one call: µs a task"),
    "bulk CPU": Row("… CPU, µs a task"),
    "drain": Row("drain no-op tasks, results kept, 2 children: tasks/s", "greater"),
    "drain CPU": Row("… CPU of the worker's processes, µs a task"),
    "server CPU": Row("… CPU of Redis, µs a task"),
    "mixed": Row("producer and worker at once: tasks/s", "greater"),
    "start p50": Row("enqueue → task starts, idle worker, 50 ms after the last: p50, ms"),
    "start p99": Row("… p99, ms"),
    "floor p50": Row("… of which a bare insert, wake-up, claim and hand-over: p50, ms"),
    "floor p99": Row("… p99, ms"),
    "brisk p50": Row("enqueue → task starts, 10 ms after the last: p50, ms"),
    "brisk p99": Row("… p99, ms"),
    "trip p50": Row("call and wait for the result: p50, ms"),
    "chord": Row("chord of {scale.chord:,}, its result waited for, s"),
    "large": Row("chord of {scale.large:,}, s"),
    "chain": Row("chain of {scale.chain:,}, its result waited for, s"),
    "chain again": Row("… and a second one of the same process, s"),
    "producers": Row("{scale.producers} producers on one file: tasks/s", "greater"),
    "producers p99": Row("… p99 of a call, ms"),
    "producers share": Row("… the busiest sent so many times what the least did"),
    "ready": Row("start of the worker → its first task, s"),
    "lost": Row("worker killed (kill -9) under {scale.killed} tasks: not finished"),
    "twice": Row("… finished twice"),
    "again": Row("… from its restart to the next task, s"),
    "idle memory": Row("idle worker, 2 children: PSS, MiB"),
    "idle CPU": Row("… CPU, %"),
    "import": Row("import of the package, over bare Python, ms"),
    "import class": Row("… and of the class that all use, ms"),
}
Values: TypeAlias = Mapping[str, float]
Part: TypeAlias = Callable[[System, Scale, Redis], Iterator[Values]]
_DURABLE = ("liteq", "huey")  # those that can sync each message


def imports(system: System, scale: Scale, redis: Redis) -> Iterator[Values]:
    def seconds(site: Site, code: str) -> float:
        start = time.perf_counter()
        site.python("-c", code)
        return time.perf_counter() - start

    with Site(system, redis) as site:
        for row, code in zip(("import", "import class"), system.imports, strict=True):
            seconds(site, code)  # compiles what was not yet
            pairs = [(seconds(site, code), seconds(site, "pass")) for _ in range(scale.imports)]
            yield {row: statistics.median(whole - bare for whole, bare in pairs) * 1e3}


def drain(system: System, scale: Scale, redis: Redis) -> Iterator[Values]:
    """Enqueue all without a worker, then start one."""
    number = _tasks(system, scale)
    with Site(system, redis) as site:
        took, cpu, _ = site.drive("enqueue", number=number)
        yield {
            "enqueue p50": quantile(took, 0.5) / 1e3,
            "enqueue p99": quantile(took, 0.99) / 1e3,
            "enqueue CPU": cpu / number * 1e6,
        }
        with site.worker() as worker:
            site.wait(1)
            yield {"ready": (effects.read(site.effects)[0][1] - worker.started) / 1e9}
            before, served = worker.cpu_seconds(), cpu_seconds(redis.pid)
            done = effects.count(site.effects)
            starts = site.starts(number).values()
            used = worker.cpu_seconds() - before
            served = cpu_seconds(redis.pid) - served
        if (kept := site.drive("results")) not in (number, None):
            raise RuntimeError(f"{kept} results of {number} tasks")
        yield {
            "drain": (number - 1) / (max(starts) - min(starts)) * 1e9,
            "drain CPU": used / (number - done) * 1e6,
        }
        if system.store == "redis":
            yield {"server CPU": served / (number - done) * 1e6}


def bulk(system: System, scale: Scale, redis: Redis) -> Iterator[Values]:
    """Hand all over at once, where a system has a call for that."""
    number = _tasks(system, scale)
    with Site(system, redis) as site:
        took = site.drive("many", number=number)
        if took is None:
            return
        with site.worker():
            site.starts(number)
    wall, cpu = took
    yield {"bulk": wall / number * 1e6, "bulk CPU": cpu / number * 1e6}


def synced(system: System, scale: Scale, redis: Redis) -> Iterator[Values]:
    if system.name in _DURABLE:
        with Site(system, redis, "full") as site:
            took, *_ = site.drive("enqueue", number=scale.synced)
        yield {"synced p50": quantile(took, 0.5) / 1e3}


def producers(system: System, scale: Scale, redis: Redis) -> Iterator[Values]:
    """Many processes that enqueue as fast as they can, for a while, into one file."""
    if system.store != "file":
        return
    with Site(system, redis) as site:
        each = site.drive_many(scale.producers, "produce", seconds=scale.producing)
        counts = [len(took) for took in each]
        sent = sum(counts) + scale.producers  # each sent one before
        if (kept := site.drive("waiting")) not in (sent, None):
            raise RuntimeError(f"{kept} tasks wait of {sent} sent")
    yield {
        "producers": sum(counts) / scale.producing,
        "producers p99": quantile([ns for took in each for ns in took], 0.99) / 1e6,
        "producers share": max(counts) / max(1, min(counts)),
    }


def running(system: System, scale: Scale, redis: Redis) -> Iterator[Values]:
    """What is done with a worker that runs, idle at first."""
    number = _tasks(system, scale)
    with Site(system, redis) as site, site.worker() as worker:
        site.warm_up(scale.settle)
        yield _idle(worker, scale)

        yield _starts("start", site, scale, pause=0.05)
        if system.name == "liteq":
            yield _floor(site, scale)
        elif system.name == "liteq-redis":
            yield _floor(site, scale, redis)
        site.forget()
        # A processor that has slept for some 30 ms may have been put away by firmware or
        # hypervisor: it wakes up slowly and with empty caches, whatever runs on it then.
        yield _starts("brisk", site, scale, pause=0.01)
        site.forget()
        trips = site.drive("round_trips", number=scale.calls, budget=scale.trips)
        site.starts(len(trips))
        yield {"trip p50": quantile(trips, 0.5) / 1e6}

        site.forget()
        *_, began = site.drive("enqueue", number=number)
        last = max(site.starts(number).values())
        yield {"mixed": number / (last - began) * 1e9}

        works = {
            "chain": ("chain", scale.chain),
            "chord": ("chord", scale.chord),
            "large": ("chord", scale.large),
        }
        for row, (kind, size) in works.items():
            site.forget()
            if not size:
                continue
            try:
                # The members of a chord leave records, which are counted: it is run once.
                times = 2 if kind == "chain" else 1
                took = site.drive(
                    "canvas", within=scale.patience, kind=kind, size=size, times=times
                )
            except subprocess.TimeoutExpired:
                yield {f"{row} at least": scale.patience}
                return  # what the worker is still at would be in the way of the next
            if took is not None:
                if kind == "chord":
                    site.starts(size)
                yield {row: took[0]}
                if times > 1:
                    yield {f"{row} again": took[1]}


def _tasks(system: System, scale: Scale) -> int:
    return min(scale.tasks, system.tasks // scale.fewer)


def _starts(row: str, site: Site, scale: Scale, pause: float) -> Values:
    """Call one at a time, so many seconds apart: how long each took to start."""
    called = site.drive("paced", number=scale.calls, pause=pause)
    starts = site.starts(scale.calls)
    waits = [starts[number] - at for number, at in enumerate(called)]
    return {f"{row} p50": quantile(waits, 0.5) / 1e6, f"{row} p99": quantile(waits, 0.99) / 1e6}


def _floor(site: Site, scale: Scale, redis: Redis | None = None) -> Values:
    """What no queue on this store can be below, on this machine and now."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        place = folder if redis is None else f"127.0.0.1:{redis.port}"
        printed = site.python("-m", "benchmarks.floor", place, str(scale.calls))
    waits = json.loads(printed.rpartition("@@")[2])
    return {"floor p50": quantile(waits, 0.5) / 1e6, "floor p99": quantile(waits, 0.99) / 1e6}


def _idle(worker: Worker, scale: Scale) -> Values:
    before = worker.cpu_seconds()
    time.sleep(scale.idle)
    used = worker.cpu_seconds() - before
    return {"idle memory": worker.memory(), "idle CPU": used / scale.idle * 100}


def crash(system: System, scale: Scale, redis: Redis) -> Iterator[Values]:
    """Kill the whole worker in the middle of its work, and start it again at once."""
    number = scale.killed
    with Site(system, redis) as site:
        site.drive("sleepers", number=number, milliseconds=50)
        with site.worker() as first:
            site.need(lambda: _ended(site) >= number * 9 // 20)
            first.kill()
        known = len(effects.read(site.effects))
        with site.worker() as second:
            # Some hold what was under way back for minutes: then there is nothing to see.
            if site.wait_for(lambda: effects.count(site.effects) > known, scale.recovery + 10):
                next_one = effects.read(site.effects)[known][1]
                yield {"again": (next_one - second.started) / 1e9}
            while (ended := _ended(site)) < number:
                more = partial(_more_ended, site, ended)
                if not site.wait_for(more, scale.recovery):
                    break
            time.sleep(1)  # for those that start a second time
        ends = [n for n, _ in effects.read(site.effects) if n >= effects.ENDED]
    yield {
        "lost": number - len(set(ends)),
        "twice": len(ends) - len(set(ends)),
    }


def _ended(site: Site) -> int:
    return len({number for number, _ in effects.read(site.effects) if number >= effects.ENDED})


def _more_ended(site: Site, than: int) -> bool:
    return _ended(site) > than


def quantile(values: Sequence[int], share: float) -> int:
    return sorted(values)[int(len(values) * share)]


PARTS: Mapping[str, Part] = {
    part.__name__: part for part in (imports, drain, bulk, synced, producers, running, crash)
}
