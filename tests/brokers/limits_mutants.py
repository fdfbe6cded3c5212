"""Broken brokers, to test the tests of promise 12: see `mutants.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from brokers.mutants import swap
from liteq.brokers import limiting, settling
from liteq.brokers.limiting import Lines
from liteq.brokers.settling import Settling

Patch = pytest.MonkeyPatch


def slots_never_freed(patch: Patch) -> None:
    patch.setattr(settling, "free_slots", lambda db, seq: False)


def freed_slots_tell_nobody(patch: Patch) -> None:
    patch.setattr(
        settling,
        "free_slots",
        lambda db, seq: db.execute("DELETE FROM slot WHERE message = ?", (seq,)) is None,
    )


def slots_not_counted(patch: Patch) -> None:
    charge = Lines._charge
    patch.setattr(
        Lines,
        "_charge",
        lambda self, bucket, limit, seq: charge(self, bucket, limit._replace(most=None), seq),
    )


def rates_not_charged(patch: Patch) -> None:
    charge = Lines._charge
    patch.setattr(
        Lines,
        "_charge",
        lambda self, bucket, limit, seq: charge(
            self, bucket, limit._replace(interval=None), seq
        ),
    )


def burst_is_one_too_many(patch: Patch) -> None:
    opens_at = Lines._opens_at
    patch.setattr(
        Lines,
        "_opens_at",
        lambda self, bucket, limit: opens_at(
            self, bucket, limit._replace(burst=limit.burst + (limit.burst > 1))
        ),
    )


def keys_share_a_bucket(patch: Patch) -> None:
    held = Lines._held
    patch.setattr(
        Lines,
        "_held",
        lambda self, limits: [(b.partition("\n")[0] + "\n", x) for b, x in held(self, limits)],
    )


def one_limit_is_enough(patch: Patch) -> None:
    block = Lines._block_if_full
    patch.setattr(
        Lines,
        "_block_if_full",
        lambda self, queue, limits, held: block(self, queue, limits, held[:1]),
    )


def stale_settle_frees_a_slot(patch: Patch) -> None:
    settle = Settling.settle

    def free_first(self: Settling, items: Any) -> Any:
        for lease, _ in items:
            self.opened |= limiting.free_slots(self.db, lease.key)
        return settle(self, items)

    patch.setattr(Settling, "settle", free_first)


def lines_stay_shut(patch: Patch) -> None:
    patch.setattr(Lines, "open_due", lambda self: None)


def worker_is_not_told_when(patch: Patch) -> None:
    patch.setattr(Lines, "next_due", lambda self: None)


def turn_of_an_empty_line_is_lost(patch: Patch) -> None:
    def drop(self: Lines, queue: str, limits: str) -> None:
        self.db.execute("DELETE FROM line WHERE queue = ? AND limits = ?", (queue, limits))

    patch.setattr(Lines, "_drop", drop)


def room_left_in_another_bucket_is_lost(patch: Patch) -> None:
    block = Lines._block_if_full

    def keep(self: Lines, queue: str, limits: str, held: Any) -> bool:
        full = [one for one in held if self._full_until(*one) is not None]
        return block(self, queue, limits, full) if full else False

    patch.setattr(Lines, "_block_if_full", keep)


def higher_priority_waits_behind(patch: Patch) -> None:
    swap(patch, limiting, ("_HEAD",), "ORDER BY priority DESC, seq", "ORDER BY seq")


def override_forgets_who_waits(patch: Patch) -> None:
    def quietly(db: Any) -> None:
        db.execute(
            "INSERT INTO meta(name, value) VALUES ('limits', 1) "
            "ON CONFLICT DO UPDATE SET value = value + 1"
        )

    patch.setattr(limiting, "_changed", quietly)


LIMIT_MUTANTS: dict[str, Callable[[Patch], None]] = {
    one.__name__.replace("_", " "): one
    for one in (
        slots_never_freed,
        freed_slots_tell_nobody,
        slots_not_counted,
        rates_not_charged,
        burst_is_one_too_many,
        keys_share_a_bucket,
        one_limit_is_enough,
        stale_settle_frees_a_slot,
        lines_stay_shut,
        worker_is_not_told_when,
        turn_of_an_empty_line_is_lost,
        room_left_in_another_bucket_is_lost,
        higher_priority_waits_behind,
        override_forgets_who_waits,
    )
}

# Each takes seconds: what `make test` throws; `LITEQ_STORM=1` throws all of them.
QUICK = (
    "slots never freed",
    "slots not counted",
    "one limit is enough",
    "stale settle frees a slot",
    "lines stay shut",
)
