"""`liteq status`: which workers there are, and how they are."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from liteq.cli.front import Exit, Failure, Session, as_json, command
from liteq.cli.output import print_json, print_table, shown, span

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.control import WorkerStatus

__all__ = ["status"]

COLUMNS: Final = (
    "name",
    "state",
    "pid",
    "pool",
    "active",
    "queues",
    "load",
    "done",
    "uptime",
    "version",
)
COLOURS: Final = {"alive": "green", "stuck": "yellow", "dead": "red"}


@command()
@click.option(
    "-t",
    "--timeout",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="SEC",
    help="How long to wait for their answers; 0: do not ask, look at heartbeats.",
)
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    metavar="SEC",
    help="Between two looks, with --watch.",
)
@click.option(
    "--times", type=click.IntRange(min=1), metavar="N", help="Look so often, and stop."
)
@as_json
def status(
    timeout: float, watch: bool, interval: float, times: int | None, as_json: bool
) -> int:
    """Show the workers: alive, stuck or dead, and what they do.

    Every worker is asked. One whose process is there and does not answer, or whose
    heartbeat is old, is stuck; a dead one is shown for an hour, or until its name is taken.
    Exit code 69 means that none is alive.

    \b
    liteq status
    liteq status --watch
    liteq status --json | jq -r '.[] | select(.state != "alive") | .name'
    """
    app = Session.current().app
    if watch:
        if as_json:
            raise click.UsageError("--watch is for people: call it again for more --json")
        return _watch(app, timeout, interval, times)
    found = app.control.status(timeout)
    if as_json:
        print_json([_facts(one) for one in found])
    elif found:
        _print(found)
    for one in found:
        if one.state != "alive":
            click.echo(
                f"liteq: {shown(one.name)} is {one.state}: {shown(one.reason)}", err=True
            )
    if not any(one.state == "alive" for one in found):
        raise Failure("no worker is alive", Exit.UNAVAILABLE)
    return Exit.OK


def _facts(one: WorkerStatus) -> dict[str, Any]:
    """Return what is known of a worker; keys are kept from version to version."""
    info = one.info
    return {
        "name": one.name,
        "state": one.state,
        "reason": one.reason,
        "pid": info.pid,
        "hostname": info.hostname,
        "pool": info.details.get("pool"),
        "concurrency": info.concurrency,
        "active": info.leases,
        "queues": list(info.queues),
        "load": info.details.get("load"),
        "processed": info.details.get("processed"),
        "uptime": round(max(0.0, time.time() - info.started_at), 1),
        "heartbeat_age": round(info.beat_age, 1),
        "version": info.details.get("version"),
    }


def _row(one: WorkerStatus) -> dict[str, Any]:
    facts = _facts(one)
    return {
        **facts,
        "pool": f"{facts['concurrency']} × {facts['pool']}",
        "queues": ",".join(facts["queues"]),
        "done": facts["processed"],
        "uptime": span(facts["uptime"]),
    }


def _print(found: list[WorkerStatus]) -> None:
    print_table(COLUMNS, map(_row, found), {"state": COLOURS.get})


def _watch(app: Liteq, timeout: float, interval: float, times: int | None) -> int:
    """Show workers and queues in turn: over the screen at a terminal, else one after the
    other."""
    looks = 0
    while True:
        found = app.control.status(timeout)
        counts = app.broker.counts()
        if sys.stdout.isatty():
            click.clear()
        alive = sum(one.state == "alive" for one in found)
        click.echo(
            f"{time.strftime('%H:%M:%S')}  {alive} of {len(found)} workers alive, "
            f"{sum(one.info.leases for one in found)} tasks held\n"
        )
        _print(found)
        if counts:
            click.echo()
            states = sorted({state for states in counts.values() for state in states})
            rows = [{"queue": name, **counts[name]} for name in sorted(counts)]
            print_table(("queue", *states), rows)
        looks += 1
        if times is not None and looks >= times:
            return Exit.OK if alive else Exit.UNAVAILABLE
        time.sleep(interval)
