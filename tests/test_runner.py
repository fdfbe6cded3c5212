"""The door of bytes between a pool's child and the executor."""

from __future__ import annotations

import asyncio
import marshal
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from liteq import failure, signals
from liteq.app import Liteq
from liteq.brokers.base import Input, Lease, Note, Rewrite
from liteq.context import current
from liteq.exceptions import SoftTimeLimitExceeded
from liteq.executor import Executor, TaskLike
from liteq.message import Message
from liteq.outcome import Failed, Retried, Succeeded
from liteq.pools.base import Runner
from liteq.serializers import dumps_call
from liteq.workers.runner import RunnerFactory, TaskRunner, job, read_answer, read_report

app = Liteq("doors", broker="memory://", set_as_current=False)


@app.task(name="add")
def add(a: int, b: int = 0) -> int:
    return a + b


@app.task(name="add_async")
async def add_async(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


@app.task(name="spin")
def spin() -> str:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        pass
    return "never"


@app.task(name="retry", bind=True)
def retry(self: Any) -> None:
    raise self.retry(countdown=5, queue="slow")


@app.task(name="tell")
def tell() -> None:
    here = current()
    assert here is not None
    assert here.report is not None
    here.report(Note("PROGRESS", b'{"done":1}'))
    here.report(Rewrite('{"checkpoint":"1"}'))


def tasks_of(which: str) -> Mapping[str, TaskLike]:
    assert which == "doors"
    return app.tasks


def payload(task: str, *args: Any, inputs: tuple[Input, ...] = ()) -> bytes:
    message = Message(id="m1", task=task, body=dumps_call(args, {}))
    return job(Lease(key=1, token=2, delivery=1, packed=message.pack(), inputs=inputs))


@pytest.fixture
def runner() -> Iterator[TaskRunner]:
    made = TaskRunner(Executor(app.tasks))
    made.start(bool)
    yield made
    made.stop()


def silent(data: bytes) -> None:
    raise AssertionError(data)


def test_a_runner_is_what_pools_expect(runner: TaskRunner) -> None:
    expected: Runner = runner
    assert expected.run(payload("add", 1, 2), silent, 1)


def test_a_job_becomes_an_answer(runner: TaskRunner) -> None:
    answer = read_answer(runner.run(payload("add", 1, 2), silent, 1))
    assert isinstance(answer, Succeeded)
    assert answer.result == b"3"


def test_inputs_travel_with_the_job(runner: TaskRunner) -> None:
    inputs = (Input(source="s1", kind="result", position=0, value=b"40"),)
    answer = read_answer(runner.run(payload("add", 2, inputs=inputs), silent, 1))
    assert isinstance(answer, Succeeded)
    assert answer.result == b"42"


def test_a_retry_travels_with_its_changes(runner: TaskRunner) -> None:
    answer = read_answer(runner.run(payload("retry"), silent, 1))
    assert isinstance(answer, Retried)
    assert dict(answer.changes or {})["queue"] == "slow"


def test_an_unknown_task_is_an_answer_too(runner: TaskRunner) -> None:
    answer = read_answer(runner.run(payload("gone"), silent, 1))
    assert isinstance(answer, Failed)
    assert answer.dead


def test_what_a_task_says_on_the_way_is_reported(runner: TaskRunner) -> None:
    said: list[bytes] = []
    runner.run(payload("tell"), said.append, 1)
    assert [read_report(data) for data in said] == [
        Note("PROGRESS", b'{"done":1}'),
        Rewrite('{"checkpoint":"1"}'),
    ]


def test_a_runner_knows_async_tasks(runner: TaskRunner) -> None:
    assert runner.is_async(payload("add_async", 1, 2))
    assert not runner.is_async(payload("add", 1, 2))
    assert not runner.is_async(payload("gone"))


def test_an_async_task_runs_on_a_loop_or_without_one(runner: TaskRunner) -> None:
    job = payload("add_async", 1, 2)
    for answer in (runner.run(job, silent, 1), asyncio.run(runner.arun(job, silent, 1))):
        outcome = read_answer(answer)
        assert isinstance(outcome, Succeeded)
        assert outcome.result == b"3"


def test_the_soft_limit_reaches_the_task_from_a_signal_handler(runner: TaskRunner) -> None:
    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, lambda *_: runner.interrupt(1))
    sender = threading.Timer(0.02, signal.pthread_kill, (main, signal.SIGUSR1))
    sender.start()
    try:
        answer = read_answer(runner.run(payload("spin"), silent, 1))
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    assert isinstance(answer, Failed)
    assert failure.read(answer.error)["type"] == SoftTimeLimitExceeded.__name__


def test_an_interruption_between_two_jobs_hurts_neither(runner: TaskRunner) -> None:
    runner.run(payload("add", 1, 2), silent, 1)
    runner.interrupt(1)
    assert isinstance(read_answer(runner.run(payload("add", 1, 2), silent, 2)), Succeeded)


@pytest.mark.parametrize("name", ["add", "add_async"])
def test_a_soft_limit_that_passes_before_the_body_is_raised_at_its_beginning(
    runner: TaskRunner, name: str
) -> None:
    def slow(**_: Any) -> None:
        runner.interrupt(1)

    signals.task_prerun.connect(slow)
    try:
        ended = [read_answer(runner.run(payload(name, 1, 2), silent, key)) for key in (1, 2)]
    finally:
        signals.task_prerun.disconnect(slow)
    assert isinstance(ended[0], Failed)
    assert failure.read(ended[0].error)["type"] == SoftTimeLimitExceeded.__name__


@pytest.mark.parametrize("own_process", [True, False])
def test_a_child_process_tells_its_beginning_and_its_end(own_process: bool) -> None:
    heard: list[Any] = []

    def begun(**_: Any) -> None:
        heard.append("begun")

    def ended(pid: int, exitcode: int, **_: Any) -> None:
        heard.append((pid, exitcode))

    signals.worker_process_init.connect(begun)
    signals.worker_process_shutdown.connect(ended)
    runner = TaskRunner(Executor(app.tasks), own_process=own_process)
    runner.start(bool)
    runner.stop()
    signals.worker_process_init.disconnect(begun)
    signals.worker_process_shutdown.disconnect(ended)
    assert heard == (["begun", (os.getpid(), 0)] if own_process else [])


def test_runners_of_one_process_share_what_they_know() -> None:
    factory = RunnerFactory(tasks_of, ("doors",))
    assert factory()._executor is factory()._executor
    assert factory()._body is not factory()._body


def test_a_factory_can_be_sent_to_another_process() -> None:
    factory = RunnerFactory(tasks_of, ("doors",))
    factory()
    there = pickle.loads(pickle.dumps(factory))
    assert isinstance(read_answer(there().run(payload("add", 1), silent, 1)), Succeeded)


def test_an_answer_is_plain_bytes(runner: TaskRunner) -> None:
    wire = marshal.loads(runner.run(payload("add", 1, 2), silent, 1))
    assert wire[0] == "Succeeded"
