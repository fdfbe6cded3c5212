"""The model of docs/scaling.md says what must be so where that can be worked out by hand, and
the pages get their figures where their marks are."""

from __future__ import annotations

import sys

import pytest

from benchmarks.simulation import Costs, Plan, simulate

FREE = Costs(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def test_the_model_says_the_same_every_time() -> None:
    plan = Plan(workers=3, computing=0.002, sleeping=0.001)
    costs = FREE._replace(handling=1e-5, settling=2e-5)

    assert simulate(plan, costs, 2_000) == simulate(plan, costs, 2_000)


def test_who_sleeps_is_bounded_by_the_children() -> None:
    found = simulate(Plan(workers=4, children=5, sleeping=0.1), FREE, 1_000)

    assert found.rate == pytest.approx(4 * 5 / 0.1, rel=0.05)


@pytest.mark.parametrize("speed", [1.0, 0.5])
def test_who_computes_is_bounded_by_the_cores(speed: float) -> None:
    plan = Plan(workers=4, children=2, computing=0.01, cores=2, speed=speed)

    found = simulate(plan, FREE, 1_000)

    assert found.rate == pytest.approx(speed * 2 / 0.01, rel=0.05)
    assert found.cores == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("stores", [1, 4])
def test_the_empty_are_bounded_by_the_stores(stores: int) -> None:
    costs = FREE._replace(settling=1e-4, running=1e-6)
    plan = Plan(workers=40, cores=64, machines=40, server=0.0003, stores=stores)

    found = simulate(plan, costs, 5_000)

    assert found.rate == pytest.approx(stores / 1e-4, rel=0.05)
    assert found.store == pytest.approx(1.0, abs=0.02)


def test_rounds_grow_with_the_load_and_share_what_they_cost_once() -> None:
    costs = FREE._replace(step=1e-3, settling=1e-5, running=1e-6)

    one, many = (
        simulate(Plan(workers, children=20, cores=64), costs, 5_000) for workers in (1, 20)
    )

    assert many.batch >= one.batch > 1
    assert many.rate > 10 / costs.step


def test_a_page_gets_its_figures_between_its_marks() -> None:
    from benchmarks.report import into_page

    page = "before\n<!-- x:begin -->\nold\n<!-- x:end -->\nafter\n"

    new = into_page(page, "x", "new")

    assert new == page.replace("old", "new")
    with pytest.raises(SystemExit, match="y:begin"):
        into_page(page, "y", "new")
