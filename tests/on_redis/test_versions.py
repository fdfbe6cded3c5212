"""What liteq asks of a server is what Redis 6.2 and Valkey have.

Neither is packaged where these tests run, so the server at hand is asked since when each
command is known. Valkey began as Redis 7.2 and has all that 6.2 has. All tests of this folder
run with another server too, if that is the `redis-server` of `PATH`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
from redis_server import RedisServer

import liteq.brokers
from liteq.brokers.redis import RedisBroker
from liteq.brokers.redis_wire import ServerError
from liteq.exceptions import BrokerError, BrokerUnavailable, QueueFull

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
    """Return the version that a command came with; nothing if it is not a command."""
    found: Any = server.say("COMMAND", "DOCS", name)
    if not found:
        return ()
    fields = dict(zip(found[1][::2], found[1][1::2], strict=True))
    return tuple(int(part) for part in fields[b"since"].decode().split("."))


def test_no_command_is_younger_than_the_oldest_server(server: RedisServer) -> None:
    if b"redis_version:6." in bytes(server.say("INFO", "server")):  # type: ignore[arg-type]
        pytest.skip("this server is the oldest, and does not tell what came when")
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


@pytest.mark.parametrize(
    ("said", "error", "match"),
    [
        ("@user_script: 40: -OOM command not allowed when used …", QueueFull, "no memory"),
        ("@user_script: 40: -READONLY You can't write …", BrokerUnavailable, "READONLY"),
        ("@user_script: 40: -MISCONF Redis: it is …", BrokerUnavailable, "MISCONF Redis: it"),
        ("WRONGTYPE Operation against a key …", BrokerError, "another program has written"),
        ("user_script: 40: attempt to index a nil value", BrokerError, "script.*a nil value"),
    ],
)
def test_what_redis_6_says_of_a_command_in_a_script_is_understood(
    direct: RedisBroker, said: str, error: type[BrokerError], match: str
) -> None:
    text = f"ERR Error running script (call to f_d75a04c34730): @user_script:40: {said}"

    meant, _ = direct._link.refusal(ServerError(text))

    assert type(meant) is error
    assert re.search(match, str(meant))
