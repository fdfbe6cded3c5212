"""`liteq db`: look after the store's file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from liteq.cli.exits import Exit, Failure
from liteq.cli.filters import yes_option
from liteq.cli.front import Group, as_json, ask
from liteq.cli.output import print_facts, print_json
from liteq.cli.session import Session

if TYPE_CHECKING:
    from liteq.brokers.base import Broker
    from liteq.brokers.keeping import Keeper

__all__ = ["db"]

# What does on Redis what the command does to a file.
_ON_REDIS = {
    "backup": "the server keeps it: BGSAVE writes a snapshot (dump.rdb) to copy; or, with all "
    "workers stopped, `liteq migrate --from URL --to sqlite://backup.liteq` copies it",
    "restore": "stop the server, put its dump.rdb or appendonlydir back, start it; or "
    "`liteq migrate --from sqlite://backup.liteq --to URL` fills an empty one",
    "vacuum": "it frees memory by itself; `MEMORY PURGE` on the server gives pages back",
}


@click.group(cls=Group)
def db() -> None:
    """Manage the store: schema, integrity, backups, size.

    The store is the app's, or with -b URL any other; then no app is imported.

    \b
    liteq db backup /backup/shop.db            while workers go on
    liteq db check -b sqlite://shop.liteq
    """


@db.command("migrate")
@as_json
def db_migrate(as_json: bool) -> None:
    """Upgrade the store to the schema of this version of liteq.

    Every process does this by itself when it opens a store; with this command you choose
    the time. Processes of the previous version go on working. It also checks that the store
    is readable.
    """
    broker = _broker()
    if (keeper := broker.keeper()) is not None:
        before, after = keeper.migrate()
    else:
        from liteq.brokers.redis_link import KEYS_VERSION

        broker.check()
        before = after = KEYS_VERSION
    if as_json:
        print_json({"before": before, "after": after})
    elif before is None:
        click.echo(f"made a new store, schema version {after}")
    elif before == after:
        click.echo(f"schema version {after}: nothing to do")
    else:
        click.echo(f"schema version {before} is now {after}")


@db.command("check")
@click.option("--full", is_flag=True, help="Compare the indexes with the tables too.")
@as_json
def db_check(full: bool, as_json: bool) -> int:
    """Check the integrity of the store. The exit code is 1 if it is damaged.

    Workers can keep running. On Redis, check that the server answers, and print which
    failures its settings survive.
    """
    broker = _broker()
    if (keeper := broker.keeper()) is not None:
        if keeper.version() is None:
            raise Failure(f"there is no store at {keeper.path}", Exit.NOT_FOUND)
        found = keeper.check(full=full)
    else:
        broker.check()
        found = []
        Session.current().note(broker.persistence())
    if as_json:
        print_json({"ok": not found, "problems": found})
    else:
        click.echo("\n".join(found) or "ok")
    if found:
        raise Failure("the store is damaged: stop all workers and restore a backup")
    return Exit.OK


@db.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
@as_json
def db_backup(file: Path, force: bool, as_json: bool) -> None:
    """Copy the store to FILE while workers run.

    The copy is a consistent snapshot. It is checked, and only you can read it. Prints its
    size.
    """
    keeper = _needs_file("backup")
    if keeper.version() is None:
        raise Failure(f"there is no store at {keeper.path}", Exit.NOT_FOUND)
    size = keeper.backup(file, force=force)
    if as_json:
        print_json({"file": str(file), "bytes": size})
    else:
        click.echo(f"{file}: {_size(size)}")


@db.command("restore")
@click.argument("file", type=click.Path(path_type=Path))
@yes_option
def db_restore(file: Path, yes: bool) -> None:
    """Restore the store from the backup FILE. Stop all workers first.

    The present store is kept beside it. Tasks that were running at the time of the backup,
    or ended after it, run again.
    """
    keeper = _needs_file("restore")
    from liteq.brokers.keeping import workers_alive

    if not workers_alive(keeper.folder):
        ask(f"Replace what {keeper.path} holds with {file}?", yes=yes)
    aside = keeper.restore(file)
    again = _broker().reclaim()
    click.echo(f"restored {keeper.path}; running at the backup, queued again: {again}")
    if aside is not None:
        Session.current().note(f"what it held is in {aside}")


@db.command("vacuum")
@click.option("--full", is_flag=True, help="Rewrite the whole file. Stop all workers first.")
@as_json
def db_vacuum(full: bool, as_json: bool) -> None:
    """Return free space to the disk while workers run.

    Workers also do this themselves, a little at a time.
    """
    before, after = _needs_file("vacuum").vacuum(full=full)
    if as_json:
        print_json({"before": before, "after": after})
    else:
        click.echo(f"{_size(before)} before, {_size(after)} now")


@db.command("stats")
@as_json
def db_stats(as_json: bool) -> None:
    """Print the sizes of the store and the number of messages in each state."""
    broker = _broker()
    if (keeper := broker.keeper()) is not None and keeper.version() is None:
        raise Failure(f"there is no store at {keeper.path}", Exit.NOT_FOUND)
    figures = broker.facts()
    if as_json:
        print_json(figures)
        return
    for name in ("database", "free", "wal", "memory"):
        if name in figures:
            figures[name] = _size(figures[name])
    states = figures.pop("states", {})
    print_facts({name: f"{v:,}" if type(v) is int else v for name, v in figures.items()})
    print_facts({state: f"{number:,}" for state, number in states.items()}, indent="  ")


def _broker() -> Broker:
    """Return the store of -b, without importing an app, or that of the app."""
    session = Session.current()
    url = session.options.get("broker")
    if url and not session.options.get("app") and session.owns_process:
        from liteq.brokers import connect

        return connect(url)
    return session.app.broker


def _needs_file(word: str) -> Keeper:
    broker = _broker()
    if (keeper := broker.keeper()) is None:
        raise Failure(f"{broker.place} is on a server: {_ON_REDIS[word]}", Exit.USAGE)
    return keeper


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
