"""A worker that stands by is leased the next message in the step that stores it.

`Broker.step(idle=True)` and `Mailbox.leases()`. A lease that was lost on the way must come
again, and no message may be leased so that something else would have been claimed before.
"""

from __future__ import annotations

import os
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import START, FakeClock, Store, brought_to, enlist, make, wait_until

from liteq.brokers import standby, wakeup
from liteq.brokers.base import Broker, Lease, Mailbox, State, Step
from liteq.brokers.sqlite import SqliteBroker
from liteq.limits import Limit, write
from liteq.message import PACKED_FIELDS, Edge, Message
from liteq.outcome import Released, Retried, Succeeded


class Idle(NamedTuple):
    """A worker with nothing to do, its mailbox, its queues, and the token of its leases."""

    id: int
    mailbox: Mailbox
    queues: tuple[str, ...]
    token: int

    def step(self, broker: Broker, **more: Any) -> Step:
        return broker.step(self.id, queues=self.queues, limit=1, **more)

    def brought(self) -> Lease:
        return brought_to(self.mailbox)


@pytest.fixture
def stand_by(broker: Broker, request: pytest.FixtureRequest) -> Callable[..., Idle]:
    def made(*queues: str, name: str = "w", tasks: Any = None) -> Idle:
        worker = enlist(broker, *queues, name=name)
        mailbox = broker.mailbox(worker)
        request.addfinalizer(mailbox.close)
        queues = queues or ("default",)
        step = broker.step(worker, queues=queues, limit=1, tasks=tasks, idle=True)
        assert step.standby > 0
        return Idle(worker, mailbox, queues, step.standby)

    return made


def state_of(broker: Broker, message: Message) -> State:
    return broker.get([message.id])[message.id].state


def put(broker: Broker, *messages: Message) -> Message:
    """Enqueue messages and return the first."""
    broker.enqueue(messages)
    return messages[0]


# What comes


