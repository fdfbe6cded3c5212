"""One step of a worker whose queues have weights: a claim from each queue whose turn it is.

A queue that has less than its share leaves the rest to the others, in the same step of the
worker; so no child is idle while anything is claimable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from liteq.brokers.values import Lease, Said, Step
from liteq.exceptions import BrokerUnavailable, QueueFull
from liteq.outcome import Outcome
from liteq.shares import Shares

__all__ = ["step_in_turns"]


def step_in_turns(
    ask: Callable[..., Step],
    shares: Shares,
    *,
    settlements: Sequence[tuple[Lease, Outcome]],
    notes: Sequence[tuple[Lease, Said]],
    queues: Sequence[str],
    limit: int,
) -> Step:
    """Return what comes of several calls of `Broker.step` as of one. `limit` is above 0.

    The first of them settles. If it cannot reach the store, that is raised; if a later one
    cannot, what is claimed already is returned, for it is to be run.
    """
    whole: Step | None = None
    asked, missing = list(queues), limit
    while missing > 0 and (planned := shares.plan(asked, missing)):
        for queue, count in planned.items():
            if whole is None:
                step = whole = ask(
                    settlements=settlements, notes=notes, queues=(queue,), limit=count
                )
            else:
                try:
                    step = ask(queues=(queue,), limit=count)
                except (BrokerUnavailable, QueueFull):
                    return whole
                whole = _joined(whole, step)
            found = len(step.leases)
            shares.took(queue, found, was_empty=found < count)
            if found < count:
                asked.remove(queue)
            missing -= found
    assert whole is not None  # a worker has a queue
    return whole


def _joined(one: Step, other: Step) -> Step:
    due = [moment for moment in (one.next_due, other.next_due) if moment is not None]
    return one._replace(
        leases=(*one.leases, *other.leases),
        next_due=min(due, default=None),
        terminate={**one.terminate, **other.terminate},
        alive=other.alive,
        aside=(*one.aside, *other.aside),
        mail=one.mail or other.mail,
        heard=one.heard or other.heard,
    )
