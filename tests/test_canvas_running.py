"""What workflows come to: run in place, and by a worker on every store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import world
from api import forget_current

from liteq import Liteq, current_app, signature
from liteq.canvas import Graph, StampingVisitor, chain, chord, group
from liteq.exceptions import ChordError, Ignore, TaskRevokedError
from liteq.result import GroupResult

MODES = ("eager", "memory", "sqlite", "signed")


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def app(mode: str, tmp_path: Any, clock: world.FakeClock) -> Iterator[Liteq]:
    keys = ("a key of at least 16 characters",) if mode == "signed" else ()
    app = Liteq("shop", broker="memory://", clock=clock, security_keys=keys)
    if mode == "sqlite":
        app.broker = world.Store("sqlite", tmp_path, clock).open()
    app.conf.task_always_eager = mode == "eager"
    yield app
    app.close()
    forget_current()


class Tasks:
    def __init__(self, app: Liteq) -> None:
        self.seen: list[Any] = []

        @app.task(name="add")
        def add(*numbers: int) -> int:
            return sum(numbers)

        @app.task(name="total")
        def total(values: list[Any], *more: Any) -> Any:
            return sum(values)

        @app.task(name="show")
        def show(*values: Any) -> str:
            return repr([repr(v) if isinstance(v, Exception) else v for v in values])

        @app.task(name="wrap")
        def wrap(value: Any = None, *more: Any) -> list[Any]:
            return [value, *more]

        @app.task(name="fail")
        def fail(*_: Any, **__: Any) -> None:
            raise ValueError("no")

        @app.task(name="ignore")
        def ignore(*_: Any) -> None:
            raise Ignore

        @app.task(name="note")
        def note(*values: Any) -> None:
            self.seen.append(values)

        @app.task(name="by_id")
        def by_id(id: str) -> None:
            self.seen.append(id)

        @app.task(name="why")
        def why(request: Any, exc: BaseException, traceback: str) -> None:
            self.seen.append((request.id, type(exc).__name__, str(exc)))

        @app.task(name="flaky", bind=True, max_retries=3, default_retry_delay=0)
        def flaky(task: Any, value: int) -> int:
            if task.request.retries < 2:
                raise task.retry(countdown=0)
            return value

        @app.task(name="about", bind=True)
        def about(task: Any, *_: Any) -> dict[str, Any]:
            request = task.request
            return {"stamps": request.stamps, "group": request.group, "id": request.id}

        self.add, self.total, self.show, self.wrap, self.fail = add, total, show, wrap, fail
        self.ignore, self.note, self.by_id, self.why = ignore, note, by_id, why
        self.flaky, self.about = flaky, about


@pytest.fixture
def t(app: Liteq) -> Tasks:
    return Tasks(app)


@pytest.fixture
def run(app: Liteq) -> Callable[..., Any]:
    """Send a workflow, run it to its end, and return its result."""

    def run_it(sig: Any, *args: Any, **options: Any) -> Any:
        result = sig.apply_async(args, **options)
        app.run_until_empty()
        return result

    return run_it


Run = Callable[..., Any]


def test_the_composition_table(t: Tasks, run: Run) -> None:
    a, b, c, d = (t.wrap.s(x) for x in "abcd")
    one = t.add.s(1)
    table: list[tuple[Any, Any]] = [
        (one | t.add.s(2) | t.add.s(3), 6),
        (t.wrap.si("x") | group(a, b), [[["x"], "a"], [["x"], "b"]]),
        (t.wrap.si("x") | group(a, b) | t.wrap.s(), [[[["x"], "a"], [["x"], "b"]]]),
        (group(a | b, c) | t.wrap.s(), [[[["a"], "b"], ["c"]]]),
        (group(a, b) | group(c, d), [[[["a"], ["b"]], "c"], [[["a"], ["b"]], "d"]]),
        (a | group(), ["a"]),
        (chord([chord([a, b], c), d], t.wrap.s("e")), [[[[["a"], ["b"]], "c"], ["d"]], "e"]),
        (chord([a], b | c), [[[["a"]], "b"], "c"]),
        (group(a, group(b, c)), [["a"], ["b"], ["c"]]),
        (chord([a, group(b, c)], d), [[["a"], ["b"], ["c"]], "d"]),
        (group(a, chain(b, group(c, d))), [["a"], [[["b"], "c"], [["b"], "d"]]]),
        (
            chord([a, chain(b, group(c, d))], t.wrap.s()),
            [[["a"], [[["b"], "c"], [["b"], "d"]]]],
        ),
        (chain(group([a]), b), [["a"], "b"]),
        (group([a]) | b, [[["a"]], "b"]),
        (group(), []),
        (chord([], d), [[], "d"]),
        (chord([chain(), group()], d), [[], "d"]),
        (a | chord([], d), [[], "d"]),
        (t.wrap.s(1) | t.wrap.si(2), [2]),
        (t.add.chunks([(1, 2), (3, 4), (5, 6)], 2), [[3, 7], [11]]),
        (t.add.starmap([(1, 2), (3, 4)]) | t.total.s(), 10),
        (t.add.map([1, 2]), [1, 2]),
        (t.flaky.s(1) | group(t.flaky.s(), t.add.s(1)) | t.total.s(), 3),
    ]
    for sig, expected in table:
        assert run(sig).get(timeout=0) == expected, sig


def test_a_workflow_through_json_runs_the_same(t: Tasks, run: Run) -> None:
    sig = t.add.s(1) | group(t.add.s(2), t.add.s(3) | t.add.s(4)) | t.total.s()

    assert run(signature(json.loads(json.dumps(sig)))).get(timeout=0) == 3 + 8


def test_results_lead_back(t: Tasks, run: Run) -> None:
    result = run(t.add.s(1) | group(t.add.s(2), t.add.s(3)) | t.total.s() | t.add.s(1))

    assert result.get(timeout=0) == 8
    assert result.parent.get(timeout=0) == 7
    assert isinstance(result.parent.parent, GroupResult)
    assert result.parent.parent.get(timeout=0) == [3, 4]
    assert result.parent.parent.parent.get(timeout=0) == 1


def test_a_tilde_calling_and_delay_send(t: Tasks, app: Liteq, mode: str) -> None:
    sigs = [chain(t.add.s(1), t.add.s(2)), group(t.add.s(3)), chord([t.add.s(3)], t.total.s())]
    results = [s() for s in sigs] + [s.delay() for s in sigs]
    results.append(chord([t.add.s(3)])(t.total.s()))
    app.run_until_empty()

    assert [r.get(timeout=0) for r in results] == [3, [3], 3] * 2 + [3]
    if mode == "eager":
        assert ~chain(t.add.s(1), t.add.s(2)) == 3


def test_the_twins_that_are_awaited_send_the_same(t: Tasks, app: Liteq) -> None:
    table: list[tuple[Any, Any]] = [
        (t.add.s(1, 2), 3),
        (t.add.map([1, 2]), [1, 2]),
        (t.add.starmap([(1, 2)]), [3]),
        (t.add.chunks([(1, 2), (3, 4), (5, 6)], 2), [[3, 7], [11]]),
        (t.add.s(1) | t.add.s(2), 3),
        (group(t.add.s(1), t.add.s(2)), [1, 2]),
        (chord([t.add.s(1)], t.total.s()), 1),
    ]

    async def send() -> list[Any]:
        sent = [await sig.adelay() for sig, _ in table]
        return sent + [await sig.aapply_async() for sig, _ in table]

    results = asyncio.run(send())
    app.run_until_empty()

    assert [r.get(timeout=0) for r in results] == [value for _, value in table] * 2


def test_apply_runs_in_place(t: Tasks) -> None:
    sig = t.add.s(1) | group(t.add.s(2), t.add.s(3)) | t.total.s()

    assert sig.apply().get() == 7
    assert group(t.add.s(2), t.add.s(3)).apply((1,)).get() == [3, 4]
    assert chord([t.add.s(1)], t.total.s()).apply().get() == 1


async def awaited(sig: Any) -> Any:
    return await sig.adelay(1)


def test_a_workflow_is_sent_without_blocking_the_loop(t: Tasks, app: Liteq) -> None:
    result = asyncio.run(awaited(t.add.s(1) | t.add.s(2)))
    app.run_until_empty()

    assert result.get(timeout=0) == 4


# Failures


def states(result: Any) -> list[str]:
    found = []
    while result is not None:
        if isinstance(result, GroupResult):
            found.append([r.state for r in result.results])
        else:
            found.append(result.state)
        result = result.parent
    return found


def test_a_failed_step_fails_what_follows_and_tells_its_callback_once(
    t: Tasks, run: Run
) -> None:
    sig = t.add.s(1) | t.fail.s() | t.add.s(1) | t.add.s(1)
    sig.link_error(t.by_id.s())

    result = run(sig)

    assert states(result) == ["FAILURE", "FAILURE", "FAILURE", "SUCCESS"]
    assert t.seen == [result.parent.parent.id]
    with pytest.raises(ValueError, match="no"):
        result.get(timeout=0)


def test_a_failed_member_fails_the_body_with_a_chord_error(t: Tasks, run: Run) -> None:
    sig = chord([t.add.s(1), t.fail.s(), t.fail.s()], t.total.s())
    sig.link_error(t.why.s())

    result = run(sig)

    assert states(result) == ["FAILURE", ["SUCCESS", "FAILURE", "FAILURE"]]
    assert isinstance(result.result, ChordError)
    assert [(id, kind) for id, kind, _ in t.seen] == [(result.id, "ChordError")]
    with pytest.raises(ValueError, match="no"):
        result.get(timeout=0)


def test_a_chain_with_a_group_in_it_tells_its_callback_once(t: Tasks, run: Run) -> None:
    def sent(sig: Any) -> list[Any]:
        t.seen.clear()
        result = run(sig.on_error(t.by_id.s()))
        assert result.state == "FAILURE"
        return [t.seen, result]

    fails = group(t.fail.s(), t.fail.s(), t.fail.s())

    seen, result = sent(t.add.s(1) | fails | t.total.s() | t.add.s(1))
    assert seen == [result.parent.id], "for the body of the group"
    seen, result = sent(chain(group(t.fail.s(), t.add.s(1)), t.total.s()))
    assert seen == [result.id]
    seen, result = sent(chain(t.add.s(1), chord([t.fail.s(), t.fail.s()], t.total.s())))
    assert seen == [result.id]
    inner = chain(t.add.s(1), fails, t.total.s())
    seen, result = sent(chain(t.add.s(1), group(inner, t.add.s(1)), t.total.s()))
    assert seen == [result.id]


def test_a_group_at_the_end_of_a_chain_tells_the_callback_of_each_that_fails(
    t: Tasks, run: Run
) -> None:
    sig = chain(t.add.s(1), group(t.fail.s(), t.add.s(1), t.fail.s()))

    result = run(sig.on_error(t.by_id.s()))

    assert sorted(t.seen) == sorted([result.results[0].id, result.results[2].id])


@pytest.mark.parametrize("last", ["fail", "add"])
def test_a_step_that_fails_in_a_member_fails_the_body_with_a_chord_error(
    t: Tasks, run: Run, last: str
) -> None:
    member = t.add.s(1) | t.fail.s() | t.add.s() if last == "add" else t.add.s(1) | t.fail.s()

    result = run(chord([member, t.add.s(1)], t.total.s()).on_error(t.why.s()))

    assert [(id, kind) for id, kind, _ in t.seen] == [(result.id, "ChordError")]
    with pytest.raises(ValueError, match="no"):
        result.get(timeout=0)
    with pytest.raises(ChordError) as told:
        result.get(timeout=0, follow_parents=False)
    assert isinstance(told.value.__cause__, ValueError)


def test_the_error_of_a_chord_in_a_header_names_the_call_that_failed(
    t: Tasks, run: Run
) -> None:
    result = run(chord([chord([t.fail.s()], t.total.s()), t.add.s(1)], t.total.s()))

    [failed] = result.parent.results[0].parent.results
    for follow in (True, False):
        with pytest.raises(ChordError, match=f"Dependency {failed.id} raised") as told:
            result.get(timeout=0, follow_parents=follow)
        assert isinstance(told.value.__cause__, ValueError)


def test_a_step_that_fails_before_a_group_is_all_that_tells_its_callback(
    t: Tasks, run: Run
) -> None:
    adds = group(t.add.s(), t.add.s())
    for behind in ((adds, t.total.s()), (adds, adds), (t.add.s(), adds, t.total.s(), adds)):
        t.seen.clear()
        run(chain(t.fail.s(), *behind).on_error(t.why.s()))
        assert [kind for _, kind, _ in t.seen] == ["ValueError"]


def test_an_error_callback_is_given_the_request_of_the_call_that_failed(
    t: Tasks, app: Liteq, run: Run
) -> None:
    told = []

    @app.task(name="request")
    def tell(request: Any, exc: BaseException, traceback: str) -> None:
        told.append(request)

    failing = t.fail.s("b", c=1).set(headers={"tenant": "x"}, retries=2)

    result = run(chain(t.add.s(1), failing).on_error(tell.s()))
    chorded = run(chord([t.fail.s(), t.add.s(1)], t.total.s("more")).on_error(tell.s()))
    run(chord([t.add.s(1), t.add.s(2)], t.fail.s("more")).on_error(tell.s()))
    run(chain(t.add.s(1), t.fail.si("own")).on_error(tell.s()))

    step, body, after, immutable = told
    assert (step.id, step.task, step.retries) == (result.id, "fail", 2)
    assert (list(step.args), step.kwargs) == ([1, "b"], {"c": 1})  # the first is add's result
    assert list(after.args) == [[1, 2], "more"]
    assert list(immutable.args) == ["own"]
    assert step.root_id == step.parent_id == result.parent.id
    assert (step.headers, step.delivery_info["routing_key"]) == ({"tenant": "x"}, "default")
    assert not step.called_directly
    assert (body.id, body.task, list(body.args)) == (chorded.id, "total", ["more"])


def test_error_callbacks_of_a_header_run_for_each_that_fails(
    t: Tasks, app: Liteq, run: Run
) -> None:
    app.conf.task_allow_error_cb_on_chord_header = True
    sig = chord([t.add.s(1), t.fail.s(), t.fail.s()], t.total.s())
    sig.link_error(t.note.s("eb"))

    run(sig)
    assert len(t.seen) == 3

    run(chain(t.add.s(1), group(t.fail.s(), t.fail.s()), t.total.s()).on_error(t.note.s("eb")))
    assert len(t.seen) == 6


def test_the_body_runs_anyway_if_the_chord_says_so(t: Tasks, run: Run) -> None:
    header = [t.add.s(1), t.fail.s(), t.add.s(3)]

    collected = run(chord(header, t.show.s(), on_error="collect"))
    skipped = run(chord(header, t.total.s(), on_error="skip"))

    assert "ValueError('no')" in collected.get(timeout=0)
    assert skipped.get(timeout=0) == 4


def test_each_member_of_a_body_that_is_a_group_fails(t: Tasks, run: Run) -> None:
    body = group(t.add.s(), t.add.s())
    body.link_error(t.note.s("eb"))

    result = run(group(t.fail.s(), t.add.s(1)) | body)

    assert [r.state for r in result.results] == ["FAILURE", "FAILURE"]
    assert len(t.seen) == 2


def test_members_of_a_plain_group_fail_alone(t: Tasks, run: Run) -> None:
    sig = group(t.fail.s(), t.add.s(1))
    sig.link_error(t.note.s())

    result = run(sig)

    assert [r.state for r in result.results] == ["FAILURE", "SUCCESS"]
    assert len(t.seen) == 1


def test_what_follows_an_ignored_step_is_revoked(t: Tasks, run: Run) -> None:
    result = run(t.ignore.s() | t.add.s(1) | t.add.s(1))
    joined = run(group(t.ignore.s(), t.add.s(1)) | t.total.s())

    for ended in (result, joined):
        assert ended.state == "REVOKED"
        with pytest.raises(TaskRevokedError):
            ended.get(timeout=0)


def test_links_of_each_primitive_run(t: Tasks, run: Run) -> None:
    for sig, expected in (
        (chain(t.add.s(1), t.add.s(2)), [(3, "cb")]),
        (group(t.add.s(1), t.add.s(2)), [("cb",)]),
        (chord([t.add.s(1)], t.total.s()), [(1, "cb")]),
    ):
        sig.link(t.note.s("cb"))
        run(sig)
        assert t.seen == expected
        t.seen.clear()


# Graphs


def test_a_graph_runs_each_node_behind_what_it_needs(t: Tasks, run: Run) -> None:
    graph = Graph("publish")
    graph.add("fetch", t.wrap.s("fetch"))
    graph.add("small", t.wrap.s("s"), after="fetch")
    graph.add("large", group(t.wrap.s("l"), t.wrap.s("m")), after="fetch")
    graph.add("join", t.wrap.s("j") | t.wrap.s("k"), after=["large", "small"])

    fetched = ["x", "fetch"]
    assert run(graph, "x").get(timeout=0) == [
        [[[fetched, "l"], [fetched, "m"]], [fetched, "s"], "j"],
        "k",
    ]


def test_nodes_of_a_graph_take_results_by_name(t: Tasks, app: Liteq, run: Run) -> None:
    @app.task(name="divide")
    def divide(*, over: int, under: int) -> float:
        return over / under

    graph = Graph().add("a", t.add.s(6)).add("b", t.add.s(3))
    graph.add("c", divide.s(), after={"under": "b", "over": "a"})

    assert run(graph).get(timeout=0) == 2.0


# Stamps


class Numbered(StampingVisitor):
    """Stamps every call with the kinds of what it stands in."""

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return {"monitor": sig.task}

    def on_group_start(self, group: Any, **headers: Any) -> dict[str, Any]:
        return {"in_group": True}

    def on_chain_start(self, chain: Any, **headers: Any) -> dict[str, Any]:
        return {"in_chain": True, "priority": 3, "stamped_headers": ["in_chain"]}

    def on_callback(self, callback: Any, **headers: Any) -> dict[str, Any]:
        return {"callback": True}


class Noting(StampingVisitor):
    """Gives more than the stamps that it lists."""

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return {"monitor": 1, "note": 2, "stamped_headers": ["monitor"]}


def test_what_a_visitor_does_not_list_is_no_stamp(t: Tasks, run: Run) -> None:
    assert run(t.about.s().stamp(Noting())).get(timeout=0)["stamps"] == {"monitor": 1}


class Counting(StampingVisitor):
    """Says what it was asked for, in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        self.asked.append(sig.task)
        return {"number": len(self.asked)}

    def on_callback(self, callback: Any, **headers: Any) -> dict[str, Any]:
        self.asked.append("callback")
        return {}


