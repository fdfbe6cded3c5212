"""What the commands that ask workers share: whom, how long, and how answers are shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from liteq.cli.exits import Exit, Failure
from liteq.cli.front import Seconds, names
from liteq.cli.output import print_json, shown
from liteq.cli.session import Session
from liteq.cli.streams import say

if TYPE_CHECKING:
    from liteq.commands import ControlCommand

__all__ = ["ask", "asking_options", "command_named", "list_commands", "print_answers"]

F = TypeVar("F", bound=Callable[..., Any])


def asking_options(function: F) -> F:
    """Add `-d`, `-t` and `--json`."""
    for option in (
        click.option("-j", "--json", "as_json", is_flag=True, help="One JSON document."),
        click.option(
            "-t",
            "--timeout",
            type=Seconds(min=0, min_open=True),
            default=1.0,
            show_default=True,
            metavar="SEC",
            help="How long to wait for answers.",
        ),
        click.option(
            "-d",
            "--destination",
            type=names,
            metavar="A,B",
            help="Ask these workers only.",
        ),
    ):
        function = option(function)
    return function


def command_named(name: str, kind: str) -> ControlCommand:
    """Return a command that workers know, of this kind."""
    known = _commands(kind)
    if name not in known:
        from difflib import get_close_matches  # late: for who has misspelt it

        near = get_close_matches(name, known, n=1)
        advice = f" Did you mean {near[0]!r}?" if near else " See --list."
        raise click.UsageError(f"workers know no {kind} command {name!r}.{advice}")
    return known[name]


def _commands(kind: str) -> dict[str, ControlCommand]:
    from importlib import import_module

    from liteq.commands import Panel

    session = Session.current()
    session.import_tasks()  # where the user's own commands are
    import_module("liteq.workers.steering")  # and where ours are
    return {name: one for name, one in Panel.meta.items() if one.kind == kind}


def list_commands(
    kind: str, more: Mapping[str, tuple[str, str]] | None = None, *, as_json: bool = False
) -> None:
    """Print the commands of a kind, and `more` (name: signature, help)."""
    rows = {
        name: (one.signature or "", one.help)
        for name, one in _commands(kind).items()
        if not name.startswith("dump_")
    } | dict(more or {})
    if as_json:
        print_json(
            [
                {"command": name, "arguments": signature, "help": help}
                for name, (signature, help) in sorted(rows.items())
            ]
        )
        return
    width = max(len(f"{name} {signature}") for name, (signature, _) in rows.items())
    for name, (signature, help) in sorted(rows.items()):
        click.echo(f"{f'{name} {signature}'.rstrip():<{width}}  {help}")


def arguments_of(command: ControlCommand, words: tuple[str, ...]) -> dict[str, Any]:
    """Return the words of a command line as the arguments of a command."""
    if command.variadic is not None:
        return {command.variadic: list(words)} if words else {}
    if len(words) > (most := len(command.args)):
        raise click.UsageError(
            f"{command.name} takes at most {most} argument{'' if most == 1 else 's'}: "
            f"{command.signature or 'none'}"
        )
    found = {}
    for (name, kind), word in zip(command.args, words, strict=False):
        try:
            found[name] = word.lower() in ("1", "true", "yes") if kind is bool else kind(word)
        except ValueError as exc:
            what = "whole number" if kind is int else "number" if kind is float else "value"
            raise click.UsageError(f"{command.name}: {name}: {word!r} is not a {what}") from exc
    return found


def ask(
    command: ControlCommand,
    words: tuple[str, ...],
    *,
    destination: Iterable[str] | None,
    timeout: float,
    as_json: bool,
) -> int:
    """Send a command, print what was said, and return the exit code: 69 if nobody did."""
    replies = Session.current().app.control.broadcast(
        command.name,
        arguments_of(command, words),
        None if destination is None else list(destination),
        reply=True,
        timeout=timeout,
    )
    answers = {name: said for reply in replies for name, said in reply.items()}
    return print_answers(answers, replies.silent, as_json=as_json)


def print_answers(
    answers: Mapping[str, Any], silent: Mapping[str, str], *, as_json: bool
) -> int:
    """Print what workers said, and name on stderr those that did not answer."""
    if as_json:
        print_json({**{name: {"error": why} for name, why in silent.items()}, **answers})
    else:
        for name, said in sorted(answers.items()):
            failed = isinstance(said, dict) and "error" in said
            word = click.style("ERROR", fg="red") if failed else click.style("OK", fg="green")
            click.echo(f"{shown(name)}: {word}")
            click.echo(_indented(said))
    for name, why in sorted(silent.items()):
        say(f"liteq: {shown(name)}: {shown(why)}")
    if not answers:
        raise Failure("no worker has answered", Exit.UNAVAILABLE)
    errors = [said for said in answers.values() if isinstance(said, dict) and "error" in said]
    return Exit.FAILED if len(errors) == len(answers) else Exit.OK


def _indented(said: Any) -> str:
    if isinstance(said, dict) and len(said) == 1:
        [(key, value)] = said.items()
        if key in ("ok", "error") and isinstance(value, str):
            return "\n".join(f"    {shown(line)}" for line in value.splitlines())
    if isinstance(said, list) and all(isinstance(one, str) for one in said):
        return "\n".join(f"    {shown(one)}" for one in said) or "    (none)"
    if not said:
        return "    (none)"
    text = json.dumps(said, indent=2, ensure_ascii=False, default=repr)
    return "\n".join(f"    {shown(line)}" for line in text.splitlines())
