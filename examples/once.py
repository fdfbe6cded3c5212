"""The same call made twice is one call, if you give it an id.

Run:  python examples/once.py

A web request may be repeated, or a cron job start twice. If the id is made from the work to
do, the second call finds the first. An id with other arguments is an error.

Prints:
    the same call: True
    charged: ['order-42']
    refused: AlreadyEnqueued
"""

from __future__ import annotations

from liteq import Liteq
from liteq.exceptions import AlreadyEnqueued

app = Liteq("once")
charged: list[str] = []


@app.task
def charge(order: str) -> None:
    charged.append(order)


if __name__ == "__main__":
    first = charge.apply_async(["order-42"], task_id="charge-order-42")
    again = charge.apply_async(["order-42"], task_id="charge-order-42")
    print("the same call:", first == again)
    app.run_until_empty()
    print("charged:", charged)
    try:
        charge.apply_async(["order-43"], task_id="charge-order-42")
    except AlreadyEnqueued as exc:
        print("refused:", type(exc).__name__)
