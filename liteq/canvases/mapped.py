"""One task called with each of many arguments: `map`, `starmap` and `chunks`."""

# ruff: noqa: N801  (Celery's names)

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from liteq.canvases.base import part
from liteq.canvases.signatures import Signature, full
from liteq.result import GroupResult

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.canvas import group

__all__ = ["chunks", "xmap", "xstarmap"]

R = TypeVar("R")


class _Calls(Signature[list[R]]):
    """One task called with each of many arguments."""

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], app: Liteq | None = None) -> Signature[Any]:
        """Return the signature that a dictionary describes."""
        made = cls.__new__(cls)
        Signature.__init__(made, full(d), app=app)
        made["kwargs"]["task"] = part(made["kwargs"].get("task"), made.task, app)
        return made

    @property
    def app(self) -> Liteq:
        """The app whose task this is."""
        found: Liteq = self["kwargs"]["task"].app if self._app is None else self._app
        return found

    def _items(self) -> str:
        """Return the list of what the task is called with, as source text without secrets."""
        task = self["kwargs"]["task"]
        return f"[{', '.join(_arguments(task, item) for item in self['kwargs']['it'])}]"


def _arguments(task: Signature[Any], item: Any) -> str:
    if not isinstance(item, (list, tuple)):
        return task.sources((item,), {})[0]
    shown = ", ".join(task.sources(item, {}))
    if isinstance(item, list):
        return f"[{shown}]"
    return f"({shown},)" if len(item) == 1 else f"({shown})"


@Signature.register_type()
class xmap(_Calls[R]):
    """One call that runs a task for each item, one after the other: `task.map(items)`.
    Its result is the list of their values."""

    def __init__(
        self, task: Any, it: Iterable[Any], app: Liteq | None = None, **options: Any
    ) -> None:
        super().__init__(
            "liteq.map",
            kwargs={"task": _task_of(task, app), "it": list(it)},
            options=options,
            subtask_type="xmap",
            immutable=True,
            app=app,
        )

    def shown(self, front: int | None = None) -> str:
        """Return the calls as source text; nothing is put in front of theirs."""
        task = self["kwargs"]["task"]
        items = ", ".join(task.sources((item,), {})[0] for item in self["kwargs"]["it"])
        return f"[{task.task}(x) for x in [{items}]]"


@Signature.register_type()
class xstarmap(_Calls[R]):
    """One call that runs a task for each tuple of arguments: `task.starmap(items)`. Its
    result is the list of their values."""

    def __init__(
        self, task: Any, it: Iterable[Any], app: Liteq | None = None, **options: Any
    ) -> None:
        super().__init__(
            "liteq.starmap",
            kwargs={"task": _task_of(task, app), "it": list(it)},
            options=options,
            subtask_type="xstarmap",
            immutable=True,
            app=app,
        )

    def shown(self, front: int | None = None) -> str:
        """Return the calls as source text; nothing is put in front of theirs."""
        return f"[{self['kwargs']['task'].task}(*x) for x in {self._items()}]"


@Signature.register_type()
class chunks(_Calls[list[R]]):
    """Many calls in parts of `n`: `task.chunks(items, n)`. It is sent as a group, of one
    `starmap` for each part; the result is the list of their lists."""

    def __init__(
        self, task: Any, it: Iterable[Any], n: int, app: Liteq | None = None, **options: Any
    ) -> None:
        if n < 1:
            raise ValueError(f"a chunk needs at least one call, not {n!r}")
        super().__init__(
            "liteq.chunks",
            kwargs={"task": _task_of(task, app), "it": list(it), "n": n},
            options=options,
            subtask_type="chunks",
            immutable=True,
            app=app,
        )

    def group(self) -> group[list[R]]:
        """Return the group that this stands for."""
        task, it, n = (self["kwargs"][name] for name in ("task", "it", "n"))
        rest = iter(it)
        parts = iter(lambda: list(islice(rest, n)), [])
        made: Any = Signature.TYPES["group"](
            [xstarmap(task, part, app=self._app) for part in parts],
            app=self._app,
            **self.options,
        )
        return made  # type: ignore[no-any-return]

    if TYPE_CHECKING:

        def delay(self, *args: Any, **kwargs: Any) -> GroupResult:  # type: ignore[override]
            """Send all parts."""
            ...

        async def adelay(  # type: ignore[override]
            self, *args: Any, **kwargs: Any
        ) -> GroupResult:
            """Send all parts without blocking the event loop."""
            ...

    def apply_async(  # type: ignore[override]
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> GroupResult:
        """Send all parts; see `group.apply_async`."""
        return self.group().apply_async(args, kwargs, **options)

    async def aapply_async(  # type: ignore[override]
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> GroupResult:
        """Send all parts like `apply_async`, without blocking the event loop."""
        return await self.group().aapply_async(args, kwargs, **options)

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Run all parts in this process, and return their results; see `Task.apply`."""
        return self.group().apply(args, kwargs, **options)

    def __call__(self, **options: Any) -> GroupResult:  # type: ignore[override]
        """Send all parts."""
        return self.apply_async(**options)

    def shown(self, front: int | None = None) -> str:
        """Return the calls as source text; nothing is put in front of theirs."""
        named = self["kwargs"]
        return f"{named['task'].task}.chunks({self._items()}, {named['n']})"


def _task_of(task: Any, app: Liteq | None) -> Signature[Any]:
    """Return a task, or a signature of one, as a signature. Raises `ValueError` for a task that
    is not called with arguments but given calls."""
    if isinstance(task, Mapping):
        return part(task, "the task", app)
    if getattr(task, "flush_every", None) is not None:
        raise ValueError(
            f"task {task.name!r} has flush_every and is not for map(), starmap() or chunks(): "
            "they call its function with arguments. Its calls are run together without them: "
            "send a group, or use enqueue_many()"
        )
    return Signature(task, app=app)
