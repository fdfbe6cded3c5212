"""FlexiQ on SQLite."""

from __future__ import annotations

import os
from typing import Any

from flexiq import Queue

from benchmarks.effects import record, slow

queue = Queue(db_path=f"{os.environ['BENCH_FOLDER']}/flexiq.db", workers=2)
noop = queue.task()(record)
sleeper = queue.task()(slow)
enqueue, enqueue_sleep = noop.delay, sleeper.delay


def wait(handle: Any) -> int:
    return handle.result(timeout=30)
