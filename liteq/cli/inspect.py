"""`liteq inspect`: ask workers what they are doing."""

from __future__ import annotations

from typing import Any

import click

from liteq.cli.asking import ask, asking_options, command_named, list_commands
from liteq.cli.exits import Exit
from liteq.cli.front import command

__all__ = ["inspect"]


@command()
@click.argument("name", metavar="COMMAND", required=False)
@click.argument("words", nargs=-1, metavar="[ARGUMENT]...")
@click.option("--list", "listing", is_flag=True, help="List the commands and exit.")
@asking_options
def inspect(name: str | None, words: tuple[str, ...], listing: bool, **options: Any) -> int:
    """Ask workers what they are doing.

    The command ends as soon as all workers have answered. Workers that did not answer are
    named on stderr, as stuck or dead. Exit code 69: no worker answered.

    \b
    liteq inspect active
    liteq inspect ping -d liteq@web1 -t 5
    liteq inspect query_task 0199-…
    liteq inspect stats --json
    """
    if listing:
        list_commands("inspect", as_json=options["as_json"])
        return Exit.OK
    if name is None:
        raise click.UsageError("name a command, or use --list")
    return ask(command_named(name, "inspect"), words, **options)
