"""The worker: claim → hand out → settle, in one loop of one thread.

1. The pool's events become settlements and notes (`_take_events`).
2. One transaction settles them and claims what the pool has room for (`_step`). A worker
   that is idle stands by: what comes next is leased to it by who enqueues it, and is brought
   by the wake-up (`_take_over`).
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
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final

from liteq import signals
from liteq.brokers.base import Broker
from liteq.brokers.values import Lease, Said, Step
from liteq.delivery import find_failed
from liteq.exceptions import (
    BrokerError,
    BrokerUnavailable,
    InvalidSignature,
    QueueFull,
    SchemaError,
    StoreForbidden,
)
from liteq.garbage import Collector
from liteq.loggers import get_logger
from liteq.message import QUEUE, TASK
from liteq.nodes import node_name
from liteq.outage import Outage
from liteq.pool import Broken, Pool, Ready, Returned
from liteq.shares import Shares
from liteq.wording import several
from liteq.workers.announcing import Announcer
from liteq.workers.attempts import Attempts, Settlements
from liteq.workers.batching import Batching
from liteq.workers.dispatching import EventDispatcher
from liteq.workers.housekeeping import Housekeeping
from liteq.workers.membership import Membership
from liteq.workers.notices import Notices
from liteq.workers.options import concurrency_of, grace_of, limits_of, queues_of
from liteq.workers.pool import has_processes, make_room, pool_of
from liteq.workers.requests import COLD, WARM, Requests, dump_stacks
from liteq.workers.steered import Steered
from liteq.workers.timelimits import TimeLimits
from liteq.workers.timer import RepeatingTimer

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.autoscale import Autoscaler
    from liteq.metrics import Tally
    from liteq.systemd import Notifier
    from liteq.workers.embeddedbeat import EmbeddedBeat
    from liteq.workers.scraping import Endpoint
    from liteq.workers.steering import Steering

__all__ = ["EXIT_BROKEN", "EXIT_SCHEMA", "EXIT_STORE", "Worker"]

logger = get_logger("liteq.worker")

EXIT_BROKEN: Final = 1  # the pool could not keep children alive
EXIT_STORE: Final = 6  # the store is gone, damaged, or out of reach at the end
EXIT_SCHEMA: Final = 8  # another liteq has made the store too new for this one

_TOGETHER: Final = 0.1  # seconds that one thing waits for the next, to wake up once for both
_BEHIND: Final = (
    0.008  # seconds after it is due, at most, that a worker looks which is not the first
)
_LONGEST_PAUSE: Final = 5.0  # seconds between two tries to reach the store
_LAST_TRIES: Final = 5.0  # seconds to reach it in, when all else has stopped


class Worker(Steered):
    """Runs the tasks of an app until it is told to stop.

    `queues`: names to consume (None: those of `task_queues`, or the default queue), with a
    weight behind a colon if they are to be served in turns ("high:3", "low");
    `exclude_queues` are taken out. `concurrency`: children (None: the setting, or one
    for each CPU that it may use). `autoscale`: the most and the least children, as there is
    work. `pool`: prefork, threads, asyncio or solo. `grace`: seconds that a
    warm stop waits for running tasks before it gives them back. `burst`: stop when
    nothing is claimable. Time limits are seconds, memory is KiB. `install_signals` must be
    False outside of the main thread; `interrupts`: those of a terminal stop it, too.
    `hands_over`: a stop ends tasks at interruptible checkpoints; the next worker goes on.
    `beat`: fire periodic tasks as well, with this `scheduler` in place of liteq's own, if one
    is named. `metrics`: "[host:]port" to serve this worker's figures at. `patient`: wait for
    a store that cannot be reached yet, as the settings say, instead of ending. `on_ready` is
    called when all children are ready.
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
        interrupts: bool = True,
        hands_over: bool = False,
        beat: bool = False,
        scheduler: Any = None,
        metrics: str | None = None,
        autoscale: tuple[int, int] | None = None,
        patient: bool = False,
    ) -> None:
        conf = app.conf
        self.app = app
        self.include = tuple(include)
        self.queues, weights = queues_of(app, queues, exclude_queues)
        self._shares = Shares(weights) if weights else None
        self.pool_kind = pool or conf.worker_pool
        self.autoscaler: Autoscaler | None = None
        if autoscale is not None and self.pool_kind != "solo":
            self.autoscale(*autoscale)
            concurrency = autoscale[1]
        self.concurrency = concurrency_of(conf, self.pool_kind, concurrency)
        self.hostname = node_name(hostname)
        self.burst = burst
        self.grace = grace_of(conf, grace)
        limits = limits_of(conf, soft_time_limit, time_limit)
        self.soft_time_limit, self.time_limit = limits
        self.max_tasks_per_child = max_tasks_per_child or conf.worker_max_tasks_per_child
        self.max_memory_per_child = max_memory_per_child or conf.worker_max_memory_per_child
        self.notify = notify
        self.on_ready = on_ready
        self.install_signals = install_signals
        self.interrupts = interrupts
        self.hands_over = hands_over
        self.beat = beat
        self.scheduler = scheduler
        self.metrics = metrics or conf.worker_metrics_port

        self.pid = os.getpid()
        self.started = time.monotonic()
        self.announced = False  # where the log is, somebody else says that it is ready
        self.unfinished = False  # tasks that were given back run on, in threads
        self.pool: Pool | None = None
        self._broker: Broker = app.broker
        self._requests = Requests()
        self._announce = Announcer(self._requests)
        ageing: float | None = conf.worker_priority_ageing or None
        self._housekeeping = Housekeeping(app.broker, lambda: self.queues, ageing)
        self._membership = Membership(
            self,
            app.broker,
            lambda: app.tasks,
            announce=self._announce,
            take_over=self._take_over,
            came_back=lambda: self._attempts.give_back_batched(),
        )
        self._dispatcher = EventDispatcher(app, self.hostname)
        self._notices = Notices(
            self,
            lambda: app.tasks,
            announce=self._announce,
            secrets=self._dispatcher.secrets,
            hostname=self.hostname,
            accept=conf.accept_content,
            signer=app.signer,
            cipher=app.cipher,
        )
        self._time_limits = TimeLimits(lambda: app.tasks, self.soft_time_limit, self.time_limit)
        self._batching = Batching(
            lambda: app.tasks, time.monotonic, app.clock.now, app.broker.max_deliveries
        )
        self._attempts = Attempts(
            time_limits=self._time_limits,
            batching=self._batching,
            notices=self._notices,
            dispatcher=self._dispatcher,
            signal_of=lambda name, id: self._steering.signal_of(name, id),
            find_failed=partial(find_failed, app.broker),
            max_deliveries=app.broker.max_deliveries,
            ahead=lambda: app.broker.ahead,
        )
        self._tasks: frozenset[str] = frozenset()
        self._seen = -1  # changes of the app's tasks, when these were read
        self._ready = 0
        self._is_ready = False
        self._next_due: float | None = None
        self._came_due = False  # so that the next step is to look for it
        self._behind = 0.0  # seconds after others, when something comes due
        self._next_watchdog = 0.0
        self._outage = Outage(
            logger, longest=_LONGEST_PAUSE, most_tries=conf.broker_connection_max_retries
        )
        self._retries: bool = conf.broker_connection_retry
        at_start: bool | None = conf.broker_connection_retry_on_startup
        self._patient = patient and (self._retries if at_start is None else at_start)
        # How long one thing waits for the next: no heartbeat is to be late for it.
        self._together = min(_TOGETHER, self._broker.beat_interval / 10)
        self._is_signed = app.signer is not None
        # In turns, none of the queues is to be served first; who is to stop when there is
        # nothing to do waits for nothing; and a wake-up is signed by nobody: whoever may
        # write to the store could bring what is revoked, or not due, or another queue's.
        self._stands_by = self._shares is None and not burst and not self._is_signed
        self._ignores_rates: bool = app.conf.worker_disable_rate_limits
        self._stopping = 0  # as asked for: WARM or COLD
        self._deadline: float | None = None  # of the stop's present stage
        self._exit_code = 0
        self._selector: selectors.BaseSelector
        self._has_terminal = os.isatty(0)
        # A process whose signals are not ours is a program's, and so is its memory.
        self._garbage = Collector() if install_signals else None
        self._watchdog_timer: RepeatingTimer | None = None
        self._embedded_beat: EmbeddedBeat | None = None
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
                stack.enter_context(self._requests.by_signals(interrupts=self.interrupts))
            stack.callback(self._leave)
            self._start()
            if self._enter():
                self._work()
        logger.info("%s has stopped", self.hostname)
        return self._exit_code or self._requests.exit_code

    def _work(self) -> None:
        try:
            self._loop()
        except BrokerError as exc:  # trying again will not help: deleted, damaged
            logger.critical("stopping: %s", exc)
            self._exit_code = EXIT_SCHEMA if isinstance(exc, SchemaError) else EXIT_STORE
        finally:
            self._announce(signals.worker_shutdown, self)

    def stop(self, *, cold: bool = False) -> None:
        """Stop from any thread: finish what runs (warm), or give it back now (cold)."""
        self._requests.ask_to_stop(COLD if cold else WARM)
        self._requests.wake()

    def _open(self) -> None:
        self._selector = selectors.DefaultSelector()
        pipe = self._requests.open()
        self._selector.register(pipe, selectors.EVENT_READ, lambda _: pipe.drain())

    def _serve_metrics(self, where: str) -> None:
        from liteq.metrics import Tally, WorkerCollector, exposition  # late: few ask for them
        from liteq.workers.scraping import Endpoint, address_of

        self._tally = Tally()
        collector = WorkerCollector(self, self._tally)
        exposition(collector)  # if what it needs is missing, say so now
        self._endpoint = Endpoint(
            self._selector, address_of(where), lambda: exposition(collector)
        )
        logger.info("metrics at %s", self._endpoint.url)

    def reload(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: Celery's tests call it when they have made a task, which a worker in
        the same process knows here without it."""

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
            self._embedded_beat = self._make_embedded_beat()
            self._embedded_beat.start()  # forked before this process has anything open
        if self.metrics is not None:
            self._serve_metrics(self.metrics)
        most = 0 if self.autoscaler is None else self.autoscaler.most
        make_room(self.pool_kind, max(most, self.concurrency))
        self.pool = pool_of(
            self.app,
            self.pool_kind,
            hostname=self.hostname,
            include=self.include,
            concurrency=self.concurrency,
            max_tasks_per_child=self.max_tasks_per_child,
            max_memory_per_child=self.max_memory_per_child,
            at_fork=self._forget_wake_up,
            before_child=partial(self._announce, signals.worker_before_create_process, self),
            stopping=self._hands_over_now,
            interruptible=self._is_interruptible(),
        )
        if self.pool.kind == "prefork":
            # Every connection is closed for the fork anyway; doing it here keeps the
            # children from being forked with the store's pages in memory.
            self._broker.close()
        if self._garbage is not None:
            self._garbage.begin()
        # Before the store is opened, for the same reason; and they start meanwhile.
        self.pool.start(self._selector)
        self._time_limits.warn(self.pool)
        self._warn_of_watchdog()

    def _is_interruptible(self) -> bool:
        """Tell whether Ctrl-C comes to where tasks run, and is not for this worker to mind."""
        in_main = threading.current_thread() is threading.main_thread()
        return in_main and self.pool_kind == "solo" and not self.install_signals

    def _warn_of_watchdog(self) -> None:
        """Say that the watchdog would take a worker for hung whose store is: the loop says that
        it turns once in half of the time allowed, and may go into a call just before that."""
        interval = None if self.notify is None else self.notify.watchdog_interval
        call = self._broker.longest_call
        if interval and interval <= call:
            logger.warning(
                "WatchdogSec=%g is too short: a call may wait %g s for a store that hangs, and "
                "systemd would kill this worker and its tasks for that. Set it above %g",
                2 * interval,
                call,
                2 * call,
            )

    def _enter(self) -> bool:
        """Join the other workers, once the store can be reached; False if a stop was asked for
        before that."""
        membership = self._membership
        while True:
            try:
                membership.join(self._selector)
                # Before the first claim: what a dead worker of this host held starts at once.
                membership.reclaim()
            except BrokerUnavailable as exc:
                if not self._patient or isinstance(exc, StoreForbidden):  # no wait changes that
                    raise
                pause = self._outage.meet(exc)
                if self.notify is not None:
                    self.notify.waiting(str(exc), pause + self._broker.longest_call)
            else:
                break
            # What the pool has to say is kept until there is a store to tell.
            requests = self._requests
            while not requests.stop and (left := self._outage.until - time.monotonic()) > 0:
                self._sleep(left)
            if requests.stop:
                return False
        self._outage.end()
        if not self._retries:
            self._outage.most_tries = 0
        if self.pool_kind == "solo":
            membership.beat_in_thread()
            if self.notify is not None and self.notify.watchdog_interval:
                # Twice as often as the loop: a task may start just before the loop's turn.
                interval = self.notify.watchdog_interval / 2
                self._watchdog_timer = RepeatingTimer(
                    "liteq-watchdog", interval, self._feed_watchdog
                )
        return True

    def _feed_watchdog(self) -> None:
        """Say that the process lives while a task runs. Between tasks the loop is to say that
        it turns."""
        assert self.notify is not None
        if self.pool is not None and self.pool.running():
            self.notify.watchdog()

    def _make_embedded_beat(self) -> EmbeddedBeat:
        from liteq.workers.embeddedbeat import EmbeddedBeat  # late: for `-B` alone

        forks = self.app.conf.worker_pool_start_method in (None, "", "fork")
        return EmbeddedBeat(
            self.app,
            process=self._has_processes() and forks,
            forget=self._forget_all,
            scheduler=self.scheduler,
        )

    @cached_property
    def _steering(self) -> Steering:
        from liteq.workers.steering import Steering  # late: few workers are told anything

        return Steering(self)

    def _has_processes(self) -> bool:
        return has_processes(self.pool_kind)

    def _leave(self) -> None:
        """Sign off, with no child left and whatever was unfinished given back.

        After a proper stop there is nothing of the kind. After an error there may be:
        children are killed, since what they do now would be done a second time.
        """
        if self.pool is not None and self.pool.alive():
            self.pool.stop(kill=True)
            self._attempts.take(self.pool.take())  # nothing else matters: no child is ready now
        self._attempts.give_back_batched()
        if not self._membership.id or self._exit_code in (EXIT_STORE, EXIT_SCHEMA):
            return
        try:
            if unsettled := self._attempts.settlements:
                notes = self._attempts.notes()
                self._broker.step(self._membership.id, settlements=unsettled, notes=notes)
            if self._dispatcher.heard:
                self._dispatcher.offline(active=0, processed=self.totals.total())
                self._dispatcher.flush(self._broker)
            self._membership.leave()
        except BrokerError as exc:
            logger.error("could not sign off: %s", exc)  # noqa: TRY400 (the cause is said)

    def _close(self) -> None:
        self._membership.close()
        if self._watchdog_timer is not None:
            self._watchdog_timer.stop()
        if self._embedded_beat is not None:
            self._embedded_beat.join()
        if self._endpoint is not None:
            self._endpoint.close()
        self._selector.close()
        self._requests.close()

    # The loop

    def _loop(self) -> None:
        pool = self.pool
        assert pool is not None
        while True:
            if self._requests.stop > self._stopping:
                self._begin_stop(pool)
            self._take_events(pool)
            if self._batching.waiting:  # what is due has a child before more is claimed
                self._run_batches(pool)
            self._step(pool)
            if self._batching.waiting:
                self._run_batches(pool)
            if self._dispatcher.heard:
                self._tell()
            if self._is_over(pool):
                break
            timeout = self._timeout(pool)
            if self._garbage is not None:  # now nothing is left to settle or hand out
                self._garbage.collect_if_due()
            self._sleep(timeout)
            self._keep_house(time.monotonic())

    def _step(self, pool: Pool) -> None:
        """Settle what has ended and claim what there is room for, in one transaction.

        It also brings the orders to end a run, so it is made for them alone, too: when
        every child is busy, and during a warm stop.
        """
        attempts, membership = self._attempts, self._membership
        settlements, notes = attempts.settlements, attempts.notes()
        room = limit = 0
        # What is settled may be what others wait for: they are claimed in the same step.
        if (membership.look or settlements) and not self._stopping and self._ready:
            room = pool.capacity()
            limit = self._batching.room(room)
        asking = membership.orders and (attempts.leases or self._dispatcher.heard)
        if not (limit or settlements or notes or asking):
            return
        now = time.monotonic()
        if now < self._outage.until:
            return
        idle = limit > 0 and self._stands_by and not (attempts.leases or settlements or notes)
        try:
            step = self._ask(settlements, notes, limit, idle=idle)
        except (BrokerUnavailable, QueueFull) as exc:
            membership.learn_nothing()
            self._outage.meet(exc)
            return
        membership.learn(step, idle=idle)
        attempts.stored()
        if settlements:  # so there is traffic, of which a wake-up may be lost
            self._housekeeping.expect(now)
        if self._outage.end():
            membership.beat_soon()  # with which it is seen what the outage has cost
        if step.heard or self._dispatcher.heard:
            self._dispatcher.learn(heard=step.heard)
        attempts.count(settlements, step)
        if self._tally is not None:
            self._tally.settled(settlements, step.accepted, self._broker.max_deliveries)
            self._tally.claimed(step.leases, self._broker.clock.now())
        self._next_due = step.next_due
        if self._came_due:
            self._came_due = False
            self._behind = 0.0 if step.leases else self._place()
        if limit:
            membership.looked(more=len(step.leases) >= limit or self._is_due())
        if step.leases:
            leases = self._of_own_queues(step.leases) if self._is_signed else step.leases
            if self._batching.sizes:
                leases, surplus = self._batching.fitting(leases, room, limit)
                for lease in surplus:
                    attempts.give_back(lease)
            attempts.hand_out(pool, leases)
        elif self._stands_by and membership.standby is None and not attempts.leases:
            membership.look_again()
        for lease, why in step.aside:
            if self._tally is not None and why == "expired":
                self._tally.expired(lease)
            self._notices.put_aside(lease, why)
            if why == "expired" and self._dispatcher.heard:
                self._dispatcher.revoked(lease.id, terminated=False, signum=None, expired=True)
        if step.terminate:
            attempts.terminate(pool, step.terminate)

    def _run_batches(self, pool: Pool) -> None:
        """Have the calls run that have waited for others long enough."""
        if self._stopping:
            self._attempts.give_back_batched()
        elif not self._membership.is_late():  # else others may have them
            # What has ended, and is not settled, others may wait for.
            more = self._membership.look or self._attempts.settlements
            no_more = self.burst and not more
            self._attempts.hand_out_batches(pool, all=no_more)

    def _ask(
        self,
        settlements: Settlements,
        notes: Sequence[tuple[Lease, Said]],
        limit: int,
        *,
        idle: bool,
    ) -> Step:
        ask = partial(
            self._broker.step,
            self._membership.id,
            tasks=self._known_tasks() if limit else None,
            ignore_rates=self._ignores_rates,
        )
        if self._shares is None or not limit:
            return ask(
                settlements=settlements,
                notes=notes,
                queues=self.queues,
                limit=limit,
                idle=idle,
            )
        from liteq.workers.turns import step_in_turns  # late: few workers have weighted queues

        return step_in_turns(
            ask,
            self._shares,
            settlements=settlements,
            notes=notes,
            queues=self.queues,
            limit=limit,
        )

    def _of_own_queues(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        """Return the leases whose messages are of this worker's queues. On Redis a message is
        in a queue's list and says itself, signed, of which it is: one that says otherwise was
        moved by somebody without a key, and is a dead letter."""
        own = []
        for lease in leases:
            if (queue := lease.packed[QUEUE]) in self.queues:
                own.append(lease)
            else:
                moved = f"it was moved to a queue of this worker: it was signed for {queue!r}"
                self._attempts.refuse(lease, InvalidSignature(moved))
        return own

    def _take_over(self, leases: Sequence[Lease]) -> None:
        """Start what was leased to this worker as it stood by."""
        attempts, pool = self._attempts, self.pool
        assert pool is not None
        expected = self._membership.standby
        for lease in leases:
            if expected is None or lease.token != expected or self._membership.is_late():
                self._membership.look_again()  # others may have it, or will
            elif self._stopping or lease.packed[TASK] not in self._known_tasks():
                attempts.give_back(lease)
                self._membership.look_again()  # which parks what is unknown
            else:
                if self._tally is not None:
                    self._tally.claimed((lease,), self._broker.clock.now())
                attempts.hand_out(pool, (lease,))
                if self._batching.waiting:  # no step follows that says there is room for more
                    self._membership.look_again()

    def _take_events(self, pool: Pool) -> None:
        for event in self._attempts.take(pool.take()):
            match event:
                case Returned():
                    self._membership.look_again()
                case Ready():
                    self._child_ready()
                case Broken(reason):
                    logger.critical("stopping: %s", reason)
                    self._exit_code = EXIT_BROKEN
                    self._requests.ask_to_stop(WARM)

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
            several(self.queues),
        )
        if self.notify is not None:
            self.notify.ready()
            self.notify.status(f"{self.concurrency} children, queues {several(self.queues)}")
        self._announce(signals.worker_ready, self)
        if self.on_ready is not None:
            self.on_ready()

    def _pool_size(self) -> int:
        return 1 if self.pool_kind in ("solo", "asyncio") else self.concurrency

    # Waiting

    def _timeout(self, pool: Pool) -> float | None:
        """Return how long to sleep: until the first thing that is due."""
        membership, housekeeping = self._membership, self._housekeeping
        now = time.monotonic()
        timers = pool.tick(now)
        if self._requests.stop > self._stopping:
            return 0
        by_the_clock = (membership.next_beat, housekeeping.next_upkeep, housekeeping.next_look)
        latest = min(by_the_clock) + self._together
        wake_at = max(at for at in by_the_clock if at <= latest)
        if self._outage.until > now:
            wake_at = self._outage.until  # until then the store is left alone
        elif (
            membership.given_up
            or membership.mail
            or self._attempts.settlements
            or (membership.look and not self._stopping and pool.capacity())
        ):
            return 0
        if self._next_due is not None and not self._stopping:
            due_at = now + self._next_due - self._broker.clock.now()
            wake_at = min(wake_at, due_at + self._behind)
        if self._batching.waiting and pool.capacity() and not membership.is_late():
            wake_at = min(wake_at, self._batching.next_at())
        if self._deadline is not None:
            wake_at = min(wake_at, self._deadline)
        if self.notify is not None and self.notify.watchdog_interval:
            wake_at = min(wake_at, self._next_watchdog)
        if (tell_at := self._dispatcher.next_beat()) is not None:
            wake_at = min(wake_at, tell_at)
        timeout = max(0.0, wake_at - now)
        return timeout if timers is None else min(timeout, timers)

    def _sleep(self, timeout: float | None) -> None:
        """Wait for what somebody has to say, and hear it."""
        if self.notify is not None:
            self.notify.catch_up(self._selector)
        for key, mask in self._selector.select(timeout):
            key.data(mask)

    def _keep_house(self, now: float) -> None:
        """Do what is due by the clock."""
        if self._requests.hang_up or self._requests.stacks:
            self._obey()
        if self._is_due() and not self._is_taken():
            self._next_due = None  # the next claim tells what comes after it
            self._membership.look_again()
            self._came_due = True
        if now >= self._outage.until:
            try:
                self._keep_store(now)
            except (BrokerUnavailable, QueueFull) as exc:
                self._outage.meet(exc)
        if self._deadline is not None and now >= self._deadline:
            self._requests.ask_to_stop(COLD)
        if self._embedded_beat is not None and not self._stopping:
            self._embedded_beat.look_after(now)
        if self._endpoint is not None:
            self._endpoint.wake(now)
        notify = self.notify
        if notify is not None and notify.watchdog_interval and now >= self._next_watchdog:
            self._next_watchdog = now + notify.watchdog_interval
            notify.watchdog()

    def _is_due(self) -> bool:
        """Tell whether it is time for what the last step said to look again for."""
        return self._next_due is not None and self._next_due <= self._broker.clock.now()

    def _is_taken(self) -> bool:
        """Tell whether another has taken what has come due, and note when the next is.

        All wake up for it, and a step keeps the others waiting. So who found it taken comes
        a few milliseconds later the next time, each at a place of its own, and who got it
        comes first again: one that is alone is never late.
        """
        busy = self._membership.look or self._attempts.leases or self._stopping
        if busy or self._outage.until:
            return False
        try:
            self._next_due = self._broker.next_due(self.queues)
        except BrokerUnavailable as exc:
            self._outage.meet(exc)
        taken = not self._is_due()
        if taken:
            self._behind = self._place()
        return taken

    def _place(self) -> float:
        """Return how long after the first it looks for what has come due. By the golden ratio,
        which spreads ids that follow one another."""
        return _BEHIND * (1 + self._membership.id * 0.618 % 1) / 2

    def _keep_store(self, now: float) -> None:
        """Do what is due in the store. Each call may fail, and is then made again."""
        membership = self._membership
        if membership.given_up:
            membership.come_back()
        if membership.mail:
            self._read_mail()
        if self.autoscaler is not None and self._is_ready and not self._stopping:
            self._scale(self.autoscaler, now)
        if now >= membership.next_beat:
            membership.beat(now)
            membership.disown(self._attempts.held)
        housekeeping = self._housekeeping
        if now >= housekeeping.next_look and housekeeping.look(now, self._idle_until()):
            membership.look_for_all()
        membership.look_after_peers()
        if now >= housekeeping.next_upkeep:
            housekeeping.keep_up(self._idle_until())

    def _idle_until(self) -> float | None:
        """Return when the next heartbeat is, if there is nothing to do before it."""
        busy = self._attempts.leases or self._embedded_beat or self.autoscaler
        return None if busy else self._membership.next_beat

    # Stopping

    def _begin_stop(self, pool: Pool) -> None:
        warm = self._requests.stop == WARM
        self._stopping = self._requests.stop
        self._announce(
            signals.worker_shutting_down,
            self.hostname,
            sig=self._requests.signal,
            how="Warm" if warm else "Cold",
            exitcode=self._exit_code,
        )
        if self._embedded_beat is not None:
            self._embedded_beat.stop()  # another beat is to lead while this worker ends
        if self.notify is not None:
            self.notify.stopping()
            self.notify.extend_timeout(self.grace + 5)
        if warm:
            if running := len(pool.running()):
                logger.warning(
                    "stopping: %s running, waiting up to %g s; a second signal returns "
                    "running tasks to the queue at once",
                    _count("task", running),
                    self.grace,
                )
            self._deadline = time.monotonic() + self.grace
            pool.stop()
        else:
            if running := len(pool.running()):
                self.unfinished = not self._has_processes()
                logger.warning(
                    "stopping now: %s returned to the queue", _count("running task", running)
                )
            self._deadline = time.monotonic() + _LAST_TRIES
            pool.stop(kill=True)

    def _hands_over_now(self) -> bool:
        """Tell whether tasks are to end at interruptible checkpoints. Asked from any thread: in
        a solo pool while the loop stands still."""
        return self.hands_over and self._requests.stop > 0

    def _is_over(self, pool: Pool) -> bool:
        attempts = self._attempts
        if self._stopping:
            if self._stopping == COLD and self._outage.until and self._is_late():
                logger.critical(
                    "stopping: the store could not be reached, so %s not recorded; "
                    "another worker will notice that and run them again",
                    _count("outcome", len(attempts.settlements)),
                )
                self._exit_code = EXIT_STORE
                return True
            return not (pool.alive() or attempts.leases or attempts.settlements)
        unfinished = self._membership.look or attempts.leases or attempts.settlements
        if self.burst and self._ready and not unfinished:
            self._requests.ask_to_stop(WARM)
        return False

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _obey(self) -> None:
        """Do what signals have asked for, other than to stop."""
        assert self.pool is not None
        requests = self._requests
        if requests.hang_up:
            requests.hang_up = False
            if self._has_terminal and not os.isatty(0):
                logger.warning("stopping: the terminal was closed")
                requests.signal = "SIGHUP"
                self.stop()
            elif self._has_processes():
                self._roll(self.pool)
            else:
                logger.warning("the %s pool has no children to replace", self.pool_kind)
        if requests.stacks:
            requests.stacks = False
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
        self._requests.forget()
        if self._embedded_beat is not None:
            self._embedded_beat.forget()

    def _forget_all(self) -> None:
        """Close, in the beat's process, what is this worker's alone."""
        self._forget_wake_up()
        for key in tuple(self._selector.get_map().values()):
            if isinstance(key.fileobj, int):
                os.close(key.fileobj)
            else:
                key.fileobj.close()  # type: ignore[attr-defined]  # a pipe, or a mailbox
        self._selector.close()  # not unregister(): the kernel's set is the worker's too

    # What the app knows

    def _known_tasks(self) -> frozenset[str]:
        tasks = self.app.tasks
        if self._seen != tasks.changes:
            self._seen = tasks.changes
            self._tasks = frozenset(tasks)
            self._time_limits.look_again()
            self._batching.look_again()
        return self._tasks


def _count(noun: str, number: int) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
