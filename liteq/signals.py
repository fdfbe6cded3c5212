"""Signals: how a program hears what liteq does, with Celery's names and arguments.

A signal without receivers costs one test of an empty list; its senders write

    if task_prerun.receivers:
        task_prerun.send(task, task_id=…, …)

Receivers are called in the order of their connection, in the process and thread that
sends. What they raise is logged and goes no further. `SystemExit` and its like go through
where they may be meant to end a program, or a process that starts (`send`), and are logged
where a worker or a task would suffer (`tell`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeAlias, TypeVar, overload
from weakref import WeakMethod, ref

__all__ = [
    "RAISED",
    "Signal",
    "after_setup_logger",
    "after_setup_task_logger",
    "after_task_publish",
    "beat_embedded_init",
    "beat_init",
    "before_task_publish",
    "celeryd_after_setup",
    "celeryd_init",
    "heartbeat_sent",
    "import_modules",
    "setup_logging",
    "task_dead",
    "task_failure",
    "task_internal_error",
    "task_postrun",
    "task_prerun",
    "task_received",
    "task_rejected",
    "task_retry",
    "task_revoked",
    "task_success",
    "task_unknown",
    "user_preload_options",
    "worker_before_create_process",
    "worker_init",
    "worker_process_init",
    "worker_process_shutdown",
    "worker_ready",
    "worker_shutdown",
    "worker_shutting_down",
]

RAISED: Final = "Receiver %r of %s raised"

# Is told which receiver of which signal raised what.
Log: TypeAlias = Callable[[Any, str, BaseException], None]

_Receiver = TypeVar("_Receiver", bound=Callable[..., Any])

_VAR_KEYWORDS: Final = 0x08  # the code flag of a function that takes **kwargs (inspect's)


class Connection:
    """One receiver of one signal.

    The sender it listens to is held strongly: senders are tasks and apps, which live as
    long as the program, while a bare id could come to mean another object.
    """

    __slots__ = ("key", "sender", "target")

    def __init__(self, key: object, sender: Any, target: Callable[[], Any]) -> None:
        self.key = key
        self.sender = sender
        self.target = target

    @property
    def dispatch_uid(self) -> Any:
        return self.key[1] if isinstance(self.key, tuple) and self.key[0] == "uid" else None

    def hears(self, sender: Any) -> bool:
        """Tell whether a signal from this sender is for this receiver."""
        return self.sender is None or _same(self.sender, sender)


class Signal:
    """A kind of event that functions can be connected to.

    `providing_args` names what `send()` passes. No lock is taken anywhere: the list of
    receivers is only appended to and removed from, which is atomic among threads, and
    a fork can therefore never leave a child with a lock that nobody opens.
    """

    __slots__ = ("__weakref__", "name", "providing_args", "receivers")

    def __init__(self, name: str = "", providing_args: Iterable[str] = ()) -> None:
        self.name = name
        self.providing_args = frozenset(providing_args)
        self.receivers: list[Connection] = []

    @overload
    def connect(
        self,
        receiver: _Receiver,
        sender: Any = None,
        weak: bool = True,  # noqa: FBT001, FBT002 (Celery)
        dispatch_uid: Any = None,
        retry: bool = False,  # noqa: FBT001, FBT002
    ) -> _Receiver: ...
    @overload
    def connect(
        self,
        receiver: None = None,
        sender: Any = None,
        weak: bool = True,  # noqa: FBT001, FBT002 (Celery)
        dispatch_uid: Any = None,
        retry: bool = False,  # noqa: FBT001, FBT002
    ) -> Callable[[_Receiver], _Receiver]: ...
    def connect(
        self,
        receiver: Any = None,
        sender: Any = None,
        weak: bool = True,  # noqa: FBT001, FBT002 (Celery's signature)
        dispatch_uid: Any = None,
        retry: bool = False,  # noqa: FBT001, FBT002
    ) -> Any:
        """Call a function whenever the signal is sent; also as `@signal.connect`.

        sender: hear this sender alone, a task or its name. weak: the function is
        forgotten when nothing else refers to it, so a function made inside another one
        needs `weak=False`. dispatch_uid: connect once under this key, whatever the
        function; without it the same function is connected once per sender. retry is
        accepted for Celery's sake: a receiver that fails is logged, not called again.

        Returns the receiver. Raises `TypeError` if it is not callable and `ValueError`
        if it takes no `**kwargs`, which keeps later arguments from breaking it.
        """
        if receiver is None:
            return lambda fun: self.connect(fun, sender, weak, dispatch_uid, retry)
        if not callable(receiver):
            raise TypeError(f"a receiver of {self.name} must be callable: {receiver!r}")
        if not _takes_kwargs(receiver):
            raise ValueError(
                f"a receiver of {self.name} must accept keyword arguments it does not "
                f"know: add **kwargs to {receiver!r}"
            )
        key = _key(receiver, dispatch_uid)
        # Dead ones are swept here too: the collector's call-back may have come too early.
        for connection in list(self.receivers):
            if connection.target() is None:
                self._drop(connection)
            elif connection.key == key and _same(connection.sender, sender):
                return receiver
        if weak:
            self._connect_weakly(key, sender, receiver)
        else:
            self.receivers.append(Connection(key, sender, lambda: receiver))
        return receiver

    def disconnect(
        self,
        receiver: Any = None,
        sender: Any = None,
        weak: Any = None,
        dispatch_uid: Any = None,
    ) -> bool:
        """Undo a `connect()` with the same receiver or dispatch_uid, and sender.

        Returns whether there was one. `weak` is accepted and means nothing.
        """
        key = _key(receiver, dispatch_uid)
        found = False
        for connection in list(self.receivers):
            if connection.key == key and _same(connection.sender, sender):
                self._drop(connection)
                found = True
        return found

    def has_listeners(self, sender: Any = None) -> bool:
        """Tell whether a signal from this sender would be heard."""
        return any(
            connection.hears(sender) and connection.target() is not None
            for connection in self.receivers
        )

    def send(self, sender: Any, **named: Any) -> list[tuple[Any, Any]]:
        """Call every receiver with `signal`, `sender` and these arguments.

        Returns pairs of receiver and what it returned, or the `Exception` it raised,
        which is logged with its traceback. `SystemExit` and its like go through.
        """
        return self.deliver(sender, named, Exception, _log)

    def tell(self, sender: Any, **named: Any) -> list[tuple[Any, Any]]:
        """Do what `send` does, and let nothing through: not `SystemExit` either."""
        return self.deliver(sender, named, BaseException, _log)

    send_robust = send  # Django's name for the same

    def __repr__(self) -> str:
        return f"<Signal: {self.name} providing_args={sorted(self.providing_args)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy as a signal without receivers: those belong to a process."""
        return Signal, (self.name, tuple(sorted(self.providing_args)))

    def deliver(
        self, sender: Any, named: Mapping[str, Any], caught: type[BaseException], log: Log
    ) -> list[tuple[Any, Any]]:
        """Do what `send` does. Of what a receiver raises, only what is `caught` goes no
        further; `log` is told of it."""
        answers: list[tuple[Any, Any]] = []
        for connection in list(self.receivers):
            if not connection.hears(sender):
                continue
            receiver = connection.target()
            if receiver is None:
                continue
            try:
                answer = receiver(signal=self, sender=sender, **named)
            except caught as exc:  # the user's code: what it raises must stop nothing
                log(receiver, self.name, exc)
                answer = exc
            answers.append((receiver, answer))
        return answers

    def _connect_weakly(self, key: object, sender: Any, receiver: Any) -> None:
        def forget(_: Any) -> None:
            self._drop(connection)

        reference = WeakMethod if hasattr(receiver, "__self__") else ref
        try:
            target = reference(receiver, forget)
        except TypeError:  # a built-in or a slotted instance: it cannot be referred to weakly
            connection = Connection(key, sender, lambda: receiver)
        else:
            connection = Connection(key, sender, target)
        self.receivers.append(connection)

    def _drop(self, connection: Connection) -> None:
        with suppress(ValueError):  # the collector or another thread was quicker
            self.receivers.remove(connection)


