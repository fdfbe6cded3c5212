"""The pages for operators: what they show, what their buttons do, and whom they let in."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import logging
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import redis_server
import uvicorn
from api import app_in_memory, forget_current
from hostile import HOSTILE, Hostile, forge
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount
from starlette.testclient import TestClient
from terminal import Project, Running, wait_until
from uvicorn.server import ServerState
from world import FakeClock

from liteq import Liteq, chain, failure, group
from liteq.exceptions import ImproperlyConfigured
from liteq.ids import new_id
from liteq.message import Message, Workflow
from liteq.outcome import Failed
from liteq.web import actions, asgi_app, steering
from liteq.web.actions import said
from liteq.web.serving import Connection
from liteq.worker import Worker

OWN = {"Sec-Fetch-Site": "same-origin"}
DEEP = "[" * 100_000
OTHERS = ("/tasks", "/tasks?dead=1", "/workflows", "/schedules", "/workers")


@pytest.fixture(params=["memory", "sqlite", "redis"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Liteq]:
    if request.param == "memory":
        with app_in_memory() as made:
            yield with_tasks(made)
        return
    url, options = f"sqlite://{tmp_path}/store", {"durability": "normal"}
    if request.param == "redis":
        redis_server.require()
        url = redis_server.shared()
        options = {"namespace": redis_server.namespace_of(tmp_path)}
    made = with_tasks(Liteq("shop", broker=url, broker_transport_options=options))
    yield made
    made.close()
    forget_current()


def with_tasks(app: Liteq) -> Liteq:
    app.task(name="shop.add")(lambda x, y=0: x + y)

    @app.task(name="shop.fail")
    def fail(why: str, password: str = "") -> None:
        raise ValueError(why)

    app.conf.beat_schedule = {"nightly": {"task": "shop.add", "schedule": 60.0, "args": (1,)}}
    return app


@pytest.fixture
def ask(app: Liteq) -> Iterator[TestClient]:
    with client_of(asgi_app(app, auth=None)) as client:
        yield client


def client_of(pages: Any, **options: Any) -> TestClient:
    return TestClient(pages, headers=OWN, **options)


def texts(page: str) -> str:
    """Return what a reader sees of a page."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def shown(client: TestClient, address: str) -> str:
    answer = client.get(address)
    assert answer.status_code == 200, answer.text
    return texts(answer.text)


def call(app: Liteq, name: str, *args: Any, **options: Any) -> str:
    return str(app.send_task(name, args, **options).id)


def die(app: Liteq, *ids: str) -> None:
    """Make dead letters of these."""
    worker = app.broker.register("w", ["default"], 1, {})
    error = failure.describe(RuntimeError("lost"))
    for lease in app.broker.claim(worker, ["default"], 100):
        assert lease.id in ids
        app.broker.settle(worker, lease, Failed(error, dead="nobody could run it"))


# What is shown


@pytest.mark.parametrize("address", ["/", *OTHERS])
def test_a_page_of_an_empty_store_says_so(ask: TestClient, address: str) -> None:
    told = shown(ask, address)

    assert re.search(r"Nothing|No task|No dead|no workflow|no periodic|No worker", told)


def test_the_overview_counts_what_there_is(app: Liteq, ask: TestClient) -> None:
    call(app, "shop.fail", "no stock")
    app.run_until_empty()
    call(app, "shop.add", 1)
    call(app, "shop.add", 2, countdown=600)
    app.broker.browse("queued")

    told = shown(ask, "/")

    assert "1 ready" in told
    assert "1 for later" in told
    assert "0 workers alive" in told
    assert re.search(r"default 1 0 1 0 0 0 0 .* Pause Purge", told)
    assert "failed shop.fail" in told
    assert "ValueError: no stock" in told


def test_a_list_is_narrowed_by_its_filters_and_goes_on_behind_its_end(
    app: Liteq, ask: TestClient
) -> None:
    ids = [call(app, "shop.add", number) for number in range(60)]
    other = call(app, "shop.fail", "x", queue="mail")

    first = ask.get("/tasks").text
    assert ids[0] not in first
    assert ids[-1] in first
    older = re.search(r'class="older" href="([^"]+)"', first)
    assert older is not None
    second = ask.get(html.unescape(older[1])).text
    assert ids[0] in second
    assert ids[-1] not in second
    assert 'class="older"' not in second
    for query in ("queue=mail", "task=*.fail", "task=shop.f*&state=queued&since=1h"):
        narrowed = ask.get(f"/tasks?{query}").text
        assert other in narrowed
        assert ids[-1] not in narrowed
    assert "No task matches" in shown(ask, "/tasks?state=failed")


