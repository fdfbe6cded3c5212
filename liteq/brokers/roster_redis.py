"""Who is alive, in Lua: workers, their heartbeats, and what the dead had leased."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal

from liteq.brokers.base_redis import SLICE, RedisStore
from liteq.brokers.liveness import present
from liteq.brokers.redis_form import PACKED_COUNT, Fields, packed_of
from liteq.brokers.redis_liveness import Birth, is_dead, own_birth, watch
from liteq.brokers.values import Lease, WorkerInfo
from liteq.message import ACKS_LATE
from liteq.outcome import Lost, Outcome, Released

__all__ = ["RedisRoster"]

_DIED: Final = "the worker process died while the task ran"
_FORGOTTEN: Final = "the server has lost what became of it"


class _Row:
    """A worker as a script tells of it."""

    def __init__(self, id: int, fields: Sequence[bytes | None]) -> None:
        self.id = id
        self._texts = [(field or b"").decode() for field in fields]
        _name, _host, pid, boot, space, started = self._texts[:6]
        self.birth = Birth(boot, space, int(pid), started)

    def info(
        self,
        age: float,
        state: Literal["alive", "stuck", "dead"] = "alive",
        leases: int = 0,
    ) -> WorkerInfo:
        name, host, pid, _, _, _, queues, concurrency, details, started = self._texts[:10]
        return WorkerInfo(
            id=self.id,
            name=name,
            hostname=host,
            pid=int(pid),
            queues=tuple(json.loads(queues)),
            concurrency=int(concurrency),
            started_at=float(started),
            beat_age=age,
            details=json.loads(details),
            state=state,
            leases=leases,
        )


class RedisRoster(RedisStore):
    """The part of a Redis store that knows who is alive."""

    def register(
        self, name: str, queues: Sequence[str], concurrency: int, details: Mapping[str, Any]
    ) -> int:
        birth = self._birth = own_birth()
        fields = {
            "name": name,
            "hostname": socket.gethostname(),
            "pid": birth.pid,
            "boot": birth.boot,
            "space": birth.space,
            "birth": birth.started,
            "queues": json.dumps(list(queues)),
            "concurrency": concurrency,
            "details": json.dumps(dict(details)),
        }
        pairs = [part for pair in fields.items() for part in pair]
        outage = self._link.last_outage
        worker = Fields(self._once("register", *pairs)).number()
        self._outages[worker] = outage
        return worker

    def beat(
        self,
        worker: int,
        details: Mapping[str, Any] | None = None,
        *,
        queues: Sequence[str] | None = None,
        concurrency: int | None = None,
    ) -> bool:
        text = "" if details is None else json.dumps(dict(details))
        names = "" if queues is None else json.dumps(list(queues))
        before = self._steady.get(worker)
        now = self.clock.steady()
        expected = "" if before is None else before[1] + (now - before[0])
        version, alive, *rest = self._call("beat", worker, text, expected, names, concurrency)
        if version is not None:  # none: the server was emptied
            self._link.refuse_other(version)
        if alive != b"1":
            self._steady.pop(worker, None)
            self._digests.pop(worker, None)
            return False
        self._steady[worker] = (self.clock.steady(), float(rest[0] or 0))
        return True

    def unregister(self, worker: int) -> None:
        reason = "its worker left without settling it"

        def end(lease: Lease, _: bytes) -> Outcome:  # what it did with them is unknown
            return Released() if lease.packed[ACKS_LATE] else Lost(reason)

        self._take_back(worker, "gone", end)
        own = (self._steady, self._digests, self._doubtful, self._answered, self._outages)
        for kept in own:
            kept.pop(worker, None)

    def disown(self, worker: int, held: Callable[[], Collection[Lease]]) -> int:
        outage = self._link.last_outage
        if outage == self._outages.get(worker):
            return 0
        self._call("condemn", worker, "", 0)  # nobody leases it anything from now on
        last = str(self._last_step(worker)).encode()

        def end(_: Lease, word: bytes) -> Outcome:
            return Released() if word == last else Lost(_FORGOTTEN)

        total = self._take_back(worker, "", end, held())
        self._outages[worker] = outage
        return total

    def _last_step(self, worker: int) -> int | None:
        """Return the token of the last step before the outage that is to be dealt with. A
        server that knows no later one, and this, has forgotten nothing: what the worker
        holds there, and knows nothing of, never came to it, and was not started."""
        token, outage = self._answered.get(worker, (None, None))
        return token if outage == self._outages.get(worker) else None

    def reclaim(self, worker: int | None = None) -> int:
        return sum(
            self._take_back(id, "dead", lambda *_: Lost(_DIED))
            for id in self._dead_workers(worker)
        )

    def _take_back(
        self,
        worker: int,
        how: str,
        end: Callable[[Lease, bytes], Outcome],
        but: Collection[Lease] = (),
    ) -> int:
        """Stop a worker (see condemn.lua), and end the leases that it holds but for these,
        each fenced, in slices. `end` is given the word of its last step, too."""
        left = [word for lease in but for word in (lease.id, lease.token)]
        total = 0
        while True:
            fields = Fields(self._call("condemn", worker, how, SLICE, *left))
            word, looked_at, leases = fields.bytes(), fields.number(), []
            for _ in range(fields.number()):
                key, token, delivery = fields.number(), fields.number(), fields.number()
                leases.append(Lease(key, token, delivery, packed_of(fields.some(PACKED_COUNT))))
            if leases:
                leases.sort(key=lambda one: one.key)  # what follows is not to hang on chance
                step = self.step(
                    worker, settlements=[(lease, end(lease, word)) for lease in leases]
                )
                total += sum(step.accepted)
            if looked_at < SLICE:
                return total

    def _dead_workers(self, caller: int | None) -> list[int]:
        rows = self._worker_rows()
        own = next((age for info, age in rows if info is not None and info.id == caller), 0.0)
        # If our own heartbeat is old, this machine may have been asleep; if the server could
        # not be reached, nobody could beat. The others get as long before their silence
        # counts.
        lenient = own > self.lease_timeout / 2 or self._was_out_of_reach()
        dead = []
        for entry, age in rows:
            if entry is None:
                dead.append(int(age))  # gone already, and its leases left behind
            elif entry.id != caller and (
                (age > self.lease_timeout and not lenient) or self._is_seen_dead(entry)
            ):
                dead.append(entry.id)
        return dead

    def _was_out_of_reach(self) -> bool:
        link = self._link
        patience = self.lease_timeout / 2
        return (
            link.failed_for > patience / 2 and time.monotonic() < link.recovered_at + patience
        )

    def _worker_rows(self) -> list[tuple[_Row | None, float]]:
        fields = Fields(self._call("workers"))
        rows: list[tuple[_Row | None, float]] = []
        while fields.more():
            id, *rest = fields.some(12)
            if rest[0] is None:
                rows.append((None, float(id or 0)))
            else:
                rows.append((_Row(int(id or 0), rest), float(rest[-1] or 0)))
        return rows

    def _is_seen_dead(self, row: _Row) -> bool:
        own = self._birth or own_birth()
        return own.near(row.birth) and is_dead(row.birth)

    def workers(self) -> list[WorkerInfo]:
        alive = []
        for row, age in self._worker_rows():
            if row is None or age > self.lease_timeout or self._is_seen_dead(row):
                continue
            alive.append(row.info(max(0.0, age)))
        return sorted(alive)

    def roster(self, dead_for: float = 3600.0) -> list[WorkerInfo]:
        fields = Fields(self._call("roster", dead_for))
        found = []
        while fields.more():
            id, *rest = fields.some(12)
            leases, given_up = fields.number(), fields.one() is not None
            row, age = _Row(int(id or 0), rest), max(0.0, float(rest[-1] or 0))
            found.append(row.info(age, self._state_of(row, age, given_up=given_up), leases))
        return present(found)

    def _state_of(
        self, row: _Row, age: float, *, given_up: bool
    ) -> Literal["alive", "stuck", "dead"]:
        """Tell how a worker is: of one on another machine, only its heartbeat tells."""
        near = own_birth().near(row.birth)
        if near and is_dead(row.birth):
            return "dead"
        if given_up:
            return "stuck" if near else "dead"
        return "stuck" if age > self.stuck_after else "alive"

    def peers(self) -> list[int]:
        own = own_birth()
        found = [
            watch(row.birth)
            for row, _ in self._worker_rows()
            if row is not None and row.birth.pid != own.pid and own.near(row.birth)
        ]
        return [fd for fd in found if fd is not None]
