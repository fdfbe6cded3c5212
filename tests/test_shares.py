"""Weighted turns, and priorities that grow with waiting: fair over time, and no starvation."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liteq.shares import Shares, split_weights


def serve(shares: Shares, waiting: dict[str, int], count: int) -> list[str]:
    """Take so many, as a worker does, from queues in which so many wait."""
    taken: list[str] = []
    asked = list(waiting)
    while len(taken) < count and (planned := shares.plan(asked, count - len(taken))):
        for queue, wanted in planned.items():
            found = min(wanted, waiting[queue])
            waiting[queue] -= found
            taken += [queue] * found
            shares.took(queue, found, was_empty=found < wanted)
            if found < wanted:
                asked.remove(queue)
    return taken


@pytest.mark.parametrize("at_once", [1, 2, 5, 16])
def test_queues_with_work_are_served_by_their_weights(at_once: int) -> None:
    shares = Shares({"high": 3, "low": 1})
    waiting = {"high": 10_000, "low": 10_000, "other": 10_000}

    taken = Counter[str]()
    for _ in range(1_000 // at_once):
        taken.update(serve(shares, waiting, at_once))

    total = taken.total()
    assert taken["high"] == pytest.approx(total * 3 / 5, abs=4)
    assert taken["low"] == pytest.approx(total / 5, abs=4)


def test_an_empty_queue_leaves_its_turns_to_the_others() -> None:
    shares = Shares({"high": 5, "mid": 3, "low": 1})
    waiting = {"high": 0, "mid": 1_000, "low": 1_000}

    taken = Counter(serve(shares, waiting, 400))

    assert taken["mid"] == pytest.approx(300, abs=2)
    assert taken["low"] == pytest.approx(100, abs=2)


def test_a_queue_saves_up_no_turns_while_it_is_empty() -> None:
    shares = Shares({"high": 1, "low": 1})
    waiting = {"high": 10_000, "low": 0}
    for _ in range(500):
        serve(shares, waiting, 1)
    waiting["low"] = 1_000

    taken = Counter(queue for _ in range(100) for queue in serve(shares, waiting, 1))

    assert taken["low"] == pytest.approx(50, abs=2)


def test_a_queue_that_was_empty_waits_for_none() -> None:
    shares = Shares({"high": 1, "low": 1})
    waiting = {"high": 3, "low": 0}
    serve(shares, waiting, 3)
    waiting |= {"high": 100, "low": 100}

    assert "low" in serve(shares, waiting, 2)


@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(1, 9), min_size=1),
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 5), st.integers(1, 4))),
)
def test_nothing_that_waits_is_left_while_there_is_room(
    weights: dict[str, int], rounds: list[tuple[str, int, int]]
) -> None:
    shares = Shares(weights)
    waiting = dict.fromkeys("abcde", 0)
    for queue, came, room in rounds:
        waiting[queue] += came
        before = sum(waiting.values())

        taken = serve(shares, waiting, room)

        assert len(taken) == min(room, before)


def test_weights_stand_behind_the_last_colon() -> None:
    assert split_weights(["high:3", " low ", "a:b", "a:b:2"]) == (
        ["high", "low", "a:b", "a:b"],
        {"high": 3, "a:b": 2},
    )
    for weight in ("0", "-1", "1.5", "nan"):
        with pytest.raises(ValueError, match=f"the weight of queue 'low'.* not {weight}"):
            split_weights([f"low:{weight}"])
    with pytest.raises(ValueError, match="queue 'low' has two weights, 2 and 3"):
        split_weights(["low:2", "low:3"])