def test_of_many_tasks_few_names_are_suggested_and_others_as_one_types(
    app: Liteq, ask: TestClient
) -> None:
    def suggested(address: str) -> list[str]:
        names = ask.get(address).text.rpartition('<datalist id="names">')[2]
        return re.findall(r'<option value="([^"]*)">', names.partition("</datalist>")[0])

    assert {"shop.add", "shop.fail"} <= set(suggested("/tasks"))
    assert "data-names" not in ask.get("/tasks").text  # they are all there
    for number in range(300):
        app.task(name=f"zoo.Feed{number:03}")(print)
    app.task(name='shop."<b>')(print)

    assert len(suggested("/tasks")) == 200
    assert "shop.&#34;&lt;b&gt;" in suggested("/tasks")
    assert 'data-names="/names"' in ask.get("/tasks").text
    assert suggested("/names?part=+feed29") == [f"zoo.Feed29{n}" for n in range(10)]
    assert len(suggested("/names?part=zoo")) == 200
    assert suggested("/names?part=liteq.") == []


@pytest.mark.parametrize(
    ("query", "advice"),
    [
        ("state=faild", "did you mean failed?"),
        ("since=soon", "'soon' is neither a span like 30m"),
        ("before=x", "'x' is not one"),
        ("before=99999999999999999999", "'99999999999999999999' is not one"),
        ("before=-1", "'-1' is not one"),
    ],
)
def test_a_filter_that_is_none_is_told_and_kept(
    ask: TestClient, query: str, advice: str
) -> None:
    answer = ask.get(f"/tasks?{query}")

    assert answer.status_code == 400
    assert advice in texts(answer.text)
    name, _, value = query.partition("=")
    assert name == "before" or f'name="{name}" value="{value}"' in answer.text


def test_a_task_tells_its_life_and_hides_its_secrets(app: Liteq, ask: TestClient) -> None:
    id = call(app, "shop.fail", "<script>alert(1)</script>\x1b[31m")
    app.tasks["shop.fail"].apply_async(("x",), {"password": "canary"}, task_id="a/b?c&d")
    app.run_until_empty()

    page = ask.get("/task", params={"id": id}).text
    assert "<script>alert" not in page
    assert "\x1b" not in page
    told = texts(page)
    assert "ValueError: <script>alert(1)</script>\\x1b[31m" in told
    assert "Traceback (most recent call last)" in told
    assert "attempt 1 failed" in told
    assert "Retry" in told
    secret = shown(ask, "/task?id=a/b%3Fc%26d")
    assert "canary" not in secret
    assert "a/b?c&d" in secret
    assert html.escape("/task?id=a%2Fb%3Fc%26d") in ask.get("/tasks").text


def test_the_page_of_a_call_that_is_not_sent_yet_says_so(app: Liteq, ask: TestClient) -> None:
    app.tasks["shop.fail"].update_state("soon", "PACKING")

    told = shown(ask, "/task?id=soon")

    assert "soon unsent" in told
    assert "Stored by shop.fail" in told
    assert "Queue" not in told
    assert "not sent yet: no call of this id is in the store" in told


def test_a_time_that_is_shown_means_the_same_in_a_filter(
    tmp_path: Path, in_new_york: None
) -> None:
    app = with_tasks(Liteq("shop", broker=f"sqlite://{tmp_path}/s", timezone="Asia/Kolkata"))
    id = call(app, "shop.add", 1)
    with client_of(asgi_app(app, auth=None)) as client:
        found = re.search(r'<time [^>]*title="([^"]+)"', client.get("/tasks").text)
        assert found is not None
        at = datetime.fromisoformat(found[1])
        for when in (at, at.replace(tzinfo=None)):
            assert id in client.get("/tasks", params={"since": str(when)}).text
            later = str(when + timedelta(hours=1))
            assert id not in client.get("/tasks", params={"since": later}).text
            assert id in client.get("/tasks", params={"until": later}).text
        assert f" {at.astimezone(app.timezone)} " in shown(client, f"/task?id={id}")
    assert found[1].endswith("+05:30")
    app.close()
    forget_current()


def test_a_workflow_is_drawn(app: Liteq, ask: TestClient) -> None:
    add, fail = app.tasks["shop.add"], app.tasks["shop.fail"]
    made = chain(add.s(1), group(add.si(2), fail.si("no stock")), add.si(3)).delay()
    app.run_until_empty()

    listed = shown(ask, "/workflows")
    assert "chain of 3" in listed
    assert "4 of 4" in listed
    told = shown(ask, f"/workflow?id={made.id}")
    assert re.search(r"├─ shop.add succeeded .* └─ shop.fail failed", told)
    assert "ValueError: no stock" in told
    assert "Retry what failed" in told


@pytest.mark.parametrize(
    "hostile",
    [one for one in HOSTILE if one.name.endswith(("is not JSON", "of a later version"))],
    ids=lambda one: one.name,
)
def test_a_message_that_cannot_be_read_hides_itself_alone(
    app: Liteq, ask: TestClient, hostile: Hostile
) -> None:
    bad = forge(hostile._replace(body=b'[["canary"], {}]'), "shop.add")
    app.broker.enqueue([bad])
    good = call(app, "shop.add", 1)

    for address in ("/tasks?state=queued", "/tasks?dead=1", "/"):
        page = shown(ask, address)
        assert "shop.add" in page
        app.run_until_empty()
    told = shown(ask, f"/task?id={bad.id}")
    assert "<unreadable: the envelope is damaged or of a later liteq>" in told
    assert "canary" not in told
    assert good in shown(ask, "/tasks")
    assert "1 task deleted" in press(ask, "/drop", id=bad.id, dead="1", sure="1")


