"""What type checkers are to infer of the public API. Never run: only checked."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, assert_type

from liteq import (
    AsyncResult,
    AsyncTask,
    BoundTask,
    Graph,
    Liteq,
    Signature,
    Task,
    chain,
    chord,
    chunks,
    group,
    shared_task,
)
from liteq.bulk import BulkResult
from liteq.context import Context
from liteq.contrib.flask import FlaskLiteq
from liteq.result import EagerResult, GroupResult
from liteq.testing import Inline, TaskRun, inline, perform, start_worker
from liteq.workflows import Workflow

app = Liteq("shop", task_default_queue="q")


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task(queue="high", autoretry_for=(OSError,), retry_backoff=True)
def send(to: str, *, urgent: bool = False) -> str:
    return to


@app.task(bind=True, max_retries=3)
def charge(self: BoundTask, order: int) -> dict[str, int]:
    assert_type(self.request.retries, int)
    raise self.retry(countdown=5, queue="slow")


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task(bind=True)
async def crawl(self: BoundTask, url: str) -> list[str]:
    return [url]


@app.task(flush_every=100, flush_interval=5)
def insert(calls: list[Context]) -> list[int]:
    return [call.args[0] for call in calls]


@shared_task(flush_every=100, bind=True)
async def insert_all(self: BoundTask, calls: list[Context]) -> None: ...


@shared_task
def shared(x: int) -> float:
    return x / 2


queue = FlaskLiteq(include=["shop.tasks"])


@queue.task(max_retries=5)
def welcome(user: str) -> bool:
    return bool(user)


@shared_task(name="shared.bound", bind=True)
def shared_bound(self: BoundTask, x: int) -> float:
    return x / 2


class Connected(Task[..., Any]):
    def connect(self) -> int:
        return 1


app.Task = Connected


@app.task(base=Connected)
def based(x: int) -> int:
    return x


class Add(Task[[int, int], int]):
    name = "add"

    def run(self, x: int, y: int) -> int:
        return x + y


# Tasks

assert_type(add.delay(1), AsyncResult[int])
assert_type(add.delay(1, y=2).get(timeout=1), int)
assert_type(add(1, 2), int)
assert_type(add.apply_async((1,), countdown=5, queue="q"), AsyncResult[int])
assert_type(add.apply((1,)), EagerResult[int])
assert_type(add.apply((1,)).get(), int)
assert_type(add.apply((1,)).get(propagate=False), int | BaseException)
assert_type(add.delay(1).get(propagate=True), int)
assert_type(add.delay(1).get(5, True), int)
assert_type(add.delay(1).get(propagate=False), int | BaseException)
assert_type(add.delay(1).get(5, False), int | BaseException)
assert_type(add.delay(1).wait(propagate=False), int | BaseException)
assert_type(add.enqueue_many([(1,)]).get(propagate=False), list[int | BaseException])
assert_type(insert.delay(1, name="a"), AsyncResult[Any])
assert_type(insert_all.delay(1), AsyncResult[Any])
assert_type(send.delay("a", urgent=True).get(), str)
assert_type(charge.delay(1).get(), dict[str, int])
assert_type(shared.delay(1).get(), float)
assert_type(welcome.delay("ada"), AsyncResult[bool])
assert_type(queue.AsyncResult("…"), AsyncResult[Any])
assert_type(shared_bound.delay(1).get(), float)
assert_type(based.connect(), int)
assert_type(based.delay(1).get(), Any)
assert_type(app.register_task(Add()), Add)
assert_type(app.register_task(Add, queue="q").delay(1, 2).get(), int)
assert_type(add.enqueue_many([(1,), {"x": 1, "y": 2}], priority=3), BulkResult[int])
assert_type(add.enqueue_many([(1,)])[0].get(), int)
assert_type(add.enqueue_many([(1,)]).get(timeout=1), list[int])
assert_type(app.enqueue_many([add.s(1)]).ids, list[str])

# Coroutines

assert_type(fetch.delay("u"), AsyncResult[bytes])
assert_type(crawl.delay("u").get(), list[str])
fetch_task: AsyncTask[[str], bytes] = fetch


async def main() -> None:
    assert_type(await add.adelay(1, y=2), AsyncResult[int])
    assert_type(await (await add.adelay(1)), int)
    pending = fetch("u")
    checked = assert_type(pending, Coroutine[Any, Any, bytes])
    assert_type(await checked, bytes)
    assert_type(await add.delay(1), int)
    assert_type(await add.delay(1).aget(timeout=1), int)
    assert_type(await add.delay(1).aget(propagate=False), int | BaseException)


def whether_it_failed(result: AsyncResult[int], *, raises: bool) -> str:
    ended = result.get(propagate=False)
    assert_type(result.get(propagate=raises), int | BaseException)
    if isinstance(ended, BaseException):
        return str(ended.args)
    assert_type(ended, int)
    return "" if result.get(propagate=False) == ended else "changed"


# Signatures

assert_type(add.s(1), Signature[int])
assert_type(add.si(1, y=2), Signature[int])
assert_type(add.s(1).set(queue="q"), Signature[int])
assert_type(add.s(1).delay(), AsyncResult[int])
assert_type(add.s(1).delay().get(), int)
assert_type(add.s(1)(2), int)

# Groups and workflows

pair = GroupResult("g", [add.delay(1), add.delay(2)])
assert_type(pair.completed_count(), int)
assert_type(app.GroupResult.restore("g"), GroupResult | None)
assert_type(app.workflow("w"), Workflow)
assert_type(app.workflow("w").progress.fraction, float)
assert_type(app.workflow("w").retry_failed(), list[str])


async def follow() -> None:
    assert_type(await pair, list[Any])
    assert_type(await group(add.s(1)).adelay(), GroupResult)
    assert_type(await group(add.s(1)).aapply_async(countdown=3), GroupResult)
    assert_type(await add.chunks([(1, 2)], 2).adelay(), GroupResult)
    assert_type(await add.chunks([(1, 2)], 2).aapply_async(), GroupResult)
    assert_type(await (add.s(1) | send.s()).adelay(), AsyncResult[str])
    assert_type(await (await chord([add.s(1)], send.s()).aapply_async()), str)
    async for member in pair:
        print(member)


# Workflows

assert_type(add.s(1) | send.s(), chain[str])
assert_type(add.s(1) | send.s() | add.s(), chain[int])
assert_type((add.s(1) | send.s()).delay().get(), str)
assert_type(chain(add.s(1), send.s()), chain[str])
assert_type(chain(add.s(1), send.s(), add.s()).delay(), AsyncResult[int])
assert_type(group(add.s(1), add.s(2)), group[int])
assert_type(group(add.s(i) for i in range(3)), group[int])
assert_type(group(add.s(1), add.s(2)).delay(), GroupResult)
assert_type(group(add.s(1)) | send.s(), chord[str])
assert_type(chord([add.s(1)], send.s()), chord[str])
assert_type(chord([add.s(1)], send.s(), on_error="skip").delay().get(), str)
assert_type(chord([add.s(1)])(send.s()).get(), Any)
assert_type(add.map([1, 2]).delay().get(), list[int])
assert_type(add.chunks([(1, 2)], 2), chunks[int])
assert_type(add.chunks([(1, 2)], 2).delay(), GroupResult)
assert_type(Graph("g").add("a", add.s(1)).add("b", send.s(), after="a"), Graph)

# By name

assert_type(app.send_task("elsewhere", (1,), queue="q"), AsyncResult[Any])
assert_type(app.AsyncResult("id"), AsyncResult[Any])


def tests() -> None:
    with inline(app) as t:
        assert_type(t, Inline)
        assert_type(t.perform(add, 1), int)
        assert_type(t.drain(), list[TaskRun])
        t.assert_enqueued(add, args=(1, 2), countdown=60)
        t.clock.advance(60)
    assert_type(perform(send, "ann", urgent=True), str)
    assert_type(perform(fetch, "https://example.org"), bytes)
    with start_worker(app):
        pass


@inline(app)
def decorated(number: int) -> str:
    return str(number)


assert_type(decorated(1), str)
