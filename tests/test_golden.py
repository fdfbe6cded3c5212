"""What earlier versions left in a store is run by this one: frozen stores, see `golden.py`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import golden
import pytest
import redis_server
from api import forget_current

from liteq import Liteq
from liteq.brokers import schema
from liteq.brokers.files import DATABASE
from liteq.brokers.redis_link import KEYS_VERSION

STORES = sorted(path.stem for path in golden.FOLDER.glob("*.json"))
ON_SQLITE = [name for name in STORES if name.startswith("sqlite")]
ON_REDIS = [name for name in STORES if name.startswith("redis")]


@pytest.mark.parametrize("store", ON_SQLITE)
def test_what_an_earlier_version_left_in_a_store_is_run(store: str, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o700)
    golden.thaw(read(store), tmp_path / "store" / DATABASE)

    run(f"sqlite:///{tmp_path / 'store'}")


@pytest.mark.redis
@pytest.mark.parametrize("store", ON_REDIS)
def test_what_an_earlier_version_left_in_a_store_on_redis_is_run(store: str) -> None:
    redis_server.require()
    with tempfile.TemporaryDirectory(prefix="liteq-") as name:
        server = redis_server.RedisServer(Path(name)).start()
        try:
            golden.thaw_redis(read(store), server.say)

            run(server.url, namespace=golden.NAMESPACE)
        finally:
            server.kill()


def read(store: str) -> dict[str, Any]:
    frozen: dict[str, Any] = json.loads((golden.FOLDER / f"{store}.json").read_text())
    return frozen


def run(url: str, **options: Any) -> None:
    """Run all that is in the store, and compare what came of it."""
    app = Liteq("shop", broker=url, broker_transport_options=options)
    try:
        golden.declare(app)
        assert sum(app.broker.counts()["default"].values()) == len(golden.EXPECTED)

        while app.run_until_empty():
            pass

        ended = {id: app.AsyncResult(id).result for id in golden.EXPECTED}
        failure = ended.pop("golden-failed")
        assert ended == {id: value for id, value in golden.EXPECTED.items() if id in ended}
        assert isinstance(failure, golden.EXPECTED["golden-failed"])
        assert app.broker.counts() == {}
    finally:
        app.close()
        forget_current()


def test_the_present_versions_are_frozen() -> None:
    assert f"sqlite-{schema.VERSION}" in STORES
    assert f"redis-{KEYS_VERSION}" in STORES
