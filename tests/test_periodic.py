"""The periodic entries of an app: declared in code, made at run time, kept in the store."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from world import START, FakeClock

from liteq import Liteq
from liteq.beat import BeatLazyFunc
from liteq.brokers.base import Broker, Schedule
from liteq.exceptions import ScheduleError, ScheduleNotFound
from liteq.schedules import crontab, schedule

PARIS = "Europe/Paris"


def make_app(broker: Broker, clock: FakeClock, main: str = "shop") -> Liteq:
    app = Liteq(main, set_as_current=False, clock=clock)
    app.broker = broker

    @app.task(name="shop.report")
    def report(kind: str, *, copies: int = 1) -> None: ...

    @app.task(name="shop.tick")
    def tick() -> None: ...

    return app


@pytest.fixture
def app(broker: Broker, clock: FakeClock) -> Liteq:
    return make_app(broker, clock)


def stored(app: Liteq, name: str) -> Schedule:
    [row] = [row for row in app.broker.schedules() if row.name == name]
    return row


def declare(app: Liteq, **entries: Any) -> None:
    app.conf.beat_schedule = entries
    app.schedules.reconcile()


TICK: dict[str, Any] = {"task": "shop.tick", "schedule": 60.0}


# Declared in code


def test_entries_of_beat_schedule_come_into_the_store(app: Liteq) -> None:
    report = {"task": "shop.report", "schedule": crontab(0, 6), "args": ("daily",)}
    declare(app, tick=TICK, report=report)

    names = {entry.name: entry for entry in app.schedules.list()}

    assert set(names) == {"report", "tick"}
    assert names["tick"].due_at == datetime.fromtimestamp(START + 60, UTC)
    assert names["report"].due_at == datetime(2027, 1, 16, 6, tzinfo=UTC)
    assert names["report"].entry is not None
    assert names["report"].entry.call == "shop.report('daily')"
    assert {entry.origin for entry in names.values()} == {"code"}


def test_add_periodic_task_declares_an_entry_named_by_its_call(app: Liteq) -> None:
    task = app.tasks["shop.report"]

    @app.on_after_configure.connect
    def setup(sender: Liteq, **_: Any) -> None:
        sender.add_periodic_task(10.0, task.s("hello"), name="often", expires=5)
        sender.add_periodic_task(crontab(30, 7, 1), task.s("Mondays"), tz=PARIS)

    app.schedules.reconcile()

    often, mondays = app.schedules.list()
    assert (often.name, mondays.name) == ("often", "shop.report('Mondays')")
    assert often.entry is not None
    assert often.entry.options == {"expires": 5}
    assert mondays.due_at is not None
    assert mondays.due_at.isoformat() == "2027-01-18T07:30:00+01:00"


def test_entries_are_declared_once_however_often_settings_are_loaded(app: Liteq) -> None:
    calls = []

    @app.on_after_configure.connect
    def setup(sender: Liteq, **_: Any) -> None:
        calls.append(sender)
        sender.add_periodic_task(10.0 * len(calls), app.tasks["shop.tick"].s(), name="often")

    app.schedules.declared()
    app.conf.override({"timezone": PARIS})

    assert app.schedules.declared()["often"].schedule == 20.0
    assert len(calls) == 2


def test_two_calls_of_one_name_and_different_schedules_are_an_error(app: Liteq) -> None:
    tick = app.tasks["shop.tick"].s()
    app.add_periodic_task(10.0, tick)
    app.add_periodic_task(10.0, tick)

    with pytest.raises(ScheduleError, match="give each a name="):
        app.add_periodic_task(20.0, tick)


def test_calls_that_differ_in_what_is_hidden_alone_need_names(app: Liteq) -> None:
    @app.task
    def login(password: str) -> None: ...

    name = app.add_periodic_task(10.0, login.s("hunter2-canary"))
    app.add_periodic_task(10.0, login.s("hunter2-canary"))

    assert "hunter2-canary" not in name
    with pytest.raises(ScheduleError, match="with other arguments: give each a name="):
        app.add_periodic_task(10.0, login.s("another"))


def test_a_second_start_changes_nothing(app: Liteq, clock: FakeClock) -> None:
    declare(app, tick=TICK)
    before = stored(app, "tick")
    clock.advance(30)

    app.schedules.reconcile()

    assert stored(app, "tick") == before


def test_a_changed_schedule_begins_anew_and_keeps_what_was_run(
    app: Liteq, clock: FakeClock
) -> None:
    declare(app, tick=TICK)
    row = stored(app, "tick")
    tick = app.tasks["shop.tick"]
    message = app.sender.compose(tick.s()).messages
    app.broker.fire("tick", START + 60, START + 120, revision=row.revision, messages=message)
    clock.advance(100)

    declare(app, tick={**TICK, "schedule": 500.0})

    after = stored(app, "tick")
    assert after.due_at == clock.now() + 500
    assert (after.total, after.last_id) == (1, message[0].id)


def test_other_changes_keep_the_next_run(app: Liteq, clock: FakeClock) -> None:
    declare(app, tick=TICK)
    clock.advance(30)

    declare(app, tick={**TICK, "options": {"queue": "slow"}})

    assert stored(app, "tick").due_at == START + 60
    entry = app.schedules.get("tick").entry
    assert entry is not None
    assert entry.options == {"queue": "slow"}


def test_another_zone_moves_the_next_run(app: Liteq) -> None:
    declare(app, tick={**TICK, "schedule": crontab(0, 6)})
    app.conf.timezone = PARIS
    app.schedules.reconcile()

    due = app.schedules.get("tick").due_at
    assert due is not None
    assert due.isoformat() == "2027-01-16T06:00:00+01:00"


def test_an_entry_that_the_code_drops_goes_and_those_of_others_stay(
    app: Liteq, clock: FakeClock
) -> None:
    other = make_app(app.broker, clock, main="other")
    declare(other, theirs=TICK)
    declare(app, one=TICK, two=TICK)
    app.schedules.add("made", "shop.tick", 5)

    declare(app, two=TICK)

    assert [row.name for row in app.broker.schedules()] == ["made", "theirs", "two"]


def test_a_declared_entry_stays_paused_over_a_restart_and_a_change(app: Liteq) -> None:
    declare(app, tick=TICK)
    app.schedules.pause("tick")

    declare(app, tick={**TICK, "schedule": 5.0})

    assert app.schedules.get("tick").paused


def test_code_takes_over_an_entry_of_its_name(
    app: Liteq, caplog: pytest.LogCaptureFixture
) -> None:
    app.schedules.add("tick", "shop.tick", 5)

    declare(app, tick=TICK)

    assert app.schedules.get("tick").origin == "code"
    assert "the code's takes its place" in caplog.text


# What cannot be


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"task": "shop.tick", "schedule": 0}, "above zero"),
        ({"task": "shop.tick", "schedule": timedelta(seconds=-1)}, "above zero"),
        ({"task": "shop.tick", "schedule": "61 * * * *"}, "0-59"),
        ({"task": "shop.tick", "schedule": "0 0 30 2 *"}, "never comes"),
        ({"task": "shop.tick", "schedule": "0 0 * * *", "tz": "Mars/Phobos"}, "Mars/Phobos"),
        ({"task": "shop.tick", "schedule": "0 0 * * *", "tz": 3}, "a time zone must be"),
        ({"task": "shop.tick", "schedule": object()}, "a schedule must be"),
        ({"task": "shop.tick"}, "it needs schedule"),
        ({"schedule": 5}, "it needs task"),
        ({"task": "shop.tock", "schedule": 5}, "did you mean 'shop.tick'"),
        ({"task": 5, "schedule": 5}, "task must be a name"),
        ({"task": "shop.tick", "schedule": 5, "arguments": ()}, "an entry has no 'arguments'"),
        ({"task": "shop.tick", "schedule": 5, "args": "x"}, "args must be a list"),
        ({"task": "shop.tick", "schedule": 5, "args": (1,)}, "argument"),
        ({"task": "shop.tick", "schedule": 5, "options": {"prio": 1}}, "'prio'"),
        ({"task": "shop.tick", "schedule": 5, "options": {"priority": 11}}, "between 0 and 9"),
        ({"task": "shop.tick", "schedule": 5, "catch_up": "some"}, "one, skip, all"),
        ({"task": "shop.tick", "schedule": 5, "overlap": "no"}, "allow, skip, queue"),
        ("shop.tick", "a dictionary"),
    ],
)
def test_an_entry_that_cannot_be_is_an_error_that_names_it(
    app: Liteq, given: Any, text: str
) -> None:
    app.conf.beat_schedule = {"nightly": given}

    with pytest.raises(ScheduleError, match="'nightly'") as raised:
        app.schedules.declared()

    assert text in str(raised.value)


def test_an_entry_that_cannot_be_stops_none_of_the_others(
    app: Liteq, caplog: pytest.LogCaptureFixture
) -> None:
    good = {"task": "shop.tick", "schedule": 5}
    app.conf.beat_schedule = {"was good": good, "gone": good}
    app.schedules.reconcile()
    app.conf.beat_schedule = {
        "was good": {"task": "shop.tick", "schedule": -1},
        "typo": {"task": "shop.tock", "schedule": 5},
        "good": good,
    }

    started = app.schedules.reconcile()

    assert list(started) == ["good"]
    assert [row.name for row in app.broker.schedules()] == ["good", "was good"]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2
    for name in ("'typo'", "'was good'"):
        assert any(f"periodic entry {name}: " in error for error in errors)


def test_what_a_receiver_declared_wrongly_is_an_error_of_the_start(
    app: Liteq, caplog: pytest.LogCaptureFixture
) -> None:
    @app.on_after_configure.connect
    def setup(sender: Liteq, **_: Any) -> None:
        sender.add_periodic_task(0, app.tasks["shop.tick"].s(), name="often")

    app.schedules.reconcile()

    assert "periodic entry 'often'" in caplog.text
    with pytest.raises(ScheduleError, match="'often'"):
        app.schedules.declared()


def test_a_task_of_a_module_that_is_not_loaded_is_sent_for_workers_that_have_it(
    app: Liteq, caplog: pytest.LogCaptureFixture
) -> None:
    declare(app, close={"task": "billing.close", "schedule": 5})

    assert app.schedules.get("close").due_at is not None
    assert "'close': this program has no task 'billing.close'" in caplog.text


def test_a_task_of_another_program_is_given_as_a_signature(app: Liteq) -> None:
    theirs = app.signature("billing.close", args=(2027,))
    declare(app, close={"task": theirs, "schedule": 5})
    entry = app.schedules.get("close").entry
    assert entry is not None
    assert entry.call == "billing.close(2027)"


# At run time


def test_an_entry_is_added_changed_and_removed(app: Liteq) -> None:
    made = app.schedules.add(
        "nightly", "shop.report", "0 3 * * *", args=("sales",), tz=PARIS, catch_up="skip"
    )
    assert made.due_at is not None
    assert made.due_at.isoformat() == "2027-01-16T03:00:00+01:00"

    changed = app.schedules.update("nightly", args=("stock",), overlap="skip")
    assert changed.due_at == made.due_at
    assert changed.entry is not None
    assert changed.entry.call == "shop.report('stock')"
    assert (changed.entry.catch_up, changed.entry.overlap) == ("skip", "skip")

    again = app.schedules.update("nightly", schedule=90)
    assert again.due_at == datetime.fromtimestamp(START + 90, UTC)

    other = app.schedules.update("nightly", task="shop.tick")
    assert other.entry is not None
    assert other.entry.call == "shop.tick()"

    app.schedules.remove("nightly")
    assert app.schedules.list() == []


def when(app: Liteq, name: str = "tick") -> Any:
    entry = app.schedules.get(name).entry
    assert entry is not None
    return entry.schedule


def test_the_zone_of_an_entry_is_changed_alone(app: Liteq) -> None:
    either = crontab(0, 9, "fri", 13, tz="Asia/Tokyo", dom_or_dow=True)
    app.schedules.add("tick", "shop.tick", either)
    changed = app.schedules.update("tick", tz=PARIS)
    assert when(app) == crontab(0, 9, "fri", 13, tz=PARIS, dom_or_dow=True)
    assert changed.due_at is not None
    assert changed.due_at.isoformat() == "2027-01-22T09:00:00+01:00"
    app.schedules.update("tick", tz=None)
    assert when(app).tz == app.timezone


def test_an_interval_is_made_relative_or_not_alone(app: Liteq, clock: FakeClock) -> None:
    app.schedules.add("tick", "shop.tick", 7_200)
    app.schedules.update("tick", relative=True, tz="Asia/Kathmandu")
    assert when(app) == schedule(7_200, relative=True, tz="Asia/Kathmandu")
    app.schedules.update("tick", tz="Asia/Tokyo")
    assert when(app) == schedule(7_200, relative=True, tz="Asia/Tokyo")
    app.schedules.update("tick", schedule=3_600)
    assert when(app) == schedule(3_600, relative=True, tz="Asia/Tokyo")
    app.schedules.update("tick", relative=False)
    assert when(app) == schedule(3_600)


def test_another_time_of_day_keeps_the_zone_of_an_entry(app: Liteq) -> None:
    app.schedules.add("tick", "shop.tick", "0 9 13 * fri", tz="Asia/Tokyo")
    app.schedules.update("tick", schedule="0 10 * * *")
    assert when(app) == crontab(0, 10, tz="Asia/Tokyo")
    app.schedules.update("tick", schedule=crontab(0, 11))
    assert when(app) == crontab(0, 11, tz="Asia/Tokyo")
    app.schedules.update("tick", schedule=crontab(0, 12, tz=PARIS))
    assert when(app) == crontab(0, 12, tz=PARIS)
    there = timezone(timedelta(hours=-3))
    app.schedules.update("tick", schedule=crontab(0, 13, nowfun=lambda: datetime.now(there)))
    assert when(app) == crontab(0, 13, tz=there)
    app.schedules.update("tick", schedule="0 14 * * *", tz=PARIS)
    assert when(app) == crontab(0, 14, tz=PARIS)


def test_what_asks_for_either_day_keeps_it_over_another_expression(app: Liteq) -> None:
    either = crontab(0, 9, "fri", 13, dom_or_dow=True)
    app.schedules.add("tick", "shop.tick", either)
    app.schedules.update("tick", schedule="0 9 1 * mon")
    assert when(app).dom_or_dow
    app.schedules.update("tick", schedule=crontab(0, 9, "mon", 1))
    assert not when(app).dom_or_dow


@pytest.mark.parametrize(
    ("made", "change", "text"),
    [
        (7_200, {"tz": "No/Where"}, "no time zone 'No/Where'"),
        ("0 9 * * *", {"tz": "No/Where"}, "no time zone 'No/Where'"),
        (7_200, {"tz": PARIS}, "tz has no effect on <freq: 2.00 hours>"),
        (
            "0 9 * * *",
            {"relative": True},
            "only an interval (a number of seconds or a timedelta) can be relative",
        ),
        (
            7_200,
            {"schedule": "@daily", "relative": True},
            "only an interval (a number of seconds or a timedelta) can be relative",
        ),
        (7_200, {"relativ": True}, "'relative'?"),
    ],
)
def test_a_change_that_has_no_effect_is_an_error_that_names_it(
    app: Liteq, made: Any, change: dict[str, Any], text: str
) -> None:
    before = app.schedules.add("tick", "shop.tick", made)
    with pytest.raises(ScheduleError, match="periodic entry 'tick'.*" + re.escape(text)):
        app.schedules.update("tick", **change)
    assert app.schedules.get("tick") == before


def test_a_relative_interval_is_rounded_in_the_zone_of_its_entry(app: Liteq) -> None:
    declare(app, tick={"task": "shop.tick", "schedule": 86_400, "relative": True, "tz": PARIS})
    found = app.schedules.get("tick")
    assert found.due_at is not None
    assert found.due_at.isoformat() == "2027-01-16T00:00:00+01:00"
    assert [due.hour for due in found.next(3)] == [0, 0, 0]


def test_the_zone_of_an_interval_must_be_one(app: Liteq) -> None:
    with pytest.raises(ScheduleError, match="no time zone 'No/Where'"):
        app.schedules.add("tick", "shop.tick", 30, tz="No/Where")


def test_an_entry_may_hold_all_that_json_can_be_taught(app: Liteq) -> None:
    day = datetime(2027, 1, 1, tzinfo=UTC)
    app.schedules.add(
        "typed", "shop.report", timedelta(hours=1), args=(day,), options={"expires": 5}
    )
    entry = app.schedules.get("typed").entry
    assert entry is not None
    assert entry.args == (day,)
    assert entry.schedule == timedelta(hours=1)


def test_a_name_is_given_once(app: Liteq) -> None:
    app.schedules.add("tick", "shop.tick", 5)
    with pytest.raises(ScheduleError, match="'tick': there is one of that name already"):
        app.schedules.add("tick", "shop.tick", 9)


def test_what_only_this_program_knows_cannot_be_made_at_run_time(app: Liteq) -> None:
    class Moon:
        def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
            return False, 5.0

    with pytest.raises(ScheduleError, match="beat_schedule"):
        app.schedules.add("moon", "shop.tick", Moon())
    with pytest.raises(ScheduleError, match="'lazy'"):
        app.schedules.add("lazy", "shop.report", 5, args=(BeatLazyFunc(str),))


@pytest.mark.parametrize("change", ["pause", "resume", "remove", "run_now", "get", "update"])
def test_an_entry_that_is_not_there_is_named(app: Liteq, change: str) -> None:
    app.schedules.add("tick", "shop.tick", 5)
    with pytest.raises(
        ScheduleNotFound, match=r"no periodic entry 'tock' \(there are: 'tick'\)"
    ):
        getattr(app.schedules, change)("tock")


def test_what_code_declares_is_changed_there(app: Liteq) -> None:
    declare(app, tick=TICK)
    with pytest.raises(ScheduleError, match="declared in code, remove it there"):
        app.schedules.remove("tick")
    with pytest.raises(ScheduleError, match="declared in code, change it there"):
        app.schedules.update("tick", schedule=5)


def test_a_pause_is_not_made_good(app: Liteq, clock: FakeClock) -> None:
    app.schedules.add("tick", "shop.tick", 60)
    app.schedules.pause("tick")
    assert app.schedules.get("tick").next() == []
    clock.advance(150)

    app.schedules.resume("tick")

    assert stored(app, "tick").due_at == START + 180
    app.schedules.resume("tick")  # once is enough
    assert stored(app, "tick").due_at == START + 180


def test_run_now_sends_at_once_and_moves_nothing(app: Liteq) -> None:
    app.schedules.add("r", "shop.report", 60, args=("x",), options={"queue": "slow"})
    before = stored(app, "r")

    result = app.schedules.run_now("r")

    message = app.broker.get([result.id])[result.id].message
    assert (message.task, message.queue, message.body) == ("shop.report", "slow", b'[["x"],{}]')
    assert message.headers is not None
    assert message.headers["periodic_task_name"] == "r"
    assert stored(app, "r") == before


def test_the_next_times_are_told(app: Liteq) -> None:
    app.schedules.add("daily", "shop.tick", "30 2 * * *", tz=PARIS)
    shown = [each.isoformat() for each in app.schedules.get("daily").next(3)]
    assert shown == [
        "2027-01-16T02:30:00+01:00",
        "2027-01-17T02:30:00+01:00",
        "2027-01-18T02:30:00+01:00",
    ]


def test_a_broken_entry_is_listed_with_what_is_wrong(app: Liteq) -> None:
    app.broker.put_schedule(Schedule("broken", b"\xff", START + 5))
    app.broker.put_schedule(Schedule("later", b'{"v":99}', START + 5))
    app.schedules.add("tick", "shop.tick", 5)

    broken, later, tick = app.schedules.list()

    assert broken.error
    assert later.error is not None
    assert "later liteq" in later.error
    assert tick.error is None


def test_a_declared_entry_with_code_in_it_is_shown(app: Liteq) -> None:
    lazy = {"task": "shop.report", "schedule": 5, "args": (BeatLazyFunc(str, 5),)}
    declare(app, lazy=lazy)
    before = stored(app, "lazy")
    app.schedules.reconcile()
    assert stored(app, "lazy") == before

    result = app.schedules.run_now("lazy")

    assert app.broker.get([result.id])[result.id].message.body == b'[["5"],{}]'


def test_another_program_cannot_send_what_it_cannot_read(app: Liteq, clock: FakeClock) -> None:
    declare(app, lazy={"task": "shop.report", "schedule": 5, "args": (BeatLazyFunc(str),)})
    other = make_app(app.broker, clock, main="other")
    with pytest.raises(ScheduleError, match="only the app that declares it"):
        other.schedules.run_now("lazy")


def test_entries_are_seen_by_another_process(store: Any, clock: FakeClock) -> None:
    if not store.shared:
        pytest.skip("a store in memory has one connection")
    one, other = store.open(), store.open()
    make_app(one, clock).schedules.add("tick", "shop.tick", 5)
    assert [entry.name for entry in make_app(other, clock).schedules.list()] == ["tick"]
    one.close()
    other.close()
