"""How many children a pool should have: as many as there is work for, within two bounds.

It grows at once, when all children are busy and the store holds something that they could
claim. It shrinks when some have had nothing to do for a while, to as many as were busy at
once in that time.
"""

from __future__ import annotations

from liteq.exceptions import ImproperlyConfigured

__all__ = ["Autoscaler"]


class Autoscaler:
    """Decides on the size of one pool. `keepalive`: seconds until an idle child goes.

    All times are those of one steady clock, given to each call.
    """

    LOOK = 0.2  # seconds between two looks for work while all children are busy

    def __init__(self, most: int, least: int, keepalive: float) -> None:
        if not 1 <= least <= most:
            raise ImproperlyConfigured(
                f"autoscale needs 1 ≤ min ≤ max, not max={most}, min={least}"
            )
        self.most = most
        self.least = least
        self.keepalive = keepalive
        self._peak = 0  # most that were busy at once
        self._since: float | None = None  # when all were busy last, or it shrank
        self._look_at = 0.0

    def wants_work(self, size: int, busy: int, now: float) -> bool:
        """Tell whether it is time to ask how much there is to do: not while a child is
        free, nor when there may be no more of them."""
        if busy < size or size >= self.most or now < self._look_at:
            return False
        self._look_at = now + self.LOOK
        return True

    def grown(self, size: int, claimable: int, now: float) -> int:
        """Return how many children there should be for so much more work."""
        grown = min(self.most, size + claimable)
        if grown > size:
            self._peak, self._since = 0, now  # the new ones get their time to be of use
        return grown

    def shrunk(self, size: int, busy: int, now: float) -> int:
        """Return how many children there should be, having seen so many busy now."""
        if size < self.least or size > self.most:
            self._peak, self._since = busy, now
            return min(max(size, self.least), self.most)
        if busy >= size or self._since is None:
            self._peak, self._since = 0, now
            return size
        self._peak = max(self._peak, busy)
        if now - self._since < self.keepalive:
            return size
        size = max(self.least, self._peak)
        self._peak, self._since = 0, now
        return size
