"""The command line as a user meets it: real processes in a project of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from hostile import HOSTILE, forge
from terminal import JOBS, PATIENCE, TASKS, Here, Project, Running, wait_until
from world import deaf

import liteq
from liteq import exceptions
from liteq.cli import main
from liteq.cli.exits import status_of
from liteq.cli.root import COMMANDS, cli
from liteq.cli.run import _stop
from liteq.discovery import find_app
from liteq.ids import new_id
from liteq.message import Message

pytestmark = pytest.mark.process


# Words


def test_help_is_quick_because_it_imports_little(project: Project) -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom liteq.cli.root import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "heavy = {'apsw', 'redis', 'croniter', 'multiprocess', 'asyncio', 'liteq.app',\n"
        "         'liteq.brokers', 'liteq.config', 'json', 'logging', 'difflib', 'rich'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules) - before))\n"
    )

    text = project.python(code)

    assert "Run tasks until stopped." in text
    assert "7      the app was not found" in text
    assert text.endswith("HEAVY []")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_list_of_commands_says_what_each_says_of_itself(name: str) -> None:
    context = click.Context(cli)
    command = cli.get_command(context, name)
    assert command is not None
    assert command.help is not None
    assert command.help.splitlines()[0] == COMMANDS[name][1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["wroker"], "there is no command 'wroker'. Did you mean 'worker'?"),
        (["dead", "lisst"], "there is no command 'lisst'. Did you mean 'list'?"),
        (["worker", "--concurency", "2"], "Did you mean '--concurrency'?"),
        (["worker", "-c", "0"], "'0' is neither a number above 0 nor auto"),
        (["worker", "-P", "gevent"], "asyncio runs many tasks at once"),
        (["worker", "-Q", "a,,b"], "'a,,b' has an empty name in it"),
        (["worker", "--autoscale", "many"], "'many' is not MAX,MIN"),
        (["worker", "-D"], "--detach is for a service manager"),
        (["worker", "--uid", "www"], "start the worker as that user"),
        (["worker", "concurrency"], "'concurrency': an argument must be SETTING=VALUE"),
        (["worker", "worker_concurency=3"], "did you mean 'worker_concurrency'?"),
        (["worker", "lease_timeout=soon"], "worker_lease_timeout = 'soon'"),
        (["worker", "--pidfile", "absent/x.pid"], "--pidfile absent/x.pid: No such file"),
        (["call", "tasks.add", "-a", "[1"], "'[1' is not JSON"),
        (["call", "tasks.add", "-k", "[1]"], "'[1]' is not a JSON object"),
        (["call", "tasks.add", "--eta", "noon"], "'noon' is not a time like"),
        (["call", "tasks.add", "-a", "[1]"], "tasks.add: add() missing 1 required"),
        (["dead", "redrive"], "give ids, filters or --all"),
        (["run", "absent.py"], "there is no file 'absent.py'"),
        (["--workdir", "absent", "queues"], "--workdir absent: No such file"),
        (["queues", "-b", "amqp://host"], "no broker for amqp://: use sqlite:///"),
        (["queues", "-b", "redis://host/shop"], "the database must be a number, not 'shop'"),
        (["queues", "-b", "kafkesque://host"], "unknown scheme 'kafkesque': use sqlite:///"),
    ],
)
def test_wrong_usage_is_explained_and_ends_with_2(
    here: Here, words: list[str], message: str
) -> None:
    done = here(*words)

    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["worker", "--help"], 0, "Usage: liteq worker [OPTIONS] [SETTING=VALUE]..."),
        (["worker", "--version"], 0, "liteq "),
        (["worker", "-c", "0"], 2, "'0' is neither a number above 0 nor auto"),
        (["worker", "--workdir", "absent"], 2, "--workdir absent: No such file"),
        (["call", "tasks.worker", "-k", "worker"], 2, "'worker' is not JSON"),
        (["queues", "purge", "worker", "-y"], 3, "there is no queue 'worker'"),
    ],
)
def test_words_that_start_no_worker_are_obeyed_once(
    project: Project, words: list[str], status: int, message: str
) -> None:
    done = project(*words)

    assert (done.stdout + done.stderr).count(message) == 1
    assert done.returncode == status


MODULES = """
import sys
from tasks import app

@app.task
def modules():
    return sorted(sys.modules)
"""


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_worker_keeps_nothing_of_what_reads_its_words(project: Project, pool: str) -> None:
    project.write("look.py", MODULES)
    id = project.python("import look; print(look.modules.delay().id)")

    project.ok("-A", "look", "worker", "--burst", "-qP", pool, "-Q", "default", "-n", "w@%h")

    modules = json.loads(project.ok("-A", "look", "result", id))
    assert "look" in modules
    assert "click" not in modules


NO_FORK = """
import errno, os

def fork():
    raise OSError(errno.EAGAIN, "no process")

os.fork = fork
"""
NO_CHILD_TO_WAIT_FOR = """
import signal

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
"""
BURST = """
import sys
from liteq.__main__ import main

