"""The grammar of cron: from the five fields of an expression to the minutes it names.

It is Celery's grammar (ranges wrap, steps count from the start of their range, day of
month and day of week must both match), and more: 7 is Sunday too, `L` the last day of
the month, names may stand in ranges, `a/n` counts from a, `@daily` and its like.
Nothing here knows a time zone: a *wall* time is a number of seconds, counted as if each
day had 86,400 of them, since 1 January 1970 on the clock on the wall.
"""

from __future__ import annotations

from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterable
from datetime import date
from typing import Any, Final, NamedTuple

__all__ = ["FIELDS", "MACROS", "Cron", "Field", "ParseException", "parse", "split"]

_DAY: Final = 86_400
_EPOCH: Final = date(1970, 1, 1).toordinal()
_LAST_DAY: Final = date.max.toordinal() - _EPOCH


class ParseException(ValueError):
    """A cron expression that cannot be read; the message names the part and the field."""


class Field(NamedTuple):
    """What a field may hold. `names` stand for the numbers from `least` on."""

    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()


_MONTHS: Final = (
    "january february march april may june july august september october november december"
)
_WEEKDAYS: Final = "sunday monday tuesday wednesday thursday friday saturday"

FIELDS: Final = (
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of month", 1, 31),
    Field("month of year", 1, 12, tuple(_MONTHS.split())),
    Field("day of week", 0, 6, tuple(_WEEKDAYS.split())),
)
_MINUTE, _HOUR, _DAY_OF_MONTH, _MONTH, _WEEKDAY = FIELDS

MACROS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


def split(expression: str) -> list[str]:
    """Return the five fields of an expression, in the order minute, hour, day of month,
    month, day of week. Raises `ParseException` if there are not five."""
    if not isinstance(expression, str):
        raise TypeError(f"a cron expression must be text, not {expression!r}")
    text = expression.strip()
    if text.startswith("@"):
        if text.lower() not in MACROS:
            raise ParseException(
                f"{expression!r} is none of {', '.join(sorted(MACROS))}: there is no other "
                "cron expression that begins with @"
            )
        text = MACROS[text.lower()]
    parts = text.split()
    if len(parts) != 5:
        advice = ": a schedule of seconds is written as a number" if len(parts) == 6 else ""
        raise ParseException(
            f"the cron expression {expression!r} has {len(parts)} fields, not the five: "
            f"minute, hour, day of month, month, day of week{advice}"
        )
    return parts


class Parsed(NamedTuple):
    """One field: the numbers it names; `last` for the last day of the month; `wild` if it
    was written with `*` (or as a range of everything)."""

    numbers: frozenset[int]
    text: str
    wild: bool = False
    last: bool = False


def parse(given: Any, field: Field) -> Parsed:
    """Read one field: a number, text, or an iterable of numbers.

    Raises `ParseException` (a `ValueError`) for what the grammar does not have, and
    `TypeError` for another type.
    """
    if isinstance(given, str):
        return _parse_text(given, field)
    if isinstance(given, int) and not isinstance(given, bool):
        return Parsed(frozenset([_number(str(given), field)]), str(given))
    if isinstance(given, Iterable):
        numbers = list(given)
        if numbers and all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
            found = frozenset(_number(str(number), field) for number in numbers)
            return Parsed(found, ",".join(map(str, sorted(found))))
        if not numbers:
            raise ParseException(f"the {field.name} is empty: it names no time at all")
    raise TypeError(
        f"the {field.name} must be a number, text, or a list of numbers, not {given!r}"
    )


def _parse_text(text: str, field: Field) -> Parsed:
    numbers: set[int] = set()
    wild = last = False
    for part in text.split(","):
        part = part.strip()
        if part.upper() == "L" and field is _DAY_OF_MONTH:
            last = True
            continue
        found, everything = _parse_part(part, field, text)
        numbers.update(found)
        wild = wild or everything
    return Parsed(frozenset(numbers), text, wild, last)


def _parse_part(part: str, field: Field, text: str) -> tuple[list[int], bool]:
    """Return the numbers of one part, and whether its range is all that the field has."""
    if not part:
        raise ParseException(f"{text!r} has an empty part in its {field.name}")
    span, slash, step = part.partition("/")
    first, dash, end = span.partition("-")
    if span == "*":
        found = list(range(field.least, field.most + 1))
    elif dash:
        found = _range(_number(first, field), _number(end, field, is_end=True), field)
    elif slash:  # a/n: from a to the end
        found = list(range(_number(first, field), field.most + 1))
    else:
        return [_number(first, field)], False
    everything = {n % 7 if field is _WEEKDAY else n for n in found} == set(
        range(field.least, field.most + 1)
    )
    if slash:
        if not step.isdecimal() or int(step) < 1:
            raise ParseException(
                f"{part!r} in the {field.name}: the / must be followed by a number above 0"
            )
        found = found[:: int(step)]
    return [n % 7 for n in found] if field is _WEEKDAY else found, everything


