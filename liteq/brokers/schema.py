"""The tables of an SQLite store, their version, and the way from one version to the next.

A version change is additive: old processes go on working on the new schema, because
every statement names its columns. `user_version` is the schema's version; the row
`readable_by` in `meta` is the oldest liteq schema that may still use the file. A file
that asks for a later one is refused, never guessed at, and a process that has it open
while its version is raised is told to look again (see `connection.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

import apsw

from liteq.brokers.values import State
from liteq.exceptions import BrokerError, SchemaError

__all__ = [
    "APPLICATION_ID",
    "EARLY",
    "FAILED",
    "IGNORED",
    "LIMITED",
    "MOST",
    "PARKED",
    "QUEUED",
    "REVOKED",
    "RUNNING",
    "SCHEDULED",
    "STATE_CODES",
    "STATE_NAMES",
    "SUCCEEDED",
    "VERSION",
    "WAITING",
    "ensure",
    "is_made",
    "refuse_later",
]

VERSION: Final = 4
APPLICATION_ID: Final = 0x6C746571  # "lteq"

# Of starts, retries, edges, or a priority: more than that another program has written, and to
# go on counting from the largest integer that SQLite has would fail the whole step.
MOST: Final = 2**31

# The numbers stand in the partial indexes below, and in files: never change one.
WAITING: Final = 0
QUEUED: Final = 1
SCHEDULED: Final = 2
RUNNING: Final = 3
PARKED: Final = 4
LIMITED: Final = 5
SUCCEEDED: Final = 6
FAILED: Final = 7
REVOKED: Final = 8
IGNORED: Final = 9
STATE_CODES: Final[Mapping[str, int]] = {
    "waiting": WAITING,
    "queued": QUEUED,
    "scheduled": SCHEDULED,
    "running": RUNNING,
    "parked": PARKED,
    "limited": LIMITED,
    "succeeded": SUCCEEDED,
    "failed": FAILED,
    "revoked": REVOKED,
    "ignored": IGNORED,
}

# An early note: a state stored for an id before its call came, whose place the call takes. No
# message that waits for others is without a queue.
EARLY: Final = "state = 0 AND queue = ''"


class _Names(dict[int, State]):
    def __missing__(self, code: object) -> State:
        raise BrokerError(
            f"the store is damaged (a message is in state {code!r}, which does not exist): "
            "stop all workers and restore a backup"
        )


STATE_NAMES: Final = _Names((code, name) for name, code in STATE_CODES.items())  # type: ignore[misc]

# The tables as they were in version 1: `_MIGRATIONS` makes the present ones of them, so
# that a new file and an old one end up the same.
#
# Each step of a message touches as few indexes as can be: the partial ones hold only the
# rows in the state they serve, so a claim costs the same with a thousand or a million
# finished messages beside it. `seq` is the order of arrival.
_CREATE: Final = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;

CREATE TABLE message(
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    task TEXT NOT NULL,
    body BLOB NOT NULL,
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,
    run_at REAL,
    expires_at REAL,
    retries INTEGER NOT NULL,
    time_limit REAL,
    soft_time_limit REAL,
    acks_late INTEGER NOT NULL,
    ignore_result INTEGER NOT NULL,
    max_deliveries INTEGER,
    result_expires REAL,
    envelope TEXT,
    state INTEGER NOT NULL,
    pending INTEGER NOT NULL,
    inputs INTEGER NOT NULL DEFAULT 0,
    enqueued_at REAL NOT NULL,
    deliveries INTEGER NOT NULL DEFAULT 0,
    token INTEGER,
    worker INTEGER,
    started_at REAL,
    parked_at REAL,
    settled_at REAL,
    delete_at REAL,
    result BLOB,
    children TEXT,
    note_state TEXT,
    note BLOB,
    revoke TEXT,
    dead TEXT
) STRICT;
CREATE INDEX message_queued ON message(queue, priority DESC, seq) WHERE state = 1;
CREATE INDEX message_scheduled ON message(queue, run_at) WHERE state = 2;
CREATE INDEX message_running ON message(worker) WHERE state = 3;
CREATE INDEX message_parked ON message(queue, task, priority DESC, seq) WHERE state = 4;
CREATE INDEX message_parked_at ON message(parked_at) WHERE state = 4;
CREATE INDEX message_revoking ON message(worker) WHERE state = 3 AND revoke IS NOT NULL;
CREATE INDEX message_expiring ON message(expires_at)
    WHERE expires_at IS NOT NULL AND state IN (1, 2, 4);
CREATE INDEX message_deletable ON message(delete_at) WHERE delete_at IS NOT NULL;
CREATE INDEX message_dead ON message(seq) WHERE dead IS NOT NULL;
CREATE INDEX message_waiting ON message(seq) WHERE state = 0;

CREATE TABLE edge(
    source INTEGER NOT NULL,
    target INTEGER NOT NULL,
    fires TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY(source, target, fires)
) STRICT, WITHOUT ROWID;

CREATE TABLE input(
    target INTEGER NOT NULL,
    position INTEGER NOT NULL,
    source TEXT NOT NULL,
    kind TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY(target, position, source)
) STRICT, WITHOUT ROWID;

CREATE TABLE attempt(
    message INTEGER NOT NULL,
    number INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    error BLOB,
    worker INTEGER,
    started_at REAL,
    ended_at REAL NOT NULL,
    PRIMARY KEY(message, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE waiter(
    message INTEGER NOT NULL,
    address TEXT NOT NULL,
    PRIMARY KEY(message, address)
) STRICT, WITHOUT ROWID;

CREATE TABLE worker(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    hostname TEXT NOT NULL,
    pid INTEGER NOT NULL,
    boot TEXT NOT NULL,
    queues TEXT NOT NULL,
    concurrency INTEGER NOT NULL,
    details TEXT NOT NULL,
    started_at REAL NOT NULL,
    beat_at REAL NOT NULL,
    stopped_at REAL
) STRICT;
CREATE INDEX worker_alive ON worker(id) WHERE stopped_at IS NULL;

INSERT INTO meta(name, value) VALUES ('readable_by', 1), ('hardened', 0);
"""

