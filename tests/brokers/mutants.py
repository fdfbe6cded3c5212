"""Broken brokers, to test the tests: each is SQLite's broker with one promise taken out.

A mutant is a name, the promise it breaks, and a function that breaks it by patching the
broker's statements or methods. `swap` fails when the text it looks for is gone, so a
mutant cannot silently turn into a healthy broker when the broker changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from brokers.model import BrokerMachine
from brokers.model_unique import UniqueMachine
from liteq.brokers import (
    claiming,
    enqueueing,
    following,
    limiting,
    queueing,
    redriving,
    schema,
    settling,
    sqlite,
    standby,
    uniqueness,
    upkeep_sqlite,
)
from liteq.brokers.base import Lease
from liteq.brokers.claiming import Claim
from liteq.brokers.following import Following
from liteq.brokers.settling import Settling
from liteq.brokers.sqlite import SqliteBroker
from liteq.outcome import Lost, Released, Succeeded

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """One way in which a broker could be wrong."""

    name: str
    promise: int
    apply: Callable[[Patch], None]
    # The model finds most; these contract tests find what the model does not look at.
    found_by: tuple[str, ...] = ()
    model: type[BrokerMachine] = BrokerMachine


def swap(patch: Patch, module: Any, names: tuple[str, ...], old: str, new: str) -> None:
    """Replace a piece of SQL in the named constants of a module."""
    for name in names:
        sql = getattr(module, name)
        assert old in sql, f"{name} no longer contains {old!r}: mend this mutant"
        patch.setattr(module, name, sql.replace(old, new))


EXITS = ("_SUCCEED", "_FAIL", "_REVOKE_LEASE", "_REQUEUE")


def no_fence(patch: Patch) -> None:
    swap(patch, settling, EXITS, "AND token = ?", "AND ? IS NOT NULL AND state = 3")
    swap(patch, settling, ("_SUCCEED_BLOCK",), "AND message.token = done.token", "")
    # A retry's statement is made as it runs: take its token from the row.
    retry = Settling._retry

    def unfenced(self: Settling, lease: Lease, outcome: Any) -> bool:
        row = self.db.execute("SELECT token FROM message WHERE seq = ?", (lease.key,)).get
        return retry(self, lease._replace(token=row), outcome)

    patch.setattr(Settling, "_retry", unfenced)


def no_fence_on_success(patch: Patch) -> None:
    swap(patch, settling, ("_SUCCEED",), "AND token = ?", "AND ? IS NOT NULL")


def no_fence_on_many_successes(patch: Patch) -> None:
    swap(patch, settling, ("_SUCCEED_BLOCK",), "AND message.token = done.token", "")


def token_reused(patch: Patch) -> None:
    init = SqliteBroker.__init__

    def with_one_token(self: SqliteBroker, folder: Any, **options: Any) -> None:
        init(self, folder, **options, tokens=lambda: 7)

    patch.setattr(SqliteBroker, "__init__", with_one_token)


def tokens_repeat(patch: Patch) -> None:
    init = SqliteBroker.__init__

    def with_three_tokens(self: SqliteBroker, folder: Any, **options: Any) -> None:
        tokens = itertools.cycle((1, 2, 3))
        init(self, folder, **options, tokens=lambda: next(tokens))

    patch.setattr(SqliteBroker, "__init__", with_three_tokens)


def settle_keeps_the_token(patch: Patch) -> None:
    swap(patch, settling, ("_SUCCEED", "_SUCCEED_BLOCK", "_FAIL"), "token = NULL, ", "")


def stale_settle_answered_yes(patch: Patch) -> None:
    settle = Settling.settle
    patch.setattr(
        Settling, "settle", lambda self, items: tuple(True for _ in settle(self, items))
    )


def stale_settle_starts_callbacks(patch: Patch) -> None:
    settle = Settling._settle

    def follow_first(self: Settling, lease: Lease, outcome: Any) -> bool:
        if isinstance(outcome, Succeeded):
            self._after_success(lease, outcome)
        return settle(self, lease, outcome)

    patch.setattr(Settling, "_settle", follow_first)


def stale_note_taken(patch: Patch) -> None:
    swap(patch, sqlite, ("_NOTE",), "AND token = ?", "AND ? IS NOT NULL")


def stale_checkpoint_taken(patch: Patch) -> None:
    swap(patch, sqlite, ("_REWRITE",), "AND token = ?", "AND ? IS NOT NULL")


def eta_ignored(patch: Patch) -> None:
    enqueue = SqliteBroker.enqueue
    patch.setattr(
        SqliteBroker,
        "enqueue",
        lambda self, messages, *rest: enqueue(
            self, [message._replace(run_at=None) for message in messages], *rest
        ),
    )


def retry_delay_ignored(patch: Patch) -> None:
    retry = Settling._retry
    patch.setattr(
        Settling,
        "_retry",
        lambda self, lease, outcome: retry(
            self, lease, type(outcome)(self.now, outcome.error, outcome.changes)
        ),
    )


def expiry_ignored(patch: Patch) -> None:
    swap(patch, claiming, ("_FIND",), "inputs, expires_at, ", "inputs, NULL, ")


def no_delivery_limit(patch: Patch) -> None:
    lose = Settling._lose

    def endless(self: Settling, lease: Lease, reason: str) -> bool:
        packed = list(lease.packed)
        packed[12] = 10**9
        return lose(self, lease._replace(packed=tuple(packed)), reason)

    patch.setattr(Settling, "_lose", endless)


def delivery_not_counted(patch: Patch) -> None:
    counted = f"min(deliveries, {schema.MOST}) + 1"
    swap(patch, claiming, ("_TAKE",), counted, "1")
    swap(patch, claiming, ("_FIND",), "deliveries + 1", "1")


def released_counts_a_delivery(patch: Patch) -> None:
    requeue = Settling._requeue
    patch.setattr(
        Settling, "_requeue", lambda self, lease, *, uncount: requeue(self, lease, uncount=0)
    )


def early_ack_redelivered(patch: Patch) -> None:
    lose = Settling._lose

    def late(self: Settling, lease: Lease, reason: str) -> bool:
        packed = list(lease.packed)
        packed[10] = 1
        return lose(self, lease._replace(packed=tuple(packed)), reason)

    patch.setattr(Settling, "_lose", late)


def revoke_forgotten(patch: Patch) -> None:
    patch.setattr(Following, "revoke", lambda self, seq, reason: None)


def revoke_forgotten_after_the_run(patch: Patch) -> None:
    patch.setattr(Settling, "_is_revoked", lambda self, lease: False)


def revoke_takes_running_leases(patch: Patch) -> None:
    swap(patch, following, ("_REVOKE",), " AND state != 3", "")
    revoke = SqliteBroker.revoke

    def ruthless(self: SqliteBroker, ids: Any, **options: Any) -> Any:
        ids = list(ids)
        answers = revoke(self, ids, **options)
        for id in ids:
            self._database.write(
                lambda db, id=id: db.execute(
                    "UPDATE message SET state = 8, token = NULL, settled_at = 0 "
                    "WHERE id = ? AND state = 3",
                    (id,),
                ),
                durable=False,
            )
        return answers

    patch.setattr(SqliteBroker, "revoke", ruthless)


def follow_ups_in_a_later_step(patch: Patch) -> None:
    owed: list[Any] = []
    give, step, init = Following._give, SqliteBroker.step, SqliteBroker.__init__

    def with_a_clean_slate(self: SqliteBroker, folder: Any, **options: Any) -> None:
        owed.clear()
        init(self, folder, **options)

    patch.setattr(SqliteBroker, "__init__", with_a_clean_slate)
    patch.setattr(Following, "_give", lambda self, *args: owed.append(args))

    def step_then_follow(self: SqliteBroker, worker: int, **options: Any) -> Any:
        answer = step(self, worker, **options)
        while owed:
            args = owed.pop(0)
            self._database.write(
                lambda db, args=args: give(Following(db, self.clock.now()), *args),
                durable=False,
            )
        return answer

    patch.setattr(SqliteBroker, "step", step_then_follow)


def follow_ups_lost(patch: Patch) -> None:
    patch.setattr(Following, "_give", lambda self, *args: None)


def callbacks_of_a_failure_hang(patch: Patch) -> None:
    note = Following._note

    def only_if_it_tells(self: Following, end: Any) -> None:
        if end.tells:
            note(self, end)

    patch.setattr(Following, "_note", only_if_it_tells)


def enqueue_overwrites(patch: Patch) -> None:
    new = "DO UPDATE SET state = excluded.state, body = excluded.body, token = NULL"
    sql = enqueueing._MESSAGES
    one, block = (text.replace("DO NOTHING", new) for text in (sql.one, sql.block))
    patch.setattr(enqueueing, "_MESSAGES", sql._replace(one=one, block=block))
    swap(patch, sqlite, ("ENQUEUE",), "DO NOTHING", new)


def other_work_under_a_used_id(patch: Patch) -> None:
    patch.setattr(enqueueing, "accept_repeat", lambda db, row: None)
    patch.setattr(sqlite, "accept_repeat", lambda db, row: None)


def priority_reversed(patch: Patch) -> None:
    swap(
        patch,
        claiming,
        ("_QUEUED_IN", "_QUEUED_IN_RANKED"),
        "INDEXED BY message_queued WHERE state = 1 AND queue = ? ORDER BY priority DESC",
        "WHERE state = 1 AND queue = ? ORDER BY priority",
    )


def youngest_first(patch: Patch) -> None:
    swap(
        patch,
        claiming,
        ("_QUEUED_IN", "_QUEUED_IN_RANKED"),
        "INDEXED BY message_queued WHERE state = 1 AND queue = ? ORDER BY priority DESC, seq",
        "WHERE state = 1 AND queue = ? ORDER BY priority DESC, seq DESC",
    )


def queue_by_queue(patch: Patch) -> None:
    take = Claim._take

    def one_after_another(self: Claim, wanted: int) -> Any:
        queues = self._queues
        for queue in queues:
            self._queues = [queue]
            if found := take(self, wanted):
                return found
        return []

    patch.setattr(Claim, "_take", one_after_another)


def reclaim_takes_living_workers(patch: Patch) -> None:
    dead = SqliteBroker._dead_workers

    def everybody(self: SqliteBroker, caller: Any, steady: float) -> list[int]:
        return dead(self, caller, steady + 10 * self.lease_timeout)

    patch.setattr(SqliteBroker, "_dead_workers", everybody)


def the_dead_are_not_noticed(patch: Patch) -> None:
    patch.setattr(SqliteBroker, "_dead_workers", lambda self, caller, steady: [])


def the_dead_may_claim(patch: Patch) -> None:
    swap(patch, sqlite, ("_AROUND",), "WHERE id = ?1 AND stopped_at IS NULL", "")


def leaving_loses_the_leases(patch: Patch) -> None:
    settle = Settling._settle

    def dropped(self: Settling, lease: Lease, outcome: Any) -> bool:
        if isinstance(outcome, Released):
            return True
        return settle(self, lease, outcome)

    patch.setattr(Settling, "_settle", dropped)


def dead_letter_deleted(patch: Patch) -> None:
    fail = Settling._fail

    def gone(self: Settling, lease: Lease, error: bytes, dead: Any, *rest: Any) -> bool:
        accepted = fail(self, lease, error, dead, *rest)
        if accepted and dead:
            self.db.execute("DELETE FROM message WHERE seq = ?", (lease.key,))
        return accepted

    patch.setattr(Settling, "_fail", gone)


def unknown_tasks_dropped(patch: Patch) -> None:
    patch.setattr(
        claiming,
        "_park",
        lambda db, lease, now: db.execute("DELETE FROM message WHERE seq = ?", (lease.key,)),
    )


def death_released(patch: Patch) -> None:
    """A worker's death counted as no delivery at all: poison circles for ever."""
    settle = Settling._settle
    patch.setattr(
        Settling,
        "_settle",
        lambda self, lease, outcome: settle(
            self, lease, Released() if isinstance(outcome, Lost) else outcome
        ),
    )


