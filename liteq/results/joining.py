"""Whether `get()`, or `await result`, may wait here: not inside a task, nor while a command
imports the app, unless the code there allows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from liteq import context

__all__ = [
    "allow_join_result",
    "assert_will_not_block",
    "denied_join_result",
    "importing",
]

_joins_allowed: ContextVar[bool] = ContextVar("liteq_joins_allowed", default=False)

_imported: ContextVar[str | None] = ContextVar("liteq_imported", default=None)


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Let `get()`, and `await result`, wait inside a task while this context is open."""
    token = _joins_allowed.set(True)
    try:
        yield
    finally:
        _joins_allowed.reset(token)


@contextmanager
def denied_join_result() -> Iterator[None]:
    """Undo an outer `allow_join_result` while this context is open."""
    token = _joins_allowed.set(False)
    try:
        yield
    finally:
        _joins_allowed.reset(token)


@contextmanager
def importing(name: str) -> Iterator[None]:
    """Refuse to wait while this context is open, for a command that imports a module: a call
    at its top level would wait for a worker that cannot start before the import ends."""
    token = _imported.set(name)
    try:
        yield
    finally:
        _imported.reset(token)


def assert_will_not_block(*, waits: bool = True) -> None:
    """Raise `RuntimeError` if a task runs here that has not allowed itself to wait, or if
    this `waits` for a worker while a command imports the app."""
    if _joins_allowed.get():
        return
    if waits and (name := _imported.get()) is not None:
        raise RuntimeError(
            f"result.get() while {name!r} is imported would wait for a worker that may be "
            "this process, and starts only after the import: put the call into a function, or "
            "under `if __name__ == '__main__':`"
        )
    running = context.current()
    if running is None or running.called_directly:
        return
    raise RuntimeError(
        "result.get() inside a task, or await result, can leave every process waiting for "
        "the others: link the tasks instead, or open `with allow_join_result():` if another "
        "worker runs them"
    )
