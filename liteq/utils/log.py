"""Celery's import path for the loggers of tasks; `liteq.log` has them."""

from __future__ import annotations

import logging

from liteq.log import get_task_logger, task_logger

__all__ = ["get_logger", "get_task_logger", "task_logger"]

get_logger = logging.getLogger
