"""Letters to workers and mailboxes, the stream of events, and who is there: on every store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from world import FakeClock, Store, enlist, make

from liteq.brokers.base import EVENTS_KEPT, EVENTS_KEPT_FOR, LETTERS_KEPT, MAIL, Broker, Letter


def step(broker: Broker, worker: int) -> tuple[bool, bool]:
    """Return whether a step says that there is mail, and that somebody listens."""
    made = broker.step(worker, queues=["default"])
    return made.mail, made.heard


# Letters


def test_a_letter_is_collected_once_and_in_order(broker: Broker) -> None:
    worker = enlist(broker)

    assert (
        broker.post([Letter(worker, b"one", 60), Letter(worker, b"two\n\0", 60)]) == [True] * 2
    )

    assert step(broker, worker) == (True, False)
    assert broker.collect(worker) == [b"one", b"two\n\0"]
    assert broker.collect(worker) == []
    assert step(broker, worker) == (False, False)


def test_a_letter_wakes_its_worker_and_no_other(broker: Broker) -> None:
    one, other = enlist(broker, name="one"), enlist(broker, name="other")
    hers, his = broker.mailbox(one), broker.mailbox(other)
    hers.receive(), his.receive()

    broker.post([Letter(one, b"you", 60)])

    assert MAIL in hers.wait(5)
    assert MAIL not in his.receive()
    hers.close(), his.close()


def test_a_reply_wakes_the_mailbox_that_it_is_for(broker: Broker) -> None:
    mailbox = broker.mailbox()

    assert broker.post([Letter(mailbox.name, b"pong", 60)]) == [True]

    assert mailbox.wait(5)
    assert broker.collect(mailbox.name) == [b"pong"]
    mailbox.close()


def test_two_brokers_of_a_process_are_each_woken_for_their_own(store: Store) -> None:
    if not store.shared:
        pytest.skip("a store in memory has one broker")
    one, other = store.open(), store.open()
    hers, his = one.mailbox(), other.mailbox()

    assert other.post([Letter(hers.name, b"pong", 60)]) == [True]

    assert hers.wait(5)
    assert his.receive() == set()
    assert (other.collect(his.name), one.collect(hers.name)) == ([], [b"pong"])
    hers.close(), his.close(), one.close(), other.close()


def test_a_letter_that_is_too_old_is_dropped(broker: Broker, clock: FakeClock) -> None:
    worker = enlist(broker)
    broker.post([Letter(worker, b"soon", 10), Letter(worker, b"later", 60)])

    clock.advance(11)

    assert broker.collect(worker) == [b"later"]


def test_nothing_is_left_for_a_worker_that_is_gone(broker: Broker) -> None:
    worker = enlist(broker)
    broker.unregister(worker)

    assert broker.post([Letter(worker, b"hello", 60), Letter(worker + 7, b"who", 60)]) == [
        False,
        False,
    ]


def test_only_so_many_letters_wait_for_one_receiver(broker: Broker) -> None:
    worker = enlist(broker)

    left = broker.post([Letter(worker, b"%d" % n, 60) for n in range(LETTERS_KEPT + 5)])

    assert left == [True] * LETTERS_KEPT + [False] * 5
    assert len(broker.collect(worker)) == LETTERS_KEPT
    assert broker.post([Letter(worker, b"again", 60)]) == [True]


def test_upkeep_drops_old_letters_listeners_and_events(store: Store, clock: FakeClock) -> None:
    if store.kind == "redis":
        pytest.skip("the server drops them by itself")
    broker = store.open()
    worker, mailbox = enlist(broker), broker.mailbox()
    broker.post([Letter(worker, b"soon", 10)])
    broker.listen(mailbox, 30)
    broker.emit([b"event"])

    clock.advance(EVENTS_KEPT_FOR + 1)
    while broker.maintain():
        pass

    assert broker.post([Letter(worker, b"x", 1)]) == [True]
    for table in ("letter", "listener", "event"):
        rows = broker._database.read(  # type: ignore[attr-defined]
            lambda db, table=table: db.execute(f"SELECT count(*) FROM {table}").get
        )
        assert rows == (1 if table == "letter" else 0)
    mailbox.close()
    broker.close()


# Events


def test_nothing_is_kept_when_nobody_listens(broker: Broker) -> None:
    mailbox = broker.mailbox()

    assert broker.emit([b"unheard"]) is False
    assert broker.events(0).bodies == ()

    last = broker.listen(mailbox, 60)
    assert broker.emit([b"heard"]) is True
    assert broker.events(last) == (last + 1, 0, (b"heard",))
    mailbox.close()


def test_events_are_read_in_order_from_where_the_reader_was(broker: Broker) -> None:
    mailbox = broker.mailbox()
    last = broker.listen(mailbox, 60)
    broker.emit([b"a", b"b", b"c"])

    first = broker.events(last, limit=2)
    second = broker.events(first.last, limit=2)

    assert (first.bodies, second.bodies) == ((b"a", b"b"), (b"c",))
    assert broker.events(second.last) == (second.last, 0, ())
    assert mailbox.wait(5)
    mailbox.close()


def test_a_listener_is_told_with_a_step_until_its_time_is_over(
    broker: Broker, clock: FakeClock
) -> None:
    worker, mailbox = enlist(broker), broker.mailbox()
    hers = broker.mailbox(worker)
    hers.receive()

    broker.listen(mailbox, 30)

    assert MAIL in hers.wait(5)
    assert step(broker, worker) == (False, True)
    late = enlist(broker, name="late")
    assert step(broker, late) == (False, True)
    clock.advance(31)
    assert step(broker, worker) == (False, False)
    assert broker.emit([b"too late"]) is False
    mailbox.close(), hers.close()


def test_a_listener_that_leaves_is_not_told_of(broker: Broker) -> None:
    worker, one, other = enlist(broker), broker.mailbox(), broker.mailbox()
    broker.listen(one, 30)
    broker.listen(other, 60)

    broker.listen(other, 0)
    assert step(broker, worker) == (False, True)
    broker.listen(one, 0)
    assert step(broker, worker) == (False, False)
    one.close(), other.close()


def test_a_slow_listener_learns_how_many_events_it_has_missed(broker: Broker) -> None:
    mailbox = broker.mailbox()
    last = broker.listen(mailbox, 60)

    for start in range(0, EVENTS_KEPT + 2000, 2000):
        broker.emit([b"%d" % n for n in range(start, start + 2000)])
    found = broker.events(last, limit=3)

    assert found.missed == 2000
    assert found.bodies == tuple(b"%d" % n for n in range(found.missed, found.missed + 3))
    assert len(broker.events(last, limit=EVENTS_KEPT * 2).bodies) == EVENTS_KEPT
    mailbox.close()


def test_who_is_ahead_of_a_stream_that_began_anew_reads_all_that_is_kept(
    broker: Broker,
) -> None:
    """The store was lost, and is there again empty or as it was some time ago."""
    mailbox = broker.mailbox()
    last = broker.listen(mailbox, 60)
    ahead = last + 500

    assert broker.events(ahead) == (last, 1, ())
    broker.emit([b"a", b"b", b"c"])
    first = broker.events(ahead, limit=2)

    assert first == (last + 2, 1, (b"a", b"b"))
    assert broker.events(first.last) == (last + 3, 0, (b"c",))
    mailbox.close()


# Who is there


def test_the_roster_says_who_is_stuck_and_what_each_one_holds(
    broker: Broker, clock: FakeClock
) -> None:
    well, ill = enlist(broker, name="well"), enlist(broker, name="ill")
    broker.enqueue([make(), make()])
    broker.claim(ill, ["default"], 2)

    clock.advance(broker.stuck_after + 1)
    broker.beat(well)

    assert [(info.name, info.state, info.leases) for info in broker.roster()] == [
        ("well", "alive", 0),
        ("ill", "stuck", 2),
    ]


def test_a_worker_given_up_whose_process_lives_is_stuck(
    broker: Broker, clock: FakeClock
) -> None:
    well, _ = enlist(broker, name="well"), enlist(broker, name="ill")
    clock.advance(broker.lease_timeout / 2)
    broker.beat(well)
    clock.advance(broker.lease_timeout / 2 + 1)
    broker.beat(well)

    broker.reclaim(well)

    assert [(info.name, info.state) for info in broker.roster()] == [
        ("well", "alive"),
        ("ill", "stuck"),
    ]
    assert [info.name for info in broker.workers()] == ["well"]


def test_who_left_is_not_in_the_roster(broker: Broker) -> None:
    broker.unregister(enlist(broker))

    assert broker.roster() == []


DIE = """
import sys, os
sys.path[:0] = [{tests!r}]
from world import Store, FakeClock
from pathlib import Path
broker = Store({kind!r}, Path({folder!r}), FakeClock()).open()
broker.register("mortal", ["default"], 1, {{}})
print("here", flush=True)
sys.stdin.read()
"""


def test_a_worker_whose_process_died_is_dead_until_its_name_is_taken(
    store: Store, clock: FakeClock
) -> None:
    if not store.shared:
        pytest.skip("a store in memory dies with its workers")
    broker = store.open()
    tests = str(Path(__file__).parent.parent)
    program = DIE.format(tests=tests, kind=store.kind, folder=str(store.folder))
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert [info.state for info in broker.roster()] == ["alive"]
    process.kill()
    process.wait()
    process.communicate()
    own = enlist(broker, name="other")

    for _ in range(2):  # before and after its leases were taken back
        assert [(i.name, i.state) for i in broker.roster() if i.id != own] == [
            ("mortal", "dead")
        ]
        broker.reclaim(own)
    clock.advance(3601)
    assert all(info.name != "mortal" for info in broker.roster())
    assert any(info.name == "mortal" for info in broker.roster(dead_for=7200))
    enlist(broker, name="mortal")
    assert [i.state for i in broker.roster(dead_for=7200) if i.name == "mortal"] == ["alive"]
    broker.close()


def test_a_heartbeat_may_change_queues_and_concurrency(broker: Broker) -> None:
    worker = enlist(broker, "one", concurrency=2)

    broker.beat(worker, {"load": 1}, queues=["one", "two"], concurrency=5)
    broker.beat(worker)

    (info,) = broker.workers()
    assert (info.queues, info.concurrency, info.details) == (("one", "two"), 5, {"load": 1})


def test_what_is_claimable_is_counted_up_to_a_limit(broker: Broker, clock: FakeClock) -> None:
    broker.enqueue([make(), make(), make(queue="other"), make(run_at=clock.now() + 60)])

    assert broker.claimable(["default"], 10) == 2
    assert broker.claimable(["default", "other"], 10) == 3
    assert broker.claimable(["default", "other"], 2) == 2
    clock.advance(61)
    assert broker.claimable(["default"], 10) == 3
    assert broker.claimable(["none"], 10) == 0
    broker.pause("default")
    assert broker.claimable(["default", "other"], 10) == 1
