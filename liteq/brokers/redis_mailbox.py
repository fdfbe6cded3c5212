"""Wake-ups over Redis: a connection that listens on a few channels.

What is published to nobody is gone, so a wake-up may be lost with its connection. Whoever
waits looks at the store again by himself; the mailbox connects anew meanwhile. Its
descriptor stays the same: it stands for a connection, and is none.
"""

from __future__ import annotations

import contextlib
import os
import select
import ssl
import time
import weakref
from collections.abc import Callable, Sequence
from importlib.util import find_spec, module_from_spec
from typing import Any, ClassVar, Final

from redis.exceptions import RedisError

from liteq.brokers.base import Mailbox
from liteq.brokers.redis_form import lease_in
from liteq.brokers.redis_link import Link
from liteq.brokers.redis_wire import Reader, ServerError, command

__all__ = ["RedisMailbox"]

_CHUNK: Final = 65_536


def _own(name: str) -> Any:
    """Return a module of Python's as it was made, whoever has patched it: gevent takes out of
    `select` what does not give way to its other greenlets. Nothing waits at it here."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_select: Final = _own("select")
_HAS_EPOLL: Final = hasattr(_select, "epoll")


class RedisMailbox(Mailbox):
    """A mailbox that listens on these channels. `listening` is called whenever it begins to,
    with True if it does so anew: what was published before that is lost. `takes_leases`:
    they may come in place of words. Raises `BrokerUnavailable` if the server cannot be
    reached; one that is lost later is looked for by `mend()`."""

    pause: ClassVar = 1.0  # seconds between two tries to connect

    def __init__(
        self,
        link: Link,
        name: str,
        channels: Sequence[str],
        poll_interval: float,
        listening: Callable[[bool], object] | None = None,
        *,
        takes_leases: bool = False,
    ) -> None:
        self.name = name
        self.poll_interval = poll_interval
        self._link = link
        self._channels = channels
        # Most of what wakes a worker: this, or a lease, which begins like it up to its length.
        self._bell = command(("message", channels[0], ""))
        self._first = self._bell.removesuffix(b"0\r\n\r\n")
        self._takes_leases = takes_leases
        self._listening = listening
        self._signal = _Signal()
        self._connection: Any = None
        self._socket: Any = None
        self._buffer = b""
        self._encrypted = False
        self._missed = False
        self._moves = 0  # of the store, before it connected
        self._try_at = 0.0
        self._closed = False
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            try:
                self._connect()
            except ServerError as exc:
                raise link.refusal(exc)[0] from exc
            except (OSError, RedisError) as exc:
                raise link.unreachable(exc) from exc
            undo.pop_all()
        _mailboxes.add(self)

    def fileno(self) -> int:
        return self._signal.fileno()

    def receive(self) -> set[str]:
        woken: set[str] = set()
        if self._missed:
            self._missed = False
            woken.add("")
        while self._socket is not None:
            try:
                data = self._socket.recv(_CHUNK)
            except (BlockingIOError, ssl.SSLWantReadError):
                break
            except OSError:
                data = b""
            if not data:
                self._drop()
                woken.add("")  # something may have been missed
                break
            self._buffer += data
            if len(data) < _CHUNK and not self._encrypted:
                break  # that was all: what comes now makes the descriptor readable again
        if self._buffer == self._bell:
            self._buffer = b""
            woken.add("")
        elif not self._take_lease(woken):
            self._take(woken)
        return woken

    def wait(self, timeout: float | None) -> set[str]:
        if self._socket is None:
            self.mend()
        if self._missed or self._buffer:
            return self.receive()
        if self._socket is None:
            time.sleep(self.poll_interval if timeout is None else min(timeout, 0.05))
            return {""}
        self._signal.wait(timeout)
        return self.receive()

    def mend(self) -> None:
        """Connect anew, if the connection was lost, or is to a server that has the store no
        longer, and a try is due."""
        if self._moves != self._link.moves:
            self._drop()
        if self._socket is None and not self._closed and time.monotonic() >= self._try_at:
            with contextlib.suppress(OSError, RedisError, ServerError):
                self._connect(anew=True)
                self._missed = True

    def close(self) -> None:
        self._closed = True
        self._drop()
        self._signal.close()

    def _connect(self, *, anew: bool = False) -> None:
        self._try_at = time.monotonic() + self.pause
        self._moves = self._link.moves
        connection = self._link.connect()
        sock = connection._sock
        try:
            sock.sendall(command(("SUBSCRIBE", *self._channels)))
            reader = Reader(sock)
            for _ in self._channels:
                reader.reply()
            self._buffer = reader.left()
            sock.setblocking(False)
            self._signal.watch(sock.fileno())
        except BaseException:
            connection.disconnect()
            raise
        self._connection, self._socket = connection, sock
        # Of what TLS has received, there may be more than it gave, with nothing to select.
        self._encrypted = isinstance(sock, ssl.SSLSocket)
        if self._listening is not None:
            self._listening(anew)

    def _drop(self) -> None:
        connection, self._connection, self._socket = self._connection, None, None
        self._buffer = b""
        if connection is not None:
            self._signal.forget()
            connection.disconnect()

    def _take_lease(self, woken: set[str]) -> bool:
        """Take what is in the buffer, if it is one lease and nothing else."""
        data, start = self._buffer, len(self._first)
        if not (self._takes_leases and data.startswith(self._first)):
            return False
        end = data.find(b"\r\n", start)
        if end < 0 or end + 2 + int(data[start:end]) + 2 != len(data):
            return False
        self._buffer = b""
        self._hear(data[end + 2 : -2], woken)
        return True

    def _take(self, woken: set[str]) -> None:
        """Take the whole frames out of the buffer: ["message", channel, payload]."""
        at = 0
        while (found := _frame(self._buffer, at)) is not None:
            items, at = found
            if items[0] == b"message":
                self._hear(items[2], woken)
        self._buffer = self._buffer[at:]

    def _hear(self, payload: bytes, woken: set[str]) -> None:
        try:
            if self._takes_leases and payload[:1].isdigit():
                # The last is the one that counts: while a worker holds a lease none comes, and
                # the earlier ones were given back.
                self._leases = (lease_in(payload),)
            else:
                woken.update(payload.decode().split("\n"))
        except ValueError:  # another program has published it
            woken.add("")

    def _forget_inherited(self) -> None:
        """Close, in a child, its copies of descriptors that are the parent's. Nothing is
        taken out of the signal: the kernel's list behind it is the parent's as well."""
        connection, self._connection, self._socket = self._connection, None, None
        self._closed = True
        self._signal.close()
        if connection is not None:
            connection.disconnect()


def _frame(data: bytes, at: int) -> tuple[list[bytes], int] | None:
    """Return the list of strings that begins here, and where it ends; None if the rest of
    it is still to come."""
    end = data.find(b"\r\n", at)
    if end < 0:
        return None
    items: list[bytes] = []
    count = int(data[at + 1 : end])
    at = end + 2
    for _ in range(count):
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        if data[at : at + 1] == b":":
            items.append(data[at + 1 : end])
            at = end + 2
            continue
        size = int(data[at + 1 : end])
        at = end + 2 + size + 2
        if at > len(data):
            return None
        items.append(data[end + 2 : end + 2 + size])
    return items, at


class _Signal:
    """A descriptor that is readable when the one that it stands for is."""

    def __init__(self) -> None:
        self._watched = -1
        self._poll: Any = _select.epoll() if _HAS_EPOLL else _select.kqueue()

    def fileno(self) -> int:
        return -1 if self._poll.closed else int(self._poll.fileno())

    def watch(self, fd: int) -> None:
        if _HAS_EPOLL:
            self._poll.register(fd, _select.EPOLLIN)
        else:
            event = _select.kevent(fd, _select.KQ_FILTER_READ, _select.KQ_EV_ADD)
            self._poll.control([event], 0)
        self._watched = fd

    def forget(self) -> None:
        fd, self._watched = self._watched, -1
        if fd >= 0 and _HAS_EPOLL and not self._poll.closed:
            # Closing would do it too, but for copies of the descriptor in other processes.
            with contextlib.suppress(OSError):
                self._poll.unregister(fd)

    def wait(self, timeout: float | None) -> None:
        poller = select.poll()
        poller.register(self._poll.fileno(), select.POLLIN)
        poller.poll(None if timeout is None else max(0, timeout * 1000))

    def close(self) -> None:
        self._poll.close()


_mailboxes: weakref.WeakSet[RedisMailbox] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for mailbox in list(_mailboxes):
        mailbox._forget_inherited()


os.register_at_fork(after_in_child=_after_fork_in_child)
