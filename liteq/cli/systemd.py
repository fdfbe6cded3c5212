"""`liteq systemd`: units for a service manager, made for this app."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from liteq.cli.front import command
from liteq.cli.session import Session
from liteq.redaction import is_secret_setting, mask_url
from liteq.settingsources import CELERY_ENVIRONMENT

__all__ = ["systemd"]

_UNIT = """\
# {file}
[Unit]
Description=liteq worker of {name}{instance}
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

# The options that name a store, with their flags and what says the same in the environment.
_URLS: Final = {
    "broker": ("-b", "LITEQ_BROKER_URL"),
    "result_backend": ("--result-backend", "LITEQ_RESULT_BACKEND"),
}
# Variables of ours that no worker and no beat of a unit reads.
_NOT_READ: Final = ("LITEQ_APP", "LITEQ_WEB_AUTH")
_DJANGO: Final = (
    "DJANGO_SETTINGS_MODULE"  # else a project has those that its code falls back on
)
_MOST_GRACE: Final = 1e9  # seconds: systemd counts microseconds in 64 bits


@command()
@click.option("--name", metavar="NAME", help="Name of the service.  [default: the app's]")
@click.option("--user", metavar="NAME", help="User of the service.  [default: you]")
@click.option("-Q", "--queues", metavar="A,B", help="Consume only these queues.")
@click.option(
    "-c", "--concurrency", type=click.IntRange(min=1), metavar="N", help="Tasks at once."
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=25,
    show_default=True,
    metavar="SEC",
    help="How long a stop waits for running tasks.",
)
@click.option("--beat", is_flag=True, help="Also print a unit for `liteq beat`.")
@click.option(
    "--template", is_flag=True, help="One instance per queue: systemctl start NAME@mail."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write the units to this folder instead of printing them.",
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
    """Print systemd units for the worker and for beat.

    The worker reports to systemd that it is ready, what it does, and that its loop is
    running. The units use the app, the store (-b) and the settings (--config and the
    environment) of this command. Values with secrets are only named: put them into an
    EnvironmentFile.

    \b
    liteq systemd -A shop.tasks --user shop -o /etc/systemd/system
    systemctl enable --now shop-worker
    """
    if queues and template:
        raise click.UsageError("--template needs no --queues: the instance's name is the queue")
    if not grace < _MOST_GRACE:  # nor is what is no number, with which nothing compares
        raise click.UsageError(f"--grace {grace:g} is not a number of seconds below a billion")
    session = Session.current()
    app = session.app
    reference = session.options.get("app") or session.find().reference
    name = _checked_name(name or app.main or "liteq")
    user = _checked_user(user or _me())
    given, variables = _as_asked(session)
    common = ["-A", reference, *given]
    own = ["--grace", _seconds(grace)]
    own += ["-Q", queues] if queues else []
    own += ["-c", str(concurrency)] if concurrency else []
    instance = " -Q %i" if template else ""
    units = {
        f"{name}-worker{'@' if template else ''}.service": (
            _UNIT,
            _command("worker", *common, *own) + instance,
        )
    }
    if beat:
        units[f"{name}-beat.service"] = (_BEAT, _command("beat", *common))
    environment, directory = _environment(session, variables), _directory()
    for file, (form, started) in units.items():
        text = form.format(
            file=file,
            name=name,
            instance=", queue %i" if template else "",
            user=user,
            directory=directory,
            environment=environment,
            command=started,
            stop=_seconds(grace + 35),
        )
        if output is None:
            click.echo(text)
        else:
            _write(output / file, text)
            click.echo(output / file)


# What was asked for


def _as_asked(session: Session) -> tuple[list[str], dict[str, str]]:
    """Return the words by which a command is about this one's store and settings, and the
    variables that it reads. A URL with a password goes among those: all users of a machine
    see the words of a command."""
    variables = {
        variable: value
        for variable, value in os.environ.items()
        if variable in (*CELERY_ENVIRONMENT, _DJANGO)
        or (variable.startswith("LITEQ_") and variable not in _NOT_READ)
    }
    words = []
    for option, (flag, variable) in _URLS.items():
        if url := session.options.get(option):
            variables.pop(variable, None)
            if mask_url(url) == url:
                words += [flag, url]
            else:
                variables[variable] = url
    if config := session.options.get("config"):
        words += ["--config", config]
    return words, variables


def _environment(session: Session, variables: Mapping[str, str]) -> str:
    """Return the variables as lines of a unit, but for secrets: a unit can be read by all."""
    conf = session.app.conf
    plain, censored = conf.table(True, False), conf.table(True, True)
    lines = []
    for variable, value in sorted(variables.items()):
        setting = variable.partition("_")[2].lower()
        hides = isinstance(plain.get(setting), Mapping) and plain[setting] != censored[setting]
        if hides or is_secret_setting(setting) or mask_url(value) != value:
            lines.append(f"# {variable} has a secret: put it into EnvironmentFile=\n")
            session.note(f"{variable} has a secret: put it into the units' EnvironmentFile=")
        else:
            lines.append(f"Environment={_word(f'{variable}={value}')}\n")
    if "LITEQ_LOG_FORMAT" not in variables:
        lines.append("Environment=LITEQ_LOG_FORMAT=json\n")
    return "".join(lines)


def _checked_name(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9:_.-]{1,200}", name):
        return name
    raise click.UsageError(
        f"{name!r} cannot name a unit: give a --name of letters, digits and any of : _ . -"
    )


def _checked_user(user: str) -> str:
    if re.fullmatch(r"[^\s:/%-][^\s:/%]*", user):
        return user
    raise click.UsageError(f"--user {user!r} is not a user name")


# As systemd reads it: see systemd.syntax(7), systemd.service(5) and systemd.unit(5)


def _command(*words: str) -> str:
    """Return how this very liteq is started: its script if there is one beside Python."""
    script = Path(sys.executable).with_name("liteq")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "liteq"]
    # The program's path is taken as it is; in what follows it `$` begins a variable.
    path, *rest = *program, *words
    return " ".join((_word(path), *(_word(word).replace("$", "$$") for word in rest)))


def _word(text: str) -> str:
    """Return a text as one word of a line: in quotes, within which escapes are as in C and
    JSON; and each `%` twice, since one begins a specifier."""
    if not re.fullmatch(r"[A-Za-z0-9_.,:/@+=%-]+", text):
        text = json.dumps(text, ensure_ascii=False)
    return text.replace("%", "%%")


def _directory() -> str:
    """Return the directory of this process, as a unit's line says it: to the end of the line,
    where a backslash would join the next one to it, and blanks are dropped."""
    directory = os.getcwd()
    if len(directory.splitlines()) > 1:
        raise click.UsageError(f"no unit can name {directory!r}: the name has several lines")
    end = "/" if directory[-1] in "\\ \t" else ""
    return directory.replace("%", "%%") + end


def _seconds(seconds: float) -> str:
    """Return a number of seconds without an exponent, which systemd does not read."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
    except OSError as exc:
        raise click.UsageError(f"--output: {file} cannot be written: {exc.strerror}") from exc


def _me() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
