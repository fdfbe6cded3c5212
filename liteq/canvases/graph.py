"""A graph: named calls, each of which waits for those whose results it needs.

For what chains, groups and chords cannot express: a call that waits for several others, and
another one that waits for some of the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from liteq.canvases.base import part
from liteq.current import get_current_app

if TYPE_CHECKING:
    from typing import Self

    from liteq.app import Liteq
    from liteq.canvases.signatures import Signature

__all__ = ["Graph", "GraphNode"]


class GraphNode(NamedTuple):
    """A node: what it calls, and which nodes it waits for. `keywords` names the argument that
    each of their results becomes; None: they go in front of the node's own arguments."""

    name: str
    sig: Signature[Any]
    after: tuple[str, ...] = ()
    keywords: tuple[str, ...] | None = None


class Graph:
    """A workflow of named nodes, which is sent as one.

        g = Graph("publish")
        g.add("fetch", fetch.s(url))
        g.add("small", resize.s(64), after="fetch")
        g.add("large", resize.s(256), after="fetch")
        g.add("join", join.s(), after=["small", "large"])
        g.delay()

    Nodes may be added in any order. A node may be a chain, group or chord, too: the nodes
    after it get its result.
    """

    subtask_type = "graph"

    def __init__(self, name: str = "graph", app: Liteq | None = None) -> None:
        self.name = name
        self.nodes: dict[str, GraphNode] = {}
        self._app = app

    @property
    def app(self) -> Liteq:
        """The app whose tasks these are: that of the first node."""
        if self._app is not None:
            return self._app
        first = next(iter(self.nodes.values()), None)
        return get_current_app() if first is None else first.sig.app

    def add(
        self,
        name: str,
        sig: Any,
        *,
        after: str | Iterable[str] | Mapping[str, str] = (),
    ) -> Self:
        """Add a node, and return the graph.

        `after`: the name of the node before it; several names, whose results become its
        first arguments in this order; or a mapping, whose keys are the names of the
        arguments. Raises `ValueError` for a name that is taken, `TypeError` for what is not a
        signature.
        """
        if not name:
            raise ValueError("a node needs a name that is not empty")
        if name in self.nodes:
            raise ValueError(f"graph {self.name!r} has a node {name!r} already")
        keywords = tuple(after) if isinstance(after, Mapping) else None
        names = after.values() if isinstance(after, Mapping) else after
        before = (names,) if isinstance(names, str) else tuple(names)
        for other in before:
            if before.count(other) > 1:
                raise ValueError(f"node {name!r} names {other!r} twice in after")
        self.nodes[name] = GraphNode(name, part(sig, f"node {name!r}", None), before, keywords)
        return self

    def order(self) -> list[GraphNode]:
        """Return the nodes, each after those that it waits for. Raises `ValueError` for an
        unknown name, and for a cycle, which it names."""
        self._check_names()
        ahead = {name: len(node.after) for name, node in self.nodes.items()}
        behind: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for other in node.after:
                behind[other].append(node.name)
        ready = [name for name, number in ahead.items() if not number]
        for name in ready:  # grows while it is gone through
            for later in behind[name]:
                ahead[later] -= 1
                if not ahead[later]:
                    ready.append(later)
        if len(ready) < len(self.nodes):
            raise ValueError(f"graph {self.name!r} has a cycle: {self._cycle(set(ready))}")
        return [self.nodes[name] for name in ready]

    def ends(self) -> list[str]:
        """Return the names of the nodes that no other waits for."""
        inner = {other for node in self.nodes.values() for other in node.after}
        return [name for name in self.nodes if name not in inner]

    # Sending

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """Send the graph, these arguments given to its first nodes. Return the result of its
        last node, or, if there are several, their `GroupResult`."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Send the graph like `delay()`, in one step; options are for its first nodes. Raises
        as `chain.apply_async` does, naming the node; nothing is sent then."""
        return self.app.sender.call_workflow(self, args, kwargs, options)

    async def adelay(self, *args: Any, **kwargs: Any) -> Any:
        """Send the graph without blocking the event loop."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Send the graph like `apply_async`, without blocking the event loop."""
        return await self.app.sender.acall_workflow(self, args, kwargs, options)

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Run the graph in this process, and return its result; see `Task.apply`."""
        return self.app.sender.apply_workflow(self, args, kwargs, options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Send the graph."""
        return self.apply_async(args, kwargs)

    def __len__(self) -> int:
        return len(self.nodes)

    def __repr__(self) -> str:
        return f"<Graph {self.name!r}: {', '.join(self.nodes) or 'empty'}>"

    # Inside

    def _check_names(self) -> None:
        for node in self.nodes.values():
            for other in node.after:
                if other not in self.nodes:
                    import difflib  # late: 5 ms, and only an error needs it

                    near = difflib.get_close_matches(other, self.nodes, n=1)
                    hint = f"; did you mean {near[0]!r}?" if near else ""
                    raise ValueError(
                        f"node {node.name!r} comes after {other!r}, which graph "
                        f"{self.name!r} does not have{hint}"
                    )

    def _cycle(self, done: set[str]) -> str:
        """Return a cycle among the nodes that are not done, as text."""
        name = next(name for name in self.nodes if name not in done)
        path: list[str] = []
        while name not in path:
            path.append(name)
            name = next(other for other in self.nodes[name].after if other not in done)
        cycle = [*path[path.index(name) :], name]
        return " → ".join(reversed(cycle))
