"""Looking at messages and steering many of them: what an operator, a page or a program asks.

Everything here works in bounded batches, each a step of its own in the store: a million
messages are counted, retried or cancelled without being held in memory, and without holding
up who works. What is shown of arguments and results has its secrets hidden.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from liteq import checkpoints, failure
from liteq.brokers.base import Broker
from liteq.brokers.searching import Found, Search
from liteq.brokers.values import FINAL_STATES, Attempt, Record, State
from liteq.exceptions import LiteqError, UnknownTaskId
from liteq.message import GATHER, Message
from liteq.searches import UNFINISHED
from liteq.showing import shown_call

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = [
    "EXPIRED",
    "Restarted",
    "cancel",
    "count",
    "describe",
    "drop",
    "error_of",
    "follow",
    "latest",
    "passed_over",
    "resolve",
    "retry",
]

BATCH: Final = 500
EXPIRED: Final = "it has expired, and its signature covers when"  # why it stays as it is
_LARGE: Final = 2_000  # nodes of a workflow beyond which its edges are not looked through
_INPUTS: Final = 50  # shown of what a message waits for


def resolve(broker: Broker, text: str) -> str:
    """Return the id that this text is, or that alone begins with it.

    Raises `UnknownTaskId` if there is none, or more than one.
    """
    if broker.get([text]):
        return text
    found = broker.complete(text, 4) if text else []
    if len(found) == 1:
        return found[0]
    if found:
        more = " …" if len(found) > 3 else ""
        raise UnknownTaskId(
            f"{text!r} begins more than one id: {', '.join(found[:3])}{more}; give more of it"
        )
    raise UnknownTaskId(f"no task has the id {text!r}: never sent, expired or forgotten")


def latest(
    broker: Broker, search: Search, limit: int = 50, *, before: int | None = None
) -> list[tuple[Found, Record]]:
    """Return the latest messages looked for and what is known of each."""
    some = list(islice(broker.find(search, before=before), limit))
    records = broker.get([one.id for one in some])
    return [(one, records[one.id]) for one in some if one.id in records]


def count(broker: Broker, search: Search) -> Counter[State]:
    """Return how many messages are looked for, by state."""
    return Counter(one.state for one in broker.find(search))


class Restarted(NamedTuple):
    """The ids of what was given a fresh start, and by id why the others were passed over."""

    ids: list[str]
    passed: dict[str, str]


def retry(broker: Broker, wanted: Search | Sequence[str]) -> Iterator[Restarted]:
    """Give failed messages and dead letters a fresh start, batch by batch; yield which.

    What waited for two of them comes back if both are of one batch, or when the second has
    succeeded after a retry of its own. That was not passed over if it was searched for, but
    is if it was named.
    """
    searched = isinstance(wanted, Search)
    if isinstance(wanted, Search):
        wanted = wanted._replace(states=frozenset({"failed"}))
    for ids in _batches(broker, wanted):
        driven = broker.redrive(ids)
        left = passed_over(broker, set(driven).symmetric_difference(ids), failed=searched)
        yield Restarted(driven, {id: left[id] for id in ids if id in left})


def passed_over(broker: Broker, ids: Iterable[str], *, failed: bool = False) -> dict[str, str]:
    """Return by id why `Broker.redrive()` passed these over; with `failed` only of those that
    have failed, and not because of another."""
    left = list(ids)
    records = broker.get(left) if left else {}
    return {
        id: _why_passed_over(broker, records.get(id))
        for id in left
        if not failed or _has_failed(records.get(id))
    }


def _has_failed(record: Record | None) -> bool:
    if record is None or record.state != "failed" or record.revoked == "upstream":
        return False
    return record.outline.task != GATHER


def _why_passed_over(broker: Broker, record: Record | None) -> str:
    if record is None:
        return "the store does not know it any more"
    if record.state != "failed":
        return f"it is not failed or dead, but {record.state}"
    message = record.outline
    if record.revoked == "upstream":
        return "it failed because of another, and comes back with that one"
    if message.task == GATHER:
        return "it comes back with what it gathers"
    key = (message.unique_key or "").lstrip("-")  # a hyphen: it was handed on, see `uniqueness`
    if key and (holder := broker.holder(key)):
        return f"{holder} has its unique key now"
    ends = message.expires_at
    if ends is not None and ends <= broker.clock.now():
        return EXPIRED
    return "the store has no call that could run"


def cancel(
    broker: Broker, wanted: Search | Sequence[str], *, terminate: str | None = None
) -> Iterator[Counter[str]]:
    """Revoke unfinished messages, batch by batch; yield how many became what (see
    `Broker.revoke`; "unsent": of that id no call was sent yet, and it is left as it is).
    `terminate`: the signal that ends those that run."""
    if isinstance(wanted, Search):
        unfinished: frozenset[State] = frozenset(UNFINISHED)
        states = (wanted.states & unfinished) if wanted.states else unfinished
        if not states:
            return
        wanted = wanted._replace(states=states)
    for ids in _batches(broker, wanted):
        answers = broker.revoke(ids, terminate=terminate)
        became: Counter[str] = Counter(answers.values())
        unknown = [id for id, answer in answers.items() if answer == "unknown"]
        unsent = sum(record.early for record in broker.get(unknown).values()) if unknown else 0
        became["unsent"] += unsent
        became["unknown"] -= unsent
        yield became


def drop(broker: Broker, wanted: Search | Sequence[str]) -> Iterator[int]:
    """Delete dead letters for good, batch by batch; yield how many."""
    if isinstance(wanted, Search):
        wanted = wanted._replace(dead=True)
    for ids in _batches(broker, wanted):
        dead = [id for id, record in broker.get(ids).items() if record.dead is not None]
        broker.forget(dead)
        yield len(dead)


def follow(broker: Broker, id: str) -> Iterator[Record | None]:
    """Yield what is known of a message now and whenever that has changed, until it has
    ended; and None after each pause in which nothing changed.

    The store wakes who follows when the message reports something and when it ends; that
    it has started is seen at the next look, at most `Mailbox.poll_interval` seconds later.
    """
    with closing(broker.mailbox()) as mailbox:
        last: Record | None = None
        ended = broker.watch([id], mailbox, notes=True)
        while True:
            record = ended.get(id) or broker.get([id]).get(id)
            if record is None:
                raise UnknownTaskId(f"no task has the id {id!r}: it was forgotten or expired")
            yield record if record != last else None
            if record.final:
                return
            last = record
            woken = mailbox.wait(mailbox.poll_interval)
            # Nothing came: the wake-up may have been lost, and the address with it.
            ended = {} if woken else broker.watch([id], mailbox, notes=True)


def describe(app: Liteq, id: str) -> dict[str, Any]:
    """Return all that is known of a message, for display: plain values, times in Unix
    seconds, secrets hidden. If a state was stored for the id before its call was sent, the
    state is "unsent", and the task the one that stored it. Raises `UnknownTaskId`."""
    broker = app.broker
    record = broker.get([id]).get(id)
    if record is None:
        raise UnknownTaskId(f"no task has the id {id!r}: never sent, expired or forgotten")
    message = record.outline
    args, kwargs = shown_call(app, message)
    made = app.AsyncResult(id)
    return {
        "id": id,
        "task": message.task,
        "state": "unsent" if record.early else record.state,
        "status": made.state,
        "queue": message.queue,
        "priority": message.priority,
        "args": args,
        "kwargs": kwargs,
        "enqueued_at": record.enqueued_at,
        "run_at": message.run_at,
        "expires_at": message.expires_at,
        "started_at": record.started_at,
        "settled_at": record.settled_at,
        "worker": record.worker,
        "retries": message.retries,
        "deliveries": record.deliveries,
        "dead": record.dead,
        "revoked": record.revoked,
        "progress": _progress(app, record),
        "checkpoint": _checkpoint(app, message),
        "result": _result(app, record),
        "error": error_of(record.result) if record.state in ("failed", "retrying") else None,
        "workflow": record.workflow,
        "root_id": message.root_id,
        "parent_id": message.parent_id,
        "inputs": _inputs(broker, record),
        "attempts": [_attempt(one) for one in broker.attempts(id)],
    }


def error_of(error: bytes | None) -> dict[str, Any] | None:
    """Return type, message and traceback of an error record."""
    if error is None:
        return None
    fields = failure.read(error)
    return {
        "type": fields["type"],
        "message": fields["message"],
        "traceback": fields.get("traceback") or None,
    }


def _batches(broker: Broker, wanted: Search | Sequence[str]) -> Iterator[list[str]]:
    ids: Iterator[str] = iter(())
    if isinstance(wanted, Search):
        ids = (one.id for one in broker.find(wanted))
    else:
        ids = iter(wanted)
    while some := list(islice(ids, BATCH)):
        yield some


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "outcome": attempt.outcome,
        "worker": attempt.worker,
        "started_at": attempt.started_at,
        "ended_at": attempt.ended_at,
        "error": error_of(attempt.error),
    }


def _progress(app: Liteq, record: Record) -> dict[str, Any] | None:
    if record.note is None or record.state in FINAL_STATES:
        return None
    progress = app.AsyncResult(record.id).without_keys().progress
    if progress is None:
        return {"state": record.note.state}
    return {
        "state": record.note.state,
        "done": progress.done,
        "total": progress.total,
        "message": progress.message,
    }


def _checkpoint(app: Liteq, message: Message) -> str | None:
    if message.checkpoint is None:
        return None
    try:
        return app.redactor.text(checkpoints.read(message.checkpoint))
    except LiteqError as exc:
        return f"unreadable ({exc})"


def _result(app: Liteq, record: Record) -> str | None:
    if record.state != "succeeded" or record.result is None:
        return None
    try:
        return app.redactor.text(app.AsyncResult(record.id).without_keys().result)
    except LiteqError as exc:
        return f"unreadable ({exc})"


def _inputs(broker: Broker, record: Record) -> list[dict[str, Any]] | None:
    """Return what a node of a workflow waits or waited for; None if it is no node, or of a
    workflow too large to look through."""
    workflow = record.workflow
    if workflow is None:
        return None
    if len(list(islice(broker.find(Search(workflow=workflow)), _LARGE + 1))) > _LARGE:
        return None
    nodes, edges = broker.nodes(workflow)
    known = {node.id: node for node in nodes}
    sources: Iterable[str] = [
        edge.source
        for edge in sorted(edges, key=lambda edge: edge.position)
        if edge.target == record.id
    ]
    return [
        {"id": source, "name": known[source].name, "state": known[source].state}
        for source in islice((source for source in sources if source in known), _INPUTS)
    ]
