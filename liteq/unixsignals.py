"""Signals of the operating system, for a loop that sleeps in a selector."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import TypeAlias

from liteq.selfpipe import SelfPipe

__all__ = ["Handler", "handling", "swallow"]

Handler: TypeAlias = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def handling(handlers: Mapping[int, Handler], *, pipe: SelfPipe) -> Iterator[None]:
    """Handle these signals meanwhile, in the main thread, and wake the loop by its pipe.

    The handlers are to set flags only: Python runs them between any two instructions of the
    loop. A process that is forked meanwhile has none of them.
    """
    old_fd = signal.set_wakeup_fd(pipe.waking, warn_on_full_buffer=False)
    _handled.update(handlers)
    old = {number: signal.signal(number, handle) for number, handle in handlers.items()}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        _handled.clear()
        signal.set_wakeup_fd(old_fd)


_handled: set[int] = set()  # the signals that a loop of this process handles


def _after_fork_in_child() -> None:
    """Let signals do in a forked process what they do by default, so that `multiprocessing`
    can end the processes that a task has started.

    The kernel does it: before a handler in Python runs, a process forked from another thread
    than the main one may wait for long (seen with Python 3.13.0). As in the children of a
    prefork pool, interrupts from a terminal are left to the worker.
    """
    if _handled:
        signal.set_wakeup_fd(-1)
    while _handled:
        number = _handled.pop()
        signal.signal(number, swallow if number == signal.SIGINT else signal.SIG_DFL)


def swallow(_number: int, _frame: FrameType | None) -> None:
    """Handle an interrupt, which programs that the process starts are then not to ignore."""


os.register_at_fork(after_in_child=_after_fork_in_child)