# From version n to n + 1, in order; additive, and short enough not to hold the write lock
# for more than a second. An index reads all messages: of 400,000 with 200 bytes each that
# takes 0.15 s, and 0.65 s if it holds them all. Columns cost nothing (see `_add_column`).
#
# A process of version 1 that has the file open goes on with what it knows. It knows no
# gathers: a part that it settles revokes the gather, as it would a callback.
_MIGRATIONS: Final[dict[int, str]] = {
    1: """
CREATE TABLE workflow(
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT;
ALTER TABLE message ADD COLUMN workflow INTEGER;
CREATE INDEX message_workflow ON message(workflow) WHERE workflow IS NOT NULL;
CREATE INDEX edge_target ON edge(target, position);

CREATE TABLE schedule(
    name TEXT PRIMARY KEY,
    entry BLOB NOT NULL,
    due_at REAL,
    origin TEXT NOT NULL,
    paused INTEGER NOT NULL DEFAULT 0,
    last_due_at REAL,
    last_run_at REAL,
    last_id TEXT,
    total INTEGER NOT NULL DEFAULT 0,
    revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX schedule_due ON schedule(due_at) WHERE due_at IS NOT NULL AND paused = 0;

CREATE TABLE lead(
    what TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    until REAL NOT NULL
) STRICT, WITHOUT ROWID;
""",
    2: """
ALTER TABLE message ADD COLUMN limits TEXT;
ALTER TABLE message ADD COLUMN unique_key TEXT;
ALTER TABLE message ADD COLUMN sent_as TEXT;

CREATE UNIQUE INDEX message_unique ON message(unique_key)
    WHERE unique_key IS NOT NULL AND state < 6;
CREATE TABLE period(
    unique_key TEXT PRIMARY KEY,
    id TEXT NOT NULL,
    until REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX period_id ON period(id);
CREATE INDEX period_until ON period(until);

CREATE TABLE paused(
    queue TEXT PRIMARY KEY,
    at REAL NOT NULL
) STRICT, WITHOUT ROWID;
-- Not `state IN (7, 8, 9)`: that makes a table of the three at each change of any state,
-- and a settle takes twice as long.
CREATE INDEX message_ended ON message(state, seq) WHERE state > 6;

ALTER TABLE worker ADD COLUMN ended TEXT;
CREATE TABLE letter(
    seq INTEGER PRIMARY KEY,
    receiver TEXT NOT NULL,
    body BLOB NOT NULL,
    expires_at REAL NOT NULL
) STRICT;
CREATE INDEX letter_receiver ON letter(receiver, seq);
CREATE INDEX letter_expiring ON letter(expires_at);
CREATE TABLE listener(
    address TEXT PRIMARY KEY,
    until REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX listener_until ON listener(until);
CREATE TABLE event(
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    emitted_at REAL NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX event_emitted ON event(emitted_at);
-- See limiting.py.
CREATE INDEX message_limited ON message(queue, limits, priority DESC, seq) WHERE state = 5;
CREATE INDEX message_limited_expiring ON message(expires_at)
    WHERE expires_at IS NOT NULL AND state = 5;
CREATE TABLE limits(
    name TEXT PRIMARY KEY,
    declared TEXT,
    override TEXT,
    task TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE limited(task TEXT PRIMARY KEY, names TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE line(
    queue TEXT NOT NULL,
    limits TEXT NOT NULL,
    priority INTEGER NOT NULL,
    head INTEGER NOT NULL,
    blocked_by TEXT,
    since INTEGER,
    PRIMARY KEY(queue, limits)
) STRICT, WITHOUT ROWID;
CREATE INDEX line_ready ON line(queue, priority DESC, head) WHERE blocked_by IS NULL;
CREATE INDEX line_blocked ON line(blocked_by, queue, priority DESC, since)
    WHERE blocked_by IS NOT NULL;
CREATE INDEX line_since ON line(since) WHERE since IS NOT NULL;
CREATE TABLE gate(
    bucket TEXT NOT NULL,
    queue TEXT NOT NULL,
    opens_at REAL,
    PRIMARY KEY(bucket, queue)
) STRICT, WITHOUT ROWID;
CREATE INDEX gate_due ON gate(queue, opens_at) WHERE opens_at IS NOT NULL;
CREATE TABLE bucket(
    name TEXT PRIMARY KEY,
    free_at REAL NOT NULL,
    used_at REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX bucket_free ON bucket(free_at);
CREATE TABLE slot(
    message INTEGER NOT NULL,
    bucket TEXT NOT NULL,
    PRIMARY KEY(message, bucket)
) STRICT, WITHOUT ROWID;
CREATE INDEX slot_bucket ON slot(bucket);
CREATE TABLE closed(
    worker INTEGER NOT NULL,
    queue TEXT NOT NULL,
    limits TEXT NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY(worker, queue, limits)
) STRICT, WITHOUT ROWID;
CREATE INDEX closed_until ON closed(until);
""",
    3: """
-- See standby.py. After a change of what may be claimed, workers look anew at what they are
-- ready to take. By triggers, for an older process that makes it does not know of this table.
CREATE TABLE standby(
    queue TEXT NOT NULL,
    worker INTEGER NOT NULL,
    token INTEGER NOT NULL,
    others INTEGER NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY(queue, worker)
) STRICT, WITHOUT ROWID;
CREATE INDEX standby_worker ON standby(worker);
CREATE TRIGGER standby_paused AFTER INSERT ON paused BEGIN
    DELETE FROM standby;
END;
CREATE TRIGGER standby_limited AFTER INSERT ON meta WHEN new.name = 'limits' BEGIN
    DELETE FROM standby;
END;
CREATE TRIGGER standby_limited_anew AFTER UPDATE ON meta WHEN new.name = 'limits' BEGIN
    DELETE FROM standby;
END;
CREATE TRIGGER standby_stopped AFTER UPDATE OF stopped_at ON worker BEGIN
    DELETE FROM standby WHERE worker = new.id;
END;
CREATE TRIGGER standby_elsewhere AFTER UPDATE OF queues ON worker
WHEN new.queues IS NOT old.queues BEGIN
    DELETE FROM standby WHERE worker = new.id;
END;
""",
}

