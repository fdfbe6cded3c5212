"""What an exception holds beside its texts, as data for its record, and the exception again.

That is its `args`, the attributes of the instance (its `__dict__` and its slots), and what
built-in classes keep in C, as the file of an `OSError`. Values are written as results are
(see `liteq.tagging`), but of data types alone: to read a dataclass, a model or a registered
type may run code of its class, and whoever can write to a store can forge a record.

Whether all that a class needs could be carried is found out where it failed: an exception
whose text would be another when it is made again is not carried at all.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from types import MemberDescriptorType, ModuleType
from typing import Any, Final

from liteq import exceptions
from liteq.exceptions import DecodeError
from liteq.redaction import HIDDEN, Redactor, Secret, default, hide, mask_url
from liteq.tagging import MARK, json_text, revive, tagged

__all__ = ["ERROR_TEXT_LIMIT", "Carrier", "cut", "find", "made", "text_of"]

ERROR_TEXT_LIMIT: Final = 32_768  # characters kept of a message and of a traceback
_STATE_LIMIT: Final = 32_768  # characters of JSON, about, for all of an exception's values
_TEXT_LIMIT: Final = 8_192  # characters kept of a text among them
_MOST_ATTRIBUTES: Final = 100
_DEPTH: Final = 16
_WIDEST_INT: Final = 1024  # bits; Python refuses to print those of more than 14,000

_PLAIN: Final = (str, int, float, bool, type(None))
# What reads back without a call of anybody's code; "exception" is known here alone.
_TAGS: Final = {
    *("bytes", "complex", "dict", "float", "frozenset", "int", "set", "str", "tuple"),
    *("date", "datetime", "decimal", "path", "time", "timedelta", "uuid"),
    *("enum", "exception", "flag", "secret"),
}
_EXCEPTION: Final = "exception"

_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: set for every class written in Python
_ARGS: Final[Any] = vars(BaseException)["args"]
_DICT: Final[Any] = vars(BaseException)["__dict__"]
# What built-in classes keep in C. `AttributeError.obj` is not among it: it may be anything.
_IN_C: Final[dict[type[BaseException], tuple[str, ...]]] = {
    OSError: ("errno", "strerror", "filename", "filename2"),
    ImportError: ("msg", "name", "path"),
    NameError: ("name",),
    AttributeError: ("name",),
    StopIteration: ("value",),
    SyntaxError: (
        *("msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset"),
        "print_file_and_line",
    ),
}
# These are set together, by the `__init__` of the class itself, which checks their types.
_UNICODE: Final[dict[type[BaseException], tuple[str, ...]]] = {
    UnicodeEncodeError: ("encoding", "object", "start", "end", "reason"),
    UnicodeDecodeError: ("encoding", "object", "start", "end", "reason"),
    UnicodeTranslateError: ("object", "start", "end", "reason"),
}


# Writing


class _Unfit(Exception):
    """What cannot be carried."""


class Carrier:
    """Takes down what an exception holds, in bounded size and without these secret texts, the
    passwords of URLs, nor what goes by a name that `redactor` knows as secret. `limit`:
    characters of each text."""

    def __init__(
        self,
        secrets: Collection[str] = (),
        redactor: Redactor | None = None,
        limit: int = ERROR_TEXT_LIMIT,
    ) -> None:
        self._secrets = secrets
        self._redactor = redactor or default()
        self._limit = limit
        self._left = min(_STATE_LIMIT, limit)
        self._open: list[BaseException] = []  # those that hold the one at hand

    def text(self, text: str) -> str:
        """Return a text as a record may show it."""
        return cut(self._hidden(text), self._limit)

    def _hidden(self, text: str) -> str:
        return mask_url(hide(text, self._secrets))

    def state(self, exc: BaseException, message: str) -> dict[str, Any]:
        """Return the fields of the record that `made` needs; none if it could not make an
        exception that says `message`, the text of this one."""
        try:
            return self._checked(exc, message, self._state(exc, _DEPTH))
        except _Unfit:
            return {}

    def _state(self, exc: BaseException, depth: int) -> dict[str, Any]:
        self._open.append(exc)
        try:
            return self._args(exc, depth) | self._attributes(exc, depth)
        finally:
            self._open.pop()

    def _args(self, exc: BaseException, depth: int) -> dict[str, Any]:
        args = _ARGS.__get__(exc)
        if len(self._open) == 1 and all(map(_is_plain, args)):  # as in all versions of records
            return {"args": [self.text(arg) if isinstance(arg, str) else arg for arg in args]}
        return {"values": self._trees(args, depth)}

    def _attributes(self, exc: BaseException, depth: int) -> dict[str, Any]:
        if type(exc).__module__ == exceptions.__name__:
            return {}  # they are initialised again: see `made`
        found = {
            "attributes": self._carriable(_DICT.__get__(exc).items(), depth),
            "members": self._carriable(_members(exc), depth),
        }
        return {field: values for field, values in found.items() if values}

    def _carriable(self, items: Iterable[tuple[Any, Any]], depth: int) -> dict[str, Any]:
        found = {}
        for name, value in list(islice(items, _MOST_ATTRIBUTES)):
            left = self._left
            try:
                self._spend(len(name))
                found[name] = self._tree(value, depth, name)
            except _Unfit:
                self._left = left
        return found

    def _checked(
        self, exc: BaseException, message: str, state: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the state if an exception made of it has the same text. One of which
        there are but plain arguments, and whose class has no `__str__` of its own, has."""
        kind = type(exc)
        if "values" in state or "members" in state or not _prints_in_c(kind):
            again = made(kind, state)
            if again is None or self.text(text_of(again)) != message:
                raise _Unfit
        return state

    def _nested(self, exc: BaseException, depth: int) -> dict[str, Any]:
        """Return an exception that is a value of another, as a tagged value."""
        kind = type(exc)
        is_within_itself = any(exc is one for one in self._open)
        if is_within_itself or find(kind.__module__, kind.__qualname__) is not kind:
            raise _Unfit
        state = self._checked(exc, self.text(text_of(exc)), self._state(exc, depth))
        self._spend(len(kind.__qualname__) + len(kind.__module__))
        named = {"type": kind.__qualname__, "module": kind.__module__}
        return {MARK: [_EXCEPTION, named | state]}

    def _tree(self, value: Any, depth: int, name: object = None) -> Any:
        """Return the plain tree that stands for a value which goes by this name. What a
        proxy says of its class is not asked for: that may raise."""
        self._spend(4)
        if self._is_secret(value, name):
            value = Secret(HIDDEN) if type(value) is Secret else HIDDEN
        kind = type(value)
        if issubclass(kind, enum.Enum):
            return self._leaf(value)
        if issubclass(kind, str):
            return self._leaf(
                cut(self._hidden(str.__str__(value)), min(_TEXT_LIMIT, self._limit))
            )
        if issubclass(kind, (bytes, bytearray)):
            return self._leaf(self._bytes(bytes(value)))
        if depth == 0:
            raise _Unfit
        if issubclass(kind, BaseException):
            return self._nested(value, depth - 1)
        if issubclass(kind, list):
            return self._trees(list.__iter__(value), depth)
        for base in (tuple, set, frozenset):
            if issubclass(kind, base):
                return {MARK: [base.__name__, self._trees(base.__iter__(value), depth)]}
        if issubclass(kind, dict):
            return {MARK: ["dict", self._pairs(value, depth)]}
        return self._leaf(value)

    def _pairs(self, value: dict[Any, Any], depth: int) -> list[list[Any]]:
        return [
            [self._tree(key, depth - 1), self._tree(member, depth - 1, key)]
            for key, member in dict.items(value)
        ]

    def _trees(self, values: Iterable[Any], depth: int) -> list[Any]:
        return [self._tree(value, depth - 1) for value in values]

    def _leaf(self, value: Any) -> Any:
        if issubclass(type(value), int) and value.bit_length() > _WIDEST_INT:
            raise _Unfit
        try:
            tree = tagged(("value",), value)
        except Exception as exc:  # of whatever the value is: its own code may raise it
            raise _Unfit from exc
        if type(tree) is dict and tree[MARK][0] not in _TAGS:
            raise _Unfit
        text = json_text(tree)
        if hide(text, self._secrets) != text:  # a path, say: texts have lost theirs before
            raise _Unfit
        self._spend(len(text))
        return tree

    def _bytes(self, value: bytes) -> bytes:
        for secret in self._secrets:
            value = value.replace(secret.encode("utf-8", "replace"), HIDDEN.encode())
        value = mask_url(value.decode("latin-1")).encode("latin-1")  # a character is a byte
        if len(value) <= _TEXT_LIMIT:
            return value
        half = _TEXT_LIMIT // 2
        return b"%b\n... %d bytes cut ...\n%b" % (
            value[:half],
            len(value) - _TEXT_LIMIT,
            value[-half:],
        )

    def _is_secret(self, value: Any, name: object) -> bool:
        if value is None or type(value) is bool or (type(value) is str and not value):
            return False
        return type(value) is Secret or self._redactor.is_secret(name)

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _Unfit


