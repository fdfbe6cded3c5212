"""`liteq retry` and `liteq cancel`: tasks by id, or many by what they have in common."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from liteq.cli.exits import Exit, Failure
from liteq.cli.filters import by_what, need, resolved, search_for, sure, told_of, yes_option
from liteq.cli.front import command, completing
from liteq.cli.output import shown
from liteq.cli.session import Session

__all__ = ["cancel", "retry"]

_dry_run = click.option("--dry-run", is_flag=True, help="Only count them.")
_ids = click.argument("ids", nargs=-1, metavar="[ID]...", shell_complete=completing("ids"))


@command()
@_ids
@by_what
@click.option("--all", "everything", is_flag=True, help="All failed tasks.")
@_dry_run
@yes_option
def retry(
    ids: tuple[str, ...], everything: bool, dry_run: bool, yes: bool, **wanted: Any
) -> int:
    """Run failed tasks and dead letters again, with all counts reset.

    Tasks that ended because of them wait again. Prints the ids. With filters instead of
    ids, the command shows the number first and asks, and prints the number. Tasks that are
    skipped are named on stderr with the reason; the exit code is 3 if you gave their ids.

    \b
    liteq retry 01a1fd00-99f0
    liteq retry -t 'shop.*' --since 2h
    """
    from liteq import operating

    broker = Session.current().app.broker
    need(ids, wanted, everything=everything)
    if ids:
        passed: dict[str, str] = {}
        for some in operating.retry(broker, resolved(broker, ids)):
            passed |= some.passed
            for id in some.ids:
                click.echo(shown(id))
        return told_of(passed, named=True)
    chosen = {**wanted, "states": (wanted["states"] or {"failed"}) & {"failed"}}
    if not chosen["states"]:
        raise click.UsageError("only what has failed can be run again: leave --state out")
    search = search_for(**{**chosen, "states": frozenset(chosen["states"])})
    if sure("Retry", operating.count(broker, search), "task", yes=yes, dry_run=dry_run):
        number = 0
        for some in operating.retry(broker, search):
            number += len(some.ids)
            told_of(some.passed, named=False)
        click.echo(number)
    return Exit.OK


@command()
@_ids
@by_what
@click.option("--all", "everything", is_flag=True, help="All unfinished tasks.")
@click.option("--terminate", is_flag=True, help="Also end running tasks.")
@click.option(
    "--signal",
    "name",
    metavar="NAME",
    default="SIGTERM",
    show_default=True,
    help="The signal of --terminate.",
)
@_dry_run
@yes_option
def cancel(
    ids: tuple[str, ...],
    everything: bool,
    terminate: bool,
    name: str,
    dry_run: bool,
    yes: bool,
    **wanted: Any,
) -> int:
    """Revoke unfinished tasks.

    Waiting tasks never start. Running tasks may finish, unless you give --terminate, but
    get no further attempt. Prints what happened to each. With filters instead of ids, the
    command shows the number first and asks.

    \b
    liteq cancel 01a1fd00-99f0 --terminate
    liteq cancel -Q mail -s queued,scheduled
    """
    from liteq import operating
    from liteq.searches import UNFINISHED

    broker = Session.current().app.broker
    need(ids, wanted, everything=everything)
    signal = _signal(name) if terminate else None
    if ids:
        became = sum(
            operating.cancel(broker, resolved(broker, ids), terminate=signal), Counter()
        )
    else:
        states = frozenset(wanted["states"] or UNFINISHED).intersection(UNFINISHED)
        if not states:
            raise click.UsageError("only what has not ended can be cancelled: see --state")
        search = search_for(**{**wanted, "states": states})
        counts = operating.count(broker, search)
        if not sure("Cancel", counts, "task", yes=yes, dry_run=dry_run):
            return Exit.OK
        became = sum(operating.cancel(broker, search, terminate=signal), Counter())
    click.echo(_told(became))
    if ids and became.keys() <= {"settled", "unsent", "unknown"}:
        raise Failure(_why_none(became), Exit.NOT_FOUND)
    return Exit.OK


def _signal(name: str) -> str:
    import signal

    full = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
    if full not in signal.Signals.__members__:
        raise click.BadParameter(f"there is no signal {name!r}", param_hint="--signal")
    return full


def _why_none(became: Counter[str]) -> str:
    if became["unsent"]:
        return "there was no call to cancel: none is sent yet, only a state is stored"
    return "none of them was unfinished"


def _told(became: Counter[str]) -> str:
    words = {
        "revoked": "revoked",
        "signalled": "being ended",
        "running": "still running",
        "settled": "over already",
        "unsent": "not sent yet",
        "unknown": "gone",
    }
    said = [f"{became[key]:,} {word}" for key, word in words.items() if became[key]]
    return ", ".join(said) or "0 revoked"
