"""Where settings come from: the environment, the project's file, an object."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Final

from liteq import projectfile
from liteq.callers import outside
from liteq.exceptions import ConfigWarning, ImproperlyConfigured
from liteq.settings import OLD_NAMES, SETTINGS, close_name, new_name

__all__ = [
    "CELERY_ENVIRONMENT",
    "environment",
    "from_object",
    "imported",
    "may_matter",
    "project_options",
]

# Short names that LITEQ_… may also go by.
_SHORT: Final[Mapping[str, str]] = {
    "LITEQ_RESULT_URL": "result_backend",
    "LITEQ_EAGER": "task_always_eager",
    "LITEQ_CONCURRENCY": "worker_concurrency",
    "LITEQ_POOL": "worker_pool",
    "LITEQ_LOG_LEVEL": "worker_log_level",
    "LITEQ_LOG_FORMAT": "worker_log_format",
}

# The only ones that Celery itself reads from the environment.
CELERY_ENVIRONMENT: Final = (
    "CELERY_BROKER_URL",
    "CELERY_BROKER_READ_URL",
    "CELERY_BROKER_WRITE_URL",
    "CELERY_RESULT_BACKEND",
)

# How TOML writes our table: [tool.liteq] or tool.liteq.name = …, with quotes or spaces
# perhaps. After [tool] or tool = {… it may be anywhere.
_OUR_TABLE: Final = rb"""\btool["']?\s*(?:\.\s*["']?liteq\b|[]=])"""

_APP: Final = "LITEQ_APP"
_PREFIXES: Final = ("CELERY_", "CELERYD_", "CELERYBEAT_", "LITEQ_")


def environment(environ: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what the environment sets, one layer per variable, the weakest first.

    `LITEQ_BROKER_URL_FILE` names a file that holds the value (a Docker secret).
    """
    for variable in CELERY_ENVIRONMENT:
        if value := environ.get(variable):
            yield f"environment ({variable})", {str(new_name(variable)): value}
    # Sorted, so that the short names come in a fixed order; full names win over them.
    ours = sorted(v for v in environ if v.startswith("LITEQ_"))
    for variable in sorted(ours, key=lambda v: v not in _SHORT):
        name = _SHORT.get(variable) or _setting_of(variable)
        if name is not None:
            yield f"environment ({variable})", {name: environ[variable]}
        elif variable.endswith("_FILE") and (name := _setting_of(variable[:-5])):
            yield f"environment ({variable})", {name: _file(variable, environ[variable])}
        elif close := close_name(variable[6:], 0.85):
            warnings.warn(
                f"unknown environment variable {variable}: did you mean LITEQ_{close.upper()}?",
                ConfigWarning,
                stacklevel=outside(),
            )


def _setting_of(variable: str) -> str | None:
    name = variable.removeprefix("LITEQ_").lower()
    return name if name in SETTINGS else None


def _file(variable: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, UnicodeError) as exc:
        raise ImproperlyConfigured(f"{variable} = {path!r} cannot be read: {exc}") from exc


def project_options(directory: str | None = None) -> tuple[dict[str, Any], str | None]:
    """Return `[tool.liteq]` of the nearest pyproject.toml, or a liteq.toml, and its path.

    Looks in the directory (None: the current one) and upwards, and stops at the first
    file of either name. A pyproject.toml that has no such table is not parsed. Raises
    `ImproperlyConfigured` if the file is not valid TOML.
    """
    found = projectfile.read(directory)
    return ({}, None) if found is None else _project_table(*found)


def _project_table(content: bytes, path: str) -> tuple[dict[str, Any], str | None]:
    own = path.endswith("liteq.toml")
    if not own and not re.search(_OUR_TABLE, content):
        return {}, None
    import tomllib  # late: 12 ms, and to read the file takes as long again

    try:
        document = tomllib.loads(content.decode())
    except ValueError as exc:
        raise ImproperlyConfigured(f"{path} is not valid TOML: {exc}") from exc
    table = document if own else document.get("tool", {}).get("liteq")
    return (table, path) if isinstance(table, dict) else ({}, None)


def imported(name: str, *, silent: bool) -> Any:
    """Return the module or, for `module:attribute`, the object; None if the module is not
    there and that is allowed. The current directory counts, as for `python -m`."""
    import importlib

    module, _, attribute = name.partition(":")
    before = list(sys.path)
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as exc:
        missing = exc.name or ""
        if not (module == missing or module.startswith(f"{missing}.")):
            raise  # it is there, and misses something itself
        if silent:
            return None
        raise ImproperlyConfigured(
            f"the configuration module {module!r} does not exist (looked in {here} and on "
            "the Python path)"
        ) from exc
    finally:
        if sys.path[:1] == [here] and before[:1] != [here]:
            sys.path.remove(here)
    return _attribute(found, attribute, name) if attribute else found


def _attribute(found: Any, attribute: str, name: str) -> Any:
    for part in attribute.split("."):
        if not hasattr(found, part):
            within = getattr(found, "__name__", type(found).__name__)
            raise ImproperlyConfigured(
                f"the configuration object {name!r} does not exist: {within} has no "
                f"attribute {part!r}"
            )
        found = getattr(found, part)
    return found


def from_object(obj: Any, namespace: str | None) -> tuple[dict[str, Any], set[str]]:
    """Return the settings in an object, under their names in the table, and which of them are
    the user's own: no name of ours was meant by them.

    Where nothing else says the time zone, Django's `TIME_ZONE` does, as in Celery.
    """
    if isinstance(obj, Mapping):
        items = dict(obj)
    else:
        # No others are touched: Django's settings warn when one that is on its way out is read.
        items = {key: getattr(obj, key) for key in dir(obj) if may_matter(key, namespace)}
    settings = _in_namespace(items, namespace) if namespace else _of_all(items, obj)
    if isinstance(zone := items.get("TIME_ZONE"), str):
        settings.setdefault("timezone", zone)
    certain = bool(namespace) or isinstance(obj, Mapping)
    own = {key for key in settings if not (certain or _is_meant_for_us(key))}
    return settings, own


def may_matter(key: str, namespace: str | None) -> bool:
    """Tell whether an attribute of this name can be of any meaning here."""
    if key.startswith("_"):
        return False
    if namespace:
        return key == "TIME_ZONE" or key.upper().startswith(_prefix(namespace))
    return (
        key == "TIME_ZONE"
        or not key.isupper()
        or key.startswith(_PREFIXES)
        or new_name(key) is not None
    )


def _prefix(namespace: str) -> str:
    return namespace.rstrip("_").upper() + "_"


def _of_all(items: Mapping[str, Any], obj: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    old: dict[str, str] = {}
    for key, value in items.items():
        name = new_name(key)
        if name is None:
            if _looks_like_setting(key, value, certain=isinstance(obj, Mapping)):
                settings[key] = value
            continue
        settings[name] = value
        if key != name:
            old[key] = name
    new = [key for key in items if key in SETTINGS]
    if old and new:
        renames = "\n".join(f"  {key} -> {name}" for key, name in sorted(old.items()))
        raise ImproperlyConfigured(
            "the configuration mixes new names of settings "
            f"({', '.join(sorted(new)[:5])}{', …' if len(new) > 5 else ''}) with old ones. "
            f"Rename the old ones, or give config_from_object() a namespace:\n{renames}"
        )
    return settings


def _in_namespace(items: Mapping[str, Any], namespace: str) -> dict[str, Any]:
    prefix = _prefix(namespace)
    settings: dict[str, Any] = {}
    for key, value in items.items():
        if key.upper() == _APP:
            continue  # as in the environment, it says which app these are for
        if key.upper().startswith(prefix):
            name = key[len(prefix) :].lower()
            settings[name if name in SETTINGS else OLD_NAMES.get(key.upper(), name)] = value
    return settings


def _looks_like_setting(key: str, value: Any, *, certain: bool) -> bool:
    """Tell whether an unknown name is that of a setting, if one of the user's own.

    In a dict it is. A module also holds imports, helpers and Django's own settings.
    """
    if key.startswith(_PREFIXES):
        return True
    if key.isupper():
        return False
    return certain or not (
        isinstance(value, ModuleType | type | FunctionType | BuiltinFunctionType)
        or type(value).__module__ == "__future__"
    )


def _is_meant_for_us(key: str) -> bool:
    """Tell whether a name in a module is one of ours, well spelt or not."""
    known = key in SETTINGS or key.startswith(_PREFIXES)
    return known or close_name(key, 0.85) is not None