@pytest.mark.parametrize("kind", [chain, group, chord])
def test_a_visitor_is_asked_for_each_task_once(t: Tasks, kind: Any) -> None:
    parts = (t.about.s(), t.total.s())
    linked = kind(parts[:1], parts[1]) if kind is chord else kind(parts)
    sig = t.note.s(0)
    sig.link(linked)
    visitor = Counting()
    sig.stamp(visitor)
    assert visitor.asked[0] == "callback"
    assert sorted(visitor.asked[1:]) == sorted(part.task for part in (*parts, sig))


def test_stamps_of_a_header_are_not_the_bodys(t: Tasks, run: Run) -> None:
    sent = run(chord([t.about.s(), t.about.s()], t.about.si()).stamp(Numbered()))

    assert sent.get(timeout=0)["stamps"] == {"monitor": "about"}
    for member in sent.parent.get(timeout=0):
        assert member["stamps"] == {"monitor": "about", "in_group": True}


def test_stamps_reach_the_request(t: Tasks, run: Run) -> None:
    plain = run(t.about.s().stamp(who="me"))
    visited = run(chain(t.about.s(), group(t.about.s(), t.about.s())).stamp(Numbered()))

    assert plain.get(timeout=0)["stamps"] == {"who": "me"}
    for member in visited.get(timeout=0):
        assert member["stamps"] == {
            "monitor": "about",
            "in_group": True,
            "in_chain": True,
        }


