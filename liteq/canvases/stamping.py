"""Stamps: marks that travel with the calls of a workflow, for whoever looks at them later.

A stamp is an option of a signature whose name is listed in its `stamped_headers`. A visitor
says what the stamps are of each part of a workflow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from liteq.options import CALL_OPTIONS

__all__ = ["StampingVisitor", "stamped"]


class StampingVisitor(ABC):
    """Goes through a workflow, for `sig.stamp(visitor)`.

    Each method gets a part and the headers that hold where it stands, and returns a
    dictionary: its entries are stamps, or, if it has an entry "stamped_headers", those
    that are listed there; options of a call may stand beside them. What `…_start` and
    `on_chord_body` return holds for all inside.
    """

    @abstractmethod
    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any] | None:
        """Return the stamps of the signature of a task, wherever in the workflow it stands."""

    def on_group_start(self, group: Any, **headers: Any) -> dict[str, Any] | None:
        """Return stamps of all members of a group."""
        return {}

    def on_group_end(self, group: Any, **headers: Any) -> None:  # noqa: B027 (a hook)
        """Called after the members of a group."""

    def on_chain_start(self, chain: Any, **headers: Any) -> dict[str, Any] | None:
        """Return stamps of all steps of a chain."""
        return {}

    def on_chain_end(self, chain: Any, **headers: Any) -> None:  # noqa: B027 (a hook)
        """Called after the steps of a chain."""

    def on_chord_header_start(self, chord: Any, **headers: Any) -> dict[str, Any] | None:
        """Return stamps of all members of a chord's header; those of a group, if this is
        not overridden."""
        return self.on_group_start(chord.header, **headers)

    def on_chord_header_end(self, chord: Any, **headers: Any) -> None:
        """Called after the members of a chord's header."""
        self.on_group_end(chord.header, **headers)

    def on_chord_body(self, chord: Any, **headers: Any) -> dict[str, Any] | None:
        """Return stamps of the body of a chord."""
        return {}

    def on_callback(self, callback: Any, **headers: Any) -> dict[str, Any] | None:
        """Return stamps of what is linked to a signature."""
        return {}

    def on_errback(self, errback: Any, **headers: Any) -> dict[str, Any] | None:
        """Return stamps of what is called when a signature fails."""
        return {}


def stamped(
    headers: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
    *,
    own: Mapping[str, Any] | None = None,
    append_stamps: bool = False,
) -> dict[str, Any]:
    """Return headers with what a visitor gave added, and `stamped_headers` naming all
    that are stamps.

    `own` are the options of the signature that they are for: those stamps of it stay that
    none of the same name comes for. Of two stamps of one name the headers' goes before the
    visitor's, and the new before the old, as in Celery; with `append_stamps`, and where both
    are lists, they become one list.
    """
    names = list(headers.get("stamped_headers") or ())
    if "stamped_headers" not in headers:
        names = list(headers)
    both = dict(headers)
    if given:
        listed = given.get("stamped_headers")
        if listed is not None:
            kept = {"stamped_headers", *CALL_OPTIONS, *listed}
            given = {name: value for name, value in given.items() if name in kept}
        names += given if listed is None else listed
        both = _joined(both, given, append_stamps=append_stamps)
    if own is not None:
        before = {name: own.get(name) for name in own.get("stamped_headers") or ()}
        names += before
        both = _joined(both, before, append_stamps=append_stamps)
    both["stamped_headers"] = sorted(dict.fromkeys(n for n in names if n != "stamped_headers"))
    return both


def _joined(
    first: Mapping[str, Any], second: Mapping[str, Any], *, append_stamps: bool
) -> dict[str, Any]:
    joined = {**second, **first}
    for name in first.keys() & second.keys():
        one, other = first[name], second[name]
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            joined[name] = _joined(one, other, append_stamps=append_stamps)
        elif isinstance(one, list) and isinstance(other, list):
            joined[name] = one + other
        elif append_stamps:
            values = other if isinstance(other, list) else [other]
            joined[name] = [*(one if isinstance(one, list) else [one]), *values]
    return joined
