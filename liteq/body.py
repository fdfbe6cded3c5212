"""The call of the user's function, in such a way that it can be interrupted.

A `Body` calls one function at a time and hands back what it returned or raised. While
the function runs, and only then, `interrupt()` raises `SoftTimeLimitExceeded` inside it,
at most once: from a signal handler in the same thread, from another thread, or, if the
function is a coroutine, at the `await` where it stands.

How an interruption never hits what comes after the body: there is one token per call,
kept in a dict under the number of the attempt. Whoever takes it out has decided the race,
since `dict.pop` is atomic. The body's end takes it, and then nobody can interrupt any more;
or `interrupt()` takes it, and then the body's end waits for the exception that is on its
way, and swallows it.

How one that comes before the body is not lost: `interrupt()` notes the attempt before it
looks for a token, and a body puts its token before it looks at the note. So one of the two
sees the other. The note is for that attempt alone: read by no other, it need not be removed.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from liteq.djangothread import carried
from liteq.exceptions import SoftTimeLimitExceeded

if TYPE_CHECKING:  # 50 ms to import, and most workers run no coroutine: see `_asyncio`
    import asyncio

__all__ = ["Body", "Ending", "is_coroutine"]

# What a call came to: its value, or the exception it ended with.
Ending: TypeAlias = tuple[Any, BaseException | None]

_NOTHING: Final = object()


def is_coroutine(value: Any) -> bool:
    """Tell whether a function returned a coroutine, which has yet to be awaited."""
    return type(value) is CoroutineType


class Body:
    """Runs one body at a time, in one thread; `interrupt()` may come from any.

    Coroutines run on a loop that belongs to this object and is kept between them, so
    that a task can keep its connections; `close()` ends it.

    `attempt`: which attempt the next calls belong to. Who can be interrupted sets it to a
    number that no other attempt has.
    """

    def __init__(self, bridge: Any | None = None) -> None:
        """`bridge`: `asgiref.sync`, if coroutines are to run by that, where Django's ORM asks
        in the thread that waits for them. Nothing can interrupt such a one."""
        self._bridge = bridge
        self.attempt = 0
        self._told: int | None = None  # the attempt to interrupt when its body begins
        self._tokens: dict[int, _Call | _Drive] = {}
        self._call = _Call()
        self._loop: asyncio.AbstractEventLoop | None = None

    def call(
        self, fun: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Ending:
        """Call a function and return what it returned, or what it raised. Never raises.

        A coroutine function returns its coroutine: give that to `run()` or `arun()`.
        """
        tokens = self._tokens
        attempt = self.attempt
        token = self._call
        token.prepare()
        value: Any = _NOTHING
        error: BaseException | None = None
        try:
            try:
                tokens[attempt] = token
                if self._told == attempt and tokens.pop(attempt, None) is not None:
                    token.interrupt()  # it was told before: raises here
                value = fun(*args, **kwargs)
            except BaseException as exc:  # noqa: BLE001 (it is how the task ended)
                error = exc
            if tokens.pop(attempt, None) is None and token.absorb():
                self._told = attempt  # for the coroutine, if that is what was returned
        except SoftTimeLimitExceeded:
            # It came after the body's end and before the line that waits for it.
            self._told = attempt
        if value is _NOTHING and error is None:
            error = SoftTimeLimitExceeded()
        try:
            if error is None:
                return value, None
            if is_coroutine(value):
                value.close()  # or Python warns that it was never awaited
            return None, _trimmed(error)
        finally:
            del error  # or it would hold this frame, and this frame it, and both the task's

    def run(self, coroutine: CoroutineType[Any, Any, Any]) -> Ending:
        """Run a coroutine to its end on the loop of this object.

        Inside a running loop (an eager call made by a coroutine) another thread does it,
        and this one, loop and all, waits.
        """
        asyncio = _asyncio()
        if asyncio._get_running_loop() is not None:
            return _elsewhere(coroutine)
        if self._bridge is not None:
            return _across(self._bridge, coroutine)
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        loop = self._loop
        drive = _Drive(coroutine, loop)
        self._begin(drive)
        try:
            ending: Ending = loop.run_until_complete(drive.task)
            return ending
        except BaseException as exc:  # noqa: BLE001 (raised by another coroutine)
            self.close()  # ends this one too, which must not go on beside the next task
            return None, _trimmed(exc)
        finally:
            self._tokens.pop(self.attempt, None)

    async def arun(self, coroutine: CoroutineType[Any, Any, Any]) -> Ending:
        """Run a coroutine to its end, in a task of its own, while the current one waits.

        Raises `CancelledError` if the current task was cancelled: then the attempt is
        over, whatever the coroutine made of it. Cancellations that the coroutine brings
        upon itself are its own affair, and those of its task only: a `TaskGroup` that failed
        leaves one behind that nobody takes back (before Python 3.13).
        """
        asyncio = _asyncio()
        waiter = asyncio.current_task()
        assert waiter is not None  # a coroutine that runs has one
        loop = asyncio.get_running_loop()
        drive = _Drive(coroutine, loop, waiter)
        self._begin(drive)
        try:
            ending: Ending = await drive.task
        except asyncio.CancelledError:  # before it began
            coroutine.close()
            raise
        finally:
            self._tokens.pop(self.attempt, None)
        if waiter.cancelling():
            raise asyncio.CancelledError
        return ending

    def _begin(self, drive: _Drive) -> None:
        """Have a coroutine driven on its loop, which can be interrupted from now on."""
        drive.begin()
        self._tokens[self.attempt] = drive
        if self._told == self.attempt and self._tokens.pop(self.attempt, None) is not None:
            drive.was_told = True

    def interrupt(self, attempt: int) -> bool:
        """Raise `SoftTimeLimitExceeded` in the body of this attempt.

        False: it does not run, or was interrupted before. If it has yet to begin, the
        exception takes the place of its first line. Called in the thread that runs the body
        (by a signal handler), this raises. A thread gets the exception at its next bytecode:
        not while it sleeps or waits in C.
        """
        self._told = attempt
        token = self._tokens.pop(attempt, None)
        if token is None:
            return False
        self._told = None
        self._call = _Call()  # the next call must not see what is still to be said in this one
        token.interrupt()
        return True

    def runs(self) -> bool:
        """Tell whether the body of the present attempt has begun, has not ended, and was not
        interrupted."""
        return self.attempt in self._tokens

    def close(self) -> None:
        """End the loop, and what is still running on it."""
        loop, self._loop = self._loop, None
        if loop is None or loop.is_closed() or loop.is_running():
            return
        from liteq.eventloop import run_to_end  # late: few children have a loop

        asyncio = _asyncio()
        if left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            # One that swallows the cancellation must not keep the worker from ending.
            run_to_end(loop, asyncio.wait(left, timeout=1.0), lambda _: None)
        run_to_end(loop, loop.shutdown_asyncgens(), lambda _: None)
        loop.close()


class _Call:
    """The token of a function that runs in a thread."""

    __slots__ = ("_is_raised", "_is_sent", "_thread")

    def __init__(self) -> None:
        self.prepare()

    def prepare(self) -> None:
        """Become the token of a new call, in this thread."""
        self._thread = threading.get_ident()
        self._is_raised = False
        self._is_sent = False

    def interrupt(self) -> None:
        if threading.get_ident() == self._thread:
            self._is_raised = True
            raise SoftTimeLimitExceeded
        _raise_in(self._thread, SoftTimeLimitExceeded)
        self._is_sent = True

    def absorb(self) -> bool:
        """Return when no interruption can arrive any more; tell whether the body may have
        ended without it.

        The other thread may stand between taking the token and sending. What it sends
        may arrive at any bytecode, here too, or did so in the body, which may have caught
        it. A thread has room for one such exception, so to send another replaces what is
        on its way, and exactly one arrives here. (CPython can also call one off, but
        3.11 then leaves its `eval_breaker` set: slow from there on, and an endless loop
        under a tracer.)
        """
        if self._is_raised:
            return False
        try:
            while not self._is_sent:
                time.sleep(0)
            _raise_in(self._thread, SoftTimeLimitExceeded)
            while True:
                time.sleep(0)
        except SoftTimeLimitExceeded:
            return True


class _Drive:
    """The token of a coroutine, which it also drives, step by step.

    asyncio can only cancel a task. This stands between the task and the coroutine and
    throws `SoftTimeLimitExceeded` into it in place of the `CancelledError`.
    """

    task: asyncio.Task[Any]

    def __init__(
        self,
        coroutine: CoroutineType[Any, Any, Any],
        loop: asyncio.AbstractEventLoop,
        waiter: asyncio.Task[Any] | None = None,
    ) -> None:
        """`waiter`: the task whose cancellation is meant for the coroutine, if any."""
        self._coroutine = coroutine
        self._loop = loop
        self._waiter = waiter
        self._thread = threading.get_ident()
        self._is_stepping = False
        self._is_over = False
        self._is_due = False  # cancelled by us; the coroutine has yet to hear of it
        self.was_told = False  # before the coroutine began

    def begin(self) -> None:
        """Have the coroutine driven by a task of the loop."""
        self.task = self._loop.create_task(self.settle())

    def interrupt(self) -> None:
        if self._is_stepping and threading.get_ident() == self._thread:
            raise SoftTimeLimitExceeded  # in a signal handler: it computes, or blocks in C
        self._loop.call_soon_threadsafe(self._cancel)

    async def settle(self) -> Ending:
        """Drive the coroutine to its end, and return that."""
        try:
            return await self, None
        except BaseException as exc:  # noqa: BLE001 (it is how the task ended)
            return None, _trimmed(exc)

    def __await__(self) -> Generator[Any, Any, Any]:
        reply: Any = None
        error: BaseException | None = SoftTimeLimitExceeded() if self.was_told else None
        try:
            while True:
                try:
                    awaited = self._step(reply, error)
                except StopIteration as stop:
                    return stop.value
                except SoftTimeLimitExceeded as exc:
                    if self._coroutine.cr_frame is None:
                        raise  # it went through the coroutine, and ended it
                    error = exc  # the signal came between two steps: hand it in
                    continue
                reply = error = None
                try:
                    reply = yield awaited
                except BaseException as exc:  # noqa: BLE001 (the coroutine is to have it)
                    error = exc
                error = self._swapped(error)
        finally:
            self._is_over = True
            del error

    def _step(self, reply: Any, error: BaseException | None) -> Any:
        self._is_stepping = True
        try:
            if error is None:
                return self._coroutine.send(reply)
            return self._coroutine.throw(error)
        finally:
            self._is_stepping = False
            del error

    def _cancel(self) -> None:
        if not self._is_over:
            self._is_due = True
            self.task.cancel()

    def _swapped(self, error: BaseException | None) -> BaseException | None:
        """Return what the coroutine is to get in place of what was thrown in.

        What it awaited may have swallowed the cancellation, and answered: that makes no
        difference. A cancellation from outside (the hard limit) goes before ours.
        """
        if not self._is_due:
            return error
        self._is_due = False
        self.task.uncancel()
        if self._waiter is not None and self._waiter.cancelling():
            return error
        return SoftTimeLimitExceeded()


def _asyncio() -> Any:
    import asyncio  # late: 50 ms, and most workers run no coroutine

    return asyncio


def _elsewhere(coroutine: CoroutineType[Any, Any, Any]) -> Ending:
    """Run a coroutine in a new thread, in a copy of this one's context variables."""
    endings: list[Ending] = []

    def work() -> None:
        body = Body()
        try:
            endings.append(body.run(coroutine))
        finally:
            body.close()

    thread = threading.Thread(target=contextvars.copy_context().run, args=(carried(work),))
    thread.start()
    thread.join()
    return endings[0]


