"""The app that a test is about, on a store of its own for the time of the test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from liteq import current
from liteq.app import Liteq
from liteq.discovery import load_app

__all__ = ["app_under_test"]

_SOURCE: Final = "the test"
_NONE_KEPT: Final = (None, "disabled", "disabled://")


@contextmanager
def app_under_test(
    spec: str,
    broker_url: str,
    settings: Mapping[str, Any],
    parameters: Mapping[str, Any],
    *,
    directory: Path,
) -> Iterator[Liteq]:
    """Yield the app that `spec` names ("module:app", looked for in the directory first) or,
    if that is empty, a new one made with these parameters.

    It is the current app, its store is at the URL, and the settings override all others,
    those of the environment too. At the end the store is closed, and everything is as it
    was before.
    """
    with current.kept():
        if spec:
            app = load_app(spec, said_by="the pytest option liteq_app", directory=directory).app
            app.set_current()
        else:
            app = Liteq(**{"main": "tests", **parameters})
        with app.conf.overridden(
            {**_place(app, settings.get("broker_url", broker_url)), **settings}, _SOURCE
        ):
            before = app.exchange_store(None, app.clock)
            try:
                yield app
            finally:
                app.close()
                app.exchange_store(*before)


def _place(app: Liteq, broker_url: str) -> dict[str, Any]:
    """Return the settings that put an app's store there. Its results go with it, and what
    it says about its own store does not concern this one."""
    place: dict[str, Any] = {"broker_url": broker_url, "broker_transport_options": {}}
    if app.conf.result_backend not in _NONE_KEPT:
        place["result_backend"] = broker_url
    return place
