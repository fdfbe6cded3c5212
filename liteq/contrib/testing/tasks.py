"""The task `liteq.ping`, which Celery's `start_worker` needs (as `celery.ping`) and liteq's
does not."""

from __future__ import annotations

from liteq.app import shared_task

__all__ = ["ping"]


@shared_task(name="liteq.ping")
def ping() -> str:
    """Answer."""
    return "pong"