sys.argv[1:] = ["worker", "--burst", "-P", "solo", "-q"]
sys.exit(main())
"""


@pytest.mark.parametrize("place", [NO_FORK, NO_CHILD_TO_WAIT_FOR], ids=["fork", "SIGCHLD"])
def test_a_worker_starts_where_no_process_reads_its_words(project: Project, place: str) -> None:
    id = project.ok("call", "tasks.add", "-a", "[1, 2]")

    project.python(place + BURST)

    assert project.ok("result", id) == "3"


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e300"])
@pytest.mark.parametrize(
    "words",
    [
        ["beat", "--max-interval"],
        ["call", "tasks.add", "-a", "[1, 2]", "--countdown"],
        ["call", "tasks.add", "-a", "[1, 2]", "--expires"],
        ["call", "tasks.add", "-a", "[1, 2]", "--wait"],
        ["events", "--freq"],
        ["events", "--timeout"],
        ["health", "--max-age"],
        ["inspect", "active", "--timeout"],
        ["queues", "latency", "--max"],
        ["result", "id", "--wait"],
        ["schedule", "add", "often", "tasks.fail", "30", "--expires"],
        ["status", "--interval"],
        ["status", "--timeout"],
        ["watch", "id", "--timeout"],
        ["worker", "--grace"],
        ["worker", "--soft-time-limit"],
        ["worker", "--time-limit"],
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_no_span_of_time_is_endless_or_no_number_and_nothing_is_sent(
    words: list[str], seconds: str, here: Here
) -> None:
    done = here(*words, seconds)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.search(r"number of seconds|outside of the years", done.stderr)
    assert here.ok("ls", "--json") == "[]"


@pytest.mark.parametrize(
    "words",
    [
        ["-A", "jobs", "report", "--json"],
        ["report", "-A", "jobs", "--json"],
        ["report", "--json", "--app=jobs"],
        ["-A", "tasks", "report", "--json", "-A", "jobs"],  # the nearest to the command wins
    ],
)
def test_global_options_go_anywhere(project: Project, here: Here, words: list[str]) -> None:
    project.write("jobs.py", JOBS)
    assert json.loads(here(*words).stdout)["app"] == "jobs:app"


@pytest.mark.parametrize(
    "words",
    [
        ["-A", "jobs", "dead", "list"],
        ["dead", "-A", "jobs", "list"],
        ["dead", "list", "-A", "jobs"],
    ],
)
def test_global_options_go_anywhere_around_a_command_of_two_words(
    project: Project, here: Here, words: list[str]
) -> None:
    (project.folder / "tasks.py").unlink()
    project.write("jobs.py", JOBS)
    assert here(*words).returncode == 0


@pytest.mark.parametrize("words", [["--version"], ["worker", "--version"], ["version"]])
def test_the_version_is_told_anywhere(here: Here, words: list[str]) -> None:
    assert here(*words) == (0, f"liteq {liteq.__version__}\n", "")


def test_the_working_directory_and_the_store_can_be_named(project: Project, here: Here) -> None:
    below = project.folder / "below"
    below.mkdir()
    (below / "jobs.py").write_text(JOBS)

    facts = json.loads(
        here.ok(
            "report", "--json", "--workdir", "below", "-A", "jobs", "-b", "sqlite://x.liteq"
        )
    )

    assert facts["app"] == "jobs:app"
    assert facts["store"] == str(below / "x.liteq")


# Apps that are not there


@pytest.mark.parametrize("command", [["worker"], ["queues"], ["run", "tasks.py"]])
def test_an_app_that_cannot_be_imported_shows_the_users_code_and_ends_with_7(
    project: Project, here: Here, command: list[str]
) -> None:
    file = project.write("tasks.py", "import absent_library\n")

    done = project(*command) if command[0] == "run" else here(*command)  # run forks

    assert done.returncode == 7
    assert done.stderr.splitlines() == [
        "Traceback (most recent call last):",
        f'  File "{file}", line 1, in <module>',
        "    import absent_library",
        "ModuleNotFoundError: No module named 'absent_library'",
        done.stderr.splitlines()[-1],
    ]
    assert done.stderr.splitlines()[-1].startswith("hint: 'absent_library' is not installed")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-A", "absent", "worker"], "there is no module 'absent'"),
        (["-A", "tasks:nothing", "worker"], "has no 'nothing'; its apps: app"),
        (["worker", "-I", "absent"], "there is no module 'absent' (--include)"),
    ],
)
def test_an_app_that_is_not_there_ends_with_7(
    here: Here, words: list[str], message: str
) -> None:
    done = here(*words)
    assert message in done.stderr
    assert done.returncode == 7


def test_a_folder_without_an_app_says_where_it_looked(project: Project, here: Here) -> None:
    (project.folder / "tasks.py").unlink()
    done = here("worker")
    assert f"no liteq app in {project.folder}" in done.stderr
    assert done.returncode == 7


def test_a_module_to_include_that_fails_shows_the_users_code(
    project: Project, here: Here
) -> None:
    project.write("more.py", "1 / 0\n")
    project.write("tasks.py", TASKS.replace('"shop"', '"shop", include=["more"]'))
    done = here("worker", "--burst")
    assert "ZeroDivisionError" in done.stderr
    assert "importlib" not in done.stderr
    assert done.returncode == 7


# Calls and results


def test_a_call_is_run_by_a_burst_and_its_result_read(project: Project, here: Here) -> None:
    id = here.ok("call", "tasks.add", "-a", "[2, 3]")
    waiting = here("result", id)
    project.ok("worker", "--burst", "-c", "1")

    assert waiting.returncode == 124
    assert f"{id} has not ended: PENDING (queued in default)" in waiting.stderr
    assert here.ok("result", id) == "5"
    document = json.loads(here.ok("result", id, "--json"))
    assert (document["state"], document["result"]) == ("SUCCESS", 5)


def test_a_result_that_is_not_there_says_what_it_waits_for(
    project: Project, here: Here
) -> None:
    later = here.ok("call", "tasks.add", "-a", "[2, 3]", "--countdown", "600")
    parked = here.ok("call", "tasks.add", "-a", "[2, 3]")
    project.write("jobs.py", TASKS)  # the same store, and tasks of other names
    here.burst("jobs")

    assert "PENDING (scheduled for a later time)" in here("result", later).stderr
    assert (
        "PENDING (parked: no worker that consumes default knows the task tasks.add)"
        in here("result", parked).stderr
    )
    assert json.loads(here("result", parked, "--json").stdout)["detail"] == "parked"


def test_a_failure_ends_with_1_and_its_error_on_stderr(here: Here) -> None:
    id = here.ok("call", "tasks.fail")
    here.burst()

    short = here("result", id)
    long = here("result", id, "--traceback")
    document = json.loads(here("result", id, "--json").stdout)

    assert (short.returncode, short.stdout) == (1, "")
    assert short.stderr == "ValueError: no stock\n"
    assert 'raise ValueError("no stock")' in long.stderr
    assert document["error"] == {"type": "ValueError", "message": "no stock"}


ODD = (
    JOBS
    + """

@app.task
def keys():
    return {1: {3, 2}, (1, 2): float("inf")}


@app.task
def red():
    return "\x1b[31mred"


@app.task
def stolen():
    raise ValueError("\x1b[2Jgone")
