"""Which app is current, and what is still to be told to apps that come later.

While a task runs, its app is current. Elsewhere it is the last app made, or the one that
`set_current()` named in this thread; a worker and a beat name theirs.
`shared_task` leaves a constructor here, which every app, old and new, runs once.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from liteq import context
from liteq.local import Proxy

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.task import Task

__all__ = [
    "apps",
    "connect_on_app_finalize",
    "current_app",
    "current_task",
    "enter_app",
    "finalizers",
    "get_current_app",
    "get_current_task",
    "kept",
    "known_app",
    "look_around",
    "set_current_app",
    "set_default_app",
    "set_default_factory",
]

_thread = threading.local()
_default: Liteq | None = None
_make_default: Callable[[], Liteq] | None = None
_apps: weakref.WeakSet[Liteq] = weakref.WeakSet()
_finalizers: list[Callable[[Liteq], object]] = []
_surroundings: list[Callable[[], Liteq | None]] = []
_lock = threading.RLock()  # two threads that both find no app must not make two


def enter_app(app: Liteq) -> None:
    """Remember an app, so that constructors that come later reach it."""
    _apps.add(app)


def apps() -> Iterator[Liteq]:
    """Return the apps that are alive."""
    return iter(list(_apps))


def get_current_app() -> Liteq:
    """Return the app of what surrounds the caller, else that of the task that runs here, else
    this thread's current app, else the default one, making one if need be."""
    found = known_app()
    if found is None:
        with _lock:
            found = _default
            if found is None:
                assert _make_default is not None  # set when liteq.app is imported
                found = _make_default()
                set_default_app(found)
    return found


def known_app() -> Liteq | None:
    """Return the current app if there is one: what is only looked at makes none."""
    for find in _surroundings:
        if (surrounding := find()) is not None:
            return surrounding
    if (running := context.current()) is not None:
        own: Any = getattr(running._task, "app", None)
        if own is not None and type(own) is not Proxy:  # a task that no app has has a proxy
            return own  # type: ignore[no-any-return]
    found: Liteq | None = getattr(_thread, "app", None) or _default
    return found


def look_around(find: Callable[[], Liteq | None]) -> None:
    """Have `find()` say which app is current where a framework knows: in a request, say."""
    _surroundings.append(find)


def set_current_app(app: Liteq) -> None:
    """Make an app this thread's current one, and the default if there is none yet.

    Other threads see the default: a web server makes its app in the main thread and
    serves requests in others.
    """
    global _default
    _thread.app = app
    if _default is None or threading.current_thread() is threading.main_thread():
        _default = app


def set_default_app(app: Liteq | None) -> None:
    """Make an app the one that threads without a current app of their own use."""
    global _default
    _default = app


@contextmanager
def kept() -> Iterator[None]:
    """Have the apps that are current now be so again at the end. For tests."""
    before: Liteq | None = getattr(_thread, "app", None)
    default = _default
    try:
        yield
    finally:
        _thread.app = before
        set_default_app(default)


def set_default_factory(make: Callable[[], Liteq]) -> None:
    """Say how an app is made when one is needed and there is none."""
    global _make_default
    _make_default = make


def connect_on_app_finalize(construct: Callable[[Liteq], object]) -> Callable[[Liteq], object]:
    """Have `construct(app)` called by each app when it is finalized, and now by those
    that are; what one of them refuses now, none is told of later."""
    _finalizers.append(construct)
    try:
        for app in apps():
            if app.finalized:
                construct(app)
    except BaseException:  # it is corrected in the next cell of a notebook, say
        _finalizers.remove(construct)
        raise
    return construct


def finalizers() -> list[Callable[[Liteq], object]]:
    """Return the constructors left by `connect_on_app_finalize`."""
    return list(_finalizers)


def get_current_task() -> Task[..., Any] | None:
    """Return the task running in this thread or coroutine, or None."""
    running = context.current()
    return None if running is None else running._task


def _after_fork() -> None:
    """In a forked child: a lock that another thread held at the fork would stay held."""
    global _lock
    _lock = threading.RLock()
    for app in apps():
        app.after_fork()


os.register_at_fork(after_in_child=_after_fork)

current_app: Liteq = Proxy(get_current_app, name="current_app")  # type: ignore[assignment]
current_task: Task[..., Any] = Proxy(  # type: ignore[assignment]
    get_current_task, name="current_task"
)
