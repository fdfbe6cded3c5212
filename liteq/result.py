"""A result: what became of a call, looked up by its id.

An `AsyncResult` holds no connection and no state but a cache of what is final. It can be
made anywhere from an id, and be pickled, compared, awaited.
"""

# ruff: noqa: FBT001, FBT002  (positional booleans in Celery's signatures)

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, NoReturn, TypeVar

from liteq import context, failure, serializers, states
from liteq.current import get_current_app
from liteq.exceptions import IncompleteStream, TaskRevokedError

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.brokers.base import Record, RevokeAnswer

__all__ = [
    "AsyncResult",
    "EagerResult",
    "PastAttempt",
    "Progress",
    "ResultBase",
    "allow_join_result",
    "assert_will_not_block",
    "denied_join_result",
    "result_from_tuple",
]

R = TypeVar("R")

_STATES: Final = {
    "waiting": states.PENDING,
    "scheduled": states.PENDING,
    "queued": states.PENDING,
    "parked": states.PENDING,
    "running": states.STARTED,
    "retrying": states.RETRY,
    "succeeded": states.SUCCESS,
    "failed": states.FAILURE,
    "revoked": states.REVOKED,
    "ignored": states.IGNORED,
}
# The states in which a state of the task's own is shown: "waiting" is that of an id which
# was never sent, and which somebody stored a state for.
_NOTED: Final = ("running", "waiting")
PROGRESS: Final = "PROGRESS"

_joins_allowed: ContextVar[bool] = ContextVar("liteq_joins_allowed", default=False)


class Progress(NamedTuple):
    """How far a task says it is: what `self.progress(done, total, message)` reported."""

    done: float
    total: float | None = None
    message: str | None = None

    @property
    def fraction(self) -> float | None:
        """The part that is done, from 0 to 1; None while the total is unknown."""
        return self.done / self.total if self.total else None


class PastAttempt(NamedTuple):
    """One attempt of a task that did not succeed. Times are UTC."""

    number: int
    outcome: str
    exception: BaseException | None
    traceback: str | None
    worker: str | None
    started_at: datetime | None
    ended_at: datetime


class ResultBase:
    """The root of all results."""

    parent: Any = None


