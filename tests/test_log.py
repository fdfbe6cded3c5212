"""Records stay one record, and only who asks for it has logging configured."""

from __future__ import annotations

import io
import json
import logging
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from api import app_in_memory

from liteq import context, log, logfields, signals
from liteq.exceptions import ImproperlyConfigured
from liteq.loggers import get_logger
from liteq.result import AsyncResult
from liteq.testing import inline
from liteq.utils.log import get_task_logger

FORGED = "tasks.add\n2026-01-01 00:00:00.000 INFO     1 liteq: all is well"


ROOT = logging.getLogger()


@contextmanager
def bare_root() -> Iterator[None]:
    """Have the root logger as a fresh process has it.

    Not a fixture: pytest adds its own handlers after those are made.
    """
    before, level = ROOT.handlers[:], ROOT.level
    ROOT.handlers.clear()
    try:
        yield
    finally:
        for handler in (*ROOT.handlers, *log.task_logger.handlers):
            handler.close()
        ROOT.handlers[:] = before
        ROOT.setLevel(level)
        log.task_logger.handlers.clear()
        log.task_logger.propagate = True


@contextmanager
def attempt(task: str, id: str) -> Iterator[None]:
    """Log as the code of this task does."""
    logfields.mark(context.log_fields)
    token = context.push(context.Context(task=task, id=id))
    try:
        yield
    finally:
        context.pop(token)


