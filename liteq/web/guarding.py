"""Who may ask for a page, and what a browser may do with it."""

from __future__ import annotations

import base64
import hmac
import inspect
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Final, TypeAlias

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from liteq.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Auth", "Guard"]

Auth: TypeAlias = Callable[[Request], str | Awaitable[str | None] | None]

ANYBODY: Final = "anybody"
_SAFE: Final = ("GET", "HEAD")
_OWN: Final = ("same-origin", "none")  # "none": typed by the user, or a bookmark
_HEADERS: Final = {
    # No script, style or picture but our own, and no page of others around ours.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": with that, browsers do not say where a form comes from.
    "Referrer-Policy": "same-origin",
}


class Guard:
    """Lets requests pass to the pages: those for one of `hosts`, of somebody whom `auth`
    knows, and, if they would change anything, of one of our own forms.

    https://web.dev/articles/fetch-metadata says how one knows the last.
    """

    def __init__(
        self,
        inner: ASGIApp,
        auth: str | Auth | None,
        hosts: Collection[str] | None,
    ) -> None:
        self._inner = inner
        self._asks = isinstance(auth, str)
        self._auth = _basic(auth) if isinstance(auth, str) else auth
        if isinstance(hosts, str):
            raise ImproperlyConfigured(f"hosts must be a list of names: hosts=[{hosts!r}]")
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                # A file has a tag, by which a browser that has kept it asks for changes only.
                keep = "private, no-cache" if "ETag" in headers else "no-store"
                headers.setdefault("Cache-Control", keep)
            await send(message)

        answer: ASGIApp = await self._refusal(scope) or self._inner
        await answer(scope, receive, guarded)

    async def _refusal(self, scope: Scope) -> Response | None:
        """Return what a request is refused with. One that is not has its user's name, and
        the path that these pages are mounted at, "" if they are alone."""
        headers = Headers(scope=scope)
        host = _host(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            return PlainTextResponse(
                f"These pages do not answer to {host!r}: start them with --host {host}, "
                "or use their address\n",
                421,
            )
        user: object = ANYBODY if self._auth is None else self._auth(Request(scope))
        if inspect.isawaitable(user):
            user = await user
        # What tells yes or no in place of a name must not let everybody in with a no.
        if user is True or not isinstance(user, str | bool | None):
            raise ImproperlyConfigured(
                f"auth returned {user!r}: it must return the user's name, or None to refuse"
            )
        if not user:
            if not self._asks:
                return PlainTextResponse("You may not see these pages\n", 403)
            return PlainTextResponse(
                "Say who you are\n",
                401,
                {"WWW-Authenticate": 'Basic realm="liteq", charset="UTF-8"'},
            )
        if scope["method"] not in _SAFE and not _is_own(headers):
            return PlainTextResponse("This was sent by a page of another site\n", 403)
        # The root as it is here: a mount within writes its own into the scope.
        told = {"liteq_user": user, "liteq_root": scope.get("root_path", "").rstrip("/")}
        scope.setdefault("state", {}).update(told)
        return None


def _is_own(headers: Headers) -> bool:
    """Tell whether a request comes of one of our pages, or of no browser at all."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in _OWN
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")


def _host(text: str) -> str:
    """Return the name in a Host header, without the port."""
    name = text.rpartition(":")[0] if not text.endswith("]") and ":" in text else text
    return name.strip("[]").lower()


def _basic(expected: str) -> Auth:
    """Return what reads the user's name off a request with the right name and password."""
    name, colon, password = expected.partition(":")
    if not (name and colon and password):
        raise ImproperlyConfigured("auth must be user:password, with neither of them empty")
    wanted = expected.encode()

    def auth(request: Request) -> str | None:
        kind, _, value = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "basic":
            return None
        try:
            given = base64.b64decode(value, validate=True)
        except ValueError:  # which may not even be ASCII
            return None
        return name if hmac.compare_digest(given, wanted) else None

    return auth
