"""Schedules as users write them: Celery's grammar and interface, and what liteq adds."""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from api import app_in_memory

from liteq import Liteq
from liteq.exceptions import ImproperlyConfigured
from liteq.schedules import (
    ParseException,
    Timetable,
    crontab,
    from_spec,
    maybe_schedule,
    schedule,
    solar,
)

NOON = datetime(2027, 1, 15, 12, 0, tzinfo=UTC)  # a Friday


@pytest.fixture(autouse=True)
def app() -> Iterator[Liteq]:
    with app_in_memory() as app:
        yield app


def at(now: datetime) -> Any:
    return lambda: now


# The grammar of a field


@pytest.mark.parametrize(
    ("given", "minutes"),
    [
        ("*", set(range(60))),
        ("*/15", {0, 15, 30, 45}),
        ("0", {0}),
        ("1,2,3", {1, 2, 3}),
        ("10-13", {10, 11, 12, 13}),
        ("10-20/5", {10, 15, 20}),
        ("58-1", {58, 59, 0, 1}),
        ("55-5/3", {55, 58, 1, 4}),
        ("5/15", {5, 20, 35, 50}),
        ("*/20,7", {0, 20, 40, 7}),
        (" 4 , 5 ", {4, 5}),
        (7, {7}),
        ([1, 2], {1, 2}),
        ({3}, {3}),
        (range(0, 60, 30), {0, 30}),
    ],
)
def test_a_minute_is_read_as_celery_reads_it_and_more(given: Any, minutes: set[int]) -> None:
    assert crontab(minute=given).minute == minutes


@pytest.mark.parametrize(
    ("given", "days"),
    [
        ("sun", {0}),
        ("Sunday", {0}),
        ("mon-fri", {1, 2, 3, 4, 5}),
        ("sun-tue", {0, 1, 2}),
        ("fri-mon", {5, 6, 0, 1}),
        ("thurs", {4}),
        ("7", {0}),
        ("5-7", {5, 6, 0}),
        ("1-7", set(range(7))),
        (7, {0}),
        ("*/2", {0, 2, 4, 6}),
        ("1/2", {1, 3, 5}),
        ("mon,wed,5", {1, 3, 5}),
    ],
)
def test_a_weekday_may_be_a_name_and_sunday_seven(given: Any, days: set[int]) -> None:
    assert crontab(day_of_week=given).day_of_week == days


def test_months_have_names_and_their_steps_begin_with_january() -> None:
    assert crontab(month_of_year="jan,MAR-may").month_of_year == {1, 3, 4, 5}
    assert crontab(month_of_year="*/2").month_of_year == {1, 3, 5, 7, 9, 11}
    assert crontab(day_of_month="*/5").day_of_month == {1, 6, 11, 16, 21, 26, 31}


@pytest.mark.parametrize(
    "given",
    [
        "",
        "60",
        "-1",
        "1-60",
        "*/0",
        "*/-2",
        "*/x",
        "1,,2",
        "x",
        "1-",
        "/5",
        "?",
        "5#2",
        "W",
        "L",
    ],
)
def test_what_is_no_minute_is_refused_with_the_word_and_the_field(given: str) -> None:
    with pytest.raises(ParseException, match="minute"):
        crontab(minute=given)


@pytest.mark.parametrize("given", [None, 1.5, True, ["1"], [1.0], object()])
def test_another_type_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="a number, text, or a list of numbers"):
        crontab(hour=given)


