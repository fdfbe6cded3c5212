from __future__ import annotations

import gc
import json
import math
import os
import runpy
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pytest
from api import app_in_memory, forget_current, record
from world import FakeClock, fork

from liteq import BoundTask, Liteq, Queue, Task, current_app, current_task, shared_task
from liteq.brokers import connect, scheme_of
from liteq.brokers.base import Broker
from liteq.canvas import chord
from liteq.exceptions import (
    AlwaysEagerIgnored,
    BrokerUnavailable,
    ConfigWarning,
    DuplicateTaskNameWarning,
    ImproperlyConfigured,
    NotRegistered,
    OperationalError,
    QueueNotFound,
)
from liteq.signals import after_task_publish, before_task_publish, import_modules, task_prerun


@pytest.fixture
def app() -> Iterator[Liteq]:
    with app_in_memory() as app:
        yield app


@pytest.fixture(autouse=True)
def _no_app_left() -> Iterator[None]:
    yield
    forget_current()


def add(x: int, y: int) -> int:
    return x + y


# Which store


def run_script(folder: Path, text: str, *args: str, cwd: Path) -> str:
    (folder / "prog.py").write_text(text)
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, *(args or (str(folder / "prog.py"),))],
        cwd=cwd,
        env={"PYTHONPATH": f"{root}:{folder}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_default_store_is_beside_the_program_wherever_it_is_started(tmp_path: Path) -> None:
    folder = tmp_path / "program"
    folder.mkdir()
    text = "from liteq import Liteq; app = Liteq('shop'); print(app.broker.folder)"

    assert run_script(folder, text, cwd=tmp_path) == str(folder / "shop.liteq")


def test_the_default_store_of_a_module_is_beside_the_module(tmp_path: Path) -> None:
    folder = tmp_path / "program"
    folder.mkdir()
    text = "from liteq import Liteq; app = Liteq('shop'); print(app.broker.folder)"

    assert run_script(folder, text, "-c", "import prog", cwd=tmp_path) == str(
        folder / "shop.liteq"
    )


def test_without_a_file_the_default_store_is_in_the_working_directory(tmp_path: Path) -> None:
    text = "from liteq import Liteq; app = Liteq('shop'); print(app.broker.folder)"

    assert run_script(tmp_path, "", "-c", text, cwd=tmp_path) == str(tmp_path / "shop.liteq")


def test_a_subclass_of_the_app_has_its_store_beside_who_makes_it(tmp_path: Path) -> None:
    text = (
        "from liteq import Liteq\n"
        "class App(Liteq):\n"
        "    def on_init(self): self.inited = True\n"
        "app = App(); print(app.broker.folder, app.main, app.inited)"
    )

    expected = f"{tmp_path / 'prog.liteq'} prog True"
    assert run_script(tmp_path, text, cwd=Path("/")) == expected


def test_a_script_names_its_tasks_as_a_worker_does_that_imports_it(tmp_path: Path) -> None:
    text = (
        "from liteq import Liteq; app = Liteq('shop')\n"
        "@app.task\ndef add(): ...\nprint(add.name)"
    )

    assert run_script(tmp_path, text, cwd=tmp_path) == "prog.add"
    assert run_script(tmp_path, text, "-m", "prog", cwd=tmp_path) == "prog.add"
    assert run_script(tmp_path, text, "-c", "import prog", cwd=tmp_path) == "prog.add"


def test_at_a_prompt_the_name_of_the_app_stands_for_the_module(tmp_path: Path) -> None:
    text = (
        "from liteq import Liteq; app = Liteq('shop')\n"
        "def add(): ...\nprint(app.task(add).name)"
    )

    assert run_script(tmp_path, "", "-c", text, cwd=tmp_path) == "shop.add"


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("sqlite:///srv/shop.liteq", "/srv/shop.liteq"),
        ("sqlite:////srv/shop.liteq", "/srv/shop.liteq"),
        ("sqlite:///srv/a%20b.liteq?durability=normal", "/srv/a b.liteq"),
        ("/srv/shop.liteq", "/srv/shop.liteq"),
        ("memory://", None),
        ("sqlite://:memory:", None),
    ],
)
def test_a_url_names_a_store(url: str, folder: str | None) -> None:
    broker: Any = connect(url)

    assert broker.folder == (None if folder is None else Path(folder))


def test_a_relative_path_that_is_written_as_an_absolute_one_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="at the root of the file system") as caught:
        connect("sqlite:///shop.liteq?durability=normal")
    said = str(caught.value)
    assert "working directory write sqlite://shop.liteq?durability=normal, for" in said
    assert said.endswith("this one sqlite:////shop.liteq?durability=normal")

    assert connect("sqlite:///tmp") is not None  # a volume that is mounted there


@pytest.mark.parametrize("path", ["./shop.liteq", "../shop.liteq", "data/../shop.liteq"])
def test_a_relative_path_is_no_less_a_slip_for_its_dots(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ImproperlyConfigured, match=r"be the folder /shop\.liteq, at") as caught:
        connect(f"sqlite:///{path}")

    assert f"working directory write sqlite://{path}, for" in str(caught.value)
    meant: Any = connect(f"sqlite://{path}")
    assert meant.directory == str((tmp_path / path).resolve())


@pytest.mark.parametrize("slip", ["sqlite://~/shop.liteq", "sqlite:///~/shop.liteq", "~/shop"])
def test_what_a_shell_would_read_as_the_home_folder_is_refused(
    slip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/srv/home")

    with pytest.raises(ImproperlyConfigured, match="write sqlite:///srv/home/shop"):
        connect(slip)

    meant: Any = connect("sqlite://./~/shop.liteq")
    assert meant.directory == str(tmp_path.resolve() / "~" / "shop.liteq")
    (tmp_path / "~").mkdir()
    assert connect("~/shop") is not None


def test_a_url_carries_options_of_the_broker() -> None:
    broker: Any = connect("sqlite:///srv/shop.liteq?durability=normal")

    assert not broker.durable


# Every row of the table in docs/reference/settings.md, as text and as what is made of it.
_OPTIONS = {
    "lease_timeout": ("30", 30.0, lambda broker: broker.lease_timeout),
    "busy_timeout": ("2.5", 2.5, lambda broker: broker._database.busy_timeout),
    "max_size": ("20000000", 20_000_000, lambda broker: broker._database.max_size),
    "max_lengths": ('{"mail": "7"}', 7, lambda broker: broker._lengths.of("mail")),
    "max_length": ("5", 5, lambda broker: broker._lengths.of("mail")),
    "max_deliveries": ("2", 2, lambda broker: broker.max_deliveries),
    "unknown_expires": ("100", 100.0, lambda broker: broker.unknown_expires),
    "poll_interval": ("1", 1.0, lambda broker: broker.poll_interval),
    "allow_network_filesystem": (
        "true",
        True,
        lambda broker: broker._database.allow_network_filesystem,
    ),
    "allow_other_owner": ("yes", True, lambda broker: broker._database.allow_other_owner),
}
_OF_SQLITE = ("busy_timeout", "max_size", "allow_network_filesystem", "allow_other_owner")


@pytest.mark.parametrize("option", _OPTIONS)
@pytest.mark.parametrize("url", ["sqlite:///srv/shop.liteq", "memory://", "redis://h"])
def test_text_is_read_as_the_option_of_the_broker_that_it_is(url: str, option: str) -> None:
    if url.startswith("redis") and option in _OF_SQLITE:
        return
    text, value, read = _OPTIONS[option]

    in_query = connect(f"{url}?{option}={quote(text)}")
    in_dict = connect(url, {option: text})

    for broker in (in_query, in_dict):
        assert read(broker) == value
        assert type(read(broker)) is type(value)


@pytest.mark.parametrize("text", ["false", "0", "no", ""])
def test_the_guard_against_network_file_systems_is_on_if_the_url_says_so(text: str) -> None:
    broker: Any = connect(f"sqlite:///srv/shop.liteq?allow_network_filesystem={text}")

    assert broker._database.allow_network_filesystem is False


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lease_timeout", "soon"),
        ("busy_timeout", "0"),
        ("busy_timeout", "inf"),
        ("max_size", "20MB"),
        ("max_size", 2.5),
        ("max_lengths", '{"mail": 0}'),
        ("max_lengths", "mail"),
        ("max_length", "0"),
        ("max_deliveries", "2.5"),
        ("max_deliveries", True),
        ("unknown_expires", "nan"),
        ("poll_interval", "-1"),
        ("allow_network_filesystem", "maybe"),
        ("durability", "off"),
    ],
)
def test_an_option_of_the_broker_that_cannot_be_is_refused(option: str, value: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"{option} .*, not {value!r}"):
        connect("memory://", {option: value})
    with pytest.raises(ImproperlyConfigured, match=f"{option} .*, not '{value}'"):
        connect(f"memory://?{option}={value}")


