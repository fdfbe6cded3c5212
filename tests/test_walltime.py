"""When a cron expression is due where clocks change, against a walk over every minute and
against cronsim."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from zoneinfo import TZPATH, ZoneInfo, available_timezones

import pytest
from cronsim import CronSim
from hypothesis import example, given
from hypothesis import strategies as st

from liteq import Liteq
from liteq.exceptions import ConfigWarning
from liteq.schedules import crontab, schedule
from liteq.walltime import local_zone, next_instant, zone_name, zone_of

pytestmark = pytest.mark.untraced

STORM = bool(os.environ.get("LITEQ_STORM"))
FROM, TO = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (2020, 2036))
MINUTE, HOUR, DAY = 60, 3_600, 86_400

# Zones whose clocks change in other ways than by an hour at two in the morning.
ODD = (
    "Africa/Cairo",
    "Africa/Casablanca",
    "America/Havana",
    "America/New_York",
    "America/Santiago",
    "America/St_Johns",
    "America/Scoresbysund",
    "Antarctica/Troll",
    "Asia/Beirut",
    "Asia/Gaza",
    "Asia/Tehran",
    "Australia/Lord_Howe",
    "Europe/Dublin",
    "Europe/Paris",
    "Europe/Volgograd",
    "Pacific/Apia",
    "Pacific/Chatham",
    "Pacific/Norfolk",
)
EXPRESSIONS = (
    "30 2 * * *",
    "0 0 * * *",
    "15 1,2,3 * * *",
    "0,30 0-4 * * *",
    "*/30 * * * *",
    "0 * * * *",
    "17 * * * *",
    "*/20 2 * * *",
    "* 2 * * *",
    "0 */2 * * *",
    "45 */3 * * *",
    "5-59/15 1-5 * * *",
    "0 23 * * *",
    "30 0 L * *",
    "10 2 * 3,10,11 sun",
)


# The oracle: the rule of liteq.walltime, said of each minute alone


def walk(expression: str, zone: ZoneInfo, start: int, end: int) -> list[int]:
    """Return the due instants in [start, end), having looked at each minute in turn."""
    fields = crontab.from_string(expression, tz="UTC")
    wild = any(part.startswith("*") for part in expression.split()[:2])
    due = []
    for instant in range(start, end, MINUTE):
        wall = datetime.fromtimestamp(instant, zone)
        runs = names(fields, wall) and (wild or not wall.fold)
        if (gap := gap_before(instant, zone)) and not runs:
            naive = wall.replace(tzinfo=None)
            jumped = any(names(fields, naive - timedelta(minutes=m)) for m in minutes(gap))
            soon = any(names(fields, naive + timedelta(minutes=m - 1)) for m in minutes(gap))
            runs = jumped and not (wild and soon)
        if runs:
            due.append(instant)
    return due


def minutes(gap: int) -> range:
    return range(1, gap // MINUTE + 1)


def gap_before(instant: int, zone: ZoneInfo) -> int:
    """Return by how many seconds clocks went forward at this instant, if they did."""
    one, other = (datetime.fromtimestamp(at, zone).utcoffset() for at in (instant - 1, instant))
    assert one is not None
    assert other is not None
    return max(0, int((other - one).total_seconds()))


def names(fields: crontab, wall: datetime) -> bool:
    last = (wall + timedelta(days=1)).month != wall.month
    return (
        wall.minute in fields.minute
        and wall.hour in fields.hour
        and wall.month in fields.month_of_year
        and wall.isoweekday() % 7 in fields.day_of_week
        and (wall.day in fields.day_of_month or (last and fields.cron.last_day))
    )


@cache
def changes(name: str) -> list[int]:
    """Return when the clocks of a zone change from 2020 to 2035."""
    zone, found = ZoneInfo(name), []
    for at in range(FROM, TO, 12 * HOUR):
        low, high = at, at + 12 * HOUR
        before = datetime.fromtimestamp(low, zone).utcoffset()
        if datetime.fromtimestamp(high, zone).utcoffset() == before:
            continue
        while high - low > 1:
            middle = (low + high) // 2
            if datetime.fromtimestamp(middle, zone).utcoffset() == before:
                low = middle
            else:
                high = middle
        found.append(high)
    return found


def told(expression: str, zone: ZoneInfo, start: int, end: int) -> list[int]:
    """Return the same as `walk()`, as the beat finds it."""
    cron, found, at = crontab.from_string(expression, tz="UTC").cron, [], start - 1.0
    while (instant := next_instant(cron, zone, at)) is not None and instant < end:
        found.append(int(instant))
        at = instant
    return found


def assert_as_walked(name: str, change: int, expression: str) -> None:
    zone = ZoneInfo(name)
    start = (change - 14 * HOUR) // MINUTE * MINUTE
    end = start + 30 * HOUR
    shown = f"{expression} in {name} around {datetime.fromtimestamp(change, zone)}"
    assert told(expression, zone, start, end) == walk(expression, zone, start, end), shown


def samples() -> Iterator[tuple[str, int, str]]:
    pick = random.Random(4)
    for name in ODD:
        for change in pick.sample(changes(name), min(1, len(changes(name)))):
            for expression in pick.sample(EXPRESSIONS, 3):
                yield name, change, expression


def test_a_sample_of_clock_changes_is_as_the_walk_over_every_minute_says() -> None:
    for name, change, expression in samples():
        assert_as_walked(name, change, expression)


@pytest.mark.skipif(not STORM, reason="LITEQ_STORM=1: minutes")
@pytest.mark.timeout(3_600)
def test_every_clock_change_from_2020_to_2035_is_as_the_walk_says() -> None:
    seen = set()
    for name in sorted(available_timezones()):
        for change in changes(name):
            zone = ZoneInfo(name)
            offsets = [datetime.fromtimestamp(change + d, zone).utcoffset() for d in (-1, 0)]
            if (key := (change, *offsets)) in seen:
                continue  # another name of the same zone
            seen.add(key)
            for expression in EXPRESSIONS:
                assert_as_walked(name, change, expression)


@example("Africa/Cairo", 2082671999.9999998, "0,30 0-4 * * *")  # one float from an instant
@given(
    st.sampled_from(ODD),
    st.floats(FROM, TO - DAY),
    st.sampled_from(EXPRESSIONS),
)
def test_the_next_instant_is_later_and_the_same_from_wherever_one_asks(
    name: str, after: float, expression: str
) -> None:
    zone, cron = ZoneInfo(name), crontab.from_string(expression, tz="UTC").cron

    found = next_instant(cron, zone, after)

    assert found is not None
    assert found > after
    halfway = min((after + found) / 2, math.nextafter(found, after))
    assert next_instant(cron, zone, halfway) == found
    assert next_instant(cron, zone, found - 0.001) == found


# Intervals that are rounded down

INTERVALS = (1.5, 7, 60, 90, 900, 1_800, HOUR, 5_400, 2 * HOUR, 9_000, 12 * HOUR)
DAYS = (DAY, 25 * HOUR, 2 * DAY, 7 * DAY)


@cache
def every(seconds: float, name: str) -> schedule:
    app = Liteq("every", set_as_current=False, timezone=name)
    return schedule(seconds, relative=True, app=app)


def unit_of(seconds: float) -> int:
    return next(unit for unit in (DAY, HOUR, MINUTE, 1) if seconds >= unit)


@st.composite
def around_changes(draw: st.DrawFn, names: Sequence[str] = ODD) -> tuple[str, float]:
    """A zone, and an instant within a day and a half of a change of its clocks."""
    name = draw(st.sampled_from(names))
    change = draw(st.sampled_from(changes(name) or [FROM]))
    near = st.integers(-72, 72).map(lambda half_hours: half_hours * HOUR / 2)
    return name, change + draw(near | st.floats(-1.5 * DAY, 1.5 * DAY))


@example(("Europe/Paris", 1824944400.0), 1_800, 0)  # 02:00 for the second time
@example(("UTC", 1767225600.0), 0.5, 0)
@given(
    around_changes((*ODD, "UTC")),
    st.sampled_from((*INTERVALS, *DAYS)) | st.floats(0.1, 5 * DAY),
    st.floats(0, 3 * DAY),
)
def test_a_relative_interval_always_goes_on(
    where: tuple[str, float], seconds: float, late: float
) -> None:
    name, now = where
    when = every(seconds, name)

    first = when.first(now)
    assert first is not None
    following = when.following(first, first + late)

    assert first > now
    assert following is not None
    assert first + late < following <= first + late + 2 * seconds + DAY + 3 * HOUR


@given(around_changes(), st.sampled_from((*INTERVALS, *DAYS)))
def test_a_relative_interval_is_due_when_its_unit_begins_or_was_jumped_over(
    where: tuple[str, float], seconds: float
) -> None:
    name, at = where
    when, zone = every(seconds, name), ZoneInfo(name)
    for _ in range(5):
        found = when.following(at, at)
        assert found is not None
        shown = datetime.fromtimestamp(found, zone).replace(tzinfo=UTC).timestamp()
        assert shown % unit_of(seconds) == 0 or gap_before(int(found), zone)
        at = found


@given(
    around_changes([name for name in ODD if name != "Australia/Lord_Howe"]),
    st.sampled_from([s for s in (*INTERVALS, *DAYS) if s >= 1_800]),
    st.floats(0, 4 * DAY),
)
def test_what_a_relative_interval_missed_does_not_move_it(
    where: tuple[str, float], seconds: float, late: float
) -> None:
    name, now = where
    when = every(seconds, name)
    due = walked = when.first(now)
    assert due is not None
    while walked is not None and walked <= due + late:
        walked = when.following(walked, walked)
    assert when.following(due, due + late) == walked


# cronsim, which follows Debian's cron


@pytest.mark.parametrize(
    "expression",
    ["30 2 * * *", "0 0 * * *", "15 1,2,3 * * *", "*/30 * * * *", "17 * * * *", "0 9 1 * *"],
)
@pytest.mark.parametrize("name", ["Europe/Paris", "America/New_York", "Asia/Tokyo", "UTC"])
def test_a_year_is_as_cronsim_says(expression: str, name: str) -> None:
    zone = ZoneInfo(name)
    start = datetime(2027, 1, 1, tzinfo=zone)
    starts = [start] if not changes(name) else []
    starts += [datetime.fromtimestamp(at - 2 * DAY, zone) for at in changes(name)[14:16]]
    for begin in starts:
        end = int(begin.timestamp()) + 4 * DAY
        told_here = told(expression, zone, int(begin.timestamp()) + 1, end)
        simulated: list[int] = []
        for each in CronSim(expression, begin):
            if each.timestamp() >= end:
                break
            simulated.append(int(each.timestamp()))
        assert told_here == sorted(set(simulated))


# What people know of it


def local(expression: str, name: str, start: str, count: int) -> list[str]:
    zone = ZoneInfo(name)
    at: float | None = datetime.fromisoformat(start).replace(tzinfo=zone).timestamp()
    shown = []
    for _ in range(count):
        assert at is not None
        at = crontab.from_string(expression, tz=name).first(at)
        assert at is not None
        shown.append(datetime.fromtimestamp(at, zone).strftime("%d %H:%M%z"))
    return shown


def test_a_time_that_does_not_exist_runs_once_right_after_the_gap() -> None:
    assert local("30 2 * * *", "Europe/Paris", "2027-03-27 12:00", 2) == [
        "28 03:00+0200",
        "29 02:30+0200",
    ]


def test_several_times_that_do_not_exist_run_once_together() -> None:
    assert local("0,20,40 2 * * *", "Europe/Paris", "2027-03-27 12:00", 2) == [
        "28 03:00+0200",
        "29 02:00+0200",
    ]


def test_a_time_that_exists_twice_runs_at_its_first_occurrence() -> None:
    assert local("30 2 * * *", "Europe/Paris", "2027-10-30 12:00", 2) == [
        "31 02:30+0200",
        "01 02:30+0100",
    ]


def test_a_step_keeps_its_interval_through_the_hour_that_comes_twice() -> None:
    assert local("*/30 * * * *", "Europe/Paris", "2027-10-31 01:30", 5) == [
        "31 02:00+0200",
        "31 02:30+0200",
        "31 02:00+0100",
        "31 02:30+0100",
        "31 03:00+0100",
    ]


def test_a_step_keeps_its_interval_over_a_gap() -> None:
    assert local("15 * * * *", "Europe/Paris", "2027-03-28 01:00", 3) == [
        "28 01:15+0100",
        "28 03:15+0200",
        "28 04:15+0200",
    ]


def test_every_other_hour_is_as_the_table_in_the_docs_says() -> None:
    assert local("0 */2 * * *", "Europe/Paris", "2027-03-28 00:00", 2) == [
        "28 03:00+0200",
        "28 04:00+0200",
    ]
    assert local("0 */2 * * *", "Europe/Paris", "2027-10-31 00:00", 3) == [
        "31 02:00+0200",
        "31 02:00+0100",
        "31 04:00+0100",
    ]


def test_a_midnight_that_does_not_exist_runs_at_one() -> None:
    assert local("0 0 * * *", "America/Santiago", "2027-09-04 12:00", 1) == ["05 01:00-0300"]


def test_every_two_hours_is_elapsed_time_whatever_the_clocks_do() -> None:
    start = datetime(2027, 3, 28, 0, 30, tzinfo=ZoneInfo("Europe/Paris")).timestamp()
    assert schedule(7_200).following(start, start) == start + 7_200


def relative(seconds: float, name: str, start: str, count: int) -> list[str]:
    zone, shown = ZoneInfo(name), []
    at: float | None = datetime.fromisoformat(start).replace(tzinfo=zone).timestamp()
    for _ in range(count):
        assert at is not None
        at = every(seconds, name).following(at, at)
        assert at is not None
        shown.append(datetime.fromtimestamp(at, zone).strftime("%d %H:%M%z"))
    return shown


def test_a_relative_interval_runs_in_both_passes_of_an_hour() -> None:
    assert relative(1_800, "Europe/Paris", "2027-10-31 02:00", 4) == [
        "31 02:30+0200",
        "31 02:00+0100",
        "31 02:30+0100",
        "31 03:00+0100",
    ]


def test_a_relative_day_may_have_25_hours() -> None:
    assert relative(DAY, "Europe/Paris", "2027-10-30 00:00", 3) == [
        "31 00:00+0200",
        "01 00:00+0100",
        "02 00:00+0100",
    ]


def test_a_relative_day_begins_with_the_first_of_two_midnights() -> None:
    assert relative(DAY, "America/Havana", "2027-11-06 00:00", 2) == [
        "07 00:00-0400",
        "08 00:00-0500",
    ]


def test_a_full_hour_that_the_clock_was_set_back_from_is_waited_for() -> None:
    assert relative(HOUR, "Australia/Lord_Howe", "2027-04-04 00:00", 3) == [
        "04 01:00+1100",
        "04 02:00+1030",
        "04 03:00+1030",
    ]


def test_a_full_hour_that_the_clock_jumped_over_is_right_after_the_gap() -> None:
    assert relative(HOUR, "Australia/Lord_Howe", "2027-10-03 00:00", 3) == [
        "03 01:00+1030",
        "03 02:30+1100",
        "03 03:00+1100",
    ]


# Zones


@pytest.mark.parametrize(
    "name", ["UTC", "Europe/Paris", "UTC+05:30", "UTC-03:00", "America/St_Johns"]
)
def test_a_zone_is_found_again_by_its_name(name: str) -> None:
    assert zone_name(zone_of(name)) == name
    assert zone_of(zone_of(name)) is zone_of(name) or name.startswith("UTC")


def test_a_fixed_offset_is_a_zone_too() -> None:
    assert zone_name(timezone(timedelta(hours=-3, minutes=-30))) == "UTC-03:30"


def test_an_unknown_zone_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="no time zone 'Mars/Phobos'"):
        crontab(tz="Mars/Phobos")


def test_what_is_no_zone_is_refused() -> None:
    with pytest.raises(TypeError, match="a time zone must be a name"):
        crontab(tz=3)  # type: ignore[arg-type]


# The machine's own zone


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine whose /etc/localtime is this file, and that has no $TZ."""
    place = tmp_path / "localtime"
    monkeypatch.setattr("liteq.walltime._LOCALTIME", str(place))
    monkeypatch.delenv("TZ", raising=False)
    local_zone.cache_clear()
    yield place
    local_zone.cache_clear()
    monkeypatch.undo()
    time.tzset()