_ADD_COLUMN: Final = re.compile(
    r"ALTER TABLE (?P<table>\w+) ADD COLUMN (?P<column>\w+ (?:TEXT|INTEGER|REAL|BLOB|ANY));?"
)


def ensure(db: apsw.Connection, announce: Callable[[], None]) -> None:
    """Bring the store to this version, in one transaction that others wait for.

    `announce` is called in it: it is to make those who have the store open look at its
    version again. Raises `SchemaError` if the file belongs to a later liteq, or to
    something else.
    """
    if is_made(db):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        found = db.pragma("user_version")
        if found < VERSION:
            if found > 0:
                announce()
            _upgrade(db, found)
        db.execute("COMMIT")
    except BaseException:
        if not db.get_autocommit():
            db.execute("ROLLBACK")
        raise
    refuse_later(db)  # another was quicker, and may be of a later version


def is_made(db: apsw.Connection) -> bool:
    """Tell whether this is a store of this version, or of one that this liteq can use.
    Raises `SchemaError` if it is of another."""
    return refuse_later(db) >= VERSION


def refuse_later(db: apsw.Connection) -> int:
    """Return the version that the store has. Raises `SchemaError` if it asks for a later one
    than this."""
    found: int = db.pragma("user_version")
    if found > VERSION:
        needed = db.execute("SELECT value FROM meta WHERE name = 'readable_by'").get
        if needed is None or needed > VERSION:
            raise SchemaError(
                f"the store has schema version {found}, made by a later liteq, and this one "
                f"reads up to {VERSION}: upgrade liteq here"
            )
    return found


