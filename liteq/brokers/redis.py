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
import heapq
import json
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import ref

from liteq import failure
from liteq.brokers.base import (
    DEFAULT_MAX_DELIVERIES,
    Attempt,
    Lease,
    Mailbox,
    Node,
    Note,
    QueueInfo,
    Record,
    RevokeAnswer,
    Schedule,
    State,
    Step,
    WorkerInfo,
    WorkflowInfo,
)
from liteq.brokers.graph import count_edges
from liteq.brokers.lengths import Lengths, queue_full
from liteq.brokers.limiting_redis import declaring, infos, overriding
from liteq.brokers.mail_redis import RedisMail, Row
from liteq.brokers.redis_form import (
    LETTERS,
    PACKED_COUNT,
    RECORD_FIELDS,
    STATES,
    Fields,
    Settlements,
    attempt_of,
    graph_arguments,
    lone_arguments,
    packed_of,
    read_lease,
    record_of,
    schedule_of,
)
from liteq.brokers.redis_link import KEYS_VERSION, Link
from liteq.brokers.redis_liveness import Birth, is_dead, own_birth, watch
from liteq.brokers.redis_mailbox import RedisMailbox
from liteq.brokers.redis_url import parse
from liteq.brokers.searching import Found, Search
from liteq.clock import Clock, system_clock
from liteq.exceptions import (
    AlreadyEnqueued,
    BrokerError,
    DuplicateTask,
    ImproperlyConfigured,
    InvalidTaskError,
    MessageError,
    NotRegistered,
    StoreLost,
)
from liteq.ids import new_id, new_token
from liteq.limits import Limit, LimitInfo
from liteq.message import GATHER, Edge, Message, Workflow
from liteq.outcome import Lost, Outcome, Released

if TYPE_CHECKING:
    from liteq.brokers.moving import Shelf
    from liteq.brokers.redis_async import AsyncLink

__all__ = ["RedisBroker"]

_REFUSALS: Final = frozenset({b"A", b"E", b"N", b"D", b"P", b"T"})
_SLICE: Final = 200  # messages that one script of upkeep touches: about a millisecond
_LOOK: Final = 500  # messages that one script reads
_GONE_FOR: Final = 7 * 86_400.0  # seconds the name of a worker that is gone is kept
_DIED: Final = "the worker process died while the task ran"


