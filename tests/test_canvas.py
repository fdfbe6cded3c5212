"""Workflows as they are written down and as they are composed: nothing runs here."""

from __future__ import annotations

import asyncio
import copy
import json
import operator
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from api import app_in_memory

from liteq import Liteq, Signature, signature
from liteq.canvas import Graph, chain, chord, chunks, group, xmap, xstarmap
from liteq.composing import Composed
from liteq.exceptions import EncodeError, ImproperlyConfigured, NotRegistered
from liteq.message import GATHER
from liteq.result import AsyncResult, GroupResult


@pytest.fixture
def app() -> Iterator[Liteq]:
    with app_in_memory() as app:

        @app.task(name="add")
        def add(*values: Any, **named: Any) -> list[Any]:
            return [*values, named]

        @app.task(name="one")
        def one(value: Any) -> Any:
            return value

        yield app


@pytest.fixture
def add(app: Liteq) -> Any:
    return app.tasks["add"]


@pytest.fixture
def one(app: Liteq) -> Any:
    return app.tasks["one"]


def compose(app: Liteq, sig: Any, *args: Any, **options: Any) -> Composed:
    return app.sender.compose(sig, args, {}, options)


def names(composed: Composed) -> dict[str, str]:
    """Return a short name for each message: the last of its own arguments, or its gather's
    policy."""
    found = {}
    for message in composed.messages:
        if message.task == GATHER:
            found[message.id] = message.body.decode()
        else:
            args = json.loads(message.body)[0]
            found[message.id] = str(args[-1]) if args else message.task
    return found


def edges(composed: Composed) -> set[str]:
    """Return the edges as text: "a>b", "a!b" for a failure, "a+fail" for a part."""
    known = names(composed)
    signs = {"success": ">", "failure": "!", "part": "+"}
    return {known[e.source] + signs[e.on] + known[e.target] for e in composed.edges}


def by_name(composed: Composed, name: str) -> Any:
    known = names(composed)
    (message,) = (m for m in composed.messages if known[m.id] == name)
    return message


def parents(composed: Composed) -> list[str]:
    known, line, result = names(composed), [], composed.result
    while result is not None:
        line.append(known.get(result.id, "?"))
        result = result.parent
    return line


# Chains


def test_a_chain_is_a_path(app: Liteq, add: Any) -> None:
    made = compose(app, add.s("a") | add.s("b") | add.s("c"))

    assert edges(made) == {"a>b", "b>c"}
    assert parents(made) == ["c", "b", "a"]
    assert made.workflow == (made.messages[2].id, "chain of 3")
    assert made.entry.id == made.messages[0].id


def test_steps_know_their_root_and_the_step_before(app: Liteq, add: Any) -> None:
    first, second, third = compose(app, chain(add.s(i) for i in "abc")).messages

    assert (first.root_id, first.parent_id) == (None, None)
    assert (second.root_id, second.parent_id) == (first.id, first.id)
    assert (third.root_id, third.parent_id) == (first.id, second.id)
    assert (first.has_links, third.has_links) == (True, False)


@pytest.mark.parametrize("kind", [tuple, list, iter, lambda steps: (dict(s) for s in steps)])
def test_a_chain_takes_any_iterable_and_deserialised_steps(
    app: Liteq, add: Any, kind: Any
) -> None:
    made = compose(app, chain(kind([add.s("a"), add.s("b")])))

    assert edges(made) == {"a>b"}
    assert len(made.messages) == 2


def test_a_chain_of_nothing_is_nothing(app: Liteq, add: Any) -> None:
    assert chain().delay() is None
    assert chain(chain(), group()).delay() is None
    assert compose(app, chain(chain(), group())).messages == []


def test_arguments_pass_over_empty_steps(app: Liteq, add: Any) -> None:
    made = compose(app, chain(chain(), group(), add.s("a"), chain(), add.s("b")), 1)

    assert [json.loads(m.body)[0] for m in made.messages] == [[1, "a"], ["b"]]
    assert edges(made) == {"a>b"}


def test_nested_chains_are_one_path(app: Liteq, add: Any) -> None:
    inner = chain(add.s("b"), add.s("c"))
    inner.link(add.s("cb"))
    inner.link_error(add.s("eb"))

    made = compose(app, chain(add.s("a"), inner, add.s("d")))

    assert edges(made) == {"a>b", "b>c", "c>d", "c>cb", "b!eb", "c!eb"}