def test_the_url_goes_before_the_options_and_these_before_the_settings() -> None:
    options: dict[str, Any] = {"max_deliveries": 5, "lease_timeout": 30}
    for url in ("memory://", "redis://h"):
        app = Liteq("shop", broker=f"{url}?max_deliveries=2", worker_lease_timeout=90)
        app.conf.broker_transport_options = options

        assert (app.broker.max_deliveries, app.broker.lease_timeout) == (2, 30.0)


def test_an_option_that_is_none_is_the_default() -> None:
    broker: Any = connect("memory://?max_size=", {"busy_timeout": None})

    assert broker._database.max_size is None
    assert broker._database.busy_timeout == 5.0


def test_options_of_other_transports_are_passed_over() -> None:
    connect("memory://", {"visibility_timeout": 3600})


def test_an_unknown_option_of_the_broker_is_warned_about() -> None:
    with pytest.warns(ConfigWarning, match="durabilty"):
        connect("memory://", {"durabilty": "normal"})
    for url in ("memory://", "redis://h"):
        with pytest.warns(ConfigWarning, match="URL: .* no option 'clock' .it has .*max_leng"):
            connect(f"{url}?clock=1")


@pytest.mark.parametrize("url", ["amqp://guest@host//", "sqs://", "pyamqp://x"])
def test_a_message_server_that_liteq_does_not_speak_is_refused_with_the_alternatives(
    url: str,
) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"no broker for .* use sqlite:///"):
        connect(url)


@pytest.mark.parametrize(
    "url",
    ["redis:/:pw@localhost:6379/0", "redis//localhost", "sqlite:shop", "postgres:x", "memory:"],
)
def test_a_url_without_its_slashes_makes_no_store(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImproperlyConfigured, match="has no '://' after") as info:
        Liteq("shop", broker=url).send_task("shop.tick")
    assert "pw" not in str(info.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["./a:b", "a/b:c", "shop", "dir//shop", "a.b"])
def test_a_path_may_have_a_colon_behind_its_first_folder(path: str) -> None:
    assert scheme_of(path) == "sqlite"


def test_a_mistyped_scheme_is_refused_without_its_password() -> None:
    with pytest.raises(ImproperlyConfigured, match="unknown scheme 'sqlit'") as info:
        connect("sqlit://me:secret@host/x")

    assert "secret" not in str(info.value)


def test_settings_reach_the_broker(clock: FakeClock) -> None:
    with app_in_memory(
        clock=clock, worker_lease_timeout=7, task_max_deliveries=2, task_unknown_expires=9
    ) as app:
        broker: Any = app.broker
        told = broker.lease_timeout, broker.max_deliveries, broker.unknown_expires

    assert told == (7, 2, 9)
    assert broker.clock is clock


def test_of_several_urls_the_first_is_taken() -> None:
    app = Liteq("shop", broker=["memory://", "amqp://"])

    assert app.broker_url == "memory://"


@pytest.mark.parametrize("sign", ["?", "%", "%41", ";", "#", " ", "é", "&"])
def test_a_store_beside_its_program_is_there_whatever_the_folder_is_called(
    sign: str, tmp_path: Path
) -> None:
    folder = tmp_path / f"my{sign}shop"
    folder.mkdir()
    (folder / "tasks.py").write_text("from liteq import Liteq\napp = Liteq('shop')\n")

    app = runpy.run_path(str(folder / "tasks.py"))["app"]
    app.broker.enqueue([])
    app.conf.broker_url = app.broker_url  # as it is handed on

    assert app.broker_url == app.conf.broker_url
    assert app.broker.counts() == {}
    assert {each.name for each in folder.iterdir()} == {"tasks.py", "shop.liteq"}
    app.close()


# Where results go


@pytest.mark.parametrize("backend", ["memory://", "rpc://", "cache+memory://"])
def test_a_backend_that_means_the_same_store_keeps_results(backend: str) -> None:
    with app_in_memory(backend=backend) as app:
        assert not app.task(add).delay(1, 2).ignored


@pytest.mark.parametrize("backend", [None, "disabled://", "disabled"])
def test_no_backend_keeps_no_results(backend: str | None) -> None:
    with app_in_memory(backend=backend) as app:
        result = app.task(add).delay(1, 2)

        assert result.ignored
        assert result.get() is None


def test_another_database_of_the_same_server_is_the_same_store() -> None:
    app = Liteq("shop", broker="redis://:pw@host:6379/0", backend="redis://host:6379/1")

    assert app.keeps_results


@pytest.mark.parametrize("backend", ["db+sqlite:///results.db", "redis://u:pw@host/0"])
def test_another_store_for_results_is_refused(backend: str) -> None:
    app = Liteq("shop", broker="memory://", backend=backend)

    with pytest.raises(ImproperlyConfigured, match="is not the store of the broker") as info:
        app.task(add).delay(1, 2)

    assert "pw" not in str(info.value)


# Tasks


def test_a_decorated_function_is_registered_at_once(app: Liteq) -> None:
    task = app.task(add)

    assert app.tasks["test_app.add"] is task
    assert task.name == "test_app.add"
    assert task(2, 3) == 5


def test_options_of_a_task_are_its_attributes(app: Liteq) -> None:
    task = app.task(name="sum", queue="high", max_retries=None, acks_late=False)(add)

    assert (task.name, task.queue, task.max_retries, task.acks_late) == (
        "sum",
        "high",
        None,
        False,
    )


def test_an_option_that_is_not_set_follows_the_settings(app: Liteq) -> None:
    task = app.task(ignore_result=None)(add)

    app.conf.task_ignore_result = True

    assert task.ignore_result is True
    assert task.delay(1, 2).ignored


