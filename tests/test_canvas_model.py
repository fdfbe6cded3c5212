"""Random workflows, run on every store and compared with a plain interpreter.

The interpreter walks the workflow as a tree and knows nothing of messages, edges and
gathers. Workers of the test claim in any order, and die now and then before they settle.
What depends on who was first (which of two failed members is told, say) is left open;
every call ends once, and nothing is left waiting.
"""

from __future__ import annotations

import os
import random
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pytest
import world
from api import forget_current
from hypothesis import given, settings
from hypothesis import strategies as st

from liteq import Liteq
from liteq.canvas import chain, chord, group
from liteq.delivery import Delivery
from liteq.exceptions import Ignore
from liteq.executor import Executor, ExecutorSettings
from liteq.ids import new_id
from liteq.outcome import Lost

pytestmark = pytest.mark.untraced

EXAMPLES = settings.default.max_examples // 3 if os.environ.get("LITEQ_STORM") else 30
MOST = 40  # calls in a workflow
KINDS = ("ok",) * 9 + ("fail", "retry", "ignore", "replace", "revoke")

# Workflows as trees


@dataclass
class Call:
    """A call of a task that does what its kind says."""

    kind: str
    instead: Tree | None = None  # of one that is replaced
    label: str = field(default_factory=lambda: new_id()[-17:])
    linked: bool = False  # has a callback and an error callback


@dataclass
class Chain:
    steps: list[Tree]


@dataclass
class Group:
    members: list[Tree]


@dataclass
class Chord:
    members: list[Tree]
    body: Tree
    on_error: str


Tree: TypeAlias = Call | Chain | Group | Chord


def make(
    rng: random.Random, budget: list[int], depth: int = 0, kinds: tuple[str, ...] = KINDS
) -> Tree:
    """Return a random tree of at most `budget[0]` calls, counted down."""
    shape = rng.choice(("call", "call", "chain", "group", "chord")) if depth < 4 else "call"
    if depth == 0 and shape == "call":
        shape = "chain"
    size = rng.randint(1, 4)
    if shape == "call" or budget[0] < size + 1:
        budget[0] -= 1
        kind = rng.choice(kinds)
        instead = None
        if kind == "replace":
            # What is not there yet cannot be revoked before it starts.
            kinds = tuple(one for one in kinds if one != "revoke")
            instead = make(rng, budget, depth + 2, kinds) if budget[0] > 0 else Call("ok")
        return Call(kind, instead, linked=rng.random() < 0.3)
    parts = [make(rng, budget, depth + 1, kinds) for _ in range(size)]
    match shape:
        case "chain":
            return Chain(parts)
        case "group":
            return Group(parts)
        case _:
            policy = rng.choice(("fail", "fail", "collect", "skip"))
            return Chord(parts, make(rng, budget, depth + 1, kinds), policy)


# What they come to


class Unknown:
    """What depends on who was first, and all that comes of it."""


@dataclass
class Bad:
    """It has no value. `certain`: it failed, and was neither revoked nor ignored."""

    certain: bool


Outcome: TypeAlias = Any  # a value, Bad, or Unknown


@dataclass
class Expected:
    ran: set[str] = field(default_factory=set)  # labels of calls that ended by running
    perhaps: set[str] = field(default_factory=set)  # those of which it is open
    told: set[str] = field(default_factory=set)  # whose error callback was called
    perhaps_told: set[str] = field(default_factory=set)
    linked: set[str] = field(default_factory=set)  # whose callback was called


def digest(label: str, args: list[Any]) -> int:
    return zlib.crc32(repr((label, args)).encode())


