"""One event for each failure, with the task's name and id, and none for a retry."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentry_sdk
import world
from api import forget_current
from sentry_sdk.transport import Transport

from liteq import Liteq, Secret, batch
from liteq.body import Body
from liteq.contrib.sentry import LiteqIntegration
from liteq.delivery import Delivery
from liteq.executor import Executor, ExecutorSettings
from liteq.inline import InlineWorker, attempt_with
from liteq.message import Message
from liteq.serializers import dumps_call

Event = dict[str, Any]


class Kept(Transport):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def capture_envelope(self, envelope: Any) -> None:
        for item in envelope.items:
            if (event := item.get_event() or item.get_transaction_event()) is not None:
                self.events.append(event)

    def of(self, kind: str | None = None) -> list[Event]:
        return [event for event in self.events if event.get("type") == kind]


@pytest.fixture
def kept(request: pytest.FixtureRequest) -> Iterator[Kept]:
    transport = Kept()
    sentry_sdk.init(
        dsn="http://key@localhost/1",
        transport=transport,
        integrations=[LiteqIntegration()],
        auto_enabling_integrations=False,
        traces_sample_rate=1.0,
        **getattr(request, "param", {}),
    )
    LiteqIntegration.setup_once()  # Sentry calls it once for a process
    yield transport
    # Nothing of it stays with the tests that come after; its receivers go as all do.
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


@pytest.fixture
def app() -> Iterator[Liteq]:
    app = Liteq("shop", broker="memory://", clock=world.FakeClock())

    @app.task(name="fail")
    def fail(user: str = "", password: str = "") -> None:
        sentry_sdk.add_breadcrumb(message="on the way")
        raise ValueError("no")

    @app.task(name="again", bind=True, max_retries=2)
    def again(task: Any) -> None:
        raise task.retry(exc=OSError("later"), countdown=0)

    @app.task(name="expected", throws=(KeyError,))
    def expected() -> None:
        raise KeyError("x")

    @app.task(name="pay", sensitive=["card"])
    def pay(card: str, pin: Secret[str], body: dict[str, str], url: str) -> None:
        short = card[:2]  # of what is changed nobody can know
        sentry_sdk.add_breadcrumb(
            message=f"with {card}", data={"api_key": "4711", "card": card}
        )
        with sentry_sdk.start_span(name=f"charge {card}") as span:
            span.set_data("body", body)
        try:
            try:
                raise KeyError(f"{card} {pin.reveal()}")
            except KeyError as exc:
                raise RuntimeError(
                    f"{short} of {body['token']}, redis://u:{'else' + 'where'}@h"
                ) from exc
        except RuntimeError as exc:
            raise ExceptionGroup(f"at {url}", [exc, ValueError(pin.reveal())]) from None

    @app.task(name="say")
    def say() -> None:
        sentry_sdk.capture_message("hello")

    yield app
    forget_current()


def run(app: Liteq) -> None:
    settings = ExecutorSettings(clock=app.clock, redactor=app.redactor)
    executor = Executor(app.tasks, settings)
    with InlineWorker(app.broker, attempt_with(executor)) as worker:
        for _ in worker.run_due():
            pass


def test_a_failure_is_one_event_with_the_tasks_name_and_id(
    kept: Kept, app: Liteq, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="liteq")
    first, second = app.tasks["fail"].delay(), app.tasks["fail"].delay()
    run(app)
    events = kept.of()
    assert [event["tags"]["liteq.task_id"] for event in events] == [first.id, second.id]
    assert {event["tags"]["liteq.task"] for event in events} == {"fail"}
    assert {event["transaction"] for event in events} == {"fail"}
    assert events[0]["exception"]["values"][-1]["type"] == "ValueError"
    assert events[0]["contexts"]["liteq"]["queue"] == "default"
    crumbs = [event["breadcrumbs"]["values"] for event in events]
    assert [[c["message"] for c in some].count("on the way") for some in crumbs] == [1, 1]


def test_a_retry_is_no_error_until_the_last(kept: Kept, app: Liteq) -> None:
    app.tasks["again"].delay()
    run(app)
    [event] = kept.of()
    assert event["exception"]["values"][-1]["type"] == "OSError"
    assert event["contexts"]["liteq"]["retries"] == 2


def test_what_a_task_expects_is_not_reported(kept: Kept, app: Liteq) -> None:
    app.tasks["expected"].delay()
    run(app)
    assert kept.of() == []


def test_what_a_task_says_itself_bears_its_tags(kept: Kept, app: Liteq) -> None:
    made = app.tasks["say"].delay()
    run(app)
    sentry_sdk.capture_message("outside")
    inside, outside = kept.of()
    assert inside["tags"]["liteq.task_id"] == made.id
    assert "liteq.task_id" not in outside.get("tags", {})


def test_the_trace_of_who_calls_goes_on_in_the_task(kept: Kept, app: Liteq) -> None:
    with sentry_sdk.start_transaction(name="request") as request:
        app.tasks["say"].delay()
    run(app)
    traces = {e["transaction"]: e["contexts"]["trace"] for e in kept.of("transaction")}
    assert traces["say"]["trace_id"] == request.trace_id
    assert traces["say"]["op"] == "queue.process"


@pytest.mark.filterwarnings("ignore:The send_default_pii option is deprecated")
@pytest.mark.parametrize("kept", [{"send_default_pii": True}], indirect=True)
def test_arguments_are_sent_only_if_asked_for_and_then_redacted(kept: Kept, app: Liteq) -> None:
    app.tasks["fail"].delay("bob", "hunter2")
    run(app)
    [event] = kept.of()
    assert event["contexts"]["liteq arguments"]["args"] == "('bob', '********')"


def test_arguments_stay_here_otherwise(kept: Kept, app: Liteq) -> None:
    app.tasks["fail"].delay("bob", "hunter2")
    run(app)
    [event] = kept.of()
    assert "liteq arguments" not in event["contexts"]


SECRETS = ("CARD-0001", "PIN-000002", "TOKEN-0003", "PASSWORD-4", "elsewhere", "4711")


@pytest.mark.filterwarnings("ignore:The send_default_pii option is deprecated")
@pytest.mark.parametrize("kept", [{}, {"send_default_pii": True}], indirect=True)
def test_no_secret_of_a_call_is_in_what_is_sent(kept: Kept, app: Liteq) -> None:
    body = {"token": "TOKEN-0003"}
    url = "https://a:PASSWORD-4@h/x"
    app.tasks["pay"].delay("CARD-0001", Secret("PIN-000002"), body, url=url)

    run(app)

    [event] = kept.of()
    [transaction] = kept.of("transaction")
    told = json.dumps([event, transaction], default=str)
    assert [secret for secret in SECRETS if secret in told] == []
    values = event["exception"]["values"]
    kinds = [one["type"] for one in values]
    assert kinds == ["ValueError", "KeyError", "RuntimeError", "ExceptionGroup"]
    assert values[1]["value"] == "'******** ********'"
    assert values[2]["value"] == "CA of ********, redis://u:********@h"
    frame = values[2]["stacktrace"]["frames"][-1]
    assert frame["function"] == "pay"
    assert frame["vars"]["card"] == "********"
    assert frame["vars"]["short"] == "'CA'"
    assert frame["vars"]["body"] == {"token": "********"}


@pytest.mark.parametrize("pin", ["47", "the pin"])
def test_what_is_secret_by_its_name_is_hidden_whatever_it_is(
    kept: Kept, app: Liteq, pin: str
) -> None:
    @app.task(name="open", sensitive="pin")
    def opened(pin: str) -> None:
        raise ValueError("no")

    opened.delay(pin)
    run(app)

    [event] = kept.of()
    frames = event["exception"]["values"][-1]["stacktrace"]["frames"]
    assert [frame["vars"] for frame in frames if "vars" in frame] == [{"pin": "********"}]


@pytest.mark.parametrize("pin", ["47", 4711, b"47", Secret("47")])
def test_a_short_secret_is_hidden_where_it_is_all_of_a_value(
    kept: Kept, app: Liteq, pin: Any
) -> None:
    def check(code: Any, others: list[Any]) -> None:
        raise ValueError(code)

    @app.task(name="open", sensitive="pin")
    def opened(pin: Any, door: str = "147") -> None:
        code = pin.reveal() if isinstance(pin, Secret) else pin
        check(code, [code, 47110, door])

    opened.delay(pin)
    run(app)

    [event] = kept.of()
    [raised] = event["exception"]["values"]
    frames = raised["stacktrace"]["frames"]
    assert frames[-1]["vars"] == {"code": "********", "others": ["********", "47110", "'147'"]}
    assert frames[-2]["vars"]["code"] == "********"


def test_what_is_secret_among_arguments_without_names_is_hidden(kept: Kept, app: Liteq) -> None:
    @app.task(name="open", sensitive="codes")
    def opened(door: str, *codes: str) -> None:
        raise ValueError(f"{door}: not {codes[0]}")

    opened.delay("front", "4711-0815")
    run(app)

    [event] = kept.of()
    assert event["exception"]["values"][-1]["value"] == "front: not ********"
    frames = event["exception"]["values"][-1]["stacktrace"]["frames"]
    assert [frame["vars"]["codes"] for frame in frames if "vars" in frame] == ["********"]


WORKER = """
import json, os, sys, sentry_sdk
from sentry_sdk.transport import Transport
from liteq import Liteq, signals
from liteq.contrib.sentry import LiteqIntegration

