"""Running calls in place, by the same executor that workers use.

A lone call is run here and now. Several that follow one another go through a store in
memory that lasts as long as the call, and are claimed, run and settled as a worker does
it; its clock jumps to the next time at which something is due, so nobody waits for an
ETA, a countdown or the delay of a retry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from liteq import brokers, failure, serializers, states
from liteq.clock import Clock
from liteq.context import Report
from liteq.delivery import Delivery, FailedCalls
from liteq.exceptions import TaskRevokedError
from liteq.executor import Ended, Executor, ExecutorSettings, TaskLike
from liteq.inline import InlineWorker
from liteq.message import (
    BODY,
    GATHER,
    ID,
    RESULT_EXPIRES,
    TASK,
    Edge,
    Message,
    Packed,
    Workflow,
)
from liteq.outcome import Failed, Ignored, Replaced, Retried, Revoked, Succeeded
from liteq.result import AsyncResult, EagerResult, GroupResult

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.brokers.values import Lease, Record

__all__ = ["run"]

Arguments: TypeAlias = tuple[Sequence[Any], Mapping[str, Any]]


def run(
    app: Liteq,
    messages: Sequence[Message],
    edges: Sequence[Edge] = (),
    workflow: Workflow | None = None,
    *,
    result: Any = None,
    arguments: Arguments | None = None,
    throw: bool,
) -> Any:
    """Run calls and all that follows from them to the end; return their results.

    `result`: what would be returned if they were sent, an `AsyncResult` or a
    `GroupResult` with what goes before it (default: the result of the first); returned
    is the same of `EagerResult`s. `arguments` are used in place of the body of the
    first. With `throw` what `get()` of the result raises is raised here.
    """
    if app.signer is not None:  # not signed here, but results say what they are parts of
        messages = app.signer.bind(messages, edges)
    made = _lone(app, messages[0], arguments) if len(messages) == 1 else None
    if isinstance(made, EagerResult):
        returned: Any = made if result is None else _like(result, {made.id: made})
    else:
        if made is not None:
            messages, edges = made
            arguments = None
        inline = _Inline(app, {messages[0].id: arguments} if arguments else {})
        try:
            inline.run(messages, edges, workflow)
            returned = inline.results(result or AsyncResult(messages[0].id, app=app))
        finally:
            inline.broker.close()
    if throw:
        _throw(returned)
    return returned


def _throw(result: Any) -> None:
    """Raise what a task failed with: of a chord whose header failed, what a member did."""
    if isinstance(result, GroupResult):
        for member in result.results:
            _throw(member)
    else:
        result.get(disable_sync_subtasks=False)


_Graph: TypeAlias = tuple[list[Message], list[Edge]]


def _lone(
    app: Liteq, message: Message, arguments: Arguments | None
) -> EagerResult[Any] | _Graph:
    """Run one call that nothing follows, its retries at once. Return its result, or, if it
    has put others in its place, those."""
    executor = _executor(app, app.clock)
    while True:
        given = {message.id: arguments} if arguments else None
        delivery = Delivery(message, arguments=given, eager=True)
        ended = executor.attempt(delivery)
        match ended.outcome:
            case Retried(changes=changes):
                changed = {"retries": message.retries + 1, **(changes or {})}
                if "body" in changed:
                    arguments = None
                message = message.with_packed(changed)
            case Replaced(changes=changes, graph=graph):
                last = message.with_packed({**changes, "retries": 0})
                others = [Message.unpack(packed) for packed in graph.messages]
                return [last, *others], [Edge(*edge) for edge in graph.edges]
            case _:
                break
    if _is_stored(app, message.task):
        _store(app, message, ended)
    return _result(message, ended)


def _executor(app: Liteq, clock: Clock) -> Executor:
    conf = app.conf
    return Executor(
        cast("Mapping[str, TaskLike]", app.tasks),
        ExecutorSettings(
            accept=tuple(conf.accept_content),
            result_serializer=conf.result_serializer,
            hostname="eager",
            clock=clock,
            signer=app.signer,
            cipher=app.cipher,
            redactor=app.redactor,
        ),
    )


def _result(message: Message, ended: Ended) -> EagerResult[Any]:
    match ended.outcome:
        case Succeeded():
            value, state, traceback = ended.value, states.SUCCESS, None
        case Failed(error=error):
            value, state = ended.exc, states.FAILURE
            traceback = failure.read(error)["traceback"]
        case Revoked(reason=reason):
            value, state, traceback = TaskRevokedError(reason), states.REVOKED, None
        case Ignored():
            value, state, traceback = None, states.IGNORED, None
        case outcome:
            raise AssertionError(f"an eager call cannot end as {outcome!r}")
    return EagerResult(message.id, value, state, traceback, name=message.task)


def _is_stored(app: Liteq, name: str) -> bool:
    """Tell whether results of a task that is run in place are kept in the store. A gather,
    which is none, is as the app is set."""
    task = app.tasks.get(name)
    return bool(app.conf.task_store_eager_result if task is None else task.store_eager_result)


def _store(app: Liteq, message: Message, ended: Ended) -> None:
    value: bytes | None
    match ended.outcome:
        case Succeeded():
            state = states.SUCCESS
            kind = app.conf.result_serializer
            value = serializers.dumps_result(ended.value, kind, app.cipher)
            if app.signer is not None:
                value = app.signer.seal(value, message.id, message.gathers)
        case Failed(error=error):
            state, value = states.FAILURE, error
        case _:
            return
    app.broker.store(
        message.id, state, value, task=message.task, expires=message.result_expires
    )


class _Leaping(Clock):
    """A clock that can be set forward, so that what is due later is due now."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead = 0.0

    def now(self) -> float:
        return self._clock.now() + self._ahead

    def steady(self) -> float:
        return self._clock.steady() + self._ahead

    def leap_to(self, moment: float) -> None:
        self._ahead += max(moment - self.now(), 0.0)


