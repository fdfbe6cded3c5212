"""A message's arguments as they may be shown: in lists, in events, to whoever looks.

What is secret is hidden (`liteq.redaction`), what cannot be read is said to be so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from liteq.message import GATHER, Message
from liteq.serializers import loads_call

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = ["in_front", "shown_arguments", "shown_call", "without_secrets"]


def shown_arguments(app: Liteq, message: Message) -> tuple[Any, Any]:
    """Return the positional and the keyword arguments of a call, without secrets."""
    if message.argsrepr is not None or message.kwargsrepr is not None:  # the caller's wish
        return message.argsrepr, message.kwargsrepr
    if message.task == GATHER:
        return "<the results of its parts>", None
    try:
        args, kwargs = loads_call(
            message.body, message.content_type, tuple(app.conf.accept_content)
        )
    except Exception as exc:  # noqa: BLE001 (pickle may raise anything)
        return f"<unreadable: {type(exc).__name__}>", None
    return without_secrets(app, message.task, args, kwargs, in_front(message))


def in_front(message: Message) -> int | None:
    """Return how many arguments other calls put in front of those of this one: None if that
    is not known, as it may stand behind one. The edges that say so are the store's."""
    if message.immutable or (message.keywords and None not in message.keywords):
        return 0
    is_first = message.root_id in (None, message.id) and not message.replaced_task_nesting
    return 0 if is_first else None


def without_secrets(
    app: Liteq,
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    front: int | None = 0,
) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments for a task of this name, what is secret in them hidden. So many
    arguments come in front of them; None: it is not known."""
    task = app.tasks.get(name)
    shown, named = app.redactor.arguments(
        args,
        kwargs,
        () if task is None else task.all_parameters,
        () if task is None else task.sensitive,
        front,
    )
    return list(shown), named


def shown_call(app: Liteq, message: Message) -> tuple[str, str]:
    """Return the arguments of a call as texts, short and without secrets."""
    args, kwargs = shown_arguments(app, message)
    if isinstance(args, str):
        return args, "{}" if kwargs is None else str(kwargs)
    return app.redactor.text(tuple(args)), app.redactor.text(kwargs)
