"""A task of Django's as workers know it: a liteq task with its name, which runs it.

Only tasks that the process has met are run: each is entered when it is defined, under its
module path, in the registry of every app. A message that names another one waits for a
worker that knows it; what a message says is never imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from liteq import context
from liteq.contrib.django import results
from liteq.contrib.django.framework import TaskContext, TaskResultDoesNotExist, normalize_json
from liteq.contrib.django.results import FINISHED, tell
from liteq.contrib.django.task import DjangoTask
from liteq.current import connect_on_app_finalize
from liteq.signals import task_failure
from liteq.task import is_coroutine_function
from liteq.taskmodules import discover

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.context import Context

__all__ = ["DjangoRun", "enter", "known"]

_known: Final[dict[str, Any]] = {}  # Django's tasks by their module paths
_ATTRIBUTE: Final = "_django"  # of the running attempt's context: its TaskResult


def enter(task: Any, options: Mapping[str, Any]) -> None:
    """Enter a task of Django's in the registry of every app, those that come later too."""
    path = task.module_path
    before = _known.get(path)
    if before is not None and before.func is task.func:
        return  # a copy, by `using()`
    _known[path] = task

    def construct(app: Liteq) -> object:
        return app.task_from_function(
            task.func, name=path, base=DjangoRun, bind=task.takes_context, **options
        )

    connect_on_app_finalize(construct)


def known(path: str) -> Any | None:
    """Return the task of this module path, if there is one in this program; the modules
    `tasks` of its Django apps are imported before that is denied."""
    if path not in _known:
        discover(None, "tasks")
    return _known.get(path)


class DjangoRun(DjangoTask):
    """Runs a task of Django's as the body of an attempt, and sends Django's signals.

    A receiver's error is logged, and changes nothing: the task has run.
    """

    abstract = True
    ignore_result = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        fun = type(self).run
        if not self._is_call_of_attempt():
            return fun(*args, **kwargs)
        task, request = _known[self.name], self.request
        result = results.begun(task, request, self.app)
        setattr(request, _ATTRIBUTE, result)
        tell("task_started", result)
        if task.takes_context:
            args = (TaskContext(task_result=result), *args)
        if is_coroutine_function(fun):
            return _awaited(partial(fun, *args, **kwargs))
        return normalize_json(fun(*args, **kwargs))

    def check_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        try:
            super().check_arguments(args, kwargs)
        except TypeError as exc:  # without advice about `bind`: the context is Django's
            raise (exc.__context__ or exc) from None

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        result = context.noted(self.request, _ATTRIBUTE)
        if result is not None:
            results.succeed(result, retval, self.app)
            tell(FINISHED, result)


async def _awaited(body: Callable[[], Any]) -> Any:
    return normalize_json(await body())


def _fail(
    sender: Any, task_id: str, exception: BaseException, einfo: Any = None, **_: Any
) -> None:
    """Tell of a task that has failed: in its child, or, if its process was ended, in the
    worker's, which knows no more of it than the store."""
    if not isinstance(sender, DjangoRun):
        return
    running: Context | None = context.current()
    result = context.noted(running, _ATTRIBUTE)
    if result is None or result.id != task_id:
        try:
            result = results.restored(_known[sender.name], task_id, sender.app)
        except TaskResultDoesNotExist:
            return
    results.fail(result, exception, einfo, sender.app)
    # Django's own receiver logs the exception that is being handled.
    where = exception.__traceback__
    try:
        raise exception  # noqa: TRY301 (to have it handled is all that is wanted)
    except BaseException:  # noqa: BLE001 (it is the task's, and was logged)
        exception.__traceback__ = where  # as the body raised it: without this frame
        tell(FINISHED, result)


task_failure.connect(_fail, weak=False, dispatch_uid="liteq.django")
