"""A shop with real workers: one store, one module of tasks, processes that run them.

What the tasks do is read from a file of notes, to which they append outside of the
store. A task called `hold` runs until the test releases it, so nothing needs to sleep.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from api import forget_current
from world import wait_until

from liteq.brokers.sqlite import SqliteBroker
from liteq.exceptions import BrokerUnavailable

HEAD = """
import asyncio, os, signal, subprocess, sys, time
from liteq import Liteq, signals
from liteq.exceptions import SoftTimeLimitExceeded

FOLDER = {folder!r}
app = Liteq("shop", broker={url!r}, **{conf!r})
NOTES = os.open(FOLDER + "/notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

def note(*words):
    os.write(NOTES, (" ".join(map(str, words)) + "\\n").encode())

@app.task
def add(x, y):
    return x + y

@app.task(bind=True)
def hold(self, name="hold"):
    note("start", name, self.request.deliveries, os.getpid(), time.time())
    while not os.path.exists(FOLDER + "/go-" + name):
        time.sleep(0.005)
    note("end", name)
    return [name, self.request.deliveries]
"""


class Shop:
    """A store, the tasks of `source`, and the workers that this shop started. The store is
    in the folder, unless there is a URL of another."""

    def __init__(
        self, folder: Path, source: str = "", *, url: str | None = None, **conf: Any
    ) -> None:
        self.folder = folder
        options = {"durability": "normal", **conf.pop("broker_transport_options", {})}
        conf["broker_transport_options"] = options
        conf.setdefault("worker_shutdown_timeout", 20.0)
        url = url or f"sqlite:///{folder}/store"
        self._text = HEAD.format(folder=str(folder), url=url, conf=conf) + source
        (folder / "tasks.py").write_text(self._text)
        self.tasks = self._load()
        self.app = self.tasks.app
        self.workers: list[subprocess.Popen[bytes]] = []

    def _load(self) -> ModuleType:
        """Import the tasks here under their name, so that they can be called."""
        spec = spec_from_file_location("tasks", self.folder / "tasks.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["tasks"] = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    # What the tasks did

    def notes(self, first: str = "") -> list[list[str]]:
        """Return the lines that begin with this word, as words."""
        lines = (self.folder / "notes").read_text().splitlines()
        return [words for line in lines if (words := line.split())[0] == first or not first]

    def starts(self, name: str = "hold") -> list[list[str]]:
        """Return delivery number, pid and time of each start of a held task."""
        return [words[2:] for words in self.notes("start") if words[1] == name]

    def wait_start(self, name: str = "hold", count: int = 1) -> list[str]:
        """Wait for the start of a held task."""
        wait_until(lambda: len(self.starts(name)) >= count, within=15)
        return self.starts(name)[count - 1]

    def hold(self, name: str = "hold", **options: Any) -> Any:
        """Call the task that runs until it is released."""
        return self.tasks.hold.apply_async((name,), **options)

    def release(self, *names: str) -> None:
        for name in names or ("hold",):
            (self.folder / f"go-{name}").touch()

    def record(self, result: Any) -> Any:
        return self.app.broker.get([result.id])[result.id]

    # Workers

    def start(
        self,
        *flags: str,
        name: str = "w",
        ready: bool = True,
        stderr: int | None = None,
        **environ: str,
    ) -> subprocess.Popen[bytes]:
        """Start `liteq worker`; unless `ready` is off, wait until it says so in its log, which
        is its standard error, if that is nothing else."""
        command = [sys.executable, "-m", "liteq", "worker", "-n", f"{name}@shop", *flags]
        said = self.log(name).count("\nready ")
        with (self.folder / f"{name}.log").open("ab") as log:
            worker = subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=log,
                stderr=log if stderr is None else stderr,
                start_new_session=True,
                env={**os.environ, **environ},
            )
        self.workers.append(worker)
        if ready:
            self.wait(lambda: self.log(name).count("\nready ") > said, worker)
        return worker

    def wait(self, condition: Callable[[], Any], worker: subprocess.Popen[bytes]) -> Any:
        """Wait for a condition; fail at once if the worker ends before."""

        def met() -> Any:
            ended = worker.poll() is not None
            value = condition()
            assert value or not ended, (worker.returncode, self.logs())
            return value

        return wait_until(met, within=20)

    def log(self, name: str = "w") -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in self.folder.glob("*.log"))

    def children(self, worker: subprocess.Popen[bytes]) -> list[int]:
        return children_of(worker.pid)

    def left_behind(self) -> list[str]:
        """Return what workers that are gone have left in the store's folder."""
        store = self.folder / "store"
        found = [*(store / "wake").glob("w*"), *(store / "workers").iterdir()]
        return [path.name for path in found]

    def stop(self, worker: subprocess.Popen[bytes], *signums: int) -> int:
        """Send signals (TERM), and return the exit code."""
        for signum in signums or (signal.SIGTERM,):
            worker.send_signal(signum)
        return worker.wait(20)

    def freeze(self, worker: subprocess.Popen[bytes]) -> None:
        """Stop a worker (SIGSTOP) of a shop whose store is in its folder, and not while it
        writes: that would keep all others from writing for as long as it is stopped."""
        probe = SqliteBroker(str(self.folder / "store"), busy_timeout=0.5)
        try:
            while True:
                worker.send_signal(signal.SIGSTOP)
                wait_until(lambda: _state(worker.pid) == "T")
                with contextlib.suppress(BrokerUnavailable):
                    probe.forget(["none"])
                    return
                worker.send_signal(signal.SIGCONT)
                pause()
        finally:
            probe.close()

    def close(self) -> None:
        for worker in self.workers:
            for pid in [*children_of(worker.pid), worker.pid]:
                if worker.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            worker.wait()
        self.app.close()
        os.close(self.tasks.NOTES)
        del sys.modules["tasks"]
        forget_current()


def children_of(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(pid) for pid in text.split()]


def is_running(pid: int) -> bool:
    """Tell whether a process exists and is no zombie."""
    try:
        return _state(pid) not in "ZX"
    except OSError:
        return False


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def pause() -> None:
    """Let the others have the processor; for sampling, never for waiting."""
    time.sleep(0.002)
