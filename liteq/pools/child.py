"""What runs inside a child process: take a job, run it, answer, until the channel ends.

The parent's side of the same conversation is `liteq.pools.prefork`. A child has four links
to its parent, each a pair of Unix sockets, and each a stream, which every Unix has:

- *jobs* is a stream of jobs, `JOB` (key, length) and the payload. Only the child reads it.
- *tokens* has a byte for each of these jobs, and is read by whoever comes first, the child
  or, taking back what the child has not started, the parent. The kernel gives each byte to
  exactly one of them: for each that the child has, it reads one job and runs it, and for
  each that the parent has, the last job in the stream is withdrawn. The byte says how many
  were until it was written, counted from the first job on, modulo 256: those that the child
  has not passed over yet come next in the stream.
- *answers* is a stream of frames, `FRAME` (length, kind, key, runtime, memory) and a
  payload. The other way it carries the keys of jobs whose soft time limit has passed, which
  a signal has the child read, and `STOPPING`, at which a job looks when it asks.
- *life* carries nothing. Its end is the end of the parent.
"""

import contextlib
import faulthandler
import fcntl
import gc
import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Final, NamedTuple

from liteq.garbage import Collector
from liteq.pools.base import Runner

__all__ = [
    "DONE",
    "FRAME",
    "HELLO",
    "JOB",
    "LONG",
    "PING",
    "POKE",
    "PONG",
    "READY",
    "REPORT",
    "STOPPING",
    "Links",
    "child_main",
]

JOB: Final = struct.Struct("<QI")
FRAME: Final = struct.Struct("<IBQdI")
POKE: Final = struct.Struct("<Q")
LONG: Final = 32_768  # bytes of a payload that fills a socket: nothing is put behind it

PING: Final = (1 << 64) - 1  # the key of what is no job but asks for a PONG
STOPPING: Final = (1 << 64) - 1  # among the keys of late jobs: the worker is to stop
HELLO, READY, DONE, REPORT, PONG = range(5)

_HEAD: Final = JOB.size
_CHUNK: Final = 32_768  # bytes that are read at once
_unpack: Final = JOB.unpack_from
_frame: Final = FRAME.pack

_timeval: Final = struct.Struct("@ll").pack  # seconds, microseconds

_PAGE_KIB: Final = os.sysconf("SC_PAGE_SIZE") // 1024


class Links(NamedTuple):
    """The child's ends of its links, and who is at the other end."""

    tokens: socket.socket
    jobs: socket.socket
    answers: socket.socket
    life: socket.socket
    parent: int  # pid
    watch_memory: bool  # say in every answer how much memory is resident


def child_main(
    factory: Callable[[], Runner],
    links: Links,
    forget: Callable[[], None] | None,
) -> None:
    """Be a child: never returns. `forget` closes what a fork inherited.

    What is here is frozen: collecting garbage would touch, and so copy, what a forked child
    shares with its parent.
    """
    status = 1
    try:
        gc.freeze()
        _become_child(links, forget)
        _Child(factory, links).serve()
        status = 0
    except BaseException:  # noqa: BLE001 (the top of a process: say why, and end)
        traceback.print_exc()
    finally:
        leave(status)


def _become_child(links: Links, forget: Callable[[], None] | None) -> None:
    """Cut what ties this process to the parent's affairs, then let signals in.

    All signals are blocked since before the fork: a handler of the parent's, run here,
    would write into the parent's wake-up pipe or stop a worker that is not there.
    """
    signal.set_wakeup_fd(-1)
    if forget is not None:
        forget()
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # killed together with its own sub-processes, and with no others
    _die_with_parent(links)
    _default_signals()
    if not faulthandler.is_enabled():
        faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _default_signals() -> None:
    """Undo the parent's handlers. What it inherited as ignored (nohup) stays ignored.

    Interrupts from a terminal are the parent's to handle. They are swallowed by a
    handler rather than ignored, because programs that a task starts would inherit
    "ignored" (and could then not be interrupted), but get the default for a handler.
    """
    for signum in signal.valid_signals():
        if callable(signal.getsignal(signum)):
            signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, lambda signum, frame: None)


