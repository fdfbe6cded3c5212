"""Running a call in place, by the same executor that workers use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from liteq import failure, serializers, states
from liteq.canvas import as_list, maybe_signature
from liteq.exceptions import TaskRevokedError
from liteq.executor import Delivery, Ended, Executor, ExecutorSettings, TaskLike
from liteq.message import PACKED_FIELDS, Message
from liteq.outcome import Failed, Ignored, Retried, Revoked, Succeeded
from liteq.result import EagerResult

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = ["run"]


def run(
    app: Liteq,
    message: Message,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    throw: bool,
) -> EagerResult[Any]:
    """Run a call to its end, retries at once and without their delay, then its links.

    Times to wait for (`countdown`, `eta`) are passed over, as in Celery.
    """
    conf = app.conf
    executor = Executor(
        cast("Mapping[str, TaskLike]", app.tasks),
        ExecutorSettings(
            accept=tuple(conf.accept_content),
            result_serializer=conf.result_serializer,
            hostname="eager",
            clock=app.clock,
        ),
    )
    ended, message = _to_the_end(executor, message, args, kwargs)
    result = _result(message, ended)
    if conf.task_store_eager_result:
        _store(app, message, ended)
    if isinstance(ended.outcome, Succeeded):
        for link in as_list(options.get("link")):
            maybe_signature(link, app=app).apply((ended.value,))
    elif isinstance(ended.outcome, Failed):
        for link in as_list(options.get("link_error")):
            maybe_signature(link, app=app).apply((message.id,))
    if throw:
        result.maybe_throw()
    return result


def _to_the_end(
    executor: Executor, message: Message, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Ended, Message]:
    arguments: tuple[Sequence[Any], Mapping[str, Any]] | None = (args, kwargs)
    number = 1
    while True:
        delivery = Delivery(message, number, arguments=arguments, eager=True)
        ended = executor.attempt(delivery)
        outcome = ended.outcome
        if not isinstance(outcome, Retried):
            return ended, message
        changes = dict(outcome.changes or {})
        if "body" in changes:
            arguments = None
        retries = changes.pop("retries", message.retries + 1)
        packed: dict[str, Any] = dict(zip(PACKED_FIELDS, message.pack(), strict=True))
        packed.update({**changes, "retries": retries})
        message = Message.unpack(tuple(packed.values()))
        number += 1


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
            value, state, traceback = ended.exc, states.IGNORED, None
        case outcome:
            raise AssertionError(f"an eager call cannot end as {outcome!r}")
    return EagerResult(message.id, value, state, traceback, name=message.task)


def _store(app: Liteq, message: Message, ended: Ended) -> None:
    value: bytes | None
    match ended.outcome:
        case Succeeded():
            state = states.SUCCESS
            kind = app.conf.result_serializer
            value = serializers.dumps(ended.value, kind, root="result")
        case Failed(error=error):
            state, value = states.FAILURE, error
        case _:
            return
    app.broker.store(
        message.id, state, value, task=message.task, expires=message.result_expires
    )
