"""When a periodic task is due: the schedules that users write, under Celery's names.

A schedule is a value. What Celery asks of one is `is_due(last_run_at)`. What liteq's beat
asks is simpler and has no clock in it: `first(now)`, the first instant of an entry that
begins now, and `following(due, after)`, the first of its instants that is later than
`after`, given one of them. Instants are Unix seconds.
"""

# ruff: noqa: FBT001, FBT002  (positional booleans in Celery's signatures)

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from math import floor, isfinite
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias, runtime_checkable

from liteq.cronfields import FIELDS, Cron, ParseException, parse, split
from liteq.current import get_current_app
from liteq.exceptions import ImproperlyConfigured
from liteq.walltime import next_instant, rounded_down, zone_name, zone_of

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = [
    "BaseSchedule",
    "ParseException",
    "Timetable",
    "changed",
    "crontab",
    "from_spec",
    "maybe_schedule",
    "schedstate",
    "schedule",
    "solar",
]

Spec: TypeAlias = dict[str, Any]

_UNITS: Final = (86_400, 3_600, 60, 1)
SHORTEST: Final = 0.001  # seconds that an interval may have
LONGEST: Final = 1e10  # seconds: beyond, a datetime cannot hold the sum


class schedstate(NamedTuple):  # noqa: N801 (Celery's name)
    """Whether a schedule is due, and in how many seconds to ask again."""

    is_due: bool
    next: float


@runtime_checkable
class Timetable(Protocol):
    """A schedule whose instants can be told beforehand."""

    def first(self, now: float) -> float | None: ...
    def following(self, due: float, after: float) -> float | None: ...
    def spec(self) -> Spec: ...


