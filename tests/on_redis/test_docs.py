"""The files that the page about many machines shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "many-machines.md"


def shown(name: str) -> dict[str, Any]:
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"```yaml\n# {re.escape(name)}\n(.*?)```", text, re.DOTALL)
    assert found is not None
    loaded: dict[str, Any] = yaml.safe_load(found[1])
    return loaded


def test_the_compose_file_starts_a_server_that_keeps_what_it_is_given() -> None:
    file = shown("compose.yaml")

    services = file["services"]
    assert services.keys() == {"redis", "web", "worker"}
    for service in services.values():
        assert {"image", "command"} <= service.keys()
        assert set(service.get("depends_on", [])) <= services.keys()
    assert "--appendonly yes" in services["redis"]["command"]
    assert "noeviction" in services["redis"]["command"]
    (volume,) = services["redis"]["volumes"]
    assert volume.partition(":")[0] in file["volumes"]


def test_the_kubernetes_file_is_a_deployment_that_selects_its_own_pods() -> None:
    file = shown("worker.yaml")

    spec = file["spec"]
    assert (file["apiVersion"], file["kind"]) == ("apps/v1", "Deployment")
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"][:2] == ["liteq", "worker"]
    assert all(isinstance(word, str) for word in container["command"])