def _log(receiver: Any, name: str, exc: BaseException) -> None:
    from liteq.loggers import get_logger  # late: a bug of the user's

    get_logger("liteq.signals").error(RAISED, receiver, name, exc_info=exc)


def _key(receiver: Any, dispatch_uid: Any) -> object:
    """Return what two connections of one receiver have in common.

    A bound method is a new object at every access, so it is known by its parts.
    """
    if dispatch_uid is not None:
        return ("uid", dispatch_uid)
    owner = getattr(receiver, "__self__", None)
    if owner is not None:
        return (id(owner), id(getattr(receiver, "__func__", receiver)))
    return id(receiver)


def _same(one: Any, other: Any) -> bool:
    """Tell whether two senders are one: the same object, or a task and its name."""
    if one is other:
        return True
    if isinstance(one, str):
        return one == (other if isinstance(other, str) else getattr(other, "name", None))
    if isinstance(other, str):
        return bool(getattr(one, "name", None) == other)
    return False


def _takes_kwargs(receiver: Any) -> bool:
    fun = getattr(receiver, "__func__", receiver)
    code = getattr(fun, "__code__", None)
    if code is not None and not hasattr(fun, "__wrapped__"):
        return bool(code.co_flags & _VAR_KEYWORDS)
    import inspect  # late: only for callables that are not plain functions

    try:
        parameters = inspect.signature(receiver).parameters.values()
    except (TypeError, ValueError):
        return True  # a built-in that does not tell
    return any(p.kind is p.VAR_KEYWORD for p in parameters)


