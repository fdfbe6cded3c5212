"""The pools by name: what a worker asks for children to run its jobs.

`liteq.pools.base` says what every pool promises, `liteq.pools.prefork` runs jobs in child
processes; in this one `liteq.pools.threadpool`, `liteq.pools.asynciopool` and
`liteq.pools.solopool` run them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Final

from liteq.exceptions import ImproperlyConfigured
from liteq.pools.base import (
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
    "prefork": ("liteq.pools.prefork", "ProcessPool"),
    "processes": ("liteq.pools.prefork", "ProcessPool"),
    "threads": ("liteq.pools.threadpool", "ThreadPool"),
    "asyncio": ("liteq.pools.asynciopool", "AsyncioPool"),
    "solo": ("liteq.pools.solopool", "SoloPool"),
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