@pytest.mark.parametrize("never", [float("inf"), 1e15, -1e18])
def test_one_bad_member_of_a_workflow_takes_no_page_down(
    app: Liteq, ask: TestClient, never: float
) -> None:
    broken = next(one for one in HOSTILE if one.name == "an envelope that is not JSON")
    bad, deep = forge(broken, "shop.add"), forge(broken._replace(envelope=DEEP), "shop.add")
    good = forge(broken._replace(envelope=None), "shop.add")
    good = good._replace(run_at=never, expires_at=float("inf"), limits=DEEP)
    app.broker.enqueue([bad, deep, good], [], Workflow(good.id, "flow"))

    for id in (bad.id, deep.id, good.id):
        assert "shop.add" in shown(ask, f"/task?id={id}")
    assert shown(ask, f"/workflow?id={good.id}").count("shop.add") >= 3
    assert good.id in shown(ask, "/tasks")
    assert "flow" in shown(ask, "/workflows")


# What is done


def press(client: TestClient, path: str, **fields: Any) -> str:
    """Press a button and follow it; return what the next page says."""
    answer = client.post(path, data=fields)
    assert answer.status_code == 200, answer.text
    return texts(answer.text)


def state(app: Liteq, id: str) -> str:
    record = app.broker.get([id]).get(id)
    return "gone" if record is None else record.state


def test_a_task_is_retried_and_cancelled_from_its_page(app: Liteq, ask: TestClient) -> None:
    id = call(app, "shop.fail", "no stock")
    app.run_until_empty()

    assert "1 task queued again" in press(ask, "/retry", id=id, alone="1")
    assert state(app, id) == "queued"
    assert "1 task revoked" in press(ask, "/cancel", id=id, alone="1")
    assert state(app, id) == "revoked"
    assert "0 tasks revoked" in press(ask, "/cancel", id=id, alone="1")


def test_chosen_tasks_are_steered_at_once_and_others_left_alone(
    app: Liteq, ask: TestClient
) -> None:
    ids = [call(app, "shop.fail", "x") for _ in range(3)]
    app.run_until_empty()

    assert "2 tasks queued again" in press(ask, "/retry", id=ids[:2])
    assert [state(app, id) for id in ids] == ["queued", "queued", "failed"]


def test_all_that_is_found_is_counted_and_asked_for_first(app: Liteq, ask: TestClient) -> None:
    failed = [call(app, "shop.fail", "x") for _ in range(3)]
    app.run_until_empty()
    waiting = [call(app, "shop.add", 1), call(app, "shop.add", 1, queue="mail")]

    asked = press(ask, "/retry", all="1", task="shop.*")
    assert "Run again: 3 tasks that are found now" in asked
    assert "task shop.*" in asked
    assert [state(app, id) for id in failed] == ["failed"] * 3
    assert "3 tasks queued again" in press(ask, "/retry", all="1", task="shop.*", sure="1")
    asked = press(ask, "/cancel", all="1", queue="mail")
    assert "Revoke: 1 task that is found now" in asked
    assert "1 task revoked" in press(ask, "/cancel", all="1", queue="mail", sure="1")
    assert [state(app, id) for id in waiting] == ["queued", "revoked"]
    # What nothing of the kind is among: not everything instead.
    assert "0 tasks revoked" in press(ask, "/cancel", all="1", state="failed", sure="1")
    assert state(app, waiting[0]) == "queued"
    assert "0 tasks queued again" in press(ask, "/retry", all="1", state="queued", sure="1")
    assert "0 tasks queued again" in press(ask, "/retry", sure="1")


def test_work_beyond_the_time_of_a_request_is_gone_on_with(
    app: Liteq, ask: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "BUDGET", -1.0)
    monkeypatch.setattr("liteq.operating.BATCH", 2)
    ids = [call(app, "shop.add", number) for number in range(5)]

    told = press(ask, "/cancel", all="1", sure="1")
    assert "2 tasks revoked. There is more: press the button again" in told
    press(ask, "/cancel", all="1", sure="1")
    assert "1 task revoked" in press(ask, "/cancel", all="1", sure="1")
    assert {state(app, id) for id in ids} == {"revoked"}


def test_what_a_signature_lets_expire_is_told_where_it_is_passed_over(
    app: Liteq, ask: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="liteq.web")
    ends = time.time() + 1.0
    late = Message(new_id(), "shop.add", b"[[1],{}]", signature="x", expires_at=ends)
    app.broker.enqueue([late])
    die(app, late.id)
    wait_until(lambda: time.time() > ends)

    told = "0 tasks queued again; 1 passed over, having expired by the signed time"
    assert told in press(ask, "/retry", id=late.id, alone="1")
    assert told in press(ask, "/retry", all="1", dead="1", sure="1")
    assert f"passed over: {late.id}: it has expired" in caplog.text


