"""The app: the tasks of a program, its settings, and the store they are sent to.

A call takes one road: `Task.delay` → `Liteq.send_call` → `Message` → `Broker.enqueue`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, tzinfo
from importlib import import_module
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeVar,
    overload,
)

from liteq import brokers, context, current, eager, names, publishing, serializers, signals
from liteq.calls import Defaults, lifetime, merge, with_options
from liteq.canvas import Signature, as_list, maybe_signature, signature
from liteq.clock import Clock, system_clock
from liteq.config import Settings
from liteq.exceptions import (
    AlwaysEagerIgnored,
    BrokerUnavailable,
    DuplicateTaskNameWarning,
    ImproperlyConfigured,
    MessageTooLarge,
)
from liteq.ids import new_id
from liteq.local import Proxy
from liteq.message import Edge, Message
from liteq.offload import off_loop
from liteq.options import (
    TASK_OPTIONS,
    CallOptions,
    TaskOptions,
    checked_limits,
    checked_priority,
    expires_at,
    refuse_unknown,
)
from liteq.registry import TaskRegistry
from liteq.result import AsyncResult, EagerResult
from liteq.routes import Router
from liteq.task import AsyncTask, BoundTask
from liteq.task import Task as _Task  # `Task` is a property of the app

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self, Unpack

    from liteq.brokers.base import Broker

__all__ = ["Liteq", "shared_task"]

logger = logging.getLogger("liteq.app")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=_Task[..., Any])

_DISABLED = ("disabled", "disabled://")


class _Decorator(Protocol):
    """What `app.task(…)` returns: a decorator of functions."""

    @overload
    def __call__(self, fun: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, fun: Callable[P, R], /) -> _Task[P, R]: ...


class _BoundDecorator(Protocol):
    """What `app.task(bind=True, …)` returns: the function takes the task first."""

    @overload
    def __call__(
        self, fun: Callable[Concatenate[BoundTask, P], Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, fun: Callable[Concatenate[BoundTask, P], R], /) -> _Task[P, R]: ...


class _Settings(Settings):
    """Settings that count their changes, so that what was worked out of them is known to
    be stale."""

    _revision = 0

    @property
    def revision(self) -> int:
        """A number that is another one after every change. Reading it loads."""
        if self._values is None:
            self._load()
        return self._revision

    def _change(self, key: str, value: Any) -> None:
        super()._change(key, value)
        self._revision += 1

    def _load(self) -> None:
        super()._load()
        self._revision += 1


class _Rules(NamedTuple):
    """What sending needs of the settings, worked out once for each revision of them."""

    revision: int
    router: Router
    zone: tzinfo | None
    always_eager: bool
    inherits_priority: bool
    max_body_size: int
    keeps_results: bool
    publish_retry: bool


class Liteq:
    """An app. Nothing is read or opened before it is needed.

    `main`: its name, which also names the store. `broker`: the store's URL (default: an
    SQLite store beside the file that makes the app). `backend`: the same store, or None
    to keep no results. `include`: modules with tasks, imported by workers. Any further
    keyword is a setting. The app becomes the current one unless `set_as_current` is off.
    """

    task_cls: ClassVar[Any] = _Task

    def __init__(
        self,
        main: str | None = None,
        broker: str | Sequence[str] | None = None,
        backend: str | None = "",
        include: Iterable[str] | None = None,
        *,
        set_as_current: bool = True,
        task_cls: type[_Task[..., Any]] | str | None = None,
        autofinalize: bool = True,
        config_source: Any = None,
        namespace: str | None = None,
        strict_typing: bool = True,
        changes: Mapping[str, Any] | None = None,
        clock: Clock = system_clock,
        **conf: Any,
    ) -> None:
        module, file = _creator()
        self.module = module
        self.main = main or _stem(file)
        self.clock = clock
        self.autofinalize = autofinalize
        self.finalized = False
        self._home = os.path.dirname(os.path.abspath(file)) if file else os.getcwd()
        self._lock = threading.RLock()  # the broker must be made once among threads
        self._tasks = TaskRegistry()
        self._broker: Broker | None = None
        self._rules_now: _Rules | None = None
        self._discoveries: list[Callable[[], None]] = []
        self._task_class: type[_Task[..., Any]] | None = None
        self.on_configure = signals.Signal("on_configure")
        self.on_after_configure = signals.Signal("on_after_configure", ("source",))
        self.on_after_finalize = signals.Signal("on_after_finalize")
        self.on_after_fork = signals.Signal("on_after_fork")
        if task_cls is not None:
            self.task_cls = task_cls  # type: ignore[misc]  # this app's own
        given = {"broker_url": broker, "include": tuple(include) if include else None}
        settings = {**(changes or {}), **conf}
        settings.update({name: value for name, value in given.items() if value is not None})
        if backend != "":
            settings["result_backend"] = "disabled://" if backend is None else backend
        if not strict_typing:
            settings["strict_typing"] = False
        self.conf: _Settings = _Settings(
            settings, directory=self._home, on_load=self._configured
        )
        if config_source is not None:
            self.config_from_object(config_source, namespace=namespace)
        current.enter_app(self)
        if set_as_current:
            self.set_current()
        self.on_init()

    def on_init(self) -> None:
        """Called at the end of `__init__`, for subclasses."""

    # Tasks

    @overload
    def task(self, fun: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def task(self, fun: Callable[P, R], /) -> _Task[P, R]: ...
    @overload
    def task(
        self, *, base: type[T], bind: bool = ..., **options: Unpack[TaskOptions]
    ) -> Callable[[Callable[..., Any]], T]: ...
    @overload
    def task(
        self, *, bind: Literal[True], base: None = None, **options: Unpack[TaskOptions]
    ) -> _BoundDecorator: ...
    @overload
    def task(
        self,
        *,
        bind: Literal[False] = False,
        base: None = None,
        **options: Unpack[TaskOptions],
    ) -> _Decorator: ...
    def task(self, fun: Any = None, **options: Any) -> Any:
        """Make a task of a function: `@app.task`, or `@app.task(option=…)`.

        `bind`: the function takes the task as its first argument. `base`: the class of
        the task. The other options are those of `Task`. A second function under a name
        that is taken is dropped with a `DuplicateTaskNameWarning`: the first one stays.
        Raises `TypeError` for an option that does not exist.
        """
        if fun is not None and not callable(fun):
            raise TypeError(f"app.task takes a function, and options by keyword, not {fun!r}")
        _refuse_unknown_options(options)
        if fun is not None:
            return self._task_from_fun(fun, **options)
        return lambda fun: self._task_from_fun(fun, **options)

    def register_task(self, task: Any, **options: Any) -> Any:
        """Register a task object or class, in place of one that has its name."""
        _refuse_unknown_options(options, task if isinstance(task, type) else type(task))
        if isinstance(task, type):
            task = task()
        for name, value in options.items():
            setattr(task, name, value)
        if not task.name:
            kind = type(task)
            task.name = self.gen_task_name(kind.__name__, kind.__module__)
        task.app = self
        self._tasks[task.name] = task
        task.on_bound(self)
        return task

    @property
    def tasks(self) -> TaskRegistry:
        """The tasks by name; a missing one raises `NotRegistered`."""
        if not self.finalized:
            self.finalize(auto=True)
        return self._tasks

    @property
    def Task(self) -> type[_Task[..., Any]]:  # noqa: N802 (Celery's name)
        """The base class of this app's tasks."""
        if self._task_class is None:
            kind = self.task_cls
            if isinstance(kind, str):
                module, _, name = kind.replace(":", ".").rpartition(".")
                kind = getattr(import_module(module), name)
            self._task_class = kind if kind is _Task else type(kind)(
                kind.__name__,
                (kind,),
                {"app": self, "abstract": True, "__module__": kind.__module__},
            )
        return self._task_class

    def gen_task_name(self, name: str, module: str) -> str:
        """Return the name of a task whose function has this name and module.

        A script that is run is `__main__` there and `tasks`, say, in a worker: the name
        is the same in both. At a prompt, where there is no module, the app's name stands.
        """
        if names.is_main(module):
            module = names.main_name()
            if names.is_main(module) and module.startswith("__"):
                module = self.main or module
        return f"{module}.{name}"

    def finalize(self, auto: bool = False) -> None:  # noqa: FBT001, FBT002 (Celery's)
        """Add the shared tasks: the app is complete. Called when its tasks are asked for."""
        if self.finalized:
            return
        if auto and not self.autofinalize:
            raise RuntimeError("the app was used before app.finalize() was called")
        with self._lock:
            if self.finalized:
                return
            self.finalized = True
            for construct in current.finalizers():
                construct(self)
        self.on_after_finalize.send(sender=self)

    # Finding tasks

    def autodiscover_tasks(
        self,
        packages: Iterable[str] | Callable[[], Iterable[str]] | None = None,
        related_name: str | None = "tasks",
        force: bool = False,  # noqa: FBT001, FBT002 (Celery's signature)
    ) -> None:
        """Have workers import the module `related_name` of each of these packages.

        With `force`, at once. Without packages, those of the Django apps. A package
        without such a module is passed over; one that does not exist raises
        `ModuleNotFoundError`.
        """

        def discover() -> None:
            given = packages() if callable(packages) else packages
            for package in _django_apps() if given is None else given:
                _import_related(package, related_name)

        if force:
            discover()
        else:
            self._discoveries.append(discover)

    def import_default_modules(self) -> None:
        """Import the modules of `imports` and `include`, and what is to be discovered."""
        for name in (*self.conf.imports, *self.conf.include):
            import_module(name)
        for discover in self._discoveries:
            discover()
        if signals.import_modules.receivers:
            signals.import_modules.send(sender=self)

    loader_import_default_modules = import_default_modules

    # Settings

    def config_from_object(
        self,
        obj: Any,
        silent: bool = False,  # noqa: FBT001, FBT002 (Celery's signature)
        force: bool = False,  # noqa: FBT001, FBT002
        namespace: str | None = None,
    ) -> bool:
        """Take settings from a module (or its name), an object, a class or a dict; see
        `Settings.config_from_object`."""
        return self.conf.config_from_object(obj, silent, force, namespace)

    def config_from_envvar(
        self,
        variable_name: str,
        silent: bool = False,  # noqa: FBT001, FBT002 (Celery's signature)
        force: bool = False,  # noqa: FBT001, FBT002
    ) -> bool:
        """Take settings from the module that an environment variable names."""
        return self.conf.config_from_envvar(variable_name, silent, force)

    def config_from_cmdline(self, argv: Iterable[str], namespace: str = "celery") -> None:
        """Set from `key=value` words."""
        self.conf.config_from_cmdline(argv, namespace)

    def add_defaults(
        self, fun: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    ) -> None:
        """Add settings that all others override."""
        self.conf.add_defaults(fun)

    @property
    def timezone(self) -> tzinfo:
        """The zone in which naive datetimes are read."""
        zone = self._rules().zone
        if zone is not None:
            return zone
        local = datetime.now(UTC).astimezone().tzinfo
        return local if local is not None else UTC

    def now(self) -> datetime:
        """Return the time now, in the app's zone."""
        return datetime.fromtimestamp(self.clock.now(), self.timezone)

    def either(self, default_key: str, *defaults: Any) -> Any:
        """Return the first of the defaults that is not None, else the setting."""
        given = next((value for value in defaults if value is not None), None)
        return self.conf[default_key] if given is None else given

    def bugreport(self) -> str:
        """Return versions and settings as text, without secrets."""
        import platform  # late: 5 ms, and only a report needs it

        from liteq import __version__  # late: the package is above all its modules

        return (
            f"liteq {__version__} · Python {platform.python_version()} · "
            f"{platform.platform()}\napp: {self.main} · store: {self.broker!r}\n"
            f"{self.conf.humanize(with_defaults=False, censored=True)}"
        )

    # The store

    @property
    def broker(self) -> Broker:
        """The store, which is made at first use and opened at its own."""
        if self._broker is None:
            with self._lock:
                if self._broker is None:
                    self._broker = self._connect()
        return self._broker

    @broker.setter
    def broker(self, broker: Broker) -> None:
        self._broker = broker

    @property
    def backend(self) -> Broker:
        """The store, which keeps the results too."""
        return self.broker

    @property
    def broker_url(self) -> str:
        """The URL of the store: the setting, or the default beside the program."""
        url = self.conf.broker_url
        if not url:
            return f"sqlite://{self._home}/{self.main}.liteq"
        if isinstance(url, (list, tuple)):
            return str(url[0])
        return str(url).partition(";")[0]

    def select_queues(self, queues: Iterable[str] | str | None = None) -> tuple[str, ...]:
        """Return the names of queues to consume: these, else those of `task_queues`, else
        the default one. Raises `ImproperlyConfigured` for one that is not declared, if
        missing queues are not to be created."""
        router = self.router
        if not queues:
            return tuple(router.queues) or (router.default_queue,)
        wanted = queues.split(",") if isinstance(queues, str) else queues
        wanted = tuple(dict.fromkeys(name.strip() for name in wanted if name.strip()))
        if not self.conf.task_create_missing_queues:
            known = {*router.queues, router.default_queue}
            if missing := [name for name in wanted if name not in known]:
                raise ImproperlyConfigured(
                    f"queue {missing[0]!r} is not in task_queues ({', '.join(sorted(known))}), "
                    "and task_create_missing_queues is off"
                )
        return wanted

    @property
    def router(self) -> Router:
        """The routing rules."""
        return self._rules().router

    def close(self) -> None:
        """Close the store. The app may be used again."""
        if self._broker is not None:
            self._broker.close()

    # Sending

    def send_call(
        self,
        task: _Task[P, R],
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: dict[str, Any],
    ) -> AsyncResult[R]:
        """Send a call of a task; see `Task.apply_async`."""
        rules = self._rules()
        if rules.always_eager:
            return self._eager_call(task, args, kwargs, options)
        messages, edges = self._compose_call(rules, task, args, kwargs, options)
        self.send(messages, edges, options)
        return self._sent(messages[0], options, task)

    async def asend_call(
        self,
        task: _Task[P, R],
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: dict[str, Any],
    ) -> AsyncResult[R]:
        """Send a call of a task; the store is written to off the event loop."""
        rules = self._rules()
        if rules.always_eager:
            return await off_loop(self._eager_call, task, args, kwargs, options)
        messages, edges = self._compose_call(rules, task, args, kwargs, options)
        await off_loop(self.send, messages, edges, options)
        return self._sent(messages[0], options, task)

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[Any]:
        """Send a call of a task by its name; this process need not know the task.

        Options as for `Task.apply_async`. If the task is registered, its own options
        are the defaults. Never run in place: in eager mode it warns, and sends.
        """
        given = _given(options, task_id, link, link_error, shadow)
        messages, edges = self._compose_named(name, args, kwargs, given)
        self.send(messages, edges, given)
        return self._sent(messages[0], given, self._tasks.get(name))

    async def asend_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[Any]:
        """Send a call like `send_task()`, without blocking the event loop."""
        given = _given(options, task_id, link, link_error, shadow)
        messages, edges = self._compose_named(name, args, kwargs, given)
        await off_loop(self.send, messages, edges, given)
        return self._sent(messages[0], given, self._tasks.get(name))

    def send(
        self,
        messages: Sequence[Message],
        edges: Sequence[Edge] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Put messages into the store, in one step.

        When the store cannot be reached it tries again, as `task_publish_retry_policy`
        says; that is safe, since a message that is there already is left as it is.
        """
        if signals.before_task_publish.receivers:
            messages = publishing.announce(messages)
        try:
            self.broker.enqueue(messages, edges)
        except BrokerUnavailable:
            self._enqueue_again(messages, edges, options or {})
        if signals.after_task_publish.receivers:
            publishing.report(messages)

    def apply_call(
        self,
        task: _Task[P, R],
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: dict[str, Any],
        *,
        throw: bool | None = None,
    ) -> EagerResult[R]:
        """Run a call in this process; see `Task.apply`."""
        rules = self._rules()
        args, kwargs = _arguments(args, kwargs)
        message = self._message(rules, task.name, task, args, kwargs, options, body=b"")
        if throw is None:
            throw = self.conf.task_eager_propagates
        return eager.run(self, message, args, kwargs, options, throw=throw)

    # What is made for an app

    def signature(self, *args: Any, **kwargs: Any) -> Signature[Any]:
        """Return a signature bound to this app; see `liteq.signature`."""
        kwargs["app"] = self
        return signature(*args, **kwargs)

    subtask = signature

    def AsyncResult(self, id: str, *args: Any, **kwargs: Any) -> AsyncResult[Any]:  # noqa: A002, N802
        """Return the result of a call by its id."""
        kwargs["app"] = self
        return AsyncResult(id, *args, **kwargs)

    @property
    def current_task(self) -> _Task[..., Any] | None:
        """The task that runs here now, or None."""
        running = context.current()
        return None if running is None else self.tasks.get(running.task or "")

    @property
    def current_worker_task(self) -> _Task[..., Any] | None:
        """The task that a worker runs here now; direct calls inside of it do not count."""
        for running in reversed(context.stack()):
            if not running.called_directly:
                return self.tasks.get(running.task or "")
        return None

    def set_current(self) -> None:
        """Make this the current app of the thread."""
        current.set_current_app(self)

    def set_default(self) -> None:
        """Make this the app of all threads that have no other."""
        current.set_default_app(self)

    # Running

    def worker(
        self,
        *,
        concurrency: int = 2,
        pool: str = "threads",
        queues: Sequence[str] | None = None,
        hostname: str | None = None,
    ) -> AbstractContextManager[Any]:
        """Return a context in which a worker of this program runs its tasks.

        `pool="threads"` (or asyncio, solo) runs them in this process, "prefork" in
        processes of their own, which know the functions of a script or notebook too.
        It stops at the end, when what is running has finished.
        """
        # The worker is above the API, which this door alone opens upwards.
        embedded = import_module("liteq.embedded")
        made: AbstractContextManager[Any] = embedded.worker(
            self, concurrency=concurrency, pool=pool, queues=queues, hostname=hostname
        )
        return made

    def run_until_empty(self, *, queues: Sequence[str] | None = None) -> int:
        """Run tasks here, one at a time, until nothing is claimable; return how many.

        What is scheduled for later stays.
        """
        embedded = import_module("liteq.embedded")
        count: int = embedded.run_until_empty(self, queues=queues)
        return count

    def start(self, argv: Sequence[str] | None = None) -> Any:
        """Run the command line with this app; argv default: the program's own."""
        return import_module("liteq.cli").main(argv, app=self)

    def worker_main(self, argv: Sequence[str] | None = None) -> Any:
        """Run `liteq worker …` with this app. `argv` must hold the word "worker"."""
        argv = sys.argv if argv is None else argv
        if "worker" not in argv:
            raise ValueError("worker_main: the word 'worker' must be in argv")
        return self.start(list(argv)[list(argv).index("worker") :])

    def reference(self) -> str | bytes:
        """Return how another process gets this app: "module:attribute", or, for that of
        a script or notebook, the app and its functions as bytes. See
        `liteq.reference.load`."""
        return import_module("liteq.reference").reference(self)  # type: ignore[no-any-return]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.main or '-'} at {id(self):#x}>"

    def __reduce__(self) -> Any:
        return _app_again, (type(self), self.main, self.broker_url, self.conf.changes)

    # Making tasks

    def _task_from_fun(
        self,
        fun: Callable[..., Any],
        *,
        name: str | None = None,
        base: type[_Task[..., Any]] | None = None,
        bind: bool = False,
        filter: Callable[..., Any] | None = None,  # noqa: A002 (Celery's name)
        lazy: bool = True,
        shared: bool = False,
        **options: Any,
    ) -> _Task[..., Any]:
        if shared:
            current.connect_on_app_finalize(
                lambda app: app._task_from_fun(fun, name=name, base=base, bind=bind, **options)
            )
        name = name or self.gen_task_name(_name_of(fun), fun.__module__)
        known = self._tasks.get(name)
        if known is not None:
            return self._duplicate(known, fun)
        made = filter(fun) if filter is not None else fun
        task = self._task_class_of(made, name, base, bind, options)()
        self._tasks[name] = task
        task.on_bound(self)
        return task

    def _task_class_of(
        self,
        fun: Callable[..., Any],
        name: str,
        base: type[_Task[..., Any]] | None,
        bind: bool,  # noqa: FBT001
        options: dict[str, Any],
    ) -> type[_Task[..., Any]]:
        """Return a class of its own for the function, which is its body."""
        base = base or self.Task
        code = getattr(fun, "__code__", None)
        if base is _Task and code is not None and code.co_flags & 0x80:
            base = AsyncTask
        if "autoretry_for" in options and options["autoretry_for"] is None:
            del options["autoretry_for"]
        body: dict[str, Any] = {
            **options,
            "app": self,
            "name": name,
            "run": fun if bind else staticmethod(fun),
            "abstract": False,
            "_bound": bind,
            "__doc__": fun.__doc__,
            "__module__": fun.__module__,
            "__wrapped__": fun if bind else staticmethod(fun),
            "__annotations__": getattr(fun, "__annotations__", {}),
        }
        return type(_name_of(fun), (base,), body)

    def _duplicate(self, known: _Task[..., Any], fun: Callable[..., Any]) -> _Task[..., Any]:
        old = getattr(type(known), "__wrapped__", None)
        if old is not None and _same_source(old, fun):
            return known
        import warnings  # late: rare

        warnings.warn(
            f"a task {known.name!r} is registered already: the first one stays, "
            f"{fun!r} is dropped",
            DuplicateTaskNameWarning,
            stacklevel=4,
        )
        return known

    # Making messages

    def _compose_call(
        self,
        rules: _Rules,
        task: _Task[..., Any],
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: dict[str, Any],
    ) -> tuple[list[Message], list[Edge]]:
        """Return the message of a call, and those of its links with their edges."""
        args, kwargs = _arguments(args, kwargs)
        if task.typing:
            task.check_arguments(args, kwargs)
        message = self._message(rules, task.name, task, args, kwargs, options)
        messages, edges = [message], []
        if "link" in options or "link_error" in options:
            messages, edges = self._with_links(rules, message, options)
        running = context.current()
        if running is not None and not running.called_directly:
            self._add_to_trail(running, messages[0], options)
        return messages, edges

    def _compose_named(
        self,
        name: str,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: dict[str, Any],
    ) -> tuple[list[Message], list[Edge]]:
        rules = self._rules()
        if rules.always_eager:
            import warnings  # late: rare

            warnings.warn(
                "task_always_eager has no effect on send_task: the call is sent",
                AlwaysEagerIgnored,
                stacklevel=3,
            )
        args, kwargs = _arguments(args, kwargs)
        task = self._tasks.get(name)
        message = self._message(rules, name, task, args, kwargs, options)
        messages, edges = self._with_links(rules, message, options)
        running = context.current()
        if running is not None and not running.called_directly:
            self._add_to_trail(running, messages[0], options)
        return messages, edges

    def _message(
        self,
        rules: _Rules,
        name: str,
        task: _Task[..., Any] | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: dict[str, Any],
        *,
        body: bytes | None = None,
    ) -> Message:
        """Return the message of one call. This is the road that every call takes."""
        defaults = self._defaults(rules, name, task)
        message = defaults.template
        if body is None:
            content_type = options.get("serializer") or message.content_type
            body = serializers.dumps_call(args, kwargs, content_type)
            if len(body) > rules.max_body_size:
                raise _too_large(name, body, rules.max_body_size)
        running = context.current()
        if not options and running is None and defaults.is_static:
            message = message._replace(id=new_id(), body=body)
            if defaults.expires is None:
                return message
        changed: dict[str, Any] = {"id": options.get("task_id") or new_id(), "body": body}
        if options.get("serializer"):
            changed["content_type"] = options["serializer"]
        if running is not None and running.id is not None:
            changed.update(root_id=running.root_id, parent_id=running.id)
            if rules.inherits_priority and running.message is not None:
                changed["priority"] = running.message.priority
        merged = merge(name, args, kwargs, defaults.own, options, rules.router, task)
        if task is not None and task.shadow_name.__func__ is not _Task.shadow_name:  # type: ignore[attr-defined]
            merged.setdefault("shadow", task.shadow_name(args, kwargs, options))
        now = self.clock.now()
        message = with_options(
            message._replace(**changed), merged, rules.router, now, rules.zone
        )
        if message.expires_at is not None and message.expires_at < now:
            logger.warning(
                "Task %s[%s] expired %.3f s before it was sent: it will end revoked",
                name,
                message.id,
                now - message.expires_at,
            )
        return message

    def _with_links(
        self, rules: _Rules, message: Message, options: Mapping[str, Any]
    ) -> tuple[list[Message], list[Edge]]:
        """Return the message with those that follow it, and the edges between them."""
        messages, edges = [message], []
        for option, on in (("link", "success"), ("link_error", "failure")):
            for position, given in enumerate(as_list(options.get(option))):
                sig = maybe_signature(given, app=self)
                if not isinstance(sig, Signature):
                    raise TypeError(f"{option} takes signatures, not {given!r}")
                linked, inner = self._linked(rules, message, sig)
                messages += linked
                edges += (Edge(message.id, linked[0].id, on, position), *inner)
        if any(edge.on == "success" and edge.source == message.id for edge in edges):
            messages[0] = message._replace(has_links=True)
        return messages, edges

    def _linked(
        self, rules: _Rules, source: Message, sig: Signature[Any]
    ) -> tuple[list[Message], list[Edge]]:
        options = {name: value for name, value in sig.options.items() if value is not None}
        options.setdefault("root_id", source.root_id or source.id)
        options.setdefault("parent_id", source.id)
        if sig.immutable:
            options["immutable"] = True
        task = self._tasks.get(sig.task) or self.tasks.get(sig.task)
        message = self._message(rules, sig.task, task, sig.args, sig.kwargs, options)
        return self._with_links(rules, message, options)

    def _add_to_trail(
        self, running: context.Context, message: Message, options: Mapping[str, Any]
    ) -> None:
        """Enter a call among the children of the task that makes it."""
        if options.get("add_to_parent", True):
            caller = self._tasks.get(running.task or "")
            if caller is None or caller.trail:
                running.children.append(AsyncResult(message.id, task_name=message.task, app=self))

    def _sent(
        self, message: Message, options: Mapping[str, Any], task: _Task[..., Any] | None
    ) -> Any:
        kind = options.get("result_cls") or AsyncResult
        result = kind(message.id, None, message.task, self)
        result.ignored = message.ignore_result
        return result

    def _enqueue_again(
        self,
        messages: Sequence[Message],
        edges: Sequence[Edge],
        options: Mapping[str, Any],
    ) -> None:
        """Try again to store messages, after pauses, and raise if it stays impossible."""
        retry = options.get("retry")
        if not (self._rules().publish_retry if retry is None else retry):
            raise  # noqa: PLE0704 (called by the except clause that holds the error)
        policy = {**self.conf.task_publish_retry_policy, **(options.get("retry_policy") or {})}
        most = policy.get("max_retries", 3)
        pause = policy.get("interval_start", 0.0)
        tries = 0
        while True:
            time.sleep(pause)
            pause = min(
                pause + policy.get("interval_step", 0.2), policy.get("interval_max", 1.0)
            )
            tries += 1
            try:
                return self.broker.enqueue(messages, edges)
            except BrokerUnavailable:
                if most is not None and tries >= most:
                    raise

    # What is worked out of the settings

    def _rules(self) -> _Rules:
        rules, conf = self._rules_now, self.conf
        revision = conf.revision
        if rules is None or rules.revision != revision:
            rules = self._rules_now = self._make_rules(revision)
        return rules

    def _make_rules(self, revision: int) -> _Rules:
        conf = self.conf
        return _Rules(
            revision=revision,
            router=Router(
                conf.task_routes,
                conf.task_queues,
                default_queue=conf.task_default_queue,
                create_missing=conf.task_create_missing_queues,
            ),
            zone=_zone(conf.timezone, enable_utc=conf.enable_utc),
            always_eager=conf.task_always_eager,
            inherits_priority=conf.task_inherit_parent_priority,
            max_body_size=conf.task_max_body_size,
            keeps_results=self._keeps_results(),
            publish_retry=conf.task_publish_retry,
        )

    def _defaults(
        self, rules: _Rules, name: str, task: _Task[..., Any] | None
    ) -> Defaults:
        """Return what all calls of the task have in common, worked out once."""
        if task is None:
            return self._make_defaults(rules, name, self.Task())
        if task._defaults is None or task._defaults_of != rules.revision:
            made = self._make_defaults(rules, name, task)
            object.__setattr__(task, "_defaults", made)
            object.__setattr__(task, "_defaults_of", rules.revision)
            return made
        return task._defaults

    def _make_defaults(self, rules: _Rules, name: str, task: _Task[..., Any]) -> Defaults:
        hard, soft = checked_limits(task.time_limit, task.soft_time_limit)
        own = {key: getattr(task, key) for key in _OWN if getattr(task, key) is not None}
        template = Message(
            id="",
            task=name,
            body=b"",
            queue=rules.router.queue(own),
            priority=checked_priority(own.get("priority", 0)),
            time_limit=hard,
            soft_time_limit=soft,
            acks_late=bool(task.acks_late),
            ignore_result=bool(task.ignore_result) or not rules.keeps_results,
            max_deliveries=_max_deliveries(task),
            result_expires=lifetime(task.result_expires),
            content_type=task.serializer or "json",
            store_errors=bool(task.store_errors_even_if_ignored),
        )
        is_static = rules.router.is_static and task.shadow_name.__func__ is _Task.shadow_name  # type: ignore[attr-defined]
        if is_static:
            merged = merge(name, (), {}, own, {}, rules.router, task)
            expires = merged.pop("expires", None)
            if merged:
                template = with_options(template, merged, rules.router, 0.0, rules.zone)
        else:
            expires = own.get("expires")
        if expires is not None:
            expires_at(expires, self.clock.now(), rules.zone)  # raises for nonsense
        return Defaults(template, expires, own, is_static)

    def _connect(self) -> Broker:
        url = self.broker_url
        conf = self.conf
        self._keeps_results()
        options: dict[str, Any] = {"lease_timeout": conf.worker_lease_timeout}
        if brokers.scheme_of(url) in ("sqlite", "memory"):
            options.update(
                max_deliveries=conf.task_max_deliveries,
                unknown_expires=conf.task_unknown_expires,
            )
        options.update(conf.broker_transport_options or {})
        clock = None if self.clock is system_clock else self.clock
        return brokers.connect(url, options, clock)

    def _keeps_results(self) -> bool:
        """Return whether results are kept. Raises `ImproperlyConfigured` for a result
        backend that is not the broker's own store."""
        backend = self.conf.result_backend
        if backend is None:
            return not self.conf.value_set_for("result_backend")
        if backend in _DISABLED:
            return False
        url = self.broker_url
        if _store_of(backend) != _store_of(url) and not backend.startswith(("rpc", "cache")):
            raise ImproperlyConfigured(
                f"result_backend {backend.split('@')[-1]!r} is another store than the broker "
                f"{url.split('@')[-1]!r}: liteq keeps results where the messages are. Leave it "
                "out to keep results there, or set 'disabled://' to keep none"
            )
        return True

    def _configured(self, settings: Settings) -> None:
        if self.on_configure.receivers:
            self.on_configure.send(sender=self)
        if self.on_after_configure.receivers:
            self.on_after_configure.send(sender=self, source=settings)

    def _eager_call(
        self,
        task: _Task[P, R],
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: dict[str, Any],
    ) -> EagerResult[R]:
        """Run a call in place of sending it, its arguments written and read as if it had
        been sent."""
        args, kwargs = _arguments(args, kwargs)
        if task.typing:
            task.check_arguments(args, kwargs)
        kind = options.get("serializer") or task.serializer
        body = serializers.dumps_call(args, kwargs, kind)
        args, kwargs = serializers.loads_call(body, kind, (kind,))
        return self.apply_call(task, args, kwargs, options)


@overload
def shared_task(fun: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
@overload
def shared_task(fun: Callable[P, R], /) -> _Task[P, R]: ...
@overload
def shared_task(
    *, base: type[T], bind: bool = ..., **options: Unpack[TaskOptions]
) -> Callable[[Callable[..., Any]], T]: ...
@overload
def shared_task(
    *, bind: Literal[True], base: None = None, **options: Unpack[TaskOptions]
) -> _BoundDecorator: ...
@overload
def shared_task(
    *, bind: Literal[False] = False, base: None = None, **options: Unpack[TaskOptions]
) -> _Decorator: ...
def shared_task(fun: Any = None, **options: Any) -> Any:
    """Make a task of every app, those that come later too; options as for `app.task`.

    What it returns stands for the current app's copy.
    """
    _refuse_unknown_options(options)

    def share(fun: Callable[..., Any]) -> Any:
        if isinstance(fun, (_Task, Proxy)):
            raise TypeError(f"{fun!r} is a task already: write @shared_task once")
        current.connect_on_app_finalize(lambda app: app._task_from_fun(fun, **options))
        given = options.get("name")

        def find() -> Any:
            app = current.get_current_app()
            return app.tasks[given or app.gen_task_name(_name_of(fun), fun.__module__)]

        return Proxy(find, name=_name_of(fun), doc=fun.__doc__)

    return share if fun is None else share(fun)


_OWN = ("queue", "exchange", "routing_key", "delivery_mode", "priority", "expires")


def _creator() -> tuple[str, str | None]:
    """Return the module that is making an app, and its file (None at a prompt)."""
    frame = sys._getframe(2)
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    scope = frame.f_globals
    file = scope.get("__file__")
    return scope.get("__name__", "__main__"), file if isinstance(file, str) else None


def _is_ours(module: str) -> bool:
    return module == "liteq" or module.startswith("liteq.")


def _stem(file: str | None) -> str:
    return os.path.splitext(os.path.basename(file))[0] if file else "liteq"


def _name_of(fun: Any) -> str:
    name = getattr(fun, "__name__", None)
    if not isinstance(name, str):
        raise TypeError(f"{fun!r} has no name of its own to call a task by: pass name=…")
    return name


def _same_source(old: Any, new: Any) -> bool:
    """Tell whether this is one function, defined again: a reloaded module."""
    old, new = getattr(old, "__code__", old), getattr(new, "__code__", new)
    if old is new:
        return True
    place = [(getattr(c, "co_filename", c), getattr(c, "co_firstlineno", c)) for c in (old, new)]
    return place[0] == place[1]


def _refuse_unknown_options(
    options: Mapping[str, Any], base: type[Any] | None = None
) -> None:
    base = base or options.get("base")
    own = () if base is None else [name for name in options if hasattr(base, name)]
    refuse_unknown(options, {*TASK_OPTIONS, "bind", "base", *own}, "a task")


def _arguments(
    args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if args is None:
        args = ()
    elif not isinstance(args, (tuple, list)):
        raise TypeError(f"args is a list or a tuple, not {type(args).__name__}")
    if kwargs is None:
        kwargs = {}
    elif not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs is a mapping, not {type(kwargs).__name__}")
    return tuple(args), kwargs


def _given(
    options: Mapping[str, Any], task_id: Any, link: Any, link_error: Any, shadow: Any
) -> dict[str, Any]:
    own = {"task_id": task_id, "link": link, "link_error": link_error, "shadow": shadow}
    return {**options, **{name: value for name, value in own.items() if value is not None}}


def _too_large(name: str, body: bytes, limit: int) -> MessageTooLarge:
    return MessageTooLarge(
        f"the arguments of {name} take {len(body)} bytes, more than the {limit} of "
        "task_max_body_size: store what is large elsewhere and send where it is"
    )


def _max_deliveries(task: _Task[..., Any]) -> int | None:
    """Return how often a call may be started anew after a death of its process. Celery's
    `reject_on_worker_lost=False`, said out loud, means that a death is a failure."""
    if task.reject_on_worker_lost is False:
        return 1
    return None if isinstance(type(task).max_deliveries, int | None) and (
        task.max_deliveries == task.app.conf.task_max_deliveries
    ) else task.max_deliveries


def _zone(given: Any, *, enable_utc: bool) -> tzinfo | None:
    """Return the zone of the settings; None stands for the machine's own."""
    if isinstance(given, tzinfo):
        return given
    if given is None:
        return UTC if enable_utc else None
    if given == "UTC":
        return UTC
    from zoneinfo import ZoneInfo  # late: 3 ms that only other zones than UTC pay

    return ZoneInfo(given)


def _store_of(url: str) -> tuple[str, str]:
    """Return which store a URL means: databases of one server are one store."""
    scheme = brokers.scheme_of(url)
    _, _, rest = url.partition("://")
    rest = (rest or url).rpartition("@")[2].partition("?")[0]
    if scheme in ("redis", "rediss", "valkey", "valkeys"):
        return "redis", rest.partition("/")[0]
    return scheme, rest.rstrip("/")


def _import_related(package: str, related_name: str | None) -> None:
    """Import `package.related_name`, if there is one."""
    import_module(package)
    if not related_name:
        return
    name = f"{package}.{related_name}"
    try:
        import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name != name:
            raise


def _django_apps() -> list[str]:
    apps = sys.modules.get("django.apps")
    return [] if apps is None else [config.name for config in apps.apps.get_app_configs()]


def _app_again(
    kind: type[Liteq], main: str | None, broker: str, changes: Mapping[str, Any]
) -> Liteq:
    return kind(main, set_as_current=False, changes={**changes, "broker_url": broker})


current.set_default_factory(lambda: Liteq("default", set_as_current=False))
