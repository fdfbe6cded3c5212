"""The app: the tasks of a program, its settings, and the store they are sent to.

It puts the parts together; sending is `liteq.sending`, making tasks `liteq.definition`.
"""

# ruff: noqa: FBT001, FBT002  (positional booleans in Celery's signatures)

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal, ParamSpec, TypeVar, overload

from liteq import brokers, context, current, djangoproject, names, signals, storesettings
from liteq.callers import creator, outside
from liteq.clock import Clock, system_clock
from liteq.config import Settings, refuse_misspelt
from liteq.definition import (
    annotate,
    check_options,
    is_redefined,
    is_same_function,
    make_class,
    name_of,
    rebase,
    shared_task,
)
from liteq.exceptions import ConfigWarning, DuplicateTaskNameWarning
from liteq.options import TASK_WITHOUT_EFFECT, CallOptions, TaskOptions, named
from liteq.registry import TaskRegistry
from liteq.task import AsyncTask
from liteq.task import Task as _Task  # `Task` is a property of the app

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from datetime import datetime, timedelta, tzinfo
    from types import TracebackType
    from typing import Self, Unpack

    from liteq.brokers.base import Broker
    from liteq.brokers.values import QueueInfo
    from liteq.bulk import BulkResult
    from liteq.canvas import Signature
    from liteq.ciphers import Cipher
    from liteq.control import Control
    from liteq.definition import BoundDecorator, Decorator
    from liteq.events import Events
    from liteq.periodic import Schedules
    from liteq.redaction import Redactor
    from liteq.result import GroupResult as _GroupResult  # these are properties of the app
    from liteq.result import ResultSet as _ResultSet
    from liteq.results.asyncresult import AsyncResult
    from liteq.results.backend import ResultBackend
    from liteq.routes import Router
    from liteq.sending import Sender
    from liteq.signing import Signer
    from liteq.storelink import StoreLink
    from liteq.taskmodules import Discovery
    from liteq.workflows import Workflow

__all__ = ["Liteq", "app_of", "shared_task"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=_Task[..., Any])
C = TypeVar("C")

# What `Liteq(…)` is given most, and would take for a setting if it were misspelt.
_ARGUMENTS = ("broker", "backend", "include", "task_cls", "autofinalize", "config_source")


