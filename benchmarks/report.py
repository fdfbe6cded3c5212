"""What was measured, as Markdown tables and as a drawing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from benchmarks.depth import depth_table, history_table
from benchmarks.measures import ROWS
from benchmarks.results import Results
from benchmarks.systems import System

__all__ = ["chart", "figure", "into_page", "overview", "report"]

# What README.md shows, in few words; all the rest is a command away.
_OVERVIEW = {
    "enqueue p50": "send one, µs",
    "bulk": "send many, µs each",
    "drain": "drain, /s",
    "mixed": "send and drain at once, /s",
    "start p50": "call → start, ms",
    "trip p50": "call and wait, ms",
    "chord": "chord of {scale.chord:,}, s",
    "chain": "chain of {scale.chain:,}, s",
    "lost": "lost of {scale.killed} by kill -9",
    "idle memory": "idle, MiB",
    "import class": "import, ms",
}
_BARS = ("drain", "start p50", "trip p50", "chord", "idle memory")


def report(results: Results) -> str:
    """Return all that was measured, and with which settings."""
    parts = [f"{_conditions(results)} {_versions(results)}."] if results.rows else []
    if results.rows:
        parts += [
            _table(results, results.rows),
            "Medians; load: how many CPUs others kept busy meanwhile.",
            _settings(results),
        ]
    if results.failures:
        failed = "\n".join(f"- {one}" for one in results.failures)
        parts.append(f"Failed, and in no median:\n\n{failed}")
    parts += [depth_table(title, found) for title, found in results.depths.items()]
    parts += [
        f"A worker while {delayed:,} messages wait for tomorrow: {size:.1f} MiB (PSS)."
        for delayed, size in results.waiting.items()
    ]
    if results.histories:
        parts.append(history_table(results.histories))
    parts.append(f"Measured in {results.seconds / 60:.1f} minutes.")
    return "\n\n".join(parts)


def overview(results: Results) -> str:
    """Return what README.md shows: a line for each system, and the chart."""
    rows = [row for row in _OVERVIEW if row in results.rows]
    heads = [_OVERVIEW[row].format(scale=results.scale) for row in rows]
    best = {row: _ranked(results, row)[0][1] for row in rows}
    lines = [f"| | {' | '.join(heads)} |", f"|---{'|---' * len(heads)}|"]
    for system in results.systems:
        cells = [_cell(results.median(row, system.name), best[row]) for row in rows]
        lines.append(f"| {system.title} | {' | '.join(cells)} |")
    failed = [f"- {one}" for one in results.failures]
    return "\n\n".join(
        [
            "\n".join(lines),
            f"{_conditions(results)} Medians; two children or what comes nearest, results "
            "kept, Redis without persistence. Every count was verified.",
            *(["Failed, and in no median:\n\n" + "\n".join(failed)] if failed else []),
            "![The same as bars](docs/benchmarks.svg)",
            f"<details><summary>Versions and settings</summary>\n\n{_settings(results)}\n\n"
            "</details>",
        ]
    )


def into_page(text: str, name: str, section: str) -> str:
    """Return a page with what is between its marks of this name replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"the page has no {begin} … {end}")
    return f"{before}{begin}\n{section}\n{end}{after}"


def _conditions(results: Results) -> str:
    """Say where and when, and whether the machine had something else to do."""
    rounds = results.scale.rounds
    load = max(statistics.median(results.loads[row]) for row in results.rows)
    what = "one round" if rounds == 1 else f"{rounds} rounds in turn"
    if load > 0.2:
        what += f" of a trial on a machine where others kept up to {load:.1f} CPUs busy"
    return f"{results.place}, {what}."


def _table(results: Results, rows: Sequence[str]) -> str:
    """Return medians, the best of each line in bold."""
    systems = results.systems
    lines = [
        f"| | {' | '.join(system.title for system in systems)} | load |",
        f"|---{'|---' * len(systems)}|---|",
    ]
    for row in rows:
        best = _ranked(results, row)[0][1]
        cells = [_cell(results.median(row, system.name), best) for system in systems]
        cells.append(f"{statistics.median(results.loads[row]):.1f}")
        lines.append(f"| {ROWS[row].text.format(scale=results.scale)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _versions(results: Results) -> str:
    return ", ".join(f"{one.title} {results.versions[one.name]}" for one in results.systems)


def _settings(results: Results) -> str:
    return "\n".join(
        f"- {one.title} {results.versions[one.name]}: {one.settings}" for one in results.systems
    )


def chart(results: Results) -> str:
    """Return bars as SVG: one panel for each measurement, the longest the largest value."""
    width, label, bar = 720, 150, 15
    parts: list[str] = []
    y = 14
    for row in (row for row in _BARS if row in results.rows):
        known = _ranked(results, row)
        longest = max(value for _, value in known)
        parts.append(
            f'<text x="12" y="{y + 12}" class="h">{escape(_heading(results, row))}</text>'
        )
        y += 24
        for system, value in known:
            length = max(1.5, value / longest * (width - label - 90))
            ours = "" if system.requires else ' class="ours"'
            parts += [
                f'<text x="{label - 8}" y="{y + 12}" class="l">{escape(system.title)}</text>',
                f'<rect x="{label}" y="{y}" width="{length:.1f}" height="{bar}" rx="2"{ours}/>',
                f'<text x="{label + length + 6:.1f}" y="{y + 12}">{figure(value)}</text>',
            ]
            y += bar + 4
        y += 18
    parts.append(f'<text x="12" y="{y}">{escape(_conditions(results))}</text>')
    y += 14
    # On a background of its own: an image in a page follows the system's scheme, which need
    # not be the page's, and text for the one is unreadable on the other.
    style = (
        "text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#59636e}"
        ".h{font-weight:600;fill:#1f2328}.l{text-anchor:end}.p{fill:#fff;stroke:#d1d9e0}"
        "rect{fill:#afb8c1}.ours{fill:#1a7f37}"
        "@media(prefers-color-scheme:dark){text{fill:#9198a1}.h{fill:#f0f6fc}"
        ".p{fill:#0d1117;stroke:#3d444d}rect{fill:#656c76}.ours{fill:#3fb950}}"
    )
    title = "<title>Task queues measured on the same work</title>"
    page = f'<rect class="p" x=".5" y=".5" width="{width - 1}" height="{y - 1}" rx="6"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {y}" '
        f'width="{width}" height="{y}">{title}<style>{style}</style>{page}'
        f"{''.join(parts)}</svg>\n"
    )


def _ranked(results: Results, row: str) -> list[tuple[System, float]]:
    medians = [(system, results.median(row, system.name)) for system in results.systems]
    known = [(system, value) for system, value in medians if value is not None]
    return sorted(known, key=lambda one: one[1], reverse=ROWS[row].better == "greater")


def _heading(results: Results, row: str) -> str:
    better = "more" if ROWS[row].better == "greater" else "less"
    return f"{ROWS[row].text.format(scale=results.scale)} ({better} is better)"


def _cell(value: float | None, best: float) -> str:
    if value is None:
        return "–"
    return f"**{figure(value)}**" if value == best else figure(value)


def figure(value: float) -> str:
    """Return a value in as many digits as it is good for."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
