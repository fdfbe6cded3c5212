"""The log of an app's workers, written as its settings say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from liteq import context, log, signals

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = ["configure"]


def configure(app: Liteq) -> None:
    """Have this process's log written as the app's `worker_log…` settings say, unless the
    program has seen to its logging itself. Raises `OSError` if the file cannot be written."""
    conf = app.conf
    log.configure(
        conf.worker_log_level,
        conf.worker_logfile,
        conf.worker_log_format,
        conf.worker_log_color,
        task_format=conf.worker_task_log_format,
        datefmt=conf.worker_log_datefmt,
        task_datefmt=conf.worker_task_log_datefmt,
        context=_running_task,
        signals=signals,
    )


def _running_task() -> dict[str, Any] | None:
    """Return what the log says about the task whose code is writing to it."""
    running = context.current()
    if running is None:
        return None
    return {
        "task": running.task,
        "task_id": running.id,
        "root_id": running.root_id,
        "queue": (running.delivery_info or {}).get("routing_key"),
        "attempt": running.deliveries,
        "worker": running.hostname,
    }
