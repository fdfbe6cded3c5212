"""A long task whose process is killed continues where it was, not from the beginning.

Run:  python examples/checkpoints.py

`self.checkpoint(value)` keeps how far the call has come, in its message. The next attempt
finds it as `self.request.checkpoint`: after a death, a retry, a stop of the worker, or
`liteq retry` of a call that failed. A stop of `liteq worker` need not wait for this task:
it ends at its next checkpoint, which is interruptible, and continues in the next worker.

Prints:
    attempt 1: from row 0
    attempt 2: from row 600
    rows copied: 1000, copied twice: 0
"""

from __future__ import annotations

import os
import signal
import tempfile

from liteq import BoundTask, Liteq

app = Liteq("copier")
ROWS = 1_000


@app.task(bind=True)
def copy(self: BoundTask, target: str) -> int:
    begin = self.request.checkpoint or 0
    print(f"attempt {self.request.deliveries}: from row {begin}", flush=True)
    for first in range(begin, ROWS, 100):
        with open(target, "a") as file:
            file.writelines(f"{row}\n" for row in range(first, first + 100))
        self.checkpoint(first + 100, interruptible=True)
        if first == 500 and begin == 0:
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
    return ROWS - begin


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, app.worker(concurrency=1, pool="prefork"):
        target = os.path.join(folder, "rows")
        copy.delay(target).get(timeout=20)
        with open(target) as file:
            rows = file.read().split()
        print(f"rows copied: {len(rows)}, copied twice: {len(rows) - len(set(rows))}")
