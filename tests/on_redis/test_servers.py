"""Servers as they are run: with TLS, users, files, replicas, Sentinel, and as a cluster."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis_server import RedisServer, free_port
from world import enlist, make, wait_until

from liteq import Liteq, failure, health
from liteq.brokers import connect, redis_link
from liteq.brokers.redis import RedisBroker
from liteq.brokers.redis_wire import ServerError
from liteq.clock import SystemClock
from liteq.exceptions import BrokerError, BrokerUnavailable, ImproperlyConfigured
from liteq.message import Edge
from liteq.outcome import Failed, Retried, Succeeded
from on_redis.conftest import acl_of_the_docs

pytestmark = pytest.mark.redis

Start = Callable[..., RedisServer]


def use(broker: RedisBroker) -> None:
    """Call every verb that a program, a worker and a beat need."""
    first, then = make(), make()
    broker.enqueue([first, then], [Edge(first.id, then.id, "success")])
    worker = enlist(broker)
    mailbox = broker.mailbox(worker)
    waiting = broker.mailbox()
    assert broker.watch([then.id], waiting) == {}
    (lease,) = broker.claim(worker, ["default"], 5, tasks=frozenset({"shop.charge"}))
    assert broker.settle(worker, lease, Succeeded(b"1"))
    (lease,) = broker.claim(worker, ["default"], 5)
    assert broker.settle(worker, lease, Retried(0.0, failure.describe(ValueError("no"))))
    (lease,) = broker.claim(worker, ["default"], 5)
    assert broker.settle(worker, lease, Failed(failure.describe(ValueError("no"))))
    assert then.id in wait_until(lambda: waiting.wait(0.2))
    assert broker.redrive([then.id]) == [then.id]
    assert broker.revoke([then.id]) == {then.id: "revoked"}
    assert broker.beat(worker)
    assert broker.reclaim(worker) == 0
    assert broker.counts() == {}
    assert first.id in [record.id for record in broker.browse("succeeded")]
    broker.maintain()
    broker.check()
    broker.purge()
    broker.unregister(worker)
    assert broker.persistence()
    mailbox.close()
    waiting.close()
    broker.close()


# Files


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["appendonly yes", "appendfsync everysec"], "append-only file, fsync everysec"),
        (["appendonly yes", "appendfsync always"], "append-only file, fsync always"),
        (["save 900 1"], "snapshots only"),
        ([], "nothing is persisted"),
    ],
)
def test_what_the_server_keeps_is_said(start: Start, lines: list[str], said: str) -> None:
    broker = RedisBroker(start(*lines).url)

    assert said in broker.persistence()

    broker.close()


@pytest.mark.parametrize("lines", [["save 900 1"], []])
def test_of_snapshots_nothing_is_said_that_the_user_may_not_see(
    start: Start, lines: list[str]
) -> None:
    server = start(acl_of_the_docs(), *lines)
    broker = RedisBroker(f"unix://liteq:secret@{server.path}?db=0")

    said = broker.persistence()

    assert said.startswith("no append-only file, and no word on snapshots")
    assert said.endswith("or every message")
    broker.close()


def test_1_what_was_enqueued_survives_the_servers_death(start: Start) -> None:
    server = start("appendonly yes", "appendfsync always")
    broker = RedisBroker(server.url)
    worker = enlist(broker)
    messages = [make() for _ in range(50)]
    broker.enqueue(messages)
    (lease,) = broker.claim(worker, ["default"])

    server.kill()
    with pytest.raises(BrokerUnavailable):
        broker.counts()
    server.start()

    assert broker.counts() == {"default": {"running": 1, "queued": 49}}
    assert broker.settle(worker, lease, Succeeded(b"1"))
    left = [one.id for one in broker.claim(worker, ["default"], 100)]
    assert left == [message.id for message in messages[1:]]
    broker.close()


def test_a_clock_that_was_set_takes_no_lease(start: Start) -> None:
    broker = RedisBroker(start().url, lease_timeout=60)
    broker.enqueue([make()])
    worker, other = enlist(broker), enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    assert broker.beat(other)

    # The server's clock is an hour behind what the other's own clock makes it: it was set.
    ours, theirs = broker._steady[other]
    broker._steady[other] = (ours, theirs + 3_600)
    assert broker.beat(other)
    broker._steady[worker] = (ours, theirs + 3_600)
    assert broker.beat(worker)

    assert [round(info.beat_age) for info in broker.workers()] == [0, 0]
    assert broker.reclaim() == 0
    assert enlist(broker) in [info.id for info in broker.workers()]
    assert broker.settle(worker, lease, Succeeded(b"1"))
    broker.close()


class Shifted(SystemClock):
    """A machine's clock that is an hour off."""

    def __init__(self, seconds: float) -> None:
        self.now = lambda: time.time() + seconds  # type: ignore[method-assign]


