"""What all results have in common: what came before one, and what it led to."""

# ruff: noqa: FBT001, FBT002  (positional booleans in Celery's signatures)

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from liteq.exceptions import IncompleteStream

__all__ = ["Links", "ResultBase", "as_tuple", "in_line"]

Links: TypeAlias = dict[str, dict[str, list[str]]]  # workflow: source: ids linked to it


class ResultBase:
    """The root of all results."""

    parent: Any = None

    def ready(self) -> bool:
        """Tell whether it has ended, in whatever way."""
        raise NotImplementedError

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for the end, and return what it ended with."""
        raise NotImplementedError

    @property
    def children(self) -> list[Any] | None:
        """What it led to."""
        raise NotImplementedError

    # Walking

    def iterdeps(self, intermediate: bool = False) -> Iterator[tuple[Any, Any]]:
        """Yield (parent, result) for this one and all that it led to, nearest first.

        Raises `IncompleteStream` at one that is not ready, unless `intermediate` is on.
        """
        found: list[tuple[Any, Any]] = [(None, self)]
        links: Links = {}
        for parent, node in found:
            yield parent, node
            if node.ready():
                found.extend((node, child) for child in node._led_to(links) or ())
            elif not intermediate:
                raise IncompleteStream(f"{node} is not ready")

    def collect(self, intermediate: bool = False, **kwargs: Any) -> Iterator[tuple[Any, Any]]:
        """Yield (result, value) for this one and all that it led to, waiting for each."""
        for _, node in self.iterdeps(intermediate=intermediate):
            yield node, node.get(**kwargs)

    def get_leaf(self) -> Any:
        """Return the value of the last that this one led to."""
        value = None
        for _, node in self.iterdeps():
            value = node.get()
        return value

    def build_graph(self, intermediate: bool = False) -> dict[Any, list[Any]]:
        """Return what led to what: this result and all that it led to, each with those
        that it led to itself. Raises `IncompleteStream` as `iterdeps()` does."""
        graph: dict[Any, list[Any]] = {}
        for parent, node in self.iterdeps(intermediate=intermediate):
            graph.setdefault(node, [])
            if parent is not None:
                graph[parent].append(node)
        return graph

    @property
    def graph(self) -> dict[Any, list[Any]]:
        """What led to what; see `build_graph()`."""
        return self.build_graph()

    def _led_to(self, links: Links) -> list[Any] | None:
        """Return the children; `links` keeps what was read of workflows on the way."""
        return self.children

    def _line(self) -> list[Any]:
        """Return this result and those that came before it, the nearest first. (Not by
        recursion: a chain may have ten thousand steps.)"""
        line: list[Any] = [self]
        while (before := line[-1].parent) is not None:
            line.append(before)
        return line


def as_tuple(result: Any) -> Any:
    """Return a result and those before it in the form of `result_from_tuple`."""
    form: Any = None
    for node in reversed(result._line()):
        members = getattr(node, "results", None)
        inner = None if members is None else [member.as_tuple() for member in members]
        form = ((node.id, form), inner)
    return form


def in_line(nodes: Sequence[Any]) -> Any:
    """Make each of these results the one after the next, and return the first."""
    for node, before in pairwise(nodes):
        node.parent = before
    return nodes[0]
