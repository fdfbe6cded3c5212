"""Running calls in the test's own thread: one of them, or all that are due."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, TypeVar, cast
from weakref import WeakSet

from liteq import states
from liteq.clock import Clock, ManualClock
from liteq.current import get_current_app
from liteq.delivery import Delivery
from liteq.exceptions import LiteqError, TaskRevokedError
from liteq.executor import Executor, TaskLike
from liteq.inline import InlineWorker, Ran, attempt_with
from liteq.limits import limits_by_task
from liteq.outcome import Failed, Ignored, Replaced, Retried, Revoked, Succeeded
from liteq.serializers import loads, loads_call
from liteq.task import Task
from liteq.workers.pool import executor_settings

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.brokers.values import Said

__all__ = [
    "MAX_TASKS",
    "DrainLimitExceeded",
    "TaskRun",
    "drain",
    "drain_app",
    "end_of",
    "moment_of",
    "perform",
    "prepare",
]

P = ParamSpec("P")
R = TypeVar("R")

MAX_TASKS: Final = 10_000

_HOSTNAME: Final = "inline"
_STATES: Final[dict[type[Any], str]] = {
    Succeeded: states.SUCCESS,
    Failed: states.FAILURE,
    Retried: states.RETRY,
    Revoked: states.REVOKED,
    Ignored: states.IGNORED,
    Replaced: "REPLACED",
}

_prepared: WeakSet[Liteq] = WeakSet()  # apps whose modules have been imported


class DrainLimitExceeded(LiteqError):
    """More tasks came due in one `drain()` than it was allowed to run."""


class TaskRun(NamedTuple):
    """One attempt that `drain()` made.

    `state`: SUCCESS, FAILURE, RETRY, IGNORED, REVOKED, or REPLACED (by `self.replace`).
    `result` is the value that the task returned, `exception` what it ended with. `args`
    and `kwargs` are those of the call, without what a chain or chord put before them.
    `at`: when it ran, by the app's clock. `retries`: how often it had been retried before.
    """

    task: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    state: str
    result: Any
    exception: BaseException | None
    queue: str
    retries: int
    at: datetime
    id: str


def drain(
    queue: str | Sequence[str] | None = None,
    *,
    with_scheduled: bool = False,
    until: datetime | timedelta | None = None,
    max_tasks: int = MAX_TASKS,
    raises: bool = False,
    app: Liteq | None = None,
) -> list[TaskRun]:
    """Run what is due, and what comes due of it, in this thread; return what ran, in order.

    Everything is as in a worker: the serializer, hooks, retries, chords, links. `queue`: a
    name, or several; None for all of them. What is due later stays, unless `with_scheduled`
    (the clock is moved to each time at which something is due, until nothing is left) or
    `until` (the same up to a time, a naive one in the app's zone, or for so long; the clock
    then stands there). A task that fails is among what is returned; with `raises` its
    exception is raised at once, and what is left stays. Calls of tasks that this process does
    not know stay, too.

    Raises `DrainLimitExceeded` after `max_tasks` attempts, and `ValueError` if the clock is
    to move and is not one that can be moved.
    """
    app = app or get_current_app()
    end = end_of(app, until, with_scheduled=with_scheduled)
    return drain_app(app, queue, end=end, max_tasks=max_tasks, raises=raises)


def end_of(
    app: Liteq, until: datetime | timedelta | None, *, with_scheduled: bool
) -> float | None:
    """Return the instant up to which the clock is to be moved (Unix seconds; infinity:
    until nothing is left); None to leave it. Raises `ValueError` if that cannot be."""
    if until is None and not with_scheduled:
        return None
    clock = app.clock if isinstance(app.clock, ManualClock) else None
    if clock is None:
        raise ValueError(
            "drain() runs what is scheduled for later only where the clock can be moved: "
            "inside `with liteq.testing.inline(app):`"
        )
    if until is None:
        return math.inf
    end = moment_of(app, until)
    if end < clock.now():
        raise ValueError(f"drain(until={until}) has passed: it is {app.now()}")
    return end


def drain_app(
    app: Liteq,
    queue: str | Sequence[str] | None,
    *,
    end: float | None,
    max_tasks: int,
    raises: bool,
    beat: Callable[[], float | None] | None = None,
) -> list[TaskRun]:
    """Run what is due, up to what `end_of()` returned. `beat()` fires the periodic entries
    that are due and returns when the next is."""
    queues = _queues(queue)
    prepare(app)
    runs: list[TaskRun] = []
    app.broker.declare_limits(limits_by_task(app.tasks))
    with InlineWorker(
        app.broker,
        attempt_with(_executor(app)),
        queues=queues,
        tasks=frozenset(app.tasks),
        name=_HOSTNAME,
    ) as worker:
        for ran in _running(worker, app.clock, end, beat):
            run = _run(app, ran)
            runs.append(run)
            if raises and run.state == states.FAILURE and run.exception is not None:
                raise run.exception
            if len(runs) > max_tasks or (len(runs) == max_tasks and _is_more(worker, end)):
                raise DrainLimitExceeded(_too_many(runs))
    while app.broker.maintain():
        pass
    return runs


def _is_more(worker: InlineWorker, end: float | None) -> bool:
    """Tell whether something is to run now, or will be by then."""
    if worker.is_due():
        return True
    due = worker.next_due()
    return end is not None and due is not None and due <= end


def _queues(given: Any) -> Sequence[str] | None:
    """Return which queues are meant. Raises `TypeError` for what are no names."""
    if given is None:
        return None
    names = (given,) if isinstance(given, str) else given
    if not (isinstance(names, Iterable) and all(isinstance(name, str) for name in names)):
        raise TypeError(f"drain() takes the name of a queue, or several, not {given!r}")
    return tuple(names)


def _running(
    worker: InlineWorker,
    clock: Clock,
    end: float | None,
    beat: Callable[[], float | None] | None,
) -> Iterator[Ran]:
    if not isinstance(clock, ManualClock) or (end is None and beat is None):
        return worker.run_due()
    moment = clock.now() if end is None else None if end == math.inf else end
    return worker.run_until(moment, clock.move_to, beat or (lambda: None))


def perform(task: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Make one attempt of a task here, as a worker would, and return its result.

    Arguments and result go through the serializer; hooks and signals are called; what the
    task calls is enqueued. The call itself is in no queue, and nothing follows it. Raises
    what the attempt ended with: the task's exception, `Retry`, `Ignore`, `Reject`.
    """
    __tracebackhide__ = True
    if not isinstance(task, Task):
        raise TypeError(f"perform() takes a task, and then its arguments, not {task!r}")
    app = task.app
    prepare(app)
    message, *_ = app.sender.compose(task.s(*args, **kwargs)).messages
    [message] = app.sender.ready([message])
    ended = _executor(app).attempt(Delivery(message), _unheard)
    match ended.outcome:
        case Succeeded(result=bytes(data)):
            if app.signer is not None:
                data = app.signer.open(data, message.id)
            kind = app.conf.result_serializer
            result: R = loads(data, kind, (kind,), app.cipher)
            return result
        case Succeeded():
            return cast("R", ended.value)
        case Revoked(reason=reason):
            raise TaskRevokedError(reason)
        case outcome:
            raise ended.exc or LiteqError(f"the attempt ended as {outcome!r}")


