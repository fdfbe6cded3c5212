"""What is worth saying of a message: in a line of a list, and of its life from its start.

The terminal and the pages for operators say the same, by these words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from liteq.einfo import line
from liteq.limits import limits_text
from liteq.operating import error_of
from liteq.wording import ago, span

if TYPE_CHECKING:
    from liteq.brokers.base import Broker
    from liteq.brokers.values import Node, Record

__all__ = [
    "Happening",
    "error_line",
    "failures",
    "progress_text",
    "remark",
    "state_of",
    "timeline",
    "took",
]

_LONGEST: Final = 100  # characters of an error in a line
_NOT_BEGUN: Final = ("queued", "scheduled", "waiting")


class Happening(NamedTuple):
    """Something that happened to a message. `at`: when, in Unix seconds (None: it is so
    now); `traceback`: of the error that ended an attempt."""

    at: float | None
    what: str
    traceback: str | None = None


def state_of(record: Record) -> str:
    """Return the state in a word; that of a dead letter is "dead"."""
    return "dead" if record.dead is not None else record.state


def took(record: Record, now: float) -> str:
    """Return how long a message ran, or has been running."""
    if record.started_at is None or record.state in _NOT_BEGUN:
        return ""
    end = now if record.state == "running" else record.settled_at
    return span(end - record.started_at) if end is not None else ""


def remark(record: Record, now: float) -> str:
    """Say in a few words what is worth knowing of a message in its state."""
    message = record.outline
    match record.state:
        case "running":
            told = f" · {record.note.state}" if record.note else ""
            return f"on {record.worker}{told}" if record.worker else ""
        case "scheduled":
            return ago(message.run_at, now)
        case "retrying":
            return f"{ago(message.run_at, now)}: {error_line(record)}"
        case "parked":
            return "no worker that has seen it knows its task"
        case "limited":
            return limits_text(message.limits)
        case "revoked":
            return record.revoked or ""
        case "failed":
            return record.dead or error_line(record)
        case _:
            return ""


def error_line(record: Record) -> str:
    """Return the first line of the error that a message ended with, or was retried for."""
    if record.state not in ("failed", "retrying") or (error := error_of(record.result)) is None:
        return ""
    return line(f"{error['type']}: {error['message']}")[:_LONGEST]


def failures(broker: Broker, nodes: Iterable[Node]) -> dict[str, str]:
    """Return, by id, what nodes of a workflow failed with, in a line each. What failed only
    because of another is left out."""
    failed = [node.id for node in nodes if node.state == "failed" and not node.upstream]
    records = broker.get(failed) if failed else {}
    return {id: told for id, record in records.items() if (told := error_line(record))}


def progress_text(progress: Mapping[str, Any] | None) -> str | None:
    """Return in words what `operating.describe()` tells of a progress."""
    if progress is None:
        return None
    if progress.get("total"):
        text = f"{progress['done']:g} of {progress['total']:g}"
    else:
        text = str(progress.get("done", progress["state"]))
    return f"{text} · {progress['message']}" if progress.get("message") else text


def timeline(told: Mapping[str, Any], now: float) -> Iterator[Happening]:
    """Yield what happened to a message, of which `operating.describe()` tells."""
    if told["state"] == "unsent":
        yield Happening(told["enqueued_at"], f"state stored, {ago(told['enqueued_at'], now)}")
        yield Happening(None, "not sent yet: no call of this id is in the store")
        return
    yield Happening(told["enqueued_at"], f"enqueued, {ago(told['enqueued_at'], now)}")
    if told["attempts"] and (earlier := told["attempts"][0]["number"] - 1):
        yield Happening(None, f"{earlier:,} earlier {'attempts' if earlier > 1 else 'attempt'}")
    for attempt in told["attempts"]:
        error = attempt["error"]
        began = attempt["started_at"]
        lasted = f" after {span(attempt['ended_at'] - began)}" if began is not None else ""
        on = f" on {attempt['worker']}" if attempt["worker"] else ""
        why = f": {error['type']}: {error['message']}" if error else ""
        yield Happening(
            attempt["ended_at"],
            f"attempt {attempt['number']} {attempt['outcome']}{lasted}{on}{why}",
            error["traceback"] if error else None,
        )
    on = f" on {told['worker']}" if told["worker"] else ""
    match told["state"]:
        case "running":
            yield Happening(told["started_at"], f"running{on}")
        case "scheduled" | "retrying":
            yield Happening(told["run_at"], f"due {ago(told['run_at'], now)}")
        case "parked":
            yield Happening(None, "parked: no worker that has seen it knows its task")
        case "limited":
            yield Happening(
                None, "limited: it waits for its turn under a rate or a concurrency"
            )
        case "waiting":
            yield Happening(None, "waiting for others")
        case "succeeded":
            lasted = ""
            if told["started_at"] is not None:
                lasted = f" after {span(told['settled_at'] - told['started_at'])}"
            yield Happening(told["settled_at"], f"succeeded{lasted}{on}")
        case "failed" if not told["attempts"]:
            error = told["error"] or {"type": "", "message": "", "traceback": None}
            yield Happening(
                told["settled_at"],
                f"failed: {error['type']}: {error['message']}",
                error["traceback"],
            )
        case "revoked" | "ignored":
            yield Happening(told["settled_at"], told["state"])
