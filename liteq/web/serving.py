"""The server of `liteq web`, kept free for who asks: of those who hold a connection and ask for
nothing, it has a few, and none of them for long.

uvicorn has no limit for either. Whoever can reach the port, without a password even, could
take all descriptors that the process may have; and for each that asyncio then cannot accept
it logs a traceback, two thousand at a time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import socket

__all__ = ["Connection", "serve"]

_AT_ONCE: Final = 16  # connections that are accepted before any of them is looked at
_IN_LINE: Final = 128  # that the kernel keeps until then: any more are to try again in a second
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
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(_IN_LINE)  # for asyncio the line is no longer than what it takes at once


class Connection(H11Protocol):
    """One of a limited number: the oldest that asks for nothing is dropped for a new one. Each
    request has to be there as a whole in time."""

    most: ClassVar = 64  # pages are few, and a browser has six connections
    patience: ClassVar = 10.0  # seconds for a request, from its connection or its first byte

    _began = 0.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as there
        super().connection_made(transport)
        self._began = self.loop.time()
        self._expect()
        if len(self.connections) > self.most:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        idle = [
            one
            for one in self.connections
            if isinstance(one, Connection) and one.conn.our_state not in _ANSWERING
        ]
        oldest = min(idle, key=lambda one: one._began)  # this one, if all the others are busy
        self.connections.discard(oldest)  # now: the next is not to drop the same
        oldest.transport.abort()

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
