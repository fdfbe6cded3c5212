"""Workflows: signatures that are made of signatures.

A `chain` runs one step after the other, a `group` all members at once, a `chord` a body
behind a group. They may be nested in each other, called, linked, frozen and sent like any
signature. What they mean to the store is worked out when they are sent, in
`liteq.composing`: here they are only written down.
"""

# ruff: noqa: FBT001, FBT002  (positional booleans in Celery's signatures)
# ruff: noqa: N801  (Celery's names)

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar, cast, overload

from liteq.current import get_current_app
from liteq.ids import new_id
from liteq.result import AsyncResult, GroupResult
from liteq.signatures import (
    Signature,
    as_list,
    full,
    joinable,
    maybe_signature,
    signature,
    subtask,
)
from liteq.stamping import StampingVisitor, stamped

if TYPE_CHECKING:
    from typing import Self

    from liteq.app import Liteq

__all__ = [
    "Signature",
    "StampingVisitor",
    "as_list",
    "chain",
    "chord",
    "chunks",
    "group",
    "is_empty",
    "maybe_signature",
    "signature",
    "subtask",
    "xmap",
    "xstarmap",
]

R = TypeVar("R")
T = TypeVar("T")

OnError: TypeAlias = Literal["fail", "collect", "skip"]
ON_ERROR: Final = ("fail", "collect", "skip")


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
        """Send the workflow, as Celery does: it is no function that could run here."""
        return self.apply_async(args, kwargs)

    def reprcall(self, *args: Any) -> str:
        """Return the workflow as source text."""
        return repr(self)

    # What each kind says of its parts

    def _parts(self) -> Sequence[Signature[Any]]:
        raise NotImplementedError

    def _replace_parts(self, parts: list[Signature[Any]]) -> None:
        raise NotImplementedError

    def _adopt(self, app: Liteq | None) -> None:
        """Make signatures of the dictionaries that JSON left in their place."""
        raise NotImplementedError


