"""Huey on SQLite. It knows fsync or none at all; "normal" stands for none, which is faster
than SQLite's NORMAL, and a power loss may damage the file."""

from __future__ import annotations

import os

from huey import SqliteHuey
from huey.api import Result

from benchmarks.effects import record

huey = SqliteHuey(
    "bench",
    filename=f"{os.environ['BENCH_FOLDER']}/huey.db",
    fsync=os.environ["BENCH_DURABILITY"] == "full",
)
enqueue = noop = huey.task(name="noop")(record)
result = huey.result


def wait(handle: Result) -> int:
    return handle.get(blocking=True, timeout=30)
