"""A signature: a call that is written down to be made later.

It is a dictionary, so it survives JSON: `task`, `args`, `kwargs`, `options`,
`subtask_type`, `immutable`. Arguments given later are put in front, keywords and options
given later win. These rules are Celery's. Workflows are signatures too, of the classes in
`liteq.canvas`, which are entered here by name.
"""

# ruff: noqa: FBT001, FBT002  (positional booleans in Celery's signatures)

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from liteq.canvases.stamping import StampingVisitor, stamped
from liteq.current import get_current_app, known_app
from liteq.ids import new_id
from liteq.local import Proxy
from liteq.redaction import default
from liteq.result import AsyncResult, EagerResult

if TYPE_CHECKING:
    from typing import Self

    from liteq.app import Liteq
    from liteq.canvas import chain
    from liteq.task import Task

__all__ = ["Signature", "as_list", "maybe_signature", "merged", "signature", "subtask"]

R = TypeVar("R")
T = TypeVar("T")
_S = TypeVar("_S", bound="Signature[Any]")


def _section(name: str) -> Any:
    """Return a property that reads and writes one key of the dictionary."""

    def read(self: Signature[Any]) -> Any:
        return self[name]

    def write(self: Signature[Any], value: Any) -> None:
        self[name] = value

    return property(read, write)


