"""The calls of a storm: plain ones and workflows, with failures, retries and replacements
among them, and how each must end.

It needs only what every version of liteq has: processes of other versions send them too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from liteq import Liteq
from liteq.canvas import Signature, chain, chord, group
from liteq.ids import new_id


class Expected(NamedTuple):
    """How a call must have ended. `number` is that of its effect, None if it has none."""

    state: str
    number: int | None
    value: Any = None  # of a success
    runs: bool = True  # it is to start at all


class Call(NamedTuple):
    """One or more messages that were sent together: all of them are there, or none."""

    kind: str
    ids: tuple[str, ...]
    send: Callable[[], Any]


class Caller:
    """Makes random calls, and keeps how they must end. Effects are numbered from `first`.
    `batches`: some are of a task that takes many at once, which older versions do not have."""

    def __init__(
        self, app: Liteq, chance: random.Random, first: int = 0, *, batches: bool = False
    ) -> None:
        self.app = app
        self.batches = batches
        self.random = chance
        self.numbers = first
        self.expected: dict[str, Expected] = {}

    def any(self) -> Call:
        """Return a call of a random kind."""
        kinds = {
            self.one: 10,
            self._failing: 1,
            self._flaky: 1,
            self._steps: 2,
            self._broken_chain: 2,
            self._chord: 3,
            self._broken_chord: 2,
            self._nested: 1,
            self._batched: 6 if self.batches else 0,
        }
        make = self.random.choices(list(kinds), list(kinds.values()))[0]
        return make()

    def one(self, ms: int | None = None, **options: Any) -> Call:
        """Return a plain call, with these options."""
        one = self._sign("work", ms=ms, options=options)
        return self._call("call", [one], one)

    def _sign(
        self, task: str, state: str = "succeeded", *, ms: int | None = None, **more: Any
    ) -> Signature[Any, Any]:
        number = self.numbers
        self.numbers += 1
        id = new_id()
        options = {"task_id": id, **more.pop("options", {})}
        self.expected[id] = Expected(state, number, more.pop("value", number * 2), **more)
        ms = ms or self.random.choice((1, 5, 20, 60))
        args = (number,) if task in ("collect", "alarm") else (number, ms)
        immutable = task != "collect"
        return self.app.signature(
            f"storm_app.{task}", args, immutable=immutable, options=options
        )

    def _call(self, kind: str, signatures: list[Any], sent: Any) -> Call:
        return Call(kind, tuple(one.options["task_id"] for one in signatures), sent.delay)

    def _batched(self) -> Call:
        one = self._sign("batched")
        return self._call("batched call", [one], one)

    def _failing(self) -> Call:
        one = self._sign("fail", "failed")
        return self._call("failing call", [one], one)

    def _flaky(self) -> Call:
        one = self._sign("flaky")
        return self._call("retried call", [one], one)

    def _steps(self) -> Call:
        tasks = [self.random.choice(("work", "work", "flaky", "become")) for _ in range(4)]
        steps = [self._sign(task) for task in tasks]
        return self._call("chain", steps, chain(*steps))

    def _broken_chain(self) -> Call:
        first, broken = self._sign("work"), self._sign("fail", "failed")
        never, alarm = self._sign("work", "failed", runs=False), self._sign("alarm")
        broken.link_error(alarm)
        return self._call(
            "broken chain", [first, broken, never, alarm], chain(first, broken, never)
        )

    def _header(self) -> list[Any]:
        size = self.random.randint(2, 7)
        return [
            self._sign(self.random.choice(("work", "work", "work", "flaky", "become")))
            for _ in range(size)
        ]

    def _chord(self) -> Call:
        header = self._header()
        values = [self.expected[one.options["task_id"]].value for one in header]
        body = self._sign("collect", value=values)
        return self._call("chord", [*header, body], chord(header, body))

    def _broken_chord(self) -> Call:
        header = [*self._header(), self._sign("fail", "failed")]
        self.random.shuffle(header)
        body, alarm = self._sign("collect", "failed", runs=False), self._sign("alarm")
        body.link_error(alarm)
        return self._call("broken chord", [*header, body, alarm], chord(header, body))

    def _nested(self) -> Call:
        first, inner = self._sign("work"), [self._sign("work") for _ in range(3)]
        side, last = self._header(), self._sign("work")
        whole = chain(first, group(chain(*inner), *side), last)
        return self._call("nested workflow", [first, *inner, *side, last], whole)
