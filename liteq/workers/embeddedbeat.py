"""The beat of a worker that was started with `-B`: in a thread, or in a process of its own.

A worker that forks children has the beat in a forked process: a child that is forked
while a thread of its parent holds some lock would wait for that lock for ever, and what a
schedule of the user's does in the beat is not ours to know. All other workers have it in
a thread. Either way it has its own connection to the store, it is started again should it
end, and any number of such workers may run: their beats agree by the store.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

from liteq.beat import Service
from liteq.custom import find_scheduler
from liteq.loggers import get_logger

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = ["EmbeddedBeat"]

logger = get_logger("liteq.beat")

_SHORTEST_PAUSE: Final = 1.0  # seconds before a beat that ended is started again
_LONGEST_PAUSE: Final = 60.0
_PATIENCE: Final = 5.0  # seconds that a beat which was told to stop has for it

_THE_WORKERS: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
)


class EmbeddedBeat:
    """Keeps one beat running. All methods belong to the worker's thread.

    `process`: fork a process for it; `forget` closes there what is the worker's alone.
    Raises `ImproperlyConfigured` for a scheduler that is not there: no pause would bring it.
    """

    def __init__(
        self,
        app: Liteq,
        *,
        process: bool,
        forget: Callable[[], None],
        scheduler: Any = None,
    ) -> None:
        self._app = app
        self._process = process
        self._forget = forget
        self._scheduler = find_scheduler(app, scheduler or app.conf.beat_scheduler) or "default"
        self._pause = _SHORTEST_PAUSE
        self._start_at: float | None = None  # monotonic; None: it runs, or is to stop
        self._started_at = 0.0
        self._pid = 0
        self._life: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._service: Service | None = None

    def start(self) -> None:
        """Start the beat."""
        self._start_at = None
        self._started_at = time.monotonic()
        if self._process:
            self._fork()
        else:
            self._service = self._make_service()
            self._thread = threading.Thread(
                target=self._run, args=(self._service,), name="liteq-beat", daemon=True
            )
            self._thread.start()

    def look_after(self, now: float) -> None:
        """Start the beat again if it has ended; each time after a longer pause."""
        if self._start_at is None:
            if not self._has_ended():
                return
            if now - self._started_at > _LONGEST_PAUSE:
                self._pause = _SHORTEST_PAUSE
            logger.error("the worker's beat has ended: starting it again in %g s", self._pause)
            self._start_at = now + self._pause
            self._pause = min(_LONGEST_PAUSE, self._pause * 2)
        elif now >= self._start_at:
            self.start()

    def stop(self) -> None:
        """Tell the beat to stop, and do not wait for it."""
        self._start_at = float("inf")
        if self._service is not None:
            self._service.stop()
        if self._life is not None:
            with contextlib.suppress(OSError):  # it has ended by itself
                self._life.shutdown(socket.SHUT_WR)

    def join(self) -> None:
        """Wait until the beat has stopped; one that does not is killed, or left alone in
        its thread."""
        self.stop()
        patience = time.monotonic() + _PATIENCE
        if self._thread is not None:
            self._thread.join(_PATIENCE)
        while self._pid and not self._reap():
            if time.monotonic() > patience:
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
                break
            # Its end of the socket falls with it: this wakes at once.
            assert self._life is not None
            self._life.settimeout(max(0.01, patience - time.monotonic()))
            with contextlib.suppress(TimeoutError, OSError):
                self._life.recv(1)
        self._close_life()

    def forget(self) -> None:
        """Close, in another child of the worker, our end of what ties the beat to it."""
        self._close_life()

    def _has_ended(self) -> bool:
        if self._process:
            return self._reap()
        return self._thread is not None and not self._thread.is_alive()

    def _reap(self) -> bool:
        """Tell whether the process has ended, and let the kernel forget it."""
        if self._pid and os.waitpid(self._pid, os.WNOHANG)[0]:
            self._pid = 0
            self._close_life()
        return not self._pid

    def _close_life(self) -> None:
        if self._life is not None:
            self._life.close()
            self._life = None

    def _make_service(self, life: socket.socket | None = None) -> Service:
        return Service(
            self._app,
            scheduler=self._scheduler,
            embedded=True,
            install_signals=False,
            life=life,
        )

    @staticmethod
    def _run(service: Service) -> None:
        try:
            service.run()
        except Exception:
            logger.exception("the worker's beat failed")

    def _fork(self) -> None:
        """Fork the beat's process.

        Signals are blocked meanwhile, or the child would run the worker's handlers. A
        socket ties it to the worker: it ends with that, however that ends. When it is
        started again it has inherited the pool's pipes too; those close with it, right
        after the worker's own.
        """
        ours, its = socket.socketpair()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                ours.close()
                self._be_beat(its, mask)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        its.close()
        self._pid, self._life = pid, ours

    def _be_beat(self, life: socket.socket, mask: set[Any]) -> NoReturn:
        """Be the beat's process, which must never return into the worker's code."""
        gc.freeze()  # collecting must not touch, and so copy, what is the worker's
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            # What a terminal or a supervisor sends to all processes is the worker's to
            # answer: it ends the beat over the socket.
            for number in _THE_WORKERS:
                signal.signal(number, signal.SIG_IGN)
            self._forget()
            self._app.after_fork()
            service = self._make_service(life)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            status = service.run()
        except BaseException:
            logger.exception("the worker's beat failed")
        finally:
            logging.shutdown()
            os._exit(status)
