"""The log: liteq's loggers, and the two forms in which the command line writes records.

Importing liteq configures nothing: its loggers get a `NullHandler`, with the first app, and
that is all. Only the command line calls `configure()`, and that leaves a root logger alone
that somebody has given handlers.

Whatever a record holds, it stays one record: control characters are escaped, so a task
whose name has a newline in it cannot write a second line that looks genuine.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from math import isfinite
from typing import IO, Any, Final, Protocol

from liteq.exceptions import ImproperlyConfigured
from liteq.logfields import NO_TASK
from liteq.loggers import get_logger
from liteq.redaction import mask_url

__all__ = [
    "EXTRA",
    "JsonFormatter",
    "TextFormatter",
    "configure",
    "escape",
    "get_task_logger",
    "logger",
    "safe",
    "task_logger",
]

logger = get_logger("liteq")
task_logger = get_logger("liteq.task")

# What a record may carry through `extra=…`, in the order in which JSON shows it.
EXTRA: Final = (
    "task",
    "task_id",
    "root_id",
    "queue",
    "attempt",
    "worker",
    "pid",
    "duration_ms",
    "outcome",
)
TEXT_FORMAT: Final = "%(asctime)s %(levelname)-8s %(process)d %(name)s: %(message)s"


class _Signal(Protocol):
    @property
    def receivers(self) -> list[Any]: ...
    def send(self, sender: Any, **named: Any) -> Any: ...


class Signals(Protocol):
    """The signals that logging sends: what `liteq.signals` has. They come as an argument
    because that module lies above this one."""

    @property
    def setup_logging(self) -> _Signal: ...
    @property
    def after_setup_logger(self) -> _Signal: ...
    @property
    def after_setup_task_logger(self) -> _Signal: ...


# Text


def _unsafe() -> dict[int, str]:
    table = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
    table |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
    # Line separators, what reverses the direction of text, and what cannot be encoded.
    strange = (0x2028, 0x2029, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    return table | {code: f"\\u{code:04x}" for code in strange}


_ESCAPES: Final = _unsafe()


def safe(text: str) -> str:
    """Return a text that anybody may have made, fit to be shown: on one line, without
    control characters, the passwords of URLs hidden."""
    return escape(_masked(text))


def escape(text: str) -> str:
    """Return a text with its control characters as visible escapes, on one line.

    Also escaped: line separators, marks that reverse the direction of text, and lone
    surrogates, which no stream could write.
    """
    if text.isprintable():  # true of nearly every line, and a hundred times quicker
        return text
    return text.translate(_ESCAPES).encode("utf-8", "backslashreplace").decode()


def _masked(text: str) -> str:
    return mask_url(text) if "://" in text else text


def _block(text: str) -> str:
    """Return lines indented, so that none of them can pass for a record's first line."""
    return "\n".join(f"  {safe(line)}" for line in text.rstrip("\n").split("\n"))


class TextFormatter(logging.Formatter):
    """One line per record, a traceback below it indented. Times are local, in ISO 8601.

    `template` is a %-format of the logging module. With the default one, what a task's code
    logs names the task and its id, as liteq's own lines do in their words.
    """

    _COLOURS: Final = {"WARNING": "33", "ERROR": "31", "CRITICAL": "1;31", "DEBUG": "2"}

    def __init__(
        self, template: str = TEXT_FORMAT, datefmt: str | None = None, *, colour: bool = False
    ) -> None:
        # For records that no logger has made: those of another process, say.
        unknown = {"task_name": NO_TASK, "task_id": NO_TASK}
        super().__init__(template, datefmt, defaults=unknown)
        self.colour = colour
        self._names_task = template == TEXT_FORMAT

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text. The record stays as it is, for other handlers."""
        shown = logging.makeLogRecord(record.__dict__)
        shown.message = record.getMessage()
        if self._names_task and not record.name.startswith(f"{logger.name}."):
            task, task_id = record.__dict__.get("task"), record.__dict__.get("task_id")
            if task is not None and task_id is not None:
                shown.message = f"{task}[{task_id}]: {shown.message}"
        if self.usesTime():
            shown.asctime = self.formatTime(record, self.datefmt)
        # Escaped after formatting: the name or an extra field may hold anything too.
        line = safe(self.formatMessage(shown))
        code = self._COLOURS.get(record.levelname) if self.colour else None
        if code:
            line = f"\x1b[{code}m{line}\x1b[0m"
        if record.exc_info and record.exc_info[0] is not None:
            line += f"\n{_block(self.formatException(record.exc_info))}"
        elif record.exc_text:
            line += f"\n{_block(record.exc_text)}"
        if record.stack_info:
            line += f"\n{_block(record.stack_info)}"
        return line

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 (logging's name)
        local = time.localtime(record.created)
        if datefmt:
            return time.strftime(datefmt, local)
        return f"{time.strftime('%Y-%m-%d %H:%M:%S', local)}.{int(record.msecs):03d}"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ts (UTC), level, logger, message, then what the record has
    of `EXTRA`, `exception` with the traceback, and `stack` if the call asked for it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of ASCII."""
        utc = time.gmtime(record.created)
        fields: dict[str, Any] = {
            "ts": f"{time.strftime('%Y-%m-%dT%H:%M:%S', utc)}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": _masked(record.getMessage()),
        }
        for name in EXTRA:
            value = record.process if name == "pid" else getattr(record, name, None)
            if isinstance(value, float) and not isfinite(value):
                value = str(value)  # `NaN` is no JSON
            if value is not None and (name != "task_id" or value != NO_TASK):
                fields[name] = value
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = _masked(self.formatException(record.exc_info))
        elif record.exc_text:
            fields["exception"] = _masked(record.exc_text)
        if record.stack_info:
            fields["stack"] = _masked(self.formatStack(record.stack_info))
        return json.dumps(fields, default=str)


