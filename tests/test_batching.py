"""What a worker holds of tasks that take many calls, until they are run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from liteq import Liteq
from liteq.brokers.values import Input, Lease
from liteq.message import Message
from liteq.pool import Job, Returned
from liteq.workers import batching
from liteq.workers.attempts import Attempts
from liteq.workers.batching import Batching
from liteq.workers.timelimits import Limits, TimeLimits


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def app() -> Liteq:
    app = Liteq("batching", broker="memory://", set_as_current=False)

    @app.task(name="threes", flush_every=3, flush_interval=5)
    def threes(calls: Any) -> None: ...

    @app.task(name="hundreds", flush_every=100, flush_interval=50)
    def hundreds(calls: Any) -> None: ...

    @app.task(name="single", flush_every=1)
    def single(calls: Any) -> None: ...

    @app.task(name="plain")
    def plain() -> None: ...

    return app


@pytest.fixture
def held(app: Liteq, time: Time) -> Batching:
    made = Batching(lambda: app.tasks, time, time, 3)
    made.look_again()
    return made


NO_LIMITS = (None, None)


def lease(
    task: str, *, delivery: int = 1, body: bytes = b"[[], {}]", given: int = 0, **fields: Any
) -> Lease:
    inputs = (Input("source", "result", 0, b"x" * given),) if given else ()
    packed = Message(id="m", task=task, body=body, **fields).pack()
    return Lease(1, 1, delivery, packed, inputs)


def put(
    held: Batching, task: str, *numbers: int, limits: Limits = NO_LIMITS, **fields: Any
) -> None:
    for number in numbers:
        held.put(number, lease(task, **fields), limits)


def test_calls_of_tasks_that_take_several_wait(held: Batching) -> None:
    wanted = [held.wants(lease(name)) for name in ("threes", "hundreds", "single", "plain")]

    assert wanted == [True, True, False, False]


def test_what_may_have_killed_a_process_runs_with_fewer_and_then_alone(
    held: Batching, time: Time
) -> None:
    assert held.wants(lease("hundreds", delivery=2))
    assert not held.wants(lease("hundreds", delivery=2, max_deliveries=2))
    assert not held.wants(lease("hundreds", delivery=3))
    put(held, "hundreds", *range(25), delivery=2)
    put(held, "hundreds", 25)

    assert [len(run) for run in held.ripe()] == [10, 10]
    time.now += 0.1
    assert list(held.ripe()) == [[20, 21, 22, 23, 24]]
    assert held.next_at() == 150.0


def test_what_would_be_lost_as_it_waits_does_not(held: Batching) -> None:
    assert not held.wants(lease("threes", acks_late=False))


def test_what_would_end_with_another_does_not_wait_for_it(held: Batching) -> None:
    assert not held.wants(lease("threes", max_deliveries=1))


def test_a_call_that_expires_waits_no_longer_than_it_can(held: Batching, time: Time) -> None:
    put(held, "hundreds", 1)
    put(held, "hundreds", 2, expires_at=110.0)
    put(held, "hundreds", 3, expires_at=200.0)

    assert held.next_at() == 109.5
    time.now = 109.5
    assert list(held.ripe()) == [[1, 2, 3]]
    put(held, "hundreds", 4, expires_at=109.6)
    assert list(held.ripe()) == [[4]]


def test_who_waits_after_one_that_expires_is_taken_away_waits_its_time(
    held: Batching, time: Time
) -> None:
    put(held, "hundreds", 1)
    put(held, "hundreds", 2, expires_at=110.0)
    held.drop(2)
    held.put_back({3: lease("hundreds")}, NO_LIMITS)

    assert held.next_at() == 100.0
    assert list(held.ripe()) == [[3, 1]]


def test_more_are_claimed_while_all_that_come_are_to_wait(held: Batching) -> None:
    many, plain = [lease("hundreds")] * 200, [lease("plain")] * 200
    asked = []
    for _ in range(8):
        asked.append(held.room(2))
        assert held.fitting(many[: asked[-1]], 2, asked[-1]) == (many[: asked[-1]], [])

    assert asked == [2, 4, 8, 16, 32, 64, 100, 100]  # no more than a run takes
    assert held.room(0) == 0
    assert held.fitting(many[:20], 2, 100) == (many[:20], [])
    assert held.room(2) == 100

    mixed = [*many[:3], *plain[:5], *many[:2]]
    assert held.fitting(mixed, 2, 100) == ([*many[:3], *plain[:2], *many[:2]], plain[:3])
    assert held.room(2) == 2
    assert held.fitting([many[0], plain[0]], 2, 2) == ([many[0], plain[0]], [])
    assert held.room(2) == 2


def test_a_task_that_cannot_take_several_calls_keeps_no_other_from_it(
    app: Liteq, time: Time
) -> None:
    app.tasks["plain"].flush_every = -1
    held = Batching(lambda: app.tasks, time, time, 3)

    held.look_again()

    assert sorted(held.sizes) == ["hundreds", "threes"]


def test_who_cannot_let_calls_wait_says_so(
    app: Liteq, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.task_acks_late = False
    held = Batching(lambda: app.tasks, time, time, 3)

    held.look_again()
    held.look_again()

    said = [record.getMessage() for record in caplog.records]
    assert [text.split()[2] for text in said] == ["threes", "hundreds"]


def test_who_may_start_calls_once_says_that_none_wait(
    app: Liteq, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    app.tasks["threes"].max_deliveries = 1

    Batching(lambda: app.tasks, time, time, 3).look_again()

    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("calls of threes are run one by one: with max_deliveries=1")


def test_calls_with_other_time_limits_are_in_other_runs(held: Batching) -> None:
    put(held, "threes", 1, 3)
    put(held, "threes", 2, 4, limits=(None, 5.0))
    put(held, "threes", 5)

    assert list(held.ripe()) == [[1, 3, 5]]
    assert list(held.ripe(all=True)) == [[2, 4]]


def test_as_many_run_as_the_task_takes(held: Batching) -> None:
    put(held, "threes", 1, 2, 3, 4, 5, 6, 7)

    assert list(held.ripe()) == [[1, 2, 3], [4, 5, 6]]
    assert len(held) == 1


def test_fewer_run_when_the_first_has_waited(held: Batching, time: Time) -> None:
    put(held, "threes", 1)
    time.now += 4
    put(held, "threes", 2)

    assert (list(held.ripe()), held.next_at()) == ([], 105.0)
    time.now += 1
    assert list(held.ripe()) == [[1, 2]]
    assert (held.waiting, len(held)) == ({}, 0)


def test_the_first_that_is_due_is_waited_for(held: Batching) -> None:
    put(held, "hundreds", 1)
    put(held, "threes", 2)

    assert held.next_at() == 105.0


def test_all_run_when_nothing_more_will_come(held: Batching) -> None:
    put(held, "threes", 1)
    put(held, "hundreds", 2, 3)

    assert list(held.ripe(all=True)) == [[1], [2, 3]]


def test_who_stops_asking_leaves_the_rest(held: Batching) -> None:
    put(held, "threes", 1, 2, 3, 4, 5, 6)

    assert next(held.ripe()) == [1, 2, 3]
    assert list(held.ripe()) == [[4, 5, 6]]


def test_what_no_child_was_free_for_is_due_at_once_and_first(
    held: Batching, time: Time
) -> None:
    put(held, "threes", 1, 2, 3, 4)
    [taken] = held.ripe()

    held.put_back({number: lease("threes") for number in taken}, NO_LIMITS)

    assert held.next_at() == time.now
    assert list(held.ripe()) == [[1, 2, 3]]
    assert held.next_at() == 105.0


def test_what_is_taken_away_is_in_no_run(held: Batching) -> None:
    put(held, "threes", 1, 2, 3)
    put(held, "hundreds", 4)

    assert [held.drop(2), held.drop(4), held.drop(9)] == [True, True, False]
    assert (list(held.ripe()), len(held)) == ([], 2)
    assert list(held.ripe(all=True)) == [[1, 3]]


def test_large_arguments_do_not_pile_up(
    held: Batching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_MOST_BYTES", 1_000)
    put(held, "hundreds", 1, 2, body=b"x" * 400)
    assert list(held.ripe()) == []

    put(held, "hundreds", 3, body=b"x" * 400)

    assert list(held.ripe()) == [[1, 2]]


def test_what_is_given_to_calls_counts_and_no_run_has_more_than_it_may(
    held: Batching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_MOST_BYTES", 1_000)
    put(held, "hundreds", 1, 2, 3, given=400)
    put(held, "hundreds", 4, given=4_000)

    assert list(held.ripe()) == [[1, 2], [3], [4]]


def test_what_is_left_of_a_full_run_waits_its_own_time(held: Batching, time: Time) -> None:
    put(held, "threes", 1, 2)
    time.now += 4
    put(held, "threes", 3, 4)

    assert list(held.ripe()) == [[1, 2, 3]]
    assert held.next_at() == 109.0


def test_calls_of_a_task_that_is_known_no_more_run_together(held: Batching, app: Liteq) -> None:
    put(held, "threes", 1, 2)
    app.tasks.pop("threes")
    held.look_again()

    assert list(held.ripe()) == [[1, 2]]


def test_a_run_that_no_child_was_free_for_is_not_given_back(held: Batching, app: Liteq) -> None:
    jobs: list[Job] = []
    pool: Any = SimpleNamespace(capacity=lambda: 1, submit=jobs.append)
    dispatcher: Any = SimpleNamespace(heard=False)
    nothing: Any = None
    limits = TimeLimits(lambda: app.tasks, None, None)
    attempts = Attempts(
        time_limits=limits,
        batching=held,
        notices=nothing,
        dispatcher=dispatcher,
        signal_of=nothing,
        find_failed=lambda inputs: {},
        max_deliveries=3,
        ahead=lambda: 0.0,
    )
    attempts.hand_out(pool, [lease("threes") for _ in range(3)])
    attempts.hand_out_batches(pool)
    [job] = jobs

    others = attempts.take([Returned(job.key)])
    attempts.hand_out_batches(pool)

    assert others == [Returned(job.key)]
    assert jobs == [job, job]
    assert (attempts.settlements, attempts.jobs(), len(attempts.leases)) == ([], 1, 3)
