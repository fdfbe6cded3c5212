"""From a function to a task: the classes that `app.task` and `shared_task` make."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial, partialmethod
from types import CodeType, FunctionType, MethodType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    overload,
)

from liteq import current
from liteq.local import Proxy
from liteq.names import is_typed
from liteq.options import (
    CALL_OPTIONS,
    TASK_OPTIONS,
    UNIQUE_OPTIONS,
    TaskOptions,
    checked_deliveries,
    checked_seconds,
    refuse_unknown,
)
from liteq.task import AsyncTask, BoundTask, Task, is_coroutine_function

if TYPE_CHECKING:
    from datetime import timedelta
    from typing import Unpack

    from liteq.app import Liteq
    from liteq.limits import Declared

__all__ = [
    "annotate",
    "check_names",
    "check_options",
    "check_parameters",
    "check_values",
    "has_parameter",
    "is_redefined",
    "is_same_function",
    "make_class",
    "name_of",
    "rebase",
    "sensitive_names",
    "share",
    "shared_task",
]

_RETRY_ARGUMENTS = frozenset({"args", "kwargs", "max_retries"})
_VARARGS, _VAR_KEYWORDS = 0x04, 0x08  # the code flags of one that takes *args, **kwargs

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=Task[..., Any])

if TYPE_CHECKING:  # a protocol costs 0.2 ms to make, and nobody asks for these at run time

    class Decorator(Protocol):
        """What `app.task(…)` returns: a decorator of functions."""

        @overload
        def __call__(self, fun: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
        @overload
        def __call__(self, fun: Callable[P, R], /) -> Task[P, R]: ...

    class BoundDecorator(Protocol):
        """What `app.task(bind=True, …)` returns: the function takes the task first."""

        @overload
        def __call__(
            self, fun: Callable[Concatenate[BoundTask, P], Coroutine[Any, Any, R]], /
        ) -> AsyncTask[P, R]: ...
        @overload
        def __call__(self, fun: Callable[Concatenate[BoundTask, P], R], /) -> Task[P, R]: ...


@overload
def shared_task(fun: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
@overload
def shared_task(fun: Callable[P, R], /) -> Task[P, R]: ...
@overload
def shared_task(
    *,
    base: type[T],
    bind: bool = ...,
    flush_every: int | None = None,
    flush_interval: float | timedelta = ...,
    **options: Unpack[TaskOptions],
) -> Callable[[Callable[..., Any]], T]: ...
@overload
def shared_task(
    *,
    flush_every: int,
    flush_interval: float | timedelta = ...,
    bind: bool = ...,
    base: None = None,
    **options: Unpack[TaskOptions],
) -> Callable[[Callable[..., Any]], Task[..., Any]]: ...
@overload
def shared_task(
    *, bind: Literal[True], base: None = None, **options: Unpack[TaskOptions]
) -> BoundDecorator: ...
@overload
def shared_task(
    *, bind: Literal[False] = False, base: None = None, **options: Unpack[TaskOptions]
) -> Decorator: ...
def shared_task(fun: Any = None, **options: Any) -> Any:
    """Make a task of every app, those that come later too; options as for `app.task`.

    What it returns stands for the current app's copy. Which options there are is asked when
    an app makes its own: its task class may have more.
    """
    check_values(options)
    every = current.connect_on_app_finalize, current.get_current_app
    if fun is not None:
        return share(fun, options, *every)
    return lambda fun: share(fun, options, *every)


def share(
    fun: Any,
    options: Mapping[str, Any],
    connect: Callable[[Callable[[Liteq], object]], object],
    find_app: Callable[[], Liteq],
) -> Any:
    """Make a task of several apps: `connect(construct)` has each of them make its own, and
    what is returned stands for that of `find_app()`. An option that no class has, neither of
    the app that makes it nor of another one, is refused then."""
    if isinstance(fun, (Task, Proxy)):
        raise TypeError(f"{fun!r} is already a task: decorate the function once")
    name = options.get("name")

    def construct(app: Liteq) -> object:
        base = options.get("base")
        others = (one.Task for one in (app, *current.apps()))
        try:
            check_names(options, others if base is None else (base,))
        except TypeError as exc:  # no line of the traceback is the task's
            raise TypeError(f"{fun.__module__}.{name_of(fun, name)}: {exc}") from None
        return app.task_from_function(fun, **options)

    def find() -> Any:
        app = find_app()
        return app.tasks[name or app.gen_task_name(name_of(fun), fun.__module__)]

    connect(construct)
    return Proxy(find, name=name_of(fun, name), doc=fun.__doc__)


def make_class(
    fun: Callable[..., Any],
    *,
    app: Liteq,
    name: str,
    base: type[Task[..., Any]],
    bind: bool,
    options: Mapping[str, Any],
) -> type[Task[..., Any]]:
    """Return a class of its own for the function, which is its body."""
    if base is Task and is_coroutine_function(fun):
        base = AsyncTask
    own, own_name = fun, name_of(fun, name)
    if options.get("flush_every", base.flush_every) is None:  # else it is given calls
        check_parameters(fun, options)
    if options.get("pydantic", base.pydantic):
        fun = _with_models(fun, app=app, name=name, base=base, options=options)
    as_member = _method if bind else staticmethod
    keys = {name: staticmethod(options[name]) for name in _KEYS if callable(options.get(name))}
    options = {**options, **keys}  # no methods: they have no self
    members: dict[str, Any] = {
        **options,
        "app": app,
        "name": name,
        "run": as_member(fun),
        "abstract": False,
        "__wrapped__": as_member(own),
        "__annotations__": _Annotations(own),
        "__doc__": fun.__doc__,
        "__module__": fun.__module__,
        "__qualname__": getattr(fun, "__qualname__", own_name),
    }
    made: Any = type(own_name, (base,), members)
    return made  # type: ignore[no-any-return]


class _Annotations:
    """The annotations of a task are those of its function, for `typing.get_type_hints`: read
    when they are asked for, since what they name may be defined later."""

    def __init__(self, fun: Callable[..., Any]) -> None:
        self._fun = fun

    def __get__(self, task: Any, owner: Any = None) -> Any:
        return getattr(self._fun, "__annotations__", {})


def _method(fun: Callable[..., Any]) -> Any:
    """Return what is bound to the task when it is read off it. A partial, or an object that
    can be called, is no method by itself; a partial is to become one in a later Python."""
    if isinstance(fun, partial) or not hasattr(fun, "__get__"):
        return partialmethod(fun)
    return fun


def rebase(tasks: Iterable[Task[..., Any]], old: type[Any], new: type[Any]) -> None:
    """Give the tasks that were made of functions the base `new`, where they have `old`."""
    olds = (Task, AsyncTask) if old is Task else (old,)
    for task in tasks:
        made = type(task)
        if "__wrapped__" in vars(made) and made.__bases__[0] in olds:
            made.__bases__ = (new,)
            task._defaults = None  # they are read from the base


def _with_models(
    fun: Callable[..., Any],
    *,
    app: Liteq,
    name: str,
    base: type[Task[..., Any]],
    options: Mapping[str, Any],
) -> Callable[..., Any]:
    from liteq.models import with_models  # late: few tasks take models

    context = options.get("pydantic_context", base.pydantic_context) or {}
    return with_models(
        fun,
        is_async=is_coroutine_function(fun),
        context={**context, "celery_app": app, "celery_task_name": name},
        strict=options.get("pydantic_strict", base.pydantic_strict),
        dump=options.get("pydantic_dump_kwargs", base.pydantic_dump_kwargs),
    )


def annotate(task: Task[..., Any], annotations: Any) -> None:
    """Set on a task what the setting `task_annotations` says: see `Liteq.annotate`."""
    listed = isinstance(annotations, (list, tuple))
    for rules in annotations if listed else (annotations or {},):
        if isinstance(rules, Mapping):
            found = [rules.get("*"), rules.get(task.name)]
        else:
            any_of_them = getattr(rules, "annotate_any", None)
            found = [any_of_them and any_of_them(), rules.annotate(task)]
        for options in found:
            for name, value in (options or {}).items():
                is_method = isinstance(value, FunctionType) and name not in _KEYS
                setattr(task, name, MethodType(value, task) if is_method else value)


def limits_of(options: Mapping[str, Any]) -> tuple[Declared, ...]:
    """Return the limits that these options declare. Raises `TypeError` or `ValueError` for
    invalid values."""
    names = ("rate_limit", "rate_limit_key", "max_concurrency", "concurrency_key")
    given = {name: options[name] for name in names if options.get(name) is not None}
    if "rate_limit" not in given:
        given.pop("rate_limit_key", None)  # the settings may have a rate
    if not given:
        return ()
    from liteq.limits import declared  # late: few tasks have any

    return declared(options.get("name") or "task", **given)


def check_parameters(fun: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise `TypeError` if an option names an argument that the function has not: the key of
    a limit, or what is sensitive."""
    given = [options.get("rate_limit_key"), *(limit.key for limit in limits_of(options))]
    keys = [key for key in given if isinstance(key, str)]
    for name, why, rest in (
        *((key, "which is the key of a limit", False) for key in keys),
        *((name, "which sensitive names", True) for name in sensitive_names(options)),
    ):
        if not has_parameter(fun, name, rest=rest):
            raise TypeError(
                f"{name_of(fun)}() has no argument {name!r}, {why}: "
                f"it has {', '.join(_parameters(fun.__code__)) or 'none'}"
            )


