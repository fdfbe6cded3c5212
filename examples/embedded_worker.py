"""Run tasks without a worker process: in a script, a notebook, a test.

Run:  python examples/embedded_worker.py

Prints:
    empty the queue: [0, 1, 4, 9]
    with threads beside: 16
    at once, with no store involved: 25
    as a plain function: 36
"""

from __future__ import annotations

from liteq import Liteq

app = Liteq("embedded")


@app.task
def square(x: int) -> int:
    return x * x


if __name__ == "__main__":
    results = [square.delay(x) for x in range(4)]
    app.run_until_empty()  # here and now, until nothing is left: good for cron jobs
    print("empty the queue:", [result.get() for result in results])

    with app.worker(pool="threads", concurrency=2):  # while the block is open
        print("with threads beside:", square.delay(4).get(timeout=10))

    print("at once, with no store involved:", square.apply([5]).get())
    print("as a plain function:", square(6))
