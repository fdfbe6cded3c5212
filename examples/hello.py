"""One task, one result.

Run:  python examples/hello.py

The worker runs in this program, so that one file shows both sides. In a real project the
worker is a program of its own: `liteq worker`.

Prints:
    hello, world
    5
"""

from __future__ import annotations

from liteq import Liteq

app = Liteq("hello")  # no broker given: a store in the folder hello.liteq beside this file


@app.task
def greet(name: str) -> str:
    return f"hello, {name}"


@app.task
def add(x: int, y: int) -> int:
    return x + y


if __name__ == "__main__":
    with app.worker(concurrency=2):
        greeting = greet.delay("world")  # in the store when delay() returns
        total = add.delay(2, 3)
        print(greeting.get(timeout=10))
        print(total.get(timeout=10))
