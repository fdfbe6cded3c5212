"""The contract's values as arguments and answers of the Lua scripts.

Numbers travel as text, so that none of them passes through Lua's floating point but those
that Lua reckons with. What Lua never looks at, six options of a message, share one text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import islice
from operator import length_hint
from typing import Any, Final, NamedTuple, cast

from liteq import failure
from liteq.brokers.graph import count_edges, divide_edges
from liteq.brokers.moving import Kept
from liteq.brokers.redis_wire import strings, unpack
from liteq.brokers.values import Attempt, Input, Lease, Note, Record, Schedule, State
from liteq.clock import FromNow
from liteq.exceptions import InvalidTaskError, TaskRevokedError, WorkerLostError
from liteq.message import (
    ACKS_LATE,
    BODY,
    ENVELOPE,
    EXPIRES_AT,
    GATHER,
    ID,
    IGNORE_RESULT,
    LIMITS,
    PACKED_FIELDS,
    PRIORITY,
    QUEUE,
    RESULT_EXPIRES,
    RETRIES,
    RUN_AT,
    TASK,
    UNIQUE_KEY,
    Edge,
    Graph,
    Packed,
    rule_of,
)
from liteq.outcome import (
    Failed,
    Ignored,
    Lost,
    Outcome,
    Released,
    Replaced,
    Retried,
    Revoked,
    Succeeded,
)
from liteq.texts import unencodable

__all__ = [
    "LETTERS",
    "PACKED_COUNT",
    "RECORD_FIELDS",
    "STATES",
    "Fields",
    "Settlements",
    "attempts_of",
    "graph_arguments",
    "kept_fields",
    "lease_in",
    "lone_arguments",
    "packed_of",
    "read_inputs",
    "read_leases",
    "record_of",
    "schedule_of",
]

STATES: Final[dict[bytes, State]] = {
    b"w": "waiting",
    b"q": "queued",
    b"d": "scheduled",
    b"r": "running",
    b"p": "parked",
    b"l": "limited",
    b"S": "succeeded",
    b"F": "failed",
    b"R": "revoked",
    b"I": "ignored",
}
LETTERS: Final[dict[str, str]] = {
    **{name: letter.decode() for letter, name in STATES.items()},
    "retrying": "y",
    "dead": "dead",
}
PACKED_COUNT: Final = 8  # fields that a packed message is answered as
RECORD_FIELDS: Final = 23
MOST_AT_ONCE: Final = 50_000  # messages of a graph; a server says BUSY after five seconds
_IGNORED_KEPT: Final = 3600.0  # seconds an unwanted result is kept, against repetitions
_PLACES: Final = {name: at for at, name in enumerate(PACKED_FIELDS)}
_REPLACE: Final = frozenset(PACKED_FIELDS) - {"id"}
_RETRY: Final = _REPLACE - {"task", "run_at"}

# What a script reckons with must be what it is taken for: it cannot fail half-way.
_NUMBER: Final = (int, float, type(None))
_KINDS: Final[tuple[tuple[int, Any], ...]] = (
    (0, str),
    (1, str),
    (2, bytes),
    (3, str),
    (4, int),
    (5, _NUMBER),
    (6, _NUMBER),
    (7, int),
    (8, _NUMBER),
    (9, _NUMBER),
    (12, (int, type(None))),
    (13, _NUMBER),
)
Field = bytes | None
_ONE: Final = ord("1")
_BAND: Final = 1 << 44  # numbers of one priority (see `rank` in `lua/ends.lua`)
_new: Final = tuple.__new__  # a third of what a named tuple's own call costs


class Fields:
    """The fields of an answer, taken one after the other."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._left = iter(fields)
        self.one: Callable[[], Field] = self._left.__next__  # a step takes many: no frame each

    def more(self) -> bool:
        return length_hint(self._left) > 0

    def some(self, count: int) -> Sequence[Field]:
        return tuple(islice(self._left, count))

    def bytes(self) -> bytes:
        return self.one() or b""

    def text(self) -> str:
        return self.bytes().decode()

    def number(self) -> int:
        return int(self.one() or b"")


# Messages


