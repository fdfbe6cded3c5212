"""The capacity model of docs/scaling.md: calibrated here, compared with what is measured here,
and asked about more workers than fit here.

`python -m benchmarks model`. The costs come from runs of one worker, and from one of four that
says what a crowd costs; the comparison is with one, two and three workers at work that the
calibration has not seen. CPUs that other programs
keep busy are taken off those that the model has, so that the error is the model's; but a
machine with other work to do makes for rough figures all the same.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, NamedTuple, ParamSpec

from benchmarks.processes import children_of, cpu_seconds, others_cpu_seconds
from benchmarks.servers import Redis
from benchmarks.simulation import Costs, Plan, simulate
from benchmarks.site import Site, Worker
from benchmarks.systems import LITEQ, LITEQ_REDIS, System

__all__ = ["main"]

P = ParamSpec("P")

# What is compared: the kind of task, its milliseconds, and how many a worker gets through.
_KINDS: Final = (("sleeping", 20), ("computing", 4), ("empty", 0))
_WORKERS: Final = (1, 2, 3)
_CROWD: Final = 4  # workers
_TRIES: Final = 4  # at a measurement that others disturb
_CPUS: Final = os.cpu_count() or 1


class Measured(NamedTuple):
    """What tasks took: per second; and CPU seconds of each, of the parents, of children and
    of Redis; and the CPUs that were there for all of us."""

    rate: float
    parent: float
    child: float
    server: float
    cores: float


def main(*, quick: bool) -> str:
    """Return the costs, the comparison and the prediction for both stores, as Markdown."""
    seconds = 1.0 if quick else 4.0
    day, python = time.strftime("%Y-%m-%d"), platform.python_version()
    parts = [f"{day}, Python {python}, {_CPUS} CPUs."]
    redis = Redis()
    try:
        for system in (LITEQ, LITEQ_REDIS):
            _say(f"{system.title}: what things cost")
            costs = calibrate(system, redis, seconds)
            parts += [f"### {system.title}", capacity(costs)]
            parts += [compare(system, redis, costs, seconds), predict(system, costs)]
    finally:
        redis.stop()
    return "\n\n".join(parts)


def calibrate(system: System, redis: Redis, seconds: float) -> Costs:
    """Find the costs: the store's alone, those of a worker whose rounds are full and of one
    whose rounds are of one task each, and then how much longer all takes in a crowd."""
    step, settling, turning = _costs_of_store(system, redis)
    full = measure(system, redis, "empty", 0, 1, 2, seconds)
    single = measure(system, redis, "sleeping", 5, 1, 1, seconds)
    # On SQLite the parent's CPU time includes the store's; Redis has its own process.
    ours = (step, settling) if system.store == "file" else (0.0, 0.0)
    handling = max(0.0, full.parent - ours[1])
    costs = Costs(
        round_=max(0.0, single.parent - sum(ours) - handling),
        handling=handling,
        step=step,
        settling=settling,
        running=full.child,
        waking=max(0.0, single.child - full.child),
        passing=0.0,
    )
    # What is left of a round trip of the one child: nobody works, somebody is being woken.
    wakings = 4 if system.store == "redis" else 2  # a server and who asked it are, too
    passing = max(0.0, (1 / single.rate - 0.005 - sum(costs)) / wakings)
    calling = passing if system.store == "redis" else 0.0
    costs = costs._replace(passing=passing, calling=calling, turning=turning)
    crowd = measure(system, redis, "empty", 0, _CROWD, 2, seconds)
    return costs._replace(crowding=_crowding(system, costs, crowd))


def _crowding(system: System, costs: Costs, crowd: Measured) -> float:
    """Return the crowding with which the model takes the CPU time that the crowd took."""
    took = crowd.parent + crowd.child + crowd.server
    low, high = 0.0, 2.0
    for _ in range(7):
        tried = (low + high) / 2
        said = simulate(
            _plan(system, _CROWD, crowd, "empty", 0), costs._replace(crowding=tried)
        )
        if said.cores * crowd.cores / said.rate < took:
            low = tried
        else:
            high = tried
    return low


def _plan(system: System, workers: int, found: Measured, kind: str, milliseconds: int) -> Plan:
    """Return the plan of what was measured."""
    # Who mostly sleeps gets a CPU when it wakes up, however many others want one.
    speed = 1.0 if kind == "sleeping" else found.cores / _CPUS
    gate = system.store == "file"
    return Plan(workers, cores=_CPUS, speed=speed, gate=gate, **_of(kind, milliseconds))


def _costs_of_store(system: System, redis: Redis) -> tuple[float, float, float]:
    """Return seconds of the store for a step, for each task in it, and for a step after one
    of another worker."""
    found = []
    with Site(system, redis) as site:
        site.drive("preload", number=2_000)
        for batch, workers in ((1, 1), (50, 1), (1, 2)):
            rounds = []
            for _ in range(5):
                _, used, _, served = site.drive(
                    "cost", number=1_000, batch=batch, workers=workers
                )
                rounds.append((served if system.store == "redis" else used) / 1e6)
            found.append(statistics.median(rounds))
    one, many, by_turns = found
    settling = (50 * many - one) / 49
    return one - settling, settling, max(0.0, by_turns - one)


def _undisturbed(run: Callable[P, Measured]) -> Callable[P, Measured]:
    """Make a run again, and again, if others took more of the CPUs meanwhile than a
    twentieth; then the run they took the least of counts."""

    def repeated(*args: P.args, **kwargs: P.kwargs) -> Measured:
        runs: list[Measured] = []
        for _ in range(_TRIES):
            runs.append(run(*args, **kwargs))
            if runs[-1].cores > 0.95 * _CPUS:
                break
        return max(runs, key=lambda run: run.cores)

    return repeated


@_undisturbed
def measure(
    system: System,
    redis: Redis,
    kind: str,
    milliseconds: int,
    workers: int,
    children: int,
    seconds: float,
) -> Measured:
    """Have workers run tasks of a kind for some seconds."""
    each = {
        "sleeping": milliseconds / 1000 / workers / children,
        "computing": milliseconds / 1000 / _CPUS,
        "empty": 0.000_1,
    }
    number = int(seconds / each[kind])
    with Site(system, redis) as site, ExitStack() as stack:
        ours = [stack.enter_context(site.worker(children)) for _ in range(workers)]
        site.drive("gather_workers", number=workers)
        site.warm_up(1.0)
        site.drive("load", kind=kind, number=number, milliseconds=milliseconds)
        used, others, start = _usage(ours), others_cpu_seconds(redis.pid), time.monotonic()
        served = cpu_seconds(redis.pid)
        site.drive("go")
        times = sorted(site.starts(number).values())
        parents, forked = (
            after - before for after, before in zip(_usage(ours), used, strict=True)
        )
        served = cpu_seconds(redis.pid) - served
        others = others_cpu_seconds(redis.pid) - others - parents - forked
        load = others / (time.monotonic() - start)
    low, high = len(times) // 10, len(times) * 9 // 10
    return Measured(
        rate=(high - low) / (times[high] - times[low]) * 1e9,
        parent=parents / number,
        child=forked / number,
        server=served / number,
        cores=_CPUS - min(max(load, 0.0), _CPUS - 0.1),
    )


def _usage(workers: list[Worker]) -> tuple[float, float]:
    """Return the CPU seconds of all parents, and of all children."""
    forked = sum(
        cpu_seconds(int(child.name))
        for worker in workers
        for pid in worker.pids
        for child in children_of(pid)
    )
    return sum(worker.cpu_seconds() for worker in workers) - forked, forked


def capacity(costs: Costs) -> str:
    """Return what each part costs, and what one core and one store can do at most."""
    most = 64
    store = costs.settling + costs.step / most
    core = costs.handling + costs.running
    rows = [
        ("parent", costs.round_, costs.handling),
        ("store", costs.step, costs.settling),
        ("child", costs.waking, costs.running),
    ]
    return "\n".join(
        [
            "| µs | once | each task |",
            "|---|---|---|",
            *(f"| {name} | {once * 1e6:.0f} | {each * 1e6:.0f} |" for name, once, each in rows),
            "",
            f"The store: at most {1 / store:,.0f} empty tasks a second, in rounds of {most}. A "
            f"core of parents and children: {1 / core:,.0f}. Noticing that something has come "
            f"takes {costs.passing * 1e6:.0f} µs; a step after one of another worker "
            f"{costs.turning * 1e6:.0f} µs more; and all this {costs.crowding:.0%} longer for "
            "each process that waits for a core.",
        ]
    )


def compare(system: System, redis: Redis, costs: Costs, seconds: float) -> str:
    """Return what the model says beside what is measured, and the error."""
    errors = []
    lines = [
        "| tasks | workers of 2 children | measured/s | model/s | error | CPUs left to us |",
        "|---|---|---|---|---|---|",
    ]
    for kind, milliseconds in _KINDS:
        for workers in _WORKERS:
            _say(f"{system.title}: {_named(kind, milliseconds)}, workers: {workers}")
            found = measure(system, redis, kind, milliseconds, workers, 2, seconds)
            said = simulate(_plan(system, workers, found, kind, milliseconds), costs).rate
            errors.append(said / found.rate - 1)
            lines.append(
                f"| {_named(kind, milliseconds)} | {workers} | {found.rate:,.0f} | {said:,.0f} "
                f"| {errors[-1]:+.0%} | {found.cores:.1f} |"
            )
    worst, mean = max(map(abs, errors)), statistics.mean(map(abs, errors))
    return "\n".join([*lines, "", f"Error: {mean:.0%} in the mean, {worst:.0%} at worst."])


def predict(system: System, costs: Costs) -> str:
    """Return what 10, 100 and 1,000 workers of 4 children would do."""
    shapes: list[tuple[str, dict[str, Any]]] = [("one machine of 64 CPUs", {"cores": 64})]
    if system.store == "redis":
        far = {"cores": 8, "server": 0.000_3}
        shapes = [(f"{stores} × Redis", {**far, "stores": stores}) for stores in (1, 8)]
    lines = [
        "| where | tasks | workers of 4 | tasks/s | store busy | CPUs busy | tasks a round |",
        "|---|---|---|---|---|---|---|",
    ]
    for where, shape in shapes:
        for kind, milliseconds in (("sleeping", 100), ("computing", 10), ("empty", 0)):
            for workers in (10, 100, 1_000):
                _say(f"{system.title}: {where}, {_named(kind, milliseconds)}, {workers}")
                machines = workers // 2 if system.store == "redis" else 1
                plan = Plan(workers, 4, machines=machines, **shape, **_of(kind, milliseconds))
                said = simulate(plan, costs, max(10_000, 10 * workers * plan.children))
                lines.append(
                    f"| {where} | {_named(kind, milliseconds)} | {workers:,} "
                    f"| {said.rate:,.0f} | {said.store:.0%} | {said.cores:.0%} "
                    f"| {said.batch:.1f} |"
                )
    return "\n".join(lines)


def _of(kind: str, milliseconds: int) -> dict[str, Any]:
    return {} if kind == "empty" else {kind: milliseconds / 1000}


def _named(kind: str, milliseconds: int) -> str:
    return f"{kind} for {milliseconds} ms" if milliseconds else kind


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
