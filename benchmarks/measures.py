"""What is measured: each function takes one measurement of one system, and names the values
as `ROWS` does."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from benchmarks.site import Site, System, cpu_seconds, memory

LITEQ = System(
    "liteq",
    "benchmarks.on_liteq",
    ("import liteq", "import liteq; liteq.Liteq"),
    "-m liteq -q -A benchmarks.on_liteq worker -l warning -c",
)
HUEY = System(
    "Huey (SQLite)",
    "benchmarks.on_huey",
    ("import huey", "import huey; huey.SqliteHuey"),
    "-m huey.bin.huey_consumer benchmarks.on_huey.huey -q -k process -w",
)
PEERS = (HUEY,)


class Scale(NamedTuple):
    """How much is done."""

    rounds: int = 3
    tasks: int = 20_000  # enqueued, then drained
    synced: int = 2_000  # enqueued with an fsync each
    calls: int = 200  # one at a time
    idle: float = 10.0  # seconds
    imports: int = 7
    depths: tuple[int, ...] = (1_000, 100_000, 1_000_000)


QUICK = Scale(1, 3_000, 300, 40, 3.0, 3, (1_000, 100_000))

ROWS = {
    "drain": "drain no-op tasks with results, 2 children, tasks/s",
    "drain CPU": "… CPU of the worker's processes, µs a task",
    "enqueue p50": "enqueue one, durability normal, p50, µs",
    "enqueue p99": "… p99, µs",
    "enqueue CPU": "… CPU, µs",
    "synced p50": "enqueue one, durability full, p50, µs",
    "synced p99": "… p99, µs",
    "start p50": "enqueue → task starts, idle worker, p50, ms",
    "start p99": "… p99, ms",
    "trip p50": "call and wait for the result, p50, ms",
    "idle memory": "idle worker, 2 children: PSS, MB",
    "idle CPU": "… CPU, %",
    "import": "import over bare Python, ms",
    "import class": "… with the app's class, ms",
}
Values: TypeAlias = Mapping[str, float]
Measure: TypeAlias = Callable[[System, Scale], Values]


def imports(system: System, scale: Scale) -> Values:
    def seconds(site: Site, code: str) -> float:
        start = time.perf_counter()
        site.python("-c", code)
        return time.perf_counter() - start

    with Site(system) as site:
        package, app_class = (
            statistics.median(
                seconds(site, code) - seconds(site, "pass") for _ in range(scale.imports)
            )
            for code in system.imports
        )
    return {"import": package * 1e3, "import class": app_class * 1e3}


def drain(system: System, scale: Scale) -> Values:
    """Enqueue all without a worker, then start one."""
    number = scale.tasks
    with Site(system) as site:
        took, cpu = site.drive("enqueue", number=number)
        with site.worker() as worker:
            site.wait(1)
            before = cpu_seconds(worker)
            site.wait(number)
            starts = site.starts(number).values()
            used = cpu_seconds(worker) - before
        if (kept := site.drive("results")) != number:
            raise RuntimeError(f"{kept} results of {number} tasks")
    return {
        "drain": (number - 1) / (max(starts) - min(starts)) * 1e9,
        "drain CPU": used / number * 1e6,
        "enqueue p50": quantile(took, 0.5) / 1e3,
        "enqueue p99": quantile(took, 0.99) / 1e3,
        "enqueue CPU": cpu / number * 1e6,
    }


def synced(system: System, scale: Scale) -> Values:
    with Site(system, "full") as site:
        took, _ = site.drive("enqueue", number=scale.synced)
    return {"synced p50": quantile(took, 0.5) / 1e3, "synced p99": quantile(took, 0.99) / 1e3}


def latency(system: System, scale: Scale) -> Values:
    with Site(system) as site, site.worker():
        site.warm_up()
        called = site.drive("paced", number=scale.calls)
        site.wait(20 + scale.calls)
        starts = site.starts(scale.calls)
        waits = [starts[number] - at for number, at in enumerate(called)]
        site.effects.write_bytes(b"")
        trips = site.drive("round_trips", number=scale.calls)
        site.starts(scale.calls)
    return {
        "start p50": quantile(waits, 0.5) / 1e6,
        "start p99": quantile(waits, 0.99) / 1e6,
        "trip p50": quantile(trips, 0.5) / 1e6,
    }


def idle(system: System, scale: Scale, delayed: int = 0) -> Values:
    """Look at a worker that has nothing to do but to wait for tomorrow's messages."""
    with Site(system) as site:
        if delayed:
            site.drive("preload", number=delayed, delay=86_400)
        with site.worker() as worker:
            site.warm_up()
            before = cpu_seconds(worker)
            time.sleep(scale.idle)
            used = cpu_seconds(worker) - before
            return {"idle memory": memory(worker), "idle CPU": used / scale.idle * 100}


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


MEASURES: tuple[Measure, ...] = (imports, drain, synced, latency, idle)