def _given(packed: Packed) -> bytes:
    """Return what stands in the field `g` of a message (see `lua/base.lua`)."""
    return _given_of(
        packed[TASK], packed[QUEUE], packed[PRIORITY], packed[RETRIES], *packed[8:14]
    )


# The messages of a task have nearly always the same.
@lru_cache(maxsize=1024, typed=True)
def _given_of(
    task: str,
    queue: str,
    priority: int,
    retries: int,
    limit: float | None,
    soft: float | None,
    late: object,
    ignored: object,
    most: int | None,
    expires: float | None,
) -> bytes:
    try:
        name, called = queue.encode(), task.encode()
    except UnicodeEncodeError as exc:
        raise unencodable(exc) from None
    return (
        f"{priority:d},{retries:d},{_text(limit)},{_text(soft)},{1 if late else 0},"
        f"{1 if ignored else 0},{_text(most)},{_text(expires)},{len(name)},"
    ).encode() + b"%b%b" % (name, called)


def _text(value: float | None) -> str:
    return "" if value is None else repr(value)


class _Given(NamedTuple):
    task: str
    queue: str
    priority: int
    retries: int
    options: tuple[Any, ...]
    rest: tuple[Any, ...]  # of a packed message that has nothing else, from the queue on
    damage: str | None = None  # an envelope that nobody can read, which says why


@lru_cache(maxsize=1024)
def _read_given(text: bytes) -> _Given:
    try:
        return _given_in(text, "strict")
    except ValueError:  # another program wrote it
        damage = f"damaged fields: {text!r}"
    try:
        given = _given_in(text, "backslashreplace")
    except ValueError:  # a script gives no lease of it: it is only looked at
        given = _Given("damaged", "damaged", 0, 0, (None, None, True, False, None, None), ())
    rest = (given.queue, given.priority, None, None, given.retries, *given.options)
    return given._replace(rest=(*rest, None, None, damage), damage=damage)


def _given_in(text: bytes, errors: str) -> _Given:
    priority, retries, limit, soft, late, ignored, most, expires, size, names = text.split(
        b",", 9
    )
    end = int(size)
    options = (
        _number(limit),
        _number(soft),
        late == b"1",
        ignored == b"1",
        int(most) if most else None,
        _number(expires),
    )
    task, queue = names[end:].decode(errors=errors), names[:end].decode(errors=errors)
    rest = (queue, int(priority), None, None, int(retries), *options, None, None, None)
    return _Given(task, queue, int(priority), int(retries), options, rest)


def _number(text: str | bytes | None) -> float | None:
    return float(text) if text else None


def _time(text: bytes | None) -> float | None:
    """Return a time; None if another program wrote what is none."""
    try:
        return _number(text)
    except ValueError:
        return None


def packed_of(fields: Sequence[Field]) -> Packed:
    """Return the packed message of its fields: id, g, body, run_at, expires_at, limits,
    unique_key, envelope.

    Fields that nobody can read make a message with a damaged envelope: who is to run it
    says so, and it is kept as a dead letter. An error here would end the worker.
    """
    id, given, body, run_at, expires_at, limits, unique_key, envelope = fields
    assert id is not None
    task, queue, priority, retries, options, _, damage = _read_given(given or b"")
    start = (id.decode(), task, body or b"", queue, priority)
    if damage is not None:
        return (*start, None, None, retries, *options, None, None, damage)
    try:
        return (
            *start,
            _number(run_at),
            _number(expires_at),
            retries,
            *options,
            None if limits is None else limits.decode(),
            None if unique_key is None else unique_key.decode(),
            None if envelope is None else envelope.decode(),
        )
    except ValueError:
        damage = f"damaged fields: {list(fields[3:])}"
        return (*start, None, None, retries, *options, None, None, damage)


