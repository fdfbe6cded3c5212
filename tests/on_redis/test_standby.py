"""What only Redis does for a worker that stands by: the bell that brings the lease.

What holds on every store is in `../brokers/test_standby.py`.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from redis_server import RedisServer
from world import FakeClock, Store, brought_to, enlist, make, wait_until

from liteq.brokers.base import HELLO, ORDERS, Lease, Mailbox, Step
from liteq.brokers.redis import RedisBroker
from liteq.brokers.redis_mailbox import RedisMailbox
from liteq.brokers.redis_scripts import script
from liteq.brokers.redis_wire import command
from liteq.exceptions import BrokerError, BrokerUnavailable, QueueFull
from liteq.limits import Limit, write
from liteq.message import Message
from liteq.outcome import Released, Succeeded
from on_redis.proxy import Proxy

pytestmark = pytest.mark.redis

CHANNEL = "p:work:1"
G = b"0,0,,,1,0,,,7,defaultshop.charge"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store("redis", tmp_path, FakeClock())


@pytest.fixture
def broker(store: Store) -> Iterator[RedisBroker]:
    opened = store.open()
    assert isinstance(opened, RedisBroker)
    yield opened
    opened.close()


class Idle(NamedTuple):
    """A worker with nothing to do."""

    broker: RedisBroker
    id: int
    mailbox: Mailbox
    queues: tuple[str, ...]
    limit: int

    def step(self, **more: Any) -> Step:
        options: dict[str, Any] = {"queues": self.queues, "limit": self.limit, **more}
        return self.broker.step(self.id, **options)

    def hears(self) -> tuple[set[str], list[str]]:
        """Return the words, and the ids of the leases, that were sent before now."""
        self.broker._link.ask("PUBLISH", f"{self.broker._prefix}work:{self.id}", "end")
        words: set[str] = set()
        leases: list[str] = []
        while "end" not in words:
            words |= self.mailbox.wait(5)
            leases += [lease.id for lease in self.mailbox.leases()]
        return words - {"end", HELLO}, leases

    def hang_up(self) -> None:
        """Be gone without a word; the server has seen it."""
        self.mailbox.close()
        bell = f"{self.broker._prefix}work:{self.id}"
        wait_until(lambda: self.broker._link.ask("PUBSUB", "NUMSUB", bell)[1] == 0)

    def brought(self) -> Lease:
        return brought_to(self.mailbox)


@pytest.fixture
def stand_by(broker: RedisBroker, request: pytest.FixtureRequest) -> Callable[..., Idle]:
    def made(
        *queues: str, limit: int = 1, tasks: Any = None, on: RedisBroker = broker, **more: Any
    ) -> Idle:
        queues = queues or ("default",)
        worker = enlist(on, *queues, **more)
        mailbox = on.mailbox(worker)
        request.addfinalizer(mailbox.close)
        idle = Idle(on, worker, mailbox, queues, limit)
        assert idle.step(idle=True, tasks=tasks).standby
        return idle

    return made


def put(broker: RedisBroker, message: Message | None = None) -> str:
    message = message or make()
    broker.enqueue([message])
    return message.id


def state_of(broker: RedisBroker, id: str) -> str:
    return broker.get([id])[id].state


# The lease that a bell brings


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"body": bytes(range(256))},
        {"body": b""},
        {"body": b"\r\n$5\r\n1 2 3\n"},
        {"id": "1é\n ", "task": "läden.öffne", "queue": "büro"},
        {"headers": {"a": "é"}, "shadow": "ö", "body": b"\xff"},
        {"priority": 9, "retries": 3, "time_limit": 1.5, "soft_time_limit": 1.0},
        {"ignore_result": True, "max_deliveries": 7, "result_expires": 5.0},
    ],
)
def test_a_bell_brings_what_a_claim_would_have_taken(
    broker: RedisBroker, stand_by: Callable[..., Idle], fields: dict[str, Any]
) -> None:
    worker = stand_by(fields.get("queue", "default"))
    message = make(**fields)
    put(broker, message)

    lease = worker.brought()

    assert lease.packed == message.pack()
    assert broker.settle(worker.id, lease, Released())
    (claimed,) = broker.claim(worker.id, worker.queues)
    assert lease == claimed._replace(token=lease.token)
    assert type(lease) is type(claimed)


@pytest.mark.parametrize(("more", "state"), [(0, "running"), (1, "queued")])
def test_what_is_too_large_for_a_bell_goes_into_the_queue(
    broker: RedisBroker, stand_by: Callable[..., Idle], more: int, state: str
) -> None:
    small = make(body=b"", headers={"a": 1})
    put(broker, small)
    found: Any = broker._link.ask("HMGET", f"{broker._prefix}m:{small.id}", "g", "e")
    other = len(small.id) + sum(len(field) for field in found)
    broker.purge(["default"])
    worker = stand_by()

    id = put(broker, make(body=b"1" * (8192 - other + more), headers={"a": 1}))

    assert state_of(broker, id) == state
    assert worker.hears() == ((set(), [id]) if state == "running" else ({""}, []))


class Line:
    """In place of a link: its server sends what the test says."""

    def __init__(self) -> None:
        self._sock, self.server = socket.socketpair()
        self.moves = 0
        self.server.sendall(b"*3\r\n$9\r\nsubscribe\r\n$8\r\np:work:1\r\n:1\r\n")

    def connect(self) -> Line:
        return self

    def disconnect(self) -> None:
        self._sock.close()
        self.server.close()

    def says(self, payload: bytes) -> bytes:
        return command(("message", CHANNEL, payload))


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.disconnect()


@pytest.fixture
def mailbox(line: Line) -> Iterator[RedisMailbox]:
    made = RedisMailbox(line, "w", [CHANNEL], 0.5, takes_leases=True)  # type: ignore[arg-type]
    yield made
    made.close()


def bell(id: bytes = b"m1", given: bytes = G, body: bytes = b"[[1], {}]") -> bytes:
    head = b"7 123 %d %d %d\n" % (len(id), len(given), len(body))
    return head + id + given + body


DAMAGED = [
    b"1",
    b"1 2 3",
    b"1 2 3 4 5",
    b"1 2 3 4 5\nabc",
    b"1 2 0 -3 3\n",
    b"1 2 x 4 5\nabc",
    b"1\xff2 2 3 4 5\nabc",
    bell(given=b""),
    bell(given=b"0,0,,,1,0,,,7,"[:9]),
    bell(given=b"0,0,soon,,1,0,,,7,defaultshop.charge"),
    bell(id=b"\xff"),
    bell() + b"\xff",
    bell()[:-1],
    b"7 123 2 %d -4\nm1%b" % (len(G), G),
    b"\xff",
]


@pytest.mark.parametrize("payload", DAMAGED)
def test_what_another_program_publishes_is_a_look_and_no_more(
    line: Line, mailbox: RedisMailbox, payload: bytes
) -> None:
    line.server.sendall(line.says(payload))
    assert (mailbox.wait(5), mailbox.leases()) == ({""}, ())

    line.server.sendall(line.says(bell()) + line.says(payload))

    assert mailbox.wait(5) == {""}
    assert [lease.id for lease in mailbox.leases()] == ["m1"]


def test_a_lease_comes_in_pieces_and_with_words(line: Line, mailbox: RedisMailbox) -> None:
    data = line.says(b"orders") + line.says(bell()) + line.says(b"")
    words: set[str] = set()
    for at in range(len(data)):
        line.server.sendall(data[at : at + 1])
        words |= mailbox.wait(5)

    (lease,) = mailbox.leases()
    assert (lease.key, lease.token, lease.delivery, lease.packed[2]) == (
        7,
        123,
        1,
        b"[[1], {}]",
    )
    assert words == {ORDERS, ""}
    assert mailbox.leases() == ()


def test_a_lease_alone_in_pieces_is_no_word(line: Line, mailbox: RedisMailbox) -> None:
    data = line.says(bell())
    for piece in (data[:60], data[60:]):
        line.server.sendall(piece)
        assert mailbox.wait(5) == set()

    assert [lease.id for lease in mailbox.leases()] == ["m1"]


def test_an_id_that_looks_like_a_lease_is_none_to_who_waits_for_it(line: Line) -> None:
    waiting = RedisMailbox(line, "m", [CHANNEL], 0.5)  # type: ignore[arg-type]
    line.server.sendall(line.says(bell(id=b"m9", given=G, body=b"x")))

    words = waiting.wait(5)

    assert words == {f"7 123 2 {len(G)} 1", f"m9{G.decode()}x"}
    assert waiting.leases() == ()
    waiting.close()


# Who gets it


def test_who_is_gone_without_a_word_is_passed_over(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    gone = [stand_by(name=f"gone{n}") for n in range(5)]
    for worker in gone:
        worker.hang_up()
    alone = put(broker)
    assert state_of(broker, alone) == "queued"
    broker.purge(["default"])
    for worker in gone:
        assert not worker.step().leases  # idle again
    there = stand_by(name="there")

    id = put(broker)

    assert there.brought().id == id
    assert not any(broker.step(worker.id, idle=True, limit=0).leases for worker in gone)


def test_who_is_rung_and_does_not_stand_by_claims_it(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by(tasks={"shop.charge"})

    id = put(broker, make("shop.new"))

    assert state_of(broker, id) == "queued"  # not leased to who does not know it
    assert worker.hears() == ({""}, [])
    assert worker.step(idle=True, tasks={"shop.charge"}).aside
    known = put(broker)
    assert worker.hears() == ({""}, [])  # what is parked might be for it
    assert [lease.id for lease in worker.step(tasks={"shop.charge"}).leases] == [known]


def test_who_learns_a_task_is_leased_it(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by(tasks={"shop.charge"})
    worker.step(idle=True, tasks={"shop.charge", "shop.new"})

    id = put(broker, make("shop.new"))

    assert worker.hears() == (set(), [id])


def test_who_takes_any_task_and_then_only_some_is_leased_those(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by()
    worker.step(idle=True, tasks={"shop.charge"})

    assert state_of(broker, put(broker, make("shop.new"))) == "queued"


def test_two_that_stand_by_get_one_each_and_are_idle_no_more(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    workers = [stand_by("a", "b", name=name) for name in ("one", "two")]
    sent = [put(broker, make(queue=queue)) for queue in ("a", "b")]
    left = put(broker, make(queue="b"))

    heard = [worker.hears() for worker in workers]

    assert sorted(heard, key=str) == sorted([(set(), [id]) for id in sent], key=str)
    assert state_of(broker, left) == "queued"


def test_who_has_no_room_is_rung_for_none_of_its_queues(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    full = [stand_by("a", "b", "c", name=f"full{n}") for n in range(5)]
    for _ in full:
        put(broker, make(queue="a"))
    for worker in full:
        worker.brought()
    idle = stand_by("b", "d", name="idle")

    id = put(broker, make(queue="b"))

    assert idle.brought().id == id
    assert [worker.hears() for worker in full] == [(set(), [])] * 5


def test_who_has_room_again_is_rung_for_all_of_its_queues(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by("a", "b", "c")
    put(broker, make(queue="a"))
    held: Sequence[Lease] = [worker.brought()]
    for queue in "bc":
        put(broker, make(queue=queue))  # there is nobody to be rung

    for _ in "abc":
        held = worker.step(settlements=[(lease, Succeeded(b"1")) for lease in held]).leases

    for queue in "abc":
        put(broker, make(queue=queue))
        worker.step(settlements=[(worker.brought(), Succeeded(b"1"))])


def test_who_was_taken_out_by_an_older_version_is_back_after_a_heartbeat(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by("a", "b", "c")
    for queue in "bc":  # it does not write that down
        broker._link.ask("SREM", f"{broker._prefix}idle:{queue}", str(worker.id))
    worker.step()
    assert broker.beat(worker.id)
    worker.step()

    id = put(broker, make(queue="b"))

    assert worker.brought().id == id


@pytest.mark.parametrize("queue", ["a", "b"])
def test_who_may_take_more_is_rung_for_the_next(
    broker: RedisBroker, stand_by: Callable[..., Idle], queue: str
) -> None:
    worker = stand_by("a", "b", limit=3)
    first = put(broker, make(queue="a"))
    assert worker.hears() == (set(), [first])

    second = put(broker, make(queue=queue))

    assert worker.hears() == ({""}, [])
    assert [lease.id for lease in worker.step(limit=2).leases] == [second]


def test_what_waits_for_its_limit_is_no_less_first_in_line(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    broker.override_limit("one", Limit("one", most=1))
    limited = [make(limits=write([("one", "key")])) for _ in range(2)]
    broker.enqueue(limited)
    assert broker.claim(enlist(broker, name="other"), ["default"], 2)
    stand_by()

    assert state_of(broker, put(broker)) == "queued"


def test_who_was_given_up_by_an_older_version_does_not_stand_by(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by()
    key = f"{broker._prefix}worker:{worker.id}"
    standby = broker._link.ask("HGET", key, "standby")
    broker.unregister(worker.id)
    broker._link.ask("HSET", key, "standby", standby)
    broker._link.ask("SADD", f"{broker._prefix}idle:default", str(worker.id))

    assert state_of(broker, put(broker)) == "queued"


def test_a_queue_that_the_last_idle_step_did_not_name_brings_nothing(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by("a", "b")
    worker.step(queues=("a",), idle=True)

    left, taken = put(broker, make(queue="b")), put(broker, make(queue="a"))

    assert state_of(broker, left) == "queued"
    assert state_of(broker, taken) == "running"


def test_who_beats_again_stands_by_again(
    broker: RedisBroker, store: Store, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by()
    store.clock.advance(broker.stuck_after)
    late = put(broker)
    assert state_of(broker, late) == "queued"
    assert worker.hears() == ({""}, [])
    broker.purge(["default"])
    assert broker.beat(worker.id)
    worker.step()

    assert worker.hears() == (set(), [])
    assert state_of(broker, put(broker)) == "running"


def test_the_age_of_a_heartbeat_is_by_the_steady_clock(
    direct: RedisBroker, server: RedisServer, stand_by: Callable[..., Idle]
) -> None:
    direct.check()
    server.say("HSET", f"{direct._prefix}meta", "shift", "1000")  # the wall clock was set
    stand_by(on=direct)

    assert state_of(direct, put(direct)) == "running"


def test_a_worker_of_an_older_version_is_rung(broker: RedisBroker) -> None:
    worker = enlist(broker)
    mailbox = broker.mailbox(worker)
    broker.step(worker, queues=["default"], limit=1)

    id = put(broker)

    assert (mailbox.wait(5), mailbox.leases()) == ({""}, ())
    assert [lease.id for lease in broker.claim(worker, ["default"])] == [id]
    mailbox.close()


def test_a_lease_is_not_told_to_who_listens_at_another_server(
    replica: tuple[RedisServer, RedisServer],
) -> None:
    master, follower = replica  # which passes on what the master publishes, as a cluster does
    broker = RedisBroker(master.url)
    worker = enlist(broker)
    assert broker.step(worker, queues=["default"], limit=1, idle=True).standby
    client = redis.Redis(port=follower.port)
    elsewhere = client.pubsub(ignore_subscribe_messages=True)
    elsewhere.subscribe(f"{broker._prefix}work:{worker}")
    assert elsewhere.get_message(timeout=5) is None  # it has

    id = put(broker)

    assert state_of(broker, id) == "queued"
    heard = wait_until(lambda: elsewhere.get_message(timeout=0.1))
    assert heard["data"] == b""
    (lease,) = broker.step(worker, queues=["default"], limit=1, idle=True).leases
    assert (lease.id, lease.delivery) == (id, 1)
    elsewhere.close()
    client.close()
    broker.close()


def test_a_mailbox_goes_where_the_store_has_gone(
    replica: tuple[RedisServer, RedisServer],
    stand_by: Callable[..., Idle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RedisMailbox, "pause", 0.0)
    master, follower = replica
    proxy = Proxy(master.path)
    far = RedisBroker(proxy.url)
    worker = stand_by(on=far)
    mine = f"{far._prefix}worker:{worker.id}"
    wait_until(lambda: follower.say("HEXISTS", mine, "standby") == 1)  # and all before that
    follower.say("REPLICAOF", "NO", "ONE")
    master.say("REPLICAOF", "127.0.0.1", follower.port)  # it is well, and keeps connections
    proxy.lead_to(follower.path)

    worker.step()

    assert far.disown(worker.id, list) == 0
    assert worker.step(idle=True).standby
    id = put(far)
    assert (worker.brought().id, state_of(far, id)) == (id, "running")
    worker.mailbox.close()
    far.close()
    proxy.close()


def test_who_has_left_a_queue_is_not_rung_for_it(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    left = [stand_by("default", "side", name=f"left{n}") for n in range(5)]
    for worker in left:
        assert broker.beat(worker.id, queues=["default"])
    there = stand_by("side", name="there")

    id = put(broker, make(queue="side"))

    assert there.brought().id == id
    assert [worker.hears() for worker in left] == [(set(), [])] * 5


def test_what_a_worker_parks_others_are_rung_for(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    ignorant = stand_by(tasks={"shop.refund"}, name="ignorant")
    others = [stand_by(tasks=known, name=f"other{n}") for n, known in enumerate(({"x"}, None))]
    idle = f"{broker._prefix}idle:default"
    for worker in others:
        broker._link.ask("SREM", idle, str(worker.id))
    id = put(broker)
    for worker in others:
        broker._link.ask("SADD", idle, str(worker.id))

    ((_, why),) = ignorant.step(tasks={"shop.refund"}).aside

    assert why == "parked"
    assert [worker.hears() for worker in others] == [({""}, [])] * 2
    assert [lease.id for lease in others[1].step().leases] == [id]


# What is lost, and what is repeated


def test_after_an_outage_nothing_is_leased_to_who_stands_by(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by()
    told = worker.step(idle=True).standby
    broker._outages[worker.id] = object()  # the server may have forgotten something
    before = put(broker)

    step = worker.step(idle=True)
    after = put(broker)

    assert (step.leases, step.standby) == ((), told)  # what is on its way is good still
    lease = worker.brought()
    assert (lease.id, lease.token) == (before, told)
    assert state_of(broker, after) == "queued"
    assert broker.disown(worker.id, lambda: [lease]) == 0
    assert broker.settle(worker.id, lease, Succeeded(b"1"))
    again = worker.step(idle=True)
    assert [lease.id for lease in again.leases] == [after]
    assert again.standby not in (0, told)


def test_what_is_on_its_way_to_who_disowns_is_asked_for_when_nothing_follows(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by()
    broken = put(broker)
    broker._outages[worker.id] = object()
    later: list[str] = []

    def held() -> list[Lease]:
        later.append(put(broker))
        return [worker.brought()]

    assert broker.disown(worker.id, held) == 0

    assert state_of(broker, broken) == "running"
    assert [state_of(broker, id) for id in later] == ["queued"]


def test_what_was_leased_by_the_token_of_an_unanswered_step_is_given_back(
    proxy: Proxy, direct: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    far = RedisBroker(proxy.url, socket_timeout=0.5)
    worker = stand_by(on=far)
    far._link.ask("HDEL", f"{far._prefix}worker:{worker.id}", "standby")
    proxy.lose_reply_of(script("step").sha.decode())
    far._link.timeout = 0.0  # no time for another try
    with pytest.raises(BrokerUnavailable):
        worker.step(idle=True)
    far._link.timeout = 0.5
    id = put(direct)
    assert state_of(direct, id) == "running"

    step = worker.step(idle=True)

    assert [(lease.id, lease.delivery) for lease in step.leases] == [(id, 1)]
    far.close()


def test_what_was_lost_with_the_line_comes_with_the_next_idle_step(
    direct: RedisBroker, proxy: Proxy, stand_by: Callable[..., Idle]
) -> None:
    far = RedisBroker(proxy.url, socket_timeout=5)
    worker = stand_by(on=far)
    told = worker.step(idle=True).standby
    proxy.hold()
    id = put(direct)
    assert state_of(direct, id) == "running"
    proxy.cut()
    proxy.release()
    assert "" in wait_until(lambda: worker.mailbox.wait(0.2))
    assert worker.mailbox.leases() == ()

    step = worker.step(idle=True)

    assert [(lease.id, lease.delivery) for lease in step.leases] == [(id, 1)]
    assert step.standby not in (0, told)
    assert direct.settle(worker.id, step.leases[0], Succeeded(b"1"))
    far.close()


@pytest.mark.parametrize("first", ["heartbeat", "upkeep"])
def test_what_was_lost_with_both_lines_has_not_been_delivered(
    direct: RedisBroker, proxy: Proxy, stand_by: Callable[..., Idle], first: str
) -> None:
    far = RedisBroker(proxy.url, socket_timeout=5)
    worker = stand_by(on=far)
    told = worker.step(idle=True).standby
    proxy.hold()
    id = put(direct)
    assert state_of(direct, id) == "running"
    proxy.cut()
    proxy.release()

    far.maintain()  # which finds that there was an outage
    steps = [worker.step(idle=True) for _ in range(2)] if first == "upkeep" else []
    assert far.beat(worker.id)
    taken = far.disown(worker.id, lambda: [lease for step in steps for lease in step.leases])
    steps.append(worker.step(idle=not steps))

    (lease,) = [lease for step in steps for lease in step.leases]
    assert (lease.id, lease.delivery, taken) == (id, 1, first == "heartbeat")
    assert told not in [step.standby for step in steps]
    assert direct.attempts(id) == []
    assert direct.settle(worker.id, lease, Succeeded(b"1"))
    far.close()


def test_what_another_step_has_hidden_since_the_outage_is_lost(
    direct: RedisBroker, proxy: Proxy, stand_by: Callable[..., Idle]
) -> None:
    far = RedisBroker(proxy.url, socket_timeout=5)
    worker = stand_by(on=far)
    proxy.hold()
    id = put(direct)
    proxy.cut()
    proxy.release()
    far.maintain()
    worker.step(limit=0)  # the server has its word now, whatever it had forgotten before

    assert far.disown(worker.id, list) == 1

    assert [past.outcome for past in direct.attempts(id)] == ["lost"]
    far.close()


@pytest.mark.parametrize("queued", [False, True])
def test_an_idle_step_that_is_repeated_is_answered_as_before(
    store: Store, broker: RedisBroker, stand_by: Callable[..., Idle], queued: bool
) -> None:
    worker = stand_by()
    if queued:
        put(broker, make(priority=5))
    twice = [store.open(tokens=iter([11, 12]).__next__) for _ in range(2)]
    options: dict[str, Any] = {"queues": ["default"], "limit": 1, "idle": True}
    worker.broker._link.ask("HDEL", f"{broker._prefix}worker:{worker.id}", "standby")
    first = twice[0].step(worker.id, **options)
    id = put(broker)  # before the answer was found to be lost

    again = twice[1].step(worker.id, **options)

    assert again == first
    assert (len(again.leases), again.standby) == (queued, 12)
    if not queued:
        assert (worker.brought().id, state_of(broker, id)) == (id, "running")
    for opened in twice:
        opened.close()


def test_who_stands_by_is_told_the_same_token_at_each_look(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by()
    tokens = {worker.step(idle=True).standby for _ in range(3)}
    put(broker, make(queue="side", run_at=4e9))  # for which the step is another script

    assert {worker.step(idle=True, ignore_rates=True).standby} == tokens
    assert worker.step(idle=True, queues=("default", "side")).standby in tokens
    assert len(tokens) == 1


def test_a_disowned_lease_is_not_taken_from_a_late_bell(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by()
    told = worker.step(idle=True).standby
    id = put(broker)
    broker._outages[worker.id] = object()  # the server may have forgotten something

    assert broker.disown(worker.id, list) == 1

    step = worker.step(idle=True)
    assert [(lease.id, lease.delivery) for lease in step.leases] == [(id, 2)]
    assert step.standby not in (0, told)


def test_11_what_a_server_forgot_to_be_settled_is_no_lost_bell(
    direct: RedisBroker, server: RedisServer, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by(on=direct)
    often, once = make(), make(acks_late=False)
    direct.enqueue([often, once])
    leases = worker.step(limit=2).leases
    server.say("SAVE")
    assert all(direct.settle(worker.id, lease, Succeeded(b"1")) for lease in leases)
    server.kill()
    server.start()  # with what it had before

    # The first finds a new server behind its connection; the second knows of that.
    assert not any(worker.step(idle=True).leases for _ in range(2))

    assert direct.beat(worker.id)
    assert direct.disown(worker.id, list) == 2
    step = worker.step(idle=True)
    assert [(lease.id, lease.delivery) for lease in step.leases] == [(often.id, 2)]
    assert state_of(direct, once.id) == "failed"


def test_a_lost_bell_is_made_good_after_a_step_without_an_answer(
    proxy: Proxy, direct: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    far = RedisBroker(proxy.url, socket_timeout=0.5)
    worker = stand_by(on=far)
    proxy.lose_reply_of(script("step").sha.decode())
    far._link.timeout = 0.0  # no time for another try
    with pytest.raises(BrokerUnavailable):
        worker.step(idle=True)
    far._link.timeout = 0.5
    far.beat(worker.id)
    assert far.disown(worker.id, list) == 0
    id = put(direct)

    step = worker.step(idle=True)

    assert [(lease.id, lease.delivery) for lease in step.leases] == [(id, 1)]
    assert step.standby
    far.close()


def test_what_another_program_wrote_keeps_no_message_from_its_queue(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by(tasks={"shop.charge"})
    known = f"{broker._prefix}known:{worker.id}"
    broker._link.ask("SET", known, "hello")
    message = make()

    with pytest.raises(BrokerError, match="another program"):
        put(broker, message)

    broker._link.ask("DEL", known)
    assert state_of(broker, message.id) == "queued"
    (lease,) = broker.claim(enlist(broker, name="other"), ["default"])
    assert lease.id == message.id


def test_a_full_server_rings_nobody_for_what_it_does_not_store(
    direct: RedisBroker, server: RedisServer, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by(on=direct)
    server.say("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(QueueFull):
        put(direct)
    server.say("CONFIG", "SET", "maxmemory", "0")

    id = put(direct)

    assert worker.hears() == (set(), [id])  # it is idle still


def test_what_a_coroutine_sends_is_leased_as_well(
    broker: RedisBroker, stand_by: Callable[..., Idle]
) -> None:
    worker = stand_by()
    message = make()

    asyncio.run(broker.aenqueue([message]))

    assert worker.hears() == (set(), [message.id])


# All of it at once


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_lost_and_late_each_message_ends_once(
    broker: RedisBroker, store: Store, stand_by: Callable[..., Idle], seed: int
) -> None:
    """Workers that take what a real one takes; bells are lost, and answered late."""
    dice = random.Random(seed)
    workers = [
        Hand(stand_by(*"abcd", name=f"w{n}", limit=dice.choice((1, 2)))) for n in range(3)
    ]
    sent: list[str] = []
    for _ in range(200):
        worker = dice.choice(workers)
        match dice.randrange(12):
            case 0 | 1:
                sent.append(put(broker, make(queue=dice.choice("abcd"))))
            case 2 | 3 | 4:
                worker.listen(lost=dice.random() < 0.2)
            case 5 | 6 | 7 | 8:
                worker.settle()
            case 9:
                worker.look()
            case 10:
                store.clock.advance(dice.choice((1, 20)))
                assert all(broker.beat(one.idle.id) for one in workers)
            case _:
                dice.choice((broker.pause, broker.resume, broker.resume))("a")
    broker.resume("a")

    for _ in range(len(sent)):
        for worker in workers:
            worker.listen(lost=False)
            worker.settle()
            worker.look()

    done = [id for worker in workers for id in worker.done]
    assert sorted(done) == sorted(sent)
    assert all(record.deliveries == 1 for record in broker.get(sent).values())
    last = put(broker, make(queue="a"))  # and all stand by again

    def brought() -> list[str]:
        for worker in workers:
            worker.listen(lost=False)
        return [lease.id for worker in workers for lease in worker.held]

    assert wait_until(brought) == [last]


class Hand:
    """What a worker does with an idle place."""

    def __init__(self, idle: Idle) -> None:
        self.idle = idle
        self.token = idle.step(idle=True).standby
        self.held: list[Lease] = []
        self.done: list[str] = []

    def listen(self, *, lost: bool) -> None:
        words = self.idle.mailbox.wait(0)
        for lease in self.idle.mailbox.leases():
            if lease.token == self.token and not lost:
                self.held.append(lease)
        if words:
            self.look()

    def settle(self) -> None:
        if self.held:
            self._ask(settlements=[(lease, Succeeded(b"1")) for lease in self.held])

    def look(self) -> None:
        self._ask(idle=not self.held)

    def _ask(self, **more: Any) -> None:
        ended = [lease for lease, _ in more.get("settlements", ())]
        left = self.idle.limit - len(self.held) + len(ended)
        step = self.idle.step(limit=left, **more)
        assert all(step.accepted)
        self.done += [lease.id for lease in ended]
        self.held = [lease for lease in self.held if lease not in ended] + list(step.leases)
        assert len(self.held) <= self.idle.limit
        if more.get("idle"):
            self.token = step.standby
