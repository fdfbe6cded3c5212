"""The commands that only look at a worker. Names and replies are Celery's."""

from __future__ import annotations

import resource
import time
from typing import TYPE_CHECKING, Any, Final

from liteq.brokers.values import Lease, Record
from liteq.commands import inspect_command
from liteq.redaction import mask_url
from liteq.showing import shown_arguments

if TYPE_CHECKING:
    from liteq.workers.steering import State

__all__: list[str] = []

_MOST: Final = 1_000  # messages that one answer names
_DEFAULT_INFO: Final = ("rate_limit",)


@inspect_command
def ping(state: State, **kwargs: Any) -> dict[str, str]:
    """Say that the worker is there."""
    return {"ok": "pong"}


@inspect_command(alias="dump_active")
def active(state: State, **kwargs: Any) -> list[dict[str, Any]]:
    """List what runs now."""
    worker = state.worker
    running = worker.running()
    return _described(state, [worker.held[key] for key in running if key in worker.held])


@inspect_command(alias="dump_reserved")
def reserved(state: State, **kwargs: Any) -> list[dict[str, Any]]:
    """List what is claimed and not started yet."""
    worker = state.worker
    running = worker.running()
    return _described(state, [one for key, one in worker.held.items() if key not in running])


@inspect_command(alias="dump_schedule")
def scheduled(state: State, **kwargs: Any) -> list[dict[str, Any]]:
    """List what waits for its time in the queues of this worker."""
    broker = state.app.broker
    found: list[Record] = []
    for place in ("scheduled", "retrying"):
        for queue in state.worker.queues:
            found += broker.browse(place, queue=queue, limit=_MOST)
    found.sort(key=lambda record: record.outline.run_at or 0.0)
    return [
        {
            "eta": _moment(record.outline.run_at),
            "priority": record.outline.priority,
            "request": _info(state, record, None),
        }
        for record in found[:_MOST]
    ]


@inspect_command(alias="dump_revoked")
def revoked(state: State, **kwargs: Any) -> list[str]:
    """List the ids of calls that were revoked."""
    return [record.id for record in state.app.broker.browse("revoked", limit=_MOST)]


@inspect_command(alias="dump_tasks", args=[], variadic="taskinfoitems", signature="[attr…]")
def registered(
    state: State, taskinfoitems: Any = None, *, builtins: bool = False, **kwargs: Any
) -> list[str]:
    """List the tasks that this worker knows."""
    names = list(taskinfoitems or _DEFAULT_INFO)
    listed = []
    for name, task in sorted(state.app.tasks.items()):
        if not builtins and name.startswith(("liteq.", "celery.")):
            continue
        fields = [
            f"{field}={value}"
            for field in names
            if not field.startswith("_") and (value := getattr(task, field, None)) is not None
        ]
        listed.append(f"{name} [{' '.join(fields)}]" if fields else name)
    return listed


@inspect_command
def stats(state: State, **kwargs: Any) -> dict[str, Any]:
    """Show figures: pool, totals, use of resources, uptime."""
    worker = state.worker
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pool = worker.pool
    found: dict[str, Any] = {
        "total": dict(worker.totals),
        "pid": worker.pid,
        "clock": str(int(state.app.clock.now())),
        "uptime": round(time.monotonic() - worker.started),
        "pool": {
            "implementation": f"liteq:{worker.pool_kind}",
            "max-concurrency": worker.concurrency,
            "processes": [] if pool is None else pool.pids(),
            "max-tasks-per-child": worker.max_tasks_per_child or "N/A",
            "put-guarded-by-semaphore": False,
            "timeouts": [worker.soft_time_limit or 0, worker.time_limit or 0],
        },
        "broker": {"uri": mask_url(state.app.broker_url)},
        "prefetch_count": len(worker.held),
        "settled": worker.settled,
        "refused": worker.refused,
        "rusage": {
            name.removeprefix("ru_"): getattr(usage, name)
            for name in dir(usage)
            if name.startswith("ru_")
        },
    }
    if worker.autoscaler is not None:
        scaler = worker.autoscaler
        found["autoscaler"] = {
            "min": scaler.least,
            "max": scaler.most,
            "current": worker.concurrency,
            "qty": worker.concurrency,
        }
    return found


@inspect_command
def active_queues(state: State, **kwargs: Any) -> list[dict[str, Any]]:
    """List the queues that this worker consumes."""
    return [
        {
            "name": name,
            "exchange": {"name": name, "type": "direct"},
            "routing_key": name,
            "durable": True,
            "exclusive": False,
            "auto_delete": False,
            "no_ack": False,
            "alias": None,
            "bindings": [],
        }
        for name in state.worker.queues
    ]


@inspect_command(args=[("ids", str)], variadic="ids", signature="[id1 [id2 …]]")
def query_task(state: State, ids: Any = (), **kwargs: Any) -> dict[str, list[Any]]:
    """Show what this worker knows of calls, by their ids."""
    wanted = {ids} if isinstance(ids, str) else set(ids)
    worker = state.worker
    running = worker.running()
    held = {key: lease for key, lease in worker.held.items() if lease.id in wanted}
    infos = {info["id"]: info for info in _described(state, list(held.values()))}
    return {
        lease.id: ["active" if key in running else "reserved", infos[lease.id]]
        for key, lease in held.items()
        if lease.id in infos
    }


@inspect_command(alias="dump_conf", signature="[with_defaults]", args=[("with_defaults", bool)])
def conf(state: State, *, with_defaults: bool = False, **kwargs: Any) -> dict[str, Any]:
    """Show the settings, without secrets."""
    return state.app.conf.table(bool(with_defaults))


@inspect_command
def report(state: State, **kwargs: Any) -> dict[str, str]:
    """Show what a bug report should say."""
    return {"ok": state.app.bugreport()}


@inspect_command
def clock(state: State, **kwargs: Any) -> dict[str, float]:
    """Show the worker's time, in Unix seconds."""
    return {"clock": state.app.clock.now()}


def _described(state: State, leases: list[Lease]) -> list[dict[str, Any]]:
    """Return what is shown of claimed messages; when they were started, the store knows."""
    records = state.app.broker.get([lease.id for lease in leases[:_MOST]])
    pids = {
        state.worker.held[key].id: pid
        for key, pid in state.worker.running().items()
        if key in state.worker.held
    }
    return [_info(state, record, pids.get(record.id)) for record in records.values()]


def _info(state: State, record: Record, pid: int | None) -> dict[str, Any]:
    message = record.outline
    args, kwargs = shown_arguments(state.app, message)
    starts = record.deliveries + message.requeued
    return {
        "id": record.id,
        "name": message.task,
        "args": args,
        "kwargs": kwargs,
        "type": message.task,
        "hostname": state.hostname,
        "time_start": record.started_at if pid is not None else None,
        "acknowledged": not message.acks_late,
        "delivery_info": {
            "exchange": "",
            "routing_key": message.queue,
            "priority": message.priority,
            "redelivered": starts > 1,
        },
        "worker_pid": pid,
        "attempt": starts,
        "retries": message.retries,
    }


def _moment(seconds: float | None) -> str | None:
    from liteq.wording import instant  # late: for this one answer

    found = instant(seconds)
    return None if found is None else found.isoformat()
