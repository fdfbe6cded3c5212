"""Remote control: tell workers something, and hear what they say, through the store.

A command is left for each worker that it is meant for, so who is asked is known: what is
said ends as soon as all have answered, and who has not is named, with the reason, in
`.silent` of what comes back. Celery's names, arguments and shapes of replies.

    app.control.ping()                        # [{"liteq@host": {"ok": "pong"}}]
    app.control.inspect().active()            # {"liteq@host": [{"id": …, "name": …}]}
    app.control.rate_limit("tasks.mail", "10/m", reply=True)
"""

# ruff: noqa: FBT001, FBT002  (positional booleans in Celery's signatures)

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from liteq import current
from liteq.brokers.base import Broker
from liteq.brokers.values import Letter, RevokeAnswer, WorkerInfo
from liteq.commands import (
    Command,
    Forged,
    Keys,
    Panel,
    Reply,
    control_command,
    inspect_command,
)
from liteq.exceptions import ImproperlyConfigured
from liteq.ids import new_id
from liteq.limits import Limit, rate_limit_of
from liteq.loggers import get_logger
from liteq.results.asyncresult import signal_name
from liteq.wording import shown

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = [
    "Answers",
    "Control",
    "Inspect",
    "Panel",
    "Replies",
    "WorkerStatus",
    "control_command",
    "inspect_command",
]

logger = get_logger("liteq.control")

_TIMEOUT: Final = 1.0


