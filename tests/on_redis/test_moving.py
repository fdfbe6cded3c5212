"""Moving a store: everything is there as it was, in its order, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
import redis
import redis_server
from redis_server import RedisServer
from world import FakeClock, Store, enlist, make

from liteq.brokers import connect, moving
from liteq.brokers.base import Broker, Schedule
from liteq.brokers.connection import DATABASE
from liteq.brokers.moving import move
from liteq.brokers.redis import RedisBroker
from liteq.brokers.sqlite import SqliteBroker
from liteq.brokers.values import ATTEMPTS_KEPT
from liteq.cli import main
from liteq.exceptions import BrokerError, ImproperlyConfigured
from liteq.limits import Limit, LimitInfo, write
from liteq.message import Edge, Graph, Workflow
from liteq.outcome import Failed, Replaced, Retried, Succeeded
from on_redis.test_same import STATES, Pair, _drawn, _ids, _plain

pytestmark = pytest.mark.redis


def visible(broker: Broker, ids: list[str]) -> dict[str, Any]:
    """Return what can be seen of a store; what only waits for a claim is ready."""
    ready = ("queued", "parked", "scheduled", "retrying")
    records = {id: _plain(record) for id, record in broker.get(ids).items()}
    for fields in records.values():
        if not fields["settled_at"]:
            fields.pop("worker", None)
            fields["started_at"] = None
        if fields["state"] in ready:
            fields["state"] = "ready"
    workflows = broker.workflows(100)
    shown = {state: sorted(_ids(broker.browse(state, limit=500))) for state in STATES}  # type: ignore[arg-type]
    shown["ready"] = sorted(id for state in ready for id in shown.pop(state))
    return {
        "records": records,
        "attempts": {id: broker.attempts(id) for id in ids},
        "shown": shown,
        "workflows": {flow.id: (flow.name, flow.created_at) for flow in workflows},
        "order": [flow.id for flow in workflows],
        "drawn": {
            flow.id: {
                key: getattr(one, "task", one) for key, one in _drawn(broker, flow.id).items()
            }
            for flow in workflows
        },
        "schedules": [entry._replace(revision=0) for entry in broker.schedules()],
    }


def finish(broker: Broker, clock: FakeClock, *queues: str) -> list[tuple[str, Any]]:
    """Run everything that is left, and say in which order and with what."""
    ran = []
    queues = queues or ("a", "b")
    worker = enlist(broker, *queues)
    for _ in range(40):
        while leases := broker.claim(worker, queues, 1):
            (lease,) = leases
            ran.append((lease.id, lease.inputs))
            broker.settle(worker, lease, Succeeded(lease.id.encode()))
        clock.advance(3)
        broker.beat(worker)
        while broker.maintain():
            pass
    broker.unregister(worker)
    return ran


@pytest.mark.parametrize("seed", range(6))
def test_a_store_that_has_moved_there_and_back_is_as_it_was(tmp_path: Path, seed: int) -> None:
    pair = Pair(tmp_path, seed + 1_000)
    pair.random.seed(seed)
    for _ in range(50):
        kinds = ("enqueue", "enqueue", "claim", "claim", "settle", "settle", "settle", "tick")
        getattr(pair, pair.random.choice(kinds))()
    origin, redis = (side.broker for side in pair.sides)
    redis.close()
    entry = Schedule("tick", b"{}", 5.0, last_due_at=1.0, last_id="x", total=3)
    origin.put_schedule(entry)
    for worker in pair.sides[0].workers:
        origin.unregister(worker)
    before = visible(origin, pair.ids)

    there = Store("redis", tmp_path / "there", pair.clock).open(max_deliveries=2)
    list(move(origin, there))
    list(move(origin, there))  # again: nothing is doubled
    back = Store("memory", tmp_path, pair.clock).open(max_deliveries=2)
    list(move(there, back))

    assert visible(there, pair.ids) == before
    assert visible(back, pair.ids) == before
    start = pair.clock.now()
    ran = []
    for broker in (origin, there, back):
        pair.clock._now = start
        ran.append(finish(broker, pair.clock))
    assert ran[0] == ran[1] == ran[2]
    assert len(ran[0]) > 3


def test_a_store_moves_to_where_a_worker_of_the_same_name_has_stopped_often(
    tmp_path: Path, store: Store
) -> None:
    here, there = store.open(), SqliteBroker(None, clock=store.clock)
    message = make()
    here.enqueue([message])
    worker = enlist(here, name="w")
    (lease,) = here.claim(worker, ["default"])
    here.settle(worker, lease, Retried(store.clock.now(), b"{}"))
    (lease,) = here.claim(worker, ["default"])
    here.settle(worker, lease, Succeeded(b"1"))
    here.unregister(worker)
    for _ in range(3):
        there.unregister(enlist(there, name="w"))

    list(move(here, there))

    assert there.get([message.id])[message.id].worker == "w"
    assert [attempt.worker for attempt in there.attempts(message.id)] == ["w"]
    here.close()
    there.close()


def test_the_attempts_of_a_call_that_was_often_retried_move(
    tmp_path: Path, store: Store
) -> None:
    here, there = store.open(), SqliteBroker(None, clock=store.clock)
    back = Store("redis", tmp_path / "back", store.clock).open()
    message = make()
    here.enqueue([message])
    worker = enlist(here, name="w")
    for _ in range(ATTEMPTS_KEPT + 3):
        (lease,) = here.claim(worker, ["default"])
        here.settle(worker, lease, Retried(store.clock.now(), b"{}"))
    here.unregister(worker)

    list(move(here, there))
    list(move(there, back))

    attempts = here.attempts(message.id)
    assert [attempt.number for attempt in attempts] == list(range(4, ATTEMPTS_KEPT + 4))
    assert there.attempts(message.id) == back.attempts(message.id) == attempts
    for broker in (there, back):
        worker = enlist(broker, name="w")
        (lease,) = broker.claim(worker, ["default"])
        broker.settle(worker, lease, Retried(store.clock.now(), b"{}"))
        assert broker.attempts(message.id)[-1].number == ATTEMPTS_KEPT + 4
    for broker in (here, there, back):
        broker.close()


@pytest.fixture
def here(store: Store) -> Iterator[Broker]:
    """A store of each kind."""
    opened = store.open()
    yield opened
    opened.close()


@pytest.fixture(params=["memory", "redis"])
def there(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[Broker]:
    """A store to move to; a second one on Redis, if the first is there."""
    folder = tmp_path / "there"
    opened = Store(request.param, folder, clock).open()
    yield opened
    opened.close()


def test_what_led_to_a_message_before_it_was_replaced_moves(
    tmp_path: Path, there: Broker, clock: FakeClock
) -> None:
    """Also from a store in which an earlier liteq has written this down once too often."""
    store = Store("sqlite", tmp_path, clock)
    here = store.open()
    first, then, new = make("first"), make("then"), make("new")
    edges = [Edge(new.id, first.id, "success"), Edge(first.id, then.id, "success")]
    here.enqueue([first, then], edges[1:], Workflow(then.id))
    worker = enlist(here)
    (lease,) = here.claim(worker, ["default"])
    here.settle(worker, lease, Replaced({}, Graph((new.pack(),), (tuple(edges[0]),))))
    (lease,) = here.claim(worker, ["default"])
    here.settle(worker, lease, Succeeded(b"1"))
    (lease,) = here.claim(worker, ["default"])
    here.settle(worker, lease, Replaced({}))
    here.unregister(worker)
    here.close()
    db = apsw.Connection(str(tmp_path / "store" / DATABASE))
    db.execute("UPDATE edge SET fires = 'was ' || fires WHERE fires LIKE 'was %'")
    db.close()
    back = SqliteBroker(None, clock=clock)

    list(move(store.open(), there))
    list(move(there, back))

    for broker in (there, back):
        assert sorted(broker.nodes(then.id)[1]) == sorted(edges)
        assert [id for id, _ in finish(broker, clock, "default")] == [first.id, then.id]


def test_an_edge_to_a_deleted_message_does_not_move_to_another_of_its_id(
    here: Broker, there: Broker, clock: FakeClock
) -> None:
    former, latter, then = make("former"), make("latter"), make("then")
    here.enqueue([former, then], [Edge(former.id, then.id, "success")])
    here.revoke([then.id])
    here.forget([then.id])
    here.enqueue([latter, then], [Edge(latter.id, then.id, "success")])

    list(move(here, there))

    _, _, (last, inputs) = finish(there, clock, "default")
    assert last == then.id
    assert [one.source for one in inputs] == [latter.id]


RATE = Limit("mails", interval=30.0)


def test_a_state_of_a_call_that_is_to_come_moves(
    here: Broker, there: Broker, clock: FakeClock
) -> None:
    here.store("a", "SENT", b"1", expires=60)
    here.store("b", "SENT", b"1", expires=None)
    sent = make(id="c")
    here.enqueue([sent])
    there.store("c", "SENT", b"1")
    list(move(here, there))

    assert there.get(["a"])["a"].early
    assert there.counts() == {"default": {"queued": 1}}
    clock.advance(61)
    while there.maintain():
        pass
    assert sorted(there.get(["a", "b"])) == ["b"]
    there.enqueue([make(id="b")])
    assert [id for id, _ in finish(there, clock, "default")] == ["c", "b"]


def test_what_operators_have_said_of_limits_moves(here: Broker, there: Broker) -> None:
    here.declare_limits({"shop.mail": [RATE], "shop.call": [RATE]})
    here.override_limit("mails", Limit("mails", interval=60.0, burst=2))
    here.override_limit("calls", Limit("calls", most=3), task="shop.call")
    here.override_limit("known", Limit("known", most=1), task="shop.call")
    here.override_limit("lifted", Limit("lifted"), task="shop.call")
    here.override_limit("gone", Limit("gone"), task="shop.call")
    here.override_limit("gone", None)
    there.override_limit("known", Limit("known", most=7), task="shop.mail")

    list(move(here, there))
    list(move(here, there))
    there.declare_limits({"shop.mail": [RATE]})

    assert there.limits() == [
        LimitInfo("calls", None, Limit("calls", most=3), ("shop.call",)),
        LimitInfo("known", None, Limit("known", most=7), ("shop.mail",)),
        LimitInfo("lifted", None, Limit("lifted"), ("shop.call",)),
        LimitInfo("mails", RATE, Limit("mails", interval=60.0, burst=2), ("shop.mail",)),
    ]


def test_12_a_rate_holds_over_a_move(here: Broker, there: Broker, clock: FakeClock) -> None:
    own = Limit("own", interval=30.0, per_worker=True)
    limits = {"shop.charge": [RATE], "shop.own": [own]}
    here.declare_limits(limits)
    here.enqueue([make(limits=write([("mails", key)])) for key in "aab"])
    here.enqueue([make("shop.own") for _ in range(2)])
    worker = enlist(here)
    for lease in here.claim(worker, ["default"], 10):
        here.settle(worker, lease, Succeeded(b"1"))
    here.unregister(worker)
    clock.advance(10)

    list(move(here, there))
    list(move(here, there))
    there.declare_limits(limits)
    worker = enlist(there)
    at_once = [lease.task for lease in there.claim(worker, ["default"], 10)]
    clock.advance(19)
    soon = there.claim(worker, ["default"], 10)
    clock.advance(1.1)
    then = [lease.task for lease in there.claim(worker, ["default"], 10)]

    assert at_once == ["shop.own"]
    assert soon == ()
    assert then == ["shop.charge"]


@pytest.mark.parametrize("expires", [86_400.0, 60.0])
def test_13_a_key_that_is_kept_after_the_end_is_kept_over_a_move(
    here: Broker, there: Broker, clock: FakeClock, expires: float
) -> None:
    done = make(unique_key="done", unique_for=600, result_expires=expires)
    failed = make(unique_key="failed", unique_for=600)
    alive = make(unique_key="alive", unique_for=600, queue="other")
    past = make(unique_key="past", unique_for=60)
    here.enqueue([done])
    here.enqueue([failed])
    here.enqueue([alive])
    here.enqueue([past])
    worker = enlist(here)
    for lease in here.claim(worker, ["default"], 10):
        outcome = Failed(b"{}") if lease.id == failed.id else Succeeded(b"1")
        here.settle(worker, lease, outcome)
    here.unregister(worker)
    clock.advance(100)
    while here.maintain():
        pass

    list(move(here, there))
    list(move(here, there))
    held = [there.holder(key) for key in ("done", "failed", "alive", "past")]
    worker = enlist(there)
    [lease] = there.claim(worker, ["other"])
    there.settle(worker, lease, Succeeded(b"1"))
    clock.advance(499)
    late = [there.holder(key) for key in ("done", "alive")]
    clock.advance(2)
    after = [there.holder(key) for key in ("done", "alive")]

    assert held == [done.id, None, alive.id, None]
    assert late == [done.id, alive.id]
    assert after == [None, None]


def test_13_a_key_that_another_message_holds_there_stops_a_move(
    here: Broker, there: Broker
) -> None:
    mine, other = make(unique_key="k"), make(unique_key="k")
    here.enqueue([mine])
    there.enqueue([other])

    with pytest.raises(BrokerError, match=f"{mine.id} and {other.id} .* revoke one of them"):
        list(move(here, there))
    there.revoke([other.id])
    list(move(here, there))
    list(move(here, there))

    assert there.holder("k") == mine.id
    assert there.counts() == {"default": {"queued": 1}}


@pytest.mark.parametrize("slice_size", [1, 100])
def test_13_a_key_that_was_handed_on_moves(
    here: Broker,
    there: Broker,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    slice_size: int,
) -> None:
    monkeypatch.setattr(moving, "SLICE", slice_size)
    first, second = make(unique_key="k"), make(unique_key="k", on_conflict="replace")
    here.enqueue([first])
    worker = enlist(here)
    here.claim(worker, ["default"])
    here.enqueue([second])
    here.unregister(worker)

    list(move(here, there))
    list(move(here, there))

    assert there.holder("k") == second.id
    there.revoke([second.id])
    assert there.holder("k") == first.id
    assert [id for id, _ in finish(there, clock, "default")] == [first.id]


def test_13_a_message_that_has_expired_there_stops_no_move(
    here: Broker, there: Broker, clock: FakeClock
) -> None:
    mine, other = make(unique_key="k"), make(unique_key="k", expires_at=clock.now() + 50)
    here.enqueue([mine])
    there.enqueue([other])
    clock.advance(100)

    list(move(here, there))

    assert there.get([other.id])[other.id].revoked == "expired"
    assert there.holder("k") == mine.id


def test_queues_that_are_paused_stay_so(here: Broker, there: Broker) -> None:
    here.pause("mail")
    there.pause("sms")

    list(move(here, there))

    assert [queue.name for queue in there.queues() if queue.paused] == ["mail", "sms"]


def test_a_store_with_workers_is_not_moved(tmp_path: Path, store: Store) -> None:
    here, there = store.open(), SqliteBroker(None, clock=store.clock)
    enlist(here, name="busy")

    with pytest.raises(BrokerError, match=r"stop the workers.*busy"):
        list(move(here, there))
    with pytest.raises(BrokerError, match=r"stop the workers.*busy"):
        list(move(there, here))

    here.close()
    there.close()


def test_the_command_moves_a_store_and_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    redis_server.require()
    url = redis_server.url_of(tmp_path)
    origin = SqliteBroker(str(tmp_path / "shop"), durability="normal")
    first, then = make(), make()
    edges = [Edge(first.id, then.id, "success")]
    origin.enqueue([first, then], edges, Workflow(then.id, "two"))
    origin.enqueue([make() for _ in range(500)])
    origin.close()

    status = main(["migrate", "--from", f"sqlite:///{tmp_path}/shop", "--to", url])

    assert status == 0
    assert capsys.readouterr().out == "502 messages in the new store\n"
    broker = connect(url)
    assert broker.counts() == {"default": {"queued": 501, "waiting": 1}}
    found = broker.workflow(then.id)
    assert found is not None
    assert found.name == "two"
    broker.close()


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where no store has been made yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shop"
    redis_server.require()
    return redis_server.url_of(tmp_path)


def test_where_no_store_is_none_is_made_by_leaving_it(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = f"sqlite:///{tmp_path}/other"

    first = main(["migrate", "--from", url, "--to", target])
    again = main(["migrate", "--from", url, "--to", target])

    assert first == again == 3
    assert "liteq: there is no store at " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b""])
def test_a_folder_without_a_store_stays_one(tmp_path: Path, content: bytes | None) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    if content is not None:
        (folder / "store.db").write_bytes(content)
    before = list(folder.iterdir())

    status = main(["migrate", "--from", f"sqlite://{folder}", "--to", f"sqlite://{folder}2"])

    assert status == 3
    assert list(tmp_path.iterdir()) == [folder]
    assert list(folder.iterdir()) == before


def test_a_store_in_memory_is_none_to_a_command(tmp_path: Path) -> None:
    assert main(["migrate", "--from", "memory://", "--to", f"sqlite:///{tmp_path}/shop"]) == 3


def test_a_store_is_not_moved_to_where_it_is(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = connect(url)
    broker.enqueue([make()])
    broker.close()
    (tmp_path / "link").symlink_to(tmp_path / "shop")
    also = url.replace("/shop", "/link")

    assert main(["migrate", "--from", url, "--to", also]) == 2
    assert "is the store to move from" in capsys.readouterr().err


def test_a_user_who_may_not_see_the_server_may_move_a_store(
    tmp_path: Path, start: Callable[..., RedisServer]
) -> None:
    server = start("user blind on >pw ~* &* +@all -info -config")
    url = f"unix://blind:pw@{server.path}?db=0"
    here, there = (RedisBroker(url, namespace=name) for name in ("here", "there"))
    here.enqueue([make()])

    with pytest.raises(ImproperlyConfigured, match="is the store to move from"):
        list(move(here, here))
    list(move(here, there))

    assert there.counts() == here.counts()
    here.close()
    there.close()


def test_a_copy_of_a_server_is_another_store(start: Callable[..., RedisServer]) -> None:
    server = start()
    here = RedisBroker(server.url)
    here.enqueue([make()])
    copy = start()
    with redis.Redis.from_url(server.url) as origin, redis.Redis.from_url(copy.url) as target:
        for key in origin.keys("*"):
            target.restore(key, 0, origin.dump(key))
    there = RedisBroker(copy.url)
    here.enqueue([make()])

    list(move(here, there))

    assert there.counts() == {"default": {"queued": 2}}
    here.close()
    there.close()
