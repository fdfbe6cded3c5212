"""Where a measurement takes place: a store, its worker, and what /proc says of them."""

from __future__ import annotations

import contextlib
import json
import os
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
from benchmarks.processes import cpu_seconds, end_strays, memory, tree
from benchmarks.servers import Redis, bin_of
from benchmarks.systems import System


class Site:
    """A fresh store of one system, and a file for the effects of its tasks. `redis` is the
    server that systems on Redis use; it is emptied. At the end, no process is left of what
    ran here."""

    def __init__(self, system: System, redis: Redis, durability: str = "normal") -> None:
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
        end_strays(but=Redis.running)
        self._store.cleanup()

    def python(self, *arguments: str, within: float | None = None) -> str:
        """Run Python to its end; return what it printed. Raises `subprocess.TimeoutExpired`
        if it takes more than so many seconds."""
        command, env = [str(self._bin / "python"), *arguments], self.environment
        done = subprocess.run(command, env=env, capture_output=True, timeout=within)
        if done.returncode:
            said = done.stderr.decode().strip().rpartition("\n")[2]
            raise RuntimeError(f"{' '.join(arguments[:4])} failed: {said}")
        return done.stdout.decode()

    def drive(self, operation: str, *, within: float | None = None, **arguments: Any) -> Any:
        """Have the driver do one operation; return its answer."""
        printed = self.python(*self._driver(operation, arguments), within=within)
        return json.loads(printed.rpartition("@@")[2])

    def drive_many(self, number: int, operation: str, **arguments: Any) -> list[Any]:
        """Have so many drivers do one operation, beginning together; return their answers.

        Each says on a line of its own that it is ready, and then waits for one from us.
        """
        command = [str(self._bin / "python"), *self._driver(operation, arguments)]
        drivers = [
            subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            for _ in range(number)
        ]
        for driver in drivers:
            assert driver.stdout is not None
            driver.stdout.readline()
        for driver in drivers:
            assert driver.stdin is not None
            driver.stdin.write(b"go\n")
            driver.stdin.flush()
        printed = [driver.communicate()[0].decode() for driver in drivers]
        if failed := sum(driver.returncode != 0 for driver in drivers):
            raise RuntimeError(f"{failed} of {number} producers failed")
        return [json.loads(text.rpartition("@@")[2]) for text in printed]

    def _driver(self, operation: str, arguments: dict[str, Any]) -> tuple[str, ...]:
        command = ("-m", "benchmarks.driver", self.system.module, operation)
        return (*command, json.dumps(arguments))

    @contextmanager
    def worker(self, children: int = 2) -> Iterator[Worker]:
        """Run a worker with so many children."""
        worker = Worker(self, children)
        try:
            yield worker
        finally:
            worker.stop()

    def wait(self, number: int) -> None:
        """Wait until so many tasks have run."""
        self.need(lambda: effects.count(self.effects) >= number)

    def need(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds; it is an error if it never does."""
        if not self.wait_for(condition, 180):
            raise RuntimeError(f"only {effects.count(self.effects)} tasks have run")

    def wait_for(self, condition: Callable[[], bool], within: float) -> bool:
        """Wait until the condition holds, for so many seconds; tell whether it does."""
        deadline = time.monotonic() + within
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def warm_up(self, settle: float) -> None:
        """Have the worker do what it does only once, and come to rest."""
        self.drive("enqueue", number=20, first=effects.WARM_UP)
        self.wait(20)
        time.sleep(settle)
        self.forget()

    def forget(self) -> None:
        """Begin to count the tasks anew."""
        self.effects.write_bytes(b"")

    def starts(self, number: int) -> dict[int, int]:
        """Return when each task started, once a second run of one had time to show."""
        self.wait(number)
        self.need(lambda: effects.counted(self.effects) >= number)
        time.sleep(0.3)
        return effects.starts(self.effects, number)


class Worker:
    """A worker of two children: one program, or one for each child where that is how the
    system has it. Its programs start at once."""

    def __init__(self, site: Site, children: int) -> None:
        program, *arguments = site.system.worker.split()
        url = site.redis.url if site.redis else ""
        given = [one.format(n=children, redis=url) for one in arguments]
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
        found = [folder for pid in self.pids for folder in tree(pid)]
        for folder in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(folder.name), signal.SIGKILL)
        for process in self.processes:
            process.wait()
