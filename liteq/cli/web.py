"""`liteq web`: the pages for operators."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from typing import Any, Final

import click

from liteq.cli.front import command, log_options
from liteq.cli.logs import is_apart, log_as_asked
from liteq.cli.session import Session

__all__ = ["web"]

_NAMES: Final = ("localhost", "127.0.0.1", "::1")


@command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on; other than this machine only with --auth.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=5555,
    show_default=True,
    metavar="N",
    help="0: any free port.",
)
@click.option(
    "--auth",
    envvar="LITEQ_WEB_AUTH",
    metavar="USER:PASSWORD",
    help="Who may log in. Better set LITEQ_WEB_AUTH: others can see a command's arguments.",
)
@click.option("--read-only", is_flag=True, help="Allow no changes.")
@log_options("info shows each change and who made it.  [default: info]")
def web(host: str, port: int, auth: str | None, read_only: bool, **options: Any) -> None:
    """Serve web pages that show and control what is in the store.

    Needs the extra: pip install 'liteq-queue[web]'. The pages work with or without workers.
    To serve them in your own application, see liteq.web.asgi_app(). The command needs the
    app, with -b too: the tasks say which of their arguments are secret. Each change is
    logged to stderr with the name of the user. Without --auth, every user of this machine
    can make changes: see --read-only.

    \b
    liteq web                                    at http://127.0.0.1:5555
    liteq -b sqlite://shop.liteq web --read-only
    LITEQ_WEB_AUTH=ada:secret liteq web --host 0.0.0.0
    """
    from liteq.loggers import get_logger
    from liteq.web import asgi_app

    session = Session.current()
    if auth is None and not _is_here(host):
        raise click.UsageError(
            f"--host {host}: others could reach that, so say whom to let in: "
            "--auth user:password, or LITEQ_WEB_AUTH"
        )
    app = session.app
    log_as_asked(session, app, options)
    tell = session.note if is_apart(app) else get_logger("liteq.web").info
    session.import_tasks()  # each says itself which of its arguments are secret
    hosts = None if auth is not None else {*_NAMES, host}
    pages = asgi_app(app, auth=auth, read_only=read_only, hosts=hosts)
    app.queues()  # a store that cannot be read is said now
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as exc:
        raise click.UsageError(
            f"cannot listen at {host}:{port}: {exc.strerror or exc}; choose another --port"
        ) from exc
    from liteq.web.serving import serve

    shown = f"[{host}]" if ":" in host else host
    with listener:
        tell(f"http://{shown}:{listener.getsockname()[1]} · Ctrl-C to stop")
        with suppress(KeyboardInterrupt):
            serve(pages, listener)
    tell("stopped")


def _is_here(host: str) -> bool:
    """Tell whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