def test_an_empty_list_names_no_time() -> None:
    with pytest.raises(ValueError, match="names no time"):
        crontab(hour=[])


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("hour", 24, "0-23"),
        ("day_of_month", 0, "1-31"),
        ("day_of_month", 32, "1-31"),
        ("month_of_year", 13, "1-12"),
        ("day_of_week", 8, "0-6"),
        ("day_of_week", "xyz", "names as sun"),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_range(
    field: str, value: Any, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        crontab(**{field: value})


@pytest.mark.parametrize(
    ("day", "month"), [("30", "2"), ("31", "4,6,9,11"), ("30-31", "feb"), (31, [2, 4])]
)
def test_a_date_that_never_comes_is_refused(day: Any, month: Any) -> None:
    with pytest.raises(ValueError, match="never comes"):
        crontab(day_of_month=day, month_of_year=month)


def test_the_29th_of_february_does_come() -> None:
    leap = crontab(0, 0, day_of_month=29, month_of_year=2)
    assert when(leap, NOON) == datetime(2028, 2, 29, tzinfo=UTC)


# Expressions


def test_an_expression_is_in_crons_own_order() -> None:
    assert crontab.from_string("1 2 3 4 5") == crontab(1, 2, 5, 3, 4)


@pytest.mark.parametrize(
    ("macro", "fields"),
    [
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * 0"),
        ("@daily", "0 0 * * *"),
        ("@Midnight", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
    ],
)
def test_macros_stand_for_their_fields(macro: str, fields: str) -> None:
    assert crontab.from_string(macro) == crontab.from_string(fields)


@pytest.mark.parametrize("given", ["", "* * * *", "@never", "@reboot"])
def test_what_is_no_expression_is_refused(given: str) -> None:
    with pytest.raises(ParseException):
        crontab.from_string(given)


def test_seconds_are_no_sixth_field() -> None:
    with pytest.raises(ParseException, match="written as a number"):
        crontab.from_string("*/5 * * * * *")


def test_only_text_is_an_expression() -> None:
    with pytest.raises(TypeError, match="must be text"):
        crontab.from_string(5)  # type: ignore[arg-type]


# When


def when(given: Timetable, after: datetime) -> datetime:
    found = given.first(after.timestamp())
    assert found is not None
    return datetime.fromtimestamp(found, UTC)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("* * * * *", "2027-01-15 12:01"),
        ("*/15 * * * *", "2027-01-15 12:15"),
        ("0 * * * *", "2027-01-15 13:00"),
        ("30 7 * * *", "2027-01-16 07:30"),
        ("0 0 * * mon", "2027-01-18 00:00"),
        ("0 0 1 * *", "2027-02-01 00:00"),
        ("0 0 L * *", "2027-01-31 00:00"),
        ("0 0 1,L 2 *", "2027-02-01 00:00"),
        ("0 0 13 * fri", "2027-08-13 00:00"),  # both: a Friday the 13th
        ("0 0 31 * *", "2027-01-31 00:00"),
        ("59 23 31 12 *", "2027-12-31 23:59"),
    ],
)
def test_the_next_run_is_as_the_expression_says(expression: str, expected: str) -> None:
    found = when(crontab.from_string(expression), NOON)
    assert found.strftime("%Y-%m-%d %H:%M") == expected


def test_either_day_will_do_if_asked_for() -> None:
    either = crontab.from_string("0 0 13 * fri", dom_or_dow=True)
    assert when(either, NOON) == datetime(2027, 1, 22, tzinfo=UTC)
    only_one = crontab.from_string("0 0 * * fri", dom_or_dow=True)
    assert when(only_one, NOON) == datetime(2027, 1, 22, tzinfo=UTC)


def test_the_last_day_of_february_is_found_in_leap_years_too() -> None:
    last = crontab.from_string("0 0 L 2 *")
    assert when(last, NOON) == datetime(2027, 2, 28, tzinfo=UTC)
    assert when(last, datetime(2028, 1, 1, tzinfo=UTC)) == datetime(2028, 2, 29, tzinfo=UTC)


def test_a_crontab_is_meant_in_the_apps_zone_or_its_own(app: Liteq) -> None:
    app.conf.timezone = "Asia/Tokyo"
    assert when(crontab(0, 9), NOON).hour == 0
    assert when(crontab(0, 9, tz="Europe/Paris"), NOON).hour == 8
    assert when(crontab(0, 9, tz=ZoneInfo("Europe/Paris")), NOON).hour == 8
    paris = at(NOON.astimezone(ZoneInfo("Europe/Paris")))
    assert when(crontab(0, 9, nowfun=paris), NOON).hour == 8  # as Celery's users do it


def test_a_day_that_comes_every_28_years_is_found() -> None:
    rare = crontab(0, 0, day_of_month=29, month_of_year=2, day_of_week="mon")
    assert when(rare, NOON) == datetime(2044, 2, 29, tzinfo=UTC)


# Celery's interface


def test_is_due_says_whether_and_when_to_ask_again() -> None:
    hourly = crontab(minute=0, nowfun=at(NOON + timedelta(minutes=30)))
    assert hourly.is_due(NOON - timedelta(minutes=10)) == (True, 30 * 60)
    assert hourly.is_due(NOON) == (False, 30 * 60)


def test_is_due_takes_a_naive_time_to_be_utc() -> None:
    hourly = crontab(minute=0, nowfun=at(datetime(2027, 1, 15, 12, 30)))  # noqa: DTZ001
    assert hourly.is_due(datetime(2027, 1, 15, 11, 50)) == (True, 30 * 60)  # noqa: DTZ001


