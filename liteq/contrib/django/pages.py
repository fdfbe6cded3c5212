"""The pages of `liteq web` as a view of Django's, for the staff of its site."""

from __future__ import annotations

import asyncio
import os
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.urls import NoReverseMatch, reverse
from django.views.decorators.csrf import csrf_exempt

from liteq.contrib.django.models import Pages
from liteq.contrib.django.project import project_app
from liteq.web import asgi_app

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Scope

    from liteq.app import Liteq

__all__ = ["pages"]

_SAFE: Final = ("GET", "HEAD")
_OF_BROWSERS: Final = ("Sec-Fetch-Site", "Origin")  # one of which each sends with a form
_VISITOR: Final = "liteq.visitor"  # in the scope of a request
_ACTIONS: Final = tuple(name for name, _ in Pages._meta.permissions)


class _Visitor(str):
    """The name of a user, with what he may do."""

    may: frozenset[str] = frozenset()


# Their forms have no token of Django's, for they are another program's. In its place a change
# is accepted only from a browser that says it comes of one of these pages (Sec-Fetch-Site or
# Origin, which scripts cannot set: `liteq.web.guarding`), and from none that says nothing.
@csrf_exempt  # type: ignore[untyped-decorator]  # Django ships no types
def pages(request: HttpRequest, path: str = "") -> HttpResponse:
    """Answer a request for one of the pages.

    A visitor who is not logged in is asked to log in; one who is not an active member of the
    staff is refused. A change takes a permission, `liteq.retry` and so on, which a superuser
    has.
    """
    user = getattr(request, "user", None)
    if user is None:
        raise ImproperlyConfigured(
            "the pages need to know the user: add AuthenticationMiddleware to MIDDLEWARE"
        )
    root = request.path[: len(request.path) - len(path)]
    is_change = request.method not in _SAFE
    if not user.is_authenticated:
        # What is posted is gone by then: the way back is to the first page.
        return redirect_to_login(root if is_change else request.get_full_path(), _login_url())
    if not (user.is_active and user.is_staff):
        raise PermissionDenied("these pages are for staff only")
    if is_change and not any(name in request.headers for name in _OF_BROWSERS):
        raise PermissionDenied("changes must come from a form on these pages")
    visitor = _Visitor(user.get_username())
    visitor.may = frozenset(name for name in _ACTIONS if user.has_perm(f"liteq.{name}"))
    answer = _answer(_site(project_app()), _scope(request, root, visitor), request.body)
    status, headers, body = asyncio.run_coroutine_threadsafe(answer, _loop()).result()
    response = HttpResponse(body, status=status)
    for name, value in headers:
        response.headers[name.decode("latin-1")] = value.decode("latin-1")
    return response


@lru_cache(maxsize=8)  # a process has one app, and tests a few
def _site(app: Liteq) -> ASGIApp:
    app.import_default_modules()  # each task says itself which of its arguments are secret
    return asgi_app(
        app,
        auth=lambda request: request.scope[_VISITOR],
        can=lambda visitor, action: isinstance(visitor, _Visitor) and action in visitor.may,
    )


def _scope(request: HttpRequest, root: str, visitor: _Visitor) -> Scope:
    given = {name.lower(): value for name, value in request.headers.items()}
    given.pop("cookie", None)  # the session is Django's
    given["host"] = host = request.get_host()  # one of ALLOWED_HOSTS, whatever proxy is before
    query = request.META.get("QUERY_STRING", "")
    return {
        "type": "http",
        # 2.4: nobody has to wait for the browser to hang up, which is not told here.
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "server": (host.partition(":")[0], int(request.get_port())),
        "path": request.path,
        "root_path": root.rstrip("/"),
        "query_string": _bytes(query),
        "headers": [
            (k.encode("latin-1"), v.encode("latin-1", "replace")) for k, v in given.items()
        ],
        _VISITOR: visitor,
    }


def _bytes(text: str) -> bytes:
    return text.encode("latin-1", "replace")  # as headers are read by Django


async def _answer(
    site: ASGIApp, scope: Scope, body: bytes
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return what an ASGI application answers, whole."""
    sent: list[Message] = []
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await site(scope, receive, send)
    head, *rest = sent
    return head["status"], head["headers"], b"".join(part.get("body", b"") for part in rest)


def _login_url() -> str:
    try:
        url: str = reverse("admin:login")
    except NoReverseMatch:  # a project without the admin
        url = settings.LOGIN_URL
    return url


# The loop in which the pages run: one, as their application is. It is a thread's own, because
# requests come in any thread, and under WSGI with no loop at all.

_running: asyncio.AbstractEventLoop | None = None
_lock = threading.Lock()  # two requests that are the first must not make two


def _loop() -> asyncio.AbstractEventLoop:
    global _running
    with _lock:
        if _running is None:
            _running = asyncio.new_event_loop()
            threading.Thread(
                target=_running.run_forever, name="liteq-pages", daemon=True
            ).start()
        return _running


def _forget() -> None:
    """In a forked child, which has the loop but not its thread, and perhaps a held lock."""
    global _running, _lock
    _running, _lock = None, threading.Lock()
    _site.cache_clear()


os.register_at_fork(after_in_child=_forget)
