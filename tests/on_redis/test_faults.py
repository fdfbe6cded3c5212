"""What a broker does when the line to its server fails, or the server cannot serve."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing import connection  # `select()` knows no descriptor above 1023
from pathlib import Path
from typing import Any

import pytest
from redis_server import RedisServer
from world import enlist, fork, make, wait_until

from liteq import Liteq, chord, failure, group
from liteq.beat import Beat, Service
from liteq.brokers.base import HELLO, Broker, Lease, Schedule
from liteq.brokers.redis import RedisBroker
from liteq.brokers.redis_link import KEYS_VERSION
from liteq.brokers.redis_scripts import script
from liteq.brokers.redis_wire import ServerError
from liteq.exceptions import (
    BrokerError,
    BrokerUnavailable,
    DecodeError,
    ImproperlyConfigured,
    InvalidTaskError,
    QueueFull,
    SchemaError,
    StoreLost,
    TimeoutError,
)
from liteq.limits import Limit, LimitInfo
from liteq.message import GATHER, Edge
from liteq.outcome import Failed, Lost, Outcome, Released, Retried, Succeeded
from liteq.results.resultset import MANY
from on_redis.proxy import Proxy

pytestmark = pytest.mark.redis

TIMES = 200 if os.environ.get("LITEQ_STORM") else 3
ERROR = failure.describe(ValueError("no"))


def lose(proxy: Proxy, name: str) -> None:
    """Have the next call of a script run, and its answer lost."""
    proxy.lose_reply_of(script(name).sha.decode())


def held(broker: RedisBroker, worker: int) -> Lease:
    broker.enqueue([make()])
    (lease,) = broker.claim(worker, ["default"])
    return lease


def held_once(broker: RedisBroker, worker: int) -> Lease:
    broker.enqueue([make(acks_late=False)])
    (lease,) = broker.claim(worker, ["default"])
    return lease


# An answer that is lost


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("script", "number"), [("enqueue_one", 1), ("enqueue", 2)])
def test_an_enqueue_whose_answer_is_lost_stores_its_messages_once(
    patient: RedisBroker, proxy: Proxy, script: str, number: int
) -> None:
    for n in range(1, TIMES + 1):
        lose(proxy, script)
        patient.enqueue([make() for _ in range(number)])
        assert proxy.lost == n
        assert patient.counts() == {"default": {"queued": n * number}}


@pytest.mark.timeout(600)
def test_a_claim_whose_answer_is_lost_is_answered_the_second_time(
    patient: RedisBroker, proxy: Proxy
) -> None:
    worker = enlist(patient)
    for n in range(1, TIMES + 1):
        messages = [make(), make(priority=3)]
        patient.enqueue(messages)
        lose(proxy, "step")

        leases = patient.claim(worker, ["default"], 5)

        assert proxy.lost == n
        assert [lease.id for lease in leases] == [messages[1].id, messages[0].id]
        assert all(patient.settle(worker, lease, Succeeded(b"1")) for lease in leases)


def test_a_step_whose_answer_is_lost_says_again_that_there_is_more(
    patient: RedisBroker, proxy: Proxy
) -> None:
    worker, tasks = enlist(patient), {"shop.charge"}
    patient.step(worker, queues=["default"], limit=1, tasks=tasks)
    lease = held(patient, worker)
    patient.enqueue([make("unknown") for _ in range(1_200)])
    steps = []
    for n in range(1, 4):
        lose(proxy, "step")
        ended = [(lease, Succeeded(b"1"))]
        steps.append(
            patient.step(worker, settlements=ended, queues=["default"], limit=1, tasks=tasks)
        )
        assert proxy.lost == n

    said = [(step.accepted, step.next_due) for step in steps]
    assert said == [((True,), 0.0), ((False,), 0.0), ((False,), None)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "outcome",
    [Succeeded(b"1"), Failed(ERROR), Retried(0.0, ERROR), Released(), Lost("signal 9")],
    ids=lambda outcome: type(outcome).__name__,
)
def test_a_settle_whose_answer_is_lost_counts_once(
    patient: RedisBroker, proxy: Proxy, outcome: Outcome
) -> None:
    worker = enlist(patient)
    for n in range(1, TIMES + 1):
        first, good, bad = make(), make("good"), make("bad")
        edges = [Edge(first.id, good.id, "success"), Edge(first.id, bad.id, "failure")]
        patient.enqueue([first, good, bad], edges)
        (lease,) = patient.claim(worker, ["default"])
        lose(proxy, "step")

        accepted = patient.settle(worker, lease, outcome)

        assert proxy.lost == n
        assert accepted
        attempts = [attempt.outcome for attempt in patient.attempts(first.id)]
        expected = {Failed: ["failed"], Retried: ["retried"], Lost: ["lost"]}
        assert attempts == expected.get(type(outcome), [])
        (claimed,) = patient.claim(worker, ["default"], 9)  # it again, or its one callback
        assert len(claimed.inputs) == (type(outcome) in (Succeeded, Failed))
        while claimed:
            patient.settle(worker, claimed, Succeeded(b"1"))
            claimed = next(iter(patient.claim(worker, ["default"])), None)  # type: ignore[assignment]


Verb = Callable[[RedisBroker, Any], Any]


def schedule(name: str = "tick") -> Schedule:
    return Schedule(name, b"{}", 100.0)


def failed(broker: RedisBroker) -> str:
    message = make()
    broker.enqueue([message])
    worker = enlist(broker)
    (lease,) = broker.claim(worker, ["default"])
    broker.settle(worker, lease, Failed(ERROR))
    broker.unregister(worker)
    return message.id


def queued(broker: RedisBroker) -> str:
    message = make()
    broker.enqueue([message])
    return message.id


# For each script: what is there before, the call, its answer.
VERBS: dict[str, tuple[Callable[[RedisBroker], Any], Verb, Any]] = {
    "register": (lambda _: None, lambda b, _: _newcomers(b), 1),
    "beat": (enlist, lambda b, worker: b.beat(worker), True),
    "revoke": (queued, lambda b, id: b.revoke([id])[id], "revoked"),
    "redrive": (failed, lambda b, id: len(b.redrive([id])), 1),
    "purge": (queued, lambda b, _: b.purge(["default"]), 1),
    "store": (lambda _: make().id, lambda b, id: b.store(id, "SUCCESS", b"1"), None),
    "forget": (failed, lambda b, id: b.forget([id]), None),
    "put_schedule": (
        lambda _: make().id,
        lambda b, name: b.put_schedule(schedule(name), revision=0),
        True,
    ),
    "remove_schedule": (
        lambda b: b.put_schedule(schedule()),
        lambda b, _: b.remove_schedule("tick"),
        True,
    ),
    "lead": (lambda _: None, lambda b, _: b.lead("b1", 9e12), True),
    "condemn": (enlist, lambda b, worker: b.unregister(worker), None),
    "maintain": (lambda _: None, lambda b, _: b.maintain(), False),
    "get": (queued, lambda b, id: len(b.get([id])), 1),
    "counts": (lambda _: None, lambda b, _: b.counts(), {}),
}


def _newcomers(broker: RedisBroker) -> int:
    """Register a worker; return how many came by that, and send it home."""
    worker = enlist(broker)
    newcomers = [one.id for one in broker.workers()]
    assert worker in newcomers
    broker.unregister(worker)
    return len(newcomers)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", VERBS)
def test_a_verb_whose_answer_is_lost_is_answered_as_if_it_was_not(
    patient: RedisBroker, proxy: Proxy, name: str
) -> None:
    prepare, call, expected = VERBS[name]
    for n in range(1, TIMES + 1):
        before = prepare(patient)
        call(patient, before)  # so that the server knows the script
        patient.purge()
        before = prepare(patient)
        lose(proxy, name)

        answer = call(patient, before)

        assert proxy.lost == n
        assert answer == expected
        patient.purge()


@pytest.mark.timeout(600)
def test_a_fire_whose_answer_is_lost_enqueues_once(patient: RedisBroker, proxy: Proxy) -> None:
    patient.put_schedule(schedule())
    (entry,) = patient.schedules()
    for n in range(1, TIMES + 1):
        lose(proxy, "fire")

        fired = patient.fire(
            "tick", 99.0 + n, 100.0 + n, revision=entry.revision, messages=[make()]
        )

        assert fired
        assert proxy.lost == (n if n > 1 else 1)
        assert patient.counts() == {"default": {"queued": n}}
        assert patient.schedules()[0].total == n


def test_a_claim_that_was_never_answered_is_given_back_by_the_next(
    broker: RedisBroker, proxy: Proxy, direct: RedisBroker
) -> None:
    worker = enlist(broker)
    broker.step(worker)
    message = make()
    broker.enqueue([message])
    lose(proxy, "step")
    broker._link.timeout = 0.0  # no time for another try
    with pytest.raises(BrokerUnavailable):
        broker.claim(worker, ["default"])
    lost = direct.get([message.id])[message.id]

    broker._link.timeout = 0.5
    (lease,) = broker.claim(worker, ["default"])

    assert lost.state == "running"
    assert (lease.id, lease.delivery) == (message.id, 1)
    assert broker.settle(worker, lease, Succeeded(b"1"))


def test_a_settle_that_was_never_answered_was_no_lost_lease(
    broker: RedisBroker, proxy: Proxy
) -> None:
    worker = enlist(broker)
    lease = held(broker, worker)
    lose(proxy, "step")
    broker._link.timeout = 0.0
    with pytest.raises(BrokerUnavailable):
        broker.settle(worker, lease, Succeeded(b"1"))
    broker._link.timeout = 0.5

    assert broker.settle(worker, lease, Succeeded(b"1"))
    assert not broker.settle(worker, lease, Succeeded(b"1"))


@pytest.mark.parametrize(
    "outcome",
    [Succeeded(b"1"), Failed(ERROR), Retried(0.0, ERROR), Released(), Lost("signal 9")],
    ids=lambda outcome: type(outcome).__name__,
)
def test_a_settle_that_was_never_answered_is_known_after_other_steps(
    broker: RedisBroker, proxy: Proxy, outcome: Outcome
) -> None:
    worker = enlist(broker)
    lease = held(broker, worker)
    waiting = make()
    broker.enqueue([waiting])
    lose(proxy, "step")
    broker._link.timeout = 0.0  # no time for another try
    with pytest.raises(BrokerUnavailable):
        broker.step(worker, settlements=[(lease, outcome)], queues=["default"], limit=1)
    broker._link.timeout = 0.5
    assert broker.beat(worker)
    assert broker.disown(worker, lambda: [lease]) == 0

    assert broker.settle(worker, lease, outcome)

    assert not broker.settle(worker, lease, outcome)
    claimed = broker.claim(worker, ["default"], 5)
    assert (waiting.id, 1) in [(one.id, one.delivery) for one in claimed]
    assert all(broker.settle(worker, one, Succeeded(b"1")) for one in claimed)


def test_a_settle_that_never_came_is_refused_when_others_have_ended_the_attempt(
    broker: RedisBroker, proxy: Proxy, direct: RedisBroker
) -> None:
    worker = enlist(broker)
    lease = held_once(broker, worker)
    proxy.refuse = True
    proxy.cut()
    with pytest.raises(BrokerUnavailable):
        broker.settle(worker, lease, Succeeded(b"1"))
    proxy.refuse = False
    direct.unregister(worker)  # as lost: it may have been started

    assert not broker.settle(worker, lease, Succeeded(b"1"))

    assert direct.get([lease.id])[lease.id].state == "failed"


def test_a_settle_that_was_never_answered_is_known_under_another_name(
    broker: RedisBroker, proxy: Proxy, direct: RedisBroker
) -> None:
    worker = enlist(broker)
    lease = held(broker, worker)
    lose(proxy, "step")
    broker._link.timeout = 0.0
    with pytest.raises(BrokerUnavailable):
        broker.settle(worker, lease, Succeeded(b"1"))
    broker._link.timeout = 0.5
    direct.unregister(worker)  # given up for dead: it comes back as another

    assert broker.settle(enlist(broker), lease, Succeeded(b"1"))


# A line that is bad


def test_a_silent_line_is_an_error_in_the_time_allowed(
    broker: RedisBroker, proxy: Proxy, direct: RedisBroker
) -> None:
    broker.check()
    proxy.hold()
    start = time.monotonic()

    with pytest.raises(BrokerUnavailable, match=str(proxy.port)):
        broker.enqueue([make()])

    assert time.monotonic() - start < 3
    proxy.release()
    broker.enqueue([make()])
    assert direct.counts()["default"]["queued"] >= 1


def test_a_line_that_was_cut_is_made_anew_without_a_word(
    broker: RedisBroker, proxy: Proxy
) -> None:
    broker.enqueue([make()])
    proxy.cut()
    broker.enqueue([make()])
    proxy.half_close()
    broker.enqueue([make()])

    assert broker.counts() == {"default": {"queued": 3}}


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    broker = RedisBroker(f"redis://me:hunter2@127.0.0.1:{port}/3")

    with pytest.raises(BrokerUnavailable, match=f"redis://127.0.0.1:{port}/3") as raised:
        broker.enqueue([make()])

    assert "hunter2" not in f"{raised.value}{broker!r}{broker._link.place!r}"


def test_a_mailbox_hears_again_after_its_line_was_cut(
    broker: RedisBroker, proxy: Proxy
) -> None:
    worker = enlist(broker)
    mailbox = broker.mailbox(worker)
    descriptor = mailbox.fileno()
    mailbox.receive()
    proxy.cut()
    assert connection.wait([descriptor], 5)
    assert mailbox.receive() == {""}  # something may have been missed
    mailbox._try_at = 0.0  # type: ignore[attr-defined]

    broker.step(worker)  # a call that got through: so the mailbox tries, too

    assert mailbox.fileno() == descriptor
    mailbox.receive()
    broker.enqueue([make()])
    assert connection.wait([descriptor], 5)
    assert mailbox.receive() == {""}
    enlist(broker)
    assert HELLO in wait_until(lambda: mailbox.wait(0.2))
    mailbox.close()


def test_a_worker_looks_at_once_when_its_mailbox_hears_again(
    broker: RedisBroker, proxy: Proxy, direct: RedisBroker
) -> None:
    worker = enlist(broker)
    mailbox = broker.mailbox(worker)
    proxy.cut()
    assert "" in wait_until(lambda: mailbox.wait(0.2))
    direct.enqueue([make()])  # of which nobody is told
    mailbox._try_at = 0.0  # type: ignore[attr-defined]

    mailbox.mend()  # type: ignore[attr-defined]

    assert connection.wait([mailbox.fileno()], 5)
    assert mailbox.receive() == {""}
    mailbox.close()


def test_who_waits_is_woken_after_the_line_was_cut(broker: RedisBroker, proxy: Proxy) -> None:
    worker = enlist(broker)
    lease = held(broker, worker)
    mailbox = broker.mailbox()
    proxy.cut()
    assert "" in wait_until(lambda: mailbox.wait(0.2))
    mailbox._try_at = 0.0  # type: ignore[attr-defined]
    mailbox.wait(0)
    assert broker.watch([lease.id], mailbox) == {}

    broker.settle(worker, lease, Succeeded(b"1"))

    assert lease.id in wait_until(lambda: mailbox.wait(0.2) - {""})
    mailbox.close()


def test_a_forked_child_uses_a_connection_of_its_own(server: RedisServer) -> None:
    broker = RedisBroker(server.url)
    broker.enqueue([make()])
    mailbox = broker.mailbox(enlist(broker))
    before = broker._link._spare[0].connection

    def has_its_own() -> bool:
        broker.enqueue([make()])
        own = all(wire.connection is not before for wire in broker._link._spare)
        return own and mailbox.fileno() == -1

    assert os.waitpid(fork(has_its_own), 0)[1] == 0
    mailbox.receive()

    broker.enqueue([make()])

    assert broker.counts() == {"default": {"queued": 3}}
    mailbox.receive()
    enlist(broker)
    assert connection.wait([mailbox.fileno()], 5)  # the parent's still hears
    mailbox.close()
    broker.close()


def test_a_forked_child_keeps_no_connection_of_any_thread(server: RedisServer) -> None:
    broker = RedisBroker(server.url)
    broker.counts()
    with ThreadPoolExecutor(1) as thread:
        lent = thread.submit(
            broker._link._take
        ).result()  # as if it were in the middle of a call
        broker.counts()
        inode = os.readlink(f"/proc/self/fd/{lent.socket.fileno()}")

        def has_none() -> bool:
            held = {os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()}
            return not any(inode in path for path in held)

        assert os.waitpid(fork(has_none), 0)[1] == 0

    broker._link._give_back(lent)
    broker.counts()  # the parent's own goes on
    broker.close()


# A server that cannot serve


def test_a_script_that_the_server_forgot_is_loaded_again(
    direct: RedisBroker, server: RedisServer
) -> None:
    direct.enqueue([make()])
    server.say("SCRIPT", "FLUSH")

    direct.enqueue([make()])

    assert direct.counts() == {"default": {"queued": 2}}


@pytest.mark.parametrize("is_awaited", [False, True])
def test_a_script_that_the_server_forgets_as_it_has_learnt_it_is_loaded_again(
    broker: RedisBroker, proxy: Proxy, server: RedisServer, is_awaited: bool
) -> None:
    message = make()
    proxy.before(script("enqueue_one").sha.decode(), lambda: server.say("SCRIPT", "FLUSH"), 2)

    if is_awaited:
        asyncio.run(broker.aenqueue([message]))
    else:
        broker.enqueue([message])

    assert broker.counts() == {"default": {"queued": 1}}


def test_a_full_server_refuses_new_messages_and_settles_the_old(
    direct: RedisBroker, server: RedisServer
) -> None:
    worker = enlist(direct)
    lease = held(direct, worker)
    server.say("CONFIG", "SET", "maxmemory", "1")

    with pytest.raises(QueueFull, match="no memory") as refused:
        direct.enqueue([make()])

    assert "script" not in str(refused.value)
    assert direct.counts() == {"default": {"running": 1}}
    assert direct.beat(worker)
    assert direct.settle(worker, lease, Succeeded(b"1" * 10_000))
    assert direct.get([lease.id])[lease.id].result == b"1" * 10_000


def test_a_server_that_became_a_replica_is_asked_again(
    direct: RedisBroker, server: RedisServer
) -> None:
    direct.enqueue([make()])
    server.say("REPLICAOF", "127.0.0.1", "1")

    with pytest.raises(BrokerUnavailable, match="READONLY"):
        direct.enqueue([make()])

    server.say("REPLICAOF", "NO", "ONE")
    direct.enqueue([make()])
    assert direct.counts() == {"default": {"queued": 2}}


def test_a_server_without_its_replicas_is_asked_again(
    direct: RedisBroker, server: RedisServer
) -> None:
    direct.check()
    server.say("CONFIG", "SET", "min-replicas-to-write", "1")

    with pytest.raises(BrokerUnavailable, match="NOREPLICAS"):
        direct.enqueue([make()])

    server.say("CONFIG", "SET", "min-replicas-to-write", "0")
    direct.enqueue([make()])


def test_a_replica_without_its_master_is_asked_again(
    direct: RedisBroker, server: RedisServer
) -> None:
    direct.enqueue([make()])
    server.say("CONFIG", "SET", "replica-serve-stale-data", "no")
    server.say("REPLICAOF", "127.0.0.1", "1")

    with pytest.raises(BrokerUnavailable, match="MASTERDOWN"):
        direct.enqueue([make()])

    server.say("REPLICAOF", "NO", "ONE")
    direct.enqueue([make()])
    assert direct.counts() == {"default": {"queued": 2}}


def test_a_server_that_cannot_write_its_snapshot_is_asked_again(
    direct: RedisBroker, server: RedisServer
) -> None:
    worker = enlist(direct)
    lease = held(direct, worker)
    (server.folder / "dump.rdb").mkdir()  # in the way of its file
    server.say("CONFIG", "SET", "save", "1 1000000")  # writes stop only if there is to be one
    server.say("BGSAVE")
    wait_until(lambda: b"rdb_last_bgsave_status:err" in _info(server))

    with pytest.raises(BrokerUnavailable, match="MISCONF"):
        direct.enqueue([make()])
    with pytest.raises(BrokerUnavailable, match="MISCONF"):
        direct.settle(worker, lease, Succeeded(b"1"))

    server.say("CONFIG", "SET", "save", "")
    assert direct.settle(worker, lease, Succeeded(b"1"))
    direct.enqueue([make()])
    assert direct.counts() == {"default": {"queued": 1}}


def test_a_server_that_still_reads_its_data_is_asked_again(
    direct: RedisBroker, server: RedisServer
) -> None:
    direct.enqueue([make(body=os.urandom(400_000)) for _ in range(100)])
    server.say("SAVE")
    server.kill()
    # A look at who calls every 2 MiB, which is a tenth of a second.
    server.options += ("key-load-delay 20000",)
    starting = threading.Thread(target=server.start)
    starting.start()
    try:
        wait_until(lambda: _says(server, "LOADING"))
        with pytest.raises(BrokerUnavailable, match="LOADING"):
            direct.enqueue([make()])
    finally:
        starting.join()
    direct.enqueue([make()])
    assert direct.counts() == {"default": {"queued": 101}}


def _info(server: RedisServer) -> bytes:
    found = server.say("INFO", "persistence")
    assert isinstance(found, bytes)
    return found


@pytest.mark.parametrize("field", ["e", "u", "x", "L"])
def test_5_fields_that_nobody_can_read_are_no_end_of_the_worker_that_meets_them(
    direct: RedisBroker, server: RedisServer, field: str
) -> None:
    bad, good = make(body=b"[[7], {}]", shadow="x", run_at=1.0, expires_at=1e10), make()
    direct.enqueue([bad, good])
    server.say("HSET", f"{direct._prefix}m:{bad.id}", field, b"\xff")

    leases = direct.claim(enlist(direct), ["default"], 2)

    assert {lease.id for lease in leases} == {bad.id, good.id}
    (lease,) = (lease for lease in leases if lease.id == bad.id)
    assert lease.packed[2] == b"[[7], {}]"
    with pytest.raises(DecodeError, match="damaged"):  # a dead letter, for the executor
        _ = lease.message
    assert direct.get([bad.id])[bad.id].packed == lease.packed


_DAMAGE = [
    ("HSET", "n", b"\xff", "its field n is \\xff"),
    ("HDEL", "n", None, "its field n is gone"),
    ("HSET", "g", b"abc", "its field g is abc"),
    ("HSET", "g", b"0,0,soon,,1,0,,,7,defaultadd", "its field g is 0,0,soon,"),
    ("HSET", "g", b"0,0,,,1,0,,,70,defaultadd", "its field g is"),
    ("HDEL", "g", None, "its field g is gone"),
    ("HDEL", "b", None, "its field b is gone"),
    ("HSET", "k", b"7", "its field k is 7"),
    ("HSET", "k", b"0 - 9223372036854775807 -", "its field k is 0 - 9223372036854775807"),
    ("HSET", "g", b"0,9223372036854775807,,,1,0,,,7,defaultadd", "its field g is 0,92233"),
    ("HSET", "g", b"99999999999,0,,,1,0,,,7,defaultadd", "its field g is 99999"),
    ("DEL", None, None, "all its fields are gone"),
    ("SET", None, b"hello", "its key holds a string of another program"),
]


@pytest.mark.parametrize("tasks", [None, ["shop.charge"]])
@pytest.mark.parametrize("when", ["queued", "delayed", "held"])
@pytest.mark.parametrize(("verb", "field", "value", "says"), _DAMAGE)
def test_5_a_message_that_another_program_damaged_is_a_dead_letter(
    direct: RedisBroker,
    server: RedisServer,
    when: str,
    verb: str,
    field: str | None,
    value: bytes | None,
    says: str,
    tasks: list[str] | None,
) -> None:
    bad = make("shop.charge", b"[[7], {}]", run_at=1.0 if when == "delayed" else None)
    good, after = make("shop.charge"), make("shop.thank")
    direct.enqueue([bad, good, after], [Edge(bad.id, after.id, "failure", 0)])
    holder = enlist(direct)
    if when == "held":
        direct.claim(holder, ["default"], 2)
    words = [word for word in (field, value) if word is not None]
    server.say(verb, f"{direct._prefix}m:{bad.id}", *words)
    if when == "held":
        direct.unregister(holder)

    worker = enlist(direct)
    step = direct.step(worker, queues=["default"], limit=2, tasks=tasks)

    assert good.id in [lease.id for lease in step.leases]
    if when == "held" and field == "k":  # whose it was is not known any more: it stays
        says = says.replace("k is 7", "k is")
    [dead] = direct.browse("dead", limit=10)
    assert (dead.id, dead.state) == (bad.id, "failed")
    assert dead.dead is not None
    assert f"damaged in Redis: {says}" in dead.dead
    assert "damaged in Redis" in str(failure.rebuild(dead.result or b""))
    if when != "held":
        assert [(one.id, why) for one, why in step.aside] == [(bad.id, "damaged")]
    for lease in step.leases:
        assert direct.settle(worker, lease, Succeeded(b"1"))
    assert direct.get([after.id])[after.id].state != "waiting"
    direct.unregister(worker)
    direct.forget([bad.id])
    assert direct.browse("dead", limit=10) == []


@pytest.mark.parametrize("outcome", [Succeeded(b"1"), Failed(ERROR)])
@pytest.mark.parametrize(("verb", "field", "value"), [one[:3] for one in _DAMAGE])
def test_5_what_is_damaged_while_it_runs_is_no_end_of_the_worker_that_settles_it(
    direct: RedisBroker,
    server: RedisServer,
    verb: str,
    field: str | None,
    value: bytes | None,
    outcome: Outcome,
) -> None:
    worker = enlist(direct)
    bad, good = held(direct, worker), held(direct, worker)
    words = [word for word in (field, value) if word is not None]
    server.say(verb, f"{direct._prefix}m:{bad.id}", *words)

    ended = [(bad, outcome), (good, outcome)]
    step = direct.step(worker, settlements=ended, queues=["default"], limit=1)

    assert step.accepted == (field in ("n", "g", "b"), True)
    for _ in range(2):
        assert direct.step(worker, queues=["default"], limit=1, idle=True).leases == ()
    dead = [one.id for one in direct.browse("dead", limit=10)]
    assert dead == ([] if step.accepted[0] else [bad.id])


@pytest.mark.parametrize("worker_of_it", ["-", "77"])
def test_5_a_lease_whose_worker_is_damaged_goes_back_to_its_queue(
    direct: RedisBroker, server: RedisServer, worker_of_it: str
) -> None:
    worker = enlist(direct)
    lease = held(direct, worker)
    server.say(
        "HSET", f"{direct._prefix}m:{lease.id}", "k", f"{lease.token} {worker_of_it} 1 -"
    )

    direct.step(worker, idle=True)

    [again] = direct.claim(worker, ["default"])
    assert again.id == lease.id
    assert direct.settle(worker, again, Succeeded(b"1"))
    assert server.say("SCARD", f"{direct._prefix}leases:{worker}") == 0


@pytest.mark.parametrize("when", ["queued", "expired", "ended", "parked"])
@pytest.mark.parametrize(
    ("verb", "field", "value"),
    [*(one[:3] for one in _DAMAGE), ("HSET", "Q", b"soon"), ("HDEL", "Q", None)],
)
def test_5_what_is_damaged_is_no_end_of_the_worker_that_keeps_house(
    direct: RedisBroker,
    server: RedisServer,
    when: str,
    verb: str,
    field: str | None,
    value: bytes | None,
) -> None:
    times = {"expires_at": 1.0} if when == "expired" else {"result_expires": 0.0}
    bad, good = make(priority=1, **times), make(priority=1, **times)
    direct.enqueue([bad, good])
    worker = enlist(direct)
    if when == "ended":
        for lease in direct.claim(worker, ["default"], 2):
            assert direct.settle(worker, lease, Succeeded(b"1"))
    elif when == "parked":
        direct.step(worker, queues=["default"], limit=2, tasks={"shop.thank"})
        direct.unknown_expires = 0.0
    words = [word for word in (field, value) if word is not None]
    server.say(verb, f"{direct._prefix}m:{bad.id}", *words)

    direct.age(["default"], 1e-9)
    direct.maintain()

    assert not direct.maintain()
    if when == "queued":
        given = server.say("HGET", f"{direct._prefix}m:{good.id}", "g")
        assert bytes(given).startswith(b"9,")  # type: ignore[arg-type]
    else:
        ended = {"ended": None, "expired": "revoked", "parked": "failed"}
        found = direct.get([good.id]).get(good.id)
        assert (found and found.state) == ended[when]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("e", b'{"content'),
        ("P", b"many"),
        ("P", b"9223372036854775807"),
        ("P", b"-9223372036854775808"),
        ("C", b"soon"),
        ("D", b"nan"),
        ("u", b"never"),
        ("x", b"nan"),
        ("L", b"[" * 100_000),
    ],
)
@pytest.mark.parametrize("fires", ["success", "part"])
def test_5_what_is_damaged_while_it_waits_is_no_end_of_what_it_waits_for(
    direct: RedisBroker, server: RedisServer, field: str, value: bytes, fires: str
) -> None:
    times = {"run_at": 1.0, "expires_at": 1e10, "shadow": "x"}
    first = make()
    bad = make(GATHER, b"fail") if fires == "part" else make(**times)
    direct.enqueue([first, bad], [Edge(first.id, bad.id, fires, 0)])
    worker = enlist(direct)
    [lease] = direct.claim(worker, ["default"])
    server.say("HSET", f"{direct._prefix}m:{bad.id}", field, value)

    assert direct.settle(worker, lease, Succeeded(b"1"))

    assert direct.get([first.id])[first.id].state == "succeeded"
    if fires == "success":
        [lease] = direct.claim(worker, ["default"])
        assert lease.id == bad.id
        assert direct.settle(worker, lease, Released())


@pytest.mark.parametrize("text", [b"null", b"{", b"[" * 100_000, b"[[1,2]]", b'["a","b"]'])
def test_5_a_limit_that_nobody_can_read_is_none_and_a_warning(
    direct: RedisBroker, server: RedisServer, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    told = Limit("l", most=1)
    direct.declare_limits({"shop.charge": [told], "shop.bad": [Limit("bad", most=1)]})
    prefix = f"{direct._prefix}limits:"
    server.say("HSET", f"{prefix}overrides", "l", text)
    server.say("HSET", f"{prefix}declared", "shop.bad", text)
    direct.declare_limits({"shop.thank": [Limit("thank", 1.0)]})
    server.say("HSET", f"{prefix}names", "shop.more", text)
    server.say("HSET", f"{prefix}rules", "thank", b"soon,x,-1")
    server.say("SET", f"{direct._prefix}bucket:l\n", b"x")
    direct.enqueue([make(), make(), make("shop.more"), make("shop.thank")])
    worker = enlist(direct)

    leases = direct.claim(worker, ["default"], 5)

    assert sorted(lease.task for lease in leases) == ["shop.charge", "shop.more", "shop.thank"]
    known = {one.name: one for one in direct.limits()}
    assert known["l"] == LimitInfo("l", told, None, ("shop.charge",))
    assert "is damaged in the store and ignored" in caplog.text
    [charged] = [lease for lease in leases if lease.task == "shop.charge"]
    server.say("HSET", f"{direct._prefix}m:{charged.id}", "H", text)
    assert direct.settle(worker, charged, Succeeded(b"1"))


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("HSET", ["H", b"null"]),
        ("HSET", ["H", b"{"]),
        ("HSET", ["H", b'["another\n"]']),
        ("HSET", ["H", b"[[1], {}, null]"]),
        ("HDEL", ["H"]),
        ("DEL", []),
        ("SET", [b"hello"]),
    ],
)
def test_5_slots_of_which_the_message_knows_no_more_are_given_back(
    direct: RedisBroker,
    server: RedisServer,
    verb: str,
    words: list[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    direct.declare_limits({"shop.charge": [Limit("l", most=1)]})
    first, second, third = make(), make(), make()
    direct.enqueue([first, second, third])
    worker = enlist(direct)
    [lease] = direct.claim(worker, ["default"], 5)
    direct.maintain()
    assert direct.claim(worker, ["default"], 5) == ()  # it is held while it runs
    server.say(verb, f"{direct._prefix}m:{lease.id}", *words)
    direct.settle(worker, lease, Succeeded(b"1"))
    direct.claim(worker, ["default"], 5)

    direct.maintain()
    direct.maintain()

    [lease] = direct.claim(worker, ["default"], 5)
    assert lease.id == second.id
    assert caplog.text.count("gave back the slot") == 1
    assert f"{first.id} held under the limit 'l'" in caplog.text
    assert direct.settle(worker, lease, Succeeded(b"1"))
    assert [one.id for one in direct.claim(worker, ["default"], 5)] == [third.id]


def test_a_busy_server_is_asked_again(direct: RedisBroker, server: RedisServer) -> None:
    direct.check()
    server.say("CONFIG", "SET", "lua-time-limit", "1")
    endless = threading.Thread(target=_run_for_ever, args=(server,))
    endless.start()
    try:
        wait_until(lambda: _says(server, "BUSY"))
        with pytest.raises(BrokerUnavailable, match="BUSY"):
            direct.enqueue([make()])
    finally:
        server.say("SCRIPT", "KILL")
        endless.join()
    direct.enqueue([make()])
    assert direct.counts() == {"default": {"queued": 1}}


def _run_for_ever(server: RedisServer) -> None:
    with pytest.raises(ServerError):
        server.say("EVAL", "while true do end", 0)


def _says(server: RedisServer, code: str) -> bool:
    """Tell whether the server answers with this error now."""
    try:
        server.say("PING")
    except ServerError as exc:
        return exc.code == code
    except OSError:
        return False
    return False


def test_a_server_that_deletes_keys_when_it_is_full_is_refused(
    start: Callable[..., RedisServer],
) -> None:
    server = start("maxmemory 100mb", "maxmemory-policy allkeys-lru")
    broker: Broker = RedisBroker(server.url)

    for _ in range(2):
        with pytest.raises(ImproperlyConfigured, match="maxmemory-policy allkeys-lru"):
            broker.enqueue([make()])

    server.say("CONFIG", "SET", "maxmemory-policy", "noeviction")
    broker.enqueue([make()])
    broker.close()


def test_a_server_that_begins_to_delete_keys_is_said_at_the_next_connection(
    start: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = start("maxmemory 100mb", "maxmemory-policy noeviction")
    broker = RedisBroker(server.url)
    broker.enqueue([make()])
    server.say("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    assert "maxmemory-policy" not in caplog.text

    for _ in range(2):
        server.say("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        broker.enqueue([make()])

    assert caplog.text.count("deletes keys when its memory is full") == 2
    broker.close()


def test_a_server_without_info_is_used(start: Callable[..., RedisServer]) -> None:
    server = start('rename-command INFO ""')
    with closing(RedisBroker(server.url)) as broker:
        broker.enqueue([make()])

        assert broker.counts() == {"default": {"queued": 1}}
        assert broker.persistence().startswith("persistence unknown")


@pytest.mark.parametrize("name", ["CLIENT", "EVAL"])
def test_a_command_that_liteq_needs_and_the_server_has_not_is_named(
    start: Callable[..., RedisServer], name: str
) -> None:
    server = start(f'rename-command {name} ""')
    with closing(RedisBroker(server.url)) as broker:
        with pytest.raises(BrokerError, match=f"unknown command .{name}") as refused:
            broker.enqueue([make()])
        assert not isinstance(refused.value, BrokerUnavailable)
        with pytest.raises(BrokerError, match=f"unknown command .{name}") as refused:
            asyncio.run(broker.aenqueue([make()]))
        assert not isinstance(refused.value, BrokerUnavailable)


def test_a_server_that_was_spoken_to_is_not_taken_for_one_with_tls(
    proxy: Proxy, broker: RedisBroker
) -> None:
    broker.check()
    proxy.refuse = True
    proxy.cut()

    with pytest.raises(BrokerUnavailable) as told:
        broker.check()
    assert "rediss" not in str(told.value)


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        (KEYS_VERSION - 1, "`liteq migrate`.* or use another namespace"),
        (KEYS_VERSION + 1, "made by a later liteq.*upgrade liteq"),
    ],
)
def test_a_store_of_another_version_is_refused_and_left_as_it_is(
    direct: RedisBroker, server: RedisServer, version: int, advice: str
) -> None:
    direct.enqueue([make()])
    direct.close()
    server.say("HSET", f"{direct._prefix}meta", "version", str(version))
    before = sorted_keys(server)

    for verb in (lambda: direct.enqueue([make()]), lambda: enlist(direct), direct.counts):
        with pytest.raises(SchemaError, match=f"version {version}.*{advice}"):
            verb()
    assert sorted_keys(server) == before


def test_a_worker_notices_by_its_heartbeat_that_the_store_became_too_new_for_it(
    direct: RedisBroker, server: RedisServer
) -> None:
    worker = enlist(direct)
    assert direct.beat(worker)
    server.say("HSET", f"{direct._prefix}meta", "version", str(KEYS_VERSION + 1))

    for verb in (lambda: direct.beat(worker), direct.check):
        with pytest.raises(SchemaError, match=f"version {KEYS_VERSION + 1}.*upgrade liteq"):
            verb()


def test_a_graph_that_would_hold_the_server_is_refused(
    direct: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liteq.brokers.redis_form.MOST_AT_ONCE", 3)
    direct.enqueue([make() for _ in range(3)])

    with pytest.raises(InvalidTaskError, match=r"4 messages in one step .* send 3 at most"):
        direct.enqueue([make() for _ in range(4)])
    assert direct.counts()["default"]["queued"] == 3


def sorted_keys(server: RedisServer) -> list[Any]:
    found: Any = server.say("KEYS", "*")
    return sorted(found)


def test_an_emptied_server_is_noticed(direct: RedisBroker, server: RedisServer) -> None:
    direct.check()
    direct.check()
    assert direct.losses == 0
    server.say("FLUSHALL")

    direct.check()
    direct.check()

    assert direct.losses == 1


def test_all_who_wait_for_what_an_emptied_server_had_are_told(
    app: Liteq, server: RedisServer
) -> None:
    double = app.tasks["shop.double"]
    app.broker.check()
    single, several = double.delay(1), group(double.s(n) for n in range(3)).delay()
    many = group(double.s(n) for n in range(MANY + 1)).delay()
    whole = chord([double.s(1), double.s(2)])(double.s())
    early: list[Callable[[], Any]] = [
        lambda: single.get(timeout=60),
        lambda: app.AsyncResult(single.id).get(),
        lambda: several.get(timeout=60),
        lambda: many.get(timeout=60),
        lambda: list(several.iterate(timeout=60)),
        lambda: whole.get(timeout=60),
        lambda: asyncio.run(single.aget(timeout=60)),
        lambda: asyncio.run(several.aget(timeout=60)),
    ]
    late: list[Callable[[], Any]] = [  # by handles that were made before
        lambda: single.get(),
        lambda: several.get(timeout=60),
        lambda: many.get(timeout=60),
        lambda: asyncio.run(whole.aget(timeout=60)),
    ]

    with ThreadPoolExecutor(len(early)) as pool:
        waiting = [pool.submit(wait) for wait in early]
        wait_until(lambda: len(server.say("PUBSUB", "CHANNELS")) >= len(early))
        server.say("FLUSHALL")
        told = [type(one.exception(30)) for one in waiting]
    for wait in late:
        with pytest.raises(StoreLost, match="whether it has run is unknown"):
            wait()

    assert told == [StoreLost] * len(early)


def test_a_call_that_was_sent_after_the_server_was_emptied_is_waited_for(
    app: Liteq, server: RedisServer
) -> None:
    double = app.tasks["shop.double"]
    with pytest.raises(TimeoutError):
        double.delay(1).get(timeout=0.1)  # so that this process has seen the first store
    server.say("FLUSHALL")

    with pytest.raises(TimeoutError, match="queued"):
        double.delay(2).get(timeout=0.1)


TICK: dict[str, Any] = {"task": "shop.double", "schedule": 3_600.0, "args": (1,)}


def test_beats_declare_their_entries_anew_on_a_server_that_was_emptied(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    beats = []
    for name in ("leader", "standby"):
        app = Liteq("shop", broker=server.url, set_as_current=False)
        app.conf.beat_schedule = {"tick": TICK, "tock": TICK}
        beats.append(Beat(app, name=name))
        beats[-1].start()
        beats[-1].tick()
    app.schedules.pause("tock")
    app.schedules.add("made", task="shop.double", schedule=60)
    for beat in beats:
        beat.wake()
        beat.tick()
    assert "store is not the one" not in caplog.text
    server.say("FLUSHALL")

    for beat in beats:
        beat.wake()
        beat.tick()

    assert [entry.name for entry in app.schedules.list()] == ["tick", "tock"]
    assert "The periodic entries in the code are declared again" in caplog.text

    app.broker.remove_schedule("tick")
    for beat in beats:
        beat.wake()
        beat.tick()

    assert [entry.name for entry in app.schedules.list()] == ["tock"]


def test_a_beat_fires_again_after_a_server_that_keeps_nothing_was_restarted(
    app: Liteq, server: RedisServer
) -> None:
    app.conf.beat_schedule = {"tick": {**TICK, "schedule": 0.1}}
    service = Service(app, install_signals=False)
    thread = threading.Thread(target=service.run)
    thread.start()
    with Liteq("other", broker=server.url, set_as_current=False) as other:
        wait_until(other.broker.counts)
        server.kill()
        server.start()
        wait_until(other.broker.counts)
        server.say("FLUSHALL")
        wait_until(other.broker.counts)
    service.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_2_what_a_server_forgot_to_be_settled_is_not_held_for_ever(
    direct: RedisBroker, server: RedisServer
) -> None:
    worker = enlist(direct)
    forgotten, kept = held(direct, worker), held(direct, worker)
    once = held_once(direct, worker)
    assert direct.disown(worker, lambda: [kept]) == 0  # there was no outage
    server.say("SAVE")
    for lease in (forgotten, once):
        assert direct.settle(worker, lease, Succeeded(b"1"))
    server.kill()
    server.start()  # with what it had before
    assert direct.beat(worker)

    assert direct.disown(worker, lambda: [kept]) == 2

    (again,) = direct.claim(worker, ["default"], 9)
    assert again.id == forgotten.id
    assert [past.outcome for past in direct.attempts(again.id)] == ["lost"]
    assert direct.get([once.id])[once.id].state == "failed"  # it may have run: at most once
    assert direct.settle(worker, kept, Succeeded(b"1"))
    assert direct.settle(worker, again, Succeeded(b"1"))
    assert direct.disown(worker, list) == 0  # once for each outage


def test_2_a_server_that_forgot_its_workers_gives_nobody_the_number_of_another(
    direct: RedisBroker, server: RedisServer
) -> None:
    before = [enlist(direct, name=name) for name in ("first", "second")]
    server.say("FLUSHALL")
    direct.enqueue([make()])

    after = [enlist(direct, name=name) for name in ("second", "third", "first")]

    assert len({*before, *after}) == 5
    for worker in before:
        assert not direct.beat(worker)
        assert not direct.claim(worker, ["default"])
    direct.unregister(before[0])
    assert [one.id for one in direct.workers()] == after  # in the order in which they came


def test_2_a_server_with_an_older_state_gives_nobody_the_number_of_another(
    direct: RedisBroker, server: RedisServer
) -> None:
    known = enlist(direct, name="known")
    server.say("SAVE")
    forgotten = enlist(direct, name="forgotten")
    server.kill()
    server.start()  # with what it had before

    newcomer = enlist(direct, name="newcomer")

    assert newcomer not in (known, forgotten)
    assert direct.beat(known)
    assert not direct.beat(forgotten)


def test_a_lease_is_known_by_its_token_when_a_server_forgot(
    direct: RedisBroker, server: RedisServer
) -> None:
    worker = enlist(direct)
    first = held(direct, worker)
    server.say("SAVE")
    assert direct.settle(worker, first, Released())
    (second,) = direct.claim(worker, ["default"])
    server.kill()
    server.start()
    assert direct.beat(worker)

    assert direct.disown(worker, lambda: [second]) == 1  # the server knows of the first alone

    assert not direct.settle(worker, second, Succeeded(b"1"))
    assert [lease.id for lease in direct.claim(worker, ["default"], 9)] == [first.id]


def test_who_listens_to_a_server_that_came_back_empty_listens_on(
    app: Liteq, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    stream = app.events.Receiver()
    heard: list[int] = []
    stream.handlers["shop-told"] = lambda event: heard.append(event["number"])
    listening = threading.Thread(target=stream.capture, kwargs={"wakeup": False}, daemon=True)
    listening.start()
    wait_until(lambda: app.broker.emit([]))
    tell = app.events.Dispatcher().send
    for number in range(20):
        tell("shop-told", number=number)
    wait_until(lambda: len(heard) == 20)

    server.kill()
    server.start()
    wait_until(lambda: app.broker.emit([]))  # long before its lease was to be renewed
    tell("shop-told", number=20)
    wait_until(lambda: heard[20:] == [20])

    assert stream.missed == 1
    assert "has lost data" in caplog.text
    stream.stop()
    tell("shop-over")
    listening.join(10)
    assert not listening.is_alive()


def test_nothing_liteq_keeps_can_be_evicted_but_answers_of_calls(
    direct: RedisBroker, server: RedisServer
) -> None:
    worker = enlist(direct)
    held(direct, worker)
    first, then = make(), make(run_at=9e9, expires_at=9.1e9)
    direct.enqueue([first, then], [Edge(first.id, then.id, "success")])
    direct.put_schedule(schedule())
    keys = server.say("KEYS", "*")
    assert isinstance(keys, list)

    mortal = [key for key in keys if server.say("TTL", key) != -1]

    assert len(keys) > 10
    assert all(b"}:once:" in key for key in mortal)
    assert all(key.startswith(b"{liteq:default}:") for key in keys)


def test_a_bad_password_is_no_reason_to_try_again(start: Callable[..., RedisServer]) -> None:
    server = start("requirepass right")
    broker = RedisBroker(f"unix://:wrong@{server.path}")

    with pytest.raises(BrokerError) as raised:
        broker.enqueue([make()])

    assert not isinstance(raised.value, BrokerUnavailable)
    assert "wrong@" not in str(raised.value)
