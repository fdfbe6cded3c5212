"""Values that JSON has no word for, as tagged values that it has, and back.

Each becomes an object with one key, `{"__liteq__": [tag, …]}`. Which types there are, and
what comes back a little different, `liteq.serializers` says.

Reading runs none of the user's code and imports nothing. A class is looked for in modules
that are imported already, must be of the very kind that the tag says, and its instance is
filled without a call of `__init__`.
"""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from liteq.ciphers import Cipher, current, using
from liteq.exceptions import DecodeError, EncodeError, ImproperlyConfigured
from liteq.names import is_main, module_name
from liteq.redaction import Encrypted, Secret

__all__ = [
    "MARK",
    "MAX_DEPTH",
    "SCALARS",
    "cut",
    "decrypted",
    "json_text",
    "register_type",
    "revive",
    "revive_tree",
    "tagged",
    "unreadable",
]

MARK: Final = "__liteq__"

# How deep values may be nested. One level takes up to four in JSON, and the C parser counts
# them against the interpreter's recursion limit (1,000) from wherever it is called.
MAX_DEPTH: Final = 128

SCALARS: Final = frozenset({str, int, float, bool, type(None)})
_WIDEST_INT: Final = 63  # bits; wider ones are tagged, since text of them may be refused


# JSON at C speed

# The encoder object is kept: `json.dumps` with options makes a new one at every call.
# Without `markers` it does not look for cycles; the depth limit finds those.
_text_encoder = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
)


def _encoder_in_c() -> Any:
    """Return the encoder that `json` makes for itself at each call; None in a Python that
    has none, or makes it in another way: that is documented nowhere."""
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return None
    default, quoted = _text_encoder.default, json.encoder.encode_basestring
    markers = indent = None
    sort_keys = skipkeys = allow_nan = False
    try:
        return make(markers, default, quoted, indent, ":", ",", sort_keys, skipkeys, allow_nan)
    except TypeError:
        return None


_c_encoder: Final = _encoder_in_c()


def json_text(value: Any) -> str:
    """Return what JSON has words for as text. Raises `ValueError` if it has none after all."""
    if _c_encoder is None:
        return _text_encoder.encode(value)
    return "".join(_c_encoder(value, 0))


# Writing


