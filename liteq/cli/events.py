"""`liteq events`: print what tasks and workers do, while they do it."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from importlib import import_module
from typing import Any

import click

from liteq.cli.exits import Exit
from liteq.cli.front import Seconds, command, log_options
from liteq.cli.logs import log_as_asked
from liteq.cli.output import shown
from liteq.cli.session import Session

__all__ = ["events"]

COMMON = frozenset(
    {"type", "timestamp", "utcoffset", "hostname", "pid", "clock", "local_received", "uuid"}
)
BRIEF = ("name", "args", "kwargs", "result", "runtime", "exception", "active", "processed")
COLOURS = {
    "task-succeeded": "green",
    "task-failed": "red",
    "task-rejected": "red",
    "task-retried": "yellow",
    "task-revoked": "magenta",
    "task-started": "cyan",
}


@command()
@click.option("-d", "--dump", is_flag=True, help="Print all fields of each event.")
@click.option("-j", "--json", "as_json", is_flag=True, help="One JSON document per line.")
@click.option("-c", "--camera", metavar="CLASS", help="Use this snapshot camera instead.")
@click.option(
    "-F",
    "--freq",
    "--frequency",
    "frequency",
    type=Seconds(min=0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="SEC",
    help="Time between two snapshots.",
)
@click.option("-r", "--maxrate", hidden=True)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Stop after this many events."
)
@click.option(
    "-t",
    "--timeout",
    type=Seconds(min=0, min_open=True),
    metavar="SEC",
    help="Stop when no event has come for this long.",
)
@click.option(
    "--type",
    "types",
    metavar="TYPE",
    multiple=True,
    help="Only events of this type, such as task-failed.",
)
@log_options("warning shows how many were missed.  [default: info]")
def events(
    dump: bool,
    as_json: bool,
    camera: str | None,
    frequency: float,
    maxrate: str | None,
    limit: int | None,
    timeout: float | None,
    types: tuple[str, ...],
    **options: Any,
) -> int:
    """Print the events of tasks and workers as they happen.

    It prints events from now on; for earlier tasks see `liteq ls`. Workers send events only
    while somebody listens. If this command reads too slowly, it logs the number of missed
    events to stderr.

    \b
    liteq events
    liteq events --type task-failed --json | jq .exception
    liteq events --camera shop.cameras:Dump -F 10
    """
    session = Session.current()
    app = session.app
    log_as_asked(session, app, options)
    if camera is not None:
        from liteq.events.snapshot import evcam  # late: it is another command, in truth

        with suppress(TimeoutError):
            evcam(_camera(camera), frequency, app=app, limit=limit, timeout=timeout)
        return Exit.OK
    receiver = app.events.Receiver()
    count = 0
    with suppress(TimeoutError):
        for event in receiver.itercapture(timeout=timeout):
            if types and event["type"] not in types:
                continue
            click.echo(_line(event, dump=dump, as_json=as_json))
            count += 1
            if limit is not None and count >= limit:
                break
    return Exit.OK


def _camera(where: str) -> Any:
    """Return the class that is at "module:Class"."""
    module, _, name = where.replace(":", ".").rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, ValueError, AttributeError) as exc:
        raise click.UsageError(f"--camera {where}: {exc}; name it as module:Class") from exc


def _line(event: dict[str, Any], *, dump: bool, as_json: bool) -> str:
    if as_json:
        return json.dumps(event, default=repr)  # ASCII: nothing in it steers a terminal
    when = time.strftime("%H:%M:%S", time.localtime(event.get("timestamp")))
    names = sorted(event.keys() - COMMON) if dump else BRIEF
    fields = " ".join(
        f"{name}={_brief(event[name])}" for name in names if event.get(name) not in (None, "")
    )
    kind = click.style(f"{shown(event['type']):<16}", fg=COLOURS.get(event["type"]))
    subject = shown(event.get("uuid") or "")
    return f"{when} {kind} {shown(event.get('hostname') or '')} {subject} {fields}".rstrip()


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return shown(value)
