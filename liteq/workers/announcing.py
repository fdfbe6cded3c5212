"""The signals of a worker's own process, sent so that no receiver can cut a step in two.

`SystemExit`, and so `sys.exit()`, `WorkerShutdown` and `WorkerTerminate`, is an order to
stop, as in Celery: what is at hand is ended first. Anything else is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

from liteq import djangoproject
from liteq.einfo import log
from liteq.exceptions import WorkerTerminate
from liteq.loggers import get_logger
from liteq.signals import RAISED, Signal
from liteq.workers.requests import COLD, WARM, Requests

__all__ = ["Announcer"]

logger = get_logger("liteq.worker")


class Announcer:
    """Sends the signals of one worker."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def __call__(
        self,
        signal: Signal,
        sender: Any,
        *,
        secrets: Callable[[], Collection[str]] = tuple,
        **named: Any,
    ) -> None:
        """Call the receivers, and take what one of them says about the worker's end. What one
        raises is logged without the `secrets` of the call that it is told of."""

        def failed(receiver: Any, name: str, exc: BaseException) -> None:
            to = get_logger("liteq.signals")
            log(to, logging.ERROR, RAISED, (receiver, name), exc, {}, secrets())

        if not signal.receivers:
            return
        with djangoproject.fresh_connections():
            for receiver, answer in signal.deliver(sender, named, BaseException, failed):
                if isinstance(answer, SystemExit):
                    self._stop(signal, receiver, answer)

    def _stop(self, signal: Signal, receiver: Any, order: SystemExit) -> None:
        logger.warning("stopping: receiver %r of %s raised %r", receiver, signal.name, order)
        self._requests.exit_code = order.code if isinstance(order.code, int) else 0
        if order.code is not None and not isinstance(order.code, int):
            self._requests.exit_code = 1  # as Python has it: a text says why
        self._requests.ask_to_stop(COLD if isinstance(order, WorkerTerminate) else WARM)
        self._requests.wake()
