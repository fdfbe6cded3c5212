"""What time it is: the one place that reads the system's clocks.

Everything that compares times takes a `Clock` as an argument, so a test moves time
instead of sleeping. Two clocks are needed, because each lies about something:

- `now()` is wall time. People and other machines understand it, and it may step.
- `steady()` never steps and is the same for every process of this boot of this host.
  It keeps counting while the machine is suspended. Liveness is measured with it.
"""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock", "system_clock"]

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

    def now(self) -> float:
        return time.time()

    def steady(self) -> float:
        return time.clock_gettime(_STEADY)


system_clock = SystemClock()
