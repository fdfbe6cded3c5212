"""What is special to SQLite: files, forks, threads, full disks, versions, sick disks."""

from __future__ import annotations

import contextlib
import ctypes
import dis
import errno
import fcntl
import gc
import itertools
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import ANY

import apsw
import pytest
from rights import acting_as, closed
from world import FakeClock, Store, enlist, make, no_descriptors, uncovered

from liteq import failure, parts
from liteq.brokers import connection, following, schema, settling, wakeup
from liteq.brokers.base import Broker
from liteq.brokers.connection import (
    DATABASE,
    Database,
    fetch_one,
    refuse_network_filesystem,
)
from liteq.brokers.keeping import workers_alive
from liteq.brokers.searching import Search
from liteq.brokers.sqlite import SqliteBroker
from liteq.brokers.values import Letter, Schedule
from liteq.exceptions import (
    BrokerBusy,
    BrokerError,
    BrokerUnavailable,
    ImproperlyConfigured,
    MessageTooLarge,
    QueueFull,
    SchemaError,
    StoreForbidden,
    StoreLost,
)
from liteq.limits import Limit, LimitInfo
from liteq.message import GATHER, PACKED_FIELDS, Edge, Graph, Message, Workflow
from liteq.outcome import Failed, Ignored, Replaced, Revoked, Succeeded
from liteq.pulse import beats, is_free

STORM = bool(os.environ.get("LITEQ_STORM"))

ERROR = failure.describe(ValueError("no"))

TESTS = str(Path(__file__).parent.parent)


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Store:
    return Store("sqlite", tmp_path, clock)


@pytest.fixture
def broker(store: Store) -> Iterator[Broker]:
    opened = store.open()
    yield opened
    opened.close()


@pytest.fixture
def folder(store: Store) -> Path:
    """Where the store's files are."""
    return store.folder / "store"


