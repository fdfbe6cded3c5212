"""`liteq db`, `doctor`, `health`, `systemd` and `completion`, as who operates a store meets
them; and what holds of every command there is."""

from __future__ import annotations

import configparser
import gc
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import click
import pytest
import redis.asyncio  # noqa: F401 (or each command here would import it anew)
import redis_server
from mounts import Disk
from rights import acting_as, closed
from terminal import Here, Project, Running
from world import FakeClock, make

from liteq import doctor as examining
from liteq import health, pulse
from liteq.__main__ import main as quick_main
from liteq.brokers import keeping
from liteq.brokers.keeping import workers_alive
from liteq.brokers.redis import RedisBroker
from liteq.brokers.sqlite import SqliteBroker
from liteq.cli.exits import EXIT_CODES, Exit
from liteq.cli.root import cli
from liteq.discovery import find_app
from liteq.exceptions import BrokerError, BrokerUnavailable, ImproperlyConfigured, SchemaError
from liteq.message import Message
from liteq.outcome import Succeeded


def enqueue(broker: Any, number: int, **fields: Any) -> list[str]:
    ids = [f"m{n}" for n in range(number)]
    broker.enqueue([Message(id, "tasks.add", b"[[1,2],{}]", **fields) for id in ids])
    return ids


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteBroker]:
    broker = SqliteBroker(tmp_path / "store", durability="normal")
    yield broker
    broker.close()


# Backups


ALICE, MALLORY = 54_321, 54_322


