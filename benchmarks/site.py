"""Where a measurement takes place: a store, its worker, and what /proc says of them."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import effects
from benchmarks.servers import Redis, bin_of
from benchmarks.systems import System


class Site:
    """A fresh store of one system, and a file for the effects of its tasks. `redis` is the
    server that systems on Redis use; it is emptied."""

    def __init__(
        self, system: System, redis: Redis | None = None, durability: str = "normal"
    ) -> None:
        self.system = system
        self.redis = redis if system.store == "redis" else None
        self._store = tempfile.TemporaryDirectory(prefix="bench-")
        self.effects = Path(self._store.name, "effects")
        self.effects.touch()
        # Without bytecode, the time of an import is the compiler's.
        dropped = ("LITEQ_", "CELERY_", "PYTHONDONTWRITEBYTECODE")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        self.environment["BENCH_FOLDER"] = self._store.name
        self.environment["BENCH_DURABILITY"] = durability
        self.environment["PYTHONPATH"] = str(Path(__file__).parents[1])
        self._bin = bin_of(system)
        self.environment["PATH"] = f"{self._bin}{os.pathsep}{self.environment['PATH']}"
        if self.redis is not None:
            self.redis.empty()
            self.environment["BENCH_REDIS"] = self.redis.url

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.cleanup()

    def python(self, *arguments: str) -> str:
        """Run Python to its end; return what it printed."""
        command, env = [str(self._bin / "python"), *arguments], self.environment
        done = subprocess.run(command, env=env, check=True, timeout=600, stdout=subprocess.PIPE)
        return done.stdout.decode()

    def drive(self, operation: str, **arguments: Any) -> Any:
        """Have the driver do one operation; return its answer."""
        command = ("-m", "benchmarks.driver", self.system.module, operation)
        printed = self.python(*command, json.dumps(arguments))
        return json.loads(printed.rpartition("@@")[2])

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """Run a worker with two children."""
        worker = Worker(self)
        try:
            yield worker
        finally:
            worker.stop()

    def wait(self, number: int) -> None:
        """Wait until so many tasks have run."""
        self.wait_for(lambda: effects.count(self.effects) >= number)

    def wait_for(
        self, condition: Callable[[], bool], within: float = 180.0, *, strict: bool = True
    ) -> None:
        """Wait until the condition holds, or, unless `strict`, until the time is over."""
        deadline = time.monotonic() + within
        while not condition():
            if time.monotonic() > deadline:
                if not strict:
                    return
                raise RuntimeError(f"only {effects.count(self.effects)} tasks have run")
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


class Worker:
    """A worker of two children: one program, or one for each child where that is how the
    system has it. Its programs start at once."""

    def __init__(self, site: Site) -> None:
        program, *arguments = site.system.worker.split()
        url = site.redis.url if site.redis else ""
        given = [one.format(n=2, redis=url) for one in arguments]
        command = [shutil.which(program, path=site.environment["PATH"]) or program, *given]
        self.started = time.monotonic_ns()
        self.processes = [
            subprocess.Popen(
                command,
                env={**site.environment, "BENCH_WORKER": "1"},
                start_new_session=True,
                stdout=subprocess.DEVNULL,
            )
            for _ in range(site.system.workers)
        ]

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]

    def cpu_seconds(self) -> float:
        return sum(map(cpu_seconds, self.pids))

    def memory(self) -> float:
        return sum(map(memory, self.pids))

    def stop(self) -> None:
        """End it as an operator does; by force if it takes more than 15 s."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 15
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """Kill all its processes at once, as a power cut would."""
        found = [file for pid in self.pids for file in tree(pid)]
        for file in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.name), signal.SIGKILL)
        for process in self.processes:
            process.wait()


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
