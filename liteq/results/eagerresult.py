"""The result of a call that was run in place: what it ended with is at hand."""

# ruff: noqa: FBT001, FBT002  (positional booleans in Celery's signatures)

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from liteq import states
from liteq.exceptions import TaskRevokedError
from liteq.results.asyncresult import AsyncResult, R, detail_of
from liteq.results.base import Links, ResultBase, in_line

if TYPE_CHECKING:
    from liteq.brokers.values import Record, RevokeAnswer
    from liteq.results.progress import PastAttempt

__all__ = ["EagerResult"]


class EagerResult(AsyncResult[R]):
    """The result of a call that was run in place: it is ready."""

    _waits = False

    def __init__(
        self,
        id: str | None,
        ret_value: Any,
        state: str,
        traceback: str | None = None,
        name: str | None = None,
        *,
        parent: ResultBase | None = None,
        children: list[Any] | None = None,
    ) -> None:
        # One that a base class makes in place of a call which it did not send has no id.
        super().__init__(id or "none", task_name=name, parent=parent)
        self.id: str = id  # type: ignore[assignment]
        self._value = ret_value
        self._state = state
        self._traceback = traceback
        self._made = children
        self._ran = False  # as a step of a workflow

    def stand_in(self, early: AsyncResult[R]) -> None:
        """Have a result that was given out before the call ran become this one, and tell who
        waits for it by `then()`."""
        vars(early).update(vars(self))
        early.__class__ = EagerResult
        early._fire()

    def then(
        self,
        callback: Callable[[Any], Any],
        on_error: Callable[[Any], Any] | None = None,
        weak: bool = False,
    ) -> AsyncResult[R]:
        """Call `callback(result)`, or `on_error(result)` if the task failed."""
        vars(self).setdefault("_waiting", []).append((callback, on_error))
        self._fire()
        return self

    def ready(self) -> bool:
        return True

    def exists(self) -> bool:
        return True

    def forget(self) -> None:
        """Do nothing: nothing is stored."""

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: Any = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> RevokeAnswer:
        """Show the call as revoked, as Celery does, although it was over."""
        self._state = states.REVOKED
        self._value = TaskRevokedError("revoked")
        return "settled"

    @property
    def state(self) -> str:
        return self._state

    status = state

    @property
    def result(self) -> Any:
        return self._value

    info = result

    @property
    def traceback(self) -> str | None:
        return self._traceback

    @property
    def detail(self) -> str:
        return detail_of(self._state)

    @property
    def children(self) -> list[Any] | None:
        """What the task called and what followed it, in place as well; None if nothing."""
        return self._made

    def _led_to(self, links: Links) -> list[Any] | None:
        return self._made

    @property
    def attempts(self) -> list[PastAttempt]:
        return []

    def maybe_throw(
        self, propagate: bool = True, callback: Callable[[str, Any], Any] | None = None
    ) -> Any:
        return self._outcome(propagate, callback)

    maybe_reraise = maybe_throw

    @property
    def _is_known(self) -> bool:
        return True

    def _failed_by_itself(self) -> bool:
        return self._ran

    def _look(self) -> Record | None:
        return None  # nothing about it is in the store

    def _dropped(self) -> list[str]:
        return []

    def _outcome(self, propagate: bool, callback: Callable[[str, Any], Any] | None) -> Any:
        failed = self._state in states.PROPAGATE_STATES
        if failed and propagate and isinstance(self._value, BaseException):
            raise self._value
        if callback is not None:
            callback(self.id, self._value)
        return self._value

    def __reduce__(self) -> Any:
        if self.parent is None:
            return EagerResult, self._fields()
        return in_line, ([node._alone() for node in self._line()],)

    def _fields(self) -> tuple[Any, ...]:
        return self.id, self._value, self._state, self._traceback, self._name

    def _alone(self) -> AsyncResult[R]:
        return EagerResult(*self._fields())

    def __copy__(self) -> AsyncResult[R]:
        return EagerResult(*self._fields(), parent=self.parent, children=self._made)

    def __repr__(self) -> str:
        return f"<EagerResult: {self.id}>"
