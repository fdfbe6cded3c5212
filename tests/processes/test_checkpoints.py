"""A task goes on from its checkpoint, whoever dies under it: nothing is left out."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis_server
from world import wait_until

from processes.shop import Shop

pytestmark = pytest.mark.process

COUNT = """
@app.task(bind=True)
def count(self, until, stops):
    began = self.request.checkpoint or 0
    note("began", began, os.getpid())
    for at in range(began, until):
        if at in stops and began < at:
            while not os.path.exists(FOLDER + f"/go-{at}"):
                time.sleep(0.005)
        note("did", at)
        self.checkpoint(at + 1)
    return [self.request.deliveries, began]

@app.task
async def acount(until):
    from liteq import current_task
    began = current_task.request.checkpoint or 0
    for at in range(began, until):
        note("did", at)
        current_task.checkpoint(at + 1)
        if at == 3 and not began:
            os.kill(os.getpid(), signal.SIGKILL)
    return began
"""


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    url = redis_server.url_of(tmp_path) if request.param == "redis" else None
    opened = Shop(tmp_path, COUNT, url=url, worker_shutdown_timeout=0.1, task_max_deliveries=9)
    yield opened
    opened.close()


def wait_for(shop: Shop, result: Any, checkpoint: int) -> None:
    """Wait until the store has this checkpoint."""
    wait_until(lambda: shop.record(result).message.checkpoint == str(checkpoint), within=15)


def beginnings(shop: Shop) -> list[int]:
    return [int(words[1]) for words in shop.notes("began")]


def done(shop: Shop) -> list[int]:
    return [int(words[1]) for words in shop.notes("did")]


def test_a_killed_child_costs_only_what_came_after_the_checkpoint(shop: Shop) -> None:
    shop.start("-c", "1")
    result = shop.tasks.count.delay(40, [20])
    wait_for(shop, result, 20)

    os.kill(int(shop.notes("began")[0][2]), signal.SIGKILL)

    assert result.get(timeout=15) == [2, 20]
    assert done(shop) == list(range(40))


def test_so_does_a_killed_worker(shop: Shop) -> None:
    first = shop.start("-c", "1", name="first")
    result = shop.tasks.count.delay(40, [20])
    wait_for(shop, result, 20)
    first.kill()

    shop.start("-c", "1", name="second")

    assert result.get(timeout=15) == [2, 20]
    assert done(shop) == list(range(40))


def test_what_a_dying_child_said_last_is_not_lost(shop: Shop) -> None:
    shop.start("-c", "1")
    result = shop.tasks.acount.delay(8)

    assert result.get(timeout=15) == 4
    assert done(shop) == list(range(8))


def test_what_a_stop_gives_back_goes_on_elsewhere_uncounted(shop: Shop) -> None:
    first = shop.start("-c", "1", name="first")
    result = shop.tasks.count.delay(40, [20])
    wait_for(shop, result, 20)
    assert shop.stop(first) == 0

    shop.start("-c", "1", name="second")

    assert result.get(timeout=15) == [1, 20]
    assert beginnings(shop) == [0, 20]


def test_a_worker_killed_at_any_time_leaves_nothing_out(shop: Shop) -> None:
    result = shop.tasks.count.delay(3_000, [])
    for number in range(1, 4):
        worker = shop.start("-c", "1", name=f"w{number}", ready=False)
        wait_until(lambda: len(done(shop)) >= number * 700, within=15)  # noqa: B023
        worker.kill()
        worker.wait()
    shop.start("-c", "1", name="last")

    deliveries, began = result.get(timeout=15)
    begun = beginnings(shop)
    assert deliveries >= len(begun)
    assert (begun, began) == (sorted(begun), begun[-1])
    assert sorted(set(done(shop))) == list(range(3_000))
