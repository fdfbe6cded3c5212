"""`liteq control`: change workers while they run."""

from __future__ import annotations

from typing import Any

import click

from liteq.cli.asking import ask, asking_options, command_named, list_commands, print_answers
from liteq.cli.exits import Exit, Failure
from liteq.cli.front import command
from liteq.cli.output import print_json, shown
from liteq.cli.session import Session

__all__ = ["control"]

# These are written in the store, which every worker obeys.
IN_STORE = {
    "rate_limit": ("<task> <rate>", "Change how often a task may start: 10/m, 0 for any."),
    "revoke": ("<id>...", "Keep tasks from running."),
    "terminate": ("<signal> <id>...", "End what runs of these tasks, and revoke them."),
}


@command()
@click.argument("name", metavar="COMMAND", required=False)
@click.argument("words", nargs=-1, metavar="[ARGUMENT]...")
@click.option("--list", "listing", is_flag=True, help="List the commands and exit.")
@asking_options
def control(name: str | None, words: tuple[str, ...], listing: bool, **options: Any) -> int:
    """Change workers while they run.

    A worker forgets these changes when it restarts. Changes that are written to the store
    (revoke, terminate, rate_limit) apply to all workers, also to those that start later.
    Exit code 69: no worker answered.

    \b
    liteq control pool_grow 2 -d liteq@web1
    liteq control autoscale 10 2
    liteq control add_consumer high
    liteq control rate_limit tasks.mail 10/m       (liteq limits shows it)
    liteq control shutdown
    """
    if listing:
        list_commands("control", IN_STORE, as_json=options["as_json"])
        return Exit.OK
    if name is None:
        raise click.UsageError("name a command, or use --list")
    if name in IN_STORE:
        return _in_store(name, words, **options)
    return ask(command_named(name, "control"), words, **options)


def _in_store(
    name: str,
    words: tuple[str, ...],
    *,
    destination: list[str] | None,
    timeout: float,
    as_json: bool,
) -> int:
    least = 1 if name == "revoke" else 2
    if len(words) < least or (name == "rate_limit" and len(words) > 2):
        raise click.UsageError(f"{name} {IN_STORE[name][0]}")
    steer = Session.current().app.control
    if name == "rate_limit":
        task, rate = words
        try:
            replies = steer.rate_limit(task, rate, destination, reply=True)
        except ValueError as exc:
            raise click.UsageError(f"rate_limit: {exc}") from exc
        _doubt(task)
        answers = {node: said for reply in replies for node, said in reply.items()}
        return print_answers(answers, {}, as_json=as_json) if answers else Exit.OK
    if name == "revoke":
        done = steer.revoke(words)
    else:
        try:
            done = steer.terminate(words[1:], signal=words[0])
        except ValueError as exc:
            raise click.UsageError(f"terminate: {exc}") from exc
    if as_json:
        print_json(done)
    else:
        for id, answer in done.items():
            click.echo(f"{shown(id)}  {answer}")
    unknown = [id for id, answer in done.items() if answer == "unknown"]
    if unknown:
        raise Failure(f"no such task: {', '.join(unknown)}", Exit.NOT_FOUND)
    return Exit.OK


def _doubt(task: str) -> None:
    """Say so if the app has no such task. Its rate is kept, for workers of newer code may."""
    session = Session.current()
    if task not in session.app.tasks:
        session.import_tasks()  # those of `include` and `autodiscover_tasks()`
    if session.app.tasks.own() and task not in session.app.tasks:
        session.note(
            f"the app has no task {task!r}: its rate is kept for workers that have it; "
            f"`liteq limits reset {task}:rate` takes it back"
        )
