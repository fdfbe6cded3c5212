"""Pydantic models as arguments and results of tasks made with `pydantic=True`.

The body gets models made of the dicts that were sent, and a model that it returns is
stored as a dict. (Without the option models are sent and come back as they are.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from liteq.exceptions import ImproperlyConfigured

__all__ = ["with_models"]


def with_models(
    fun: Callable[..., Any],
    *,
    is_async: bool,
    context: Mapping[str, Any],
    strict: bool | None = None,
    dump: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Return the function with its arguments validated and its result dumped.

    Parameters that are annotated with a model, or a model or None, are validated, in
    `context`. `dump` are keywords for `model_dump` (default: mode="json").
    """
    try:
        import pydantic  # noqa: F401  # late: an optional dependency
    except ModuleNotFoundError:
        raise ImproperlyConfigured(
            "pydantic=True needs pydantic: pip install pydantic"
        ) from None
    options = {"mode": "json", **(dump or {})}
    models = _Models(fun)

    if is_async:

        @wraps(fun)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = models.validated(args, kwargs, context, strict=strict)
            return models.dumped(await fun(*args, **kwargs), options)

        return awaited

    @wraps(fun)
    def called(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = models.validated(args, kwargs, context, strict=strict)
        return models.dumped(fun(*args, **kwargs), options)

    return called


class _Models:
    """The models that a function's annotations name, read at its first call: they may
    be defined below it."""

    def __init__(self, fun: Callable[..., Any]) -> None:
        self._fun = fun
        self._by_name: dict[str, Any] | None = None
        self._signature: Any = None

    def validated(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: Mapping[str, Any],
        *,
        strict: bool | None,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        models = self._read()
        bound = self._signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            model = models.get(name)
            if model is not None and value is not None:
                bound.arguments[name] = model.model_validate(
                    value, strict=strict, context=dict(context)
                )
        return bound.args, bound.kwargs

    def dumped(self, value: Any, options: Mapping[str, Any]) -> Any:
        model = self._read().get("return")
        return value.model_dump(**options) if model and isinstance(value, model) else value

    def _read(self) -> dict[str, Any]:
        if self._by_name is None:
            import inspect  # late: 6 ms, as the next two only for tasks with models
            import typing

            self._signature = inspect.signature(self._fun)
            hints = typing.get_type_hints(self._fun)
            self._by_name = {name: _model_of(hint) for name, hint in hints.items()}
        return self._by_name


def _model_of(hint: Any) -> Any:
    """Return the model that an annotation names, alone or beside None; else None."""
    import types
    import typing

    import pydantic

    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [one for one in typing.get_args(hint) if one is not type(None)]
        hint = members[0] if len(members) == 1 else None
    is_model = isinstance(hint, type) and issubclass(hint, pydantic.BaseModel)
    return hint if is_model else None
