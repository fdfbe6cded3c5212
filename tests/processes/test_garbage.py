"""What a task leaves behind is gone soon, in all processes of a worker."""

from __future__ import annotations

from pathlib import Path

import pytest
from world import wait_until

from processes.shop import Shop, children_of

pytestmark = pytest.mark.process

TASKS = """
import gc
from liteq import garbage

gc.set_threshold(0)  # Python collects nothing by itself
garbage.EVERY = 0.05  # seconds, for once

class Frame:
    def __init__(self, who):
        self.who, self.me = who, self

    def __del__(self):
        note("gone", self.who, os.getpid())

@app.task
def leave():
    Frame("child")

@signals.worker_ready.connect
def parent_leaves(**_):
    Frame("parent")

@signals.beat_embedded_init.connect
def beat_leaves(**_):
    Frame("beat")
    gc.callbacks.append(lambda *_: note("looked", len(gc.get_objects())))

@app.task
def frozen():
    return gc.get_freeze_count()

# A beat that sleeps leaves no garbage and collects none: this one wakes.
app.conf.beat_schedule = {"often": {"task": frozen.name, "schedule": 0.2}}
"""


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    made = Shop(tmp_path, TASKS)
    yield made
    made.close()


def test_cycles_are_gone_soon_in_parent_child_and_beat(shop: Shop) -> None:
    worker = shop.start("-c", "1", "-B")
    shop.tasks.leave.delay()

    def gone() -> dict[str, int]:
        return {who: int(pid) for _, who, pid in shop.notes("gone")}

    wait_until(lambda: len(gone()) == 3, within=20)
    assert gone()["parent"] == worker.pid
    assert {gone()["child"], gone()["beat"]} == set(children_of(worker.pid))
    # What was there before the fork is not touched in a child or the beat, and so not copied.
    assert shop.tasks.frozen.delay().get(timeout=20) > 10_000
    looked_at = [int(objects) for name, objects in shop.notes("looked")]
    assert 0 < max(looked_at) < 20_000
