"""What a worker that gathers calls has of a store on Redis."""

from __future__ import annotations

from typing import Any

import pytest

from liteq import Liteq
from liteq.workers.housekeeping import Housekeeping

pytestmark = pytest.mark.redis


def test_a_worker_that_gathers_a_call_is_told_of_the_next(
    app: Liteq, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Housekeeping, "backstop", 60.0)  # so that no look finds it in time
    app.broker.slowest_beat = 60.0

    @app.task(flush_every=2, flush_interval=600)
    def pairs(calls: Any) -> list[int]:
        return [call.args[0] for call in calls]

    @app.task
    def plain(x: int) -> int:
        return x

    with app.worker(concurrency=1, pool="threads"):
        for number in range(0, 6, 2):
            one = pairs.delay(number)
            assert plain.delay(number).get(timeout=10) == number
            assert pairs.delay(number + 1).get(timeout=10) == number + 1
            assert one.get(timeout=10) == number