def moment_of(app: Liteq, given: datetime | timedelta) -> float:
    """Return an instant, or the end of a span from now, as Unix seconds."""
    if not isinstance(given, (datetime, timedelta)):
        raise TypeError(f"a time must be a datetime, or a timedelta from now, not {given!r}")
    if isinstance(given, timedelta):
        return app.clock.now() + given.total_seconds()
    if given.tzinfo is None:
        given = given.replace(tzinfo=app.timezone)
    return given.timestamp()


def prepare(app: Liteq) -> None:
    """Have the app know what a worker of it would know, once."""
    if app not in _prepared:
        app.finalize()
        app.import_default_modules()
        _prepared.add(app)


def _executor(app: Liteq) -> Executor:
    tasks = cast("Mapping[str, TaskLike]", app.tasks)
    return Executor(tasks, executor_settings(app, _HOSTNAME, interruptible=True))


def _run(app: Liteq, ran: Ran) -> TaskRun:
    message = ran.lease.message
    outcome, exception = ran.ended.outcome, ran.ended.exc
    try:
        args, kwargs = loads_call(
            message.body, message.content_type, app.conf.accept_content, app.cipher
        )
    except Exception as exc:  # noqa: BLE001 (pickle may raise anything; it has failed by that)
        args, kwargs, exception = (), {}, exc
    if isinstance(outcome, Revoked):
        exception = TaskRevokedError(outcome.reason)
    return TaskRun(
        task=message.task,
        args=args,
        kwargs=kwargs,
        state=_STATES[type(outcome)],
        result=ran.ended.value,
        exception=exception,
        queue=message.queue,
        retries=message.retries,
        at=datetime.fromtimestamp(ran.at, app.timezone),
        id=message.id,
    )


def _too_many(runs: list[TaskRun]) -> str:
    often = Counter(run.task for run in runs).most_common(3)
    names = ", ".join(f"{name} {count} times" for name, count in often)
    return (
        f"drain() has run {len(runs)} tasks and more are due ({names}): do they call one "
        "another for ever? drain(max_tasks=…) allows more"
    )


def _unheard(said: Said) -> bool:
    """Take what a task says about itself, where it is in no store."""
    return False
