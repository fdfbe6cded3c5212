"""What another process cannot import, as bytes: functions, classes and values of a script.

dill writes values; functions and classes are written here, so that all functions of a script
have one namespace in the other process too, as in a module: what one of them sets, the others
see. Of that namespace goes what the functions name, in the order in which the script has it,
and the script's classes, which arguments may be instances of.

A part that is not to be copied is named instead: modules, signals, the app and its tasks.
"""

from __future__ import annotations

import abc
import builtins
import dataclasses
import dis
import enum
import io
import marshal
import sys
import threading
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple

from liteq import signals
from liteq.current import current_app, current_task
from liteq.exceptions import ImproperlyConfigured
from liteq.local import Proxy
from liteq.reducing import (
    BASE_OF_TYPED_DICTS,
    OF_TYPED_DICTS,
    Home,
    reduced_cell,
    reduced_class,
    reduced_enum,
    reduced_function,
    reduced_type_variable,
)
from liteq.task import Task

__all__ = ["Parcel", "is_importable", "is_of_script", "is_writable", "pack", "unpack"]

_MAIN: Final = "__main__"
_OF_GLOBALS: Final = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"})
_PLAIN_METACLASSES: Final = (type, abc.ABCMeta, type(typing.Protocol), OF_TYPED_DICTS)
_TYPE_VARIABLES: Final = (typing.TypeVar, typing.ParamSpec, typing.TypeVarTuple, typing.NewType)
# Another process has its own, in nobody's hands. (dill would have the copy of an RLock held for
# ever: that of a cached_property, say, in Python 3.11.)
_LOCKS: Final[Mapping[type, Callable[[], Any]]] = {
    type(made()): made for made in (threading.Lock, threading.RLock)
}
# What is compared by identity. Copies of it would make classes that are no dataclasses.
_MARKS: Final[Mapping[int, str]] = {
    id(value): name
    for name, value in vars(dataclasses).items()
    if type(value).__module__ == "dataclasses" and not isinstance(value, type)
}


def _costs_a_file(value: Any) -> bool:
    """Tell whether a copy would do harm: dill opens a file anew in its mode, also one that was
    closed, and a copy of a temporary file or folder removes it at its own end."""
    if type(value).__module__ == "tempfile":
        return True
    standard = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    if not isinstance(value, io.IOBase) or any(value is one for one in standard):
        return False
    mode = str(getattr(value, "mode", ""))
    return "w" in mode or "x" in mode


class Parcel(NamedTuple):
    """What is sent: how the other process gets the app, and parts, each with the words for it
    in messages."""

    maker: Any  # of the app: a name, or a function and its arguments
    parts: list[tuple[str, Any]]


def is_of_script(value: Any) -> bool:
    """Tell whether a function or a class, or the class of a value, is defined in a script."""
    owner = value if isinstance(value, (type, FunctionType)) else type(value)
    return getattr(owner, "__module__", None) == _MAIN


def is_importable(named: Any, value: Any = None) -> bool:
    """Tell whether the other process finds a function or a class by its name, or a value by
    that of such."""
    found: Any = sys.modules.get(named.__module__ or "")
    if found is None or found.__name__ == _MAIN:
        return False
    for part in named.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is (named if value is None else value)


def is_writable(app: Any, value: Any) -> bool:
    """Tell whether a value can be written."""
    try:
        _Wanted(app).see("it", value)
    except ImproperlyConfigured:
        return False
    return True