"""
)


def test_a_result_that_json_has_no_word_for_is_json_all_the_same(
    project: Project, here: Here
) -> None:
    project.write("tasks.py", ODD)
    id = here.ok("call", "tasks.keys")
    here.burst()

    line, document = here.ok("result", id), here.ok("result", id, "--json")

    expected = {"1": [2, 3], "(1, 2)": "inf"}
    assert json.loads(line) == json.loads(document)["result"] == expected


@pytest.mark.traced
def test_a_result_steers_no_terminal_and_is_as_it_is_in_a_pipe(
    project: Project, here: Here
) -> None:
    project.write("tasks.py", ODD)
    red, stolen = here.ok("call", "tasks.red"), here.ok("call", "tasks.stolen")
    here.burst()

    piped = here.ok("result", red)
    error = here("result", stolen, "--traceback").stderr
    here.forget()

    assert piped == "\x1b[31mred"
    assert "\x1b" not in error
    assert "ValueError: \\x1b[2Jgone" in error
    assert project.at_terminal("result", red) == "\\x1b[31mred\r\n"
    assert project.at_terminal("result", stolen) == "ValueError: \\x1b[2Jgone\r\n"


def test_the_beginning_of_an_id_will_do_for_its_result(here: Here) -> None:
    id = here.ok("call", "tasks.add", "-a", "[1, 2]")
    here.burst()

    assert here.ok("result", id[:13]) == "3"


def test_a_store_named_on_the_command_line_that_is_new_is_said_to_be(here: Here) -> None:
    first = here("ls", "-b", "shoop.liteq")
    again = here("ls", "-b", "shoop.liteq")
    looked = here("db", "stats", "-b", "other.liteq")

    assert "there is no store in" in first.stderr
    assert "there is no store" not in again.stderr
    assert looked.returncode == 3
    assert "there is no store at" in looked.stderr


@pytest.mark.parametrize("option", ["durability=replicated", "busy_timeout=0"])
def test_of_a_new_store_that_is_refused_the_refusal_alone_is_said(
    here: Here, option: str
) -> None:
    done = here("ls", "-b", f"sqlite://shoop.liteq?{option}")

    assert done.returncode == 2
    assert "no store" not in done.stderr
    assert option.split("=")[0] in done.stderr


@pytest.mark.parametrize(
    ("word", "instead"), [("multi", "liteq systemd"), ("list", "liteq queues")]
)
def test_a_command_that_only_celery_has_is_answered_with_what_there_is(
    word: str, instead: str, here: Here
) -> None:
    done = here(word, "start")

    assert done.returncode == 2
    assert f"there is no command '{word}'. In its place: {instead}" in done.stderr


def test_help_that_is_asked_for_by_a_word_is_found(here: Here) -> None:
    assert "there is no command 'help'. liteq --help shows" in here("help").stderr
    assert "there is no command 'help'. liteq db --help shows" in here("db", "help").stderr


def test_a_ctrl_c_ends_the_line_once_and_a_second_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "invoke", interrupt)
    assert main(["version"]) == 130
    assert capsys.readouterr().err == "\n"

    monkeypatch.setattr(click.core, "echo", interrupt)  # as click ends the line of the first
    assert main(["version"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.traced
def test_a_ctrl_c_before_the_command_line_is_there_shows_no_traceback(project: Project) -> None:
    code = (
        "import sys\nfrom liteq.__main__ import main\n"
        "class Interrupt:\n"
        "    def find_spec(*args): raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "print(main())\n"
    )

    assert project.python(code) == "130"


def test_a_ctrl_c_as_the_worker_beside_a_script_ends_is_nothing_but_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wait = os.waitpid
    ended = subprocess.Popen(["sleep", "60"])

    def interrupted(pid: int, options: int) -> None:
        monkeypatch.undo()
        wait(pid, options)  # it has ended and is reaped; then the signal is handled
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "waitpid", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _stop(ended.pid)
    ended.wait()  # knows that it is gone


@pytest.mark.traced
@pytest.mark.parametrize("command", [("worker",), ("run", "unguarded.py")], ids=" ".join)
def test_a_call_that_waits_while_its_module_is_imported_is_an_error_and_no_hang(
    command: tuple[str, ...], project: Project
) -> None:
    module = project.folder / "unguarded.py"
    module.write_text(f"{TASKS}\nprint(add.delay(2, 3).get())\n")

    done = project("-A", "unguarded", *command)  # `run` forks, and not the process of the tests

    assert done.returncode == 7
    assert "result.get() while 'unguarded' is imported would wait for a worker" in done.stderr
    assert f"the error is in the app's code, at {module}:" in done.stderr


@pytest.mark.parametrize("verb", ["show", "run", "pause", "resume", "remove"])
def test_a_periodic_task_that_is_not_there_ends_with_3(here: Here, verb: str) -> None:
    done = here("schedule", verb, "nightly")

    assert done.returncode == 3
    assert "no periodic entry 'nightly'" in done.stderr


def test_an_unknown_id_ends_with_3_at_once(here: Here) -> None:
    done = here("result", "0199-nothing", "--wait", "20")
    assert "never sent, expired or forgotten" in done.stderr
    assert done.returncode == 3


@pytest.mark.parametrize(
    ("name", "advice"), [("add", "tasks.add"), ("tasks.ad", "tasks.add"), ("zzz", "tasks")]
)
def test_an_unknown_task_ends_with_4_and_is_not_sent(
    name: str, advice: str, here: Here
) -> None:
    done = here("call", name)

    assert advice in done.stderr
    assert (done.returncode, done.stdout) == (4, "")
    assert all(row["queued"] == 0 for row in json.loads(here.ok("queues", "--json")))


INCLUDING = """
from liteq import Liteq

app = Liteq("shop", include=["included"])
"""
INCLUDED = """
from app import app


@app.task(sensitive=["card"])
def pay(card, amount):
    raise ValueError("no")
