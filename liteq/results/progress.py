"""How far a task has come: what it said itself, and the attempts that are behind it."""

from datetime import datetime
from typing import NamedTuple

__all__ = ["PastAttempt", "Progress"]


class Progress(NamedTuple):
    """How far a task says it is: what `self.progress(done, total, message)` reported."""

    done: float
    total: float | None = None
    message: str | None = None

    @property
    def fraction(self) -> float | None:
        """The part that is done, from 0 to 1; None while the total is unknown."""
        return self.done / self.total if self.total else None


class PastAttempt(NamedTuple):
    """One attempt of a task that did not succeed. Times are UTC; None for one that is damaged
    in the store."""

    number: int
    outcome: str
    exception: BaseException | None
    traceback: str | None
    worker: str | None
    started_at: datetime | None
    ended_at: datetime | None