def test_dead_letters_are_run_again_or_deleted(app: Liteq, ask: TestClient) -> None:
    ids = [call(app, "shop.add", number) for number in range(3)]
    die(app, *ids)

    listed = shown(ask, "/tasks?dead=1")
    assert listed.count("nobody could run it") == 3
    assert "1 task queued again" in press(ask, "/retry", id=ids[0], dead="1")
    assert "Delete for good: 1 task" in press(ask, "/drop", id=ids[1], dead="1")
    assert state(app, ids[1]) == "failed"
    assert "1 task deleted" in press(ask, "/drop", id=ids[1], dead="1", sure="1")
    asked = press(ask, "/drop", all="1", dead="1", reason="nobody")
    assert "Delete for good: 1 task that is found now" in asked
    assert "1 task deleted" in press(ask, "/drop", all="1", dead="1", sure="1")
    assert [state(app, id) for id in ids] == ["queued", "gone", "gone"]


def test_a_queue_is_paused_resumed_and_purged(app: Liteq, ask: TestClient) -> None:
    id = call(app, "shop.add", 1, queue="mail")

    assert "mail paused" in press(ask, "/pause", queue="mail")
    assert next(one for one in app.queues() if one.name == "mail").paused
    assert "mail paused" not in press(ask, "/resume", queue="mail")
    assert "1 task that waits in the queue mail" in press(ask, "/purge", queue="mail")
    assert state(app, id) == "queued"
    assert "1 task deleted" in press(ask, "/purge", queue="mail", sure="1")
    assert state(app, id) != "queued"


def test_a_workflow_is_retried_and_cancelled(app: Liteq, ask: TestClient) -> None:
    add, fail = app.tasks["shop.add"], app.tasks["shop.fail"]
    made = chain(add.s(1), fail.si("no stock"), add.si(3)).delay()
    app.run_until_empty()

    assert "1 task queued again" in press(ask, "/workflow/retry", id=made.id)
    assert "2 tasks revoked" in press(ask, "/workflow/cancel", id=made.id)
    assert made.state == "REVOKED"


def test_schedules_are_shown_by_pages_and_found_by_name(app: Liteq, ask: TestClient) -> None:
    for number in range(120):
        app.schedules.add(f"job-{number:03}", "shop.add", 3600, args=(1,))

    first = ask.get("/schedules").text
    second = ask.get("/schedules?after=job-049").text
    last = ask.get("/schedules?after=job-099").text

    assert "/schedules?after=job-049" in first
    assert "job-050" not in first
    assert re.findall(r"<tr><td>(job-\d+)", second) == [f"job-{n:03}" for n in range(50, 100)]
    assert re.findall(r"<tr><td>(job-\d+)", last) == [f"job-{n:03}" for n in range(100, 120)]
    assert "More" not in last
    found = ask.get("/schedules?entry=job-*1").text
    assert re.findall(r"<tr><td>(job-\d+)", found) == [f"job-{n:03}" for n in range(1, 120, 10)]
    assert "No periodic task matches." in shown(ask, "/schedules?entry=absent")


def test_a_button_leaves_the_reader_on_the_page_of_the_schedules(
    app: Liteq, ask: TestClient
) -> None:
    app.schedules.add("job", "shop.add", 3600, args=(1,))

    answer = ask.post(
        "/schedule/pause",
        data={"name": "job", "entry": "j*", "after": "a"},
        follow_redirects=False,
    )

    assert answer.headers["location"] == "/schedules?entry=j%2A&after=a"
    assert app.schedules.get("job").paused


def test_a_schedule_is_run_paused_and_resumed(app: Liteq, ask: TestClient) -> None:
    app.schedules.reconcile()

    assert "nightly" in shown(ask, "/schedules")
    assert "enqueued" in press(ask, "/schedule/run", name="nightly")
    assert "nightly paused" in press(ask, "/schedule/pause", name="nightly")
    assert app.schedules.get("nightly").paused
    assert "nightly paused" not in press(ask, "/schedule/resume", name="nightly")
    answer = ask.post("/schedule/run", data={"name": "absent"})
    assert answer.status_code == 404
    assert "absent" in texts(answer.text)


def started(app: Liteq) -> tuple[Worker, threading.Thread]:
    """Start a worker in a thread."""
    ready = threading.Event()
    options: Any = {"concurrency": 1, "pool": "threads", "grace": 0.0, "hostname": "one@here"}
    worker = Worker(app, install_signals=False, on_ready=ready.set, **options)
    thread = threading.Thread(target=worker.run)
    thread.start()
    assert ready.wait(10)
    return worker, thread


