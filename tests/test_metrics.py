"""Figures for Prometheus: read back by its own parser, and true."""

from __future__ import annotations

import itertools
import os
import re
import resource
import selectors
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import world
from api import forget_current
from prometheus_client.parser import text_string_to_metric_families
from terminal import Project, Running

from liteq import Liteq
from liteq.brokers.base import Broker, Lease
from liteq.exceptions import BrokerUnavailable, ImproperlyConfigured
from liteq.ids import made_at, new_id
from liteq.metrics import (
    METRICS,
    MOST_VALUES,
    StoreCollector,
    Tally,
    WorkerCollector,
    exposition,
)
from liteq.outcome import Failed, Lost, Released, Retried, Succeeded
from liteq.workers.scraping import Endpoint, address_of

Samples = dict[tuple[Any, ...], float]

PAGE = Path(__file__).parent.parent / "docs" / "guide" / "monitoring.md"


@pytest.fixture
def app(broker: Broker) -> Iterator[Liteq]:
    app = Liteq("shop", broker="memory://", clock=broker.clock)
    app.broker = broker
    yield app
    forget_current()


def samples(text: bytes) -> Samples:
    """Return the samples of a page by name and label values."""
    found: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            metric = METRICS.get(sample.name) or METRICS[family.name]
            labels = [sample.labels[name] for name in metric.labels]
            labels += [sample.labels["le"]] if "le" in sample.labels else []
            found[(sample.name, *labels)] = sample.value
    return found


def families(text: bytes) -> dict[str, tuple[str, set[str]]]:
    """Return kind and labels of what a page tells, by name."""
    return {
        f.name + ("_total" if f.type == "counter" else ""): (
            f.type,
            {name for sample in f.samples for name in sample.labels} - {"le"},
        )
        for f in text_string_to_metric_families(text.decode())
    }


# The store


def test_the_store_tells_depth_latency_and_dead_letters_of_each_queue(
    app: Liteq, broker: Broker, clock: world.FakeClock
) -> None:
    broker.enqueue([world.make(queue="a"), world.make(queue="a", run_at=clock.now() + 60)])
    broker.enqueue([world.make(queue="b")])
    worker = world.enlist(broker, "b")
    [lease] = broker.claim(worker, ["b"])
    broker.settle(worker, lease, Failed(b'{"type":"E","module":"m","message":""}', dead="no"))
    clock.advance(7.0)
    broker.beat(worker)
    told = samples(exposition(StoreCollector(app)))
    assert told["liteq_store_up",] == 1
    assert told["liteq_queue_messages", "a", "queued"] == 1
    assert told["liteq_queue_messages", "a", "scheduled"] == 1
    assert told["liteq_queue_latency_seconds", "a"] == 7.0
    assert told["liteq_queue_dead_letters", "b"] == 1
    assert told["liteq_workers",] == 1
    assert told["liteq_worker_heartbeat_age_seconds", "w"] == 0


def test_a_schedule_that_nobody_fires_is_told_by_its_lag(
    app: Liteq, clock: world.FakeClock
) -> None:
    @app.task(name="tick")
    def tick() -> None: ...

    app.schedules.add("a", "tick", 10.0)
    app.schedules.add("b", "tick", 1000.0)
    app.schedules.pause("b")
    assert samples(exposition(StoreCollector(app)))["liteq_schedule_lag_seconds",] == 0
    clock.advance(25.0)
    told = samples(exposition(StoreCollector(app)))
    assert told["liteq_schedule_lag_seconds",] == 15.0
    assert told["liteq_schedule_entries", "active"] == 1
    assert told["liteq_schedule_entries", "paused"] == 1


