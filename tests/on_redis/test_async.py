"""Coroutines and Redis: calls over asyncio connections, without a thread, whatever breaks."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
from redis_server import RedisServer
from world import enlist, make, wait_until

from liteq import Liteq, offload
from liteq.brokers.redis import RedisBroker
from liteq.brokers.redis_async import _MOST
from liteq.exceptions import BrokerUnavailable, SchemaError, UnknownTaskId
from liteq.outcome import Succeeded
from liteq.waiting import _loop_post, asettled
from on_redis.proxy import Proxy

pytestmark = pytest.mark.redis


class Threads:
    """Counts what goes off the loop."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def off_loop(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.calls.append(fun.__name__)
        return await offload.off_loop(fun, *args, **kwargs)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    counted = Threads()
    for place in (
        "brokers.base",
        "brokers.redis_async",
        "sending",
        "waiting",
        "results.asyncresult",
    ):
        monkeypatch.setattr(f"liteq.{place}.off_loop", counted.off_loop)
    return counted


def test_a_call_and_its_result_take_no_thread(app: Liteq, threads: Threads) -> None:
    double: Any = app.tasks["shop.double"]

    async def go() -> list[int]:
        assert await (await double.adelay(1)) == 2  # connects, and opens a mailbox
        threads.calls.clear()
        results = [await double.adelay(number) for number in range(5)]
        return [await result for result in results]

    with app.worker():
        assert asyncio.run(go()) == [0, 2, 4, 6, 8]
    # A look that found nothing in time asks whether the store is the same: that may.
    assert set(threads.calls) <= {"check", "mend"}


def test_many_coroutines_share_few_connections(app: Liteq, server: RedisServer) -> None:
    double: Any = app.tasks["shop.double"]

    async def go() -> int:
        results = await asyncio.gather(*(double.adelay(number) for number in range(300)))
        clients = redis.Redis(unix_socket_path=str(server.path))
        found: Any = clients.client_list()
        clients.close()
        assert len({result.id for result in results}) == 300
        return len(found)

    assert asyncio.run(go()) <= _MOST + 3
    assert app.broker.counts()["default"]["queued"] == 300


def test_connections_end_with_their_loop(server: RedisServer) -> None:
    broker = RedisBroker(server.url)
    clients = redis.Redis(unix_socket_path=str(server.path))

    async def go() -> None:
        await asyncio.gather(*(broker.aenqueue([make()]) for _ in range(5)))

    for _ in range(3):
        asyncio.run(go())
    gc.collect()  # a socket that was left open would be warned of here
    found: Any = clients.client_list()

    assert broker.counts()["default"]["queued"] == 15
    assert len(found) <= 2  # this one, and that of `counts`
    clients.close()
    broker.close()


def test_loops_of_several_threads_have_connections_of_their_own(server: RedisServer) -> None:
    broker = RedisBroker(server.url)

    async def go() -> None:
        for _ in range(20):
            await broker.aenqueue([make()])

    threads = [threading.Thread(target=asyncio.run, args=(go(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert broker.counts()["default"]["queued"] == 60
    broker.close()


def test_the_first_call_of_a_process_is_told_of_an_outage_and_the_next_is_well(
    app: Liteq, server: RedisServer
) -> None:
    double: Any = app.tasks["shop.double"]

    async def go() -> None:
        server.kill()
        for _ in range(2):
            with pytest.raises(BrokerUnavailable, match="cannot be reached"):
                await double.adelay(1)
        await asyncio.to_thread(server.start)
        await double.adelay(2)

    asyncio.run(go())

    assert app.broker.counts()["default"]["queued"] == 1


@pytest.mark.parametrize("word", ["EVALSHA", "liteq:default"])
def test_a_lost_reply_is_no_second_message(
    proxy: Proxy, broker: RedisBroker, direct: RedisBroker, word: str
) -> None:
    async def go() -> None:
        await broker.aenqueue([make()])
        for _ in range(5):
            proxy.lose_reply_of(word)
            await broker.aenqueue([make()])

    asyncio.run(go())

    assert proxy.lost >= 5
    assert direct.counts()["default"]["queued"] == 6


def test_a_held_line_is_unavailable_and_then_goes_on(
    proxy: Proxy, broker: RedisBroker, direct: RedisBroker
) -> None:
    message = make()

    async def go() -> None:
        await broker.aenqueue([make()])
        proxy.hold()
        with pytest.raises(BrokerUnavailable, match="cannot be reached"):
            await broker.aenqueue([message])
        proxy.release()
        await broker.aenqueue([message])  # which it may have been, or not

    asyncio.run(go())

    assert direct.counts()["default"]["queued"] == 2


def test_a_cancelled_call_leaves_no_answer_to_the_next(
    proxy: Proxy, broker: RedisBroker
) -> None:
    first, second = make(), make()

    async def go() -> dict[str, Any]:
        await broker.aenqueue([first])
        proxy.hold()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await broker.aget([first.id])
        proxy.release()
        await broker.aenqueue([second])
        return await broker.aget([second.id])

    assert list(asyncio.run(go())) == [second.id]


def test_a_server_that_came_back_without_the_scripts_gets_them(
    server: RedisServer, direct: RedisBroker
) -> None:
    async def go() -> None:
        await direct.aenqueue([make()])
        server.say("SCRIPT", "FLUSH")
        await direct.aenqueue([make()])

    asyncio.run(go())

    assert direct.counts()["default"]["queued"] == 2


def test_coroutines_are_refused_what_others_are(server: RedisServer) -> None:
    broker = RedisBroker(server.url)
    broker.check()
    server.say("HSET", f"{broker._prefix}meta", "version", "9")

    with pytest.raises(SchemaError, match="version 9"):
        asyncio.run(broker.aenqueue([make()]))  # type: ignore[arg-type]
    broker.close()


def test_an_unknown_id_is_noticed(app: Liteq) -> None:
    async def go() -> None:
        await app.AsyncResult("unknown").aget()

    with pytest.raises(UnknownTaskId):
        asyncio.run(go())


def test_a_waiter_hears_again_after_its_line_was_cut(
    proxy: Proxy, broker: RedisBroker, direct: RedisBroker
) -> None:
    message = make()
    direct.enqueue([message])
    worker = enlist(direct)

    async def first() -> str:
        async for record in asettled(broker, [message.id]):
            return record.id
        return ""

    async def go() -> str:
        mailbox: Any = (await _loop_post(broker)).mailbox
        cut = mailbox._connection
        waiting = asyncio.create_task(first())
        proxy.cut()
        await asyncio.to_thread(wait_until, lambda: mailbox._connection not in (cut, None))
        step = direct.step(worker, queues=["default"], limit=1, tasks={"shop.charge"})
        direct.step(worker, settlements=[(step.leases[0], Succeeded(b"1"))])
        return await waiting

    assert asyncio.run(go()) == message.id
