"""Pages for operators: what the store holds, seen, searched and steered in a browser.

`liteq web` serves them, and `asgi_app()` gives them to an application of your own. They say
what the commands say, and have no state but the store's. They need the extra `web`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any

from liteq.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from liteq.app import Liteq

__all__ = ["asgi_app"]


def asgi_app(
    app: Liteq,
    *,
    auth: str | Callable[[Request], str | Awaitable[str | None] | None] | None,
    read_only: bool = False,
    can: Callable[[str, str], bool] | None = None,
    hosts: Collection[str] | None = None,
) -> ASGIApp:
    """Return the pages of an app as an ASGI application, to be served or mounted anywhere.

    - `auth`: who may see them. "user:password" asks the browser for these. A function, which
      may be async, is given the request (Starlette's) and returns the user's name, or None to
      refuse. None instead of a function lets in everybody who can reach them.
    - `read_only`: nothing can be changed.
    - `can`: whether a user may do something: "retry", "cancel", "drop", "pause" (a queue),
      "purge", "schedule" or "worker". What a user may not do is not offered either.
    - `hosts`: the host names that they answer to (default: any). Give them where nobody has
      to log in: otherwise a foreign page could reach these through the browser, under a name
      of its own.

    A change is made only by a POST from these pages, and logged with the user's name by the
    logger `liteq.web`. Import the program's tasks first: they say which of their arguments
    are secret. Raises `ImproperlyConfigured` without the extra `web`, and for an invalid
    `auth`.
    """
    try:
        from liteq.web.site import build
    except ImportError as exc:
        raise ImproperlyConfigured(
            f"the pages need the extra: pip install 'liteq-queue[web]' ({exc})"
        ) from exc
    made: Any = build(app, auth, read_only=read_only, can=can, hosts=hosts)
    return made  # type: ignore[no-any-return]
