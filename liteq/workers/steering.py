"""What a worker does with the commands that are left for it: look who sends, obey, reply.

The worker's loop calls `Steering.obey()` with the letters it has collected, and posts what
comes back. Nothing here waits for a child: a worker whose children are all stuck answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from liteq import djangoproject
from liteq.brokers.values import Letter
from liteq.commands import (
    CODE_LIMIT,
    Command,
    Forged,
    Keys,
    Panel,
    Reply,
    Tickets,
    control_command,
    inspect_command,
)
from liteq.einfo import summary
from liteq.exceptions import ImproperlyConfigured
from liteq.loggers import get_logger
from liteq.texts import readable
from liteq.workers import inspecting  # registers the commands that look
from liteq.workers.pool import make_room

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.worker import Worker

__all__ = ["State", "Steering"]

logger = get_logger("liteq.control")

_REPLY_STAYS: Final = 60.0  # seconds
_REFUSED_SHOWN: Final = 5  # letters that were passed over, of which the log tells

# Children that a command may ask for: whoever may write to the store can leave one, and a
# slip of the finger is not to take the machine. A process costs it megabytes, a thread tens
# of kilobytes, a coroutine next to nothing until it runs. Who starts a worker may have more.
_MOST_CHILDREN: Final = {
    "prefork": 1_000,
    "processes": 1_000,
    "threads": 10_000,
    "asyncio": 100_000,
}
_LONGEST: Final = 10.0**9  # seconds of a time limit, 31 years: clocks overflow far behind it

_ = inspecting


class State:
    """What a command gets: the worker that it is about."""

    __slots__ = ("worker",)

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    @property
    def app(self) -> Liteq:
        return self.worker.app

    @property
    def hostname(self) -> str:
        return self.worker.hostname

    @property
    def consumer(self) -> Worker:
        """The worker, by Celery's name."""
        return self.worker

    @property
    def tset(self) -> Callable[..., set[Any]]:
        return set


class Steering:
    """Obeys the commands for one worker."""

    def __init__(self, worker: Worker) -> None:
        conf = worker.app.conf
        self.allowed: bool | str = conf.worker_enable_remote_control
        self._worker = worker
        self._state = State(worker)
        self._keys = Keys(conf.control_secret)
        self._tickets = Tickets(conf.control_queue_ttl)
        self._refused = 0

    def obey(self, letters: Sequence[bytes]) -> list[Letter]:
        """Do what these letters say, in their order; return the replies to be posted."""
        replies = []
        for letter in letters:
            if not self.allowed:
                self._refuse("worker_enable_remote_control is off")
                continue
            try:
                command = self._keys.read_command(letter, self._worker.id)
                if self._keys:
                    self._tickets.check(command, self._worker.app.clock.now())
            except Forged as exc:
                self._refuse(str(exc))
                continue
            except Exception:  # whoever may write to the store has made it, of anything
                logger.exception("a command cannot be read")
                continue
            body = self._run(command)
            if command.reply_to is not None:
                said = self._reply(command, body)
                replies.append(Letter(command.reply_to, said, _REPLY_STAYS))
        return replies

    def signal_of(self, text: str, id: str) -> str | None:
        """Return the name of the signal that a run is to be ended with, None if whoever
        asked may not ask for it."""
        if self.allowed is not True:
            self._refuse(f"[{id}] is not ended: worker_enable_remote_control={self.allowed!r}")
            return None
        signal = self._keys.stamped(text, id)
        if signal is None:
            self._refuse(f"[{id}] is not ended: no control_secret has signed that")
        return signal

    def _run(self, command: Command) -> Any:
        known = Panel.meta.get(command.method)
        if known is None:
            logger.warning("received an unknown command: %r", command.method)
            return {"error": f"unknown command {command.method!r}"}
        if known.kind == "control" and self.allowed is not True:
            self._refuse(f"{command.method}: remote control is read-only")
            return {"error": "not allowed: worker_enable_remote_control is read-only"}
        try:
            if known.kind == "control":
                logger.info("told to %s%s", command.method, _shown(command.arguments))
            with djangoproject.fresh_connections():
                return known.run(self._state, **command.arguments)
        except Exception as exc:  # a command is anybody's code, and the loop goes on
            logger.exception("the command %s failed", command.method)
            return {"error": summary(exc)}

    def _reply(self, command: Command, body: Any) -> bytes:
        try:
            said = self._keys.reply(Reply(command.ticket, self._worker.id, body))
        except Exception as exc:  # what a command returns is anybody's as well
            logger.exception("the command %s has no reply that can be sent", command.method)
            return self._error(command, f"the reply cannot be sent: {summary(exc)}")
        if len(said) > CODE_LIMIT:
            return self._error(command, f"the reply has {len(said)} bytes: too many")
        return said

    def _error(self, command: Command, text: str) -> bytes:
        return self._keys.reply(Reply(command.ticket, self._worker.id, {"error": text}))

    def _refuse(self, why: str) -> None:
        self._refused += 1
        if self._refused <= _REFUSED_SHOWN:
            more = " (no more of these are shown)" if self._refused == _REFUSED_SHOWN else ""
            logger.warning("a command was passed over: %s%s", why, more)


def _shown(arguments: Any) -> str:
    return f" {dict(arguments)!r}"[:200] if arguments else ""


# The commands that change a worker


