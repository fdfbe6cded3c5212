"""The periodic entries of an app: those that its code declares, and those in the store.

What code declares (`beat_schedule`, `add_periodic_task`) is brought into the store when
a beat starts: new entries are added, changed ones changed, those that are gone removed.
Entries made at run time are left alone. Whatever is written here wakes all beats.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, Final

from liteq import entries
from liteq.brokers.values import Schedule
from liteq.entries import CatchUp, Entry, Overlap
from liteq.exceptions import DecodeError, ImproperlyConfigured, ScheduleError, ScheduleNotFound
from liteq.loggers import get_logger
from liteq.redaction import HIDDEN
from liteq.result import AsyncResult
from liteq.schedules import changed, maybe_schedule
from liteq.wording import instant

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = ["PeriodicEntry", "Schedules"]

logger = get_logger("liteq.beat")

_OWN_OPTIONS: Final = ("catch_up", "overlap", "relative", "tz")
_TIMING: Final = ("schedule", "tz", "relative")


@dataclass(frozen=True)
class PeriodicEntry:
    """A periodic entry as the store has it. Times are aware, in its own zone or the
    app's.

    `origin` is "code" or "runtime". `entry` is None if nothing here can read it; `error`
    then says why.
    """

    name: str
    origin: str
    paused: bool
    due_at: datetime | None
    last_run_at: datetime | None
    last_id: str | None
    total: int
    task: str
    schedule: str
    entry: Entry | None
    error: str | None = None

    def next(self, count: int = 5) -> list[datetime]:
        """Return the next instants at which it is due; at most one if the schedule is a class
        of the program's own."""
        at = self.due_at
        if at is None or self.paused:
            return []
        found = [at]
        when = self.entry.timetable if self.entry is not None else None
        while when is not None and len(found) < count:
            last = found[-1].timestamp()
            following = when.following(last, last)
            next_one = instant(following, at.tzinfo or UTC)
            if next_one is None:
                break
            found.append(next_one)
        return found[:count]