def test_making_tasks_reads_no_configuration(app: Liteq) -> None:
    app.config_from_object("no_such_module_anywhere")

    app.task(queue="high")(add)

    with pytest.raises(ImproperlyConfigured, match="does not exist"):
        _ = app.conf.timezone


def test_a_misspelt_option_of_a_task_is_an_error_that_suggests_the_right_one(
    app: Liteq,
) -> None:
    with pytest.raises(TypeError, match="max_retires'; did you mean 'max_retries'"):
        app.task(max_retires=3)(add)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("given", "meant"), [("brokr", "broker"), ("backends", "backend"), ("includes", "include")]
)
def test_a_misspelt_argument_of_an_app_is_an_error(given: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"no argument '{given}': did you mean '{meant}'"):
        Liteq("shop", **{given: "sqlite:///elsewhere"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("retries", "; did you mean 'max_retries'"),  # Huey's
        ("context", "; did you mean 'bind'"),
        ("max_age", "; did you mean 'expires'"),  # Dramatiq's
        ("queue_name", "; did you mean 'queue'"),
        ("timeout", "; did you mean 'time_limit'"),  # RQ's
        ("failure_ttl", "; did you mean 'result_expires'"),
        ("retry", "; did you mean 'max_retries'"),
        ("countdown", r": it is an option of a call, apply_async\(…, countdown=…\)"),
        ("delay", r": it is an option of a call, apply_async\(…, countdown=…\)"),
        ("job_id", r": it is an option of a call, apply_async\(…, task_id=…\)"),
        ("meta", r": it is an option of a call, apply_async\(…, headers=…\)"),
        ("depends_on", r": send both as one workflow, a\.s\(\) \| b\.si\(\)"),
        ("pipe_ignore", r": a call that takes no result is task\.si"),
        ("repeat", ": it is a periodic task"),
    ],
)
def test_what_other_queues_call_an_option_leads_to_ours(
    app: Liteq, option: str, answer: str
) -> None:
    options: Any = {option: 1}
    with pytest.raises(TypeError, match=f"a task has no option '{option}'{answer}"):
        app.task(**options)(add)


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("delay", "; did you mean 'countdown'"),
        ("failure_ttl", "; did you mean 'result_expires'"),
        ("on_success", "; did you mean 'link'"),
        ("retry_delay", r": it is an option of the task, @app\.task\(default_retry_delay=…\)"),
        ("min_backoff", r": it is an option of the task, @app\.task\(retry_backoff=…\)"),
        ("depends_on", ": send both as one workflow"),
    ],
)
def test_what_other_queues_call_an_option_of_a_call_leads_to_ours(
    app: Liteq, option: str, answer: str
) -> None:
    task: Any = app.task(add)
    with pytest.raises(TypeError, match=f"a call has no option '{option}'{answer}"):
        task.apply_async((1, 2), **{option: 1})


@pytest.mark.parametrize(
    ("hook", "answer"),
    [
        ("on_success", "; to send another task then, give a call link=other.s()"),
        ("on_failure", "; to send another task then, give a call link_error=other.s()"),
        ("after_return", ""),
    ],
)
def test_a_hook_that_cannot_be_called_is_refused(app: Liteq, hook: str, answer: str) -> None:
    for given in ("other", app.task(add).s()):
        options: Any = {hook: given}
        with pytest.raises(TypeError) as caught:
            app.task(**options)
        assert str(caught.value).startswith(
            f"{hook} must be a function for liteq to call, not "
        )
        assert str(caught.value).endswith(f"{given!r}{answer}")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"autoretry_for": ("OSError",)}, "autoretry_for takes classes of exceptions"),
        ({"throws": int}, "throws takes classes of exceptions, not <class 'int'>"),
        ({"dont_autoretry_for": OSError()}, "dont_autoretry_for takes classes"),
        (
            {"max_retries": "3"},
            "max_retries must be a whole number, or None for no limit, not '3'",
        ),
        ({"max_retries": -1}, "max_retries must be 0 or more, or None for no limit, not -1"),
        ({"retry_kwargs": 3}, r"retry_kwargs must be a dict of arguments for retry\(\), not 3"),
        (
            {"retry_kwargs": {"countdwn": 3}},
            "retry_kwargs has no option 'countdwn'; did you mean 'countdown'",
        ),
        ({"name": 3}, "name must be text, not 3"),
        ({"base": int}, r"base must be a subclass of liteq\.Task, not <class 'int'>"),
        ({"max_deliveries": "5"}, "max_deliveries must be a whole number of starts, not '5'"),
        ({"max_deliveries": 5.0}, r"max_deliveries must be a whole number of starts, not 5\.0"),
        ({"max_deliveries": 0}, "max_deliveries 0 is not between 1 and"),
        ({"default_retry_delay": "soon"}, "default_retry_delay must be a number of seconds"),
        ({"retry_backoff": "2x"}, "retry_backoff must be a number of seconds, not '2x'"),
        (
            {"retry_backoff_max": math.nan},
            "retry_backoff_max must be a finite number of seconds",
        ),
    ],
)
def test_options_that_matter_at_a_failure_are_checked_before_it(
    app: Liteq, options: Any, complaint: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=complaint):
        app.task(**options)
    with pytest.raises((TypeError, ValueError), match=complaint):
        shared_task(**options)


def test_an_option_that_the_base_class_has_may_be_given(app: Liteq) -> None:
    class Tagged(Task[..., Any]):
        tag = "none"

    task = app.task(base=Tagged, tag="x")(add)  # type: ignore[call-overload]

    assert task.tag == "x"


def test_a_second_function_under_a_name_is_dropped_with_a_warning(app: Liteq) -> None:
    first = app.task(name="sum")(add)

    with pytest.warns(DuplicateTaskNameWarning, match="'sum' is registered already"):
        second: Any = app.task(name="sum")(lambda: None)

    assert second is first


def define(app: Liteq, source: str, *, module: str, file: str) -> Any:
    """Define a task `work` as a module, a prompt or a notebook would."""
    scope = {"__name__": module, "app": app}
    exec(compile(f"@app.task\ndef work(n=1): return {source}", file, "exec"), scope)
    return scope["work"]


@pytest.mark.parametrize(
    ("module", "file"), [("__main__", "<stdin>"), ("__main__", "<ipython-input-7>")]
)
def test_what_is_typed_again_at_a_prompt_takes_the_place_of_the_first(
    app: Liteq, module: str, file: str
) -> None:
    first = define(app, "n", module=module, file=file)
    second = define(app, "n + 100", module=module, file=f"{file}>")

    assert (second(), app.tasks[first.name]()) == (101, 101)


def test_a_file_that_is_read_again_after_a_change_has_its_new_tasks(app: Liteq) -> None:
    first = define(app, "n", module="shop", file="shop.py")
    again = define(app, "n", module="shop", file="shop.py")
    changed = define(app, "n + 100", module="shop", file="shop.py")

    assert again is first
    assert (changed(), app.tasks[first.name]()) == (101, 101)


def test_a_worker_in_a_notebook_runs_what_the_task_is_now(app: Liteq) -> None:
    with app.worker(concurrency=1):
        first = define(app, "n", module="__main__", file="<stdin>").delay()
        assert first.get(timeout=10) == 1
        second = define(app, "n + 100", module="__main__", file="<stdin>").delay()
        assert second.get(timeout=10) == 101


