"""A Django project, as the process of a worker needs it: set up before its tasks are
imported, its database connections kept and dropped as around a request.

Nothing of Django is imported unless `DJANGO_SETTINGS_MODULE` names a project's settings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakSet

from liteq import signals

__all__ = ["follow_settings", "fresh_connections", "is_named", "set_up"]

_inherited: list[Any] = []
_coroutines: WeakSet[Any] = WeakSet()  # the attempts that are such, and run in this process
_CALLERS: Final = "_django_callers"  # of an attempt's context: connections it was called in


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


@contextmanager
def fresh_connections() -> Iterator[None]:
    """Have this thread's connections that have had their time, or are broken, closed before and
    after what is neither a request nor a task: a tick of a beat, what a worker's own process
    runs. Nobody else would ever renew them there."""
    in_use = is_named() and "django.db" in sys.modules
    if in_use:
        _close_old()
    try:
        yield
    finally:
        if in_use:
            _close_old()


def follow_settings(settings: Any, changed: Callable[..., None]) -> None:
    """Have `changed(setting=…)` called when a test overrides one of these settings, and when
    that ends, if they are Django's. It is a method, and kept weakly."""
    if type(settings).__module__ == "django.conf":
        from django.core.signals import setting_changed  # late: for Django's users only

        setting_changed.connect(changed)


def _close_all(**_: Any) -> None:
    """Before the fork: what a module opened while it was imported is nobody's any more. A
    transaction is somebody's, who runs a worker inside of it."""
    from django.db import connections

    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()


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
    if task.request.is_eager:  # inside of somebody's request or test
        return
    from django.db import connections

    if _is_coroutine(task):
        _mind_shared_thread()
        _coroutines.add(task.request)
    _close_old()
    callers = []
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block:
            callers.append(connection)  # its log is read by `assertNumQueries()`
        else:
            connection.queries_log.clear()  # with DEBUG, each notes what it was asked
    setattr(task.request, _CALLERS, callers)


def _end(task: Any, **_: Any) -> None:
    if task.request.is_eager:
        return
    from django.core.cache import close_caches
    from django.db import connections

    if _is_coroutine(task):
        _coroutines.discard(task.request)
        _mind_shared_thread()
    callers = vars(task.request).get(_CALLERS, ())
    for connection in connections.all(initialized_only=True):
        if connection not in callers:
            connection.close_if_unusable_or_obsolete()
            if connection.closed_in_transaction:
                # The task left it open, as one does that is interrupted between two steps
                # of `atomic`. Django never opens such a connection again.
                del connections[connection.alias]
    close_caches()


def _close_old() -> None:
    """Close the connections of this thread that have had their time, as Django's function
    `close_old_connections` does, but none in a transaction: that is a test's, which Django
    would end."""
    from django.db import connections

    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def _close_broken() -> None:
    """Close the connections of this thread that are of no more use to anybody, but none in a
    transaction."""
    from django.db import connections

    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block or connection.connection is None:
            continue
        if connection.errors_occurred and not connection.is_usable():
            connection.close()


def _is_coroutine(task: Any) -> bool:
    from asgiref.sync import iscoroutinefunction  # late: Django has it

    return bool(iscoroutinefunction(task.run))


def _mind_shared_thread() -> None:
    """Have old connections closed in the thread in which asgiref asks the database for all
    coroutines of this process.

    Nobody waits for it: what a coroutine asks comes later in that thread, and a task that
    holds the thread may wait for this one. While others run, who may be in the midst of
    reading rows (`aiterator()`), a connection stays for as long as it can be used.
    """
    from asgiref.sync import SyncToAsync  # late: Django has it

    work = _close_broken if _coroutines else _close_old
    begun = SyncToAsync.single_thread_executor.submit(work)
    begun.add_done_callback(lambda done: done.result())  # what this raises is logged there
