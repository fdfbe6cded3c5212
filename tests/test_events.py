"""The live stream of what tasks and workers do: its events, its cost, its bounds."""

from __future__ import annotations

import copy
import json
import pickle
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import apsw
import pytest
import redis_server
from api import app_in_memory, forget_current, record
from hostile import Hostile, forge
from hypothesis import example, given
from hypothesis import strategies as st
from world import FakeClock, wait_until

from liteq import Liteq
from liteq.brokers.base import EVENTS_KEPT
from liteq.brokers.sqlite import _AROUND, SqliteBroker
from liteq.events import Event, EventReceiver, State
from liteq.events.snapshot import Polaroid, evcam
from liteq.events.state import Task
from liteq.events.state import Worker as StateWorker
from liteq.exceptions import StoreLost
from liteq.worker import Worker

Start = Callable[..., Worker]


@pytest.fixture(params=["memory", "sqlite", "redis"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Liteq]:
    if request.param == "memory":
        with app_in_memory() as made:
            yield made
        return
    url, options = f"sqlite://{tmp_path}/store", {"durability": "normal"}
    if request.param == "redis":
        redis_server.require()
        url = redis_server.shared()
        options = {"namespace": redis_server.namespace_of(tmp_path)}
    made = Liteq("shop", broker=url, broker_transport_options=options)
    yield made
    made.close()
    forget_current()


@pytest.fixture
def start(app: Liteq) -> Iterator[Start]:
    with ExitStack() as stack:

        def started(**options: Any) -> Worker:
            ready = threading.Event()
            options = {"concurrency": 1, "pool": "threads", "grace": 0.0, **options}
            worker = Worker(app, install_signals=False, on_ready=ready.set, **options)
            thread = threading.Thread(target=worker.run)
            thread.start()
            stack.callback(thread.join, 10)
            stack.callback(worker.stop)
            assert ready.wait(10)
            return worker

        yield started


class Listener:
    """A receiver in a thread, that keeps what it heard."""

    def __init__(self, app: Liteq) -> None:
        self.events: list[dict[str, Any]] = []
        self.receiver = app.events.Receiver(None, handlers={"*": self.events.append})
        self._thread = threading.Thread(target=self.receiver.capture, daemon=True)
        self._thread.start()
        wait_until(lambda: app.broker.emit([]))

    def types(self, uuid: str) -> list[str]:
        """Return what was told of a task; but not that a worker gave it back at once,
        having had no thread free for it after all."""
        told = [event["type"] for event in self.events if event.get("uuid") == uuid]
        while "task-rejected" in told:
            at = told.index("task-rejected")
            assert told[at - 1] == "task-received"
            del told[at - 1 : at + 1]
        return told

    def of(self, type: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == type]

    def close(self) -> None:
        self.receiver.stop()
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def listener(app: Liteq) -> Iterator[Listener]:
    made = Listener(app)
    yield made
    made.close()


def heard_by(worker: Worker) -> bool:
    return worker._dispatcher.heard


def test_the_life_of_a_task_is_told(app: Liteq, listener: Listener, start: Start) -> None:
    @app.task(name="shop.add")
    def add(x: int, y: int, *, password: str = "") -> int:
        return x + y

    @app.task(name="shop.fail", bind=True, max_retries=1)
    def fail(self: Any, token: str) -> None:
        try:
            raise ValueError(f"no stock for {token}")
        except ValueError as exc:
            raise self.retry(exc=exc, countdown=0) from exc

    worker = start(hostname="one@here")
    wait_until(lambda: heard_by(worker))
    good = add.delay(2, 3, password="hunter22222")
    bad = fail.delay("tok-1234567")

    assert good.get(timeout=10) == 5
    with pytest.raises(ValueError, match="no stock"):
        bad.get(timeout=10)
    wait_until(lambda: listener.types(bad.id)[-1:] == ["task-failed"])

    assert listener.types(good.id) == ["task-received", "task-started", "task-succeeded"]
    assert listener.types(bad.id) == [
        "task-received",
        "task-started",
        "task-retried",
        "task-received",
        "task-started",
        "task-failed",
    ]
    received, *_, succeeded = (e for e in listener.events if e.get("uuid") == good.id)
    assert (received["name"], received["args"]) == ("shop.add", "(2, 3)")
    assert received["kwargs"] == "{'password': '********'}"
    assert received["hostname"] == "one@here"
    assert {"timestamp", "utcoffset", "pid", "clock", "root_id", "retries"} <= received.keys()
    assert succeeded["result"] == "5"
    assert succeeded["runtime"] >= 0
    failed = listener.of("task-failed")[-1]
    assert "ValueError" in failed["exception"]
    assert "Traceback" in failed["traceback"]
    assert "hunter22222" not in repr(listener.events)
    assert "tok-1234567" not in repr(listener.events)


class OutOfStock(Exception):
    """Of a user's own, with arguments that are no texts."""


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (KeyError("again"), "KeyError('again')"),
        (ValueError("a", 1), "ValueError('a', 1)"),
        (FileNotFoundError(2, "no such file", "x"), "FileNotFoundError(2, 'no such file')"),
        (OutOfStock({"left": 0}, ("a",)), "OutOfStock({'left': 0}, ('a',))"),
        (RuntimeError(), "RuntimeError()"),
        (RuntimeError(threading), f"RuntimeError({str(threading)!r})"),  # what is not carried
    ],
)
def test_an_exception_is_told_by_its_repr(
    app: Liteq, listener: Listener, start: Start, error: Exception, shown: str
) -> None:
    @app.task(name="shop.fail")
    def fail() -> None:
        raise error

    worker = start()
    wait_until(lambda: heard_by(worker))
    fail.delay()
    wait_until(lambda: listener.of("task-failed"))

    assert [event["exception"] for event in listener.of("task-failed")] == [shown]