def test_another_class_under_a_name_takes_its_place_with_a_warning(app: Liteq) -> None:
    class First(Task[..., Any]):
        name = "work"

    class Second(Task[..., Any]):
        name = "work"

    app.register_task(First)
    app.register_task(First)
    with pytest.warns(DuplicateTaskNameWarning):
        app.register_task(Second)

    assert type(app.tasks["work"]) is Second


@pytest.mark.parametrize("form", [dict, lambda rules: [rules]])
def test_settings_may_annotate_tasks(app: Liteq, form: Any) -> None:
    failures = []

    def on_failure(self: Any, exc: Any, *_: Any) -> None:
        failures.append((self.name, str(exc)))

    app.conf.task_annotations = form(
        {"*": {"priority": 3, "on_failure": on_failure}, "slow": {"queue": "slow"}}
    )

    @app.task(name="slow")
    def slow() -> None:
        raise OSError("down")

    message = record(app, slow.delay().id).message
    app.run_until_empty(queues=["slow"])

    assert (message.priority, message.queue) == (3, "slow")
    assert failures == [("slow", "down")]


def test_an_object_may_annotate_tasks(app: Liteq) -> None:
    class Slower:
        def annotate(self, task: Any) -> dict[str, Any] | None:
            return {"rate_limit": "1/s"} if task.name.startswith("slow.") else None

    app.conf.task_annotations = (Slower(), {"*": {"max_retries": 9}})
    slow = app.task(name="slow.one")(lambda: None)
    quick = app.task(name="quick.one")(lambda: None)

    slow.delay()
    quick.delay()

    assert (slow.rate_limit, slow.max_retries) == ("1/s", 9)
    assert (quick.rate_limit, quick.max_retries) == (None, 9)


def test_a_module_that_is_read_again_registers_its_tasks_again_quietly(app: Liteq) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert app.task(add) is app.task(add)


def test_a_missing_task_is_not_registered_and_a_near_name_is_suggested(app: Liteq) -> None:
    app.task(add)

    with pytest.raises(NotRegistered, match=r"'test_app.ad'.*did you mean 'test_app.add'"):
        app.tasks["test_app.ad"]


def test_a_class_is_registered_under_its_own_name(app: Liteq) -> None:
    class Charge(Task[..., Any]):
        def run(self, n: int) -> int:
            return n * 2

    task = app.register_task(Charge)

    assert app.tasks["test_app.Charge"] is task
    assert task.apply((4,)).get() == 8
    assert task.app is app


def test_every_task_has_the_base_class_of_the_app() -> None:
    class Base(Task[..., Any]):
        pass

    with app_in_memory(task_cls=Base) as app:
        assert isinstance(app.task(add), Base)
        assert issubclass(app.Task, Base)


def test_the_base_class_may_be_given_by_its_path() -> None:
    with app_in_memory(task_cls="liteq.task:Task") as app:
        assert app.Task is Task


def test_the_base_class_may_be_set_before_and_after_tasks_are_made(app: Liteq) -> None:
    entered: list[str] = []

    class Own(Task[..., Any]):
        pass

    def early(n: int) -> int:
        return n * 2

    async def later(n: int) -> int:
        return n * 3

    before = [app.task(early), app.task(later)]
    other = app.task(base=Own, name="other")(early)

    class ContextTask(app.Task):  # type: ignore[misc, name-defined]
        priority = 7

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            entered.append(self.name)
            return self.run(*args, **kwargs)

    app.Task = ContextTask
    tasks = [*before, app.task(add)]
    results = [
        task.delay(*args) for task, args in zip(tasks, [(1,), (2,), (3, 4)], strict=True)
    ]
    with app.worker():
        assert [result.get(timeout=20) for result in results] == [2, 6, 7]

    assert sorted(entered) == sorted(task.name for task in tasks)
    assert record(app, results[0].id).message.priority == 7
    assert issubclass(app.Task, ContextTask)
    assert app.Task.app is app
    assert not isinstance(other, ContextTask)
    assert other(4) == 8


def test_a_subclass_of_the_app_may_make_the_base_class_of_its_tasks() -> None:
    class Traced(Liteq):
        def create_task_cls(self) -> type[Task[..., Any]]:
            class TracedTask(super().create_task_cls()):  # type: ignore[misc]
                abstract = True

                def traced(self) -> str:
                    return f"{self.app.main} {self.name}"

            return TracedTask

    app = Traced("shop", broker="memory://", set_as_current=False)
    task: Any = app.task(name="add")(add)

    assert task.traced() == "shop add"
    assert app.Task is app.Task
    assert task.delay(1, 2).id


def test_the_base_class_that_is_set_last_is_that_of_all_tasks(app: Liteq) -> None:
    class First(Task[..., Any]):
        pass

    class Second(Task[..., Any]):
        pass

    task = app.task(add)
    app.Task = First
    app.Task = Second

    assert isinstance(task, Second)
    assert not isinstance(task, First)
    app.finalize()
    app.Task = First
    assert isinstance(task, Second)
    assert isinstance(app.task(name="late")(lambda: None), First)


def test_a_subclass_may_name_tasks_its_own_way() -> None:
    class App(Liteq):
        def gen_task_name(self, name: str, module: str) -> str:
            return f"mine.{name}"

    assert App("shop", broker="memory://").task(add).name == "mine.add"


def test_a_filter_may_wrap_the_function(app: Liteq) -> None:
    def doubled(fun: Callable[..., int]) -> Callable[..., int]:
        def run(*args: int) -> int:
            return fun(*args) * 2

        run.__module__, run.__name__ = fun.__module__, fun.__name__
        return run

    task = app.task(filter=doubled)(add)

    assert task(1, 2) == 6


# Shared tasks


def test_a_shared_task_is_one_of_every_app() -> None:
    early = Liteq("early", broker="memory://")
    assert "test_app.add" not in early.tasks

    task = shared_task(add)
    late = Liteq("late", broker="memory://")

    assert early.tasks["test_app.add"].app is early
    assert late.tasks["test_app.add"].app is late
    assert task.app is late
    early.set_current()
    assert task.app is early
    assert isinstance(task, Task)


def test_a_shared_task_takes_options_and_is_called_like_any_other(app: Liteq) -> None:
    task = shared_task(name="sum", queue="high")(add)

    assert task(1, 2) == 3
    assert record(app, task.delay(1, 2).id).message.queue == "high"
    assert task.__name__ == "add"


def test_sharing_twice_is_an_error(app: Liteq) -> None:
    task = shared_task(add)

    with pytest.raises(TypeError, match="already"):
        shared_task(task)


def test_an_app_that_must_be_finalized_by_hand_says_so() -> None:
    app = Liteq("shop", broker="memory://", autofinalize=False)
    told = []
    app.on_after_finalize.connect(lambda **kw: told.append(kw["sender"]), weak=False)

    with pytest.raises(RuntimeError, match=r"before app.finalize\(\)"):
        _ = app.tasks
    app.finalize()

    assert app.tasks.own() == {}
    assert told == [app]


# The current app


def test_the_app_made_last_is_the_current_one() -> None:
    first = Liteq("first", broker="memory://")
    second = Liteq("second", broker="memory://")
    Liteq("third", broker="memory://", set_as_current=False)

    assert current_app == second
    first.set_current()
    assert current_app.main == "first"


