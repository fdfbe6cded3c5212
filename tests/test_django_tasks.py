"""`django.tasks` on liteq: what its contract says of a backend, on every broker."""

from __future__ import annotations

from typing import Any

import django_project
import pytest
import redis_server

pytestmark = pytest.mark.traced

FILES = {
    "proj/settings.py": django_project.SETTINGS
    + """
    if os.environ.get("BROKER"):
        LITEQ_BROKER_URL = os.environ["BROKER"]
        if "SPACE" in os.environ:
            LITEQ_BROKER_TRANSPORT_OPTIONS = {"namespace": os.environ["SPACE"]}
    BACKEND = "liteq.contrib.django.LiteqBackend"
    TASKS = {
        "default": {"BACKEND": BACKEND, "QUEUES": ["default", "mail"]},
        "patient": {
            "BACKEND": BACKEND,
            "OPTIONS": {"max_retries": 1, "default_retry_delay": 0, "time_limit": 60,
                        "autoretry_for": ["builtins.ConnectionError"],
                        "sensitive": ["pin", "word"]},
        },
        "hasty": {"BACKEND": BACKEND, "OPTIONS": {"enqueue_on_commit": False}},
    }
    """,
    "shop/framework.py": """
        try:
            from django import tasks
            from django.tasks.exceptions import *
            from django.tasks import signals
        except ImportError:
            import django_tasks as tasks
            from django_tasks.exceptions import *
            from django_tasks.exceptions import InvalidTaskError as InvalidTask
            from django_tasks import signals
    """,
    "shop/models.py": """
        from django.db import models
        class Order(models.Model):
            name = models.CharField(max_length=20)
    """,
    "shop/tasks.py": """
        from liteq.exceptions import Ignore
        from .framework import tasks
        from .models import Order
        ran = []
        @tasks.task
        def add(x, y=0):
            ran.append((x, y))
            return x + y
        @tasks.task(takes_context=True, queue_name="mail", priority=50)
        def seen(context, word):
            result = context.task_result
            return [context.attempt, result.id, word, result.status, list(result.worker_ids)]
        @tasks.task
        async def count(least):
            return [await Order.objects.acount(), least]
        @tasks.task
        def fail(why):
            raise ValueError(why)
        @tasks.task(backend="patient", takes_context=True)
        def flaky(context, most):
            if context.attempt <= most:
                raise ConnectionError(f"attempt {context.attempt}")
            return [len(context.task_result.errors), context.attempt]
        @tasks.task
        def strange():
            return object()
        @tasks.task(backend="hasty")
        def soon():
            return b"bytes"
        @tasks.task
        def skip():
            raise Ignore
        def unlimited():
            pass
    """,
    "checked.py": """
        import asyncio, datetime, logging, traceback
        from asgiref.sync import async_to_sync
        import django
        django.setup()
        from django.db import connection, transaction
        from django.test.utils import override_settings
        from django.utils import timezone
        from liteq.contrib.django import LiteqBackend
        from liteq.contrib.django.backend import LiteqTask
        from liteq.contrib.django.project import project_app
        from shop import framework
        from shop.framework import signals, tasks
        from shop.models import Order
        from liteq.contrib.django.results import moment
        from shop.tasks import add, count, fail, flaky, ran, seen, skip, soon, strange
        from shop.tasks import unlimited

        app = project_app()
        told = []
        for name in ("task_enqueued", "task_started", "task_finished"):
            def hear(sender, task_result, name=name, **_):
                told.append([name, sender.__name__, task_result.task.name,
                             task_result.status, task_result.attempts])
            getattr(signals, name).connect(hear, weak=False, dispatch_uid=name)
        with connection.schema_editor() as editor:
            editor.create_model(Order)

        def raised(call):
            try:
                call()
            except Exception as exc:
                return [type(exc).__name__, str(exc)]

        def shape(result):
            return {
                "status": result.status, "attempts": result.attempts,
                "errors": [error.exception_class_path for error in result.errors],
                "times": [bool(t) for t in (result.enqueued_at, result.started_at,
                                            result.last_attempted_at, result.finished_at)],
            }

        def value_comes_back():
            told.clear()
            result = add.enqueue(2, y=3)
            before = shape(result)
            app.run_until_empty()
            result.refresh()
            again = add.get_result(result.id)
            return {"before": before, "after": shape(result), "value": result.return_value,
                    "args": again.args, "kwargs": again.kwargs, "told": list(told),
                    "same": again == result, "id": len(result.id) <= 64,
                    "aware": timezone.is_aware(result.enqueued_at),
                    "damaged": [moment(t) for t in (1e15, -1e18, float("inf"))]}

        def failure_is_told():
            told.clear()
            result = fail.enqueue("why")
            records = []
            class Keep(logging.Handler):
                def emit(self, record):
                    records.append(record.exc_info is not None)
            handler = Keep()
            logger = logging.getLogger(tasks.__name__)
            logger.setLevel(logging.INFO)
            logger.addHandler(handler)
            app.run_until_empty()
            logger.removeHandler(handler)
            result.refresh()
            return {"shape": shape(result), "told": list(told), "records": records,
                    "class": result.errors[0].exception_class is ValueError,
                    "traceback": "in fail" in result.errors[0].traceback,
                    "value": raised(lambda: result.return_value)}

        def what_json_has_not():
            result = strange.enqueue()
            app.run_until_empty()
            result.refresh()
            return {"sent": raised(lambda: add.enqueue(object())), "status": result.status,
                    "error": result.errors[0].exception_class_path,
                    "bytes": _value(soon.enqueue())}

        def _value(result):
            app.run_until_empty()
            result.refresh()
            return result.return_value

        def context_is_given():
            result = seen.enqueue(word="a")
            app.run_until_empty(queues=["mail"])
            result.refresh()
            attempt, id, word, status, workers = result.return_value
            return {"attempt": attempt, "id": id == result.id, "word": word, "status": status,
                    "workers": len(workers), "same": workers == result.worker_ids,
                    "queue": result.task.queue_name, "priority": result.task.priority}

        def coroutines_run():
            async def send():
                result = await count.aenqueue(least=1)
                return await count.aget_result(result.id)
            result = asyncio.run(send())
            before = result.status
            app.run_until_empty()
            async def look():
                await result.arefresh()
            asyncio.run(look())
            return {"before": before, "value": result.return_value}

        def retries_are_attempts():
            told.clear()
            well, badly = flaky.enqueue(1), flaky.enqueue(5)
            app.run_until_empty()
            well.refresh(), badly.refresh()
            return {"well": shape(well), "value": well.return_value, "badly": shape(badly),
                    "told": [line for line in told if line[0] == "task_finished"],
                    "nameless": [w for r in (well, badly) for w in r.worker_ids if not w]}

        def only_after_the_commit():
            told.clear()
            with transaction.atomic():
                result = add.enqueue(1)
                inside = [raised(result.refresh)[0], result.enqueued_at, list(told)]
                hasty = soon.enqueue()
                hasty.refresh()
            result.refresh()
            try:
                with transaction.atomic():
                    lost = add.enqueue(1)
                    raise KeyError
            except KeyError:
                lost = raised(lost.refresh)[0]
            app.run_until_empty()
            return {"inside": inside, "after": result.status, "lost": lost}

        def refused_before_the_commit():
            deep = []
            for _ in range(150):
                deep = [deep]
            forever = datetime.datetime.max.replace(tzinfo=datetime.timezone.utc)
            calls = {
                "large": lambda: add.enqueue("x" * 2_000_000),
                "deep": lambda: add.enqueue(deep),
                "far": lambda: add.using(run_after=forever).enqueue(1),
                "by a coroutine": lambda: async_to_sync(add.aenqueue)("x" * 2_000_000),
            }
            where, later = {}, []
            for name, call in calls.items():
                with transaction.atomic():
                    where[name] = (raised(call) or ["nothing"])[0]
                    transaction.on_commit(lambda name=name: later.append(name))
            return {"where": where, "later": later}

        def arguments_are_kept_as_they_were():
            given = [1]
            with transaction.atomic():
                result = add.enqueue(given, y=[])
                given.append(2)
            return {"args": result.args, "value": _value(result)}

        def later_and_first():
            ran.clear()
            low = add.using(priority=-100).enqueue(1)
            usual = add.enqueue(2)
            high = add.using(priority=100).enqueue(3)
            when = timezone.now() + datetime.timedelta(hours=1)
            late = add.using(run_after=when).enqueue(4)
            app.run_until_empty()
            late.refresh()
            return {"order": [x for x, y in ran], "late": late.status,
                    "when": add.get_result(late.id).task.run_after == when,
                    "stored": [app.broker.get([r.id])[r.id].message.priority
                               for r in (low, usual, high)]}

        def what_is_no_task_is_not_run():
            result = app.send_task("shop.models.Order", [1])
            told.clear()
            app.run_until_empty()
            return {"detail": result.detail, "told": list(told),
                    "found": raised(lambda: add.get_backend().get_result(result.id)),
                    "none": raised(lambda: add.get_result("no-such-id"))[0],
                    "other": raised(lambda: fail.get_result(add.enqueue(1).id))[0]}

        def no_result_under_such_an_id():
            longer = add.enqueue(1).id + "\\0"
            ids = ["half \\ud800", "", "x" * 10_000, "a\\0b", longer, 5, None]
            found = [raised(lambda id=id: add.get_result(id)) for id in ids]
            found.append(raised(lambda: async_to_sync(add.aget_result)("half \\ud800")))
            app.run_until_empty()
            return [of and of[0] for of in found]

        def mistakes_show_at_once():
            return {
                "arguments": raised(lambda: add.enqueue(z=1)),
                "context": raised(lambda: seen.enqueue()),
                "queue": raised(lambda: add.using(queue_name="none"))[0],
                "priority": raised(lambda: add.using(priority=101))[0],
                "of a task": raised(lambda: declared(time_limit="long"))[0],
                "secret": raised(lambda: declared(sensitive="kode")),
                "option": raised(lambda: LiteqBackend("x", {"OPTIONS": {"max_retry": 1}})),
                "name": raised(lambda: LiteqBackend("x", {"OPTIONS": {"queue": "a"}})),
                "many": raised(lambda: LiteqBackend("x", {"OPTIONS": {"flush_every": 9}})),
                "flag": raised(
                    lambda: LiteqBackend("x", {"OPTIONS": {"enqueue_on_commit": 1}})
                ),
            }

        def declared(**options):
            return LiteqTask(func=unlimited, priority=0, queue_name="default",
                             backend="patient", run_after=None, **options)

        def options_of_one_task():
            task = declared(max_retries=7, soft_time_limit=5)
            run = app.tasks[task.module_path]
            return {"retries": run.max_retries, "soft": run.soft_time_limit,
                    "limit": run.time_limit, "for": [c.__name__ for c in run.autoretry_for],
                    "copy": task.using(priority=9).max_retries}

        def revoked_is_failed():
            result = add.enqueue(1)
            app.control.revoke(result.id)
            app.run_until_empty()
            result.refresh()
            ignored = skip.enqueue()
            after = app.signature("shop.tasks.fail", ["no"]) | app.signature("shop.tasks.add")
            unmet = after.delay()
            app.run_until_empty()
            ignored.refresh()
            return [shape(result), shape(ignored), shape(add.get_result(unmet.id))]

        def known_under_its_own_name():
            result = add.enqueue(1)
            info = app.AsyncResult(result.id)
            called = app.send_task("shop.tasks.add", [20], {"y": 1})
            app.run_until_empty()
            return {"name": info.name, "called": called.get(timeout=5),
                    "limit": app.tasks["shop.tasks.flaky"].time_limit,
                    "result": add.get_result(called.id).return_value}

        def eager_is_over_at_once():
            app.conf.task_always_eager = True
            try:
                well, badly = add.enqueue(1, y=1), fail.enqueue("x")
                again = flaky.enqueue(1)
            finally:
                app.conf.task_always_eager = False
            return {"well": shape(well), "value": well.return_value, "badly": shape(badly),
                    "again": again.return_value}

        def checks():
            from django.core.checks import run_checks
            def found(**conf):
                for name, value in conf.items():
                    setattr(app.conf, name, value)
                try:
                    backend = LiteqBackend("default", {"QUEUES": ["default", "x"]})
                    return [message.id for message in backend.check()]
                finally:
                    for name in conf:
                        delattr(app.conf, name)
            return {"well": [m.id for m in run_checks() if m.id.startswith("liteq")],
                    "queue": found(), "results": found(result_backend="disabled://"),
                    "wrong": found(result_backend="redis://elsewhere")}

        said = {}
        for test in (
            value_comes_back, failure_is_told, what_json_has_not, context_is_given,
            coroutines_run, retries_are_attempts, only_after_the_commit,
            refused_before_the_commit, arguments_are_kept_as_they_were, later_and_first,
            what_is_no_task_is_not_run, no_result_under_such_an_id,
            mistakes_show_at_once, options_of_one_task, revoked_is_failed,
            known_under_its_own_name, eager_is_over_at_once, checks,
        ):
            try:
                said[test.__name__] = test()
            except Exception:
                said[test.__name__] = traceback.format_exc()
    """,
}


