"""celery-batches under its own names: a class of tasks that are given many calls at once.

It sets two options, which every task may have: `flush_every` and `flush_interval`.
"""

from __future__ import annotations

from liteq.context import Context as SimpleRequest
from liteq.task import Task

__all__ = ["Batches", "SimpleRequest"]


class Batches(Task[..., object]):
    """A task that runs once for ten calls, or for those of half a minute.

    Its function takes a list of requests (`SimpleRequest`: id, args, kwargs, headers, …) and
    returns None, or a list with a value for each, in their order. See the guide, "One run for
    many calls".
    """

    abstract = True
    flush_every = 10
    flush_interval = 30.0
