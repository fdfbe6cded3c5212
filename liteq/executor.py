"""One delivery of a message becomes one outcome: the life of an attempt.

The executor has the message read (`liteq.delivery`), calls the hooks, sends the signals,
calls the task, and says what came of it. It touches no store, no queue and no clock but the
one it is given; the user's code is all the input and output there is.

The order, which is Celery's:

    task_prerun · before_start · the body
    success:  on_success · task_success · log · after_return · task_postrun
    failure:  on_failure · task_failure · log · after_return · task_postrun
    retry:    on_retry   · task_retry   · log · task_postrun
    ignored, rejected, replaced, interrupted:  log · task_postrun

All of it happens before the outcome is returned, so it is a part of the attempt: if the
process dies in a hook, the message is delivered again. (Celery stores the outcome before
the hooks, so a death there loses them.) Only `before_start` and the body can change the
outcome, and are under the soft time limit. What another hook raises is logged.
"""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from liteq import context, logfields, states
from liteq.body import Body, is_coroutine
from liteq.brokers.values import Note
from liteq.clock import Clock, FromNow, system_clock
from liteq.context import Context, Report
from liteq.delivery import Delivery, Reader
from liteq.djangothread import bridge
from liteq.einfo import ExceptionInfo, line, log, summary
from liteq.exceptions import (
    DecodeError,
    DecryptionError,
    Ignore,
    Interrupted,
    InvalidSignature,
    MessageTooLarge,
    NotRegistered,
    Reject,
    Replaced,
    Retry,
    TaskPredicate,
)
from liteq.loggers import get_logger
from liteq.message import ENVELOPE, ID, IGNORE_RESULT, QUEUE, TASK, Message, Packed
from liteq.options import due_at
from liteq.outcome import Failed, Ignored, Outcome, Released, Retried, Revoked, Succeeded
from liteq.plan import Plan, TaskLike, is_async
from liteq.redaction import hide
from liteq.retry import exhausted, give_up
from liteq.serializers import dumps, dumps_result
from liteq.signals import (
    RAISED,
    Signal,
    task_failure,
    task_internal_error,
    task_postrun,
    task_prerun,
    task_retry,
    task_success,
)
from liteq.texts import readable

if TYPE_CHECKING:
    from liteq.ciphers import Cipher
    from liteq.redaction import Redactor
    from liteq.signing import Signer

__all__ = [
    "Attempt",
    "Ended",
    "ExceptionInfo",
    "Executor",
    "ExecutorSettings",
    "TaskLike",
]

logger = get_logger("liteq.executor")

_new: Final = tuple.__new__  # a third of what Succeeded(...) costs, for each task
_PASSING: Final = (KeyboardInterrupt, SystemExit, Interrupted)  # through an eager call


class ExecutorSettings(NamedTuple):
    """What holds for every attempt of a process.

    `accept`: formats that bodies may have. `max_result_size`: bytes; a result above it
    fails its task (None: no limit). `signer`: what checks messages and inputs before they
    are read, and signs results. `cipher`: what encrypts and decrypts secrets.
    `max_body_size`: bytes of arguments that are read at all.
    `redactor`: what is secret in arguments is hidden from texts about errors.
    `interruptible`: Ctrl-C is for the program around the attempts, and goes through them.
    """

    accept: Sequence[str] = ("json",)
    result_serializer: str = "json"
    max_result_size: int | None = 1_048_576
    hostname: str = ""
    clock: Clock = system_clock
    signer: Signer | None = None
    cipher: Cipher | None = None
    max_body_size: int | None = None
    redactor: Redactor | None = None
    interruptible: bool = False


class Ended(NamedTuple):
    """An attempt that is over: its outcome and, for who runs tasks in place, the very
    value that the task returned or the exception it ended with."""

    outcome: Outcome
    value: Any = None
    exc: BaseException | None = None


