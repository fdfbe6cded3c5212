"""A fast check of a call's arguments against a function's signature.

The check is a compiled function with the same parameters and an empty body, so calling
it costs a fraction of `inspect.Signature.bind` and gives Python's own messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

__all__ = ["Check", "compile_check"]

Check: TypeAlias = Callable[..., None]


def compile_check(fun: Callable[..., Any], *, skip_first: bool = False) -> Check | None:
    """Return a function that takes what `fun` takes, and raises `TypeError` otherwise.

    `skip_first` leaves out a leading `self`. None if the signature cannot be known (some
    functions written in C).
    """
    import inspect  # late: 6 ms, needed at a task's first call only

    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (ValueError, TypeError):
        return None
    if skip_first and parameters and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        parameters = parameters[1:]
    scope: dict[str, Any] = {}
    source = f"def check({_head(parameters)}): pass"
    exec(compile(source, "<liteq argument check>", "exec"), scope)
    check: Any = scope["check"]
    check.__name__ = check.__qualname__ = getattr(fun, "__name__", type(fun).__name__)
    return check  # type: ignore[no-any-return]


def _head(parameters: list[Any]) -> str:
    """Return the parameters as source, with None for every default."""
    head: list[str] = []
    last = None
    for parameter in parameters:
        kind = parameter.kind
        if last is not None and last is parameter.POSITIONAL_ONLY and kind is not last:
            head.append("/")
        if kind is parameter.KEYWORD_ONLY and last not in (kind, parameter.VAR_POSITIONAL):
            head.append("*")
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(kind, "")
        default = "" if parameter.default is parameter.empty else "=None"
        head.append(f"{star}{parameter.name}{default}")
        last = kind
    if last is not None and last is parameters[-1].POSITIONAL_ONLY:
        head.append("/")
    return ", ".join(head)
