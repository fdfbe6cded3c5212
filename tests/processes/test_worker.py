"""Real workers under real signals: how they stop, what they survive, what they promise."""

from __future__ import annotations

import fcntl
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis_server
from world import deaf, make, wait_until

from liteq.brokers.sqlite import SqliteBroker
from liteq.exceptions import (
    ImproperlyConfigured,
    QueueFull,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
)
from processes.shop import Shop, is_running, pause

pytestmark = pytest.mark.process

OpenShop = Callable[..., Shop]


@pytest.fixture
def open_shop(tmp_path: Path) -> Iterator[OpenShop]:
    opened: list[Shop] = []

    def make_shop(source: str = "", **conf: Any) -> Shop:
        opened.append(Shop(tmp_path, source, **conf))
        return opened[-1]

    yield make_shop
    for shop in opened:
        shop.close()


# How a worker stops


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_warm_stop_finishes_what_runs_and_leaves_nothing(
    open_shop: OpenShop, signum: int
) -> None:
    shop = open_shop()
    running = [shop.hold(), shop.hold()]
    waiting = shop.hold()
    worker = shop.start("-c", "2")
    shop.wait_start(count=2)
    children = shop.children(worker)

    worker.send_signal(signum)
    shop.wait(lambda: "stopping: 2 tasks running" in shop.log(), worker)
    shop.release()

    assert worker.wait(20) == 0
    assert [one.get(timeout=1) for one in running] == [["hold", 1]] * 2
    assert (shop.record(waiting).state, shop.record(waiting).deliveries) == ("queued", 0)
    assert not any(map(is_running, children))
    assert shop.left_behind() == []


def test_stops_under_load_cost_no_message_and_no_second_start(open_shop: OpenShop) -> None:
    shop = open_shop("@app.task\ndef tick(i):\n    note('tick', i)\n")
    results = [shop.tasks.tick.delay(i) for i in range(800)]

    def has_begun(number: int) -> bool:
        return len(shop.notes("tick")) > number

    for some in (50, 300, 550):
        worker = shop.start("-c", "2", "-l", "warning")
        shop.wait(partial(has_begun, some), worker)

        assert shop.stop(worker) == 0

        records = shop.app.broker.get([one.id for one in results]).values()
        ends = [(record.state, record.deliveries) for record in records]
        assert set(ends) <= {("succeeded", 1), ("queued", 0)}
        assert ends.count(("succeeded", 1)) == len(shop.notes("tick"))
    assert shop.start("-c", "2", "--burst", ready=False).wait(20) == 0
    assert sorted(int(words[1]) for words in shop.notes("tick")) == list(range(800))


def test_after_the_grace_period_another_worker_starts_what_ran(open_shop: OpenShop) -> None:
    shop = open_shop()
    result = shop.hold()
    first = shop.start("-c", "1", "--grace", "0.2", name="first")
    shop.wait_start()
    shop.start("-c", "1", name="second")

    assert shop.stop(first) == 0
    given_back = time.time()
    number, _, began = shop.wait_start(count=2)
    shop.release()

    assert number == "1"  # the delivery that was given back does not count
    assert float(began) < given_back + 1.0
    assert result.get(timeout=10) == ["hold", 1]


@pytest.mark.parametrize("signums", [(signal.SIGTERM, signal.SIGINT), (signal.SIGQUIT,)])
def test_a_second_signal_or_quit_gives_back_at_once(
    open_shop: OpenShop, signums: tuple[int, ...]
) -> None:
    shop = open_shop()
    result = shop.hold()
    worker = shop.start("-c", "1")
    pid = int(shop.wait_start()[1])

    for signum in signums[:-1]:
        worker.send_signal(signum)
        shop.wait(lambda: "stopping: 1 task running" in shop.log(), worker)
    began = time.monotonic()

    assert shop.stop(worker, signums[-1]) == 0
    assert time.monotonic() - began < 5  # the grace period is 20
    assert (shop.record(result).state, shop.record(result).deliveries) == ("queued", 0)
    assert not is_running(pid)
    assert shop.left_behind() == []


@pytest.mark.parametrize("pool", ["threads", "asyncio"])
def test_a_cold_stop_does_not_wait_for_threads(open_shop: OpenShop, pool: str) -> None:
    shop = open_shop()
    result = shop.hold()
    worker = shop.start("-c", "1", "-P", pool, "--pidfile", "pid")
    shop.wait_start()

    assert shop.stop(worker, signal.SIGQUIT) == 0

    assert (shop.record(result).state, shop.record(result).deliveries) == ("queued", 0)
    assert not (shop.folder / "pid").exists()
    assert shop.left_behind() == []


def test_a_cold_stop_never_lets_an_early_acknowledged_task_start_again(
    open_shop: OpenShop,
) -> None:
    shop = open_shop(task_acks_late=False)
    result = shop.hold()
    worker = shop.start("-c", "1")
    shop.wait_start()

    assert shop.stop(worker, signal.SIGQUIT) == 0

    with pytest.raises(WorkerLostError, match="stopped before the task had ended"):
        result.get(timeout=1)


