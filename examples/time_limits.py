"""Tasks that take too long.

Run:  python examples/time_limits.py

The soft limit raises an exception inside the task, which can still clean up. The hard
limit kills the task's process, and a new one takes its place.

Prints:
    polite: stopped in time and cleaned up
    stubborn: FAILURE, TimeLimitExceeded(1.0)
    and the next task runs: done
"""

from __future__ import annotations

import time

from liteq import Liteq
from liteq.exceptions import SoftTimeLimitExceeded

app = Liteq("limits")


@app.task(soft_time_limit=0.3)
def polite() -> str:
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        return "stopped in time and cleaned up"
    return "never said"


@app.task(time_limit=1.0)
def stubborn() -> None:
    while True:
        try:
            time.sleep(60)
        except Exception:  # noqa: BLE001 (that is the point)
            continue


@app.task
def brief() -> str:
    return "done"


if __name__ == "__main__":
    with app.worker(concurrency=1, pool="prefork"):
        print("polite:", polite.delay().get(timeout=10))
        result = stubborn.delay()
        error = result.get(timeout=10, propagate=False)
        print(f"stubborn: {result.state}, {error}")
        print("and the next task runs:", brief.delay().get(timeout=10))
