"""A Flask app and its liteq app: contexts, settings, stores, and how each is found."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app, g, has_app_context
from world import uncovered

from liteq import Liteq, current, shared_task, signals
from liteq.contrib.flask import FlaskLiteq
from liteq.discovery import AppNotFound, find_app, load_app
from liteq.exceptions import ConfigWarning, ImproperlyConfigured
from liteq.reference import load, reference

Make = Callable[..., Flask]


@pytest.fixture(autouse=True)
def _no_app_is_left() -> Iterator[None]:
    """Shared tasks and current apps are the process's: leave none to other tests."""
    with current.kept():
        finalizers = list(current._finalizers)
        yield
        current._finalizers[:] = finalizers


@pytest.fixture
def queue() -> FlaskLiteq:
    return FlaskLiteq()


@pytest.fixture
def make(queue: FlaskLiteq, tmp_path: Path) -> Make:
    def make(name: str = "shop", **config: Any) -> Flask:
        app = Flask(name, instance_path=str(tmp_path / name))
        app.config.update({"LITEQ_BROKER_URL": "memory://", **config})
        queue.init_app(app)
        return app

    return make


def liteq_of(app: Flask) -> Liteq:
    found: Liteq = app.extensions["liteq"]
    return found


# Contexts


@pytest.mark.parametrize("pool", ["solo", "threads", "asyncio"])
def test_each_attempt_has_a_context_of_its_own(make: Make, queue: FlaskLiteq, pool: str):
    app = make()
    ended = []
    app.teardown_appcontext(lambda exc: ended.append((g.pop("at", None), exc)))

    @queue.task
    def plain(number):
        assert "at" not in g
        g.at = number
        return current_app.name

    @queue.task
    async def coroutine(number):
        assert "at" not in g
        g.at = number
        return current_app.name

    @queue.task
    def returned(number):
        return coroutine.run(number)  # it begins when this has ended

    results = [plain.delay(1), coroutine.delay(2), plain.delay(3), returned.delay(4)]
    with liteq_of(app).worker(pool=pool, concurrency=1):
        assert [result.get(timeout=10) for result in results] == ["shop"] * 4

    own = [at for at in ended if at != (None, None)]  # and that in which the last was made
    assert sorted(own) == [(1, None), (2, None), (3, None), (4, None)]
    assert not has_app_context()


def test_teardown_functions_are_told_how_an_attempt_ended(make: Make, queue: FlaskLiteq):
    app = make()
    ended: list[Any] = []
    app.teardown_appcontext(ended.append)

    @queue.task(bind=True, max_retries=1)
    def fails(self):
        raise self.retry(exc=ConnectionError("the bank is closed"), countdown=0)

    fails.delay()
    liteq_of(app).run_until_empty()

    assert [type(exc).__name__ for exc in ended] == ["Retry", "ConnectionError"]


def test_a_teardown_function_that_fails_fails_the_task(make: Make, queue: FlaskLiteq):
    app = make()  # one that commits there must not lose what it could not commit

    @app.teardown_appcontext
    def commit(exc):
        raise OSError("the disk is full")

    @queue.task
    def order():
        return "done"

    result = order.delay()
    liteq_of(app).run_until_empty()

    with pytest.raises(OSError, match="the disk is full"):
        result.get()


def test_hooks_have_a_context_too(make: Make, queue: FlaskLiteq):
    app = make()
    seen = []

    class Noting(Liteq.task_cls):
        def before_start(self, task_id, args, kwargs):
            seen.append(("before_start", current_app.name))

        def on_failure(self, exc, task_id, args, kwargs, einfo):
            seen.append(("on_failure", current_app.name))

    @queue.task(base=Noting)
    def fails():
        raise ValueError("no")

    fails.delay()
    liteq_of(app).run_until_empty()

    assert seen == [("before_start", "shop"), ("on_failure", "shop")]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_call_in_place_is_part_of_the_request_around_it(
    make: Make, queue: FlaskLiteq, *, is_async: bool
):
    app = make(LITEQ_TASK_ALWAYS_EAGER=True)
    ended: list[Any] = []
    app.teardown_appcontext(ended.append)

    def name():
        return g.get("user", f"nobody in {current_app.name}")

    async def aname():
        return name()

    task = queue.task(aname if is_async else name)

    with app.app_context():
        g.user = "ada"
        assert task.delay().get() == "ada"
        assert ended == []
    assert ended == [None]
    assert task.delay().get() == "nobody in shop"
    assert ended == [None, None]


def test_what_a_worker_runs_has_a_new_context_even_within_one(make: Make, queue: FlaskLiteq):
    app = make()

    @queue.task
    def name():
        return g.get("user")

    with app.app_context():
        g.user = "ada"
        result = name.delay()
        queue.run_until_empty()  # in this very thread, as `flask liteq worker -P solo`
        assert result.get() is None
        assert g.user == "ada"


