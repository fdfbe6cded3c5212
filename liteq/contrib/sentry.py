"""Sentry: one event for each task that has failed, with its name and id.

    sentry_sdk.init(dsn=…, integrations=[LiteqIntegration()])

in the worker, and in the programs that send, so that their traces go on in the worker. A
retry is no error, nor is what a task lists in `throws`. What liteq itself logs about a
failure makes no second event. Arguments are attached only if `send_default_pii` is on,
and then redacted. What is secret in them is hidden in all that is sent of the attempt: the
texts of exceptions, the variables of frames, breadcrumbs, spans. The events of a child are
sent before it ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any, Final

import sentry_sdk
from sentry_sdk.integrations import Integration
from sentry_sdk.integrations.logging import ignore_logger
from sentry_sdk.scope import should_send_default_pii
from sentry_sdk.scrubber import EventScrubber
from sentry_sdk.utils import event_from_exception, iter_event_frames

from liteq import signals
from liteq.context import noted
from liteq.redaction import HIDDEN, hide, mask_url

__all__ = ["LiteqIntegration"]

_UID: Final = "liteq.sentry"
_ATTRIBUTE: Final = "_sentry"  # of the running attempt's context
_FLUSH: Final = 2.0  # seconds that a child waits for its events to be sent


class LiteqIntegration(Integration):
    """Tells Sentry what liteq's signals tell."""

    identifier = "liteq"

    @staticmethod
    def setup_once() -> None:
        """Connect the receivers, once for the process."""
        for signal, receiver in (
            (signals.before_task_publish, _publishing),
            (signals.task_prerun, _begin),
            (signals.task_failure, _failed),
            (signals.task_internal_error, _broke),
            (signals.task_postrun, _end),
            (signals.worker_process_shutdown, _leave),
        ):
            signal.connect(receiver, weak=False, dispatch_uid=_UID)
        # They say what the signals say, too.
        ignore_logger("liteq.executor")
        ignore_logger("liteq.worker")


class _Scrubber(EventScrubber):
    """Hides the secrets of a task's calls from what is sent of their run: what goes by the name
    of one, their texts wherever they stand, and values that are nothing but one, however short.
    Sentry's own scrubber, which knows none of them, comes after it. Types and stacks, by which
    events are grouped, stay as they are."""

    def __init__(self, task: Any, calls: Sequence[tuple[Any, Any]]) -> None:
        """`calls`: the arguments of each, positional and by keyword."""
        super().__init__(denylist=[], recursive=True, send_default_pii=True)
        self._task, self._calls = task, calls
        self._redactor = task.app.redactor
        given = task.sensitive
        self._names = frozenset((given,) if isinstance(given, str) else given)

    def __call__(self, event: Any, _hint: Any) -> Any:
        self.scrub_event(event)
        return event

    def _found(self, **least: int) -> set[str]:
        """Looked for when there is an event: not every attempt has one."""
        named = self._task.all_parameters, self._task.sensitive
        return set().union(
            *(self._redactor.secrets(*given, *named, **least) for given in self._calls)
        )

    @cached_property
    def _secrets(self) -> set[str]:
        return self._found()

    @cached_property
    def _values(self) -> set[str]:
        """The same and the short ones, which may stand in any word: as a value of their own, or
        as its repr, which frames have of their variables."""
        found = self._found(least=1)
        raw = {repr(one.encode("utf-8", "replace")) for one in found}
        return {*found, *map(repr, found), *raw}

    def scrub_event(self, event: Any) -> None:
        for frame in iter_event_frames(event):
            if (frame.get("module") or "").partition(".")[0] == "liteq":
                frame.pop("vars", None)  # arguments in tuples, which have no names there
        super().scrub_event(event)
        for part in ("exception", "breadcrumbs"):
            for value in (event.get(part) or {}).get("values") or ():
                self._show(value, "value", "message")
        for span in event.get("spans") or ():
            self._show(span, "description")
        self._show(event, "message")
        self.scrub_dict(event.get("logentry"))

    def _show(self, holder: dict[str, Any], *fields: str) -> None:
        for field in fields:
            if field in holder:
                holder[field] = self._shown(holder[field])

    def scrub_dict(self, d: object) -> None:
        if isinstance(d, dict):
            for name, value in d.items():
                is_secret = name in self._names or self._redactor.is_secret(name)
                d[name] = HIDDEN if is_secret else self._shown(value)

    def _shown(self, value: Any) -> Any:
        if isinstance(value, str):
            if value in self._values:
                return HIDDEN
            return mask_url(hide(value, self._secrets))
        if isinstance(value, (list, tuple)):
            return [self._shown(member) for member in value]
        self.scrub_dict(value)
        return value


def _is_on() -> bool:
    return sentry_sdk.get_client().get_integration(LiteqIntegration) is not None


def _publishing(headers: dict[str, Any], **_: Any) -> None:
    if not _is_on():
        return
    origin = {
        "sentry-trace": sentry_sdk.get_traceparent(),
        "baggage": sentry_sdk.get_baggage(),
    }
    headers.update({name: value for name, value in origin.items() if value})


