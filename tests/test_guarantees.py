"""The page about guarantees is true: its promises are the contract's, the tests that it names
exist, its counts are those of the code, and `make storm` runs all that has a storm in it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from brokers.mutants import MUTANTS

from liteq.brokers.base import Broker

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "guide" / "guarantees.md").read_text(encoding="utf-8")
PROMISED = re.compile(r"^\| (\d+) \| \*\*(.+?)\.\*\* ", re.MULTILINE)
PROVEN = re.compile(r"^\| (\d+) ([A-Z][^|]*?) \| (.*) \|$", re.MULTILINE)
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)(\*?)`")
CONTRACT = re.compile(r"^ *(\d+)\. +\*(.+?)\.\*", re.MULTILINE)

promised = {int(number): name for number, name in PROMISED.findall(TEXT)}
proven = {int(number): (name, tests) for number, name, tests in PROVEN.findall(TEXT)}


@cache
def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def test_the_promises_are_those_of_the_contract() -> None:
    contract = {int(number): name for number, name in CONTRACT.findall(Broker.__doc__ or "")}
    assert len(contract) >= 13
    assert promised == contract


def test_each_promise_names_tests_that_run_on_every_store() -> None:
    assert {number: name for number, (name, _) in proven.items()} == promised
    for number, (_, tests) in proven.items():
        assert "`tests/brokers/test_" in tests, f"promise {number} has no test of every store"


@pytest.mark.parametrize(
    ("path", "name", "more"), sorted(set(NAMED.findall(TEXT))), ids=lambda part: part or "one"
)
def test_a_test_that_is_named_exists(path: str, name: str, more: str) -> None:
    there = names_in(path)
    found = any(test.startswith(name) for test in there) if more else name in there
    assert found, f"{path} has no {name}{more}"


def test_every_test_is_named_in_full() -> None:
    assert TEXT.count("::") == len(NAMED.findall(TEXT))


def test_the_broken_stores_are_counted() -> None:
    assert f"each of {len(MUTANTS)} broken stores" in TEXT.replace("\n", " ")


def test_every_storm_is_in_make_storm() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^storm:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    paths = re.findall(r"tests/\S+", recipe)
    assert all((ROOT / path).exists() for path in paths)
    storms = [
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests").rglob("test_*.py")
        if "LITEQ_STORM" in file.read_text(encoding="utf-8") and file != Path(__file__)
    ]
    left_out = [one for one in storms if not one.startswith(tuple(paths))]
    assert left_out == []