def plain(value: Any) -> Any:
    """Return a value with "error" for each exception in it, for the order alone."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    return "error" if isinstance(value, BaseException) else value


class Interpreter:
    """Walks a tree. `given` is what a call is given by what is before it: no argument, one
    value, or an outcome that keeps it from running."""

    def __init__(self) -> None:
        self.expected = Expected()

    def run(self, tree: Tree, given: list[Any] | Outcome, *, behind: bool = False) -> Outcome:
        """Return the outcome; a group's is the list of its members' outcomes. `behind`:
        right behind a gather, whose failure a call tells its error callback."""
        match tree:
            case Call():
                return self.call(tree, given, behind=behind)
            case Chain(steps):
                return self.chain(steps, given, behind=behind)
            case Group(members):
                return [self.run(one, given, behind=behind) for one in flat(members)]
            case Chord(members, body, policy):
                parts = [self.run(one, given, behind=behind) for one in flat(members)]
                gathered = gather(parts, policy)
                return self.run(body, as_given(gathered), behind=True)

    def chain(self, steps: list[Tree], given: Any, *, behind: bool) -> Outcome:
        outcome: Outcome = None
        steps = list(unnested(steps))
        for number, step in enumerate(steps):
            outcome = self.run(step, given, behind=behind)
            if number < len(steps) - 1:
                if ends_in_group(step):
                    outcome = gather(outcome, "fail")
                behind = becomes_gather(step)
                given = as_given(outcome)
        return outcome

    def call(self, call: Call, given: Any, *, behind: bool) -> Outcome:
        expected = self.expected
        if isinstance(given, Unknown):
            self.leave_open(call)
            return Unknown()
        if call.kind == "revoke":
            if isinstance(given, Bad):  # revoked first, or failed first
                expected.perhaps_told.add(call.label)
            else:
                expected.told.add(call.label)
            return Bad(certain=False)
        if isinstance(given, Bad):
            if behind:
                expected.perhaps_told.add(call.label)
            return given
        match call.kind:
            case "fail":
                expected.ran.add(call.label)
                expected.told.add(call.label)
                return Bad(certain=True)
            case "ignore":
                expected.ran.add(call.label)
                return Bad(certain=False)
            case "replace":
                assert call.instead is not None
                outcome = self.run(call.instead, given)
                if ends_in_group(call.instead):
                    outcome = gather(outcome, "fail")
                if isinstance(outcome, (Unknown, Bad)):
                    expected.perhaps_told.add(call.label)
                    if isinstance(outcome, Unknown):
                        expected.perhaps.add(call.label)
                else:
                    expected.linked.add(call.label)
                return outcome
            case _:
                expected.ran.add(call.label)
                expected.linked.add(call.label)
                return digest(call.label, plain(given))

    def leave_open(self, tree: Tree) -> None:
        for call in calls(tree):
            self.expected.perhaps.add(call.label)
            self.expected.perhaps_told.add(call.label)


def as_given(outcome: Outcome) -> Any:
    return outcome if isinstance(outcome, (Bad, Unknown)) else [outcome]


def gather(parts: list[Outcome], policy: str) -> Outcome:
    """Return what a gather comes to, by its policy; nested lists are gathers of their own."""
    parts = [gather(one, policy) if isinstance(one, list) else one for one in parts]
    bad = [one for one in parts if isinstance(one, Bad)]
    if any(isinstance(one, Unknown) for one in parts):
        return Unknown()
    if not bad:
        return parts
    if policy == "fail":
        return Bad(certain=all(one.certain for one in bad))
    if not all(one.certain for one in bad):
        return Unknown()
    if policy == "collect":
        return ["error" if isinstance(one, Bad) else one for one in parts]
    return [one for one in parts if not isinstance(one, Bad)]


def flat(members: list[Tree]) -> Iterator[Tree]:
    for member in members:
        if isinstance(member, Group):
            yield from flat(member.members)
        else:
            yield member


def unnested(steps: list[Tree]) -> Iterator[Tree]:
    """Yield the steps of a chain, those of chains in it too, and one for a group of one."""
    for step in steps:
        match step:
            case Chain(inner):
                yield from unnested(inner)
            case Group([only]):
                yield from unnested([only])
            case _:
                yield step


def ends_in_group(tree: Tree) -> bool:
    match tree:
        case Group():
            return True
        case Chain(steps):
            last = list(unnested(steps))[-1]
            return ends_in_group(last)
        case Chord(_, body, _):
            return ends_in_group(body)
        case _:
            return False


def becomes_gather(tree: Tree) -> bool:
    """Tell whether the last message of a tree is a gather, perhaps by a replacement."""
    match tree:
        case Call(_, instead):
            return instead is not None and becomes_gather(instead)
        case Group():
            return True
        case Chain(steps):
            return becomes_gather(list(unnested(steps))[-1])
        case Chord(_, body, _):
            return becomes_gather(body)


def calls(tree: Tree) -> Iterator[Call]:
    match tree:
        case Call():
            yield tree
            if tree.instead is not None:
                yield from calls(tree.instead)
        case Chain(parts) | Group(parts):
            for part in parts:
                yield from calls(part)
        case Chord(members, body, _):
            for part in (*members, body):
                yield from calls(part)


# The same, on a store


class Shop:
    """An app on a store, with the tasks of the trees, and workers that may die."""

    def __init__(self, store: world.Store) -> None:
        self.broker = store.open(max_deliveries=10_000)
        self.clock = store.clock
        self.app = Liteq("shop", broker="memory://", clock=store.clock)
        self.app.broker = self.broker
        self.ran: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        self.linked: Counter[str] = Counter()
        self.instead: dict[str, Tree] = {}
        self._tasks()
        self.worker = self.broker.register("w", ("default",), 4, {})
        self.executor = Executor(
            self.app.tasks, ExecutorSettings(clock=store.clock, signer=self.app.signer)
        )

    def _tasks(self) -> None:
        @self.app.task(name="work", bind=True, max_retries=None)
        def work(task: Any, *args: Any) -> int:
            *given, kind, label = args
            if kind == "retry" and not task.request.retries:
                raise task.retry(countdown=0)
            if kind == "replace":
                raise task.replace(self.signature(self.instead[label]).clone(plain(given)))
            self.ran[label] += 1
            if kind == "fail":
                raise ValueError(label)
            if kind == "ignore":
                raise Ignore
            return digest(label, plain(given))

        @self.app.task(name="tell")
        def tell(request: Any, exc: Any, traceback: Any, label: str) -> None:
            self.told[label] += 1

        @self.app.task(name="note")
        def note(value: Any, label: str) -> None:
            self.linked[label] += 1

        self.work, self.tell, self.note = work, tell, note

    def signature(self, tree: Tree) -> Any:
        match tree:
            case Call():
                sig = self.work.s(tree.kind, tree.label)
                if tree.instead is not None:
                    self.instead[tree.label] = tree.instead
                if tree.kind == "revoke":
                    sig.set(task_id=tree.label)
                if tree.linked:
                    sig.link(self.note.s(tree.label))
                    sig.link_error(self.tell.s(tree.label))
                return sig
            case Chain(steps):
                return chain(self.signature(step) for step in steps)
            case Group(members):
                return group([self.signature(member) for member in members])
            case Chord(members, body, policy):
                header = [self.signature(member) for member in members]
                return chord(header, self.signature(body), on_error=policy)  # type: ignore[call-overload]

    def work_off(self, rng: random.Random, deaths: float) -> None:
        """Claim and run until nothing is left, in any order, dying now and then."""
        while leases := self.broker.claim(self.worker, ("default",), rng.randint(1, 5)):
            for lease in rng.sample(leases, len(leases)):
                if rng.random() < deaths:
                    assert self.broker.settle(self.worker, lease, Lost("killed"))
                    continue
                delivery = Delivery(lease.packed, lease.delivery, lease.inputs)
                outcome = self.executor.run(delivery)
                assert self.broker.settle(self.worker, lease, outcome)
                assert not self.broker.settle(self.worker, lease, outcome)

    def close(self) -> None:
        self.broker.close()
        forget_current()


@pytest.fixture
def shop(store: world.Store) -> Iterator[Shop]:
    shop = Shop(store)
    yield shop
    shop.close()


@given(seed=st.integers(0, 2**32 - 1))
@settings(
    max_examples=EXAMPLES, suppress_health_check=list(settings.default.suppress_health_check)
)
def check(shop: Shop, seed: int) -> None:
    rng = random.Random(seed)
    tree = make(rng, [MOST])
    for seen in (shop.ran, shop.told, shop.linked):
        seen.clear()
    interpreter = Interpreter()
    outcome = interpreter.run(tree, [])
    expected = interpreter.expected

    result = shop.signature(tree).delay()
    revoked = [call.label for call in calls(tree) if call.kind == "revoke"]
    shop.broker.revoke(revoked)
    shop.work_off(rng, deaths=rng.choice((0.0, 0.2)))

    assert shop.broker.counts() == {}
    compare(shop, tree, expected)
    same(result, outcome)


def compare(shop: Shop, tree: Tree, expected: Expected) -> None:
    linked = {call.label for call in calls(tree) if call.linked}
    perhaps = expected.perhaps
    for seen, surely, maybe in (
        (shop.ran, expected.ran, perhaps),
        (shop.linked, expected.linked & linked, perhaps & linked),
        (shop.told, expected.told & linked, expected.perhaps_told & linked),
    ):
        assert surely <= set(seen) <= surely | maybe
        assert max(seen.values(), default=1) == 1


def same(result: Any, outcome: Outcome) -> None:
    """Compare a result with an outcome; one of a group, member by member."""
    if isinstance(outcome, Unknown):
        result.get(timeout=0, propagate=False)  # it has ended, in whatever way
    elif isinstance(outcome, list) and hasattr(result, "results"):
        assert len(result.results) == len(outcome)
        for member, part in zip(result.results, outcome, strict=True):
            same(member, part)
    elif isinstance(outcome, Bad):
        assert result.state == "FAILURE" or (not outcome.certain and result.state != "SUCCESS")
        assert isinstance(result.get(timeout=0, propagate=False), (Exception, type(None)))
    else:
        assert plain(result.get(timeout=0)) == outcome


@pytest.mark.timeout(900)
def test_random_workflows_come_to_what_the_interpreter_says(shop: Shop) -> None:
    check(shop)
