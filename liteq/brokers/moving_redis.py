"""A Redis store as something to be carried away or filled: see `moving`."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Final

from liteq.brokers.limiting_redis import overrides
from liteq.brokers.moving import Bond, Bucket, Kept, Override, Period, deletion_of
from liteq.brokers.redis_form import (
    LETTERS,
    RECORD_FIELDS,
    Fields,
    attempts_of,
    kept_fields,
    read_inputs,
    record_of,
)
from liteq.brokers.redis_link import Link
from liteq.brokers.redis_wire import pack
from liteq.exceptions import BrokerError
from liteq.message import EXPIRES_AT, PRIORITY, QUEUE, RUN_AT, TASK

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
        found: dict[str, int] = {}
        for ids in self._names("m:"):
            fields = Fields(self._call("numbers", *ids))
            found.update((id, fields.number()) for id in ids)
        return sorted(found, key=lambda id: found[id])

    def _names(self, kind: str) -> Iterator[list[str]]:
        """Give the names of all keys of a kind, page by page; one may come twice."""
        head = self._prefix + kind
        pattern = "".join(f"\\{c}" if c in "*?[]\\" else c for c in head) + "*"
        cursor = "0"
        while True:
            at, keys = self._ask("SCAN", cursor, "MATCH", pattern, "COUNT", str(_PAGE))
            if keys:
                yield [key.decode()[len(head) :] for key in keys]
            cursor = at.decode()
            if cursor == "0":
                return

    def read(self, ids: Sequence[str]) -> list[Kept]:
        fields = Fields(self._call("kept", *ids))
        kept = []
        while fields.more():
            raw = fields.some(RECORD_FIELDS)
            changed = fields.one() == b"1"
            bonds = [self._bond(fields) for _ in range(fields.number())]
            inputs = read_inputs(fields)
            before = fields.one()
            attempts = attempts_of(before, fields.some(fields.number()))
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
        self._keep("keep_workflow", workflows)

    def overrides(self) -> list[Override]:
        return [Override(*one) for one in overrides(self._call("limits"))]

    def buckets(self) -> list[Bucket]:
        found = {}
        for name, text in self._strings("bucket:"):
            free_at, used_at = text.split()
            found[name] = Bucket(name, float(free_at), float(used_at))
        return list(found.values())

    def write_buckets(self, buckets: Sequence[Bucket]) -> None:
        self._keep("keep_buckets", buckets)

    def periods(self) -> list[Period]:
        found = {}
        for key, text in self._strings("unique:"):
            until, _, id = text.partition(" ")
            if until:
                found[key] = Period(key, id, float(until))
        return list(found.values())

    def write_periods(self, periods: Sequence[Period]) -> None:
        self._keep("keep_periods", periods)

    def _strings(self, kind: str) -> Iterator[tuple[str, str]]:
        """Give the names and values of all keys of a kind that are strings."""
        for names in self._names(kind):
            values = self._ask("MGET", *(f"{self._prefix}{kind}{name}" for name in names))
            for name, value in zip(names, values, strict=True):
                if value is not None:
                    yield name, value.decode()

    def _keep(self, script: str, rows: Sequence[tuple[Any, ...]]) -> None:
        for at in range(0, len(rows), _PAGE):
            self._call(script, *(field for row in rows[at : at + _PAGE] for field in row))


def _arguments(kept: Kept) -> list[Any]:
    """Return the arguments of one message: see `lua/keep.lua`."""
    record = kept.record
    letter = LETTERS[record.state]
    if letter in "rply":  # it is claimed, or parked, anew; a retry waits for its time
        letter = "d" if letter == "y" else "q"
    fields = kept_fields(kept)
    packed = record.packed
    over = letter in _FINAL
    arguments: list[Any] = [record.id, letter, packed[QUEUE], packed[TASK], packed[PRIORITY]]
    arguments += [packed[RUN_AT], packed[EXPIRES_AT], record.workflow]
    delete_at = deletion_of(record) if over or record.early else None
    arguments += [delete_at, record.dead is not None]
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
