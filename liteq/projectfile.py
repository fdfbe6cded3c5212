"""The file of a project that may hold settings: the nearest pyproject.toml, or a liteq.toml."""

from __future__ import annotations

import os

__all__ = ["may_say", "read"]


def read(directory: str | None = None) -> tuple[bytes, str] | None:
    """Return the first file of either name, and its path, or None.

    Looks in the directory (None: the current one) and upwards.
    """
    here = os.path.abspath(directory or os.curdir)
    while True:
        for file in ("liteq.toml", "pyproject.toml"):
            path = os.path.join(here, file)
            try:
                with open(path, "rb") as stream:
                    return stream.read(), path
            except OSError:
                continue
        parent = os.path.dirname(here)
        if parent == here:
            return None
        here = parent


def may_say(*settings: str) -> bool:
    """Tell whether the file may set one of these, without the 12 ms that a parser takes."""
    found = read()
    said = b"" if found is None else found[0].lower().replace(b"-", b"_")
    return any(name.encode() in said for name in settings)
