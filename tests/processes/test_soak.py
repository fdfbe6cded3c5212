"""What a worker holds on to while it runs: nothing.

Calls of every kind are sent steadily, their results expire, and after a warm-up of a quarter
of the time no process may grow: memory (a straight line through all samples), descriptors,
the write-ahead log and the store itself. `LITEQ_STORM=1` does it for twenty minutes on each
store (`LITEQ_SOAK` for another number of minutes; below twenty, a line through the noise says
little).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import linear_regression
from typing import NamedTuple

import pytest
import redis_server
from redis_server import RedisServer
from world import wait_until

from liteq.canvas import chord
from processes.shop import Shop, children_of

STORM = bool(os.environ.get("LITEQ_STORM"))
MINUTES = float(os.environ.get("LITEQ_SOAK", 20))
WARM_UP = MINUTES * 60 / 4  # seconds
SAMPLED = 5.0  # seconds between two samples
ROUND = 0.5  # seconds between two rounds of calls
EXPIRES = 30.0  # seconds that results are kept

GROWTH = 1.0  # MiB of memory per hour and process
DESCRIPTORS = 5  # between the fewest and the most of a process
WAL = 64.0  # MiB
STORE = 1.25  # times the size that it had after the warm-up

TASKS = """
@app.task
def plain(n):
    note(n)
    return n

@app.task
def fails(n):
    note(n)
    raise ValueError(n)

@app.task(bind=True, max_retries=3)
def retried(self, n):
    note(n)
    if self.request.retries < 2:
        raise self.retry(countdown=1)

@app.task(rate_limit="10/s")
def limited(n):
    note(n)

@app.task(max_concurrency=1)
def alone(n):
    note(n)
    time.sleep(0.01)

@app.task(unique=True)
def unique(n):
    note(n)

@app.task(flush_every=3, flush_interval=1.5)
def batched(calls):
    for call in calls:
        note(*call.args)

@app.task
def calls(n):
    note(n)
    plain.delay(n)

@app.task
def collect(values, n):
    note(n)
    return values

@app.task
def tick():
    note("tick")

app.conf.beat_schedule = {"tick": {"task": "tasks.tick", "schedule": 1.0}}
"""

# The calls of a round, and how often each is to start.
STARTS = {
    "plain": 1,
    "fetched": 1,  # its result is waited for
    "fails": 1,
    "retried": 3,
    "delayed": 1,
    "revoked": 0,
    "limited": 1,
    "limited too": 1,
    "alone": 1,
    "alone too": 1,
    "unique": 1,
    "batched": 1,
    "batched too": 1,
    "calls": 2,
    "chord": 5,
    "broken chord": 3,
}
KINDS = list(STARTS)


class Sample(NamedTuple):
    """What a process had at a time (Unix seconds)."""

    at: float
    memory: float  # resident, in MiB
    files: int


class Soak(Shop):
    """A shop whose worker is watched for long."""

    def __init__(self, folder: Path, server: RedisServer | None) -> None:
        url = server.url if server else None
        super().__init__(folder, TASKS, url=url, result_expires=EXPIRES)
        self.server = server
        self.sent = 0
        self.samples: dict[int, list[Sample]] = {}  # by pid
        self.wal = 0.0  # the most MiB
        self.sizes: list[float] = []  # of the store, in MiB

    def send_round(self) -> None:
        tasks, first = self.tasks, self.sent
        self.sent += len(KINDS)
        for n, kind in enumerate(KINDS, first):
            match kind:
                case "fetched":
                    assert tasks.plain.delay(n).get(timeout=30) == n
                case "delayed":
                    tasks.plain.apply_async((n,), countdown=1 + n % 20)
                case "revoked":
                    tasks.plain.apply_async((n,), countdown=10).revoke()
                case "chord":
                    chord([tasks.plain.s(n) for _ in range(4)], tasks.collect.s(n)).delay()
                case "broken chord":
                    header = [tasks.plain.si(n), tasks.fails.si(n), tasks.plain.si(n)]
                    chord(header, tasks.collect.s(n)).delay()
                case _:
                    getattr(tasks, kind.removesuffix(" too")).delay(n)

    def sample(self, parent: int) -> None:
        for pid in tree_of(parent):
            files = len(os.listdir(f"/proc/{pid}/fd"))
            sample = Sample(time.time(), resident(pid), files)
            self.samples.setdefault(pid, []).append(sample)
            with (self.folder / "samples").open("a") as file:  # to look at meanwhile
                print(pid, *sample, file=file)
        if self.server:
            said = self.server.say("INFO", "memory")
            assert isinstance(said, bytes)
            (used,) = (line for line in said.split() if line.startswith(b"used_memory:"))
            self.sizes.append(int(used.partition(b":")[2]) / 2**20)
        else:
            store = self.folder / "store"
            (wal,) = store.glob("*-wal")
            self.wal = max(self.wal, wal.stat().st_size / 2**20)
            self.sizes.append(wal.with_name(wal.name[:-4]).stat().st_size / 2**20)

    def is_idle(self) -> bool:
        counts = self.app.broker.counts()
        return not any(sum(states.values()) for states in counts.values())

    def started(self) -> Counter[int]:
        """Count how often each call was started."""
        with (self.folder / "notes").open() as notes:
            return Counter(int(line) for line in notes if line != "tick\n")


def tree_of(pid: int) -> list[int]:
    return [pid, *(one for child in children_of(pid) for one in tree_of(child))]


def resident(pid: int) -> float:
    """Return the memory that a process has, in MiB, to the page."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("Rss:"))
    return int(line.split()[1]) / 1024


