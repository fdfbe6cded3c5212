"""Two versions of liteq side by side: a process that still runs the one before, on a file
that the new one has upgraded under it; and what was written then, read now.

The statements are those of schema version 2, frozen here. They are never mended: when a
change of the schema breaks them, it is the change that is wrong.
"""

from __future__ import annotations

import datetime as dt
import os
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import apsw
import pytest
from world import FakeClock, Store, enlist, make

from liteq import failure, parts
from liteq.brokers import schema
from liteq.brokers.base import Broker, Lease
from liteq.brokers.connection import Database
from liteq.brokers.files import DATABASE
from liteq.exceptions import SchemaError
from liteq.message import PACKED_FIELDS, Message
from liteq.outcome import Succeeded
from liteq.serializers import loads_call

FIELDS_2 = (
    "id, task, body, queue, priority, run_at, expires_at, retries, time_limit, "
    "soft_time_limit, acks_late, ignore_result, max_deliveries, result_expires, envelope"
)
ENQUEUE_2 = (
    f"INSERT INTO message({FIELDS_2}, state, pending, enqueued_at) VALUES "
    "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(id) DO NOTHING"
)
CLAIM_2 = (
    "UPDATE message SET state = 3, token = ?1, worker = ?2, started_at = ?3, "
    "parked_at = NULL, deliveries = deliveries + 1 WHERE seq IN (SELECT * FROM (SELECT seq "
    "FROM message INDEXED BY message_queued WHERE state = 1 AND queue = ? "
    "ORDER BY priority DESC, seq LIMIT ?)) RETURNING seq, deliveries, id"
)
SUCCEED_2 = (
    "UPDATE message SET state = ?, token = NULL, result = ?, children = ?, settled_at = ?, "
    "delete_at = ?, note_state = NULL, note = NULL WHERE seq = ? AND token = ?"
)
REQUEUE_2 = (
    "UPDATE message SET state = 1, token = NULL, started_at = NULL, note_state = NULL, "
    "note = NULL, deliveries = deliveries - ? WHERE seq = ? AND token = ?"
)
REGISTER_2 = (
    "INSERT INTO worker(name, hostname, pid, boot, queues, concurrency, details, started_at, "
    "beat_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


class OldProcess:
    """A producer and worker of schema version 2 that has the file open."""

    def __init__(self, folder: Path, clock: FakeClock) -> None:
        self.clock = clock
        self.db = apsw.Connection(str(folder / DATABASE))
        self.db.pragma("journal_mode", "WAL")
        now = clock.steady()
        row = ("old", "host", 1, "another boot", "default", 1, "{}", clock.now(), now)
        self.db.execute(REGISTER_2, row)
        self.worker = self.db.last_insert_rowid()
        self.tokens = iter(range(1_000_000, 2_000_000))

    def enqueue(self, message: Message) -> None:
        packed = dict(zip(PACKED_FIELDS, message.pack(), strict=True))
        row = [packed[name] for name in FIELDS_2.split(", ")]
        self.db.execute(ENQUEUE_2, (*row, 1, 0, self.clock.now()))

    def claim(self, limit: int) -> list[tuple[int, int, str]]:
        """Return number, token and id of those claimed."""
        token = next(self.tokens)
        bindings = (token, self.worker, self.clock.now(), "default", limit)
        rows = self.db.execute(CLAIM_2, bindings).fetchall()
        return [(seq, token, id) for seq, _, id in rows]

    def succeed(self, seq: int, token: int) -> bool:
        now = self.clock.now()
        self.db.execute(SUCCEED_2, (6, b"2", None, now, now + 86_400, seq, token))
        return bool(self.db.changes())

    def release(self, seq: int, token: int) -> bool:
        self.db.execute(REQUEUE_2, (1, seq, token))
        return bool(self.db.changes())


@pytest.mark.parametrize("seed", range(5))
def test_a_process_of_the_version_before_and_a_new_one_share_a_store(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    store, folder = Store("sqlite", tmp_path, clock), tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "VERSION", 2)
        Database(folder).read(lambda db: db.execute("SELECT 1"))
    old = OldProcess(folder, clock)
    sent = [make() for _ in range(10)]
    for message in sent:
        old.enqueue(message)
    new = store.open()  # and the file is of the new version from here on
    worker = enlist(new)
    chance = random.Random(seed)
    held_by_old: list[tuple[int, int, str]] = []
    held_by_new: list[Lease] = []
    settled: Counter[str] = Counter()

    for _ in range(300):
        match chance.choice(["send", "send new", "claim", "claim new", "end", "end new"]):
            case "send":
                sent.append(make())
                old.enqueue(sent[-1])
            case "send new":
                sent.append(make())
                new.enqueue([sent[-1]])
            case "claim":
                held_by_old += old.claim(2)
            case "claim new":
                held_by_new += new.claim(worker, ["default"], 2)
            case "end" if held_by_old:
                seq, token, id = held_by_old.pop()
                if chance.random() < 0.2:
                    assert old.release(seq, token)
                else:
                    assert old.succeed(seq, token)
                    assert not old.succeed(seq, token)
                    settled[id] += 1
            case "end new" if held_by_new:
                lease = held_by_new.pop()
                assert new.settle(worker, lease, Succeeded(b"3"))
                assert not old.succeed(lease.key, lease.token)
                settled[lease.id] += 1
        clock.advance(0.1)
    # The old process dies with what it holds; the new one takes it over.
    clock.advance(new.lease_timeout + 1)
    assert new.beat(worker)
    assert new.reclaim(worker) == len(held_by_old)
    assert not any(old.succeed(seq, token) for seq, token, _ in held_by_old)
    while leases := [*held_by_new, *new.claim(worker, ["default"], 10)]:
        held_by_new = []
        for lease in leases:
            assert new.settle(worker, lease, Succeeded(b"3"))
            settled[lease.id] += 1

    assert settled == Counter(message.id for message in sent)
    assert new.counts() == {}
    records = new.get([message.id for message in sent]).values()
    assert {record.state for record in records} == {"succeeded"}
    assert {record.result for record in records} == {b"2", b"3"}
    assert old.db.execute("PRAGMA integrity_check").get == "ok"
    old.db.close()
    new.close()


def test_what_an_earlier_version_wrote_is_read() -> None:
    body = (
        b'[[{"__liteq__":["datetime","2026-03-29T02:30:00+00:00"]},'
        b'{"__liteq__":["date","2026-01-02"]},{"__liteq__":["timedelta",1,2,3]},'
        b'{"__liteq__":["decimal","1.10"]},'
        b'{"__liteq__":["uuid","00000000-0000-0000-0000-000000000005"]},'
        b'{"__liteq__":["bytes","AP8="]},{"__liteq__":["tuple",[1,2]]},'
        b'{"__liteq__":["set",[3]]},{"__liteq__":["frozenset",[4]]},'
        b'{"__liteq__":["complex",0.0,1.0]},{"__liteq__":["path","PurePosixPath","/x"]},'
        b'{"__liteq__":["dict",[[1,2]]]},{"__liteq__":["float","inf"]},'
        b'{"__liteq__":["int","0x400000000000000000"]},{"__liteq__":["str","7aCA"]},'
        b'{"__liteq__":["time","01:02:00"]}],{"k":null}]'
    )
    envelope = (
        '{"root_id":"r","parent_id":"p","headers":{"a": 1},"shadow":"s",'
        '"stamps":{"x": "y"},"stamped_headers":["x"],"immutable":true,"keywords":["k", null],'
        '"v":1}'
    )
    error = (
        b'{"type":"ChordError","module":"liteq.exceptions","source":"src","cause":'
        b'{"type": "KeyError", "module": "builtins", "message": "\'k\'", "traceback": "", '
        b'"args": ["k"]}}'
    )
    message = make()._replace(body=body)
    packed = (*message.pack()[: PACKED_FIELDS.index("envelope")], envelope)

    args, kwargs = loads_call(body)
    read = Message.unpack(packed)

    assert args == (
        dt.datetime(2026, 3, 29, 2, 30, tzinfo=dt.UTC),
        dt.date(2026, 1, 2),
        dt.timedelta(1, 2, 3),
        Decimal("1.10"),
        uuid.UUID(int=5),
        b"\x00\xff",
        (1, 2),
        {3},
        frozenset({4}),
        1j,
        PurePosixPath("/x"),
        {1: 2},
        float("inf"),
        2**70,
        "\ud800",
        dt.time(1, 2),
    )
    assert kwargs == {"k": None}
    assert (read.shadow, read.root_id, read.parent_id, read.immutable) == ("s", "r", "p", True)
    assert (read.headers, read.stamps, read.keywords) == ({"a": 1}, {"x": "y"}, ("k", None))
    assert repr(failure.rebuild(error).__cause__) == "KeyError('k')"
    assert list(parts.unpack(b"r1:1e2:{}l4:r1:2")) == [
        ("result", b"1"),
        ("error", b"{}"),
        ("list", b"r1:2"),
    ]


VERBS: dict[str, Callable[[Broker, int, Lease], Any]] = {
    "enqueue": lambda broker, *_: broker.enqueue([make()]),
    "enqueue several": lambda broker, *_: broker.enqueue([make(), make()]),
    "claim": lambda broker, worker, _: broker.claim(worker, ["default"]),
    "settle": lambda broker, worker, lease: broker.settle(worker, lease, Succeeded(b"1")),
    "beat": lambda broker, worker, _: broker.beat(worker),
    "get": lambda broker, _, lease: broker.get([lease.id]),
    "counts": lambda broker, *_: broker.counts(),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("change", ["", "; ALTER TABLE message RENAME TO item"])
def test_a_process_that_has_the_store_open_is_refused_when_it_becomes_too_new_for_it(
    tmp_path: Path,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    change: str,
) -> None:
    broker = Store("sqlite", tmp_path, clock).open()
    worker = enlist(broker)
    broker.enqueue([make(), make()])
    (lease,) = broker.claim(worker, ["default"])
    broker.counts()
    upgrade(
        tmp_path / "store",
        monkeypatch,
        f"UPDATE meta SET value = {LATER} WHERE name = 'readable_by'{change}",
    )
    before = rows(tmp_path / "store")

    for _ in range(2):
        with pytest.raises(SchemaError, match=f"version {LATER}, .* this one reads up to"):
            VERBS[verb](broker, worker, lease)

    assert rows(tmp_path / "store") == before
    broker.close()


def test_a_process_that_has_the_store_open_goes_on_when_it_may_still_use_it(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Store("sqlite", tmp_path, clock).open()
    worker = enlist(broker)
    broker.enqueue([make()])
    (lease,) = broker.claim(worker, ["default"])
    upgrade(tmp_path / "store", monkeypatch, "ALTER TABLE message ADD COLUMN later TEXT")

    for verb in VERBS.values():
        verb(broker, worker, lease)

    assert broker.get([lease.id])[lease.id].state == "succeeded"
    broker.close()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("reopened", [False, True])
def test_who_looked_during_an_upgrade_or_after_one_that_failed_is_refused_after_it(
    tmp_path: Path,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    reopened: bool,
) -> None:
    broker = Store("sqlite", tmp_path, clock).open()
    worker = enlist(broker)
    broker.enqueue([make(), make()])
    (lease,) = broker.claim(worker, ["default"])
    real, ours = schema._upgrade, schema.VERSION
    change = f"UPDATE meta SET value = {LATER} WHERE name = 'readable_by'"

    def watched(db: apsw.Connection, found: int) -> None:
        real(db, found)
        with monkeypatch.context() as patch:
            patch.setattr(schema, "VERSION", ours)
            assert broker.counts() == {"default": {"queued": 1, "running": 1}}

    with pytest.raises(apsw.SQLError):
        upgrade(tmp_path / "store", monkeypatch, f"{change}; SELECT no_such_function()")
    if reopened:
        broker.close()  # the connection that is opened next finds what the failed one said
    broker.counts()
    broker.beat(worker)
    monkeypatch.setattr(schema, "_upgrade", watched)
    upgrade(tmp_path / "store", monkeypatch, change)

    with pytest.raises(SchemaError, match=f"version {LATER}, .* this one reads up to"):
        VERBS[verb](broker, worker, lease)
    broker.close()


LATER = schema.VERSION + 1


def upgrade(folder: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Upgrade a store as a liteq of the version after this one would."""
    with monkeypatch.context() as patch:
        patch.setattr(schema, "VERSION", LATER)
        patch.setitem(schema._MIGRATIONS, LATER - 1, change)
        database = Database(folder)
        database.read(lambda db: db.execute("SELECT 1"))
        database.close()


def rows(folder: Path) -> list[Any]:
    """Return all that stands in the table of messages and in the one of workers."""
    db = apsw.Connection(str(folder / DATABASE))
    try:
        names = [
            name
            for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        ]
        messages = "item" if "item" in names else "message"
        return [db.execute(f"SELECT * FROM {name}").fetchall() for name in (messages, "worker")]
    finally:
        db.close()


@pytest.mark.parametrize("found", [schema.VERSION - 1, schema.VERSION])
def test_an_upgrade_holds_the_write_lock_for_a_second_at_most(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: int,
) -> None:
    folder = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "VERSION", found)
        old = Database(folder)
        old.write(fill, durable=False)
        old.checkpoint(truncate=True)
        before = old.read(contents)
    # What the next version may bring: a column, and an index over all that is there.
    change = "ALTER TABLE message ADD COLUMN later TEXT; CREATE INDEX l ON message(task, state)"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "VERSION", found + 1)
        if found not in schema._MIGRATIONS:
            patch.setitem(schema._MIGRATIONS, found, change)
        began = time.monotonic(), time.thread_time()
        Database(folder).read(lambda db: None)
        wall, took = time.monotonic() - began[0], time.thread_time() - began[1]

    with capsys.disabled():
        print(f"\n  {STORED} of version {found}: {wall:.3f} s, {took:.3f} of processor time")
    assert took <= 1.0  # others may have the processor meanwhile
    assert old.read(contents) == before
    assert old.read(lambda db: db.pragma("user_version")) == found + 1
    assert old.read(lambda db: db.pragma("integrity_check")) == "ok"


def test_a_column_is_added_as_sqlite_does_it(tmp_path: Path) -> None:
    """But for the look through all rows; see `schema._add_column`."""
    tables = []
    for name, add in (("ours", schema._migrate), ("its", apsw.Connection.execute)):
        db = apsw.Connection(str(tmp_path / name))
        other = apsw.Connection(str(tmp_path / name))
        db.pragma("journal_mode", "WAL")
        db.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT NOT NULL\n) STRICT")
        db.execute("INSERT INTO t VALUES (1, 'x')")
        assert other.execute("SELECT * FROM t").fetchall() == [(1, "x")]
        with db:
            add(db, "ALTER TABLE t ADD COLUMN c TEXT; ALTER TABLE t ADD COLUMN d INTEGER;")
            db.execute("CREATE INDEX t_d ON t(d)")
        db.execute("INSERT INTO t VALUES (2, 'y', 'z', 3)")
        with pytest.raises(apsw.ConstraintError):
            db.execute("UPDATE t SET d = 'no number'")
        tables.append(
            [
                db.execute("PRAGMA table_xinfo(t)").fetchall(),
                other.execute("SELECT * FROM t").fetchall(),
                other.execute("SELECT a FROM t INDEXED BY t_d WHERE d IS NULL").fetchall(),
                db.pragma("integrity_check"),
                "".join(
                    db.execute("SELECT sql FROM sqlite_schema WHERE name = 't'").get.split()
                ),
            ]
        )
        other.close()
        db.close()
    assert tables[0] == tables[1]


STORED = 400_000 if os.environ.get("LITEQ_STORM") else 4_000


def contents(db: apsw.Connection) -> Any:
    columns = "count(*), sum(seq), sum(state), sum(length(body)), max(id), max(task)"
    return db.execute(f"SELECT {columns} FROM message").fetchall()


def fill(db: apsw.Connection) -> None:
    """Store messages with bodies of 200 bytes, every other of them ended."""
    db.execute(
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "INSERT INTO message(id, task, body, queue, priority, retries, acks_late, "
        "ignore_result, state, pending, enqueued_at, settled_at, delete_at, result) "
        "SELECT printf('%036d', i), 'shop.work' || (i % 50), zeroblob(200), 'default', 0, 0, "
        "1, 0, CASE i % 2 WHEN 0 THEN 1 WHEN 1 THEN 6 + i % 3 END, 0, i, "
        "iif(i % 2, i, NULL), iif(i % 2, i, NULL), iif(i % 2, x'31', NULL) FROM n",
        (STORED,),
    )
