"""What a worker is asked from outside: to stop, to replace its children, to show its stacks.

Signals and other threads only set what is asked for, and the worker's loop does it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
from contextlib import AbstractContextManager
from functools import partial
from types import FrameType
from typing import Final

from liteq.pool import Pool
from liteq.selfpipe import SelfPipe
from liteq.unixsignals import Handler, handling, swallow

__all__ = ["COLD", "WARM", "Requests", "dump_stacks"]

WARM: Final = 1  # let what runs end
COLD: Final = 2  # give it back


class Requests:
    """Those to one worker. They end the sleep of its selector, once they are open."""

    def __init__(self) -> None:
        self.stop = 0  # WARM or COLD
        self.signal = "SIGTERM"  # that asked for the stop
        self.exit_code = 0  # that the process is to end with, if nothing went wrong
        self.hang_up = False
        self.stacks = False
        self._pipe: SelfPipe | None = None

    def open(self) -> SelfPipe:
        """Return what is readable when something may have been asked for."""
        self._pipe = SelfPipe()
        return self._pipe

    def close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()

    def forget(self) -> None:
        """Close, in a child, what the selector does not know."""
        if self._pipe is not None:
            self._pipe.forget()

    def ask_to_stop(self, how: int) -> None:
        """Stop warm or cold. What was asked for before is not taken back."""
        self.stop = max(self.stop, how)

    def wake(self) -> None:
        """Let the loop look, from whatever thread."""
        if self._pipe is not None:
            self._pipe.wake()

    def by_signals(self, *, interrupts: bool = True) -> AbstractContextManager[None]:
        """Take signals for requests meanwhile; without `interrupts`, those are for somebody
        else in the terminal, and swallowed."""
        handlers: dict[int, Handler] = {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop if interrupts else swallow,
            signal.SIGQUIT: partial(self._on_stop, cold=True),
            signal.SIGHUP: self._on_hang_up,
            signal.SIGUSR1: self._on_dump,
        }
        assert self._pipe is not None
        return handling(handlers, pipe=self._pipe)

    def _on_stop(self, number: int, _frame: FrameType | None, *, cold: bool = False) -> None:
        self.signal = signal.Signals(number).name
        self.stop = COLD if cold or self.stop else WARM

    def _on_hang_up(self, _number: int, _frame: FrameType | None) -> None:
        self.hang_up = True

    def _on_dump(self, _number: int, _frame: FrameType | None) -> None:
        self.stacks = True


def dump_stacks(pool: Pool) -> None:
    """Write the stacks of this process and its children to standard error, as far as that
    takes them: nobody may read it any more, and the worker's loop must go on."""
    children = [pid for pid in pool.pids() if pid != os.getpid()]
    header = f"Stacks of worker {os.getpid()}"
    if children:
        header += f" and its children {', '.join(map(str, children))}"
    with contextlib.suppress(OSError):  # faulthandler raises none
        os.write(2, f"{header}\n\n".encode())
    if children:
        faulthandler.dump_traceback(file=2)  # a pool without children includes us
    pool.dump()
