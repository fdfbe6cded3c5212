"""The signals of a worker's own process, sent so that no receiver can cut a step in two.

`SystemExit`, and so `sys.exit()`, `WorkerShutdown` and `WorkerTerminate`, is an order to
stop, as in Celery: what is at hand is ended first. Anything else is logged.
"""

from __future__ import annotations

from typing import Any

from liteq.exceptions import WorkerTerminate
from liteq.loggers import get_logger
from liteq.signals import Signal
from liteq.workers.wishes import COLD, WARM, Wishes

__all__ = ["Announcer"]

logger = get_logger("liteq.worker")


class Announcer:
    """Sends the signals of one worker."""

    def __init__(self, wishes: Wishes) -> None:
        self._wishes = wishes

    def __call__(self, signal: Signal, sender: Any, **named: Any) -> None:
        """Call the receivers, and take what one of them says about the worker's end."""
        for receiver, answer in signal.tell(sender, **named):
            if isinstance(answer, SystemExit):
                self._stop(signal, receiver, answer)

    def _stop(self, signal: Signal, receiver: Any, order: SystemExit) -> None:
        logger.warning("stopping: receiver %r of %s raised %r", receiver, signal.name, order)
        self._wishes.exit_code = order.code if isinstance(order.code, int) else 0
        if order.code is not None and not isinstance(order.code, int):
            self._wishes.exit_code = 1  # as Python has it: a text says why
        self._wishes.ask_to_stop(COLD if isinstance(order, WorkerTerminate) else WARM)
        self._wishes.nudge()
