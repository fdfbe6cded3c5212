"""Calls to a Redis server from coroutines, over the client library's asyncio connections.

What an error means and when a call is made again are those of `redis_link`. Here is only what
waits: a connection of the running event loop, and the pause before the next try.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar
from weakref import WeakSet

from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import RedisError

from liteq.brokers.redis_link import FAILURES, WHICH_NODES, Link, Tries
from liteq.brokers.redis_scripts import Script, call_of, script
from liteq.brokers.redis_wire import ServerError, command, unpack
from liteq.exceptions import BrokerUnavailable
from liteq.offload import off_loop, running_loop

__all__ = ["AsyncLink"]

T = TypeVar("T")

_MOST: Final = 16  # connections of one event loop; further calls wait for one


class _Wire:
    """One connection of an event loop."""

    def __init__(self, connection: Any, switches: int) -> None:
        self._connection = connection
        self.switches = switches  # see `Link.follow()`
        _open.add(self)

    async def exchange(self, data: bytes) -> Any:
        """Send a command; return its reply like `Reader.reply()`."""
        self._connection._writer.write(data)
        try:
            return await self._reply()
        except asyncio.IncompleteReadError as exc:
            raise ConnectionError("the server closed the connection") from exc

    async def _reply(self) -> Any:
        reader: asyncio.StreamReader = self._connection._reader
        line = await reader.readuntil(b"\r\n")
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else (await reader.readexactly(size + 2))[:-2]
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        if kind == b"-":
            raise ServerError(rest.decode(errors="replace"))
        if kind == b"*":
            return [await self._reply() for _ in range(int(rest))]
        raise ConnectionError(f"what answers is not a Redis server: {line[:50]!r}")

    def close(self) -> None:
        """Close at once. What is written and not answered is an unknown outcome."""
        _open.discard(self)
        writer = self._connection._writer
        if writer is not None:
            writer.transport.abort()
            self._connection._close()

    def leave(self, nothing: int) -> None:
        """Put the descriptor `nothing` in place of the connection's, in a forked child: the
        server would believe it open as long as the child lives. The transport is not told:
        it would take the number out of the selector that the parent still uses."""
        writer = self._connection._writer
        if writer is not None and (number := writer.get_extra_info("socket").fileno()) >= 0:
            os.dup2(nothing, number, inheritable=False)


class _Loop:
    """The connections that one event loop has, and how many more it may open."""

    def __init__(self, forget: Callable[[], object]) -> None:
        self.spare: list[_Wire] = []
        self.room = asyncio.Semaphore(_MOST)
        self._forget = forget
        self._keeper: AsyncGenerator[None, None] | None = None

    async def keep(self) -> None:
        """Have the connections closed when the loop ends: it closes its generators then,
        and tells nobody else."""
        if self._keeper is None:
            self._keeper = self._until_the_end()
            await anext(self._keeper)

    async def _until_the_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._forget()
            self.close()
            await asyncio.sleep(0)  # in which the transports let go of their sockets

    def close(self) -> None:
        while self.spare:
            self.spare.pop().close()


class AsyncLink:
    """The way of coroutines to the store of a `Link`, whose settings and memory of
    outages it shares."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loops: dict[asyncio.AbstractEventLoop, _Loop] = {}
        _links.add(self)

    async def call(
        self, name: str, arguments: Sequence[Any], *, durable: bool = False
    ) -> list[bytes | None]:
        """Call a script like `Link.call()`. A call that is cancelled may have run."""
        wanted = script(name)
        known = call_of(wanted, self._link.prefix, arguments)
        replicated = durable and self._link.replicas > 0
        more = self._link.replica_timeout if replicated else 0.0
        return await self._repeat(
            lambda wire: self._run(wire, known, wanted, replicated=replicated), more
        )

    async def _run(
        self, wire: _Wire, known: bytes, wanted: Script, *, replicated: bool
    ) -> list[bytes | None]:
        try:
            data = await wire.exchange(known)
        except ServerError as exc:
            if exc.code != "NOSCRIPT":
                raise
            await wire.exchange(command(("SCRIPT", "LOAD", wanted.text)))
            data = await wire.exchange(known)
        if replicated:
            barrier, wait = self._link.replicating()
            await wire.exchange(barrier)
            self._link.check_replicas(await wire.exchange(wait))
        return unpack(data)

    async def _repeat(self, attempt: Callable[[_Wire], Awaitable[T]], more: float = 0.0) -> T:
        """Make a call, again if need be, each in the time that the link allows and `more`
        seconds."""
        link, here = self._link, self._here()
        tries = Tries(link)
        async with here.room:
            while True:
                wire: _Wire | None = None
                try:
                    if link.must_follow():
                        await off_loop(link.follow)
                    while here.spare and here.spare[-1].switches != link.switches:
                        here.spare.pop().close()
                    wire = here.spare.pop() if here.spare else await self._open(here)
                    async with asyncio.timeout(link.timeout + more):
                        result = await attempt(wire)
                except BrokerUnavailable:
                    # Of its replicas: asking again may take as long. Without a connection it is
                    # `meet()` that has asked again, as often as it is done here.
                    if wire is not None:
                        here.spare.append(wire)
                    raise
                except FAILURES as exc:
                    error, usable = link.meaning(exc)
                    if usable and wire is not None:
                        here.spare.append(wire)
                    elif wire is not None:
                        wire.close()
                    if not usable:
                        here.close()
                except BaseException:
                    if wire is not None:  # cancelled between the call and its answer
                        wire.close()
                    raise
                else:
                    here.spare.append(wire)
                    link.answered()
                    return result
                await asyncio.sleep(tries.pause_after(error, usable=usable))

    def _here(self) -> _Loop:
        loop = running_loop()
        here = self._loops.get(loop)
        if here is None:
            for other in [one for one in self._loops if one.is_closed()]:
                self._loops.pop(other, None)
            here = self._loops[loop] = _Loop(lambda: self._loops.pop(loop, None))
        return here

    async def _open(self, here: _Loop) -> _Wire:
        link = self._link
        place, options, switches = link.place, link.options, link.switches
        if not link.server:  # once in a process, and so is not worth a second way
            await off_loop(link.meet)
        await here.keep()
        if place.path is not None:
            connection: Any = UnixDomainSocketConnection(path=place.path, **options)
            await connection.connect()
        else:
            connection = await self._connect()
        wire = _Wire(connection, switches)
        try:
            async with asyncio.timeout(link.timeout):
                link.opened(unpack(await wire.exchange(link.opening(connection))))
                if link.is_cluster():
                    with contextlib.suppress(ServerError):  # see `Link.learn_nodes()`
                        link.learn_nodes(await wire.exchange(WHICH_NODES))
        except BaseException:
            wire.close()
            raise
        return wire

    async def _connect(self) -> Any:
        """Return a connection to the first of the addresses that answers."""
        link, place = self._link, self._link.place
        error: Exception | None = None
        for at in await off_loop(link.addresses) if place.service else link.addresses():
            kind = Connection if place.tls is None else SSLConnection
            connection: Any = kind(
                host=at[0],
                port=at[1],
                socket_keepalive=link.keepalive,
                **(place.tls or {}),
                **link.options,
            )
            try:
                await connection.connect()
            except (OSError, RedisError) as exc:
                link.leave(at)
                error = exc
            else:
                return connection
        assert error is not None
        raise error

    def close(self) -> None:
        """Close what no call is using; the next one connects again. From any thread."""
        for loop, here in list(self._loops.items()):
            with contextlib.suppress(RuntimeError):  # a loop that has ended meanwhile
                loop.call_soon_threadsafe(here.close)

    def _forget_inherited(self) -> None:
        _inherited.append(self._loops)
        self._loops = {}


_links: WeakSet[AsyncLink] = WeakSet()
_open: WeakSet[_Wire] = WeakSet()  # connections, of all loops, also those in use
# The loops and connections of the process that forked this one. They are kept, and never
# closed: see `_Wire.leave`.
_inherited: list[object] = []


def _after_fork_in_child() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for wire in list(_open):
        wire.leave(nothing)
        _inherited.append(wire)
    _open.clear()
    os.close(nothing)
    for link in list(_links):
        link._forget_inherited()


os.register_at_fork(after_in_child=_after_fork_in_child)