@pytest.mark.parametrize(("minutes", "due"), [(4, True), (6, False)])
def test_a_run_is_not_due_after_the_starting_deadline(
    app: Liteq, minutes: int, due: bool
) -> None:
    app.conf.beat_cron_starting_deadline = 300
    daily = crontab(0, 12, nowfun=at(NOON + timedelta(minutes=minutes)))
    assert daily.is_due(NOON - timedelta(days=3)) == (due, 86_400 - minutes * 60)


def test_remaining_estimate_counts_from_now() -> None:
    hourly = crontab(minute=0, nowfun=at(NOON + timedelta(minutes=20)))
    assert hourly.remaining_estimate(NOON) == timedelta(minutes=40)
    assert hourly.remaining_estimate(NOON - timedelta(hours=1)) == -timedelta(minutes=20)


def test_an_interval_is_due_when_it_has_passed() -> None:
    every = schedule(timedelta(seconds=30), nowfun=at(NOON))
    assert every.is_due(NOON - timedelta(seconds=30)) == (True, 30)
    assert every.is_due(NOON - timedelta(seconds=20)) == (False, 10)


def test_a_relative_interval_is_rounded_down_to_its_unit() -> None:
    every = schedule(timedelta(hours=2), relative=True)
    begun = datetime(2027, 1, 15, 10, 25, 17, tzinfo=UTC).timestamp()
    first = every.first(begun)
    assert first == NOON.timestamp()
    assert every.following(first, first) == NOON.timestamp() + 7_200
    assert every.following(first, first + 86_399) == NOON.timestamp() + 86_400


def test_a_relative_day_ends_at_midnight_of_the_zone(app: Liteq) -> None:
    app.conf.timezone = "Asia/Tokyo"
    assert when(schedule(timedelta(days=1), relative=True), NOON).hour == 15


def test_an_interval_keeps_its_grid() -> None:
    every = schedule(10)
    assert every.following(100.0, 100.0) == 110.0
    assert every.following(100.0, 134.9) == 140.0
    assert every.following(100.0, 140.0) == 150.0
    assert schedule(0.1).following(0.3, 0.6) > 0.6


def test_equal_schedules_are_equal() -> None:
    assert crontab("*/10") == crontab("0-59/10")
    assert crontab(hour="*/2") != crontab(hour="*/3")
    assert crontab(0, 9, tz="UTC") != crontab(0, 9, tz="Europe/Paris")
    assert crontab() != schedule(60)
    assert schedule(60) == schedule(timedelta(minutes=1))
    assert schedule(60) == timedelta(minutes=1)
    assert schedule(60) == 60
    assert schedule(60) != schedule(60, relative=True)
    assert schedule(60, relative=True, tz="UTC") != schedule(60, relative=True)
    assert schedule(60, tz="UTC") == schedule(60)  # only what is relative has a zone
    assert hash(crontab("*/10")) == hash(crontab("0-59/10"))


def test_a_step_and_a_list_of_the_same_numbers_are_not_equal() -> None:
    assert crontab("*/30", 2) != crontab("0,30", 2)  # they differ where clocks change


@pytest.mark.parametrize(
    "given",
    [
        crontab("*/5", "1-3", "mon", "L", "jan", tz="Europe/Paris", dom_or_dow=True),
        crontab([1, 2], 3),
        schedule(30),
        schedule(timedelta(hours=1), relative=True, tz="Europe/Paris"),
    ],
)
def test_schedules_survive_pickle_and_their_spec(given: Any) -> None:
    again = pickle.loads(pickle.dumps(given))
    assert again == given
    assert repr(again) == repr(given)
    if isinstance(given, crontab) and given._tz is None:
        given = crontab([1, 2], 3, tz="UTC")  # the spec names the zone
    assert from_spec(given.spec()) == given


def test_what_no_schedule_wrote_is_refused() -> None:
    with pytest.raises(ValueError, match="no such schedule"):
        from_spec({"kind": "moon"})


def test_schedules_look_as_in_celery() -> None:
    text = crontab(minute="*/5", hour="6").__repr__()
    assert text == "<crontab: */5 6 * * * (m/h/dM/MY/d)>"
    assert repr(schedule(30)) == "<freq: 30.00 seconds>"
    assert repr(schedule(5_400)) == "<freq: 1.50 hours>"
    assert schedule(86_400).human_seconds == "1.00 day"


@pytest.mark.parametrize("given", [0, -1, timedelta(0), math.nan, math.inf, 1e12])
def test_an_interval_is_above_zero(given: Any) -> None:
    with pytest.raises(ValueError, match="above zero"):
        schedule(given)


def test_an_interval_is_a_number_or_a_timedelta() -> None:
    with pytest.raises(TypeError, match="an interval must be"):
        schedule("10")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="an interval must be"):
        schedule()


