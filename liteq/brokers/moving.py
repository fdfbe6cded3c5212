"""Moving what one store holds to another, while no worker runs.

Messages move with all that hangs on them, in the order of their arrival; what is running
moves as queued. A message that the other store has already is left as it is there, so a
move that was interrupted is simply made again.

So move workflows, periodic entries, pauses of queues, what operators have said of limits, what
rates have used up, and keys that are kept after the end of their calls. What stays behind
belongs to processes that are to be stopped (leases, lines, slots, turns, waiters, letters,
events, leads, workers but for their names), or is said anew by the next ones: the limits
that code declares.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from liteq.brokers.base import Broker
from liteq.brokers.values import Attempt, Input, Record
from liteq.exceptions import BrokerError, ImproperlyConfigured
from liteq.limits import Limit
from liteq.message import IGNORE_RESULT, PACKED_FIELDS, RESULT_EXPIRES

__all__ = [
    "Bond",
    "Bucket",
    "Kept",
    "Override",
    "Period",
    "Shelf",
    "deletion_of",
    "move",
]

SLICE: Final = 200
_IGNORED_KEPT: Final = 3600.0
_UNIQUE: Final = PACKED_FIELDS.index("unique_key")


class Bond(NamedTuple):
    """An edge as a store keeps it. `met`: it has been counted. `on` begins with "was " if
    its target has been replaced since, so that it sets nothing off."""

    target: str
    on: str
    position: int
    met: bool


class Kept(NamedTuple):
    """All that a store keeps of one message. `pending`: how many edges to it are not met.
    `changed`: it is not what was enqueued under its id any more."""

    record: Record
    pending: int
    changed: bool
    bonds: tuple[Bond, ...]
    inputs: tuple[Input, ...]
    attempts: tuple[Attempt, ...]


class Override(NamedTuple):
    """What an operator has said of a limit: see `Broker.override_limit`."""

    name: str
    limit: Limit
    task: str | None


class Bucket(NamedTuple):
    """What a rate has used up: see `limiting`. Its name begins with that of its limit."""

    name: str
    free_at: float
    used_at: float


class Period(NamedTuple):
    """Until when a unique key is kept, also after the end of the call of this id."""

    key: str
    id: str
    until: float


class Shelf(Protocol):
    """A store, as something to be carried away or filled. `place`: where it is, in words."""

    place: str

    def is_there(self) -> bool:
        """Tell whether there is a store, without making one."""
        ...

    def identity(self) -> Hashable:
        """Return what this store, which is open, has alone, whatever URL has led to it."""
        ...

    def ids(self) -> list[str]:
        """Return the ids of all messages, in the order of their arrival."""
        ...

    def read(self, ids: Sequence[str]) -> list[Kept]:
        """Return what is kept of these, in this order."""
        ...

    def write(self, kept: Sequence[Kept]) -> int:
        """Keep these, if they are not there; return how many were not."""
        ...

    def bind(self, kept: Sequence[Kept]) -> None:
        """Keep their edges, all messages being there."""
        ...

    def workflows(self) -> list[tuple[str, str, float]]:
        """Return id, name and date of all workflows, the oldest first."""
        ...

    def write_workflows(self, workflows: Sequence[tuple[str, str, float]]) -> None:
        """Keep these, if they are not there."""
        ...

    def overrides(self) -> list[Override]:
        """Return what operators have said of limits."""
        ...

    def buckets(self) -> list[Bucket]:
        """Return all buckets of rates."""
        ...

    def write_buckets(self, buckets: Sequence[Bucket]) -> None:
        """Keep these, where there is none that is free later, nor free by now."""
        ...

    def periods(self) -> list[Period]:
        """Return until when keys are kept after an end."""
        ...

    def write_periods(self, periods: Sequence[Period]) -> None:
        """Keep these, where none lasts longer, nor is over by now. Their calls, if they are
        kept, are there."""
        ...


def move(source: Broker, target: Broker) -> Iterator[tuple[int, int]]:
    """Move everything; yield how many messages are done and how many there are.

    Raises `BrokerError` if a worker of either store is alive, or if something is missing
    from the target at the end, or two messages would hold one unique key there; and
    `ImproperlyConfigured` if they are one store.
    """
    here, there = source.shelf(), target.shelf()
    for broker, which in ((source, "that is left"), (target, "that is moved to")):
        if names := ", ".join(worker.name for worker in broker.workers()):
            raise BrokerError(f"stop the workers of the store {which} first: {names}")
    if here.identity() == there.identity():
        raise ImproperlyConfigured(f"{there.place} is the store to move from: name another one")
    source.reclaim()
    there.write_workflows(here.workflows())
    ids = here.ids()
    moved = frozenset(ids)
    yield 0, len(ids)
    for at in range(0, len(ids), SLICE):
        kept = here.read(ids[at : at + SLICE])
        _refuse_held_keys(target, kept, moved)
        there.write(kept)
        yield min(at + SLICE, len(ids)), len(ids)
    for at in range(0, len(ids), SLICE):
        there.bind(here.read(ids[at : at + SLICE]))
    there.write_periods(here.periods())
    _move_limits(source, target, here, there)
    for schedule in source.schedules():
        target.put_schedule(schedule, revision=0)
    for queue in _paused(source):
        target.pause(queue)
    _compare(source, target, ids)


def _refuse_held_keys(target: Broker, kept: Sequence[Kept], moved: Collection[str]) -> None:
    """Raise `BrokerError` if a message that is alive holds a unique key that another, which
    is new there, is to hold (promise 13); one that has expired is ended instead, and one that
    is moved as well has handed its key on."""
    wanted = False
    for record in [one.record for one in kept]:
        key: str | None = record.packed[_UNIQUE]
        if key is None or record.final:
            continue
        wanted = True
        holder = target.holder(key)
        if holder is None or holder in moved:
            continue
        found = target.get([record.id, holder])
        if record.id not in found and holder in found and not found[holder].final:
            raise BrokerError(
                f"{record.id} and {holder} of the new store are to run, and have one unique "
                "key: revoke one of them, and repeat the move"
            )
    while wanted and target.maintain():  # what expired by then is no holder, and marked here
        pass


def _move_limits(source: Broker, target: Broker, here: Shelf, there: Shelf) -> None:
    known = _overridden(target)
    for name, limit, task in here.overrides():
        if name not in known:
            target.override_limit(name, limit, task=task)
    # What a worker has used up of a rate of its own goes with the worker.
    own = {info.name for info in source.limits() if info.in_force and info.in_force.per_worker}
    buckets = here.buckets()
    there.write_buckets([one for one in buckets if one.name.partition("\n")[0] not in own])


def _overridden(broker: Broker) -> set[str]:
    return {info.name for info in broker.limits() if info.override is not None}


def _paused(broker: Broker) -> set[str]:
    return {queue.name for queue in broker.queues() if queue.paused}


def _compare(source: Broker, target: Broker, ids: Sequence[str]) -> None:
    missing = 0
    for at in range(0, len(ids), SLICE):
        some = ids[at : at + SLICE]
        missing += len(some) - len(target.get(some))
    entries = {entry.name for entry in source.schedules()}
    entries -= {entry.name for entry in target.schedules()}
    limits = _overridden(source) - _overridden(target)
    queues = _paused(source) - _paused(target)
    if missing or entries or limits or queues:
        raise BrokerError(
            f"{missing} of {len(ids)} messages, {len(entries)} periodic entries, {len(limits)} "
            f"changed limits and {len(queues)} pauses of queues are not in the new store "
            "(results may have expired meanwhile): repeat the move"
        )


def deletion_of(record: Record) -> float | None:
    """Return when a message that is over, or an early note, is to be deleted (Unix seconds);
    None of another."""
    expires: float | None = record.packed[RESULT_EXPIRES]
    if record.early:
        return None if expires is None else record.enqueued_at + expires
    if record.settled_at is None or record.dead is not None:
        return None
    if record.state == "ignored" or (
        record.packed[IGNORE_RESULT] and record.state == "succeeded"
    ):
        expires = _IGNORED_KEPT if expires is None else min(expires, _IGNORED_KEPT)
    return None if expires is None else record.settled_at + expires