"""


def limited(project: Project, limit: str, words: str) -> subprocess.CompletedProcess[str]:
    """Run `liteq` with these words behind a `ulimit`."""
    return subprocess.run(
        ["/bin/sh", "-c", f'{limit} && exec "$0" -m liteq {words}', sys.executable],
        cwd=project.folder,
        env=project.environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.traced
@pytest.mark.parametrize(("children", "files"), [(2, 6), (2, 12), (20, 40), (20, 60)])
@pytest.mark.parametrize("words", ["-c {}", "--autoscale {},1"])
def test_a_worker_with_too_few_descriptors_says_which_limit_to_raise(
    project: Project, words: str, children: int, files: int
) -> None:
    done = limited(project, f"ulimit -n {files}", f"worker {words.format(children)}")

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("liteq: "))
    assert f"{children} child processes need {6 * children + 24} descriptors" in said
    assert "too many open files" in said
    assert f"it is {files}" in said


@pytest.mark.traced
def test_a_worker_raises_a_limit_of_files_that_it_may_raise(project: Project) -> None:
    done = limited(project, "ulimit -Sn 40", "worker -c 20 --burst")

    assert done.returncode == 0, done.stderr
    assert "too many" not in done.stderr


_BARE = ["unshare", "-m", "sh", "-c", 'umount -l /proc && exec "$0" "$@"']


@pytest.mark.traced
@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*_BARE, "true"], capture_output=True, check=False).returncode != 0,
    reason="this user may not unmount /proc",
)
def test_a_container_without_proc_is_enough(project: Project) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*_BARE, sys.executable, "-m", "liteq", *words],
            cwd=project.folder,
            env=project.environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    id = run("call", "tasks.add", "-a", "[2, 3]").stdout.strip()
    worked = run("worker", "--burst", "-c", "1", "--max-memory-per-child", "500000")
    assert worked.returncode == 0, worked.stderr
    assert run("result", id).stdout.strip() == "5"
    assert "Traceback" not in run("doctor").stderr


@pytest.fixture
def included(project: Project) -> None:
    """A project whose tasks are in a module that nothing but `include` leads to."""
    (project.folder / "tasks.py").unlink()
    project.write("app.py", INCLUDING)
    project.write("included.py", INCLUDED)


def test_a_task_of_an_included_module_is_called_and_its_secrets_are_hidden(
    included: None, here: Here
) -> None:
    id = here.ok("call", "included.pay", "-a", '["4111", 3]')

    assert "4111" not in here.ok("show", id)
    assert "4111" not in here.ok("show", id, "--json")

    here.burst("app")
    assert "4111" not in here.ok("show", id, "--no-traceback")


def test_the_report_and_the_shell_know_the_tasks_of_included_modules(
    included: None, here: Here
) -> None:
    assert json.loads(here.ok("report", "--json"))["tasks"] == 1
    assert "included.pay" in here("shell", "--python", stdin="print(pay.name)\n").stdout


def test_a_call_can_wait_for_its_result(start: Callable[..., Running], here: Here) -> None:
    start("worker", "-c", "1").wait_for("^ready")

    assert here.ok("call", "tasks.add", "-k", '{"x": "a", "y": "b"}', "--wait", "20") == "ab"
    assert here("call", "tasks.fail", "--wait", "20").returncode == 1


def test_a_wait_that_is_too_short_ends_with_124(here: Here) -> None:
    assert here("call", "tasks.add", "-a", "[1, 2]", "--wait", "0.1").returncode == 124


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (exceptions.SchemaError("new"), 8),
        (exceptions.BrokerBusy("locked"), 6),
        (exceptions.UnknownTaskId("gone"), 3),
        (exceptions.QueueNotFound("slow"), 3),
        (exceptions.NotRegistered("add"), 4),
        (exceptions.TimeoutError("late"), 124),
        (exceptions.LiteqError("other"), 1),
    ],
)
def test_each_error_has_its_exit_code(error: exceptions.LiteqError, status: int) -> None:
    assert status_of(error) == status


# Queues and dead letters


def test_queues_are_counted_and_purged(here: Here) -> None:
    for words in (["--countdown", "600"], ["--queue", "slow"], ["--queue", "slow"]):
        here.ok("call", "tasks.add", "-a", "[1, 2]", *words)

    counted = {row["queue"]: row for row in json.loads(here.ok("queues", "--json"))}
    table = here.ok("queues").splitlines()
    refused = here("purge", "-Q", "slow", stdin="n\n")
    purged = here("purge", "-Q", "slow", "-f")

    assert counted["default"]["scheduled"] == 1
    assert counted["slow"]["queued"] == 2
    assert table[0].split()[:2] == ["queue", "queued"]
    assert "Delete 2 messages of slow?" in refused.stderr
    assert refused.stderr.endswith("nothing was done\n")
    assert refused.returncode == 1
    assert purged.stdout == "2\n"
    assert here.ok("purge", "-f", "-X", "default") == "0"
    assert here.ok("purge", "-f") == "1"


QUEUED = """
@app.task(queue="mail")
def send(): ...


app.conf.task_routes = {"other.*": {"queue": "routed"}}
"""


@pytest.mark.parametrize(
    "words",
    [
        ["queues", "latency", "mial", "--max", "1"],
        ["queues", "resume", "mial"],
        ["queues", "purge", "mial", "-f"],
        ["purge", "-Q", "mial", "-f"],
    ],
)
def test_a_queue_that_nobody_knows_is_not_found(
    here: Here, project: Project, words: list[str]
) -> None:
    project.write("tasks.py", f"{TASKS}\n{QUEUED}")
    unknown = here(*words)
    assert unknown.returncode == 3
    assert "there is no queue 'mial': did you mean 'mail'?" in unknown.stderr
    for queue in ("mail", "default", "routed"):  # of a task, of nobody, of a route
        assert here(*(queue if word == "mial" else word for word in words)).returncode == 0


def test_a_queue_is_paused_resumed_and_purged_by_name(here: Here) -> None:
    here.ok("call", "tasks.add", "-a", "[1, 2]")
    here.ok("queues", "pause", "default", "mail")
    here.burst()
    [default, mail] = json.loads(here.ok("queues", "--json"))
    table = here.ok("queues").splitlines()
    again = here("queues", "pause", "mail")

    assert (default["queue"], default["queued"], default["paused"]) == ("default", 1, True)
    assert default["latency"] >= 0
    assert (mail["queue"], mail["queued"], mail["paused"]) == ("mail", 0, True)
    assert mail["latency"] is None
    assert table[0].split()[-4:] == ["latency", "paused", "limit", "dead"]
    assert table[1].split()[-1] == "yes"
    assert (again.returncode, again.stderr) == (0, "liteq: mail was paused already\n")

    here.ok("queues", "resume", "default")
    here.burst()
    assert json.loads(here.ok("queues", "--json"))[0]["queued"] == 0
    assert here("queues", "resume", "default").stderr == "liteq: default was not paused\n"

    here.ok("call", "tasks.add", "-a", "[1, 2]", "--queue", "mail")
    refused = here("queues", "purge", "mail", stdin="n\n")
    assert refused.returncode == 1
    assert "Delete 1 message of mail?" in refused.stderr
    assert here.ok("queues", "purge", "mail", "-f") == "1"
    assert here("queues", "pause").returncode == 2
    assert here("queues", "pauze", "mail").returncode == 2


def test_how_long_the_first_in_line_has_waited_is_for_a_monitor(here: Here) -> None:
    here.ok("call", "tasks.add", "-a", "[1, 2]", "--queue", "mail")

    listed = {one["queue"]: one["latency"] for one in json.loads(here.ok("queues", "--json"))}
    told = json.loads(here.ok("queues", "latency", "--json"))
    patient = here("queues", "latency", "mail", "--max", "600")
    late = here("queues", "latency", "--max", "0")

    assert here.ok("queues", "list").splitlines()[0] == here.ok("queues").splitlines()[0]
    assert listed["mail"] > 0
    assert {one["queue"] for one in told} == {"default", "mail"}
    assert patient.returncode == 0
    assert patient.stdout.split()[:3] == ["queue", "latency", "mail"]
    assert late.returncode == 1
    assert re.fullmatch(r"liteq: waits too long: mail for [\d.]+ m?s\n", late.stderr)


def test_nobody_to_ask_is_no_answer_and_says_what_to_do(here: Here) -> None:
    here.ok("call", "tasks.add", "-a", "[1, 2]")

    done = here("purge")

    assert done.returncode == 1
    assert done.stderr.endswith(
        "liteq: nothing was done: nobody is there to ask; --yes answers it\n"
    )
    assert here.ok("purge", "--yes") == "1"


def test_a_message_of_a_later_liteq_is_listed_with_its_arguments_hidden(here: Here) -> None:
    later = next(one for one in HOSTILE if one.name == "an envelope of a later version")
    bad = forge(later._replace(body=b'[["canary"], {}]'), "tasks.add")
    find_app("tasks").app.broker.enqueue([bad])
    assert bad.id in here.ok("ls")
    here.burst()

    assert bad.id in here.ok("ls", "--json")
    assert bad.id in here.ok("dead", "list")
    page = here.ok("dead", "show", bad.id)
    assert "<unreadable: the envelope is damaged or of a later liteq>" in page
    assert "canary" not in page


def test_dead_letters_are_listed_shown_redriven_and_purged(here: Here) -> None:
    first, second = new_id(), new_id()
    broken = [Message(id, "tasks.add", b"{broken", "default") for id in (first, second)]
    find_app("tasks").app.broker.enqueue(broken)
    here.burst()

    listed = json.loads(here.ok("dead", "list", "--json"))
    table = here.ok("dead", "list")
    shown = json.loads(here.ok("dead", "show", first, "--json"))
    page = here.ok("dead", "show", first)

    assert [row["id"] for row in listed] == [second, first]
    assert "undecodable" in listed[0]["reason"]
    assert table.splitlines()[0].split()[:3] == ["id", "task", "queue"]
    assert "unreadable" in shown["args"]
    assert "{broken" not in page
    assert "{broken" in here.ok("dead", "show", first, "--raw")
    assert first in page
    assert here("dead", "show", "nothing").returncode == 3

    assert here.ok("dead", "redrive", first) == first
    assert here("dead", "redrive", "nothing").returncode == 3
    assert [row["id"] for row in json.loads(here.ok("dead", "list", "--json"))] == [second]
    assert here.ok("dead", "redrive", "--all", "-y") == second
    here.burst()
    assert here("dead", "purge", stdin="n\n").returncode == 1
    assert here("dead", "purge").returncode == 1
    assert here.ok("dead", "purge", "-f") == "2"
    assert here.ok("dead", "list", "--json") == "[]"


# Workflows


WORKFLOWS = (
    TASKS
    + """

