"""Composing: from a signature to the messages of its calls and the edges between them.

A chain is a path of "success" edges. A group is its members and a *gather*, a message that
runs nothing and ends when they have ended; what stands behind a group stands behind its
gather. A link is one more "success" edge, an error callback a "failure" edge to a message
of its own. Nothing is sent here and no signature is changed, so that a workflow with a
mistake in it leaves no trace.

Chains and chords are first laid out as one flat sequence of steps, whatever their depth;
only a member of a group, and what is linked, is a sequence inside of another. The work is
linear in the number of calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from liteq import context
from liteq.calls import checked_id, too_large
from liteq.canvas import Graph, Signature, as_list, chain, chord, chunks, group, is_empty
from liteq.canvases.signatures import maybe_signature, merged
from liteq.exceptions import ImproperlyConfigured, LiteqError, NotRegistered
from liteq.ids import new_id, new_ids
from liteq.layout import (
    NONE,
    PLACED,
    Kwargs,
    Links,
    Options,
    Place,
    Step,
    layout,
    members,
    step_of_member,
    where_is,
    with_more,
)
from liteq.limits import UNKNOWN
from liteq.message import GATHER, PACKED_FIELDS, Edge, Message, Workflow
from liteq.options import UNIQUE_OPTIONS, checked_seconds
from liteq.result import AsyncResult, GroupResult
from liteq.serializers import dumps_call

if TYPE_CHECKING:
    from liteq.calls import Defaults
    from liteq.rules import Rules
    from liteq.sending import Sender
    from liteq.task import Task

__all__ = ["Composed", "compose", "compose_call"]

_DEEPEST: Final = 100  # sequences inside of each other; far below Python's own limit
_LINKS: Final = frozenset({"link", "link_error"})
_IDS: Final = 1_000  # made at once, at most
_COUNTED: Final = {"countdown": "countdown", "expires": "expires_in"}
_REFUSED: Final = (LiteqError, TypeError, ValueError)  # what a call that cannot be raises

# Most messages are one that was worked out before, with a few fields changed: `_replace`
# would take longer than all the rest of making them.
_AT: Final = {name: number for number, name in enumerate(Message._fields)}
_ID, _BODY, _PARENT, _INDEX = (_AT[name] for name in ("id", "body", "parent_id", "group_index"))
_CONTENT_TYPE = _AT["content_type"]
_ROOT, _GROUP = _AT["root_id"], _AT["group_id"]
_GATHER, _LINKED, _IMMUTABLE = (_AT[name] for name in ("gather", "has_links", "immutable"))
_IGNORED, _KEYWORDS, _LIMITS = _AT["ignore_result"], _AT["keywords"], _AT["limits"]


class Composed(NamedTuple):
    """A signature as the store takes it.

    `messages` and `edges` are to be enqueued in one step, as `workflow` (None for a single
    call with its links). `result` is that of the whole: an `AsyncResult` or a
    `GroupResult`, with its `.parent`s; None for an empty chain. `entry` is the result of
    what runs first. `replaced` holds, with `take_over`, the packed fields that make the
    message that was given into the last one of these: that one is not among `messages`.
    """

    messages: list[Message]
    edges: list[Edge]
    workflow: Workflow | None = None
    result: Any = None
    entry: Any = None
    replaced: Mapping[str, Any] | None = None


def compose(
    sender: Sender,
    sig: Signature[Any] | Graph,
    args: Sequence[Any] = (),
    kwargs: Kwargs = NONE,
    options: Options = NONE,
    *,
    take_over: Message | None = None,
    part_of: str | None = None,
) -> Composed:
    """Return what it takes to run a signature, called with these arguments and options.

    With `take_over`, the last message takes over the id, the place and the followers of
    that one (`Task.replace`). With `part_of`, it becomes the next part of the gather of
    this id, which is in the store (`Task.add_to_chord`). Raises for what cannot be sent,
    naming the part that is to blame: `TypeError`, `ValueError`, `EncodeError`,
    `MessageTooLarge`, `NotRegistered`.
    """
    composer = _Composer(sender)
    if isinstance(sig, Graph):
        return composer.graph(sig, tuple(args), kwargs, options)
    where: Place = (None, sig.subtask_type or "", None)
    steps = composer.layout(Step(sig, tuple(args), kwargs, options, where=where))
    if take_over is not None:
        return _taken_over(composer, steps, take_over)
    if part_of is not None:
        return _added(composer, steps, part_of)
    made = composer.sequence(steps, _Before(parent=composer.parent))
    name = _name(sig)
    workflow = Workflow(made.id, name) if name and made.id is not None else None
    return Composed(composer.messages, composer.edges, workflow, made.result, made.entry)


def compose_call(
    sender: Sender, message: Message, link: Any, link_error: Any
) -> tuple[list[Message], list[Edge]]:
    """Return the message of a call with those of what is linked to it, and their edges."""
    composer = _Composer(sender)
    composer.root = message.root_id or message.id
    links, errbacks = tuple(as_list(link)), tuple(as_list(link_error))
    if links:
        message = message._replace(has_links=True)
    composer.messages.append(message)
    composer.add_links(message, links, errbacks, (None, "", None))
    return composer.messages, composer.edges


def _taken_over(composer: _Composer, steps: list[Step], old: Message) -> Composed:
    if not steps:
        raise ImproperlyConfigured("a task cannot be replaced by an empty workflow")
    _give_value(composer, steps)
    last = _Member(id=old.id, policy="fail")
    sequence = composer.sequence(steps, _Before(parent=old.id), last)
    at = next(i for i, one in enumerate(composer.messages) if one.id == old.id)
    new = composer.messages.pop(at)
    new = new._replace(
        root_id=old.root_id,
        parent_id=old.parent_id if new.parent_id == old.id else new.parent_id,
        group_id=old.group_id,
        group_index=old.group_index,
        gather=old.gather,
        node=old.node,
        has_links=new.has_links or old.has_links,
        replaced_task_nesting=old.replaced_task_nesting + 1,
    )
    pairs = zip(PACKED_FIELDS, old.pack(), new.pack(), strict=True)
    changes = {name: now for name, was, now in pairs if now != was}
    return Composed(
        composer.messages, composer.edges, None, sequence.result, sequence.entry, changes
    )


def _added(composer: _Composer, steps: list[Step], gather: str) -> Composed:
    if not steps:
        raise ImproperlyConfigured("an empty workflow cannot be added to a chord")
    _give_value(composer, steps)
    last = _Member(group=gather, policy="fail")
    made = composer.sequence(steps, _Before(parent=composer.parent), last)
    composer.edges.append(Edge(made.id or "", gather, "part", -1))
    return Composed(composer.messages, composer.edges, None, made.result, made.entry)


def _give_value(composer: _Composer, steps: list[Step]) -> None:
    """Have a call stand for a group of no members at the end, whose value, an empty list,
    is waited for."""
    if is_empty(steps[-1].sig):
        nothing: Signature[Any] = Signature(
            "liteq.accumulate", ([],), {"index": 0}, app=composer.app
        )
        steps[-1] = steps[-1]._replace(sig=nothing, options=NONE, is_group=False)


def _name(sig: Signature[Any]) -> str:
    """Return what a workflow is in a few words; none for a single call."""
    match sig:
        case chunks():
            return _name(sig.group())
        case chain():
            return f"chain of {len(sig.tasks)}" if len(sig.tasks) > 1 else _name_of_one(sig)
        case group() | chord():
            return f"{sig.subtask_type} of {len(sig.tasks)}"
        case _:
            return ""


def _name_of_one(sig: chain[Any]) -> str:
    return _name(sig.tasks[0]) if sig.tasks else ""


class _Before(NamedTuple):
    """What a step stands behind: the message `source`, if there is one.

    `parent` is the id of a task. `empty`: a group of no members is between, so that the
    value is an empty list, whatever the source gives.
    """

    source: str | None = None
    parent: str | None = None
    on: str = "success"
    position: int = 0
    empty: bool = False
    result: Any = None
    priority: int | None = None
    more: tuple[str, ...] = ()  # further sources, at the positions that follow
    keywords: tuple[str, ...] | None = None  # by position: what their results are called

    @property
    def given(self) -> int:
        """The number of positional arguments that come of it."""
        if self.source is None or self.empty or self.keywords is not None:
            return 0
        return 1 + len(self.more)


class _Member(NamedTuple):
    """What the last message of a sequence is to others: its id, if that is fixed; its
    place in a group; the policy of the gather that needs its value, if one does."""

    id: str | None = None
    group: str | None = None
    number: int | None = None
    policy: str | None = None

    @property
    def gather(self) -> str | None:
        """The gather that needs its value: of a group that nothing stands behind, none."""
        return None if self.policy is None else self.group


class _Sequence(NamedTuple):
    """A sequence that was composed: the id of its last message, that of the last task in
    it, its result, that of its first step, and the priority that follows from it."""

    id: str | None
    task_id: str | None
    result: Any
    entry: Any
    priority: int | None


_Adder: TypeAlias = Callable[[Signature[Any], int], AsyncResult[Any]]


class _Known(NamedTuple):
    """What is known of a task's name. `task`: None if this process does not have it."""

    task: Task[..., Any] | None
    defaults: Defaults
    check: Callable[[Any, Any], None] | None


