"""A Django project, as the process of a worker needs it: set up before its tasks are
imported, its database connections kept and dropped as around a request.

Nothing of Django is imported unless `DJANGO_SETTINGS_MODULE` names a project's settings.
"""

from __future__ import annotations

import os
from typing import Any

from liteq import signals

__all__ = ["is_named", "set_up"]

_inherited: list[Any] = []


def is_named() -> bool:
    """Tell whether the environment names the settings of a project."""
    return bool(os.environ.get("DJANGO_SETTINGS_MODULE"))


def set_up() -> None:
    """Set up the project that the environment names, if there is one and it is not set up
    already, and look after its connections from now on. Whatever it raises is the
    project's own."""
    if not is_named():
        return
    try:
        import django  # late: for Django's users only
        from django.apps import apps
    except ImportError:  # the variable is a neighbour's: nothing here needs Django
        return
    if not (apps.ready or apps.loading):  # loading: called by an app's ready()
        django.setup()
    for signal, receiver in (
        (signals.celeryd_after_setup, _close_all),
        (signals.worker_process_init, _leave_to_parent),
        (signals.task_prerun, _begin),
        (signals.task_postrun, _end),
    ):
        signal.connect(receiver, weak=False, dispatch_uid=receiver.__name__)


def _close_all(**_: Any) -> None:
    """Before the fork: what a module opened while it was imported is nobody's any more."""
    from django.db import connections

    connections.close_all()


def _leave_to_parent(**_: Any) -> None:
    """In a child: forget the connections that the parent had opened by then.

    They are kept, not closed and not collected: whatever the driver would say on the shared
    socket as its last words would end the parent's session too.
    """
    from django.db import connections

    for connection in connections.all(initialized_only=True):
        _inherited.append(connection)
        del connections[connection.alias]


def _begin(task: Any, **_: Any) -> None:
    if not task.request.is_eager:  # eager: inside of somebody's request or test
        from django.db import close_old_connections, reset_queries

        close_old_connections()
        reset_queries()  # with DEBUG, each connection notes what it was asked


def _end(task: Any, **_: Any) -> None:
    if not task.request.is_eager:
        from django.core.cache import close_caches
        from django.db import close_old_connections

        close_old_connections()
        close_caches()