def test_a_worker_is_steered(app: Liteq, ask: TestClient) -> None:
    worker, thread = started(app)
    try:
        told = shown(ask, "/workers")
        assert re.search(r"alive one@here .* 1 × threads", told)
        assert "asked for one more process" in press(ask, "/worker/grow", worker="one@here")
        assert "asked for one process fewer" in press(ask, "/worker/shrink", worker="one@here")
        answer = ask.post("/worker/restart", data={"worker": "one@here"})
        assert answer.status_code == 400
        assert "one@here refuses: the threads pool has no children" in texts(answer.text)
        asked = press(ask, "/worker/stop", worker="one@here")
        assert "Are you sure? The worker one@here stops when" in asked
        assert thread.is_alive()
        told = press(ask, "/worker/stop", worker="one@here", sure="1")
        assert "asked to stop" in told
        thread.join(10)
        assert not thread.is_alive()
    finally:
        worker.stop()
        thread.join(10)
    absent = press(ask, "/worker/grow", worker="two@here")
    assert "it has not answered, and obeys when it can" in absent


def test_a_worker_that_takes_no_orders_says_so(app: Liteq, ask: TestClient) -> None:
    app.conf.worker_enable_remote_control = "read-only"
    worker, thread = started(app)
    try:
        answer = ask.post("/worker/grow", data={"worker": "one@here"})
        assert answer.status_code == 400
        assert "one@here refuses" in texts(answer.text)
    finally:
        worker.stop()
        thread.join(10)


def test_a_change_is_logged_with_the_name_of_who_made_it(
    app: Liteq, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "liteq.web")
    id = call(app, "shop.add", 1)
    with client_of(asgi_app(app, auth="ada:secret")) as client:
        answer = client.post("/cancel", data={"id": id}, auth=("ada", "secret"))
    assert answer.status_code == 200

    assert f"ada: cancel: 1 ({id})" in caplog.text


# Whom they let in


def test_a_name_writes_no_line_of_its_own_into_the_log(
    ask: TestClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "liteq.web")

    ask.post("/pause", data={"queue": "mail\nroot: purge: 9 of queue bank"})
    ask.post("/cancel", data={"id": "x\nroot: drop: 9"})

    monkeypatch.setattr(steering, "PATIENCE", 0.01)
    ask.post("/worker/grow", data={"worker": "w\nroot: drop: 9"})

    assert not [one for one in caplog.messages if "\n" in one]
    assert len(caplog.messages) == 4


def test_what_is_steered_is_what_was_named_to_the_letter(app: Liteq, ask: TestClient) -> None:
    id = call(app, "shop.add", 1, task_id=" a ", queue="mail ")
    call(app, "shop.add", 1, queue="mail")

    assert "shop.add" in shown(ask, "/task?id=+a+")
    press(ask, "/purge", queue="mail ", sure="1")
    assert [one.name for one in app.queues() if one.length] == ["mail"]
    assert state(app, id) != "queued"
    for path in ("/pause", "/resume", "/purge", "/worker/grow", "/worker/stop"):
        answer = ask.post(path, data={"queue": "", "worker": "", "sure": "1"})
        assert answer.status_code == 400
        assert re.search("which (queue|worker) is meant", texts(answer.text))
    assert [one.name for one in app.queues() if one.paused] == []


def test_nothing_can_be_changed_where_one_may_only_look(app: Liteq) -> None:
    id = call(app, "shop.add", 1)
    with client_of(asgi_app(app, auth=None, read_only=True)) as client:
        for address in ("/", "/tasks", f"/task?id={id}"):
            page = client.get(address).text
            assert 'method="post"' not in page
            assert "nothing can be changed here" in page
        for path in actions.ACTIONS:
            answer = client.post(path, data={"id": id, "queue": "default", "sure": "1"})
            assert answer.status_code == 403
            assert "You may not do that" in texts(answer.text)
    assert state(app, id) == "queued"


def test_a_user_is_offered_what_the_user_may_do(app: Liteq) -> None:
    id = call(app, "shop.add", 1)

    def can(user: str, action: str) -> bool:
        return (user, action) == ("eve", "pause")

    with client_of(asgi_app(app, auth=lambda request: "eve", can=can)) as client:
        told = shown(client, "/")
        assert "Pause" in told
        assert "Purge" not in told
        assert client.post("/cancel", data={"id": id}).status_code == 403
        assert client.post("/pause", data={"queue": "default"}).status_code == 200


def test_a_password_is_asked_for() -> None:
    with (
        app_in_memory() as app,
        TestClient(asgi_app(app, auth="ada:se:cret")) as client,
    ):
        answer = client.get("/")
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic")
        assert client.get("/", auth=("ada", "wrong")).status_code == 401
        assert client.get("/", auth=("eve", "se:cret")).status_code == 401
        for odd in (b"Basic !!!", b"Basic", b"Bearer x", b"Basic \xe9"):
            assert client.get("/", headers=[(b"Authorization", odd)]).status_code == 401
        assert client.get("/static/style.css").status_code == 401
        assert client.get("/", auth=("ada", "se:cret")).status_code == 200


