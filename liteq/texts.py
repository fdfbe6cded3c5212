"""Texts that no store can keep: UTF-8 has no bytes for half a character."""

from __future__ import annotations

from collections.abc import Iterable

from liteq.exceptions import EncodeError

__all__ = ["check", "readable", "unencodable"]


def unencodable(exc: UnicodeEncodeError) -> EncodeError:
    """Return the error that says which text it was."""
    return EncodeError(
        f"{exc.object!r} cannot be kept: it holds a lone surrogate, half a character, which "
        "UTF-8 has no bytes for (names of files have them, see os.fsencode())"
    )


def check(values: Iterable[object]) -> None:
    """Raise `EncodeError` if one of the values is such a text."""
    for value in values:
        if type(value) is str and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as exc:
                raise unencodable(exc) from None


def readable(text: str) -> str:
    """Return a text with half characters written out."""
    return text.encode(errors="backslashreplace").decode()
