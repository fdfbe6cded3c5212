"""Values as bytes, and back: task bodies, results and progress notes.

The format is JSON. What JSON knows is written as itself, by the C encoder; every other
type that liteq carries becomes an object with one key, `{"__liteq__": [tag, …]}`:
datetime, date, time, timedelta, Decimal, UUID, bytes, tuple, set, frozenset, complex, Path,
Enum, dataclasses, pydantic models, dicts with other keys than text, nan and infinity,
integers of any size, text with lone surrogates. A user's own dict that happens to hold
the marker is written as a tagged list of pairs, so it comes back as it was.

Reading runs none of the user's code and imports nothing. A class is looked for in modules
that are imported already, must be of the very kind that the tag says, and its instance is
filled without a call of `__init__`. (Pickle runs whatever the bytes say: it is read only
where `accept_content` names it.)

A `Secret` is encrypted by the cipher that is handed in with the value, and decrypted by that
which is handed in with the bytes. Without one, a writer leaves it plain, and a reader leaves
it encrypted, which is enough to show the rest.

A dataclass is carried with the attributes that are not fields, but not with what a
`cached_property` has kept.

Small differences that come back: a subclass of str, int, float, list or dict as its base,
a named tuple as a tuple, a bytearray as bytes, a tzinfo that is not a ZoneInfo as its offset.
"""

from __future__ import annotations

import copyreg
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from typing import Any, Final, NoReturn

from liteq import jsonlimits
from liteq.ciphers import Cipher, current, using
from liteq.exceptions import ContentDisallowed, DecodeError, EncodeError, ImproperlyConfigured
from liteq.redaction import Encrypted, Secret
from liteq.tagging import (
    MARK,
    MAX_DEPTH,
    SCALARS,
    cut,
    decrypted,
    json_text,
    register_type,
    revive,
    revive_tree,
    tagged,
    unreadable,
)

__all__ = [
    "MAX_DEPTH",
    "check",
    "dumps",
    "dumps_call",
    "dumps_result",
    "is_read",
    "is_registered",
    "loads",
    "loads_call",
    "register",
    "register_type",
    "registered",
    "unread",
    "unregister",
]

_MOST_LEVELS: Final = 4 * MAX_DEPTH + 8  # of JSON

_PLAIN: Final = SCALARS | {list, dict}
_JSON_ONLY: Final = ("json",)
_PICKLED: Final = b"\x80"  # the first byte of a pickle, and of no JSON


# Writing


def dumps(
    value: Any,
    content_type: str = "json",
    *,
    root: str = "value",
    cipher: Cipher | None = None,
) -> bytes:
    """Return a value as bytes. `root` is what error messages call it, `cipher` encrypts the
    secrets in it.

    Equal values give equal bytes in every process (sets are sorted). Raises `EncodeError`
    with the path and type of what cannot be written, or if values are nested deeper than
    `MAX_DEPTH` or contain themselves; `ImproperlyConfigured` for an unknown format.
    """
    if content_type == "json":
        return _json_bytes(value, (root,), value, cipher)
    return _writer(content_type)(value, (root,), value, cipher)


def dumps_call(
    args: Iterable[Any],
    kwargs: Mapping[str, Any],
    content_type: str = "json",
    cipher: Cipher | None = None,
) -> bytes:
    """Return the body of a message: the arguments of one call. Raises as `dumps` does."""
    if (
        content_type == "json"
        and not kwargs
        and type(args) is tuple
        and SCALARS.issuperset(map(type, args))
    ):
        try:
            return f"[{json_text(args)},{{}}]".encode()  # most calls are as simple as this
        except ValueError:
            pass
    args = list(args)
    kwargs = kwargs if type(kwargs) is dict else dict(kwargs)
    return _writer(content_type)([args, kwargs], ("args", "kwargs"), (args, kwargs), cipher)


def dumps_result(value: Any, content_type: str = "json", cipher: Cipher | None = None) -> bytes:
    """Return what a task returned as bytes. An `AsyncResult` or a `GroupResult`, which JSON
    cannot carry, is written as its `as_tuple()`, as by Celery. Raises as `dumps` does."""
    try:
        return dumps(value, content_type, root="result", cipher=cipher)
    except EncodeError:
        stored_form = getattr(value, "_stored_form", None)
        if stored_form is None:
            raise
        return dumps(stored_form(), content_type, root="result")


