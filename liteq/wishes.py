"""What the outside wants of a worker: to stop, to replace its children, to show its stacks.

Signals and other threads only set what is wanted, and the worker's loop does it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Final

from liteq.pool import Pool

__all__ = ["COLD", "WARM", "Wishes", "dump_stacks"]

WARM: Final = 1  # let what runs end
COLD: Final = 2  # give it back


class Wishes:
    """Those for one worker. They end the sleep of its selector through `wake_up`, once they
    are open."""

    def __init__(self) -> None:
        self.stop = 0  # WARM or COLD
        self.signal = "SIGTERM"  # that asked for the stop
        self.hang_up = False
        self.stacks = False
        self.wake_up: socket.socket  # to be read when it can be
        self._wake: socket.socket | None = None

    def open(self) -> None:
        self.wake_up, self._wake = socket.socketpair()

    def close(self) -> None:
        self.wake_up.close()
        self.forget()

    def forget(self) -> None:
        """Close, in a child, what the selector does not know."""
        if self._wake is not None:
            self._wake.close()

    def ask_to_stop(self, how: int) -> None:
        """Stop warm or cold. What was asked for before is not taken back."""
        self.stop = max(self.stop, how)

    def nudge(self) -> None:
        """Let the loop look, from whatever thread."""
        if self._wake is not None:
            with contextlib.suppress(OSError):  # it is over, or has been woken enough
                self._wake.send(b"!")

    @contextlib.contextmanager
    def by_signals(self) -> Iterator[None]:
        """Turn signals into wishes meanwhile.

        The handlers set flags only: Python runs them between any two instructions of the
        loop. The wake-up descriptor ends the selector's sleep. A process that a task forks
        in this one has the handlers too, and is no worker: see `_handle`.
        """
        handlers: dict[int, Callable[[int, FrameType | None], None]] = {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop,
            signal.SIGQUIT: partial(self._on_stop, cold=True),
            signal.SIGHUP: self._on_hang_up,
            signal.SIGUSR1: self._on_dump,
        }
        assert self._wake is not None
        self._wake.setblocking(False)
        old_fd = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        own = os.getpid()
        old = {
            number: signal.signal(number, partial(_handle, own, handle))
            for number, handle in handlers.items()
        }
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old_fd)

    def _on_stop(self, number: int, _frame: FrameType | None, *, cold: bool = False) -> None:
        self.signal = signal.Signals(number).name
        self.stop = COLD if cold or self.stop else WARM

    def _on_hang_up(self, _number: int, _frame: FrameType | None) -> None:
        self.hang_up = True

    def _on_dump(self, _number: int, _frame: FrameType | None) -> None:
        self.stacks = True


def _handle(
    worker: int,
    handle: Callable[[int, FrameType | None], None],
    number: int,
    frame: FrameType | None,
) -> None:
    """Handle a signal in the worker's own process; let it do in another what it does by
    default, so that `multiprocessing` can end the processes that a task has started.

    As in the children of a prefork pool, interrupts from a terminal are left to the worker.
    """
    if os.getpid() == worker:
        handle(number, frame)
    elif number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def dump_stacks(pool: Pool) -> None:
    """Write the stacks of this process and its children to standard error."""
    children = [pid for pid in pool.pids() if pid != os.getpid()]
    header = f"Stacks of worker {os.getpid()}"
    if children:
        header += f" and its children {', '.join(map(str, children))}"
    os.write(2, f"{header}\n\n".encode())
    if children:
        faulthandler.dump_traceback(file=2)  # a pool without children includes us
    pool.dump()
