"""The modules that hold an app's tasks, which a worker imports before it runs any."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

from liteq import djangoproject, signals

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = ["Discovery", "discover", "import_all"]

# Packages, what returns them, or None for the Django apps; and the module in each.
Discovery: TypeAlias = tuple[Iterable[str] | Callable[[], Iterable[str]] | None, str | None]


def import_all(app: Liteq, discoveries: Iterable[Discovery]) -> None:
    """Import what the settings name and what is to be discovered, and have the settings'
    annotations on the tasks that there are then."""
    djangoproject.set_up()
    for name in (*app.conf.imports, *app.conf.include):
        import_module(name)
    for packages, related_name in discoveries:
        discover(packages, related_name)
    for task in app.tasks.values():
        app.annotate(task)
    if not app.modules_imported:  # the command has imported them, and the worker does again
        app.modules_imported = True
        signals.import_modules.send(sender=app)


def discover(
    packages: Iterable[str] | Callable[[], Iterable[str]] | None, related_name: str | None
) -> None:
    """Import the module `related_name` of each of these packages that has one."""
    given = packages() if callable(packages) else packages
    for package in _django_apps() if given is None else given:
        _import_related(package, related_name)


def _django_apps() -> list[str]:
    apps = sys.modules.get("django.apps")
    return [] if apps is None else [config.name for config in apps.apps.get_app_configs()]


def _imported(package: str) -> str:
    """Import a package and return its name. One may be named by a class in it, as Django's
    `INSTALLED_APPS` name `polls.apps.PollsConfig`."""
    try:
        import_module(package)
    except ModuleNotFoundError as exc:
        module, _, name = package.rpartition(".")
        if not module or exc.name != package:
            raise
        kind = getattr(import_module(module), name, None)
        if not isinstance(kind, type):
            raise
        own = getattr(kind, "name", None)  # of a Django AppConfig: its package
        return own if isinstance(own, str) else module
    return package


def _import_related(package: str, related_name: str | None) -> None:
    """Import `package.related_name`, if there is one."""
    package = _imported(package)
    if not related_name:
        return
    name = f"{package}.{related_name}"
    try:
        import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name != name:
            raise
