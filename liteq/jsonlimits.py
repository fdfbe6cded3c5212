"""How deep JSON is nested, told before it is parsed.

What is stored was written by a program that held to a limit, or by somebody who wants a
worker's stack, its memory or its time. Everything here runs at C's speed, and texts that
are too short to break the limit are not looked at. (How many digits an integer may have,
Python watches itself: see `sys.set_int_max_str_digits`.)
"""

from __future__ import annotations

import re
from typing import Final

from liteq.exceptions import DecodeError

__all__ = ["check"]

_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_NO_STRUCTURE: Final = bytes(sorted(set(range(256)) - set(b'[]{}"')))


def check(data: bytes, depth: int) -> None:
    """Raise `DecodeError` if JSON is nested deeper than this. It may be damaged otherwise."""
    if len(data) <= depth:
        return
    if data.count(b"[") + data.count(b"{") > depth and _is_deeper(data, depth):
        raise DecodeError(f"nested too deep to be read: more than {depth} levels of JSON")


def _is_deeper(data: bytes, depth: int) -> bool:
    # A quote may be one of a string's characters, and so may the backslash before it.
    data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = data.translate(_SQUARE, _NO_STRUCTURE).replace(b'""', b"")
    if b'"' in brackets:  # there were brackets in strings
        brackets = re.sub(rb'"[^"]*"', b"", brackets)
    too_deep = b"[" * (depth + 1)
    # Each round takes the innermost pairs away, all over the text at once.
    for turn in range(depth):
        if (turn < 4 or turn % 64 == 0) and too_deep in brackets:
            return True
        left = brackets.replace(b"[]", b"")
        if len(left) == len(brackets):  # nothing is left, or what was never closed
            return brackets.count(b"[") > depth
        brackets = left
    return bool(brackets)
