"""A workflow is drawn as lines of text: in order, each node once, thousands summed up."""

from __future__ import annotations

import time
from typing import Any

from liteq.brokers.base import Node
from liteq.drawing import draw
from liteq.message import GATHER, Edge


def nodes(*names: str, **states: Any) -> list[Node]:
    """Nodes of these names that succeeded, and others by name with their state; a name in
    capitals is a gather."""
    return [
        Node(name, name, GATHER if name.isupper() else "t", state, False, 1.0, 2.0)
        for name, state in {**dict.fromkeys(names, "succeeded"), **states}.items()
    ]


def edges(*pairs: str) -> list[Edge]:
    """Edges written as "a>b" (success, or a part of the gather b) and "a!b" (failure)."""
    made = []
    for at, pair in enumerate(pairs):
        source, target = pair.replace("!", ">").split(">")
        on = "failure" if "!" in pair else "part" if target.isupper() else "success"
        made.append(Edge(source, target, on, at))
    return made


def drawn(nodes: list[Node], edges: list[Edge], **options: Any) -> list[str]:
    return [
        line.prefix + (line.node.name if line.node else line.remark)
        for line in draw(nodes, edges, **options)
    ]


def test_one_after_the_other_stand_under_each_other() -> None:
    assert drawn(nodes("a", "b", "c"), edges("a>b", "b>c")) == ["a", "↓ b", "↓ c"]


def test_what_runs_side_by_side_is_a_branch_and_a_join_goes_on_below() -> None:
    all_nodes = nodes("a", "b1", "b2", "c1", "c2", "G", "d")
    all_edges = edges("a>b1", "a>c1", "b1>b2", "c1>c2", "b2>G", "c2>G", "G>d")

    assert drawn(all_nodes, all_edges) == [
        "a",
        "├─ b1",
        "│  ↓ b2",
        "└─ c1",
        "   ↓ c2",
        "↓ d",
    ]


def test_a_group_has_no_trunk_and_another_may_follow_it() -> None:
    all_nodes = nodes("a", "b", "G", "c", "d")

    assert drawn(all_nodes, edges("a>G", "b>G", "G>c", "G>d")) == [
        "├─ a",
        "└─ b",
        "↓ then",
        "├─ c",
        "└─ d",
    ]


def test_one_that_waits_for_others_too_is_referred_to() -> None:
    all_edges = edges("a>b", "a>c", "b>d", "c>d", "a>e", "e>f", "d>f", "x>f")

    assert drawn(nodes(*"abcdefx"), all_edges) == [
        "├─ a",
        "│  ├─ b",
        "│  ├─ c",
        "│  └─ e",
        "│     → f",
        "│  ↓ d",
        "└─ x",
        "↓ f",
    ]


def test_a_link_is_a_branch_beside_the_way_that_leads_on() -> None:
    assert drawn(nodes("a", "link", "b", "c"), edges("a>link", "a>b", "b>c")) == [
        "a",
        "└─ link",
        "↓ b",
        "↓ c",
    ]


def test_an_error_callback_is_drawn_once_it_was_set_off() -> None:
    chain = edges("a>b", "a!undo")

    assert drawn(nodes("a", "b", undo="waiting"), chain) == ["a", "↓ b"]
    assert drawn(nodes("a", "b", undo="queued"), chain) == ["a", "└─ on failure: undo", "↓ b"]
    assert drawn(nodes("a", undo="running"), edges("a!undo")) == ["a", "└─ on failure: undo"]


def test_of_many_branches_the_rest_is_counted_the_failed_first() -> None:
    names = [f"n{i}" for i in range(1_000)]
    states = {name: "failed" if i % 10 == 9 else "running" for i, name in enumerate(names)}
    group = nodes(G="waiting", **states)
    parts = edges(*(f"{name}>G" for name in names))

    lines = drawn(group, parts, branches=5)

    assert lines == [
        "├─ n0",
        "├─ n1",
        "├─ n9",  # the first that failed are drawn, too
        "├─ n19",
        "├─ n29",
        "└─ … 995 more: 97 failed, 898 running",
    ]
    assert len(drawn(group, parts, branches=None)) == 1_000


def test_a_chain_and_a_group_of_ten_thousand_are_drawn_in_a_moment() -> None:
    names = [f"n{i}" for i in range(10_000)]
    began = time.process_time()

    chain = drawn(nodes(*names), edges(*(f"n{i}>n{i + 1}" for i in range(9_999))))
    group = drawn(nodes(*names, "G", "z"), edges(*(f"{name}>G" for name in names), "G>z"))

    assert len(chain) == 10_000
    assert group[-2:] == ["└─ … 9,990 more: 9,990 succeeded", "↓ z"]
    assert time.process_time() - began < 5


def test_what_branches_too_deeply_is_cut_and_not_an_error() -> None:
    names, pairs = ["n0"], []
    for i in range(200):  # every node has two that lead further
        names += [f"n{i + 1}", f"x{i}", f"y{i}"]
        pairs += [f"n{i}>n{i + 1}", f"n{i}>x{i}", f"x{i}>y{i}"]

    assert any("too deep to draw" in line for line in drawn(nodes(*names), edges(*pairs)))
