"""What a Redis server says of itself, for who operates it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from liteq.brokers.redis_wire import ServerError
from liteq.exceptions import BrokerError

__all__ = ["facts"]

_SECTIONS: Final = ("server", "memory", "persistence", "replication", "clients")
_OVER: Final = {"S": "succeeded", "F": "failed", "R": "revoked", "I": "ignored"}


def facts(ask: Callable[..., Any], prefix: str) -> dict[str, Any]:
    """Return figures of the server and of the store with this prefix. Sizes are in bytes,
    `clock_skew` is by how many seconds its clock is before ours; what this user may not
    see is left out."""
    info: dict[str, str] = {}
    for section in _SECTIONS:
        try:
            lines = ask("INFO", section).decode("utf-8", "replace").splitlines()
        except (BrokerError, ServerError):
            continue  # not for this user
        info.update((n, v) for n, _, v in (line.partition(":") for line in lines) if v)
    found: dict[str, Any] = {
        "version": _version(info),
        "memory": _number(info, "used_memory"),
        "maxmemory": _number(info, "maxmemory"),
        "policy": info.get("maxmemory_policy"),
        "role": info.get("role"),
        "replicas": _number(info, "connected_slaves"),
        "clients": _number(info, "connected_clients"),
        "last_save": info.get("rdb_last_bgsave_status"),
        "aof_write": info.get("aof_last_write_status"),
        "clock_skew": _skew(ask),
    }
    states = {name: int(ask("ZCARD", f"{prefix}over:{of}")) for of, name in _OVER.items()}
    return {
        **{name: value for name, value in found.items() if value is not None},
        "dead": int(ask("ZCARD", f"{prefix}dead")),
        "workflows": int(ask("ZCARD", f"{prefix}workflows")),
        "states": {name: number for name, number in states.items() if number},
    }


def _version(info: dict[str, str]) -> str | None:
    if "valkey_version" in info:
        return f"valkey {info['valkey_version']}"
    return f"redis {info['redis_version']}" if "redis_version" in info else None


def _number(info: dict[str, str], name: str) -> int | None:
    text = info.get(name, "")
    return int(text) if text.isdigit() else None


def _skew(ask: Callable[..., Any]) -> float:
    before = time.time()
    seconds, micro = ask("TIME")
    ours = (before + time.time()) / 2
    return round(float(seconds) + float(micro) / 1e6 - ours, 3) + 0.0  # no -0.0
