"""How a command ends: its exit code, and what it says of its user's mistakes."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING

from liteq import exceptions
from liteq.cli.streams import say
from liteq.shortage import advice
from liteq.wording import shown

if TYPE_CHECKING:
    from liteq.cli.session import Session

__all__ = ["EXIT_CODES", "Exit", "Failure", "ending", "show_traceback", "status_of"]


class Exit(enum.IntEnum):
    """The exit codes, which scripts rely on."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNKNOWN_TASK = 4
    NO_WORKER = 5
    BROKER = 6
    APP = 7
    SCHEMA = 8
    UNAVAILABLE = 69  # Celery's, and sysexits(3)'s EX_UNAVAILABLE
    TIMEOUT = 124
    INTERRUPTED = 130


EXIT_CODES = """\b
Exit codes:
  0      done
  1      the task or the operation failed
  2      wrong usage or configuration
  3      not found: a task's id, a queue, a limit, a setting, a store
  4      unknown task name
  5      no live worker (health)
  6      the store cannot be reached, or is locked; it or the queue is full
  7      the app was not found or cannot be imported
  8      the store's schema is too new or too old
  69     no worker has answered (status, inspect, control)
  124    not finished in the time given
  128+n  ended by signal n
"""


class Failure(Exception):
    """Ends the command with a message on stderr and an exit code."""

    def __init__(
        self, message: str, exit_code: Exit = Exit.FAILED, *, plain: bool = False
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.plain = plain  # without liteq's name before it: the user's own traceback


def ending(session: Session, command: Callable[[], int]) -> int:
    """Run a command and return its exit code. A traceback of liteq's own means a bug in
    liteq."""
    try:
        return command()
    except Failure as exc:
        if session.verbose and exc.__cause__ is not None:
            show_traceback(exc)
        say(f"{'' if exc.plain else 'liteq: '}{shown(exc, lines=True)}")
        return exc.exit_code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except exceptions.LiteqError as exc:
        if session.verbose:
            show_traceback(exc)
        say(f"liteq: {shown(exc, lines=True)}")
        return status_of(exc)
    except (OSError, MemoryError) as exc:
        if session.verbose or (lacking := advice(exc)) is None:
            raise
        say(f"liteq: {shown(lacking)}")
        return Exit.FAILED


def show_traceback(exc: BaseException) -> None:
    import traceback  # late: for who asks

    text = "".join(traceback.format_exception(exc))
    say(shown(text, lines=True), nl=False)


def status_of(exc: exceptions.LiteqError) -> Exit:
    """Return the exit code that tells a script what kind of error it was."""
    match exc:
        case (
            exceptions.ImproperlyConfigured()
            | exceptions.EncodeError()
            | exceptions.ScheduleError()
        ):
            return Exit.USAGE
        case (
            exceptions.UnknownTaskId()
            | exceptions.UnknownWorkflow()
            | exceptions.QueueNotFound()
            | exceptions.ScheduleNotFound()
        ):
            return Exit.NOT_FOUND
        case exceptions.NotRegistered():
            return Exit.UNKNOWN_TASK
        case exceptions.SchemaError():
            return Exit.SCHEMA
        case exceptions.BrokerError():
            return Exit.BROKER
        case exceptions.TimeoutError():
            return Exit.TIMEOUT
        case _:
            return Exit.FAILED
