"""What was measured, as Markdown tables and as a drawing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from benchmarks.depth import depth_table, history_table
from benchmarks.measures import ROWS
from benchmarks.results import Results
from benchmarks.systems import System

__all__ = ["chart", "figure", "into_readme", "overview", "report"]

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

# What README.md shows; all the rest is a command away.
_OVERVIEW = (
    "enqueue p50",
    "bulk",
    "drain",
    "mixed",
    "start p50",
    "trip p50",
    "chord",
    "chain",
    "lost",
    "again",
    "idle memory",
    "import class",
)
_BARS = ("drain", "mixed", "start p50", "trip p50", "chord", "idle memory")


def report(results: Results) -> str:
    """Return all that was measured, and with which settings."""
    parts = [f"{_where(results)}; {_versions(results)}."]
    if results.rows:
        parts += [_table(results, results.rows), _rounds(results), _settings(results)]
    if results.failures:
        failed = "\n".join(f"- {one}" for one in results.failures)
        parts.append(f"Failed, and in no median:\n\n{failed}")
    parts += [depth_table(title, found) for title, found in results.depths.items()]
    parts += [
        f"A worker while {delayed:,} messages wait for tomorrow: {size:.1f} MB (PSS)."
        for delayed, size in results.waiting.items()
    ]
    if results.histories:
        parts.append(history_table(results.histories))
    parts.append(f"Measured in {results.seconds / 60:.1f} minutes.")
    return "\n\n".join(parts)


def overview(results: Results) -> str:
    """Return what README.md shows: the rows that most ask about, and the chart."""
    rows = [row for row in _OVERVIEW if row in results.rows]
    load = max(statistics.median(results.loads[row]) for row in rows)
    quiet = (
        "others used nearly nothing of it"
        if load < 0.15
        else f"**a trial run on a busy machine**: others used up to {load:.1f} CPUs meanwhile"
    )
    failed = [f"- {one}" for one in results.failures]
    notes = (
        f"{_where(results)}; {quiet}. {_rounds(results, load=False)} Every count was verified, "
        "two children or what comes nearest, results kept; Redis without persistence."
    )
    return "\n\n".join(
        [
            "![The same, as bars](docs/benchmarks.svg)",
            _table(results, rows, load=False),
            notes,
            *(["Failed:\n" + "\n".join(failed)] if failed else []),
            f"<details><summary>Versions and settings</summary>\n\n{_settings(results)}\n\n"
            "</details>",
        ]
    )


def into_readme(text: str, section: str) -> str:
    """Return README.md with the section between its marks replaced."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def _table(results: Results, rows: Sequence[str], *, load: bool = True) -> str:
    """Return medians, the best of each line in bold."""
    systems = results.systems
    heads = [*(system.title for system in systems), *(["load"] if load else [])]
    lines = [f"| | {' | '.join(heads)} |", f"|---{'|---' * len(heads)}|"]
    for row in rows:
        medians = [results.median(row, system.name) for system in systems]
        known = [value for value in medians if value is not None]
        best = (max if ROWS[row].better == "greater" else min)(known)
        cells = [_cell(value, best) for value in medians]
        if load:
            cells.append(f"{statistics.median(results.loads[row]):.1f}")
        lines.append(f"| {ROWS[row].text.format(scale=results.scale)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _where(results: Results) -> str:
    return results.place


def _versions(results: Results) -> str:
    return ", ".join(f"{one.title} {results.versions[one.name]}" for one in results.systems)


def _rounds(results: Results, *, load: bool = True) -> str:
    rounds = results.scale.rounds
    text = f"Medians of {rounds} rounds in turn" if rounds > 1 else "One round"
    return f"{text}; load: how many CPUs others kept busy meanwhile." if load else f"{text}."


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
    # On a background of its own: an image in a page follows the system's scheme, which need
    # not be the page's, and text for the one is unreadable on the other.
    style = (
        "text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#59636e}"
        ".h{font-weight:600;fill:#1f2328}.l{text-anchor:end}.p{fill:#fff;stroke:#d1d9e0}"
        "rect{fill:#afb8c1}.ours{fill:#1a7f37}"
        "@media(prefers-color-scheme:dark){text{fill:#9198a1}.h{fill:#f0f6fc}"
        ".p{fill:#0d1117;stroke:#3d444d}rect{fill:#3d444d}.ours{fill:#3fb950}}"
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
