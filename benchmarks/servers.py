"""Where the systems live: an environment for each, and a Redis server of our own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import ClassVar

from benchmarks.systems import System

__all__ = ["Redis", "bin_of", "install"]

_ENVIRONMENTS = Path(__file__).parents[1] / ".venvs"


def bin_of(system: System) -> Path:
    """Return the folder with the programs of a system."""
    if not system.requires:
        return Path(sys.executable).parent
    return _ENVIRONMENTS / system.module / "bin"


def install(system: System) -> None:
    """Make the environment of a system, unless it is there. The systems that share a
    module share it."""
    folder = _ENVIRONMENTS / system.module
    stamp = folder / "installed"
    wanted = " ".join(system.requires)
    if not system.requires or (stamp.exists() and stamp.read_text() == wanted):
        return
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "install"]
    subprocess.run([*pip, "--disable-pip-version-check", *system.requires], check=True)
    stamp.write_text(wanted)


class Redis:
    """A server without persistence on a free port of the loopback interface. `running`: the
    process ids of all that were started and not stopped."""

    running: ClassVar[set[int]] = set()

    def __init__(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise SystemExit("redis-server is not installed: apt install redis-server")
        self._folder = tempfile.TemporaryDirectory(prefix="bench-redis-")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no"}
        options |= {"dir": self._folder.name, "daemonize": "no", "loglevel": "warning"}
        given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self._process = subprocess.Popen([program, *given], stdout=subprocess.DEVNULL)
        self.running.add(self._process.pid)
        self.url = f"redis://127.0.0.1:{self.port}"
        self._wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def empty(self) -> None:
        self._send("FLUSHALL")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self.running.discard(self._process.pid)
        self._folder.cleanup()

    def _wait(self) -> None:
        deadline = time.monotonic() + 10
        while True:
            try:
                self._send("PING")
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.02)
            else:
                return

    def _send(self, command: str) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as link:
            link.sendall(f"{command}\r\n".encode())
            answer = link.recv(64)
            if not answer.startswith(b"+"):
                raise RuntimeError(f"Redis answered {answer!r} to {command}")
