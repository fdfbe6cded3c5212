"""Figures for Prometheus: of the store as a whole, and of what one worker has run.

A worker counts in its main process, which hears of every end: no child has a counter of
its own, and there is no directory of files to sweep. The store's figures are read when
somebody asks. The number of label values is bounded: what exceeds it goes by "other". So
is their length: a name in the store may have megabytes.
`prometheus_client` (the extra `prometheus`) is imported when figures are first asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from liteq.brokers.files import DATABASE
from liteq.brokers.values import Lease
from liteq.exceptions import BrokerError, ImproperlyConfigured
from liteq.ids import made_at
from liteq.loggers import get_logger
from liteq.message import ACKS_LATE, QUEUE, RUN_AT
from liteq.outcome import (
    Failed,
    Ignored,
    Lost,
    Outcome,
    Replaced,
    Retried,
    Revoked,
    Succeeded,
)
from liteq.wording import brief

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.worker import Worker

__all__ = [
    "BUCKETS",
    "METRICS",
    "Metric",
    "StoreCollector",
    "Tally",
    "WorkerCollector",
    "exposition",
]

logger = get_logger("liteq.metrics")

BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)
MOST_VALUES: Final = 500  # of one label
OTHER: Final = "other"


class Metric(NamedTuple):
    """A figure: its kind (gauge, counter or histogram), labels, and what it says."""

    kind: str
    labels: tuple[str, ...]
    help: str


METRICS: Final[dict[str, Metric]] = {
    "liteq_store_up": Metric("gauge", (), "1 if the store could be read, else 0"),
    "liteq_queue_messages": Metric("gauge", ("queue", "state"), "Messages that have not ended"),
    "liteq_queue_latency_seconds": Metric(
        "gauge", ("queue",), "How long the first in line has been ready; 0 if none is"
    ),
    "liteq_queue_paused": Metric("gauge", ("queue",), "1 if the queue is paused, else 0"),
    "liteq_queue_dead_letters": Metric("gauge", ("queue",), "Dead letters in the store"),
    "liteq_workers": Metric("gauge", (), "Workers that are alive"),
    "liteq_worker_heartbeat_age_seconds": Metric(
        "gauge", ("worker",), "Time since the heartbeat of a worker that counts as alive"
    ),
    "liteq_schedule_entries": Metric(
        "gauge", ("state",), "Periodic entries that are active, and that are paused"
    ),
    "liteq_schedule_lag_seconds": Metric(
        "gauge", (), "How late the latest periodic entry is; it grows while no beat runs"
    ),
    "liteq_store_size_bytes": Metric("gauge", (), "Size of the database file (SQLite)"),
    "liteq_store_wal_size_bytes": Metric("gauge", (), "Size of its write-ahead log (SQLite)"),
    "liteq_worker_tasks_total": Metric(
        "counter", ("task", "queue", "outcome"), "Attempts of this worker that have ended"
    ),
    "liteq_worker_task_runtime_seconds": Metric(
        "histogram", ("task",), "How long attempts took in this worker"
    ),
    "liteq_worker_task_wait_seconds": Metric(
        "histogram", ("task",), "From when a message was due until this worker claimed it"
    ),
    "liteq_worker_running": Metric("gauge", (), "Messages that this worker holds"),
    "liteq_worker_children": Metric("gauge", (), "Children of this worker"),
    "liteq_worker_refused_total": Metric(
        "counter", (), "Outcomes that came after the lease was lost"
    ),
}

_ENDS: Final[dict[type[Any], str]] = {
    Succeeded: "succeeded",
    Failed: "failed",
    Retried: "retried",
    Ignored: "ignored",
    Revoked: "revoked",
    Replaced: "replaced",
    Lost: "lost",
}


# What a worker counts


class Histogram:
    """Counts of values by bucket, the last being for those above all, and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(BUCKETS, value)] += 1
        self.sum += value

    def cumulated(self) -> list[tuple[str, float]]:
        total, buckets = 0, []
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class Tally:
    """What one worker has run since it started. For one thread."""

    def __init__(self) -> None:
        self.ended: dict[tuple[str, str, str], int] = {}
        self.runtimes: dict[str, Histogram] = {}
        self.waits: dict[str, Histogram] = {}
        self._names: dict[str, set[str]] = {"task": set(), "queue": set()}

    def claimed(self, leases: Sequence[Lease], now: float) -> None:
        """Count how long these waited, where that is known: one that was started before,
        or that waited for others, tells nothing about the queue."""
        for lease in leases:
            if lease.delivery > 1 or lease.inputs:
                continue
            due = lease.packed[RUN_AT] or made_at(lease.id)
            if due is not None:
                self._histogram(self.waits, lease).add(max(0.0, now - due))

    def settled(
        self,
        settlements: Sequence[tuple[Lease, Outcome]],
        accepted: Sequence[bool],
        max_deliveries: int,
    ) -> None:
        """Count the outcomes that the store has taken."""
        for (lease, outcome), taken in zip(settlements, accepted, strict=True):
            end = _ENDS.get(type(outcome))
            if end is None or not taken:  # given back: it has not been run
                continue
            if isinstance(outcome, Failed) and outcome.dead is not None:
                end = "dead"
            elif isinstance(outcome, Lost) and lease.is_last_start(max_deliveries):
                end = "dead" if lease.packed[ACKS_LATE] else "failed"
            self._count(lease, end)
            runtime = getattr(outcome, "runtime", None)
            if runtime is not None and end != "dead":
                self._histogram(self.runtimes, lease).add(runtime)

    def expired(self, lease: Lease) -> None:
        """Count a message that was met too late to be started."""
        self._count(lease, "expired")

    def _count(self, lease: Lease, end: str) -> None:
        key = self._name("task", lease.task), self._name("queue", lease.packed[QUEUE]), end
        self.ended[key] = self.ended.get(key, 0) + 1

    def _histogram(self, among: dict[str, Histogram], lease: Lease) -> Histogram:
        name = self._name("task", lease.task)
        found = among.get(name)
        if found is None:
            found = among[name] = Histogram()
        return found

    def _name(self, label: str, value: str) -> str:
        known = self._names[label]
        value = brief(value)
        if value in known:
            return value
        if len(known) >= MOST_VALUES:
            return OTHER
        known.add(value)
        return value


