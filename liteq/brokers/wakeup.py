"""Wake-ups between the processes of one host: Unix datagram sockets beside the store.

Every waiting process has a socket of its own in the store's `wake` folder: workers
under names that begin with `w`, beats with `b`, callers of `get()` with `r`.
Whoever has committed something sends a few bytes. A lost wake-up costs at most one
poll interval, never a hang: receivers look at the store again on their own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Final

from liteq.brokers import standby
from liteq.brokers.base import Mailbox
from liteq.brokers.files import own_folder
from liteq.selfpipe import SelfPipe

__all__ = ["LocalMailbox", "Post", "SocketMailbox", "kind_of"]

_LONGEST: Final = 100  # bytes of a socket address that every platform takes
_FRESH: Final = 0.1  # seconds: a folder changed this lately may change again unseen
_DATAGRAM: Final = 8192
_LINKS: Final = "/tmp"  # not TMPDIR, which is not the same for all processes


def kind_of(worker: int | None, *, beat: bool = False) -> str:
    """Return what the name of a mailbox begins with."""
    if beat:
        return "b"
    return "r" if worker is None else f"w{worker}-"


class Post:
    """Sends wake-ups to the mailboxes of one store."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._forget()
        self.folder = os.fspath(folder)
        _posts.add(self)

    def _forget(self) -> None:
        self._base: str | None = None
        self._directory = -1
        self._socket: socket.socket | None = None
        self._stamp: int | None = None
        self._workers: tuple[str, ...] = ()
        self._lock = threading.RLock()  # the garbage collector closes mailboxes, at any moment

    def open(
        self, poll_interval: float, worker: int | None = None, *, beat: bool = False
    ) -> SocketMailbox:
        """Open a mailbox. Where sockets cannot be had it polls instead."""
        name = kind_of(worker, beat=beat)
        if worker is None:  # an id is a worker's for ever, and it has one mailbox
            name += f"{os.getpid()}-{next(_numbers)}"
        if not os.path.isdir(self.folder):
            self.close()  # with what was known of the one that was there
        return SocketMailbox(self._address, name, poll_interval)

    def wake_workers(self, word: str = "", *, but: int | None = None) -> None:
        """Tell every worker that there may be work, or (`HELLO`) a new worker; `but` is the
        id of one that knows."""
        own = None if but is None else kind_of(but)
        data = word.encode()
        for name in self._worker_names():
            if own is None or not name.startswith(own):
                self._send(name, data)

    def wake_worker(self, worker: int, word: str) -> None:
        """Tell one worker something."""
        self._send(kind_of(worker), word.encode())

    def hand(self, worker: int, data: bytes) -> bool:
        """Send one worker what begins as no text does: a lease. False: it is not there, or has
        more to read than it takes."""
        return self._send(kind_of(worker), data)

    def wake_beats(self) -> None:
        """Tell every beat that a schedule has changed, or that nobody leads."""
        with contextlib.suppress(OSError):  # see `_send`
            for name in os.listdir(self.folder):
                if name.startswith("b"):
                    self._send(name, b"")

    def wake(self, name: str, ids: Iterable[str]) -> None:
        """Tell one mailbox that these messages settled. Its name was in the store, where others
        may have written it, and a file that it leads to elsewhere would look like a socket
        whose process is gone, and be removed."""
        if "/" in name or not name.isascii():
            return
        parcel: list[bytes] = []
        size = 0
        for text in ids:
            data = text.encode()
            if size + len(data) > _DATAGRAM - 100:
                self._send(name, b"\n".join(parcel))
                parcel, size = [], 0
            parcel.append(data)
            size += len(data) + 1
        self._send(name, b"\n".join(parcel))

    def prune(self) -> None:
        """Remove the sockets of processes that were killed: a wake-up to each finds the
        dead, and the living look at the store once for nothing."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.folder):
                self._send(name, b"")

    def close(self) -> None:
        """Close the sending socket and the folder; the next wake-up opens them again."""
        sender, self._socket = self._socket, None
        if sender is not None:
            sender.close()
        with self._lock:
            directory, self._directory, self._base = self._directory, -1, None
        if directory >= 0:
            os.close(directory)

    def __del__(self) -> None:
        # An app that was let go, unclosed, or the end of the program.
        self.close()

    def _drop_inherited(self) -> None:
        """Close what a forked child got: the parent goes on with its own."""
        sender, directory = self._socket, self._directory
        self._forget()
        if sender is not None:
            sender.close()
        if directory >= 0:
            os.close(directory)

    def _send(self, name: str, data: bytes) -> bool:
        """Send a datagram, if it can be, and return whether it could. It tells of what is in
        the store: no error here may look like one of that."""
        try:
            base = self._base
            address = f"{base}/{name}" if base else self._address(name)
            if address is None:
                return False
            sender = self._socket or self._open_socket()
        except OSError:
            return False  # no descriptor is left: polling is the backstop
        try:
            sender.sendto(data, address)
            return True
        except BlockingIOError:
            pass  # its mailbox is full: it has been woken
        except (ConnectionRefusedError, FileNotFoundError):
            # The receiver is gone, killed perhaps. Its socket file would be tried again
            # at each wake-up.
            with contextlib.suppress(OSError):
                os.unlink(address)
        except OSError:
            pass  # no room for one more datagram: polling is the backstop
        return False

    def _open_socket(self) -> socket.socket:
        with self._lock:
            if self._socket is None:  # another thread may have been quicker
                made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                _widen(made, socket.SO_SNDBUF, 2 * _DATAGRAM)
                made.setblocking(False)
                self._socket = made
            return self._socket

    def _worker_names(self) -> tuple[str, ...]:
        """Return the workers' mailboxes, read anew when the folder has changed."""
        try:
            stamp = os.stat(self.folder).st_mtime_ns
            if stamp == self._stamp:
                return self._workers
            names = tuple(n for n in os.listdir(self.folder) if n.startswith("w"))
        except FileNotFoundError:
            return ()
        except OSError:  # no descriptor is left: those of before, then
            return self._workers
        self._workers = names
        # File times are coarse: two changes in one tick of the clock look like one.
        self._stamp = stamp if time.time() - stamp / 1e9 > _FRESH else None
        return names

    def _address(self, name: str) -> str | None:
        """Return the socket address of a name."""
        if self._base is None:
            with self._lock:
                if self._base is None:
                    self._base = self._find_base()
        return f"{self._base}/{name}" if self._base else None

    def _find_base(self) -> str:
        """Return the folder as an address may name it.

        Addresses are limited to about 100 bytes and folders are not. Linux lets us name
        the folder by an open descriptor instead, others by a link.
        """
        own_folder(self.folder)
        plain = os.path.abspath(self.folder)
        if len(os.fsencode(plain)) <= _LONGEST - 40:
            return plain
        if not os.path.isdir("/proc/self/fd"):
            return _link_to(plain)
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        self._directory = os.open(self.folder, flags)
        return f"/proc/self/fd/{self._directory}"


