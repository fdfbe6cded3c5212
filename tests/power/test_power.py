"""The power goes, at any moment: nothing acknowledged is lost, and no step is half done.

A random run of the store is recorded, write by write. After each of its transactions the
whole content is written down as a digest. Then the disk is put together as it may be after
a power cut at a random point: what SQLite recovers from it must be exactly the content
after one of the transactions, and none older than the last enqueue that was acknowledged.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from world import FakeClock, enlist, make

from liteq import failure
from liteq.brokers.base import Lease
from liteq.brokers.connection import _Handle
from liteq.brokers.files import DATABASE
from liteq.brokers.sqlite import SqliteBroker
from liteq.message import GATHER, Edge, Workflow
from liteq.outcome import Failed, Ignored, Outcome, Released, Retried, Succeeded
from power.recorder import STRATEGIES, Disk, Event, Recorder

STORM = bool(os.environ.get("LITEQ_STORM"))
IMAGES = 5_000 if STORM else 400
STEPS = 600 if STORM else 150
SEEDS = 3  # of which each takes its share of the images
ERROR = failure.describe(ValueError("no"))


@pytest.fixture
def disk() -> Iterator[Recorder]:
    recorder = Recorder(f"power-{os.getpid()}")
    yield recorder
    recorder.unregister()


# One process: every image is the content after one of the transactions


class Run:
    """A random program on one store, its transactions numbered from 0."""

    def __init__(self, folder: Path, disk: Recorder, seed: int) -> None:
        self.disk = disk
        self.random = random.Random(seed)
        self.clock = FakeClock()
        self.store = folder / "store"
        self.broker = SqliteBroker(self.store, durability="full", clock=self.clock)
        self.leases: list[Lease] = []
        self.contents: list[str] = []
        self.broker.counts()
        self._mark(acknowledged=False)
        self.worker = enlist(self.broker)
        self._mark(acknowledged=False)

    def step(self) -> None:
        """Do one thing that a producer, a worker or its upkeep does."""
        doing = self.random.choices(
            [self._enqueue, self._enqueue_chord, self._work, self._maintain, self._checkpoint],
            [5, 2, 8, 1, 1],
        )[0]
        doing()
        self.clock.advance(self.random.random() * 3)

    def close(self) -> None:
        self.broker.close()

    def _mark(self, *, acknowledged: bool) -> None:
        """Write down the content after the transaction that has just ended."""
        self.contents.append(content(self.store))
        number = len(self.contents) - 1
        self.disk.mark(f"{'acknowledged' if acknowledged else 'committed'} {number}")

    def _enqueue(self) -> None:
        body = b'[["%b"], {}]' % (b"x" * self.random.choice([1, 100, 6_000]))
        delay = self.random.choice([None, None, 5.0])
        message = make(
            body=body,
            priority=self.random.randrange(10),
            run_at=None if delay is None else self.clock.now() + delay,
            result_expires=self.random.choice([1.0, 86_400.0]),
        )
        self.broker.enqueue([message])
        self._mark(acknowledged=True)

    def _enqueue_chord(self) -> None:
        header = [make() for _ in range(self.random.randint(1, 6))]
        gather, body = make(GATHER, b"fail"), make("shop.close")
        edges = [Edge(one.id, gather.id, "part", n) for n, one in enumerate(header)]
        edges.append(Edge(gather.id, body.id, "success"))
        self.broker.enqueue([*header, gather, body], edges, Workflow(body.id, "chord"))
        self._mark(acknowledged=True)

    def _work(self) -> None:
        ended = self.leases[: self.random.randint(0, 4)]
        del self.leases[: len(ended)]
        step = self.broker.step(
            self.worker,
            settlements=[(lease, self._outcome()) for lease in ended],
            queues=["default"],
            limit=self.random.randint(0, 6),
        )
        self.leases += step.leases
        self._mark(acknowledged=False)

    def _outcome(self) -> Outcome:
        return self.random.choice(
            [
                Succeeded(b"42"),
                Succeeded(b'"%b"' % (b"x" * self.random.randint(0, 9_000))),
                Failed(ERROR),
                Ignored(),
                Released(),
                Retried(self.clock.now() + 1.0, ERROR),
            ]
        )

    def _maintain(self) -> None:
        self.broker.maintain()
        self._mark(acknowledged=False)

    def _checkpoint(self) -> None:
        self.broker._database.checkpoint(truncate=self.random.random() < 0.3)
        self._mark(acknowledged=False)


def content(store: Path) -> str:
    """Return a digest of all that the store holds. Raises if it is damaged."""
    db = apsw.Connection(str(store / DATABASE), vfs="unix")
    try:
        checked = db.execute("PRAGMA integrity_check").get
        assert checked == "ok", checked
        digest = hashlib.sha256()
        tables = db.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name"
        ).fetchall()
        for (table,) in tables:
            for row in db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall():
                digest.update(repr(row).encode())
        return digest.hexdigest()
    finally:
        db.close()


def points(log: list[Event], count: int, chance: random.Random) -> list[int]:
    """Return where to cut: how many events happened before the power went."""
    first = next(n for n, event in enumerate(log) if event.what == "mark") + 1
    return sorted(chance.randint(first, len(log)) for _ in range(count))


def what_is_wrong(run: Run, folder: Path, images: int) -> list[str]:
    """Cut the power at random points of the run, and return what was found amiss."""
    chance = random.Random(run.random.getrandbits(32))
    log, disk, at = run.disk.log, Disk(), 0
    acknowledged = committed = 0
    wrong = []
    for number, point in enumerate(points(log, images, chance)):
        for event in log[at:point]:
            disk.apply(event)
            if event.what == "mark":
                word, _, index = event.file.partition(" ")
                committed = int(index)
                if word == "acknowledged":
                    acknowledged = committed
        at = point
        strategy = STRATEGIES[number % len(STRATEGIES)]
        image = folder / f"image-{number}"
        image.mkdir()
        disk.image(image, strategy, chance)
        what = f"cut after event {point} of {len(log)}, {strategy} of the rest"
        try:
            found = content(image)
        except (apsw.Error, AssertionError, UnicodeDecodeError) as exc:
            wrong.append(f"{what}: damaged, {exc}")
            continue
        finally:
            for file in image.iterdir():
                file.unlink()
            image.rmdir()
        # The transaction that was on its way may have made it, too.
        allowed = run.contents[acknowledged : committed + 2]
        if found not in allowed:
            kind = "an acknowledged one is lost" if found in run.contents else "a half step"
            wrong.append(f"{what}: {kind}")
    return wrong


def say(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Show the figures of a storm."""
    if STORM:
        with capsys.disabled():
            print(f"\n  {text}")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_after_a_power_loss_the_store_is_as_after_one_of_its_steps(
    disk: Recorder, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, disk, seed)
    for _ in range(STEPS):
        run.step()
    images = -(-IMAGES // SEEDS)

    wrong = what_is_wrong(run, tmp_path, images)

    run.close()
    say(capsys, f"{images} images of {len(disk.log)} events: {len(wrong)} are wrong")
    assert len({*run.contents}) > STEPS / 3  # the run did something
    assert any(event.file == DATABASE and event.what == "sync" for event in disk.log)
    assert wrong == []


def test_a_store_that_does_not_sync_is_caught(
    disk: Recorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def off(handle: _Handle, durable: bool) -> None:
        handle.connection().pragma("synchronous", "OFF")
        handle.durable = durable

    monkeypatch.setattr(_Handle, "set_durable", off)
    run = Run(tmp_path, disk, seed=0)
    for _ in range(STEPS):
        run.step()

    images = min(IMAGES, 500)

    wrong = what_is_wrong(run, tmp_path, images)

    run.close()
    say(capsys, f"{len(wrong)} of {images} images are wrong without syncs, as they should be")
    assert any("lost" in one for one in wrong)
    assert any("damaged" in one or "half" in one for one in wrong)


# Several processes: what each was told stays true


PRODUCER = """
import pickle, sys
from liteq.brokers.sqlite import SqliteBroker
from power.recorder import Recorder
from world import make

store, out, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
disk = Recorder("power-producer")
broker = SqliteBroker(store, durability="full")
for number in range(count):
    message = make(body=b"[[%d], {}]" % number)
    broker.enqueue([message])
    disk.mark(f"acknowledged {message.id}")
    broker._database.checkpoint()
broker.close()
with open(out, "wb") as file:
    pickle.dump([tuple(event) for event in disk.log], file)
"""

WORKER = """
import pickle, sys
from liteq.brokers.sqlite import SqliteBroker
from liteq.outcome import Succeeded
from power.recorder import Recorder
from world import enlist, wait_until

store, out, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
disk = Recorder("power-worker")
broker = SqliteBroker(store, durability="full")
worker = enlist(broker)
done = 0
def work():
    global done
    leases = broker.claim(worker, ["default"], 8)
    for lease in leases:
        disk.mark(f"started {lease.id}")
    broker.step(worker, settlements=[(lease, Succeeded(b"1")) for lease in leases])
    done += len(leases)
    broker._database.checkpoint(truncate=True)
    return done == count
wait_until(work, within=60)
broker.close()
with open(out, "wb") as file:
    pickle.dump([tuple(event) for event in disk.log], file)
"""


def record(tmp_path: Path, producers: int, each: int) -> list[Event]:
    """Run producers and a worker on one store, and return what they did, by time."""
    store = tmp_path / "store"
    SqliteBroker(store).close()
    programs = [(PRODUCER, each)] * producers + [(WORKER, producers * each)]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(store), str(tmp_path / f"log-{n}"), str(count)],
            env=environ,
        )
        for n, (code, count) in enumerate(programs)
    ]
    assert [process.wait(timeout=120) for process in running] == [0] * len(programs)
    log: list[Event] = []
    for number in range(len(programs)):
        rows: list[Any] = pickle.loads((tmp_path / f"log-{number}").read_bytes())
        log += [Event(*row) for row in rows]
    return sorted(log, key=lambda event: event.at)


