"""A lock for threads that is handed on in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["FairLock"]


class FairLock:
    """A lock that goes to the thread that has waited longest.

    One of Python's goes to whoever asks first after its release, most often the thread that
    has just released it: of forty that take it again and again, some wait for seconds.
    """

    def __init__(self) -> None:
        self._guard = threading.RLock()  # a signal handler may come in between
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def acquire(self, timeout: float, parts: int = 1) -> float | None:
        """Wait for the lock; return for how many seconds, None if they were more than
        `timeout`.

        They are counted in so many parts: of the time for which a process was stopped, or a
        machine slept, not more than one counts.
        """
        place = self._join()
        if place is None:
            return 0.0
        waited = 0.0
        try:
            while not place.acquire(timeout=timeout / parts):
                waited += timeout / parts
                if waited >= timeout and self._leave(place):
                    return None
        except BaseException:
            if not self._leave(place):
                self.release()
            raise
        return waited

    def release(self) -> None:
        """Hand the lock on."""
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False

    def _join(self) -> threading.Lock | None:
        """Return a place in the line: a lock that is taken until our turn. None: it is ours."""
        with self._guard:
            if not self._taken:
                self._taken = True
                return None
            place = threading.Lock()
            place.acquire()
            self._waiting.append(place)
            return place

    def _leave(self, place: threading.Lock) -> bool:
        """Leave the line; False if our turn came just now."""
        with self._guard:
            if place not in self._waiting:
                return False
            self._waiting.remove(place)
            return True