class RedisBroker(RedisMail):
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

    def __init__(
        self,
        url: str,
        *,
        clock: Clock = system_clock,
        namespace: str = "",
        global_keyprefix: str = "",
        durability: str = "server",
        replicas: int = 1,
        replica_timeout: float = 1.0,
        lease_timeout: float = 60.0,
        max_deliveries: int = DEFAULT_MAX_DELIVERIES,
        max_length: int | None = None,
        max_lengths: Mapping[str, int] | None = None,
        unknown_expires: float = 86_400.0,
        poll_interval: float = 0.5,
        socket_timeout: float | None = None,
        socket_connect_timeout: float | None = None,
        socket_keepalive: bool = True,
        visibility_timeout: float | None = None,
        master_name: str = "",
        client_name: str = "liteq",
        ssl_ca_certs: str | None = None,
        ssl_ca_data: str | None = None,
        ssl_ca_path: str | None = None,
        ssl_cert_reqs: str | None = None,
        ssl_certfile: str | None = None,
        ssl_check_hostname: bool | None = None,
        ssl_ciphers: str | None = None,
        ssl_keyfile: str | None = None,
        ssl_password: str | None = None,
        tokens: Callable[[], int] = new_token,
    ) -> None:
        tls = {
            "ssl_ca_certs": ssl_ca_certs,
            "ssl_ca_data": ssl_ca_data,
            "ssl_ca_path": ssl_ca_path,
            "ssl_cert_reqs": ssl_cert_reqs,
            "ssl_certfile": ssl_certfile,
            "ssl_check_hostname": ssl_check_hostname,
            "ssl_ciphers": ssl_ciphers,
            "ssl_keyfile": ssl_keyfile,
            "ssl_password": ssl_password,
        }
        given = {name: value for name, value in tls.items() if value is not None}
        place = parse(url, given, master_name)
        if durability not in ("server", "full", "normal", "replicated"):
            raise ImproperlyConfigured(
                f'durability must be "server" or "replicated" on Redis, not {durability!r}'
            )
        if durability == "replicated" and replicas < 1:
            raise ImproperlyConfigured(f"replicas must be 1 or more, not {replicas}")
        name = namespace or place.options.get("namespace", "") or "default"
        if set(name) & set("{}") or set(global_keyprefix) & set("{}"):
            raise ImproperlyConfigured(
                f"braces mark a cluster's hash slot: the namespace {name!r} and the "
                f"global_keyprefix {global_keyprefix!r} can have none"
            )
        self.clock = clock
        self.lease_timeout = lease_timeout
        self.max_deliveries = max_deliveries
        self.unknown_expires = unknown_expires
        self.poll_interval = poll_interval
        self._lengths = Lengths(max_length, max_lengths)
        self._prefix = f"{global_keyprefix}{{liteq:{name}}}:"
        self._link = Link(
            place,
            self._prefix,
            timeout=_seconds(socket_timeout, place.options, "socket_timeout", 5.0),
            connect_timeout=_seconds(
                socket_connect_timeout, place.options, "socket_connect_timeout", 3.0
            ),
            keepalive=socket_keepalive,
            replicas=replicas if durability == "replicated" else 0,
            replica_timeout=replica_timeout,
            client_name=client_name,
        )
        self._async: AsyncLink | None = None
        self._tokens = tokens
        # A clock that a test moves goes with every call; the system's stays at home.
        self._server_time = clock is system_clock
        self._birth: Birth | None = None
        self._mailboxes: list[ref[RedisMailbox]] = []  # of workers, of which there is one
        self._doubtful: dict[int, set[int]] = {}  # by worker: tokens of claims that failed
        self._digests: dict[int, tuple[Collection[str], str]] = {}  # by worker
        self._steady: dict[int, tuple[float, float]] = {}  # by worker: ours, the server's
        self._first_id: str | None = None  # of the store that this instance opened

    def __repr__(self) -> str:
        return f"<RedisBroker {self.url}>"

    @property
    def url(self) -> str:
        """Where the store is, without a password."""
        return str(self._link.place)

    def persistence(self) -> str:
        """Say in a few words what of this store survives the server's death."""
        if not self._link.server:
            self._link.ask("PING")
        server = self._link.server
        if "hidden" in server:
            return "persistence unknown: this user may not see INFO"
        if server.get("aof_enabled") == "1":
            sync = server.get("appendfsync")
            return f"append-only file, fsync {sync}" if sync else "append-only file"
        if server.get("save") == "":
            return "nothing is persisted: a restart of the server loses every message"
        return "snapshots only: a restart of the server loses what came since the last one"

    def facts(self) -> dict[str, Any]:
        """Return figures of the server and of this store: see `redis_facts`."""
        from liteq.brokers.redis_facts import facts  # late: for who operates a store

        found = facts(self._link.ask, self._prefix)
        for counted in self.counts().values():
            for state, number in counted.items():
                found["states"][state] = found["states"].get(state, 0) + number
        return {"url": self.url, "persistence": self.persistence(), **found}

    # Calls

    def _call(
        self, name: str, *arguments: Any, durable: bool = False, word: object = ""
    ) -> list[bytes | None]:
        return self._link.call(name, (*self._times(), word, *arguments), durable=durable)

    async def _acall(
        self, name: str, *arguments: Any, durable: bool = False
    ) -> list[bytes | None]:
        if self._async is None:
            from liteq.brokers.redis_async import AsyncLink  # late: for asyncio users only

            self._async = AsyncLink(self._link)
        return await self._async.call(name, (*self._times(), "", *arguments), durable=durable)

    def _once(self, name: str, *arguments: Any) -> list[bytes | None]:
        """Call a script that writes; should its answer be lost, it is repeated under the
        same word, and then changes nothing more."""
        return self._call(name, *arguments, durable=True, word=self._tokens())

    def _times(self) -> tuple[Any, Any]:
        if self._server_time:
            return ("", "")
        return (self.clock.now(), self.clock.steady())

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
        return _stands(self._call(name, *arguments, durable=True))

    async def aenqueue(
        self,
        messages: Sequence[Message],
        edges: Sequence[Edge] = (),
        workflow: Workflow | None = None,
    ) -> Mapping[str, str]:
        if not messages:
            return {}
        name, arguments = self._enqueueing(messages, edges, workflow)
        return _stands(await self._acall(name, *arguments, durable=True))

    def _enqueueing(
        self, messages: Sequence[Message], edges: Sequence[Edge], workflow: Workflow | None
    ) -> tuple[str, Sequence[Any]]:
        """Return the script that stores these, and its arguments."""
        packed = [message.pack() for message in messages]
        count_edges(packed, edges)
        limits = self._lengths.among({one[3] for one in packed}) if self._lengths else {}
        if len(packed) == 1 and not limits and not edges and workflow is None:
            alone = lone_arguments(packed[0])
            if alone is not None:
                return "enqueue_one", alone
        lengths = (part for limit in limits.items() for part in limit)
        return "enqueue", (len(limits), *lengths, *graph_arguments(packed, edges, workflow))

    def step(
        self,
        worker: int,
        *,
        settlements: Sequence[tuple[Lease, Outcome]] = (),
        notes: Sequence[tuple[Lease, Note]] = (),
        queues: Sequence[str] = (),
        limit: int = 0,
        tasks: Collection[str] | None = None,
        ignore_rates: bool = False,
    ) -> Step:
        token = self._tokens()
        doubtful = self._doubtful.get(worker, ())
        ends = Settlements(settlements, self.max_deliveries)
        limit = max(limit, 0)
        digest = self._digest(worker, tasks) if limit else "*"
        tail: list[Any] = [len(notes)]
        for lease, note in notes:
            tail += (lease.id, lease.token, note.state, note.meta)
        tail += (limit, len(queues), *queues, digest, ignore_rates)
        tail += (lease.id for lease, _ in settlements if lease.packed[14] is not None)
        try:
            while True:
                head = (worker, token, len(doubtful), *doubtful, *ends.arguments())
                answer = self._call("step", *head, *tail, word=token)
                if answer[0] == b"tasks":
                    self._call("known", worker, digest, *(tasks or ()))
                elif answer[0] == b"graph":
                    ends.refuse(int(answer[1] or 0), _refusal(answer[2:]))
                else:
                    break
        except BrokerError:
            # The claim may have taken effect, and nobody would know of these leases.
            self._doubtful[worker] = {*doubtful, token}
            raise
        self._doubtful.pop(worker, None)
        self._mend_mailboxes()
        return _read_step(Fields(answer), token, ends)

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

    def _mend_mailboxes(self) -> None:
        for found in self._mailboxes:
            if (mailbox := found()) is not None:
                mailbox.mend()

    # Who is alive

    def register(
        self, name: str, queues: Sequence[str], concurrency: int, details: Mapping[str, Any]
    ) -> int:
        birth = self._birth = own_birth()
        fields = {
            "name": name,
            "hostname": socket.gethostname(),
            "pid": birth.pid,
            "boot": birth.boot,
            "space": birth.space,
            "birth": birth.started,
            "queues": json.dumps(list(queues)),
            "concurrency": concurrency,
            "details": json.dumps(dict(details)),
        }
        pairs = [part for pair in fields.items() for part in pair]
        return Fields(self._once("register", *pairs)).number()

    def beat(
        self,
        worker: int,
        details: Mapping[str, Any] | None = None,
        *,
        queues: Sequence[str] | None = None,
        concurrency: int | None = None,
    ) -> bool:
        text = "" if details is None else json.dumps(dict(details))
        names = "" if queues is None else json.dumps(list(queues))
        before = self._steady.get(worker)
        now = self.clock.steady()
        expected = "" if before is None else before[1] + (now - before[0])
        version, alive, *rest = self._call("beat", worker, text, expected, names, concurrency)
        if version is not None:  # none: the server was emptied
            self._link.refuse_other(version)
        if alive != b"1":
            self._steady.pop(worker, None)
            self._digests.pop(worker, None)
            return False
        self._steady[worker] = (self.clock.steady(), float(rest[0] or 0))
        return True

    def unregister(self, worker: int) -> None:
        reason = "its worker left without settling it"

        def end(lease: Lease) -> Outcome:  # what it did with them is unknown
            return Released() if lease.packed[10] else Lost(reason)

        self._take_back(worker, "gone", end)
        for kept in (self._steady, self._digests, self._doubtful):
            kept.pop(worker, None)

    def reclaim(self, worker: int | None = None) -> int:
        return sum(
            self._take_back(id, "dead", lambda _: Lost(_DIED))
            for id in self._dead_workers(worker)
        )

    def _take_back(self, worker: int, how: str, end: Callable[[Lease], Outcome]) -> int:
        """Stop a worker, and end the leases that it holds, each fenced, in slices."""
        total = 0
        while True:
            fields = Fields(self._call("condemn", worker, how, _SLICE))
            leases = []
            for _ in range(fields.number()):
                key, token, delivery = fields.number(), fields.number(), fields.number()
                leases.append(Lease(key, token, delivery, packed_of(fields.some(PACKED_COUNT))))
            if leases:
                step = self.step(worker, settlements=[(lease, end(lease)) for lease in leases])
                total += sum(step.accepted)
            if len(leases) < _SLICE:
                return total

    def _dead_workers(self, caller: int | None) -> list[int]:
        rows = self._worker_rows()
        own = next((age for info, age in rows if info is not None and info.id == caller), 0.0)
        # If our own heartbeat is old, this machine may have been asleep; if the server could
        # not be reached, nobody could beat. The others get as long before their silence
        # counts.
        lenient = own > self.lease_timeout / 2 or self._was_out_of_reach()
        dead = []
        for entry, age in rows:
            if entry is None:
                dead.append(int(age))  # gone already, and its leases left behind
            elif entry.id != caller and (
                (age > self.lease_timeout and not lenient) or self._is_seen_dead(entry)
            ):
                dead.append(entry.id)
        return dead

    def _was_out_of_reach(self) -> bool:
        link = self._link
        patience = self.lease_timeout / 2
        return (
            link.failed_for > patience / 2 and time.monotonic() < link.recovered_at + patience
        )

    def _worker_rows(self) -> list[tuple[Row | None, float]]:
        fields = Fields(self._call("workers"))
        rows: list[tuple[Row | None, float]] = []
        while fields.more():
            id, *rest = fields.some(12)
            if rest[0] is None:
                rows.append((None, float(id or 0)))
            else:
                rows.append((Row(int(id or 0), rest), float(rest[-1] or 0)))
        return rows

    def _is_seen_dead(self, row: Row) -> bool:
        own = self._birth or own_birth()
        return own.near(row.birth) and is_dead(row.birth)

    def workers(self) -> list[WorkerInfo]:
        alive = []
        for row, age in self._worker_rows():
            if row is None or age > self.lease_timeout or self._is_seen_dead(row):
                continue
            alive.append(row.info(max(0.0, age)))
        return sorted(alive)

    def peers(self) -> list[int]:
        own = own_birth()
        found = [
            watch(row.birth)
            for row, _ in self._worker_rows()
            if row is not None and row.birth.pid != own.pid and own.near(row.birth)
        ]
        return [fd for fd in found if fd is not None]

    # Steering

    def revoke(
        self, ids: Iterable[str], *, terminate: str | None = None
    ) -> dict[str, RevokeAnswer]:
        wanted = list(ids)
        answers: dict[str, RevokeAnswer] = {}
        for some in _slices(wanted, _LOOK):
            said = self._once("revoke", terminate, *some)
            for id, answer in zip(some, said, strict=True):
                answers[id] = (answer or b"").decode()  # type: ignore[assignment]
        return answers

    def redrive(self, ids: Iterable[str]) -> list[str]:
        # In one call: what waits for two of them comes back only if both do.
        return [(id or b"").decode() for id in self._once("redrive", *ids)]

    def purge(self, queues: Sequence[str] | None = None, *, dead: bool = False) -> int:
        if dead:
            places = [""] if queues is None else list(queues)
        else:
            places = self._queue_names() if queues is None else list(queues)
        total = 0
        for queue in places:
            last: bytes | None = b"0"
            while last is not None:
                said = self._once("purge", queue, "dead" if dead else "", _SLICE, last)
                total += int(said[0] or 0)
                last = said[1]
        return total

    def _queue_names(self) -> list[str]:
        return list(self.counts())

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

    # Looking

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

    def _dead_by_queue(self) -> dict[str, int]:
        found: dict[str, int] = {}
        last: bytes | None = b"0"
        while last is not None:
            last, *pairs = self._call("dead_in", last, _LOOK)
            for name, number in zip(pairs[::2], pairs[1::2], strict=True):
                queue = (name or b"").decode()
                found[queue] = found.get(queue, 0) + int(number or 0)
        return found

    def get(self, ids: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for some in _slices(list(ids), _LOOK):
            found.update(_records(self._call("get", *some)))
        return found

    async def aget(self, ids: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for some in _slices(list(ids), _LOOK):
            found.update(_records(await self._acall("get", *some)))
        return found

    def attempts(self, id: str) -> list[Attempt]:
        packed = self._call("attempts", id)
        return [attempt_of(n, one or b"") for n, one in enumerate(packed, 1)]

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
        slice = limit if letter == "q" else min(max(limit, 1), _LOOK) if in_order else _LOOK
        found: list[tuple[int, str]] = []
        at: int | None = 0
        while at is not None and not (in_order and len(found) >= limit):
            following, *pairs = self._call("browse", letter, queue, slice, at)
            found += [
                (int(number or 0), (id or b"").decode())
                for number, id in zip(pairs[::2], pairs[1::2], strict=True)
            ]
            if not in_order and len(found) > limit + _LOOK:
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
            fields = Fields(self._call("nodes", workflow, at, at + _LOOK - 1))
            before = len(nodes)
            while fields.more():
                _read_node(fields, nodes, edges)
            if len(nodes) - before < _LOOK:
                break
            at += _LOOK
        among = {node.id for node in nodes}
        return nodes, sorted(e for e in edges if e.source in among and e.target in among)

    # Schedules

    def schedules(self) -> list[Schedule]:
        fields = Fields(self._call("schedules"))
        found = []
        while fields.more():
            found.append(schedule_of(fields))
        return sorted(found)

    def put_schedule(self, schedule: Schedule, *, revision: int | None = None) -> bool:
        said = self._once(
            "put_schedule",
            schedule.name,
            schedule.entry,
            schedule.due_at,
            schedule.origin,
            schedule.paused,
            revision,
            schedule.last_due_at,
            schedule.last_run_at,
            schedule.last_id,
            schedule.total,
            self._tokens(),  # a number of changes would begin anew with an entry's name
        )
        return said[0] == b"1"

    def remove_schedule(self, name: str) -> bool:
        return self._once("remove_schedule", name)[0] == b"1"

    def fire(
        self,
        name: str,
        due_at: float,
        next_due_at: float | None,
        *,
        revision: int,
        messages: Sequence[Message] = (),
        edges: Sequence[Edge] = (),
        workflow: Workflow | None = None,
    ) -> bool:
        last = ""
        if messages:
            last = workflow.id if workflow is not None else messages[0].id
        packed = [message.pack() for message in messages]
        count_edges(packed, edges)
        graph = graph_arguments(packed, edges, workflow)
        said = self._once("fire", name, due_at, next_due_at, revision, last, *graph)
        _refuse(said)
        return said[0] == b"1"

    def lead(self, beat: str, until: float) -> bool:
        return self._call("lead", beat, until)[0] == b"1"

    def unlead(self, beat: str) -> None:
        self._call("lead", beat, "")

    # Results

    def watch(
        self, ids: Sequence[str], mailbox: Mailbox, *, notes: bool = False
    ) -> dict[str, Record]:
        name = _address(mailbox)
        settled: dict[str, Record] = {}
        for some in _slices(list(ids), _LOOK):
            settled.update(_records(self._call("watch", f"{name}+" if notes else name, *some)))
        return settled

    async def awatch(self, ids: Sequence[str], mailbox: Mailbox) -> dict[str, Record]:
        name = _address(mailbox)
        settled: dict[str, Record] = {}
        for some in _slices(list(ids), _LOOK):
            settled.update(_records(await self._acall("watch", name, *some)))
        return settled

    def mailbox(self, worker: int | None = None, *, beat: bool = False) -> Mailbox:
        name = f"{self._tokens():x}"
        prefix = self._prefix
        if worker is not None:
            channels = [f"{prefix}work:{worker}", f"{prefix}workers"]
        else:
            channels = [f"{prefix}mail:{name}"]
        if beat:
            channels.append(f"{prefix}beats")
        listening = None if worker is None else lambda: self._call("idle", worker)
        mailbox = RedisMailbox(self._link, name, channels, self.poll_interval, listening)
        if worker is not None:
            alive = [found for found in self._mailboxes if found() is not None]
            self._mailboxes = [*alive, ref(mailbox)]
        return mailbox

    def store(
        self,
        id: str,
        state: str,
        value: bytes | None,
        *,
        task: str = "",
        expires: float | None = 86400.0,
    ) -> None:
        letters = {"SUCCESS": "S", "FAILURE": "F", "REVOKED": "R", "IGNORED": "I"}
        final = letters.get(state, "")
        message = Message(id, task, b"[[],{}]", result_expires=expires)
        kept = b"" if value is None else b"=" + value
        graph = graph_arguments([message.pack()], ())
        self._call("store", final, state, kept, expires, *graph, durable=True)

    def forget(self, ids: Iterable[str]) -> None:
        for some in _slices(list(ids), _LOOK):
            self._call("forget", *some, durable=True)

    # Keeping house

    def maintain(self) -> bool:
        # The parked and the gone are old by the server's clock, which is asked first.
        now = self._now()
        before = now - self.unknown_expires
        more, *parked = self._call("maintain", _SLICE, before, now - _GONE_FOR)
        lost: list[Any] = []
        for id, task in zip(parked[::2], parked[1::2], strict=True):
            name = (task or b"").decode()
            reason = f"unknown task {name!r}: no worker that met it has this task"
            lost += (id, reason, failure.describe(NotRegistered(reason)))
        if lost:
            self._call("give_up", before, *lost)
        return more == b"1"

    def _now(self) -> float:
        if not self._server_time:
            return self.clock.now()
        seconds, micro = self._link.ask("TIME")
        return float(seconds) + float(micro) / 1e6

    def check(self) -> None:
        self._link.ask("PING")
        answer = self._call("open", new_id(), KEYS_VERSION)
        self._link.accept(answer)
        found = (answer[0] or b"").decode()
        first, self._first_id = self._first_id, found
        if first is not None and first != found:
            raise StoreLost(
                f"the store in {self.url} is not the one that was opened: the server was "
                "emptied, restarted without what it had kept, or is another one"
            )

    def close(self) -> None:
        self._link.close()
        if self._async is not None:
            self._async.close()

    def shelf(self) -> Shelf:
        """Return the store as something to be moved (see `moving`)."""
        from liteq.brokers.moving_redis import RedisShelf  # late: for one command

        return RedisShelf(self._call, self._link.ask, self._prefix)


def _refusal(answer: Sequence[bytes | None]) -> MessageError | InvalidTaskError:
    """Return what a script says why a graph cannot be."""
    kind, id, other = [(field or b"").decode() for field in answer]
    if kind == "A":
        return AlreadyEnqueued(
            f"a message with id {id!r} is in the store with another task or other "
            f"arguments (its task is {other!r}): ids are used once"
        )
    if kind in "DPT":
        return DuplicateTask.of(id, other, part=kind == "P", step=kind == "T")
    if kind == "N":
        return InvalidTaskError(f"{id!r} takes no parts: it is no gather, but {other!r}")
    return InvalidTaskError(
        f"{other!r} cannot wait for {id!r}, which is not in the store or is over "
        "already: enqueue both in one call"
    )


def _read_step(fields: Fields, token: int, ends: Settlements) -> Step:
    standing, flags = fields.bytes(), fields.bytes()
    due = fields.one()
    terminate = {fields.number(): fields.text() for _ in range(fields.number())}
    leases = [read_lease(fields, token) for _ in range(fields.number())]
    aside: list[tuple[Lease, Literal["parked", "expired"]]] = []
    for _ in range(fields.number()):
        why = fields.bytes()
        key, delivery = fields.number(), fields.number()
        lease = Lease(key, token, delivery, packed_of(fields.some(PACKED_COUNT)))
        aside.append((lease, "parked" if why == b"p" else "expired"))
    return Step(
        accepted=ends.accepted(flags),
        leases=tuple(leases),
        next_due=None if due is None else float(due),
        terminate=terminate,
        alive=standing[:1] == b"1",
        aside=tuple(aside),
        mail=b"m" in standing,
        heard=b"h" in standing,
    )


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
    rest = json.loads(envelope) if envelope else {}
    state: State = STATES[letter or b""]
    if result is not None and state in ("queued", "scheduled"):
        state = "retrying"
    nodes.append(
        Node(
            id=id.decode(),
            name=rest.get("node") or rest.get("shadow") or task.decode(),
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


def _stands(answer: Sequence[bytes | None]) -> dict[str, str]:
    """Return what an enqueue's script says: what was not stored, and what stands for it.
    Raises why nothing was."""
    _refuse(answer)
    stands = [(field or b"").decode() for field in answer[1:]]
    return dict(zip(stands[::2], stands[1::2], strict=True))


def _refuse(answer: Sequence[bytes | None]) -> None:
    """Raise what a script says why a graph cannot be."""
    if answer and answer[0] == b"Q":
        raise queue_full((answer[1] or b"").decode(), int(answer[2] or 0))
    if answer and answer[0] in _REFUSALS:
        raise _refusal(answer)


def _address(mailbox: Mailbox) -> str:
    if not isinstance(mailbox, RedisMailbox):
        raise TypeError(f"not a mailbox of this store: {mailbox!r}")
    return mailbox.name


def _records(answer: Sequence[bytes | None]) -> dict[str, Record]:
    found = {}
    for at in range(0, len(answer), RECORD_FIELDS):
        record = record_of(answer[at : at + RECORD_FIELDS])
        found[record.id] = record
    return found


def _slices(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def _seconds(
    given: float | None, options: Mapping[str, str], name: str, default: float
) -> float:
    value: object = given if given is not None else options.get(name, default)
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise ImproperlyConfigured(f"{name} is a number of seconds above 0, not {value!r}")
    return seconds
