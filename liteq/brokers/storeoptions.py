"""What the options of a store may be: those of `broker_transport_options`, and of the query of
a URL, which has nothing but text.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from liteq.exceptions import ConfigWarning, ImproperlyConfigured
from liteq.settingvalues import Check, Unfit, anything, flag, integer, mapping, seconds, text

if TYPE_CHECKING:
    from liteq.brokers.base import Broker

__all__ = ["read"]

_SECRETS: Final = frozenset({"sentinel_kwargs", "sentinel_password"})
_LONGEST: Final = 1_000_000.0  # seconds that a timer of SQLite, a socket and a selector takes


def read(kind: type[Broker], options: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the options that this broker has, each of its type. One that is None, or an
    empty text, is left to the broker's default.

    A configuration moved from elsewhere carries those of other transports
    (`visibility_timeout`), which mean nothing here; an unknown name gives a `ConfigWarning`.
    Raises `ImproperlyConfigured` for an invalid value.
    """
    names = (getattr(kind.__init__, "__kwdefaults__", None) or {}).keys() & _CHECKS.keys()
    for name in sorted(options.keys() - names - _OTHERS):
        if not name.startswith("ssl_"):
            warnings.warn(
                f"{source}: {kind.__name__} has no option {name!r} "
                f"(it has {', '.join(sorted(names))})",
                ConfigWarning,
                stacklevel=3,
            )
    return {
        name: _checked(name, value, source)
        for name, value in options.items()
        if name in names and value is not None and value != ""
    }


def _checked(name: str, value: Any, source: str) -> Any:
    try:
        return _CHECKS[name](value)
    except Unfit as exc:
        shown = "" if name in _SECRETS else f", not {value!r}"
        raise ImproperlyConfigured(f"{source}: {name} {exc}{shown}") from None


def _timer(value: Any) -> float:
    """A time to wait for something, which a timer counts."""
    try:
        wait = seconds(value)
    except Unfit:
        wait = 0.0
    if not 0 < wait <= _LONGEST:
        raise Unfit(f"must be a number of seconds above 0, up to {_LONGEST:,.0f}")
    return wait


def _lengths(value: Any) -> dict[str, int]:
    try:
        return {name: integer(1)(most) for name, most in mapping(value).items()}
    except Unfit:
        raise Unfit(
            "must give how many messages may wait in each queue, as in "
            '{"mail": 1000}: whole numbers above 0'
        ) from None


def _sentinel(value: Any) -> dict[str, Any]:
    """What Celery hands to the client of the sentinels. Its timeouts are ours here."""
    given = dict(mapping(value))
    strange = [
        name
        for name in given
        if name not in ("username", "password", "ssl")
        and not name.startswith(("ssl_", "socket_"))
    ]
    if strange:
        raise Unfit(f"takes username, password, ssl and ssl_… options, not {strange[0]!r}")
    return given


_CHECKS: Final[Mapping[str, Check]] = {
    "allow_network_filesystem": flag,
    "allow_other_owner": flag,
    "busy_timeout": _timer,
    "client_name": text,
    "durability": text,
    "global_keyprefix": text,
    "lease_timeout": seconds,
    "master_name": text,
    "max_deliveries": integer(1),
    "max_length": integer(1),
    "max_lengths": _lengths,
    "max_size": integer(1),
    "namespace": text,
    "poll_interval": _timer,
    "replica_timeout": _timer,
    "replicas": integer(1),
    "sentinel_kwargs": _sentinel,
    "sentinel_password": text,
    "sentinel_username": text,
    "socket_connect_timeout": _timer,
    "socket_keepalive": flag,
    "socket_timeout": _timer,
    "ssl_ca_certs": anything,  # these are read with the URL's own: see `redis_tls`
    "ssl_ca_data": anything,
    "ssl_ca_path": anything,
    "ssl_cert_reqs": anything,
    "ssl_certfile": anything,
    "ssl_check_hostname": anything,
    "ssl_ciphers": anything,
    "ssl_keyfile": anything,
    "ssl_min_version": anything,
    "ssl_password": anything,
    "unknown_expires": seconds,
    "visibility_timeout": anything,  # it has no meaning
}
_OTHERS: Final = frozenset(  # what other stores and Celery's transports have
    {
        *_CHECKS,
        "confirm_publish",
        "fanout_patterns",
        "fanout_prefix",
        "health_check_interval",
        "interval_max",
        "interval_start",
        "interval_step",
        "max_connections",
        "max_retries",
        "polling_interval",
        "predefined_queues",
        "priority_steps",
        "queue_name_prefix",
        "queue_order_strategy",
        "region",
        "retry_on_timeout",
        "sep",
    }
)
