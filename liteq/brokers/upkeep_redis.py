"""Housekeeping, in Lua: results from outside, and what is dropped, swept or moved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from liteq import failure
from liteq.brokers.base_redis import LOOK, SLICE, slices
from liteq.brokers.mail_redis import RedisMail
from liteq.brokers.redis_form import graph_arguments
from liteq.exceptions import NotRegistered
from liteq.message import Message

if TYPE_CHECKING:
    from liteq.brokers.moving import Shelf

__all__ = ["RedisUpkeep"]

_GONE_FOR: Final = 7 * 86_400.0  # seconds the name of a worker that is gone is kept


class RedisUpkeep(RedisMail):
    """The part of a Redis store that is tidied."""

    def store(
        self,
        id: str,
        state: str,
        value: bytes | None,
        *,
        task: str = "",
        expires: float | None = 86400.0,
    ) -> None:
        letters = {"SUCCESS": "S", "FAILURE": "F", "REVOKED": "R", "IGNORED": "I"}
        final = letters.get(state, "")
        message = Message(id, task, b"[[],{}]", queue="", result_expires=expires)
        kept = b"" if value is None else b"=" + value
        graph = graph_arguments([message.pack()], ())
        self._call("store", final, state, kept, expires, *graph, durable=True)

    def forget(self, ids: Iterable[str]) -> None:
        for some in slices(list(ids), LOOK):
            self._call("forget", *some, durable=True)

    def _purge(self, queues: Sequence[str] | None, *, dead: bool) -> Iterator[int]:
        if dead:
            places = [""] if queues is None else list(queues)
        else:
            places = self._queue_names() if queues is None else list(queues)
        for queue in places:
            last: bytes | None = b"0"
            while last is not None:
                said = self._once("purge", queue, "dead" if dead else "", SLICE, last)
                yield int(said[0] or 0)
                last = said[1]

    # Keeping house

    def maintain(self) -> bool:
        # The parked and the gone are old by the server's clock, which is asked first.
        now = self.time()
        before = now - self.unknown_expires
        more, slots, *rest = self._call("maintain", SLICE, before, now - _GONE_FOR)
        at = 2 * int(slots or 0)
        for bucket, id in zip(rest[:at:2], rest[1:at:2], strict=True):
            _warn_of_slot((bucket or b"").decode(), (id or b"").decode())
        parked = rest[at:]
        lost: list[Any] = []
        for id, task in zip(parked[::2], parked[1::2], strict=True):
            name = (task or b"").decode()
            reason = f"unknown task {name!r}: no worker that has seen it knows this task"
            lost += (id, reason, failure.describe(NotRegistered(reason)))
        if lost:
            self._call("give_up", before, *lost)
        return more == b"1"

    def shelf(self) -> Shelf:
        from liteq.brokers.moving_redis import RedisShelf  # late: for one command

        return RedisShelf(self._call, self._link)


def _warn_of_slot(bucket: str, id: str) -> None:
    from liteq.loggers import get_logger  # late: a third of what a sender loads

    name, _, key = bucket.partition("\n")
    get_logger("liteq.limits").warning(
        "gave back the slot that %s held under the limit %r%s: it is not running, and its list "
        "of slots in the store is damaged",
        id,
        name,
        f" for {key!r}" if key else "",
    )
