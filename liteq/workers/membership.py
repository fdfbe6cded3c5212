"""A worker's place among the others: registered in the store, alive, and woken by it.

What the store has for the worker is noted here until its loop has seen to it.
"""

from __future__ import annotations

import contextlib
import selectors
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from liteq import signals
from liteq.brokers.base import HELLO, MAIL, ORDERS, Broker, Mailbox
from liteq.brokers.values import Lease, Step
from liteq.exceptions import BrokerError
from liteq.limits import limits_by_task
from liteq.loggers import get_logger
from liteq.workers.announcing import Announcer
from liteq.workers.peers import Peers
from liteq.workers.timer import RepeatingTimer

__all__ = ["Membership"]

logger = get_logger("liteq.worker")


class Member(Protocol):
    """What the others may know of a worker. All of it may change while it runs."""

    @property
    def hostname(self) -> str: ...
    @property
    def queues(self) -> tuple[str, ...]: ...
    @property
    def concurrency(self) -> int: ...
    def details(self) -> dict[str, Any]: ...


class Membership:
    """That of one worker, by whose loop's thread all of this is called.

    The loop reads these, which only the methods set. `id`: 0 until it has joined. `look`: the
    store may hold something claimable. `standby`: the token of the leases that are brought to
    it by wake-ups; 0: none are, None: it has not been asked for, or is unknown after an error.
    `orders`: the store may have word that a run is to be ended, or that somebody listens.
    `mail`: commands wait. `given_up`: the others think this worker dead. `next_beat`: when it
    is to say that it is not, by the monotonic clock. `take_over` is called with the leases that
    have come, `came_back` when the worker goes on under a new id, after what it held has been
    given to others.
    """

    def __init__(
        self,
        member: Member,
        broker: Broker,
        tasks: Callable[[], Mapping[str, Any]],
        *,
        announce: Announcer,
        take_over: Callable[[Sequence[Lease]], None],
        came_back: Callable[[], None],
    ) -> None:
        self._member = member
        self._broker = broker
        self._tasks = tasks
        self._announce = announce
        self._take_over = take_over
        self._came_back = came_back
        self._selector: selectors.BaseSelector
        self._mailbox: Mailbox | None = None
        self._heartbeat_timer: RepeatingTimer | None = None
        self._peers = Peers(broker)
        self.id = 0
        self.look = True
        self.standby: int | None = None
        self.orders = False
        self.mail = False
        self.given_up = False
        self.next_beat = 0.0

    def join(self, selector: selectors.BaseSelector) -> None:
        """Register, and be woken through this selector."""
        self._selector = selector
        # Before the first claim: what is declared holds for what has been waiting.
        self._broker.declare_limits(limits_by_task(self._tasks()))
        member = self._member
        self.id = self._broker.register(
            member.hostname, member.queues, member.concurrency, member.details()
        )
        self.standby = None
        self._listen()
        self.next_beat = time.monotonic() + self._broker.beat_interval

    def _listen(self) -> None:
        self.mail = True  # what came before there was a mailbox to hear it by
        self._close_mailbox()
        self._mailbox = self._broker.mailbox(self.id)
        if self._mailbox.fileno() >= 0:
            # Not its number: in a forked child the mailbox knows whether that is its own still.
            self._selector.register(self._mailbox, selectors.EVENT_READ, self._on_wake_up)

    def beat_in_thread(self) -> None:
        """Have another thread beat as well, for a loop that long tasks hold up."""
        self._heartbeat_timer = RepeatingTimer(
            "liteq-heartbeat", self._broker.beat_interval, self._only_beat
        )

    def _only_beat(self) -> None:
        """Beat, and no more: should the worker be given up for dead, its loop finds out."""
        with contextlib.suppress(BrokerError):
            self._broker.beat(self.id)

    def changed(self) -> None:
        """Have the others told of a change, and the store looked at in its light."""
        self.look_again()
        self.beat_soon()

    def look_again(self) -> None:
        """Have the store looked at for something claimable."""
        self.look = True

    def look_for_orders(self) -> None:
        """Have the store asked which runs are to be ended, and whether somebody listens."""
        self.orders = True

    def look_for_all(self) -> None:
        """Have the store looked at for whatever a wake-up tells of: one may be lost."""
        self.look = self.orders = True

    def looked(self, *, more: bool) -> None:
        """A step has claimed. `more`: it may not have taken all."""
        self.look = more

    def learn(self, step: Step, *, idle: bool) -> None:
        """Take in what a step said of this worker; when `idle`, it was to stand by."""
        if idle:
            self.standby = step.standby
        self.orders = False
        self.mail = self.mail or step.mail
        self.given_up = self.given_up or not step.alive

    def learn_nothing(self) -> None:
        """Take in that a step failed: whether it was made is unknown."""
        self.standby = None

    def collect(self) -> list[bytes]:
        """Return the commands that wait."""
        letters = self._broker.collect(self.id)
        self.mail = False
        return letters

    def beat_soon(self) -> None:
        """Say that the worker lives in the loop's next turn."""
        self.next_beat = 0.0

    def beat(self, now: float) -> None:
        """Say that the worker lives."""
        member = self._member
        if not self._broker.beat(
            self.id, member.details(), queues=member.queues, concurrency=member.concurrency
        ):
            self.come_back()
        if self._mailbox is not None and self._mailbox.is_gone():
            self._listen()
        self.next_beat = now + self._broker.beat_interval
        self._peers.died = True  # on another host, where only missing heartbeats show it
        self.look_for_all()  # whatever `Broker.changed()` may not have seen
        self._announce(signals.heartbeat_sent, member)

    def is_late(self) -> bool:
        """Tell whether a heartbeat was left out: the process was stopped, perhaps, and what it
        held has been taken back."""
        return time.monotonic() - self.next_beat > self._broker.beat_interval

    def disown(self, held: Callable[[], Collection[Lease]]) -> None:
        """Take back what the store believes that this worker runs besides what it holds."""

        def known() -> Collection[Lease]:
            self._on_wake_up(0)
            return held()

        if taken := self._broker.disown(self.id, known):
            messages = "1 message" if taken == 1 else f"{taken} messages"
            logger.warning(
                "took back %s: the server has forgotten how it ended, or it never came here",
                messages,
            )
            self.standby = None  # nor is anything believed that is on its way
            self.look_again()

    def come_back(self) -> None:
        """Go on under a new id, having been given up for dead.

        What still runs runs on: its outcomes will be refused, one by one.
        """
        logger.warning("the others had taken this worker for dead: it starts over")
        self.join(self._selector)
        self._came_back()
        self.given_up = False
        self.look_again()

    def look_after_peers(self) -> None:
        """Take back what those that died held, and watch those that there are now."""
        if self._peers.died:
            self.reclaim()
        if self._peers.look:
            self._peers.find(self._selector)

    def reclaim(self) -> None:
        """Take back what workers that died held."""
        if taken := self._broker.reclaim(self.id):
            messages = "1 message" if taken == 1 else f"{taken} messages"
            logger.warning("took back %s of workers that died", messages)
            self.look_again()
        self._peers.died = False

    def leave(self) -> None:
        """Sign off."""
        self._broker.unregister(self.id)

    def close(self) -> None:
        """Be woken no more."""
        if self._heartbeat_timer is not None:
            self._heartbeat_timer.stop()
        self._peers.close()
        self._close_mailbox()

    def _on_wake_up(self, _mask: int) -> None:
        assert self._mailbox is not None
        words = self._mailbox.receive()
        if leases := self._mailbox.leases():
            self._take_over(leases)
        if not words:
            return
        if HELLO in words:
            self._peers.look = True
        if ORDERS in words:
            self.orders = True
        if MAIL in words:
            self.mail = self.orders = True
        self.look = True

    def _close_mailbox(self) -> None:
        mailbox = self._mailbox
        if mailbox is not None:
            if mailbox.fileno() >= 0:
                with contextlib.suppress(KeyError):  # interrupted before it was registered
                    self._selector.unregister(mailbox)
            mailbox.close()
            self._mailbox = None
