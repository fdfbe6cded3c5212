"""`liteq queues`, `purge` and `dead`: what waits, and what was given up."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from liteq.cli.front import (
    Exit,
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
    from liteq.brokers.base import Broker, Record

__all__ = ["dead", "purge", "queues"]

WAITING = ("queued", "scheduled", "parked")  # what a purge deletes
STATES = ("queued", "running", "scheduled", "retrying", "waiting", "parked")


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
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@_named
def queues_purge(names: tuple[str, ...], force: bool) -> None:
    """Delete what waits in these queues; print how many messages there were."""
    _purge(sorted(set(names)), force=force)


@command()
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
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


@click.group(cls=Group)
def dead() -> None:
    """Look after dead letters: messages that nothing could run.

    A message is kept as a dead letter when its process died too often, when its body cannot
    be read, or when no worker knew its task for too long.
    """


_queue = click.option("-Q", "--queue", metavar="NAME", help="Of this queue only.")


@dead.command("list")
@_queue
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@as_json
def dead_list(queue: str | None, limit: int, as_json: bool) -> None:
    """List them, oldest first."""
    found = Session.current().app.broker.browse("dead", queue=queue, limit=limit)
    rows = [
        {
            "id": record.id,
            "task": record.message.task,
            "queue": record.message.queue,
            "died": _moment(record.settled_at),
            "deliveries": record.deliveries,
            "reason": record.dead,
        }
        for record in found
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(("id", "task", "queue", "died", "deliveries", "reason"), rows)


@dead.command("show")
@click.argument("id")
@as_json
def dead_show(id: str, as_json: bool) -> None:
    """Show one with its arguments and every attempt."""
    broker = Session.current().app.broker
    record = _dead_letter(broker, id)
    message = record.message
    args, kwargs = _arguments(record)
    shown = {
        "id": id,
        "task": message.task,
        "queue": message.queue,
        "reason": record.dead,
        "args": args,
        "kwargs": kwargs,
        "content_type": message.content_type,
        "enqueued": _moment(record.enqueued_at),
        "died": _moment(record.settled_at),
        "deliveries": record.deliveries,
        "attempts": [
            {
                "number": attempt.number,
                "outcome": attempt.outcome,
                "worker": attempt.worker,
                "started": _moment(attempt.started_at),
                "ended": _moment(attempt.ended_at),
                "error": _error(attempt.error),
            }
            for attempt in broker.attempts(id)
        ],
    }
    if as_json:
        print_json(shown)
        return
    attempts = shown.pop("attempts")
    for name, value in shown.items():
        click.echo(f"{name:<12}  {value}")
    click.echo()
    print_table(("number", "outcome", "worker", "started", "ended", "error"), attempts)


@dead.command("redrive")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@_queue
def dead_redrive(ids: tuple[str, ...], everything: bool, queue: str | None) -> int:
    """Give dead letters a fresh start, with no delivery counted; print their ids."""
    broker = Session.current().app.broker
    if bool(ids) == everything:
        raise click.UsageError("name the ids, or say --all")
    driven = _redrive_all(broker, queue) if everything else broker.redrive(ids)
    for id in driven:
        click.echo(id)
    missing = [id for id in ids if id not in driven]
    if missing:
        raise Failure(f"not failed or dead: {', '.join(missing)}", Exit.NOT_FOUND)
    return Exit.OK


@dead.command("purge")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option(
    "-Q",
    "--queues",
    "chosen",
    type=names,
    metavar="A,B",
    help="Of these queues.  [default: all]",
)
def dead_purge(force: bool, chosen: list[str] | None) -> None:
    """Delete them for good; print how many there were."""
    broker = Session.current().app.broker
    if not force:
        of = f" of {', '.join(chosen)}" if chosen else ""
        _ask(f"Delete the dead letters{of}?")
    click.echo(broker.purge(chosen, dead=True))


def _ask(question: str) -> None:
    if not click.confirm(question, err=True):
        raise Failure("nothing was deleted")


def _redrive_all(broker: Broker, queue: str | None) -> list[str]:
    """Redrive slice by slice, as there may be more than fit in memory."""
    driven: list[str] = []
    while found := broker.browse("dead", queue=queue, limit=500):
        done = broker.redrive([record.id for record in found])
        driven += done
        if not done:
            break
    return driven


def _dead_letter(broker: Broker, id: str) -> Record:
    record = broker.get([id]).get(id)
    if record is None:
        raise Failure(f"no message has the id {id!r}", Exit.NOT_FOUND)
    if record.dead is None:
        raise Failure(f"{id} is no dead letter: it is {record.state}", Exit.NOT_FOUND)
    return record


def _arguments(record: Record) -> tuple[Any, Any]:
    """Return the arguments; what cannot be read, as it is: that may be why it is dead."""
    from liteq import serializers
    from liteq.exceptions import LiteqError

    message = record.message
    try:
        return serializers.loads_call(message.body, message.content_type, ("json",))
    except LiteqError as exc:
        return f"unreadable ({exc}): {message.body!r}", None


def _error(error: bytes | None) -> str | None:
    if error is None:
        return None
    from liteq import failure

    fields = failure.read(error)
    return f"{fields['type']}: {fields['message']}"


def _moment(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
