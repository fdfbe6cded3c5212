"""From a URL to a broker: which store a program talks to.

    sqlite:///srv/shop/shop.liteq      a folder on this machine (an absolute path)
    sqlite://shop.liteq                the same, relative to the working directory
    memory://                          a store of this process alone, for tests
    redis://user:pw@host:6379/0        a server that many machines share (rediss://: TLS,
                                       unix://: a socket file, redis+sentinel://: its master)

A broker's module is imported when a URL asks for it, so a program that never talks to
Redis never loads its client.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # like exceptions, typing is more than a probe has time for
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

    from liteq.brokers.base import Broker
    from liteq.clock import Clock

__all__ = ["connect", "is_same_store", "scheme_of", "sqlite_target", "sqlite_url"]

_MODULES: Final = {
    "sqlite": ("liteq.brokers.sqlite", "SqliteBroker"),
    "memory": ("liteq.brokers.sqlite", "SqliteBroker"),
    "redis": ("liteq.brokers.redis", "RedisBroker"),
    "rediss": ("liteq.brokers.redis", "RedisBroker"),
    "unix": ("liteq.brokers.redis", "RedisBroker"),
    "valkey": ("liteq.brokers.redis", "RedisBroker"),
    "valkeys": ("liteq.brokers.redis", "RedisBroker"),
    "sentinel": ("liteq.brokers.redis", "RedisBroker"),  # Celery's name
}
_ADVICE: Final = (
    "use sqlite:///path/to/name.liteq (one machine, no server) or redis://host:6379/0"
)
_SERVERS: Final = frozenset(
    {
        "amqp",
        "amqps",
        "azureservicebus",
        "azurestoragequeues",
        "confluentkafka",
        "consul",
        "db",
        "django",
        "etcd",
        "filesystem",
        "gcpubsub",
        "kafka",
        "librabbitmq",
        "mongodb",
        "nats",
        "pyamqp",
        "pyro",
        "slmq",
        "sqla",
        "sqlalchemy",
        "sqs",
        "zookeeper",
    }
)


def scheme_of(url: str) -> str:
    """Return the URL's scheme in lower case, without a "+driver"; "sqlite" for a path.

    Raises `ImproperlyConfigured` for a URL that is misspelt: it would be a path, and what is
    sent would be in a new store, where no worker looks for it.
    """
    scheme, colon, _ = url.partition("://")
    if not colon:
        _refuse_misspelt(url)
        return "memory" if url == "memory" else "sqlite"
    return scheme.partition("+")[0].lower()


def is_same_store(url: str, other: str) -> bool:
    """Tell whether two URLs mean one store: the databases of one server are one."""
    return _store_of(url) == _store_of(other)


def connect(
    url: str, options: Mapping[str, Any] | None = None, clock: Clock | None = None
) -> Broker:
    """Return a broker for the URL. Nothing is opened before its first use.

    `options` are the broker's own (`broker_transport_options`), overridden by those in the
    query of the URL; `clock` replaces the system's. Raises `ImproperlyConfigured` for a
    scheme that liteq does not speak, and for an invalid option.
    """
    scheme = scheme_of(url)
    if scheme not in _MODULES:
        from liteq.exceptions import ImproperlyConfigured

        raise ImproperlyConfigured(_refusal(url, scheme))
    from liteq.brokers.storeoptions import read  # late: a probe needs none

    module, name = _MODULES[scheme]
    kind = getattr(import_module(module), name)
    settings = read(kind, options or {}, "broker_transport_options")
    target: str | None = url
    given: Mapping[str, str]
    if module.endswith("redis"):
        from liteq.brokers.redis_url import parse  # late: for Redis alone

        given = parse(url, master_name=settings.get("master_name", "")).options
    else:
        target, given = sqlite_target(url)
    settings |= read(kind, given, "the query of the broker's URL")
    if clock is not None:
        settings["clock"] = clock
    broker: Broker = kind(target, **settings)
    return broker


def sqlite_target(url: str) -> tuple[str | None, dict[str, str]]:
    """Return the folder (None: in memory) and the options that a URL or path names. Raises
    `ImproperlyConfigured` for one that means another place than it seems to."""
    _, colon, rest = url.partition("://")
    if not colon:
        _refuse_home(url, url)
        return (None if url == "memory" else url), {}
    path, _, query = rest.partition("?")
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        options[name] = _unquoted(value)
    if scheme_of(url) == "memory" or path.strip("/") in ("", ":memory:"):
        return None, options
    if path.startswith("//"):  # SQLAlchemy writes an absolute path with four slashes
        path = path[1:]
    path = _unquoted(path)
    _refuse_home(url, path)
    if rest.startswith("/") and not rest.startswith("//"):
        _refuse_slip(url, rest, path)
    return path, options


def sqlite_url(folder: str) -> str:
    """Return the URL of the store in this folder, whatever characters its path has."""
    for sign in "%?;":  # the first of them first
        folder = folder.replace(sign, f"%{ord(sign):X}")
    return f"sqlite://{folder}"


def _unquoted(text: str) -> str:
    if "%" not in text:
        return text
    from urllib.parse import unquote  # late: 5 ms, and few paths need it

    return unquote(text)


def _refuse_misspelt(url: str) -> None:
    """Raise `ImproperlyConfigured` for what begins as a URL does: a word and a colon, or the
    word of a scheme and two slashes. A path that is meant begins with `./` or `/`."""
    word, colon, _ = url.partition(":")
    if not colon:
        word, slashes, _ = url.partition("//")
        if not slashes or word.partition("+")[0].lower() not in _MODULES:
            return
    if not word or not word.replace("+", "").replace("-", "").isalnum():
        return
    from liteq.exceptions import ImproperlyConfigured

    raise ImproperlyConfigured(
        f"broker URL {_shown(url)!r} has no '://' after {word!r}: {_ADVICE}, or put ./ "
        "in front if this is the name of a folder"
    )


def _refuse_home(url: str, path: str) -> None:
    """Raise `ImproperlyConfigured` for `sqlite://~/shop.liteq`: a shell alone reads `~` as the
    home folder, and here it would be a new folder of that name."""
    import os  # late: few programs that read a URL open a file

    within = path.lstrip("/")
    first = path[: len(path) - len(within)] + within.partition("/")[0]
    if within.startswith("~") and not os.path.exists(first):
        from liteq.exceptions import ImproperlyConfigured

        raise ImproperlyConfigured(
            f"{url} would be in a folder called {first}, which only a shell reads as a home "
            f"folder: write sqlite://{os.path.expanduser(within)}, or put ./ in front if the "
            "folder has that name"
        )


def _refuse_slip(url: str, rest: str, path: str) -> None:
    """Raise `ImproperlyConfigured` for `sqlite:///shop.liteq`, which in SQLAlchemy's URLs
    is a relative path, and here would be a new folder at the root of the file system."""
    import os  # late: few programs that read a URL open a file

    path = os.path.normpath(path)  # `/./shop.liteq` and `/../shop.liteq` are the same slip
    if os.path.dirname(path) == "/" and not os.path.exists(path):
        from liteq.exceptions import ImproperlyConfigured

        raise ImproperlyConfigured(
            f"{url} would be the folder {path}, at the root of the file system: for one in "
            f"the working directory write sqlite:/{rest}, for this one sqlite:///{rest}"
        )


def _store_of(url: str) -> tuple[str, str]:
    scheme = scheme_of(url)
    _, _, rest = url.partition("://")
    rest = (rest or url).rpartition("@")[2].partition("?")[0]
    if scheme in ("redis", "rediss", "valkey", "valkeys"):
        return "redis", rest.partition("/")[0]
    return scheme, rest.rstrip("/")


def _refusal(url: str, scheme: str) -> str:
    if scheme in _SERVERS:
        return f"liteq has no broker for {scheme}://: {_ADVICE}"
    return f"broker URL {_shown(url)!r} has an unknown scheme {scheme!r}: {_ADVICE}"


def _shown(url: str) -> str:
    """Return what may be shown of a misspelt URL: who knows what its front is."""
    from liteq.redaction import mask_url  # late: for an error

    return mask_url(url.split("@")[-1])