# Sending. The sender is the task's name.
before_task_publish = Signal(
    "before_task_publish",
    {"body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy"},
)
after_task_publish = Signal(
    "after_task_publish", {"body", "exchange", "routing_key", "headers"}
)

# One task's life, in the worker's main process. The sender is the worker.
task_received = Signal("task_received", {"request"})
task_revoked = Signal("task_revoked", {"request", "terminated", "signum", "expired"})
task_rejected = Signal("task_rejected", {"message", "exc"})
task_unknown = Signal("task_unknown", {"message", "exc", "name", "id"})

# liteq's own: a message became a dead letter. `reason` says why, `id` and `name` which.
task_dead = Signal("task_dead", {"id", "name", "reason"})

# One task's life, where it runs. The sender is the task.
task_prerun = Signal("task_prerun", {"task_id", "task", "args", "kwargs"})
task_postrun = Signal("task_postrun", {"task_id", "task", "args", "kwargs", "retval", "state"})
task_success = Signal("task_success", {"result", "runtime"})
task_retry = Signal("task_retry", {"request", "reason", "einfo"})
task_failure = Signal(
    "task_failure", {"task_id", "exception", "args", "kwargs", "traceback", "einfo"}
)
task_internal_error = Signal(
    "task_internal_error",
    {"task_id", "args", "kwargs", "request", "exception", "traceback", "einfo"},
)

# The worker.
celeryd_init = Signal("celeryd_init", {"instance", "conf", "options"})
celeryd_after_setup = Signal("celeryd_after_setup", {"instance", "conf"})
import_modules = Signal("import_modules")
worker_init = Signal("worker_init")
worker_ready = Signal("worker_ready")
worker_before_create_process = Signal("worker_before_create_process")
worker_process_init = Signal("worker_process_init")
worker_process_shutdown = Signal("worker_process_shutdown", {"pid", "exitcode"})
worker_shutting_down = Signal("worker_shutting_down", {"sig", "how", "exitcode"})
worker_shutdown = Signal("worker_shutdown")
heartbeat_sent = Signal("heartbeat_sent")

# Logging. A receiver of setup_logging does all of it, and liteq none.
setup_logging = Signal("setup_logging", {"loglevel", "logfile", "format", "colorize"})
after_setup_logger = Signal(
    "after_setup_logger", {"logger", "loglevel", "logfile", "format", "colorize"}
)
after_setup_task_logger = Signal(
    "after_setup_task_logger", {"logger", "loglevel", "logfile", "format", "colorize"}
)

# Beat and the command line.
beat_init = Signal("beat_init")
beat_embedded_init = Signal("beat_embedded_init")
user_preload_options = Signal("user_preload_options", {"app", "options"})
