"""What all commands share: global options in any position, the app they name, output."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from liteq import __version__ as VERSION  # noqa: N812 (a constant)
from liteq.cli.exits import Failure
from liteq.cli.session import Session
from liteq.cli.streams import say
from liteq.wording import shown

__all__ = [
    "VERSION",
    "Command",
    "Group",
    "Seconds",
    "as_json",
    "ask",
    "command",
    "completing",
    "enter",
    "format_option",
    "level_option",
    "log_options",
    "logfile_option",
    "names",
]

F = TypeVar("F", bound=Callable[..., Any])

_LEVELS: Final = ("debug", "info", "warning", "error", "critical", "fatal")
_LONGEST: Final = 1e9  # seconds, 31 years: beyond three hundred, clocks and sleeps overflow


def enter(ctx: click.Context) -> Session:
    """Do what the global options ask for, before the command begins."""
    session = Session.current()
    ctx.color = session.colour
    session.enter()
    return session


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
        enter(ctx)
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
            self.fail(f"{value!r} is not a number of seconds up to {_LONGEST:g}", param, ctx)
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


def log_options(help: str) -> Callable[[F], F]:
    """Add the options that say how a command logs; `help` is that of the level."""

    def add(function: F) -> F:
        return level_option(help)(logfile_option(format_option(function)))

    return add
