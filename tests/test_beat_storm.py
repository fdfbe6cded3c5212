"""Three beats that are killed, paused and started at random, on a clock that is set: each
instant is fired exactly once, and a live beat fires it within five seconds."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import START, FakeClock

from liteq import Liteq
from liteq.beat import Beat
from liteq.brokers.base import Broker
from liteq.brokers.sqlite import SqliteBroker
from liteq.schedules import crontab

pytestmark = pytest.mark.untraced

STORM = bool(os.environ.get("LITEQ_STORM"))
LATE = 5.0  # seconds that failing over may take

# By entry: a multiple of how many seconds its instants are, and how the beat catches up.
GRIDS = {"all": 300, "one": 420, "skip": 180}
SCHEDULE = {
    "all": {"task": "shop.tick", "schedule": crontab(minute="*/5"), "catch_up": "all"},
    "one": {"task": "shop.tick", "schedule": crontab(minute="*/7"), "catch_up": "one"},
    "skip": {"task": "shop.tick", "schedule": crontab(minute="*/3"), "catch_up": "skip"},
    "every": {"task": "shop.tick", "schedule": 100.0, "catch_up": "one"},
}


@dataclass
class Fire:
    name: str
    due: float
    at: float
    life: int  # how often the clock had been set back: an interval may live a time twice


@dataclass
class Seat:
    """A process that beats, now and then. Times are those of the steady clock."""

    app: Liteq
    beat: Beat | None = None
    wakes_at: float = 0.0
    paused_until: float = 0.0


class Simulation:
    def __init__(self, broker: Broker, clock: FakeClock, seats: int = 3) -> None:
        self.broker = broker
        self.clock = clock
        self.fires: list[Fire] = []
        self.blind: list[tuple[float, float]] = []  # wall times that no beat has lived through
        self.unseen: float | None = clock.now()  # since when none is alive
        self.set_back = 0
        self._record(broker)
        self.seats = [Seat(self._app()) for _ in range(seats)]
        self.anchor = clock.now()
        for seat in range(seats):
            self.start(seat)

    def _app(self) -> Liteq:
        app = Liteq("shop", set_as_current=False, clock=self.clock)
        app.broker = self.broker

        @app.task(name="shop.tick")
        def tick() -> None: ...

        app.conf.beat_schedule = SCHEDULE
        return app

    def _record(self, broker: Broker) -> None:
        store = broker.fire

        def fire(name: str, due_at: float, next_due_at: float | None, **rest: Any) -> bool:
            moved = store(name, due_at, next_due_at, **rest)
            if moved and rest.get("messages"):
                life = self.set_back if name == "every" else 0
                self.fires.append(Fire(name, due_at, self.clock.now(), life))
            return moved

        broker.fire = fire  # type: ignore[method-assign]

    # What happens

    def start(self, number: int) -> None:
        seat = self.seats[number]
        if seat.beat is None:
            seat.beat = Beat(seat.app, name=f"beat {number} of {self.clock.steady()}")
            seat.beat.start()
            seat.paused_until = seat.wakes_at = self.clock.steady()
            self._watch()

    def kill(self, number: int) -> None:
        self.seats[number].beat = None
        self._watch()

    def stop(self, number: int) -> None:
        seat = self.seats[number]
        if seat.beat is not None and seat.paused_until <= self.clock.steady():
            seat.beat.close()
            for other in self.seats:
                if other.beat is not None:
                    other.beat.wake()
                    other.wakes_at = self.clock.steady()
            self.kill(number)

    def pause(self, number: int, seconds: float) -> None:
        self.seats[number].paused_until = self.clock.steady() + seconds
        self._watch()

    def step(self, seconds: float) -> None:
        before = self.clock.now()
        self.clock.step(seconds)
        self.set_back += seconds < 0
        # Until every beat has looked at the clock again.
        self.blind.append((min(before, self.clock.now()), max(before, self.clock.now()) + 61))

    def _watch(self) -> None:
        """Note from when until when no beat is alive and awake."""
        awake = any(
            seat.beat is not None and seat.paused_until <= self.clock.steady()
            for seat in self.seats
        )
        if not awake and self.unseen is None:
            self.unseen = self.clock.now()
        elif awake and self.unseen is not None:
            self.blind.append((self.unseen - LATE, self.clock.now() + LATE))
            self.unseen = None

    def run(self, seconds: float) -> None:
        end = self.clock.steady() + seconds
        while True:
            alive = [seat for seat in self.seats if seat.beat is not None]
            turns = [(max(seat.wakes_at, seat.paused_until), i) for i, seat in enumerate(alive)]
            at, index = min(turns, default=(end, 0))
            if at >= end:
                self.clock.advance(end - self.clock.steady())
                self._watch()
                return
            self.clock.advance(max(0.0, at - self.clock.steady()))
            self._watch()
            seat = alive[index]
            assert seat.beat is not None
            wait = seat.beat.tick()
            assert 0 <= wait <= seat.beat.max_interval
            seat.wakes_at = self.clock.steady() + wait

    # What must hold

    def check(self) -> None:
        for seat in range(len(self.seats)):
            self.start(seat)
        self.run(3_600)
        seen = [(fire.name, fire.due, fire.life) for fire in self.fires]
        assert len(seen) == len(set(seen)), "an instant was fired twice"
        # "all" leaves nothing out, whatever was killed, paused or set.
        ends = max(fire.due for fire in self.fires)
        assert self._dues("all") == self._grid(300, ends), "an instant of 'all' is missing"
        for name, width in GRIDS.items():
            fired = set(self._dues(name))
            expected = set(self._grid_of(name, ends - width))
            assert fired <= set(self._grid_of(name, ends)), f"{name}: no such instant"
            missing = {due for due in expected - fired if not self._is_blind(due)}
            assert not missing, f"{name}: left out with a beat alive: {sorted(missing)}"
        for fire in self.fires:
            if not self._is_blind(fire.due):
                assert -0.001 <= fire.at - fire.due <= LATE, f"late: {fire}"

    def _dues(self, name: str) -> list[float]:
        return sorted(fire.due for fire in self.fires if fire.name == name)

    def _grid(self, width: int, until: float) -> list[float]:
        first = (self.anchor // width + 1) * width
        return [float(due) for due in range(int(first), int(until) + 1, width)]

    def _grid_of(self, name: str, until: float) -> list[float]:
        minutes = GRIDS[name] // 60
        every = self._grid(60, until)
        return [due for due in every if (due // 60 % 60) % minutes == 0]

    def _is_blind(self, due: float) -> bool:
        return any(start <= due <= end for start, end in self.blind)


events = st.lists(
    st.tuples(
        st.sampled_from(["start", "kill", "stop", "pause", "step"]),
        st.integers(0, 2),
        st.floats(0.5, 1_500),
        st.floats(-4_000, 4_000),
    ),
    max_size=25,
)


def happen(simulation: Simulation, kind: str, number: int, seconds: float, by: float) -> None:
    """Let one thing happen, and so many seconds pass after it."""
    match kind:
        case "start":
            simulation.start(number)
        case "kill":
            simulation.kill(number)
        case "stop":
            simulation.stop(number)
        case "pause":
            simulation.pause(number, seconds)
        case "step":
            simulation.step(by)
    simulation.run(seconds)


@given(events)
@settings(max_examples=300 if STORM else 15)
@pytest.mark.timeout(3_600 if STORM else 60)
def test_each_instant_is_fired_exactly_once_whatever_happens(happens: list[Any]) -> None:
    clock = FakeClock(START)
    broker = SqliteBroker(None, clock=clock)
    simulation = Simulation(broker, clock)
    for each in happens:
        happen(simulation, *each)
    simulation.check()
    broker.close()


@pytest.mark.skipif(not STORM, reason="LITEQ_STORM=1: minutes")
@pytest.mark.timeout(3_600)
def test_a_thousand_hours() -> None:
    pick = random.Random()
    clock = FakeClock(START)
    broker = SqliteBroker(None, clock=clock)
    simulation = Simulation(broker, clock)
    while clock.steady() < 1_000 * 3_600:
        kind = pick.choice(["start", "start", "start", "kill", "stop", "pause", "step"])
        happen(simulation, kind, pick.randrange(3), pick.uniform(1, 3_000), pick.gauss(0, 600))
    simulation.check()
    broker.close()
