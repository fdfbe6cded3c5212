"""Secrets planted in all the ways a program has them, looked for wherever something is shown.

What has to hold them: the bodies of messages and the results, in the store's file. What
must not: everything that is printed, logged, told or drawn, and the records of errors.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

PLANTED = (
    *("positional", "keyword", "nested", "typed", "typed-in-list", "dataclass", "camel"),
    *("header", "stamp", "url-password", "url-token", "declared-entry", "runtime-entry"),
    *("raised", "raised-url", "returned", "returned-by-name", "sensitive", "own-name"),
    *("progress", "handed-on", "dead", "key", "setting", "retried", "replaced"),
)
CANARIES = {name: f"canary-{name}-7f3a9c" for name in PLANTED}

TASKS = """
from dataclasses import dataclass
from liteq import Liteq, Secret, chain

C = {canaries!r}

app = Liteq(
    "shop",
    broker="sqlite://" + {folder!r} + "/shop.liteq",
    security_keys=[C["key"]],
    task_sensitive_names=["iban"],
    beat_schedule={{"declared": {{"task": "login", "schedule": 3600.0,
                    "args": ("bob",), "kwargs": {{"password": C["declared-entry"]}}}}}},
)
app.conf["shop_api_token"] = C["setting"]

@dataclass
class Login:
    user: str
    password: str

@app.task(name="login")
def login(user, password="", **more):
    return "fine"

@app.task(name="use")
def use(*values, **more):
    return [type(value).__name__ for value in values]

@app.task(name="pin", sensitive=["pin"])
def pin(pin):
    raise ValueError(f"wrong: {{pin}}", pin)

@app.task(name="connect")
def connect(url):
    raise ConnectionError(f"cannot connect to {{url}}")

@app.task(name="make")
def make():
    return Secret(C["returned"])

@app.task(name="named")
def named():
    return {{"token": C["returned-by-name"]}}

@app.task(name="step", bind=True)
def step(self, token):
    self.update_state(state="STEP", meta={{"token": C["progress"]}})

@app.task(name="again", bind=True, max_retries=1)
def again(self, token):
    raise self.retry(exc=OSError(f"no entry with {{token}}"), countdown=0)

@app.task(name="become", bind=True)
def become(self):
    raise self.replace(login.s("bob", C["replaced"]))

@app.task(name="lost", acks_on_failure_or_timeout=False)
def lost(user, password):
    raise RuntimeError(f"{{password}} is no password")

def plant(anew=True):
    made = [
        login.delay("bob", C["positional"]),
        login.delay("bob", password=C["keyword"]),
        use.delay({{"deep": [{{"api_key": C["nested"]}}]}}),
        use.delay(Secret(C["typed"])),
        use.delay([Secret(C["typed-in-list"])]),
        use.delay(Login("bob", C["dataclass"])),
        use.delay(authToken=C["camel"]),
        use.apply_async(headers={{"Authorization": C["header"]}}),
        use.apply_async(stamped_headers=["cookie"], cookie=C["stamp"]),
        use.delay("redis://u:" + C["url-password"] + "@host/0"),
        use.delay("https://host/?token=" + C["url-token"]),
        pin.delay(C["sensitive"]),
        login.delay("bob", iban=C["own-name"]),
        login.delay("bob", password=C["raised"], bad=1),
        connect.delay("redis://u:" + C["raised-url"] + "@host/0"),
        named.delay(),
        step.delay("x"),
        again.delay(C["retried"]),
        become.delay(),
        lost.delay("bob", C["dead"]),
        chain(make.s(), use.s(password=C["handed-on"])).delay(),
    ]
    if anew:
        app.schedules.add("runtime", "login", 3600.0, args=("bob",),
                          kwargs={{"password": C["runtime-entry"]}})
    return made
"""


class Place:
    """A project with planted secrets, in which the command is run as a user would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tasks.py").write_text(TASKS.format(canaries=CANARIES, folder=str(folder)))
        made = self.python("import tasks\nfor one in tasks.plant(): print(one.id)")
        self.ids = re.findall(r"^[0-9a-f-]{36}$", made, re.MULTILINE)

    def python(self, code: str) -> str:
        return self._run(sys.executable, "-c", code)

    def liteq(self, *words: str) -> str:
        return self._run(sys.executable, "-m", "liteq", *words)

    def read(self) -> dict[str, str]:
        """Return what each command that reads shows. (In one process: each start of
        Python would take longer than all the commands.)"""
        code = (
            "import sys, tasks\nfrom liteq.cli import main\n"
            f"for words in {reading(self)!r}:\n"
            "    print('$', *words, flush=True)\n"
            "    main(words)\n"
            "    sys.stdout.flush()\n"
        )
        _, *outputs = self.python(code).split("$ ")
        shown = {}
        for output in outputs:
            words, _, text = output.partition("\n")
            shown[words] = text
        return shown

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, "COLUMNS": "400"},
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert "Traceback" not in done.stderr or "liteq.executor" in done.stderr, done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("shop"))


