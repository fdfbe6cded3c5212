"""`liteq metrics`: the store's figures for Prometheus."""

from __future__ import annotations

import selectors
import sys
import time
from typing import Any, Final

import click

from liteq.cli.front import command, log_options
from liteq.cli.logs import is_apart, log_as_asked
from liteq.cli.output import shown
from liteq.cli.session import Session

__all__ = ["metrics"]

_ROUND: Final = 1.0  # seconds until the loop looks for a Ctrl-C where no event comes


@command()
@click.option(
    "--port",
    metavar="[HOST:]PORT",
    help="Serve them at this address until stopped.  [default: print once]",
)
@log_options("warning shows when the store cannot be read.  [default: info]")
def metrics(port: str | None, **options: Any) -> None:
    """Print the store's metrics for Prometheus, or serve them.

    Needs the extra: pip install 'liteq-queue[prometheus]'. Each worker serves the metrics
    of the tasks that it ran: liteq worker --metrics-port.

    \b
    liteq metrics                       print once
    liteq metrics --port 9464           at http://127.0.0.1:9464/metrics
    """
    from liteq.loggers import get_logger
    from liteq.metrics import StoreCollector, exposition
    from liteq.workers.scraping import Endpoint, address_of

    session = Session.current()
    app = session.app
    log_as_asked(session, app, options)
    tell = session.note if is_apart(app) else get_logger("liteq.metrics").info
    collector = StoreCollector(app)
    if port is None:
        text = exposition(collector).decode()
        click.echo(shown(text, lines=True) if sys.stdout.isatty() else text, nl=False)
        return
    exposition(collector)  # what is missing or cannot be read is said now
    with selectors.DefaultSelector() as selector:
        endpoint = Endpoint(selector, address_of(port), lambda: exposition(collector))
        tell(f"metrics at {endpoint.url} · Ctrl-C to stop")
        try:
            while True:
                for key, mask in selector.select(_ROUND):
                    key.data(mask)
                endpoint.wake(time.monotonic())
        except KeyboardInterrupt:
            tell("stopped")
        finally:
            endpoint.close()
