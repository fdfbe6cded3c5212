"""How many tasks are run a second."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from liteq.pace import SPAN, Pace


def look(**processed: int | None) -> Any:
    return [
        SimpleNamespace(name=name, info=SimpleNamespace(details={"processed": number}))
        for name, number in processed.items()
    ]


def test_the_first_look_tells_no_pace() -> None:
    assert Pace().note(100.0, look(a=50)) == 0.0


def test_what_was_run_between_two_looks_is_told_a_second() -> None:
    pace = Pace()
    pace.note(100.0, look(a=50, b=None))
    assert pace.note(104.0, look(a=90, b=20)) == 15.0


def test_a_worker_that_came_or_began_anew_adds_nothing_of_its_past() -> None:
    pace = Pace()
    pace.note(100.0, look(a=50, b=70))
    assert pace.note(110.0, look(a=60, b=5, c=1_000)) == 1.0


def test_looks_that_are_too_old_are_let_go_of_however_often_one_looks() -> None:
    pace = Pace()
    for number in range(1_000):
        pace.note(100.0 + number / 10, look(a=0))
    assert len(pace._looks) <= 2 * SPAN + 2
    later = 100.0 + 999 / 10
    assert pace.note(later + SPAN, look(a=30)) > 1.0
    assert pace.note(later + 3 * SPAN, look(a=30)) == 0.0
