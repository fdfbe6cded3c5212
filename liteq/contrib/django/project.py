"""The liteq app of a Django project: its own, or one that is made of its settings."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

from liteq.app import Liteq
from liteq.brokers import sqlite_url
from liteq.current import get_current_app, set_default_factory
from liteq.discovery import load_app

if TYPE_CHECKING:
    app: Liteq

__all__ = ["app", "project_app"]

# What Django's tasks have that name no priority: `@shared_task` stands level with them.
_PRIORITY = 4
_OURS = "liteq.contrib.django"


def project_app() -> Liteq:
    """Return the app of the project.

    The one that the setting or the environment variable `LITEQ_APP` names ("proj.celery:app");
    else the current one, which is what the project has made last; else one made of the
    settings `LITEQ_*`. Raises `AppNotFound` for a `LITEQ_APP` that names none.
    """
    named: str | None = getattr(settings, "LITEQ_APP", None) or os.environ.get("LITEQ_APP")
    if named and not named.startswith(_OURS):
        return load_app(named, said_by="LITEQ_APP").app
    return get_current_app()


def _made() -> Liteq:
    """Return an app made of the settings. Its store is a folder beside manage.py, unless
    `LITEQ_BROKER_URL` names another; its tasks are those of the installed apps."""
    base = _base_dir()
    name = (os.environ.get("DJANGO_SETTINGS_MODULE") or base.name).partition(".")[0]
    made = Liteq(name, set_as_current=False)
    # It belongs to the project, not to whoever happened to need it first.
    made.module = __name__
    made._home = str(base)
    made.conf._directory = str(base)
    made.add_defaults(
        {
            "broker_url": sqlite_url(f"{base}/{name}.liteq"),
            "task_default_priority": _PRIORITY,
            "task_queues": _queues(),
        }
    )
    made.config_from_object("django.conf:settings", namespace="LITEQ")
    made.autodiscover_tasks()
    globals()["app"] = made  # where a child that is not forked finds it
    return made


def __getattr__(name: str) -> Any:
    if name == "app":
        return project_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _base_dir() -> Path:
    """Return the folder of manage.py: `BASE_DIR`, or what holds the package of settings."""
    given = getattr(settings, "BASE_DIR", None)
    if given is not None:
        return Path(given).absolute()
    module = sys.modules.get(os.environ.get("DJANGO_SETTINGS_MODULE", ""))
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        return Path.cwd()
    return Path(file).absolute().parents[module.__name__.count(".")]


def _queues() -> list[str] | None:
    """Return the queues that `TASKS` names, for a worker to take from all of them. The one
    that Django calls "default" is the app's, by whatever name."""
    given = getattr(settings, "TASKS", None) or {}
    named = {queue for params in given.values() for queue in params.get("QUEUES", ())}
    default = getattr(settings, "LITEQ_TASK_DEFAULT_QUEUE", "default")
    return sorted({default, *(named - {"default"})}) if named else None


set_default_factory(_made)
