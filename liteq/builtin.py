"""The tasks that every app has: `map` and `starmap` run a task many times in one call,
`accumulate` gives back what it is given.

Each has its name in Celery as well, so that signatures written by it are understood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from liteq.definition import make_class
from liteq.task import Task

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = ["builtin_tasks"]


def builtin_tasks(app: Liteq) -> list[Task[..., Any]]:
    """Return the tasks, made for an app."""
    made: list[Task[..., Any]] = []
    for name, function in (
        ("map", _map(app)),
        ("starmap", _starmap(app)),
        ("accumulate", _accumulate),
    ):
        for package in ("liteq", "celery"):
            kind = make_class(
                function,
                app=app,
                name=f"{package}.{name}",
                base=Task,
                bind=False,
                options={},
            )
            made.append(kind())
    return made


def _map(app: Liteq) -> Callable[..., list[Any]]:
    def map(task: Any, it: Iterable[Any]) -> list[Any]:
        """Run a task with each item, and return the values."""
        from liteq.canvas import maybe_signature  # late: few workers run it

        run = maybe_signature(task, app=app).type
        return [run(item) for item in it]

    return map


def _starmap(app: Liteq) -> Callable[..., list[Any]]:
    def starmap(task: Any, it: Iterable[Iterable[Any]]) -> list[Any]:
        """Run a task with each tuple of arguments, and return the values."""
        from liteq.canvas import maybe_signature  # late: few workers run it

        run = maybe_signature(task, app=app).type
        return [run(*args) for args in it]

    return starmap


def _accumulate(*args: Any, index: int | None = None) -> Any:
    """Return the arguments, or that of an index."""
    return args if index is None else args[index]
