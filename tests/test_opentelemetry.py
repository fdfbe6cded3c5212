"""One trace from who calls to what runs, with the SDK's own exporter in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import world
from api import forget_current
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from liteq import Liteq, Secret, batch, chain
from liteq.body import Body
from liteq.contrib.opentelemetry import LiteqInstrumentor
from liteq.delivery import Delivery
from liteq.executor import Executor, ExecutorSettings
from liteq.inline import InlineWorker, attempt_with
from liteq.message import Message
from liteq.outcome import Outcome


class Traced:
    """An app whose spans are kept, and a worker that runs its calls here."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("test")
        self.instrumentor = LiteqInstrumentor()
        self.instrumentor.instrument(tracer_provider=provider, **options)
        self.clock = world.FakeClock()
        self.app = app = Liteq("shop", broker="memory://", clock=self.clock)

        @app.task(name="add")
        def add(*numbers: int) -> int:
            with self.tracer.start_as_current_span("inside"):
                return sum(numbers)

        @app.task(name="fail")
        def fail() -> None:
            raise ValueError("no")

        @app.task(name="login", sensitive=["card"])
        def login(password: str, card: str, pin: Secret[str]) -> None:
            try:
                raise KeyError(f"{password} {card}")
            except KeyError as exc:
                raise ValueError(f"{pin.reveal()} at redis://u:elsewhere@h") from exc

        @app.task(name="again", bind=True)
        def again(task: Any) -> None:
            if task.request.retries < 2:
                raise task.retry(countdown=0)

    def run(self) -> None:
        settings = ExecutorSettings(
            clock=self.clock, hostname="w@host", redactor=self.app.redactor
        )
        executor = Executor(self.app.tasks, settings)
        with InlineWorker(self.app.broker, attempt_with(executor)) as worker:
            for _ in worker.run_due():
                pass

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        [span] = self.spans(name)
        return span


@pytest.fixture
def traced(request: pytest.FixtureRequest) -> Iterator[Traced]:
    made = Traced(**getattr(request, "param", {}))
    yield made
    made.instrumentor.uninstrument()
    forget_current()


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def test_a_call_and_its_run_are_in_the_trace_of_who_made_it(traced: Traced) -> None:
    with traced.tracer.start_as_current_span("request"):
        made = traced.app.tasks["add"].delay(1, 2)
    traced.run()
    request, create = traced.one("request"), traced.one("create default")
    wait, process = traced.one("wait default"), traced.one("process default")
    assert parent_of(create) == id_of(request)
    assert parent_of(wait) == parent_of(process) == id_of(create)
    assert parent_of(traced.one("inside")) == id_of(process)
    assert len({span.context.trace_id for span in traced.exporter.get_finished_spans()}) == 1  # type: ignore[union-attr]
    assert create.kind is trace.SpanKind.PRODUCER
    assert process.kind is trace.SpanKind.CONSUMER
    assert dict(process.attributes or {}) == {
        "messaging.system": "liteq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "default",
        "messaging.message.id": made.id,
        "messaging.message.conversation_id": made.id,
        "messaging.client.id": "w@host",
        "liteq.task.name": "add",
        "liteq.task.retries": 0,
        "liteq.task.state": "SUCCESS",
    }
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_call_from_a_coroutine_is_in_the_trace_of_who_made_it(traced: Traced) -> None:
    async def main() -> None:
        with traced.tracer.start_as_current_span("request"):
            await traced.app.tasks["add"].adelay(1, 2)

    asyncio.run(main())
    traced.run()

    create = traced.one("create default")
    assert parent_of(create) == id_of(traced.one("request"))
    assert parent_of(traced.one("process default")) == id_of(create)


def test_a_call_in_place_is_in_the_trace_around_it(traced: Traced) -> None:
    with traced.tracer.start_as_current_span("request") as request:
        traced.app.tasks["add"].apply((1, 2))
        assert trace.get_current_span() is request

    process = traced.one("process default")
    assert parent_of(process) == id_of(traced.one("request"))
    assert parent_of(traced.one("inside")) == id_of(process)
    assert not traced.spans("wait default")


def test_the_retries_of_a_call_in_place_are_in_the_trace_around_it(traced: Traced) -> None:
    with traced.tracer.start_as_current_span("request") as request:
        traced.app.tasks["again"].apply()

    spans = traced.spans("process default")
    assert len(spans) == 3
    assert {one.context.trace_id for one in spans if one.context is not None} == {
        request.get_span_context().trace_id
    }


def test_a_failure_is_an_error_with_its_type(traced: Traced) -> None:
    traced.app.tasks["fail"].delay()
    traced.run()
    span = traced.one("process default")
    assert span.status.status_code is trace.StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "builtins.ValueError"
    assert [event.name for event in span.events] == ["exception"]