class _Unknown(Exception):
    """A value no tag is known for; the path grows from the inside out as this rises."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str] = []


def tagged(roots: tuple[str, ...], parts: Any) -> Any:
    """Return the plain tree for a value, or for a list of the two halves of a call.

    Raises `EncodeError`, naming where in the value the trouble is.
    """
    root = roots[0]
    try:
        if len(roots) == 1:
            return _tag(parts, MAX_DEPTH)
        tree = [_tag_list(parts[0], MAX_DEPTH)]
        root = roots[1]
        tree.append(_tag(parts[1], MAX_DEPTH))
        return tree
    except _Unknown as exc:
        path = root + "".join(reversed(exc.path))
        if len(path) > 200:
            path = f"{path[:120]}…{path[-60:]}"
        raise EncodeError(f"{path}: {exc.reason}") from exc.__cause__
    except RecursionError as exc:  # called from deep inside the user's own recursion
        raise EncodeError(f"{root}: nested too deep to be serialised") from exc


def _tag(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is bool or value is None:
        return value
    if kind is str:
        return value if _is_unicode(value) else _mark("str", _base64_of_text(value))
    if kind is int:
        if value.bit_length() <= _WIDEST_INT:
            return value
        return _mark("int", hex(value))
    if kind is float:
        return value if value - value == 0 else _mark("float", repr(value))
    if depth == 0:
        raise _Unknown(
            f"nested deeper than {MAX_DEPTH} levels, or contains itself; "
            "pass a flatter value, or an id to look it up by"
        )
    write = writers.get(kind) or _find_writer(kind)
    return write(value, depth - 1)


def _mark(tag: str, *payload: Any) -> dict[str, Any]:
    return {MARK: [tag, *payload]}


def _tag_list(values: Iterable[Any], depth: int) -> list[Any]:
    tagged: list[Any] = []
    try:
        for value in values:
            tagged.append(_tag(value, depth))  # noqa: PERF401 (its length is the index)
    except _Unknown as exc:
        exc.path.append(f"[{len(tagged)}]")
        raise
    return tagged


def _tag_dict(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    if set(map(type, value)) <= {str} and MARK not in value and all(map(_is_unicode, value)):
        return _tag_fields(value.items(), depth, "[{!r}]")
    pairs = []
    for key, member in value.items():
        try:
            tagged_key = _tag(key, depth)
        except _Unknown as exc:
            exc.path.append(f" key {_short(key)}")
            raise
        try:
            pairs.append([tagged_key, _tag(member, depth)])
        except _Unknown as exc:
            exc.path.append(f"[{_short(key)}]")
            raise
    return _mark("dict", pairs)


def _tag_fields(items: Iterable[tuple[str, Any]], depth: int, segment: str) -> dict[str, Any]:
    written = {}
    for name, member in items:
        try:
            written[name] = _tag(member, depth)
        except _Unknown as exc:
            exc.path.append(segment.format(name))
            raise
    return written


def _tag_set(tag: str) -> Callable[[Any, int], Any]:
    def write(value: Any, depth: int) -> Any:
        # Sorted, so that the same call has the same bytes in every process: the store
        # tells a repeated enqueue from a clash of ids by them.
        return _mark(tag, sorted(_tag_list(value, depth), key=json_text))

    return write


def _tag_datetime(value: Any, depth: int) -> Any:
    zone = getattr(value.tzinfo, "key", None)
    payload = [value.isoformat()]
    if value.fold or isinstance(zone, str):
        payload.append(value.fold)
    if isinstance(zone, str):
        payload.append(zone)
    return _mark("time" if not hasattr(value, "year") else "datetime", *payload)


def _tag_enum(value: enum.Enum, depth: int) -> Any:
    module, name = _class_name(type(value))
    if isinstance(value, enum.Flag):
        return _mark("flag", module, name, _tag(value.value, depth))
    return _mark("enum", module, name, value.name)


def _tag_dataclass(value: Any, depth: int) -> Any:
    import dataclasses  # late: 10 ms, which whoever has such a value has spent already

    kind = type(value)
    module, name = _class_name(kind)
    try:
        object.__new__(kind)
    except TypeError as exc:  # it inherits from dict, Exception or the like
        raise _Unknown(
            f"dataclass {name} extends a built-in type, so it cannot be rebuilt: {exc}"
        ) from None
    items = [
        (field.name, getattr(value, field.name))
        for field in dataclasses.fields(value)
        if hasattr(value, field.name)
    ]
    pairs = _pairs(items, depth)
    if own := _beside(value, dict(items)):
        pairs += [[f".{key}", member] for key, member in _pairs(own, depth)]
    return _mark("dataclass", module, name, pairs)


def _beside(value: Any, fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the attributes of a dataclass's instance that are no fields, as `__post_init__`
    sets them, but those that will be computed again when they are asked for."""
    kind = type(value)
    return [
        (name, member)
        for name, member in getattr(value, "__dict__", {}).items()
        if name not in fields and not _is_computed(kind, name)
    ]


def _is_computed(kind: type, name: str) -> bool:
    """Tell whether what an instance holds under a name is kept there by a descriptor of its
    class that gives way to it, as a `cached_property` does. Werkzeug's is known by its name:
    it does not give way, but looks there itself, as a property with a setter may."""
    found = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
    maker = type(found)
    if any(base.__name__ == "cached_property" for base in maker.__mro__):
        return True
    return hasattr(maker, "__get__") and not hasattr(maker, "__set__") and not callable(found)


def _tag_model(value: Any, depth: int) -> Any:
    """Write a pydantic model: its fields as they are, and which of them were set."""
    module, name = _class_name(type(value))
    items = [(field, value.__dict__[field]) for field in type(value).model_fields]
    items += (value.model_extra or {}).items()
    was_set = sorted(value.model_fields_set)
    return _mark("pydantic", module, name, _pairs(items, depth), was_set)


