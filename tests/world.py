"""What tests are made with: a clock moved by hand, stores, and short ways to messages."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liteq.brokers.base import Broker, Lease, Mailbox
from liteq.brokers.sqlite import SqliteBroker
from liteq.clock import ManualClock
from liteq.ids import new_id
from liteq.message import Message

START = 1_800_000_000.0  # a Friday in 2027; any time would do


class FakeClock(ManualClock):
    """A clock that stands still until a test moves it."""

    def __init__(self, start: float = START) -> None:
        super().__init__(start)

    def step(self, seconds: float) -> None:
        """Set the wall clock without time passing: what NTP and administrators do."""
        self._now += seconds


@dataclass
class Store:
    """A place for messages, which `open()` connects to.

    `shared`: another `open()`, also in another process, sees the same messages.
    """

    kind: str
    folder: Path
    clock: FakeClock

    @property
    def shared(self) -> bool:
        return self.kind != "memory"

    def open(self, **options: Any) -> Broker:
        options = {"clock": self.clock, "durability": "normal", **options}
        match self.kind:
            case "memory":
                return SqliteBroker(None, **options)
            case "sqlite":
                return SqliteBroker(str(self.folder / "store"), **options)
            case "redis":
                # Imported late: a test that never talks to Redis never loads its client.
                import redis_server

                from liteq.brokers.redis import RedisBroker

                options.setdefault("namespace", redis_server.namespace_of(self.folder))
                return RedisBroker(redis_server.shared(), **options)
            case other:
                raise ValueError(f"no store of kind {other!r}")


def make(task: str = "shop.charge", body: bytes = b"[[], {}]", **fields: Any) -> Message:
    """Return a message with a new id."""
    return Message(**{"id": new_id(), "task": task, "body": body, **fields})


def enlist(broker: Broker, *queues: str, name: str = "w", concurrency: int = 1) -> int:
    """Register a worker and return its id."""
    return broker.register(name, queues or ("default",), concurrency, {})


def fork(child: Callable[[], Any]) -> int:
    """Return the id of a fork of this process, which ends with 0 if `child()` is true. It never
    comes back: it would go on with the tests."""
    pid = os.fork()
    if pid == 0:
        fine = False
        try:
            fine = bool(child())
        finally:
            os._exit(0 if fine else 1)
    return pid


def wait_until(condition: Callable[[], Any], within: float = 5.0) -> Any:
    """Return the condition's first true value; fail if there is none within the time."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not true within {within:g} s: {condition}")
        time.sleep(0.005)  # other processes are to get the processor
    return value


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open no file and no socket meanwhile."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    last = os.dup(2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, limit[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(last))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        for fd in (last, *taken):
            os.close(fd)


@contextlib.contextmanager
def deaf(kind: str) -> Iterator[int]:
    """Open something that can be written to, and takes nothing."""
    if kind == "full disk":
        reader, writer = None, os.open("/dev/full", os.O_WRONLY)
    else:
        reader, writer = os.pipe()
        if kind == "no reader":
            os.close(reader)
        else:
            os.set_blocking(writer, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writer, b"x" * 4096)
    try:
        yield writer
    finally:
        os.close(writer)
        if kind == "full pipe":
            os.close(reader)


def uncovered() -> dict[str, str]:
    """Return the environment for a process that coverage is not to follow.

    Coverage imports modules, starts saving in `os._exit` and holds locks across a fork:
    what is tested there may be the very thing that it changes.
    """
    return {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}


def brought_to(mailbox: Mailbox) -> Lease:
    """Return the lease that comes to a worker that stands by, alone."""

    def found() -> Sequence[Lease]:
        mailbox.wait(0.1)
        return mailbox.leases()

    (lease,) = wait_until(found)
    return lease  # type: ignore[no-any-return]
