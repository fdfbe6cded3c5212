"""Several machines: workers in network namespaces of their own, and one that is cut off."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes.shop import Shop
from redis_server import RedisServer, free_port

pytestmark = [pytest.mark.redis, pytest.mark.process]


class Machine:
    """A network namespace with one line to here, which can be cut."""

    def __init__(self, number: int) -> None:
        self.name = f"liteq-{os.getpid()}-{number}"
        self.here, self.there = f"lq{os.getpid()}h{number}", f"lq{os.getpid()}t{number}"
        self.address = f"10.213.{os.getpid() % 250}.{4 * number + 1}"
        self.other = f"10.213.{os.getpid() % 250}.{4 * number + 2}"

    def open(self) -> None:
        _ip("netns", "add", self.name)
        _ip("link", "add", self.here, "type", "veth", "peer", "name", self.there)
        _ip("link", "set", self.there, "netns", self.name)
        _ip("addr", "add", f"{self.address}/30", "dev", self.here)
        _ip("link", "set", self.here, "up")
        _ip("-n", self.name, "addr", "add", f"{self.other}/30", "dev", self.there)
        _ip("-n", self.name, "link", "set", self.there, "up")

    def cut(self) -> None:
        _ip("link", "set", self.here, "down")

    def mend(self) -> None:
        _ip("link", "set", self.here, "up")

    def close(self) -> None:
        for words in (("link", "del", self.here), ("netns", "del", self.name)):
            subprocess.run(["ip", *words], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def machine() -> Iterator[Machine]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need the ip command and root")
    made = Machine(1)
    try:
        made.open()
    except subprocess.CalledProcessError as exc:
        made.close()
        pytest.skip(f"network namespaces are not permitted here: {exc.stderr.decode().strip()}")
    yield made
    made.close()


def test_a_machine_that_is_cut_off_loses_its_work_to_another_and_comes_back(
    machine: Machine,
    start: Callable[..., RedisServer],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    server = start(f"bind 127.0.0.1 {machine.address}", "protected-mode no", port=free_port())
    options = {"socket_timeout": 0.5, "socket_connect_timeout": 0.5}
    shop = Shop(
        tmp_path,
        url=f"redis://{machine.address}:{server.port}/0",
        worker_lease_timeout=3.0,
        broker_transport_options=options,
    )
    request.addfinalizer(shop.close)
    command = ["ip", "netns", "exec", machine.name, sys.executable, "-m", "liteq"]
    with (tmp_path / "far.log").open("ab") as log:
        far = subprocess.Popen(
            [*command, "worker", "-n", "far@there", "-c", "1"],
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
    shop.workers.append(far)
    held = shop.hold()
    shop.wait_start()
    near = shop.start("-c", "1", name="near")

    machine.cut()
    shop.wait_start(count=2)  # here, when the heartbeat from there was missed for long enough
    machine.mend()
    shop.release()

    assert held.get(timeout=10) == ["hold", 2]
    shop.wait(lambda: "taken this worker for dead: it starts over" in shop.log("far"), far)
    shop.wait(lambda: len(shop.app.broker.workers()) == 2, far)
    shop.stop(near)
    assert shop.tasks.add.delay(1, 2).get(timeout=10) == 3  # there, where else
    assert shop.stop(far) == 0
    records = shop.app.broker.get([held.id])
    assert [record.state for record in records.values()] == ["succeeded"]
    assert [one.outcome for one in shop.app.broker.attempts(held.id)] == ["lost"]
