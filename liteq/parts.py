"""The list that a gather ends with: one value or error for each part, as bytes.

A store puts it together without looking into any value, whatever the serializer: each
part is a letter ("r" for a result, "e" for an error record, "l" for the list of a gather
that is a part itself), its length in bytes as a decimal number, a colon, and the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from liteq.exceptions import DecodeError

__all__ = ["pack", "unpack"]

_LETTERS: Final = {"result": b"r", "error": b"e", "list": b"l"}
_KINDS: Final = {letter[0]: kind for kind, letter in _LETTERS.items()}


def pack(parts: Iterable[tuple[str, bytes]]) -> bytes:
    """Return the list of these parts: ("result", value), ("error", record) or
    ("list", what `pack` made)."""
    return b"".join(b"%b%d:%b" % (_LETTERS[kind], len(value), value) for kind, value in parts)


def unpack(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the parts in their order. Raises `DecodeError` if the list is damaged."""
    at, end = 0, len(data)
    while at < end:
        colon = data.find(b":", at, at + 22)
        kind = _KINDS.get(data[at])
        if colon < 0 or kind is None or not data[at + 1 : colon].isdigit():
            raise DecodeError(f"the list of a gather is damaged at byte {at}")
        start = colon + 1
        at = start + int(data[at + 1 : colon])
        if at > end:
            raise DecodeError(f"the list of a gather ends {at - end} bytes too early")
        yield kind, data[start:at]