@Signature.register_type()
class chain(Canvas[R]):
    """Steps that run one after the other, each given the result of the one before.

    `chain(a, b, c)`, of an iterable, or `a | b | c`. The result is that of the last step;
    `.parent` leads back. Arguments and options go to the first step, `task_id` and `link`
    to the last, `link_error` to every step. A group in the middle is the header of a
    chord. As in Celery, a group of one member stands for that member here, and groups of
    none are left out at the start and at the end.
    """

    kind = "chain"

    @overload
    def __init__(
        self: chain[R], a: Signature[R], /, *, app: Any = ..., **options: Any
    ) -> None: ...
    @overload
    def __init__(
        self: chain[R], a: Signature[Any], b: Signature[R], /, *, app: Any = ..., **options: Any
    ) -> None: ...
    @overload
    def __init__(
        self: chain[R],
        a: Signature[Any],
        b: Signature[Any],
        c: Signature[R],
        /,
        *,
        app: Any = ...,
        **options: Any,
    ) -> None: ...
    @overload
    def __init__(
        self: chain[R],
        a: Signature[Any],
        b: Signature[Any],
        c: Signature[Any],
        d: Signature[R],
        /,
        *,
        app: Any = ...,
        **options: Any,
    ) -> None: ...
    @overload
    def __init__(self: chain[Any], *tasks: Any, app: Any = ..., **options: Any) -> None: ...
    def __init__(  # type: ignore[misc]  # mypy 2.1 does not match *tasks with a, b, c
        self, *tasks: Any, app: Any = None, **options: Any
    ) -> None:
        steps: list[Signature[Any]] = []
        for number, task in enumerate(_unpacked(tasks)):
            _append(steps, _part(task, f"chain[{number}]", app))
        super().__init__(
            "liteq.chain",
            (),
            {"tasks": steps},
            options,
            subtask_type="chain",
            app=app,
        )

    @property
    def tasks(self) -> list[Signature[Any]]:
        """The steps."""
        steps: list[Signature[Any]] = self["kwargs"]["tasks"]
        return steps

    @tasks.setter
    def tasks(self, steps: Iterable[Signature[Any]]) -> None:
        self["kwargs"]["tasks"] = list(steps)

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> AsyncResult[R]:
        """Fix the ids of all steps now, that of the last being `_id`, and return the
        result of the chain that is still to be sent."""
        steps = [step.clone() for step in self.tasks if not is_empty(step)]
        self.tasks = steps
        result: Any = None
        for number, step in enumerate(steps):
            is_last = number == len(steps) - 1
            given = (self.options.get("task_id") or _id) if is_last else None
            before, result = result, step.freeze(given)
            _hang(result, before)
        if steps:
            self.options["task_id"] = result.id
        _note(self.options, root_id=root_id, parent_id=parent_id, chord=chord)
        return result  # type: ignore[no-any-return]

    def stamp(
        self,
        visitor: StampingVisitor | None = None,
        append_stamps: bool = False,
        **headers: Any,
    ) -> Self:
        """Stamp every step; see `Signature.stamp`."""
        inner = _entered(_hook(visitor, "on_chain_start"), self, headers)
        super().stamp(visitor, append_stamps, **inner)
        for step in self.tasks:
            step.stamp(visitor, append_stamps, **inner)
        if visitor is not None:
            visitor.on_chain_end(self, **inner)
        return self

    def __or__(self, other: Signature[T]) -> chain[T]:  # type: ignore[override]
        """Return this chain with one step more, or with those of another chain."""
        steps: list[Signature[Any]] = [self] if _is_special(self) else list(self.tasks)
        _append(steps, joinable(self, other))
        longer: chain[T] = chain(app=self._app)
        longer["kwargs"]["tasks"] = steps
        return longer

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.tasks)) or "chain()"

    def _parts(self) -> list[Signature[Any]]:
        return self.tasks

    def _replace_parts(self, parts: list[Signature[Any]]) -> None:
        self.tasks = parts

    def _adopt(self, app: Liteq | None) -> None:
        given = self["kwargs"].get("tasks") or ()
        self.tasks = [_part(task, f"chain[{i}]", app) for i, task in enumerate(given)]