def gather_counts_a_stale_settle(patch: Patch) -> None:
    settle = Settling._settle

    def counted(self: Settling, lease: Lease, outcome: Any) -> bool:
        accepted = settle(self, lease, outcome)
        if not accepted and isinstance(outcome, Succeeded):
            for (gather,) in self.db.execute(
                "SELECT target FROM edge WHERE source = ? AND fires = 'part'", (lease.key,)
            ).fetchall():
                self.db.execute(
                    "UPDATE message SET pending = pending - 1 WHERE seq = ?", (gather,)
                )
        return accepted

    patch.setattr(Settling, "_settle", counted)


def gather_in_the_order_of_ends(patch: Patch) -> None:
    gather = Following._gather

    def as_they_came(self: Following, seq: int, arrivals: Any) -> None:
        there = self.db.execute("SELECT count(*) FROM input WHERE target = ?", (seq,)).get
        gather(self, seq, [(n, end) for n, (_, end) in enumerate(arrivals, there)])

    patch.setattr(Following, "_gather", as_they_came)


def redriven_part_counted_twice(patch: Patch) -> None:
    swap(patch, redriving, ("_UNCOUNT",), f"pending = min(pending, {schema.MOST}) + 1, ", "")


def redrive_forgets_what_else_failed(patch: Patch) -> None:
    swap(patch, redriving, ("_REVIVE",), "AND pending = (", "AND pending >= (")


