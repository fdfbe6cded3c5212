"""`liteq call` and `liteq result`: start a task from the terminal, and look at what came."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from liteq.cli.exits import Exit, Failure
from liteq.cli.front import Seconds, as_json, command, completing
from liteq.cli.output import json_text, print_json, shown
from liteq.cli.session import Session
from liteq.cli.streams import say

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.result import AsyncResult

__all__ = ["call", "result"]

_TIME: Final = "time (without an offset: in the app's zone)"


def json_list(text: str) -> list[Any]:
    value: list[Any] = _json(text, list, "list")
    return value


def json_object(text: str) -> dict[str, Any]:
    value: dict[str, Any] = _json(text, dict, "object")
    return value


def moment(text: str) -> datetime:
    """Read a time in ISO 8601. Without an offset it is in the app's time zone."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a time like 2026-01-31T08:00+01:00"
        ) from None


def seconds_or_moment(text: str) -> float | datetime:
    try:
        return float(text)
    except ValueError:
        return moment(text)


@command()
@click.argument("name", shell_complete=completing("tasks"))
@click.option(
    "-a", "--args", type=json_list, metavar="JSON", default="[]", help="Positional arguments."
)
@click.option(
    "-k", "--kwargs", type=json_object, metavar="JSON", default="{}", help="Keyword arguments."
)
@click.option("--countdown", type=float, metavar="SEC", help="Start it after this long.")
@click.option("--eta", type=moment, metavar="TIME", help=f"Start it at this {_TIME}.")
@click.option(
    "--expires",
    type=seconds_or_moment,
    metavar="SEC|TIME",
    help=f"Never start it after so long, or this {_TIME}.",
)
@click.option(
    "--queue", "--routing-key", metavar="NAME", help="Queue to use instead of the task's own."
)
@click.option(
    "--priority", type=click.IntRange(0, 9), metavar="N", help="From 0 to 9; 9 goes first."
)
@click.option(
    "--serializer", metavar="NAME", help="Serializer to use instead of the task's own."
)
@click.option("--exchange", hidden=True)
@click.option(
    "--wait", type=Seconds(min=0), metavar="SEC", help="Wait this long, and print the result."
)
@as_json
def call(
    name: str,
    args: list[Any],
    kwargs: dict[str, Any],
    exchange: str | None,
    wait: float | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Call a task by its name and print the id.

    \b
    liteq call tasks.add -a '[2, 3]'
    liteq call tasks.report -k '{"year": 2026}' --countdown 60 --queue slow
    """
    session = Session.current()
    app = session.app
    if exchange:
        session.note("accepted, without effect: --exchange (calls go to queues alone)")
    if name not in app.tasks:
        session.import_tasks()  # those of `include` and `autodiscover_tasks()`
        _must_be_known(app, name)
    given = {key: value for key, value in options.items() if value is not None}
    try:
        made = app.tasks[name].apply_async(args, kwargs, **given)
    except (TypeError, ValueError) as exc:  # an argument the task does not take
        raise Failure(f"{name}: {exc}", Exit.USAGE) from exc
    if wait is not None:
        return _show(made, wait=wait, document=as_json, with_traceback=False)
    if as_json:
        print_json({"id": made.id, "task": name})
    else:
        click.echo(shown(made.id))
    return Exit.OK


@command()
@click.argument("id", shell_complete=completing("ids"))
@click.option(
    "--wait", type=Seconds(min=0), metavar="SEC", help="Wait this long for the task to end."
)
@click.option("--traceback", "with_traceback", is_flag=True, help="Show the error's traceback.")
@click.option("-t", "--task", hidden=True)
@as_json
def result(
    id: str,
    wait: float | None,
    with_traceback: bool,
    task: str | None,
    as_json: bool,
) -> int:
    """Print the result of a task.

    The exit code is 1 if the task failed (the error is on stderr), 3 if the store does not
    know the id, and 124 if the task has not ended. The beginning of an id is enough if it
    is unique.

    \b
    liteq result 01a1fd0b-d381
    liteq result ID --wait 10 --json | jq .result
    """
    from liteq.operating import resolve

    app = Session.current().app
    made = app.AsyncResult(resolve(app.broker, id))
    return _show(made, wait=wait or 0.0, document=as_json, with_traceback=with_traceback)


def _show(made: AsyncResult[Any], *, wait: float, document: bool, with_traceback: bool) -> int:
    """Print what became of a call, waiting `wait` seconds for its end."""
    from liteq.exceptions import TimeoutError

    made, value = made.without_keys(), None
    if wait or made.ready():
        with suppress(TimeoutError):
            value = made.get(timeout=wait or None, propagate=False)
    ready, failed = made.ready(), not made.successful()
    if document:
        error = {"type": type(value).__name__, "message": str(value)} if failed else None
        print_json(
            {
                "id": made.id,
                "task": made.name,
                "state": made.state,
                "detail": made.detail,
                "result": None if failed else value,
                "error": error if ready else None,
                "traceback": made.traceback if ready else None,
            }
        )
    elif not ready:
        say(f"liteq: {shown(f'{made.id} has not ended: {_standing(made)}')}")
    elif failed:
        trace = made.traceback if with_traceback else None
        text = trace or f"{type(value).__name__}: {value}"
        say(shown(text.rstrip(), lines=True))
    elif not isinstance(value, str):
        click.echo(json_text(value))
    elif sys.stdout.isatty():
        click.echo(shown(value, lines=True))
    else:
        click.echo(value, color=True)  # as it is: click would take escapes out of it
    if not ready:
        return Exit.TIMEOUT
    return Exit.FAILED if failed else Exit.OK


def _standing(made: AsyncResult[Any]) -> str:
    """Return the state of an unfinished call, and why it has not ended."""
    why = made.detail
    match why:
        case "queued":
            why = f"queued in {made.queue}"
        case "parked":
            why = f"parked: no worker that consumes {made.queue} knows the task {made.name}"
        case "limited":
            why = "limited: it waits for its turn under a rate or a concurrency"
        case "scheduled":
            why = "scheduled for a later time"
        case "running":
            why = f"running on {made.worker}"
        case "retrying":
            why = "retrying: it waits for its next attempt"
        case "waiting":
            why = "waiting for another call"
        case "unknown":
            why = "no call of this id was sent yet"
    return f"{made.state} ({why})"


def _json(text: str, kind: type, word: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise click.BadParameter(f"{text!r} is not JSON: {exc}") from exc
    if not isinstance(value, kind):
        raise click.BadParameter(f"{text!r} is not a JSON {word}")
    return value


def _must_be_known(app: Liteq, name: str) -> None:
    if name in app.tasks:
        return
    from difflib import get_close_matches

    same = [known for known in app.tasks if known.rpartition(".")[2] == name]
    near = same or get_close_matches(name, list(app.tasks))
    count = len(app.tasks.own())
    tasks = f"it has {count} task{'' if count == 1 else 's'}"
    advice = f"did you mean {' or '.join(near)}?" if near else tasks
    raise Failure(f"the app has no task {name!r}; {advice}", Exit.UNKNOWN_TASK)
