"""`liteq ls`: which tasks there are, the latest first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from liteq.cli.filters import by_what, search_for
from liteq.cli.front import Session, as_json, command, print_json, print_table
from liteq.cli.output import STATE_COLOURS, ago, moment, span
from liteq.limits import limits_text

if TYPE_CHECKING:
    from liteq.brokers.base import Record

__all__ = ["ls"]


@command()
@by_what
@click.option("--dead", is_flag=True, default=None, help="Dead letters only.")
@click.option(
    "-n", "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, metavar="N"
)
@click.option(
    "--before", type=click.IntRange(min=1), metavar="NUMBER", help="Go on behind this number."
)
@as_json
def ls(limit: int, before: int | None, as_json: bool, **wanted: Any) -> None:
    """List tasks, the latest first.

    \b
    liteq ls
    liteq ls -s failed --since 2h
    liteq ls -s queued,running -Q mail -t 'shop.*' -n 200
    """
    from liteq.operating import latest

    session = Session.current()
    broker = session.app.broker
    found = latest(broker, search_for(**wanted), limit, before=before)
    if as_json:
        print_json([_fields(one.number, record) for one, record in found])
        return
    now = broker.clock.now()
    print_table(
        ("id", "state", "task", "queue", "enqueued", "took", "what"),
        [_row(record, now) for _, record in found],
        {"state": STATE_COLOURS.get},
    )
    if len(found) == limit:
        session.note(f"there may be more: --before {found[-1][0].number}")
    elif not found:
        session.note("no task is like that")


def _fields(number: int, record: Record) -> dict[str, Any]:
    message = record.message
    return {
        "number": number,
        "id": record.id,
        "task": message.task,
        "queue": message.queue,
        "state": record.state,
        "priority": message.priority,
        "enqueued": moment(record.enqueued_at),
        "run_at": moment(message.run_at),
        "started": moment(record.started_at),
        "settled": moment(record.settled_at),
        "worker": record.worker,
        "retries": message.retries,
        "deliveries": record.deliveries,
        "dead": record.dead,
        "revoked": record.revoked,
        "error": _error(record) or None,
        "workflow": record.workflow,
    }


def _row(record: Record, now: float) -> dict[str, Any]:
    message = record.message
    return {
        "id": record.id,
        "state": "dead" if record.dead is not None else record.state,
        "task": message.task,
        "queue": message.queue,
        "enqueued": ago(record.enqueued_at, now),
        "took": _took(record, now),
        "what": _what(record, now),
    }


def _took(record: Record, now: float) -> str:
    if record.started_at is None or record.state in ("queued", "scheduled", "waiting"):
        return ""
    end = now if record.state == "running" else record.settled_at
    return span(end - record.started_at) if end is not None else ""


def _what(record: Record, now: float) -> str:
    """Say in a few words what is worth knowing of a task in its state."""
    message = record.message
    match record.state:
        case "running":
            told = f" · {record.note.state}" if record.note else ""
            return f"on {record.worker}{told}" if record.worker else ""
        case "scheduled":
            return ago(message.run_at, now)
        case "retrying":
            return f"{ago(message.run_at, now)}: {_error(record)}"
        case "parked":
            return "no worker that met it knows its task"
        case "limited":
            return limits_text(message.limits)
        case "revoked":
            return record.revoked or ""
        case "failed":
            return record.dead or _error(record)
        case _:
            return ""


def _error(record: Record) -> str:
    """Return the first line of an error."""
    from liteq.einfo import line
    from liteq.operating import error_of

    if record.state not in ("failed", "retrying") or (error := error_of(record.result)) is None:
        return ""
    return line(f"{error['type']}: {error['message']}")[:100]
