"""A Django project whose tasks were Celery's; each program in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FILES = {
    "proj/__init__.py": """
        from .celery import app as celery_app
    """,
    "proj/celery.py": """
        import os
        from liteq import Celery
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")
        app = Celery("proj")
        app.config_from_object("django.conf:settings", namespace="CELERY")
        app.autodiscover_tasks()
    """,
    "proj/settings.py": """
        SECRET_KEY = "x"
        INSTALLED_APPS = ["shop"]
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
        TIME_ZONE = "America/Chicago"
        CELERY_TASK_DEFAULT_QUEUE = "web"
    """,
    "shop/__init__.py": "",
    "shop/models.py": """
        from django.db import models
        class Order(models.Model):
            name = models.CharField(max_length=20)
    """,
    "shop/tasks.py": """
        from liteq import shared_task
        from . import coroutines
        from .models import Order
        @shared_task
        def count(least=0):
            return Order.objects.count()
        @shared_task
        def touch(name):
            Order.objects.create(name=name)
            return name
    """,
    "overridden.py": """
        from proj.celery import app
        import django
        django.setup()
        from django.test.utils import override_settings
        from shop.tasks import touch
        said = [app.conf.task_always_eager, app.conf.task_default_queue]
        with override_settings(CELERY_TASK_ALWAYS_EAGER=True, CELERY_TASK_DEFAULT_QUEUE="b"):
            said += [app.conf.task_always_eager, app.conf.task_default_queue]
        with override_settings(DEBUG=True):
            said += [app.conf.task_always_eager, app.conf.task_default_queue]
    """,
    "renewed.py": """
        import django
        from proj.celery import app
        django.setup()
        from django.db import connection
        from liteq import signals
        from liteq.beat import Service
        from liteq.workers.announcing import Announcer
        said = []
        def use(*args, **kwargs):
            connection.ensure_connection()
            said.append(connection.close_at != 0)  # a new one, not the old one
            connection.close_at = 0
        use()
        signals.worker_ready.connect(use)
        Announcer(None)(signals.worker_ready, None)
        said.append(connection.connection is None)
        use()
        beat = Service(app)
        beat._open_mailbox = beat.engine.start = lambda: None
        beat.engine.tick = lambda: use() or 1.0
        beat._tick()
        said.append(connection.connection is None)
    """,
    "lazily.py": """
        import django
        from proj.celery import app
        django.setup()
        from django.utils.translation import gettext_lazy, override
        from liteq.serializers import dumps, loads
        with override("de"):
            said = loads(dumps({"a": gettext_lazy("Monday")}, "json"), "json", ("json",))
    """,
    "found.py": """
        from proj.celery import app
        app.import_default_modules()
        said = {"tasks": [n for n in app.tasks if n.startswith("shop.")],
                "zone": str(app.timezone), "queue": app.conf.task_default_queue}
    """,
    "used.py": """
        import django
        from proj.celery import app
        django.setup()
        from django.db import connection, transaction
        from shop.models import Order
        from shop.tasks import count
        with connection.schema_editor() as editor:
            editor.create_model(Order)
        said = {}
        with transaction.atomic():
            Order.objects.create(name="one")
            result = count.delay_on_commit(least=1)
            said["before"] = result.exists()
            try:
                count.delay_on_commit(most=1)
            except TypeError as exc:
                said["wrong"] = str(exc)
        said["after"] = result.exists()
        try:
            with transaction.atomic():
                lost = count.delay_on_commit()
                raise KeyError
        except KeyError:
            said["rolled back"] = lost.exists()
        said["open before"] = connection.connection is not None
        app.run_until_empty()
        said["open after"] = connection.connection is not None
        said["value"] = result.get(timeout=10)
    """,
    "unique.py": """
        import django
        from proj.celery import app
        django.setup()
        from django.db import connection, transaction
        from shop.models import Order
        from shop.tasks import touch
        connection.settings_dict["NAME"] = "unique.sqlite3"
        with connection.schema_editor() as editor:
            editor.create_model(Order)
        first = touch.apply_async(("x",), unique_key="name")
        send = lambda **options: touch.apply_async_on_commit(
            ("x",), unique_key="name", **options)
        said = {"at once": [one.id == first.id and one.duplicate for one in [send()]]}
        with transaction.atomic():
            made = [send(), send(on_conflict="skip"), send(on_conflict="raise")]
            behind = touch.delay_on_commit("behind")
            unheard = touch.apply_async_on_commit(("y",), ignore_result=True)
        said["made"] = [(one.id == first.id, one.duplicate) for one in made]
        app.run_until_empty()
        said["got"] = [one.get(timeout=10) for one in (*made, behind, unheard)]
    """,
    "finished.py": """
        import django
        from proj.celery import app
        django.setup()
        from django.db import connection, transaction
        from shop.models import Order
        from shop.tasks import touch
        connection.settings_dict["NAME"] = "finished.sqlite3"
        with connection.schema_editor() as editor:
            editor.create_model(Order)
        app.conf.task_always_eager = True
        heard = []
        with transaction.atomic():
            good = touch.delay_on_commit("x").then(lambda result: heard.append(result.get()))
            bad = touch.delay_on_commit(None)
            said = {"before": [good.state, bad.state]}
        said["after"] = [good.state, good.get(), good.ready()]
        said["failed"] = [bad.state, type(bad.result).__name__]
        said["heard"] = heard
    """,
    "refused.py": """
        import django
        from proj.celery import app
        django.setup()
        from django.db import connection, transaction
        from liteq.contrib.django import DjangoTask
        from shop.models import Order
        from shop.tasks import count, touch
        connection.settings_dict["NAME"] = "refused.sqlite3"
        with connection.schema_editor() as editor:
            editor.create_model(Order)
        class Own(DjangoTask):
            abstract = True
            def apply_async(self, args=None, kwargs=None, tenant=None, **options):
                return super().apply_async([*args, tenant], kwargs, **options)
        @app.task(base=Own)
        def owned(one, tenant=None):
            return tenant
        calls = {
            "value": lambda: touch.delay_on_commit(object()),
            "large": lambda: touch.delay_on_commit("x" * 2_000_000),
            "priority": lambda: count.apply_async_on_commit(priority=50),
            "misspelt": lambda: count.apply_async_on_commit(count_down=5),
            "link": lambda: count.apply_async_on_commit(link=touch.si(object())),
            "half": lambda: count.apply_async_on_commit(task_id="\\ud800"),
            "own": lambda: owned.apply_async_on_commit((1, 2, 3)),
        }
        said = {"where": {}, "later": []}
        for name, call in calls.items():
            with transaction.atomic():
                Order.objects.create(name=name)
                try:
                    call()
                except Exception as exc:
                    said["where"][name] = type(exc).__name__
                transaction.on_commit(lambda name=name: said["later"].append(name))
        given = [1]
        with transaction.atomic():
            kept = touch.delay_on_commit(given)
            given.append(object())
            tenant = owned.apply_async_on_commit((1,), tenant="two")
            nothing = count.apply_async_on_commit(task_id=None, link=None)
        with transaction.atomic():
            app.conf.task_always_eager = True
            touch.delay_on_commit("eager")
            said["waits"] = Order.objects.filter(name="eager").count()
        said["eager"] = Order.objects.filter(name="eager").count()
        app.conf.task_always_eager = False
        app.run_until_empty()
        said["kept"], said["own"] = kept.get(timeout=10), tenant.get(timeout=10)
        said["nothing"] = nothing.get(timeout=10) > 0
    """,
    "forked.py": """
        from proj.celery import app
        app.import_default_modules()
        from django.db import connection, connections
        from liteq.signals import celeryd_after_setup, worker_process_init
        connection.ensure_connection()
        inherited = connection.connection
        worker_process_init.send(None)
        said = {"child has": connection.connection is not None}
        inherited.execute("select 1")  # the parent's goes on
        connection.ensure_connection()
        celeryd_after_setup.send("worker")
        said["worker has"] = connection.connection is not None
    """,
    "left.py": """
        import django
        from proj.celery import app
        django.setup()
        from django.db import connection, transaction
        from shop.models import Order
        from shop.tasks import count
        connection.settings_dict["NAME"] = "left.sqlite3"
        with connection.schema_editor() as editor:
            editor.create_model(Order)
        @app.task
        def leave_open():
            transaction.atomic().__enter__()
            Order.objects.create(name="lost")
        leave_open.delay()
        result = count.delay()
        app.run_until_empty()
        said = result.get(timeout=10)
    """,
    "shop/coroutines.py": """
        from asgiref.sync import sync_to_async
        from django.db import connection
        from liteq import shared_task
        from liteq.result import allow_join_result
        @sync_to_async
        def is_open():
            return connection.connection is not None
        @sync_to_async
        def open():
            connection.ensure_connection()
        @sync_to_async
        def break_off():
            connection.errors_occurred = True
            connection.is_usable = lambda: False
        @shared_task(name="ask")
        async def ask():
            found = await is_open()
            await open()
            return found
        @shared_task(name="beside")
        async def beside(broken):
            if broken:
                await break_off()
        @shared_task(name="ask_around")
        async def ask_around(broken):
            await open()
            with allow_join_result():
                await beside.delay(broken)
            return await is_open()
    """,
    "coroutines.py": """
        import django
        from proj.celery import app
        django.setup()
        from shop.coroutines import ask, ask_around
        said = {}
        for pool in ("prefork", "threads", "asyncio", "solo"):
            with app.worker(pool=pool, concurrency=1):
                said[pool] = [ask.delay().get(timeout=20) for _ in range(2)]
        with app.worker(pool="asyncio", concurrency=2):
            said["beside another"] = ask_around.delay(False).get(timeout=20)
            said["broken"] = ask_around.delay(True).get(timeout=20)
    """,
    "eager.py": """
        import django
        from proj.celery import app
        django.setup()
        from django.db import connection
        app.conf.task_always_eager = True
        app.import_default_modules()
        @app.task
        def ask():
            connection.ensure_connection()
        ask.delay()
        said = {"open": connection.connection is not None}
    """,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("django")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        lines = [line.removeprefix(" " * 8) for line in text.strip("\n").splitlines()]
        path.write_text("\n".join(lines))
    return folder


def said(project: Path, name: str) -> Any:
    """Run a program of the project in a process of its own; return what it says."""
    code = f"import json, {name}; print(json.dumps({name}.said))"
    environ = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
    environ["PYTHONPATH"] = os.pathsep.join([str(project), *sys.path])
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=project,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_settings_that_a_test_overrides_are_followed(project: Path) -> None:
    assert said(project, "overridden") == [False, "web", True, "b", False, "web"]


def test_connections_of_a_beat_and_of_a_worker_s_own_process_are_renewed(
    project: Path,
) -> None:
    assert said(project, "renewed") == [True] * 6


def test_a_text_that_is_translated_lazily_is_sent_as_it_reads_at_the_call(
    project: Path,
) -> None:
    assert said(project, "lazily") == {"a": "Montag"}


def test_a_worker_sets_the_project_up_and_finds_the_tasks_of_its_apps(project: Path) -> None:
    assert said(project, "found") == {
        "tasks": ["shop.tasks.count", "shop.tasks.touch"],
        "zone": "America/Chicago",
        "queue": "web",
    }


def test_a_call_waits_for_the_commit_and_the_connection_ends_with_the_task(
    project: Path,
) -> None:
    told = said(project, "used")

    assert told.pop("wrong").startswith("count() got an unexpected keyword argument 'most'")
    assert told == {
        "before": False,
        "after": True,
        "rolled back": False,
        "open before": True,
        "open after": False,
        "value": 1,
    }


def test_a_call_that_cannot_be_sent_raises_before_the_commit(project: Path) -> None:
    told = said(project, "refused")

    assert told["where"] == {
        "value": "EncodeError",
        "large": "MessageTooLarge",
        "priority": "ValueError",
        "misspelt": "TypeError",
        "link": "EncodeError",
        "half": "EncodeError",
        "own": "TypeError",
    }
    assert told["later"] == list(told["where"])
    assert told["kept"] == [1]
    assert told["own"] == "two"
    assert told["nothing"]
    assert [told["waits"], told["eager"]] == [0, 1]


def test_the_result_of_a_call_at_the_commit_is_that_of_the_call_which_stands_for_it(
    project: Path,
) -> None:
    assert said(project, "unique") == {
        "at once": [True],
        "made": [[True, True], [False, True], [True, True]],
        "got": ["x", None, "x", "behind", None],
    }


def test_the_result_of_an_eager_call_at_the_commit_is_the_finished_one(project: Path) -> None:
    assert said(project, "finished") == {
        "before": ["PENDING", "PENDING"],
        "after": ["SUCCESS", "x", True],
        "failed": ["FAILURE", "IntegrityError"],
        "heard": ["x"],
    }


def test_no_connection_is_shared_with_a_child(project: Path) -> None:
    assert said(project, "forked") == {"child has": False, "worker has": False}


def test_a_transaction_that_a_task_leaves_open_ends_with_it(project: Path) -> None:
    assert said(project, "left") == 0


def test_the_connections_of_coroutines_end_with_them_but_for_those_beside(
    project: Path,
) -> None:
    told = said(project, "coroutines")

    assert told.pop("beside another") is True
    assert told.pop("broken") is False
    assert told == {pool: [False, False] for pool in ("prefork", "threads", "asyncio", "solo")}


def test_an_eager_task_leaves_its_callers_connection_open(project: Path) -> None:
    assert said(project, "eager") == {"open": True}
