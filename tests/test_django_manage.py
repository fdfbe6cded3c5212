"""`manage.py liteq …` in a project that has no app of its own: workers, beats, exit codes."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import django_project
import pytest

pytestmark = pytest.mark.process

FILES = {
    "proj/settings.py": django_project.SETTINGS
    + """
    TASKS = {"default": {"BACKEND": "liteq.contrib.django.LiteqBackend",
                         "QUEUES": ["default", "mail"]}}
    LITEQ_TASK_MAX_DELIVERIES = 1
    LITEQ_TASK_DEFAULT_QUEUE = "web"
    if os.environ.get("BROKEN"):
        TASKS["default"]["OPTIONS"] = {"time_limits": 5}
    """,
    "shop/tasks.py": """
        import os, signal
        try:
            from django import tasks
        except ImportError:
            import django_tasks as tasks
        from liteq import shared_task
        @tasks.task(queue_name="mail", takes_context=True)
        def write(context, word):
            return [word, context.task_result.id, os.getpid()]
        @tasks.task
        def die():
            os.kill(os.getpid(), signal.SIGKILL)
        @shared_task
        def plain(x):
            return x
    """,
    "shop/apps.py": """
        import os
        from django.apps import AppConfig
        class ShopConfig(AppConfig):
            name = "shop"
            def ready(self):
                try:
                    from django.tasks import signals
                except ImportError:
                    from django_tasks import signals
                def hear(sender, task_result, **_):
                    with open("heard", "a") as file:
                        error = [e.exception_class_path for e in task_result.errors]
                        print(task_result.task.name, task_result.status, *error, file=file)
                signals.task_finished.connect(hear, weak=False, dispatch_uid="hear")
    """,
    "sent.py": """
        import os, django
        django.setup()
        from liteq.contrib.django.project import project_app
        from shop.tasks import die, plain, write
        sent = [write.enqueue("a"), die.enqueue()]
        said = {"ids": [r.id for r in sent] + [plain.delay(3).id], "pid": os.getpid()}
    """,
    "seen.py": """
        import json, os, django
        django.setup()
        from shop.tasks import die, plain, write
        one, two, three = json.loads(os.environ["IDS"])
        well, badly = write.get_result(one), die.get_result(two)
        said = {"value": well.return_value, "plain": plain.AsyncResult(three).get(timeout=1),
                "badly": [badly.status, badly.errors[-1].exception_class_path, badly.attempts]}
    """,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    django_project.require_tasks()
    return django_project.make(tmp_path_factory.mktemp("manage"), FILES)


@pytest.mark.traced
def test_a_worker_runs_what_a_project_without_an_app_has_sent(project: Path) -> None:
    sent = django_project.said(project, "sent")

    ran = django_project.manage(project, "liteq", "worker", "--burst", "-c", "1")

    assert ran.returncode == 0, ran.stderr
    seen = django_project.said(project, "seen", IDS=json.dumps(sent["ids"]))
    word, id, pid = seen["value"]
    assert (word, id) == ("a", sent["ids"][0])
    assert pid != sent["pid"]
    assert seen["plain"] == 3
    assert (project / "proj.liteq" / "store.db").exists()
    # A task whose process was killed has failed, and the worker's own process says so.
    assert seen["badly"] == ["FAILED", "liteq.exceptions.WorkerLostError", 1]
    assert sorted((project / "heard").read_text().splitlines()) == [
        "die FAILED liteq.exceptions.WorkerLostError",
        "write SUCCESSFUL",
    ]


@pytest.mark.traced
def test_the_first_steps_of_the_guide_lead_to_a_task_that_has_run(tmp_path: Path) -> None:
    django_project.require_tasks()
    guide = Path(__file__).parent.parent / "docs" / "guide" / "django.md"
    blocks = re.findall(r"^```py\n# (\S+\.py)\n(.*?)^```$", guide.read_text(), re.M | re.S)
    files = dict(blocks[:2])
    if not find_spec("django.tasks"):
        files = {
            name: text.replace("django.tasks", "django_tasks") for name, text in files.items()
        }
    files["proj/settings.py"] = dedent(django_project.SETTINGS) + files["proj/settings.py"]
    files["view.py"] = """
        import django
        django.setup()
        from shop.tasks import welcome
        result = welcome.enqueue("Ada")
        default = welcome.get_backend().app
        default.run_until_empty()
        result.refresh()
        said = [result.return_value, default.broker_url]
        from django.test.utils import override_settings
        from liteq.contrib.django import project
        with override_settings(BASE_DIR=None):
            said.append(str(project._base_dir()))
    """
    project = django_project.make(tmp_path, files)

    said = django_project.said(project, "view")

    assert said == ["Hello Ada", f"sqlite://{tmp_path}/proj.liteq", str(tmp_path)]


OWN = {
    "proj/settings.py": django_project.SETTINGS
    + """
    TASKS = {"default": {"BACKEND": "liteq.contrib.django.LiteqBackend"}}
    LITEQ_APP = "proj.background:own"
    LITEQ_TASK_DEFAULT_QUEUE = "web"
    """,
    "proj/background.py": """
        from liteq import Liteq
        own = Liteq("own")
        own.config_from_object("django.conf:settings", namespace="LITEQ")
        own.autodiscover_tasks()
        other = Liteq("other")
    """,
    "shop/tasks.py": """
        try:
            from django.tasks import task
        except ImportError:
            from django_tasks import task
        @task
        def same(x):
            return x
    """,
    "called.py": """
        import django
        django.setup()
        from django.core.management import CommandError, call_command
        from shop.tasks import same
        result = same.enqueue(5)
        message = result.task.get_backend().app.AsyncResult(result.id)
        said = {"app": message.app.main, "queue": message.queue}
        call_command("liteq", "worker", "--burst", "--pool", "solo")
        said["value"] = same.get_result(result.id).return_value
        try:
            call_command("liteq", "show", "none")
        except CommandError as exc:
            said["code"] = exc.returncode
    """,
}


@pytest.mark.traced
def test_tasks_go_to_the_app_that_the_settings_name(tmp_path: Path) -> None:
    django_project.require_tasks()
    project = django_project.make(tmp_path, OWN)

    said = django_project.said(project, "called")

    assert said == {"app": "own", "queue": "web", "value": 5, "code": 3}


@pytest.mark.traced
def test_its_words_options_and_exit_codes_are_those_of_the_command_line(project: Path) -> None:
    shown = django_project.manage(
        project, "liteq", "--settings", "proj.settings", "show", "none"
    )
    assert (shown.returncode, shown.stdout) == (3, "")

    version = django_project.manage(project, "liteq", "--settings=proj.settings", "--version")
    assert version.returncode == 0
    assert version.stdout.startswith("liteq ")


@pytest.mark.traced
def test_a_worker_is_not_started_while_the_checks_say_no(project: Path) -> None:
    ran = django_project.manage(project, "liteq", "worker", "--burst", BROKEN="1")

    assert ran.returncode == 2
    assert "no option 'time_limits'; did you mean" in ran.stderr


BARE = {
    "proj/settings.py": """
        SECRET_KEY = "x"
        USE_TZ = False
        TIME_ZONE = "Asia/Tokyo"
        INSTALLED_APPS = ["shop"]
        TASKS = {"default": {"BACKEND": "liteq.contrib.django.LiteqBackend",
                             "OPTIONS": {"unique_key": ["x"]}}}
    """,
    "shop/tasks.py": OWN["shop/tasks.py"],
    "bare.py": """
        import datetime, time
        import django
        django.setup()
        from shop.tasks import same
        first, again = same.enqueue(1), same.enqueue(1)
        when = datetime.datetime.now() + datetime.timedelta(seconds=1000)
        late = same.using(run_after=when).enqueue(2)
        app = same.get_backend().app
        app.run_until_empty()
        first.refresh()
        run_at = app.broker.get([late.id])[late.id].message.run_at
        said = {"value": first.return_value, "again": again.id == first.id,
                "naive": first.finished_at.tzinfo is None,
                "now": abs((when - first.finished_at).total_seconds() - 1000) < 100,
                "late": abs(run_at - time.time() - 1000) < 100,
                "when": same.get_result(late.id).task.run_after == when}
    """,
}


def test_a_project_needs_no_database_no_time_zones_and_not_our_django_app(
    tmp_path: Path,
) -> None:
    django_project.require_tasks()
    project = django_project.make(tmp_path, BARE)

    said = django_project.said(project, "bare")

    assert said == {
        "value": 1,
        "again": True,  # the one that stands: its key is the same
        "naive": True,
        "now": True,
        "late": True,
        "when": True,
    }
