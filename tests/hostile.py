"""Messages that no liteq would write: damaged, of another time, or made to do harm.

Each says what its dead letter is to say. None of them may end the worker that meets it,
run anything that it names, or keep the next message from its turn.
"""

from __future__ import annotations

import json
import pickle
from typing import NamedTuple

from liteq.ids import new_id
from liteq.message import VERSION, Message, Packed

__all__ = ["HOSTILE", "LIMIT", "Hostile", "forge"]

LIMIT = 200_000  # bytes of a body that the worker reads


class Hostile(NamedTuple):
    """A message by what is wrong with it. `says`: a part of the dead letter's reason."""

    name: str
    body: bytes
    says: str
    content_type: str = "json"
    envelope: str | None = None  # instead of the one that liteq would have written


class _Forged(Message):
    """A message with an envelope of its own."""

    __slots__ = ()

    def pack(self) -> Packed:
        return (*super().pack()[:-1], self.shadow)


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("import pathlib; pathlib.Path('evil').touch()",))


def _tagged(*payload: object) -> bytes:
    return json.dumps([[{"__liteq__": payload}], {}]).encode()


GOOD = b"[[1, 2], {}]"

HOSTILE = (
    Hostile("nothing", b"", "not valid JSON"),
    Hostile("no UTF-8", b"[[\xff\xfe, 1], {}]", "not valid JSON"),
    Hostile("truncated JSON", b"[[1, 2], {", "not valid JSON"),
    Hostile("more than one value", GOOD + GOOD, "not valid JSON"),
    Hostile("NUL bytes", b"[[1,\x00 2], {}]", "not valid JSON"),
    Hostile("nested too deep", b"[" * 100_000, "nested too deep"),
    Hostile(
        "balanced and nested too deep",
        b"[[" + b"[" * 90_000 + b"]" * 90_000 + b"], {}]",
        "nested too deep",
    ),
    Hostile("an endless integer", b"[[1, " + b"9" * 10_000 + b"], {}]", "not valid JSON"),
    Hostile("no call", b"null", "a list of the positional and the keyword arguments"),
    Hostile(
        "args of a wrong type",
        b'[{"x": 1}, {}]',
        "a list of the positional and the keyword arguments",
    ),
    Hostile(
        "kwargs of a wrong type",
        b"[[1, 2], [3]]",
        "a list of the positional and the keyword arguments",
    ),
    Hostile("a gigantic body", b'[["' + b"x" * LIMIT + b'"], {}]', f"{LIMIT}"),
    Hostile("a pickle", pickle.dumps(_Evil()), "pickle", "pickle"),
    Hostile("a pickle that says it is JSON", pickle.dumps(_Evil()), "not valid JSON"),
    Hostile("YAML", b"!!python/object/apply:os.system ['touch evil']", "yaml", "yaml"),
    Hostile("a format of nobody", GOOD, "application/x-evil", "application/x-evil"),
    Hostile("a class of nobody", _tagged("enum", "nobody", "Colour", "RED"), "nobody"),
    Hostile("a class to be called", _tagged("dataclass", "os", "system", {}), "os"),
    Hostile("a tag of nobody", _tagged("evil", 1), "evil"),
    Hostile("an envelope that is not JSON", GOOD, "envelope", envelope='{"content_type": '),
    Hostile("an envelope that is no object", GOOD, "envelope", envelope="[1]"),
    Hostile("an envelope of no version", GOOD, "envelope", envelope='{"shadow": "x"}'),
    Hostile(
        "an envelope of a later version", GOOD, "later", envelope=f'{{"v": {VERSION + 1}}}'
    ),
    Hostile(
        "an envelope with an unknown field",
        GOOD,
        "unknown fields",
        envelope=f'{{"on_success": "os.system", "v": {VERSION}}}',
    ),
    Hostile(
        "an envelope with an unknown field, written as liteq writes",
        GOOD,
        "unknown fields",
        envelope=f'{{"nonsense":7,"v":{VERSION}}}',
    ),
    Hostile(
        "an envelope with inputs that are none, written as liteq writes",
        GOOD,
        "envelope",
        envelope=f'{{"takes":5,"v":{VERSION}}}',
    ),
    Hostile(
        "an envelope with fields of wrong types",
        GOOD,
        "envelope",
        envelope=f'{{"keywords": 7, "v": {VERSION}}}',
    ),
    *(
        Hostile(
            f"an envelope with {name} of a wrong type",
            GOOD,
            f"not a type of {name}",
            envelope=f'{{"{name}":{value},"v":{VERSION}}}',
        )
        for name, value in (
            ("headers", "[1]"),
            ("stamps", "3"),
            ("stamped_headers", '"ab"'),
            ("stamped_headers", "[1]"),
            ("countdown", '"soon"'),
            ("group_index", "1.5"),
            ("has_links", '"yes"'),
            ("root_id", "{}"),
            ("requeued", "true"),
        )
    ),
    Hostile(
        "an envelope with inputs of wrong types",
        GOOD,
        "an entry of takes",
        envelope=f'{{"takes":[["a","b","c"]],"v":{VERSION}}}',
    ),
)


def forge(hostile: Hostile, task: str) -> Message:
    """Return this message, for a task."""
    if hostile.envelope is None:
        return Message(new_id(), task, hostile.body, content_type=hostile.content_type)
    return _Forged(new_id(), task, hostile.body, shadow=hostile.envelope)