@app.task
def total(values):
    return sum(values)
"""
)


def test_workflows_are_listed_drawn_and_retried(here: Here, project: Project) -> None:
    project.write("tasks.py", WORKFLOWS)
    tasks = import_tasks()
    header = [tasks.add.s(1, 2), tasks.fail.s()]
    chord = liteq.chord(header, tasks.total.s()).delay()
    here.burst()

    listed = json.loads(here.ok("workflow", "list", "--json"))
    table = here.ok("workflow", "list").splitlines()
    drawn = here.ok("workflow", "show", chord.parent[0].id).splitlines()
    shown = json.loads(here.ok("workflow", "show", chord.id, "--json"))

    assert [(row["id"], row["state"], row["done"], row["total"]) for row in listed] == [
        (chord.id, "failed", 3, 3)
    ]
    assert table[0].split() == ["id", "name", "state", "done", "failed", "created"]
    assert "3/3" in table[1]
    assert drawn[0] == f"chord of 2 {chord.id}  failed  3 of 3 done, 2 failed"
    assert [
        re.sub(r" +", " ", re.sub(r"0\.\d\d s", "0.00 s", line))[:36] for line in drawn[1:]
    ] == [
        line[:36]
        for line in (
            f"├─ tasks.add succeeded 0.00 s {chord.parent[0]}",
            f"└─ tasks.fail failed 0.00 s {chord.parent[1]} ValueError: no stock",
            f"↓ tasks.total failed upstream {chord.id}",
        )
    ]
    assert "ValueError: no stock" in drawn[2]
    assert [node["name"] for node in shown["nodes"]] == [
        "tasks.add",
        "tasks.fail",
        "liteq.gather",
        "tasks.total",
    ]
    assert {edge["on"] for edge in shown["edges"]} == {"part", "success"}

    assert here.ok("workflow", "retry", chord.id) == chord.parent[1].id
    here.burst()
    again = here("workflow", "retry", chord.id)
    assert again.stdout.strip() == chord.parent[1].id
    tasks = import_tasks()
    done = tasks.add.delay(1, 2)
    assert here("workflow", "show", done.id).returncode == 3


def test_a_workflow_is_cancelled(here: Here, project: Project) -> None:
    project.write("tasks.py", WORKFLOWS)
    tasks = import_tasks()
    chain = liteq.chain(tasks.add.s(1, 2), tasks.add.s(3)).apply_async(countdown=600)

    assert here.ok("workflow", "cancel", chain.id) == "2 revoked"
    assert "chain of 2  revoked  2/2" in here.ok("workflow", "list")
    assert here("workflow", "retry", chain.id).returncode == 3
    unknown = here("workflow", "cancel", "nobody")
    assert (unknown.returncode, unknown.stdout) == (3, "")
    assert "no workflow nobody is in the store" in unknown.stderr


def import_tasks() -> Any:
    """Return the project's module of tasks, its app the current one."""
    find_app("tasks").app.set_current()
    return sys.modules["tasks"]


@pytest.mark.traced
def test_a_reader_that_has_had_enough_is_no_traceback(project: Project) -> None:
    done = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m liteq config | head -1"],
        cwd=project.folder,
        env=project.environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout.startswith("setting")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("call tasks.nothing", 4),
        ("config no_such_setting", 3),
        ("--no-such-option", 2),
        ("-A nowhere ls", 7),
        ("worker max_size=1", 2),
        ("worker --burst", 0),
        ("-b sqlite://new.liteq queues", 0),
    ],
)
@pytest.mark.parametrize("kind", ["full disk", "no reader"])
def test_an_error_that_nobody_can_read_has_its_exit_code_all_the_same(
    project: Project, words: str, status: int, kind: str
) -> None:
    with deaf(kind) as stderr:
        done = subprocess.run(
            [sys.executable, "-m", "liteq", *words.split()],
            cwd=project.folder,
            env=project.environ,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            timeout=PATIENCE,
            check=False,
        )

    assert done.returncode == status


@pytest.mark.parametrize("words", [["config"], ["queues", "--json"], ["--help"]])
def test_a_command_whose_reader_has_gone_ends_as_other_programs_do(
    project: Project, words: list[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "liteq", *words],
            cwd=project.folder,
            env=project.environ,
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        os.close(writing)

    assert done.returncode == 141
    assert done.stderr == b""


def test_a_beat_whose_stderr_takes_nothing_goes_on(project: Project) -> None:
    with (
        deaf("full disk") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "liteq", "beat"],
            cwd=project.folder,
            env=project.environ,
            stderr=stderr,
        ) as beat,
    ):
        wait_until(lambda: [*project.folder.glob("*.liteq/wake/b*")])
        beat.terminate()

    assert beat.returncode == 0


# The worker