@pytest.mark.traced
def test_a_hang_up_replaces_all_children_and_loses_no_task(open_shop: OpenShop) -> None:
    shop = open_shop()
    held = shop.hold()
    worker = shop.start("-c", "2")
    shop.wait_start()
    before = set(shop.children(worker))

    worker.send_signal(signal.SIGHUP)
    shop.wait(lambda: "replacing all children" in shop.log(), worker)
    others = [shop.tasks.add.delay(i, 1) for i in range(10)]
    shop.release()

    assert held.get(timeout=10) == ["hold", 1]
    assert [one.get(timeout=10) for one in others] == list(range(1, 11))
    shop.wait(lambda: len(new := set(shop.children(worker))) == 2 and not new & before, worker)
    assert shop.stop(worker) == 0


@pytest.mark.traced
def test_a_worker_stops_when_its_terminal_is_closed(open_shop: OpenShop) -> None:
    shop = open_shop()
    master, slave = os.openpty()
    command = [sys.executable, "-m", "liteq", "worker", "-c", "1", "-f", "w.log"]
    worker = subprocess.Popen(
        [*TERMINAL_OWNER, *command],
        cwd=shop.folder,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    shop.workers.append(worker)
    os.close(slave)
    shop.wait(shop.app.broker.workers, worker)

    os.close(master)

    assert worker.wait(20) in (0, 120)  # 120: Python could not flush to the terminal
    assert "stopping: the terminal was closed" in shop.log()
    assert "has stopped" in shop.log()
    assert shop.left_behind() == []


# Runs a command with standard input as its controlling terminal.
TERMINAL_OWNER = (
    sys.executable,
    "-c",
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])",
)


def test_usr1_writes_the_stacks_of_the_worker_and_its_children(open_shop: OpenShop) -> None:
    shop = open_shop()
    shop.hold()
    worker = shop.start("-c", "1")
    pid = shop.wait_start()[1]

    worker.send_signal(signal.SIGUSR1)

    stack = re.compile(r'tasks\.py", line \d+ in hold')
    shop.wait(lambda: stack.search(shop.log()), worker)
    assert f"Stacks of worker {worker.pid} and its children {pid}" in shop.log()
    assert re.search(r'worker\.py", line \d+ in _loop', shop.log())


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("kind", ["full disk", "full pipe", "no reader"])
def test_a_worker_whose_stderr_takes_nothing_goes_on(
    open_shop: OpenShop, kind: str, pool: str
) -> None:
    shop = open_shop(INITIALISED)
    with deaf(kind) as stderr:
        worker = shop.start("-P", pool, "-c", "1", "-l", "debug", ready=False, stderr=stderr)
        assert shop.tasks.add.delay(1, 2).get(timeout=20) == 3

        worker.send_signal(signal.SIGUSR1)
        worker.send_signal(signal.SIGHUP)
        if pool == "prefork":
            shop.wait(lambda: len(shop.notes("init")) == 2, worker)

        assert shop.tasks.add.delay(2, 3).get(timeout=20) == 5
        assert shop.stop(worker) == 0


INITIALISED = """
@signals.worker_process_init.connect
def begun(**_):
    note("init")
"""


# A child that dies


def test_a_killed_child_costs_one_attempt_and_the_caller_sees_only_the_end(
    open_shop: OpenShop,
) -> None:
    shop = open_shop()
    result = shop.hold()
    got: list[Any] = []
    waiter = threading.Thread(target=lambda: got.append(result.get(timeout=20)))
    shop.start("-c", "1")
    pid = int(shop.wait_start()[1])
    waiter.start()

    os.kill(pid, signal.SIGKILL)
    killed = time.time()
    seen = set()
    while len(shop.starts()) < 2:
        seen.add(shop.app.AsyncResult(result.id).state)
        pause()
    shop.release()
    waiter.join(20)

    number, second, began = shop.starts()[1]
    assert (number, float(began) < killed + 1.0) == ("2", True)
    assert int(second) != pid
    assert got == [["hold", 2]]
    assert seen <= {"PENDING", "STARTED"}
    assert "was lost, the child process ended: signal 9 (SIGKILL)" in shop.log()


def test_a_task_that_kills_its_process_is_a_dead_letter_after_max_deliveries(
    open_shop: OpenShop,
) -> None:
    shop = open_shop(
        "@app.task\ndef poison():\n    note('poison')\n    os.kill(os.getpid(), 9)\n"
    )
    result = shop.tasks.poison.delay()
    shop.start("-c", "1")

    with pytest.raises(WorkerLostError, match="SIGKILL"):
        result.get(timeout=20)

    assert len(shop.notes("poison")) == 3
    (dead,) = shop.app.broker.browse("dead")
    assert dead.id == result.id
    assert dead.dead is not None
    assert "started 3 times" in dead.dead
    assert "SIGKILL" in dead.dead
    assert shop.tasks.add.delay(1, 2).get(timeout=10) == 3


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_5_the_options_of_the_urls_query_hold_when_a_child_dies(
    open_shop: OpenShop, tmp_path: Path, store: str
) -> None:
    place = f"sqlite:///{tmp_path}/store"
    options = "max_deliveries=2&lease_timeout=30&poll_interval=0.5&unknown_expires=100"
    if store == "redis":
        place = redis_server.shared()
        options += f"&namespace={redis_server.namespace_of(tmp_path)}"
    shop = open_shop(
        "@app.task\ndef poison():\n    note('poison')\n    os.kill(os.getpid(), 9)\n",
        url=f"{place}{'&' if '?' in place else '?'}{options}",
    )
    result = shop.tasks.poison.delay()
    shop.start("-c", "1")

    with pytest.raises(WorkerLostError, match="SIGKILL"):
        result.get(timeout=20)

    assert len(shop.notes("poison")) == 2
    (dead,) = shop.app.broker.browse("dead")
    assert "started 2 times" in (dead.dead or "")
    assert shop.tasks.add.delay(1, 2).get(timeout=10) == 3


