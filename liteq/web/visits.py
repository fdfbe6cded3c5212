"""What a page is given of a request, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.pace import Pace

__all__ = ["Moved", "Page", "Visit"]


class Visit(NamedTuple):
    """One request: who asks, what they may do, the fields of the address or the form, and the
    pace of the workers, which all requests share."""

    app: Liteq
    user: str
    may: Callable[[str], bool]
    fields: Mapping[str, Sequence[str]]
    pace: Pace

    def text(self, name: str) -> str:
        """Return a field as it was given; "" if it was not."""
        return next(iter(self.fields.get(name, ())), "")

    def named(self, name: str) -> str:
        """Return a field that must be given. Raises `ValueError`."""
        if not (text := self.text(name)):
            raise ValueError(f"this request must say which {name} is meant")
        return text

    def texts(self, name: str) -> list[str]:
        return list(self.fields.get(name, ()))


class Page(NamedTuple):
    """A template with its values, and the status of the answer."""

    template: str
    values: Mapping[str, Any]
    status: int = 200


class Moved(NamedTuple):
    """A redirect to another page (so a POST leaves no trace in the browser's history)."""

    path: str
    fields: Mapping[str, str | Sequence[str]]

    @property
    def address(self) -> str:
        fields = {name: value for name, value in self.fields.items() if value}
        return f"{self.path}?{urlencode(fields, doseq=True)}" if fields else self.path