def test_what_cannot_be_read_is_told_and_its_arguments_are_not(
    app: Liteq, listener: Listener, start: Start
) -> None:
    app.task(name="shop.add")(lambda x: x)
    worker = start()
    wait_until(lambda: heard_by(worker))
    bad = forge(
        Hostile("later", b'[["secret"], {}]', "", envelope='{"nonsense":7,"v":1}'), "shop.add"
    )
    app.broker.enqueue([bad])
    wait_until(lambda: "task-rejected" in [one["type"] for one in listener.events])

    (received,) = listener.of("task-received")
    assert "unreadable" in received["args"]
    assert "secret" not in str(listener.events)
    assert app.tasks["shop.add"].delay(1).get(timeout=10) == 1  # the worker lives on


def test_nothing_is_told_of_a_call_that_no_worker_here_knows(
    app: Liteq, listener: Listener, start: Start
) -> None:
    app.task(name="shop.add")(lambda x: x)
    worker = start()
    wait_until(lambda: heard_by(worker) and worker._membership.standby is not None)

    unknown = app.send_task("shop.unknown")
    wait_until(lambda: record(app, unknown.id).state == "parked")
    known = app.tasks["shop.add"].delay(1)
    wait_until(lambda: listener.types(known.id)[-1:] == ["task-succeeded"])

    assert [event for event in listener.events if event.get("uuid") == unknown.id] == []


def test_revokes_are_told(app: Liteq, listener: Listener, start: Start) -> None:
    @app.task(name="shop.add")
    def add(x: int) -> int:
        return x

    gone = add.apply_async((1,), countdown=600)
    gone.revoke()
    late = add.apply_async((1,), expires=0.001)
    wait_until(lambda: app.clock.now() > (record(app, late.id).message.expires_at or 0.0))
    app.broker.maintain = lambda: False  # type: ignore[method-assign]  # who finds it first?
    start(hostname="one@here")
    wait_until(lambda: listener.types(late.id) == ["task-revoked"])

    assert listener.types(gone.id) == ["task-revoked"]
    flags = {e["uuid"]: (e["terminated"], e["expired"]) for e in listener.of("task-revoked")}
    assert flags == {gone.id: (False, False), late.id: (False, True)}


