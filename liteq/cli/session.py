"""One run of the command: what its global options said, the app they name, what it notes."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from liteq.cli.exits import Exit, Failure
from liteq.cli.streams import say
from liteq.exceptions import LiteqWarning
from liteq.wording import shown

if TYPE_CHECKING:
    from types import FrameType

    from liteq.app import Liteq
    from liteq.discovery import Found

__all__ = ["Session"]


class Session:
    """One run of the command: what the global options said, and the app they name."""

    def __init__(self, app: Liteq | None = None) -> None:
        self.options: dict[str, Any] = {}
        self.abandons_threads = False  # at its end: who waits for one may wait for ever
        self._given = app
        self._found: Found | None = None

    @classmethod
    def current(cls) -> Session:
        from click import get_current_context  # late: a worker goes on without it

        session: Session = get_current_context().find_root().ensure_object(cls)
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
            self._found.app.set_current()
            self._configure(self._found.app)
        return self._found

    def import_tasks(self, include: Iterable[str] = ()) -> None:
        """Import all modules of tasks, as a worker needs them. Ends the command with exit
        code 7 when that fails."""
        from liteq.discovery import import_tasks

        with _trouble_with_app():
            import_tasks(self.app, include)
        self.app.set_current()  # whatever other apps these modules make

    def heed_term(self, leave: Callable[[], None] | None = None) -> None:
        """End when told to, until the command has handlers of its own; `leave` first.

        A process does so by itself, but leaves nothing in order; and not at all as process 1:
        the kernel keeps from it what it has no handler for, and in a container an app that
        takes long to import would go on.
        """
        if self.owns_process and (leave is not None or os.getpid() == 1):
            signal.signal(signal.SIGTERM, partial(_end, leave))

    def work(self, options: Mapping[str, Any]) -> int:
        """Run a worker with these options of `liteq worker`, and return the exit code."""
        from liteq.cli.working import work

        return work(self, options)

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
                raise Failure(f"--workdir {workdir}: {exc.strerror}", Exit.USAGE) from exc

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
        """Say that a store named on the command line is not there: it may be misspelt. Not all
        commands make it, and none makes one that its URL's options refuse."""
        from liteq.brokers import connect, scheme_of, sqlite_target
        from liteq.brokers.files import is_there
        from liteq.exceptions import ImproperlyConfigured, StoreForbidden

        with suppress(ImproperlyConfigured, StoreForbidden):  # it is said when it is opened
            if scheme_of(url) == "sqlite":
                folder, _ = sqlite_target(url)
                if folder is not None and not is_there(folder):
                    with warnings.catch_warnings(action="ignore"):  # they come with its use
                        connect(url)  # which opens nothing
                    self.note(f"there is no store in {folder} yet: its first use makes one")


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
            say(f"liteq: {shown(message)}")
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = showwarning


def _end(leave: Callable[[], None] | None, number: int, _frame: FrameType | None) -> NoReturn:
    """End at a signal as without a handler: what is being imported may catch an exception."""
    if leave is not None:
        leave()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(0)  # process 1, from which the kernel keeps that
