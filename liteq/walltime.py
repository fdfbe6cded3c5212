"""What the clock on the wall shows, and when: time zones, and the rule for clock changes.

The rule (docs: Periodic tasks), where clocks go forward or back:

- Times that do not exist, since the clock jumped over them, run once, right after it.
- Times that exist twice run at their first occurrence.
- A schedule whose minute or hour is `*` or `*/n` (or a range over everything, as `0-59/30`)
  is about an interval. It runs in both passes of an hour that comes twice; and what was
  jumped over runs right after the gap only if the schedule names no time within as long
  after it as the gap was.

Instants are Unix seconds; zones are `tzinfo` objects.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import cache
from math import floor
from typing import Any, Final

from liteq.cronfields import Cron
from liteq.exceptions import ConfigWarning

__all__ = ["local_zone", "next_instant", "rounded_down", "zone_name", "zone_of"]

_LOCALTIME: Final = "/etc/localtime"
_DAY: Final = 86_400
_PROBE: Final = 43_200  # seconds: no zone changes its offset twice within half a day
_LOOK_BACK: Final = 3 * _PROBE  # longer than any hour that came twice, days included


def next_instant(cron: Cron, zone: tzinfo, after: float) -> float | None:
    """Return the first instant after `after` at which the expression is due in the zone;
    None if there is none before the year 10,000."""
    start = floor(after) + 1
    offset = _offset(zone, start)
    if isinstance(zone, timezone):
        return _first(cron, start, None, offset, offset)
    change = _change(zone, start - _LOOK_BACK, start)
    before = offset if change is None else _offset(zone, change - 1)
    while True:
        found = _first(cron, start, change, before, offset)
        change = _change(zone, start, found) if found is not None else None
        if change is None or found is None or change > found:
            return found
        start, before, offset = change, offset, _offset(zone, change)


def _first(
    cron: Cron, start: int, change: int | None, before: int, offset: int
) -> float | None:
    """Return the first due instant from `start` on, as if the zone kept this offset for
    ever. `change` is when it began, `before` the offset that it had until then."""
    wall = start + offset
    if change is not None:
        gap_from, gap_to = change + before, change + offset
        if gap_to < gap_from and not cron.is_wild:  # those had their turn
            wall = max(wall, gap_from)
        elif gap_to > gap_from and start == change:
            jumped = cron.next_wall(gap_from)
            if jumped is not None and jumped < gap_to:
                own = cron.next_wall(gap_to)
                soon = own is not None and own < gap_to + (gap_to - gap_from)
                if not (cron.is_wild and soon):
                    return change
    found = cron.next_wall(wall)
    return None if found is None else found - offset


def _change(zone: tzinfo, start: int, end: float) -> int | None:
    """Return the first instant in (start, end] with another offset than the one before."""
    offset = _offset(zone, start)
    at = start
    while at < end:
        probe = min(at + _PROBE, floor(end))
        if probe <= at:
            return None
        if _offset(zone, probe) != offset:
            return _bisect(zone, at, probe, offset)
        at = probe
    return None


def _bisect(zone: tzinfo, low: int, high: int, offset: int) -> int:
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(zone, middle) == offset:
            low = middle
        else:
            high = middle
    return high


def _offset(zone: tzinfo, instant: int) -> int:
    """Return how many seconds the zone is ahead of UTC at an instant."""
    try:
        ahead = datetime.fromtimestamp(instant, zone).utcoffset()
    except (ValueError, OverflowError, OSError):  # at the ends of the calendar
        return 0
    return 0 if ahead is None else int(ahead.total_seconds())


def rounded_down(zone: tzinfo, instant: float, seconds: float, unit: int) -> float:
    """Return the instant `seconds` later, rounded down to when the wall clock began to show
    a multiple of `unit` seconds; always one that is later than `instant`.

    Up to hours it is elapsed time that is added. Days are those of the calendar, however
    long they are, and begin with the first midnight if the clock shows two.
    """
    found = _rounded_down(zone, instant, seconds, unit)
    while found <= instant:  # the clock was set back to before the multiple that it showed
        seconds += unit
        found = _rounded_down(zone, instant, seconds, unit)
    return found


def _rounded_down(zone: tzinfo, instant: float, seconds: float, unit: int) -> float:
    if unit < _DAY:
        return _floor(zone, instant + seconds, unit)
    wall = instant + _offset(zone, floor(instant)) + seconds
    midnight = datetime.fromtimestamp(wall - wall % unit, UTC).replace(tzinfo=zone)
    return _floor(zone, midnight.timestamp(), unit)  # it shows one, if the clock jumped over it


def _floor(zone: tzinfo, instant: float, unit: int) -> float:
    """Return when the clock last began to show a multiple of `unit`, or jumped over it."""
    whole = floor(instant)
    offset = _offset(zone, whole)
    shown = (whole + offset) // unit * unit
    before = _offset(zone, shown - offset)
    change = None if before == offset else _change(zone, shown - offset, whole)
    return shown - offset if change is None else min(shown - before, change)


# Zones and their names


def zone_of(given: Any) -> tzinfo:
    """Return the zone that a name or a tzinfo stands for.

    Raises `ValueError` for a name that this machine does not know, `TypeError` for what
    is no zone.
    """
    if isinstance(given, tzinfo):
        name = getattr(given, "zone", None)  # pytz's, which datetime.replace() misuses
        return zone_of(name) if isinstance(name, str) else given
    if not isinstance(given, str):
        raise TypeError(
            f"a time zone must be a name such as Europe/Berlin, or a tzinfo, not {given!r}"
        )
    if given.upper() == "UTC":
        return UTC
    if fixed := re.fullmatch(r"UTC([+-])(\d\d):(\d\d)", given):
        ahead = timedelta(hours=int(fixed[2]), minutes=int(fixed[3]))
        return timezone(-ahead if fixed[1] == "-" else ahead)
    from zoneinfo import ZoneInfo  # late: 3 ms that only other zones than UTC pay

    try:
        return ZoneInfo(given)
    except (ValueError, OSError, LookupError):
        raise ValueError(
            f"there is no time zone {given!r} (names look like Europe/Berlin; the package "
            "tzdata brings them to a machine that has none)"
        ) from None


def zone_name(zone: tzinfo) -> str:
    """Return the name by which `zone_of()` finds the zone in another process.

    Raises `ValueError` for a zone that tells no such name.
    """
    if isinstance(zone, timezone):
        return (
            "UTC" if zone == UTC else f"UTC{datetime.fromtimestamp(0, zone).isoformat()[-6:]}"
        )
    name = getattr(zone, "key", None)  # zoneinfo's
    if isinstance(name, str):
        return name
    raise ValueError(
        f"the time zone {zone!r} has no name: give one such as 'Europe/Berlin' or "
        "ZoneInfo('Europe/Berlin'), which knows when its clocks change"
    )


@cache
def local_zone() -> tzinfo:
    """Return the machine's own zone, as $TZ or /etc/localtime say; UTC, with a warning, if they
    say what has no name in the database of zones."""
    told = os.environ.get("TZ", "").lstrip(":")
    for name in (_named(told), told) if told else (_named(os.path.realpath(_LOCALTIME)),):
        if name and (zone := _known(name)) is not None:
            return zone
    if not told and (zone := _same_as(_LOCALTIME)) is not None:
        return zone
    if time.localtime().tm_gmtoff:
        where = f"TZ={told}" if told else _LOCALTIME
        warnings.warn(
            f"the time zone of this machine ({where}) has no name in the database of zones: "
            "liteq uses UTC. Set `timezone`",
            ConfigWarning,
            stacklevel=4,
        )
    return UTC


def _named(path: str) -> str:
    """Return the name of the zone whose file this is, "" for a file elsewhere."""
    return path.partition("zoneinfo/")[2]


def _known(name: str) -> tzinfo | None:
    from zoneinfo import ZoneInfo  # late: 3 ms that only other zones than UTC pay

    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        return None  # a POSIX rule, say


def _same_as(path: str) -> tzinfo | None:
    """Return the zone that a file is a copy of, as it is in many containers."""
    import zoneinfo  # late: as above

    data = _read(path)
    for name in sorted(zoneinfo.available_timezones()) if data else ():
        if any(_read(os.path.join(folder, name)) == data for folder in zoneinfo.TZPATH):
            return _known(name)
    return None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
