"""An exception as data, and back.

A worker stores what went wrong as a JSON record: class name, message, arguments that
JSON can carry, traceback text. Whoever asks for the result gets the user's own class
back only if it is an `Exception` in a module which that process has imported already.
Nothing that is read from a store is ever imported or called by name: Celery's version
of this was CVE-2021-23727.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from types import ModuleType
from typing import Any, Final

from liteq import exceptions
from liteq.exceptions import DecodeError, TaskFailed
from liteq.redaction import hide

__all__ = ["ERROR_TEXT_LIMIT", "chord_error", "describe", "read", "rebuild"]

ERROR_TEXT_LIMIT: Final = 32_768  # characters kept of a message and of a traceback
_PLAIN: Final = (str, int, float, bool, type(None))
_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: set for every class written in Python


def describe(
    exc: BaseException, *, traceback: str | None = None, secrets: Collection[str] = ()
) -> bytes:
    """Return the record of an exception, without these secret texts.

    The traceback is taken from the exception unless text is given. Both it and the
    message are cut in the middle to `ERROR_TEXT_LIMIT` characters.
    """
    kind = type(exc)
    if traceback is None:
        import traceback as tracebacks  # late: a reader of results describes no errors

        traceback = "".join(tracebacks.format_exception(exc)) if exc.__traceback__ else ""
    record: dict[str, Any] = {
        "type": kind.__qualname__,
        "module": kind.__module__,
        "message": _cut(hide(_text(exc), secrets)),
        "traceback": _cut(hide(traceback, secrets)),
    }
    if all(isinstance(arg, _PLAIN) for arg in exc.args):
        record["args"] = [
            _cut(hide(arg, secrets)) if isinstance(arg, str) else arg for arg in exc.args
        ]
    try:
        return json.dumps(record).encode()
    except ValueError:  # an integer of more digits than Python is willing to print
        del record["args"]
        return json.dumps(record).encode()


def chord_error(source: str, record: bytes) -> bytes:
    """Return the record of the `ChordError` that a gather fails with: its part `source`
    (an id) ended with the error of `record`. A store only has to join bytes for it;
    `read` says it in words."""
    return b'{"type":"ChordError","module":"liteq.exceptions","source":%b,"cause":%b}' % (
        json.dumps(source).encode(),
        record,
    )


def read(record: bytes) -> dict[str, Any]:
    """Return the record's fields: type, module, message, traceback; args, if all of them
    were plain values; and for what a gather failed with, `source` (an id) and `cause`
    (fields like these). Raises `DecodeError` if the record is damaged."""
    try:
        fields: dict[str, Any] = json.loads(record)
        return _checked(fields)
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise DecodeError(f"the record of an error is damaged: {record[:200]!r}") from exc


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields, those of a gather said in words; raise what `read` catches if one
    of them is not of the type that `describe` gives it."""
    if "cause" in fields:
        fields["cause"] = _checked(fields["cause"])
        fields = _in_words(fields)
    for name in ("type", "module", "message", "traceback"):
        if type(fields[name]) is not str:
            raise TypeError(name)
    if type(fields.get("args", [])) is not list:
        raise TypeError("args")
    return fields


def _in_words(fields: dict[str, Any]) -> dict[str, Any]:
    cause = fields["cause"]
    reason = f"{cause['type']}({_cut(cause['message'])!r})"
    fields["message"] = f"Dependency {fields['source']} raised {reason}"
    fields["traceback"] = cause["traceback"]
    fields["args"] = [fields["message"]]
    return fields


def rebuild(record: bytes) -> BaseException:
    """Return an exception for the record: the user's class if this process has it,
    else `TaskFailed`. Raises `DecodeError` for a record that is damaged."""
    return _rebuilt(read(record))


def _rebuilt(fields: dict[str, Any]) -> BaseException:
    exc = _without_cause(fields)
    if "cause" in fields:
        exc.__cause__ = _rebuilt(fields["cause"])
    return exc


def _without_cause(fields: dict[str, Any]) -> BaseException:
    kind = _find(fields["module"], fields["type"])
    if kind is not None and "args" in fields:
        exc = _make(kind, fields["args"])
        if exc is not None:
            return exc
    name = fields["type"]
    if fields["module"] not in ("builtins", "__main__"):
        name = f"{fields['module']}.{name}"
    return TaskFailed(name, fields["message"], fields["traceback"])


def _find(module: str, qualname: str) -> type[BaseException] | None:
    """Return the class, if it is an exception in a module that is imported already.

    Names are looked up in the namespaces themselves: `getattr` would call a module's
    `__getattr__`, which in many packages imports what it is asked for.
    """
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        if not isinstance(found, (ModuleType, type)):
            return None
        found = vars(found).get(part)
    if isinstance(found, type) and issubclass(found, Exception):
        return found
    return None


def _make(kind: type[BaseException], args: list[Any]) -> BaseException | None:
    """Return an instance holding these args, without running the class's own code.

    `__new__` and `__init__` are the user's code and may do anything; the `__new__` of
    the built-in class below sets `args`, which is what `str()` and comparison use.
    liteq's own classes are initialised: they keep attributes beside `args`.
    """
    builtin = next(base for base in kind.__mro__ if not base.__flags__ & _HEAP_TYPE)
    try:
        exc: BaseException = builtin.__new__(kind, *args)
        BaseException.args.__set__(exc, tuple(args))  # type: ignore[attr-defined]
        if kind.__module__ == exceptions.__name__:
            kind.__init__(exc, *args)
    except (TypeError, ValueError):
        return None
    return exc


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception as broken:  # noqa: BLE001 (a user's __str__; the report must go on)
        return f"<{type(exc).__name__}.__str__ raised {type(broken).__name__}>"


def _cut(text: str) -> str:
    if len(text) <= ERROR_TEXT_LIMIT:
        return text
    half = ERROR_TEXT_LIMIT // 2
    return f"{text[:half]}\n… {len(text) - ERROR_TEXT_LIMIT} characters cut …\n{text[-half:]}"
