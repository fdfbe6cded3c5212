"""Store calls off the event loop: one thread of this process makes them in turn."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["off_loop"]

P = ParamSpec("P")
T = TypeVar("T")

_executor: Executor | None = None


def _forget() -> None:
    global _executor
    _executor = None  # a forked child has the object, but not its thread


os.register_at_fork(after_in_child=_forget)


async def off_loop(fun: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return `fun(*args, **kwargs)`, run in the thread while the event loop goes on.

    A call that was cancelled may still take effect: its outcome is unknown.
    """
    import asyncio  # late: whoever calls this has it, others never pay for it

    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_thread(), lambda: fun(*args, **kwargs))


def _thread() -> Executor:
    global _executor
    if _executor is None:
        from concurrent.futures import ThreadPoolExecutor  # late: for asyncio users only

        _executor = ThreadPoolExecutor(1, thread_name_prefix="liteq-store")
    return _executor