def test_a_terminated_run_is_told_with_its_signal(
    app: Liteq, listener: Listener, start: Start
) -> None:
    import asyncio

    begun = threading.Event()

    @app.task(name="shop.wait")
    async def wait() -> None:
        begun.set()
        await asyncio.sleep(1000)

    worker = start(pool="asyncio")
    wait_until(lambda: heard_by(worker))
    result = wait.delay()
    assert begun.wait(10)
    result.revoke(terminate=True)
    wait_until(lambda: "task-revoked" in listener.types(result.id))

    (event,) = listener.of("task-revoked")
    assert (event["terminated"], event["signum"], event["expired"]) == (True, "SIGTERM", False)


def test_workers_say_when_they_come_how_they_are_and_when_they_go(
    app: Liteq, listener: Listener, start: Start
) -> None:
    worker = start(hostname="one@here")
    wait_until(lambda: listener.of("worker-heartbeat"))
    worker.stop()
    wait_until(lambda: listener.of("worker-offline"))

    assert [e["hostname"] for e in listener.of("worker-online")] == ["one@here"]
    beat = listener.of("worker-heartbeat")[0]
    assert (beat["freq"], beat["active"], beat["processed"]) == (2.0, 0, 0)
    assert beat["sw_ident"] == "liteq"
    assert len(beat["loadavg"]) == 3


def test_who_listens_later_hears_of_workers_at_once(app: Liteq, start: Start) -> None:
    start(hostname="one@here")

    receiver = app.events.Receiver()
    names = set()
    for event in receiver.itercapture(timeout=10):
        names.add(event["type"])
        if "worker-heartbeat" in names:
            break

    assert "worker-online" in names


def test_events_are_switched_off_and_on(app: Liteq, listener: Listener, start: Start) -> None:
    @app.task(name="shop.add")
    def add(x: int) -> int:
        return x

    start(hostname="one@here")
    wait_until(lambda: listener.of("worker-heartbeat"))
    off = app.control.disable_events(reply=True, timeout=10)
    assert off == [{"one@here": {"ok": "task events disabled"}}]
    unheard = add.delay(1)
    unheard.get(timeout=10)
    assert app.control.enable_events(reply=True, timeout=10)
    heard = add.delay(1)
    wait_until(lambda: "task-succeeded" in listener.types(heard.id))

    assert listener.types(unheard.id) == []


def test_callers_tell_what_they_send_if_they_are_to(app: Liteq, listener: Listener) -> None:
    @app.task(name="shop.add")
    def add(x: int) -> int:
        return x

    add.delay(0)
    app.conf.task_send_sent_event = True
    result = add.apply_async((1,), queue="high")
    wait_until(lambda: listener.of("task-sent"))

    (event,) = listener.of("task-sent")
    assert (event["uuid"], event["name"], event["queue"]) == (result.id, "shop.add", "high")


def test_what_is_sent_is_told_with_the_time_before_it_is_in_the_store(
    app: Liteq, listener: Listener
) -> None:
    app.task(name="shop.add")(lambda x: x)
    app.conf.task_send_sent_event = True
    stored: list[float] = []
    real = app.broker.enqueue

    def enqueue(*args: Any) -> Any:
        stored.append(app.clock.now())
        return real(*args)

    app.broker.enqueue = enqueue  # type: ignore[method-assign]
    before = app.clock.now()
    app.tasks["shop.add"].delay(1)
    wait_until(lambda: listener.of("task-sent"))

    (event,) = listener.of("task-sent")
    assert before <= event["timestamp"] <= stored[0]


def test_events_of_your_own(app: Liteq, listener: Listener) -> None:
    with app.events.default_dispatcher(app=app) as dispatcher:
        assert dispatcher.send("shop-opened", doors=2)
        dispatcher.disable()
        assert not dispatcher.send("shop-closed")
    wait_until(lambda: listener.of("shop-opened"))

    assert listener.of("shop-opened")[0]["doors"] == 2