class Schedules:
    """The periodic entries of one app: `app.schedules`."""

    def __init__(self, app: Liteq) -> None:
        self._app = app
        self._declared: dict[str, Mapping[str, Any]] = {}
        self._configured: set[str] = set()  # those declared while settings were loaded
        self._refused: dict[str, ScheduleError] = {}

    # Declared in code

    def declare(self, name: str, given: Mapping[str, Any]) -> None:
        """Declare an entry, as `beat_schedule` does. Raises `ScheduleError`, which a beat
        repeats when it starts: what a signal's receiver raises may go unseen."""
        try:
            Entry.of(self._app, name, given)
            self._refuse_another(name, given)
        except ScheduleError as exc:
            self._refused[name] = exc
            raise
        self._declared[name] = given
        if self._app.configuring:
            self._configured.add(name)

    def forget_configured(self) -> None:
        """Forget what was declared by receivers of `on_after_configure`: they are about to
        be called again, for settings that may be others now."""
        for name in self._configured:
            self._declared.pop(name, None)
        self._configured.clear()
        self._refused.clear()

    def add_periodic_task(
        self,
        schedule: Any,
        sig: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        **options: Any,
    ) -> str:
        """Declare an entry; see `Liteq.add_periodic_task`."""
        name = name or repr(sig)
        given: dict[str, Any] = {"task": sig, "schedule": schedule}
        given.update({key: options.pop(key) for key in _OWN_OPTIONS if key in options})
        given.update(args=tuple(args), kwargs=dict(kwargs or {}), options=options)
        self.declare(name, given)
        return name

    def declared(self) -> dict[str, Entry]:
        """Return the entries that the code declares, checked, by name.

        Raises `ScheduleError`, which names the first invalid one.
        """
        entries, broken = self.sound()
        for error in broken.values():
            raise error
        return entries

    def sound(self) -> tuple[dict[str, Entry], dict[str, ScheduleError]]:
        """Return the valid entries that the code declares, and what is wrong with each of the
        others, by name."""
        entries: dict[str, Entry] = {}
        given = self.declarations()
        broken = dict(self._refused)
        for name, each in given.items():
            try:
                entries[name] = Entry.of(self._app, name, each).check(self._app)
            except ScheduleError as exc:
                broken[name] = exc
        return entries, broken

    def declared_once(self) -> dict[str, Mapping[str, Any]]:
        """Return what the code has declared, but for the settings, and for what receivers of
        `on_after_configure` declare each time."""
        again = self._configured
        return {name: given for name, given in self._declared.items() if name not in again}

    def declarations(self) -> dict[str, Mapping[str, Any]]:
        """Return what the code declares, as `beat_schedule` has it."""
        self._app.finalize()
        settings = self._app.conf.beat_schedule  # this loads: receivers declare theirs
        return {**settings, **self._declared}

    def reconcile(self, since: float | None = None) -> dict[str, Entry]:
        """Bring the store up to what the code declares, and return that. What is new
        counts from `since` (Unix seconds; default: now).

        An unchanged entry keeps its next instant and the record of its runs; so does one
        whose schedule has not changed. An invalid one is logged, and what the store has of
        that name stays: it stops none of the others.
        """
        app, broker = self._app, self._app.broker
        now = broker.time() if since is None else since
        declared, broken = self.sound()
        for error in broken.values():
            logger.error("%s: left out", error)
        stored = {row.name: row for row in broker.schedules()}
        for name, entry in declared.items():
            data, row = entry.dumps_declared(app.signer, app.cipher), stored.get(name)
            if row is not None and row.origin == "runtime":
                logger.warning(
                    "the periodic entry %r was made at run time and is declared in code now: "
                    "the code's takes its place",
                    name,
                )
            elif row is not None and entry.is_stored_as(row.entry, app):
                continue
            keeps_time = row is not None and _spec(row.entry) == _spec(data)
            due = row.due_at if row is not None and keeps_time else _first(entry, now)
            # Another beat that starts now may have written the same: then it stands.
            broker.put_schedule(
                Schedule(
                    name,
                    data,
                    due,
                    "code",
                    paused=row is not None and row.paused,
                    last_due_at=now if entry.timetable is None else None,
                ),
                revision=0 if row is None else row.revision,
            )
        for row in stored.values():
            if row.name in declared or row.name in broken:
                continue
            if row.origin != "code":
                self._renew(row)
            elif self._is_ours(row):
                broker.remove_schedule(row.name)
        return declared

    def _renew(self, row: Schedule) -> None:
        """Write an entry with the first of the keys, before the one it was signed or its
        secrets were encrypted with goes."""
        try:
            data = entries.renewed(row.name, row.entry, self._app)
        except DecodeError:
            return  # a beat says so when it is due
        if data != row.entry:
            self._put(row._replace(entry=data))  # else it was changed, and signed, just now

    def _is_ours(self, row: Schedule) -> bool:
        """Tell whether an entry is of this app: a store may have those of several."""
        try:
            return bool(entries.read(row.entry).get("app") == (self._app.main or ""))
        except DecodeError:
            return False

    def _refuse_another(self, name: str, given: Mapping[str, Any]) -> None:
        known = self._declared.get(name)
        if known is None:
            return
        one, other = (maybe_schedule(each["schedule"]) for each in (known, given))
        what = "another schedule" if one != other else ""
        if HIDDEN in name and known["task"] != given["task"]:  # the same for all that is hidden
            what = "other arguments"
        if what:
            raise ScheduleError(
                f"periodic entry {name!r}: there is one of that name already, with {what}: "
                "give each a name="
            )

    # At run time

    def add(
        self,
        name: str,
        task: Any,
        schedule: Any,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        tz: str | tzinfo | None = None,
        relative: bool = False,
        catch_up: CatchUp = "one",
        overlap: Overlap = "allow",
    ) -> PeriodicEntry:
        """Make an entry that all beats of the store fire from now on.

        `task` is a name, a task or a signature; `schedule` seconds, a timedelta, a cron
        expression, `crontab(…)` or `solar(…)`. Raises `ScheduleError` if anything is invalid,
        or if there is an entry of this name.
        """
        given = {
            "task": task,
            "schedule": schedule,
            "args": args,
            "kwargs": kwargs,
            "options": options,
            "tz": tz,
            "relative": relative,
            "catch_up": catch_up,
            "overlap": overlap,
        }
        entry = Entry.of(self._app, name, given).check(self._app)
        due = entry.first(self._app.broker.time())
        row = Schedule(name, self._dumps(entry), due, "runtime")
        if not self._app.broker.put_schedule(row, revision=0):
            raise ScheduleError(f"periodic entry {name!r}: there is one of that name already")
        return self.get(name)

    def update(self, name: str, **changes: Any) -> PeriodicEntry:
        """Change an entry that was made at run time; the names are those of `add()`.

        What is not named stays, as does its zone if another `schedule` has none of its own.
        A changed schedule begins anew. Raises `ScheduleNotFound`, and `ScheduleError` for an
        invalid value, a `tz` or `relative` without effect, or an entry that is declared in
        code.
        """
        while True:
            row = self._row(name)
            self._refuse_declared(row, "change")
            old = Entry.loads(name, row.entry, self._app)
            assert old is not None  # only declared ones are local
            given: dict[str, Any] = {
                "task": _task_of(old, self._app) if "task" not in changes else None,
                "schedule": self._changed_schedule(old, changes),
                "args": () if "task" in changes else old.args,
                "kwargs": {} if "task" in changes else old.kwargs,
                "options": old.options,
                "catch_up": old.catch_up,
                "overlap": old.overlap,
                **{key: value for key, value in changes.items() if key not in _TIMING},
            }
            entry = Entry.of(self._app, name, given).check(self._app)
            data = self._dumps(entry)
            due = row.due_at
            if _spec(row.entry) != _spec(data):
                due = entry.first(self._app.broker.time())
            if self._put(row._replace(entry=data, due_at=due)):
                return self.get(name)

    def pause(self, name: str) -> None:
        """Keep an entry from being fired until `resume()`, whichever beat starts. Raises
        `ScheduleNotFound`."""
        while True:
            row = self._row(name)
            if self._put(row._replace(paused=True)):  # else another process has changed it
                return

    def resume(self, name: str) -> None:
        """Fire a paused entry again, from its next instant on: what it missed meanwhile is
        not made up for. Raises `ScheduleNotFound`."""
        while True:
            row = self._row(name)
            if not row.paused:
                return
            if self._put(row._replace(paused=False, due_at=self._due_after_pause(row))):
                return

    def remove(self, name: str) -> None:
        """Delete an entry that was made at run time. Raises `ScheduleNotFound`, and
        `ScheduleError` for one that is declared in code."""
        self._refuse_declared(self._row(name), "remove")
        self._app.broker.remove_schedule(name)

    def run_now(self, name: str) -> AsyncResult[Any]:
        """Send what an entry sends, now and once; its instants stay as they are. Raises
        `ScheduleNotFound`, and `ScheduleError` for an entry that this program cannot
        read."""
        row = self._row(name)
        entry = self._entry(row)
        if entry is None:
            raise ScheduleError(
                f"periodic entry {name!r}: only the app that declares it can send it"
            )
        result: AsyncResult[Any] = self._app.sender.call_composed(
            entry.compose(self._app, self._app.clock.now())
        )
        return result

    def get(self, name: str) -> PeriodicEntry:
        """Return an entry by its name. Raises `ScheduleNotFound`."""
        return self._shown(self._row(name))

    def list(self, names: Sequence[str] | None = None) -> list[PeriodicEntry]:
        """Return all entries of the store, or those of these names that exist, by name."""
        return [self._shown(row) for row in self._app.broker.schedules(names)]

    def names(self) -> builtins.list[str]:
        """Return the names of all entries of the store, in order."""
        return self._app.broker.schedule_names()

    # Inside

    def _row(self, name: str) -> Schedule:
        for row in self._app.broker.schedules([name]):
            return row
        known = ", ".join(map(repr, self._app.broker.schedule_names()[:20])) or "none"
        raise ScheduleNotFound(f"there is no periodic entry {name!r} (there are: {known})")

    def _put(self, row: Schedule) -> bool:
        return self._app.broker.put_schedule(row, revision=row.revision)

    def _entry(self, row: Schedule) -> Entry | None:
        """Return a stored entry; a local one as this app declares it, or None."""
        entry = Entry.loads(row.name, row.entry, self._app)
        return self._local(row) if entry is None else entry

    def _local(self, row: Schedule) -> Entry | None:
        own = self.sound()[0].get(row.name)
        return own if own is not None and own.is_stored_as(row.entry, self._app) else None

    def _due_after_pause(self, row: Schedule) -> float | None:
        entry, now = self._entry(row), self._app.broker.time()
        if entry is None:
            return row.due_at
        if entry.timetable is None or row.due_at is None:
            return _first(entry, now)
        return row.due_at if row.due_at > now else entry.timetable.following(row.due_at, now)

    def _changed_schedule(self, old: Entry, changes: Mapping[str, Any]) -> Any:
        assert old.timetable is not None  # only declared ones have another
        try:
            return changed(old.timetable.spec(), changes, self._app)
        except (ValueError, TypeError, ImproperlyConfigured) as exc:
            raise ScheduleError(f"periodic entry {old.name!r}: {exc}") from exc

    def _dumps(self, entry: Entry) -> bytes:
        try:
            return entry.dumps(self._app.signer, self._app.cipher)
        except (ValueError, TypeError) as exc:
            raise ScheduleError(f"periodic entry {entry.name!r}: {exc}") from exc

    @staticmethod
    def _refuse_declared(row: Schedule, what: str) -> None:
        if row.origin == "code":
            raise ScheduleError(
                f"periodic entry {row.name!r}: it is declared in code, {what} it there (or "
                "pause it)"
            )

    def _shown(self, row: Schedule) -> PeriodicEntry:
        zone, entry, error = self._app.timezone, None, None

        task = schedule = "?"
        try:
            fields = entries.read(row.entry)
            task, schedule = fields["task"], _words(fields["schedule"])
            entry = Entry.loads(row.name, row.entry, self._app)
            if entry is not None:
                zone = entry.schedule.tz
        except (DecodeError, ValueError, KeyError, TypeError, ImproperlyConfigured) as exc:
            error = str(exc)
        return PeriodicEntry(
            name=row.name,
            origin=row.origin,
            paused=row.paused,
            due_at=instant(row.due_at, zone),
            last_run_at=instant(row.last_run_at, zone),
            last_id=row.last_id,
            total=row.total,
            task=task,
            schedule=schedule,
            entry=entry,
            error=error,
        )


