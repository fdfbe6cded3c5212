"""What stands where Celery has its result backend: the results in the store, by id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from liteq import failure, serializers
from liteq.calls import lifetime
from liteq.redaction import mask_url
from liteq.states import FAILURE, SUCCESS

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = ["ResultBackend"]


class ResultBackend:
    """What `app.backend` returns. It holds nothing of its own: `AsyncResult` asks the store."""

    def __init__(self, app: Liteq) -> None:
        self.app = app

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Write a state for an id; return the result.

        SUCCESS and FAILURE (`result` is the exception) end a call that has not ended: one
        that waits is not run any more, and an id without a call is used up. Another state
        shows until the task sets one itself, or the attempt ends; for a call that is not sent
        yet, until it is, for `result_expires` seconds at most.
        """
        name = getattr(request, "task", None) or ""
        if state == FAILURE:
            exc = result if isinstance(result, BaseException) else Exception(result)
            value = failure.describe(exc, traceback=traceback, redactor=self.app.redactor)
        else:
            kind, cipher = self.app.conf.result_serializer, self.app.cipher
            value = serializers.dumps(result, kind, root="result", cipher=cipher)
        if state == SUCCESS and self.app.signer is not None:
            value = self.app.signer.seal(value, task_id)
        expires = lifetime(self.app.conf.result_expires)
        self.app.broker.store(task_id, state, value, task=name, expires=expires)
        return result

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        store_result: bool = True,  # noqa: FBT001, FBT002 (Celery's)
        request: Any = None,
        state: str = SUCCESS,
    ) -> None:
        """End a call with this value. With `request`, one of those that a run for many calls
        was given, it ends with the run."""
        if getattr(request, "ending", None) is not None:
            request.ending = (result, None)
        elif store_result:
            self.store_result(task_id, result, state, request=request)

    def mark_as_failure(
        self,
        task_id: str,
        exc: BaseException,
        traceback: str | None = None,
        store_result: bool = True,  # noqa: FBT001, FBT002 (Celery's)
        request: Any = None,
        call_errbacks: bool = True,  # noqa: FBT001, FBT002 (Celery's: here they always are)
        state: str = FAILURE,
    ) -> None:
        """End a call with this exception, as `mark_as_done()` does with a value."""
        if getattr(request, "ending", None) is not None:
            request.ending = (None, exc)
        elif store_result:
            self.store_result(task_id, exc, state, traceback, request)

    def get_result(self, task_id: str) -> Any:
        """Return the value, or the exception of a failure."""
        return self.app.AsyncResult(task_id).result

    def get_state(self, task_id: str) -> str:
        """Return the state, PENDING for an id that is not known."""
        return self.app.AsyncResult(task_id).state

    get_status = get_state

    def get_traceback(self, task_id: str) -> str | None:
        """Return the traceback of a failure."""
        return self.app.AsyncResult(task_id).traceback

    def get_children(self, task_id: str) -> list[Any] | None:
        """Return the results of what the call has sent."""
        return self.app.AsyncResult(task_id).children

    def get_task_meta(self, task_id: str) -> dict[str, Any]:
        """Return what the store has about a call, under Celery's names."""
        found = self.app.AsyncResult(task_id)
        return {
            "task_id": task_id,
            "status": found.state,
            "result": found.result,
            "traceback": found.traceback,
            "children": found.children,
            "date_done": found.date_done,
        }

    def forget(self, task_id: str) -> None:
        """Delete the result of a call that is over."""
        self.app.AsyncResult(task_id).forget()

    def as_uri(self, include_password: bool = False) -> str:  # noqa: FBT001, FBT002 (Celery's)
        """Return the store's URL, its password hidden."""
        return self.app.broker_url if include_password else mask_url(self.app.broker_url)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"app.backend has no {name!r}: results are in the store, ask app.AsyncResult(id)",
            name=name,
            obj=self,
        )