@pytest.mark.parametrize("seconds", [3_600, -3_600])
def test_a_worker_whose_clock_is_off_is_told_by_it_when_the_next_is_due(
    start: Start, seconds: float
) -> None:
    broker = RedisBroker(start().url)
    broker.clock = Shifted(seconds)  # the server's still counts in the store
    worker = enlist(broker)
    broker.enqueue([make(run_at=time.time() + 100)])

    due = broker.step(worker, queues=["default"], limit=1).next_due
    assert due is not None
    assert 90 < due - broker.clock.now() <= 100

    # The same when more is in its way than what is delayed.
    broker.enqueue([make(expires_at=time.time() - 1), make(run_at=time.time() + 50)])
    due = broker.step(worker, queues=["default"], limit=1).next_due
    assert due is not None
    assert 40 < due - broker.clock.now() <= 50
    broker.close()


# TLS


def _encrypted(
    start: Start, certificates: Path, name: str = "cert", clients: str = "no"
) -> int:
    """Start a server with this certificate; return its port for TLS."""
    port = free_port()
    start(
        f"tls-port {port}",
        f"tls-cert-file {certificates}/{name}.pem",
        f"tls-key-file {certificates}/key.pem",
        f"tls-ca-cert-file {certificates}/cert.pem",
        f"tls-auth-clients {clients}",
    )
    return port


def test_a_server_with_tls_is_used_and_its_certificate_is_checked(
    start: Start, certificates: Path
) -> None:
    port = _encrypted(start, certificates)
    ca = str(certificates / "cert.pem")

    use(RedisBroker(f"rediss://localhost:{port}/0", ssl_ca_certs=ca))
    use(RedisBroker(f"rediss://localhost:{port}/0?ssl_ca_certs={ca}&ssl_min_version=TLSv1.2"))

    for url, options, what_to_do in (
        (f"rediss://localhost:{port}/0", {}, "name the file .* with ssl_ca_certs"),
        (f"rediss://127.0.0.1:{port}/0", {"ssl_ca_certs": ca}, "a name that the server's"),
        (f"rediss://localhost:{port}/0", {"ssl_ca_certs": f"{ca}s"}, f"no file .*{ca}s"),
        (f"redis://localhost:{port}/0", {}, "its URL must begin with rediss://"),
    ):
        with pytest.raises(BrokerUnavailable, match=what_to_do):
            RedisBroker(url, **options).counts()


def test_a_certificate_that_has_expired_is_said_to_have(
    start: Start, certificates: Path
) -> None:
    (certificates / "old.ext").write_text(
        "basicConstraints=critical,CA:TRUE\nsubjectAltName=DNS:localhost\n"
        "subjectKeyIdentifier=hash\n"
    )
    for command in (
        "openssl req -new -key key.pem -out old.csr -subj /CN=localhost",
        "openssl x509 -req -in old.csr -signkey key.pem -out old.pem -days -1 -extfile old.ext",
    ):
        subprocess.run(command.split(), cwd=certificates, check=True, capture_output=True)
    port = _encrypted(start, certificates, "old")
    broker = RedisBroker(
        f"rediss://localhost:{port}/0", ssl_ca_certs=str(certificates / "old.pem")
    )

    with pytest.raises(BrokerUnavailable, match=r"has expired.*needs a new certificate"):
        broker.counts()


def test_a_server_that_asks_for_a_certificate_is_told_of(
    start: Start, certificates: Path
) -> None:
    port = _encrypted(start, certificates, clients="yes")
    broker = RedisBroker(
        f"rediss://localhost:{port}/0", ssl_ca_certs=str(certificates / "cert.pem")
    )

    with pytest.raises(BrokerUnavailable, match=r"client certificate.*ssl_certfile"):
        broker.counts()


