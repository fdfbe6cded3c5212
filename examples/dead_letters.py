"""A task that kills its process each time ends as a dead letter, not in an endless loop.

Run:  python examples/dead_letters.py

The message is delivered again each time its process dies, `max_deliveries` times at most.
Then it is kept with its reason and its bytes, and can be given a fresh start.
On the command line: `liteq dead list`, `liteq dead redrive ID`.

Prints:
    state: FAILURE, WorkerLostError
    kept as a dead letter after 2 deliveries
      delivery 1: lost
      delivery 2: lost
    given a fresh start: 1
    state: SUCCESS, result: parsed
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from liteq import Liteq

app = Liteq("dead")
repaired = Path(__file__).with_suffix(".repaired")


@app.task(max_deliveries=2)
def parse() -> str:
    if not repaired.exists():
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
    return "parsed"


if __name__ == "__main__":
    with app.worker(concurrency=1, pool="prefork"):
        result = parse.delay()
        error = result.get(timeout=20, propagate=False)
        print(f"state: {result.state}, {type(error).__name__}")
        [letter] = app.broker.browse("dead")
        print(f"kept as a dead letter after {letter.deliveries} deliveries")
        for attempt in result.attempts:
            print(f"  delivery {attempt.number}: {attempt.outcome}")

        repaired.touch()
        try:
            print("given a fresh start:", len(app.broker.redrive([letter.id])))
            again = parse.AsyncResult(letter.id)
            value = again.get(timeout=20)
            print(f"state: {again.state}, result: {value}")
        finally:
            repaired.unlink()
