"""Moving a store of which all is signed: messages, results, inputs, periodic entries."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from api import forget_current
from test_signing import NEW, OTHER, make_app, reason, run
from world import FakeClock, Store, make

from liteq import Liteq, chain, chord, group
from liteq.beat import Beat
from liteq.brokers.base import Broker
from liteq.brokers.moving import move
from liteq.exceptions import InvalidSignature
from liteq.serializers import dumps_call

pytestmark = pytest.mark.redis


class Sent(NamedTuple):
    """The ids of calls that were sent to a store before it moved, and what comes of them."""

    ended: dict[str, Any]  # by then
    open: dict[str, Any]  # later
    dead: str
    forged: str
    told: str  # the error callback


@pytest.fixture(autouse=True)
def _current() -> Iterator[None]:
    yield
    forget_current()


@pytest.fixture
def stores(tmp_path: Path, clock: FakeClock) -> Iterator[list[Broker]]:
    """Two SQLite stores, and one on Redis between them."""
    kinds = ("sqlite", "redis", "sqlite")
    opened = [Store(kind, tmp_path / str(n), clock).open() for n, kind in enumerate(kinds)]
    yield opened
    for broker in opened:
        broker.close()


def fill(app: Liteq) -> Sent:
    """Send calls of each kind, run some of them, and leave the rest in the middle."""
    t = app.tasks
    add = t["add"]
    forged = make("add", dumps_call((666,), {}))
    app.broker.enqueue([forged])
    ended = {add.delay(1, 2).id: 3}
    failed = t["fail"].delay()
    run(app)
    members = [add.s(n).set(task_id=f"member {n}") for n in (1, 2, 3)]
    made = {
        chord(members, t["total"].s()).delay(): 6,
        (group(add.s(1), add.s(2)) | t["total"].s() | add.s(4)).delay(): 7,
        chain(add.s(1), add.s(2), add.s(3)).apply_async(priority=9): 6,
        t["become"].delay(): 6,
    }
    run(app, 3)  # the first of the chain, and two members of the chord
    t["fail"].apply_async(link_error=t["tell"].s().set(task_id="told"), task_id="fails")
    made |= {
        add.apply_async((5, 6), countdown=60.0): 11,
        add.apply_async((7,), expires=3600.0): 7,
        t["again"].delay(1): 2,
    }
    app.schedules.add("tick", "add", 30.0, args=(40, 2))
    return Sent(
        ended | {f"member {n}": n for n in (1, 2)},
        {result.id: value for result, value in made.items()},
        failed.id,
        forged.id,
        "told",
    )


def moved(stores: list[Broker]) -> Broker:
    """Move the first store to the last by way of the other."""
    for source, target in pairwise(stores):
        list(move(source, target))
    return stores[-1]


def test_signed_calls_and_values_that_have_moved_are_taken_by_who_has_the_keys(
    stores: list[Broker], clock: FakeClock
) -> None:
    sent = fill(make_app(stores[0], NEW))

    app = make_app(moved(stores), NEW)
    beat = Beat(app)
    beat.tick()
    values = {id: app.AsyncResult(id).get(timeout=0) for id in sent.ended}
    assert values == sent.ended
    with pytest.raises(ValueError, match="no"):
        app.AsyncResult(sent.dead).get(timeout=0)
    run(app)
    clock.advance(61.0)
    beat.tick()
    run(app)

    assert {id: app.AsyncResult(id).get(timeout=0) for id in sent.open} == sent.open
    assert app.AsyncResult(sent.told).get(timeout=0) == "fails no"
    [entry] = app.broker.schedules()
    assert app.AsyncResult(entry.last_id or "").get(timeout=0) == 42
    dead = [record.id for record in app.broker.browse("dead", limit=100)]
    assert dead == [sent.forged]
    assert "not signed" in (reason(app, sent.forged) or "")


def test_signed_calls_that_have_moved_are_dead_letters_to_who_has_other_keys(
    stores: list[Broker], clock: FakeClock
) -> None:
    sent = fill(make_app(stores[0], NEW))

    theirs = make_app(moved(stores), OTHER)
    beat = Beat(theirs)
    beat.tick()
    run(theirs)
    clock.advance(61.0)
    beat.tick()
    run(theirs)

    for id in sent.ended:
        with pytest.raises(InvalidSignature, match="not known"):
            theirs.AsyncResult(id).get(timeout=0)
    dead = {record.id: record.dead for record in theirs.broker.browse("dead", limit=100)}
    assert "not signed" in (dead.pop(sent.forged) or "")
    assert set(map(bool, dead.values())) == {True}
    assert all("not known" in (why or "") for why in dead.values())
    assert not theirs.broker.browse("queued", limit=100)

    ours = make_app(theirs.broker, NEW)
    ours.broker.redrive(list(dead))
    run(ours)

    assert {id: ours.AsyncResult(id).get(timeout=0) for id in sent.open} == sent.open
    assert ours.AsyncResult(sent.told).get(timeout=0) == "fails no"
    beat = Beat(ours)
    beat.tick()
    clock.advance(31.0)
    beat.tick()
    run(ours)
    [entry] = ours.broker.schedules()
    assert ours.AsyncResult(entry.last_id or "").get(timeout=0) == 42
