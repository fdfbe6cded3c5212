"""Children that are replaced after every task, forked among threads that are busy with the
store: none hangs, none has a file of the parent's, and each task runs to its end.

`LITEQ_STORM=1` does it two thousand times on each store, and kills children at random.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis_server
from world import wait_until

from processes.shop import Shop, children_of

pytestmark = pytest.mark.process

STORM = bool(os.environ.get("LITEQ_STORM"))
TASKS = 2_000 if STORM else 15
KILLS = 0.02 if STORM else 0.0  # for each look at the children

BUSY = """
import threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forks among threads: that is the test

def links():
    for fd in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink("/proc/self/fd/" + fd)
        except FileNotFoundError:  # the listing's own
            continue

BORN_WITH = set(links())

@signals.worker_process_init.connect(weak=False)
def born(**_):
    BORN_WITH.clear()
    BORN_WITH.update(links())

@app.task
def look(n):
    held = [to for to in BORN_WITH if "store.db" in to or "socket:" in to]
    note("ran", n, os.getpid(), *held)
    assert app.broker.counts()

def use_the_store():
    while True:
        app.broker.get(["none"])
        app.broker.counts()
        time.sleep(0.001)

@signals.worker_ready.connect(weak=False)
def ready(**_):
    for _ in range(3):
        threading.Thread(target=use_the_store, daemon=True).start()
"""


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    url = redis_server.url_of(tmp_path) if request.param == "redis" else None
    opened = Shop(
        tmp_path, f"TESTS = {os.getpid()}\n{BUSY}", url=url, task_max_deliveries=1_000
    )
    yield opened
    opened.close()


def sockets_of(pid: int) -> set[str]:
    """Return the sockets that a process has open, by their numbers in the kernel."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(os.readlink(fd))
        except FileNotFoundError:
            continue
    return {link for link in found if link.startswith("socket:")}


@pytest.mark.timeout(900 if STORM else 60)
def test_children_of_a_parent_with_busy_threads_neither_hang_nor_inherit(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    dice = random.Random(3)
    worker = shop.start("-c", "2", "--max-tasks-per-child", "1")
    files = len(os.listdir(f"/proc/{worker.pid}/fd"))
    shop.tasks.look.enqueue_many([(n,) for n in range(TASKS)])
    shop.wait(lambda: shop.notes("ran"), worker)
    of_parent = sockets_of(worker.pid)
    kills = 0

    def is_over() -> bool:
        nonlocal kills
        of_parent.intersection_update(sockets_of(worker.pid))  # for a moment it has a child's
        if (children := children_of(worker.pid)) and dice.random() < KILLS:
            os.kill(dice.choice(children), signal.SIGKILL)
            kills += 1
        return not any(sum(one.values()) for one in shop.app.broker.counts().values())

    wait_until(is_over, within=600 if STORM else 40)
    wait_until(lambda: len(children_of(worker.pid)) == 2, within=20)

    ran = shop.notes("ran")
    starts = Counter(int(words[1]) for words in ran)
    assert starts.keys() == set(range(TASKS))
    assert sum(starts.values()) - TASKS <= kills
    assert len({words[2] for words in ran}) == len(ran)  # a child for each
    if STORM:
        with capsys.disabled():
            print(f"\n  {len(ran)} children, {kills} killed, {TASKS} tasks")
    of_children = {link for words in ran for link in words[3:]}
    assert not [link for link in of_children if "store.db" in link]
    assert of_parent
    assert not of_children & of_parent
    assert len(os.listdir(f"/proc/{worker.pid}/fd")) <= files + 20  # threads, newborns
    assert shop.stop(worker) == 0
