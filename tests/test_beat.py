"""The beat: when it fires, what it makes good, and who leads."""

from __future__ import annotations

import math
import socket
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from world import START, FakeClock, enlist

from liteq import Liteq, group, signals
from liteq.beat import Beat, BeatLazyFunc, ScheduleEntry, Scheduler, Service
from liteq.brokers.base import Broker, Schedule
from liteq.custom import Custom, find_scheduler
from liteq.exceptions import (
    BrokerUnavailable,
    ImproperlyConfigured,
    QueueFull,
    ScheduleError,
    StoreLost,
)
from liteq.outcome import Succeeded
from liteq.schedules import crontab, schedule

HOUR = 3_600
TICK: dict[str, Any] = {"task": "shop.tick", "schedule": 60.0}


@pytest.fixture
def app(broker: Broker, clock: FakeClock) -> Liteq:
    app = Liteq("shop", set_as_current=False, clock=clock)
    app.broker = broker

    @app.task(name="shop.tick")
    def tick(*args: Any, **kwargs: Any) -> None: ...

    return app


def started(app: Liteq, name: str = "a", **entries: Any) -> Beat:
    if entries:
        app.conf.beat_schedule = entries
    beat = Beat(app, name=name)
    beat.start()
    beat.tick()
    return beat


def row(app: Liteq, name: str = "tick") -> Schedule:
    [found] = [each for each in app.broker.schedules() if each.name == name]
    return found


def sent(app: Liteq) -> list[Any]:
    return [record.message for record in app.broker.browse("queued", limit=1_000)]


def dues(app: Liteq) -> list[float]:
    """Return the instants, counted from the start, that were fired."""
    return [message.headers["periodic_task_due"] - START for message in sent(app)]


# Firing


def test_a_beat_fires_what_is_due_and_sleeps_until_the_next(
    app: Liteq, clock: FakeClock
) -> None:
    beat = started(app, tick={**TICK, "schedule": 20.0}, other={**TICK, "schedule": 50.0})
    assert beat.tick() == 20.0
    clock.advance(20)

    assert beat.tick() == 20.0

    assert dues(app) == [20.0]
    assert row(app).due_at == START + 40


def test_a_message_says_where_it_came_from(app: Liteq, clock: FakeClock) -> None:
    options = {"queue": "slow", "priority": 3, "expires": 30, "headers": {"x": 1}}
    given = {**TICK, "args": (1, "a"), "kwargs": {"k": 2}, "options": options}
    beat = started(app, tick=given)
    clock.advance(60)
    beat.tick()

    [message] = sent(app)
    assert (message.task, message.queue, message.priority) == ("shop.tick", "slow", 3)
    assert message.body == b'[[1,"a"],{"k":2}]'
    assert message.expires_at == clock.now() + 30
    assert message.headers == {
        "x": 1,
        "celery_beat_task": True,
        "periodic_task_name": "tick",
        "periodic_task_due": START + 60,
    }


def test_an_interval_begins_one_interval_after_the_start(app: Liteq, clock: FakeClock) -> None:
    beat = started(app, tick=TICK)
    clock.advance(59.9)
    assert beat.tick() == pytest.approx(0.1)
    assert sent(app) == []


def test_an_interval_keeps_its_grid_when_a_fire_is_late(app: Liteq, clock: FakeClock) -> None:
    beat = started(app, tick=TICK)
    clock.advance(70)
    beat.tick()
    assert row(app).due_at == START + 120


def test_a_restart_keeps_the_next_instant(app: Liteq, clock: FakeClock) -> None:
    started(app, tick=TICK).close()
    clock.advance(50)
    beat = started(app, "b")
    clock.advance(10)
    beat.tick()
    assert dues(app) == [60.0]


def test_a_lazy_argument_is_worked_out_at_each_send(app: Liteq, clock: FakeClock) -> None:
    lazy = BeatLazyFunc(lambda base: base + clock.now() - START, 1_000)
    beat = started(app, tick={**TICK, "args": (lazy,), "kwargs": {"k": lazy}})
    for _ in range(2):
        clock.advance(60)
        beat.tick()
    assert [message.body for message in sent(app)] == [
        b'[[1060.0],{"k":1060.0}]',
        b'[[1120.0],{"k":1120.0}]',
    ]


