"""Promise 5 at its worst: whatever a message holds, its worker lives on and says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis_server
from hostile import HOSTILE, LIMIT, forge
from world import make, wait_until

from processes.shop import Shop

pytestmark = pytest.mark.process


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    url = redis_server.url_of(tmp_path) if request.param == "redis" else None
    opened = Shop(tmp_path, url=url, task_max_body_size=LIMIT)
    yield opened
    opened.close()


def test_5_what_cannot_be_read_is_kept_with_its_reason_and_its_bytes(shop: Shop) -> None:
    broker, add = shop.app.broker, shop.tasks.add
    sent = {}
    results = []
    for hostile in HOSTILE:
        message = forge(hostile, "tasks.add")
        sent[message.id] = hostile
        broker.enqueue([message])
        results.append(add.delay(len(results), 1))
    stranger = make("os.system", b'[["touch evil"], {}]')
    other = make("tasks.add", b'[["of", "another", "task"], {"evil": 1}]')
    broker.enqueue([stranger, other])
    worker = shop.start("-c", "1")

    assert [one.get(timeout=20) for one in results] == [n + 1 for n in range(len(results))]
    wait_until(lambda: broker.get([other.id])[other.id].final, within=20)
    dead = {record.id: record for record in broker.browse("dead", limit=1000)}

    assert [one.name for id, one in sent.items() if id not in dead] == []
    assert dead.keys() == sent.keys()
    for id, hostile in sent.items():
        record = dead[id]
        assert record.dead is not None
        assert hostile.says in record.dead, (hostile.name, record.dead)
        assert len(record.dead) < 1_000
        assert record.packed[2] == hostile.body
        assert record.deliveries == 1
        assert record.state == "failed"
    assert broker.get([stranger.id])[stranger.id].state == "parked"
    assert broker.get([other.id])[other.id].dead is None  # it ran, and raised TypeError
    assert not list(shop.folder.rglob("evil"))
    assert worker.poll() is None
    assert shop.stop(worker) == 0