def pack(app: Any, parcel: Parcel) -> bytes:
    """Return a parcel as bytes. Raises `ImproperlyConfigured` for what cannot be written."""
    wanted = _Wanted(app)
    for what, value in (*parcel.parts, ("the app", parcel.maker)):
        wanted.see(what, value)
    needed = wanted.names()
    wanted.see_classes()
    file = io.BytesIO()
    pickler = _pickler_class()(file, app, wanted.scopes)
    globals_ = list(wanted.globals())
    named = [(at, name, key) for at, name, value in globals_ if (key := pickler.known(value))]
    copied = [(at, name, value) for at, name, value in globals_ if not pickler.known(value)]
    copied.sort(key=lambda one: not isinstance(one[2], FunctionType))
    first = [one for one in copied if one[:2] in needed]
    below = wanted.submodules(key[1] for _, _, key in named if key[0] == "module")
    told_first = [_of_script(name) for _, name, _ in first]
    told = [what for what, _ in parcel.parts]
    pickler.dump((parcel.maker, named, below, told_first, told))
    for part in (*first, *(value for _, value in parcel.parts)):
        pickler.dump(part)
    places = []
    for one in copied:
        if one[:2] not in needed:
            places.append(file.tell())
            pickler.dump(one)
    return marshal.dumps((file.getvalue(), places))


def unpack(
    data: bytes, make: Callable[[Any], Any], task_of: Callable[[Any, str], Any]
) -> tuple[Any, list[Any], Callable[[], None]]:
    """Return the app that `make(maker)` gives, the parts of a parcel, and what completes the
    namespace, to be called when the app has its tasks. `task_of(app, name)` stands for one.
    Raises `ImproperlyConfigured` for what could be written, but not be read."""
    content, places = marshal.loads(data)
    file = io.BytesIO(content)
    unpickler = _unpickler_class()(file, make, task_of)
    unpickler.maker, named, below, copied, parts = unpickler.load()
    for module in below:
        __import__(module)
    for what in copied:
        with _told(what):
            at, name, value = unpickler.load()
        unpickler.scope(at)[name] = value
    app = unpickler.app()
    for at, name, key in named:
        unpickler.scope(at)[name] = unpickler.persistent_load(key)
    found = []
    for what in parts:
        with _told(what):
            found.append(unpickler.load())
    for place in places:
        file.seek(place)
        with suppress(Exception):  # no task names it: only arguments can be missing it
            at, name, value = unpickler.load()
            unpickler.scope(at)[name] = value

    def complete() -> None:
        for at, name, key in named:
            if key[0] == "task" and key[1] in app.tasks:
                unpickler.scope(at)[name] = app.tasks[key[1]]
        # Where classes are looked for by name: those of arguments, say.
        main = vars(sys.modules[_MAIN])
        for scope in unpickler.scopes.values():
            main.update({key: scope[key] for key in scope if not key.startswith("__")})

    return app, found, complete


def _of_script(name: str) -> str:
    return f"{name!r} of the script"


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as exc:
        raise ImproperlyConfigured(
            f"{what} cannot be sent to another process: {type(exc).__name__}: {exc}. "
            "Make it inside of the function that needs it, put it and its tasks into "
            "a module, which each process imports, or use pool='threads'"
        ) from exc


