"""What the parts of a Redis store share: its way to the server, its clock, its mailboxes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from liteq.brokers.base import DEFAULT_MAX_DELIVERIES, Broker, Mailbox
from liteq.brokers.graph import cannot_wait
from liteq.brokers.lengths import Lengths, queue_full
from liteq.brokers.redis_form import Settlements
from liteq.brokers.redis_link import KEYS_VERSION, Link
from liteq.brokers.redis_liveness import Birth
from liteq.brokers.redis_mailbox import RedisMailbox
from liteq.brokers.redis_url import parse
from liteq.clock import Clock, system_clock
from liteq.exceptions import (
    AlreadyEnqueued,
    DuplicateTask,
    ImproperlyConfigured,
    InvalidTaskError,
    MessageError,
)
from liteq.ids import new_id, new_token

if TYPE_CHECKING:
    from liteq.brokers.redis_async import AsyncLink

__all__ = ["LOOK", "SLICE", "RedisStore", "address", "refusal", "refuse", "slices"]

_REFUSALS: Final = frozenset({b"A", b"E", b"O", b"N", b"D", b"P", b"T"})
SLICE: Final = 200  # messages that one script of upkeep touches: about a millisecond
LOOK: Final = 500  # messages that one script reads


class RedisStore(Broker):
    """The part of a Redis store that its other parts stand on."""

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
        socket_timeout: float = 5.0,
        socket_connect_timeout: float = 3.0,
        socket_keepalive: bool = True,
        visibility_timeout: float | None = None,
        master_name: str = "",
        sentinel_username: str | None = None,
        sentinel_password: str | None = None,
        sentinel_kwargs: Mapping[str, Any] | None = None,
        client_name: str = "liteq",
        ssl_ca_certs: str | None = None,
        ssl_ca_data: str | None = None,
        ssl_ca_path: str | None = None,
        ssl_cert_reqs: str | None = None,
        ssl_certfile: str | None = None,
        ssl_check_hostname: bool | None = None,
        ssl_ciphers: str | None = None,
        ssl_keyfile: str | None = None,
        ssl_min_version: str | None = None,
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
            "ssl_min_version": ssl_min_version,
            "ssl_password": ssl_password,
        }
        given = {name: value for name, value in tls.items() if value is not None}
        watchers = {
            "username": sentinel_username,
            "password": sentinel_password,
            **(sentinel_kwargs or {}),
        }
        place = parse(url, given, master_name, watchers)
        if durability not in ("server", "full", "normal", "replicated"):
            raise ImproperlyConfigured(
                f'durability must be "server" or "replicated" on Redis, not {durability!r}'
            )
        if durability == "replicated" and replicas < 1:
            raise ImproperlyConfigured(f"replicas must be 1 or more, not {replicas}")
        name = namespace or "default"
        if set(name) & set("{}") or set(global_keyprefix) & set("{}"):
            raise ImproperlyConfigured(
                f"braces mark a cluster's hash slot: the namespace {name!r} and the "
                f"global_keyprefix {global_keyprefix!r} can have none"
            )
        self.clock = clock
        self.lease_timeout = lease_timeout
        # As `Link` repeats it: a try on the open connection, and another on a new one.
        self.longest_call = 2 * socket_timeout + socket_connect_timeout
        self.max_deliveries = max_deliveries
        self.unknown_expires = unknown_expires
        self.poll_interval = poll_interval
        self._lengths = Lengths(max_length, max_lengths)
        self._prefix = f"{global_keyprefix}{{liteq:{name}}}:"
        self._link = Link(
            place,
            self._prefix,
            timeout=socket_timeout,
            connect_timeout=socket_connect_timeout,
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
        # By token, steps that settled something and were not answered: worker, runs, how.
        self._unheard: dict[int, tuple[int, list[tuple[str, int]], Settlements]] = {}
        self._heard: set[tuple[str, int]] = set()  # runs that they have settled
        # By worker: the token of its last step, and the last outage when that was answered.
        self._answered: dict[int, tuple[int, object]] = {}
        self._outages: dict[int, object] = {}  # by worker: the last that it has dealt with
        self._digests: dict[int, tuple[Collection[str], str]] = {}  # by worker
        self._steady: dict[int, tuple[float, float]] = {}  # by worker: ours, the server's

    def __repr__(self) -> str:
        return f"<RedisBroker {self.url}>"

    @property
    def url(self) -> str:
        """Where the store is, without a password."""
        return str(self._link.place)

    @property
    def place(self) -> str | None:
        return self.url

    def persistence(self) -> str:
        if not self._link.server:
            self._link.ask("PING")
        server = self._link.server
        if "hidden" in server:
            return "persistence unknown: this user may not see INFO"
        if server.get("aof_enabled") == "1":
            sync = server.get("appendfsync")
            return f"append-only file, fsync {sync}" if sync else "append-only file"
        if "aof_enabled" not in server:
            return "persistence unknown: the server does not say"
        if "save" not in server:
            return (
                "no append-only file, and no word on snapshots (this user may not see CONFIG): "
                "a restart of the server loses what came since the last one, or every message"
            )
        if not server["save"]:
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

    def _learn(self, now: bytes | None) -> None:
        """Take notice of what time it is by the server's clock."""
        self.ahead = float(now or 0) - self.clock.now()

    def time(self) -> float:
        if self._server_time:
            seconds, micro = self._link.ask("TIME")
            self.ahead = float(seconds) + float(micro) / 1e6 - self.clock.now()
        return self.now()

    def _queue_names(self) -> list[str]:
        return list(self.counts())

    def mailbox(self, worker: int | None = None, *, beat: bool = False) -> Mailbox:
        name = f"{self._tokens():x}"
        prefix = self._prefix
        if worker is not None:
            channels = [f"{prefix}work:{worker}", f"{prefix}workers"]
        else:
            channels = [f"{prefix}mail:{name}"]
        if beat:
            channels.append(f"{prefix}beats")
        listening = None if worker is None else lambda anew: self._call("idle", worker, anew)
        mailbox = RedisMailbox(
            self._link,
            name,
            channels,
            self.poll_interval,
            listening,
            takes_leases=worker is not None,
        )
        if worker is not None:
            alive = [found for found in self._mailboxes if found() is not None]
            self._mailboxes = [*alive, ref(mailbox)]
        return mailbox

    def _mend_mailboxes(self) -> None:
        for found in self._mailboxes:
            if (mailbox := found()) is not None:
                mailbox.mend()

    def check(self) -> None:
        self._link.ask("PING")
        self._link.accept(self._call("open", new_id(), KEYS_VERSION))

    @property
    def losses(self) -> int:
        return self._link.losses

    def close(self) -> None:
        self._link.close()
        if self._async is not None:
            self._async.close()


def refusal(answer: Sequence[bytes | None]) -> MessageError | InvalidTaskError:
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
        return InvalidTaskError(f"{id!r} takes no parts: it is not a gather but {other!r}")
    return cannot_wait(other, id, over=kind == "O")


def refuse(answer: Sequence[bytes | None]) -> None:
    """Raise what a script says why a graph cannot be."""
    if answer and answer[0] == b"Q":
        raise queue_full((answer[1] or b"").decode(), int(answer[2] or 0))
    if answer and answer[0] in _REFUSALS:
        raise refusal(answer)


def address(mailbox: Mailbox) -> str:
    if not isinstance(mailbox, RedisMailbox):
        raise TypeError(f"not a mailbox of this store: {mailbox!r}")
    return mailbox.name


def slices(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[at : at + size] for at in range(0, len(items), size))