def _across(bridge: Any, coroutine: CoroutineType[Any, Any, Any]) -> Ending:
    """Run a coroutine on a loop in another thread, while this one does for it what it hands
    to `sync_to_async`."""
    asyncio = _asyncio()
    begun: list[tuple[Any, Any]] = []

    async def settle() -> Ending:
        begun.append((asyncio.get_running_loop(), asyncio.current_task()))
        try:
            return await coroutine, None
        except BaseException as exc:  # noqa: BLE001 (it is how the task ended)
            return None, _trimmed(exc)

    try:
        ending: Ending = bridge.async_to_sync(settle)()
        return ending
    except BaseException as exc:  # noqa: BLE001 (Ctrl-C, which hits the thread that waits)
        for loop, task in begun:  # it must not go on beside the next
            loop.call_soon_threadsafe(task.cancel)
        return None, _trimmed(exc)


def _raise_in(thread: int, kind: type[BaseException]) -> None:
    """Have an exception raised in a thread at its next bytecode."""
    import ctypes  # late: only interrupted threads need it

    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))


def _trimmed(error: BaseException) -> BaseException:
    """Return the exception with its traceback beginning in the user's code, if it ever
    came to that."""
    traceback = error.__traceback__
    while traceback is not None and _is_ours(traceback.tb_frame.f_globals):
        traceback = traceback.tb_next
    return error if traceback is None else error.with_traceback(traceback)


def _is_ours(scope: Mapping[str, Any]) -> bool:
    return str(scope.get("__name__")).startswith("liteq.")
