"""The commands that look at workers and steer them, as a user types them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from processes.shop import children_of
from terminal import TASKS, Here, Project, Running, wait_until

from liteq.cli.exits import Exit

pytestmark = pytest.mark.process

STEERED = (
    TASKS
    + """
import time
from liteq.control import control_command, inspect_command


@app.task
def hold(password=""):
    time.sleep(60)


@control_command(args=[("n", int)], signature="<n>")
def shelve(state, n):
    "Put things on shelves."
    return {"ok": f"shelved {n + 1}"}


@inspect_command
def shelves(state):
    "List the shelves."
    return ["one", "two"]
"""
)


@pytest.fixture
def worker(project: Project, start: Callable[..., Running]) -> Running:
    project.write("tasks.py", STEERED)
    made = start(
        "worker", "-P", "threads", "-c", "2", "-n", "one@here", "-Q", "default,high",
        "--grace", "0",
    )  # fmt: skip
    made.wait_for("ready ")
    return made


def test_a_line_shows_the_queues_that_it_has_room_for(
    here: Here, project: Project, start: Callable[..., Running]
) -> None:
    queues = [f"queue-{number:03}" for number in range(220)]
    made = start("worker", "-P", "threads", "-n", "one@here", "-Q", ",".join(queues))
    made.wait_for("ready ")

    text = here.ok("status")
    (found,) = json.loads(here.ok("status", "--json"))

    five = ", ".join(queues[:5])
    assert made.lines[3].startswith(f"queues    {five} and 215 more · ")
    assert re.search("queue-000,queue-001,queue-002 and 217 more +[0-9]", text)
    assert found["queues"] == queues


def test_workers_are_shown_and_how_they_are(here: Here, worker: Running) -> None:
    text = here.ok("status")
    (found,) = json.loads(here.ok("status", "--json"))

    assert text.splitlines()[0].split()[:5] == ["name", "state", "pid", "pool", "active"]
    assert re.search(r"one@here +alive +\d+ +2 × threads +0 +default,high", text)
    assert found["pid"] == worker.process.pid
    assert (found["state"], found["concurrency"], found["queues"]) == (
        "alive",
        2,
        ["default", "high"],
    )
    assert {"uptime", "load", "processed", "version", "heartbeat_age"} <= found.keys()


def test_a_stuck_and_a_dead_worker_are_named(here: Here, worker: Running) -> None:
    try:
        while True:
            worker.process.send_signal(signal.SIGSTOP)
            stuck = here("status", "-t", "0.3")
            if stuck.returncode != Exit.BROKER:
                break  # else it was stopped in the middle of a transaction: not meant here
            worker.process.send_signal(signal.SIGCONT)
        asked = here("inspect", "ping", "-t", "0.3")
        as_json = here("inspect", "ping", "-t", "0.3", "--json")
    finally:
        worker.process.kill()
    worker.process.wait()
    dead = here("status")

    assert stuck.returncode == asked.returncode == dead.returncode == 69
    assert re.search(r"one@here +stuck", stuck.stdout)
    assert "one@here is stuck: process" in stuck.stderr
    assert "gave no answer within 0.3 s" in stuck.stderr
    assert "one@here: stuck: process" in asked.stderr
    assert asked.stdout == ""
    assert json.loads(as_json.stdout)["one@here"]["error"].startswith("stuck: ")
    assert re.search(r"one@here +dead", dead.stdout)
    assert "one@here is dead: its process" in dead.stderr


def test_workers_are_named_where_the_store_takes_no_question(
    here: Here, project: Project, start: Callable[..., Running]
) -> None:
    project.write(
        "tasks.py",
        TASKS.replace(
            'Liteq("shop")',
            'Liteq("shop", broker_transport_options={"busy_timeout": 0.3})',
        ),
    )
    worker = start("worker", "-P", "solo", "-n", "one@here")
    worker.wait_for("ready ")
    code = (
        "import apsw\ndb = apsw.Connection('shop.liteq/store.db')\n"
        "db.set_busy_timeout(10_000)\ndb.execute('BEGIN IMMEDIATE')\n"
        "print('held', flush=True)\ninput()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=project.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        done = here("status")
        as_json = here("status", "--json")
        watched = here("status", "--watch", "--times", "1")
        holder.kill()

    assert done.returncode == as_json.returncode == Exit.BROKER
    assert "one@here" in done.stdout
    assert "one@here" in watched.stdout
    # The worker waits for the lock as well, and whoever waits for the worker says so.
    busy = r"store\.db was locked by others for|others have been writing to .*store\.db"
    assert re.search(busy, watched.stdout)
    assert re.search(busy, done.stderr)
    assert json.loads(as_json.stdout)[0]["name"] == "one@here"


def test_without_workers_the_exit_code_is_69(here: Here) -> None:
    for words in (["status"], ["inspect", "active"], ["control", "pool_grow"]):
        done = here(*words)
        assert (done.returncode, done.stdout) == (69, "")
        assert "no worker" in done.stderr
    assert here("status", "--json").stdout.strip() == "[]"


def test_the_screen_is_drawn_so_often(here: Here, worker: Running) -> None:
    here.ok("call", "tasks.add", "-a", "[1, 2]", "--queue", "nobody")

    text = here.ok("status", "--watch", "--times", "2", "--interval", "0.1")

    assert text.count("1 of 1 workers alive, 0 tasks held, 0.0 run a second") == 2
    assert re.search(r"nobody +1", text)
    assert here("status", "--watch", "--json").returncode == 2


def test_a_live_screen_outlasts_a_server_that_is_away(here: Here) -> None:
    words = ("status", "--watch", "--times", "2", "--interval", "0.1")
    done = here(*words, "-b", "redis://127.0.0.1:1/0")

    assert done.returncode == 69
    assert done.stdout.count("redis://127.0.0.1:1/0 cannot be reached") == 2


def test_a_worker_that_never_reached_its_store_was_never_ready(here: Here) -> None:
    settings = ("broker_connection_retry=false",)
    done = here("worker", "-c", "1", "-b", "redis://127.0.0.1:1/0", *settings)

    assert done.returncode == 6
    assert "redis://127.0.0.1:1/0 cannot be reached" in done.stdout + done.stderr
    assert "ready" not in done.stdout + done.stderr


@pytest.mark.traced
def test_a_look_shows_what_runs_over_the_screen_of_a_terminal(
    here: Here, project: Project, worker: Running
) -> None:
    id = here.ok("call", "tasks.hold")
    wait_until(lambda: json.loads(here.ok("ls", "-s", "running", "--json")))
    here.ok("queues", "pause", "high")
    words = ["status", "--watch", "--times", "1"]

    text = here.ok(*words)
    drawn = project.at_terminal(*words, NO_COLOR="").replace("\r\n", "\n")

    assert re.search(rf"{id}  tasks.hold +default +one@here +[\d.]+ ", text)
    assert re.search(r"high .* paused", text)
    enter, leave = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
    assert drawn.startswith(f"{enter}\x1b[H")
    kept = drawn.partition(leave)[2]  # the last look stays when the screen is given back
    assert id in kept
    assert "\x1b[32malive" in kept


TWO = """
import threading
from liteq import Liteq, current_app, shared_task
from liteq.signals import worker_init

