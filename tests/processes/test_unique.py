"""Unique calls against real processes: producers that race, and workers that are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis_server
from world import wait_until

from processes.shop import Shop

pytestmark = pytest.mark.process

SOURCE = """
@app.task(unique=True)
def alone(name):
    note("begin", name)
    note("finish", name)

@app.task(bind=True, unique=True)
def guard(self, name):
    note("start", name, self.request.deliveries, os.getpid(), time.time())
    while not os.path.exists(FOLDER + "/go-" + name):
        time.sleep(0.005)
    return self.request.deliveries
"""
PRODUCER = """
import sys
sys.path.insert(0, {folder!r})
import tasks
sys.stdin.readline()
made = [tasks.alone.delay("same") for _ in range({calls})]
print(sum(not one.duplicate for one in made))
"""
STORM = bool(os.environ.get("LITEQ_STORM"))
CALLS = 2_000 if STORM else 200  # of each of four producers, which race for one key


@pytest.fixture(params=["sqlite", "redis"])
def open_shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Shop]]:
    opened: list[Shop] = []

    def start() -> Shop:
        options: dict[str, Any] = {}
        if request.param == "redis":
            redis_server.require()
            options["url"] = redis_server.shared()
            namespace = redis_server.namespace_of(tmp_path)
            options["broker_transport_options"] = {"namespace": namespace}
        opened.append(Shop(tmp_path, SOURCE, **options))
        return opened[0]

    yield start
    for shop in opened:
        shop.close()


@pytest.mark.timeout(120)
def test_of_producers_that_race_for_a_key_one_call_is_alive_at_a_time(
    open_shop: Callable[[], Shop],
) -> None:
    shop = open_shop()
    worker = shop.start("-c", "2")
    program = PRODUCER.format(folder=str(shop.folder), calls=CALLS)
    producers = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=shop.folder,
        )
        for _ in range(4)
    ]

    said = []
    for producer in producers:
        assert producer.stdin is not None
        producer.stdin.write("go\n")
        producer.stdin.flush()
    for producer in producers:
        out, _ = producer.communicate(timeout=100)
        assert producer.returncode == 0
        said.append(int(out))
    wait_until(lambda: not shop.app.broker.counts(), within=20)

    # Two children are there: had two calls been alive, their notes could have crossed.
    notes = [words[0] for words in shop.notes() if words[0] in ("begin", "finish")]
    assert notes == ["begin", "finish"] * sum(said)
    assert 1 <= sum(said) <= 4 * CALLS
    assert shop.stop(worker) == 0


@pytest.mark.timeout(60)
def test_a_killed_worker_leaves_the_key_with_its_call_until_that_has_ended(
    open_shop: Callable[[], Shop],
) -> None:
    shop = open_shop()
    guard = shop.tasks.guard
    result = guard.delay("door")
    first = shop.start("-c", "1", name="first")
    shop.wait_start("door")

    first.kill()
    first.wait()
    while_nobody_lives = guard.delay("door")
    second = shop.start("-c", "1", name="second")
    number = shop.wait_start("door", count=2)[0]
    while_it_runs_again = guard.delay("door")
    shop.release("door")

    assert (while_nobody_lives.id, while_it_runs_again.id) == (result.id, result.id)
    assert number == "2"
    assert result.get(timeout=20) == 2
    assert not guard.delay("door").duplicate
    assert shop.stop(second) == 0
