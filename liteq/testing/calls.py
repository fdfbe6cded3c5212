"""What waits to be run, and assertions about it. They read the app's store, whichever it is."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from liteq.app import Liteq
from liteq.current import get_current_app
from liteq.exceptions import MessageError
from liteq.message import GATHER, TASK
from liteq.serializers import dumps_call, loads_call
from liteq.waiting import has_ended
from liteq.wording import instant

if TYPE_CHECKING:
    from liteq.brokers.values import Record, State
    from liteq.task import Task

__all__ = [
    "Enqueued",
    "all_enqueued",
    "app_of",
    "assert_enqueued",
    "check_app",
    "name_of",
    "refute_enqueued",
    "shown",
    "unlike",
    "unlike_args",
    "unlike_kwargs",
]

_WAITING: Final[tuple[State, ...]] = (
    "queued",
    "scheduled",
    "retrying",
    "limited",
    "parked",
    "waiting",
    "running",
)
_OVER: Final[tuple[State, ...]] = ("succeeded", "failed", "revoked", "ignored")
_ALL: Final = 1 << 31  # more than a test enqueues
_LOOKED_AT: Final = 100  # calls in each state that is over, for a failure
_SHOWN: Final = 3  # near misses in a failure
_WIDEST: Final = 200  # characters of a value in a failure
_TOLERANCE: Final = 1.0  # seconds: a clock that runs goes on between a call and its check


class Enqueued(NamedTuple):
    """A call that waits to be run, or is running. An error callback counts once there is an
    error.

    `args` and `kwargs` are what the task will be given, read from the stored bytes; what a
    chain or chord puts before them is not among them. `eta`: when it is due, in the app's
    zone; None for at once. `countdown`: the seconds from its call (or its failed attempt,
    for a retry) until then. `state` is the store's: queued, scheduled, retrying, waiting
    (for other calls), limited (by a rate, say), parked (no worker knows the task) or
    running.
    """

    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    queue: str
    priority: int
    eta: datetime | None
    countdown: float | None
    expires: datetime | None
    state: str
    retries: int
    headers: Mapping[str, Any]
    id: str

    def __str__(self) -> str:
        """Return the call as it would be written, and where and when it runs."""
        given = [*map(shown, self.args)]
        given += [f"{name}={shown(value)}" for name, value in self.kwargs.items()]
        return f"{self.task}({', '.join(given)})  {self._place()}"

    def _place(self) -> str:
        words = [f"in queue {self.queue!r}"]
        if self.state in _OVER:
            words.append(f"run already: {self.state}")
        elif self.state in ("waiting", "limited", "parked", "running"):
            words.append(self.state)
        elif self.eta is None:
            words.append("due now" if self.countdown is None else "never due")
        else:
            words.append(f"due {self.eta.isoformat(' ', 'seconds')}")
        if self.priority:
            words.append(f"priority {self.priority}")
        return ", ".join(words)


def all_enqueued(
    task: Task[..., Any] | str | None = None,
    *,
    queue: str | None = None,
    app: Liteq | None = None,
) -> list[Enqueued]:
    """Return the calls that wait to be run, the oldest first: of a task, in a queue, or all.

    `app` defaults to the task's, or the current one. Raises `DecodeError` for a call whose
    arguments cannot be read.
    """
    wanted = _Wanted(name=name_of(task), queue=queue)
    return [call for call in _calls(app_of(task, app)) if not wanted.misses(call)]


def assert_enqueued(
    task: Task[..., Any] | str,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    queue: str | None = None,
    countdown: float | None = None,
    eta: datetime | None = None,
    priority: int | None = None,
    count: int | None = None,
    app: Liteq | None = None,
) -> list[Enqueued]:
    """Fail unless a call of this task waits to be run; return those that do.

    What is not given may be anything. `args` and `kwargs` are compared whole, as they are
    once they have been through the serializer; `countdown` (seconds) and `eta` (a naive
    one is read in the app's zone) to the second. `count`: exactly so many. Raises
    `AssertionError`, which shows the calls that come nearest.
    """
    __tracebackhide__ = True
    name = name_of(task)
    found_app = app_of(task, app)
    wanted = _Wanted(
        name=name,
        args=None if args is None else tuple(args),
        kwargs=None if kwargs is None else dict(kwargs),
        queue=queue,
        countdown=countdown,
        eta=_aware(found_app, eta),
        priority=priority,
    )
    calls = _calls(found_app)
    found = [call for call in calls if not wanted.misses(call)]
    if count is not None and len(found) != count and found:
        listed = _listed(found, len(found))
        raise AssertionError(f"{len(found)} enqueued, not {count}: {wanted}\n{listed}")
    if not found and count != 0:
        raise AssertionError(_nothing_like(wanted, calls, found_app, task))
    return found


def refute_enqueued(
    task: Task[..., Any] | str | None = None,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    queue: str | None = None,
    countdown: float | None = None,
    eta: datetime | None = None,
    priority: int | None = None,
    app: Liteq | None = None,
) -> None:
    """Fail if such a call waits to be run; without any argument, if anything does.

    The arguments mean what they mean to `assert_enqueued`. It also fails for a task that
    belongs to another app: its calls are elsewhere.
    """
    __tracebackhide__ = True
    name = name_of(task)
    found_app = app_of(task, app)
    wanted = _Wanted(
        name=name,
        args=None if args is None else tuple(args),
        kwargs=None if kwargs is None else dict(kwargs),
        queue=queue,
        countdown=countdown,
        eta=_aware(found_app, eta),
        priority=priority,
    )
    found = [call for call in _calls(found_app) if not wanted.misses(call)]
    if found:
        listed = _listed(found, 10)
        raise AssertionError(f"{len(found)} enqueued, not 0: {wanted}\n{listed}")
    if wanted.name not in found_app.tasks and (stranger := _of_another(task, found_app)):
        raise AssertionError(f"this cannot be checked for {wanted}: {stranger}")


def app_of(task: Task[..., Any] | str | None, app: Liteq | None) -> Liteq:
    """Return the app that is meant: the one given, else the task's, else the current."""
    if app is not None:
        return app
    if task is None or isinstance(task, str):
        return get_current_app()
    return task.app


def name_of(task: Task[..., Any] | str | None) -> str | None:
    """Return the name of a task that is given by it or itself; None for any task. Raises
    `TypeError` for what is neither."""
    if task is None or isinstance(task, str):
        return task
    name = getattr(task, "name", None)
    if not isinstance(name, str):
        raise TypeError(f"expected a task or its name, not {task!r}")
    return name


def check_app(app: Any, where: str) -> None:
    """Raise `TypeError` for what is no app."""
    if not isinstance(app, Liteq):
        raise TypeError(f"{where}() takes an app, not {app!r}")


# What is in the store


def _calls(app: Liteq) -> list[Enqueued]:
    """Return what waits or runs, the oldest first."""
    now = app.clock.now()
    found = [
        record
        for state in _WAITING
        for record in app.broker.browse(state, limit=_ALL)
        if _is_call(record) and not has_ended(record, now)
    ]
    found.sort(key=_age)
    return [_call(app, record, now) for record in found]


def _calls_over(app: Liteq, task: str | None) -> list[Enqueued]:
    """Return some calls of a task that have ended, those that can be read."""
    found = []
    for state in _OVER:
        for record in app.broker.browse(state, limit=_LOOKED_AT):
            if record.packed[TASK] == task:
                with suppress(MessageError):
                    found.append(_call(app, record, app.clock.now()))
    return found


def _age(record: Record) -> tuple[float, str]:
    """Return what calls are sorted by. Those of one state come in the order of their making;
    among several, at one instant, their ids tell, as far as they come from a clock: what is
    random in them would put in disorder what was made while another library froze that."""
    is_uuid7 = len(record.id) == 36 and record.id[14] == "7"
    return record.enqueued_at, record.id[:18] if is_uuid7 else ""


def _is_call(record: Record) -> bool:
    """Tell whether a message is a call that will be made, if all goes well: no gather, and
    no error callback before there is an error."""
    if record.packed[TASK] == GATHER:
        return False
    return record.state != "waiting" or not record.message.errback


def _call(app: Liteq, record: Record, now: float) -> Enqueued:
    message = record.message
    args, kwargs = loads_call(
        message.body, message.content_type, app.conf.accept_content, app.cipher
    )
    countdown = message.countdown  # that of a link counts from the end of its source
    if message.run_at is not None:
        since = now if record.state == "retrying" else record.enqueued_at
        countdown = round(message.run_at - since, 3)
    return Enqueued(
        task=message.task,
        args=args,
        kwargs=kwargs,
        queue=message.queue,
        priority=message.priority,
        eta=_moment(app, message.run_at),
        countdown=countdown,
        expires=_moment(app, message.expires_at),
        state=record.state,
        retries=message.retries,
        headers=dict(message.headers or {}),
        id=record.id,
    )


def _moment(app: Liteq, at: float | None) -> datetime | None:
    return instant(at, app.timezone)


def _aware(app: Liteq, moment: datetime | None) -> datetime | None:
    if moment is None or moment.tzinfo is not None:
        return moment
    return moment.replace(tzinfo=app.timezone)


# What is wanted of it


@dataclass(frozen=True)
class _Wanted:
    """What a call is to be like. None: anything."""

    name: str | None = None
    args: tuple[Any, ...] | None = None
    kwargs: dict[str, Any] | None = None
    queue: str | None = None
    countdown: float | None = None
    eta: datetime | None = None
    priority: int | None = None

    def misses(self, call: Enqueued) -> list[tuple[str, str]]:
        """Return what about a call is not as wanted: (which part, in which way)."""
        found: list[tuple[str, str]] = []
        if self.name is not None and call.task != self.name:
            found.append(("task", f"wanted {self.name}"))
        found += unlike_args(self.args, call.args)
        found += unlike_kwargs(self.kwargs, call.kwargs)
        if self.queue is not None and call.queue != self.queue:
            found.append(("queue", unlike(self.queue, call.queue)))
        if self.countdown is not None and not _near(self.countdown, call.countdown or 0.0):
            found.append(("countdown", unlike(self.countdown, call.countdown)))
        if self.eta is not None and not (
            call.eta is not None and _near(self.eta.timestamp(), call.eta.timestamp())
        ):
            found.append(("eta", f"wanted {_time(self.eta)}, is {_time(call.eta)}"))
        if self.priority is not None and call.priority != self.priority:
            found.append(("priority", unlike(self.priority, call.priority)))
        return found

    def __str__(self) -> str:
        words = [self.name or "any task"]
        for name in ("args", "kwargs", "queue", "countdown", "eta", "priority"):
            value = getattr(self, name)
            if value is not None:
                words.append(f"{name}={_time(value) if name == 'eta' else shown(value)}")
        return " ".join(words)


def _same(wanted: tuple[Any, Any], found: tuple[Any, Any]) -> bool:
    """Tell whether arguments are equal, as they are or once serialised as the others were.
    (`mock.ANY` is equal as it is, and cannot be serialised.)"""
    if wanted == found:
        return True
    try:
        return loads_call(dumps_call(*wanted)) == found
    except MessageError:
        return False


def unlike_args(wanted: Sequence[Any] | None, found: tuple[Any, ...]) -> list[tuple[str, str]]:
    """Return which arguments differ from those wanted (None: any), and how."""
    if wanted is None or _same((tuple(wanted), {}), (found, {})):
        return []
    if len(wanted) != len(found):
        return [("args", unlike(tuple(wanted), found))]
    return [
        (f"args[{number}]", unlike(one, other))
        for number, (one, other) in enumerate(zip(wanted, found, strict=True))
        if not _same(((one,), {}), ((other,), {}))
    ]


def unlike_kwargs(
    wanted: Mapping[str, Any] | None, found: dict[str, Any]
) -> list[tuple[str, str]]:
    """Return which keyword arguments differ from those wanted (None: any), and how."""
    if wanted is None or _same(((), dict(wanted)), ((), found)):
        return []
    missing = object()
    differing: list[tuple[str, str]] = []
    for name in {**wanted, **found}:
        one, other = wanted.get(name, missing), found.get(name, missing)
        if one is missing:
            differing.append((f"{name}=", f"not wanted, is {shown(other)}"))
        elif other is missing:
            differing.append((f"{name}=", f"wanted {shown(one)}, is not given"))
        elif not _same(((one,), {}), ((other,), {})):
            differing.append((f"{name}=", unlike(one, other)))
    return differing


def _near(one: float, other: float) -> bool:
    return abs(one - other) < _TOLERANCE


# Failures


def _nothing_like(
    wanted: _Wanted, calls: list[Enqueued], app: Liteq, task: Task[..., Any] | str
) -> str:
    """Say that no call is as wanted, and which come nearest, those that ran among them."""
    parts = [f"no such call is enqueued: {wanted}"]
    candidates = calls + _calls_over(app, wanted.name)
    near = sorted((_distance(wanted, call), at) for at, call in enumerate(candidates))
    if near:
        parts.append(f"The nearest of {len(near)}:" if len(near) > _SHOWN else "There is:")
    for _, number in near[:_SHOWN]:
        parts.append(f"  {candidates[number]}")
        parts += [f"      {part:<11} {how}" for part, how in wanted.misses(candidates[number])]
    if not near:
        parts.append("Nothing at all is enqueued.")
    if wanted.name is not None and wanted.name not in app.tasks:
        close = difflib.get_close_matches(wanted.name, list(app.tasks), 1)
        meant = f": did you mean {close[0]!r}?" if close else ""
        parts.append(f"The app knows no task {wanted.name!r}{meant}")
    if stranger := _of_another(task, app):
        parts.append(stranger)
    return "\n".join(parts)


def _of_another(task: Task[..., Any] | str | None, app: Liteq) -> str | None:
    """Say that a task is another app's, if it is."""
    if task is None or isinstance(task, str) or task.app is app:
        return None
    return (
        f"{task.name} is a task of another app, {task.app!r}, whose calls are in a store "
        "of its own: use inline() on that app, or name it in the ini option liteq_app"
    )


def _distance(wanted: _Wanted, call: Enqueued) -> float:
    distance = float(len(wanted.misses(call)))
    if wanted.name is not None and call.task != wanted.name:
        alike = difflib.SequenceMatcher(None, wanted.name, call.task).ratio()
        distance += 10.0 * (1.0 - alike)
    return distance + 0.5 * (call.state in _OVER)


def _listed(calls: list[Enqueued], limit: int) -> str:
    lines = [f"  {call}" for call in calls[:limit]]
    if len(calls) > limit:
        lines.append(f"  and {len(calls) - limit} more")
    return "\n".join(lines)


def unlike(wanted: Any, found: Any) -> str:
    """Say what was wanted and what there is."""
    return f"wanted {shown(wanted)}, is {shown(found)}"


def shown(value: Any) -> str:
    """Return the repr of a value, not too long."""
    text = repr(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _time(moment: datetime | None) -> str:
    return "now" if moment is None else moment.astimezone(moment.tzinfo or UTC).isoformat(" ")
