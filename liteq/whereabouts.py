"""What a call that has not ended is doing now, for whoever has waited too long for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

from liteq.brokers.base import Broker
from liteq.brokers.values import Record
from liteq.exceptions import BrokerError
from liteq.limits import limits_text
from liteq.message import LIMITS, QUEUE, RUN_AT, TASK
from liteq.wording import ago, span

__all__ = ["obstacles", "standing"]


def standing(record: Record | None, now: float, in_the_way: Mapping[str, str]) -> str:
    """Say in a few words where a call is and why; `in_the_way`: of queues, see `obstacles`."""
    if record is None:
        return "not in the store"
    packed = record.packed
    match record.state:
        case "waiting" if record.early:
            return "not sent yet"
        case "queued":
            return f"queued in {packed[QUEUE]!r}{in_the_way.get(packed[QUEUE], '')}"
        case "running":
            since = f" for {span(now - record.started_at)}" if record.started_at else ""
            return f"running{since}" + (f" on {record.worker}" if record.worker else "")
        case "scheduled" if packed[RUN_AT] is not None:
            return f"scheduled, due {ago(packed[RUN_AT], now)}"
        case "retrying" if packed[RUN_AT] is not None:
            return f"retrying, due {ago(packed[RUN_AT], now)}"
        case "parked":
            return f"parked: its workers know no task {packed[TASK]!r}"
        case "limited":
            return f"limited, {limits_text(packed[LIMITS])}" if packed[LIMITS] else "limited"
        case "waiting":
            return "waiting for other calls of its workflow"
        case state:
            return state


def obstacles(broker: Broker, records: Iterable[Record | None]) -> dict[str, str]:
    """Return why calls that are queued are not claimed, by queue, where the store tells: a
    look at the workers, and one at each of these queues."""
    found: dict[str, str] = {}
    queues = {one.packed[QUEUE] for one in records if one is not None and one.state == "queued"}
    if not queues:
        return found
    with suppress(BrokerError):  # the wait is over all the same
        consumed = {queue for worker in broker.workers() for queue in worker.queues}
        for queue in queues:
            if not broker.claimable([queue], 1):
                found[queue] = ", which is paused"
            elif queue not in consumed:
                found[queue] = ", which no worker consumes"
    return found
