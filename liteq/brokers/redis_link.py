"""Calls to a Redis server: connections, repetitions, and errors in liteq's words.

The client library connects and signs in (TLS, ACL users); from there on a call is one write
and one read. The library's own repetition is off: it sends a command again without knowing
whether it has run. Here only scripts are called, each made so that the same call may be
repeated, so a call whose answer was lost is made again, with jitter, a few times.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, Final

from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from liteq.brokers import redis_tls
from liteq.brokers.redis_scripts import Script, call_of, script
from liteq.brokers.redis_url import Place
from liteq.brokers.redis_wire import Reader, ServerError, command, unpack
from liteq.exceptions import (
    BrokerError,
    BrokerUnavailable,
    ImproperlyConfigured,
    QueueFull,
    SchemaError,
)
from liteq.ids import new_id

__all__ = ["FAILURES", "KEYS_VERSION", "WHICH_NODES", "Link", "Tries"]

KEYS_VERSION: Final = 2  # of the keys' names and what they hold

WHICH_NODES: Final = command(("CLUSTER", "SLOTS"))

# What a call fails with that may be made again; a time-out is an OSError.
FAILURES: Final = (ServerError, OSError, RedisError)
_TRIES: Final = 4
_FIRST_PAUSE: Final = 0.02  # seconds; twice that before each further try, and jitter
_LONGEST_PAUSE: Final = 0.25  # between two tries while a slot moves
ASK_AGAIN: Final = 1.0  # seconds that a sentinel's answer is believed while calls are made
_ASK_LATER: Final = 30.0  # and seconds without asking, when none has answered
_ASK_TIMEOUT: Final = 0.2  # seconds, for a question that a call which could go on waits for
_SPARE: Final = 16  # connections kept open for the next calls
_NEVER: Final = -1  # in place of a count of switches: the connection is not kept for them

_UNKNOWN: Final = "unknown command"  # one that `rename-command` has taken away, too

# Said by a server that will do what is asked a little later, or that another one does.
_LATER: Final = frozenset(
    {
        "BUSY",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "NOREPLICAS",
        "NOSCRIPT",  # a second time: see `_run`
        "READONLY",
        "UNKILLABLE",
    }
)

# Said while the slot of the store moves from one node to another. A script declares one key,
# which never exists, so it runs where all keys are or nowhere. With ASKING it would run where
# ASK leads to, which has some of the keys: it would find no store there, and make another.
_MOVING: Final = frozenset({"ASK", "TRYAGAIN"})


class _Wire:
    """One connection, and the process that made it."""

    def __init__(self, connection: Any, switches: int = 0) -> None:
        self.connection = connection
        self.switches = switches  # of the master that the sentinels name, before it was made
        self.socket = connection._sock
        self.reader = Reader(self.socket)
        self.pid = os.getpid()
        _open.add(self)

    def exchange(self, data: bytes, replies: int) -> list[Any]:
        self.socket.sendall(data)
        return [self.reader.reply() for _ in range(replies)]

    def close(self) -> None:
        # In a forked child the library closes its copy and leaves the connection alone.
        _open.discard(self)
        self.connection.disconnect()


class Tries:
    """Those of one call, at most `_TRIES` and for no longer than two of them may take. Those
    that find its slot on the move are not counted: the server is well, and says so at once."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._deadline = time.monotonic() + link.timeout * 2
        self._made = 0
        self._pause = _FIRST_PAUSE

    def pause_after(self, error: BrokerError, *, usable: bool) -> float:
        """Return how many seconds to wait before the call is made again. Raises the error if it
        stays, or has stayed for long enough. `usable`: see `Link.meaning()`."""
        if not isinstance(error, BrokerUnavailable):
            raise error
        self._link.failed()
        moving = usable  # who is well and cannot serve has a slot on the move
        self._made += not moving
        if self._made >= _TRIES or time.monotonic() + self._pause > self._deadline:
            raise error
        if self._made == 1 and not moving:
            return 0.0  # a connection that had been cut long ago, or to who had the slot
        pause, self._pause = self._pause, min(self._pause * 2, _LONGEST_PAUSE)
        return pause * random.uniform(0.5, 1.5)


