"""The disk fails, in the n-th write, sync or truncation, once or for good.

A program of a producer and a worker is run anew for each place in which the disk can fail.
Whoever is told of an error repeats the call, with the same ids and tokens; when the disk is
well again, each message is there once, each has run to its end, and the file is whole.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import pytest
from world import FakeClock, Store, enlist, make

from liteq.brokers.base import Lease
from liteq.brokers.files import DATABASE
from liteq.brokers.sqlite import SqliteBroker
from liteq.exceptions import BrokerError, BrokerUnavailable
from liteq.message import GATHER, Edge, Workflow
from liteq.outcome import Succeeded

# Of which kind of error, at every how many-th place; LITEQ_STORM=1 takes all of them.
STORM = bool(os.environ.get("LITEQ_STORM"))
STRIDES = {"write": 1 if STORM else 23, "sync": 1 if STORM else 7, "truncate": 1}
PLACES = {"write": 100, "sync": 10, "truncate": 1}  # there are at least as many


class FailingDisk(apsw.VFS):
    """The default file system of this process; it fails when told to."""

    def __init__(self, name: str) -> None:
        self.base = apsw.vfs_names()[0]
        self.kind, self.left, self.for_good = "", 0, False
        self.errors = 0
        super().__init__(name, self.base, makedefault=True)

    def xOpen(self, name: Any, flags: Any) -> _File:  # noqa: N802 (SQLite's name)
        return _File(self, name, flags)

    def fail(self, kind: str, nth: int, *, for_good: bool) -> None:
        self.kind, self.left, self.for_good, self.errors = kind, nth, for_good, 0

    def heal(self) -> None:
        self.kind = ""

    def do(self, kind: str) -> None:
        if kind != self.kind:
            return
        self.left -= 1
        if self.left == 0 or (self.left < 0 and self.for_good):
            self.errors += 1
            raise apsw.IOError(f"{kind} failed")


class _File(apsw.VFSFile):
    def __init__(self, disk: FailingDisk, name: Any, flags: Any) -> None:
        self.disk = disk
        super().__init__(disk.base, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self.disk.do("write")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self.disk.do("sync")
        super().xSync(flags)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        self.disk.do("truncate")
        super().xTruncate(size)


@pytest.fixture
def disk() -> Iterator[FailingDisk]:
    failing = FailingDisk(f"failing-{os.getpid()}")
    yield failing
    failing.unregister()


class Program:
    """A chord and two calls, from their enqueue to their end."""

    def __init__(self, folder: Path, disk: FailingDisk) -> None:
        self.disk = disk
        folder.mkdir()
        self.folder = folder / "store"
        self.broker = Store("sqlite", folder, FakeClock()).open(durability="full")
        self.worker = enlist(self.broker)
        header = [make(), make()]
        gather, body = make(GATHER, b"fail"), make(acks_late=False)
        edges = [Edge(one.id, gather.id, "part", n) for n, one in enumerate(header)]
        edges.append(Edge(gather.id, body.id, "success"))
        self.chord = ([*header, gather, body], edges, Workflow(body.id, "chord"))
        self.calls = [make(body=b"x" * 9_000), make(acks_late=False)]
        self.starts: Counter[str] = Counter()
        self.held: list[Lease] = []

    def repeated(self, verb: Callable[[], Any]) -> Any:
        """Call until it is answered; the disk heals after the second error."""
        for _ in range(2):
            with suppress(BrokerUnavailable):
                return verb()
        self.disk.heal()
        return verb()

    def run(self) -> None:
        self.repeated(lambda: self.broker.enqueue(*self.chord))
        self.repeated(lambda: self.broker.enqueue(self.calls))
        for _ in range(3):
            self.work(2)
            self.repeated(lambda: self.broker._database.checkpoint(truncate=True))
        while self.held or self.repeated(self.broker.counts):
            self.work(4)

    def work(self, limit: int) -> None:
        ended = [(lease, Succeeded(b"1" * 3_000)) for lease in self.held]
        step = self.repeated(
            lambda: self.broker.step(
                self.worker, settlements=ended, queues=["default"], limit=limit
            )
        )
        self.held = list(step.leases)
        self.starts.update(lease.id for lease in step.leases)

    def judge(self) -> None:
        messages = [*self.chord[0], *self.calls]
        records = self.broker.get([message.id for message in messages])
        assert {record.state for record in records.values()} == {"succeeded"}
        assert len(records) == len(messages)
        assert self.starts.keys() == records.keys() - {self.chord[0][2].id}
        # Nothing has died, so nothing has a reason to be started twice.
        assert set(self.starts.values()) == {1}
        self.broker.close()
        db = apsw.Connection(str(self.folder / DATABASE))
        assert db.execute("PRAGMA integrity_check").get == "ok"
        assert db.execute("SELECT count(*) FROM message").get == len(messages)
        db.close()


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for-good"])
@pytest.mark.parametrize("kind", STRIDES)
def test_an_error_of_the_disk_anywhere_costs_nothing_but_a_repetition(
    disk: FailingDisk, tmp_path: Path, kind: str, for_good: bool
) -> None:
    nth = 1
    while True:
        program = Program(tmp_path / f"{nth}", disk)
        disk.fail(kind, nth, for_good=for_good)

        program.run()

        disk.heal()
        program.judge()
        if not disk.errors:
            break
        nth += STRIDES[kind]
    assert nth > PLACES[kind]


def test_a_commit_that_failed_and_is_found_done_is_one_message(
    disk: FailingDisk, tmp_path: Path
) -> None:
    # SQLite's frames are written before the sync that fails: who is connected sees them
    # rolled back, and recovery after a crash brings them back.
    # (Another connection is open, or closing the failed one would clear the ghost away.)
    broker = Store("sqlite", tmp_path, FakeClock()).open(durability="full")
    broker.enqueue([make()])
    other = Store("sqlite", tmp_path, FakeClock()).open()
    other.counts()
    ghost = make()
    disk.fail("sync", 1, for_good=False)
    with pytest.raises(BrokerUnavailable, match="repeating it is safe"):
        broker.enqueue([ghost])
    assert disk.errors == 1
    crashed = tmp_path / "crashed"
    crashed.mkdir(mode=0o700)
    for name in (DATABASE, f"{DATABASE}-wal"):
        shutil.copyfile(tmp_path / "store" / name, crashed / name)

    recovered = SqliteBroker(crashed, clock=FakeClock())
    came_back = ghost.id in recovered.get([ghost.id])

    for store in (broker, recovered):
        store.enqueue([ghost])
        worker = enlist(store)
        leases = store.claim(worker, ["default"], 10)
        assert [lease.id for lease in leases].count(ghost.id) == 1
        assert store.counts() == {"default": {"running": 2}}
        store.close()
    other.close()
    assert came_back, "no ghost was seen: the test shows nothing"


def test_an_error_of_the_disk_is_one_of_liteqs(disk: FailingDisk, tmp_path: Path) -> None:
    broker = Store("sqlite", tmp_path, FakeClock()).open(durability="full")
    broker.enqueue([make()])
    for kind in ("write", "sync"):
        disk.fail(kind, 1, for_good=True)
        with pytest.raises(BrokerError, match="cannot be used now"):
            broker.enqueue([make()])
        disk.heal()
    broker.close()
