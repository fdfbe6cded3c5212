"""Workers steered by real commands, frozen and killed by real signals, on both stores."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis_server
from world import wait_until

from liteq.brokers.sqlite import SqliteBroker
from liteq.canvas import chain
from liteq.exceptions import BrokerBusy, TaskRevokedError
from processes.shop import Shop, is_running

pytestmark = pytest.mark.process

OpenShop = Callable[..., Shop]

SOURCE = """
@app.task(bind=True, max_retries=None)
def flaky(self, name):
    note("flaky", name, self.request.retries)
    raise self.retry(countdown=0.5)

@app.task
def tell(*args):
    note("tell", *args)

if os.environ.get("KNOWS_MORE"):
    @app.task(name="tasks.rare")
    def rare(name):
        note("rare", name)
"""


@pytest.fixture(params=["sqlite", "redis"])
def open_shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenShop]:
    opened: list[Shop] = []

    def make_shop(source: str = "", **conf: Any) -> Shop:
        if request.param == "redis":
            redis_server.require()
            conf["url"] = redis_server.shared()
            conf["broker_transport_options"] = {
                "namespace": redis_server.namespace_of(tmp_path),
                "durability": "server",
            }
        opened.append(Shop(tmp_path, source, **conf))
        return opened[-1]

    yield make_shop
    for shop in opened:
        shop.close()


# Who is there


def test_the_frozen_are_stuck_the_killed_are_dead_and_nobody_is_passed_over(
    open_shop: OpenShop,
) -> None:
    shop = open_shop()
    shop.start("-c", "1", name="well")
    frozen = shop.start("-c", "1", name="frozen")
    killed = shop.start("-c", "1", name="killed")
    control = shop.app.control
    assert len(control.ping(timeout=20)) == 3

    freeze(shop, frozen)
    killed.kill()
    killed.wait()
    replies = control.ping(timeout=1.0)

    assert list(replies) == [{"well@shop": {"ok": "pong"}}]
    assert set(replies.silent) == {"frozen@shop", "killed@shop"}
    assert replies.silent["killed@shop"].startswith("dead: its process")
    assert f"stuck: process {frozen.pid}" in replies.silent["frozen@shop"]
    states = {one.name: one.state for one in control.status(timeout=1.0)}
    assert states == {"well@shop": "alive", "frozen@shop": "stuck", "killed@shop": "dead"}

    frozen.send_signal(signal.SIGCONT)
    assert len(control.ping(timeout=20)) == 2


def test_a_worker_that_was_given_up_is_stuck_until_it_comes_back(open_shop: OpenShop) -> None:
    shop = open_shop(worker_lease_timeout=1.5)
    shop.start("-c", "1", name="well")
    frozen = shop.start("-c", "1", name="frozen")

    freeze(shop, frozen)
    wait_until(lambda: len(shop.app.broker.workers()) == 1, within=20)
    assert _states(shop)["frozen@shop"] == "stuck"

    frozen.send_signal(signal.SIGCONT)
    wait_until(lambda: "starts over" in shop.log("frozen"), within=20)
    wait_until(lambda: len(shop.app.control.ping(timeout=5)) == 2, within=20)
    assert _states(shop) == {"well@shop": "alive", "frozen@shop": "alive"}


def freeze(shop: Shop, worker: Any) -> None:
    """Stop a process, but not in the middle of a transaction, which would stop everybody:
    who meets that is told so (`BrokerBusy`), before the leases of the others run out."""
    worker.send_signal(signal.SIGSTOP)
    store = shop.app.broker
    if not isinstance(store, SqliteBroker):
        return
    writer = SqliteBroker(store.directory, busy_timeout=0.2)
    while True:
        try:
            writer.post([])
        except BrokerBusy:
            worker.send_signal(signal.SIGCONT)
            store.post([])  # which it lets us do when it is through
            worker.send_signal(signal.SIGSTOP)
        else:
            writer.close()
            return


def _states(shop: Shop) -> dict[str, str]:
    return {one.name: one.state for one in shop.app.control.status(timeout=0.5)}


# Revokes


def test_8_a_revoke_in_each_state_survives_the_death_of_the_worker(
    open_shop: OpenShop,
) -> None:
    shop = open_shop(SOURCE)
    tasks, app = shop.tasks, shop.app
    first = shop.start("-c", "2", name="first")
    behind = chain(tasks.hold.si("first"), tasks.tell.si("waiting")).delay()
    running = shop.hold("running")
    shop.wait_start("first")
    shop.wait_start("running")
    queued = tasks.tell.delay("queued")
    scheduled = tasks.tell.apply_async(("scheduled",), countdown=1.0)
    parked = app.send_task("tasks.rare", ["parked"], queue="rare")
    second = shop.start("-c", "1", "-Q", "rare,flaky", name="second")
    retrying = tasks.flaky.apply_async(("retrying",), queue="flaky")
    wait_until(lambda: shop.record(parked).state == "parked", within=20)
    wait_until(lambda: shop.record(retrying).state == "retrying", within=20)
    freeze(shop, first)  # it is not to end the run before it dies

    answers = {
        name: one.revoke(terminate=name == "running")
        for name, one in {
            "waiting": behind,
            "running": running,
            "queued": queued,
            "scheduled": scheduled,
            "parked": parked,
            "retrying": retrying,
        }.items()
    }
    for worker in (first, second):
        for pid in [*shop.children(worker), worker.pid]:
            os.kill(pid, signal.SIGKILL)
        worker.wait()
    shop.release("first", "running")
    app.close()  # what this process had open is gone, too
    third = shop.start("-c", "2", "-Q", "default,rare,flaky", name="third", KNOWS_MORE="1")
    shop.wait(lambda: shop.record(behind.parent).state == "succeeded", third)
    wait_until(lambda: time.time() > (shop.record(scheduled).message.run_at or 0) + 0.2)
    after = tasks.tell.delay("after")
    after.get(timeout=20)
    shop.wait(lambda: shop.record(running).state == "revoked", third)

    assert answers.pop("running") == "signalled"
    retried = answers.pop("retrying")
    assert retried in ("revoked", "running")
    assert set(answers.values()) == {"revoked"}
    for result in (behind, running, queued, scheduled, parked, retrying):
        shop.wait(lambda result=result: shop.record(result).final, third)
        with pytest.raises(TaskRevokedError):
            result.get(timeout=5)
    assert [words[1] for words in shop.notes("tell")] == ["after"]
    assert shop.notes("rare") == []
    assert len(shop.starts("running")) == 1
    told = len(shop.notes("flaky"))
    assert tasks.tell.delay("last").get(timeout=20) is None
    assert len(shop.notes("flaky")) == told


def test_terminate_ends_one_run_and_no_other_and_says_which(open_shop: OpenShop) -> None:
    shop = open_shop()
    worker = shop.start("-c", "2")
    ended, other = shop.hold("ended"), shop.hold("other")
    shop.wait_start("ended")
    pid = int(shop.wait_start("other")[1])

    assert shop.app.control.terminate([ended.id]) == {ended.id: "signalled"}

    with pytest.raises(TaskRevokedError):
        ended.get(timeout=20)
    assert is_running(pid)
    assert f"ending Task tasks.hold[{ended.id}], attempt 1, with SIGTERM" in shop.log()
    shop.release("other")
    assert other.get(timeout=20) == ["other", 1]
    assert shop.stop(worker) == 0


# The pool


def test_a_prefork_pool_grows_shrinks_and_is_replaced(open_shop: OpenShop) -> None:
    shop = open_shop()
    worker = shop.start("-c", "1")
    control = shop.app.control

    assert control.pool_grow(2, reply=True, timeout=20) == [
        {"w@shop": {"ok": "pool will grow"}}
    ]
    shop.wait(lambda: len(shop.children(worker)) == 3, worker)
    held = [shop.hold(f"h{n}") for n in range(3)]
    for n in range(3):
        shop.wait_start(f"h{n}")
    (active,) = control.inspect(timeout=20).active().values()
    assert {info["id"] for info in active} == {one.id for one in held}
    assert {info["worker_pid"] for info in active} <= set(shop.children(worker))

    control.pool_shrink(2, reply=True, timeout=20)
    shop.release("h0", "h1", "h2")
    assert [one.get(timeout=20) for one in held] == [[f"h{n}", 1] for n in range(3)]
    shop.wait(lambda: len(shop.children(worker)) == 1, worker)
    (before,) = shop.children(worker)
    control.pool_restart(reply=True, timeout=20)
    shop.wait(lambda: shop.children(worker) not in ([], [before]), worker)
    assert shop.tasks.add.delay(1, 2).get(timeout=20) == 3
    assert shop.stop(worker) == 0


def test_a_pool_grows_with_the_work_and_shrinks_when_there_is_none(
    open_shop: OpenShop,
) -> None:
    shop = open_shop(worker_autoscale_keepalive=0.3)
    worker = shop.start("--autoscale", "3,1")
    assert len(shop.children(worker)) == 1

    results = [shop.hold("all") for _ in range(5)]
    shop.wait_start("all", count=3)
    assert len(shop.children(worker)) == 3
    shop.release("all")

    assert all(one.get(timeout=20)[0] == "all" for one in results)
    shop.wait(lambda: len(shop.children(worker)) == 1, worker)
    assert re.search(r"autoscale: from [12] to 3 children", shop.log())
    assert shop.stop(worker) == 0


# Storm


@pytest.mark.skipif(not os.environ.get("LITEQ_STORM"), reason="a storm: set LITEQ_STORM=1")
def test_eight_workers_forget_a_hundred_thousand_revokes(open_shop: OpenShop) -> None:
    """Revokes are rows, so no worker's memory grows with their number."""
    shop = open_shop(SOURCE)
    workers = [shop.start("-c", "1", "-P", "threads", name=f"w{n}") for n in range(8)]
    shop.app.control.ping(timeout=60)
    total, slice = 100_000, 1_000
    revoked = 0
    samples = []
    for start in range(0, total, slice):
        calls = [((n,), {}) for n in range(start, start + slice)]
        sent = shop.tasks.tell.enqueue_many(calls, countdown=3600)
        ids = [one.id for one in sent]
        answers = shop.app.control.revoke(ids)
        revoked += sum(answer == "revoked" for answer in answers.values())
        if start % (total // 10) == 0:
            samples.append([rss(worker.pid) for worker in workers])

    samples.append([rss(worker.pid) for worker in workers])
    print("KiB resident, by tenth:", *samples, sep="\n")
    assert revoked == total
    assert shop.notes("tell") == []
    # The first tenth fills caches; after that, less than 2 MiB in ninety thousand.
    assert all(
        last - early < 2_048 for early, last in zip(samples[1], samples[-1], strict=True)
    )
    assert len(shop.app.control.ping(timeout=60)) == 8


def rss(pid: int) -> int:
    """Return how much memory a process has, KiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])
