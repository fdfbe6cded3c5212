"""What was measured, as Markdown tables and as a drawing."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.measures import ROWS, Scale, Values
from benchmarks.systems import System

__all__ = ["Results", "chart", "depth_table", "table"]

_BARS = ("drain", "start p50", "trip p50", "chord", "idle memory")


class Results:
    """All values of all rounds, and how loaded the machine was by others meanwhile."""

    def __init__(self, systems: Sequence[System]) -> None:
        self.systems = systems
        self.values: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.loads: dict[str, list[float]] = defaultdict(list)
        self.failures: list[str] = []

    def add(self, system: System, values: Values, load: float) -> None:
        for row, value in values.items():
            self.values[row, system.name].append(value)
            self.loads[row].append(load)

    def failed(self, system: System, what: str, why: str) -> None:
        self.failures.append(f"{system.title}, {what}: {why.strip()}")

    def median(self, row: str, system: System) -> float | None:
        found = self.values.get((row, system.name))
        return statistics.median(found) if found else None

    @property
    def rows(self) -> list[str]:
        return [row for row in ROWS if row in self.loads]


def table(results: Results, scale: Scale) -> str:
    """Return medians, the best of each line in bold, then each system's settings."""
    systems = results.systems
    lines = [
        f"| | {' | '.join(system.title for system in systems)} | load |",
        f"|---|{'---|' * len(systems)}---|",
    ]
    for row in results.rows:
        medians = [results.median(row, system) for system in systems]
        known = [value for value in medians if value is not None]
        best = (max if ROWS[row].better == "greater" else min)(known)
        cells = [_cell(value, best) for value in medians]
        load = statistics.median(results.loads[row])
        text = ROWS[row].text.format(scale=scale)
        lines.append(f"| {text} | {' | '.join(cells)} | {load:.1f} |")
    lines += [
        "",
        "Medians of "
        + ("one round" if scale.rounds == 1 else f"{scale.rounds} rounds in turn")
        + "; load: how many CPUs other programs kept busy meanwhile.",
        "",
        *(f"- {system.title}: {system.settings}" for system in systems),
    ]
    if results.failures:
        lines += ["", "Failed, and in no median:", *(f"- {one}" for one in results.failures)]
    return "\n".join(lines)


def depth_table(costs: Mapping[int, Sequence[float]]) -> str:
    lines = [
        "",
        "| messages waiting | enqueue, CPU µs | claim and settle, CPU µs |",
        "|---|---|---|",
    ]
    least = next(iter(costs.values()))
    for depth, found in costs.items():
        pairs = zip(found, least, strict=True)
        cells = [f"{cost:.1f} ({cost / base:.2f}×)" for cost, base in pairs]
        lines.append(f"| {depth:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def chart(results: Results) -> str:
    """Return bars as SVG: one panel for each measurement, the longest the largest value."""
    width, label, bar, gap = 720, 170, 16, 26
    parts: list[str] = []
    y = 10
    for row in (row for row in _BARS if row in results.rows):
        medians = [(system, results.median(row, system)) for system in results.systems]
        known = [(system, value) for system, value in medians if value is not None]
        longest = max(value for _, value in known)
        order = sorted(known, key=lambda one: one[1], reverse=ROWS[row].better == "greater")
        name = escape(ROWS[row].text.format(scale=Scale()))
        parts.append(f'<text x="10" y="{y + 12}" class="h">{name}</text>')
        y += 22
        for system, value in order:
            length = max(1.0, value / longest * (width - label - 90))
            ours = ' class="ours"' if not system.requires else ""
            parts += [
                f'<text x="{label - 6}" y="{y + 12}" class="l">{escape(system.title)}</text>',
                f'<rect x="{label}" y="{y}" width="{length:.1f}" height="{bar}"{ours}/>',
                f'<text x="{label + length + 5:.1f}" y="{y + 12}">{_figure(value)}</text>',
            ]
            y += bar + 3
        y += gap - 3
    style = (
        "text{font:12px system-ui,sans-serif;fill:#57606a}.h{font-weight:600;fill:#24292f}"
        ".l{text-anchor:end}rect{fill:#afb8c1}.ours{fill:#1a7f37}"
        "@media(prefers-color-scheme:dark){text{fill:#9198a1}.h{fill:#f0f6fc}"
        "rect{fill:#3d444d}.ours{fill:#3fb950}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}">'
        f"<style>{style}</style>{''.join(parts)}</svg>\n"
    )


def _cell(value: float | None, best: float) -> str:
    if value is None:
        return "–"
    return f"**{_figure(value)}**" if value == best else _figure(value)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
