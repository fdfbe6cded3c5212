"""What liteq costs while much is in the store: messages that wait, and messages long done.

Unlike the comparison, this goes through the broker of one process, without a worker: the cost
is the store's alone, and in CPU time, so that it means something on a machine that is not idle.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from benchmarks.measures import Scale
from benchmarks.processes import memory
from benchmarks.servers import Redis
from benchmarks.site import Site
from benchmarks.systems import LITEQ, System

__all__ = ["depth_table", "depths", "histories", "history_table", "waiting_memory"]


def depths(system: System, scale: Scale, redis: Redis) -> dict[int, list[float]]:
    """Return, by the number of messages that wait, the CPU µs of an enqueue, those of a claim
    with its settle, and so on (`on_liteq.cost`): medians of rounds in which the stores take
    turns."""
    return _in_turns(system, scale, redis, scale.depths, "preload", 400)


def histories(scale: Scale, redis: Redis) -> dict[int, list[float]]:
    """Return, by the number of results that are kept, the CPU µs of an enqueue, those of a
    claim with its settle, and the p99 of one claim in µs."""
    return _in_turns(LITEQ, scale, redis, (0, scale.history), "remember", 4_000)


def _in_turns(
    system: System, scale: Scale, redis: Redis, sizes: Sequence[int], fill: str, each: int
) -> dict[int, list[float]]:
    costs: dict[int, list[list[float]]] = {size: [] for size in sizes}
    with ExitStack() as stack:
        sites: dict[int, Site] = {}
        for size in sizes:
            server = redis
            if system.store == "redis":  # one for each, so that they can take turns as well
                server = Redis()
                stack.callback(server.stop)
            sites[size] = stack.enter_context(Site(system, server))
            sites[size].drive(fill, number=size)
        for _ in range(4 * scale.rounds + 1):
            for size, site in sites.items():
                costs[size].append(site.drive("cost", number=each))
    return {size: [*map(statistics.median, zip(*costs[size], strict=True))] for size in sizes}


def waiting_memory(scale: Scale, redis: Redis, delayed: int) -> float:
    """Return the MiB of an idle worker while so many messages wait for tomorrow."""
    with Site(LITEQ, redis) as site:
        site.drive("preload", number=delayed, delay=86_400)
        with site.worker() as worker:
            site.warm_up(scale.settle)
            return sum(map(memory, worker.pids))


def depth_table(title: str, costs: Mapping[int, Sequence[float]]) -> str:
    return _table(f"{title}: messages waiting", ("enqueue", "claim and settle"), costs)


def history_table(costs: Mapping[int, Sequence[float]]) -> str:
    names = ("enqueue", "claim and settle", "claim of 20: p99")
    return _table("liteq (SQLite): results kept", names, costs)


def _table(title: str, names: Sequence[str], costs: Mapping[int, Sequence[float]]) -> str:
    lines = [f"| {title} | {' | '.join(f'{name}, CPU µs' for name in names)} |"]
    lines.append("|---" * (len(names) + 1) + "|")
    least = next(iter(costs.values()))
    for size, found in costs.items():
        shown = zip(found[: len(names)], least, strict=False)  # of what else was measured: none
        cells = [f"{cost:.1f} ({cost / base:.2f}×)" for cost, base in shown]
        lines.append(f"| {size:,} | {' | '.join(cells)} |")
    return "\n".join(lines)