def test_options_of_a_chain_are_for_its_first_step_and_its_id_for_the_last(
    app: Liteq, add: Any
) -> None:
    made = compose(app, add.s("a") | add.s("b"), queue="far", countdown=5, task_id="last")

    first, last = made.messages
    assert (first.queue, last.queue) == ("far", "default")
    assert first.run_at is not None
    assert (last.id, last.run_at, made.result.id) == ("last", None, "last")


def test_times_of_a_later_step_count_from_the_end_of_the_one_before(
    app: Liteq, add: Any
) -> None:
    step = add.s("b").set(countdown=10, expires=20)
    later = compose(app, add.s("a") | step).messages[1]

    assert (later.countdown, later.expires_in) == (10.0, 20.0)
    assert (later.run_at, later.expires_at) == (None, None)


def test_a_task_s_own_expiry_counts_from_the_step_before(app: Liteq, add: Any) -> None:
    @app.task(name="short", expires=30)
    def short(value: Any) -> None: ...

    later = compose(app, add.s("a") | short.s()).messages[1]

    assert (later.expires_in, later.expires_at) == (30.0, None)


def test_priorities_are_inherited_if_the_setting_says_so(app: Liteq, add: Any) -> None:
    sig = (
        add.s("a").set(priority=7) | group(add.s("b"), add.s("c").set(priority=1)) | add.s("d")
    )

    assert {m.priority for m in compose(app, sig).messages} == {7, 0, 1}
    app.conf.task_inherit_parent_priority = True
    made = compose(app, sig)
    assert [by_name(made, n).priority for n in "abcd"] == [7, 7, 1, 7]


def test_an_inherited_priority_gives_way_to_a_task_s_and_to_a_route_s(
    app: Liteq, add: Any
) -> None:
    @app.task(name="urgent", priority=9)
    def urgent(*values: Any) -> None: ...

    app.conf.update(task_inherit_parent_priority=True, task_default_priority=3)
    app.conf.task_routes = {"one": {"priority": 2}}
    routed = app.tasks["one"]
    sig = add.s("a").set(priority=7) | group(urgent.s("b"), add.s("c"), routed.si("d"))
    call = add.s("a").set(priority=7, link=[routed.si("e"), add.si("f")])

    made, linked = compose(app, sig), compose(app, call)

    assert [by_name(made, n).priority for n in "abcd"] == [7, 9, 7, 2]
    assert [by_name(linked, n).priority for n in "aef"] == [7, 2, 7]


def test_a_node_inherits_the_priority_of_the_first_that_it_is_behind(
    app: Liteq, add: Any
) -> None:
    app.conf.task_inherit_parent_priority = True
    graph = Graph().add("a", add.s("a").set(priority=7)).add("b", add.s("b"))
    graph.add("c", add.s("c"), after=["a", "b"]).add("d", add.s("d"), after=["b", "a"])

    made = compose(app, graph)

    assert [by_name(made, n).priority for n in "abcd"] == [7, 0, 7, 0]


# Groups and chords


def test_a_group_is_its_members_and_a_gather_that_counts(app: Liteq, add: Any) -> None:
    made = compose(app, group(add.s("a"), add.s("b")), task_id="g")

    assert edges(made) == {"a+count", "b+count"}
    assert [(m.group_id, m.group_index) for m in made.messages[:2]] == [("g", 0), ("g", 1)]
    assert [e.position for e in made.edges] == [0, 1]
    assert isinstance(made.result, GroupResult)
    assert (made.result.id, made.workflow) == ("g", ("g", "group of 2"))
    assert [r.id for r in made.result.results] == [m.id for m in made.messages[:2]]


def test_a_chord_stands_behind_its_gather(app: Liteq, add: Any) -> None:
    made = compose(app, chord([add.s("a"), add.s("b")], add.s("c")))

    assert edges(made) == {"a+fail", "b+fail", "fail>c"}
    assert parents(made) == ["c", "fail"]
    assert by_name(made, "c").parent_id == by_name(made, "b").id
    assert by_name(made, "c").group_id is None


@pytest.mark.parametrize("policy", ["fail", "collect", "skip"])
def test_on_error_is_the_policy_of_the_gather(app: Liteq, add: Any, policy: Any) -> None:
    sig = chord([add.s("a"), chain(add.s("x"), group(add.s("y"), add.s("z")))], add.s("c"))
    if policy != "fail":
        sig = chord(sig.header, sig.body, on_error=policy)

    gathers = [m.body.decode() for m in compose(app, sig).messages if m.task == GATHER]

    assert gathers == [policy, policy]
    assert signature(json.loads(json.dumps(sig)))["kwargs"].get("on_error", "fail") == policy


