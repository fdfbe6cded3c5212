"""The model with unique messages and paused queues: who holds a key, and what others get.

A machine of its own, so that the dice of the other fall as they always did.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from brokers.model import QUEUES, BrokerMachine, Entry
from liteq.exceptions import DuplicateTask
from liteq.outcome import Replaced

KEYS = ("first", "second")


class UniqueMachine(BrokerMachine):
    """Adds unique messages, each of its own, and pauses, to what the other does."""

    def __init__(self) -> None:
        super().__init__()
        self.paused: set[str] = set()

    def holder(self, key: str) -> Entry | None:
        """Return the entry that is alive and has this key; there is never a second. One that
        has expired before its start is over, whether or not the store has noticed."""
        now = self.clock.now()
        alive = [
            entry
            for entry in self.entries.values()
            if entry.message.unique_key == key
            and not entry.final
            and entry.id not in self.deleted
            and not (entry.state == "ready" and entry.expired(now))
        ]
        assert len(alive) < 2, "the model itself lets two have a key"
        return alive[0] if alive else None

    @rule(
        key=st.sampled_from(KEYS),
        on_conflict=st.sampled_from((None, "skip", "raise", "replace")),
        fields=BrokerMachine.made,
    )
    def enqueue_unique(self, key: str, on_conflict: str | None, fields: dict[str, Any]) -> None:
        holder = self.holder(key)
        message = self.make(fields, unique_key=key, on_conflict=on_conflict)
        if holder is None:
            self.calls[message.id] = ([message], [], None)
            assert self.broker.enqueue([message]) == {}
            return
        entry = self.entries.pop(message.id)
        if on_conflict == "raise":
            with pytest.raises(DuplicateTask) as caught:
                self.broker.enqueue([message])
            assert caught.value.id == holder.id
        elif on_conflict != "replace" or holder.state == "ready":
            assert self.broker.enqueue([message]) == {message.id: holder.id}
            if on_conflict == "replace":
                holder.message = message._replace(id=holder.id)
                holder.run_at, holder.expires_at = entry.run_at, entry.expires_at
                holder.retries, holder.retried = 0, True

    def replaced(self, id: str, shape: int) -> Replaced:
        """A unique message stands alone, whatever takes its place."""
        entry = self.entries.get(id)
        if entry is None or entry.message.unique_key is None:
            return super().replaced(id, shape)
        return Replaced({"task": "shop.other", "body": b"[[1], {}]"})

    def may_restart(self, entry: Entry, restarted: list[Entry]) -> bool:
        key = entry.message.unique_key
        if key is None:
            return True
        return self.holder(key) is None and all(e.message.unique_key != key for e in restarted)

    @rule(queue=st.sampled_from(QUEUES))
    def pause(self, queue: str) -> None:
        assert self.broker.pause(queue) == (queue not in self.paused)
        self.paused.add(queue)

    @rule(queue=st.sampled_from(QUEUES))
    def resume(self, queue: str) -> None:
        assert self.broker.resume(queue) == (queue in self.paused)
        self.paused.discard(queue)
        assert {one.name for one in self.broker.queues() if one.paused} == self.paused

    def expected_claim(self, queues: list[str], limit: int) -> list[str]:
        return super().expected_claim([q for q in queues if q not in self.paused], limit)

    @invariant()
    def keys_are_held_by_who_is_alive(self) -> None:
        self.accept_expiry()
        for key in KEYS:
            holder = self.holder(key)
            found = self.broker.holder(key)
            assert found == (holder and holder.id), f"{found} holds it, not {holder}"
