"""A proxy: an object that stands for another one, looked up anew at each use.

`current_app`, `current_task` and tasks made by `shared_task` are proxies, because what
they stand for is decided later, or differs from thread to thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Proxy"]


class Proxy:
    """Stands for what `find()` returns."""

    __slots__ = ("_Proxy__find", "__dict__", "__weakref__")

    def __init__(self, find: Callable[[], Any], *, name: str = "", doc: str | None = None):
        object.__setattr__(self, "_Proxy__find", find)
        if name:
            object.__setattr__(self, "__name__", name)
        if doc is not None:
            object.__setattr__(self, "__doc__", doc)

    def _get_current_object(self) -> Any:
        """Return the object this proxy stands for now."""
        return self.__find()

    @property  # type: ignore[misc]  # a proxy passes isinstance()
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Who looks through a module asks each of its members what it is: one that stands for
        # nothing yet (`find` raises RuntimeError) is a proxy to them, not an error.
        try:
            return self.__find().__class__
        except RuntimeError:
            return type(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__find(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__find(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.__find(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__find()(*args, **kwargs)

    def __getitem__(self, key: Any) -> Any:
        return self.__find()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__find()[key] = value

    def __contains__(self, item: Any) -> bool:
        return item in self.__find()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.__find())

    def __len__(self) -> int:
        return len(self.__find())

    def __or__(self, other: Any) -> Any:
        return self.__find() | other

    def __bool__(self) -> bool:
        return bool(self.__find())

    def __eq__(self, other: object) -> bool:
        return bool(self.__find() == other)

    def __hash__(self) -> int:
        return hash(self.__find())

    def __str__(self) -> str:
        return str(self.__find())

    def __repr__(self) -> str:
        try:
            return repr(self.__find())
        except RuntimeError:
            return f"<{type(self).__name__} that stands for nothing here>"

    def __dir__(self) -> list[str]:
        return dir(self.__find())

    def __reduce__(self) -> Any:
        return self.__find().__reduce__()