@Signature.register_type()
class group(Canvas[list[R]]):
    """Members that run all at once, each given the arguments and options of the group.

    `group(a, b, c)`, or of an iterable. The result is a `GroupResult`, in the order of
    the members; those of groups among the members stand in it one by one. With a `|`
    behind it, it is the header of a chord.
    """

    kind = "group"

    @overload
    def __init__(
        self: group[R], *tasks: Signature[R], app: Any = ..., **options: Any
    ) -> None: ...
    @overload
    def __init__(
        self: group[R], tasks: Iterable[Signature[R]], /, *, app: Any = ..., **options: Any
    ) -> None: ...
    @overload
    def __init__(self: group[Any], *tasks: Any, app: Any = ..., **options: Any) -> None: ...
    def __init__(  # type: ignore[misc]  # as above
        self, *tasks: Any, app: Any = None, **options: Any
    ) -> None:
        given = _unpacked(tasks)
        if isinstance(given, group):
            given = given.tasks
        members = [
            task if isinstance(task, Signature) else _part(task, f"group[{number}]", app)
            for number, task in enumerate(given)
        ]
        super().__init__(
            "liteq.group",
            (),
            {"tasks": members},
            options,
            subtask_type="group",
            app=app,
        )

    @property
    def tasks(self) -> list[Signature[R]]:
        """The members."""
        members: list[Signature[R]] = self["kwargs"]["tasks"]
        return members

    @tasks.setter
    def tasks(self, members: Iterable[Signature[R]]) -> None:
        self["kwargs"]["tasks"] = list(members)

    if TYPE_CHECKING:

        def delay(self, *args: Any, **kwargs: Any) -> GroupResult:  # type: ignore[override]
            """Send all members."""
            ...

        def __call__(self, *args: Any, **kwargs: Any) -> GroupResult:  # type: ignore[override]
            """Send all members."""
            ...

    def apply_async(  # type: ignore[override]
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        link: Any = None,
        link_error: Any = None,
        **options: Any,
    ) -> GroupResult:
        """Send all members in one step. Options are for each of them, but for `task_id`,
        which is the id of the group."""
        if link is not None:
            raise TypeError("a group takes no link: put a task behind it with |, as a chord")
        if link_error is not None:
            raise TypeError("a group takes no link_error: call group.link_error(…) before")
        sent: Any = super().apply_async(args, kwargs, **options)
        return sent  # type: ignore[no-any-return]

    def freeze(  # type: ignore[override]
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> GroupResult:
        """Fix the ids of the group and of all members now, and return the result of the
        group that is still to be sent."""
        self.options.setdefault("task_id", _id or new_id())
        _note(self.options, root_id=root_id, parent_id=parent_id, chord=chord)
        members = [member.clone() for member in self.tasks if not is_empty(member)]
        self.tasks = members
        results: list[Any] = []
        for member in members:
            result: Any = member.freeze()
            results += result.results if isinstance(member, group) else [result]
        return GroupResult(self.options["task_id"], results, app=self.app)

    def set_immutable(self, immutable: bool) -> None:
        """Say of all members whether what is before the group is kept from them."""
        for member in self.tasks:
            member.set_immutable(immutable)

    def link(self, callback: Any) -> Any:
        """Have `callback` called when the first member has succeeded, without its result:
        so it is in Celery. What is to run behind all members goes behind a `|`."""
        if not self.tasks:
            raise ValueError("an empty group has no member to link to")
        first = self.tasks[0] = self.tasks[0].clone()
        copy = callback.clone()
        copy.set_immutable(True)
        return first.link(copy)

    def link_error(self, errback: Any) -> Any:
        """Have a copy of `errback` called for each member that fails; return `errback`."""
        self.tasks = [member.clone() for member in self.tasks]
        for member in self.tasks:
            member.link_error(errback.clone())
        return errback

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> Self:
        """Give the members rising countdowns, in seconds; from `stop` on they are equal."""
        countdown = float(start)
        for number, member in enumerate(self.tasks):
            self.tasks[number] = member.clone(countdown=countdown)
            if stop is None or countdown + step <= stop:
                countdown += step
        return self

    def stamp(
        self,
        visitor: StampingVisitor | None = None,
        append_stamps: bool = False,
        **headers: Any,
    ) -> Self:
        """Stamp every member; see `Signature.stamp`."""
        inner = _entered(_hook(visitor, "on_group_start"), self, headers)
        super().stamp(visitor, append_stamps, **inner)
        for member in self.tasks:
            member.stamp(visitor, append_stamps, **inner)
        if visitor is not None:
            visitor.on_group_end(self, **inner)
        return self

    def __or__(self, other: Signature[T]) -> chord[T]:  # type: ignore[override]
        """Return a chord: this group, and behind all of it the other."""
        return chord(self, body=joinable(self, other), app=self._app)

    def __len__(self) -> int:
        return len(self.tasks)

    def __repr__(self) -> str:
        return f"group({self.tasks!r})" if self.tasks else "group(<empty>)"

    def _parts(self) -> list[Signature[Any]]:
        return cast("list[Signature[Any]]", self.tasks)

    def _replace_parts(self, parts: list[Signature[Any]]) -> None:
        self.tasks = parts

    def _adopt(self, app: Liteq | None) -> None:
        given = self["kwargs"].get("tasks") or ()
        self.tasks = [_part(task, f"group[{i}]", app) for i, task in enumerate(given)]


@Signature.register_type()
class chord(Canvas[R]):
    """A header, whose members run all at once, and a body behind it, which is given the
    list of their results, in the order of the members.

    `chord(header, body)`, `chord(header)(body)` or `group | task`. The result is that of
    the body; its `.parent` is the `GroupResult` of the header. `on_error` says what a
    member that fails does: "fail" fails the body at once, with a `ChordError`; with
    "collect" the exception stands in the list, with "skip" it is left out, and the body
    runs. Arguments go to the members, options to members and body, but for `countdown`
    and `eta` (members), `task_id`, `link` and `link_error` (body).
    """

    kind = "chord"

    @overload
    def __init__(
        self: chord[R],
        header: Any,
        body: Signature[R],
        task: str = ...,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        app: Liteq | None = None,
        *,
        on_error: OnError = ...,
        **options: Any,
    ) -> None: ...
    @overload
    def __init__(
        self: chord[Any],
        header: Any,
        body: Any = None,
        task: str = ...,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        app: Liteq | None = None,
        *,
        on_error: OnError = ...,
        **options: Any,
    ) -> None: ...
    def __init__(
        self,
        header: Any,
        body: Any = None,
        task: str = "liteq.chord",
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        app: Liteq | None = None,
        *,
        on_error: Any = "fail",
        **options: Any,
    ) -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error is one of {', '.join(ON_ERROR)}, not {on_error!r}")
        parts: dict[str, Any] = {
            "kwargs": dict(kwargs or {}),
            "header": _header(header, app),
            "body": None if body is None else _part(body, "the body of a chord", app),
        }
        if on_error != "fail":
            parts["on_error"] = on_error
        super().__init__(task, args, parts, options, subtask_type="chord", app=app)

    @property
    def header(self) -> group[Any]:
        """The group that the body waits for."""
        header: group[Any] = self["kwargs"]["header"]
        return header

    @header.setter
    def header(self, header: Any) -> None:
        self["kwargs"]["header"] = _header(header, self._app)

    @property
    def tasks(self) -> list[Signature[Any]]:
        """The members of the header."""
        return self.header.tasks

    @property
    def body(self) -> Signature[R] | None:
        """What runs behind the header."""
        body: Signature[R] | None = self["kwargs"]["body"]
        return body

    @body.setter
    def body(self, body: Signature[R] | None) -> None:
        self["kwargs"]["body"] = body

    def __call__(self, body: Any = None, **options: Any) -> AsyncResult[R]:  # type: ignore[override]
        """Send the chord, with this body if one is given."""
        return self.apply_async((), {"body": body} if body is not None else {}, **options)

    def merge(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
        """Return arguments and options with these added; keywords are the members', or
        "body", which takes the place of the chord's own."""
        parts: dict[str, Any] = dict(self["kwargs"])
        given = dict(kwargs or {})
        if given.get("body") is not None:
            parts["body"] = _part(given.pop("body"), "the body of a chord", self._app)
        if not self.immutable:
            parts["kwargs"] = {**parts["kwargs"], **given}
        merged_args, _, merged = super().merge(args, None, options)
        return merged_args, parts, merged

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> AsyncResult[R]:
        """Fix the ids of all parts now, that of the body being `_id`, and return the
        result of the chord that is still to be sent."""
        if self.body is None:
            raise ValueError(f"{self!r} has no body whose id could be fixed")
        self.header = self.header.clone()
        header = self.header.freeze()
        self.body = self.body.clone()
        result: AsyncResult[R] = self.body.freeze(self.options.get("task_id") or _id)
        _hang(result, header)
        self.options["task_id"] = result.id
        _note(self.options, root_id=root_id, parent_id=parent_id, chord=chord)
        return result

    def link(self, callback: Any) -> Any:
        """Have `callback` called with the result of the body; return the callback."""
        return self._append_to_body("link", callback)

    def link_error(self, errback: Any) -> Any:
        """Have `errback` called if the body fails, as it does when a member fails; return
        it. With the setting `task_allow_error_cb_on_chord_header` a copy is called for
        each member that fails, too."""
        if self.app.conf.task_allow_error_cb_on_chord_header:
            self.header = self.header.clone()
            for member in self.tasks:
                copy = errback.clone()
                copy.set_immutable(True)
                member.link_error(copy)
        return self._append_to_body("link_error", errback)

    def set_immutable(self, immutable: bool) -> None:
        """Say of all members whether what is before the chord is kept from them."""
        self.header.set_immutable(immutable)

    def stamp(
        self,
        visitor: StampingVisitor | None = None,
        append_stamps: bool = False,
        **headers: Any,
    ) -> Self:
        """Stamp every member of the header, and the body; see `Signature.stamp`."""
        if self.body is not None:
            inner = _entered(_hook(visitor, "on_chord_body"), self, headers)
            self.body.stamp(visitor, append_stamps, **inner)
        inner = _entered(_hook(visitor, "on_chord_header_start"), self, headers)
        super().stamp(visitor, append_stamps, **inner)
        for member in self.tasks:
            member.stamp(visitor, append_stamps, **inner)
        if visitor is not None:
            visitor.on_chord_header_end(self, **inner)
        return self

    def __or__(self, other: Signature[T]) -> chord[T]:  # type: ignore[override]
        """Return this chord with the other behind its body."""
        other = joinable(self, other)
        if _is_special(self):
            longer: Any = chain(self, other, app=self._app)
            return longer  # type: ignore[no-any-return]
        body = other if self.body is None else chain(self.body) | other
        joined: chord[T] = chord(self.header, body, app=self._app)
        joined["kwargs"] = {**self["kwargs"], "body": body}
        return joined

    def __repr__(self) -> str:
        header = repr(self.tasks)
        if self.body is None:
            return f"<chord without body: {header}>"
        if isinstance(self.body, Canvas):
            return f"%({header}, {self.body!r})"
        return "%" + self.body.reprcall(self.tasks)

    def _append_to_body(self, option: str, sig: Any) -> Any:
        if self.body is None:  # kept for the one that comes
            self._append(option, sig)
            return sig
        self.body = self.body.clone()
        return self.body.link(sig) if option == "link" else self.body.link_error(sig)

    def _parts(self) -> list[Signature[Any]]:
        return [self.header] if self.body is None else [self.header, self.body]

    def _replace_parts(self, parts: list[Signature[Any]]) -> None:
        self["kwargs"]["header"] = parts[0]
        if len(parts) > 1:
            self.body = parts[1]

    def _adopt(self, app: Liteq | None) -> None:
        parts = self["kwargs"]
        parts.setdefault("kwargs", {})
        parts["header"] = _header(parts.get("header") or (), app)
        body = parts.get("body")
        parts["body"] = None if body is None else _part(body, "the body of a chord", app)


class _Calls(Signature[list[R]]):
    """One task called with each of many arguments."""

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], app: Liteq | None = None) -> Signature[Any]:
        """Return the signature that a dictionary describes."""
        made = cls.__new__(cls)
        Signature.__init__(made, full(d), app=app)
        made["kwargs"]["task"] = _part(made["kwargs"].get("task"), made.task, app)
        return made

    @property
    def app(self) -> Liteq:
        """The app whose task this is."""
        found: Liteq = self["kwargs"]["task"].app if self._app is None else self._app
        return found


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

    def __repr__(self) -> str:
        return f"[{self['kwargs']['task'].task}(x) for x in {self['kwargs']['it']!r}]"


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

    def __repr__(self) -> str:
        return f"[{self['kwargs']['task'].task}(*x) for x in {self['kwargs']['it']!r}]"