def give_away(path: Path, user: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    os.chown(path, user, -1)


@pytest.mark.parametrize("planted", ["", "store.db"])
def test_a_store_of_another_user_is_not_looked_after(
    store: SqliteBroker, tmp_path: Path, planted: str
) -> None:
    ids = enqueue(store, 3)
    copy = tmp_path / "copy.db"
    store.keeper().backup(copy)
    give_away(store.folder / planted, MALLORY)
    before = sorted(path.name for path in tmp_path.iterdir())

    with acting_as(ALICE):
        keeper = SqliteBroker(store.folder).keeper()
        for use in (
            keeper.version,
            keeper.check,
            keeper.migrate,
            keeper.stats,
            keeper.vacuum,
            lambda: keeper.backup(tmp_path / "stolen.db"),
            lambda: keeper.restore(copy),
        ):
            with pytest.raises(ImproperlyConfigured, match=f"belongs to uid {MALLORY}, who"):
                use()
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        trusting = SqliteBroker(store.folder, allow_other_owner=True)
        assert trusting.keeper().check() == []
        trusting.close()
    store.keeper().restore(copy)  # root may

    assert store.get(ids).keys() == set(ids)


def test_a_backup_is_a_whole_store_of_its_own(store: SqliteBroker, tmp_path: Path) -> None:
    ids = enqueue(store, 3)
    target = tmp_path / "backup" / "store.db"
    target.parent.mkdir()

    size = store.keeper().backup(target)

    assert target.stat().st_size == size
    assert target.stat().st_mode & 0o777 == 0o600
    assert os.listdir(target.parent) == ["store.db"]
    db = apsw.Connection(str(target), flags=apsw.SQLITE_OPEN_READONLY)
    assert [id for (id,) in db.execute("SELECT id FROM message ORDER BY seq")] == ids
    assert db.pragma("journal_mode") == "delete"
    db.close()


def test_a_backup_does_not_replace_a_file_and_leaves_none_half(
    store: SqliteBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue(store, 1)
    target = tmp_path / "kept"
    target.write_text("precious")

    with pytest.raises(ImproperlyConfigured, match="exists already"):
        store.keeper().backup(target)
    with pytest.raises(ImproperlyConfigured, match="belongs on another disk"):
        store.keeper().backup(tmp_path / "store" / "copy.db")
    with pytest.raises(ImproperlyConfigured, match="is a folder"):
        store.keeper().backup(tmp_path)

    def break_off(*_: Any) -> None:
        raise BrokerError("the disk is gone")

    monkeypatch.setattr(keeping, "_copy", break_off)
    with pytest.raises(BrokerError, match="the disk is gone"):
        store.keeper().backup(target, force=True)
    assert target.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["kept", "store"]


@pytest.mark.process
class FullDisk(apsw.VFS):
    """A file system that has no room for files whose names have this word in them."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.base = apsw.vfs_names()[0]
        super().__init__("full", self.base, makedefault=True)

    def xOpen(self, name: Any, flags: Any) -> apsw.VFSFile:  # noqa: N802 (SQLite's name)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name or ""
        kind = FullFile if self.word in path else apsw.VFSFile
        return kind(self.base, name, flags)


class FullFile(apsw.VFSFile):
    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        raise apsw.FullError("full")


@pytest.fixture
def full(request: pytest.FixtureRequest) -> Iterator[None]:
    disk = FullDisk(request.param)
    yield
    disk.unregister()


@pytest.mark.parametrize("full", [".partial"], indirect=True)
@pytest.mark.usefixtures("full")
def test_a_backup_onto_a_full_disk_says_so_and_leaves_nothing(
    store: SqliteBroker, tmp_path: Path
) -> None:
    store.enqueue([make()])
    target = tmp_path / "copy.db"

    with pytest.raises(BrokerUnavailable, match=r"partial cannot be written: no space left"):
        store.keeper().backup(target)

    assert [one for one in tmp_path.iterdir() if "copy" in one.name] == []


@pytest.mark.parametrize("full", [".before-"], indirect=True)
@pytest.mark.usefixtures("full")
def test_a_restore_without_room_for_what_there_is_leaves_that_as_it_is(
    store: SqliteBroker, tmp_path: Path
) -> None:
    store.enqueue([make()])
    store.keeper().backup(tmp_path / "b.db")
    store.enqueue([make()])

    with pytest.raises(BrokerUnavailable, match="cannot be written: no space left"):
        store.keeper().restore(tmp_path / "b.db")

    assert store.counts() == {"default": {"queued": 2}}
    assert list((tmp_path / "store").glob("*.before-*")) == []


def test_a_backup_that_cannot_be_written_says_where_to(here: Here, tmp_path: Path) -> None:
    here.ok("call", "tasks.add", "-a", "[1, 2]")
    shut = tmp_path / "shut"
    shut.mkdir()
    here.ok("db", "backup", str(shut / "copy.db"))
    here.forget()

    absent = here("db", "backup", str(tmp_path / "absent" / "copy.db"))
    with closed(shut):
        refused = here("db", "backup", str(shut / "copy.db"))
        unread = here("db", "restore", str(shut / "copy.db"), "--yes")

    for done, why in (
        (absent, "copy.db cannot be written (No such file or directory): name a file"),
        (refused, "copy.db cannot be written (Permission denied): name a file"),
        (unread, "copy.db cannot be read: Permission denied"),
    ):
        (line,) = done.stderr.splitlines()
        assert why in line
        assert done.returncode == 2


def test_backups_under_load_are_each_one_moment(store: SqliteBroker, tmp_path: Path) -> None:
    writer = """
import sys
from liteq.brokers.sqlite import SqliteBroker
from liteq.message import Message
broker = SqliteBroker(sys.argv[1], durability="normal")
n = 0
while True:
    broker.enqueue([Message(f"{n}-{part}", "t", b"[[],{}]") for part in range(5)])
    if n == 0:
        print("begun", flush=True)
    n += 1
"""
    words = [sys.executable, "-c", writer, str(store.folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        counts = []
        try:
            for n in range(5):
                store.keeper().backup(tmp_path / f"{n}.db")
                db = apsw.Connection(str(tmp_path / f"{n}.db"))
                assert db.pragma("quick_check") == "ok"
                counts.append(db.execute("SELECT count(*) FROM message").get)
                db.close()
        finally:
            process.kill()

    assert all(count % 5 == 0 for count in counts), "half a transaction"
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


def test_a_restore_brings_back_what_was_and_gives_back_what_ran(
    store: SqliteBroker, tmp_path: Path
) -> None:
    enqueue(store, 3)
    worker = store.register("w", ["default"], 1, {})
    first, second = store.claim(worker, ["default"], 2)
    store.settle(worker, second, Succeeded(b"1"))
    store.keeper().backup(tmp_path / "b.db")
    store.settle(worker, first, Succeeded(b"1"))
    store.unregister(worker)
    other = SqliteBroker(tmp_path / "store")  # a program that goes on while it is restored
    other.enqueue([Message("late", "t", b"[[],{}]")])

    aside = store.keeper().restore(tmp_path / "b.db")
    again = store.reclaim()

    assert again == 1
    states = {id: record.state for id, record in other.get(["m0", "m1", "m2"]).items()}
    assert states == {"m0": "queued", "m1": "succeeded", "m2": "queued"}
    assert other.get(["late"]) == {}
    other.enqueue([Message("after", "t", b"[[],{}]")])
    assert store.get(["after"]).keys() == {"after"}
    assert not store.settle(worker, first, Succeeded(b"stale"))
    assert aside is not None
    kept = apsw.Connection(str(aside))
    assert kept.execute("SELECT count(*) FROM message WHERE id = 'late'").get == 1
    kept.close()
    assert store.keeper().check() == []
    other.close()


def test_a_restore_refuses_while_a_worker_lives(store: SqliteBroker, tmp_path: Path) -> None:
    enqueue(store, 1)
    store.keeper().backup(tmp_path / "b.db")
    other = SqliteBroker(tmp_path / "store")
    worker = other.register("w", ["default"], 1, {})

    assert workers_alive(tmp_path / "store") == [f"{worker}.lock"]
    with pytest.raises(BrokerError, match=r"stop the workers of .* first: 1 still alive"):
        store.keeper().restore(tmp_path / "b.db")
    with pytest.raises(BrokerError, match="a full vacuum would hold up live workers"):
        store.keeper().vacuum(full=True)

    other.unregister(worker)
    store.keeper().restore(tmp_path / "b.db")
    other.close()


def test_a_damaged_store_makes_way_for_a_restored_one(
    store: SqliteBroker, tmp_path: Path
) -> None:
    ids = enqueue(store, 200)
    store.keeper().backup(tmp_path / "b.db")
    store.close()
    with open(tmp_path / "store" / "store.db", "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 60_000)

    assert store.keeper().check() != []
    aside = store.keeper().restore(tmp_path / "b.db")

    assert aside is not None
    assert aside.exists()
    assert len(store.get(ids)) == 200
    assert store.keeper().check(full=True) == []


def test_what_is_no_backup_is_refused(store: SqliteBroker, tmp_path: Path) -> None:
    enqueue(store, 1)
    (tmp_path / "text").write_text("no database" * 100)
    foreign = apsw.Connection(str(tmp_path / "foreign"))
    foreign.execute("CREATE TABLE t(a)")
    foreign.close()
    store.keeper().backup(tmp_path / "later")
    later = apsw.Connection(str(tmp_path / "later"))
    later.pragma("user_version", 99)
    later.close()

    for name, why in (
        ("text", "not a backup"),
        ("foreign", "not a backup"),
        ("absent", "there is no"),
    ):
        with pytest.raises(ImproperlyConfigured, match=why):
            store.keeper().restore(tmp_path / name)
    with pytest.raises(SchemaError, match="made by a later liteq"):
        store.keeper().restore(tmp_path / "later")
    assert store.get(["m0"]).keys() == {"m0"}


def test_a_vacuum_gives_space_back(store: SqliteBroker) -> None:
    ids = [f"big{n}" for n in range(300)]
    store.enqueue([Message(id, "t", b'["%s"]' % (b"x" * 9000)) for id in ids])
    store.purge()

    before, after = store.keeper().vacuum()
    assert after < before / 5
    assert store.keeper().vacuum(full=True).after <= after
    assert store.keeper().stats()["free"] == 0


def test_a_check_finds_what_hangs_in_the_air(store: SqliteBroker) -> None:
    enqueue(store, 1)
    store._database.write(
        lambda db: db.execute(
            "INSERT INTO attempt(message, number, outcome, ended_at) VALUES (77, 1, 'x', 0)"
        ),
        durable=False,
    )

    assert store.keeper().check() == ["1 attempts of messages that are gone"]


def test_a_store_of_a_later_liteq_stays_one(store: SqliteBroker) -> None:
    store._database.write(lambda db: db.pragma("user_version", 99), durable=False)

    assert store.keeper().migrate() == (99, 99)


# The commands of db


def test_db_is_used_as_a_user_would(here: Here, tmp_path: Path) -> None:
    assert here("db", "check").returncode == 3
    assert here.ok("db", "migrate").startswith("made a new store, schema version ")
    assert here.ok("db", "migrate").endswith(": nothing to do")
    id = here.ok("call", "tasks.add", "-a", "[1, 2]")
    file = tmp_path / "b.db"

    assert here.ok("db", "backup", str(file)).startswith(f"{file}: ")
    assert here("db", "backup", str(file)).returncode == 2
    assert json.loads(here.ok("db", "backup", str(file), "--force", "--json"))["bytes"] > 4096
    here.ok("purge", "-f")
    refused = here("db", "restore", str(file), stdin="n\n")
    restored = here("db", "restore", str(file), "-y")
    stats = json.loads(here.ok("db", "stats", "--json"))

    assert refused.returncode == 1
    assert "Replace what" in refused.stderr
    assert "what it held is in" in restored.stderr
    assert [row["id"] for row in json.loads(here.ok("ls", "--json"))] == [id]
    assert stats["states"] == {"queued": 1}
    assert here.ok("db", "check", "--full") == "ok"
    assert json.loads(here.ok("db", "check", "--json")) == {"ok": True, "problems": []}
    assert re.fullmatch(r"[\d.]+ KiB before, [\d.]+ KiB now", here.ok("db", "vacuum"))
    assert "queued  1" in here.ok("db", "stats")


def test_a_damaged_store_ends_a_check_with_1(here: Here, tmp_path: Path) -> None:
    here.ok("call", "tasks.add", "-a", "[1, 2]")
    here.forget()
    (path,) = tmp_path.glob("*.liteq")
    with open(path / "store.db", "r+b") as file:
        file.seek(8192)
        file.write(b"\x55" * 30_000)

    done = here("db", "check")
    examined = here("doctor")

    assert done.returncode == examined.returncode == 1
    assert "restore a backup" in done.stderr
    assert re.search(r"^fail  \w+", examined.stdout, re.MULTILINE)


def test_on_redis_db_says_what_does_it_instead(
    project: Project, here: Here, tmp_path: Path
) -> None:
    redis_server.require()
    url = redis_server.shared()

    for word, hint in (
        ("backup x", "BGSAVE"),
        ("restore x -y", "dump.rdb"),
        ("vacuum", "MEMORY"),
    ):
        done = here("db", *word.split(), "-b", url)
        assert done.returncode == 2
        assert hint in done.stderr
    assert here.ok("db", "check", "-b", url) == "ok"
    assert here.ok("db", "migrate", "-b", url).endswith("nothing to do")
    stats = json.loads(here.ok("db", "stats", "-b", url, "--json"))
    assert stats["version"].split()[0] in ("redis", "valkey")
    assert abs(stats["clock_skew"]) < 5


# doctor


def findings(here: Here, *words: str) -> dict[str, dict[str, str]]:
    done = here("doctor", "--json", *words)
    return {found["name"]: found for found in json.loads(done.stdout)}


def test_a_doctor_finds_nothing_in_a_sound_project(here: Here) -> None:
    empty = here("doctor")
    here.ok("call", "tasks.add", "-a", "[1, 2]")
    here.burst()
    done = here("doctor")
    found = findings(here)

    assert empty.returncode == done.returncode == 0
    assert "made at the first call" in empty.stdout
    assert all(line.startswith("ok ") for line in done.stdout.splitlines()), done.stdout
    assert re.fullmatch(r"\d+ ok, 0 warn, 0 fail\n", done.stderr)
    for name in ("file system", "locking", "disk", "schema", "integrity", "wal", "sqlite"):
        assert found[name]["level"] == "ok"


def test_a_doctor_knows_the_tasks_of_all_modules(here: Here, project: Project) -> None:
    project.write("app_alone.py", "from liteq import Liteq\napp = Liteq('a', include=['more'])")
    project.write("more.py", "from app_alone import app\n@app.task\ndef work(): ...")
    assert here("-A", "app_alone", "doctor").stderr.endswith("0 warn, 0 fail\n")

    project.write("more.py", "import no_such_module")
    here.forget()
    done = here("-A", "app_alone", "doctor")

    assert done.returncode == 1
    assert re.search(r"fail  imports .*no_such_module", done.stdout)


def test_a_doctor_says_what_waits_in_vain(here: Here) -> None:
    here.ok("call", "tasks.add", "-a", "[1, 2]", "--queue", "lonely")
    broker = find_app("tasks").app.broker
    broker.enqueue([Message("strange", "other.task", b"[[],{}]")])
    broker.enqueue([Message("broken", "tasks.add", b"{", "b")])
    worker = broker.register("w", ["default"], 1, {})
    broker.claim(worker, ["default"], tasks=frozenset({"tasks.add"}))
    broker.unregister(worker)
    here.forget()
    find_app("tasks").app.run_until_empty(queues=["b"])

    found = findings(here)

    assert found["queues"]["what"] == "no worker consumes default, lonely"
    assert found["queues"]["advice"] == "liteq worker -Q default,lonely"
    assert "other.task" in found["parked"]["what"]
    assert found["dead letters"] == {
        "name": "dead letters",
        "level": "warn",
        "what": "1",
        "advice": "look at them: `liteq dead list`",
    }
    assert here("doctor").returncode == 0


def test_a_doctor_names_periodic_entries_that_no_beat_can_read(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.ok("schedule", "add", "nightly", "tasks.add", "60", "-a", "[1, 2]")
    assert "periodic entries" not in findings(here)
    here.forget()

    monkeypatch.setenv("LITEQ_SECURITY_KEYS", "a key of at least 16 characters")

    assert findings(here)["periodic entries"]["what"] == (
        "not fired: nightly (the value of periodic entry nightly is not signed, and "
        "security_keys are set)"
    )


def test_a_doctor_names_declared_entries_that_no_beat_has_entered(here: Here) -> None:
    here.ok("call", "tasks.add", "-a", "[1, 2]")
    with Path("tasks.py").open("a") as code:
        code.write('app.add_periodic_task(60, add.s(1, 2), name="nightly")\n')
    missing = findings(here)
    find_app("tasks").app.schedules.reconcile()

    assert missing["declared entries"]["level"] == "warn"
    assert missing["declared entries"]["what"] == "not in the store: nightly"
    assert "start `liteq beat`" in missing["declared entries"]["advice"]
    assert "declared entries" not in findings(here)


def test_names_of_megabytes_take_one_line_each(here: Here) -> None:
    long = 100_000
    here.ok("call", "tasks.add", "-a", "[1, 2]", "--queue", "y" * long)
    broker = find_app("tasks").app.broker
    broker.enqueue([Message("strange", "x" * long, b"[[],{}]")])
    worker = broker.register("w", ["default"], 1, {})
    broker.claim(worker, ["default"], tasks=frozenset({"tasks.add"}))
    broker.unregister(worker)

    for command in (["doctor"], ["queues"], ["queues", "latency"]):
        ended = here(*command)
        assert "yyy" in ended.stdout
        assert len(ended.stdout + ended.stderr) < 20_000


def test_a_doctor_tells_the_stuck_from_the_live(tmp_path: Path, clock: FakeClock) -> None:
    broker = SqliteBroker(tmp_path / "store", clock=clock)
    broker.register("w@host", ["default"], 1, {})

    def workers() -> tuple[str, str]:
        [found] = [one for one in examining.examine(broker) if one.name == "workers"]
        return found.level, found.what

    live = workers()
    clock.advance(broker.lease_timeout + 1)

    assert live == ("ok", "1 live")
    assert workers() == ("warn", f"0 live, 1 give no sign: w@host (pid {os.getpid()})")
    broker.close()


def test_a_doctor_fails_what_cannot_be_relied_on(
    project: Project, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.ok("call", "tasks.add", "-a", "[1, 2]")
    here.forget()
    (folder,) = tmp_path.glob("*.liteq")
    folder.chmod(0o777)
    open_to_all = here("doctor")
    assert open_to_all.returncode == 1
    assert f"chmod 700 {folder}" in open_to_all.stdout
    folder.chmod(0o700)

    monkeypatch.setattr(examining, "filesystem_of", lambda folder: "nfs4")
    assert "on nfs4, where SQLite's WAL loses commits" in here("doctor").stdout
    monkeypatch.undo()

    project.write("tasks.py", "1/0")
    monkeypatch.chdir(project.folder)
    broken = here("doctor")
    assert broken.returncode == 1
    assert "ZeroDivisionError" in broken.stdout


def test_a_doctor_looks_at_redis(here: Here, tmp_path: Path) -> None:
    redis_server.require()
    url = redis_server.url_of(tmp_path)

    found = findings(here, "-b", url)
    gone = here("doctor", "-b", "redis://127.0.0.1:1")

    assert found["redis"]["level"] == "ok"
    assert found["eviction"]["level"] == "ok"
    assert found["clock"]["level"] == "ok"
    assert found["persistence"]["level"] in ("ok", "warn")
    assert found["queues"]["level"] == "ok"
    assert gone.returncode == 1
    assert "cannot be reached" in gone.stdout
    assert "start the server, or correct the URL" in gone.stdout


@pytest.mark.parametrize(
    ("facts", "name", "level", "advice"),
    [
        ({"version": "redis 6.0.9"}, "redis", "fail", "6.2 or later is needed"),
        ({"version": "valkey 8.1.0"}, "redis", "ok", ""),
        ({"persistence": "nothing is persisted"}, "persistence", "warn", "appendonly yes"),
        ({"last_save": "err"}, "persistence", "fail", "the server's log"),
        ({"policy": "allkeys-lru"}, "eviction", "warn", "noeviction"),
        ({"memory": 95, "maxmemory": 100}, "memory", "warn", "raise maxmemory"),
        ({"clock_skew": -7.0}, "clock", "warn", "NTP"),
    ],
)
def test_a_doctor_judges_a_server(
    facts: dict[str, Any], name: str, level: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_server.require()
    broker = RedisBroker(redis_server.shared(), namespace="doctor")
    whole = {
        "persistence": "append-only file",
        "policy": "noeviction",
        "version": "redis 7.2.0",
        "clock_skew": 0.0,
        **facts,
    }
    monkeypatch.setattr(broker, "facts", lambda: whole)

    found = [one for one in examining.examine(broker) if one.name == name]

    assert found[-1].level == level
    assert advice in found[-1].advice
    broker.close()


# health


def test_a_worker_is_healthy_while_it_lives_and_beats(
    store: SqliteBroker, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite://{tmp_path / 'store'}"
    store.counts()
    nobody = here("health", "-b", url)
    worker = store.register("w@host", ["default"], 1, {})
    ready = here("health", "ready", "-b", url)
    live = json.loads(here.ok("health", "live", "-b", url, "--json"))
    later = health.system_clock.steady() + 90
    monkeypatch.setattr(health.system_clock, "steady", lambda: later)
    stale = here("health", "-b", url)
    fresh = here("health", "-b", url, "--max-age", "120")
    store.unregister(worker)
    gone = here("health", "-b", url)

    assert nobody.returncode == stale.returncode == gone.returncode == 5
    assert nobody.stderr == (
        f"liteq: no live worker on {socket.gethostname()}: no worker is registered ({url})\n"
    )
    assert ready.stdout.startswith(f"w@host  pid {os.getpid()}  heartbeat ")
    assert live["ok"] is True
    assert live["workers"][0]["pid"] == os.getpid()
    assert re.search(r"heartbeat, of w@host, is (89|90) s old", stale.stderr)
    assert fresh.returncode == ready.returncode == 0


@pytest.mark.process
def test_a_killed_worker_is_dead_at_once(here: Here, tmp_path: Path) -> None:
    script = """
import os, sys
from liteq.brokers.sqlite import SqliteBroker
SqliteBroker(sys.argv[1]).register("w", ["default"], 1, {})
os.kill(os.getpid(), 9)
"""
    folder = tmp_path / "store"
    subprocess.run([sys.executable, "-c", script, str(folder)], check=False)

    done = here("health", "live", "-b", str(folder))

    assert done.returncode == 5
    assert "w has died" in done.stderr


def test_a_store_out_of_reach_is_no_reason_to_restart_a_worker(
    here: Here, tmp_path: Path
) -> None:
    for url in (str(tmp_path / "absent"), "redis://127.0.0.1:1/0"):
        ready, live = here("health", "-b", url), here("health", "live", "-b", url)
        assert ready.returncode == 6
        assert live.returncode == 0
        assert "whether a worker lives is not known" in live.stderr
    assert not (tmp_path / "absent").exists()


def test_the_health_in_a_store_of_another_user_is_not_believed(
    store: SqliteBroker, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = store.register("w@host", ["default"], 1, {})
    named = ("-b", str(store.folder))
    give_away(store.folder, MALLORY)
    assert pulse.quick_answer(named, lambda _: ())  # to root
    assert here("health", *named).returncode == 0

    with acting_as(ALICE):
        assert not pulse.quick_answer(named, lambda _: ())
        refused = here("health", *named)
        url = f"sqlite://{store.folder}"
        trusted = here("health", "-b", f"{url}?allow_other_owner=yes")
        monkeypatch.setenv("LITEQ_BROKER_TRANSPORT_OPTIONS", '{"allow_other_owner": true}')
        allowed = here("health", "-b", url)

    assert refused.returncode == Exit.USAGE
    assert f"{store.folder} belongs to uid {MALLORY}, who could run tasks" in refused.stderr
    assert trusted.stdout.startswith("w@host  pid ")
    assert allowed.stdout.startswith("w@host  pid ")
    store.unregister(worker)


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_worker_that_is_not_registered_yet_is_no_reason_to_restart_it(
    here: Here, tmp_path: Path, kind: str
) -> None:
    if kind == "redis":
        redis_server.require()
        url = redis_server.url_of(tmp_path)
    else:
        url = str(tmp_path / "store")
        SqliteBroker(url).counts()

    ready, live = here("health", "-b", url), here("health", "live", "-b", url)

    assert ready.returncode == 5
    assert live.returncode == 0
    assert "whether one lives is not known" in live.stderr
    assert json.loads(here.ok("health", "live", "-b", url, "--json"))["ok"] is True


def test_health_of_workers_on_redis_is_read_over_a_plain_socket(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_server.require()
    url = redis_server.shared()
    namespace = redis_server.namespace_of(tmp_path)
    broker = RedisBroker(url, namespace=namespace)
    worker = broker.register("w@host", ["a", "b"], 1, {})

    (pulse,) = health.pulses(url, {"namespace": namespace})
    (same,) = health._through_client(url, {"namespace": namespace})
    monkeypatch.setattr(sys, "argv", ["liteq", "health", "-b", f"{url}&namespace={namespace}"])
    try:
        assert quick_main() == 0
    finally:  # it believes that its process ends with it
        gc.unfreeze()
        gc.enable()
    quick = here.capfd.readouterr().out
    done = here("health", "-b", f"{url}&namespace={namespace}")
    with pytest.raises(BrokerUnavailable, match="cannot be reached"):
        health.pulses("redis://127.0.0.1:1/0", {})

    assert (pulse.name, pulse.hostname, pulse.pid) == ("w@host", same.hostname, os.getpid())
    assert pulse.age < 30
    assert done.stdout.startswith("w@host  pid ")
    assert quick.split("heartbeat")[0] == done.stdout.split("heartbeat")[0]
    broker.unregister(worker)
    assert health.pulses(url, {"namespace": namespace}) == []
    broker.close()


def test_a_probe_of_a_server_heeds_the_options_in_the_project_file(
    project: Project, tmp_path: Path
) -> None:
    redis_server.require()
    namespace = redis_server.namespace_of(tmp_path)
    broker = RedisBroker(redis_server.shared(), namespace=namespace)
    broker.register("w@here", ["a"], 1, {})
    named = ("health", "-b", f"{redis_server.shared()}&namespace={namespace}")
    before = project(*named)

    options = 'broker-transport-options = {global_keyprefix = "shop:"}'
    project.write("pyproject.toml", f"[tool.liteq]\n{options}\n")

    # It is the store of another project that this worker is of.
    assert (before.returncode, project(*named).returncode) == (0, 5)
    broker.close()


def test_a_probe_of_a_server_imports_neither_sockets_nor_typing(
    project: Project, tmp_path: Path
) -> None:
    redis_server.require()
    namespace = redis_server.namespace_of(tmp_path)
    broker = RedisBroker(redis_server.shared(), namespace=namespace)
    broker.register("w@here", ["a"], 1, {})
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom liteq.__main__ import main\n"
        "status = main()\n"
        "heavy = {'click', 'enum', 'logging', 're', 'socket', 'typing', 'urllib'}\n"
        "print(status, sorted(heavy & set(sys.modules) - before))\n"
    )
    project.write("probe.py", code)

    done = subprocess.run(
        # -S: what a site's own files import is no doing of ours
        [sys.executable, "-S", "probe.py", "health"],
        cwd=project.folder,
        env=project.environ
        | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "LITEQ_BROKER_URL": f"{redis_server.shared()}&namespace={namespace}",
        },
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    told, end = done.stdout.splitlines()
    assert told.startswith(f"w@here  pid {os.getpid()}  heartbeat ")
    assert end == "0 []"
    broker.close()


def test_health_imports_neither_the_app_nor_its_machinery(
    project: Project, store: SqliteBroker
) -> None:
    store.counts()
    project.write("tasks.py", "raise SystemExit('the app was imported')")
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom liteq.cli import main\n"
        f"main(['health', '-b', {str(store.folder)!r}])\n"
        "heavy = {'liteq.app', 'liteq.config', 'liteq.brokers.sqlite', 'logging', 'redis',\n"
        "         'tasks', 'asyncio', 'multiprocess', 'json', 'rich'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules) - before))\n"
    )

    assert project.python(code).endswith("HEAVY []")


@pytest.mark.process
def test_a_probe_that_finds_a_worker_needs_no_command_line(
    project: Project, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start("worker", "-P", "solo", "-n", "w@here")
    worker.wait_for("ready ")
    folder = project.folder / "shop.liteq"
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom liteq.__main__ import main\n"
        "status = main()\n"
        "heavy = {'click', 're', 'typing', 'pathlib', 'json', 'enum', 'liteq.cli'}\n"
        "print(status, sorted(heavy & set(sys.modules) - before))\n"
    )
    project.write("probe.py", code)

    def probe(*words: str, **environ: str) -> list[str]:
        done = subprocess.run(
            # -S: what a site's own files import is no doing of ours
            [sys.executable, "-S", "probe.py", "health", *words],
            cwd=project.folder,
            env=project.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environ,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.splitlines()

    for words, environ in (
        (["-b", str(folder)], {}),
        (["live", "--broker", f"sqlite://{folder}"], {}),
        (["ready"], {"LITEQ_BROKER_URL": f"sqlite:///{folder}"}),
    ):
        told, end = probe(*words, **environ)
        assert re.fullmatch(rf"w@here  pid {worker.process.pid}  heartbeat [\d.]+ s ago", told)
        assert end == "0 []"

    # What is said otherwise is the command's to say.
    refused: list[str] = []

    def quick(*words: str) -> bool:
        return pulse.quick_answer(words, lambda url: refused.append(url) or ())  # type: ignore[func-returns-value]

    assert not quick("-b", str(folder), "--json")
    assert not quick("-b", str(folder / "not"))
    assert not quick("-b", "redis://127.0.0.1:1/0")
    assert not quick("-b")
    assert not quick()
    assert refused == ["redis://127.0.0.1:1/0"]
    worker.end(signal.SIGKILL)
    assert not quick("-b", str(folder))
    assert project("health", "-b", str(folder)).returncode == 5


def test_a_probe_whose_answer_cannot_be_written_leaves_it_to_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = SqliteBroker(tmp_path / "store")
    broker.register("\N{CYRILLIC SMALL LETTER ZHE}", ["a"], 1, {})
    answered = {}

    for encoding in ("utf-8", "latin-1", ""):
        stream = io.TextIOWrapper(io.BytesIO(), encoding) if encoding else None
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stream)
            words = ["-b", str(tmp_path / "store")]
            answered[encoding] = pulse.quick_answer(words, lambda _: ())

    assert answered == {"utf-8": True, "latin-1": False, "": False}
    broker.close()


def test_health_finds_the_store_that_is_there(
    here: Here, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = here("health")
    here.ok("call", "tasks.add", "-a", "[1, 2]")
    assert here("health").returncode == 5
    project.write("liteq.toml", 'broker_url = "sqlite:///nowhere/x.liteq"')
    assert "there is no store at /nowhere/x.liteq/store.db" in here("health").stderr
    monkeypatch.setenv("LITEQ_BROKER_URL", "memory://")
    assert here("health").returncode == 6

    assert which.returncode == 2
    assert "name it with -b or LITEQ_BROKER_URL" in which.stderr


# systemd


def test_units_are_printed_for_the_app(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITEQ_BROKER_URL", "sqlite:///srv/100%/shop.liteq")
    monkeypatch.setenv("LITEQ_RESULT_BACKEND", "")
    text = here.ok("systemd", "--user", "shop", "-Q", "mail", "-c", "3", "--grace", "40")
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)

    service = unit["Service"]
    assert text.startswith("# shop-worker.service\n")
    assert service["ExecStart"].endswith(" worker -A tasks:app --grace 40 -Q mail -c 3")
    assert service["Type"] == "notify"
    assert service["TimeoutStopSec"] == "75"
    assert service["User"] == "shop"
    assert service["RestartPreventExitStatus"] == "2 7 8"
    assert "Environment=LITEQ_BROKER_URL=sqlite:///srv/100%%/shop.liteq\n" in text


def test_units_of_a_django_project_name_its_settings(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "shop.settings.live")

    text = here.ok("systemd")

    assert "\nEnvironment=DJANGO_SETTINGS_MODULE=shop.settings.live\n" in text


def started(text: str) -> list[str]:
    """Return what follows the program in each ExecStart of the units."""
    lines = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    return [re.sub(r"^.*? (?=(?:worker|beat) )", "", line) for line in lines]


def test_units_are_about_the_store_and_the_settings_that_were_named(
    here: Here, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITEQ_BROKER_URL", "sqlite:///srv/other.liteq")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://host/1")
    project.write("more.py", "worker_lease_timeout = 30\n")

    text = here.ok("systemd", "--beat", "-b", "sqlite:///srv/s.liteq", "--config", "more")

    words = "-A tasks:app -b sqlite:///srv/s.liteq --config more"
    assert started(text) == [f"worker {words} --grace 25", f"beat {words}"]
    assert "other.liteq" not in text
    assert text.count("Environment=CELERY_RESULT_BACKEND=redis://host/1\n") == 2


def test_units_say_each_word_as_systemd_reads_it(
    here: Here, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project.folder / "100% é "
    folder.mkdir()
    monkeypatch.setenv("LITEQ_NOTE", 'a "b" \\ $c\n%d')

    text = here.ok("systemd", "-A", f"{project.folder}/tasks.py", "-Q", """a b,$c,50%,'";""")
    monkeypatch.chdir(folder)
    moved = here.ok("systemd", "-A", f"{project.folder}/tasks.py")

    (words,) = started(text)
    assert words.endswith(r""" -Q "a b,$$c,50%%,'\";" """.rstrip())
    assert r'Environment="LITEQ_NOTE=a \"b\" \\ $c\n%%d"' + "\n" in text
    assert f"WorkingDirectory={project.folder}/100%% é /\n" in moved


def test_units_say_how_long_a_stop_takes_without_an_exponent(here: Here) -> None:
    text = here.ok("systemd", "--grace", "2000000.25")

    assert "TimeoutStopSec=2000035.25\n" in text
    assert started(text) == ["worker -A tasks:app --grace 2000000.25"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "a/b"], "'a/b' cannot name a unit: give a --name"),
        (["--name", "a@b"], "'a@b' cannot name a unit"),
        (["--name", "a\nUser=root"], "cannot name a unit"),
        (["--user", "a\nb"], "is not a user name"),
        (["--grace", "nan"], "--grace nan is not a number of seconds below a billion"),
        (["--grace", "inf"], "--grace inf is not a number of seconds"),
        (["-o", "tasks.py/x"], "tasks.py/x/shop-worker.service cannot be written: Not a"),
    ],
)
def test_what_no_unit_can_be_made_of_is_refused(
    here: Here, words: list[str], message: str
) -> None:
    done = here("systemd", *words)

    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_units_hold_no_secret(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITEQ_BROKER_URL", "redis://user:swordfish@host/0")
    monkeypatch.setenv("LITEQ_BROKER_TRANSPORT_OPTIONS", '{"password": "swordfish"}')
    monkeypatch.setenv("LITEQ_WEB_AUTH", "ada:swordfish")

    done = here("systemd")

    assert "swordfish" not in done.stdout
    for name in ("LITEQ_BROKER_URL", "LITEQ_BROKER_TRANSPORT_OPTIONS"):
        assert f"# {name} has a secret: put it into EnvironmentFile=\n" in done.stdout
        assert f"liteq: {name} has a secret: put it into" in done.stderr
    assert "LITEQ_WEB_AUTH" not in done.stdout


def test_a_store_with_a_password_is_left_to_the_environment_of_units(here: Here) -> None:
    done = here("systemd", "--beat", "-b", "redis://user:swordfish@host/0")

    assert "swordfish" not in done.stdout
    assert started(done.stdout) == ["worker -A tasks:app --grace 25", "beat -A tasks:app"]
    assert done.stdout.count("# LITEQ_BROKER_URL has a secret: put it into") == 2
    assert "liteq: LITEQ_BROKER_URL has a secret" in done.stderr


def test_units_are_written_for_instances_and_beat(here: Here, tmp_path: Path) -> None:
    out = tmp_path / "units"
    written = here.ok("systemd", "--template", "--beat", "-o", str(out), "--name", "x")

    assert written.splitlines() == [f"{out}/x-worker@.service", f"{out}/x-beat.service"]
    assert "-Q %i\n" in (out / "x-worker@.service").read_text()
    assert " beat -A tasks:app\n" in (out / "x-beat.service").read_text()
    assert here("systemd", "--template", "-Q", "a").returncode == 2


def test_units_are_right_for_systemd(here: Here, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    user = os.environ.get("USER", "root")
    words = ("-b", "sqlite://a b%$c.liteq", "-Q", "a b,'\"", "--grace", "2000000")
    here.ok("systemd", "--beat", "-o", str(tmp_path), "--name", "x", "--user", user, *words)
    for file in ("x-worker.service", "x-beat.service"):
        words = ["systemd-analyze", "verify", str(tmp_path / file)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert file not in done.stderr, done.stderr


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed(here: Here, shell: str, tmp_path: Path) -> None:
    text = here.ok("completion", shell)

    assert f"_LITEQ_COMPLETE={shell}_complete" in text
    if (program := shutil.which(shell)) is not None:
        file = tmp_path / "script"
        file.write_text(text)
        subprocess.run([program, "-n", str(file)], check=True)


def completed(project: Project, line: str) -> list[str]:
    """Return what bash is told when TAB is pressed at the end of this line."""
    words = line.split(" ")
    done = project(
        _LITEQ_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)
    )
    return [found.partition(",")[2] for found in done.stdout.splitlines() if found]


@pytest.mark.process
def test_commands_options_and_what_the_store_has_are_completed(project: Project) -> None:
    broker = SqliteBroker(project.folder / "shop.liteq", durability="normal")
    enqueue(broker, 2, queue="mail")
    broker.enqueue([Message("x", "shop.charge", b"[[],{}]", "default")])
    broker.enqueue([Message("x\x07\nplain,y", "shop.charge", b"[[],{}]", "default")])
    broker.close()
    project.write("tasks.py", "raise SystemExit('the app was imported')")

    assert completed(project, "liteq wo") == ["worker", "workflow"]
    assert "--since" in completed(project, "liteq ls --si")
    assert completed(project, "liteq show m") == ["m0", "m1"]
    assert completed(project, "liteq show x") == ["x"]
    assert completed(project, "liteq ls -Q ") == ["default", "mail"]
    assert completed(project, "liteq worker -Q default,m") == ["default,mail"]
    assert completed(project, "liteq call sh") == ["shop.charge"]
    assert completed(project, "liteq -b redis://127.0.0.1:1 show m") == []


@pytest.fixture
def odd_names(project: Project) -> Project:
    broker = SqliteBroker(project.folder / "shop.liteq", durability="normal")
    enqueue(broker, 1, queue="ma il")
    for name in ("shop.send:one", "shop.send:two, *", "plain"):
        broker.enqueue([Message(name[-3:], name, b"[[],{}]", "high")])
    broker.close()
    command = project.write("liteq", f'#!/bin/sh\nexec "{sys.executable}" -m liteq "$@"\n')
    command.chmod(0o755)
    project.environ["PATH"] = f"{project.folder}:{os.environ['PATH']}"
    return project


def asked(project: Project, shell: str, script: str) -> list[str]:
    """Return what a shell says that has loaded our completion and runs this script."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    project.write("completion", project("completion", shell).stdout)
    done = subprocess.run(
        [shell, "-c", f"source ./completion; {script}"],
        cwd=project.folder,
        env=project.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.process
@pytest.mark.parametrize(
    ("line", "words", "found"),
    [
        # The words are as bash splits the line.
        ("liteq ls -Q m", "liteq ls -Q m", [r"ma\ il"]),
        ("liteq ls -Q high,m", "liteq ls -Q high,m", [r"high,ma\ il"]),
        ("liteq ls --queue=m", "liteq ls --queue = m", [r"ma\ il"]),
        ('liteq ls -Q "m', "liteq ls -Q '\"m'", ["ma il"]),
        ("liteq call shop.send:", "liteq call shop.send :", ["one", r"two,\ \*"]),
        ("liteq call shop.send:t", "liteq call shop.send : t", [r"two,\ \*"]),
        ("liteq call shop.s", "liteq call shop.s", ["shop.send:one", r"shop.send:two,\ \*"]),
        ("liteq call shop.send:o", "liteq call shop.send:o", ["shop.send:one"]),
        ("liteq call p", "liteq call p", ["plain"]),
        ("liteq  work", "liteq work", ["worker", "workflow"]),
    ],
)
def test_bash_completes_names_with_colons_spaces_and_stars(
    odd_names: Project, line: str, words: str, found: list[str]
) -> None:
    script = (
        f"COMP_LINE='{line}' COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        "_liteq_completion liteq; printf '%s\\n' \"${COMPREPLY[@]}\""
    )

    assert asked(odd_names, "bash", script) == found


@pytest.mark.process
def test_fish_completes_names_with_commas_and_shows_all_of_a_help(odd_names: Project) -> None:
    script = "complete -C 'liteq call shop.'; complete -C 'liteq qu'"

    *names, queues = asked(odd_names, "fish", script)

    assert names == ["shop.send:one", "shop.send:two, *"]
    assert queues == "queues\tShow the queues; pause, resume and purge..."


# Errors


def test_an_error_is_one_line_and_its_traceback_is_for_who_asks(here: Here) -> None:
    plain = here("ls", "-b", "redis://127.0.0.1:1")
    verbose = here("-v", "ls", "-b", "redis://127.0.0.1:1")

    assert plain.returncode == verbose.returncode == 6
    assert len(plain.stderr.splitlines()) == 1
    assert "Traceback (most recent call last)" in verbose.stderr
    assert verbose.stderr.endswith(plain.stderr)


# A store that this user may not use


@pytest.mark.parametrize(
    "words",
    [
        ["ls"],
        ["ls", "-b", "sqlite://shop.liteq"],
        ["queues"],
        ["call", "tasks.add", "-a", "[1, 2]"],
        ["db", "stats"],
        ["db", "check", "-b", "shop.liteq"],
        ["db", "backup", "copy.db"],
        ["db", "restore", "copy.db", "--yes"],
        ["db", "vacuum"],
        ["migrate", "--from", "sqlite://shop.liteq", "--to", "sqlite://other.liteq"],
        ["health"],
        ["health", "-b", "shop.liteq"],
    ],
    ids=" ".join,
)
def test_a_store_of_another_user_is_neither_absent_nor_a_mistake(
    words: list[str], here: Here, project: Project
) -> None:
    here.ok("call", "tasks.add", "-a", "[1, 2]")
    here.forget()  # a store that is open already stays so
    folder = project.folder / "shop.liteq"

    with closed(folder):
        done = here(*words)

    assert done.returncode == 6
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"may not use {folder}" in line or "may not use shop.liteq" in line
    assert "must run as the same user" in line


@pytest.mark.parametrize("words", [["worker", "-c", "1"], ["beat"]], ids=" ".join)
def test_no_worker_and_no_beat_waits_to_be_given_the_store(
    words: list[str], here: Here, project: Project
) -> None:
    here.ok("call", "tasks.add", "-a", "[1, 2]")
    here.forget()

    with closed(project.folder / "shop.liteq"):
        done = project(*words)

    assert done.returncode == 6
    assert "may not use" in done.stderr
    assert "Traceback" not in done.stderr


def test_root_looks_into_the_store_of_another_user_and_runs_nothing_of_it(
    here: Here, project: Project
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    here.ok("call", "tasks.add", "-a", "[1, 2]")
    here.forget()
    os.chown(project.folder / "shop.liteq", 54_321, -1)

    queues = here.ok("queues")
    worker = project("worker", "--burst")

    assert worker.returncode == 2
    assert "belongs to uid 54321, who could run tasks with the rights of" in worker.stderr
    assert "Traceback" not in worker.stderr
    assert "default" in queues


def test_who_may_not_look_does_not_know_whether_a_worker_lives(
    here: Here, project: Project
) -> None:
    here.ok("call", "tasks.add", "-a", "[1, 2]")

    with closed(project.folder / "shop.liteq"):
        live = here("health", "live")
        named = json.loads(here.ok("health", "live", "-b", "shop.liteq", "--json"))
        quick = pulse.quick_answer(["live", "-b", "shop.liteq"], lambda _: ())

    assert live.returncode == 0
    assert "whether a worker lives is not known" in live.stderr
    assert "may not use" in named["store"]
    assert not quick


def test_a_doctor_says_that_it_may_not_look(here: Here, project: Project) -> None:
    here.ok("call", "tasks.add", "-a", "[1, 2]")
    here.forget()

    with closed(project.folder / "shop.liteq"):
        rights = findings(here)["rights"]
    here.forget()
    with closed(project.folder / "shop.liteq" / "gate"):
        store = findings(here)["store"]

    for found in (rights, store):
        assert found["level"] == "fail"
        assert "must run as the same user" in found["what"]
        assert found["advice"] == ""


# A disk that takes nothing


@pytest.fixture
def on_disk(project: Project, own_disk: Disk) -> Disk:
    """A store with one message in it, on a disk of its own, where all commands use it."""
    project.behind = own_disk.behind
    project.environ["LITEQ_BROKER_URL"] = "disk/store"
    project.ok("call", "tasks.add", "-a", "[1, 2]")
    return own_disk


_OUTAGE = "the store cannot be used now: "
_READ_ONLY = _OUTAGE + r"its file system is read-only: mount it for writing \(.*/store/gate\)"


@pytest.mark.process
@pytest.mark.parametrize("words", ["call tasks.add -a [1,2]", "status", "worker --burst -q"])
def test_a_store_on_a_read_only_disk_is_out_of_reach(
    project: Project, on_disk: Disk, words: str
) -> None:
    on_disk.remount("ro")

    done = project(*words.split())

    assert done.returncode == 6
    assert re.fullmatch(f"liteq: {_READ_ONLY}; nothing .*\n", done.stderr)


@pytest.mark.process
@pytest.mark.parametrize("words", ["worker -c 1", "beat"])
def test_who_runs_on_waits_until_a_read_only_disk_can_be_written(
    start: Callable[..., Running], on_disk: Disk, words: str
) -> None:
    on_disk.remount("ro")

    running = start(*words.split())
    running.wait_for(f"{_READ_ONLY}; .*trying again")
    on_disk.remount("rw")

    running.wait_for("^ready")
    assert running.end() == 0


@pytest.mark.process
def test_a_worker_waits_for_a_disk_that_has_no_room_for_its_lock(
    start: Callable[..., Running], on_disk: Disk
) -> None:
    start("worker", "-c", "1").wait_for("^ready")  # it keeps the files of SQLite there
    on_disk.fill()

    second = start("worker", "-c", "1")
    second.wait_for(rf"{_OUTAGE}no space left.*`df -i`.*\d+\.lock\.new\).*trying again")
    on_disk.free()

    second.wait_for("^ready")
    assert second.end() == 0


def examined(project: Project, *words: str) -> dict[str, dict[str, str]]:
    done = project("doctor", "--json", *words)
    return {found["name"]: found for found in json.loads(done.stdout)}


@pytest.mark.process
@pytest.mark.parametrize("folder", ["store", "new"])
def test_a_doctor_says_that_a_disk_takes_no_file(
    project: Project, on_disk: Disk, folder: str
) -> None:
    on_disk.fill()

    found = examined(project, "-b", f"disk/{folder}")

    assert found["disk"]["level"] == found["locking"]["level"] == "fail"
    assert re.fullmatch(r"\d+ MiB free, no inode", found["disk"]["what"])
    assert "No space left on device" in found["locking"]["what"]


@pytest.mark.process
def test_a_doctor_says_that_a_disk_is_read_only(project: Project, on_disk: Disk) -> None:
    on_disk.remount("ro")

    found = examined(project)

    assert found["disk"] == {
        "name": "disk",
        "level": "fail",
        "what": f"{on_disk.folder}/store is read-only",
        "advice": "mount it for writing",
    }
    assert "rights" not in found


@pytest.mark.process
@pytest.mark.parametrize(("room", "level", "status"), [(40, "warn", 0), (20, "fail", 6)])
def test_a_doctor_fails_a_disk_on_which_new_messages_are_refused(
    project: Project, on_disk: Disk, room: int, level: str, status: int
) -> None:
    on_disk.leave(room)

    called = project("call", "tasks.add", "-a", json.dumps(["x" * 100_000, ""]))

    assert examined(project)["disk"]["level"] == level
    assert called.returncode == status


# The streams that a command is given

STRANGE = "tasks.\N{CYRILLIC SMALL LETTER ZHE}\N{GRINNING FACE}"
STRANGE_TASKS = f"""
from liteq import Liteq
app = Liteq("shop")


@app.task(name={STRANGE!a})
def strange():
    pass
"""


@pytest.mark.parametrize(
    "environ",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=str,
)
def test_what_an_encoding_lacks_is_escaped_and_json_stays_json(
    environ: dict[str, str], here: Here, project: Project
) -> None:
    project.write("tasks.py", STRANGE_TASKS)
    here.ok("call", STRANGE)
    here.forget()

    table = project("ls", **environ)
    document = project("ls", "--json", **environ)
    drawn = project.at_terminal("ls", **environ)

    escaped = "tasks.\\u0436\\ud83d\\ude00"
    assert table.returncode == 0, table.stderr
    for text in (table.stdout, drawn):
        assert escaped in text or STRANGE in text  # for ASCII, click writes UTF-8
    assert escaped in table.stdout or "latin-1" not in environ.values()
    (told,) = json.loads(document.stdout)
    assert told["task"] == STRANGE


@pytest.mark.parametrize("word", ["ls", "queues", "status", "doctor", "version"])
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_command_needs_no_stream_to_write_to(
    word: str, closed: str, here: Here, project: Project
) -> None:
    here.ok("call", "tasks.add", "-a", "[1, 2]")
    here.forget()
    status = {"status": Exit.UNAVAILABLE}.get(word, Exit.OK)

    done = project.shell(f"{word} {closed}")

    assert "Traceback" not in done.stderr
    assert done.returncode == status


def test_a_question_that_no_stream_can_answer_is_answered_with_no(
    here: Here, project: Project
) -> None:
    here.ok("call", "tasks.add", "-a", "[1, 2]")
    here.forget()

    done = project.shell("purge <&-")

    assert "nobody is there to ask" in done.stderr
    assert done.returncode == 1


# Tables


@pytest.mark.process
def test_a_terminal_gets_a_drawn_table_and_a_pipe_a_plain_one(
    project: Project, here: Here
) -> None:
    here.ok("call", "tasks.add", "-a", "[1, 2]")
    here.forget()

    drawn, plain = project.at_terminal("ls", NO_COLOR=""), project.at_terminal("ls")

    assert "─" in drawn
    assert "\x1b[1m" in drawn
    assert "\x1b" not in plain
    assert "─" not in plain
    assert "─" not in here.ok("ls")


@pytest.mark.process
def test_a_narrow_terminal_gets_no_word_in_pieces(project: Project, here: Here) -> None:
    id = here.ok("call", "tasks.add", "-a", "[1, 2]")
    here.forget()

    listed = project.at_terminal("ls", COLUMNS="80")
    queues = project.at_terminal("queues", COLUMNS="80").replace("\r\n", "\n")

    assert re.search(rf"^{id}  queued +tasks\.add +default +", listed, re.MULTILINE)
    head = queues.splitlines()[0].split()
    assert head == ["queue", "queued", "running", "workers", "latency"]  # no column of zeros
    assert len(here.ok("queues").splitlines()[0].split()) == 12


# All commands


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command there is and its words."""
    todo: list[tuple[str, click.Command]] = [("", cli)]
    while todo:
        words, command = todo.pop()
        yield words, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                todo.append((f"{words} {name}".strip(), found))


def visible() -> set[str]:
    return {words for words, command in ALL if not command.hidden}


ALL = sorted(commands(), key=lambda one: one[0])
# What only reads gives JSON, too. Not: a prompt, a script to source, a unit, a page for
# Prometheus, one word.
READERS = re.compile(
    r"ls|show|result|queues|limits|config|report|doctor|health|inspect|control|status|watch|"
    r"events|.* (list|show|stats|check|latency)"
)


@pytest.mark.parametrize(("words", "command"), ALL, ids=[words or "liteq" for words, _ in ALL])
def test_every_command_explains_itself(here: Here, words: str, command: click.Command) -> None:
    done = here(*words.split(), "--help")

    assert done.returncode == 0
    assert done.stderr == ""
    assert command.help
    first = command.help.splitlines()[0]
    assert first.endswith(".")
    assert len(first) <= 80
    assert first[0].isupper()
    assert first in " ".join(done.stdout.split())
    own = [
        param
        for param in command.params[: len(command.own)]  # type: ignore[attr-defined]
        if isinstance(param, click.Option) and not param.hidden
    ]
    for param in own:
        assert param.help or param.metavar or param.show_default, param.name
        assert not (param.help or ".").endswith((",", ":", " ")), param.name
    # An example, or so little that its options say it all.
    example = re.search(
        r"^ +(liteq |eval )", done.stdout.partition("Options:")[0], re.MULTILINE
    )
    assert example or len(own) <= 6 or command.hidden, "no example"
    flags = {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)}
    if READERS.fullmatch(words) and not command.hidden:
        assert "--json" in flags, "a command that reads has no --json"
    assert {"-A", "-b", "-q", "-v"} <= flags, "no global options"


def test_a_group_shows_the_whole_first_line_of_each_of_its_commands(here: Here) -> None:
    for words, command in ALL:
        if isinstance(command, click.Group):
            text = " ".join(here.ok(*words.split(), "--help").split())
            context = click.Context(command)
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                assert found.hidden or (found.help or "").splitlines()[0] in text


# What each command that reads is called with; those that need a worker are elsewhere.
READING = (
    *("ls", "queues", "queues list", "queues latency", "limits", "limits list"),
    *("dead list", "schedule list", "workflow list", "db stats", "db check", "report"),
    *("status", "config", "doctor", "inspect --list", "control --list"),
    *("show ID", "result ID", "watch ID --timeout 0", "workflow show WORKFLOW"),
)


def test_what_a_reading_command_gives_as_json_is_json(here: Here, project: Project) -> None:
    project.write("flow.py", "from tasks import add, app\n(add.s(1, 2) | add.s(3)).delay()\n")
    id = here.ok("call", "tasks.add", "-a", "[1, 2]")
    here.burst()
    project.python("import flow")
    [flow] = json.loads(here.ok("workflow", "list", "--json"))
    named = {"ID": id, "WORKFLOW": flow["id"]}

    for words in READING:
        done = here(*(named.get(word, word) for word in words.split()), "--json")
        assert json.loads(done.stdout) is not None, words
    read = {re.sub(" [-A-Z].*", "", words) for words in READING}
    needing = {"dead show", "schedule show", "events", "health"}  # each has tests of its own
    asking = {"inspect", "control"}
    assert {words for words in visible() if READERS.fullmatch(words)} == (
        read | needing | asking
    )


def test_the_reference_has_every_command_and_no_other() -> None:
    page = (Path(__file__).parent.parent / "docs/reference/cli.md").read_text()
    shown = {found.strip() for found in re.findall(r"\{liteq-help\}(.*)$", page, re.MULTILINE)}
    assert shown == visible()


def test_the_guide_names_every_command() -> None:
    docs = Path(__file__).parent.parent / "docs"
    guide = (docs / "guide/command-line.md").read_text()
    for words in visible() - {""}:
        assert re.search(rf"\bliteq {words.split()[0]}\b", guide), words


def test_the_exit_codes_are_documented_in_one_place_each() -> None:
    page = (Path(__file__).parent.parent / "docs/reference/exit-codes.md").read_text()
    for code in Exit:
        assert re.search(rf"^\| {code:d} \|", page, re.MULTILINE), code
        if code != Exit.INTERRUPTED:
            assert re.search(rf"^  {code:d} +\S", EXIT_CODES, re.MULTILINE), code


def test_the_list_of_exit_codes_ends_the_first_help(here: Here) -> None:
    assert EXIT_CODES.splitlines()[1] in here.ok("--help")
