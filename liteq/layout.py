"""From a signature to the steps that it consists of, in the order in which they run.

Chains and chords are laid out as one flat sequence, whatever their depth: a chord is its
header, a group, and its body behind it. What Celery says of arguments, options and links
(which of a workflow's go to its first part, to its last, to all) is said here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from liteq.canvas import Signature, as_list, chain, chord, chunks, group, is_empty
from liteq.canvases.signatures import maybe_signature

__all__ = [
    "NONE",
    "PLACED",
    "Place",
    "Step",
    "immutable",
    "layout",
    "members",
    "step_of_member",
    "where_is",
    "with_more",
]

Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = Mapping[str, Any]
Options: TypeAlias = Mapping[str, Any]
Links: TypeAlias = tuple[Any, ...]
# Where a part stands, for error messages: (what is around it, its name there, its index).
Place: TypeAlias = tuple[Any, str, int | None]

NONE: Final[Mapping[str, Any]] = {}
PLACED: Final = frozenset({"task_id", "link", "link_error"})  # go to the end of a workflow
_TIMES: Final = ("countdown", "eta")


class Step(NamedTuple):
    """One step of a sequence: a task or a group, with what it is called with."""

    sig: Signature[Any]
    args: Args = ()
    kwargs: Kwargs = NONE
    options: Options = NONE
    links: Links = ()  # beside its own
    errbacks: Links = ()
    where: Place = (None, "", None)
    is_group: bool = False
    policy: str = "fail"  # of a header: what a member that fails does
    deaf: bool = False  # what is before it is kept from it


def layout(first: Step, *, errbacks_on_header: bool) -> list[Step]:
    """Return the steps of a signature: those of chains and chords one behind the
    other, what is empty left out. The error callbacks of a chord, or of a chain, are not
    those of a header's members, for the body calls them; with `errbacks_on_header` they
    are both's."""
    steps: list[Step] = []
    waiting = [first]
    while waiting:
        step = waiting.pop()
        match step.sig:
            case chain():
                waiting += reversed(_steps_of_chain(step))
            case chord():
                waiting += reversed(_steps_of_chord(step))
            case chunks():
                waiting.append(step._replace(sig=step.sig.group()))
            case group() if not step.is_group:
                steps.append(_step_of_group(step))
            case _:
                steps.append(step)
    for number, step in enumerate(steps[:-1]):
        if step.is_group:
            on_header = tuple(map(immutable, step.errbacks)) if errbacks_on_header else ()
            steps[number] = step._replace(errbacks=on_header)
    return steps


def _steps_of_chord(step: Step) -> list[Step]:
    sig, where = step.sig, step.where
    args, parts, options = sig.merge(step.args, step.kwargs, step.options)
    body = parts["body"]
    if body is None:
        raise TypeError(f"{where_is(where)}a chord needs a body, and {sig!r} has none")
    common = {k: v for k, v in options.items() if k not in PLACED}
    last = {k: v for k, v in common.items() if k not in _TIMES}
    if options.get("task_id"):
        last["task_id"] = options["task_id"]
    # Links given later are added: the body keeps those that it has.
    links, errbacks = (
        with_more(as_list(sig.options.get(name)), as_list(step.options.get(name)))
        for name in ("link", "link_error")
    )
    errbacks = with_more(errbacks, step.errbacks)
    header = _step_of_group(
        Step(
            parts["header"],
            args,
            parts["kwargs"],
            common,
            errbacks=errbacks,
            where=(where, "header", None),
            policy=parts.get("on_error") or "fail",
            deaf=step.deaf or sig.immutable,
        )
    )
    links = with_more(links, step.links)
    if is_empty(body):  # left out, as in a chain
        return [header._replace(options={**header.options, **last}, links=links)]
    return [header, Step(body, (), NONE, last, links, errbacks, (where, "body", None))]


def _steps_of_chain(step: Step) -> list[Step]:
    sig, where = step.sig, step.where
    args, kwargs, options = sig.merge(step.args, step.kwargs, step.options)
    del kwargs["tasks"]
    errbacks = with_more(as_list(options.get("link_error")), step.errbacks)
    steps = [
        Step(part, errbacks=errbacks, where=(where, "", number))
        for number, part in enumerate(sig["kwargs"]["tasks"])
        if type(part) is Signature or not is_empty(part)
    ]
    if not steps:
        return steps
    first = {k: v for k, v in options.items() if k not in PLACED}
    deaf = step.deaf or sig.immutable
    steps[0] = steps[0]._replace(args=args, kwargs=kwargs, options=first, deaf=deaf)
    last = steps[-1]
    if options.get("task_id"):
        last = last._replace(options={**last.options, "task_id": options["task_id"]})
    steps[-1] = last._replace(links=with_more(as_list(options.get("link")), step.links))
    return steps


def _step_of_group(step: Step) -> Step:
    sig = step.sig
    args, kwargs, options = sig.merge(step.args, step.kwargs, step.options)
    del kwargs["tasks"]
    deaf = step.deaf or sig.immutable
    return step._replace(args=args, kwargs=kwargs, options=options, is_group=True, deaf=deaf)


def members(step: Step) -> Iterator[tuple[Signature[Any], Step, int]]:
    """Yield the members of a group, those of groups in it one by one: each with the group
    that it stands in, and its number there."""
    for number, sig in enumerate(step.sig["kwargs"]["tasks"]):
        if type(sig) is Signature:
            yield sig, step, number
            continue
        if is_empty(sig):
            continue
        inner = sig.group() if isinstance(sig, chunks) else sig
        if isinstance(inner, group):
            where: Place = (step.where, "", number)
            nested = _step_of_group(step._replace(sig=inner, where=where))
            yield from members(nested)
        else:
            yield sig, step, number


def step_of_member(sig: Signature[Any], outer: Step, number: int, index: int) -> Step:
    options = {k: v for k, v in outer.options.items() if k != "task_id"}
    return Step(
        sig,
        outer.args,
        outer.kwargs,
        options,
        # A link of a group is one of its first member, and not given that one's result.
        tuple(map(immutable, outer.links)) if index == 0 else (),
        outer.errbacks,
        (outer.where, "", number),
        deaf=outer.deaf,
    )


def with_more(own: Sequence[Any], more: Sequence[Any]) -> Links:
    """Return the links of a part with those that come from around it and that it has not: a
    list with the same one twice, as its caller wrote it, stays as it is."""
    return (*own, *(one for one in more if one not in own))


def immutable(sig: Any) -> Any:
    copy = maybe_signature(sig, clone=True)
    if isinstance(copy, Signature):
        copy.set_immutable(True)
    return copy


def where_is(where: Place) -> str:
    """Return where a part stands, as the beginning of an error message."""
    words: list[str] = []
    place: Any = where
    while place is not None:
        place, name, number = place
        words.append(name + ("" if number is None else f"[{number}]"))
    text = ""
    for word in reversed(words):
        text += word if word.startswith("[") or not text else f" {word}"
    return f"{text}: " if text else ""