class _Open:
    """The scope and the transaction of an attempt, or of all those of one run."""

    def __init__(self, scoped: AbstractContextManager[Any], span: Any) -> None:
        self._scoped, self._span = scoped, span
        self._failed = False
        self.attempts = 0  # that have not ended

    def end(self, state: str) -> None:
        """End an attempt, and with the last of them the transaction."""
        self.attempts -= 1
        self._failed |= state == "FAILURE"
        if self.attempts == 0:
            self._span.set_status("internal_error" if self._failed else "ok")
            self._span.__exit__(None, None, None)
            self._scoped.__exit__(None, None, None)


def _begin(sender: Any, task_id: str, args: Any, kwargs: Any, **_: Any) -> None:
    if not _is_on():
        return
    request = sender.request
    run = request.run
    found = None if run is None else vars(run).get(_ATTRIBUTE)
    if found is None:
        calls = (
            [(args, kwargs)] if run is None else [(one.args, one.kwargs) for one in run.calls]
        )
        found = _enter(sender, task_id, request, calls)
        if run is not None:
            setattr(run, _ATTRIBUTE, found)
    found.attempts += 1
    setattr(request, _ATTRIBUTE, found)


def _enter(task: Any, id: str, request: Any, calls: Sequence[tuple[Any, Any]]) -> _Open:
    scoped = sentry_sdk.isolation_scope()
    scope = scoped.__enter__()
    scope.clear_breadcrumbs()
    scope.add_event_processor(_Scrubber(task, calls))
    transaction = sentry_sdk.continue_trace(
        _texts(request),
        op="queue.process",
        name=task.name,
        source="task",
    )
    transaction.set_data("messaging.system", "liteq")
    if request.run is None:
        _describe(scope, task, id, request)
        transaction.set_data("messaging.message.id", id)
        transaction.set_data("messaging.message.retry.count", request.retries)
    else:  # it is none of its calls: they say themselves what they failed with
        scope.set_transaction_name(task.name, source="task")
        scope.set_tag("liteq.task", task.name)
        scope.set_context("liteq", {"task": task.name, "calls": len(calls)})
        transaction.set_data("messaging.batch.message_count", len(calls))
    span = sentry_sdk.start_transaction(transaction)
    span.__enter__()
    return _Open(scoped, span)


def _end(sender: Any, state: str, **_: Any) -> None:
    request = sender.request
    found = noted(request, _ATTRIBUTE)
    if found is not None:
        delattr(request, _ATTRIBUTE)
        found.end(state)


def _failed(
    sender: Any, task_id: str, exception: BaseException, args: Any, kwargs: Any, **_: Any
) -> None:
    """Capture what a task failed with: in its child, or, for one whose process was killed,
    in the worker."""
    if not _is_on() or isinstance(exception, _expected(sender)):
        return
    request = getattr(sender, "request", None)
    with _scope_of(request) as scope:
        _describe(scope, sender, task_id, request)
        if should_send_default_pii():
            redacted = getattr(sender, "redacted", None)
            if redacted is not None and args is not None:
                shown = redacted(args, kwargs)
                scope.set_context("liteq arguments", {"args": shown[0], "kwargs": shown[1]})
        _capture(exception)


def _broke(sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
    """Capture what a hook raised, or liteq itself."""
    if not _is_on():
        return
    request = getattr(sender, "request", None)
    with _scope_of(request) as scope:
        _describe(scope, sender, task_id, request)
        _capture(exception)


@contextmanager
def _scope_of(request: Any) -> Iterator[Any]:
    """Give a scope for an event of an attempt. Where that does not run, as in the worker when
    its process was killed, the trace is the one that its message was made in."""
    if request is None or noted(request, _ATTRIBUTE) is not None:
        with sentry_sdk.new_scope() as scope:
            yield scope
    else:
        with sentry_sdk.isolation_scope() as scope:
            scope.continue_trace(_texts(request))
            yield scope


def _texts(request: Any) -> dict[str, str]:
    return {k: v for k, v in (request.headers or {}).items() if isinstance(v, str)}


def _capture(exception: BaseException) -> None:
    client = sentry_sdk.get_client()
    event, hint = event_from_exception(
        exception,
        client_options=client.options,
        mechanism={"type": "liteq", "handled": False},
    )
    sentry_sdk.capture_event(event, hint=hint)


def _leave(**_: Any) -> None:
    if _is_on():
        sentry_sdk.flush(timeout=_FLUSH)


def _describe(scope: Any, task: Any, id: str, request: Any) -> None:
    name = getattr(task, "name", None) or str(task)
    scope.set_transaction_name(name, source="task")
    scope.set_tag("liteq.task", name)
    scope.set_tag("liteq.task_id", id)
    about: dict[str, Any] = {"task": name, "id": id}
    if request is not None and request.id == id:
        about["retries"] = request.retries
        about["root_id"] = request.root_id
        about["queue"] = (request.delivery_info or {}).get("routing_key")
    scope.set_context("liteq", about)


def _expected(task: Any) -> tuple[type[BaseException], ...]:
    throws = getattr(task, "throws", None) or ()
    return (throws,) if isinstance(throws, type) else tuple(throws)
