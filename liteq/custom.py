"""Schedulers of the user's own, as Celery has them: classes that say what is due.

`liteq beat -S module:Class` (or the setting `beat_scheduler`, or the name of an entry
point in `liteq.beat_schedulers`) runs one in place of liteq's own. It keeps its entries
wherever it likes. It must itself fire each instant only once: beats that run one take turns
by the store's lease, so only one of them ticks at a time.
"""

from __future__ import annotations

import heapq
import os
import socket
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Final

from liteq.entries import BeatLazyFunc
from liteq.exceptions import ImproperlyConfigured, ScheduleError
from liteq.ids import new_token
from liteq.loggers import get_logger
from liteq.schedules import maybe_schedule, schedstate

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = ["Custom", "PersistentScheduler", "ScheduleEntry", "Scheduler", "find_scheduler"]

logger = get_logger("liteq.beat")

_LEASE: Final = 3.0  # seconds that a beat which ticks may be silent before another does
_RENEW: Final = 1.0


class ScheduleEntry:
    """One entry of a `Scheduler`: what to call, when, and when it was called last."""

    name: str | None = None
    schedule: Any = None
    args: Any = None
    kwargs: Any = None
    options: Any = None
    last_run_at: Any = None
    total_run_count: int = 0

    def __init__(
        self,
        name: str | None = None,
        task: str | None = None,
        last_run_at: datetime | None = None,
        total_run_count: int | None = None,
        schedule: Any = None,
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        relative: bool = False,  # noqa: FBT001, FBT002 (Celery's signature)
        app: Liteq | None = None,
    ) -> None:
        self.app = app
        self.name = name
        self.task = task
        self.args = args
        self.kwargs = dict(kwargs or {})
        self.options = dict(options or {})
        self.schedule = maybe_schedule(schedule, relative, app=app)
        self.last_run_at = last_run_at or self.default_now()
        self.total_run_count = total_run_count or 0

    def default_now(self) -> datetime:
        now: datetime = self.schedule.now() if self.schedule else self.app.now()  # type: ignore[union-attr]
        return now

    _default_now = default_now

    def next(self, last_run_at: datetime | None = None) -> ScheduleEntry:
        """Return this entry as it is after a run."""
        fields = {
            **dict(self),
            "last_run_at": last_run_at or self.default_now(),
            "total_run_count": self.total_run_count + 1,
        }
        return type(self)(**fields, app=self.app)

    __next__ = next

    def update(self, other: ScheduleEntry) -> None:
        """Take over what is to be done, but not when it was done last."""
        self.task, self.schedule = other.task, other.schedule
        self.args, self.kwargs, self.options = other.args, other.kwargs, other.options

    def is_due(self) -> tuple[bool, float]:
        """Return whether it is due, and in how many seconds to ask again."""
        due: tuple[bool, float] = self.schedule.is_due(self.last_run_at)
        return due

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for name in (
            "name",
            "task",
            "schedule",
            "args",
            "kwargs",
            "options",
            "last_run_at",
            "total_run_count",
        ):
            yield name, getattr(self, name)

    def editable_fields_equal(self, other: ScheduleEntry) -> bool:
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("task", "args", "kwargs", "options", "schedule")
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScheduleEntry) and self.editable_fields_equal(other)

    __hash__ = object.__hash__

    def __lt__(self, other: object) -> bool:
        return id(self) < id(other)  # in the heap, behind the time: any order will do

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name} {self.task} {self.schedule}>"

    def __reduce__(self) -> Any:
        return type(self), tuple(value for _, value in self._positional())

    def _positional(self) -> Iterator[tuple[str, Any]]:
        fields = dict(self)
        for name in (
            "name",
            "task",
            "last_run_at",
            "total_run_count",
            "schedule",
            "args",
            "kwargs",
            "options",
        ):
            yield name, fields[name]