def test_each_attempt_is_made_by_the_one_before_it(traced: Traced) -> None:
    traced.app.tasks["again"].delay()
    traced.run()
    creates, runs = traced.spans("create default"), traced.spans("process default")
    assert [(span.attributes or {})["liteq.task.retries"] for span in runs] == [0, 1, 2]
    assert [parent_of(run) for run in runs] == [id_of(create) for create in creates]
    assert [parent_of(create) for create in creates[1:]] == [id_of(run) for run in runs[:2]]
    assert all(span.status.status_code is not trace.StatusCode.ERROR for span in runs)
    assert [event.name for event in runs[0].events] == ["retry"]


def test_a_workflow_is_one_trace_even_when_nobody_began_one(traced: Traced) -> None:
    add = traced.app.tasks["add"]
    line = chain(add.s(1), add.s(2), add.s(3)).delay()
    traced.run()
    assert line.get(timeout=0) == 6
    runs = traced.spans("process default")
    assert len(runs) == 3
    assert len({span.context.trace_id for span in runs}) == 1  # type: ignore[union-attr]
    assert len(traced.spans("wait default")) == 1  # the others waited for their inputs
    roots = {(span.attributes or {})["messaging.message.conversation_id"] for span in runs}
    assert len(roots) == 1


@pytest.mark.parametrize("traced", [{"use_links": True}], indirect=True)
def test_a_run_can_be_a_trace_of_its_own_with_a_link(traced: Traced) -> None:
    traced.app.tasks["add"].delay(1)
    traced.run()
    create, process = traced.one("create default"), traced.one("process default")
    assert process.parent is None
    assert [link.context.span_id for link in process.links] == [id_of(create)]


def test_headers_of_the_program_stay_beside_the_trace(traced: Traced) -> None:
    made = traced.app.tasks["add"].apply_async((1,), headers={"tenant": "x"})
    headers = traced.app.broker.get([made.id])[made.id].message.headers or {}
    assert headers["tenant"] == "x"
    assert headers["traceparent"].startswith("00-")


def test_nothing_is_made_once_it_is_off(traced: Traced) -> None:
    traced.instrumentor.uninstrument()
    made = traced.app.tasks["add"].delay(1)
    traced.run()
    assert traced.app.broker.get([made.id])[made.id].message.headers is None
    assert [s.name for s in traced.exporter.get_finished_spans()] == ["inside"]


def test_the_instrumentor_is_found_by_its_entry_point() -> None:
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    points = project["project"]["entry-points"]["opentelemetry_instrumentor"]
    assert points == {"liteq": "liteq.contrib.opentelemetry:LiteqInstrumentor"}


def test_no_secret_of_a_call_is_in_the_event_of_its_exception(traced: Traced) -> None:
    login = traced.app.tasks["login"]
    login.delay("PASSWORD-1", "CARD-0002", Secret("PIN-000003"))

    traced.run()

    [event] = traced.one("process default").events
    told = dict(event.attributes or {})
    assert event.name == "exception"
    assert told["exception.type"] == "ValueError"
    assert told["exception.message"] == "******** at redis://u:********@h"
    text = str(told["exception.stacktrace"])
    assert "KeyError: '******** ********'" in text
    for secret in ("PASSWORD-1", "CARD-0002", "PIN-000003", "elsewhere"):
        assert secret not in str(told)


def run_together(app: Liteq, clock: Any, results: list[Any]) -> list[Outcome]:
    """Run the messages of these calls as one run."""
    stored = app.broker.get([result.id for result in results])
    deliveries = [Delivery(Message.unpack(stored[one.id].packed)) for one in results]
    settings = ExecutorSettings(clock=clock, redactor=app.redactor)
    body = Body()
    try:
        return batch.run(
            Executor(app.tasks, settings), deliveries, lambda place, said: False, body
        )
    finally:
        body.close()


@pytest.mark.parametrize("fails", [False, True])
def test_calls_of_one_run_have_a_span_each_and_leave_none_behind(
    traced: Traced, *, fails: bool
) -> None:
    @traced.app.task(name="many", flush_every=10)
    def many(calls: list[Any]) -> None:
        with traced.tracer.start_as_current_span("inside"):
            if fails:
                raise ValueError("no")

    with traced.tracer.start_as_current_span("request"):
        results = [many.delay(number) for number in range(3)]

    run_together(traced.app, traced.clock, results)

    spans = traced.spans("process default")
    assert [span.attributes["messaging.message.id"] for span in spans if span.attributes] == [
        result.id for result in results
    ]
    assert len({span.context.trace_id for span in traced.exporter.get_finished_spans()}) == 1
    state = "FAILURE" if fails else "SUCCESS"
    assert {span.attributes["liteq.task.state"] for span in spans if span.attributes} == {state}
    inside = traced.one("inside")
    assert inside.parent is not None
    assert inside.parent.span_id == spans[0].context.span_id
    assert not trace.get_current_span().get_span_context().is_valid
