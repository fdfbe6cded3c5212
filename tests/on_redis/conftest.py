"""Fixtures of the tests that need a Redis server of their own, or a bad line to one."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis_server
from redis_server import RedisServer, free_port
from world import wait_until

from liteq import Liteq
from liteq.brokers.redis import RedisBroker
from on_redis.proxy import Proxy

DOCS = Path(__file__).parents[2] / "docs" / "guide" / "many-machines.md"


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
def app(server: RedisServer) -> Iterator[Liteq]:
    """An app on that server, with one task."""
    made = Liteq("shop", broker=server.url, set_as_current=False)

    @made.task(name="shop.double")
    def double(number: int) -> int:
        return 2 * number

    yield made
    made.close()


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


@pytest.fixture
def certificates(folder: Path) -> Path:
    """A folder with ca.pem, and key.pem and cert.pem for localhost."""
    if shutil.which("openssl") is None:
        if os.environ.get("CI"):
            pytest.fail("openssl is not installed")
        pytest.skip("openssl is not installed")
    place = folder / "tls"
    place.mkdir()
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    named = ["-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(
        [*new, "-nodes", "-days", "2", "-subj", "/CN=localhost", *named, *files],
        cwd=place,
        check=True,
        capture_output=True,
    )
    return place


@pytest.fixture
def replica(start: Callable[..., RedisServer]) -> tuple[RedisServer, RedisServer]:
    master = start("repl-diskless-sync-delay 0", port=free_port())
    follower = start(f"replicaof 127.0.0.1 {master.port}", port=free_port())
    wait_until(lambda: b"master_link_status:up" in bytes(follower.say("INFO", "replication")))  # type: ignore[arg-type]
    return master, follower


@pytest.fixture
def sentinel(
    replica: tuple[RedisServer, RedisServer], start: Callable[..., RedisServer]
) -> tuple[RedisServer, str]:
    """A sentinel that knows both servers, and the URL of what it watches: the first of the
    sentinels that this names is not there."""
    port = free_port()
    watcher = start(
        f"sentinel monitor shop 127.0.0.1 {replica[0].port} 1",
        "sentinel down-after-milliseconds shop 200",
        "sentinel failover-timeout shop 1000",
        port=port,
        sentinel=True,
    )
    wait_until(lambda: b"slaves=1" in bytes(watcher.say("INFO", "sentinel")))  # type: ignore[arg-type]
    return watcher, f"redis+sentinel://127.0.0.1:1,127.0.0.1:{port}/shop/0"


def acl_of_the_docs() -> str:
    """Return the line that makes the user `liteq`, whose password is then "secret"."""
    (line,) = [
        line.strip()
        for line in DOCS.read_text(encoding="utf-8").splitlines()
        if line.strip().startswith("user liteq ")
    ]
    return line.replace("<password>", "secret")
