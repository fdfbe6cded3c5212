"""Every error liteq raises, and the three exceptions by which a task steers its outcome.

`LiteqError` is the one root. `Retry`, `Ignore` and `Reject` stand outside of it: they
are not errors, so `except LiteqError` in a task never swallows a retry. The names are
Celery's where Celery has one, so that `except` clauses move with the import.
"""

from __future__ import annotations

import builtins
from datetime import datetime
from typing import Any

__all__ = [
    "AlreadyEnqueued",
    "AlreadyRegistered",
    "AlwaysEagerIgnored",
    "BackendError",
    "BackendGetMetaError",
    "BackendStoreError",
    "BrokerBusy",
    "BrokerError",
    "BrokerUnavailable",
    "CeleryError",
    "CeleryWarning",
    "ChordError",
    "ConfigWarning",
    "ContentDisallowed",
    "DecodeError",
    "DecryptionError",
    "DuplicateTask",
    "DuplicateTaskNameWarning",
    "EncodeError",
    "Ignore",
    "ImproperlyConfigured",
    "IncompleteStream",
    "Interrupted",
    "InvalidSignature",
    "InvalidTaskError",
    "LiteqError",
    "LiteqWarning",
    "MaxRetriesExceededError",
    "MessageError",
    "MessageTooLarge",
    "NotRegistered",
    "OperationalError",
    "QueueFull",
    "QueueNotFound",
    "Reject",
    "Retry",
    "ScheduleError",
    "ScheduleNotFound",
    "SchedulingError",
    "SchemaError",
    "SecurityError",
    "SoftTimeLimitExceeded",
    "StoreForbidden",
    "StoreLost",
    "TaskError",
    "TaskFailed",
    "TaskPredicate",
    "TaskRevokedError",
    "TimeLimitExceeded",
    "TimeoutError",
    "UnknownTaskId",
    "UnknownWorkflow",
    "WorkerLostError",
    "WorkerShutdown",
    "WorkerTerminate",
]


class LiteqError(Exception):
    """The root of every error liteq raises."""


CeleryError = LiteqError


# Configuration


class ImproperlyConfigured(LiteqError):
    """A setting, option or URL that cannot work; the message names it and the remedy."""


class LiteqWarning(UserWarning):
    """The root of every warning liteq gives."""


CeleryWarning = LiteqWarning


class ConfigWarning(LiteqWarning):
    """A setting that is unknown, misspelt, or has no meaning here."""


class DuplicateTaskNameWarning(LiteqWarning):
    """Two functions were registered under one task name; the first one stays."""


class AlwaysEagerIgnored(LiteqWarning):
    """`send_task` was called in eager mode, where only registered tasks run in place."""


# Messages


class MessageError(LiteqError):
    """A message that cannot be made or read."""


class EncodeError(MessageError, TypeError):
    """A value that no serializer can carry; the message gives its path and its type."""


class DecodeError(MessageError, ValueError):
    """Bytes that are not a valid message body or result."""


class ContentDisallowed(DecodeError):
    """A body in a format that `accept_content` does not list."""


class InvalidSignature(DecodeError):
    """A message or result without a valid signature, though `security_keys` are set."""


SecurityError = InvalidSignature  # Celery's name


class DecryptionError(DecodeError):
    """An encrypted `Secret` that none of this process's `encryption_keys` opens."""


class MessageTooLarge(MessageError, ValueError):
    """A body above `task_max_body_size` bytes."""


class AlreadyEnqueued(MessageError, ValueError):
    """A message with this id, but another task or other arguments, is in the store."""


class DuplicateTask(MessageError, ValueError):
    """Another call has the same unique key, or keeps it for some time after its end; `id` is
    the id of that call. Nothing was stored."""

    def __init__(self, *args: Any, id: str = "") -> None:
        super().__init__(*args)
        self.id = id

    @classmethod
    def of(cls, task: str, id: str, *, part: bool = False, step: bool = False) -> DuplicateTask:
        """Return the error of a call of a task for whose key `id` is known. `part`: the call
        belongs to a workflow; `step`: the other one does, so it cannot be replaced."""
        why = ""
        if part:
            why = ", and a workflow cannot do without one of its calls"
        elif step:
            why = ", as a step of a workflow, which cannot be replaced"
        return cls(
            f"a call of {task!r} with the same unique key is in the store already: {id}{why}",
            id=id,
        )


# The store


class BrokerError(LiteqError):
    """The store refused or could not do what was asked."""


class BrokerUnavailable(BrokerError, ConnectionError):
    """The store cannot be reached now. Whether the last call took effect is unknown;
    repeating it is safe."""


OperationalError = BrokerUnavailable  # the name Celery users import from kombu
BackendError = BrokerError  # Celery's names: results are in the broker's store
BackendGetMetaError = BackendStoreError = BrokerUnavailable


class BrokerBusy(BrokerUnavailable):
    """Other processes held the store's write lock for the whole time allowed."""


class StoreForbidden(BrokerUnavailable):
    """This process's user may not use the store's files: nothing was read or written."""


class QueueFull(BrokerError):
    """The store has no room for new messages; those that it holds can still be settled.
    `queue`: the one whose `max_length` is reached, None if it is the store."""

    queue: str | None = None


class SchemaError(BrokerError):
    """The store was made by a version of liteq that this one cannot read or upgrade."""


