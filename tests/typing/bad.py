"""Mistakes that type checkers are to report: each in a line that ends in `# error`."""

from __future__ import annotations

from liteq import BoundTask, Graph, Liteq, Task, chord, shared_task
from liteq.testing import perform

app = Liteq("shop")


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task(bind=True)
def charge(self: BoundTask, order: int) -> str:
    return "ok"


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


@shared_task
def shared(x: int) -> float:
    return x / 2


class Add(Task[[int, int], int]):
    def run(self, x: int, y: int) -> int:
        return x + y


add.delay("1")  # error
app.register_task(Add()).delay("1", 2)  # error
add.delay()  # error
add.delay(1, 2, 3)  # error
add.delay(1, z=2)  # error
add.si("1")  # error
add("1")  # error
add.apply_async((1,), countdwn=5)  # error
add.apply_async((1,), countdown="soon")  # error
charge.delay()  # error
charge.delay("1")  # error
fetch.delay(1)  # error
shared.delay("1")  # error
app.task(max_retires=3)  # error
app.send_task("elsewhere", queu="q")  # error
add.s(1) | 5  # error
chord([add.s(1)], add.s(), on_error="go")  # error
Graph("g").add("a", add.s(1), before="b")  # error
text: str = add.delay(1).get()  # error
maybe: int = add.delay(1).get(propagate=False)  # error
words: str = (charge.s(1) | add.s()).delay().get()  # error
number: int = fetch("u")  # error

perform(add, "1")  # error
perform(add)  # error
