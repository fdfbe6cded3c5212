"""Tasks that can be called when a transaction of Django's is committed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from liteq.exceptions import DuplicateTask
from liteq.ids import new_id
from liteq.loggers import get_logger
from liteq.results.asyncresult import AsyncResult
from liteq.results.eagerresult import EagerResult
from liteq.task import Task, is_overridden

__all__ = ["DjangoTask"]

logger = get_logger("liteq.django")


class DjangoTask(Task[..., Any]):
    """The class of tasks in a Django project, unless the app has another `task_cls`."""

    abstract = True

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> AsyncResult[Any]:
        """Send a call when the transaction that is open now is committed; at once, if none
        is. See `apply_async_on_commit()`."""
        return self.apply_async_on_commit(args, kwargs)

    def apply_async_on_commit(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Send a call with options when the transaction that is open now is committed.

        Returns its result at once, where Celery returns None; after a rollback the store
        never hears of that id. Of a unique task it becomes the result of the call that stands
        for it; with `on_conflict="raise"` that is logged, for the commit is done. In eager
        mode it becomes the finished one. A process that dies between the commit and the call
        has not sent it. What cannot be sent raises now, and arguments are sent as they are
        now; a countdown begins at the commit. (If the class has its own `apply_async()`, that
        is called at the commit, and only the arguments are checked before.)
        """
        from django.db import transaction  # late: a worker sets Django up before its use

        id = options["task_id"] = options.get("task_id") or new_id()
        if is_overridden(self.apply_async, Task.apply_async):
            if self.typing:
                self.check_arguments(args or (), kwargs or {})
            send: Callable[[], Any] = partial(self.apply_async, args, kwargs, **options)
        else:
            send = self.app.sender.prepare(self, args, kwargs, options)
        connection = transaction.get_connection()
        if connection.get_autocommit() and not connection.in_atomic_block:
            return send()  # type: ignore[no-any-return]
        result: AsyncResult[Any] = AsyncResult(id, task_name=self.name, app=self.app)
        transaction.on_commit(partial(_send, send, result))
        return result


def _send(send: Callable[[], Any], result: AsyncResult[Any]) -> None:
    """Send a call, and have the result that its caller was given be the call's: of a unique
    task, that of the one that stands for it; in eager mode, the finished one."""
    try:
        sent = send()
    except DuplicateTask as exc:  # the commit is done, and others wait behind this call
        logger.error("a call was not sent at the commit: %s", exc)  # noqa: TRY400 (the cause is said)
        result.id, result.duplicate = exc.id or result.id, True
        return
    if isinstance(sent, EagerResult):  # of what was run in place, or skipped
        sent.stand_in(result)
    else:
        result.id, result.duplicate, result.ignored = sent.id, sent.duplicate, sent.ignored
