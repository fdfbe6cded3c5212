"""What a worker says, to its log and to signal receivers, about messages whose fate only
its parent process knows: no child lived to tell, or none ever saw them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from liteq import context, signals
from liteq.brokers.values import Aside, Lease
from liteq.context import Context
from liteq.einfo import ExceptionInfo, line
from liteq.exceptions import NotRegistered, TimeLimitExceeded, WorkerLostError
from liteq.loggers import get_logger
from liteq.message import ACKS_LATE, QUEUE
from liteq.plan import TaskLike
from liteq.publishing import protocol_headers
from liteq.serializers import loads_call

if TYPE_CHECKING:
    from liteq.ciphers import Cipher
    from liteq.signing import Signer

__all__ = ["Notices", "Request"]

logger = get_logger("liteq.worker")

_MOST_UNKNOWN = 1_000  # names of tasks, of which each is said once


class Request(Context):
    """A request as the worker's own process knows it, with the names of Celery's `Request`
    for what a `Context` calls otherwise."""

    @property
    def name(self) -> str | None:
        """The name of the task, as `task`."""
        return self.task

    task_name = name
    type = name

    @property
    def task_id(self) -> str | None:
        """The id of the call, as `id`."""
        return self.id

    @property
    def request_dict(self) -> dict[str, Any]:
        """The headers of the message, with its arguments and how it came: a new dictionary
        each time."""
        told = {} if self.message is None else protocol_headers(self.message)
        for name in _BESIDE_HEADERS:
            told[name] = getattr(self, name)
        return told


_BESIDE_HEADERS = (
    "args",
    "correlation_id",
    "delivery_info",
    "hostname",
    "kwargs",
    "properties",
    "reply_to",
)


class Notices:
    """Speaks for one worker. `sender` is what task signals name as the consumer, `tasks`
    gives the tasks by name, `announce` sends a signal, `secrets` gives the texts of a call that
    are not to be logged of what its receivers raise, `accept` has the formats in which
    bodies are read for receivers, once `signer` has found their signatures right; `cipher`
    decrypts what is secret in them."""

    def __init__(
        self,
        sender: object,
        tasks: Callable[[], Mapping[str, TaskLike]],
        *,
        announce: Callable[..., None],
        secrets: Callable[[Lease], Collection[str]],
        hostname: str,
        accept: Sequence[str],
        signer: Signer | None = None,
        cipher: Cipher | None = None,
    ) -> None:
        self._sender = sender
        self._announce = announce
        self._secrets = secrets
        self._tasks = tasks
        self._hostname = hostname
        self._accept = tuple(accept)
        self._signer = signer
        self._cipher = cipher
        self._unknown: set[str] = set()

    def received(self, lease: Lease) -> None:
        """A message was claimed. Call only if the signal has receivers: it is not cheap."""
        request = self._request(lease)
        self._tell(lease, signals.task_received, self._sender, request=request)

    def put_aside(self, lease: Lease, why: Aside) -> None:
        """A claim met a message that it did not take."""
        match why:
            case "parked":
                self.parked(lease)
            case "expired":
                self.expired(lease)
            case "damaged":
                self.damaged(lease)

    def damaged(self, lease: Lease) -> None:
        """Another program has changed in the store what a message is."""
        reason = "damaged in the store"
        logger.error(
            "Task %s[%s] was %s by another program: it is a dead letter now",
            lease.task,
            lease.id,
            reason,
            extra=_about(lease, "failed"),
        )
        self._dead(lease, reason)

    def parked(self, lease: Lease) -> None:
        """A message was left for a worker that knows its task. Each name is said once."""
        reason = f"unknown task {line(lease.task)!r}"
        if lease.task not in self._unknown:
            if len(self._unknown) >= _MOST_UNKNOWN:  # anybody can make names up
                self._unknown.clear()
            self._unknown.add(lease.task)
            logger.warning(
                "%s: its messages wait for a worker that knows it (is its module imported "
                "here, or does another worker have newer code?); the first is %s",
                reason,
                lease.id,
                extra=_about(lease, "parked"),
            )
        if signals.task_unknown.receivers:
            self._tell(
                lease,
                signals.task_unknown,
                self._sender,
                message=lease.outline,
                exc=NotRegistered(reason),
                name=lease.task,
                id=lease.id,
            )

    def expired(self, lease: Lease) -> None:
        """A message was revoked because it had expired before its start."""
        logger.info(
            "Task %s[%s] expired before its start",
            lease.task,
            lease.id,
            extra=_about(lease, "revoked"),
        )
        self._revoked(lease, terminated=False, signum=None, expired=True)

    def terminated(self, lease: Lease, signum: int) -> None:
        """A run was ended because somebody revoked it with `terminate`."""
        logger.warning(
            "Task %s[%s] was terminated", lease.task, lease.id, extra=_about(lease, "revoked")
        )
        self._revoked(lease, terminated=True, signum=signum, expired=False)

    def timed_out(self, lease: Lease, limit: float) -> None:
        """A run was killed at its hard time limit."""
        logger.error(
            "Task %s[%s] was killed at its time limit of %g s",
            lease.task,
            lease.id,
            limit,
            extra=_about(lease, "failed"),
        )
        self._failed(lease, TimeLimitExceeded(limit))

    def lost(self, lease: Lease, reason: str, max_deliveries: int) -> None:
        """The process died under a run."""
        last = lease.is_last_start(max_deliveries)
        if not last:
            what = "it is started again"
        elif lease.packed[ACKS_LATE]:
            what = f"start {lease.delivery} was the last allowed, it is a dead letter now"
        else:
            what = "it has acks_late=False, so it has failed"
        logger.error(
            "Task %s[%s] was lost, %s: %s",
            lease.task,
            lease.id,
            reason,
            what,
            extra=_about(lease, "lost"),
        )
        if not last:
            return
        self._failed(lease, WorkerLostError(reason))
        if lease.packed[ACKS_LATE]:
            self._dead(lease, reason)

    def undecodable(self, lease: Lease, reason: str) -> None:
        """A child could not make sense of a message, which is a dead letter now."""
        if signals.task_rejected.receivers:
            outline = lease.outline
            self._tell(lease, signals.task_rejected, self._sender, message=outline, exc=None)
        self._dead(lease, reason)

    def _dead(self, lease: Lease, reason: str) -> None:
        if signals.task_dead.receivers:
            named = {"id": lease.id, "name": lease.task, "reason": reason}
            self._tell(lease, signals.task_dead, self._sender, **named)

    def _failed(self, lease: Lease, exc: Exception) -> None:
        if not signals.task_failure.receivers:
            return
        request = self._request(lease)
        token = context.push(request)  # `sender.request` is the attempt's, as in a child
        try:
            self._tell(
                lease,
                signals.task_failure,
                self._task(lease),
                task_id=lease.id,
                exception=exc,
                args=request.args,
                kwargs=request.kwargs,
                traceback=None,
                einfo=ExceptionInfo(exc),
            )
        finally:
            context.pop(token)

    def _revoked(
        self, lease: Lease, *, terminated: bool, signum: int | None, expired: bool
    ) -> None:
        if signals.task_revoked.receivers:
            self._tell(
                lease,
                signals.task_revoked,
                self._task(lease),
                request=self._request(lease),
                terminated=terminated,
                signum=signum,
                expired=expired,
            )

    def _tell(self, lease: Lease, signal: signals.Signal, sender: Any, **named: Any) -> None:
        self._announce(signal, sender, secrets=partial(self._secrets, lease), **named)

    def _task(self, lease: Lease) -> Any:
        """Return the task, or its name where this worker does not have it."""
        return self._tasks().get(lease.task, lease.task)

    def _request(self, lease: Lease) -> Context:
        args, kwargs = self._arguments(lease)
        return Request.of(
            lease.packed,
            lease.delivery,
            args,
            kwargs,
            message=lease.outline,
            task=self._tasks().get(lease.task),
            hostname=self._hostname,
        )

    def _arguments(self, lease: Lease) -> tuple[Any, Any]:
        try:
            if self._signer is not None:
                self._signer.check(lease.packed)
            message = lease.message
            return loads_call(message.body, message.content_type, self._accept, self._cipher)
        except Exception:  # noqa: BLE001 (pickle may raise anything; the child says so)
            return None, None


def _about(lease: Lease, outcome: str) -> dict[str, Any]:
    return {
        "task": lease.task,
        "task_id": lease.id,
        "attempt": lease.delivery,
        "queue": lease.packed[QUEUE],
        "outcome": outcome,
    }
