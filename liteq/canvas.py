"""Workflows: signatures that are made of signatures.

A `chain` runs one step after the other, a `group` all members at once, a `chord` a body after
a group. They may be nested in each other, called, linked, frozen and sent like any signature.
What they mean to the store is worked out when they are sent, in `liteq.composing`: here they
are only written down.
"""

# ruff: noqa: FBT001, FBT002  (positional booleans in Celery's signatures)
# ruff: noqa: N801  (Celery's names)

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar, cast, overload

from liteq.canvases.base import (
    Canvas,
    entered,
    hang,
    hook,
    is_special,
    note,
    part,
    unpacked,
)
from liteq.canvases.graph import Graph
from liteq.canvases.mapped import chunks, xmap, xstarmap
from liteq.canvases.signatures import (
    Signature,
    as_list,
    joinable,
    maybe_signature,
    signature,
    subtask,
)
from liteq.canvases.stamping import StampingVisitor
from liteq.ids import new_id
from liteq.result import AsyncResult, GroupResult

if TYPE_CHECKING:
    from typing import Self

    from liteq.app import Liteq

__all__ = [
    "Graph",
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
S = TypeVar("S")  # what the overloads of __init__ say of R

OnError: TypeAlias = Literal["fail", "collect", "skip"]
ON_ERROR: Final = ("fail", "collect", "skip")


@Signature.register_type()
class chain(Canvas[R]):
    """Steps that run one after the other, each given the result of the one before.

    `chain(a, b, c)`, of an iterable, or `a | b | c`. The result is that of the last step;
    `.parent` leads back. Arguments and options go to the first step, `task_id` and `link`
    to the last, `link_error` to every step. A group in the middle is the header of a
    chord, whose body calls the error callbacks for all members. As in Celery, a group of one
    member stands for that member here, and groups of none are left out at the start and at
    the end.
    """

    kind = "chain"

    @overload
    def __init__(
        self: chain[S], a: Signature[S], /, *, app: Any = ..., **options: Any
    ) -> None: ...
    @overload
    def __init__(
        self: chain[S], a: Signature[Any], b: Signature[S], /, *, app: Any = ..., **options: Any
    ) -> None: ...
    @overload
    def __init__(
        self: chain[S],
        a: Signature[Any],
        b: Signature[Any],
        c: Signature[S],
        /,
        *,
        app: Any = ...,
        **options: Any,
    ) -> None: ...
    @overload
    def __init__(
        self: chain[S],
        a: Signature[Any],
        b: Signature[Any],
        c: Signature[Any],
        d: Signature[S],
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
        for number, task in enumerate(unpacked(tasks)):
            _append(steps, part(task, f"chain[{number}]", app))
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
            hang(result, before)
        if steps:
            self.options["task_id"] = result.id
        note(self.options, root_id=root_id, parent_id=parent_id, chord=chord)
        return result  # type: ignore[no-any-return]

    def stamp(
        self,
        visitor: StampingVisitor | None = None,
        append_stamps: bool = False,
        **headers: Any,
    ) -> Self:
        """Stamp every step; see `Signature.stamp`."""
        inner = entered(hook(visitor, "on_chain_start"), self, headers)
        self.stamp_links(visitor, append_stamps, **inner)
        for step in self.tasks:
            step.stamp(visitor, append_stamps, **inner)
        if visitor is not None:
            visitor.on_chain_end(self, **inner)
        return self

    def __or__(self, other: Signature[T]) -> chain[T]:  # type: ignore[override]
        """Return this chain with one step more, or with those of another chain."""
        steps: list[Signature[Any]] = [self] if is_special(self) else list(self.tasks)
        _append(steps, joinable(self, other))
        longer: chain[T] = chain(app=self._app)
        longer["kwargs"]["tasks"] = steps
        return longer

    def shown(self, front: int | None = None) -> str:
        """Return the chain as source text; `front` is about the first step."""
        steps = []
        for step in self.tasks:
            steps.append(step.shown(front))
            front = None if is_empty(step) else 1
        return " | ".join(steps) or "chain()"

    def _parts(self) -> list[Signature[Any]]:
        return self.tasks

    def _replace_parts(self, parts: list[Signature[Any]]) -> None:
        self.tasks = parts

    def _adopt(self, app: Liteq | None) -> None:
        given = self["kwargs"].get("tasks") or ()
        self.tasks = [part(task, f"chain[{i}]", app) for i, task in enumerate(given)]


@Signature.register_type()
class group(Canvas[list[R]]):
    """Members that run all at once, each given the arguments and options of the group.

    `group(a, b, c)`, or of an iterable. The result is a `GroupResult`, in the order of
    the members; the members of a group among them take its place one by one. With a `|` after
    it, it is the header of a chord.
    """

    kind = "group"

    @overload
    def __init__(
        self: group[S], *tasks: Signature[S], app: Any = ..., **options: Any
    ) -> None: ...
    @overload
    def __init__(
        self: group[S], tasks: Iterable[Signature[S]], /, *, app: Any = ..., **options: Any
    ) -> None: ...
    def __init__(  # type: ignore[misc]  # as above
        self, *tasks: Any, app: Any = None, **options: Any
    ) -> None:
        given = unpacked(tasks)
        if isinstance(given, group):
            given = given.tasks
        members = [
            task if isinstance(task, Signature) else part(task, f"group[{number}]", app)
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

        async def adelay(  # type: ignore[override]
            self, *args: Any, **kwargs: Any
        ) -> GroupResult:
            """Send all members without blocking the event loop."""
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
        _check_links(link, link_error)
        sent: Any = super().apply_async(args, kwargs, **options)
        return sent  # type: ignore[no-any-return]

    async def aapply_async(  # type: ignore[override]
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        link: Any = None,
        link_error: Any = None,
        **options: Any,
    ) -> GroupResult:
        """Send all members like `apply_async`, without blocking the event loop."""
        _check_links(link, link_error)
        sent: Any = await super().aapply_async(args, kwargs, **options)
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
        note(self.options, root_id=root_id, parent_id=parent_id, chord=chord)
        members = [member.clone() for member in self.tasks if not is_empty(member)]
        self.tasks = members
        results: list[Any] = []
        for member in members:
            result: Any = member.freeze()
            results += result.results if isinstance(member, group) else [result]
        return GroupResult(self.options["task_id"], results, app=self.app)

    def set_immutable(self, immutable: bool) -> None:
        """Set for all members whether they ignore the result of what is before the group."""
        for member in self.tasks:
            member.set_immutable(immutable)

    def link(self, callback: Any) -> Any:
        """Have `callback` called when the first member has succeeded, without its result, as
        in Celery. What is to run after all members goes after a `|`."""
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
        inner = entered(hook(visitor, "on_group_start"), self, headers)
        self.stamp_links(visitor, append_stamps, **inner)
        for member in self.tasks:
            member.stamp(visitor, append_stamps, **inner)
        if visitor is not None:
            visitor.on_group_end(self, **inner)
        return self

    def __or__(self, other: Signature[T]) -> chord[T]:  # type: ignore[override]
        """Return a chord: this group, with the other as its body."""
        return chord(self, body=joinable(self, other), app=self._app)

    def __len__(self) -> int:
        return len(self.tasks)

    def shown(self, front: int | None = None) -> str:
        """Return the group as source text; `front` is about each member."""
        return f"group({_listed(self.tasks, front)})" if self.tasks else "group(<empty>)"

    def _parts(self) -> list[Signature[Any]]:
        return cast("list[Signature[Any]]", self.tasks)

    def _replace_parts(self, parts: list[Signature[Any]]) -> None:
        self.tasks = parts

    def _adopt(self, app: Liteq | None) -> None:
        given = self["kwargs"].get("tasks") or ()
        self.tasks = [part(task, f"group[{i}]", app) for i, task in enumerate(given)]


@Signature.register_type()
class chord(Canvas[R]):
    """A header, whose members run all at once, and a body after it, which is given the list
    of their results, in the order of the members.

    `chord(header, body)`, `chord(header)(body)` or `group | task`. The result is that of
    the body; its `.parent` is the `GroupResult` of the header. `on_error` says what a failed
    member does: "fail" fails the body at once, with a `ChordError`; with "collect" the
    exception stands in the list, with "skip" it is left out, and the body runs. Arguments go
    to the members, options to members and body, except `countdown` and `eta` (members),
    `task_id`, `link` and `link_error` (body).
    """

    kind = "chord"

    @overload
    def __init__(
        self: chord[S],
        header: Any,
        body: Signature[S],
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
            raise ValueError(f"on_error must be one of {', '.join(ON_ERROR)}, not {on_error!r}")
        parts: dict[str, Any] = {
            "kwargs": dict(kwargs or {}),
            "header": _header(header, app),
            "body": None if body is None else part(body, "the body of a chord", app),
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
        """What runs after the header."""
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
            parts["body"] = part(given.pop("body"), "the body of a chord", self._app)
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
            raise ValueError(f"{self!r} has no body, so no id to fix")
        self.header = self.header.clone()
        header = self.header.freeze()
        self.body = self.body.clone()
        result: AsyncResult[R] = self.body.freeze(self.options.get("task_id") or _id)
        hang(result, header)
        self.options["task_id"] = result.id
        note(self.options, root_id=root_id, parent_id=parent_id, chord=chord)
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
        """Set for all members whether they ignore the result of what is before the chord."""
        self.header.set_immutable(immutable)

    def stamp(
        self,
        visitor: StampingVisitor | None = None,
        append_stamps: bool = False,
        **headers: Any,
    ) -> Self:
        """Stamp every member of the header, and the body; see `Signature.stamp`."""
        if self.body is not None:
            inner = entered(hook(visitor, "on_chord_body"), self, headers)
            self.body.stamp(visitor, append_stamps, **inner)
        inner = entered(hook(visitor, "on_chord_header_start"), self, headers)
        self.stamp_links(visitor, append_stamps, **inner)
        for member in self.tasks:
            member.stamp(visitor, append_stamps, **inner)
        if visitor is not None:
            visitor.on_chord_header_end(self, **inner)
        return self

    def __or__(self, other: Signature[T]) -> chord[T]:  # type: ignore[override]
        """Return this chord with the other after its body."""
        other = joinable(self, other)
        if is_special(self) and self.body is not None:
            longer: Any = chain(self, other, app=self._app)
            return longer  # type: ignore[no-any-return]
        body = other if self.body is None else chain(self.body) | other
        joined: chord[T] = chord(self.header, body, app=self._app)
        parts = {**self["kwargs"], "body": body}
        joined.update({**self, "kwargs": parts, "options": dict(self.options)})
        return joined

    def shown(self, front: int | None = None) -> str:
        """Return the chord as source text; `front` is about each member of the header."""
        header = _listed(self.tasks, front)
        if self.body is None:
            return f"<chord without body: {header}>"
        if isinstance(self.body, Canvas):
            return f"%({header}, {self.body.shown(1)})"
        given = [] if self.body.immutable else [header]
        args = self.body.sources(self.body.args, self.body.kwargs, len(given))
        return f"%{self.body.task}({', '.join((*given, *args))})"

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
        parts["body"] = None if body is None else part(body, "the body of a chord", app)


def is_empty(sig: Signature[Any]) -> bool:
    """Tell whether a workflow has nothing to run: a chain or group of none but such."""
    return isinstance(sig, (chain, group)) and all(map(is_empty, sig.tasks))


# Parts


def _check_links(link: Any, link_error: Any) -> None:
    """Refuse what a group cannot be called with: it has no end of its own to link to."""
    if link is not None:
        raise TypeError("a group takes no link: put a task after it with |, as a chord")
    if link_error is not None:
        raise TypeError("a group takes no link_error: call group.link_error(…) before")


def _listed(tasks: Iterable[Signature[Any]], front: int | None) -> str:
    return f"[{', '.join(task.shown(front) for task in tasks)}]"


def _header(given: Any, app: Liteq | None) -> group[Any]:
    """Return what the header of a chord may be given as, as a group: one; a chain, whose
    steps are the members; one signature; an iterable of signatures."""
    if isinstance(given, Mapping):
        given = part(given, "the header of a chord", app)
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
            members = [part(one, f"chord header[{i}]", app) for i, one in enumerate(given)]
            return group(members, app=app)
    raise TypeError(
        f"the header of a chord must be a group or a list of signatures, not {given!r}"
    )


def _append(steps: list[Signature[Any]], step: Signature[Any]) -> None:
    """Add a step to a chain: those of a plain chain one by one, and of a group of one
    member that member."""
    if isinstance(step, chain) and not is_special(step):
        for inner in step.tasks:
            _append(steps, inner)
    elif isinstance(step, group) and len(step.tasks) == 1 and not step.args:
        only = step.tasks[0]
        options = {k: v for k, v in step.options.items() if k != "task_id"}
        _append(steps, only.clone(**options) if options else only)
    elif steps or not is_empty(step):
        steps.append(step)
