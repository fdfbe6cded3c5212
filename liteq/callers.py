"""Where, outside of liteq, a warning belongs."""

from __future__ import annotations

import sys

__all__ = ["outside"]


def outside() -> int:
    """Return the stack level of the first caller outside of liteq."""
    ours = (__name__.partition(".")[0], "collections", "_collections_abc")
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_globals.get("__name__", "").partition(".")[0] in ours
    ):
        level, frame = level + 1, frame.f_back
    return level
