"""Who has no key can neither make a message that runs, nor change one, nor a result."""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import world
from api import forget_current

from liteq import Liteq, chain, chord, group
from liteq.brokers.base import Broker
from liteq.brokers.redis import RedisBroker
from liteq.brokers.values import Lease
from liteq.canvas import Graph
from liteq.exceptions import ImproperlyConfigured, InvalidSignature, MessageTooLarge, Reject
from liteq.executor import Executor, ExecutorSettings
from liteq.ids import new_id
from liteq.inline import InlineWorker, attempt_with
from liteq.message import GATHER, Edge, Message, Take
from liteq.outcome import Succeeded
from liteq.serializers import dumps, dumps_call
from liteq.signals import before_task_publish, task_received
from liteq.signing import Signer
from liteq.worker import Worker

OLD, NEW, OTHER = ("old-" * 8, "new-" * 8, "oth-" * 8)


@pytest.fixture(autouse=True)
def _current() -> Iterator[None]:
    yield
    forget_current()


def make_app(broker: Broker, *keys: str, **settings: Any) -> Liteq:
    app = Liteq("shop", broker="memory://", clock=broker.clock, security_keys=keys, **settings)
    app.broker = broker
    is_late: list[bool] = []

    @app.task(name="add")
    def add(*numbers: int) -> int:
        return sum(numbers)

    @app.task(name="total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(name="again", bind=True)
    def again(self: Any, n: int) -> int:
        if self.request.retries == 0:
            raise self.retry(args=(n + 1,), countdown=0)
        return n

    @app.task(name="back", bind=True)
    def back(self: Any, n: int) -> int:
        if self.request.deliveries == 1:
            raise Reject("not yet", requeue=True)
        return n

    @app.task(name="become", bind=True)
    def become(self: Any) -> None:
        raise self.replace(add.s(1, 2) | add.s(3))

    @app.task(name="show")
    def show(*values: Any, **named: Any) -> str:
        return f"{values} {dict(sorted(named.items()))}"

    @app.task(name="late", bind=True)
    def late(self: Any, n: int) -> int:
        if not is_late:
            is_late.append(True)
            raise ValueError("not yet")
        return n

    @app.task(name="fail")
    def fail(*_: Any, n: int = 0) -> None:
        raise ValueError("no")

    @app.task(name="tell")
    def tell(request: Any, exc: BaseException, traceback: str) -> str:
        return f"{request.id} {exc}"

    @app.task(name="split", bind=True)
    def split(self: Any, *numbers: int) -> None:
        raise self.replace(group(add.s(n) for n in numbers))

    @app.task(name="more", bind=True)
    def more(self: Any, n: int) -> int:
        self.add_to_chord(group(add.s(n), split.s(n, n)))
        return n

    return app


def run(app: Liteq, most: int | None = None) -> None:
    """Run what is due, `most` calls of it, as the children of a worker of this app would."""
    settings = ExecutorSettings(
        clock=app.clock,
        signer=app.signer,
        accept=tuple(app.conf.accept_content),
        max_body_size=app.conf.task_max_body_size,
    )
    executor = Executor(app.tasks, settings)
    with InlineWorker(app.broker, attempt_with(executor)) as worker:
        for _ in islice(worker.run_due(), most):
            pass


def reason(app: Liteq, id: str) -> str | None:
    return app.broker.get([id])[id].dead


# What is signed works


def test_calls_retries_and_workflows_run_with_signatures(broker: Broker) -> None:
    app = make_app(broker, NEW)
    t = app.tasks
    made = [
        t["add"].delay(2, 3),
        t["again"].delay(1),
        t["back"].delay(7),
        t["become"].delay(),
        chain(t["add"].s(1), t["add"].s(2)).delay(),
        chord([t["add"].s(n) for n in range(4)], t["total"].s()).delay(),
        (group(t["add"].s(1), group(t["add"].s(2)) | t["total"].s()) | t["total"].s()).delay(),
    ]
    run(app)
    assert [one.get(timeout=0) for one in made] == [5, 2, 7, 6, 3, 6, 3]
    several = group(t["add"].s(1), t["add"].s(2)).delay()
    run(app)
    assert several.get(timeout=0) == [1, 2]
    assert app.AsyncResult(several.id).get(timeout=0) == [1, 2]


def test_what_a_workflow_becomes_while_it_runs_is_taken_as_it_comes(broker: Broker) -> None:
    app = make_app(broker, NEW)
    add, show, split, more = (app.tasks[name] for name in ("add", "show", "split", "more"))
    graph = Graph().add("a", add.s(6)).add("b", split.s(3, 4))
    graph.add("c", show.s(), after={"under": "b", "over": "a"})
    inner = chain(add.s(0), group(split.si(1, 2), add.si(3)))
    made = [
        (chain(split.s(1, 2), show.s()), "([1, 2],) {}"),
        (chord([split.s(1, 2), add.s(3)], show.s()), "([[1, 2], 3],) {}"),
        (chord([inner, add.s(4)], show.s()), "([[[1, 2], 3], 4],) {}"),
        (chord([add.s(1), more.s(2)], show.s()), "([1, 2, [2, [2, 2]]],) {}"),
        (graph, "() {'over': 6, 'under': [3, 4]}"),
    ]
    results = [sig.delay() for sig, _ in made]
    whole = chord([add.s(1), inner], add.s()).delay().parent
    run(app)
    assert [one.get(timeout=0) for one in results] == [shown for _, shown in made]
    assert app.AsyncResult(whole.id).get(timeout=0) == [1, [[1, 2], 3]]


def test_an_error_callback_is_called_with_what_failed(broker: Broker) -> None:
    app = make_app(broker, NEW)
    fail, tell = app.tasks["fail"], app.tasks["tell"]
    failed = fail.apply_async(link_error=tell.s().set(task_id="told"))
    run(app)
    assert app.AsyncResult("told").get(timeout=0) == f"{failed.id} no"


@pytest.mark.parametrize("keys", [(), (NEW,)], ids=["without keys", "with keys"])
def test_an_error_callback_is_told_the_same_by_a_worker_and_in_place(
    broker: Broker, keys: tuple[str, ...]
) -> None:
    app = make_app(broker, *keys)
    told: list[Any] = []

    @app.task(name="note")
    def note(request: Any, exc: BaseException, traceback: str) -> None:
        told.append(
            (request.id, request.task, tuple(request.args or ()), request.kwargs, str(exc))
        )

    add, fail = app.tasks["add"], app.tasks["fail"]

    def failing(name: str) -> Any:
        last = fail.s(4, 5).set(task_id=name)
        return chain(add.s(1, 2), last).on_error(note.s())

    failing("sent").apply_async()
    fail.apply_async((6,), {"n": 7}, task_id="lone, sent", link_error=note.s())
    run(app)
    failing("in place").apply()
    fail.apply((6,), {"n": 7}, task_id="lone, in place", link_error=note.s())
    assert told == [
        ("sent", "fail", (3, 4, 5), {}, "no"),
        ("lone, sent", "fail", (6,), {"n": 7}, "no"),
        ("in place", "fail", (3, 4, 5), {}, "no"),
        ("lone, in place", "fail", (6,), {"n": 7}, "no"),
    ]


def test_what_failed_in_a_workflow_runs_again_and_the_rest_goes_on(broker: Broker) -> None:
    app = make_app(broker, NEW)
    chorded = chord([app.tasks["add"].s(1), app.tasks["late"].s(2)], app.tasks["total"].s())
    made = chorded.delay()
    run(app)
    app.broker.redrive([made.parent.results[1].id])
    run(app)
    assert made.get(timeout=0) == 3


def test_a_message_keeps_its_signature_through_every_store(broker: Broker) -> None:
    signer = Signer([NEW])
    message = world.make(
        time_limit=10,
        soft_time_limit=5,
        expires_at=world.START + 60.25,
        max_deliveries=7,
        result_expires=3600,
        headers={"é": [1.5, None, {"z": 1, "a": 2}]},
        group_index=3,
    )
    broker.enqueue([signer.sign(message)])
    worker = world.enlist(broker)
    [lease] = broker.claim(worker, ["default"])
    signer.check(lease.packed)


def test_a_unique_call_may_replace_another_signed_one(broker: Broker) -> None:
    app = make_app(broker, OLD)

    @app.task(name="sync", unique_key="shop", on_conflict="replace")
    def sync(shop: int, total: int) -> int:
        return total

    first = sync.delay(1, 2)
    second = sync.delay(1, 3)
    run(app)

    assert second.id == first.id
    assert first.get() == 3


def test_receivers_change_a_message_before_it_is_signed(broker: Broker) -> None:
    app = make_app(broker, NEW)

    def label(headers: Any, **_: Any) -> None:
        headers["label"] = "x"

    before_task_publish.connect(label)
    try:
        made = app.tasks["add"].delay(1)
    finally:
        before_task_publish.disconnect(label)
    run(app)
    assert made.get(timeout=0) == 1


# What is not signed, or was changed, does not run


def test_an_unsigned_message_is_a_dead_letter_with_its_reason(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(broker, NEW)
    forged = world.make("add", dumps_call((1,), {}))
    app.broker.enqueue([forged])
    with caplog.at_level(logging.ERROR, "liteq"):
        run(app)
    assert "not signed" in (reason(app, forged.id) or "")
    assert "not signed" in caplog.text
    with pytest.raises(InvalidSignature, match="not signed"):
        app.AsyncResult(forged.id).get(timeout=0)


CHANGES: dict[str, Any] = {
    "body": dumps_call((666,), {}),
    "task": "total",
    "id": "another",
    "queue": "privileged",
    "expires_at": world.START + 9999,
    "time_limit": 9.0,
    "acks_late": False,
    "headers": {"role": "admin"},
    "content_type": "pickle",
    "immutable": True,
    "keywords": ("numbers",),
    "root_id": "x",
    "stamps": {"a": ["b"]},
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_message_that_was_changed_does_not_run(field: str, clock: world.FakeClock) -> None:
    app = make_app(world.Store("memory", None, clock).open(), NEW)  # type: ignore[arg-type]
    genuine = app.sender.ready([world.make("add", dumps_call((1,), {}))])[0]
    changed = genuine._replace(**{field: CHANGES[field]})
    app.broker.enqueue([changed])
    run(app)
    assert "wrong" in (reason(app, changed.id) or "")


def test_what_the_store_changes_itself_is_not_covered(broker: Broker) -> None:
    signer = Signer([NEW])
    signed = signer.sign(world.make("add", priority=1, requeued=1))
    for changes in ({"priority": 9}, {"run_at": 5.0}, {"retries": 3}, {"requeued": 0}):
        signer.check(signed._replace(**changes).pack())


@pytest.mark.parametrize(
    "signature",
    ["", "x", "0" * 16 + ":" + "0" * 64, None, '0","v":1}', "Ü" * 16 + ":" + "é" * 64],
)
def test_a_made_up_signature_is_refused(signature: str | None) -> None:
    signer = Signer([NEW])
    genuine = signer.sign(world.make("add"))
    with pytest.raises(InvalidSignature):
        signer.check(genuine._replace(signature=signature).pack())


def moved(app: Liteq, source: str, queue: str) -> Message:
    """Return a signed call that was put from one queue into another, as who has no key may."""
    broker, message = app.broker, world.make("add", dumps_call((1,), {}), queue=source)
    genuine = app.sender.ready([message])[0]
    if isinstance(broker, RedisBroker):  # where the list and the message say it each
        broker.enqueue([genuine])
        broker._link.ask("ZREM", f"{broker._prefix}q:{source}", genuine.id)
        broker._link.ask("ZADD", f"{broker._prefix}q:{queue}", "0", genuine.id)
    else:
        broker.enqueue([genuine._replace(queue=queue)])
    return genuine


def work(app: Liteq, *queues: str) -> None:
    """Have a worker run what there is."""
    worker = Worker(app, queues=queues, pool="solo", burst=True, install_signals=False)
    assert worker.run() == 0


@pytest.mark.parametrize("queues", [["default"], ["default:2", "other:1"]])
def test_no_worker_runs_a_call_that_was_moved_to_one_of_its_queues(
    broker: Broker, queues: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(broker, NEW)
    genuine = moved(app, "vault", "default")

    work(app, *queues)

    why = reason(app, genuine.id) or ""
    assert "it was signed for 'vault'" in why or "it was changed" in why
    assert f"A message cannot be run: {why}" in caplog.text
    with pytest.raises(InvalidSignature):
        app.AsyncResult(genuine.id).get(timeout=0)


@pytest.mark.redis
def test_a_call_that_was_moved_runs_in_its_own_queue_when_it_is_redriven(
    tmp_path: Path, clock: world.FakeClock
) -> None:
    app = make_app(world.Store("redis", tmp_path, clock).open(), NEW)  # unchanged, there alone
    genuine = moved(app, "vault", "default")
    work(app, "default")

    app.broker.redrive([genuine.id])
    work(app, "vault")

    assert app.AsyncResult(genuine.id).get(timeout=0) == 1


def test_a_worker_with_keys_takes_no_lease_from_a_wake_up(broker: Broker) -> None:
    app = make_app(broker, NEW)
    add = app.tasks["add"]
    with app.worker(concurrency=1) as worker:
        world.wait_until(lambda: not worker._membership.look)
        assert add.delay(1).get(timeout=10) == 1
        late = add.apply_async((2,), countdown=1000)
        packed = broker.get([late.id])[late.id].packed
        for token in (None, 0, 1):  # it has none, so there is none to be heard and used again
            worker._take_over([Lease(1, token, 1, packed, ())])  # type: ignore[arg-type]
        assert worker._membership.standby is None
        assert worker._attempts.leases == {}
    assert late.state == "PENDING"


def test_one_key_does_not_pass_for_another(broker: Broker) -> None:
    theirs = make_app(broker, OTHER)
    made = theirs.tasks["add"].delay(1)
    ours = make_app(broker, NEW)
    run(ours)
    assert "key that is not known" in (reason(ours, made.id) or "")


def test_a_dead_letter_runs_when_its_key_is_known_and_it_is_redriven(broker: Broker) -> None:
    made = make_app(broker, OLD).tasks["add"].delay(4)
    run(make_app(broker, NEW))
    both = make_app(broker, NEW, OLD)
    both.broker.redrive([made.id])
    run(both)
    assert both.AsyncResult(made.id).get(timeout=0) == 4


def test_a_dead_letter_that_expires_is_redriven_until_it_has(broker: Broker) -> None:
    theirs = make_app(broker, OTHER)
    soon, late = (
        theirs.tasks["add"].apply_async((4,), expires=seconds) for seconds in (10.0, 60.0)
    )
    run(make_app(broker, NEW))
    broker.clock.advance(11.0)  # type: ignore[attr-defined]

    assert broker.redrive([soon.id, late.id]) == [late.id]
    assert reason(theirs, soon.id)
    run(theirs)

    assert late.get(timeout=0) == 4


def test_a_message_that_was_put_back_and_failed_runs_when_it_is_redriven(
    broker: Broker,
) -> None:
    app = make_app(broker, NEW)
    starts: list[int] = []

    @app.task(name="falter", bind=True)
    def falter(self: Any) -> None:
        starts.append(self.request.deliveries)
        if self.request.deliveries < 3:
            raise Reject("not yet", requeue=True)
        raise ValueError("no")

    made = falter.delay()
    run(app)
    app.broker.redrive([made.id])
    run(app)

    assert starts == [1, 2, 3, 1, 2, 3]


def test_a_pickle_is_not_read_before_its_signature_is(tmp_path: Any, broker: Broker) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "boom"),)

    body = pickle.dumps([(Bomb(),), {}])
    app = make_app(broker, NEW, accept_content=["json", "pickle"])
    app.broker.enqueue([world.make("add", body, content_type="pickle")])
    heard: list[Any] = []

    def hear(request: Any, **_: Any) -> None:
        heard.append(request.args)

    from liteq.workers.announcing import Announcer
    from liteq.workers.notices import Notices
    from liteq.workers.requests import Requests

    task_received.connect(hear)
    try:
        notices = Notices(
            None,
            lambda: app.tasks,
            announce=Announcer(Requests()),
            secrets=lambda _: (),
            hostname="w",
            accept=("json", "pickle"),
            signer=app.signer,
        )
        worker = world.enlist(broker)
        [lease] = broker.claim(worker, ["default"])
        notices.received(lease)
        broker.unregister(worker)
    finally:
        task_received.disconnect(hear)
    run(app)
    assert heard == [None]
    assert not (tmp_path / "boom").exists()


# Keys


def test_keys_are_exchanged_while_everything_runs(broker: Broker) -> None:
    before = make_app(broker, OLD)
    first = before.tasks["add"].delay(1)
    run(before)
    second = before.tasks["add"].delay(2)
    both = make_app(broker, NEW, OLD)  # 1. everywhere the new one beside the old
    third = both.tasks["add"].delay(3)
    run(both)
    assert [both.AsyncResult(r.id).get(timeout=0) for r in (first, second, third)] == [1, 2, 3]
    after = make_app(broker, NEW)  # 2. the old one alone is taken out
    assert after.AsyncResult(third.id).get(timeout=0) == 3
    with pytest.raises(InvalidSignature):
        after.AsyncResult(first.id).get(timeout=0)


def test_a_store_moves_to_signing_without_losing_what_waits(broker: Broker) -> None:
    unsigned = make_app(broker).tasks["add"].delay(1)
    app = make_app(broker, NEW, security_accept_unsigned=True)
    forged = app.sender.ready([world.make("add", dumps_call((1,), {}))])[0]
    app.broker.enqueue([forged._replace(body=dumps_call((2,), {}))])
    run(app)
    assert app.AsyncResult(unsigned.id).get(timeout=0) == 1
    assert "wrong" in (reason(app, forged.id) or "")


def test_a_reader_without_keys_reads_what_is_signed(broker: Broker) -> None:
    app = make_app(broker, NEW)
    made = app.tasks["add"].delay(1)
    run(app)
    assert make_app(broker).AsyncResult(made.id).get(timeout=0) == 1


def test_keys_come_from_the_environment_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("LITEQ_SECURITY_KEYS", f"{NEW},{OLD}")
    assert Liteq("shop").conf.security_keys == (NEW, OLD)
    monkeypatch.delenv("LITEQ_SECURITY_KEYS")
    (tmp_path / "keys").write_text(f"{NEW}\n{OLD}\n")
    monkeypatch.setenv("LITEQ_SECURITY_KEYS_FILE", str(tmp_path / "keys"))
    assert Liteq("shop").conf.security_keys == (NEW, OLD)


def test_a_short_key_is_refused_and_no_key_is_shown() -> None:
    with pytest.raises(ImproperlyConfigured, match="at least 16") as raised:
        Liteq("shop", security_keys=["short-key-here"])
    assert "short-key-here" not in str(raised.value)
    app = Liteq("shop", broker="memory://", security_keys=[NEW])
    assert NEW not in app.bugreport() + repr(app.signer) + repr(app.conf.table())


def test_signing_is_not_even_imported_without_keys() -> None:
    import subprocess

    code = (
        "import sys; from liteq import Liteq; app = Liteq('s', broker='memory://')\n"
        "app.task(name='t')(lambda: None).delay()\n"
        "assert 'liteq.signing' not in sys.modules and 'hmac' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What a message waits for: the edges are the store's, and anybody may write them


def signed(app: Liteq, sig: Any) -> dict[str, Message]:
    """Return the messages of a workflow as they are sent, by the names of their tasks."""
    composed = app.sender.compose(sig)
    ready = app.sender.ready(composed.messages, composed.edges)
    return {message.task: message for message in ready}


def fed(app: Liteq, target: Message, messages: list[Message], edges: list[Edge]) -> str:
    """Return why a message is a dead letter that was put into the store with these."""
    app.broker.enqueue([*messages, target], edges)
    run(app)
    return reason(app, target.id) or ""


def test_a_call_that_waits_for_nothing_is_given_no_error(broker: Broker) -> None:
    app = make_app(broker, NEW)
    call = signed(app, app.tasks["show"].s(1))["show"]
    forged = world.make("unknown", id="text of anybody's")
    why = fed(app, call, [forged], [Edge(forged.id, call.id, "failure")])
    assert "inputs from 1 others, and was signed to take from 0" in why


@pytest.mark.parametrize("parts", [0, 1])
def test_a_call_that_waits_for_nothing_is_given_no_list(broker: Broker, parts: int) -> None:
    app = make_app(broker, NEW)
    call = signed(app, app.tasks["show"].s(1))["show"]
    gather = world.make(GATHER, b"collect")
    forged = [world.make("unknown") for _ in range(parts)]
    edges = [Edge(one.id, gather.id, "part", n) for n, one in enumerate(forged)]
    why = fed(app, call, [*forged, gather], [*edges, Edge(gather.id, call.id, "success")])
    assert "inputs from 1 others, and was signed to take from 0" in why


def test_a_call_is_given_the_result_of_no_other_call(broker: Broker) -> None:
    app = make_app(broker, NEW)
    add, show = app.tasks["add"], app.tasks["show"]
    step = signed(app, add.s(1) | show.s())["show"]
    other = signed(app, add.s(1000))["add"]
    why = fed(app, step, [other], [Edge(other.id, step.id, "success")])
    assert f"an input from '{other.id}' at position 0" in why


def test_a_call_does_not_run_without_what_it_waits_for(broker: Broker) -> None:
    app = make_app(broker, NEW)
    step = signed(app, app.tasks["add"].s(1) | app.tasks["show"].s("x"))["show"]
    assert "inputs from 0 others, and was signed to take from 1" in fed(app, step, [], [])


def test_what_is_taken_is_not_exchanged_among_positions(broker: Broker) -> None:
    app = make_app(broker, NEW)
    graph = Graph().add("a", app.tasks["add"].s(1)).add("b", app.tasks["back"].s(2))
    graph.add("c", app.tasks["show"].s(), after={"over": "a", "under": "b"})
    made = signed(app, graph)
    a, b, c = made["add"], made["back"], made["show"]
    edges = [Edge(a.id, c.id, "success", 1), Edge(b.id, c.id, "success", 0)]
    assert "signed to take from" in fed(app, c, [a, b], edges)


def test_an_error_callback_is_called_for_no_other_failure(broker: Broker) -> None:
    app = make_app(broker, NEW)
    add, tell = app.tasks["add"], app.tasks["tell"]
    callback = signed(app, add.s(1).on_error(tell.s()))["tell"]
    other = signed(app, app.tasks["fail"].s())["fail"]
    why = fed(app, callback, [other], [Edge(other.id, callback.id, "failure")])
    assert f"an input from '{other.id}'" in why


def test_a_step_is_given_no_error_for_a_result(broker: Broker) -> None:
    app = make_app(broker, NEW)
    made = signed(app, app.tasks["fail"].s() | app.tasks["show"].s())
    fail, step = made["fail"], made["show"]
    why = fed(app, step, [fail], [Edge(fail.id, step.id, "failure")])
    assert f"an input of the kind 'error' from {fail.id}" in why


def test_the_body_of_a_chord_is_given_no_single_result_for_a_list(broker: Broker) -> None:
    app = make_app(broker, NEW)
    made = signed(app, chord([app.tasks["add"].s(1)], app.tasks["show"].s()))
    body, gather = made["show"], made[GATHER]
    forged = world.make("unknown", id=gather.id)
    app.broker.enqueue([forged, body], [Edge(forged.id, body.id, "success")])
    settle(app, forged.id, b"1")
    run(app)
    assert "an input of the kind 'result'" in (reason(app, body.id) or "")


def test_a_list_has_all_the_parts_that_were_signed(broker: Broker) -> None:
    app = make_app(broker, NEW)
    made = signed(
        app, chord([app.tasks["add"].s(1), app.tasks["back"].s(2)], app.tasks["show"].s())
    )
    add, body, gather = made["add"], made["show"], made[GATHER]
    edges = [Edge(add.id, gather.id, "part", 0), Edge(gather.id, body.id, "success")]
    assert "has 1 parts, and at least 2" in fed(app, body, [add, gather], edges)


def test_a_list_has_no_error_that_its_gather_would_have_failed_of(broker: Broker) -> None:
    app = make_app(broker, NEW)
    made = signed(app, chord([app.tasks["fail"].s()], app.tasks["show"].s()))
    fail, body = made["fail"], made["show"]
    gather = made[GATHER]._replace(body=b"collect")
    edges = [Edge(fail.id, gather.id, "part", 0), Edge(gather.id, body.id, "success")]
    assert "has an error in it" in fed(app, body, [fail, gather], edges)


def test_a_list_in_a_list_has_no_part_of_another_group(broker: Broker) -> None:
    app = make_app(broker, NEW)
    add, show = app.tasks["add"], app.tasks["show"]
    made = signed(app, chord([app.tasks["back"].s(2)], show.s()))
    body, gather = made["show"], made[GATHER]
    theirs = signed(app, chord([add.s(1000)], show.s()))
    for stolen, inner in (
        (theirs["add"], theirs[GATHER]),
        (made["back"], world.make(GATHER, b"fail")),  # of this group, but not in a list in it
    ):
        edges = [
            Edge(stolen.id, inner.id, "part", 0),
            Edge(inner.id, gather.id, "part", 0),
            Edge(gather.id, body.id, "success"),
        ]
        why = fed(app, body, [stolen, inner, gather], edges)
        assert f"was not signed as a part of {gather.id}" in why
        app.broker.forget([body.id, gather.id])


def test_a_call_waits_for_no_more_than_its_message_can_name() -> None:
    takes = tuple(Take(new_id(), n, "result") for n in range(20_000))
    with pytest.raises(MessageTooLarge, match="waits for 20000 calls"):
        Signer([NEW]).sign(world.make(takes=takes))


def test_what_names_nothing_is_given_what_it_waits_for_while_a_store_moves(
    broker: Broker,
) -> None:
    before = make_app(broker)
    line = chain(before.tasks["add"].s(1), before.tasks["add"].s(2)).delay()
    app = make_app(broker, NEW, security_accept_unsigned=True)
    run(app)
    assert app.AsyncResult(line.id).get(timeout=0) == 3


# Results


def settle(app: Liteq, id: str, result: bytes) -> None:
    """End a queued call as a worker without keys would."""
    worker = world.enlist(app.broker)
    [lease] = app.broker.claim(worker, ["default"])
    assert lease.id == id
    app.broker.settle(worker, lease, Succeeded(result))
    app.broker.unregister(worker)


def test_a_result_that_nobody_signed_raises(broker: Broker) -> None:
    app = make_app(broker, NEW)
    made = app.tasks["add"].delay(1)
    settle(app, made.id, dumps(666))
    with pytest.raises(InvalidSignature, match="not signed"):
        made.get(timeout=0)


def test_a_result_of_another_call_raises(broker: Broker) -> None:
    app = make_app(broker, NEW)
    first = app.tasks["add"].delay(1)
    run(app)
    stolen = app.broker.get([first.id])[first.id].result
    second = app.tasks["add"].delay(2)
    settle(app, second.id, stolen or b"")
    with pytest.raises(InvalidSignature, match=first.id):
        second.get(timeout=0)


def test_a_task_is_given_no_value_that_nobody_signed(broker: Broker) -> None:
    app = make_app(broker, NEW)
    line = chain(app.tasks["add"].s(1), app.tasks["add"].s(2)).delay()
    settle(app, line.parent.id, dumps(666))
    run(app)
    assert "not signed" in (reason(app, line.id) or "")


def test_no_value_of_another_workflow_gets_into_a_list(broker: Broker) -> None:
    app = make_app(broker, NEW)
    add, total = app.tasks["add"], app.tasks["total"]
    lone = add.delay(1000)
    run(app)
    stolen = app.broker.get([lone.id])[lone.id].result
    body = chord([add.s(1), add.s(2)], total.s()).delay()
    settle(app, body.parent.results[0].id, stolen or b"")
    run(app)
    assert "was not signed as a part of" in (reason(app, body.id) or "")


def test_a_damaged_seal_is_said_to_be_one() -> None:
    signer = Signer([NEW])
    sealed = signer.seal(b"1", "a")
    for damaged in (
        sealed[:20],
        sealed[:7] + b"[]\n1",
        sealed[:7] + b"[" * 9999,
        sealed + b"2",
    ):
        with pytest.raises(InvalidSignature):
            signer.open(damaged, "a")
    assert signer.open(sealed, "a") == b"1"


# Periodic entries


def test_an_entry_that_somebody_put_into_the_store_is_not_fired(broker: Broker) -> None:
    from liteq.beat import Beat

    app = make_app(broker, NEW)
    app.schedules.add("genuine", "add", 10.0, args=(1,))
    [row] = broker.schedules()
    make_app(broker).schedules.add("forged", "add", 10.0, args=(666,))
    broker.put_schedule(row._replace(name="copied"), revision=0)
    engine = Beat(app)
    engine.tick()
    broker.clock.advance(11.0)  # type: ignore[attr-defined]
    engine.tick()
    run(app)
    ended = broker.browse("succeeded")
    assert [app.AsyncResult(one.id).get(timeout=0) for one in ended] == [1]


def test_a_beat_signs_an_entry_made_at_run_time_with_the_first_key(broker: Broker) -> None:
    from liteq.beat import Beat

    make_app(broker).schedules.add("unsigned", "add", 10.0, args=(1,))
    make_app(broker, OLD).schedules.add("nightly", "add", 10.0, args=(2,))
    Beat(make_app(broker, NEW, OLD)).start()
    bad = {one.name for one in make_app(broker, NEW).schedules.list() if one.error}
    Beat(make_app(broker, NEW, OLD, security_accept_unsigned=True)).start()
    signed = broker.schedules()
    Beat(make_app(broker, NEW, OLD)).start()

    assert bad == {"unsigned"}
    assert broker.schedules() == signed  # they are written once
    shown = make_app(broker, NEW).schedules.list()
    assert [(one.name, one.task, one.error) for one in shown] == [
        ("nightly", "add", None),
        ("unsigned", "add", None),
    ]


def test_what_a_beat_cannot_check_it_does_not_sign(broker: Broker) -> None:
    from liteq.beat import Beat

    make_app(broker, OLD).schedules.add("old", "add", 10.0)
    app = make_app(broker, NEW)
    Beat(app).start()

    [entry] = app.schedules.list()
    assert entry.error == (
        "the value of periodic entry old was signed with a key that is not known here"
    )


# Sizes


def test_a_body_that_is_too_large_is_not_read(broker: Broker) -> None:
    app = make_app(broker, task_max_body_size=1000)
    with pytest.raises(MessageTooLarge, match="task_max_body_size"):
        app.tasks["add"].delay("x" * 2000)
    large = Message(new_id(), "add", dumps_call(("x" * 2000,), {}))
    broker.enqueue([large])
    run(app)
    assert "2009 bytes" in (reason(app, large.id) or "")


def test_headers_that_are_too_large_are_refused_where_they_are_given(broker: Broker) -> None:
    app = make_app(broker)
    with pytest.raises(MessageTooLarge, match="headers take"):
        app.tasks["add"].apply_async((1,), headers={"note": "x" * 70_000})
    huge = world.make("add", headers={"note": "x" * 1_100_000})
    broker.enqueue([huge])
    run(app)
    assert "envelope" in (reason(app, huge.id) or "")
