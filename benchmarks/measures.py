"""What is measured: each function takes one measurement of one system, and names the values
as `ROWS` does. A count that is not as it must be is an error, and enters no table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from benchmarks import effects
from benchmarks.servers import Redis
from benchmarks.site import Site, cpu_seconds
from benchmarks.systems import LITEQ, System

__all__ = ["MEASURES", "QUICK", "ROWS", "Measure", "Scale", "Values", "depths", "idle"]


class Scale(NamedTuple):
    """How much is done."""

    rounds: int = 3
    tasks: int = 20_000  # enqueued, then drained; fewer for the slow (`System.tasks`)
    synced: int = 2_000  # enqueued with an fsync each
    calls: int = 200  # one at a time
    trips: float = 12.0  # seconds for the round trips, after which there are fewer
    chord: int = 1_000
    chain: int = 100
    killed: int = 200  # tasks of 50 ms, the worker killed when 90 have ended
    recovery: float = 20.0  # seconds that are waited for the rest
    idle: float = 10.0  # seconds
    imports: int = 7
    depths: tuple[int, ...] = (1_000, 100_000, 1_000_000)


QUICK = Scale(1, 2_000, 300, 40, 4.0, 200, 30, 100, 10.0, 3.0, 3, (1_000, 100_000))


class Row(NamedTuple):
    """A line of the table. `better`: the greater or the smaller value."""

    text: str
    better: str = "smaller"


ROWS = {
    "drain": Row("drain no-op tasks, results kept, 2 children: tasks/s", "greater"),
    "drain CPU": Row("… CPU of the worker's processes, µs a task"),
    "server CPU": Row("… CPU of Redis, µs a task"),
    "enqueue p50": Row("enqueue one: p50, µs"),
    "enqueue p99": Row("… p99, µs"),
    "enqueue CPU": Row("… CPU, µs"),
    "synced p50": Row("enqueue one, safe against a power loss: p50, µs"),
    "start p50": Row("enqueue → task starts, idle worker: p50, ms"),
    "start p99": Row("… p99, ms"),
    "trip p50": Row("call and wait for the result: p50, ms"),
    "chord": Row("chord of {scale.chord:,}, its result waited for, s"),
    "chain": Row("chain of {scale.chain:,}, its result waited for, s"),
    "mixed": Row("producer and worker at once: tasks/s", "greater"),
    "ready": Row("start of the worker → its first task, s"),
    "lost": Row("worker killed (kill -9) at 90 of {scale.killed} tasks: not finished"),
    "twice": Row("… finished twice"),
    "again": Row("… from its restart to the next task, s"),
    "idle memory": Row("idle worker, 2 children: PSS, MB"),
    "idle CPU": Row("… CPU, %"),
    "import": Row("import of the package, over bare Python, ms"),
    "import class": Row("… and of the class that all use, ms"),
}
Values: TypeAlias = Mapping[str, float]
Measure: TypeAlias = Callable[[System, Scale, Redis], Values]
_DURABLE = ("liteq", "huey")  # those that can sync each message


def imports(system: System, scale: Scale, redis: Redis) -> Values:
    def seconds(site: Site, code: str) -> float:
        start = time.perf_counter()
        site.python("-c", code)
        return time.perf_counter() - start

    with Site(system, redis) as site:
        package, app_class = (
            statistics.median(
                seconds(site, code) - seconds(site, "pass") for _ in range(scale.imports)
            )
            for code in system.imports
        )
    return {"import": package * 1e3, "import class": app_class * 1e3}


def drain(system: System, scale: Scale, redis: Redis) -> Values:
    """Enqueue all without a worker, then start one."""
    number = min(scale.tasks, system.tasks)
    with Site(system, redis) as site:
        took, cpu = site.drive("enqueue", number=number)
        with site.worker() as worker:
            site.wait(1)
            ready = (time.monotonic_ns() - worker.started) / 1e9
            before, served = worker.cpu_seconds(), cpu_seconds(redis.pid)
            site.wait(number)
            starts = site.starts(number).values()
            used = worker.cpu_seconds() - before
            served = cpu_seconds(redis.pid) - served
        if (kept := site.drive("results")) not in (number, None):
            raise RuntimeError(f"{kept} results of {number} tasks")
    values = {
        "drain": (number - 1) / (max(starts) - min(starts)) * 1e9,
        "drain CPU": used / number * 1e6,
        "enqueue p50": quantile(took, 0.5) / 1e3,
        "enqueue p99": quantile(took, 0.99) / 1e3,
        "enqueue CPU": cpu / number * 1e6,
        "ready": ready,
    }
    if system.store == "redis":
        values["server CPU"] = served / number * 1e6
    return values


def mixed(system: System, scale: Scale, redis: Redis) -> Values:
    """Enqueue while a worker drains: the whole, from the first call to the last task."""
    number = min(scale.tasks, system.tasks)
    with Site(system, redis) as site, site.worker():
        site.warm_up()
        start = time.monotonic()
        site.drive("enqueue", number=number)
        site.wait(20 + number)
        took = time.monotonic() - start
        site.starts(number)
    return {"mixed": number / took}


def synced(system: System, scale: Scale, redis: Redis) -> Values:
    if system.name not in _DURABLE:
        return {}
    with Site(system, redis, "full") as site:
        took, _ = site.drive("enqueue", number=scale.synced)
    return {"synced p50": quantile(took, 0.5) / 1e3}


def latency(system: System, scale: Scale, redis: Redis) -> Values:
    with Site(system, redis) as site, site.worker():
        site.warm_up()
        called = site.drive("paced", number=scale.calls)
        site.wait(20 + scale.calls)
        starts = site.starts(scale.calls)
        waits = [starts[number] - at for number, at in enumerate(called)]
        site.effects.write_bytes(b"")
        trips = site.drive("round_trips", number=scale.calls, budget=scale.trips)
        site.starts(len(trips))
    return {
        "start p50": quantile(waits, 0.5) / 1e6,
        "start p99": quantile(waits, 0.99) / 1e6,
        "trip p50": quantile(trips, 0.5) / 1e6,
    }


def canvas(system: System, scale: Scale, redis: Redis) -> Values:
    values = {}
    for kind, size in (("chord", scale.chord), ("chain", scale.chain)):
        with Site(system, redis) as site, site.worker():
            site.warm_up()
            took = site.drive("canvas", kind=kind, size=size)
            if took is not None:
                values[kind] = took
    return values


def crash(system: System, scale: Scale, redis: Redis) -> Values:
    """Kill the whole worker in the middle of its work, and start it again at once."""
    number = scale.killed
    with Site(system, redis) as site:
        site.drive("sleepers", number=number, milliseconds=50)
        with site.worker() as first:
            site.wait_for(lambda: _ended(site) >= number * 9 // 20)
            first.kill()
        known = len(effects.read(site.effects))
        with site.worker() as second:
            site.wait_for(lambda: len(effects.read(site.effects)) > known)
            again = effects.read(site.effects)[known][1] - second.started
            site.wait_for(lambda: _ended(site) >= number, within=scale.recovery, strict=False)
            time.sleep(1)  # for those that start a second time
        ends = [n for n, _ in effects.read(site.effects) if n >= effects.ENDED]
    return {
        "lost": number - len(set(ends)),
        "twice": len(ends) - len(set(ends)),
        "again": again / 1e9,
    }


def _ended(site: Site) -> int:
    return len({number for number, _ in effects.read(site.effects) if number >= effects.ENDED})


def idle(system: System, scale: Scale, redis: Redis, delayed: int = 0) -> Values:
    """Look at a worker that has nothing to do but to wait for tomorrow's messages."""
    with Site(system, redis) as site:
        if delayed:
            site.drive("preload", number=delayed, delay=86_400)
        with site.worker() as worker:
            site.warm_up()
            before = worker.cpu_seconds()
            time.sleep(scale.idle)
            used = worker.cpu_seconds() - before
            return {"idle memory": worker.memory(), "idle CPU": used / scale.idle * 100}


def depths(scale: Scale) -> dict[int, list[float]]:
    """Return, by the number of messages that wait, the CPU µs of an enqueue and those of a
    claim with its settle: medians of rounds in which the stores take turns."""
    sites = {depth: Site(LITEQ) for depth in scale.depths}
    costs: dict[int, list[list[float]]] = {depth: [] for depth in sites}
    for depth, site in sites.items():
        site.drive("preload", number=depth, delay=None)
    for _ in range(4 * scale.rounds + 1):
        for depth, site in sites.items():
            costs[depth].append(site.drive("cost", number=400))
    return {
        depth: [*map(statistics.median, zip(*costs[depth], strict=True))] for depth in sites
    }


def quantile(values: Sequence[int], share: float) -> int:
    return sorted(values)[int(len(values) * share)]


MEASURES: tuple[Measure, ...] = (imports, drain, mixed, synced, latency, canvas, crash, idle)
