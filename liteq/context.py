"""The request: what a running task knows about its own attempt.

`self.request` is a `Context`. The contexts of the tasks that run now, one inside the
other, are a stack that belongs to the thread or to the asyncio task, so several tasks
can run in one process and each sees its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from threading import local
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import ref

if TYPE_CHECKING:
    from liteq.brokers.values import Said
    from liteq.exceptions import Replaced, Retry
    from liteq.message import Message, Packed

__all__ = [
    "Context",
    "Report",
    "current",
    "is_running",
    "log_fields",
    "noted",
    "outside",
    "pop",
    "push",
    "stack",
]

# Takes what a task says; true if the worker is to stop, and can be left with what was said.
Report: TypeAlias = "Callable[[Said], bool]"


class _Stored:
    """An attribute that is read from the message, unless the context has its own.

    A descriptor without `__set__`: an entry in the context's `__dict__` goes before it,
    so that a context costs nothing for what its task never looks at.
    """

    __slots__ = ("_default", "_read")

    def __init__(self, read: Callable[[Message], Any], default: Any = None) -> None:
        self._read = read
        self._default = default

    def __get__(self, context: Context | None, owner: type[Context]) -> Any:
        if context is None:
            return self._default
        message = context.message
        return self._default if message is None else self._read(message)


class _Checkpoint:
    """The same for the checkpoint, whose secrets the app of the task has the keys for: of
    a call that failed, that of the error callback which is told of it."""

    def __get__(self, context: Context | None, owner: type[Context]) -> Any:
        message = None if context is None else context.message
        if context is None or message is None or message.checkpoint is None:
            return None
        from liteq import checkpoints  # late: few tasks have any

        running = context if context._task is not None else current()
        app = getattr(running and running._task, "app", None)
        return checkpoints.read(message.checkpoint, None if app is None else app.cipher)


class Context:
    """One attempt, or one direct call, of a task: Celery's attributes under its names.

    What is not known has its default: a task that is called as a function sees
    `called_directly` True and no `id`. The caller's own headers are attributes as well,
    unless their names are taken: `get("tenant")`. `deliveries` counts the starts of this
    message since it was sent or retried, from 1, and earlier ones that were put back
    (`Reject(requeue=True)`); `checkpoint` is what this attempt or an earlier one last gave to
    `Task.checkpoint()`, else None; `report` sends what the task says about itself, and is
    None where nobody listens.
    """

    id: str | None = None
    task: str | None = None
    args: Any = None
    kwargs: Any = None
    retries: int = 0
    hostname: str | None = None
    is_eager: bool = False
    called_directly: bool = True
    deliveries: int = 0
    report: Report | None = None
    retry: Retry | None = None  # asked for with `throw=False`
    replaced: Replaced | None = None  # asked for with `replace()`
    added: Any = None  # what `add_to_chord()` adds when the attempt ends well
    body_called: bool = False  # by an overridden `__call__`
    given_up: BaseException | None = None  # by `retry(max_retries=…)`
    interrupted: bool = False  # told by `checkpoint()` to end and go on in another worker
    waited: bool = False  # for other messages, before it was due
    rewritten: bool = False  # its message is another than was delivered
    run: Any = None  # of one in a run of many: what all of them share (see `liteq.batch.Run`)
    ending: Any = None  # and its own value and error, () until it is told
    _task: Any = None  # the object that runs; `task` is its name, which apps may share
    _packed: Packed | None = None
    _message: Message | None = None
    _children: list[Any] | None = None
    _delivery_info: dict[str, Any] | None = None

    # Rows in the store, not parts of the message: see Broker.enqueue.
    callbacks: Any = None
    errbacks: Any = None
    chain: Any = None

    # The same for every task.
    utc: bool = True
    lang: str = "py"
    logfile: str | None = None
    loglevel: int | None = None

    root_id = _Stored(lambda message: message.root_id or message.id)
    parent_id = _Stored(lambda message: message.parent_id)
    group = _Stored(lambda message: message.group_id)
    chord = _Stored(lambda message: message.gather)  # the id of the header that it is in
    group_index = _Stored(lambda message: message.group_index)
    eta = _Stored(lambda message: _iso(message.run_at))
    expires = _Stored(lambda message: _iso(message.expires_at))
    timelimit = _Stored(lambda message: [message.time_limit, message.soft_time_limit])
    time_limit = _Stored(lambda message: message.time_limit)
    soft_time_limit = _Stored(lambda message: message.soft_time_limit)
    correlation_id = _Stored(lambda message: _property(message, "correlation_id", message.id))
    reply_to = _Stored(lambda message: message.reply_to)
    origin = _Stored(lambda message: message.origin)
    headers = _Stored(lambda message: message.headers and dict(message.headers))
    properties = _Stored(lambda message: dict(message.properties or {}))
    shadow = _Stored(lambda message: message.shadow)
    ignore_result = _Stored(lambda message: bool(message.ignore_result), default=False)
    replaced_task_nesting = _Stored(lambda message: message.replaced_task_nesting, default=0)
    stamps = _Stored(lambda message: dict(message.stamps or {}))
    stamped_headers = _Stored(
        lambda message: None if message.stamped_headers is None else [*message.stamped_headers]
    )
    argsrepr = _Stored(lambda message: message.argsrepr)
    kwargsrepr = _Stored(lambda message: message.kwargsrepr)
    checkpoint = _Checkpoint()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.update(*args, **kwargs)

    @classmethod
    def of(
        cls,
        packed: Packed,
        number: int,
        args: Any,
        kwargs: Any,
        *,
        message: Message | None = None,
        task: Any = None,
        hostname: str | None = None,
        report: Report | None = None,
        is_eager: bool = False,
    ) -> Context:
        """Return the context of delivery `number` of a packed message. `message`: the same
        unpacked, None for a usual one (see `Message.unpack_unusual`); `task`: the object that
        runs it.

        A usual one is unpacked only when something is read that is not set here: doing it
        always would cost more than all the rest of a short task.
        """
        # Attribute by attribute: CPython then makes no dict at all for the instance.
        context = cls.__new__(cls)
        context.id = packed[0]
        context.task = packed[1]
        context.args = args
        context.kwargs = kwargs
        context.retries = packed[7]
        context.deliveries = number
        context.hostname = hostname
        context.report = report
        context.called_directly = False
        context._task = task
        context._packed = packed
        if message is not None:
            context._message = message
            context.deliveries += message.requeued
        if is_eager:
            context.is_eager = True
        return context

    @property
    def message(self) -> Message | None:
        """The message of this attempt; None in a direct call."""
        if self._message is None and self._packed is not None:
            from liteq.message import Message  # late: who runs it has it, and none else

            self._message = Message.unpack(self._packed)
        return self._message

    def rewrite(self, message: Message) -> bool:
        """Have the next attempt be of this message, which differs by its envelope alone. Tell
        whether it could be another worker's at once, since this one is to stop."""
        self._message = message
        self.rewritten = True
        if self.report is None:
            return False
        from liteq.brokers.values import Rewrite  # late: few tasks do it

        return self.report(Rewrite(message.pack()[-1]))

    @property
    def children(self) -> list[Any]:
        """What this attempt enqueued, in order; grows in place."""
        if self._children is None:
            self._children = []
        return self._children

    @children.setter
    def children(self, trail: Any) -> None:
        self._children = list(trail or ())

    @property
    def trail(self) -> list[Any] | None:
        """The same, but None if there is nothing."""
        return self._children or None

    @property
    def taskset(self) -> Any:
        """Celery's older name for `group`."""
        return self.group

    @property
    def delivery_info(self) -> dict[str, Any]:
        """How the message came, in the words of a message server."""
        return self._delivery_info or _delivery_info(self)

    @delivery_info.setter
    def delivery_info(self, told: Any) -> None:
        self._delivery_info = told

    if not TYPE_CHECKING:  # a misspelt attribute stays an error to those who check types

        def __getattr__(self, name: str) -> Any:
            # Only what is found nowhere else comes here, so no attribute costs more for it.
            headers = self.headers
            if headers and name in headers:
                return headers[name]
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self
            )

    def get(self, key: str, default: Any = None) -> Any:
        """Return an attribute, or one of the headers, by name."""
        return getattr(self, key, default)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set attributes, as `dict.update` takes them."""
        for name, value in dict(*args, **kwargs).items():
            setattr(self, name, value)

    def clear(self) -> None:
        """Make every attribute its default."""
        self.__dict__.clear()

    def as_execution_options(self) -> dict[str, Any]:
        """Return the options of `apply_async` that call the task again as it was called."""
        options: dict[str, Any] = {
            "task_id": self.id,
            "root_id": self.root_id,
            "parent_id": self.parent_id,
            "group_id": self.group,
            "group_index": self.group_index,
            "chain": self.chain,
            "link": self.callbacks,
            "link_error": self.errbacks,
            "expires": self.expires,
            "time_limit": self.time_limit,
            "soft_time_limit": self.soft_time_limit,
            "headers": self.headers,
            "retries": self.retries,
            "reply_to": self.reply_to,
            "shadow": self.shadow,
            "origin": self.origin,
            "replaced_task_nesting": self.replaced_task_nesting,
        }
        if self.stamped_headers:
            options["stamped_headers"] = self.stamped_headers
            options.update(self.stamps or {})
        return options

    def __repr__(self) -> str:
        shown = {k: v for k, v in self.__dict__.items() if not k.startswith("_")}
        # Arguments may hold secrets, and a context ends up in logs; how the child tells of
        # its progress is the worker's.
        for name in ("args", "kwargs", "report", "run"):
            shown.pop(name, None)
        if self._packed is not None:
            shown["delivery_info"] = self.delivery_info
        return f"<Context: {shown!r}>"


_stack: ContextVar[tuple[Context, ...]] = ContextVar("liteq.contexts", default=())


def push(context: Context) -> Token[tuple[Context, ...]]:
    """Make a context the current one, until `pop()` is given what this returns."""
    return _stack.set((*_stack.get(), context))


def pop(token: Token[tuple[Context, ...]]) -> None:
    """Make the context current again that was so before the `push()`."""
    _stack.reset(token)


def current() -> Context | None:
    """Return the context of the task that runs here; None if none does."""
    contexts = _stack.get()
    return contexts[-1] if contexts else None


def log_fields() -> dict[str, Any] | None:
    """Return what the log says about the task whose code is writing to it; None outside of
    an attempt. A task that it calls as a function is a part of it."""
    for running in reversed(_stack.get()):
        if running.id is not None:
            message = running.message
            return {
                "task": running.task,
                "task_name": running.task,
                "task_id": running.id,
                "root_id": running.root_id,
                "queue": None if message is None else message.queue,
                "attempt": running.retries + running.deliveries,
                "worker": running.hostname,
            }
    return None


def noted(request: Context | None, name: str) -> Any:
    """Return what was set on a request under this name, None if nothing was: no header of the
    caller's stands for it."""
    return None if request is None else vars(request).get(name)