def test_publishing_a_periodic_task_is_signalled(app: Liteq, clock: FakeClock) -> None:
    heard: list[str] = []

    def before(headers: Any, **_: Any) -> None:
        heard.append("before")
        headers["shadow"] = "changed"

    def after(**_: Any) -> None:
        heard.append("after")

    beat = started(app, tick=TICK)
    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    clock.advance(60)
    beat.tick()
    signals.before_task_publish.disconnect(before)
    signals.after_task_publish.disconnect(after)

    assert heard == ["before", "after"]
    assert sent(app)[0].shadow == "changed"


def test_a_change_at_run_time_is_followed_when_the_beat_is_woken(
    app: Liteq, clock: FakeClock
) -> None:
    beat = started(app, tick=TICK)
    mailbox = app.broker.mailbox(beat=True)
    app.schedules.add("made", "shop.tick", 5)
    assert mailbox.wait(2.0)
    mailbox.close()
    beat.wake()

    assert beat.tick() == 5.0
    app.schedules.pause("made")
    beat.wake()
    assert beat.tick() == 60.0


def test_a_lost_wake_up_is_made_good_in_time(app: Liteq, clock: FakeClock) -> None:
    beat = started(app, tick={**TICK, "schedule": float(HOUR)})
    assert beat.tick() == 60.0
    app.schedules.add("made", "shop.tick", 5)
    clock.advance(60)

    beat.tick()

    assert row(app, "made").total == 1


def test_the_longest_sleep_is_a_setting(app: Liteq) -> None:
    app.conf.beat_max_loop_interval = 7
    assert started(app, tick=TICK).tick() == 7.0
    assert Beat(app, max_interval=3.0).max_interval == 3.0


def test_many_due_entries_are_fired_in_slices(app: Liteq, clock: FakeClock) -> None:
    beat = started(app, **{f"tick{n}": TICK for n in range(250)})
    clock.advance(60)
    assert beat.tick() == 0.0
    assert beat.fired == 100
    assert beat.tick() == 0.0
    assert beat.tick() == 60.0
    assert beat.fired == 250


# Workflows


def test_a_workflow_is_sent_as_one_at_each_instant(app: Liteq, clock: FakeClock) -> None:
    tick = app.tasks["shop.tick"]
    chord = group(tick.s(n) for n in range(3)) | tick.s("all").set(queue="slow")
    beat = started(app, tick={**TICK, "task": tick.s(0) | chord})
    clock.advance(60)
    beat.tick()
    clock.advance(60)
    beat.tick()

    first, second = app.broker.workflows()
    assert first.id != second.id
    assert row(app).last_id == first.id
    nodes, _ = app.broker.nodes(first.id)
    assert [node.state for node in nodes].count("queued") == 1
    assert sum(first.counts.values()) == 5
    assert [message.body for message in sent(app)] == [b"[[0],{}]"] * 2
    assert sent(app)[0].headers["periodic_task_name"] == "tick"


def test_a_workflow_that_is_not_through_is_in_the_way(app: Liteq, clock: FakeClock) -> None:
    tick = app.tasks["shop.tick"]
    beat = started(app, tick={**TICK, "task": tick.si(1) | tick.si(2), "overlap": "skip"})
    for _ in range(2):
        clock.advance(60)
        beat.tick()
        finish(app)  # the first of the two
    assert len(app.broker.workflows()) == 1
    finish(app)
    clock.advance(60)
    beat.tick()
    assert len(app.broker.workflows()) == 2


def test_a_workflow_may_be_scheduled_at_run_time(app: Liteq, clock: FakeClock) -> None:
    tick = app.tasks["shop.tick"]
    app.schedules.add("both", group(tick.s(1), tick.s(2)), 30, options={"priority": 7})
    beat = started(app, "b")
    clock.advance(30)
    beat.tick()
    assert [message.priority for message in sent(app)] == [7, 7]
    entry = app.schedules.get("both").entry
    assert entry is not None
    assert entry.call == "group([shop.tick(1), shop.tick(2)])"


def test_a_mistake_in_a_workflow_is_an_error_that_names_the_entry(app: Liteq) -> None:
    tick = app.tasks["shop.tick"]
    bad = tick.s() | tick.s().set(priority=99)
    app.conf.beat_schedule = {"nightly": {"task": bad, "schedule": 5}}
    with pytest.raises(ScheduleError, match="'nightly'"):
        app.schedules.declared()


# What was missed


