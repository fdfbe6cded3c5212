"""What time it is: the one place that reads the system's clocks.

Everything that compares times takes a `Clock` as an argument, so a test moves time
instead of sleeping. Two clocks are needed, because each lies about something:

- `now()` is wall time. People and other machines understand it, and it may step.
- `steady()` never steps and is the same for every process of this boot of this host.
  It keeps counting while the machine is suspended. Liveness is measured with it.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Protocol

__all__ = ["Clock", "FromNow", "ManualClock", "SystemClock", "system_clock"]

# CLOCK_BOOTTIME counts through a suspend and is shared by all processes of one boot;
# platforms without it (macOS) have a monotonic clock that is shared too.
_STEADY = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", 0))


class Clock(Protocol):
    """A source of time."""

    def now(self) -> float:
        """Return wall time as seconds since the Unix epoch."""
        ...

    def steady(self) -> float:
        """Return seconds that never step, the same for all processes of this boot."""
        ...


class SystemClock:
    """The clocks of the machine."""

    # No frames of Python: every call of a task asks, and every attempt.
    now = staticmethod(time.time)
    steady = staticmethod(partial(time.clock_gettime, _STEADY))


class ManualClock:
    """A clock that stands still until it is moved. Threads may share it."""

    def __init__(self, start: float) -> None:
        """`start`: Unix seconds."""
        self._lock = threading.Lock()  # two threads that move it must both be seen
        self._now = start
        self._steady = 1_000.0

    def now(self) -> float:
        return self._now

    def steady(self) -> float:
        return self._steady

    def advance(self, seconds: float) -> None:
        """Let this much time pass."""
        with self._lock:
            self._now += seconds
            self._steady += seconds

    def move_to(self, moment: float) -> None:
        """Let time pass until this instant (Unix seconds); if it has passed, do nothing."""
        with self._lock:
            passed = max(0.0, moment - self._now)
            self._now = max(self._now, moment)  # exactly: a sum would round
            self._steady += passed


system_clock = SystemClock()


class FromNow(float):
    """An instant (Unix seconds) that was said as so many `seconds` from now.

    It is the sum by the clock of whoever said it, and passes for any other instant. But a
    store whose clock is another machine's counts the seconds from when it hears of them: a
    `countdown` is as long as it was said to be, however far apart the two clocks are.
    """

    __slots__ = ("seconds",)

    seconds: float

    def __new__(cls, instant: float, seconds: float) -> FromNow:
        made = super().__new__(cls, instant)
        made.seconds = seconds
        return made

    def __getnewargs__(self) -> tuple[float, float]:  # type: ignore[override]  # pickle and copy ask
        return float(self), self.seconds