def run(script: str, *arguments: object, timeout: float = 20) -> str:
    """Run a script to its end in a process of its own and return what it printed.

    The process leads a session, so that a child of its own that hangs ends with it.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {TESTS!r})\n{script}"]
        + [str(argument) for argument in arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=uncovered(),
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail(f"the script was not done after {timeout:g} s")
    assert process.returncode == 0, errors
    return output


def integrity(folder: Path) -> str:
    db = apsw.Connection(str(folder / DATABASE))
    try:
        return str(db.pragma("integrity_check"))
    finally:
        db.close()


# Files


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nobody_else_may_read_the_files(store: Store, folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        broker = store.open()
        worker = enlist(broker)
        mailbox = broker.mailbox(worker)
        broker.enqueue([make()])
        broker.claim(worker, ["default"])
    finally:
        os.umask(before)

    entries = [folder, *folder.rglob("*")]
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in entries}
    assert {f"{DATABASE}{end}" for end in ("", "-wal", "-shm")} <= modes.keys()
    for path in entries:
        if path.is_socket():
            continue  # its folder keeps others out
        assert modes[path.name] == (0o700 if path.is_dir() else 0o600), path
    mailbox.close()
    broker.close()


def test_a_folder_that_others_may_write_to_is_refused(store: Store, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)

    with pytest.raises(ImproperlyConfigured, match="chmod 700"):
        store.open().enqueue([make()])


_ALICE, _MALLORY = 54_321, 54_322


def give_away(path: Path, user: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    os.chown(path, user, -1, follow_symlinks=False)


@pytest.mark.parametrize("planted", ["", "gate", DATABASE, "wake", "store.db-wal"])
def test_a_store_that_another_user_could_have_made_is_refused(
    store: Store, folder: Path, planted: str
) -> None:
    maker = store.open()
    maker.enqueue([make()])
    maker.mailbox().close()
    give_away(folder / planted, _MALLORY)

    with acting_as(_ALICE):
        user = store.open()
        for use in (lambda: user.enqueue([make()]), lambda: enlist(user), user.queues):
            with pytest.raises(ImproperlyConfigured, match=f"belongs to uid {_MALLORY}, who"):
                use()


def test_a_store_of_roots_and_a_store_of_ones_own_are_used(store: Store, folder: Path) -> None:
    store.open().enqueue([make()])

    with acting_as(_ALICE):
        assert enlist(store.open())
    for path in (folder, *folder.iterdir()):
        give_away(path, _ALICE)
    with acting_as(_ALICE):
        assert enlist(store.open())


def test_root_looks_into_every_store_and_runs_its_own_alone(store: Store, folder: Path) -> None:
    store.open().enqueue([make(id="a")])
    give_away(folder, _ALICE)
    root = store.open()

    assert [queue.name for queue in root.queues()] == ["default"]
    root.enqueue([make()])
    with pytest.raises(
        ImproperlyConfigured, match=f"belongs to uid {_ALICE}, who .* root: run"
    ):
        enlist(root)


def test_another_owner_of_the_store_may_be_trusted(store: Store, folder: Path) -> None:
    store.open().enqueue([make()])
    give_away(folder, _MALLORY)

    assert enlist(store.open(allow_other_owner=True))
    with acting_as(_ALICE):
        assert enlist(store.open(allow_other_owner=True))


def test_a_file_in_place_of_the_folder_is_refused(store: Store, folder: Path) -> None:
    folder.write_bytes(b"")

    with pytest.raises(ImproperlyConfigured, match="is a file"):
        store.open().enqueue([make()])


@pytest.mark.parametrize("name", [DATABASE, "gate"])
def test_a_symbolic_link_in_place_of_a_file_is_refused(
    store: Store, folder: Path, tmp_path: Path, name: str
) -> None:
    folder.mkdir(mode=0o700)
    target = tmp_path / "elsewhere"
    target.write_bytes(b"")
    (folder / name).symlink_to(target)

    with pytest.raises(ImproperlyConfigured, match="symbolic link"):
        store.open().enqueue([make()])

    assert target.read_bytes() == b""


def test_a_folder_that_cannot_be_made_is_refused(clock: FakeClock) -> None:
    broker = SqliteBroker("/proc/no/such/place", clock=clock)

    with pytest.raises(ImproperlyConfigured, match="/proc/no"):
        broker.enqueue([make()])


def test_nothing_is_touched_before_the_first_use(store: Store, folder: Path) -> None:
    store.open().close()

    assert not folder.exists()


def test_durability_off_is_refused(store: Store) -> None:
    with pytest.raises(ImproperlyConfigured, match="durability"):
        store.open(durability="off")


MOUNTS = """\
22 28 0:21 / /proc rw,nosuid - proc proc rw
28 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 28 0:40 / {point} rw - {kind} server:/export rw
"""


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "virtiofs", "fuse.sshfs", "vboxsf"])
def test_a_network_file_system_is_refused(tmp_path: Path, kind: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS.format(point=tmp_path, kind=kind))

    with pytest.raises(ImproperlyConfigured, match=f"(?s){kind}.*local disk"):
        refuse_network_filesystem(tmp_path / "store", str(mounts))


def test_a_local_file_system_within_a_network_one_is_fine(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    local = f"31 30 8:2 / {tmp_path}/local rw - ext4 /dev/sdb1 rw\n"
    mounts.write_text(MOUNTS.format(point=tmp_path, kind="nfs4") + local)

    refuse_network_filesystem(tmp_path / "local" / "store", str(mounts))
    refuse_network_filesystem(Path("/srv/store"), str(mounts))
    refuse_network_filesystem(tmp_path / "store", "/no/such/table")


def test_a_store_on_a_network_file_system_is_not_opened(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise ImproperlyConfigured(f"{folder} is remote")

    monkeypatch.setattr(connection, "refuse_network_filesystem", refuse)

    with pytest.raises(ImproperlyConfigured, match="remote"):
        store.open().enqueue([make()])
    store.open(allow_network_filesystem=True).enqueue([make()])


# The file under us


def lose(how: str, folder: Path) -> None:
    database = folder / DATABASE
    match how:
        case "deleted":
            database.unlink()
        case "replaced":
            copy = database.with_name("copy")
            copy.write_bytes(database.read_bytes())
            copy.replace(database)
        case "linked":
            os.link(database, database.with_name("second"))
        case "folder deleted":
            folder.rename(folder.with_name("gone"))


ways_to_lose = pytest.mark.parametrize(
    "how", ["deleted", "replaced", "linked", "folder deleted"]
)


@ways_to_lose
def test_a_lost_file_is_noticed_by_the_check(broker: Broker, folder: Path, how: str) -> None:
    broker.enqueue([make()])
    broker.check()

    lose(how, folder)

    with pytest.raises(StoreLost, match=DATABASE):
        broker.check()


@ways_to_lose
def test_a_worker_notices_a_lost_file_at_its_heartbeat(
    broker: Broker, folder: Path, how: str
) -> None:
    worker = enlist(broker)

    lose(how, folder)

    with pytest.raises(StoreLost):
        broker.beat(worker)


@pytest.mark.parametrize("how", ["deleted", "replaced", "folder deleted"])
def test_no_message_is_accepted_into_a_lost_file(
    broker: Broker, folder: Path, how: str
) -> None:
    broker.enqueue([make()])
    lose(how, folder)

    # SQLite itself would commit to the file that nobody can open any more.
    with pytest.raises(StoreLost):
        broker.enqueue([make()])


@pytest.mark.parametrize(
    "change",
    [
        lambda broker: broker.revoke(["lost"]),
        lambda broker: broker.redrive(["lost"]),
        lambda broker: broker.forget(["lost"]),
        lambda broker: broker.store("lost", "SUCCESS", b"1"),
        lambda broker: broker.purge(["default"]),
        lambda broker: broker.pause("default"),
        lambda broker: broker.resume("default"),
        lambda broker: broker.put_schedule(Schedule("nightly", b"{}", None)),
        lambda broker: broker.remove_schedule("nightly"),
        lambda broker: broker.override_limit("shop.charge", None),
        lambda broker: broker.post([Letter("w1", b"{}", 60.0)]),
        lambda broker: broker.register("late", ["default"], 1, {}),
        lambda broker: broker.lead("beat", 0.0),
    ],
)
def test_no_change_is_accepted_into_a_lost_file(
    broker: Broker, folder: Path, change: Callable[[Broker], object]
) -> None:
    broker.enqueue([make(id="lost")])
    lose("folder deleted", folder)

    with pytest.raises(StoreLost):
        change(broker)


@ways_to_lose
def test_who_reads_notices_a_lost_file_within_a_second(
    broker: Broker, folder: Path, clock: FakeClock, how: str
) -> None:
    broker.enqueue([make()])
    broker.counts()
    lose(how, folder)

    clock.advance(1.0)

    with pytest.raises(StoreLost):
        broker.counts()


def test_who_was_told_of_a_lost_file_reads_the_one_that_is_there(
    store: Store, broker: Broker, folder: Path, clock: FakeClock
) -> None:
    broker.enqueue([make(), make()])
    broker.counts()
    lose("folder deleted", folder)
    other = store.open()
    other.enqueue([make()])
    clock.advance(1.0)
    with pytest.raises(StoreLost):
        broker.counts()

    assert broker.counts()["default"]["queued"] == 1

    other.close()


@pytest.mark.parametrize("how", ["deleted", "replaced", "folder deleted"])
def test_a_file_that_is_lost_while_it_is_used_is_no_sick_disk(
    broker: Broker, folder: Path, how: str
) -> None:
    broker.enqueue([make()])

    def read(_: apsw.Connection) -> None:
        lose(how, folder)
        raise apsw.IOError("disk I/O error")  # SQLite says no more

    with pytest.raises(StoreLost):
        broker._database.read(read)
    assert broker.counts() == ({"default": ANY} if how == "replaced" else {})


def test_a_file_that_is_lost_while_a_thread_opens_it_is_no_sick_disk(
    broker: Broker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.enqueue([make()])
    make_tables = connection._Handle._make

    def lose_then_make(handle: Any, db: apsw.Connection) -> None:
        monkeypatch.undo()
        make_tables(handle, db)
        lose("deleted", folder)

    monkeypatch.setattr(connection._Handle, "_make", lose_then_make)
    with ThreadPoolExecutor(1) as another, pytest.raises(StoreLost):
        another.submit(broker.counts).result(10)
    assert broker.counts() == {}


def test_a_thread_that_comes_later_opens_no_other_file(broker: Broker, folder: Path) -> None:
    broker.enqueue([make()])
    broker.counts()
    lose("folder deleted", folder)

    told: list[BaseException] = []

    def read() -> None:
        try:
            broker.counts()  # the others have looked in this second
        except StoreLost as exc:
            told.append(exc)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(10)

    assert told


@pytest.mark.parametrize(
    "verb",
    [
        lambda broker, worker: broker.beat(worker),
        lambda broker, worker: broker.step(worker, queues=["default"], limit=1, idle=True),
        lambda broker, worker: broker.unregister(worker),
    ],
)
def test_a_worker_does_nothing_in_a_store_that_it_never_registered_in(
    store: Store, broker: Broker, folder: Path, verb: Callable[[Broker, int], object]
) -> None:
    worker = enlist(broker)
    lose("folder deleted", folder)
    other = store.open()
    assert enlist(other) == worker  # the first of both stores
    other.enqueue([make()])
    [lease] = other.claim(worker, ["default"])
    with pytest.raises(StoreLost):  # a task of the worker's asks, say
        broker.check()
    broker.counts()

    with pytest.raises(StoreLost, match=f"worker {worker} registered in"):
        verb(broker, worker)

    assert other.settle(worker, lease, Succeeded(b"1"))
    other.close()


# What is beside the file


def clean_up(how: str, folder: Path) -> None:
    """Do with the locks of workers what cleaners of old files and copies of folders do."""
    match how:
        case "removed":
            for path in (folder / "workers").iterdir():
                path.unlink()
        case "folder removed":
            shutil.rmtree(folder / "workers")
        case "replaced":
            shutil.copytree(folder / "workers", folder / "copy")
            shutil.rmtree(folder / "workers")
            (folder / "copy").rename(folder / "workers")


ways_to_clean_up = pytest.mark.parametrize("how", ["removed", "folder removed", "replaced"])


@pytest.mark.parametrize("how", ["removed", "folder removed"])
def test_2_a_worker_whose_lock_was_removed_is_judged_by_its_heartbeat(
    store: Store, broker: Broker, folder: Path, clock: FakeClock, how: str
) -> None:
    broker.enqueue([make()])
    worker = enlist(broker)
    broker.claim(worker, ["default"])
    other = store.open()
    clean_up(how, folder)

    taken = [other.reclaim()]
    states = [[info.state for info in other.roster()], [info.id for info in other.workers()]]
    probed = [alive for *_, alive in beats(str(folder), clock.steady())]
    clock.advance(broker.lease_timeout + 1)
    taken.append(other.reclaim())

    assert states == [["alive"], [worker]]
    assert probed == [True]
    assert taken == [0, 1]
    assert [info.state for info in other.roster()] == ["dead"]
    other.close()


@ways_to_clean_up
def test_2_a_heartbeat_makes_a_removed_lock_anew(
    store: Store,
    broker: Broker,
    folder: Path,
    clock: FakeClock,
    how: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = enlist(broker)
    other = store.open()
    clean_up(how, folder)

    broker.beat(worker)
    broker.beat(worker)

    assert workers_alive(folder) == [f"{worker}.lock"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{folder}/workers/{worker}.lock, which shows the others" in caplog.text
    clock.advance(broker.lease_timeout + 1)
    other.reclaim()
    assert [info.state for info in other.roster()] == ["stuck"]  # the kernel says: it lives
    broker.unregister(worker)
    assert list((folder / "workers").iterdir()) == []
    other.close()


def test_2_a_lock_that_is_made_anew_is_held_before_it_is_there(
    store: Store, broker: Broker, folder: Path
) -> None:
    worker = enlist(broker)
    lock = folder / "workers" / f"{worker}.lock"
    free: list[bool] = []
    over = threading.Event()

    def probe() -> None:
        while not over.is_set():
            free.append(is_free(str(lock)))

    prober = threading.Thread(target=probe)
    prober.start()
    for _ in range(200):
        lock.unlink()
        broker.beat(worker)
    over.set()
    prober.join()

    assert free
    assert not any(free)


def test_a_worker_beats_on_where_its_lock_cannot_be_made_anew(
    broker: Broker, folder: Path
) -> None:
    worker = enlist(broker)
    clean_up("folder removed", folder)
    (folder / "workers").write_bytes(b"")

    assert broker.beat(worker)

    (folder / "workers").unlink()
    assert broker.beat(worker)
    assert workers_alive(folder) == [f"{worker}.lock"]


def test_a_store_that_cannot_be_looked_for_is_unavailable(broker: Broker, folder: Path) -> None:
    broker.enqueue([make()])
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder)  # a loop

    with pytest.raises(BrokerUnavailable, match="cannot be found now"):
        broker.enqueue([make()])

    folder.unlink()
    folder.with_name("elsewhere").rename(folder)
    broker.enqueue([make()])  # it was not lost


@pytest.mark.parametrize("content", [b"", b"\0" * 4096])
def test_an_empty_file_becomes_a_store(store: Store, folder: Path, content: bytes) -> None:
    folder.mkdir(mode=0o700)
    (folder / DATABASE).write_bytes(content[:0] if not content else b"")
    broker = store.open()

    broker.enqueue([make()])

    assert broker.counts() == {"default": {"queued": 1}}
    broker.close()


def test_a_damaged_file_is_not_worth_retrying(store: Store, folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / DATABASE).write_bytes(b"not a database " * 1000)
    broker = store.open()

    with pytest.raises(BrokerError, match="damaged") as caught:
        broker.enqueue([make()])

    assert not isinstance(caught.value, BrokerUnavailable)


# Forks

LOST_COMMITS = """
import os
from pathlib import Path
from world import FakeClock, Store, make

def in_child(work):
    if (pid := os.fork()) == 0:
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

lost = 0
for trial in range(int(sys.argv[2])):
    store = Store("sqlite", Path(sys.argv[1]) / str(trial), FakeClock())
    store.folder.mkdir()
    broker = store.open()
    broker.enqueue([make()])          # the parent's connection is open at the fork
    go, answer = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        os.read(go[0], 1)
        acknowledged = []
        for _ in range(5):
            message = make()
            broker.enqueue([message])
            acknowledged.append(message.id)
        os.write(answer[1], b"1")
        os.read(go[0], 1)             # others come and go while we are still here
        for _ in range(5):
            message = make()
            broker.enqueue([message])
            acknowledged.append(message.id)
        os.write(answer[1], " ".join(acknowledged).encode())
        os._exit(0)
    broker.close()                    # would drop the locks that the child believes in
    os.write(go[1], b"1")
    os.read(answer[0], 1)

    def open_and_close():             # would think itself the last, and delete the WAL
        other = Store("sqlite", store.folder, FakeClock()).open()
        other.enqueue([make()])
        other.close()

    in_child(open_and_close)
    os.write(go[1], b"1")
    acknowledged = os.read(answer[0], 4096).decode().split()
    os.waitpid(child, 0)
    in_child(open_and_close)
    found = Store("sqlite", store.folder, FakeClock()).open().get(acknowledged)
    lost += len(acknowledged) - len(found)