def _pairs(items: list[tuple[str, Any]], depth: int) -> list[list[Any]]:
    return [[key, value] for key, value in _tag_fields(items, depth, ".{}").items()]


def _class_name(kind: type) -> tuple[str, str]:
    """Return the module and name by which a reader will find a class.

    Raises `_Unknown` for a class that no other process could find.
    """
    module, name = module_name(kind), kind.__qualname__
    if "<locals>" in name:
        raise _Unknown(
            f"object of type {name} is not serialisable: its class is defined inside a "
            "function, where no other process can find it; move it to the module's level"
        )
    return module, name


def _is_unicode(text: str) -> bool:
    """Tell whether UTF-8 can carry a text. Lone surrogates (from `os.fsdecode`) it cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tag_secret(value: Secret[Any], depth: int) -> Any:
    """Write a secret: encrypted, if whoever writes has keys. One that is encrypted already
    stays so, and a secret inside another is encrypted with it."""
    cipher, held = current(), value.held
    if isinstance(held, Encrypted):
        return _mark("encrypted", held.token if cipher is None else cipher.passed(held.token))
    if cipher is None or not cipher.has_keys:
        return _mark("secret", _tag(held, depth))
    try:
        with using(None):
            data = json_text(_tag(held, depth)).encode()
    except _Unknown as exc:
        exc.path.clear()  # its keys are a part of the secret
        raise
    return _mark("encrypted", cipher.encrypt(data))


def _base64(data: Any) -> str:
    import binascii  # late: a library to load, for bytes alone

    return binascii.b2a_base64(data, newline=False).decode()


def _base64_of_text(text: str) -> str:
    return _base64(text.encode("utf-8", "surrogatepass"))


# Writers by type. Types of modules that may not be imported go by name: a value of type
# UUID exists only where `uuid` is loaded, and importing it here would slow every start.
writers: dict[type, Callable[[Any, int], Any]] = {
    list: _tag_list,
    dict: _tag_dict,
    tuple: lambda value, depth: _mark("tuple", _tag_list(value, depth)),
    set: _tag_set("set"),
    frozenset: _tag_set("frozenset"),
    bytes: lambda value, _: _mark("bytes", _base64(value)),
    bytearray: lambda value, _: _mark("bytes", _base64(value)),
    memoryview: lambda value, _: _mark("bytes", _base64(value.tobytes())),
    complex: lambda value, depth: _mark(
        "complex", _tag(value.real, depth), _tag(value.imag, depth)
    ),
    Secret: _tag_secret,
}
_writers_by_name: Final[dict[str, Callable[[Any, int], Any]]] = {
    "datetime.datetime": _tag_datetime,
    "datetime.time": _tag_datetime,
    "datetime.date": lambda value, _: _mark("date", value.isoformat()),
    "datetime.timedelta": lambda value, _: _mark(
        "timedelta", value.days, value.seconds, value.microseconds
    ),
    "decimal.Decimal": lambda value, _: _mark("decimal", str(value)),
    "uuid.UUID": lambda value, _: _mark("uuid", str(value)),
    **{
        f"{module}.{name}": lambda value, depth: _mark(
            "path", type(value).__name__, _tag(str(value), depth)
        )
        for module in ("pathlib", "pathlib._local")  # 3.13 defined them in the latter
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
}


_LAZY: Final = "django.utils.functional.Promise"  # a text that is translated when it is read
_MOMENTS: Final = ("datetime.datetime", "datetime.date", "datetime.time")


def _find_writer(kind: type) -> Callable[[Any, int], Any]:
    """Return the writer for a type that is not in the table of exact ones."""
    writer = _writers_by_name.get(f"{kind.__module__}.{kind.__qualname__}")
    if writer is not None:
        writers[kind] = writer
        return writer
    if issubclass(kind, enum.Enum):
        return _tag_enum
    if hasattr(kind, "__dataclass_fields__"):
        return _tag_dataclass
    if _is_model(kind):
        return _tag_model
    for base, as_base in _BASES:
        if issubclass(kind, base):
            return lambda value, depth: _tag(as_base(value), depth + 1)
    if issubclass(kind, Mapping):
        return lambda value, depth: _tag_dict(dict(value), depth)
    # A datetime, date or time that is no more than one: what tests put in the place of the
    # clock. One that writes itself in a way of its own may hold more, as pandas' does.
    for ancestor in kind.__mro__:
        name = f"{ancestor.__module__}.{ancestor.__qualname__}"
        if name in _MOMENTS and kind.isoformat is ancestor.isoformat:  # type: ignore[attr-defined]
            return _writers_by_name[name]
        if name == _LAZY:
            return lambda value, depth: _tag(str(value), depth)
    hint = ""
    if hasattr(kind, "pk") or hasattr(kind, "_meta") or hasattr(kind, "id"):
        hint = "pass its id and load it in the task, or "
    elif issubclass(kind, BaseException):
        hint = "pass str(exc), or "
    raise _Unknown(
        f"object of type {kind.__qualname__} is not serialisable: {hint}pass plain data, a "
        "dataclass or a pydantic model, or teach it with liteq.serializers.register_type()"
    )


# How to see a value of a subclass as its base without calling the subclass's methods.
_BASES: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, lambda value: bytes.join(b"", [value])),
    (tuple, lambda value: tuple(tuple.__iter__(value))),
    (list, lambda value: list(list.__iter__(value))),
    (dict, lambda value: dict(dict.items(value))),
    (set, lambda value: set(set.__iter__(value))),
    (frozenset, lambda value: frozenset(frozenset.__iter__(value))),
)


def _is_model(kind: type) -> bool:
    pydantic = sys.modules.get("pydantic")
    base = getattr(pydantic, "BaseModel", None)
    return isinstance(base, type) and issubclass(kind, base) and hasattr(kind, "model_fields")


def _short(value: Any) -> str:
    text = repr(value) if type(value) in SCALARS else f"<{type(value).__name__}>"
    return text if len(text) <= 40 else text[:40] + "…"


# Reading


def revive(found: dict[str, Any]) -> Any:
    """Return the value that a JSON object stands for, itself if it has no tag.

    The parser calls this for every object, the inner ones first.
    """
    if MARK not in found:
        return found
    content = found[MARK]
    if len(found) != 1 or type(content) is not list or not content:
        raise DecodeError(f"damaged value: {MARK} is not a list, or not alone")
    tag, *payload = content
    reader = readers.get(tag) if type(tag) is str else None
    if reader is None:
        raise DecodeError(
            f"unknown type tag {cut(tag)}: written by a later liteq, or by register_type() "
            "in another process; call it here too"
        )
    try:
        return reader(*payload)
    except (DecodeError, ImproperlyConfigured):
        raise
    except Exception as exc:
        raise DecodeError(f"damaged {tag}: {type(exc).__name__}: {cut(exc, str)}") from exc


def revive_tree(tree: Any) -> Any:
    """Do for a tree of another format what the JSON parser does as it goes."""
    if type(tree) is list:
        return [revive_tree(member) for member in tree]
    if type(tree) is dict:
        return revive({key: revive_tree(member) for key, member in tree.items()})
    return tree


def cut(value: Any, show: Callable[[Any], str] = repr) -> str:
    text = show(value)
    return text if len(text) <= 100 else text[:100] + "…"


def _text(value: Any) -> str:
    """Return the value if it is text; constructors would make text of anything."""
    if type(value) is not str:
        raise TypeError(f"text expected, not {type(value).__name__}")
    return value


def _read_int(text: str) -> int:
    return int(_text(text), 16)


def _read_float(text: str) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise ValueError(f"not a special float: {text!r}")
    return float(text)


def _read_text(text: str) -> str:
    return _read_bytes(text).decode("utf-8", "surrogatepass")


def _read_bytes(text: str) -> bytes:
    import binascii  # late: a library to load, for bytes alone

    try:
        return binascii.a2b_base64(_text(text), strict_mode=True)
    except binascii.Error as exc:
        raise DecodeError(f"damaged bytes: {exc}") from exc


def _read_encrypted(token: str) -> Secret[Any]:
    """Return a secret, decrypted by whoever reads; for who only shows it as it is."""
    cipher = current()
    return Secret(Encrypted(_text(token)) if cipher is None else decrypted(cipher, token))


def decrypted(cipher: Cipher, token: str) -> Any:
    """Return the value that a token stands for."""
    data = cipher.decrypt(token)
    try:
        return _decoder.decode(data.decode())
    except Exception as exc:  # noqa: BLE001 (whatever a reader may raise)
        raise unreadable(exc) from None


def unreadable(exc: Exception) -> DecodeError:
    """Return the error of a secret that was decrypted, and holds what nobody can read here.
    What it says ends in the store: nothing of what was read."""
    return DecodeError(f"what an encrypted Secret holds cannot be read: {type(exc).__name__}")


_decoder: Final = json.JSONDecoder(object_hook=revive)


def _read_dict(pairs: Any) -> dict[Any, Any]:
    return {key: value for key, value in pairs}  # noqa: C416 (checks that they are pairs)


def _read_datetime(text: str, fold: int = 0, zone: str | None = None) -> Any:
    from datetime import datetime  # late, like all below: only for who sends such values

    return _in_zone(datetime.fromisoformat(text), fold, zone)


def _read_time(text: str, fold: int = 0, zone: str | None = None) -> Any:
    from datetime import time

    return _in_zone(time.fromisoformat(text), fold, zone)


def _in_zone(value: Any, fold: int, zone: str | None) -> Any:
    """Return a datetime or time with its fold, and in its zone by name if this host
    knows it; else it keeps the UTC offset it was written with."""
    if zone is not None:
        from zoneinfo import ZoneInfo

        try:
            return value.replace(tzinfo=ZoneInfo(zone), fold=fold)
        except (ValueError, OSError, LookupError):
            pass
    return value.replace(fold=fold) if fold else value


def _read_date(text: str) -> Any:
    from datetime import date

    return date.fromisoformat(text)


def _read_timedelta(days: int, seconds: int, microseconds: int) -> Any:
    from datetime import timedelta

    return timedelta(days, seconds, microseconds)


def _read_decimal(text: str) -> Any:
    from decimal import Decimal

    return Decimal(_text(text))


def _read_uuid(text: str) -> Any:
    from uuid import UUID

    return UUID(text)


def _read_path(kind: str, text: str) -> Any:
    import pathlib

    if kind in ("PurePosixPath", "PureWindowsPath"):
        pure: type[pathlib.PurePath] = getattr(pathlib, kind)
        return pure(text)
    return pathlib.Path(text)  # PosixPath and WindowsPath: whichever this host has


def _read_enum(module: str, name: str, member: str) -> Any:
    kind = _find_class(module, name)
    if not issubclass(kind, enum.Enum):
        raise DecodeError(f"{module}.{name} is not an Enum")
    try:
        return kind.__members__[member]
    except KeyError:
        raise DecodeError(f"{module}.{name} has no member {cut(member)}") from None


def _read_flag(module: str, name: str, value: int) -> Any:
    kind = _find_class(module, name)
    if not issubclass(kind, enum.Flag) or type(value) is not int:
        raise DecodeError(f"{module}.{name} is not a Flag")
    known = kind._value2member_map_.get(value)
    if known is not None:
        return known
    # A combination is made by the class's _missing_, which is run only if it is enum's own.
    if getattr(kind._missing_, "__func__", None) is not _FLAG_MISSING:
        raise DecodeError(f"{module}.{name} has a _missing_ of its own, so {value} is unknown")
    return kind(value)


_FLAG_MISSING: Final = enum.Flag.__dict__["_missing_"].__func__


def _read_dataclass(module: str, name: str, pairs: Any) -> Any:
    """Make an instance of a dataclass by setting its fields, without running its code.

    A field that the class has gained since takes its default; one that it has lost is
    dropped: old and new code share a store while a release is rolled out. Attributes that
    are no fields have a dot before their name, which a liteq of before passes over.
    """
    import dataclasses  # late: 10 ms, which whoever has such a class has spent already

    kind = _find_class(module, name)
    if not dataclasses.is_dataclass(kind):
        raise DecodeError(f"{module}.{name} is not a dataclass")
    values = _read_dict(pairs)
    instance = object.__new__(kind)
    for field in dataclasses.fields(kind):
        if field.name in values:
            value = values[field.name]
        elif field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory in _SAFE_FACTORIES:
            value = field.default_factory()
        elif not field.init:
            continue
        else:
            raise DecodeError(f"the value of {module}.{name}.{field.name} is missing")
        object.__setattr__(instance, field.name, value)
    own = {name[1:]: value for name, value in values.items() if name[:1] == "."}
    if own and kind.__dictoffset__:  # it may have got slots since, and have no such place
        # Not by `setattr`: that runs what descriptors the class has.
        object.__getattribute__(instance, "__dict__").update(own)
    return instance


_SAFE_FACTORIES: Final = (list, dict, set, tuple, frozenset, str, int)


def _read_model(module: str, name: str, pairs: Any, was_set: list[str]) -> Any:
    """Make a pydantic model without validating it: it was valid when it was written."""
    kind = _find_class(module, name)
    if not _is_model(kind):
        raise DecodeError(f"{module}.{name} is not a pydantic model")
    construct = sys.modules["pydantic"].BaseModel.model_construct.__func__
    return construct(kind, _fields_set=set(was_set), **_read_dict(pairs))


def _find_class(module: str, qualname: str) -> type[Any]:
    """Return a class of a module that is imported already; nothing is ever imported.

    `vars()`, not `getattr()`: a module's `__getattr__` could import or run something.
    """
    for place in (module, "__main__") if is_main(module) else (module,):
        found: Any = sys.modules.get(place)
        for part in qualname.split("."):
            found = getattr(found, "__dict__", {}).get(part)
        if isinstance(found, type):
            return found
    imported = "" if module in sys.modules else f" (module {cut(module)} is not imported)"
    raise DecodeError(f"no class {cut(f'{module}.{qualname}')} in this process{imported}")


readers: dict[str, Callable[..., Any]] = {
    "str": _read_text,
    "int": _read_int,
    "float": _read_float,
    "complex": complex,
    "bytes": _read_bytes,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "secret": Secret,
    "encrypted": _read_encrypted,
    "dict": _read_dict,
    "datetime": _read_datetime,
    "time": _read_time,
    "date": _read_date,
    "timedelta": _read_timedelta,
    "decimal": _read_decimal,
    "uuid": _read_uuid,
    "path": _read_path,
    "enum": _read_enum,
    "flag": _read_flag,
    "dataclass": _read_dataclass,
    "pydantic": _read_model,
}


_registered: dict[str, tuple[str, str]] = {}  # by tag: the module and name of the class


def register_type(
    kind: type, tag: str, encode: Callable[[Any], Any], decode: Callable[[Any], Any]
) -> None:
    """Teach the tagged formats a type: `encode` makes a value they know, `decode` undoes it.

    Both sides must register it under the same tag; only exact instances of the class are
    written with it. Raises `ValueError` for a tag that is taken, and `TypeError` for what
    is no class, text or function.
    """
    if not all(map(isinstance, (kind, tag), (type, str))):
        raise TypeError(f"register_type takes a class and a tag, not {kind!r} and {tag!r}")
    if not all(map(callable, (encode, decode))):
        raise TypeError(f"register_type takes two functions, not {encode!r} and {decode!r}")
    name = kind.__module__, kind.__qualname__  # a cell of a notebook makes another class of it
    if tag in readers and _registered.get(tag) != name:
        raise ValueError(f"the type tag {tag!r} is taken")
    _registered[tag] = name
    readers[tag] = decode
    writers[kind] = lambda value, depth: _mark(tag, _tag(encode(value), depth))