def _die_with_parent(links: Links) -> None:
    """Have the kernel kill this process and its sub-processes when the parent ends.

    The parent's death closes its end of `life`; the kernel then signals the process
    group that owns this end, whatever the group is doing (a sleep, a loop, C code). A task
    that closes all that it finds open has closed *answers*, too: the parent kills it for that.

    Not by the parent-death signal: that comes at the end of the *thread* that forked, and
    `ctypes`, which asks for it, takes half a megabyte.
    """
    links.life.setblocking(True)
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(links.life, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(links.life, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(links.life, fcntl.F_GETFL)
        fcntl.fcntl(links.life, fcntl.F_SETFL, flags | os.O_ASYNC)
    else:
        watch_parent(links.life)
    if os.getppid() != links.parent:  # it died before the kernel knew of our wish
        os._exit(1)


def watch_parent(life: socket.socket) -> None:
    """Kill this process group at the end of the parent, where the kernel will not."""

    def watch() -> None:
        life.recv(1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="liteq-life", daemon=True).start()


def leave(status: int) -> None:
    """End this process, a copy of its parent, without the exit handlers inherited from it.

    They would run a second time here, and threads of the user's could hold up the end
    for ever. What was written is flushed.
    """
    try:
        with contextlib.suppress(Exception):  # a closed or full output must not keep us
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(status)


class _Child:
    """The loop of one child process."""

    def __init__(self, factory: Callable[[], Runner], links: Links) -> None:
        self._factory = factory
        self._tokens = links.tokens
        self._jobs = _Jobs(links.jobs)
        self._answers = links.answers
        self._memory = _Memory() if links.watch_memory else None
        self._main = threading.get_ident()
        self._lock = threading.Lock()  # reports come from any thread: frames stay whole
        self._sending = False  # by the main thread
        self._late: int | None = None  # whose soft limit passed while it was sending
        self._told = False  # that the worker is to stop
        self._ours = True
        self._garbage = Collector()
        self._impatient = False  # no longer than until garbage is to be collected

    def serve(self) -> None:
        """Run jobs until the parent ends the channel."""
        os.register_at_fork(after_in_child=self._disown)
        signal.signal(signal.SIGUSR1, self._on_soft_limit)
        self._send(HELLO, 0, b"")
        self._runner = runner = self._factory()
        runner.start(self._is_stopping)
        self._send(READY, 0, b"")
        receive = self._tokens.recv
        take = self._jobs.take
        while True:
            try:
                token = receive(1)
            except BlockingIOError:  # no job for long: what the last ones left goes now
                self._garbage.collect()
                self._wait_at_most(0)
                continue
            if not token:
                break
            key, payload = take(token[0])
            if key == PING:
                self._send(PONG, 0, b"")
            elif self._run(runner, key, payload) >= self._garbage.due:
                self._garbage.collect()
            elif not self._impatient:
                self._wait_at_most(self._garbage.every)
        runner.stop()

    def _wait_at_most(self, seconds: float) -> None:
        """Let a wait for the next job end after so long, or last for ever (0).

        The kernel does it: it costs a job nothing. An idle child wakes up once, to collect,
        and then sleeps until there is a job. The parent never waits at its copy.
        """
        self._impatient = seconds > 0
        limit = _timeval(int(seconds), int(seconds % 1 * 1e6))
        self._tokens.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def _run(self, runner: Runner, key: int, payload: bytes) -> float:
        """Run a job and answer; return when it ended."""
        began = time.perf_counter()
        answer = runner.run(payload, partial(self._report, key), key)
        ended = time.perf_counter()
        if not self._ours:
            # The task forked, and this is the copy, back from what was meant to be one
            # task's code. It must neither answer for the original nor take its jobs.
            leave(0)
        self._send(DONE, key, answer, ended - began)
        return ended

    def _report(self, key: int, data: bytes) -> None:
        """Send word of a job. An interrupt must not come in the middle of the frame."""
        if not self._ours:
            return
        if threading.get_ident() != self._main:
            self._send(REPORT, key, data)
            return
        self._sending = True
        self._send(REPORT, key, data)
        self._sending = False
        if self._late is not None:
            late, self._late = self._late, None
            self._runner.interrupt(late)

    def _send(self, kind: int, key: int, payload: bytes, runtime: float = 0.0) -> None:
        memory = 0 if self._memory is None else self._memory.kib()
        frame = _frame(len(payload), kind, key, runtime, memory)
        with self._lock:
            if len(payload) <= LONG:
                self._answers.sendall(frame + payload)
            else:
                self._answers.sendall(frame)
                self._answers.sendall(payload)

    def _on_soft_limit(self, signum: int, frame: FrameType | None) -> None:
        """The parent says that the soft limit of some job has passed.

        That may be over already: the runner knows, and the next one does not suffer for it.
        """
        try:
            said = self._answers.recv(4096, socket.MSG_DONTWAIT)
        except OSError:
            return  # a signal that somebody else sent
        for (key,) in POKE.iter_unpack(said):
            if key == STOPPING:
                self._told = True
            elif self._sending:  # an exception in the middle of a frame would garble the stream
                self._late = key
            else:
                self._runner.interrupt(key)

    def _is_stopping(self) -> bool:
        """Tell whether the parent has said that the worker is to stop. From any thread.

        That is left where it is: behind the key of a late job it is the signal's to read.
        """
        if self._ours and not self._told:
            with contextlib.suppress(OSError):  # nothing was said
                said = self._answers.recv(4096, socket.MSG_DONTWAIT | socket.MSG_PEEK)
                if (STOPPING,) in POKE.iter_unpack(said):
                    self._told = True
        return self._ours and self._told

    def _disown(self) -> None:
        """In a process that the task forked: let go of the links to the parent."""
        self._ours = False
        self._tokens.close()
        self._jobs.close()
        self._answers.close()


class _Jobs:
    """Reads the stream of jobs."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._data = b""  # what was read ahead
        self._start = 0  # of what is not taken yet
        self._passed = 0  # withdrawn jobs, modulo 256

    def take(self, withdrawn: int) -> tuple[int, bytes]:
        """Return the next job: its key and its payload. `withdrawn`: see the module."""
        while True:
            body = self._start + _HEAD
            if body > len(self._data):
                self._read(_HEAD)
                body = _HEAD
            key, length = _unpack(self._data, body - _HEAD)
            end = body + length
            if end > len(self._data):
                self._read(_HEAD + length)
                body, end = _HEAD, _HEAD + length
            data, self._start = self._data, end
            if end == len(data):
                self._data, self._start = b"", 0  # it may be long
            if self._passed == withdrawn:
                return key, data[body:end]
            self._passed = (self._passed + 1) % 256

    def _read(self, size: int) -> None:
        """Read until there are so many bytes of the next job. What there is of one when its
        token comes may be less."""
        parts = [self._data[self._start :]]
        missing = size - len(parts[0])
        while missing > 0:
            part = self._stream.recv(max(missing, _CHUNK))
            if not part:
                raise EOFError("the worker has closed the channel in the middle of a job")
            parts.append(part)
            missing -= len(part)
        self._data, self._start = b"".join(parts), 0

    def close(self) -> None:
        self._stream.close()


class _Memory:
    """How much memory of this process is resident; where no /proc is mounted, how much of it
    ever was, which is what Celery goes by."""

    def __init__(self) -> None:
        try:
            self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._statm = -1

    def kib(self) -> int:
        """Return it in KiB."""
        if self._statm < 0:
            import resource  # late: nearly every system has a /proc

            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return most if sys.platform == "linux" else most // 1024
        return int(os.pread(self._statm, 128, 0).split()[1]) * _PAGE_KIB
