"""A TCP proxy that does to a connection what networks do: lose, hold, cut, half-close."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path


class Proxy:
    """Stands between clients and a server's socket file.

    `lose_reply_of(word)`: the next command that has the word in it reaches the server, runs,
    and its connection is cut before the answer. `before(word, act, times)`: the next commands
    that have the word in them reach the server after `act()`. `hold()`: nothing passes either
    way until `release()`. `cut()`: every connection is closed now. `half_close()`: the
    server's side of every connection says that it will send no more. `refuse`: new
    connections are closed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._open = threading.Event()
        self._open.set()
        self._word: bytes | None = None
        self._acts: list[tuple[bytes, Callable[[], object]]] = []
        self.refuse = False
        self.lost = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def lead_to(self, path: Path) -> None:
        """Have new connections go to another server."""
        self._path = path

    def lose_reply_of(self, word: str) -> None:
        self._word = word.encode()

    def before(self, word: str, act: Callable[[], object], times: int) -> None:
        self._acts += [(word.encode(), act)] * times

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def cut(self) -> None:
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def half_close(self) -> None:
        for client, _ in self._pairs:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.refuse = True
        self.release()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuse:
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self._path))
            except OSError:
                client.close()
                server.close()
                continue
            self._pairs.append((client, server))
            state = {"lose": False}
            for source, target, upstream in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._pump, args=(source, target, upstream, state), daemon=True
                ).start()

    def _pump(
        self,
        source: socket.socket,
        target: socket.socket,
        upstream: bool,
        state: dict[str, bool],
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                self._open.wait()
                if upstream and self._acts and self._acts[0][0] in data:
                    self._acts.pop(0)[1]()
                word = self._word
                if upstream and word is not None and word in data:
                    self._word = None
                    state["lose"] = True
                elif not upstream and state["lose"]:
                    self.lost += 1
                    break  # it ran, and nobody hears of it
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
