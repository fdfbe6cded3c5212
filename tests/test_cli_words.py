"""A worker's plain words are read without click, and mean what they mean to click."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import click
import pytest
from terminal import Project

from liteq.cli import words
from liteq.cli.commands import cli
from liteq.cli.front import Session
from liteq.cli.worker import worker

# A value for each reader, written as far from what comes of it as may be.
GIVEN = {
    str: "x",
    words.concurrency: "3",
    words.pool: "THREADS",
    words.names: "a, b:2",
    words.autoscale: "4,2",
    words._level: "DEBUG",
    words._format: "json",
    words._seconds: "2.5",
    words._number: "7",
}


def read_by_click(line: list[str]) -> tuple[Mapping[str, Any], Mapping[str, Any], Any]:
    """Return what click makes of a line: the options given, common and own, and the rest."""
    whole = cli.make_context("liteq", list(line), obj=Session())
    # click has no public name for the words of a group's command.
    name, command, rest = cli.resolve_command(whole, [*whole._protected_args, *whole.args])
    assert command is worker
    context = command.make_context(name, rest, parent=whole)
    own = {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    settings = own.pop("settings", ())
    return whole.obj.options, own, settings


def option_lines() -> list[str]:
    lines = []
    for option, (_, read) in words._OPTIONS.items():
        if read is None:
            lines.append(f"worker {option}")
            continue
        value = shlex.quote(GIVEN[read])
        lines.append(f"worker {option} {value}")
        lines.append(f"worker {option}{'=' if option.startswith('--') else ''}{value}")
    return lines


@pytest.mark.parametrize(
    "line",
    [
        "worker",
        *option_lines(),
        "-q -A shop worker -l warning -c 2",
        "-A shop worker -A other",
        "worker lease_timeout=3 -c auto concurrency=2",
        "worker --time-limit 1 --time-limit 2",
        "-A worker worker",
        "worker worker",
        "worker -A=shop",
    ],
)
def test_plain_words_mean_what_they_mean_to_click(line: str) -> None:
    said = words.plain(shlex.split(line), {})

    assert said is not None
    assert (said.common, said.own, said.settings) == read_by_click(shlex.split(line))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ls",
        "call worker",
        "-A worker",
        "-A worker ls",
        "-c 2 worker",
        "worker --help",
        "worker --concurrency",
        "worker -c",
        "worker -c 0",
        "worker -c -1",
        "worker -P gevent",
        "worker -Q a,,b",
        "worker -l loud",
        "worker --log-format JSON",
        "worker --time-limit nan",
        "worker --time-limit soon",
        "worker --time-limit 0",
        "worker --max-tasks-per-child 0",
        "worker --autoscale many",
        "worker --burst=1",
        "worker -qv",
        "worker --conc 2",
        "worker -E",
        "worker -n --burst",
        "worker -- -c",
        "worker -",
    ],
)
def test_what_is_not_plain_is_left_to_click(line: str) -> None:
    assert words.plain(shlex.split(line), {}) is None


@pytest.mark.parametrize("name", ["LITEQ_QUEUES", "_LITEQ_COMPLETE"])
def test_what_the_environment_says_is_left_to_click(name: str) -> None:
    assert words.plain(["worker"], {name: "high"}) is None


@pytest.mark.process
def test_a_worker_needs_no_click(project: Project) -> None:
    project.write(
        "loads.py",
        "import sys\nfrom liteq import Liteq\napp = Liteq('shop')\n"
        "@app.task\ndef heavy():\n"
        "    heavy = {'click', 'inspect', 'ast', 'dis', 'uuid', 'platform', 'gettext',\n"
        "             'difflib', 'heapq', 'random', 'pathlib', 'dataclasses'}\n"
        "    return sorted(heavy & set(sys.modules))\n",
    )
    code = "import loads\nr = loads.heavy.delay()\nprint(r.id)"
    id = project.python(code)

    done = project("-A", "loads", "worker", "-c", "1", "-l", "warning", "--burst")

    assert done.returncode == 0, done.stderr
    assert project.ok("-A", "loads", "result", id) == "[]"


@pytest.mark.process
def test_wrong_usage_that_shows_late_is_told_as_click_tells_it(project: Project) -> None:
    plain = project("worker", "concurrency")
    by_click = project("worker", "-E", "concurrency")

    assert plain.returncode == by_click.returncode == 2
    assert "Usage: liteq worker [OPTIONS] [SETTING=VALUE]..." in plain.stderr
    assert by_click.stderr.endswith(plain.stderr)
