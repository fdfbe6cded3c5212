"""`liteq migrate`: from one machine to many, and back."""

from __future__ import annotations

import sys

import click

from liteq.cli.front import Exit, Failure, command

__all__ = ["migrate"]


@command()
@click.option("--from", "source", required=True, metavar="URL", help="The store that is left.")
@click.option("--to", "target", required=True, metavar="URL", help="The store that is filled.")
def migrate(source: str, target: str) -> None:
    """Move a store to another URL, all workers stopped.

    Queued and delayed messages, results, dead letters, workflows, periodic tasks, pauses and
    changed limits are copied, and counted at the end; also what rates have used up, and keys
    that unique_for keeps. The store that is left stays as it is. What the other has already
    is left as it is there: after an interruption, do it again. What is sent meanwhile to the
    store that is left stays there, until it is done again. Where there is no store to leave,
    none is made: that ends with 3.

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
    click.echo(f"{total} messages are in the new store")
