"""How another process gets an app: by its name, or as bytes.

An app in a module is named, "module:attribute". One whose tasks are functions of a script
or a notebook cannot be imported elsewhere, so its functions travel as bytes, which dill
makes. Such bytes run code when they are read: they are for a child of this process, over
a pipe, and are never stored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from liteq.app import Liteq
from liteq.current import set_current_app, set_default_app
from liteq.exceptions import ImproperlyConfigured
from liteq.options import TASK_OPTIONS
from liteq.task import AsyncTask, Task

__all__ = ["app_of", "load", "reference"]


class _Parcel(NamedTuple):
    """An app and what another process cannot import of it."""

    app: Any  # the app, or the name of where it can be imported
    modules: list[str]  # that register tasks when they are imported
    tasks: list[tuple[Any, dict[str, Any]]]  # functions with the options of their task


def reference(app: Liteq) -> str | bytes:
    """Return "module:attribute", or bytes if tasks are defined in `__main__`.

    Raises `ImproperlyConfigured` for an app that is in no module's namespace.
    """
    name = _name(app)
    own = [task for task in app.tasks.values() if type(task).__module__ == "__main__"]
    if name is not None and not name.startswith("__main__:") and not own:
        return name
    if name is None and not own:
        raise ImproperlyConfigured(
            f"{app!r} is no attribute of a module, so no other process can import it"
        )
    import dill  # late: 40 ms, and only the tasks of a script need it

    modules = {type(task).__module__ for task in app.tasks.values()} - {"__main__"}
    parcel = _Parcel(
        app=app if name is None or name.startswith("__main__:") else name,
        modules=sorted(module for module in modules if not module.startswith("liteq.")),
        tasks=[(_function(task), _options(task)) for task in own],
    )
    packed: bytes = dill.dumps(tuple(parcel), recurse=True)
    return packed


def load(given: str | bytes) -> Liteq:
    """Return the app of a `reference()`, and make it the current one."""
    if isinstance(given, str):
        app: Liteq = _imported(given)
    else:
        import dill  # late: 40 ms, and only the tasks of a script need it

        parcel = _Parcel(*dill.loads(given))
        app = _imported(parcel.app) if isinstance(parcel.app, str) else parcel.app
        _enter(app)
        for module in parcel.modules:
            import_module(module)
        for function, options in parcel.tasks:
            app.task_from_function(function, **options)
    _enter(app)
    return app


def app_of(value: object) -> Liteq | None:
    """Return the app that an object is, or has: a Flask app has that of its extension."""
    # By its real type: `current_app` is a proxy that says it is an app, and a module that
    # imports it has none for that.
    kind = type(value)
    if issubclass(kind, Liteq):
        return value  # type: ignore[return-value]
    flask = getattr(sys.modules.get("flask"), "Flask", None)  # nobody else's import of it
    if isinstance(flask, type) and issubclass(kind, flask):
        found: Any = value
        return found.extensions.get("liteq")  # type: ignore[no-any-return]
    return None


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


def _function(task: Task[..., Any]) -> Any:
    wrapped: Any = getattr(type(task), "__wrapped__", None)
    if wrapped is None:
        raise ImproperlyConfigured(
            f"{task!r} is a class of a script: put it into a module, so that other "
            "processes can import it"
        )
    return wrapped


def _options(task: Task[..., Any]) -> dict[str, Any]:
    """Return the options that make the same task again."""
    kind = type(task)
    members: Mapping[str, Any] = kind.__dict__
    options = {name: members[name] for name in TASK_OPTIONS if name in members}
    base = kind.__mro__[1]
    if base not in (Task, AsyncTask, task.app.Task):
        options["base"] = base
    options.pop("abstract", None)
    return {**options, "name": task.name, "bind": not isinstance(members["run"], staticmethod)}
