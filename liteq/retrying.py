"""What another attempt changes in a call's message: what `self.retry()` asks for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from liteq import serializers, signals, texts
from liteq.calls import with_options
from liteq.exceptions import Retry
from liteq.message import PACKED_FIELDS, Message
from liteq.options import checked_seconds

if TYPE_CHECKING:
    from liteq.context import Context
    from liteq.task import Task

    AnyTask: TypeAlias = Task[..., Any]

__all__ = ["asked_for", "call_again"]


def asked_for(
    task: AnyTask,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    exc: BaseException | None,
    eta: datetime | None,
    countdown: float | None,
    options: dict[str, Any],
) -> Retry:
    """Return the `Retry` with the time and the changed fields of the message of what the
    task runs now."""
    request = task.request
    if countdown is None and eta is None:
        countdown = task.default_retry_delay
    if countdown is not None:
        countdown = checked_seconds("countdown", countdown)
    if isinstance(eta, datetime) and eta.tzinfo is None:
        eta = eta.replace(tzinfo=task.app.timezone)
    when = eta if countdown is None else countdown
    steer = Retry(exc=exc or _handled(), when=when, is_eager=request.is_eager)
    steer.sig = task.signature_from_request(request, args, kwargs, **options)
    changes = _changes(task, args, kwargs, options)
    steer.changes = changes  # type: ignore[attr-defined]  # read by the executor
    return steer


def _changes(
    task: AnyTask,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Return the packed fields in which the next attempt's message differs."""
    message = task.request.message
    announced = bool(signals.before_task_publish.receivers)
    if message is None or (args is None and kwargs is None and not options and not announced):
        return {}
    changed = message
    again = _arguments_again(task, task.request, args, kwargs)
    if args is not None or kwargs is not None:
        body = serializers.dumps_call(*again, message.content_type, task.app.cipher)
        # These arguments hold what its links gave it: not to be prepended once more.
        changed = changed._replace(body=body, immutable=True, keywords=None)
    if options:
        changed = _with_changed_options(changed, options, task.app)
    if announced:
        from liteq import publishing  # late: few have receivers

        retried = changed._replace(retries=message.retries + 1)
        changed = publishing.announce_retry(retried, *again)._replace(retries=message.retries)
    if (signer := task.app.signer) is not None:
        changed = signer.sign(changed)
    pairs = zip(PACKED_FIELDS, message.pack(), changed.pack(), strict=True)
    changes = {name: new for name, old, new in pairs if new != old}
    texts.check(changes.values())
    return changes


def call_again(
    task: AnyTask,
    request: Context,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """Return the arguments of a call like this one, and the options that it was sent with."""
    execution = request.as_execution_options() if request.id else {}
    options = {name: value for name, value in execution.items() if value is not None}
    info = request.delivery_info
    if info:
        options.setdefault("queue", info.get("routing_key"))
        options.setdefault("priority", info.get("priority"))
    return *_arguments_again(task, request, args, kwargs), options


def _arguments_again(
    task: AnyTask,
    request: Context,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of the next attempt. Given positional ones, those inherited
    keywords stay that the function can still take; given keywords, likewise."""
    old_args, old_kwargs = tuple(request.args or ()), dict(request.kwargs or {})
    if args is None and kwargs is None:
        return old_args, old_kwargs
    if args is None:
        return _fitting(task, old_args, dict(kwargs or {})), dict(kwargs or {})
    if kwargs is not None:
        return tuple(args), dict(kwargs)
    positional = task.parameters[: len(args)]
    kept = {k: v for k, v in old_kwargs.items() if k not in positional}
    return tuple(args), kept


def _fitting(task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    names = task.parameters
    clash = [i for i, name in enumerate(names[: len(args)]) if name in kwargs]
    return args[: clash[0]] if clash else args


def _with_changed_options(message: Message, options: Mapping[str, Any], app: Any) -> Message:
    base = {"queue": message.queue, **options}
    changed = with_options(message, base, app.router, app.clock.now(), app.timezone)
    keep: dict[str, Any] = {"run_at": message.run_at}
    if options.get("expires") is None:
        keep["expires_at"] = message.expires_at
    return changed._replace(**keep)


def _handled() -> Exception | None:
    handled = sys.exception()
    return handled if isinstance(handled, Exception) else None
