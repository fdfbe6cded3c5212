"""Periodic tasks in tests: a beat that is woken by hand, and assertions about entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from liteq.entries import Entry
from liteq.firing import Beat
from liteq.schedules import crontab, maybe_schedule, schedule, solar
from liteq.testing.calls import app_of, name_of, shown, unlike, unlike_args, unlike_kwargs
from liteq.testing.running import prepare

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.task import Task

__all__ = ["BeatByHand", "assert_scheduled"]

_FAR: Final = 1e9  # seconds: no entry that matters to a test is further away


class BeatByHand:
    """A beat of a store in memory, running since an instant (Unix seconds) although it
    acts only when it is told."""

    def __init__(self, app: Liteq, since: float) -> None:
        prepare(app)
        self._app = app
        self._beat = Beat(app, name="inline", max_interval=_FAR)
        self._beat.start(since)

    def fire(self) -> float | None:
        """Fire what is due, and return when the next entry is, Unix seconds."""
        self._beat.wake()  # entries may have been added or changed
        while not (wait := self._beat.tick()):
            pass
        return self._app.clock.now() + wait if wait < _FAR else None


def assert_scheduled(
    entry: Task[..., Any] | str,
    *,
    every: float | timedelta | None = None,
    at: Any = None,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    app: Liteq | None = None,
) -> list[Entry]:
    """Fail unless there is such a periodic entry, declared in code or in the store; return
    those that there are.

    `entry`: its name, or the task that it calls. `every`: its interval, in seconds. `at`: a
    cron expression, whatever the zone, or a schedule such as `crontab(…)`. What is not
    given may be anything. Raises `AssertionError`, which shows the entries that there are,
    and `ScheduleError` if one that is declared is invalid.
    """
    __tracebackhide__ = True
    if every is not None and at is not None:
        raise TypeError("assert_scheduled() takes every=… or at=…, not both")
    name = name_of(entry) or ""
    found_app = app_of(entry, app)
    prepare(found_app)
    when = every if at is None else at
    wanted = _Wanted(
        name,
        args,
        kwargs,
        None if when is None else maybe_schedule(when, app=found_app),
        in_any_zone=isinstance(at, str),
    )
    entries = _entries(found_app)
    found = [one for one in entries if not wanted.misses(one)]
    if not found:
        raise AssertionError(_nothing_like(wanted, entries))
    return found


def _entries(app: Liteq) -> list[Entry]:
    """Return what the code declares, and what is in the store beside it."""
    declared = app.schedules.declared()
    stored = [row.entry for row in app.schedules.list() if row.name not in declared]
    return [*declared.values(), *filter(None, stored)]


class _Wanted(NamedTuple):
    """What an entry is to be like. None: anything."""

    name: str  # of the entry or its task
    args: Sequence[Any] | None
    kwargs: Mapping[str, Any] | None
    schedule: Any
    in_any_zone: bool

    def misses(self, entry: Entry) -> list[tuple[str, str]]:
        """Return what about an entry is not as wanted: (which part, in which way)."""
        found: list[tuple[str, str]] = []
        if self.name not in (entry.name, entry.task):
            found.append(("entry", f"wanted {self.name}"))
        if self.schedule is not None and self._time(self.schedule) != self._time(
            entry.schedule
        ):
            found.append(("schedule", unlike(self.schedule, entry.schedule)))
        found += unlike_args(self.args, entry.args)
        found += unlike_kwargs(self.kwargs, entry.kwargs)
        return found

    def _time(self, when: Any) -> Any:
        """Return what makes two schedules the same."""
        match when:
            case schedule():
                return when.seconds
            case crontab() if self.in_any_zone:
                return when.cron
            case crontab() | solar():
                return when.spec()
        return when

    def __str__(self) -> str:
        words = [self.name]
        for name in ("schedule", "args", "kwargs"):
            value = getattr(self, name)
            if value is not None:
                words.append(f"{name}={shown(value)}")
        return " ".join(words)


def _nothing_like(wanted: _Wanted, entries: list[Entry]) -> str:
    lines = [f"no such entry is scheduled: {wanted}"]
    lines.append("There is:" if entries else "There are no periodic entries at all.")
    for entry in sorted(entries, key=lambda one: len(wanted.misses(one))):
        lines.append(f"  {entry.name!r}  {entry.call}  {entry.schedule!r}")
        lines += [f"      {part:<11} {how}" for part, how in wanted.misses(entry)]
    return "\n".join(lines)