def test_a_task_sends_events_of_its_own(app: Liteq, listener: Listener, start: Start) -> None:
    @app.task(name="shop.bake", bind=True)
    def bake(self: Any, password: str, token: str) -> list[bool]:
        return [
            self.send_event("task-baking", pct=50, left=[1, {"secret": "of-the-oven"}]),
            self.send_event("task-baked", said=f"with {token}", type="x", uuid=7, retry=True),
            self.send_event("task-cooled", where=threading, much="x" * 5000, many=[8] * 5000),
        ]

    worker = start(hostname="one@here")
    wait_until(lambda: heard_by(worker))
    result = bake.delay("hunter22222", token="tok-1234567")
    assert result.get(timeout=10) == [True] * 3
    wait_until(lambda: listener.of("task-cooled"))

    (baking,), (baked,), (cooled,) = map(
        listener.of, ("task-baking", "task-baked", "task-cooled")
    )
    assert (baking["uuid"], baking["hostname"]) == (result.id, "one@here")
    assert (baking["pct"], baking["left"]) == (50, [1, {"secret": "********"}])
    assert (baked["said"], baked["uuid"]) == ("with ********", result.id)
    assert cooled["where"] == "<module>"
    assert len(cooled["much"]) < 1100
    assert len(cooled["many"]) < 1100
    assert "tok-1234567" not in str(listener.events)


def test_an_event_of_a_task_harms_nobody_when_none_listens(app: Liteq, start: Start) -> None:
    @app.task(name="shop.bake", bind=True)
    def bake(self: Any) -> bool:
        return bool(self.send_event("task-baking"))

    start()
    assert bake.delay().get(timeout=10) is False
    assert bake.apply().get() is False
    assert bake() is False


def test_a_receiver_ends_when_nothing_comes(app: Liteq) -> None:
    with pytest.raises(TimeoutError, match="no event"):
        app.events.Receiver(handlers={}).capture(limit=1, timeout=0.05)
    assert app.broker.emit([b"{}"]) is False  # it no longer listens


def _set_should_stop(receiver: EventReceiver) -> None:
    receiver.should_stop = True


@pytest.mark.parametrize("stop", [EventReceiver.stop, _set_should_stop])
def test_a_receiver_that_hears_nothing_ends_when_it_is_told_to(
    app: Liteq, stop: Callable[[EventReceiver], None]
) -> None:
    app.broker.poll_interval = 60.0  # type: ignore[attr-defined]  # it wakes for nothing else
    receiver = app.events.Receiver()
    listening = threading.Thread(target=receiver.capture, daemon=True)
    listening.start()
    wait_until(lambda: app.broker.emit([]))

    stop(receiver)
    listening.join(5)

    assert not listening.is_alive()
    assert app.broker.emit([]) is False  # it no longer listens
    receiver.capture()  # one that was stopped before ends at once


def test_who_listens_to_a_store_that_is_lost_is_told(tmp_path: Path, clock: FakeClock) -> None:
    with Liteq("shop", broker=f"sqlite://{tmp_path}/store", clock=clock) as app:
        stream = app.events.Receiver().itercapture(wakeup=False)
        sending = threading.Thread(target=lambda: wait_until(lambda: app.broker.emit([b"{}"])))
        sending.start()
        next(stream)
        sending.join()
        (tmp_path / "store").rename(tmp_path / "gone")
        clock.advance(1.0)

        with pytest.raises(StoreLost):
            next(stream)

        assert not (tmp_path / "store").exists()  # nobody says goodbye to another store


def test_a_slow_listener_is_told_what_it_missed_and_stops_nobody(
    app: Liteq, caplog: Any
) -> None:
    receiver = app.events.Receiver()
    stream = receiver.itercapture(timeout=10, wakeup=False)
    dispatcher = app.events.Dispatcher()
    listening = threading.Thread(target=lambda: wait_until(lambda: dispatcher.send("first")))
    listening.start()
    assert next(stream)["type"] == "first"
    listening.join()

    body = json.dumps(Event("shop-busy")).encode()
    app.broker.emit([body] * (EVENTS_KEPT + 500))
    for heard, _ in enumerate(stream, 1):
        if heard == EVENTS_KEPT:
            break

    assert receiver.missed == 500
    assert "500 events were dropped" in caplog.text
    stream.close()


