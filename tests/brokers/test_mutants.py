"""A test of the tests: every broken broker must be caught, whatever the dice say.

`make test` throws them once, `LITEQ_STORM=1` with five seeds: a mutant that lives through
one of them shows a test that finds it by luck.
"""

from __future__ import annotations

import os
from inspect import signature
from pathlib import Path

import apsw
import pytest
from hypothesis import Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from world import FakeClock, Store

from brokers import test_contract, test_limits, test_unique, test_workflows
from brokers.limits_model import LimitsMachine
from brokers.limits_mutants import LIMIT_MUTANTS, QUICK
from brokers.model import BrokerMachine
from brokers.mutants import MUTANTS, Mutant

pytestmark = pytest.mark.untraced

MODULES = (test_contract, test_limits, test_unique, test_workflows)
SEEDS = (0, 1, 2, 3, 4) if os.environ.get("LITEQ_STORM") else (None,)


@pytest.mark.parametrize("number", SEEDS)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_broken_broker_is_caught(
    mutant: Mutant, number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant.apply(monkeypatch)

    if mutant.found_by:
        caught = all(contract_fails(name, tmp_path) for name in mutant.found_by)
    else:
        caught = model_fails(number, mutant.model)

    assert caught, f"nothing notices a broker that breaks promise {mutant.promise}"


@pytest.mark.parametrize("number", SEEDS)
@pytest.mark.parametrize("name", LIMIT_MUTANTS if os.environ.get("LITEQ_STORM") else QUICK)
def test_a_broker_that_keeps_no_limits_is_caught(
    name: str, number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    LIMIT_MUTANTS[name](monkeypatch)

    assert model_fails(number, LimitsMachine), f"nothing notices that {name}"


def model_fails(number: int | None, kind: type[RuleBasedStateMachine] = BrokerMachine) -> bool:
    """Tell whether the model notices. No number: the dice of the profile, always the same."""
    machine = type("Machine", (kind,), {})
    if number is not None:
        seed(number)(machine)
    quickly = settings(
        max_examples=1000,
        stateful_step_count=40,
        phases=[Phase.generate],  # the first failure will do: no shrinking
        report_multiple_bugs=False,
        print_blob=False,
    )
    try:
        run_state_machine_as_test(machine, settings=quickly)
    except (AssertionError, apsw.ConstraintError):  # or the store refuses its own row
        return True
    return False


def contract_fails(name: str, folder: Path) -> bool:
    (module,) = (one for one in MODULES if hasattr(one, name))
    test, clock = getattr(module, name), FakeClock()
    broker = Store("memory", folder, clock).open()
    try:
        test(broker, clock) if "clock" in signature(test).parameters else test(broker)
    except (AssertionError, ValueError, apsw.Error):  # ValueError: a lease is missing
        return True
    finally:
        broker.close()
    return False