print(lost, len(acknowledged))
"""


def test_of_several_rows_the_first_one_is_fetched() -> None:
    db = apsw.Connection(":memory:")
    rows = "SELECT column1 AS a, column2 AS b FROM (VALUES (1, 'x'), (2, 'y'))"

    assert fetch_one(db, rows) == (1, "x")
    assert fetch_one(db, f"SELECT b FROM ({rows})") == "x"
    assert fetch_one(db, f"{rows} WHERE a = 2") == (2, "y")
    assert fetch_one(db, f"SELECT b FROM ({rows}) WHERE a = 3") is None


@pytest.mark.process
def test_a_state_that_there_is_not_is_damage(store: Store, folder: Path) -> None:
    broker = store.open()
    message = make()
    broker.enqueue([message])
    alter(folder, "UPDATE message SET state = 42")

    with pytest.raises(
        BrokerError, match=r"damaged .*state 42.*: stop all workers and restore"
    ):
        broker.get([message.id])
    with pytest.raises(BrokerError, match="state 42"):
        list(broker.find(Search()))
    broker.close()


@pytest.mark.process
@pytest.mark.parametrize("column", ["task", "queue"])
def test_a_text_that_is_none_is_damage(store: Store, folder: Path, column: str) -> None:
    broker = store.open()
    worker = enlist(broker)
    broker.enqueue([make()])
    alter(folder, f"UPDATE message SET {column} = CAST(x'64ff' AS TEXT)")

    verbs = {"task": lambda: broker.claim(worker, ["default"]), "queue": broker.counts}
    with pytest.raises(BrokerError, match=r"is damaged .*: stop all workers and restore"):
        verbs[column]()
    broker.close()


DEEP = "[" * 100_000
_NO_LIMIT = ["null", "no JSON", "9" * 5000, DEEP, "[1]", '["l","soon"]', '["l",0]', '["l",1,0]']


@pytest.mark.process
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("deliveries = 9223372036854775807", " starts, 0 retries"),
        ("deliveries = -9223372036854775808", "-9223372036854775808 starts, 0 retries"),
        ("retries = 9223372036854775807", "0 starts, 9223372036854775807 retries"),
        ("retries = -1", "0 starts, -1 retries"),
        ("priority = -9223372036854775808", "the priority -9223372036854775808"),
        ("priority = 9223372036854775807", "the priority 9223372036854775807"),
    ],
)
@pytest.mark.parametrize("limits", [None, '[["l",""]]'])
def test_5_a_message_with_numbers_that_nobody_counted_is_a_dead_letter(
    store: Store, folder: Path, change: str, says: str, limits: str | None
) -> None:
    broker = store.open()
    broker.override_limit("l", Limit("l", most=9))
    bad, good, after = make(limits=limits), make(), make()
    broker.enqueue([bad, good, after], [Edge(bad.id, after.id, "failure", 0)])
    alter(folder, f"UPDATE message SET {change} WHERE id = '{bad.id}'")

    step = broker.step(enlist(broker), queues=["default"], limit=3)

    assert good.id in [lease.id for lease in step.leases]
    assert [(one.id, why) for one, why in step.aside] == [(bad.id, "damaged")]
    [dead] = broker.browse("dead", limit=10)
    assert (dead.id, dead.state) == (bad.id, "failed")
    assert dead.dead is not None
    assert dead.dead.startswith("damaged in the store: it has ")
    assert says in dead.dead
    assert "damaged in the store" in str(failure.rebuild(dead.result or b""))
    assert broker.get([after.id])[after.id].state != "waiting"
    broker.close()


@pytest.mark.process
@pytest.mark.parametrize(
    "change",
    [
        "envelope = '{\"content'",
        "envelope = 'null'",
        f"envelope = '{DEEP}'",
        "envelope = '{\"countdown\": []}'",
        "pending = -9223372036854775808",
        "inputs = 9223372036854775807",
    ],
)
def test_5_what_is_damaged_while_it_waits_is_no_end_of_what_it_waits_for(
    store: Store, folder: Path, change: str
) -> None:
    broker = store.open()
    first, bad = make(), make()
    broker.enqueue([first, bad], [Edge(first.id, bad.id, "success")])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"])
    alter(folder, f"UPDATE message SET {change} WHERE id = '{bad.id}'")

    assert broker.settle(worker, lease, Succeeded(b"1"))

    assert broker.get([first.id])[first.id].state == "succeeded"
    [lease] = broker.claim(worker, ["default"])
    assert lease.id == bad.id
    broker.close()


def test_5_a_gather_with_a_damaged_count_is_no_end_of_its_parts(
    store: Store, folder: Path
) -> None:
    broker = store.open()
    part, gather = make(), make(GATHER, b"fail")
    broker.enqueue([part, gather], [Edge(part.id, gather.id, "part", 0)])
    worker = enlist(broker)
    [lease] = broker.claim(worker, ["default"])
    numbers = "pending = -9223372036854775808, inputs = 9223372036854775807"
    alter(folder, f"UPDATE message SET {numbers} WHERE id = '{gather.id}'")

    assert broker.settle(worker, lease, Succeeded(b"1"))

    assert broker.get([part.id])[part.id].state == "succeeded"
    broker.close()


@pytest.mark.process
@pytest.mark.parametrize("limits", [DEEP, "null", "[1]", "[[1,2]]", '[["l",[]]]', "9" * 5000])
def test_5_limits_that_nobody_can_read_limit_nothing(
    store: Store, folder: Path, limits: str
) -> None:
    broker = store.open()
    broker.override_limit("l", Limit("l", most=1))
    bad, good = make(), make()
    broker.enqueue([bad, good])
    alter(folder, f"UPDATE message SET limits = '{limits}' WHERE id = '{bad.id}'")

    leases = broker.claim(enlist(broker), ["default"], 2)

    assert {lease.id for lease in leases} == {bad.id, good.id}
    broker.close()


@pytest.mark.process
@pytest.mark.parametrize("text", _NO_LIMIT)
def test_5_a_limit_that_nobody_can_read_is_none_and_a_warning(
    store: Store, folder: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker = store.open()
    told = Limit("l", most=1)
    broker.declare_limits({"shop.charge": [told]})
    broker.override_limit("l", Limit("l", most=5))
    broker.override_limit("other", Limit("other", most=1), task="shop.thank")
    broker.enqueue([make(), make(), make("shop.thank")])
    alter(
        folder,
        f"UPDATE limits SET override = '{text}'",
        "INSERT INTO limited VALUES ('shop.more', '[\"l\"')",
        f"INSERT INTO limits(name, declared) VALUES ('bad', '{text}')",
    )

    leases = broker.claim(enlist(broker), ["default"], 5)

    assert [lease.task for lease in leases] == ["shop.charge", "shop.thank"]
    assert "the limit 'l' is damaged in the store and ignored" in caplog.text
    assert "the limits of the task 'shop.more' are damaged" in caplog.text
    known = {one.name: one for one in broker.limits()}
    assert known["l"] == LimitInfo("l", told, None, ("shop.charge",))
    assert known["bad"] == LimitInfo("bad", None, None, ())
    broker.declare_limits({"shop.more": []})
    assert {one.name for one in broker.limits()} >= {"l"}
    broker.close()


def test_a_commit_of_a_forked_child_is_never_lost(tmp_path: Path) -> None:
    assert run(LOST_COMMITS, tmp_path, 20).split() == ["0", "10"]


FORKED_USE = """
import os
from pathlib import Path
from world import FakeClock, Store, make
broker = Store("sqlite", Path(sys.argv[1]), FakeClock()).open()
first = make()
broker.enqueue([first])
read, write = os.pipe()
if os.fork() == 0:
    assert broker.get([first.id])
    message = make()
    broker.enqueue([message])
    os.write(write, message.id.encode())
    os._exit(0)
after = make()
broker.enqueue([after])
os.wait()
print(len(broker.get([first.id, after.id, os.read(read, 100).decode()])))
"""


@pytest.mark.process
def test_parent_and_child_go_on_with_one_broker_after_a_fork(store: Store) -> None:
    assert run(FORKED_USE, store.folder) == "3\n"


NO_CONNECTION_AT_FORK = """
import os
from pathlib import Path
from world import FakeClock, Store, make
broker = Store("sqlite", Path(sys.argv[1]), FakeClock()).open()
broker.enqueue([make()])
if os.fork() == 0:
    held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")]
    os.write(1, "\\n".join(name for name in held if "store.db" in name).encode())
    os._exit(0)
os.wait()
"""


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_forked_child_inherits_no_descriptor_of_the_database(store: Store) -> None:
    assert run(NO_CONNECTION_AT_FORK, store.folder) == ""


FORK_AMONG_THREADS = """
import os, signal, threading
from pathlib import Path
from world import FakeClock, Store, make
broker = Store("sqlite", Path(sys.argv[1]), FakeClock()).open()
broker.enqueue([make()])
stop, errors, ids = threading.Event(), [], []

def produce():
    try:
        while not stop.is_set():
            message = make()
            broker.enqueue([message])
            ids.append(message.id)
    except BaseException as exc:
        errors.append(exc)

def come_and_go():  # each new thread opens a connection of its own
    while not stop.is_set():
        thread = threading.Thread(target=lambda: broker.get(["none"]))
        thread.start()
        thread.join()

threads = [threading.Thread(target=produce) for _ in range(3)]
threads.append(threading.Thread(target=come_and_go))
for thread in threads:
    thread.start()
read, write = os.pipe()
for _ in range(40):
    if (child := os.fork()) == 0:
        signal.alarm(10)  # a child that hangs ends by SIGALRM
        status = 1
        try:
            names = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                     if os.path.exists(f"/proc/self/fd/{fd}")]
            if not any("store.db" in name for name in names):
                message = make()
                broker.enqueue([message])
                os.write(write, message.id.encode() + b"\\n")
                status = 0
        finally:
            os._exit(status)
    if (status := os.waitpid(child, 0)[1]) != 0:
        errors.append(f"child ended with {status}")
        break
