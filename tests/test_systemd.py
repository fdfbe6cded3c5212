"""The notify protocol, heard on a real socket."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from liteq.systemd import Notifier

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="a full queue is Linux's EAGAIN")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield listening


@pytest.fixture
def notifier(manager: socket.socket) -> Iterator[Notifier]:
    notifier = Notifier(manager.getsockname())
    yield notifier
    notifier.close()


def test_each_verb_is_one_datagram(manager: socket.socket, notifier: Notifier) -> None:
    notifier.ready()
    notifier.status("2 running\n1 waiting")
    notifier.watchdog()
    notifier.stopping()
    notifier.extend_timeout(2.5)

    heard = [manager.recv(4096).decode() for _ in range(5)]

    assert heard == [
        "READY=1",
        "STATUS=2 running 1 waiting",
        "WATCHDOG=1",
        "STOPPING=1",
        "EXTEND_TIMEOUT_USEC=2500000",
    ]


def test_who_waits_says_for_what_and_asks_for_time(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname(), watchdog_interval=15.0)
    notifier.waiting("it is away", 2.5)
    notifier.close()

    assert read(manager) == [
        "STATUS=waiting for the store: it is away",
        "EXTEND_TIMEOUT_USEC=5000000",
        "WATCHDOG=1",
    ]


def test_a_reload_carries_the_time_that_systemd_orders_it_by(
    manager: socket.socket, notifier: Notifier
) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000

    notifier.reloading()

    first, second = manager.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    name, microseconds = second.split("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(microseconds) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


@pytest.mark.skipif(sys.platform != "linux", reason="abstract addresses are Linux's")
def test_an_abstract_address_is_reached() -> None:
    name = f"liteq-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        manager.setblocking(False)
        notifier = Notifier("@" + name)
        notifier.ready()
        notifier.close()
        assert manager.recv(4096) == b"READY=1"


def test_a_manager_that_is_gone_or_does_not_read_is_no_error(
    manager: socket.socket, notifier: Notifier, tmp_path: Path
) -> None:
    for _ in range(10_000):  # fills the socket's buffer: nobody reads
        notifier.watchdog()
    manager.close()
    (tmp_path / "notify").unlink()
    notifier.ready()
    notifier.close()
    notifier.ready()


def fill(manager: socket.socket) -> None:
    """Leave the manager no room: other services have said too much."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"STATUS=other", manager.getsockname())


def read(manager: socket.socket) -> list[str]:
    heard = []
    with contextlib.suppress(BlockingIOError):
        while True:
            heard.append(manager.recv(4096).decode())
    return [said for said in heard if said != "STATUS=other"]


@on_linux
def test_what_a_busy_manager_has_no_room_for_is_sent_when_it_has(
    manager: socket.socket, notifier: Notifier
) -> None:
    fill(manager)
    notifier.status("1 child")
    notifier.ready()
    notifier.status("2 children")  # of each thing, the last that was said
    with selectors.DefaultSelector() as selector:
        notifier.catch_up(selector)
        assert selector.select(0) == []  # and it costs no turns meanwhile

        read(manager)
        [(key, mask)] = selector.select(10)
        key.data(mask)
        notifier.catch_up(selector)

        assert read(manager) == ["READY=1", "STATUS=2 children"]
        assert not selector.get_map()


@on_linux
def test_what_is_said_next_does_not_overtake_what_is_unsent(
    manager: socket.socket, notifier: Notifier
) -> None:
    fill(manager)
    notifier.ready()
    read(manager)
    notifier.stopping()

    assert read(manager) == ["READY=1", "STOPPING=1"]


@on_linux
def test_what_is_unsent_is_dropped_when_the_manager_has_gone(
    manager: socket.socket, notifier: Notifier
) -> None:
    fill(manager)
    notifier.ready()
    with selectors.DefaultSelector() as selector:
        notifier.catch_up(selector)
        manager.close()
        assert selector.select(10)
        notifier.catch_up(selector)

        assert not selector.get_map()


def test_the_environment_is_read_once_and_emptied() -> None:
    environ = {
        "NOTIFY_SOCKET": "/run/x",
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }

    notifier = Notifier.from_environment(environ)

    assert notifier is not None
    assert notifier.watchdog_interval == 15.0
    assert environ == {"HOME": "/"}
    notifier.close()


def test_a_watchdog_meant_for_another_process_is_not_ours() -> None:
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}

    notifier = Notifier.from_environment(environ)

    assert notifier is not None
    assert notifier.watchdog_interval is None
    notifier.close()


@pytest.mark.parametrize("address", ["", "vsock:2:1", "relative"])
def test_without_a_socket_to_notify_there_is_no_notifier(address: str) -> None:
    assert Notifier.from_environment({"NOTIFY_SOCKET": address}) is None