# What Prometheus is told

Family: TypeAlias = Any  # of prometheus_client, which may not be installed


class StoreCollector:
    """The figures of an app's store, for a `prometheus_client` registry."""

    def __init__(self, app: Liteq) -> None:
        self._app = app

    def describe(self) -> list[Family]:
        return [_family(name) for name in METRICS if not _is_of_worker(name)]

    def collect(self) -> Iterator[Family]:
        try:
            found = list(self._read())
        except BrokerError as exc:
            logger.error("the store cannot be read for its metrics: %s", exc)  # noqa: TRY400
            yield _gauge("liteq_store_up", ((), 0.0))
            return
        yield _gauge("liteq_store_up", ((), 1.0))
        yield from found

    def _read(self) -> Iterator[Family]:
        broker = self._app.broker
        depths: dict[tuple[str, ...], float] = {}
        latencies: dict[tuple[str, ...], float] = {}
        dead: dict[tuple[str, ...], float] = {}
        paused: dict[tuple[str, ...], float] = {}
        # The longest first: should there be too many queues, those are the ones to see.
        queues = sorted(broker.queues(), key=lambda q: (-q.length, q.name))
        for number, queue in enumerate(queues):
            name = brief(queue.name) if number < MOST_VALUES else OTHER
            for state, count in queue.counts.items():
                depths[name, state] = depths.get((name, state), 0.0) + count
            latencies[name,] = max(latencies.get((name,), 0.0), queue.latency or 0.0)
            dead[name,] = dead.get((name,), 0.0) + queue.dead
            paused[name,] = max(paused.get((name,), 0.0), float(queue.paused))
        yield _gauge("liteq_queue_messages", *depths.items())
        yield _gauge("liteq_queue_latency_seconds", *latencies.items())
        yield _gauge("liteq_queue_paused", *paused.items())
        yield _gauge("liteq_queue_dead_letters", *dead.items())
        workers = broker.workers()
        yield _gauge("liteq_workers", ((), float(len(workers))))
        ages: dict[tuple[str, ...], float] = {}
        for worker in workers[:MOST_VALUES]:
            name = brief(worker.name)
            ages[name,] = max(ages.get((name,), 0.0), worker.beat_age)
        yield _gauge("liteq_worker_heartbeat_age_seconds", *ages.items())
        now = broker.clock.now()
        rows = broker.schedules()
        resting = sum(row.paused for row in rows)
        yield _gauge(
            "liteq_schedule_entries",
            (("active",), float(len(rows) - resting)),
            (("paused",), float(resting)),
        )
        late = (now - row.due_at for row in rows if row.due_at is not None and not row.paused)
        yield _gauge("liteq_schedule_lag_seconds", ((), max(0.0, *late, 0.0)))
        if broker.directory is not None:
            folder = Path(broker.directory)
            yield _gauge("liteq_store_size_bytes", ((), _size(folder / DATABASE)))
            yield _gauge("liteq_store_wal_size_bytes", ((), _size(folder / f"{DATABASE}-wal")))