def read_leases(fields: Fields, token: int) -> list[Lease]:
    """Return the leases that `put_leases` of `lua/plain.lua` puts."""
    count, heads = fields.number(), iter(map(int, fields.bytes().split()))
    each = iter(cast("Sequence[bytes]", fields.some(3 * count)))
    last, given = b"", _Given("", "", 0, 0, (), ())
    leases = []
    for key, delivery, id, text, body in zip(heads, heads, each, each, each, strict=True):
        if delivery < 0:
            more = Fields(unpack(body))
            packed = packed_of((id, text, *more.some(PACKED_COUNT - 2)))
            leases.append(Lease(key, token, -delivery, packed, read_inputs(more)))
            continue
        # Most messages have nothing but these, and this is done for each.
        if text != last:
            last, given = text, _read_given(text)
        packed = (id.decode(), given.task, body, *given.rest)
        leases.append(_new(Lease, (key, token, delivery, packed, ())))
    return leases


def lease_in(bell: bytes) -> Lease:
    """Return the lease that a bell brings: see `lua/enqueue_one.lua`. Raises `ValueError` if
    it brings none."""
    at = bell.index(b"\n") + 1
    key, token, *sizes = map(int, bell[:at].split())
    id_size, given_size, body_size = sizes
    if min(sizes) < 0 or at + sum(sizes) > len(bell):
        raise ValueError(f"no lease: {bell[:at]!r} before {len(bell) - at} bytes")
    given_at = at + id_size
    body_at = given_at + given_size
    end = body_at + body_size
    given = _read_given(bell[given_at:body_at])
    if given.damage is not None:
        raise ValueError(given.damage)
    packed: Packed = (bell[at:given_at].decode(), given.task, bell[body_at:end], *given.rest)
    if end < len(bell):
        packed = (*packed[:-1], bell[end:].decode())  # the envelope
    return Lease(key, token, 1, packed)


def _check(packed: Packed) -> None:
    for at, kinds in _KINDS:
        if not isinstance(packed[at], kinds):
            raise TypeError(
                f"the message {packed[ID]!r} has a {PACKED_FIELDS[at]} that cannot be kept: "
                f"{packed[at]!r}"
            )


def _message_arguments(packed: Packed) -> tuple[Any, ...]:
    """Return the ten arguments of one message of a graph."""
    _check(packed)
    envelope: str | None = packed[ENVELOPE]
    countdown = expires_in = None
    if envelope and ('"countdown"' in envelope or '"expires_in"' in envelope):
        fields = json.loads(envelope)
        countdown, expires_in = fields.get("countdown"), fields.get("expires_in")
    return (
        packed[ID],
        _given(packed),
        packed[BODY],
        _instant(packed[RUN_AT]),
        _instant(packed[EXPIRES_AT]),
        packed[LIMITS],
        None if packed[UNIQUE_KEY] is None else _unique(packed),
        envelope,
        countdown,
        expires_in,
    )


def _instant(at: float | None) -> float | str | None:
    """Return an instant as `lua/enter.lua` takes it: behind a plus stand seconds, which the
    server counts from its own now."""
    return f"+{at.seconds!r}" if type(at) is FromNow else at


def _unique(packed: Packed) -> str:
    """Return the key of a unique message behind what is to become of it."""
    rule = rule_of(packed[ENVELOPE])
    times = f"{_text(rule.unique_for)} {_text(rule.max_wait)}"
    return f"{rule.on_conflict} {times} {packed[UNIQUE_KEY]}"


def lone_arguments(packed: Packed) -> tuple[Any, ...] | None:
    """Return the arguments of a message that is claimable at once (see
    `lua/enqueue_one.lua`); None if this one is not, or is more than that."""
    id, task, body, queue, priority, run_at, expires_at = packed[:7]
    if (
        not (run_at is expires_at is packed[LIMITS] is packed[UNIQUE_KEY] is None)
        or task == GATHER
    ):
        return None
    if not (type(id) is str and type(body) is bytes and type(priority) is int):
        _check(packed)
    given = _given(packed)
    envelope: str | None = packed[ENVELOPE]
    return id, given, body, envelope, queue, (9 - priority) * _BAND


