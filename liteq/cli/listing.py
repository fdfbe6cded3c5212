"""`liteq ls`: which tasks there are, the latest first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from liteq.cli.filters import by_what, search_for
from liteq.cli.front import as_json, command
from liteq.cli.output import STATE_COLOURS, ago, moment, print_json, print_table
from liteq.cli.session import Session

if TYPE_CHECKING:
    from liteq.brokers.values import Record

__all__ = ["ls"]


@command()
@by_what
@click.option("--dead", is_flag=True, default=None, help="Dead letters only.")
@click.option(
    "-n", "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, metavar="N"
)
@click.option(
    "--before", type=click.IntRange(min=1), metavar="NUMBER", help="Continue after this number."
)
@as_json
def ls(limit: int, before: int | None, as_json: bool, **wanted: Any) -> None:
    """List tasks, the newest first.

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
        session.note("no task matches")


def _fields(number: int, record: Record) -> dict[str, Any]:
    from liteq.digest import error_line

    message = record.outline
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
        "error": error_line(record) or None,
        "workflow": record.workflow,
    }


def _row(record: Record, now: float) -> dict[str, Any]:
    from liteq.digest import remark, state_of, took

    message = record.outline
    return {
        "id": record.id,
        "state": state_of(record),
        "task": message.task,
        "queue": message.queue,
        "enqueued": ago(record.enqueued_at, now),
        "took": took(record, now),
        "what": remark(record, now),
    }
