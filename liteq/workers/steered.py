"""The part of a worker that is steered and watched from afar.

What is public here is for commands, which the worker's own loop runs: see `steering`.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from liteq import __version__
from liteq.brokers.base import Broker
from liteq.brokers.values import Lease
from liteq.loggers import get_logger
from liteq.pool import Pool
from liteq.workers.attempts import Attempts
from liteq.workers.dispatching import EventDispatcher
from liteq.workers.membership import Membership
from liteq.workers.timelimits import TimeLimits

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.autoscale import Autoscaler
    from liteq.workers.steering import Steering

__all__ = ["Steered"]

logger = get_logger("liteq.worker")


class Steered(ABC):
    """What a worker does for commands and for listeners. All of it is called by the thread
    that runs the worker's loop."""

    app: Liteq
    queues: tuple[str, ...]
    concurrency: int
    pool: Pool | None
    pool_kind: str
    autoscaler: Autoscaler | None
    _broker: Broker
    _dispatcher: EventDispatcher
    _attempts: Attempts
    _time_limits: TimeLimits
    _membership: Membership

    @property
    @abstractmethod
    def _steering(self) -> Steering:
        """What obeys the commands."""

    @abstractmethod
    def _has_processes(self) -> bool:
        """Tell whether the pool has child processes."""

    @abstractmethod
    def _roll(self, pool: Pool) -> None:
        """Replace them."""

    # By commands

    @property
    def id(self) -> int:
        """The id that it is registered under, 0 before it is."""
        return self._membership.id

    @property
    def held(self) -> Mapping[int, Lease]:
        """The leases that the pool has, by the numbers of their jobs."""
        return self._attempts.leases

    @property
    def totals(self) -> Counter[str]:
        """How many attempts were settled, by task."""
        return self._attempts.totals

    @property
    def settled(self) -> int:
        """How many attempts have ended whose outcomes the store has taken."""
        return self._attempts.settled

    @property
    def refused(self) -> int:
        """How many it has refused, since the lease was lost."""
        return self._attempts.refused

    def running(self) -> dict[int, int]:
        """Return the numbers of the calls that run now, with the pid of each one's process."""
        if self.pool is None:
            return {}
        running = self.pool.running()
        numbers_of = self._attempts.numbers_of
        return {number: pid for key, pid in running.items() for number in numbers_of(key)}

    def consume(self, queues: tuple[str, ...]) -> None:
        """Consume these queues from now on. Call from the worker's loop, as the others."""
        self.queues = queues
        self._membership.changed()

    def resize(self, concurrency: int) -> None:
        """Have so many children from now on."""
        assert self.pool is not None
        self.concurrency = concurrency
        self.pool.resize(concurrency)
        self._membership.changed()

    def autoscale(self, most: int, least: int) -> None:
        """Keep between `least` and `most` children from now on."""
        from liteq.autoscale import Autoscaler  # late: few workers grow and shrink

        self.autoscaler = Autoscaler(most, least, self.app.conf.worker_autoscale_keepalive)

    def roll(self) -> bool:
        """Replace the child processes; False if there are none."""
        if self.pool is None or not self._has_processes():
            return False
        self._roll(self.pool)
        return True

    def limit_time(self, task: str, soft: float | None, hard: float | None) -> None:
        """Run a task within these limits from now on, unless its message says otherwise."""
        self._time_limits.override(task, soft, hard)

    def enable_events(self, *, on: bool) -> bool:
        """Send events, or send none; return whether that is a change."""
        changed = self._dispatcher.enabled != on
        self._dispatcher.enabled = on
        self._membership.look_for_orders()
        return changed

    def tell_heartbeat(self) -> None:
        """Send the heartbeat event now, if somebody listens."""
        if self._dispatcher.heard:
            self._tell_beat(force=True)
            self._dispatcher.flush(self._broker)

    def details(self) -> dict[str, Any]:
        """Return what the others may know of this worker."""
        return {
            "pool": self.pool_kind,
            "app": self.app.main or "",
            "version": __version__,
            "control": self.app.conf.worker_enable_remote_control,
            "processed": self.totals.total(),
            "load": round(os.getloadavg()[0], 2),
        }

    # In the loop

    def _read_mail(self) -> None:
        """Obey the commands that were left, and post the replies."""
        letters = self._membership.collect()
        if letters and (replies := self._steering.obey(letters)):
            self._broker.post(replies)

    def _scale(self, scaler: Autoscaler, now: float) -> None:
        """Have as many children as there is work for."""
        busy, size = self._attempts.jobs(), self.concurrency
        if scaler.wants_work(size, busy, now):
            more = self._broker.claimable(self.queues, scaler.most - size)
            wanted = scaler.grown(size, more, now)
        else:
            wanted = scaler.shrunk(size, busy, now)
        if wanted != size:
            logger.info("autoscale: from %d to %d children", size, wanted)
            self.resize(wanted)

    def _tell(self) -> None:
        """Say what has happened since the last turn of the loop."""
        leases = self.held
        self._dispatcher.running(leases[key] for key in self.running() if key in leases)
        self._tell_beat()
        self._dispatcher.flush(self._broker)

    def _tell_beat(self, *, force: bool = False) -> None:
        active, now = len(self.held), time.monotonic()
        self._dispatcher.beat(now, active=active, processed=self.totals.total(), force=force)
