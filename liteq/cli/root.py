"""The command `liteq` and its subcommands, each imported when it is used."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import click

from liteq.cli.exits import EXIT_CODES, Exit, show_traceback
from liteq.cli.front import Group
from liteq.cli.session import Session
from liteq.cli.streams import PIPE_CLOSED, is_unread, say

__all__ = ["COMMANDS", "WorkerAlone", "cli", "run"]

# Where each command is, and its help in a line: `liteq --help` imports none of them.
COMMANDS = {
    "beat": ("liteq.cli.beat", "Send periodic tasks when they are due, until stopped."),
    "call": ("liteq.cli.tasks", "Call a task by its name and print the id."),
    "cancel": ("liteq.cli.steer", "Revoke unfinished tasks."),
    "completion": (
        "liteq.cli.completion",
        "Print the completion script of a shell.",
    ),
    "config": ("liteq.cli.about", "Print every setting with its value and its source."),
    "control": ("liteq.cli.control", "Change workers while they run."),
    "db": ("liteq.cli.db", "Manage the store: schema, integrity, backups, size."),
    "dead": ("liteq.cli.dead", "Manage dead letters: messages that could not be run."),
    "doctor": (
        "liteq.cli.doctor",
        "Check the installation, the settings and the store for problems.",
    ),
    "events": ("liteq.cli.events", "Print the events of tasks and workers as they happen."),
    "health": (
        "liteq.cli.health",
        "Check whether a worker is alive on this host, without importing the app.",
    ),
    "inspect": ("liteq.cli.inspect", "Ask workers what they are doing."),
    "limits": (
        "liteq.cli.limits",
        "Show rate and concurrency limits, and change them at run time.",
    ),
    "ls": ("liteq.cli.listing", "List tasks, the newest first."),
    "metrics": (
        "liteq.cli.metrics",
        "Print the store's metrics for Prometheus, or serve them.",
    ),
    "migrate": ("liteq.cli.migrate", "Copy a store to another URL. Stop all workers first."),
    "purge": ("liteq.cli.queues", "Delete all waiting messages."),
    "queues": ("liteq.cli.queues", "Show the queues; pause, resume and purge them."),
    "report": ("liteq.cli.about", "Print the information for a bug report."),
    "result": ("liteq.cli.tasks", "Print the result of a task."),
    "retry": (
        "liteq.cli.steer",
        "Run failed tasks and dead letters again, with all counts reset.",
    ),
    "run": ("liteq.cli.run", "Run a script together with a worker for its tasks."),
    "schedule": (
        "liteq.cli.schedule",
        "List, add, run, pause and remove periodic tasks.",
    ),
    "shell": ("liteq.cli.about", "Open a Python prompt with the app and its tasks."),
    "show": ("liteq.cli.show", "Show a task: its arguments, its attempts, its result."),
    "status": ("liteq.cli.status", "Show the workers: alive, stuck or dead, and their load."),
    "systemd": ("liteq.cli.systemd", "Print systemd units for the worker and for beat."),
    "version": ("liteq.cli.about", "Print the version."),
    "watch": ("liteq.cli.watching", "Follow a task to its end, with a progress bar."),
    "web": ("liteq.cli.web", "Serve web pages that show and control what is in the store."),
    "worker": ("liteq.cli.worker", "Run tasks until stopped."),
    "workflow": (
        "liteq.cli.workflow",
        "Show workflows, cancel them, run failed tasks again.",
    ),
}


class Commands(Group):
    """The commands of `COMMANDS`, each imported when it is asked for."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with piped():  # --help
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with piped():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in sorted(COMMANDS)])


@click.group(cls=Commands, epilog=EXIT_CODES)
def cli() -> None:
    """Run and manage background tasks. No server is needed.

    \b
    liteq worker                     run the tasks of ./tasks.py
    liteq -A proj worker -c 4 -l info
    liteq call tasks.add -a '[2, 3]' --wait 10
    liteq queues
    """


class WorkerAlone(Commands):
    """The command line of which only `worker` is read; any other command is an Abort."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "worker":
            raise click.Abort
        return super().get_command(ctx, cmd_name)


def run(session: Session, argv: Sequence[str] | None, group: click.Group = cli) -> int:
    """Run the command that these words say, and return its exit code."""
    try:
        status = group.main(
            argv,
            prog_name="liteq",
            standalone_mode=False,
            obj=session,
            terminal_width=_help_width(),
        )
    except click.ClickException as exc:
        if session.verbose and exc.__cause__ is not None:
            show_traceback(exc)
        with suppress(OSError):
            exc.show()
        return exc.exit_code
    except click.Abort as exc:
        if exc.__cause__ is None:  # of a ^C click has ended the line, of a question it has not
            say()
        return Exit.INTERRUPTED
    return int(status or 0)


def _help_width() -> int:
    """Return how wide help is written: click would import `shutil` for that, 5 ms more."""
    try:
        columns = int(os.environ.get("COLUMNS") or os.get_terminal_size(1).columns)
    except (ValueError, OSError):
        columns = 80
    return max(min(columns, 80) - 2, 50)


@contextmanager
def piped() -> Iterator[None]:
    """End the command with `PIPE_CLOSED` if who reads its stdout goes before the end, as
    `head` does: it has what it wanted, and click would call it a failure."""
    try:
        yield
    except BrokenPipeError:
        if not is_unread():
            raise
        raise click.exceptions.Exit(PIPE_CLOSED) from None
