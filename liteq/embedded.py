"""A worker inside a program: in a thread of it, or in a process that it owns."""

from __future__ import annotations

import json
import marshal
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from liteq.exceptions import ImproperlyConfigured, LiteqError
from liteq.reference import load, reference
from liteq.unixsignals import swallow
from liteq.worker import Worker
from liteq.workers.options import grace_of

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = ["main", "run_until_empty", "worker"]

_STOP_TIMEOUT: Final = 10.0  # seconds on top of the worker's own grace period
_LAST_TIMEOUT: Final = 5.0  # seconds that a worker has which did not heed that
_READY: Final = b"1"
_UNABLE: Final = b"!"  # why comes after it

# The child gets our sys.path before it imports anything, as it may be started anywhere.
_BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from liteq.embedded import main; main(int(sys.argv[2]))"
)

_orders: set[int] = set()  # the pipes to worker processes, at our end


def _forget_orders() -> None:
    # In a forked child. A worker ends when nobody holds the other end of its pipe any more,
    # and the child may outlive the process whose worker it is.
    while _orders:
        os.close(_orders.pop())


os.register_at_fork(after_in_child=_forget_orders)


@contextmanager
def worker(
    app: Liteq,
    *,
    concurrency: int = 2,
    pool: str = "threads",
    queues: Sequence[str] | None = None,
    hostname: str | None = None,
    grace: float | None = None,
    beat: bool = False,
) -> Iterator[Any]:
    """Run a worker while the context is open; see `Liteq.worker`. `grace`: seconds that it
    waits at the end for what is running (default: `worker_shutdown_timeout`)."""
    options = {
        "concurrency": concurrency,
        "pool": pool,
        "queues": queues if queues is None or isinstance(queues, str) else list(queues),
        "hostname": hostname,
        "grace": grace_of(app.conf, grace),
        "beat": beat,
    }
    with _in_process(app, options) if pool == "prefork" else _in_thread(app, options) as made:
        yield made


def run_until_empty(app: Liteq, *, queues: Sequence[str] | None = None) -> int:
    """Run tasks in this thread until nothing is claimable; see `Liteq.run_until_empty`."""
    made = Worker(
        app, queues=queues, concurrency=1, pool="solo", burst=True, install_signals=False
    )
    made.run()
    return made.settled


@contextmanager
def _in_thread(app: Liteq, options: dict[str, Any]) -> Iterator[Worker]:
    ready = threading.Event()
    made = Worker(app, **options, install_signals=False, on_ready=ready.set)
    failures: list[BaseException] = []

    def run() -> None:
        app.set_current()  # in this thread: for the receivers of the worker's signals
        try:
            made.run()
        except BaseException as exc:  # noqa: BLE001 (it is raised in the caller's thread)
            failures.append(exc)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="liteq-worker", daemon=True)
    try:
        thread.start()
        ready.wait()
        if failures:
            raise failures[0]
        yield made
    finally:
        made.stop()
        thread.join()
    if failures:
        raise failures[0]


@contextmanager
def _in_process(app: Liteq, options: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker process, which ends when it is told over its standard input, or when that
    does: with this process."""
    if app.broker.place is None:
        raise ImproperlyConfigured(
            "a store in memory cannot be shared with other processes: use pool='threads', "
            "or a broker with an sqlite:// URL"
        )
    settings = pickle.dumps({**app.conf.overrides(), "broker_url": app.broker_url})
    payload = marshal.dumps((reference(app), _plain(app.conf.changes), settings, options))
    owner = os.getpid()
    ready, announce = os.pipe()
    stdin, order = os.pipe()
    _orders.add(order)
    command = [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(announce)]
    # An interrupt from the terminal, or of a notebook's cell, goes to the whole process group,
    # and what it ends is the program's to say. The worker stays in that group, or it might be
    # stopped when it writes to the terminal, and would not be by Ctrl-Z; so it swallows them,
    # and until it can they are blocked.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process = subprocess.Popen(command, stdin=stdin, pass_fds=(announce,))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.close(stdin)
    os.close(announce)
    try:
        with os.fdopen(ready, "rb") as answer:
            with open(order, "wb", closefd=False) as sent:
                sent.write(len(payload).to_bytes(8, "big") + payload)
            told = answer.read(1)
            if told == _UNABLE:
                raise ImproperlyConfigured(answer.read().decode())
            if not told:
                raise LiteqError(
                    f"the worker process ended before it was ready, with exit code "
                    f"{process.wait()}; it has written why to standard error"
                )
        yield process
    finally:
        if os.getpid() == owner:  # not a forked child of it that leaves the context
            _end(process, order, options["grace"] + _STOP_TIMEOUT)


def _plain(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a program has set, for the process that makes its app anew: but a router
    that is a function, say, which only the app's module can set there."""
    plain = {}
    for name, value in changes.items():
        with suppress(ValueError):  # no number, text or collection of such
            marshal.dumps(value)
            plain[name] = value
    return plain


def _end(process: subprocess.Popen[bytes], order: int, timeout: float) -> None:
    """Have the worker finish what it runs, and wait for its end."""
    # A byte, for the pipe need not end here: a process forked by a library in C, as by a web
    # server, has it too. Forgotten before it is closed: its number may be another's then.
    with suppress(BrokenPipeError):  # it is dead already
        os.write(order, b"!")
    _orders.remove(order)
    os.close(order)
    try:
        _await(process, timeout)
    except BaseException:  # one more Ctrl-C: the program is not to wait
        process.terminate()  # the second order to stop has what runs given back
        _await(process, _LAST_TIMEOUT)
        raise


def _await(process: subprocess.Popen[bytes], timeout: float) -> None:
    """Wait for its end, which is forced if it does not come in time."""
    for insist in (process.terminate, process.kill):
        try:
            process.wait(timeout)
            return
        except subprocess.TimeoutExpired:
            insist()
            timeout = _LAST_TIMEOUT
    process.wait()


def main(announce: int) -> None:
    """Be the worker process: what to run comes over standard input; one more byte there, or
    its end, is the order to stop. `announce` is the descriptor to write to when ready."""
    # Not ignored: programs that a task starts would inherit that.
    signal.signal(signal.SIGINT, swallow)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    order = _take_stdin()
    size = int.from_bytes(_read(order, 8), "big")
    given, changes, settings, options = marshal.loads(_read(order, size))
    try:
        app = load(given)
    except ImproperlyConfigured as exc:  # its traceback here says nothing to the user
        os.write(announce, _UNABLE + str(exc).encode(errors="backslashreplace"))
        sys.exit(1)
    app.conf.update(changes)
    app.conf.override(pickle.loads(settings), source="the embedding program")
    os.set_inheritable(announce, False)

    def ready() -> None:
        with suppress(BrokenPipeError):  # interrupted, the program waits no more
            os.write(announce, _READY)
        os.close(announce)

    made = Worker(app, **options, on_ready=ready, interrupts=False)

    def watch() -> None:
        os.read(order, 1)
        made.stop()

    threading.Thread(target=watch, name="liteq-parent-watch", daemon=True).start()
    sys.exit(made.run())


def _take_stdin() -> int:
    """Return a descriptor of standard input, and leave /dev/null in its place.

    Not `sys.stdin`: the thread that waits at it would hold its lock while children are
    forked, and they would wait for that lock for ever.
    """
    own = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return own


def _read(descriptor: int, size: int) -> bytearray:
    with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as given:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            count = given.readinto(rest)
            if not count:
                raise SystemExit("the embedding program ended")
            rest = rest[count:]
    return data