def test_a_worker_whose_store_has_an_option_that_cannot_be_ends_with_2(
    open_shop: OpenShop, tmp_path: Path
) -> None:
    shop = open_shop(url=f"sqlite:///{tmp_path}/store?max_size=20MB")

    worker = shop.start(ready=False)

    assert worker.wait(20) == 2
    assert "max_size must be a whole number of at least 1, not '20MB'" in shop.log()
    assert "Traceback" not in shop.log()
    with pytest.raises(ImproperlyConfigured, match="max_size"):
        shop.tasks.add.delay(1, 2)


def test_an_early_acknowledged_task_is_never_started_again(open_shop: OpenShop) -> None:
    shop = open_shop(task_acks_late=False)
    result = shop.hold()
    shop.start("-c", "1")
    os.kill(int(shop.wait_start()[1]), signal.SIGKILL)

    with pytest.raises(WorkerLostError):
        result.get(timeout=10)

    assert shop.tasks.add.delay(1, 2).get(timeout=10) == 3
    assert len(shop.starts()) == 1


@pytest.mark.traced
def test_a_killed_worker_is_survived_by_nobody_and_succeeded_at_once(
    open_shop: OpenShop,
) -> None:
    shop = open_shop()
    result = shop.hold()
    first = shop.start("-c", "1", name="first")
    pid = int(shop.wait_start()[1])
    second = shop.start("-c", "1", name="second")

    first.kill()
    killed = time.time()
    number, _, began = shop.wait_start(count=2)
    shop.release()

    assert (number, float(began) < killed + 1.0) == ("2", True)
    assert result.get(timeout=10) == ["hold", 2]
    wait_until(lambda: not is_running(pid))
    assert "took back 1 message of workers that died" in shop.log("second")
    assert shop.stop(second) == 0
    first.wait()
    assert shop.left_behind() == []


@pytest.mark.parametrize("how", ["files", "folder"])
def test_2_a_worker_whose_lock_somebody_removes_keeps_what_it_runs_and_is_missed_when_killed(
    open_shop: OpenShop, how: str
) -> None:
    shop = open_shop(broker_transport_options={"lease_timeout": 3.0})
    locks = shop.folder / "store" / "workers"
    shop.hold()
    first = shop.start("-c", "1", name="first")
    shop.wait_start()
    [lock] = locks.iterdir()
    first.send_signal(signal.SIGSTOP)  # it cannot beat before the other has looked

    if how == "files":
        lock.unlink()
    else:
        shutil.rmtree(locks)
    assert shop.start("-c", "1", "--burst", name="second", ready=False).wait(20) == 0
    first.send_signal(signal.SIGCONT)
    shop.wait(lock.exists, first)
    third = shop.start("-c", "1", name="third")

    assert len(shop.starts()) == 1
    assert "was removed and is made again" in shop.log("first")
    first.kill()
    killed = time.time()
    number, _, began = shop.wait_start(count=2)
    shop.release()
    assert (number, float(began) < killed + 1.0) == ("2", True)
    assert shop.stop(third) == 0
    assert shop.left_behind() == []


# Time limits

LIMITED = """
@app.task(soft_time_limit=0.1)
def soft():
    try:
        while True:
            time.sleep(0.01)
    except SoftTimeLimitExceeded:
        return "cleaned up"

@app.task(time_limit=0.5)
def hard():
    process = subprocess.Popen(["sleep", "1000"])
    note("hard", os.getpid(), process.pid)
    process.wait()

@app.task
def endless():
    time.sleep(1000)

@app.task(soft_time_limit=0.1)
def prepared():
    time.sleep(1000)

@signals.task_prerun.connect(sender=prepared)
def prepare(**_):
    time.sleep(0.5)
"""


def test_limits_of_the_task_are_kept(open_shop: OpenShop) -> None:
    shop = open_shop(LIMITED)
    shop.start("-c", "1")

    assert shop.tasks.soft.delay().get(timeout=10) == "cleaned up"
    with pytest.raises(SoftTimeLimitExceeded):
        shop.tasks.prepared.delay().get(timeout=10)
    result = shop.tasks.hard.delay()
    with pytest.raises(TimeLimitExceeded, match=re.escape("0.5")):
        result.get(timeout=10)

    pids = [int(word) for word in shop.notes("hard")[0][1:]]
    wait_until(lambda: not any(map(is_running, pids)))
    assert shop.tasks.add.delay(1, 2).get(timeout=10) == 3  # the slot has a new child
    attempts = shop.app.broker.attempts(result.id)
    assert [attempt.outcome for attempt in attempts] == ["failed"]
    assert shop.log().count("was killed at its time limit of 0.5 s") == 1


