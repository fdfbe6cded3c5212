"""How an event is kept: JSON with Celery's fields."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from liteq.carrying import cut
from liteq.message import GATHER, Message
from liteq.redaction import hide
from liteq.showing import shown_call
from liteq.wording import instant

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.task import Task

__all__ = ["about", "encode", "own_fields", "sent"]

_TEXT_LIMIT: Final = 1024  # characters of a field of a user's own


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
    return json.dumps({**common, **fields, "type": type}, default=repr).encode()


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


def own_fields(app: Liteq, task: Task[..., Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an event that a task sends, short and without secrets: its own,
    and those among the arguments of the call that runs."""
    request, redactor = task.request, app.redactor
    named = (task.all_parameters, task.sensitive)
    secrets = redactor.secrets(request.args or (), request.kwargs or {}, *named)

    def shown(name: str, value: Any) -> Any:
        value = redactor.value(value, name)
        try:
            text = json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            return hide(redactor.text(value), secrets)
        if len(text) <= _TEXT_LIMIT and hide(text, secrets) == text:
            return value
        text = value if isinstance(value, str) else redactor.text(value)
        return cut(hide(text, secrets), _TEXT_LIMIT)

    return {name: shown(name, value) for name, value in fields.items()}


def _iso(seconds: float | None) -> str | None:
    found = instant(seconds)
    return None if found is None else found.isoformat()
