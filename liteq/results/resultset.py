"""Several results as one: read together, and waited for together.

Of many members none is asked about alone: they are read in slices, and a large group is
waited for at its gather, the one message in the store that ends when all of them have.
"""

# ruff: noqa: FBT001, FBT002  (positional booleans in Celery's signatures)

from __future__ import annotations

import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from liteq import states
from liteq.current import get_current_app
from liteq.offload import off_loop
from liteq.results.base import ResultBase
from liteq.results.joining import assert_will_not_block

if TYPE_CHECKING:
    from typing import Self

    from liteq.app import Liteq
    from liteq.brokers.values import Record, RevokeAnswer

__all__ = ["MANY", "ResultSet"]

MANY: Final = 100  # members above which a group is waited for at its gather
_SLICE: Final = 500  # members that are read at a time


class ResultSet(ResultBase):
    """Several results as one, in a fixed order. A member may be a set or group itself."""

    _app: Liteq | None = None

    def __init__(self, results: Iterable[Any], app: Liteq | None = None, **_: Any) -> None:
        self.results: list[Any] = results if isinstance(results, list) else list(results)
        if app is not None:
            self._app = app
        self._waiting: list[tuple[Callable[..., Any], Callable[..., Any] | None]] = []

    # Members

    def add(self, result: Any) -> None:
        """Add a result, unless it is a member already."""
        if result not in self.results:
            self.results.append(result)

    def remove(self, result: Any) -> None:
        """Take out a result or an id. Raises `KeyError` if it is not a member."""
        try:
            self.results.remove(result)
        except ValueError:
            raise KeyError(result) from None

    def discard(self, result: Any) -> None:
        """Take out a result or an id, if it is a member."""
        if result in self.results:
            self.results.remove(result)

    def update(self, results: Iterable[Any]) -> None:
        """Add those of these results that are not members already."""
        known = set(self.results)
        for result in results:
            if result not in known:
                known.add(result)
                self.results.append(result)

    def clear(self) -> None:
        """Take all members out."""
        self.results.clear()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.results)

    def __getitem__(self, index: Any) -> Any:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    # What the store says

    def ready(self) -> bool:
        """Tell whether all have ended."""
        if next(self._read(self._open()), None) is not None:
            return False
        self._fire()
        return True

    def waiting(self) -> bool:
        """Tell whether any has not ended."""
        return not self.ready()

    def successful(self) -> bool:
        """Tell whether all have returned a value."""
        return not any(self._read(self._open())) and all(
            leaf.state == states.SUCCESS for leaf in self._leaves()
        )

    def failed(self) -> bool:
        """Tell whether any has failed."""
        return any(leaf.state == states.FAILURE for leaf in self._ended())

    def completed_count(self) -> int:
        """Return how many have returned a value."""
        return sum(leaf.state == states.SUCCESS for leaf in self._ended())

    def maybe_throw(
        self, callback: Callable[[str, Any], Any] | None = None, propagate: bool = True
    ) -> None:
        """Raise the error of the first member that has failed, if one has."""
        for leaf in self._ended():
            leaf._outcome(propagate, callback)

    maybe_reraise = maybe_throw

    @property
    def supports_native_join(self) -> bool:
        return True

    @property
    def backend(self) -> Any:
        """The store."""
        return self.app.broker

    @property
    def app(self) -> Liteq:
        """The app whose store is asked."""
        if self._app is None:
            return self.results[0].app if self.results else get_current_app()
        return self._app

    @app.setter
    def app(self, app: Liteq) -> None:
        self._app = app

    # Waiting

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        callback: Callable[[str, Any], Any] | None = None,
        no_ack: bool = True,
        on_message: Callable[..., Any] | None = None,
        disable_sync_subtasks: bool = True,
        on_interval: Callable[[], Any] | None = None,
    ) -> Any:
        """Wait until all have ended, and return their values in order.

        Raises what a member failed with as soon as one has; with `propagate` off, the
        exceptions are in the list. `timeout` (seconds) is for all of them together.
        If `callback(id, value)` is given, it is called for each as it ends, and nothing is
        returned. `on_message` hears of the changes of each. Otherwise like `AsyncResult.get`.
        """
        if disable_sync_subtasks:
            assert_will_not_block()
        if callback is not None or on_message is not None:
            for leaf in self._as_they_end(timeout, interval, on_interval, on_message):
                leaf._outcome(propagate, callback)
            return None if callback is not None else self._values(propagate)
        from liteq.waiting import settled  # late: 5 ms that a mere sender saves

        since = time.monotonic()
        for step in self._steps(propagate):
            for record in settled(
                self.app.broker,
                step.ids,
                timeout=timeout,
                since=since,
                losses=step.losses,
                interval=interval,
                on_look=_both(step.look, on_interval),
            ):
                step.keep(record)
        return self._values(propagate)

    join = join_native = wait = get

    async def aget(
        self,
        timeout: float | None = None,  # noqa: ASYNC109
        *,
        propagate: bool = True,
        disable_sync_subtasks: bool = True,
    ) -> list[Any]:
        """Wait like `get()`, on the running event loop."""
        if disable_sync_subtasks:
            assert_will_not_block()
        from liteq.waiting import asettled  # late: 5 ms that a mere sender saves

        since = time.monotonic()
        steps = self._steps(propagate)
        while (step := await off_loop(next, steps, None)) is not None:
            ended = asettled(
                self.app.broker,
                step.ids,
                timeout=timeout,
                since=since,
                losses=step.losses,
                on_look=step.look,
            )
            async for record in ended:
                step.keep(record)
        return await off_loop(self._values, propagate)

    def __await__(self) -> Generator[Any, None, list[Any]]:
        return self.aget().__await__()

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Yield the results of single calls as they end. Inside a task it raises as `get()`
        does."""
        assert_will_not_block()
        from liteq.waiting import asettled  # late: 5 ms that a mere sender saves

        left = await off_loop(lambda: list(self._read(self._open())))
        wanted = _by_id(left)
        for leaf in self._leaves():
            if leaf.id not in wanted:
                yield leaf
        if wanted:
            losses = _losses(self._leaves())
            async for record in asettled(self.app.broker, wanted, losses=losses):
                for leaf in wanted[record.id]:
                    leaf._keep(record)
                    yield leaf

    def iterate(
        self, timeout: float | None = None, propagate: bool = True, interval: float = 0.5
    ) -> Iterator[Any]:
        """Yield the values as the calls end, the first to end first."""
        for leaf in self._as_they_end(timeout, interval, None):
            yield leaf._outcome(propagate, None)

    def iter_native(
        self,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Callable[..., Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (id, what is stored) of each call as it ends, the first to end first."""
        for leaf in self._as_they_end(timeout, interval, on_interval, on_message):
            yield (
                leaf.id,
                {
                    "task_id": leaf.id,
                    "status": leaf.state,
                    "result": leaf.result,
                    "traceback": leaf.traceback,
                    "children": leaf.children,
                    "date_done": leaf.date_done,
                },
            )

    def then(
        self,
        callback: Callable[[Any], Any],
        on_error: Callable[[Any], Any] | None = None,
        weak: bool = False,
    ) -> Self:
        """Have `callback(self)` called as soon as this object learns that all have ended
        well, or `on_error(self)` that one has not: at once, or in `get()` or `ready()`."""
        self._waiting.append((callback, on_error))
        self.ready()
        return self

    # Steering

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: Any = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> dict[str, RevokeAnswer]:
        """Keep the calls from running, and return by id what became of each; see
        `AsyncResult.revoke`."""
        revoke, name = self.app.control.revoke, signal or "SIGTERM"
        answers: dict[str, RevokeAnswer] = {}
        for some in _slices(self._leaves()):
            ids = [leaf.id for leaf in some]
            answers |= revoke(ids, terminate=terminate, signal=name)
        if wait:
            self.get(timeout=timeout, propagate=False, disable_sync_subtasks=False)
        return answers

    def forget(self) -> None:
        """Delete the results from the store."""
        self.app.broker.forget(self._dropped())

    # Inside

    def _leaves(self) -> Iterator[Any]:
        """Yield the results of single calls, those of inner groups in their place."""
        for result in self.results:
            if isinstance(result, ResultSet):
                yield from result._leaves()
            else:
                yield result

    def _open(self) -> list[Any]:
        """Return those not known to have ended."""
        return [leaf for leaf in self._leaves() if not leaf._is_known]

    def _read(self, leaves: Iterable[Any]) -> Iterator[Any]:
        """Read these, and yield those that have not ended."""
        from liteq.waiting import has_ended  # late: 5 ms that a mere sender saves

        broker = self.app.broker
        for some in _slices(leaves):
            records = broker.get([leaf.id for leaf in some])
            now = broker.now()
            for leaf in some:
                record = records.get(leaf.id)
                if record is not None and has_ended(record, now):
                    leaf._keep(record)
                else:
                    yield leaf

    def _ended(self) -> Iterator[Any]:
        for _ in self._read(self._open()):
            pass
        return (leaf for leaf in self._leaves() if leaf._is_known)

    def _steps(self, propagate: bool) -> Iterator[_Step]:
        """Yield what is to be waited for, one after the other, until all have ended.

        Raises what a member failed with, if `propagate` is on.
        """
        left = self._open()
        if len(left) > MANY and (gather := self._gather()) is not None:
            step = _Gathering(self, gather, propagate)
            if step.look is not None:
                step.look()
            if not gather.final:
                yield step
        left = list(self._read(left))
        if propagate:
            self._throw()
        if left:
            yield _Step(left, propagate)

    def _gather(self) -> Record | None:
        """Return the message that ends when all members have, if there is one."""
        return None

    def _throw(self) -> None:
        """Raise what the first failed with of those that are known to have ended."""
        for leaf in self._leaves():
            leaf._raise_if_failed()

    def _values(self, propagate: bool) -> list[Any]:
        values = [
            result._values(propagate)
            if isinstance(result, ResultSet)
            else result._outcome(propagate, None)
            for result in self.results
        ]
        self._fire()
        return values

    def _as_they_end(
        self,
        timeout: float | None,
        interval: float,
        on_interval: Callable[[], Any] | None,
        on_message: Callable[..., Any] | None = None,
    ) -> Iterator[Any]:
        from liteq.waiting import settled  # late: 5 ms that a mere sender saves

        wanted = _by_id(self._read(self._open()))
        for leaf in self._leaves():
            if leaf.id not in wanted:
                if on_message is not None and leaf._record is not None:
                    leaf._teller(on_message)(leaf._record)
                yield leaf
        if not wanted:
            return

        def tell(record: Record) -> None:
            wanted[record.id][0]._teller(on_message)(record)

        for record in settled(
            self.app.broker,
            wanted,
            timeout=timeout,
            losses=_losses(self._leaves()),
            interval=interval,
            on_look=on_interval,
            on_change=None if on_message is None else tell,
        ):
            for leaf in wanted[record.id]:
                leaf._keep(record)
                yield leaf

    def _fire(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        well = all(leaf.state not in states.PROPAGATE_STATES for leaf in self._leaves())
        for callback, on_error in waiting:
            if well:
                callback(self)
            elif on_error is not None:
                on_error(self)

    def _dropped(self) -> list[str]:
        return [id for result in self.results for id in result._dropped()]

    def _shown(self) -> str:
        names = ", ".join(str(result) for result in self.results[:5])
        more = len(self.results) - 5
        return f"[{names}, … {more} more]" if more > 0 else f"[{names}]"

    def __eq__(self, other: object) -> bool:
        return self.results == other.results if isinstance(other, ResultSet) else NotImplemented

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._shown()}>"

    def __reduce__(self) -> Any:
        return ResultSet, (self.results,)