class _Wanted:
    """Which names of which namespaces are needed in the other process."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.scopes: list[dict[str, Any]] = []
        self._names: dict[int, set[str]] = {}
        self._attributes: set[str] = set()  # what the code names of anything

    def see(self, what: str, value: Any) -> None:
        """Note what a value needs, and what that needs in turn. Raises
        `ImproperlyConfigured` for what cannot be written, which is told in these words."""
        pickler = _pickler_class()(_Nowhere(), self._app, self.scopes)
        todo = [(what, value)]
        while todo:
            what, value = todo.pop()
            with _told(what):
                pickler.dump(value)
            self._attributes |= pickler.attributes
            for at, names in pickler.take_names():
                known = self._names.setdefault(at, set())
                for name in sorted(names - known):
                    if name in self.scopes[at]:
                        known.add(name)
                        todo.append((_of_script(name), self.scopes[at][name]))

    def see_classes(self) -> None:
        """Add the classes of the script that can be written."""
        for at, scope in enumerate(self.scopes):
            for name, value in list(scope.items()):
                if isinstance(value, type) and is_of_script(value):
                    alone = _Wanted(self._app)
                    alone.scopes = self.scopes
                    try:
                        alone.see(name, value)
                    except ImproperlyConfigured:
                        continue  # nothing needs it, but for arguments perhaps
                    alone._names.setdefault(at, set()).add(name)
                    self._attributes |= alone._attributes
                    for where, names in alone._names.items():
                        self._names.setdefault(where, set()).update(names)

    def submodules(self, modules: Iterable[str]) -> list[str]:
        """Return what is loaded below these modules and named by the code: `import a.b` makes
        a global of `a` alone."""
        above = {f"{name}." for name in modules}
        return [
            name
            for name in sorted(sys.modules)
            for package in above
            if name.startswith(package)
            and self._attributes.issuperset(name.removeprefix(package).split("."))
        ]

    def names(self) -> set[tuple[int, str]]:
        return {(at, name) for at, names in self._names.items() for name in names}

    def globals(self) -> Iterator[tuple[int, str, Any]]:
        for at, scope in enumerate(self.scopes):
            for name in [name for name in scope if name in self._names.get(at, ())]:
                yield at, name, scope[name]


class _Nowhere(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


@cache
def _pickler_class() -> Any:
    import dill  # late: 40 ms, and only the tasks of a script need it

    class Pickler(dill.Pickler):  # type: ignore[misc]  # dill ships no types
        def __init__(self, file: Any, app: Any, scopes: list[dict[str, Any]]) -> None:
            super().__init__(file, recurse=False)
            self._app = app
            self._scopes = scopes
            self._names: dict[int, set[str]] = {}
            self.attributes: set[str] = set()

        def take_names(self) -> list[tuple[int, set[str]]]:
            taken, self._names = self._names, {}
            return list(taken.items())

        def known(self, value: Any) -> tuple[Any, ...] | None:
            """Return what a value is called by in the other process; None if it is to be
            copied."""
            kind = type(value)
            if kind is Proxy:
                return self._proxied(value)
            if value is self._app:
                return ("app",)
            if value is self._app.conf:
                return ("conf",)
            if issubclass(kind, Task):
                return self._task(value)
            if isinstance(value, ModuleType) and sys.modules.get(value.__name__) is value:
                return ("module", value.__name__)
            if kind is signals.Signal:
                return _signal(value)
            if id(value) in _MARKS:
                return ("mark", _MARKS[id(value)])
            return _sentinel(value) if kind is object else None

        def _task(self, task: Any) -> tuple[Any, ...]:
            if task.app is self._app and task.name in self._app.tasks:
                return ("task", task.name)
            if is_importable(type(task), task):
                return ("member", type(task).__module__, type(task).__qualname__)
            raise TypeError(f"{task!r} is a task of another app")

        def _proxied(self, value: Any) -> tuple[Any, ...] | None:
            for name, one in (("current_app", current_app), ("current_task", current_task)):
                if value is one:
                    return ("current", name)
            return self.known(value._get_current_object())

        def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
            if type(value) is dict:
                for at, scope in enumerate(self._scopes):
                    if value is scope:
                        return ("scope", at)
                return None
            return self.known(value)

        def reducer_override(self, value: Any) -> Any:
            kind = type(value)
            if kind is FunctionType and not is_importable(value):
                return self._function(value)
            if kind in _TYPE_VARIABLES and value.__module__ == _MAIN:
                return reduced_type_variable(value)
            if kind in _LOCKS:
                return _LOCKS[kind], ()
            if _costs_a_file(value):
                raise TypeError(
                    f"a copy of {value!r} would empty or remove a file: open it in the task"
                )
            if kind is CodeType:  # dill asks it for what Python 3.15 has taken away
                return marshal.loads, (marshal.dumps(value),)
            if kind is CellType:
                return reduced_cell(value)
            if value is BASE_OF_TYPED_DICTS:  # annotations of Python 3.14 hold it
                return "_TypedDict"  # which is not what it calls itself
            if isinstance(value, type) and _is_made_here(value):
                if isinstance(value, enum.EnumMeta):
                    return reduced_enum(value)
                if kind in _PLAIN_METACLASSES or is_of_script(kind):
                    return reduced_class(value)
            return NotImplemented

        def dump(self, value: Any) -> None:
            with warnings.catch_warnings():
                # It would name what nobody finds there: a model of pydantic, say.
                warnings.simplefilter("error", dill.PicklingWarning)
                super().dump(value)

        def _function(self, function: FunctionType) -> Any:
            scope = function.__globals__
            module: Any = sys.modules.get(scope.get("__name__", ""))
            home: Any = Home(module.__name__) if _is_home(module, scope) else scope
            if home is scope:
                at = self._number(scope)
                names = set(_names_in(function.__code__))
                self.attributes.update(_attributes_in(function.__code__))
                self._names.setdefault(at, set()).update(names)
            return reduced_function(function, home)

        def _number(self, scope: dict[str, Any]) -> int:
            for at, known in enumerate(self._scopes):
                if known is scope:
                    return at
            self._scopes.append(scope)
            return len(self._scopes) - 1

    return Pickler


@cache
def _unpickler_class() -> Any:
    import dill  # late: 40 ms, and only the tasks of a script need it

    class Unpickler(dill.Unpickler):  # type: ignore[misc]  # dill ships no types
        maker: Any = None

        def __init__(self, file: Any, make: Callable[[Any], Any], task_of: Any) -> None:
            super().__init__(file, ignore=True)
            self._make = make
            self._task_of = task_of
            self._app: Any = None
            self.scopes: dict[int, dict[str, Any]] = {}

        def app(self) -> Any:
            if self._app is None:
                self._app = self._make(self.maker)
            return self._app

        def scope(self, at: int) -> dict[str, Any]:
            fresh = {"__name__": _MAIN, "__builtins__": builtins}
            return self.scopes.setdefault(at, fresh)

        def persistent_load(self, key: tuple[Any, ...]) -> Any:
            match key:
                case ("scope", at):
                    return self.scope(at)
                case ("app",):
                    return self.app()
                case ("conf",):
                    return self.app().conf
                case ("task", name):
                    return self._task_of(self.app(), name)
                case ("module", name):
                    __import__(name)
                    return sys.modules[name]
                case ("member" | "sentinel", module, name):
                    return self.find_class(module, name)
                case ("signal", name):
                    return vars(signals)[name]
                case ("current", name):
                    return {"current_app": current_app, "current_task": current_task}[name]
                case (_, name):
                    return vars(dataclasses)[name]

    return Unpickler


def _signal(signal: signals.Signal) -> tuple[Any, ...] | None:
    return ("signal", signal.name) if vars(signals).get(signal.name) is signal else None


def _sentinel(value: object) -> tuple[str, str, str] | None:
    """Return where a module has an object that is nothing but itself: what a library compares
    with it by identity must stay the same."""
    for module, loaded in list(sys.modules.items()):
        if getattr(loaded, "__name__", _MAIN) != _MAIN:
            for name, one in list(vars(loaded).items()):
                if one is value:
                    return ("sentinel", module, name)
    return None


def _is_home(module: Any, scope: dict[str, Any]) -> bool:
    return module is not None and module.__name__ != _MAIN and vars(module) is scope


def _is_made_here(kind: type) -> bool:
    return kind.__module__ == _MAIN or ("<locals>" in kind.__qualname__)


def _names_in(code: CodeType) -> Iterator[str]:
    """Yield which globals code names, and the code inside of it."""
    for one in dis.get_instructions(code):
        if one.opname in _OF_GLOBALS:
            yield one.argval
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names_in(inner)


def _attributes_in(code: CodeType) -> Iterator[str]:
    """Yield all names in code, and in the code inside of it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _attributes_in(inner)
