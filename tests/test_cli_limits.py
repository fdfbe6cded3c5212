"""`liteq limits`, on each store: what limits allow, and how an operator changes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio  # noqa: F401 (or each command here would import it anew)
import redis_server
from terminal import Here, Project

from liteq.limits import Limit, allowed_text, rate_limit_of

TASKS = """
from liteq import Concurrency, Liteq, Rate

app = Liteq("shop"{options})


@app.task(rate_limit=Rate("100/m", burst=5), max_concurrency=Concurrency(2, name="workdir"))
def call(n):
    return n


@app.task(rate_limit=Rate("7/h", scope="worker"))
def crawl(n):
    return n
"""


@pytest.fixture(params=["sqlite", "redis"])
def shop(request: pytest.FixtureRequest, project: Project, tmp_path: Path, here: Here) -> Here:
    """A project whose worker has told the store of its limits."""
    options = ""
    if request.param == "redis":
        redis_server.require()
        namespace = redis_server.namespace_of(tmp_path)
        options = (
            f", broker={redis_server.shared()!r}, "
            f'broker_transport_options={{"namespace": {namespace!r}}}'
        )
    project.write("tasks.py", TASKS.format(options=options))
    assert "there is no limit" in here("limits").stderr
    here.burst()
    return here


def limits(here: Here) -> dict[str, Any]:
    return {one["limit"]: one for one in json.loads(here.ok("limits", "--json"))}


def test_limits_are_shown_with_what_they_allow_and_their_tasks(shop: Here) -> None:
    found = limits(shop)
    table = shop.ok("limits").splitlines()

    assert found["tasks.call:rate"]["allows"] == "100/m;burst=5"
    assert found["tasks.crawl:rate"]["allows"] == "7/h"
    assert found["tasks.crawl:rate"]["per_worker"] is True
    assert found["workdir"] == {
        "limit": "workdir",
        "kind": "concurrency",
        "allows": "2",
        "declared": "2",
        "override": None,
        "per_worker": False,
        "tasks": ["tasks.call"],
    }
    assert table[0].split() == ["limit", "kind", "allows", "code", "says", "tasks"]
    assert shop.ok("limits", "list").splitlines() == table


def test_an_operator_changes_limits_until_they_are_reset(shop: Here) -> None:
    said = [
        shop.ok("limits", "set", "tasks.call:rate", "10/s"),
        shop.ok("limits", "set", "workdir", "5"),
        shop.ok("limits", "set", "tasks.crawl:rate", "none"),
    ]
    shop.burst()  # a worker that starts declares what the code says: the operator's word holds
    changed = limits(shop)
    table = shop.ok("limits")
    again = shop.ok("limits", "reset", "workdir", "tasks.call:rate", "tasks.crawl:rate")

    assert said == ["10/s", "5", "no limit"]
    assert [changed[n]["override"] for n in sorted(changed)] == ["10/s", "no limit", "5"]
    assert "10/s" in table
    assert "100/m;burst=5" in table
    assert again.splitlines() == ["2", "100/m;burst=5", "7/h"]
    assert all(one["override"] is None for one in limits(shop).values())
    assert "workdir was not changed" in shop("limits", "reset", "workdir").stderr


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["set", "tasks.call", "1/s"], 3, "did you mean tasks.call:rate or workdir?"),
        (["set", "workdri", "1"], 3, "did you mean workdir?"),
        (["reset", "zzz"], 3, "`liteq limits` lists them"),
        (["set", "workdir", "10/m"], 2, "workdir limits concurrency"),
        (["set", "workdir", "0"], 2, "a number of 1 or more"),
        (["set", "tasks.call:rate", "often"], 2, "'often' is not a rate"),
    ],
)
def test_wrong_words_change_nothing(
    shop: Here, words: list[str], status: int, message: str
) -> None:
    done = shop("limits", *words)

    assert done.returncode == status
    assert message in done.stderr
    assert done.stdout == ""
    assert all(one["override"] is None for one in limits(shop).values())


@pytest.mark.parametrize(
    "text", ["1/s", "100/m", "7/h", "5/d", "2500/s", "100/m;burst=20", "90/h"]
)
def test_a_rate_is_written_as_it_is_read(text: str) -> None:
    made = rate_limit_of("one", text)
    again = rate_limit_of("one", allowed_text(made))

    assert again.burst == made.burst
    assert again.interval == pytest.approx(made.interval)


def test_what_is_no_whole_number_is_written_in_its_first_unit() -> None:
    written: Callable[[float], str] = lambda interval: allowed_text(Limit("one", interval))  # noqa: E731

    assert written(0.3) == "200/m"
    assert written(0.7) == "1.428571429/s"
    assert written(172_800.0) == "0.5/d"
    assert allowed_text(Limit("one")) == "no limit"
