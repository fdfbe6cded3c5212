"""What goes to the terminal: tables, JSON, moments and spans of time, nothing that steers it.

Names, arguments and errors come from a store that others write to: an escape sequence in
one of them must not reach the terminal of who looks (`liteq.wording`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, time
from math import isfinite
from typing import Any, Final

import click

from liteq.wording import CONTROL, ago, brief, moment, shown, span

__all__ = [
    "STATE_COLOURS",
    "ago",
    "json_text",
    "moment",
    "plain_table",
    "print_facts",
    "print_json",
    "print_table",
    "shown",
    "span",
]

Colours = Mapping[str, Callable[[Any], str | None]]

STATE_COLOURS: Final[Mapping[str, str]] = {
    "succeeded": "green",
    "failed": "red",
    "dead": "red",
    "revoked": "magenta",
    "ignored": "magenta",
    "running": "cyan",
    "retrying": "yellow",
    "parked": "yellow",
    "limited": "yellow",
}

_GAP: Final = 2  # between two columns
_LEAST: Final = 20  # of a last column that is folded


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json_text(value, indent=2))


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON that any reader takes, and that steers no terminal.

    Times are ISO 8601, sets are lists, what JSON has no word for is its repr.
    """
    import json  # late: what prints no JSON starts sooner without

    try:
        text = json.dumps(
            value, indent=indent, ensure_ascii=False, allow_nan=False, default=_plainer
        )
    except (TypeError, ValueError):  # keys that are no text, or NaN: seldom
        text = json.dumps(_plain(value), indent=indent, ensure_ascii=False, default=_plainer)
    # JSON escapes the C0 controls itself; the others can stand in a string only.
    return CONTROL.sub(
        lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text
    )


def _plainer(value: Any) -> Any:
    """Return what JSON has no word for as something that it has."""
    match value:
        case date() | time():
            return value.isoformat()
        case set() | frozenset():
            return sorted(value, key=repr)
    return repr(value)


def _plain(value: Any) -> Any:
    """Return a value with its keys and numbers such as JSON has them."""
    match value:
        case Mapping():
            return {
                key if isinstance(key, str | int | bool | None) else repr(key): _plain(one)
                for key, one in value.items()
            }
        case list() | tuple():
            return [_plain(one) for one in value]
        case set() | frozenset():
            return _plain(_plainer(value))
        case float() if not isfinite(value):
            return repr(value)
    return value


def print_table(
    columns: Sequence[str], rows: Iterable[Mapping[str, Any]], colours: Colours | None = None
) -> None:
    """Print rows under their columns, numbers to the right, as wide as they need.

    `colours` gives the colour of a column's values. At a terminal, rich draws the table if
    it is installed; a pipe is always given plain text.
    """
    table = _prepared(columns, rows, colours)
    if not _with_rich(columns, *table):
        for line in _plainly(columns, *table):
            click.echo(line)


def plain_table(
    columns: Sequence[str], rows: Iterable[Mapping[str, Any]], colours: Colours | None = None
) -> list[str]:
    """Return the lines of `print_table()` as they are without rich, colours included."""
    return _plainly(columns, *_prepared(columns, rows, colours))


def print_facts(facts: Mapping[str, Any], *, indent: str = "") -> None:
    """Print names and what is so, one in a line; None is left out."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        if value is not None:
            label = click.style(f"{name:<{width}}", dim=True)
            click.echo(f"{indent}{label}  {shown(value)}".rstrip())


def _prepared(
    columns: Sequence[str], rows: Iterable[Mapping[str, Any]], colours: Colours | None
) -> tuple[list[list[str]], list[bool], list[Callable[[Any], str | None]]]:
    """Return the texts of a table; and of each column whether it has numbers, and what
    gives the colour of a text."""
    lines = [[brief(shown(row.get(column))) for column in columns] for row in rows]
    numeric = [_is_numeric(line[at] for line in lines) for at in range(len(columns))]
    return lines, numeric, [(colours or {}).get(column, lambda _: None) for column in columns]


def _is_numeric(texts: Iterable[str]) -> bool:
    return all(text.replace(".", "", 1).isdigit() for text in texts if text)


def _plainly(
    columns: Sequence[str],
    lines: Sequence[Sequence[str]],
    numeric: Sequence[bool],
    styles: Sequence[Callable[[Any], str | None]],
) -> list[str]:
    widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
    drawn = []
    for number, line in enumerate((columns, *lines)):
        out = []
        for text, width, right, style in zip(line, widths, numeric, styles, strict=True):
            pad = " " * (width - len(text))
            colour = style(text) if number else None
            plain = not text or (number and colour is None)
            cell = text if plain else click.style(text, bold=not number or None, fg=colour)
            out.append(pad + cell if right else cell + pad)
        drawn.append("  ".join(out).rstrip())
    return drawn


def _with_rich(
    columns: Sequence[str],
    lines: Sequence[Sequence[str]],
    numeric: Sequence[bool],
    styles: Sequence[Callable[[Any], str | None]],
) -> bool:
    """Draw the table with rich, if there is a terminal to draw on and rich is installed."""
    context = click.get_current_context(silent=True)
    if not sys.stdout.isatty() or (context is not None and context.color is False):
        return False
    try:
        from rich.box import SIMPLE_HEAD  # late: 150 ms, and for a terminal only
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    console = Console(file=sys.stdout, highlight=False, markup=False)
    widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
    if sum(widths[:-1]) + _GAP * (len(widths) - 1) + min(widths[-1], _LEAST) > console.width:
        return False  # words cut into pieces are worse than lines that the terminal folds
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        header_style="bold",
        show_edge=False,
    )
    for number, (column, right) in enumerate(zip(columns, numeric, strict=True), start=1):
        # The last one is the text that may be long; it folds. What is to be copied does not.
        whole = number < len(columns)
        table.add_column(
            column, justify="right" if right else "left", no_wrap=whole, overflow="fold"
        )
    for line in lines:
        table.add_row(
            *(
                Text(text, style=style(text) or "")
                for text, style in zip(line, styles, strict=True)
            )
        )
    console.print(table)
    return True