class Executor:
    """Runs attempts of the tasks it is given. Threads may share one; it keeps no state."""

    def __init__(
        self, tasks: Mapping[str, TaskLike], settings: ExecutorSettings | None = None
    ) -> None:
        self.tasks = tasks
        self.settings = settings or ExecutorSettings()
        logfields.mark(context.log_fields)
        self._reader = Reader(
            accept=self.settings.accept,
            result_serializer=self.settings.result_serializer,
            signer=self.settings.signer,
            cipher=self.settings.cipher,
            most=self.settings.max_body_size,
        )

    def run(
        self, delivery: Delivery, report: Report | None = None, body: Body | None = None
    ) -> Outcome:
        """Run one attempt and return its outcome. Never raises.

        `report` takes what the task says about itself on the way. `body` is
        what can be interrupted; it keeps the event loop for `async def` tasks.
        """
        if body is None:
            return self.attempt(delivery, report).outcome
        return self._attempt(delivery, report, body).outcome

    async def arun(
        self, delivery: Delivery, report: Report | None = None, body: Body | None = None
    ) -> Outcome:
        """Run one attempt of an `async def` task as a part of the current asyncio task.

        Raises `CancelledError` if that is cancelled: there is no outcome then, and no
        hook is called, as when a process is killed.
        """
        attempt = self.prepare(delivery, report)
        if isinstance(attempt, Ended):
            return attempt.outcome
        token = context.push(attempt.context)
        try:
            return (await attempt.arun(body or Body())).outcome
        finally:
            context.pop(token)

    def attempt(self, delivery: Delivery, report: Report | None = None) -> Ended:
        """Run one attempt in place, and return its value or exception as well.

        With `delivery.eager` a result that cannot be serialised is no error: nobody is
        going to carry it.
        """
        if (task := self.tasks.get(delivery.packed[TASK])) is not None:
            task._plan = None  # tests change the classes of tasks between two calls
        body = Body(bridge())  # the caller's thread has its connections
        try:
            return self._attempt(delivery, report, body)
        finally:
            body.close()

    def is_async(self, name: str) -> bool:
        """Tell whether a task is known to be an `async def`."""
        task = self.tasks.get(name)
        return task is not None and is_async(task.run)

    def _attempt(self, delivery: Delivery, report: Report | None, body: Body) -> Ended:
        attempt = self.prepare(delivery, report)
        if isinstance(attempt, Ended):
            return attempt
        token = context.push(attempt.context)
        try:
            return attempt.run(body)
        finally:
            context.pop(token)

    def prepare(self, delivery: Delivery, report: Report | None) -> Attempt | Ended:
        """Return the attempt, ready to run, or how it ended before it began."""
        packed = delivery.packed
        task = self.tasks.get(packed[TASK])
        plan: Plan | None = None if task is None else task._plan
        if plan is None or plan.task is not task:  # that of the task which this is a copy of
            found = self._look_up(delivery)
            if isinstance(found, Ended):
                return found
            plan = found
        expires_at = delivery.expires_at
        if expires_at is not None and expires_at < self.settings.clock.now():
            return Ended(Revoked("expired"))
        try:
            if not delivery.eager:
                self._reader.admit(packed, delivery.inputs)
            message = Message.unpack_unusual(packed)  # now: if it cannot be read it is not run
            args, kwargs = self._reader.arguments(delivery, plan, message)
            about = Context.of(
                packed,
                delivery.number,
                args,
                kwargs,
                message=message,
                task=plan.task,
                hostname=self.settings.hostname,
                report=report,
                is_eager=delivery.eager,
            )
        except (InvalidSignature, DecryptionError, MessageTooLarge) as exc:
            return _dead(exc, str(exc))
        except Exception as exc:  # noqa: BLE001 (pickle may raise anything)
            return _dead(exc, f"undecodable body: {summary(exc)}")
        if message is not None and message.checkpoint is not None:
            from liteq import checkpoints  # late: few tasks have any

            # Now: in its body it would be an error of the task's, which may begin anew then.
            try:
                checkpoints.read(message.checkpoint, self.settings.cipher)
            except DecodeError as exc:
                return _dead(exc, f"unreadable checkpoint: {exc}")
        if delivery.inputs:
            about.waited = True
        return Attempt(self.settings, plan, about, packed, args, kwargs)

    def _look_up(self, delivery: Delivery) -> Plan | Ended:
        name = delivery.packed[TASK]
        task = self.tasks.get(name)
        if task is None:
            reason = f"unknown task {name!r}"
            return _dead(NotRegistered(reason), reason)
        try:
            plan = Plan(task)
            object.__setattr__(task, "_plan", plan)  # no change of the task
        except Exception as exc:  # options of the task that make no sense
            if delivery.eager:
                raise
            logger.exception("Task %s[%s] cannot be prepared", name, delivery.packed[ID])
            return Ended(Failed(ExceptionInfo(exc).record()), exc=exc)
        return plan


