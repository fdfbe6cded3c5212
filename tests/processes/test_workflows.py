"""Workflows run by real worker processes, some of which are killed on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from liteq.canvas import chain, chord, group
from processes.shop import Shop

pytestmark = pytest.mark.process

OpenShop = Callable[..., Shop]

TASKS = """
from liteq import Signature

@app.task
def total(values):
    note("total", len(values))
    return values

@app.task
def tell(value, word):
    note(word, value)
    return value

@app.task(bind=True)
def become(self, sig, dies=False):
    note("become", self.request.deliveries)
    try:
        self.replace(Signature.from_dict(sig, app=app))
    finally:
        if dies and self.request.deliveries == 1:
            os.kill(os.getpid(), 9)

@app.task(bind=True)
def extend(self, n, sig):
    self.add_to_chord(Signature.from_dict(sig, app=app))
    note("extend", self.request.deliveries)
    if self.request.deliveries == 1:
        os.kill(os.getpid(), 9)
    return n
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    opened = Shop(tmp_path, TASKS)
    yield opened
    opened.close()


def test_a_chord_counts_each_member_once_though_a_child_is_killed(shop: Shop) -> None:
    tasks = shop.tasks
    header = [tasks.add.s(n, n) for n in range(40)]
    header.insert(20, tasks.hold.s())
    result = chord(header, tasks.total.s()).delay()
    shop.start("-c", "2")
    pid = int(shop.wait_start()[1])

    os.kill(pid, signal.SIGKILL)
    assert shop.wait_start(count=2)[0] == "2"
    shop.release()

    values = result.get(timeout=20)
    assert values == [*(2 * n for n in range(20)), ["hold", 2], *(2 * n for n in range(20, 40))]
    assert shop.notes("total") == [["total", "41"]]
    assert shop.app.workflow(result.id).wait(timeout=10) == "succeeded"


def test_a_workflow_goes_on_where_it_was_when_its_worker_is_killed(shop: Shop) -> None:
    tasks = shop.tasks
    steps = chain(
        tasks.add.s(1, 1),
        tasks.tell.s("first"),
        group(tasks.hold.si(), tasks.tell.s("beside")),
        tasks.total.s(),
    )
    result = steps.delay()
    worker = shop.start("-c", "2")
    shop.wait_start()
    shop.wait(result.parent[1].ready, worker)

    for pid in [worker.pid, *shop.children(worker)]:
        os.kill(pid, signal.SIGKILL)
    worker.wait()
    shop.start("-c", "2", name="second")
    shop.wait_start(count=2)
    shop.release()

    assert result.get(timeout=20) == [["hold", 2], 2]
    assert shop.notes("first") == [["first", "2"]]
    assert shop.notes("beside") == [["beside", "2"]]


def test_a_process_that_dies_before_its_end_has_replaced_nothing(shop: Shop) -> None:
    tasks = shop.tasks
    pair = group(tasks.tell.s(1, "a"), tasks.tell.s(2, "b"))
    result = chain(tasks.become.s(pair, True), tasks.total.s()).delay()
    shop.start("-c", "2")

    assert result.get(timeout=20) == [1, 2]
    assert shop.notes("become") == [["become", "1"], ["become", "2"]]
    assert (shop.notes("a"), shop.notes("b")) == ([["a", "1"]], [["b", "2"]])


def test_what_runs_in_its_place_is_started_again_as_that(shop: Shop) -> None:
    tasks = shop.tasks
    result = chain(tasks.become.s(tasks.hold.s()), tasks.tell.s("end")).delay()
    shop.start("-c", "1")
    first = shop.wait_start()

    os.kill(int(first[1]), signal.SIGKILL)
    second = shop.wait_start(count=2)
    shop.release()

    assert result.get(timeout=20) == ["hold", 2]
    assert (first[0], second[0]) == ("1", "2")
    assert shop.notes("become") == [["become", "1"]]
    attempts = [past.outcome for past in result.parent.attempts]
    assert attempts == ["replaced", "lost"]


def test_a_process_that_dies_before_its_end_has_added_nothing(shop: Shop) -> None:
    tasks = shop.tasks
    header = [tasks.extend.s(1, tasks.tell.s(9, "added")), tasks.add.s(1, 1)]
    result = chord(header, tasks.total.s()).delay()
    shop.start("-c", "2")

    assert result.get(timeout=20) == [1, 2, 9]
    assert shop.notes("extend") == [["extend", "1"], ["extend", "2"]]
    assert shop.notes("added") == [["added", "9"]]


def test_a_cancelled_workflow_ends_what_runs_and_starts_nothing(shop: Shop) -> None:
    tasks = shop.tasks
    steps = chain(tasks.hold.s().on_error(tasks.tell.si(0, "alarm")), tasks.tell.s("then"))
    result = steps.delay()
    worker = shop.start("-c", "1")
    shop.wait_start()
    workflow: Any = shop.app.workflow(result.id)

    answers = workflow.cancel(terminate=True)

    assert answers[result.parent.id] == "signalled"
    assert workflow.wait(timeout=20) == "revoked"
    shop.tasks.tell.delay(1, "alive").get(timeout=20)
    assert (shop.notes("then"), shop.notes("alarm")) == ([], [])
    assert worker.poll() is None
