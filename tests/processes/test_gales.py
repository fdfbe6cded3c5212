"""All promises at once, on both stores, under all that can befall a worker or a server.

`LITEQ_STORM=1` does it for ten minutes on each store (`LITEQ_STORM_SECONDS` for another
time, `LITEQ_STORM_SEED` for another run).
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis_server
from redis_server import RedisServer
from world import enlist

from liteq.outcome import Succeeded
from processes.gale import Gale

STORM = bool(os.environ.get("LITEQ_STORM"))
SECONDS = float(os.environ.get("LITEQ_STORM_SECONDS", 600.0 if STORM else 3.0))
SEED = int(os.environ.get("LITEQ_STORM_SEED", 1))
REFUSED = 50 if SECONDS >= 600 else 0  # stale settles, without which the fence is not tested

pytestmark = [pytest.mark.process, pytest.mark.timeout(SECONDS + 300)]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    redis_server.require()
    with tempfile.TemporaryDirectory(prefix="liteq-") as name:
        # With "everysec", a server whose disk is busy holds writes back that it has
        # answered, up to two seconds long, and they die with its process.
        server = RedisServer(
            Path(name), "appendonly yes", "appendfsync always", "auto-aof-rewrite-min-size 2mb"
        )
        yield server.start()
        server.kill()


def test_nothing_is_lost_or_settled_twice_in_a_storm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(Gale(tmp_path, lease=1.0, seed=SEED)) as gale:
        weather(gale, capsys)


@pytest.mark.redis
def test_nothing_is_lost_or_settled_twice_in_a_storm_on_redis(
    tmp_path: Path, server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(Gale(tmp_path, lease=1.0, seed=SEED, url=server.url)) as gale:

        def restart() -> None:
            gale.note("restart server")
            server.kill()
            for _ in range(gale.random.randint(0, 3)):
                gale.send()  # with nobody there to answer
            server.start()

        weather(gale, capsys, restart)


def test_the_judge_sees_what_is_lost_unexpected_or_settled_twice(tmp_path: Path) -> None:
    with closing(Gale(tmp_path, workers=0, seed=SEED)) as gale:
        gale.send_one()
        with pytest.raises(AssertionError, match=r"^lost: 1"):
            gale.judge()
        worker = enlist(gale.app.broker)
        (lease,) = gale.app.broker.claim(worker, ["default"])
        gale.app.broker.settle(worker, lease, Succeeded(b"0"))
        with pytest.raises(AssertionError, match=r"^unexpected: 1"):
            gale.judge()  # nothing has started it
        gale.log.write_bytes(struct.pack("<qqd", 0, 1, 1.0))
        gale.ledger.write_text(f"accepted {lease.id} 1 Succeeded\n")
        assert gale.judge()["ok"] == 1
        gale.ledger.write_text(f"accepted {lease.id} 1 Lost\naccepted {lease.id} 2 Succeeded\n")
        assert gale.judge()["ok"] == 1

        with gale.ledger.open("a") as ledger:
            ledger.write(f"accepted {lease.id} 3 Failed\n")
        with pytest.raises(AssertionError, match=r"^double-settled: 1"):
            gale.judge()
        gale.ledger.unlink()
        gale.seen[lease.id] = gale.seen[lease.id]._replace(result=b"1")
        with pytest.raises(AssertionError, match=r"^changed after their end: 1"):
            gale.judge()


def weather(
    gale: Gale,
    capsys: pytest.CaptureFixture[str],
    restart: Callable[[], None] | None = None,
) -> None:
    gale.blow(SECONDS, restart=restart)
    gale.calm()
    verdict = gale.judge()
    with capsys.disabled():
        print(f"\n  seed {SEED}, {SECONDS:g} s: {gale.deeds()}, {dict(verdict)}")
    assert verdict["refused"] >= REFUSED
