"""Tasks that are coroutines, and a caller that is one.

Run:  python examples/async_tasks.py

`async def` tasks run in every pool. The asyncio pool runs many of them at once on one
event loop: fifty waits of 0.2 s take little longer than one.

Prints:
    awaited: 42
    fifty waits at once took less than 3 s: True
"""

from __future__ import annotations

import asyncio
import time

from liteq import Liteq

app = Liteq("async")


@app.task
async def double(x: int) -> int:
    await asyncio.sleep(0.01)
    return x * 2


@app.task
async def wait(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def main() -> None:
    result = await double.adelay(21)  # neither sending nor waiting blocks the event loop
    print("awaited:", await result)

    begun = time.monotonic()
    waits = [await wait.adelay(0.2) for _ in range(50)]
    await asyncio.gather(*(result.aget(timeout=10) for result in waits))
    print("fifty waits at once took less than 3 s:", time.monotonic() - begun < 3)


if __name__ == "__main__":
    with app.worker(pool="asyncio", concurrency=50):
        asyncio.run(main())
