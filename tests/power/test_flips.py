"""A disk that changes a bit by itself: whatever comes of the store, nothing is run that was
not sent, if messages are signed.

`LITEQ_STORM=1` does it with 500 bits.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
from api import forget_current

from liteq import Liteq
from liteq.brokers.files import DATABASE
from liteq.executor import Executor, ExecutorSettings
from liteq.inline import InlineWorker, attempt_with

FLIPS = 500 if os.environ.get("LITEQ_STORM") else 20
SENT = [((number, f"word{number}"), {"key": [number]}) for number in range(30)]

pytestmark = pytest.mark.untraced


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    forget_current()


def test_a_flipped_bit_runs_nothing_that_was_not_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Any] = []
    with closing(make_app(tmp_path / "whole", ran)) as app:
        for args, kwargs in SENT:
            app.tasks["shop.take"].apply_async(args, kwargs)
    whole = (tmp_path / "whole" / DATABASE).read_bytes()
    places = [at for at, byte in enumerate(whole) if byte]  # the rest is mostly empty
    dice = Random(1)
    ends: Counter[str] = Counter()

    for number in range(FLIPS):
        damaged = bytearray(whole)
        damaged[dice.choice(places)] ^= 1 << dice.randrange(8)
        folder = tmp_path / f"store{number}"
        folder.mkdir(mode=0o700)
        (folder / DATABASE).write_bytes(damaged)
        ran.clear()
        with closing(make_app(folder, ran)) as app:
            try:
                run(app)
            except Exception as exc:
                ends[type(exc).__name__] += 1
            else:
                ends["all ran" if len(ran) == len(SENT) else "some did not run"] += 1
        assert all(call in SENT for call in ran), f"{number}: {ran}"
    with capsys.disabled():
        print(f"\n  {dict(ends)}")
    assert {"all ran", "some did not run", "BrokerError"} <= ends.keys()


def make_app(folder: Path, ran: list[Any]) -> Liteq:
    keys = ["a key of the test's own"]
    app = Liteq("shop", broker=f"sqlite:///{folder}", security_keys=keys, set_as_current=False)

    @app.task(name="shop.take")
    def take(*args: Any, **kwargs: Any) -> None:
        ran.append((args, kwargs))

    return app


def run(app: Liteq) -> None:
    """Run what is there: each message once, unless a flipped bit brings it back."""
    executor = Executor(app.tasks, ExecutorSettings(clock=app.clock, signer=app.signer))
    with InlineWorker(app.broker, attempt_with(executor)) as worker:
        for count, _ in enumerate(worker.run_due()):
            assert count < 10 * len(SENT)