def test_limits_of_the_worker_yield_to_those_of_the_message(open_shop: OpenShop) -> None:
    shop = open_shop(LIMITED, task_time_limit=1000)
    shop.start("-c", "2", "--time-limit", "0.4", "--soft-time-limit", "0.2")

    by_flag = shop.tasks.endless.delay()
    by_message = shop.tasks.endless.apply_async(time_limit=0.1)
    longer = shop.hold(soft_time_limit=1000, time_limit=1000)

    with pytest.raises(Exception, match="SoftTimeLimitExceeded"):
        by_flag.get(timeout=10)
    with pytest.raises(TimeLimitExceeded, match=re.escape("0.1")):
        by_message.get(timeout=10)
    wait_until(lambda: time.time() > float(shop.wait_start()[2]) + 0.6)
    shop.release()
    assert longer.get(timeout=10) == ["hold", 1]


# Revoking


def test_what_is_revoked_before_its_start_never_starts(open_shop: OpenShop) -> None:
    shop = open_shop()
    revoked, later = shop.hold("a"), shop.hold("b", countdown=0.3)
    shop.release("a", "b", "c")
    assert (revoked.revoke(), later.revoke()) == ("revoked", "revoked")

    shop.start("-c", "1", name="first")
    assert shop.hold("c").get(timeout=10) == ["c", 1]
    shop.start("-c", "1", name="second")
    assert shop.hold("c", countdown=0.4).get(timeout=10) == ["c", 1]

    assert shop.starts("a") == shop.starts("b") == []
    assert (revoked.state, later.state) == ("REVOKED", "REVOKED")


def test_what_is_revoked_while_it_runs_gets_no_further_attempt(open_shop: OpenShop) -> None:
    shop = open_shop("""
@app.task(bind=True)
def again(self):
    note("start", "again", self.request.retries)
    while not os.path.exists(FOLDER + "/go-again"):
        time.sleep(0.005)
    raise self.retry(countdown=0)
""")
    result = shop.tasks.again.delay()
    shop.start("-c", "1")
    shop.wait_start("again")

    assert result.revoke() == "running"
    shop.release("again")

    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=10)
    assert len(shop.starts("again")) == 1


def test_terminate_ends_that_run_and_no_other_though_no_child_is_free(
    open_shop: OpenShop,
) -> None:
    shop = open_shop()
    ended, spared = shop.hold("a"), shop.hold("b")
    shop.start("-c", "2")
    pid = int(shop.wait_start("a")[1])
    shop.wait_start("b")

    began = time.monotonic()
    assert ended.revoke(terminate=True) == "signalled"
    with pytest.raises(TaskRevokedError, match="terminated"):
        ended.get(timeout=10)

    assert time.monotonic() - began < 0.8  # by its wake-up, not by the look each second
    assert not is_running(pid)
    shop.release("b")
    assert spared.get(timeout=10) == ["b", 1]
    assert len(shop.starts("a")) == 1


def test_terminate_is_heard_during_a_warm_stop(open_shop: OpenShop) -> None:
    shop = open_shop()
    result = shop.hold()
    worker = shop.start("-c", "1")
    shop.wait_start()
    worker.send_signal(signal.SIGTERM)
    shop.wait(lambda: "stopping: 1 task running" in shop.log(), worker)

    result.revoke(terminate=True)

    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=10)
    assert worker.wait(20) == 0


def test_a_run_that_ignores_one_signal_is_sent_the_next(open_shop: OpenShop) -> None:
    shop = open_shop("""
@app.task
def stubborn():
    signal.signal(signal.SIGTERM, lambda *_: note("ignored"))
    note("start", "stubborn")
    while True:
        time.sleep(0.01)
""")
    result = shop.tasks.stubborn.delay()
    worker = shop.start("-c", "1")
    shop.wait_start("stubborn")

    result.revoke(terminate=True)
    shop.wait(lambda: shop.notes("ignored"), worker)
    assert result.state != "REVOKED"
    result.revoke(terminate=True, signal="KILL")

    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=10)


# Messages that are not what they should be


def test_an_unknown_task_is_left_for_a_worker_that_knows_it(open_shop: OpenShop) -> None:
    shop = open_shop("@app.task\ndef newer():\n    return 'new'\n")
    code = (shop.folder / "tasks.py").read_text()
    (shop.folder / "old").mkdir()
    (shop.folder / "old" / "tasks.py").write_text(code.replace("def newer", "def older"))
    shop.start("-c", "1", "--workdir", "old", name="old")
    result = shop.tasks.newer.delay()
    wait_until(lambda: result.detail == "parked")

    assert shop.tasks.add.delay(1, 2).get(timeout=10) == 3
    assert "unknown task 'tasks.newer'" in shop.log("old")
    assert result.state == "PENDING"
    shop.start("-c", "1", name="new")

    assert result.get(timeout=10) == "new"


# Queues and time


def test_queues_are_chosen_and_excluded(open_shop: OpenShop) -> None:
    shop = open_shop(task_queues="high,low,default")
    shop.release()
    high, low, other = (shop.hold(queue=name) for name in ("high", "low", "default"))

    ended = shop.start("-c", "1", "-Q", "high,low", "-X", "low", "--burst", ready=False)
    assert ended.wait(20) == 0
    assert (high.state, low.state, other.state) == ("SUCCESS", "PENDING", "PENDING")

    ended = shop.start("-c", "1", "-X", "low", "--burst", ready=False)
    assert ended.wait(20) == 0
    assert (low.state, other.state) == ("PENDING", "SUCCESS")


