"""How many tasks the workers run a second, from what they say of themselves by and by."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from threading import Lock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from liteq.control import WorkerStatus

__all__ = ["Pace"]

SPAN: Final = 15.0  # seconds over which it is taken: heartbeats come each few seconds
_APART: Final = 0.5  # seconds between two looks that are kept


class Pace:
    """Looks at the workers, the last `SPAN` seconds of them, however many threads look.

    Workers tell with their heartbeats how many tasks they have run.
    """

    def __init__(self) -> None:
        self._looks: deque[tuple[float, dict[str, int]]] = deque()
        self._lock = Lock()

    def note(self, now: float, workers: Iterable[WorkerStatus]) -> float:
        """Keep a look of this moment (seconds of any clock that runs on); return how many
        tasks were run a second since the first that is kept: 0.0 at the first of all."""
        run = {one.name: int(one.info.details.get("processed") or 0) for one in workers}
        looks = self._looks
        with self._lock:
            if not looks or now - looks[-1][0] >= _APART:
                looks.append((now, run))
            while len(looks) > 2 and now - looks[1][0] >= SPAN:
                looks.popleft()
            began, before = looks[0]
        more = sum(max(0, run[name] - before[name]) for name in run if name in before)
        return more / (now - began) if now > began else 0.0
