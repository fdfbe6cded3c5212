"""Measure, and print Markdown: `python -m benchmarks [--quick] [--only drain,idle,…]`.

In each round the systems take turns. Needs Linux: memory and CPU are read in /proc.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections import defaultdict
from importlib.metadata import version

from benchmarks.measures import (
    LITEQ,
    MEASURES,
    PEERS,
    QUICK,
    ROWS,
    Measure,
    Scale,
    depths,
    idle,
)
from benchmarks.site import others_cpu_seconds


def main() -> None:
    parts = [*(measure.__name__ for measure in MEASURES), "depth"]
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="a minute, and rougher")
    parser.add_argument("--only", default=",".join(parts), help="some of %(default)s")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    scale = QUICK if options.quick else Scale()
    print(
        f"liteq {version('liteq-queue')}, Huey {version('huey')}, Python "
        f"{platform.python_version()}, {os.cpu_count()} CPUs, {time.strftime('%Y-%m-%d')}. "
        "Load: how many CPUs other processes kept busy.",
        flush=True,
    )
    if wanted := [measure for measure in MEASURES if measure.__name__ in chosen]:
        compare(wanted, scale)
    if "depth" in chosen:
        compare_depths(scale)


def compare(wanted: list[Measure], scale: Scale) -> None:
    """Print liteq's medians beside each peer's, and how many times better liteq's are."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    loads: dict[str, list[float]] = defaultdict(list)
    systems = [LITEQ, *PEERS]
    for turn in range(scale.rounds):
        for measure in wanted:
            for system in systems:
                say(f"round {turn + 1} of {scale.rounds}: {measure.__name__}, {system.title}")
                start, before = time.monotonic(), others_cpu_seconds()
                measured = measure(system, scale)
                load = (others_cpu_seconds() - before) / (time.monotonic() - start)
                for row, value in measured.items():
                    values[row, system.title].append(value)
                    loads[row].append(load)
        systems.reverse()

    print(f"\n| | liteq | {' | '.join(peer.title for peer in PEERS)} | load |")
    print(f"|---|---|{'---|' * len(PEERS)}---|")
    for row in loads:
        own = statistics.median(values[row, LITEQ.title])
        cells = [ROWS[row], figure(own)]
        for peer in PEERS:
            theirs = statistics.median(values[row, peer.title])
            better = own / theirs if row == "drain" else theirs / own
            cells.append(f"{figure(theirs)} ({figure(better)}×)")
        print(f"| {' | '.join(cells)} | {statistics.median(loads[row]):.1f} |")


def compare_depths(scale: Scale) -> None:
    """Print what liteq costs while other messages wait, for their turn or their time."""
    say("cost by depth")
    start, before = time.monotonic(), others_cpu_seconds()
    costs = depths(scale)
    load = (others_cpu_seconds() - before) / (time.monotonic() - start)
    print(
        f"\n| messages waiting (load {load:.1f}) | enqueue, CPU µs | claim and settle, CPU µs |"
    )
    print("|---|---|---|")
    least = costs[scale.depths[0]]
    for depth, found in costs.items():
        cells = [
            f"{cost:.1f} ({cost / base:.2f}×)" for cost, base in zip(found, least, strict=True)
        ]
        print(f"| {depth:,} | {' | '.join(cells)} |")
    say("memory by depth")
    for delayed in (0, scale.depths[-1]):
        size = idle(LITEQ, scale, delayed)["idle memory"]
        print(f"\nA worker while {delayed:,} messages wait for tomorrow: {size:.1f} MB (PSS).")


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
