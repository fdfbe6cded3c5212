"""Celery's import path for `start_worker` and its signals."""

from __future__ import annotations

from liteq.testing.workers import (
    start_worker,
    test_worker_started,
    test_worker_starting,
    test_worker_stopped,
)

__all__ = [
    "start_worker",
    "test_worker_started",
    "test_worker_starting",
    "test_worker_stopped",
]
