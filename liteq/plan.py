"""What the executor needs to know of a task, worked out once and not at every attempt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from liteq.flushing import alone, flush_of
from liteq.retry import RetryPolicy

__all__ = ["Plan", "TaskLike", "is_async"]

_COROUTINE_FUNCTION: Final = 0x80  # the code flag of `async def` (inspect's)


class TaskLike(Protocol):
    """What the executor needs of a task. Options that are missing have Celery's defaults.

    They are: flush_every, flush_interval, throws, track_started, acks_late, acks_on_failure and
    acks_on_failure_or_timeout, and those of `RetryPolicy`.
    """

    name: str
    _plan: Any  # the `Plan` worked out of it; None again when an option or method is changed

    @property
    def run(self) -> Callable[..., Any]: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def retry(self, *args: Any, **kwargs: Any) -> Any: ...
    def before_start(self, task_id: Any, args: Any, kwargs: Any) -> Any: ...
    def on_success(self, retval: Any, task_id: Any, args: Any, kwargs: Any) -> Any: ...
    def on_failure(self, exc: Any, task_id: Any, args: Any, kwargs: Any, einfo: Any) -> Any: ...
    def on_retry(self, exc: Any, task_id: Any, args: Any, kwargs: Any, einfo: Any) -> Any: ...
    def after_return(
        self, status: Any, retval: Any, task_id: Any, args: Any, kwargs: Any, einfo: Any
    ) -> Any: ...


class Plan:
    """A task as the executor sees it. Hooks that do nothing are None, and not called."""

    __slots__ = (
        "_called",
        "after_return",
        "before_start",
        "function",
        "keeps_failed",
        "many",
        "on_failure",
        "on_retry",
        "on_success",
        "policy",
        "task",
        "throws",
        "track_started",
    )

    def __init__(self, task: TaskLike) -> None:
        self.task = task
        self._called = _function(task)
        self.function = _surrounded(task, self._called)
        self.many: Callable[..., Any] | None = None  # takes the requests of several calls
        if flush_of(task) is not None:
            self.many = _surrounded(task, task)  # as a plain call: it is no attempt's alone
            self.function = alone(task, self.many)
        self.before_start = _hook(task, "before_start")
        self.on_success = _hook(task, "on_success")
        self.on_failure = _hook(task, "on_failure")
        self.on_retry = _hook(task, "on_retry")
        self.after_return = _hook(task, "after_return")
        self.throws = _classes(getattr(task, "throws", None))
        self.keeps_failed = _keeps_failed(task)
        self.track_started = bool(getattr(task, "track_started", False))
        self.policy = RetryPolicy(
            max_retries=getattr(task, "max_retries", 3),
            autoretry_for=_classes(getattr(task, "autoretry_for", None)),
            dont_autoretry_for=_classes(getattr(task, "dont_autoretry_for", None)),
            retry_kwargs=getattr(task, "retry_kwargs", None) or {},
            retry_backoff=getattr(task, "retry_backoff", False) or False,
            retry_backoff_max=getattr(task, "retry_backoff_max", 600),
            retry_jitter=getattr(task, "retry_jitter", True),
        )

    def takes_error(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Tell whether this errback wants (request, exc, traceback), not the failed id.

        It does if those three fit before its own arguments; a bound task only if the id
        alone does not, since that is what Celery calls a bound one with.
        """
        import inspect  # late: 6 ms, and only error callbacks need it

        try:
            signature = inspect.signature(self._called)
        except (TypeError, ValueError):
            return False  # a built-in that does not tell
        if not _fits(signature, 3, args, kwargs):
            return False
        is_bound = hasattr(self._called, "__self__")
        return not is_bound or not _fits(signature, 1, args, kwargs)


def _function(task: TaskLike) -> Callable[..., Any]:
    """Return what an attempt calls: `run`, or the task itself if it overrides `__call__`."""
    call = getattr(type(task), "__call__", None)  # noqa: B004 (which one it is, is asked)
    return task.run if _is_default(call) else task


def _hook(task: TaskLike, name: str) -> Callable[..., Any] | None:
    hook = getattr(task, name, None)
    return None if hook is None or _is_default(hook) else _surrounded(task, hook)


def _surrounded(task: TaskLike, code: Callable[..., Any]) -> Callable[..., Any]:
    """Return the user's code within what its app has around it: see `Liteq.surround`."""
    surround = getattr(getattr(task, "app", None), "surround", None)
    if surround is None:
        return code
    surrounded: Callable[..., Any] = surround(code)
    return surrounded


def _is_default(method: Any) -> bool:
    """Tell whether a method is missing or is the one of liteq's own Task, which is above
    this module and so is known by name."""
    return method is None or getattr(method, "__module__", None) == "liteq.task"


def is_async(run: Callable[..., Any]) -> bool:
    """Tell whether a function is an `async def`, without the cost of `inspect`."""
    code = getattr(run, "__code__", None)
    return code is not None and bool(code.co_flags & _COROUTINE_FUNCTION)


def _keeps_failed(task: TaskLike) -> bool:
    """Tell whether a message whose task failed becomes a dead letter: what Celery leaves
    to the message server, when it rejects the message of a late acknowledged task."""
    own = getattr(task, "acks_on_failure", None)
    if own is None:
        own = getattr(task, "acks_on_failure_or_timeout", True)
    return own is False and bool(getattr(task, "acks_late", True))


def _classes(given: Any) -> tuple[type[BaseException], ...]:
    if not given:
        return ()
    return (given,) if isinstance(given, type) else tuple(given)


def _fits(signature: Any, more: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    try:
        signature.bind(*(None,) * more, *args, **kwargs)
    except TypeError:
        return False
    return True
