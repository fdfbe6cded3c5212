"""liteq's fixtures for pytest. Nothing else of liteq is imported until one of them is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.testing import Inline, MovableClock


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "liteq_app",
        'the app of the fixtures, "module:app" (default: a new one for each test)',
        default="",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "liteq(**settings): settings of the fixture liteq_app for this test"
    )


@pytest.fixture(scope="session")
def liteq_config() -> dict[str, Any]:
    """Settings of `liteq_app`. Override it; the marker `liteq` goes before it."""
    return {}


@pytest.fixture(scope="session")
def liteq_parameters() -> dict[str, Any]:
    """Arguments of `Liteq(…)` where `liteq_app` makes a new app. Override it."""
    return {}


@pytest.fixture(scope="session")
def liteq_worker_parameters() -> dict[str, Any]:
    """Arguments of `liteq.testing.start_worker` for the worker fixtures. Override it."""
    return {}


@pytest.fixture
def liteq_broker_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the store of `liteq_app` is: an SQLite store that only this test has."""
    from liteq.brokers import sqlite_url  # late, as all of liteq: for those who use it

    return sqlite_url(f"{tmp_path_factory.mktemp('liteq')}/tests.liteq") + "?durability=normal"


@pytest.fixture
def liteq_app(
    request: pytest.FixtureRequest,
    liteq_config: dict[str, Any],
    liteq_parameters: dict[str, Any],
    liteq_broker_url: str,
) -> Iterator[Liteq]:
    """The app of the ini option `liteq_app`, or a new one; it is the current app, its
    store is at `liteq_broker_url`, and nothing of the test stays."""
    from liteq.discovery import AppNotFound  # late: for those who use it
    from liteq.testing.apps import app_under_test

    settings = dict(liteq_config)
    for marker in reversed(list(request.node.iter_markers("liteq"))):
        if marker.args:
            raise pytest.UsageError("@pytest.mark.liteq takes settings by keyword")
        settings.update(marker.kwargs)
    made = app_under_test(
        request.config.getini("liteq_app"),
        liteq_broker_url,
        settings,
        liteq_parameters,
        directory=request.config.rootpath,
    )
    with ExitStack() as stack:
        try:
            app = stack.enter_context(made)
        except AppNotFound as exc:
            pytest.fail(str(exc), pytrace=False)
        yield app


@pytest.fixture
def liteq_inline(liteq_app: Liteq) -> Iterator[Inline]:
    """The test mode of `liteq_app`: calls are kept in memory, `drain()` runs them."""
    from liteq.testing import inline  # late: for those who use it

    with inline(liteq_app) as opened:
        yield opened


@pytest.fixture
def liteq_clock(liteq_inline: Inline) -> MovableClock:
    """The clock of `liteq_inline`, which stands still until it is moved."""
    return liteq_inline.clock


@pytest.fixture
def liteq_worker(liteq_app: Liteq, liteq_worker_parameters: dict[str, Any]) -> Iterator[Any]:
    """A worker of `liteq_app` in a thread, ready to run its tasks."""
    from liteq.testing import start_worker  # late: for those who use it

    with start_worker(liteq_app, **liteq_worker_parameters) as worker:
        yield worker


@pytest.fixture
def liteq_prefork_worker(
    liteq_app: Liteq, liteq_worker_parameters: dict[str, Any]
) -> Iterator[Any]:
    """A worker of `liteq_app` in a process of its own, with children. The app must be
    importable there: name it in the ini option `liteq_app`."""
    from liteq.exceptions import ImproperlyConfigured  # late: for those who use it
    from liteq.testing import start_worker

    made = start_worker(liteq_app, **{**liteq_worker_parameters, "pool": "prefork"})
    with ExitStack() as stack:
        try:
            process = stack.enter_context(made)
        except ImproperlyConfigured as exc:
            pytest.fail(f"{exc} (is the ini option liteq_app set?)", pytrace=False)
        yield process
