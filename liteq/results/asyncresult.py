"""The result of one call: what became of it, looked up by its id.

An `AsyncResult` holds no connection and no state but a cache of what is final. It can be
made anywhere from an id, and be pickled, compared, awaited.
"""

# ruff: noqa: FBT001, FBT002  (positional booleans in Celery's signatures)

from __future__ import annotations

from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from copy import copy
from datetime import datetime
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    NoReturn,
    Self,
    TypeVar,
    overload,
)

from liteq import failure, parts, serializers, states
from liteq.current import get_current_app
from liteq.exceptions import TaskRevokedError
from liteq.message import BODY, GATHER, QUEUE, RETRIES, TASK
from liteq.offload import off_loop
from liteq.results.base import Links, ResultBase, as_tuple, in_line
from liteq.results.joining import assert_will_not_block

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.brokers.values import Record, RevokeAnswer
    from liteq.ciphers import Cipher
    from liteq.message import Edge
    from liteq.results.progress import PastAttempt, Progress

__all__ = [
    "AsyncResult",
    "R",
    "detail_of",
    "read_value",
    "signal_name",
]

R = TypeVar("R")

_STATES: Final = {
    "waiting": states.PENDING,
    "scheduled": states.PENDING,
    "queued": states.PENDING,
    "parked": states.PENDING,
    "limited": states.PENDING,
    "running": states.STARTED,
    "retrying": states.RETRY,
    "succeeded": states.SUCCESS,
    "failed": states.FAILURE,
    "revoked": states.REVOKED,
    "ignored": states.IGNORED,
}
# The states in which a state of the task's own is shown: "waiting" is that of an id which
# was never sent, and which somebody stored a state for.
_NOTED: Final = ("running", "waiting", "queued", "scheduled", "limited", "parked")
COUNT: Final = b"count"  # of a gather: its parts are read one by one
NOTHING: Final = b"null"  # what a store hands on for a value that was not kept


