"""`liteq limits`: how often, and how many at once, tasks may start; and to change that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from liteq.cli.exits import Exit, Failure
from liteq.cli.front import Group, as_json, completing, enter
from liteq.cli.output import print_json, print_table
from liteq.cli.session import Session

if TYPE_CHECKING:
    from liteq.limits import Limit, LimitInfo

__all__ = ["limits"]


@click.group(cls=Group, invoke_without_command=True)
@as_json
@click.pass_context
def limits(ctx: click.Context, as_json: bool) -> None:
    """Show rate and concurrency limits, and change them at run time.

    Without a command: each limit that workers have declared, its present value, the value
    in the code if an operator has changed it, and its tasks. `liteq ls -s limited` lists
    the calls that wait for a limit.

    \b
    liteq limits
    liteq limits set tasks.send_mail:rate 10/m
    liteq limits set workdir 2
    liteq limits reset workdir
    """
    if ctx.invoked_subcommand is None:
        _list(enter(ctx), as_json=as_json)


@limits.command("list")
@as_json
def limits_list(as_json: bool) -> None:
    """Show the limits, as `liteq limits` does."""
    _list(Session.current(), as_json=as_json)


def _list(session: Session, *, as_json: bool) -> None:
    from liteq.limits import allowed_text

    found = session.app.broker.limits()
    if as_json:
        print_json([_fields(known) for known in found])
        return
    rows = []
    for known in found:
        force, changed = known.in_force, known.override is not None
        rows.append(
            {
                "limit": known.name,
                "kind": _kind(known),
                "allows": allowed_text(force) if force else "no limit",
                "code says": _said(known.declared) if changed else None,
                "tasks": ", ".join(known.tasks),
            }
        )
    print_table(("limit", "kind", "allows", "code says", "tasks"), rows)
    if not rows:
        session.note("there is no limit: workers declare those of their tasks when they start")


@limits.command("set")
@click.argument("name", shell_complete=completing("limits"))
@click.argument("value", metavar="RATE|NUMBER")
def limits_set(name: str, value: str) -> None:
    """Change a limit, at once, for every worker and also after restarts.

    RATE is written as in code: 10/m, 100/s;burst=20. NUMBER is for a concurrency limit: how
    many run at once. "none" lifts the limit. Prints the new value.

    \b
    liteq limits set tasks.send_mail:rate 10/m
    liteq limits set workdir 2
    """
    from liteq.limits import allowed_text

    broker = Session.current().app.broker
    known = _known(broker.limits(), name)
    limit = _limit(known, value)
    broker.override_limit(name, limit)
    click.echo(allowed_text(limit))


@limits.command("reset")
@click.argument(
    "names", nargs=-1, required=True, metavar="NAME...", shell_complete=completing("limits")
)
def limits_reset(names: tuple[str, ...]) -> None:
    """Go back to the value in the code, and print it."""
    session = Session.current()
    broker = session.app.broker
    found = broker.limits()
    for known in [_known(found, name) for name in names]:
        if known.override is None:
            session.note(f"{known.name} was not changed")
        broker.override_limit(known.name, None)
        click.echo(_said(known.declared))


def _known(found: Sequence[LimitInfo], name: str) -> LimitInfo:
    for known in found:
        if known.name == name:
            return known
    from difflib import get_close_matches  # late: for who has misspelt it

    names = [known.name for known in found]
    near = [n for known in found if name in known.tasks for n in (known.name,)]
    near = near or get_close_matches(name, names)
    advice = f"did you mean {' or '.join(near)}?" if near else "`liteq limits` lists them"
    raise Failure(f"there is no limit {name!r}; {advice}", Exit.NOT_FOUND)


def _limit(known: LimitInfo, value: str) -> Limit:
    """Return the limit that an operator asks for, of the kind that the code declares."""
    from liteq.limits import Limit, rate_limit_of

    if value.lower() == "none":
        return Limit(known.name)
    if _kind(known) == "rate":
        try:
            made = rate_limit_of(known.name, value)
        except ValueError as exc:
            raise click.BadParameter(str(exc), param_hint="RATE") from None
        declared = known.declared
        return made._replace(per_worker=declared is not None and declared.per_worker)
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(
            f"{known.name} limits concurrency: it takes a number of 1 or more, not {value!r}",
            param_hint="NUMBER",
        )
    return Limit(known.name, most=int(value))


def _kind(known: LimitInfo) -> str:
    limit = known.declared or known.override
    return "concurrency" if limit is not None and limit.most is not None else "rate"


def _said(limit: Limit | None) -> str:
    from liteq.limits import allowed_text

    return allowed_text(limit) if limit is not None else "no limit"


def _fields(known: LimitInfo) -> dict[str, Any]:
    force = known.in_force
    return {
        "limit": known.name,
        "kind": _kind(known),
        "allows": _said(force),
        "declared": _said(known.declared) if known.declared else None,
        "override": _said(known.override) if known.override else None,
        "per_worker": bool(force and force.per_worker),
        "tasks": list(known.tasks),
    }