class BaseSchedule:
    """What schedules have in common. `nowfun` returns the time now, for tests; by default the
    time, and the zone in which times of day are meant, are those of `app` (default: the
    current app)."""

    def __init__(
        self, nowfun: Callable[[], datetime] | None = None, app: Liteq | None = None
    ) -> None:
        self.nowfun = nowfun
        self._app = app

    @property
    def app(self) -> Liteq:
        return self._app if self._app is not None else get_current_app()

    @app.setter
    def app(self, app: Liteq | None) -> None:
        self._app = app

    @property
    def tz(self) -> tzinfo:
        """The zone in which times of day are meant."""
        return self.app.timezone

    @property
    def utc_enabled(self) -> bool:
        return bool(self.app.conf.enable_utc)

    def now(self) -> datetime:
        """Return the time now."""
        return (self.nowfun or self.app.now)()

    def maybe_make_aware(self, dt: datetime) -> datetime:
        """Return an aware datetime: a naive one is taken to be UTC, as in Celery."""
        return dt.replace(tzinfo=UTC) if dt.tzinfo is None else dt

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return how long it is until the next run after the last one (below zero: it is
        overdue)."""
        raise NotImplementedError

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        """Return whether it is due, and the seconds until it is due next."""
        raise NotImplementedError

    def _instant(self, given: datetime) -> float:
        return self.maybe_make_aware(given).timestamp()

    def _until(self, instant: float | None, now: float) -> timedelta:
        if instant is None:
            return timedelta.max
        return timedelta(seconds=instant - now)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and bool(self._value() == other._value())

    def __hash__(self) -> int:
        return hash(self._value())

    def _value(self) -> Any:
        raise NotImplementedError


class schedule(BaseSchedule):  # noqa: N801 (Celery's name)
    """Every so many seconds (a number, or a timedelta), the first time one interval after
    the entry was made. With `relative`, rounded down to the unit of the interval, which is
    days, hours, minutes or seconds: every two hours is then at full hours of `tz`, a zone's
    name or a tzinfo (default: the app's).

    Raises `ValueError` for an interval that is not above zero.
    """

    relative: bool
    _tz: tzinfo | None = None  # here too: a subclass may have an __init__ of its own

    def __init__(
        self,
        run_every: float | timedelta | None = None,
        relative: bool = False,
        nowfun: Callable[[], datetime] | None = None,
        app: Liteq | None = None,
        *,
        tz: str | tzinfo | None = None,
    ) -> None:
        super().__init__(nowfun, app)
        self.run_every = _interval(run_every)
        self.relative = bool(relative)
        self._tz = None if tz is None else zone_of(tz)

    @property
    def tz(self) -> tzinfo:
        return self._tz if self._tz is not None else self.app.timezone

    @property
    def seconds(self) -> float:
        return max(self.run_every.total_seconds(), 0)

    @property
    def human_seconds(self) -> str:
        """The interval in words, as "2.00 minutes"."""
        for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")):
            if self.seconds >= size or size == 1:
                count = self.seconds / size
                return f"{count:.2f} {unit}{'' if count == 1 else 's'}"
        raise AssertionError

    def first(self, now: float) -> float | None:
        return self._step(now)

    def following(self, due: float, after: float) -> float | None:
        # Passed over at one go, but for the last: of days, one may have had 25 hours.
        passed = max(0, floor((after - due) / self._grid) - 1)
        found = self._step(due, passed)
        while found <= after:
            found = self._step(found)
        return found

    def _step(self, instant: float, passed: int = 0) -> float:
        """Return the instant that follows this one, having passed over so many. It is later:
        `following()` would not end otherwise."""
        seconds, unit = passed * self._grid + self.seconds, self._unit
        if unit is None:
            return instant + seconds
        return rounded_down(self.tz, instant, seconds, unit)

    @property
    def _unit(self) -> int | None:
        """What instants are rounded down to, in seconds; None if they are not, as below a
        second."""
        units = _UNITS if self.relative else ()
        return next((unit for unit in units if self.seconds >= unit), None)

    @property
    def _grid(self) -> float:
        """How far apart the instants are."""
        unit = self._unit
        return self.seconds if unit is None else self.seconds - self.seconds % unit

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        now = self._instant(self.now())
        return self._until(self._step(self._instant(last_run_at)), now)

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        left = max(self.remaining_estimate(last_run_at).total_seconds(), 0)
        return schedstate(True, self.seconds) if left == 0 else schedstate(False, left)

    def spec(self) -> Spec:
        zone = {"tz": zone_name(self.tz)} if self.relative else {}
        return {"kind": "every", "seconds": self.seconds, "relative": self.relative, **zone}

    def __repr__(self) -> str:
        return f"<freq: {self.human_seconds}>"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, schedule):
            return bool(self._value() == other._value())
        if isinstance(other, (int, float)):
            return self.seconds == other
        return bool(self.run_every == other)

    __hash__ = BaseSchedule.__hash__

    def _value(self) -> Any:
        return self.run_every, self.relative, self._tz if self.relative else None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.run_every, self.relative, self.nowfun), {"_tz": self._tz}


class crontab(BaseSchedule):  # noqa: N801 (Celery's name)
    """At the minutes that five cron fields name, each a number, text or a list of numbers.

    Mind Celery's order: the day of the week comes third. Day of month and day of week
    must both match; with `dom_or_dow`, either of them if both are restricted, as in Vixie
    cron. `tz` is a zone's name or a tzinfo (default: the app's). `liteq.walltime` says what
    happens where clocks change.

    Raises `ParseException` for an expression that cannot be read and `ValueError` for a
    date that never comes.
    """

    def __init__(
        self,
        minute: Any = "*",
        hour: Any = "*",
        day_of_week: Any = "*",
        day_of_month: Any = "*",
        month_of_year: Any = "*",
        nowfun: Callable[[], datetime] | None = None,
        app: Liteq | None = None,
        *,
        tz: str | tzinfo | None = None,
        dom_or_dow: bool = False,
    ) -> None:
        super().__init__(nowfun, app)
        given = (minute, hour, day_of_month, month_of_year, day_of_week)
        fields = [parse(value, field) for value, field in zip(given, FIELDS, strict=True)]
        self.cron = Cron.of(*fields, dom_or_dow=dom_or_dow)
        self._orig_minute, self._orig_hour, self._orig_day_of_month = (
            field.text for field in fields[:3]
        )
        self._orig_month_of_year, self._orig_day_of_week = (field.text for field in fields[3:])
        self.dom_or_dow = dom_or_dow
        self._tz = None if tz is None else zone_of(tz)

    @classmethod
    def from_string(cls, crontab: str, **options: Any) -> crontab:
        """Return the schedule of an expression in cron's own order, `"m h dom mon dow"`,
        or a macro as `"@daily"`. The options are those of `crontab`."""
        minute, hour, day_of_month, month_of_year, day_of_week = split(crontab)
        return cls(minute, hour, day_of_week, day_of_month, month_of_year, **options)

    @property
    def tz(self) -> tzinfo:
        if self._tz is None and self.nowfun is not None:
            # Celery's way to give an entry a zone of its own.
            return self.nowfun().tzinfo or self.app.timezone
        return self._tz if self._tz is not None else self.app.timezone

    # Celery's attributes: the numbers that each field names.

    @property
    def minute(self) -> set[int]:
        return set(self.cron.minutes)

    @property
    def hour(self) -> set[int]:
        return set(self.cron.hours)

    @property
    def day_of_month(self) -> set[int]:
        return set(self.cron.days)

    @property
    def month_of_year(self) -> set[int]:
        return set(self.cron.months)

    @property
    def day_of_week(self) -> set[int]:
        return set(self.cron.weekdays)

    @property
    def expression(self) -> str:
        """The five fields in cron's own order."""
        return (
            f"{self._orig_minute} {self._orig_hour} {self._orig_day_of_month} "
            f"{self._orig_month_of_year} {self._orig_day_of_week}"
        )

    def first(self, now: float) -> float | None:
        return next_instant(self.cron, self.tz, now)

    def following(self, due: float, after: float) -> float | None:
        return next_instant(self.cron, self.tz, max(due, after))

    def remaining_delta(
        self, last_run_at: datetime, tz: tzinfo | None = None
    ) -> tuple[datetime, timedelta, datetime]:
        """Return the last run, how long after it the next one is, and the time now."""
        last = self.maybe_make_aware(last_run_at)
        instant = next_instant(self.cron, tz or self.tz, last.timestamp())
        return last, self._until(instant, last.timestamp()), self.maybe_make_aware(self.now())

    def remaining_estimate(self, last_run_at: datetime, tz: tzinfo | None = None) -> timedelta:
        last, left, now = self.remaining_delta(last_run_at, tz)
        return left if left == timedelta.max else last + left - now

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        now = self._instant(self.now())
        instant = self.first(self._instant(last_run_at))
        due = instant is not None and instant <= now
        if due and (deadline := self.app.conf.beat_cron_starting_deadline) is not None:
            # The latest run that was missed is the one that may still be made.
            latest = self.first(max(self._instant(last_run_at), now - deadline - 1e-6))
            due = latest is not None and latest <= now
        following = self.first(now) if instant is not None and instant <= now else instant
        return schedstate(due, max(0.0, self._until(following, now).total_seconds()))

    def spec(self) -> Spec:
        either = {"dom_or_dow": True} if self.dom_or_dow else {}
        return {"kind": "crontab", "cron": self.expression, "tz": zone_name(self.tz), **either}

    def __repr__(self) -> str:
        return f"<crontab: {self.expression} (m/h/dM/MY/d)>"

    def _value(self) -> Any:
        return self.cron, self._tz

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {
            "minute": self._orig_minute,
            "hour": self._orig_hour,
            "day_of_week": self._orig_day_of_week,
            "day_of_month": self._orig_day_of_month,
            "month_of_year": self._orig_month_of_year,
            "nowfun": self.nowfun,
            "tz": self._tz,
            "dom_or_dow": self.dom_or_dow,
        }
        return _crontab_again, (type(self), fields)


