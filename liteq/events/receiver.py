"""Listening to the stream of events, and adding to it."""

# ruff: noqa: FBT001, FBT002  (positional booleans in Celery's signatures)

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from liteq import current
from liteq.events.form import encode, own_fields, sent
from liteq.events.state import State
from liteq.exceptions import BrokerError, BrokerUnavailable, StoreLost
from liteq.loggers import get_logger
from liteq.selfpipe import SelfPipe

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.brokers import values
    from liteq.brokers.base import Mailbox
    from liteq.message import Message
    from liteq.task import Task

__all__ = ["Dispatcher", "Event", "EventReceiver", "Events"]

logger = get_logger("liteq.events")

Handler: TypeAlias = Callable[[dict[str, Any]], Any]

_LEASE: Final = 30.0  # seconds that one word of a listener is good for
_RENEWALS: Final = 3  # in that time
_SLICE: Final = 1_000  # events read at once
_PAUSE: Final = 1.0  # seconds between two tries to reach the store


def Event(type: str, **fields: Any) -> dict[str, Any]:  # noqa: N802 (Celery's name)
    """Return an event of this type, with a timestamp unless one is given."""
    return {"type": type, "timestamp": time.time(), **fields}


class Events:
    """What an app has to do with events: `app.events`."""

    def __init__(self, app: Liteq) -> None:
        self.app = app

    def Receiver(self, *args: Any, **kwargs: Any) -> EventReceiver:  # noqa: N802 (Celery's name)
        """Return a receiver for this app: see `EventReceiver`."""
        return EventReceiver(*args, **{"app": self.app, **kwargs})

    def State(self, *args: Any, **kwargs: Any) -> State:  # noqa: N802 (Celery's name)
        """Return an empty picture of tasks and workers, for events to fill."""
        return State(*args, **kwargs)

    def Dispatcher(self, *args: Any, **kwargs: Any) -> Dispatcher:  # noqa: N802 (Celery's name)
        """Return something that sends events of your own."""
        return Dispatcher(*args, **{"app": self.app, **kwargs})

    default_dispatcher = Dispatcher

    def sent(self, messages: Sequence[Message], at: float) -> None:
        """Tell who listens, if somebody does, that messages were sent at that time."""
        with contextlib.suppress(BrokerError):  # they were sent: that alone matters
            if self.app.broker.emit([]):
                self.app.broker.emit(sent(self.app, _own_name(), messages, at))

    def revoked(self, ids: Sequence[str]) -> None:
        """Tell who listens, if somebody does, that messages were revoked."""
        fields = {"terminated": False, "signum": None, "expired": False}
        with contextlib.suppress(BrokerError):
            if ids and self.app.broker.emit([]):
                events = [
                    encode("task-revoked", self.app, _own_name(), {"uuid": id, **fields})
                    for id in ids
                ]
                self.app.broker.emit(events)

    def of_call(self, task: Task[..., Any], type: str, fields: Mapping[str, Any]) -> bool:
        """Tell who listens, if somebody does, what a task says of the call that runs."""
        broker, request = self.app.broker, task.request
        with contextlib.suppress(BrokerError):  # it is news, and no reason to fail
            if broker.emit([]):
                shown = {**own_fields(self.app, task, fields), "uuid": request.id}
                name = request.hostname or _own_name()
                return broker.emit([encode(type, self.app, name, shown)])
        return False


def _own_name() -> str:
    """Return what events of a process that is no worker are from."""
    return f"gen{os.getpid()}@{socket.gethostname()}"