@control_command(
    args=[("task_name", str), ("soft", float), ("hard", float)],
    signature="<task> <soft> [hard]",
)
def time_limit(
    state: State,
    task_name: str,
    hard: float | None = None,
    soft: float | None = None,
    **kwargs: Any,
) -> dict[str, str]:
    """Change the time limits of a task, in seconds; 0 is none."""
    for limit in (soft, hard):
        if limit is not None and not 0 <= float(limit) <= _LONGEST:
            return {"error": f"a time limit must be 0 seconds or more, not {limit!r:.100}"}
    if task_name not in state.app.tasks:
        return {"error": f"unknown task {task_name!r}"}
    state.worker.limit_time(
        task_name,
        None if soft is None else float(soft),
        None if hard is None else float(hard),
    )
    return {"ok": "time limits set successfully"}


@control_command(args=[("queue", str)], signature="<queue>")
def add_consumer(state: State, queue: str, **kwargs: Any) -> dict[str, str]:
    """Consume one more queue."""
    if error := _wrong_queue(queue):
        return error
    worker = state.worker
    if queue in worker.queues:
        return {"ok": f"already consuming from {queue!r}"}
    worker.consume((*worker.queues, *state.app.select_queues([queue])))
    return {"ok": f"add consumer {queue}"}


@control_command(args=[("queue", str)], signature="<queue>")
def cancel_consumer(state: State, queue: str, **kwargs: Any) -> dict[str, str]:
    """Stop consuming a queue."""
    if error := _wrong_queue(queue):
        return error
    worker = state.worker
    worker.consume(tuple(name for name in worker.queues if name != queue))
    return {"ok": f"no longer consuming from {queue}"}


def _wrong_queue(queue: Any) -> dict[str, str] | None:
    if isinstance(queue, str) and queue and readable(queue) == queue:
        return None
    return {"error": f"the name of a queue must be text, not {queue!r:.100}"}


@control_command(args=[("n", int)], signature="[N=1]")
def pool_grow(state: State, n: int = 1, **kwargs: Any) -> dict[str, str]:
    """Give the pool more children."""
    return _resize(state, n, 1, "grow")


@control_command(args=[("n", int)], signature="[N=1]")
def pool_shrink(state: State, n: int = 1, **kwargs: Any) -> dict[str, str]:
    """Take children from the pool."""
    return _resize(state, n, -1, "shrink")


def _resize(state: State, n: int, sign: int, word: str) -> dict[str, str]:
    worker = state.worker
    if not _is_whole(n) or n < 1:
        return {"error": f"{word} by a whole number above 0, not {n!r:.100}"}
    wanted = worker.concurrency + sign * n
    if worker.autoscaler is not None:
        return {"error": f"cannot {word} the pool: it is autoscaled. Use autoscale"}
    if worker.pool_kind == "solo":
        return {"error": f"cannot {word} the pool: solo has one thread, the worker's own"}
    if wanted < 1:
        return {"error": f"a pool keeps at least one child: it has {worker.concurrency}"}
    if error := _too_many(worker, wanted):
        return error
    worker.resize(wanted)
    return {"ok": f"pool will {word}"}


def _is_whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def _too_many(worker: Worker, wanted: int) -> dict[str, str] | None:
    """Return the refusal of so many children, None if that is not more than commands may ask
    for, or than there are, nor than there are descriptors for."""
    most = max(_MOST_CHILDREN.get(worker.pool_kind, 1), worker.concurrency)
    if wanted > most:
        return {
            "error": f"a {worker.pool_kind} pool can be told to have {most} children at most, "
            f"not {wanted!r:.100}: start workers for more"
        }
    try:
        make_room(worker.pool_kind, wanted)
    except ImproperlyConfigured as exc:
        return {"error": str(exc)}
    return None


@control_command
def pool_restart(
    state: State,
    modules: Any = None,
    reload: Any = None,
    reloader: Any = None,
    **kwargs: Any,
) -> dict[str, str]:
    """Replace the child processes, one at a time, each after what it runs."""
    if modules or reload or reloader is not None:
        return {"error": "cannot import modules anew: restart the workers for new code"}
    if not state.worker.roll():
        return {"error": f"the {state.worker.pool_kind} pool has no children to replace"}
    return {"ok": "reload started"}


@control_command(args=[("max", int), ("min", int)], signature="[max [min]]")
def autoscale(state: State, max: int, min: int = 1, **kwargs: Any) -> dict[str, str]:
    """Keep between `min` and `max` children, as there is work."""
    if state.worker.pool_kind == "solo":
        return {"error": "cannot autoscale: solo has one thread, the worker's own"}
    if not (_is_whole(max) and _is_whole(min) and 1 <= min <= max):
        given = f"max={max!r:.100}, min={min!r:.100}"
        return {"error": f"autoscale needs whole numbers, 1 ≤ min ≤ max, not {given}"}
    if error := _too_many(state.worker, max):
        return error
    state.worker.autoscale(max, min)
    return {"ok": f"autoscale now max={max} min={min}"}


@control_command
def shutdown(
    state: State, msg: str = "Got shutdown from remote", **kwargs: Any
) -> dict[str, str]:
    """Stop, when what runs is finished."""
    logger.warning("%s", msg)
    state.worker.stop()
    return {"ok": "shutting down"}


@control_command
def enable_events(state: State, **kwargs: Any) -> dict[str, str]:
    """Send events while somebody listens."""
    changed = state.worker.enable_events(on=True)
    return {"ok": f"task events {'' if changed else 'already '}enabled"}


@control_command
def disable_events(state: State, **kwargs: Any) -> dict[str, str]:
    """Send no events, whoever listens."""
    changed = state.worker.enable_events(on=False)
    return {"ok": f"task events {'' if changed else 'already '}disabled"}


@inspect_command  # it changes nothing, and whoever listens asks for it
def heartbeat(state: State, **kwargs: Any) -> dict[str, str]:
    """Send the heartbeat event now."""
    state.worker.tell_heartbeat()
    return {"ok": "heartbeat sent"}
