"""The beat: it fires each periodic entry once, on time, however many beats run.

What makes it once is the store: `Broker.fire()` moves an entry from the instant that is
due to its next and enqueues the message in one transaction, or does neither. A beat that
was paused, overtaken, or whose clock was set finds that the entry is due at another
instant, and does nothing.

The lease only spares work. The leader sleeps until the next instant, fires, and extends
its lease a little beyond the one after that. A standby sleeps a second longer; if it then
finds the instant unfired, it takes the lease and fires. So failing over takes one second,
or `PATIENCE` where the lease cannot be had, and between two instants nobody wakes, but
for changes, and at least once in `max_interval`.
"""

from __future__ import annotations

import heapq
import os
import socket
from typing import TYPE_CHECKING, Any, Final

from liteq import signals
from liteq.brokers.base import Broker
from liteq.brokers.values import Schedule
from liteq.entries import Entry
from liteq.exceptions import (
    BrokerError,
    BrokerUnavailable,
    DecryptionError,
    LiteqError,
    QueueFull,
)
from liteq.ids import new_token
from liteq.loggers import get_logger
from liteq.schedules import schedule
from liteq.waiting import has_ended

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = ["Beat"]

logger = get_logger("liteq.beat")

GRACE: Final = 1.0  # seconds that the leader has to fire before a standby does
PATIENCE: Final = 3.0  # seconds after which it does so even where the lease is another's
LEASE: Final = 0.8  # seconds that a lease lasts beyond the instant it is for
BUSY_LEASE: Final = 2.0  # seconds it lasts while there is more to fire than one slice
MAX_INTERVAL: Final = 60.0  # seconds until a lost wake-up or a set clock is noticed
SLICE: Final = 100  # entries fired before the loop looks up
_BROKEN_FOR: Final = 60.0  # seconds that an entry is left alone whose schedule failed
_STEP: Final = 0.5  # seconds by which a clock that was set differs from one that runs
_ENTRY_ONLY: Final = (LiteqError, ValueError, TypeError)


