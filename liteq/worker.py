"""The worker: claim → hand out → settle, in one loop of one thread.

1. The pool's events become settlements and notes (`_take_events`).
2. One transaction settles them and claims what the pool has room for (`_step`).
3. The leases go to the pool as bytes; the loop sleeps until a child answers, a wake-up
   comes, a delayed message is due, or the heartbeat is.

The store's connection is this loop's own; the children of a prefork pool never see it.
When the store cannot be reached, settlements wait here and are tried again; when the
lease is lost meanwhile, the store refuses them, and `refused` counts it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from liteq import cpus, signals
from liteq.announcing import Announcer
from liteq.attempts import Attempts, Settlements
from liteq.autoscale import Autoscaler
from liteq.brokers.base import HELLO, MAIL, ORDERS, Broker, Lease, Mailbox, Note, Step
from liteq.exceptions import (
    BrokerError,
    BrokerUnavailable,
    ImproperlyConfigured,
    QueueFull,
    SchemaError,
)
from liteq.executor import ExecutorSettings, TaskLike
from liteq.garbage import Collector
from liteq.limits import limits_by_task
from liteq.loggers import get_logger
from liteq.nodes import node_name
from liteq.notices import Notices
from liteq.peers import Peers
from liteq.pool import (
    Broken,
    Pool,
    PoolOptions,
    Ready,
    Returned,
    make_pool,
)
from liteq.runner import RunnerFactory
from liteq.shares import Shares, split_weights
from liteq.steered import Steered
from liteq.telling import Teller
from liteq.timelimits import TimeLimits
from liteq.turns import step_in_turns
from liteq.wishes import COLD, WARM, Wishes, dump_stacks

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.companion import Companion
    from liteq.metrics import Tally
    from liteq.scraping import Endpoint
    from liteq.steering import Steering

__all__ = ["EXIT_BROKEN", "EXIT_SCHEMA", "EXIT_STORE", "Worker"]

logger = get_logger("liteq.worker")

EXIT_BROKEN: Final = 1  # the pool could not keep children alive
EXIT_STORE: Final = 6  # the store is gone, damaged, or out of reach at the end
EXIT_SCHEMA: Final = 8  # another liteq has made the store too new for this one

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
        if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
            raise ImproperlyConfigured(
                f"concurrency is how many tasks run at once, a whole number, not {wanted!r}"
            )
        self.concurrency = 1 if self.pool_kind == "solo" else wanted
        self.hostname = node_name(hostname)
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
        self.announced = False  # where the log is, somebody else says that it is ready
        self.unfinished = False  # tasks that were given back run on, in threads
        self.pool: Pool | None = None
        self._broker: Broker = app.broker
        self._mailbox: Mailbox | None = None
        self._peers = Peers(app.broker)
        self._wishes = Wishes()
        self._announce = Announcer(self._wishes)
        self._notices = Notices(
            self,
            lambda: app.tasks,
            announce=self._announce,
            hostname=self.hostname,
            accept=conf.accept_content,
            signer=app.signer,
        )
        self._teller = Teller(app, self.hostname)
        self._time_limits = TimeLimits(lambda: app.tasks, self.soft_time_limit, self.time_limit)
        self._attempts = Attempts(
            self._time_limits,
            self._notices,
            lambda: self._steering,
            self._teller,
            app.broker.max_deliveries,
        )
        self._tasks: frozenset[str] = frozenset()
        self._ready = 0
        self._is_ready = False
        self._look = True  # the store may hold something claimable
        self._orders = False  # and word that one of our runs is to be ended
        self._mail = False  # commands wait for us
        self._given_up = False  # we were, by the others
        self._next_due: float | None = None
        self._next_beat = self._next_upkeep = self._next_look = self._next_watchdog = 0.0
        self._pause = 0.0
        self._try_again = 0.0
        self._ignores_rates: bool = app.conf.worker_disable_rate_limits
        self._stopping = 0  # as wished: WARM or COLD
        self._deadline: float | None = None  # of the stop's present stage
        self._exit_code = 0
        self._selector: selectors.BaseSelector
        self._has_terminal = os.isatty(0)
        # A process whose signals are not ours is a program's, and so is its memory.
        self._garbage = Collector() if install_signals else None
        self._keeper: _Keeper | None = None
        self._companion: Companion | None = None
        self._tally: Tally | None = None  # unless metrics are asked for
        self._endpoint: Endpoint | None = None

    # Life

    def run(self) -> int:
        """Run until stopped; return the process's exit code: 0 after a stop that was
        asked for, `EXIT_BROKEN`, `EXIT_STORE` or `EXIT_SCHEMA`. May be called once."""
        with contextlib.ExitStack() as stack:
            self._open()
            stack.callback(self._close)
            if self.install_signals:
                stack.enter_context(self._wishes.by_signals())
            stack.callback(self._leave)
            self._start()
            try:
                self._loop()
            except BrokerError as exc:  # trying again will not help: deleted, damaged
                logger.critical("stopping: %s", exc)
                self._exit_code = EXIT_SCHEMA if isinstance(exc, SchemaError) else EXIT_STORE
            finally:
                self._announce(signals.worker_shutdown, self)
        logger.info("%s has stopped", self.hostname)
        return self._exit_code or self._wishes.exit_code

    def stop(self, *, cold: bool = False) -> None:
        """Stop from any thread: finish what runs (warm), or give it back now (cold)."""
        self._wishes.ask_to_stop(COLD if cold else WARM)
        self._wishes.nudge()

    def _open(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wishes.open()
        wake_up = self._wishes.wake_up
        self._selector.register(wake_up, selectors.EVENT_READ, lambda _: wake_up.recv(4096))

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

    def reload(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: Celery's tests say it when they have made a task, which is known here
        without, to a worker that shares the process."""

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
        self.pool = self._make_pool()
        if self.pool.kind == "prefork":
            # Every connection is closed for the fork anyway; doing it here keeps the
            # children from being forked with the store's pages in memory.
            self._broker.close()
        if self._garbage is not None:
            self._garbage.begin()
        # Before the store is opened, for the same reason; and they start meanwhile.
        self.pool.start(self._selector)
        self._time_limits.warn(self.pool)
        self._register()
        # Before the first claim: what a dead worker of this host held starts at once.
        self._reclaim()
        if self.pool_kind == "solo":
            self._keeper = _Keeper(self, self._broker, self._beat_interval())

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
        conf = self.app.conf
        options = PoolOptions(
            concurrency=self.concurrency,
            max_lookahead=conf.worker_max_lookahead,
            max_tasks_per_child=self.max_tasks_per_child,
            max_memory_per_child=self.max_memory_per_child,
            start_method=conf.worker_pool_start_method or "fork",
            at_fork=self._forget_wake_up,
            before_child=partial(self._announce, signals.worker_before_create_process, self),
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
            return RunnerFactory(_load_tasks, like, settings, own_process=own_process)
        return RunnerFactory(lambda: self.app.tasks, (), settings, own_process=own_process)

    @cached_property
    def _steering(self) -> Steering:
        from liteq.steering import Steering  # late: few workers are told anything

        return Steering(self)

    def _has_processes(self) -> bool:
        return self.pool_kind in ("prefork", "processes")

    def _broker_in_memory(self) -> bool:
        return getattr(self._broker, "directory", "") is None

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
            # Not its number: in a forked child the mailbox knows whether that is its own still.
            self._selector.register(self._mailbox, selectors.EVENT_READ, self._on_wake_up)
        self._next_beat = time.monotonic() + self._beat_interval()

    def _leave(self) -> None:
        """Sign off, with no child left and whatever was unfinished given back.

        After a proper stop there is nothing of the kind. After an error there may be:
        children are killed, since what they do now would be done a second time.
        """
        if self.pool is not None and self.pool.alive():
            self.pool.stop(kill=True)
            self._take_events(self.pool)
        if not self.id or self._exit_code in (EXIT_STORE, EXIT_SCHEMA):
            return
        try:
            if unsettled := self._attempts.settlements:
                self._broker.step(self.id, settlements=unsettled)
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
        self._peers.close()
        if self._endpoint is not None:
            self._endpoint.close()
        if self._mailbox is not None:
            self._close_mailbox()
        self._selector.close()
        self._wishes.close()

    def _close_mailbox(self) -> None:
        mailbox = self._mailbox
        if mailbox is not None:
            if mailbox.fileno() >= 0:
                self._selector.unregister(mailbox)
            mailbox.close()
            self._mailbox = None

    # The loop

    def _loop(self) -> None:
        pool = self.pool
        assert pool is not None
        while True:
            if self._wishes.stop > self._stopping:
                self._begin_stop(pool)
            self._take_events(pool)
            self._step(pool)
            if self._teller.heard:
                self._tell(pool)
            if self._is_over(pool):
                break
            timeout = self._timeout(pool)
            if self._garbage is not None:  # now nothing is left to settle or hand out
                self._garbage.collect_if_due()
            for key, mask in self._selector.select(timeout):
                key.data(mask)
            self._keep_house(time.monotonic())

    def _step(self, pool: Pool) -> None:
        """Settle what has ended and claim what there is room for, in one transaction.

        It also brings the orders to end a run, so it is made for them alone, too: when
        every child is busy, and during a warm stop.
        """
        attempts = self._attempts
        settlements, notes = attempts.settlements, attempts.notes
        limit = 0
        # What is settled may be what others wait for: they are claimed in the same step.
        if (self._look or settlements) and not self._stopping and self._ready:
            limit = pool.capacity()
        asking = self._orders and (attempts.leases or self._teller.heard)
        if not (limit or settlements or notes or asking):
            return
        now = time.monotonic()
        if now < self._try_again:
            return
        try:
            step = self._ask(settlements, notes, limit)
        except (BrokerUnavailable, QueueFull) as exc:
            self._postpone(exc, now)
            return
        attempts.settlements, attempts.notes = [], []
        self._pause = self._try_again = 0.0
        self._orders = False
        self._mail = self._mail or step.mail
        if step.heard or self._teller.heard:
            self._teller.learn(heard=step.heard)
        attempts.count(settlements, step)
        if self._tally is not None:
            self._tally.settled(settlements, step.accepted, self._broker.max_deliveries)
            self._tally.claimed(step.leases, self._broker.clock.now())
        self._next_due = step.next_due
        if limit:
            self._look = len(step.leases) >= limit
        if step.leases:
            attempts.hand_out(pool, step.leases)
        for lease, why in step.aside:
            if self._tally is not None and why == "expired":
                self._tally.expired(lease)
            (self._notices.parked if why == "parked" else self._notices.expired)(lease)
            if why == "expired" and self._teller.heard:
                self._teller.revoked(lease.id, terminated=False, signum=None, expired=True)
        if step.terminate:
            attempts.terminate(pool, step.terminate)
        if not step.alive:
            self._given_up = True

    def _ask(
        self,
        settlements: Settlements,
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

    def _take_events(self, pool: Pool) -> None:
        for event in self._attempts.take(pool.take()):
            match event:
                case Returned():
                    self._look = True
                case Ready():
                    self._child_ready()
                case Broken(reason):
                    logger.critical("stopping: %s", reason)
                    self._exit_code = EXIT_BROKEN
                    self._wishes.ask_to_stop(WARM)

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
        self._announce(signals.worker_ready, self)
        if self.on_ready is not None:
            self.on_ready()

    def _pool_size(self) -> int:
        return 1 if self.pool_kind in ("solo", "asyncio") else self.concurrency

    # Waiting

    def _timeout(self, pool: Pool) -> float | None:
        """Return how long to sleep: until the first thing that is due."""
        now = time.monotonic()
        timers = pool.tick(now)
        if self._wishes.stop > self._stopping:
            return 0
        wake_at = min(self._next_beat, self._next_upkeep, self._next_look)
        if self._try_again > now:
            wake_at = self._try_again  # until then the store is left alone
        elif (
            self._given_up
            or self._mail
            or self._attempts.settlements
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
        if self._wishes.hang_up or self._wishes.stacks:
            self._obey()
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
            self._wishes.ask_to_stop(COLD)
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
        if self._peers.died:
            self._reclaim()
        if self._peers.look:
            self._peers.find(self._selector)
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
        self._peers.died = True  # on another host, where only missing heartbeats show it
        self._announce(signals.heartbeat_sent, self)

    # The others

    def _reclaim(self) -> None:
        if taken := self._broker.reclaim(self.id):
            logger.warning("took back %s of workers that died", _count("message", taken))
            self._look = True
        self._peers.died = False

    def _on_wake_up(self, _mask: int) -> None:
        assert self._mailbox is not None
        words = self._mailbox.receive()
        if HELLO in words:
            self._peers.look = True
        if ORDERS in words:
            self._orders = True
        if MAIL in words:
            self._mail = self._orders = True
        self._look = True

    # Stopping

    def _begin_stop(self, pool: Pool) -> None:
        warm = self._wishes.stop == WARM
        self._stopping = self._wishes.stop
        self._announce(
            signals.worker_shutting_down,
            self.hostname,
            sig=self._wishes.signal,
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
        attempts = self._attempts
        if self._stopping:
            if self._stopping == COLD and self._try_again and self._is_late():
                logger.critical(
                    "stopping: the store could not be reached, so %s not recorded; "
                    "another worker will find out and start them again",
                    _count("outcome", len(attempts.settlements)),
                )
                self._exit_code = EXIT_STORE
                return True
            return not (pool.alive() or attempts.leases or attempts.settlements)
        unfinished = self._look or attempts.leases or attempts.settlements
        if self.burst and self._ready and not unfinished:
            self._wishes.ask_to_stop(WARM)
        return False

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _obey(self) -> None:
        """Do what signals have asked for, other than to stop."""
        assert self.pool is not None
        wishes = self._wishes
        if wishes.hang_up:
            wishes.hang_up = False
            if self._has_terminal and not os.isatty(0):
                logger.warning("stopping: the terminal was closed")
                wishes.signal = "SIGHUP"
                self.stop()
            elif self._has_processes():
                self._roll(self.pool)
            else:
                logger.warning("the %s pool has no children to replace", self.pool_kind)
        if wishes.stacks:
            wishes.stacks = False
            dump_stacks(self.pool)

    def _roll(self, pool: Pool) -> None:
        logger.warning("replacing all children, one at a time")
        if self.notify is not None:
            self.notify.reloading()
        pool.roll()
        if self.notify is not None:
            self.notify.ready()

    def _forget_wake_up(self) -> None:
        """Close, in a child, the descriptors of ours that the selector does not know."""
        self._wishes.forget()
        if self._companion is not None:
            self._companion.forget()

    def _forget_all(self) -> None:
        """Close, in the beat's process, what is this worker's alone."""
        self._forget_wake_up()
        for key in tuple(self._selector.get_map().values()):
            if isinstance(key.fileobj, int):
                os.close(key.fileobj)
            else:
                key.fileobj.close()  # type: ignore[attr-defined]  # a socket, or a mailbox
        self._selector.close()  # not unregister(): the kernel's set is the worker's too

    # What the app knows

    def _known_tasks(self) -> frozenset[str]:
        if len(self._tasks) != len(self.app.tasks):
            self._tasks = frozenset(self.app.tasks)
            self._time_limits.look_again()
        return self._tasks


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


def _count(noun: str, number: int) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
