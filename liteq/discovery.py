"""Find the app that a command is about, and say clearly why when there is none.

Importing the app runs the user's code, so what goes wrong there is shown as the user's
own traceback, without the frames of the import machinery or of liteq, and with one hint.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any, Final, NamedTuple, TypeVar

from liteq.app import Liteq, app_of
from liteq.exceptions import ImproperlyConfigured, LiteqError
from liteq.results.joining import importing
from liteq.settingsources import project_options

__all__ = [
    "AppBroken",
    "AppNotFound",
    "Found",
    "find_app",
    "import_tasks",
    "load_app",
    "user_traceback",
]

ATTRIBUTES = ("app", "celery", "liteq")  # where an app is looked for first in a module
SUBMODULES = ("app", "celery", "liteq", "tasks")  # and then in a package
FACTORIES = ("create_app", "make_app")  # as Flask's command looks for them
NOT_OURS = frozenset({"test", "tests", "docs", "examples", "build", "dist"})

T = TypeVar("T")

_ABSENT: Final = object()
_SPEC = re.compile(r"(?P<file>.+\.py)(?::(?P<attribute>.+))?")
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_IMPORTLIB = os.path.dirname(os.path.abspath(importlib.__file__)) + os.sep


class AppNotFound(LiteqError):
    """There is no app where one was looked for; the message says where that was."""


class AppBroken(AppNotFound):
    """The app's module cannot be imported. The message is the user's traceback, trimmed
    to their frames, and one line with a hint."""


class Found(NamedTuple):
    """An app, and the `module:attribute` by which another process finds it too."""

    app: Liteq
    reference: str


def find_app(
    given: str | None = None,
    *,
    directory: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Found:
    """Import and return the app.

    The first of these that says anything decides: `given` (`-A`), `$LITEQ_APP`,
    `[tool.liteq] app` in the nearest pyproject.toml, and then what is found in the
    directory (default: the current one): `tasks.py`, `app.py`, `<package>/tasks.py`.
    The directory goes first on `sys.path`, as Python does for a script.

    Raises `AppNotFound`, or `AppBroken` when the user's code raises.
    """
    directory = os.path.abspath(directory or _here())
    _put_on_path(directory)
    if given:
        return load_app(given)
    if named := environ.get("LITEQ_APP"):
        return load_app(named, said_by="LITEQ_APP")
    options, file = project_options(directory)
    if file is not None and (named := options.get("app")):
        if not isinstance(named, str):
            raise ImproperlyConfigured(f"app in {file} must be text, not {named!r}")
        _put_on_path(os.path.dirname(file))
        return load_app(named, said_by=file, directory=os.path.dirname(file))
    return _search(directory)


def load_app(
    spec: str, *, said_by: str = "-A", directory: str | os.PathLike[str] | None = None
) -> Found:
    """Import the app that a specification names.

    Forms: `module`, `module:attribute`, `module:factory()`, `module.attribute`, and a
    file's path in place of the module. Without an attribute, the module's `app`,
    `celery` or `liteq` is taken if it is an app, then the only app in it, then, for a
    package, that of its modules `app`, `celery`, `liteq` and `tasks`. A Flask app with
    liteq's extension stands for the app that it has.
    """
    if match := _SPEC.fullmatch(spec):
        file = os.path.join(directory or _here(), match["file"])
        if not os.path.isfile(file):
            raise AppNotFound(f"there is no file {file!r} ({said_by} says {spec!r})")
        module, attribute = _import_file(file), match["attribute"]
    else:
        name, _, attribute = spec.partition(":")
        if not all(part.isidentifier() for part in name.split(".")):
            raise AppNotFound(
                f"{said_by} says {spec!r}, which is not an app: expected module, "
                "module:attribute, module:factory() or path/file.py"
            )
        module, attribute = _import_spec(name, attribute, said_by)
    if attribute:
        return _named_app(module, attribute)
    found = _app_in(module)
    if found is None:
        raise AppNotFound(
            f"there is no liteq app in {module.__name__} ({_place(module)}): {_wanted(module)}"
        )
    return found


def import_tasks(app: Liteq, include: Iterable[str] = ()) -> None:
    """Import the modules that a worker of the app needs: `include` here and in the
    settings, `imports`, and what `autodiscover_tasks()` was told of. Raises `AppBroken`."""
    for name in include:
        _import_spec(name, "", "--include")
    _user_code(app.finalize, "the tasks")
    _user_code(app.import_default_modules, "the modules of imports and include")


def user_traceback(exc: BaseException) -> str:
    """Return the traceback as text, without the frames of the import machinery and of
    liteq itself."""
    shown = traceback.TracebackException.from_exception(exc, compact=True)
    for part in _linked(shown):
        kept = [frame for frame in part.stack if not _is_machinery(frame.filename)]
        part.stack = traceback.StackSummary.from_list(kept)
    return "".join(shown.format())


# Importing


def _import_spec(name: str, attribute: str, said_by: str) -> tuple[ModuleType, str]:
    """Import `name`; where its last part is no module, take it for an attribute."""
    try:
        return _import(name), attribute
    except _NoModule:
        parent, _, last = name.rpartition(".")
        if parent and not attribute:
            try:
                module = _import(parent)
            except _NoModule:
                pass
            else:
                if hasattr(module, last):
                    return module, last
        raise AppNotFound(
            f"there is no module {name!r} ({said_by}), looked for from {os.getcwd()}; "
            "is this the project's directory? --workdir names another"
        ) from None


def _import_file(file: str) -> ModuleType:
    """Import a file under the name that `import` would give it, as tasks are named by it."""
    root = os.path.realpath(os.path.dirname(file))
    name = os.path.basename(file).removesuffix(".py")
    while os.path.isfile(os.path.join(root, "__init__.py")):
        root, last = os.path.split(root)
        name = f"{last}.{name}"
    name = name.removesuffix(".__init__")
    _put_on_path(root)
    if not all(part.isidentifier() for part in name.split(".")):
        return _user_code(lambda: _exec_file(file, name), name)
    module = _import(name)
    if not os.path.samefile(getattr(module, "__file__", None) or os.devnull, file):
        raise AppNotFound(
            f"{file} cannot be imported: the module {name!r} is already {_place(module)}; "
            "give the file another name"
        )
    return module


def _exec_file(file: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # a .py file always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # as a failed import does
        raise
    return module


class _NoModule(Exception):
    """The module asked for does not exist, and no user code was involved in that."""


def _import(name: str) -> ModuleType:
    return _user_code(lambda: importlib.import_module(name), name)


def _user_code(imports: Callable[[], T], name: str) -> T:
    """Run the user's code; turn whatever it raises into `AppBroken`."""
    try:
        with importing(name):
            return imports()
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        absent = exc.name or "" if isinstance(exc, ModuleNotFoundError) else ""
        asked = absent and (name + ".").startswith(absent + ".")
        if asked and not any(_user_places(exc)):
            raise _NoModule(name) from None
        raise AppBroken(f"{user_traceback(exc)}hint: {_hint(exc, name)}") from exc


