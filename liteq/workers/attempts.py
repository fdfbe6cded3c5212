"""The attempts that a worker's pool has, and what became of them.

A lease is handed to the pool as a job, under a number of this worker's own. A message's key
will not do: a worker that was given up for dead may be given the same message again while
its first run of it still goes on.

What ends stays here until the store has taken it, and is offered again if it could not.

A job may be for many calls, which have numbers all the same: the job has that of the first.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from liteq import failure, signals
from liteq.brokers.values import Input, Lease, Said, Step
from liteq.delivery import FailedCalls
from liteq.exceptions import TimeLimitExceeded
from liteq.loggers import get_logger
from liteq.message import ACKS_LATE, EXPIRES_AT, TASK
from liteq.outcome import Failed, Lost, Outcome, Released, Revoked, Succeeded
from liteq.pool import Done, Event, Job, LostJob, Pool, Reported, Returned
from liteq.texts import readable
from liteq.workers.batching import Batching
from liteq.workers.dispatching import EventDispatcher
from liteq.workers.notices import Notices
from liteq.workers.runner import (
    job,
    job_of_many,
    read_answer,
    read_answers,
    read_report,
    read_report_of_many,
)
from liteq.workers.timelimits import TimeLimits

__all__ = ["Attempts", "Settlements"]

logger = get_logger("liteq.worker")

Settlements = list[tuple[Lease, Outcome]]

_new: Final = tuple.__new__  # a third of what Job(...) costs, for each message


class Attempts:
    """Those of one worker. `signal_of` is `Steering.signal_of`, and `find_failed` that of
    `delivery` with this worker's store; `ahead` tells by how many seconds the clock of that is
    ahead of ours. `max_deliveries` is what is said of a message that was lost."""

    def __init__(
        self,
        *,
        time_limits: TimeLimits,
        batching: Batching,
        notices: Notices,
        dispatcher: EventDispatcher,
        signal_of: Callable[[str, str], str | None],
        find_failed: Callable[[Sequence[Input]], FailedCalls],
        max_deliveries: int,
        ahead: Callable[[], float],
    ) -> None:
        self._time_limits = time_limits
        self._batching = batching
        self._notices = notices
        self._signal_of = signal_of
        self._dispatcher = dispatcher
        self._max_deliveries = max_deliveries
        self._find_failed = find_failed
        self._ahead = ahead
        self._jobs = 0
        self._together: dict[int, list[int]] = {}  # by the number of a job, if it has several
        self.leases: dict[int, Lease] = {}  # by the number of the job
        self.settlements: Settlements = []  # not yet in the store
        self._notes: dict[tuple[int, type[Said]], tuple[Lease, Said]] = {}  # nor these
        self.totals: Counter[str] = Counter()  # settled, by task
        self.settled = 0
        self.refused = 0
        self._terminating: dict[int, str] = {}  # by number: what was asked for
        self._untold: set[str] = set()  # ids of what was given back before it was received
        self._signals_sent: dict[str, int] = {}  # by id, to those whose end is not settled yet

    def hand_out(self, pool: Pool, leases: Sequence[Lease]) -> None:
        number = self._jobs
        limits_of = self._time_limits.of_run
        heard = bool(signals.task_received.receivers)
        told = self._dispatcher.heard
        batching = self._batching
        for lease in leases:
            number += 1
            self.leases[number] = lease
            if heard:
                self._notices.received(lease)
            if told:
                self._dispatcher.received(lease)
            if batching.sizes and batching.wants(lease):
                batching.put(number, lease, limits_of(lease))
                continue
            if lease.inputs or lease.packed[EXPIRES_AT] is not None:
                payload = self._payload(lease)
            else:
                payload = job(lease)
            pool.submit(_new(Job, (number, payload, *limits_of(lease))))
        self._jobs = number

    def hand_out_batches(self, pool: Pool, *, all: bool = False) -> None:
        """Have those calls run that have waited for others, as far as there is a child for
        them; with `all` those, too, that could wait for more."""
        if not pool.capacity():
            return
        for numbers in self._batching.ripe(all=all):
            first = numbers[0]
            limits = self._time_limits.of_run(self.leases[first])
            payloads = [self._payload(self.leases[number]) for number in numbers]
            if len(numbers) == 1:
                pool.submit(Job(first, payloads[0], *limits))
            else:
                self._together[first] = numbers
                pool.submit(Job(first, job_of_many(payloads), *limits))
            if not pool.capacity():
                break

    def give_back_batched(self) -> None:
        """Give back all that waits for others."""
        for numbers in self._batching.ripe(all=True):
            for number in numbers:
                self._settle(number, Released())

    def jobs(self) -> int:
        """Return how many jobs the pool has."""
        others = sum(len(numbers) - 1 for numbers in self._together.values())
        return len(self.leases) - len(self._batching) - others

    def numbers_of(self, key: int) -> Sequence[int]:
        """Return the numbers of the calls that a job is for."""
        return self._together.get(key) or (key,)

    def _payload(self, lease: Lease) -> bytes:
        return job(lease, self._find_failed(lease.inputs), self._expiry(lease))

    def _expiry(self, lease: Lease) -> float | None:
        """Return when a message expires by the clock of this machine, which its child has."""
        expires_at: float | None = lease.packed[EXPIRES_AT]
        return None if expires_at is None else expires_at - self._ahead()

    def give_back(self, lease: Lease) -> None:
        """Let go of a lease that nothing was started for."""
        self.settlements.append((lease, Released()))
        self._untold.add(lease.id)

    def refuse(self, lease: Lease, exc: Exception) -> None:
        """End a lease that nothing is started for: its message becomes a dead letter."""
        reason = readable(str(exc))
        logger.error("A message cannot be run: %s", reason)
        outcome = Failed(failure.describe(exc), dead=reason)
        self.settlements.append((lease, outcome))
        self._notice(lease, outcome)

    def held(self) -> list[Lease]:
        """Return the leases of what runs, waits to be run, or has ended and is not settled."""
        return [*self.leases.values(), *(lease for lease, _ in self.settlements)]

    def take(self, events: Sequence[Event]) -> list[Event]:
        """Take in what the pool says; return what is not of an attempt, or needs others."""
        others: list[Event] = []
        for event in events:
            if type(event) is Done:  # nearly all of them: `match` would ask them twice
                if self._together and (numbers := self._together.pop(event.key, None)):
                    for number, outcome in zip(
                        numbers, read_answers(event.payload), strict=True
                    ):
                        self._settle(number, outcome)
                    continue
                self._settle(event.key, read_answer(event.payload))
                continue
            match event:
                case Reported(key, payload):
                    if key in self._together:
                        place, said = read_report_of_many(payload)
                        key = self._together[key][place]
                    else:
                        said = read_report(payload)
                    lease = self.leases.get(key)
                    if lease is not None:
                        self._notes[key, type(said)] = (lease, said)  # the last one counts
                case Returned(key):
                    self._take_back(key)
                    others.append(event)
                case LostJob(key):
                    numbers = self._together.pop(key, None) or [key]
                    for number in numbers:
                        self._settle(number, self._explain(number, event))
                case _:
                    others.append(event)
        return others

    def _take_back(self, key: int) -> None:
        """A job was not started. Calls that have waited for others go on waiting for a child;
        the rest another worker may have a child for."""
        numbers = self._together.pop(key, None)
        if numbers is None:
            self._settle(key, Released())
        else:
            leases = {number: self.leases[number] for number in numbers}
            self._batching.put_back(leases, self._time_limits.of_run(leases[key]))

    def notes(self) -> Sequence[tuple[Lease, Said]]:
        """Return what tasks have said that is not yet in the store: of each, the last state
        and the last envelope. However long the store is away, there are no more."""
        return tuple(self._notes.values()) if self._notes else ()

    def stored(self) -> None:
        """Forget what is in the store by now."""
        self.settlements = []
        self._notes.clear()

    def _settle(self, key: int, outcome: Outcome) -> None:
        lease = self.leases.pop(key)
        if self._terminating:
            self._terminating.pop(key, None)
        self.settlements.append((lease, outcome))
        if type(outcome) is not Succeeded:
            self._notice(lease, outcome)

    def _notice(self, lease: Lease, outcome: Outcome) -> None:
        """Say what the child that ended the attempt has not said."""
        match outcome:
            case Failed(dead=str(reason)):
                self._notices.undecodable(lease, reason)
            case Revoked("expired"):
                self._notices.expired(lease)

    def _explain(self, key: int, event: LostJob) -> Outcome:
        """Return the outcome of an attempt that its process did not live to tell."""
        lease = self.leases[key]
        match event.kind:
            case "time_limit":
                limit = self._time_limits.of_run(lease)[1] or 0.0
                self._notices.timed_out(lease, limit)
                return Failed(failure.describe(TimeLimitExceeded(limit)), limit)
            case "terminated" if key in self._terminating:
                signum = self._signals_sent[lease.id] = _number(self._terminating[key])
                self._notices.terminated(lease, signum)
                return Revoked("terminated")
            case "terminated" if lease.packed[ACKS_LATE]:
                return Released()
            case "terminated":  # acks_late is off: it may have been started
                reason = "the worker was stopped before the task had ended"
                self._notices.lost(lease, reason, self._max_deliveries)
                return Lost(reason)
            case _:
                self._notices.lost(lease, event.reason, self._max_deliveries)
                return Lost(event.reason)

    def count(self, settlements: Settlements, step: Step) -> None:
        """Count what the store has taken of these, and say what it has refused."""
        # What a pool gave back without having started it has not been an attempt.
        ended = [
            lease.packed[TASK]
            for (lease, end), taken in zip(settlements, step.accepted, strict=True)
            if taken and type(end) is not Released
        ]
        self.settled += len(ended)
        self.totals.update(ended)
        if self._dispatcher.heard:
            for (lease, outcome), taken in zip(settlements, step.accepted, strict=True):
                if taken and lease.id not in self._untold:
                    self._dispatcher.ended(
                        lease, outcome, self._signals_sent.pop(lease.id, None)
                    )
        elif self._signals_sent:
            self._signals_sent.clear()
        if self._untold:
            self._untold.clear()
        if all(step.accepted):
            return
        for (lease, end), taken in zip(settlements, step.accepted, strict=True):
            if not taken and type(end) is not Released:  # else nothing had been done for it
                self.refused += 1
                logger.warning(
                    "the outcome of %s[%s] was refused: this worker had lost the lease",
                    lease.task,
                    lease.id,
                )

    def terminate(self, pool: Pool, wanted: Mapping[int, str]) -> None:
        """End the runs of these messages, each with the signal that was asked for; without
        one ("revoked"), those that wait for others."""
        for number, lease in list(self.leases.items()):
            name = wanted.get(lease.key)
            if name is None or self._terminating.get(number) == name:
                continue
            if name == "revoked":
                if self._batching.drop(number):
                    self._settle(number, Revoked(name))
                continue
            asked, name = name, self._signal_of(name, lease.id)
            if name is None:
                self._terminating[number] = asked  # it is not looked at again
                continue
            self._terminating[number] = asked  # another signal than before is sent as well
            job = self._job_of(number)
            others = len(self.numbers_of(job)) - 1
            if others and name == "SIGUSR1":  # which all of them would end with
                logger.warning(
                    "Task %s[%s] runs on: the soft time limit is that of its whole run (other "
                    "calls: %d)",
                    lease.task,
                    lease.id,
                    others,
                )
                continue
            logger.info(
                "ending Task %s[%s], attempt %d, with %s%s",
                lease.task,
                lease.id,
                lease.delivery,
                name,
                f"; the rest of its run ({others}) is started again" if others else "",
            )
            if self._batching.drop(number):
                lost = LostJob(number, "terminated before its start", "terminated")
                self._settle(number, self._explain(number, lost))
            elif not pool.terminate(job, _number(name)):
                logger.warning(
                    "the %s pool cannot end Task %s[%s]: it runs on",
                    pool.kind,
                    lease.task,
                    lease.id,
                )

    def _job_of(self, number: int) -> int:
        """Return the number of the job that a call is in."""
        jobs = (key for key, numbers in self._together.items() if number in numbers)
        return next(jobs, number)


def _number(name: str) -> int:
    """Return a signal's number: of `SIGTERM`, if this system has none of that name."""
    return int(getattr(signal, name, signal.SIGTERM))