@Signature.register_type()
class chunks(_Calls[list[R]]):
    """Many calls in parts of `n`: `task.chunks(items, n)`. It is sent as a group, of one
    `starmap` for each part; the result is the list of their lists."""

    def __init__(
        self, task: Any, it: Iterable[Any], n: int, app: Liteq | None = None, **options: Any
    ) -> None:
        if n < 1:
            raise ValueError(f"chunks are of one call or more, not {n!r}")
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
        made: group[Any] = group(
            [xstarmap(task, part, app=self._app) for part in parts],
            app=self._app,
            **self.options,
        )
        return made

    def apply_async(  # type: ignore[override]
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> GroupResult:
        """Send all parts; see `group.apply_async`."""
        return self.group().apply_async(args, kwargs, **options)

    def __call__(self, **options: Any) -> GroupResult:  # type: ignore[override]
        """Send all parts."""
        return self.apply_async(**options)

    def __repr__(self) -> str:
        named = self["kwargs"]
        return f"{named['task'].task}.chunks({named['it']!r}, {named['n']})"


def is_empty(sig: Signature[Any]) -> bool:
    """Tell whether a workflow has nothing to run: a chain or group of none but such."""
    return isinstance(sig, (chain, group)) and all(map(is_empty, sig.tasks))


# Parts


def _unpacked(tasks: tuple[Any, ...]) -> Iterable[Any]:
    """Return the tasks, or what the one iterable among them holds."""
    if len(tasks) == 1 and not isinstance(tasks[0], Mapping):
        only = tasks[0]
        if isinstance(only, Iterable):
            return only
    return tasks


def _part(given: Any, where: str, app: Liteq | None) -> Signature[Any]:
    """Return a part as a signature. Raises `TypeError` for what is none."""
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
    raise TypeError(f"{where} is no signature, as task.s(…) makes them: {given!r}{hint}")


def _task_of(task: Any, app: Liteq | None) -> Signature[Any]:
    """Return a task, or a signature of one, as a signature."""
    if isinstance(task, Mapping):
        return _part(task, "the task", app)
    return Signature(task, app=app)


def _header(given: Any, app: Liteq | None) -> group[Any]:
    """Return what the header of a chord may be given as, as a group: one; a chain, whose
    steps are the members; one signature; an iterable of signatures."""
    if isinstance(given, Mapping):
        given = _part(given, "the header of a chord", app)
    match given:
        case group():
            return given
        case chunks():
            return given.group()
        case chain() | chord():
            return group(given.tasks, app=app)
        case Signature():
            return group([given], app=app)
        case Iterable():
            members = [_part(one, f"chord header[{i}]", app) for i, one in enumerate(given)]
            return group(members, app=app)
    raise TypeError(f"the header of a chord is a group or a list of signatures, not {given!r}")


def _append(steps: list[Signature[Any]], step: Signature[Any]) -> None:
    """Add a step to a chain: those of a plain chain one by one, and of a group of one
    member that member."""
    if isinstance(step, chain) and not _is_special(step):
        for inner in step.tasks:
            _append(steps, inner)
    elif isinstance(step, group) and len(step.tasks) == 1 and not step.args:
        only = step.tasks[0]
        options = {k: v for k, v in step.options.items() if k != "task_id"}
        _append(steps, only.clone(**options) if options else only)
    elif steps or not is_empty(step):
        steps.append(step)


def _is_special(sig: Signature[Any]) -> bool:
    """Tell whether a workflow says more than its parts do, so that they cannot stand for
    it."""
    return bool(sig.options or sig.args or sig.immutable)


# Small things


def _hang(result: Any, parent: Any) -> None:
    """Make `parent` the parent of the first of the results that lead to this one."""
    while result.parent is not None:
        result = result.parent
    result.parent = parent


def _note(options: dict[str, Any], **given: Any) -> None:
    options.update({name: value for name, value in given.items() if value})


def _hook(visitor: StampingVisitor | None, name: str) -> Any:
    return None if visitor is None else getattr(visitor, name)


def _entered(
    hook: Callable[..., dict[str, Any] | None] | None, sig: Any, headers: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the headers that hold inside of a part, with what a visitor gives for it."""
    given = hook(sig, **headers) if hook is not None else None
    return stamped(headers, given) if headers or given else {}
