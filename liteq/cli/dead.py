"""`liteq dead`: look after dead letters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from liteq.cli.exits import Exit, Failure
from liteq.cli.filters import by_death, need, resolved, search_for, sure, told_of, yes_option
from liteq.cli.front import Group, as_json, ask, completing, names
from liteq.cli.output import ago, moment, print_json, print_table, shown
from liteq.cli.session import Session

if TYPE_CHECKING:
    from liteq.brokers.searching import Search

__all__ = ["dead"]

_dry_run = click.option("--dry-run", is_flag=True, help="Only count them.")
_ids = click.argument("ids", nargs=-1, metavar="[ID]...", shell_complete=completing("ids"))


@click.group(cls=Group)
def dead() -> None:
    """Manage dead letters: messages that could not be run.

    A message becomes a dead letter if its process died too often, if its body cannot be
    read, or if no worker knew its task for too long.

    \b
    liteq dead list
    liteq dead redrive --reason 'unknown task'     counts them and asks
    """


@dead.command("list")
@by_death
@click.option(
    "-n", "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, metavar="N"
)
@click.option(
    "--before", type=click.IntRange(min=1), metavar="NUMBER", help="Continue after this number."
)
@as_json
def dead_list(limit: int, before: int | None, as_json: bool, **wanted: Any) -> None:
    """List dead letters, the newest first.

    \b
    liteq dead list --reason 'unknown task' --since 2h
    """
    from liteq.operating import latest

    session = Session.current()
    broker = session.app.broker
    found = latest(broker, search_for(dead=True, **wanted), limit, before=before)
    now = broker.clock.now()
    rows = [
        {
            "number": one.number,
            "id": record.id,
            "task": record.outline.task,
            "queue": record.outline.queue,
            "died": moment(record.settled_at) if as_json else ago(record.settled_at, now),
            "deliveries": record.deliveries,
            "reason": record.dead,
        }
        for one, record in found
    ]
    if as_json:
        print_json(rows)
        return
    print_table(("id", "task", "queue", "died", "deliveries", "reason"), rows)
    if len(rows) == limit:
        session.note(f"there may be more: --before {rows[-1]['number']}")
    elif not rows:
        session.note("no dead letter matches")


@dead.command("show")
@click.argument("id", shell_complete=completing("ids"))
@click.option("--raw", is_flag=True, help="Show the raw bytes of the body, including secrets.")
@as_json
def dead_show(id: str, raw: bool, as_json: bool) -> None:
    """Show a dead letter with its arguments and all attempts."""
    from liteq.cli.show import print_task, with_moments
    from liteq.operating import describe, resolve

    session = Session.current()
    app = session.app
    session.import_tasks()  # each says itself which of its arguments are secret
    told = describe(app, resolve(app.broker, id))
    if told["dead"] is None:
        raise Failure(
            f"{told['id']} is not a dead letter: it is {told['state']}", Exit.NOT_FOUND
        )
    if raw:
        told["args"] = repr(app.broker.get([told["id"]])[told["id"]].outline.body)
    if as_json:
        print_json(with_moments(told))
    else:
        print_task(told, app.broker.clock.now(), app.timezone, tracebacks=True)


@dead.command("redrive")
@_ids
@by_death
@click.option("--all", "everything", is_flag=True, help="All of them.")
@_dry_run
@yes_option
@as_json
def dead_redrive(
    ids: tuple[str, ...],
    everything: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **wanted: Any,
) -> int:
    """Run dead letters again, with all counts reset, and print their ids.

    With filters instead of ids, the command shows the number first and asks. Dead letters
    that are skipped are named on stderr with the reason; the exit code is 3 if you gave
    their ids.

    \b
    liteq dead redrive 01a1fd00-99f0
    liteq dead redrive --reason 'unknown task' --dry-run
    """
    from liteq import operating

    broker = Session.current().app.broker
    need(ids, wanted, everything=everything)
    chosen: Search | list[str]
    if ids:
        chosen = resolved(broker, ids)
    else:
        chosen = search_for(dead=True, **wanted)
        counts = operating.count(broker, chosen)
        if not sure("Redrive", counts, "dead letter", yes=yes, dry_run=dry_run):
            chosen = []
    driven: list[str] = []
    passed: dict[str, str] = {}
    for some in operating.retry(broker, chosen):
        driven += some.ids
        passed |= some.passed
        for id in () if as_json else some.ids:
            click.echo(shown(id))
    if as_json:
        print_json({"redriven": driven, "passed_over": passed})
    return told_of(passed, named=bool(ids))


@dead.command("drop")
@_ids
@by_death
@click.option("--all", "everything", is_flag=True, help="All of them.")
@_dry_run
@yes_option
def dead_drop(
    ids: tuple[str, ...], everything: bool, dry_run: bool, yes: bool, **wanted: Any
) -> int:
    """Delete dead letters permanently and print their number.

    With filters instead of ids, the command shows the number first and asks.

    \b
    liteq dead drop 01a1fd00-99f0
    liteq dead drop --older-than 30d --yes
    """
    from liteq import operating

    broker = Session.current().app.broker
    need(ids, wanted, everything=everything)
    if ids:
        known = resolved(broker, ids)
        dropped = sum(operating.drop(broker, known))
        click.echo(dropped)
        if dropped < len(known):
            raise Failure("not all of them were dead letters", Exit.NOT_FOUND)
        return Exit.OK
    search = search_for(dead=True, **wanted)
    counts = operating.count(broker, search)
    if sure("Delete", counts, "dead letter", yes=yes, dry_run=dry_run):
        click.echo(sum(operating.drop(broker, search)))
    else:
        click.echo(0)
    return Exit.OK


@dead.command("purge", hidden=True)
@yes_option
@click.option(
    "-Q", "--queues", "chosen", type=names, metavar="A,B", help="Only of these queues."
)
def dead_purge(chosen: list[str] | None, yes: bool) -> None:
    """Delete all dead letters, or those of some queues, and print their number."""
    of = f" of {', '.join(chosen)}" if chosen else ""
    ask(f"Delete the dead letters{of}?", yes=yes)
    click.echo(Session.current().app.broker.purge(chosen, dead=True))