def found_in(text: str) -> list[str]:
    return [name for name, canary in CANARIES.items() if canary in text]


def test_planted_secrets_are_found_nowhere_they_must_not_be(place: Place) -> None:
    assert len(CANARIES) >= 20
    store = place.folder / "shop.liteq"
    body = "".join(p.read_bytes().decode("latin-1") for p in store.glob("store.db*"))
    assert set(found_in(body)) >= {"positional", "typed", "header"}  # the tasks need them
    assert not {"key", "setting"} & set(found_in(body))

    shown = {f"before: {words}": text for words, text in place.read().items()}
    shown["log"] = place.liteq("worker", "--burst", "-c", "1", "-l", "debug", "-B")
    assert "ValueError: ('wrong: ********', '********')" in shown["log"]
    assert "succeeded" in shown["log"]
    place.python("import tasks; tasks.plant(anew=False)")
    shown["json log"] = place.liteq("worker", "--burst", "-c", "1", "--log-format", "json")
    shown |= place.read()
    assert sum(words in shown for words in map(" ".join, reading(place))) == len(reading(place))
    shown["reprs"] = place.python(
        "import tasks\n"
        "t, C = tasks, tasks.C\n"
        "app = t.app\n"
        f"record = app.broker.get([{place.ids[0]!r}])[{place.ids[0]!r}]\n"
        "print(record, record.message, app.conf.table(), app.bugreport(), app.signer)\n"
        "sig = t.login.s('bob', password=C['keyword']) | t.use.si(t.Secret(C['typed']))\n"
        "print(repr(sig), t.login.redacted(('bob', C['positional']), {}))\n"
        "print(app.schedules.list())\n"
        "for record in app.broker.browse('failed'):\n"
        "    result = app.AsyncResult(record.id)\n"
        "    print(repr(result), repr(result.result), result.traceback, result.attempts)\n"
    )
    shown["pages"] = place.python(
        "import tasks\n"
        "from starlette.testclient import TestClient\n"
        "from liteq.web import asgi_app\n"
        "workflow = tasks.app.broker.workflows()[0].id\n"
        f"addresses = ['/task?id=' + id for id in {place.ids!r}]\n"
        "addresses += ['/', '/tasks', '/tasks?dead=1', '/schedules', '/workers']\n"
        "with TestClient(asgi_app(tasks.app, auth=None)) as pages:\n"
        "    for address in [*addresses, '/workflows', '/workflow?id=' + workflow]:\n"
        "        answer = pages.get(address)\n"
        "        print(address, answer.status_code, answer.text)\n"
    )
    assert shown["pages"].count(" 200 <!doctype html>") == len(place.ids) + 7
    assert "********" in shown["pages"]
    leaks = {where: leaked for where, text in shown.items() if (leaked := found_in(text))}
    assert leaks == {}
    assert "********" in shown["dead show " + place.ids[19]]  # it has shown something


def reading(place: Place) -> list[tuple[str, ...]]:
    """Return the commands that show something."""
    each = [("show", id) for id in place.ids]
    return [
        ("queues",),
        ("ls", "--limit", "100"),
        ("ls", "--json", "--limit", "100"),
        ("dead", "list"),
        ("dead", "show", place.ids[19]),
        ("dead", "show", "--json", place.ids[19]),
        ("schedule", "list"),
        ("schedule", "show", "declared"),
        ("schedule", "show", "--json", "runtime"),
        ("config",),
        ("config", "--json"),
        ("report",),
        ("workflow", "list"),
        ("status",),
        ("status", "--watch", "--times", "1", "-t", "0"),
        ("metrics",),
        ("limits", "--json"),
        ("queues", "latency"),
        ("watch", "--json", "--timeout", "0", place.ids[8]),
        *each[:4],
        ("show", "--json", place.ids[7]),
        ("show", place.ids[8]),
        ("show", place.ids[9]),
        ("show", place.ids[11]),
        ("show", "--json", place.ids[17]),
    ]
