"""The contract in Lua: the same store on a Redis server, which many machines share.

Each verb is one script (`lua/<verb>.lua`), which the server runs alone: what it writes
becomes visible together. Time is the server's, so machines whose clocks differ agree.
What coroutines call most (`aenqueue`, `aget`, `awatch`) goes over asyncio connections of the
client library (`redis_async`), the rest off the loop, as with every store.

What survives: all that the server keeps. Nothing of it when the server is killed without an
append-only file; all but its last second or two of writes with `appendfsync everysec`, should
the power fail, or the server be killed while its disk is slow to sync; and with
`durability="replicated"`, what a replica has taken over survives the loss of the master too,
as long as that replica is the one that follows it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import compress
from typing import Any, Final

from liteq.brokers.base_redis import LOOK, SLICE, refusal, refuse, slices
from liteq.brokers.graph import count_edges
from liteq.brokers.lengths import LOOKS
from liteq.brokers.limiting_redis import declaring, infos, overriding
from liteq.brokers.records_redis import RedisRecords
from liteq.brokers.redis_form import (
    PACKED_COUNT,
    Fields,
    Settlements,
    graph_arguments,
    lone_arguments,
    packed_of,
    read_leases,
)
from liteq.brokers.roster_redis import RedisRoster
from liteq.brokers.schedules_redis import RedisSchedules
from liteq.brokers.upkeep_redis import RedisUpkeep
from liteq.brokers.values import Aside, Lease, RevokeAnswer, Rewrite, Said, Step
from liteq.exceptions import BrokerError, QueueFull
from liteq.limits import Limit, LimitInfo
from liteq.message import Edge, Message, Workflow, pack_all
from liteq.outcome import Outcome

__all__ = ["RedisBroker"]


class RedisBroker(RedisRoster, RedisSchedules, RedisRecords, RedisUpkeep):
    """A store on a Redis server (6.2 or later, or Valkey).

    `namespace`: several stores share a server by it; one namespace is one hash slot of a
    cluster, and more of them are how one shards. `global_keyprefix` goes before every key.
    `durability`: "server" (what the server's own persistence gives; "full" and "normal",
    SQLite's words, mean this too) or "replicated" (a call returns when `replicas` replicas
    have it, or fails after `replica_timeout` seconds with an unknown outcome).
    `socket_timeout`, `socket_connect_timeout`: seconds without an answer.
    `visibility_timeout` has no meaning: a message is delivered again when its worker has
    died, however long it runs. `max_lengths`: how many messages may wait in a queue, by its
    name; `max_length`: in each of the others (None: any number). `lease_timeout`,
    `max_deliveries`, `unknown_expires`, `poll_interval`: as for the other stores.
    `ssl_…`: those of the Redis client.
    """

    # Moving work

    def enqueue(
        self,
        messages: Sequence[Message],
        edges: Sequence[Edge] = (),
        workflow: Workflow | None = None,
    ) -> Mapping[str, str]:
        if not messages:
            return {}
        name, arguments = self._enqueueing(messages, edges, workflow)
        looks = LOOKS
        while True:
            try:
                return _stands(self._call(name, *arguments, durable=True))
            except QueueFull as exc:
                looks -= 1
                ended = exc.queue and looks and self._call("expire", SLICE)
                if not ended or ended[0] != b"1":
                    raise

    async def aenqueue(
        self,
        messages: Sequence[Message],
        edges: Sequence[Edge] = (),
        workflow: Workflow | None = None,
    ) -> Mapping[str, str]:
        if not messages:
            return {}
        name, arguments = self._enqueueing(messages, edges, workflow)
        looks = LOOKS
        while True:
            try:
                return _stands(await self._acall(name, *arguments, durable=True))
            except QueueFull as exc:
                looks -= 1
                ended = exc.queue and looks and await self._acall("expire", SLICE)
                if not ended or ended[0] != b"1":
                    raise

    def _enqueueing(
        self, messages: Sequence[Message], edges: Sequence[Edge], workflow: Workflow | None
    ) -> tuple[str, Sequence[Any]]:
        """Return the script that stores these, and its arguments."""
        packed = pack_all(messages)
        limits = self._lengths.among({one[3] for one in packed}) if self._lengths.any else {}
        if len(packed) == 1 and not limits and not edges and workflow is None:
            alone = lone_arguments(packed[0])
            if alone is not None:
                return "enqueue_one", alone
        count_edges(packed, edges)
        lengths = (part for limit in limits.items() for part in limit)
        return "enqueue", (len(limits), *lengths, *graph_arguments(packed, edges, workflow))

    def step(
        self,
        worker: int,
        *,
        settlements: Sequence[tuple[Lease, Outcome]] = (),
        notes: Sequence[tuple[Lease, Said]] = (),
        queues: Sequence[str] = (),
        limit: int = 0,
        tasks: Collection[str] | None = None,
        ignore_rates: bool = False,
        idle: bool = False,
    ) -> Step:
        if self._unheard:
            self._hear()
        token = self._tokens()
        doubtful = self._doubtful.get(worker, ())
        unanswered = {token}
        stands: tuple[Any, ...] = ()
        if idle and self._has_disowned(worker):
            fresh = self._tokens()
            unanswered.add(fresh)
            with_this = self._standing_by(fresh, queues, limit, tasks)
            stands = (with_this, self._answered.get(worker, (None,))[0])
        elif idle:
            # After an outage the server may have forgotten settlements: then what it believes
            # that the worker holds may have been run, and `disown()` comes first.
            stands = (f"-{self._last_step(worker) or ''}",)
        ends = Settlements(settlements, self.max_deliveries)
        limit = max(limit, 0)
        digest = self._digest(worker, tasks) if limit else "*"
        tail: list[Any] = [len(notes)]
        for lease, note in notes:
            if isinstance(note, Rewrite):
                said: tuple[Any, ...] = ("", note.envelope or "")
            else:
                said = (f"={note.state}", note.meta)
            tail += (lease.id, lease.token, *said)
        which = _word_of(tuple(queues)) if limit else "-"
        tail += (limit, len(queues), *queues, digest, ignore_rates, which)
        tail += (lease.id for lease, _ in settlements if lease.packed[14] is not None)
        try:
            while True:
                tokens = (len(doubtful), *doubtful)
                head = (worker, token, *stands, *tokens, *ends.arguments())
                now = self.clock.now()
                answer = self._call("step", *head, *tail, word=token)
                if answer[0] == b"tasks":
                    self._call("known", worker, digest, *(tasks or ()))
                elif answer[0] == b"graph":
                    ends.refuse(int(answer[1] or 0), refusal(answer[2:]))
                else:
                    break
        except BrokerError:
            # It may have taken effect, and nobody would know of these leases.
            self._doubtful[worker] = {*doubtful, *unanswered}
            if settlements:
                self._unheard[token] = (worker, [_run(lease) for lease, _ in settlements], ends)
            raise
        self._doubtful.pop(worker, None)
        if worker in self._outages:  # one of our own
            self._answered[worker] = (token, self._link.last_outage)
        self._mend_mailboxes()
        fields = Fields(answer)
        step = _read_step(fields, token, ends, now)
        if fields.more():
            self._learn(fields.one())
        return self._with_heard(step, settlements) if self._heard and settlements else step

    def _hear(self) -> None:
        """Learn what the steps have settled that were not answered: whoever makes the next
        settles the same again, which is refused then, and was not lost."""
        for token, (worker, runs, ends) in list(self._unheard.items()):
            key = f"{self._prefix}worker:{worker}"
            word, said = self._link.ask("HMGET", key, "word", "said")
            if word == b"%d" % token:  # it is the last that was made
                self._heard.update(compress(runs, ends.accepted(said.rstrip(b"+"))))
            self._unheard.pop(token, None)

    def _with_heard(self, step: Step, settlements: Sequence[tuple[Lease, Outcome]]) -> Step:
        runs = [_run(lease) for lease, _ in settlements]
        accepted = tuple(
            taken or run in self._heard for run, taken in zip(runs, step.accepted, strict=True)
        )
        self._heard.difference_update(runs)
        return step._replace(accepted=accepted)

    def _has_disowned(self, worker: int) -> bool:
        outage = self._link.last_outage
        return self._outages.get(worker, outage) == outage

    def _standing_by(
        self, token: int, queues: Sequence[str], limit: int, tasks: Collection[str] | None
    ) -> str:
        """Return what an idle worker stands by with (see `lua/enqueue_one.lua`), behind a
        star."""
        more, any = "+" if limit > 1 else "1", "*" if tasks is None else "-"
        names = "".join(f"{len(queue.encode())}:{queue}" for queue in queues)
        return f"*{token} {self.stuck_after!r} {more}{any}{names}"

    def _digest(self, worker: int, tasks: Collection[str] | None) -> str:
        """Return a short word for these names; a worker gives the same object each time."""
        if tasks is None:
            return "*"
        known = self._digests.get(worker)
        if known is None or known[0] is not tasks:
            text = json.dumps(sorted(tasks)).encode()
            known = (tasks, hashlib.sha1(text, usedforsecurity=False).hexdigest())
            if isinstance(tasks, frozenset):
                self._digests[worker] = known
        return known[1]

    # Steering

    def revoke(
        self, ids: Iterable[str], *, terminate: str | None = None
    ) -> dict[str, RevokeAnswer]:
        wanted = list(ids)
        answers: dict[str, RevokeAnswer] = {}
        for some in slices(wanted, LOOK):
            said = self._once("revoke", terminate, *some)
            for id, answer in zip(some, said, strict=True):
                answers[id] = (answer or b"").decode()  # type: ignore[assignment]
        return answers

    def redrive(self, ids: Iterable[str]) -> list[str]:
        # In one call: what waits for two of them comes back only if both do.
        return [(id or b"").decode() for id in self._once("redrive", *ids)]

    def age(self, queues: Sequence[str], seconds: float) -> int:
        return int(self._call("age", seconds, 100, *queues)[0] or 0)

    def pause(self, queue: str) -> bool:
        return self._once("pause", queue, "1")[0] == b"1"

    def resume(self, queue: str) -> bool:
        return self._once("pause", queue, "")[0] == b"1"

    # Limits

    def declare_limits(self, tasks: Mapping[str, Sequence[Limit]]) -> None:
        self._call("set_limits", *declaring(tasks), durable=True)

    def override_limit(
        self, name: str, limit: Limit | None, *, task: str | None = None
    ) -> None:
        self._call("set_limits", *overriding(name, limit, task), durable=True)

    def limits(self) -> list[LimitInfo]:
        return infos(self._call("limits"))


@lru_cache(maxsize=64)
def _word_of(queues: Sequence[str]) -> str:
    """Return a short word for these names (see `lua/calling.lua`)."""
    return hashlib.sha1(json.dumps(queues).encode(), usedforsecurity=False).hexdigest()[:16]


def _run(lease: Lease) -> tuple[str, int]:
    return lease.id, lease.token


_WHY: Final[dict[bytes, Aside]] = {b"p": "parked", b"x": "expired", b"d": "damaged"}


def _read_step(fields: Fields, token: int, ends: Settlements, now: float) -> Step:
    standing, flags = fields.bytes(), fields.bytes()
    due = fields.bytes()
    terminate = {fields.number(): fields.text() for _ in range(fields.number())}
    leases = read_leases(fields, token)
    aside: list[tuple[Lease, Aside]] = []
    for _ in range(fields.number()):
        why = fields.bytes()
        key, delivery = fields.number(), fields.number()
        lease = Lease(key, token, delivery, packed_of(fields.some(PACKED_COUNT)))
        aside.append((lease, _WHY[why]))
    return Step(
        accepted=ends.accepted(flags),
        leases=tuple(leases),
        next_due=_instant(due, now),
        terminate=terminate,
        alive=standing[:1] == b"1",
        aside=tuple(aside),
        mail=b"m" in standing,
        heard=b"h" in standing,
        standby=int(standing.partition(b" ")[2] or 0),
    )


def _instant(due: bytes, now: float) -> float | None:
    """Return when it is due by the clock of this machine, which the worker waits by. In what
    time is what the server says: the two clocks may differ."""
    if due == b"now":
        return 0.0
    return now + float(due) if due else None


def _stands(answer: Sequence[bytes | None]) -> dict[str, str]:
    """Return what an enqueue's script says: what was not stored, and what stands for it.
    Raises why nothing was."""
    refuse(answer)
    stands = [(field or b"").decode() for field in answer[1:]]
    return dict(zip(stands[::2], stands[1::2], strict=True))
