"""The standard streams of a command: there, whatever was closed, able to write any name, and
no reason to end if nobody can hear what is said beside the data.

What a program opens when it was started without a standard stream takes that one's number:
what is printed, by a library or a child, would go into the store.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress
from typing import Final

__all__ = ["PIPE_CLOSED", "is_unread", "mend_streams", "say"]

PIPE_CLOSED: Final = 141  # 128 and the number of SIGPIPE, by which other programs end then

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


def say(text: str = "", *, nl: bool = True) -> None:
    """Write a banner, a note or an error on stderr, if that can be done.

    The disk of a log is full, or who read the pipe has gone: that must neither stop a worker
    nor take the place of the exit code that an error has.
    """
    with suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.write(f"{text}\n" if nl else text)
            sys.stderr.flush()


def is_unread() -> bool:
    """Tell whether nobody reads stdout any more, and let what it may still hold go nowhere:
    Python would fail once more when it writes that at its end."""
    import select  # late: for few

    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)
    if not stdout.poll(0):  # it was another pipe that broke
        return False
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    return True


def _escaped(exc: UnicodeError) -> tuple[str, int]:
    if not isinstance(exc, UnicodeEncodeError):
        raise exc
    units = exc.object[exc.start : exc.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), exc.end