# Several Flask apps


def test_two_flask_apps_do_not_mix(make: Make, queue: FlaskLiteq):
    @queue.task
    def early():
        return current_app.name

    one, two = make("one"), make("two")

    @queue.task
    def late():
        return current_app.name

    @shared_task
    def shared():
        return current_app.name

    with two.app_context():
        results = [task.delay() for task in (early, late, shared)]
        with one.app_context():
            assert [task.app for task in (early, late, shared)] == [liteq_of(one)] * 3
            assert queue.main == "one"
        assert queue.main == "two"
    assert liteq_of(one).run_until_empty() == 0
    assert liteq_of(two).run_until_empty() == 3
    with two.app_context():
        assert [liteq_of(two).AsyncResult(each.id).get() for each in results] == ["two"] * 3


def test_without_a_context_one_flask_app_is_meant_and_of_two_none(
    make: Make, queue: FlaskLiteq
):
    @queue.task
    def count():
        return 1

    with pytest.raises(RuntimeError, match="no Flask app has this extension"):
        count.delay()
    assert not isinstance(count, Flask)  # how Flask looks for an app in a module
    assert "stands for nothing" in repr(count)

    one = make("one")
    assert count.app is liteq_of(one)
    assert queue.conf is liteq_of(one).conf

    two = make("two")
    with pytest.raises(RuntimeError, match="several Flask apps have this extension"):
        count.delay()
    with Flask("other").app_context(), pytest.raises(RuntimeError, match="call init_app"):
        count.delay()
    with two.app_context():
        assert count.app is liteq_of(two)


def test_a_flask_app_that_is_gone_makes_none_the_only_one(make: Make, queue: FlaskLiteq):
    for name in ("one", "two"):
        make(name)
        gc.collect()  # whether the first is still there must make no difference
    with pytest.raises(RuntimeError, match="no context of one is active"):
        _ = queue.conf


def test_an_extension_knows_only_its_own_tasks_and_apps(make: Make, queue: FlaskLiteq):
    app = make()
    other = FlaskLiteq()

    @other.task(name="theirs")
    def theirs():
        return 1

    assert "theirs" not in liteq_of(app).tasks
    with app.app_context(), pytest.raises(RuntimeError, match="does not have this extension"):
        theirs.delay()
    with pytest.raises(RuntimeError, match="call init_app once"):
        other.init_app(app)


# Settings


