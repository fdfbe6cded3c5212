"""A workflow: calls that were sent as one, looked at and steered as one by its id.

The store keeps every workflow as rows, so that any program with its id can draw it, wait
for it, cancel it, or run again what failed and have the rest go on from there.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from liteq.brokers.values import FINAL_STATES
from liteq.exceptions import UnknownWorkflow
from liteq.message import GATHER, Edge
from liteq.offload import off_loop
from liteq.result import AsyncResult, GroupResult

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.brokers.values import Node, RevokeAnswer, WorkflowInfo

__all__ = ["Workflow", "WorkflowProgress"]

_SLICE: Final = 500  # messages that are revoked in one step


class WorkflowProgress(NamedTuple):
    """How far a workflow is, in numbers of tasks. `done` are those that have ended in
    whatever way, `failed` those of them that failed, in themselves or upstream."""

    done: int
    total: int
    failed: int = 0

    @property
    def fraction(self) -> float:
        """The part that is done, from 0 to 1."""
        return self.done / self.total if self.total else 1.0


class Workflow:
    """A workflow in the store, by its id: that of its result, or of any call in it.

    Nothing is kept here: each attribute is read when it is asked for, and raises
    `UnknownWorkflow` if the store has no such workflow (any more).
    """

    def __init__(self, id: str, app: Liteq) -> None:
        if not id or not isinstance(id, str):
            raise ValueError(f"a workflow has an id, not {id!r}")
        self._asked = id
        self._found: str | None = None
        self.app = app

    # What the store says

    @property
    def id(self) -> str:
        """The workflow's id."""
        return self.info.id

    @property
    def name(self) -> str:
        """What it is in a few words: "chord", "chain of 3", or what it was called."""
        return self.info.name

    @property
    def state(self) -> str:
        """ "running" until every task has ended; then "failed" if one failed, else
        "revoked" if one was revoked or ignored, else "succeeded"."""
        return self.info.state

    @property
    def progress(self) -> WorkflowProgress:
        """How many of its tasks have ended."""
        info = self.info
        return WorkflowProgress(info.done, info.total, info.failed)

    @property
    def info(self) -> WorkflowInfo:
        """Its id, name, time of creation, and its tasks counted by state."""
        broker = self.app.broker
        known = broker.workflow(self._found or self._asked)
        if known is None and self._found is None:
            record = broker.get((self._asked,)).get(self._asked)
            if record is not None and record.workflow is not None:
                known = broker.workflow(record.workflow)
        if known is None:
            raise UnknownWorkflow(
                f"no workflow {self._asked} is in the store: it was never sent, or all of "
                "its results have expired or were forgotten"
            )
        self._found = known.id
        return known

    @property
    def nodes(self) -> list[Node]:
        """Its calls in the order in which they were sent, each with its state. What only
        gathers the results of a group is not among them."""
        return [node for node in self.graph()[0] if node.task != GATHER]

    @property
    def edges(self) -> list[Edge]:
        """What follows what; gathers are named too."""
        return self.graph()[1]

    def graph(self) -> tuple[list[Node], list[Edge]]:
        """Return all nodes, gathers among them, and the edges between them."""
        return self.app.broker.nodes(self.id)

    def exists(self) -> bool:
        """Tell whether the store knows it."""
        try:
            return bool(self.info)
        except UnknownWorkflow:
            return False

    @property
    def result(self) -> AsyncResult[Any] | GroupResult:
        """The result of the whole: of its last task, or of its group."""
        return self.app.GroupResult.restore(self.id) or AsyncResult(self.id, app=self.app)

    # Waiting

    def get(self, timeout: float | None = None, *, propagate: bool = True) -> Any:
        """Wait for the result of the whole and return it; see `AsyncResult.get`."""
        return self.result.get(timeout=timeout, propagate=propagate)

    def wait(self, timeout: float | None = None) -> str:
        """Wait until every task has ended, callbacks too, and return the state then.

        Raises `TimeoutError` after `timeout` seconds.
        """
        from liteq.waiting import settled  # late: it is for those who wait

        since = time.monotonic()
        for ids in self._open():
            for _ in settled(self.app.broker, ids, timeout=timeout, since=since):
                pass
        return self.state

    async def aget(self, timeout: float | None = None, *, propagate: bool = True) -> Any:  # noqa: ASYNC109
        """Wait like `get()`, on the running event loop."""
        result = await off_loop(lambda: self.result)
        return await result.aget(timeout, propagate=propagate)

    async def await_end(self, timeout: float | None = None) -> str:  # noqa: ASYNC109
        """Wait like `wait()`, on the running event loop."""
        from liteq.waiting import asettled  # late: it is for those who wait

        since = time.monotonic()
        steps = self._open()
        while (ids := await off_loop(next, steps, None)) is not None:
            async for _ in asettled(self.app.broker, ids, timeout=timeout, since=since):
                pass
        return await off_loop(lambda: self.state)

    def __await__(self) -> Generator[Any, None, Any]:
        return self.aget().__await__()

    # Steering

    def cancel(self, *, terminate: bool = False) -> dict[str, RevokeAnswer]:
        """Revoke every task that has not ended, and return by id what became of each.

        What runs may finish, or, with `terminate`, is ended with SIGTERM. Callbacks of
        what is revoked are revoked too: nothing of the workflow starts any more.
        """
        answers: dict[str, RevokeAnswer] = {}
        for some in _slices(_last_first(*self.graph())):
            answers |= self.app.control.revoke(some, terminate=terminate)
        return answers

    def retry_failed(self) -> list[str]:
        """Give every task that failed a fresh start; return their ids.

        What failed or was revoked because of them waits for them again, so the workflow
        goes on from there. What has succeeded is not run again, what somebody revoked
        stays revoked.
        """
        failed = [n.id for n in self.graph()[0] if n.state == "failed" and not n.upstream]
        return self.app.broker.redrive(failed) if failed else []

    async def acancel(self, *, terminate: bool = False) -> dict[str, RevokeAnswer]:
        """Cancel it like `cancel()`, without blocking the event loop."""
        return await off_loop(lambda: self.cancel(terminate=terminate))

    async def aretry_failed(self) -> list[str]:
        """Retry like `retry_failed()`, without blocking the event loop."""
        return await off_loop(self.retry_failed)

    def _open(self) -> Iterator[tuple[str, ...]]:
        """Yield ids to wait for, until all has ended: first the result of the whole, since
        most else has ended by then, and a workflow may have thousands of tasks."""
        waited: set[str] = set()
        while True:
            left = {n.id for n in self.graph()[0] if n.state not in FINAL_STATES} - waited
            if not left:
                return
            if not waited and self.id in left:
                left = {self.id}
            waited |= left
            yield tuple(left)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Workflow):
            return self._asked == other._asked and self.app is other.app
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._asked)

    def __repr__(self) -> str:
        return f"<Workflow: {self._asked}>"


def _last_first(nodes: Iterable[Node], edges: Iterable[Edge]) -> Iterator[str]:
    """Yield the ids of nodes that have not ended, each after all that follows it: were a
    task revoked before its error callback, that would start it."""
    open_ids = [node.id for node in nodes if node.state not in FINAL_STATES]
    before: dict[str, list[str]] = {}
    after = dict.fromkeys(open_ids, 0)
    for edge in edges:
        if edge.source in after and edge.target in after:
            before.setdefault(edge.target, []).append(edge.source)
            after[edge.source] += 1
    free = [id for id in open_ids if not after[id]]
    for id in free:  # grows as it goes
        yield id
        for source in before.get(id, ()):
            after[source] -= 1
            if not after[source]:
                free.append(source)


def _slices(ids: Iterable[str]) -> Iterator[list[str]]:
    left = iter(ids)
    while some := list(islice(left, _SLICE)):
        yield some