def test_an_unknown_policy_is_refused(add: Any) -> None:
    with pytest.raises(
        ValueError, match="on_error must be one of fail, collect, skip, not 'x'"
    ):
        chord([add.s()], add.s(), on_error="x")  # type: ignore[call-overload]


def test_what_is_behind_a_group_makes_it_a_header(app: Liteq, add: Any) -> None:
    a, b, c, d, e = (add.s(x) for x in "abcde")

    assert edges(compose(app, a | group(b, c) | d)) == {
        "a>b",
        "a>c",
        "b+fail",
        "c+fail",
        "fail>d",
    }
    assert edges(compose(app, a | group(b, c))) == {"a>b", "a>c", "b+count", "c+count"}
    both = {"a+fail", "b+fail", "fail>c", "fail>d", "c+count", "d+count"}
    assert edges(compose(app, group(a, b) | group(c, d))) == both
    assert isinstance(group(a, b) | c, chord)
    assert edges(compose(app, chord([a, b], c) | d | e)) == {
        "a+fail",
        "b+fail",
        "fail>c",
        "c>d",
        "d>e",
    }
    assert edges(compose(app, group(chain(a, b), c) | d)) == {
        "a>b",
        "b+fail",
        "c+fail",
        "fail>d",
    }


def test_a_chord_without_a_body_takes_what_comes_behind_it(app: Liteq, add: Any) -> None:
    open_chord = chord([add.s("a")])
    open_chord.link(add.s("cb"))

    made = compose(app, open_chord | add.s("b"))

    assert edges(made) == {"a+fail", "fail>b"} | {"b>cb"}
    with pytest.raises(TypeError, match="a chord needs a body"):
        open_chord.delay()


def test_groups_in_groups_are_flat_and_one_that_ends_a_chain_is_not(
    app: Liteq, add: Any
) -> None:
    a, b, c, d = (add.s(x) for x in "abcd")

    flat = compose(app, chord([a, group(b, c)], d))
    nested = compose(app, group(a, chain(b, group(c, d))))

    assert [e.position for e in flat.edges if e.on == "part"] == [0, 1, 2]
    assert isinstance(nested.result.results[1], GroupResult)
    inner = nested.result.results[1].id
    assert {m.group_id for m in nested.messages if m.task != GATHER} == {
        nested.result.id,
        None,
        inner,
    }


def test_empty_headers_run_the_body_with_an_empty_list(app: Liteq, add: Any) -> None:
    for header in ([], [chain(), group()], group(chain())):
        (only,) = compose(app, chord(header, add.s("b"))).messages
        assert json.loads(only.body)[0] == [[], "b"]


def test_an_empty_header_in_a_chain_keeps_the_order(app: Liteq, add: Any) -> None:
    first, body = compose(app, add.s("a") | chord([], add.s("b"))).messages

    assert json.loads(body.body)[0] == [[], "b"]
    assert body.immutable
    assert body.parent_id == first.id


def test_an_empty_group_has_a_result_without_members(app: Liteq) -> None:
    result = group().delay()

    assert isinstance(result, GroupResult)
    assert result.get(timeout=0) == []


def test_an_empty_group_behind_a_group_is_left_out(app: Liteq, add: Any) -> None:
    both = group(add.s("a"), add.s("b"))

    made = compose(app, both | group([]))

    assert edges(made) == edges(compose(app, both))
    assert [type(part) for part in made.result.results] == [AsyncResult] * 2


def test_a_group_behind_a_task_that_is_empty_is_left_out(app: Liteq, add: Any) -> None:
    assert len(compose(app, add.s("a") | group()).messages) == 1


def test_a_group_of_one_is_its_member_in_a_chain_and_a_list_before_a_pipe(
    app: Liteq, add: Any
) -> None:
    assert edges(compose(app, chain(group([add.s("a")]), add.s("b")))) == {"a>b"}
    assert edges(compose(app, add.s("x") | group([add.s("a")]) | add.s("b"))) == {"x>a", "a>b"}
    assert edges(compose(app, group([add.s("a")]) | add.s("b"))) == {"a+fail", "fail>b"}
    assert edges(compose(app, chord([add.s("a")], add.s("b")))) == {"a+fail", "fail>b"}


