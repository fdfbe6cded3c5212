"""A task: a function that can be called now, or sent to be run by a worker."""

# ruff: noqa: FBT001, FBT002  (positional booleans in Celery's signatures)

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import cache
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    NoReturn,
    ParamSpec,
    TypeVar,
)

from liteq import context
from liteq.context import Context
from liteq.current import current_app, get_current_app
from liteq.exceptions import (
    ImproperlyConfigured,
    MaxRetriesExceededError,
    OperationalError,
    Retry,
)
from liteq.local import Proxy
from liteq.options import CallOptions, RetryOptions, named
from liteq.states import PROGRESS, SUCCESS

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from types import CodeType
    from typing import Unpack

    from liteq.app import Liteq
    from liteq.arguments import Check
    from liteq.bulk import BulkResult
    from liteq.calls import Defaults
    from liteq.canvas import Signature, chunks, xmap, xstarmap
    from liteq.limits import Declared, MaxConcurrency, RateLimit
    from liteq.results.asyncresult import AsyncResult
    from liteq.results.eagerresult import EagerResult

__all__ = ["AsyncTask", "BoundTask", "Task", "is_coroutine_function", "is_overridden"]

P = ParamSpec("P")
R = TypeVar("R")

# Flags of code (inspect's, which costs 6 ms to import): of `async def`, and of one with *args.
_COROUTINE, _VARARGS, _VAR_KEYWORDS = 0x80, 0x04, 0x08


class _FromApp:
    """The app's results, until something else is set on the task, which has no effect."""

    def __get__(self, task: Task[..., Any] | None, owner: type[Any]) -> Any:
        return None if task is None else task.app.backend


class _FromConf:
    """An option that has the app's setting for its value, until it is set on the task."""

    def __init__(self, setting: str) -> None:
        self._setting = setting

    def __get__(self, task: Task[..., Any] | None, owner: type[Any]) -> Any:
        return None if task is None else task.app.conf[self._setting]


def _from_conf(setting: str) -> Any:
    return _FromConf(setting)


def _declared(classes: Iterable[type], name: str) -> Any:  # above: making classes calls it
    return next((cls.__dict__[name] for cls in classes if name in cls.__dict__), None)


