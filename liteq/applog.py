"""The log of an app's workers, written as its settings say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from liteq import context, log, logfields, signals

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = ["configure"]


def configure(app: Liteq) -> bool:
    """Have this process's log written as the app's `worker_log…` settings say, unless the
    program has seen to its logging itself. Whoever writes it, each record names the task
    that runs. Returns whether the settings are kept. Raises `OSError` if the file cannot be
    written."""
    conf = app.conf
    logfields.mark(context.log_fields, always=True)
    return log.configure(
        conf.worker_log_level,
        conf.worker_logfile,
        conf.worker_log_format,
        conf.worker_log_color,
        task_format=conf.worker_task_log_format,
        datefmt=conf.worker_log_datefmt,
        task_datefmt=conf.worker_task_log_datefmt,
        signals=signals,
    )
