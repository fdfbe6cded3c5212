"""Settings: what may be configured, where each value comes from, and what it must be.

`SETTINGS` is the one table of names, defaults and checks; all of Celery's names are in
it, so that a configuration moves unchanged. `Settings` puts the layers together when a
value is first read, the strongest first:

1. options of the command line (`override()`)
2. the environment: LITEQ_<NAME>, then Celery's CELERY_BROKER_URL and its like
3. what code assigned, `app.conf.x = …` and the arguments of the app
4. the object given to `config_from_object()`
5. `[tool.liteq]` in the nearest pyproject.toml, or a liteq.toml
6. `add_defaults()`, then the table

A name that is not in the table is kept, with a `ConfigWarning` that suggests the right one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from liteq import djangoproject
from liteq.callers import outside
from liteq.exceptions import ConfigWarning, ImproperlyConfigured
from liteq.redaction import HIDDEN, is_secret_setting, mask_url
from liteq.settings import SETTINGS, close_name, new_name
from liteq.settingsources import (
    environment,
    from_object,
    imported,
    may_matter,
    project_options,
)
from liteq.settingvalues import Unfit

__all__ = ["Settings", "refuse_misspelt"]

_NOT_SETTINGS: Final = frozenset({"app"})  # in [tool.liteq] for the command line alone
_CODE: Final = "code"
_ARGUMENTS: Final = frozenset({"args", "kwargs"})  # of a periodic entry, or a signature


class Settings(MutableMapping[str, Any]):
    """The settings of one app, by attribute or by item.

    Nothing is read before the first read access; what is assigned before is kept, and
    wins over the configuration object. `on_load(settings)` is called after each loading.
    `environ` and `directory` (where the search for a pyproject.toml starts) default to
    those of the process.

    Assigning raises `ImproperlyConfigured` for a value of the wrong type, and warns with
    `ConfigWarning` about a name that is not known or has no effect.
    """

    def __init__(
        self,
        changes: Mapping[str, Any] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        directory: str | None = None,
        on_load: Callable[[Settings], object] | None = None,
    ) -> None:
        self._environ: Mapping[str, str] = os.environ if environ is None else environ
        self._directory = directory
        self._on_load = on_load
        self._options: dict[str, Any] = {}
        self._options_source = "command line"
        self._changes: dict[str, Any] = {}
        self._object: tuple[Any, bool, str | None] | None = None
        self._defaults: list[Mapping[str, Any] | Callable[[], Mapping[str, Any]]] = []
        self._values: dict[str, Any] | None = None  # None: to be loaded
        self._revision = 0
        self._sources: dict[str, str] = {}
        self._warned: set[str] = set()
        for name, value in (changes or {}).items():
            self._change(name, value)

    # Reading and writing

    def __getattr__(self, name: str) -> Any:
        """Load, and find what `_show()` could not put where Python looks first."""
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError as exc:
            raise AttributeError(str(exc.args[0])) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        elif hasattr(type(self), name):
            raise AttributeError(f"{name} is a method of Settings, not a setting")
        else:
            self._change(name, value)

    def __delattr__(self, name: str) -> None:
        del self[name]

    def __getitem__(self, key: str) -> Any:
        values = self._loaded()
        if key in values:
            return values[key]
        name = new_name(key)
        if name is not None and name in values:
            return values[name]
        raise KeyError(f"there is no setting {key!r}{_suggestion(key)}")

    def __setitem__(self, key: str, value: Any) -> None:
        self._change(key, value)

    def __delitem__(self, key: str) -> None:
        """Take back what code assigned; the value below shows again."""
        del self._changes[new_name(key) or key]
        self._forget()

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded())

    def __len__(self) -> int:
        return len(self._loaded())

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return False
        values = self._loaded()
        return key in values or new_name(key) in values

    def __repr__(self) -> str:
        state = "not loaded" if self._values is None else f"{len(self._sources)} set"
        return f"<Settings: {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy what code assigned: the other process has an environment of its own."""
        return Settings, (self._changes,)

    # Layers

    def override(self, options: Mapping[str, Any], source: str = "command line") -> None:
        """Set what nothing else overrides: the options of the command line.

        Options that are None were not given and change nothing.
        """
        for key, value in options.items():
            if value is not None:
                name = new_name(key) or key
                self._options[name] = _checked(name, value, source)
        self._options_source = source
        self._forget()

    def overrides(self) -> dict[str, Any]:
        """Return what `override()` has set, for another process of the same command."""
        return dict(self._options)

    @contextmanager
    def overridden(self, options: Mapping[str, Any], source: str) -> Iterator[None]:
        """Have these settings, None among their values, override all others for a time.

        Such times are nested: the one that began last ends first.
        """
        before = self._options, self._options_source
        checked = {new_name(key) or key: value for key, value in options.items()}
        checked = {name: _checked(name, value, source) for name, value in checked.items()}
        self._say(_remarks(checked, checked, self._warned), source)
        self._options, self._options_source = {**self._options, **checked}, source
        self._forget()
        try:
            yield
        finally:
            self._options, self._options_source = before
            self._forget()

    def config_from_object(
        self,
        obj: Any,
        silent: bool = False,  # noqa: FBT001, FBT002 (Celery's signature)
        force: bool = False,  # noqa: FBT001, FBT002
        namespace: str | None = None,
    ) -> bool:
        """Take settings from a module (or its name), an object, a class or a dict.

        It is read when a setting is first needed, or now with `force`. With a namespace
        only names with that prefix count, without it. `silent`: a module that does not
        exist holds no settings. Returns False if, with `force`, nothing was read.

        Reading raises `ImproperlyConfigured` for a value of the wrong type, and for old
        and new names side by side.
        """
        self._object = (obj, silent, namespace)
        self._forget()
        if force:
            return self._source_object() is not None and bool(self._loaded())
        return True

    def config_from_envvar(
        self,
        variable: str,
        silent: bool = False,  # noqa: FBT001, FBT002 (Celery's signature)
        force: bool = False,  # noqa: FBT001, FBT002
    ) -> bool:
        """Take settings from the module that an environment variable names.

        Raises `ImproperlyConfigured` if it is not set, unless `silent`: then returns False.
        """
        module = self._environ.get(variable)
        if module:
            return self.config_from_object(module, silent=silent, force=force)
        if silent:
            return False
        raise ImproperlyConfigured(
            f"the environment variable {variable} is not set: it must name the module that "
            "holds the settings"
        )

    def config_from_cmdline(self, argv: Iterable[str], namespace: str = "celery") -> None:
        """Set from `key=value` words; `.key` is short for a setting of the namespace.

        A value is read as the setting's type. Raises `ImproperlyConfigured` for a word
        without `=`.
        """
        options: dict[str, Any] = {}
        for word in argv:
            key, equals, value = word.partition("=")
            if not equals:
                raise ImproperlyConfigured(f"{word!r} is not a setting: write key=value")
            key = key.strip().replace("-", "_").replace(".", "_").strip("_")
            name = new_name(key) or new_name(f"{namespace}_{key}") or key
            options[name] = value.strip()
        self.override(options)

    def add_defaults(
        self, defaults: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    ) -> None:
        """Add settings that all but the built-in defaults override. A function is called
        when the settings are loaded. Of several, the last wins."""
        self._defaults.append(defaults)
        self._forget()

    # Celery's views

    @property
    def changes(self) -> dict[str, Any]:
        """What code assigned (a copy)."""
        return dict(self._changes)

    def source_of(self, key: str) -> str:
        """Say where a setting's value comes from, "default" if from nowhere."""
        self._loaded()
        return self._sources.get(new_name(key) or key, "default")

    def value_set_for(self, key: str) -> bool:
        """Tell whether a setting has been given a value at all."""
        return self.source_of(key) != "default"

    def without_defaults(self) -> dict[str, Any]:
        """Return what has been set, without the defaults."""
        values = self._loaded()
        return {name: values[name] for name in values if name in self._sources}

    def find_value_for_key(self, name: str, namespace: str = "celery") -> Any:
        """Return a setting by the end of its name: `always_eager`, or with a namespace
        `("concurrency", "worker")`. Raises `KeyError` if there is none."""
        name = name.lower()
        spaces = (namespace.lower(), "task", "worker", "result", "broker", "beat")
        for key in (*(f"{space}_{name}" for space in spaces), name):
            if key in SETTINGS:
                return self[key]
        return self[name]

    def table(
        self,
        with_defaults: bool = False,  # noqa: FBT001, FBT002 (Celery's signature)
        censored: bool = True,  # noqa: FBT001, FBT002
    ) -> dict[str, Any]:
        """Return the settings as a dict; `censored` hides passwords, keys and tokens."""
        values = dict(self._loaded()) if with_defaults else self.without_defaults()
        return (
            {key: _censored(key, value) for key, value in values.items()}
            if censored
            else values
        )

    def humanize(
        self,
        with_defaults: bool = False,  # noqa: FBT001, FBT002 (Celery's signature)
        censored: bool = True,  # noqa: FBT001, FBT002
    ) -> str:
        """Return the settings as text, one in a line."""
        table = self.table(with_defaults, censored)
        return "\n".join(f"{key}: {value!r}" for key, value in sorted(table.items()))

    def so_far(self, name: str) -> Any:
        """Return a setting without loading: until that is done, what the code has set, or
        None."""
        return (self._changes if self._values is None else self._values).get(name)

    # Loading

    @property
    def revision(self) -> int:
        """A number that differs after every change, so that what was worked out from the
        settings is known to be stale. Reading it loads."""
        if self._values is None:
            self._load()
        return self._revision

    def _change(self, key: str, value: Any) -> None:
        name = new_name(key) or key
        value = _checked(name, value, _CODE)
        self._say(_remarks([name], {name: value}, self._warned), _CODE)
        self._changes[name] = value
        # Loaded settings are amended, not loaded anew: others may hold a mutable default.
        if self._values is not None and not self._stronger(name):
            self._values[name] = value
            self._sources[name] = _CODE
            self._show({name: value})
        self._revision += 1

    def _stronger(self, name: str) -> bool:
        source = self._sources.get(name, "")
        return name in self._options or source.startswith("environment")

    def _show(self, values: Mapping[str, Any]) -> None:
        """Put values among the instance's own attributes: to read one there costs 30 ns,
        through `__getattr__` more than a microsecond, and every call of a task reads some."""
        for name, value in values.items():
            if not hasattr(type(self), name):
                self.__dict__[name] = value

    def _forget(self) -> None:
        """Have everything loaded anew at the next reading."""
        for name in self._values or ():
            self.__dict__.pop(name, None)
        self._values = None

    def _loaded(self) -> dict[str, Any]:
        values = self._values
        return self._load() if values is None else values

    def _load(self) -> dict[str, Any]:
        """Put the layers together, the weakest first.

        No lock: two threads that come here together make equal dicts, and a lock held
        over the import of a configuration module could meet the import lock.
        """
        values = {row.name: _fresh(row.default) for row in SETTINGS.values()}
        sources: dict[str, str] = {}
        for source, found in self._layers():
            layer = {name: _checked(name, value, source) for name, value in found.items()}
            if source is not _CODE:  # said already, when it was assigned
                self._say(_remarks(layer, layer, self._warned), source)
            for name in layer:
                if source.startswith("environment") and sources.get(name) == _CODE:
                    _log_override(name, source)
                sources[name] = source
            values.update(layer)
        self._forget()
        self._values, self._sources = values, sources
        self._show(values)
        if self._on_load is not None:
            self._on_load(self)
        self._revision += 1
        return values

    def _layers(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for defaults in self._defaults:
            mapping = defaults() if callable(defaults) else defaults
            yield "add_defaults()", {new_name(key) or key: mapping[key] for key in mapping}
        options, path = project_options(self._directory)
        if path is not None:
            yield (
                path,
                {
                    new_name(key.replace("-", "_")) or key: value
                    for key, value in options.items()
                    if key not in _NOT_SETTINGS
                },
            )
        if (found := self._source_object()) is not None:
            yield found
        yield _CODE, self._changes
        yield from environment(self._environ)
        yield self._options_source, self._options

    def _source_object(self) -> tuple[str, Mapping[str, Any]] | None:
        if self._object is None:
            return None
        obj, silent, namespace = self._object
        source = f"configuration {obj!r}" if isinstance(obj, str) else "configuration object"
        if isinstance(obj, str):
            obj = imported(obj, silent=silent)
            if obj is None:
                return None
        if isinstance(obj, ModuleType):
            source = f"configuration {obj.__name__!r}"
        djangoproject.follow_settings(obj, self._meet_override)
        settings, own = from_object(obj, namespace)
        self._warned |= own  # they are nobody's mistake
        return source, settings

    def _meet_override(self, setting: str, **_: Any) -> None:
        """Read Django's settings anew, since a test has changed one that is ours."""
        namespace = None if self._object is None else self._object[2]
        if may_matter(setting, namespace):
            self._forget()

    def _say(self, remarks: list[str], source: str) -> None:
        for remark in remarks:
            warnings.warn(f"{remark} (from {source})", ConfigWarning, stacklevel=outside())


def _checked(name: str, value: Any, source: str) -> Any:
    """Return the value as the setting keeps it, or raise `ImproperlyConfigured`."""
    row = SETTINGS.get(name)
    if row is None or (value is None and row.nullable):
        return value
    if value == "" and row.nullable and source.startswith("environment"):
        return None  # an empty variable is how an environment says None
    try:
        return row.check(value)
    except Unfit as exc:
        shown = _censored(name, value)
        raise ImproperlyConfigured(
            f"setting {name} = {shown!r} (from {source}): {exc}"
        ) from None


def _remarks(names: Iterable[str], values: Mapping[str, Any], warned: set[str]) -> list[str]:
    """Return what is to be said about these settings, each said once."""
    remarks = []
    useless: dict[str, list[str]] = {}
    for name in names:
        row = SETTINGS.get(name)
        if name in warned or (row and (row.kind == "used" or values[name] in row.expected)):
            continue
        warned.add(name)
        if row is None:
            remarks.append(f"unknown setting {name!r}{_suggestion(name)}")
        else:
            useless.setdefault(row.doc, []).append(name)
    for doc, found in useless.items():
        remarks.append(f"no effect in liteq: {', '.join(found)}. {doc}")
    return remarks


def refuse_misspelt(given: Iterable[str], words: Iterable[str]) -> None:
    """Raise `TypeError` for what is no setting, and nearly one of these arguments: it would
    be taken for a setting that nobody knows, and something else for what it is to say."""
    for name in given:
        if new_name(name) is None and (near := close_name(name, among=words)):
            raise TypeError(f"there is no argument {name!r}: did you mean {near!r}?")


def _suggestion(name: str) -> str:
    close = close_name(name)
    return f": did you mean {close!r}?" if close else ""


def _log_override(name: str, source: str) -> None:
    from liteq.loggers import get_logger  # late: few environments say something

    logger = get_logger("liteq.config")
    logger.info("%s from the %s overrides the value set in code", name, source)


def _fresh(default: Any) -> Any:
    """Return a default that its app may change without changing the table."""
    return dict(default) if isinstance(default, dict) else default


def _censored(key: Any, value: Any) -> Any:
    if is_secret_setting(key) and value not in (None, "", (), False):
        return HIDDEN
    if isinstance(value, str):
        return mask_url(value)
    if isinstance(value, Mapping):
        shown = {name: _censored(name, member) for name, member in value.items()}
        if "task" in value:  # a call, whose parameters are not known here
            shown |= {name: _starred(value[name]) for name in _ARGUMENTS & value.keys()}
        return shown
    for kind in (list, tuple, set):
        if type(value) is kind:
            return kind(_censored("", member) for member in value)
    return value


def _starred(arguments: Any) -> Any:
    """Return the arguments of a call with stars in place of each."""
    if isinstance(arguments, Mapping):
        return dict.fromkeys(arguments, HIDDEN)
    return [HIDDEN for _ in arguments] if isinstance(arguments, (list, tuple)) else HIDDEN
