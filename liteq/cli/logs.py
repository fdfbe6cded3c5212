"""The log of a command that goes on: how it is asked for, and where it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from liteq import signals
from liteq.cli.front import Session

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = [
    "format_option",
    "is_apart",
    "level_option",
    "log_as_asked",
    "log_as_set",
    "log_options",
    "logfile_option",
]

F = TypeVar("F", bound=Callable[..., Any])

_LEVELS: Final = ("debug", "info", "warning", "error", "critical", "fatal")


def level_option(help: str) -> Callable[[F], F]:
    return click.option(
        "-l", "--loglevel", type=click.Choice(_LEVELS, case_sensitive=False), help=help
    )


logfile_option = click.option(
    "-f", "--logfile", metavar="FILE", help="Log to this file instead of stderr."
)
format_option = click.option(
    "--log-format", type=click.Choice(["text", "json"]), help="[default: text]"
)


_FLAGS: Final = {"-l": "loglevel", "-f": "logfile", "--log-format": "log_format"}


def log_options(help: str) -> Callable[[F], F]:
    """Add the options that say how a command logs; `help` is that of the level."""

    def add(function: F) -> F:
        return level_option(help)(logfile_option(format_option(function)))

    return add


def log_as_asked(session: Session, app: Liteq, options: Mapping[str, Any]) -> None:
    """Set the log up as these options say, and as the app's settings where they do not."""
    app.conf.override(
        {
            "worker_log_level": options["loglevel"],
            "worker_log_format": options["log_format"],
            "worker_logfile": options["logfile"],
            "worker_log_color": session.colour,
        }
    )
    log_as_set(session, app, options)


def log_as_set(session: Session, app: Liteq, options: Mapping[str, Any]) -> None:
    """Set the log up as the app's settings say; one that cannot be written is wrong usage. If
    the program has done so itself, say which of these options have no effect."""
    from liteq import applog

    try:
        kept = applog.configure(app)
    except OSError as exc:
        raise click.UsageError(f"--logfile {app.conf.worker_logfile}: {exc.strerror}") from exc
    if kept or signals.setup_logging.receivers:
        return
    if given := [flag for flag, name in _FLAGS.items() if options.get(name) is not None]:
        session.note(
            f"no effect: {', '.join(given)}. The program has given the root logger a handler"
        )


def is_apart(app: Liteq) -> bool:
    """Tell whether other words than the log's may go to stderr: a reader of JSON is a
    program, and where its lines go, nothing else should."""
    return bool(app.conf.worker_logfile) or app.conf.worker_log_format != "json"
