"""The pages of `liteq web` within Django: who sees them, who may change what, and the way
of a request through the view, under WSGI and ASGI."""

from __future__ import annotations

from typing import Any

import django_project
import pytest

pytestmark = pytest.mark.traced

FILES = {
    "proj/settings.py": django_project.SETTINGS
    + """
    INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes",
                      "liteq.contrib.django", "shop"]
    SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware",
                  "django.middleware.common.CommonMiddleware",
                  "django.middleware.csrf.CsrfViewMiddleware",
                  "django.contrib.auth.middleware.AuthenticationMiddleware"]
    ROOT_URLCONF = "proj.urls"
    LOGIN_URL = "/login/"
    ALLOWED_HOSTS = ["testserver"]
    """,
    "proj/urls.py": """
        from django.urls import include, path
        urlpatterns = [path("ops/liteq/", include("liteq.contrib.django.urls"))]
    """,
    "shop/tasks.py": """
        from liteq import shared_task
        @shared_task
        def fail(why, password=""):
            raise ValueError(why)
    """,
    "asked.py": """
        import asyncio, os, signal, threading, traceback, warnings
        from urllib.parse import urlencode
        import django
        django.setup()
        from django.contrib.auth.models import Permission, User
        from django.core.management import call_command
        from django.db import connection
        from django.test import AsyncClient, Client
        from django.test.utils import setup_test_environment
        from django.urls import reverse
        from liteq.contrib.django.project import project_app
        from shop.tasks import fail
        setup_test_environment()
        call_command("migrate", verbosity=0)
        app = project_app()
        made = {}
        for name in ("guest", "staff", "editor", "root"):
            made[name] = User.objects.create(username=name, is_staff=name != "guest",
                                             is_superuser=name == "root")
        made["editor"].user_permissions.add(Permission.objects.get(codename="retry"))
        made["gone"] = User.objects.create(username="gone", is_staff=True, is_active=False)
        ROOT = reverse("liteq:index")
        OWN = {"Sec-Fetch-Site": "same-origin"}

        def client(name=None, **options):
            found = Client(enforce_csrf_checks=True, **options)
            if name:
                found.force_login(User.objects.get(username=name))
            return found

        def send(one, path, headers, **fields):
            form = "application/x-www-form-urlencoded"
            return one.post(ROOT + path, urlencode(fields), content_type=form, headers=headers)

        def failed():
            result = fail.delay("too late", password="hunter2")
            app.run_until_empty()
            return result.id

        def who_sees_them():
            anonymous = client().get(ROOT + "tasks?state=failed")
            posted = send(client(), "retry", OWN)
            return {"root": ROOT, "anonymous": [anonymous.status_code, anonymous["Location"]],
                    "posted": posted["Location"],
                    "guest": client("guest").get(ROOT).status_code,
                    "staff": client("staff").get(ROOT).status_code}

        def pages_are_whole():
            id = failed()
            staff = client("staff")
            first = staff.get(ROOT)
            text = first.content.decode()
            task = staff.get(f"{ROOT}task?id={id}")
            listed = staff.get(ROOT + "tasks")
            style = staff.get(ROOT + "static/style.css")
            again = staff.get(ROOT + "static/style.css",
                              headers={"If-None-Match": style.headers.get("ETag", "")})
            below = staff.get(ROOT, SCRIPT_NAME="/app")
            return {"links": f'href="{ROOT}tasks' in text,
                    "policy": "default-src 'none'" in first["Content-Security-Policy"],
                    "kept": first["Cache-Control"], "type": first["Content-Type"],
                    "listed": id in listed.content.decode(),
                    "task": [task.status_code, "too late" in task.content.decode(),
                             "hunter2" in task.content.decode()],
                    "style": [style.status_code, style["Content-Type"], len(style.content) > 9],
                    "again": [again.status_code, len(again.content)],
                    "none": staff.get(ROOT + "nothing").status_code,
                    "head": [staff.head(ROOT).status_code, len(staff.head(ROOT).content)],
                    "below": f'href="/app{ROOT}tasks' in below.content.decode()}

        def changes_take_a_permission():
            told = {}
            for name in ("staff", "editor", "root"):
                id = failed()
                one = client(name)
                shown = '/retry"' in one.get(f"{ROOT}task?id={id}").content.decode()
                answer = send(one, "retry", OWN, id=id)
                cancelled = send(one, "cancel", OWN, id="none")
                told[name] = [shown, answer.status_code, app.AsyncResult(id).detail,
                              cancelled.status_code != 403]
            answer = send(client("root"), "pause", OWN, queue="default")
            told["to"] = answer["Location"].startswith(ROOT)
            app.resume_queue("default")
            return told

        def changes_come_of_our_own_forms():
            root = client("root")
            def status(**headers):
                return send(root, "pause", headers, queue="x").status_code
            return {"silent": status(), "other": status(**{"Sec-Fetch-Site": "cross-site"}),
                    "sibling": status(**{"Sec-Fetch-Site": "same-site"}),
                    "origin": status(Origin="http://evil.example"),
                    "null": status(Origin="null"),
                    "own": status(Origin="http://testserver"),
                    "host": root.get(ROOT, headers={"Host": "evil.example"}).status_code}

        def under_asgi():
            async def ask():
                one = AsyncClient()
                await one.aforce_login(await User.objects.aget(username="staff"))
                answers = await asyncio.gather(*(one.get(ROOT) for _ in range(4)))
                return [answer.status_code for answer in answers]
            return asyncio.run(ask())

        def in_many_threads():
            told = []
            cookies = client("staff").cookies
            def ask():
                one = Client()
                one.cookies = cookies
                told.append(one.get(ROOT).status_code)
                connection.close()
            threads = [threading.Thread(target=ask) for _ in range(8)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            loops = [t.name for t in threading.enumerate() if t.name == "liteq-pages"]
            return {"told": told, "loops": len(loops)}

        def in_a_forked_server():
            one = client("staff")
            one.get(ROOT)
            with warnings.catch_warnings(action="ignore"):  # of the threads of those before it
                pid = os.fork()
            if not pid:
                signal.alarm(30)  # one that hangs is not to outlast the test
                status = 1
                try:
                    status = 0 if one.get(ROOT).status_code == 200 else 2
                finally:
                    os._exit(status)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        def permissions_are_djangos():
            from liteq.web.actions import PERMISSIONS
            found = Permission.objects.filter(content_type__app_label="liteq")
            call_command("check")
            call_command("makemigrations", "--check", verbosity=0)  # exits if there are any
            return {p.codename for p in found} == PERMISSIONS

        said = {}
        for test in (
            who_sees_them, pages_are_whole, changes_take_a_permission,
            changes_come_of_our_own_forms, under_asgi, in_many_threads, in_a_forked_server,
            permissions_are_djangos,
        ):
            try:
                said[test.__name__] = test()
            except BaseException:
                said[test.__name__] = traceback.format_exc()
    """,
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    def ask() -> Any:
        project = django_project.make(tmp_path_factory.mktemp("pages"), FILES)
        return django_project.said(project, "asked")

    return django_project.once(tmp_path_factory, "pages", ask)


def test_the_staff_sees_the_pages_and_others_log_in_or_are_refused(told: Any) -> None:
    assert told["who_sees_them"] == {
        "root": "/ops/liteq/",
        "anonymous": [302, "/login/?next=/ops/liteq/tasks%3Fstate%3Dfailed"],
        "posted": "/login/?next=/ops/liteq/",
        "guest": 403,
        "staff": 200,
    }


def test_a_page_comes_whole_with_its_headers_and_its_files(told: Any) -> None:
    assert told["pages_are_whole"] == {
        "links": True,
        "policy": True,
        "kept": "no-store",
        "type": "text/html; charset=utf-8",
        "listed": True,
        "task": [200, True, False],  # its password is not shown
        "style": [200, "text/css; charset=utf-8", True],
        "again": [304, 0],
        "none": 404,
        "head": [200, 0],
        "below": True,
    }


def test_a_change_takes_its_permission_and_is_not_offered_without(told: Any) -> None:
    assert told["changes_take_a_permission"] == {
        # the button is there, what it answers, what became of the task; another's is allowed
        "staff": [False, 403, "failed", False],
        "editor": [True, 303, "queued", False],
        "root": [True, 303, "queued", True],
        "to": True,
    }


def test_a_change_is_made_by_a_form_of_these_pages_alone(told: Any) -> None:
    assert told["changes_come_of_our_own_forms"] == {
        "silent": 403,
        "other": 403,
        "sibling": 403,
        "origin": 403,
        "null": 403,
        "own": 303,
        "host": 400,
    }


def test_the_pages_answer_under_asgi_and_in_many_threads_by_one_loop(told: Any) -> None:
    assert told["under_asgi"] == [200] * 4
    assert told["in_many_threads"] == {"told": [200] * 8, "loops": 1}


def test_a_server_may_fork_after_it_has_answered(told: Any) -> None:
    assert told["in_a_forked_server"] == 0


def test_the_permissions_are_made_by_migrate_without_a_migration(told: Any) -> None:
    assert told["permissions_are_djangos"] is True