class SocketMailbox(Mailbox):
    """A mailbox that other processes reach through a socket file."""

    def __init__(
        self, address_of: Callable[[str], str | None], name: str, poll_interval: float
    ) -> None:
        self.name = name
        self.poll_interval = poll_interval
        self._address_of = address_of  # it may change: see `Post.close()`
        self._socket: socket.socket | None = None
        try:
            address = address_of(name)
        except OSError:
            return  # nor is there a folder for them, or may one be made: poll
        if address is None:
            return
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            _widen(receiver, socket.SO_RCVBUF, 8 * _DATAGRAM)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address)  # left by an earlier process with our id
            receiver.bind(address)
            self._inode = os.stat(address).st_ino
        except OSError:
            receiver.close()  # a file system without sockets: poll
            return
        receiver.setblocking(False)
        self._socket = receiver
        _mailboxes.add(self)

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def receive(self) -> set[str]:
        woken: set[str] = set()
        while self._socket is not None:
            try:
                data = self._socket.recv(_DATAGRAM)
            except BlockingIOError:
                break
            if data[:1] != b"\0":
                woken.update(data.decode(errors="replace").split("\n"))  # anybody's bytes
            elif (lease := standby.read(data)) is not None:
                self._leases = (*self._leases, lease)
                break  # if there is more, the descriptor is readable still
        return woken

    def wait(self, timeout: float | None) -> set[str]:
        if self._socket is None:
            time.sleep(self.poll_interval if timeout is None else min(timeout, 0.05))
            return {""}
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.poll(None if timeout is None else max(0, timeout * 1000))
        return self.receive()

    def is_gone(self) -> bool:
        return self._socket is not None and self._place() is None

    def close(self) -> None:
        if self._socket is not None:
            place = self._place()
            self._socket.close()
            self._socket = None
            if place is not None:
                with contextlib.suppress(OSError):
                    os.unlink(place)

    def _place(self) -> str | None:
        """Return where its socket is; None if somebody has removed that, or where the store was
        made anew, and a worker of that has our name."""
        with contextlib.suppress(OSError):
            address = self._address_of(self.name)
            if address is not None and os.stat(address).st_ino == self._inode:
                return address
        return None

    def _drop_inherited(self) -> None:
        """Close what a forked child got, and leave the file: it is the parent's."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _link_to(folder: str) -> str:
    """Return a short name of a folder, the same in all processes of this user; "" if another
    user has taken that."""
    from hashlib import sha256  # late: only where /proc is not

    name = f"{_LINKS}/liteq-{os.geteuid()}-{sha256(os.fsencode(folder)).hexdigest()[:16]}"
    with contextlib.suppress(FileExistsError):
        os.symlink(folder, name)
    # What is ours in a folder for all only we can replace.
    ours = os.lstat(name).st_uid == os.geteuid() and os.path.islink(name)
    return name if ours and os.readlink(name) == folder else ""


def _widen(end: socket.socket, option: int, size: int) -> None:
    """Make room for our datagrams: by itself a socket of macOS takes 2 KiB."""
    if end.getsockopt(socket.SOL_SOCKET, option) < size:
        end.setsockopt(socket.SOL_SOCKET, option, size)


# Of all mailboxes of this process: two brokers may be open on one store, and what is for
# one of them must not reach the other.
_numbers = itertools.count()
_posts: weakref.WeakSet[Post] = weakref.WeakSet()
_mailboxes: weakref.WeakSet[SocketMailbox] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for post in list(_posts):
        post._drop_inherited()
    for mailbox in list(_mailboxes):
        mailbox._drop_inherited()


os.register_at_fork(after_in_child=_after_fork_in_child)


class LocalMailbox(Mailbox):
    """A mailbox within one process, for a store in memory.

    `forget` is a method of the store, which it does not hold: who keeps a mailbox for the
    next waiter would keep the store for ever.
    """

    def __init__(self, name: str, poll_interval: float, forget: Callable[[str], None]) -> None:
        self.name = name
        self.poll_interval = poll_interval
        self._forget = weakref.WeakMethod(forget)
        self._pipe = SelfPipe()
        self._woken: set[str] = set()
        self._handed: tuple[bytes, ...] = ()
        self._lock = threading.Lock()

    def put(self, ids: Iterable[str], *handed: bytes) -> None:
        """Wake whoever waits here, and hand leases over."""
        with self._lock:
            self._woken.update(ids)
            self._handed += handed
        self._pipe.wake()

    def fileno(self) -> int:
        return self._pipe.fileno()

    def receive(self) -> set[str]:
        self._pipe.drain()
        with self._lock:
            woken, self._woken = self._woken, set()
            handed, self._handed = self._handed, ()
        found = map(standby.read, handed)
        self._leases = (*self._leases, *(lease for lease in found if lease is not None))
        return woken

    def wait(self, timeout: float | None) -> set[str]:
        poller = select.poll()
        poller.register(self._pipe, select.POLLIN)
        poller.poll(None if timeout is None else max(0, timeout * 1000))
        return self.receive()

    def close(self) -> None:
        if (forget := self._forget()) is not None:
            forget(self.name)
        self._pipe.close()