class EventReceiver:
    """Hears events and calls handlers, by the type of the event; "*" gets all others.

    `missed`: how many events the store had dropped before they were read here; a store that
    came back without its data, or with older data, counts as one. The first arguments, and
    those about queues, are Celery's, and mean nothing.
    """

    def __init__(
        self,
        channel: Any = None,
        handlers: Mapping[str, Handler] | None = None,
        routing_key: str = "#",
        node_id: str | None = None,
        app: Liteq | None = None,
        queue_prefix: str | None = None,
        accept: Any = None,
        **ignored: Any,
    ) -> None:
        self.app = app if app is not None else current.get_current_app()
        self.handlers: dict[str, Handler] = dict(handlers or {})
        self.missed = 0
        self._should_stop = False
        self._pipes: set[SelfPipe] = set()  # each wakes one that listens

    def capture(
        self,
        limit: int | None = None,
        timeout: float | None = None,
        wakeup: bool = True,
    ) -> None:
        """Call the handlers for each event that comes: for `limit` of them, and until none
        comes for `timeout` seconds, which raises `TimeoutError`. With `wakeup`, workers say
        at once that they are there."""
        for _ in self.itercapture(limit, timeout, wakeup):
            pass

    def itercapture(
        self,
        limit: int | None = None,
        timeout: float | None = None,
        wakeup: bool = True,
    ) -> Iterator[dict[str, Any]]:
        """Like `capture()`, and yield each event after its handlers were called."""
        for count, event in enumerate(self._events(timeout, wakeup), 1):
            self.process(event["type"], event)
            yield event
            if self._should_stop or (limit is not None and count >= limit):
                return

    def process(self, type: str, event: dict[str, Any]) -> None:
        """Call the handler of an event of this type."""
        handler = self.handlers.get(type) or self.handlers.get("*")
        if handler is not None:
            handler(event)

    def wakeup_workers(self, channel: Any = None) -> None:
        """Have workers say that they are there."""
        self.app.control.heartbeat()

    def stop(self) -> None:
        """End `capture()` now, from any thread, handler or signal handler; one that begins
        later ends at once, as in Celery."""
        self.should_stop = True

    @property
    def should_stop(self) -> bool:
        """Whether `capture()` is to end; it does so when this is set."""
        return self._should_stop

    @should_stop.setter
    def should_stop(self, should: bool) -> None:
        self._should_stop = should
        for pipe in list(self._pipes):
            pipe.wake()

    def _events(self, timeout: float | None, wakeup: bool) -> Iterator[dict[str, Any]]:
        broker = self.app.broker
        mailbox = broker.mailbox()
        lost = False
        pipe = SelfPipe()
        self._pipes.add(pipe)
        try:
            at = broker.listen(mailbox, _LEASE)
            if wakeup:
                self.wakeup_workers()
            renew_at = time.monotonic() + _LEASE / _RENEWALS
            heard_at = time.monotonic()
            while not self._should_stop:
                now = time.monotonic()
                try:
                    if now >= renew_at:
                        broker.listen(mailbox, _LEASE)
                        renew_at = now + _LEASE / _RENEWALS
                    found = broker.events(at, _SLICE)
                except BrokerUnavailable as exc:
                    logger.warning("%s; listening on", exc)
                    renew_at = now  # it may come back without what this listener said
                    _wait(mailbox, pipe, _PAUSE)
                    continue
                if found.last < at:
                    renew_at = now  # the store has lost data: what this listener said, too
                self._count_missed(found, at)
                at = found.last
                for body in found.bodies:
                    heard_at = time.monotonic()
                    yield _decoded(body)
                if found.bodies:
                    continue
                until = renew_at
                if timeout is not None:
                    until = min(until, heard_at + timeout)
                    if time.monotonic() - heard_at >= timeout:
                        raise TimeoutError(f"no event within {timeout:g} s")
                pause = min(until - time.monotonic(), mailbox.poll_interval * 2)
                _wait(mailbox, pipe, max(0.0, pause))
        except StoreLost:
            lost = True  # another store, that comes after it, knows nothing of this listener
            raise
        finally:
            # Its lease ends by itself.
            with contextlib.suppress(BrokerUnavailable, StoreLost):
                if not lost:
                    broker.listen(mailbox, 0)
            mailbox.close()
            self._pipes.discard(pipe)
            pipe.close()

    def _count_missed(self, found: values.Events, at: int) -> None:
        """Count what was dropped between this number and a slice, and say so."""
        self.missed += found.missed
        if found.last < at:
            logger.warning("the store has lost data, and events that were not read yet")
        elif found.missed:
            logger.warning("%d events were dropped before they could be read", found.missed)


class Dispatcher:
    """Sends events; only those who listen get them."""

    def __init__(
        self,
        connection: Any = None,
        hostname: str | None = None,
        enabled: bool = True,
        channel: Any = None,
        app: Liteq | None = None,
        **ignored: Any,
    ) -> None:
        self.app = app if app is not None else current.get_current_app()
        self.hostname = hostname or _own_name()
        self.enabled = enabled

    def send(self, type: str, blind: bool = False, **fields: Any) -> bool:
        """Send an event; return whether somebody listens."""
        if not self.enabled:
            return False
        return self.app.broker.emit([encode(type, self.app, self.hostname, fields)])

    def enable(self) -> None:
        """Send from now on."""
        self.enabled = True

    def disable(self) -> None:
        """Send nothing from now on."""
        self.enabled = False

    def close(self) -> None:
        """Do nothing: the store is the app's."""

    def __enter__(self) -> Dispatcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _wait(mailbox: Mailbox, pipe: SelfPipe, seconds: float) -> None:
    """Wait for a wake-up, by the mailbox or by this pipe."""
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    if (fd := mailbox.fileno()) >= 0:
        poller.register(fd, select.POLLIN)
    else:
        seconds = min(seconds, mailbox.poll_interval)
    poller.poll(seconds * 1000)
    mailbox.mend()
    mailbox.receive()
    pipe.drain()


def _decoded(body: bytes) -> dict[str, Any]:
    """Return an event; what is none comes as one that says so."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        return Event("unreadable", body=repr(body[:200]))
    event["local_received"] = time.time()
    return event
