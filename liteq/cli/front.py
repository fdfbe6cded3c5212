"""What all commands share: global options in any position, the app they name, output."""

from __future__ import annotations

import enum
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click
from click.core import ParameterSource

from liteq import __version__ as VERSION  # noqa: N812 (a constant)
from liteq.cli.output import print_json, print_table, shown
from liteq.cli.streams import say
from liteq.exceptions import LiteqWarning

if TYPE_CHECKING:
    from types import FrameType

    from liteq.app import Liteq
    from liteq.discovery import Found

__all__ = [
    "EXIT_CODES",
    "VERSION",
    "Command",
    "Exit",
    "Failure",
    "Group",
    "Seconds",
    "Session",
    "as_json",
    "ask",
    "command",
    "completing",
    "names",
    "print_json",
    "print_table",
]

F = TypeVar("F", bound=Callable[..., Any])

_LONGEST: Final = 1e9  # seconds, 31 years: beyond three hundred, clocks and sleeps overflow


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


class Failure(click.ClickException):
    """End the command with a message on stderr and an exit code."""

    def __init__(
        self, message: str, exit_code: Exit = Exit.FAILED, *, plain: bool = False
    ) -> None:
        super().__init__(message)
        self.plain = plain  # without liteq's name before it: the user's own traceback
        self.exit_code = exit_code  # type: ignore[misc]  # click itself does so

    def show(self, file: Any = None) -> None:
        prefix = "" if self.plain else "liteq: "
        say(prefix + shown(self.format_message(), lines=True))


class Session:
    """One run of the command: what the global options said, and the app they name."""

    def __init__(self, app: Liteq | None = None) -> None:
        self.options: dict[str, Any] = {}
        self._given = app
        self._found: Found | None = None

    @classmethod
    def current(cls) -> Session:
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

    def enter(self, ctx: click.Context) -> None:
        """Do what the global options ask for before the command begins."""
        ctx.color = self.colour
        _show_warnings_in_one_line()
        if workdir := self.options.get("workdir"):
            try:
                os.chdir(workdir)
            except OSError as exc:
                raise click.UsageError(f"--workdir {workdir}: {exc.strerror}") from exc

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


def _global_options() -> list[click.Option]:
    """Return new options, as each command gets its own: `-A` may stand before or after it."""

    def option(*names: str, **attributes: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=_remember, **attributes)

    return [
        option(
            "-A",
            "--app",
            metavar="APP",
            help="module, module:attribute, module:factory() or path/file.py, else $LITEQ_APP.",
        ),
        option(
            "-b", "--broker", metavar="URL", help="The store to use instead of the app's own."
        ),
        option("--result-backend", metavar="URL", hidden=True),
        option("--config", metavar="MODULE", help="A module with settings for the app."),
        option("--workdir", metavar="DIR", help="Change to this directory first."),
        option("-C", "--no-color", is_flag=True, help="No colours, even on a terminal."),
        option("-q", "--quiet", is_flag=True, help="No banner and no notes."),
        option("-v", "--verbose", is_flag=True, help="Show the traceback of an error."),
        option("--loader", metavar="NAME", hidden=True),
        option("--skip-checks", is_flag=True, hidden=True),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version and exit.",
        ),
    ]


def _remember(ctx: click.Context, option: click.Parameter, value: Any) -> None:
    """Keep a global option for the session. The one nearest to the command wins."""
    assert option.name is not None
    if ctx.get_parameter_source(option.name) is not ParameterSource.DEFAULT:
        ctx.find_root().ensure_object(Session).options[option.name] = value


def _show_version(ctx: click.Context, option: click.Parameter, value: Any) -> None:
    if value:
        click.echo(f"liteq {VERSION}")
        ctx.exit()


class Command(click.Command):
    """A command that takes the global options as well as its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own = list(self.params)
        self.params += _global_options()

    def invoke(self, ctx: click.Context) -> Any:
        Session.current().enter(ctx)
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _format_options(self, self.own, ctx, formatter)


# Celery's commands that have no namesake here, and what there is for what they do.
_OF_CELERY: Final = {
    "amqp": "liteq queues, liteq purge",
    "flower": "liteq status --watch, liteq ls, liteq metrics",
    "graph": "liteq workflow show, liteq status",
    "list": "liteq queues",
    "logtool": "liteq ls -s failed, and liteq worker --log-format json",
    "multi": "liteq systemd, which writes units for a service manager",
    "upgrade": "nothing, for old names of settings are read; liteq config shows the new ones",
}


class Group(click.Group):
    """A group whose commands take the global options, and that suggests the right word."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own = list(self.params)
        self.params += _global_options()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with the whole first line of their help."""
        rows = [
            (name, (found.help or "").splitlines()[0])
            for name in self.list_commands(ctx)
            if (found := self.get_command(ctx, name)) is not None and not found.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        _format_options(self, self.own, ctx, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], self.list_commands(ctx))
            advice = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            if args[0] == "help":
                advice = f" {ctx.command_path} --help shows what there is."
            if ctx.parent is None and args[0] in _OF_CELERY:
                advice = f" In its place: {_OF_CELERY[args[0]]}."
            ctx.fail(f"there is no command {args[0]!r}.{advice}")
        return super().resolve_command(ctx, args)


def _format_options(
    made: click.Command,
    own: list[click.Parameter],
    ctx: click.Context,
    formatter: click.HelpFormatter,
) -> None:
    """Write a command's own options before the global ones."""
    rest = "Global options, also before the command" if ctx.parent else "Options"
    for title, params in (
        ("Options", [param for param in own if isinstance(param, click.Option)]),
        (rest, made.get_params(ctx)[len(own) :]),
    ):
        rows = [row for param in params if (row := param.get_help_record(ctx))]
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def command(**attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a command with the global options."""
    return click.command(cls=Command, **attributes)


def names(text: str) -> list[str]:
    """Read names with commas between them, as the type of an option: `-Q high,default`."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise click.BadParameter(f"{text!r} has an empty name in it")
    return found


class Seconds(click.FloatRange):
    """The type of an option that is a span of time. No bound keeps nan out, and infinity is
    no time that a clock can wait for."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds: float = super().convert(value, param, ctx)
        if not seconds <= _LONGEST:  # nan is not, either
            self.fail(f"{value!r} is no number of seconds up to {_LONGEST:g}", param, ctx)
        return seconds


def as_json(function: F) -> F:
    """Add `--json` to a command that reads."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document.")(function)


def completing(what: str) -> Callable[..., Any]:
    """Return what completes an argument in a shell: "ids", "limits", "queues" or
    "tasks"."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> Any:
        from liteq.cli import completion  # late: a shell's TAB alone needs it

        return getattr(completion, f"complete_{what}")(ctx, param, incomplete)

    return complete


def ask(question: str, *, yes: bool) -> None:
    """Ask on the terminal, unless that was answered by an option. No ends the command
    with exit code 1, and so does nobody to ask."""
    if yes:
        return
    try:
        agreed = click.confirm(shown(question), err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise  # a ^C
        say()
        raise Failure("nothing was done: nobody is there to ask; --yes answers it") from None
    if not agreed:
        raise Failure("nothing was done")


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
