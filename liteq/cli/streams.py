"""The standard streams of a command: there, whatever was closed, and able to write any name.

What a program opens when it was started without a standard stream takes that one's number:
what is printed, by a library or a child, would go into the store.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import Final

__all__ = ["mend_streams"]

_ESCAPE: Final = "liteq.escape"


def mend_streams() -> None:
    """Open the null device in place of streams that were closed, and have stdout write what
    its encoding lacks as JSON does, in tables too: stderr's way, \\x, is not JSON."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(null, mode, closefd=False))  # noqa: SIM115 (as Python's own)
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error(_ESCAPE, _escaped)
        sys.stdout.reconfigure(errors=_ESCAPE)


def _escaped(exc: UnicodeError) -> tuple[str, int]:
    if not isinstance(exc, UnicodeEncodeError):
        raise exc
    units = exc.object[exc.start : exc.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), exc.end
