"""The signals of sending: what receivers see of a message, and what they may change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from liteq.calls import plain
from liteq.ciphers import Cipher
from liteq.context import Context
from liteq.message import GATHER, Message
from liteq.serializers import loads_call, registered
from liteq.signals import after_task_publish, before_task_publish

__all__ = ["announce", "announce_retry", "protocol_headers", "report"]

_OURS: Final = frozenset(
    {
        "argsrepr",
        "eta",
        "expires",
        "group",
        "group_index",
        "id",
        "ignore_result",
        "kwargsrepr",
        "lang",
        "origin",
        "parent_id",
        "replaced_task_nesting",
        "retries",
        "root_id",
        "shadow",
        "stamped_headers",
        "stamps",
        "task",
        "timelimit",
    }
)


def announce(messages: Sequence[Message], cipher: Cipher) -> list[Message]:
    """Send `before_task_publish` for each task, and return the messages with what
    receivers changed: custom headers, `shadow`, and the priority in `properties`."""
    return [
        message if message.task == GATHER else _announce(message, _call(message, cipher))
        for message in messages
    ]


def announce_retry(message: Message, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Message:
    """Do the same for the next attempt of a task, whose arguments may be nowhere but
    here: a call that is run in place has no body."""
    return _announce(message, (args, kwargs))


def report(messages: Sequence[Message], cipher: Cipher) -> None:
    """Send `after_task_publish` for each task."""
    for message in messages:
        if message.task == GATHER:
            continue
        after_task_publish.send(
            sender=message.task,
            headers=protocol_headers(message),
            body=_body(*_call(message, cipher)),
            exchange="",
            routing_key=message.queue,
        )


def protocol_headers(message: Message) -> dict[str, Any]:
    """Return the message's headers under the names of Celery's protocol 2."""
    seen = Context.of(message.pack(), number=0, args=(), kwargs={}, message=message)
    return {
        "lang": "py",
        "task": message.task,
        "id": message.id,
        "shadow": message.shadow,
        "eta": seen.eta,
        "expires": seen.expires,
        "group": message.group_id,
        "group_index": message.group_index,
        "retries": message.retries,
        "timelimit": [message.time_limit, message.soft_time_limit],
        "root_id": message.root_id or message.id,
        "parent_id": message.parent_id,
        "argsrepr": message.argsrepr,
        "kwargsrepr": message.kwargsrepr,
        "origin": message.origin,
        "ignore_result": message.ignore_result,
        "replaced_task_nesting": message.replaced_task_nesting,
        "stamped_headers": list(message.stamped_headers or ()) or None,
        "stamps": dict(message.stamps or {}),
        **(message.headers or {}),
    }


def _announce(message: Message, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Message:
    headers = protocol_headers(message)
    properties: dict[str, Any] = {
        "correlation_id": message.id,
        "priority": message.priority,
        "reply_to": message.reply_to,
        **(message.properties or {}),
    }
    before_task_publish.send(
        sender=message.task,
        body=_body(*call),
        exchange="",
        routing_key=message.queue,
        headers=headers,
        properties=properties,
        declare=[],
        retry_policy=None,
    )
    custom = {name: value for name, value in headers.items() if name not in _OURS}
    return message._replace(
        headers=plain("headers", custom) or None,
        shadow=headers.get("shadow"),
        priority=properties.get("priority", message.priority),
    )


def _call(message: Message, cipher: Cipher) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # A beat needs no keys: what it sends of a stored entry is encrypted already.
    keys = cipher if cipher.has_keys else None
    return loads_call(message.body, message.content_type, registered(), keys)


def _body(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return args, kwargs, embed
