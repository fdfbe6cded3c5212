from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from api import app_in_memory, record
from world import uncovered

from liteq import Liteq, Signature, maybe_signature, signature, subtask


@pytest.fixture
def app() -> Iterator[Liteq]:
    with app_in_memory() as app:

        @app.task(name="add")
        def add(x: int, y: int = 0, *more: int, **options: Any) -> int:
            return x + y

        yield app


@pytest.fixture
def add(app: Liteq) -> Any:
    return app.tasks["add"]


# A dictionary


def test_a_signature_is_a_dictionary_with_six_keys(add: Any) -> None:
    assert dict(add.s(1, y=2)) == {
        "task": "add",
        "args": (1,),
        "kwargs": {"y": 2},
        "options": {},
        "subtask_type": None,
        "immutable": False,
    }


def test_a_pickled_workflow_is_one_where_no_workflow_was_made_before(add: Any) -> None:
    pickled = pickle.dumps((add.s(1) | add.s(2), add.s(3)))
    code = (
        "import pickle; from liteq import Liteq; app = Liteq('there')\n"
        f"chain, call = pickle.loads({pickled!r})\n"
        "print(type(chain).__name__, type(call).__name__, type(call | call).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=uncovered(),
    )
    assert done.stdout.split() == ["chain", "Signature", "chain"]


def test_a_signature_survives_json(add: Any) -> None:
    sig = add.s(1, 2).set(queue="high", countdown=5)

    again = signature(json.loads(json.dumps(sig)))

    assert isinstance(again, Signature)
    assert (again.task, again.args, again.options) == (
        "add",
        (1, 2),
        {"queue": "high", "countdown": 5},
    )
    assert record_of(again).queue == "high"


def test_a_signature_can_be_an_argument(app: Liteq, add: Any) -> None:
    result = add.delay(1, callback=add.s(2))

    assert result.kwargs["callback"]["task"] == "add"
    assert maybe_signature(result.kwargs["callback"]).apply().get() == 2


def test_signatures_are_equal_if_they_say_the_same(add: Any) -> None:
    assert add.s(1) == add.s(1) == signature("add", (1,))
    assert add.s(1) != add.s(2)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_a_copy_is_a_signature_of_its_own(add: Any, copied: Any) -> None:
    sig = add.s(1, y=2).set(headers={"a": 1})

    other = copied(sig)
    other.options["headers"]["a"] = 2
    other.kwargs["y"] = 3

    assert isinstance(other, Signature)
    assert (sig.options["headers"], sig.kwargs) == ({"a": 1}, {"y": 2})


# Making


def test_signatures_are_made_of_tasks_names_and_dictionaries(app: Liteq, add: Any) -> None:
    expected = add.s(1, 2)

    assert add.signature((1, 2)) == expected
    assert signature(add, (1, 2)) == expected
    assert signature("add", args=(1, 2)) == expected
    assert subtask("add", (1, 2)) == expected
    assert app.signature("add", (1, 2)).app is app
    assert Signature(dict(expected)) == expected
    assert Signature.from_dict({"task": "add", "args": [1, 2]}) == expected
    assert signature(expected) == expected
    assert signature(expected) is not expected


def test_options_are_given_by_name_or_as_a_dictionary(add: Any) -> None:
    sig = add.signature((1,), {"y": 2}, {"queue": "a"}, countdown=5)

    assert sig.options == {"queue": "a", "countdown": 5}
    assert signature("add", (1,), countdown=5).options == {"countdown": 5}
    assert add.signature((1,), immutable=True).immutable


def test_maybe_signature_leaves_alone_what_is_no_dictionary(app: Liteq, add: Any) -> None:
    sig = add.s(1)

    assert maybe_signature(None) is None
    assert maybe_signature("x") == "x"
    assert maybe_signature(sig) is sig
    assert maybe_signature(sig, clone=True) is not sig
    assert isinstance(maybe_signature(dict(sig), app=app), Signature)


def test_other_kinds_of_signatures_can_be_registered(add: Any) -> None:
    @Signature.register_type("doubled")
    class Doubled(Signature[Any]):
        @classmethod
        def from_dict(cls, d: Any, app: Any = None) -> Any:
            made = cls(dict(d), app=app)
            made.args = made.args * 2
            return made

    try:
        made = signature({**add.s(1), "subtask_type": "doubled"})
        assert isinstance(made, Doubled)
        assert made.args == (1, 1)
    finally:
        del Signature.TYPES["doubled"]


# Merging


def test_arguments_given_later_come_first_and_keywords_win(add: Any) -> None:
    clone = add.s(2, y=3).clone((1,), {"y": 4, "z": 5})

    assert (clone.args, clone.kwargs) == ((1, 2), {"y": 4, "z": 5})


def test_options_given_later_win_and_none_is_ignored(add: Any) -> None:
    clone = add.s().set(queue="a", priority=3).clone(queue="b", priority=None, countdown=1)

    assert clone.options == {"queue": "b", "priority": 3, "countdown": 1}