class AsyncResult(ResultBase, Generic[R]):
    """What became of the call with this id.

    Reading an attribute looks into the store, until the call has ended. `duplicate`: the call
    was not stored, since another has its unique key; this is the result of that one, or
    (on_conflict="skip") of none.
    """

    duplicate: bool = False
    ignored: bool = False
    _losses: int | None = None  # of stores, when this was made: see `Broker.losses`
    _record: Record | None = None  # once it has ended
    _is_keyless: bool = False  # its secrets stay encrypted
    _waits: ClassVar[bool] = True  # whether its end may be still to come
    _waiting: Sequence[tuple[Callable[..., Any], Callable[..., Any] | None]] = ()

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
        self._app = app
        self._name = task_name
        if app is not None:
            self._losses = app._losses

    # Waiting

    @overload
    def get(
        self,
        timeout: float | None = ...,
        propagate: Literal[True] = ...,
        interval: float = ...,
        no_ack: bool = ...,
        follow_parents: bool = ...,
        callback: Callable[[str, Any], Any] | None = ...,
        on_message: Callable[..., Any] | None = ...,
        on_interval: Callable[[], Any] | None = ...,
        disable_sync_subtasks: bool = ...,
    ) -> R: ...
    @overload
    def get(
        self,
        timeout: float | None = ...,
        propagate: bool = ...,
        interval: float = ...,
        no_ack: bool = ...,
        follow_parents: bool = ...,
        callback: Callable[[str, Any], Any] | None = ...,
        on_message: Callable[..., Any] | None = ...,
        on_interval: Callable[[], Any] | None = ...,
        disable_sync_subtasks: bool = ...,
    ) -> R | BaseException: ...
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
    ) -> Any:
        """Wait until the call has ended, and return its value.

        Raises what the task raised (unless `propagate` is off: then the exception is
        returned), `TaskRevokedError`, and `TimeoutError` after `timeout` seconds, which
        leaves the task alone. Without a timeout, an id that is not in the store raises
        `UnknownTaskId` instead of waiting for ever. While the store cannot be read it raises
        `BrokerUnavailable`: the call is unaffected, and may be waited for again. Inside a
        task it raises `RuntimeError`, since waiting there can use up all of a worker's
        processes.

        `on_message` is called with a dictionary (`status`, `result`, `task_id` …) whenever
        the state, or what `update_state()` reports, has changed, and last with the outcome.
        What is replaced before it is read is skipped. `callback` is called with the id and
        the value at the end, `on_interval` at each look at the store; `interval` (seconds) is
        the longest pause between two looks. With `follow_parents`, what failed in an earlier
        step of a chain is raised. `no_ack` has no effect: a result stays until it expires.
        """
        if self.ignored:
            return None
        if disable_sync_subtasks:
            assert_will_not_block(waits=self._waits)
        if self._waits and self._record is None:
            from liteq.waiting import settled  # late: 5 ms that a mere sender saves

            waiting = settled(
                self.app.broker,
                (self.id,),
                timeout=timeout,
                losses=self._losses,
                interval=interval,
                on_look=on_interval,
                on_change=None if on_message is None else self._teller(on_message),
            )
            for record in waiting:
                self._keep(record)
        if follow_parents and propagate and self.parent is not None:
            self._raise_for_parents()
        return self._outcome(propagate, callback)

    wait = get

    @overload
    async def aget(
        self,
        timeout: float | None = ...,  # noqa: ASYNC109
        *,
        propagate: Literal[True] = ...,
        follow_parents: bool = ...,
        disable_sync_subtasks: bool = ...,
    ) -> R: ...
    @overload
    async def aget(
        self,
        timeout: float | None = ...,  # noqa: ASYNC109
        *,
        propagate: bool = ...,
        follow_parents: bool = ...,
        disable_sync_subtasks: bool = ...,
    ) -> R | BaseException: ...
    async def aget(
        self,
        timeout: float | None = None,  # noqa: ASYNC109
        *,
        propagate: bool = True,
        follow_parents: bool = True,
        disable_sync_subtasks: bool = True,
    ) -> Any:
        """Wait like `get()`, on the running event loop."""
        if self.ignored:
            return None
        if disable_sync_subtasks:
            assert_will_not_block(waits=self._waits)
        if self._waits and self._record is None:
            from liteq.waiting import asettled  # late: 5 ms that a mere sender saves

            waiting = asettled(
                self.app.broker, (self.id,), timeout=timeout, losses=self._losses
            )
            async for record in waiting:
                self._keep(record)
        if follow_parents and propagate and self.parent is not None:
            await off_loop(self._raise_for_parents)
        if self._is_count:
            return await off_loop(self._outcome, propagate, None)
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
        return self._sent() is not None

    def then(
        self,
        callback: Callable[[Any], Any],
        on_error: Callable[[Any], Any] | None = None,
        weak: bool = False,
    ) -> AsyncResult[R]:
        """Have `callback(result)` called as soon as this object learns of the success,
        or `on_error(result)` of a failure: at once, or in `get()` or `ready()`."""
        vars(self).setdefault("_waiting", []).append((callback, on_error))
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
        """The store's own word: waiting, scheduled, queued, limited, parked, running,
        retrying, succeeded, failed, revoked, ignored; unknown for an id it does not have."""
        record = self._sent()
        return "unknown" if record is None else record.state

    @property
    def result(self) -> Any:
        """The value, the exception of a failure, or the meta of a state that the task has
        set."""
        record = self._look()
        return None if record is None else self._result_of(record)

    info = result

    @property
    def progress(self) -> Progress | None:
        """What the task reported last through `self.progress()`, or None."""
        record = self._look()
        if record is None or record.note is None or record.note.state != states.PROGRESS:
            return None
        meta = self._loads(record.note.meta)
        if not isinstance(meta, Mapping):
            return None
        from liteq.results.progress import (
            Progress,  # late: few ask, and all who send import this
        )

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
        """The last fifty attempts that did not succeed, oldest first. Their numbers count all
        of them."""
        from liteq.results.progress import PastAttempt  # late: see `progress`

        return [
            PastAttempt(
                number=past.number,
                outcome=past.outcome,
                exception=failure.rebuild(past.error) if past.error else None,
                traceback=failure.read(past.error)["traceback"] if past.error else None,
                worker=past.worker,
                started_at=_time(past.started_at),
                ended_at=_time(past.ended_at),
            )
            for past in self.app.broker.attempts(self.id)
        ]

    @property
    def children(self) -> list[Any] | None:
        """The calls that the task made, and what follows it (`link`, the next of a
        chain), groups as a `GroupResult`; None before its end."""
        return self._led_to({})

    @property
    def date_done(self) -> datetime | None:
        """When it ended, in UTC."""
        record = self._look()
        return None if record is None else _time(record.settled_at)

    @property
    def name(self) -> str | None:
        """The task's name."""
        if self._name is None and (record := self._sent()) is not None:
            self._name = record.packed[TASK]
        return self._name

    @property
    def args(self) -> tuple[Any, ...] | None:
        """The positional arguments it was called with; None for a group that has replaced the
        call (`Task.replace`)."""
        body = self._body()
        return None if body is None else body[0]

    @property
    def kwargs(self) -> dict[str, Any] | None:
        """The keyword arguments it was called with; None in the same case."""
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
        record = self._sent()
        return None if record is None else record.packed[RETRIES]

    @property
    def queue(self) -> str | None:
        """The queue it was sent to."""
        record = self._sent()
        return None if record is None else record.packed[QUEUE] or None

    @property
    def backend(self) -> Any:
        """The results in the store: `app.backend`."""
        return self.app.backend

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
        steer = self.app.control
        answer = steer.revoke([self.id], terminate=terminate, signal=signal or "SIGTERM")[
            self.id
        ]
        if wait and answer in ("signalled", "running"):
            self.get(timeout=timeout, propagate=False, disable_sync_subtasks=False)
        return answer

    def forget(self) -> None:
        """Delete the result, and those of its parents, from the store."""
        self.app.broker.forget([id for node in self._line() for id in node._dropped()])

    def _dropped(self) -> list[str]:
        """Drop what is known of the call; return the ids that stand for it in the store."""
        self._record = None
        return [self.id]

    # Forms

    def without_keys(self) -> Self:
        """Return this result as a reader without `encryption_keys` sees it, for display: each
        `Secret` that was encrypted stays so, and `reveal()` raises `DecryptionError`."""
        made = copy(self)
        made._is_keyless = True
        return made

    def as_tuple(self) -> tuple[tuple[str, Any], None]:
        """Return the result in Celery's form; see `result_from_tuple`. Each result encloses
        those before it: after a chain of a few hundred steps it is too deep for JSON."""
        return as_tuple(self)  # type: ignore[no-any-return]

    _stored_form = as_tuple  # see `dumps_result`

    def as_list(self) -> list[str]:
        """Return the ids of this result and of its parents."""
        return [node.id for node in self._line()]

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
        if self.parent is None:
            return type(self), (self.id, None, self._name)
        return in_line, ([node._alone() for node in self._line()],)

    def _alone(self) -> AsyncResult[R]:
        return type(self)(self.id, None, self._name, self._app)

    def __copy__(self) -> AsyncResult[R]:
        return type(self)(self.id, None, self._name, self._app, self.parent)

    # Inside

    @property
    def _is_known(self) -> bool:
        """Whether this object knows already how the call ended."""
        return self._record is not None or self.ignored

    def _look(self) -> Record | None:
        """Return the record, from the cache if the call has ended."""
        if self._record is not None:
            return self._record
        from liteq.waiting import has_ended  # late: 5 ms that a mere sender saves

        broker = self.app.broker
        record = broker.get((self.id,)).get(self.id)
        if record is not None and has_ended(record, broker.now()):
            self._keep(record)
        return record

    def _sent(self) -> Record | None:
        """Return the record, unless it is but a state that came before its call."""
        record = self._look()
        return None if record is None or record.early else record

    def _peek(self) -> Record | None:
        """Return the record if the call has ended."""
        return self._record if self._look() is not None else None

    def _keep(self, record: Record) -> None:
        self._record = record
        if self._waiting:
            self._fire()

    def _teller(self, on_message: Callable[[dict[str, Any]], Any]) -> Callable[[Record], None]:
        """Return what tells `on_message` of a record, in the words of Celery's messages."""

        def tell(record: Record) -> None:
            status = self._state_of(record)
            if status == states.PENDING:
                return  # no news: nothing has happened yet
            error = record.result if record.state in ("failed", "retrying") else None
            on_message(
                {
                    "task_id": self.id,
                    "status": status,
                    "result": self._result_of(record),
                    "traceback": failure.read(error)["traceback"] if error else None,
                    "children": self.children or [],
                    "date_done": _time(record.settled_at),
                }
            )

        return tell

    def _fire(self) -> None:
        for callback, on_error in vars(self).pop("_waiting", ()):
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
            return self._value_of(record)
        if self._state_of(record) == states.REVOKED:  # which may have been between attempts
            return TaskRevokedError(_why(record.revoked))
        if record.state in ("failed", "retrying") and record.result is not None:
            return failure.rebuild(record.result)
        if record.note is not None and record.state in _NOTED:
            return self._loads(record.note.meta)
        return None

    def _value_of(self, record: Record) -> Any:
        if record.packed[TASK] == GATHER:
            return self._list_of(record)
        return None if record.result is None else self._opened(record.result, record.id)

    def _list_of(self, record: Record) -> list[Any]:
        """Return what a gather ended with: its parts, an exception for each that failed."""
        if self._is_count:
            group = self._counted()
            return [] if group is None else group.get(propagate=False)
        of = record.id
        return [self._part(*part, of) for part in parts.unpack(record.result or b"")]

    def _part(self, kind: str, value: bytes, gather: str, depth: int = 1) -> Any:
        match kind:
            case "error":
                return failure.rebuild(value)
            case "list":  # of a gather that was a part itself
                inner = parts.unpack(value)
                return [self._part(*part, gather, depth + 1) for part in inner]
            case _:
                return self._opened(value, None, gather, depth)

    def _counted(self) -> Any:
        """Return the group whose id this is, whose parts are read one by one."""
        group = self.app.GroupResult.restore(self.id)
        for member in () if group is None else group.results:
            member._is_keyless = self._is_keyless
        return group

    @property
    def _is_count(self) -> bool:
        """Whether this is the id of a group whose parts are read one by one."""
        record = self._record
        return (
            record is not None
            and record.packed[TASK] == GATHER
            and record.packed[BODY] == COUNT
        )

    def _led_to(self, links: Links) -> list[Any] | None:
        record = self._look()
        if record is None or not record.final:
            return None
        ids: dict[str, None] = {}
        if record.children:
            import json  # a child's ids are JSON, whatever the result's serializer

            ids.update(dict.fromkeys(json.loads(record.children)))
        if record.workflow is not None:
            if record.workflow not in links:
                links[record.workflow] = _links(self.app.broker.nodes(record.workflow)[1])
            ids.update(dict.fromkeys(links[record.workflow].get(self.id, ())))
        return self._results_of(tuple(ids)) if ids else []

    def _results_of(self, ids: tuple[str, ...]) -> list[Any]:
        records = self.app.broker.get(ids)
        made: list[Any] = []
        for id in ids:
            task = records[id].packed[TASK] if id in records else None
            group = self.app.GroupResult.restore(id) if task == GATHER else None
            made.append(group or AsyncResult(id, None, task, self._app))
        return made

    def _outcome(self, propagate: bool, callback: Callable[[str, Any], Any] | None) -> Any:
        record = self._record
        if self._is_count and propagate:
            group = self._counted()
            if group is not None:
                group.maybe_throw()
        value: Any = None if record is None else self._result_of(record)
        failed = record is not None and self._state_of(record) in states.PROPAGATE_STATES
        if failed and propagate:
            raise value
        if callback is not None:
            callback(self.id, value)
        return value

    def _raise_if_failed(self) -> None:
        """Raise what the call failed with, if it is known to have. (Its value, if it has
        one, is not looked at: reading a large one takes time.)"""
        if self._is_count or (self._is_known and self.state in states.PROPAGATE_STATES):
            self._outcome(True, None)

    def _failed_by_itself(self) -> bool:
        """Tell whether the call ran and failed as a step of a workflow."""
        record = self._record
        return record is not None and record.workflow is not None and record.revoked is None

    def _raise_for_parents(self) -> None:
        """Raise what kept a call from its value if it was one that came before it: of a
        chord whose header failed, the header's own error and not `ChordError`."""
        if not self._is_known or self.state not in states.PROPAGATE_STATES:
            return
        if self._failed_by_itself():
            return  # of a chord that goes on without some of its members, not theirs
        for node in reversed(self._line()[1:]):
            node.maybe_throw()

    def _opened(
        self, data: bytes, id: str | None, gather: str | None = None, depth: int = 1
    ) -> Any:
        """Return the value in signed bytes. Raises `InvalidSignature` if they are not those
        of this task, or of a part of this gather, in so many lists inside of each other."""
        if (signer := self.app.signer) is not None:
            data = signer.open(data, id, gather, depth)
        elif data[:1] == b"\x01":  # signed, and no keys here: it is read unchecked
            from liteq.signing import unsealed  # late: hashlib is 3 ms

            data = unsealed(data)
        return self._loads(data)

    def _loads(self, data: bytes) -> Any:
        conf = self.app.conf
        accept = conf.result_accept_content or conf.accept_content
        return read_value(data, conf.result_serializer, accept, self._cipher)

    @property
    def _cipher(self) -> Cipher | None:
        return None if self._is_keyless else self.app.cipher

    def _body(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        record = self._sent()
        if record is None or record.packed[TASK] == GATHER:
            return None
        message = record.message
        return serializers.loads_call(
            message.body, message.content_type, self.app.conf.accept_content, self._cipher
        )


def read_value(
    data: bytes, serializer: str, accept: Collection[str] | None, cipher: Cipher | None
) -> Any:
    """Return the value in serialised bytes. None has one form for all serializers: it
    stands for a value that was not kept."""
    return None if data == NOTHING else serializers.loads(data, serializer, accept, cipher)


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


def detail_of(state: str) -> str:
    """Return the first detail that is shown as this state; "unknown" of one of a task's own."""
    return next((detail for detail, name in _STATES.items() if name == state), "unknown")


def _links(edges: Iterable[Edge]) -> dict[str, list[str]]:
    """Return what follows each message's success."""
    links: dict[str, list[str]] = {}
    for edge in edges:
        if edge.on == "success":
            links.setdefault(edge.source, []).append(edge.target)
    return links


def _why(revoked: str | None) -> str:
    """Return the reason of a revocation in words."""
    if revoked == "upstream":
        return "upstream: a call that it waited for was revoked, was ignored or has expired"
    return revoked or "expired"


def _time(moment: float | None) -> datetime | None:
    from liteq.wording import instant  # late: few who wait for a result ask

    return instant(moment)
