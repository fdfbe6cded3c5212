"""How another process gets an app: by its name, or as bytes.

An app in a module is named, "module:attribute". One that has tasks of a script or a notebook
cannot be imported elsewhere, so they travel as bytes (see `liteq.parcel`), with what else the
script has made of the app: attributes of the tasks, settings, receivers of signals. Such bytes
run code when they are read: they are for a child of this process, over a pipe, and are never
stored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partialmethod
from importlib import import_module
from typing import Any, Final

from liteq import names, parcel, signals
from liteq.app import Liteq, app_of
from liteq.current import set_current_app, set_default_app
from liteq.exceptions import ImproperlyConfigured
from liteq.local import Proxy
from liteq.parcel import is_of_script
from liteq.task import Task

__all__ = ["load", "reference"]

_SIGNALS_OF_APP: Final = (
    "on_configure",
    "on_after_configure",
    "on_after_finalize",
    "on_after_fork",
)
_MADE_FOR_FUNCTION: Final = frozenset({"app", "name", "run", "abstract"})  # of the class


def reference(app: Liteq) -> str | bytes:
    """Return "module:attribute", or bytes if the app, tasks of it or receivers of signals are
    defined in `__main__`.

    Raises `ImproperlyConfigured` for an app that is in no module's namespace, and for what
    cannot be written.
    """
    name = _name(app)
    own = [task for task in app.tasks.values() if type(task).__module__ == "__main__"]
    receivers = list(_receivers(app))
    in_module = name is not None and not name.startswith("__main__:")
    if in_module and not own and not receivers:
        return str(name)
    if name is None and not own:
        raise ImproperlyConfigured(
            f"{app!r} is not an attribute of a module, so no other process can import it"
        )
    modules = {type(task).__module__ for task in app.tasks.values()} - {"__main__"}
    imported = sorted(module for module in modules if not module.startswith("liteq."))
    task_class = app.task_cls if not in_module or is_of_script(app.task_cls) else None
    parts = [
        ("the script", (names.main_name(), imported)),
        ("the class of the app's tasks", task_class),
        ("what autodiscover_tasks() was given", [] if in_module else app.discoveries),
        ("the settings", _settings(app, all_of_them=not in_module)),
        *receivers,
        *((f"the task {task.name!r}", _parts_of(task)) for task in own),
        *_made_of_others(app),
        *(() if in_module else _entries(app)),
    ]
    return parcel.pack(app, parcel.Parcel(name if in_module else app.__reduce__(), parts))


def load(given: str | bytes) -> Liteq:
    """Return the app of a `reference()`, and make it the current one."""
    if isinstance(given, str):
        app: Liteq = _imported(given)
    else:
        app, parts, complete = parcel.unpack(given, _made, _later)
        (main, modules), task_class, discoveries, settings, *rest = parts
        names.stand_for(main)
        if task_class is not None and task_class is not app.task_cls:
            app.Task = task_class
        for found in discoveries:
            app.autodiscover_tasks(*found)
        for module in modules:
            import_module(module)
        app.conf.update(settings)
        for restore, *what in rest:
            restore(app, *what)
        complete()
    _enter(app)
    return app


def _enter(app: Liteq) -> None:
    set_current_app(app)
    set_default_app(app)


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    found: Any = import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return app_of(found) or found


def _name(app: Liteq) -> str | None:
    """Return where the app can be found, its own module first."""
    for module in (app.module, *_modules()):
        namespace = getattr(sys.modules.get(module), "__dict__", {})
        for attribute, value in list(namespace.items()):
            if app_of(value) is app:
                return f"{module}:{attribute}"
    return None


def _modules() -> Iterator[str]:
    return (name for name in list(sys.modules) if not name.startswith("liteq"))


def _made(maker: Any) -> Liteq:
    if isinstance(maker, str):
        app: Liteq = _imported(maker)
    else:
        make, args = maker
        app = make(*args)
    _enter(app)
    return app


def _later(app: Liteq, name: str) -> Any:
    """Return what stands for a task that is still to be made."""

    def find() -> Any:
        if name not in app.tasks:
            raise _NotMade(f"the task {name!r} is still to be made")
        return app.tasks[name]

    return Proxy(find, name=name)


class _NotMade(RuntimeError, AttributeError):
    """A proxy stands for nothing yet. It has no attributes either: a class that has the task
    for a static method is made all the same."""


# Settings


def _settings(app: Liteq, *, all_of_them: bool) -> dict[str, Any]:
    """Return what a script has set: of its own app all settings, wherever they come from; of
    an app in a module, which has its own there, the script's functions and classes. (What is
    plain and was changed goes with each worker of a program.)"""
    if all_of_them:
        return app.conf.without_defaults()
    return {name: value for name, value in app.conf.changes.items() if is_of_script(value)}


# Receivers of signals


def _receivers(app: Liteq) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield what connects again those of the script's functions and methods that hear a
    signal, with words for it."""
    for name, signal in _signals(app):
        for connection in signal.receivers:
            receiver, sender = connection.target(), connection.sender
            if is_of_script(getattr(receiver, "__func__", receiver)):
                if isinstance(sender, Task):
                    sender = sender.name
                what = f"the receiver {receiver!r} of {name}"
                yield what, (_connect, name, sender, receiver, connection.dispatch_uid)


