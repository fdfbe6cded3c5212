"""A real worker beside a test, in a thread or in processes of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from liteq import embedded
from liteq.signals import Signal
from liteq.testing.calls import check_app

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = [
    "start_worker",
    "test_worker_started",
    "test_worker_starting",
    "test_worker_stopped",
]

test_worker_starting = Signal("test_worker_starting")
test_worker_started = Signal("test_worker_started", ("worker",))
test_worker_stopped = Signal("test_worker_stopped", ("worker",))


@contextmanager
def start_worker(
    app: Liteq,
    concurrency: int = 1,
    pool: str = "threads",
    *,
    queues: Sequence[str] | None = None,
    hostname: str | None = None,
    shutdown_timeout: float = 10.0,
    perform_ping_check: bool = False,
    ping_task_timeout: float = 0.0,
    loglevel: Any = None,
    logfile: Any = None,
) -> Iterator[Any]:
    """Run a real worker of the app while the context is open; it is ready when this yields.

    `pool`: threads, asyncio or solo run in a thread of this process; "prefork" is a process
    of its own with children, for which the app must be importable, and its store not in
    memory. At the end it stops: what is running may finish within `shutdown_timeout`
    seconds, and is given back otherwise. Yields the worker (of prefork, the process).

    Celery's further arguments are accepted and do nothing: the worker says itself when it
    is ready, and the log is the test's.
    """
    check_app(app, "start_worker")
    test_worker_starting.send(sender=app)
    worker: Any = None
    try:
        with embedded.worker(
            app,
            concurrency=concurrency,
            pool=pool,
            queues=queues,
            hostname=hostname,
            grace=shutdown_timeout,
        ) as worker:
            test_worker_started.send(sender=app, worker=worker)
            yield worker
    finally:
        test_worker_stopped.send(sender=app, worker=worker)