def graph_arguments(
    messages: Iterable[Packed],
    edges: Iterable[Edge | tuple[str, str, str, int]],
    workflow: tuple[str, str] | None = None,
) -> list[Any]:
    """Return the arguments of a graph: see `lua/enter.lua`. Raises `InvalidTaskError` if it
    is so large that the server would answer nobody for seconds."""
    found = list(messages)
    if len(found) > MOST_AT_ONCE:
        raise InvalidTaskError(
            f"{len(found):,} messages in one step are too many for Redis, which could answer "
            f"no one else meanwhile: send {MOST_AT_ONCE:,} at most, in several workflows, or "
            "as single calls with enqueue_many()"
        )
    arguments: list[Any] = [*(workflow or ("", "")), len(found)]
    for packed in found:
        arguments += _message_arguments(packed)
    joined = list(edges)
    arguments.append(len(joined))
    for source, target, on, position in joined:
        arguments += (source, target, on[0], position)
    return arguments


# Outcomes


def _checked(lease: Lease, outcome: Outcome) -> Outcome:
    """Return the outcome; or, if it has a graph that cannot be, the task's failure: it is
    no reason for its worker to lose the rest of a step. Raises `ValueError` if a retry
    changes what it cannot."""
    if type(outcome) is Retried and (unknown := (outcome.changes or {}).keys() - _RETRY):
        raise ValueError(f"a retry cannot change {sorted(unknown)}")
    try:
        if type(outcome) is Replaced:
            _check_replacement(lease, outcome)
        elif type(outcome) is Succeeded and outcome.added is not None:
            _check_graph(outcome.added)
    except (InvalidTaskError, TypeError, ValueError) as exc:
        return _refused(outcome, exc)
    return outcome


def _refused(outcome: Outcome, exc: Exception) -> Failed:
    """Return the failure of a task whose graph the store refuses."""
    children = outcome.children if isinstance(outcome, Succeeded) else None
    return Failed(failure.describe(exc, traceback=""), children=children)


def _check_replacement(lease: Lease, outcome: Replaced) -> None:
    if unknown := outcome.changes.keys() - _REPLACE:
        raise InvalidTaskError(f"a replacement cannot change {sorted(unknown)}")
    itself = _changed(lease.packed, dict(outcome.changes))
    _check_graph(outcome.graph, itself)


def _check_graph(graph: Graph, there: Packed | None = None) -> None:
    """Raise what the graph of a task is refused for; `TypeError` or `ValueError` for values
    that no store could keep."""
    inner, _ = divide_edges(graph.messages, graph.edges, there[0] if there else None)
    count_edges(graph.messages, inner, there)
    strings(graph_arguments(graph.messages, graph.edges))


