"""A storm over real workers: an app, a store, workers that are killed and paused.

What ran is read from an effect log that tasks append to outside of the store, what was
recorded from the store itself. `check()` compares the two in the words of the trade:
lost, unexpected, recorded twice.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from liteq import Liteq
from liteq.brokers.base import FINAL_STATES
from liteq.canvas import chain, group

APP = """
import os, struct, time
from liteq import Liteq

app = Liteq("storm", broker={url!r}, task_max_deliveries=1000,
            worker_lease_timeout={lease}, worker_shutdown_timeout=5.0)
LOG = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

def note(i):
    os.write(LOG, struct.pack("<qqd", i, os.getpid(), time.time()))

@app.task(bind=True)
def work(self, i, ms):
    note(i)
    if ms:
        time.sleep(ms / 1000)
    return i * 2
"""


class Effect(NamedTuple):
    """A task was started: its number, by which process, when (Unix seconds)."""

    number: int
    pid: int
    at: float


class Storm:
    """One store, one app, and the workers that this storm started."""

    def __init__(
        self, folder: Path, *, lease: float = 5.0, seed: int = 0, url: str | None = None
    ) -> None:
        self.folder = folder
        self.lease = lease
        self.random = random.Random(seed)
        self.log = folder / "effects"
        url = url or f"sqlite:///{folder / 'store'}"
        source = APP.format(url=url, lease=lease, log=str(self.log))
        (folder / "storm_app.py").write_text(source)
        self.app = Liteq("storm", broker=url, set_as_current=False)
        self.ids: list[str] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self.actions: list[str] = []

    # Work

    def enqueue(self, count: int, *, ms: float) -> None:
        for number in range(len(self.ids), len(self.ids) + count):
            result = self.app.send_task("storm_app.work", (number, ms))
            self.ids.append(result.id)

    def enqueue_workflows(self, count: int, *, ms: float) -> None:
        """Send workflows of six calls each: one, four behind it, and one behind those."""
        for _ in range(count):
            first = len(self.ids)
            one, *four, last = (
                self.app.signature("storm_app.work", (number, ms), immutable=True)
                for number in range(first, first + 6)
            )
            end = chain(one, group(four), last).delay()
            members = end.parent
            self.ids += [members.parent.id, *(each.id for each in members.results), end.id]

    def effects(self) -> list[Effect]:
        if not self.log.exists():
            return []
        data = self.log.read_bytes()
        return [
            Effect(*item) for item in struct.iter_unpack("<qqd", data[: len(data) // 24 * 24])
        ]

    def unfinished(self) -> int:
        counts = self.app.broker.counts()
        return sum(sum(states.values()) for states in counts.values())

    # Workers

    def start_worker(
        self, name: str = "w", concurrency: int = 2, *, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "liteq", "worker", "-A", "storm_app"]
        command += ["-c", str(concurrency), "-n", f"{name}@storm", "-l", "warning"]
        log = (self.folder / f"{name}.log").open("ab")
        worker = subprocess.Popen(
            command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True, env=env
        )
        log.close()
        self.workers.append(worker)
        return worker

    def children(self, worker: subprocess.Popen[bytes]) -> list[int]:
        try:
            text = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text()
        except OSError:
            return []
        return [int(pid) for pid in text.split()]

    def signal(self, pid: int, number: signal.Signals) -> None:
        self.actions.append(f"{time.time():.3f} {number.name} {pid}")
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            self.actions[-1] += " (gone)"

    def kill_tree(self, worker: subprocess.Popen[bytes]) -> None:
        """Kill the worker and its children at one stroke."""
        for pid in [worker.pid, *self.children(worker)]:
            self.signal(pid, signal.SIGKILL)
        worker.wait()

    def log_of(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                self.signal(worker.pid, signal.SIGCONT)
                for pid in self.children(worker):
                    self.signal(pid, signal.SIGCONT)
                worker.terminate()
                try:
                    worker.wait(15)
                except subprocess.TimeoutExpired:
                    self.kill_tree(worker)
        self.app.close()

    # The verdict

    def check(self, excused: Collection[str] = ()) -> Counter[str]:
        """Return what the store says against what was asked for; raise if it is wrong.
        `excused`: ids that the store's server had lost by itself."""
        records = self.app.broker.get(self.ids)
        started = Counter(effect.number for effect in self.effects())
        verdict: Counter[str] = Counter(attempted=len(self.ids))
        for number, id in enumerate(self.ids):
            record = records.get(id)
            if record is None and id in excused:
                verdict["excused"] += 1
                continue
            if record is None or record.state not in FINAL_STATES:
                verdict["lost"] += 1
            elif record.state != "succeeded" or record.result != b"%d" % (number * 2):
                verdict["unexpected"] += 1
            else:
                verdict["ok"] += 1
            if not started[number]:
                verdict["never started"] += 1
            verdict["extra starts"] += max(0, started[number] - 1)
        assert verdict["ok"] + verdict["excused"] == len(self.ids), (
            verdict,
            self.actions[-20:],
        )
        assert not verdict["never started"], verdict
        return verdict
