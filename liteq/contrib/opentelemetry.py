"""OpenTelemetry: where a call was made, how long it waited, and how it ran, in one trace.

`LiteqInstrumentor().instrument()` in the program that sends and in the worker. The names
are those of the semantic conventions for messaging (in development as of 1.44):

- `create {queue}` (producer): a message was made, in the trace of who made it. Its context
  travels in the message's headers as W3C `traceparent`, `tracestate` and `baggage`.
- `wait {queue}`: from when the message was due until its task began.
- `process {queue}` (consumer): one attempt. A retry is made by the attempt before it, and
  so is its child; the members of a workflow are in the trace of who sent it.

Needs the extra `otel`, which is the API alone; the program chooses the SDK and exporters.
Exporters with threads are to be made in `worker_process_init`: threads do not survive a fork.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any, Final

from opentelemetry import context, propagate, trace
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from liteq import __version__, signals
from liteq.carrying import text_of
from liteq.context import noted
from liteq.einfo import ExceptionInfo
from liteq.ids import made_at

__all__ = ["LiteqInstrumentor"]

SYSTEM: Final = "liteq"
_MOST_ROOTS: Final = 1024  # workflows whose first span is remembered, to join the others to
_ATTRIBUTE: Final = "_otel"  # of the running attempt's context


class LiteqInstrumentor:
    """Makes spans of what signals tell. There is one for each process.

    `use_links`: an attempt begins a trace of its own, with a link to where its message was
    made, as the conventions prefer; by default it is a part of that trace.
    """

    _instance: LiteqInstrumentor | None = None

    def __new__(cls, *_: Any, **__: Any) -> LiteqInstrumentor:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
            cls._instance._setup()
        return cls._instance

    def _setup(self) -> None:
        self.is_instrumented_by_opentelemetry = False
        self._tracer: trace.Tracer = trace.NoOpTracer()
        self._use_links = False
        self._roots: OrderedDict[str, trace.SpanContext] = OrderedDict()

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return what is instrumented, as `opentelemetry-instrument` asks."""
        return ["liteq-queue"]

    def instrument(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        use_links: bool = False,
        **_: Any,
    ) -> None:
        """Begin; `tracer_provider` is the global one unless it is given."""
        self._tracer = trace.get_tracer("liteq", __version__, tracer_provider)
        self._use_links = use_links
        for signal, receiver in self._receivers():
            signal.connect(receiver, weak=False, dispatch_uid="liteq.opentelemetry")
        self.is_instrumented_by_opentelemetry = True

    def uninstrument(self, **_: Any) -> None:
        """Stop."""
        for signal, receiver in self._receivers():
            signal.disconnect(receiver, dispatch_uid="liteq.opentelemetry")
        self._roots.clear()
        self.is_instrumented_by_opentelemetry = False

    def _receivers(self) -> list[tuple[signals.Signal, Any]]:
        return [
            (signals.before_task_publish, self._create),
            (signals.task_prerun, self._begin),
            (signals.task_failure, self._fail),
            (signals.task_retry, self._retry),
            (signals.task_postrun, self._end),
            (signals.task_internal_error, self._break),
        ]

    # Where a message is made

    def _create(self, sender: str, headers: dict[str, Any], routing_key: str, **_: Any) -> None:
        id, root = headers["id"], headers.get("root_id") or headers["id"]
        parent = context.get_current()
        if not trace.get_current_span(parent).get_span_context().is_valid:
            parent = self._joined(root, parent)
        span = self._tracer.start_span(
            f"create {routing_key}",
            parent,
            SpanKind.PRODUCER,
            _attributes("create", routing_key, sender, id, root, headers.get("retries") or 0),
        )
        propagate.inject(headers, trace.set_span_in_context(span, parent))
        span.end()
        if root not in self._roots:
            self._roots[root] = span.get_span_context()
            if len(self._roots) > _MOST_ROOTS:
                self._roots.popitem(last=False)

    def _joined(self, root: str, parent: context.Context) -> context.Context:
        """Have the members of a workflow that was sent outside of any trace in one."""
        known = self._roots.get(root)
        if known is None:
            return parent
        return trace.set_span_in_context(trace.NonRecordingSpan(known), parent)

    # Where it runs

    def _begin(self, sender: Any, task_id: str, **_: Any) -> None:
        request = sender.request
        # A call in place is made where it runs, if it is in no message that says otherwise.
        here = context.get_current() if request.is_eager else context.Context()
        made = propagate.extract(_texts(request.headers), context=here)
        queue = str((request.delivery_info or {}).get("routing_key", ""))
        self._wait(request, queue, made)
        told = _attributes(
            "process", queue, sender.name, task_id, request.root_id or task_id, request.retries
        )
        if request.hostname:
            told["messaging.client.id"] = request.hostname
        origin = trace.get_current_span(made).get_span_context()
        links = [Link(origin)] if self._use_links and origin.is_valid else None
        parent = context.Context() if self._use_links else made
        span = self._tracer.start_span(
            f"process {queue}", parent, SpanKind.CONSUMER, told, links=links
        )
        token = None
        if request.run is None or request.run.calls[0] is request:  # its body is in one span
            token = context.attach(trace.set_span_in_context(span, made))
        setattr(request, _ATTRIBUTE, (span, token))

    def _wait(self, request: Any, queue: str, made: context.Context) -> None:
        """Show how long the message has waited, where that is known."""
        message = request.message
        if message is None or request.is_eager or request.deliveries > 1:
            return
        due = message.run_at or (None if request.waited else made_at(message.id))
        if due is None:
            return
        if not trace.get_current_span(made).get_span_context().is_valid:
            return
        span = self._tracer.start_span(
            f"wait {queue}", made, SpanKind.INTERNAL, start_time=int(due * 1e9)
        )
        span.end()

    def _fail(self, sender: Any, einfo: ExceptionInfo, **_: Any) -> None:
        if (found := _running(sender)) is not None:
            span, _token = found
            kind = einfo.type
            _record(span, einfo)
            span.set_attribute("error.type", f"{kind.__module__}.{kind.__qualname__}")
            span.set_status(Status(StatusCode.ERROR, kind.__qualname__))

    def _retry(self, sender: Any, reason: Any, **_: Any) -> None:
        if (found := _running(sender)) is not None:
            cause = getattr(reason, "exc", None) or reason
            found[0].add_event("retry", {"reason": type(cause).__qualname__})

    def _end(self, sender: Any, state: str, **_: Any) -> None:
        self._finish(sender, state)

    def _break(self, sender: Any, einfo: ExceptionInfo, **_: Any) -> None:
        if (found := _running(sender)) is not None:
            _record(found[0], einfo)

    @staticmethod
    def _finish(task: Any, state: str) -> None:
        found = _running(task)
        if found is None:
            return
        span, token = found
        delattr(task.request, _ATTRIBUTE)
        span.set_attribute("liteq.task.state", state)
        if token is not None:
            context.detach(token)
        span.end()


def _record(span: trace.Span, einfo: ExceptionInfo) -> None:
    """Add the event of an exception, as `Span.record_exception` does, which would tell the
    secrets that are in its text and in those of its causes."""
    kind = einfo.type
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    told = {
        "exception.type": f"{module}{kind.__qualname__}",
        "exception.message": einfo.hidden(text_of(einfo.exception)),
        "exception.stacktrace": einfo.hidden(einfo.traceback),
        "exception.escaped": "False",
    }
    span.add_event("exception", told)


def _running(task: Any) -> tuple[trace.Span, Any] | None:
    """Return the span of the attempt that runs here. (A worker's main process, which also
    tells of failures, has none.)"""
    request = getattr(task, "request", None)
    found: tuple[trace.Span, Any] | None = noted(request, _ATTRIBUTE)
    return found


def _attributes(
    operation: str, queue: str, task: str, id: str, root: str, retries: int
) -> dict[str, Any]:
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": queue,
        "messaging.message.id": id,
        "messaging.message.conversation_id": root,
        "liteq.task.name": task,
        "liteq.task.retries": retries,
    }


def _texts(headers: Mapping[str, Any] | None) -> dict[str, str]:
    return {key: value for key, value in (headers or {}).items() if isinstance(value, str)}