stop.set()
for thread in threads:
    thread.join()
ids += os.read(read, 65536).decode().split()
print(len(ids) - len(broker.get(ids)), errors)
"""


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_forks_among_busy_threads_lose_nothing_and_hang_nowhere(store: Store) -> None:
    # Python warns of forks among threads; that is what is tested here.
    script = f"import warnings; warnings.simplefilter('ignore')\n{FORK_AMONG_THREADS}"

    assert run(script, store.folder, timeout=40) == "0 []\n"


FORK_IN_MEMORY = """
import os
from world import make
from liteq.brokers.sqlite import SqliteBroker
from liteq.brokers.values import Letter, Schedule
from liteq.exceptions import BrokerUnavailable
broker = SqliteBroker(None)
broker.enqueue([make()])
if os.fork() == 0:
    try:
        broker.enqueue([make()])
    except BrokerUnavailable:
        os._exit(0)
    os._exit(1)
print(os.wait()[1])
"""


@pytest.mark.process
def test_a_store_in_memory_does_not_pretend_to_be_shared_with_a_child() -> None:
    assert run(FORK_IN_MEMORY) == "0\n"


FORK_IN_THREAD_OF_CHILD = """
import os, sys, threading
from liteq.brokers.sqlite import SqliteBroker
SqliteBroker(sys.argv[1] or None).get(["x"])
def fork():
    if os.fork() == 0:
        os._exit(0)
    print(os.wait()[1])
if os.fork() == 0:
    thread = threading.Thread(target=fork, daemon=True)
    thread.start()
    thread.join(10)
else:
    os.wait()
"""


@pytest.mark.process
@pytest.mark.parametrize("where", ["memory", "file"])
def test_a_forked_child_may_fork_in_any_of_its_threads(folder: Path, where: str) -> None:
    args = (folder,) if where == "file" else ("",)

    assert run(FORK_IN_THREAD_OF_CHILD, *args) == "0\n"


# Wake-ups


KILLED_WHILE_WAITING = """
import os, signal
from liteq.brokers.sqlite import SqliteBroker
from liteq.brokers.values import Letter, Schedule
broker = SqliteBroker(sys.argv[1])
broker.mailbox()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.process
def test_the_socket_of_a_killed_reader_goes_when_a_worker_comes(folder: Path) -> None:
    script = f"import sys; sys.path.insert(0, {TESTS!r})\n{KILLED_WHILE_WAITING}"
    subprocess.run([sys.executable, "-c", script, str(folder)], env=uncovered(), check=False)
    (left,) = (folder / "wake").iterdir()
    broker = SqliteBroker(folder)
    living = broker.mailbox()

    enlist(broker)

    assert not left.exists()
    assert len(list((folder / "wake").iterdir())) == 1
    living.close()
    broker.close()


def test_a_mailbox_in_a_store_whose_folder_is_gone_is_refused(folder: Path) -> None:
    broker = SqliteBroker(folder)
    broker.enqueue([make()])
    shutil.rmtree(folder)

    with pytest.raises(StoreLost):
        broker.mailbox()

    broker.close()


# Who may use it