# maybe_schedule


def test_numbers_timedeltas_and_text_become_schedules(app: Liteq) -> None:
    assert maybe_schedule(30) == schedule(30)
    assert maybe_schedule(timedelta(minutes=1), relative=True).relative
    assert maybe_schedule("*/5 * * * *") == crontab("*/5")
    assert maybe_schedule("@daily", tz="Europe/Paris") == crontab(0, 0, tz="Europe/Paris")
    given = crontab()
    assert maybe_schedule(given, app=app) is given
    assert given.app is app


def test_an_object_with_is_due_is_a_schedule() -> None:
    class Moon:
        def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
            return False, 1.0

    moon = Moon()
    assert maybe_schedule(moon) is moon


@pytest.mark.parametrize("given", [None, True, object(), [1]])
def test_anything_else_is_no_schedule(given: Any) -> None:
    with pytest.raises(TypeError, match="a schedule must be"):
        maybe_schedule(given)


# The sun


def test_solar_events_come_in_the_order_of_the_day() -> None:
    pytest.importorskip("ephem", reason="the extra liteq-queue[solar]")
    midnight = NOON.replace(hour=0)
    order = [when(solar(event, 48.85, 2.35), midnight) for event in solar.EVENTS]
    assert order == sorted(order)
    assert order[3].strftime("%H:%M") in ("07:38", "07:39")  # sunrise in Paris
    again = pickle.loads(pickle.dumps(solar("sunset", 48.85, 2.35)))
    assert again == solar("sunset", 48.85, 2.35) == from_spec(again.spec())


@pytest.mark.parametrize("ahead", [0.3, 0.5, 0.99, 1.5, 59.5, 3600])
def test_an_event_of_the_sun_is_found_however_near_it_is(ahead: float) -> None:
    ephem = pytest.importorskip("ephem", reason="the extra liteq-queue[solar]")
    for lon in range(-180, 180, 30):
        place = ephem.Observer()
        place.lat, place.lon, place.horizon, place.pressure = "48.85", str(lon), "-0:34", 0
        place.date = NOON.replace(tzinfo=None)
        event = place.next_setting(ephem.Sun()).datetime().replace(tzinfo=UTC).timestamp()

        due = solar("sunset", 48.85, lon).first(event - ahead)

        assert due is not None
        assert event - 0.2 < due < event + 1.2  # as exact as ephem is


def test_an_event_of_the_sun_is_due_once() -> None:
    pytest.importorskip("ephem", reason="the extra liteq-queue[solar]")
    for lon in range(-180, 180, 5):
        setting = solar("sunset", 48.85, lon)
        due = setting.first(NOON.timestamp())
        assert due is not None
        following = setting.following(due, due + 0.01)
        assert following is not None
        assert following > due + 80_000
        ran = datetime.fromtimestamp(due + 0.01, UTC)
        again, seconds = solar("sunset", 48.85, lon, nowfun=at(ran)).is_due(ran)
        assert not again
        assert seconds > 80_000


def test_a_sun_that_does_not_set_is_waited_for() -> None:
    pytest.importorskip("ephem", reason="the extra liteq-queue[solar]")
    june = datetime(2027, 6, 1, tzinfo=UTC)
    assert when(solar("sunset", 78, 15), june).month == 8
    due, seconds = solar("sunset", 78, 15, nowfun=at(june)).is_due(june)
    assert not due
    assert seconds > 80 * 86_400


@pytest.mark.parametrize(
    "asked", ["2027-06-01T00:00:00", "2027-06-14T17:09:54", "2027-07-02T05:49:22"]
)
def test_the_first_dusk_after_bright_nights_is_the_same_from_wherever_one_asks(
    asked: str,
) -> None:
    pytest.importorskip("ephem", reason="the extra liteq-queue[solar]")
    found = when(solar("dusk_civil", 73.15, 96.1), datetime.fromisoformat(asked + "Z"))
    assert found.strftime("%d %B %H:%M") == "25 August 17:02"


@pytest.mark.parametrize(
    ("event", "lat", "lon", "text"),
    [
        ("moonrise", 0, 0, "no solar event 'moonrise'"),
        ("sunset", 91, 0, "latitude"),
        ("sunset", 0, 181, "longitude"),
    ],
)
def test_a_place_or_event_that_cannot_be_is_refused(
    event: str, lat: float, lon: float, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        solar(event, lat, lon)


def test_without_ephem_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ephem", None)
    with pytest.raises(ImproperlyConfigured, match=r"liteq-queue\[solar\]"):
        solar("sunset", 0, 0)
