"""What each log record says about the task in whose code it was made.

Handlers and formatters are often the program's own, made before liteq looks or after; so it is
the records that bear the fields, and any format may name them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

__all__ = ["NO_TASK", "Context", "is_marking_all", "mark"]

NO_TASK: Final = "???"  # Celery's word

Context = Callable[[], Mapping[str, Any] | None]

_is_marked = False
_always = False


def mark(context: Context, *, always: bool = False) -> None:
    """Have every record that a logger of this process makes from now on bear what `context()`
    returns, the fields of the task that runs there; once, whoever asks again.

    `always`: records that are made outside of a task have a `task_name` and a `task_id` too,
    so that one format serves all lines. That is for liteq's own processes: the lines of a
    program that embeds a worker, or calls tasks eagerly, are its own outside of them.
    """
    global _is_marked, _always
    _always = _always or always
    if _is_marked:
        return
    _is_marked = True
    make = logging.Logger.makeRecord

    # Not a record factory: a call may not give in `extra=` what a factory has set, and whose
    # code does, as Celery's users have learnt to, would fail for it. Nor a step on the way to
    # the handlers: some find the caller by counting frames.
    @functools.wraps(make)
    def make_marked(self: logging.Logger, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(self, *args, **kwargs)
        fields = record.__dict__
        for name, value in (context() or {}).items():
            fields.setdefault(name, value)
        if _always:
            fields.setdefault("task_id", NO_TASK)
            fields.setdefault("task_name", fields.get("task", NO_TASK))
        return record

    logging.Logger.makeRecord = make_marked  # type: ignore[method-assign]


def is_marking_all() -> bool:
    """Tell whether records have fields outside of tasks as well, as in liteq's processes."""
    return _always
