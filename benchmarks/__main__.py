"""Measure the systems on the same work: `python -m benchmarks [--quick] [--systems …]`.

In each round the systems take turns, each measurement on a store of its own, and every
count is verified. Prints Markdown; `--chart FILE` draws some of it. Needs Linux: memory
and CPU are read in /proc.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.measures import MEASURES, QUICK, Scale, depths, idle
from benchmarks.report import Results, chart, depth_table, table
from benchmarks.servers import Redis, bin_of, install
from benchmarks.site import others_cpu_seconds
from benchmarks.systems import LITEQ, SYSTEMS, System


def main() -> None:
    parts = {measure.__name__: measure for measure in MEASURES}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller and rougher")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="some of %(default)s")
    parser.add_argument(
        "--only", default=",".join([*parts, "depth"]), help="some of %(default)s"
    )
    parser.add_argument("--rounds", type=int, help="in place of 3, or 1 with --quick")
    parser.add_argument("--chart", type=Path, help="where to draw an SVG")
    options = parser.parse_args()
    scale = QUICK if options.quick else Scale()
    if options.rounds:
        scale = scale._replace(rounds=options.rounds)
    systems = [SYSTEMS[name] for name in _chosen(parser, options.systems, list(SYSTEMS))]
    chosen = _chosen(parser, options.only, [*parts, "depth"])
    for system in systems:
        install(system)
    versions = ", ".join(f"{system.title} {_version(system)}" for system in systems)
    place = f"Python {platform.python_version()}, {os.cpu_count()} CPUs"
    print(f"{time.strftime('%Y-%m-%d')}, {place}; {versions}.\n", flush=True)
    redis = Redis()
    try:
        results = compare(systems, [name for name in chosen if name in parts], scale, redis)
        print(table(results, scale))
        if options.chart:
            options.chart.write_text(chart(results), encoding="utf-8")
        if "depth" in chosen:
            compare_depths(scale, redis)
    finally:
        redis.stop()


def compare(systems: list[System], names: list[str], scale: Scale, redis: Redis) -> Results:
    """Take all measurements, round by round, the systems in turn."""
    results = Results(systems)
    order = list(systems)
    for turn in range(scale.rounds):
        for name in names:
            measure = next(one for one in MEASURES if one.__name__ == name)
            for system in order:
                say(f"round {turn + 1} of {scale.rounds}: {name}, {system.title}")
                start, before = time.monotonic(), others_cpu_seconds()
                try:
                    values = measure(system, scale, redis)
                except (RuntimeError, subprocess.SubprocessError) as exc:
                    say(f"  FAILED: {exc}")
                    results.failed(system, name, str(exc))
                    continue
                load = (others_cpu_seconds() - before) / (time.monotonic() - start)
                results.add(system, values, load)
        order.append(order.pop(0))
    return results


def compare_depths(scale: Scale, redis: Redis) -> None:
    """Print what liteq costs while other messages wait, for their turn or their time."""
    say("cost by depth")
    print(depth_table(depths(scale)))
    for delayed in (0, scale.depths[-1]):
        size = idle(LITEQ, scale, redis, delayed)["idle memory"]
        print(f"\nA worker while {delayed:,} messages wait for tomorrow: {size:.1f} MB (PSS).")


def _chosen(parser: argparse.ArgumentParser, given: str, known: list[str]) -> list[str]:
    names = given.split(",")
    if unknown := set(names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return names


def _version(system: System) -> str:
    if not system.requires:
        return version("liteq-queue")
    name = system.requires[0].partition(">")[0].partition("[")[0]
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    done = subprocess.run(
        [str(bin_of(system) / "python"), "-c", code], check=True, stdout=subprocess.PIPE
    )
    return done.stdout.decode().strip()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
