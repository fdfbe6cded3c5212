"""The test mode: an app on a store in memory, and on a clock that is moved by hand."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast
from weakref import WeakKeyDictionary

from liteq.brokers.base import Broker, Mailbox
from liteq.brokers.sqlite import SqliteBroker
from liteq.brokers.values import Record
from liteq.clock import Clock, ManualClock, system_clock
from liteq.current import get_current_app
from liteq.exceptions import TimeoutError
from liteq.options import MAX_TIME, checked_seconds
from liteq.testing import calls, periodic, running
from liteq.testing.calls import Enqueued, check_app
from liteq.testing.periodic import BeatByHand
from liteq.testing.running import MAX_TASKS, TaskRun, moment_of
from liteq.waiting import has_ended

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from liteq.app import Liteq
    from liteq.entries import Entry
    from liteq.task import Task

__all__ = ["Inline", "InlineStore", "MovableClock", "inline"]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


def inline(app: Liteq | None = None, *, at: datetime | None = None) -> Inline:
    """Return the test mode of an app (default: the current one), to be used as a context,
    a decorator, or with unittest's `enterContext`.

    While it is open the app's calls are kept in memory, in all threads, and nothing runs
    until `drain()` is called. The app's clock stands still, at `at` (a naive one is read in
    the app's zone) or at the time when the context was opened. `task_always_eager` is off.
    At the end the app has its own store and clock again, which were left untouched. Nested
    modes each have a store of their own.
    """
    if app is not None:
        check_app(app, "inline")
    return Inline(app, at)


class MovableClock(ManualClock):
    """The clock of the test mode. `now()` is in Unix seconds; `app.now()` has a date."""

    def __init__(self, app: Liteq, start: float) -> None:
        super().__init__(start)
        self._app = app

    def advance(self, seconds: float | timedelta) -> None:
        """Let time pass. This runs nothing: `drain()` runs what has come due."""
        span = checked_seconds("the span of advance()", seconds)
        if span < 0:
            raise ValueError(f"time does not run backwards: advance({seconds})")
        _check_moment(f"advance({seconds})", self.now() + span)
        super().advance(span)

    def move_to(self, moment: float | datetime) -> None:
        """Let time pass until this instant: Unix seconds, or a datetime (a naive one is
        read in the app's zone). If it has passed, do nothing."""
        if isinstance(moment, datetime):
            instant = moment_of(self._app, moment)
        elif isinstance(moment, timedelta):
            raise TypeError("move_to() takes an instant: for a span use advance()")
        else:
            instant = checked_seconds("the instant of move_to()", moment)
        _check_moment(f"move_to({moment})", instant)
        super().move_to(instant)


def _check_moment(what: str, moment: float) -> None:
    if moment >= MAX_TIME:
        raise ValueError(f"{what} leads beyond the year 9999")


class InlineStore(SqliteBroker):
    """A store in memory, at which waiting is refused where it would never end."""

    def __init__(self, **options: Any) -> None:
        super().__init__(None, **options)
        self._at_work: set[int] = set()  # workers that run by themselves

    def mailbox(self, worker: int | None = None, *, beat: bool = False) -> Mailbox:
        if worker is not None:  # `drain()` needs none
            self._at_work.add(worker)
        return super().mailbox(worker, beat=beat)

    def unregister(self, worker: int) -> None:
        self._at_work.discard(worker)
        super().unregister(worker)

    def watch(
        self, ids: Sequence[str], mailbox: Mailbox, *, notes: bool = False
    ) -> dict[str, Record]:
        found = super().watch(ids, mailbox, notes=notes)
        if not self._at_work:
            now = self.clock.now()
            for id, record in self.get(ids).items():
                if id not in found and not has_ended(record, now):
                    raise TimeoutError(_never(record, now))
        return found

    def close(self) -> None:
        """Do nothing: a program that closes its app in between keeps what it has called."""

    def discard(self) -> None:
        """Give up what is in memory."""
        super().close()


def _never(record: Record, now: float) -> str:
    message = record.message
    text = (
        f"{message.task}[{record.id}] has not ended, and nothing runs by itself in test mode: "
    )
    if record.state == "running":
        return f"{text}it is running in this drain(), which cannot run anything else meanwhile"
    if message.run_at is not None and message.run_at > now:
        wait = message.run_at - now
        return f"{text}call clock.advance({wait:g}) and drain(), or drain(with_scheduled=True)"
    if record.state == "limited":
        return f"{text}a limit keeps it waiting: call drain(with_scheduled=True)"
    if record.state == "parked":
        return f"{text}its task is unknown here"
    return f"{text}call drain() first"


class Inline:
    """An app in test mode; see `inline`. What `drain()` and the assertions of this object
    do, the functions of the same name in `liteq.testing` do for a task's app."""

    def __init__(self, app: Liteq | None, at: datetime | None) -> None:
        self._given = app
        self._at = at
        self._lock = threading.Lock()  # two threads must not both open it
        self._open: _Open | None = None

    @property
    def app(self) -> Liteq:
        """The app."""
        return self._given if self._given is not None else get_current_app()

    @property
    def clock(self) -> MovableClock:
        """The app's clock. Raises `RuntimeError` outside of the context."""
        return self._opened().clock

    @property
    def store(self) -> Broker:
        """The app's store. Raises `RuntimeError` outside of the context."""
        return self._opened().store

    # Open and closed

    def __enter__(self) -> Self:
        with self._lock:
            if self._open is not None:
                raise RuntimeError("this test mode is open already: make another, inline(app)")
            self._open = _Open(self.app, self._at)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            opened, self._open = self._open, None
        if opened is not None:
            opened.close()

    def __call__(self, function: F) -> F:
        """Have a function, which may be an `async def`, run in test mode at each call."""
        if isinstance(function, type):
            raise TypeError(
                "inline(app) decorates functions: in a test class, write "
                "self.t = self.enterContext(inline(app)) into setUp()"
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                with Inline(self._given, self._at):
                    return await function(*args, **kwargs)

            return cast("F", run_async)

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with Inline(self._given, self._at):
                return function(*args, **kwargs)

        return cast("F", run)

    def _opened(self) -> _Open:
        if self._open is None:
            raise RuntimeError("the test mode is not open: use `with inline(app) as t:`")
        return self._open

    # Running

    def drain(
        self,
        queue: str | Sequence[str] | None = None,
        *,
        with_scheduled: bool = False,
        until: datetime | timedelta | None = None,
        beat: bool = False,
        max_tasks: int = MAX_TASKS,
        raises: bool = False,
    ) -> list[TaskRun]:
        """Run what is due, in this thread; see `liteq.testing.drain`.

        With `beat`, the periodic entries that are due are fired as well, at each of the
        times at which they are; that needs `until`, as it would never end.
        """
        opened = self._opened()
        if beat and with_scheduled and until is None:
            raise ValueError("drain(beat=True) needs until=…: a beat never ends")
        return running.drain_app(
            opened.app,
            queue,
            end=running.end_of(opened.app, until, with_scheduled=with_scheduled),
            max_tasks=max_tasks,
            raises=raises,
            beat=opened.beat().fire if beat else None,
        )

    def tick(self) -> list[Enqueued]:
        """Fire the periodic entries that are due, as a beat does that wakes up now; return
        what they enqueued.

        The entries that code declares count from when this mode was opened. Where the clock
        was moved over several instants of one, its `catch_up` says what becomes of them.
        """
        opened = self._opened()
        known = {call.id for call in self.all_enqueued()}
        opened.beat().fire()
        return [call for call in self.all_enqueued() if call.id not in known]

    def perform(self, task: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Make one attempt of a task here; see `liteq.testing.perform`."""
        __tracebackhide__ = True
        return running.perform(task, *args, **kwargs)

    # Looking

    def assert_scheduled(
        self,
        entry: Task[..., Any] | str,
        *,
        every: float | timedelta | None = None,
        at: Any = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[Entry]:
        """Fail unless there is such a periodic entry; see `liteq.testing.assert_scheduled`."""
        __tracebackhide__ = True
        return periodic.assert_scheduled(
            entry, every=every, at=at, args=args, kwargs=kwargs, app=self._opened().app
        )

    def all_enqueued(
        self, task: Task[..., Any] | str | None = None, *, queue: str | None = None
    ) -> list[Enqueued]:
        """Return the calls that wait to be run; see `liteq.testing.all_enqueued`."""
        return calls.all_enqueued(task, queue=queue, app=self._opened().app)

    def assert_enqueued(
        self,
        task: Task[..., Any] | str,
        *,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        queue: str | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        priority: int | None = None,
        count: int | None = None,
    ) -> list[Enqueued]:
        """Fail unless such a call waits to be run; see `liteq.testing.assert_enqueued`."""
        __tracebackhide__ = True
        return calls.assert_enqueued(
            task,
            args=args,
            kwargs=kwargs,
            queue=queue,
            countdown=countdown,
            eta=eta,
            priority=priority,
            count=count,
            app=self._opened().app,
        )

    def refute_enqueued(
        self,
        task: Task[..., Any] | str | None = None,
        *,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        queue: str | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        priority: int | None = None,
    ) -> None:
        """Fail if such a call waits to be run; see `liteq.testing.refute_enqueued`."""
        __tracebackhide__ = True
        calls.refute_enqueued(
            task,
            args=args,
            kwargs=kwargs,
            queue=queue,
            countdown=countdown,
            eta=eta,
            priority=priority,
            app=self._opened().app,
        )


# What an app had before


class _Open:
    """A test mode while it is open: the store and the clock that its app has."""

    def __init__(self, app: Liteq, at: datetime | None) -> None:
        self.app = app
        start = system_clock.now() if at is None else moment_of(app, at)
        self.clock = MovableClock(app, start)
        self._start = start
        self._beat: BeatByHand | None = None
        conf = app.conf
        self.store = InlineStore(
            clock=self.clock,
            max_deliveries=conf.task_max_deliveries,
            unknown_expires=conf.task_unknown_expires,
        )
        with _lock:
            layers = _layers.setdefault(app, _Layers(app))
            layers.put(self)

    def beat(self) -> BeatByHand:
        """Return the beat of this mode, which has been running since it was opened."""
        if self._beat is None:
            self._beat = BeatByHand(self.app, self._start)
        return self._beat

    def close(self) -> None:
        with _lock:
            layers = _layers[self.app]
            layers.take(self)
            if not layers.open:
                del _layers[self.app]
        self.store.discard()


class _Layers:
    """The test modes of one app that are open: the last one opened counts, and whichever
    is closed first, in whichever thread, the app ends up with what it had before them."""

    def __init__(self, app: Liteq) -> None:
        self.app = app
        self.open: list[_Open] = []
        self._settings = ExitStack()
        self._own: tuple[Broker | None, Clock] = (None, app.clock)

    def put(self, layer: _Open) -> None:
        before = self.app.exchange_store(layer.store, layer.clock)
        if not self.open:
            self._own = before
            if self.app.conf.task_always_eager:
                self._settings.enter_context(
                    self.app.conf.overridden({"task_always_eager": False}, "the test mode")
                )
        self.open.append(layer)

    def take(self, layer: _Open) -> None:
        self.open.remove(layer)
        if self.open:
            self.app.exchange_store(self.open[-1].store, self.open[-1].clock)
        else:
            self.app.exchange_store(*self._own)
            self._settings.close()


_lock = threading.RLock()  # two threads that open and close must each find what is so
_layers: WeakKeyDictionary[Liteq, _Layers] = WeakKeyDictionary()
