"""`liteq queues` and `purge`: what waits."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from liteq.cli.exits import Exit, Failure
from liteq.cli.front import Group, Seconds, as_json, ask, command, completing, enter, names
from liteq.cli.output import print_json, print_table, span
from liteq.cli.session import Session

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.task import Task

__all__ = ["purge", "queues"]

WAITING = ("queued", "limited", "scheduled", "parked")  # what a purge deletes
STATES = ("queued", "running", "scheduled", "waiting", "parked", "limited")
ALWAYS = ("queue", "queued", "running", "workers")


@click.group(cls=Group, invoke_without_command=True)
@as_json
@click.pass_context
def queues(ctx: click.Context, as_json: bool) -> None:
    """Show the queues; pause, resume and purge them.

    Without a command: the unfinished messages of each queue by state (retries count as
    scheduled), its limit, and its dead letters. Latency is the number of seconds that the
    first message has been ready to run.

    \b
    liteq queues
    liteq queues pause mail slow
    liteq queues latency --max 60        for monitoring: exit code 1 if above
    """
    if ctx.invoked_subcommand is None:
        _list(enter(ctx), as_json=as_json)


@queues.command("list")
@as_json
def queues_list(as_json: bool) -> None:
    """Show the queues, as `liteq queues` does."""
    _list(Session.current(), as_json=as_json)


def _list(session: Session, *, as_json: bool) -> None:
    rows = _rows(session.app)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        row["paused"] = "yes" if row["paused"] else None
        row["dead"] = row["dead"] or None
        if row["latency"] is not None:
            row["latency"] = f"{row['latency']:.1f}"
    columns = tuple(rows[0])
    if sys.stdout.isatty():  # there width is dear: what is nowhere is left out
        columns = tuple(c for c in columns if c in ALWAYS or any(row[c] for row in rows))
    print_table(columns, rows)


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


@queues.command("latency")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=completing("queues"))
@click.option(
    "--max",
    "most",
    type=Seconds(min=0),
    metavar="SEC",
    help="Exit with code 1 if one of them is above this.",
)
@as_json
def queues_latency(names: tuple[str, ...], most: float | None, as_json: bool) -> int:
    """Print for each queue how many seconds the first message has been ready to run."""
    session = Session.current()
    _refuse_unknown(session, names)
    known = {info.name: info.latency or 0.0 for info in session.app.queues()}
    waits = {
        name: round(known.get(name, 0.0), 3)
        for name in names or sorted({*known, *session.app.select_queues()})
    }
    rows = [{"queue": name, "latency": seconds} for name, seconds in waits.items()]
    if as_json:
        print_json(rows)
    else:
        print_table(("queue", "latency"), rows)
    late = {name: seconds for name, seconds in waits.items() if seconds > (most or 0.0)}
    if most is not None and late:
        told = ", ".join(f"{name} for {span(seconds)}" for name, seconds in late.items())
        raise Failure(f"waits too long: {told}", Exit.FAILED)
    return Exit.OK


_named = click.argument(
    "names", nargs=-1, required=True, metavar="NAME...", shell_complete=completing("queues")
)


@queues.command("pause")
@_named
def queues_pause(names: tuple[str, ...]) -> None:
    """Keep all workers from starting tasks of these queues. Running tasks go on."""
    session = Session.current()
    for name in names:
        if not session.app.pause_queue(name):
            session.note(f"{name} was paused already")


@queues.command("resume")
@_named
def queues_resume(names: tuple[str, ...]) -> None:
    """Let the workers run tasks of these queues again."""
    session = Session.current()
    _refuse_unknown(session, names)
    for name in names:
        if not session.app.resume_queue(name):
            session.note(f"{name} was not paused")


@queues.command("purge")
@click.option("-f", "--force", "-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@_named
def queues_purge(names: tuple[str, ...], force: bool) -> None:
    """Delete the waiting messages of these queues and print their number."""
    _refuse_unknown(Session.current(), names)
    _purge(sorted(set(names)), force=force)


@command()
@click.option("-f", "--force", "-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option(
    "-Q",
    "--queues",
    "chosen",
    type=names,
    metavar="A,B",
    help="Only these queues.  [default: all]",
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
    """Delete all waiting messages.

    Prints their number. Running tasks are not touched. This cannot be undone.

    \b
    liteq purge                          counts them and asks
    liteq purge -Q mail,slow --yes
    """
    broker = Session.current().app.broker
    _refuse_unknown(Session.current(), chosen or ())
    _purge(sorted(set(chosen or broker.counts()) - set(excluded or ())), force=force)


def _refuse_unknown(session: Session, names: Iterable[str]) -> None:
    """End the command for a queue that neither the store, a worker, a setting nor a task
    knows: it is misspelt, and a monitor of it would find it in order for ever. What a
    function of the user's routes to cannot be known."""
    app = session.app
    known = {
        *(info.name for info in app.queues()),
        *(name for worker in app.broker.workers() for name in worker.queues),
        *app.select_queues(),
        app.conf.task_default_queue,
    }
    if known.issuperset(names) or not app.router.is_static:
        return
    session.import_tasks()
    known |= {_queue_of(app, task) for task in app.tasks.own().values()}
    if isinstance(routes := app.conf.task_routes, Mapping):  # for tasks of others, too
        known |= {_queue_named(route) for route in routes.values()}
    for name in names:
        if name not in known:
            from difflib import get_close_matches  # late: for an error

            near = get_close_matches(name, known, n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise Failure(f"there is no queue {name!r}{hint}", Exit.NOT_FOUND)


def _queue_of(app: Liteq, task: Task[..., Any]) -> str:
    """Return where calls of a task go if they do not say."""
    from liteq.calls import merge  # late, as the app is

    own = {"queue": task.queue, "routing_key": task.own_option("routing_key")}
    return app.router.queue(merge(task.name, (), {}, {}, own, app.router, task))


def _queue_named(route: Any) -> str:
    queue = route.get("queue") if isinstance(route, Mapping) else route
    return str(getattr(queue, "name", queue))


def _purge(emptied: list[str], *, force: bool) -> None:
    broker = Session.current().app.broker
    counts = broker.counts()
    waiting = sum(
        number
        for name in emptied
        for state, number in counts.get(name, {}).items()
        if state in WAITING
    )
    if waiting:
        few = f"{waiting:,} message{'' if waiting == 1 else 's'}"
        ask(f"Delete {few} of {', '.join(emptied)}?", yes=force)
    click.echo(broker.purge(emptied))
