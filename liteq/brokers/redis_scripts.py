"""The Lua scripts of the `lua` folder, put together of their parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from liteq import failure
from liteq.brokers.redis_wire import strings
from liteq.exceptions import DecodeError, Ignore, TaskRevokedError
from liteq.texts import unencodable

__all__ = ["Script", "call_of", "script"]

_FOLDER: Final = Path(__file__).parent / "lua"


class Script:
    """A Lua script of the `lua` folder, with what it needs in front of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        text = (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
        needs = next(line for line in text.splitlines() if line.startswith("-- Needs: "))
        first, _, others = needs.removeprefix("-- Needs: ").partition(" | ")
        # A call makes all functions anew. In one function more, they find the locals of the
        # first parts at once; at the same level Lua goes through a list for each. What the
        # first parts answer by themselves never makes them.
        within = ["return (function()", *_parts(others), text, "end)()"]
        self.text = "\n".join([_constants(), *_parts(first), *within]).encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()


def _parts(names: str) -> list[str]:
    return [(_FOLDER / f"{name}.lua").read_text(encoding="utf-8") for name in names.split()]


@cache
def script(name: str) -> Script:
    """Return the script of this name, read once."""
    return Script(name)


def call_of(wanted: Script, prefix: str, arguments: Sequence[Any]) -> bytes:
    """Return the command that calls a script which the server knows."""
    try:
        count, body = strings((1, prefix, *arguments))
    except UnicodeEncodeError as exc:
        raise unencodable(exc) from None
    return b"*%d\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n%b" % (count + 2, wanted.sha, body)


@cache
def _constants() -> str:
    """Return the error records that scripts hand on, as Lua strings. "%s": the reason."""
    revoked = failure.describe(TaskRevokedError("%s")).decode()
    ignored = failure.describe(Ignore("the task raised Ignore: it has no result")).decode()
    damaged = failure.describe(DecodeError("%s")).decode()
    return "\n".join(
        f"local {name}_ERROR = [==[{error}]==]"
        for name, error in (("REVOKED", revoked), ("IGNORED", ignored), ("DAMAGED", damaged))
    )
