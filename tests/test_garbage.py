"""Who collects garbage, when, and who is left alone."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api import app_in_memory
from world import uncovered

from liteq import Liteq, garbage
from liteq.garbage import EVERY, SHARE, Collector
from liteq.worker import Worker


class Cycle:
    """Refers to itself: nothing but a collection ends it."""

    def __init__(self) -> None:
        self.me = self


class Ticks:
    """A clock that each collection moves on by so many seconds."""

    def __init__(self, took: float = 0.0) -> None:
        self.now, self.took = 1000.0, took

    def __call__(self) -> float:
        return self.now

    def pass_by(self, phase: str, _facts: dict[str, int]) -> None:
        if phase == "stop":
            self.now += self.took


@pytest.fixture
def quiet() -> Iterator[None]:
    """Python collects nothing by itself, although collecting is not disabled."""
    thresholds = gc.get_threshold()
    gc.set_threshold(0)
    yield
    gc.set_threshold(*thresholds)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The collections of all generations, each due as soon as it can be looked at."""
    seen: list[int] = []

    def see(phase: str, facts: dict[str, int]) -> None:
        if phase == "start" and facts["generation"] == 2:
            seen.append(facts["generation"])

    monkeypatch.setattr(garbage, "EVERY", 0.0)
    gc.callbacks.append(see)
    yield seen
    gc.callbacks.remove(see)


def left_behind() -> weakref.ref[Cycle]:
    return weakref.ref(Cycle())


def test_a_collection_is_due_once_a_minute(quiet: None) -> None:
    clock = Ticks()
    collector = Collector(clock)
    cycle = left_behind()

    clock.now += EVERY - 1
    collector.collect_if_due()
    assert cycle() is not None

    clock.now += 1
    collector.collect_if_due()
    assert cycle() is None
    assert collector.due == clock.now + EVERY


def test_collections_take_no_more_than_their_share_of_the_time() -> None:
    clock = Ticks(took=3.0)
    collector = Collector(clock)
    gc.callbacks.append(clock.pass_by)
    try:
        collector.collect()
    finally:
        gc.callbacks.remove(clock.pass_by)
    assert collector.due - clock.now == pytest.approx(3.0 / SHARE)


def test_nothing_is_collected_where_collecting_is_disabled() -> None:
    clock = Ticks()
    collector = Collector(clock)
    cycle = left_behind()
    gc.disable()
    try:
        clock.now += EVERY
        collector.collect_if_due()
        assert cycle() is not None
        assert collector.due == clock.now + EVERY  # it may be enabled by then
    finally:
        gc.enable()
        gc.collect()


@pytest.fixture
def app() -> Iterator[Liteq]:
    with app_in_memory() as made:
        yield made


@pytest.mark.parametrize("pool", ["threads", "asyncio", "solo"])
def test_a_program_with_a_worker_in_it_is_left_alone(
    app: Liteq,
    pool: str,
    quiet: None,
    full: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @app.task
    def double(n: int) -> int:
        return n * 2

    frozen: list[None] = []  # not their number: what a test before has frozen may go meanwhile
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(None))
    with app.worker(concurrency=1, pool=pool, beat=True):
        assert double.delay(4).get(timeout=10) == 8
    assert full == []
    assert frozen == []


def test_a_worker_that_has_the_process_collects_between_its_steps(
    app: Liteq, quiet: None, full: list[int]
) -> None:
    cycles: list[Any] = []

    @app.task
    def leave() -> None:
        cycles.append(left_behind())

    for _ in range(3):
        leave.delay()
    try:
        Worker(app, pool="solo", burst=True).run()
        assert gc.get_freeze_count() > 10_000  # what was there before, so it is quick
    finally:
        gc.unfreeze()
    assert full
    assert cycles[0]() is None  # and the last one, maybe, goes with the program


@pytest.mark.parametrize("before", [True, False])
def test_the_command_line_looks_for_no_garbage_while_it_is_imported(before: bool) -> None:
    # A fifth of what `liteq --help` takes; what comes after is collected as ever.
    code = (
        "import gc, sys\n"
        f"gc.{'enable' if before else 'disable'}()\n"
        "looks = []\n"
        "def look(phase, facts):\n"
        "    if 'click' in sys.modules and not gc.get_freeze_count():\n"
        "        looks.append(facts)\n"
        "gc.callbacks.append(look)\n"
        "from liteq.__main__ import main\n"
        "sys.argv = ['liteq', 'version']\n"
        "assert main() == 0\n"
        "print(len(looks), gc.get_freeze_count() > 0, gc.isenabled())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=uncovered() | {"PYTHONPATH": str(Path(garbage.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert done.stdout.split()[-3:] == ["0", "True", str(before)]
