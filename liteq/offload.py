"""Store calls off the event loop: one thread of this process makes them in turn."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from concurrent.futures import Executor

__all__ = ["off_loop", "running_loop"]

P = ParamSpec("P")
T = TypeVar("T")

_executor: Executor | None = None


def _forget() -> None:
    global _executor
    _executor = None  # a forked child has the object, but not its thread


os.register_at_fork(after_in_child=_forget)


async def off_loop(fun: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return `fun(*args, **kwargs)`, run in the thread while the event loop goes on.

    It has a copy of the caller's context variables: receivers of signals are called there,
    and what they look up in them (a trace, a request) is the caller's. A call that was
    cancelled may still take effect: its outcome is unknown.
    """
    call = partial(copy_context().run, fun, *args, **kwargs)
    return await running_loop().run_in_executor(_thread(), call)


def running_loop() -> AbstractEventLoop:
    """Return the event loop that this coroutine runs on. Raises `RuntimeError`, with what to
    do, where there is none, as under trio."""
    import asyncio  # late: whoever calls this has it, others never pay for it

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "liteq's coroutines need a running asyncio event loop, and there is none here: "
            "under trio, call delay() and get() in a thread (trio.to_thread.run_sync)"
        ) from None


def _thread() -> Executor:
    global _executor
    if _executor is None:
        from concurrent.futures import ThreadPoolExecutor  # late: for asyncio users only

        _executor = ThreadPoolExecutor(1, thread_name_prefix="liteq-store")
    return _executor
