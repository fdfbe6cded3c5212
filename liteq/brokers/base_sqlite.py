"""What every part of the SQLite store stands on: its file, its clock, its wake-ups."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final

from liteq.brokers import standby
from liteq.brokers.base import DEFAULT_MAX_DELIVERIES, Broker, Mailbox
from liteq.brokers.connection import Database
from liteq.brokers.following import Following
from liteq.brokers.lengths import Lengths
from liteq.brokers.limiting import NO_BOOK
from liteq.brokers.liveness import LockFiles, boot_id
from liteq.brokers.waitlinks import WaitLinks
from liteq.brokers.wakeup import LocalMailbox, Post, kind_of
from liteq.clock import Clock, system_clock
from liteq.exceptions import ImproperlyConfigured, StoreLost
from liteq.ids import new_token
from liteq.message import PACKED_FIELDS, Packed

__all__ = ["AMONG", "PACKED", "SqliteStore"]

PACKED: Final = ", ".join(PACKED_FIELDS)
AMONG: Final = "(SELECT value FROM json_each(?))"  # one argument, however many values


class SqliteStore(Broker):
    """What the parts of an SQLite store have in common. `SqliteBroker` says what the
    arguments mean."""

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        *,
        clock: Clock = system_clock,
        durability: str = "full",
        lease_timeout: float = 60.0,
        max_deliveries: int = DEFAULT_MAX_DELIVERIES,
        busy_timeout: float = 5.0,
        max_size: int | None = None,
        max_length: int | None = None,
        max_lengths: Mapping[str, int] | None = None,
        unknown_expires: float = 86_400.0,
        poll_interval: float = 0.5,
        allow_network_filesystem: bool = False,
        allow_other_owner: bool = False,
        tokens: Callable[[], int] = new_token,
    ) -> None:
        if durability not in ("full", "normal"):
            raise ImproperlyConfigured(
                f'durability must be "full" or "normal", not {durability!r} ("off" would let '
                "one process's power loss corrupt the file for all)"
            )
        self.clock = clock
        self.durable = durability == "full"
        self.lease_timeout = lease_timeout
        self.longest_call = 2 * busy_timeout  # for its turn to write, and for the lock
        self.max_deliveries = max_deliveries
        self.unknown_expires = unknown_expires
        self.poll_interval = poll_interval
        self._lengths = Lengths(max_length, max_lengths)
        self.directory = os.path.realpath(folder) if folder is not None else None
        self._tokens = tokens
        self._boot = boot_id()
        self._database = Database(
            self.directory,
            busy_timeout=busy_timeout,
            max_size=max_size,
            allow_network_filesystem=allow_network_filesystem,
            allow_other_owner=allow_other_owner,
            clock=clock,
        )
        place = self.directory
        self._locks = LockFiles(os.path.join(place, "workers")) if place is not None else None
        self._post = Post(os.path.join(place, "wake")) if place is not None else None
        self._links = WaitLinks(os.path.join(place, "waits")) if place is not None else None
        # Without a lock: a mailbox is closed by the garbage collector too, at any moment.
        self._local: dict[str, LocalMailbox] = {}
        self._book = NO_BOOK
        self._all_busy_until = 0.0  # monotonic: when somebody may stand by again
        self._doubtful: dict[int, set[int]] = {}  # by worker: tokens of claims that failed
        self._losses: dict[int, int] = {}  # by worker: `Database.losses` when it registered

    def __repr__(self) -> str:
        return f"<SqliteBroker {self.directory or 'in memory'}>"

    # Wake-ups

    def _announce(self, following: Following, *, but: int | None = None) -> None:
        """Send the wake-ups that a committed transaction owes, to all workers but one."""
        if following.queued or following.freed:
            self._wake_workers(but=but)
        if self._links is not None and following.ended:
            for mailbox, id in self._links.take(following.ended):
                following.woken.setdefault(mailbox, []).append(id)
        for address, ids in following.woken.items():
            self._wake(address, ids)

    def _wake_workers(self, word: str = "", *, but: int | None = None) -> None:
        if self._post is not None:
            self._post.wake_workers(word, but=but)
            return
        own = None if but is None else kind_of(but)
        for mailbox in list(self._local.values()):
            if mailbox.name.startswith("w") and not (own and mailbox.name.startswith(own)):
                mailbox.put([word])

    def _hand(self, worker: int, key: int, token: int, packed: Packed) -> bool:
        """Tell a worker that stands by of its lease; return whether it could be told."""
        data = standby.written(key, token, packed)
        if self._post is not None:
            return len(data) <= standby.MOST and self._post.hand(worker, data)
        own = kind_of(worker)
        for mailbox in list(self._local.values()):
            if mailbox.name.startswith(own):
                mailbox.put((), data)
                return True
        return False

    def _wake(self, address: str, ids: list[str]) -> None:
        if self._post is not None:
            self._post.wake(address, ids)
        elif (mailbox := self._local.get(address)) is not None:
            mailbox.put(ids)

    def mailbox(self, worker: int | None = None, *, beat: bool = False) -> Mailbox:
        if self._post is not None:
            self.check()
            self._database.prepare()
            return self._post.open(self.poll_interval, worker, beat=beat)
        kind = kind_of(worker, beat=beat)
        name = f"{kind}{new_token()}"
        mailbox = LocalMailbox(name, self.poll_interval, self._forget_mailbox)
        self._local[name] = mailbox
        return mailbox

    def _forget_mailbox(self, name: str) -> None:
        self._local.pop(name, None)

    # The file

    def check(self) -> None:
        self._database.check()

    @property
    def losses(self) -> int:
        return self._database.losses

    def _stay(self, worker: int) -> None:
        """Raise `StoreLost` if the store is not the one that this worker registered in.

        Another thread may have found that out, and have opened the store that came after it:
        in that one the worker's number is another's, whose tasks it would give back. To be
        called within the transaction: while that runs, its connection is not replaced.
        """
        losses = self._database.losses
        if self._losses.get(worker, losses) != losses:
            raise StoreLost(
                f"{self._database.path} is not the file that worker {worker} registered in: "
                "that was deleted or replaced while in use"
            )

    def close(self) -> None:
        self._database.close()
        if self._post is not None:
            self._post.close()