def test_options_of_a_group_are_for_all_and_win(app: Liteq, add: Any) -> None:
    sig = group(add.s("a").set(queue="own", priority=2), add.s("b") | add.s("c"))

    made = compose(app, sig, queue="far", headers={"h": 1})

    assert [by_name(made, n).queue for n in "abc"] == ["far", "far", "default"]
    assert by_name(made, "a").priority == 2
    assert by_name(made, "b").headers == {"h": 1}


def test_options_of_a_chord_are_for_both_and_its_times_for_the_header(
    app: Liteq, add: Any
) -> None:
    sig = chord([add.s("a")], add.s("b"))

    made = compose(app, sig, queue="far", countdown=5, task_id="body")

    a, body = by_name(made, "a"), by_name(made, "b")
    assert (a.queue, body.queue, body.id) == ("far", "far", "body")
    assert a.run_at is not None
    assert (body.run_at, body.countdown) == (None, None)


def test_arguments_of_a_group_come_first_for_every_member(app: Liteq, add: Any) -> None:
    made = compose(app, group(add.s("a"), add.si("b"), add.s("c") | add.s("d")), 1)

    bodies = [json.loads(m.body)[0] for m in made.messages if m.task == "add"]
    assert bodies == [[1, "a"], ["b"], [1, "c"], ["d"]]


def test_keywords_reach_the_members(app: Liteq, add: Any) -> None:
    sig = chord([add.s("a")], add.s("b"), kwargs={"x": 1})

    a, *_ = app.sender.compose(sig, (), {"y": 2}).messages
    g, *_ = app.sender.compose(group(add.s("a", y=1)), (), {"y": 2}).messages

    assert json.loads(a.body) == [["a"], {"x": 1, "y": 2}]
    assert json.loads(g.body) == [["a"], {"y": 2}]


def test_skew_sets_rising_countdowns(add: Any) -> None:
    sig = group(add.s(i) for i in range(4))

    assert sig.skew(start=1, stop=3) is sig
    assert [m.options["countdown"] for m in sig.tasks] == [1.0, 2.0, 3.0, 3.0]


def test_a_value_that_is_waited_for_is_kept_although_results_are_ignored(
    app: Liteq, add: Any
) -> None:
    @app.task(name="quiet", ignore_result=True)
    def quiet(*_: Any) -> None: ...

    waited = compose(app, chord([quiet.s("a"), quiet.s("b")], add.s("c")))
    alone = compose(app, group(quiet.s("a"), quiet.s("b")))

    assert [by_name(waited, n).has_links for n in "ab"] == [True, True]
    assert [by_name(alone, n).has_links for n in "ab"] == [False, False]


# Links


def test_links_stand_where_celery_puts_them(app: Liteq, add: Any) -> None:
    def linked(sig: Any) -> set[str]:
        sig.link(add.s("cb"))
        sig.link_error(add.s("eb"))
        return {e for e in edges(compose(app, sig)) if "cb" in e or "eb" in e}

    a, b, c = (add.s(x) for x in "abc")
    assert linked(chain(a, b)) == {"b>cb", "a!eb", "b!eb"}
    assert linked(group(a, b)) == {"a>cb", "a!eb", "b!eb"}
    assert linked(chord([a, b], c)) == {"c>cb", "c!eb"}
    assert linked(chain(a, group(b, c))) == {"b>cb", "a!eb", "b!eb", "c!eb"}
    assert linked(chain(group(a, b), c)) == {"c>cb", "c!eb"}
    assert linked(chain(chain(a, group(b, c)).set(queue="q"), add.s("d"))) == {
        "d>cb",
        "a!eb",
        "d!eb",
    }
    assert linked(chord([a, b], chain(c, add.s("d")))) == {"d>cb", "c!eb", "d!eb"}
    app.conf.task_allow_error_cb_on_chord_header = True
    assert linked(chord([a, b], c)) == {"c>cb", "c!eb", "a!eb", "b!eb"}


def test_the_link_of_a_group_takes_no_result(app: Liteq, add: Any) -> None:
    sig = group(add.s("a"), add.s("b"))
    sig.link(add.s("cb"))

    assert by_name(compose(app, sig), "cb").immutable


