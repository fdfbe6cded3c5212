"""Real workers on a Redis server: what they survive, and how soon they go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes.shop import Shop
from redis_server import RedisServer
from world import wait_until

from liteq import Liteq
from liteq.exceptions import BrokerUnavailable
from on_redis.proxy import Proxy

pytestmark = [pytest.mark.redis, pytest.mark.process]

KEPT = ("appendonly yes", "appendfsync always")
OpenShop = Callable[..., Shop]


@pytest.fixture
def open_shop(tmp_path: Path) -> Iterator[OpenShop]:
    opened: list[Shop] = []

    def make_shop(url: str, source: str = "", **conf: Any) -> Shop:
        opened.append(Shop(tmp_path, source, url=url, **conf))
        return opened[-1]

    yield make_shop
    for shop in opened:
        shop.close()


def test_a_worker_runs_what_is_sent_and_leaves_nothing(
    open_shop: OpenShop, server: RedisServer
) -> None:
    shop = open_shop(server.url)
    worker = shop.start("-c", "2")

    results = [shop.tasks.add.delay(n, n) for n in range(50)]

    assert [one.get(timeout=10) for one in results] == [2 * n for n in range(50)]
    assert "store     unix://" in shop.log()
    assert "nothing is persisted" in shop.log()
    assert shop.stop(worker) == 0
    assert shop.app.broker.workers() == []
    assert shop.app.broker.counts() == {}


@pytest.mark.parametrize("imported_first", [True, False])
def test_a_result_is_heard_of_where_gevent_has_taken_epoll_away(
    open_shop: OpenShop, server: RedisServer, *, imported_first: bool
) -> None:
    shop = open_shop(server.url)
    shop.start("-c", "1")
    lines = [
        "import select",
        "vars(select).pop('epoll', None), vars(select).pop('kqueue', None)",
        "from tasks import add",
        "print(add.delay(2, 3).get(timeout=10), len(add.app.control.ping(timeout=5)))",
    ]
    if imported_first:
        lines.insert(0, "from tasks import app; app.broker")

    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=shop.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout == "5 1\n", done.stderr


def test_2_what_a_killed_worker_held_runs_again_at_once(
    open_shop: OpenShop, server: RedisServer
) -> None:
    shop = open_shop(server.url)
    first = shop.start("-c", "1", name="first")
    held = shop.hold()
    shop.wait_start()
    second = shop.start("-c", "1", name="second")

    for pid in [first.pid, *shop.children(first)]:
        os.kill(pid, signal.SIGKILL)
    first.wait()

    shop.wait_start(count=2)  # long before a heartbeat of a minute is missed
    shop.release()
    assert held.get(timeout=10) == ["hold", 2]
    assert shop.stop(second) == 0


BEATING = """
@app.task
def tick():
    note("tick", os.getpid())

app.conf.beat_schedule = {"tick": {"task": "tasks.tick", "schedule": 0.2}}
"""


@pytest.mark.traced
def test_the_beat_of_a_worker_is_started_again(
    open_shop: OpenShop, server: RedisServer
) -> None:
    shop = open_shop(server.url, BEATING)
    worker = shop.start("-B", "-c", "1")
    shop.wait(lambda: shop.notes("tick"), worker)
    [[_, runner], *_] = shop.notes("tick")
    (beat,) = set(shop.children(worker)) - {int(runner)}

    os.kill(beat, signal.SIGKILL)
    shop.wait(lambda: len(set(shop.children(worker)) - {beat}) == 2, worker)
    before = len(shop.notes("tick"))
    shop.wait(lambda: len(shop.notes("tick")) > before + 1, worker)

    assert shop.stop(worker) == 0


def test_2_what_ended_and_was_forgotten_by_the_server_runs_again_under_the_same_worker(
    open_shop: OpenShop, start: Callable[..., RedisServer]
) -> None:
    server = start()
    shop = open_shop(server.url)
    worker = shop.start("-c", "2")
    held = shop.hold()
    shop.wait_start()
    server.say("SAVE")
    shop.release()
    assert held.get(timeout=10) == ["hold", 1]
    server.kill()
    server.start()  # what was acknowledged since the snapshot is lost

    again = shop.app.AsyncResult(held.id)
    assert again.get(timeout=20) == ["hold", 2]
    assert "has forgotten" in shop.log()
    assert shop.stop(worker) == 0


def test_a_worker_and_its_beat_wait_for_a_server_that_is_not_up_yet(
    open_shop: OpenShop, start: Callable[..., RedisServer]
) -> None:
    server = start()
    server.kill()
    shop = open_shop(server.url, BEATING)
    worker = shop.start("-B", "-c", "1", ready=False)
    shop.wait(lambda: shop.log().count("; trying again in") >= 3, worker)
    assert not shop.notes("tick")

    server.start()

    shop.wait(lambda: len(shop.notes("tick")) > 1, worker)
    assert "nothing is persisted" in shop.log()
    assert "Traceback" not in shop.log()
    assert shop.stop(worker) == 0


def test_a_mailbox_without_a_server_is_an_error_of_the_store(
    start: Callable[..., RedisServer],
) -> None:
    server = start()
    server.kill()
    broker = Liteq("shop", broker=server.url).broker

    with pytest.raises(BrokerUnavailable, match="cannot be reached"):
        broker.mailbox()
    broker.close()


def test_a_worker_goes_on_when_its_server_is_back(
    open_shop: OpenShop, start: Callable[..., RedisServer]
) -> None:
    server = start(*KEPT)
    shop = open_shop(server.url)
    worker = shop.start("-c", "2")
    held, waiting = shop.hold(), [shop.tasks.add.delay(n, 1) for n in range(20)]
    shop.wait_start()
    server.kill()
    shop.wait(lambda: "trying again" in shop.log(), worker)
    shop.release()  # it ends while nobody can hear of it

    server.start()

    assert held.get(timeout=10) == ["hold", 1]
    assert [one.get(timeout=10) for one in waiting] == [n + 1 for n in range(20)]
    assert shop.tasks.add.delay(1, 1).get(timeout=10) == 2
    assert "was refused:" not in shop.log()
    assert shop.stop(worker) == 0


@pytest.mark.traced
def test_a_worker_whose_line_falls_silent_goes_on_when_it_is_mended(
    open_shop: OpenShop, server: RedisServer
) -> None:
    proxy = Proxy(server.path)
    timeouts = {"socket_timeout": 0.3, "socket_connect_timeout": 0.3}
    shop = open_shop(proxy.url, broker_transport_options=timeouts)
    worker = shop.start("-c", "1")
    proxy.hold()
    shop.wait(lambda: "trying again" in shop.log(), worker)
    proxy.refuse = True
    proxy.cut()
    proxy.release()
    proxy.refuse = False

    assert wait_until(lambda: _sum(shop), within=10) == 3

    assert shop.stop(worker) == 0
    shop.app.close()
    proxy.close()


def _sum(shop: Shop) -> int | None:
    try:
        value: int = shop.tasks.add.delay(1, 2).get(timeout=5)
    except ConnectionError:
        return None
    return value
