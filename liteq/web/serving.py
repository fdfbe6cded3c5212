"""The server of `liteq web`, kept free for who asks: of those who hold a connection and ask for
nothing, it has a few, and none of them for long.

uvicorn has no limit for either. Whoever can reach the port, without a password even, could
take all descriptors that the process may have; and for each that asyncio then cannot accept
it logs a traceback, two thousand at a time. Where there are fewer descriptors than it takes,
that is said in one line, and who asks for nothing makes room.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from liteq.loggers import get_logger
from liteq.shortage import advice

if TYPE_CHECKING:
    import socket

__all__ = ["Connection", "serve"]

logger = get_logger("liteq.web")

# Connections that are accepted before any of them is looked at. Each that cannot be has asyncio
# listen again in a second; were there more, each of these would be followed by as many.
_AT_ONCE: Final = 1
_IN_LINE: Final = 128  # that the kernel keeps until then: any more are to try again in a second
_FEWEST: Final = 6  # connections of one browser
_OUTAGE: Final = 60.0  # seconds: a shortage that soon after another is the same one
_ANSWERING: Final = (h11.SEND_RESPONSE, h11.SEND_BODY)


def serve(pages: Any, listener: socket.socket) -> None:
    """Serve an ASGI application at a socket until a signal ends this."""
    config = uvicorn.Config(
        pages,
        http=Connection,
        backlog=_AT_ONCE,
        lifespan="off",
        log_config=None,
        log_level="warning",
        server_header=False,
    )
    _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    _short_until = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._on_trouble)
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(_IN_LINE)  # for asyncio the line is no longer than what it takes at once

    def _on_trouble(self, loop: asyncio.AbstractEventLoop, told: dict[str, Any]) -> None:
        """Say it once if no connection can be accepted; and have fewer from now on, for to
        open the store for a page takes several descriptors, too."""
        if "socket" not in told:  # what is told of a listener, and of nothing else
            loop.default_exception_handler(told)
            return
        now = loop.time()
        if now >= self._short_until:
            exc = told["exception"]
            logger.warning("there is no room for a connection: %s", advice(exc) or exc)
        self._short_until = now + _OUTAGE
        connections = self.server_state.connections
        Connection.most = max(_FEWEST, len(connections) // 2)
        _drop_oldest(connections, Connection.most)


class Connection(H11Protocol):
    """One of a limited number: the oldest that asks for nothing is dropped for a new one. Each
    request has to be there as a whole in time."""

    most: ClassVar = 64  # pages are few, and a browser has six connections
    patience: ClassVar = 10.0  # seconds for a request, from its connection or its first byte

    began = 0.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as there
        super().connection_made(transport)
        self.began = self.loop.time()
        self._expect()
        _drop_oldest(self.connections, self.most)  # this one, if all the others are busy

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._expect()
        else:
            self._expect_no_more()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_no_more()
        super().connection_lost(exc)

    def _expect(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.patience, self.transport.abort)

    def _expect_no_more(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _drop_oldest(connections: set[Any], most: int) -> None:
    """Drop those of too many that have asked for nothing, and been there, for longest."""
    if len(connections) <= most:
        return
    idle = [
        one
        for one in connections
        if isinstance(one, Connection) and one.conn.our_state not in _ANSWERING
    ]
    idle.sort(key=lambda one: one.began)
    for one in idle[: len(connections) - most]:
        connections.discard(one)  # now: the next is not to drop the same
        one.transport.abort()
