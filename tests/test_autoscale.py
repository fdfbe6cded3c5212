"""How many children a pool should have, and how many CPUs there are for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from liteq import cpus
from liteq.autoscale import Autoscaler
from liteq.exceptions import ImproperlyConfigured


def test_a_pool_grows_by_what_is_claimable_and_no_further_than_its_bound() -> None:
    scaler = Autoscaler(10, 2, keepalive=30)

    assert scaler.wants_work(2, 2, 100.0)
    assert scaler.grown(2, 3, 100.0) == 5
    assert scaler.grown(5, 50, 100.0) == 10
    assert scaler.grown(5, 0, 100.0) == 5


def test_work_is_only_asked_for_when_all_are_busy_and_more_are_allowed() -> None:
    scaler = Autoscaler(4, 1, keepalive=30)

    assert not scaler.wants_work(2, 1, 100.0)  # one is free
    assert not scaler.wants_work(4, 4, 100.0)  # there may be no more
    assert scaler.wants_work(2, 2, 100.0)
    assert not scaler.wants_work(2, 2, 100.0 + Autoscaler.LOOK / 2)  # it was just asked
    assert scaler.wants_work(2, 2, 100.0 + Autoscaler.LOOK)


def test_a_pool_shrinks_to_what_was_busy_at_once_while_it_was_not_full() -> None:
    scaler = Autoscaler(10, 2, keepalive=30)

    assert scaler.shrunk(8, 8, 100.0) == 8
    assert scaler.shrunk(8, 5, 110.0) == 8
    assert scaler.shrunk(8, 3, 129.9) == 8
    assert scaler.shrunk(8, 1, 130.0) == 5
    assert scaler.shrunk(5, 0, 159.9) == 5
    assert scaler.shrunk(5, 0, 160.0) == 2  # never less than its bound
    assert scaler.shrunk(2, 0, 500.0) == 2


def test_a_pool_that_is_full_now_and_then_does_not_shrink() -> None:
    scaler = Autoscaler(4, 1, keepalive=30)

    for moment in range(0, 300, 10):
        assert scaler.shrunk(4, 4 if moment % 20 else 1, 100.0 + moment) == 4


def test_a_size_out_of_bounds_is_brought_into_them() -> None:
    scaler = Autoscaler(4, 2, keepalive=30)

    assert scaler.shrunk(9, 9, 100.0) == 4
    assert scaler.shrunk(1, 0, 100.0) == 2


@pytest.mark.parametrize("bounds", [(0, 0), (1, 2), (3, 0)])
def test_bounds_that_cannot_be_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ImproperlyConfigured, match="1 ≤ min ≤ max"):
        Autoscaler(*bounds, keepalive=30)


# CPUs


def group(root: Path, line: str, files: dict[str, str]) -> Path:
    for path, text in {"proc/self/cgroup": line + "\n", **files}.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.fixture(autouse=True)
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("max 100000", 64),
        ("9900000 100000", 64),
        ("nonsense", 64),
        ("200000 0", 64),
    ],
)
def test_the_quota_of_a_group_counts(tmp_path: Path, quota: str, expected: int) -> None:
    root = group(tmp_path, "0::/app", {"sys/fs/cgroup/app/cpu.max": quota})

    assert cpus.available(root) == expected


def test_the_least_quota_of_all_groups_around_counts(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/pod/app/cpu.max": "800000 100000",
        "sys/fs/cgroup/pod/cpu.max": "300000 100000",
        "sys/fs/cgroup/cpu.max": "max 100000",
    }

    assert cpus.available(group(tmp_path, "0::/pod/app", files)) == 3


def test_in_a_container_the_mount_is_the_group(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/cpu.max": "400000 100000"}

    assert cpus.available(group(tmp_path, "0::/../../docker/1234", files)) == 4


def test_quotas_of_version_1_count(tmp_path: Path) -> None:
    line = "5:cpu,cpuacct:/app\n3:memory:/app"
    files = {
        "sys/fs/cgroup/cpu/app/cpu.cfs_quota_us": "250000\n",
        "sys/fs/cgroup/cpu/app/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }

    assert cpus.available(group(tmp_path, line, files)) == 3


def test_without_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert cpus.available(tmp_path) == 64
