"""How moments, spans of time and strangers' texts are written for people.

Names, arguments and errors come from a store that others write to: what steers a terminal,
or turns the direction of a text, is shown as what it is (`\\x1b`, `\\u202e`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from typing import Final

__all__ = ["CONTROL", "ago", "brief", "instant", "moment", "several", "shown", "span"]

_LINE: Final = 500  # characters

# C0 and C1 controls, and the marks that reorder or hide text (Unicode's Bidi_Control, BOM).
CONTROL: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def shown(value: object, *, lines: bool = False) -> str:
    """Return a text that is safe to print; with `lines`, its line feeds and tabs stay."""
    text = "" if value is None else str(value)
    if text.isprintable():
        return text
    return CONTROL.sub(lambda found: _escaped(found[0], lines=lines), text)


def brief(text: str) -> str:
    """Return a text as a line has room for it: a name in the store may have megabytes."""
    return text if len(text) <= _LINE else f"{text[:_LINE]}…"


def several(names: Sequence[str], room: int = 60, *, by: str = ", ") -> str:
    """Return as many names as there is room for, and how many are left: of hundreds of queues
    a line can show a few. `room`: characters; the first name is shown in any case."""
    width = first = 0
    for name in names:
        width += len(name) + len(by)
        if first and width > room:
            break
        first += 1
    left = len(names) - first
    return by.join(map(brief, names[:first])) + (f" and {left} more" if left else "")


def _escaped(character: str, *, lines: bool) -> str:
    if lines and character in "\n\t":
        return character
    return repr(character)[1:-1] if character != "\ud800" else "\\ud800"


def moment(seconds: float | None, zone: tzinfo = UTC) -> str | None:
    """Return a Unix time as ISO 8601, with its offset; "?" for one that no date has."""
    if seconds is None:
        return None
    found = instant(seconds, zone)
    return "?" if found is None else found.isoformat(timespec="seconds")


def instant(seconds: float | None, zone: tzinfo = UTC) -> datetime | None:
    """Return a Unix time as a datetime; None for none, and for one beyond all years, which
    another program has written, or a call that is never to start."""
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, zone)
    except (OverflowError, ValueError, OSError):
        return None


def span(seconds: float | None) -> str:
    """Return a duration in its largest unit that says something: 350 ms, 12 s, 3 min."""
    if seconds is None:
        return ""
    if seconds < 0:
        return f"-{span(-seconds)}"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def ago(seconds: float | None, now: float) -> str:
    """Return how long ago a moment was, or in how long it will be."""
    if seconds is None:
        return ""
    return f"in {span(seconds - now)}" if seconds > now else f"{span(now - seconds)} ago"
