"""What the value of a setting may be, and what is kept of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta, tzinfo
from typing import Any, Final, TypeAlias

from liteq.exceptions import ConfigWarning, ImproperlyConfigured

__all__ = [
    "Check",
    "Exchange",
    "Queue",
    "Unfit",
    "address",
    "annotating",
    "anything",
    "choice",
    "concurrency",
    "flag",
    "integer",
    "keys",
    "level",
    "mapping",
    "names",
    "pauses",
    "queues",
    "rate",
    "remote",
    "routes",
    "seconds",
    "secrets",
    "text",
    "url",
    "zone",
]

Check: TypeAlias = Callable[[Any], Any]


class Exchange:
    """An exchange, so that a configuration which names some can be read. There are none
    here: a message goes to a queue by its name, which is what a direct exchange does. Any
    other type would have done something else, and is warned about."""

    __slots__ = ("name", "options", "type")

    def __init__(self, name: str = "", type: str = "direct", **options: Any) -> None:
        self.name = name
        self.type = type
        self.options = options
        if type not in ("", "direct"):
            warnings.warn(
                f"the exchange {name!r} of type {type!r} has no effect in liteq: a message "
                "goes to a queue by its name",
                ConfigWarning,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        return f"Exchange({self.name!r})"


class Queue:
    """A queue for `task_queues`, written as kombu's is.

    `max_length`: how many messages may wait in it; a producer with more gets `QueueFull`.
    The exchange, the routing key and whatever else kombu accepts are kept as attributes and
    ignored: a liteq queue needs no declaration.
    """

    __slots__ = ("exchange", "max_length", "name", "options", "routing_key")

    def __init__(
        self,
        name: str,
        exchange: Any = None,
        routing_key: str = "",
        *,
        max_length: Any = None,
        **options: Any,
    ) -> None:
        if not name:
            raise ImproperlyConfigured("a queue needs a name")
        if max_length is not None and (
            isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1
        ):
            raise ImproperlyConfigured(
                f"the max_length of the queue {name!r} (how many messages may wait in it) must "
                f"be a whole number above 0, not {max_length!r}"
            )
        self.name = name
        self.max_length: int | None = max_length
        self.exchange = exchange
        self.routing_key = routing_key
        self.options = options

    def __eq__(self, other: object) -> bool:
        return self.name == other.name if isinstance(other, Queue) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Queue({self.name!r})"


# What a value may be. A check returns the value to keep, or raises `Unfit` saying what was
# expected. Text is understood everywhere, since the environment has nothing else.


class Unfit(Exception):
    """What a setting must be, said of a value that is not."""


def anything(value: Any) -> Any:
    return value


def flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off", ""):
        return False
    raise Unfit("must be true or false")


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise Unfit("must be text")
    return value


def integer(least: int = 0, most: int | None = None) -> Check:
    expected = f"must be a whole number of at least {least}"
    if most is not None:
        expected = f"must be a whole number from {least} to {most}"

    def check(value: Any) -> int:
        try:
            number = int(value)
        except (TypeError, ValueError, OverflowError):
            raise Unfit(expected) from None
        if isinstance(value, bool) or number < least or (most is not None and number > most):
            raise Unfit(expected)
        if not isinstance(value, str) and number != value:
            raise Unfit(expected)
        return number

    return check


def seconds(value: Any) -> float:
    """A duration, which is reckoned with and ends: a number of seconds, or a timedelta."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    expected = "must be a number of seconds (or a timedelta), 0 or more"
    if isinstance(value, bool):
        raise Unfit(expected)
    if not isinstance(value, int | float):
        try:
            value = float(value)
        except (TypeError, ValueError):
            raise Unfit(expected) from None
    if not value >= 0:  # nan is refused too
        raise Unfit(expected)
    if value > _LONGEST:
        raise Unfit(f"must be a number of seconds (or a timedelta) up to {_LONGEST:g}")
    seconds: float = value
    return seconds


