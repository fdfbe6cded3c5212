"""Run a task after a delay, at a given time, or not at all after a deadline.

Run:  python examples/later.py

A delayed call waits in the store, not in a worker's memory: a million of them cost a
worker nothing, and none is lost when the worker restarts.

Prints:
    sent: PENDING, in the store as scheduled
    countdown: started 2 s or more after the call: True
    eta: not before its time: True
    expires: REVOKED, because it had expired
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from liteq import Liteq

app = Liteq("later")


@app.task
def moment() -> float:
    return time.time()


if __name__ == "__main__":
    begun = time.time()
    soon = moment.apply_async(countdown=2.0)
    eta = datetime.now(UTC) + timedelta(seconds=0.6)
    at = moment.apply_async(eta=eta)
    never = moment.apply_async(expires=0.1)  # seconds, or a datetime
    print(f"sent: {soon.state}, in the store as {soon.detail}")

    time.sleep(0.2)  # no worker yet: the third call's time runs out
    with app.worker(concurrency=1):
        waited = soon.get(timeout=10) - begun
        print("countdown: started 2 s or more after the call:", waited >= 2.0)
        print("eta: not before its time:", at.get(timeout=10) >= eta.timestamp())
        error = never.get(timeout=10, propagate=False)
        print(f"expires: {never.state}, because it had {error}")
