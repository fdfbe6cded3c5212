"""The log of a command that goes on: where it is written, and in which form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from liteq import signals
from liteq.cli.exits import Exit, Failure

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.cli.session import Session

__all__ = ["is_apart", "log_as_asked", "log_as_set"]

_FLAGS: Final = {"-l": "loglevel", "-f": "logfile", "--log-format": "log_format"}


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
        said = f"--logfile {app.conf.worker_logfile}: {exc.strerror}"
        raise Failure(said, Exit.USAGE) from exc
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