def choice(*words: str) -> Check:
    def check(value: Any) -> str:
        if value not in words:
            raise Unfit(f"must be one of {', '.join(words)}")
        return str(value)

    return check


def mapping(value: Any) -> Any:
    if isinstance(value, str):
        value = _of_json(value, "must be a dict (in the environment: a JSON object)")
    if not isinstance(value, Mapping):
        raise Unfit("must be a dict")
    return value


def pauses(value: Any) -> Any:
    """How often to try again, in Celery's words, and with which pauses between."""
    policy = dict(mapping(value))
    for name in ("interval_start", "interval_step", "interval_max"):
        if name in policy:
            try:
                policy[name] = seconds(policy[name])
            except Unfit as exc:
                raise Unfit(f"its {name} {exc}") from None
    return policy


def routes(value: Any) -> Any:
    """Checked where it is used, but for text: the path of a router, or routes as JSON."""
    if _is_json(value):
        return _of_json(
            value, "must be the path of a router, or a JSON object or list of routes"
        )
    return value


def annotating(value: Any) -> Any:
    """Dictionaries by the task's name or "*", objects with a method `annotate`, or a list."""
    expected = "must be a dict by task, an object with a method annotate(), or a list of such"
    if isinstance(value, str):
        value = _of_json(value, f"{expected} (in the environment: JSON)")
    for rule in value if isinstance(value, list | tuple) else [value]:
        by_name = isinstance(rule, Mapping) and all(
            options is None or isinstance(options, Mapping) for options in rule.values()
        )
        if not by_name and not callable(getattr(rule, "annotate", None)):
            raise Unfit(expected)
    return value


