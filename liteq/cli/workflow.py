"""`liteq workflow`: look at workflows, cancel them, run again what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from liteq.cli.exits import Exit, Failure
from liteq.cli.filters import told_of
from liteq.cli.front import Group, as_json, completing
from liteq.cli.output import STATE_COLOURS, moment, print_json, print_table, shown
from liteq.cli.session import Session

if TYPE_CHECKING:
    from liteq.brokers.base import Broker
    from liteq.brokers.values import Node, WorkflowInfo
    from liteq.drawing import Line

__all__ = ["workflow"]

_WIDEST: Final = 60  # characters of a name with its branches, before columns give way


@click.group(cls=Group)
def workflow() -> None:
    """Show workflows, cancel them, run failed tasks again.

    A workflow is anything that was sent as one: a chain, a group, a chord, a graph. Its id
    is the id of its result; you can give the id of any of its tasks.
    """


@workflow.command("list")
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, metavar="N"
)
@as_json
def workflow_list(limit: int, as_json: bool) -> None:
    """List workflows, the newest first."""
    app = Session.current().app
    found = app.broker.workflows(limit)
    if as_json:
        print_json([_row(known) for known in found])
        return
    rows = [
        {
            **_row(known),
            "done": f"{known.done}/{known.total}",
            "created": moment(known.created_at, app.timezone),
        }
        for known in found
    ]
    columns = ("id", "name", "state", "done", "failed", "created")
    print_table(columns, rows, {"state": STATE_COLOURS.get})
    if not rows:
        Session.current().note("there is no workflow")


@workflow.command("show")
@click.argument("id", shell_complete=completing("ids"))
@click.option("--all", "everything", is_flag=True, help="Draw every branch of a large group.")
@as_json
def workflow_show(id: str, everything: bool, as_json: bool) -> None:
    """Draw a workflow as a tree, with the state of every task.

    An arrow leads to the next step; branches run in parallel.
    """
    from liteq.drawing import BRANCHES, draw

    app = Session.current().app
    made = app.workflow(id)
    known = made.info
    nodes, edges = made.graph()
    if as_json:
        print_json(
            {
                **_row(known),
                "nodes": [_node(node) for node in nodes],
                "edges": [edge._asdict() for edge in edges],
            }
        )
        return
    progress = made.progress
    failed = f", {progress.failed:,} failed" if progress.failed else ""
    state = click.style(known.state, fg=STATE_COLOURS.get(known.state), bold=True)
    title = f"{shown(known.name or 'workflow')} {shown(known.id)}  {state}"
    click.echo(f"{title}  {progress.done:,} of {progress.total:,} done{failed}")
    lines = draw(nodes, edges, branches=None if everything else BRANCHES)
    _print_tree(app.broker, lines)


@workflow.command("cancel")
@click.argument("id", shell_complete=completing("ids"))
@click.option("--terminate", is_flag=True, help="Also end running tasks.")
def workflow_cancel(id: str, terminate: bool) -> None:
    """Revoke the unfinished tasks of a workflow.

    Running tasks may finish, unless you give --terminate. Prints how many were revoked, and
    how many are still running.
    """
    answers = Session.current().app.workflow(id).cancel(terminate=terminate).values()
    revoked, running = (sum(a == word for a in answers) for word in ("revoked", "running"))
    ended = sum(answer == "signalled" for answer in answers)
    said = [f"{revoked} revoked"]
    said += [f"{ended} being ended"] if ended else []
    said += [f"{running} still running"] if running else []
    click.echo(", ".join(said))


@workflow.command("retry")
@click.argument("id", shell_complete=completing("ids"))
def workflow_retry(id: str) -> int:
    """Run the failed tasks of a workflow again, and then the tasks that wait for them.

    Prints the ids of those tasks. Successful tasks are not run again. Tasks that are
    skipped are named on stderr with the reason.
    """
    from liteq.operating import passed_over

    app = Session.current().app
    chosen = app.workflow(id)
    failed = {node.id for node in chosen.nodes if node.state == "failed"}
    again = chosen.retry_failed()
    for one in again:
        click.echo(shown(one))
    passed = passed_over(app.broker, failed.difference(again), failed=True)
    if not again and not passed:
        raise Failure(f"nothing in {id} has failed", Exit.NOT_FOUND)
    return told_of(passed, named=not again)


def _row(known: WorkflowInfo) -> dict[str, Any]:
    return {
        "id": known.id,
        "name": known.name,
        "state": known.state,
        "done": known.done,
        "total": known.total,
        "failed": known.failed,
        "created": moment(known.created_at),
    }


def _node(node: Node) -> dict[str, Any]:
    times = {"started_at": moment(node.started_at), "settled_at": moment(node.settled_at)}
    return {**node._asdict(), **times}


def _print_tree(broker: Broker, lines: list[Line]) -> None:
    from liteq.digest import failures

    errors = failures(broker, [line.node for line in lines if line.node is not None])
    texts = [
        line.prefix + shown(line.node.name if line.node else line.remark) for line in lines
    ]
    drawn = zip(texts, lines, strict=True)
    width = max((len(t) for t, line in drawn if line.node and len(t) <= _WIDEST), default=0)
    states = max((len(_state(line.node)) for line in lines if line.node), default=0)
    for text, line in zip(texts, lines, strict=True):
        node = line.node
        if node is None:
            click.echo(click.style(text, dim=True))
            continue
        word = _state(node)
        state = click.style(word, fg=STATE_COLOURS.get(node.state)) + " " * (states - len(word))
        took = _took(node)
        told = f"  {shown(errors[node.id])}" if node.id in errors else ""
        click.echo(f"{text:<{width}}  {state}  {took:>8}  {shown(node.id)}{told}".rstrip())


def _state(node: Node) -> str:
    return f"{node.state} upstream" if node.upstream else node.state


def _took(node: Node) -> str:
    if node.started_at is None or node.settled_at is None:
        return ""
    return f"{node.settled_at - node.started_at:,.2f} s"
