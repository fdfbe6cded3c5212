"""`liteq doctor`: look for what is wrong, and say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from liteq.cli.exits import Exit, Failure
from liteq.cli.front import as_json, command
from liteq.cli.output import print_json, shown
from liteq.cli.session import Session
from liteq.cli.streams import say

if TYPE_CHECKING:
    from liteq.doctor import Finding

__all__ = ["doctor"]

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@command()
@click.option("--full", is_flag=True, help="Check a large store completely, too.")
@as_json
def doctor(full: bool, as_json: bool) -> int:
    """Check the installation, the settings and the store for problems.

    Each line says ok, warn or fail, and what to do. Nothing is changed. The exit code is 1
    if a check fails. With -b URL and no app, only that store is checked.

    \b
    liteq doctor
    liteq doctor --json -b redis://db1/0
    """
    findings = list(_findings(Session.current(), full=full))
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            level = click.style(f"{finding.level:<4}", fg=_COLOURS[finding.level])
            click.echo(f"{level}  {finding.name:<{width}}  {shown(finding.what)}")
            if finding.advice:
                click.echo(
                    f"{'':6}{'':{width}}  {click.style('→', dim=True)} {shown(finding.advice)}"
                )
        counts = [sum(f.level == level for f in findings) for level in _COLOURS]
        say("{} ok, {} warn, {} fail".format(*counts))
    return Exit.FAILED if any(finding.level == "fail" for finding in findings) else Exit.OK


def _findings(session: Session, *, full: bool) -> Iterator[Finding]:
    from liteq.brokers import connect
    from liteq.doctor import Finding, examine
    from liteq.exceptions import LiteqError

    url = session.options.get("broker")
    app = None
    try:
        app = session.app
    except Failure as exc:
        if not url:
            yield Finding(
                "app", "fail", str(exc).strip(), "name it with -A, or a store with -b"
            )
    else:
        yield Finding("app", "ok", f"{app.main or 'unnamed'}, {session.find().reference}")
        try:
            session.import_tasks()  # as a worker does: what these lack is found below
        except Failure as exc:
            yield Finding(
                "imports", "fail", str(exc).strip(), "no worker starts before that is mended"
            )
    broker = None
    try:
        broker = app.broker if app is not None else connect(url) if url else None
    except LiteqError as exc:
        yield Finding("store", "fail", str(exc), "correct broker_url")
    yield from examine(broker, app, full=full)
