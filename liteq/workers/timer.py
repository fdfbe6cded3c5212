"""A thread that does, every so often, what the loop cannot while a long task holds it up."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["RepeatingTimer"]


class RepeatingTimer:
    """Calls `verb` every `interval` seconds, from a thread of this name, until it is stopped.

    Only the solo pool needs one: there the loop's thread is the one that runs the tasks.
    """

    def __init__(self, name: str, interval: float, verb: Callable[[], object]) -> None:
        self._interval = interval
        self._verb = verb
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(self._interval):
            self._verb()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