def _task_of(entry: Entry, app: Liteq) -> Any:
    """Return what an entry calls, as `Entry.of()` takes it: unchecked, if it is no task
    of this app."""
    if entry.canvas is not None:
        return app.signature(entry.canvas)
    return entry.task if entry.task in app.tasks else app.signature(entry.task)


def _first(entry: Entry, now: float) -> float | None:
    """Return the first instant of an entry; now, at which the beat asks it again, if its
    schedule is a class of the user's that fails: the others must not stop for it."""
    try:
        return entry.first(now)
    except Exception:
        logger.exception("the schedule of the periodic entry %r failed", entry.name)
        return now


def _spec(data: bytes) -> Any:
    try:
        return entries.read(data).get("schedule")
    except DecodeError:
        return None


def _words(spec: Mapping[str, Any]) -> str:
    """Return a schedule in words."""
    match spec:
        case {"kind": "every", "seconds": float() | int() as seconds}:
            whole = timedelta(seconds=seconds)
            words = f"every {seconds:g} s" if seconds < 120 else f"every {whole}"
            if spec.get("relative"):
                words += f" relative {spec.get('tz') or ''}".rstrip()
            return words
        case {"kind": "crontab", "cron": cron, "tz": tz}:
            return f"{cron} {tz}{' dom_or_dow' if spec.get('dom_or_dow') else ''}"
        case {"kind": "solar", "event": event, "lat": lat, "lon": lon}:
            return f"{event} at {lat:g}, {lon:g}"
    return str(spec.get("repr", "?"))
