"""Which tasks a command is about: ids, or what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from liteq.cli.exits import Exit, Failure
from liteq.cli.front import ask, completing
from liteq.cli.session import Session
from liteq.searches import instant, read_moment, read_states

if TYPE_CHECKING:
    from collections import Counter

    from liteq.brokers.base import Broker
    from liteq.brokers.searching import Search

__all__ = [
    "by_death",
    "by_what",
    "moment_ago",
    "need",
    "resolved",
    "search_for",
    "sure",
    "told_of",
    "yes_option",
]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_MOST_TOLD: Final = 20
_TIMES: Final = ("since", "until", "died_since", "died_until")
_TIME: Final = "2h, 7d or a time (without an offset: in the app's zone)"


def states(text: str) -> frozenset[str]:
    """Read states with commas between them: see `searches.read_states`."""
    return _read(read_states, text)


def moment_ago(text: str) -> float | datetime:
    """Read a time: see `searches.read_moment`."""
    return _read(read_moment, text)


def _read(reader: Callable[[str], T], text: str) -> T:
    try:
        return reader(text)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None


def by_what(function: F) -> F:
    """Add the options that say what tasks have in common."""
    for option in reversed(
        (
            click.option(
                "-s",
                "--state",
                "states",
                type=states,
                metavar="A,B",
                help="Only in these states: queued, running, failed … (or Celery's names).",
            ),
            *_common(),
            click.option(
                "--since",
                type=moment_ago,
                metavar="TIME",
                help=f"Enqueued since: {_TIME}.",
            ),
            click.option(
                "--until",
                type=moment_ago,
                metavar="TIME",
                help=f"Enqueued before: {_TIME}.",
            ),
            click.option("--workflow", metavar="ID", help="Only of this workflow."),
        )
    ):
        function = option(function)
    return function


def by_death(function: F) -> F:
    """Add the options that say what dead letters have in common."""
    for option in reversed(
        (
            *_common(),
            click.option(
                "--reason", metavar="TEXT", help="Only if the reason contains this text."
            ),
            click.option(
                "--since",
                "died_since",
                type=moment_ago,
                metavar="TIME",
                help=f"Dead since: {_TIME}.",
            ),
            click.option(
                "--older-than",
                "died_until",
                type=moment_ago,
                metavar="TIME",
                help=f"Dead for longer than, or before: {_TIME}.",
            ),
        )
    ):
        function = option(function)
    return function


def yes_option(function: F) -> F:
    return click.option(
        "-y", "--yes", "-f", "--force", is_flag=True, help="Do not ask for confirmation."
    )(function)


def search_for(**wanted: Any) -> Search:
    """Return the search that these options ask for."""
    from liteq.brokers.searching import Search

    given = {name: value for name, value in wanted.items() if value is not None}
    app = Session.current().app
    for name in given.keys() & _TIMES:
        given[name] = instant(given[name], app.timezone)
    if workflow := given.get("workflow"):
        known = app.broker.workflow(workflow)
        given["workflow"] = known.id if known is not None else workflow
    return Search(**given)


def sure(verb: str, counts: Counter[Any], noun: str, *, yes: bool, dry_run: bool) -> bool:
    """Say how many there are, and ask. Return whether to go on; False for nothing to do."""
    session = Session.current()
    total = counts.total()
    told = ", ".join(f"{number:,} {state}" for state, number in sorted(counts.items()))
    few = f"{total:,} {noun}{'' if total == 1 else 's'}"
    if dry_run or not total:
        session.note(
            f"{few}{f' ({told})' if told and len(counts) > 1 else ''}; nothing was done"
        )
        return False
    ask(f"{verb} {few}{f' ({told})' if len(counts) > 1 else ''}?", yes=yes)
    return True


def told_of(passed: Mapping[str, str], *, named: bool) -> Exit:
    """Say which were given no fresh start, and why: what was `named` ends the command with a
    `Failure`."""
    if not passed:
        return Exit.OK
    told = [f"{id}: {why}" for id, why in islice(passed.items(), _MOST_TOLD)]
    if more := len(passed) - len(told):
        told.append(f"{more:,} more")
    text = f"passed over: {'; '.join(told)}"
    if named:
        raise Failure(text, Exit.NOT_FOUND)
    Session.current().note(text)
    return Exit.OK


def resolved(broker: Broker, texts: Sequence[str]) -> list[str]:
    """Return the ids that these texts are or begin."""
    from liteq.operating import resolve

    return [resolve(broker, text) for text in texts]


def need(ids: Sequence[str], wanted: dict[str, Any], *, everything: bool) -> None:
    """Refuse a command that names nothing, or both ids and what they have in common."""
    filtered = any(value is not None for value in wanted.values())
    if ids and (filtered or everything):
        raise click.UsageError("give ids or filters, not both")
    if not (ids or filtered or everything):
        raise click.UsageError("give ids, filters or --all")


def _common() -> tuple[Callable[[F], F], ...]:
    return (
        click.option(
            "-Q",
            "--queue",
            metavar="NAME",
            help="Only of this queue.",
            shell_complete=completing("queues"),
        ),
        click.option(
            "-t",
            "--task",
            metavar="NAME",
            help="Only of this task; * and ? are wildcards.",
            shell_complete=completing("tasks"),
        ),
    )
