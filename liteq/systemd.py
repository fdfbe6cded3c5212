"""Tell systemd how the worker is: the notify protocol of `sd_notify(3)`.

Each message is one datagram of `NAME=value` lines to the Unix socket that the variable
`NOTIFY_SOCKET` names. Nothing answers, and nothing may depend on it: a worker whose
service manager has gone must go on working, so a failed send is dropped. What a manager has
no room for while it is busy, with the words of other services say, is kept until it has.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import MutableMapping

__all__ = ["Notifier"]


class Notifier:
    """The service manager's ear. Any thread may use it."""

    def __init__(self, address: str, *, watchdog_interval: float | None = None) -> None:
        """`address` is a path, or a name in Linux's abstract namespace behind an "@"."""
        self.watchdog_interval = watchdog_interval  # seconds between two `watchdog()` calls
        self._address = "\0" + address[1:] if address.startswith("@") else address
        # Non-blocking: a service manager that does not read must not hold up the worker.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._unsent: dict[str, str] = {}  # by what it is about, in order: the last word counts
        self._is_waiting = False  # a selector watches for room
        self._lock = threading.Lock()  # who sends what is unsent keeps the order

    @classmethod
    def from_environment(
        cls, environ: MutableMapping[str, str] = os.environ
    ) -> Notifier | None:
        """Return the notifier that the service manager asked for, or None.

        Takes the variables out of the environment: a child or a program that a task
        starts would otherwise report itself as the service.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        watched_pid = environ.pop("WATCHDOG_PID", "")
        if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
            return None
        watched = microseconds.isdigit() and watched_pid in ("", str(os.getpid()))
        # sd_watchdog_enabled(3) recommends half of the time allowed.
        interval = int(microseconds) / 2_000_000 if watched else None
        return cls(address, watchdog_interval=interval or None)

    def ready(self) -> None:
        """The worker has started, or has ended the reload it announced."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Show one line of text in `systemctl status`."""
        self._send("STATUS=" + text.replace("\n", " "))

    def watchdog(self) -> None:
        """The worker lives. Say so only when it does: silence gets it restarted."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """The worker replaces its children; `ready()` ends it."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")

    def stopping(self) -> None:
        """The worker has begun to stop."""
        self._send("STOPPING=1")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for this many seconds from now before the start or stop counts as hung."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def waiting(self, why: str, within: float) -> None:
        """The store cannot be reached yet; the next word comes `within` so many seconds."""
        self.status(f"waiting for the store: {why}")
        # Twice: where a whole machine starts, all is slow.
        self.extend_timeout(2 * within)
        if self.watchdog_interval:
            self.watchdog()  # of a service that systemd takes for ready without its word

    def catch_up(self, selector: selectors.BaseSelector) -> None:
        """Send what there was no room for; have the `selector` wake up when there is some. For
        a loop's own thread, before each of its sleeps."""
        if not (self._unsent or self._is_waiting):
            return
        with self._lock:
            self._flush()
            waits = bool(self._unsent)
        if waits and not self._is_waiting:
            selector.register(self._socket, selectors.EVENT_WRITE, lambda _: None)
        elif self._is_waiting and not waits:
            selector.unregister(self._socket)
        self._is_waiting = waits

    def close(self) -> None:
        """Close the socket; what is sent afterwards is dropped."""
        self._socket.close()

    def _send(self, message: str) -> None:
        name = message.partition("=")[0]
        with self._lock:
            self._unsent.pop(name, None)
            self._unsent[name] = message
            self._flush()

    def _flush(self) -> None:
        for name, message in tuple(self._unsent.items()):
            try:
                # Each time, for the manager may have been started anew; and a selector sees
                # whether there is room only at the other end of a connection.
                self._socket.connect(self._address)
                self._socket.send(message.encode())
            except BlockingIOError:
                return
            except OSError:
                pass  # nobody is there to hear it
            del self._unsent[name]