def test_a_delayed_task_starts_on_time_and_never_early(open_shop: OpenShop) -> None:
    shop = open_shop("""
@app.task(bind=True)
def once_more(self):
    note("start", "retried", self.request.retries, os.getpid(), time.time())
    if not self.request.retries:
        raise self.retry(countdown=0.3)
""")
    shop.release("a", "b")
    shop.start("-c", "1")
    late = []
    for name in ("a", "b"):
        due = time.time() + 0.3
        shop.hold(name, countdown=0.3).get(timeout=10)
        late.append(float(shop.starts(name)[0][2]) - due)
    shop.tasks.once_more.delay().get(timeout=10)
    first, second = (float(words[2]) for words in shop.starts("retried"))
    late.append(second - first - 0.3)

    assert all(0 <= one <= 0.25 for one in late), late  # 0.05 on a machine of one's own
    assert min(late) <= 0.05, late


# Children that are replaced


def test_a_child_is_replaced_after_its_tasks_or_its_memory(open_shop: OpenShop) -> None:
    shop = open_shop("""
@app.task
def pid():
    return os.getpid()

@app.task
def hoard():
    global kept
    kept = b"x" * 150_000_000
    return os.getpid()
""")
    limits = ("--max-tasks-per-child", "3", "--max-memory-per-child", "100000")
    shop.start("-c", "1", *limits)

    pids = [shop.tasks.pid.delay().get(timeout=10) for _ in range(6)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3]
    hoarder = shop.tasks.hoard.delay().get(timeout=10)
    assert shop.tasks.pid.delay().get(timeout=10) != hoarder


@pytest.mark.traced
@pytest.mark.parametrize(
    ("source", "flags", "said"),
    [
        ("", ("--max-memory-per-child", "1000"), "before its first task"),
        (
            "@signals.worker_process_init.connect\ndef die(**_):\n    os._exit(3)\n",
            (),
            "children keep ending at their start: exit status 3",
        ),
    ],
)
def test_a_worker_that_can_have_no_children_ends_and_says_why(
    open_shop: OpenShop, source: str, flags: tuple[str, ...], said: str
) -> None:
    shop = open_shop(source)
    result = shop.hold()

    worker = shop.start("-c", "2", *flags, ready=False)

    assert worker.wait(20) == 1
    assert said in shop.log()
    assert (shop.record(result).state, shop.record(result).deliveries) == ("queued", 0)
    assert shop.left_behind() == []


def test_a_receiver_that_fails_at_the_start_of_a_child_is_only_logged(
    open_shop: OpenShop,
) -> None:
    shop = open_shop(
        "@signals.worker_process_init.connect\ndef broken(**_):\n    raise KeyError('no')\n"
    )
    shop.start("-c", "1")

    assert shop.tasks.add.delay(1, 2).get(timeout=10) == 3
    assert "KeyError: 'no'" in shop.log()


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "solo"])
def test_a_burst_runs_plain_and_async_tasks_and_ends_with_0(
    open_shop: OpenShop, pool: str
) -> None:
    shop = open_shop("""
@app.task
async def later(n):
    await asyncio.sleep(0.001)
    return n + 1
""")
    plain = [shop.tasks.add.delay(i, i) for i in range(20)]
    later = [shop.tasks.later.delay(i) for i in range(20)]

    worker = shop.start("-c", "2", "-P", pool, "--burst", ready=False)

    assert worker.wait(20) == 0, shop.log()
    assert [one.result for one in plain] == [2 * i for i in range(20)]
    assert [one.result for one in later] == [i + 1 for i in range(20)]
    assert shop.left_behind() == []


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "solo"])
def test_awaiting_a_result_in_a_task_is_refused_and_stops_no_worker(
    open_shop: OpenShop, pool: str
) -> None:
    shop = open_shop("""
from liteq import allow_join_result

@app.task
async def awaits():
    return await (await add.adelay(1, 1))

@app.task
async def awaits_in_another():
    async with asyncio.TaskGroup() as several:
        return await several.create_task(awaits.run())

@app.task
async def allowed(ended):
    with allow_join_result():
        return await app.AsyncResult(ended)
""")
    ended = shop.tasks.add.delay(1, 2)
    results = [shop.tasks.awaits.delay(), shop.tasks.awaits_in_another.delay()]

    shop.start("-c", "1", "-P", pool)

    assert ended.get(timeout=10) == 3
    for result in results:
        error = result.get(timeout=10, propagate=False)
        assert "inside a task" in repr(error)
    assert shop.tasks.allowed.delay(ended.id).get(timeout=10) == 3


FORKS = """
import multiprocessing, signal

def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

@app.task
def leaves():
    child = os.fork()
    if child == 0:
        sys.exit(3)  # the end of the attempt, which is not this process's to tell
    return ended(child)

@app.task
def starts():
    child = multiprocessing.get_context("fork").Process(target=os.getpid)
    child.start()
    child.join()
    return child.exitcode

@app.task
async def leaves_later():
    child = os.fork()
    return ended(child) if child else "a copy"

@app.task
def signals_to(*numbers):
    codes = []
    for number in numbers:
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(tell, b"!")
            signal.pause()
        os.read(ready, 1)
        os.kill(child, number)
        codes.append(ended(child))
    return codes
"""


