"""An event loop that runs to the end of one coroutine, whatever the others on it raise.

asyncio lets `SystemExit` and `KeyboardInterrupt` of any coroutine or callback out of the
loop, and anybody may call `loop.stop()`. Either leaves the loop as good as before, so it
can go on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # 50 ms to import: who has a loop has it already
    import asyncio

__all__ = ["run_to_end"]


def run_to_end(
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, Any],
    on_trouble: Callable[[BaseException | None], None],
) -> None:
    """Run the loop until the coroutine has ended. `on_trouble` is called with each exception
    that came out of the loop meanwhile, and with None when something had stopped it."""
    task = loop.create_task(coroutine)
    task.add_done_callback(lambda _: loop.stop())
    while not task.done():
        trouble: BaseException | None = None
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as exc:
            trouble = exc
        if not task.done():
            on_trouble(trouble)
            del trouble