class _Inline:
    """One graph of calls, run in place: a store in memory and the worker in it."""

    def __init__(self, app: Liteq, arguments: Mapping[str, Arguments]) -> None:
        self.app = app
        self._arguments = dict(arguments)
        self._clock = _Leaping(app.clock)
        self.broker = brokers.connect("memory://", {}, self._clock)
        self._executor = _executor(app, self._clock)
        self._edges: list[Edge] = []
        self._ids: dict[str, None] = {}
        self._ended: dict[str, Ended] = {}

    def run(
        self,
        messages: Sequence[Message],
        edges: Sequence[Edge],
        workflow: Workflow | None,
    ) -> None:
        """Run all of them, and what they put in their place or add, until nothing is left.

        What is raised for the caller of an eager call (by hooks, `KeyboardInterrupt`)
        goes through.
        """
        self._enter((message.pack() for message in messages), edges)
        self.broker.enqueue(messages, edges, workflow)
        with InlineWorker(self.broker, self._attempt, name="eager") as worker:
            for _ in worker.run_until(None, self._clock.leap_to):
                pass

    def _attempt(self, lease: Lease, failed: FailedCalls, _report: Report) -> Ended:
        delivery = Delivery(
            lease.packed,
            lease.delivery,
            lease.inputs,
            failed,
            arguments=self._arguments,
            eager=True,
        )
        ended = self._ended[lease.id] = self._executor.attempt(delivery)
        match ended.outcome:
            case Replaced(graph=graph) | Succeeded(added=graph) if graph is not None:
                self._enter(graph.messages, [Edge(*edge) for edge in graph.edges])
            case Retried(changes=changes) if "body" in (changes or {}):
                self._arguments.pop(lease.id, None)
        if isinstance(ended.outcome, Replaced):
            self._arguments.pop(lease.id, None)
        return ended

    def _enter(self, messages: Any, edges: Sequence[Edge]) -> None:
        packed: Packed
        for packed in messages:
            self._ids[packed[ID]] = None
        self._edges += edges

    # What came of it

    def results(self, made: Any) -> Any:
        """Return the results of calls that were to be sent as those of calls that ran."""
        records = self.broker.get(tuple(self._ids))
        eager = {id: self._eager(record) for id, record in records.items()}
        self._join(records, eager)
        returned = _like(made, eager)
        self._store(records, made)
        return returned

    def _eager(self, record: Record) -> EagerResult[Any]:
        ended = self._ended.get(record.id)
        if ended is not None and _is_of(ended, record):
            made = _result(record.message, ended)
            made._ran = True
            return made
        stored: AsyncResult[Any] = AsyncResult(record.id, app=self.app)
        stored._record = record
        return EagerResult(
            record.id, stored.result, stored.state, stored.traceback, name=record.packed[TASK]
        )

    def _join(
        self, records: Mapping[str, Record], eager: Mapping[str, EagerResult[Any]]
    ) -> None:
        """Give each result its children: what the task called, and what followed it."""
        children: dict[str, list[Any]] = {}
        for id, record in records.items():
            for child in json.loads(record.children or "[]"):
                made: Any = eager.get(child) or AsyncResult(child, app=self.app)
                children.setdefault(id, []).append(made)
        for edge in self._edges:
            if edge.on == "success" and edge.target in eager:
                children.setdefault(edge.source, []).append(eager[edge.target])
        for id, found in children.items():
            if id in eager:
                eager[id]._made = found

    def _store(self, records: Mapping[str, Record], made: Any) -> None:
        for record in records.values():
            if not _is_stored(self.app, record.packed[TASK]):
                continue
            ended = self._ended.get(record.id)
            if ended is not None and _is_of(ended, record):
                _store(self.app, record.message, ended)
            elif record.final and record.packed[BODY] != b"count":
                state = AsyncResult(record.id, app=self.app)._state_of(record)
                self.app.broker.store(
                    record.id,
                    state,
                    record.result,
                    task=record.packed[TASK],
                    expires=record.packed[RESULT_EXPIRES],
                )
        for node in made._line() if self.app.conf.task_store_eager_result else ():
            if isinstance(node, GroupResult):
                node.save()


def _is_of(ended: Ended, record: Record) -> bool:
    """Tell whether this attempt is how the message ended: it may have been another's
    place since, or have been replaced by a gather."""
    match ended.outcome:
        case Succeeded():
            return record.state == "succeeded" and record.packed[TASK] != GATHER
        case Failed():
            return record.state == "failed" and record.packed[TASK] != GATHER
        case Ignored():
            return record.state == "ignored"
        case _:
            return False


def _like(made: Any, eager: Mapping[str, EagerResult[Any]]) -> Any:
    """Return the same results in the same form, of calls that ran."""
    before: Any = None
    for node in reversed(made._line()):
        if isinstance(node, GroupResult):
            members = [_like(member, eager) for member in node.results]
            one: Any = GroupResult(node.id, members, app=node._app)
        else:
            one = eager.get(node.id, node)
        if before is not None:
            one.parent = before
        before = one
    return before