def test_a_worker_shows_five_lines_and_stops_when_told(
    project: Project, start: Callable[..., Running]
) -> None:
    worker = start("worker", "-c", "2", "-Q", "high,default")
    worker.wait_for("^ready")

    assert worker.end() == 0
    assert [line.split()[0] for line in worker.lines[:5]] == [
        "liteq", "app", "store", "queues", "ready",
    ]  # fmt: skip
    assert f"store     {project.folder}" in worker.lines[2]
    assert worker.lines[3] == "queues    high, default · 2 × prefork"
    assert not [line for line in worker.lines[5:] if "ready" in line]


@pytest.mark.traced
def test_a_log_of_json_has_nothing_else_in_it(project: Project) -> None:
    done = project("worker", "--burst", "-c", "1", LITEQ_LOG_FORMAT="json")
    messages = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert " is ready: 1 × prefork" in messages[0]


@pytest.mark.traced
def test_a_quiet_worker_shows_nothing(
    project: Project, start: Callable[..., Running], here: Here
) -> None:
    here.ok("call", "tasks.add", "-a", "[1, 2]")
    done = project("-q", "worker", "--burst", "-l", "error", "-E")
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.traced
def test_celery_flags_are_accepted_and_said_once(project: Project) -> None:
    done = project(
        "worker", "--burst", "-l", "warning", "-E", "--without-gossip", "--without-mingle",
        "--without-heartbeat", "-O", "fair", "--autoscale", "3,1", "--prefetch-multiplier", "1",
    )  # fmt: skip

    said = [line for line in done.stderr.splitlines() if "without effect" in line]
    assert done.returncode == 0, done.stderr
    assert len(said) == 1
    assert "--without-gossip" in said[0]
    assert "3 × prefork" in done.stderr


@pytest.mark.traced
def test_a_thread_of_the_program_does_not_keep_a_worker_that_has_stopped(
    project: Project,
) -> None:
    endless = "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
    project.write("tasks.py", TASKS + endless)
    assert project("worker", "--burst", "-P", "threads").returncode == 0


def test_settings_go_behind_the_options(project: Project) -> None:
    done = project("worker", "--burst", "concurrency=3", "worker_pool=threads")
    assert "3 × threads" in done.stderr


def test_the_log_can_be_json_in_a_file(project: Project, here: Here) -> None:
    id = here.ok("call", "tasks.add", "-a", "[1, 2]")

    done = project(
        "worker", "--burst", "-l", "info", "-f", "worker.log", "--log-format", "json"
    )

    lines = (project.folder / "worker.log").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert done.returncode == 0
    assert any("is ready: " in record["message"] for record in records)
    assert any(record.get("task_id") == id for record in records)


LOGS_ITSELF = (
    TASKS
    + """
import logging.config
from liteq.signals import setup_logging
from liteq.utils.log import get_task_logger

logger = get_task_logger(__name__)


@setup_logging.connect
def set_up(**_):
    logging.config.dictConfig({
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"own": {"format": "%(task_name)s[%(task_id)s] %(message)s"}},
        "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}},
        "loggers": dict.fromkeys(["liteq", "tasks"], {"handlers": ["own"], "level": "INFO"}),
    })


@app.task
def say():
    logger.info("said")


@app.task
async def asay():
    logger.info("said")
"""
)


@pytest.mark.parametrize("pool", ["prefork", "spawn", "threads", "asyncio", "solo"])
def test_one_format_of_the_program_s_own_serves_all_lines(
    project: Project, here: Here, pool: str
) -> None:
    project.write("tasks.py", LOGS_ITSELF)
    name = "tasks.asay" if pool == "asyncio" else "tasks.say"
    id = here.ok("call", name)
    how = ("--pool-start-method", "spawn") if pool == "spawn" else ("-P", pool)

    done = project("worker", "--burst", "-c", "1", *how)

    lines = done.stderr.splitlines()
    assert f"{name}[{id}] said" in lines
    assert any(line.startswith(f"{name}[{id}] Task {name}[{id}] succeeded") for line in lines)
    assert any(line.startswith("???[???] ") for line in lines)
    assert "Logging error" not in done.stderr


@pytest.mark.traced
def test_a_log_file_that_cannot_be_written_ends_with_2(project: Project) -> None:
    done = project("worker", "--logfile", "absent/x.log")
    assert "--logfile absent/x.log: No such file" in done.stderr
    assert done.returncode == 2


@pytest.mark.traced
def test_queued_messages_can_be_purged_first(project: Project, here: Here) -> None:
    id = here.ok("call", "tasks.add", "-a", "[1, 2]")
    done = project("worker", "--burst", "--purge")
    assert "purged 1 message from default" in done.stderr
    assert here("result", id).returncode == 3


@pytest.mark.traced
def test_a_pid_file_is_held_while_the_worker_lives(
    project: Project, start: Callable[..., Running]
) -> None:
    file = project.write("worker.pid", "1\n")  # left behind by a killed worker
    files = ("--pidfile", "%n.pid", "--logfile", "%n%I.log")  # as in Celery's manuals
    worker = start("worker", "-c", "1", "-n", "worker@%h", *files)
    worker.wait_for("^ready")

    held = file.read_text()
    second = project("worker", "--pidfile", "worker.pid")
    worker.end()

    assert held == f"{worker.process.pid}\n"
    assert (project.folder / "worker.log").exists()
    assert f"a worker is running, pid {worker.process.pid}" in second.stderr
    assert second.returncode == 1
    assert not file.exists()


@pytest.mark.parametrize("command", [["worker", "-c", "1"], ["beat"]])
def test_a_pid_file_that_somebody_removed_is_not_missed_at_the_end(
    command: list[str], project: Project, start: Callable[..., Running]
) -> None:
    running = start(*command, "--pidfile", "held.pid")
    running.wait_for("^ready")
    (project.folder / "held.pid").unlink()

    assert running.end() == 0
    assert not any("Traceback" in line for line in running.lines)


def test_a_pid_file_that_has_become_anothers_is_left_to_it(
    project: Project, start: Callable[..., Running]
) -> None:
    file = project.folder / "worker.pid"
    first = start("worker", "-c", "1", "--pidfile", "worker.pid")
    first.wait_for("^ready")
    file.unlink()
    second = start("worker", "-c", "1", "--pidfile", "worker.pid")
    second.wait_for("^ready")

    assert first.end() == 0
    third = project("worker", "--burst", "--pidfile", "worker.pid")

    assert third.returncode == 1
    assert f"a worker is running, pid {second.process.pid}" in third.stderr
    assert second.end() == 0
    assert not file.exists()