def record(message: str, *args: Any, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("liteq.worker", logging.INFO, __file__, 1, message, args, None)
    made.__dict__.update(extra)
    return made


def failed(message: str) -> logging.LogRecord:
    made = record("Task failed")
    try:
        raise ValueError(message)
    except ValueError:
        made.exc_info = sys.exc_info()
    return made


def test_using_liteq_configures_nothing_and_writes_nothing() -> None:
    code = (
        "import logging\n"
        "from liteq import Liteq\n"
        "app = Liteq('shop', task_always_eager=True)\n"
        "app.task(name='fail')(lambda: 1 / 0).delay()\n"
        "print(logging.getLogger().handlers, logging.getLogger('liteq').handlers)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[] [<NullHandler (NOTSET)>]\n"
    assert done.stderr == ""


def test_a_configuration_that_names_no_logger_of_liteq_silences_none() -> None:
    code = (
        "import logging.config\n"
        "from liteq import Liteq\n"
        "app = Liteq('shop', task_always_eager=True)\n"
        "app.task(name='fail')(lambda: 1 / 0).delay()\n"  # its logger is there by now
        "logging.getLogger('other')\n"
        "logging.config.dictConfig({'version': 1,\n"
        "    'handlers': {'here': {'class': 'logging.StreamHandler'}},\n"
        "    'root': {'handlers': ['here']}})\n"
        "assert logging.getLogger('other').disabled\n"
        "app.tasks['fail'].delay()\n"
        "logging.getLogger('liteq.executor').setLevel('CRITICAL')\n"
        "app.tasks['fail'].delay()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.count("Task fail[") == 1
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain – ünïcödé 👩‍🔬", "plain – ünïcödé 👩‍🔬"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2J\x7f\x9b", r"\x1b[2J\x7f\x9b"),
        ("a\u2028b\u202ec", r"a\u2028b\u202ec"),
        ("\ud800", r"\ud800"),
    ],
)
def test_control_characters_are_shown_not_obeyed(text: str, shown: str) -> None:
    assert log.escape(text) == shown


def test_a_task_name_cannot_forge_a_line() -> None:
    for formatter in (log.TextFormatter(), log.JsonFormatter()):
        text = formatter.format(record("Task %s succeeded", FORGED, task=FORGED))
        assert len(text.splitlines()) == 1


def test_an_error_message_cannot_forge_a_line() -> None:
    lines = log.TextFormatter().format(failed(FORGED)).splitlines()
    assert all(line.startswith("  ") for line in lines[1:])
    assert any("ValueError: tasks.add" in line for line in lines)
    assert len(log.JsonFormatter().format(failed(FORGED)).splitlines()) == 1


def test_text_has_time_level_process_logger_and_message() -> None:
    text = log.TextFormatter().format(record("hello %s", "you"))
    assert text.endswith(" liteq.worker: hello you")
    assert " INFO " in text


def test_what_a_tasks_code_logs_names_the_task_in_the_default_form_alone() -> None:
    known = {"task": "shop.charge", "task_id": "7"}
    theirs = logging.makeLogRecord({"name": "shop", "msg": "paid %s", "args": (42,), **known})
    ours = record("Task shop.charge[7] succeeded", **known)
    outside = logging.makeLogRecord({"name": "shop", "msg": "hello"})

    formatter = log.TextFormatter()

    assert formatter.format(theirs).endswith(" shop: shop.charge[7]: paid 42")
    assert formatter.format(ours).endswith(" liteq.worker: Task shop.charge[7] succeeded")
    assert formatter.format(outside).endswith(" shop: hello")
    assert log.TextFormatter("%(message)s").format(theirs) == "paid 42"


def test_formatting_leaves_the_record_to_other_handlers() -> None:
    made = record("a\nb")
    log.TextFormatter().format(made)
    assert made.getMessage() == "a\nb"
    assert "asctime" not in made.__dict__


def test_colour_marks_what_needs_attention() -> None:
    formatter = log.TextFormatter(colour=True)
    assert "\x1b" not in formatter.format(record("fine"))
    assert formatter.format(record("bad", levelname="ERROR")).startswith("\x1b[31m")


def test_json_has_the_fields_the_record_carries_in_order() -> None:
    made = record(
        "Task done",
        outcome="succeeded",
        task="tasks.add",
        task_id="1",
        duration_ms=1.5,
        attempt=2,
        process=77,
        created=0.25,
        msecs=250.0,
    )
    fields = json.loads(log.JsonFormatter().format(made))
    assert list(fields.items()) == [
        ("ts", "1970-01-01T00:00:00.250Z"),
        ("level", "INFO"),
        ("logger", "liteq.worker"),
        ("message", "Task done"),
        ("task", "tasks.add"),
        ("task_id", "1"),
        ("attempt", 2),
        ("pid", 77),
        ("duration_ms", 1.5),
        ("outcome", "succeeded"),
    ]


def test_json_carries_tracebacks_and_any_object() -> None:
    made = failed("oops")
    made.queue = Path("x")
    fields = json.loads(log.JsonFormatter().format(made))
    assert "ValueError: oops" in fields["exception"]
    assert fields["queue"] == "x"


def test_json_carries_the_stack_that_was_asked_for() -> None:
    made = failed("oops")
    made.stack_info = "Stack (most recent call last):\n  File …"
    assert json.loads(log.JsonFormatter().format(made))["stack"] == made.stack_info


def test_json_has_no_number_that_json_has_not() -> None:
    made = failed("oops")
    made.duration_ms = math.nan
    line = log.JsonFormatter().format(made)
    assert json.loads(line, parse_constant=pytest.fail)["duration_ms"] == "nan"


@bare_root()
def test_configure_gives_a_bare_root_one_handler() -> None:
    stream = io.StringIO()
    assert log.configure("debug", stream=stream)
    assert ROOT.level == logging.DEBUG
    logging.getLogger("liteq.worker").info("hello")
    assert stream.getvalue().endswith("liteq.worker: hello\n")
    assert not log.configure("info", stream=stream)  # it has one now
    assert ROOT.level == logging.DEBUG


def test_configure_leaves_a_configured_root_alone() -> None:
    root = logging.getLogger()
    handler, before = logging.NullHandler(), root.level
    root.addHandler(handler)
    try:
        held = root.handlers[:]
        assert not log.configure("debug")
        assert (root.handlers, root.level) == (held, before)
    finally:
        root.removeHandler(handler)


@bare_root()
def test_a_receiver_of_setup_logging_does_it_all() -> None:
    heard: list[dict[str, Any]] = []
    with_receiver = signals.setup_logging
    with_receiver.connect(lambda **said: heard.append(said), weak=False, dispatch_uid="t")
    try:
        assert not log.configure("warning", "x.log", signals=signals)
    finally:
        with_receiver.disconnect(dispatch_uid="t")
    assert ROOT.handlers == []
    assert heard[0]["loglevel"] == logging.WARNING
    assert heard[0]["logfile"] == "x.log"


@bare_root()
def test_the_program_hears_when_loggers_are_ready() -> None:
    heard: list[logging.Logger] = []
    for signal in (signals.after_setup_logger, signals.after_setup_task_logger):
        signal.connect(lambda logger, **_: heard.append(logger), weak=False, dispatch_uid="t")
    try:
        log.configure(signals=signals, stream=io.StringIO())
    finally:
        signals.after_setup_logger.disconnect(dispatch_uid="t")
        signals.after_setup_task_logger.disconnect(dispatch_uid="t")
    assert heard == [ROOT, log.task_logger]


@bare_root()
def test_the_log_goes_to_a_file_that_may_be_rotated(tmp_path: Path) -> None:
    file = tmp_path / "worker.log"
    log.configure(logfile=str(file), format="json")
    logging.getLogger("liteq").info("one")
    file.rename(tmp_path / "old.log")
    logging.getLogger("liteq").info("two")
    assert json.loads(file.read_text())["message"] == "two"


@bare_root()
def test_records_learn_which_task_runs() -> None:
    stream = io.StringIO()
    log.configure(format="json", stream=stream)
    with attempt("t", "7"):
        logging.getLogger("users.module").info("in a task")
        logging.getLogger("liteq").info("about another", extra={"task_id": "8"})
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["task"], first["task_id"]) == ("t", "7")
    assert second["task_id"] == "8"


