"""app.workflow(id): what a workflow is doing, waiting for it, cancelling, retrying."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import world
from api import forget_current

from liteq import AsyncResult, Liteq, canvas, failure
from liteq.exceptions import InvalidTaskError, TaskRevokedError, TimeoutError, UnknownWorkflow
from liteq.ids import new_id
from liteq.message import GATHER, Edge, Message, Workflow
from liteq.outcome import Failed, Outcome, Succeeded
from liteq.result import GroupResult
from liteq.workflows import WorkflowProgress


@pytest.fixture
def app(store: world.Store) -> Iterator[Liteq]:
    app = Liteq("shop", broker="memory://", clock=store.clock)
    app.broker = store.open()
    yield app
    app.close()
    forget_current()


def ok(value: Any = None) -> Succeeded:
    return Succeeded(json.dumps(value).encode(), 0.5)


def bad() -> Failed:
    return Failed(failure.describe(ValueError("no")))


class Chord:
    """fetch → two resizes → publish, and an error callback of it, as the store has them."""

    def __init__(self, app: Liteq) -> None:
        self.app = app
        self.fetch, self.one, self.two, self.publish, self.alarm = (
            world.make(task, node=node)
            for task, node in [
                ("fetch", None),
                ("resize", "small"),
                ("resize", "large"),
                ("publish", None),
                ("alarm", None),
            ]
        )
        gather = Message(new_id(), GATHER, b"fail")
        self.gather = gather.id
        edges = [
            Edge(self.fetch.id, self.one.id, "success"),
            Edge(self.fetch.id, self.two.id, "success"),
            Edge(self.one.id, gather.id, "part", 0),
            Edge(self.two.id, gather.id, "part", 1),
            Edge(gather.id, self.publish.id, "success"),
            Edge(self.publish.id, self.alarm.id, "failure"),
        ]
        messages = [self.fetch, self.one, self.two, gather, self.publish, self.alarm]
        app.broker.enqueue(messages, edges, Workflow(self.publish.id, "chord"))
        self.id = self.publish.id
        self.workflow = app.workflow(self.id)

    def settle(self, *outcomes: Outcome) -> list[str]:
        """Claim and settle as many; return the names of their tasks."""
        ran = []
        worker = world.enlist(self.app.broker)
        for outcome in outcomes:
            (lease,) = self.app.broker.claim(worker, ("default",))
            assert self.app.broker.settle(worker, lease, outcome)
            ran.append(lease.task)
        return ran


def test_a_workflow_tells_what_it_is_and_how_far(app: Liteq) -> None:
    chord = Chord(app)
    workflow = chord.workflow
    assert (workflow.id, workflow.name, workflow.state) == (chord.id, "chord", "running")
    assert workflow.progress == WorkflowProgress(0, 5, 0)
    assert workflow.exists()

    chord.settle(ok(), ok(1))

    assert workflow.progress == WorkflowProgress(2, 5)
    assert workflow.progress.fraction == 0.4
    assert [(node.name, node.state) for node in workflow.nodes] == [
        ("fetch", "succeeded"),
        ("small", "succeeded"),
        ("large", "queued"),
        ("publish", "waiting"),
        ("alarm", "waiting"),
    ]
    assert Edge(chord.gather, chord.id, "success") in workflow.edges
    chord.settle(ok(2), ok("done"))
    assert (workflow.state, workflow.get()) == ("succeeded", "done")


def test_a_workflow_is_found_by_the_id_of_any_of_its_calls(app: Liteq) -> None:
    chord = Chord(app)

    assert app.workflow(chord.fetch.id).id == chord.id
    assert app.workflow(AsyncResult(chord.gather)).id == chord.id  # type: ignore[arg-type]
    assert [known.id for known in app.workflows()] == [chord.id]
    assert app.workflows() == [chord.workflow]
    assert app.workflow(chord.id) in {chord.workflow}


def test_an_unknown_workflow_is_an_error_that_says_so(app: Liteq) -> None:
    lone = world.make("alone")
    app.broker.enqueue([lone])

    assert not app.workflow("nobody").exists()
    with pytest.raises(UnknownWorkflow, match="no workflow nobody is in the store"):
        _ = app.workflow("nobody").state
    with pytest.raises(UnknownWorkflow):
        app.workflow(lone.id).cancel()
    with pytest.raises(ValueError, match="has an id"):
        app.workflow("")


def test_the_result_of_a_workflow_that_is_a_group_is_a_group(app: Liteq) -> None:
    parts = [world.make("part") for _ in range(3)]
    gather = Message(new_id(), GATHER, b"count")
    edges = [Edge(part.id, gather.id, "part", at) for at, part in enumerate(parts)]
    app.broker.enqueue([*parts, gather], edges, Workflow(gather.id, "group of 3"))
    chord = Chord(app)
    chord.settle(ok(1), ok(2), ok(3))

    workflow = app.workflow(gather.id)

    assert isinstance(workflow.result, GroupResult)
    assert workflow.get() == [1, 2, 3]
    assert asyncio.run(workflow.aget()) == [1, 2, 3]
    assert isinstance(chord.workflow.result, AsyncResult)


def test_waiting_for_a_workflow_waits_for_its_callbacks_too(app: Liteq) -> None:
    chord = Chord(app)
    chord.settle(ok(), bad())
    assert chord.workflow.progress == WorkflowProgress(3, 5, 2)
    with pytest.raises(TimeoutError):
        chord.workflow.wait(timeout=0.1)
    timer = threading.Timer(0.05, chord.settle, [ok(), ok()])
    timer.start()

    state = chord.workflow.wait(timeout=20)
    timer.join()

    assert state == "failed"
    assert chord.workflow.progress == WorkflowProgress(5, 5, 2)


def test_a_workflow_can_be_awaited(app: Liteq) -> None:
    chord = Chord(app)

    async def main() -> Any:
        timer = threading.Timer(0.05, chord.settle, [ok(), ok(), ok(), ok("done")])
        timer.start()
        value = await chord.workflow
        timer.join()
        return value, await chord.workflow.await_end(timeout=20)

    assert asyncio.run(main()) == ("done", "succeeded")


def test_cancelling_revokes_all_that_has_not_ended_and_starts_nothing(app: Liteq) -> None:
    chord = Chord(app)
    chord.settle(ok())
    worker = world.enlist(app.broker)
    (running,) = app.broker.claim(worker, ("default",))

    answers = chord.workflow.cancel()

    assert answers[running.id] == "running"
    assert set(answers.values()) == {"running", "revoked"}
    assert app.broker.claim(worker, ("default",)) == ()
    app.broker.settle(worker, running, ok())
    assert app.broker.claim(worker, ("default",)) == ()  # no error callback either
    assert chord.workflow.state == "revoked"
    with pytest.raises(TaskRevokedError):
        chord.workflow.get()


def test_cancelling_can_end_what_runs(app: Liteq) -> None:
    chord = Chord(app)
    worker = world.enlist(app.broker)
    (running,) = app.broker.claim(worker, ("default",))

    answers = asyncio.run(chord.workflow.acancel(terminate=True))

    assert answers[running.id] == "signalled"
    assert app.broker.step(worker).terminate == {running.key: "SIGTERM"}


def test_what_failed_is_run_again_and_the_rest_goes_on(app: Liteq) -> None:
    chord = Chord(app)
    chord.settle(ok(), ok(1), bad())
    assert chord.workflow.state == "running"  # the alarm is to be rung
    chord.settle(ok())
    assert chord.workflow.state == "failed"

    assert chord.workflow.retry_failed() == [chord.two.id]
    assert chord.workflow.state == "running"
    assert chord.settle(ok(2), ok("done")) == ["resize", "publish"]

    assert (chord.workflow.get(), chord.workflow.retry_failed()) == ("done", [])
    assert asyncio.run(chord.workflow.aretry_failed()) == []


def test_a_signature_that_was_frozen_and_sent_cannot_be_a_member_of_a_chord(app: Liteq) -> None:
    add: Any = app.task(name="add")(lambda x, y: x + y)
    total: Any = app.task(name="total")(sum)
    frozen = add.s(1, 1)
    frozen.freeze()
    sent = frozen.apply_async()
    app.run_until_empty()

    with pytest.raises(
        InvalidTaskError, match=f"'{sent.id}', which was sent before .* a new signature"
    ):
        canvas.chord([frozen, add.s(2, 2)], total.s()).apply_async()

    assert app.workflows() == []