def test_a_later_stamp_takes_the_place_or_is_added(t: Tasks) -> None:
    sig = t.about.s().stamp(who="me")

    assert sig.stamp(who="you").options["who"] == "you"
    assert sig.stamp(append_stamps=True, who="me").options["who"] == ["me", "you"]
    assert t.about.s().stamp(a=["x"]).stamp(a=["y"]).options["a"] == ["y", "x"]
    assert t.about.s().stamp(Numbered(), monitor="h").options["monitor"] == "h"
    joined = t.about.s().stamp(Numbered(), append_stamps=True, monitor="h")
    assert joined.options["monitor"] == ["h", "about"]
    nested = t.about.s().stamp(a={"x": 1}).stamp(a={"y": 2})
    assert nested.options["a"] == {"x": 1, "y": 2}
    linked = t.about.s()
    linked.link(t.about.s())
    linked.stamp(Numbered())
    assert linked.options["link"][0].options["stamped_headers"] == ["callback", "monitor"]


def test_built_in_tasks_go_by_their_names_in_celery_too(t: Tasks, run: Run) -> None:
    task = dict(t.add.s())

    assert run(signature("celery.map", kwargs={"task": task, "it": [1, 2]})).get() == [1, 2]
    assert run(signature("celery.starmap", kwargs={"task": task, "it": [[1, 2]]})).get() == [3]
    assert run(signature("celery.accumulate", (1, 2), {"index": 1})).get(timeout=0) == 2
    assert "liteq.map" not in current_app.tasks.own()


def test_a_large_chord_and_a_long_chain_end(t: Tasks, mode: str, run: Run) -> None:
    size = 300 if mode == "eager" else 1_000

    assert run(chord((t.add.s(i) for i in range(size)), t.total.s())).get(timeout=0) == sum(
        range(size)
    )
    assert run(chain(t.add.s(1) for _ in range(size))).get(timeout=0) == size
