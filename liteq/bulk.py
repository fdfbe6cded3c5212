"""Many calls at once: checked one by one as `delay()` checks them, stored batch by batch.

What the calls have in common is worked out once, and one transaction stores `BATCH` of
them, so a call costs little more than its body, its id and its row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar, overload

from liteq import context, serializers
from liteq.calls import too_large
from liteq.canvases.signatures import Signature
from liteq.ids import new_id, new_ids
from liteq.message import Alike, Message
from liteq.options import UNIQUE_OPTIONS
from liteq.result import AsyncResult, ResultSet

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.sending import Sender
    from liteq.task import Task

__all__ = ["BATCH", "BulkResult", "send_calls", "send_signatures"]

R = TypeVar("R")
Alone: TypeAlias = Callable[[], Any]  # sends a call by itself, and returns its result

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

    @overload
    def get(self, *, propagate: Literal[True] = ..., **options: Any) -> list[R]: ...
    @overload
    def get(self, *, propagate: bool, **options: Any) -> list[R | BaseException]: ...
    def get(self, **options: Any) -> list[Any]:
        """Wait for all of them and return their values; options as in `ResultSet.get`."""
        values: list[Any] = ResultSet(list(self), app=self._app).get(**options)
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
    _send(made, _batches(_messages_of(sender, sigs)), sender, {})
    return made


def _send(
    made: BulkResult[Any],
    steps: Iterable[Sequence[Message] | Alone],
    sender: Sender,
    options: Mapping[str, Any],
) -> None:
    """Store batches of messages, and make the calls that travel alone, in their order."""
    try:
        for step in steps:
            if callable(step):
                result = step()
                made.add([getattr(result, "name", None) or ""], [result])
                continue
            stands = sender.send(step, (), options)
            items: Sequence[str | AsyncResult[Any]]
            if isinstance(step, Alike):
                names, items = [step.first.task] * len(step), step.ids
            else:
                names, items = [one.task for one in step], [one.id for one in step]
            if stands:
                items = [
                    sender.stand_in(one, options, stands) if one.id in stands else one.id
                    for one in step
                ]
            made.add(names, items)
    except Exception as exc:
        exc.add_note(f"enqueue_many: the first {len(made)} calls are in the store")
        raise


def _batches(produced: Iterable[Message | Alone]) -> Iterator[Sequence[Message] | Alone]:
    """Put messages together, but for what travels alone."""
    batch: list[Message] = []
    for one in produced:
        if isinstance(one, Message):
            batch.append(one)
        if batch and (len(batch) >= BATCH or not isinstance(one, Message)):
            yield batch
            batch = []
        if not isinstance(one, Message):
            yield one
    if batch:
        yield batch


def _calls_of(
    sender: Sender,
    task: Task[..., Any],
    calls: Iterable[Sequence[Any] | Mapping[str, Any]],
    options: dict[str, Any],
) -> Iterable[Sequence[Message] | Alone]:
    rules = sender.rules()
    if rules.always_eager:
        return (partial(sender.call, task, *_arguments(call), options) for call in calls)
    defaults = sender.defaults(rules, task.name, task)
    # With a static router, names as they are and no keys, calls differ in id and body alone.
    keyed = defaults.keys is not None or UNIQUE_OPTIONS & {*defaults.own, *options}
    if rules.router.is_static and not task.has_shadow_names() and not keyed:
        return _alike(sender, task, calls, options)
    return _batches(_each(sender, task, calls, options))


def _alike(
    sender: Sender,
    task: Task[..., Any],
    calls: Iterable[Sequence[Any] | Mapping[str, Any]],
    options: dict[str, Any],
) -> Iterator[Alike]:
    rules = sender.rules()
    defaults = sender.defaults(rules, task.name, task)
    check = task.check_arguments if defaults.checks_arguments else None
    kind = options.get("serializer") or defaults.template.content_type
    dumps, limit = serializers.dumps_call, rules.max_body_size
    first: Message | None = None
    rest = iter(calls)
    while some := list(islice(rest, BATCH)):
        bodies: list[bytes] = []
        for call in some:
            args, kwargs = _arguments(call)
            if check is not None:
                check(args, kwargs)
            body = dumps(args, kwargs, kind, rules.cipher)
            if len(body) > limit:
                raise too_large(task.name, body, limit)
            bodies.append(body)
        if first is None:
            args, kwargs = _arguments(some[0])
            first = sender.message(
                rules, task.name, task, args, kwargs, options, body=bodies[0]
            )
        yield Alike(first, new_ids(len(bodies)), bodies)


def _each(
    sender: Sender,
    task: Task[..., Any],
    calls: Iterable[Sequence[Any] | Mapping[str, Any]],
    options: dict[str, Any],
) -> Iterator[Message]:
    rules = sender.rules()
    checks = sender.defaults(rules, task.name, task).checks_arguments
    for call in calls:
        args, kwargs = _arguments(call)
        if checks:
            task.check_arguments(args, kwargs)
        yield sender.message(rules, task.name, task, args, kwargs, options)


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


def _messages_of(sender: Sender, sigs: Iterable[Signature[Any]]) -> Iterator[Message | Alone]:
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
        kind = defaults.template.content_type
        body = serializers.dumps_call(args, kwargs, kind, rules.cipher)
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
