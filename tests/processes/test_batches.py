"""Tasks that take many calls, in real workers: who waits for others is lost as little as what
runs, whoever dies, and is run as soon as it can be."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis_server
from world import wait_until

from liteq import chord
from liteq.exceptions import TaskRevokedError
from processes.shop import Shop

pytestmark = pytest.mark.process

TASKS = """
@app.task(flush_every=5, flush_interval=0.2)
def double(calls):
    note("run", os.getpid(), *[call.args[0] for call in calls])
    return [call.args[0] * 2 for call in calls]

@app.task(flush_every=5, flush_interval=600)
def patient(calls):
    note("run", os.getpid(), *[call.args[0] for call in calls])
    return [[call.args[0], call.deliveries, len(calls)] for call in calls]

@app.task(flush_every=100, flush_interval=600)
def many(calls):
    note("run", os.getpid(), *[call.args[0] for call in calls])
    return [[call.args[0], call.deliveries] for call in calls]

@app.task(flush_every=5, flush_interval=0.2)
def held(calls):
    note("run", os.getpid(), *[call.args[0] for call in calls])
    while len(calls) > 1 and not os.path.exists(FOLDER + "/go-held"):
        time.sleep(0.005)
    return [[call.args[0], call.deliveries, len(calls)] for call in calls]

@app.task(flush_every=3, flush_interval=0.2)
async def batched(calls):
    note("run", os.getpid(), *[call.args[0] for call in calls])
    await asyncio.sleep(0)
    return [call.args[0] * 2 for call in calls]

@app.task
def again():
    if not os.path.exists(FOLDER + "/go-again"):
        again.delay()
        time.sleep(0.05)

@app.task
def total(numbers):
    return sum(numbers)

@app.task(flush_every=4, flush_interval=0.2)
def poison(calls):
    note("run", os.getpid(), *[call.args[0] for call in calls])
    if any(call.args[0] == "bad" for call in calls):
        os.kill(os.getpid(), 9)
    return [call.args[0] for call in calls]
