"""The caller's side, in a process of its own: `python -m benchmarks.driver MODULE OPERATION
ARGUMENTS` prints what the operation returned. Arguments and answer are JSON."""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any


def enqueue(system: Any, number: int, first: int = 0) -> tuple[list[int], float]:
    """Enqueue in a loop: nanoseconds of each call, and CPU seconds of all."""
    handles, took = [], []
    cpu = time.process_time()
    for each in range(first, first + number):
        start = time.perf_counter_ns()
        handles.append(system.enqueue(each))
        took.append(time.perf_counter_ns() - start)
    cpu = time.process_time() - cpu
    _ids().write_text(json.dumps([handle.id for handle in handles]))
    return took, cpu


def results(system: Any) -> int:
    """Return how many of the tasks enqueued have left the right result."""
    ids = json.loads(_ids().read_text())
    return sum(system.result(id) == number for number, id in enumerate(ids))


def paced(system: Any, number: int) -> list[int]:
    """Enqueue with pauses, each task for an idle worker: the times of the calls."""
    called = []
    for each in range(number):
        called.append(time.monotonic_ns())
        system.enqueue(each)
        time.sleep(random.uniform(0.04, 0.06))
    return called


def round_trips(system: Any, number: int) -> list[int]:
    """Call and wait, one after the other: nanoseconds of each."""
    took = []
    for each in range(number):
        start = time.perf_counter_ns()
        assert system.wait(system.enqueue(each)) == each
        took.append(time.perf_counter_ns() - start)
    return took


def _ids() -> Path:
    return Path(os.environ["BENCH_FOLDER"], "ids.json")


if __name__ == "__main__":
    module, name, arguments = sys.argv[1:]
    system, own = importlib.import_module(module), globals().get(name)
    given = json.loads(arguments)
    print(json.dumps(own(system, **given) if own else getattr(system, name)(**given)))