# Reading


def loads(
    data: bytes,
    content_type: str = "json",
    accept: Collection[str] | None = _JSON_ONLY,
    cipher: Cipher | None = None,
) -> Any:
    """Return the value that these bytes stand for.

    `accept` lists the formats that may be read, by name or MIME type; None means JSON.
    `cipher` decrypts the secrets in it; None leaves them encrypted. Raises
    `ContentDisallowed` for any other format, `DecryptionError` for a secret that the cipher
    has no key for, and `DecodeError` for bytes that are damaged, too deep, or speak of a class
    that this process does not have.
    """
    if content_type == "json" and (accept is _JSON_ONLY or accept is None or "json" in accept):
        return _json_value(data, cipher)
    found = _accepted(content_type, accept)
    with using(cipher):
        return found.decode(data)


def loads_call(
    body: bytes,
    content_type: str = "json",
    accept: Collection[str] | None = _JSON_ONLY,
    cipher: Cipher | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments that `dumps_call` wrote. Raises as `loads` does."""
    if content_type == "json" and (accept is None or "json" in accept):
        call = _json_value(body, cipher)
    else:
        call = loads(body, content_type, accept, cipher)
    if isinstance(call, (list, tuple)) and len(call) == 2:  # `match` takes twice as long
        args, kwargs = call
        is_call = isinstance(args, (list, tuple)) and isinstance(kwargs, dict)
        if is_call and (not kwargs or set(map(type, kwargs)) == {str}):
            return tuple(args), kwargs
    raise DecodeError(
        "a message body must be a list of the positional and the keyword arguments"
    )


# JSON at C speed


def _json_bytes(
    value: Any, roots: tuple[str, ...], parts: Any, cipher: Cipher | None = None
) -> bytes:
    """Return JSON for a value, plain or not.

    `roots` names the value, or the two halves of a call that are in `parts`.
    """
    kind = type(value)
    try:
        if kind in SCALARS or (kind in _PLAIN and _is_plain(value, MAX_DEPTH - 1)):
            return json_text(value).encode()
    except ValueError:
        pass  # nan, infinity, an enormous integer or a lone surrogate: to be tagged
    except RecursionError:
        pass  # close to the interpreter's limit already: the slow way names the place
    with using(cipher):
        return json_text(tagged(roots, parts)).encode()


def _is_plain(value: Any, depth: int) -> bool:
    """Tell whether JSON can carry a list or dict as it is.

    The types of all members are compared as sets, which runs in C; only containers are
    visited one by one. Exact types: the C encoder would also take a tuple, an Enum of
    str, a key that is an integer, and write something that reads back as another value.
    """
    if type(value) is dict:
        if value and (set(map(type, value)) != {str} or MARK in value):
            return False
        value = value.values()
    kinds = set(map(type, value))
    if kinds <= SCALARS:
        return True
    if depth == 0 or not kinds <= _PLAIN:
        return False
    for member in value:
        kind = type(member)
        if (kind is list or kind is dict) and not _is_plain(member, depth - 1):
            return False
    return True


def _json_value(data: bytes, cipher: Cipher | None = None) -> Any:
    if len(data) > _MOST_LEVELS:
        jsonlimits.check(data, _MOST_LEVELS)
    try:
        text = str(data, "utf-8")
        if MARK in text:
            with using(cipher):
                return _tag_decoder.decode(text)
        try:
            value, end = _scan(text, 0)
        except StopIteration:
            end = -1
        if end != len(text):  # blanks around the value, which we never write, or damage
            return _decoder.decode(text)
    except DecodeError:
        raise
    except (ValueError, TypeError) as exc:
        raise DecodeError(f"not valid JSON: {exc}") from exc
    except RecursionError as exc:
        raise DecodeError("nested too deep to be read") from exc
    except MemoryError as exc:
        raise DecodeError("too large to be read into memory") from exc
    return value


# And back


def _refuse_constant(name: str) -> NoReturn:
    raise DecodeError(f"not valid JSON: {name}")


# `scan_once` is the C parser itself: no search for blanks around the value.
_decoder: Any = json.JSONDecoder(parse_constant=_refuse_constant)
_tag_decoder: Any = json.JSONDecoder(parse_constant=_refuse_constant, object_hook=revive)
_scan: Callable[[str, int], tuple[Any, int]] = _decoder.scan_once


# Other formats


class _Format:
    """One way to write values. `encode` gets what `_json_bytes` gets; `needs` names a
    module that it cannot do without."""

    def __init__(
        self,
        name: str,
        content_type: str,
        encode: Callable[[Any, tuple[str, ...], Any], bytes],
        decode: Callable[[bytes], Any],
        needs: str | None = None,
    ) -> None:
        self.name = name
        self.content_type = content_type
        self.encode = encode
        self.decode = decode
        self.needs = needs


def register(
    name: str,
    encode: Callable[[Any], bytes | str],
    decode: Callable[[Any], Any],
    content_type: str,
    content_encoding: str = "utf-8",
) -> None:
    """Add a format under a name and a MIME type, as kombu's `register()` does.

    `encode` returns bytes, or text in `content_encoding`; `decode` is given what `encode`
    gave, text unless the encoding is "binary". What they raise becomes `EncodeError` or
    `DecodeError`. Readers must also name the format in `accept_content`.
    """

    def write(value: Any, roots: tuple[str, ...], parts: Any) -> bytes:
        data = _guarded(EncodeError, name, encode, value)
        return data.encode(content_encoding) if isinstance(data, str) else bytes(data)

    def read(data: bytes) -> Any:
        content: Any = data
        if content_encoding not in ("binary", "ascii-8bit"):
            content = _guarded(DecodeError, name, bytes.decode, data, content_encoding)
        return _guarded(DecodeError, name, decode, content)

    _add(_Format(name, content_type, write, read))


def unregister(name: str) -> None:
    """Take a format out again; nothing happens if there is none of this name."""
    found = _formats.pop(name, None)
    if found is not None:
        _formats.pop(found.content_type, None)


def registered() -> list[str]:
    """Return the names of the formats, installed or not."""
    return sorted({found.name for found in _formats.values()})


def is_registered(name: str) -> bool:
    """Tell whether there is a format of this name or MIME type, installed or not."""
    return name in _formats


def is_read(name: str, accept: Collection[str]) -> bool:
    """Tell whether readers who accept these formats read this one. Raises
    `ImproperlyConfigured` if it does not exist."""
    found = _format(name)
    return found.name in accept or found.content_type in accept


def unread(name: str, accept: Collection[str]) -> ContentDisallowed:
    """Return the error for a format that readers who accept these would refuse."""
    return ContentDisallowed(
        f"no worker would read the serializer {cut(name)}: accept_content allows only "
        f"{', '.join(accept) or 'nothing'}"
    )


def check(name: str) -> None:
    """Raise `ImproperlyConfigured` unless values can be written in this format here."""
    found = _format(name)
    if found.needs is not None:
        _module(found)


def _add(added: _Format) -> None:
    _formats[added.name] = _formats[added.content_type] = added


def _writer(name: str) -> Callable[[Any, tuple[str, ...], Any, Cipher | None], bytes]:
    if name == "json":
        return _json_bytes
    found = _format(name)

    def write(value: Any, roots: tuple[str, ...], parts: Any, cipher: Cipher | None) -> bytes:
        with using(cipher):
            return found.encode(value, roots, parts)

    return write


def _format(name: str) -> _Format:
    try:
        return _formats[name]
    except KeyError:
        raise ImproperlyConfigured(
            f"unknown serializer {name!r}: use one of {', '.join(registered())}, or add it "
            "with liteq.serializers.register()"
        ) from None


def _accepted(name: str, accept: Collection[str] | None) -> _Format:
    accept = _JSON_ONLY if accept is None else accept
    found = _formats.get(name)
    if found is None or not (found.name in accept or found.content_type in accept):
        raise ContentDisallowed(
            f"refused to read content of type {cut(name)}: accept_content allows only "
            f"{', '.join(map(str, accept)) or 'nothing'}"
        )
    return found


def _guarded(error: type[Exception], name: str, fun: Callable[..., Any], *args: Any) -> Any:
    try:
        return fun(*args)
    except (EncodeError, DecodeError):
        raise
    except Exception as exc:
        raise error(f"{name}: {type(exc).__name__}: {cut(exc, str)}") from exc


def _module(of: _Format) -> Any:
    import importlib  # late: only for formats that JSON users never load

    try:
        return importlib.import_module(of.needs or "")
    except ImportError as exc:
        raise ImproperlyConfigured(
            f"the serializer {of.name!r} needs the package {of.needs!r}: install it"
        ) from exc


def _tree(value: Any, roots: tuple[str, ...], parts: Any) -> Any:
    return tagged(roots, parts)


def _pickle_bytes(value: Any, roots: tuple[str, ...], parts: Any) -> bytes:
    import pickle

    data: bytes = _guarded(EncodeError, "/".join(roots), pickle.dumps, value, 5)
    return data


def _pickle_value(data: bytes) -> Any:
    import pickle

    return _guarded(DecodeError, "pickle", pickle.loads, data)


def _reduced(secret: Secret[Any]) -> tuple[Any, ...]:
    """Return what pickle writes of a secret: it is encrypted if an app with keys writes,
    whichever of the libraries that build on pickle does it."""
    cipher, held = current(), secret.held
    if isinstance(held, Encrypted):
        token = held.token if cipher is None else cipher.passed(held.token)
        return unpickled, (token,)
    if cipher is None or not cipher.has_keys:
        return Secret, (held,)
    import pickle  # late: whoever pickles has it

    with using(None):
        data = pickle.dumps(held, 5)
    return unpickled, (cipher.encrypt(data),)


def unpickled(token: str) -> Secret[Any]:
    """Return the secret that a token in pickled bytes stands for."""
    cipher = current()
    if cipher is None:
        return Secret(Encrypted(token))
    data = cipher.decrypt(token)
    if not data.startswith(_PICKLED):  # it was in JSON, and handed on as it is
        return Secret(decrypted(cipher, token))
    import pickle

    try:
        return Secret(pickle.loads(data))
    except Exception as exc:  # noqa: BLE001 (pickle may raise anything)
        raise unreadable(exc) from None


copyreg.pickle(Secret, _reduced)  # `Secret` itself is below, and knows of no formats


def _msgpack_bytes(value: Any, roots: tuple[str, ...], parts: Any) -> bytes:
    tree, msgpack = _tree(value, roots, parts), _module(_format("msgpack"))
    data: bytes = _guarded(EncodeError, "msgpack", msgpack.packb, tree)
    return data


def _msgpack_value(data: bytes) -> Any:
    msgpack = _module(_format("msgpack"))
    return _guarded(
        DecodeError, "msgpack", lambda: revive_tree(msgpack.unpackb(data, raw=False))
    )


def _yaml_bytes(value: Any, roots: tuple[str, ...], parts: Any) -> bytes:
    tree, yaml = _tree(value, roots, parts), _module(_format("yaml"))
    text: str = _guarded(EncodeError, "yaml", lambda: yaml.safe_dump(tree, sort_keys=False))
    return text.encode()


def _yaml_value(data: bytes) -> Any:
    yaml = _module(_format("yaml"))
    loader = _yaml_loader(yaml)
    return _guarded(DecodeError, "yaml", lambda: revive_tree(yaml.load(data, loader)))


@cache
def _yaml_loader(yaml: Any) -> Any:
    """Return what reads plain values, each of them written out: with aliases, 300 bytes stand
    for more values than any memory holds. What liteq writes has none."""

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                alias = cut(f"*{self.peek_event().anchor}", str)
                raise DecodeError(f"yaml: an alias ({alias}) is not read: write its value out")
            return super().compose_node(parent, index)

    return Loader


_formats: dict[str, _Format] = {}
_add(_Format("json", "application/json", _json_bytes, _json_value))
_add(_Format("pickle", "application/x-python-serialize", _pickle_bytes, _pickle_value))
_add(_Format("msgpack", "application/x-msgpack", _msgpack_bytes, _msgpack_value, "msgpack"))
_add(_Format("yaml", "application/x-yaml", _yaml_bytes, _yaml_value, "yaml"))
