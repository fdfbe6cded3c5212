"""A message: one request to run a task, as it is stored and carried.

A message is an immutable value with explicit fields. `pack()` turns it into a flat tuple of
plain values, which is what a store keeps and what a worker hands to its children;
`Message.unpack()` is the way back. Fields that a store needs for its decisions have a
place of their own in the tuple; the rare rest shares one JSON text, the *envelope*,
which is empty for most messages. `VERSION` is written into every envelope, and an
envelope of a later version is refused, not guessed at.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Final, NamedTuple, TypeAlias, overload

from liteq.exceptions import DecodeError

__all__ = [
    "GATHER",
    "MAX_ENVELOPE",
    "PACKED_FIELDS",
    "VERSION",
    "Alike",
    "Edge",
    "Graph",
    "Message",
    "Packed",
    "Rule",
    "Take",
    "Workflow",
    "pack_all",
    "rule_of",
]

VERSION: Final = 1
MAX_ENVELOPE: Final = 1_048_576  # characters that are read; headers take far fewer
GATHER: Final = "liteq.gather"  # the task name of a message that is not a task but a gather

Packed: TypeAlias = tuple[Any, ...]

_UNREADABLE: Final = "<unreadable: the envelope is damaged or of a later liteq>"
_new: Final = tuple.__new__  # a third of what Message(...) costs

PACKED_FIELDS: Final = (
    "id",
    "task",
    "body",
    "queue",
    "priority",
    "run_at",
    "expires_at",
    "retries",
    "time_limit",
    "soft_time_limit",
    "acks_late",
    "ignore_result",
    "max_deliveries",
    "result_expires",
    "limits",
    "unique_key",
    "envelope",
)

# Where each of them stands. (Of a plain message, only these are read on its whole way.)
(
    ID,
    TASK,
    BODY,
    QUEUE,
    PRIORITY,
    RUN_AT,
    EXPIRES_AT,
    RETRIES,
    TIME_LIMIT,
    SOFT_TIME_LIMIT,
    ACKS_LATE,
    IGNORE_RESULT,
    MAX_DELIVERIES,
    RESULT_EXPIRES,
    LIMITS,
    UNIQUE_KEY,
    ENVELOPE,
) = range(len(PACKED_FIELDS))


class Take(NamedTuple):
    """One input that a signed message waits for, at this position; see `binding`.

    `kind`: "result" or "error" of the call `source`, or the policy of that gather, which
    has `least` parts, and more if some are added.
    """

    source: str
    position: int
    kind: str
    least: int = 1


class Message(NamedTuple):
    """One request to run a task. Times are Unix seconds, durations are seconds.

    `run_at`: not started before. `expires_at`: not started after. (What was said in seconds is
    `clock.FromNow` until it is stored, and must get there as such.) `retries`: how often
    the task asked to be run again. `max_deliveries`: how many times it may be started
    again after its process died, before it becomes a dead letter (None: the store's
    default). `result_expires`: how long the settled message is kept (None: for ever).
    `limits`: the limits that it is started within, `unique_key`: what it is the only
    one of. Both are texts that the store looks into.

    A message with a `unique_key` holds it from when it is enqueued until it has ended,
    and for `unique_for` seconds from then on at least, if it did not fail. What is to
    become of another one that wants the key, that one says by `on_conflict`: "return"
    (None: the same) or "skip": it is not stored, the holder stands for it. "raise":
    `DuplicateTask`. "replace": the holder takes all but its id and place in line if it
    waits to start, its `run_at` not later than `max_wait` seconds from when it was
    enqueued first; if it runs, the new one takes the key over and starts when it has ended.

    A message whose task is `GATHER` is never run: it ends when its parts have ended (see
    `Edge`). Its body says how:

    - b"fail": with the list of the parts' results in the order of their positions; if a
      part ends in another way, it fails at once with a `ChordError` (or is revoked, if
      the part was ignored).
    - b"collect": with that list, in which an error stands for each part that failed.
    - b"skip": with that list, without the parts that failed.
    - b"count": with no list, however they end. The group's parts are read one by one.

    A list is kept as `parts.pack()` makes it.
    """

    id: str
    task: str
    body: bytes
    queue: str = "default"
    priority: int = 0
    run_at: float | None = None
    expires_at: float | None = None
    retries: int = 0
    time_limit: float | None = None
    soft_time_limit: float | None = None
    acks_late: bool = True
    ignore_result: bool = False
    max_deliveries: int | None = None
    result_expires: float | None = 86400.0
    limits: str | None = None
    unique_key: str | None = None

    # The envelope: what only the executing side, or a reader of the result, looks at.
    content_type: str = "json"
    root_id: str | None = None
    parent_id: str | None = None
    group_id: str | None = None
    group_index: int | None = None
    headers: Mapping[str, Any] | None = None
    properties: Mapping[str, Any] | None = None
    shadow: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None
    reply_to: str | None = None
    replaced_task_nesting: int = 0
    requeued: int = 0  # how often it was started and put back, `Reject(requeue=True)`
    stamps: Mapping[str, Any] | None = None
    stamped_headers: tuple[str, ...] | None = None
    store_errors: bool = False
    immutable: bool = False
    has_links: bool = False  # success edges leave here: the value is needed even if ignored
    errback: bool = False  # runs only if something fails: an error callback, or behind one
    # Of one that waits for others: they count from when the last of those has ended.
    countdown: float | None = None
    expires_in: float | None = None
    # Of a node of a workflow.
    gather: str | None = None  # the id of the gather that needs its value
    node: str | None = None  # its name among the nodes
    # Of a unique one: see the class.
    on_conflict: str | None = None
    unique_for: float | None = None
    max_wait: float | None = None
    keywords: tuple[str | None, ...] | None = None  # by input: the argument that it becomes
    # Of a signed one: see `binding`.
    takes: tuple[Take, ...] | None = None
    within: tuple[str, ...] | None = None  # the gathers around `gather`, innermost first
    checkpoint: str | None = None  # what the next attempt goes on from; see `checkpoints`
    signature: str | None = None  # see `signing`; last, since it covers all before it

    def __repr__(self) -> str:
        # Not the fields: bodies hold secrets, and a repr ends up in logs and tracebacks.
        return f"<Message {self.task}[{self.id}]: {len(self.body)} bytes in {self.queue}>"

    @property
    def gathers(self) -> tuple[str, ...]:
        """The gather that needs its value, and those that this one is inside of."""
        return () if self.gather is None else (self.gather, *(self.within or ()))

    def pack(self) -> Packed:
        """Return the message as a tuple in the order of `PACKED_FIELDS`."""
        rest = self[_HOT:]
        return (*self[:_HOT], None if rest == _DEFAULTS else _envelope_of(rest))

    @classmethod
    def unpack(cls, packed: Packed) -> "Message":
        """Return the message that `pack()` made this tuple of.

        Raises `DecodeError` if the envelope is damaged or of a later version.
        """
        text = packed[_HOT]
        made: Message = _new(cls, (*packed[:_HOT], *(_rest_of(text) if text else _DEFAULTS)))
        return made

    @classmethod
    def unpack_unusual(cls, packed: Packed) -> "Message | None":
        """Return the message if its envelope says more than where it belongs, None if not: that
        it can be unpacked is then known, in an eighth of the time.

        Raises `DecodeError` like `unpack()`.
        """
        text = packed[_HOT]
        return None if text is None or _is_usual(text) else cls.unpack(packed)

    def with_packed(self, changes: Mapping[str, Any]) -> "Message":
        """Return the message with other values of these packed fields."""
        packed = dict(zip(PACKED_FIELDS, self.pack(), strict=True))
        return Message.unpack(tuple({**packed, **changes}.values()))

    @classmethod
    def outline(cls, packed: Packed) -> "Message":
        """Return as much of the message as can be read, for who shows it: of an envelope
        that cannot, the defaults, and a word in place of the arguments: what the caller wished
        to hide is in the envelope too. Not to be run or sent."""
        try:
            return cls.unpack(packed)
        except DecodeError:
            return cls.unpack((*packed[:_HOT], None))._replace(argsrepr=_UNREADABLE)


class Alike(Sequence[Message]):
    """Messages like a first one but for id and body, as those of one `enqueue_many()` are.

    A message is made when it is looked at. A store need not look: what they have in common
    is packed, and written, once.
    """

    __slots__ = ("bodies", "first", "ids")

    def __init__(self, first: Message, ids: Sequence[str], bodies: Sequence[bytes]) -> None:
        self.first = first
        self.ids = ids
        self.bodies = bodies

    def pack(self) -> list[Packed]:
        """Return what `pack()` of each returns."""
        task, rest = self.first[1:2], self.first.pack()[3:]
        return [
            (id, *task, body, *rest) for id, body in zip(self.ids, self.bodies, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> "Alike": ...
    def __getitem__(self, index: int | slice) -> "Message | Alike":
        if isinstance(index, slice):
            return Alike(self.first, self.ids[index], self.bodies[index])
        return self._made(self.ids[index], self.bodies[index])

    def __iter__(self) -> Iterator[Message]:
        return map(self._made, self.ids, self.bodies)

    def _made(self, id: str, body: bytes) -> Message:
        made: Message = _new(Message, (id, self.first[1], body, *self.first[3:]))
        return made


def pack_all(messages: Sequence[Message]) -> list[Packed]:
    """Return what `Message.pack()` makes of each."""
    if type(messages) is Alike:  # isinstance() would ask `abc`, in Python
        return messages.pack()
    return [message.pack() for message in messages]


_Rest: TypeAlias = tuple[Any, ...]  # the fields that the envelope holds

# The members of a group differ in the envelope by their index alone: what is around it in
# the last one written is written again as it was.
_last: tuple[_Rest, _Rest, str, str] = ((object(),), (object(),), "", "")


def _envelope_of(rest: _Rest) -> str:
    global _last
    index = rest[_INDEX]
    if index is None or not (
        rest[_HEADERS] is rest[_PROPERTIES] is rest[_STAMPS] is None  # they may change
    ):
        return f'{{{_parts(rest, _NAMES, _DEFAULTS)}"v":{VERSION}}}'
    before, behind = rest[:_INDEX], rest[_INDEX + 1 :]
    known_before, known_behind, head, tail = _last
    # Of fields with one type each, equal ones are written alike.
    if behind != known_behind or before != known_before:
        head = _parts(before, _NAMES[:_INDEX], _DEFAULTS[:_INDEX])
        tail = _parts(behind, _NAMES[_INDEX + 1 :], _DEFAULTS[_INDEX + 1 :])
        _last = (before, behind, head, tail)
    return f'{{{head}"group_index":{index},{tail}"v":{VERSION}}}'


def _parts(values: _Rest, names: _Rest, defaults: _Rest) -> str:
    return "".join(
        f'"{name}":{_json_of(value)},'
        for name, value, default in zip(names, values, defaults, strict=True)
        if value is not default and value != default
    )


def _json_of(value: Any) -> str:
    # Every member of a workflow has some texts and a number: an encoder made for each
    # message would take twice as long as all the rest.
    kind = type(value)
    if kind is str:
        return _quoted(value)
    if kind is int:
        return str(value)
    return json.dumps(dict(value) if isinstance(value, Mapping) else value)


_HOT: Final = PACKED_FIELDS.index("envelope")  # how many fields have a place of their own
_DEFAULTS: Final = tuple(Message._field_defaults.values())[-(len(Message._fields) - _HOT) :]
_NAMES: Final = Message._fields[_HOT:]
_INDEX: Final = _NAMES.index("group_index")
_HEADERS, _PROPERTIES, _STAMPS = map(_NAMES.index, ("headers", "properties", "stamps"))
_REST_AT: Final = {name: number for number, name in enumerate(_NAMES)}


# Of an envelope like this one it is certain how it is read: it holds what most messages of
# workflows do, and nothing about the arguments or the count of starts.
_is_usual: Final = re.compile(
    r'\{(?:"(?:root_id|parent_id|group_id|gather|node|shadow|origin|signature)":'
    r'"[^"\\\x00-\x1f]*",|"group_index":(?:0|[1-9][0-9]{0,8}),|"has_links":true,)*'
    rf'"v":{VERSION}\}}'
).fullmatch

# The types that the fields have in an envelope, and the entries of those that are lists.
_TEXT: Final = (str, type(None))
_Kinds: TypeAlias = Mapping[str, tuple[type, ...]]
_KINDS: Final[_Kinds] = {
    **dict.fromkeys(("root_id", "parent_id", "group_id", "shadow", "argsrepr"), _TEXT),
    **dict.fromkeys(("kwargsrepr", "origin", "reply_to", "gather", "node"), _TEXT),
    **dict.fromkeys(("on_conflict", "checkpoint", "signature"), _TEXT),
    **dict.fromkeys(("headers", "properties", "stamps"), (dict, type(None))),
    **dict.fromkeys(("countdown", "expires_in"), (int, float, type(None))),
    **dict.fromkeys(("unique_for", "max_wait"), (int, float, type(None))),
    **dict.fromkeys(("replaced_task_nesting", "requeued"), (int,)),
    **dict.fromkeys(("store_errors", "immutable", "has_links", "errback"), (bool,)),
    **dict.fromkeys(("stamped_headers", "keywords", "takes", "within"), (type(None),)),
    "content_type": (str,),
    "group_index": (int, type(None)),
}
_LISTS: Final[_Kinds] = {
    "stamped_headers": (str,),
    "keywords": _TEXT,
    "takes": (list,),
    "within": (str,),
}
_TAKES: Final = ((str, int, str), (str, int, str, int))


def _rest_of(text: str) -> _Rest:
    """Return the fields of an envelope, with the defaults of those that it does not hold."""
    rest = list(_DEFAULTS)
    fields = _read_envelope(text)
    try:
        for name, value in fields.items():
            rest[_REST_AT[name]] = value
    except KeyError:
        unknown = sorted(fields.keys() - _REST_AT.keys())
        raise DecodeError(f"unknown fields in the envelope: {unknown}") from None
    return tuple(rest)


def _read_envelope(text: str) -> dict[str, Any]:
    if len(text) > MAX_ENVELOPE:
        raise DecodeError(
            f"the envelope of a message has {len(text)} characters, more than {MAX_ENVELOPE}"
        )
    try:
        fields: dict[str, Any] = json.loads(text)
        version = fields.pop("v")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as exc:
        raise DecodeError(f"the envelope of a message is damaged: {text:.200}") from exc
    if type(version) is not int:
        raise DecodeError(f"the envelope of a message is damaged: {text:.200}")
    if version > VERSION:
        raise DecodeError(
            f"the message was written by a later liteq (envelope version {version}, "
            f"this liteq reads up to {VERSION}): upgrade this worker"
        )
    for name, value in fields.items():
        kind = type(value)
        if kind is list and name in _LISTS:
            fields[name] = _read_list(name, value)
        elif kind not in _KINDS.get(name, (kind,)):  # an unknown one is not of this function
            raise _misfit(name, kind)
    return fields


def _read_list(name: str, value: list[Any]) -> tuple[Any, ...]:
    kinds = _LISTS[name]
    for one in value:
        if type(one) not in kinds:
            raise _misfit(name, type(one))
    return tuple(map(_read_take, value)) if name == "takes" else tuple(value)


def _read_take(value: list[Any]) -> Take:
    kinds = tuple(map(type, value))
    if kinds not in _TAKES:
        raise DecodeError(
            "the envelope of a message is damaged: an entry of takes has values of "
            f"{', '.join(kind.__name__ for kind in kinds[:5]) or 'nothing'}"
        )
    return Take(*value)


def _misfit(name: str, kind: type) -> DecodeError:
    # Not the value: a header may be a secret.
    return DecodeError(
        f"the envelope of a message is damaged: {kind.__name__} is not a type of {name}"
    )


class Rule(NamedTuple):
    """What becomes of a unique message whose key another holds; see `Message`."""

    on_conflict: str = "return"
    unique_for: float | None = None
    max_wait: float | None = None


def rule_of(envelope: str | None) -> Rule:
    """Return what an envelope says of its unique message."""
    fields = _read_envelope(envelope) if envelope else {}
    return Rule(
        fields.get("on_conflict") or "return", fields.get("unique_for"), fields.get("max_wait")
    )


class Edge(NamedTuple):
    """What follows a message: `target` waits for `source` to end, and starts when all that
    it waits for has ended in the way it waits for.

    `on` says which end that is, and what the target is given as input:

    - "success": the result, as an argument in front of its own (in the order of
      `position`). If the source ends in another way, so does the target.
    - "failure": the error (a `link_error`). If the source ends in another way, the target
      is revoked. A target has one such edge and no other.
    - "part": the target is a gather, and the source a part of it at `position`.

    All edges of a target are enqueued with it, while its sources have not ended.
    """

    source: str
    target: str
    on: str
    position: int = 0


class Workflow(NamedTuple):
    """What several messages that are enqueued together are known as.

    `id` is one of theirs: the message whose result is the workflow's, or its group.
    `name` says what it is in a few words ("chord", "chain of 3", or what a user called it).
    """

    id: str
    name: str = ""


class Graph(NamedTuple):
    """Messages and the edges between them, as they travel from a child to its worker."""

    messages: tuple[Packed, ...] = ()
    edges: tuple[tuple[str, str, str, int], ...] = ()

    def joined(self, other: "Graph") -> "Graph":
        """Return what two graphs are together."""
        return Graph((*self.messages, *other.messages), (*self.edges, *other.edges))
