"""The worker: claim → hand out → settle, in one loop of one thread.

1. The pool's events become settlements and notes (`_take_events`).
2. One transaction settles them and claims what the pool has room for (`_step`).
3. The leases go to the pool as bytes; the loop sleeps until a child answers, a wake-up
   comes, a delayed message is due, or the heartbeat is.

The store's connection is this loop's own; the children of a prefork pool never see it.
When the store cannot be reached, settlements wait here and are tried again; when the
lease is lost meanwhile, the store refuses them, and `refused` counts it.

In the pool a job has a number of this loop's own. A message's key will not do: a worker
that was given up for dead may be given the same message again while its first run of it
still goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Protocol

from liteq import cpus, failure, signals
from liteq.autoscale import Autoscaler
from liteq.brokers.base import HELLO, MAIL, ORDERS, Broker, Lease, Mailbox, Note, Step
from liteq.exceptions import (
    BrokerError,
    BrokerUnavailable,
    ImproperlyConfigured,
    QueueFull,
    TimeLimitExceeded,
)
from liteq.executor import ExecutorSettings, TaskLike
from liteq.limits import limits_by_task
from liteq.notices import Notices
from liteq.outcome import Failed, Lost, Outcome, Released, Revoked, Succeeded
from liteq.plan import is_async
from liteq.pool import (
    Broken,
    Done,
    Event,
    Job,
    LostJob,
    Pool,
    PoolOptions,
    Ready,
    Reported,
    Returned,
    make_pool,
)
from liteq.runner import RunnerFactory, job, read_answer, read_report
from liteq.shares import Shares, split_weights
from liteq.steered import Steered
from liteq.steering import Steering
from liteq.telling import Teller
from liteq.turns import step_in_turns

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.companion import Companion
    from liteq.metrics import Tally
    from liteq.scraping import Endpoint

__all__ = ["EXIT_BROKEN", "EXIT_STORE", "Worker"]

logger = logging.getLogger("liteq.worker")

EXIT_BROKEN: Final = 1  # the pool could not keep children alive
EXIT_STORE: Final = 6  # the store is gone, damaged, or out of reach at the end

_new: Final = tuple.__new__  # a third of what Job(...) costs, for each message
_UPKEEP: Final = 2.0  # seconds between two slices of upkeep when there is nothing to do
_BACKSTOP: Final = 1.0  # seconds until a lost wake-up is made good
_LONGEST_PAUSE: Final = 5.0  # seconds between two tries to reach the store
_LAST_TRIES: Final = 5.0  # seconds to reach it in, when all else has stopped


class Notifier(Protocol):
    """A service manager that wants to hear how the worker is (see `liteq.systemd`)."""

    watchdog_interval: float | None

    def ready(self) -> None: ...
    def status(self, text: str) -> None: ...
    def watchdog(self) -> None: ...
    def reloading(self) -> None: ...
    def stopping(self) -> None: ...
    def extend_timeout(self, seconds: float) -> None: ...


class Worker(Steered):
    """Runs the tasks of an app until it is told to stop.

    `queues`: names to consume (None: those of `task_queues`, or the default queue), with a
    weight behind a colon if they are to be served in turns ("high:3", "low");
    `exclude_queues` are taken out. `concurrency`: children (None: the setting, or one
    for each CPU that it may use). `autoscale`: the most and the least children, as there is
    work. `pool`: prefork, threads, asyncio or solo. `grace`: seconds that a
    warm stop waits for running tasks before it gives them back. `burst`: stop when
    nothing is claimable. Time limits are seconds, memory is KiB. `install_signals` is to
    be False outside of the main thread. `beat`: fire periodic tasks as well, with this
    `scheduler` in place of liteq's own, if one is named. `metrics`: "[host:]port" to
    serve this worker's figures at. `on_ready` is called when all children are.
    """

    def __init__(
        self,
        app: Liteq,
        *,
        queues: Sequence[str] | None = None,
        exclude_queues: Iterable[str] = (),
        concurrency: int | None = None,
        pool: str | None = None,
        hostname: str | None = None,
        burst: bool = False,
        grace: float | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        max_tasks_per_child: int | None = None,
        max_memory_per_child: int | None = None,
        include: Iterable[str] = (),
        notify: Notifier | None = None,
        on_ready: Callable[[], None] | None = None,
        install_signals: bool = True,
        beat: bool = False,
        scheduler: Any = None,
        metrics: str | None = None,
        autoscale: tuple[int, int] | None = None,
    ) -> None:
        conf = app.conf
        self.app = app
        self.include = tuple(include)
        names, weights = _weights(queues)
        self.queues = _queues(app, names, exclude_queues)
        self._shares = Shares(weights) if weights else None
        self._ageing: float | None = app.conf.worker_priority_ageing or None
        self.pool_kind = pool or conf.worker_pool
        self.autoscaler: Autoscaler | None = None
        if autoscale is not None and self.pool_kind != "solo":
            self.autoscaler = Autoscaler(*autoscale, conf.worker_autoscale_keepalive)
            concurrency = autoscale[1]
        wanted = concurrency or conf.worker_concurrency or cpus.available()
        self.concurrency = 1 if self.pool_kind == "solo" else wanted
        self.hostname = _node_name(hostname)
        self.burst = burst
        self.grace = conf.worker_shutdown_timeout if grace is None else grace
        self.time_limit = time_limit or conf.task_time_limit
        self.soft_time_limit = soft_time_limit or conf.task_soft_time_limit
        self.max_tasks_per_child = max_tasks_per_child or conf.worker_max_tasks_per_child
        self.max_memory_per_child = max_memory_per_child or conf.worker_max_memory_per_child
        self.notify = notify
        self.on_ready = on_ready
        self.install_signals = install_signals
        self.beat = beat
        self.scheduler = scheduler
        self.metrics = metrics or conf.worker_metrics_port

        self.id = 0
        self.pid = os.getpid()
        self.started = time.monotonic()
        self.totals: Counter[str] = Counter()  # attempts settled, by task
        self.settled = 0
        self.refused = 0
        self.announced = False  # where the log is, somebody else says that it is ready
        self.unfinished = False  # tasks that were given back run on, in threads
        self.pool: Pool | None = None
        self._broker: Broker = app.broker
        self._mailbox: Mailbox | None = None
        self._peers: list[int] = []
        self._notices = Notices(
            self,
            lambda: app.tasks,
            hostname=self.hostname,
            accept=conf.accept_content,
            signer=app.signer,
        )
        self._steering = Steering(self)
        self._teller = Teller(app, self.hostname)
        self._jobs = 0
        self._leases: dict[int, Lease] = {}  # by the number of the job
        self._settlements: list[tuple[Lease, Outcome]] = []
        self._notes: list[tuple[Lease, Note]] = []
        self._terminating: dict[int, str] = {}  # by number: what was asked for
        self._signals_sent: dict[str, int] = {}  # by id, to those whose end is not settled yet
        self._limits: dict[str, tuple[float | None, float | None]] = {}
        self._tasks: frozenset[str] = frozenset()
        self._overridden: dict[str, tuple[float | None, float | None]] = {}  # time limits
        self._ready = 0
        self._is_ready = False
        self._look = True  # the store may hold something claimable
        self._orders = False  # and word that one of our runs is to be ended
        self._mail = False  # commands wait for us
        self._reclaim_now = False  # a worker of this host may have died
        self._watch_peers = True
        self._given_up = False  # we were, by the others
        self._next_due: float | None = None
        self._next_beat = self._next_upkeep = self._next_look = self._next_watchdog = 0.0
        self._pause = 0.0
        self._try_again = 0.0
        self._ignores_rates: bool = app.conf.worker_disable_rate_limits
        self._wanted_stop = 0  # 1: warm, 2: cold
        self._stop_signal = "SIGTERM"
        self._stopping = 0
        self._deadline: float | None = None  # of the stop's present stage
        self._exit_code = 0
        self._selector: selectors.BaseSelector
        self._wake_read: socket.socket
        self._wake_write: socket.socket | None = None  # until it runs
        self._hang_up = self._dump_wanted = False
        self._has_terminal = os.isatty(0)
        self._keeper: _Keeper | None = None
        self._companion: Companion | None = None
        self._tally: Tally | None = None  # unless metrics are asked for
        self._endpoint: Endpoint | None = None

    # Life

    def run(self) -> int:
        """Run until stopped; return the process's exit code: 0 after a stop that was
        asked for, `EXIT_BROKEN` or `EXIT_STORE`. May be called once."""
        with contextlib.ExitStack() as stack:
            self._open()
            stack.callback(self._close)
            if self.install_signals:
                stack.enter_context(self._signals())
            stack.callback(self._leave)
            self._start()
            try:
                self._loop()
            except BrokerError as exc:  # trying again will not help: deleted, damaged
                logger.critical("stopping: %s", exc)
                self._exit_code = EXIT_STORE
            finally:
                signals.worker_shutdown.send(sender=self)
        logger.info("%s has stopped", self.hostname)
        return self._exit_code

    def stop(self, *, cold: bool = False) -> None:
        """Stop from any thread: finish what runs (warm), or give it back now (cold)."""
        self._wanted_stop = max(self._wanted_stop, 2 if cold else 1)
        self._nudge()

    def _open(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._selector.register(
            self._wake_read, selectors.EVENT_READ, lambda _: self._wake_read.recv(4096)
        )

    def _serve_metrics(self, where: str) -> None:
        from liteq.metrics import Tally, WorkerCollector, exposition  # late: few ask for them
        from liteq.scraping import Endpoint, address_of

        self._tally = Tally()
        collector = WorkerCollector(self, self._tally)
        exposition(collector)  # if what it needs is missing, say so now
        self._endpoint = Endpoint(
            self._selector, address_of(where), lambda: exposition(collector)
        )
        logger.info("metrics at %s", self._endpoint.url)

    def _start(self) -> None:
        signals.celeryd_init.send(
            sender=self.hostname, instance=self, conf=self.app.conf, options={}
        )
        signals.worker_init.send(sender=self)
        for module in self.include:
            __import__(module)
        self.app.finalize()
        self.app.import_default_modules()
        signals.celeryd_after_setup.send(
            sender=self.hostname, instance=self, conf=self.app.conf
        )
        if self.beat:
            self._companion = self._make_companion()
            self._companion.start()  # forked before this process has anything open
        if self.metrics is not None:
            self._serve_metrics(self.metrics)
        self._register()
        # Before the children exist: what a dead worker of this host held starts at once.
        self._reclaim()
        self.pool = self._make_pool()
        if self.pool.kind == "prefork":
            # Every connection is closed for the fork anyway; doing it here keeps the
            # children from being forked with the store's pages in memory.
            self._broker.close()
        self.pool.start(self._selector)
        self._warn_of_limits(self.pool)

    def _make_companion(self) -> Companion:
        from liteq.companion import Companion  # late: for `-B` alone

        forks = self.app.conf.worker_pool_start_method in (None, "", "fork")
        return Companion(
            self.app,
            process=self._has_processes() and forks,
            forget=self._forget_all,
            scheduler=self.scheduler,
        )

    def _make_pool(self) -> Pool:
        if self._has_processes() and self._broker_in_memory():
            raise ImproperlyConfigured(
                "a store in memory cannot be shared with child processes: use "
                "pool='threads', or an sqlite:// broker"
            )
        if self.pool_kind == "solo":
            self._keeper = _Keeper(self, self._broker, self._beat_interval())
        conf = self.app.conf
        options = PoolOptions(
            concurrency=self.concurrency,
            max_lookahead=conf.worker_max_lookahead,
            max_tasks_per_child=self.max_tasks_per_child,
            max_memory_per_child=self.max_memory_per_child,
            start_method=conf.worker_pool_start_method or "fork",
            at_fork=self._forget_wake_up,
        )
        return make_pool(self.pool_kind, self._runners(options.start_method), options)

    def _runners(self, start_method: str) -> RunnerFactory:
        conf = self.app.conf
        settings = ExecutorSettings(
            accept=tuple(conf.accept_content),
            result_serializer=conf.result_serializer,
            max_result_size=conf.task_max_body_size,
            hostname=self.hostname,
            clock=self.app.clock,
            signer=self.app.signer,
            max_body_size=conf.task_max_body_size,
            redactor=self.app.redactor,
        )
        own_process = self._has_processes()
        if own_process and start_method != "fork":
            logs = bool(logging.getLogger().handlers)
            like = (self.app.reference(), conf.overrides(), self.include, logs)
            return RunnerFactory(_load_tasks, like, settings, own_process)
        return RunnerFactory(lambda: self.app.tasks, (), settings, own_process)

    def _has_processes(self) -> bool:
        return self.pool_kind in ("prefork", "processes")

    def _broker_in_memory(self) -> bool:
        return getattr(self._broker, "folder", True) is None

    def _warn_of_limits(self, pool: Pool) -> None:
        """Say at the start which time limits this pool will not keep."""
        soft, hard = [], []
        for name, task in self.app.tasks.items():
            limits = self._limits_of(name)
            killable = pool.can_hard and (pool.kind != "asyncio" or is_async(task.run))
            if limits[0] is not None and not pool.can_soft:
                soft.append(name)
            if limits[1] is not None and not killable:
                hard.append(name)
        for kind, limited in (("soft", soft), ("hard", hard)):
            if limited:
                logger.warning(
                    "the %s pool cannot enforce the %s time limit of: %s. The prefork pool can",
                    pool.kind,
                    kind,
                    ", ".join(sorted(limited)),
                )

    def _register(self) -> None:
        # Before the first claim: what is declared holds for what has been waiting.
        self._broker.declare_limits(limits_by_task(self.app.tasks))
        self.id = self._broker.register(
            self.hostname,
            self.queues,
            self.concurrency,
            self._details(),
        )
        self._mail = True  # what came before there was a mailbox to hear it by
        if self._mailbox is not None:
            self._close_mailbox()
        self._mailbox = self._broker.mailbox(self.id)
        if self._mailbox.fileno() >= 0:
            self._selector.register(
                self._mailbox.fileno(), selectors.EVENT_READ, self._on_wake_up
            )
        self._next_beat = time.monotonic() + self._beat_interval()

    def _leave(self) -> None:
        """Sign off, with no child left and whatever was unfinished given back.

        After a proper stop there is nothing of the kind. After an error there may be:
        children are killed, since what they do now would be done a second time.
        """
        if self.pool is not None and self.pool.alive():
            self.pool.stop(kill=True)
            self._take_events(self.pool.take())
        if not self.id or self._exit_code == EXIT_STORE:
            return
        try:
            if self._settlements:
                self._broker.step(self.id, settlements=self._settlements)
            if self._teller.heard:
                self._teller.offline(active=0, processed=self.totals.total())
                self._teller.flush(self._broker)
            self._broker.unregister(self.id)
        except BrokerError as exc:
            logger.error("could not sign off: %s", exc)  # noqa: TRY400 (the cause is said)

    def _close(self) -> None:
        if self._keeper is not None:
            self._keeper.stop()
        if self._companion is not None:
            self._companion.join()
        for fd in self._peers:
            os.close(fd)
        if self._endpoint is not None:
            self._endpoint.close()
        if self._mailbox is not None:
            self._close_mailbox()
        self._selector.close()
        self._wake_read.close()
        self._forget_wake_up()

    def _close_mailbox(self) -> None:
        mailbox = self._mailbox
        if mailbox is not None:
            if mailbox.fileno() >= 0:
                self._selector.unregister(mailbox.fileno())
            mailbox.close()
            self._mailbox = None

    # The loop

    def _loop(self) -> None:
        pool = self.pool
        assert pool is not None
        while True:
            if self._wanted_stop > self._stopping:
                self._begin_stop(pool)
            self._take_events(pool.take())
            self._step(pool)
            if self._teller.heard:
                self._tell(pool)
            if self._is_over(pool):
                break
            timeout = self._timeout(pool)
            for key, mask in self._selector.select(timeout):
                key.data(mask)
            self._keep_house(time.monotonic())

    def _step(self, pool: Pool) -> None:
        """Settle what has ended and claim what there is room for, in one transaction.

        It also brings the orders to end a run, so it is made for them alone, too: when
        every child is busy, and during a warm stop.
        """
        limit = 0
        # What is settled may be what others wait for: they are claimed in the same step.
        if (self._look or self._settlements) and not self._stopping and self._ready:
            limit = pool.capacity()
        asking = self._orders and (self._leases or self._teller.heard)
        if not (limit or self._settlements or self._notes or asking):
            return
        now = time.monotonic()
        if now < self._try_again:
            return
        settlements, notes = self._settlements, self._notes
        try:
            step = self._ask(settlements, notes, limit)
        except (BrokerUnavailable, QueueFull) as exc:
            self._postpone(exc, now)
            return
        self._settlements, self._notes = [], []
        self._pause = self._try_again = 0.0
        self._orders = False
        self._mail = self._mail or step.mail
        if step.heard or self._teller.heard:
            self._teller.learn(heard=step.heard)
        self._count(settlements, step)
        if self._tally is not None:
            self._tally.settled(settlements, step.accepted, self._broker.max_deliveries)
            self._tally.claimed(step.leases, self._broker.clock.now())
        self._next_due = step.next_due
        if limit:
            self._look = len(step.leases) >= limit
        if step.leases:
            self._hand_out(pool, step.leases)
        for lease, why in step.aside:
            if self._tally is not None and why == "expired":
                self._tally.expired(lease)
            (self._notices.parked if why == "parked" else self._notices.expired)(lease)
            if why == "expired" and self._teller.heard:
                self._teller.revoked(lease.id, terminated=False, signum=None, expired=True)
        if step.terminate:
            self._terminate(pool, step.terminate)
        if not step.alive:
            self._given_up = True

    def _ask(
        self,
        settlements: Sequence[tuple[Lease, Outcome]],
        notes: Sequence[tuple[Lease, Note]],
        limit: int,
    ) -> Step:
        ask = partial(
            self._broker.step,
            self.id,
            tasks=self._known_tasks() if limit else None,
            ignore_rates=self._ignores_rates,
        )
        if self._shares is None or not limit:
            return ask(settlements=settlements, notes=notes, queues=self.queues, limit=limit)
        return step_in_turns(
            ask,
            self._shares,
            settlements=settlements,
            notes=notes,
            queues=self.queues,
            limit=limit,
        )

    def _hand_out(self, pool: Pool, leases: Sequence[Lease]) -> None:
        number = self._jobs
        heard = bool(signals.task_received.receivers)
        told = self._teller.heard
        for lease in leases:
            number += 1
            self._leases[number] = lease
            if heard:
                self._notices.received(lease)
            if told:
                self._teller.received(lease)
            pool.submit(_new(Job, (number, job(lease), *self._limits_for(lease))))
        self._jobs = number

    def _take_events(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Done(key, payload):
                    self._settle(key, read_answer(payload))
                case Reported(key, payload):
                    lease = self._leases.get(key)
                    if lease is not None:
                        self._notes.append((lease, read_report(payload)))
                case Returned(key):
                    self._settle(key, Released())
                    self._look = True
                case LostJob():
                    self._settle(event.key, self._explain(event))
                case Ready():
                    self._child_ready()
                case Broken(reason):
                    logger.critical("stopping: %s", reason)
                    self._exit_code = EXIT_BROKEN
                    self._wanted_stop = max(self._wanted_stop, 1)

    def _settle(self, key: int, outcome: Outcome) -> None:
        lease = self._leases.pop(key)
        if self._terminating:
            self._terminating.pop(key, None)
        self._settlements.append((lease, outcome))
        if type(outcome) is not Succeeded:
            self._notice(lease, outcome)

    def _notice(self, lease: Lease, outcome: Outcome) -> None:
        """Say what the child that ended the attempt has not said."""
        match outcome:
            case Failed(dead=str(reason)):
                self._notices.undecodable(lease, reason)
            case Revoked("expired"):
                self._notices.expired(lease)

    def _explain(self, event: LostJob) -> Outcome:
        """Return the outcome of an attempt that its process did not live to tell."""
        lease = self._leases[event.key]
        match event.kind:
            case "time_limit":
                limit = self._limits_for(lease)[1] or 0.0
                self._notices.timed_out(lease, limit)
                return Failed(failure.describe(TimeLimitExceeded(limit)), limit)
            case "terminated" if event.key in self._terminating:
                signum = self._signals_sent[lease.id] = _number(self._terminating[event.key])
                self._notices.terminated(lease, signum)
                return Revoked("terminated")
            case "terminated" if lease.packed[10]:
                return Released()
            case "terminated":  # acks_late is off: it may have been started
                reason = "the worker was stopped before the task had ended"
                self._notices.lost(lease, reason, self._broker.max_deliveries)
                return Lost(reason)
            case _:
                self._notices.lost(lease, event.reason, self._broker.max_deliveries)
                return Lost(event.reason)

    def _count(self, settlements: list[tuple[Lease, Outcome]], step: Step) -> None:
        accepted = sum(step.accepted)
        self.settled += accepted
        if settlements:
            self.totals.update(
                [lease.packed[1] for lease, end in settlements if type(end) is not Released]
            )
        if self._teller.heard:
            for (lease, outcome), taken in zip(settlements, step.accepted, strict=True):
                if taken:
                    self._teller.ended(lease, outcome, self._signals_sent.pop(lease.id, None))
        elif self._signals_sent:
            self._signals_sent.clear()
        if accepted == len(settlements):
            return
        for (lease, _), taken in zip(settlements, step.accepted, strict=True):
            if not taken:
                self.refused += 1
                logger.warning(
                    "the outcome of %s[%s] was refused: this worker had lost the lease",
                    lease.task,
                    lease.id,
                )

    def _postpone(self, exc: BrokerError, now: float) -> None:
        """Keep everything and try again later: every call to the store may be repeated."""
        self._pause = min(_LONGEST_PAUSE, max(0.05, self._pause * 2))
        self._try_again = now + self._pause
        logger.error("%s; trying again in %.2g s", exc, self._pause)

    def _come_back(self) -> None:
        """Go on under a new id, having been given up for dead.

        What still runs runs on: its outcomes will be refused, one by one.
        """
        logger.warning("this worker had been given up for dead: it starts over")
        self._register()
        self._given_up = False
        self._look = True

    def _terminate(self, pool: Pool, wanted: Mapping[int, str]) -> None:
        """End the runs of these messages, each with the signal that was asked for."""
        for number, lease in list(self._leases.items()):
            name = wanted.get(lease.key)
            if name is None or self._terminating.get(number) == name:
                continue
            asked, name = name, self._steering.signal_of(name, lease.id)
            if name is None:
                self._terminating[number] = asked  # it is not looked at again
                continue
            self._terminating[number] = asked  # another signal than before is sent as well
            logger.info(
                "ending Task %s[%s], attempt %d, with %s",
                lease.task,
                lease.id,
                lease.delivery,
                name,
            )
            if not pool.terminate(number, _number(name)):
                logger.warning(
                    "the %s pool cannot end Task %s[%s]: it runs on",
                    pool.kind,
                    lease.task,
                    lease.id,
                )

    def _child_ready(self) -> None:
        self._ready += 1
        if self._is_ready or self._ready < min(self.concurrency, self._pool_size()):
            return
        self._is_ready = True
        logger.log(
            logging.DEBUG if self.announced else logging.INFO,
            "%s is ready: %d × %s, queues %s",
            self.hostname,
            self.concurrency,
            self.pool_kind,
            ", ".join(self.queues),
        )
        if self.notify is not None:
            self.notify.ready()
            self.notify.status(f"{self.concurrency} children, queues {', '.join(self.queues)}")
        signals.worker_ready.send(sender=self)
        if self.on_ready is not None:
            self.on_ready()

    def _pool_size(self) -> int:
        return 1 if self.pool_kind in ("solo", "asyncio") else self.concurrency

    # Waiting

    def _timeout(self, pool: Pool) -> float | None:
        """Return how long to sleep: until the first thing that is due."""
        now = time.monotonic()
        timers = pool.tick(now)
        if self._wanted_stop > self._stopping:
            return 0
        wake_at = min(self._next_beat, self._next_upkeep, self._next_look)
        if self._try_again > now:
            wake_at = self._try_again  # until then the store is left alone
        elif (
            self._given_up
            or self._mail
            or self._settlements
            or (self._look and not self._stopping and pool.capacity())
        ):
            return 0
        if self._next_due is not None and not self._stopping:
            wake_at = min(wake_at, now + self._next_due - self._broker.clock.now())
        if self._deadline is not None:
            wake_at = min(wake_at, self._deadline)
        if self.notify is not None and self.notify.watchdog_interval:
            wake_at = min(wake_at, self._next_watchdog)
        if (tell_at := self._teller.next_beat()) is not None:
            wake_at = min(wake_at, tell_at)
        timeout = max(0.0, wake_at - now)
        return timeout if timers is None else min(timeout, timers)

    def _keep_house(self, now: float) -> None:
        """Do what is due by the clock."""
        if self._hang_up or self._dump_wanted:
            self._obey_signals()
        if self._next_due is not None and self._next_due <= self._broker.clock.now():
            self._next_due = None  # the next claim tells what comes after it
            self._look = True
        if now >= self._next_look:
            self._next_look = now + _BACKSTOP
            self._look = self._orders = True
        if now >= self._try_again:
            try:
                self._keep_store(now)
            except (BrokerUnavailable, QueueFull) as exc:
                self._postpone(exc, now)
        if self._deadline is not None and now >= self._deadline:
            self._wanted_stop = 2
        if self._companion is not None and not self._stopping:
            self._companion.look_after(now)
        notify = self.notify
        if notify is not None and notify.watchdog_interval and now >= self._next_watchdog:
            self._next_watchdog = now + notify.watchdog_interval
            notify.watchdog()

    def _keep_store(self, now: float) -> None:
        """Do what is due in the store. Each call may fail, and is then made again."""
        if self._given_up:
            self._come_back()
        if self._mail:
            self._read_mail()
        if self.autoscaler is not None and self._is_ready and not self._stopping:
            self._scale(self.autoscaler, now)
        if now >= self._next_beat:
            self._beat(now)
        if self._reclaim_now:
            self._reclaim()
        if self._watch_peers:
            self._find_peers()
        if now >= self._next_upkeep:
            if self._ageing is not None:
                self._broker.age(self.queues, self._ageing)
            more = self._broker.maintain()
            self._next_upkeep = now + (0.05 if more else _UPKEEP)

    def _beat_interval(self) -> float:
        return self._broker.beat_interval

    def _beat(self, now: float) -> None:
        if not self._broker.beat(
            self.id, self._details(), queues=self.queues, concurrency=self.concurrency
        ):
            self._come_back()
        self._next_beat = now + self._beat_interval()
        self._reclaim_now = True
        signals.heartbeat_sent.send(sender=self)

    # The others

    def _reclaim(self) -> None:
        if taken := self._broker.reclaim(self.id):
            logger.warning("took back %s of workers that died", _count("message", taken))
            self._look = True
        self._reclaim_now = False

    def _find_peers(self) -> None:
        """Watch the processes of the other workers: their death wakes this loop."""
        self._forget_peers()
        self._peers = self._broker.peers()
        for fd in self._peers:
            self._selector.register(fd, selectors.EVENT_READ, self._on_peer_death)
        self._watch_peers = False

    def _forget_peers(self) -> None:
        for fd in self._peers:
            self._selector.unregister(fd)
            os.close(fd)
        self._peers = []

    def _on_peer_death(self, _mask: int) -> None:
        self._forget_peers()  # or the dead one would wake us until it is taken care of
        self._watch_peers = self._reclaim_now = True

    def _on_wake_up(self, _mask: int) -> None:
        assert self._mailbox is not None
        words = self._mailbox.receive()
        if HELLO in words:
            self._watch_peers = True
        if ORDERS in words:
            self._orders = True
        if MAIL in words:
            self._mail = self._orders = True
        self._look = True

    # Stopping

    def _begin_stop(self, pool: Pool) -> None:
        warm = self._wanted_stop == 1
        self._stopping = self._wanted_stop
        signals.worker_shutting_down.send(
            sender=self.hostname,
            sig=self._stop_signal,
            how="Warm" if warm else "Cold",
            exitcode=self._exit_code,
        )
        if self._companion is not None:
            self._companion.stop()  # another beat is to lead while this worker ends
        if self.notify is not None:
            self.notify.stopping()
            self.notify.extend_timeout(self.grace + 5)
        if warm:
            if running := len(pool.running()):
                logger.warning(
                    "stopping: %s running, %g s to end; a second signal gives back now "
                    "what runs",
                    _count("task", running),
                    self.grace,
                )
            self._deadline = time.monotonic() + self.grace
            pool.stop()
        else:
            if running := len(pool.running()):
                self.unfinished = not self._has_processes()
                logger.warning("stopping now: %s given back", _count("running task", running))
            self._deadline = time.monotonic() + _LAST_TRIES
            pool.stop(kill=True)

    def _is_over(self, pool: Pool) -> bool:
        if self._stopping:
            if self._stopping == 2 and self._try_again and self._is_late():
                logger.critical(
                    "stopping: the store could not be reached, so %s not recorded; "
                    "another worker will find out and start them again",
                    _count("outcome", len(self._settlements)),
                )
                self._exit_code = EXIT_STORE
                return True
            return not (pool.alive() or self._leases or self._settlements)
        if self.burst and self._ready and not (self._look or self._leases or self._settlements):
            self._wanted_stop = max(self._wanted_stop, 1)
        return False

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    # Signals

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn signals into wishes that the loop obeys.

        The handlers set flags only: Python runs them between any two instructions of the
        loop. The wake-up descriptor ends the selector's sleep.
        """
        handlers: dict[int, Callable[[int, FrameType | None], None]] = {
            signal.SIGTERM: self._on_stop_signal,
            signal.SIGINT: self._on_stop_signal,
            signal.SIGQUIT: partial(self._on_stop_signal, cold=True),
            signal.SIGHUP: self._on_hang_up,
            signal.SIGUSR1: self._on_dump,
        }
        assert self._wake_write is not None
        self._wake_write.setblocking(False)
        old_fd = signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        old = {number: signal.signal(number, handle) for number, handle in handlers.items()}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old_fd)

    def _on_stop_signal(
        self, number: int, _frame: FrameType | None, *, cold: bool = False
    ) -> None:
        self._stop_signal = signal.Signals(number).name
        self._wanted_stop = 2 if cold or self._wanted_stop else 1

    def _on_hang_up(self, _number: int, _frame: FrameType | None) -> None:
        self._hang_up = True

    def _on_dump(self, _number: int, _frame: FrameType | None) -> None:
        self._dump_wanted = True

    def _obey_signals(self) -> None:
        assert self.pool is not None
        if self._hang_up:
            self._hang_up = False
            if self._has_terminal and not os.isatty(0):
                logger.warning("stopping: the terminal was closed")
                self._stop_signal = "SIGHUP"
                self.stop()
            elif self._has_processes():
                self._roll(self.pool)
            else:
                logger.warning("the %s pool has no children to replace", self.pool_kind)
        if self._dump_wanted:
            self._dump_wanted = False
            self._dump(self.pool)

    def _roll(self, pool: Pool) -> None:
        logger.warning("replacing all children, one at a time")
        if self.notify is not None:
            self.notify.reloading()
        pool.roll()
        if self.notify is not None:
            self.notify.ready()

    def _dump(self, pool: Pool) -> None:
        """Write the stacks of this process and its children to standard error."""
        import faulthandler  # late: for this one signal

        children = [pid for pid in pool.pids() if pid != os.getpid()]
        header = f"Stacks of worker {os.getpid()}"
        if children:
            header += f" and its children {', '.join(map(str, children))}"
        os.write(2, f"{header}\n\n".encode())
        if children:
            faulthandler.dump_traceback(file=2)  # a pool without children includes us
        pool.dump()

    def _nudge(self) -> None:
        if self._wake_write is not None:
            with contextlib.suppress(OSError):  # it is over, or has been woken enough
                self._wake_write.send(b"!")

    def _forget_wake_up(self) -> None:
        """Close, in a child, the descriptors of ours that the selector does not know."""
        if self._wake_write is not None:
            self._wake_write.close()
        if self._companion is not None:
            self._companion.forget()

    def _forget_all(self) -> None:
        """Close, in the beat's process, what is this worker's alone."""
        self._forget_wake_up()
        for key in tuple(self._selector.get_map().values()):
            if isinstance(key.fileobj, int):
                os.close(key.fileobj)
            else:
                key.fileobj.close()  # type: ignore[attr-defined]  # a socket
        self._selector.close()  # not unregister(): the kernel's set is the worker's too

    # What the app knows

    def _known_tasks(self) -> frozenset[str]:
        if len(self._tasks) != len(self.app.tasks):
            self._tasks = frozenset(self.app.tasks)
            self._limits.clear()
        return self._tasks

    def _limits_of(self, name: str) -> tuple[float | None, float | None]:
        """Return the soft and the hard limit that a task has here, in seconds, unless its
        message says otherwise: the task's own, else the worker's."""
        found = self._limits.get(name) or self._overridden.get(name)
        if found is None:
            task = self.app.tasks.get(name)
            found = self._limits[name] = (
                getattr(task, "soft_time_limit", None) or self.soft_time_limit,
                getattr(task, "time_limit", None) or self.time_limit,
            )
        return found

    def _limits_for(self, lease: Lease) -> tuple[float | None, float | None]:
        """Return the soft and the hard limit of one run."""
        packed = lease.packed
        limits = self._limits.get(packed[1]) or self._limits_of(packed[1])
        if packed[8] is None and packed[9] is None:
            return limits
        soft, hard = limits
        return (
            soft if packed[9] is None else packed[9],
            hard if packed[8] is None else packed[8],
        )