class Link:
    """The way to one store on a server, shared by all threads of a process.

    `timeout`, `connect_timeout`: seconds. `replicas`: how many must have taken a durable
    call over before it returns, within `replica_timeout` seconds.
    """

    def __init__(
        self,
        place: Place,
        prefix: str,
        *,
        timeout: float,
        connect_timeout: float,
        keepalive: bool,
        replicas: int,
        replica_timeout: float,
        client_name: str,
    ) -> None:
        self.place = place
        self.prefix = prefix
        self.store_id: str | None = None
        self.losses = 0  # how often that has become another: see `Broker.losses`
        self.server: dict[str, str] = {}  # what it says of its memory and persistence
        self.options: dict[str, Any] = {
            "db": place.db,
            "username": place.username,
            "password": place.password,
            "socket_timeout": timeout,
            "socket_connect_timeout": connect_timeout,
            "retry": None,
            "health_check_interval": 0,
            "protocol": 2,
            "client_name": client_name,
        }
        self.timeout = timeout
        self.keepalive = keepalive
        self.replicas = replicas
        self.replica_timeout = replica_timeout
        self._spare: list[_Wire] = []  # append and pop are atomic among threads
        self._sentinels = place.hosts  # in the order in which they are asked
        self._master: tuple[str, int] | None = None  # whom they named last
        self._ask_at = 0.0  # when they are asked again (monotonic)
        self.switches = 0  # how often they have named another
        self.moves = 0  # how often the store was found to be on another server
        self._moved: tuple[str, int] | None = None  # the cluster's node that has our slot
        self._nodes = place.hosts  # those of the cluster that are known, in the order to ask
        self._learnt: tuple[str, int] | None = None  # who leads to it, if not the URL
        self._lock = threading.Lock()
        self.failing_since: float | None = None
        self.failed_for = 0.0  # seconds that the last outage took
        self.recovered_at = 0.0  # and when it was over (monotonic)
        _links.add(self)

    # Calls

    def call(
        self, name: str, arguments: Sequence[Any], *, durable: bool = False
    ) -> list[bytes | None]:
        """Call a script; return the fields of its answer.

        Raises `BrokerUnavailable` if the server cannot be reached or cannot serve now: what
        became of the call is unknown, and it may be repeated. `durable`: the replicas asked
        for have it when this returns.
        """
        wanted = script(name)
        known = call_of(wanted, self.prefix, arguments)
        replicated = durable and self.replicas > 0
        fields: list[bytes | None] = self._repeat(
            lambda wire: self._run(wire, known, wanted, replicated=replicated)
        )
        return fields

    def _run(
        self, wire: _Wire, known: bytes, wanted: Script, *, replicated: bool
    ) -> list[bytes | None]:
        try:
            [data] = wire.exchange(known, 1)
        except ServerError as exc:
            if exc.code != "NOSCRIPT":
                raise
            # The server has not seen this script since its start, and keeps it from now on.
            wire.exchange(command(("SCRIPT", "LOAD", wanted.text)), 1)
            [data] = wire.exchange(known, 1)
        if replicated:
            barrier, wait = self.replicating()
            wire.exchange(barrier, 1)
            wire.socket.settimeout(self.timeout + self.replica_timeout)
            try:
                [taken_over] = wire.exchange(wait, 1)
            finally:
                wire.socket.settimeout(self.timeout)
            self.check_replicas(taken_over)
        return unpack(data)

    def replicating(self) -> tuple[bytes, bytes]:
        """Return two commands: a write, and one that waits until the replicas have it, with
        all that the connection wrote before.

        From 7.2 on a server waits for what the connection itself has written, and no longer
        for what it has read: a repeated call, which finds its message in the store and writes
        nothing, would not wait at all for what an earlier connection has written.
        """
        milliseconds = max(1, ceil(self.replica_timeout * 1000))  # 0 would be for ever
        return (
            command(("SET", f"{self.prefix}barrier", "")),
            command(("WAIT", self.replicas, milliseconds)),
        )

    def check_replicas(self, taken_over: int) -> None:
        """Raise `BrokerUnavailable` if too few replicas had the call in time."""
        if taken_over < self.replicas:
            raise BrokerUnavailable(
                f"{taken_over} of {self.replicas} replicas of {self.place} had it after "
                f"{self.replica_timeout:g} s: it is on the master, and may be lost with it"
            )

    def ask(self, *words: str) -> Any:
        """Send a plain command and return its reply. Raises `ServerError` as well."""
        return self._repeat(lambda wire: wire.exchange(command(words), 1)[0])

    def is_there(self) -> bool:
        """Tell whether the store has been made, and do not make it, as all other calls do."""
        question = command(("EXISTS", f"{self.prefix}meta"))
        return bool(self._repeat(lambda wire: wire.exchange(question, 1)[0], greet=False))

    def _repeat(self, attempt: Callable[[_Wire], Any], *, greet: bool = True) -> Any:
        tries = Tries(self)
        while True:
            wire = None
            try:
                wire = self._take() if greet else _Wire(self.connect(), _NEVER)
                result = attempt(wire)
            except BrokerUnavailable:  # of its replicas: asking again may take as long
                assert wire is not None
                self._give_back(wire)
                raise
            except FAILURES as exc:
                error, usable = self.meaning(exc)
                if usable and wire is not None:
                    self._give_back(wire)
                elif wire is not None:
                    wire.close()
                if not usable:
                    self._discard_spare()
            except BaseException:
                if wire is not None:  # interrupted between the call and its answer
                    wire.close()
                raise
            else:
                self._give_back(wire)
                self.answered()
                return result
            time.sleep(tries.pause_after(error, usable=usable))

    def failed(self) -> None:
        """Note that the server could not be reached, or could not serve."""
        if self.failing_since is None:
            self.failing_since = time.monotonic()

    def answered(self) -> None:
        """Note that it serves: an outage, if there was one, is over."""
        since = self.failing_since
        if since is not None:
            self.failing_since = None
            self.recovered_at = time.monotonic()
            self.failed_for = self.recovered_at - since

    @property
    def last_outage(self) -> object:
        """What is another after each event in which a server may have been put in the place
        of one that knew more."""
        return self.recovered_at, self.switches

    def meaning(self, exc: Exception) -> tuple[BrokerError, bool]:
        """Return what one of `FAILURES` means, and whether the connections are of use still."""
        if isinstance(exc, ServerError):
            return self.refusal(exc)
        return self.unreachable(exc), False

    def refusal(self, exc: ServerError) -> tuple[BrokerError, bool]:
        """Return what a server's error means, and whether its connections are of use still:
        if another server may be the master by now, the next call is to ask who is."""
        code = exc.code
        if code == "MOVED":
            host, _, port = exc.rest.rpartition(" ")[2].rpartition(":")
            moved = (host or (self._moved or self._nodes[0])[0], int(port))
            if moved != self._moved:
                self._moved = moved
                self.moves += 1
        elif code == "CLUSTERDOWN" and self._nodes:
            # A node that is cut off says so, too: others may know more.
            self.leave(self._moved or self._nodes[0])
            self._moved = None
        elif code == "READONLY":
            self.moves += 1
        if code in _MOVING:
            return BrokerUnavailable(f"{self.place} cannot serve now: {exc}"), True
        if code in _LATER or code == "MOVED":
            return BrokerUnavailable(f"{self.place} cannot serve now: {exc}"), False
        if code == "OOM":
            return QueueFull(f"{self.place} has no memory for new messages: {exc}"), True
        if code in ("NOAUTH", "WRONGPASS"):
            return self._unknown_user(exc), False
        if code == "NOPERM":
            said = f"{self.place} does not let this user do what liteq needs: {exc}"
            return BrokerError(said), True
        if code == "WRONGTYPE":
            said = (
                f"another program has written to keys of {self.prefix}* in {self.place}: {exc}"
            )
            return BrokerError(said), True
        return BrokerError(f"{self.place} refused a call: {exc}"), True

    def unreachable(self, exc: BaseException) -> BrokerError:
        """Return what it means that a connection failed."""
        if isinstance(exc.__cause__, RedisError):  # which the asyncio client says in its words
            exc = exc.__cause__
        if isinstance(exc, AuthenticationError):
            return self._unknown_user(exc)
        said = str(exc)
        is_met = self.store_id is not None
        is_refused = isinstance(exc, NoPermissionError) or said.startswith(_UNKNOWN)
        if is_refused and not is_met:  # later it may be a server that is being set up
            return BrokerError(f"{self.place} refuses what liteq needs: {said}")
        self._moved = None
        is_plain = is_met and self.place.tls is None
        what_to_do = "" if is_plain else redis_tls.advice(self.place.tls, said)
        return BrokerUnavailable(f"{self.place} cannot be reached: {said}{what_to_do}")

    def _unknown_user(self, exc: BaseException) -> BrokerError:
        """Return what it means that we may not sign in: at the start a mistake, later that the
        password is being changed, which is over when the server has ours again."""
        said = f"{self.place} does not know this user or password: {exc}"
        return BrokerError(said) if self.store_id is None else BrokerUnavailable(said)

    # Connections

    def connect(self) -> Any:
        """Return a new connection of the client library, signed in; the caller owns it."""
        place = self.place
        if place.path is not None:
            kind: Any = UnixDomainSocketConnection
            connection: Any = kind(place.path, **self.options)
            connection.connect()
            return connection
        error: Exception | None = None
        for at in self.addresses():
            kind = Connection if place.tls is None else SSLConnection
            connection = kind(
                host=at[0],
                port=at[1],
                socket_keepalive=self.keepalive,
                **(place.tls or {}),
                **self.options,
            )
            try:
                connection.connect()
            except (OSError, RedisError) as exc:
                self.leave(at)
                error = exc
            else:
                return connection
        assert error is not None
        raise error

    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Return where the server is, or any of the nodes that may know which of them it is."""
        moved = self._moved
        if moved is not None:
            return (moved,)
        if self.place.service is None:
            return self._nodes
        return (self._named_master(),)

    def leave(self, at: tuple[str, int]) -> None:
        """Ask this node after all others: it is dead, or cut off from them."""
        self._nodes = (*(one for one in self._nodes if one != at), at)

    def _named_master(self, within: float | None = None) -> tuple[str, int]:
        """Return where the sentinels say the master is; each is asked for so many seconds at
        most."""
        place = self.place
        said = []
        for at in self._sentinels:
            host, port = at
            try:
                found = self._ask_sentinel(host, port, within)
            except (OSError, RedisError, ServerError) as exc:
                hint = (
                    " (see sentinel_password)" if isinstance(exc, AuthenticationError) else ""
                )
                said.append(f"{host}:{port}: {exc}{hint}")
                continue
            if found:
                # It is the first to be asked from now on: one that hangs costs its time-out
                # once, and not for each connection.
                self._sentinels = (at, *(one for one in place.hosts if one != at))
                master = found[0].decode(), int(found[1])
                if self._master not in (None, master):
                    self.switches += 1
                    self.moves += 1
                self._master, self._ask_at = master, time.monotonic() + ASK_AGAIN
                return master
            said.append(f"{host}:{port}: knows no {place.service!r}")
        raise ConnectionError(f"no sentinel names a master ({'; '.join(said)})")

    def _ask_sentinel(self, host: str, port: int, within: float | None) -> list[bytes] | None:
        place = self.place
        options = {
            **self.options,
            "db": 0,
            "username": place.sentinel_username,
            "password": place.sentinel_password,
        }
        if within is not None:
            options |= {"socket_timeout": within, "socket_connect_timeout": within}
        kind = Connection if place.sentinel_tls is None else SSLConnection
        connection: Any = kind(host=host, port=port, **(place.sentinel_tls or {}), **options)
        connection.connect()
        wire = _Wire(connection)
        try:
            question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", place.service)
            [found] = wire.exchange(command(question), 1)
            return found  # type: ignore[no-any-return]
        finally:
            wire.close()

    def must_follow(self) -> bool:
        """Tell whether it is time to ask the sentinels whether the master is still theirs."""
        return self.place.service is not None and time.monotonic() >= self._ask_at

    def follow(self) -> None:
        """Ask the sentinels; count a `switch` if they name another master.

        One that was replaced while it is well takes writes for ten seconds more, until they
        make it a replica, and loses them then. Nothing says so on its connections.
        """
        if not self._lock.acquire(blocking=False):
            return  # another thread is asking
        try:
            self._ask_at = time.monotonic() + _ASK_LATER
            with contextlib.suppress(OSError):  # the connections that we have may be well
                self._named_master(_ASK_TIMEOUT)
        finally:
            self._lock.release()

    def _take(self) -> _Wire:
        if self.must_follow():
            self.follow()
        while self._spare:
            try:
                wire = self._spare.pop()
            except IndexError:
                break
            if wire.pid == os.getpid() and wire.switches == self.switches:
                return wire
            wire.close()
        switches = self.switches
        wire = _Wire(self.connect(), switches)
        try:
            self._greet(wire)
        except BaseException:
            wire.close()
            raise
        return wire

    def _give_back(self, wire: _Wire) -> None:
        is_of_use = wire.pid == os.getpid() and wire.switches == self.switches
        if len(self._spare) < _SPARE and is_of_use:
            self._spare.append(wire)
        else:
            wire.close()

    def _greet(self, wire: _Wire) -> None:
        """Learn which store and what server this is; refuse what would lose messages."""
        [data] = wire.exchange(self.opening(wire.connection), 1)
        self.opened(unpack(data))
        if not self.server or self.failing_since is not None:
            known, self.server = self.server, self._describe(wire)
            self._refuse_eviction(is_met=bool(known))
            self._refuse_several()
        if self.is_cluster():
            with contextlib.suppress(ServerError):  # see `learn_nodes()`
                self.learn_nodes(wire.exchange(WHICH_NODES, 1)[0])

    def opening(self, connection: Any) -> bytes:
        """Return the first command on a connection: which store is this?

        Where a node of the cluster was, another Redis may be by now. So what only a node that
        was learnt leads to is to have our store, and none is made there.
        """
        if self._moved is None and self.is_cluster() and self.place.path is None:
            at = (connection.host, connection.port)
            self._learnt = None if at in self.place.hosts else at
        new = "" if self._learnt else new_id()
        arguments = (self.prefix, "", "", "", new, KEYS_VERSION)
        return command(("EVAL", script("open").text, 1, *arguments))

    def opened(self, answer: Sequence[bytes | None]) -> None:
        """Take the answer on a new connection like `accept()`. Raises `ConnectionError` too, if
        what was learnt does not lead to our store."""
        id, learnt = answer[0], self._learnt
        if id is None or (learnt and id.decode() != self.store_id):
            self.leave(learnt or self._nodes[0])
            raise ConnectionError("another Redis answers where a node of its cluster was")
        self.accept(answer)
        # It is remembered, and what is there may be another at the next time.
        self._learnt = None if self._moved in self.place.hosts else self._moved

    def accept(self, answer: Sequence[bytes | None]) -> None:
        """Take its answer. Raises `SchemaError` if the store is not of this version."""
        id, version = answer
        assert id is not None
        self.refuse_other(version)
        before, self.store_id = self.store_id, id.decode()
        # Threads that connect at once may count one loss twice: it is only ever compared.
        self.losses += before is not None and before != self.store_id

    def refuse_other(self, version: bytes | None) -> None:
        """Raise `SchemaError` if this is not the version of the keys that we know."""
        if int(version or 0) < KEYS_VERSION:
            raise SchemaError(
                f"the store in {self.place} has version {int(version or 0)}, which no released "
                f"liteq has written: move it with the liteq that made it (`liteq migrate`), or "
                "use another namespace"
            )
        if int(version or 0) > KEYS_VERSION:
            raise SchemaError(
                f"the store in {self.place} has version {int(version or 0)}, made by a later "
                f"liteq, and this one reads up to {KEYS_VERSION}: upgrade liteq here"
            )

    def meet(self) -> None:
        """Learn what the server is, and refuse one that would lose messages."""
        if not self.server:
            self.ask("PING")

    @staticmethod
    def _describe(wire: _Wire) -> dict[str, str]:
        """Return the fields of INFO that matter; empty if this user may not see them."""
        names = ("memory", "persistence", "cluster")
        try:
            sections = wire.exchange(b"".join(command(("INFO", name)) for name in names), 3)
        except ServerError as exc:
            if exc.code != "NOPERM" and not exc.rest.startswith(_UNKNOWN):
                raise
            wire.reader.skip()
            wire.reader.skip()
            return {"hidden": "1"}
        lines = b"".join(sections).decode().splitlines()
        pairs = (line.partition(":") for line in lines if ":" in line)
        fields = {name: value for name, _, value in pairs}
        for setting in ("appendfsync", "save"):
            try:
                [found] = wire.exchange(command(("CONFIG", "GET", setting)), 1)
            except ServerError:
                continue  # not for this user, or a hosted server: it stays unknown
            if found:
                fields[setting] = found[1].decode()
        return fields

    def _refuse_eviction(self, *, is_met: bool) -> None:
        """Raise `ImproperlyConfigured` if the server deletes keys; log it of one that did not
        when it was met: to end whoever runs would only add to the loss."""
        policy = self.server.get("maxmemory_policy", "noeviction")
        if policy == "noeviction" or self.server.get("maxmemory") == "0":
            return
        said = (
            f"{self.place} deletes keys when its memory is full (maxmemory-policy {policy}), "
            "which would lose messages: set maxmemory-policy to noeviction, or give liteq a "
            "server of its own"
        )
        if is_met:
            from liteq.loggers import get_logger  # late: a third of what a sender loads

            get_logger("liteq.store").error("%s", said)
            return
        self.server = {}
        raise ImproperlyConfigured(said)

    def is_cluster(self) -> bool:
        """Tell whether the server is a node of a cluster, as far as this user may see."""
        return self.server.get("cluster_enabled") == "1"

    def _refuse_several(self) -> None:
        """Refuse hosts that do not know of one another: each would have a store of its own."""
        if len(self.place.hosts) == 1 or self.place.service or self.place.path:
            return
        if not self.is_cluster():
            self.server = {}
            raise ImproperlyConfigured(
                f"several hosts in a URL are nodes of a cluster, but {self.place} is not one, "
                "as far as this user may see (INFO): name one server, or its sentinels with "
                "redis+sentinel://"
            )

    def learn_nodes(self, ranges: Sequence[Any]) -> None:
        """Learn where else to ask, should the nodes of the URL be dead when ours is: by the
        answer to `WHICH_NODES` on each new connection. Those of the URL have to do for a user
        who may not ask."""
        found = {(one[0].decode(), one[1]) for nodes in ranges for one in nodes[2:] if one[0]}
        known = dict.fromkeys((*self._nodes, *self.place.hosts, *sorted(found)))
        self._nodes = tuple(at for at in known if at in found or at in self.place.hosts)

    def _discard_spare(self) -> None:
        spare, self._spare = self._spare, []
        for wire in spare:
            wire.close()

    def close(self) -> None:
        """Close what is open; the next call connects again."""
        self._discard_spare()

    def _forget_inherited(self) -> None:
        self._lock = threading.Lock()
        self._discard_spare()


_links: weakref.WeakSet[Link] = weakref.WeakSet()
_open: weakref.WeakSet[_Wire] = weakref.WeakSet()  # connections, of all threads


def _after_fork_in_child() -> None:
    # Those in use by threads that do not exist here, too: the server would believe a
    # connection open that its owner has closed, for as long as the child lives.
    for wire in list(_open):
        wire.close()
    for link in list(_links):
        link._forget_inherited()


os.register_at_fork(after_in_child=_after_fork_in_child)
