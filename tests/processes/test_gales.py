"""All promises at once, on both stores, under all that can befall a worker or a server.

`LITEQ_STORM=1` does it for ten minutes on each store (`LITEQ_STORM_SECONDS` for another
time, `LITEQ_STORM_SEED` for another run).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis_server
from redis_server import RedisServer

from processes.gale import Gale

STORM = bool(os.environ.get("LITEQ_STORM"))
SECONDS = float(os.environ.get("LITEQ_STORM_SECONDS", 600.0 if STORM else 5.0))
SEED = int(os.environ.get("LITEQ_STORM_SEED", 1))

pytestmark = [pytest.mark.process, pytest.mark.timeout(SECONDS + 300)]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    redis_server.require()
    with tempfile.TemporaryDirectory(prefix="liteq-") as name:
        # What was answered is in the file when its process is killed.
        server = RedisServer(Path(name), "appendonly yes", "appendfsync everysec")
        yield server.start()
        server.kill()


def verdict_of(gale: Gale, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        gale.calm()
        verdict = gale.judge()
    finally:
        gale.close()
    deeds = gale.deeds()
    with capsys.disabled():
        print(f"\n  seed {SEED}, {SECONDS:g} s: {deeds}, {dict(verdict)}")
    assert verdict["refused"] >= (50 if SECONDS >= 600 else 0)


def test_nothing_is_lost_or_settled_twice_in_a_storm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gale = Gale(tmp_path, lease=1.0, seed=SEED)
    gale.blow(SECONDS)
    verdict_of(gale, capsys)


@pytest.mark.redis
def test_nothing_is_lost_or_settled_twice_in_a_storm_on_redis(
    tmp_path: Path, server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    gale = Gale(tmp_path, lease=1.0, seed=SEED, url=server.url)

    def restart() -> None:
        gale.note("restart server")
        server.kill()
        for _ in range(gale.random.randint(0, 3)):
            gale.send()  # with nobody there to answer
        server.start()

    gale.blow(SECONDS, restart=restart)
    verdict_of(gale, capsys)
