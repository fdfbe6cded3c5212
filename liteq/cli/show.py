"""`liteq show`: all that is known of one task, in the order in which it happened."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import tzinfo
from typing import Any

import click

from liteq.cli.front import as_json, command, completing
from liteq.cli.output import STATE_COLOURS, moment, print_facts, print_json, shown, span
from liteq.cli.session import Session

__all__ = ["print_task", "show", "with_moments"]


@command()
@click.argument("id", shell_complete=completing("ids"))
@click.option("--no-traceback", is_flag=True, help="Leave out the tracebacks.")
@as_json
def show(id: str, no_traceback: bool, as_json: bool) -> None:
    """Show a task: its arguments, its attempts, its result.

    The beginning of an id is enough if it is unique. Secrets are hidden.

    \b
    liteq show 01a1fd0b-d381
    liteq show ID --json | jq '.attempts[-1].error.traceback'
    """
    from liteq.operating import describe, resolve

    session = Session.current()
    app = session.app
    session.import_tasks()  # each says itself which of its arguments are secret
    told = describe(app, resolve(app.broker, id))
    if as_json:
        print_json(with_moments(told))
    else:
        now = app.broker.clock.now()
        print_task(told, now, app.timezone, tracebacks=not no_traceback)


def print_task(told: Mapping[str, Any], now: float, zone: tzinfo, *, tracebacks: bool) -> None:
    """Print what `operating.describe()` tells, with times in this zone."""
    from liteq.digest import progress_text, timeline

    state = "dead" if told["dead"] is not None else told["state"]
    sent = state != "unsent"
    names = (told["task"], told["id"]) if sent else (told["id"],)
    word = click.style(state, fg=STATE_COLOURS.get(state), bold=True)
    click.echo("  ".join((*map(shown, names), word)))
    click.echo()
    retries = f"{told['retries']} retries" if told["retries"] else ""
    starts = f"{told['deliveries']} starts" if told["deliveries"] > 1 else ""
    print_facts(
        {
            "stored by": None if sent else told["task"] or None,
            "args": told["args"] if sent else None,
            "kwargs": told["kwargs"] if told["kwargs"] not in ("", "{}") else None,
            "queue": f"{told['queue']}, priority {told['priority']}" if sent else None,
            "counted": ", ".join(filter(None, (retries, starts))) or None,
            "dead": told["dead"],
            "revoked": told["revoked"],
            "progress": progress_text(told["progress"]),
            "checkpoint": told["checkpoint"],
            "workflow": told["workflow"],
            "parent": told["parent_id"],
            "result": told["result"],
        },
        indent="  ",
    )
    if told["inputs"]:
        click.echo(click.style("\n  waits for", dim=True))
        for source in told["inputs"]:
            word = click.style(source["state"], fg=STATE_COLOURS.get(source["state"]))
            click.echo(f"    {shown(source['id'])}  {shown(source['name'])}  {word}")
    click.echo()
    start = told["enqueued_at"]
    for number, (at, what, trace) in enumerate(timeline(told, now)):
        when = (f"+{span(max(0.0, at - start))}" if number else moment(at, zone)) if at else ""
        click.echo(f"  {click.style(f'{when:>12}', dim=True)}  {shown(what)}")
        for line in (trace or "").rstrip().splitlines() if tracebacks else ():
            click.echo(f"{'':16}{click.style(shown(line), dim=True)}")


def with_moments(told: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with their times as text, under names without "_at"."""
    found: dict[str, Any] = {}
    for name, value in told.items():
        if name == "attempts":
            found[name] = [with_moments(one) for one in value]
        elif name == "run_at":
            found[name] = moment(value)
        elif name.endswith("_at"):
            found[name.removesuffix("_at")] = moment(value)
        else:
            found[name] = value
    return found
