"""Tasks that fail and run again.

Run:  python examples/retries.py

`fetch` is retried by itself for the errors it names, with a growing delay. `order` decides
on its own. Every attempt that failed is kept with its error.

Prints:
    fetch: page 7 after 2 retries
      attempt 1 retried: ConnectionError('try 0: no route')
      attempt 2 retried: ConnectionError('try 1: no route')
    order: gave up with OutOfStock('widget') after 1 retry
"""

from __future__ import annotations

from liteq import Liteq

app = Liteq("retries")


class OutOfStock(Exception):
    """What the shop says when it has none left."""


@app.task(bind=True, autoretry_for=(ConnectionError,), retry_backoff=True, retry_backoff_max=1)
def fetch(self, page: int) -> str:
    if self.request.retries < 2:
        raise ConnectionError(f"try {self.request.retries}: no route")
    return f"page {page} after {self.request.retries} retries"


@app.task(bind=True, max_retries=1)
def order(self, item: str) -> None:
    try:
        ask_shop(item)
    except OutOfStock as exc:
        raise self.retry(exc=exc, countdown=0.1) from exc  # the last one raises exc itself


def ask_shop(item: str) -> None:
    raise OutOfStock(item)


if __name__ == "__main__":
    with app.worker(concurrency=2):
        fetched, ordered = fetch.delay(7), order.delay("widget")

        print("fetch:", fetched.get(timeout=20))
        for attempt in fetched.attempts:
            print(f"  attempt {attempt.number} {attempt.outcome}: {attempt.exception!r}")

        error = ordered.get(timeout=20, propagate=False)
        print(f"order: gave up with {error!r} after {ordered.retries} retry")
