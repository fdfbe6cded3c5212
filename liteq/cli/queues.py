"""`liteq queues` and `purge`: what waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from liteq.cli.front import (
    Failure,
    Group,
    Session,
    as_json,
    command,
    names,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = ["purge", "queues"]

WAITING = ("queued", "limited", "scheduled", "parked")  # what a purge deletes
STATES = ("queued", "running", "scheduled", "retrying", "waiting", "parked", "limited")


@click.group(cls=Group, invoke_without_command=True)
@as_json
@click.pass_context
def queues(ctx: click.Context, as_json: bool) -> None:
    """Show the queues; pause, resume and purge them.

    Without a command: the unfinished messages of each by state, its limit, and its dead
    letters. Latency is how many seconds the first in line has been ready to run.
    """
    if ctx.invoked_subcommand is not None:
        return
    session = Session.current()
    ctx.color = session.colour
    session.enter()
    rows = _rows(session.app)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        row["paused"] = "yes" if row["paused"] else None
        row["dead"] = row["dead"] or None
        if row["latency"] is not None:
            row["latency"] = f"{row['latency']:.1f}"
    print_table(tuple(rows[0]), rows)


def _rows(app: Liteq) -> list[dict[str, Any]]:
    found = {info.name: info for info in app.queues()}
    workers = app.broker.workers()
    rows: list[dict[str, Any]] = []
    for name in sorted({*found, *app.select_queues()}):
        info = found.get(name)
        counts = info.counts if info else {}
        rows.append(
            {
                "queue": name,
                **{state: counts.get(state, 0) for state in STATES},  # type: ignore[call-overload]
                "workers": sum(name in worker.queues for worker in workers),
                "latency": info.latency if info else None,
                "paused": info.paused if info else False,
                "limit": info.limit if info else app.length_limit(name),
                "dead": info.dead if info else 0,
            }
        )
    return rows


_named = click.argument("names", nargs=-1, required=True, metavar="NAME...")


@queues.command("pause")
@_named
def queues_pause(names: tuple[str, ...]) -> None:
    """Have no worker start anything of these queues. What runs goes on."""
    session = Session.current()
    for name in names:
        if not session.app.pause_queue(name):
            session.note(f"{name} was paused already")


@queues.command("resume")
@_named
def queues_resume(names: tuple[str, ...]) -> None:
    """Have the workers go on with these queues."""
    session = Session.current()
    for name in names:
        if not session.app.resume_queue(name):
            session.note(f"{name} was not paused")


@queues.command("purge")
@click.option("-f", "--force", "-y", "--yes", is_flag=True, help="Do not ask.")
@_named
def queues_purge(names: tuple[str, ...], force: bool) -> None:
    """Delete what waits in these queues; print how many messages there were."""
    _purge(sorted(set(names)), force=force)


@command()
@click.option("-f", "--force", "-y", "--yes", is_flag=True, help="Do not ask.")
@click.option(
    "-Q", "--queues", "chosen", type=names, metavar="A,B", help="These queues.  [default: all]"
)
@click.option(
    "-X",
    "--exclude-queues",
    "excluded",
    type=names,
    metavar="A,B",
    help="All queues but these.",
)
def purge(force: bool, chosen: list[str] | None, excluded: list[str] | None) -> None:
    """Delete the messages that wait.

    Prints how many there were. What runs is left alone. It cannot be undone.
    """
    broker = Session.current().app.broker
    _purge(sorted(set(chosen or broker.counts()) - set(excluded or ())), force=force)


def _purge(emptied: list[str], *, force: bool) -> None:
    broker = Session.current().app.broker
    counts = broker.counts()
    waiting = sum(
        number
        for name in emptied
        for state, number in counts.get(name, {}).items()
        if state in WAITING
    )
    if not force and waiting:
        _ask(f"Delete {waiting} messages of {', '.join(emptied)}?")
    click.echo(broker.purge(emptied))


def _ask(question: str) -> None:
    if not click.confirm(question, err=True):
        raise Failure("nothing was deleted")