def test_an_error_callback_is_a_call_of_its_own_at_each_place(app: Liteq, add: Any) -> None:
    sig = chain(add.s("a"), add.s("b"))
    errback = add.s("eb").set(task_id="fixed")
    sig.link_error(errback)

    made = compose(app, sig)

    ids = [m.id for m in made.messages if json.loads(m.body)[0] == ["eb"]]
    assert len(set(ids)) == 2
    assert "fixed" in ids


def test_links_given_with_the_call_of_a_chord_are_added(app: Liteq, add: Any) -> None:
    sig = chord([add.s("a")], add.s("b").set(link=[add.s("own")]))

    made = compose(app, sig, link=add.s("more"), link_error=add.s("eb"))

    assert {"b>own", "b>more", "b!eb"} <= edges(made)


def test_error_callbacks_set_on_a_group_replace_those_of_its_members(
    app: Liteq, add: Any
) -> None:
    member = add.s("a")
    member.link_error(add.s("own"))

    made = compose(app, group(member, add.s("b")).set(link_error=[add.s("eb")]))

    assert {e for e in edges(made) if "!" in e} == {"a!eb", "b!eb"}


def test_a_workflow_can_be_linked(app: Liteq, add: Any) -> None:
    sig = add.s("a")
    sig.link(chain(add.s("b"), group(add.s("c"), add.s("d"))))
    sig.link_error(group(add.s("e"), add.s("f")))

    made = compose(app, sig)

    assert edges(made) == {"a>b", "b>c", "b>d", "c+count", "d+count", "a!e", "a!f"} | {
        "e+count",
        "f+count",
    }
    assert made.workflow is None


def test_a_list_of_links_with_the_same_one_twice_runs_it_twice(app: Liteq, add: Any) -> None:
    callback = add.s("b")
    made = compose(app, add.s("a").set(link=[callback, callback]))
    assert [edge.on for edge in made.edges] == ["success", "success"]
    assert len(made.messages) == 3


def test_an_error_callback_of_a_step_and_of_its_chain_runs_once(app: Liteq, add: Any) -> None:
    errback = add.s("eb")
    step = add.s("a").set(link_error=[errback])
    made = compose(app, chain(step, add.s("b"), chain(step)).on_error(errback))
    assert [edge.on for edge in made.edges].count("failure") == 3


@pytest.mark.parametrize("option", ["link", "link_error"])
def test_a_group_takes_no_link_with_its_call(app: Liteq, add: Any, option: str) -> None:
    for sig in (group(add.s()), add.chunks([("a",), ("b",)], 1)):
        with pytest.raises(TypeError, match=f"takes no {option}:"):
            sig.apply_async(**{option: add.s()})
        with pytest.raises(TypeError, match=f"takes no {option}:"):
            asyncio.run(sig.aapply_async(**{option: add.s()}))
    assert app.broker.counts() == {}


def test_a_workflow_holds_the_signatures_that_were_given(app: Liteq, add: Any) -> None:
    for make in (chain, group, operator.or_, lambda one, other: chord([one], other)):
        first, last = add.s("a"), add.s("b")
        sig = make(first, last)
        first.set(queue="early")
        last.set(queue="late")
        made = compose(app, sig)
        assert [by_name(made, name).queue for name in "ab"] == ["early", "late"]


def test_freezing_does_not_change_the_signatures_that_were_given(add: Any) -> None:
    for make in (chain, group, lambda one, other: chord([one], other)):
        first, last = add.s("a"), add.s("b")
        make(first, last).freeze()
        assert (first.id, last.id) == (None, None)


def test_linking_does_not_change_the_signatures_that_were_given(add: Any) -> None:
    first, body = add.s("a"), add.s("b")

    group(first).link(add.s("cb"))
    group(first).link_error(add.s("eb"))
    chord([first], body).link(add.s("cb"))

    assert first.options == body.options == {}


# Signatures of workflows


def every_kind(add: Any) -> list[Any]:
    a, b, c = (add.s(x) for x in "abc")
    return [
        chain(a, b),
        group(a, b),
        chord([a, b], c),
        chord([a], chain(b, group(a, chord([b], c))), on_error="skip"),
        add.map([1, 2]),
        add.starmap([[1, 2]]),
        add.chunks([[1], [2]], 1),
        a | group(b, c).set(queue="q") | b,
    ]


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize(
    "copied",
    [
        lambda s: signature(json.loads(json.dumps(s))),
        lambda s: pickle.loads(pickle.dumps(s)),
        copy.copy,
        copy.deepcopy,
        lambda s: s.clone(),
        lambda s: Signature.from_dict(dict(s)),
    ],
    ids=["json", "pickle", "copy", "deepcopy", "clone", "from_dict"],
)
def test_a_copy_is_the_same_workflow(app: Liteq, add: Any, number: int, copied: Any) -> None:
    sig = every_kind(add)[number]

    again = copied(sig)

    assert type(again) is type(sig)
    assert repr(again) == repr(sig)
    assert shape(app, again) == shape(app, sig)