class Settlements:
    """The settlements of one step: those of plain successes in groups, which share what is
    the same for all of them, and the others one by one. See `lua/settling.lua`."""

    def __init__(
        self, settlements: Iterable[tuple[Lease, Outcome]], max_deliveries: int
    ) -> None:
        self._max_deliveries = max_deliveries
        self._groups: dict[tuple[Any, ...], list[Any]] = {}
        self._places: dict[tuple[Any, ...], list[int]] = {}
        self._others: list[tuple[Lease, Outcome]] = []
        self._other_places: list[int] = []
        groups, places = self._groups, self._places
        for at, (lease, outcome) in enumerate(settlements):
            if type(outcome) is Succeeded:
                value, _, children, added = outcome
                packed = lease[3]
                ignored = packed[IGNORE_RESULT]
                if children is None and added is None and (ignored or value is not None):
                    key = (lease[1], ignored, packed[RESULT_EXPIRES])
                    if key not in groups:
                        groups[key], places[key] = [], []
                    groups[key] += (packed[ID], value)
                    places[key].append(at)
                    continue
            self._others.append((lease, _checked(lease, outcome)))
            self._other_places.append(at)

    def arguments(self) -> list[Any]:
        """Return them as the script takes them."""
        found: list[Any] = [len(self._groups)]
        for (token, ignored, expires), pairs in self._groups.items():
            kept = _kept(expires, short=bool(ignored))
            found += ("s" if ignored else "S", token, kept, len(pairs) // 2)
            found += pairs
        found.append(len(self._others))
        for lease, outcome in self._others:
            found += _settlement_arguments(lease, outcome, self._max_deliveries)
        return found

    def refuse(self, number: int, exc: Exception) -> None:
        """Make the task's failure of the `number`th of those that are not plain."""
        lease, outcome = self._others[number - 1]
        self._others[number - 1] = (lease, _refused(outcome, exc))

    def accepted(self, flags: bytes) -> tuple[bool, ...]:
        """Return the script's flags in the order of the settlements."""
        taken = [flag == _ONE for flag in flags]
        if len(self._places) + bool(self._others) < 2:
            return tuple(taken)
        places = [at for some in self._places.values() for at in some] + self._other_places
        return tuple(flag for _, flag in sorted(zip(places, taken, strict=True)))


def _settlement_arguments(lease: Lease, outcome: Outcome, max_deliveries: int) -> list[Any]:
    """Return the arguments of one settlement: see `lua/settling.lua`."""
    packed, who = lease.packed, (lease.id, lease.token)
    expires: float | None = packed[RESULT_EXPIRES]
    match outcome:
        case Succeeded(result, _, children, added):
            kind = "s" if packed[IGNORE_RESULT] else "S"
            value = b"" if result is None else b"=" + result
            kept = _kept(expires, short=bool(packed[IGNORE_RESULT]))
            return [kind, *who, value, children, kept, *_added(added)]
        case Ignored():
            return ["I", *who, "", "", _kept(expires, short=True), 0]
        case Failed(error, _, dead, children):
            return ["F", *who, *_failure(error, children, dead, expires, "failed")]
        case Revoked(reason):
            error = failure.describe(TaskRevokedError(reason))
            return ["V", *who, reason, error]
        case Released():
            return ["Q", *who, 1, ""]
        case Lost(reason):
            return [*_lost(lease, reason, max_deliveries)]
        case Retried(run_at, error, changes):
            packed = _changed(packed, {"retries": packed[RETRIES] + 1, **(changes or {})})
            renewed = _renewed(packed)
            if "envelope" not in (changes or {}):  # as it is there: with a checkpoint, maybe
                renewed = (*renewed[:-1], "*")
            return ["Y", *who, _instant(run_at), error, *renewed]
        case Replaced(changes, graph):
            packed = _changed(packed, {"retries": 0, **changes})
            workflow = (lease.id, lease.task) if graph.messages else None
            graphed = graph_arguments(graph.messages, graph.edges, workflow)
            times = _message_arguments(packed)[8:]
            return ["G", *who, _instant(packed[RUN_AT]), *_renewed(packed), *times, *graphed]


def _added(graph: Graph | None) -> list[Any]:
    return [0] if graph is None else [1, *graph_arguments(graph.messages, graph.edges)]


def _kept(expires: float | None, *, short: bool) -> float | None:
    if not short:
        return expires
    return _IGNORED_KEPT if expires is None else min(expires, _IGNORED_KEPT)


def _failure(
    error: bytes,
    children: str | None,
    dead: str | None,
    expires: float | None,
    attempt: str,
) -> tuple[Any, ...]:
    return (error, children, "" if dead is None else f"={dead}", expires, attempt)


def _lost(lease: Lease, reason: str, max_deliveries: int) -> tuple[Any, ...]:
    who = (lease.id, lease.token)
    error = failure.describe(WorkerLostError(reason))
    expires: float | None = lease.packed[RESULT_EXPIRES]
    if not lease.packed[ACKS_LATE]:  # acks_late is off: never a second start
        return ("F", *who, *_failure(error, None, None, expires, "lost"))
    if lease.is_last_start(max_deliveries):
        times = "once" if lease.delivery == 1 else f"{lease.delivery} times"
        dead = f"started {times} and never ended; the last time, {reason}"
        return ("F", *who, *_failure(error, None, dead, expires, "lost"))
    return ("Q", *who, 0, error)


def _changed(packed: Packed, changes: dict[str, Any]) -> Packed:
    fields = list(packed)
    for name, value in changes.items():
        fields[_PLACES[name]] = value
    return tuple(fields)


def _renewed(packed: Packed) -> tuple[Any, ...]:
    """Return body, g, expires_at, limits, unique_key and envelope."""
    return (packed[BODY], _given(packed), _instant(packed[EXPIRES_AT]), *packed[14:17])


# Records


def record_of(fields: Sequence[Field]) -> Record:
    """Return the record of the fields that `lua/read.lua` puts."""
    letter, result, noted, meta, deliveries, enqueued, started, settled = fields[8:16]
    worker, children, dead, revoked, workflow = fields[16:21]
    state = STATES.get(letter or b"", "queued")  # what is damaged is found by its claim
    if result is not None and state in ("queued", "scheduled"):
        state = "retrying"
    told = revoked is not None and (state == "revoked" or revoked == b"upstream")
    return Record(
        id=(fields[0] or b"").decode(),
        state=state,
        packed=packed_of(fields[:PACKED_COUNT]),
        result=result,
        note=None if noted is None else Note(noted.decode(), meta or b""),
        deliveries=int(deliveries or 0),
        enqueued_at=_time(enqueued) or 0.0,
        started_at=_time(started),
        settled_at=_time(settled),
        worker=_decoded(worker),
        children=_decoded(children),
        dead=_decoded(dead),
        revoked=_decoded(revoked) if told else None,
        workflow=_decoded(workflow),
    )


def kept_fields(kept: Kept) -> list[Any]:
    """Return names and values of what a message keeps, its number, state and those that
    others are told of (edges, waiters, leases) aside: see `lua/ends.lua`."""
    record, packed = kept.record, kept.record.packed
    countdown, expires_in = _message_arguments(packed)[8:]
    waiting = record.state == "waiting"
    started = repr(record.started_at) if record.final and record.started_at else "-"
    fields: dict[str, Any] = {
        "g": _given(packed),
        "b": packed[BODY],
        "u": packed[RUN_AT],
        "x": packed[EXPIRES_AT],
        "L": packed[LIMITS],
        "U": packed[UNIQUE_KEY] and packed[UNIQUE_KEY].removeprefix("-"),  # handed on, or not
        "e": packed[ENVELOPE],
        "Q": record.enqueued_at,
        "P": kept.pending if kept.pending or kept.inputs or waiting else None,
        "C": countdown if waiting else None,
        "D": expires_in if waiting else None,
        "k": f"0 - {record.deliveries} {started}",
        "r": record.result,
        "c": record.children,
        "Z": record.settled_at,
        "V": record.revoked,
        "X": record.dead,
        "j": "1" if kept.changed else None,
        "A": (kept.attempts[0].number - 1 if kept.attempts else 0) or None,
        "h": record.worker,
    }
    if record.note is not None:
        fields["N"], fields["M"] = record.note.state, record.note.meta
    found: list[Any] = []
    for name, value in fields.items():
        if value is not None:
            found += (name, value)
    return found


def _decoded(field: Field) -> str | None:
    return None if field is None else field.decode()


def attempts_of(before: Field, kept: Iterable[Field]) -> list[Attempt]:
    """Return the attempts that `lua/attempts.lua` puts."""
    first = int(before or 0) + 1
    return [_attempt_of(number, one or b"") for number, one in enumerate(kept, first)]


def _attempt_of(number: int, packed: bytes) -> Attempt:
    outcome, error, worker, started, ended = unpack(packed)
    return Attempt(
        number,
        (outcome or b"").decode(),
        error,
        _decoded(worker),
        _number(started),
        float(ended or 0),
    )


def schedule_of(fields: Fields) -> Schedule:
    """Return one entry of those that `lua/schedules.lua` puts."""
    name, entry, due, origin, paused, last_due, last_run, last_id, total, revision = (
        fields.some(10)
    )
    return Schedule(
        name=(name or b"").decode(),
        entry=entry or b"",
        due_at=_number(due),
        origin="runtime" if origin == b"runtime" else "code",
        paused=paused == b"1",
        last_due_at=_number(last_due),
        last_run_at=_number(last_run),
        last_id=_decoded(last_id),
        total=int(total or 0),
        revision=int(revision or 0),
    )


def read_inputs(fields: Fields) -> tuple[Input, ...]:
    """Return the inputs of a lease."""
    count = fields.number()
    if not count:
        return ()
    kinds: dict[bytes, Any] = {b"r": "result", b"e": "error", b"l": "list"}
    found = []
    for _ in range(count):
        position, source, kind, value = fields.some(4)
        found.append(
            Input(
                (source or b"").decode(), kinds[kind or b"r"], int(position or 0), value or b""
            )
        )
    return tuple(found)