def test_what_is_no_event_harms_nobody(app: Liteq) -> None:
    stream = app.events.Receiver().itercapture(timeout=10, wakeup=False)
    bodies = [b"no json", b"[]", b'{"type": 3}', b'{"type": "good"}']
    sending = threading.Thread(target=lambda: wait_until(lambda: app.broker.emit(bodies)))
    sending.start()

    assert [next(stream)["type"] for _ in bodies] == ["unreadable"] * 3 + ["good"]
    sending.join()
    stream.close()


# What it costs


def test_without_a_listener_a_worker_makes_not_one_statement_more(tmp_path: Path) -> None:
    """Of all statements of a worker that runs a hundred tasks, those that know of events
    and letters are the one question with which each step begins, and upkeep's."""
    app = Liteq("shop", broker=f"sqlite://{tmp_path}/store", set_as_current=False)
    broker = app.broker
    assert isinstance(broker, SqliteBroker)

    @app.task(name="shop.add")
    def add(x: int) -> int:
        return x

    for n in range(100):
        add.delay(n)
    made: list[str] = []
    connection = broker._database._handle().connection()
    connection.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: made.append(event["sql"]))
    worker = Worker(app, pool="solo", concurrency=1, burst=True, install_signals=False)
    worker.run()
    connection.trace_v2(0, None)
    app.close()

    steps = [sql for sql in made if sql == _AROUND]
    others = [
        sql
        for sql in made
        if re.search(r"(FROM|INTO|UPDATE) (event|listener|letter)", sql) and sql != _AROUND
    ]
    upkeep = [sql for sql in others if "delete_at" in sql]
    letters = [sql for sql in others if "FROM letter WHERE receiver" in sql]
    assert worker.totals == {"shop.add": 100}
    assert len(made) > 100
    assert steps
    assert len(letters) <= 1  # at the start: what came before there was a mailbox
    assert len(upkeep) <= 2 + worker.settled // 50
    assert len(others) == len(upkeep) + len(letters)


def test_while_somebody_listens_a_turn_of_the_loop_costs_one_append(
    app: Liteq, listener: Listener, start: Start
) -> None:
    @app.task(name="shop.add")
    def add(x: int) -> int:
        return x

    worker = start(hostname="one@here")
    wait_until(lambda: heard_by(worker))
    emit, sizes = app.broker.emit, []

    def counted(events: Any) -> bool:
        sizes.append(len(events))
        return emit(events)

    app.broker.emit = counted  # type: ignore[method-assign]
    results = [add.delay(n) for n in range(50)]
    for result in results:
        result.get(timeout=10)
    wait_until(lambda: len(listener.of("task-succeeded")) == 50)

    assert sum(sizes) >= 150
    assert len(sizes) < 150


# The picture


def test_a_state_is_drawn_from_events() -> None:
    state = State()
    common = {"hostname": "one@here", "pid": 7, "uuid": "a"}
    state.event(Event("worker-online", freq=2.0, **common))
    state.event(Event("task-received", name="shop.add", args="(1,)", **common))
    state.event(Event("task-started", **common))
    state.event(Event("task-succeeded", result="1", runtime=0.5, **common))
    state.event({**Event("task-sent", **{**common, "queue": "high"}), "timestamp": 1.0})

    task = state.tasks["a"]
    assert (task.name, task.state, task.result, task.runtime) == (
        "shop.add",
        "SUCCESS",
        "1",
        0.5,
    )
    assert (task.sent, task.queue, task.ready) == (1.0, "high", True)
    assert task.worker is state.workers["one@here"]
    assert task.info(("args", "result")) == {"args": "(1,)", "result": "1"}
    shown = task.as_dict()
    assert shown["worker"] is task.worker
    assert (shown["sent"], shown["failed"], shown["client"]) == (1.0, None, "one@here")
    assert list(shown) == list(Task._fields)
    assert [getattr(task.worker, name) for name in task.worker._fields][:2] == ["one@here", 7]
    assert [worker.hostname for worker in state.alive_workers()] == ["one@here"]
    assert [uuid for uuid, _ in state.tasks_by_type("shop.add")] == ["a"]
    assert [uuid for uuid, _ in state.tasks_by_worker("one@here")] == ["a"]
    assert (state.event_count, state.task_count, state.task_types()) == (5, 1, ["shop.add"])
    state.event(Event("worker-offline", **common))
    assert not list(state.alive_workers())


