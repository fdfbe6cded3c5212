"""What all workflows have in common: they are signatures that are made of signatures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from liteq.canvases.signatures import Signature, full
from liteq.canvases.stamping import StampingVisitor, stamped
from liteq.current import get_current_app
from liteq.result import AsyncResult, GroupResult

if TYPE_CHECKING:
    from typing import Self

    from liteq.app import Liteq

__all__ = ["Canvas", "entered", "hang", "hook", "is_special", "note", "part", "unpacked"]

R = TypeVar("R")


class Canvas(Signature[R]):
    """What chain, group and chord have in common."""

    kind: str = ""

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], app: Liteq | None = None) -> Signature[Any]:
        """Return the workflow that a dictionary describes, its parts as signatures."""
        made = cls.__new__(cls)
        Signature.__init__(made, full(d), app=app)
        made._adopt(app)
        return made

    @property
    def app(self) -> Liteq:
        """The app whose tasks these are: that of the first of them."""
        sig: Signature[Any] = self
        while sig._app is None and isinstance(sig, Canvas):
            parts = sig._parts()
            if not parts:
                return get_current_app()
            sig = parts[0]
        return sig._app if sig._app is not None else sig.app

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """Send the workflow, these arguments given to its first tasks."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> AsyncResult[R]:
        """Send the workflow in one step: all of it is in the store when this returns.

        Arguments are given to the first tasks, and so are options, but for `task_id`,
        `link` and `link_error`; see the class. Raises as `Task.apply_async` does, naming
        the part that is to blame; nothing is sent then.
        """
        result: AsyncResult[R] = self.app.sender.call_workflow(self, args, kwargs, options)
        return result

    async def aapply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult[R]:
        """Send the workflow like `apply_async`, without blocking the event loop."""
        result: AsyncResult[R] = await self.app.sender.acall_workflow(
            self, args, kwargs, options
        )
        return result

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Run the workflow in this process, and return its result; see `Task.apply`."""
        return self.app.sender.apply_workflow(self, args, kwargs, options)

    def clone(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Return a copy, its parts copied as well, merged with what is given here."""
        copy = cast("Self", super().clone(args, kwargs, **options))
        copy._replace_parts([part.clone() for part in copy._parts()])
        return copy

    partial = clone

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Send the workflow, as Celery does: it is not a function that could run here."""
        return self.apply_async(args, kwargs)

    def reprcall(self, *args: Any) -> str:
        """Return the workflow as source text."""
        return self.shown()

    def shown(self, front: int | None = None) -> str:
        """Return the workflow as source text, each call as its own `shown()` has it."""
        raise NotImplementedError

    # What each kind says of its parts

    def _parts(self) -> Sequence[Signature[Any]]:
        raise NotImplementedError

    def _replace_parts(self, parts: list[Signature[Any]]) -> None:
        raise NotImplementedError

    def _adopt(self, app: Liteq | None) -> None:
        """Make signatures of the dictionaries that JSON left in their place."""
        raise NotImplementedError


# Parts


def unpacked(tasks: tuple[Any, ...]) -> Iterable[Any]:
    """Return the tasks, or what the one iterable among them holds."""
    if len(tasks) == 1 and not isinstance(tasks[0], Mapping):
        only = tasks[0]
        if isinstance(only, Iterable):
            return only
    return tasks


def part(given: Any, where: str, app: Liteq | None) -> Signature[Any]:
    """Return a part as a signature. Raises `TypeError` for what is not one."""
    if isinstance(given, Signature):
        return given
    if isinstance(given, Mapping) and "task" in given:
        return Signature.from_dict(given, app=app)
    hint = ""
    if hasattr(given, "delay"):
        hint = f"; write {given.__name__}.s(…)"
    elif isinstance(given, (AsyncResult, GroupResult)):
        hint = (
            ", but of a call that was sent already; write task.s(…) in place of task.delay(…)"
        )
    raise TypeError(f"{where} is not a signature, as task.s(…) makes them: {given!r}{hint}")


def is_special(sig: Signature[Any]) -> bool:
    """Tell whether a workflow says more than its parts do, so that they cannot stand for
    it."""
    return bool(sig.options or sig.args or sig.immutable)


# Small things


def hang(result: Any, parent: Any) -> None:
    """Make `parent` the parent of the first of the results that lead to this one."""
    while result.parent is not None:
        result = result.parent
    result.parent = parent


def note(options: dict[str, Any], **given: Any) -> None:
    options.update({name: value for name, value in given.items() if value})


def hook(visitor: StampingVisitor | None, name: str) -> Any:
    return None if visitor is None else getattr(visitor, name)


def entered(
    hook: Callable[..., dict[str, Any] | None] | None, sig: Any, headers: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the headers that hold inside of a part, with what a visitor gives for it."""
    given = hook(sig, **headers) if hook is not None else None
    return stamped(headers, given) if headers or given else {}
