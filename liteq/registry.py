"""The task registry: which names an app knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from liteq.exceptions import NotRegistered

if TYPE_CHECKING:
    from liteq.task import Task

__all__ = ["TaskRegistry"]


class TaskRegistry(dict[str, "Task[..., Any]"]):
    """The tasks of an app by name. A missing name raises `NotRegistered`, a `KeyError`."""

    NotRegistered = NotRegistered

    def __missing__(self, name: str) -> Task[..., Any]:
        raise NotRegistered(f"no task {name!r} is registered{_hint(name, self)}")

    def register(self, task: Task[..., Any]) -> None:
        """Enter a task under its name, in place of the one that had it."""
        if task.name is None:
            raise ValueError(f"{task!r} has no name: set the class attribute `name`")
        self[task.name] = task

    def unregister(self, name: str | Task[..., Any]) -> None:
        """Take a task out, given by name or itself. Raises `NotRegistered`."""
        key = name if isinstance(name, str) else name.name
        del self[self[key].name]


def _hint(name: str, known: dict[str, Any]) -> str:
    import difflib  # late: 5 ms, and only an error needs it

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
