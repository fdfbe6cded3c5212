"""Whether `get()` may wait here: not inside a task, unless that has allowed itself to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from liteq import context

__all__ = ["allow_join_result", "assert_will_not_block", "denied_join_result"]

_joins_allowed: ContextVar[bool] = ContextVar("liteq_joins_allowed", default=False)


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Let `get()` wait inside a task while this context is open."""
    token = _joins_allowed.set(True)
    try:
        yield
    finally:
        _joins_allowed.reset(token)


@contextmanager
def denied_join_result() -> Iterator[None]:
    """Take an outer `allow_join_result` back while this context is open."""
    token = _joins_allowed.set(False)
    try:
        yield
    finally:
        _joins_allowed.reset(token)


def assert_will_not_block() -> None:
    """Raise `RuntimeError` if a task runs here and has not allowed itself to wait."""
    running = context.current()
    if running is None or running.called_directly or _joins_allowed.get():
        return
    raise RuntimeError(
        "result.get() inside a task can leave every process waiting for the others: "
        "link the tasks instead, or open `with allow_join_result():` if another worker "
        "runs them"
    )