@pytest.mark.parametrize("pool", ["threads", "asyncio", "solo"])
def test_what_a_task_forks_in_a_worker_is_no_worker(open_shop: OpenShop, pool: str) -> None:
    shop = open_shop(FORKS)
    worker = shop.start("-c", "1", "-P", pool)

    assert shop.tasks.leaves.delay().get(timeout=10) == 0
    assert shop.tasks.starts.delay().get(timeout=10) == 0
    assert shop.tasks.leaves_later.delay().get(timeout=10) == 0
    sent = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # multiprocessing sends the first
    assert shop.tasks.signals_to.delay(*sent).get(timeout=10) == [-number for number in sent]
    assert shop.tasks.add.delay(1, 2).get(timeout=10) == 3

    assert shop.stop(worker) == 0
    assert shop.log().count("replacing all children") == 0


OPENS_AT_FORK = """
from liteq import signals

opened = []

def reopen():
    opened.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(8))

@signals.worker_ready.connect
def begin(**_):
    os.register_at_fork(after_in_child=reopen)

@app.task
def still_open():
    return [os.readlink(f"/proc/self/fd/{number}") for number in opened]
"""


def test_what_a_program_opens_in_each_forked_process_stays_open(open_shop: OpenShop) -> None:
    shop = open_shop(OPENS_AT_FORK)
    worker = shop.start("-c", "1", "--max-tasks-per-child", "1")

    assert shop.tasks.still_open.delay().get(timeout=10) == []  # forked before it was ready
    for _ in range(2):
        assert shop.tasks.still_open.delay().get(timeout=10) == [os.devnull] * 8

    assert shop.stop(worker) == 0


def test_spawned_children_are_like_the_worker(open_shop: OpenShop) -> None:
    shop = open_shop("@app.task\ndef limit():\n    return app.conf.task_time_limit\n")
    for name in ("more", "extra"):
        (shop.folder / f"{name}.py").write_text(
            f"from tasks import app\n@app.task\ndef {name}():\n    return {name!r}\n"
        )
    flags = ("--pool-start-method", "spawn", "-I", "more", "task_time_limit=77")
    shop.start("-c", "1", *flags, LITEQ_INCLUDE="extra")

    limit, more, extra = (
        shop.app.send_task(n) for n in ("tasks.limit", "more.more", "extra.extra")
    )

    assert limit.get(timeout=10) == 77
    assert more.get(timeout=10) == "more"
    assert extra.get(timeout=10) == "extra"
    assert f"Task more.more[{more.id}] succeeded" in shop.log()


# The store


@pytest.mark.parametrize("replaced", [False, True])
def test_a_store_that_is_deleted_or_replaced_ends_the_worker_with_6(
    open_shop: OpenShop, replaced: bool
) -> None:
    shop = open_shop(worker_lease_timeout=3.0)
    shop.hold()
    worker = shop.start("-c", "1")
    pid = int(shop.wait_start()[1])

    store = shop.folder / "store" / "store.db"
    if replaced:
        shutil.copy(store, shop.folder / "copy")
        os.replace(shop.folder / "copy", store)
    else:
        store.unlink()

    assert worker.wait(10) == 6
    assert not is_running(pid)
    assert f"{store} was {'replaced' if replaced else 'deleted'} while in use" in shop.log()


