"""What a worker tells its listeners: the transitions of its tasks, and of itself.

Names and fields are those of Celery's events. Nothing is made while nobody listens: the
store says with each step whether somebody does. What is made is appended to the store's
stream once for each turn of the worker's loop; should the store be out of reach, it is
dropped and counted, and the worker goes on.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from liteq import __version__, failure, serializers
from liteq.brokers.base import Broker
from liteq.brokers.values import Lease
from liteq.carrying import cut
from liteq.exceptions import BrokerError
from liteq.outcome import (
    Failed,
    Ignored,
    Lost,
    Outcome,
    Released,
    Replaced,
    Retried,
    Revoked,
    Succeeded,
)
from liteq.redaction import hide

if TYPE_CHECKING:
    from liteq.app import Liteq

__all__ = ["EVENT_BEAT", "EventDispatcher"]

EVENT_BEAT: Final = 2.0  # seconds between two heartbeats, as in Celery
_MOST: Final = 10_000  # events of one turn of the loop
_SOFTWARE: Final = {
    "sw_ident": "liteq",
    "sw_ver": __version__,
    "sw_sys": os.uname().sysname,
}


class EventDispatcher:
    """Sends the events of one worker. `heard`: somebody listens; `enabled`: and may hear it."""

    def __init__(self, app: Liteq, hostname: str) -> None:
        self.enabled: bool = app.conf.worker_send_task_events
        self.dropped = 0
        self._app = app
        self._hostname = hostname
        self._heard = False
        self._greeted = False
        self._beat_at = 0.0
        self._started: set[str] = set()  # ids of those running that were said to have begun
        self._pending: list[bytes] = []

    @property
    def heard(self) -> bool:
        return self._heard and self.enabled

    def learn(self, *, heard: bool) -> None:
        """Take in what a step said of listeners."""
        if heard and not self._heard:
            self._beat_at = 0.0  # whoever comes learns of this worker at once
            self._started.clear()
        self._heard = heard

    # What is said

    def received(self, lease: Lease) -> None:
        """A message was claimed."""
        from liteq.events.form import about  # late: few workers are listened to

        self._say("task-received", **about(self._app, lease.outline))

    def running(self, leases: Iterable[Lease]) -> None:
        """These run now; of each it is said once."""
        for lease in leases:
            if lease.id not in self._started:
                self._started.add(lease.id)
                self._say("task-started", uuid=lease.id)

    def ended(self, lease: Lease, outcome: Outcome, signum: int | None = None) -> None:
        """The store has taken the outcome of an attempt."""
        id = lease.id
        began = id in self._started
        self._started.discard(id)
        runtime = getattr(outcome, "runtime", None)
        if not began and runtime is not None:  # it was too short to be seen running
            self._say("task-started", uuid=id, timestamp=self._app.clock.now() - runtime)
        match outcome:
            case Succeeded(result):
                shown = self._shown_result(result)
                self._say("task-succeeded", uuid=id, result=shown, runtime=runtime)
            case Retried():
                self._say("task-retried", uuid=id, **self._error(lease, outcome.error))
            case Failed(dead=str(reason)):
                self._say("task-rejected", uuid=id, requeue=False, reason=reason)
            case Failed():
                self._say("task-failed", uuid=id, **self._error(lease, outcome.error))
            case Revoked(reason):
                self.revoked(
                    id,
                    terminated=reason == "terminated",
                    signum=signum,
                    expired=reason == "expired",
                )
            case Lost(reason):
                last = lease.is_last_start(self._app.broker.max_deliveries)
                if last:
                    lost = {"exception": f"WorkerLostError({reason!r})", "traceback": ""}
                    self._say("task-failed", uuid=id, **lost)
                else:
                    self._say("task-rejected", uuid=id, requeue=True, reason=reason)
            case Released():
                self._say("task-rejected", uuid=id, requeue=True, reason="released")
            case Replaced() | Ignored():
                word = "replaced" if isinstance(outcome, Replaced) else "ignored"
                self._say("task-rejected", uuid=id, requeue=False, reason=word)

    def revoked(self, id: str, *, terminated: bool, signum: int | None, expired: bool) -> None:
        """A message was revoked."""
        self._say(
            "task-revoked",
            uuid=id,
            terminated=terminated,
            signum=None if signum is None else signal.Signals(signum).name,
            expired=expired,
        )

    def beat(self, now: float, *, active: int, processed: int, force: bool = False) -> None:
        """Say how the worker is, if it is time (of a steady clock), or `force`d."""
        if now < self._beat_at and not force:
            return
        self._beat_at = now + EVENT_BEAT
        vital = {
            "freq": EVENT_BEAT,
            "active": active,
            "processed": processed,
            "loadavg": _load(),
            **_SOFTWARE,
        }
        if not self._greeted:
            self._greeted = True
            self._say("worker-online", **vital)
        self._say("worker-heartbeat", **vital)

    def offline(self, *, active: int, processed: int) -> None:
        """The worker stops."""
        vital = {"freq": EVENT_BEAT, "active": active, "processed": processed}
        self._say("worker-offline", **vital, loadavg=_load(), **_SOFTWARE)

    def next_beat(self) -> float | None:
        """Return when `beat()` is due (of a steady clock); None while nobody listens."""
        return self._beat_at if self.heard else None

    def flush(self, broker: Broker) -> None:
        """Append what was said to the stream."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        try:
            self._heard = broker.emit(pending)
        except BrokerError:
            self.dropped += len(pending)  # they are news: nobody would want them later

    def _say(self, type: str, **fields: Any) -> None:
        if len(self._pending) >= _MOST:
            self.dropped += 1
            return
        from liteq.events.form import encode  # late: see `received()`

        self._pending.append(encode(type, self._app, self._hostname, fields))

    # What is shown

    def _shown_result(self, result: bytes | None) -> str | None:
        if result is None:
            return None
        conf = self._app.conf
        try:
            value = serializers.loads(result, conf.result_serializer, conf.accept_content)
        except Exception as exc:  # noqa: BLE001 (pickle may raise anything)
            return f"<unreadable: {type(exc).__name__}>"
        return self._app.redactor.text(value)

    def _error(self, lease: Lease, error: bytes) -> Mapping[str, Any]:
        fields = failure.read(error)
        secrets = self.secrets(lease)
        return {
            "exception": hide(self._shown_exception(fields), secrets),
            "traceback": hide(fields["traceback"], secrets),
        }

    def _shown_exception(self, fields: dict[str, Any]) -> str:
        """Return the repr of an exception, as its class has it from `BaseException`; with its
        text for arguments where those are not known."""
        args = failure.arguments(fields)
        if args is None:
            args = (fields["message"],)
        text, limit = self._app.redactor.text, failure.ERROR_TEXT_LIMIT
        name = fields["type"].rpartition(".")[2]
        return cut(f"{name}({', '.join(text(arg, limit=limit) for arg in args)})")

    def secrets(self, lease: Lease) -> set[str]:
        """Return the texts that are secret in the arguments of a call."""
        conf, task = self._app.conf, self._app.tasks.get(lease.task)
        try:
            message = lease.message
            args, kwargs = serializers.loads_call(
                message.body, message.content_type, conf.accept_content, self._app.cipher
            )
        except Exception:  # noqa: BLE001 (pickle may raise anything)
            return set()
        names = () if task is None else task.all_parameters
        sensitive = () if task is None else task.sensitive
        from liteq.showing import in_front  # late: see `received()`

        front = in_front(message)
        return self._app.redactor.secrets(args, kwargs, names, sensitive, front)


def _load() -> list[float]:
    return [round(value, 2) for value in os.getloadavg()]