class Together(Protocol):
    """What the attempts of one run for many calls tell of their errors. One of them may say
    what is secret in another."""

    @property
    def secrets(self) -> Collection[str]: ...
    def hidden(self, text: str) -> str: ...
    def einfo(self, exc: BaseException) -> ExceptionInfo: ...
    def is_new(self, exc: BaseException) -> bool: ...


class Attempt:
    """One attempt on its way from the arguments to the outcome."""

    __slots__ = (
        "_began",
        "args",
        "context",
        "id",
        "kwargs",
        "packed",
        "plan",
        "settings",
        "together",
    )

    def __init__(
        self,
        settings: ExecutorSettings,
        plan: Plan,
        about: Context,
        packed: Packed,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.settings = settings
        self.plan = plan
        self.context = about
        self.packed = packed
        self.id: str = packed[ID]
        self.args = args
        self.kwargs = kwargs
        self.together: Together | None = None
        self._began = 0.0

    # The body

    def run(self, body: Body) -> Ended:
        try:
            work = self.begin()
            value, error = body.call(work, self.args, self.kwargs)
            if is_coroutine(value):
                value, error = body.run(value)
            try:
                return self._end(value, error)
            finally:
                del error  # it holds this frame, which would hold it: see `Body.call`
        except Exception as exc:  # noqa: BLE001 (a bug of ours must not end the process)
            return self._broke(exc)

    async def arun(self, body: Body) -> Ended:
        try:
            work = self.begin()
            value, error = body.call(work, self.args, self.kwargs)
            if is_coroutine(value):
                value, error = await body.arun(value)
            try:
                return self._end(value, error)
            finally:
                del error
        except Exception as exc:  # noqa: BLE001
            return self._broke(exc)

    def begin(self) -> Callable[..., Any]:
        """Say that the attempt begins; return what its body is."""
        plan = self.plan
        if task_prerun.receivers:
            self._tell(
                task_prerun,
                plan.task,
                task_id=self.id,
                task=plan.task,
                args=self.args,
                kwargs=self.kwargs,
            )
        if plan.track_started:
            self._report_started()
        self._began = self.settings.clock.steady()
        return plan.function if plan.before_start is None else self._work

    def _work(self, *args: Any, **kwargs: Any) -> Any:
        plan = self.plan
        if plan.before_start is not None:
            plan.before_start(self.id, self.args, self.kwargs)
        return plan.function(*args, **kwargs)

    def _report_started(self) -> None:
        report = self.context.report
        if report is not None and not self.packed[IGNORE_RESULT]:  # its results are ignored
            meta = {"pid": os.getpid(), "hostname": self.settings.hostname}
            report(Note(states.STARTED, dumps(meta, root="meta")))

    def begin_together(self) -> Ended | None:
        """Begin an attempt whose body is run together with that of others; how it ended, if it
        could not."""
        try:
            self.begin()
        except Exception as exc:  # noqa: BLE001 (as in `run()`)
            return self._broke(exc)
        return None

    # The end

    def end(self, value: Any, error: BaseException | None) -> Ended:
        """End an attempt whose body was run together with that of others."""
        try:
            return self._end(value, error)
        except Exception as exc:  # noqa: BLE001 (as in `run()`)
            return self._broke(exc)

    def _end(self, value: Any, error: BaseException | None) -> Ended:
        if self.context.retry is not None:
            error = self._retry_asked_for(self.context.retry, error)
        if self.context.replaced is not None:
            error = self._replaced_already(self.context.replaced, error)
        if error is None:
            return self._succeeded(value, self._runtime())
        if self._goes_through(error):
            raise error
        runtime = self._runtime()
        if self.context.interrupted and _is_interruption(error):
            return self._interrupted(error, runtime)
        if error is not self.context.given_up and self.plan.policy.catches(error):
            error = self._retry_by_itself(error)
        elif isinstance(error, Retry):
            error = self._limited(error)
        match error:
            case Retry():
                return self._retried(error, runtime)
            case Replaced() if error.outcome is not None:
                return self._replaced(error, runtime)
            case Ignore():
                return self._ignored(error, runtime)
            case Reject():
                return self._rejected(error, runtime)
            case _:
                return self._failed(error, runtime)

    def _goes_through(self, exc: BaseException) -> bool:
        """Tell whether this is for the program that the attempt is made in."""
        if self.context.is_eager:
            return isinstance(exc, _PASSING)
        return self.settings.interruptible and isinstance(exc, KeyboardInterrupt)

    def _runtime(self) -> float:
        return self.settings.clock.steady() - self._began

    def _succeeded(self, value: Any, runtime: float) -> Ended:
        plan = self.plan
        try:
            result = self._result(value)
        except Exception as exc:  # noqa: BLE001 (an encoder may be the user's)
            return self._failed(exc, runtime)
        if plan.on_success is not None:
            try:
                plan.on_success(value, self.id, self.args, self.kwargs)
            except Reject as rejection:  # the one exception that Celery lets through
                return self._rejected(rejection, runtime)
            except BaseException as exc:  # noqa: BLE001 (the user's code)
                self._hook_failed("on_success", exc)
        if task_success.receivers:
            self._tell(task_success, plan.task, result=value, runtime=runtime)
        if logger.isEnabledFor(logging.INFO):
            self._log(
                logging.INFO,
                "Task %s[%s] succeeded in %.3fs",
                runtime,
                outcome="succeeded",
                runtime=runtime,
            )
        if plan.after_return is not None or task_postrun.receivers:
            self._after(states.SUCCESS, value)
        about = self.context
        trail = None if about.trail is None else self._trail()
        outcome = _new(Succeeded, (result, runtime, trail, about.added))
        return _new(Ended, (outcome, value, None))

    def _result(self, value: Any) -> bytes | None:
        if self.packed[IGNORE_RESULT] and not self._is_waited_for():  # its results are ignored
            return None
        try:
            result = dumps_result(value, self.settings.result_serializer, self.settings.cipher)
        except Exception:
            if self.context.is_eager and not self._is_waited_for():
                return None  # nobody is going to carry it
            raise
        limit = self.settings.max_result_size
        if limit is not None and len(result) > limit:
            raise MessageTooLarge(
                f"the result of {self.plan.task.name} takes {len(result)} bytes, more than the "
                f"{limit} of task_max_body_size: store it elsewhere and return where it is"
            )
        if self.settings.signer is not None:
            # Reading all of the message takes longer than to sign the value.
            envelope = self.packed[-1]
            part = envelope is not None and '"gather":' in envelope
            message = self.context.message if part else None
            result = self.settings.signer.seal(
                result, self.id, message.gathers if message else ()
            )
        return result

    def _is_waited_for(self) -> bool:
        """Tell whether other tasks are given the value, be it kept as a result or not."""
        if self.packed[ENVELOPE] is None:  # no envelope, which would say so
            return False
        message = self.context.message
        return message is not None and (message.has_links or message.gather is not None)

    def _failed(self, exc: BaseException, runtime: float) -> Ended:
        plan = self.plan
        einfo = self._einfo(exc)
        error = einfo.record()
        self._call_hook("on_failure", exc, self.id, self.args, self.kwargs, einfo)
        if task_failure.receivers:
            self._tell(
                task_failure,
                plan.task,
                task_id=self.id,
                exception=exc,
                args=self.args,
                kwargs=self.kwargs,
                traceback=exc.__traceback__,
                einfo=einfo,
            )
        if isinstance(exc, plan.throws):
            level, info = logging.INFO, None
        else:
            level = logging.ERROR
            info = exc if self.together is None or self.together.is_new(exc) else None
        self._log(
            level,
            "Task %s[%s] failed in %.3fs: %s",
            runtime,
            summary(exc),
            outcome="failed",
            runtime=runtime,
            exc_info=info,
        )
        self._after(states.FAILURE, exc, einfo)
        dead = "it failed, and acks_on_failure is off" if plan.keeps_failed else None
        return Ended(Failed(error, runtime, dead, self._trail()), exc=exc)

    def _retry_asked_for(
        self, retry: Retry, error: BaseException | None
    ) -> BaseException | None:
        """Return the retry that the task asked for with `throw=False`, and what it raised
        after that as its reason. `Ignore` and the like have the last word."""
        if error is None:
            return retry
        if not isinstance(error, Exception) or isinstance(error, TaskPredicate):
            return error
        if retry.exc is None:
            retry.exc = error
        return retry

    def _replaced_already(self, replaced: Replaced, error: BaseException | None) -> Any:
        """Return that the call is replaced, whatever the body did after it had said so:
        `except Exception` around `self.replace()` must not make a success of it. What it
        raised then is logged. Retrying and rejecting are later decisions, and stay."""
        if error is None or error is replaced:
            return replaced
        if isinstance(error, (Retry, Reject)) or not isinstance(error, Exception):
            return error
        self._log(
            logging.WARNING,
            "Task %s[%s] raised after it was replaced: %s",
            summary(error),
            outcome="replaced",
            exc_info=error,
        )
        return replaced

    def _retry_by_itself(self, exc: BaseException) -> BaseException:
        """Return what `Task.retry` makes of an exception that `autoretry_for` lists:
        `Retry`, or what the task fails with when its retries are used up."""
        options = self.plan.policy.options(self.context.retries)
        where = exc.__traceback__
        try:
            raised = self.plan.task.retry(exc=exc, **options)
        except BaseException as answer:  # noqa: BLE001 (the user's code)
            raised = answer
        exc.__traceback__ = where  # as the body raised it: without our own frames
        if raised is not exc and raised.__context__ is None:
            raised.__context__ = exc
        return raised if isinstance(raised, BaseException) else exc

    def _limited(self, retry: Retry) -> BaseException:
        """Return a retry, or, of one that `Task.retry` has not counted, since the user made
        it, what the task fails with when its retries are used up."""
        most = self.plan.policy.max_retries
        if hasattr(retry, "changes") or not exhausted(self.context.retries, most):
            return retry
        return give_up(
            retry.exc if isinstance(retry.exc, BaseException) else None,
            name=self.plan.task.name,
            id=self.id,
            args=self.args,
            kwargs=self.kwargs,
        )

    def _retried(self, retry: Retry, runtime: float) -> Ended:
        reason = retry.exc if isinstance(retry.exc, BaseException) else retry
        einfo = self._einfo(reason)
        run_at = _due(retry, self.settings.clock.now())
        self._call_hook("on_retry", reason, self.id, self.args, self.kwargs, einfo)
        if task_retry.receivers:
            self._tell(
                task_retry, self.plan.task, request=self.context, reason=retry, einfo=einfo
            )
        self._log(
            logging.INFO,
            "Task %s[%s] retry: %s",
            line(retry),
            outcome="retried",
            runtime=runtime,
        )
        self._postrun(states.RETRY, retry)
        changes = self._changes(getattr(retry, "changes", None) or {})  # set by Task.retry
        return Ended(Retried(run_at, einfo.record(), changes or None, runtime), exc=retry)

    def _ignored(self, exc: Ignore, runtime: float) -> Ended:
        self._log(logging.INFO, "Task %s[%s] ignored", outcome="ignored", runtime=runtime)
        self._postrun(states.IGNORED, exc)
        return Ended(Ignored(runtime), exc=exc)

    def _replaced(self, exc: Replaced, runtime: float) -> Ended:
        """End an attempt in whose place another call runs, under the same id. To signals
        it is an ignored one, as in Celery."""
        self._log(
            logging.INFO,
            "Task %s[%s] replaced in %.3fs: %s",
            runtime,
            exc.sig.get("task") if isinstance(exc.sig, Mapping) else line(exc.sig),
            outcome="replaced",
            runtime=runtime,
        )
        self._postrun(states.IGNORED, exc)
        graph, added = exc.outcome.graph, self.context.added
        if added is not None:
            graph = graph.joined(added)
        return Ended(exc.outcome._replace(graph=graph, runtime=runtime), exc=exc)

    def _rejected(self, exc: Reject, runtime: float) -> Ended:
        """End an attempt that refused its message.

        Put back, it is due at once, and that counts as no retry; nor as a delivery that
        `max_deliveries` limits, for nothing died. The message says how often it was, so that
        a task can tell. Otherwise it failed, but by its own will: neither `on_failure` nor
        `task_failure` hears of it, as in Celery.
        """
        error = self._einfo(exc).record()
        self._log(
            logging.WARNING,
            "Task %s[%s] rejected: %s",
            line(exc.reason),
            outcome="rejected",
            runtime=runtime,
        )
        self._postrun(states.REJECTED, exc)
        outcome: Outcome
        if exc.requeue:
            message = self._message()
            envelope = message._replace(requeued=message.requeued + 1).pack()[-1]
            changes = {"retries": self.context.retries, "envelope": envelope}
            now = FromNow(self.settings.clock.now(), 0.0)
            outcome = Retried(now, error, changes, runtime)
        else:
            outcome = Failed(error, runtime, children=self._trail())
        return Ended(outcome, exc=exc)

    def _interrupted(self, exc: BaseException, runtime: float) -> Ended:
        """End an attempt that was left at its checkpoint, since the worker stops. It goes on in
        another, and what it has been here counts as little as what a stop gives back."""
        self._log(
            logging.INFO,
            "Task %s[%s] interrupted after %.3fs: the worker stops; it goes on from its "
            "checkpoint at the next start",
            runtime,
            outcome="released",
            runtime=runtime,
        )
        self._postrun(states.REJECTED, exc)
        return Ended(Released(), exc=exc)

    def _changes(self, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what a retry changes in the message, its last checkpoint included."""
        if not self.context.rewritten:
            return changes
        message = self._message()
        changed = message.with_packed(changes)._replace(checkpoint=message.checkpoint)
        if (signer := self.settings.signer) is not None:
            changed = signer.sign(changed)
        return {**changes, "envelope": changed.pack()[-1]}

    def _message(self) -> Message:
        message = self.context.message
        assert message is not None  # it is being run
        return message

    def _broke(self, exc: Exception) -> Ended:
        """Fail the task for an error in the machinery around it."""
        if self.context.is_eager:
            raise exc
        self._internal_error("Task %s[%s] failed outside of its code", exc)
        return Ended(Failed(self._einfo(exc).record()), exc=exc)

    # What every end has

    def _after(self, state: str, value: Any, einfo: ExceptionInfo | None = None) -> None:
        if self.plan.after_return is not None:
            self._call_hook(
                "after_return", state, value, self.id, self.args, self.kwargs, einfo
            )
        self._postrun(state, value)

    def _tell(self, signal: Signal, sender: Any, **named: Any) -> None:
        """Send a signal. In a worker nothing that a receiver raises changes how the attempt
        ends; the program that an attempt is made in may be left from a receiver."""
        caught = Exception if self.context.is_eager else BaseException
        signal.deliver(sender, named, caught, self._receiver_failed)

    def _receiver_failed(self, receiver: Any, name: str, exc: BaseException) -> None:
        """Log what a receiver raised, without what is secret in the arguments it was given."""
        if self._goes_through(exc):
            raise exc
        args = (receiver, name)
        log(get_logger("liteq.signals"), logging.ERROR, RAISED, args, exc, {}, self._secrets())

    def _postrun(self, state: str, value: Any) -> None:
        if task_postrun.receivers:
            self._tell(
                task_postrun,
                self.plan.task,
                task_id=self.id,
                task=self.plan.task,
                args=self.args,
                kwargs=self.kwargs,
                retval=value,
                state=state,
            )

    def _call_hook(self, name: str, *args: Any) -> None:
        hook = getattr(self.plan, name)
        if hook is not None:
            try:
                hook(*args)
            except BaseException as exc:  # noqa: BLE001 (the user's code)
                self._hook_failed(name, exc)

    def _hook_failed(self, name: str, exc: BaseException) -> None:
        if self.context.is_eager or self._goes_through(exc):
            raise exc
        self._internal_error("Task %s[%s]: %s raised", exc, name)

    def _internal_error(self, text: str, exc: BaseException, *values: Any) -> None:
        self._log(logging.ERROR, text, *values, outcome="error", exc_info=exc)
        if task_internal_error.receivers:
            self._tell(
                task_internal_error,
                self.plan.task,
                task_id=self.id,
                args=self.args,
                kwargs=self.kwargs,
                request=self.context,
                exception=exc,
                traceback=exc.__traceback__,
                einfo=self._einfo(exc),
            )

    def _einfo(self, exc: BaseException) -> ExceptionInfo:
        if self.together is not None:
            return self.together.einfo(exc)
        return ExceptionInfo(exc, self._secrets(), self.settings.redactor)

    def _secrets(self) -> Collection[str]:
        return self.own_secrets() if self.together is None else self.together.secrets

    def own_secrets(self) -> set[str]:
        """Return the texts in the arguments that are not to be shown. Not for every
        attempt: all of the arguments are looked through."""
        redactor, task = self.settings.redactor, self.plan.task
        if redactor is None:
            return set()
        named = getattr(task, "all_parameters", ()), getattr(task, "sensitive", ())
        return redactor.secrets(self.args, self.kwargs, *named)

    def _trail(self) -> str | None:
        trail = self.context.trail
        if trail is None:
            return None
        return json.dumps([getattr(child, "id", child) for child in trail])

    def _log(self, level: int, text: str, *values: Any, **said: Any) -> None:
        """Log how the attempt goes; `said` is as in `_write`. The filters and what a task has
        set on its request are the user's, and in a worker no error of theirs may change how
        the attempt ends, or keep one that broke from ending."""
        if not logger.isEnabledFor(level):
            return
        try:
            self._write(level, text, *values, **said)
        except Exception:
            if self.context.is_eager:
                raise
            traceback.print_exc()

    def _write(
        self,
        level: int,
        text: str,
        *values: Any,
        outcome: str,
        runtime: float | None = None,
        exc_info: BaseException | None = None,
    ) -> None:
        if runtime is None:
            runtime = self._runtime()
        extra = {
            "task": self.plan.task.name,
            "task_id": self.id,
            "attempt": self.context.retries + self.context.deliveries,
            "queue": self.packed[QUEUE],
            "outcome": outcome,
            "duration_ms": round(runtime * 1000, 3),
        }
        name = self.context.shadow or self.plan.task.name
        secrets: Collection[str] = () if outcome == "succeeded" else self._secrets()
        shown = [
            self._hidden(value, secrets) if secrets and type(value) is str else value
            for value in values
        ]
        log(logger, level, text, (name, self.id, *shown), exc_info, extra, secrets)

    def _hidden(self, text: str, secrets: Collection[str]) -> str:
        return hide(text, secrets) if self.together is None else self.together.hidden(text)


def _is_interruption(error: BaseException) -> bool:
    """Tell whether this is what a checkpoint raised, alone or in a `TaskGroup`."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(Interrupted)[1] is None
    return isinstance(error, Interrupted)


def _dead(exc: BaseException, reason: str) -> Ended:
    """End an attempt that could not begin, keeping its message as a dead letter."""
    reason = readable(reason)
    logger.error("A message cannot be run: %s", reason)
    return Ended(Failed(ExceptionInfo(exc).record(), dead=reason), exc=exc)


def _due(retry: Retry, now: float) -> float:
    """Return when a retry is to start, a naive datetime being UTC. Raises `ValueError` for
    a time that never comes: NaN, infinity, beyond the year 9999."""
    if isinstance(retry.when, datetime):
        due = due_at(None, retry.when, now, UTC)
    else:
        due = due_at(retry.when, None, now, UTC)
    return FromNow(now, 0.0) if due is None else due
