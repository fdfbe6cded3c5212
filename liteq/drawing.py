"""A workflow as lines of text: what follows what, from the first task to the last.

What runs one after the other stands under each other with an arrow, what runs side by
side is a branch of a tree, and where branches meet again the line goes on below them:

    fetch
    ├─ resize
    │  ↓ check
    └─ resize
       ↓ check
    ↓ publish

Gathers are not drawn. Each node is drawn once; where a line leads to one that is drawn
elsewhere, since it waits for others too, its name stands as a reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from liteq.message import GATHER

if TYPE_CHECKING:
    from liteq.brokers.values import Node
    from liteq.message import Edge

__all__ = ["Line", "draw"]

BRANCHES: Final = 10  # side by side, before the rest is summed up
_FAILED: Final = 3  # of these, those that are kept for branches that failed
_DEEPEST: Final = 50  # branches of branches, before the rest is summed up
_ASLEEP: Final = ("waiting", "revoked")  # states of an error callback that was not set off


@dataclass
class Line:
    """One line: the branches before it, and a node, or a remark in its place."""

    prefix: str
    node: Node | None = None
    remark: str = ""


@dataclass
class _Entry:
    """A node with a remark before it, or a remark alone; and what branches off after it."""

    node: Node | None = None
    remark: str = ""
    branches: list[list[_Entry]] = field(default_factory=list)


@dataclass
class _Stretch:
    """A line of nodes, all that is drawn in it, and what it leads to (kept as keys)."""

    entries: list[_Entry] = field(default_factory=list)
    drawn: set[str] = field(default_factory=set)
    ahead: dict[str, None] = field(default_factory=dict)


def draw(
    nodes: Sequence[Node], edges: Iterable[Edge], *, branches: int | None = BRANCHES
) -> list[Line]:
    """Return the lines for a workflow. Of branches side by side so many are drawn, and
    the rest is counted (None: all are drawn)."""
    drawing = _Drawing(nodes, edges)
    return list(_lines(drawing.top(), branches))


class _Drawing:
    """Puts the nodes of a graph into lines and branches, each once."""

    def __init__(self, nodes: Sequence[Node], edges: Iterable[Edge]) -> None:
        self._nodes = {node.id: node for node in nodes}
        self._before: dict[str, set[str]] = {}
        self._after: dict[str, list[str]] = {}
        self._on_failure: set[str] = set()
        for edge in sorted(edges, key=lambda one: one.position):
            if edge.source not in self._nodes or edge.target not in self._nodes:
                continue
            if edge.on == "failure":
                if self._nodes[edge.target].state in _ASLEEP:
                    continue
                self._on_failure.add(edge.target)
            self._before.setdefault(edge.target, set()).add(edge.source)
            self._after.setdefault(edge.source, []).append(edge.target)
        self._asleep = {
            edge.target
            for edge in edges
            if edge.on == "failure" and edge.target not in self._on_failure
        }

    def top(self) -> list[_Entry]:
        """Return the line of the whole; what nothing goes before is its beginning."""
        first = [id for id in self._nodes if id not in self._before and id not in self._asleep]
        return self._line(first, 0).entries

    def _line(self, first: list[str], depth: int) -> _Stretch:
        """Return the line that begins with these. It ends before what waits for nodes of
        other lines too: that stands where those lines meet."""
        line = _Stretch()
        ready = first
        while ready:
            ahead = self._one_ahead(ready, line)
            if beside := [id for id in ready if id != ahead]:
                self._branch(line, beside, depth)
            if ahead is not None:
                if self._nodes[ahead].task != GATHER:
                    line.entries.append(self._entry(ahead))
                line.drawn.add(ahead)
                line.ahead.update(dict.fromkeys(self._after.get(ahead, ())))
            ready = [id for id in line.ahead if self._before[id] <= line.drawn]
            for id in ready:
                del line.ahead[id]
        return line

    def _entry(self, id: str) -> _Entry:
        return _Entry(self._nodes[id], "on failure: " if id in self._on_failure else "")

    def _one_ahead(self, ready: list[str], line: _Stretch) -> str | None:
        """Return the one with which the line goes on, the others being branches: the only
        one, or the only one that leads further."""
        if not line.drawn:
            return ready[0] if len(ready) == 1 else None
        usual = [id for id in ready if id not in self._on_failure]
        if len(usual) > 1:
            usual = [id for id in usual if self._after.get(id)]
        return usual[0] if len(usual) == 1 else None

    def _branch(self, line: _Stretch, first: list[str], depth: int) -> None:
        """Add the branches that begin with these to the last entry of a line."""
        if not line.entries or line.entries[-1].branches:
            line.entries.append(_Entry(remark="then" if line.drawn else ""))
        holder = line.entries[-1]
        if depth >= _DEEPEST:
            holder.branches.append([_Entry(remark=f"… {len(first)} more, too deep to draw")])
            return
        branches = [self._line([id], depth + 1) for id in first]
        for branch in branches:
            line.drawn |= branch.drawn
            line.ahead.update(branch.ahead)
        for branch in branches:
            branch.entries += [
                _Entry(remark=f"→ {self._nodes[id].name}")
                for id in branch.ahead
                if self._nodes[id].task != GATHER and not self._before[id] <= line.drawn
            ]
            if branch.entries:
                holder.branches.append(branch.entries)


def _lines(top: list[_Entry], limit: int | None) -> Iterator[Line]:
    for at, entry in enumerate(top):
        yield from _entry_lines(entry, "↓ " if at else "", "", limit)


def _entry_lines(entry: _Entry, arrow: str, prefix: str, limit: int | None) -> Iterator[Line]:
    if entry.node is not None or entry.remark:
        if entry.node is not None:
            yield Line(prefix + arrow + entry.remark, entry.node)
        else:
            is_reference = entry.remark.startswith(("→", "…"))
            yield Line(prefix + ("" if is_reference else arrow), remark=entry.remark)
    shown, hidden = _split(entry.branches, limit)
    for at, branch in enumerate(shown):
        last = at == len(shown) - 1 and not hidden
        yield from _branch_lines(branch, prefix, limit, last=last)
    if hidden:
        yield Line(f"{prefix}└─ ", remark=_summed_up(hidden))


def _split(
    branches: list[list[_Entry]], limit: int | None
) -> tuple[list[list[_Entry]], list[list[_Entry]]]:
    """Return the branches to be drawn, and the rest: the first, but when some of the rest
    have failed, the first few of these in place of the last few of those."""
    if limit is None:
        return branches, []
    late = [branch for branch in branches[limit:] if any(map(_has_failed, branch))]
    late = late[: min(_FAILED, limit)]
    shown = [*branches[: limit - len(late)], *late]
    ids = set(map(id, shown))
    return shown, [branch for branch in branches if id(branch) not in ids]


def _has_failed(entry: _Entry) -> bool:
    return entry.node is not None and entry.node.state == "failed"


def _branch_lines(
    branch: list[_Entry], prefix: str, limit: int | None, *, last: bool
) -> Iterator[Line]:
    inner = prefix + ("   " if last else "│  ")
    for at, entry in enumerate(branch):
        lines = _entry_lines(entry, "↓ " if at else "", inner, limit)
        if at:
            yield from lines
            continue
        for number, line in enumerate(lines):
            if not number:
                line.prefix = prefix + ("└─ " if last else "├─ ") + line.prefix[len(inner) :]
            yield line


def _summed_up(hidden: Sequence[list[_Entry]]) -> str:
    """Return how many branches there are, and their nodes counted by state, those first
    that somebody may have to look after."""
    states: Counter[str] = Counter()
    todo = [entry for branch in hidden for entry in branch]
    for entry in todo:
        if entry.node is not None:
            states[entry.node.state] += 1
        todo.extend(inner for branch in entry.branches for inner in branch)
    worst = ("failed", "revoked", "ignored", "parked", "retrying", "running")
    order = sorted(states, key=lambda s: worst.index(s) if s in worst else len(worst))
    counts = ", ".join(f"{states[state]:,} {state}" for state in order)
    return f"… {len(hidden):,} more: {counts}"
