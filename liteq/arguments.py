"""A fast check of a call's arguments against a function's signature.

The check is a compiled function with the same parameters and an empty body, so calling
it costs a fraction of `inspect.Signature.bind` and gives Python's own messages.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, Final, TypeAlias

__all__ = ["Check", "about_bind", "compile_check"]

Check: TypeAlias = Callable[..., None]

_Parameter: TypeAlias = tuple[str, int, bool]  # its name, its kind, whether it has a default

# The kinds, numbered as in `inspect`, and the flags of code, which are Python's own.
_POSITIONAL_ONLY, _EITHER, _VAR_POSITIONAL, _KEYWORD_ONLY, _VAR_KEYWORD = range(5)
_STARS: Final = {_VAR_POSITIONAL: "*", _VAR_KEYWORD: "**"}
_TAKES_ARGS: Final = 0x04
_TAKES_KWARGS: Final = 0x08


def compile_check(fun: Callable[..., Any]) -> Check | None:
    """Return a function that takes what `fun` takes, and raises `TypeError` otherwise.

    None if the signature cannot be known (some functions written in C).
    """
    parameters = _of_code(fun)
    if parameters is None:
        parameters = _of_signature(fun)
    if parameters is None:
        return None
    scope: dict[str, Any] = {}
    # As a text: `compile()` would make all classes of `ast` first, 5 ms.
    exec(f"def check({_head(parameters)}): pass", scope)
    check: Any = scope["check"]
    check.__name__ = check.__qualname__ = getattr(fun, "__name__", type(fun).__name__)
    return check  # type: ignore[no-any-return]


def about_bind(made_of: Any) -> str:
    """Return what may be wrong with `bind`, where a call does not fit the function that a
    task was made of: as a static method without it. "" if nothing is, or it is unknown."""
    code = getattr(getattr(made_of, "__func__", made_of), "__code__", None)
    first = code.co_varnames[0] if code is not None and code.co_argcount else None
    if isinstance(made_of, staticmethod):
        return "its first parameter is self: is bind=True missing?" if first == "self" else ""
    if made_of is None or first in (None, "self", "task"):
        return ""
    return f"bind=True gives the task itself to its first parameter, {first!r}"


def _of_code(fun: Callable[..., Any]) -> list[_Parameter] | None:
    """Return the parameters of a plain function or method; None if `inspect` is to be asked,
    which takes longer to import than a first call takes to be sent."""
    plain = fun.__func__ if isinstance(fun, MethodType) else fun
    # What has attributes may have a signature that is not its own (`__wrapped__`).
    if type(plain) is not FunctionType or plain.__dict__:
        return None
    code = plain.__code__
    by_position, only = code.co_argcount, code.co_posonlyargcount
    without = by_position - len(plain.__defaults__ or ())
    names = iter(code.co_varnames)
    found = [
        (next(names), _POSITIONAL_ONLY if at < only else _EITHER, at >= without)
        for at in range(by_position)
    ]
    defaults = plain.__kwdefaults__ or {}
    keywords = [next(names) for _ in range(code.co_kwonlyargcount)]
    if code.co_flags & _TAKES_ARGS:
        found.append((next(names), _VAR_POSITIONAL, False))
    found += [(name, _KEYWORD_ONLY, name in defaults) for name in keywords]
    if code.co_flags & _TAKES_KWARGS:
        found.append((next(names), _VAR_KEYWORD, False))
    if plain is fun:
        return found
    return found[1:] if by_position else None  # `self` is one of its *args, or an error


def _of_signature(fun: Callable[..., Any]) -> list[_Parameter] | None:
    import inspect  # late: 6 ms, for functions that are more than that

    try:
        parameters = inspect.signature(fun).parameters.values()
    except (ValueError, TypeError):
        return None
    return [(p.name, int(p.kind), p.default is not p.empty) for p in parameters]


def _head(parameters: list[_Parameter]) -> str:
    """Return the parameters as source, with None for every default."""
    head: list[str] = []
    last = None
    for name, kind, has_default in parameters:
        if last == _POSITIONAL_ONLY and kind != last:
            head.append("/")
        if kind == _KEYWORD_ONLY and last not in (kind, _VAR_POSITIONAL):
            head.append("*")
        head.append(f"{_STARS.get(kind, '')}{name}{'=None' if has_default else ''}")
        last = kind
    if last == _POSITIONAL_ONLY:
        head.append("/")
    return ", ".join(head)
