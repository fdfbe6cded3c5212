"""Schedules in the store: changed, fired and led, each in one transaction (`scheduling`)."""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from liteq.brokers import scheduling
from liteq.brokers.base_sqlite import SqliteStore
from liteq.brokers.enqueueing import insert, prepare
from liteq.brokers.following import Following
from liteq.brokers.uniqueness import admits
from liteq.brokers.values import Schedule
from liteq.message import Edge, Message, Workflow

__all__ = ["SqliteSchedules"]


class SqliteSchedules(SqliteStore):
    """The part of an SQLite store that keeps schedules and who may fire them."""

    def schedules(self, names: Sequence[str] | None = None) -> list[Schedule]:
        return self._database.read(lambda db: scheduling.schedules(db, names))

    def schedule_names(self) -> list[str]:
        return self._database.read(scheduling.names)

    def put_schedule(self, schedule: Schedule, *, revision: int | None = None) -> bool:
        token = self._tokens()  # a number of changes would begin anew with an entry's name
        written = self._database.write(
            lambda db: scheduling.put(db, schedule, revision, token), durable=self.durable
        )
        if written:
            self._wake_beats()
        return written

    def remove_schedule(self, name: str) -> bool:
        removed = self._database.write(
            lambda db: scheduling.remove(db, name), durable=self.durable
        )
        if removed:
            self._wake_beats()
        return removed

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
        now = self.clock.now()
        last_id = (workflow.id if workflow else messages[0].id) if messages else None

        batch = prepare([message.pack() for message in messages], edges, now)

        def move(db: apsw.Connection) -> tuple[bool, Following]:
            following = Following(db, now)

            def fire(last_id: str | None) -> bool:
                return scheduling.fire(
                    db, name, due_at, next_due_at, revision, now=now, last_id=last_id
                )

            if batch.has_keys and not admits(db, batch.rows, now):
                return fire(None), following  # its call of another instant is alive
            moved = fire(last_id)
            if moved and messages:
                insert(following, batch, workflow, stands={})
                following.follow_all()
            return moved, following

        moved, following = self._database.write(
            move, durable=self.durable, limited=bool(messages)
        )
        self._announce(following)
        return moved

    def lead(self, beat: str, until: float) -> bool:
        now = self.clock.now()
        return self._database.write(
            lambda db: scheduling.lead(db, beat, until, now), durable=False
        )

    def unlead(self, beat: str) -> None:
        if self._database.write(lambda db: scheduling.unlead(db, beat), durable=False):
            self._wake_beats()

    def _wake_beats(self) -> None:
        if self._post is not None:
            self._post.wake_beats()
        else:
            for mailbox in list(self._local.values()):
                if mailbox.name.startswith("b"):
                    mailbox.put([""])
