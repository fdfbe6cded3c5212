"""The pages: each reads the store once more, and changes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import tzinfo
from fnmatch import fnmatchcase
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, Final

from liteq import digest
from liteq.brokers.searching import Search
from liteq.drawing import BRANCHES, Line, draw
from liteq.operating import describe, latest
from liteq.searches import STATES, UNFINISHED, instant, read_moment, read_states
from liteq.web.visits import Page, Visit

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.brokers.base import QueueInfo, Record, WorkflowInfo

__all__ = ["FILTERS", "PAGES", "filters_of", "search_of"]

SHOWN: Final = 50  # rows of a list
FEW: Final = 10  # rows of a list beside others
SUGGESTED: Final = 200  # names of tasks: 50 bytes each, with every look at the page
_LOOKED_AT: Final = 500  # of what runs, to find what has for the longest
FILTERS: Final = ("state", "queue", "task", "since", "until", "dead", "reason", "workflow")


def overview(visit: Visit) -> Page:
    app = visit.app
    queues = app.queues()
    workers = app.control.status(0)
    now = app.broker.clock.now()
    running = app.broker.browse("running", limit=_LOOKED_AT)
    running.sort(key=lambda one: one.started_at or now)
    failed = latest(app.broker, Search(states=frozenset({"failed"})), FEW)
    return Page(
        "overview.html",
        {
            "totals": _totals(queues),
            "latency": max((one.latency or 0.0 for one in queues), default=0.0),
            "pace": visit.pace.note(time.monotonic(), workers),
            "alive": sum(one.state == "alive" for one in workers),
            "queues": [_queue(app, one, workers) for one in queues],
            "workers": workers,
            "running": [_row(one, now) for one in running[:FEW]],
            "failed": [_row(record, now) for _, record in failed],
        },
    )


def tasks(visit: Visit) -> Page:
    app = visit.app
    filters = filters_of(visit)
    names = _names(app)
    values: dict[str, Any] = {
        "filters": filters,
        "states": ("unfinished", *STATES),
        "queues": sorted(app.select_queues()),  # to count those of the store takes longer
        "names": names[:SUGGESTED],
        "are_more": len(names) > SUGGESTED,
        "rows": [],
        "older": None,
        "trouble": "",
    }
    try:
        search = search_of(filters, app.timezone)
        before = _number(visit.text("before"))
    except ValueError as exc:
        return Page("tasks.html", {**values, "trouble": str(exc)}, 400)
    found = latest(app.broker, search, SHOWN, before=before)
    now = app.broker.clock.now()
    values["rows"] = [_row(record, now) for _, record in found]
    if len(found) == SHOWN:
        values["older"] = found[-1][0].number
    return Page("tasks.html", values)


def names(visit: Visit) -> Page:
    """What is suggested to who has typed a part of a task's name."""
    return Page("names.html", {"names": _names(visit.app, visit.text("part"))[:SUGGESTED]})


def task(visit: Visit) -> Page:
    app = visit.app
    told = describe(app, visit.text("id"))
    now = app.broker.clock.now()
    progress = told["progress"] or {}
    return Page(
        "task.html",
        {
            "told": told,
            "state": "dead" if told["dead"] is not None else told["state"],
            "unfinished": told["state"] in UNFINISHED,
            "progress": digest.progress_text(told["progress"]),
            "done": progress.get("done"),
            "total": progress.get("total"),
            "happenings": list(digest.timeline(told, now)),
        },
    )


def workflows(visit: Visit) -> Page:
    found = visit.app.broker.workflows(SHOWN)
    return Page("workflows.html", {"rows": [_workflow(one) for one in found]})


def workflow(visit: Visit) -> Page:
    app = visit.app
    made = app.workflow(visit.text("id"))
    known = made.info
    nodes, edges = made.graph()
    everything = bool(visit.text("all"))
    lines = draw(nodes, edges, branches=None if everything else BRANCHES)
    return Page(
        "workflow.html",
        {
            "known": _workflow(known),
            "lines": [_line(one) for one in lines],
            "errors": digest.failures(
                app.broker, [one.node for one in lines if one.node is not None]
            ),
            "is_cut": not everything and any(one.remark.startswith("…") for one in lines),
        },
    )