@pytest.mark.parametrize(
    ("catch_up", "fired"),
    [
        ("one", [60.0]),
        ("all", [60.0, 120.0, 180.0, 240.0, 300.0]),
        ("skip", [60.0]),  # the latest was only 10 s ago
    ],
)
def test_what_was_missed_is_made_good_as_the_entry_says(
    app: Liteq, clock: FakeClock, catch_up: str, fired: list[float]
) -> None:
    beat = started(app, tick={**TICK, "catch_up": catch_up})
    clock.advance(310)
    for _ in range(10):
        beat.tick()
    assert dues(app) == fired
    assert row(app).due_at == START + 360


@pytest.mark.parametrize(("late", "runs"), [(30, 1), (90, 0)])
def test_skip_leaves_out_what_is_late(
    app: Liteq, clock: FakeClock, late: float, runs: int
) -> None:
    beat = started(app, tick={**TICK, "schedule": crontab(0, "*"), "catch_up": "skip"})
    due = row(app).due_at
    assert due is not None
    clock.advance(due - clock.now() + 3 * HOUR + late)
    beat.tick()
    assert len(sent(app)) == runs
    assert row(app).due_at == due + 4 * HOUR
    assert row(app).total == runs


@pytest.mark.parametrize("catch_up", ["one", "all"])
@pytest.mark.parametrize(("late", "runs"), [(200, 1), (400, 0)])
def test_a_crontab_is_not_run_after_the_starting_deadline(
    app: Liteq, clock: FakeClock, late: float, runs: int, catch_up: str
) -> None:
    app.conf.beat_cron_starting_deadline = 300
    beat = started(app, tick={**TICK, "schedule": crontab(0, "*"), "catch_up": catch_up})
    due = row(app).due_at
    assert due is not None
    clock.advance(due - clock.now() + 3 * HOUR + late)
    for _ in range(5):
        beat.tick()
    assert len(sent(app)) == runs
    assert row(app).due_at == due + 4 * HOUR


def test_an_interval_knows_no_starting_deadline(app: Liteq, clock: FakeClock) -> None:
    app.conf.beat_cron_starting_deadline = 10
    beat = started(app, tick=TICK)
    clock.advance(100)
    beat.tick()
    assert dues(app) == [60.0]


def test_a_long_absence_is_made_good_slice_by_slice(app: Liteq, clock: FakeClock) -> None:
    beat = started(app, tick={**TICK, "catch_up": "all"}, other={**TICK, "schedule": 100.0})
    clock.advance(300 * 60)
    assert beat.tick() == 0.0
    assert beat.fired == 100
    while beat.tick() == 0.0:
        pass
    assert row(app).total == 300
    assert row(app, "other").total == 1


# What is still running


def finish(app: Liteq) -> None:
    worker = enlist(app.broker)
    for lease in app.broker.claim(worker, ["default"], 100):
        app.broker.settle(worker, lease, Succeeded(b"null"))
    app.broker.unregister(worker)


def test_overlap_skip_waits_until_the_last_one_is_finished(
    app: Liteq, clock: FakeClock
) -> None:
    beat = started(app, tick={**TICK, "overlap": "skip"})
    for _ in range(3):
        clock.advance(60)
        beat.tick()
    assert dues(app) == [60.0]
    finish(app)
    clock.advance(60)
    beat.tick()
    assert dues(app) == [240.0]
    assert row(app).total == 2


def test_overlap_queue_lets_one_wait_behind_one_that_runs(app: Liteq, clock: FakeClock) -> None:
    beat = started(app, tick={**TICK, "overlap": "queue"})
    clock.advance(60)
    beat.tick()
    clock.advance(60)
    beat.tick()
    assert dues(app) == [60.0]
    app.broker.claim(enlist(app.broker), ["default"])
    for _ in range(3):
        clock.advance(60)
        beat.tick()
    assert dues(app) == [180.0]


@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_a_run_that_has_expired_is_in_nobodys_way(
    app: Liteq, clock: FakeClock, overlap: str
) -> None:
    beat = started(app, tick={**TICK, "overlap": overlap, "options": {"expires": 60}})
    for _ in range(3):
        clock.advance(60)
        beat.tick()
    assert row(app).total == 3


def test_a_run_that_goes_on_beyond_its_expiry_is_in_the_way(
    app: Liteq, clock: FakeClock
) -> None:
    beat = started(app, tick={**TICK, "overlap": "skip", "options": {"expires": 30}})
    clock.advance(60)
    beat.tick()
    app.broker.claim(enlist(app.broker), ["default"])
    clock.advance(60)
    beat.tick()
    assert row(app).total == 1