@pytest.mark.parametrize("before", [None, 0o644])
def test_a_pid_file_can_be_locked_by_nobody_else(
    project: Project, start: Callable[..., Running], before: int | None
) -> None:
    if before is not None:  # a killed worker left it behind
        project.write("worker.pid", "1\n").chmod(before)
    worker = start("worker", "-c", "1", "--pidfile", "worker.pid")
    worker.wait_for("^ready")

    assert (project.folder / "worker.pid").stat().st_mode & 0o777 == 0o600
    worker.end()


@pytest.mark.parametrize("text", ["precious", "12\n34\n", "-1", "1" * 40])
def test_what_is_no_pid_file_is_neither_written_nor_removed(
    project: Project, text: str
) -> None:
    file = project.write("notes.txt", text)

    done = project("worker", "--burst", "--pidfile", "notes.txt")

    assert done.returncode == 2
    assert "--pidfile notes.txt: this is not a pid file" in done.stderr
    assert file.read_text() == text


@pytest.mark.parametrize("command", [["worker", "--burst"], ["beat"]])
def test_no_link_is_followed_to_a_pid_file(project: Project, command: list[str]) -> None:
    file = project.write("other.pid", "1\n")
    (project.folder / "worker.pid").symlink_to(file)

    done = project(*command, "--pidfile", "worker.pid")

    assert done.returncode == 2
    assert "--pidfile worker.pid: a symbolic link" in done.stderr
    assert file.read_text() == "1\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP])
def test_a_beat_that_is_told_to_stop_removes_its_pid_file(
    project: Project, start: Callable[..., Running], number: int
) -> None:
    beat = start("beat", "--pidfile", "held.pid")
    beat.wait_for("^ready")

    assert beat.end(number) == 0
    assert not (project.folder / "held.pid").exists()


SLOW = """
import os, sys, time

if os.fork():
    os.wait()
    print("alone", file=sys.stderr)
else:  # only what runs Python again after a fork heeds a signal
    print("forked", os.getpid(), file=sys.stderr)
while True:
    time.sleep(0.01)
"""


def test_options_of_a_log_that_the_program_has_set_up_are_said_to_have_no_effect(
    project: Project, start: Callable[..., Running]
) -> None:
    project.write("own.py", "import logging\nlogging.basicConfig()\nfrom tasks import app")
    running = start("-A", "own", "worker", "-c", "1", "-f", "w.log", "-l", "debug")

    running.wait_for("no effect: -l, -f. The program has given the root logger a handler")
    running.wait_for("^ready")

    assert running.end() == 0
    assert not (project.folder / "w.log").exists()


@pytest.mark.parametrize("command", ["worker", "beat"])
def test_what_is_told_to_stop_while_it_imports_its_app_removes_its_pid_file(
    project: Project, start: Callable[..., Running], command: str
) -> None:
    project.write("slow.py", SLOW)
    file = project.folder / "held.pid"
    running = start("-A", "slow", command, "--pidfile", "held.pid")
    child = int(running.wait_for("^forked").split()[1])

    os.kill(child, signal.SIGTERM)
    running.wait_for("^alone")
    held = file.read_text()

    assert running.end() == -signal.SIGTERM
    assert held == f"{running.process.pid}\n"  # which was not the child's to remove
    assert not file.exists()


def test_a_beat_that_is_to_outlive_its_terminal_does(
    project: Project, start: Callable[..., Running]
) -> None:
    project.ok("schedule", "add", "often", "tasks.add", "0.2", "-a", "[1, 2]")
    project.behind = ["nohup"]
    beat = start("beat")
    beat.wait_for("Sending due task often")

    beat.process.send_signal(signal.SIGHUP)
    seen = len(beat.lines)

    wait_until(lambda: len(beat.lines) > seen + 2)  # more than were on their way
    assert beat.end() == 0


def test_a_pid_file_of_a_killed_worker_is_free_at_once(
    project: Project, start: Callable[..., Running]
) -> None:
    first = start("worker", "-c", "1", "worker_pidfile=worker.pid")
    first.wait_for("^ready")
    held = (project.folder / "worker.pid").read_text()
    assert held == f"{first.process.pid}\n"
    first.end(signal.SIGKILL)

    both = ("--pidfile", "worker.pid", "worker_pidfile=worker.pid")
    second = start("worker", "-c", "1", *both)
    second.wait_for("^ready")

    assert second.end() == 0


@pytest.mark.traced
def test_systemd_is_told_when_the_worker_is_ready_and_stops(
    start: Callable[..., Running], tmp_path_factory: pytest.TempPathFactory
) -> None:
    address = str(tmp_path_factory.mktemp("run") / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(PATIENCE)
        worker = start("worker", "-c", "1", NOTIFY_SOCKET=address)
        heard = ""
        while "READY=1" not in heard:
            heard = manager.recv(4096).decode()
        worker.end()
        manager.settimeout(1)
        while "STOPPING=1" not in heard:
            heard = manager.recv(4096).decode()


@pytest.mark.skipif(sys.platform != "linux", reason="a full queue is Linux's EAGAIN")
@pytest.mark.parametrize("words", [("worker", "-c", "1"), ("beat",)])
def test_a_systemd_that_is_busy_at_the_start_is_told_later_that_all_is_ready(
    words: Sequence[str],
    start: Callable[..., Running],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    address = str(tmp_path_factory.mktemp("run") / "notify")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
    ):
        manager.bind(address)
        manager.settimeout(PATIENCE)
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"STATUS=other", address)
        start(*words, NOTIFY_SOCKET=address).wait_for("^ready")
        heard = ""
        while "READY=1" not in heard:
            heard = manager.recv(4096).decode()