def test_a_store_that_cannot_be_read_is_down_and_nothing_else(
    app: Liteq, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise BrokerUnavailable("gone")

    monkeypatch.setattr(broker, "queues", fail)
    assert samples(exposition(StoreCollector(app))) == {("liteq_store_up",): 0.0}


def test_a_store_that_is_lost_is_down_until_the_next_look_finds_another(
    tmp_path: Path, clock: world.FakeClock
) -> None:
    with Liteq("shop", broker=f"sqlite://{tmp_path}/s", clock=clock) as app:
        app.task(name="t")(lambda: None).delay()
        collector = StoreCollector(app)
        exposition(collector)
        (tmp_path / "s").rename(tmp_path / "gone")
        clock.advance(15.0)
        assert samples(exposition(collector)) == {("liteq_store_up",): 0.0}
        told = samples(exposition(collector))
        assert told["liteq_store_up",] == 1.0
        assert ("liteq_queue_messages", "default", "queued") not in told
    forget_current()


def test_the_size_of_the_file_and_of_its_log_are_told(tmp_path: Path) -> None:
    app = Liteq("shop", broker=f"sqlite://{tmp_path}/s.liteq")
    app.task(name="t")(lambda: None).delay()
    told = samples(exposition(StoreCollector(app)))
    assert told["liteq_store_size_bytes",] > 0
    assert told["liteq_store_wal_size_bytes",] > 0
    app.close()
    forget_current()


# A worker


def lease_of(task: str = "t", **fields: Any) -> Lease:
    return Lease(1, 1, 1, world.make(task, **fields).pack())


class FakeWorker:
    def __init__(self) -> None:
        self.held = {1: None}
        self.refused = 2
        self.pool = None


def told_by(tally: Tally) -> Samples:
    return samples(exposition(WorkerCollector(FakeWorker(), tally)))  # type: ignore[arg-type]


def test_a_worker_counts_how_attempts_ended_and_how_long_they_took() -> None:
    tally, lease = Tally(), lease_of()
    last = Lease(1, 1, 3, lease.packed)
    ends = [
        (lease, Succeeded(b"1", 0.03)),
        (lease, Succeeded(b"1", 0.2)),
        (lease, Failed(b"{}", 2000.0)),
        (lease, Failed(b"{}", dead="undecodable")),
        (lease, Retried(0.0, b"{}", runtime=0.1)),
        (lease, Lost("died")),
        (last, Lost("died")),
        (lease, Released()),
        (lease, Succeeded(b"1", 9.0)),
    ]
    tally.settled(ends, [True] * 8 + [False], 3)
    tally.expired(lease)
    told = told_by(tally)
    counts = {k[-1]: v for k, v in told.items() if k[0] == "liteq_worker_tasks_total"}
    assert counts == {
        "succeeded": 2,
        "failed": 1,
        "dead": 2,
        "retried": 1,
        "lost": 1,
        "expired": 1,
    }
    name = "liteq_worker_task_runtime_seconds"
    assert told[f"{name}_count", "t"] == 4
    assert told[f"{name}_sum", "t"] == pytest.approx(2000.33)
    assert told[f"{name}_bucket", "t", "0.05"] == 1
    assert told[f"{name}_bucket", "t", "1800.0"] == 3
    assert told[f"{name}_bucket", "t", "+Inf"] == 4
    assert told["liteq_worker_running",] == 1
    assert told["liteq_worker_refused_total",] == 2


def test_a_wait_counts_from_when_a_message_was_due() -> None:
    tally = Tally()
    made = lease_of()
    due = lease_of(run_at=1000.0)
    repeated = Lease(1, 1, 2, due.packed)
    named = lease_of(id="by-the-user")
    tally.claimed([made], (made_at(made.id) or 0) + 0.02)
    tally.claimed([due, repeated, named], 1000.4)
    told = told_by(tally)
    name = "liteq_worker_task_wait_seconds"
    assert told[f"{name}_count", "t"] == 2
    assert told[f"{name}_bucket", "t", "0.025"] == 1
    assert told[f"{name}_bucket", "t", "0.5"] == 2


def test_names_of_tasks_and_queues_are_bounded() -> None:
    tally = Tally()
    for n in range(MOST_VALUES + 50):
        lease = lease_of(f"t{n}", queue=f"q{n}")
        tally.settled([(lease, Succeeded(b"1", 0.1))], [True], 3)
    told = told_by(tally)
    assert told["liteq_worker_tasks_total", "other", "other", "succeeded"] == 50
    assert len(tally.ended) == MOST_VALUES + 1


def test_a_name_of_megabytes_takes_no_more_than_a_line_of_the_figures(
    app: Liteq, broker: Broker, clock: world.FakeClock
) -> None:
    long = "x" * 2_000_000
    cut = "x" * 500 + "…"
    broker.enqueue([world.make(task=long + end, queue=long + end) for end in "ab"])
    worker = world.enlist(broker, long + "a", name=long)
    leases = broker.claim(worker, [long + "a"])
    tally = Tally()
    tally.claimed(leases, clock.now() + 1)
    tally.settled([(one, Succeeded(b"1", 0.1)) for one in leases], [True], 3)

    told, ran = exposition(StoreCollector(app)), told_by(tally)

    assert len(told) < 20_000
    assert samples(told)["liteq_queue_messages", cut, "queued"] == 1
    assert samples(told)["liteq_queue_messages", cut, "running"] == 1
    assert samples(told)["liteq_worker_heartbeat_age_seconds", cut] == 0
    assert ran["liteq_worker_tasks_total", cut, cut, "succeeded"] == 1


def test_an_id_tells_when_it_was_made() -> None:
    import time

    assert made_at(new_id()) == pytest.approx(time.time(), abs=5)
    for other in (
        "x",
        "",
        "6f1c2ab0-0000-4000-8000-000000000000",
        "zzzzzzzz-zzzz-7zzz-zzzz-" + "z" * 12,
    ):
        assert made_at(other) is None


# Over HTTP


@contextmanager
def serving(page: Callable[[], bytes]) -> Iterator[str]:
    selector = selectors.DefaultSelector()
    endpoint = Endpoint(selector, ("127.0.0.1", 0), page)
    over = threading.Event()

    def loop() -> None:
        while not over.is_set():
            for key, mask in selector.select(0.02):
                key.data(mask)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield endpoint.url
    finally:
        over.set()
        thread.join()
        endpoint.close()
        assert not selector.get_map()
        selector.close()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


def test_a_page_of_any_size_is_served_to_whoever_asks_rightly() -> None:
    page = b"x" * 3_000_000
    with serving(lambda: page) as url:
        assert urllib.request.urlopen(url, timeout=5).read() == page
        for bad, code in ((url + "x", 404), (url.replace("/metrics", "/secret"), 404)):
            with pytest.raises(urllib.error.HTTPError) as raised:
                urllib.request.urlopen(bad, timeout=5)
            assert raised.value.code == code
            raised.value.close()
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(url, data=b"x", timeout=5)
        assert raised.value.code == 405
        raised.value.close()


def test_callers_that_say_nothing_or_too_much_keep_nobody_from_being_served() -> None:
    with serving(lambda: b"fine") as url:
        silent = [socket.create_connection(("127.0.0.1", port_of(url))) for _ in range(40)]
        loud = socket.create_connection(("127.0.0.1", port_of(url)))
        loud.settimeout(5)
        try:
            loud.sendall(b"GET /" + b"x" * 20_000)
            assert loud.recv(10) == b""
        except OSError:
            pass
        assert urllib.request.urlopen(url, timeout=5).read() == b"fine"
        for one in (*silent, loud):
            one.close()


def test_a_place_that_cannot_be_is_an_error() -> None:
    assert address_of("9464") == ("127.0.0.1", 9464)
    assert address_of("0.0.0.0:80") == ("0.0.0.0", 80)
    assert address_of("[::1]:80") == ("::1", 80)
    for wrong in ("x", "host:", "70000", "-1", ""):
        with pytest.raises(ImproperlyConfigured, match="port"):
            address_of(wrong)
    with socket.create_server(("127.0.0.1", 0)) as taken, selectors.DefaultSelector() as own:
        address = taken.getsockname()[:2]
        with pytest.raises(ImproperlyConfigured, match="cannot be served"):
            Endpoint(own, address, lambda: b"")


def test_a_worker_serves_its_figures_at_the_port_it_is_told(
    tmp_path: Path, wait_until: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "liteq")
    app = Liteq("shop", broker=f"sqlite://{tmp_path}/s.liteq", worker_metrics_port=0)

    @app.task(name="add")
    def add(x: int) -> int:
        return x + 1

    with app.worker(concurrency=1):
        [url] = wait_until(lambda: re.findall(r"metrics at (\S+)", caplog.text))
        add.delay(1).get(timeout=10)

        def counted() -> bool:
            told = samples(urllib.request.urlopen(url, timeout=5).read())
            return told.get(("liteq_worker_tasks_total", "add", "default", "succeeded")) == 1.0

        wait_until(counted)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)
    app.close()
    forget_current()


