"""Whether a task that failed runs again, and when: the arithmetic of retries.

Nothing here reads a clock or keeps state. `Task.retry()` and the executor bring the
numbers and act on the answer. The rules are Celery's (`Task.retry`, `autoretry_for`), but
that `Reject` is never retried automatically: it steers, as `Ignore` and `Retry` do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from liteq.exceptions import MaxRetriesExceededError, TaskPredicate
from liteq.ids import new_token

__all__ = ["RetryPolicy", "backoff", "below", "exhausted", "give_up", "run_at"]

_MOST_DOUBLINGS: Final = 64  # 2**64 s is for ever; an endless retry must not grow an integer


class RetryPolicy(NamedTuple):
    """The retry options of one task, under Celery's names. Durations are seconds.

    `max_retries` None means without end. `retry_backoff` True counts as the factor 1.
    """

    max_retries: int | None = 3
    default_retry_delay: float = 180.0
    autoretry_for: tuple[type[BaseException], ...] = ()
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    retry_kwargs: Mapping[str, Any] = MappingProxyType({})
    retry_backoff: bool | float = False
    retry_backoff_max: float = 600.0
    retry_jitter: bool = True

    def catches(self, exc: BaseException) -> bool:
        """Tell whether this exception, raised by the task, retries it by itself."""
        if not self.autoretry_for or isinstance(exc, TaskPredicate):
            return False
        if isinstance(exc, self.dont_autoretry_for):
            return False
        return isinstance(exc, self.autoretry_for)

    def options(
        self, retries: int, random: Callable[[int], int] | None = None
    ) -> dict[str, Any]:
        """Return the keywords for the `Task.retry()` of an automatic retry.

        These are `retry_kwargs`, with a `countdown` if there is a back-off. `retries` is
        how often the task has been retried already.
        """
        options = dict(self.retry_kwargs)
        if self.retry_backoff:
            options["countdown"] = backoff(
                retries,
                factor=self.retry_backoff,
                maximum=self.retry_backoff_max,
                jitter=self.retry_jitter,
                random=random,
            )
        return options


def backoff(
    retries: int,
    *,
    factor: float = 1,
    maximum: float | None = 600,
    jitter: bool = True,
    random: Callable[[int], int] | None = None,
) -> int:
    """Return how many seconds to wait before retry number `retries` (from 0).

    It is factor · 2^retries, at most `maximum`; with jitter a random integer from 0 to
    that, both included, so that tasks which failed together do not come back together.
    The factor counts as a whole number, at least 1. `random(n)` returns an integer in
    [0, n).
    """
    seconds = int(max(1, factor)) << min(max(0, retries), _MOST_DOUBLINGS)
    if maximum is not None:
        seconds = max(0, min(int(maximum), seconds))
    return (random or below)(seconds + 1) if jitter else seconds


def below(limit: int) -> int:
    """Return a random integer in [0, limit), made from the kernel's randomness."""
    return new_token() % limit


def exhausted(retries: int, max_retries: int | None) -> bool:
    """Tell whether a task that was retried `retries` times may not be retried again."""
    return max_retries is not None and retries >= max_retries


def run_at(
    now: float,
    *,
    countdown: float | None = None,
    eta: datetime | float | None = None,
    default: float = 180.0,
) -> float:
    """Return when the next attempt is due, in Unix seconds, never before `now`.

    A countdown (seconds) wins over an `eta` (an aware datetime or Unix seconds), a
    countdown of 0 means at once, and with neither it is `default` seconds from now.
    Raises `ValueError` for a naive datetime, whose zone only the caller can know.
    """
    if countdown:
        return now + max(0.0, countdown)
    if eta is None:
        return now + (default if countdown is None else 0.0)
    if isinstance(eta, datetime):
        if eta.tzinfo is None:
            raise ValueError(f"eta {eta.isoformat()} is naive: give it a time zone")
        eta = eta.timestamp()
    return max(now, eta)


def give_up(
    exc: BaseException | None,
    *,
    name: str,
    id: str,
    args: Any = (),
    kwargs: Any = None,
) -> BaseException:
    """Return what the task fails with when its retries are used up.

    That is the exception it was to be retried for, or `MaxRetriesExceededError`, whose
    message names the task but not its arguments: they may hold secrets.
    """
    if exc is not None:
        return exc
    return MaxRetriesExceededError(
        f"cannot retry {name}[{id}]: max_retries is used up",
        task_args=args,
        task_kwargs=kwargs,
    )