def _range(first: int, end: int, field: Field) -> list[int]:
    if end < first:  # it wraps: 22-2 is 22, 23, 0, 1, 2
        return [*range(first, field.most + 1), *range(field.least, end + 1)]
    return list(range(first, end + 1))


def _number(text: str, field: Field, *, is_end: bool = False) -> int:
    """Return the number that a word of a field means. Sunday may be 7, and stays so at the
    end of a range: 5-7."""
    word = text.strip().lower()
    if word.isdecimal():
        number = int(word)
        if field is _WEEKDAY and number == 7:
            return 7 if is_end else 0
        if field.least <= number <= field.most:
            return number
    elif len(word) >= 3:
        for position, name in enumerate(field.names, field.least):
            if name.startswith(word):
                return position
    also = f", or names as {field.names[0][:3]}" if field.names else ""
    raise ParseException(
        f"Invalid crontab pattern. Valid range of the {field.name} is "
        f"{field.least}-{field.most}{also}. {text.strip()!r} was found."
    )


class Cron(NamedTuple):
    """The minutes that a cron expression names.

    `is_wild`: its minute or hour was written with `*` or `*/n`, so it is about an
    interval, not about times of day. `either_day`: a day need match the day of month or
    the day of week only, if both are restricted (Vixie's rule); else it must match both.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    last_day: bool
    is_wild: bool
    either_day: bool

    @classmethod
    def of(
        cls,
        minute: Parsed,
        hour: Parsed,
        day_of_month: Parsed,
        month: Parsed,
        day_of_week: Parsed,
        *,
        dom_or_dow: bool = False,
    ) -> Cron:
        """Put five fields together. Raises `ValueError` for a date that never comes."""
        found = cls(
            minutes=tuple(sorted(minute.numbers)),
            hours=tuple(sorted(hour.numbers)),
            days=day_of_month.numbers,
            months=month.numbers,
            weekdays=day_of_week.numbers,
            last_day=day_of_month.last,
            is_wild=minute.wild or hour.wild,
            either_day=dom_or_dow and not (day_of_month.wild or day_of_week.wild),
        )
        if not found._can_be():
            raise ValueError(
                f"the date never comes: day {day_of_month.text} of month {month.text}"
            )
        return found

    def next_wall(self, wall: int) -> int | None:
        """Return the first wall time from this one on that the expression names; None if
        there is none before the year 10,000."""
        day, second = divmod(wall, _DAY)
        minute = -(-second // 60)
        found = self._next_minute(minute)
        if found is not None and self._has_day(day):
            return day * _DAY + found * 60
        following = self._next_day(day + 1)
        if following is None:
            return None
        return following * _DAY + (self.hours[0] * 60 + self.minutes[0]) * 60

    def _next_minute(self, minute: int) -> int | None:
        """Return the first minute of the day, from this one on, that is named."""
        hour, rest = divmod(minute, 60)
        at = bisect_left(self.hours, hour)
        if at < len(self.hours) and self.hours[at] == hour:
            if (within := bisect_left(self.minutes, rest)) < len(self.minutes):
                return hour * 60 + self.minutes[within]
            at += 1
        return self.hours[at] * 60 + self.minutes[0] if at < len(self.hours) else None

    def _has_day(self, day: int) -> bool:
        if not 0 <= day + _EPOCH <= _LAST_DAY + _EPOCH:
            return False
        on = date.fromordinal(day + _EPOCH)
        return on.month in self.months and self._matches(on, monthrange(on.year, on.month)[1])

    def _matches(self, on: date, length: int) -> bool:
        by_number = on.day in self.days or (self.last_day and on.day == length)
        by_weekday = on.isoweekday() % 7 in self.weekdays
        return (by_number or by_weekday) if self.either_day else (by_number and by_weekday)

    def _next_day(self, day: int) -> int | None:
        while day <= _LAST_DAY:
            on = date.fromordinal(day + _EPOCH)
            length = monthrange(on.year, on.month)[1]
            if on.month in self.months:
                for number in range(on.day, length + 1):
                    if self._matches(on.replace(day=number), length):
                        return day + number - on.day
            day += length - on.day + 1
        return None

    def _can_be(self) -> bool:
        if self.last_day or self.either_day:
            return True
        longest = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}
        return any(min(self.days) <= longest.get(month, 31) for month in self.months)
