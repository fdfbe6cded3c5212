"""The lock by which the threads of a process stand in line."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from liteq.brokers.fairlock import FairLock


@pytest.fixture
def lock() -> FairLock:
    """A lock that is taken."""
    lock = FairLock()
    assert lock.acquire(0) == 0
    return lock


def test_who_came_first_goes_first(lock: FairLock, wait_until: Callable[..., Any]) -> None:
    order = []

    def pass_through(number: int) -> None:
        lock.acquire(60)
        order.append(number)
        lock.release()

    threads = [threading.Thread(target=pass_through, args=(number,)) for number in range(10)]
    for number, thread in enumerate(threads, 1):
        thread.start()
        wait_until(lambda number=number: len(lock._waiting) == number)
    lock.release()
    for thread in threads:
        thread.join()

    assert order == list(range(10))
    assert lock.acquire(0) == 0


def test_who_releases_it_does_not_take_it_from_those_who_wait(
    lock: FairLock, wait_until: Callable[..., Any]
) -> None:
    thread = threading.Thread(target=lock.acquire, args=(60,))
    thread.start()
    wait_until(lambda: lock._waiting)

    lock.release()
    assert lock.acquire(0.01) is None
    thread.join()


def test_who_gives_up_is_in_nobodys_way(lock: FairLock) -> None:
    assert lock.acquire(0.01) is None
    assert lock.acquire(0.02, parts=2) is None

    lock.release()

    assert lock.acquire(0) == 0


@pytest.mark.parametrize("released", ["with the interrupt", "after it"])
def test_who_is_interrupted_is_in_nobodys_way(lock: FairLock, released: str) -> None:
    def interrupt(signum: int, frame: Any) -> None:
        if released == "with the interrupt":
            lock.release()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            lock.acquire(60)
    finally:
        signal.signal(signal.SIGALRM, before)
    if released == "after it":
        lock.release()

    assert lock.acquire(0) == 0
