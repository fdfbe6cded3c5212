"""What Django knows of a call: its `TaskResult`, made of an attempt or of the store."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings

from liteq import failure
from liteq.contrib.django.framework import (
    TaskError,
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultStatus,
    normalize_json,
    signals,
    task_backends,
)
from liteq.ids import made_at
from liteq.serializers import loads_call
from liteq.states import SUCCESS
from liteq.wording import instant

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.brokers.values import Attempt, Record
    from liteq.context import Context
    from liteq.results.eagerresult import EagerResult

__all__ = [
    "FINISHED",
    "HEADER",
    "begun",
    "end_in_place",
    "fail",
    "header_of",
    "moment",
    "restored",
    "succeed",
    "tell",
]

HEADER: Final = "django"  # of a message: what Django's task was, apart from its name
FINISHED: Final = "task_finished"

_STATUS: Final = {
    "running": TaskResultStatus.RUNNING,
    "succeeded": TaskResultStatus.SUCCESSFUL,
    "failed": TaskResultStatus.FAILED,
    "revoked": TaskResultStatus.FAILED,  # "or was unable to start", as Django has it
    "ignored": TaskResultStatus.FAILED,
}


def header_of(task: Any) -> dict[str, Any]:
    """Return what a message is to say of a task, for `restored()` to make it again."""
    after = task.run_after
    return {
        "backend": task.backend,
        "priority": task.priority,
        "queue_name": task.queue_name,
        "run_after": None if after is None else after.isoformat(),
    }


def begun(task: Any, request: Context, app: Liteq) -> Any:
    """Return the result of an attempt that begins. The store is asked only about those that
    were before it."""
    number = request.retries + request.deliveries
    stored = number > 1 and not request.is_eager  # what is run in place is in no store
    past = app.broker.attempts(request.id or "") if stored else []
    now = moment(app.clock.now())
    started = moment(past[0].started_at) if past else None
    sent = made_at(request.id or "")
    workers = [one.worker or "" for one in past][: number - 1]
    return _made(
        _again(task, request.headers),
        id=request.id,
        status=TaskResultStatus.RUNNING,
        enqueued_at=moment(sent) or now,
        started_at=started or now,
        last_attempted_at=now,
        finished_at=None,
        args=request.args,
        kwargs=request.kwargs,
        errors=_errors(past),
        worker_ids=[*workers, *[""] * (number - 1 - len(workers)), request.hostname or ""],
    )


def restored(task: Any, id: str, app: Liteq) -> Any:
    """Return the result of the call with this id as the store has it.

    Raises `TaskResultDoesNotExist`.
    """
    record = app.broker.get((id,)).get(id)
    if record is None:
        raise TaskResultDoesNotExist(id)
    return of_record(task, record, app)


def of_record(task: Any, record: Record, app: Liteq) -> Any:
    message = record.message
    args, kwargs = loads_call(
        message.body, message.content_type, app.conf.accept_content, app.cipher
    )
    past = app.broker.attempts(record.id)
    workers = [one.worker or "" for one in past]
    if record.state in ("running", "succeeded", "ignored"):
        workers.append(record.worker or "")
    all_begins = (*(one.started_at for one in past), record.started_at)
    begins = [begin for begin in all_begins if begin is not None]
    status = _STATUS.get(record.state, TaskResultStatus.READY)
    errors = _errors(past)
    if status == TaskResultStatus.FAILED and not errors:
        errors.append(_why(record))
    made = _made(
        _again(task, message.headers),
        id=record.id,
        status=status,
        enqueued_at=moment(record.enqueued_at),
        started_at=moment(min(begins, default=None)),
        last_attempted_at=moment(max(begins, default=None)),
        finished_at=moment(record.settled_at) if record.final else None,
        args=args,
        kwargs=kwargs,
        errors=errors,
        worker_ids=workers,
    )
    if status == TaskResultStatus.SUCCESSFUL:
        _set(made, _return_value=app.AsyncResult(record.id).result)
    return made


def succeed(result: Any, value: Any, app: Liteq) -> None:
    """Say of a result that its task has returned a value."""
    _set(
        result,
        status=TaskResultStatus.SUCCESSFUL,
        finished_at=moment(app.clock.now()),
        _return_value=value,
    )


def fail(result: Any, exc: BaseException, einfo: Any, app: Liteq) -> None:
    """Say of a result that its task has failed for good."""
    text = getattr(einfo, "traceback", None) or "".join(traceback.format_exception(exc))
    result.errors.append(_error(type(exc).__module__, type(exc).__qualname__, str(text)))
    _set(result, status=TaskResultStatus.FAILED, finished_at=moment(app.clock.now()))


def end_in_place(result: Any, run: EagerResult[Any], app: Liteq) -> None:
    """Say of a result how the call ended that was run where it was made."""
    now = moment(app.clock.now())
    _set(result, started_at=now, last_attempted_at=now)
    result.worker_ids.append("eager")
    if run.state == SUCCESS:
        succeed(result, run.result, app)
    else:
        exc = run.result if isinstance(run.result, BaseException) else RuntimeError(run.state)
        fail(result, exc, run, app)


def tell(name: str, result: Any) -> None:
    """Send one of Django's signals. What a receiver raises is logged, by Django."""
    sender = type(task_backends[result.backend])
    getattr(signals, name).send_robust(sender, task_result=result)


def moment(when: float | None) -> Any:
    """Return Unix seconds as Django has a time: aware, or naive without `USE_TZ`. None for
    none, and for what is damaged in the store."""
    aware = instant(when)
    if aware is None or settings.USE_TZ:
        return aware
    try:
        return aware.astimezone().replace(tzinfo=None)
    except (OverflowError, ValueError):
        return None


def _made(task: Any, **of: Any) -> Any:
    return TaskResult(task=task, backend=task.backend, **of)


def _again(task: Any, headers: Mapping[str, Any] | None) -> Any:
    """Return the task as it was called: of another queue, say, by `using()`.

    It is not validated: what may be called by now is another matter.
    """
    given = (headers or {}).get(HEADER)
    said: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    changes: dict[str, Any] = {
        name: value
        for name, kind in (("priority", int), ("queue_name", str))
        if type(value := said.get(name)) is kind
    }
    if (alias := said.get("backend")) in list(task_backends.settings):
        changes["backend"] = alias
    if type(after := said.get("run_after")) is str:
        changes["run_after"] = _read(after)
    again = object.__new__(type(task))
    for field in fields(task):
        value = changes.get(field.name, getattr(task, field.name))
        object.__setattr__(again, field.name, value)
    return again


def _read(iso: str) -> datetime | None:
    try:
        return datetime.fromisoformat(iso)
    except ValueError:  # of another program's message
        return None


def _errors(past: list[Attempt]) -> list[Any]:
    made = []
    for one in past:
        if one.error is not None:
            said = failure.read(one.error)
            made.append(_error(said["module"], said["type"], said["traceback"]))
    return made


def _why(record: Record) -> Any:
    """Return the error of a task whose attempts have none: it was revoked, has ended by
    `Ignore`, or has failed with what it waited for."""
    if record.state == "failed" and record.result is not None:
        said = failure.read(record.result)
        return _error(said["module"], said["type"], said["traceback"] or said["message"])
    if record.state == "ignored":
        return _error("liteq.exceptions", "Ignore", "ignored")
    return _error("liteq.exceptions", "TaskRevokedError", record.revoked or "revoked")


def _error(module: str, name: str, text: str) -> Any:
    return TaskError(exception_class_path=f"{module}.{name}", traceback=text)


def _set(result: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(
            result, name, normalize_json(value) if name == "_return_value" else value
        )