def test_what_is_enqueued_next_is_leased_as_by_a_claim(
    broker: Broker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by()
    message = put(broker, make(body='[["é"], {}]'.encode(), headers={"a": [1, "é"]}, retries=2))

    lease = worker.brought()

    assert (lease.message, lease.delivery, lease.inputs) == (message, 1, ())
    assert lease.token == worker.token
    record = broker.get([message.id])[message.id]
    assert (record.state, record.started_at, record.deliveries) == ("running", START, 1)
    assert broker.claim(enlist(broker, name="other"), ["default"]) == ()
    assert broker.settle(worker.id, lease, Succeeded(b"1"))
    assert not broker.settle(worker.id, lease, Succeeded(b"2"))
    assert broker.get([message.id])[message.id].result == b"1"


def test_who_has_settled_stands_by_again(broker: Broker, stand_by: Callable[..., Idle]) -> None:
    worker = stand_by()
    for number in range(3):
        message = put(broker, make())
        lease = worker.brought()
        assert (lease.id, lease.token) == (message.id, worker.token)
        end = (lease, Succeeded(b"%d" % number))
        assert worker.step(broker, settlements=[end]).accepted == (True,)


def test_who_holds_a_lease_does_not_stand_by(
    broker: Broker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by()
    put(broker, make())
    lease = worker.brought()
    second = put(broker, make())
    assert state_of(broker, second) == "queued"

    (next_one,) = worker.step(broker, settlements=[(lease, Succeeded(b"1"))]).leases

    assert next_one.id == second.id
    third = put(broker, make())
    assert state_of(broker, third) == "queued"


@pytest.mark.parametrize("store", ["sqlite", "memory"], indirect=True)
def test_who_has_found_nobody_does_not_look_each_time(
    broker: Broker, stand_by: Callable[..., Idle]
) -> None:
    assert isinstance(broker, SqliteBroker)  # on Redis a look reads no page anew
    worker = stand_by()
    put(broker, make())
    lease = worker.brought()
    broker.busy_for = 60.0
    put(broker, make())
    (second,) = worker.step(broker, settlements=[(lease, Succeeded(b"1"))]).leases
    worker.step(broker, settlements=[(second, Succeeded(b"1"))])
    assert state_of(broker, put(broker, make())) == "queued"
    assert "" in worker.mailbox.wait(5)  # to claim it
    broker.purge(["default"])

    broker._all_busy_until = 0.0

    assert state_of(broker, put(broker, make())) == "running"


def test_each_that_stands_by_gets_one(broker: Broker, stand_by: Callable[..., Idle]) -> None:
    workers = [stand_by(name=name) for name in ("one", "two")]
    sent = {put(broker, make()).id for _ in workers}
    left = put(broker, make())

    assert {worker.brought().id for worker in workers} == sent
    assert state_of(broker, left) == "queued"


def test_what_failed_its_first_attempt_is_claimed_by_steps(
    broker: Broker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by()
    put(broker, make())
    lease = worker.brought()

    (again,) = worker.step(broker, settlements=[(lease, Retried(START, b"{}"))]).leases

    assert (again.id, again.delivery) == (lease.id, lease.delivery)
    assert again.token != lease.token


def test_the_same_call_again_is_left_as_it_is(
    broker: Broker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by()
    message = put(broker, make())
    put(broker, message)
    worker.brought()
    put(broker, message)

    assert worker.mailbox.wait(0) in (set(), {""})
    assert worker.mailbox.leases() == ()


def test_a_revoke_finds_it_running(broker: Broker, stand_by: Callable[..., Idle]) -> None:
    worker = stand_by()
    message = put(broker, make())

    assert broker.revoke([message.id]) == {message.id: "running"}
    assert broker.settle(worker.id, worker.brought(), Succeeded(b"1"))


# What is lost on the way


def test_a_lease_that_was_lost_comes_with_the_next_idle_step(
    broker: Broker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by()
    message = put(broker, make())

    step = worker.step(broker, idle=True)

    (lease,) = step.leases
    assert (lease.id, lease.delivery) == (message.id, 1)
    assert step.standby not in (0, worker.token)
    late = worker.brought()  # it was on the way
    assert not broker.settle(worker.id, late, Succeeded(b"late"))
    assert worker.step(broker, settlements=[(lease, Succeeded(b"1"))]).accepted == (True,)
    put(broker, make())
    assert worker.brought().token == step.standby


def test_a_lease_that_was_lost_goes_to_others_when_its_worker_is_busy(
    broker: Broker, stand_by: Callable[..., Idle]
) -> None:
    """The worker has claimed something else by then: its place in line is the old one."""
    worker = stand_by()
    lost = put(broker, make())
    urgent = put(broker, make(priority=9))

    (lease,) = worker.step(broker, idle=True).leases

    assert lease.id == urgent.id
    (other,) = broker.claim(enlist(broker, name="other"), ["default"])
    assert (other.id, other.delivery) == (lost.id, 1)


def test_2_what_was_leased_to_one_that_died_is_delivered_again(
    broker: Broker, clock: FakeClock, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by()
    message = put(broker, make())
    clock.advance(broker.lease_timeout + 1)
    other = enlist(broker, name="other")

    assert broker.reclaim(other) == 1

    (lease,) = broker.claim(other, ["default"])
    assert (lease.id, lease.delivery) == (message.id, 2)
    assert not broker.settle(worker.id, worker.brought(), Succeeded(b"late"))


def test_who_cannot_be_told_is_passed_over(
    broker: Broker, stand_by: Callable[..., Idle]
) -> None:
    deaf, other = stand_by(name="deaf"), enlist(broker, name="other")
    deaf.mailbox.close()
    mailbox = broker.mailbox(other)
    broker.step(other, queues=["default"], limit=1)

    message = put(broker, make())

    assert wait_until(lambda: mailbox.wait(5)) == {""}
    (lease,) = broker.claim(other, ["default"])
    assert (lease.id, lease.delivery) == (message.id, 1)
    mailbox.close()


@pytest.mark.parametrize("store", ["sqlite", "memory"], indirect=True)
def test_8_what_is_revoked_before_it_is_taken_back_is_run_by_nobody(
    broker: Broker, stand_by: Callable[..., Idle], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = stand_by()
    message = make()

    def hand(*_: object) -> bool:
        assert broker.revoke([message.id]) == {message.id: "running"}
        return False

    monkeypatch.setattr(broker, "_hand", hand)  # on Redis it is leased once it was told

    put(broker, message)

    assert state_of(broker, message) == "revoked"
    assert not broker.claim(worker.id, ["default"])


def test_who_leaves_gives_back_what_was_on_the_way(
    broker: Broker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by()
    message = put(broker, make())

    broker.unregister(worker.id)

    (lease,) = broker.claim(enlist(broker, name="other"), ["default"])
    assert (lease.id, lease.delivery) == (message.id, 1)


# What goes into the queue


def paused(broker: Broker, _clock: FakeClock, _worker: Idle) -> Message:
    broker.pause("default")
    return make()


def declared(broker: Broker, _clock: FakeClock, _worker: Idle) -> Message:
    broker.declare_limits({"shop.charge": [Limit("one", most=1)]})
    return make()


def overridden(broker: Broker, _clock: FakeClock, _worker: Idle) -> Message:
    broker.override_limit("one", Limit("one", most=1), task="shop.charge")
    return make()


def limited(broker: Broker, _clock: FakeClock, worker: Idle) -> Message:
    broker.override_limit("one", Limit("one", most=1))
    worker.step(broker, idle=True)
    return make(limits=write([("one", "key")]))


def unique(_broker: Broker, _clock: FakeClock, _worker: Idle) -> Message:
    return make(unique_key="k")


def scheduled(_broker: Broker, clock: FakeClock, _worker: Idle) -> Message:
    return make(run_at=clock.now() + 1)


def expiring(_broker: Broker, clock: FakeClock, _worker: Idle) -> Message:
    return make(expires_at=clock.now() + 1)


def early(_broker: Broker, _clock: FakeClock, _worker: Idle) -> Message:
    return make(acks_late=False)


def large(_broker: Broker, _clock: FakeClock, _worker: Idle) -> Message:
    return make(body=b"[[" + b"1" * 100_000 + b"], {}]")


def elsewhere(_broker: Broker, _clock: FakeClock, _worker: Idle) -> Message:
    return make(queue="elsewhere")


def behind_another(broker: Broker, _clock: FakeClock, _worker: Idle) -> Message:
    put(broker, make(), make())  # of several, none is leased so
    return make()


def behind_one_of_another_queue(broker: Broker, _clock: FakeClock, _worker: Idle) -> Message:
    put(broker, make(queue="side"), make(queue="side"))
    return make()


def behind_what_is_due(broker: Broker, clock: FakeClock, _worker: Idle) -> Message:
    put(broker, make(queue="side", run_at=clock.now() + 1))
    clock.advance(1)
    return make()


def for_one_that_left(broker: Broker, _clock: FakeClock, worker: Idle) -> Message:
    broker.unregister(worker.id)
    return make()


def for_one_that_was_buried(broker: Broker, clock: FakeClock, _worker: Idle) -> Message:
    clock.advance(broker.lease_timeout + 1)
    broker.reclaim()
    return make()


def for_one_that_is_stuck(broker: Broker, clock: FakeClock, _worker: Idle) -> Message:
    clock.advance(broker.stuck_after + 1)
    return make()


def for_one_that_consumes_others(broker: Broker, _clock: FakeClock, worker: Idle) -> Message:
    assert broker.beat(worker.id, queues=["side"])
    return make()


QUEUED: dict[Callable[[Broker, FakeClock, Idle], Message], State] = {
    paused: "queued",
    declared: "queued",
    overridden: "queued",
    limited: "limited",
    unique: "queued",
    scheduled: "scheduled",
    expiring: "queued",
    early: "queued",
    large: "queued",
    elsewhere: "queued",
    behind_another: "queued",
    behind_one_of_another_queue: "queued",
    behind_what_is_due: "queued",
    for_one_that_left: "queued",
    for_one_that_was_buried: "queued",
    for_one_that_is_stuck: "queued",
    for_one_that_consumes_others: "queued",
}


@pytest.mark.parametrize("prepare", QUEUED, ids=lambda case: case.__name__)
def test_what_has_to_be_looked_at_waits_in_its_queue(
    broker: Broker,
    clock: FakeClock,
    stand_by: Callable[..., Idle],
    prepare: Callable[[Broker, FakeClock, Idle], Message],
) -> None:
    message = put(broker, prepare(broker, clock, stand_by("default", "side")))

    assert state_of(broker, message) == QUEUED[prepare]


WITHOUT = {  # in SQLite: a trigger, or a condition, and what would be true instead
    paused: ("standby_paused", ""),
    declared: ("standby_limited", ""),
    overridden: ("standby_limited", ""),
    behind_another: ("state = 1", "state = 1 AND false"),
    behind_one_of_another_queue: ("standby.worker AND state = 1)", "0 AND state = 1)"),
    behind_what_is_due: ("AND run_at <= ?18", "AND run_at < 0"),
    for_one_that_left: ("standby_stopped", ""),
    for_one_that_is_stuck: ("AND until > ?19", "AND ?19"),
    for_one_that_consumes_others: ("standby_elsewhere", ""),
}


@pytest.mark.parametrize("prepare", WITHOUT, ids=lambda case: case.__name__)
def test_nothing_else_would_keep_it_from_a_worker(
    prepare: Callable[[Broker, FakeClock, Idle], Message],
    clock: FakeClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = Store("memory", tmp_path, clock).open()
    assert isinstance(opened, SqliteBroker)
    guard, always = WITHOUT[prepare]
    if always:
        assert guard in standby.ENQUEUE_FIRST, "mend this test"
        less = standby.ENQUEUE_FIRST.replace(guard, always)
        monkeypatch.setattr(standby, "ENQUEUE_FIRST", less)
    else:
        opened._database.write(lambda db: db.execute(f"DROP TRIGGER {guard}"), durable=False)
    worker = enlist(opened, "default", "side")
    mailbox = opened.mailbox(worker)
    queues = ("default", "side")
    token = opened.step(worker, queues=queues, limit=1, idle=True).standby

    message = put(opened, prepare(opened, clock, Idle(worker, mailbox, queues, token)))

    assert state_of(opened, message) == "running"
    mailbox.close()
    opened.close()


def test_7_what_its_only_queue_holds_goes_first(
    broker: Broker, clock: FakeClock, stand_by: Callable[..., Idle]
) -> None:
    stand_by("default")
    due = put(broker, make(run_at=clock.now() + 1))
    clock.advance(1)
    behind_it = put(broker, make())
    assert [state_of(broker, one) for one in (due, behind_it)] == ["scheduled", "queued"]

    broker.purge()
    put(broker, make(), make())

    assert state_of(broker, put(broker, make())) == "queued"


def test_what_waits_for_another_waits(broker: Broker, stand_by: Callable[..., Idle]) -> None:
    stand_by()
    first, then = make(), make()

    broker.enqueue([first, then], [Edge(first.id, then.id, "success")])

    assert [state_of(broker, one) for one in (first, then)] == ["queued", "waiting"]


def test_5_what_the_worker_does_not_know_is_parked_after_it_was_given_back(
    broker: Broker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by(tasks={"shop.charge"})
    message = put(broker, make("shop.new"))
    if state_of(broker, message) == "running":  # or the store has looked what it knows
        broker.settle(worker.id, worker.brought(), Released())

    step = worker.step(broker, tasks={"shop.charge"}, idle=True)

    assert [(lease.id, why) for lease, why in step.aside] == [(message.id, "parked")]
    (lease,) = broker.claim(enlist(broker, name="other"), ["default"], tasks={"shop.new"})
    assert (lease.id, lease.delivery) == (message.id, 1)


@pytest.mark.parametrize("prepare", [paused, declared, for_one_that_consumes_others])
def test_who_may_not_stand_by_does_not(
    broker: Broker,
    clock: FakeClock,
    stand_by: Callable[..., Idle],
    prepare: Callable[[Broker, FakeClock, Idle], Message],
) -> None:
    worker = stand_by()
    prepare(broker, clock, worker)
    if prepare is for_one_that_consumes_others:
        worker = worker._replace(queues=("side",))

    step = worker.step(broker, idle=True)

    assert (step.standby == 0) == (prepare is not for_one_that_consumes_others)
    message = put(broker, make(queue=worker.queues[0]))
    wanted: State = "queued" if step.standby == 0 else "running"
    assert state_of(broker, message) == wanted


def test_who_was_kept_from_it_stands_by_again(
    broker: Broker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by()
    broker.pause("default")
    assert worker.step(broker, idle=True).standby == 0
    broker.resume("default")

    token = worker.step(broker, idle=True).standby

    assert token > 0
    put(broker, make())
    assert worker.brought().token == token


# What another program sends


WRITTEN = standby.written(1, 2, make(body=b"[[1],{}]", shadow="x").pack())


@pytest.mark.parametrize(
    "data",
    [
        *(b"\0", b"\0nonsense", b"\0" * 8_192, b"\0(\xff\xff\xff\x7f", b"\0[\xff\xff\xff\x7f"),
        *(WRITTEN[:-1], WRITTEN[:40], WRITTEN.replace(b"null", b"[[]]", 1)),
        *(WRITTEN[:17] + b"\xff" * 12 + WRITTEN[29:], WRITTEN[:60] + b"[" * 8_000),
    ],
)
def test_a_wake_up_that_is_no_lease_is_none_and_costs_no_more_than_its_length(
    data: bytes,
) -> None:
    tracemalloc.start()
    try:
        assert standby.read(data) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@given(at=st.integers(0, len(WRITTEN)), some=st.binary(max_size=9), lost=st.integers(0, 9))
def test_what_is_read_of_a_damaged_lease_has_the_fields_of_one(
    at: int, some: bytes, lost: int
) -> None:
    lease = standby.read(WRITTEN[:at] + some + WRITTEN[at + lost :])

    if lease is not None:
        id, task, body, queue, priority, *_ = lease.packed
        kinds = [type(one) for one in (id, task, body, queue, priority)]
        assert kinds == [str, str, bytes, str, int]
        assert len(lease.packed) == len(PACKED_FIELDS)
        assert min(lease.key, lease.token) >= -(2**63)
        assert max(lease.key, lease.token) < 2**63


def test_a_mailbox_of_a_strange_name_is_no_path(tmp_path: Path) -> None:
    post = wakeup.Post(tmp_path / "wake")
    theirs = tmp_path / "theirs"
    theirs.touch()

    for name in ("../theirs", str(theirs), "\ud800"):
        post.wake(name, ["id"])

    assert theirs.exists()
    post.close()


def test_bytes_that_are_no_text_wake_who_is_sent_them(tmp_path: Path) -> None:
    post = wakeup.Post(tmp_path / "wake")
    mailbox = post.open(0.5, worker=1)

    post.hand(1, b"\xff\xfe\xfd")

    assert mailbox.wait(5)
    assert post.hand(1, b"good")
    assert "good" in mailbox.wait(5)
    mailbox.close()
    post.close()


@pytest.fixture
def without_proc(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Be on a system that has no /proc, and return the folder of its links."""
    is_dir = os.path.isdir
    with TemporaryDirectory(prefix="t") as short, monkeypatch.context() as patch:
        patch.setattr(wakeup, "_LINKS", short)
        patch.setattr(os.path, "isdir", lambda path: path != "/proc/self/fd" and is_dir(path))
        yield Path(short)


def test_a_folder_too_long_for_an_address_is_reached_by_a_link(
    tmp_path: Path, without_proc: Path
) -> None:
    folder = tmp_path / ("long" * 20) / "wake"
    folder.mkdir(parents=True)
    post, other = wakeup.Post(folder), wakeup.Post(folder)
    mailbox = post.open(0.5, worker=1)

    assert other.hand(1, b"reached")
    assert mailbox.wait(5) == {"reached"}
    assert [link.readlink() for link in without_proc.iterdir()] == [folder]
    mailbox.close()
    post.close()
    other.close()


def test_a_link_that_leads_elsewhere_is_not_used(tmp_path: Path, without_proc: Path) -> None:
    folder = tmp_path / ("long" * 20) / "wake"
    folder.mkdir(parents=True)
    first = wakeup.Post(folder)
    first.open(0.5, worker=1).close()
    first.close()
    [link] = without_proc.iterdir()
    link.unlink()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    link.symlink_to(theirs)

    post = wakeup.Post(folder)
    mailbox = post.open(0.5, worker=1)

    assert mailbox.fileno() == -1  # it polls
    assert list(theirs.iterdir()) == []
    mailbox.close()
    post.close()


def test_a_socket_with_little_room_is_given_more() -> None:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_608)
    little = end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    wakeup._widen(end, socket.SO_SNDBUF, little - 1)
    assert end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == little

    wakeup._widen(end, socket.SO_SNDBUF, 32_768)
    assert end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 32_768
    end.close()


def test_a_lease_in_a_wake_up_is_what_it_was() -> None:
    packed = make(body=bytes(range(256)), headers={"é": 1}).pack()
    data = standby.written(7, 2**62, packed)

    assert standby.read(data) == Lease(7, 2**62, 1, packed)
