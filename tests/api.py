"""Apps for tests: on a store in memory, and gone from the process when the test is over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from liteq import Liteq, current
from liteq.brokers.base import Lease, Record
from liteq.outcome import Outcome


@contextmanager
def app_in_memory(**conf: Any) -> Iterator[Liteq]:
    """An app that is the current one, on a store in memory."""
    app = Liteq("shop", broker="memory://", **conf)
    try:
        yield app
    finally:
        app.close()
        forget_current()


def forget_current() -> None:
    """Leave no app to the next test."""
    current.set_default_app(None)
    current._thread.__dict__.clear()
    current._finalizers.clear()
    current._apps.clear()


def record(app: Liteq, id: str) -> Record:
    return app.broker.get([id])[id]


def claim(app: Liteq, *queues: str) -> Lease:
    """Claim the next message as a new worker."""
    worker = app.broker.register("w", queues or ("default",), 1, {})
    (lease,) = app.broker.claim(worker, queues or ("default",))
    return lease


def settle(app: Liteq, outcome: Outcome, *queues: str) -> str:
    """Claim the next message and settle it; return its id."""
    worker = app.broker.register("w", queues or ("default",), 1, {})
    (lease,) = app.broker.claim(worker, queues or ("default",))
    assert app.broker.settle(worker, lease, outcome)
    app.broker.unregister(worker)
    return lease.id
