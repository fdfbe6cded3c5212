"""Waiting for messages to settle: woken by the store, with polling as the backstop.

A waiting thread borrows a mailbox from the process's free list, since opening one costs
more than a whole wait. An event loop has one mailbox for all of its waiters. Nothing
waits for an id that is not in the store, unless it was given a timeout.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, finalize

from liteq.brokers.base import Broker, Mailbox
from liteq.brokers.values import Record
from liteq.callers import outside
from liteq.exceptions import LiteqWarning, StoreLost, TimeoutError, UnknownTaskId
from liteq.loggers import get_logger
from liteq.message import EXPIRES_AT, QUEUE, TASK
from liteq.offload import off_loop, running_loop
from liteq.whereabouts import obstacles, standing

if TYPE_CHECKING:
    import asyncio

__all__ = ["SLICE", "asettled", "has_ended", "settled"]

logger = get_logger("liteq.result")

FIRST_LOOK: Final = 0.05  # seconds until an unknown id is noticed
WORKER_MISSING_AFTER: Final = 2.0  # seconds until a queue without a worker is reported
LONG_ENOUGH: Final = 1.0  # seconds; of a wait that is worth saying why it was in vain
SLICE: Final = 500  # ids that the store is asked about at a time
_NAMED: Final = 3  # ids that an error names
_SPARE: Final = 8  # mailboxes kept open for the next waiters
_POLL_START: Final = 0.005  # seconds; without wake-ups, looks start at this pace


def has_ended(record: Record, now: float) -> bool:
    """Return whether nothing will happen to this message any more: it is final, or it
    has expired before its start and is only still to be marked so. `now`: `Broker.now()`."""
    if record.final:
        return True
    expires = record.packed[EXPIRES_AT]
    return expires is not None and expires <= now and record.state != "running"


def settled(
    broker: Broker,
    ids: Iterable[str],
    *,
    timeout: float | None = None,
    since: float | None = None,
    losses: int | None = None,
    interval: float | None = None,
    on_look: Callable[[], Any] | None = None,
    on_change: Callable[[Record], Any] | None = None,
) -> Iterator[Record]:
    """Yield the record of each message as it ends, in the order in which they do.

    Raises `TimeoutError` after `timeout` seconds (0: looks once), counted from `since`, a
    time of `time.monotonic()`, where this wait is a part of another; `StoreLost` if one is
    not in the store, and that is another than at the send, when it had `losses` (see
    `Broker.losses`; default: than now); and `UnknownTaskId` if one is not in the store for
    another reason and there is no timeout. `on_look` is called at each look
    that finds nothing, `on_change` with each record that is another than at the last look,
    the last one included; `interval` shortens the pauses between looks.
    """
    wait = _Wait(broker, ids, timeout, since, losses, interval, on_change)
    post = _post(broker)
    mailbox = post.borrow(broker)
    try:
        found = _watch(broker, wait, mailbox)
        while True:
            yield from wait.arrived(found)
            if not wait.missing:
                return
            pause = wait.pause(mailbox)
            if pause is None:
                raise wait.too_long(obstacles(broker, wait.blocked()))
            woken = mailbox.wait(pause)
            if woken and not wait.concerns(woken):
                found = {}
                continue
            found = _look(broker, wait, mailbox, woken)
            if on_look is not None and not found:
                on_look()
    finally:
        post.give_back(mailbox)


async def asettled(
    broker: Broker,
    ids: Iterable[str],
    *,
    timeout: float | None = None,  # noqa: ASYNC109 (what it means is said below)
    since: float | None = None,
    losses: int | None = None,
    on_look: Callable[[], Any] | None = None,
) -> AsyncIterator[Record]:
    """Yield records like `settled()`, on the running event loop, without a thread of its
    own. (`on_look` is called off the loop.)"""
    wait = _Wait(broker, ids, timeout, since, losses, None, None)
    post = await _loop_post(broker)
    with post.registered(wait.missing) as bell:
        found = await _awatch(broker, wait.missing, post.mailbox)
        while True:
            for record in wait.arrived(found):
                yield record
            if not wait.missing:
                return
            pause = wait.pause(post.mailbox)
            if pause is None:
                blocked = wait.blocked()
                found_out = await off_loop(obstacles, broker, blocked) if blocked else {}
                raise wait.too_long(found_out)
            woken = await bell.wait(pause)
            found = await _alook(broker, wait, post.mailbox, woken)
            if on_look is not None and not found:
                await off_loop(on_look)


def _seconds(timeout: Any) -> float:
    try:
        seconds = float(timeout)
    except (TypeError, ValueError):
        raise TypeError(f"timeout must be a number of seconds, not {timeout!r}") from None
    if seconds != seconds:  # NaN: no time would ever be past it
        raise ValueError(f"timeout must be a number of seconds, not {timeout!r}")
    return seconds


class _Wait:
    """What one waiter still waits for, and until when."""

    def __init__(
        self,
        broker: Broker,
        ids: Iterable[str],
        timeout: float | None,
        since: float | None,
        losses: int | None,
        interval: float | None,
        on_change: Callable[[Record], Any] | None,
    ) -> None:
        self.broker = broker
        self.missing = dict.fromkeys(ids)
        self.timeout = None if timeout is None else _seconds(timeout)
        self.start = time.monotonic() if since is None else since
        self.losses = broker.losses if losses is None else losses
        self.interval = interval
        self.looks = 0
        self.warned = False
        self.expiry: float | None = None  # when the next of them expires, Unix seconds
        self.on_change = on_change
        self._told: dict[str, tuple[Any, ...]] = {}  # by id, of what on_change was told
        self._last: dict[str, Record | None] = {}  # by id, of those that errors name

    def tell(self, records: Mapping[str, Record]) -> Mapping[str, Record]:
        """Tell `on_change` which of these are not what they were; return them all."""
        if self.on_change is not None:
            for id, record in records.items():
                now = (record.state, record.note)
                if self._told.get(id) != now:
                    self._told[id] = now
                    self.on_change(record)
        return records

    def arrived(self, found: Mapping[str, Record]) -> Iterator[Record]:
        for id, record in found.items():
            if id in self.missing:
                del self.missing[id]
                yield record

    def concerns(self, woken: set[str]) -> bool:
        return "" in woken or not self.missing.keys().isdisjoint(woken)

    def pause(self, mailbox: Mailbox) -> float | None:
        """Return how long to wait for a wake-up; None: it was long enough."""
        pause = self._pace(mailbox)
        if self.timeout is not None:
            left = self.start + self.timeout - time.monotonic()
            if left <= 0 and self.looks:
                return None
            pause = min(pause, max(left, 0.0))
        if self.expiry is not None:
            pause = min(pause, max(self.expiry - self.broker.now(), 0.0) + 0.001)
        return pause

    def _pace(self, mailbox: Mailbox) -> float:
        limit = mailbox.poll_interval
        if self.interval:
            limit = min(limit, self.interval)
        if mailbox.fileno() < 0:  # no wake-ups: look often at first
            return min(limit, _POLL_START * 1.5 ** min(self.looks, 20))
        return limit if self.looks else min(limit, FIRST_LOOK)

    def seen(self, records: Mapping[str, Record]) -> None:
        """Learn from a look that found these: unknown ids, times of expiry."""
        self.looks += 1
        unknown = [id for id in self.missing if id not in records]
        if unknown and self.losses < self.broker.losses:
            raise StoreLost(
                f"{unknown[0]} was lost with the store that it was sent to: the server was "
                "emptied or restarted without its data, or the file was replaced; whether it "
                "has run is unknown"
            )
        if unknown and self.timeout is None:
            raise UnknownTaskId(
                f"no task {unknown[0]} is in the store: it was never sent, or its result "
                "has expired, was forgotten or is ignored; waiting for it would never end"
            )
        self._last = {id: records.get(id) for id in self._first_missing()}
        times = [r.packed[EXPIRES_AT] for r in records.values() if r.state != "running"]
        self.expiry = min((t for t in times if t is not None), default=None)

    def is_long(self) -> bool:
        """Tell, once, whether it is time to ask for a worker."""
        if self.warned or time.monotonic() - self.start <= WORKER_MISSING_AFTER:
            return False
        self.warned = True
        return True

    def _first_missing(self) -> tuple[str, ...]:
        return tuple(islice(self.missing, _NAMED))

    def blocked(self) -> list[Record | None]:
        """Return the records of which it is worth asking what is in their way: who waits for
        less than a second asks again and again."""
        return list(self._last.values()) if (self.timeout or 0.0) >= LONG_ENOUGH else []

    def too_long(self, in_the_way: Mapping[str, str]) -> TimeoutError:
        """Return the error that names the first of what is waited for, each with what the
        last look found."""
        now = self.broker.clock.now()
        said = []
        for id in self._first_missing():
            if id in self._last:
                said.append(f"{id} ({standing(self._last[id], now, in_the_way)})")
            else:  # what was before it in line has ended since
                said.append(id)
        more = len(self.missing) - _NAMED
        listed = ", ".join(said) + (f" and {more} more" if more > 0 else "")
        return TimeoutError(f"not ready after {self.timeout:g} s: {listed}")


def _look(broker: Broker, wait: _Wait, mailbox: Mailbox, woken: set[str]) -> dict[str, Record]:
    """Return those that have ended.

    Woken by their ids, look at these alone: of ten thousand that are waited for, each is
    to be read once. After an idle pause the watch is renewed too: a message may have been
    enqueued since, or the wake-up may have been lost. And a store that is gone would stay
    silent for ever: then this raises `StoreLost`.
    """
    if woken and "" not in woken:
        wait.looks += 1
        return _ended(broker, wait.tell(broker.get(tuple(wait.missing.keys() & woken))))
    if not woken:
        broker.check()
    found = _watch(broker, wait, mailbox) if not woken and wait.looks else {}
    records: dict[str, Record] = {}
    for ids in _slices(wait.missing):
        records.update(wait.tell(broker.get(ids)))
    wait.seen({**records, **found})
    if wait.is_long():
        _warn(broker, records)
    return {**_ended(broker, records), **found}


async def _alook(
    broker: Broker, wait: _Wait, mailbox: Mailbox, woken: set[str]
) -> dict[str, Record]:
    """Look as `_look()` does. What is rare, and no part of a wait that is woken in time,
    goes off the loop whatever the store."""
    if woken and "" not in woken:
        wait.looks += 1
        return _ended(broker, await broker.aget(tuple(wait.missing.keys() & woken)))
    found: dict[str, Record] = {}
    if not woken:
        await off_loop(broker.check)
        await off_loop(mailbox.mend)
        if wait.looks:
            found = await _awatch(broker, wait.missing, mailbox)
    records: dict[str, Record] = {}
    for ids in _slices(wait.missing):
        records.update(await broker.aget(ids))
    wait.seen({**records, **found})
    if wait.is_long():
        await off_loop(_warn, broker, records)
    return {**_ended(broker, records), **found}


def _ended(broker: Broker, records: Mapping[str, Record]) -> dict[str, Record]:
    now = broker.now()
    return {id: record for id, record in records.items() if has_ended(record, now)}


def _watch(broker: Broker, wait: _Wait, mailbox: Mailbox) -> dict[str, Record]:
    """Watch in slices: the store writes each in one step, in which nothing else can."""
    found: dict[str, Record] = {}
    notes = wait.on_change is not None
    for some in _slices(wait.missing):
        found.update(wait.tell(broker.watch(some, mailbox, notes=notes)))
    return found


async def _awatch(broker: Broker, ids: Iterable[str], mailbox: Mailbox) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for some in _slices(ids):
        found.update(await broker.awatch(some, mailbox))
    return found


def _slices(ids: Iterable[str]) -> Iterator[tuple[str, ...]]:
    left = iter(tuple(ids))
    while some := tuple(islice(left, SLICE)):
        yield some


def _warn(broker: Broker, records: Mapping[str, Record]) -> None:
    """Say, once for each, what keeps these from running: nobody consumes their queue, or
    nobody knows their task."""
    reported = _post(broker).reported
    queues = {str(r.packed[QUEUE]) for r in records.values() if r.state != "running"}
    for worker in broker.workers():
        queues.difference_update(worker.queues)
    unknown = {str(r.packed[TASK]) for r in records.values() if r.state == "parked"}
    place = broker.place
    store = place or "in this process"
    if queues := queues - {name for kind, name in reported if kind == "queue"}:
        names = sorted(queues)
        start = f"liteq worker -Q {','.join(names)}" if place else "with app.worker(): …"
        _say(
            f"no worker consumes queue {', '.join(map(repr, names))} of the store {store}, "
            f"so the result may take long; start one with: {start}"
        )
    if unknown := unknown - {name for kind, name in reported if kind == "task"}:
        _say(
            f"the workers of the store {store} know no task "
            f"{', '.join(map(repr, sorted(unknown)))}: the call waits for one that does. "
            "Check the name, and that the worker imports its module. A worker knows what was "
            "defined when it started."
        )
    reported.update(("queue", name) for name in queues)
    reported.update(("task", name) for name in unknown)


def _say(text: str) -> None:
    logger.warning("%s", text)
    if not logging.getLogger().handlers:  # nobody reads the log of a program that hangs
        warnings.warn(text, LiteqWarning, stacklevel=outside())


class _Post:
    """The mailboxes of one broker in this process that nobody waits at now."""

    def __init__(self, broker: Broker) -> None:
        self._pid = os.getpid()
        self._spare: list[Mailbox] = []  # append and pop are atomic among threads
        self.reported: set[tuple[str, str]] = set()  # queues and tasks, warned about
        # At the latest with the broker or the process: an address left behind is a file
        # for ever.
        finalize(broker, _close_own, self._spare, self._pid)

    def borrow(self, broker: Broker) -> Mailbox:
        try:
            mailbox = self._spare.pop()
        except IndexError:
            return broker.mailbox()
        mailbox.receive()  # what was for an earlier waiter
        return mailbox

    def give_back(self, mailbox: Mailbox) -> None:
        if self._pid != os.getpid():
            return  # forked while waiting: the address is the parent's, who closes it
        if len(self._spare) < _SPARE:
            self._spare.append(mailbox)
        else:
            mailbox.close()

    def close(self) -> None:
        """Close the mailboxes that nobody waits at; later waiters open others."""
        while self._pid == os.getpid() and self._spare:
            with suppress(IndexError):  # another thread has borrowed the last one
                self._spare.pop().close()


class _LoopPost:
    """The one mailbox at which all waiters of an event loop are woken."""

    def __init__(self, mailbox: Mailbox, loop: asyncio.AbstractEventLoop) -> None:
        self.mailbox = mailbox
        self._bells: dict[str, set[_Bell]] = {}
        if self.mailbox.fileno() >= 0:
            loop.add_reader(self.mailbox.fileno(), self._receive)
        finalize(loop, _close_own, [self.mailbox], os.getpid())

    @contextmanager
    def registered(self, ids: Iterable[str]) -> Iterator[_Bell]:
        """Ring the bell that this yields whenever one of these ids is told of."""
        bell, ids = _Bell(), tuple(ids)
        for id in ids:
            self._bells.setdefault(id, set()).add(bell)
        try:
            yield bell
        finally:
            for id in ids:
                self._bells[id].discard(bell)
                if not self._bells[id]:
                    del self._bells[id]

    def _receive(self) -> None:
        woken = self.mailbox.receive()
        if "" in woken:
            for bell in {bell for bells in self._bells.values() for bell in bells}:
                bell.ring("")
        for id in self._bells.keys() & woken:
            for bell in self._bells[id]:
                bell.ring(id)


def _close_own(mailboxes: Iterable[Mailbox], pid: int) -> None:
    if pid == os.getpid():  # a forked child must not close its parent's address
        for mailbox in mailboxes:
            mailbox.close()


class _Bell:
    """What one coroutine waits for. Rung while nobody listens, it stays rung."""

    def __init__(self) -> None:
        self._rung: set[str] = set()
        self._listener: asyncio.Future[None] | None = None

    def ring(self, id: str) -> None:
        """Ring for the message of this id; "": for any."""
        self._rung.add(id)
        if self._listener is not None and not self._listener.done():
            self._listener.set_result(None)

    async def wait(self, seconds: float) -> set[str]:
        """Wait until it rings or for so many seconds; return for which ids it rang."""
        import asyncio  # late: whoever awaits this has it

        if not self._rung:
            loop = asyncio.get_running_loop()
            self._listener = loop.create_future()
            timer = loop.call_later(seconds, self._end, self._listener)
            try:
                await self._listener
            finally:
                timer.cancel()
                self._listener = None
        rung, self._rung = self._rung, set()
        return rung

    @staticmethod
    def _end(listener: asyncio.Future[None]) -> None:
        if not listener.done():
            listener.set_result(None)


_posts: WeakKeyDictionary[Broker, _Post] = WeakKeyDictionary()
_loop_posts: WeakKeyDictionary[Any, WeakKeyDictionary[Broker, _LoopPost]]
_loop_posts = WeakKeyDictionary()
_turns: dict[tuple[asyncio.AbstractEventLoop, Broker], _Turn] = {}
_lock = threading.Lock()  # two threads must not make two posts for one broker


def _post(broker: Broker) -> _Post:
    found = _posts.get(broker)
    if found is None:
        with _lock:
            found = _posts.setdefault(broker, _Post(broker))
    return found


def close(broker: Broker) -> None:
    """Close what is kept open for waiters at a broker; it may be used again."""
    if (post := _posts.get(broker)) is not None:
        post.close()


async def _loop_post(broker: Broker) -> _LoopPost:
    import asyncio  # late: whoever awaits this has it

    loop = running_loop()
    with _lock:
        posts = _loop_posts.setdefault(loop, WeakKeyDictionary())
    if (found := posts.get(broker)) is not None:
        return found
    # One after the other: a thousand that begin to wait at once are to open one mailbox. The
    # lock knows its loop, which nothing may hold any longer than somebody waits here.
    turn = _turns.setdefault((loop, broker), _Turn(asyncio.Lock()))
    turn.users += 1
    try:
        async with turn.lock:
            if (found := posts.get(broker)) is None:
                found = posts[broker] = _LoopPost(await _Opening(broker).mailbox(), loop)
        return found
    finally:
        turn.users -= 1
        if not turn.users:
            _turns.pop((loop, broker), None)


class _Turn:
    """Who of an event loop opens its mailbox, and how many want it."""

    def __init__(self, lock: asyncio.Lock) -> None:
        self.lock = lock
        self.users = 0


class _Opening:
    """A mailbox that is opened off the loop, for it may have to connect. Who is cancelled
    meanwhile leaves none behind: its address would be a file for ever."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._lock = threading.Lock()  # the thread that opens it, and the loop that gives up
        self._opened: Mailbox | None = None
        self._is_wanted = True

    async def mailbox(self) -> Mailbox:
        try:
            return await off_loop(self._open)
        except BaseException:
            with self._lock:
                self._is_wanted = False
            if self._opened is not None:
                self._opened.close()
            raise

    def _open(self) -> Mailbox:
        opened = self._broker.mailbox()
        with self._lock:
            if self._is_wanted:
                self._opened = opened
                return opened
        opened.close()
        return opened


def _forget() -> None:
    """In a forked child: the addresses are the parent's, whose waiters use them still."""
    global _lock
    _lock = threading.Lock()
    _posts.clear()
    _loop_posts.clear()
    _turns.clear()


os.register_at_fork(after_in_child=_forget)
