"""How a command ends: what is said of an error, and the exit code that tells a script of it."""

from __future__ import annotations

from collections.abc import Callable

from liteq import exceptions
from liteq.cli.session import Exit, Failure, Session, WrongUsage, say
from liteq.shortage import advice
from liteq.wording import shown

__all__ = ["ended", "show_traceback", "status_of"]


def ended(session: Session, run: Callable[[], int | None]) -> int:
    """Run a command and return its exit code. An error that is the user's to mend is one
    message on stderr; a traceback of liteq's own means a bug in liteq. Raises `WrongUsage`,
    which is shown with the usage of the command."""
    try:
        status = run()
    except WrongUsage:
        raise
    except Failure as exc:
        if session.verbose and exc.__cause__ is not None:
            show_traceback(exc)
        exc.show()
        return exc.exit_code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except exceptions.LiteqError as exc:
        if session.verbose:
            show_traceback(exc)
        say(f"liteq: {shown(exc, lines=True)}")
        return status_of(exc)
    except BrokenPipeError:  # who reads what we say has gone: there is nobody to tell
        return Exit.FAILED
    except (OSError, MemoryError) as exc:
        if session.verbose or (lacking := advice(exc)) is None:
            raise
        say(f"liteq: {shown(lacking)}")
        return Exit.FAILED
    session.end()
    return int(status or 0)


def show_traceback(exc: BaseException) -> None:
    """Show it, as `--verbose` has it."""
    import traceback  # late: for who asks

    say(shown("".join(traceback.format_exception(exc)).rstrip("\n"), lines=True))


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
