"""`liteq completion`, and what a shell is told: commands, options, queues, tasks, ids.

Nothing of the app is imported at a press of TAB: queues, names of tasks and ids come from
the store that `health` would ask, the latest that it has. Where no store is found, or it is
slow to answer, there is nothing to complete, and no error either.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from liteq.cli.front import command
from liteq.cli.output import shown
from liteq.cli.session import Session

if TYPE_CHECKING:
    from liteq.brokers.base import Broker

__all__ = [
    "complete_ids",
    "complete_limits",
    "complete_queues",
    "complete_tasks",
    "completion",
]

SHELLS: Final = ("bash", "zsh", "fish")
# What click's own scripts get wrong. In bash: words are split at colons, too, and only what is
# behind the last one is replaced by what is chosen; a candidate's spaces and stars would be the
# shell's. In fish: a candidate and its help would end at their first comma.
_MENDED: Final = {
    "bash": (
        (
            "    local response\n",
            r"""
    local response words=() rest=$COMP_LINE word before i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $i -gt 0 && $rest != [[:space:]]* ]]; then
            words[-1]+=$word
        else
            rest=${rest#"${rest%%[![:space:]]*}"}
            words+=("$word")
        fi
        rest=${rest#"$word"}
    done
    word=${words[-1]}
    before=${word%"${word##*[:=]}"}
    [[ $word == -*=* ]] && before=${before#*=}
    [[ $word == "${COMP_WORDS[COMP_CWORD]}" ]] && before=
""",
        ),
        (
            'COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD',
            'COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1))',
        ),
        (
            "            COMPREPLY+=($value)\n",
            r"""            value=${value#"$before"}
            if [[ $word != [\"\']* ]]; then
                printf -v value %q "$value"
                value=${value//\\,/,}
            fi
            COMPREPLY+=("$value")
""",
        ),
    ),
    "zsh": (),
    "fish": (('string split ","', 'string split -m1 ","'),),
}
_LOOKED_AT: Final = 500
_ASKED: Final = {"socket_timeout": 0.5, "socket_connect_timeout": 0.5, "busy_timeout": 0.2}


@command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    eval "$(liteq completion bash)"               in ~/.bashrc
    eval "$(liteq completion zsh)"                in ~/.zshrc
    liteq completion fish > ~/.config/fish/completions/liteq.fish
    """
    from click.shell_completion import get_completion_class

    from liteq.cli.root import cli

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(cli, {}, "liteq", "_LITEQ_COMPLETE").source()
    for part, mended in _MENDED[shell]:
        script = script.replace(part, mended)
    click.echo(script)


def complete_ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Complete the id of a task that the store has."""

    def ids(broker: Broker) -> list[CompletionItem]:
        if incomplete:
            return [CompletionItem(id) for id in broker.complete(incomplete, 20)]
        from liteq.brokers.searching import Search

        return [
            CompletionItem(one.id, help=shown(f"{one.task} {one.state}"))
            for one in islice(broker.find(Search()), 20)
        ]

    return _from_store(ctx, ids)


def complete_tasks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Complete the name of a task, of those that were sent lately."""

    def names(broker: Broker) -> list[CompletionItem]:
        from liteq.brokers.searching import Search

        found = {one.task for one in islice(broker.find(Search()), _LOOKED_AT)}
        return [CompletionItem(name) for name in sorted(found) if name.startswith(incomplete)]

    return _from_store(ctx, names)


def complete_limits(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Complete the name of a limit that workers have declared."""

    def names(broker: Broker) -> list[CompletionItem]:
        found = [known.name for known in broker.limits()]
        return [CompletionItem(name) for name in found if name.startswith(incomplete)]

    return _from_store(ctx, names)


def complete_queues(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Complete the name of a queue that has work or a worker; of several, the last."""
    before, comma, last = incomplete.rpartition(",")

    def names(broker: Broker) -> list[CompletionItem]:
        found = {*broker.counts(), *(name for w in broker.workers() for name in w.queues)}
        return [
            CompletionItem(before + comma + name)
            for name in sorted(found)
            if name.startswith(last)
        ]

    return _from_store(ctx, names)


def _from_store(
    ctx: click.Context, look: Callable[[Broker], list[CompletionItem]]
) -> list[CompletionItem]:
    from liteq.brokers import connect
    from liteq.exceptions import LiteqError
    from liteq.health import store_url

    given = ctx.find_root().ensure_object(Session).options.get("broker")
    try:
        url, options = store_url(given)
        broker = connect(url, {**options, **_ASKED})
        try:
            # Not what would steer the terminal of who asks, or end a line of the answer.
            return [one for one in look(broker) if one.value.isprintable()]
        finally:
            broker.close()
    except LiteqError:
        return []  # no place for an error: the line is still being written
