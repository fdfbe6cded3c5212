"""How an event is kept: JSON with Celery's fields."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from liteq.message import GATHER, Message
from liteq.showing import shown_call
from liteq.wording import instant

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = ["about", "encode", "sent"]


def encode(type: str, app: Liteq, hostname: str, fields: dict[str, Any]) -> bytes:
    """Return an event of this type; what JSON has no word for is shown by its repr."""
    now = fields.get("timestamp") or app.clock.now()
    common = {
        "type": type,
        "timestamp": now,
        "utcoffset": -(time.localtime(now).tm_gmtoff // 3600),  # hours, west of UTC
        "hostname": hostname,
        "pid": os.getpid(),
        "clock": int(now * 1000),
    }
    return json.dumps({**common, **fields}, default=repr).encode()


def about(app: Liteq, message: Message) -> dict[str, Any]:
    """Return what events tell of a message, without secrets."""
    args, kwargs = shown_call(app, message)
    return {
        "uuid": message.id,
        "name": message.task,
        "args": args,
        "kwargs": kwargs,
        "root_id": message.root_id or message.id,
        "parent_id": message.parent_id,
        "retries": message.retries,
        "eta": _iso(message.run_at),
        "expires": _iso(message.expires_at),
        "queue": message.queue,
        "exchange": "",
        "routing_key": message.queue,
    }


def sent(app: Liteq, hostname: str, messages: Iterable[Message], at: float) -> list[bytes]:
    """Return the events that tell of messages that were sent at that time; gathers are no
    work."""
    return [
        encode("task-sent", app, hostname, {**about(app, message), "timestamp": at})
        for message in messages
        if message.task != GATHER
    ]


def _iso(seconds: float | None) -> str | None:
    found = instant(seconds)
    return None if found is None else found.isoformat()
