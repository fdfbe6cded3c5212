"""What liteq asks of a server is what Redis 6.2 and Valkey have.

Neither is packaged where these tests run, so the server at hand is asked since when each
command is known. Valkey began as Redis 7.2 and has all that 6.2 has.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
from redis_server import RedisServer

import liteq.brokers

pytestmark = pytest.mark.redis

OLDEST: Final = (6, 2)
BROKERS: Final = Path(liteq.brokers.__file__).parent
SCRIPTS: Final = sorted((BROKERS / "lua").glob("*.lua"))
MODULES: Final = sorted({*BROKERS.glob("redis*.py"), *BROKERS.glob("*_redis.py")})
# What a script may use, all of it there since Redis 2.8.
FUNCTIONS: Final = {"call", "pcall"}


def words(path: Path) -> set[str]:
    """Return what could be a command's name: words of capital letters in quotes."""
    return set(re.findall(r"""['"]([A-Z]{3,})['"]""", path.read_text(encoding="utf-8")))


def since(server: RedisServer, name: str) -> tuple[int, ...]:
    """Return the version that a command came with; nothing if it is no command."""
    found: Any = server.say("COMMAND", "DOCS", name)
    if not found:
        return ()
    fields = dict(zip(found[1][::2], found[1][1::2], strict=True))
    return tuple(int(part) for part in fields[b"since"].decode().split("."))


def test_no_command_is_younger_than_the_oldest_server(server: RedisServer) -> None:
    used = {name for path in (*SCRIPTS, *MODULES) for name in words(path)}
    known = {name: version for name in used if (version := since(server, name))}

    assert {"HSET", "ZPOPMIN", "SMISMEMBER", "PUBLISH", "SUBSCRIBE", "WAIT"} <= known.keys()
    assert {name: version for name, version in known.items() if version[:2] > OLDEST} == {}
    assert since(server, "SINTERCARD")[:2] > OLDEST  # a younger one would be seen


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_use_what_every_server_gives_them(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert not text.startswith("#!")  # Redis 7 and later
    assert set(re.findall(r"\bredis\.(\w+)", text)) <= FUNCTIONS
