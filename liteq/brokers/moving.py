"""Moving what one store holds to another, while no worker runs.

Messages move with all that hangs on them, in the order of their arrival; what is running
moves as queued. A message that the other store has already is left as it is there, so a
move that was interrupted is simply made again.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from liteq.brokers.base import Broker
from liteq.brokers.values import Attempt, Input, Record
from liteq.exceptions import BrokerError, ImproperlyConfigured

__all__ = ["Bond", "Kept", "Shelf", "deletion_of", "move", "shelf_of"]

SLICE: Final = 200
_IGNORED_KEPT: Final = 3600.0


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


def move(source: Broker, target: Broker) -> Iterator[tuple[int, int]]:
    """Move everything; yield how many messages are done and how many there are.

    Raises `BrokerError` if a worker of either store is alive, or if something is missing
    from the target at the end, and `ImproperlyConfigured` if they are one store.
    """
    here, there = shelf_of(source), shelf_of(target)
    for broker, which in ((source, "that is left"), (target, "that is moved to")):
        if names := ", ".join(worker.name for worker in broker.workers()):
            raise BrokerError(f"stop the workers of the store {which} first: {names}")
    if here.identity() == there.identity():
        raise ImproperlyConfigured(f"{there.place} is the store that is left: name another one")
    source.reclaim()
    there.write_workflows(here.workflows())
    ids = here.ids()
    yield 0, len(ids)
    for at in range(0, len(ids), SLICE):
        there.write(here.read(ids[at : at + SLICE]))
        yield min(at + SLICE, len(ids)), len(ids)
    for at in range(0, len(ids), SLICE):
        there.bind(here.read(ids[at : at + SLICE]))
    for schedule in source.schedules():
        target.put_schedule(schedule, revision=0)
    for queue in source.queues():
        if queue.paused:
            target.pause(queue.name)
    _compare(source, target, ids)


def _compare(source: Broker, target: Broker, ids: Sequence[str]) -> None:
    missing = 0
    for at in range(0, len(ids), SLICE):
        some = ids[at : at + SLICE]
        missing += len(some) - len(target.get(some))
    entries = {entry.name for entry in source.schedules()}
    entries -= {entry.name for entry in target.schedules()}
    if missing or entries:
        raise BrokerError(
            f"{missing} of {len(ids)} messages and {len(entries)} periodic entries are not in "
            "the new store (results may have expired meanwhile): make the move again"
        )


def shelf_of(broker: Broker) -> Shelf:
    """Return the shelf of a broker's store. Raises `BrokerError` for a kind without one."""
    shelf: Shelf | None = getattr(broker, "shelf", lambda: None)()
    if shelf is None:
        raise BrokerError(f"{broker!r} cannot be moved")
    return shelf


def deletion_of(record: Record) -> float | None:
    """Return when a message that is over is to be deleted (Unix seconds)."""
    expires: float | None = record.packed[13]
    if record.settled_at is None or record.dead is not None:
        return None
    if record.state == "ignored" or (record.packed[11] and record.state == "succeeded"):
        expires = _IGNORED_KEPT if expires is None else min(expires, _IGNORED_KEPT)
    return None if expires is None else record.settled_at + expires
