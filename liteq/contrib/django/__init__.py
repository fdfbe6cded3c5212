"""For Django projects: the class of their tasks, and a backend for `django.tasks`.

With `liteq.contrib.django` in `INSTALLED_APPS`, `manage.py liteq` is the command line, and
`liteq.contrib.django.urls` are the pages. What an app does in a worker it does by itself,
wherever `DJANGO_SETTINGS_MODULE` is set: see `liteq.djangoproject`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from liteq.contrib.django.task import DjangoTask

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.contrib.django.backend import LiteqBackend

    app: Liteq

__all__ = ["DjangoTask", "LiteqBackend", "app"]

# Late: they need settings, and who has a celery.py of his own has none of them.
_LATE: Final = {
    "LiteqBackend": "liteq.contrib.django.backend",
    "app": "liteq.contrib.django.project",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
