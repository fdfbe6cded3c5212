"""Letters, events and the roster in Lua: see `mail_sqlite`, which is the same in SQL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from liteq.brokers.base import EVENTS_KEPT, EVENTS_KEPT_FOR, LETTERS_KEPT, Mailbox
from liteq.brokers.base_redis import RedisStore, address
from liteq.brokers.liveness import present
from liteq.brokers.redis_form import Fields
from liteq.brokers.redis_liveness import Birth, is_dead, own_birth
from liteq.brokers.values import Events, Letter, WorkerInfo

__all__ = ["RedisMail", "Row"]


class Row:
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


class RedisMail(RedisStore):
    """The part of a Redis store that carries letters and events."""

    # Letters

    def post(self, letters: Sequence[Letter]) -> list[bool]:
        if not letters:
            return []
        arguments: list[Any] = []
        for letter in letters:
            kind = "w" if isinstance(letter.to, int) else "m"
            arguments += (kind, letter.to, letter.body, letter.seconds)
        return [said == b"1" for said in self._once("post", LETTERS_KEPT, *arguments)]

    def collect(self, to: int | str) -> list[bytes]:
        return [body or b"" for body in self._once("collect", to)]

    # Events

    def listen(self, mailbox: Mailbox, seconds: float) -> int:
        return Fields(self._call("listen", address(mailbox), seconds)).number()

    def emit(self, events: Sequence[bytes]) -> bool:
        return self._once("emit", EVENTS_KEPT, EVENTS_KEPT_FOR, *events)[0] == b"1"

    def events(self, after: int, limit: int = 1000) -> Events:
        last, missed, *bodies = self._call("events", after, limit)
        return Events(int(last or 0), int(missed or 0), tuple(b or b"" for b in bodies))

    # Who is there, and what waits

    def roster(self, dead_for: float = 3600.0) -> list[WorkerInfo]:
        fields = Fields(self._call("roster", dead_for))
        found = []
        while fields.more():
            id, *rest = fields.some(12)
            leases, given_up = fields.number(), fields.one() is not None
            row, age = Row(int(id or 0), rest), max(0.0, float(rest[-1] or 0))
            found.append(row.info(age, self._state_of(row, age, given_up=given_up), leases))
        return present(found)

    def _state_of(
        self, row: Row, age: float, *, given_up: bool
    ) -> Literal["alive", "stuck", "dead"]:
        """Tell how a worker is: of one on another machine, only its heartbeat tells."""
        near = own_birth().near(row.birth)
        if near and is_dead(row.birth):
            return "dead"
        if given_up:
            return "stuck" if near else "dead"
        return "stuck" if age > self.stuck_after else "alive"

    def claimable(self, queues: Sequence[str], most: int) -> int:
        return min(most, Fields(self._call("claimable", *queues)).number())