class Slow(Transport):
    pending = []
    def capture_envelope(self, envelope):
        self.pending += [e for i in envelope.items if (e := i.get_event()) is not None]
    def flush(self, timeout, callback=None):
        with open(sys.argv[2], "a") as file:
            for event in self.pending:
                file.write(json.dumps([event["tags"], os.getpid()]) + "\\n")
        self.pending.clear()

sentry_sdk.init(
    dsn="http://key@localhost/1",
    transport=Slow(),
    integrations=[LiteqIntegration()],
    auto_enabling_integrations=False,
)
app = Liteq("shop", broker="sqlite://" + sys.argv[1])

@app.task(name="fail")
def fail():
    raise ValueError("no")

fail.delay()
from liteq.worker import Worker
sys.exit(Worker(app, concurrency=1, burst=True).run())
"""


@pytest.mark.process
def test_a_child_sends_its_events_before_it_ends(tmp_path: Path) -> None:
    kept = tmp_path / "events"
    done = subprocess.run(
        [sys.executable, "-c", WORKER, f"{tmp_path}/s.liteq", str(kept)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [line] = kept.read_text().splitlines()
    tags, _pid = json.loads(line)
    assert tags["liteq.task"] == "fail"


KILLED = """
import json, os, sys, sentry_sdk, time
from sentry_sdk.transport import Transport
from liteq import Liteq
from liteq.contrib.sentry import LiteqIntegration