def _is_plain(arg: Any) -> bool:
    kind = type(arg)
    if issubclass(kind, int) and arg.bit_length() > _WIDEST_INT:
        return False
    return issubclass(kind, _PLAIN) and not issubclass(kind, enum.Enum)


def _members(exc: BaseException) -> Iterator[tuple[str, Any]]:
    """Yield what of an exception's state stands outside of its `__dict__`."""
    for name, descriptor in _descriptors(type(exc)).items():
        try:
            value = descriptor.__get__(exc)
        except (AttributeError, TypeError):  # it was never filled
            continue
        if value is not None or descriptor.__objclass__.__flags__ & _HEAP_TYPE:
            yield name, value


def _prints_in_c(kind: type) -> bool:
    base = next(base for base in kind.__mro__ if "__str__" in vars(base))
    return not base.__flags__ & _HEAP_TYPE


# Reading


def find(module: str, qualname: str) -> type[BaseException] | None:
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


def made(kind: type[BaseException], state: dict[str, Any]) -> BaseException | None:
    """Return an instance that holds this state, without running the class's own code;
    None if it cannot be.

    `__new__` and `__init__` are the user's code and may do anything; the `__new__` of
    the built-in class below makes the instance, and what it holds is put in its places.
    liteq's own classes are initialised: they keep attributes beside `args`.
    """
    builtin = next(base for base in kind.__mro__ if not base.__flags__ & _HEAP_TYPE)
    try:
        args = _revived(state["values"]) if "values" in state else state["args"]
        exc: BaseException = builtin.__new__(kind, *args)
        _put_members(exc, _revived_fields(state.get("members", {})))
        _ARGS.__set__(exc, tuple(args))
        if kind.__module__ == exceptions.__name__:
            kind.__init__(exc, *args)
        _DICT.__get__(exc).update(_revived_fields(state.get("attributes", {})))
    except _DAMAGE:
        return None
    return exc


