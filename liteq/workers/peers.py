"""The other workers of this host, whose death wakes a worker at once."""

from __future__ import annotations

import os
import selectors

from liteq.brokers.base import Broker

__all__ = ["Peers"]


class Peers:
    """Watches their processes through a worker's selector.

    `look`: there may be others than those that are watched. `died`: a worker may have, so it is
    worth asking the store whose work is to be taken back.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._selector: selectors.BaseSelector
        self._watched: list[int] = []  # descriptors
        self.look = True
        self.died = False

    def find(self, selector: selectors.BaseSelector) -> None:
        """Watch those that there are now. A call to the store, which may fail."""
        self._forget()
        self._selector = selector
        self._watched = self._broker.peers()
        for fd in self._watched:
            selector.register(fd, selectors.EVENT_READ, self._on_death)
        self.look = False

    def close(self) -> None:
        """Watch nobody. The selector is left as it is, for it is closed as well."""
        for fd in self._watched:
            os.close(fd)
        self._watched = []

    def _forget(self) -> None:
        for fd in self._watched:
            self._selector.unregister(fd)
        self.close()

    def _on_death(self, _mask: int) -> None:
        self._forget()  # or the dead one would wake us until it is taken care of
        self.look = self.died = True