def _upgrade(db: apsw.Connection, found: int) -> None:
    if found == 0:
        if db.execute("SELECT count(*) FROM sqlite_schema").get:
            raise SchemaError("the file is an SQLite database of another program")
        db.execute(_CREATE)
        db.pragma("application_id", APPLICATION_ID)
    bring = apsw.Connection.execute if found == 0 else _migrate
    for version in range(max(found, 1), VERSION):
        bring(db, _MIGRATIONS[version])
    db.pragma("user_version", VERSION)


def _migrate(db: apsw.Connection, script: str) -> None:
    """Run a script on a store that may hold much."""
    done = 0
    for found in _ADD_COLUMN.finditer(script):
        db.execute(script[done : found.start()])
        _add_column(db, found["table"], found["column"])
        done = found.end()
    db.execute(script[done:])


def _add_column(db: apsw.Connection, table: str, column: str) -> None:
    """Add a column as ALTER TABLE does, but for one thing: of a strict table, that looks
    through all rows for values of a wrong type, which holds the write lock for 0.6 s with
    400,000 messages. There are none, for what is not in a row is null.

    This is the way of sqlite.org/lang_altertable.html, section 7, for changes that touch
    nothing but the text of the schema. A mistake in it spoils the store, so the text is
    tried before.
    """
    sql: str = db.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).get
    head, closing, rest = sql.rpartition(")")
    longer = f"{head.rstrip()}, {column}{closing}{rest}"
    trial = apsw.Connection(":memory:")
    trial.execute(longer)
    trial.close()
    version = db.pragma("schema_version")
    db.pragma("writable_schema", 1)
    try:
        db.execute(
            "UPDATE sqlite_schema SET sql = ? WHERE type = 'table' AND name = ?",
            (longer, table),
        )
        db.pragma("schema_version", version + 1)  # so that all others read it anew
    finally:
        db.pragma("writable_schema", "RESET")
