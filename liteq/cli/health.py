"""`liteq health`: does a worker live here? For the probes of containers."""

from __future__ import annotations

import os

import click

from liteq.cli.exits import Exit
from liteq.cli.front import Seconds, as_json, command
from liteq.cli.output import print_json, shown
from liteq.cli.session import Session
from liteq.cli.streams import say
from liteq.pulse import MAX_AGE

__all__ = ["health"]


@command()
@click.argument("check", type=click.Choice(["live", "ready"]), default="ready")
@click.option(
    "--max-age",
    type=Seconds(min=1),
    default=MAX_AGE,
    show_default=True,
    metavar="SEC",
    help="How old a worker's last heartbeat may be.",
)
@click.option("--any-host", is_flag=True, help="Accept a worker of any host.")
@as_json
def health(check: str, max_age: float, any_host: bool, as_json: bool) -> int:
    """Check whether a worker is alive on this host, without importing the app.

    `ready`: a worker has a recent heartbeat in the store. `live`: the same, but the exit
    code is also 0 if nothing is known (no worker is registered, since it may be starting,
    or the store cannot be reached), because that is no reason to restart a worker. The
    store is -b, LITEQ_BROKER_URL, [tool.liteq], or the only *.liteq folder here.

    The exit code is 0, or 5 if no worker is alive, or 6 if the store cannot be reached.

    \b
    liteq health live -b sqlite:////data/shop.liteq
    """
    from liteq.exceptions import BrokerError
    from liteq.health import pulses, store_url
    from liteq.redaction import mask_url

    session = Session.current()
    url, options = store_url(session.options.get("broker"))
    here = os.uname().nodename  # what gethostname() says, without importing sockets
    try:
        found = [one for one in pulses(url, options) if any_host or one.hostname == here]
    except BrokerError as exc:
        if check == "ready":
            raise
        session.note(f"{exc}; whether a worker lives is not known")
        if as_json:
            print_json({"ok": True, "check": check, "workers": [], "store": str(exc)})
        return Exit.OK
    good = [one for one in found if one.alive and one.age <= max_age]
    ok = bool(good) or (check == "live" and not found)
    if as_json:
        workers = [
            {
                "name": w.name,
                "hostname": w.hostname,
                "pid": w.pid,
                "age": w.age,
                "alive": w.alive,
            }
            for w in found
        ]
        print_json({"ok": ok, "check": check, "workers": workers})
    for one in () if as_json else good:
        click.echo(f"{shown(one.name)}  pid {one.pid}  heartbeat {one.age:.1f} s ago")
    if good:
        return Exit.OK
    where = "anywhere" if any_host else f"on {here}"
    store = mask_url(url)
    if ok:
        session.note(
            f"no worker is registered {where}; whether one lives is not known ({store})"
        )
        return Exit.OK
    why = "no worker is registered"
    if found:
        last = min(found, key=lambda one: (not one.alive, one.age))
        why = (
            f"the last heartbeat, of {last.name}, is {last.age:.0f} s old"
            if last.alive
            else f"{last.name} has died"
        )
    say(f"liteq: no live worker {where}: {shown(why)} ({shown(store)})")
    return Exit.NO_WORKER
