"""Several versions of liteq on one store, as in a roll-out: workers and producers of each,
killed, stopped and replaced, while the store is upgraded under them.

The versions after this one are made of it (see `versions.py`); the one before it comes out
of the history, and is left out where there is none, as in a source distribution.

`LITEQ_STORM=1` does it for ten minutes on each store (`LITEQ_STORM_SECONDS` for another
time, `LITEQ_STORM_SEED` for another run), with three versions; else they are two, for each
has to be compiled and started.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import apsw
import pytest
import redis_server
from redis_server import RedisServer
from world import wait_until

from liteq.brokers import schema
from liteq.brokers.base import FINAL_STATES
from liteq.brokers.files import DATABASE
from liteq.brokers.redis_link import KEYS_VERSION
from liteq.exceptions import SchemaError
from processes.mixed import Mixed
from processes.versions import ROOT, earlier, later

STORM = bool(os.environ.get("LITEQ_STORM"))
SECONDS = float(os.environ.get("LITEQ_STORM_SECONDS", 600.0 if STORM else 1.5))
SEED = int(os.environ.get("LITEQ_STORM_SEED", 1))
STORED = (
    400_000 if STORM else 2_000
)  # messages in the file when it is upgraded, half of them ended
WORKERS = 4 if STORM else 2

pytestmark = [
    pytest.mark.process,
    pytest.mark.untraced,
    pytest.mark.timeout(SECONDS + 300),
]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    redis_server.require()
    with tempfile.TemporaryDirectory(prefix="liteq-") as name:
        server = RedisServer(Path(name))
        yield server.start()
        server.kill()


def test_versions_that_share_a_store_and_upgrade_it_lose_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees = [ROOT, later(tmp_path / "next", 1)]
    if STORM:
        before = earlier(tmp_path / "before")
        trees = [before, *trees] if before else [*trees, later(tmp_path / "after", 2)]
    folder = tmp_path / "storm"
    folder.mkdir()
    with closing(Mixed(folder, trees, seed=SEED)) as storm:
        storm.fill(STORED)
        storm.open(WORKERS)
        weather(storm, capsys)


@pytest.mark.redis
def test_versions_that_share_a_store_on_redis_lose_nothing(
    tmp_path: Path, server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    trees = [ROOT, later(tmp_path / "next", 1)]
    if STORM:
        trees.append(later(tmp_path / "after", 2))
    folder = tmp_path / "storm"
    folder.mkdir()
    with closing(Mixed(folder, trees, seed=SEED, url=server.url)) as storm:
        storm.open(WORKERS)
        weather(storm, capsys)


def test_whom_the_store_has_become_too_new_for_ends_with_8_and_loses_nothing(
    tmp_path: Path,
) -> None:
    breaking = later(tmp_path / "breaking", 1, breaks=True)
    folder = tmp_path / "storm"
    folder.mkdir()
    with closing(Mixed(folder, [ROOT, breaking], seed=SEED)) as storm:
        storm.open(1)
        (sender,) = storm.senders
        wait_for_work(storm)

        storm.start_worker("new", tree=breaking)

        assert storm.at_work["w0"].wait(30) == 8
        assert sender.process.wait(30) == 8
        assert storm.start_worker("late", tree=ROOT).wait(30) == 8
        refusal = (
            f"the store has schema version {LATER}, made by a later liteq, and this one reads "
            f"up to {LATER - 1}: upgrade liteq here"
        )
        with pytest.raises(SchemaError, match=refusal):
            storm.send_one()
        assert refusal in storm.log_of("w0")
        assert refusal in storm.log_of("late")
        storm.collect()
        ((refused, reason),) = storm.refused
        assert reason == refusal
        acknowledged = [id for call in storm.acknowledged for id in call.ids]
        wait_until(lambda: ended(folder, acknowledged), within=30)
        assert states(folder, refused.ids) == {}
        expected = {id: storm.expected[id].state for id in acknowledged}
        assert states(folder, acknowledged) == expected


@pytest.mark.redis
def test_a_store_on_redis_is_used_by_its_own_version_alone(
    tmp_path: Path, server: RedisServer
) -> None:
    breaking = later(tmp_path / "breaking", 1, breaks=True)
    folder = tmp_path / "storm"
    folder.mkdir()
    with closing(Mixed(folder, [ROOT, breaking], seed=SEED, url=server.url)) as storm:
        storm.open(1)
        wait_for_work(storm)
        new, sender = storm.start_worker("new", tree=breaking), storm.start_sender(breaking)
        assert new.wait(30) == 8
        assert sender.process.wait(30) == 8
        older = f"has version {KEYS_VERSION}, which no released liteq has written: move it"
        assert older in storm.log_of("new")
        storm.collect()
        assert older in storm.refused[0][1]
        wait_for_work(storm)  # the others go on
        storm.stop_senders()
        meta = "{liteq:default}:meta"

        server.say("HSET", meta, "version", KEYS_VERSION + 1)

        assert storm.at_work["w0"].wait(30) == 8
        assert storm.start_worker("late", tree=ROOT).wait(30) == 8
        newer = (
            f"has version {KEYS_VERSION + 1}, made by a later liteq, and this one reads up to"
        )
        assert newer in storm.log_of("w0")
        assert newer in storm.log_of("late")
        server.say("HSET", meta, "version", KEYS_VERSION)
        storm.admitted = [ROOT]
        storm.calm()
        storm.judge()


LATER = schema.VERSION + 1


def wait_for_work(storm: Mixed) -> None:
    """Wait until something more has been settled."""
    settled = storm.folder / "settled"
    before = settled.stat().st_size if settled.exists() else 0
    wait_until(lambda: settled.exists() and settled.stat().st_size > before, within=30)


def states(folder: Path, ids: Sequence[str]) -> dict[str, str]:
    """Return the states of those of these messages that are there; not by way of liteq,
    which must not read a store that is too new for it."""
    names = {code: name for name, code in schema.STATE_CODES.items()}
    db = apsw.Connection(str(folder / "store" / DATABASE), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        marks = ", ".join("?" * len(ids))
        rows = db.execute(f"SELECT id, state FROM message WHERE id IN ({marks})", ids)
        return {id: names[code] for id, code in rows}
    finally:
        db.close()


def ended(folder: Path, ids: Sequence[str]) -> bool:
    found = states(folder, ids)
    return found.keys() == {*ids} and FINAL_STATES.issuperset(found.values())


def weather(storm: Mixed, capsys: pytest.CaptureFixture[str]) -> None:
    storm.blow_over(SECONDS)
    verdict = storm.settle_down()
    by = storm.settled_by()
    with capsys.disabled():
        print(f"\n  seed {SEED}, {SECONDS:g} s: {storm.deeds()}, {dict(verdict)}")
        print(f"  settled by {dict(by)}; waited {storm.longest_wait():.3f} s at most")
    if STORM:
        assert len(by) == len(storm.trees)
        # Nobody was refused for it. (What the upgrade takes by itself is measured in
        # tests/brokers: here, a dozen processes share the processors with it.)
        assert 0.0 < storm.longest_wait() < 5.0
        assert verdict["dead letters, redriven"]