class _Step:
    """Results of single calls that are waited for."""

    look: Callable[[], Any] | None = None

    def __init__(self, leaves: Iterable[Any], propagate: bool) -> None:
        self._wanted = _by_id(leaves)
        self._propagate = propagate

    @property
    def losses(self) -> int | None:
        return _losses(leaf for leaves in self._wanted.values() for leaf in leaves)

    @property
    def ids(self) -> Iterable[str]:
        return self._wanted

    def keep(self, record: Record) -> None:
        """Give a record to the results whose it is. Raises what the call failed with."""
        for leaf in self._wanted[record.id]:
            leaf._keep(record)
            if self._propagate:
                leaf._raise_if_failed()


class _Gathering(_Step):
    """A gather that is waited for in place of its many parts.

    It does not end at the first failure of a part, but `get()` is to: so each look at
    the store asks how many of the workflow have failed, and reads the parts only then.
    """

    def __init__(self, group: ResultSet, gather: Record, propagate: bool) -> None:
        super().__init__((), propagate)
        self._group = group
        self._gather = gather
        self._failed = 0
        if propagate and gather.workflow is not None:
            self.look = self._look

    @property
    def losses(self) -> int | None:
        return _losses(self._group._leaves())

    @property
    def ids(self) -> Iterable[str]:
        return (self._gather.id,)

    def keep(self, record: Record) -> None:
        """Do nothing: the parts are read when all of them have ended."""

    def _look(self) -> None:
        known = self._group.app.broker.workflow(self._gather.workflow or "")
        failed = 0
        if known is not None:
            failed = sum(known.counts.get(state, 0) for state in ("failed", "revoked"))
        if failed != self._failed:
            self._failed = failed
            self._group.maybe_throw()


def _by_id(leaves: Iterable[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for leaf in leaves:
        found.setdefault(leaf.id, []).append(leaf)
    return found


def _losses(leaves: Iterable[Any]) -> int | None:
    """Return how many stores had been lost when the first of these was made: what went with
    the next is missing for good."""
    known = (leaf._losses for leaf in leaves if leaf._losses is not None)
    return min(known, default=None)


def _slices(leaves: Iterable[Any]) -> Iterator[list[Any]]:
    left = iter(leaves)
    while some := list(islice(left, _SLICE)):
        yield some


def _both(
    first: Callable[[], Any] | None, second: Callable[[], Any] | None
) -> Callable[[], Any] | None:
    if first is None or second is None:
        return first or second

    def call() -> None:
        first()
        second()

    return call