class AsyncResult(ResultBase, Generic[R]):
    """What became of the call with this id.

    Reading an attribute looks into the store, until the call has ended.
    """

    def __init__(
        self,
        id: str,
        backend: Any = None,
        task_name: str | None = None,
        app: Liteq | None = None,
        parent: ResultBase | None = None,
    ) -> None:
        if not id or not isinstance(id, str):
            raise ValueError(f"a result needs the id of a task, not {id!r}")
        self.id = id
        self.parent = parent
        self.ignored = False
        self._app = app
        self._name = task_name
        self._record: Record | None = None  # once it has ended
        self._waiting: list[tuple[Callable[..., Any], Callable[..., Any] | None]] = []

    # Waiting

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Callable[..., Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Wait until the call has ended, and return its value.

        Raises what the task raised (unless `propagate` is off: then the exception is
        returned), `TaskRevokedError`, and `TimeoutError` after `timeout` seconds, which
        leaves the task alone. Without a timeout, an id that is not in the store raises
        `UnknownTaskId` instead of waiting for ever. Inside a task it raises
        `RuntimeError`, since waiting there can use up all of a worker's processes.
        """
        if self.ignored:
            return None  # type: ignore[return-value]
        if disable_sync_subtasks:
            assert_will_not_block()
        if follow_parents and propagate and self.parent is not None:
            self._raise_for_parents()
        if self._record is None:
            from liteq.waiting import settled  # late: 5 ms that a mere sender saves

            waiting = settled(
                self.app.broker,
                (self.id,),
                timeout=timeout,
                interval=interval,
                on_look=on_interval,
            )
            for record in waiting:
                self._keep(record)
        return self._outcome(propagate, callback)

    wait = get

    async def aget(self, timeout: float | None = None, *, propagate: bool = True) -> R:  # noqa: ASYNC109
        """Wait like `get()`, on the running event loop."""
        if self.ignored:
            return None  # type: ignore[return-value]
        if self._record is None:
            from liteq.waiting import asettled  # late: 5 ms that a mere sender saves

            waiting = asettled(self.app.broker, (self.id,), timeout=timeout)
            async for record in waiting:
                self._keep(record)
        return self._outcome(propagate, None)

    def __await__(self) -> Generator[Any, None, R]:
        return self.aget().__await__()

    def ready(self) -> bool:
        """Tell whether the call has ended, in whatever way."""
        return self.ignored or self._peek() is not None

    def successful(self) -> bool:
        """Tell whether the call has returned a value."""
        return self.state == states.SUCCESS

    def failed(self) -> bool:
        """Tell whether the call has failed."""
        return self.state == states.FAILURE

    def exists(self) -> bool:
        """Tell whether the store knows the call: it was sent, and has not expired."""
        return self._look() is not None

    def then(
        self,
        callback: Callable[[Any], Any],
        on_error: Callable[[Any], Any] | None = None,
        weak: bool = False,
    ) -> AsyncResult[R]:
        """Have `callback(result)` called as soon as this object learns of the success,
        or `on_error(result)` of a failure: at once, or in `get()` or `ready()`."""
        self._waiting.append((callback, on_error))
        if self._record is not None or self._peek() is not None:
            self._fire()
        return self

    def maybe_throw(
        self, propagate: bool = True, callback: Callable[[str, Any], Any] | None = None
    ) -> Any:
        """Raise what the call failed with, if it did; return its value, or None."""
        if self._peek() is None and not self.ignored:
            return None
        return self._outcome(propagate, callback)

    maybe_reraise = maybe_throw

    def throw(self) -> NoReturn:
        """Raise what the call failed with."""
        raise self.result

    # What the store says

    @property
    def state(self) -> str:
        """PENDING (also: unknown), STARTED, RETRY, SUCCESS, FAILURE, REVOKED, IGNORED,
        or a state of the task's own."""
        record = self._look()
        return states.PENDING if record is None else self._state_of(record)

    status = state

    @property
    def detail(self) -> str:
        """The store's own word: waiting, scheduled, queued, parked, running, retrying,
        succeeded, failed, revoked, ignored; unknown for an id it does not have."""
        record = self._look()
        return "unknown" if record is None else record.state

    @property
    def result(self) -> Any:
        """The value, the exception of a failure, or the meta of a state of its own."""
        record = self._look()
        return None if record is None else self._result_of(record)

    info = result

    @property
    def progress(self) -> Progress | None:
        """What the task reported last through `self.progress()`, or None."""
        record = self._look()
        if record is None or record.note is None or record.note.state != PROGRESS:
            return None
        meta = self._loads(record.note.meta)
        if not isinstance(meta, Mapping):
            return None
        done = meta.get("done", meta.get("current", 0))
        return Progress(done, meta.get("total"), meta.get("message"))

    @property
    def traceback(self) -> str | None:
        """The worker's traceback of a failure or of the last retry."""
        record = self._look()
        if record is None or record.result is None:
            return None
        if record.state not in ("failed", "retrying"):
            return None
        return failure.read(record.result).get("traceback") or None

    @property
    def attempts(self) -> list[PastAttempt]:
        """The attempts that did not succeed, oldest first."""
        return [
            PastAttempt(
                number=past.number,
                outcome=past.outcome,
                exception=failure.rebuild(past.error) if past.error else None,
                traceback=failure.read(past.error)["traceback"] if past.error else None,
                worker=past.worker,
                started_at=_time(past.started_at),
                ended_at=datetime.fromtimestamp(past.ended_at, UTC),
            )
            for past in self.app.broker.attempts(self.id)
        ]

    @property
    def children(self) -> list[AsyncResult[Any]] | None:
        """The calls that the task made and that are linked to it; None before its end."""
        record = self._look()
        if record is None or not record.children:
            return None
        import json  # a child's ids are JSON, whatever the result's serializer

        return [AsyncResult(id, app=self.app) for id in json.loads(record.children)]

    @property
    def date_done(self) -> datetime | None:
        """When it ended, in UTC."""
        record = self._look()
        return None if record is None else _time(record.settled_at)

    @property
    def name(self) -> str | None:
        """The task's name."""
        if self._name is None and (record := self._look()) is not None:
            self._name = record.packed[1]
        return self._name

    @property
    def args(self) -> tuple[Any, ...] | None:
        """The positional arguments it was called with."""
        body = self._body()
        return None if body is None else body[0]

    @property
    def kwargs(self) -> dict[str, Any] | None:
        """The keyword arguments it was called with."""
        body = self._body()
        return None if body is None else body[1]

    @property
    def worker(self) -> str | None:
        """The name of the worker that runs it or ran it last."""
        record = self._look()
        return None if record is None else record.worker

    @property
    def retries(self) -> int | None:
        """How often the task asked to be run again."""
        record = self._look()
        return None if record is None else record.packed[7]

    @property
    def queue(self) -> str | None:
        """The queue it was sent to."""
        record = self._look()
        return None if record is None else record.packed[3]

    @property
    def backend(self) -> Any:
        """The store."""
        return self.app.broker

    @property
    def app(self) -> Liteq:
        """The app whose store is asked."""
        return self._app if self._app is not None else get_current_app()

    @property
    def task_id(self) -> str:
        return self.id

    # Steering

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: Any = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> RevokeAnswer:
        """Keep the call from running, and return what became of it.

        "revoked": it will never start. "running": it runs and may finish. "signalled":
        `terminate` was on, and its worker was told to end it. "settled": it was over.
        "unknown": no such id. `wait` waits until it has ended, for `timeout` seconds.
        """
        name = signal_name(signal or "SIGTERM") if terminate else None
        answer = self.app.broker.revoke([self.id], terminate=name)[self.id]
        if wait and answer in ("signalled", "running"):
            self.get(timeout=timeout, propagate=False, disable_sync_subtasks=False)
        return answer

    def forget(self) -> None:
        """Delete the result, and those of its parents, from the store."""
        self._record = None
        self.app.broker.forget([self.id])
        if self.parent is not None:
            self.parent.forget()

    # Walking

    def iterdeps(self, intermediate: bool = False) -> Iterator[tuple[Any, Any]]:
        """Yield (parent, result) for this call and all that it led to, nearest first.

        Raises `IncompleteStream` at one that is not ready, unless `intermediate` is on.
        """
        found: list[tuple[Any, Any]] = [(None, self)]
        for parent, node in found:
            yield parent, node
            if node.ready():
                found.extend((node, child) for child in node.children or ())
            elif not intermediate:
                raise IncompleteStream(f"{node} is not ready")

    def collect(self, intermediate: bool = False, **kwargs: Any) -> Iterator[tuple[Any, Any]]:
        """Yield (result, value) for this call and all that it led to, waiting for each."""
        for _, node in self.iterdeps(intermediate=intermediate):
            yield node, node.get(**kwargs)

    def get_leaf(self) -> Any:
        """Return the value of the last call that this one led to."""
        value = None
        for _, node in self.iterdeps():
            value = node.get()
        return value

    def build_graph(self, intermediate: bool = False) -> dict[Any, list[Any]]:
        """Return what led to what: this result and all that it led to, each with those
        that it led to itself. Raises `IncompleteStream` as `iterdeps()` does."""
        graph: dict[Any, list[Any]] = {}
        for parent, node in self.iterdeps(intermediate=intermediate):
            graph[node] = []
            if parent is not None:
                graph[parent].append(node)
        return graph

    @property
    def graph(self) -> dict[Any, list[Any]]:
        """What led to what; see `build_graph()`."""
        return self.build_graph()

    def as_tuple(self) -> tuple[tuple[str, Any], None]:
        """Return the result in a form that JSON carries; see `result_from_tuple`."""
        return (self.id, self.parent.as_tuple() if self.parent is not None else None), None

    def as_list(self) -> list[str]:
        """Return the ids of this result and of its parents."""
        return [self.id, *(self.parent.as_list() if self.parent is not None else ())]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AsyncResult):
            return bool(other.id == self.id)
        return other == self.id if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"

    def __reduce__(self) -> Any:
        return type(self), (self.id, None, self._name, None, self.parent)

    def __copy__(self) -> AsyncResult[R]:
        return type(self)(self.id, None, self._name, self._app, self.parent)

    # Inside

    def _look(self) -> Record | None:
        """Return the record, from the cache if the call has ended."""
        if self._record is not None:
            return self._record
        from liteq.waiting import has_ended  # late: 5 ms that a mere sender saves

        broker = self.app.broker
        record = broker.get((self.id,)).get(self.id)
        if record is not None and has_ended(record, broker.clock.now()):
            self._keep(record)
        return record

    def _peek(self) -> Record | None:
        """Return the record if the call has ended."""
        return self._record if self._look() is not None else None

    def _keep(self, record: Record) -> None:
        self._record = record
        if self._waiting:
            self._fire()

    def _fire(self) -> None:
        waiting, self._waiting = self._waiting, []
        for callback, on_error in waiting:
            if self.state in states.PROPAGATE_STATES:
                if on_error is not None:
                    on_error(self)
            else:
                callback(self)

    def _state_of(self, record: Record) -> str:
        if record is self._record and not record.final:
            return states.REVOKED  # expired, and only still to be marked
        if record.note is not None and record.state in _NOTED:
            return record.note.state
        return _STATES[record.state]

    def _result_of(self, record: Record) -> Any:
        if record.state == "succeeded":
            return None if record.result is None else self._loads(record.result)
        if record.state in ("failed", "retrying") and record.result is not None:
            return failure.rebuild(record.result)
        if self._state_of(record) == states.REVOKED:
            return TaskRevokedError(record.revoked or "expired")
        if record.note is not None and record.state in _NOTED:
            return self._loads(record.note.meta)
        return None

    def _outcome(self, propagate: bool, callback: Callable[[str, Any], Any] | None) -> R:
        record = self._record
        value: Any = None if record is None else self._result_of(record)
        failed = record is not None and self._state_of(record) in states.PROPAGATE_STATES
        if failed and propagate:
            raise value
        if callback is not None:
            callback(self.id, value)
        return value  # type: ignore[no-any-return]

    def _raise_for_parents(self) -> None:
        node = self.parent
        while node is not None:
            node.maybe_throw()
            node = node.parent

    def _loads(self, data: bytes) -> Any:
        conf = self.app.conf
        accept = conf.result_accept_content or conf.accept_content
        return serializers.loads(data, conf.result_serializer, accept)

    def _body(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        record = self._look()
        if record is None:
            return None
        message = record.message
        return serializers.loads_call(
            message.body, message.content_type, self.app.conf.accept_content
        )


class EagerResult(AsyncResult[R]):
    """The result of a call that was run in place: it is ready."""

    def __init__(
        self,
        id: str,
        ret_value: Any,
        state: str,
        traceback: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(id, task_name=name)
        self._value = ret_value
        self._state = state
        self._traceback = traceback

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Callable[..., Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Return the value, or raise what the task raised."""
        if disable_sync_subtasks:
            assert_will_not_block()
        return self._outcome(propagate, callback)

    wait = get

    async def aget(self, timeout: float | None = None, *, propagate: bool = True) -> R:  # noqa: ASYNC109
        """Return the value, or raise what the task raised."""
        return self._outcome(propagate, None)

    def then(
        self,
        callback: Callable[[Any], Any],
        on_error: Callable[[Any], Any] | None = None,
        weak: bool = False,
    ) -> AsyncResult[R]:
        """Call `callback(result)`, or `on_error(result)` if the task failed."""
        self._waiting.append((callback, on_error))
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
        return next((d for d, name in _STATES.items() if name == self._state), "unknown")

    @property
    def children(self) -> list[AsyncResult[Any]] | None:
        return None

    @property
    def attempts(self) -> list[PastAttempt]:
        return []

    def maybe_throw(
        self, propagate: bool = True, callback: Callable[[str, Any], Any] | None = None
    ) -> Any:
        return self._outcome(propagate, callback)

    maybe_reraise = maybe_throw

    def _look(self) -> Record | None:
        return None  # nothing about it is in the store

    def _outcome(self, propagate: bool, callback: Callable[[str, Any], Any] | None) -> R:
        failed = self._state in states.PROPAGATE_STATES
        if failed and propagate and isinstance(self._value, BaseException):
            raise self._value
        if callback is not None:
            callback(self.id, self._value)
        return self._value  # type: ignore[no-any-return]

    def __reduce__(self) -> Any:
        return EagerResult, (
            self.id,
            self._value,
            self._state,
            self._traceback,
            self._name,
        )

    def __copy__(self) -> AsyncResult[R]:
        return EagerResult(self.id, self._value, self._state, self._traceback, self._name)

    def __repr__(self) -> str:
        return f"<EagerResult: {self.id}>"


# Waiting inside a task


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Let `get()` wait inside a task while this context is open."""
    token = _joins_allowed.set(True)
    try:
        yield
    finally:
        _joins_allowed.reset(token)


@contextmanager
def denied_join_result() -> Iterator[None]:
    """Take an outer `allow_join_result` back while this context is open."""
    token = _joins_allowed.set(False)
    try:
        yield
    finally:
        _joins_allowed.reset(token)


def assert_will_not_block() -> None:
    """Raise `RuntimeError` if a task runs here and has not allowed itself to wait."""
    running = context.current()
    if running is None or running.called_directly or _joins_allowed.get():
        return
    raise RuntimeError(
        "result.get() inside a task can leave every process waiting for the others: "
        "link the tasks instead, or open `with allow_join_result():` if another worker "
        "runs them"
    )


# Forms


def result_from_tuple(given: Any, app: Liteq | None = None) -> Any:
    """Return the result that `as_tuple()` made this of; a result is returned as it is.

    Raises `ValueError` for what is no such form.
    """
    if isinstance(given, ResultBase) or given is None:
        return given
    if isinstance(given, str):
        return AsyncResult(given, app=app)
    match given:
        case [[str(id), parent], None] | [str(id), None as parent]:
            return AsyncResult(id, app=app, parent=result_from_tuple(parent, app))
        case _:
            raise ValueError(f"this is no result in its tuple form: {given!r}")


def signal_name(given: Any) -> str:
    """Return a signal's full name for its name or number: "SIGKILL" for "kill" or 9."""
    import signal as signals  # late: revoking is rare

    try:
        if isinstance(given, int):
            return signals.Signals(given).name
        name = str(given).upper()
        return signals.Signals[name if name.startswith("SIG") else f"SIG{name}"].name
    except (KeyError, ValueError):
        raise ValueError(f"there is no signal {given!r} on this platform") from None


def _time(moment: float | None) -> datetime | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC)
