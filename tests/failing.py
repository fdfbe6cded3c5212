"""Exceptions of all kinds, raised by tasks in a worker of another process."""

from __future__ import annotations

import configparser
import contextlib
import datetime as dt
import json
import os
import sqlite3
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from enum import Enum
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from liteq import Liteq
from liteq.exceptions import DuplicateTask, MaxRetriesExceededError
from liteq.testing import start_worker


class PaymentError(Exception):
    def __init__(self, code: int, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


class Coded(Exception):
    def __init__(self, code: Any) -> None:
        self.code = code
        super().__init__(f"code {str(code)[:9]}")


class Named(Exception):
    def __init__(self, *, msg: str, when: Any = None) -> None:
        self.msg = msg
        self.when = when

    def __str__(self) -> str:
        return f"{self.msg} at {self.when}"


class Slotted(Exception):
    __slots__ = ("__hidden", "code", "unset")

    def __init__(self, code: Any) -> None:
        self.code = code
        self.__hidden = -1

    def __str__(self) -> str:
        return f"slot {self.code} {self.__hidden}"


class Listed(Exception):
    def __init__(self, errors: list[Any]) -> None:
        super().__init__(errors)
        self.errors = errors


class Holder(Exception):
    """It speaks of what no record can carry."""

    def __init__(self, held: Any) -> None:
        super().__init__("held")
        self.held = held

    def __str__(self) -> str:
        return f"held by {type(self.held).__name__}"


class Locked(Exception):
    """It refuses to be changed."""

    def __init__(self, code: int) -> None:
        object.__setattr__(self, "code", code)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AssertionError("must not be called")

    def __str__(self) -> str:
        return f"locked {self.code}"  # type: ignore[attr-defined]


class FileLost(OSError):
    def __init__(self, path: str, tries: int) -> None:
        super().__init__(2, "lost", path)
        self.tries = tries


class Colour(Enum):
    RED = "red"


def throw(exc: BaseException) -> NoReturn:
    raise exc


def bad_sql() -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("bad sql")


def noted() -> NoReturn:
    exc = ValueError("no")
    exc.add_note("in line 7")
    raise exc


def cyclic() -> NoReturn:
    exc = Listed([])
    exc.errors.append(exc)
    raise exc


def local() -> NoReturn:
    class Local(Exception):
        pass

    raise Local("here")


NOON: Final = dt.datetime(2026, 3, 29, 12, tzinfo=dt.UTC)
NESTED: Final = Listed([OSError(2, "gone", "/x"), {"k": (1, {2})}])

# What comes back as it was.
WHOLE: Final[dict[str, Callable[[], Any]]] = {
    "own": lambda: throw(PaymentError(404, "no page")),
    "own without text": lambda: throw(Coded(7)),
    "keyword-only": lambda: throw(Named(msg="hi", when=NOON)),
    "slots": lambda: throw(Slotted(b"\xff")),
    "list": lambda: throw(Listed([1, "two", 2.5, None, {"a": [b"x"]}, {3: NOON}])),
    "nested": lambda: throw(NESTED),
    "enum": lambda: throw(Coded(HTTPStatus.NOT_FOUND)),
    "enums": lambda: throw(Listed([Colour.RED, Path("/x")])),
    "note": noted,
    "locked": lambda: throw(Locked(3)),
    "process": lambda: throw(subprocess.CalledProcessError(3, ["false"], b"out", "err")),
    "timeout": lambda: throw(subprocess.TimeoutExpired(["sleep", "9"], 0.5)),
    "json": lambda: json.loads("{bad"),
    "url": lambda: throw(urllib.error.URLError(OSError(111, "refused"))),
    "decode": lambda: b"ab\xff".decode(),
    "encode": lambda: "abé".encode("ascii"),
    "translate": lambda: throw(UnicodeTranslateError("abc", 1, 2, "why")),
    "file": lambda: Path("/nowhere/report.csv").read_text(),
    "two files": lambda: os.rename("/nowhere/1", "/nowhere/2"),
    "own file": lambda: throw(FileLost("/x", 3)),
    "key": lambda: {}["a"],
    "key of two": lambda: {}[(1, "a")],
    "import": lambda: throw(ImportError("no", name="shop", path="/x")),
    "no module": lambda: __import__("nowhere_to_be_found"),
    "name": lambda: undefined,  # type: ignore[name-defined]  # noqa: F821
    "syntax": lambda: compile("a b", "x.py", "exec"),
    "stop": lambda: throw(StopAsyncIteration(1)),
    "sqlite": bad_sql,
    "no section": lambda: configparser.ConfigParser().get("x", "y"),
    "click": lambda: throw(click.BadParameter("bad")),
    "group": lambda: throw(ExceptionGroup("two", [ValueError(1), PaymentError(1, "x")])),
    "large integer": lambda: throw(ValueError(2**70)),
    "liteq's own": lambda: throw(DuplicateTask("twice")),
    "too many retries": lambda: throw(MaxRetriesExceededError("too often")),
}
# What comes back with what could be carried, and the same text.
IN_PART: Final[dict[str, Callable[[], Any]]] = {
    "attribute": lambda: object().foo,  # type: ignore[attr-defined]
    "http": lambda: throw(urllib.error.HTTPError("http://u", 404, "nf", {}, None)),  # type: ignore[arg-type]
    "large": lambda: throw(subprocess.CalledProcessError(1, "x", output="y" * 100_000)),
    "too large": lambda: throw(Coded(["y" * 7_000] * 5)),
}
# What comes back as `TaskFailed`, with the same text.
TEXT: Final[dict[str, Callable[[], Any]]] = {
    "holder": lambda: throw(Holder(object())),
    "local": local,
    "cycle": cyclic,
    "object": lambda: throw(Listed([object()])),
    "slot": lambda: throw(Slotted(object())),
    "group of a holder": lambda: throw(ExceptionGroup("one", [Holder(sys)])),
    "exit": lambda: throw(SystemExit(3)),
}
ALL: Final = WHOLE | IN_PART | TEXT


def make_app(store: str) -> Liteq:
    app = Liteq("failing", broker=f"sqlite://{store}")

    @app.task(name="fail")
    def fail(name: str) -> None:
        ALL[name]()

    @app.task(name="alarm")
    def alarm(request: Any, exc: Any, traceback: str) -> str:
        return f"failed: {exc}"

    return app


def main(store: str) -> None:
    """Run all there is in the store."""
    app = make_app(store)
    with start_worker(app):
        for name in ALL:
            app.AsyncResult(f"alarm {name}").get(timeout=60)
