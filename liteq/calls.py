"""From a call's options to the fields of its message.

A task's calls start from its `Defaults`, worked out once; most calls are those and a
body. Options given with a call change fields of that message. Pure: the time, the time
zone and the router are arguments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta, tzinfo
from typing import Any, Final

from liteq.clock import FromNow
from liteq.exceptions import EncodeError, MessageTooLarge
from liteq.limits import Keys
from liteq.message import Message
from liteq.options import (
    CALL_OPTIONS,
    checked_count,
    checked_deliveries,
    checked_limits,
    checked_priority,
    checked_seconds,
    due_at,
    expires_at,
    refuse_unknown,
)
from liteq.routes import Router
from liteq.settingvalues import Unfit, pauses

__all__ = [
    "Defaults",
    "checked_id",
    "counted_from",
    "lifetime",
    "merge",
    "plain",
    "too_large",
    "with_options",
]

_NAMED: Final = frozenset(
    {"args", "kwargs", "link", "link_error", "task_id", "shadow", "throw"}
)
_KNOWN: Final = CALL_OPTIONS | _NAMED
_PROPERTIES: Final = (
    "correlation_id",
    "app_id",
    "user_id",
    "message_id",
    "type",
    "timestamp",
    "expiration",
    "exchange",
    "routing_key",
    "delivery_mode",
)
_TEXTS: Final = (
    "root_id",
    "parent_id",
    "group_id",
    "reply_to",
    "origin",
    "shadow",
    "argsrepr",
    "kwargsrepr",
)
_NUMBERS: Final = ("retries", "group_index", "replaced_task_nesting")
_FLAGS: Final = ("acks_late", "ignore_result", "immutable")
_MOST_HEADERS: Final = 65_536  # bytes of headers, of stamps, of properties
_POLICY: Final = (
    "max_retries",
    "interval_start",
    "interval_step",
    "interval_max",
    "retry_errors",
)


class Defaults:
    """What every call of one task has in common, under one revision of the settings.

    `template` is a message without id and body. `own` are the options set on the task,
    which overrule a route; what it has from the settings does not. With `is_plain`, a call
    without options is the template: no route looks at the arguments, and nothing counts
    from the time of the call. `keys` is set if its limits depend on its arguments.
    """

    __slots__ = (
        "_rest",
        "checks_arguments",
        "is_plain",
        "keys",
        "own",
        "revision",
        "template",
    )

    def __init__(
        self,
        revision: int,
        template: Message,
        own: Mapping[str, Any],
        *,
        is_plain: bool,
        checks_arguments: bool,
        keys: Keys | None = None,
    ) -> None:
        self.revision = revision
        self.template = template
        self.own = own
        self.is_plain = is_plain
        self.checks_arguments = checks_arguments
        self.keys = keys
        self._rest = (template.task, template[3:])

    def message(self, id: str, body: bytes) -> Message:
        """Return a plain call's message (`_replace` would take ten times as long)."""
        name, fields = self._rest
        return tuple.__new__(Message, (id, name, body, *fields))


def merge(
    name: str,
    args: Any,
    kwargs: Any,
    own: Mapping[str, Any],
    options: Mapping[str, Any],
    router: Router,
    task: Any = None,
) -> dict[str, Any]:
    """Return all options of a call: those given with it, then the task's own, then the
    route's, as in Celery. A given None counts as not given."""
    given = {key: value for key, value in options.items() if value is not None}
    chosen = {**own, **given}
    return {**router.route(name, args, kwargs, chosen, task), **chosen}


