"""Kills at random, of workers, of their children and of the server they share."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes.storm import Storm
from redis_server import RedisServer
from world import wait_until

from liteq.exceptions import BrokerUnavailable
from liteq.ids import new_id

pytestmark = [pytest.mark.redis, pytest.mark.process]

STORM = bool(os.environ.get("LITEQ_STORM"))
SECONDS = 60.0 if STORM else 4.0
# With `everysec` the server itself may lose what it had acknowledged, on a disk that is slow.
SYNCS = ("always", "everysec") if STORM else ("always",)


def enqueue(weather: Storm, count: int) -> None:
    """Send each until it is known to be there: to repeat a call is safe."""
    for _ in range(count):
        id = new_id()
        number = len(weather.ids)
        while True:
            try:
                weather.app.send_task("storm_app.work", (number, 5), task_id=id)
            except BrokerUnavailable:
                continue  # it has waited by itself
            weather.ids.append(id)
            break


@pytest.mark.timeout(600)
@pytest.mark.parametrize("sync", SYNCS)
def test_kills_of_workers_and_of_the_server_lose_nothing(
    tmp_path: Path,
    start: Callable[..., RedisServer],
    capsys: pytest.CaptureFixture[str],
    sync: str,
) -> None:
    server = start("appendonly yes", f"appendfsync {sync}")
    weather = Storm(tmp_path, lease=5.0, seed=3, url=server.url)
    workers = [weather.start_worker(f"w{n}") for n in range(2)]
    kills = {"children": 0, "workers": 0, "server": 0}
    waits: list[float] = []
    lost: set[str] = set()  # by the server: acknowledged, and not there when it was back
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        enqueue(weather, 20)
        time.sleep(0.2)  # paces the storm; nothing is waited for
        dice = weather.random.random()
        place = weather.random.randrange(2)
        if dice < 0.15:
            weather.kill_tree(workers[place])
            workers[place] = weather.start_worker(f"w{place}")
            kills["workers"] += 1
        elif dice < 0.3:
            server.kill()
            server.start()
            lost |= set(weather.ids) - weather.app.broker.get(weather.ids).keys()
            waits.append(went_on(weather))
            kills["server"] += 1
        elif children := weather.children(workers[place]):
            weather.signal(weather.random.choice(children), signal.SIGKILL)
            kills["children"] += 1

    wait_until(lambda: weather.unfinished() == 0, within=60)
    verdict = weather.check(lost)
    weather.close()

    with capsys.disabled():
        print(
            f"\n  {sync}: {kills}, {dict(verdict)}, {len(lost)} lost by the server, "
            f"went on after {max(waits, default=0):.2f} s"
        )
    assert max(waits, default=0) <= 5
    assert not (lost and sync == "always")


def went_on(weather: Storm) -> float:
    """Wait until a task starts after now; return how long that took (seconds)."""
    before = time.time()
    enqueue(weather, 1)
    wait_until(lambda: any(effect.at > before for effect in weather.effects()), within=30)
    return min(e.at for e in weather.effects() if e.at > before) - before
