"""Who, outside of liteq, a call of ours comes from: whose line a warning belongs to, and
which module makes an app."""

from __future__ import annotations

import sys

__all__ = ["creator", "outside"]


def outside() -> int:
    """Return the stack level of the first caller outside of liteq."""
    ours = (__name__.partition(".")[0], "collections", "_collections_abc")
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_globals.get("__name__", "").partition(".")[0] in ours
    ):
        level, frame = level + 1, frame.f_back
    return level


def creator() -> tuple[str, str | None]:
    """Return the module that is making what calls this, and its file (None at a prompt)."""
    frame = sys._getframe(2)
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    scope = frame.f_globals
    file = scope.get("__file__")
    return scope.get("__name__", "__main__"), file if isinstance(file, str) else None


def _is_ours(module: str) -> bool:
    return module == "liteq" or module.startswith("liteq.")
