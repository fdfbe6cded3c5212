from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def who_stands_by_is_looked_for_each_time() -> Iterator[None]:
    """What a test sees must not depend on how fast it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("liteq.brokers.sqlite._BUSY_FOR", 0.0)
        yield
