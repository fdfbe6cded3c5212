"""Functions, classes and Enums taken apart, as pickle's reducers do: what makes each again.

Each is made empty first and filled then: they may contain themselves.
"""

from __future__ import annotations

import abc
import re
import typing
from types import (
    CellType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    new_class,
)
from typing import Any, Final, NamedTuple

__all__ = [
    "BASE_OF_TYPED_DICTS",
    "OF_TYPED_DICTS",
    "Home",
    "reduced_cell",
    "reduced_class",
    "reduced_enum",
    "reduced_function",
    "reduced_type_variable",
]

_MADE_WITH_CLASS: Final = frozenset(
    {"__dict__", "__weakref__", "_abc_impl", "__module__", "__qualname__", "__slots__"}
)
_MADE_WITH_ENUM: Final = re.compile(r"_[^_]\w*_|__(new|new_member|dict|weakref)__")
_MADE_WITH_MEMBER: Final = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_"})
OF_TYPED_DICTS: Final[type] = type(typing.TypedDict("_", {}))  # type: ignore[operator]
BASE_OF_TYPED_DICTS: Final[Any] = typing.TypedDict.__mro_entries__(())[0]  # type: ignore[attr-defined]


class Home(NamedTuple):
    """The namespace of a module that the other process imports."""

    module: str


def reduced_function(function: FunctionType, home: Home | dict[str, Any]) -> Any:
    """Return what makes a function again, in the namespace of a module or in this one."""
    state = {
        "__defaults__": function.__defaults__,
        "__kwdefaults__": function.__kwdefaults__,
        "__annotations__": _annotations(function),
        "__doc__": function.__doc__,
        "__module__": function.__module__,
        "__qualname__": function.__qualname__,
    }
    args = function.__code__, home, function.__name__, function.__closure__
    return _function, args, (state, function.__dict__), None, None, _fill_function


def _function(code: CodeType, home: Any, name: str, closure: Any) -> FunctionType:
    scope = vars(__import__(home.module, fromlist=["_"])) if isinstance(home, Home) else home
    return FunctionType(code, scope, name, None, closure)


def _fill_function(function: Any, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for name, value in state[0].items():
        setattr(function, name, value)
    function.__dict__.update(state[1])


def _annotations(function: FunctionType) -> dict[str, Any]:
    try:
        return function.__annotations__
    except NameError:  # from Python 3.14 on they are worked out when they are asked for
        return {}


def reduced_cell(cell: CellType) -> Any:
    return CellType, (), _contents(cell), None, None, _fill_cell


def _contents(cell: CellType) -> tuple[Any, ...] | None:
    try:
        return (cell.cell_contents,)
    except ValueError:  # nothing is in it yet
        return None


def _fill_cell(cell: CellType, contents: tuple[Any, ...]) -> None:
    cell.cell_contents = contents[0]


def reduced_type_variable(variable: Any) -> Any:
    kind, module = type(variable), variable.__module__
    return _type_variable, (kind, module, variable.__name__, *_arguments(variable))


def _arguments(variable: Any) -> tuple[Any, ...]:
    """Return what a type variable is made with, besides its name."""
    if isinstance(variable, typing.NewType):
        return (variable.__supertype__,)
    return tuple(getattr(variable, "__constraints__", ()))


def _type_variable(kind: Any, module: str, *args: Any) -> Any:
    made = kind(*args)
    made.__module__ = module
    return made


def reduced_class(kind: type) -> Any:
    first, members = _skeleton(kind)
    args = type(kind), kind.__name__, kind.__bases__, first
    return _class, args, (members, _registered(kind)), None, None, _complete_class


def _skeleton(kind: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a class is made with, and what is put into it then."""
    members = vars(kind)
    first = {
        name: members[name]
        for name in ("__module__", "__qualname__", "__slots__", "__orig_bases__")
        if name in members
    }
    first.setdefault("__qualname__", kind.__qualname__)
    slots = MemberDescriptorType, GetSetDescriptorType
    rest = {
        name: value
        for name, value in members.items()
        if name not in _MADE_WITH_CLASS and not isinstance(value, slots)
    }
    return first, rest


def _class(meta: type, name: str, bases: tuple[type, ...], first: dict[str, Any]) -> type:
    if meta is OF_TYPED_DICTS:  # it refuses what it has made of all bases: dict
        return type.__new__(meta, name, bases, first)
    return new_class(name, bases, {"metaclass": meta}, lambda space: space.update(first))


def _registered(kind: type) -> list[type]:
    """Return what an abstract class was told to have for subclasses by `register()`."""
    if not isinstance(kind, abc.ABCMeta):
        return []
    registry = abc._get_dump(kind)[0]  # type: ignore[attr-defined]
    return [one for reference in registry if (one := reference()) is not None]


def _complete_class(kind: type, said: tuple[dict[str, Any], list[Any]]) -> None:
    members, registered = said
    _fill_class(kind, members)
    for one in registered:
        kind.register(one)  # type: ignore[attr-defined]


def _fill_class(kind: type, members: dict[str, Any]) -> None:
    for name, value in members.items():
        type.__setattr__(kind, name, value)


def reduced_enum(kind: Any) -> Any:
    """Return what makes an Enum again. A member is made of its value, without the `__new__` and
    `__init__` of the Enum's body, and what those have given it is put into it then."""
    members = {name: member.value for name, member in kind.__members__.items()}
    boundary = vars(kind).get("_boundary_")
    args = type(kind), kind.__name__, kind.__bases__, members, boundary
    return _enum, args, _said_of_enum(kind), None, None, _fill_enum


def _enum(
    meta: Any, name: str, bases: tuple[type, ...], members: dict[str, Any], boundary: Any
) -> Any:
    space = meta.__prepare__(name, bases)
    for key, value in members.items():
        space[key] = value
    return meta.__new__(meta, name, bases, space, boundary=boundary)


def _said_of_enum(kind: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the body of an Enum says besides its members, and what these have."""
    body = {
        name: value
        for name, value in vars(kind).items()
        if name not in kind.__members__
        and (name == "_missing_" or not _MADE_WITH_ENUM.fullmatch(name))
        and all(vars(base).get(name) is not value for base in kind.__mro__[1:])
    }
    owned = {
        name: {key: own for key, own in vars(member).items() if key not in _MADE_WITH_MEMBER}
        for name, member in kind.__members__.items()
    }
    return body, owned


def _fill_enum(kind: Any, said: tuple[dict[str, Any], dict[str, Any]]) -> None:
    body, owned = said
    _fill_class(kind, body)
    for name, own in owned.items():
        vars(kind.__members__[name]).update(own)