def chords_error_callback_forgotten(patch: Patch) -> None:
    end_upstream = Following._end_upstream
    patch.setattr(
        Following,
        "_end_upstream",
        lambda self, target, end, tells: end_upstream(self, target, end, tells=False),
    )


def stale_replacement_taken(patch: Patch) -> None:
    patch.setattr(Settling, "_is_held", lambda self, lease: True)


def added_before_the_check(patch: Patch) -> None:
    def adding(self: Settling, lease: Lease, outcome: Any, added: Any) -> bool:
        self._attempt(lambda: self._add(lease, added))
        return self._settle(lease, outcome._replace(added=None))

    patch.setattr(Settling, "_succeed_adding", adding)


def late_inputs_lost(patch: Patch) -> None:
    swap(patch, following, ("_INPUT", "_GATHER"), following._OPEN, "state = 0")


def empty_gather_waits_for_ever(patch: Patch) -> None:
    patch.setattr(Following, "join", lambda self, seq: None)


def parts_end_with_the_first_of_a_step(patch: Patch) -> None:
    gather = Following._gather
    patch.setattr(
        Following, "_gather", lambda self, seq, arrivals: gather(self, seq, arrivals[:1])
    )


def errors_wrapped_again(patch: Patch) -> None:
    fail = Following._fail_gather
    patch.setattr(
        Following,
        "_fail_gather",
        lambda self, seq, part: fail(self, seq, part._replace(wrapped=False)),
    )


