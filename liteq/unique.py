"""What makes two calls of a task the same one: the unique key, and what becomes of the second.

Pure: a key is a digest of the task's name and of arguments by their names, so `add(1, 2)`
and `add(x=1, y=2)` are one call, in every process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from liteq import serializers
from liteq.ciphers import Cipher, Fingerprints
from liteq.clock import FromNow
from liteq.exceptions import EncodeError
from liteq.message import Message
from liteq.options import UNIQUE_OPTIONS, checked_seconds

__all__ = ["Uniqueness", "as_unique", "read_options"]

_CONFLICTS: Final = ("return", "skip", "replace", "raise")
_LONGEST: Final = 10  # times `debounce`, if no `debounce_max` is given


class Uniqueness(NamedTuple):
    """The checked options of a unique call. Durations are seconds; `key` is a function of
    the call's arguments, or the names of those that count (None: all)."""

    key: tuple[str, ...] | Callable[..., Any] | None
    unique_for: float | None
    on_conflict: str
    debounce: float | None
    max_wait: float | None


def read_options(options: Mapping[str, Any]) -> Uniqueness | None:
    """Return what these options of a task or call say, None if it is not unique.

    Raises `TypeError` and `ValueError` for invalid values and combinations.
    """
    given = {name: value for name in UNIQUE_OPTIONS if (value := options.get(name)) is not None}
    wanted = given.get("unique")
    if wanted is None:
        wanted = "unique_key" in given or "debounce" in given
    elif not isinstance(wanted, bool):
        raise TypeError(f"unique must be True or False, not {wanted!r}")
    if not wanted:
        if "unique" not in given and (lone := given.keys() - {"unique"}):
            raise ValueError(f"{sorted(lone)[0]} is for unique calls: add unique=True")
        return None
    debounce = _duration("debounce", given.get("debounce"))
    period = _duration("unique_for", given.get("unique_for"))
    max_wait = _duration("debounce_max", given.get("debounce_max"))
    conflict = given.get("on_conflict", "return" if debounce is None else "replace")
    if conflict not in _CONFLICTS:
        raise ValueError(
            f"on_conflict must be one of {', '.join(_CONFLICTS)}, not {conflict!r}"
        )
    if debounce is not None and conflict != "replace":
        raise ValueError(f'debounce replaces what waits: on_conflict cannot be "{conflict}"')
    if debounce is None and max_wait is not None:
        raise ValueError("debounce_max is the longest wait of a debounce: give debounce too")
    if debounce is not None and max_wait is None:
        max_wait = _LONGEST * debounce
    if max_wait is not None and debounce is not None and max_wait < debounce:
        raise ValueError(f"debounce_max {max_wait:g} is shorter than debounce {debounce:g}")
    if period is not None and conflict == "replace":
        raise ValueError(
            "unique_for keeps the key after the end, when nothing waits that could be "
            'replaced: it goes with on_conflict "return", "skip" and "raise"'
        )
    return Uniqueness(_key(given.get("unique_key")), period, conflict, debounce, max_wait)


def _key(given: Any) -> tuple[str, ...] | Callable[..., Any] | None:
    if given is None or callable(given):
        return given  # type: ignore[no-any-return]
    names = (given,) if isinstance(given, str) else given
    if isinstance(names, Iterable):
        found = tuple(names)
        if found and all(isinstance(name, str) and name for name in found):
            return found
    raise TypeError(
        "unique_key must name the arguments that count, or be a function of them, "
        f"not {given!r}"
    )


def _duration(name: str, given: Any) -> float | None:
    if given is None:
        return None
    seconds = checked_seconds(name, given)
    if seconds <= 0:
        raise ValueError(f"{name} must be a number of seconds above 0, not {given!r}")
    return seconds


def as_unique(
    message: Message,
    options: Mapping[str, Any],
    run: Callable[..., Any] | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    now: float,
    cipher: Cipher | None = None,
) -> Message:
    """Return the message with its key, if these options of its call make it unique.

    `run` is the task's body, whose signature names the arguments (None: not known here).
    `cipher` has what is compared in place of a secret: nobody without its key could guess the
    value by the digest.
    Raises as `read_options()` does, and `EncodeError` for arguments that make no key.
    """
    wanted = read_options(options)
    if wanted is None:
        return message
    changes: dict[str, Any] = {
        "unique_key": _digest(
            message.task, _counting(message.task, wanted, run, args, kwargs), cipher
        ),
        "on_conflict": None if wanted.on_conflict == "return" else wanted.on_conflict,
        "unique_for": wanted.unique_for,
    }
    if wanted.debounce is not None:
        if message.run_at is not None:
            raise ValueError("debounce sets the time of a call: leave out countdown and eta")
        changes["run_at"] = FromNow(now + wanted.debounce, wanted.debounce)
        changes["max_wait"] = wanted.max_wait
    return message._replace(**changes)


def _counting(
    task: str,
    wanted: Uniqueness,
    run: Callable[..., Any] | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """Return what two calls have in common if they are the same."""
    key = wanted.key
    if key is not None and not isinstance(key, tuple):
        return key(*args, **kwargs)
    named = _named(run, args, kwargs)
    if key is None:
        return named
    if missing := [name for name in key if name not in named]:
        raise TypeError(
            f"unique_key of {task} names {missing[0]!r}, and this call has no such argument "
            f"(it has {', '.join(map(str, named)) or 'none'})"
        )
    return {name: named[name] for name in key}


def _named(
    run: Callable[..., Any] | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[Any, Any]:
    """Return the arguments by name, with the defaults of those that are not given; by place
    where nothing names them."""
    import inspect  # late: 6 ms, and few tasks are unique

    try:
        signature = None if run is None else inspect.signature(run)
    except (ValueError, TypeError):
        signature = None  # written in C
    if signature is None:
        return {**{str(place): value for place, value in enumerate(args)}, **kwargs}
    bound = signature.bind_partial(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _digest(task: str, counting: Any, cipher: Cipher | None) -> str:
    from hashlib import blake2b  # late: few tasks are unique

    try:
        comparing = None if cipher is None else Fingerprints(cipher)
        text = serializers.dumps(counting, root="the unique key", cipher=comparing)
    except EncodeError as exc:
        exc.add_note(
            "a unique call's arguments are written as JSON to be compared: name those that "
            "can be in unique_key, or give a function of them"
        )
        raise
    canonical = json.dumps([task, json.loads(text)], sort_keys=True)
    return blake2b(canonical.encode(), digest_size=16).hexdigest()
