"""One run for many calls, where a run costs much and each call in it little.

Run:  python examples/batches.py

With `flush_every`, a worker gathers calls and runs the function once for up to that many of
them, or, once the first has waited `flush_interval` seconds, for those that it has by then.
Each call has its own result, retries and end: one of the numbers here is not a number.

Prints:
    a run of 4 calls
    a run of 4 calls
    a run of 2 calls
    the squares: [0, 1, 4, 9, 'ValueError', 25, 36, 49, 64, 81]
"""

from __future__ import annotations

from typing import Any

from liteq import Liteq
from liteq.context import Context

app = Liteq("batches", broker="memory://")


@app.task(flush_every=4, flush_interval=0.5)
def square(calls: list[Context]) -> list[Any]:
    print(f"a run of {len(calls)} calls", flush=True)
    return [_square(*call.args) for call in calls]


def _square(given: Any) -> Any:
    return given**2 if isinstance(given, int) else ValueError(f"{given!r} is no number")


if __name__ == "__main__":
    with app.worker(concurrency=1):
        given: list[Any] = [0, 1, 2, 3, "four", 5, 6, 7, 8, 9]
        results = [square.delay(one) for one in given]
        ended = [result.get(timeout=20, propagate=False) for result in results]
        print(
            "the squares:", [type(v).__name__ if isinstance(v, Exception) else v for v in ended]
        )