def test_a_function_may_refuse() -> None:
    def auth(request: Request) -> str | None:
        return request.headers.get("x-user")

    async def later(request: Request) -> str | None:
        return auth(request)

    with app_in_memory() as app:
        for function in (auth, later):
            with TestClient(asgi_app(app, auth=function)) as client:
                assert client.get("/").status_code == 403
                assert client.get("/", headers={"X-User": "ada"}).status_code == 200


def test_a_function_that_says_yes_or_no_lets_nobody_in() -> None:
    with app_in_memory() as app:
        for no in (False, "", None):
            answering: Any = lambda request, no=no: no  # noqa: E731
            with TestClient(asgi_app(app, auth=answering)) as client:
                assert client.get("/").status_code == 403
        answering = lambda request: True  # noqa: E731
        with (
            TestClient(asgi_app(app, auth=answering)) as client,
            pytest.raises(
                ImproperlyConfigured, match="auth returned True: it must return the user's name"
            ),
        ):
            client.get("/")


def test_what_would_allow_everything_is_refused_at_once() -> None:
    async def can(user: str, action: str) -> bool:
        return False

    allowing: Any = can
    with app_in_memory() as app:
        with pytest.raises(ImproperlyConfigured, match="cannot be async"):
            asgi_app(app, auth=None, can=allowing)
        with pytest.raises(ImproperlyConfigured, match=r"hosts=\['localhost'\]"):
            asgi_app(app, auth=None, hosts="localhost")


@pytest.mark.parametrize("auth", ["ada", "ada:", ":secret", ""])
def test_a_password_that_is_none_is_refused_at_once(auth: str) -> None:
    with app_in_memory() as app, pytest.raises(ImproperlyConfigured, match="user:password"):
        asgi_app(app, auth=auth)


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({}, True),  # no browser
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "http://testserver"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"}, False),
    ],
)
def test_a_form_of_another_site_changes_nothing(headers: dict[str, str], passes: bool) -> None:
    with app_in_memory() as app, TestClient(asgi_app(app, auth=None)) as client:
        answer = client.post("/pause", data={"queue": "mail"}, headers=headers)

        assert answer.status_code == (200 if passes else 403)
        assert [one.name for one in app.queues() if one.paused] == (["mail"] if passes else [])