def has_parameter(fun: Any, name: str, *, rest: bool = False) -> bool:
    """Tell whether a function may be given an argument of this name, as far as its code
    says: to ask `inspect` would take longer than all the rest. With `rest` the name may be
    that of the one which takes all positional ones that are left."""
    code = getattr(fun, "__code__", None)
    if code is None or code.co_flags & _VAR_KEYWORDS:
        return True
    names = _parameters(code)
    if rest and code.co_flags & _VARARGS:
        names = code.co_varnames[: len(names) + 1]
    return name in names


def _parameters(code: CodeType) -> tuple[str, ...]:
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def sensitive_names(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return which arguments the option `sensitive` names. Raises `TypeError` for anything
    but names."""
    given = options.get("sensitive") or ()
    names = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else given
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"sensitive takes names of arguments, not {given!r}")
    return tuple(names)


def name_of(fun: Any, task: str | None = None) -> str:
    """Return a function's name; for a callable that has none, the last part of the name that
    its task is given. Raises `TypeError` if there is neither."""
    name = getattr(fun, "__name__", None)
    if isinstance(name, str):
        return name
    if not task:
        raise TypeError(f"{fun!r} has no name that its task could have: pass name=…")
    return task.rpartition(".")[2]


def is_same_function(task: Task[..., Any], fun: Any) -> bool:
    """Tell whether a task was made of this function, or of an earlier reading of it."""
    old, new = _code_of(task), getattr(fun, "__code__", None)
    return old is not None and new is not None and _place(old) == _place(new)


def is_redefined(task: Task[..., Any], fun: Any) -> bool:
    """Tell whether a function is what a task's has become: typed again at a prompt, run
    again in a notebook, or changed in its file, which was read again."""
    old, new = _code_of(task), getattr(fun, "__code__", None)
    if old is None or new is None:
        return False
    if is_typed(fun.__module__, new.co_filename):
        return is_typed(type(task).__module__, old.co_filename)
    return _place(old) == _place(new) and old != new


def _code_of(task: Task[..., Any]) -> CodeType | None:
    return getattr(getattr(type(task), "__wrapped__", None), "__code__", None)


def _place(code: CodeType) -> tuple[str, int]:
    return code.co_filename, code.co_firstlineno


def check_options(options: Mapping[str, Any], base: type[Any] | None = None) -> None:
    """Raise `TypeError` for an option that neither liteq nor the base class has, and for
    values as `check_values` does."""
    check_values(options)
    check_names(options, (base or options.get("base"),))


def check_names(options: Mapping[str, Any], bases: Iterable[type[Any] | None]) -> None:
    """Raise `TypeError` for an option that neither liteq nor one of the classes has. They are
    looked at only if there is one that liteq has not."""
    known = {*TASK_OPTIONS, "bind", "base"}
    if known.issuperset(options):
        return
    for base in bases:
        known |= {one for one in options if hasattr(base, one) and not hasattr(Task, one)}
    refuse_unknown(options, known, "a task")


def check_values(options: Mapping[str, Any]) -> None:
    """Raise `TypeError` or `ValueError` for values that would only be found wrong when the
    task is made, or fails."""
    given = options.get("base")
    if given is not None and not (isinstance(given, type) and issubclass(given, Task)):
        raise TypeError(f"base must be a subclass of liteq.Task, not {given!r}")
    name = options.get("name")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be text, not {name!r}")
    _check_hooks(options)
    for name in ("autoretry_for", "dont_autoretry_for", "throws"):
        given = options.get(name) or ()
        for one in given if isinstance(given, Iterable) else (given,):
            if not (isinstance(one, type) and issubclass(one, BaseException)):
                raise TypeError(f"{name} takes classes of exceptions, not {one!r}")
    if not UNIQUE_OPTIONS.isdisjoint(options):
        from liteq.unique import read_options  # late: few tasks are unique

        read_options(options)
    limits_of(options)
    if not _FLUSH.isdisjoint(options):
        from liteq.flushing import checked_flush  # late: few tasks take many calls

        checked_flush(options)
    sensitive_names(options)
    retries = options.get("max_retries")
    if retries is not None and (isinstance(retries, bool) or not isinstance(retries, int)):
        raise TypeError(
            f"max_retries must be a whole number, or None for no limit, not {retries!r}"
        )
    if retries is not None and retries < 0:
        raise ValueError(f"max_retries must be 0 or more, or None for no limit, not {retries}")
    _check_retry_kwargs(options.get("retry_kwargs"))
    checked_deliveries(options.get("max_deliveries"))
    for name in ("default_retry_delay", "retry_backoff", "retry_backoff_max"):
        given = options.get(name)
        if given is not None and not (name == "retry_backoff" and isinstance(given, bool)):
            checked_seconds(name, given)


def _check_hooks(options: Mapping[str, Any]) -> None:
    """Raise `TypeError` for a hook that cannot be one. A signature could be called, but would
    run its task here, with a hook's arguments."""
    for name, instead in _HOOKS.items():
        given = options.get(name)
        if given is not None and (not callable(given) or isinstance(given, Mapping)):
            raise TypeError(
                f"{name} must be a function for liteq to call, not {given!r}{instead}"
            )


_FLUSH: Final = frozenset({"flush_every", "flush_interval"})

# What is worked out of a call's arguments, by a function perhaps.
_KEYS: Final = ("unique_key", "rate_limit_key", "concurrency_key")

_HOOKS: Final[Mapping[str, str]] = {
    "before_start": "",
    "on_success": "; to send another task then, give a call link=other.s()",
    "on_failure": "; to send another task then, give a call link_error=other.s()",
    "on_retry": "",
    "after_return": "",
}


def _check_retry_kwargs(given: Any) -> None:
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise TypeError(f"retry_kwargs must be a dict of arguments for retry(), not {given!r}")
    refuse_unknown(given, CALL_OPTIONS | _RETRY_ARGUMENTS, "retry_kwargs")