a, b = Liteq("a"), Liteq("b")
seen = []


@shared_task(name="library")
def library():
    print("received by", current_app.main, flush=True)


@worker_init.connect
def note(**_):
    print("told in", current_app.main, flush=True)


@a.task(name="look")
def look():
    thread = threading.Thread(target=lambda: seen.append(current_app.main))
    thread.start()
    thread.join()
    library.delay()
    print("sent by", current_app.main, "beside", seen, flush=True)
"""


@pytest.mark.process
@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "solo"])
def test_the_app_of_a_worker_is_the_current_one(project: Project, pool: str) -> None:
    project.write("two.py", TWO)
    project.write("more.py", "from liteq import Liteq\n\nmore = Liteq('more')\n")
    project.python("import two; two.look.delay()")

    words = ["worker", "--burst", "-P", pool, "-c", "1", "-I", "more", "-l", "error"]
    told = project.ok("-A", "two:a", *words)

    assert told.splitlines() == ["told in a", "sent by a beside ['a']", "received by a"]


def test_workers_are_asked(here: Here, worker: Running) -> None:
    id = here.ok("call", "tasks.hold", "-k", '{"password": "hunter22222"}')

    def active() -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(here.ok("inspect", "active", "-j"))[
            "one@here"
        ]
        return found

    (held,) = wait_until(active)
    assert held["id"] == id
    assert "hunter22222" not in here.ok("inspect", "active")
    assert "pong" in here.ok("inspect", "ping", "-d", "one@here")
    assert "tasks.add" in here.ok("inspect", "registered")
    assert id in here.ok("inspect", "query_task", id)
    assert json.loads(here.ok("inspect", "stats", "--json"))["one@here"]["pid"]
    assert "one\n    two" in here.ok("inspect", "shelves")
    assert "shelves" in here.ok("inspect", "--list")
    unknown = here("inspect", "ping", "-d", "two@here")
    assert unknown.returncode == 69
    assert "two@here: unknown: no worker has this name" in unknown.stderr


def test_workers_are_steered(here: Here, worker: Running) -> None:
    assert "pool will grow" in here.ok("control", "pool_grow", "2")
    wait_until(lambda: json.loads(here.ok("status", "--json"))[0]["concurrency"] == 4)
    assert "add consumer low" in here.ok("control", "add_consumer", "low")
    assert "shelved 4" in here.ok("control", "shelve", "3")
    assert "shelve <n>" in here.ok("control", "--list")
    assert "set successfully" in here.ok("control", "time_limit", "tasks.add", "1", "2")
    assert "set successfully" in here.ok("control", "time_limit", "tasks.add", "0", "0")
    assert "set successfully" in here.ok("control", "rate_limit", "tasks.add", "100/m")
    refused = here("control", "pool_shrink", "9")
    assert refused.returncode == 1
    assert "at least one child" in refused.stdout
    assert "shutting down" in here.ok("control", "shutdown")
    assert worker.end(None) == 0


def test_a_rate_of_a_task_that_nobody_knows_is_kept_and_doubted(here: Here) -> None:
    known = here("control", "rate_limit", "tasks.add", "100/m")
    doubted = here("control", "rate_limit", "tasks.ad", "100/m")

    assert (known.returncode, known.stderr) == (0, "")
    assert doubted.returncode == 0
    assert "the app has no task 'tasks.ad'" in doubted.stderr
    assert "`liteq limits reset tasks.ad:rate` takes it back" in doubted.stderr
    here.ok("limits", "reset", "tasks.ad:rate")
    assert "tasks.ad:rate" not in here.ok("limits")


_FIRST = ["unshare", "--pid", "--fork", "--kill-child"]  # process 1 of its own space


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*_FIRST, "true"], capture_output=True, check=False).returncode != 0,
    reason="this user may not make a process space",
)
@pytest.mark.parametrize("command", ["worker", "beat"])
def test_what_is_told_to_end_while_it_imports_its_app_ends_as_process_1_too(
    project: Project, command: str
) -> None:
    importing = project.folder / "importing"
    slow = "open('importing', 'w').close()\nimport time\nwhile True: time.sleep(0.01)\n"
    project.write("tasks.py", slow)
    with subprocess.Popen(
        [*_FIRST, sys.executable, "-m", "liteq", "-A", "tasks", command],
        cwd=project.folder,
        env=project.environ,
        stderr=subprocess.PIPE,
        text=True,
    ) as outside:
        try:
            wait_until(importing.exists)
            (inside,) = children_of(outside.pid)
            os.kill(inside, signal.SIGTERM)  # the kernel keeps it from one without a handler

            assert outside.wait(10) == 0
            assert outside.stderr is not None
            assert "Traceback" not in outside.stderr.read()
        finally:
            outside.kill()


def test_a_task_is_ended_from_the_command_line(here: Here, project: Project) -> None:
    waits = here.ok("call", "tasks.add", "-a", "[1, 2]")

    assert here.ok("control", "revoke", waits) == f"{waits}  revoked"
    assert json.loads(here.ok("control", "revoke", waits, "--json")) == {waits: "settled"}
    unknown = here("control", "terminate", "SIGTERM", "no-such-id")
    assert unknown.returncode == 3
    assert "no such task: no-such-id" in unknown.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect"], "name a command, or use --list"),
        (["control"], "name a command, or use --list"),
        (["inspect", "pingg"], "Did you mean 'ping'?"),
        (["inspect", "shutdown"], "workers know no inspect command 'shutdown'"),
        (["events", "--camera", "nowhere:Dump"], "--camera nowhere:Dump: No module named"),
        (["events", "--camera", "tasks:Dump"], "has no attribute 'Dump'; name it as module:"),
        (["events", "--camera", "Dump"], "--camera Dump: "),
        (["control", "pool_grow", "many"], "pool_grow: n: 'many' is not a whole number"),
        (["control", "pool_grow", "1", "2"], "takes at most 1 argument: "),
        (["control", "rate_limit", "tasks.add"], "rate_limit <task> <rate>"),
        (["control", "rate_limit", "tasks.add", "often"], "a rate is a number of starts"),
        (["control", "terminate", "SIGNAL", "id"], "there is no signal 'SIGNAL'"),
        (["inspect", "ping", "-t", "0"], "x>0"),
    ],
)
def test_wrong_words_are_wrong_usage(here: Here, words: list[str], message: str) -> None:
    done = here(*words)

    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


@pytest.mark.traced
def test_events_are_printed_as_they_come(
    here: Here, project: Project, worker: Running, start: Callable[..., Running]
) -> None:
    plain = start("events", "--limit", "3", "--type", "task-succeeded", "--type", "task-failed")
    lines = start("events", "--json", "--limit", "2", "--type", "task-failed")
    dump = start("events", "--dump", "--limit", "1", "--type", "task-received")

    def all_ended() -> bool:
        here("call", "tasks.add", "-a", "[1, 2]")
        here("call", "tasks.fail")
        return all(one.process.poll() is not None for one in (plain, lines, dump))

    wait_until(all_ended)
    texts = []
    for one in (plain, lines, dump):
        assert one.process.stdout is not None
        texts.append(one.process.stdout.read())
        assert (one.process.returncode, one.lines) == (0, [])

    assert len(texts[0].splitlines()) == 3
    assert re.search(r"^\d\d:\d\d:\d\d task-\w+ +one@here [0-9a-f-]{36} ", texts[0])
    failed = [json.loads(line) for line in texts[1].splitlines()]
    assert [event["exception"] for event in failed] == ["ValueError('no stock')"] * 2
    assert "routing_key=default" in texts[2]


def test_events_end_when_none_come(here: Here) -> None:
    done = here("events", "--timeout", "0.1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_camera_is_named_on_the_command_line(here: Here, project: Project) -> None:
    project.write(
        "cameras.py",
        "from liteq.events.snapshot import Polaroid\n"
        "class Printer(Polaroid):\n"
        "    def on_shutter(self, state):\n"
        "        print('events', state.event_count)\n",
    )

    assert "events 0" in here.ok("events", "-c", "cameras:Printer", "-F", "0.02", "-t", "0.1")


def test_what_is_logged_beside_events_goes_to_stderr(project: Project) -> None:
    project.write(
        "cameras.py",
        "import logging\n"
        "from liteq.events.snapshot import Polaroid\n"
        "class Teller(Polaroid):\n"
        "    def on_shutter(self, state):\n"
        "        logging.getLogger('shop').info('a picture')\n",
    )

    done = project("events", "-c", "cameras:Teller", "-F", "0.02", "-t", "0.1")

    assert re.search(r"INFO +\d+ shop: a picture", done.stderr)
    assert done.stdout == ""


@pytest.mark.traced
def test_a_worker_scales_itself(
    here: Here, project: Project, start: Callable[..., Running]
) -> None:
    project.write("tasks.py", STEERED.replace("time.sleep(60)", "time.sleep(0.3)"))
    for _ in range(6):
        here.ok("call", "tasks.hold")

    made = start("worker", "--autoscale", "3,1", "worker_autoscale_keepalive=0.2")
    made.wait_for("autoscale: from 1 to 3 children")
    made.wait_for(r"autoscale: from \d to 1 children")

    assert json.loads(here.ok("queues", "--json"))[0].get("queued", 0) == 0
    assert made.end() == 0