def _signals(app: Liteq) -> Iterator[tuple[str, signals.Signal]]:
    for name, signal in vars(signals).items():
        if isinstance(signal, signals.Signal):
            yield name, signal
    for name in _SIGNALS_OF_APP:
        yield name, getattr(app, name)


def _connect(app: Liteq, name: str, sender: Any, receiver: Any, uid: Any) -> None:
    dict(_signals(app))[name].connect(receiver, sender, weak=False, dispatch_uid=uid)


# Periodic entries


def _entries(app: Liteq) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield what declares the periodic entries of a script again, but for those of receivers,
    which do that themselves."""
    for name, given in app.schedules.declared_once().items():
        yield f"the periodic entry {name!r}", (_declare, name, dict(given))


def _declare(app: Liteq, name: str, given: Any) -> None:
    app.schedules.declare(name, given)


# Tasks


def _parts_of(task: Task[..., Any]) -> tuple[Any, ...]:
    """Return what makes the same task again: of its function and options, of its class, or,
    where the script made the object itself, of its class and attributes."""
    kind = type(task)
    since = task.set_since_made()
    if "__wrapped__" in vars(kind):
        return _restore_function, _unbound(vars(kind)["__wrapped__"]), _options(task), since
    return _restore_class, kind, task.name, since, task.is_made_by_app()


def _restore_function(app: Liteq, function: Any, options: Any, since: Any) -> None:
    _set(app.task_from_function(function, **options), since)


def _restore_class(app: Liteq, kind: Any, name: str, since: Any, by_app: bool) -> None:  # noqa: FBT001 (it travels)
    if by_app:
        _set(app.register_task(kind, name=name), since)
    else:
        task = kind.__new__(kind)
        _set(task, since)
        app.register_task(task, name=name)


def _made_of_others(app: Liteq) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield what makes again the tasks that a script has made of what is in modules: to import
    those makes no tasks of it."""
    for task in app.tasks.own().values():
        kind = type(task)
        own = vars(kind).get("__wrapped__")
        source = kind if own is None else _unbound(own)
        if not is_of_script(kind) and parcel.is_importable(source):
            parts = _parts_of(task)
            if parcel.is_writable(app, parts):
                yield f"the task {task.name!r}", (_restore_missing, task.name, parts)


def _restore_missing(app: Liteq, name: str, parts: Any) -> None:
    restore, *what = parts
    if name not in app.tasks:
        restore(app, *what)


def _set(task: Any, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        setattr(task, name, value)


def _options(task: Task[..., Any]) -> dict[str, Any]:
    """Return the options that make the same task again."""
    kind = type(task)
    base: Any = kind.__bases__[0]
    if base is task.app.Task:
        base = None
    elif isinstance(vars(base).get("app"), Liteq):  # what the app had for its class before
        base = base.__bases__[0]
    options = {
        name: _unbound(value) if name == "unique_key" else value
        for name, value in vars(kind).items()
        if not name.startswith("__") and name not in _MADE_FOR_FUNCTION
    }
    bind = not isinstance(vars(kind)["run"], staticmethod)
    return {**options, "base": base, "name": task.name, "bind": bind}


def _unbound(member: Any) -> Any:
    """Return the function that a member of a task's class was made of."""
    if isinstance(member, partialmethod):
        return member.func
    return member.__func__ if isinstance(member, staticmethod) else member
