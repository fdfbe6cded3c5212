"""The pool of a worker: what the app's settings make of it, and what its children know."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from liteq import logfields, serializers, shortage
from liteq.exceptions import ImproperlyConfigured
from liteq.executor import ExecutorSettings, TaskLike
from liteq.loggers import get_logger
from liteq.pool import Pool, PoolOptions, make_pool
from liteq.workers.runner import RunnerFactory

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.config import Settings

__all__ = ["executor_settings", "has_processes", "make_room", "pool_of"]

logger = get_logger("liteq.worker")

_FORMATS: Final = (
    "accept_content",
    "result_accept_content",
    "task_serializer",
    "result_serializer",
)


_DESCRIPTORS: Final = 6  # that a child takes in the worker: `pools.childlinks`
_OTHERS: Final = 24  # of the store, its locks, the log, the beat, and a child that is starting


def has_processes(kind: str) -> bool:
    """Tell whether this kind of pool runs tasks in child processes."""
    return kind in ("prefork", "processes")


def pool_of(
    app: Liteq,
    kind: str,
    *,
    hostname: str,
    include: Sequence[str],
    concurrency: int,
    max_tasks_per_child: int | None,
    max_memory_per_child: int | None,
    at_fork: Callable[[], None],
    before_child: Callable[[], object],
    stopping: Callable[[], bool],
    interruptible: bool,
) -> Pool:
    """Return the pool that runs this app's tasks, not yet started.

    `hostname` is the worker's, `include` the modules that it has imported; `interruptible`
    is as in `ExecutorSettings`, the rest as in `PoolOptions`. Raises `ImproperlyConfigured`
    for children that could not reach the store, and for formats that nobody has registered:
    all that waits would be refused.
    """
    if has_processes(kind) and app.broker.place is None:
        raise ImproperlyConfigured(
            "a store in memory cannot be shared with child processes: use "
            "pool='threads', or an sqlite:// broker"
        )
    conf = app.conf
    _check_formats(conf)
    options = PoolOptions(
        concurrency=concurrency,
        max_lookahead=conf.worker_max_lookahead,
        max_tasks_per_child=max_tasks_per_child,
        max_memory_per_child=max_memory_per_child,
        start_method=conf.worker_pool_start_method or "fork",
        at_fork=at_fork,
        before_child=before_child,
        stopping=stopping,
    )
    app.cipher.prepare()
    settings = executor_settings(app, hostname, interruptible=interruptible)
    own_process = has_processes(kind)
    if not own_process:
        _warn_of_children(kind, options)
    if own_process and options.start_method != "fork":
        logs = logfields.is_marking_all() or bool(logging.getLogger().handlers)
        like = (app.reference(), conf.overrides(), include, logs)
        runners = RunnerFactory(_load_tasks, like, settings, own_process=own_process)
    else:
        runners = RunnerFactory(lambda: app.tasks, (), settings, own_process=own_process)
    return make_pool(kind, runners, options)


def make_room(kind: str, concurrency: int) -> None:
    """Have descriptors for so many children. Raises `ImproperlyConfigured` if the limit of open
    files does not allow it: the last of them would leave none for the store, and the worker
    would try for ever."""
    if not has_processes(kind):
        return
    count = _DESCRIPTORS * concurrency + _OTHERS
    if lacking := shortage.make_room(count):
        raise ImproperlyConfigured(
            f"{concurrency} child processes need {count} descriptors: {lacking}"
        )


def _warn_of_children(kind: str, options: PoolOptions) -> None:
    """Say which options are for pools with child processes, which this one has not."""
    asked = {
        "max_tasks_per_child": options.max_tasks_per_child,
        "max_memory_per_child": options.max_memory_per_child,
    }
    vain = [f"{name} = {most}" for name, most in asked.items() if most is not None]
    if vain:
        logger.warning(
            "the %s pool has no children to replace, so that these have no effect: %s. "
            "The prefork pool has",
            kind,
            ", ".join(vain),
        )


def _check_formats(conf: Settings) -> None:
    """Raise `ImproperlyConfigured` for a format in the settings that is not registered. Task
    modules may register some, so this is only known when they are imported."""
    for setting in _FORMATS:
        given = conf[setting] or ()
        for name in (given,) if isinstance(given, str) else given:
            if not serializers.is_registered(name):
                raise ImproperlyConfigured(
                    f"setting {setting} = {given!r} (from {conf.source_of(setting)}): there is "
                    f"no serializer {name!r}: use one of "
                    f"{', '.join(serializers.registered())}, or add it with "
                    "liteq.serializers.register() in a module that the worker imports"
                )


def executor_settings(
    app: Liteq, hostname: str, *, interruptible: bool = False
) -> ExecutorSettings:
    """Return what an app's settings say for the attempts of a worker of this name."""
    conf = app.conf
    return ExecutorSettings(
        accept=tuple(conf.accept_content),
        result_serializer=conf.result_serializer,
        max_result_size=conf.task_max_body_size,
        hostname=hostname,
        clock=app.clock,
        signer=app.signer,
        cipher=app.cipher,
        max_body_size=conf.task_max_body_size,
        redactor=app.redactor,
        interruptible=interruptible,
    )


def _load_tasks(
    reference: str | bytes,
    settings: Mapping[str, Any],
    include: Sequence[str],
    logs: bool,  # noqa: FBT001 (a runner's reference is a tuple)
) -> Mapping[str, TaskLike]:
    """Return the tasks of the worker's app, in a spawned child, which has nothing of the
    worker's: neither its app (see `liteq.reference`), nor what its command line set, nor
    the modules it has imported, nor its log."""
    from liteq import applog  # late: for spawned children only
    from liteq.reference import load

    app = load(reference)
    app.conf.override(settings)
    if logs:
        applog.configure(app)
    for module in include:
        __import__(module)
    app.import_default_modules()
    app.set_current()  # whatever other apps these modules make
    return app.tasks
