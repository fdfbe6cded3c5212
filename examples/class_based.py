"""A base class for tasks, with hooks and with state that a process keeps between calls.

Run:  python examples/class_based.py

There is one instance of a task in each process. What it stores on itself stays there, so a
connection is opened only once.

Prints:
    before save
    saved a with connection 1
    success: saved a with connection 1
    before save
    saved b with connection 1
    success: saved b with connection 1
    before save
    failure: ValueError('nothing to save')
"""

from __future__ import annotations

import itertools

from liteq import Liteq, Task

app = Liteq("classes")
connections = itertools.count(1)


class DatabaseTask(Task):
    """Opens its connection when it is first needed, and tells what happens."""

    _connection: int | None = None

    @property
    def connection(self) -> int:
        if self._connection is None:
            self._connection = next(connections)
        return self._connection

    def before_start(self, task_id, args, kwargs):
        print("before", self.name.rpartition(".")[2])

    def on_success(self, retval, task_id, args, kwargs):
        print("success:", retval)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        print(f"failure: {exc!r}")


@app.task(bind=True, base=DatabaseTask)
def save(self, text: str) -> str:
    if not text:
        raise ValueError("nothing to save")
    print(f"saved {text} with connection {self.connection}")
    return f"saved {text} with connection {self.connection}"


if __name__ == "__main__":
    with app.worker(pool="threads", concurrency=1):
        for text in ("a", "b", ""):
            save.delay(text).get(timeout=10, propagate=False)
