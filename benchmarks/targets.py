"""The targets that liteq has set itself, and whether a run meets them.

They are about one machine. On another, what Celery takes for the same in the same run tells
how much slower or faster that is at this kind of work: a target that has such a yardstick is
shown as it stands and as it is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from benchmarks.measures import Scale
from benchmarks.report import figure
from benchmarks.results import Results

__all__ = ["PARTS", "SYSTEMS", "TARGETS", "Target", "table"]

SYSTEMS: Final = ["liteq", "liteq-redis", "celery", "dramatiq"]
PARTS: Final = ["imports", "drain", "bulk", "producers", "running", "crash", "depth", "history"]


# What Celery brought on the machine that the targets are about, by row.
_CELERY: Final = {
    "drain": 740,
    "drain CPU": 1_696,
    "enqueue p50": 721,
    "start p50": 3.28,
    "start p99": 6.42,
    "trip p50": 3.35,
    "chord": 8.5,
    "chain": 0.7,
}


class Target(NamedTuple):
    """`value` finds what is compared with `bound`: None if the run did not measure it.
    `yardstick`: the row in which Celery does what comes nearest."""

    text: str
    value: Callable[[Results], float | None]
    bound: float
    at_least: bool = False
    yardstick: str | None = None

    def met(self, value: float, bound: float) -> bool:
        return value >= bound if self.at_least else value <= bound

    def bound_here(self, results: Results) -> float | None:
        """Return what the bound is on the machine of this run; None without a yardstick."""
        if self.yardstick is None:
            return None
        here = results.median(self.yardstick, "celery")
        return None if here is None else self.bound * here / _CELERY[self.yardstick]


def _of(row: str, system: str = "liteq") -> Callable[[Results], float | None]:
    return lambda results: results.median(row, system)


def _ratio(
    row: str, system: str, other: str, of: str | None = None
) -> Callable[[Results], float | None]:
    """Return how many times the other's value, in the row `of`, this system's is."""

    def find(results: Results) -> float | None:
        ours, theirs = results.median(row, system), results.median(of or row, other)
        return None if ours is None or not theirs else ours / theirs

    return find


def _flat(system: str, column: int) -> Callable[[Results], float | None]:
    def find(results: Results) -> float | None:
        found = [*results.depths.get(system, {}).values()]
        return found[-1][column] / found[0][column] if len(found) > 1 else None

    return find


def _history(results: Results) -> float | None:
    found = [*results.histories.values()]
    return found[-1][2] / found[0][2] if len(found) > 1 else None


def _large(results: Results) -> float | None:
    """Return how many times liteq's time Celery takes, or had taken when it was given up."""
    theirs = results.median("large", "celery") or results.median("large at least", "celery")
    ours = results.median("large", "liteq")
    return None if theirs is None or not ours else theirs / ours


