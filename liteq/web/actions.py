"""What the buttons do. Each is a POST, does a bounded piece of work, and moves on to a page.

What is done to all that a form's filters find is counted and asked for first. It goes batch
by batch, and for `BUDGET` seconds at most: then the page says how many were done, and the
same button goes on with the rest.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple

from liteq import operating
from liteq.brokers.base import Broker
from liteq.brokers.searching import Search
from liteq.loggers import get_logger
from liteq.searches import UNFINISHED
from liteq.web.steering import ASKED, WORKER_ACTIONS
from liteq.web.views import filters_of, search_of
from liteq.web.visits import Moved, Page, Visit
from liteq.wording import shown

__all__ = ["ACTIONS", "PERMISSIONS", "Action", "said"]

logger = get_logger("liteq.web")

BUDGET: Final = 10.0  # seconds of work for one request
MOST_COUNTED: Final = 100_000  # before one is asked


class Action(NamedTuple):
    """What a button does; `permission`: what `can` is asked for."""

    permission: str
    run: Callable[[Visit], Moved | Page]


# Tasks


def _retried(broker: Broker, wanted: Search | list[str]) -> Iterator[Counter[str]]:
    for some in operating.retry(broker, wanted):
        yield Counter(done=len(some.ids)) + _passed_over(some.passed)


def _passed_over(passed: Mapping[str, str]) -> Counter[str]:
    """Log why each of these was passed over, and count them for the page."""
    for id, why in passed.items():
        logger.info("passed over: %s: %s", shown(id), shown(why))
    return Counter(
        "expired" if why == operating.EXPIRED else "passed" for why in passed.values()
    )


def _cancelled(broker: Broker, wanted: Search | list[str]) -> Iterator[Counter[str]]:
    for became in operating.cancel(broker, wanted):
        yield Counter(done=became["revoked"], running=became["running"])


def _ended(broker: Broker, wanted: Search | list[str]) -> Iterator[Counter[str]]:
    for became in operating.cancel(broker, wanted, terminate="SIGTERM"):
        yield Counter(done=became["revoked"] + became["signalled"], running=became["running"])


def _dropped(broker: Broker, wanted: Search | list[str]) -> Iterator[Counter[str]]:
    for number in operating.drop(broker, wanted):
        yield Counter(done=number)


class _Steer:
    """Does something to the tasks that were chosen, or to all that the filters find."""

    def __init__(
        self,
        verb: str,
        steer: Callable[[Broker, Search | list[str]], Iterator[Counter[str]]],
        narrow: Callable[[Search], Search | None],
        *,
        asks: bool = False,
    ) -> None:
        self._verb = verb
        self._steer = steer
        self._narrow = narrow
        self._asks = asks

    def __call__(self, visit: Visit) -> Moved | Page:
        broker = visit.app.broker
        filters = filters_of(visit)
        ids = visit.texts("id")
        back = Moved("/tasks", filters)
        if visit.text("alone") and len(ids) == 1:
            back = Moved("/task", {"id": ids[0]})
        everything = bool(visit.text("all"))
        wanted: Search | list[str] | None = ids
        if everything:
            wanted = self._narrow(search_of(filters, visit.app.timezone))
        if not wanted:
            return _with(back, said=f"{self._verb}.0")
        if (everything or self._asks) and not visit.text("sure"):
            number = len(ids)
            if isinstance(wanted, Search):
                number = sum(1 for _ in islice(broker.find(wanted), MOST_COUNTED))
            return Page(
                "sure.html",
                {
                    "verb": self._verb,
                    "number": number,
                    "most": number == MOST_COUNTED,
                    "ids": ids,
                    "everything": everything,
                    "filters": filters,
                    "back": back.address,
                },
            )
        became, is_all = _worked(self._steer(broker, wanted))
        what = f"all with {filters}" if everything else ", ".join(ids)
        user = shown(visit.user)
        logger.info("%s: %s: %d (%s)", user, self._verb, became["done"], shown(what))
        if self._verb == "drop" and back.path == "/task":
            back = Moved("/tasks", {"dead": "1"})
        parts = [self._verb, *_counts(became)]
        return _with(back, said=".".join(parts if is_all else [*parts, "more"]))


def _counts(became: Counter[str]) -> list[str]:
    passed = ("expired", "passed") if became["expired"] or became["passed"] else ()
    return [str(became[key]) for key in ("done", "running", *passed)]


def _worked(batches: Iterable[Counter[str]]) -> tuple[Counter[str], bool]:
    """Take batches until the time is over. Return what became of them, and whether that was
    all."""
    end = time.monotonic() + BUDGET
    became: Counter[str] = Counter()
    for one in batches:
        became.update(one)
        if time.monotonic() > end:
            return became, False
    return became, True


def _failed(search: Search) -> Search | None:
    if search.states and "failed" not in search.states:
        return None
    return search._replace(states=frozenset({"failed"}))


def _unfinished(search: Search) -> Search | None:
    states = (search.states or frozenset(UNFINISHED)).intersection(UNFINISHED)
    return search._replace(states=states) if states and not search.dead else None


def _dead(search: Search) -> Search | None:
    return search._replace(dead=True)


# Queues, workflows, schedules


def _pause(visit: Visit) -> Moved:
    return _queue(visit, "pause", visit.app.pause_queue)


def _resume(visit: Visit) -> Moved:
    return _queue(visit, "resume", visit.app.resume_queue)


def _queue(visit: Visit, verb: str, change: Callable[[str], Any]) -> Moved:
    name = visit.named("queue")
    change(name)
    logger.info("%s: %s: queue %s", shown(visit.user), verb, shown(name))
    return Moved("/", {})


def _purge(visit: Visit) -> Moved | Page:
    name = visit.named("queue")
    if not visit.text("sure"):
        waiting = sum(one.length for one in visit.app.queues() if one.name == name)
        return Page(
            "sure.html",
            {
                "verb": "purge",
                "number": waiting,
                "most": False,
                "ids": [],
                "everything": False,
                "filters": {"queue": name},
                "back": "/",
            },
        )
    number = visit.app.broker.purge([name])
    logger.info("%s: purge: %d of queue %s", shown(visit.user), number, shown(name))
    return Moved("/", {"said": f"purge.{number}"})


def _retry_workflow(visit: Visit) -> Moved:
    id = visit.text("id")
    broker, workflow = visit.app.broker, visit.app.workflow(id)
    failed = {node.id for node in workflow.nodes if node.state == "failed"}
    again = workflow.retry_failed()
    logger.info("%s: retry: %d of workflow %s", shown(visit.user), len(again), shown(id))
    passed = operating.passed_over(broker, failed.difference(again), failed=True)
    became = Counter(done=len(again)) + _passed_over(passed)
    return Moved("/workflow", {"id": id, "said": ".".join(["retry", *_counts(became)])})


def _cancel_workflow(visit: Visit) -> Moved:
    id = visit.text("id")
    became = Counter(visit.app.workflow(id).cancel().values())
    done = became["revoked"]
    logger.info("%s: cancel: %d of workflow %s", shown(visit.user), done, shown(id))
    told = f"cancel.{done}.{became['running']}"
    return Moved("/workflow", {"id": id, "said": told})


def _pause_schedule(visit: Visit) -> Moved:
    return _schedule(visit, "pause", visit.app.schedules.pause)


def _resume_schedule(visit: Visit) -> Moved:
    return _schedule(visit, "resume", visit.app.schedules.resume)


def _schedule(visit: Visit, verb: str, change: Callable[[str], Any]) -> Moved:
    name = visit.text("name")
    change(name)
    logger.info("%s: %s: schedule %s", shown(visit.user), verb, shown(name))
    place = {field: visit.text(field) for field in ("entry", "after")}
    return Moved("/schedules", place)


def _run_schedule(visit: Visit) -> Moved:
    name = visit.text("name")
    sent = visit.app.schedules.run_now(name)
    logger.info("%s: run: schedule %s as %s", shown(visit.user), shown(name), sent.id)
    return Moved("/task", {"id": sent.id})


ACTIONS: Final = {
    "/retry": Action("retry", _Steer("retry", _retried, _failed)),
    "/cancel": Action("cancel", _Steer("cancel", _cancelled, _unfinished)),
    "/end": Action("cancel", _Steer("end", _ended, _unfinished)),
    "/drop": Action("drop", _Steer("drop", _dropped, _dead, asks=True)),
    "/pause": Action("pause", _pause),
    "/resume": Action("pause", _resume),
    "/purge": Action("purge", _purge),
    "/workflow/retry": Action("retry", _retry_workflow),
    "/workflow/cancel": Action("cancel", _cancel_workflow),
    "/schedule/pause": Action("schedule", _pause_schedule),
    "/schedule/resume": Action("schedule", _resume_schedule),
    "/schedule/run": Action("schedule", _run_schedule),
    **{path: Action("worker", ask) for path, ask in WORKER_ACTIONS.items()},
}
PERMISSIONS: Final = frozenset(action.permission for action in ACTIONS.values())


# What was done, in the address of the page that follows

_DONE: Final = {
    "retry": "queued again",
    "cancel": "revoked",
    "end": "revoked or being ended",
    "drop": "deleted",
    "purge": "deleted",
}

_OTHERS: Final = (
    "still running may finish",
    "passed over, having expired by the signed time",
    "passed over, for reasons that the log gives",
)


def said(text: str) -> str:
    """Return what an address says was done: "retry.12.0.more", or "retry.12.0.3.1.more" if
    some were passed over, having expired or for other reasons. For any other: nothing."""
    verb, number, *rest = (*text.split("."), "")
    if verb in ASKED and number in ("0", "1"):
        silent = "" if number == "1" else "; it has not answered, and obeys when it can"
        return f"The worker was {ASKED[verb]}{silent}"
    if verb not in _DONE or not number.isdecimal() or len(number) > 12:
        return ""
    told = f"{int(number):,} {'task' if int(number) == 1 else 'tasks'} {_DONE[verb]}"
    others = [int(some[:12]) for some in rest if some.isdecimal()]
    if verb == "retry" and not int(number) and not any(others):
        told += ": what did not run because of another task comes back with that task"
    for some, words in zip(others, _OTHERS, strict=False):
        told += f"; {some:,} {words}" if some else ""
    if "more" in rest:
        told += ". There is more: press the button again"
    return told


def _with(moved: Moved, **fields: str) -> Moved:
    return moved._replace(fields={**moved.fields, **fields})
