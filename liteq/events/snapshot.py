"""Cameras: something of your own is called with the state of tasks and workers, at intervals.

class Printer(Polaroid):
    clear_after = True

    def on_shutter(self, state):
        print(state.event_count, [w.hostname for w in state.alive_workers()])

with Printer(state, freq=10):
    app.events.Receiver(handlers={"*": state.event}).capture()
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from liteq import current
from liteq.events.state import State
from liteq.loggers import get_logger

if TYPE_CHECKING:
    from typing import Self

    from liteq.app import Liteq

__all__ = ["Polaroid", "evcam"]

logger = get_logger("liteq.events")


class Polaroid:
    """Takes a picture of a state every `freq` seconds, in a thread of its own.

    `on_shutter(state)` is yours; no event is taken in while it looks. `clear_after`: what
    is over is forgotten then. `on_cleanup()` is called every `cleanup_freq` seconds. What
    they raise is logged, and they are called again on time.
    """

    clear_after = False

    def __init__(
        self,
        state: State,
        freq: float = 1.0,
        maxrate: Any = None,
        cleanup_freq: float = 3600.0,
        timer: Any = None,
        app: Liteq | None = None,
    ) -> None:
        self.app = app if app is not None else current.get_current_app()
        self.state = state
        self.freq = freq
        self.cleanup_freq = cleanup_freq
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def install(self) -> None:
        """Begin to take pictures."""
        for name, seconds, action in (
            ("shutter", self.freq, self.capture),
            ("cleanup", self.cleanup_freq, self.cleanup),
        ):
            thread = threading.Thread(
                target=self._every, args=(seconds, action), name=f"liteq-{name}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _every(self, seconds: float, action: Any) -> None:
        while not self._over.wait(seconds):
            try:
                action()
            except Exception:
                name = type(self).__name__
                logger.exception("%s failed; it is called again in %g s", name, seconds)

    def on_shutter(self, state: State) -> None:
        """Do something with a picture."""

    def on_cleanup(self) -> None:
        """Do something now and then."""

    def cleanup(self) -> None:
        self.on_cleanup()

    def shutter(self) -> None:
        """Take a picture now."""
        self.on_shutter(self.state)

    def capture(self) -> None:
        """Take a picture while no event comes in, and forget, if it is to be forgotten."""
        self.state.freeze_while(self.shutter, clear_after=self.clear_after)

    def cancel(self) -> None:
        """End, with a last picture of what was not in one yet."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self.capture()

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(self, *exc: object) -> None:
        self.cancel()


def evcam(
    camera: Any,
    freq: float = 1.0,
    maxrate: Any = None,
    app: Liteq | None = None,
    limit: int | None = None,
    timeout: float | None = None,
    **ignored: Any,
) -> None:
    """Listen, and let a camera take pictures; `camera` is a class, or where it is
    ("module:Class"). Ends as `EventReceiver.capture` does."""
    if isinstance(camera, str):
        from importlib import import_module  # late: for the command line

        module, _, name = camera.replace(":", ".").rpartition(".")
        camera = getattr(import_module(module), name)
    app = app if app is not None else current.get_current_app()
    state = State()
    with camera(state, freq=freq, maxrate=maxrate, app=app):
        app.events.Receiver(handlers={"*": state.event}).capture(limit, timeout)
