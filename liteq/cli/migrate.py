"""`liteq migrate`: from one machine to many, and back."""

from __future__ import annotations

import sys

import click

from liteq.cli.exits import Exit, Failure
from liteq.cli.front import command

__all__ = ["migrate"]


@command()
@click.option("--from", "source", required=True, metavar="URL", help="The old store.")
@click.option("--to", "target", required=True, metavar="URL", help="The new store.")
def migrate(source: str, target: str) -> None:
    """Copy a store to another URL. Stop all workers first.

    It copies queued and delayed messages, results, dead letters, workflows, periodic tasks,
    pauses, changed limits, the used part of rate limits and the keys that unique_for keeps,
    and prints their numbers. The old store is not changed. What the new store already has
    is left as it is, so you can run the command again after an interruption, or to copy
    what was sent to the old store meanwhile. If there is no old store, none is created, and
    the exit code is 3.

    \b
    liteq migrate --from sqlite://shop.liteq --to redis://db1:6379/0
    """
    from liteq.brokers import connect
    from liteq.brokers.moving import move

    here, there = connect(source), connect(target)
    left = here.shelf()
    if not left.is_there():
        raise Failure(f"there is no store at {left.place}", Exit.NOT_FOUND)
    total = 0
    away = not sys.stderr.isatty()
    with click.progressbar(length=1, label="messages", file=sys.stderr, hidden=away) as bar:
        for done, total in move(here, there):
            bar.length = max(total, 1)
            bar.update(done - bar.pos)
    here.close()
    there.close()
    click.echo(f"{total} message{'' if total == 1 else 's'} in the new store")
