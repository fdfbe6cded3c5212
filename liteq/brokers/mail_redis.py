"""Letters and events in Lua: see `mail_sqlite`, which is the same in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from liteq.brokers.base import EVENTS_KEPT, EVENTS_KEPT_FOR, LETTERS_KEPT, Mailbox
from liteq.brokers.base_redis import RedisStore, address
from liteq.brokers.redis_form import Fields
from liteq.brokers.values import Events, Letter

__all__ = ["RedisMail"]


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
