"""From a URL to a broker: which store a program talks to.

    sqlite:///srv/shop/shop.liteq      a folder on this machine (an absolute path)
    sqlite://shop.liteq                the same, relative to the working directory
    memory://                          a store of this process alone, for tests
    redis://host:6379/0                a server that many machines share

A broker's module is imported when a URL asks for it, so a program that never talks to
Redis never loads its client.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from liteq.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from liteq.brokers.base import Broker
    from liteq.clock import Clock

__all__ = ["connect", "scheme_of"]

_MODULES: Final = {
    "sqlite": ("liteq.brokers.sqlite", "SqliteBroker"),
    "memory": ("liteq.brokers.sqlite", "SqliteBroker"),
    "redis": ("liteq.brokers.redis", "RedisBroker"),
    "rediss": ("liteq.brokers.redis", "RedisBroker"),
    "unix": ("liteq.brokers.redis", "RedisBroker"),
    "valkey": ("liteq.brokers.redis", "RedisBroker"),
    "valkeys": ("liteq.brokers.redis", "RedisBroker"),
}
_SERVERS: Final = frozenset(
    "amqp amqps pyamqp librabbitmq sqs sentinel confluentkafka kafka zookeeper mongodb "
    "azureservicebus azurestoragequeues gcpubsub etcd consul pyro slmq filesystem sqla "
    "sqlalchemy db django nats".split()
)


def scheme_of(url: str) -> str:
    """Return the URL's scheme in lower case, without a "+driver"; "sqlite" for a path."""
    scheme, colon, _ = url.partition("://")
    if not colon:
        return "memory" if url == "memory" else "sqlite"
    return scheme.partition("+")[0].lower()


def connect(
    url: str, options: Mapping[str, Any] | None = None, clock: Clock | None = None
) -> Broker:
    """Return a broker for the URL. Nothing is opened before its first use.

    `options` are the broker's own (`broker_transport_options`); `clock` replaces the
    system's. Raises `ImproperlyConfigured` for a scheme that liteq does not speak.
    """
    scheme = scheme_of(url)
    if scheme not in _MODULES:
        raise ImproperlyConfigured(_refusal(url, scheme))
    module, name = _MODULES[scheme]
    if find_spec(module) is None:
        raise ImproperlyConfigured(
            f"broker {scheme}:// is not available in this version of liteq: "
            "use sqlite:///path/to/name.liteq"
        )
    kind = getattr(import_module(module), name)
    settings = dict(options or {})
    if clock is not None:
        settings["clock"] = clock
    broker: Broker = kind(":memory:" if scheme == "memory" else url, **settings)
    return broker


def _refusal(url: str, scheme: str) -> str:
    alternatives = (
        "use sqlite:///path/to/name.liteq (one machine, no server) "
        "or redis://host:6379/0 (many machines)"
    )
    if scheme in _SERVERS:
        return f"liteq has no broker for {scheme}://: {alternatives}"
    return f"broker URL {url.split('@')[-1]!r} has an unknown scheme {scheme!r}: {alternatives}"
