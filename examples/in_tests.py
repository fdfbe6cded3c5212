"""Tasks in a test suite: run in place, with no worker and no store.

Run:  python examples/in_tests.py

With `task_always_eager`, `delay()` runs the task before it returns, with the same code that
a worker uses. `task_eager_propagates` raises what the task raised.

Prints:
    ready at once: True 5
    retried in place: third time lucky
    raised here: ZeroDivisionError
"""

from __future__ import annotations

from liteq import Liteq

app = Liteq("tests", task_always_eager=True, task_eager_propagates=True)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task(bind=True)
def lucky(self) -> str:
    if self.request.retries < 2:
        raise self.retry(countdown=3600)  # no waiting in eager mode
    return "third time lucky"


@app.task
def divide(x: int, y: int) -> float:
    return x / y


if __name__ == "__main__":
    result = add.delay(2, 3)
    print("ready at once:", result.ready(), result.get())
    print("retried in place:", lucky.delay().get())
    try:
        divide.delay(1, 0)
    except ZeroDivisionError as exc:
        print("raised here:", type(exc).__name__)