def growth(samples: list[Sample]) -> float:
    """Return the slope of the straight line through the samples, in MiB per hour."""
    return linear_regression([s.at for s in samples], [s.memory for s in samples])[0] * 3600


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def soak(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Soak]:
    server = None
    with tempfile.TemporaryDirectory(prefix="liteq-") as name:
        if request.param == "redis":
            redis_server.require()
            server = RedisServer(Path(name)).start()
        made = Soak(tmp_path, server)
        yield made
        made.close()
        if server:
            server.kill()


@pytest.mark.process
@pytest.mark.skipif(not STORM, reason="LITEQ_STORM=1: twenty minutes on each store")
@pytest.mark.timeout(MINUTES * 60 + 300)
def test_nothing_grows_in_a_soak(soak: Soak, capsys: pytest.CaptureFixture[str]) -> None:
    # The first worker compiles what is not compiled yet, and would have 12 MiB of free heap
    # from that, in which much could grow unseen.
    assert soak.stop(soak.start("-c", "1", "-B", "-l", "error")) == 0
    worker = soak.start("-c", "2", "-B", "-l", "error")
    begun = time.time()
    rounds = 0
    while time.time() < begun + MINUTES * 60:
        soak.send_round()
        rounds += 1
        if rounds % int(SAMPLED / ROUND) == 0:
            soak.sample(worker.pid)
        time.sleep(max(0.0, begun + rounds * ROUND - time.time()))  # paces the calls
    wait_until(soak.is_idle, within=60)
    started, ticks = soak.started(), len(soak.notes("tick"))
    assert soak.stop(worker) == 0

    warm = {
        pid: [sample for sample in samples if sample.at > begun + WARM_UP]
        for pid, samples in soak.samples.items()
    }
    slopes = {pid: round(growth(samples), 2) for pid, samples in warm.items()}
    files = {pid: [s.files for s in samples] for pid, samples in warm.items()}
    sizes = soak.sizes[len(soak.sizes) // 4 :]
    with capsys.disabled():
        print(f"\n  {soak.sent} calls and {ticks} ticks in {MINUTES:g} min")
        for pid, samples in warm.items():
            memory = [round(sample.memory, 1) for sample in samples]
            print(
                f"  {pid} {'parent' if pid == worker.pid else ''}: {slopes[pid]} MiB/h, "
                f"from {memory[0]} to {memory[-1]}, {min(memory)} to {max(memory)} MiB; "
                f"{min(files[pid])} to {max(files[pid])} descriptors"
            )
        print(f"  write-ahead log {soak.wal:.1f} MiB, store {sizes[0]:.1f} to {max(sizes):.1f}")
    wrong = {
        n: starts
        for n in range(soak.sent)
        if (starts := started[n]) != STARTS[KINDS[n % len(KINDS)]]
    }
    assert not wrong, f"{len(wrong)} calls did not start as often as they should: {wrong}"
    assert ticks >= MINUTES * 60 - 5
    assert len(warm) >= 4  # the parent, two children, the beat
    assert all(slope < GROWTH for slope in slopes.values()), slopes
    assert all(max(counts) - min(counts) <= DESCRIPTORS for counts in files.values()), files
    assert soak.wal <= WAL
    assert max(sizes) <= sizes[0] * STORE, sizes
