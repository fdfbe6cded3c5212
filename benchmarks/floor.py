"""The least that a call of an idle worker takes here: the same way, without a task queue.

    python -m benchmarks.floor FOLDER NUMBER

One process writes a row and sends a datagram. A second is woken by it, takes the row in a
transaction and hands it to a third, which notes when. Whoever keeps messages in SQLite and
runs them in child processes has to do this much; what a queue takes beyond it is its own.
"""

from __future__ import annotations

import json
import marshal
import os
import random
import select
import socket
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import apsw

_TABLE = (
    "CREATE TABLE message(seq INTEGER PRIMARY KEY, id TEXT UNIQUE, task TEXT, body BLOB, "
    "queue TEXT, priority INT, state INT, worker INT)"
)
_INDEX = "CREATE INDEX waiting ON message(queue, priority DESC, seq) WHERE state = 1"
_INSERT = "INSERT INTO message(id, task, body, queue, priority, state) VALUES (?,?,?,?,?,1)"
_FIND = (
    "SELECT seq, task, body FROM message WHERE state = 1 AND queue = ? "
    "ORDER BY priority DESC, seq LIMIT 4"
)
_TAKE = "UPDATE message SET state = 3, worker = 1 WHERE seq = ?"


def main(folder: str, number: int) -> list[int]:
    """Return how long each of so many calls took until it ran, in nanoseconds."""
    path = os.path.join(folder, "floor.db")
    db = _open(path)
    db.execute(_TABLE)
    db.execute(_INDEX)
    db.close()  # before the forks
    bell, ring = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    jobs, given = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    notes, note = os.pipe()
    children = [_fork(_run, jobs, note), _fork(_claim, path, bell, given)]

    waits = []
    db = _open(path)
    with os.fdopen(notes) as started:
        for each in range(-1, number):  # the first connects
            time.sleep(random.uniform(0.04, 0.06))
            called = time.monotonic_ns()
            body = json.dumps([[each], {}]).encode()
            db.execute(_INSERT, (str(uuid.uuid4()), "noop", body, "default", 0))
            ring.send(b"!")
            waits.append(int(started.readline()) - called)
    ring.send(b"")
    for child in children:
        os.waitpid(child, 0)
    db.close()
    return waits[1:]


def _open(path: str) -> apsw.Connection:
    db = apsw.Connection(path)
    db.set_busy_timeout(5000)
    db.pragma("journal_mode", "wal")
    db.pragma("synchronous", "NORMAL")
    return db


def _fork(work: Callable[..., None], *arguments: Any) -> int:
    child = os.fork()
    if not child:
        try:
            work(*arguments)
        finally:
            os._exit(0)
    return child


def _claim(path: str, bell: socket.socket, given: socket.socket) -> None:
    db, woken = _open(path), select.epoll()
    woken.register(bell, select.EPOLLIN)
    while woken.poll() and bell.recv(16):
        db.execute("BEGIN IMMEDIATE")
        rows = db.execute(_FIND, ("default",)).fetchall()
        db.executemany(_TAKE, [(seq,) for seq, *_ in rows])
        db.execute("COMMIT")
        for row in rows:
            given.send(marshal.dumps(row))
    given.send(b"")


def _run(jobs: socket.socket, note: int) -> None:
    while job := jobs.recv(4096):
        _, _, body = marshal.loads(job)
        json.loads(body)
        os.write(note, b"%d\n" % time.monotonic_ns())


if __name__ == "__main__":
    print(f"@@{json.dumps(main(sys.argv[1], int(sys.argv[2])))}")
