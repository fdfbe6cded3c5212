"""An exception as text, for records, logs and hooks.

The exceptions are the user's, and their own methods may raise anything: nothing here does.
"""

from __future__ import annotations

import traceback
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

from liteq import failure
from liteq.exceptions import TaskFailed
from liteq.redaction import Redactor, hide, mask_url

if TYPE_CHECKING:
    import logging

__all__ = ["ExceptionInfo", "line", "log", "summary"]

_LINE: Final = 500  # characters of a text in a log line


class ExceptionInfo:
    """An exception with the text of its traceback: what hooks know as `einfo`.

    `secrets`: texts that are hidden in the traceback and in the record; `redactor` knows
    the names of attributes that are. `limit`: characters of each text in the record.
    """

    internal = False

    def __init__(
        self,
        exc: BaseException,
        secrets: Collection[str] = (),
        redactor: Redactor | None = None,
        limit: int = failure.ERROR_TEXT_LIMIT,
    ) -> None:
        self._secrets = secrets
        self._redactor = redactor
        self._limit = limit
        self._record: bytes | None = None
        self.exception = exc
        self.type = type(exc)
        self.tb = exc.__traceback__
        self._text: str | None = None

    @property
    def traceback(self) -> str:
        """The traceback as Python prints it."""
        if self._text is None:
            self._text = hide(_traceback_text(self.exception), self._secrets)
        return self._text

    def hidden(self, text: str) -> str:
        """Return a text about the exception as it may be shown elsewhere: without the secrets
        and the passwords of URLs."""
        return mask_url(hide(text, self._secrets))

    @property
    def exc_info(self) -> tuple[type[BaseException], BaseException, Any]:
        return self.type, self.exception, self.tb

    def record(self) -> bytes:
        """Return the record of the exception that a store keeps."""
        if self._record is None:
            self._record = self._described()
        return self._record

    def _described(self) -> bytes:
        try:
            return failure.describe(
                self.exception,
                traceback=self.traceback,
                secrets=self._secrets,
                redactor=self._redactor,
                limit=self._limit,
            )
        except BaseException as broken:  # noqa: BLE001 (the user's class)
            reason = f"cannot be described: {type(broken).__name__}"
            stand_in = TaskFailed(self.type.__qualname__, reason)
            return failure.describe(stand_in, traceback=self.traceback)

    def __str__(self) -> str:
        return self.traceback

    def __repr__(self) -> str:
        return f"<ExceptionInfo: {summary(self.exception)}>"


def log(
    to: logging.Logger,
    level: int,
    text: str,
    args: tuple[Any, ...],
    exc: BaseException | None,
    extra: Mapping[str, Any],
    secrets: Collection[str],
) -> None:
    """Log an exception, if there is one, without these texts."""
    if not secrets:
        to.log(level, text, *args, exc_info=exc, extra=extra)
        return
    record = to.makeRecord(to.name, level, __file__, 0, text, args, None, None, extra)
    if exc is not None:  # as text: a handler would format the exception itself
        record.exc_text = ExceptionInfo(exc, secrets).traceback
    to.handle(record)


def summary(exc: BaseException) -> str:
    """Return an exception in one line."""
    text = line(exc)
    return f"{type(exc).__qualname__}: {text}" if text else type(exc).__qualname__


def line(value: Any) -> str:
    """Return a value as text, in one line of bounded length."""
    try:
        text = " ".join(str(value).split())
    except BaseException as broken:  # noqa: BLE001 (the user's class)
        return f"<str() raised {type(broken).__name__}>"
    return text if len(text) <= _LINE else f"{text[:_LINE]}…"


def _traceback_text(exc: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(exc))
    except BaseException as broken:  # noqa: BLE001 (the user's class)
        return f"{type(exc).__qualname__} (no traceback: {type(broken).__name__})\n"