class Beat:
    """Fires the entries of an app's store. It does not wait: `tick()` does what is due and
    says when to look again.

    `name` must differ for each beat. `max_interval`: the most seconds that `tick()` returns
    (None: the setting).
    """

    def __init__(
        self, app: Liteq, *, name: str | None = None, max_interval: float | None = None
    ) -> None:
        self.app = app
        self.name = name or f"{socket.gethostname()}:{os.getpid()}:{new_token():x}"
        self.max_interval = max_interval or app.conf.beat_max_loop_interval or MAX_INTERVAL
        self.fired = 0
        self._broker: Broker = app.broker
        self._clock = app.broker.clock
        self._declared: dict[str, Entry] = {}
        self._losses = 0  # of stores, when they were declared: see `Broker.losses`
        self._rows: dict[str, Schedule] = {}
        self._entries: dict[str, tuple[int, Entry | None]] = {}  # by name, with the revision
        self._queue: list[tuple[float, str]] = []  # a heap of what is due when
        self._broken: dict[str, float] = {}  # by name: until when it is left alone
        self._stale = True  # the store may hold other entries than these
        self._read_at = self._clock.steady()
        self._leads = False
        self._until = 0.0  # when our lease runs out
        self._wall = self._clock.now(), self._clock.steady()  # at the last tick
        self._seen = self._wall  # the same by the store's clock

    def start(self, since: float | None = None) -> None:
        """Bring the store up to what the code declares, new entries counting from `since`
        (Unix seconds; default: now). Invalid entries are logged and left out."""
        self._declare(since)
        self._read()
        now = self._broker.now()
        self._pull_back(now)
        self._seen = now, self._clock.steady()
        self._stale = True

    def wake(self) -> None:
        """Have the next tick read the entries anew: something has changed."""
        self._stale = True

    def close(self) -> None:
        """Let another beat lead."""
        if self._leads:
            self._leads = False
            self._broker.unlead(self.name)

    def tick(self) -> float:
        """Fire what is due, at most a slice; return in how many seconds to tick again.

        Raises `BrokerError` when the store cannot be used; calling it again is safe.
        """
        now = self._now()
        if self._went_back(now):
            self._read()
            self._pull_back(now)
        if self._stale or self._clock.steady() - self._read_at >= self.max_interval:
            self._read()
            self._lead(now)
        if self._is_due(now) and self._until <= now:
            self._read()  # what the leader fires wakes nobody
            if (wait := self._yield(now)) > 0:
                return wait
        was_due = self._is_due(now)
        for _ in range(SLICE):
            if not self._is_due(now):
                break
            self._fire(heapq.heappop(self._queue)[1], now)
        if self._stale or self._is_due(now):
            self._lead(now)
            return 0.0
        if was_due:
            self._lead(now)
        return self._rest(now)

    # Leading

    def _yield(self, now: float) -> float:
        """Return how long to leave what is due to another beat; 0 to fire it."""
        if not self._is_due(now):
            return self._rest(now)
        late = now - self._queue[0][0]
        if late < GRACE and not self._leads:
            return GRACE - late
        if self._lead(now) or late >= PATIENCE:
            return 0.0
        return PATIENCE - late

    def _lead(self, now: float) -> bool:
        """Take the lease, or extend it over the next instant; return whether it is ours."""
        if self._is_due(now):
            until = now + BUSY_LEASE
        else:
            until = min(self._next(now), now + self.max_interval) + LEASE
        leads = self._broker.lead(self.name, until)
        if leads and not self._leads:
            logger.info("this beat leads now")
        self._leads, self._until = leads, until if leads else 0.0
        return leads

    def _rest(self, now: float) -> float:
        """Return how long nothing is due: for a standby, nothing that is left to it."""
        next_due = self._next(now) + (0.0 if self._leads else GRACE)
        return min(max(0.0, next_due - now), self.max_interval)

    def _next(self, now: float) -> float:
        return self._queue[0][0] if self._queue else now + self.max_interval

    def _is_due(self, now: float) -> bool:
        return bool(self._queue) and self._queue[0][0] <= now

    # Entries

    def _declare(self, since: float | None = None) -> None:
        losses = self._broker.losses  # first: a store that is lost meanwhile is to be noticed
        self._declared = self.app.schedules.reconcile(since)
        self._losses = losses

    def _read(self) -> None:
        """Read all entries, and make sense of those that are new or changed."""
        rows = self._rows_of_this_store()
        self._stale = False
        self._read_at = steady = self._clock.steady()
        self._broker.time()
        self._rows = rows
        for name in self._entries.keys() - self._rows.keys():
            del self._entries[name]
        self._broken = {name: end for name, end in self._broken.items() if end > steady}
        self._queue = []
        for name, row in self._rows.items():
            known = self._entries.get(name)
            if known is None or known[0] != row.revision:
                self._broken.pop(name, None)
                known = self._entries[name] = (row.revision, self._understand(row))
            if known[1] is not None and name not in self._broken:
                self._enqueue(row)

    def _rows_of_this_store(self) -> dict[str, Schedule]:
        """Return all entries by name. Those that were lost with a store (a server that came
        back empty) are declared anew; what somebody removed stays removed."""
        rows = {row.name: row for row in self._broker.schedules()}
        known = {name: revision for name, (revision, _) in self._entries.items()}
        if not known.items() <= {(row.name, row.revision) for row in rows.values()}:
            self._broker.check()  # were they removed or changed, or is it another store?
        if self._broker.losses == self._losses:
            return rows
        logger.warning(
            "the store is not the one from before: the server was emptied or restarted without "
            "its data, or the file was replaced. The periodic entries in the code are declared "
            "again, and none is paused; those made at run time are lost"
        )
        self._declare()
        return {row.name: row for row in self._broker.schedules()}

    def _enqueue(self, row: Schedule) -> None:
        if row.due_at is not None and not row.paused:
            heapq.heappush(self._queue, (row.due_at, row.name))

    def _understand(self, row: Schedule) -> Entry | None:
        """Return a stored entry, None if this beat cannot fire it, having said so."""
        try:
            entry = Entry.loads(row.name, row.entry, self.app)
        except _ENTRY_ONLY as exc:
            logger.error("the periodic entry %r is not fired: %s", row.name, exc)  # noqa: TRY400 (the cause is said)
            return None
        if entry is not None:
            return entry
        own = self._declared.get(row.name)
        if own is not None and own.is_stored_as(row.entry, self.app):
            return own
        logger.info(
            "the periodic entry %r is left to the beats of the app that declares it", row.name
        )
        return None

    # Firing

    def _fire(self, name: str, now: float) -> None:
        """Fire an entry that is due, or pass its instant over."""
        row, entry = self._rows[name], self._entries[name][1]
        assert entry is not None
        assert row.due_at is not None
        try:
            decision = entry.decide(
                row.due_at,
                now,
                last=row.last_due_at if row.last_run_at is None else row.last_run_at,
                deadline=self.app.conf.beat_cron_starting_deadline,
            )
        except Exception:  # a schedule class of the user's: the others must not stop for it
            logger.exception(
                "the schedule of the periodic entry %r failed: it is tried again in %g s",
                name,
                _BROKEN_FOR,
            )
            self._broken[name] = self._clock.steady() + _BROKEN_FOR
            return
        fires = decision.fires and not self._is_in_the_way(entry, row)
        composed: Any = self._compose(entry, row.due_at) if fires else None
        moved, last_id = self._store(row, decision.next_due_at, composed)
        if not moved:
            self._stale = True  # another beat was quicker, or the entry was changed
            return
        row = row._replace(due_at=decision.next_due_at)
        if last_id is not None:
            self.fired += 1
            row = row._replace(last_id=last_id, last_run_at=now)
        self._rows[name] = row
        self._enqueue(row)

    def _is_in_the_way(self, entry: Entry, row: Schedule) -> bool:
        """Tell whether the last run keeps this one from being sent."""
        if entry.overlap == "allow" or row.last_id is None:
            return False
        last = self._broker.get([row.last_id]).get(row.last_id)
        if last is None or has_ended(last, self._broker.now()):
            return False
        return entry.overlap == "skip" or last.state != "running"

    def _compose(self, entry: Entry, due: float) -> Any:
        try:
            return entry.compose(self.app, due)
        except DecryptionError as exc:  # of a unique call, say, or one under a limit
            logger.error("the periodic entry %r could not be sent: %s", entry.name, exc)  # noqa: TRY400 (the cause is said)
            return None
        except Exception:  # the user's BeatLazyFunc, too: this run is lost, not the beat
            logger.exception("the periodic entry %r could not be sent at this time", entry.name)
            return None

    def _store(
        self, row: Schedule, next_due_at: float | None, composed: Any
    ) -> tuple[bool, str | None]:
        """Move the entry on, with what was composed, in one step. Return whether it was
        this beat that did, and the id of what was enqueued."""
        assert row.due_at is not None
        messages, edges, workflow = composed[:3] if composed else ((), (), None)
        if messages:
            messages = self.app.sender.ready(messages, edges)
            logger.info("Scheduler: Sending due task %s (%s)", row.name, messages[0].task)
        try:
            moved = self._broker.fire(
                row.name,
                row.due_at,
                next_due_at,
                revision=row.revision,
                messages=messages,
                edges=edges,
                workflow=workflow,
            )
        except (BrokerUnavailable, QueueFull):
            self._stale = True  # whether it was fired is unknown
            raise
        except _ENTRY_ONLY as exc:
            if not messages or isinstance(exc, BrokerError):
                raise
            logger.error("the periodic entry %r could not be sent: %s", row.name, exc)  # noqa: TRY400 (the cause is said)
            return self._store(row, next_due_at, None)
        if moved and messages and signals.after_task_publish.receivers:
            from liteq import publishing  # late: few have receivers

            publishing.report(messages, self.app.cipher)
        last_id = workflow.id if workflow else messages[0].id if messages else None
        return moved, last_id

    # Clocks that are set

    def _now(self) -> float:
        """Return what time it is by the store's clock, so that all beats agree. It is asked
        whenever the entries are read, and when this machine's own clock was set."""
        wall, at = self._wall
        self._wall = now, steady = self._clock.now(), self._clock.steady()
        if abs((now - wall) - (steady - at)) > _STEP:
            return self._broker.time()
        return self._broker.now()

    def _went_back(self, now: float) -> bool:
        """Tell whether the clock was set back since the last tick."""
        before, at = self._seen
        self._seen = now, steady = now, self._clock.steady()
        return (now - before) - (steady - at) < -_STEP

    def _pull_back(self, now: float) -> None:
        """Put intervals right that a clock which was set back would make longer.

        (A crontab is about what the clock shows, so it waits for its time to come.) Done
        when the clock was set, and at the start.
        """
        for name, row in list(self._rows.items()):
            entry = self._entries[name][1]
            if entry is None or type(entry.schedule) is not schedule or row.due_at is None:
                continue
            if row.due_at - now > entry.schedule.seconds + _STEP:
                self._broker.fire(name, row.due_at, entry.first(now), revision=row.revision)
                self._stale = True
