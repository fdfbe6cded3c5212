"""`liteq schedule`: look at periodic tasks, make, run, pause and remove them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from liteq.cli.front import Group, as_json
from liteq.cli.output import json_text, print_json, print_table, shown
from liteq.cli.session import Session
from liteq.showing import without_secrets
from liteq.wording import several

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.periodic import PeriodicEntry, Schedules

__all__ = ["schedule"]


@click.group(cls=Group)
def schedule() -> None:
    """List, add, run, pause and remove periodic tasks.

    When a beat starts, it brings the entries that the program declares into the store.
    Changes that you make here take effect at once in every beat, and are kept.

    \b
    liteq schedule list --next 5
    liteq schedule add nightly tasks.clean_up '0 3 * * *' --tz Europe/Berlin
    liteq schedule pause nightly
    """


@schedule.command("list")
@click.option(
    "--next",
    "count",
    type=click.IntRange(min=1, max=1000),
    default=1,
    metavar="N",
    help="Show the next N times of each.  [default: 1]",
)
@as_json
def schedule_list(count: int, as_json: bool) -> None:
    """List periodic tasks with their next due times."""
    session = Session.current()
    app = _app(session)
    found = app.schedules.list()
    if as_json:
        print_json([_fields(entry, count) for entry in found])
        return
    rows = []
    for entry in found:
        due = entry.next(count)
        rows.append(
            {
                "name": entry.name,
                "task": entry.task,
                "schedule": entry.schedule,
                "next": _moment(due[0]) if due else _why_not(entry),
                "last": _moment(entry.last_run_at),
                "runs": entry.total,
                "origin": entry.origin,
            }
        )
        rows += [{"next": _moment(each)} for each in due[1:]]
    print_table(("name", "task", "schedule", "next", "last", "runs", "origin"), rows)
    for entry in found:
        if entry.error:
            session.note(f"{entry.name!r} is not fired: {entry.error}")
    new = sorted(app.schedules.declarations().keys() - {entry.name for entry in found})
    if new:
        session.note(f"declared, and not in the store until a beat starts: {several(new)}")


@schedule.command("show")
@click.argument("name")
@click.option("--next", "count", type=click.IntRange(min=1, max=1000), default=5, metavar="N")
@as_json
def schedule_show(name: str, count: int, as_json: bool) -> None:
    """Show a periodic task with its arguments and options."""
    entry = _app(Session.current()).schedules.get(name)
    fields = _fields(entry, count)
    if as_json:
        print_json(fields)
        return
    width = max(map(len, fields))
    fields["next"] = fields["next"] or [_why_not(entry)]
    for key, value in fields.items():
        first, *rest = value if key == "next" else [value]
        click.echo(f"{click.style(key.ljust(width), bold=True)}  {_text(first)}")
        for more in rest:
            click.echo(f"{'':{width}}  {_text(more)}")


@schedule.command("add")
@click.argument("name")
@click.argument("task")
@click.argument("when", metavar="SCHEDULE")
@click.option(
    "-a", "--args", default="[]", metavar="JSON", help="Positional arguments: '[2, 3]'."
)
@click.option(
    "-k", "--kwargs", default="{}", metavar="JSON", help="""Keyword arguments: '{"x": 2}'."""
)
@click.option("-Q", "--queue", metavar="NAME", help="Send it to this queue.")
@click.option(
    "--expires", type=float, metavar="SEC", help="Do not start a run later than this."
)
@click.option(
    "--tz", metavar="ZONE", help="Time zone of a cron expression.  [default: the app's]"
)
@click.option(
    "--catch-up",
    type=click.Choice(["one", "skip", "all"]),
    default="one",
    show_default=True,
    help="Which missed runs to make up for.",
)
@click.option(
    "--overlap",
    type=click.Choice(["allow", "skip", "queue"]),
    default="allow",
    show_default=True,
    help="What to do while the last run is unfinished.",
)
def schedule_add(
    name: str,
    task: str,
    when: str,
    args: str,
    kwargs: str,
    queue: str | None,
    expires: float | None,
    tz: str | None,
    catch_up: Any,
    overlap: Any,
) -> None:
    """Add a periodic task: SCHEDULE is a number of seconds or a cron expression.

    \b
    liteq schedule add poll tasks.poll 30
    liteq schedule add nightly tasks.clean_up '0 3 * * *' --tz Europe/Berlin
    liteq schedule add report tasks.report @monthly -a '["sales"]'
    """
    options = {"queue": queue, "expires": expires}
    entry = _app(Session.current()).schedules.add(
        name,
        task,
        _when(when),
        args=_json("--args", args, list),
        kwargs=_json("--kwargs", kwargs, dict),
        options={key: value for key, value in options.items() if value is not None},
        tz=tz,
        catch_up=catch_up,
        overlap=overlap,
    )
    click.echo(_moment(entry.due_at))


@schedule.command("run")
@click.argument("name")
def schedule_run(name: str) -> None:
    """Send a periodic task once, now, and print the id."""
    click.echo(shown(_app(Session.current()).schedules.run_now(name).id))


@schedule.command("pause")
@click.argument("name")
def schedule_pause(name: str) -> None:
    """Stop sending a periodic task until it is resumed."""
    _each(name, lambda schedules, one: schedules.pause(one), "paused")


@schedule.command("resume")
@click.argument("name")
def schedule_resume(name: str) -> None:
    """Resume a periodic task, from its next due time on."""
    _each(name, lambda schedules, one: schedules.resume(one), "resumed")


@schedule.command("remove")
@click.argument("name")
def schedule_remove(name: str) -> None:
    """Delete a periodic task that was added at run time."""
    _each(name, lambda schedules, one: schedules.remove(one), "removed")


def _each(given: str, change: Callable[[Schedules, str], None], done: str) -> None:
    session = Session.current()
    change(_app(session).schedules, given)
    session.note(f"{given}: {done}")


def _app(session: Session) -> Liteq:
    """Return the app with all of its tasks: whether an entry's task exists is checked."""
    session.import_tasks()
    return session.app


