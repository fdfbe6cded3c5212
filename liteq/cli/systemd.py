"""`liteq systemd`: units for a service manager, made for this app."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from liteq.cli.front import Session, command

__all__ = ["systemd"]

_UNIT = """\
# {file}
[Unit]
Description=liteq {what} of {name}{instance}
After=network.target

[Service]
Type=notify
NotifyAccess=main
User={user}
WorkingDirectory={directory}
{environment}ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
KillMode=mixed
TimeoutStopSec={stop}
WatchdogSec=60
Restart=on-failure
RestartSec=1
RestartPreventExitStatus=2 7 8
UMask=0077
NoNewPrivileges=true

[Install]
WantedBy=multi-user.target
"""
_BEAT = """\
# {file}
[Unit]
Description=liteq beat of {name}
After=network.target

[Service]
User={user}
WorkingDirectory={directory}
{environment}ExecStart={command}
Restart=on-failure
RestartSec=1
RestartPreventExitStatus=2 7 8
UMask=0077
NoNewPrivileges=true

[Install]
WantedBy=multi-user.target
"""


@command()
@click.option("--name", metavar="NAME", help="Of the service.  [default: the app's]")
@click.option("--user", metavar="NAME", help="Who runs it.  [default: you]")
@click.option("-Q", "--queues", metavar="A,B", help="The worker consumes these queues only.")
@click.option(
    "-c", "--concurrency", type=click.IntRange(min=1), metavar="N", help="Tasks at once."
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=25,
    show_default=True,
    metavar="SEC",
    help="How long running tasks may take to finish at a stop.",
)
@click.option("--beat", is_flag=True, help="A unit for `liteq beat` as well.")
@click.option("--template", is_flag=True, help="Instances by queue: systemctl start NAME@mail.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write files there, in place of printing them.",
)
def systemd(
    name: str | None,
    user: str | None,
    queues: str | None,
    concurrency: int | None,
    grace: float,
    beat: bool,
    template: bool,
    output: Path | None,
) -> None:
    """Print systemd units for the worker, and for beat.

    The worker tells systemd when it is ready, what it does, and that its loop still turns.

    \b
    liteq systemd -A shop.tasks --user shop -o /etc/systemd/system
    systemctl enable --now shop-worker
    """
    if queues and template:
        raise click.UsageError("with --template the queue is the instance's name: no --queues")
    session = Session.current()
    app = session.app
    reference = session.options.get("app") or session.find().reference
    name = name or app.main or "liteq"
    units = {
        f"{name}-worker{'@' if template else ''}.service": (
            _UNIT,
            "worker",
            _options(queues="%i" if template else queues, concurrency=concurrency, grace=grace),
        )
    }
    if beat:
        units[f"{name}-beat.service"] = (_BEAT, "beat", "")
    for file, (unit, what, options) in units.items():
        text = unit.format(
            file=file,
            what=what,
            name=name,
            instance=", queue %i" if template and what == "worker" else "",
            user=user or _me(),
            directory=os.getcwd(),
            environment=_environment(),
            command=f"{_command()} {what} -A {reference}{options}",
            stop=f"{grace + 35:g}",
        )
        if output is None:
            click.echo(text)
        else:
            output.mkdir(parents=True, exist_ok=True)
            (output / file).write_text(text)
            click.echo(output / file)


def _options(*, queues: str | None, concurrency: int | None, grace: float) -> str:
    text = f" --grace {grace:g}"
    text += f" -Q {queues}" if queues else ""
    return text + (f" -c {concurrency}" if concurrency else "")


def _environment() -> str:
    """Return the settings of this shell's environment as lines of a unit, but for secrets:
    a unit can be read by all."""
    from liteq.redaction import is_secret_setting, mask_url

    lines = []
    for variable, value in sorted(os.environ.items()):
        if not variable.startswith("LITEQ_") or variable == "LITEQ_APP":
            continue
        if is_secret_setting(variable.removeprefix("LITEQ_")) or mask_url(value) != value:
            lines.append(f"# {variable} has a secret: put it into EnvironmentFile=\n")
        elif "\n" not in value:
            quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
            lines.append(f'Environment="{variable}={quoted}"\n')
    lines.append(
        "Environment=LITEQ_LOG_FORMAT=json\n"
        if not any("LITEQ_LOG_FORMAT" in line for line in lines)
        else ""
    )
    return "".join(lines)


def _command() -> str:
    """Return how this very liteq is started: its script if there is one beside Python."""
    script = Path(sys.executable).with_name("liteq")
    return str(script) if script.exists() else f"{sys.executable} -m liteq"


def _me() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
