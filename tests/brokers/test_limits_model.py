"""Brokers against the arithmetic of limits: see `limits_model.py`."""

from __future__ import annotations

import os

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from brokers.limits_model import LimitsMachine

pytestmark = pytest.mark.untraced

STORM = bool(os.environ.get("LITEQ_STORM"))
EXAMPLES = {"memory": 60, "sqlite": 15, "redis": 20}


@pytest.mark.timeout(3600 if STORM else 120)
@pytest.mark.parametrize("kind", EXAMPLES)
def test_12_a_broker_keeps_limits_as_the_arithmetic_says(kind: str) -> None:
    machine = type("Machine", (LimitsMachine,), {"kind": kind})
    phases = list(Phase) if STORM else [Phase.generate]

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES[kind] * (50 if STORM else 1),
            stateful_step_count=40,
            phases=phases,
        ),
    )
