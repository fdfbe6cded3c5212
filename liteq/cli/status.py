"""`liteq status`: which workers there are, and how they are."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import click

from liteq.cli.exits import Exit, Failure
from liteq.cli.front import Seconds, as_json, command
from liteq.cli.output import plain_table, print_json, print_table, shown, span
from liteq.cli.session import Session
from liteq.cli.streams import say
from liteq.exceptions import BrokerError
from liteq.wording import several

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
_RUNNING: Final = 15  # tasks that a look shows, those that run the longest
_LOOKED_AT: Final = 500  # of so many
COLOURS: Final = {"alive": "green", "stuck": "yellow", "dead": "red"}


@command()
@click.option(
    "-t",
    "--timeout",
    type=Seconds(min=0),
    default=1.0,
    show_default=True,
    metavar="SEC",
    help="How long to wait for answers; 0: do not ask, only look at heartbeats.",
)
@click.option("--watch", is_flag=True, help="Refresh until Ctrl-C.")
@click.option(
    "--interval",
    type=Seconds(min=0.1),
    default=2.0,
    show_default=True,
    metavar="SEC",
    help="Time between two refreshes of --watch.",
)
@click.option(
    "--times",
    type=click.IntRange(min=1),
    metavar="N",
    help="Stop after N refreshes of --watch.",
)
@as_json
def status(
    timeout: float, watch: bool, interval: float, times: int | None, as_json: bool
) -> int:
    """Show the workers: alive, stuck or dead, and their load.

    Every worker is asked. A worker is stuck if its process exists but does not answer, or
    if its heartbeat is old. A dead worker is shown for an hour, or until its name is taken.
    Exit code 69: no worker is alive. --watch also shows the queues and the longest-running
    tasks.

    \b
    liteq status
    liteq status --watch
    liteq status --json | jq -r '.[] | select(.state != "alive") | .name'
    """
    app = Session.current().app
    if watch:
        if as_json:
            raise click.UsageError("--watch is for people: with --json, repeat the command")
        return _watch(app, timeout, interval, times)
    found, trouble = _asked(app, timeout)
    if as_json:
        print_json([_facts(one) for one in found])
    elif found:
        _print(found)
    for one in found:
        if one.state != "alive":
            say(f"liteq: {shown(one.name)} is {one.state}: {shown(one.reason)}")
    if trouble is not None:
        raise trouble
    if not any(one.state == "alive" for one in found):
        raise Failure("no worker is alive", Exit.UNAVAILABLE)
    return Exit.OK


def _asked(app: Liteq, timeout: float) -> tuple[list[WorkerStatus], BrokerError | None]:
    """Return how the workers are. Where nothing can be written into the store, since one of
    them was stopped in the middle of that, nobody can be asked: heartbeats can be read."""
    try:
        return app.control.status(timeout), None
    except BrokerError as exc:
        return app.control.status(0), exc


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
        "queues": several(facts["queues"], 30, by=","),
        "done": facts["processed"],
        "uptime": span(facts["uptime"]),
    }


def _print(found: list[WorkerStatus]) -> None:
    print_table(COLUMNS, map(_row, found), {"state": COLOURS.get})


def _watch(app: Liteq, timeout: float, interval: float, times: int | None) -> int:
    """Show workers, queues and what runs: over the screen at a terminal, else one look after
    the other."""
    from liteq.pace import Pace

    looks = 0
    alive = 0
    pace = Pace()
    with suppress(KeyboardInterrupt), _screen(Session.current().colour) as draw:
        while True:
            try:
                found, trouble = _asked(app, timeout)
                alive = sum(one.state == "alive" for one in found)
                lines = [
                    _head(found, pace.note(time.monotonic(), found)),
                    *([shown(trouble)] if trouble else []),
                ]
                lines += ["", *_sections(app, found)]
            except BrokerError as exc:  # the next look may find it again
                alive, lines = 0, [shown(exc)]
            draw([f"{time.strftime('%H:%M:%S')}  {lines[0]}", *lines[1:]])
            looks += 1
            if times is not None and looks >= times:
                break
            time.sleep(interval)
    return Exit.OK if alive else Exit.UNAVAILABLE


def _head(found: list[WorkerStatus], pace: float) -> str:
    alive = sum(one.state == "alive" for one in found)
    held = sum(one.info.leases for one in found)
    tasks = f"{held} task{'' if held == 1 else 's'} held, {pace:,.1f} run a second"
    return f"{alive} of {len(found)} workers alive, {tasks}"


def _sections(app: Liteq, found: list[WorkerStatus]) -> Iterator[str]:
    """Yield the lines of a look: the workers, the queues, and what runs the longest."""
    yield from plain_table(COLUMNS, map(_row, found), {"state": COLOURS.get})
    queues = app.queues()
    if queues:
        states = sorted({state for info in queues for state in info.counts})
        rows = [
            {
                "queue": info.name,
                **info.counts,
                "latency": span(info.latency),
                "dead": info.dead or None,
                "paused": "paused" if info.paused else None,
            }
            for info in queues
        ]
        yield ""
        yield from plain_table(("queue", *states, "latency", "dead", "paused"), rows)
    running = app.broker.browse("running", limit=_LOOKED_AT)
    if running:
        now = app.broker.clock.now()
        running.sort(key=lambda one: one.started_at or now)
        rows = [
            {
                "running": one.id,
                "task": one.outline.task,
                "queue": one.outline.queue,
                "worker": one.worker,
                "for": span(max(0.0, now - (one.started_at or now))),
            }
            for one in running[:_RUNNING]
        ]
        yield ""
        yield from plain_table(("running", "task", "queue", "worker", "for"), rows)


@contextmanager
def _screen(colour: bool | None) -> Iterator[Callable[[list[str]], None]]:
    """Give what draws lines: over a terminal's screen, whose content comes back at the end;
    else, and last, they are printed."""
    if not sys.stdout.isatty():
        yield lambda lines: click.echo("\n".join(lines), color=colour)
        return
    last: list[str] = []

    def draw(lines: list[str]) -> None:
        last[:] = [click.unstyle(line) for line in lines] if colour is False else lines
        rows = shutil.get_terminal_size().lines
        # Line by line over what is there: nothing flickers. Long lines are cut, not folded.
        text = "".join(f"{line}\x1b[K\n" for line in last[: rows - 1])
        sys.stdout.write(f"\x1b[H{text}\x1b[J")
        sys.stdout.flush()

    sys.stdout.write("\x1b[?1049h\x1b[?25l\x1b[?7l")  # a screen of its own, without a cursor
    try:
        yield draw
    finally:
        sys.stdout.write("\x1b[?7h\x1b[?25h\x1b[?1049l")
        sys.stdout.write("".join(f"{line}\n" for line in last))
        sys.stdout.flush()