def shape(app: Liteq, sig: Any) -> list[Any]:
    made = compose(app, sig)
    at = {m.id: i for i, m in enumerate(made.messages)}
    found: list[Any] = [(m.task, m.queue, m.immutable) for m in made.messages]
    return found + [(at[e.source], at[e.target], e.on, e.position) for e in made.edges]


def test_a_clone_has_parts_of_its_own(add: Any) -> None:
    sig = chord([add.s("a")], add.s("b"))

    other = sig.clone()
    other.tasks[0].set(queue="q")
    other.body.set(queue="q")

    assert sig.tasks[0].options == sig.body.options == {}


def test_workflows_show_what_they_run(add: Any) -> None:
    a, b, c = (add.s(x) for x in "abc")

    assert repr(a | b) == "add('a') | add('b')"
    assert repr(group(a, b)) == "group([add('a'), add('b')])"
    assert repr(chord([a, b], c)) == "%add([add('a'), add('b')], 'c')"
    assert repr(add.chunks([1, 2], 1)) == "add.chunks([1, 2], 1)"
    assert repr(add.map([1])) == "[add(x) for x in [1]]"


def test_a_pipe_changes_neither_side(add: Any) -> None:
    one, other = add.s("a") | add.s("b"), add.s("c") | add.s("d")

    longer = one | other

    assert [len(s.tasks) for s in (one, other, longer)] == [2, 2, 4]


def test_what_is_no_signature_is_refused_where_it_stands(add: Any) -> None:
    with pytest.raises(TypeError, match=r"group\[1\] is not a signature, .*: 5"):
        group(add.s(), 5)
    with pytest.raises(TypeError, match=r"chain\[1\] is not a signature.*; write add\.s\("):
        chain(add.s(), add)
    with pytest.raises(TypeError, match=r"sent already; write task\.s"):
        group([add.delay(1)])
    with pytest.raises(TypeError, match=r"chord header\[0\] is not a signature"):
        chord([None], add.s())
    with pytest.raises(TypeError, match="the body of a chord is not a signature"):
        chord([add.s()], 5)
    with pytest.raises(TypeError, match="the header of a chord must be a group or a list"):
        chord(5, add.s())


def test_the_steps_of_a_chain_as_header_are_its_members(app: Liteq, add: Any) -> None:
    made = compose(app, chord(chain(add.s("a"), add.s("b")), add.s("c")))

    assert edges(made) == {"a+fail", "b+fail", "fail>c"}


def test_chunks_are_a_group_of_starmaps(app: Liteq, add: Any) -> None:
    sig = add.chunks([(1,), (2,), (3,)], 2)
    assert [len(part["kwargs"]["it"]) for part in sig.group().tasks] == [2, 1]

    made = compose(app, sig | add.s("b"))

    assert [m.task for m in made.messages] == ["liteq.starmap", "liteq.starmap", GATHER, "add"]
    with pytest.raises(ValueError, match="a chunk needs at least one call"):
        add.chunks([(1,)], 0)
    assert isinstance(sig, chunks)


def test_maps_keep_their_options_and_links(app: Liteq, add: Any) -> None:
    for kind in (xmap, xstarmap):
        sig = kind(add.s(), [(1,)]).set(queue="q")
        sig.link(add.s("cb"))
        id = sig.freeze().id
        again = signature(json.loads(json.dumps(sig)))
        made, callback = compose(app, again).messages
        assert (made.id, made.queue, type(again)) == (id, "q", kind)
        assert callback.task == "add"


# Frozen


def test_a_frozen_workflow_is_sent_with_the_ids_it_said(app: Liteq, add: Any) -> None:
    for sig in (
        chain(add.s("a"), add.s("b")),
        chord([add.s("a"), add.s("b")], add.s("c") | add.s("d")),
        add.s("x") | group(add.s("a"), add.s("b") | add.s("c")),
        group(add.s("a"), group(add.s("b"), add.s("c")), chain(add.s("d"), group(add.s("e")))),
    ):
        promised = sig.freeze()
        sent = compose(app, sig).result
        assert sent.as_tuple() == promised.as_tuple()
        assert sig.freeze().as_tuple() == promised.as_tuple()