def file_of(zone: str) -> Path:
    return next(path for root in TZPATH if (path := Path(root, zone)).is_file())


@pytest.mark.parametrize("form", ["{name}", ":{name}", "{path}", ":{path}"])
def test_the_zone_that_tz_names_is_the_machines(
    machine: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    path = file_of("Europe/Paris")
    monkeypatch.setenv("TZ", form.format(name="Europe/Paris", path=path))

    assert zone_name(local_zone()) == "Europe/Paris"


def test_a_link_or_a_copy_is_the_zone_of_the_machine(machine: Path) -> None:
    machine.symlink_to(file_of("Asia/Tokyo"))
    assert zone_name(local_zone()) == "Asia/Tokyo"

    machine.unlink()
    machine.write_bytes(file_of("Asia/Kathmandu").read_bytes())
    local_zone.cache_clear()
    assert zone_name(local_zone()) in ("Asia/Kathmandu", "Asia/Katmandu")


def test_a_zone_without_a_name_is_utc_and_said(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()

    with pytest.warns(ConfigWarning, match=r"\(TZ=CET-1CEST,M3.5.0,M10.5.0/3\) has no name"):
        assert local_zone() == UTC
    assert local_zone() == UTC  # and no second warning


def test_a_machine_without_a_zone_is_in_utc(machine: Path) -> None:
    time.tzset()

    assert local_zone() == UTC
