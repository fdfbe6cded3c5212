"""The beat as a process has it: the loop around what decides which tasks are due.

It ticks, and sleeps until the next instant, a change of the entries, or the word to stop. A
store that cannot be reached is waited for; one that is gone or damaged ends it. What fires
the entries is a `liteq.firing.Beat`, or a scheduler class of the user's.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from liteq import djangoproject, signals
from liteq.brokers.base import Mailbox
from liteq.custom import Custom, PersistentScheduler, ScheduleEntry, Scheduler, find_scheduler
from liteq.entries import BeatLazyFunc
from liteq.exceptions import (
    BrokerError,
    BrokerUnavailable,
    QueueFull,
    SchedulingError,
    SchemaError,
    StoreForbidden,
)
from liteq.firing import Beat
from liteq.garbage import Collector
from liteq.loggers import get_logger
from liteq.outage import Outage
from liteq.selfpipe import SelfPipe
from liteq.unixsignals import Handler, handling

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.systemd import Notifier

__all__ = [
    "EXIT_SCHEMA",
    "EXIT_STORE",
    "Beat",
    "BeatLazyFunc",
    "PersistentScheduler",
    "ScheduleEntry",
    "Scheduler",
    "SchedulingError",
    "Service",
]

logger = get_logger("liteq.beat")

EXIT_STORE: Final = 6  # the store is gone or damaged
EXIT_SCHEMA: Final = 8  # another liteq has made it too new for this one

_LONGEST_SLEEP: Final = 86_400.0  # seconds: epoll overflows after 24 days
_LONGEST_PAUSE: Final = 4.0  # seconds between two tries to reach the store


class Engine(Protocol):
    """What decides, for a `Service`, which tasks are due."""

    def start(self) -> None: ...
    def tick(self) -> float: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...


class Service:
    """A beat that runs until it is stopped: the loop around an `Engine`.

    `scheduler`: a scheduler class, or its name, in place of liteq's own (None: the
    setting). `embedded`: it is a part of a worker. `install_signals` must be False outside of
    the main thread. `life`: it stops when the other end of this is closed. `on_ready` is
    called when the first tick is over.
    """

    def __init__(
        self,
        app: Liteq,
        *,
        max_interval: float | None = None,
        scheduler: Any = None,
        embedded: bool = False,
        install_signals: bool = True,
        life: socket.socket | None = None,
        notify: Notifier | None = None,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self.app = app
        self.embedded = embedded
        self.life = life
        self.install_signals = install_signals
        self.notify = notify
        self.on_ready = on_ready
        # One that answers signals, or hangs on a socket, has a process to itself.
        self._garbage = Collector() if install_signals or life is not None else None
        self._wants_stop = False
        self._outage = Outage(logger, longest=_LONGEST_PAUSE)
        self._started = False
        self._is_ready = False
        kind = find_scheduler(app, scheduler or app.conf.beat_scheduler)
        self.engine: Engine
        if kind is None:
            self.engine = Beat(app, max_interval=max_interval)
        else:
            self.engine = Custom(app, kind, max_interval=max_interval)
        self._pipe: SelfPipe | None = None  # until it runs
        self._selector: selectors.BaseSelector
        self._mailbox: Mailbox | None = None  # until the store can be reached

    def run(self) -> int:
        """Run until stopped; return the process's exit code: 0 after a stop that was asked
        for, `EXIT_STORE` if the store is gone or damaged, `EXIT_SCHEMA` if it has become
        too new. May be called once.
        """
        with contextlib.ExitStack() as stack:
            pipe = self._pipe = SelfPipe()
            stack.callback(pipe.close)
            if self.install_signals:
                stack.enter_context(handling(self._handlers(), pipe=pipe))
            selector = stack.enter_context(selectors.DefaultSelector())
            selector.register(pipe, selectors.EVENT_READ)
            if self.life is not None:
                selector.register(self.life, selectors.EVENT_READ)
            self._selector = selector
            stack.callback(self._close_mailbox)
            init = signals.beat_embedded_init if self.embedded else signals.beat_init
            init.send(sender=self)
            stack.callback(self._close)
            if self._garbage is not None and self.life is None:  # else it froze at its fork
                self._garbage.begin()
            try:
                while not self._is_told_to_stop():
                    wait = self._tick()
                    if self._garbage is not None:
                        self._garbage.collect_if_due()
                    mailbox = self._mailbox
                    polls = mailbox is not None and mailbox.fileno() < 0
                    if mailbox is not None and polls:
                        wait = min(wait, mailbox.poll_interval)
                    wait = min(wait, _LONGEST_SLEEP)
                    if self.notify is not None:
                        self.notify.catch_up(selector)
                    ready = selector.select(0 if self._is_told_to_stop() else wait)
                    if any(key.fileobj is self.life for key, _ in ready):
                        break
                    pipe.drain()
                    if mailbox is not None and (mailbox.receive() or polls):
                        self.engine.wake()
            except BrokerError as exc:  # trying again will not help: deleted, damaged
                logger.critical("the beat stops: %s", exc)
                return EXIT_SCHEMA if isinstance(exc, SchemaError) else EXIT_STORE
        return 0

    def stop(self) -> None:
        """Stop, from any thread or signal handler."""
        self._wants_stop = True
        if self._pipe is not None:
            self._pipe.wake()

    def _is_told_to_stop(self) -> bool:
        return self._wants_stop

    def _tick(self) -> float:
        """Tick, and return how long to sleep; longer and longer while there is no store."""
        try:
            if self._mailbox is None:
                self._open_mailbox()  # before it looks: what changes after that wakes it
            if not self._started:
                self.engine.start()
                self._started = True
            with djangoproject.fresh_connections():  # for a schedule's own code
                wait = self.engine.tick()
        except (BrokerUnavailable, QueueFull) as exc:
            if isinstance(exc, StoreForbidden) and not self._started:  # no wait changes that
                raise
            if self._mailbox is not None and self._mailbox.fileno() < 0:
                self._close_mailbox()  # another may do without polling, once there is a disk
                self._mailbox = None
            pause = self._outage.meet(exc)
            if self.notify is not None and not self._is_ready:
                self.notify.waiting(str(exc), pause + self.app.broker.longest_call)
            return pause
        self._outage.end()
        if not self._is_ready:
            self._is_ready = True
            self._say_ready()
        return wait

    def _say_ready(self) -> None:
        if self.notify is not None:
            self.notify.ready()
            self.notify.status("firing periodic entries")
        if self.on_ready is not None:
            self.on_ready()

    def _open_mailbox(self) -> None:
        self._mailbox = self.app.broker.mailbox(beat=True)
        if self._mailbox.fileno() >= 0:
            self._selector.register(self._mailbox.fileno(), selectors.EVENT_READ)

    def _close_mailbox(self) -> None:
        if self._mailbox is not None:
            self._mailbox.close()

    def _close(self) -> None:
        try:
            self.engine.close()
        except BrokerError as exc:
            logger.error("could not sign off: %s", exc)  # noqa: TRY400 (the cause is said)

    def _handlers(self) -> dict[int, Handler]:
        """Return what TERM, INT, QUIT and HUP do: they stop it."""
        numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # else as `nohup` wants it
            numbers.append(signal.SIGHUP)
        return dict.fromkeys(numbers, self._on_signal)

    def _on_signal(self, _number: int, _frame: Any) -> None:
        self._wants_stop = True
