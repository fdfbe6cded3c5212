"""The links by which who waits for one message is found, when it has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from world import FakeClock, Store, enlist, make

from liteq.brokers.base import Broker, Mailbox
from liteq.brokers.sqlite import SqliteBroker
from liteq.brokers.waitlinks import WaitLinks
from liteq.outcome import Succeeded


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Store:
    return Store("sqlite", tmp_path, clock)


@pytest.fixture
def mailbox(broker: Broker) -> Iterator[Mailbox]:
    opened = broker.mailbox()
    yield opened
    opened.close()


def links(store: Store) -> list[str]:
    folder = store.folder / "store" / "waits"
    return sorted(os.listdir(folder)) if folder.exists() else []


def finish(broker: Broker, number: int = 1) -> None:
    """Run so many messages."""
    worker = enlist(broker)
    leases = broker.claim(worker, ["default"], number)
    assert len(leases) == number
    broker.step(worker, settlements=[(lease, Succeeded(b"1")) for lease in leases])


def heard(mailbox: Mailbox) -> set[str]:
    return mailbox.receive() - {""}  # a new worker looks who is there


def test_to_wait_for_a_message_writes_nothing_into_the_store(
    store: Store, broker: Broker, mailbox: Mailbox
) -> None:
    message = make()
    broker.enqueue([message])
    other = store.open()
    other.changed()

    assert broker.watch([message.id], mailbox) == {}
    assert broker.watch([message.id], mailbox) == {}  # as it is done after an idle pause

    assert not other.changed()
    assert links(store) == [message.id]
    finish(other)
    assert heard(mailbox) == {message.id}
    assert links(store) == []
    other.close()


def test_all_who_wait_for_a_message_are_told(
    store: Store, broker: Broker, mailbox: Mailbox
) -> None:
    message = make()
    broker.enqueue([message])
    second = broker.mailbox()
    broker.watch([message.id], mailbox)
    broker.watch([message.id], second)

    finish(broker)

    assert heard(mailbox) == heard(second) == {message.id}
    second.close()


def test_no_link_is_left_to_what_has_ended_or_is_not_there(
    store: Store, broker: Broker, mailbox: Mailbox
) -> None:
    message = make()
    broker.enqueue([message])
    finish(broker)

    assert broker.watch([message.id], mailbox).keys() == {message.id}
    assert broker.watch(["no-such-id"], mailbox) == {}

    assert links(store) == []


@pytest.mark.parametrize(
    "id", ["../up", "a/b", ".", "..", "with.dot", "größe", "a" * 300, "null\0", "-"]
)
def test_an_id_that_is_no_name_for_a_file_is_waited_for_all_the_same(
    store: Store, broker: Broker, mailbox: Mailbox, id: str
) -> None:
    broker.enqueue([make(id=id)])
    before = set(store.folder.rglob("*"))

    assert broker.watch([id], mailbox) == {}
    assert set(store.folder.rglob("*")) == before
    finish(broker)

    assert heard(mailbox) == {id}


def test_where_no_links_can_be_made_the_waiter_is_written_down(
    monkeypatch: pytest.MonkeyPatch, store: Store, broker: Broker, mailbox: Mailbox
) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError("this file system has none")

    monkeypatch.setattr(os, "symlink", refuse)
    message = make()
    broker.enqueue([message])

    assert broker.watch([message.id], mailbox) == {}
    finish(broker)

    assert heard(mailbox) == {message.id}


@pytest.mark.parametrize("waiters", [1, 3, 60])
@pytest.mark.parametrize("ends", [2, 5, 20])
def test_of_many_ends_those_are_told_of_that_are_waited_for(
    store: Store, broker: Broker, mailbox: Mailbox, waiters: int, ends: int
) -> None:
    messages = [make() for _ in range(max(ends, waiters))]
    broker.enqueue(messages)
    for message in messages[:waiters]:
        broker.watch([message.id], mailbox)
    mailbox.receive()

    for _ in range(2):  # it counts the links with the first of them
        if len(messages) >= ends:
            finish(broker, ends)
            done, messages = messages[:ends], messages[ends:]
            assert heard(mailbox) == {message.id for message in done[:waiters]}
            waiters = max(0, waiters - ends)

    assert links(store) == sorted(message.id for message in messages[:waiters])


def test_what_listing_a_crowd_would_cost_is_not_spent_at_each_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = WaitLinks(tmp_path / "waits")
    for number in range(100):
        assert kept.leave(f"id-{number}", "r1-1")
    listed: list[str] = []
    monkeypatch.setattr(
        os, "listdir", lambda path, real=os.listdir: listed.append("") or real(path)
    )

    taken = [
        kept.take([f"id-{first + each}" for each in range(5)]) for first in range(0, 50, 5)
    ]

    assert [len(some) for some in taken] == [5] * 10
    assert 1 <= len(listed) <= 2


def test_a_killed_waiters_link_is_removed_when_a_worker_comes(
    store: Store, broker: Broker, mailbox: Mailbox
) -> None:
    mine, dead = make(), make()
    broker.enqueue([mine, dead])
    broker.watch([mine.id], mailbox)
    code = (
        "import os, signal, sys\n"
        "from liteq.brokers.sqlite import SqliteBroker\n"
        "broker = SqliteBroker(sys.argv[1])\n"
        "broker.watch([sys.argv[2]], broker.mailbox())\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, store.folder / "store", dead.id], check=False)
    assert links(store) == sorted([mine.id, dead.id])

    enlist(broker)

    assert links(store) == [mine.id]


def test_a_link_of_a_dead_waiter_keeps_nobody_from_waiting(
    store: Store, broker: Broker, mailbox: Mailbox
) -> None:
    message = make()
    broker.enqueue([message])
    gone = broker.mailbox()
    broker.watch([message.id], gone)
    gone.close()

    broker.watch([message.id], mailbox)
    finish(broker)

    assert heard(mailbox) == {message.id}
    assert links(store) == []


def test_who_ends_a_message_while_its_waiter_looks_is_seen(
    monkeypatch: pytest.MonkeyPatch, store: Store, broker: Broker, mailbox: Mailbox
) -> None:
    """Between the link and the look: the look finds the end, and no link is left."""
    message = make()
    broker.enqueue([message])
    assert isinstance(broker, SqliteBroker)
    look = broker.get

    def late(ids: list[str]) -> object:
        finish(broker)
        return look(ids)

    monkeypatch.setattr(broker, "get", late)

    assert broker.watch([message.id], mailbox).keys() == {message.id}
    assert links(store) == []


def test_what_one_coroutine_sees_another_is_told(
    monkeypatch: pytest.MonkeyPatch, store: Store, broker: Broker, mailbox: Mailbox
) -> None:
    """Those of a loop share a mailbox: the first has left the link, the second looks between
    the commit and the wake-up."""
    message = make()
    broker.enqueue([message])
    assert isinstance(broker, SqliteBroker)
    links = broker._links
    assert links is not None
    take = links.take

    def late(ids: list[str]) -> list[tuple[str, str]]:
        assert broker.watch([message.id], mailbox).keys() == {message.id}
        return take(ids)

    monkeypatch.setattr(links, "take", late)
    assert broker.watch([message.id], mailbox) == {}
    finish(broker)

    assert heard(mailbox) == {message.id}


def test_links_are_the_owners_alone(store: Store, broker: Broker, mailbox: Mailbox) -> None:
    message = make()
    broker.enqueue([message])

    broker.watch([message.id], mailbox)

    assert (store.folder / "store" / "waits").stat().st_mode & 0o077 == 0