class WorkerCollector:
    """The figures of a worker, for a `prometheus_client` registry in its process."""

    def __init__(self, worker: Worker, tally: Tally) -> None:
        self._worker = worker
        self._tally = tally

    def describe(self) -> list[Family]:
        return [_family(name) for name in METRICS if _is_of_worker(name)]

    def collect(self) -> Iterator[Family]:
        worker, tally = self._worker, self._tally
        ended = _family("liteq_worker_tasks_total")
        for labels, count in list(tally.ended.items()):
            ended.add_metric(labels, float(count))
        yield ended
        for name, among in (
            ("liteq_worker_task_runtime_seconds", tally.runtimes),
            ("liteq_worker_task_wait_seconds", tally.waits),
        ):
            family = _family(name)
            for task, one in list(among.items()):
                family.add_metric((task,), one.cumulated(), one.sum)
            yield family
        yield _gauge("liteq_worker_running", ((), float(len(worker.held))))
        pool = worker.pool
        yield _gauge("liteq_worker_children", ((), float(len(pool.pids()) if pool else 0)))
        refused = _family("liteq_worker_refused_total")
        refused.add_metric((), float(worker.refused))
        yield refused


def exposition(collector: Any) -> bytes:
    """Return a collector's figures in Prometheus' text format. Raises
    `ImproperlyConfigured` if `prometheus_client` is not installed."""
    client = _client()
    registry = client.CollectorRegistry(auto_describe=False)
    registry.register(collector)
    text: bytes = client.generate_latest(registry)
    return text


def _is_of_worker(name: str) -> bool:
    return name.startswith("liteq_worker_") and name != "liteq_worker_heartbeat_age_seconds"


def _size(path: Path) -> float:
    try:
        return float(path.stat().st_size)
    except FileNotFoundError:  # there is no log until something was written
        return 0.0


def _gauge(name: str, *samples: tuple[tuple[str, ...], float]) -> Family:
    family = _family(name)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _family(name: str) -> Family:
    metric = METRICS[name]
    client = _client()
    kinds = {
        "gauge": client.core.GaugeMetricFamily,
        "counter": client.core.CounterMetricFamily,
        "histogram": client.core.HistogramMetricFamily,
    }
    return kinds[metric.kind](name, metric.help, labels=metric.labels)


def _client() -> Any:
    try:
        import prometheus_client
        import prometheus_client.core
    except ImportError as exc:
        raise ImproperlyConfigured(
            "metrics need the package prometheus_client: install liteq-queue[prometheus]"
        ) from exc
    return prometheus_client
