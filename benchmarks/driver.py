"""The caller's side, in a process of its own: `python -m benchmarks.driver MODULE OPERATION
ARGUMENTS` prints what the operation returned. Arguments and answer are JSON."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import random
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from benchmarks import effects


async def enqueue(system: Any, number: int, first: int = 0) -> tuple[list[int], float, int]:
    """Enqueue in a loop: nanoseconds of each call, CPU seconds of all, and the time of the
    first by the clock that all processes share."""
    call, is_async = system.enqueue, _is_async(system)
    handles, took = [], []
    began, cpu = time.monotonic_ns(), time.process_time()
    for each in range(first, first + number):
        start = time.perf_counter_ns()
        handle = call(each)
        handles.append(await handle if is_async else handle)
        took.append(time.perf_counter_ns() - start)
    cpu = time.process_time() - cpu
    if hasattr(system, "result"):
        name = "id" if hasattr(handles[0], "id") else "task_id"
        _ids().write_text(json.dumps([getattr(handle, name) for handle in handles]))
    return took, cpu, began


async def many(system: Any, number: int) -> tuple[float, float] | None:
    """Enqueue all in one call: its seconds, and its CPU seconds; None where there is none."""
    if not hasattr(system, "enqueue_many"):
        return None
    await _value(system, system.enqueue(effects.WARM_UP))  # connects, and is not counted
    start, cpu = time.perf_counter(), time.process_time()
    await _value(system, system.enqueue_many(range(number)))
    return time.perf_counter() - start, time.process_time() - cpu


async def produce(system: Any, seconds: float) -> list[int]:
    """Once told to, enqueue as fast as possible for a while: nanoseconds of each call."""
    await _value(system, system.enqueue(effects.WARM_UP))
    print("ready", flush=True)
    sys.stdin.readline()
    took: list[int] = []
    now = time.perf_counter_ns()
    end = now + int(seconds * 1e9)
    while now < end:
        start = now
        await _value(system, system.enqueue(len(took)))
        now = time.perf_counter_ns()
        took.append(now - start)
    return took


async def waiting(system: Any) -> int | None:
    """Return how many tasks wait; None if the system does not say."""
    if not hasattr(system, "waiting"):
        return None
    count: int = await _value(system, system.waiting())
    return count


async def results(system: Any) -> int | None:
    """Return how many of the tasks enqueued have left the right result; None where a
    result cannot be asked for by its id."""
    if not hasattr(system, "result"):
        return None
    ids = json.loads(_ids().read_text())
    return sum(
        [await _value(system, system.result(id)) == number for number, id in enumerate(ids)]
    )


async def paced(system: Any, number: int, pause: float) -> list[int]:
    """Enqueue with pauses (seconds, a fifth more or less), each task for an idle worker: the
    times of the calls."""
    await _value(system, system.enqueue(effects.WARM_UP))  # connects
    called = []
    for each in range(number):
        time.sleep(random.uniform(0.8, 1.2) * pause)  # noqa: ASYNC251 (nothing else runs here)
        called.append(time.monotonic_ns())
        await _value(system, system.enqueue(each))
    return called


async def round_trips(system: Any, number: int, budget: float) -> list[int]:
    """Call and wait, one after the other, for at most `budget` seconds: ns of each."""
    took: list[int] = []
    await _value(system, system.enqueue(effects.WARM_UP))  # connects
    for each in range(number):
        start = time.perf_counter_ns()
        if hasattr(system, "call"):
            value = await system.call(each)
        else:
            value = await _value(
                system, system.wait(await _value(system, system.enqueue(each)))
            )
        took.append(time.perf_counter_ns() - start)
        assert value == each, value
        if sum(took) > budget * 1e9:
            break
    return took


async def sleepers(system: Any, number: int, milliseconds: int) -> None:
    """Enqueue tasks that take their time."""
    for each in range(number):
        await _value(system, system.enqueue_sleep(each, milliseconds))


async def canvas(system: Any, kind: str, size: int, times: int = 1) -> list[float] | None:
    """Submit a workflow and wait for its result: the seconds of each time, of which the
    first connects, and imports what was not yet. None if the system has no such thing."""
    function = getattr(system, f"{kind}_", None)
    if function is None:
        return None
    took = []
    for _ in range(times):
        start = time.perf_counter()
        value = await _value(system, function(size))
        took.append(time.perf_counter() - start)
        assert value == {"chord": size * (size - 1) // 2, "chain": size}[kind], value
    return took


async def _value(system: Any, made: Any) -> Any:
    """Await what an asynchronous system made. (The results of others may be awaitable too.)"""
    return await made if _is_async(system) and inspect.isawaitable(made) else made


def _is_async(system: Any) -> bool:
    return hasattr(system, "setup")


def _ids() -> Path:
    return Path(os.environ["BENCH_FOLDER"], "ids.json")


async def _within(system: Any, work: Coroutine[Any, Any, Any]) -> Any:
    await system.setup()
    try:
        return await work
    finally:
        await system.teardown()


def _without_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Run what never waits for an event loop, so that none is in the way of the system."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("a system without setup() waited for an event loop")


def main() -> None:
    module, name, arguments = sys.argv[1:]
    system, own = importlib.import_module(f"benchmarks.{module}"), globals().get(name)
    given = json.loads(arguments)
    if own is None:
        answer = getattr(system, name)(**given)
    elif _is_async(system):
        answer = asyncio.run(_within(system, own(system, **given)))
    else:
        answer = _without_loop(own(system, **given))
    print(f"@@{json.dumps(answer)}")


if __name__ == "__main__":
    main()
