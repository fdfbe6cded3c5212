"""The task registry: which names an app knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from liteq.exceptions import NotRegistered
from liteq.names import module_name

if TYPE_CHECKING:
    from liteq.task import Task

__all__ = ["TaskRegistry"]

_BUILTIN: Final = ("liteq.", "celery.")


class TaskRegistry(dict[str, "Task[..., Any]"]):
    """The tasks of an app by name. A missing name raises `NotRegistered`, a `KeyError`.

    `changes` counts how often it was changed: who keeps what it has read off the tasks
    looks at that, for one task in the place of another leaves as many as before.
    """

    NotRegistered = NotRegistered
    changes = 0

    def __setitem__(self, name: str, task: Task[..., Any]) -> None:
        self.changes += 1
        super().__setitem__(name, task)

    def __delitem__(self, name: str) -> None:
        self.changes += 1
        super().__delitem__(name)

    def pop(self, name: str, *default: Any) -> Any:
        self.changes += 1
        return super().pop(name, *default)

    def clear(self) -> None:
        self.changes += 1
        super().clear()

    def update(self, *others: Any, **named: Any) -> None:
        self.changes += 1
        super().update(*others, **named)

    def setdefault(self, name: str, default: Any = None) -> Any:
        self.changes += 1
        return super().setdefault(name, default)

    def __missing__(self, name: str) -> Task[..., Any]:
        raise NotRegistered(f"no task {name!r} is registered{_hint(name, self)}")

    def own(self) -> dict[str, Task[..., Any]]:
        """Return the tasks of the program, without those that every app has."""
        return {name: task for name, task in self.items() if not name.startswith(_BUILTIN)}

    def refuse_misspelt(self, name: str) -> None:
        """Raise `NotRegistered` for the name of a task that should be here and is not:
        the module that it names has made tasks in this process. A name in any other
        module may be that of a task which only workers know."""
        module, _, _ = name.rpartition(".")
        if name not in self and module in {_module(task) for task in self.values()}:
            self[name]  # raises, with the names that are near

    def register(self, task: Task[..., Any]) -> None:
        """Enter a task under its name, in place of the one that had it."""
        if task.name is None:
            raise ValueError(f"{task!r} has no name: set the class attribute `name`")
        self[task.name] = task

    def unregister(self, name: str | Task[..., Any]) -> None:
        """Take a task out, given by name or itself. Raises `NotRegistered`."""
        key = name if isinstance(name, str) else name.name
        del self[self[key].name]


def _module(task: Task[..., Any]) -> str:
    """Return the module whose tasks have its name before theirs."""
    home = module_name(task.run)
    return home if task.name.rpartition(".")[0] == home else ""


def _hint(name: str, known: dict[str, Any]) -> str:
    import difflib  # late: 5 ms, and only an error needs it

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
