"""Workers steered from afar, in this process: what they answer, and whom they obey."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import redis_server
from api import app_in_memory, forget_current, record
from hypothesis import given, settings
from hypothesis import strategies as st
from world import wait_until

from liteq import Liteq
from liteq.brokers.base import LETTERS_KEPT, Letter
from liteq.commands import (
    CODE_LIMIT,
    Command,
    Forged,
    Keys,
    Panel,
    Tickets,
    control_command,
    inspect_command,
)
from liteq.control import Inspect
from liteq.exceptions import ImproperlyConfigured, TaskRevokedError
from liteq.worker import Worker
from liteq.workers.steering import Steering

SECRET, OTHER = "a secret of some length", "another one, as long"

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
    """Start a worker in a thread; all are stopped at the end."""
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


class Gate:
    """A task that runs until it is let go."""

    def __init__(self, app: Liteq) -> None:
        self.open, self.begun = threading.Event(), threading.Event()

        @app.task(name="shop.hold", ignore_result=False)
        def hold(*args: Any, **kwargs: Any) -> str:
            self.begun.set()
            self.open.wait(10)
            return "held"

        self.task = hold

    def begin(self, *args: Any, **kwargs: Any) -> Any:
        result = self.task.delay(*args, **kwargs)
        assert self.begun.wait(10)
        return result


@pytest.fixture
def gate(app: Liteq) -> Iterator[Gate]:
    made = Gate(app)
    yield made
    made.open.set()


# Asking


def test_what_is_kept_in_the_store_may_be_broadcast_too(
    app: Liteq, start: Start, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    start(hostname="one@here")
    late = gate.task.apply_async(countdown=600)
    control = app.control

    control.broadcast("revoke", {"task_id": late.id})
    rates = control.broadcast("rate_limit", {"task_name": "shop.hold", "rate_limit": "1/m"})
    told = control.broadcast("revoke", task_id=late.id, reply=True)

    assert (late.state, rates) == ("REVOKED", [])
    assert told == [{"one@here": {"ok": "it is written in the store"}}]
    assert [limit.name for limit in app.broker.limits()] == ["shop.hold:rate"]
    control.broadcast("nonsense", reply=True, timeout=10)
    assert "received an unknown command: 'nonsense'" in caplog.text


def test_a_ping_returns_as_soon_as_all_have_answered(app: Liteq, start: Start) -> None:
    start(hostname="one@here")
    start(hostname="two@here")

    began = time.monotonic()
    replies = app.control.ping(timeout=60)

    assert time.monotonic() - began < 30
    assert sorted(map(repr, replies)) == [
        "{'one@here': {'ok': 'pong'}}",
        "{'two@here': {'ok': 'pong'}}",
    ]
    assert replies.silent == {}


def test_a_worker_answers_while_all_its_children_are_busy(
    app: Liteq, start: Start, gate: Gate
) -> None:
    start(hostname="one@here")
    gate.begin()

    assert app.control.inspect(timeout=10).ping() == {"one@here": {"ok": "pong"}}


def test_inspect_can_be_replaced_in_the_tests_of_a_program(app: Liteq) -> None:
    with mock.patch.object(app.control, "inspect") as inspect:
        inspect.return_value.active.return_value = {"one@here": []}
        assert app.control.inspect().active() == {"one@here": []}

    assert isinstance(app.control.inspect(timeout=10), Inspect)


def test_destination_pattern_and_limit_choose_who_answers(app: Liteq, start: Start) -> None:
    for name in ("one", "two", "three"):
        start(hostname=f"{name}@here")

    def names(**options: Any) -> set[str]:
        replies = app.control.ping(timeout=10, **options)
        return {name for reply in replies for name in reply}

    assert names(destination=["one@here"]) == {"one@here"}
    assert names(destination="two@here") == {"two@here"}
    assert names(pattern="t*") == {"two@here", "three@here"}
    assert names(pattern="(one|two)@", matcher="pcre") == {"one@here", "two@here"}
    assert len(app.control.ping(limit=2, timeout=10)) == 2
    unknown = app.control.ping(destination=["four@here", "one@here"], timeout=10)
    assert list(unknown) == [{"one@here": {"ok": "pong"}}]
    assert unknown.silent == {"four@here": "unknown: no worker has this name"}
    with pytest.raises(ValueError, match="glob"):
        names(pattern="x", matcher="fuzzy")


def test_workers_of_one_name_are_told_apart(app: Liteq, start: Start) -> None:
    start(hostname="same@here")
    start(hostname="same@here")

    answers = app.control.inspect(timeout=10).ping()

    assert all(name.startswith("same@here#") for name in answers)
    # In one process the number of the process is the same for both.
    assert len(app.control.ping(destination=["same@here"], timeout=10)) == 2


def test_without_workers_nobody_answers_and_nobody_waits(app: Liteq) -> None:
    began = time.monotonic()

    assert app.control.ping(timeout=30) == []
    assert app.control.inspect(timeout=30).active() == {}
    assert time.monotonic() - began < 10


def test_the_callback_gets_each_reply(app: Liteq, start: Start) -> None:
    start(hostname="one@here")
    heard: list[dict[str, Any]] = []

    app.control.inspect(timeout=10, callback=heard.append).ping()

    assert heard == [{"one@here": {"ok": "pong"}}]


# Looking


def test_what_runs_is_listed_as_celery_lists_it(app: Liteq, start: Start, gate: Gate) -> None:
    start(hostname="one@here")
    before = time.time()
    result = gate.begin(1, password="hunter22222")
    inspect = app.control.inspect(timeout=10)

    (info,) = inspect.active()["one@here"]

    assert info["id"] == result.id
    assert (info["name"], info["type"]) == ("shop.hold", "shop.hold")
    assert (info["args"], info["kwargs"]) == ([1], {"password": "********"})
    assert (info["hostname"], info["attempt"], info["retries"]) == ("one@here", 1, 0)
    assert info["acknowledged"] is False
    assert info["delivery_info"]["routing_key"] == "default"
    assert before - 1 <= info["time_start"] <= time.time() + 1
    assert info["worker_pid"] > 0
    assert inspect.reserved() == {"one@here": []}
    assert inspect.query_task(result.id, "unknown") == {
        "one@here": {result.id: ["active", info]}
    }
    assert inspect.query_task([result.id]) == inspect.query_task(result.id)


def test_what_waits_for_its_time_is_listed(app: Liteq, start: Start, gate: Gate) -> None:
    start(hostname="one@here")
    result = gate.task.apply_async((5,), countdown=600, priority=3)

    (found,) = app.control.inspect(timeout=10).scheduled()["one@here"]

    assert (found["priority"], found["request"]["id"]) == (3, result.id)
    assert found["request"]["args"] == [5]
    assert re.match(r"\d{4}-\d\d-\d\dT", found["eta"])


def test_the_other_commands_that_look(app: Liteq, start: Start, gate: Gate) -> None:
    worker = start(hostname="one@here", queues=["default", "high"])
    gate.open.set()
    assert gate.task.delay().get(timeout=10) == "held"
    gone = gate.task.apply_async(countdown=600)
    gone.revoke()
    inspect = app.control.inspect(timeout=10)

    def ask(command: str, **options: Any) -> Any:
        return getattr(inspect, command)(**options)["one@here"]

    wait_until(lambda: worker.settled == 1, within=20)
    stats = ask("stats")
    assert stats["total"] == {"shop.hold": 1}
    assert stats["pool"]["max-concurrency"] == 1
    assert stats["pid"] == worker.pid
    assert {"clock", "uptime", "rusage", "broker", "prefetch_count"} <= stats.keys()
    assert [queue["name"] for queue in ask("active_queues")] == ["default", "high"]
    assert ask("revoked") == [gone.id]
    assert ask("registered") == ["shop.hold"]
    assert inspect.registered("max_retries") == {"one@here": ["shop.hold [max_retries=3]"]}
    assert "broker_transport_options" in ask("conf") or "broker_url" in ask("conf")
    assert "worker_lease_timeout" in ask("conf", with_defaults=True)
    assert "liteq" in ask("report")["ok"]
    assert abs(ask("clock")["clock"] - time.time()) < 60


# Steering


def said(replies: Any) -> Any:
    (reply,) = replies
    (body,) = reply.values()
    return body


def test_queues_are_added_and_taken_away(app: Liteq, start: Start, gate: Gate) -> None:
    start(hostname="one@here")
    gate.open.set()
    result = gate.task.apply_async(queue="late")

    assert said(app.control.add_consumer("late", reply=True, timeout=10)) == {
        "ok": "add consumer late"
    }
    assert result.get(timeout=10) == "held"
    assert "already" in said(app.control.add_consumer("late", reply=True, timeout=10))["ok"]
    wait_until(lambda: app.broker.workers()[0].queues == ("default", "late"))

    app.control.cancel_consumer("default", reply=True, timeout=10)
    wait_until(lambda: app.broker.workers()[0].queues == ("late",))
    left = gate.task.delay()
    assert gate.task.apply_async(queue="late").get(timeout=10) == "held"
    assert left.state == "PENDING"


def test_a_pool_grows_and_shrinks(app: Liteq, start: Start) -> None:
    worker = start(hostname="one@here", concurrency=2)
    control = app.control

    assert said(control.pool_grow(2, reply=True, timeout=10)) == {"ok": "pool will grow"}
    wait_until(lambda: worker.pool is not None and worker.pool.alive() == 4)
    assert said(control.pool_shrink(3, reply=True, timeout=10)) == {"ok": "pool will shrink"}
    wait_until(lambda: worker.pool is not None and worker.pool.alive() == 1)
    assert "at least one child" in said(control.pool_shrink(reply=True, timeout=10))["error"]
    assert "above 0" in said(control.pool_grow(0, reply=True, timeout=10))["error"]
    assert "no children" in said(control.pool_restart(reply=True, timeout=10))["error"]
    for anew in ({"modules": ["shop"]}, {"reload": True}):
        answer = said(control.broadcast("pool_restart", anew, reply=True, timeout=10))
        assert "restart the workers for new code" in answer["error"]
    wait_until(lambda: app.broker.workers()[0].concurrency == 1)


@pytest.mark.parametrize("pool", ["threads", "asyncio"])
def test_what_a_pool_has_grown_by_is_used(app: Liteq, start: Start, pool: str) -> None:
    together = threading.Barrier(3)

    @app.task(name="shop.meet")
    def meet() -> int:
        return together.wait(20)

    start(hostname="one@here", pool=pool)
    app.control.pool_grow(2, reply=True, timeout=10)
    results = [meet.delay() for _ in range(3)]

    assert sorted(one.get(timeout=20) for one in results) == [0, 1, 2]


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
@pytest.mark.parametrize(
    ("method", "arguments", "says"),
    [
        ("pool_grow", {"n": 10**9}, "children at most"),
        ("pool_grow", {"n": 1.5}, "whole number"),
        ("pool_grow", {"n": True}, "whole number"),
        ("pool_grow", {"n": "2"}, "whole number"),
        ("pool_shrink", {"n": -(10**9)}, "above 0"),
        ("autoscale", {"max": 10**12, "min": 10**12}, "children at most"),
        ("autoscale", {"max": 10**12}, "children at most"),
        ("autoscale", {"max": 2.5, "min": 1.5}, "whole numbers"),
        ("autoscale", {"max": "x"}, "whole numbers"),
        ("cancel_consumer", {"queue": []}, "must be text"),
        ("add_consumer", {"queue": "\ud800"}, "must be text"),
        ("time_limit", {"task_name": "x", "hard": 1e300}, "0 seconds or more"),
    ],
)
def test_what_would_take_the_machine_or_makes_no_sense_is_refused(
    pool: str, method: str, arguments: dict[str, Any], says: str
) -> None:
    with app_in_memory() as app:  # not started: nothing is made of what is let through
        worker = Worker(app, pool=pool, concurrency=2, install_signals=False)
        letter = Keys(None).command(Command(method, arguments, "t", 0.0, "r1"), 0)

        (reply,) = Steering(worker).obey([letter])

        assert says in Keys(None).read_reply(reply.body, "t").body["error"]
        assert (worker.concurrency, worker.autoscaler) == (2, None)
        assert worker.queues == ("default",)


VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, -1, 10**12, 10**400, 1.5, math.nan, math.inf])
    | st.text(max_size=5)
    | st.sampled_from(["shop.add", "default", "\ud800", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
NAMES = st.sampled_from(
    [
        *("n", "max", "min", "queue", "task_name", "hard", "soft", "ids", "taskinfoitems"),
        *("with_defaults", "msg", "state", "builtins", "modules", "reload"),
    ]
)
COMMANDS = st.fixed_dictionaries(
    {
        "v": st.just(1),
        "method": st.sampled_from(sorted(Panel.meta)) | VALUES,
        "arguments": st.dictionaries(NAMES | st.text(max_size=3), VALUES, max_size=4) | VALUES,
        "ticket": st.just("t") | VALUES,
        "sent_at": st.just(0.0) | VALUES,
        "reply_to": st.just("r1") | st.just("../r1") | VALUES,
    }
)


@settings(max_examples=150)
@given(command=COMMANDS)
def test_no_command_can_end_a_worker(command: dict[str, Any]) -> None:
    with app_in_memory() as app:
        worker = Worker(app, pool="threads", concurrency=2, install_signals=False)

        replies = Steering(worker).obey([b"-\n" + json.dumps(command).encode()])
        app.broker.post(replies)

        assert worker.concurrency == 2
        for reply in replies:
            assert re.fullmatch("[A-Za-z0-9_-]+", str(reply.to))
            json.loads(reply.body.partition(b"\n")[2])


@given(letter=st.binary(max_size=200))
def test_no_letter_can_end_a_worker(letter: bytes) -> None:
    with app_in_memory() as app:
        worker = Worker(app, pool="threads", concurrency=2, install_signals=False)
        assert Steering(worker).obey([letter, b"-\n" + letter]) == []


def test_a_command_whose_reply_cannot_be_sent_is_answered_with_that(
    app: Liteq, start: Start
) -> None:
    @control_command(name="tell_in_circles")
    def tell_in_circles(state: Any) -> Any:
        told: list[Any] = []
        told.append(told)
        return told

    start()
    try:
        (reply,) = app.control.broadcast("tell_in_circles", reply=True, timeout=10)
    finally:
        Panel.meta.pop("tell_in_circles"), Panel.data.pop("tell_in_circles")

    (answer,) = reply.values()
    assert "cannot be sent" in answer["error"]


def test_autoscale_can_be_switched_on(app: Liteq, start: Start) -> None:
    worker = start(hostname="one@here")

    assert said(app.control.autoscale(4, 2, reply=True, timeout=10)) == {
        "ok": "autoscale now max=4 min=2"
    }
    wait_until(lambda: worker.concurrency == 2)
    assert "autoscaled" in said(app.control.pool_grow(reply=True, timeout=10))["error"]
    assert "1 ≤ min" in said(app.control.autoscale(1, 2, reply=True, timeout=10))["error"]


def test_time_limits_change_for_what_begins_later(app: Liteq, start: Start) -> None:
    @app.task(name="shop.busy")
    def busy() -> None:
        while True:
            pass

    start(hostname="one@here")
    control = app.control

    assert "ok" in said(control.time_limit("shop.busy", soft=0.05, reply=True, timeout=10))
    with pytest.raises(Exception, match="SoftTimeLimit"):
        busy.delay().get(timeout=10)
    assert "unknown task" in said(control.time_limit("no", 1, reply=True, timeout=10))["error"]
    wrong = control.time_limit("shop.busy", soft=-1, reply=True, timeout=10)
    assert "0 seconds or more" in said(wrong)["error"]
    assert "ok" in said(control.time_limit("shop.busy", 0, 0, reply=True, timeout=10))


def test_a_worker_shuts_down_when_it_is_told_to(app: Liteq, start: Start) -> None:
    start(hostname="one@here")
    start(hostname="two@here")

    app.control.shutdown(destination=["one@here"])

    wait_until(lambda: [info.name for info in app.broker.workers()] == ["two@here"])


def test_commands_of_the_user(app: Liteq, start: Start, caplog: Any) -> None:
    seen = []

    @control_command(args=[("n", int)], name="shop_stock")
    def stock(state: Any, n: int = 1) -> dict[str, Any]:
        seen.append((state.app, state.hostname, state.consumer))
        return {"ok": n * 2}

    @inspect_command
    def shop_broken(state: Any) -> None:
        raise KeyError("shelf")

    worker = start(hostname="one@here")
    try:
        assert said(app.control.broadcast("shop_stock", {"n": 4}, reply=True, timeout=10)) == {
            "ok": 8
        }
        assert seen == [(app, "one@here", worker)]
        broken = said(app.control.broadcast("shop_broken", reply=True, timeout=10))
        assert broken == {"error": "KeyError: 'shelf'"}
        wrong = said(app.control.broadcast("shop_stock", {"m": 4}, reply=True, timeout=10))
        assert "TypeError" in wrong["error"]
        assert (
            "unknown command"
            in said(app.control.broadcast("nonsense", reply=True, timeout=10))["error"]
        )
    finally:
        for name in ("shop_stock", "shop_broken"):
            del Panel.meta[name], Panel.data[name]


def test_purge_empties_the_queues_of_the_app(app: Liteq, gate: Gate) -> None:
    gate.task.delay()
    gate.task.apply_async(countdown=600)

    assert app.control.purge() == 2
    assert app.control.discard_all() == 0


# Who may steer


def test_a_worker_that_may_not_be_steered_is_only_looked_at(
    app: Liteq, start: Start, gate: Gate
) -> None:
    app.conf.worker_enable_remote_control = "read-only"
    worker = start(hostname="one@here")
    result = gate.begin()

    assert said(app.control.ping(timeout=10)) == {"ok": "pong"}
    for refused in (
        app.control.shutdown(reply=True, timeout=10),
        app.control.pool_grow(reply=True, timeout=10),
    ):
        assert "not allowed" in said(refused)["error"]
    assert result.revoke(terminate=True, signal="SIGUSR1") == "signalled"
    assert said(app.control.ping(timeout=10)) == {"ok": "pong"}
    assert worker.concurrency == 1
    gate.open.set()


def test_a_worker_without_remote_control_does_not_answer_and_is_no_stuck_one(
    app: Liteq, start: Start
) -> None:
    app.conf.worker_enable_remote_control = False
    start(hostname="one@here")

    replies = app.control.ping(timeout=0.3)

    assert replies == []
    assert replies.silent == {"one@here": "deaf: its worker_enable_remote_control is off"}
    assert [(one.name, one.state) for one in app.control.status()] == [("one@here", "alive")]


def test_only_who_knows_the_secret_steers(app: Liteq, start: Start, gate: Gate) -> None:
    app.conf.control_secret = SECRET
    worker = start(hostname="one@here")
    assert said(app.control.pool_grow(reply=True, timeout=10)) == {"ok": "pool will grow"}

    app.conf.control_secret = OTHER
    assert app.control.pool_grow(5, reply=True, timeout=0.3) == []
    app.conf.control_secret = None
    assert app.control.ping(timeout=0.3) == []
    app.conf.control_secret = [SECRET, OTHER]
    assert said(app.control.ping(timeout=10)) == {"ok": "pong"}
    assert worker.concurrency == 2


def test_a_run_is_ended_only_for_who_knows_the_secret(
    app: Liteq, start: Start, caplog: Any
) -> None:
    app.conf.control_secret = SECRET
    begun = threading.Semaphore(0)

    @app.task(name="shop.wait")
    async def wait() -> None:
        import asyncio

        begun.release()
        await asyncio.sleep(1000)

    start(hostname="one@here", pool="asyncio", concurrency=2)
    result = wait.delay()
    assert begun.acquire(timeout=10)

    app.broker.revoke([result.id], terminate="SIGTERM")
    app.broker.revoke([result.id], terminate=Keys(OTHER).stamp("SIGTERM", result.id))
    wait_until(lambda: "no control_secret" in caplog.text)
    assert said(app.control.ping(timeout=10)) == {"ok": "pong"}
    assert record(app, result.id).state == "running"
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=10)


def test_a_copied_letter_is_obeyed_once(app: Liteq, start: Start) -> None:
    app.conf.control_secret = SECRET
    worker = start(hostname="one@here")
    keys = Keys(SECRET)
    grow = Command("pool_grow", {"n": 1}, "ticket", app.clock.now())
    letters = [
        keys.command(grow, worker.id),
        keys.command(grow, worker.id),
        keys.command(grow._replace(ticket="old", sent_at=app.clock.now() - 3600), worker.id),
        keys.command(grow._replace(ticket="for another"), worker.id + 1),
        b"no letter",
        b"x" * (CODE_LIMIT + 1),
    ]

    app.broker.post([Letter(worker.id, letter, 60) for letter in letters])

    assert said(app.control.ping(timeout=10)) == {"ok": "pong"}
    assert worker.concurrency == 2


def test_a_full_box_is_said(app: Liteq) -> None:
    worker = app.broker.register("full@here", ["default"], 1, {})
    app.broker.post([Letter(worker, b"x", 60)] * LETTERS_KEPT)

    replies = app.control.ping(timeout=10)

    assert replies.silent["full@here"].startswith("stuck: too many commands")


def test_a_short_secret_is_refused(app: Liteq) -> None:
    with pytest.raises(ImproperlyConfigured, match="16 characters"):
        app.conf.control_secret = "short"
    with pytest.raises(ImproperlyConfigured, match="read-only"):
        app.conf.worker_enable_remote_control = "maybe"


# Letters


def test_tickets_are_forgotten_when_they_are_too_old_to_be_used() -> None:
    tickets = Tickets(300)
    command = Command("ping", {}, "one", 1000.0)

    tickets.check(command, 1001.0)
    with pytest.raises(Forged, match="already"):
        tickets.check(command, 1300.0)
    with pytest.raises(Forged, match="ago"):
        tickets.check(command, 1301.0)
    tickets.check(command._replace(ticket="two", sent_at=2000.0), 2000.0)
    assert list(tickets._seen) == ["two"]


@pytest.mark.parametrize(
    "letter",
    [
        b"",
        b"-\n",
        b"-\n[]",
        b'-\n{"v":1}',
        b'-\n{"v":2,"method":"ping"}',
        b"-\n" + b"[" * 99999,
    ],
)
def test_what_is_no_letter_is_no_command(letter: bytes) -> None:
    with pytest.raises(Forged):
        Keys(None).read_command(letter, 1)
    with pytest.raises(Forged):
        Keys(None).read_reply(letter, "ticket")