def test_freezing_names_the_last_task_and_the_group(app: Liteq, add: Any) -> None:
    assert chain(add.s(), add.s()).freeze("last").id == "last"
    assert chord([add.s()], add.s()).freeze("body").id == "body"
    assert group(add.s()).freeze("g").id == "g"


def test_the_same_signature_may_be_a_part_many_times(app: Liteq, add: Any) -> None:
    sig = add.s("a")

    assert len({m.id for m in compose(app, group([sig] * 3)).messages}) == 4
    assert len(set(chain([sig] * 3).freeze().as_list())) == 3
    with pytest.raises(ValueError, match=r"group\[1\]: two calls .* have the id 'x'"):
        compose(app, group([add.s().set(task_id="x")] * 2))


# What cannot be sent


def test_an_error_names_the_part_and_nothing_is_sent(app: Liteq, add: Any, one: Any) -> None:
    bad = object()
    cases: list[tuple[Any, type[Exception], str]] = [
        (
            chord([add.s(1), add.s(bad)], add.s()),
            EncodeError,
            r"chord header\[1\]: args\[0\]: ",
        ),
        (chord([add.s(1)], add.s(x=bad)), EncodeError, r"chord body: kwargs\['x'\]: "),
        (add.s() | add.s() | add.s(bad), EncodeError, r"chain\[2\]: args\[0\]: "),
        (group(add.s(), chain(add.s(), add.s(bad))), EncodeError, r"group\[1\]\[1\]: "),
        (add.s() | one.s(1), TypeError, r"chain\[1\]: one\(\) takes 1 positional"),
        (group(one.s()), TypeError, r"group\[0\]: one\(\) missing"),
        (add.s() | add.s().set(countdwn=1), TypeError, r"chain\[1\]: .*'countdown'"),
        (add.s() | add.s().set(link=5), TypeError, r"chain\[1\]: link takes signatures"),
    ]
    for sig, error, match in cases:
        with pytest.raises(error, match=match):
            sig.delay()
    assert app.broker.counts() == {}


def test_a_generator_that_fails_sends_nothing(app: Liteq, add: Any) -> None:
    def members() -> Iterator[Any]:
        yield add.s(1)
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        chord(members(), add.s()).delay()
    assert app.broker.counts() == {}


def test_a_workflow_has_a_largest_size(app: Liteq, add: Any) -> None:
    app.conf.task_max_workflow_size = 10

    with pytest.raises(ValueError, match=r"more than the 10 calls .*task_max_workflow_size"):
        chord((add.s(i) for i in range(10)), add.s()).delay()
    assert app.broker.counts() == {}


def test_a_name_that_its_module_does_not_have_is_refused(app: Liteq) -> None:
    @app.task
    def charge() -> None: ...

    here = charge.name.rpartition(".")[0]
    with pytest.raises(
        NotRegistered, match=rf"chain\[1\]: no task '{here}\.chrge'.*did you mean"
    ):
        compose(app, chain(signature(charge.name), signature(f"{here}.chrge")))
    with pytest.raises(NotRegistered, match="did you mean"):
        signature(f"{here}.chrge").delay()
    made = compose(app, chain(signature("elsewhere.work"), signature("elsewhere.more")))
    assert [m.task for m in made.messages] == ["elsewhere.work", "elsewhere.more"]


# Deep and long


def test_a_long_chain_and_many_chained_chords_are_composed_in_one_pass(
    app: Liteq, add: Any
) -> None:
    assert len(compose(app, chain(add.s() for _ in range(10_000))).messages) == 10_000
    sig: Any = add.s()
    for _ in range(300):
        sig = sig | group(add.s(), add.s()) | add.s()
    assert len(compose(app, sig).messages) == 1 + 300 * 4
    nested: Any = add.s()
    for _ in range(60):
        nested = chord([add.s()], nested)
    assert len(compose(app, nested).messages) == 1 + 60 * 2


def test_groups_nested_too_deep_are_an_error_and_not_a_crash(app: Liteq, add: Any) -> None:
    sig: Any = add.s()
    for _ in range(200):
        sig = chain(add.s(), group(add.s(), sig))

    with pytest.raises(ValueError, match="nested too deep"):
        sig.delay()


