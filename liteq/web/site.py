"""The pages as an ASGI application: from a request to a view, and from its page to HTML."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from datetime import datetime
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Final
from urllib.parse import parse_qs, urlencode

from anyio import CapacityLimiter, to_thread
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from liteq import __version__
from liteq.app import Liteq
from liteq.exceptions import BrokerError, ImproperlyConfigured, LiteqError
from liteq.pace import Pace
from liteq.web.actions import ACTIONS, PERMISSIONS, Action, said
from liteq.web.guarding import Auth, Guard
from liteq.web.views import PAGES
from liteq.web.visits import Moved, Page, Visit
from liteq.wording import ago, instant, moment, several, shown, span

__all__ = ["build"]

_MOST_FORM: Final = 65_536  # bytes
_MOST_FIELDS: Final = 1_000
_THREADS: Final = 4  # that wait for the store at a time: each has a connection of its own


def build(
    app: Liteq,
    auth: str | Auth | None,
    *,
    read_only: bool,
    can: Callable[[str, str], bool] | None,
    hosts: Collection[str] | None,
) -> Guard:
    """See `liteq.web.asgi_app`."""
    site = _Site(app, read_only=read_only, can=can)
    routes = [
        *(Route(path, site.shows(view), methods=["GET"]) for path, view in PAGES.items()),
        *(Route(path, site.does(one), methods=["POST"]) for path, one in ACTIONS.items()),
        Route("/healthz", _healthy, methods=["GET"]),
        Mount("/static", StaticFiles(packages=[("liteq.web", "static")])),
    ]
    handlers: Any = {
        HTTPException: site.refused,
        LiteqError: site.failed,
        ValueError: site.failed,  # of what an address or a form says
    }
    return Guard(Starlette(routes=routes, exception_handlers=handlers), auth, hosts)


class _Site:
    """What all requests have in common."""

    def __init__(
        self, app: Liteq, *, read_only: bool, can: Callable[[str, str], bool] | None
    ) -> None:
        self._app = app
        self._read_only = read_only
        if iscoroutinefunction(can):
            raise ImproperlyConfigured(
                "can is called many times for one page, so it cannot be async"
            )
        self._can = can
        self._limiter: CapacityLimiter | None = None
        self._pace = Pace()
        self._templates = Environment(
            loader=PackageLoader("liteq.web"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(
            shown=shown, several=several, span=span, iso=moment, clock=self._clock, query=_query
        )

    def shows(self, view: Callable[[Visit], Page]) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint of a page."""

        async def endpoint(request: Request) -> Response:
            visit = self._visit(
                request,
                parse_qs(
                    request.scope["query_string"].decode("latin-1"), keep_blank_values=True
                ),
            )
            return await self._in_thread(partial(self._rendered, request, visit, view))

        return endpoint

    def does(self, action: Action) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint of a button."""

        async def endpoint(request: Request) -> Response:
            visit = self._visit(request, await _form(request))
            if not visit.may(action.permission):
                raise HTTPException(403, "You may not do that.")
            return await self._in_thread(partial(self._rendered, request, visit, action.run))

        return endpoint

    async def _in_thread(self, work: Callable[[], Response]) -> Response:
        if self._limiter is None:
            self._limiter = CapacityLimiter(_THREADS)
        return await to_thread.run_sync(work, limiter=self._limiter)

    def _visit(self, request: Request, fields: dict[str, list[str]]) -> Visit:
        user: str = request.scope["state"]["liteq_user"]
        return Visit(self._app, user, partial(self._may, user), fields, self._pace)

    def _may(self, user: str, permission: str) -> bool:
        return not self._read_only and (self._can is None or self._can(user, permission))

    def _rendered(
        self, request: Request, visit: Visit, run: Callable[[Visit], Page | Moved]
    ) -> Response:
        answer = run(visit)
        if isinstance(answer, Moved):
            return RedirectResponse(_root(request) + answer.address, 303)
        return self._html(request, visit, answer)

    def _html(self, request: Request, visit: Visit | None, page: Page) -> Response:
        now = self._app.broker.clock.now()
        allowed = (
            frozenset(filter(visit.may, PERMISSIONS)) if visit is not None else frozenset()
        )
        text = self._templates.get_template(page.template).render(
            page.values,
            root=_root(request),
            path=request.scope["path"].removeprefix(_root(request)) or "/",
            may=frozenset(allowed),
            read_only=visit is not None and not allowed,
            user=visit.user if visit is not None else "",
            app_name=self._app.main or "liteq",
            version=__version__,
            ago=partial(ago, now=now),
            said=said(visit.text("said")) if visit is not None else "",
            now=now,
        )
        return HTMLResponse(text, page.status)

    def _clock(self, when: float | datetime) -> str:
        """Return a moment to the second, as a filter reads it: a datetime in its own zone,
        another in the app's."""
        found = when if isinstance(when, datetime) else instant(when, self._app.timezone)
        return "?" if found is None else found.isoformat(" ", "seconds")

    # What went wrong

    async def refused(self, request: Request, exc: HTTPException) -> Response:
        words = {404: "There is no such page.", 405: "Only a button can do that."}
        return await self._error(
            request, exc.status_code, words.get(exc.status_code, exc.detail)
        )

    async def failed(self, request: Request, exc: LiteqError | ValueError) -> Response:
        if isinstance(exc, BrokerError):
            status = 503
        else:
            status = 404 if isinstance(exc, LookupError) else 400
        return await self._error(request, status, str(exc))

    async def _error(self, request: Request, status: int, words: str) -> Response:
        page = Page("error.html", {"words": words, "status": status}, status)
        return await self._in_thread(partial(self._html, request, None, page))


async def _healthy(_request: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _form(request: Request) -> dict[str, list[str]]:
    """Return the fields of a form."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_FORM:
            raise HTTPException(413, "That form is too large.")
    try:
        return parse_qs(
            body.decode(),
            keep_blank_values=True,
            strict_parsing=False,
            max_num_fields=_MOST_FIELDS,
        )
    except ValueError:
        raise HTTPException(400, "That form cannot be read.") from None


def _root(request: Request) -> str:
    """Return the path that these pages are mounted at; "" if they are alone."""
    root: str = request.scope["state"]["liteq_root"]
    return root


def _query(fields: dict[str, Any]) -> str:
    return urlencode({name: value for name, value in fields.items() if value}, doseq=True)