class Liteq:
    """An app. Nothing is read or opened before it is needed.

    `main`: its name, which also names the store. `broker`: the store's URL (default: an
    SQLite store beside the file that makes the app). `backend`: the same store, or None
    to keep no results. `include`: modules with tasks, imported by workers. Any further
    keyword is a setting. The app becomes the current one unless `set_as_current` is off.
    """

    task_cls: ClassVar[Any] = _Task
    # Given the function of a task or one of its hooks, returns what an attempt is to call.
    surround: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None

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
        refuse_misspelt(conf, _ARGUMENTS)
        module, file = creator()
        self.module = module
        self.main = main or _stem(file)
        self.clock = clock
        self.autofinalize = autofinalize
        self.finalized = False
        self._finalizer: int | None = None  # the thread that finalizes it now
        self.modules_imported = False
        self._home = os.path.dirname(os.path.abspath(file)) if file else os.getcwd()
        self._lock = threading.RLock()  # the broker must be made once among threads
        self._tasks = TaskRegistry()
        self._broker: Broker | None = None
        self._said: set[str] = set()
        self.discoveries: list[Discovery] = []  # what `autodiscover_tasks()` was given
        self._task_class: type[_Task[..., Any]] | None = None
        self._bound_classes: dict[type[Any], Any] = {}
        self._schedules: Schedules | None = None
        self._control: Control | None = None
        self._events: Events | None = None
        self.configuring = False  # receivers of on_after_configure are being called
        self.on_configure = signals.Signal("on_configure")
        self.on_after_configure = signals.Signal("on_after_configure", ("source",))
        self.on_after_finalize = signals.Signal("on_after_finalize")
        self.on_after_fork = signals.Signal("on_after_fork")
        if task_cls is None and self.task_cls is _Task and djangoproject.is_named():
            task_cls = "liteq.contrib.django.task:DjangoTask"
        if task_cls is not None:
            self.task_cls = task_cls  # type: ignore[misc]  # this app's own
        given = {"broker_url": broker, "include": tuple(include) if include else None}
        settings = {**(changes or {}), **conf}
        settings.update({name: value for name, value in given.items() if value is not None})
        if backend != "":
            settings["result_backend"] = "disabled://" if backend is None else backend
        if not strict_typing:
            settings["strict_typing"] = False
        self.conf = Settings(settings, directory=self._home, on_load=self._configured)
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
        self,
        *,
        base: type[T],
        bind: bool = ...,
        flush_every: int | None = None,
        flush_interval: float | timedelta = ...,
        **options: Unpack[TaskOptions],
    ) -> Callable[[Callable[..., Any]], T]: ...
    @overload
    def task(
        self,
        *,
        flush_every: int,
        flush_interval: float | timedelta = ...,
        bind: bool = ...,
        base: None = None,
        **options: Unpack[TaskOptions],
    ) -> Callable[[Callable[..., Any]], _Task[..., Any]]: ...
    @overload
    def task(
        self, *, bind: Literal[True], base: None = None, **options: Unpack[TaskOptions]
    ) -> BoundDecorator: ...
    @overload
    def task(
        self,
        *,
        bind: Literal[False] = False,
        base: None = None,
        **options: Unpack[TaskOptions],
    ) -> Decorator: ...
    def task(self, fun: Any = None, **options: Any) -> Any:
        """Make a task of a function: `@app.task`, or `@app.task(option=…)`.

        `bind`: the function takes the task as its first argument. `base`: the class of
        the task. `flush_every` (1 to 10,000) and `flush_interval` (seconds): the function is
        run once for many calls (docs: One run for many calls). The other options are those of
        `Task`. A second function under a name that is taken is dropped with a
        `DuplicateTaskNameWarning`, unless it is a new version of the first, from a prompt, a
        notebook or a reload. Raises `TypeError` for an option that does not exist.
        """
        if fun is not None and not callable(fun):
            raise TypeError(f"app.task takes a function, and options by keyword, not {fun!r}")
        check_options(options, options.get("base") or self.Task)
        if fun is not None:
            return self.task_from_function(fun, **options)
        return lambda fun: self.task_from_function(fun, **options)

    @overload
    def register_task(self, task: type[T], **options: Any) -> T: ...
    @overload
    def register_task(self, task: T, **options: Any) -> T: ...
    def register_task(self, task: Any, **options: Any) -> Any:
        """Register a task object or class, in place of any that has its name."""
        check_options(options, task if isinstance(task, type) else type(task))
        if isinstance(task, type):
            task = task()
            task.note_made()
        for name, value in options.items():
            setattr(task, name, value)
        if not task.name:
            kind = type(task)
            task.name = self.gen_task_name(kind.__name__, kind.__module__)
        task.app = self
        known = self._tasks.get(task.name)
        if known is not None and type(known) is not type(task):
            warnings.warn(
                f"a task {task.name!r} is registered already: {task!r} takes its place",
                DuplicateTaskNameWarning,
                stacklevel=2,
            )
        return self._enter(task)

    @property
    def tasks(self) -> TaskRegistry:
        """The tasks by name; a missing one raises `NotRegistered`."""
        if not self.finalized:
            self.finalize(auto=True)
        return self._tasks

    @property
    def Task(self) -> type[_Task[..., Any]]:  # noqa: N802 (Celery's name)
        """The base class of this app's tasks. Until the app is finalized, setting it also
        changes the tasks that were made of functions before."""
        if self._task_class is None:
            self._task_class = self.create_task_cls()
        return self._task_class

    @Task.setter
    def Task(self, kind: type[_Task[..., Any]]) -> None:  # noqa: N802 (Celery's name)
        before = self.Task
        self.task_cls, self._task_class = kind, None  # type: ignore[misc]  # this app's own
        if not self.finalized:  # Celery makes no task before that, and then of this class
            rebase(self._tasks.values(), before, self.Task)

    def create_task_cls(self) -> type[_Task[..., Any]]:
        """Return the base class of this app's tasks, made of `task_cls`. A subclass may
        override it to return its own class, derived from this one."""
        kind = self.task_cls
        if isinstance(kind, str):
            module, _, name = kind.replace(":", ".").rpartition(".")
            kind = getattr(import_module(module), name)
        if kind is not _Task:
            members = {"app": self, "abstract": True, "__module__": kind.__module__}
            kind = type(kind)(kind.__name__, (kind,), members)
        return kind  # type: ignore[no-any-return]

    def gen_task_name(self, name: str, module: str) -> str:
        """Return the name of a task whose function has this name and module.

        A script is `__main__` where it is run and, say, `tasks` in a worker: the name is the
        same in both. At a prompt, where there is no module, the app's name takes its place.
        """
        if names.is_main(module):
            module = names.main_name()
            if names.is_main(module) and module.startswith("__"):
                module = self.main or module
        return f"{module}.{name}"

    def finalize(self, auto: bool = False) -> None:
        """Add the shared tasks: the app is complete. Called when its tasks are asked for."""
        if self.finalized or self._finalizer == threading.get_ident():
            return
        if auto and not self.autofinalize:
            raise RuntimeError("the app was used before app.finalize() was called")
        with self._lock:
            if self.finalized:  # by another thread, which this one has waited for
                return
            self._finalizer = threading.get_ident()  # what it calls sees what there is
            try:
                self._add_shared_tasks()
            except BaseException:  # the next one to ask is told so, not that tasks are missing
                self.finalized = False
                raise
            finally:
                self._finalizer = None
        self.on_after_finalize.send(sender=self)

    def _add_shared_tasks(self) -> None:
        from liteq.builtin import builtin_tasks  # late, as what sends calls

        for task in builtin_tasks(self):
            self._tasks.setdefault(task.name, task)
        made = 0
        # Twice: a task that another thread adds meanwhile makes itself known to the app only
        # once this is true. To make one again changes nothing.
        for complete in (False, True):
            self.finalized = complete
            while made < len(constructs := current.finalizers()):
                constructs[made](self)
                made += 1

    # Finding tasks

    def autodiscover_tasks(
        self,
        packages: Iterable[str] | Callable[[], Iterable[str]] | None = None,
        related_name: str | None = "tasks",
        force: bool = False,
    ) -> None:
        """Have workers import the module `related_name` of each of these packages.

        `force` imports them at once. Without packages, those of the Django apps are taken. A
        package without such a module is skipped; one that does not exist raises
        `ModuleNotFoundError`.
        """
        if isinstance(packages, str):
            raise TypeError(f"autodiscover_tasks takes a list of packages, not {packages!r}")
        if force:
            from liteq import taskmodules  # late: it is the workers that import them

            taskmodules.discover(packages, related_name)
        else:
            self.discoveries.append((packages, related_name))

    def import_default_modules(self) -> None:
        """Import the modules of `imports` and `include`, and what is to be discovered. A
        Django project that the environment names is set up first."""
        from liteq import taskmodules  # late: it is the workers that import them

        taskmodules.import_all(self, self.discoveries)

    loader_import_default_modules = import_default_modules

    # Settings

    def config_from_object(
        self,
        obj: Any,
        silent: bool = False,
        force: bool = False,
        namespace: str | None = None,
    ) -> bool:
        """Take settings from a module (or its name), an object, a class or a dict; see
        `Settings.config_from_object`."""
        return self.conf.config_from_object(obj, silent, force, namespace)

    def config_from_envvar(
        self,
        variable_name: str,
        silent: bool = False,
        force: bool = False,
    ) -> bool:
        """Take settings from the module that an environment variable names."""
        return self.conf.config_from_envvar(variable_name, silent, force)

    def config_from_cmdline(self, argv: Iterable[str], namespace: str = "celery") -> None:
        """Set from `key=value` words."""
        self.conf.config_from_cmdline(argv, namespace)

    def add_defaults(self, fun: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> None:
        """Add settings that all others override."""
        self.conf.add_defaults(fun)

    @property
    def timezone(self) -> tzinfo:
        """The zone in which naive datetimes are read."""
        zone = self.sender.rules().zone
        if zone is not None:
            return zone
        from liteq.walltime import local_zone  # late: few apps leave UTC

        return local_zone()

    def uses_utc_timezone(self) -> bool:
        """Tell whether naive datetimes are read as UTC."""
        return str(self.timezone) == "UTC"

    def now(self) -> datetime:
        """Return the time now, in the app's zone."""
        from datetime import datetime  # late: a tenth of an import

        return datetime.fromtimestamp(self.clock.now(), self.timezone)

    def either(self, default_key: str, *defaults: Any) -> Any:
        """Return the first of the defaults that is not None, else the setting."""
        given = next((value for value in defaults if value is not None), None)
        return self.conf[default_key] if given is None else given

    @property
    def redactor(self) -> Redactor:
        """What hides secrets in what is shown: see `task_sensitive_names`."""
        return self.sender.rules().redactor

    @property
    def early_redactor(self) -> Redactor:
        """The same for what must not load the settings, such as a repr: until they are
        loaded, it knows only the names that the code has set."""
        from liteq.redaction import Redactor  # late: for this

        return Redactor(self.conf.so_far("task_sensitive_names") or ())

    @property
    def signer(self) -> Signer | None:
        """What signs messages and results, and checks them; None without `security_keys`."""
        return self.sender.rules().signer

    @property
    def cipher(self) -> Cipher:
        """What encrypts each `Secret` that is stored, and decrypts it; without
        `encryption_keys`, what leaves it as it is, and refuses one that is encrypted."""
        return self.sender.rules().cipher

    def bugreport(self) -> str:
        """Return versions and settings as text, without secrets."""
        import platform  # late: 5 ms, and only a report needs it

        from liteq import __version__  # late: the package is above all its modules
        from liteq.redaction import mask_url

        return (
            f"liteq {__version__} · Python {platform.python_version()} · "
            f"{platform.platform()}\napp: {self.main} · store: {mask_url(self.broker_url)}\n"
            f"{self.conf.humanize(with_defaults=False, censored=True)}"
        )

    # The store

    @property
    def broker(self) -> Broker:
        """The store. The object is made when it is first asked for, and opens nothing before
        its own first use."""
        if self._broker is None:
            with self._lock:
                if self._broker is None:
                    self._broker = self._connect()
        return self._broker

    @broker.setter
    def broker(self, broker: Broker) -> None:
        self._broker = broker

    @property
    def _losses(self) -> int:
        """How often the store was another than before: see `Broker.losses`."""
        return 0 if self._broker is None else self._broker.losses

    def exchange_store(
        self, broker: Broker | None, clock: Clock
    ) -> tuple[Broker | None, Clock]:
        """Use another store and its clock from now on, in all threads; return those of
        before. None is the store of the settings, to be made at its first use. For tests."""
        with self._lock:
            before = self._broker, self.clock
            self._broker, self.clock = broker, clock
        return before

    @cached_property
    def backend(self) -> ResultBackend:
        """The results in the store by their ids, with the methods of Celery's backend that
        have a meaning here."""
        from liteq.results.backend import ResultBackend  # late: few programs ask it

        return ResultBackend(self)

    @property
    def broker_url(self) -> str:
        """The URL of the store: the setting, or the default beside the program."""
        set_to = storesettings.url_of(self.conf)
        return set_to or brokers.sqlite_url(f"{self._home}/{self.main}.liteq")

    def select_queues(self, queues: Iterable[str] | str | None = None) -> tuple[str, ...]:
        """Return the names of queues to consume: these, else those of `task_queues`, else
        the default one. Raises `ImproperlyConfigured` for one that is not declared, if
        missing queues are not to be created."""
        return self.router.select(queues)

    def queues(self) -> list[QueueInfo]:
        """Return the queues that hold anything or are paused, by name: their messages by
        state, whether they are paused, their limit, how long the first in line has waited,
        and their dead letters."""
        return self.broker.queues()

    def pause_queue(self, name: str) -> bool:
        """Keep all workers from starting anything of a queue until it is resumed; what runs
        goes on. The pause is kept in the store. Return False if it was paused already."""
        return self.broker.pause(name)

    def resume_queue(self, name: str) -> bool:
        """Let the workers start what waits in a queue again; return whether it was paused."""
        return self.broker.resume(name)

    def length_limit(self, queue: str) -> int | None:
        """Return how many messages may wait in a queue; None for any number."""
        return storesettings.length_limit(self.conf, queue)

    @property
    def router(self) -> Router:
        """The routing rules."""
        return self.sender.rules().router

    def close(self) -> None:
        """Close the store. The app may be used again."""
        if self._broker is not None:
            from liteq import waiting  # late: who waits for nothing needs none of it

            waiting.close(self._broker)
            self._broker.close()

    # Sending

    @cached_property
    def sender(self) -> Sender:
        """What makes messages of calls, and stores them."""
        from liteq.sending import Sender  # late: a fourth of what a program loads that sends

        return Sender(self)

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        link: Any = None,
        link_error: Any = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[Any]:
        """Send a call of a task by its name; this process need not know the task.

        Options as for `Task.apply_async`. If the task is registered, its own options
        are the defaults. Never run in place: in eager mode it warns, and sends.
        """
        given = named(options, task_id=task_id, link=link, link_error=link_error)
        return self.sender.call_named(name, args, kwargs, given)

    async def asend_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        link: Any = None,
        link_error: Any = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[Any]:
        """Send a call like `send_task()`, without blocking the event loop."""
        given = named(options, task_id=task_id, link=link, link_error=link_error)
        return await self.sender.acall_named(name, args, kwargs, given)

    def enqueue_many(self, sigs: Iterable[Signature[Any]]) -> BulkResult[Any]:
        """Send many signatures, of any tasks and with any options.

        Each is checked as by `delay()`. Those that are one message travel together, a
        thousand in one step; workflows, and signatures with links, each in a step of their
        own. If one is refused, what it raises says in a note how many before it are in the
        store. Returns a sequence of their results, in their order.
        """
        return self.sender.call_signatures(sigs)

    async def aenqueue_many(self, sigs: Iterable[Signature[Any]]) -> BulkResult[Any]:
        """Send many signatures like `enqueue_many()`, off the event loop."""
        return await self.sender.acall_signatures(sigs)

    # Workers from afar

    @property
    def control(self) -> Control:
        """The workers: ask them, steer them, from any process."""
        if self._control is None:
            from liteq.control import Control  # late: most programs steer nobody

            self._control = Control(self)
        return self._control

    @property
    def events(self) -> Events:
        """What tasks and workers do, while they do it: `Receiver`, `State`, `Dispatcher`."""
        if self._events is None:
            from liteq.events import Events  # late: most programs listen to nothing

            self._events = Events(self)
        return self._events

    def connection(self, *args: Any, **kwargs: Any) -> StoreLink:
        """Return what stands for Celery's connection to a broker: a context, and
        `ensure_connection()` for health checks. Celery's arguments are accepted."""
        from liteq.storelink import StoreLink  # late: most programs have no need of it

        return StoreLink(self.broker, self.broker_url)

    connection_for_read = connection
    connection_for_write = connection
    connection_or_acquire = connection

    # Periodic tasks

    @property
    def schedules(self) -> Schedules:
        """The periodic entries: list, add, update, pause, resume, remove and run them, from
        any process. Declare what belongs to the program in `beat_schedule`."""
        if self._schedules is None:
            from liteq.periodic import Schedules  # late: most programs have none

            with self._lock:
                if self._schedules is None:
                    self._schedules = Schedules(self)
        return self._schedules

    def add_periodic_task(
        self,
        schedule: Any,
        sig: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        **opts: Any,
    ) -> str:
        """Declare a periodic entry: call `sig` (a signature, a workflow, a task) whenever
        the schedule says so, and return the entry's name (default: the call as text).

        Called by a receiver of `on_after_configure` or `on_after_finalize`, or anywhere in
        a module that the beat imports. `opts` are those of `apply_async`, and the entry's
        own: `catch_up`, `overlap`, `tz`, `relative`. Raises `ScheduleError`.
        """
        return self.schedules.add_periodic_task(schedule, sig, args, kwargs, name, **opts)

    # What is made for an app

    def signature(self, *args: Any, **kwargs: Any) -> Signature[Any]:
        """Return a signature bound to this app; see `liteq.signature`."""
        from liteq.canvas import signature  # late: plain calls need none

        kwargs["app"] = self
        return signature(*args, **kwargs)

    subtask = signature

    def AsyncResult(self, id: str, *args: Any, **kwargs: Any) -> AsyncResult[Any]:  # noqa: N802 (Celery's name)
        """Return the result of a call by its id."""
        from liteq.results.asyncresult import AsyncResult  # late: as what sends calls

        kwargs["app"] = self
        return AsyncResult(id, *args, **kwargs)

    @property
    def GroupResult(self) -> type[_GroupResult]:  # noqa: N802 (Celery's name)
        """The class of the results of groups, bound to this app: `restore(id)`."""
        from liteq.result import GroupResult  # late: few programs have groups

        return self._bound(GroupResult)

    @property
    def ResultSet(self) -> type[_ResultSet]:  # noqa: N802 (Celery's name)
        """The class of several results as one, bound to this app."""
        from liteq.result import ResultSet  # late: few programs have groups

        return self._bound(ResultSet)

    def _bound(self, kind: type[C]) -> type[C]:
        """Return a class of results that has this app for its own."""
        if kind not in self._bound_classes:
            members = {"_app": self, "__module__": kind.__module__}
            self._bound_classes[kind] = type(kind.__name__, (kind,), members)
        bound: type[C] = self._bound_classes[kind]
        return bound

    def workflow(self, id: str) -> Workflow:
        """Return the workflow of this id, or to which the call of this id belongs, to look
        at and to steer."""
        from liteq.workflows import Workflow  # late: few programs look at them

        return Workflow(str(id), self)

    def workflows(self, limit: int = 50) -> list[Workflow]:
        """Return the workflows in the store, the latest first."""
        from liteq.workflows import Workflow  # late: few programs look at them

        return [Workflow(known.id, self) for known in self.broker.workflows(limit)]

    @property
    def current_task(self) -> _Task[..., Any] | None:
        """The task that runs here now, be it of this app or of another; else None."""
        return current.get_current_task()

    @property
    def current_worker_task(self) -> _Task[..., Any] | None:
        """The task that a worker runs here now; direct calls inside of it do not count."""
        for running in reversed(context.stack()):
            if not running.called_directly:
                found: _Task[..., Any] | None = running._task
                return found
        return None

    def set_current(self) -> None:
        """Make this the current app of the thread. (A task that runs keeps its own.)"""
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
        beat: bool = False,
    ) -> AbstractContextManager[Any]:
        """Return a context in which a worker of this program runs its tasks, and, with
        `beat`, fires its periodic ones.

        `pool="threads"` (or asyncio, solo) runs them in this process, "prefork" in
        processes of their own, which know the functions of a script or notebook too.
        It stops at the end, when what is running has finished.
        """
        # The worker is above the API, which this door alone opens upwards.
        embedded = import_module("liteq.embedded")
        made: AbstractContextManager[Any] = embedded.worker(
            self,
            concurrency=concurrency,
            pool=pool,
            queues=queues,
            hostname=hostname,
            beat=beat,
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

    def after_fork(self) -> None:
        """Called in a forked child, before anything else runs there. (The broker minds
        the fork by itself.)"""
        self._lock = threading.RLock()
        if self.on_after_fork.receivers:
            self.on_after_fork.send(sender=self)

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

    # Inside

    def task_from_function(
        self,
        fun: Callable[..., Any],
        *,
        name: str | None = None,
        base: type[_Task[..., Any]] | None = None,
        bind: bool = False,
        shared: bool = False,
        lazy: bool = True,
        filter: Callable[..., Any] | None = None,
        **options: Any,
    ) -> _Task[..., Any]:
        """Register a task made of a function; what `task()` does with each."""
        if shared:
            again = {"name": name, "base": base, "bind": bind, "filter": filter, **options}
            current.connect_on_app_finalize(lambda app: app.task_from_function(fun, **again))
        name = name or self.gen_task_name(name_of(fun), fun.__module__)
        known = self._tasks.get(name)
        if known is not None and not is_redefined(known, fun):
            return self._duplicate(known, fun)
        kind = make_class(
            fun if filter is None else filter(fun),
            app=self,
            name=name,
            base=base or self.Task,
            bind=bind,
            options=options,
        )
        task = self._enter(kind())
        task.note_made()
        return task

    def _enter(self, task: _Task[..., Any]) -> _Task[..., Any]:
        self._tasks[task.name] = task
        for option, reason in TASK_WITHOUT_EFFECT.items():
            if getattr(type(task), option) is not getattr(_Task, option):
                self.say_once(f"no effect in liteq: the task option {option} ({reason})")
        task.on_bound(self)
        return task

    def say_once(self, remark: str) -> None:
        """Warn with a `ConfigWarning` that points at the user's line, once for this app."""
        if remark not in self._said:
            self._said.add(remark)
            warnings.warn(remark, ConfigWarning, stacklevel=outside())

    def annotate(self, task: _Task[..., Any]) -> None:
        """Set on a task what the setting `task_annotations` says of it: dictionaries by the
        task's name or `*`, or objects whose method `annotate(task)` returns one."""
        annotate(task, self.conf.task_annotations)

    def _duplicate(self, known: _Task[..., Any], fun: Callable[..., Any]) -> _Task[..., Any]:
        if not is_same_function(known, fun):
            warnings.warn(
                f"a task {known.name!r} is registered already: the first one stays, "
                f"{fun!r} is dropped",
                DuplicateTaskNameWarning,
                stacklevel=4,
            )
        return known

    def _connect(self) -> Broker:
        _ = self.keeps_results  # a backend that cannot be is an error from the first use
        clock = None if self.clock is system_clock else self.clock
        return storesettings.connect(self.conf, self.broker_url, clock)

    @property
    def keeps_results(self) -> bool:
        """Whether results are kept. Raises `ImproperlyConfigured` for a result
        backend that is not the broker's own store."""
        return storesettings.keeps_results(self.conf, self.broker_url)

    def _configured(self, settings: Settings) -> None:
        if self._schedules is not None:
            self._schedules.forget_configured()
        self.configuring = True
        try:
            if self.on_configure.receivers:
                self.on_configure.send(sender=self)
            if self.on_after_configure.receivers:
                self.on_after_configure.send(sender=self, source=settings)
        finally:
            self.configuring = False


def app_of(value: object) -> Liteq | None:
    """Return the app that an object is, or has: a Flask app has that of its extension."""
    # By its real type: `current_app` is a proxy that says it is an app, and a module that
    # imports it has none for that.
    kind = type(value)
    if issubclass(kind, Liteq):
        return value  # type: ignore[return-value]
    flask = getattr(sys.modules.get("flask"), "Flask", None)  # nobody else's import of it
    if isinstance(flask, type) and issubclass(kind, flask):
        found: Any = value
        return found.extensions.get("liteq")  # type: ignore[no-any-return]
    return None


def _stem(file: str | None) -> str:
    return os.path.splitext(os.path.basename(file))[0] if file else "liteq"


def _app_again(
    kind: type[Liteq], main: str | None, broker: str, changes: Mapping[str, Any]
) -> Liteq:
    return kind(main, set_as_current=False, changes={**changes, "broker_url": broker})


current.set_default_factory(lambda: Liteq("default", set_as_current=False))