def schedules(visit: Visit) -> Page:
    kept = visit.app.schedules
    wanted, after = visit.text("entry").strip(), visit.text("after")
    known = kept.names()
    pattern = (wanted or "*").replace("[", "[[]")  # as of a task's name
    found = [name for name in known if name > after and fnmatchcase(name, pattern)]
    return Page(
        "schedules.html",
        {
            "wanted": wanted,
            "after": after,
            "entries": [(entry, entry.next(2)) for entry in kept.list(found[:SHOWN])],
            "more": found[SHOWN - 1] if len(found) > SHOWN else "",
            "total": len(known),
            "new": sorted(kept.declarations().keys() - known),
        },
    )


def workers(visit: Visit) -> Page:
    return Page("workers.html", {"workers": visit.app.control.status(0)})


PAGES: Final = {
    "/": overview,
    "/tasks": tasks,
    "/names": names,
    "/task": task,
    "/workflows": workflows,
    "/workflow": workflow,
    "/schedules": schedules,
    "/workers": workers,
}


# What is looked for


def filters_of(visit: Visit) -> dict[str, str]:
    """Return what the form above the list says, without what it leaves open."""
    found = {name: visit.text(name).strip() for name in FILTERS}
    found["state"] = ",".join(filter(None, map(str.strip, visit.texts("state"))))
    return {name: text for name, text in found.items() if text}


def search_of(filters: Mapping[str, str], zone: tzinfo) -> Search:
    """Return the search for what a form says, times without an offset in this zone. Raises
    `ValueError`, with what to write."""
    since, until = (
        instant(read_moment(filters[name]), zone) if name in filters else None
        for name in ("since", "until")
    )
    dead = "dead" in filters
    return Search(
        states=read_states(filters.get("state", "")),
        queue=filters.get("queue"),
        task=filters.get("task"),
        dead=dead,
        reason=filters.get("reason"),
        workflow=filters.get("workflow"),
        since=None if dead else since,
        until=None if dead else until,
        died_since=since if dead else None,
        died_until=until if dead else None,
    )


def _names(app: Liteq, part: str = "") -> list[str]:
    """Return the first names of tasks that have this in them, one more than are suggested if
    there are more."""
    part = part.strip().lower()
    own = (name for name in app.tasks if not name.startswith("liteq."))
    return nsmallest(SUGGESTED + 1, (name for name in own if part in name.lower()))


def _number(text: str) -> int | None:
    """Read a place in the order of arrival, which is below 2**63. Raises `ValueError`."""
    if not text:
        return None
    if not (text.isdecimal() and len(text) < 19):
        raise ValueError(f"the list continues before a number, and {text!r} is not one")
    return int(text)


# Rows


def _totals(queues: Sequence[QueueInfo]) -> dict[str, int]:
    totals: dict[str, int] = {"dead": sum(one.dead for one in queues)}
    for state in UNFINISHED:  # "retrying" is among "scheduled"
        totals[state] = sum(one.counts.get(state, 0) for one in queues)
    return totals


def _queue(app: Liteq, info: QueueInfo, workers: Sequence[Any]) -> dict[str, Any]:
    served = sum(info.name in w.info.queues for w in workers if w.state == "alive")
    return {"info": info, "counts": info.counts, "workers": served}


def _row(record: Record, now: float) -> dict[str, Any]:
    message = record.outline
    return {
        "id": record.id,
        "state": digest.state_of(record),
        "task": message.task,
        "queue": message.queue,
        "enqueued_at": record.enqueued_at,
        "took": digest.took(record, now),
        "remark": digest.remark(record, now),
    }


def _workflow(known: WorkflowInfo) -> dict[str, Any]:
    return {
        "id": known.id,
        "name": known.name or "workflow",
        "state": known.state,
        "done": known.done,
        "total": known.total,
        "failed": known.failed,
        "created_at": known.created_at,
    }


def _line(line: Line) -> dict[str, Any]:
    node = line.node
    lasted = None
    if node is not None and node.started_at is not None and node.settled_at is not None:
        lasted = node.settled_at - node.started_at
    return {"prefix": line.prefix, "node": node, "remark": line.remark, "took": lasted}
