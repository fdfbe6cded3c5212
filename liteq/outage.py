"""The time in which a store cannot be reached: how soon it is tried again, and how many
times.

Whoever meets it keeps everything meanwhile: each call to a store may be repeated.
"""

from __future__ import annotations

import time
from logging import Logger
from typing import Final

from liteq.exceptions import BrokerError

__all__ = ["Outage"]

_SHORTEST: Final = 0.05  # seconds between the first two tries; doubled with each


class Outage:
    """What a process has met of outages, told to its `logger`. `longest`: seconds between two
    tries. `most_tries` in vain end in the error (None: it is tried for ever)."""

    def __init__(
        self, logger: Logger, *, longest: float, most_tries: int | None = None
    ) -> None:
        self.most_tries = most_tries
        self.until = 0.0  # monotonic: before it the store is left alone
        self._logger = logger
        self._longest = longest
        self._pause = 0.0
        self._tries = 0

    def meet(self, exc: BrokerError) -> float:
        """Note a try in vain; return for how many seconds the store is left alone. Raises the
        error when there have been as many tries as there may be."""
        if self.most_tries is not None and self._tries >= self.most_tries:
            raise exc
        self._tries += 1
        self._pause = min(self._longest, max(_SHORTEST, self._pause * 2))
        self.until = time.monotonic() + self._pause
        self._logger.error("%s; trying again in %.2g s", exc, self._pause)
        return self._pause

    def end(self) -> bool:
        """Note that the store has answered; tell whether it had not before."""
        met = self._tries > 0
        self.until = self._pause = 0.0
        self._tries = 0
        return met
