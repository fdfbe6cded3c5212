"""A worker that counts what it does, run by test_cost.py in a process of its own.

`python cost_worker.py FOLDER NUMBER [FAULT]` runs so many tasks in one child and prints, as
JSON, how often parent and child called what costs a trip into the kernel, or pickled, and how
many Python functions. It counts what `sys.setprofile` reports, so nothing is replaced.
`FAULT` puts in what the guard is there to find.
"""

from __future__ import annotations

import json
import logging  # noqa: F401 (what Python loads for it)
import os
import pickle
import socket
import sys
from collections import Counter
from types import FrameType
from typing import Any

PYTHONS = frozenset(sys.modules)  # what that is depends on the version

from liteq import Liteq  # noqa: E402
from liteq.pools.child import _Child  # noqa: E402
from liteq.pools.prefork import ProcessPool  # noqa: E402
from liteq.worker import Worker  # noqa: E402

calls: Counter[str] = Counter()
HEAVY = (
    "asyncio",
    "click",
    "croniter",
    "dataclasses",
    "dill",
    "hmac",
    "liteq.commands",
    "liteq.composing",
    "liteq.events.receiver",
    "liteq.pools.inprocess",
    "multiprocess",
    "multiprocessing",
    "pathlib",
    "queue",
    "redis",
    "subprocess",
    "tomllib",
)
_IN = ("recv", "recv_into", "recvfrom", "recvmsg")
_OUT = ("send", "sendall", "sendto", "sendmsg")


def count(frame: FrameType, event: str, function: Any) -> None:
    if event == "call":
        calls["frames"] += 1
    if event != "c_call":
        return
    name, owner = function.__name__, getattr(function, "__self__", None)
    if isinstance(owner, socket.socket):
        if name in _IN:
            calls["receives"] += 1
        elif name in _OUT:
            calls["sends"] += 1
    elif name in ("dumps", "loads", "dump", "load"):
        if "pickle" in (function.__module__ or type(owner).__module__ or ""):
            calls["pickles"] += 1
    elif name in ("fork", "flock", "poll"):
        calls[name] += 1


def pickle_each_job(pool: Any, job: Any) -> None:
    pickle.loads(pickle.dumps(job.key))
    submit(pool, job)


def send_each_twice(child: Any, *frame: Any) -> None:
    child._answers.send(b"")
    send(child, *frame)


submit, send = ProcessPool.submit, _Child._send


def main() -> None:
    folder, number, *fault = sys.argv[1:]
    if fault == ["pickle"]:
        ProcessPool.submit = pickle_each_job  # type: ignore[method-assign]
    elif fault == ["send"]:
        _Child._send = send_each_twice  # type: ignore[method-assign]
    app = Liteq("cost", broker=f"sqlite:///{folder}/store", set_as_current=False)
    app.conf.broker_transport_options = {"durability": "normal"}

    @app.task
    def nothing() -> int:
        return os.getpid()

    @app.task
    def tally() -> dict[str, int]:
        return dict(calls)

    @app.task
    def modules() -> list[str]:
        return list(sys.modules)

    in_child = modules.apply_async(priority=9)  # the highest: before those that count
    for _ in range(int(number)):
        nothing.delay()
    last = tally.apply_async(priority=0)
    first = tally.apply_async(priority=9)  # once the child has started
    sys.setprofile(count)
    Worker(app, concurrency=1, burst=True).run()
    sys.setprofile(None)
    before, after = Counter(first.get(timeout=0)), Counter(last.get(timeout=0))
    loaded = [name for name in HEAVY if name in sys.modules.keys() - PYTHONS]
    own = sorted(set(in_child.get(timeout=0)) - set(sys.modules))
    print(json.dumps({"parent": calls, "child": after - before, "loaded": loaded, "own": own}))


if __name__ == "__main__":
    main()