class Task(Generic[P, R]):
    """A unit of work with a name, options, and a body, `run()`.

    `app.task` makes one of a function. There is one instance per app and process, so
    `__init__` runs once and what it stores (a connection, say) stays between runs.
    Subclasses may set any option as a class attribute, and override the hooks.
    """

    app: Liteq = current_app
    name: str = None  # type: ignore[assignment]  # given by the app
    abstract: bool = True
    typing: bool = _from_conf("strict_typing")

    max_retries: int | None = 3
    default_retry_delay: float = 180.0
    autoretry_for: Iterable[type[BaseException]] = ()
    dont_autoretry_for: Iterable[type[BaseException]] = ()
    retry_kwargs: Mapping[str, Any] = {}
    retry_backoff: bool | float = False
    retry_backoff_max: float = 600.0
    retry_jitter: bool = True
    throws: Any = ()

    acks_late: bool = _from_conf("task_acks_late")
    acks_on_failure_or_timeout: bool = _from_conf("task_acks_on_failure_or_timeout")
    acks_on_failure: bool | None = _from_conf("task_acks_on_failure")
    acks_on_timeout: bool | None = _from_conf("task_acks_on_timeout")
    reject_on_worker_lost: bool | None = _from_conf("task_reject_on_worker_lost")
    retry_on_worker_lost: bool | None = _from_conf("task_retry_on_worker_lost")
    max_deliveries: int | None = _from_conf("task_max_deliveries")
    ignore_result: bool = _from_conf("task_ignore_result")
    store_errors_even_if_ignored: bool = _from_conf("task_store_errors_even_if_ignored")
    store_eager_result: bool = _from_conf("task_store_eager_result")
    result_expires: float | timedelta | None = _from_conf("result_expires")
    track_started: bool = _from_conf("task_track_started")
    rate_limit: RateLimit = _from_conf("task_default_rate_limit")
    rate_limit_key: Callable[..., Any] | str | None = None
    max_concurrency: MaxConcurrency = None
    concurrency_key: Callable[..., Any] | str | None = None
    flush_every: int | None = None
    flush_interval: float | timedelta = 1.0
    time_limit: float | None = _from_conf("task_time_limit")
    soft_time_limit: float | None = _from_conf("task_soft_time_limit")
    priority: int | None = _from_conf("task_default_priority")
    serializer: str = _from_conf("task_serializer")
    compression: str | None = _from_conf("task_compression")

    expires: float | timedelta | datetime | None = None
    unique: bool | None = None
    unique_key: str | Iterable[str] | Callable[..., Any] | None = None
    unique_for: float | timedelta | None = None
    on_conflict: Literal["return", "skip", "replace", "raise"] | None = None
    debounce: float | timedelta | None = None
    debounce_max: float | timedelta | None = None
    queue: Any = None
    exchange: Any = None
    exchange_type: str | None = None
    routing_key: str | None = None
    delivery_mode: Any = None
    backend: Any = _FromApp()
    trail: bool = True
    send_events: bool = True
    resultrepr_maxsize: int = 1024
    sensitive: str | Iterable[str] = ()
    pydantic: bool = False
    pydantic_strict: bool | None = None
    pydantic_context: Mapping[str, Any] | None = None
    pydantic_dump_kwargs: Mapping[str, Any] | None = None
    Strategy: Any = None
    Request: Any = None

    MaxRetriesExceededError: ClassVar[type[Exception]] = MaxRetriesExceededError
    OperationalError: ClassVar[type[Exception]] = OperationalError

    _defaults: Defaults | None = None
    _plan: Any = None  # the executor's, which is above this module
    _check: Check | None = None
    _checked: bool = False
    _made: Mapping[str, Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "abstract" not in cls.__dict__ and "run" in cls.__dict__:
            cls.abstract = False
        for name, value in list(cls.__dict__.items()):
            before = _declared(cls.__mro__[1:], name)
            if value is None and isinstance(before, (_FromConf, _FromApp)):
                delattr(cls, name)  # None means "as the app is set", as in Celery

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        self._forget_what_follows_from(name)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self._forget_what_follows_from(name)

    def _forget_what_follows_from(self, name: str) -> None:
        """Have what was worked out of an option or a method of the task worked out anew: a
        test puts another in its place, and takes it away again."""
        if name in _SENT:
            object.__setattr__(self, "_defaults", None)
        if hasattr(Task, name):
            object.__setattr__(self, "_plan", None)

    # Calling

    if TYPE_CHECKING:

        def run(self, *args: P.args, **kwargs: P.kwargs) -> R:
            """The body of the task."""
            ...
    else:

        def run(self, *args, **kwargs):
            """The body of the task."""
            raise NotImplementedError(f"{type(self).__name__} has no run()")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the body here and now, as a plain function.

        If a subclass overrides this, a worker calls the task itself: this is then the body of
        the attempt, and keeps its request.
        """
        if self._is_call_of_attempt():
            return self.run(*args, **kwargs)
        here = Context(task=self.name, args=args, kwargs=kwargs, _task=self)
        if is_coroutine_function(self.run):
            return _in_context(here, self.run, args, kwargs)  # type: ignore[return-value]
        token = context.push(here)
        try:
            return self.run(*args, **kwargs)
        finally:
            context.pop(token)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send a call with these arguments, to be run by a worker.

        When it returns, the call is in the store. Raises `TypeError` for arguments that
        the function does not take, `EncodeError` for a value that cannot be sent.
        """
        if is_overridden(self.apply_async, Task.apply_async):
            return self.apply_async(args, kwargs)
        return self.app.sender.call(self, args, kwargs, {})

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        link: Any = None,
        link_error: Any = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[R]:
        """Send a call with options.

        A class or a test may override it: `delay()`, and signatures that are sent alone, come
        through here. The members of a workflow do not, for they are stored in one step.

        `countdown` (seconds) or `eta` (a naive one is read in the app's time zone): not
        before. `expires` (seconds or a time): not after. `queue`, `priority` (0 to 9, 9
        first), `time_limit`, `soft_time_limit` (seconds), `serializer`, `headers`,
        `ignore_result`, `retry` and `retry_policy` (of the sending). `unique`,
        `unique_key`, `unique_for`, `on_conflict`, `debounce`, `debounce_max`: at most one
        such call is alive (docs: Unique tasks). `task_id`: the
        call's id; sent again under the same id, it stays one call. `link`, `link_error`:
        signatures called with the result, or when the task fails.

        Raises as `delay()` does, `TypeError` for an unknown option, `ValueError` for a value
        out of its range, and `DuplicateTask` if `on_conflict` says so.
        """
        given = named(options, task_id=task_id, link=link, link_error=link_error)
        return self.app.sender.call(self, args, kwargs, given)

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send a call like `delay()`, without blocking the event loop."""
        if is_overridden(self.aapply_async, Task.aapply_async) or is_overridden(
            self.apply_async, Task.apply_async
        ):
            return await self.aapply_async(args, kwargs)
        return await self.app.sender.acall(self, args, kwargs, {})

    async def aapply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        link: Any = None,
        link_error: Any = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[R]:
        """Send a call like `apply_async()`, without blocking the event loop."""
        given = named(options, task_id=task_id, link=link, link_error=link_error)
        if is_overridden(self.apply_async, Task.apply_async) and not is_overridden(
            self.aapply_async, Task.aapply_async
        ):  # a class that knows no coroutines: what it adds holds here too
            own: Callable[..., Any] = self.apply_async
            sent: AsyncResult[R] = await self.app.sender.off_loop(
                lambda: own(args, kwargs, **given)
            )
            return sent
        return await self.app.sender.acall(self, args, kwargs, given)

    def enqueue_many(
        self,
        calls: Iterable[Sequence[Any] | Mapping[str, Any]],
        **options: Unpack[CallOptions],
    ) -> BulkResult[R]:
        """Send many calls, each a tuple of arguments or a mapping of keyword ones.

        `options` are those of `apply_async()`, for all of them; `countdown` and `expires`
        count from one instant. Each call is checked as by `delay()`. A thousand at a time
        are stored in one step, while `calls` is read. If one is refused, what it raises
        says in a note how many before it are in the store. The calls are not entered in
        the trail of a task that makes them.

        Returns a sequence of their results, in their order.
        """
        sent: BulkResult[R] = self.app.sender.call_many(self, calls, named(options))
        return sent

    async def aenqueue_many(
        self,
        calls: Iterable[Sequence[Any] | Mapping[str, Any]],
        **options: Unpack[CallOptions],
    ) -> BulkResult[R]:
        """Send many calls like `enqueue_many()`, off the event loop."""
        sent: BulkResult[R] = await self.app.sender.acall_many(self, calls, named(options))
        return sent

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        link: Any = None,
        link_error: Any = None,
        task_id: str | None = None,
        throw: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> EagerResult[R]:
        """Run a call in this process as a worker would, retries at once.

        Arguments are not serialised. With `throw` (default: `task_eager_propagates`)
        what the task raises is raised here.
        """
        given = named(options, task_id=task_id, link=link, link_error=link_error)
        return self.app.sender.apply(self, args, kwargs, given, throw=throw)

    # Signatures

    def s(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """Return a signature: this call, perhaps with some arguments still to come."""
        return _signature(self, args, kwargs)

    def si(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """Return an immutable signature: it takes no result of what it is linked to."""
        return _signature(self, args, kwargs, immutable=True)

    def signature(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        immutable: bool = False,
        **more: Any,
    ) -> Signature[R]:
        """Return a signature of this task with these arguments and options."""
        return _signature(self, args, kwargs, options, immutable=immutable, **more)

    subtask = signature

    def map(self, it: Iterable[Any]) -> xmap[R]:
        """Return a signature of one call that runs this task with each item in turn."""
        from liteq.canvas import xmap  # late, as in _signature()

        return xmap(self, it, app=self.app)

    def starmap(self, it: Iterable[Iterable[Any]]) -> xstarmap[R]:
        """Return a signature of one call that runs this task with each tuple of arguments
        in turn."""
        from liteq.canvas import xstarmap  # late, as in _signature()

        return xstarmap(self, it, app=self.app)

    def chunks(self, it: Iterable[Iterable[Any]], n: int) -> chunks[R]:
        """Return a signature of many calls, `n` of them to a `starmap`."""
        from liteq.canvas import chunks  # late, as in _signature()

        return chunks(self, it, n, app=self.app)

    def signature_from_request(
        self,
        request: Context | None = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        queue: Any = None,
        **options: Any,
    ) -> Signature[R]:
        """Return a signature of the call that is running, changed by what is given.

        If only positional or only keyword arguments are given, those of the other kind stay
        unless they conflict.
        """
        from liteq.retrying import call_again  # late: few calls are made again

        request = self.request if request is None else request
        args, kwargs, again = call_again(self, request, args, kwargs)
        if queue is not None:
            again["queue"] = queue
        return _signature(self, args, kwargs, {**again, **options})

    def redacted(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, str]:
        """Return the arguments of a call as texts to be shown (Celery's `argsrepr` and
        `kwargsrepr`), with what is secret in them hidden: see `liteq.redaction`."""
        return self.app.redactor.call(
            args, kwargs, self.all_parameters, self.sensitive, self.resultrepr_maxsize
        )

    @property
    def parameters(self) -> list[str]:
        """The names of the body's positional parameters."""
        code = self._code
        if code is None:
            return []
        names = list(code.co_varnames[: code.co_argcount])
        return names[1:] if hasattr(self.run, "__self__") else names

    @property
    def all_parameters(self) -> list[str]:
        """The same, and after them, with a star, the name of the one that takes the rest; if
        the body takes any keyword, then a lone star, the keywords that it names, and with two
        stars the name of the one that takes the others."""
        code, names = self._code, self.parameters
        if code is None:
            return names
        first, last = code.co_posonlyargcount, code.co_argcount + code.co_kwonlyargcount
        rest = list(code.co_varnames[last : last + 2])
        if code.co_flags & _VARARGS:
            names.append(f"*{rest.pop(0)}")
        if code.co_flags & _VAR_KEYWORDS:
            names += ["*", *code.co_varnames[first:last], f"**{rest[0]}"]
        return names

    @property
    def named_by(self) -> Callable[..., Any] | None:
        """The body, if its parameters are named after the arguments of a call; None for one
        that is given many calls."""
        return self.run if self.flush_every is None else None

    @property
    def _code(self) -> CodeType | None:
        body = self.named_by
        fun = getattr(body, "__wrapped__", body)  # under `filter` or `pydantic`
        code: CodeType | None = getattr(fun, "__code__", None)
        return code

    # Inside a run

    @property
    def request(self) -> Context:
        """The running attempt of this task: its id, arguments, number of retries.

        Outside of a run, one that keeps what a test sets on it, for `run()`; each call,
        direct or sent, has its own.
        """
        for running in reversed(context.stack()):
            if running.task == self.name:
                return running
        return context.outside(self)

    def push_request(self, *args: Any, **kwargs: Any) -> None:
        """Make a request with these attributes the current one, until `pop_request()`."""
        pushed = Context(*args, **{"task": self.name, "_task": self, **kwargs})
        pushed._token = context.push(pushed)  # type: ignore[attr-defined]

    def pop_request(self) -> None:
        """Undo the last `push_request()`."""
        running = context.current()
        if running is not None and "_token" in running.__dict__:
            context.pop(running.__dict__["_token"])

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Unpack[RetryOptions],
    ) -> Retry:
        """End this attempt and have the task run again, under the same id.

        After `countdown` seconds, at `eta`, or after `default_retry_delay`. What is not
        given stays as it was: arguments, queue, expiry, limits, headers. Raises `Retry`
        (write `raise self.retry(…)`, which tells readers that nothing after it runs);
        with `throw` off it is returned, the body goes on, and is retried when it has
        returned or raised. When the task was retried `max_retries` times
        already, raises `exc`, or `MaxRetriesExceededError`. Outside of a worker, raises
        the exception that is being handled, or `exc`.
        """
        from liteq.retry import exhausted, give_up  # late: few tasks are retried
        from liteq.retrying import asked_for

        request = self.request
        if request.called_directly:
            _raise(exc or sys.exception() or Retry("the task can be retried", when=countdown))
        limit = self.max_retries if max_retries is None else max_retries
        if exhausted(request.retries, limit):
            error = give_up(
                exc,
                name=self.name,
                id=request.id or "",
                args=request.args,
                kwargs=request.kwargs,
            )
            if max_retries is not None:  # it goes before what `autoretry_for` would have
                request.given_up = error
            _raise(error)
        steer = asked_for(self, args, kwargs, exc, eta, countdown, dict(options))
        if throw:
            raise steer
        request.retry = steer
        return steer

    def replace(self, sig: Signature[Any]) -> NoReturn:
        """End this attempt and have another call run in its place, under the same id.

        `sig` is any signature: its value (of a group: the list of values) becomes the
        value of this call, for its result and for all that waits for it. It keeps the
        call's links, its place in chains and groups, its headers and its stamps, and has
        its own task's options otherwise. All of it is sent in one step with the end of
        the attempt. Raises `Replaced` (an `Ignore`), which takes effect even if the body
        swallows it; `TypeError` for what is not a signature, and `ImproperlyConfigured` for
        an empty workflow or a signature that belongs to a chord already.
        """
        from liteq.replacing import put_in_place  # late: few tasks do it

        raise put_in_place(self, sig)

    def add_to_chord(self, sig: Signature[Any], lazy: bool = False) -> Any:
        """Add a call to the chord whose header this one is in; return its result.

        It is sent when this attempt has succeeded, or has been replaced, in one step with
        that. The body waits for it, and is given its value (of a group: the list of values)
        after the others. Raises `ValueError` if this call is in no chord, `TypeError` for
        what is not a signature, and `ImproperlyConfigured` for an empty workflow.
        """
        from liteq.replacing import put_beside  # late: few tasks do it

        return put_beside(self, sig, lazy=lazy)

    def update_state(
        self,
        task_id: str | None = None,
        state: str | None = None,
        meta: Any = None,
        **_: Any,
    ) -> None:
        """Show a state of the task's own, with `meta` as its `info`.

        It lasts until the next one or the end of the attempt. Another call's id may be given.
        A call that has ended is left alone; for one that is not sent yet, the state shows
        until it is, for `result_expires` seconds at most.
        """
        from liteq import serializers, texts  # late: who sends no call needs none
        from liteq.brokers.values import Note
        from liteq.calls import lifetime

        request = self.request
        task_id = task_id or request.id
        if task_id is None or state is None:
            return
        texts.check((state,))
        kind, cipher = self.app.conf.result_serializer, self.app.cipher
        value = serializers.dumps(meta, kind, root="meta", cipher=cipher)
        if task_id == request.id:
            if request.report is not None:
                request.report(Note(state, value))
        else:
            if state == SUCCESS and self.app.signer is not None:
                value = self.app.signer.seal(value, task_id)
            expires = lifetime(self.app.conf.result_expires)
            self.app.broker.store(task_id, state, value, task=self.name, expires=expires)

    def progress(
        self, done: float, total: float | None = None, message: str | None = None
    ) -> None:
        """Tell how far the task is: `result.progress` shows it."""
        meta = {"done": done, "total": total, "message": message}
        self.update_state(state=PROGRESS, meta=meta)

    def checkpoint(self, value: Any, *, interruptible: bool = False) -> None:
        """Have the call's next attempt go on from here: it finds the value as
        `self.request.checkpoint`.

        Whatever causes that attempt: a retry, the death of the child or of the worker, a
        stop, a failed call that is run again. The last value counts; None removes it. It is
        stored with the worker's next step, which this does not wait for: if the whole worker
        dies, checkpoints of its last milliseconds may be missing, so work may be done again,
        but is never left out. Values are those of JSON and liteq's own types, 64 KiB at most.
        Raises `EncodeError` or `MessageTooLarge`, and `RuntimeError` where the attempt is not
        known: in a thread that the task has started without its context.

        `interruptible`: when `liteq worker` is told to stop, this keeps the value (if it is not
        None) and raises `Interrupted`, a `BaseException`: the attempt ends here, and the next
        worker goes on. Never use it inside a transaction, which the exception would roll
        back. It interrupts no call with `acks_late=False`, and none in a worker inside a
        program, which finishes what runs.
        """
        from liteq import checkpoints  # late: few tasks do it

        request = self.request
        if not context.is_running(request):
            raise RuntimeError(
                "checkpoint() needs a running attempt, and there is none here: in a thread "
                "that a task starts, call it through contextvars.copy_context().run(…)"
            )
        app = self.app
        checkpoints.keep(request, value, app.signer, app.cipher, interruptible=interruptible)

    def add_trail(self, result: Any) -> Any:
        """Enter a result among the children of the running attempt; return it."""
        if self.trail and context.current() is not None:
            self.request.children.append(result)
        return result

    def send_event(
        self, type_: str, *, retry: Any = None, retry_policy: Any = None, **fields: Any
    ) -> bool:
        """Send an event of your own about the call that runs here, whose id is its `uuid`;
        return whether somebody listens.

        Fields are JSON values; a long one, or one that JSON does not have, is shown by its
        repr, and what is secret is hidden. Events are news: one that the store cannot take is
        dropped. `retry` and `retry_policy` are Celery's, and mean nothing.
        """
        return self.app.events.of_call(self, type_, fields)

    # Hooks

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Called in the worker before the body."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Called in the worker when the body has returned."""

    def on_failure(
        self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        """Called in the worker when the task has failed."""

    def on_retry(
        self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        """Called in the worker when the task is to be run again."""

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        """Called in the worker last, after a success and after a failure."""

    def on_replace(self, sig: Signature[Any]) -> None:
        """Called before `sig` takes this call's place; may change it."""

    def shadow_name(self, args: Any, kwargs: Any, options: Mapping[str, Any]) -> str | None:
        """Return another name to show for a call, or None."""
        return None

    @classmethod
    def on_bound(cls, app: Liteq) -> None:
        """Called when the task is bound to its app."""

    # Looking

    def AsyncResult(self, task_id: str, **kwargs: Any) -> AsyncResult[R]:  # noqa: N802
        """Return the result of a call of this task by its id."""
        from liteq.results.asyncresult import AsyncResult  # late, as with what sends calls

        return AsyncResult(task_id, task_name=self.name, app=self.app, **kwargs)

    def check_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise `TypeError` if the body does not take these."""
        if not self._checked:
            from liteq.arguments import compile_check  # late, as with what sends calls

            body = self.named_by
            check = None if body is None else compile_check(body)
            object.__setattr__(self, "_check", check)
            object.__setattr__(self, "_checked", True)
        if self._check is None:
            return
        try:
            self._check(*args, **kwargs)
        except TypeError as exc:
            from liteq.arguments import about_bind

            advice = about_bind(vars(type(self)).get("__wrapped__"))
            if not advice:
                raise
            raise TypeError(f"{exc} ({advice})") from None

    def own_option(self, name: str) -> Any:
        """Return an option as it is set on the task or on its classes; None for one that has
        its value from the settings."""
        if name in vars(self):
            return vars(self)[name]
        in_class = _declared(type(self).__mro__, name)
        return None if isinstance(in_class, _FromConf) else getattr(self, name)

    def note_made(self) -> None:
        """Note what `__init__` has stored on the task, which the app has just made."""
        object.__setattr__(self, "_made", dict(vars(self)) or _NOTHING)

    def is_made_by_app(self) -> bool:
        """Tell whether the app has made this object, as each process can for itself."""
        return self._made is not None

    def set_since_made(self) -> dict[str, Any]:
        """Return the attributes that were set on the task since the app has made it: all of
        them if it was given the object."""
        made = self._made or _NOTHING
        return {
            name: value
            for name, value in vars(self).items()
            if name not in _INSIDE and (name not in made or made[name] is not value)
        }

    def deliveries_allowed(self) -> int | None:
        """Return how often a call may be started in all when its process dies each time;
        None leaves that to the store. `reject_on_worker_lost=False`, if set explicitly, means
        what it does in Celery: a death is a failure."""
        if self.reject_on_worker_lost is False:
            return 1
        own = self.max_deliveries
        return None if own == self.app.conf.task_max_deliveries else own

    def limits(self) -> tuple[Declared, ...]:
        """Return what limits the calls of this task are under (`rate_limit`,
        `max_concurrency`). Raises `ImproperlyConfigured` for invalid values."""
        keys = self.rate_limit_key is not None or self.concurrency_key is not None
        if self.rate_limit is None and self.max_concurrency is None and not keys:
            return ()
        from liteq.limits import declared  # late: few tasks have any

        try:
            return declared(
                self.name,
                rate_limit=self.rate_limit,
                rate_limit_key=self.rate_limit_key,
                max_concurrency=self.max_concurrency,
                concurrency_key=self.concurrency_key,
            )
        except (TypeError, ValueError) as exc:
            raise ImproperlyConfigured(f"the limits of the task {self.name}: {exc}") from exc

    def has_shadow_names(self) -> bool:
        """Tell whether `shadow_name()` was overridden."""
        return getattr(self.shadow_name, "__func__", None) is not Task.shadow_name

    @property
    def __name__(self) -> str:
        return str(getattr(self.run, "__name__", type(self).__name__))

    def __repr__(self) -> str:
        return f"<@task: {self.name} of {self.app.main or '-'}>"

    def __reduce__(self) -> Any:
        return _task_named, (self.name,)

    # Inside

    def _is_call_of_attempt(self) -> bool:
        """Tell whether this is the one call that a worker makes of an overridden
        `__call__`; those that the body makes in turn are direct ones."""
        if type(self).__call__ is Task.__call__:
            return False
        running = context.current()
        if running is None or running.called_directly or running.task != self.name:
            return False
        is_first = not running.body_called
        running.body_called = True
        return is_first


class AsyncTask(Task[P, R]):
    """A task whose body is an `async def`. Called directly, it returns a coroutine."""

    abstract = True

    if TYPE_CHECKING:

        def __call__(  # type: ignore[override]
            self, *args: P.args, **kwargs: P.kwargs
        ) -> Coroutine[Any, Any, R]: ...


BoundTask = Task[..., Any]
"""The type of `self` in a function made a task with `bind=True`."""

_NOTHING: Mapping[str, Any] = {}
_INSIDE = frozenset({"app", "_defaults", "_plan", "_check", "_checked", "_made"})
_SENT = frozenset(
    {
        "acks_late",
        "debounce",
        "debounce_max",
        "delivery_mode",
        "exchange",
        "expires",
        "ignore_result",
        "concurrency_key",
        "max_concurrency",
        "max_deliveries",
        "on_conflict",
        "priority",
        "queue",
        "rate_limit",
        "rate_limit_key",
        "reject_on_worker_lost",
        "result_expires",
        "routing_key",
        "serializer",
        "shadow_name",
        "soft_time_limit",
        "store_errors_even_if_ignored",
        "time_limit",
        "unique",
        "unique_for",
        "unique_key",
    }
)


def _task_named(name: str) -> Any:
    """Return the current app's task, looked up when it is used: it may come later."""
    return Proxy(lambda: get_current_app().tasks[name], name=name)


def _signature(
    task: Task[Any, R],
    args: Iterable[Any] | None,
    kwargs: Mapping[str, Any] | None,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> Signature[R]:
    kind: type[Signature[R]] = _canvas().Signature
    return kind(task.name, args, kwargs, options, task, app=task.app, **more)


@cache
def _canvas() -> Any:
    from liteq import canvas  # late: a fifth of what a sender of plain calls loads

    return canvas


def is_overridden(method: Callable[..., Any], ours: Callable[..., Any]) -> bool:
    """Tell whether a class has a method of its own, or a test has put another in place."""
    return getattr(method, "__func__", None) is not ours


def is_coroutine_function(fun: Callable[..., Any]) -> bool:
    """Tell whether this is an `async def`."""
    code = getattr(fun, "__code__", None)
    return code is not None and bool(code.co_flags & _COROUTINE)


async def _in_context(here: Context, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    token = context.push(here)
    try:
        return await run(*args, **kwargs)
    finally:
        context.pop(token)


def _raise(exc: BaseException) -> NoReturn:
    """Raise an exception, with the one being handled as its cause if that is another."""
    handled = sys.exception()
    if handled is None or handled is exc:
        raise exc
    raise exc from handled
