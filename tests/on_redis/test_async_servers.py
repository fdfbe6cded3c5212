"""Coroutines and Redis as it is run: TLS, users, replicas, Sentinel; and who forks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis_server import RedisServer, free_port
from world import enlist, fork, make, wait_until

from liteq import Liteq
from liteq.brokers.redis import RedisBroker
from liteq.exceptions import BrokerError, BrokerUnavailable
from liteq.message import Edge
from liteq.outcome import Succeeded
from liteq.waiting import asettled
from on_redis.conftest import acl_of_the_docs
from on_redis.proxy import Proxy

pytestmark = pytest.mark.redis

Start = Callable[..., RedisServer]


def use(broker: RedisBroker) -> None:
    """Have coroutines do all that they do over connections of their own."""
    first, then = make(), make()

    async def go() -> None:
        await broker.aenqueue([first, then], [Edge(first.id, then.id, "success")])
        assert (await broker.aget([first.id]))[first.id].state == "queued"
        waiting = asyncio.create_task(_ended(broker, then.id))
        await asyncio.to_thread(_work, broker)
        assert await asyncio.wait_for(waiting, 10) == "succeeded"

    asyncio.run(go())
    broker.close()


async def _ended(broker: RedisBroker, id: str) -> str:
    [state] = [record.state async for record in asettled(broker, [id])]
    return state


def _work(broker: RedisBroker) -> None:
    worker = enlist(broker)
    for _ in range(2):
        (lease,) = broker.claim(worker, ["default"])
        assert broker.settle(worker, lease, Succeeded(b"1"))


# TLS


def _encrypted(certificates: Path, clients: str) -> tuple[str, ...]:
    return (
        f"tls-cert-file {certificates}/cert.pem",
        f"tls-key-file {certificates}/key.pem",
        f"tls-ca-cert-file {certificates}/cert.pem",
        f"tls-auth-clients {clients}",
    )


def test_coroutines_use_tls_and_check_the_certificate(start: Start, certificates: Path) -> None:
    port = free_port()
    start(f"tls-port {port}", *_encrypted(certificates, "no"))
    ca = str(certificates / "cert.pem")

    use(RedisBroker(f"rediss://localhost:{port}/0", ssl_ca_certs=ca))

    for url, options in (
        (f"rediss://localhost:{port}/0", {}),
        (f"rediss://127.0.0.1:{port}/0", {"ssl_ca_certs": ca}),
    ):
        broker = RedisBroker(url, **options)  # type: ignore[arg-type]
        broker._link.server = {"known": "1"}  # so that the first to connect is a coroutine
        with pytest.raises(BrokerUnavailable, match=r"(?i)certificate|hostname|mismatch"):
            asyncio.run(broker.aget(["x"]))  # type: ignore[arg-type]


def test_coroutines_show_the_certificate_that_a_server_asks_for(
    start: Start, certificates: Path
) -> None:
    port = free_port()
    start(f"tls-port {port}", *_encrypted(certificates, "yes"))
    url, ca = f"rediss://localhost:{port}/0", str(certificates / "cert.pem")
    own = {"ssl_certfile": ca, "ssl_keyfile": str(certificates / "key.pem")}

    use(RedisBroker(url, ssl_ca_certs=ca, **own))  # type: ignore[arg-type]

    broker = RedisBroker(url, ssl_ca_certs=ca)
    broker._link.server = {"known": "1"}
    with pytest.raises(BrokerUnavailable):
        asyncio.run(broker.aget(["x"]))  # type: ignore[arg-type]


# Users


def test_coroutines_are_the_user_of_the_docs(start: Start) -> None:
    server = start(acl_of_the_docs(), port=free_port())

    use(RedisBroker(f"unix://liteq:secret@{server.path}?db=0"))
    use(RedisBroker(f"redis://liteq:secret@127.0.0.1:{server.port}/0"))


def test_coroutines_are_told_that_a_password_is_wrong_and_not_which(start: Start) -> None:
    server = start(acl_of_the_docs())
    broker = RedisBroker(f"unix://liteq:guessed@{server.path}?db=0")
    broker._link.server = {"known": "1"}

    with pytest.raises(BrokerError, match="does not know this user") as raised:
        asyncio.run(broker.aget(["x"]))  # type: ignore[arg-type]

    assert not isinstance(raised.value, BrokerUnavailable)
    assert "guessed" not in str(raised.value)


def test_coroutines_are_told_what_their_user_may_not_do(start: Start) -> None:
    server = start(f"{acl_of_the_docs()} -evalsha")
    broker = RedisBroker(f"unix://liteq:secret@{server.path}?db=0")

    with pytest.raises(BrokerError, match="does not let this user"):
        asyncio.run(broker.aenqueue([make()]))  # type: ignore[arg-type]
    broker.close()


# Replicas and Sentinel


def test_what_a_coroutine_enqueued_replicated_a_replica_has(
    replica: tuple[RedisServer, RedisServer],
) -> None:
    master, follower = replica
    broker = RedisBroker(master.url, durability="replicated", replica_timeout=2.0)
    hasty = RedisBroker(master.url, durability="replicated", replica_timeout=0.1)
    message, late, last = make(), make(), make()

    async def go() -> None:
        await broker.aenqueue([message])
        assert follower.say("EXISTS", f"{broker._prefix}m:{message.id}") == 1
        follower.pause()
        with pytest.raises(BrokerUnavailable, match="0 of 1 replicas"):
            await hasty.aenqueue([late])
        follower.resume()
        await hasty.aget([late.id])  # on the connection that had waited in vain
        await broker.aenqueue([late, last])  # which is what one does: it is there once

    asyncio.run(go())

    assert broker.counts() == {"default": {"queued": 3}}
    broker.close()
    hasty.close()


def test_coroutines_follow_the_sentinels_to_the_new_master(
    replica: tuple[RedisServer, RedisServer], sentinel: tuple[RedisServer, str]
) -> None:
    master, follower = replica
    broker = RedisBroker(sentinel[1], socket_timeout=1.0)
    before, after = make(), make()

    async def go() -> None:
        await broker.aenqueue([before])
        await asyncio.to_thread(wait_until, lambda: _has(follower, broker, before.id))
        master.kill()
        async with asyncio.timeout(60):
            while True:
                try:
                    await broker.aenqueue([after])
                except BrokerUnavailable:
                    continue  # it tried for as long as it may, with pauses
                return

    asyncio.run(go())

    assert follower.say("ROLE")[0] == b"master"  # type: ignore[index]
    assert _has(follower, broker, after.id)
    assert broker.counts() == {"default": {"queued": 2}}
    broker.close()


def _has(server: RedisServer, broker: RedisBroker, id: str) -> bool:
    return server.say("EXISTS", f"{broker._prefix}m:{id}") == 1


# Who forks


def is_fine(pid: int) -> bool:
    return os.waitpid(pid, 0)[1] == 0


def sockets() -> set[str]:
    """Return the sockets that this process has open."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # the one with which the folder was read
        if target.startswith("socket:"):
            found.add(target)
    return found


