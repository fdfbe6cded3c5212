"""The result of a group: its members' results under an id, by which the store knows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from liteq import states
from liteq.calls import lifetime
from liteq.current import get_current_app
from liteq.message import GATHER, TASK
from liteq.results.asyncresult import AsyncResult
from liteq.results.base import ResultBase, as_tuple, in_line
from liteq.results.resultset import MANY, ResultSet

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.brokers.values import Node, Record
    from liteq.message import Edge

__all__ = ["GroupResult", "result_from_tuple"]

SAVED: Final = "liteq.group"  # the task name of a group that `save()` has entered


class GroupResult(ResultSet):
    """The results of a group, or of the header of a chord, under an id of their own."""

    def __init__(
        self,
        id: str | None = None,
        results: Iterable[Any] | None = None,
        parent: ResultBase | None = None,
        app: Liteq | None = None,
        **_: Any,
    ) -> None:
        super().__init__([] if results is None else results, app)
        self.id = id
        self.parent = parent

    @property
    def children(self) -> list[Any]:
        """The members."""
        return self.results

    def ready(self) -> bool:
        """Tell whether all have ended."""
        gather = self._gather() if len(self.results) > MANY else None
        # Members that expired are over before the store marks them so, and the gather with
        # them: but of others, the last one has seldom ended before it.
        if gather is not None and not gather.final and not self.results[-1].ready():
            return False
        return super().ready()

    def save(self, backend: Any = None) -> GroupResult:
        """Make the store know the group, for `restore()`; it knows one that was sent."""
        broker = self.app.broker
        if self.id is None:
            raise ValueError("a group without an id cannot be saved")
        if not broker.get((self.id,)):
            import json  # ids are JSON, whatever the result's serializer

            form = json.dumps({"line": _line_of(self)}).encode()
            broker.store(
                self.id,
                states.SUCCESS,
                form,
                task=SAVED,
                expires=lifetime(self.app.conf.result_expires),
            )
        return self

    def delete(self, backend: Any = None) -> None:
        """Delete what `save()` wrote, or, for a group that has ended, what the store keeps of
        the group itself; its members' results stay."""
        if self.id is not None:
            self.app.broker.forget([self.id])

    @classmethod
    def restore(
        cls, id: str, backend: Any = None, app: Liteq | None = None
    ) -> GroupResult | None:
        """Return the group of this id, as the store knows it; None if it does not."""
        app = app or cls._app or get_current_app()
        record = app.broker.get((id,)).get(id)
        if record is None:
            return None
        if record.packed[TASK] == SAVED and record.result is not None:
            import json  # see `save()`

            form = json.loads(record.result)  # a tuple's, if an earlier liteq has saved it
            flat = isinstance(form, dict)
            restored = _in_line(form["line"], app) if flat else result_from_tuple(form, app)
            return restored if isinstance(restored, GroupResult) else None
        if record.packed[TASK] != GATHER or record.workflow is None:
            return None
        return _gathered(id, *app.broker.nodes(record.workflow), app)

    def as_tuple(self) -> tuple[tuple[str | None, Any], list[Any]]:
        """Return the group in Celery's form; see `result_from_tuple`. Each result encloses
        those before it: after a chain of a few hundred steps it is too deep for JSON."""
        return as_tuple(self)  # type: ignore[no-any-return]

    _stored_form = as_tuple  # see `dumps_result`

    def as_list(self) -> list[str | None]:
        """Return the ids of this group and of what came before it."""
        return [node.id for node in self._line()]

    def __bool__(self) -> bool:
        return bool(self.id or self.results)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GroupResult):
            return self.id == other.id and self.results == other.results
        return other == self.id if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        return str(self.id)

    def __repr__(self) -> str:
        return f"<GroupResult: {self.id} {self._shown()}>"

    def __reduce__(self) -> Any:
        if self.parent is None:
            return GroupResult, (self.id, self.results)
        return in_line, ([node._alone() for node in self._line()],)

    def _alone(self) -> GroupResult:
        return GroupResult(self.id, self.results, app=self._app)

    def _gather(self) -> Record | None:
        if self.id is None:
            return None
        record = self.app.broker.get((self.id,)).get(self.id)
        return record if record is not None and record.packed[TASK] == GATHER else None

    def _dropped(self) -> list[str]:
        return [*super()._dropped(), *([] if self.id is None else [self.id])]


def _line_of(result: Any) -> list[list[Any]]:
    """Return id and members of a result and of those before it, which JSON carries however
    many they are."""
    return [
        [node.id, [_line_of(one) for one in node.results] if _is_group(node) else None]
        for node in result._line()
    ]


def _in_line(line: list[list[Any]], app: Liteq) -> Any:
    """Return the result that `_line_of()` made this of."""
    made: list[Any] = []
    for id, members in line:
        if members is None:
            made.append(AsyncResult(id, app=app))
        else:
            results = [_in_line(member, app) for member in members]
            made.append(GroupResult(id, results, app=app))
    return in_line(made)


def _is_group(node: Any) -> bool:
    return getattr(node, "results", None) is not None


def result_from_tuple(given: Any, app: Liteq | None = None) -> Any:
    """Return the result that `as_tuple()` made this of; a result is returned as it is.

    Raises `ValueError` for anything else.
    """
    if isinstance(given, ResultBase):
        return given
    line: list[Any] = []
    while given is not None:
        match given:
            case str(id):
                given = None
                line.append(AsyncResult(id, app=app))
            case [[str(id), before], None] | [str(id), None as before]:
                given = before
                line.append(AsyncResult(id, app=app))
            case [[str() | None, before], [*members]]:
                results = [result_from_tuple(member, app) for member in members]
                line.append(GroupResult(given[0][0], results, app=app))
                given = before
            case _:
                raise ValueError(f"this is not a result in its tuple form: {given!r}")
    return in_line(line) if line else None


def _gathered(id: str, nodes: Sequence[Node], edges: Sequence[Edge], app: Liteq) -> GroupResult:
    """Return the group that a gather of a workflow stands for."""
    by_id = {node.id: node for node in nodes}
    parts: dict[str, list[tuple[int, str]]] = {}
    for edge in edges:
        if edge.on == "part":
            parts.setdefault(edge.target, []).append((edge.position, edge.source))
    return _group_of(id, by_id, parts, app)


def _group_of(
    id: str, nodes: Mapping[str, Node], parts: Mapping[str, list[tuple[int, str]]], app: Liteq
) -> GroupResult:
    results: list[Any] = []
    for _, source in sorted(parts.get(id, ())):
        node = nodes.get(source)
        if node is not None and node.task == GATHER:
            results.append(_group_of(source, nodes, parts, app))
        else:
            results.append(AsyncResult(source, None, node and node.task, app))
    return GroupResult(id, results, app=app)
