"""A Redis store as something to be carried away or filled: see `moving`."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final

from liteq.brokers.moving import Bond, Kept, deletion_of
from liteq.brokers.redis_form import (
    LETTERS,
    RECORD_FIELDS,
    Fields,
    attempt_of,
    kept_fields,
    read_inputs,
    record_of,
)
from liteq.brokers.redis_link import Link
from liteq.brokers.redis_wire import pack
from liteq.exceptions import BrokerError

__all__ = ["RedisShelf"]

_WORDS: Final = {"s": "success", "f": "failure", "p": "part", "e": "end"}
_PAGE: Final = 1_000
_FINAL: Final = frozenset("SFRI")

Call = Callable[..., list[bytes | None]]


class RedisShelf:
    """`call` calls a script; plain commands go over the link."""

    def __init__(self, call: Call, link: Link) -> None:
        self._call = call
        self._link = link
        self._ask = link.ask
        self._prefix = link.prefix
        self.place = f"{link.place} (keys {link.prefix}*)"

    def is_there(self) -> bool:
        return self._link.is_there()

    def identity(self) -> Hashable:
        try:
            said = self._ask("INFO", "server")
        except BrokerError:
            said = b""  # not for this user: then a copy on another server is taken for this one
        run = re.search(rb"^run_id:(\w+)", said, re.MULTILINE)
        return self._link.store_id, run and run[1]

    def ids(self) -> list[str]:
        head = f"{self._prefix}m:"
        pattern = "".join(f"\\{c}" if c in "*?[]\\" else c for c in head) + "*"
        found: dict[str, int] = {}
        cursor = "0"
        while True:
            at, keys = self._ask("SCAN", cursor, "MATCH", pattern, "COUNT", str(_PAGE))
            ids = [key.decode()[len(head) :] for key in keys]
            if ids:
                fields = Fields(self._call("numbers", *ids))
                found.update((id, fields.number()) for id in ids)
            cursor = at.decode()
            if cursor == "0":
                return sorted(found, key=lambda id: found[id])

    def read(self, ids: Sequence[str]) -> list[Kept]:
        fields = Fields(self._call("kept", *ids))
        kept = []
        while fields.more():
            raw = fields.some(RECORD_FIELDS)
            changed = fields.one() == b"1"
            bonds = [self._bond(fields) for _ in range(fields.number())]
            inputs = read_inputs(fields)
            packed = [fields.bytes() for _ in range(fields.number())]
            attempts = [attempt_of(n, one) for n, one in enumerate(packed, 1)]
            kept.append(
                Kept(
                    record=record_of(raw),
                    pending=int(raw[-1] or 0),
                    changed=changed,
                    bonds=tuple(bonds),
                    inputs=inputs,
                    attempts=tuple(attempts),
                )
            )
        return kept

    @staticmethod
    def _bond(fields: Fields) -> Bond:
        text, position, met = fields.text(), fields.number(), fields.one() == b"1"
        word = _WORDS[text[0].lower()]
        return Bond(text[1:], word if text[0].islower() else f"was {word}", position, met)

    def write(self, kept: Sequence[Kept]) -> int:
        arguments: list[Any] = []
        for one in kept:
            arguments += _arguments(one)
        return Fields(self._call("keep", *arguments)).number()

    def bind(self, kept: Sequence[Kept]) -> None:
        """Edges lead to ids, which need not be there: `write()` has kept them."""

    def workflows(self) -> list[tuple[str, str, float]]:
        fields = Fields(self._call("workflow_names"))
        found = []
        while fields.more():
            found.append((fields.text(), fields.text(), float(fields.bytes())))
        return found

    def write_workflows(self, workflows: Sequence[tuple[str, str, float]]) -> None:
        for at in range(0, len(workflows), _PAGE):
            arguments: list[Any] = []
            for id, name, created in workflows[at : at + _PAGE]:
                arguments += (id, name, created)
            self._call("keep_workflow", *arguments)


def _arguments(kept: Kept) -> list[Any]:
    """Return the arguments of one message: see `lua/keep.lua`."""
    record = kept.record
    letter = LETTERS[record.state]
    if letter in "rply":  # it is claimed, or parked, anew; a retry waits for its time
        letter = "d" if letter == "y" else "q"
    fields = kept_fields(kept)
    packed = record.packed
    over = letter in _FINAL
    arguments: list[Any] = [record.id, letter, packed[3], packed[1], packed[4]]
    arguments += [packed[5], packed[6], record.workflow]
    arguments += [deletion_of(record) if over else None, record.dead is not None]
    arguments += [len(fields) // 2, *fields, len(kept.bonds)]
    for target, on, position, met in kept.bonds:
        word = on.removeprefix("was ")[0]
        arguments += (word if " " not in on else word.upper(), target, position, met)
    arguments.append(len(kept.inputs))
    for source, kind, position, value in kept.inputs:
        arguments += (f"{position}:{source}", kind[0].encode() + value)
    arguments.append(len(kept.attempts))
    for attempt in kept.attempts:
        times = (attempt.started_at, attempt.ended_at)
        arguments.append(
            pack(
                [
                    attempt.outcome.encode(),
                    attempt.error,
                    None if attempt.worker is None else attempt.worker.encode(),
                    *(None if at is None else repr(at).encode() for at in times),
                ]
            )
        )
    return arguments
