"""The pools by name: what a worker asks for children to run its jobs.

`liteq.poolbase` says what every pool promises, `liteq.prefork` runs jobs in child
processes, `liteq.threadpool`, `liteq.asynciopool` and `liteq.solopool` in this one.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Final

from liteq.exceptions import ImproperlyConfigured
from liteq.poolbase import (
    Broken,
    Done,
    Event,
    Job,
    LostJob,
    Pool,
    PoolOptions,
    Ready,
    Report,
    Reported,
    Returned,
    Runner,
)

__all__ = [
    "Broken",
    "Done",
    "Event",
    "Job",
    "LostJob",
    "Pool",
    "PoolOptions",
    "Ready",
    "Report",
    "Reported",
    "Returned",
    "Runner",
    "make_pool",
]

# Where each is: one that is not asked for is not imported.
_KINDS: Final = {
    "prefork": ("liteq.prefork", "ProcessPool"),
    "processes": ("liteq.prefork", "ProcessPool"),
    "threads": ("liteq.threadpool", "ThreadPool"),
    "asyncio": ("liteq.asynciopool", "AsyncioPool"),
    "solo": ("liteq.solopool", "SoloPool"),
}


def make_pool(kind: str, factory: Callable[[], Runner], options: PoolOptions) -> Pool:
    """Return a pool, not yet started.

    `kind` is `prefork` (or `processes`), `threads`, `asyncio` or `solo`. `factory` makes
    a runner for each child, in that child; with the start method `spawn` it travels
    there and must survive pickling (by dill).
    """
    if kind not in _KINDS:
        raise ImproperlyConfigured(
            f"there is no pool {kind!r}: choose one of {', '.join(_KINDS)}"
        )
    if options.concurrency < 1:
        raise ImproperlyConfigured(
            f"a pool needs at least one child, not {options.concurrency}"
        )
    if kind == "solo":
        options = options._replace(concurrency=1)
    module, name = _KINDS[kind]
    made: Pool = getattr(import_module(module), name)(factory, options)
    return made