@pytest.mark.parametrize("place", range(4))
def test_a_call_that_is_told_of_late_is_as_far_as_it_was(place: int) -> None:
    """Its sender tells of it when the store has answered: it may run by then."""
    state = State()
    types = ["task-received", "task-started", "task-succeeded"]
    types.insert(place, "task-sent")

    for number, type in enumerate(types, 1):
        fields = {"uuid": "a", "hostname": "h", "timestamp": float(number)}
        state.event(Event(type, **fields, **({"queue": "high"} if type == "task-sent" else {})))

    task = state.tasks["a"]
    assert (task.state, task.sent, task.queue) == ("SUCCESS", float(place + 1), "high")


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ("received:2 started:1", "STARTED"),  # by precedence, whatever the clocks say
        ("started:2 received:1", "STARTED"),
        ("succeeded:3 started:2 received:1", "SUCCESS"),
        ("failed:3 retried:2", "FAILURE"),
        ("retried:3 received:2", "RECEIVED"),  # on a machine whose clock is behind
        ("rejected:3 received:2", "RECEIVED"),
        ("failed:3 received:4", "RECEIVED"),  # it was run again
        ("failed:3 succeeded:2", "SUCCESS"),
        ("started:1 baking:2 succeeded:3", "SUCCESS"),
        ("started:1 baking:2", "BAKING"),
        ("started:1 succeeded:2 baking:3", "SUCCESS"),
    ],
)
def test_a_state_is_that_of_what_comes_last_as_a_task_goes(told: str, state: str) -> None:
    drawn = State()

    for one in told.split():
        type, _, when = one.partition(":")
        drawn.event(Event(f"task-{type}", uuid="a", hostname="h", timestamp=float(when)))

    assert drawn.tasks["a"].state == state


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
_NAMES = st.sampled_from(sorted({*dir(Task("a")), *dir(StateWorker("a"))})) | st.text(
    max_size=5
)

_OTHERS = (
    "uuid",
    "timestamp",
    "hostname",
    "pid",
    "clock",
    "freq",
    "local_received",
    "loadavg",
    "name",
    "heartbeats",
)


@given(
    st.sampled_from(["task-", "worker-", ""]),
    _NAMES,
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys([*Task._info_fields, *_OTHERS], _ANYTHING),
    ),
)
@example("task-", "ready", {"uuid": "a", "hostname": "one@here"})
@example("task-", "event", {"uuid": "a", "hostname": "one@here"})
@example("task-", "sent", {"uuid": "a", "timestamp": 10**400, "clock": float("nan")})
@example("worker-", "heartbeat", {"hostname": "one@here", "freq": "2"})
def test_an_event_of_any_name_with_any_fields_leaves_a_state_whole(
    group: str, name: str, fields: dict[str, Any]
) -> None:
    state = State()
    common = {"uuid": "a", "hostname": "one@here", "timestamp": 1.0}
    state.event(Event("worker-online", **common))
    state.event(Event("task-received", name="shop.add", **common))

    state.event({"type": f"{group}{name}", **fields})
    state.event({"type": f"{group}{name}", **common, **fields})

    state.event(Event("worker-heartbeat", **common))
    state.event(Event("task-succeeded", result="1", **common))
    assert state.tasks["a"].as_dict()["result"] == "1"
    assert state.tasks["a"].ready
    assert "a" in [uuid for uuid, _ in state.tasks_by_time()]
    assert [uuid for uuid, _ in state.tasks_by_worker("one@here")] == ["a"]
    assert len(state.task_types()) <= len(state.tasks)
    assert len(list(state.alive_workers())) <= len(state.workers)
    assert repr([state, *state.tasks.values(), *state.workers.values()])
    assert pickle.loads(pickle.dumps(state)).tasks.keys() == state.tasks.keys()
    state.clear()


