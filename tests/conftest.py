"""Fixtures of every test, and how much the random ones do.

`LITEQ_STORM=1` multiplies that, for the nightly run.
"""

from __future__ import annotations

import os
import posix
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import redis_server
import world
from hypothesis import HealthCheck, is_hypothesis_test, settings
from mounts import own_disk  # noqa: F401 (a fixture)
from terminal import here, in_new_york, project, start  # noqa: F401 (fixtures)

from liteq import signals
from liteq.brokers import liveness
from liteq.brokers.base import Broker
from liteq.brokers.sqlite import SqliteBroker

BROKERS = ("sqlite", "memory", "redis")  # a new broker is entered here and in world.Store

# Derandomised: the same run everywhere, so a red build is red at the desk as well.
_calm: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much],
}
settings.register_profile("quick", derandomize=True, max_examples=60, database=None, **_calm)
settings.register_profile("storm", max_examples=3_000, **_calm)
settings.load_profile("storm" if os.environ.get("LITEQ_STORM") else "quick")


# Branches are measured in the process of the tests, and in the processes that a test starts
# if it is marked `traced`: to be measured costs each process a third of a second. So marked are
# the fewest tests whose processes walk, together, every branch that the others' walk. Where a
# test walks the same branches again, nothing is measured: in a random one (or one marked
# `untraced`), and with the store in memory, whose code is that of the file.

_processes_too: Final = os.environ.get("COVERAGE_PROCESS_CONFIG")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    global _forks_too
    _forks_too = item.get_closest_marker("traced") is not None
    if _processes_too is not None:
        if _forks_too:
            os.environ["COVERAGE_PROCESS_CONFIG"] = _processes_too
        else:
            os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    tracing = _tracing()
    if tracing is None or not _is_untraced(item):
        return (yield)
    tracing.stop()
    leave = os._exit
    try:
        return (yield)
    finally:
        tracing.start()
        os._exit = leave  # which each start wraps once more


def _is_untraced(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    in_memory = "callspec" in vars(item) and "memory" in item.callspec.params.values()
    random = is_hypothesis_test(item.obj)
    return in_memory or random or item.get_closest_marker("untraced") is not None


def _tracing() -> Any:
    coverage = sys.modules.get("coverage")
    return coverage and coverage.Coverage.current()


def _in_a_fork() -> None:
    # It would write all that its parent has measured, which takes a tenth of a second and more.
    tracing = _tracing()
    if tracing is not None and not _forks_too:
        tracing.stop()
        os._exit = posix._exit  # coverage's own saves first, whether it was stopped or not


_forks_too = True
os.register_at_fork(after_in_child=_in_a_fork)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[Any]:
    """Leave no receiver of a signal to the next test: many import a module of tasks that
    connects some for good."""
    every = [one for one in vars(signals).values() if isinstance(one, signals.Signal)]
    before = [list(signal.receivers) for signal in every]
    try:
        return (yield)
    finally:
        for signal, receivers in zip(every, before, strict=True):
            signal.receivers[:] = receivers


@pytest.fixture(autouse=True, scope="session")
def signals_of_a_terminal_are_heard() -> None:
    """What starts the tests in the background (`nohup`, `&` of a script) has these ignored, and
    all that the tests start inherits that."""
    for number, heard in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, heard)


@pytest.fixture(autouse=True, scope="session")
def who_stands_by_is_looked_for_each_time() -> Iterator[None]:
    """What a test sees must not depend on how fast it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SqliteBroker, "busy_for", 0.0)
        yield


@pytest.fixture
def clock() -> world.FakeClock:
    return world.FakeClock()


@pytest.fixture(params=BROKERS)
def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: world.FakeClock
) -> Iterator[world.Store]:
    """A new, empty store of each kind. A worker lives until its process ends or it signs off,
    and each holds a file open: of all tests together, more than `select()` takes."""
    if request.param == "redis":
        redis_server.require()
    yield world.Store(request.param, tmp_path, clock)
    for locks in list(liveness._all):
        if locks.folder.startswith(str(tmp_path)):
            locks._drop_inherited()


@pytest.fixture
def broker(store: world.Store) -> Iterator[Broker]:
    """A connection to a new store of each kind."""
    opened = store.open()
    yield opened
    opened.close()


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    return world.wait_until
