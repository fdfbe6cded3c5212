"""The thread whose database connections are a caller's, where that is one of Django's.

A connection of Django's belongs to a thread, with the transaction that a request or a test
has open on it. What a coroutine asks the database is asked in the thread that waits for it,
but only if it was asgiref that ran the one and had the other wait.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["bridge", "carried"]


def bridge() -> Any | None:
    """Return `asgiref.sync`, where coroutines and functions meet, in a process that has a
    Django project; else None. It imports nothing that Django has not."""
    django = sys.modules.get("django.apps")
    if django is None or not django.apps.ready:
        return None
    from asgiref import sync  # late: Django has it

    return sync


def carried(work: Callable[[], None]) -> Callable[[], None]:
    """Return what does this work in another thread, while the loop of this one stands still,
    and has its database asked in the thread that waits for that loop, if one does.

    asgiref notes that thread in `AsyncToSync.executors`, of which a mere copy of the
    context variables is not valid in another thread (since 3.12).
    """
    sync = bridge()
    executors = getattr(sync and sync.AsyncToSync, "executors", None)
    waiting = getattr(executors, "current", None)
    if executors is None or waiting is None:
        return work

    def carry() -> None:
        executors.current = waiting
        work()

    return carry