def test_a_worker_joins_each_time_that_it_comes_and_leaves_each_time_that_it_goes() -> None:
    said: list[str] = []
    state = State(
        on_node_join=lambda worker: said.append(f"+{worker.hostname}"),
        on_node_leave=lambda worker: said.append(f"-{worker.hostname}"),
    )

    for host in ("one", "two"):
        state.event(Event("task-received", uuid=host, hostname=host))  # before it was heard
        for type in ("online", "heartbeat", "offline", "online", "heartbeat"):
            state.event(Event(f"worker-{type}", hostname=host))
    state.event(Event("worker-offline", hostname="two"))
    state.event(Event("task-received", uuid="late", hostname="late"))
    state.event(Event("worker-heartbeat", hostname="late"))  # it came online before we did

    assert said == ["+one", "-one", "+one", "+two", "-two", "+two", "-two", "+late"]
    assert list(state.workers) == ["one", "late"]


def test_who_is_told_of_a_worker_may_wait_for_another_thread_that_looks() -> None:
    looked: list[Any] = []

    def look(worker: Any) -> None:
        other = threading.Thread(target=lambda: looked.append(list(state.itertasks())))
        other.start()
        other.join(10)

    state = State(on_node_join=look, on_node_leave=look)
    for type in ("worker-online", "worker-offline"):
        state.event({"type": type, "hostname": "w", "timestamp": 1.0})

    assert len(looked) == 2


def test_who_revokes_a_task_or_tells_of_it_is_no_worker_for_it() -> None:
    state = State()
    state.event(Event("task-received", uuid="a", hostname="one@here"))

    for type in ("task-revoked", "task-baking"):
        for uuid in "ab":
            state.event(Event(type, uuid=uuid, hostname="gen7@here"))
    state.event(Event("task-revoked", uuid="c", hostname="one@here"))  # it met it expired

    assert list(state.workers) == ["one@here"]
    workers = {uuid: task.worker for uuid, task in state.tasks.items()}
    assert workers == {
        "a": state.workers["one@here"],
        "b": None,
        "c": state.workers["one@here"],
    }


def test_a_state_tells_what_an_event_is_about_and_whether_that_is_new() -> None:
    state = State()
    task, worker = {"uuid": "a", "hostname": "one"}, {"hostname": "one"}

    assert state.event(Event("task-received", **task)) == ((state.tasks["a"], True), "received")
    assert state.event(Event("task-started", **task)) == ((state.tasks["a"], False), "started")
    known = state.event(Event("worker-heartbeat", **worker))
    assert known == ((state.workers["one"], False), "heartbeat")
    assert state.event(Event("shop-opened")) is None


def test_what_a_task_tells_of_itself_is_an_attribute_of_it_in_a_state() -> None:
    state = State()
    task = {"uuid": "a", "hostname": "one@here", "name": "shop.bake"}
    state.event({**Event("task-received", **task), "timestamp": 1.0})
    state.event({**Event("task-baking", percent=50, event="x", _x=1, **task), "timestamp": 2.0})
    state.event(Event("worker-heartbeat", hostname="one@here", pid=7, oven="hot"))
    baking: Any = state.tasks["a"]
    assert (baking.state, baking.percent, baking.worker.oven) == ("BAKING", 50, "hot")

    state.event({**Event("task-succeeded", **task), "timestamp": 3.0})
    late = {**Event("task-received", percent=0, floor=2, **task), "timestamp": 1.0}
    state.event(late)

    assert (baking.state, baking.percent, baking.floor) == ("SUCCESS", 50, 2)
    assert callable(baking.event)
    assert not hasattr(baking, "_x")


