"""One run of a command, with click or without: what was said, the app, the exit codes."""

from __future__ import annotations

import enum
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from liteq.exceptions import LiteqWarning
from liteq.wording import shown

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.discovery import Found

__all__ = ["Exit", "Failure", "Session", "WrongUsage", "say"]


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


class Failure(Exception):
    """End the command with a message on stderr and an exit code."""

    def __init__(
        self, message: str, exit_code: Exit = Exit.FAILED, *, plain: bool = False
    ) -> None:
        super().__init__(message)
        self.plain = plain  # without liteq's name before it: the user's own traceback
        self.exit_code = exit_code

    def show(self) -> None:
        """Say it."""
        say(("" if self.plain else "liteq: ") + shown(str(self), lines=True))


class WrongUsage(Failure):
    """The words of the command line, or a setting, cannot be meant so."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Exit.USAGE)


def say(text: str) -> None:
    """Write a line to stderr, if there is one."""
    if sys.stderr is not None:  # as under pythonw, or with the descriptor closed
        print(text, file=sys.stderr, flush=True)  # noqa: T201 (what a terminal is told)


class Session:
    """One run of the command: what the global options said, and the app they name."""

    def __init__(self, app: Liteq | None = None) -> None:
        self.options: dict[str, Any] = {}
        self._given = app
        self._found: Found | None = None
        self._last: Callable[[], None] | None = None

    @classmethod
    def current(cls) -> Session:
        import click  # late: who has a session without it needs none

        session: Session = click.get_current_context().find_root().ensure_object(cls)
        return session

    @property
    def owns_process(self) -> bool:
        """Whether this is a command, not a program that calls `app.worker_main()`."""
        return self._given is None

    @property
    def quiet(self) -> bool:
        return bool(self.options.get("quiet"))

    @property
    def colour(self) -> bool | None:
        """Whether to use colours; None: on a terminal."""
        # https://no-color.org; FORCE_COLOR is its opposite, for a pager or a CI log.
        if self.options.get("no_color") or os.environ.get("NO_COLOR"):
            return False
        return True if os.environ.get("FORCE_COLOR") else None

    @property
    def app(self) -> Liteq:
        """The app, with the global options applied to its settings."""
        return self.find().app

    def find(self, spec: str | None = None) -> Found:
        """Import the app named by `spec`, else by `-A`, else by discovery. Ends the command
        with exit code 7 when that fails."""
        if self._found is None:
            with _trouble_with_app():
                self._found = self._find(spec or self.options.get("app"))
            self._configure(self._found.app)
        return self._found

    def import_tasks(self, include: Iterable[str] = ()) -> None:
        """Import all modules of tasks, as a worker needs them. Ends the command with exit
        code 7 when that fails."""
        from liteq.discovery import import_tasks

        with _trouble_with_app():
            import_tasks(self.app, include)

    @property
    def verbose(self) -> bool:
        """Whether the traceback of an error is to be shown."""
        return bool(self.options.get("verbose"))

    def note(self, text: str) -> None:
        """Say something on stderr that is no error."""
        if not self.quiet:
            say(f"liteq: {shown(text)}")

    def banner(self, *lines: str) -> None:
        """Print lines of the worker's banner on stderr."""
        if not self.quiet:
            say("\n".join(lines))

    def enter(self) -> None:
        """Do what the global options ask for before the command begins."""
        _show_warnings_in_one_line()
        if workdir := self.options.get("workdir"):
            try:
                os.chdir(workdir)
            except OSError as exc:
                raise WrongUsage(f"--workdir {workdir}: {exc.strerror}") from exc

    def at_end(self, do: Callable[[], None]) -> None:
        """Do this when the command has ended, after all that it has open is closed."""
        self._last = do

    def end(self) -> None:
        """Do what is to be done at the end."""
        if self._last is not None:
            self._last()

    def _find(self, spec: str | None) -> Found:
        from liteq.discovery import Found, find_app  # late: imports the whole API

        if self._given is not None:
            return Found(self._given, self._given.main or "given")
        return find_app(spec)

    def _configure(self, app: Liteq) -> None:
        if broker := self.options.get("broker"):
            self._say_if_new(broker)
        if config := self.options.get("config"):
            app.config_from_object(config)
        app.conf.override(
            {
                "broker_url": self.options.get("broker"),
                "result_backend": self.options.get("result_backend"),
            }
        )

    def _say_if_new(self, url: str) -> None:
        """Say that a store named on the command line is not there: it may be misspelt."""
        from liteq.brokers import scheme_of, sqlite_target
        from liteq.exceptions import ImproperlyConfigured

        with suppress(ImproperlyConfigured):  # it is said when it is opened
            if scheme_of(url) == "sqlite":
                folder, _ = sqlite_target(url)
                if folder is not None and not os.path.exists(os.path.join(folder, "store.db")):
                    self.note(f"there was no store in {folder} yet: it is a new one")


@contextmanager
def _trouble_with_app() -> Iterator[None]:
    from liteq.discovery import AppBroken, AppNotFound

    try:
        yield
    except AppNotFound as exc:
        raise Failure(str(exc), Exit.APP, plain=isinstance(exc, AppBroken)) from exc


def _show_warnings_in_one_line() -> None:
    """Show liteq's own warnings as a sentence: their place in liteq's code says nothing."""
    show = warnings.showwarning

    def showwarning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        if file is None and issubclass(category, LiteqWarning):
            print(f"liteq: {shown(message)}", file=sys.stderr)  # noqa: T201 (stderr, as warnings do)
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = showwarning
