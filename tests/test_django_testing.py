"""Tasks that a Django test runs in place: in its own transaction, on every test database."""

from __future__ import annotations

from typing import Any

import django_project
import pytest

pytestmark = pytest.mark.traced

FILES = {
    "proj/settings.py": django_project.SETTINGS
    + """
    DATABASES["default"]["OPTIONS"] = {"timeout": 0}
    if os.environ["TEST_DATABASE"] == "file":
        DATABASES["default"]["TEST"] = {"NAME": BASE_DIR / "tested"}
    TASKS = {"default": {"BACKEND": "liteq.contrib.django.LiteqBackend",
                         "OPTIONS": {"enqueue_on_commit": False}},
             "patient": {"BACKEND": "liteq.contrib.django.LiteqBackend"}}
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
        @shared_task
        async def arename(name):
            await Order.objects.aupdate(name=name)
            return await Order.objects.acount()
        @shared_task
        async def afail():
            raise ValueError(await Order.objects.acount())
        @shared_task
        async def acall(name):
            await arename.adelay(name)
        @task
        async def arename_by_django(name):
            await Order.objects.aupdate(name=name)
        @task(backend="patient")
        def rename_by_the_patient(name):
            Order.objects.update(name=name)
            return name
    """,
    "cases.py": """
        from asgiref.sync import sync_to_async
        from django.test import TestCase
        from liteq import chain
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
            def test_coroutines_drained(self):
                for task in (arename, acall):
                    task.delay(task.name)
                    self.assertEqual({*self.drain()}, {"SUCCESS"})
                    self.assertEqual(self.name(), task.name)
            def test_a_coroutine_performed(self):
                self.assertEqual(perform(arename, "a"), 1)
                self.assertEqual(self.name(), "a")
            def test_a_coroutine_applied(self):
                self.assertEqual(arename.apply(("a",)).get(), 1)
                self.assertEqual(self.name(), "a")
            def test_a_coroutine_failed(self):
                afail.delay()
                [run] = self.calls.drain()
                self.assertEqual(repr(run.exception), "ValueError(1)")
                self.assertEqual(run.exception.__traceback__.tb_frame.f_code.co_name, "afail")
            def test_a_coroutine_of_djangos(self):
                arename_by_django.enqueue("a")
                self.assertEqual(self.drain(), ["SUCCESS"])
                self.assertEqual(self.name(), "a")
            async def test_drained_by_a_coroutine(self):
                for task in (rename, arename, acall):
                    await task.adelay(task.name)
                    states = await sync_to_async(self.drain)()
                    self.assertEqual({*states}, {"SUCCESS"})
                    self.assertEqual((await Order.objects.aget()).name, task.name)
            async def test_coroutines_drained_in_the_loop(self):
                for task in (arename, acall):
                    await task.adelay(task.name)
                    self.drain(), self.drain()
                    self.assertEqual((await Order.objects.aget()).name, task.name)
        class Eager(TestCase):
            @classmethod
            def setUpTestData(cls):
                Order.objects.create(name="one")
            def setUp(self):
                app.conf.task_always_eager = app.conf.task_eager_propagates = True
            def tearDown(self):
                app.conf.task_always_eager = app.conf.task_eager_propagates = False
            def test_called(self):
                for task in (rename, arename, acall):
                    task.delay(task.name)
                    self.assertEqual(Order.objects.get().name, task.name)
                for task in (rename_by_django, arename_by_django):
                    task.enqueue(task.name)
                    self.assertEqual(Order.objects.get().name, task.name)
            def test_called_before_a_commit(self):
                result = rename_by_the_patient.enqueue("a")
                self.assertEqual(result.return_value, "a")
                self.assertEqual(Order.objects.get().name, "a")
            async def test_called_by_a_coroutine_before_a_commit(self):
                result = await rename_by_the_patient.aenqueue("a")
                self.assertEqual(result.return_value, "a")
                self.assertEqual((await Order.objects.aget()).name, "a")
            def test_called_on_the_commit(self):
                with self.captureOnCommitCallbacks(execute=True):
                    rename.delay_on_commit("a")
                    self.assertEqual(Order.objects.get().name, "one")
                self.assertEqual(Order.objects.get().name, "a")
            async def test_called_by_a_coroutine(self):
                for task in (rename, arename, acall):
                    await task.adelay(task.name)
                    self.assertEqual((await Order.objects.aget()).name, task.name)
                for task in (rename_by_django, arename_by_django):
                    await task.aenqueue(task.name)
                    self.assertEqual((await Order.objects.aget()).name, task.name)
            async def test_more_than_one_called_by_a_coroutine(self):
                await rename.aenqueue_many([("a",), ("b",)])
                self.assertEqual((await Order.objects.aget()).name, "b")
                await app.aenqueue_many([rename.si("c"), arename.si("d")])
                self.assertEqual((await Order.objects.aget()).name, "d")
                await chain(arename.si("e"), rename.si("f")).aapply_async()
                self.assertEqual((await Order.objects.aget()).name, "f")
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
    "InTransaction.test_drained",
    "InTransaction.test_nothing_is_left_by_another_test",
    "InTransaction.test_performed",
    "InTransaction.test_what_waits_for_the_commit",
    "InTransaction.test_failed",
    "InTransaction.test_a_task_of_djangos",
    "InTransaction.test_queries_are_counted",
    "InTransaction.test_a_worker_in_this_thread",
    "InTransaction.test_coroutines_drained",
    "InTransaction.test_a_coroutine_performed",
    "InTransaction.test_a_coroutine_applied",
    "InTransaction.test_a_coroutine_failed",
    "InTransaction.test_a_coroutine_of_djangos",
    "InTransaction.test_drained_by_a_coroutine",
    "InTransaction.test_coroutines_drained_in_the_loop",
    "Eager.test_called",
    "Eager.test_called_before_a_commit",
    "Eager.test_called_by_a_coroutine_before_a_commit",
    "Eager.test_called_on_the_commit",
    "Eager.test_called_by_a_coroutine",
    "Eager.test_more_than_one_called_by_a_coroutine",
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
    assert told[database][f"cases.{case}"] == ""
