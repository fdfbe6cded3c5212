"""The start of a pool's child processes: what each is given, and what it must not keep."""

from __future__ import annotations

import errno
import os
import selectors
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

from liteq.pools.base import PoolOptions, Runner
from liteq.pools.child import Links, child_main
from liteq.pools.childlinks import Child, connect
from liteq.pools.forking import Forked

__all__ = ["Starter"]


class Starter:
    """Starts the children of one pool. `selector`: that of the loop, with all that the
    worker listens to."""

    def __init__(
        self,
        factory: Callable[[], Runner],
        options: PoolOptions,
        selector: selectors.BaseSelector,
    ) -> None:
        self._factory = factory
        self._options = options
        self._selector = selector
        self._context = _context(options.start_method)
        self._serial = 0

    def start(self) -> Child:
        """Start one process, and return what its parent knows of it.

        Signals are blocked meanwhile: between the fork and the reset of its handlers the child
        would run the parent's. Raises `OSError` if the system has no room for another process.
        """
        if self._options.before_child is not None:
            self._options.before_child()
        fork = self._options.start_method == "fork"
        child, links = connect(self._options)
        self._serial += 1
        args = (self._factory, links, self._forgetter(child) if fork else None)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() if fork else ())
        try:
            process = self._start_process(f"liteq-{self._serial}", *args)
        except BaseException:
            child.close()
            _close_ends(links)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _close_ends(links)
        child.adopt(process, self._options.monotonic())
        return child

    def _start_process(self, name: str, *args: Any) -> Any:
        if self._context is None:
            return Forked(name, partial(child_main, *args))
        process = self._context.Process(target=child_main, args=args, name=name)
        process.start()
        return process

    def _forgetter(self, newborn: Child) -> Callable[[], None]:
        """Return what closes, in a forked child, all that belongs to the parent alone."""

        def forget() -> None:
            if self._options.at_fork is not None:
                self._options.at_fork()
            newborn.close_parent_ends()
            for key in tuple(self._selector.get_map().values()):
                _close(key.fileobj)  # ours are closed already
            self._selector.close()  # not unregister(): the kernel's set is the parent's too

        return forget


def _context(start_method: str) -> Any:
    """Return what makes the processes; None: they are forked.

    Only to others is something sent, and only `multiprocess` can send what a script
    defines; dill, which that takes, costs a worker a third of its start and 4 MB.
    """
    if start_method == "fork":
        return None
    import multiprocess

    return multiprocess.get_context(start_method)


def _close_ends(links: Links) -> None:
    """Close the child's ends in its parent, but the one by which that takes jobs back."""
    links.jobs.close()
    links.answers.close()
    links.life.close()


def _close(file: Any) -> None:
    try:
        file.close() if hasattr(file, "close") else os.close(file)
    except OSError as exc:
        if exc.errno != errno.EBADF:
            raise
