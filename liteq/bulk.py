"""Many calls at once: checked one by one as `delay()` checks them, stored batch by batch.

What the calls have in common is worked out once, and one transaction stores `BATCH` of
them, so a call costs little more than its body, its id and its row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from liteq import context, serializers
from liteq.calls import too_large
from liteq.ids import new_id, new_ids
from liteq.message import Message
from liteq.options import UNIQUE_OPTIONS
from liteq.result import AsyncResult, ResultSet
from liteq.signatures import Signature

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.sending import Sender
    from liteq.task import Task

__all__ = ["BATCH", "BulkResult", "send_calls", "send_signatures"]

R = TypeVar("R")

BATCH: Final = 1_000  # messages of one transaction: about 10 ms of SQLite's write lock
_OF_ONE: Final = ("task_id", "link", "link_error")
_ALONE: Final = frozenset({"link", "link_error", "result_cls"})
_NO_ARGS: Final[tuple[Any, ...]] = ()
_NO_KWARGS: Final[Mapping[str, Any]] = {}


class BulkResult(Sequence[AsyncResult[R]]):
    """The results of calls that were sent together, in their order.

    It keeps the ids, and makes an `AsyncResult` when it is asked for one: a hundred
    thousand of them would take longer than the sending.
    """

    __slots__ = ("_app", "_items", "_names")

    def __init__(self, app: Liteq) -> None:
        self._app = app
        self._items: list[Any] = []  # ids, and results that were made already
        self._names: list[str] = []

    def add(self, names: Iterable[str], items: Iterable[Any]) -> None:
        """Take calls in, by the name of the task and the id, or the result, of each."""
        self._names += names
        self._items += items

    @property
    def ids(self) -> list[str]:
        """The ids of the calls."""
        return [item if type(item) is str else item.id for item in self._items]

    def get(self, **options: Any) -> list[R]:
        """Wait for all of them and return their values; options as in `ResultSet.get`."""
        values: list[R] = ResultSet(list(self), app=self._app).get(**options)
        return values

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> AsyncResult[R]: ...
    @overload
    def __getitem__(self, index: slice) -> list[AsyncResult[R]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            pairs = zip(self._names[index], self._items[index], strict=True)
            return [self._made(name, item) for name, item in pairs]
        return self._made(self._names[index], self._items[index])

    def __iter__(self) -> Iterator[AsyncResult[R]]:
        return map(self._made, self._names, self._items)

    def _made(self, name: str, item: Any) -> AsyncResult[R]:
        return AsyncResult(item, None, name, self._app) if type(item) is str else item

    def __repr__(self) -> str:
        return f"<BulkResult: {len(self)} calls>"


def send_calls(
    sender: Sender,
    task: Task[..., Any],
    calls: Iterable[Sequence[Any] | Mapping[str, Any]],
    options: dict[str, Any],
) -> BulkResult[Any]:
    """Send many calls of one task; see `Task.enqueue_many`."""
    for name in _OF_ONE:
        if options.get(name) is not None:
            raise TypeError(
                f"{name} belongs to one call: send signatures with app.enqueue_many()"
            )
    made = BulkResult[Any](sender.app)
    _send(made, _calls_of(sender, task, calls, options), sender, options)
    return made


def send_signatures(sender: Sender, sigs: Iterable[Signature[Any]]) -> BulkResult[Any]:
    """Send many signatures; see `Liteq.enqueue_many`."""
    made = BulkResult[Any](sender.app)
    _send(made, _messages_of(sender, sigs), sender, {})
    return made


def _send(
    made: BulkResult[Any],
    produced: Iterator[Message | Callable[[], Any]],
    sender: Sender,
    options: Mapping[str, Any],
) -> None:
    """Store messages in batches, and make the calls that travel alone, in their order."""
    batch: list[Message] = []

    def flush() -> None:
        if batch:
            stands = sender.send(batch, (), options)
            items: list[Any] = [message[0] for message in batch]
            if stands:
                items = [
                    sender.stand_in(one, options, stands) if one.id in stands else one.id
                    for one in batch
                ]
            made.add([message[1] for message in batch], items)
            batch.clear()

    try:
        for one in produced:
            if type(one) is Message:
                batch.append(one)
                if len(batch) >= BATCH:
                    flush()
            else:
                flush()
                result = one()  # type: ignore[operator]
                made.add([getattr(result, "name", None) or ""], [result])
        flush()
    except Exception as exc:
        exc.add_note(f"enqueue_many: the first {len(made)} calls are in the store")
        raise


def _calls_of(
    sender: Sender,
    task: Task[..., Any],
    calls: Iterable[Sequence[Any] | Mapping[str, Any]],
    options: dict[str, Any],
) -> Iterator[Message | Callable[[], Any]]:
    rules = sender.rules()
    if rules.always_eager:
        for call in calls:
            args, kwargs = _arguments(call)
            yield partial(sender.call, task, args, kwargs, options)
        return
    defaults = sender.defaults(rules, task.name, task)
    check = task.check_arguments if defaults.checks_arguments else None
    # With a static router, names as they are and no keys, calls differ in id and body alone.
    keyed = defaults.keys is not None or UNIQUE_OPTIONS & {*defaults.own, *options}
    alike = rules.router.is_static and not task.has_shadow_names() and not keyed
    kind = options.get("serializer") or defaults.template.content_type
    dumps, limit, new = serializers.dumps_call, rules.max_body_size, tuple.__new__
    fields: tuple[Any, ...] | None = None
    ids: list[str] = []
    more = 16
    for call in calls:
        args, kwargs = _arguments(call)
        if check is not None:
            check(args, kwargs)
        if not alike:
            yield sender.message(rules, task.name, task, args, kwargs, options)
            continue
        body = dumps(args, kwargs, kind)
        if len(body) > limit:
            raise too_large(task.name, body, limit)
        if fields is None:
            first = sender.message(rules, task.name, task, args, kwargs, options, body=body)
            fields = first[3:]
            yield first
            continue
        if not ids:
            ids = new_ids(more)
            ids.reverse()
            more = min(2 * more, BATCH)
        yield new(Message, (ids.pop(), task.name, body, *fields))


def _arguments(call: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    kind = type(call)
    if kind is tuple or isinstance(call, (tuple, list)):
        return call, _NO_KWARGS
    if isinstance(call, Mapping):
        return _NO_ARGS, call
    raise TypeError(
        "enqueue_many takes the arguments of each call: a tuple of them, or a mapping of "
        f"keyword arguments; not {call!r} (for one argument, write ({call!r},))"
    )


def _messages_of(
    sender: Sender, sigs: Iterable[Signature[Any]]
) -> Iterator[Message | Callable[[], Any]]:
    rules = sender.rules()
    running = context.current()
    for sig in sigs:
        task = _plain_task(sender, sig)
        if task is None or rules.always_eager:
            yield sig.apply_async
            continue
        args, kwargs, options = sig.args, sig.kwargs, sig.options
        defaults = sender.defaults(rules, task.name, task)
        if defaults.checks_arguments:
            task.check_arguments(args, kwargs)
        if options or running is not None or not defaults.is_plain:
            yield sender.message(rules, task.name, task, args, kwargs, dict(options))
            continue
        body = serializers.dumps_call(args, kwargs, defaults.template.content_type)
        if len(body) > rules.max_body_size:
            raise too_large(task.name, body, rules.max_body_size)
        yield defaults.message(new_id(), body)


def _plain_task(sender: Sender, sig: Any) -> Task[..., Any] | None:
    """Return the task of a signature that is one message; None for all others."""
    if not isinstance(sig, Signature):
        raise TypeError(f"enqueue_many takes signatures, as task.s(…) makes them, not {sig!r}")
    if sig.subtask_type is not None or not _ALONE.isdisjoint(sig.options):
        return None
    task = sig.registered()
    return task if task is not None and task.app is sender.app else None