def what_is_before_a_header_is_in_it(patch: Patch) -> None:
    patch.setattr(Following, "_is_from_before", lambda self, seq, part: False)


def a_beat_raises_the_dead(patch: Patch) -> None:
    beat = SqliteBroker.beat

    def revive(self: SqliteBroker, worker: int, *args: Any, **options: Any) -> bool:
        beat(self, worker, *args, **options)
        self._database.write(
            lambda db: db.execute(
                "UPDATE worker SET stopped_at = NULL WHERE id = ?", (worker,)
            ),
            durable=False,
        )
        return True

    patch.setattr(SqliteBroker, "beat", revive)


def starts_are_not_charged(patch: Patch) -> None:
    patch.setattr(limiting.Lines, "_charge", lambda self, bucket, limit, seq: None)


def slots_are_never_free_again(patch: Patch) -> None:
    patch.setattr(settling, "free_slots", lambda db, seq: False)
    patch.setattr(upkeep_sqlite, "free_slots", lambda db, seq: False)


def a_key_is_held_by_nobody(patch: Patch) -> None:
    patch.setattr(uniqueness, "_HOLDER", f"SELECT * FROM ({uniqueness._HOLDER}) WHERE 0")


def key_free_at_the_start(patch: Patch) -> None:
    swap(patch, claiming, ("_TAKE",), "SET state = 3, ", "SET state = 3, unique_key = NULL, ")


def key_lost_with_the_worker(patch: Patch) -> None:
    swap(patch, settling, ("_REQUEUE",), "state = 1, ", "state = 1, unique_key = NULL, ")


def key_not_taken_again(patch: Patch) -> None:
    swap(patch, redriving, ("_RESTART",), "ltrim(unique_key, '-')", "NULL")


