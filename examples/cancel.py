"""Calls that are no longer wanted.

Run:  python examples/cancel.py

A revoked call is a row in the store: it stays revoked, whichever process restarts.
`terminate` also ends a call that is already running.

Prints:
    waiting: revoked
    running: signalled
    waiting: REVOKED, running: REVOKED
    over already: settled
"""

from __future__ import annotations

import time

from liteq import Liteq

app = Liteq("cancel")


@app.task
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def until_started(result) -> None:
    while result.state == "PENDING":
        time.sleep(0.01)


if __name__ == "__main__":
    with app.worker(concurrency=1, pool="prefork"):
        running, waiting = nap.delay(60), nap.delay(60)
        until_started(running)
        print("waiting:", waiting.revoke())
        print("running:", running.revoke(terminate=True, wait=True, timeout=10))
        print(f"waiting: {waiting.state}, running: {running.state}")

        short = nap.delay(0)
        short.get(timeout=10)
        print("over already:", short.revoke())