def with_options(
    message: Message,
    options: Mapping[str, Any],
    router: Router,
    now: float,
    zone: tzinfo | None,
    **own: Any,
) -> Message:
    """Return the message with these options of a call applied, and the fields in `own`.

    Raises `TypeError` for an option that does not exist, `ValueError` for an invalid value.
    """
    stamped = tuple(
        _text("a stamped header", name) for name in options.get("stamped_headers") or ()
    )
    if not options.keys() <= _KNOWN:
        refuse_unknown(options, _KNOWN.union(stamped), "a call")
    hard = options.get("time_limit", message.time_limit)
    soft = options.get("soft_time_limit", message.soft_time_limit)
    hard, soft = checked_limits(hard, soft)
    changes: dict[str, Any] = {
        **own,
        "queue": router.queue(options),
        "run_at": due_at(options.get("countdown"), options.get("eta"), now, zone),
        "expires_at": expires_at(options.get("expires"), now, zone),
        "time_limit": hard,
        "soft_time_limit": soft,
    }
    for names, checked in ((_TEXTS, _text), (_NUMBERS, checked_count), (_FLAGS, _flag)):
        for name in names:
            if (value := options.get(name)) is not None:
                changes[name] = checked(name, value)
    if (deliveries := options.get("max_deliveries")) is not None:
        changes["max_deliveries"] = checked_deliveries(deliveries)
    if "priority" in options:
        changes["priority"] = checked_priority(options["priority"])
    if "result_expires" in options:
        changes["result_expires"] = lifetime(options["result_expires"])
    if policy := options.get("retry_policy"):
        _check_policy(policy)
    if headers := options.get("headers"):
        changes["headers"] = plain("headers", headers)
    if properties := {key: options[key] for key in _PROPERTIES if key in options}:
        changes["properties"] = plain("properties", properties, default=str)
    if stamped or options.get("stamps"):
        stamps = dict(options.get("stamps") or {})
        stamps.update({key: _as_json(options[key]) for key in stamped if key in options})
        changes.update(stamped_headers=stamped, stamps=plain("stamps", stamps))
    return message._replace(**changes)


def counted_from(message: Message, now: float) -> Message:
    """Return the message of a call that is sent now and was made before: what was said as
    so many seconds `FromNow` counts from now."""
    changes: dict[str, Any] = {
        name: FromNow(now + at.seconds, at.seconds)
        for name, at in (("run_at", message.run_at), ("expires_at", message.expires_at))
        if type(at) is FromNow
    }
    return message._replace(**changes) if changes else message


def lifetime(given: float | timedelta | None) -> float | None:
    """Return how long a result is kept, in seconds; None and zero mean for ever.

    Raises `TypeError` for what is no duration, `ValueError` for a negative one.
    """
    if not given:
        return None
    seconds = checked_seconds("result_expires", given)
    if seconds < 0:
        raise ValueError(f"result_expires must be 0 or more, not {given!r}")
    return seconds or None


def _check_policy(policy: Any) -> None:
    refuse_unknown(policy, _POLICY, "a retry_policy")
    try:
        pauses(policy)
    except Unfit as exc:
        raise ValueError(f"retry_policy = {policy!r}: {exc}") from None


def checked_id(given: Any) -> str:
    """Return the id given to a call. Raises `TypeError` for what is not text."""
    return str(_text("task_id", given))


def too_large(name: str, body: bytes, limit: int) -> MessageTooLarge:
    """Return the error for arguments that take more bytes than allowed."""
    return MessageTooLarge(
        f"the arguments of {name} take {len(body)} bytes, more than the {limit} of "
        "task_max_body_size: store what is large elsewhere and send where it is"
    )


def _as_json(stamp: Any) -> Any:
    """Return a stamp's value as it is; of a set, which JSON does not have, its list."""
    return list(stamp) if isinstance(stamp, (set, frozenset)) else stamp


def _text(name: str, given: Any) -> str:
    if isinstance(given, str):
        return given
    raise TypeError(f"{name} must be text, not {given!r}")


def _flag(name: str, given: Any) -> bool:
    return bool(given)


def plain(name: str, given: Any, default: Any = None) -> dict[str, Any]:
    """Return a mapping that plain JSON carries, or raise `EncodeError`, or
    `MessageTooLarge` for more of it than a message is to carry."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} must be a mapping, not {given!r}")
    size = 0
    for key, value in given.items():
        try:
            size += len(json.dumps({key: value}, default=default))
        except (TypeError, ValueError) as exc:
            raise EncodeError(
                f"{name}[{key!r}]: {type(value).__name__} is not plain JSON: {exc}"
            ) from None
    if size > _MOST_HEADERS:
        raise MessageTooLarge(
            f"the {name} take {size} bytes, more than the {_MOST_HEADERS} allowed: send "
            "what is large as an argument, or store it elsewhere and send where it is"
        )
    if default is None:
        return dict(given)
    return json.loads(json.dumps(dict(given), default=default))  # type: ignore[no-any-return]
