"""Whether a worker lives, asked so cheaply that a container may ask every few seconds.

Nothing of the app is imported and nothing is written: the heartbeats are read where they
are, with apsw alone (`liteq.pulse`) or over a plain socket. (Importing an app in each probe
has cost others seconds of processor time a minute.) A Redis that needs TLS or Sentinel, or
another node of a cluster, is asked as the broker does, whose client takes ten times as long to
import as all the rest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from liteq.brokers import scheme_of
from liteq.brokers.files import is_there, refuse_shared
from liteq.clock import system_clock
from liteq.exceptions import (
    BrokerError,
    BrokerUnavailable,
    ImproperlyConfigured,
    StoreForbidden,
)
from liteq.pulse import beats

if TYPE_CHECKING:
    from pathlib import Path

    from liteq.brokers.redis_url import Place

__all__ = ["Pulse", "pulses", "store_url"]

# Variables that have a word to say about a folder beside LITEQ_BROKER_URL.
_ELSEWHERE: Final = frozenset(
    {"LITEQ_BROKER_TRANSPORT_OPTIONS", "LITEQ_BROKER_TRANSPORT_OPTIONS_FILE"}
)
_TIMEOUT: Final = 2.0  # seconds to wait for a store: a probe has little time


class Pulse(NamedTuple):
    """A worker that is registered. `age`: seconds since its last heartbeat; `alive`: False
    if its process is known to be gone."""

    name: str
    hostname: str
    pid: int
    queues: str
    age: float
    alive: bool


def store_url(given: str | None = None) -> tuple[str, Mapping[str, Any]]:
    """Return the URL of the store and its options, from what is given, the environment, or
    the project's file; else the one store in the working directory.

    Raises `ImproperlyConfigured` if nothing says which: code is not asked.
    """
    url = given or os.environ.get("LITEQ_BROKER_URL")
    if url and scheme_of(url) == "sqlite" and _ELSEWHERE.isdisjoint(os.environ):
        return url, {}
    from pathlib import Path  # late, like the next: what most probes can do without

    from liteq.config import Settings  # 30 ms
    from liteq.storesettings import secured, url_of

    settings = Settings()
    if given:
        settings.broker_url = given
    options: Mapping[str, Any] = settings.broker_transport_options or {}
    url = url_of(settings)
    if url:
        url, tls = secured(url, settings.broker_use_ssl)
        return url, {**tls, **options}
    found = sorted(path for path in Path.cwd().glob("*.liteq") if _may_be_a_store(path))
    if len(found) == 1:
        return str(found[0]), options
    raise ImproperlyConfigured(
        f"which store? {len(found) or 'none'} of the folders *.liteq in {Path.cwd()} could be "
        "it: name it with -b or LITEQ_BROKER_URL (the app is not imported here)"
    )


def _may_be_a_store(folder: Path) -> bool:
    try:
        return is_there(folder)
    except StoreForbidden:  # it is said by who opens it
        return True


def pulses(url: str, options: Mapping[str, Any] | None = None) -> list[Pulse]:
    """Return the workers of a store. Raises `BrokerError` if it cannot be read."""
    options = options or {}
    if scheme_of(url) in ("sqlite", "memory"):
        return _in_folder(url, options)
    from liteq.brokers.redis_url import parse

    place = parse(url, master_name=options.get("master_name", ""))
    if place.tls is None and place.service is None and len(place.hosts) < 2:
        found = _on_server(place, {**options, **place.options})
        if found is not None:
            return found
    return _through_client(url, options)


def _in_folder(url: str, options: Mapping[str, Any]) -> list[Pulse]:
    import apsw

    from liteq.brokers import sqlite_target

    target, said = sqlite_target(url)
    if target is None:
        raise BrokerError("only its own process can see a store in memory")
    folder = os.path.realpath(target)
    path = os.path.join(folder, "store.db")
    if not is_there(folder):
        raise BrokerUnavailable(f"there is no store at {path}: no worker has started")
    refuse_shared(folder, allow_other_owner=_is_trusted({**options, **said}))
    try:
        return [Pulse(*told) for told in beats(folder, system_clock.steady())]
    except apsw.Error as exc:
        raise BrokerUnavailable(f"{path} cannot be read: {exc}") from exc


def _is_trusted(options: Mapping[str, Any]) -> bool:
    if "allow_other_owner" not in options:
        return False
    from liteq.brokers.sqlite import SqliteBroker  # late: what most probes can do without
    from liteq.brokers.storeoptions import read

    return bool(read(SqliteBroker, options, "the store's options").get("allow_other_owner"))


def _on_server(place: Place, options: Mapping[str, Any]) -> list[Pulse] | None:
    """Ask the server at this place; None if another node of its cluster has the store, or is
    being given it."""
    from liteq.brokers.redis_pulse import beats, dial, prefix_of
    from liteq.brokers.redis_wire import ServerError

    name = options.get("namespace") or "default"
    prefix = prefix_of(name, options.get("global_keyprefix") or "")
    try:
        with closing(dial(place.path or place.hosts[0])) as connection:
            told = beats(connection, prefix, place.db, place.username, place.password)
            return [Pulse(*one) for one in told]
    except ServerError as exc:
        if exc.code in ("MOVED", "ASK"):
            return None
        raise BrokerUnavailable(f"{place} refused: {exc}") from exc
    except OSError as exc:
        raise BrokerUnavailable(f"{place} cannot be reached: {exc}") from exc


def _through_client(url: str, options: Mapping[str, Any]) -> list[Pulse]:
    from liteq.brokers import connect

    timeouts = {"socket_timeout": _TIMEOUT, "socket_connect_timeout": _TIMEOUT}
    broker = connect(url, {**options, **timeouts})
    began = time.monotonic()
    workers = broker.workers()
    took = time.monotonic() - began
    return [
        Pulse(w.name, w.hostname, w.pid, ",".join(w.queues), w.beat_age + took, alive=True)
        for w in workers
    ]