class StoreLost(BrokerError):
    """The store's file was deleted or replaced while this process had it open. The write was
    not made; the next use opens the file that is there then. A caller that waits for a call
    which was lost with its store, on a server too, also gets this."""


# Tasks


class TaskError(LiteqError):
    """Something is wrong with a task or with its result."""


class NotRegistered(TaskError, KeyError):
    """No task of this name is registered."""

    def __str__(self) -> str:  # KeyError shows the repr of its argument
        return str(self.args[0]) if self.args else ""


class AlreadyRegistered(TaskError):
    """A task of this name is registered already."""


class QueueNotFound(TaskError, KeyError):
    """The queue is not in `task_queues`, and `task_create_missing_queues` is off."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ScheduleError(TaskError, ValueError):
    """An invalid periodic entry; the message names it, and says what is wrong with it."""


SchedulingError = ScheduleError  # Celery's name


class ScheduleNotFound(TaskError, KeyError):
    """There is no periodic entry of this name."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class InvalidTaskError(TaskError):
    """A message whose fields make no sense."""


class IncompleteStream(TaskError):
    """A walk over results met one that is not ready."""


class TimeoutError(TaskError, builtins.TimeoutError):
    """The result was not ready in the time given."""


class UnknownTaskId(TaskError, LookupError):
    """No message with this id is in the store: never enqueued, expired or forgotten.
    Waiting for it could never end."""


class UnknownWorkflow(TaskError, LookupError):
    """The store has no workflow of this id."""


class MaxRetriesExceededError(TaskError):
    """The task asked for one retry more than `max_retries` allows."""

    def __init__(self, *args: Any, task_args: Any = (), task_kwargs: Any = None) -> None:
        super().__init__(*args)
        self.task_args = task_args
        self.task_kwargs = task_kwargs if task_kwargs is not None else {}


class TaskRevokedError(TaskError):
    """The task was revoked, terminated, or expired before it could start."""


class ChordError(TaskError):
    """A member of a chord's header failed, so its body cannot run."""


class TaskFailed(TaskError):
    """A task failed with an exception whose class this process does not have, or which holds
    what cannot be stored.

    `type_name` is the class's dotted name, `message` its text, `remote_traceback` the
    traceback as the worker printed it.
    """

    def __init__(
        self, type_name: str = "", message: str = "", remote_traceback: str = ""
    ) -> None:
        super().__init__(type_name, message, remote_traceback)
        self.type_name = type_name
        self.message = message
        self.remote_traceback = remote_traceback

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


# Attempts


class WorkerLostError(LiteqError):
    """The process that ran the task died before the task ended."""


class TimeLimitExceeded(LiteqError):
    """The task ran for longer than its hard time limit (seconds) and was killed."""

    def __str__(self) -> str:
        return f"TimeLimitExceeded({', '.join(map(str, self.args))})"


class SoftTimeLimitExceeded(Exception):
    """Raised inside the task when its soft time limit (seconds) has passed.

    Like Celery's, it is an `Exception`, so a bare `except Exception` in the task
    catches it; catch it first to clean up before the hard limit.
    """

    def __str__(self) -> str:
        return f"SoftTimeLimitExceeded{self.args!r}"


class Interrupted(BaseException):
    """Raised by an interruptible `Task.checkpoint()`, once it has kept its value, when the
    worker stops: the call goes on from there in the next worker.

    It is not an `Exception`, so `except Exception` in a task lets it through. If anything
    else raises it, the task fails.
    """


class WorkerShutdown(SystemExit):
    """Stop the worker warmly: finish what runs, claim nothing new."""


class WorkerTerminate(SystemExit):
    """Stop the worker now, giving back what runs."""


# Steering: raised by a task to choose its outcome. Not errors.


class TaskPredicate(Exception):
    """The root of the exceptions by which a task steers its own outcome."""


class Ignore(TaskPredicate):
    """End this attempt without a result."""


class Replaced(Ignore):
    """Another call is to run in the place of this one: what `Task.replace()` raises.

    `outcome` is what the attempt ends with; `sig` the signature.
    """

    def __init__(self, sig: Any = None, outcome: Any = None) -> None:
        super().__init__(f"replaced by {sig!r}")
        self.sig = sig
        self.outcome = outcome


class Reject(TaskPredicate):
    """Refuse the message: put it back (`requeue=True`), or fail it."""

    def __init__(self, reason: Any = None, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 (Celery's signature)
        super().__init__(reason, requeue)
        self.reason = reason
        self.requeue = requeue


class Retry(TaskPredicate):
    """The task is to be run again: what `Task.retry()` raises.

    `when` is the number of seconds to wait, or an aware datetime.
    """

    def __init__(
        self,
        message: str | None = None,
        exc: BaseException | None = None,
        when: float | datetime | None = None,
        is_eager: bool = False,  # noqa: FBT001, FBT002 (Celery's signature)
        sig: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(message, exc, when, **kwargs)
        self.message = message
        self.exc = exc
        self.when = when
        self.is_eager = is_eager
        self.sig = sig

    def humanize(self) -> str:
        """Return the time of the next attempt in words."""
        if isinstance(self.when, datetime):
            return f"at {self.when.isoformat()}"
        return f"in {self.when or 0:g}s"

    def __str__(self) -> str:
        if self.message:
            return self.message
        reason = f": {self.exc!r}" if self.exc else ""
        return f"Retry {self.humanize()}{reason}"