class _Composer:
    """Collects the messages and edges of one workflow."""

    def __init__(self, sender: Sender) -> None:
        self.app = sender.app
        self.messages: list[Message] = []
        self.edges: list[Edge] = []
        self.root: str | None = None
        self._sender = sender
        self._rules: Rules = sender.rules()
        self._limit: int = self.app.conf.task_max_workflow_size
        self._errbacks_on_header = self.app.conf.task_allow_error_cb_on_chord_header
        self._known: dict[str, _Known] = {}
        self._given: set[str] = set()  # ids that were given, not made
        self._depth = 0
        self._in_links = 0
        self.parent: str | None = None
        running = context.current()
        if running is not None and running.id is not None:
            self.root, self.parent = running.root_id, running.id

    def layout(self, step: Step) -> list[Step]:
        """Return the steps of a signature."""
        return layout(step, errbacks_on_header=self._errbacks_on_header)

    def graph(
        self, graph: Graph, args: tuple[Any, ...], kwargs: Kwargs, options: Options
    ) -> Composed:
        """Return the messages of a graph, and the edges between its nodes."""
        if refused := options.keys() & PLACED:
            raise TypeError(f"a graph takes no {min(refused)}: give it to a node's signature")
        made: dict[str, _Sequence] = {}
        ends = graph.ends()
        gather = new_id()
        for node in graph.order():
            step = Step(node.sig, where=(None, f"node {node.name!r}", None))
            if not node.after:
                step = step._replace(args=args, kwargs=kwargs, options=options)
            before = _Before(parent=self.parent)
            if node.after:
                source, *more = (made[name].id or "" for name in node.after)
                last = made[node.after[-1]].task_id
                before = _Before(
                    source,
                    last,
                    priority=made[node.after[0]].priority,
                    more=tuple(more),
                    keywords=node.keywords,
                )
            place: _Member | None = _Member(policy="fail")
            if len(ends) > 1 and node.name in ends:
                place = _Member(None, gather, ends.index(node.name))
            elif node.name in ends:
                place = None
            sequence = made[node.name] = self.sequence(self.layout(step), before, place)
            if sequence.id is None:
                raise ValueError(f"node {node.name!r} has nothing to run: {node.sig!r}")
            self._call_it(sequence.id, node.name)
        if not made:
            raise ValueError(f"graph {graph.name!r} has no nodes")
        entry = next(iter(made.values())).entry
        if len(ends) == 1:
            last_made = made[ends[0]]
            workflow = Workflow(last_made.id or "", graph.name)
            return Composed(self.messages, self.edges, workflow, last_made.result, entry)
        self._add_gather(gather, "count", self.messages[0], None)
        for index, name in enumerate(ends):
            self.edges.append(Edge(made[name].id or "", gather, "part", index))
        result = GroupResult(gather, [made[name].result for name in ends], None, self.app)
        workflow = Workflow(gather, graph.name)
        return Composed(self.messages, self.edges, workflow, result, entry)

    def _call_it(self, id: str, name: str) -> None:
        """Enter the name of a node with its last message."""
        at = len(self.messages) - 1
        while self.messages[at].id != id:  # its links and the gather's members are behind
            at -= 1
        self.messages[at] = self.messages[at]._replace(node=name)

    def sequence(
        self, steps: Sequence[Step], before: _Before, place: _Member | None = None
    ) -> _Sequence:
        """Add the messages of steps that follow each other."""
        self._depth += 1
        if self._depth > _DEEPEST:
            where = where_is(steps[0].where)
            raise ValueError(f"{where:.200}: groups and links are nested too deep")
        id: str | None = None
        task_id: str | None = None
        result: Any = None
        entry: Any = None
        priority: int | None = None
        for number, step in enumerate(steps):
            is_last = number == len(steps) - 1
            here = place if is_last else None
            if step.is_group:
                policy = step.policy
                if is_last:
                    policy = (here.policy if here is not None else None) or "count"
                id, task_id, result = self._group(step, before, here, policy)
                priority = self.messages[-1].priority if id is not None else None
            else:
                message = self._call(step, before, here, is_last=is_last)
                id, priority = message.id, message.priority
                task_id = id
                result = self._result(message, before.result)
            if id is None:  # a group of no members
                before = before._replace(empty=True, result=result)
                continue
            if entry is None:
                entry = result
            if not is_last:
                before = _Before(id, task_id, result=result, priority=priority)
        self._depth -= 1
        return _Sequence(id, task_id, result, entry, priority)

    def _group(
        self, step: Step, before: _Before, place: _Member | None, policy: str
    ) -> tuple[str | None, str | None, GroupResult]:
        """Add the members of a group and its gather. Return the gather's id (None if
        there are no members), the id of the last task, and the result."""
        given = step.options.get("task_id")
        id = place.id if place is not None else None
        if id is None:
            id = self._take(given, step.where) if given else new_id()
        needed = None if policy == "count" else policy
        behind = before._replace(result=None)
        first = len(self.messages)
        last_task = before.parent
        results: list[Any] = []
        adders: dict[str, _Adder | None] = {}
        around: Step | None = None
        for index, (sig, outer, number) in enumerate(members(step)):
            if outer is not around:
                around, adders = outer, {}
            add = None
            if type(sig) is Signature and not (
                sig["options"] or outer.errbacks or (index == 0 and outer.links)
            ):
                name = sig["task"]
                if name not in adders and self.root is not None:
                    member = _Member(None, id, index, needed)
                    adders[name] = self._adder(sig, outer, number, behind, member)
                add = adders.get(name)
            if add is not None:
                try:
                    result = add(sig, index)
                except _REFUSED as exc:
                    _place(exc, (outer.where, "", number))
                    raise
                last_task = result.id
                results.append(result)
            else:
                inner = step_of_member(sig, outer, number, index)
                member = _Member(None, id, index, needed)
                made = self.sequence(self.layout(inner), behind, member)
                last_task = made.task_id
                results.append(made.result)
                self.edges.append(Edge(made.id or "", id, "part", index))
        whole = GroupResult(id, results, before.result, self.app)
        if not results:
            return None, last_task, whole
        self._add_gather(id, policy, self.messages[first], place)
        return id, last_task, whole

    def _adder(
        self, sig: Signature[Any], outer: Step, number: int, before: _Before, place: _Member
    ) -> _Adder | None:
        """Return what adds members of a group that call one task and have no options of
        their own: their messages differ in nothing but their arguments. None if a route, a
        name or a unique key depends on those."""
        where: Place = (outer.where, "", number)
        known = self._look_up(sig, where)
        task = known.task
        if known.defaults.keys is not None:
            return None
        if not known.defaults.is_plain and (
            not self._rules.router.is_static
            or (task is not None and task.has_shadow_names())
            or UNIQUE_OPTIONS & known.defaults.own.keys()
        ):
            return None
        if outer.options.keys() & (_LINKS | UNIQUE_OPTIONS) or before.more or before.keywords:
            return None
        name = sig["task"]
        options = {k: v for k, v in outer.options.items() if k not in PLACED}
        try:
            fields = self._fields(known, name, (), NONE, options, before)
        except _REFUSED as exc:
            _place(exc, where)
            raise
        self._put(fields, place)
        # What follows is the loop of a large group: names of its own are the quickest.
        app, check, given, named = self.app, known.check, outer.args, outer.kwargs
        append, connect = self.messages.append, self.edges.append
        source, gather, is_empty_before = before.source, place.group, before.empty
        kind, ignored = fields[_CONTENT_TYPE], fields[_IGNORED]
        most, cipher = self._rules.max_body_size, self._rules.cipher
        new = tuple.__new__
        ids: list[str] = []

        def add(sig: Signature[Any], index: int) -> AsyncResult[Any]:
            args, kwargs, is_deaf = sig["args"], sig["kwargs"], sig["immutable"]
            if not is_deaf:
                if given or named:
                    args, kwargs = (*given, *args), {**kwargs, **named}
                is_deaf = outer.deaf
                if is_empty_before and not is_deaf:
                    args, is_deaf = ([], *args), True
            if check is not None:
                check(args if source is None or is_deaf else (None, *args), kwargs)
            body = fields[_BODY] = dumps_call(args, kwargs, kind, cipher)
            if len(body) > most:
                raise too_large(name, body, most)
            if not ids:
                ids.extend(reversed(new_ids(min(2 * index + 1, _IDS))))
            id = fields[_ID] = ids.pop()
            fields[_INDEX] = index
            if source is not None:
                fields[_IMMUTABLE] = is_deaf
                connect(Edge(source, id, before.on, before.position))
            append(new(Message, fields))
            connect(new(Edge, (id, gather, "part", index)))
            result: AsyncResult[Any] = AsyncResult(id, None, name, app)
            if ignored:
                result.ignored = True
            return result

        return add

    def _body(self, name: str, args: Any, kwargs: Kwargs, kind: str) -> bytes:
        body = dumps_call(args, kwargs, kind, self._rules.cipher)
        if len(body) > self._rules.max_body_size:
            raise too_large(name, body, self._rules.max_body_size)
        return body

    def _call(
        self, step: Step, before: _Before, place: _Member | None, *, is_last: bool
    ) -> Message:
        """Add the message of a task, and those of its links."""
        sig, where = step.sig, step.where
        own = sig["options"]
        options = merged(own, step.options) if own and step.options else own or step.options
        links, errbacks = step.links, step.errbacks
        if options:
            links = with_more(as_list(options.get("link")), links)
            errbacks = with_more(as_list(options.get("link_error")), errbacks)
        id = place.id if place is not None else None
        if id is None:
            given = options.get("task_id")
            id = self._take(given, where) if given else new_id()
        if self.root is None:
            self.root = options.get("root_id") or id
        args, kwargs = sig["args"], sig["kwargs"]
        is_deaf = sig["immutable"] or step.deaf
        if not sig["immutable"]:
            args, kwargs = (*step.args, *args), {**kwargs, **step.kwargs}
        if before.empty and not is_deaf:
            args = ([], *args)
        known = self._look_up(sig, where)
        plain = {k: v for k, v in options.items() if k not in PLACED and v is not None}
        try:
            if known.check is not None and before.on == "success":
                takes = 0 if is_deaf else before.given
                named = dict.fromkeys(before.keywords or ())
                known.check((*(None,) * takes, *args), {**kwargs, **named})
            fields = self._fields(known, sig["task"], args, kwargs, plain, before)
            if known.defaults.keys is not None:
                unknown = 0 if is_deaf or before.source is None else before.given
                later = dict.fromkeys(before.keywords or (), UNKNOWN)
                fields[_LIMITS] = known.defaults.keys.text(
                    (*(UNKNOWN,) * unknown, *args), {**kwargs, **later}, self._rules.cipher
                )
            fields[_BODY] = self._body(sig["task"], args, kwargs, fields[_CONTENT_TYPE])
        except _REFUSED as exc:
            _place(exc, where)
            raise
        fields[_ID] = id
        if fields[_ROOT] == id:
            fields[_ROOT] = None
        if place is not None:
            self._put(fields, place)
        if links or not is_last:
            fields[_LINKED] = True
        if before.source is not None:
            fields[_IMMUTABLE] = is_deaf or before.empty
            fields[_KEYWORDS] = before.keywords
            for position, source in enumerate((before.source, *before.more), before.position):
                self.edges.append(Edge(source, id, before.on, position))
        message = tuple.__new__(Message, fields)
        self._add(message)
        if links or errbacks:
            self.add_links(message, links, errbacks, where)
        return message

    def add_links(self, message: Message, links: Links, errbacks: Links, where: Place) -> None:
        """Add what is called behind a message, when it succeeds and when it fails. Each
        place has messages of its own, also if the same signature is linked elsewhere."""
        self._in_links += 1
        for option, on, given in (
            ("link", "success", links),
            ("link_error", "failure", errbacks),
        ):
            for position, one in enumerate(given):
                sig = maybe_signature(one, app=self.app)
                if not isinstance(sig, Signature):
                    raise TypeError(
                        f"{where_is(where)}{option} takes signatures, as task.s(…) makes them, "
                        f"not {one!r}"
                    )
                before = _Before(
                    message.id, message.id, on, position, priority=message.priority
                )
                step = Step(sig, where=(where, option, position))
                first = len(self.messages)
                self.sequence(self.layout(step), before)
                if on == "failure":
                    behind = self.messages[first:]
                    self.messages[first:] = [each._replace(errback=True) for each in behind]
        self._in_links -= 1

    # One message

    def _look_up(self, sig: Signature[Any], where: Place) -> _Known:
        name = sig["task"]
        known = self._known.get(name)
        if known is not None:
            return known
        if not isinstance(name, str) or not name:
            raise TypeError(
                f"{where_is(where)}a signature needs the name of a task, not {name!r}"
            )
        task = sig._type
        if task is None:
            task = self.app.tasks.get(name)
        if task is None:
            try:
                self.app.tasks.refuse_misspelt(name)
            except NotRegistered as exc:
                _place(exc, where)
                raise
        defaults = self._sender.defaults(self._rules, name, task)
        check = None
        if task is not None and defaults.checks_arguments:
            check = task.check_arguments
        known = self._known[name] = _Known(task, defaults, check)
        return known

    def _fields(
        self,
        known: _Known,
        name: str,
        args: Any,
        kwargs: Kwargs,
        options: Options,
        before: _Before,
    ) -> list[Any]:
        """Return the fields of a message, but for id, body, and its place in a group."""
        if options or not known.defaults.is_plain or self._rules.inherits_priority:
            fields = list(self._special(known, name, args, kwargs, options, before))
        else:
            fields = list(known.defaults.template)
        if "root_id" not in options:
            fields[_ROOT] = self.root
        if "parent_id" not in options:
            fields[_PARENT] = before.parent
        return fields

    def _special(
        self,
        known: _Known,
        name: str,
        args: Any,
        kwargs: Kwargs,
        options: Options,
        before: _Before,
    ) -> Message:
        """Return a message with options, or with a priority that it may inherit. Of one that
        waits for another, a countdown and an expiry in seconds count from the end of that,
        as in Celery."""
        given = dict(options)
        changes: dict[str, Any] = {}
        if before.source is not None:
            own = known.defaults.own
            if "expires" not in given and _is_duration(own.get("expires")):
                given["expires"] = own["expires"]
            for option, field in _COUNTED.items():
                if _is_duration(given.get(option)):
                    changes[field] = checked_seconds(option, given.pop(option))
            if "expires_in" in changes:
                changes["expires_at"] = None
        message = self._sender.message(
            self._rules,
            name,
            known.task,
            args,
            kwargs,
            given,
            body=b"",
            inherited=before.priority,
        )
        return message._replace(**changes) if changes else message

    def _put(self, fields: list[Any], place: _Member) -> None:
        """Enter a message's place in a group."""
        if place.group is not None:
            fields[_GROUP] = place.group
            fields[_INDEX] = place.number
            fields[_GATHER] = place.gather
        if place.policy is not None and fields[_IGNORED]:
            fields[_LINKED] = True

    def _add_gather(self, id: str, policy: str, first: Message, place: _Member | None) -> None:
        gather = Message(
            id,
            GATHER,
            policy.encode(),
            queue=first.queue,
            priority=first.priority,
            result_expires=first.result_expires,
            root_id=self.root,
            parent_id=first.parent_id,
            group_id=place and place.group,
            group_index=place and place.number,
            gather=place and place.gather,
        )
        self._add(gather)

    def _add(self, message: Message) -> None:
        self.messages.append(message)
        if len(self.messages) > self._limit:
            raise ValueError(
                f"this workflow has more than the {self._limit} calls that are allowed: "
                "split it, or raise task_max_workflow_size"
            )

    def _take(self, id: Any, where: Place) -> str:
        """Return an id that was given. A link's is not used twice: it may stand behind
        several steps, each time as a call of its own."""
        id = checked_id(id)
        if id in self._given:
            if self._in_links:
                return new_id()
            raise ValueError(f"{where_is(where)}two calls of this workflow have the id {id!r}")
        self._given.add(id)
        return str(id)

    def _result(self, message: Message, parent: Any) -> AsyncResult[Any]:
        result: AsyncResult[Any] = AsyncResult(message.id, None, message.task, self.app, parent)
        result.ignored = message.ignore_result
        return result


def _is_duration(given: Any) -> bool:
    return isinstance(given, (int, float, timedelta))


def _place(exc: Exception, where: Place) -> None:
    """Have an error say which part of the workflow it is about."""
    if exc.args and isinstance(exc.args[0], str):
        exc.args = (where_is(where) + exc.args[0], *exc.args[1:])