@pytest.fixture(scope="module", params=["sqlite", "memory", "redis"])
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the program of the project says, on each broker."""
    django_project.require_tasks()
    environ: dict[str, str] = {}
    if request.param != "sqlite":
        environ["COVERAGE_PROCESS_CONFIG"] = ""  # it walks the branches of the first again
    if request.param == "redis":
        redis_server.require()

    def ask() -> Any:
        project = django_project.make(tmp_path_factory.mktemp("tasks"), FILES)
        if request.param == "memory":
            environ["BROKER"] = "memory://"
        elif request.param == "redis":
            environ["BROKER"] = redis_server.shared()
            environ["SPACE"] = redis_server.namespace_of(project)
        return django_project.said(project, "checked", **environ)

    return django_project.once(tmp_path_factory, f"tasks-{request.param}", ask)


WHOLE = [True, True, True, True]  # enqueued, started, last attempted, finished


def test_a_value_comes_back_through_the_store(told: Any) -> None:
    answer = told["value_comes_back"]

    heard = answer.pop("told")
    assert answer == {
        "before": {
            "status": "READY",
            "attempts": 0,
            "errors": [],
            "times": [True, False, False, False],
        },
        "after": {"status": "SUCCESSFUL", "attempts": 1, "errors": [], "times": WHOLE},
        "value": 5,
        "args": [2],
        "kwargs": {"y": 3},
        "same": True,
        "id": True,
        "aware": True,
        "damaged": [None, None, None],
    }
    assert heard == [
        ["task_enqueued", "LiteqBackend", "add", "READY", 0],
        ["task_started", "LiteqBackend", "add", "RUNNING", 1],
        ["task_finished", "LiteqBackend", "add", "SUCCESSFUL", 1],
    ]


def test_a_failure_is_told_with_its_exception(told: Any) -> None:
    answer = told["failure_is_told"]

    assert answer["shape"] == {
        "status": "FAILED",
        "attempts": 1,
        "errors": ["builtins.ValueError"],
        "times": WHOLE,
    }
    assert answer["told"][1:] == [
        ["task_started", "LiteqBackend", "fail", "RUNNING", 1],
        ["task_finished", "LiteqBackend", "fail", "FAILED", 1],
    ]
    assert answer["class"]
    assert answer["traceback"]
    assert answer["value"] == ["ValueError", "Task failed"]
    # Django's own receivers: that of the end logs the exception.
    assert answer["records"] == [False, True]


def test_what_json_has_not_is_refused_or_made_what_it_has(told: Any) -> None:
    assert told["what_json_has_not"] == {
        "sent": ["TypeError", "Unsupported type: <class 'object'>"],
        "status": "FAILED",
        "error": "builtins.TypeError",
        "bytes": "bytes",
    }


def test_a_task_is_given_its_context(told: Any) -> None:
    assert told["context_is_given"] == {
        "attempt": 1,
        "id": True,
        "word": "a",
        "status": "RUNNING",
        "workers": 1,
        "same": True,
        "queue": "mail",
        "priority": 50,
    }


def test_coroutines_run_and_are_sent_by_coroutines(told: Any) -> None:
    assert told["coroutines_run"] == {"before": "READY", "value": [0, 1]}


def test_each_retry_is_an_attempt_with_its_worker_and_its_error(told: Any) -> None:
    answer = told["retries_are_attempts"]

    error = "builtins.ConnectionError"
    assert answer["well"] == {
        "status": "SUCCESSFUL",
        "attempts": 2,
        "errors": [error],
        "times": WHOLE,
    }
    assert answer["value"] == [1, 2]
    assert answer["badly"] == {
        "status": "FAILED",
        "attempts": 2,
        "errors": [error, error],
        "times": WHOLE,
    }
    assert answer["told"] == [
        ["task_finished", "LiteqBackend", "flaky", "SUCCESSFUL", 2],
        ["task_finished", "LiteqBackend", "flaky", "FAILED", 2],
    ]
    assert answer["nameless"] == []


def test_a_call_is_sent_after_the_commit_and_never_after_a_rollback(told: Any) -> None:
    assert told["only_after_the_commit"] == {
        "inside": ["TaskResultDoesNotExist", None, []],
        "after": "READY",
        "lost": "TaskResultDoesNotExist",
    }


def test_a_call_that_cannot_be_sent_raises_before_the_commit(told: Any) -> None:
    answer = told["refused_before_the_commit"]

    assert answer["where"] == {
        "large": "MessageTooLarge",
        "deep": "EncodeError",
        "far": "ValueError",
        "by a coroutine": "MessageTooLarge",
    }
    assert answer["later"] == list(answer["where"])


def test_arguments_are_sent_as_they_were_at_the_call(told: Any) -> None:
    assert told["arguments_are_kept_as_they_were"] == {"args": [[1]], "value": [1]}


def test_higher_priorities_are_first_and_none_runs_before_its_time(told: Any) -> None:
    assert told["later_and_first"] == {
        "order": [3, 2, 1],
        "late": "READY",
        "when": True,
        "stored": [0, 4, 9],
    }


def test_nothing_is_run_because_a_message_names_it(told: Any) -> None:
    answer = told["what_is_no_task_is_not_run"]

    assert answer["detail"] == "parked"
    assert not [line for line in answer["told"] if line[2] == "Order"]
    assert answer["found"][0] == "TaskResultDoesNotExist"
    assert "'shop.models.Order', which is not a task here" in answer["found"][1]
    assert answer["none"] == "TaskResultDoesNotExist"
    assert answer["other"] == "TaskResultMismatch"


def test_there_is_no_result_under_an_id_that_no_call_can_have(told: Any) -> None:
    assert told["no_result_under_such_an_id"] == ["TaskResultDoesNotExist"] * 8


def test_mistakes_show_where_they_are_made(told: Any) -> None:
    answer = told["mistakes_show_at_once"]

    assert answer["queue"].startswith("InvalidTask")
    assert answer["priority"].startswith("InvalidTask")
    assert answer["of a task"].startswith("InvalidTask")
    assert answer["arguments"] == ["TypeError", "add() got an unexpected keyword argument 'z'"]
    assert answer["context"] == [
        "TypeError",
        "seen() missing 1 required positional argument: 'word'",
    ]
    assert answer["secret"][0].startswith("InvalidTask")
    assert "has no argument 'kode'" in answer["secret"][1]
    assert answer["option"][1].endswith("no option 'max_retry'; did you mean 'max_retries'?")
    assert answer["name"][1].endswith("set it on each task")
    assert answer["many"][1].endswith("one of Django's runs once per call")
    assert answer["flag"][1].endswith("enqueue_on_commit must be True or False, not 1")


def test_a_task_has_options_of_its_own_before_its_backends(told: Any) -> None:
    assert told["options_of_one_task"] == {
        "retries": 7,
        "soft": 5,
        "limit": 60,
        "for": ["ConnectionError"],
        "copy": 7,
    }


def test_what_was_revoked_ignored_or_never_had_what_it_waited_for_has_failed(
    told: Any,
) -> None:
    unstarted = [True, False, False, True]
    assert [
        (one["status"], one["attempts"], one["errors"], one["times"])
        for one in told["revoked_is_failed"]
    ] == [
        ("FAILED", 0, ["liteq.exceptions.TaskRevokedError"], unstarted),
        ("FAILED", 1, ["liteq.exceptions.Ignore"], WHOLE),
        ("FAILED", 0, ["builtins.ValueError"], unstarted),
    ]


def test_a_task_of_djangos_is_known_by_its_own_name(told: Any) -> None:
    assert told["known_under_its_own_name"] == {
        "name": "shop.tasks.add",
        "called": 21,
        "limit": 60,
        "result": 21,
    }


def test_in_eager_mode_a_call_is_over_at_once(told: Any) -> None:
    assert told["eager_is_over_at_once"] == {
        "well": {"status": "SUCCESSFUL", "attempts": 1, "errors": [], "times": WHOLE},
        "value": 2,
        "badly": {
            "status": "FAILED",
            "attempts": 1,
            "errors": ["builtins.ValueError"],
            "times": WHOLE,
        },
        "again": [0, 2],  # attempts in place are in no store
    }


def test_the_checks_say_what_will_not_work(told: Any) -> None:
    assert told["checks"] == {
        "well": [],
        "queue": ["liteq.W001"],
        "results": ["liteq.W001", "liteq.W002"],
        "wrong": ["liteq.E001"],
    }