def stack() -> tuple[Context, ...]:
    """Return the contexts of the tasks that run here, the innermost last."""
    return _stack.get()


class _Outside(local):
    """The requests of tasks that do not run. Each thread has its own, or one would see what
    another sets."""

    def __init__(self) -> None:
        # By the task's id, until it goes: one that compares as a dataclass cannot be a key.
        self.requests: dict[int, tuple[ref[Any], Context]] = {}


_outside = _Outside()


def is_running(request: Context) -> bool:
    """Tell whether this is the request of something that runs here, and not of `outside()`."""
    return any(request is running for running in _stack.get())


def outside(task: Any) -> Context:
    """Return the request of a task where it does not run: in a thread the same each time, so
    that what a unit test sets on it is seen by `task.run()`. Inside of an attempt of another
    task it is a new one, lest what is set there reach the attempts after it."""
    if any(not running.called_directly for running in _stack.get()):
        return Context(task=task.name)
    requests, key = _outside.requests, id(task)
    if key not in requests:
        going = ref(task, lambda _: requests.pop(key, None))
        requests[key] = going, Context(task=task.name)
    return requests[key][1]


def _iso(moment: float | None) -> str | None:
    from liteq.wording import instant  # late: few tasks ask

    found = instant(moment)
    return None if found is None else found.isoformat()


def _property(message: Message, name: str, default: Any) -> Any:
    properties: Mapping[str, Any] = message.properties or {}
    return properties.get(name, default)


def _delivery_info(context: Context) -> dict[str, Any]:
    message = context.message
    if message is None:
        return {}
    told: dict[str, Any] = {
        "exchange": "",
        "routing_key": message.queue,
        "priority": message.priority,
        "redelivered": context.deliveries > 1,
    }
    if context.is_eager:
        told["is_eager"] = True
    return told