class Replies(list[dict[str, Any]]):
    """What workers said, one `{name: reply}` for each, in the order in which it came.

    `silent`: the workers that were asked and did not answer, by name, and why: "dead: …",
    "stuck: …".
    """

    def __init__(
        self, replies: Iterable[dict[str, Any]] = (), silent: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(replies)
        self.silent: dict[str, str] = dict(silent or {})


class Answers(dict[str, Any]):
    """What workers said, by their names; empty if none did. `silent`: as in `Replies`."""

    def __init__(
        self, answers: Mapping[str, Any] | None = None, silent: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(answers or {})
        self.silent: dict[str, str] = dict(silent or {})


class WorkerStatus(NamedTuple):
    """How a worker is. `state`: "alive", "stuck" (its process is there, and it gives no
    answer or no heartbeat) or "dead"; `reason` says how one knows. `name` is its node name,
    with "#" and its process id where several have it."""

    name: str
    state: Literal["alive", "stuck", "dead"]
    reason: str
    info: WorkerInfo


class _Target(NamedTuple):
    name: str
    info: WorkerInfo


class _Silence(NamedTuple):
    """Why a worker that was asked says nothing."""

    state: Literal["stuck", "dead", "gone", "deaf", "busy", "unknown"]
    reason: str

    def __str__(self) -> str:
        return f"{self.state}: {self.reason}"


class Control:
    """The workers of an app, from afar: `app.control`.

    `destination`: names of workers (default: all); `pattern` with `matcher` "glob" or
    "pcre" chooses by name. With `reply`, wait for up to `timeout` seconds, and for `limit`
    replies at most. Several workers of one name are told apart as "name#pid".
    """

    def __init__(self, app: Liteq | None = None) -> None:
        self._app = app

    @property
    def app(self) -> Liteq:
        return self._app if self._app is not None else current.get_current_app()

    def inspect(self, *args: Any, **kwargs: Any) -> Inspect:
        """`inspect(destination=None, timeout=1.0, …)`: commands that only look."""
        return Inspect(*args, **{"app": self.app, **kwargs})

    # Asking

    def broadcast(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: Sequence[str] | str | None = None,
        connection: Any = None,
        reply: bool = False,
        timeout: float = _TIMEOUT,
        limit: int | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        channel: Any = None,
        pattern: str | None = None,
        matcher: str | None = None,
        **extra_kwargs: Any,
    ) -> Replies:
        """Send a command to workers; with `reply`, return what they said.

        `callback` is called with each `{name: reply}` as it comes. A worker that cannot
        take the command now finds it when it can, for `control_queue_ttl` seconds; it obeys
        even if the asker has stopped waiting. `connection` and `channel` are Celery's, and
        mean nothing. What is kept in the store, `revoke` and `rate_limit`, is written there,
        whatever the destination: see the methods of these names.
        """
        if command in ("revoke", "rate_limit"):
            return self._write(command, {**(arguments or {}), **extra_kwargs}, reply=reply)
        roster = _named(self.app.broker.roster())
        targets, silent = _choose(roster, destination, pattern, matcher)
        arguments = {**(arguments or {}), **extra_kwargs}
        said, more = self._ask(
            command,
            arguments,
            targets,
            timeout=timeout if reply else 0.0,
            limit=limit,
            callback=callback,
        )
        silent |= more
        for name, silence in silent.items():
            logger.warning("%s did not get %s: %s", shown(name), command, silence)
        return Replies(said, _in_words(silent))

    def _write(self, command: str, arguments: dict[str, Any], *, reply: bool) -> Replies:
        if command == "rate_limit":
            return self.rate_limit(**arguments, reply=reply)
        self.revoke(**arguments)
        names = [target.name for target in _named(self.app.broker.roster())] if reply else []
        return Replies([{name: {"ok": "it is written in the store"}} for name in names])

    def _ask(
        self,
        method: str,
        arguments: Mapping[str, Any],
        targets: Sequence[_Target],
        *,
        timeout: float,
        limit: int | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
    ) -> tuple[list[dict[str, Any]], dict[str, _Silence]]:
        """Tell these workers; with a timeout, wait for what they say. Return that, and why the
        others said nothing."""
        app, broker = self.app, self.app.broker
        keys, stays = self._keys(), app.conf.control_queue_ttl
        replies: list[dict[str, Any]] = []
        silent: dict[str, _Silence] = {}
        ticket, sent_at = new_id(), app.clock.now()
        mailbox = broker.mailbox() if timeout > 0 and targets else None
        try:
            command = Command(
                method, arguments, ticket, sent_at, mailbox.name if mailbox else None
            )
            left = broker.post(
                [Letter(t.info.id, keys.command(command, t.info.id), stays) for t in targets]
            )
            waiting = {}
            for target, is_left in zip(targets, left, strict=True):
                if is_left:
                    waiting[target.info.id] = target
                else:
                    silent[target.name] = _why_not_left(target.info)
            if mailbox is None:
                return replies, silent
            until = time.monotonic() + timeout
            while waiting and (limit is None or len(replies) < limit):
                remaining = until - time.monotonic()
                if remaining <= 0:
                    break
                mailbox.wait(min(remaining, mailbox.poll_interval))
                for letter in broker.collect(mailbox.name):
                    if limit is not None and len(replies) >= limit:
                        break
                    self._take(letter, ticket, keys, waiting, replies, callback)
            if limit is None or len(replies) < limit:
                for target in waiting.values():
                    silent[target.name] = _why_silent(broker, target.info, timeout)
        finally:
            if mailbox is not None:
                mailbox.close()
        return replies, silent

    @staticmethod
    def _take(
        letter: bytes,
        ticket: str,
        keys: Keys,
        waiting: dict[int, _Target],
        replies: list[dict[str, Any]],
        callback: Callable[[dict[str, Any]], Any] | None,
    ) -> None:
        try:
            reply: Reply = keys.read_reply(letter, ticket)
        except Forged as exc:
            logger.warning("a reply was ignored: %s", exc)
            return
        target = waiting.pop(reply.worker, None)
        if target is None:
            return  # of one that was not asked, or has answered
        said = {target.name: reply.body}
        replies.append(said)
        if callback is not None:
            callback(said)

    def _keys(self) -> Keys:
        return Keys(self.app.conf.control_secret)

    # How they are

    def ping(
        self,
        destination: Sequence[str] | str | None = None,
        timeout: float = _TIMEOUT,
        **kwargs: Any,
    ) -> Replies:
        """Ask who is there: `[{name: {"ok": "pong"}}]`, the stuck and the dead in `.silent`."""
        return self.broadcast(
            "ping", destination=destination, reply=True, timeout=timeout, **kwargs
        )

    def status(self, timeout: float = _TIMEOUT) -> list[WorkerStatus]:
        """Return how each worker is, after asking those that answer questions. A dead one is
        listed for an hour, or until another takes its name. With `timeout` 0 nobody is asked:
        only processes and heartbeats are looked at.
        """
        roster = _named(self.app.broker.roster())
        there = [target for target in roster if target.info.state != "dead"]
        asked = [t for t in there if t.info.details.get("control") is not False]
        silent: dict[str, _Silence] = {}
        answered: set[str] = set()
        if timeout > 0 and asked:
            replies, silent = self._ask("ping", {}, asked, timeout=timeout)
            answered = {name for reply in replies for name in reply}
        found = []
        for name, info in roster:
            if name in answered:
                found.append(WorkerStatus(name, "alive", "it answers", info))
                continue
            match silent.get(name):
                case _Silence("stuck" | "dead" as state, reason):
                    found.append(WorkerStatus(name, state, reason, info))
                case _:
                    found.append(WorkerStatus(name, info.state, _why(info), info))
        return found

    # Tasks

    def revoke(
        self,
        task_id: str | Iterable[str],
        destination: Any = None,
        terminate: bool = False,
        signal: Any = "SIGTERM",
        **kwargs: Any,
    ) -> dict[str, RevokeAnswer]:
        """Keep calls from running, and return what became of each (see `Broker.revoke`).

        It is written in the store, so it holds for every worker, also one that starts
        later. `terminate` ends the attempt that runs now, and no other, with this signal.
        """
        ids = [task_id] if isinstance(task_id, str) else [str(id) for id in task_id]
        answers = self._revoke(ids, signal_name(signal) if terminate else None)
        self.app.events.revoked([id for id in answers if answers[id] == "revoked"])
        return answers

    def _revoke(self, ids: list[str], signal: str | None) -> dict[str, RevokeAnswer]:
        broker, keys = self.app.broker, self._keys()
        if signal is None or not keys:
            return broker.revoke(ids, terminate=signal)
        answers: dict[str, RevokeAnswer] = {}
        for id in ids:  # each is signed for itself
            answers |= broker.revoke([id], terminate=keys.stamp(signal, id))
        return answers

    def terminate(
        self,
        task_id: str | Iterable[str],
        destination: Any = None,
        signal: Any = "SIGTERM",
        **kwargs: Any,
    ) -> dict[str, RevokeAnswer]:
        """Revoke, and end what runs."""
        return self.revoke(task_id, destination, terminate=True, signal=signal, **kwargs)

    def purge(self, connection: Any = None) -> int:
        """Delete all messages that wait in the app's queues; return how many."""
        return self.app.broker.purge(self.app.select_queues())

    discard_all = purge

    def rate_limit(
        self,
        task_name: str,
        rate_limit: str | float | None,
        destination: Any = None,
        *,
        reply: bool = False,
        **kwargs: Any,
    ) -> Replies:
        """Change how often a task may start, over all workers and from now on, whatever its
        code says: "10/m", or 0 for no limit. It is written in the store, so it holds for
        all workers, also those that start later, until it is changed again; with `reply`,
        those of `destination` are listed as Celery lists them. A rate that the task shares
        with others changes for them too. Raises `ValueError` for an invalid rate."""
        broker = self.app.broker
        own = f"{task_name}:rate"
        names = [
            known.name
            for known in broker.limits()
            if task_name in known.tasks and (known.name == own or _is_rate(known.declared))
        ]
        for name in names or [own]:
            broker.override_limit(name, rate_limit_of(name, rate_limit), task=task_name)
        if not reply:
            return Replies()
        targets, silent = _choose(_named(self.app.broker.roster()), destination, None, None)
        done = {"ok": "new rate limit set successfully"}
        return Replies([{target.name: done} for target in targets], _in_words(silent))

    def time_limit(
        self,
        task_name: str,
        soft: float | None = None,
        hard: float | None = None,
        destination: Any = None,
        **kwargs: Any,
    ) -> Replies:
        """Change the time limits of a task, in seconds, for attempts that begin from now on
        in these workers, until they restart. None or 0: no limit."""
        limits = {"task_name": task_name, "soft": soft, "hard": hard}
        return self.broadcast("time_limit", limits, destination, **kwargs)

    # Queues

    def add_consumer(
        self,
        queue: str,
        exchange: Any = None,
        exchange_type: Any = "direct",
        routing_key: Any = None,
        options: Any = None,
        destination: Any = None,
        **kwargs: Any,
    ) -> Replies:
        """Have workers consume one more queue, until they restart. (A queue needs no more
        than its name; the rest is Celery's.)"""
        return self.broadcast("add_consumer", {"queue": queue}, destination, **kwargs)

    def cancel_consumer(self, queue: str, destination: Any = None, **kwargs: Any) -> Replies:
        """Have workers stop consuming a queue until they restart. To keep all workers from
        it, whoever starts, pause the queue."""
        return self.broadcast("cancel_consumer", {"queue": queue}, destination, **kwargs)

    # Workers

    def pool_grow(self, n: int = 1, destination: Any = None, **kwargs: Any) -> Replies:
        """Give pools more children."""
        return self.broadcast("pool_grow", {"n": n}, destination, **kwargs)

    def pool_shrink(self, n: int = 1, destination: Any = None, **kwargs: Any) -> Replies:
        """Take children from pools, each when it has finished what it runs."""
        return self.broadcast("pool_shrink", {"n": n}, destination, **kwargs)

    def pool_restart(
        self,
        modules: Any = None,
        reload: bool = False,
        reloader: Any = None,
        destination: Any = None,
        **kwargs: Any,
    ) -> Replies:
        """Replace child processes, one at a time, each after what it runs. Modules are not
        imported anew: restart the worker for that."""
        if modules or reload or reloader is not None:
            raise ImproperlyConfigured(
                "pool_restart cannot import modules anew: restart the workers for new code"
            )
        return self.broadcast("pool_restart", {}, destination, **kwargs)

    def autoscale(
        self, max: int, min: int = 1, destination: Any = None, **kwargs: Any
    ) -> Replies:
        """Have pools keep between `min` and `max` children, as there is work."""
        return self.broadcast("autoscale", {"max": max, "min": min}, destination, **kwargs)

    def shutdown(self, destination: Any = None, **kwargs: Any) -> Replies:
        """Stop workers, each when it has finished what it runs."""
        return self.broadcast("shutdown", {}, destination, **kwargs)

    def enable_events(self, destination: Any = None, **kwargs: Any) -> Replies:
        """Have workers send events when somebody listens."""
        return self.broadcast("enable_events", {}, destination, **kwargs)

    def disable_events(self, destination: Any = None, **kwargs: Any) -> Replies:
        """Have workers send no events, whoever listens."""
        return self.broadcast("disable_events", {}, destination, **kwargs)

    def heartbeat(self, destination: Any = None, **kwargs: Any) -> Replies:
        """Have workers send their heartbeat event now."""
        return self.broadcast("heartbeat", {}, destination, **kwargs)


class Inspect:
    """Commands that only look; each returns the answers by worker.

    `{}` when nobody answers (Celery: None). Who was asked and is silent, and why, is in
    `.silent` of what is returned.
    """

    def __init__(
        self,
        destination: Sequence[str] | str | None = None,
        timeout: float = _TIMEOUT,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        connection: Any = None,
        app: Liteq | None = None,
        limit: int | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> None:
        self.destination = destination
        self.timeout = timeout
        self.callback = callback
        self.app = app
        self.limit = limit
        self.pattern = pattern
        self.matcher = matcher

    def _request(self, command: str, **arguments: Any) -> Answers:
        replies = Control(self.app).broadcast(
            command,
            {name: value for name, value in arguments.items() if value is not None},
            self.destination,
            reply=True,
            timeout=self.timeout,
            limit=self.limit,
            callback=self.callback,
            pattern=self.pattern,
            matcher=self.matcher,
        )
        return Answers(
            {name: said for reply in replies for name, said in reply.items()}, replies.silent
        )

    def ping(self, destination: Any = None) -> Answers:
        """Ask who is there: `{"ok": "pong"}`."""
        if destination is not None:
            self.destination = destination
        return self._request("ping")

    def active(self, safe: Any = None) -> Answers:
        """Lists of what runs now."""
        return self._request("active")

    def reserved(self, safe: Any = None) -> Answers:
        """Lists of what is claimed and not started yet: with liteq, next to nothing."""
        return self._request("reserved")

    def scheduled(self, safe: Any = None) -> Answers:
        """Lists of what waits for its time in the queues of each worker. It waits in the
        store, so workers of one queue name the same messages; a thousand at most."""
        return self._request("scheduled")

    def revoked(self) -> Answers:
        """Lists of ids of calls that were revoked, the latest thousand in the store."""
        return self._request("revoked")

    def registered(self, *taskinfoitems: str) -> Answers:
        """Lists of the tasks that each worker knows, with these attributes of theirs."""
        return self._request("registered", taskinfoitems=list(taskinfoitems))

    registered_tasks = registered

    def stats(self) -> Answers:
        """Figures of each worker: pool, totals, use of resources, uptime."""
        return self._request("stats")

    def active_queues(self) -> Answers:
        """Lists of the queues that each worker consumes."""
        return self._request("active_queues")

    def query_task(self, *ids: Any) -> Answers:
        """What each worker knows of calls: `{id: ["active" | "reserved", info]}`. The ids
        are given one by one, or as a list."""
        flat = ids[0] if len(ids) == 1 and isinstance(ids[0], (list, tuple)) else ids
        return self._request("query_task", ids=list(flat))

    def conf(self, with_defaults: bool = False) -> Answers:
        """The settings of each worker, without secrets."""
        return self._request("conf", with_defaults=with_defaults)

    def report(self) -> Answers:
        """What a bug report should say: `{"ok": text}`."""
        return self._request("report")

    def clock(self) -> Answers:
        """The time of each worker, Unix seconds: `{"clock": …}`. (Celery's is logical.)"""
        return self._request("clock")


# Who is meant, and why one does not answer


def _named(roster: Iterable[WorkerInfo]) -> list[_Target]:
    """Return the workers under names that tell them apart."""
    infos = list(roster)
    names = [info.name for info in infos]
    return [
        _Target(info.name if names.count(info.name) == 1 else f"{info.name}#{info.pid}", info)
        for info in infos
    ]


def _in_words(silent: Mapping[str, _Silence]) -> dict[str, str]:
    return {name: str(silence) for name, silence in silent.items()}


def _choose(
    roster: Sequence[_Target],
    destination: Sequence[str] | str | None,
    pattern: str | None,
    matcher: str | None,
) -> tuple[list[_Target], dict[str, _Silence]]:
    """Return whom to ask, and who of those meant cannot be asked, and why."""
    meant = list(roster)
    silent: dict[str, _Silence] = {}
    if destination is not None:
        names = [destination] if isinstance(destination, str) else list(destination)
        meant = [t for t in roster if t.name in names or t.info.name in names]
        known = {t.name for t in meant} | {t.info.name for t in meant}
        unknown = _Silence("unknown", "no worker has this name")
        silent = {name: unknown for name in names if name not in known}
    elif pattern is not None:
        matches = _matcher(pattern, matcher)
        meant = [target for target in roster if matches(target.name)]
    targets = []
    for target in meant:
        if target.info.state == "dead":
            silent[target.name] = _Silence("dead", _why(target.info))
        else:
            targets.append(target)
    return targets, silent


def _is_rate(limit: Limit | None) -> bool:
    return limit is not None and limit.interval is not None


def _matcher(pattern: str, matcher: str | None) -> Callable[[str], object]:
    if matcher in (None, "glob"):
        return lambda name: fnmatchcase(name, pattern)
    if matcher == "pcre":
        return re.compile(pattern).match
    raise ValueError(f"matcher must be 'glob' or 'pcre', not {matcher!r}")


def _why(info: WorkerInfo) -> str:
    """Say how one knows the state of a worker that was not asked."""
    if info.state == "dead":
        return f"its process {info.pid} on {info.hostname} is gone"
    if info.state == "stuck":
        return (
            f"process {info.pid} on {info.hostname} lives, "
            f"and its last heartbeat is {info.beat_age:.0f} s old"
        )
    return f"heartbeat {info.beat_age:.0f} s ago"


def _why_not_left(info: WorkerInfo) -> _Silence:
    if info.state == "stuck":
        return _Silence("stuck", _why(info))
    return _Silence("stuck", "too many commands wait for it, or it has just ended")


def _why_silent(broker: Broker, info: WorkerInfo, timeout: float) -> _Silence:
    """Say why a worker that got a command did not answer it: look once more."""
    now = next((one for one in broker.roster() if one.id == info.id), None)
    if now is None:
        return _Silence("gone", "it has stopped meanwhile")
    if now.state == "dead":
        return _Silence("dead", _why(now))
    if now.details.get("control") is False:
        return _Silence("deaf", "its worker_enable_remote_control is off")
    if now.details.get("pool") == "solo" and now.leases and now.state == "alive":
        return _Silence("busy", "its only thread runs a task, and it answers after that")
    return _Silence(
        "stuck",
        f"process {now.pid} on {now.hostname} lives, but gave no answer within "
        f"{timeout:g} s; its last heartbeat is {now.beat_age:.0f} s old",
    )
