"""Where the loggers of liteq's modules come from.

What liteq logs is for those who set logging up: without the `NullHandler`, the errors of
tasks would be written to the standard error of a program that handles them.

A handler or a filter of the user's that raises must not change what becomes of a task, nor end
a worker: `logging` catches the errors of most handlers, but not of filters, nor those of a
handler whose standard error has been closed.

Nor is one switched off by `disable_existing_loggers`, which `logging.config` does by default to
all loggers that a program does not name: nobody would learn that tasks fail. Use levels,
filters and `propagate` to say what is not wanted.

Modules that every sender of calls loads import this where they log something, which is
rare: `logging` takes as long to import as a third of liteq.
"""

from __future__ import annotations

import logging
from typing import Any

from liteq.exceptions import SoftTimeLimitExceeded

__all__ = ["get_logger"]


class _Logger(logging.Logger):
    def __setattr__(self, name: str, value: Any) -> None:
        if name != "disabled":
            super().__setattr__(name, value)

    def handle(self, record: logging.LogRecord) -> None:
        try:
            super().handle(record)
        except SoftTimeLimitExceeded:
            raise  # meant for the task whose call is logged
        except Exception:  # noqa: BLE001 (the user's code)
            _tell()


def _tell() -> None:
    """Write the error of a handler to standard error, if that is possible."""
    import traceback  # late: only an error needs it

    if logging.raiseExceptions:
        try:
            traceback.print_exc()
        except (OSError, ValueError):  # it is closed as well
            return


def get_logger(name: str) -> logging.Logger:
    """Return a logger of liteq's own, which logs or fails to, and raises nothing.

    It may be there already, made by the configuration of the user, whose class of loggers
    is kept, if it is one of their own.
    """
    logger = logging.getLogger(name)
    if type(logger) is logging.Logger:
        logger.__class__ = _Logger
    return logger


logging.getLogger("liteq").addHandler(logging.NullHandler())
