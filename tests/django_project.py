"""A Django project in a folder, and its programs, each run in a process of its own."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

__all__ = ["make", "manage", "once", "require_tasks", "said"]

SETTINGS = """
    import os
    from pathlib import Path
    import django
    BASE_DIR = Path(__file__).parent.parent
    SECRET_KEY = "x"
    USE_TZ = True
    INSTALLED_APPS = ["liteq.contrib.django", "shop"]
    if django.VERSION < (6, 0):
        INSTALLED_APPS.append("django_tasks")
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db"}}
"""


def require_tasks() -> None:
    """Skip at a desk where Django is older than its tasks and has no backport; in CI, fail."""
    if find_spec("django.tasks") or find_spec("django_tasks"):
        return
    reason = "Django has no tasks before 6.0: pip install django-tasks"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def make(folder: Path, files: dict[str, str]) -> Path:
    """Write the files of a project, "proj/settings.py" and "manage.py" among them."""
    given = {
        "proj/__init__.py": "",
        "proj/settings.py": SETTINGS,
        "shop/__init__.py": "",
        "manage.py": """
            import os, sys
            os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")
            from django.core.management import execute_from_command_line
            execute_from_command_line(sys.argv)
        """,
    }
    for name, text in {**given, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"))
    return folder


def once(factory: pytest.TempPathFactory, name: str, ask: Callable[[], Any]) -> Any:
    """Return what `ask()` returns, which one of the processes that run the tests asks."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    answer = shared / f"{name}.json"
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not answer.exists():
            answer.write_text(json.dumps(ask()))
    return json.loads(answer.read_text())


def said(project: Path, name: str, **environ: str) -> Any:
    """Run a program of the project; return what it says."""
    code = f"import json, {name}; print(json.dumps({name}.said))"
    ran = _run(project, ["-c", code], {"DJANGO_SETTINGS_MODULE": "proj.settings", **environ})
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def manage(project: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `manage.py` with these words."""
    return _run(project, ["manage.py", *words], environ)


def _run(
    project: Path, words: list[str], environ: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
    path = os.pathsep.join([str(project), *sys.path])
    return subprocess.run(
        [sys.executable, "-W", "error", *words],
        cwd=project,
        env={**inherited, **environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