"""


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    url = redis_server.url_of(tmp_path) if request.param == "redis" else None
    opened = Shop(tmp_path, TASKS, url=url, worker_lease_timeout=1.0)
    yield opened
    opened.close()


def runs(shop: Shop) -> list[list[str]]:
    """Return the arguments of the calls of each run."""
    return [words[2:] for words in shop.notes("run")]


def wait_until_held(shop: Shop, results: list[Any]) -> None:
    """Wait until a worker has all of these calls."""
    wait_until(lambda: all(shop.record(one).state == "running" for one in results), within=15)


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "solo"])
def test_calls_run_by_fives_and_the_rest_when_the_first_has_waited(
    shop: Shop, pool: str
) -> None:
    shop.start("-c", "1", "-P", pool)
    results = [shop.tasks.double.delay(number) for number in range(12)]

    assert [one.get(timeout=15) for one in results] == [number * 2 for number in range(12)]
    assert [len(calls) for calls in runs(shop)] == [5, 5, 2]


@pytest.mark.parametrize("pool", ["prefork", "asyncio"])
def test_coroutines_take_many_calls(shop: Shop, pool: str) -> None:
    shop.start("-c", "1", "-P", pool)
    results = [shop.tasks.batched.delay(number) for number in range(4)]

    assert [one.get(timeout=15) for one in results] == [0, 2, 4, 6]
    assert [len(calls) for calls in runs(shop)] == [3, 1]


def test_a_full_run_does_not_wait(shop: Shop) -> None:
    shop.start("-c", "1")
    results = [shop.tasks.patient.delay(number) for number in range(5)]

    assert [one.get(timeout=15) for one in results] == [[n, 1, 5] for n in range(5)]


def test_other_tasks_run_while_calls_wait_for_others(shop: Shop) -> None:
    shop.start("-c", "1")
    waiting = [shop.tasks.patient.delay(number) for number in range(4)]
    wait_until_held(shop, waiting)

    assert shop.tasks.add.delay(1, 2).get(timeout=15) == 3
    assert shop.tasks.patient.delay(4).get(timeout=15) == [4, 1, 5]


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "solo"])
def test_calls_that_have_waited_run_before_more_is_claimed(shop: Shop, pool: str) -> None:
    shop.start("-c", "1", "-P", pool)
    shop.tasks.again.delay()  # from now on there is always something to claim
    results = [shop.tasks.double.delay(number) for number in range(2)]

    assert [one.get(timeout=15) for one in results] == [0, 2]
    shop.release("again")


def test_a_burst_waits_for_no_more_calls(shop: Shop) -> None:
    results = [shop.tasks.patient.delay(number) for number in range(7)]
    worker = shop.start("-c", "1", "--burst", ready=False)

    assert worker.wait(20) == 0
    assert [one.get(timeout=1)[1:] for one in results] == [[1, 5]] * 5 + [[1, 2]] * 2


def test_a_stop_gives_back_what_waits_as_if_it_had_never_been_taken(shop: Shop) -> None:
    first = shop.start("-c", "1", name="first")
    results = [shop.tasks.patient.delay(number) for number in range(3)]
    wait_until_held(shop, results)

    first.terminate()

    assert first.wait(20) == 0
    assert [shop.record(one).state for one in results] == ["queued"] * 3
    assert runs(shop) == []
    shop.start("-c", "1", name="second")
    results += [shop.tasks.patient.delay(number) for number in range(3, 5)]
    assert [one.get(timeout=15) for one in results] == [[n, 1, 5] for n in range(5)]


def test_a_killed_worker_loses_no_call_that_waited(shop: Shop) -> None:
    first = shop.start("-c", "1", name="first")
    results = [shop.tasks.patient.delay(number) for number in range(3)]
    wait_until_held(shop, results)

    first.kill()
    shop.start("-c", "1", name="second")

    assert [one.get(timeout=15) for one in results] == [[n, 2, 1] for n in range(3)]


def test_a_worker_that_was_stopped_beyond_its_lease_does_not_run_what_waited(
    shop: Shop,
) -> None:
    first = shop.start("-c", "1", name="first")
    results = [shop.tasks.patient.delay(number) for number in range(3)]
    wait_until_held(shop, results)

    os.kill(first.pid, signal.SIGSTOP)
    shop.start("-c", "1", name="second")
    assert [one.get(timeout=15) for one in results] == [[n, 2, 1] for n in range(3)]
    os.kill(first.pid, signal.SIGCONT)
    wait_until(lambda: "this worker for dead" in shop.log("first"), within=15)

    assert shop.tasks.add.delay(1, 2).get(timeout=15) == 3
    assert len(runs(shop)) == 3


def test_the_calls_of_a_killed_child_run_again_each_by_itself(shop: Shop) -> None:
    shop.start("-c", "1")
    results = [shop.tasks.held.delay(number) for number in range(5)]
    wait_until(lambda: runs(shop), within=15)

    os.kill(int(shop.notes("run")[0][1]), signal.SIGKILL)

    assert [one.get(timeout=15) for one in results] == [[n, 2, 1] for n in range(5)]


def test_a_call_that_kills_its_process_takes_the_others_with_it_once(shop: Shop) -> None:
    shop.start("-c", "1")
    words = ["a", "bad", "b"]
    results = [shop.tasks.poison.delay(word) for word in words]

    assert [results[0].get(timeout=15), results[2].get(timeout=15)] == ["a", "b"]
    wait_until(results[1].failed, within=15)
    assert sorted(runs(shop)) == [["a"], ["a", "bad", "b"], ["b"], ["bad"], ["bad"]]


def test_what_merely_waited_in_a_worker_that_died_runs_with_others(shop: Shop) -> None:
    first = shop.start("-c", "1", name="first")
    results = [shop.tasks.many.delay(number) for number in range(50)]
    wait_until_held(shop, results)

    first.kill()
    shop.start("-c", "1", name="second")

    for number, one in enumerate(results):
        assert one.get(timeout=15) == [number, 2]
    assert len(runs(shop)) <= 10  # and not 50


def test_a_call_of_a_run_is_not_interrupted_alone(shop: Shop) -> None:
    worker = shop.start("-c", "1")
    results = [shop.tasks.held.delay(number) for number in range(5)]
    wait_until(lambda: runs(shop), within=15)

    results[2].revoke(terminate=True, signal="SIGUSR1")
    shop.wait(lambda: "that of its whole run (other calls: 4)" in shop.log(), worker)
    (shop.folder / "go-held").touch()

    assert [one.get(timeout=15) for one in results] == [[n, 1, 5] for n in range(5)]


def test_a_time_limit_of_one_call_is_no_other_call_s(shop: Shop) -> None:
    shop.start("-c", "1")
    limited = shop.tasks.patient.apply_async((0,), time_limit=30)
    others = [shop.tasks.patient.delay(number) for number in range(1, 6)]

    assert [one.get(timeout=15) for one in others] == [[n, 1, 5] for n in range(1, 6)]
    assert shop.record(limited).state == "running"  # it waits for others with that limit


@pytest.mark.parametrize("terminate", [False, True])
def test_what_is_revoked_while_it_waits_never_starts(shop: Shop, terminate: bool) -> None:
    shop.start("-c", "1")
    results = [shop.tasks.patient.delay(number) for number in range(4)]
    wait_until_held(shop, results)

    results[1].revoke(terminate=terminate)

    with pytest.raises(TaskRevokedError):
        results[1].get(timeout=15)
    more = [shop.tasks.patient.delay(number) for number in (4, 5)]
    assert [one.get(timeout=15)[0] for one in (results[0], *results[2:], *more)] == [
        0,
        2,
        3,
        4,
        5,
    ]
    assert runs(shop) == [["0", "2", "3", "4", "5"]]


def test_to_terminate_one_call_of_a_run_starts_the_others_again(shop: Shop) -> None:
    shop.start("-c", "1")
    results = [shop.tasks.held.delay(number) for number in range(5)]
    wait_until(lambda: runs(shop), within=15)

    results[2].revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        results[2].get(timeout=15)
    (shop.folder / "go-held").touch()

    others = [results[number].get(timeout=15) for number in (0, 1, 3, 4)]
    assert [value[0] for value in others] == [0, 1, 3, 4]
    assert "2" not in [word for calls in runs(shop)[1:] for word in calls]


def test_the_hard_time_limit_is_that_of_the_run(shop: Shop) -> None:
    shop.start("-c", "1", "--time-limit", "0.3")
    results = [shop.tasks.held.delay(number) for number in range(5)]

    for one in results:
        assert wait_until(one.failed, within=15)
    assert len(runs(shop)) == 1


def test_inspect_tells_the_calls_that_run_from_those_that_wait(shop: Shop) -> None:
    shop.start("-c", "1")
    running = [shop.tasks.held.delay(number) for number in range(5)]
    wait_until(lambda: runs(shop), within=15)

    [active] = shop.app.control.inspect(timeout=5).active().values()

    assert {one["id"] for one in active} == {one.id for one in running}
    (shop.folder / "go-held").touch()


def test_a_chord_of_batched_calls_ends(shop: Shop) -> None:
    shop.start("-c", "2")
    header = [shop.tasks.double.s(number) for number in range(7)]

    assert chord(header, shop.tasks.total.s()).delay().get(timeout=15) == 42
