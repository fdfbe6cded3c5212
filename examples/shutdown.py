"""What happens to running tasks when a worker stops.

Run:  python examples/shutdown.py

A warm stop (SIGTERM, Ctrl-C) waits for running tasks, up to a grace period. What is not
done by then goes back to the store and is started elsewhere at once, with no delivery
counted against it.

Prints:
    grace 10 s: the short task is SUCCESS
    grace 0.2 s: the long task is PENDING, in the store as queued
    another worker: the long task is SUCCESS
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from liteq import Liteq

app = Liteq("shutdown")


@app.task(bind=True)
def work(self, seconds: float) -> None:
    self.update_state(state="WORKING")
    time.sleep(seconds)


@contextmanager
def worker(grace: float) -> Iterator[None]:
    command = [sys.executable, "-m", "liteq", "-A", __file__, "worker", "-q", "-l", "critical"]
    process = subprocess.Popen([*command, "-c", "1", "--grace", str(grace)])
    try:
        yield
    finally:
        process.terminate()  # SIGTERM: a warm stop
        process.wait()


def until_working(result):
    while result.state != "WORKING":
        time.sleep(0.01)
    return result


if __name__ == "__main__":
    with worker(grace=10):
        short = until_working(work.delay(0.5))
    print(f"grace 10 s: the short task is {short.state}")

    with worker(grace=0.2):
        long = until_working(work.delay(1.0))
    print(f"grace 0.2 s: the long task is {long.state}, in the store as {long.detail}")

    with worker(grace=10):
        long.get(timeout=10)
    print(f"another worker: the long task is {long.state}")
