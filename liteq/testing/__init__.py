"""Testing programs that use liteq: calls kept in memory, time moved by hand, real workers.

    from liteq.testing import inline

    def test_a_signup_sends_a_mail():
        with inline(app) as t:
            signup("ann@example.org")
            t.assert_enqueued(send_mail, args=("ann@example.org",))
            t.drain()

Nothing here needs pytest; its fixtures are in `liteq.pytest_plugin`.
"""

from __future__ import annotations

from liteq.testing.calls import Enqueued, all_enqueued, assert_enqueued, refute_enqueued
from liteq.testing.mode import Inline, MovableClock, inline
from liteq.testing.periodic import assert_scheduled
from liteq.testing.running import DrainLimitExceeded, TaskRun, drain, perform
from liteq.testing.workers import (
    start_worker,
    test_worker_started,
    test_worker_starting,
    test_worker_stopped,
)

__all__ = [
    "DrainLimitExceeded",
    "Enqueued",
    "Inline",
    "MovableClock",
    "TaskRun",
    "all_enqueued",
    "assert_enqueued",
    "assert_scheduled",
    "drain",
    "inline",
    "perform",
    "refute_enqueued",
    "start_worker",
    "test_worker_started",
    "test_worker_starting",
    "test_worker_stopped",
]
