"""A page over HTTP, served from a loop that has other things to do.

It is for one kind of caller, that asks for one page every few seconds: no thread, so that
a worker which serves its metrics can still fork its children, and no more than a few
connections at a time, the oldest being dropped for a new one. Where the process is out of
descriptors, callers wait: the loop is not to be told of them again and again.
"""

from __future__ import annotations

import errno
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from liteq.exceptions import ImproperlyConfigured
from liteq.loggers import get_logger
from liteq.shortage import advice

__all__ = ["Endpoint", "address_of"]

_MOST_CONNECTIONS: Final = 16
_MOST_REQUEST: Final = 8192  # bytes
_REST: Final = 5.0  # seconds: a worker's loop wakes up as often
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

logger = get_logger("liteq.worker")


def address_of(text: str) -> tuple[str, int]:
    """Read `port` or `host:port`; the host is this machine alone unless it is said.

    Raises `ImproperlyConfigured` for anything else.
    """
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ImproperlyConfigured(
            f"{text!r} is not an address to serve metrics at: give a port, or host:port"
        )
    return host.strip("[]") or "127.0.0.1", int(port)


class Endpoint:
    """Answers `GET /metrics` with what `page()` returns, within this selector's loop.

    Each key of the selector holds a function that the loop calls with the events. It calls
    `wake()` as well, now and then.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        address: tuple[str, int],
        page: Callable[[], bytes],
    ) -> None:
        self._selector = selector
        self._page = page
        self._connections: dict[socket.socket, bytearray] = {}
        self._rests_until: float | None = None
        self._lacks = False
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            self._listener = socket.create_server(address, family=family)
        except OSError as exc:
            raise ImproperlyConfigured(
                f"metrics cannot be served at {address[0]}:{address[1]}: {exc.strerror or exc}"
            ) from exc
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    @property
    def url(self) -> str:
        host, port = self._listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{port}/metrics"

    def wake(self, now: float) -> None:
        """Hear callers again, if they had to wait long enough at this `time.monotonic()`."""
        if self._rests_until is not None and now >= self._rests_until:
            self._rests_until = None
            self._selector.modify(self._listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Stop answering."""
        for connection in list(self._connections):
            self._drop(connection)
        self._selector.unregister(self._listener)
        self._listener.close()

    def _accept(self, _mask: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as exc:
            if exc.errno in _SHORTAGES:
                self._rest(exc)
            return  # else it has gone again
        self._lacks = False
        connection.setblocking(False)
        if len(self._connections) >= _MOST_CONNECTIONS:
            self._drop(next(iter(self._connections)))
        self._connections[connection] = bytearray()
        self._selector.register(
            connection, selectors.EVENT_READ, partial(self._receive, connection)
        )

    def _rest(self, exc: OSError) -> None:
        """Hear of no callers for a while: they stay in line, and so the listener readable."""
        if not self._lacks:
            self._lacks = True
            logger.warning(
                "metrics cannot be served now: %s",
                advice(exc) or exc.strerror,
            )
        self._rests_until = time.monotonic() + _REST
        # A listener is never writable. It stays in the selector, by which a forked child knows
        # what it has to close.
        self._selector.modify(self._listener, selectors.EVENT_WRITE, self._accept)

    def _receive(self, connection: socket.socket, _mask: int) -> None:
        asked = self._connections.get(connection)
        if asked is None:  # dropped by another event of the same round
            return
        try:
            data = connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        asked += data
        if not data or len(asked) > _MOST_REQUEST:
            self._drop(connection)
        elif b"\r\n\r\n" in asked or b"\n\n" in asked:
            self._connections[connection] = bytearray(self._answer(bytes(asked)))
            self._selector.modify(
                connection, selectors.EVENT_WRITE, partial(self._send, connection)
            )

    def _send(self, connection: socket.socket, _mask: int) -> None:
        left = self._connections.get(connection)
        if left is None:
            return
        try:
            del left[: connection.send(left)]
        except BlockingIOError:
            return
        except OSError:
            left.clear()
        if not left:
            self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        del self._connections[connection]
        self._selector.unregister(connection)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        connection.close()

    def _answer(self, asked: bytes) -> bytes:
        line = asked.split(b"\n", 1)[0].split()
        method, path = (*line, b"", b"")[:2]
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", b"only GET\n")
        if path.partition(b"?")[0] not in (b"/metrics", b"/"):
            return _response("404 Not Found", b"see /metrics\n")
        page = self._page()
        return _response("200 OK", page if method == b"GET" else b"", len(page))


def _response(status: str, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: {_TYPE}\r\nContent-Length: {size}\r\n"
        "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    ).encode() + body