def _crontab_again(kind: type[crontab], fields: Mapping[str, Any]) -> crontab:
    return kind(**fields)


class solar(BaseSchedule):  # noqa: N801 (Celery's name)
    """When the sun does something at a place: `solar("sunset", -37.8, 144.9)`.

    Events: dawn_astronomical, dawn_nautical, dawn_civil, sunrise, solar_noon, sunset,
    dusk_civil, dusk_nautical, dusk_astronomical. A day without the event, as near the poles,
    is skipped. It is due at the next whole second. Needs the package ephem
    (`liteq-queue[solar]`).
    """

    # By event: the method that finds it, and how high the sun's centre is then (degrees;
    # refraction included for its rim at the horizon).
    EVENTS: Final[Mapping[str, tuple[str, str]]] = {
        "dawn_astronomical": ("next_rising", "-18"),
        "dawn_nautical": ("next_rising", "-12"),
        "dawn_civil": ("next_rising", "-6"),
        "sunrise": ("next_rising", "-0:34"),
        "solar_noon": ("next_transit", "0"),
        "sunset": ("next_setting", "-0:34"),
        "dusk_civil": ("next_setting", "-6"),
        "dusk_nautical": ("next_setting", "-12"),
        "dusk_astronomical": ("next_setting", "-18"),
    }

    def __init__(
        self,
        event: str,
        lat: float,
        lon: float,
        nowfun: Callable[[], datetime] | None = None,
        app: Liteq | None = None,
    ) -> None:
        super().__init__(nowfun, app)
        if event not in self.EVENTS:
            raise ValueError(
                f"there is no solar event {event!r}: it is one of {', '.join(self.EVENTS)}"
            )
        if not -90 <= lat <= 90:
            raise ValueError(f"a latitude must be from -90 to 90 degrees, not {lat!r}")
        if not -180 <= lon <= 180:
            raise ValueError(f"a longitude must be from -180 to 180 degrees, not {lon!r}")
        self.event = event
        self.lat = lat
        self.lon = lon
        self._ephem = _import_ephem()

    def first(self, now: float) -> float | None:
        ephem = self._ephem
        method, height = self.EVENTS[self.event]
        place = ephem.Observer()
        place.lat, place.lon = str(self.lat), str(self.lon)
        place.elevation = 0
        place.pressure = 0  # the heights above have the refraction in them
        place.horizon = height
        more = {"use_center": True} if self.event.startswith("d") else {}
        # A minute before: ephem passes over an event that is a part of a second ahead.
        start = datetime.fromtimestamp(now - 60, UTC).replace(tzinfo=None)
        for _ in range(800):  # half days: near the poles the sun rises once a year
            place.date = start
            try:
                found = getattr(place, method)(ephem.Sun(), **more)
            except ephem.CircumpolarError:
                start += timedelta(hours=12)  # ephem looks only so far as the next transit
                continue
            instant: float = found.datetime().replace(tzinfo=UTC).timestamp()
            if instant > now:
                return float(floor(instant) + 1)
            start = found.datetime() + timedelta(minutes=1)
        return None

    def following(self, due: float, after: float) -> float | None:
        # A second on: from another start, ephem finds an event up to 0.2 s earlier or later.
        return self.first(max(due + 1, after))

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        now = self._instant(self.now())
        return self._until(self.first(self._instant(last_run_at)), now)

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        now = self._instant(self.now())
        last = self._instant(last_run_at)
        instant = following = self.following(last, last)
        due = instant is not None and instant <= now
        if instant is not None and due:
            following = self.following(instant, now)
        return schedstate(due, max(0.0, self._until(following, now).total_seconds()))

    def spec(self) -> Spec:
        return {"kind": "solar", "event": self.event, "lat": self.lat, "lon": self.lon}

    def __repr__(self) -> str:
        return f"<solar: {self.event} at latitude {self.lat}, longitude: {self.lon}>"

    def _value(self) -> Any:
        return self.event, self.lat, self.lon

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.event, self.lat, self.lon, self.nowfun)


