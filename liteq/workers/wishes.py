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

__all__ = ["COLD", "WARM", "Wishes", "dump_stacks", "swallow"]

WARM: Final = 1  # let what runs end
COLD: Final = 2  # give it back


class Wishes:
    """Those for one worker. They end the sleep of its selector through `wake_up`, once they
    are open."""

    def __init__(self) -> None:
        self.stop = 0  # WARM or COLD
        self.signal = "SIGTERM"  # that asked for the stop
        self.exit_code = 0  # that the process is to end with, if nothing went wrong
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
    def by_signals(self, *, interrupts: bool = True) -> Iterator[None]:
        """Turn signals into wishes meanwhile; without `interrupts`, those are for somebody
        else in the terminal, and swallowed.

        The handlers set flags only: Python runs them between any two instructions of the
        loop. The wake-up descriptor ends the selector's sleep. A process that a task forks
        in this one is no worker, and has none of them.
        """
        handlers: dict[int, Callable[[int, FrameType | None], None]] = {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop if interrupts else swallow,
            signal.SIGQUIT: partial(self._on_stop, cold=True),
            signal.SIGHUP: self._on_hang_up,
            signal.SIGUSR1: self._on_dump,
        }
        assert self._wake is not None
        self._wake.setblocking(False)
        old_fd = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        _taken.update(handlers)
        old = {number: signal.signal(number, handle) for number, handle in handlers.items()}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            _taken.clear()
            signal.set_wakeup_fd(old_fd)

    def _on_stop(self, number: int, _frame: FrameType | None, *, cold: bool = False) -> None:
        self.signal = signal.Signals(number).name
        self.stop = COLD if cold or self.stop else WARM

    def _on_hang_up(self, _number: int, _frame: FrameType | None) -> None:
        self.hang_up = True

    def _on_dump(self, _number: int, _frame: FrameType | None) -> None:
        self.stacks = True


_taken: set[int] = set()  # the signals that a worker of this process handles


def _after_fork_in_child() -> None:
    """Let signals do in a forked process what they do by default, so that `multiprocessing`
    can end the processes that a task has started.

    The kernel does it: before a handler in Python runs, a process forked from another thread
    than the main one may wait for long (seen with Python 3.13.0). As in the children of a
    prefork pool, interrupts from a terminal are left to the worker.
    """
    if _taken:
        signal.set_wakeup_fd(-1)
    while _taken:
        number = _taken.pop()
        signal.signal(number, swallow if number == signal.SIGINT else signal.SIG_DFL)


def swallow(_number: int, _frame: FrameType | None) -> None:
    """Handle an interrupt, which programs that the process starts are then not to ignore."""


os.register_at_fork(after_in_child=_after_fork_in_child)


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
