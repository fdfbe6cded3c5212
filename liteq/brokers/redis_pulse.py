"""The heartbeats of the workers of a Redis store, over a plain socket.

For the probe of a container, like `liteq.pulse`, and so without the client library, and
without what takes longer to import than the whole answer: `typing`, `urllib`, and of
`socket` the half in Python, which makes enumerations of its constants.
"""

from __future__ import annotations

import _socket  # on which `socket` stands

from liteq.brokers.redis_wire import Reader, command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final, TypeAlias

    from liteq.pulse import Beat

    Server: TypeAlias = tuple[tuple[str, int] | str, int, str | None, str | None, str]

__all__ = ["beats", "dial", "prefix_of", "server_of"]

_TIMEOUT: Final = 2.0  # seconds to wait for a server: a probe has little time
_PORT: Final = 6379
_LAST_PORT: Final = 65_535
_PLAIN: Final = frozenset("-._~=!*$")  # in URLs they stand for themselves


def server_of(url: str) -> Server | None:
    """Return where the server is, database, user, password and namespace of a URL that says
    no more: `redis://user:password@host:6379/0?namespace=name`, `unix:///run/redis.sock?db=0`.

    None for any other, which `redis_url.parse()` may understand: that takes 20 ms to import.
    """
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    db = ""
    if scheme != "unix":
        rest, _, db = rest.partition("/")
    account, _, place = rest.rpartition("@")
    user, _, password = account.partition(":")
    host, colon, port = place.partition(":")
    said = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
    db = said.pop("db", "") or db or "0"
    namespace = said.pop("namespace", "") or "default"
    words = (user, password, host.replace("/", ""), port, db, namespace)
    if said or not all(map(_is_plain, words)) or not (db + port).isdigit():
        return None
    where: tuple[str, int] | str
    if scheme == "unix" and host.startswith("/") and not colon:
        where = host
    elif scheme in ("redis", "valkey") and int(port or 0) <= _LAST_PORT:
        where = (host.lower() or "localhost", int(port or 0) or _PORT)
    else:
        return None
    return where, int(db), user or None, password or None, namespace


def _is_plain(word: str) -> bool:
    return word.isascii() and all(char.isalnum() or char in _PLAIN for char in word)


def prefix_of(namespace: str, first: str = "") -> str:
    """Return what the names of a store's keys begin with."""
    return f"{first}{{liteq:{namespace}}}:"


def dial(where: tuple[str, int] | str) -> _socket.socket:
    """Return a connection to a server: a host and port, or the path of a socket file.

    Raises `OSError`.
    """
    if isinstance(where, str):
        return _connected(_socket.AF_UNIX, where)
    host, port = where
    # Bytes, since it takes another 4 ms to find out that a plain name stays as it is.
    name = host.encode("ascii" if host.isascii() else "idna")
    error: OSError | None = None
    for family, _, _, _, address in _socket.getaddrinfo(name, port, 0, _socket.SOCK_STREAM):
        try:
            return _connected(family, address)
        except OSError as exc:
            error = exc
    raise error or OSError(f"{host} has no address")


def _connected(family: int, address: Any) -> _socket.socket:
    connection = _socket.socket(family, _socket.SOCK_STREAM)
    try:
        connection.settimeout(_TIMEOUT)
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def beats(
    connection: _socket.socket, prefix: str, db: int, user: str | None, password: str | None
) -> Iterator[Beat]:
    """Yield what `pulse.beats()` does, of the store with this prefix.

    Those are alive whose heartbeats are here; whether they are too old, the caller sees.
    Raises `OSError`, and `ServerError` for what the server refuses.
    """
    reader = Reader(connection)

    def ask(*words: Any) -> Any:
        connection.sendall(command(words))
        return reader.reply()

    if password is not None:
        ask("AUTH", *filter(None, (user,)), password)
    if db:
        ask("SELECT", db)
    shift = float(ask("HGET", f"{prefix}meta", "shift") or 0)
    found = ask("ZRANGE", f"{prefix}workers", 0, -1, "WITHSCORES")
    seconds, micro = ask("TIME")
    now = float(seconds) + float(micro) / 1e6 - shift
    for id, beat_at in zip(found[::2], found[1::2], strict=True):
        words = ("name", "hostname", "pid", "queues")
        fields = ask("HMGET", f"{prefix}worker:{id.decode()}", *words)
        name, host, pid, queues = ((field or b"").decode() for field in fields)
        yield name, host, int(pid or 0), queues, max(0.0, now - float(beat_at)), True