def maybe_schedule(
    s: Any, relative: bool = False, app: Liteq | None = None, tz: str | tzinfo | None = None
) -> Any:
    """Return a schedule: of a number of seconds, a timedelta, a cron expression as text, or
    a schedule object as it is, with the app it is for.

    `tz` is the zone of a schedule that has none of its own. Raises `ValueError` or
    `TypeError` for anything else.
    """
    if isinstance(s, str):
        return crontab.from_string(s, app=app, tz=tz)
    if isinstance(s, (int, float, timedelta)) and not isinstance(s, bool):
        return schedule(s, relative, app=app, tz=tz)
    if not callable(getattr(s, "is_due", None)):
        raise TypeError(
            "a schedule must be a number of seconds, a timedelta, a cron expression, "
            f"crontab(…) or an object with is_due(), not {s!r}"
        )
    zone = None if tz is None else zone_of(tz)
    if isinstance(s, (crontab, schedule)) and s._tz is None:
        s._tz = zone
    if isinstance(s, BaseSchedule) and app is not None:
        s.app = app
    return s


def from_spec(spec: Mapping[str, Any], app: Liteq | None = None) -> Any:
    """Return the schedule whose `spec()` this was. Raises `ValueError` for another."""
    match spec:
        case {"kind": "every", "seconds": seconds, "relative": relative}:
            return schedule(seconds, relative, app=app, tz=spec.get("tz"))
        case {"kind": "crontab", "cron": str(cron), "tz": tz}:
            either = bool(spec.get("dom_or_dow"))
            return crontab.from_string(cron, tz=tz, dom_or_dow=either, app=app)
        case {"kind": "solar", "event": event, "lat": lat, "lon": lon}:
            return solar(event, lat, lon, app=app)
    raise ValueError(f"there is no such schedule: {dict(spec)!r}")


