"""What the buttons beside a worker do: it is asked, as `liteq control` asks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from liteq.control import Control, Replies
from liteq.loggers import get_logger
from liteq.web.visits import Moved, Page, Visit
from liteq.wording import shown

__all__ = ["ASKED", "WORKER_ACTIONS"]

logger = get_logger("liteq.web")

PATIENCE: Final = 2.0  # seconds for a worker's answer; it obeys later, too

ASKED: Final = {
    "grow": "asked for one more process",
    "shrink": "asked for one process fewer",
    "restart": "asked to replace its processes, each when it has finished what it runs",
    "stop": "asked to stop when it has finished what it runs",
}


def _grow(control: Control, name: str) -> Replies:
    return control.pool_grow(1, [name], reply=True, timeout=PATIENCE)


def _shrink(control: Control, name: str) -> Replies:
    return control.pool_shrink(1, [name], reply=True, timeout=PATIENCE)


def _restart(control: Control, name: str) -> Replies:
    return control.pool_restart(destination=[name], reply=True, timeout=PATIENCE)


def _stop(control: Control, name: str) -> Replies:
    return control.shutdown([name], reply=True, timeout=PATIENCE)


class _Ask:
    """Asks one worker, and says whether it has answered."""

    def __init__(
        self, verb: str, ask: Callable[[Control, str], Replies], *, sure: bool = False
    ) -> None:
        self._verb = verb
        self._ask = ask
        self._sure = sure

    def __call__(self, visit: Visit) -> Moved | Page:
        name = visit.named("worker")
        if self._sure and not visit.text("sure"):
            return Page("stop.html", {"worker": name})
        answer: Any = None
        for reply in self._ask(visit.app.control, name):
            answer = reply.get(name, answer)
        user = shown(visit.user)
        logger.info("%s: %s: worker %s: %r", user, self._verb, shown(name), answer)
        if isinstance(answer, Mapping) and "error" in answer:
            raise ValueError(f"{name} refuses: {answer['error']}")
        return Moved("/workers", {"said": f"{self._verb}.{int(answer is not None)}"})


WORKER_ACTIONS: Final[Mapping[str, Callable[[Visit], Moved | Page]]] = {
    "/worker/grow": _Ask("grow", _grow),
    "/worker/shrink": _Ask("shrink", _shrink),
    "/worker/restart": _Ask("restart", _restart),
    "/worker/stop": _Ask("stop", _stop, sure=True),
}
