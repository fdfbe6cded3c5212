"""Fixtures of every test, and how much the random ones do.

`LITEQ_STORM=1` multiplies that, for the nightly run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis_server
import world
from hypothesis import HealthCheck, settings
from terminal import here, project, start  # noqa: F401 (fixtures)

from liteq.brokers.base import Broker

BROKERS = ("sqlite", "memory", "redis")  # a new broker is entered here and in world.Store

# Derandomised: the same run everywhere, so a red build is red at the desk as well.
_calm: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much],
}
settings.register_profile("quick", derandomize=True, max_examples=60, database=None, **_calm)
settings.register_profile("storm", max_examples=3_000, **_calm)
settings.load_profile("storm" if os.environ.get("LITEQ_STORM") else "quick")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Pause the measuring of branches for what is marked `untraced`."""
    coverage = sys.modules.get("coverage")
    tracing = coverage and coverage.Coverage.current()
    if not tracing or item.get_closest_marker("untraced") is None:
        return (yield)
    tracing.stop()
    try:
        return (yield)
    finally:
        tracing.start()


@pytest.fixture
def clock() -> world.FakeClock:
    return world.FakeClock()


@pytest.fixture(params=BROKERS)
def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: world.FakeClock
) -> world.Store:
    """A new, empty store of each kind."""
    if request.param == "redis":
        redis_server.require()
    return world.Store(request.param, tmp_path, clock)


@pytest.fixture
def broker(store: world.Store) -> Iterator[Broker]:
    """A connection to a new store of each kind."""
    opened = store.open()
    yield opened
    opened.close()


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    return world.wait_until