def changed(spec: Mapping[str, Any], changes: Mapping[str, Any], app: Liteq) -> Any:
    """Return the schedule whose `spec()` this was with another `schedule`, `tz` or
    `relative`: its zone, and what else a number or an expression leaves open, stay unless
    they are among the changes.

    Raises `ValueError` or `TypeError` for what cannot be, or would have no effect.
    """
    given = changes["schedule"] if "schedule" in changes else _bare(spec, app)
    zone = changes.get("tz", None if getattr(given, "nowfun", None) else spec.get("tz"))
    made: Any  # it may be a class of the user's
    if isinstance(given, str):
        either = bool(spec.get("dom_or_dow"))
        made = crontab.from_string(given, tz=zone, dom_or_dow=either, app=app)
    else:
        relative = bool(changes.get("relative", spec.get("relative")))
        made = maybe_schedule(given, relative, app, zone)
    if changes.get("relative") and not getattr(made, "relative", False):
        raise ValueError(
            "only an interval (a number of seconds or a timedelta) can be relative, "
            f"not {made!r}"
        )
    if (
        changes.get("tz") is not None
        and isinstance(made, Timetable)
        and "tz" not in made.spec()
    ):
        raise ValueError(
            f"tz has no effect on {made!r}: only a crontab and a relative interval have a zone"
        )
    return made


def _bare(spec: Mapping[str, Any], app: Liteq) -> Any:
    """Return the number or the expression of a `spec()`, or the schedule if it has neither."""
    match spec:
        case {"kind": "every", "seconds": seconds}:
            return seconds
        case {"kind": "crontab", "cron": cron}:
            return cron
    return from_spec(spec, app)


def _interval(given: Any) -> timedelta:
    if isinstance(given, timedelta):
        seconds = given.total_seconds()
    elif isinstance(given, (int, float)) and not isinstance(given, bool):
        seconds = float(given)
    else:
        raise TypeError(
            f"an interval must be a number of seconds or a timedelta, not {given!r}"
        )
    if not (isfinite(seconds) and SHORTEST <= seconds <= LONGEST):
        raise ValueError(f"an interval must be above zero (0.001 s or more), not {given!r}")
    return timedelta(seconds=seconds)


def _import_ephem() -> Any:
    try:
        import ephem  # late: an extra
    except ImportError as exc:
        raise ImproperlyConfigured(
            "solar schedules need the package ephem: pip install 'liteq-queue[solar]'"
        ) from exc
    return ephem