# Loggers


def get_task_logger(name: str) -> logging.Logger:
    """Return a logger for a module of tasks.

    As with Celery, its records also go to the handlers of "liteq.task", which
    `after_setup_task_logger` gives to a program. Raises `RuntimeError` for a name that
    is liteq's own.
    """
    if name in (logger.name, task_logger.name):
        raise RuntimeError(f"the logger name {name!r} is liteq's own: use __name__")
    found = logging.getLogger(name)
    if not name.startswith(f"{task_logger.name}."):
        found.parent = task_logger
    return found


# Configuration, by the command line alone


def configure(
    level: int | str = "INFO",
    logfile: str | None = None,
    format: str = "text",
    colour: bool | None = None,  # noqa: FBT001 (None: it depends)
    *,
    task_format: str | None = None,
    datefmt: str | None = None,
    task_datefmt: str | None = None,
    signals: Signals | None = None,
    stream: IO[str] | None = None,
) -> bool:
    """Give the root logger a handler, unless the program has seen to its logging itself.

    It has if `setup_logging` has a receiver (which is called, and does it all) or if the
    root logger has a handler: then nothing is touched. Returns whether anything was done.

    format: "text", "json", or a %-format. task_format: another %-format for the loggers
    of tasks. datefmt, task_datefmt: how times are written (`time.strftime`). colour: None
    means on a terminal, unless NO_COLOR is set. The log goes to standard error, or is appended
    to `logfile`, which may be rotated under it. What records say about the running task they
    bear already (see `liteq.logfields`).

    Raises `ImproperlyConfigured` for a level or format that does not exist, and `OSError`
    if the file cannot be written.
    """
    number = _level(level)
    said = {"loglevel": number, "logfile": logfile, "format": format, "colorize": colour}
    if signals is not None and signals.setup_logging.receivers:
        signals.setup_logging.send(None, **said)
        return False
    root = logging.getLogger()
    if root.handlers:
        return False
    handler = _handler(logfile, stream)
    target = getattr(handler, "stream", None)
    colour = _wants_colour(target) if colour is None else colour
    handler.setFormatter(_formatter(format, datefmt, colour=colour))
    root.addHandler(handler)
    root.setLevel(number)
    if (task_format is not None or task_datefmt is not None) and format != "json":
        task_handler = _handler(logfile, stream)
        formatter = _formatter(task_format or format, task_datefmt or datefmt, colour=colour)
        task_handler.setFormatter(formatter)
        task_logger.addHandler(task_handler)
        task_logger.propagate = False
    if signals is not None:
        signals.after_setup_logger.send(None, logger=root, **said)
        signals.after_setup_task_logger.send(None, logger=task_logger, **said)
    return True


def _level(level: int | str) -> int:
    if isinstance(level, int):
        return level
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ImproperlyConfigured(
            f"unknown log level {level!r}: use debug, info, warning, error or critical"
        )
    return number


def _formatter(format: str, datefmt: str | None, *, colour: bool) -> logging.Formatter:
    if format == "json":
        return JsonFormatter()
    if format == "text":
        return TextFormatter(datefmt=datefmt, colour=colour)
    if "%(" not in format:
        raise ImproperlyConfigured(
            f"unknown log format {format!r}: use text, json, or a %-format like {TEXT_FORMAT!r}"
        )
    if "%(processName)" in format:
        import multiprocessing  # noqa: F401 (a record has the name from there, if it is loaded)
    try:
        return TextFormatter(format, datefmt, colour=colour)
    except ValueError as exc:
        raise ImproperlyConfigured(f"log format {format!r}: {exc}") from exc


def _handler(logfile: str | None, stream: IO[str] | None) -> logging.Handler:
    if logfile is None:
        return logging.StreamHandler(stream or sys.stderr)
    from logging.handlers import WatchedFileHandler  # late: it brings sockets and pickle

    return WatchedFileHandler(logfile, encoding="utf-8", errors="backslashreplace")


def _wants_colour(stream: Any) -> bool:
    isatty = getattr(stream, "isatty", None)
    return isatty is not None and bool(isatty()) and not os.environ.get("NO_COLOR")
