"""The framework of tasks: `django.tasks`, or before Django 6.0 its backport, django-tasks."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from liteq.exceptions import ImproperlyConfigured

__all__ = [
    "BaseTaskBackend",
    "InvalidTask",
    "Task",
    "TaskContext",
    "TaskError",
    "TaskResult",
    "TaskResultDoesNotExist",
    "TaskResultStatus",
    "normalize_json",
    "signals",
    "task_backends",
]


def _package() -> Any:
    for name in ("django.tasks", "django_tasks"):
        try:
            return import_module(name)
        except ModuleNotFoundError as exc:
            if exc.name != name:
                raise
    raise ImproperlyConfigured(
        "LiteqBackend needs Django 6.0 or newer, or, before that, pip install django-tasks"
    )


_found: Any = _package()
_base: Any = import_module(f"{_found.__name__}.base")
_exceptions: Any = import_module(f"{_found.__name__}.exceptions")
signals: Any = import_module(f"{_found.__name__}.signals")
task_backends: Any = _found.task_backends
BaseTaskBackend: Any = import_module(f"{_found.__name__}.backends.base").BaseTaskBackend
Task: Any = _base.Task
TaskContext: Any = _base.TaskContext
TaskError: Any = _base.TaskError
TaskResult: Any = _base.TaskResult
TaskResultStatus: Any = _base.TaskResultStatus
normalize_json: Any = _base.normalize_json
TaskResultDoesNotExist: Any = _exceptions.TaskResultDoesNotExist
# The backport has the name that it had before it came into Django.
InvalidTask: Any = getattr(_exceptions, "InvalidTask", None) or _exceptions.InvalidTaskError
