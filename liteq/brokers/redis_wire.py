"""The bytes between this process and a Redis server: calls, answers, packed fields.

A script is called with one write and answers with one string, so the whole of a reply is
one length and the bytes behind it. That is all of the protocol (RESP) that a call needs,
and reading it here costs a tenth of what a general client's parser does.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

TYPE_CHECKING = False  # a probe reads replies, too: for it, typing takes longer than all
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Iterable, Sequence
    from typing import Any

__all__ = ["Reader", "ServerError", "command", "pack", "strings", "unpack"]

_CHUNK = 65_536
_IN_SCRIPT = "ERR Error running script"
_PLACE = ", on @user_script:"
_SIZES = [b"$%d\r\n" % size for size in range(512)]


class ServerError(Exception):
    """An error that the server answered with. `code` is its first word."""

    def __init__(self, text: str) -> None:
        if text.startswith(_IN_SCRIPT):
            text = _of_command(text)
        if _PLACE in text:  # Redis 7 puts it behind: nothing that a user can do about it
            text = text.rpartition(" script: ")[0]
        super().__init__(text)
        self.code, _, self.rest = text.partition(" ")


def _of_command(text: str) -> str:
    """Return what a command within a script was refused with. Redis 6 puts it behind the
    place in the script: "… @user_script: 40: -OOM command not allowed"."""
    place = 0
    while (place := text.find(": ", place) + 2) > 1:
        said = text[place:].removeprefix("-")
        code = said.partition(" ")[0]
        if len(code) > 2 and code.isalpha() and code.isupper():
            return said
    return text


def command(arguments: Iterable[Any]) -> bytes:
    """Return a command as it is sent: text, bytes and numbers; None is sent as ""."""
    count, body = strings(arguments)
    return b"*%d\r\n%b" % (count, body)


def strings(arguments: Iterable[Any]) -> tuple[int, bytes]:
    """Return how many arguments there are, and all of them as a command carries them."""
    parts: list[bytes] = []
    count = 0
    for value in arguments:  # hundreds of them in a step: each look-up here counts
        kind = type(value)
        if kind is str:
            value = value.encode()
        elif kind is int:
            value = b"%d" % value
        elif value is None:
            value = b""
        elif kind is not bytes:
            value = _bytes(value)
        size = len(value)
        parts += (_SIZES[size] if size < 512 else b"$%d\r\n" % size, value, b"\r\n")
        count += 1
    return count, b"".join(parts)


def _bytes(value: Any) -> bytes:
    if isinstance(value, bool):
        return b"1" if value else b"0"
    if isinstance(value, (int, float)):
        return repr(value).encode()
    return bytes(value)


def pack(fields: Sequence[bytes | None]) -> bytes:
    """Return fields as one value, in the form that `unpack()` reads."""
    sizes = b" ".join([b"-" if field is None else b"%d" % len(field) for field in fields])
    return sizes + b"\n" + b"".join([field or b"" for field in fields])


def unpack(data: bytes) -> list[bytes | None]:
    """Return the fields of a script's answer: their lengths stand in the first line."""
    end = data.index(b"\n")
    head = data[:end]
    if b"-" not in head:  # as in the answer of most steps, which is the longest of all
        bounds = accumulate(map(int, head.split()), initial=end + 1)
        return [data[at:behind] for at, behind in pairwise(bounds)]
    at = end + 1
    fields: list[bytes | None] = []
    for size in head.split():
        if size == b"-":
            fields.append(None)
        else:
            start, at = at, at + int(size)
            fields.append(data[start:at])
    return fields


class Reader:
    """Reads replies from a socket on which nothing else is read."""

    def __init__(self, sock: socket) -> None:
        self._socket = sock
        self._left = b""
        # One buffer for ever: one for each read, cut to what has come, would leave holes
        # between what stays, and the heap would grow around them.
        self._buffer = memoryview(bytearray(_CHUNK))

    def reply(self) -> Any:
        """Return one reply: bytes, None, an int or a list of these. Raises `ServerError`
        for an error, `ConnectionError` if the server has hung up."""
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self._exactly(size)
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        if kind == b"-":
            raise ServerError(rest.decode(errors="replace"))
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        raise ConnectionError(f"what answers is not a Redis server: {line[:50]!r}")

    def left(self) -> bytes:
        """Return what has come beyond the last reply; it is not read here any more."""
        data, self._left = self._left, b""
        return data

    def skip(self) -> None:
        """Read one reply, whatever it is."""
        try:  # noqa: SIM105 (contextlib is not for a probe either)
            self.reply()
        except ServerError:
            pass

    def _line(self) -> bytes:
        while (end := self._left.find(b"\r\n")) < 0:
            self._left += self._receive()
        line, self._left = self._left[:end], self._left[end + 2 :]
        return line

    def _exactly(self, size: int) -> bytes:
        wanted = size + 2
        if len(self._left) < wanted:
            chunks, have = [self._left], len(self._left)
            while have < wanted:
                chunk = self._receive()
                chunks.append(chunk)
                have += len(chunk)
            self._left = b"".join(chunks)
        data, self._left = self._left[:size], self._left[wanted:]
        return data

    def _receive(self) -> bytes:
        size = self._socket.recv_into(self._buffer)
        if not size:
            raise ConnectionError("the server closed the connection")
        return bytes(self._buffer[:size])
