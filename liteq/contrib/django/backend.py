"""A backend of `django.tasks`: enqueued tasks are messages of the project's liteq app."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.utils import timezone
from django.utils.module_loading import import_string

from liteq.contrib.django import results, running
from liteq.contrib.django.framework import (
    BaseTaskBackend,
    InvalidTask,
    Task,
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultStatus,
)
from liteq.contrib.django.project import project_app
from liteq.definition import (
    check_options,
    check_parameters,
    has_parameter,
    sensitive_names,
)
from liteq.exceptions import EncodeError, LiteqError
from liteq.ids import new_id
from liteq.message import TASK
from liteq.options import checked_limits
from liteq.results.eagerresult import EagerResult

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = ["LiteqBackend", "LiteqTask"]

_DEFAULT: Final = "default"  # Django's name of the queue of tasks that name none
# What Django says itself, or what makes no sense for a function that is not liteq's own.
_NOT_OPTIONS: Final = frozenset({"bind", "base", "name", "queue", "priority", "pydantic"})
_BATCHED: Final = frozenset({"flush_every", "flush_interval"})
_OF_RETRIES: Final = ("max_retries", "retry_backoff", "default_retry_delay")
_CLASSES: Final = ("autoretry_for", "dont_autoretry_for", "throws")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteqTask(Task):  # type: ignore[misc]  # Django ships no types
    """A task with options of liteq's, given to `@task(…)` (Django 6.1). An option that is
    None is as the backend's `OPTIONS` say, else as in liteq."""

    max_retries: int | None = None
    autoretry_for: Iterable[type[BaseException]] | None = None
    dont_autoretry_for: Iterable[type[BaseException]] | None = None
    default_retry_delay: float | None = None
    retry_backoff: bool | float | None = None
    retry_backoff_max: float | None = None
    retry_jitter: bool | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    acks_late: bool | None = None
    max_deliveries: int | None = None
    expires: float | timedelta | None = None
    result_expires: float | timedelta | None = None
    rate_limit: Any = None
    max_concurrency: Any = None
    unique: bool | None = None
    unique_key: Any = None
    unique_for: float | timedelta | None = None
    sensitive: str | Iterable[str] | None = None


_OPTIONS: Final = tuple({f.name for f in fields(LiteqTask)} - {f.name for f in fields(Task)})