def test_threads_see_the_default_app(app: Liteq) -> None:
    seen = []
    thread = threading.Thread(target=lambda: seen.append(current_app.main))
    thread.start()
    thread.join()

    assert seen == ["shop"]


def test_an_app_is_made_when_one_is_needed_and_there_is_none() -> None:
    assert current_app.main == "default"


def test_there_is_a_current_task_only_while_one_runs(app: Liteq) -> None:
    seen = []

    @app.task
    def look() -> None:
        seen.append((current_task.name, app.current_task, app.current_worker_task))

    assert not current_task
    look()
    look.apply()

    assert seen == [(look.name, look, None), (look.name, look, look)]


def test_the_app_of_the_task_that_runs_is_the_current_one() -> None:
    with ExitStack() as apps:
        first, second = (apps.enter_context(Liteq(n, broker="memory://")) for n in ("a", "b"))
        other = second.task(name="look")(lambda: (current_app.main, current_task.app.main))

        @first.task(name="look")
        def look() -> Any:
            return current_app.main, current_task.app.main, look.app.current_task, other()

        own = ("a", "a", look, ("b", "b"))
        assert look() == look.apply().get() == own
        assert second.current_task is None
        assert current_app == second


def test_a_shared_task_is_sent_to_the_store_of_the_task_that_runs() -> None:
    shared = shared_task(name="shared")(int)
    with ExitStack() as apps:
        first, second = (apps.enter_context(Liteq(n, broker="memory://")) for n in ("a", "b"))

        @first.task
        def call() -> str:
            return shared.delay().id

        sent = first.AsyncResult(call.apply().get())
        second.set_current()

        assert sent.exists()
        assert not second.AsyncResult(sent.id).exists()


def test_the_request_that_is_pushed_has_its_task() -> None:
    with Liteq("a", broker="memory://") as first, Liteq("b", broker="memory://"):
        add = first.task(name="add")(int)

        add.push_request(id="one")
        try:
            assert (current_task.request.id, current_app.main) == ("one", "a")
        finally:
            add.pop_request()


def test_a_task_of_no_app_has_the_current_one(app: Liteq) -> None:
    class Loose(Task[[], str]):
        def run(self) -> str:
            return current_app.main

    assert Loose()() == "shop"


def test_an_app_that_nobody_holds_is_let_go() -> None:
    import weakref

    gone = weakref.ref(Liteq("shop", broker="memory://", set_as_current=False))
    gc.collect()

    assert gone() is None


# Settings


def test_keywords_of_the_app_are_settings() -> None:
    app = Liteq(
        "shop", broker="memory://", include=["a"], task_default_queue="q", timezone="UTC"
    )

    assert (app.conf.task_default_queue, app.conf.include) == ("q", ("a",))


def test_a_warning_about_a_setting_points_at_the_users_line() -> None:
    with pytest.warns(ConfigWarning) as caught:
        Liteq("shop", broker="memory://", task_alwyas_eager=True).conf.update(xyzzy=5)

    assert {Path(warning.filename).name for warning in caught} == {Path(__file__).name}


def test_a_configuration_object_is_read_with_its_namespace() -> None:
    app = Liteq("shop", broker="memory://")
    app.config_from_object({"CELERY_TASK_DEFAULT_QUEUE": "q"}, namespace="CELERY")

    assert app.conf.task_default_queue == "q"


def test_defaults_may_be_added(app: Liteq) -> None:
    app.add_defaults({"task_default_queue": "low"})

    assert app.task(add).delay(1, 2).queue == "low"


def test_signals_tell_of_the_loading_of_the_settings() -> None:
    app = Liteq("shop", broker="memory://")
    told: list[Any] = []

    @app.on_after_configure.connect
    def after(sender: Any, source: Any, **_: Any) -> None:
        told.append((sender, source))

    assert told == []
    _ = app.conf.timezone

    assert told == [(app, app.conf)]


def test_a_setting_that_changes_is_heeded_by_the_next_call(app: Liteq) -> None:
    task = app.task(add)

    before = task.delay(1, 2).queue
    app.conf.task_default_queue = "other"

    assert (before, task.delay(1, 2).queue) == ("default", "other")


def test_the_time_is_that_of_the_zone(clock: FakeClock) -> None:
    app = Liteq("shop", broker="memory://", clock=clock, timezone="Europe/Paris")

    assert app.timezone == ZoneInfo("Europe/Paris")
    assert app.now().timestamp() == clock.now()
    assert app.now().utcoffset() == timedelta(hours=1)
    assert not app.uses_utc_timezone()
    app.conf.timezone = "UTC"
    assert app.uses_utc_timezone()


def test_a_report_holds_no_passwords() -> None:
    app = Liteq("shop", broker="redis://me:s3cret@host/0")

    assert "s3cret" not in app.bugreport()
    assert "app: shop" in app.bugreport()


def test_either_takes_what_is_given_before_the_setting(app: Liteq) -> None:
    assert app.either("task_default_queue", None, "mine") == "mine"
    assert app.either("task_default_queue", None) == "default"


