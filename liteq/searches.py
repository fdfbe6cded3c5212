"""What an operator types to say which tasks are meant: states, and times ago."""

from __future__ import annotations

import re
import time
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from liteq.brokers.values import State

__all__ = ["STATES", "UNFINISHED", "instant", "read_moment", "read_states"]

UNFINISHED: Final[tuple[State, ...]] = (
    *("waiting", "scheduled", "queued", "limited"),
    *("parked", "running", "retrying"),
)
STATES: Final[tuple[State, ...]] = (*UNFINISHED, "succeeded", "failed", "revoked", "ignored")
# What each of Celery's states may be in the store.
_CELERY: Final[dict[str, tuple[State, ...]]] = {
    "PENDING": ("waiting", "scheduled", "queued", "limited", "parked"),
    "STARTED": ("running",),
    "RETRY": ("retrying",),
    "SUCCESS": ("succeeded",),
    "FAILURE": ("failed",),
    "REVOKED": ("revoked",),
    "IGNORED": ("ignored",),
}
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|w)")
_UNITS: Final = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def read_states(text: str) -> frozenset[State]:
    """Read states with commas between them; "unfinished" and Celery's words are known.

    Raises `ValueError` for another word, with the nearest that there is.
    """
    found: set[State] = set()
    for word in filter(None, (part.strip() for part in text.split(","))):
        if word.lower() == "unfinished":
            found.update(UNFINISHED)
        elif word.upper() in _CELERY:
            found.update(_CELERY[word.upper()])
        elif states := [state for state in STATES if state == word.lower()]:
            found.update(states)
        else:
            from difflib import get_close_matches

            near = get_close_matches(word.lower(), STATES)
            advice = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(STATES)}"
            raise ValueError(f"there is no state {word!r}; {advice}")
    return frozenset(found)


def read_moment(text: str) -> float | datetime:
    """Read a time: a span before now (30s, 15m, 2h, 7d), as Unix seconds, or ISO 8601. Raises
    `ValueError`."""
    if match := _SPAN.fullmatch(text.strip().lower()):
        return time.time() - float(match[1]) * _UNITS[match[2]]
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            f"{text!r} is neither a span like 30m, 2h, 7d nor a time like 2026-01-31T08:00"
        ) from None


def instant(moment: float | datetime, zone: tzinfo) -> float:
    """Return what was read in Unix seconds. A time without an offset is in `zone`, which is
    the app's: there an ETA without one is read as well."""
    if not isinstance(moment, datetime):
        return moment
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)).timestamp()