@pytest.mark.process
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits another process: Linux")
@pytest.mark.parametrize(
    "words", [("worker", "-P", "solo", "--metrics-port"), ("metrics", "--port")]
)
def test_a_process_without_descriptors_lets_callers_wait_and_rests(
    start: Callable[..., Running], words: tuple[str, ...]
) -> None:
    running = start(*words, "0")
    told = running.wait_for("metrics at")
    if words[0] == "worker":
        running.wait_for("^ready")
    found = re.search(r"http://\S+", told)
    assert found is not None
    pid = running.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    opened = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = next(fd for fd in itertools.count() if fd not in opened)

    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, before[1]))
    with socket.create_connection(("127.0.0.1", port_of(found[0]))) as caller:
        running.wait_for("metrics cannot be served now: .*too many open files")
        spent = processor_time(pid)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        caller.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        caller.settimeout(30)
        assert caller.recv(15) == b"HTTP/1.1 200 OK"
        assert processor_time(pid) - spent < 1.0

    assert sum("metrics cannot be served" in line for line in running.lines) == 1
    assert running.end(signal.SIGINT) == 0


def processor_time(pid: int) -> float:
    """Return the seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_command_says_why_there_are_no_figures(
    project: Project, start: Callable[..., Running]
) -> None:
    command = start("metrics", "--port", "0", "-b", "redis://127.0.0.1:1/0")
    found = re.search(r"http://\S+", command.wait_for("metrics at"))
    assert found is not None

    told = samples(urllib.request.urlopen(found[0], timeout=10).read())

    assert told == {("liteq_store_up",): 0.0}
    assert "ERROR" in command.wait_for("the store cannot be read for its metrics: ")


def test_no_worker_pays_for_metrics_that_nobody_asks_for() -> None:
    import subprocess
    import sys

    code = (
        "import sys, liteq.worker\n"
        "unwanted = {'liteq.metrics', 'liteq.workers.scraping', 'prometheus_client'}\n"
        "assert not unwanted & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Names


def test_what_is_told_is_what_the_table_and_the_docs_say(app: Liteq, broker: Broker) -> None:
    broker.enqueue([world.make()])
    world.enlist(broker)
    tally = Tally()
    tally.settled([(lease_of(), Succeeded(b"1", 0.1))], [True], 3)
    tally.claimed([lease_of(run_at=1.0)], 2.0)
    told = families(exposition(StoreCollector(app)))
    told |= families(exposition(WorkerCollector(FakeWorker(), tally)))  # type: ignore[arg-type]
    on_files = {name for name in METRICS if name.endswith("size_bytes")}
    assert told.keys() | on_files == METRICS.keys()
    for name, (kind, labels) in told.items():
        assert (kind, labels) == (METRICS[name].kind, set(METRICS[name].labels))
        assert re.fullmatch("liteq_[a-z_]+", name)
    rows = re.findall(r"^\| `(liteq_\w+)` \| (\w+) \|([^|]*)\|", PAGE.read_text(), re.MULTILINE)
    documented = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows
    }
    assert documented == {name: (m.kind, m.labels) for name, m in METRICS.items()}


def test_the_alerts_of_the_docs_ask_of_each_metric_what_its_kind_can_tell() -> None:
    alerts = re.findall(r"^  expr: (.+)", PAGE.read_text(), re.MULTILINE)
    asked = re.findall(r"(?:(\w+)\()?\b(liteq_\w+)", "\n".join(alerts))

    assert "liteq_queue_dead_letters" in {name for _, name in asked}
    for function, name in asked:
        of_counters = function in ("rate", "irate", "increase")  # to which a fall is a reset
        assert of_counters == (METRICS[name].kind == "counter"), (function, name)
