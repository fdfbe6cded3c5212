"""Real beats, killed and paused: each tick is sent exactly once, and soon."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from world import wait_until

from liteq.brokers.base import Record
from liteq.brokers.sqlite import SqliteBroker
from processes.shop import Shop, is_running

pytestmark = pytest.mark.process

STORM = bool(os.environ.get("LITEQ_STORM"))
EVERY = 0.25  # seconds between two ticks
LATE = 5.0  # seconds that failing over may take

TASKS = f"""
from liteq import Liteq

app = Liteq("shop", broker_transport_options={{"durability": "normal"}})

@app.task
def tick(): ...

app.conf.beat_schedule = {{
    "tick": {{"task": "tasks.tick", "schedule": {EVERY}, "catch_up": "all"}},
}}
"""


class Beats:
    """Processes that run `liteq beat` on one store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tasks.py").write_text(TASKS)
        self.broker = SqliteBroker(folder / "shop.liteq")
        self.running: list[subprocess.Popen[bytes]] = []
        self.started = 0

    def start(self, count: int = 1) -> list[subprocess.Popen[bytes]]:
        """Start so many at a time, and wait until all are ready."""
        begun = []
        for _ in range(count):
            self.started += 1
            log = self.folder / f"{self.started}.log"
            with log.open("ab") as out:
                process = subprocess.Popen(
                    [sys.executable, "-m", "liteq", "beat"],
                    cwd=self.folder,
                    stdout=out,
                    stderr=out,
                )
            begun.append((process, log))
            self.running.append(process)
        for process, log in begun:
            wait_until(partial(self._is_settled, process, log), within=20)
            assert process.poll() is None, log.read_text()
        return [process for process, _ in begun]

    @staticmethod
    def _is_settled(process: subprocess.Popen[bytes], log: Path) -> bool:
        return "\nready " in log.read_text() or process.poll() is not None

    def leader(self) -> subprocess.Popen[bytes]:
        """Return the process that has the lease."""
        holder = self.broker._database.read(
            lambda db: db.execute("SELECT holder FROM lead").get
        )
        pid = int(holder.split(":")[1])
        return next(process for process in self.running if process.pid == pid)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        self.running.remove(process)
        process.kill()
        process.wait()

    def ticks(self) -> list[Record]:
        found = self.broker.browse("queued", limit=100_000)
        return sorted(found, key=due_of)

    def wait_for_more(self, count: int = 4) -> None:
        before = len(self.ticks())
        wait_until(lambda: len(self.ticks()) >= before + count, within=60)

    def check(self) -> list[float]:
        """Check that no tick is missing, twice or late; return how late each was."""
        ticks = self.ticks()
        dues = [due_of(tick) for tick in ticks]
        steps = [round((b - a) / EVERY, 3) for a, b in itertools.pairwise(dues)]
        assert set(steps) == {1.0}, "a tick was sent twice, or not at all"
        late = [tick.enqueued_at - due_of(tick) for tick in ticks]
        assert max(late) <= LATE
        assert min(late) >= 0
        return late

    def close(self) -> None:
        for process in self.running:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        self.broker.close()


def due_of(tick: Record) -> float:
    headers = tick.message.headers
    assert headers is not None
    return float(headers["periodic_task_due"])


@pytest.fixture
def beats(tmp_path: Path) -> Iterator[Beats]:
    made = Beats(tmp_path)
    yield made
    made.close()


def test_no_tick_is_lost_or_sent_twice_when_the_leader_is_killed_paused_or_stopped(
    beats: Beats,
) -> None:
    beats.start(3)
    beats.wait_for_more()

    beats.kill(beats.leader())
    beats.wait_for_more(8)
    paused = beats.leader()
    paused.send_signal(signal.SIGSTOP)
    beats.wait_for_more(8)
    paused.send_signal(signal.SIGCONT)
    beats.wait_for_more()
    stopped = beats.leader()
    stopped.terminate()
    assert stopped.wait(10) == 0
    beats.wait_for_more()

    beats.check()


def test_a_leader_that_stops_hands_over_at_once(beats: Beats) -> None:
    first, second = beats.start(2)
    beats.wait_for_more(1)
    leader = beats.leader()
    other = second if leader is first else first
    leader.terminate()
    leader.wait(10)
    wait_until(lambda: beats.leader() is other)
    beats.wait_for_more(2)
    assert max(beats.check()) < 1.0


@pytest.mark.skipif(not STORM, reason="LITEQ_STORM=1: two minutes")
@pytest.mark.timeout(600)
def test_two_minutes_of_kills_and_pauses(beats: Beats) -> None:
    pick = random.Random()
    beats.start(3)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        victim = pick.choice([beats.leader(), pick.choice(beats.running)])
        match pick.choice(["kill", "pause", "stop"]):
            case "kill":
                beats.kill(victim)
                beats.wait_for_more(pick.randrange(1, 12))
                beats.start()
            case "pause":
                victim.send_signal(signal.SIGSTOP)
                beats.wait_for_more(pick.randrange(1, 24))
                victim.send_signal(signal.SIGCONT)
            case "stop":
                beats.running.remove(victim)
                victim.terminate()
                assert victim.wait(10) == 0
                beats.start()
        beats.wait_for_more(pick.randrange(1, 8))
    assert len(beats.check()) >= 400


# Beside a worker


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    opened = Shop(tmp_path, BEATING)
    yield opened
    opened.close()


def test_the_beat_of_a_worker_is_started_again_and_ends_with_it(shop: Shop) -> None:
    worker = shop.start("-B", "-c", "1")
    shop.wait(lambda: len(shop.notes("tick")) > 1, worker)
    shop.wait(lambda: beat_of(shop, worker), worker)
    first = beat_of(shop, worker)
    os.kill(first, signal.SIGKILL)
    shop.wait(lambda: beat_of(shop, worker) not in (0, first), worker)
    count = len(shop.notes("tick"))
    shop.wait(lambda: len(shop.notes("tick")) > count, worker)
    second = beat_of(shop, worker)

    worker.kill()
    worker.wait()
    wait_until(lambda: not is_running(second))


def test_a_worker_that_stops_takes_its_beat_along(shop: Shop) -> None:
    worker = shop.start("--beat", "-c", "1")
    shop.wait(lambda: shop.notes("tick"), worker)
    pid = beat_of(shop, worker)
    worker.terminate()
    assert worker.wait(20) == 0
    assert not is_running(pid)
    assert "the worker's beat" not in shop.log()


BEATING = """
@app.task
def tick():
    note("tick", os.getpid())

app.conf.beat_schedule = {"tick": {"task": "tasks.tick", "schedule": 0.2}}
"""


def beat_of(shop: Shop, worker: subprocess.Popen[bytes]) -> int:
    """Return the pid of the worker's beat, known by its mailbox; 0 if it has none."""
    for mailbox in (shop.folder / "store" / "wake").glob("b*"):
        pid = int(mailbox.name[1:].partition("-")[0])
        if pid in shop.children(worker) and is_running(pid):
            return pid
    return 0
