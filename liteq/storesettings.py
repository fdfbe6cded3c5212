"""What the settings say of the store: where it is, with which options, what it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from liteq import brokers
from liteq.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from liteq.brokers.base import Broker
    from liteq.clock import Clock
    from liteq.config import Settings

__all__ = ["connect", "keeps_results", "length_limit", "secured", "url_of"]

_DISABLED: Final = ("disabled", "disabled://")
_WITH_TLS: Final = {
    "redis": "rediss",
    "valkey": "valkeys",
    "sentinel": "rediss+sentinel",
    "redis+sentinel": "rediss+sentinel",
}


def url_of(conf: Settings) -> str:
    """Return the URL of the store, "" if the settings name none."""
    url = conf.broker_url
    if not url:
        return ""
    urls = list(url) if isinstance(url, (list, tuple)) else str(url).split(";")
    # Celery names one URL for each sentinel; of other servers, the first is the store.
    return ";".join(urls) if "sentinel" in urls[0].partition("://")[0] else str(urls[0])


def connect(conf: Settings, url: str, clock: Clock | None) -> Broker:
    """Return the store at this URL, as it is set. Nothing is opened before its first use."""
    options: dict[str, Any] = {
        "lease_timeout": conf.worker_lease_timeout,
        "max_deliveries": conf.task_max_deliveries,
        "unknown_expires": conf.task_unknown_expires,
        "max_length": conf.task_queue_max_length,
        "max_lengths": _max_lengths(conf),
    }
    if brokers.scheme_of(url) not in ("sqlite", "memory"):
        if conf.broker_connection_timeout is not None:
            options["socket_connect_timeout"] = conf.broker_connection_timeout
        url, tls = secured(url, conf.broker_use_ssl)
        options |= tls
    options.update(conf.broker_transport_options or {})
    return brokers.connect(url, options, clock)


def secured(url: str, wanted: Any) -> tuple[str, Mapping[str, Any]]:
    """Return the URL and the `ssl_…` options that `broker_use_ssl` makes of it."""
    if not wanted:
        return url, {}
    if wanted is not True and not isinstance(wanted, Mapping):
        raise ImproperlyConfigured(
            "broker_use_ssl must be True or a dict of options, as in "
            f"{{'ssl_ca_certs': '/etc/ssl/redis.pem'}}, not {wanted!r}"
        )
    # Celery gives those of other servers without the prefix.
    named = {} if wanted is True else wanted
    tls = {name if name.startswith("ssl_") else f"ssl_{name}": named[name] for name in named}
    scheme, sign, rest = url.partition("://")
    return f"{_WITH_TLS.get(scheme.lower(), scheme)}{sign}{rest}", tls


def keeps_results(conf: Settings, url: str) -> bool:
    """Tell whether the store at this URL is to keep results. Raises `ImproperlyConfigured`
    for a result backend that is another store."""
    backend = conf.result_backend
    if backend is None:
        return not conf.value_set_for("result_backend")
    if backend in _DISABLED:
        return False
    if not brokers.is_same_store(backend, url) and not backend.startswith(("rpc", "cache")):
        from liteq.redaction import mask_url  # late: for this

        raise ImproperlyConfigured(
            f"result_backend {mask_url(backend)!r} is not the store of the broker "
            f"{mask_url(url)!r}: liteq keeps results where the messages are. Leave it "
            "out to keep results there, or set 'disabled://' to keep none"
        )
    return True


def length_limit(conf: Settings, queue: str) -> int | None:
    """Return how many messages may wait in a queue; None for any number."""
    most: int | None = _max_lengths(conf).get(queue, conf.task_queue_max_length)
    return most


def _max_lengths(conf: Settings) -> dict[str, int]:
    queues = conf.task_queues or ()
    return {q.name: q.max_length for q in queues if q.max_length is not None}