@bare_root()
def test_celery_s_formats_know_the_task() -> None:
    stream = io.StringIO()
    log.configure(
        format="%(levelname)s %(message)s",
        task_format="%(task_name)s[%(task_id)s] %(message)s",
        stream=stream,
    )
    with attempt("t", "7"):
        get_task_logger("proj.tasks").info("mine")
        logging.getLogger("other").info("other")
    get_task_logger("proj.tasks").handle(record("nobody's"))
    assert stream.getvalue() == "t[7] mine\nINFO other\n???[???] nobody's\n"


class Kept(logging.Handler):
    """A handler that keeps what it is given, on a logger that hands nothing on."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.logger = logging.Logger("program.own")
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.mark.parametrize("way", ["worker", "eager", "threads", "inline"])
def test_a_handler_of_the_program_s_own_is_told_which_task_runs(way: str) -> None:
    with app_in_memory() as app:

        @app.task(name="inner")
        def inner() -> None:
            logger.info("in a plain call")

        @app.task(name="work", queue="mail")
        def work() -> None:
            logger.info("mine", extra={"queue": "its own"})
            inner()

        kept = Kept()
        logger = kept.logger
        if way == "eager":
            id = work.apply().id
        elif way == "inline":
            with inline(app) as mode:
                id = work.delay().id
                mode.drain()
        else:
            id = work.delay().id
        if way == "worker":
            app.run_until_empty(queues=["mail"])
        if way == "threads":
            with app.worker(queues=["mail"]):
                AsyncResult(id, app=app).get(timeout=10)

    first, second = map(vars, kept.records)
    for said in (first, second):
        assert (said["task"], said["task_name"], said["task_id"]) == ("work", "work", id)
        assert (said["root_id"], said["attempt"]) == (id, 1)
    assert (first["queue"], second["queue"]) == ("its own", "mail")


def test_only_a_process_of_liteq_s_own_has_fields_outside_of_tasks() -> None:
    code = (
        "import logging\n"
        "from liteq import Liteq, applog\n"
        "app = Liteq('shop', task_always_eager=True)\n"
        "logging.setLogRecordFactory(lambda *a, **k: logging.LogRecord(*a, **k))\n"
        "said = lambda: vars(logging.getLogger().makeRecord('', 1, '', 1, '', (), None))\n"
        "task = app.task(name='t')(lambda: print(said()['task_name']))\n"
        "task.delay()\n"
        "print(said().get('task_name'))\n"
        "applog.configure(app)\n"
        "print(said()['task_name'], said()['task_id'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "t\nNone\n??? ???\n", done.stderr


@bare_root()
def test_the_times_of_tasks_have_a_format_of_their_own() -> None:
    stream = io.StringIO()
    log.configure(
        format="%(asctime)s %(message)s", datefmt="main", task_datefmt="task", stream=stream
    )
    get_task_logger("proj.tasks").info("mine")
    logging.getLogger("other").info("other")
    assert stream.getvalue() == "task mine\nmain other\n"


def test_a_task_logger_hands_on_to_liteq_s(caplog: pytest.LogCaptureFixture) -> None:
    logger = get_task_logger("proj.more_tasks")
    assert logger.name == "proj.more_tasks"
    assert logger.parent is log.task_logger
    assert get_task_logger("liteq.task.sub").parent is log.task_logger
    with pytest.raises(RuntimeError, match="liteq's own"):
        get_task_logger("liteq.task")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "loud"}, "unknown log level 'loud'"),
        ({"format": "xml"}, "unknown log format 'xml'"),
        ({"format": "%(oops"}, "log format"),
    ],
)
@bare_root()
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=message):
        log.configure(**options)
    assert ROOT.handlers == []


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert log._wants_colour(Terminal())
    assert not log._wants_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not log._wants_colour(Terminal())


@contextmanager
def filtered(name: str) -> Iterator[None]:
    """Have a filter that fails on this logger."""

    def fail(record: logging.LogRecord) -> bool:
        raise KeyError(record.msg)

    logger = logging.getLogger(name)
    logger.addFilter(fail)
    try:
        yield
    finally:
        logger.removeFilter(fail)


def test_a_filter_that_fails_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with filtered("liteq.executor"):
        get_logger("liteq.executor").error("said")

    assert "KeyError: 'said'" in capsys.readouterr().err


def test_a_closed_standard_error_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    handler = logging.StreamHandler(closed)
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    logger = get_logger("liteq.executor")
    logger.addHandler(handler)
    try:
        logger.error("said")
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize("fails", [False, True])
def test_a_task_ends_as_it_does_though_its_end_cannot_be_logged(
    caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    starts = []
    caplog.set_level(logging.INFO, "liteq.executor")
    with app_in_memory() as app, filtered("liteq.executor"):

        @app.task(name="work")
        def work() -> str:
            starts.append("work")
            if fails:
                raise ValueError("its own")
            return "done"

        result = work.delay()
        app.run_until_empty()
        end = result.get(timeout=1, propagate=False)

    assert repr(end) == ("ValueError('its own')" if fails else "'done'")
    assert starts == ["work"]