class Kept(Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            if (event := item.get_event()) is not None:
                told = event["tags"]["liteq.task"], event["contexts"], os.getpid() == PARENT
                with open(sys.argv[2], "a") as file:
                    file.write(json.dumps(told, default=str) + "\\n")

PARENT = os.getpid()
sentry_sdk.init(
    dsn="http://key@localhost/1",
    transport=Kept(),
    integrations=[LiteqIntegration()],
    auto_enabling_integrations=False,
)
app = Liteq("shop", broker="sqlite://" + sys.argv[1], task_max_deliveries=1)

@app.task(name="fail")
def fail():
    raise ValueError("no")

@app.task(name="die")
def die():
    os._exit(1)

@app.task(name="slow", time_limit=0.2)
def slow():
    time.sleep(1000)

@app.task(name="alone", time_limit=0.2)
def alone():
    time.sleep(1000)

trace = "0123456789abcdef0123456789abcdef"
called = {"sentry-trace": trace + "-0123456789abcdef-1"}
with sentry_sdk.isolation_scope() as scope:
    scope.continue_trace(called)
    fail.delay(), die.delay(), slow.delay()
from liteq import signals
signals.before_task_publish.disconnect(dispatch_uid="liteq.sentry")
alone.delay(), alone.delay()
from liteq.worker import Worker
sys.exit(Worker(app, concurrency=1, burst=True).run())
"""


@pytest.mark.process
def test_the_trace_goes_on_in_the_event_of_a_task_that_was_killed(tmp_path: Path) -> None:
    kept = tmp_path / "events"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, f"{tmp_path}/s.liteq", str(kept)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in kept.read_text().splitlines()]
    trace = "0123456789abcdef0123456789abcdef"
    ids = {name: contexts["trace"]["trace_id"] for name, contexts, _ in told}
    alone = {contexts["trace"]["trace_id"] for name, contexts, _ in told if name == "alone"}

    in_worker = {name for name, _, in_parent in told if in_parent}
    assert in_worker == {"die", "slow", "alone"}
    assert [ids[name] for name in ("fail", "die", "slow")] == [trace] * 3
    assert len(alone - {trace}) == 2  # who calls in no trace is in none with others
    assert {contexts["liteq"]["queue"] for _, contexts, _ in told} == {"default"}


@pytest.mark.parametrize("fails", [False, True])
def test_calls_of_one_run_are_one_transaction_without_any_ones_secrets(
    kept: Kept, app: Liteq, *, fails: bool
) -> None:
    secrets = [f"hunter-{number}" for number in range(3)]

    @app.task(name="many", flush_every=10)
    def many(calls: list[Any]) -> None:
        found = [call.kwargs["password"] for call in calls]
        sentry_sdk.capture_message(f"with {found}")
        if fails:
            raise ValueError(f"no {found}")

    messages = [
        Message(id=one, task="many", body=dumps_call((), {"password": secret}))
        for one, secret in zip("abc", secrets, strict=True)
    ]
    executor = Executor(app.tasks, ExecutorSettings(clock=app.clock, redactor=app.redactor))
    batch.run(executor, list(map(Delivery, messages)), lambda place, said: False, Body())
    sentry_sdk.capture_message("after")

    [transaction] = kept.of("transaction")
    assert transaction["transaction"] == "many"
    assert transaction["contexts"]["trace"]["data"]["messaging.batch.message_count"] == 3
    status = "internal_error" if fails else "ok"
    assert transaction["contexts"]["trace"]["status"] == status
    told = json.dumps(kept.events, default=str)
    assert not [secret for secret in secrets if secret in told]
    last = kept.of()[-1]
    assert last.get("logentry", last)["message"] == "after"
    assert "liteq.task" not in last.get("tags", {})
    failures = [event for event in kept.of() if "exception" in event]
    assert len(failures) == fails  # Sentry drops what it has had, the same exception
