"""`liteq metrics`: the store's figures for Prometheus."""

from __future__ import annotations

import selectors
from typing import Final

import click

from liteq.cli.front import Session, command

__all__ = ["metrics"]

_ROUND: Final = 1.0  # seconds until the loop looks for a Ctrl-C where no event comes


@command()
@click.option(
    "--port",
    metavar="[HOST:]PORT",
    help="Serve them there until stopped.  [default: print them once]",
)
def metrics(port: str | None) -> None:
    """Print figures of the store for Prometheus, or serve them.

    Needs the extra: pip install 'liteq-queue[prometheus]'. What a worker has run is told by
    the worker itself: liteq worker --metrics-port.

    \b
    liteq metrics                       print once
    liteq metrics --port 9464           at http://127.0.0.1:9464/metrics
    """
    from liteq.metrics import StoreCollector, exposition
    from liteq.scraping import Endpoint, address_of

    session = Session.current()
    collector = StoreCollector(session.app)
    if port is None:
        click.echo(exposition(collector).decode(), nl=False)
        return
    exposition(collector)  # what is missing or cannot be read is said now
    with selectors.DefaultSelector() as selector:
        endpoint = Endpoint(selector, address_of(port), lambda: exposition(collector))
        session.note(f"metrics at {endpoint.url} · Ctrl-C to stop")
        try:
            while True:
                for key, mask in selector.select(_ROUND):
                    key.data(mask)
        except KeyboardInterrupt:
            session.note("stopped")
        finally:
            endpoint.close()