def test_an_immutable_signature_takes_options_alone(add: Any) -> None:
    clone = add.si(1, y=2).clone((9,), {"y": 9}, queue="b")

    assert (clone.args, clone.kwargs, clone.options) == ((1,), {"y": 2}, {"queue": "b"})
    assert clone.immutable


def test_the_id_of_a_group_and_stamps_never_change(add: Any) -> None:
    sig = add.s().set(group_id="g", stamped_headers=["who"], who="me")

    clone = sig.clone(group_id="h", who="you", stamped_headers=["other"], queue="q")

    assert clone.options == {
        "group_id": "g",
        "stamped_headers": ["who"],
        "who": "me",
        "queue": "q",
    }


def test_replace_puts_whole_sections_in_place(add: Any) -> None:
    sig = add.s(1, y=2).set(queue="a")

    other = sig.replace(args=(5,), kwargs={}, options={"priority": 1})

    assert (other.args, other.kwargs, other.options) == ((5,), {}, {"priority": 1})
    assert (sig.args, sig.options) == ((1,), {"queue": "a"})


def test_set_changes_the_signature_and_returns_it(add: Any) -> None:
    sig = add.s(1)

    assert sig.set(queue="a", immutable=True) is sig
    assert sig.immutable
    sig.set_immutable(False)
    assert not sig.immutable


# Links


def test_links_are_appended_once(add: Any) -> None:
    sig = add.s(1)
    callback = add.s(2)

    assert sig.link(callback) is callback
    sig.link(callback)
    sig.link(add.s(2))
    sig.link(add.s(3))

    assert sig.options["link"] == [callback, add.s(3)]


def test_on_error_returns_the_signature_and_link_error_the_errback(add: Any) -> None:
    sig, errback = add.s(1), add.s(2)

    assert sig.on_error(errback) is sig
    assert sig.link_error(errback) is errback
    assert sig.options["link_error"] == [errback]


def test_links_can_be_listed_with_those_of_links(add: Any) -> None:
    sig = add.s(1)
    second = sig.link(add.s(2))
    third = second.link(add.s(3))

    assert sig.flatten_links() == [sig, second, third]


# Sending


def record_of(sig: Signature[Any]) -> Any:
    return record(sig.app, sig.apply_async().id).message


def test_delay_puts_its_arguments_in_front(app: Liteq, add: Any) -> None:
    assert add.s(2).delay(1).args == (1, 2)


def test_apply_async_merges_options(app: Liteq, add: Any) -> None:
    sig = add.s(1).set(queue="a", priority=3)

    message = record(app, sig.apply_async((5,), priority=4).id).message

    assert (message.queue, message.priority) == ("a", 4)
    assert "priority" in sig.options
    assert sig.options["priority"] == 3


def test_a_signature_of_an_unknown_task_is_sent_by_name(app: Liteq) -> None:
    result = signature("elsewhere.work", (1,), queue="far").delay()

    assert (result.name, result.queue) == ("elsewhere.work", "far")


def test_frozen_a_signature_has_its_id_before_it_is_sent(app: Liteq, add: Any) -> None:
    sig = add.s(1)
    assert sig.id is None

    result = sig.freeze(root_id="r", parent_id="p", group_index=2)

    assert (sig.id, sig.root_id, sig.parent_id) == (result.id, "r", "p")
    assert result.detail == "unknown"
    assert sig.freeze().id == result.id
    assert sig.delay().id == result.id
    assert result.detail == "queued"
    message = record(app, result.id).message
    assert (message.root_id, message.parent_id, message.group_index) == ("r", "p", 2)


def test_a_group_id_is_frozen_once(add: Any) -> None:
    sig = add.s(1)
    sig.freeze(_id="a", group_id="g")
    sig.freeze(_id="b", group_id="h")

    assert (sig.id, sig.options["group_id"]) == ("a", "g")


def test_a_signature_runs_in_place(add: Any) -> None:
    assert add.s(2)(1) == 3
    assert add.s(2).apply((1,)).get() == 3


def test_tilde_sends_and_waits(app: Liteq, add: Any) -> None:
    app.conf.task_always_eager = True

    assert ~add.s(1, 2) == 3


def test_a_pipe_takes_signatures_alone(app: Liteq, add: Any) -> None:
    for other in ({"a": 1}, 5, None, [add.s(2)]):
        with pytest.raises(TypeError, match="cannot be joined"):
            add.s(1) | other
    with pytest.raises(TypeError, match="cannot be joined"):
        {"a": 1} | add.s(1)
    with pytest.raises(TypeError, match=r"write add\.s\(\)"):
        add.s(1) | add


def test_a_signature_shows_the_call(add: Any) -> None:
    assert repr(add.s(1, y="a")) == "add(1, y='a')"
    assert add.s(2).reprcall(1) == "add(1, 2)"


def test_a_signature_names_its_parts(app: Liteq, add: Any) -> None:
    sig = add.s(1)

    assert (sig.name, sig.type, sig.app) == ("add", add, app)
    assert sig.AsyncResult("x").name == "add"