def rows(store: Path) -> dict[str, int]:
    db = apsw.Connection(str(store / DATABASE), vfs="unix")
    try:
        assert db.execute("PRAGMA integrity_check").get == "ok"
        if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'message'").get:
            return {}
        return dict(db.execute("SELECT id, state FROM message").fetchall())
    finally:
        db.close()


def test_what_any_of_several_processes_was_told_survives_a_power_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = record(tmp_path, producers=3, each=100 if STORM else 20)
    chance = random.Random(1)
    disk, at = Disk(), 0
    acknowledged: set[str] = set()
    started: set[str] = set()
    cuts = sorted(chance.randint(1, len(log)) for _ in range(IMAGES // 4))

    for number, point in enumerate(cuts):
        for event in log[at:point]:
            disk.apply(event)
            if event.what == "mark":
                word, _, id = event.file.partition(" ")
                (acknowledged if word == "acknowledged" else started).add(id)
        at = point
        image = tmp_path / f"image-{number}"
        image.mkdir()
        disk.image(image, STRATEGIES[number % len(STRATEGIES)], chance)
        found = rows(image)

        assert acknowledged <= found.keys(), f"lost at event {point}"
        assert all(found[id] != 6 or id in started for id in found)
    say(capsys, f"{len(cuts)} images of {len(log)} events of 4 processes: none is wrong")
    assert len(acknowledged) == 3 * (100 if STORM else 20)


def test_the_messages_of_the_recovered_store_can_be_worked_off(
    disk: Recorder, tmp_path: Path
) -> None:
    run = Run(tmp_path, disk, seed=7)
    for _ in range(STEPS):
        run.step()
    chance = random.Random(3)
    replayed, at = Disk(), 0
    for number, point in enumerate(points(disk.log, 20 if STORM else 6, chance)):
        for event in disk.log[at:point]:
            replayed.apply(event)
        at = point
        folder = tmp_path / f"image-{number}"
        folder.mkdir(mode=0o700)
        replayed.image(folder, "torn", chance)
        clock = FakeClock(run.clock.now() + 1_000.0)
        broker = SqliteBroker(folder, clock=clock)
        worker = enlist(broker)
        clock.advance(1_000.0)
        broker.beat(worker)
        broker.reclaim(worker)

        while leases := broker.claim(worker, ["default"], 50):
            broker.step(worker, settlements=[(lease, Succeeded(b"1")) for lease in leases])

        assert broker.counts() == {}
        broker.close()
    run.close()


def test_the_recorder_gives_back_what_was_written(disk: Recorder, tmp_path: Path) -> None:
    # All of the log applied is the file as it is: or no image would mean anything.
    run = Run(tmp_path, disk, seed=1)
    for _ in range(30):
        run.step()
    run.close()
    replayed = Disk()
    for event in disk.log:
        replayed.apply(event)
    image = tmp_path / "image"
    image.mkdir()
    replayed.image(image, "prefix", _All())

    assert (image / DATABASE).read_bytes() == (run.store / DATABASE).read_bytes()


class _All(random.Random):
    """A chance that lets everything through."""

    def randint(self, _a: int, b: int) -> int:
        return b
