"""Redis servers for tests: real ones, on socket files and free ports, gone with the tests.

`shared()` is the one that most tests use, each in a namespace of its own. The others are
started by the tests that need them: with a password, an append-only file, TLS, replicas.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from liteq.brokers.redis_wire import Reader, ServerError, command

_SHARED = "TEST_REDIS_URL"  # the URL, for the processes that a test starts


def available() -> bool:
    return shutil.which("redis-server") is not None


def require() -> None:
    """Skip the test at a desk without a server; in CI, fail."""
    if available():
        return
    reason = "redis-server is not installed (on Debian: apt install redis-server)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class RedisServer:
    """A server process; `options` are lines of its configuration."""

    def __init__(
        self, folder: Path, *options: str, port: int = 0, sentinel: bool = False
    ) -> None:
        name = "redis"
        self.sentinel = sentinel
        self.folder = folder
        self.port = port
        self.path = folder / f"{name}.sock"
        self.options = options
        self.config = folder / f"{name}.conf"
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0" if self.port else f"unix://{self.path}?db=0"

    def start(self) -> RedisServer:
        """Start it, and return when it answers."""
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"unixsocket {self.path}",
            f"dir {self.folder}",
            f"logfile {self.log}",
            "daemonize no",
            *self.options,
        ]
        if not self.sentinel and not any(line.startswith("save") for line in self.options):
            lines.append('save ""')
        self.config.write_text("\n".join(lines) + "\n")
        self.path.unlink(missing_ok=True)
        mode = ["--sentinel"] if self.sentinel else []
        self.process = subprocess.Popen(["redis-server", str(self.config), *mode])
        deadline = time.monotonic() + 60  # it may have much to read
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"redis-server did not start:\n{self.log.read_text()}")
            time.sleep(0.005)
        return self

    def answers(self) -> bool:
        try:
            return self.say("PING") == b"PONG"
        except ServerError as exc:
            return exc.code in ("NOAUTH", "NOPERM")
        except OSError:
            return False

    def say(self, *words: object) -> object:
        """Send one command over the socket file and return the reply."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self.path))
            sock.sendall(command(words))
            return Reader(sock).reply()

    def kill(self) -> None:
        """Kill it, as a crash would."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


def free_port() -> int:
    """Return a port of this machine that nobody listens on now, and for whose number a
    cluster's node has room: it uses the one 10,000 above as well."""
    while True:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port: int = sock.getsockname()[1]
        if port < 55_000:
            return port


def shared() -> str:
    """Return the URL of the server that this session's tests share; start it if need be."""
    url = os.environ.get(_SHARED)
    if url is None:
        require()
        folder = Path(tempfile.mkdtemp(prefix="liteq-redis-"))
        server = RedisServer(folder).start()
        owner = os.getpid()

        def stop() -> None:
            if os.getpid() == owner:
                server.kill()
                shutil.rmtree(folder, ignore_errors=True)

        atexit.register(stop)
        url = os.environ[_SHARED] = server.url
    return url


def namespace_of(folder: Path) -> str:
    """Return a namespace for what is kept in this folder elsewhere."""
    return hashlib.sha1(str(folder).encode()).hexdigest()[:12]


def url_of(folder: Path) -> str:
    """Return the URL of the shared server, with that namespace."""
    return f"{shared()}&namespace={namespace_of(folder)}"