def test_overlap_allow_sends_whatever_runs(app: Liteq, clock: FakeClock) -> None:
    beat = started(app, tick=TICK)
    for _ in range(3):
        clock.advance(60)
        beat.tick()
    assert dues(app) == [60.0, 120.0, 180.0]


# What is broken


def test_a_broken_entry_stops_no_other(
    app: Liteq, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    app.broker.put_schedule(Schedule("broken", b"\xff", START + 1))
    app.broker.put_schedule(Schedule("later", b'{"v":99}', START + 1))
    app.broker.put_schedule(Schedule("odd", b'{"v":1,"schedule":{"kind":"moon"}}', START + 1))
    beat = started(app, tick=TICK)
    for _ in range(3):
        clock.advance(60)
        beat.wake()
        beat.tick()

    assert dues(app) == [60.0, 120.0, 180.0]
    for name in ("broken", "later", "odd"):
        assert caplog.text.count(f"the periodic entry {name!r} is not fired") == 1


def test_a_send_that_fails_is_left_out_and_the_next_one_comes(
    app: Liteq, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([ValueError("no"), "yes"])

    def lazy() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    beat = started(app, tick={**TICK, "args": (BeatLazyFunc(lazy),)}, other=TICK)
    clock.advance(60)
    beat.tick()
    assert [message.headers["periodic_task_name"] for message in sent(app)] == ["other"]
    assert "'tick' could not be sent" in caplog.text
    assert row(app).total == 0

    clock.advance(60)
    beat.tick()
    assert row(app).total == 1


def test_an_id_that_is_used_twice_is_said_and_stops_nothing(
    app: Liteq, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    lazy = BeatLazyFunc(lambda: clock.now())
    given = {**TICK, "options": {"task_id": "fixed"}, "args": (lazy,)}
    beat = started(app, tick=given)
    for _ in range(2):
        clock.advance(60)
        beat.tick()
    assert len(sent(app)) == 1
    assert "could not be sent: a message with id 'fixed'" in caplog.text
    assert row(app).due_at == START + 180


class Moon:
    """A schedule of the user's: due every so many seconds, or broken."""

    def __init__(self, every: float) -> None:
        self.every = every
        self.broken = False

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        if self.broken:
            raise RuntimeError("eclipse")
        left = last_run_at + timedelta(seconds=self.every) - NOW[0]()
        return (left.total_seconds() <= 0, left.total_seconds() or self.every)


NOW: list[Any] = [None]


def test_a_schedule_class_of_the_users_is_asked(app: Liteq, clock: FakeClock) -> None:
    NOW[0] = app.now
    beat = started(app, tick={**TICK, "schedule": Moon(30)})
    assert beat.tick() == 30.0
    clock.advance(30)
    beat.tick()
    assert dues(app) == [30.0]
    assert row(app).due_at == START + 60


def test_a_schedule_class_that_fails_is_asked_again_later(
    app: Liteq, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    NOW[0] = app.now
    moon = Moon(30)
    beat = started(app, tick={**TICK, "schedule": moon}, other={**TICK, "schedule": 10.0})
    moon.broken = True
    for _ in range(6):
        clock.advance(10)
        beat.tick()
    assert row(app, "other").total == 6
    assert caplog.text.count("failed: it is tried again") == 1
    moon.broken = False
    clock.advance(60)
    beat.tick()
    beat.wake()
    beat.tick()
    assert row(app).total == 1


class Says:
    """A schedule of the user's that always says the same."""

    def __init__(self, *said: Any) -> None:
        self.said = said
        self.asked = 0

    def is_due(self, last_run_at: datetime) -> Any:
        self.asked += 1
        return self.said


@pytest.mark.parametrize("said", [(False, -5), (False, math.nan), (True, math.nan), ()])
def test_a_schedule_class_that_says_nothing_of_use_is_an_error_of_its_entry_alone(
    app: Liteq, clock: FakeClock, caplog: pytest.LogCaptureFixture, said: tuple[Any, ...]
) -> None:
    says = Says(*said)
    beat = started(app, tick={**TICK, "schedule": says}, other={**TICK, "schedule": 10.0})
    for _ in range(5):
        assert beat.tick() == 10.0
        clock.advance(10)
        beat.tick()
    assert row(app, "other").total == 5
    assert row(app).total == 0
    assert says.asked == 2  # at the start, and by the beat
    assert "the schedule of the periodic entry 'tick' failed" in caplog.text
    assert [entry.name for entry in app.schedules.list()] == ["other", "tick"]


def test_a_schedule_class_that_fails_does_not_keep_its_entry_paused(
    app: Liteq, clock: FakeClock
) -> None:
    moon = Moon(30)
    NOW[0] = app.now
    beat = started(app, tick={**TICK, "schedule": moon})
    app.schedules.pause("tick")
    moon.broken = True
    app.schedules.resume("tick")
    moon.broken = False
    beat.wake()
    beat.tick()
    assert not row(app).paused
    assert row(app).due_at == START + 30


def test_a_schedule_class_that_is_always_due_is_asked_once_a_second(
    app: Liteq, clock: FakeClock
) -> None:
    beat = started(app, tick={**TICK, "schedule": Says(True, -5)})
    for _ in range(3):
        assert beat.tick() == 1.0
        clock.advance(1)
        beat.tick()
    assert row(app).total == 4


def test_a_schedule_class_may_say_never(app: Liteq, clock: FakeClock) -> None:
    beat = started(app, tick={**TICK, "schedule": Says(False, math.inf)})
    assert beat.tick() == beat.max_interval
    [entry] = app.schedules.list()
    assert entry.due_at is not None
    assert entry.due_at.year > 2300


def test_an_entry_with_code_in_it_is_left_to_the_beats_that_have_it(
    app: Liteq, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    started(app, tick={**TICK, "args": (BeatLazyFunc(str),)}).close()
    other = Liteq("other", set_as_current=False, clock=clock)
    other.broker = app.broker
    beat = started(other, "b")
    clock.advance(120)
    beat.tick()
    assert sent(app) == []
    assert "left to the beats of the app that declares it" in caplog.text


# Who leads


def test_a_standby_leaves_an_instant_to_the_leader_for_a_second(
    app: Liteq, clock: FakeClock
) -> None:
    leader, standby = started(app, "a", tick=TICK), started(app, "b")
    assert (leader.tick(), standby.tick()) == (60.0, 60.0)
    clock.advance(60)
    assert standby.tick() == 1.0
    leader.tick()
    clock.advance(1)
    assert standby.tick() == 60.0
    assert (leader.fired, standby.fired) == (1, 0)


def test_a_standby_takes_over_when_the_leader_is_gone(app: Liteq, clock: FakeClock) -> None:
    started(app, "a", tick=TICK)
    standby = started(app, "b")
    clock.advance(60)
    assert standby.tick() == 1.0
    clock.advance(1)
    assert standby.tick() == 59.0
    assert dues(app) == [60.0]
    clock.advance(59)
    standby.tick()  # it leads now, and waits for nobody
    assert dues(app) == [60.0, 120.0]


def test_a_leader_that_stops_is_followed_at_once(app: Liteq, clock: FakeClock) -> None:
    leader, standby = started(app, "a", tick=TICK), started(app, "b")
    leader.close()
    standby.wake()
    standby.tick()
    clock.advance(60)
    standby.tick()
    assert dues(app) == [60.0]


def test_a_lease_that_cannot_be_had_holds_nothing_up_for_long(
    app: Liteq, clock: FakeClock
) -> None:
    started(app, "a", tick=TICK)
    standby = started(app, "b")
    app.broker.lead("a", START + 10 * HOUR)  # and then it died, and the clock was set back
    clock.advance(61)
    assert standby.tick() == 2.0
    clock.advance(2)
    standby.tick()
    assert dues(app) == [60.0]


def test_a_leader_that_was_paused_finds_out_from_the_store(
    app: Liteq, clock: FakeClock
) -> None:
    leader, standby = started(app, "a", tick=TICK), started(app, "b")
    for _ in range(3):
        clock.advance(61)
        standby.tick()
    assert len(sent(app)) == 3
    assert leader.tick() > 0
    assert len(sent(app)) == 3


# Clocks that are set


def test_a_clock_set_back_does_not_hold_an_interval_up(app: Liteq, clock: FakeClock) -> None:
    beat = started(app, tick=TICK)
    clock.step(-5 * HOUR)
    beat.tick()
    clock.advance(60)
    beat.tick()
    assert len(sent(app)) == 1


def test_a_clock_set_back_while_no_beat_ran_does_not_either(
    app: Liteq, clock: FakeClock
) -> None:
    started(app, tick=TICK).close()
    clock.step(-5 * HOUR)
    beat = started(app, "b")
    clock.advance(60)
    beat.tick()
    assert len(sent(app)) == 1


def test_a_clock_set_back_does_not_run_a_crontab_twice(app: Liteq, clock: FakeClock) -> None:
    beat = started(app, tick={**TICK, "schedule": crontab(0, "*")})
    due = row(app).due_at
    assert due is not None
    clock.advance(due - clock.now())
    beat.tick()
    clock.step(-600)
    for _ in range(20):
        clock.advance(60)
        beat.tick()
    assert row(app).total == 1


def test_a_clock_set_forward_is_an_absence(app: Liteq, clock: FakeClock) -> None:
    beat = started(app, tick=TICK)
    clock.step(HOUR)
    beat.tick()
    assert row(app).total == 1


# When the store cannot be reached


class Sick:
    """Makes the store's `fire` fail a few times, before or after it took effect."""

    def __init__(self, broker: Any, error: Exception, *, after: bool) -> None:
        self.fire, self.error, self.after, self.times = broker.fire, error, after, 2
        broker.fire = self

    def __call__(self, *args: Any, **kwargs: Any) -> bool:
        if self.times:
            self.times -= 1
            if self.after:
                self.fire(*args, **kwargs)
            raise self.error
        moved: bool = self.fire(*args, **kwargs)
        return moved


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("error", [BrokerUnavailable("away"), QueueFull("full")])
def test_an_instant_is_fired_once_however_its_answer_is_lost(
    app: Liteq, clock: FakeClock, error: Exception, after: bool
) -> None:
    beat = started(app, tick=TICK)
    Sick(app.broker, error, after=after)
    for _ in range(4):
        clock.advance(60)
        try:
            beat.tick()
            beat.tick()
        except type(error):
            continue
    assert len(dues(app)) == len(set(dues(app)))
    assert len(sent(app)) == (4 if after else 2)


# The service


def test_a_service_runs_until_it_is_stopped(app: Liteq) -> None:
    heard = []

    def hear(sender: Any, **_: Any) -> None:
        heard.append(sender)

    signals.beat_init.connect(hear)
    ready = threading.Event()
    service = Service(app, install_signals=False, on_ready=ready.set)
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(service.run()))
    thread.start()
    assert ready.wait(10)
    service.stop()
    thread.join(10)
    signals.beat_init.disconnect(hear)

    assert status == [0]
    assert heard == [service]
    assert app.broker.lead("next", START + 1), "the lease was given up"


def test_a_service_outlasts_a_store_that_is_away(
    app: Liteq, caplog: pytest.LogCaptureFixture
) -> None:
    left = [BrokerUnavailable("away"), QueueFull("full")]
    schedules = app.broker.schedules

    def sick() -> Any:
        if left:
            raise left.pop()
        return schedules()

    app.broker.schedules = sick  # type: ignore[method-assign]
    ready = threading.Event()
    service = Service(app, install_signals=False, on_ready=ready.set)
    thread = threading.Thread(target=service.run)
    thread.start()
    assert ready.wait(10)
    service.stop()
    thread.join(10)
    assert caplog.text.count("trying again in") == 2


def test_a_service_ends_when_the_store_is_lost(app: Liteq) -> None:
    def lost() -> Any:
        raise StoreLost("deleted")

    app.broker.schedules = lost  # type: ignore[method-assign]
    assert Service(app, install_signals=False).run() == 6


@pytest.mark.parametrize("longest", [3e6, 1e300])
def test_a_service_may_have_nothing_to_do_for_longer_than_the_kernel_can_count(
    tmp_path: Path, longest: float
) -> None:
    app = Liteq("shop", broker=str(tmp_path / "store"))
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()  # so it stops as soon as it would sleep

        status = Service(app, max_interval=longest, install_signals=False, life=ours).run()

    assert status == 0
    app.close()


# Schedulers of the user's own


class Mine(Scheduler):
    ticks = 0

    def setup_schedule(self) -> None:
        self.schedule = {
            "mine": self.Entry(name="mine", task="shop.tick", schedule=30, app=self.app)
        }

    def tick(self) -> float:
        self.ticks += 1
        return super().tick()


def test_a_scheduler_of_the_users_says_what_is_due(app: Liteq, clock: FakeClock) -> None:
    engine = Custom(app, Mine)
    engine.start()
    for _ in range(90):
        engine.tick()
        clock.advance(1)
    engine.tick()
    assert len(sent(app)) == 3
    assert engine.scheduler.schedule["mine"].total_run_count == 3
    assert sent(app)[0].headers == {"celery_beat_task": True}


def test_of_two_beats_with_such_a_scheduler_one_ticks(app: Liteq, clock: FakeClock) -> None:
    one, other = Custom(app, Mine), Custom(app, Mine)
    one.start()
    other.start()
    for _ in range(40):
        one.tick()
        other.tick()
        clock.advance(1)
    assert other.scheduler.ticks == 0
    one.close()
    other.tick()
    assert other.scheduler.ticks == 1


def test_celerys_scheduler_fires_what_is_declared(app: Liteq, clock: FakeClock) -> None:
    class Plain(Scheduler):
        pass

    app.conf.beat_schedule = {"tick": TICK, "daily": {**TICK, "schedule": crontab(0, 0)}}
    scheduler = Plain(app)
    assert set(scheduler.schedule) == {"tick", "daily"}
    assert scheduler.tick() == pytest.approx(60, abs=0.01)
    clock.advance(60)
    assert scheduler.tick() == 0.0
    assert len(sent(app)) == 1
    assert scheduler.tick() == pytest.approx(60, abs=0.01)
    entry = scheduler.add(name="more", task="shop.tick", schedule=5, args=(1,))
    assert scheduler.tick() == pytest.approx(5, abs=0.01)
    result = scheduler.apply_async(entry)
    assert app.broker.get([result.id])[result.id].message.body == b"[[1],{}]"
    assert scheduler.schedule["more"].total_run_count == 1


def test_an_entry_of_celerys_scheduler_keeps_its_zone(app: Liteq) -> None:
    class Plain(Scheduler):
        pass

    tokyo = {"task": "shop.tick", "tz": "Asia/Tokyo"}
    app.conf.beat_schedule = {
        "nine": {**tokyo, "schedule": "0 9 * * *"},
        "daily": {**tokyo, "schedule": 86_400, "relative": True},
    }
    found = {name: entry.schedule for name, entry in Plain(app).schedule.items()}
    assert found["nine"] == crontab(0, 9, tz="Asia/Tokyo")
    assert found["daily"] == schedule(86_400, relative=True, tz="Asia/Tokyo")


def test_entries_compare_by_what_they_do(app: Liteq) -> None:
    one = ScheduleEntry("a", "shop.tick", schedule=5, app=app)
    other = ScheduleEntry("a", "shop.tick", schedule=5, app=app, total_run_count=7)
    assert one == other
    other.update(ScheduleEntry("a", "shop.tick", schedule=6, app=app))
    assert one != other
    assert other.total_run_count == 7
    assert dict(next(one))["total_run_count"] == 1


class Counting(Mine):
    synced = 0

    def sync(self) -> None:
        type(self).synced += 1


def test_a_scheduler_is_synced_after_so_many_runs_and_at_the_end(
    app: Liteq, clock: FakeClock
) -> None:
    app.conf.beat_sync_every = 2
    Counting.synced = 0
    engine = Custom(app, Counting)
    engine.start()
    for _ in range(130):
        engine.tick()
        clock.advance(1)
    assert Counting.synced == 2
    engine.close()
    assert Counting.synced == 3


def test_a_scheduler_is_found_by_its_name(app: Liteq) -> None:
    assert find_scheduler(app, None) is None
    assert find_scheduler(app, "celery.beat:PersistentScheduler") is None
    assert find_scheduler(app, "liteq.beat:Scheduler") is None
    assert find_scheduler(app, f"{__name__}:Mine") is Mine
    assert find_scheduler(app, f"{__name__}.Mine") is Mine
    assert find_scheduler(app, Mine) is Mine
    assert isinstance(Service(app, scheduler=Mine).engine, Custom)


@pytest.mark.parametrize("name", ["nowhere:Class", "liteq.beat:Nothing", "x", "json:dumps"])
def test_a_scheduler_that_is_not_there_is_named(app: Liteq, name: str) -> None:
    with pytest.raises(
        ImproperlyConfigured, match=f"the scheduler|there is no scheduler '{name}'"
    ):
        find_scheduler(app, name)
