"""Where a Redis server is: what a URL and the transport options say about it.

    redis://user:password@host:6379/0      one server (also valkey://)
    rediss://host:6380/0                   the same with TLS (also valkeys://)
    redis://host:6379,host:6379/0          a cluster, found from any of these nodes
    unix:///run/redis.sock?db=0            a socket file of this machine
    redis+sentinel://host:26379,host:26379/service/0
                                           whichever server Sentinel says is the master

Any of them may lead into a cluster: one namespace is one hash slot, and calls go to the
node that has it. A password never shows in `str()` or `repr()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from liteq.brokers import redis_tls
from liteq.exceptions import ImproperlyConfigured
from liteq.redaction import mask_url

__all__ = ["Place", "parse"]

_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
# What stands there may be the half of a password, so that it is not shown.
_NO_PORT: Final = (
    "its port is not a number up to 65535 (in a user's name or password, write %2F, %3F and "
    "%23 for a slash, a question mark and a hash)"
)
_TLS: Final = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_data",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_ciphers",
        "ssl_keyfile",
        "ssl_min_version",
        "ssl_password",
    }
)


class Place(NamedTuple):
    """A server, nodes of its cluster or the sentinels that know it, and how to sign in."""

    hosts: tuple[tuple[str, int], ...]
    path: str | None
    db: int
    username: str | None
    password: str | None
    tls: Mapping[str, Any] | None  # None: no TLS
    service: str | None  # the name that Sentinel knows the master by
    sentinel_username: str | None
    sentinel_password: str | None
    sentinel_tls: Mapping[str, Any] | None
    options: Mapping[str, str]  # what else the URL's query says

    def __str__(self) -> str:
        """Name the place, without its password."""
        scheme = "rediss" if self.tls is not None else "redis"
        if self.path is not None:
            return f"unix://{self.path}?db={self.db}"
        hosts = ",".join(f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in self.hosts)
        if self.service is not None:
            return f"{scheme}+sentinel://{hosts}/{self.service}/{self.db}"
        return f"{scheme}://{hosts}/{self.db}"

    def __repr__(self) -> str:
        return f"<Place {self}>"


def parse(
    url: str,
    tls: Mapping[str, Any] | None = None,
    master_name: str = "",
    sentinel_kwargs: Mapping[str, Any] | None = None,
) -> Place:
    """Return the place that a URL names; `tls` are `ssl_…` options that override those of the
    URL, `sentinel_kwargs` what differs between the sentinels and their master: `username`,
    `password`, `ssl` (true or false) and `ssl_…`. Raises `ImproperlyConfigured`, without the
    password, for an invalid URL."""
    first, *more = [one for one in url.split(";") if one]
    scheme, _, driver = first.partition("://")[0].lower().partition("+")
    secure = scheme in ("rediss", "valkeys")
    try:
        if scheme == "unix" or driver == "socket":
            return _socket_place(first)
        sentinel = driver == "sentinel" or scheme == "sentinel"
        secured = (tls or {}) if secure else None
        watchers = sentinel_kwargs or {}
        return _server_place([first, *more], secured, master_name, watchers, sentinel=sentinel)
    except ValueError as exc:
        raise ImproperlyConfigured(
            f"broker URL {mask_url(url)!r} cannot be understood: {exc}"
        ) from None


def _server_place(
    urls: list[str],
    tls: Mapping[str, Any] | None,
    master_name: str,
    watchers: Mapping[str, Any],
    *,
    sentinel: bool,
) -> Place:
    split = urlsplit(urls[0])
    options = dict(parse_qsl(split.query))
    port = _SENTINEL_PORT if sentinel else _PORT
    user, password, hosts = _hosts(split.netloc, port)
    for other in urls[1:]:  # Celery writes one URL for each sentinel
        hosts += _hosts(urlsplit(other).netloc, port)[2]
    names = [unquote(name) for name in split.path.split("/") if name]
    service = None
    if sentinel:
        if names and not names[0].isdigit():
            service = names.pop(0)
        service = service or options.pop("master_name", "") or master_name
        if not service:
            raise ValueError(
                "it does not say which service to ask Sentinel for: "
                "redis+sentinel://host:26379/mymaster/0"
            )
    elif urls[1:]:
        raise ValueError(
            "one URL for each server is for sentinels; nodes of a cluster have one"
        )
    db = _number(options.pop("db", names[0] if names else "0"))
    named = {key: options.pop(key) for key in list(options) if key in _TLS}
    tls = None if tls is None else redis_tls.read({**named, **tls})
    return Place(
        hosts=tuple(hosts),
        path=None,
        db=db,
        username=user,
        password=password,
        tls=tls,
        service=service,
        sentinel_username=options.pop("sentinel_username", watchers.get("username")),
        sentinel_password=options.pop("sentinel_password", watchers.get("password")),
        sentinel_tls=_sentinel_tls(tls, watchers),
        options=options,
    )


def _sentinel_tls(
    tls: Mapping[str, Any] | None, watchers: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    if not watchers.get("ssl", tls is not None):
        return None
    named = {key: value for key, value in watchers.items() if key in _TLS}
    return {**(tls or {}), **redis_tls.read(named)}


def _socket_place(url: str) -> Place:
    rest = url.partition("://")[2]
    user, at, path = rest.rpartition("@")
    path, _, query = path.partition("?")
    options = dict(parse_qsl(query))
    name, _, password = user.partition(":")
    if not path.startswith("/"):
        raise ValueError("a socket file needs its full path: unix:///run/redis.sock")
    return Place(
        hosts=(),
        path=unquote(path),
        db=_number(options.pop("db", options.pop("virtual_host", "0"))),
        username=unquote(name) or None if at else None,
        password=unquote(password) or None if at else None,
        tls=None,
        service=None,
        sentinel_username=None,
        sentinel_password=None,
        sentinel_tls=None,
        options=options,
    )


def _hosts(netloc: str, port: int) -> tuple[str | None, str | None, list[tuple[str, int]]]:
    """Return the user, the password and the hosts of the part behind "://"."""
    user, at, names = netloc.rpartition("@")
    name, _, password = user.partition(":")
    hosts = []
    for one in names.split(","):
        split = urlsplit(f"//{one}")
        try:
            hosts.append((split.hostname or "localhost", split.port or port))
        except ValueError:
            raise ValueError(_NO_PORT) from None
    if not at:
        return None, None, hosts
    return unquote(name) or None, unquote(password) or None, hosts


def _number(text: str) -> int:
    if "@" in text:
        raise ValueError(_NO_PORT)
    if not text.isdigit():
        raise ValueError(f"the database must be a number, not {text!r}")
    return int(text)