@pytest.mark.parametrize("copied", [lambda state: state, copy.deepcopy])
def test_a_state_tells_where_a_task_is_from_and_which_are_around_it(
    copied: Callable[[State], State],
) -> None:
    state = State()
    for n, type in enumerate(("sent", "received", "received")):
        above = {"root_id": "0", "parent_id": str(n - 1)} if n else {}
        state.event(
            Event(f"task-{type}", uuid=str(n), name="shop.add", hostname="one", pid=7, **above)
        )
    state.event(Event("worker-heartbeat", hostname="one", pid=7))

    state = copied(state)

    assert [uuid for uuid, _ in state.itertasks()] == ["0", "1", "2"]
    assert [uuid for uuid, _ in state.itertasks(limit=2)] == ["0", "1"]
    first, second, third = state.tasks.values()
    assert (first.origin, second.origin) == ("one", "one.7")
    assert (third.parent, third.root, first.parent) == (second, first, None)
    assert (first.children, third.children) == ([second], [])
    assert state.tasks_by_type["shop.add"] == {first, second, third}
    assert state.tasks_by_worker["one"] == {second, third}
    assert [uuid for uuid, _ in state.tasks_by_type("shop.add", 1, reverse=False)] == ["0"]
    assert pickle.loads(pickle.dumps(third)).parent is None  # one task is not all of them


class CountingState(State):
    """As Flower has one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.counter: Counter[str] = Counter()

    def event(self, event: Any) -> Any:
        self.counter[event["type"]] += 1
        return super().event(event)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))]
)
def test_a_state_is_kept_and_goes_on(copied: Callable[[State], State]) -> None:
    state = CountingState()
    fields = {"uuid": "a", "hostname": "one@here", "timestamp": 1.0}
    state.event(Event("task-received", exchange="", routing_key="high", **fields))

    again = copied(state)
    again.event(Event("task-succeeded", result="1", **fields))

    assert isinstance(again, CountingState)
    assert again.counter == {"task-received": 1, "task-succeeded": 1}
    task = again.tasks["a"]
    assert (task.state, task.exchange, task.routing_key) == ("SUCCESS", "", "high")
    assert task.worker is again.workers["one@here"]
    assert state.tasks["a"].state == "RECEIVED"


def test_a_state_keeps_so_many_tasks_and_no_more() -> None:
    seen: list[str] = []
    state = State(
        callback=lambda state, event: seen.append(event["type"]),
        max_tasks_in_memory=10,
        max_workers_in_memory=2,
    )

    for n in range(50):
        state.event(Event("task-received", uuid=str(n), hostname=f"{n}@here"))

    assert list(state.tasks) == [str(n) for n in range(40, 50)]
    assert len(state.workers) == 2
    assert len(seen) == 50
    state.event(Event("task-failed", uuid="45", hostname="h"))
    state.clear_tasks()
    assert "45" not in state.tasks
    state.clear(ready=False)
    assert not state.tasks


def test_a_camera_whose_picture_fails_takes_the_next_one(
    app: Liteq, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[str] = []

    class Camera(Polaroid):
        def on_shutter(self, state: State) -> None:
            tries.append("picture")
            if tries.count("picture") == 1:
                raise OSError("the database is away for a moment")

        def on_cleanup(self) -> None:
            tries.append("cleanup")
            if tries.count("cleanup") == 1:
                raise OSError("and so is the other one")

    with Camera(State(), freq=0.01, cleanup_freq=0.01, app=app):
        wait_until(lambda: tries.count("picture") > 2 and tries.count("cleanup") > 2)

    said = ["Camera failed; it is called again in 0.01 s"] * 2
    assert [record.getMessage() for record in caplog.records] == said
    assert "away for a moment" in caplog.text
    assert "so is the other one" in caplog.text


def test_a_camera_takes_pictures_and_forgets(app: Liteq) -> None:
    taken: list[int] = []
    enough = threading.Event()

    class Camera(Polaroid):
        clear_after = True

        def on_shutter(self, state: State) -> None:
            taken.append(state.event_count)
            if sum(taken) >= 2:
                enough.set()

    state = State()
    with Camera(state, freq=0.01, app=app):
        state.event(Event("shop-opened"))
        state.event(Event("shop-closed"))
        assert enough.wait(10)

    assert sum(taken) == 2
    with pytest.raises(TimeoutError):
        evcam(Camera, freq=0.01, app=app, timeout=0.05)
