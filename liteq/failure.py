"""An exception as data, and back.

A worker stores what went wrong as a JSON record: class name, message, traceback text, and
what `liteq.carrying` can carry of the arguments and attributes. Whoever asks for the result
gets the user's own class back only if all that its text needs is there, and it is an
`Exception` in a module which that process has imported already.
Nothing that is read from a store is ever imported or called by name: Celery's version
of this was CVE-2021-23727.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Final

from liteq.carrying import ERROR_TEXT_LIMIT, Carrier, cut, find, made, text_of
from liteq.exceptions import DecodeError, TaskFailed
from liteq.redaction import Redactor

__all__ = ["ERROR_TEXT_LIMIT", "arguments", "chord_error", "describe", "read", "rebuild"]

# A reader of before the others knows `args` alone: whoever has none gets `TaskFailed` there.
_STATE: Final = {"args": list, "values": list, "attributes": dict, "members": dict}


def describe(
    exc: BaseException,
    *,
    traceback: str | None = None,
    secrets: Collection[str] = (),
    redactor: Redactor | None = None,
    limit: int = ERROR_TEXT_LIMIT,
) -> bytes:
    """Return the record of an exception, without these secret texts, and without what goes
    by the name of a secret among its attributes.

    The traceback is taken from the exception unless text is given. Both it and the
    message are cut in the middle to `limit` characters.
    """
    kind = type(exc)
    if traceback is None:
        import traceback as tracebacks  # late: a reader of results describes no errors

        traceback = "".join(tracebacks.format_exception(exc)) if exc.__traceback__ else ""
    carrier = Carrier(secrets, redactor, limit)
    record: dict[str, Any] = {
        "type": kind.__qualname__,
        "module": kind.__module__,
        "message": carrier.text(text_of(exc)),
        "traceback": carrier.text(traceback),
    }
    return json.dumps(record | carrier.state(exc, record["message"])).encode()


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
    were plain values, or else `values`, their trees, if they have any; `attributes` and
    `members`, trees by name; and for what a gather failed with, `source` (an id) and `cause`
    (fields like these). Raises `DecodeError` if the record is damaged."""
    try:
        fields: dict[str, Any] = json.loads(record)
        return _checked(fields)
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise DecodeError(f"the record of an error is damaged: {record[:200]!r}") from exc


def arguments(fields: dict[str, Any]) -> tuple[Any, ...] | None:
    """Return the arguments of the exception that a record's fields tell of, None if it has
    not kept them. No code of the exception's class runs."""
    kept: dict[str, Any] = {n: fields[n] for n in ("args", "values") if n in fields}
    exc = made(Exception, kept) if kept else None
    return None if exc is None else exc.args


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields, those of a gather said in words; raise what `read` catches if one
    of them is not of the type that `describe` gives it."""
    if "cause" in fields:
        fields["cause"] = _checked(fields["cause"])
        fields = _in_words(fields)
    for name in ("type", "module", "message", "traceback"):
        if type(fields[name]) is not str:
            raise TypeError(name)
    for name, kind in _STATE.items():
        if type(fields.get(name, kind())) is not kind:
            raise TypeError(name)
    return fields


def _in_words(fields: dict[str, Any]) -> dict[str, Any]:
    cause = fields["cause"]
    args = cause.get("args", [cause["message"]])  # as the exception's own repr has them
    reason = cut(", ".join(map(repr, args)))
    fields["message"] = f"Dependency {fields['source']} raised {cause['type']}({reason})"
    fields["traceback"] = cause["traceback"]
    fields["args"] = [fields["message"]]
    return fields


def rebuild(record: bytes) -> BaseException:
    """Return an exception for the record: the user's class if this process has it and the
    record what that needs, else `TaskFailed`. Raises `DecodeError` for a damaged record."""
    return _rebuilt(read(record))


def _rebuilt(fields: dict[str, Any]) -> BaseException:
    exc = _without_cause(fields)
    if "cause" in fields:
        exc.__cause__ = _rebuilt(fields["cause"])
    return exc


def _without_cause(fields: dict[str, Any]) -> BaseException:
    kind = find(fields["module"], fields["type"])
    if kind is not None and ("args" in fields or "values" in fields):
        exc = made(kind, fields)
        if exc is not None:
            return exc
    name = fields["type"]
    if fields["module"] not in ("builtins", "__main__"):
        name = f"{fields['module']}.{name}"
    return TaskFailed(name, fields["message"], fields["traceback"])