# Inside of a task, and in its place


def test_a_workflow_takes_the_place_of_a_message(app: Liteq, add: Any) -> None:
    (old,) = compose(app, add.s("old").set(task_id="old", group_id="g", group_index=3)).messages

    made = app.sender.compose(add.s("a") | add.s("b"), take_over=old)

    assert made.replaced is not None
    assert json.loads(made.replaced["body"])[0] == ["b"]
    envelope = json.loads(made.replaced["envelope"])
    assert (envelope["group_id"], envelope["group_index"]) == ("g", 3)
    assert envelope["replaced_task_nesting"] == 1
    assert [(e.target, e.on) for e in made.edges] == [("old", "success")]
    assert [m.parent_id for m in made.messages] == ["old"]
    assert made.result.id == "old"


def test_a_group_that_takes_a_place_becomes_a_gather(app: Liteq, add: Any) -> None:
    (old,) = compose(app, add.s("old").set(task_id="old")).messages

    made = app.sender.compose(group(add.s("a"), add.s("b")), take_over=old)

    assert made.replaced is not None
    assert (made.replaced["task"], made.replaced["body"]) == (GATHER, b"fail")
    nothing = app.sender.compose(group(), take_over=old).replaced or {}
    assert (nothing["task"], json.loads(nothing["body"])[0]) == ("liteq.accumulate", [[]])
    with pytest.raises(ImproperlyConfigured, match="empty workflow"):
        app.sender.compose(chain(), take_over=old)


# Graphs


def test_a_graph_has_an_edge_for_each_that_a_node_stands_after(app: Liteq, add: Any) -> None:
    graph = Graph("publish")
    graph.add("join", add.s("join"), after=["right", "left"])
    graph.add("left", add.s("left"), after="fetch")
    graph.add("right", add.s("right"), after="fetch")
    graph.add("fetch", add.s("fetch"))

    made = compose(app, graph)

    assert edges(made) == {"fetch>left", "fetch>right", "right>join", "left>join"}
    positions = {names(made)[e.source]: e.position for e in made.edges if e.position}
    assert positions == {"left": 1}
    assert {m.node for m in made.messages} == {"fetch", "left", "right", "join"}
    assert made.workflow == (made.result.id, "publish")


def test_a_graph_gives_results_by_name(app: Liteq, add: Any) -> None:
    graph = Graph().add("a", add.s("a")).add("b", add.s("b"), after={"source": "a"})

    assert by_name(compose(app, graph), "b").keywords == ("source",)


def test_a_graph_of_several_ends_has_a_result_for_each(app: Liteq, add: Any) -> None:
    graph = Graph().add("a", add.s("a")).add("b", add.s("b"), after="a")
    graph.add("c", group(add.s("c"), add.s("d")), after="a")

    made = compose(app, graph)

    assert isinstance(made.result, GroupResult)
    assert len(made.result.results) == 2
    assert made.workflow is not None
    assert made.workflow.id == made.result.id


def test_a_graph_that_cannot_be_says_why(app: Liteq, add: Any, one: Any) -> None:
    def graph(**after: Any) -> Graph:
        made = Graph("g")
        for name, names in after.items():
            made.add(name, add.s(), after=names)
        return made

    with pytest.raises(ValueError, match="graph 'g' has a cycle: a → c → b → a"):
        graph(start=(), a="b", b="c", c="a", d="a").delay()
    with pytest.raises(ValueError, match=r"'b' comes after 'fecth'.*did you mean 'fetch'"):
        graph(fetch=(), b="fecth").delay()
    with pytest.raises(ValueError, match="node 'b' names 'a' twice in after"):
        graph(a=(), b=["a", "a"])
    with pytest.raises(ValueError, match="has a node 'a' already"):
        graph(a=()).add("a", add.s())
    with pytest.raises(ValueError, match="has no nodes"):
        Graph("g").delay()
    with pytest.raises(ValueError, match="'a' has nothing to run"):
        Graph("g").add("a", group()).add("b", add.s(), after="a").delay()
    with pytest.raises(TypeError, match="takes no link"):
        graph(a=()).apply_async(link=add.s())
    with pytest.raises(TypeError, match="node 'b': one"):
        graph(a=(), c=()).add("b", one.s(), after=["a", "c"]).delay()
    assert app.broker.counts() == {}