@pytest.mark.parametrize("umask", [0o777, 0o277])
def test_the_owner_can_use_a_store_whatever_the_umask_was_when_it_was_made(
    folder: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        broker = SqliteBroker(folder)
        broker.enqueue([make()])
        mailbox = broker.mailbox(enlist(broker))
    finally:
        os.umask(before)

    made = [folder, *folder.rglob("*")]
    assert {"gate", "store.db", "store.db-wal", "wake"} <= {path.name for path in made}
    for path in made:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            assert stat.S_IMODE(mode) == 0o700, path
        elif stat.S_ISREG(mode) and path.name != ".gitignore":
            assert stat.S_IMODE(mode) == 0o600, path
    mailbox.close()
    broker.close()


@pytest.mark.parametrize("kept", [".", "store.db", "gate"])
def test_a_store_of_another_user_is_refused_in_words(kept: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    broker = SqliteBroker(folder)
    broker.enqueue([make()])
    broker.close()
    other = SqliteBroker(folder)

    with closed(folder / kept), pytest.raises(BrokerUnavailable, match=str(folder)) as caught:
        other.enqueue([make()])
    if kept != "store.db":  # of which SQLite does not say why
        assert isinstance(caught.value, StoreForbidden)
        assert f"uid {os.getuid()} may not use {folder}" in str(caught.value)
    other.enqueue([make()])

    assert other.counts()["default"]["queued"] == 2
    other.close()


def test_a_store_in_a_folder_that_is_closed_is_not_thought_to_be_absent(
    tmp_path: Path,
) -> None:
    (tmp_path / "closed").mkdir()
    folder = tmp_path / "closed" / "store"

    for _ in range(2):  # before it is made, and after
        broker = SqliteBroker(folder)
        keeper = broker.keeper()
        with closed(folder.parent):
            for refused in (
                lambda broker=broker: broker.enqueue([make()]),
                keeper.version,
                keeper.vacuum,
                lambda keeper=keeper: keeper.restore(tmp_path / "backup.db"),
            ):
                with pytest.raises(StoreForbidden):
                    refused()
        broker.enqueue([make()])
        broker.close()


# Without descriptors


def test_5_a_message_that_is_stored_is_no_error_for_want_of_a_wake_up(folder: Path) -> None:
    broker = SqliteBroker(folder)
    broker.enqueue([make()])
    worker = enlist(broker)
    mailbox = broker.mailbox(worker)
    message = make()

    with no_descriptors():
        broker.enqueue([message])

    assert broker.get([message.id])[message.id].state == "queued"
    mailbox.close()
    broker.close()


def test_a_store_that_cannot_be_opened_for_want_of_descriptors_says_so(folder: Path) -> None:
    broker = SqliteBroker(folder)
    worker, other = enlist(broker), enlist(broker)
    refused: list[str] = []

    def try_to_open() -> None:
        try:
            broker.beat(worker)
        except BrokerUnavailable as exc:
            refused.append(str(exc))

    thread = threading.Thread(target=try_to_open)
    with no_descriptors():
        thread.start()
        thread.join()
        assert broker.reclaim(worker) == 0  # who cannot look at a lock declares nobody dead

    assert "ulimit -n" in refused[0]
    assert {one.id for one in broker.workers()} == {worker, other}
    broker.close()


# Threads


def test_two_threads_whose_first_wake_ups_meet_share_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[socket.socket] = []
    meet = threading.Barrier(2)
    real = socket.socket

    def make_socket(family: int, kind: int) -> socket.socket:
        made.append(real(family, kind))
        with contextlib.suppress(threading.BrokenBarrierError):  # nobody else makes one
            meet.wait(timeout=0.2)
        return made[-1]

    monkeypatch.setattr(wakeup.socket, "socket", make_socket)
    post = wakeup.Post(tmp_path)
    threads = [threading.Thread(target=post.wake, args=("r1", ["x"])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    post.close()

    assert [one.fileno() for one in made] == [-1]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_leaves_a_store_alone(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        return subprocess.check_output(["git", "-C", tmp_path, *words], text=True)

    git("init", "-q")
    with contextlib.closing(Store("sqlite", tmp_path / "shop.liteq", FakeClock()).open()) as it:
        it.enqueue([make()])
        git("clean", "-fdq")
        assert git("status", "--porcelain") == ""
        assert it.counts() == {"default": {"queued": 1}}

    mine = tmp_path / "shop.liteq" / ".gitignore"
    mine.write_text("mine")
    with contextlib.closing(Store("sqlite", tmp_path / "shop.liteq", FakeClock()).open()):
        assert mine.read_text() == "mine"


def test_threads_that_end_leave_no_descriptor_behind(broker: Broker) -> None:
    broker.enqueue([make()])

    def use_in_threads() -> int:
        for _ in range(20):
            thread = threading.Thread(target=broker.enqueue, args=([make()],))
            thread.start()
            thread.join()
        return len(os.listdir("/proc/self/fd"))

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    first, second = use_in_threads(), use_in_threads()

    assert second <= first


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_store_that_is_let_go_unclosed_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)  # more than the address of a socket can name

    def use() -> int:
        store = Store("sqlite", folder, FakeClock())
        broker = store.open()
        with contextlib.closing(broker.mailbox(1)):
            broker.enqueue([make()])  # wakes the worker
        del store, broker
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    first, second = use(), use()

    assert second <= first


def test_only_what_others_commit_is_a_change(broker: Broker, store: Store) -> None:
    broker.counts()
    broker.changed()
    assert not broker.changed()

    broker.enqueue([make()])  # its own
    assert not broker.changed()

    with contextlib.closing(store.open()) as other:
        other.enqueue([make()])
    assert broker.changed()
    assert not broker.changed()

    broker.close()  # what was committed while it was closed it cannot know
    assert broker.changed()


# Several processes

OPEN_AT_ONCE = """
from pathlib import Path
from world import FakeClock, Store, make
broker = Store("sqlite", Path(sys.argv[1]), FakeClock()).open()
message = make()
print("ready", flush=True)
sys.stdin.readline()
broker.enqueue([message])
print(message.id, flush=True)
"""


@pytest.mark.process
def test_many_processes_may_open_a_new_store_at_once(store: Store) -> None:
    script = f"import sys; sys.path.insert(0, {TESTS!r})\n{OPEN_AT_ONCE}"
    for turn in range(10 if STORM else 1):
        folder = store.folder / str(turn)
        folder.mkdir()
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(8)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        answers = [process.communicate(timeout=30) for process in processes]

        assert [errors for _, errors in answers] == [""] * 8
        broker = Store("sqlite", folder, store.clock).open()
        assert len(broker.get([out.strip() for out, _ in answers])) == 8
        broker.close()


KILLED_WHILE_WRITING = """
import os
from pathlib import Path
from world import FakeClock, Store, enlist, make
from liteq.outcome import Succeeded
broker = Store("sqlite", Path(sys.argv[1]), FakeClock()).open()
worker = enlist(broker)
while True:
    messages = [make() for _ in range(3)]
    broker.enqueue(messages)
    os.write(1, "".join(f"e {m.id}\\n" for m in messages).encode())
    leases = broker.claim(worker, ["default"], 2)
    broker.step(worker, settlements=[(lease, Succeeded(b"1")) for lease in leases])
    os.write(1, "".join(f"s {lease.id}\\n" for lease in leases).encode())
"""


@pytest.mark.process
def test_what_was_acknowledged_survives_kill_9_at_any_moment(
    store: Store, folder: Path
) -> None:
    enqueued: set[str] = set()
    settled: set[str] = set()
    script = f"import sys; sys.path.insert(0, {TESTS!r})\n{KILLED_WHILE_WRITING}"
    for turn in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(store.folder)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        seen = b""
        while seen.count(b"\n") < 40 + 7 * turn:  # at another moment each time
            seen += os.read(process.stdout.fileno(), 4096)
        process.send_signal(signal.SIGKILL)
        seen += process.stdout.read()
        process.wait()
        process.stdout.close()
        for line in seen.decode().splitlines():
            kind, _, id = line.partition(" ")
            (enqueued if kind == "e" else settled).add(id)

    broker = store.open()
    broker.reclaim()
    # A message may have been settled whose writer died before it could tell of it.
    known = enqueued | settled
    records = broker.get(sorted(known))
    assert records.keys() == known
    assert {id for id in settled if records[id].state != "succeeded"} == set()
    assert not [record for record in records.values() if record.state == "running"]
    broker.close()
    assert integrity(folder) == "ok"


def test_a_writer_that_does_not_let_go_is_reported(store: Store, folder: Path) -> None:
    broker = store.open(busy_timeout=0.05)
    broker.enqueue([make()])
    other = apsw.Connection(str(folder / DATABASE))
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(BrokerBusy):
        broker.enqueue([make()])
    other.execute("ROLLBACK")
    other.close()

    broker.enqueue([make()])
    broker.close()


# A full store


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_gate_that_was_removed_is_taken_anew_by_those_who_had_it_open(
    store: Store, broker: Broker, folder: Path, how: str
) -> None:
    broker.enqueue([make()])
    (folder / "gate").unlink()
    if how == "replaced":
        (folder / "gate").write_bytes(b"")

    broker.enqueue([make()])
    with (folder / "gate").open("rb+") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        with pytest.raises(BrokerBusy):
            broker.enqueue([make()])
    broker.enqueue([make()])

    assert broker.counts()["default"]["queued"] == 3


def test_an_upgrade_is_heard_of_behind_a_gate_that_was_removed(
    broker: Broker, folder: Path
) -> None:
    broker.enqueue([make()])
    (folder / "gate").unlink()
    with contextlib.closing(apsw.Connection(str(folder / DATABASE))) as later:
        later.pragma("user_version", schema.VERSION + 1)
        later.execute("UPDATE meta SET value = 99 WHERE name = 'readable_by'")

    with pytest.raises(SchemaError):
        broker.enqueue([make()])


def test_who_waits_long_at_the_gate_leaves_the_processor_to_who_is_inside(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        now = 0.0
        pauses: ClassVar[list[tuple[float, float]]] = []

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            self.pauses.append((self.now, seconds))
            self.now += seconds

    broker = SqliteBroker(folder)
    broker.enqueue([make()])
    gate = os.open(folder / "gate", os.O_RDWR)
    fcntl.flock(gate, fcntl.LOCK_EX)
    monkeypatch.setattr(connection, "time", clock := Clock())
    try:
        with pytest.raises(BrokerBusy):
            broker.revoke(["x"])
    finally:
        os.close(gate)

    soon = [pause for at, pause in clock.pauses if 0.02 < at < 0.2]
    late = [pause for at, pause in clock.pauses if at > 0.5]
    assert max(soon) <= 0.0001
    assert min(late) >= 0.002
    broker.close()


def threads_in(function: str) -> int:
    """How many threads are in it, or in what it has called."""
    count = 0
    for frame in sys._current_frames().values():
        found: FrameType | None = frame
        while found is not None and found.f_code.co_name != function:
            found = found.f_back
        count += found is not None
    return count


@contextlib.contextmanager
def closed_gate(folder: Path) -> Iterator[None]:
    """Another process is inside."""
    gate = os.open(folder / "gate", os.O_RDWR)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        yield
    finally:
        os.close(gate)


def test_of_the_threads_that_wait_the_first_looks_at_the_gate(
    folder: Path, wait_until: Callable[..., Any]
) -> None:
    broker = SqliteBroker(folder)
    broker.enqueue([make()])
    order: list[int] = []

    def write(number: int) -> None:
        broker._database.write(lambda db: order.append(number), durable=False)

    with ThreadPoolExecutor(10) as pool, closed_gate(folder):
        done = []
        for number in range(10):
            done.append(pool.submit(write, number))
            wait_until(lambda: threads_in("_queue_at_gate") == len(done))
        assert threads_in("_watch_gate") == 1
    assert [each.exception() for each in done] == [None] * 10
    assert order == list(range(10))
    broker.close()


@pytest.mark.parametrize("way", ["leaves", "writes"])
def test_a_thread_that_is_interrupted_in_line_keeps_nobody_waiting(
    way: str, folder: Path, wait_until: Callable[..., Any]
) -> None:
    broker = SqliteBroker(folder, busy_timeout=60)
    broker.enqueue([make()])
    gate = contextlib.ExitStack()
    gate.enter_context(closed_gate(folder))

    def write() -> None:
        broker.enqueue([make()])

    def interrupt(signum: int, frame: Any) -> None:
        if way == "leaves":
            raise KeyboardInterrupt
        write()

    def send_interrupt(main: int) -> None:
        wait_until(lambda: threads_in("_wait_for") == 2)
        signal.pthread_kill(main, signal.SIGUSR1)
        if way == "writes":
            wait_until(lambda: threads_in("_watch_gate") == 2)
            gate.close()

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with gate, ThreadPoolExecutor(3) as pool:
            threads = [pool.submit(send_interrupt, threading.get_ident()), pool.submit(write)]
            wait_until(lambda: threads_in("_watch_gate") == 1)
            threads.append(pool.submit(write))
            raised = pytest.raises(KeyboardInterrupt)
            with raised if way == "leaves" else contextlib.nullcontext():
                write()
            gate.close()  # who waits has a minute, unless it is kept waiting
            assert [each.result(timeout=30) for each in threads] == [None] * 3
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert broker.counts()["default"]["queued"] == (3 if way == "leaves" else 5)
    broker.close()


def raising_at(moment: int) -> Callable[..., Any]:
    """Return a tracer that raises at this of the moments in which Python looks for signals: at
    the begin of a function, when a call is over, and when a loop turns."""
    moments = itertools.count(1)
    looks: dict[Any, set[int]] = {}

    def offsets(code: Any) -> set[int]:
        found, before = set(), ""
        for each in dis.get_instructions(code):
            if before.startswith(("CALL", "JUMP_BACKWARD")):
                found.add(each.offset)
            if each.opname != "CACHE":
                before = each.opname
        return found

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        frame.f_trace_opcodes = True
        code = frame.f_code
        if "brokers" not in code.co_filename:
            return None
        if code not in looks:
            looks[code] = offsets(code)
        is_one = event == "call" or (event == "opcode" and frame.f_lasti in looks[code])
        if is_one and next(moments) == moment:
            raise KeyboardInterrupt
        return trace

    return trace


@pytest.mark.parametrize("what", ["read", "write", "write one", "open"])
def test_an_interrupt_at_any_moment_leaves_nothing_open_or_locked(
    what: str, folder: Path
) -> None:
    broker = SqliteBroker(folder)
    broker.enqueue([make()])
    database = broker._database
    gate = os.open(folder / "gate", os.O_RDWR)

    def use() -> Any:
        if what == "open":
            database.close()
        if what == "write one":
            return database.write_one("DELETE FROM meta WHERE name = ''", (), durable=False)
        use = database.read if what == "read" else partial(database.write, durable=False)
        return use(lambda db: db.execute("SELECT count(*) FROM meta").fetchall())

    def is_free() -> bool:
        (handle,) = database.handles()
        taken = handle.lock.acquire(blocking=False)
        if taken:
            handle.lock.release()
        return taken and not handle.inside

    use()
    for moment in range(1, 1000):
        before = sys.gettrace()
        sys.settrace(raising_at(moment))
        try:
            use()
        except KeyboardInterrupt:
            sys.settrace(before)
        else:
            break
        finally:
            sys.settrace(before)
        (handle,) = database.handles()
        assert handle.db is None or handle.db.get_autocommit(), moment
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(is_free).result(), moment
        fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(gate, fcntl.LOCK_UN)
        use()
    assert moment > 10
    os.close(gate)
    broker.close()


@pytest.mark.parametrize("round", range(10))  # one that waits for a second has some luck
def test_a_fork_waits_for_no_second_transaction_of_a_thread(
    round: int, folder: Path, wait_until: Callable[..., Any]
) -> None:
    broker = SqliteBroker(folder)
    broker.enqueue([make()])
    inside, go, forked = threading.Event(), threading.Event(), threading.Event()

    def first(db: apsw.Connection) -> None:
        inside.set()
        go.wait()

    def write() -> bool:
        broker._database.write(first, durable=False)
        return broker._database.write(lambda db: forked.is_set(), durable=False)

    def fork() -> None:
        connection._before_fork()
        forked.set()
        connection._after_fork_in_parent()

    with ThreadPoolExecutor(2) as pool:
        written = pool.submit(write)
        inside.wait()
        done = pool.submit(fork)
        wait_until(lambda: connection._forking)
        go.set()
        assert written.result()
        done.result()
    broker.close()


def test_who_holds_the_gate_keeps_nobody_from_opening_and_reading(
    store: Store, folder: Path
) -> None:
    one = store.open()
    one.enqueue([make("a")])
    gate = os.open(folder / "gate", os.O_RDWR)
    fcntl.flock(gate, fcntl.LOCK_EX)  # as a process that was stopped in a transaction does

    try:
        other = store.open(busy_timeout=0.05)
        assert other.counts() == one.counts()
        with pytest.raises(BrokerBusy, match="others have been writing"):
            other.enqueue([make("b")])
        other.close()
    finally:
        os.close(gate)
    one.close()


def test_a_full_store_refuses_work_and_still_settles_it(store: Store) -> None:
    broker = store.open(max_size=500_000)  # a third of it are empty tables
    accepted: list[Message] = []

    def fill() -> None:
        for _ in range(1_000):
            message = make(body=b"x" * 2_000)
            broker.enqueue([message])
            accepted.append(message)

    with pytest.raises(QueueFull, match="max_size"):
        fill()
    assert len(accepted) > 20
    worker = enlist(broker)
    done = 0
    while leases := broker.claim(worker, ["default"], 10):
        step = broker.step(
            worker, settlements=[(lease, Succeeded(b"y" * 2_000)) for lease in leases]
        )
        assert all(step.accepted)
        done += len(leases)
    assert done == len(accepted)
    broker.forget([message.id for message in accepted])

    broker.enqueue([make(body=b"x" * 2_000)])
    broker.close()


def test_a_refused_batch_is_refused_as_a_whole(store: Store) -> None:
    broker = store.open(max_size=300_000)
    batch = [make(body=b"x" * 2_000) for _ in range(1_000)]

    with pytest.raises(QueueFull):
        broker.enqueue(batch)

    assert broker.get([message.id for message in batch]) == {}
    broker.enqueue([make()])
    broker.close()


# Versions


def schema_version(folder: Path) -> int:
    db = apsw.Connection(str(folder / DATABASE))
    try:
        return int(db.pragma("user_version"))
    finally:
        db.close()


def alter(folder: Path, *statements: str) -> None:
    db = apsw.Connection(str(folder / DATABASE))
    for statement in statements:
        db.execute(statement)
    db.close()


def test_an_edge_that_an_earlier_liteq_retired_often_is_drawn_as_it_was(
    store: Store, folder: Path
) -> None:
    one, two = make("one"), make("two")
    edge = Edge(one.id, two.id, "success")
    store.open().enqueue([one, two], [edge], Workflow(two.id))
    alter(folder, "UPDATE edge SET fires = 'was was was success'")

    assert store.open().nodes(two.id)[1] == [edge]


def test_a_store_of_a_later_liteq_is_refused(store: Store, folder: Path) -> None:
    store.open().enqueue([make()])
    later = schema.VERSION + 1
    alter(
        folder,
        f"PRAGMA user_version = {later}",
        f"UPDATE meta SET value = {later} WHERE name = 'readable_by'",
    )

    with pytest.raises(SchemaError, match=f"version {later}.*upgrade liteq"):
        store.open().enqueue([make()])


def test_a_later_store_that_says_it_can_be_used_is_used(store: Store, folder: Path) -> None:
    store.open().enqueue([make()])
    later = schema.VERSION + 1
    alter(folder, "ALTER TABLE message ADD COLUMN later TEXT", f"PRAGMA user_version = {later}")

    broker = store.open()
    broker.enqueue([make()])

    assert broker.counts() == {"default": {"queued": 2}}
    assert schema_version(folder) == later
    broker.close()


def test_a_database_of_another_program_is_refused(store: Store, folder: Path) -> None:
    folder.mkdir(mode=0o700)
    alter(folder, "CREATE TABLE customers(name)")

    with pytest.raises(SchemaError, match="another program"):
        store.open().enqueue([make()])


def test_an_older_store_is_upgraded_under_those_who_use_it(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = store.open()
    old.enqueue([make()])
    found = schema.VERSION
    monkeypatch.setattr(schema, "VERSION", found + 1)
    monkeypatch.setitem(
        schema._MIGRATIONS, found, "ALTER TABLE message ADD COLUMN later INTEGER"
    )

    new = store.open()
    new.enqueue([make()])
    old.enqueue([make()])

    assert schema_version(folder) == found + 1
    worker = enlist(old)
    leases = old.claim(worker, ["default"], 10)
    assert len(leases) == 3
    assert all(
        old.step(worker, settlements=[(lease, Succeeded(b"1")) for lease in leases]).accepted
    )
    old.close()
    new.close()


def test_a_store_of_version_1_is_upgraded_with_all_that_waits_in_it(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, then, callback, alone = make("first"), make("then"), make("callback"), make("alone")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "VERSION", 1)
        Database(folder).read(lambda db: db.execute("SELECT 1"))
    since = {"limits", "unique_key"}  # came with version 3
    fields = [name for name in PACKED_FIELDS if name not in since]
    db = apsw.Connection(str(folder / DATABASE))
    for seq, message in enumerate((first, then, callback, alone), 1):
        waits = int(message in (then, callback))
        db.execute(
            f"INSERT INTO message(seq, {', '.join(fields)}, state, pending, enqueued_at) "
            f"VALUES ({', '.join('?' * (len(fields) + 4))})",
            (
                seq,
                *(getattr(message, name, None) for name in fields),  # no envelope
                0 if waits else 1,
                waits,
                0.0,
            ),
        )
    db.execute(
        "INSERT INTO edge(source, target, fires, position) "
        "VALUES (1, 2, 'success', 0), (1, 3, 'failure', 0)"
    )
    db.close()

    broker = store.open()
    worker = enlist(broker)
    ran = []
    while leases := broker.claim(worker, ["default"], 10):
        ran += [(lease.task, [given.value for given in lease.inputs]) for lease in leases]
        broker.step(worker, settlements=[(lease, Succeeded(b"7")) for lease in leases])
    into = make(GATHER, b"fail")
    broker.enqueue([part := make(), into], [Edge(part.id, into.id, "part")], Workflow(into.id))

    assert schema_version(folder) == schema.VERSION
    assert ran == [("first", []), ("alone", []), ("then", [b"7"])]
    assert broker.get([callback.id])[callback.id].revoked == "upstream"
    assert broker.workflow(into.id) is not None
    assert integrity(folder) == "ok"
    broker.close()


def test_large_results_are_deleted_a_few_at_a_time(
    store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = store.open()
    ids = [make().id for _ in range(10)]
    for id in ids:
        broker.store(id, "SUCCESS", b"x" * 5_000, expires=10)
    clock.advance(11)
    monkeypatch.setattr(settling, "SLICE_BYTES", 8_000)

    left = []
    while broker.maintain():
        left.append(len(broker.get(ids)))

    assert left == [8, 6, 4, 2, 0]
    broker.close()


def test_large_messages_are_revoked_for_lateness_a_few_at_a_time(
    store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = store.open()
    messages = [make(body=b"x" * 5_000, expires_at=clock.now() + 10) for _ in range(10)]
    broker.enqueue(messages)
    clock.advance(11)
    monkeypatch.setattr(settling, "SLICE_BYTES", 8_000)

    waiting = []
    while broker.maintain():
        states = [kept.state for kept in broker.get([m.id for m in messages]).values()]
        waiting.append(states.count("queued"))

    assert waiting == [8, 6, 4, 2, 0]
    broker.close()


def test_large_messages_are_purged_a_few_at_a_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = store.open()
    broker.enqueue([make(body=b"x" * 5_000) for _ in range(10)])
    monkeypatch.setattr(settling, "SLICE_BYTES", 8_000)
    writes: list[Any] = []
    write = Database.write

    def watched(self: Database, body: Any, **options: Any) -> Any:
        done = write(self, body, **options)
        writes.append(done)
        return done

    monkeypatch.setattr(Database, "write", watched)

    purged = broker.purge(["default"])

    assert purged == 10
    assert [done[1] for done in writes if done[1]] == [2] * 5
    broker.close()


def test_a_large_result_alone_is_deleted_all_the_same(
    store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = store.open()
    id = make().id
    broker.store(id, "SUCCESS", b"x" * 9_000, expires=10)
    clock.advance(11)
    monkeypatch.setattr(settling, "SLICE_BYTES", 8_000)

    while broker.maintain():
        pass

    assert broker.get([id]) == {}
    broker.close()


def test_nothing_is_left_of_workflows_that_have_expired(
    store: Store, folder: Path, clock: FakeClock
) -> None:
    broker = store.open()
    worker = enlist(broker)
    for outcome in (Succeeded(b"1"), Failed(ERROR), Ignored(), Revoked("terminated")):
        part, other, into, body = make("part"), make("other"), make(GATHER, b"fail"), make()
        callback, new, more = make(), make(), make()
        edges = [
            Edge(part.id, into.id, "part", 0),
            Edge(other.id, into.id, "part", 1),
            Edge(into.id, body.id, "success"),
            Edge(body.id, callback.id, "failure"),
        ]
        messages = [part, other, into, body, callback]
        broker.enqueue(messages, edges, Workflow(body.id))
        one, two = broker.claim(worker, ["default"], 2)
        graph = Graph((new.pack(),), ((new.id, two.id, "success", 0),))
        added = Graph((more.pack(),), ((more.id, into.id, "part", -1),))
        if isinstance(outcome, Succeeded):
            outcome = outcome._replace(added=added)
        broker.step(worker, settlements=[(one, outcome), (two, Replaced({}, graph))])
        while leases := broker.claim(worker, ["default"], 10):
            broker.step(worker, settlements=[(lease, Succeeded(b"1")) for lease in leases])
    broker.forget([make().id])
    clock.advance(90_000)
    while broker.maintain():
        pass
    broker.close()

    left = {
        table: apsw_rows(folder, f"SELECT count(*) FROM {table}")[0][0]
        for (table,) in apsw_rows(folder, "SELECT name FROM sqlite_schema WHERE type = 'table'")
        if not table.startswith("sqlite_") and table not in ("meta", "worker")
    }
    assert left.keys() >= {"message", "edge", "input", "attempt", "waiter", "workflow"}
    assert not any(left.values()), left


def test_an_upgrade_that_fails_leaves_the_store_as_it_was(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.open().enqueue([make()])
    found = schema.VERSION
    monkeypatch.setattr(schema, "VERSION", found + 1)
    broken = "ALTER TABLE message ADD COLUMN later TEXT; CREATE TABLE message(x)"
    monkeypatch.setitem(schema._MIGRATIONS, found, broken)
    with pytest.raises(Exception, match="already exists"):
        store.open().enqueue([make()])
    monkeypatch.undo()

    broker = store.open()
    broker.enqueue([make()])

    assert schema_version(folder) == found
    columns = {row[1] for row in apsw_rows(folder, "PRAGMA table_info(message)")}
    assert "later" not in columns
    broker.close()


def apsw_rows(folder: Path, sql: str) -> list[Any]:
    db = apsw.Connection(str(folder / DATABASE))
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


# One SQLite library per process


def test_the_standard_librarys_sqlite3_may_not_open_a_store_in_use(
    broker: Broker, folder: Path
) -> None:
    broker.enqueue([make()])
    path = folder / DATABASE

    for name in (str(path), path, os.fsencode(path)):
        with pytest.raises(BrokerError, match="sqlite3"):
            sqlite3.connect(name)
    with pytest.raises(BrokerError, match="sqlite3"):
        sqlite3.connect(f"file:{path}?mode=ro", uri=True)


def test_another_database_may_be_opened_with_sqlite3(broker: Broker, tmp_path: Path) -> None:
    broker.enqueue([make()])

    sqlite3.connect(tmp_path / "other.db").close()
    sqlite3.connect(":memory:").close()


def test_a_store_in_use_may_not_be_copied_as_files(
    broker: Broker, folder: Path, tmp_path: Path
) -> None:
    broker.enqueue([make()])

    with pytest.raises(BrokerError, match="backup"):
        shutil.copy(folder / f"{DATABASE}-shm", tmp_path / "copy")
    with pytest.raises((BrokerError, shutil.Error), match="backup"):
        shutil.copytree(folder, tmp_path / "tree")
    with (
        tarfile.open(tmp_path / "tar", "w") as archive,
        pytest.raises(BrokerError, match="backup"),
    ):
        archive.add(folder)


HOLDS_A_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 128)  # byte 128: who is connected
    except BlockingIOError:
        print("locked")
"""


def test_what_is_refused_takes_no_lock_from_the_store(
    broker: Broker, folder: Path, tmp_path: Path
) -> None:
    # To close any descriptor of a file drops all of the process's locks on it.
    broker.enqueue([make()])
    shm = folder / f"{DATABASE}-shm"

    def is_locked() -> bool:
        command = [sys.executable, "-S", "-c", HOLDS_A_LOCK, str(shm)]
        return subprocess.check_output(command, env=uncovered()) == b"locked\n"

    for attempt in (
        lambda: sqlite3.connect(folder / DATABASE),
        lambda: shm.read_bytes(),
        lambda: shutil.copy(shm, tmp_path / "copy"),
    ):
        with pytest.raises(BrokerError):
            attempt()
    assert is_locked()

    libc = ctypes.CDLL(None)  # past the guard: or the test would show nothing
    libc.close(libc.open(os.fsencode(shm), os.O_RDONLY))
    assert not is_locked()


def test_a_relative_path_does_not_fool_the_guard(
    broker: Broker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.enqueue([make()])
    monkeypatch.chdir(folder)

    with pytest.raises(BrokerError):
        sqlite3.connect(DATABASE)
    with pytest.raises(BrokerError):
        open(f"{DATABASE}-shm", "rb")  # noqa: SIM115 (it must not even open)
    with pytest.raises(BrokerError):
        os.open(os.fsencode(f"{DATABASE}-shm"), os.O_RDONLY)


# A sick disk


class SickDisk(apsw.VFS):
    """A file system whose n-th write or sync of the WAL fails, once."""

    def __init__(self, name: str) -> None:
        self.countdown: dict[str, int] = {}
        self.base = apsw.vfs_names()[0]  # "" would be ourselves, once we are the default
        super().__init__(name, self.base, makedefault=True)

    def xOpen(self, name: Any, flags: Any) -> SickFile:  # noqa: N802 (SQLite's name)
        if flags[0] & apsw.SQLITE_OPEN_WAL:
            self.count("open")
        return SickFile(self, name, flags)

    def fail(self, what: str, nth: int) -> None:
        self.countdown = {what: nth}

    def count(self, what: str) -> None:
        if what in self.countdown:
            self.countdown[what] -= 1
            if self.countdown[what] == 0:
                raise apsw.IOError(f"{what} failed")

    @property
    def failed(self) -> bool:
        return any(left <= 0 for left in self.countdown.values())

    def heal(self) -> bool:
        """Fail no more; return whether the failure came."""
        failed, self.countdown = self.failed, {}
        return failed


class SickFile(apsw.VFSFile):
    def __init__(self, disk: SickDisk, name: Any, flags: Any) -> None:
        self.disk = disk
        self.wal = bool(flags[0] & apsw.SQLITE_OPEN_WAL)
        super().__init__(disk.base, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if self.wal:
            self.disk.count("write")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self.wal:
            self.disk.count("sync")
        super().xSync(flags)


@pytest.fixture
def disk() -> Iterator[SickDisk]:
    # A connection to a file on a healthy disk has its own VFS: it is not disturbed.
    before = apsw.vfs_names()[0]
    sick = SickDisk(f"sick-{os.getpid()}")
    yield sick
    sick.unregister()
    assert apsw.vfs_names()[0] == before


@pytest.mark.parametrize("lacking", ["bytes", "files"])
def test_a_store_that_cannot_be_opened_on_a_full_disk_says_so(
    store: Store, disk: SickDisk, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = store.open()
    broker.enqueue([make("a")])
    broker.close()
    room = SimpleNamespace(f_bavail=1 << 20, f_frsize=4096, f_files=1 << 20, f_favail=1 << 19)
    monkeypatch.setattr(os, "statvfs", lambda _: room)

    disk.fail("open", 1)
    with pytest.raises(BrokerUnavailable, match=r"used now \(open failed\)"):
        broker.enqueue([make("b")])
    setattr(room, "f_bavail" if lacking == "bytes" else "f_favail", 0)
    disk.fail("open", 1)
    with pytest.raises(QueueFull, match=r"no space is left on its disk.*nothing was stored"):
        broker.enqueue([make("b")])
    disk.fail("open", 1)
    with pytest.raises(BrokerUnavailable, match="no space left on its disk"):
        broker.counts()
    disk.heal()
    broker.close()


@contextlib.contextmanager
def refused(path: Path, number: int) -> Iterator[None]:
    """Have the disk take no file and no folder at a path."""

    def instead(call: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(name: Any, *args: Any, **named: Any) -> Any:
            if name == str(path):
                raise OSError(number, os.strerror(number), name)
            return call(name, *args, **named)

        return refuse

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", instead(os.open))
        patch.setattr(os, "mkdir", instead(os.mkdir))
        yield


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_store_whose_gate_the_disk_refuses_is_out_of_reach(folder: Path, number: int) -> None:
    broker = SqliteBroker(folder)
    broker.enqueue([make("a")])
    broker.close()

    with (
        refused(folder / "gate", number),
        pytest.raises(BrokerUnavailable, match=r"cannot be used now: .*/gate\); nothing"),
    ):
        broker.enqueue([make("b")])

    broker.enqueue([make("b")])
    assert broker.counts()["default"]["queued"] == 2
    broker.close()


@pytest.mark.parametrize("name", ["", "store.db", "gate", "workers", "workers/1.lock.new"])
def test_a_worker_for_whose_files_there_is_no_room_may_try_again(
    folder: Path, name: str
) -> None:
    broker = SqliteBroker(folder)

    with refused(folder / name, errno.ENOSPC):
        for _ in range(2):
            with pytest.raises(BrokerUnavailable, match=r"no space left.*`df -i`"):
                enlist(broker)

    enlist(broker)
    assert len(broker.workers()) == 1
    broker.close()


def test_a_mailbox_polls_where_no_folder_can_be_made_for_it(folder: Path) -> None:
    broker = SqliteBroker(folder)

    with refused(folder / "wake", errno.EROFS):
        mailbox = broker.mailbox(beat=True)

    assert mailbox.fileno() == -1
    mailbox.close()
    broker.close()


def test_a_purge_that_fails_says_how_many_it_has_deleted(store: Store, disk: SickDisk) -> None:
    broker = store.open()
    for nth in range(1, 1_000, 20):
        left = broker.counts().get("default", {}).get("queued", 0)
        broker.enqueue([make() for _ in range(1_100 - left)])
        disk.fail("write", nth)
        with pytest.raises(BrokerUnavailable) as caught:
            broker.purge()
        disk.heal()
        if "500 messages were deleted before that" in str(caught.value):
            break

    assert broker.counts()["default"]["queued"] == 600
    assert broker.purge() == 600
    broker.close()


def test_a_purge_writes_nothing_where_there_is_nothing(store: Store, folder: Path) -> None:
    broker = store.open(busy_timeout=0.05)
    broker.enqueue([make(queue="a")])
    gate = os.open(folder / "gate", os.O_RDWR)
    fcntl.flock(gate, fcntl.LOCK_EX)  # so nobody else can write
    try:
        assert broker.purge(["b"]) == 0
        with pytest.raises(BrokerBusy):
            broker.purge()
    finally:
        os.close(gate)
    assert broker.purge() == 1
    broker.close()


def fail_everywhere(disk: SickDisk, attempt: Callable[[str, int], bool]) -> int:
    """Call `attempt` with each place where a write or a sync can fail; return how many."""
    places = 0
    for what in ("write", "sync"):
        for nth in range(1, 50):
            if not attempt(what, nth):
                break
            places += 1
    return places


def test_an_enqueue_that_failed_anywhere_may_be_repeated(
    disk: SickDisk, tmp_path: Path, clock: FakeClock
) -> None:
    def attempt(what: str, nth: int) -> bool:
        place = tmp_path / f"{what}-{nth}"
        place.mkdir()
        broker = Store("sqlite", place, clock).open(durability="full")
        broker.enqueue([make("earlier")])
        batch = [make() for _ in range(5)]
        disk.fail(what, nth)
        try:
            broker.enqueue(batch)
        except BrokerUnavailable:  # and nothing else: this is what callers repeat
            assert disk.failed
        failed = disk.heal()
        broker.enqueue(batch)
        assert broker.counts() == {"default": {"queued": 6}}
        broker.close()
        assert integrity(place / "store") == "ok"
        return failed

    assert fail_everywhere(disk, attempt) > 2


def test_a_settle_with_a_graph_that_failed_anywhere_may_be_repeated(
    disk: SickDisk, tmp_path: Path, clock: FakeClock
) -> None:
    def attempt(what: str, nth: int) -> bool:
        place = tmp_path / f"{what}-{nth}"
        place.mkdir()
        broker = Store("sqlite", place, clock).open(durability="full")
        one, two, into, new, more = make(), make(), make(GATHER, b"fail"), make(), make()
        edges = [Edge(one.id, into.id, "part", 0), Edge(two.id, into.id, "part", 1)]
        broker.enqueue([one, two, into], edges, Workflow(into.id))
        worker = enlist(broker)
        leases = broker.claim(worker, ["default"], 2)
        settlements = [
            (leases[0], Replaced({}, Graph((new.pack(),), ((new.id, one.id, "success", 0),)))),
            (
                leases[1],
                Succeeded(b"1", added=Graph((more.pack(),), ((more.id, into.id, "part", -1),))),
            ),
        ]
        disk.fail(what, nth)
        try:
            broker.step(worker, settlements=settlements)
        except BrokerUnavailable:
            broker.step(worker, settlements=settlements)
        failed = disk.heal()
        assert broker.counts() == {"default": {"queued": 2, "waiting": 1}}
        ran = 0
        while leases := broker.claim(worker, ["default"], 10):
            ran += len(leases)
            broker.step(worker, settlements=[(lease, Succeeded(b"2")) for lease in leases])
        assert ran == 3
        listed = broker.get([into.id])[into.id].result
        assert listed is not None
        assert [value for _, value in parts.unpack(listed)] == [b"2", b"1", b"2"]
        broker.close()
        assert integrity(place / "store") == "ok"
        return failed

    assert fail_everywhere(disk, attempt) > 1


def test_a_list_that_no_row_can_hold_fails_its_gather_and_nothing_else(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "MAX_LIST", 100)
    broker = store.open()
    members, into, body = [make() for _ in range(3)], make(GATHER, b"fail"), make("body")
    edges = [Edge(part.id, into.id, "part", n) for n, part in enumerate(members)]
    edges += [Edge(into.id, body.id, "success")]
    broker.enqueue([*members, into, body], edges)
    worker = enlist(broker)
    leases = broker.claim(worker, ["default"], 3)

    step = broker.step(worker, settlements=[(one, Succeeded(b"x" * 40)) for one in leases])

    record = broker.get([body.id])[body.id]
    assert step.accepted == (True, True, True)
    assert (record.state, record.revoked) == ("failed", "upstream")
    assert record.result is not None
    assert isinstance(failure.rebuild(record.result), MessageTooLarge)
    broker.close()


def test_a_graph_of_values_that_no_column_takes_fails_its_task_and_no_other(
    store: Store,
) -> None:
    broker = store.open()
    one, other = make(), make()
    broker.enqueue([one, other])
    worker = enlist(broker)
    first, second = broker.claim(worker, ["default"], 2)
    wrong = Graph((make(priority="high").pack(),))

    step = broker.step(
        worker,
        settlements=[(first, Replaced({}, wrong)), (second, Succeeded(b"2"))],
    )

    assert step.accepted == (True, True)
    records = broker.get([one.id, other.id])
    assert [records[one.id].state, records[other.id].state] == ["failed", "succeeded"]
    broker.close()


def test_a_worker_that_leaves_lets_one_of_its_name_be_woken(tmp_path: Path) -> None:
    """A store that was made anew counts its workers from 1 again."""
    post = wakeup.Post(tmp_path / "wake")
    old = post.open(0.5, worker=1)
    new = post.open(0.5, worker=1)

    old.close()

    assert post.hand(1, b"still there")
    assert new.wait(5) == {"still there"}
    new.close()
    assert not post.hand(1, b"gone")
    post.close()


def limit_wal(broker: SqliteBroker, pages: int) -> None:
    """Have it moved as soon as it is that long."""
    database = broker._database
    database.wal_backstop = database.wal_limit = pages


@pytest.mark.parametrize("what", ["write", "sync"])
def test_a_worker_that_stands_by_finds_what_an_enqueue_that_failed_has_left_it(
    disk: SickDisk,
    tmp_path: Path,
    clock: FakeClock,
    what: str,
) -> None:
    broker = Store("sqlite", tmp_path, clock).open()
    worker = enlist(broker)
    mailbox = broker.mailbox(worker)
    ask = partial(broker.step, worker, queues=["default"], limit=1, idle=True)
    token = ask().standby
    message = make()
    limit_wal(broker, 0)  # it is moved, and synced for that, behind the commit
    disk.fail(what, 1)
    with pytest.raises(BrokerUnavailable):
        broker.enqueue([message])
    assert disk.heal()
    assert (message.id in broker.get([message.id])) == (what == "sync")
    broker.enqueue([message])  # as a sender does

    step = ask()

    (lease,) = step.leases
    assert (lease.id, lease.delivery) == (message.id, 1)
    assert lease.token != token
    mailbox.receive()
    assert [late.token for late in mailbox.leases()] == [token] * (what == "write")
    mailbox.close()
    broker.close()
    assert integrity(tmp_path / "store") == "ok"


def test_a_settle_that_failed_anywhere_may_be_repeated(
    disk: SickDisk, tmp_path: Path, clock: FakeClock
) -> None:
    def attempt(what: str, nth: int) -> bool:
        place = tmp_path / f"{what}-{nth}"
        place.mkdir()
        broker = Store("sqlite", place, clock).open(durability="full")
        messages = [make() for _ in range(4)]
        broker.enqueue(messages)
        worker = enlist(broker)
        leases = broker.claim(worker, ["default"], 4)
        settlements = [(lease, Succeeded(b"1")) for lease in leases]
        disk.fail(what, nth)
        try:
            step = broker.step(worker, settlements=settlements)
        except BrokerUnavailable:
            # All or nothing: a ghost of the failed commit may have come back whole.
            states = {r.state for r in broker.get([m.id for m in messages]).values()}
            assert len(states) == 1
            step = broker.step(worker, settlements=settlements)
        failed = disk.heal()
        records = broker.get([message.id for message in messages])
        assert {record.state for record in records.values()} == {"succeeded"}
        assert all(step.accepted) or failed
        broker.close()
        assert integrity(place / "store") == "ok"
        return failed

    assert fail_everywhere(disk, attempt) > 1


# The WAL, where no worker keeps it short


class Interrupting(apsw.VFS):
    """A file system that does something, once, in the middle of a checkpoint: when it syncs
    the database."""

    def __init__(self) -> None:
        self.then: Callable[[], object] | None = None
        self.base = apsw.vfs_names()[0]
        super().__init__("interrupting", self.base, makedefault=True)

    def xOpen(self, name: Any, flags: Any) -> apsw.VFSFile:  # noqa: N802 (SQLite's name)
        vfs = self

        class File(apsw.VFSFile):
            def __init__(self) -> None:
                path = name.filename() if isinstance(name, apsw.URIFilename) else name
                self.database = bool(path) and path.endswith("store.db")
                super().__init__(vfs.base, name, flags)

            def xSync(self, flags: int) -> None:  # noqa: N802
                then = vfs.then
                if self.database and then is not None:
                    vfs.then = None
                    then()
                super().xSync(flags)

        return File()


def test_others_send_on_while_one_moves_the_wal(tmp_path: Path, clock: FakeClock) -> None:
    sent = []
    with contextlib.ExitStack() as stack:
        disk = Interrupting()
        stack.callback(disk.unregister)
        store = Store("sqlite", tmp_path, clock)
        broker, other = (
            stack.enter_context(contextlib.closing(store.open(busy_timeout=0.2)))
            for _ in range(2)
        )
        for one in (broker, other):
            limit_wal(one, 20)
        other.enqueue([make()])
        disk.then = lambda: sent.append(other.enqueue([make()]))
        for _ in range(30):
            broker.enqueue([make()])

    assert len(sent) == 1


def test_producers_alone_keep_the_wal_short(tmp_path: Path, clock: FakeClock) -> None:
    brokers = [Store("sqlite", tmp_path, clock).open() for _ in range(3)]
    for broker in brokers:
        limit_wal(broker, 100)
    for turn in range(600):
        brokers[turn % 3].enqueue([make()])
    pages = (tmp_path / "store" / "store.db-wal").stat().st_size // 4096
    for broker in brokers:
        broker.close()

    assert pages < 200