_DAMAGE: Final = (
    *(AttributeError, DecodeError, LookupError, OverflowError, RecursionError),
    *(TypeError, ValueError),
)


def _revived_fields(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: _revived(tree) for name, tree in fields.items()}


def _revived(tree: Any) -> Any:
    """Return the value of a tree; raise one of `_DAMAGE` for a tag that may not be here."""
    if type(tree) is list:
        return [_revived(member) for member in tree]
    if type(tree) is not dict:
        return tree
    tag, *payload = tree[MARK]
    if tag not in _TAGS:
        raise DecodeError(f"an exception cannot hold a value of the tag {tag!r}")
    if tag == _EXCEPTION:
        return _again(*payload)
    return revive({MARK: [tag, *map(_revived, payload)]})


def _again(fields: dict[str, Any]) -> BaseException:
    kind = find(fields["module"], fields["type"])
    exc = None if kind is None else made(kind, fields)
    if exc is None:
        raise DecodeError(f"there is no {fields['type']} in this process")
    return exc


def _put_members(exc: BaseException, members: dict[str, Any]) -> None:
    for base, names in _UNICODE.items():
        if issubclass(type(exc), base):  # `isinstance` asks the exception for its class
            given = {name: members.pop(name) for name in names if name in members}
            if given:
                _check_unicode(base, **given)
                base.__init__(exc, *(given[name] for name in names))
    descriptors = _descriptors(type(exc))
    for name, value in members.items():
        descriptors[name].__set__(exc, value)


def _check_unicode(
    base: type[BaseException], object: Any, start: int, end: int, **_: str
) -> None:
    """Raise `ValueError` for a place that is not in the text: to print such an error, Python
    reads the memory beside it."""
    if not 0 <= start < end <= len(object):
        raise ValueError(f"{base.__name__} with a place outside of its text")


def _descriptors(kind: type[BaseException]) -> dict[str, Any]:
    """Return by what is read and set that a class keeps outside of the `__dict__`: all of
    them are Python's own."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        space = vars(base)
        if names := _IN_C.get(base) or _UNICODE.get(base):
            found |= {name: space[name] for name in names}
        elif base.__flags__ & _HEAP_TYPE and "__slots__" in space:
            slots = (one for one in space.items() if type(one[1]) is MemberDescriptorType)
            found = dict(slots) | found
    return found


# Texts


def text_of(exc: BaseException) -> str:
    """Return what an exception says, whatever its `__str__` does."""
    try:
        return str(exc)
    except Exception as broken:  # noqa: BLE001 (a user's __str__; the report must go on)
        return f"<{type(exc).__name__}.__str__ raised {type(broken).__name__}>"


def cut(text: str, limit: int = ERROR_TEXT_LIMIT) -> str:
    """Return a text without its middle, if it is longer than this."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - limit} characters cut …\n{text[-half:]}"
