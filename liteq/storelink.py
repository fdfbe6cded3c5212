"""What stands where Celery has a connection to its broker: a way to ask whether the store is
there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from liteq.exceptions import BrokerUnavailable
from liteq.redaction import mask_url

if TYPE_CHECKING:
    from typing import Self

    from liteq.brokers.base import Broker

__all__ = ["StoreLink"]


class StoreLink:
    """What `app.connection()` returns: a context, and what health checks ask of it.

    It holds nothing open: the store's own connections belong to the app.
    """

    def __init__(self, broker: Broker, url: str) -> None:
        self.broker = broker
        self._url = url

    def ensure_connection(self, *args: Any, **kwargs: Any) -> Self:
        """Read from the store. Raises `BrokerUnavailable` (Celery's `OperationalError`) if that
        cannot be done now. Celery's arguments are accepted: the store tries again by itself."""
        self.broker.get(["liteq.storelink"])
        return self

    connect = ensure_connection

    @property
    def connected(self) -> bool:
        """Whether the store can be read now."""
        try:
            self.ensure_connection()
        except BrokerUnavailable:
            return False
        return True

    def as_uri(self, include_password: bool = False) -> str:  # noqa: FBT001, FBT002 (Celery's)
        """Return the store's URL, its password hidden."""
        return self._url if include_password else mask_url(self._url)

    def release(self) -> None:
        """Do nothing: there is nothing to give back."""

    close = release

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
