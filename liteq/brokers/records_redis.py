"""What a store has, in Lua: records, counts, workflows; and waiting for results."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from liteq.brokers.base import Mailbox
from liteq.brokers.base_redis import LOOK, RedisStore, address, slices
from liteq.brokers.redis_form import (
    LETTERS,
    RECORD_FIELDS,
    STATES,
    Fields,
    attempts_of,
    read_inputs,
    record_of,
)
from liteq.brokers.values import Attempt, Input, Node, QueueInfo, Record, State, WorkflowInfo
from liteq.message import GATHER, Edge

if TYPE_CHECKING:
    from liteq.brokers.searching import Found, Search

__all__ = ["RedisRecords"]


class RedisRecords(RedisStore):
    """The part of a Redis store that is looked at."""

    def holder(self, unique_key: str) -> str | None:
        [found] = self._call("holder", unique_key)
        return None if found is None else found.decode()

    def queues(self) -> list[QueueInfo]:
        fields = Fields(self._call("queues"))
        found: dict[str, QueueInfo] = {}
        while fields.more():
            name, paused, latency = fields.text(), fields.bytes() == b"1", fields.one()
            found[name] = QueueInfo(
                name=name,
                counts=_counted(fields),
                paused=paused,
                limit=self._lengths.of(name),
                latency=None if latency is None else float(latency),
            )
        for name, dead in self._dead_by_queue().items():
            known = found.get(name) or QueueInfo(name, {}, limit=self._lengths.of(name))
            found[name] = known._replace(dead=dead)
        return sorted(found.values())

    def claimable(self, queues: Sequence[str], most: int) -> int:
        return min(most, Fields(self._call("claimable", *queues)).number())

    def _dead_by_queue(self) -> dict[str, int]:
        found: dict[str, int] = {}
        last: bytes | None = b"0"
        while last is not None:
            last, *pairs = self._call("dead_in", last, LOOK)
            for name, number in zip(pairs[::2], pairs[1::2], strict=True):
                queue = (name or b"").decode()
                found[queue] = found.get(queue, 0) + int(number or 0)
        return found

    def get(self, ids: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for some in slices(list(ids), LOOK):
            found.update(self._found(self._call("get", *some)))
        return found

    async def aget(self, ids: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for some in slices(list(ids), LOOK):
            found.update(self._found(await self._acall("get", *some)))
        return found

    def _found(self, answer: list[bytes | None]) -> dict[str, Record]:
        if len(answer) % RECORD_FIELDS:
            self._learn(answer.pop())
        return _records(answer)

    def inputs(self, id: str) -> tuple[Input, ...]:
        return read_inputs(Fields(self._call("inputs", id)))

    def attempts(self, id: str) -> list[Attempt]:
        before, *kept = self._call("attempts", id)
        return attempts_of(before, kept)

    def browse(
        self, state: State | Literal["dead"], *, queue: str | None = None, limit: int = 50
    ) -> list[Record]:
        letter = LETTERS[state]
        places = [queue or ""]
        if queue is None and letter in "wqdl":
            places = self._queue_names()
        found: list[tuple[int, str]] = []
        for place in places:
            found += self._browse_place(letter, place, limit)
        ids = [id for _, id in heapq.nsmallest(limit, found)]
        records = self.get(ids)
        wanted = [records[id] for id in ids if id in records]
        if state == "dead":
            return [record for record in wanted if record.dead is not None]
        return [record for record in wanted if record.state == state]

    def _browse_place(self, letter: str, queue: str, limit: int) -> list[tuple[int, str]]:
        """Return numbers and ids of a state; all of them if they do not come in order."""
        in_order = letter not in ("d", "p", "r")
        slice = limit if letter == "q" else min(max(limit, 1), LOOK) if in_order else LOOK
        found: list[tuple[int, str]] = []
        at: int | None = 0
        while at is not None and not (in_order and len(found) >= limit):
            following, *pairs = self._call("browse", letter, queue, slice, at)
            found += [
                (int(number or 0), (id or b"").decode())
                for number, id in zip(pairs[::2], pairs[1::2], strict=True)
            ]
            if not in_order and len(found) > limit + LOOK:
                found = heapq.nsmallest(limit, found)
            at = None if following is None else int(following)
        return found

    def find(self, search: Search, *, before: int | None = None) -> Iterator[Found]:
        from liteq.brokers import searching_redis  # late: for who operates a store

        return searching_redis.find(self._call, self._queue_names, search, before)

    def complete(self, prefix: str, limit: int = 2) -> list[str]:
        from liteq.brokers import searching_redis  # late, as above

        found: list[str] = []
        for ids in searching_redis.complete(self._link.ask, f"{self._prefix}m:", prefix):
            known = self.get(ids)
            found += [id for id in known if known[id].message.task != GATHER]
            if len(found) >= limit:
                break
        return sorted(found)[:limit]

    def counts(self) -> dict[str, dict[State, int]]:
        fields = Fields(self._call("counts"))
        counted: dict[str, dict[State, int]] = {}
        while fields.more():
            queue = fields.text()
            counted[queue] = _counted(fields)
        return counted

    # Workflows

    def workflow(self, id: str) -> WorkflowInfo | None:
        found = self._workflows(1, f"={id}")
        return found[0] if found else None

    def workflows(self, limit: int = 50) -> list[WorkflowInfo]:
        return self._workflows(limit, "")

    def _workflows(self, limit: int, id: str) -> list[WorkflowInfo]:
        fields = Fields(self._call("workflows", limit, id))
        found = []
        while fields.more():
            name_of, name, created = fields.text(), fields.text(), float(fields.bytes())
            counts: dict[State, int] = {}
            upstream = 0
            for _ in range(fields.number()):
                letter, number = fields.bytes(), fields.number()
                if letter == b"u":
                    letter, upstream = b"R", number
                state: State = "retrying" if letter == b"y" else STATES[letter]
                counts[state] = counts.get(state, 0) + number
            found.append(WorkflowInfo(name_of, name, created, counts, upstream))
        return found

    def nodes(self, workflow: str) -> tuple[list[Node], list[Edge]]:
        nodes: list[Node] = []
        edges: list[Edge] = []
        at = 0
        while True:
            fields = Fields(self._call("nodes", workflow, at, at + LOOK - 1))
            before = len(nodes)
            while fields.more():
                _read_node(fields, nodes, edges)
            if len(nodes) - before < LOOK:
                break
            at += LOOK
        among = {node.id for node in nodes}
        return nodes, sorted(e for e in edges if e.source in among and e.target in among)

    # Results

    def watch(
        self, ids: Sequence[str], mailbox: Mailbox, *, notes: bool = False
    ) -> dict[str, Record]:
        name = address(mailbox)
        settled: dict[str, Record] = {}
        for some in slices(list(ids), LOOK):
            settled.update(_records(self._call("watch", f"{name}+" if notes else name, *some)))
        return settled

    async def awatch(self, ids: Sequence[str], mailbox: Mailbox) -> dict[str, Record]:
        name = address(mailbox)
        settled: dict[str, Record] = {}
        for some in slices(list(ids), LOOK):
            settled.update(_records(await self._acall("watch", name, *some)))
        return settled


def _counted(fields: Fields) -> dict[State, int]:
    """Return the counts of one queue that `lua/counts.lua` puts."""
    states: tuple[State, ...] = ("waiting", "queued", "scheduled", "running", "parked")
    states += ("limited",)
    numbers = [int(number or 0) for number in fields.some(6)]
    return {s: n for s, n in zip(states, numbers, strict=True) if n}


def _read_node(fields: Fields, nodes: list[Node], edges: list[Edge]) -> None:
    id, task, envelope, letter, revoked, started, settled, result = fields.some(8)
    assert id is not None
    assert task is not None
    state: State = STATES[letter or b""]
    if result is not None and state in ("queued", "scheduled"):
        state = "retrying"
    nodes.append(
        Node(
            id=id.decode(),
            name=_called(envelope) or task.decode(),
            task=task.decode(),
            state=state,
            upstream=revoked == b"upstream",
            started_at=float(started) if started else None,
            settled_at=float(settled) if settled else None,
        )
    )
    words = {"s": "success", "f": "failure", "p": "part", "e": "end"}
    for _ in range(fields.number()):
        text, position = fields.text(), fields.number()
        edges.append(Edge(id.decode(), text[1:], words[text[0].lower()], position))


def _called(envelope: bytes | None) -> str | None:
    """Return what a node is called beside its task; nothing, if its envelope is damaged."""
    try:
        fields = json.loads(envelope or b"{}")
        found = fields.get("node") or fields.get("shadow")
    except (AttributeError, ValueError, RecursionError):
        return None
    return None if found is None else str(found)


def _records(answer: Sequence[bytes | None]) -> dict[str, Record]:
    found = {}
    for at in range(0, len(answer), RECORD_FIELDS):
        record = record_of(answer[at : at + RECORD_FIELDS])
        found[record.id] = record
    return found