class _Keeper:
    """Beats for a solo worker, whose only thread is busy with a task for a long time.

    It only beats. Should the worker be given up for dead, it finds out by itself.
    """

    def __init__(self, worker: Worker, broker: Broker, interval: float) -> None:
        self._worker = worker
        self._broker = broker
        self._interval = interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="liteq-heartbeat", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(self._interval):
            with contextlib.suppress(BrokerError):
                self._broker.beat(self._worker.id)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def _load_tasks(
    reference: str | bytes,
    settings: Mapping[str, Any],
    include: Sequence[str],
    logs: bool,  # noqa: FBT001 (a runner's reference is a tuple)
) -> Mapping[str, TaskLike]:
    """Return the tasks of the worker's app, in a spawned child, which has nothing of the
    worker's: neither its app (see `liteq.reference`), nor what its command line set, nor
    the modules it has imported, nor its log."""
    from liteq import applog  # late: for spawned children only
    from liteq.reference import load

    app = load(reference)
    app.conf.override(settings)
    if logs:
        applog.configure(app)
    for module in include:
        __import__(module)
    app.import_default_modules()
    return app.tasks


def _weights(wanted: Sequence[str] | None) -> tuple[list[str] | None, dict[str, int]]:
    """Return the names without their weights, and those."""
    if wanted is None:
        return None, {}
    given = wanted.split(",") if isinstance(wanted, str) else wanted
    try:
        return split_weights(given)
    except ValueError as exc:
        raise ImproperlyConfigured(str(exc)) from None


def _queues(
    app: Liteq, wanted: Sequence[str] | None, excluded: Iterable[str]
) -> tuple[str, ...]:
    names = app.select_queues(wanted)
    left_out = set(excluded)
    queues = tuple(dict.fromkeys(name for name in names if name not in left_out))
    if not queues:
        raise ImproperlyConfigured("the worker has no queues to consume: -X excludes them all")
    return queues


def _node_name(name: str | None) -> str:
    """Return the worker's name, with Celery's `%h`, `%n` and `%d` filled in."""
    host = socket.gethostname()
    short, _, domain = host.partition(".")
    text = name or "liteq@%h"
    for mark, value in (("%h", host), ("%n", short), ("%d", domain)):
        text = text.replace(mark, value)
    return text if "@" in text else f"{text}@{host}"


def _number(name: str) -> int:
    """Return a signal's number: of `SIGTERM`, if this system has none of that name."""
    return int(getattr(signal, name, signal.SIGTERM))


def _count(noun: str, number: int) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