# Finding tasks


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    root = tmp_path / "shop_pkg"
    (root / "sub").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "sub" / "__init__.py").write_text("")
    (root / "tasks.py").write_text(
        "from liteq import shared_task\n@shared_task\ndef found(): return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "shop_pkg"
    for name in [name for name in sys.modules if name.startswith("shop_pkg")]:
        del sys.modules[name]


@pytest.mark.parametrize("given", ["polls.apps.PollsConfig", "polls.apps.Plain"])
def test_a_package_may_be_named_by_a_class_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """As in Django's INSTALLED_APPS."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in {
        "__init__": "",
        "tasks": "FOUND = True",
        "apps": "class PollsConfig: name = 'polls'\nclass Plain: pass\n",
    }.items():
        path = tmp_path / "polls" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    app = Liteq("shop", broker="memory://")
    app.autodiscover_tasks([given], force=True)

    assert ("polls.tasks" in sys.modules) == (given == "polls.apps.PollsConfig")
    with pytest.raises(ModuleNotFoundError, match="polls"):
        app.autodiscover_tasks(["polls.apps.Missing"], force=True)
    for name in [name for name in sys.modules if name.partition(".")[0] == "polls"]:
        del sys.modules[name]


def test_tasks_are_discovered_when_the_default_modules_are_imported(
    app: Liteq, package: str
) -> None:
    app.autodiscover_tasks([package, f"{package}.sub"])
    assert "shop_pkg.tasks" not in sys.modules
    told = []
    import_modules.connect(lambda **kw: told.append(kw["sender"]), weak=False, dispatch_uid="t")

    app.import_default_modules()
    app.import_default_modules()  # as a worker does after its command
    import_modules.disconnect(dispatch_uid="t")

    assert "shop_pkg.tasks.found" in app.tasks
    assert told == [app]


def test_packages_may_be_told_by_a_function_and_imported_at_once(
    app: Liteq, package: str
) -> None:
    app.autodiscover_tasks(lambda: [package], force=True)

    assert "shop_pkg.tasks.found" in app.tasks


def test_packages_are_a_list(app: Liteq) -> None:
    with pytest.raises(TypeError, match="a list of packages, not 'shop'"):
        app.autodiscover_tasks("shop")


def test_a_package_that_does_not_exist_is_an_error(app: Liteq) -> None:
    app.autodiscover_tasks(["no_such_package"])

    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        app.import_default_modules()


def test_an_import_error_inside_a_tasks_module_is_not_hidden(app: Liteq, package: str) -> None:
    module = Path(sys.path[0]) / package / "tasks.py"
    module.write_text("import no_such_dependency")
    app.autodiscover_tasks([package])

    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        app.import_default_modules()


def test_included_modules_are_imported(app: Liteq, package: str) -> None:
    app.conf.include = ["shop_pkg.tasks"]

    app.import_default_modules()

    assert "shop_pkg.tasks.found" in app.tasks


# Sending by name


def test_a_task_is_sent_by_its_name_without_being_known(app: Liteq) -> None:
    result = app.send_task("elsewhere.charge", (1,), {"n": 2}, queue="high")

    sent = record(app, result.id).message
    assert (sent.task, sent.queue) == ("elsewhere.charge", "high")
    assert json.loads(sent.body) == [[1], {"n": 2}]


def test_a_task_that_is_known_gives_its_own_options_as_defaults(app: Liteq) -> None:
    app.task(queue="high", priority=7)(add)

    sent = record(app, app.send_task("test_app.add", (1, 2), priority=3).id).message

    assert (sent.queue, sent.priority) == ("high", 3)


def test_a_task_sent_by_name_is_sent_even_in_eager_mode(app: Liteq) -> None:
    app.conf.task_always_eager = True

    with pytest.warns(AlwaysEagerIgnored):
        result = app.send_task("elsewhere.charge")

    assert result.detail == "queued"


# Routing


def routed(app: Liteq, **options: Any) -> tuple[str, int]:
    sent = record(app, app.task(add).apply_async((1, 2), **options).id).message
    return sent.queue, sent.priority


def route_all(
    name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **kw: Any
) -> Any:
    return {"queue": f"n{args[0]}"} if task is not None and name == "test_app.add" else None


class OldRouter:
    def route_for_task(self, task: str, args: Any = None, kwargs: Any = None) -> Any:
        return "old"


@pytest.mark.parametrize(
    ("routes", "queue"),
    [
        ({"test_app.add": {"queue": "exact"}}, "exact"),
        ({"test_app.add": "plain"}, "plain"),
        ({"test_*": {"queue": "glob"}, "test_app.add": {"queue": "exact"}}, "exact"),
        ({"test_*": {"queue": "glob"}, "test_app.*": {"queue": "later"}}, "glob"),
        ({"other.*": {"queue": "no"}}, "default"),
        ([("test_app.*", {"queue": "pair"})], "pair"),
        ([("none", {"queue": "no"}), ("test_app.*", "pair")], "pair"),
        (([("test_app.*", {"queue": "nested"})],), "nested"),
        (route_all, "n1"),
        ("test_app.route_all", "n1"),
        (OldRouter, "old"),
        ([{"other": "no"}, route_all], "n1"),
        ([lambda *a, **kw: None, "test_app:OldRouter"], "old"),
    ],
)
def test_a_route_is_found_in_every_form(app: Liteq, routes: Any, queue: str) -> None:
    app.conf.task_routes = routes

    assert routed(app)[0] == queue


def test_a_compiled_pattern_is_a_route(app: Liteq) -> None:
    import re

    app.conf.task_routes = {re.compile(r"test_(app|web)\..*"): {"queue": "regex"}}

    assert routed(app)[0] == "regex"


def test_the_call_beats_the_task_and_the_task_the_route(app: Liteq) -> None:
    app.conf.task_routes = {"test_app.add": {"queue": "route", "priority": 4}}
    assert routed(app) == ("route", 4)

    app.task(add).queue = "own"
    assert routed(app) == ("own", 4)

    app.task(add).priority = 2
    assert routed(app) == ("own", 2)
    assert routed(app, queue="call") == ("call", 2)
    assert routed(app, priority=9) == ("own", 9)


def test_the_route_beats_the_settings(app: Liteq) -> None:
    app.conf.task_routes = {"test_app.add": {"priority": 4, "time_limit": 5}}
    app.conf.task_default_priority = 7
    app.conf.task_time_limit = 60
    task = app.task(add)

    message = record(app, task.delay(1, 2).id).message
    assert (message.priority, message.time_limit) == (4, 5)

    task.time_limit = 30
    assert record(app, task.delay(1, 2).id).message.time_limit == 30


def test_a_signature_and_a_call_by_name_follow_the_task(app: Liteq) -> None:
    app.conf.task_routes = {"test_app.add": {"queue": "route"}}
    task = app.task(queue="own")(add)

    sent = [
        task.s(1, 2).delay(),
        task.s(1, 2).set(queue="call").delay(),
        (task.si(1, 2) | task.si(1, 2)).delay(),
        app.send_task("test_app.add", (1, 2)),
        app.send_task("test_app.add", (1, 2), queue="call"),
    ]

    queues = [record(app, result.id).message.queue for result in sent]
    assert queues == ["own", "call", "own", "own", "call"]


def test_a_route_of_an_exchange_and_a_key_leaves_the_queue_of_the_task(app: Liteq) -> None:
    app.conf.task_queues = (Queue("media", routing_key="media.x"), "own")
    app.conf.task_routes = {"test_app.add": {"exchange": "media", "routing_key": "media.x"}}
    assert routed(app)[0] == "media"

    app.task(add).queue = "own"
    assert routed(app)[0] == "own"


def test_a_router_is_shown_the_options_of_the_task(app: Liteq) -> None:
    seen: list[Any] = []
    app.conf.task_routes = [lambda name, args, kwargs, options, **_: seen.append(options)]
    app.task(queue="own", priority=2)(add).apply_async((1, 2), priority=3)

    assert seen == [{"queue": "own", "priority": 3}]


def test_the_task_beats_the_default_queue(app: Liteq) -> None:
    app.task(queue="own", priority=2)(add)

    assert routed(app) == ("own", 2)


def test_a_routing_key_leads_to_the_queue_that_has_it(app: Liteq) -> None:
    app.conf.task_queues = (Queue("media", routing_key="media.all"), "plain")

    assert routed(app, routing_key="media.all")[0] == "media"
    assert routed(app, routing_key="nobody")[0] == "default"
    assert routed(app, queue=Queue("plain"))[0] == "plain"


def test_an_undeclared_queue_is_an_error_if_none_are_to_be_created(app: Liteq) -> None:
    app.conf.task_queues = ["a", "b"]
    app.conf.task_create_missing_queues = False

    with pytest.raises(QueueNotFound, match="'c' is not in task_queues"):
        routed(app, queue="c")
    with pytest.raises(ImproperlyConfigured, match="'c' is not in task_queues"):
        app.select_queues(["a", "c"])
    assert routed(app, queue="b")[0] == "b"


def test_the_queues_to_consume_are_the_declared_ones_or_the_default_one(app: Liteq) -> None:
    assert app.select_queues() == ("default",)
    app.conf.task_queues = ["a", "b"]
    assert app.select_queues() == ("a", "b")
    assert app.select_queues("x, y,x") == ("x", "y")


@pytest.mark.parametrize("routes", ["nodots", 5, [5]])
def test_what_is_no_route_is_refused(app: Liteq, routes: Any) -> None:
    app.conf.task_routes = routes

    with pytest.raises(ImproperlyConfigured, match="task_routes"):
        routed(app)


# Publishing


def test_receivers_see_a_message_before_and_after_it_is_sent(app: Liteq) -> None:
    seen: list[Any] = []

    @before_task_publish.connect
    def before(sender: Any, headers: Any, body: Any, properties: Any, **kw: Any) -> None:
        seen.append(("before", sender, body[:2], headers["id"], kw["routing_key"]))
        headers["trace"] = "t1"
        properties["priority"] = 6

    @after_task_publish.connect
    def after(sender: Any, headers: Any, **kw: Any) -> None:
        seen.append(("after", sender, headers["trace"]))

    result = app.task(add).delay(1, 2)

    assert seen == [
        ("before", "test_app.add", ((1, 2), {}), result.id, "default"),
        ("after", "test_app.add", "t1"),
    ]
    sent = record(app, result.id).message
    assert (sent.headers, sent.priority) == ({"trace": "t1"}, 6)


def test_a_receiver_reads_from_the_request_what_another_has_put_into_the_headers(
    app: Liteq,
) -> None:
    seen: list[Any] = []

    @before_task_publish.connect
    def before(headers: Any, **_: Any) -> None:
        headers["X-Correlation-ID"] = "c1"

    @task_prerun.connect
    def prerun(task: Any, **_: Any) -> None:
        seen.append((task.request.get("X-Correlation-ID"), task.request.get("tenant")))

    task = app.task(add)
    result = task.apply_async((1, 2), headers={"tenant": "acme"})
    with app.worker():
        assert result.get(timeout=20) == 3

    task.apply((1, 2), headers={"tenant": "here"})
    assert seen == [("c1", "acme"), (None, "here")]


def test_receivers_see_the_tasks_of_a_workflow_and_nothing_else(app: Liteq) -> None:
    seen: list[tuple[str, Any]] = []

    @before_task_publish.connect
    def before(sender: Any, body: Any, **kw: Any) -> None:
        seen.append(("before", body[0]))

    @after_task_publish.connect
    def after(sender: Any, body: Any, **kw: Any) -> None:
        seen.append(("after", body[0]))

    task = app.task(add)
    chord([task.s(1, 2), task.s(3, 4)], task.si(5, 6)).delay()

    assert sorted(seen) == [
        (when, args) for when in ("after", "before") for args in [(1, 2), (3, 4), (5, 6)]
    ]


class Unreachable:
    losses = 0

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.sent: list[Any] = []

    def enqueue(self, messages: Any, edges: Any = (), workflow: Any = None) -> None:
        if self.failures:
            self.failures -= 1
            raise BrokerUnavailable("away")
        self.sent += messages

    def close(self) -> None:
        pass


def test_sending_is_tried_again_when_the_store_cannot_be_reached(app: Liteq) -> None:
    app.broker = store = Unreachable(2)  # type: ignore[assignment]
    policy = {"interval_start": 0, "interval_step": 0}

    app.task(add).apply_async((1, 2), retry_policy=policy)

    assert len(store.sent) == 1


@pytest.mark.parametrize("wrong", [float("inf"), float("nan"), -1, "soon"])
@pytest.mark.parametrize("name", ["interval_start", "interval_step", "interval_max"])
def test_a_pause_of_a_call_without_end_or_below_zero_is_refused(
    app: Liteq, name: str, wrong: Any
) -> None:
    told = f"retry_policy = .* its {name} must be a number of seconds"
    with pytest.raises(ValueError, match=told):
        app.task(add).apply_async((1, 2), retry_policy={name: wrong})
    assert app.broker.counts() == {}


@pytest.mark.parametrize("options", [{"retry": False}, {"retry_policy": {"max_retries": 1}}])
def test_sending_gives_up_as_the_policy_says(app: Liteq, options: Any) -> None:
    app.broker = store = Unreachable(2)  # type: ignore[assignment]

    with pytest.raises(BrokerUnavailable):
        app.task(add).apply_async((1, 2), **options)
    assert store.sent == []


# Copies


def test_an_app_can_be_pickled(app: Liteq) -> None:
    import pickle

    copy = pickle.loads(pickle.dumps(app))

    assert (copy.main, copy.broker_url) == ("shop", "memory://")


def test_a_task_is_pickled_as_its_name(app: Liteq) -> None:
    import pickle

    task = app.task(add)

    assert pickle.loads(pickle.dumps(task)) == task


def test_an_app_in_a_module_is_referred_to_by_name(app: Liteq) -> None:
    module = ModuleType("somewhere")
    module.__dict__["app"] = app
    sys.modules["somewhere"] = module
    app.module = "somewhere"
    try:
        assert app.reference() == "somewhere:app"
    finally:
        del sys.modules["somewhere"]


def test_an_app_that_no_module_holds_cannot_be_referred_to() -> None:
    app = Liteq("shop", broker="memory://")

    with pytest.raises(ImproperlyConfigured, match="is not an attribute of a module"):
        app.reference()


# Odds and ends


def test_a_registry_takes_and_gives_up_tasks(app: Liteq) -> None:
    task = app.task(add)
    registry = app.tasks

    registry.unregister(task)
    assert "test_app.add" not in registry
    registry.register(task)
    registry.unregister("test_app.add")
    with pytest.raises(NotRegistered):
        registry.unregister("test_app.add")
    with pytest.raises(ValueError, match="has no name"):
        registry.register(Task())


def test_a_proxy_does_what_it_stands_for_does() -> None:
    from liteq.local import Proxy

    held: dict[str, Any] = {"a": 1}
    proxy: Any = Proxy(lambda: held, name="held", doc="What is held.")

    proxy["b"] = 2
    assert (proxy["b"], "a" in proxy, len(proxy), list(proxy)) == (2, True, 2, ["a", "b"])
    assert proxy == held
    assert isinstance(proxy, dict)
    assert (str(proxy), repr(proxy), bool(proxy)) == (str(held), repr(held), True)
    assert (proxy.__name__, proxy.__doc__) == ("held", "What is held.")
    assert "items" in dir(proxy)
    assert proxy | {"c": 3} == {"a": 1, "b": 2, "c": 3}
    assert proxy._get_current_object() is held


def test_a_proxy_sets_attributes_on_what_it_stands_for() -> None:
    from liteq.local import Proxy

    class Thing:
        def __call__(self, n: int) -> int:
            return n + 1

    thing = Thing()
    proxy: Any = Proxy(lambda: thing)

    proxy.colour = "red"
    assert thing.colour == "red"  # type: ignore[attr-defined]
    del proxy.colour
    assert not hasattr(thing, "colour")
    assert proxy(1) == 2
    assert hash(proxy) == hash(thing)


def test_a_callable_without_a_name_needs_one(app: Liteq) -> None:
    with pytest.raises(TypeError, match="pass name="):
        app.task(partial(add, 1))


class Adder:
    """Adds."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, x: int) -> int:
        return x + self.n


def test_a_callable_without_a_name_is_a_task_of_the_name_that_it_is_given(app: Liteq) -> None:
    def named(task: BoundTask, x: int, y: int) -> str:
        return f"{task.name}: {x + y}"

    part = app.task(name="shop.part")(partial(pow, 2))
    adder = app.task(Adder(3), name="adder")  # type: ignore[call-overload]
    bound = app.task(name="bound", bind=True)(partial(named, y=2))
    shared = shared_task(name="shared")(partial(pow, 3))

    results = [part.delay(5), adder.delay(4), bound.delay(1), shared.delay(2)]
    with app.worker():
        assert [result.get(timeout=20) for result in results] == [32, 7, "bound: 3", 9]
    assert (part.name, part.__name__, adder.__doc__) == ("shop.part", "part", "Adds.")
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'x'"):
        adder.delay()


def test_a_task_takes_its_function_alone_and_options_by_keyword(app: Liteq) -> None:
    with pytest.raises(TypeError, match="options by keyword"):
        app.task("name")  # type: ignore[call-overload]


def test_a_shared_option_makes_a_task_of_every_app(app: Liteq) -> None:
    app.task(shared=True)(add)

    assert "test_app.add" in Liteq("other", broker="memory://").tasks


def test_a_config_module_is_named_by_an_environment_variable(
    app: Liteq, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("shop_settings")
    module.__dict__["task_default_queue"] = "q"
    monkeypatch.setitem(sys.modules, "shop_settings", module)
    monkeypatch.setenv("SHOP_SETTINGS", "shop_settings")

    assert app.config_from_envvar("SHOP_SETTINGS")
    assert app.conf.task_default_queue == "q"
    app.config_from_cmdline(["task_default_queue=r"])
    assert app.conf.task_default_queue == "r"


def test_an_app_may_be_configured_when_it_is_made() -> None:
    app = Liteq(
        "shop",
        broker="memory://",
        config_source={"X_TASK_DEFAULT_QUEUE": "q"},
        namespace="X",
        strict_typing=False,
    )

    assert (app.conf.task_default_queue, app.conf.strict_typing) == ("q", False)


def test_naive_times_are_local_if_utc_is_off() -> None:
    app = Liteq("shop", broker="memory://", enable_utc=False)

    assert app.timezone.utcoffset(app.now()) is not None
    assert app.sender.rules().zone is None


@pytest.mark.traced
def test_a_forked_child_hears_of_it(app: Liteq) -> None:
    told: list[Any] = []
    app.on_after_fork.connect(lambda **kw: told.append(kw["sender"]), weak=False)

    child = fork(lambda: told == [app])

    assert os.waitpid(child, 0)[1] == 0
    assert told == []


def test_the_command_line_can_be_run_with_the_app(
    app: Liteq, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not app.start(["queues"])
    with pytest.raises(ValueError, match="'worker' must be in argv"):
        app.worker_main(["prog", "-l", "info"])


def test_an_app_is_closed_by_its_context(tmp_path: Path) -> None:
    with Liteq("shop", broker=f"sqlite://{tmp_path}/s") as app:
        app.send_task("work")
        assert app.AsyncResult("x").backend is app.backend
    assert app.broker.counts() == {"default": {"queued": 1}}
    app.close()


def test_a_task_names_the_error_of_a_store_that_is_away(app: Liteq) -> None:
    task = app.task(add)

    assert task.OperationalError is Task.OperationalError is BrokerUnavailable


def test_stamps_travel_in_the_message(app: Liteq) -> None:
    options: Any = {"stamped_headers": ["who"], "who": "me"}

    sent = record(app, app.task(add).apply_async((1, 2), **options).id).message

    assert (sent.stamped_headers, sent.stamps) == (("who",), {"who": "me"})


def test_a_function_whose_signature_is_unknown_is_not_checked(app: Liteq) -> None:
    task = app.task(name="most")(max)

    task.apply_async((1, 2, 3))

    assert task.apply((1, 2)).get() == 2


def test_a_health_check_may_ask_for_the_connection_as_celerys_do(broker: Broker) -> None:
    app = Liteq("shop", set_as_current=False)
    app.broker = broker

    with app.connection_for_read() as connection:
        assert connection.ensure_connection(max_retries=3, timeout=2) is connection
        assert connection.connected
        assert connection.as_uri() == app.broker_url


def test_a_connection_to_a_store_that_is_not_there_says_so() -> None:
    app = Liteq("shop", broker="redis://:secret@127.0.0.1:1/0", set_as_current=False)
    connection = app.connection()

    with pytest.raises(OperationalError, match="cannot be reached"):
        connection.ensure_connection()
    assert not connection.connected
    assert "secret" not in connection.as_uri()


def test_an_attribute_of_the_apps_own_task_class_is_an_option() -> None:
    class Tagged(Task[..., Any]):
        tag: str | None = None

    app = Liteq("shop", broker="memory://", task_cls=Tagged)

    @app.task(tag="billing")
    def charge() -> None: ...

    assert charge.tag == "billing"  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="a task has no option 'tga'"):

        @app.task(tga="billing")  # type: ignore[call-overload]
        def refund() -> None: ...


def test_an_attribute_of_the_task_class_of_an_app_is_an_option_of_a_shared_task() -> None:
    class Tagged(Task[..., Any]):
        tag: str | None = None

    charge: Any = shared_task(name="charge", tag="billing")(add)  # type: ignore[call-overload]
    other = Liteq("other", broker="memory://")
    by_class = Liteq("shop", broker="memory://", task_cls=Tagged)
    by_attribute = Liteq("shop2", broker="memory://")
    by_attribute.Task = Tagged

    for app in (by_class, by_attribute, other):
        made: Any = app.tasks["charge"]
        assert made.tag == "billing"
    late: Any = shared_task(name="late", tag="late")(add)  # type: ignore[call-overload]
    assert (charge.tag, late.tag) == ("billing", "late")


def test_a_misspelt_option_of_a_shared_task_is_told_by_every_app_that_makes_it() -> None:
    shared_task(max_retrie=3)(add)  # type: ignore[call-overload]
    app = Liteq("shop", broker="memory://")

    for _ in range(2):
        with pytest.raises(TypeError) as caught:
            _ = app.tasks
        assert str(caught.value) == (
            "test_app.add: a task has no option 'max_retrie'; did you mean 'max_retries'?"
        )


def test_a_thread_that_asks_while_another_finalizes_sees_all_tasks() -> None:
    begun, go = threading.Event(), threading.Event()

    class Slow(Task[..., Any]):
        abstract = True

        @classmethod
        def on_bound(cls, app: Liteq) -> None:
            begun.set()
            assert go.wait(10)
            assert "last" not in app.tasks  # what it calls sees what there is: no deadlock

    shared_task(name="slow", base=Slow)(lambda: None)
    shared_task(name="last")(lambda: None)
    app = Liteq("shop", broker="memory://")
    first = threading.Thread(target=lambda: app.tasks)
    first.start()
    assert begun.wait(10)
    found: list[Any] = []
    second = threading.Thread(target=lambda: found.append(app.tasks.get("last")))
    second.start()
    shared_task(name="meanwhile")(lambda: None)
    go.set()
    for thread in (first, second):
        thread.join(10)

    assert found == [app.tasks["last"]]
    assert "meanwhile" in app.tasks


def test_what_a_finalized_app_refuses_at_once_is_not_kept_for_later_ones() -> None:
    app = Liteq("shop", broker="memory://")
    app.finalize()

    with pytest.raises(TypeError, match="has no option 'max_retrie'"):
        shared_task(max_retrie=3)(add)  # type: ignore[call-overload]

    assert Liteq("late", broker="memory://").tasks.own() == {}
