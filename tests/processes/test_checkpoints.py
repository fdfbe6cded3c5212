"""A task goes on from its checkpoint, whoever dies or stops under it: nothing is left out."""

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

@app.task(bind=True)
def walk(self, until):
    began = self.request.checkpoint or 0
    for at in range(began, until):
        time.sleep(0.002)
        note("did", at)
        self.checkpoint(at + 1, interruptible=True)
    return [self.request.deliveries, began]

# Each stays at step 20 of its first attempt until it is interrupted.

@app.task(bind=True)
def steps(self, until):
    began = self.request.checkpoint or 0
    note("began", began, os.getpid())
    for at in range(began, until):
        note("did", at)
        self.checkpoint(at + 1, interruptible=True)
        while at == 20 and not os.path.exists(FOLDER + "/go"):
            time.sleep(0.002)
            self.checkpoint(at + 1, interruptible=True)
    return [self.request.deliveries, began]

@app.task(bind=True)
async def asteps(self, until):
    began = self.request.checkpoint or 0
    note("began", began, os.getpid())
    for at in range(began, until):
        note("did", at)
        await asyncio.to_thread(self.checkpoint, at + 1, interruptible=True)
        while at == 20 and not os.path.exists(FOLDER + "/go"):
            await asyncio.sleep(0.002)
            self.checkpoint(at + 1, interruptible=True)
    return [self.request.deliveries, began]

@app.task(bind=True)
def stubborn(self, until):
    began = self.request.checkpoint or 0
    note("began", began, os.getpid())
    while not os.path.exists(FOLDER + "/go"):
        try:
            time.sleep(0.002)
            self.checkpoint(7, interruptible=True)
        except:
            note("swallowed")
    return [self.request.deliveries, began]
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


@pytest.mark.parametrize(
    ("pool", "task"),
    [
        ("prefork", "steps"),
        ("prefork", "asteps"),
        ("threads", "steps"),
        ("asyncio", "steps"),
        ("asyncio", "asteps"),
        ("solo", "steps"),
    ],
)
def test_a_stop_waits_no_longer_than_until_the_next_checkpoint(
    shop: Shop, pool: str, task: str
) -> None:
    first = shop.start("-c", "1", "-P", pool, "--grace", "600", name="first")
    result = getattr(shop.tasks, task).delay(40)
    wait_until(lambda: done(shop)[-1:] == [20], within=15)
    assert shop.stop(first) == 0

    assert shop.record(result).deliveries == 0
    assert f"{result.id}] interrupted after" in shop.log("first")
    shop.start("-c", "1", "-P", pool, name="second")
    assert result.get(timeout=15) == [1, 21]
    assert done(shop) == list(range(40))


def test_one_deploy_after_the_other_costs_no_step(shop: Shop) -> None:
    results = [shop.tasks.walk.delay(500) for _ in range(2)]
    for number in range(1, 5):
        enough = min(len(done(shop)) + 100, 1_000)
        worker = shop.start("-c", "2", "--grace", "600", name=f"w{number}")
        wait_until(lambda: len(done(shop)) >= enough, within=15)  # noqa: B023
        assert shop.stop(worker) == 0
    shop.start("-c", "2", name="last")

    assert [result.get(timeout=15)[0] for result in results] == [1, 1]
    assert sorted(done(shop)) == sorted([*range(500)] * 2)


def test_a_stop_from_afar_does_the_same(shop: Shop) -> None:
    first = shop.start("-c", "2", "--grace", "600", name="first")
    results = [shop.tasks.steps.delay(40), shop.tasks.steps.delay(40)]
    for result in results:
        wait_for(shop, result, 21)
    shop.app.control.shutdown()
    assert first.wait(20) == 0

    shop.start("-c", "1", name="second")
    assert [result.get(timeout=15) for result in results] == [[1, 21]] * 2
    assert sorted(done(shop)) == sorted([*range(40)] * 2)


def test_a_child_that_is_replaced_finishes_its_task(shop: Shop) -> None:
    worker = shop.start("-c", "1", "--max-tasks-per-child", "1")
    result = shop.tasks.steps.delay(40)
    wait_for(shop, result, 21)
    worker.send_signal(signal.SIGHUP)
    wait_until(lambda: "replacing all children" in shop.log(), within=15)

    (shop.folder / "go").touch()

    assert result.get(timeout=15) == [1, 0]
    assert done(shop) == list(range(40))


def test_who_swallows_it_is_given_back_at_the_end_of_the_grace(shop: Shop) -> None:
    first = shop.start("-c", "1", "--grace", "600", name="first")
    result = shop.tasks.stubborn.delay(40)
    wait_for(shop, result, 7)
    first.send_signal(signal.SIGTERM)
    wait_until(lambda: len(shop.notes("swallowed")) > 2, within=15)
    assert shop.stop(first) == 0

    assert "stopping now: 1 running task returned to the queue" in shop.log("first")
    (shop.folder / "go").touch()
    shop.start("-c", "1", name="second")
    assert result.get(timeout=15) == [1, 7]


def test_a_pool_that_cannot_end_a_task_is_stopped_cold_at_a_checkpoint(shop: Shop) -> None:
    first = shop.start("-P", "solo", "--grace", "600", name="first")
    result = shop.tasks.steps.delay(40)
    wait_until(lambda: done(shop)[-1:] == [20], within=15)
    assert shop.stop(first, signal.SIGQUIT) == 0

    shop.start("-c", "1", name="second")
    assert result.get(timeout=15) == [1, 21]
    assert done(shop) == list(range(40))
