"""Measure the systems on the same work: `python -m benchmarks [--quick] [--systems …]`.

In each round the systems take turns, each measurement on a store of its own, and every
count is verified. Prints Markdown. `--save FILE` keeps what was measured, `--load FILE` takes
it from there instead of measuring, `--readme` writes the figures into README.md and draws
docs/benchmarks.svg. `targets` says which targets are met, `model` how far the capacity model
is from what is measured (with `--readme`: into docs/scaling.md). Needs Linux: memory and CPU
are read in /proc.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import model, targets
from benchmarks.depth import depths, histories, waiting_memory
from benchmarks.measures import PARTS, QUICK, Scale
from benchmarks.processes import others_cpu_seconds, supervise, time_limit
from benchmarks.report import chart, into_page, overview, report
from benchmarks.results import Results
from benchmarks.servers import Redis, install
from benchmarks.systems import LITEQ, LITEQ_REDIS, SYSTEMS, System

_ROOT = Path(__file__).parents[1]
_STORE = ("depth", "history")  # parts that look at liteq's store alone


def main() -> None:
    options = _options()
    if options.what == "model":
        text = model.main(quick=options.quick)
        print(text)
        if options.readme:
            _write(_ROOT / "docs" / "scaling.md", "model", text)
        return
    results = Results.load(options.load) if options.load else measure(options)
    if options.save:
        results.save(options.save)
    print(targets.table(results) if options.what == "targets" else report(results))
    if options.readme:
        _write(_ROOT / "README.md", "bench", overview(results))
        (_ROOT / "docs" / "benchmarks.svg").write_text(chart(results), encoding="utf-8")


def _write(page: Path, name: str, section: str) -> None:
    page.write_text(into_page(page.read_text("utf-8"), name, section), encoding="utf-8")


def _options() -> argparse.Namespace:
    parts = [*PARTS, *_STORE]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="?", default="compare", help="compare, targets or model")
    parser.add_argument("--quick", action="store_true", help="smaller and rougher")
    parser.add_argument("--systems", help=f"some of {','.join(SYSTEMS)}")
    parser.add_argument("--only", help=f"some of {','.join(parts)}")
    parser.add_argument("--rounds", type=int, help="in place of 3, or 1 with --quick")
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the values as JSON")
    parser.add_argument("--load", type=Path, metavar="FILE", help="do not measure: read these")
    parser.add_argument("--readme", action="store_true", help="write the pages and the chart")
    options = parser.parse_args()
    of_targets = options.what == "targets"
    known: tuple[list[str], list[str]] = (list(SYSTEMS), parts)
    wanted = (targets.SYSTEMS, targets.PARTS) if of_targets else known
    options.systems = _chosen(parser, options.systems, *known[:1], wanted[0])
    options.only = _chosen(parser, options.only, *known[1:], wanted[1])
    if options.what not in ("compare", "targets", "model"):
        parser.error(f"unknown: {options.what}")
    return options


def _chosen(
    parser: argparse.ArgumentParser, given: str | None, known: list[str], default: list[str]
) -> list[str]:
    names = default if given is None else given.split(",")
    if unknown := set(names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return names


def measure(options: argparse.Namespace) -> Results:
    """Take all measurements, round by round, the systems in turn."""
    scale = QUICK if options.quick else Scale()
    if options.rounds:
        scale = scale._replace(rounds=options.rounds)
    systems = [SYSTEMS[name] for name in options.systems]
    for system in systems:
        install(system)
    start, results = time.monotonic(), Results.new(systems, scale)
    redis = Redis()
    try:
        order = list(systems)
        for turn in range(scale.rounds):
            for name in options.only:
                for system in order:
                    if name in PARTS:
                        say(f"round {turn + 1} of {scale.rounds}: {name}, {system.title}")
                        take(results, name, system, scale, redis)
            order.append(order.pop(0))
        look_into_stores(results, options.only, systems, scale, redis)
    finally:
        redis.stop()
    results.seconds = time.monotonic() - start
    return results


def take(results: Results, name: str, system: System, scale: Scale, redis: Redis) -> None:
    """Take one part of one system, in limited time."""
    start, before = time.monotonic(), others_cpu_seconds(redis.pid)
    rows: list[str] = []
    try:
        with time_limit(scale.limit):
            for values in PARTS[name](system, scale, redis):
                results.add(system, values)
                rows += values
    except (RuntimeError, OSError, subprocess.SubprocessError) as exc:
        after = f" after {rows[-1]}" if rows else ""
        say(f"  FAILED{after}: {exc}")
        results.failed(system, f"{name}{after}", str(exc))
    load = (others_cpu_seconds(redis.pid) - before) / (time.monotonic() - start)
    results.note_load(rows, load)
    say(f"  {time.monotonic() - start:.0f} s")


def look_into_stores(
    results: Results, parts: list[str], systems: list[System], scale: Scale, redis: Redis
) -> None:
    """Measure what liteq costs while much is in its stores."""
    ours = [system for system in (LITEQ, LITEQ_REDIS) if system in systems]
    if "depth" in parts:
        for system in ours:
            say(f"cost by depth, {system.title}")
            results.depths[system.title] = depths(system, scale, redis)
        if LITEQ in ours:
            for delayed in (0, scale.depths[-1]):
                results.waiting[delayed] = waiting_memory(scale, redis, delayed)
    if "history" in parts and LITEQ in ours:
        say(f"cost beside {scale.history:,} results")
        results.histories = histories(scale, redis)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    supervise(main)