def _when(text: str) -> Any:
    """Return a number of seconds as such, and anything else as the text it is."""
    try:
        return float(text)
    except ValueError:
        return text


def _json(option: str, text: str, kind: type) -> Any:
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise click.UsageError(f"{option}: {text!r} is not JSON: {exc}") from None
    if not isinstance(value, kind):
        word = "a list" if kind is list else "an object"
        raise click.UsageError(f"{option} is {word} in JSON, not {text!r}")
    return value


def _fields(entry: PeriodicEntry, count: int) -> dict[str, Any]:
    made = entry.entry
    fields: dict[str, Any] = {
        "name": entry.name,
        "task": entry.task,
        "schedule": entry.schedule,
        **_on_the_clock(entry),
        "origin": entry.origin,
        "paused": entry.paused,
        "next": [each.isoformat(timespec="seconds") for each in entry.next(count)],
        "last_run_at": None,
        "last_id": entry.last_id,
        "runs": entry.total,
    }
    if entry.last_run_at is not None:
        fields["last_run_at"] = entry.last_run_at.isoformat(timespec="seconds")
    if made is not None:
        app = Session.current().app
        args, kwargs = without_secrets(app, made.task, made.args, made.kwargs)
        fields.update(
            call=made.written(app),
            args=args,
            kwargs=kwargs,
            options=app.redactor.value(made.options),
            catch_up=made.catch_up,
            overlap=made.overlap,
        )
    if entry.error:
        fields["error"] = entry.error
    return fields


def _on_the_clock(entry: PeriodicEntry) -> dict[str, Any]:
    """Return how a schedule goes by the clock: in which zone, and whether an interval does.
    Nothing of one that does not, or that cannot be read."""
    when = entry.entry.timetable if entry.entry is not None else None
    spec = when.spec() if when is not None else {}
    return {name: spec[name] for name in ("relative", "dom_or_dow", "tz") if name in spec}


def _why_not(entry: PeriodicEntry) -> str:
    if entry.paused:
        return "paused"
    return "broken" if entry.error else "never"


def _text(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case str():
            return shown(value)
    return json_text(value)


def _moment(when: datetime | None) -> str:
    return "" if when is None else when.isoformat(" ", "seconds")