TARGETS: Final = (
    Target("SQLite: drain, tasks/s", _of("drain"), 30_000, at_least=True, yardstick="drain"),
    Target(
        "SQLite: worker's CPU a task (parent, children, store), µs",
        _of("drain CPU"),
        40,
        yardstick="drain CPU",
    ),
    Target("SQLite: enqueue one, p50 µs", _of("enqueue p50"), 60, yardstick="enqueue p50"),
    Target("SQLite: enqueue many, µs a task", _of("bulk"), 12, yardstick="enqueue p50"),
    Target("SQLite: enqueue → start, p50 ms", _of("start p50"), 0.7, yardstick="start p50"),
    Target("SQLite: enqueue → start, p99 ms", _of("start p99"), 2.5, yardstick="start p99"),
    Target("SQLite: … 10 ms after the last, p50 ms", _of("brisk p50"), 0.7),
    Target("SQLite: … 10 ms after the last, p99 ms", _of("brisk p99"), 2.5),
    # What the plan asks for, divided by what its prototype took: 0.7 ÷ 0.5 and 2.5 ÷ 1.2.
    Target(
        "SQLite: enqueue → start, p50, × without a queue",
        _ratio("start p50", "liteq", "liteq", "floor p50"),
        1.4,
    ),
    Target(
        "SQLite: enqueue → start, p99, × without a queue",
        _ratio("start p99", "liteq", "liteq", "floor p99"),
        2.08,
    ),
    Target("SQLite: call and wait, p50 ms", _of("trip p50"), 1.2, yardstick="trip p50"),
    Target("SQLite: chord of 1,000, s", _of("chord"), 0.15, yardstick="chord"),
    Target("SQLite: chain of 100, a process's first, s", _of("chain"), 0.06, yardstick="chain"),
    Target("SQLite: chain of 100, its second, s", _of("chain again"), 0.06, yardstick="chain"),
    Target(
        "SQLite: producer and worker at once, × Celery",
        _ratio("mixed", "liteq", "celery"),
        8,
        at_least=True,
    ),
    Target(
        "SQLite: chord of 10,000, × Celery (if it ends in 2 min)",
        _large,
        20,
        at_least=True,
    ),
    Target("SQLite: 16 producers, p99 ms", _of("producers p99"), 20),
    Target("SQLite: 16 producers, most ÷ least", _of("producers share"), 2),
    Target("worker ready, s", _of("ready"), 0.25),
    Target("idle worker, PSS MiB", _of("idle memory"), 30),
    Target("idle worker, CPU %", _of("idle CPU"), 0.1),
    Target("import over bare Python, ms", _of("import class"), 35),
    Target("kill -9: tasks lost", _of("lost"), 0),
    Target("kill -9: restart → next task, s", _of("again"), 1.0),
    Target("SQLite: enqueue beside 1M waiting, × 1k", _flat("liteq (SQLite)", 0), 1.2),
    Target("SQLite: claim and settle beside 1M, × 1k", _flat("liteq (SQLite)", 1), 1.2),
    Target("SQLite: claim p99 beside 5M results, × none", _history, 1.2),
    Target(
        "Redis: drain, tasks/s",
        _of("drain", "liteq-redis"),
        20_000,
        at_least=True,
        yardstick="drain",
    ),
    Target(
        "Redis: drain, × Celery (or the line above)",
        _ratio("drain", "liteq-redis", "celery"),
        27,
        at_least=True,
    ),
    Target(
        "Redis: enqueue → start, p50 ms",
        _of("start p50", "liteq-redis"),
        0.8,
        yardstick="start p50",
    ),
    Target(
        "Redis: enqueue → start, p50, × without a queue",
        _ratio("start p50", "liteq-redis", "liteq-redis", "floor p50"),
        1.4,
    ),
    Target("Redis: … 10 ms after the last, p50 ms", _of("brisk p50", "liteq-redis"), 0.8),
    Target(
        "Redis: call and wait, p50 ms",
        _of("trip p50", "liteq-redis"),
        1.4,
        yardstick="trip p50",
    ),
    Target(
        "Redis: server's CPU a task, × Dramatiq",
        _ratio("server CPU", "liteq-redis", "dramatiq"),
        1,
    ),
    Target("Redis: enqueue beside 1M waiting, × 1k", _flat("liteq (Redis)", 0), 1.2),
    Target("Redis: claim and settle beside 1M, × 1k", _flat("liteq (Redis)", 1), 1.2),
)


def table(results: Results) -> str:
    """Return each target with what was measured, and at which scale."""
    rough = (
        ""
        if results.scale._replace(rounds=3) == Scale()
        else (" **Rough: the sizes are not those that the targets are about.**")
    )
    lines = [
        f"{results.place}; {results.scale.tasks:,} tasks; rounds: {results.scale.rounds}."
        f"{rough}",
        "",
        "| target | wanted | measured | | wanted here, by Celery's figure | |",
        "|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        sign, value = "≥" if target.at_least else "≤", target.value(results)
        here = target.bound_here(results)
        cells = [
            target.text,
            f"{sign} {figure(target.bound)}",
            "not measured" if value is None else figure(value),
            _said(target, value, target.bound),
            "" if here is None else f"{sign} {figure(here)}",
            _said(target, value, here),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\nFailed: {one}" for one in results.failures]
    return "\n".join(lines)


def _said(target: Target, value: float | None, bound: float | None) -> str:
    if value is None or bound is None:
        return ""
    return "met" if target.met(value, bound) else "**missed**"
