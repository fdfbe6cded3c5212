"""The self-pipe: how another thread, or a signal, ends the sleep of a loop's selector."""

from __future__ import annotations

import contextlib
import socket

__all__ = ["SelfPipe"]


class SelfPipe:
    """Readable, for a selector, from a `wake()` until it is drained."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    @property
    def waking(self) -> int:
        """The descriptor that wakes when it is written to, as for `signal.set_wakeup_fd`."""
        return self._writer.fileno()

    def wake(self) -> None:
        """End the sleep, from any thread or signal handler."""
        with contextlib.suppress(OSError):  # it is over, or has been woken enough
            self._writer.send(b"!")

    def drain(self) -> None:
        """Take all wake-ups as heard. Look for what they were about after this."""
        with contextlib.suppress(BlockingIOError):
            while len(self._reader.recv(4096)) == 4096:
                pass

    def forget(self) -> None:
        """Close, in a forked child, the end that no selector knows."""
        self._writer.close()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()