def test_a_port_without_tls_is_asked_about(start: Start) -> None:
    server = start(port=free_port())
    broker = RedisBroker(
        f"rediss://127.0.0.1:{server.port}/0", socket_timeout=0.2, socket_connect_timeout=0.2
    )

    with pytest.raises(BrokerUnavailable, match="rediss:// needs a port that speaks TLS"):
        broker.counts()


# Users


def test_the_user_of_the_docs_may_do_what_liteq_needs_and_no_more(start: Start) -> None:
    server = start(acl_of_the_docs())
    server.say("SET", "theirs", "1")
    use(RedisBroker(f"unix://liteq:secret@{server.path}?db=0"))
    broker = RedisBroker(f"unix://liteq:secret@{server.path}?db=0")

    for words in (["GET", "theirs"], ["FLUSHALL"], ["KEYS", "*"], ["CONFIG", "GET", "*"]):
        with pytest.raises(BrokerError, match="does not let this user"):
            broker._link.ask(*words)
    with pytest.raises(BrokerError):
        broker._link.ask("EVAL", "return redis.call('GET', 'theirs')", "0")
    broker.close()


def test_a_user_that_may_not_see_info_works_all_the_same(start: Start) -> None:
    server = start(f"{acl_of_the_docs()} -info")
    broker = RedisBroker(f"unix://liteq:secret@{server.path}?db=0")

    broker.enqueue([make()])

    assert "unknown" in broker.persistence()
    broker.close()


def test_a_password_that_is_changed_under_a_worker_is_an_outage(start: Start) -> None:
    server = start("requirepass secret")
    app = Liteq("x", broker=f"unix://:secret@{server.path}?db=0", set_as_current=False)
    double = app.task(lambda number: 2 * number, name="x.double")
    changed = RedisBroker(f"unix://:another@{server.path}?db=0")

    with app.worker():
        assert double.delay(1).get(timeout=10) == 2
        app.broker._link.ask("CONFIG", "SET", "requirepass", "another")  # type: ignore[attr-defined]
        for kind in ("pubsub", "normal"):
            changed._link.ask("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        with pytest.raises(BrokerUnavailable, match="does not know this user or password"):
            double.delay(2)
        with pytest.raises(BrokerUnavailable, match="does not know this user or password"):
            asyncio.run(double.adelay(2))
        with pytest.raises(BrokerError) as raised:  # at the start it is a mistake, to be mended
            RedisBroker(f"unix://:secret@{server.path}?db=0").counts()
        changed._link.ask("CONFIG", "SET", "requirepass", "secret")
        assert double.delay(3).get(timeout=30) == 6

    assert not isinstance(raised.value, BrokerUnavailable)
    changed.close()
    app.close()


# Replicas and Sentinel


def test_replicated_means_that_a_replica_has_it(
    replica: tuple[RedisServer, RedisServer],
) -> None:
    master, follower = replica
    broker = RedisBroker(master.url, durability="replicated", replica_timeout=2.0)
    message = make()

    broker.enqueue([message])

    assert follower.say("EXISTS", f"{broker._prefix}m:{message.id}") == 1
    follower.pause()
    hasty = RedisBroker(master.url, durability="replicated", replica_timeout=0.1)
    with pytest.raises(BrokerUnavailable, match="0 of 1 replicas"):
        hasty.enqueue([make()])
    follower.resume()
    assert broker.counts() == {"default": {"queued": 2}}
    broker.close()
    hasty.close()


def test_a_repeated_call_waits_for_the_replicas_too(
    replica: tuple[RedisServer, RedisServer],
) -> None:
    """It finds its message there. A server of 7.2 or later waits only for what the connection
    itself has written, so it must write something."""
    master, follower = replica
    message = make()
    follower.pause()
    for _ in range(3):
        broker = RedisBroker(master.url, durability="replicated", replica_timeout=0.1)
        before = writes(master)
        with pytest.raises(BrokerUnavailable, match="0 of 1 replicas"):
            broker.enqueue([message])
        assert writes(master) > before
        with pytest.raises(BrokerUnavailable, match="0 of 1 replicas"):
            asyncio.run(broker.aenqueue([message]))
        assert writes(master) > before + 1
        broker.close()
    follower.resume()


def writes(server: RedisServer) -> int:
    """Return how often something was written that no script has."""
    said = server.say("INFO", "commandstats")
    assert isinstance(said, bytes)
    found = re.search(rb"cmdstat_set:calls=(\d+)", said)
    return int(found[1]) if found else 0


@pytest.mark.parametrize("replica_timeout", [0.0001, 1.5])
def test_the_time_for_the_replicas_is_as_long_as_it_says(
    replica: tuple[RedisServer, RedisServer], replica_timeout: float
) -> None:
    master, follower = replica
    broker = RedisBroker(
        master.url, durability="replicated", replica_timeout=replica_timeout, socket_timeout=0.5
    )
    broker.counts()
    follower.pause()
    for enqueue in (broker.enqueue, lambda calls: asyncio.run(broker.aenqueue(calls))):
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="0 of 1 replicas"):
            enqueue([make()])
        assert replica_timeout <= time.monotonic() - began
    assert len(broker.counts()) == 1  # in the usual time, on that connection
    follower.resume()
    broker.close()