def test_pages_are_given_under_their_own_names_alone() -> None:
    with app_in_memory() as app:
        pages = asgi_app(app, auth=None, hosts=["localhost", "::1", "127.0.0.1"])
        for host in ("localhost", "LOCALHOST:5555", "[::1]:5555", "[::1]", "127.0.0.1:80"):
            with TestClient(pages) as client:
                assert client.get("/", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example", "localhost.evil.example:5555", "", "10.0.0.1"):
            with TestClient(pages) as client:
                assert client.get("/", headers={"Host": host}).status_code == 421, host


def test_a_browser_is_told_what_it_may_do_with_a_page() -> None:
    with app_in_memory() as app, TestClient(asgi_app(app, auth=None)) as client:
        page = client.get("/")
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert "unsafe" not in page.headers["Content-Security-Policy"]
        assert page.headers["X-Frame-Options"] == "DENY"
        assert page.headers["Cache-Control"] == "no-store"
        assert not re.search(r"\son\w+=|style=|<script>|https?://(?!testserver)", page.text)
        for name in ("style.css", "live.js", "icon.svg"):
            file = client.get(f"/static/{name}")
            assert (file.status_code, file.headers["Cache-Control"]) == (
                200,
                "private, no-cache",
            )
            tag = {"If-None-Match": file.headers["ETag"]}
            assert client.get(f"/static/{name}", headers=tag).status_code == 304
        assert client.get("/static/../site.py").status_code == 404
        assert client.get("/healthz").text == "ok\n"


# What goes wrong


def test_what_is_not_there_is_said_to_be_not_there(ask: TestClient) -> None:
    for address, code in (
        ("/absent", 404),
        ("/task?id=absent", 404),
        ("/workflow?id=absent", 404),
        ("/workflow", 400),
        ("/retry", 405),
    ):
        answer = ask.get(address)
        assert answer.status_code == code, address
        assert "Traceback" not in answer.text
        assert 'role="alert"' in answer.text


def test_a_form_that_is_none_is_refused(ask: TestClient) -> None:
    assert ask.post("/retry", content=b"x" * 70_000).status_code == 413
    assert ask.post("/retry", content=b"\xff\xfe").status_code == 400
    assert ask.post("/retry", content=b"id=1&" * 2_000).status_code == 400


def test_a_store_that_cannot_be_read_is_said_to_be_so(tmp_path: Path) -> None:
    app = Liteq("shop", broker=f"sqlite://{tmp_path}/store")
    with client_of(asgi_app(app, auth=None)) as client:
        assert client.get("/").status_code == 200
        app.close()
        (tmp_path / "store" / "store.db").write_bytes(b"no database" * 1_000)
        answer = client.get("/")
    assert answer.status_code == 503
    assert "The store cannot be read now" in texts(answer.text)


def test_a_store_that_is_lost_is_said_to_be_so_and_nothing_is_done_to_it(
    tmp_path: Path, clock: FakeClock
) -> None:
    app = Liteq("shop", broker=f"sqlite://{tmp_path}/store", clock=clock)
    with client_of(asgi_app(app, auth=None)) as client:
        assert client.get("/").status_code == 200
        (tmp_path / "store").rename(tmp_path / "gone")
        done = client.post("/pause", data={"queue": "default"}, follow_redirects=False)
        assert done.status_code == 503
        assert "was deleted while in use" in texts(done.text)
        assert client.get("/").status_code == 200  # of the store that is there now
        (tmp_path / "store").rename(tmp_path / "gone too")
        clock.advance(1.0)
        seen = client.get("/")
        assert seen.status_code == 503
        assert "was deleted while in use" in texts(seen.text)
    app.close()


@pytest.mark.parametrize(
    "text", ["", "boom.1", "retry", "retry.x", "retry.-1", "retry." + "9" * 30, "retry.<b>"]
)
def test_an_address_says_nothing_but_what_was_done(text: str) -> None:
    assert said(text) == ""


# Where they are


def test_they_can_be_mounted_in_another_application(app: Liteq) -> None:
    id = call(app, "shop.add", 1)
    outer = Starlette(routes=[Mount("/admin/liteq", asgi_app(app, auth=None))])
    with client_of(outer, follow_redirects=False) as client:
        page = client.get("/admin/liteq/tasks").text
        links = re.findall(r'(?:href|src|action|formaction)="([^"]+)"', page)
        assert len(links) > 10
        assert all(link.startswith("/admin/liteq/") for link in links), links
        answer = client.post("/admin/liteq/cancel", data={"id": id, "alone": "1"})
        assert answer.status_code == 303
        target = urlsplit(answer.headers["Location"])
        assert target.path == "/admin/liteq/task"
        assert parse_qs(target.query) == {"id": [id], "said": ["cancel.1.0"]}
        current = re.findall(r'href="([^"]+)" aria-current', page)
        assert current == ["/admin/liteq/tasks"]


def test_what_is_no_file_of_theirs_leads_back_to_the_pages(app: Liteq) -> None:
    outer = Starlette(routes=[Mount("/admin/liteq", asgi_app(app, auth=None))])
    with client_of(outer) as client:
        answer = client.get("/admin/liteq/static/absent.css")
        links = re.findall(r'(?:href|src)="([^"]+)"', answer.text)

        assert answer.status_code == 404
        assert {client.get(link).status_code for link in links} == {200}


def test_the_command_serves_them_and_ends_at_a_signal(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.ok("call", "tasks.add", "-a", "[2, 3]")
    command = [sys.executable, "-m", "liteq", "web", "--port", "0", "--read-only"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=project.environ, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found is not None, line
        chromium = shutil.which("chromium")
        dump = _dumped(chromium, found[0], tmp_path) if chromium else _fetched(found[0])
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert "tasks.add" in dump
    assert "Traceback" not in rest
    assert "liteq: stopped" in rest
    assert process.returncode == 0


def test_the_command_logs_each_change_with_who_made_it(
    project: Project, start: Callable[..., Running]
) -> None:
    pages = start("web", "--port", "0", LITEQ_WEB_AUTH="ada:secret")
    pressed(address_in(pages.wait_for("http://")), "/pause", queue="mail", user="ada:secret")

    assert "INFO" in pages.wait_for(r"liteq\.web: ada: pause: queue mail")


def test_the_log_of_the_command_goes_where_it_is_told_to(
    project: Project, start: Callable[..., Running]
) -> None:
    words = ("web", "--port", "0", "--log-format", "json")
    pages = start(*words)
    url = address_in(pages.wait_for("http://"))
    pressed(url, "/pause", queue="mail")
    pages.wait_for("anybody: pause: queue mail")
    assert pages.end(signal.SIGINT) == 0
    records = [json.loads(line) for line in pages.lines]
    assert [one["logger"] for one in records] == ["liteq.web"] * 3

    pages = start(*words, "-f", "web.log", "-l", "warning")
    pressed(address_in(pages.wait_for("http://")), "/pause", queue="mail")
    assert pages.end(signal.SIGINT) == 0
    assert (project.folder / "web.log").read_text() == ""
    assert not [line for line in pages.lines if "pause" in line]


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits another process: Linux")
@pytest.mark.parametrize(("files", "shortages"), [(256, 0), (40, 1)])
def test_who_only_holds_connections_keeps_nobody_out(
    start: Callable[..., Running], files: int, shortages: int
) -> None:
    pages = start("web", "--port", "0", LITEQ_WEB_AUTH="ada:secret")
    address = urlsplit(address_in(pages.wait_for("http://")))
    resource.prlimit(pages.process.pid, resource.RLIMIT_NOFILE, (files, files))

    with ExitStack() as held:
        for _ in range(300):
            one = socket.create_connection((address.hostname or "", address.port or 0))
            held.enter_context(one).sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
        pressed(address.geturl(), "/pause", queue="mail", user="ada:secret")

    pages.wait_for("ada: pause: queue mail")
    assert pages.end(signal.SIGINT) == 0
    warned = [line for line in pages.lines if "WARNING" in line]
    assert len(warned) == shortages
    assert all("too many open files" in line and "it is 40" in line for line in warned)
    assert not any("Traceback" in line for line in pages.lines)
    assert not [line for line in pages.lines if "asyncio" in line]


async def _answer(_scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    head = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def served(kind: type[Connection]) -> AsyncIterator[int]:
    """Serve an answer with connections of this kind, at the port that is given."""
    config = uvicorn.Config(_answer, lifespan="off", log_config=None)
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: kind(config, state, {}), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for one in list(state.connections):
            one.transport.abort()
        await asyncio.sleep(0)  # a turn of the loop, in which they are closed


@asynccontextmanager
async def asked(port: int, sent: bytes) -> AsyncIterator[Any]:
    """Connect and send that much; give what reads and what writes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionResetError):
            await writer.wait_closed()


WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("answered", "half"),
    [
        (b"", b""),
        (b"", WHOLE[:-2]),
        (b"", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n12345678"),
        (WHOLE, b"G"),
    ],
)
def test_a_request_that_is_not_there_in_time_is_not_waited_for(
    answered: bytes, half: bytes
) -> None:
    class Hasty(Connection):
        patience = 0.05

    async def talk() -> None:
        async with served(Hasty) as port, asked(port, answered) as (reader, writer):
            if answered:
                await reader.readuntil(b"ok")
            writer.write(half)
            with suppress(ConnectionResetError):
                assert await reader.read() == b""

    asyncio.run(asyncio.wait_for(talk(), 4))


def test_a_connection_without_a_request_makes_room_for_another() -> None:
    class Few(Connection):
        most = 2

    async def talk() -> None:
        async with (
            served(Few) as port,
            asked(port, WHOLE[:-2]) as (oldest, _),
            asked(port, WHOLE[:-2]) as (older, writer),
            asked(port, WHOLE) as (new, _),
        ):
            await new.readuntil(b"ok")
            with suppress(ConnectionResetError):
                assert await oldest.read() == b""
            writer.write(b"\r\n")
            await older.readuntil(b"ok")

    asyncio.run(asyncio.wait_for(talk(), 4))


def address_in(line: str) -> str:
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found is not None, line
    return found[0]


def pressed(url: str, button: str, *, user: str = "", **fields: str) -> None:
    """Press a button of the pages that are served there."""
    import urllib.request

    headers = dict(OWN)
    if user:
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    asked = urllib.request.Request(url + button, urlencode(fields).encode(), headers)
    with urllib.request.urlopen(asked, timeout=10) as answer:
        assert answer.status == 200


def _dumped(chromium: str, url: str, folder: Path) -> str:
    """Return a page as a browser has it after its script has run."""
    done = subprocess.run(
        [
            *(chromium, "--headless=new", "--no-sandbox", "--disable-gpu"),
            *("--disable-dev-shm-usage", f"--user-data-dir={folder}/browser"),
            *("--enable-logging=stderr", "--virtual-time-budget=500", "--dump-dom"),
            f"{url}/tasks",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in done.stderr  # an error of the script, or what the policy forbids
    assert '<button id="live" type="button" aria-pressed="true"' in done.stdout
    return done.stdout


def _fetched(url: str) -> str:
    import urllib.request

    with urllib.request.urlopen(f"{url}/tasks", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "others could reach that, so say whom to let in"),
        (["--auth", "ada"], "auth must be user:password"),
        (["--host", "203.0.113.7", "--auth", "a:b"], "cannot listen at 203.0.113.7:5555"),
    ],
)
def test_the_command_refuses_what_would_not_be_safe_or_cannot_be(
    tmp_path: Path, words: list[str], message: str
) -> None:
    done = Project(tmp_path)("web", *words)

    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_shows_no_store_without_the_app_that_knows_what_is_secret(
    tmp_path: Path,
) -> None:
    project = Project(tmp_path)
    project.ok("call", "tasks.add", "-a", "[2, 3]", LITEQ_BROKER_URL="sqlite://other")
    (tmp_path / "tasks.py").unlink()

    done = project("-b", "sqlite://other", "web", "--port", "0")

    assert done.returncode == 7
    assert "no liteq app in" in done.stderr
    assert "name it with -A" in done.stderr


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("liteq.web.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)

    with app_in_memory() as app, pytest.raises(ImproperlyConfigured, match=r"liteq-queue\[web"):
        asgi_app(app, auth=None)