class Scheduler:
    """Says what is due, and sends it; made to be subclassed, with Celery's interface.

    `setup_schedule()` is called once; `schedule` is a dictionary of entries by name;
    `tick()` sends what is due and returns the seconds until the next tick.
    """

    Entry: ClassVar[Any] = ScheduleEntry
    max_interval: float = 300.0
    sync_every: float = 180.0
    sync_every_tasks: int | None = None
    logger = logger

    def __init__(
        self,
        app: Liteq,
        schedule: dict[str, Any] | None = None,
        max_interval: float | None = None,
        Producer: Any = None,  # noqa: N803 (Celery's name)
        lazy: bool = False,  # noqa: FBT001, FBT002 (Celery's signature)
        sync_every_tasks: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.app = app
        self.data: dict[str, Any] = {} if schedule is None else schedule
        self.max_interval = max_interval or app.conf.beat_max_loop_interval or self.max_interval
        self.sync_every_tasks = sync_every_tasks or app.conf.beat_sync_every or None
        self._heap: list[tuple[float, int, Any]] | None = None
        self._old: dict[str, Any] = {}  # what the heap was made of
        self._last_sync: float | None = None
        self._tasks_since_sync = 0
        if not lazy:
            self.setup_schedule()

    # What subclasses replace

    def setup_schedule(self) -> None:
        """Load the entries."""
        self.merge_inplace(self.app.schedules.declarations())

    def get_schedule(self) -> dict[str, Any]:
        return self.data

    def set_schedule(self, schedule: dict[str, Any]) -> None:
        self.data = schedule

    @property
    def schedule(self) -> dict[str, Any]:
        """The entries by name."""
        return self.get_schedule()

    @schedule.setter
    def schedule(self, schedule: dict[str, Any]) -> None:
        self.set_schedule(schedule)

    def sync(self) -> None:
        """Write the entries down, if they are kept anywhere."""

    def close(self) -> None:
        self.sync()

    @property
    def info(self) -> str:
        return ""

    # Ticking

    def tick(self) -> float:
        """Send the entry that is due next, if it is; return the seconds until it makes
        sense to tick again."""
        if self._heap is None or self._old != self.schedule:
            self._old = dict(self.schedule)
            self.populate_heap()
        if not self._heap:
            return self.max_interval
        at, order, entry = self._heap[0]
        is_due, seconds = self.is_due(entry)
        if not is_due:
            due = self._now() + (seconds or 0.0)
            if due > at:  # the schedule has changed its mind
                heapq.heapreplace(self._heap, (due, order, entry))
            return min(max(0.0, seconds or self.max_interval), self.max_interval)
        heapq.heappop(self._heap)
        following = self.reserve(entry)
        self.apply_entry(entry, producer=None)
        heapq.heappush(self._heap, (self._now() + (seconds or 0.0), order, following))
        self._old[entry.name] = following
        return 0.0

    def populate_heap(self) -> None:
        """Work out anew when each entry is due."""
        self._heap = []
        for order, entry in enumerate(self.schedule.values()):
            is_due, seconds = schedstate(*entry.is_due())
            at = self._now() + (0.0 if is_due else seconds or 0.0)
            self._heap.append((at, order, entry))
        heapq.heapify(self._heap)

    def is_due(self, entry: Any) -> tuple[bool, float]:
        due, seconds = entry.is_due()
        return bool(due), seconds

    def reserve(self, entry: Any) -> Any:
        """Enter that the entry runs now; return it as it is after that."""
        new = self.schedule[entry.name] = next(entry)
        return new

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send an entry's task. What goes wrong is logged: the others must not stop."""
        logger.info("Scheduler: Sending due task %s (%s)", entry.name, entry.task)
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except Exception:
            logger.exception("the periodic entry %r could not be sent", entry.name)

    def apply_async(
        self,
        entry: Any,
        producer: Any = None,
        advance: bool = True,  # noqa: FBT001, FBT002 (Celery's signature)
        **kwargs: Any,
    ) -> Any:
        """Send an entry's task, and return its result."""
        if advance:
            entry = self.reserve(entry)
        args = [arg() if isinstance(arg, BeatLazyFunc) else arg for arg in entry.args or ()]
        keywords = {
            name: value() if isinstance(value, BeatLazyFunc) else value
            for name, value in (entry.kwargs or {}).items()
        }
        options = dict(entry.options or {})
        options["headers"] = {**(options.get("headers") or {}), "celery_beat_task": True}
        task = self.app.tasks.get(entry.task)
        self._tasks_since_sync += 1
        try:
            if task is not None:
                return task.apply_async(args, keywords, **options)
            return self.send_task(entry.task, args, keywords, **options)
        except Exception as exc:
            raise ScheduleError(
                f"the task of the periodic entry {entry.name!r} could not be sent: {exc}"
            ) from exc
        finally:
            if self.should_sync():
                self._do_sync()

    def send_task(self, *args: Any, **kwargs: Any) -> Any:
        return self.app.send_task(*args, **kwargs)

    def should_sync(self) -> bool:
        steady = self.app.clock.steady()
        if self._last_sync is None:
            self._last_sync = steady
        late = steady - self._last_sync > self.sync_every
        most = self.sync_every_tasks
        return late or (most is not None and self._tasks_since_sync >= most)

    def _do_sync(self) -> None:
        try:
            self.sync()
        finally:
            self._last_sync = self.app.clock.steady()
            self._tasks_since_sync = 0

    # Entries

    def add(self, **kwargs: Any) -> Any:
        entry = self.Entry(app=self.app, **kwargs)
        self.schedule[entry.name] = entry
        return entry

    def _maybe_entry(self, name: str, entry: Any) -> Any:
        if isinstance(entry, self.Entry):
            entry.app = self.app
            return entry
        return self.Entry(**{"name": name, "app": self.app, **_plain(entry)})

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        self.schedule.update(
            {name: self._maybe_entry(name, entry) for name, entry in dict_.items()}
        )

    def install_default_entries(self, data: Mapping[str, Any]) -> None:
        """Celery adds its clean-up of results here; liteq's workers do that themselves."""

    def merge_inplace(self, b: Mapping[str, Any]) -> None:
        """Replace the entries by these, keeping the runs of those that are there already."""
        schedule = self.schedule
        for name in set(schedule) - set(b):
            del schedule[name]
        for name, given in b.items():
            entry = self._maybe_entry(name, given)
            if name in schedule:
                schedule[name].update(entry)
            else:
                schedule[name] = entry

    def _now(self) -> float:
        return self.app.clock.steady()


class PersistentScheduler(Scheduler):
    """Celery's default, which keeps its entries in a file. Named as the scheduler it means
    liteq's own, which keeps them in the store."""


class Custom:
    """Ticks a scheduler of the user's while this beat has the store's lease."""

    def __init__(self, app: Liteq, kind: Any, *, max_interval: float | None = None) -> None:
        self._app = app
        self._kind = kind
        self._max_interval = max_interval
        self._name = f"{socket.gethostname()}:{os.getpid()}:{new_token():x}"
        self._due = 0.0  # steady: when the scheduler wants to tick
        self._leads = False
        self.scheduler: Any = None

    def start(self) -> None:
        self._app.finalize()
        self.scheduler = self._kind(app=self._app, max_interval=self._max_interval)

    def tick(self) -> float:
        """Tick if it is time and nobody else does; return the seconds to wait."""
        clock = self._app.broker.clock
        self._leads = self._app.broker.lead(self._name, clock.now() + _LEASE)
        if not self._leads:
            return _RENEW
        if clock.steady() >= self._due:
            self._due = clock.steady() + max(0.0, float(self.scheduler.tick()))
        return min(_RENEW, max(0.0, self._due - clock.steady()))

    def wake(self) -> None:
        """Nothing in the store changes what such a scheduler does."""

    def close(self) -> None:
        if self.scheduler is not None:
            self.scheduler.close()
        if self._leads:
            self._app.broker.unlead(self._name)


def find_scheduler(app: Liteq, given: Any) -> Any:
    """Return the scheduler class that is asked for, None for liteq's own.

    Raises `ImproperlyConfigured` if there is none of that name.
    """
    if given is None or given in ("", "default"):
        return None
    kind = _named(given) if isinstance(given, str) else given
    if kind in (Scheduler, PersistentScheduler):
        return None
    if not callable(kind) or not callable(getattr(kind, "tick", None)):
        raise ImproperlyConfigured(
            f"the scheduler {given!r} is not a class with tick(): subclass liteq.beat.Scheduler"
        )
    return kind


def _named(name: str) -> Any:
    from importlib.metadata import entry_points  # late: 10 ms, and few name a scheduler

    for point in entry_points(group="liteq.beat_schedulers"):
        if point.name == name:
            return point.load()
    if name.partition(":")[0] in ("celery.beat", "celery.beat.PersistentScheduler"):
        return PersistentScheduler
    module, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ImproperlyConfigured(
            f"there is no scheduler {name!r} ({exc}): expected module:Class, or the name of an "
            "entry point in liteq.beat_schedulers"
        ) from exc


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of `beat_schedule` as the arguments of an Entry."""
    found = dict(entry)
    for ours in ("catch_up", "overlap"):
        found.pop(ours, None)
    if (zone := found.pop("tz", None)) is not None:
        relative = bool(found.get("relative"))
        found["schedule"] = maybe_schedule(found.get("schedule"), relative, tz=zone)
    task = found.get("task")
    if not isinstance(task, str):
        found["task"] = getattr(task, "name", task)
    return found