class Signature(dict[str, Any], Generic[R]):
    """A call to a task with arguments and options, to be sent, merged or linked.

    `task` is a task, its name, or the dictionary of another signature.
    """

    TYPES: ClassVar[dict[str, type[Signature[Any]]]] = {}
    _app: Liteq | None = None
    _type: Task[..., Any] | None = None

    task: str = _section("task")
    args: tuple[Any, ...] = _section("args")
    kwargs: dict[str, Any] = _section("kwargs")
    options: dict[str, Any] = _section("options")
    subtask_type: str | None = _section("subtask_type")
    immutable: bool = _section("immutable")

    def __init__(
        self,
        task: Any = None,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        type: Task[..., Any] | None = None,
        subtask_type: str | None = None,
        immutable: bool = False,
        app: Liteq | None = None,
        **more_options: Any,
    ) -> None:
        if app is not None:
            self._app = app
        if not isinstance(task, str) and task is not None:
            if isinstance(task, Mapping):
                super().__init__(task)
                return
            type, task = task, task.name
        if type is not None:
            self._type = type
        self["task"] = task
        self["args"] = tuple(args) if args else ()
        self["kwargs"] = dict(kwargs) if kwargs else {}
        self["options"] = {**options, **more_options} if options else more_options
        self["subtask_type"] = subtask_type
        self["immutable"] = immutable

    @classmethod
    def register_type(cls, name: str | None = None) -> Callable[[type[_S]], type[_S]]:
        """Return a decorator that makes `from_dict` build this class for a type name."""

        def enter(kind: type[_S]) -> type[_S]:
            cls.TYPES[name or kind.__name__] = kind
            return kind

        return enter

    @classmethod
    def _kind(cls, name: str) -> Any:
        """Return the class for a type name, or None. They are those of `liteq.canvas`, which
        need not be here yet: a signature may have come out of a pickle."""
        if "chain" not in cls.TYPES:
            import_module("liteq.canvas")  # this door opens upwards
        return cls.TYPES.get(name)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], app: Liteq | None = None) -> Signature[Any]:
        """Return the signature that a dictionary describes."""
        name = d.get("subtask_type")
        kind = cls._kind(name) if name else None
        if kind is not None and not issubclass(cls, kind):
            other: Signature[Any] = kind.from_dict(d, app=app)
            return other
        made = cls.__new__(cls)
        Signature.__init__(made, full(d), app=app)
        return made

    # Sending

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        """Run the task here and now, as a plain function."""
        args, kwargs, _ = self.merge(args, kwargs)
        result: R = self.type(*args, **kwargs)
        return result

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """Send the call, these arguments in front of its own."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> AsyncResult[R]:
        """Send the call, merged with what is given here; options as in
        `Task.apply_async`."""
        merged_args, merged_kwargs, merged = self.merge(args, kwargs, options)
        task = self.registered()
        if task is None:
            self.app.tasks.refuse_misspelt(self.task)
            return self.app.send_task(self.task, merged_args, merged_kwargs, **merged)
        return task.apply_async(merged_args, merged_kwargs, **merged)

    async def adelay(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """Send the call without blocking the event loop."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult[R]:
        """Send the call like `apply_async`, without blocking the event loop."""
        merged_args, merged_kwargs, merged = self.merge(args, kwargs, options)
        task = self.registered()
        if task is None:
            self.app.tasks.refuse_misspelt(self.task)
            return await self.app.asend_task(self.task, merged_args, merged_kwargs, **merged)
        return await task.aapply_async(merged_args, merged_kwargs, **merged)

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> EagerResult[R]:
        """Run the call in this process; see `Task.apply`."""
        merged_args, merged_kwargs, merged = self.merge(args, kwargs, options)
        return self.type.apply(merged_args, merged_kwargs, **merged)

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> AsyncResult[R]:
        """Fix the id now, and return the result of the call that is still to be sent."""
        options = self.options
        options.setdefault("task_id", _id or new_id())
        if group_id is not None:
            options.setdefault("group_id", group_id)
        later = {"root_id": root_id, "parent_id": parent_id, "chord": chord}
        options.update({key: value for key, value in later.items() if value})
        if group_index is not None:
            options["group_index"] = group_index
        return self.AsyncResult(options["task_id"])

    # Changing

    def clone(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Signature[R]:
        """Return a copy, merged with what is given here."""
        from copy import deepcopy  # late: a sender of plain calls has no use for it

        merged_args, merged_kwargs, merged = self.merge(args, kwargs, options)
        copy = self.from_dict(
            {
                **self,
                "args": merged_args,
                "kwargs": dict(merged_kwargs),
                "options": deepcopy(merged),
            },
            app=self._app,
        )
        copy._type = self._type
        return copy

    partial = clone

    def replace(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Signature[R]:
        """Return a copy with these sections in place of its own."""
        copy = self.clone()
        if args is not None:
            copy.args = tuple(args)
        if kwargs is not None:
            copy.kwargs = dict(kwargs)
        if options is not None:
            copy.options = dict(options)
        return copy

    def set(self, immutable: bool | None = None, **options: Any) -> Self:
        """Set options, and return the signature itself."""
        if immutable is not None:
            self.set_immutable(immutable)
        self.options.update(options)
        return self

    def set_immutable(self, immutable: bool) -> None:
        """Set whether it ignores the result of what it is linked to."""
        self.immutable = immutable

    def link(self, callback: _S) -> _S:
        """Have `callback` called with the result; return the callback."""
        self._append("link", callback)
        return callback

    def link_error(self, errback: _S) -> _S:
        """Have `errback` called if the task fails; return the errback."""
        self._append("link_error", errback)
        return errback

    def on_error(self, errback: Signature[Any]) -> Self:
        """Have `errback` called if the task fails; return the signature itself."""
        self.link_error(errback)
        return self

    def flatten_links(self) -> list[Signature[Any]]:
        """Return this signature and, recursively, those that are linked to it."""
        linked = as_list(self.options.get("link"))
        return [self, *(s for link in linked for s in _as_signature(link).flatten_links())]

    # Stamps

    def stamp(
        self,
        visitor: StampingVisitor | None = None,
        append_stamps: bool = False,
        **headers: Any,
    ) -> Self:
        """Mark the calls of this signature, and those linked to it, with stamps, which
        `request.stamps` shows; return the signature itself.

        A stamp is a keyword here, or an entry of what the visitor's `on_signature()`
        returns; its value travels as it is. It takes the place of one that is there
        already, or stands before it in a list, if `append_stamps` is on or both are lists.
        """
        self.stamp_links(visitor, append_stamps, **headers)
        given = visitor.on_signature(self, **headers) if visitor is not None else None
        self.options.update(
            stamped(headers, given, own=self.options, append_stamps=append_stamps)
        )
        return self

    def stamp_links(
        self,
        visitor: StampingVisitor | None = None,
        append_stamps: bool = False,
        **headers: Any,
    ) -> None:
        """Stamp the callbacks and error callbacks alone."""
        for option in ("link", "link_error"):
            if option not in self.options:
                continue
            links = [_as_signature(link) for link in as_list(self.options[option])]
            self.options[option] = links
            for link in links:
                given = None
                if visitor is not None:
                    is_link = option == "link"
                    hook = visitor.on_callback if is_link else visitor.on_errback
                    given = hook(link, **headers)
                both = stamped(headers, given, append_stamps=append_stamps)
                link.stamp(visitor, append_stamps, **both)

    # Looking

    @property
    def app(self) -> Liteq:
        """The app whose task this is."""
        if self._app is not None:
            return self._app
        return self._type.app if self._type is not None else get_current_app()

    @property
    def type(self) -> Task[..., Any]:
        """The task. Raises `NotRegistered` if this process has none of that name."""
        return self._type if self._type is not None else self.app.tasks[self.task]

    @property
    def name(self) -> str:
        return self.task

    @property
    def id(self) -> str | None:
        """The id that `freeze()` or `task_id=` gave, or None."""
        return self.options.get("task_id")

    @property
    def parent_id(self) -> str | None:
        return self.options.get("parent_id")

    @property
    def root_id(self) -> str | None:
        return self.options.get("root_id")

    def AsyncResult(self, id: str) -> AsyncResult[R]:  # noqa: N802 (Celery's name)
        """Return the result of this task under an id."""
        return AsyncResult(id, task_name=self.task, app=self.app)

    def reprcall(self, *args: Any) -> str:
        """Return the call as source text, `args` in front, what is secret by its name or
        type hidden. Without them, what may be secret is hidden: see `shown()`."""
        return self._written(self.merge(args)[0], 0 if args else None)

    def shown(self, front: int | None = None) -> str:
        """Return the call as source text, as reprs have it, for one that so many arguments
        are put in front of when it is sent (None: it is not known)."""
        return self._written(self.args, front)

    def _written(self, args: Sequence[Any], front: int | None) -> str:
        shown = self.sources(args, self.kwargs, 0 if self.immutable else front)
        return f"{self.task}({', '.join(shown)})"

    def sources(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], front: int | None = 0
    ) -> list[str]:
        """Return arguments for this task as source text, what is secret by its name or type
        hidden; see `Redactor`. It makes no app, finalizes none and loads no settings: this is
        for reprs."""
        app = self._app if self._app is not None else known_app()
        task = self._type
        if task is None and app is not None and app.finalized:
            task = app.tasks.get(self.task)
        own: Any = None if task is None else task.app
        if own is not None and type(own) is not Proxy:  # as that of a task which no app has
            app = own
        redactor = default() if app is None else app.early_redactor
        if task is None:
            return redactor.sources(args, kwargs)
        return redactor.sources(args, kwargs, task.all_parameters, task.sensitive, front)

    def __repr__(self) -> str:
        return self.shown()

    def __or__(self, other: Signature[T]) -> chain[T]:  # type: ignore[override]
        """Return a chain of this and another, which gets the result of this."""
        joined: chain[T] = self._kind("chain")(self, joinable(self, other))
        return joined

    def __ror__(self, other: Any) -> Any:
        return joinable(self, other) | self

    # A dictionary's own `|=` would merge the two into one signature.
    def __ior__(self, other: Signature[T]) -> chain[T]:  # type: ignore[override]
        return self | other

    def __invert__(self) -> R:
        """Send the call and wait for its result."""
        return self.apply_async().get()

    def __reduce__(self) -> Any:
        return signature, (dict(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Signature[R]:
        from copy import deepcopy  # late: whoever copies this has it

        copy = self.from_dict(deepcopy(dict(self), memo), app=self._app)
        copy._type = self._type
        return copy

    def __copy__(self) -> Signature[R]:
        return self.clone()

    # How calls are merged

    def merge(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
        """Return arguments and options with these added by Celery's rules.

        Arguments: what is given comes first, unless the signature is immutable. Options:
        see `merged()`.
        """
        both = merged(self.options, options) if options else dict(self.options)
        if self.immutable:
            return tuple(self.args), dict(self.kwargs), both
        return (*(args or ()), *self.args), {**self.kwargs, **(kwargs or {})}, both

    def _append(self, option: str, value: Any) -> None:
        values = as_list(self.options.get(option))
        if value not in values:
            values.append(value)
        self.options[option] = values

    def registered(self) -> Task[..., Any] | None:
        """Return the task, or None if this process has none of that name."""
        return self._type if self._type is not None else self.app.tasks.get(self.task)


def signature(varies: Any, *args: Any, **kwargs: Any) -> Signature[Any]:
    """Return a signature of a task, of a name, or a copy of a signature or dictionary.

    The rest is as for `Signature`: args, kwargs, options, and options by name.
    """
    if isinstance(varies, Signature):
        return varies.clone()
    if isinstance(varies, Mapping):
        return Signature.from_dict(varies, app=kwargs.get("app"))
    return Signature(varies, *args, **kwargs)


subtask = signature


def maybe_signature(d: Any, app: Liteq | None = None, clone: bool = False) -> Any:
    """Return a dictionary as a signature, and anything else as it is."""
    if not isinstance(d, Mapping):
        return d
    if not isinstance(d, Signature):
        d = signature(d)
    elif clone:
        d = d.clone()
    if app is not None:
        d._app = app
    return d


def merged(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with others that are given later: those win, None is ignored, and a
    group's id and stamps never change once they are set, nor do others come to them."""
    fixed = {"group_id", "stamped_headers", *(own.get("stamped_headers") or ())}
    stamps = given.get("stamped_headers") or () if "stamped_headers" in own else ()
    later = {n: value for n, value in given.items() if value is not None and n not in stamps}
    return {**own, **later, **{name: own[name] for name in fixed & own.keys()}}


def full(d: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dictionary of a signature with what is missing, its sections copied."""
    return {
        "task": None,
        "subtask_type": None,
        "immutable": False,
        **d,
        "args": tuple(d.get("args") or ()),
        "kwargs": dict(d.get("kwargs") or {}),
        "options": dict(d.get("options") or {}),
    }


def joinable(one: Signature[Any], other: Any) -> Signature[Any]:
    """Return what stands after a `|` as a signature. Raises `TypeError` for what is not
    one."""
    if isinstance(other, Signature):
        return other
    if isinstance(other, Mapping) and "task" in other:
        return Signature.from_dict(other)
    hint = f"; write {other.__name__}.s()" if hasattr(other, "delay") else ""
    raise TypeError(f"{one!r} cannot be joined with {other!r}, which is not a signature{hint}")


def as_list(given: Any) -> list[Any]:
    """Return what `link=` may hold (nothing, one signature, a list of them) as a list."""
    if given is None:
        return []
    return list(given) if isinstance(given, (list, tuple, set)) else [given]


def _as_signature(given: Any) -> Signature[Any]:
    found = maybe_signature(given)
    if not isinstance(found, Signature):
        raise TypeError(f"expected a signature, not {given!r}")
    return found
