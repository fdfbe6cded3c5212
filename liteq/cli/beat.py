"""`liteq beat`: fire the periodic entries until stopped."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from liteq.cli.front import VERSION, Seconds, command, log_options, names
from liteq.cli.logs import is_apart, log_as_asked
from liteq.cli.pidfile import holding
from liteq.cli.session import Session
from liteq.cli.working import store_of

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.systemd import Notifier

__all__ = ["beat"]

_WITHOUT_EFFECT = {
    "schedule": "the schedule is kept in the store",
    "hostname": "a beat is never addressed by name",
    "remote_control": "`liteq schedule` looks at and changes what a beat does",
}


@command()
@click.option(
    "--max-interval",
    type=Seconds(min=0, min_open=True),
    metavar="SEC",
    help="Look at the store at least this often.  [default: 60]",
)
@click.option(
    "-S",
    "--scheduler",
    metavar="CLASS",
    help="Your own scheduler, as module:Class.",
)
@log_options("info shows each task that is sent.  [default: info]")
@click.option("-I", "--include", type=names, metavar="A,B", help="Also import these modules.")
@click.option(
    "--pidfile",
    metavar="FILE",
    help="Write the process id to this file; refuse to start twice.",
)
@click.option("-s", "--schedule", "--schedule-filename", "schedule", hidden=True)
@click.option("-n", "--hostname", hidden=True)
@click.option("--enable-remote-control", "remote_control", is_flag=True, hidden=True)
@click.option("--detach", is_flag=True, hidden=True)
@click.option("--uid", hidden=True)
@click.option("--gid", hidden=True)
@click.option("--umask", hidden=True)
def beat(pidfile: str | None, **options: Any) -> int:
    """Send periodic tasks when they are due, until stopped.

    Any number of beats may run, on one machine or several: each due time is fired once. One
    beat leads; if it dies, another takes over within seconds.

    \b
    liteq beat                       the periodic tasks of ./tasks.py
    liteq -A proj beat -l debug
    liteq worker -B                  a worker with a beat
    liteq schedule list --next 3     the next due times
    """
    from liteq.systemd import Notifier  # before the app, as a worker does

    session = Session.current()
    session.heed_term()
    for name in ("detach", "uid", "gid", "umask"):
        if options[name]:
            raise click.UsageError(f"--{name} is for a service manager, as systemd")
    given = {name: why for name, why in _WITHOUT_EFFECT.items() if options[name]}
    for name, why in given.items():
        session.note(f"--{name.replace('_', '-')} has no effect: {why}")
    notify = Notifier.from_environment()
    with holding(pidfile, session.heed_term) if pidfile else nullcontext():
        return _run(session, options, notify)


def _run(session: Session, options: Mapping[str, Any], notify: Notifier | None) -> int:
    from liteq.beat import Service

    found = session.find()
    app = found.app
    log_as_asked(session, app, options)
    session.import_tasks(options["include"] or ())
    shown = is_apart(app)

    def ready() -> None:
        if shown:
            session.banner("ready     Ctrl-C to stop")

    service = Service(
        app,
        max_interval=options["max_interval"],
        scheduler=options["scheduler"],
        notify=notify,
        on_ready=ready,
    )
    if shown:
        _banner(session, app, found.reference)
    return service.run()


def _banner(session: Session, app: Liteq, reference: str) -> None:
    count = len(app.schedules.declarations())
    session.banner(
        f"liteq     {VERSION} · Python {sys.version.split()[0]} · pid {os.getpid()}",
        f"app       {app.main or reference} ({reference})",
        f"store     {store_of(app)}",
        f"beat      {count} periodic task{'' if count == 1 else 's'} declared in code",
    )