LOCKER = """
import sys, apsw
db = apsw.Connection(sys.argv[1])
db.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def locker() -> Iterator[Callable[[Shop], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def lock(shop: Shop) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", LOCKER, str(shop.folder / "store" / "store.db")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        process.send_signal(signal.SIGSTOP)
        return process

    yield lock
    for process in started:
        process.kill()
        process.communicate()


def test_a_worker_outlasts_a_writer_that_holds_the_store(
    open_shop: OpenShop, locker: Callable[[Shop], subprocess.Popen[bytes]]
) -> None:
    shop = open_shop(broker_transport_options={"busy_timeout": 0.2})
    result = shop.hold()
    worker = shop.start("-c", "1")
    shop.wait_start()

    writer = locker(shop)
    shop.release()
    shop.wait(lambda: shop.log().count("trying again") >= 2, worker)
    assert result.state == "STARTED"
    writer.kill()

    assert result.get(timeout=10) == ["hold", 1]
    assert shop.tasks.add.delay(1, 2).get(timeout=10) == 3


CALLER = """
import sys
from liteq.brokers.sqlite import SqliteBroker
broker = SqliteBroker(sys.argv[1], busy_timeout=2.0)
broker.queues()
print("ready", flush=True)
sys.stdin.readline()
broker.pause("mail")
"""


def test_a_writer_that_was_stopped_does_not_blame_another_for_that(tmp_path: Path) -> None:
    broker = SqliteBroker(str(tmp_path / "store"))
    broker.pause("mail")
    broker.close()
    with (
        (tmp_path / "store" / "gate").open("r+b") as gate,
        subprocess.Popen(
            [sys.executable, "-c", CALLER, str(tmp_path / "store")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as caller,
    ):
        assert caller.stdin is not None
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"ready\n"
        fcntl.flock(gate, fcntl.LOCK_EX)
        caller.stdin.write(b"\n")
        caller.stdin.flush()
        await_looks(caller)
        caller.send_signal(signal.SIGSTOP)
        until = time.monotonic() + 2.5  # longer than it may wait
        wait_until(lambda: time.monotonic() > until)

        caller.send_signal(signal.SIGCONT)
        await_looks(caller)
        fcntl.flock(gate, fcntl.LOCK_UN)

        assert caller.communicate(timeout=10)[1] == b""
        assert caller.returncode == 0


def await_looks(process: subprocess.Popen[bytes]) -> None:
    """Wait until it has slept a few times more, or has ended."""
    status = Path(f"/proc/{process.pid}/status")

    def slept() -> int:
        return int(status.read_text().split("nonvoluntary", 1)[0].rsplit(":", 1)[1])

    before = slept()
    wait_until(lambda: process.poll() is not None or slept() > before + 5)


def test_a_worker_outlasts_a_disk_that_takes_nothing(open_shop: OpenShop) -> None:
    shop = open_shop()
    result = shop.hold()
    worker = shop.start("-c", "1")
    shop.wait_start()

    _, most = resource.prlimit(
        worker.pid, resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY)
    )
    shop.release()
    shop.wait(lambda: shop.log().count("trying again") >= 2, worker)
    assert result.state == "STARTED"
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (most, most))

    assert result.get(timeout=15) == ["hold", 1]
    assert shop.tasks.add.delay(1, 2).get(timeout=10) == 3


@pytest.mark.traced
def test_a_worker_told_to_stop_does_not_wait_for_ever_for_the_store(
    open_shop: OpenShop, locker: Callable[[Shop], subprocess.Popen[bytes]]
) -> None:
    shop = open_shop(broker_transport_options={"busy_timeout": 0.2})
    result = shop.hold()
    worker = shop.start("-c", "1", "--grace", "0.1")
    shop.wait_start()
    writer = locker(shop)

    assert shop.stop(worker) == 6
    assert "1 outcome not recorded" in shop.log()
    writer.kill()
    writer.wait()
    shop.release()
    shop.start("-c", "1", name="second")

    assert result.get(timeout=10) == ["hold", 2]


def test_a_full_store_refuses_callers_and_is_worked_off(open_shop: OpenShop) -> None:
    shop = open_shop(
        broker_transport_options={"max_size": 2_000_000},
        result_expires=3600,
    )
    blob = "x" * 50_000
    taken: list[Any] = []
    with pytest.raises(QueueFull):
        taken.extend(shop.tasks.add.delay(blob, "y") for _ in range(100))
    assert taken

    worker = shop.start("-c", "2", "--burst", ready=False)

    assert worker.wait(20) == 0, shop.log()
    assert {one.state for one in taken} == {"SUCCESS"}


# The heart


@pytest.mark.traced
def test_a_worker_stopped_beyond_its_lease_comes_back_under_a_new_id(
    open_shop: OpenShop,
) -> None:
    # The other worker gives the first one up, but consumes another queue: so the first is
    # given the very message of which its child still runs the first start.
    shop = open_shop(worker_lease_timeout=1.0)
    shop.start("-c", "1", "-Q", "other", name="other")
    result = shop.hold()
    worker = shop.start("-c", "2", name="frozen")
    shop.wait_start()
    (before,) = [info.id for info in shop.app.broker.workers() if "frozen" in info.name]

    shop.freeze(worker)
    wait_until(lambda: "took back 1 message" in shop.log("other"), within=15)
    worker.send_signal(signal.SIGCONT)
    number, _, _ = shop.wait_start(count=2)
    shop.release()

    assert number == "2"
    assert result.get(timeout=10) == ["hold", 2]
    shop.wait(
        lambda: "was refused: this worker had lost the lease" in shop.log("frozen"), worker
    )
    assert shop.tasks.add.delay(1, 2).get(timeout=10) == 3
    (after,) = [info.id for info in shop.app.broker.workers() if "frozen" in info.name]
    assert after != before
    assert shop.stop(worker) == 0


ALONE = """
@app.task(bind=True, max_concurrency=1)
def alone(self, name):
    note("start", name, self.request.deliveries, os.getpid(), time.time())
    while not os.path.exists(FOLDER + "/go-" + name):
        time.sleep(0.005)
    note("end", name)
    return name
