"""What is declared and overridden of limits, as the Lua scripts keep it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from liteq.brokers.redis_form import Fields
from liteq.limits import Limit, LimitInfo, checked, warn_unreadable, write

__all__ = ["declaring", "infos", "overrides", "overriding"]

# What another program wrote: no JSON, or not of our form.
_UNREADABLE = (AttributeError, TypeError, ValueError, RecursionError)

Call = Callable[..., list[bytes | None]]


def declaring(tasks: Mapping[str, Sequence[Limit]]) -> list[Any]:
    """Return the arguments of `lua/set_limits.lua`."""
    arguments: list[Any] = []
    for task, limits in tasks.items():
        listed = [(limit.name, _pair(limit.name), _rule(limit)) for limit in limits]
        arguments += ("t", task, json.dumps(listed) if listed else "")
    return arguments


def overriding(name: str, limit: Limit | None, task: str | None) -> list[Any]:
    """Return the arguments of `lua/set_limits.lua`."""
    text = "" if limit is None else json.dumps((_pair(name), _rule(limit), task))
    return ["o", name, text]


def infos(answer: Sequence[bytes | None]) -> list[LimitInfo]:
    """Return all limits by name, of what `lua/limits.lua` answers."""
    fields = Fields(answer)
    declared: dict[str, Limit] = {}
    users: dict[str, set[str]] = {}
    for _ in range(fields.number()):
        task, text = fields.text(), fields.bytes()
        for name, limit in _listed(task, text):
            declared[name] = limit
            users.setdefault(name, set()).add(task)
    changed: dict[str, Limit] = {}
    for name, limit, user in _overrides(fields):
        changed[name] = limit
        if user is not None:
            users.setdefault(name, set()).add(user)
    return [
        LimitInfo(
            name, declared.get(name), changed.get(name), tuple(sorted(users.get(name, ())))
        )
        for name in sorted({*declared, *changed})
    ]


def overrides(answer: Sequence[bytes | None]) -> list[tuple[str, Limit, str | None]]:
    """Return the name, the limit and the task of all that is in force whatever is declared."""
    fields = Fields(answer)
    fields.some(2 * fields.number())
    return list(_overrides(fields))


def _overrides(fields: Fields) -> Iterator[tuple[str, Limit, str | None]]:
    while fields.more():
        name, text = fields.text(), fields.bytes()
        try:
            _, rule, task = json.loads(text)
            yield name, _limit(name, rule), task
        except _UNREADABLE:
            warn_unreadable(f"the limit {name!r} is", text.decode(errors="replace"))


def _listed(task: str, text: bytes) -> list[tuple[str, Limit]]:
    try:
        return [(name, _limit(name, rule)) for name, _, rule in json.loads(text)]
    except _UNREADABLE:
        warn_unreadable(f"the limits of the task {task!r} are", text.decode(errors="replace"))
        return []


def _pair(name: str) -> str:
    """Return what stands in a message's limits for a name without a key."""
    text = write([(name, "")])
    assert text is not None
    return text[1:-1]


def _rule(limit: Limit) -> str:
    interval = "" if limit.interval is None else repr(limit.interval)
    most = "" if limit.most is None else str(limit.most)
    return f"{interval},{limit.burst},{most},{int(limit.per_worker)}"


def _limit(name: str, rule: str) -> Limit:
    interval, burst, most, own = rule.split(",")
    return checked(
        Limit(
            name,
            interval=float(interval) if interval else None,
            burst=int(burst),
            most=int(most) if most else None,
            per_worker=own == "1",
        )
    )
