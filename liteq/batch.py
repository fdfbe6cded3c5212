"""One run of a task for many calls: as many attempts, and one body.

Each call has its own hooks, signals, log line and outcome, in the order that
`liteq.executor` tells, but for the body: that is run once, when all of them have begun.
To the function it is a plain call: `self.request` is that of none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from liteq import context
from liteq.body import Body, is_coroutine
from liteq.brokers.values import Said
from liteq.delivery import Delivery
from liteq.exceptions import SoftTimeLimitExceeded
from liteq.executor import Attempt, Ended, Executor
from liteq.flushing import Ending, endings
from liteq.outcome import Outcome

__all__ = ["Report", "arun", "run"]

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
        batch.end(value, error)
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
        batch.end(value, error)
    return batch.outcomes()


class _Batch:
    """The attempts of one run, on their way to their outcomes."""

    def __init__(
        self, executor: Executor, deliveries: Sequence[Delivery], report: Report
    ) -> None:
        self._found: list[Attempt | Ended] = [
            executor.prepare(delivery, partial(report, place))
            for place, delivery in enumerate(deliveries)
        ]
        self._begun: list[Attempt] = []
        # By place: not by id, for a worker that was given up may have been given one again.
        self._refused: dict[int, BaseException] = {}

    def begin(self) -> bool:
        """Begin all that can be run; tell whether there is any."""
        self._found = [
            one if isinstance(one, Ended) else one.begin_together() or one
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
        token = context.push(attempt.context)
        try:
            hook(attempt.id, attempt.args, attempt.kwargs)
        except SoftTimeLimitExceeded:
            raise  # it is of the whole run
        except BaseException as exc:  # noqa: BLE001 (the user's code: this call ends with it)
            self._refused[place] = exc
        finally:
            context.pop(token)

    def _taken(self) -> list[Attempt]:
        return [one for place, one in enumerate(self._begun) if place not in self._refused]

    def end(self, value: Any, error: BaseException | None) -> None:
        """End all that were begun, by what came of their body."""
        taken = [attempt.context for attempt in self._taken()]
        of_body = iter(endings(self._begun[0].plan.task.name, value, error, taken))
        ended = iter(
            [
                self._end(attempt, (None, self._refused[place]))
                if place in self._refused
                else self._end(attempt, next(of_body))
                for place, attempt in enumerate(self._begun)
            ]
        )
        self._found = [next(ended) if isinstance(one, Attempt) else one for one in self._found]

    def _end(self, attempt: Attempt, ending: Ending) -> Ended:
        token = context.push(attempt.context)
        try:
            return attempt.end(*ending)
        finally:
            context.pop(token)

    def outcomes(self) -> list[Outcome]:
        return [one.outcome for one in self._found if isinstance(one, Ended)]