def test_after_a_failover_the_new_master_is_used(
    replica: tuple[RedisServer, RedisServer], sentinel: tuple[RedisServer, str]
) -> None:
    master, follower = replica
    broker = RedisBroker(sentinel[1], durability="replicated", replica_timeout=2.0)
    worker = enlist(broker)
    mailbox = broker.mailbox(worker)
    messages = [make() for _ in range(10)]
    broker.enqueue(messages)
    broker = RedisBroker(sentinel[1])  # the new master will have no replica

    master.kill()

    def again() -> bool:
        try:
            return bool(broker.beat(worker))
        except BrokerUnavailable:
            return False

    wait_until(again, within=60)  # a sentinel that was kept from work waits for half of that
    assert [one.id for one in broker.claim(worker, ["default"], 20)] == [m.id for m in messages]
    assert follower.say("ROLE")[0] == b"master"  # type: ignore[index]
    mailbox.close()
    broker.close()


@pytest.mark.parametrize("coroutines", [False, True])
def test_a_master_that_was_replaced_while_it_is_well_gets_no_more_calls(
    replica: tuple[RedisServer, RedisServer],
    sentinel: tuple[RedisServer, str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    coroutines: bool,
) -> None:
    monkeypatch.setattr(redis_link, "ASK_AGAIN", 0.0)
    master, follower = replica
    broker = RedisBroker(sentinel[1])
    before, after = make(), make()
    worker = enlist(broker)
    broker.enqueue([make()])
    broker.claim(worker, ["default"])

    def switch() -> None:
        """Have the sentinel name the follower. Its own failover would end so as well, but gives
        up and starts over when the machine is slow."""
        kept = f"{broker._prefix}m:{before.id}"  # and so all that was said before
        wait_until(lambda: follower.say("EXISTS", kept) == 1)
        follower.say("REPLICAOF", "NO", "ONE")
        sentinel[0].say("SENTINEL", "REMOVE", "shop")
        sentinel[0].say("SENTINEL", "MONITOR", "shop", "127.0.0.1", follower.port, 1)

    async def call() -> None:
        await broker.aenqueue([before])
        switch()
        await broker.aenqueue([after])

    if coroutines:
        asyncio.run(call())
    else:
        broker.enqueue([before])
        switch()
        broker.enqueue([after])

    assert broker.disown(worker, list) == 1  # what the first has settled is not known here
    assert master.say("ROLE")[0] == b"master"  # type: ignore[index]  # nobody has told it
    assert follower.say("EXISTS", f"{broker._prefix}m:{after.id}") == 1
    broker.close()


def test_sentinels_that_ask_for_a_password_get_theirs(start: Start) -> None:
    master = start("requirepass secret", port=free_port())
    port = free_port()
    start(
        f"sentinel monitor shop 127.0.0.1 {master.port} 1",
        "sentinel auth-pass shop secret",
        "requirepass another",
        port=port,
        sentinel=True,
    )
    urls = [f"sentinel://:secret@127.0.0.1:{at}" for at in (1, port)]

    def app(**options: object) -> Liteq:
        given = {"master_name": "shop", **options}
        return Liteq("x", broker=urls, broker_transport_options=given, set_as_current=False)

    for options in (
        {"sentinel_kwargs": {"password": "another"}},
        {"sentinel_password": "another"},
    ):
        use(app(**options).broker)  # type: ignore[arg-type]
    for wrong in ({}, {"sentinel_password": "secret"}):
        with pytest.raises(BrokerUnavailable, match="see sentinel_password") as raised:
            app(**wrong).broker.counts()
        assert "secret" not in str(raised.value)


def test_a_sentinel_that_hangs_is_waited_for_once(
    replica: tuple[RedisServer, RedisServer], sentinel: tuple[RedisServer, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{sentinel[0].port}"
        broker = RedisBroker(f"redis+sentinel://{hosts}/shop/0", socket_timeout=0.2)

        for _ in range(3):
            assert broker.counts() == {}
            broker.close()  # the next call connects anew

        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_a_service_that_no_sentinel_knows_is_named(start: Start) -> None:
    port = free_port()
    start("sentinel resolve-hostnames no", port=port, sentinel=True)
    broker = RedisBroker(f"redis+sentinel://127.0.0.1:{port}/nowhere/0")

    with pytest.raises(BrokerUnavailable, match="knows no 'nowhere'"):
        broker.counts()


# Cluster

_NODE = (
    "cluster-enabled yes",
    # Slots of a node that is dead are no reason for the others to refuse calls for theirs.
    "cluster-require-full-coverage no",
    "cluster-replica-validity-factor 0",  # a replica may take over however late it is elected
    "repl-diskless-sync no",  # that waits for more replicas
)


@pytest.fixture
def cluster(start: Start) -> list[RedisServer]:
    nodes = [start(*_NODE, port=free_port()) for _ in range(3)]
    slots = [(0, 5461), (5462, 10922), (10923, 16383)]
    for epoch, (node, (first, last)) in enumerate(zip(nodes, slots, strict=True), 1):
        node.say("CLUSTER", "ADDSLOTS", *range(first, last + 1))
        node.say("CLUSTER", "SET-CONFIG-EPOCH", epoch)  # or they have to agree on them first
    for node in nodes[1:]:
        node.say("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
    for node in nodes:  # each knows the owner of each slot, and serves its own
        _wait_for(node, b"cluster_slots_ok:16384", "CLUSTER", "INFO")
        _wait_for(node, b"cluster_state:ok", "CLUSTER", "INFO")
    return nodes


def test_a_cluster_is_found_from_any_of_its_nodes(cluster: list[RedisServer]) -> None:
    for node in cluster:
        for namespace in ("shop", "mail", "beat"):
            use(RedisBroker(node.url, namespace=namespace))


def test_a_slot_that_has_moved_is_followed(cluster: list[RedisServer]) -> None:
    broker = RedisBroker(cluster[0].url, namespace="shop")
    message = make()
    slot = cluster[0].say("CLUSTER", "KEYSLOT", f"{broker._prefix}meta")
    broker.counts()
    owner = next(node for node in cluster if _owns(node, broker))
    other = next(node for node in cluster if node is not owner)
    broker.close()
    owner.say("FLUSHALL")
    for node in cluster:
        node.say("CLUSTER", "SETSLOT", slot, "NODE", _id(other))

    broker.enqueue([message])

    assert other.say("EXISTS", f"{broker._prefix}m:{message.id}") == 1
    broker.close()


@pytest.mark.parametrize("coroutines", [False, True])
def test_a_call_waits_while_its_slot_moves(
    cluster: list[RedisServer], *, coroutines: bool
) -> None:
    broker = RedisBroker(cluster[0].url)
    before, after = make(), make()
    broker.enqueue([before])

    def send() -> None:
        if coroutines:
            asyncio.run(broker.aenqueue([after]))  # type: ignore[arg-type]
        else:
            broker.enqueue([after])

    with Move(cluster, broker) as move, ThreadPoolExecutor() as pool:
        move.some()
        sent = pool.submit(send)
        wait_until(lambda: move.asked() > 10)  # more often than a server that hangs
        move.finish()
        sent.result(30)

    assert broker.counts() == {"default": {"queued": 2}}
    assert broker.losses == 0  # no other store was made where a half of it was
    broker.close()


def test_1_nothing_is_lost_or_done_twice_when_a_slot_moves_under_load(
    cluster: list[RedisServer],
) -> None:
    broker = RedisBroker(cluster[0].url)
    broker.enqueue([make(queue="other") for _ in range(500)])
    sent: list[str] = []
    settled: list[str] = []
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            message = make()
            broker.enqueue([message])
            sent.append(message.id)

    def work() -> None:
        worker = enlist(broker)
        while not sending.done() or len(settled) < len(sent):
            for lease in broker.claim(worker, ["default"], 5):
                assert broker.settle(worker, lease, Succeeded(b"1"))
                settled.append(lease.id)

    with ThreadPoolExecutor() as pool:
        sending = pool.submit(send)
        working = pool.submit(work)
        try:
            wait_until(lambda: len(settled) > 20)
            with Move(cluster, broker):
                done = len(settled)
            wait_until(lambda: len(settled) > done + 20)
        finally:
            over.set()
        sending.result(30)
        working.result(30)

    assert sorted(settled) == sorted(sent)
    assert broker.losses == 0
    broker.close()


class Move:
    """The slot of a store on its way to another node, in parts of ten keys."""

    def __init__(self, cluster: list[RedisServer], broker: RedisBroker) -> None:
        self.cluster = cluster
        self.slot = cluster[0].say("CLUSTER", "KEYSLOT", f"{broker._prefix}meta")
        self.source = next(node for node in cluster if _owns(node, broker))
        self.target = next(node for node in cluster if node is not self.source)

    def __enter__(self) -> Move:
        self.target.say("CLUSTER", "SETSLOT", self.slot, "IMPORTING", _id(self.source))
        self.source.say("CLUSTER", "SETSLOT", self.slot, "MIGRATING", _id(self.target))
        return self

    def __exit__(self, *exc: object) -> None:
        self.finish()  # or who waits for its end would wait for as long as a call may take

    def some(self) -> bool:
        """Move some of the keys; tell whether there were any."""
        keys: Any = self.source.say("CLUSTER", "GETKEYSINSLOT", self.slot, 10)
        if keys:
            at = ("127.0.0.1", self.target.port, "", 0, 10_000)
            self.source.say("MIGRATE", *at, "KEYS", *keys)
        return bool(keys)

    def asked(self) -> int:
        """Return how often the node that had the slot has said ASK."""
        said: Any = self.source.say("INFO", "errorstats")
        found = re.search(rb"errorstat_ASK:count=(\d+)", said)
        return int(found[1]) if found else 0

    def finish(self) -> None:
        while self.some():
            pass
        for node in sorted(self.cluster, key=lambda one: one is not self.target):
            node.say("CLUSTER", "SETSLOT", self.slot, "NODE", _id(self.target))


def _id(node: RedisServer) -> str:
    return bytes(node.say("CLUSTER", "MYID")).decode()  # type: ignore[arg-type]


@pytest.mark.parametrize("coroutines", [False, True])
@pytest.mark.parametrize("learnt", [False, True])
def test_a_cluster_is_found_when_the_first_node_of_the_url_is_dead(
    cluster: list[RedisServer], *, learnt: bool, coroutines: bool
) -> None:
    owner = next(node for node in cluster if _owns(node, RedisBroker("redis://h")))
    first, other = (node for node in cluster if node is not owner)
    more = "" if learnt else f",127.0.0.1:{other.port}"
    broker = RedisBroker(f"redis://127.0.0.1:{first.port}{more}/0")

    async def go() -> None:
        if learnt:
            await call()
        first.kill()
        owner.say("CLIENT", "KILL", "TYPE", "normal")
        await call()

    async def call() -> None:
        assert (await broker.aget(["x"]) if coroutines else broker.get(["x"])) == {}

    asyncio.run(go())
    broker.close()


@pytest.mark.parametrize("coroutines", [False, True])
def test_a_node_that_joined_later_is_remembered(
    cluster: list[RedisServer], start: Start, *, coroutines: bool
) -> None:
    broker = RedisBroker(cluster[0].url)

    async def go() -> None:
        await call()
        later = start(*_NODE, port=free_port())
        later.say("CLUSTER", "MEET", "127.0.0.1", cluster[0].port)
        for node in (*cluster, later):
            _wait_for(node, b"cluster_known_nodes:4", "CLUSTER", "INFO")
        _wait_for(later, b"cluster_state:ok", "CLUSTER", "INFO")
        with Move([later, *cluster], broker):
            pass  # to the first that does not have it
        await call()
        for node in cluster:
            node.kill()
        later.say("CLIENT", "KILL", "TYPE", "normal")
        await call()

    async def call() -> None:
        assert (await broker.aget(["x"]) if coroutines else broker.get(["x"])) == {}

    asyncio.run(go())
    broker.close()


@pytest.mark.parametrize("coroutines", [False, True])
@pytest.mark.parametrize("options", [(), ("cluster-enabled yes",)], ids=["alone", "cluster"])
def test_another_redis_where_a_node_of_the_cluster_was_is_not_believed(
    cluster: list[RedisServer], start: Start, options: tuple[str, ...], *, coroutines: bool
) -> None:
    owner = next(node for node in cluster if _owns(node, RedisBroker("redis://h")))
    first, other = (node for node in cluster if node is not owner)
    broker = RedisBroker(f"redis://127.0.0.1:{first.port}/0", socket_timeout=1)
    broker.counts()
    for node in cluster:
        node.kill()
    strangers = [start(*options, port=node.port) for node in (owner, other)]
    if options:
        for stranger in strangers[:1]:
            stranger.say("CLUSTER", "ADDSLOTS", *range(16384))
            _wait_for(stranger, b"cluster_state:ok", "CLUSTER", "INFO")

    async def send() -> None:
        if coroutines:
            await broker.aenqueue([make()])
        else:
            broker.enqueue([make()])

    with pytest.raises(BrokerUnavailable, match=r"cannot (be reached|serve now)"):
        asyncio.run(send())

    assert [stranger.say("DBSIZE") for stranger in strangers] == [0, 0]
    broker.close()


def test_a_node_that_is_cut_off_from_its_cluster_is_left(cluster: list[RedisServer]) -> None:
    owner = next(node for node in cluster if _owns(node, RedisBroker("redis://h")))
    first, other = (node for node in cluster if node is not owner)
    broker = RedisBroker(f"redis://127.0.0.1:{first.port},127.0.0.1:{owner.port}/0")
    first.say("CONFIG", "SET", "cluster-require-full-coverage", "yes")
    _notice_deaths_soon(cluster)
    other.kill()
    _wait_for(first, b"cluster_state:fail", "CLUSTER", "INFO")

    broker.enqueue([make()])

    assert broker.counts() == {"default": {"queued": 1}}
    broker.close()


@pytest.mark.parametrize("coroutines", [False, True])
def test_a_cluster_is_followed_to_the_replica_that_took_over(
    cluster: list[RedisServer], start: Start, *, coroutines: bool
) -> None:
    owner = next(node for node in cluster if _owns(node, RedisBroker("redis://h")))
    replica = _replica_of(owner, cluster, start)
    broker = RedisBroker(owner.url, socket_timeout=1)
    before, after = make(), make()
    broker.enqueue([before])
    wait_until(lambda: replica.say("DBSIZE") == owner.say("DBSIZE"))

    _notice_deaths_soon([*cluster, replica])
    owner.kill()

    def again() -> bool:
        try:
            if coroutines:
                asyncio.run(broker.aenqueue([after]))  # type: ignore[arg-type]
            else:
                broker.enqueue([after])
        except BrokerUnavailable:
            return False
        return True

    wait_until(again, within=60)
    assert broker.counts() == {"default": {"queued": 2}}
    assert replica.say("ROLE")[0] == b"master"  # type: ignore[index]
    broker.close()


def test_several_hosts_that_are_no_cluster_are_refused(start: Start) -> None:
    one, other = start(port=free_port()), start(port=free_port())
    broker = RedisBroker(f"redis://127.0.0.1:{one.port},127.0.0.1:{other.port}/0")

    with pytest.raises(ImproperlyConfigured, match="nodes of a cluster"):
        broker.enqueue([make()])


def _replica_of(owner: RedisServer, cluster: list[RedisServer], start: Start) -> RedisServer:
    replica = start(*_NODE, port=free_port())
    replica.say("CLUSTER", "MEET", "127.0.0.1", owner.port)
    id = bytes(owner.say("CLUSTER", "MYID"))  # type: ignore[arg-type]
    _wait_for(replica, id, "CLUSTER", "NODES")
    replica.say("CLUSTER", "REPLICATE", id)
    _wait_for(replica, b"master_link_status:up", "INFO", "replication")
    for node in cluster:  # they elect none of which they do not know whose replica it is
        _wait_for(node, b"slave " + id, "CLUSTER", "NODES")
    return replica


def _notice_deaths_soon(nodes: list[RedisServer]) -> None:
    """Have a node taken for dead after a second. Not from the start: so short a time is also
    that in which nodes must have met, or they forget that they were told to."""
    for node in nodes:
        node.say("CONFIG", "SET", "cluster-node-timeout", 1000)


def _wait_for(node: RedisServer, word: bytes, *question: str) -> None:
    wait_until(lambda: word in bytes(node.say(*question)), within=20)  # type: ignore[arg-type]


def _owns(node: RedisServer, broker: RedisBroker) -> bool:
    try:
        node.say("EXISTS", f"{broker._prefix}meta")
    except ServerError:
        return False
    return True


# Probes


def _probed(url: str | None = None) -> list[str]:
    """Return the names of the workers that `liteq health` finds."""
    return [pulse.name for pulse in health.pulses(*health.store_url(url))]


def test_a_probe_reads_the_options_in_the_url(server: RedisServer) -> None:
    url = f"{server.url}&global_keyprefix=ours:&namespace=mail"
    broker = connect(url)
    broker.register("w@host", ["default"], 1, {})

    assert _probed(url) == ["w@host"]
    assert _probed(server.url) == []
    broker.close()


def test_a_probe_asks_the_sentinels_that_the_settings_name(
    sentinel: tuple[RedisServer, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = RedisBroker(sentinel[1], namespace="mail")
    broker.register("w@host", ["default"], 1, {})
    hosts = ["sentinel://127.0.0.1:1", f"sentinel://127.0.0.1:{sentinel[0].port}"]
    monkeypatch.chdir(folder)
    (folder / "liteq.toml").write_text(
        f"broker_url = {hosts}\n"
        'broker_transport_options = {master_name = "shop", namespace = "mail"}\n'
    )

    assert _probed() == ["w@host"]
    assert _probed(";".join(hosts)) == ["w@host"]
    monkeypatch.setenv("LITEQ_BROKER_URL", ";".join(hosts))
    assert _probed() == ["w@host"]
    broker.close()


def test_a_probe_finds_the_node_of_a_cluster(cluster: list[RedisServer]) -> None:
    broker = RedisBroker(cluster[0].url)
    broker.register("w@host", ["default"], 1, {})

    assert [_probed(node.url) for node in cluster] == [["w@host"]] * 3
    broker.close()


def test_a_probe_waits_while_the_slot_moves(cluster: list[RedisServer]) -> None:
    broker = RedisBroker(cluster[0].url)
    broker.register("w@host", ["default"], 1, {})

    with Move(cluster, broker) as move, ThreadPoolExecutor() as pool:
        while move.some():
            pass
        probed = pool.submit(_probed, move.source.url)
        wait_until(lambda: move.asked() > 4)
        move.finish()
        assert probed.result(30) == ["w@host"]

    broker.close()


# An outage


def test_nobody_is_given_up_for_having_been_out_of_reach(start: Start) -> None:
    server = start("appendonly yes", "appendfsync always")
    broker = RedisBroker(server.url, lease_timeout=0.4, socket_timeout=0.2)
    broker.enqueue([make()])
    worker, other = enlist(broker), enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.beat(other)
    server.kill()
    with pytest.raises(BrokerUnavailable):
        broker.beat(other)
    down = time.monotonic()
    wait_until(lambda: time.monotonic() > down + 0.45)
    server.start()

    assert broker.beat(other)
    assert broker.reclaim(other) == 0  # the first had no way to beat, either

    assert broker.beat(worker)
    assert broker.settle(worker, lease, Succeeded(b"1"))
    broker.close()


def test_who_waits_for_a_result_is_told_of_an_outage_and_may_wait_again(start: Start) -> None:
    server = start("appendonly yes", "appendfsync always")
    app = Liteq("shop", broker=server.url, set_as_current=False)
    double = app.task(lambda number: 2 * number, name="shop.double")
    result = double.delay(2)

    with pytest.raises(BrokerUnavailable):
        result.get(timeout=60, on_interval=server.kill)
    with pytest.raises(BrokerUnavailable):
        result.get(timeout=60, propagate=False)
    with pytest.raises(BrokerUnavailable):
        result.ready()

    server.start()
    with app.worker():
        assert result.get(timeout=30) == 4
    app.close()


# Wrong words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"durability": "off"}, "durability must be"),
        ({"durability": "replicated", "replicas": 0}, "replicas must be 1 or more"),
        ({"namespace": "a{b}"}, "braces mark"),
        ({"global_keyprefix": "{x}"}, "braces mark"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=message):
        RedisBroker("redis://localhost", **options)  # type: ignore[arg-type]