def _hint(exc: BaseException, name: str) -> str:
    match exc:
        case SyntaxError():
            version = ".".join(map(str, sys.version_info[:2]))
            where = f"{exc.filename}, line {exc.lineno}"
            return f"{where} is not valid Python {version}; nothing was started"
        case ModuleNotFoundError(name="celery"):
            return "liteq has Celery's names: `from liteq import Liteq` in place of celery"
        case ModuleNotFoundError(name=str(absent)):
            top = absent.partition(".")[0]
            return f"{top!r} is not installed for {sys.executable}, and not in {os.getcwd()}"
        case ImportError(path=str(file)) if file in _files(exc):  # which is still being run
            return "two modules import each other; let both import the app from a third"
        case SystemExit():
            return f"importing {name!r} ends the program: guard it, if __name__ == '__main__':"
        case _:
            places = list(_user_places(exc))
            where = f"at {places[-1]}" if places else f"importing {name!r}"
            return f"the error is in the app's code, {where}; nothing was started"


# Looking inside a module


def _named_app(module: ModuleType, attribute: str) -> Found:
    reference = f"{module.__name__}:{attribute}"
    calls = attribute.endswith("()")
    value: Any = module
    for part in attribute.removesuffix("()").split("."):
        # What has it may be code of its own (`__getattr__`), which may raise anything.
        value = _user_code(partial(getattr, value, part, _ABSENT), module.__name__)
        if value is _ABSENT:
            raise AppNotFound(
                f"{module.__name__} ({_place(module)}) has no {part!r}{_apps_there(module)}"
            )
    if calls:
        if not callable(value):
            raise AppNotFound(f"{reference}: {value!r} cannot be called")
        value = _user_code(value, module.__name__)
    app = app_of(value)
    if app is None:
        advice = _instead(value, called=calls)
        raise AppNotFound(f"{reference} is not a liteq app but {type(value).__name__}{advice}")
    return Found(app, reference)


def _instead(value: object, *, called: bool) -> str:
    """Say what to name, or to do, in place of what is no app."""
    match type(value).__name__:
        case "FlaskLiteq":
            return ": name the Flask app that has it, or its factory with ()"
        case "Flask":
            return " without liteq: FlaskLiteq().init_app(app) gives it one"
        case _:
            return "; is it a factory? then add ()" if callable(value) and not called else ""


