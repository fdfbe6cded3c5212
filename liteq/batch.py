"""One run of a task for many calls: as many attempts, and one body.

Each call has its own hooks, signals, log line and outcome, in the order that
`liteq.executor` tells, but for the body: that is run once, when all of them have begun.
To the function it is a plain call: `self.request` is that of none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, Final, TypeAlias, TypeVar

from liteq import context
from liteq.body import Body, is_coroutine
from liteq.brokers.values import Said
from liteq.delivery import Delivery
from liteq.einfo import ExceptionInfo
from liteq.exceptions import SoftTimeLimitExceeded
from liteq.executor import Attempt, Ended, Executor
from liteq.failure import ERROR_TEXT_LIMIT
from liteq.flushing import endings
from liteq.outcome import Outcome
from liteq.redaction import hide

__all__ = ["Report", "Run", "arun", "run"]

T = TypeVar("T")

_MOST_TEXT: Final = 100 * ERROR_TEXT_LIMIT  # characters that the errors of a run have together
_LEAST_TEXT: Final = 2_000  # and each of them, however many there are

Report: TypeAlias = Callable[[int, Said], bool]  # takes which call it is about


def run(
    executor: Executor, deliveries: Sequence[Delivery], report: Report, body: Body
) -> list[Outcome]:
    """Run these deliveries of one task together; return their outcomes, in their order.
    Never raises."""
    batch = _Batch(executor, deliveries, report)
    if batch.begin():
        value, error = body.call(batch.work, (), {})
        if is_coroutine(value):
            value, error = body.run(value)
        try:
            batch.end(value, error)
        finally:
            del error  # it holds this frame, which would hold it: see `Body.call`
    return batch.outcomes()


async def arun(
    executor: Executor, deliveries: Sequence[Delivery], report: Report, body: Body
) -> list[Outcome]:
    """Run the same as a part of the current asyncio task. Raises `CancelledError`, and has no
    outcomes, if that is cancelled."""
    batch = _Batch(executor, deliveries, report)
    if batch.begin():
        value, error = body.call(batch.work, (), {})
        if is_coroutine(value):
            value, error = await body.arun(value)
        try:
            batch.end(value, error)
        finally:
            del error  # it holds this frame, which would hold it: see `Body.call`
    return batch.outcomes()


class Run:
    """What the attempts of one run share. Its function may say of each call what is secret in
    another, so the secrets of all are hidden from what is said of any; and what all of them
    end with is described and logged once.

    `calls`: the requests, in their order. A receiver of signals may set attributes.
    """

    def __init__(self, attempts: Sequence[Attempt]) -> None:
        self.calls = [one.context for one in attempts]
        self._attempts: Sequence[Attempt] = attempts
        self._told: dict[int, ExceptionInfo] = {}  # by the exception's id, while it is held
        self._logged: set[int] = set()
        self._hidden: dict[str, str] = {}

    @cached_property
    def secrets(self) -> list[str]:
        found = set[str]().union(*(one.own_secrets() for one in self._attempts))
        return sorted(found, key=len, reverse=True)  # the order in which they are hidden

    def hidden(self, text: str) -> str:
        shown = self._hidden.get(text)
        if shown is None:
            shown = self._hidden[text] = hide(text, self.secrets)
        return shown

    def einfo(self, exc: BaseException) -> ExceptionInfo:
        found = self._told.get(id(exc))
        if found is None:
            redactor = self._attempts[0].settings.redactor
            limit = max(_LEAST_TEXT, _MOST_TEXT // len(self._attempts))
            found = ExceptionInfo(exc, self.secrets, redactor, min(limit, ERROR_TEXT_LIMIT))
            self._told[id(exc)] = found
        return found

    def is_new(self, exc: BaseException) -> bool:
        """Tell whether an exception that was described is asked about for the first time."""
        is_new = id(exc) not in self._logged
        self._logged.add(id(exc))
        return is_new

    def forget(self) -> None:
        """Let go of all, which holds this."""
        self.calls, self._attempts = [], []
        self._told.clear()


class _Batch:
    """The attempts of one run, on their way to their outcomes."""

    def __init__(
        self, executor: Executor, deliveries: Sequence[Delivery], report: Report
    ) -> None:
        self._found: list[Attempt | Ended] = [
            executor.prepare(delivery, partial(report, place))
            for place, delivery in enumerate(deliveries)
        ]
        ready = [one for one in self._found if isinstance(one, Attempt)]
        self._together = Run(ready)
        for attempt in ready:
            attempt.together = attempt.context.run = self._together
        self._begun: list[Attempt] = []
        # By place: not by id, for a worker that was given up may have been given one again.
        self._refused: dict[int, BaseException] = {}

    def begin(self) -> bool:
        """Begin all that can be run; tell whether there is any."""
        self._found = [
            one if isinstance(one, Ended) else _as(one, one.begin_together) or one
            for one in self._found
        ]
        self._begun = [one for one in self._found if isinstance(one, Attempt)]
        return bool(self._begun)

    def work(self) -> Any:
        """Be the body: return what the function does, a coroutine perhaps."""
        plan = self._begun[0].plan
        assert plan.many is not None  # its calls are batched
        if plan.before_start is not None:
            for place, attempt in enumerate(self._begun):
                self._before_start(place, attempt, plan.before_start)
        taken = [attempt.context for attempt in self._taken()]
        for call in taken:
            call.ending = ()
        return plan.many(taken) if taken else None

    def _before_start(self, place: int, attempt: Attempt, hook: Callable[..., Any]) -> None:
        try:
            _as(attempt, hook, attempt.id, attempt.args, attempt.kwargs)
        except SoftTimeLimitExceeded:
            raise  # it is of the whole run
        except BaseException as exc:  # noqa: BLE001 (the user's code: this call ends with it)
            self._refused[place] = exc

    def _taken(self) -> list[Attempt]:
        return [one for place, one in enumerate(self._begun) if place not in self._refused]

    def end(self, value: Any, error: BaseException | None) -> None:
        """End all that were begun, by what came of their body."""
        taken = [attempt.context for attempt in self._taken()]
        of_body = iter(endings(self._begun[0].plan.task.name, value, error, taken))
        ended = iter(
            [
                _as(attempt, attempt.end, None, self._refused[place])
                if place in self._refused
                else _as(attempt, attempt.end, *next(of_body))
                for place, attempt in enumerate(self._begun)
            ]
        )
        self._found = [next(ended) if isinstance(one, Attempt) else one for one in self._found]

    def outcomes(self) -> list[Outcome]:
        """Return how the calls ended, in their order; nothing is left here. The exceptions'
        frames hold this, and the calls: they are not to stay until garbage is looked for."""
        outcomes = [one.outcome for one in self._found if isinstance(one, Ended)]
        self._found, self._begun, self._refused = [], [], {}
        self._together.forget()
        return outcomes


def _as(attempt: Attempt, function: Callable[..., T], *given: Any) -> T:
    """Call a function as a part of this attempt."""
    token = context.push(attempt.context)
    try:
        return function(*given)
    finally:
        context.pop(token)
