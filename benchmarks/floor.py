"""The least that a call of an idle worker takes here: the same way, without a task queue.

    python -m benchmarks.floor FOLDER NUMBER          on SQLite
    python -m benchmarks.floor HOST:PORT NUMBER       on Redis

One process writes a row and sends a datagram. A second is woken by it, takes the row in a
transaction and hands it to a third, which notes when. On Redis the first pushes to a list, and
the second waits for the server to move what came to another. Whoever keeps messages there and
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
from functools import partial
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

Call = Callable[[bytes], None]  # of one process, with a body
Claim = Callable[[socket.socket], None]  # by another, for who takes it from this socket


def main(place: str, number: int) -> list[int]:
    """Return how long each of so many calls took until it ran, in nanoseconds."""
    send, claim = _on_redis(place) if ":" in place else _on_sqlite(place)
    jobs, given = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    notes, note = os.pipe()
    children = [_fork(_run, jobs, note), _fork(claim, given)]

    waits = []
    call = send()
    with os.fdopen(notes) as started:
        for each in range(-1, number):  # the first connects
            time.sleep(random.uniform(0.04, 0.06))
            called = time.monotonic_ns()
            call(json.dumps([[each], {}]).encode())
            waits.append(int(started.readline()) - called)
    call(b"")
    for child in children:
        os.waitpid(child, 0)
    return waits[1:]


def _on_sqlite(folder: str) -> tuple[Callable[[], Call], Claim]:
    path = os.path.join(folder, "floor.db")
    db = _open(path)
    db.execute(_TABLE)
    db.execute(_INDEX)
    db.close()  # before the forks
    bell, ring = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def sender() -> Call:
        db = _open(path)

        def call(body: bytes) -> None:
            db.execute(_INSERT, (str(uuid.uuid4()), "noop", body, "default", 0))
            ring.send(b"!")

        return call

    return sender, partial(_claim, path, bell)


def _on_redis(place: str) -> tuple[Callable[[], Call], Claim]:
    host, _, port = place.rpartition(":")
    queue, taken = f"floor:{uuid.uuid4()}", f"floor:{uuid.uuid4()}"

    def connect() -> socket.socket:
        server = socket.create_connection((host, int(port)))
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return server

    def sender() -> Call:
        server = connect()

        def call(body: bytes) -> None:
            message = marshal.dumps((str(uuid.uuid4()), "noop", body))
            server.sendall(_command(b"LPUSH", queue.encode(), message))
            server.recv(64)

        return call

    def claim(given: socket.socket) -> None:
        server = connect()
        wait = _command(b"BLMOVE", queue.encode(), taken.encode(), b"RIGHT", b"LEFT", b"0")
        body = True
        while body:
            server.sendall(wait)
            reply = server.recv(4096)
            message = reply[reply.index(b"\n") + 1 : -2]
            *_, body = marshal.loads(message)
            given.send(message if body else b"")

    return sender, claim


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


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
    body = True
    while body and woken.poll() and bell.recv(16):
        db.execute("BEGIN IMMEDIATE")
        rows = db.execute(_FIND, ("default",)).fetchall()
        db.executemany(_TAKE, [(seq,) for seq, *_ in rows])
        db.execute("COMMIT")
        for row in rows:
            *_, body = row
            given.send(marshal.dumps(row) if body else b"")


def _run(jobs: socket.socket, note: int) -> None:
    while job := jobs.recv(4096):
        _, _, body = marshal.loads(job)
        json.loads(body)
        os.write(note, b"%d\n" % time.monotonic_ns())


if __name__ == "__main__":
    print(f"@@{json.dumps(main(sys.argv[1], int(sys.argv[2])))}")