"""


def test_what_a_worker_stopped_beyond_its_lease_runs_holds_no_slot_any_more(
    open_shop: OpenShop,
) -> None:
    shop = open_shop(ALONE, worker_lease_timeout=1.0)
    frozen = shop.start("-c", "2", name="frozen")
    first = shop.tasks.alone.delay("first")
    shop.wait_start("first")
    shop.start("-c", "2", name="other")
    second = shop.tasks.alone.delay("second")
    wait_until(lambda: second.detail == "limited")

    shop.freeze(frozen)
    wait_until(lambda: len(shop.notes("start")) == 2, within=15)

    # The child of the first start runs on, and one more in its place, never two.
    assert shop.notes("end") == []
    assert sorted([first.detail, second.detail]) == ["limited", "running"]
    frozen.send_signal(signal.SIGCONT)
    shop.release("first", "second")
    assert [first.get(timeout=10), second.get(timeout=10)] == ["first", "second"]
    assert shop.tasks.alone.delay("first").get(timeout=10) == "first"


def test_a_solo_worker_keeps_the_lease_of_a_task_longer_than_it(open_shop: OpenShop) -> None:
    shop = open_shop(worker_lease_timeout=0.5)
    shop.start("-c", "1", "-Q", "other", name="other")
    result = shop.hold()
    shop.start("-P", "solo", name="solo")
    began = float(shop.wait_start()[2])

    wait_until(lambda: time.time() > began + 1.5)
    shop.release()

    assert result.get(timeout=10) == ["hold", 1]
    assert "took back" not in shop.log("other")


def test_the_watchdog_of_a_solo_worker_is_fed_while_a_long_task_runs(
    open_shop: OpenShop,
) -> None:
    shop = open_shop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(shop.folder / "notify"))
        manager.settimeout(10)
        worker = shop.start(
            "-P", "solo", NOTIFY_SOCKET=str(shop.folder / "notify"), WATCHDOG_USEC="400000"
        )
        result = shop.hold()
        began = float(shop.wait_start()[2])

        def hear() -> float:
            while manager.recv(100) != b"WATCHDOG=1":
                pass
            return time.time()

        wait_until(lambda: hear() > began + 1.5)  # all that was said before then is read, too
        shop.release()

        assert result.get(timeout=10) == ["hold", 1]
        hear()  # of the loop again, which is idle
        assert shop.stop(worker) == 0


# What receivers of signals hear

RECEIVERS = """
def listen(name):
    def receiver(sender=None, **kwargs):
        request = kwargs.get("request")
        words = {
            "task_revoked": lambda: (sender.name, kwargs["terminated"], kwargs["expired"],
                                     kwargs["signum"], request.args),
            "task_received": lambda: (request.id,),
            "task_unknown": lambda: (kwargs["name"], kwargs["id"]),
            "task_failure": lambda: (sender.name, type(kwargs["exception"]).__name__,
                                     kwargs["args"], os.getpid() == PARENT,
                                     sender.request.id == kwargs["task_id"],
                                     (sender.request.headers or {}).get("tenant")),
            "task_dead": lambda: (kwargs["name"],),
            "task_rejected": lambda: (kwargs["message"].task,),
            "worker_shutting_down": lambda: (sender, kwargs["sig"], kwargs["how"]),
        }.get(name, lambda: ())()
        note("signal", name, *words)
    getattr(signals, name).connect(receiver, weak=False)

PARENT = os.getpid()
for name in ("worker_init", "worker_ready", "worker_shutting_down", "worker_shutdown",
             "worker_before_create_process", "worker_process_init",
             "worker_process_shutdown", "celeryd_init",
             "celeryd_after_setup", "task_received", "task_revoked", "task_rejected",
             "task_unknown", "task_failure", "task_dead"):
    listen(name)

@app.task(time_limit=0.2)
def slow(n):
    time.sleep(1000)

@app.task(acks_late=False)
def gone():
    os._exit(1)
"""


FAILING_RECEIVERS = """
def received(request=None, **kwargs):
    raise ValueError(f"received {request.args}")

def failed(args=(), **kwargs):
    raise ValueError(f"failed with {args}")

signals.task_received.connect(received, weak=False)
signals.task_failure.connect(failed, weak=False)

@app.task(sensitive="code", acks_late=False)
def enter(code):
    os._exit(1)
"""


def test_what_receivers_raise_in_the_worker_is_logged_without_secrets(
    open_shop: OpenShop,
) -> None:
    shop = open_shop(FAILING_RECEIVERS)
    worker = shop.start("-c", "1", "-P", "prefork", "-l", "info")

    shop.tasks.enter.delay("hunter2-canary").get(timeout=10, propagate=False)
    assert shop.stop(worker) == 0

    log = shop.log()
    assert "ValueError: received ('********',)" in log
    assert "ValueError: failed with ('********',)" in log
    assert "canary" not in log


@pytest.mark.traced
def test_signals_are_sent_when_and_where_celery_sends_them(open_shop: OpenShop) -> None:
    shop = open_shop(RECEIVERS)
    broken = make("tasks.add", b"?")
    unknown = make("tasks.nowhere")
    worker = shop.start("-c", "2", "-P", "prefork", "-l", "info")
    held = shop.hold()
    shop.wait_start()
    held.revoke(terminate=True)
    expired = shop.hold("x", countdown=0.1, expires=0.05)
    shop.app.broker.enqueue([broken, unknown])
    slow = shop.tasks.slow.delay(7)
    gone = shop.tasks.gone.apply_async(headers={"tenant": "a"})
    for one in (held, expired, slow, gone):
        one.get(timeout=10, propagate=False)
    wait_until(lambda: shop.app.broker.browse("dead"))
    assert shop.stop(worker, signal.SIGINT) == 0

    said = [" ".join(words[1:]) for words in shop.notes("signal")]
    life = [
        line
        for line in said
        if not line.startswith(("task_", "worker_process", "worker_before"))
    ]
    assert life == [
        "celeryd_init",
        "worker_init",
        "celeryd_after_setup",
        "worker_ready",
        "worker_shutting_down w@shop SIGINT Warm",
        "worker_shutdown",
    ]
    assert said.count("worker_before_create_process") >= said.count("worker_process_init") >= 2
    assert said.index("worker_before_create_process") < said.index("worker_process_init")
    assert said.count("worker_process_shutdown") == 2
    assert "task_revoked tasks.hold True False 15 ('hold',)" in said
    assert "task_failure tasks.slow TimeLimitExceeded (7,) True True None" in said
    assert "task_failure tasks.gone WorkerLostError () True True a" in said
    assert f"task_unknown tasks.nowhere {unknown.id}" in said
    assert "task_rejected tasks.add" in said
    assert "task_dead tasks.add" in said
    assert {f"task_received {one.id}" for one in (held, slow, gone)} <= set(said)
