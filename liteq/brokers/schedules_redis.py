"""Periodic entries, in Lua: kept, fired once each, and who may fire them."""

from __future__ import annotations

from collections.abc import Sequence

from liteq.brokers.base_redis import RedisStore, refuse
from liteq.brokers.graph import count_edges
from liteq.brokers.redis_form import Fields, graph_arguments, schedule_of
from liteq.brokers.values import Schedule
from liteq.message import Edge, Message, Workflow

__all__ = ["RedisSchedules"]


class RedisSchedules(RedisStore):
    """The part of a Redis store that keeps periodic entries."""

    def schedules(self, names: Sequence[str] | None = None) -> list[Schedule]:
        if names is not None and not names:
            return []  # to the script, no name is all
        fields = Fields(self._call("schedules", *dict.fromkeys(names or ())))
        found = []
        while fields.more():
            found.append(schedule_of(fields))
        return sorted(found)

    def schedule_names(self) -> list[str]:
        fields = Fields(self._call("schedule_names"))
        found = []
        while fields.more():
            found.append(fields.text())
        return sorted(found)

    def put_schedule(self, schedule: Schedule, *, revision: int | None = None) -> bool:
        said = self._once(
            "put_schedule",
            schedule.name,
            schedule.entry,
            schedule.due_at,
            schedule.origin,
            schedule.paused,
            revision,
            schedule.last_due_at,
            schedule.last_run_at,
            schedule.last_id,
            schedule.total,
            self._tokens(),  # a number of changes would begin anew with an entry's name
        )
        return said[0] == b"1"

    def remove_schedule(self, name: str) -> bool:
        return self._once("remove_schedule", name)[0] == b"1"

    def fire(
        self,
        name: str,
        due_at: float,
        next_due_at: float | None,
        *,
        revision: int,
        messages: Sequence[Message] = (),
        edges: Sequence[Edge] = (),
        workflow: Workflow | None = None,
    ) -> bool:
        last = ""
        if messages:
            last = workflow.id if workflow is not None else messages[0].id
        packed = [message.pack() for message in messages]
        count_edges(packed, edges)
        graph = graph_arguments(packed, edges, workflow)
        said = self._once("fire", name, due_at, next_due_at, revision, last, *graph)
        refuse(said)
        return said[0] == b"1"

    def lead(self, beat: str, until: float) -> bool:
        return self._call("lead", beat, until)[0] == b"1"

    def unlead(self, beat: str) -> None:
        self._call("lead", beat, "")
