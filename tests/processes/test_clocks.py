"""The wall clock jumps by a day, there and back, or stops, under workers that are at work.

The processes are real, and so is their steady clock. Their wall clock is the machine's and
an offset, or stands still: the test writes it to a file, since setting the machine's own
would be felt by all.
(On Redis the server's clock counts: see `on_redis/test_servers.py`.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes.shop import Shop

pytestmark = pytest.mark.process

HOUR, DAY = 3_600.0, 86_400.0
JUMPS = [DAY, -DAY, *([HOUR, -HOUR] if os.environ.get("LITEQ_STORM") else []), 0.0]
LEASE = 1.0  # seconds; far less than what the clock jumps
BUSY = 0.25  # of a processor: who waits needs a tenth of that, who spins four times that

JUMPING = """
from liteq.clock import SystemClock

class Jumping(SystemClock):
    def now(self):
        with open(FOLDER + "/offset") as file:
            how, seconds = file.read().split()
        return float(seconds) if how == "stopped" else super().now() + float(seconds)

app.clock = Jumping()
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "offset").write_text("shifted 0")
    opened = Shop(tmp_path, JUMPING, worker_lease_timeout=LEASE)
    yield opened
    opened.close()


def set_clock(shop: Shop, offset: float, how: str = "shifted") -> None:
    new = shop.folder / "offset.new"
    new.write_text(f"{how} {offset}")
    new.rename(shop.folder / "offset")


def cpu_of(pid: int) -> float:
    """Return the seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_2_and_6_a_clock_that_jumps_takes_no_lease_and_starts_nothing_early(shop: Shop) -> None:
    add = shop.tasks.add
    workers = [shop.start("-c", "2", name=name) for name in ("a", "b")]
    held = shop.hold()
    shop.wait_start()
    began, used = time.monotonic(), sum(cpu_of(worker.pid) for worker in workers)

    for offset in JUMPS:
        set_clock(shop, offset)
        # Longer than the lease, by a task that is to start in time on the new clock: each
        # worker has had its heartbeats and its chance to take what the other holds.
        sent = time.monotonic()
        assert add.apply_async((1, 2), countdown=1.3 * LEASE).get(timeout=15) == 3
        assert time.monotonic() - sent >= 1.3 * LEASE - 0.01
    # On a clock that stands still nothing is due, and the rest goes on.
    set_clock(shop, time.time(), "stopped")
    later = add.apply_async((2, 2), countdown=0.2)
    sent = time.monotonic()
    while time.monotonic() - sent < 1.3 * LEASE:
        assert add.delay(1, 2).get(timeout=15) == 3
        time.sleep(0.1)  # paces the calls
    assert not later.ready()
    set_clock(shop, 0.0)
    assert later.get(timeout=15) == 4
    lasted = time.monotonic() - began
    used = sum(cpu_of(worker.pid) for worker in workers) - used

    assert len(shop.starts()) == 1, "a living worker's lease was taken"
    assert used < BUSY * lasted, f"the workers are busy with waiting: {used / lasted:.2f}"
    shop.release()
    assert held.get(timeout=15) == ["hold", 1]
    assert "this worker for dead" not in shop.logs()
    assert [worker.poll() for worker in workers] == [None, None]