@pytest.mark.parametrize("words", [("worker", "-c", "1"), ("beat",)])
def test_systemd_is_asked_for_time_while_there_is_no_store(
    words: Sequence[str],
    start: Callable[..., Running],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    address = str(tmp_path_factory.mktemp("run") / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(PATIENCE)
        waiting = start(*words, "-b", "redis://127.0.0.1:1/0", NOTIFY_SOCKET=address)
        heard = [manager.recv(4096).decode() for _ in range(6)]
        waiting.end()

    store = "STATUS=waiting for the store: redis://127.0.0.1:1/0 cannot be reached"
    assert [said.startswith(store) for said in heard] == [True, False] * 3
    assert [int(said.partition("EXTEND_TIMEOUT_USEC=")[2]) for said in heard[1::2]] == [
        26_100_000,  # twice: the pause, and what a call may take on a server that hangs
        26_200_000,
        26_400_000,
    ]


# A script and a worker in one terminal

SCRIPT = """
import sys
from tasks import add

if __name__ == "__main__":
    print(add.delay(2, 3).get(timeout=20), sys.argv[1:])
    sys.exit(4)
"""
ALONE = (
    TASKS
    + """

if __name__ == "__main__":
    print(add.delay(20, 3).get(timeout=20))
"""
)


@pytest.mark.traced
def test_a_script_is_run_with_a_worker_beside_it(project: Project) -> None:
    project.write("script.py", SCRIPT)

    done = project("-A", "tasks", "run", "-c", "1", "script.py", "--year", "2026", "-c")

    assert done.stdout == "5 ['--year', '2026', '-c']\n"
    assert done.returncode == 4
    assert "ready" in done.stderr


def test_a_script_with_its_own_tasks_needs_no_name(project: Project) -> None:
    project.write("jobs.py", ALONE)
    done = project("run", "-c", "1", "jobs.py")
    assert done.stdout == "23\n", done.stderr
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stderr.splitlines()] == [
        "liteq", "app", "store", "queues", "ready",
    ]  # fmt: skip


def test_a_quiet_run_shows_the_script_alone_unless_told_otherwise(project: Project) -> None:
    project.write("jobs.py", ALONE)
    quiet = project("run", "-q", "-c", "1", "jobs.py")
    told = project("run", "-q", "-c", "1", "jobs.py", LITEQ_LOG_LEVEL="info")
    assert (quiet.stdout, quiet.stderr) == ("23\n", "")
    assert " is ready: " in told.stderr.splitlines()[0]


def test_a_script_is_run_once_where_standard_output_is_closed(project: Project) -> None:
    project.write("jobs.py", ALONE)
    command = [sys.executable, "-m", "liteq", "run", "-q", "-c", "1", "jobs.py"]

    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command],
        cwd=project.folder,
        env=project.environ,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.traced
def test_a_script_in_a_package_names_its_tasks_as_the_worker_does(project: Project) -> None:
    (project.folder / "shop").mkdir()
    project.write("shop/__init__.py", "")
    project.write("shop/more.py", "NUMBER = 3\n")
    project.write(
        "shop/jobs.py",
        ALONE.replace("20, 3", "20, NUMBER").replace(
            "from liteq", "from .more import NUMBER\nfrom liteq"
        ),
    )
    assert project.ok("run", "-c", "1", "shop/jobs.py") == "23"


@pytest.mark.traced
def test_a_script_that_raises_shows_its_own_frames(project: Project) -> None:
    project.write("jobs.py", ALONE + "    raise KeyError('shelf')\n")
    done = project("run", "-c", "1", "jobs.py")
    assert "KeyError: 'shelf'" in done.stderr
    assert "liteq/cli" not in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("command", [["worker", "-B", "--burst", "-c", "1"], ["beat"]])
def test_a_scheduler_that_is_not_there_is_wrong_configuration(
    project: Project, command: list[str]
) -> None:
    by_option = project(*command, "--scheduler", "no:Such")
    project.environ["LITEQ_BEAT_SCHEDULER"] = "no:Such"
    by_setting = project(*command)

    for done in (by_option, by_setting):
        assert done.returncode == 2
        assert "there is no scheduler 'no:Such'" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_script_whose_worker_cannot_start_ends_as_the_worker_would(project: Project) -> None:
    project.write("jobs.py", ALONE)

    done = project("run", "-b", "memory://?max_size=20MB", "jobs.py")

    assert done.returncode == 2
    assert done.stderr.count("max_size must be a whole number") == 1
    assert "Traceback" not in done.stderr

    project.environ["LITEQ_WORKER_LOGFILE"] = "absent/x.log"
    unwritable = project("run", "jobs.py")

    assert unwritable.returncode == 2
    assert "--logfile absent/x.log: No such file" in unwritable.stderr
    assert "Traceback" not in unwritable.stderr


def test_the_worker_does_not_outlive_a_killed_script(
    project: Project, start: Callable[..., Running]
) -> None:
    project.write("jobs.py", TASKS + "import time\nif __name__ == '__main__': time.sleep(60)\n")
    running = start("run", "-c", "1", "jobs.py")
    line = running.wait_for(r"pid \d+")
    running.wait_for("^ready")
    found = re.search(r"pid (\d+)", line)
    assert found is not None

    running.end(signal.SIGKILL)

    wait_until(lambda: not _alive(int(found[1])))


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


# About


def test_every_setting_is_shown_with_its_source(
    project: Project, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITEQ_WORKER_CONCURRENCY", "7")
    project.write("tasks.py", TASKS + "app.conf.task_time_limit = 30\n")
    project.write("pyproject.toml", "[tool.liteq]\nresult_expires = 60\n")

    rows = json.loads(here.ok("config", "--json", "-b", "redis://u:hush@host/0"))

    by_name = {row["setting"]: row for row in rows}
    assert by_name["broker_url"]["source"] == "command line"
    assert "hush" not in by_name["broker_url"]["value"]
    assert by_name["worker_concurrency"]["source"] == "environment (LITEQ_WORKER_CONCURRENCY)"
    assert by_name["worker_concurrency"]["value"] == 7
    assert by_name["task_time_limit"]["source"] == "code"
    assert by_name["result_expires"]["source"].endswith("pyproject.toml")
    assert by_name["worker_pool"]["source"] == "default"


def test_one_setting_can_be_asked_for(here: Here) -> None:
    assert here.ok("config", "task_time_limit").splitlines()[1].split() == [
        "task_time_limit", "default", "None",
    ]  # fmt: skip


def test_the_store_beside_the_app_is_shown_where_none_is_set(
    project: Project, here: Here
) -> None:
    (row,) = json.loads(here.ok("config", "broker_url", "--json"))
    assert row["value"] == f"sqlite://{project.folder}/shop.liteq"
    assert row["source"] == "default"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("task_tme_limit", "did you mean task_time_limit"),
        ("hijack", "did you mean worker_hijack_root_logger?"),
        ("nope", "`liteq config` lists them"),
    ],
)
def test_a_setting_that_does_not_exist_is_answered_with_its_neighbours(
    here: Here, name: str, advice: str
) -> None:
    done = here("config", name)
    assert advice in done.stderr
    assert (done.returncode, done.stdout) == (3, "")


def test_a_report_has_what_a_bug_report_needs(here: Here) -> None:
    text = here.ok("report", "-b", "redis://u:hush@host/0")
    for word in ("liteq", "python", "platform", "sqlite", "apsw", "tasks:app", "broker_url"):
        assert word in text
    assert "hush" not in text


def test_a_shell_has_the_app_and_its_tasks(project: Project) -> None:
    done = project("shell", "--python", stdin="print(app.main, add(2, 3))\n")
    assert "shop 5" in done.stdout


@pytest.mark.traced
def test_a_warning_of_liteq_is_one_line(project: Project) -> None:
    project.write("tasks.py", TASKS + "app.conf.task_time_limt = 30\n")
    done = project("queues")
    assert [line for line in done.stderr.splitlines() if "task_time_limt" in line] == [
        done.stderr.splitlines()[0]
    ]
    assert done.stderr.startswith("liteq: ")
