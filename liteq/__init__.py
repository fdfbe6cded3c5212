"""liteq: a Celery-class task queue that needs no server.

from liteq import Liteq

app = Liteq("shop")

@app.task
def add(x: int, y: int) -> int:
    return x + y

add.delay(2, 3).get(timeout=10)
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself takes longer to import than all of this

__version__ = "0.1.0.dev0"

__all__ = [
    "AsyncResult",
    "AsyncTask",
    "BoundTask",
    "Celery",
    "Concurrency",
    "Exchange",
    "Graph",
    "Liteq",
    "Queue",
    "Rate",
    "Secret",
    "Signature",
    "StampingVisitor",
    "Task",
    "allow_join_result",
    "chain",
    "chord",
    "chunks",
    "current_app",
    "current_task",
    "group",
    "maybe_signature",
    "shared_task",
    "signature",
    "subtask",
    "uuid",
    "xmap",
    "xstarmap",
]

if TYPE_CHECKING:
    from liteq.app import Liteq as Celery
    from liteq.app import Liteq as Liteq
    from liteq.app import shared_task as shared_task
    from liteq.canvas import Graph as Graph
    from liteq.canvas import Signature as Signature
    from liteq.canvas import StampingVisitor as StampingVisitor
    from liteq.canvas import chain as chain
    from liteq.canvas import chord as chord
    from liteq.canvas import chunks as chunks
    from liteq.canvas import group as group
    from liteq.canvas import maybe_signature as maybe_signature
    from liteq.canvas import signature as signature
    from liteq.canvas import subtask as subtask
    from liteq.canvas import xmap as xmap
    from liteq.canvas import xstarmap as xstarmap
    from liteq.current import current_app as current_app
    from liteq.current import current_task as current_task
    from liteq.limits import Concurrency as Concurrency
    from liteq.limits import Rate as Rate
    from liteq.redaction import Secret as Secret
    from liteq.results.asyncresult import AsyncResult as AsyncResult
    from liteq.results.joining import allow_join_result as allow_join_result
    from liteq.settingvalues import Exchange as Exchange
    from liteq.settingvalues import Queue as Queue
    from liteq.task import AsyncTask as AsyncTask
    from liteq.task import BoundTask as BoundTask
    from liteq.task import Task as Task
    from liteq.utils import uuid as uuid

_HOMES = {
    "AsyncResult": "results.asyncresult",
    "AsyncTask": "task",
    "BoundTask": "task",
    "Celery": "app",
    "Concurrency": "limits",
    "Exchange": "settingvalues",
    "Graph": "canvas",
    "Liteq": "app",
    "Queue": "settingvalues",
    "Rate": "limits",
    "Secret": "redaction",
    "Signature": "canvas",
    "Task": "task",
    "allow_join_result": "results.joining",
    "StampingVisitor": "canvas",
    "chain": "canvas",
    "chord": "canvas",
    "chunks": "canvas",
    "group": "canvas",
    "xmap": "canvas",
    "xstarmap": "canvas",
    "current_app": "current",
    "current_task": "current",
    "maybe_signature": "canvas",
    "shared_task": "app",
    "signature": "canvas",
    "subtask": "canvas",
    "uuid": "utils",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562): `import liteq` stays light."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'liteq' has no attribute {name!r}")
    from importlib import import_module  # late: kept out of the namespace of the package

    module = import_module("liteq.app")  # first: it says how the default app is made
    if home != "app":
        module = import_module(f"liteq.{home}")
    found = getattr(module, "Liteq" if name == "Celery" else name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