def _ids(server: RedisServer) -> set[bytes]:
    """Return the numbers of the connections that have called a script."""
    found: Any = server.say("CLIENT", "LIST")
    return {line.split()[0] for line in found.splitlines() if b"cmd=evalsha" in line}


def test_a_child_that_was_forked_while_the_loop_ran_has_connections_of_its_own(
    app: Liteq, server: RedisServer
) -> None:
    double: Any = app.tasks["shop.double"]

    async def send(number: int) -> int:
        return await (await double.adelay(number))

    async def go() -> None:
        others = sockets()
        assert await send(1) == 2
        inherited, known = sockets() - others, _ids(server)
        assert len(inherited) >= 2  # a connection, and that of the mailbox

        def child() -> bool:
            if sockets() & inherited:
                return False
            sent = asyncio.run(asyncio.wait_for(send(2), 20))
            return sent == 4 and not sockets() & inherited

        assert await asyncio.to_thread(lambda: is_fine(fork(child)))
        assert _ids(server) >= known  # the child closed none of ours
        assert await asyncio.wait_for(send(3), 20) == 6
        assert sockets() >= inherited  # over the same connections as before

    with app.worker():
        asyncio.run(go())


def test_a_child_does_not_get_the_answer_that_its_parent_waits_for(
    proxy: Proxy, broker: RedisBroker, direct: RedisBroker
) -> None:
    first, second = make(), make()
    broker._link.timeout = broker._link.options["socket_timeout"] = 20.0

    async def go() -> None:
        await broker.aenqueue([first])
        proxy.hold()
        asked = asyncio.create_task(broker.aget([first.id]))
        await asyncio.sleep(0)  # it is sent now, and not answered

        def child() -> bool:
            found = asyncio.run(asyncio.wait_for(broker.aget([second.id]), 20))
            return found == {}

        pid = fork(child)
        proxy.release()
        assert list(await asked) == [first.id]
        assert await asyncio.to_thread(is_fine, pid)
        await broker.aenqueue([second])

    asyncio.run(go())

    assert direct.counts() == {"default": {"queued": 2}}


def test_a_child_that_was_forked_when_the_loop_had_ended_calls(
    app: Liteq, server: RedisServer
) -> None:
    double: Any = app.tasks["shop.double"]

    def send() -> bool:
        return bool(asyncio.run(double.adelay(1)).id)

    send()

    assert is_fine(fork(send))
    assert send()
    assert app.broker.counts()["default"]["queued"] == 3


def test_no_connection_of_a_parent_stays_open_in_its_children(server: RedisServer) -> None:
    broker = RedisBroker(server.url)

    async def go() -> None:
        await asyncio.gather(*(broker.aenqueue([make()]) for _ in range(5)))
        read, write = os.pipe()

        def child() -> bool:
            os.close(write)
            return os.read(read, 1) == b""  # when the parent has looked

        pid = fork(child)
        os.close(read)
        try:
            broker.close()
            await asyncio.sleep(0)
            await asyncio.to_thread(wait_until, lambda: not _ids(server))
        finally:
            os.close(write)
            assert await asyncio.to_thread(is_fine, pid)

    asyncio.run(go())
    broker.close()
