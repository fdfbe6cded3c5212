"""Brokers against the model: random verbs, and the same visible state after each."""

from __future__ import annotations

import os

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from brokers.model import BrokerMachine
from brokers.model_unique import UniqueMachine

pytestmark = pytest.mark.untraced

STORM = bool(os.environ.get("LITEQ_STORM"))
EXAMPLES = {"memory": 120, "sqlite": 25, "redis": 25}


@pytest.mark.timeout(3600 if STORM else 60)
@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_broker_does_what_the_model_does(kind: str) -> None:
    compare(BrokerMachine, kind, EXAMPLES[kind])


@pytest.mark.timeout(3600 if STORM else 60)
@pytest.mark.parametrize("kind", EXAMPLES)
def test_unique_messages_and_pauses_do_what_the_model_does(kind: str) -> None:
    compare(UniqueMachine, kind, EXAMPLES[kind] // 6)


def compare(model: type[BrokerMachine], kind: str, examples: int) -> None:
    machine = type("Machine", (model,), {"kind": kind})
    examples *= 50 if STORM else 1

    # To shrink a failure takes minutes: LITEQ_STORM=1 does it.
    phases = list(Phase) if STORM else [Phase.generate]

    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=examples, stateful_step_count=40, phases=phases),
    )
