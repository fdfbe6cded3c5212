"""A task every half second, sent only once each time although two beats run.

Run:  python examples/periodic.py

Each instant is fired in one transaction with its message, so beats need not know about each
other: an instant that one has fired, the other leaves alone. In production: `liteq beat`, or
`liteq worker -B`, on as many machines as you like.

Prints:
    ticks came, each for an instant of its own: True
    half a second apart: True
    paused, and due: never
"""

from __future__ import annotations

import time
from itertools import pairwise

from liteq import Liteq

app = Liteq("periodic")
instants: list[float] = []


@app.task(bind=True)
def tick(self) -> None:
    instants.append(self.request.headers["periodic_task_due"])


app.conf.beat_schedule = {"often": {"task": tick.name, "schedule": 0.5}}


if __name__ == "__main__":
    with app.worker(beat=True), app.worker(beat=True):
        while len(instants) < 4:
            time.sleep(0.05)
        app.schedules.pause("often")  # from any process; every beat hears of it

    seen = sorted(instants)
    print("ticks came, each for an instant of its own:", len(seen) == len(set(seen)))
    print("half a second apart:", all(abs(b - a - 0.5) < 1e-6 for a, b in pairwise(seen)))
    print("paused, and due:", app.schedules.get("often").next() or "never")
    app.schedules.resume("often")  # the store remembers: it would be paused at the next run
