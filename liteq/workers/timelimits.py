"""The time limits of the runs of a worker: the message's own, else what a command has set
for the task, else the task's, else the worker's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from liteq.brokers.values import Lease
from liteq.loggers import get_logger
from liteq.message import SOFT_TIME_LIMIT, TASK, TIME_LIMIT
from liteq.plan import is_async
from liteq.pool import Pool

__all__ = ["Limits", "TimeLimits"]

logger = get_logger("liteq.worker")

Limits: TypeAlias = tuple[float | None, float | None]  # soft and hard, in seconds


class TimeLimits:
    """`tasks` returns those that the app has now, by name; `soft` and `hard` are the worker's
    own limits in seconds. Zero is no limit, wherever one is set, as in Celery."""

    def __init__(
        self,
        tasks: Callable[[], Mapping[str, Any]],
        soft: float | None,
        hard: float | None,
    ) -> None:
        self._tasks = tasks
        self._of_worker = (soft or None, hard or None)
        self._overridden: dict[str, Limits] = {}
        self._known: dict[str, Limits] = {}

    def of(self, name: str) -> Limits:
        """Return those of a task, unless its message says otherwise."""
        found = self._known.get(name) or self._overridden.get(name)
        if found is None:
            soft, hard = self._of_worker
            task = self._tasks().get(name)
            found = self._known[name] = (
                getattr(task, "soft_time_limit", None) or soft,
                getattr(task, "time_limit", None) or hard,
            )
        return found

    def of_run(self, lease: Lease) -> Limits:
        """Return those of one run."""
        packed = lease.packed
        limits = self._known.get(packed[TASK]) or self.of(packed[TASK])
        if packed[TIME_LIMIT] is None and packed[SOFT_TIME_LIMIT] is None:
            return limits
        soft, hard = limits
        return (
            soft if packed[SOFT_TIME_LIMIT] is None else packed[SOFT_TIME_LIMIT],
            hard if packed[TIME_LIMIT] is None else packed[TIME_LIMIT],
        )

    def override(self, name: str, soft: float | None, hard: float | None) -> None:
        """Let a task have these from now on."""
        self._overridden[name] = (soft or None, hard or None)
        self._known.pop(name, None)

    def look_again(self) -> None:
        """Ask the tasks anew: there are others than before."""
        self._known.clear()

    def warn(self, pool: Pool) -> None:
        """Say which of them this pool will not keep."""
        soft, hard = [], []
        for name, task in self._tasks().items():
            limits = self.of(name)
            killable = pool.can_hard and (pool.kind != "asyncio" or is_async(task.run))
            if limits[0] is not None and not pool.can_soft:
                soft.append(name)
            if limits[1] is not None and not killable:
                hard.append(name)
        for kind, limited in (("soft", soft), ("hard", hard)):
            if limited:
                logger.warning(
                    "the %s pool cannot enforce the %s time limit of: %s. The prefork pool can",
                    pool.kind,
                    kind,
                    ", ".join(sorted(limited)),
                )
