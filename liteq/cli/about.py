"""`liteq config`, `report`, `shell` and `version`: what this liteq and this app are."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import click

from liteq.cli.exits import Exit, Failure
from liteq.cli.front import VERSION, as_json, command
from liteq.cli.output import print_json, print_table
from liteq.cli.session import Session
from liteq.cli.streams import say

__all__ = ["config", "report", "shell", "version"]

LIBRARIES = ("apsw", "click", "multiprocess", "redis")


@command()
def version() -> None:
    """Print the version."""
    click.echo(f"liteq {VERSION}")


@command()
@click.argument("names", nargs=-1, metavar="[SETTING]...")
@as_json
def config(names: tuple[str, ...], as_json: bool) -> None:
    """Print every setting with its value and its source.

    Sources, the strongest first: the command line, the environment (LITEQ_...), the code,
    config_from_object() or config_from_envvar(), [tool.liteq] in pyproject.toml or a
    liteq.toml, add_defaults(), the default. Passwords are masked.

    \b
    liteq config
    liteq config broker_url result_expires
    """
    from liteq.redaction import mask_url

    app = Session.current().app
    conf = app.conf
    table = conf.table(with_defaults=True, censored=True)
    if not table["broker_url"]:  # the default is made when it is needed
        table["broker_url"] = mask_url(app.broker_url)
    for name in names:
        if name not in table:
            raise Failure(_no_setting(name, table), Exit.NOT_FOUND)
    rows = [
        {"setting": name, "value": table[name], "source": conf.source_of(name)}
        for name in (names or sorted(table))
    ]
    if as_json:
        print_json(rows)
    else:
        shown = [{**row, "value": repr(row["value"])} for row in rows]
        print_table(("setting", "source", "value"), shown)


@command()
@as_json
def report(as_json: bool) -> None:
    """Print the information for a bug report.

    It consists of the versions, the platform, the app, and the settings that differ from
    the default.
    """
    from liteq.cli.working import store_of

    session = Session.current()
    found = session.find()
    app = found.app
    session.import_tasks()
    facts: dict[str, Any] = {
        "liteq": VERSION,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "sqlite": _sqlite_version(),
        **{name: _installed(name) for name in LIBRARIES},
        "app": found.reference,
        "store": store_of(app),
        "tasks": len(app.tasks.own()),
    }
    settings = app.conf.table(with_defaults=False, censored=True)
    if as_json:
        print_json({**facts, "settings": settings})
        return
    for name, value in facts.items():
        click.echo(f"{name:<13} {value}")
    click.echo("\nsettings (those that differ from their default)")
    for name, value in sorted(settings.items()):
        click.echo(f"  {name} = {value!r}")


@command()
@click.option("-I", "--ipython", is_flag=True, help="Use IPython, or fail.")
@click.option("--python", "plain", is_flag=True, help="Use the plain Python prompt.")
def shell(ipython: bool, plain: bool) -> None:
    """Open a Python prompt with the app and its tasks.

    The app is `app`, and each task has its function's name. IPython is used if it is
    installed.
    """
    session = Session.current()
    found = session.find()
    app = found.app
    session.import_tasks()
    names: dict[str, Any] = {
        name.rpartition(".")[2]: task for name, task in app.tasks.own().items()
    }
    names["app"] = app
    banner = f"liteq {VERSION} · {found.reference}\nnames: {', '.join(sorted(names))}"
    if not plain:
        try:
            from IPython import start_ipython  # type: ignore[import-not-found]  # optional
        except ImportError as exc:
            if ipython:
                raise Failure("IPython is not installed") from exc
        else:
            say(banner)
            start_ipython(argv=[], user_ns=names)
            return
    with suppress(ImportError):
        import readline  # noqa: F401 (history and line editing for the prompt)
    import code

    code.interact(banner=banner, local=names, exitmsg="")


def _no_setting(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name.lower(), known)
    near = near or [each for each in known if name.lower() in each][:5]
    advice = f"did you mean {' or '.join(near)}?" if near else "`liteq config` lists them"
    return f"there is no setting {name!r}; {advice}"


def _installed(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # 40 ms

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _sqlite_version() -> str:
    import apsw

    return apsw.sqlite_lib_version()