def _app_in(module: ModuleType) -> Found | None:
    for name in ATTRIBUTES:
        if (app := app_of(getattr(module, name, None))) is not None:
            return Found(app, f"{module.__name__}:{name}")
    names = _app_names(module)
    if len(names) > 1:
        raise AppNotFound(
            f"there are {len(names)} apps in {module.__name__}: {', '.join(names)}; "
            f"say which, as in  -A {module.__name__}:{names[0]}"
        )
    if names and (app := app_of(getattr(module, names[0]))) is not None:
        return Found(app, f"{module.__name__}:{names[0]}")
    if hasattr(module, "__path__"):
        for last in SUBMODULES:
            name = f"{module.__name__}.{last}"
            if importlib.util.find_spec(name) and (found := _app_in(_import(name))):
                return found
    return None


def _wanted(module: ModuleType) -> str:
    """Say what was looked for, or how to name the factory that is there in its place. That is
    not called unasked: what it makes may be anything."""
    for name in FACTORIES:
        if callable(getattr(module, name, None)):
            named = f"-A '{module.__name__}:{name}()'"
            return f"is it made by a factory? then name that, as in  {named}"
    return "expected something like  app = Liteq('name')"


def _app_names(module: ModuleType) -> list[str]:
    """Return one name for each app in the module."""
    named = ((n, app_of(v)) for n, v in reversed(vars(module).items()))
    by_app = {id(app): n for n, app in named if app is not None}
    return sorted(by_app.values())


def _apps_there(module: ModuleType) -> str:
    names = _app_names(module)
    return f"; its apps: {', '.join(names)}" if names else ""


# Looking for a module


def _search(directory: str) -> Found:
    looked: list[str] = []
    for name in ("tasks.py", "app.py"):
        looked.append(name)
        file = os.path.join(directory, name)
        # A tasks.py is ours to import; an app.py may be anything, and start a server.
        if os.path.isfile(file) and (name == "tasks.py" or _mentions_liteq(file)):
            found = _app_in(_import_file(file))
            if found is not None:
                return found
    looked.append("<package>/tasks.py")
    apps = {id(found.app): found for found in _apps_of_packages(directory)}
    if len(apps) > 1:
        names = sorted(found.reference for found in apps.values())
        raise AppNotFound(
            f"several packages have an app: {', '.join(names)}; say which, as in  -A {names[0]}"
        )
    for found in apps.values():
        return found
    raise AppNotFound(
        f"no liteq app in {directory} (looked for {', '.join(looked)}); name it with "
        "-A module:attribute, $LITEQ_APP, or app in [tool.liteq] of pyproject.toml"
    )


def _apps_of_packages(directory: str) -> Iterator[Found]:
    for root in (directory, os.path.join(directory, "src")):
        try:
            names = sorted(os.listdir(root))
        except OSError:  # it is not there, or not to be read
            continue
        for name in names:
            package = os.path.join(root, name, "__init__.py")
            if name in NOT_OURS or not os.path.isfile(package):
                continue
            modules = [os.path.join(root, name, f"{last}.py") for last in SUBMODULES]
            # One that has shared tasks alone is another's, and may need what that sets up.
            if not any(map(_may_make_an_app, (package, *modules))):
                continue
            if found := _app_in(_import_file(package)):
                yield found


def _mentions_liteq(file: str) -> bool:
    return b"liteq" in _source(file)


def _may_make_an_app(file: str) -> bool:
    source = _source(file)
    return b"liteq" in source and re.search(rb"\b((Flask)?Liteq|Celery)\b", source) is not None


def _source(file: str) -> bytes:
    try:
        with open(file, "rb") as source:
            return source.read()
    except OSError:
        return b""


# Words


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise AppNotFound(
            "the current directory was deleted: change to another, or name one with --workdir"
        ) from None


def _put_on_path(directory: str) -> None:
    if directory not in sys.path:
        sys.path.insert(0, directory)  # as Python does for a script


def _place(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "built into Python"


def _is_machinery(filename: str) -> bool:
    return filename.startswith(("<frozen ", _HERE, _IMPORTLIB))


def _files(exc: BaseException) -> set[str]:
    """Return the files of the traceback."""
    return {frame.filename for frame in traceback.extract_tb(exc.__traceback__)}


def _user_places(exc: BaseException) -> Iterator[str]:
    """Yield `file:line` for each frame of the traceback that is the user's."""
    for frame in traceback.extract_tb(exc.__traceback__):
        if not _is_machinery(frame.filename):
            yield f"{frame.filename}:{frame.lineno}"


def _linked(
    shown: traceback.TracebackException,
) -> Iterable[traceback.TracebackException]:
    yield shown
    for other in (shown.__cause__, shown.__context__, *(shown.exceptions or ())):
        if other is not None:
            yield from _linked(other)
