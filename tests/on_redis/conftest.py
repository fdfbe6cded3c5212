"""Fixtures of the tests that need a Redis server of their own, or a bad line to one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis_server
from redis_server import RedisServer

from liteq.brokers.redis import RedisBroker
from on_redis.proxy import Proxy


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: that of a socket file has about 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="liteq-") as name:
        yield Path(name)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., RedisServer]]:
    """Start servers with these lines of configuration; they end with the test."""
    redis_server.require()
    with ExitStack() as stack:

        def starter(*options: str, port: int = 0, sentinel: bool = False) -> RedisServer:
            own = folder / f"redis{len(list(folder.iterdir()))}"
            own.mkdir()
            server = RedisServer(own, *options, port=port, sentinel=sentinel)
            stack.callback(server.kill)
            return server.start()

        yield starter


@pytest.fixture
def server(start: Callable[..., RedisServer]) -> RedisServer:
    """A server of the test's own, which it may kill."""
    return start()


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    """A line to the server that the test may break."""
    line = Proxy(server.path)
    yield line
    line.close()


@pytest.fixture
def broker(proxy: Proxy) -> Iterator[RedisBroker]:
    """A broker behind that line; it gives up after half a second."""
    opened = RedisBroker(proxy.url, socket_timeout=0.5, socket_connect_timeout=0.5)
    yield opened
    opened.close()


@pytest.fixture
def patient(proxy: Proxy) -> Iterator[RedisBroker]:
    """A broker behind that line that only an answer that is lost makes ask again: none that
    is late."""
    opened = RedisBroker(proxy.url, socket_timeout=60)
    yield opened
    opened.close()


@pytest.fixture
def direct(server: RedisServer) -> Iterator[RedisBroker]:
    """A broker that sees the same store by another way."""
    opened = RedisBroker(server.url)
    yield opened
    opened.close()