def _is_json(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip()[:1] in ("[", "{")


def _of_json(value: str, expected: str) -> Any:
    import json  # late: only for settings in the environment

    try:
        return json.loads(value)
    except ValueError:
        raise Unfit(expected) from None


def names(value: Any) -> tuple[str, ...]:
    if _is_json(value):
        value = _of_json(value, "must be a list of names, with commas between them, or in JSON")
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise Unfit("must be a list of names")
    names = tuple(value)
    if not all(isinstance(name, str) for name in names):
        raise Unfit("must be a list of names")
    return names


def keys(value: Any) -> tuple[str, ...]:
    """Secret keys, in the environment or a file with commas or line ends between them."""
    if isinstance(value, str):
        value = value.replace("\n", ",")
    keys = tuple(dict.fromkeys(names(value)))
    if any(len(key) < _SHORTEST_KEY for key in keys):
        raise Unfit(
            f"must be keys of at least {_SHORTEST_KEY} characters: make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return keys


def encryption_keys(value: Any) -> tuple[str, ...]:
    """Keys for Fernet, written as `keys()` takes them. Nothing is derived from a text: a key
    that somebody thought of is soon found by who has the store."""
    if isinstance(value, str):
        value = value.replace("\n", ",")
    found = tuple(dict.fromkeys(names(value)))
    if not all(map(_is_random, found)):
        raise Unfit(
            "must be keys of 32 random bytes in URL-safe base64: make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return found


def _is_random(key: str) -> bool:
    """Tell whether a key may be 32 bytes by chance: of such, 16 at least are different, but
    for one key in 10**12."""
    import base64  # late: few have keys

    try:
        raw = base64.b64decode(f"{key.rstrip('=')}=", altchars=b"-_", validate=True)
    except ValueError:
        return False
    return len(raw) == _ENCRYPTION_KEY and len(set(raw)) >= _ENCRYPTION_KEY // 2


_ENCRYPTION_KEY: Final = 32  # bytes
_LONGEST: Final = 253_402_300_800  # from 1970 to the year 9999
_SHORTEST_KEY: Final = 16
_LEAST_SECRET: Final = 16


def address(value: Any) -> str:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text(value)


def url(value: Any) -> Any:
    """One URL, or a list of them (for fail-over), or what an app can make of a path."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple) and all(isinstance(url, str) for url in value):
        return value
    raise Unfit("must be a URL, or a list of URLs")


def zone(value: Any) -> Any:
    if isinstance(value, tzinfo) or value == "UTC":
        return value
    if isinstance(value, str):
        from zoneinfo import ZoneInfo  # late: 3 ms that only other zones than UTC pay

        try:
            ZoneInfo(value)
        except (ValueError, OSError, LookupError):
            raise Unfit(
                "must be a time zone's name, as in Europe/Berlin (install the package "
                "tzdata if this machine knows none)"
            ) from None
        return value
    raise Unfit("must be a time zone's name or a tzinfo")


def queues(value: Any) -> tuple[Queue, ...]:
    """Names, `Queue`s of liteq or kombu, or a dict of options by name."""
    if _is_json(value):
        value = _of_json(value, "must be a list of queues or a dict (in the environment: JSON)")
    elif isinstance(value, str):
        value = names(value)
    if isinstance(value, Mapping):
        return tuple(_queue(name, options) for name, options in value.items())
    if not isinstance(value, Iterable):
        raise Unfit("must be a list of queues or a dict")
    return tuple(_queue(queue, None) for queue in value)


def _queue(queue: Any, options: Any) -> Queue:
    _refuse_fanout(queue)
    if isinstance(queue, Queue):
        return queue
    if isinstance(queue, str):
        known = dict(options) if isinstance(options, Mapping) else {}
        known.pop("name", None)
        made = Queue(queue, **known)
        _refuse_fanout(made)
        return made
    if isinstance(name := getattr(queue, "name", None), str):  # kombu's
        key = getattr(queue, "routing_key", "") or ""
        most = getattr(queue, "max_length", None)
        return Queue(name, getattr(queue, "exchange", None), key, max_length=most)
    raise Unfit(f"must hold names or Queue objects, not {queue!r}")


def _refuse_fanout(queue: Any) -> None:
    """Raise `Unfit` for a queue that would have had a copy of each message for each worker
    (kombu's `Broadcast`, whose name is a random one): here nobody would get any."""
    kind = getattr(getattr(queue, "exchange", None), "type", None)
    if isinstance(queue, Queue):
        kind = queue.options.get("exchange_type", kind)
    if kind == "fanout":
        name = getattr(queue, "alias", None) or getattr(queue, "name", queue)
        raise Unfit(
            f"has the fanout queue {name!r}, and liteq sends no message to all workers: for "
            "what all of them have to do, write a @control_command and call it with "
            "app.control.broadcast(), or send one call to each worker's own queue"
        )


def level(value: Any) -> Any:
    import logging  # late: for those who set it

    known = logging.getLevelNamesMapping()
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.upper() in known:
        return value.upper()
    raise Unfit(f"must be one of {', '.join(sorted(known))}, or a number")


def concurrency(value: Any) -> int | None:
    return None if value in ("auto", 0, "0") else int(integer(1)(value))


def remote(value: Any) -> bool | str:
    if isinstance(value, str) and value.strip().lower().replace("_", "-") == "read-only":
        return "read-only"
    try:
        return flag(value)
    except Unfit:
        raise Unfit('must be true, false or "read-only"') from None


def secrets(value: Any) -> Any:
    """Texts of some length: a short secret is soon guessed."""
    given = [value] if isinstance(value, str | bytes) else value
    if not isinstance(given, list | tuple) or not all(
        isinstance(one, str | bytes) and len(one) >= _LEAST_SECRET for one in given
    ):
        raise Unfit(f"must be a text of {_LEAST_SECRET} characters or more, or a list of such")
    return value


def rate(value: Any) -> Any:
    """Checked where it is used: a number per second, or "10/s", "10/m", "10/h"."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Unfit('must be a number per second, or text like "10/m"')
    return value
