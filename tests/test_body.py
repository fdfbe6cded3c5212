"""Calling the user's function so that it can be interrupted, and nothing after it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import random
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref import sync

from liteq.body import Body, Ending, is_coroutine
from liteq.exceptions import SoftTimeLimitExceeded


@pytest.fixture
def body() -> Iterator[Body]:
    made = Body()
    yield made
    made.close()


# Whoever measures coverage takes a lock in Python at each call, and what interrupts it there
# leaves that locked for ever.
at_any_moment = pytest.mark.untraced


@contextlib.contextmanager
def signals(body: Body, *delays: float, every: float | None = None) -> Iterator[None]:
    """Interrupt the body from a signal handler, as a child process does.

    (SIGALRM belongs to the time limit of the tests.)
    """
    main = threading.get_ident()
    over = threading.Event()

    def send() -> None:
        for delay in delays or itertools.repeat(every):
            if over.wait(delay):
                return
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: body.interrupt(body.attempt) and None)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)


def spin() -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        pass


def test_a_call_gives_the_value_or_the_exception(body: Body) -> None:
    assert body.call(lambda a, b: a + b, (1,), {"b": 2}) == (3, None)
    value, error = body.call(lambda: 1 / 0, (), {})
    assert value is None
    assert isinstance(error, ZeroDivisionError)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError])
def test_no_exception_leaves_a_call(body: Body, kind: type[BaseException]) -> None:
    def fail() -> None:
        raise kind

    assert isinstance(body.call(fail, (), {})[1], kind)


def test_a_traceback_begins_in_the_users_code(body: Body) -> None:
    def fail() -> None:
        raise ValueError

    async def afail() -> None:
        await asyncio.sleep(0)
        raise ValueError

    for error in (body.call(fail, (), {})[1], body.run(afail())[1]):
        assert error is not None
        assert error.__traceback__ is not None
        assert error.__traceback__.tb_frame.f_code.co_name in ("fail", "afail")


def test_what_a_failed_body_held_is_freed_without_the_collector(body: Body) -> None:
    class Big:
        pass

    def fail(big: Big) -> None:
        raise ValueError

    gc.disable()
    try:
        big = Big()
        seen = weakref.ref(big)
        body.call(fail, (big,), {})
        del big
        assert seen() is None
    finally:
        gc.enable()


def test_nothing_is_interrupted_while_nothing_runs(body: Body) -> None:
    body.call(lambda: None, (), {})
    assert body.interrupt(body.attempt) is False


def test_what_comes_after_an_attempt_does_not_reach_the_next(body: Body) -> None:
    async def work() -> int:
        return 1

    body.attempt = 1
    body.call(lambda: None, (), {})
    body.interrupt(1)
    body.attempt = 2
    assert body.call(lambda: 1, (), {}) == (1, None)
    assert body.run(work()) == (1, None)


def test_what_comes_before_a_body_is_raised_as_it_begins(body: Body) -> None:
    ran: list[str] = []
    body.attempt = 1
    assert body.interrupt(1) is False
    assert isinstance(body.call(ran.append, ("call",), {})[1], SoftTimeLimitExceeded)
    body.attempt = 2
    assert body.call(lambda: 1, (), {}) == (1, None)
    assert ran == []


@pytest.mark.parametrize("alone", [True, False])
def test_what_comes_before_a_coroutine_is_raised_as_it_begins(body: Body, alone: bool) -> None:
    ran: list[str] = []

    async def work() -> None:
        ran.append("work")

    def run() -> Ending:
        return body.run(work()) if alone else asyncio.run(body.arun(work()))

    body.attempt = 1
    body.interrupt(1)
    assert isinstance(run()[1], SoftTimeLimitExceeded)
    assert ran == []
    body.attempt = 2
    assert run() == (None, None)


@at_any_moment
@pytest.mark.parametrize("by_signal", [True, False])
@pytest.mark.parametrize("is_async", [True, False])
def test_an_attempt_that_is_told_at_any_moment_is_interrupted_once(
    body: Body, by_signal: bool, is_async: bool
) -> None:
    caught: list[int] = []

    def wait() -> None:
        try:
            spin()
        except SoftTimeLimitExceeded:
            caught.append(body.attempt)
        short()

    async def await_it() -> None:
        try:
            await asyncio.sleep(20)
        except SoftTimeLimitExceeded:
            caught.append(body.attempt)
        await asyncio.sleep(0)

    def tell(delay: float) -> None:
        time.sleep(delay)
        if by_signal:
            signal.pthread_kill(main, signal.SIGUSR1)
        else:
            body.interrupt(body.attempt)

    main = threading.get_ident()
    dice = random.Random(1)
    expected = list(range(100))
    with signals(body):
        for body.attempt in expected:
            teller = threading.Thread(target=tell, args=(dice.random() * 3e-4,))
            teller.start()
            value, error = body.call(await_it if is_async else wait, (), {})
            if is_coroutine(value):
                value, error = body.run(value)
            teller.join()
            if isinstance(error, SoftTimeLimitExceeded):  # before its first line
                caught.append(body.attempt)
            [None for _ in range(50)]
    assert caught == expected


def test_a_signal_interrupts_a_function(body: Body) -> None:
    with signals(body, 0.02):
        _, error = body.call(spin, (), {})
    assert isinstance(error, SoftTimeLimitExceeded)


def test_a_body_may_catch_the_interruption_and_is_spared_a_second(body: Body) -> None:
    def clean_up() -> str:
        try:
            spin()
        except SoftTimeLimitExceeded:
            assert body.interrupt(body.attempt) is False
            return "cleaned"
        return "never"

    with signals(body, 0.02):
        assert body.call(clean_up, (), {}) == ("cleaned", None)


def test_another_thread_interrupts_a_function(body: Body) -> None:
    started = threading.Event()

    def work() -> None:
        started.set()
        spin()

    def interrupt() -> None:
        started.wait()
        body.interrupt(body.attempt)

    thread = threading.Thread(target=interrupt)
    thread.start()
    _, error = body.call(work, (), {})
    thread.join()
    assert isinstance(error, SoftTimeLimitExceeded)


def short() -> int:
    total = 0
    for number in range(100):
        total += number
    return total


@at_any_moment
def test_an_interruption_by_a_thread_never_comes_after_the_body(body: Body) -> None:
    """The race itself: another thread interrupts short bodies at random moments."""
    stop = threading.Event()

    def pester() -> None:
        while not stop.is_set():
            body.interrupt(body.attempt)

    thread = threading.Thread(target=pester)
    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    hits = misses = 0
    late = time.monotonic() + 60  # however many bodies that is on a fast machine
    try:
        while (hits < 100 or misses < 100) and time.monotonic() < late:
            body.attempt += 1
            _, error = body.call(short, (), {})
            if error is None:
                misses += 1
            else:
                assert isinstance(error, SoftTimeLimitExceeded)
                hits += 1
            [None for _ in range(100)]  # a late exception would strike here
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(switching)
    assert hits >= 100  # or the test has shown nothing
    assert misses >= 100


@at_any_moment
def test_an_interruption_by_a_signal_never_comes_after_the_body(body: Body) -> None:
    hits = 0
    late = time.monotonic() + 60
    with signals(body, every=0.0003):
        while hits < 100 and time.monotonic() < late:
            body.attempt += 1
            _, error = body.call(short, (), {})
            hits += error is not None
            [None for _ in range(50)]
    assert hits >= 100


# Coroutines


def test_a_coroutine_runs_to_its_end(body: Body) -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 5

    assert body.run(work()) == (5, None)


def test_the_loop_is_kept_between_coroutines(body: Body) -> None:
    async def here() -> Any:
        return asyncio.get_running_loop()

    assert body.run(here())[0] is body.run(here())[0]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_no_exception_leaves_a_coroutine(body: Body, kind: type[BaseException]) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise kind

    async def fine() -> int:
        return 1

    assert isinstance(body.run(fail())[1], kind)
    assert body.run(fine()) == (1, None)  # and the loop is as good as before


def test_an_exit_in_a_side_task_ends_the_body_and_its_loop(body: Body) -> None:
    async def leave() -> None:
        raise SystemExit(3)

    async def work() -> None:
        side = asyncio.create_task(leave())
        await asyncio.sleep(20)
        await side

    async def fine() -> int:
        return 1

    assert isinstance(body.run(work())[1], SystemExit)
    assert body.run(fine()) == (1, None)


def test_a_signal_interrupts_a_coroutine_at_its_await(body: Body) -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(20)
        except SoftTimeLimitExceeded:
            seen.append("interrupted")
            await asyncio.sleep(0)
            seen.append("cleaned")
            raise

    with signals(body, 0.02):
        _, error = body.run(work())
    assert isinstance(error, SoftTimeLimitExceeded)
    assert seen == ["interrupted", "cleaned"]


def test_a_signal_interrupts_a_coroutine_that_never_awaits(body: Body) -> None:
    async def work() -> None:
        spin()

    with signals(body, 0.02):
        _, error = body.run(work())
    assert isinstance(error, SoftTimeLimitExceeded)


def test_a_coroutine_goes_on_after_it_caught_the_interruption(body: Body) -> None:
    async def work() -> str:
        with contextlib.suppress(SoftTimeLimitExceeded):
            await asyncio.sleep(20)
        async with asyncio.timeout(5):  # counts cancellations, and must see none
            await asyncio.sleep(0.001)
        return "done"

    with signals(body, 0.02):
        assert body.run(work()) == ("done", None)


def test_a_coroutine_that_cancelled_itself_before_is_still_interrupted(body: Body) -> None:
    async def work() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()  # as a task group leaves behind that has failed
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(20)
        await asyncio.sleep(20)

    with signals(body, 0.02):
        _, error = body.run(work())
    assert isinstance(error, SoftTimeLimitExceeded)


def test_what_swallows_the_cancellation_does_not_swallow_the_interruption(body: Body) -> None:
    async def deaf() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(20)
        return "deaf"

    async def work() -> str:
        return await asyncio.create_task(deaf())

    with signals(body, 0.02):
        _, error = body.run(work())
    assert isinstance(error, SoftTimeLimitExceeded)


def test_another_thread_interrupts_a_coroutine(body: Body) -> None:
    started = threading.Event()

    async def work() -> None:
        started.set()
        await asyncio.sleep(20)

    def interrupt() -> None:
        started.wait()
        body.interrupt(body.attempt)

    thread = threading.Thread(target=interrupt)
    thread.start()
    _, error = body.run(work())
    thread.join()
    assert isinstance(error, SoftTimeLimitExceeded)


@at_any_moment
def test_signals_at_every_moment_reach_coroutines_only_inside(body: Body) -> None:
    async def work() -> int:
        for _ in range(5):
            await asyncio.sleep(0)
        return 1

    hits = 0
    late = time.monotonic() + 60
    with signals(body, every=0.0007):
        while hits < 100 and time.monotonic() < late:
            body.attempt += 1
            value, error = body.run(work())
            assert (value, error) == (1, None) or isinstance(error, SoftTimeLimitExceeded)
            hits += error is not None
    assert hits >= 100


@pytest.mark.timeout(20, method="thread")  # a signal would not be handled in that loop
def test_interruptions_leave_the_interpreter_as_fast_as_before(body: Body) -> None:
    """A pending call-off would have every function check for it from then on."""
    ran: list[Ending] = []
    started = threading.Event()

    def catch() -> None:
        started.set()
        with contextlib.suppress(SoftTimeLimitExceeded):
            spin()

    thread = threading.Thread(target=lambda: ran.append(body.call(catch, (), {})))
    thread.start()
    started.wait()
    body.interrupt(body.attempt)
    thread.join()
    assert ran == [(None, None)]
    before = sys.gettrace()  # a tracer meets such a check at every call, for ever
    sys.settrace(lambda *_: None)
    try:
        assert short() == 4950
    finally:
        sys.settrace(before)


def test_a_coroutine_called_inside_a_running_loop_runs_elsewhere(body: Body) -> None:
    async def inner() -> int:
        await asyncio.sleep(0)
        return threading.get_ident()

    async def outer() -> Any:
        return body.run(inner())

    value, error = asyncio.run(outer())
    assert error is None
    assert value != threading.get_ident()


def test_ctrl_c_ends_a_coroutine_that_asgiref_runs_in_another_thread() -> None:
    ended = threading.Event()

    async def work() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    # A shell that starts programs in the background has them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _, error = Body(sync).run(work())
    finally:
        signal.signal(signal.SIGINT, before)
    assert isinstance(error, KeyboardInterrupt)
    assert ended.wait(10)


def test_closing_ends_what_is_left_on_the_loop() -> None:
    body = Body()
    ended: list[str] = []

    async def linger() -> None:
        try:
            await asyncio.sleep(20)
        finally:
            ended.append("linger")

    async def work() -> None:
        work.side = asyncio.create_task(linger())  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    body.run(work())
    body.close()
    body.close()
    assert ended == ["linger"]


# As a part of another loop


def test_many_bodies_share_a_loop_and_one_is_interrupted() -> None:
    async def work(number: int) -> int:
        await asyncio.sleep(0.05)
        return number

    async def all_of_them() -> list[Any]:
        bodies = [Body() for _ in range(3)]
        runs = [asyncio.create_task(b.arun(work(n))) for n, b in enumerate(bodies)]
        await asyncio.sleep(0.005)
        assert bodies[1].interrupt(0)
        return await asyncio.gather(*runs)

    (one, two, three) = asyncio.run(all_of_them())
    assert (one, three) == ((0, None), (2, None))
    assert isinstance(two[1], SoftTimeLimitExceeded)


def test_a_cancellation_from_outside_is_passed_on() -> None:
    seen: list[str] = []

    async def work() -> str:
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            seen.append("cancelled")
        return "whatever"

    async def cancel() -> None:
        run = asyncio.create_task(Body().arun(work()))
        await asyncio.sleep(0.005)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    asyncio.run(cancel())
    assert seen == ["cancelled"]


def test_a_cancellation_before_its_beginning_is_passed_on() -> None:
    async def work() -> None:
        raise AssertionError("it has begun")

    async def cancel() -> None:
        run = asyncio.create_task(Body().arun(work()))
        await asyncio.sleep(0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    asyncio.run(cancel())


def test_a_cancellation_goes_before_an_interruption() -> None:
    async def work() -> None:
        try:
            await asyncio.sleep(20)
        except SoftTimeLimitExceeded:
            await asyncio.sleep(20)

    async def both() -> None:
        body = Body()
        run = asyncio.create_task(body.arun(work()))
        await asyncio.sleep(0.005)
        body.interrupt(body.attempt)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(run, 5)

    asyncio.run(both())


def test_an_interruption_that_comes_too_late_changes_nothing() -> None:
    async def quick() -> int:
        return 1

    async def late() -> Any:
        body = Body()
        ending = await body.arun(quick())
        assert body.interrupt(body.attempt) is False
        await asyncio.sleep(0)
        return ending

    assert asyncio.run(late()) == (1, None)
