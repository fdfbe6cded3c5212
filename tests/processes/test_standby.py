"""What becomes of a message that was leased as it was enqueued, when a process dies then."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis_server
from world import wait_until

from processes.shop import Shop

pytestmark = pytest.mark.process

OpenShop = Callable[..., Shop]


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    url, options = None, {}
    if request.param == "redis":
        redis_server.require()
        url = redis_server.shared()
        options = {"namespace": redis_server.namespace_of(tmp_path)}
    made = Shop(tmp_path, url=url, worker_lease_timeout=1.0, broker_transport_options=options)
    yield made
    made.close()


def stand_by(shop: Shop, name: str = "w") -> subprocess.Popen[bytes]:
    """Start a worker, and return when it has nothing to do."""
    worker = shop.start("-c", "1", name=name)
    assert shop.tasks.add.delay(1, 2).get(timeout=10) == 3
    return worker


def was_handed_over(shop: Shop) -> bool:
    """Tell whether a call was leased as it was enqueued; it is released."""
    result = shop.hold("probe")
    state = shop.record(result).state
    shop.release("probe")
    assert result.get(timeout=10) == ["probe", 1]
    return bool(state == "running")


def test_what_was_leased_to_a_worker_that_is_stopped_runs_elsewhere(shop: Shop) -> None:
    stopped = stand_by(shop, "stopped")
    wait_until(lambda: was_handed_over(shop))
    stopped.send_signal(signal.SIGSTOP)
    result = shop.hold()
    assert shop.record(result).state == "running"
    shop.start("-c", "1", name="other")

    number, *_ = shop.wait_start()
    stopped.send_signal(signal.SIGCONT)
    shop.wait(lambda: "it starts over" in shop.log("stopped"), stopped)
    shop.release()

    assert number == "2"
    assert result.get(timeout=10) == ["hold", 2]
    assert shop.tasks.add.delay(1, 2).get(timeout=10) == 3
    assert len(shop.starts()) == 1  # the lease was not believed any more


def test_a_worker_that_was_killed_is_leased_nothing(shop: Shop) -> None:
    killed = stand_by(shop, "killed")
    killed.kill()
    killed.wait()

    result = shop.hold()

    assert (shop.record(result).state, shop.record(result).deliveries) == ("queued", 0)
    shop.release()
    shop.start("-c", "1", name="other")
    assert result.get(timeout=10) == ["hold", 1]


SENDER = """
import os
from liteq.brokers.sqlite import SqliteBroker

SqliteBroker._hand = lambda *_: os._exit(7)
from tasks import hold
hold.apply_async(("lost",), task_id="lost")
"""


def test_a_sender_that_dies_before_it_has_told_the_worker_costs_a_moment(
    tmp_path: Path,
) -> None:
    shop = Shop(tmp_path)
    try:
        stand_by(shop)
        sender = subprocess.run(
            [sys.executable, "-c", SENDER], cwd=tmp_path, timeout=20, check=False
        )
        shop.release("lost")

        assert sender.returncode == 7
        assert shop.app.AsyncResult("lost").get(timeout=10) == ["lost", 1]
        assert shop.starts("lost")[0][0] == "1"
    finally:
        shop.close()
