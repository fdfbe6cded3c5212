"""`liteq ls`, `show`, `retry`, `cancel`, `watch` and `dead`, on each store."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import redis.asyncio  # noqa: F401 (or each command here would import it anew)
import redis_server
from hostile import HOSTILE, forge
from terminal import Here, Project, Running, wait_until

from liteq import failure
from liteq.app import Liteq
from liteq.cli.filters import moment_ago, states
from liteq.cli.output import ago, shown, span
from liteq.discovery import find_app
from liteq.ids import new_id
from liteq.message import Edge, Message, Workflow
from liteq.outcome import Failed, Succeeded
from liteq.schedules import crontab
from liteq.searches import UNFINISHED, instant

TASKS = """
import time

from liteq import Liteq

app = Liteq("shop"{options})


@app.task
def add(x, y):
    return x + y


@app.task(bind=True, max_retries=1, default_retry_delay=0)
def charge(self, order, password):
    raise self.retry(exc=ConnectionError(f"order {{order}}: no answer"))


@app.task
def log(text):
    raise ValueError(text)


@app.task(bind=True)
def export(self, rows):
    for row in range(rows):
        self.update_state(state="PROGRESS", meta={{"current": row + 1, "total": rows}})
    return rows
"""
EVIL = "\x1b[31mred\x07\u202egnp\x9b2J"


@pytest.fixture(params=["sqlite", "redis"])
def shop(request: pytest.FixtureRequest, project: Project, tmp_path: Path) -> Project:
    """A project on a store of each kind."""
    options = ""
    if request.param == "redis":
        redis_server.require()
        namespace = redis_server.namespace_of(tmp_path)
        options = (
            f", broker={redis_server.shared()!r}, "
            f'broker_transport_options={{"namespace": {namespace!r}}}'
        )
    project.write("tasks.py", TASKS.format(options=options))
    return project


@pytest.fixture
def app(shop: Project, here: Here) -> Callable[[], Liteq]:
    def find() -> Liteq:
        here.forget()
        return find_app("tasks").app

    return find


def send(app: Liteq, name: str, *args: Any, **options: Any) -> str:
    return app.tasks[f"tasks.{name}"].apply_async(args, **options).id


def die(app: Liteq, *reasons: str, queue: str = "default") -> list[str]:
    """Make dead letters, one for each reason."""
    broker, made = app.broker, []
    worker = broker.register("w", [queue], 1, {})
    for reason in reasons:
        message = Message(new_id(), "tasks.log", b'[["x"],{}]', queue)
        broker.enqueue([message])
        (lease,) = broker.claim(worker, [queue])
        error = failure.describe(ValueError("no"))
        broker.settle(worker, lease, Failed(error, dead=reason))
        made.append(message.id)
    broker.unregister(worker)
    return made


def listed(here: Here, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(here.ok(*words, "--json"))
    return found


# ls


def test_tasks_are_listed_the_latest_first_and_page_by_page(
    app: Callable[[], Liteq], here: Here
) -> None:
    shop = app()
    ids = [send(shop, "add", n, n) for n in range(3)]
    ids.append(send(shop, "add", 1, 1, countdown=600))

    first = here("ls", "-n", "3")
    rows = listed(here, "ls", "-n", "3")
    rest = listed(here, "ls", "--before", str(rows[-1]["number"]))

    lines = first.stdout.splitlines()
    assert lines[0].split() == ["id", "state", "task", "queue", "enqueued", "took", "what"]
    assert [line.split()[0] for line in lines[1:]] == ids[:0:-1]
    assert "scheduled" in lines[1]
    assert re.search(r"in \d+ min$", lines[1])
    assert first.stderr == f"liteq: there may be more: --before {rows[-1]['number']}\n"
    assert [row["id"] for row in rows] == ids[:0:-1]
    assert [row["id"] for row in rest] == ids[:1]
    assert rows[0]["state"] == "scheduled"
    assert rows[0]["run_at"].endswith("+00:00")


def test_tasks_are_listed_by_what_they_have_in_common(
    app: Callable[[], Liteq], here: Here
) -> None:
    shop = app()
    (dead,) = die(shop, "unknown task")
    add = send(shop, "add", 1, 2)
    log = send(shop, "log", "lost", queue="mail")
    chain = (shop.tasks["tasks.add"].s(1, 2) | shop.tasks["tasks.add"].s(3)).delay()

    def ids(*words: str) -> list[str]:
        return [row["id"] for row in listed(here, "ls", *words)]

    assert ids("-Q", "mail") == [log]
    assert ids("-t", "*.log", "-s", "PENDING") == [log]
    assert ids("--dead") == [dead]
    assert ids("-s", "failed") == [dead]
    assert ids("--workflow", chain.id) == [chain.id, chain.parent.id]
    assert ids("-s", "waiting") == [chain.id]
    assert ids("--since", "1h", "-s", "unfinished")[-1] == add
    assert ids("--until", "1h") == []
    nothing = here("ls", "--until", "1h")
    assert nothing.stderr == "liteq: no task matches\n"
    assert nothing.returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ls", "-s", "faild"], "there is no state 'faild'; did you mean failed?"),
        (["ls", "--since", "yesterday"], "neither a span like 30m, 2h, 7d nor a time"),
        (["retry"], "give ids, filters or --all"),
        (["retry", "x", "-t", "y"], "not both"),
        (["retry", "-s", "queued"], "only what has failed can be run again"),
        (["cancel", "-s", "succeeded"], "only what has not ended can be cancelled"),
        (["cancel", "x", "--terminate", "--signal", "KIL"], "there is no signal 'KIL'"),
        (["dead", "drop"], "give ids, filters or --all"),
    ],
)
def test_wrong_words_are_explained_and_end_with_2(
    project: Project, here: Here, words: list[str], message: str
) -> None:
    done = here(*words)

    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


def test_what_others_wrote_does_not_steer_the_terminal(
    app: Callable[[], Liteq], here: Here
) -> None:
    shop = app()
    id = new_id()
    shop.broker.enqueue([Message(id, f"tasks.{EVIL}", b'[["x"],{}]', f"q{EVIL}")])
    send(shop, "log", EVIL)
    here.burst()

    outputs = [here.ok("ls"), here.ok("show", id), here.ok("queues"), here.ok("ls", "--json")]
    outputs.append(here.ok("show", listed(here, "ls", "-t", "tasks.log")[0]["id"]))

    for output in outputs:
        assert not set(output) & set("\x1b\x07\u202e\x9b"), output
    assert "\\x1b[31mred\\x07\\u202egnp\\x9b2J" in outputs[1]
    assert json.loads(outputs[3])[1]["queue"] == f"q{EVIL}"


def test_an_id_that_others_chose_does_not_steer_the_terminal(
    app: Callable[[], Liteq], shop: Project, here: Here
) -> None:
    first, then, bad = (f"{name}{EVIL}" for name in ("first", "then", "bad"))
    broker = app().broker
    messages = [Message(id, f"tasks.{EVIL}", b"[[], {}]", f"q{EVIL}") for id in (first, then)]
    broker.enqueue(messages, [Edge(first, then, "success")], Workflow(first, EVIL))
    broker.enqueue([Message(bad, "tasks.log", b"{broken")])

    said = [
        (shop if "worker" in words else here)(*words)  # a worker may end its whole process
        for words in (
            ["result", first],
            ["watch", first, "--timeout", "0"],
            ["show", then],
            ["workflow", "show", first],
            ["worker", "--burst"],
            ["dead", "redrive", bad],
            ["worker", "--burst"],
            ["retry", bad],
            ["control", "revoke", first],
            ["call", f"tasks.{EVIL}"],
        )
    ]

    for done in said:
        assert not set(done.stdout + done.stderr) & set("\x1b\x07\u202e\x9b"), done
    escaped = r"\x1b[31mred\x07\u202egnp\x9b2J"
    assert f"first{escaped} has not ended: PENDING (queued in q{escaped}" in said[0].stderr
    assert f"first{escaped} has not ended: queued" in said[1].stderr
    assert f"then{escaped}" in said[2].stdout
    assert f"first{escaped}" in said[2].stdout
    assert f"first{escaped}" in said[3].stdout
    assert f"bad{escaped}" in said[5].stdout
    assert f"bad{escaped}" in said[7].stdout
    assert f"first{escaped}  revoked" in said[8].stdout


@pytest.mark.parametrize("never", [float("inf"), 1e15, -1e18])
def test_one_bad_member_of_a_workflow_takes_no_list_down(
    app: Callable[[], Liteq], here: Here, never: float
) -> None:
    broken = next(one for one in HOSTILE if one.name == "an envelope that is not JSON")
    bad, good = forge(broken, "tasks.log"), forge(broken._replace(envelope=None), "tasks.log")
    good = good._replace(run_at=never, expires_at=float("inf"), limits="[" * 100_000)
    app().broker.enqueue([bad, good], [], Workflow(good.id, "flow"))

    for words in (
        *(["show", id, *more] for id in (bad.id, good.id) for more in ([], ["--json"])),
        ["workflow", "show", good.id],
        ["workflow", "show", good.id, "--json"],
        ["workflow", "list"],
        ["ls"],
        ["ls", "--json"],
        ["inspect", "query_task", good.id],
    ):
        done = here(*words)
        assert "Traceback" not in done.stderr, words
        if words[0] != "inspect":
            assert done.returncode == 0, done.stderr
    assert json.loads(here.ok("show", good.id, "--json"))["run_at"] == "?"
    assert here.ok("workflow", "show", good.id).count("tasks.log") == 2


def test_a_schedule_that_is_never_due_takes_no_list_down(
    app: Callable[[], Liteq], here: Here
) -> None:
    shop = app()
    shop.schedules.add("night", "tasks.log", 3600.0, args=[1])
    [row] = shop.broker.schedules()
    for never in (float("inf"), 1e15, -1e18):
        shop.broker.put_schedule(row._replace(due_at=never))

        assert "night" in here.ok("schedule", "list")
        assert "night" in here.ok("schedule", "show", "night")
        [row] = shop.broker.schedules()


# show


def test_a_task_is_shown_with_its_attempts_and_without_its_secrets(
    app: Callable[[], Liteq], here: Here
) -> None:
    id = send(app(), "charge", 17, "swordfish")
    here.burst()

    page = here.ok("show", id[:30])
    told = json.loads(here.ok("show", id, "--json"))

    assert page.splitlines()[0] == f"tasks.charge  {id}  failed"
    assert "(17, '********')" in page
    assert "swordfish" not in page + json.dumps(told)
    assert re.search(r"attempt 1 retried after .* on .*: ConnectionError: order 17", page)
    assert "attempt 2 failed" in page
    assert page.count("Traceback (most recent call last)") == 1
    assert "Traceback" not in here.ok("show", id, "--no-traceback")
    assert [one["outcome"] for one in told["attempts"]] == ["retried", "failed"]
    assert told["attempts"][0]["started"] <= told["attempts"][1]["started"]
    assert told["error"]["type"] == "ConnectionError"
    assert told["status"] == "FAILURE"
    assert told["retries"] == 1


def test_a_node_of_a_workflow_is_shown_with_what_it_waits_for(
    app: Callable[[], Liteq], here: Here
) -> None:
    shop = app()
    chain = (shop.tasks["tasks.add"].s(1, 2) | shop.tasks["tasks.add"].s(3)).delay()

    page = here.ok("show", chain.id)
    told = json.loads(here.ok("show", chain.id, "--json"))
    here.burst()

    assert f"{chain.parent.id}  tasks.add  queued" in page
    assert "waiting for others" in page
    assert told["inputs"] == [{"id": chain.parent.id, "name": "tasks.add", "state": "queued"}]
    assert told["workflow"] == chain.id
    assert re.search(r"result +6\n", here.ok("show", chain.id))


def test_an_id_that_is_not_there_or_not_clear_ends_with_3(
    app: Callable[[], Liteq], here: Here
) -> None:
    broker = app().broker
    broker.enqueue([Message(id, "tasks.add", b"[[1,2],{}]") for id in ("ab-1", "ab-2")])

    unknown, unclear = here("show", "nothing"), here("show", "ab")

    assert unknown.returncode == unclear.returncode == 3
    assert "no task has the id 'nothing'" in unknown.stderr
    assert "begins more than one id: ab-1, ab-2; give more of it" in unclear.stderr
    assert here("show", "ab-1").returncode == 0
    assert here("watch", "nothing").returncode == 3


# retry and cancel


def test_failed_tasks_are_run_again_by_id_and_by_what_they_have_in_common(
    app: Callable[[], Liteq], here: Here
) -> None:
    shop = app()
    failed = [send(shop, "log", "no") for _ in range(3)]
    fine = send(shop, "add", 1, 2)
    here.burst()

    assert here.ok("retry", failed[0]) == failed[0]
    assert here("retry", fine).returncode == 3
    counted = here("retry", "-t", "*.log", "--dry-run")
    refused = here("retry", "-t", "*.log", stdin="n\n")
    none = here("retry", "-t", "*.add")
    done = here("retry", "--all", stdin="y\n")

    assert counted.stderr == "liteq: 2 tasks; nothing was done\n"
    assert counted.stdout == ""
    assert "Retry 2 tasks?" in refused.stderr
    assert refused.stderr.endswith("liteq: nothing was done\n")
    assert refused.returncode == 1
    assert none.stderr == "liteq: 0 tasks; nothing was done\n"
    assert (done.returncode, done.stdout) == (0, "2\n")
    assert len(listed(here, "ls", "-s", "queued")) == 3


def test_tasks_are_cancelled_by_id_and_by_what_they_have_in_common(
    app: Callable[[], Liteq], here: Here
) -> None:
    shop = app()
    one, two, later = (send(shop, "add", n, n) for n in range(3))
    delayed = send(shop, "add", 1, 1, countdown=600)
    mail = send(shop, "add", 1, 1, queue="mail")

    assert here.ok("cancel", one) == "1 revoked"
    again = here("cancel", one)
    counted = here("cancel", "-Q", "default", stdin="n\n")
    assert here.ok("cancel", "-s", "scheduled", "-y") == "1 revoked"
    assert here.ok("cancel", "--all", "--yes") == "3 revoked"

    assert again.returncode == 3
    assert again.stdout == "1 over already\n"
    assert "Cancel 3 tasks (2 queued, 1 scheduled)?" in counted.stderr
    states = {row["id"]: row["state"] for row in listed(here, "ls")}
    assert states == dict.fromkeys((one, two, later, delayed, mail), "revoked")


def test_what_was_stored_for_a_call_that_is_not_sent_yet_is_told_as_that(
    app: Callable[[], Liteq], here: Here
) -> None:
    shop = app()
    shop.tasks["tasks.export"].update_state("soon", "PACKING", {"by": "hand"})

    page = here.ok("show", "soon").splitlines()
    document = json.loads(here.ok("show", "soon", "--json"))
    cancelled = here("cancel", "soon")
    result = here("result", "soon")

    assert page[0] == "soon  unsent"
    assert dict(re.split("  +", line.strip()) for line in page[2:4]) == {
        "stored by": "tasks.export",
        "progress": "PACKING",
    }
    assert "state stored, " in page[5]
    assert page[6].strip() == "not sent yet: no call of this id is in the store"
    assert (document["state"], document["task"]) == ("unsent", "tasks.export")
    assert (cancelled.returncode, cancelled.stdout) == (3, "1 not sent yet\n")
    assert "there was no call to cancel" in cancelled.stderr
    assert result.returncode == 124
    assert "PACKING (no call of this id was sent yet)" in result.stderr

    mixed = here("cancel", "soon", send(shop, "add", 1, 1))
    assert (mixed.returncode, mixed.stdout) == (0, "1 revoked, 1 not sent yet\n")
    send(shop, "add", 1, 2, task_id="soon")
    assert here.ok("cancel", "soon") == "1 revoked"


def test_what_runs_is_told_to_end(app: Callable[[], Liteq], here: Here) -> None:
    shop = app()
    id = send(shop, "add", 1, 2)
    worker = shop.broker.register("w", ["default"], 1, {})
    shop.broker.claim(worker, ["default"])

    assert here.ok("cancel", id) == "1 still running"
    assert here.ok("cancel", id, "--terminate", "--signal", "kill") == "1 being ended"


# Times


@pytest.mark.parametrize(
    ("zone", "offset"), [("None", "+00:00"), ("'Asia/Kolkata'", "+05:30")], ids=str
)
def test_a_time_that_is_shown_means_the_same_where_it_is_given(
    project: Project, here: Here, in_new_york: None, zone: str, offset: str
) -> None:
    project.write("tasks.py", TASKS.format(options=f", timezone={zone}"))
    id = here.ok("call", "tasks.add", "-a", "[1, 2]", "--eta", "2100-01-31 08:00")
    due = listed(here, "ls")[0]["run_at"]

    (shown,) = re.findall(r"^ +(\S+)  enqueued", here.ok("show", id), re.MULTILINE)
    at = datetime.fromisoformat(shown)
    hour = timedelta(hours=1)

    def finds(option: str, when: datetime) -> bool:
        texts = (when.isoformat(), when.replace(tzinfo=None).isoformat(" "))
        first, second = (listed(here, "ls", option, text) != [] for text in texts)
        assert first == second
        return first

    assert shown.endswith(offset)
    assert datetime.fromisoformat(due) == datetime.fromisoformat(f"2100-01-31 08:00{offset}")
    assert finds("--since", at)
    assert not finds("--since", at + hour)
    assert finds("--until", at + hour)
    assert not finds("--until", at)


def test_dead_letters_are_chosen_by_times_in_the_zone_of_the_app(
    project: Project, here: Here, in_new_york: None
) -> None:
    project.write("tasks.py", TASKS.format(options=", timezone='Asia/Kolkata'"))
    here.forget()
    (id,) = die(find_app("tasks").app, "unknown task 'a'")
    now = datetime.now(ZoneInfo("Asia/Kolkata")).replace(tzinfo=None)
    before, after = (str(now + timedelta(minutes=one)) for one in (-5, 5))

    assert here.ok("dead", "drop", "--older-than", before, "-y") == "0"
    assert [row["id"] for row in listed(here, "dead", "list", "--since", before)] == [id]
    assert here.ok("dead", "drop", "--older-than", after, "-y") == "1"


@pytest.mark.parametrize("command", ["ls", "retry", "cancel", "dead list", "dead drop", "call"])
def test_help_says_in_which_zone_a_time_is(here: Here, command: str) -> None:
    told = " ".join(here.ok(*command.split(), "--help").split())
    assert told.count("time (without an offset: in the app's zone)") == 2


# dead


def test_dead_letters_are_chosen_by_why_and_by_age(
    app: Callable[[], Liteq], here: Here
) -> None:
    first, second = die(app(), "unknown task 'a'", "started 3 times and never ended")
    (third,) = die(app(), "unknown task 'b'", queue="mail")

    def ids(*words: str) -> list[str]:
        return [row["id"] for row in listed(here, "dead", "list", *words)]

    assert ids() == [third, second, first]
    assert ids("--reason", "Unknown") == [third, first]
    assert ids("-Q", "mail") == [third]
    assert ids("-t", "tasks.*", "--since", "1h", "-n", "1") == [third]
    assert ids("--older-than", "1h") == []
    table = here.ok("dead", "list").splitlines()
    assert table[0].split() == ["id", "task", "queue", "died", "deliveries", "reason"]
    assert table[1].endswith("unknown task 'b'")

    assert here("dead", "drop", "--older-than", "1h").stdout == "0\n"
    assert "Redrive 2 dead letters?" in here("dead", "redrive", "--reason", "unknown").stderr
    assert here.ok("dead", "redrive", "-Q", "mail", "-y") == third
    refused = here("dead", "drop", "--all", stdin="n\n")
    assert "Delete 2 dead letters?" in refused.stderr
    assert here.ok("dead", "drop", second) == "1"
    assert here("dead", "drop", third).returncode == 3  # it lives again
    assert here.ok("dead", "drop", "--reason", "unknown", "-y") == "1"
    assert ids() == []


@pytest.mark.parametrize("handed_on", [False, True])
def test_who_holds_the_unique_key_of_a_dead_letter_is_named(
    app: Callable[[], Liteq], here: Here, *, handed_on: bool
) -> None:
    broker = app().broker
    first, second = (
        Message(new_id(), "tasks.add", b"[[1, 2],{}]", unique_key="5f2d", on_conflict="replace")
        for _ in range(2)
    )
    broker.enqueue([first])
    worker = broker.register("w", ["default"], 1, {})
    [lease] = broker.claim(worker, ["default"])
    if handed_on:
        broker.enqueue([second])
    broker.settle(worker, lease, Failed(failure.describe(ValueError("no")), dead="no use"))
    broker.unregister(worker)
    if not handed_on:
        broker.enqueue([second])

    refused = here("dead", "redrive", first.id)

    assert refused.returncode == 3
    why = f"{second.id} has its unique key now"
    assert refused.stderr == f"liteq: passed over: {first.id}: {why}\n"
    assert why in here("retry", "--all", "-y").stderr


def bury(app: Liteq, **fields: Any) -> str:
    """Make a dead letter of a signed call; the signature stands for a true one."""
    message = Message(new_id(), "tasks.add", b"[[1, 2],{}]", signature="x", **fields)
    app.broker.enqueue([message])
    worker = app.broker.register("w", ["default"], 1, {})
    [lease] = app.broker.claim(worker, ["default"])
    app.broker.settle(worker, lease, Failed(failure.describe(ValueError("no")), dead="no use"))
    app.broker.unregister(worker)
    return message.id


def expired_and_not(app: Liteq) -> tuple[str, str]:
    """Return the ids of a signed dead letter that has expired, and of one that has not."""
    soon = app.broker.clock.now() + 1.0
    ids = bury(app, expires_at=soon), bury(app)
    wait_until(lambda: app.broker.clock.now() > soon)
    return ids


def test_what_a_signature_lets_expire_is_named_where_it_is_passed_over(
    app: Callable[[], Liteq], here: Here
) -> None:
    late, good = expired_and_not(app())
    why = "it has expired, and its signature covers when"

    for command in (["retry"], ["dead", "redrive"]):
        refused = here(*command, late)
        assert refused.returncode == 3
        assert refused.stderr == f"liteq: passed over: {late}: {why}\n"
    many = here("dead", "redrive", "--all", "-y")
    assert (many.returncode, many.stdout) == (0, f"{good}\n")
    assert f"passed over: {late}: {why}\n" in many.stderr
    assert f"passed over: {late}: {why}\n" in here("retry", "--all", "-y").stderr


def test_what_is_passed_over_is_in_the_document_too(
    app: Callable[[], Liteq], here: Here
) -> None:
    late, good = expired_and_not(app())
    why = "it has expired, and its signature covers when"

    answer = here("dead", "redrive", late, good, "--json")

    assert answer.returncode == 3
    told = json.loads(answer.stdout)
    assert told == {"redriven": [good], "passed_over": {late: why}}


def test_many_are_handled_in_batches(
    app: Callable[[], Liteq], here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liteq.operating.BATCH", 7)
    shop = app()
    messages = [Message(new_id(), "tasks.add", b"[[1],{}]") for _ in range(40)]
    shop.broker.enqueue(messages)
    worker = shop.broker.register("w", ["default"], 1, {})
    leases = shop.broker.claim(worker, ["default"], 40)
    error = failure.describe(ValueError("no"))
    outcomes = [Failed(error, dead="x") if n % 2 else Succeeded(b"1") for n in range(40)]
    shop.broker.step(worker, settlements=list(zip(leases, outcomes, strict=True)))
    shop.broker.unregister(worker)

    assert here.ok("retry", "--all", "-y") == "20"
    assert here.ok("cancel", "--all", "-y") == "20 revoked"


def test_what_waits_for_its_next_attempt_is_unfinished() -> None:
    assert states("unfinished") == frozenset(UNFINISHED)


def test_a_workflow_and_a_schedule_steer_no_terminal(
    app: Callable[[], Liteq], here: Here
) -> None:
    from liteq import Graph

    shop = app()
    flow = Graph(EVIL)
    flow.add(EVIL, shop.tasks["tasks.log"].s(EVIL))
    id = flow.delay().id
    shop.run_until_empty()
    shop.schedules.add("night", "tasks.log", 3600.0, args=[EVIL], options={"queue": "q"})

    for words in (
        ["workflow", "show", id],
        ["workflow", "list"],
        ["schedule", "show", "night"],
    ):
        done = here(*words)
        assert done.returncode == 0, done.stderr
        assert r"\x1b[31mred\x07\u202egnp" in done.stdout, words
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", done.stdout), words


def test_a_schedule_shows_no_secret_by_its_position(
    app: Callable[[], Liteq], here: Here
) -> None:
    app().schedules.add("charge", "tasks.charge", 3600.0, args=["42", "hunter2-canary"])
    for words in (["schedule", "list", "--json"], ["schedule", "show", "charge"]):
        shown = here.ok(*words)
        assert "hunter2-canary" not in shown
        assert "tasks.charge('42', '********')" in shown


def test_a_schedule_shows_no_secret_of_what_is_linked_to_it(
    app: Callable[[], Liteq], here: Here
) -> None:
    shop = app()
    links = {"link": [shop.tasks["tasks.charge"].s("hunter2-canary")]}
    shop.schedules.add("log", "tasks.log", 3600.0, args=["x"], options=links)
    for form in ([], ["--json"]):
        shown = here.ok("schedule", "show", "log", *form)
        assert "tasks.charge" in shown
        assert "hunter2-canary" not in shown


def test_a_schedule_says_how_it_goes_by_the_clock(app: Callable[[], Liteq], here: Here) -> None:
    schedules = app().schedules
    schedules.add("plain", "tasks.log", 7200.0, args=["x"])
    schedules.add("full", "tasks.log", 7200.0, args=["x"], relative=True, tz="Asia/Tokyo")
    schedules.add("cron", "tasks.log", crontab("0", "3", tz="Asia/Tokyo"), args=["x"])
    either = crontab("0", "3", day_of_month="1", day_of_week="1", dom_or_dow=True)
    schedules.add("either", "tasks.log", either, args=["x"])

    said = {
        "plain": ("every 2:00:00", {"relative": False}),
        "full": ("every 2:00:00 relative Asia/Tokyo", {"relative": True, "tz": "Asia/Tokyo"}),
        "cron": ("0 3 * * * Asia/Tokyo", {"tz": "Asia/Tokyo"}),
        "either": ("0 3 1 * 1 UTC dom_or_dow", {"dom_or_dow": True, "tz": "UTC"}),
    }
    listed = json.loads(here.ok("schedule", "list", "--json"))
    assert {
        each["name"]: (
            each["schedule"],
            {name: each[name] for name in ("relative", "dom_or_dow", "tz") if name in each},
        )
        for each in listed
    } == said
    text = here.ok("schedule", "list")
    shown = here.ok("schedule", "show", "full")
    assert all(words in text for words, _ in said.values())
    assert re.search("^schedule +every 2:00:00 relative Asia/Tokyo$", shown, re.MULTILINE)
    assert re.search("^relative +yes$", shown, re.MULTILINE)


def test_a_paused_schedule_is_shown_as_such(app: Callable[[], Liteq], here: Here) -> None:
    schedules = app().schedules
    schedules.add("night", "tasks.log", 3600.0, args=["x"])
    schedules.pause("night")

    assert re.search("^next +paused$", here.ok("schedule", "show", "night"), re.MULTILINE)
    assert json.loads(here.ok("schedule", "show", "night", "--json"))["next"] == []


# watch


@pytest.mark.process
def test_a_task_is_followed_line_by_line_to_its_end(
    shop: Project, app: Callable[[], Liteq], here: Here, start: Callable[..., Running]
) -> None:
    good, bad = send(app(), "export", 200), send(app(), "log", "no stock")
    watching = [start("watch", id) for id in (good, bad)]
    out, other = (process.process.stdout for process in watching)
    assert out is not None
    assert other is not None
    assert [out.readline(), other.readline()] == ["queued\n", "queued\n"]

    worker = start("worker", "-c", "1", "-l", "warning")
    ends = [process.end(None) for process in watching]
    worker.end(signal.SIGTERM)

    lines = out.read().splitlines()
    assert lines[-1] == "succeeded"
    assert ends == [0, 1]
    assert watching[1].lines[-1] == "liteq: ValueError: no stock"


def test_a_watch_hears_each_report_and_ends_with_its_time(
    app: Callable[[], Liteq], here: Here
) -> None:
    from liteq.brokers.base import Note
    from liteq.operating import follow

    shop = app()
    id = send(shop, "export", 4)
    late = here("watch", id, "--timeout", "0")
    shop = app()
    broker = shop.broker
    worker = broker.register("w", ["default"], 1, {})
    following = follow(broker, id)
    first = next(following)
    (lease,) = broker.claim(worker, ["default"])
    heard = []
    for done in (b'{"current": 1}', b'{"current": 2}'):
        broker.step(worker, notes=[(lease, Note("PROGRESS", done))])
        record = _changed(following)
        heard.append((record.state, record.note.meta))
    broker.settle(worker, lease, Succeeded(b"4"))
    last = _changed(following)

    assert late.returncode == 124
    assert late.stdout == "queued\n"
    assert late.stderr.endswith("has not ended: queued\n")
    assert first is not None
    assert first.state == "queued"
    assert heard == [("running", b'{"current": 1}'), ("running", b'{"current": 2}')]
    assert last.state == "succeeded"
    assert next(following, "over") == "over"
    assert here.ok("watch", id) == "succeeded"
    [line] = here.ok("watch", id, "--json").splitlines()
    assert (
        json.loads(line).items() >= {"id": id, "state": "succeeded", "progress": None}.items()
    )


def _changed(following: Iterator[Any]) -> Any:
    return next(record for record in following if record is not None)


# Words and spans


def test_spans_and_moments_are_said_in_their_largest_unit() -> None:
    said = [span(s) for s in (0.0123, 3.14159, 45, 119, 120, 7200, 200_000)]
    assert said == ["12 ms", "3.1 s", "45 s", "119 s", "2 min", "2 h", "2 d"]
    assert ago(100.0, 160.0) == "60 s ago"
    assert ago(160.0, 100.0) == "in 60 s"
    assert ago(100.9, 100.0) == "in 900 ms"
    assert ago(100.0, 100.0) == "0 ms ago"


def test_times_and_states_are_read() -> None:
    hour, week = (instant(moment_ago(text), UTC) for text in ("1h", "1w"))
    assert hour - week == pytest.approx(604_800 - 3600, abs=5)
    assert instant(moment_ago("2026-01-31T08:00+01:00"), UTC) == 1769842800
    assert instant(moment_ago(" 2026-01-31 08:00"), ZoneInfo("Europe/Berlin")) == 1769842800
    assert states("FAILURE,queued") == {"failed", "queued"}
    assert len(states("unfinished")) == 7


def test_control_characters_are_shown_as_what_they_are() -> None:
    assert shown("a\nb\tc\x1b\x7f\u2028\ud800é") == "a\\nb\\tc\\x1b\\x7f\\u2028\\ud800é"
    assert shown("a\nb\tc\r", lines=True) == "a\nb\tc\\r"
    assert shown(None) == ""
