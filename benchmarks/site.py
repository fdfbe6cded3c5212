"""Where a measurement takes place: a store, its worker, and what /proc says of them."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import effects


class System(NamedTuple):
    """A queue. `module` has `enqueue(number)`, which returns a handle with an `id`,
    `wait(handle)` and `result(id)`. Only the processes of a `Site` import it."""

    title: str
    module: str
    imports: tuple[str, str]  # the package, and the class that every user of it needs
    worker: str  # what Python is given, but for the number of children


class Site:
    """A fresh store of one system, and a file for the effects of its tasks."""

    def __init__(self, system: System, durability: str = "normal") -> None:
        self.system = system
        self._store = tempfile.TemporaryDirectory(prefix="bench-")
        self.effects = Path(self._store.name, "effects")
        self.effects.touch()
        # Without bytecode, the time of an import is the compiler's.
        dropped = ("LITEQ_", "CELERY_", "PYTHONDONTWRITEBYTECODE")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        self.environment["BENCH_FOLDER"] = self._store.name
        self.environment["BENCH_DURABILITY"] = durability

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.cleanup()

    def python(self, *arguments: str) -> str:
        """Run Python to its end; return what it printed."""
        command, env = [sys.executable, *arguments], self.environment
        done = subprocess.run(command, env=env, check=True, timeout=600, stdout=subprocess.PIPE)
        return done.stdout.decode()

    def drive(self, operation: str, **arguments: Any) -> Any:
        """Have the driver do one operation; return its answer."""
        command = ("-m", "benchmarks.driver", self.system.module, operation)
        return json.loads(self.python(*command, json.dumps(arguments)))

    @contextmanager
    def worker(self) -> Iterator[int]:
        """Run a worker with two children; give its process id."""
        command, env = [sys.executable, *self.system.worker.split(), "2"], self.environment
        process = subprocess.Popen(command, env=env, start_new_session=True)
        try:
            yield process.pid
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise

    def wait(self, number: int) -> None:
        """Wait until so many tasks have run."""
        deadline = time.monotonic() + 300
        while (ran := effects.count(self.effects)) < number:
            if time.monotonic() > deadline:
                raise RuntimeError(f"only {ran} of {number} tasks have run")
            time.sleep(0.01)

    def warm_up(self) -> None:
        """Have the worker do what it does only once."""
        self.drive("enqueue", number=20, first=effects.WARM_UP)
        self.wait(20)
        time.sleep(2)

    def starts(self, number: int) -> dict[int, int]:
        """Return when each task started, once a second run of one had time to show."""
        time.sleep(0.3)
        return effects.starts(self.effects, number)


def tree(pid: int) -> list[Path]:
    """Return a process and all its descendants, as folders of /proc."""
    found = [Path(f"/proc/{pid}")]
    for each in found:
        for file in each.glob("task/*/children"):
            found += [Path(f"/proc/{child}") for child in file.read_text().split()]
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a tree: to the nanosecond, since an idle worker uses only one
    or two of the ticks that `stat` counts."""
    files = [file for each in tree(pid) for file in each.glob("task/*/schedstat")]
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def memory(pid: int) -> float:
    """Return the MB of a tree, each shared page shared out among its users (PSS)."""
    rollups = [(each / "smaps_rollup").read_text() for each in tree(pid)]
    return sum(int(text.partition("\nPss:")[2].split()[0]) for text in rollups) / 1000


def others_cpu_seconds() -> float:
    """Return the CPU time of all that we have not started: how loaded the machine is."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split()[1:9]]
    busy = (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # not idle, iowait
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return busy - sum(usage.ru_utime + usage.ru_stime for usage in usages)
