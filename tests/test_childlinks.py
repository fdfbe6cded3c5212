"""The links between a pool and a child: each job that is given is run once or comes back."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from collections.abc import Iterator
from io import FileIO
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from liteq.pools.base import Job, PoolOptions
from liteq.pools.child import DONE, FRAME, LONG, PING, PONG, _Jobs
from liteq.pools.childlinks import connect
from liteq.pools.prefork import MOST_AHEAD, ProcessPool


class Pair:
    """A parent and a child that take their steps when they are told to."""

    def __init__(self) -> None:
        options = PoolOptions(max_lookahead=1_000)
        self.pool = ProcessPool(lambda: pytest.fail("nothing is started"), options)
        self.pool._selector = selectors.SelectSelector()
        self.child, self.links = connect(options)
        self.child.ready = True
        self.pool._children.append(self.child)
        self.pool._turns.append(self.child)
        self.pool._idle.append(self.child)
        self.pool._ahead.limit = MOST_AHEAD
        self.jobs = _Jobs(cast(socket.socket, self))
        self.running: int | None = None
        self.given: list[int] = []
        self.ran: list[int] = []
        self.returned: list[int] = []

    def close(self) -> None:
        for end in self.links[:4]:
            end.close()
        self.child.close()
        self.pool._selector.close()

    def recv(self, size: int) -> bytes:
        """Read as the child does, while the parent sends what its socket had no room for."""
        if self.child.writing:
            self.pool._send_more(self.child)
        return self.links.jobs.recv(size)

    # Steps

    def give(self, size: int) -> None:
        job = Job(len(self.given), self.payload(len(self.given), size))
        if self.pool._choose(job) is self.child:
            self.given.append(job.key)
            self.pool._give(self.child, job)

    def flush(self) -> None:
        self.pool._send_queue(self.child)

    def recall(self) -> None:
        self.returned += [job.key for job in self.pool._take_back(self.child)]

    def take(self) -> bool:
        """Have the child start what comes next; tell whether there was anything."""
        if self.running is not None:
            return False
        try:
            token = self.links.tokens.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        if not token:
            return False
        key, payload = self.jobs.take(token[0])
        if key == PING:
            self.answer(PONG, 0)
        else:
            assert payload == self.payload(key, len(payload))
            self.running = key
            self.ran.append(key)
        return True

    def end(self) -> bool:
        """Have the child end what it runs; tell whether it ran anything."""
        if self.running is None:
            return False
        key, self.running = self.running, None
        self.answer(DONE, key)
        return True

    def answer(self, kind: int, key: int) -> None:
        self.links.answers.send(FRAME.pack(0, kind, key, 0.0, 0))
        self.pool._read(self.child)
        assert not self.child.deaf
        self.pool._ahead.limit = MOST_AHEAD

    @staticmethod
    def payload(key: int, size: int) -> bytes:
        return key.to_bytes(8, "big") * (size // 8)


@contextlib.contextmanager
def pair() -> Iterator[Pair]:
    made = Pair()
    try:
        yield made
    finally:
        made.close()


steps = st.one_of(
    st.tuples(st.just("give"), st.sampled_from([0, 8, 800, LONG, LONG + 8, 1_000_000])),
    st.tuples(st.sampled_from(["flush", "take", "end", "recall"])),
    st.tuples(st.just("many"), st.integers(1, 500)),
)


def play(script: list[tuple[Any, ...]]) -> Pair:
    with pair() as it:
        for name, *args in script:
            if name == "many":
                for _ in range(*args):
                    it.give(8)
            else:
                getattr(it, name)(*args)
        it.pool._retire(it.child)
        while it.end() or it.take():
            pass
        assert it.child.held == type(it.child.held)()
        return it


@given(st.lists(steps, max_size=60))
@settings(deadline=None)
@example(
    [
        *[("many", 500), ("flush",), ("take",), ("recall",), ("end",)],
        *[("many", 500), ("flush",), ("recall",), ("take",), ("many", 3), ("take",)],
    ]
)
@example([("give", 1_000_000), ("recall",), ("take",), ("give", 8), ("take",)])
@example(
    [
        *[("many", 3), ("flush",), ("take",), ("recall",), ("end",)],
        *[("many", 3), ("flush",), ("take",), ("recall",)],
    ]
)
def test_each_job_runs_once_or_comes_back(script: list[tuple[Any, ...]]) -> None:
    it = play(script)
    assert it.ran == sorted(it.ran)
    assert sorted(it.ran + it.returned) == it.given
    assert len(set(it.given)) == len(it.given)


def test_a_job_that_comes_back_is_never_begun() -> None:
    it = play([("many", 9), ("flush",), ("take",), ("recall",)])
    assert (it.ran, it.returned) == ([0], [1, 2, 3, 4, 5, 6, 7, 8])


def test_what_is_not_sent_yet_comes_back_too() -> None:
    it = play([("many", 3), ("recall",)])
    assert (it.ran, it.returned) == ([], [0, 1, 2])


def test_a_child_that_loses_its_parent_in_the_middle_of_a_job_does_not_wait() -> None:
    with pair() as it:
        it.give(1_000_000)
        token = it.links.tokens.recv(1)
        it.child.jobs.close()
        it.child.writing = False
        with pytest.raises(EOFError, match="in the middle of a job"):
            it.jobs.take(token[0])


def test_a_child_whose_end_is_seen_first_is_sent_no_more() -> None:
    with pair() as it:
        selector = it.pool._selector
        selector.register(it.child.answers, selectors.EVENT_READ)
        ended, end = os.pipe()
        it.child.sentinel = FileIO(ended)
        selector.register(it.child.sentinel, selectors.EVENT_READ)
        it.give(1_000_000)
        it.links.jobs.recv(1_000_000)  # so that there is room
        [send_more] = [key.data for key, _ in selector.select(0)]
        os.close(end)

        it.child.dead = True
        it.pool._forget(it.child)

        send_more(selectors.EVENT_WRITE)


def test_a_child_that_has_ended_takes_nothing_and_all_comes_back() -> None:
    with pair() as it:
        it.links.jobs.close()
        it.give(1_000_000)
        it.give(8)
        it.flush()
        it.recall()
        assert it.returned == it.given
