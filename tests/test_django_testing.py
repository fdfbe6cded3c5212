"""Tasks that a Django test runs in place: in its own transaction, on every test database."""

from __future__ import annotations

from typing import Any

import django_project
import pytest

pytestmark = pytest.mark.traced

FILES = {
    "proj/settings.py": django_project.SETTINGS
    + """
    if os.environ["TEST_DATABASE"] == "file":
        DATABASES["default"]["TEST"] = {"NAME": BASE_DIR / "tested"}
    TASKS = {"default": {"BACKEND": "liteq.contrib.django.LiteqBackend",
                         "OPTIONS": {"enqueue_on_commit": False}}}
    """,
    "shop/models.py": """
        from django.db import models
        class Order(models.Model):
            name = models.CharField(max_length=20)
    """,
    "shop/tasks.py": """
        from django.db import transaction
        from liteq import shared_task
        from .models import Order
        try:
            from django.tasks import task
        except ImportError:
            from django_tasks import task
        @shared_task
        def rename(name):
            Order.objects.update(name=name)
            return Order.objects.count()
        @shared_task
        def rename_on_commit(name):
            transaction.on_commit(lambda: rename.delay(name))
        @shared_task
        def fail():
            with transaction.atomic():
                Order.objects.update(name="lost")
                raise ValueError
        @task
        def rename_by_django(name):
            Order.objects.update(name=name)
    """,
    "cases.py": """
        from django.test import TestCase
        from liteq.contrib.django.project import project_app
        from liteq.testing import inline, perform
        from shop.models import Order
        from shop.tasks import *
        app = project_app()
        class InTransaction(TestCase):
            @classmethod
            def setUpTestData(cls):
                Order.objects.create(name="one")
            def setUp(self):
                self.calls = self.enterContext(inline(app))
            def drain(self):
                return [run.state for run in self.calls.drain()]
            def name(self):
                return Order.objects.get().name
            def test_drained(self):
                for name in "ab":
                    rename.delay(name)
                    self.assertEqual(self.drain(), ["SUCCESS"])
                    self.assertEqual(self.name(), name)
            def test_nothing_is_left_by_another_test(self):
                self.assertEqual(self.name(), "one")
            def test_performed(self):
                self.assertEqual(perform(rename, "a"), 1)
                self.assertEqual(self.name(), "a")
            def test_what_waits_for_the_commit(self):
                rename_on_commit.delay("a")
                with self.captureOnCommitCallbacks(execute=True):
                    self.drain()
                self.calls.assert_enqueued(rename, args=("a",))
            def test_failed(self):
                fail.delay()
                self.assertEqual(self.drain(), ["FAILURE"])
                self.assertEqual(self.name(), "one")
            def test_a_task_of_djangos(self):
                rename_by_django.enqueue("a")
                self.assertEqual(self.drain(), ["SUCCESS"])
                self.assertEqual(self.name(), "a")
            def test_queries_are_counted(self):
                rename.delay("a")
                with self.assertNumQueries(3):
                    self.name()
                    self.drain()
            def test_a_worker_in_this_thread(self):
                rename.delay("a")
                app.run_until_empty()
                self.assertEqual(self.name(), "a")
    """,
    "tested.py": """
        import unittest
        import django
        from django.test.runner import DiscoverRunner
        django.setup()
        class Keep(unittest.TestResult):
            kept = {}
            def addSuccess(self, test):
                self.kept[test.id()] = ""
            def addFailure(self, test, err):
                self.kept[test.id()] = self._exc_info_to_string(err, test)
            addError = addFailure
        class Runner(DiscoverRunner):
            def run_suite(self, suite, **_):
                suite.run(Keep())
                return Keep()
        Runner(verbosity=0, interactive=False).run_tests(["cases"])
        said = Keep.kept
    """,
}

DATABASES = ("file", "memory")
CASES = (
    "test_drained",
    "test_nothing_is_left_by_another_test",
    "test_performed",
    "test_what_waits_for_the_commit",
    "test_failed",
    "test_a_task_of_djangos",
    "test_queries_are_counted",
    "test_a_worker_in_this_thread",
)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What Django said of each case, on each kind of test database: "" if all was well."""
    django_project.require_tasks()

    def ask() -> Any:
        project = django_project.make(tmp_path_factory.mktemp("django"), FILES)
        return {
            database: django_project.said(project, "tested", TEST_DATABASE=database)
            for database in DATABASES
        }

    return django_project.once(tmp_path_factory, "django-testing", ask)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("database", DATABASES)
def test_a_task_runs_in_the_tests_own_transaction(told: Any, database: str, case: str) -> None:
    assert told[database][f"cases.InTransaction.{case}"] == ""