def test_settings_are_those_of_the_flask_app(
    make: Make, queue: FlaskLiteq, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FLASK_LITEQ__TASK_DEFAULT_QUEUE", "mail")
    monkeypatch.setenv("FLASK_LITEQ__RESULT_EXPIRES", "60")
    monkeypatch.setenv("FLASK_LITEQ_RESULT_EXPIRES", "90")
    app = make(LITEQ={"timezone": "Europe/Paris"})
    app.config.from_prefixed_env()  # after init_app: they are read when one is needed

    conf = liteq_of(app).conf
    assert (conf.task_default_queue, conf.timezone) == ("mail", "Europe/Paris")
    assert conf.result_expires == 90  # LITEQ_… wins over LITEQ
    assert conf.broker_url == "memory://"


def test_a_misspelt_setting_is_warned_of(make: Make):
    app = make(LITEQ_TASK_DEFAULT_QEUE="mail", LITEQ={"result_expire": 5})
    with pytest.warns(ConfigWarning) as said:
        assert liteq_of(app).conf.task_default_queue
    assert sorted(str(one.message).partition(" (")[0] for one in said) == [
        "unknown setting 'result_expire': did you mean 'result_expires'?",
        "unknown setting 'task_default_qeue': did you mean 'task_default_queue'?",
    ]


def test_what_is_no_mapping_of_settings_is_refused(make: Make):
    app = make(LITEQ="redis://")
    with pytest.raises(ImproperlyConfigured, match="expected a mapping of settings"):
        _ = liteq_of(app).conf.broker_url


def test_the_store_is_in_the_instance_folder(make: Make, queue: FlaskLiteq, tmp_path: Path):
    app = make(LITEQ_BROKER_URL=None)

    @queue.task
    def count():
        return 1

    count.delay()
    assert (tmp_path / "shop" / "shop.liteq" / "store.db").exists()
    liteq_of(app).close()


def test_options_of_the_extension_are_those_of_each_liteq_app():
    queue = FlaskLiteq(Flask("shop"), broker="memory://", include=["json"])
    assert queue.conf.include == ("json",)


# Children


class Database:
    """What of Flask-SQLAlchemy matters here: engines that are had within a context alone."""

    def __init__(self) -> None:
        self.disposed: list[bool] = []

    @property
    def engines(self) -> dict[Any, Any]:
        assert current_app.extensions["sqlalchemy"] is self
        return {None: self}

    def dispose(self, *, close: bool) -> None:
        self.disposed.append(close)


def test_a_child_leaves_the_connections_of_flask_sqlalchemy_to_its_parent(make: Make):
    app = make()
    database = app.extensions["sqlalchemy"] = Database()
    signals.worker_process_init.send(None)
    assert database.disposed == [False]


def test_a_flask_app_is_not_sent_to_another_process(make: Make):
    app = make()
    with pytest.raises(ImproperlyConfigured, match="is not an attribute of a module"):
        reference(liteq_of(app))
    with pytest.raises(ImproperlyConfigured, match="put it into a module"):
        liteq_of(app).__reduce__()


# How it is found

PROJECT = {
    "web.py": """
        from flask import Flask, current_app
        from liteq.contrib.flask import FlaskLiteq

        queue = FlaskLiteq()

        @queue.task
        def name():
            return current_app.config["NAME"]

        def create_app(name="made"):
            app = Flask(__name__)
            app.config["NAME"] = name
            queue.init_app(app)
            return app

        plain = Flask("plain")
    """,
    "app.py": """
        from liteq.contrib.flask import FlaskLiteq
        import web
        app = web.create_app("global")
    """,
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in PROJECT.items():
        (tmp_path / name).write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("web", "app"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("spec", ["app", "app:app", "app.app", "app.py", "web:create_app()"])
def test_a_flask_app_is_named_for_its_liteq_app(project: Path, spec: str):
    found = load_app(spec)
    assert "web.name" in found.app.tasks
    assert found.app.flask.extensions["liteq"] is found.app


def test_a_flask_app_is_found_where_none_is_named(project: Path):
    found = find_app(directory=project, environ={})
    assert found.reference == "app:app"
    assert reference(found.app) == "app:app"
    assert load("app:app") is found.app


@pytest.mark.parametrize(
    ("spec", "advice"),
    [
        ("web:queue", "name the Flask app that has it, or its factory"),
        ("web:plain", "without liteq: FlaskLiteq"),
        ("web:create_app", "is it a factory?"),
        ("web", r"is it made by a factory\? .* -A 'web:create_app\(\)'"),
    ],
)
def test_what_has_no_liteq_app_is_refused_with_advice(project: Path, spec: str, advice: str):
    with pytest.raises(AppNotFound, match=advice):
        load_app(spec)


def run(folder: Path, *words: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**uncovered(), **environ},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.process
def test_the_command_of_flask_hands_over_to_that_of_liteq(project: Path):
    flask = ("flask", "--app", "web:create_app")
    id = run(project, *flask, "liteq", "call", "web.name").strip()
    run(project, *flask, "liteq", "-q", "worker", "--burst", "-c", "1")
    assert run(project, "liteq", "-A", "web:create_app()", "result", id) == "made\n"


def test_the_command_of_flask_without_words_says_what_there_is(
    make: Make, capsys: pytest.CaptureFixture[str]
):
    command = make().cli.get_command(None, "liteq")  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as ended:
        command.main([], standalone_mode=False)
    assert ended.value.code == 0
    assert "Usage: liteq [OPTIONS] COMMAND" in capsys.readouterr().out


@pytest.mark.process
def test_spawned_children_import_the_flask_app(project: Path):
    liteq = ("liteq", "-A", "app:app", "-q")
    id = run(project, *liteq, "call", "web.name").strip()
    run(project, *liteq, "worker", "--burst", "-c", "1", LITEQ_WORKER_POOL_START_METHOD="spawn")
    assert run(project, *liteq, "result", id) == "global\n"


def test_who_does_not_use_flask_does_not_import_it(tmp_path: Path):
    (tmp_path / "tasks.py").write_text("from liteq import Liteq\napp = Liteq('shop')\n")
    code = (
        "import sys, liteq.embedded\nfrom liteq.discovery import find_app\n"
        "find_app(environ={}).app.tasks\nprint('flask' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


# The dashboard


def test_the_pages_are_served_under_a_path_of_a_flask_app(make: Make):
    from a2wsgi import ASGIMiddleware
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    from liteq.web import asgi_app

    app = make()
    app.add_url_rule("/", "home", lambda: "home")
    pages = ASGIMiddleware(asgi_app(liteq_of(app), auth="ada:secret"))
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/liteq": pages})  # type: ignore[method-assign]

    client = app.test_client()
    assert client.get("/").text == "home"
    # An answer that nobody reads to its end leaves a2wsgi with a task that waits for ever.
    assert client.get("/liteq/", buffered=True).status_code == 401
    page = client.get("/liteq/", auth=("ada", "secret"))
    assert page.status_code == 200
    assert "/liteq/static/" in page.text