def second_arguments_forgotten(patch: Patch) -> None:
    patch.setattr(uniqueness, "_renew", lambda *_: None)


def no_turn_after_the_end(patch: Patch) -> None:
    swap(patch, following, ("_TURN",), "pending > 1", "pending > 0")


def pause_forgotten(patch: Patch) -> None:
    patch.setattr(queueing, "unpaused", lambda db, queues: queues)


def leased_to_one_that_is_busy(patch: Patch) -> None:
    swap(
        patch,
        standby,
        ("ENQUEUE_FIRST",),
        "state = 3 AND message.worker = standby.worker",
        "state = 3 AND message.worker = 0",
    )


def leased_past_what_is_due(patch: Patch) -> None:
    swap(patch, standby, ("ENQUEUE_FIRST",), "AND run_at <= ?18)", "AND run_at < 0)")


def leased_past_what_waits_elsewhere(patch: Patch) -> None:
    swap(
        patch, standby, ("ENQUEUE_FIRST",), "standby.worker AND state = 1)", "0 AND state = 1)"
    )


def stands_by_under_the_old_token(patch: Patch) -> None:
    patch.setattr(standby, "leave", lambda *_: None)


MUTANTS = (
    Mutant("leased to one that is busy", 7, leased_to_one_that_is_busy),
    Mutant("leased past what waits elsewhere", 7, leased_past_what_waits_elsewhere),
    Mutant("leased past what is due", 7, leased_past_what_is_due),
    Mutant("stands by under the old token", 3, stands_by_under_the_old_token),
    Mutant("a key is free at the start", 13, key_free_at_the_start, model=UniqueMachine),
    Mutant(
        "a key is lost with its worker",
        13,
        key_lost_with_the_worker,
        found_by=("test_a_reclaim_keeps_the_key",),
    ),
    Mutant(
        "a redrive takes no key",
        13,
        key_not_taken_again,
        found_by=("test_a_redrive_takes_the_key_again",),
    ),
    Mutant(
        "the second arguments are forgotten",
        13,
        second_arguments_forgotten,
        found_by=("test_what_waits_takes_the_new_arguments_and_keeps_its_place",),
    ),
    Mutant(
        "what replaces a running one never starts",
        13,
        no_turn_after_the_end,
        found_by=("test_what_replaces_a_running_one_starts_when_that_has_ended",),
    ),
    Mutant("a pause is forgotten", 7, pause_forgotten, model=UniqueMachine),
    Mutant("no fence", 3, no_fence),
    Mutant("no fence on success", 3, no_fence_on_success),
    Mutant(
        "no fence on many successes",
        3,
        no_fence_on_many_successes,
        found_by=("test_3_of_many_settled_at_once_the_stale_are_refused",),
    ),
    Mutant("token reused", 3, token_reused),
    Mutant("tokens repeat after three", 3, tokens_repeat),
    Mutant("a settled lease keeps its token", 3, settle_keeps_the_token),
    Mutant("a stale settle is answered yes", 3, stale_settle_answered_yes),
    Mutant(
        "a stale settle starts callbacks",
        4,
        stale_settle_starts_callbacks,
        found_by=("test_4_a_stale_settle_starts_no_callback",),
    ),
    Mutant(
        "a stale note is taken",
        3,
        stale_note_taken,
        found_by=("test_3_a_stale_holders_report_is_not_taken",),
    ),
    Mutant(
        "a stale checkpoint is taken",
        3,
        stale_checkpoint_taken,
        found_by=("test_3_a_stale_holder_gives_its_message_no_envelope",),
    ),
    Mutant("ETA ignored", 6, eta_ignored),
    Mutant("the delay of a retry ignored", 6, retry_delay_ignored),
    Mutant("expiry ignored", 6, expiry_ignored),
    Mutant("no delivery limit", 5, no_delivery_limit),
    Mutant("deliveries not counted", 5, delivery_not_counted),
    Mutant("a death is not counted", 5, death_released),
    Mutant("a release counts as a delivery", 2, released_counts_a_delivery),
    Mutant("early acknowledgement redelivered", 11, early_ack_redelivered),
    Mutant("revoke forgotten", 8, revoke_forgotten),
    Mutant("revoke forgotten after the run", 8, revoke_forgotten_after_the_run),
    Mutant("revoke takes running leases", 8, revoke_takes_running_leases),
    Mutant("follow-ups in a later step", 4, follow_ups_in_a_later_step),
    Mutant("follow-ups lost", 4, follow_ups_lost),
    Mutant("callbacks of a failure hang", 4, callbacks_of_a_failure_hang),
    Mutant("enqueue overwrites", 4, enqueue_overwrites),
    Mutant("other work taken under a used id", 4, other_work_under_a_used_id),
    Mutant("priority reversed", 7, priority_reversed),
    Mutant("the youngest first", 7, youngest_first),
    Mutant("queue by queue", 7, queue_by_queue),
    Mutant("reclaim takes living workers' leases", 2, reclaim_takes_living_workers),
    Mutant("the dead are not noticed", 2, the_dead_are_not_noticed),
    Mutant(
        "the dead may claim",
        2,
        the_dead_may_claim,
        found_by=("test_2_a_worker_given_up_for_dead_claims_nothing",),
    ),
    Mutant("leases vanish with who leaves", 2, leaving_loses_the_leases),
    Mutant("dead letters deleted", 5, dead_letter_deleted),
    Mutant(
        "a gather counts a stale settle",
        10,
        gather_counts_a_stale_settle,
        found_by=("test_10_a_stale_settle_is_not_counted_as_a_part",),
    ),
    Mutant(
        "a list in the order of ends",
        10,
        gather_in_the_order_of_ends,
        found_by=("test_10_a_part_that_is_added_is_waited_for_and_listed_last",),
    ),
    Mutant(
        "a redriven part is counted twice",
        10,
        redriven_part_counted_twice,
        found_by=("test_10_a_part_that_is_redriven_is_counted_once",),
    ),
    Mutant(
        "a redrive forgets what else failed",
        10,
        redrive_forgets_what_else_failed,
        found_by=("test_10_a_message_with_another_failure_before_it_does_not_wait_again",),
    ),
    Mutant(
        "a chord's error callback is forgotten",
        10,
        chords_error_callback_forgotten,
        found_by=("test_10_the_error_callback_of_a_chord_runs_once_for_its_failed_parts",),
    ),
    Mutant("a stale replacement is taken", 3, stale_replacement_taken),
    Mutant("added before the check", 4, added_before_the_check),
    Mutant(
        "late inputs are lost",
        10,
        late_inputs_lost,
        found_by=(
            "test_10_a_part_that_ends_after_its_gather_failed_is_listed_after_a_redrive",
        ),
    ),
    Mutant("an empty gather waits for ever", 10, empty_gather_waits_for_ever),
    Mutant(
        "one part of a step is counted",
        10,
        parts_end_with_the_first_of_a_step,
        found_by=("test_10_parts_that_end_in_one_step_are_all_counted",),
    ),
    Mutant(
        "an error is wrapped again",
        10,
        errors_wrapped_again,
        found_by=("test_10_the_error_of_a_gather_among_the_parts_is_handed_on_as_it_is",),
    ),
    Mutant(
        "what is before a header is in it",
        10,
        what_is_before_a_header_is_in_it,
        found_by=("test_10_a_gather_ends_as_what_is_before_all_its_parts_and_tells_nobody",),
    ),
    Mutant(
        "unknown tasks dropped",
        5,
        unknown_tasks_dropped,
        found_by=("test_5_an_unknown_task_is_left_for_a_worker_that_knows_it",),
    ),
    Mutant("a beat raises the dead", 2, a_beat_raises_the_dead),
    Mutant(
        "starts are not charged to their limits",
        12,
        starts_are_not_charged,
        found_by=(
            "test_12_starts_under_a_rate_are_evenly_spaced",
            "test_12_a_stale_holder_frees_no_slot",
        ),
    ),
    Mutant(
        "slots are never free again",
        12,
        slots_are_never_free_again,
        found_by=("test_12_a_dead_worker_gives_its_slots_back",),
    ),
    Mutant(
        "a unique key is held by nobody",
        13,
        a_key_is_held_by_nobody,
        found_by=("test_a_reclaim_keeps_the_key",),
    ),
)