class LiteqBackend(BaseTaskBackend):  # type: ignore[misc]  # Django ships no types
    """`TASKS = {"default": {"BACKEND": "liteq.contrib.django.LiteqBackend"}}`.

    `QUEUES` as Django has it. `OPTIONS`: `enqueue_on_commit` (default True), and options of
    `app.task` for all tasks of this backend, as `max_retries` or `time_limit`; classes of
    exceptions may be given by their paths. An option that does not exist is an
    `ImproperlyConfigured`.

    Workers know a task once its module is imported, which they do for the module `tasks` of
    each Django app and for what the setting `imports` names.
    """

    task_class = LiteqTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: Mapping[str, Any]) -> None:
        super().__init__(alias, params)
        options = dict(self.options)
        self._on_commit = options.pop("enqueue_on_commit", True)
        if type(self._on_commit) is not bool:
            raise self._wrong(
                f"enqueue_on_commit must be True or False, not {self._on_commit!r}"
            )
        for name in _CLASSES:
            if name in options:
                options[name] = _imported(options[name])
        if wrong := sorted(_NOT_OPTIONS.intersection(options)):
            raise self._wrong(f"{wrong[0]!r} cannot be set for a backend: set it on each task")
        if wrong := sorted(_BATCHED.intersection(options)):
            raise self._wrong(
                f"{wrong[0]!r} is for liteq's own tasks: one of Django's runs once per call"
            )
        try:
            _check(options)
        except (TypeError, ValueError) as exc:
            raise self._wrong(str(exc)) from exc
        self._task_options = options

    @property
    def app(self) -> Liteq:
        """The liteq app whose store the tasks are sent to: that of the project."""
        return project_app()

    def validate_task(self, task: Any) -> None:
        """Raise `InvalidTask` for one that cannot be run; let workers know one that can."""
        super().validate_task(task)
        own = {
            name: value for name in _OPTIONS if (value := getattr(task, name, None)) is not None
        }
        options = {**self._task_options, **own}
        if "sensitive" not in own:  # the backend's names are for the tasks that have them
            names = sensitive_names(options)
            options["sensitive"] = [
                name for name in names if has_parameter(task.func, name, rest=True)
            ]
        if "autoretry_for" not in options and any(name in options for name in _OF_RETRIES):
            options["autoretry_for"] = (Exception,)
        try:
            _check(options)
            check_parameters(task.func, own)
        except (TypeError, ValueError) as exc:
            raise InvalidTask(f"{task.module_path}: {exc}") from exc
        running.enter(task, options)

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Send a call, and return its result: READY, with its id.

        Within a transaction it is sent when that is committed (`enqueue_on_commit`), and
        never after a rollback; until then there is nothing under the id. (With
        `task_always_eager` it waits for nothing, and its result is finished.) Arguments are
        checked and taken as they are now. Raises `TypeError` for arguments that the
        function does not take or that JSON does not have, `MessageTooLarge`, `EncodeError`
        for what is nested too deeply, and `ValueError` for an impossible time.
        """
        self.validate_task(task)
        run = self.app.tasks[task.module_path]
        result = TaskResult(
            task=task,
            id=new_id(),
            status=TaskResultStatus.READY,
            enqueued_at=None,
            started_at=None,
            finished_at=None,
            last_attempted_at=None,
            args=args,
            kwargs=kwargs,
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )
        send = self.app.sender.prepare(run, result.args, result.kwargs, _options(result))
        waits = self._on_commit and not self.app.conf.task_always_eager
        if waits and _is_in_transaction():
            transaction.on_commit(partial(self._send, send, result))
        else:
            self._send(send, result)
        return result

    def get_result(self, result_id: str) -> Any:
        """Return what became of a call, from any process. Raises `TaskResultDoesNotExist`
        for an id that is not in the store, and for calls of tasks that this program does not
        have, such as renamed ones."""
        app, id = self.app, str(result_id)
        try:
            record = app.broker.get((id,)).get(id)
        except EncodeError:  # half a character: no store has such an id
            record = None
        if record is None:
            raise TaskResultDoesNotExist(result_id)
        task = running.known(record.packed[TASK])
        if task is None:
            raise TaskResultDoesNotExist(
                f"{result_id}: it is a call of {record.packed[TASK]!r}, "
                "which is not a task here"
            )
        return results.of_record(task, record, app)

    def check(self, **kwargs: Any) -> Iterator[checks.CheckMessage]:
        """Give what `manage.py check` is to say."""
        try:
            app = self.app
            taken = set(app.select_queues())
            keeps = app.keeps_results
        except LiteqError as exc:
            yield checks.Error(f"TASKS[{self.alias!r}]: {exc}", id="liteq.E001")
            return
        named = {app.conf.task_default_queue if q == _DEFAULT else q for q in self.queues}
        for queue in sorted(named - taken):
            yield checks.Warning(
                f"TASKS[{self.alias!r}]: a worker that is given no queues does not take from "
                f"the queue {queue!r}.",
                hint=f"Name it in the setting task_queues, or start a worker with -Q {queue}.",
                id="liteq.W001",
            )
        if not keeps:
            yield checks.Warning(
                f"TASKS[{self.alias!r}]: result_backend is off, so no value is kept.",
                hint="Leave out result_backend if results should have a return_value.",
                id="liteq.W002",
            )

    def _send(self, send: Callable[[], Any], result: Any) -> None:
        sent = send()
        object.__setattr__(result, "enqueued_at", timezone.now())
        object.__setattr__(result, "id", sent.id)  # of a unique task: of the one that stands
        results.tell("task_enqueued", result)
        if isinstance(sent, EagerResult):
            results.end_in_place(result, sent, self.app)

    def _wrong(self, what: str) -> ImproperlyConfigured:
        return ImproperlyConfigured(f"OPTIONS of TASKS[{self.alias!r}]: {what}")


def _check(options: Mapping[str, Any]) -> None:
    """Raise `TypeError` or `ValueError` for options that cannot be."""
    check_options(options)
    checked_limits(options.get("time_limit"), options.get("soft_time_limit"))


def _options(result: Any) -> dict[str, Any]:
    """Return the options of the call that is to have this result."""
    task = result.task
    options: dict[str, Any] = {
        "task_id": result.id,
        "headers": {results.HEADER: results.header_of(task)},
        "priority": _priority(task.priority),
    }
    if task.queue_name != _DEFAULT:  # that one has the app's name, or its route
        options["queue"] = task.queue_name
    if task.run_after is not None:
        after = task.run_after
        options["eta"] = timezone.make_aware(after) if timezone.is_naive(after) else after
    return options


def _priority(given: int) -> int:
    """Return Django's priority, -100 to 100, as one of liteq's ten: twenty to a step, and 0
    is 4. Higher ones are first in both."""
    return (int(given) + 100) * 10 // 201


def _is_in_transaction() -> bool:
    """Tell whether a call is to wait for a commit. (Asking for one would open a connection,
    which a project without a database has not got.)"""
    here = transaction.get_connection()
    manual = here.connection is not None and not here.autocommit
    return bool(here.in_atomic_block or manual)


def _imported(given: Any) -> tuple[Any, ...]:
    listed = (given,) if isinstance(given, (str, type)) else tuple(given or ())
    return tuple(import_string(one) if isinstance(one, str) else one for one in listed)
